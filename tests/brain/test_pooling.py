"Maps and tokens averaged while they are recorded: equal to averages of what is recorded without, per layer and per region."

import numpy as np
import pytest
import torch
from torch import nn

from neurobridge.brain import Recorded, record_layers
from neurobridge.cornet import cornet_variant
from neurobridge.data import Recording

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")


class Tokens(nn.Module):
    "Patches of an image as tokens, one more at the front."

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        return self.block(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))


def test_averages_of_what_is_recorded(tmp_path):
    x, model = torch.rand(9, 3, 16, 16), Tokens()
    layers = ["patch", "block"]
    whole = record_layers(model, x, layers, 4)
    for way, expected in {
        "tokens": whole["block"].mean(2),
        "first": whole["block"][:, :, 0],
    }.items():
        pool = {"patch": "maps", "block": way}
        for folder in (None, tmp_path / way):
            found = record_layers(model, x, layers, 4, pool=pool, folder=folder)
            np.testing.assert_allclose(found["patch"], whole["patch"].mean((3, 4)), rtol=1e-5)
            np.testing.assert_allclose(found["block"], expected, rtol=1e-5, atol=1e-6)
    only = record_layers(model, x, layers, pool={"block": "first"})
    np.testing.assert_allclose(only["patch"], whole["patch"], rtol=1e-4, atol=1e-6)
    wrapped = record_layers(
        nn.DataParallel(model), x, ["module.patch"], pool={"module.patch": "maps"}
    )
    np.testing.assert_allclose(wrapped["patch"], whole["patch"].mean((3, 4)), rtol=1e-4)


def test_steps_of_a_recurrent_network_stay():
    x, model = torch.rand(3, 3, 32, 32), cornet_variant(width=4, classes=3)
    whole, found = (
        record_layers(model, x, ["V4.output"], pool=p)["V4.output"] for p in (None, "maps")
    )
    np.testing.assert_allclose(found, whole.mean((3, 4)), rtol=1e-4, atol=1e-6)
    assert len(found) == 4


def test_regions():
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    shown = Recording(np.zeros((1, 6, 1)), list("abcdef"), images=images)
    areas = {"V1": "patch", "IT": "block"}
    given = dict(transform=lambda x: x.float() / 255)
    whole = Recorded("net", Tokens(), areas, **given)
    part = Recorded("net", whole.model, areas, pool={"V1": "maps", "IT": "first"}, **given)
    for subject in (whole, part):
        subject.start_recording(areas)
    one, two = whole.look_at(shown), part.look_at(shown)
    assert two["V1"].shape == two["IT"].shape == (6, 8) and two["V1"].layer.values[0] == "patch"
    np.testing.assert_allclose(two["V1"], one["V1"].values.reshape(6, 8, -1).mean(2), rtol=1e-4)
    np.testing.assert_allclose(two["IT"], one["IT"].values.reshape(6, -1, 8)[:, 0], rtol=1e-4)
    part.start_recording("V1")
    np.testing.assert_array_equal(part.look_at(shown), two["V1"])


def test_what_does_not_fit():
    x, model = torch.rand(3, 3, 16, 16), Tokens()
    for said, call in {
        r"layer 'patch' returns \[8, 4, 4\] per image; expected tokens": lambda: record_layers(model, x, ["patch"], pool="tokens"),
        "pool has 'blok'; expected names of layers": lambda: record_layers(model, x, ["block"], pool={"blok": "first"}),
        "pool is 'mean'": lambda: record_layers(model, x, ["block"], pool="mean"),
        "pool has 'V4'; expected names of regions": lambda: Recorded("net", model, {"V1": "patch"}, pool={"V4": "maps"}),
        "another region's too": lambda: Recorded("net", model, {"V1": "patch", "V2": "patch"}, pool={"V2": "maps"}),
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=said):
            call()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(768, 3))
    with pytest.raises(ValueError, match=r"returns \[3\] per image; expected maps"):
        record_layers(flat, x, ["1"], pool="maps")
