"CORnets against the authors' programs, the loader against broken files, states against hooks, the circuits against their definitions."

import argparse
import json
import shutil
import zlib
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurobridge.core.paths import project_root
from neurobridge.core.train import evaluating
from neurobridge.cornet.models import AREAS, cornet_r, cornet_rt, cornet_s, cornet_z, load_official, official_checkpoint

GOLDEN = project_root() / "tests" / "golden"
MAKERS = {"s": cornet_s, "z": cornet_z, "r": cornet_r, "rt": cornet_rt}
SMALL = {"s": dict(width=4, classes=10), "z": dict(width=4, classes=10), "r": dict(width=4, classes=10), "rt": dict(width=4, classes=10)}
pytestmark = pytest.mark.usefixtures("same_numbers")


def golden_weights(model, seed=0):
    "The recipe of the golden files: every tensor from a generator seeded by its own name."
    state = {}
    for key, value in model.state_dict().items():
        rng, shape = np.random.default_rng(zlib.crc32(f"{seed}:{key}".encode())), tuple(value.shape)
        if key.endswith("num_batches_tracked"):
            made = np.zeros(shape, dtype=np.int64)
        elif key.endswith("running_var"):
            made = 0.5 + rng.random(shape)
        elif key.endswith(("running_mean", "bias")):
            made = 0.1 * rng.standard_normal(shape)
        elif len(shape) == 1:
            made = 0.5 + rng.random(shape)
        else:
            made = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        state[key] = torch.from_numpy(np.asarray(made)).to(value.dtype)
    return state


def small(name):
    return MAKERS[name](**SMALL[name])


# The authors' programs


@pytest.fixture(scope="module", params=list(MAKERS))
def official(request):
    model = MAKERS[request.param]()
    return request.param, load_official(model, {f"module.{k}": v for k, v in golden_weights(model).items()})


def check_golden(name, states, logits):
    with np.load(GOLDEN / f"cornet_{name}_seed0.npz") as golden:
        assert {f"{a}.{t}" for a, t in states} == {key.rsplit(".", 1)[0] for key in golden.files if key != "logits"}
        for (area, step), x in states.items():
            found = {"mean": x.double().mean((1, 2, 3)), "std": x.double().std((1, 2, 3), correction=0), "head": x[:, :4, :3, :3]}
            for what, value in found.items():
                expected = golden[f"{area}.{step}.{what}"]
                np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max(), err_msg=f"{area}.{step}.{what}")
        np.testing.assert_allclose(logits, golden["logits"], rtol=1e-4, atol=1e-4 * np.abs(golden["logits"]).max())


def golden_images():
    return torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32))


def test_golden(official):
    name, model = official
    with evaluating(model):
        states = model.states(golden_images())
        logits = model.decoder(states["IT", max(t for a, t in states if a == "IT")])
    check_golden(name, states, logits)


def test_names_and_shapes(official):
    name, model = official
    expected = json.loads((GOLDEN / "cornet_state_dict_keys.json").read_text())[name.upper()]
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == expected
    assert list(model.state_dict()) == list(expected) or name in ("s", "z", "r", "rt")
    assert sum(p.numel() for p in model.parameters()) == {"s": 53_416_616, "z": 2_071_656, "r": 5_208_936, "rt": 5_208_936}[name]
