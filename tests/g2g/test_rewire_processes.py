"Two processes, every rule: weights and edges are equal after fifty edits, and those of one process with the whole batch."

import pytest
import torch
from torch import nn

from neurobridge.g2g import EnsembleLinear, MaskedLinear, Rewirer, ensemble_mask, ensembles

pytestmark = [
    pytest.mark.usefixtures("one_thread", "same_numbers"),
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="torch has no gloo backend here",
    ),
]
RULES = [
    (prune, grow)
    for prune in ("magnitude", "random", "hebb")
    for grow in ("random", "hebb", "gradient")
]
N, IDS = 24, ensembles(24, 4)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        MaskedLinear(ensemble_mask(N, N, 4, seed=seed), ensembles=(IDS, IDS)),
        nn.ReLU(),
        EnsembleLinear(N, N, 4, p_inter=0.3),
        nn.Tanh(),
    )


def batch(step):
    rng = torch.Generator().manual_seed(step)
    return torch.rand(32, N, generator=rng), torch.randn(32, N, generator=rng)


def train(
    net, optimizer, steps, part=slice(None), parts=1, reduce=lambda net: None, run=None, start=0
):
    for step in range(start, start + steps):
        x, y = batch(step)
        optimizer.zero_grad()
        for u, v in zip(x[part].chunk(parts), y[part].chunk(parts), strict=True):
            (((run or net)(u) - v).square().mean() / parts).backward()
        reduce(net)
        optimizer.step()
    return {name: value.clone() for name, value in net.state_dict().items()}


TWO = """
import os, sys
import torch
import torch.distributed as dist
from torch import nn
sys.path.insert(0, sys.argv[1])
from test_rewire_processes import RULES, N, network, train
from neurobridge.core import fit
from neurobridge.g2g import Rewirer, Rewiring

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
part = slice(16 * rank, 16 * rank + 16)

def mean(net):
    for p in net.parameters():
        dist.all_reduce(p.grad)
        p.grad /= 2

def message(call):
    try: call()
    except (RuntimeError, ValueError) as error: return str(error)

def made(rule, seed=0, every=1, **settings):
    net = network(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    return net, optimizer, Rewirer(net, optimizer, *rule, every=every, fraction=0.1, **settings)

found = {}
for rule in RULES:
    net, optimizer, rewirer = made(rule, seed=rank)  # what DDP makes equal when it wraps them
    run = nn.parallel.DistributedDataParallel(net)
    early = train(net, optimizer, 5, part, run=run)
    found["ddp", rule] = early, train(net, optimizer, 45, part, run=run, start=5), optimizer.state_dict()["rewirer"]
    net, optimizer, rewirer = made(rule, average=0.5)
    early = train(net, optimizer, 5, part, 2, mean)
    found["plain", rule] = early, train(net, optimizer, 5, part, 2, mean, start=5), optimizer.state_dict()["rewirer"]
    net = network()
    rewiring = Rewiring(net, prune=rule[0], grow=rule[1], every=1, fraction=0.1)
    data = torch.rand(160, N, generator=torch.Generator().manual_seed(0)), torch.arange(160) % N
    fit(net, data, epochs=2, lr=0.01, batch_size=16, optimizer=rewiring, device="cpu")
    found["fit", rule] = None, net.state_dict(), rewiring.rewirer.state_dict()
    found["gradients of its own", rule] = message(lambda: train(*made(rule)[:2], 3, part))
    found["another start", rule] = message(lambda: train(*made(rule, seed=rank)[:2], 3, part, 1, mean))
    found["another scope", rule] = message(lambda: train(*made(rule, scope=("layer", "inter")[rank])[:2], 1, part, 1, mean))
torch.save(found, f"found{rank}")
"""


@pytest.fixture(scope="module")
def two(found_by_two):
    return found_by_two(TWO, __file__)


@pytest.mark.long
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("way", ["ddp", "plain", "fit"])
def test_two_processes_hold_one_network(two, way, rule):
    (_, first, state), (_, second, other) = (found[way, rule] for found in two)
    assert set(first) == set(second) and all(
        torch.equal(first[name], second[name]) for name in first if "extra_state" not in name
    )
    assert bool(state["averages"]) == (way == "plain" and "hebb" in rule)
    assert (
        state["history"] == other["history"]
        and len(state["history"]) == (100 if way == "ddp" else 20)
        and state["history"][-1]["moved"] > 0
    )
    for name in state["averages"]:
        assert all(
            torch.equal(state["averages"][name][key], other["averages"][name][key])
            for key in state["averages"][name]
        )
    assert all(torch.equal(state["seen"][name], other["seen"][name]) for name in state["seen"])


@pytest.mark.long
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("way", "average"), [("ddp", 0.0), ("plain", 0.5)])
def test_two_processes_decide_as_one_with_the_whole_batch(two, way, rule, average):
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    Rewirer(net, optimizer, *rule, every=1, fraction=0.1, average=average)
    alone, early = train(net, optimizer, 5), two[1][way, rule][0]
    assert torch.equal(alone["0.mask"], early["0.mask"]) and torch.equal(
        alone["2.sources"], early["2.sources"]
    )


@pytest.mark.long
@pytest.mark.parametrize("rule", RULES)
def test_two_networks_are_refused_by_both_processes(two, rule):
    for found in two:
        for what in ("gradients of its own", "another start"):
            assert (
                "layer '0' has other weights or edges on one process than on another"
                in found[what, rule]
            )
        assert (
            "two processes disagree: scope is 'layer' and 'inter'" in found["another scope", rule]
        )
