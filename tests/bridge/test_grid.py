"Every combination builds or is refused by name; a covering array of small networks is really used."

import collections
import functools
import itertools
import random

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from neurobridge.brain import record_layers
from neurobridge.bridge import Blueprint, Neuron, Time, Wiring, compose
from neurobridge.bridge.blueprint import BODIES
from neurobridge.core import evaluating, fit, load_network, save_network
from neurobridge.snn import synops
from neurobridge.snn.encode import direct

pytestmark = pytest.mark.usefixtures("same_numbers")
AXES = {
    "body": tuple(BODIES),
    "neuron": ("relu", "sharpened", "lif", "if", "plif", "liaf"),
    "wiring": ("dense", "masked", "ensembles", "random"),
    "where": ("head", "pointwise", "all"),
    "time": ("static", "inside", "across"),
}
SIDE = 16
MUST_WORK = [  # combinations that may never be refused
    *({"body": body} for body in BODIES),
    *({"neuron": "lif", "body": body, "time": time} for body in BODIES for time in ("inside", "across")),
    *({"wiring": wiring, "body": body} for body in BODIES for wiring in AXES["wiring"]),
    *(
        {"body": "cornet_s", "neuron": "lif", "time": time, "wiring": wiring, "where": where}
        for time in ("inside", "across")
        for wiring in AXES["wiring"]
        for where in AXES["where"]
    ),
    *({"body": body, "neuron": "sharpened"} for body in BODIES),
    *({"body": "g2gnet", "neuron": n, "time": "inside", "wiring": "ensembles"} for n in AXES["neuron"][2:]),
]  # fmt: skip


def described(row: dict) -> Blueprint:
    time = Time() if row["time"] == "static" else Time(4, row["time"])
    wiring = Wiring(row["wiring"], groups=2, p_inter=0.3, where=row["where"])
    norms = BODIES[row["body"]].norms and row["neuron"] not in ("relu", "sharpened")
    start = {"gain": 0.5, "bias": 0.25} if norms else {}
    return Blueprint(
        row["body"],
        wiring,
        Neuron(row["neuron"], **start),
        time,
        width=8,
        in_shape=(1, SIDE, SIDE),
        classes=10,
    )


def outcome(row: dict) -> str:
    "Build on the meta device; return why not, else nothing."
    try:
        network = compose(described(row)).to("meta")
    except ValueError as error:
        return str(error)
    images = torch.empty(3, 1, SIDE, SIDE, device="meta")
    with evaluating(network):
        assert network(images).shape == (3, 10)
        states = network.states(images, average=True)
    assert {area for area, _ in states} == set(network.areas)
    assert all(len(value) == 3 for value in states.values())
    assert (row["wiring"] != "dense") == bool(network.wired)
    return ""


def rows() -> list[dict]:
    return [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]


@functools.cache
def outcomes(body: str) -> dict[tuple, str]:
    return {tuple(row.values()): outcome(row) for row in rows() if row["body"] == body}


@pytest.mark.long
@pytest.mark.parametrize("body", BODIES)
def test_the_grid_of_a_body(body):
    for why in outcomes(body).values():
        if why:
            assert why.split(": ")[1].split(" is ")[0] in ("time.steps", "wiring.groups"), why
            assert "; use " in why, why
    for wanted in MUST_WORK:
        row = {name: AXES[name][0] for name in AXES} | wanted
        if row["body"] == body:
            assert outcomes(body)[tuple(row.values())] == "", row


@pytest.mark.long
def test_at_most_a_seventh_of_the_grid_is_refused():
    found = [why for body in BODIES for why in outcomes(body).values()]
    share = sum(map(bool, found)) / len(found)
    print(f"{len(found):,} combinations, {share:.1%} refused")
    assert len(found) == 1728 and share <= 0.15


# A covering array: every pair of values of two axes is in some network


def pairs(row: dict) -> set:
    return {frozenset(two) for two in itertools.combinations(row.items(), 2)}


def covering_array(least: int) -> list[dict]:
    "Choose combinations greedily until each allowed pair is covered, then random ones up to a number."
    rng = random.Random(0)

    def allowed(row):
        return not (row["neuron"] == "sharpened" and row["time"] != "static")

    candidates = [row for row in rows() if allowed(row)]
    left = set().union(*map(pairs, candidates))
    chosen = []
    while left:
        some = rng.sample(candidates, 300)
        best = max(some, key=lambda row: len(pairs(row) & left))
        if pairs(best) & left:
            chosen.append(best)
            left -= pairs(best)
    return chosen + rng.sample(candidates, max(0, least - len(chosen)))


ARRAY = covering_array(80)


def test_the_array_covers_all_pairs():
    seen = set().union(*map(pairs, ARRAY))
    for (one, ones), (two, twos) in itertools.combinations(AXES.items(), 2):
        for a, b in itertools.product(ones, twos):
            ruled_out = (
                {(one, a), (two, b)} >= {("neuron", "sharpened")}
                and "time" in (one, two)
                and (dict([(one, a), (two, b)])["time"] != "static")
            )
            assert ruled_out or frozenset([(one, a), (two, b)]) in seen, (a, b)
    assert 48 <= len(ARRAY) <= 100


def lowered(network, images, labels) -> bool:
    "Take one step of gradient descent, small enough; return whether the loss is lower."
    network.train()
    before = F.cross_entropy(network(images), labels)
    before.backward()
    start = [p.detach().clone() for p in network.parameters()]
    for power in range(12):
        with torch.no_grad():
            for p, old in zip(network.parameters(), start, strict=True):
                if p.grad is not None:
                    p.copy_(old - 0.3 * 0.3**power * p.grad)
        with torch.no_grad():
            if F.cross_entropy(network(images), labels) < before:
                return True
    return False


def export(network, images) -> str:
    pytest.importorskip("nir")
    from neurobridge.snn import to_nir

    try:
        return type(to_nir(network, direct(images[:2], 4))).__name__
    except (ValueError, TypeError) as error:
        assert str(error).startswith(
            ("to_nir: ", f"{network.blueprint.body_name} network: x is")
        ), error
        return "refused"


@pytest.mark.long
@pytest.mark.parametrize("index", range(len(ARRAY)), ids=lambda i: "-".join(ARRAY[i].values()))
def test_a_small_network(index, tmp_path):
    network = compose(described(ARRAY[index]))
    images, labels = torch.randn(8, 1, SIDE, SIDE), torch.arange(8)
    assert lowered(network, images, labels)
    for _ in range(3):
        network(images)
    network.eval()
    with torch.no_grad():
        states, answer = network.states(images, average=True), network(images)
    assert answer.isfinite().all() and all(value.isfinite().all() for value in states.values())

    cost = synops(network, images)
    assert np.isfinite(cost.energy.sum()) and cost.energy.sum() > 0

    save_network(network, tmp_path / "net.safetensors")
    again = load_network(tmp_path / "net.safetensors")
    assert again.blueprint == network.blueprint
    with torch.no_grad():
        assert torch.equal(again(images), answer)

    for area, layer in network.area_layers.items():
        steps = torch.stack([value for (name, _), value in states.items() if name == area])
        if (steps == steps[:, :1]).all():  # a silent area, which record_layers refuses
            continue
        recorded = record_layers(network, images, [layer])[layer]
        if len(recorded) == 1:  # an encoder, which sees an image once
            recorded = recorded.repeat(len(steps), 0)
        by_step = recorded.reshape(len(steps), -1, *recorded.shape[1:]).mean(1)
        np.testing.assert_allclose(by_step, steps, rtol=1e-5, atol=1e-5)

    assert export(network, images) in ("NIRGraph", "refused")


@pytest.mark.long
@pytest.mark.parametrize("index", range(len(ARRAY)), ids=lambda i: "-".join(ARRAY[i].values()))
def test_an_interrupted_training_goes_on_exactly(index, tmp_path):
    half = described(ARRAY[index])
    generator = torch.Generator().manual_seed(index)
    pairs = torch.randn(12, 1, SIDE, SIDE, generator=generator), torch.arange(12) % 10
    settings = {"epochs": 2, "lr": 1e-3, "batch_size": 6, "device": "cpu"}
    straight, broken, later = compose(half), compose(half), compose(half)
    whole = fit(straight, pairs, **settings)
    file, trained = tmp_path / "at.pt", []

    def stop(epoch, epochs):
        if epoch == 2:
            raise KeyboardInterrupt

    def note(epoch, epochs):
        trained.append(epoch)

    with pytest.raises(KeyboardInterrupt):
        fit(broken, pairs, checkpoint=file, on_epoch=stop, **settings)
    history = fit(later, pairs, checkpoint=file, on_epoch=note, **settings)
    assert trained == [2]  # the first epoch came from the file
    columns = [name for name in whole.frame() if "seconds" not in name]
    pd.testing.assert_frame_equal(
        history.frame()[columns], whole.frame()[columns], check_exact=True
    )
    found = later.state_dict()
    for name, value in straight.state_dict().items():
        assert torch.equal(found[name], value), name
    pairs = zip(compose(half).parameters(), later.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


@pytest.mark.long
def test_some_networks_of_each_feed_forward_body_export():
    pytest.importorskip("nir")
    found = collections.Counter()
    for body in ("convnet", "resnet18"):
        row = {"body": body, "neuron": "lif", "wiring": "dense", "where": "head", "time": "inside"}
        network = compose(described(row)).eval()
        found[export(network, torch.rand(2, 1, SIDE, SIDE))] += 1
        assert isinstance(network, nn.Module)
    assert found == {"NIRGraph": 2}
