"Rewiring: exact numbers, nothing that comes back, scores computed otherwise, trainings that were killed."

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurobridge.g2g import (
    PRESETS,
    EnsembleLinear,
    MaskedLinear,
    Rewirer,
    ensemble_edges,
    ensemble_mask,
    ensembles,
)
from neurobridge.g2g.rules import hebbian, local_paths, lowest, moments_of, softened

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")
IDS = ensembles(32, 4)


def masked():
    return MaskedLinear(ensemble_mask(32, 32, 4), ensembles=(IDS, IDS))


def train(layer, optimizer, steps, start=0):
    for step in range(start, start + steps):
        x = torch.randn(16, layer.in_features, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (layer(x).relu() - x.relu()).square().sum().backward()
        optimizer.step()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_lowest_against_sorting(rows, columns, seed):
    rng = torch.Generator().manual_seed(seed)
    score, label = (
        torch.rand(rows, columns, generator=rng),
        torch.randint(-1, 3, (rows, columns), generator=rng),
    )
    number = [int((label == value).sum()) for value in range(3)]
    count = torch.tensor([n // 2 for n in number])
    picked = lowest(score, label, count, rng)
    for value in range(3):
        expected = sorted(score[label == value].tolist())[: count[value]]
        assert sorted(score[picked & (label == value)].tolist()) == expected
    assert not picked[label < 0].any()


def test_ties_are_broken_by_lot():
    picks = sum(
        lowest(
            torch.zeros(1, 20),
            torch.zeros(1, 20, dtype=torch.long),
            torch.tensor([5]),
            torch.Generator().manual_seed(seed),
        ).int()
        for seed in range(200)
    )
    assert picks.sum() == 1000 and picks.min() > 20 and picks.max() < 85


def test_scores_against_numpy():
    a, b = torch.rand(50, 4), torch.rand(50, 3)
    np.testing.assert_allclose(
        hebbian(moments_of(a, b), "pearson"), np.corrcoef(b.T, a.T)[:3, 3:], atol=1e-5
    )
    a[:, 0] = 0
    assert (hebbian(moments_of(a, b))[:, 0] == 0).all() and (
        hebbian(moments_of(a, b), "absolute") >= 0
    ).all()


@pytest.mark.parametrize(
    "optimiser",
    [
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    ],
)
@pytest.mark.parametrize("prune", ["magnitude", "random", "hebb"])
@pytest.mark.parametrize("grow", ["random", "hebb", "gradient"])
@pytest.mark.parametrize("make", [masked, lambda: EnsembleLinear(32, 32, 4)])
def test_nothing_old_comes_back(optimiser, prune, grow, make):
    layer = make()
    optimizer = optimiser(layer.parameters())
    rewirer = Rewirer(layer, optimizer, prune, grow, every=3, fraction=0.25)
    before = copy.deepcopy(layer)
    train(layer, optimizer, 3)
    held = [
        layer.weight,
        layer.weight.grad,
        *(v for v in optimizer.state[layer.weight].values() if torch.is_tensor(v) and v.ndim),
    ]
    if isinstance(layer, MaskedLinear):
        fresh = (layer.mask != before.mask) | ~layer.mask
        assert layer.edges == before.edges and (layer.mask & ~before.mask).sum() == int(
            0.25 * before.edges
        )
    else:
        fresh = (layer.sources != before.sources)[:, None].expand_as(layer.weight)
        assert all(len(set(row)) == layer.sources.shape[1] for row in layer.sources.tolist())
    assert fresh.any() and all((tensor[fresh] == 0).all() for tensor in held)
    train(layer, optimizer, 9, 3)
    assert len(rewirer.history) == 4 and rewirer.table().explored.is_monotonic_increasing
    if isinstance(layer, MaskedLinear):
        assert all((t[~layer.mask] == 0).all() for t in (layer.weight, layer.weight.grad))


def test_scopes():
    for scope in ("inter", "group"):
        layer = masked()
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        before = ensemble_edges(layer.mask, IDS, IDS)
        mask = layer.mask.clone()
        Rewirer(layer, optimizer, "hebb", "hebb", every=1, fraction=0.3, scope=scope)
        train(layer, optimizer, 3)
        after = ensemble_edges(layer.mask, IDS, IDS)
        assert not torch.equal(mask, layer.mask) and torch.equal(
            before.diagonal(), after.diagonal()
        )
        assert torch.equal(before, after) == (scope == "group")


def test_gradient_growth_picks_the_largest_dense_gradient():
    layer = masked()
    x = torch.randn(16, 32)
    dense = (layer.weight * layer.mask).detach().requires_grad_()
    (nn.functional.linear(x, dense, layer.bias).relu() - x).square().sum().backward()
    optimizer, before = torch.optim.SGD(layer.parameters(), lr=0.0), layer.mask.clone()
    Rewirer(layer, optimizer, "magnitude", "gradient", every=1, fraction=0.1)
    (layer(x).relu() - x).square().sum().backward()
    optimizer.step()
    born, k = layer.mask & ~before, int(0.1 * before.sum())
    assert set(dense.grad.abs()[born].tolist()) == set(
        dense.grad.abs()[~before].topk(k).values.tolist()
    )


@pytest.mark.parametrize(
    "rule", [("hebb", "hebb", 0.5), ("magnitude", "gradient", 0.0), ("random", "random", 0.0)]
)
@pytest.mark.parametrize("make", [masked, lambda: EnsembleLinear(32, 32, 4)])
def test_exact_resume(rule, make, tmp_path):
    prune, grow, average = rule

    def fresh(model=None):
        torch.manual_seed(1)
        layer = make()
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        return (
            layer,
            optimizer,
            Rewirer(layer, optimizer, prune, grow, every=4, fraction=0.2, average=average),
        )

    layer, optimizer, rewirer = fresh()
    train(layer, optimizer, 20)
    half = fresh()
    train(*half[:2], 10)
    torch.save(
        {"model": half[0].state_dict(), "optimizer": half[1].state_dict()}, tmp_path / "half.pt"
    )
    again = fresh()
    state = torch.load(tmp_path / "half.pt", weights_only=True)
    again[0].load_state_dict(state["model"]), again[1].load_state_dict(state["optimizer"])
    train(*again[:2], 10, 10)
    torch.testing.assert_close(again[0].state_dict(), layer.state_dict(), rtol=0, atol=0)
    found, expected = again[1].state_dict(), optimizer.state_dict()
    torch.testing.assert_close(found["state"], expected["state"], rtol=0, atol=0)
    torch.testing.assert_close(
        [found["rewirer"][name] for name in ("seen", "averages", "steps")],
        [expected["rewirer"][name] for name in ("seen", "averages", "steps")],
        rtol=0,
        atol=0,
    )
    assert (
        found["rewirer"]["history"] == expected["rewirer"]["history"]
        and len(found["rewirer"]["history"]) == 5
    )
    rewirer.detach()
    other = Rewirer(layer, torch.optim.Adam(layer.parameters()), every=5)
    with pytest.raises(ValueError, match="every = 4 there, 5 here"):
        other.load_state_dict(again[2].state_dict())


def test_schedules_and_stop():
    layer = masked()
    optimizer = torch.optim.Adam(layer.parameters())
    rewirer = Rewirer(layer, optimizer, every=2, fraction=0.3, schedule="cosine", stop=6)
    train(layer, optimizer, 10)
    table = rewirer.table()
    assert table.step.tolist() == [2, 4, 6] and table.moved.tolist() == [
        int(rewirer.share(s) * layer.edges + 1e-9) for s in (2, 4, 6)
    ]
    assert (
        rewirer.share(0) == 0.3
        and rewirer.share(3) == pytest.approx(0.15)
        and rewirer.share(6) == 0
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"prune": "weight"},
        {"grow": "set"},
        {"every": 0},
        {"fraction": 0},
        {"fraction": 2},
        {"average": 1},
        {"scope": "all"},
        {"schedule": "cosine"},
        {"correlation": "x"},
        {"stop": -5},
        {"stop": 0},
        {"fraction": float("nan")},
        {"average": float("nan")},
        {"seed": -1},
        {"every": 2.5},
        {"every": True},
        {"stop": 2.5},
        {"seed": 0.5},
        {"fraction": "0.1"},
    ],
)
def test_what_is_no_rule(wrong):
    layer = masked()
    with pytest.raises(
        (TypeError, ValueError),
        match=f"Rewirer: {'stop' if 'schedule' in wrong else next(iter(wrong))} is",
    ):
        Rewirer(layer, torch.optim.Adam(layer.parameters()), **wrong)
    assert not layer._forward_hooks


def test_presets_are_rules():
    layer = masked()
    for name, preset in PRESETS.items():
        Rewirer(
            layer,
            torch.optim.Adam(layer.parameters()),
            **preset | ({} if name in ("g2g", "set", "ctre", "cht") else {"stop": 1000}),
        )


def paths_by_counting(mask):
    "CH3 written otherwise: walk every path o - i' - o' - i, and weigh the neurons on it."
    targets = [set(row.nonzero().flatten().tolist()) for row in mask]
    sources = [set(column.nonzero().flatten().tolist()) for column in mask.t()]

    def weight(one, other):
        return 1 / max(len(other - one), 1) if one & other else 0.0

    score = torch.zeros(mask.shape)
    for o, reads in enumerate(targets):
        for i, read_by in enumerate(sources):
            through = [p for p, other in enumerate(targets) if i in other]
            score[o, i] += sum(weight(reads, targets[p]) for p in through)
            score[o, i] += sum(weight(read_by, sources[q]) for q in reads)
    return score


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 99))
def test_paths_of_length_three_against_counting(rows, columns, seed):
    mask = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.4
    torch.testing.assert_close(local_paths(mask), paths_by_counting(mask))


def test_a_soft_choice_is_a_draw_without_replacement():
    "Pairs of three weights against their exact chances, and a high power against the exact order."
    weights, number = torch.tensor([[1.0, 2.0, 5.0, 0.0]]), 20_000
    draws = torch.Generator().manual_seed(0)
    keys = torch.cat([softened(weights, 1.0, draws) for _ in range(number)])
    pairs = keys.topk(2).indices.sort(1).values
    total = 8.0
    for a, b in ((0, 1), (0, 2), (1, 2)):
        p, q = float(weights[0, a]), float(weights[0, b])
        expected = p / total * q / (total - p) + q / total * p / (total - q)
        found = (pairs == torch.tensor([a, b])).all(1).double().mean().item()
        assert abs(found - expected) < 4 * (expected * (1 - expected) / number) ** 0.5
    assert not (pairs == 3).any()
    sharp = torch.cat([softened(weights, 200.0, draws) for _ in range(100)])
    assert (sharp.topk(2).indices == torch.tensor([2, 1])).all()


def test_chts_keeps_the_number_of_edges_and_becomes_exact():
    "Late removals take the smallest weights, early ones do not; ch3 without softness takes the best pairs."
    layer = MaskedLinear(torch.rand(32, 32, generator=torch.Generator().manual_seed(1)) < 0.2)
    before, expected = layer.mask.clone(), local_paths(layer.mask)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    Rewirer(layer, optimizer, every=1, **PRESETS["cht"])
    train(layer, optimizer, 1)
    born = layer.mask & ~before
    assert layer.edges == before.sum() and born.sum() == int(0.3 * before.sum())
    assert expected[born].min() >= expected[~before & ~born].max()

    shares = []
    for stop in (1, 10_000):  # the first edit is the last, or one of many
        layer = MaskedLinear(before)
        with torch.no_grad():
            layer.weight.copy_(torch.rand(32, 32) * layer.mask)
        weights = layer.weight.detach().clone()
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
        rewirer = Rewirer(layer, optimizer, every=1, stop=stop, **PRESETS["chts"])
        rewirer.steps = stop - 1 if stop == 1 else 0
        train(layer, optimizer, 1)
        gone = before & ~layer.mask
        count = int(gone.sum())
        smallest = weights[before].sort().values[count - 1]
        assert layer.edges == before.sum() and count == int(0.3 * before.sum())
        shares.append((weights[gone] <= smallest).double().mean().item())
    assert shares[0] > shares[1] + 0.1 and shares[1] < 0.9


@pytest.mark.parametrize("soft", [False, True])
def test_chts_resumes_to_the_bit(soft):
    def course(first, second):
        torch.manual_seed(0)  # of the bias
        layer = MaskedLinear(torch.rand(32, 32, generator=torch.Generator().manual_seed(1)) < 0.2)
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(-1, 1, 1024).view(32, 32) * layer.mask)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        more = dict(every=3, grow="ch3", fraction=0.3, soft=soft, stop=20)
        Rewirer(layer, optimizer, **more)
        train(layer, optimizer, first)
        if second:
            state, kept = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(layer.state_dict())
            layer = MaskedLinear(torch.ones(32, 32, dtype=torch.bool))
            optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
            Rewirer(layer, optimizer, **more)
            layer.load_state_dict(kept)
            optimizer.load_state_dict(state)
            train(layer, optimizer, second, first)
        return layer

    whole, halves = course(15, 0), course(7, 8)
    assert torch.equal(whole.mask, halves.mask) and torch.equal(whole.weight, halves.weight)
