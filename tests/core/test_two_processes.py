"`fit` on two processes equals one process with twice the batch: loss, batch norm, rewiring, and after an interruption."

import pytest
import torch
from torch import nn

from neurobridge.core import fit
from neurobridge.g2g import PRESETS, MaskedLinear, Rewiring, er_mask
from neurobridge.g2g.layers import MaskedConv2d

pytestmark = [
    pytest.mark.usefixtures("one_thread", "same_numbers"),
    pytest.mark.long,
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="torch has no gloo backend here",
    ),
]


def data(n, seed):
    rng = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=rng)
    return torch.rand(n, 3, 8, 8, generator=rng) + 0.5 * y.view(-1, 1, 1, 1), y


def network():
    "Convolutions and linear layers, dense and sparse, each with its batch norm."
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        MaskedConv2d(er_mask(8, 8, 0.5), padding=1),
        nn.BatchNorm2d(8, momentum=None),
        nn.ReLU(),
        nn.Flatten(),
        MaskedLinear(er_mask(288, 16, 0.25)),
        nn.BatchNorm1d(16, affine=False),
        nn.ReLU(),
        nn.Linear(16, 3),
    ).double()


def doubled(pair):
    return pair[0].double(), pair[1]


RULES = {name: PRESETS[name] | {"every": 2} for name in ("g2g", "rigl", "srigl", "gradual")}
for name in ("rigl", "srigl", "gradual"):
    RULES[name] |= {"stop": 12}


def trained(batch_size, rule="rigl", **more):
    net = network()
    rewiring = Rewiring(net, optimizer=torch.optim.SGD, **RULES[rule])
    history = fit(
        net,
        doubled(data(72, 0)),
        doubled(data(40, 1)),
        epochs=4,
        lr=0.05,
        batch_size=batch_size,
        optimizer=rewiring,
        device="cpu",
        **more,
    )
    rows = [{k: v for k, v in row.items() if "seconds" not in k} for row in history.rows]
    return {"rows": rows, "state": net.state_dict(), "history": rewiring.rewirer.history}


TWO = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from test_two_processes import RULES, trained

class Killed(Exception):
    pass

def half(epoch, epochs):
    if epoch == 3:
        raise Killed

torch.set_num_threads(1)
found = {rule: trained(8, rule) for rule in RULES}
try:
    trained(8, checkpoint="half.pt", on_epoch=half)
except Killed:
    pass
found["resumed"] = trained(8, checkpoint="half.pt")
torch.save(found, f"found{torch.distributed.get_rank()}")
"""


@pytest.fixture(scope="module")
def two(found_by_two):
    return found_by_two(TWO, __file__)


@pytest.mark.parametrize("rule", RULES)
def test_two_processes_are_one_with_twice_the_batch(two, rule):
    "Epoch by epoch the loss, at the end weights, running statistics, and each edit."
    one = trained(16, rule)
    assert sum(row["moved"] for row in one["history"]) > 50
    for found in two:
        for mine, theirs in zip(one["rows"], found[rule]["rows"], strict=True):
            assert theirs == pytest.approx(mine, rel=1e-6)
        for name, value in one["state"].items():
            torch.testing.assert_close(found[rule]["state"][name], value, rtol=1e-6, atol=1e-8)
        same = ("step", "layer", "moved", "mask")
        assert [[row[k] for k in same] for row in found[rule]["history"]] == [
            [row[k] for k in same] for row in one["history"]
        ]


def test_an_interrupted_training_of_two_is_the_whole_one(two):
    first = two[0]["rigl"]
    for found in (two[1]["rigl"], two[0]["resumed"], two[1]["resumed"]):
        assert found["rows"] == first["rows"] and found["history"] == first["history"]
        assert all(
            torch.equal(first["state"][name], found["state"][name]) for name in first["state"]
        )


def test_norms_are_torchs_own_again():
    net = network()
    fit(net, doubled(data(72, 0)), epochs=1, lr=0.05, batch_size=16, device="cpu")
    assert not any("forward" in vars(module) for module in net.modules())
