"Wiring: edges counted one by one, graphs built by other libraries, laws over random shapes, shares that are none."

import re

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2, hypergeom

from neurobridge.g2g import (
    EnsembleLinear,
    MaskedLinear,
    block_mask,
    density,
    ensemble_edges,
    ensemble_mask,
    ensembles,
    er_mask,
    erk_densities,
    intra_fraction,
    modularity,
    p_inter_at,
    small_world_mask,
)
from neurobridge.g2g.wiring import draw_mask, ensemble_sources, paths, sources_mask

shares = st.floats(0, 1)
laws = st.fixed_dictionaries({"groups": st.integers(1, 6), "p_intra": shares, "p_inter": shares, "grouping": st.sampled_from(["index", "random", "mixer"]),
                              "layer": st.integers(0, 3), "seed": st.integers(0, 99)})  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(laws, st.integers(1, 6), st.integers(1, 6))
def test_the_law_to_the_edge(law, a, b):
    "Of like and of unlike pairs, counted in two loops, exactly the promised share exists."
    G = law["groups"]
    n_in, n_out = a * G, b * G
    mask = ensemble_mask(n_in, n_out, **law)
    assert mask.shape == (n_out, n_in) and mask.dtype == torch.bool
    of, to = (
        ensembles(n, G, law["grouping"], law["layer"], side, law["seed"]).tolist()
        for n, side in ((n_in, "in"), (n_out, "out"))
    )
    like = [mask[o, i].item() for o in range(n_out) for i in range(n_in) if to[o] == of[i]]
    other = [mask[o, i].item() for o in range(n_out) for i in range(n_in) if to[o] != of[i]]
    assert (
        abs(sum(like) - law["p_intra"] * len(like)) <= 0.5 + 1e-9
        and abs(sum(other) - law["p_inter"] * len(other)) <= 0.5 + 1e-9
    )
    assert (
        abs(mask.sum().item() - density(G, law["p_intra"], law["p_inter"]) * n_in * n_out)
        <= 1 + 1e-9
    )
    assert torch.equal(mask, ensemble_mask(n_in, n_out, **law))


@settings(max_examples=60, deadline=None)
@given(laws, st.integers(1, 6), st.integers(1, 6))
def test_a_shared_fan_in(law, a, b):
    G, own = law["groups"], round(law["p_intra"] * a)
    foreign = round(law["p_inter"] * (a * law["groups"] - a))
    if own + foreign == 0:
        with pytest.raises(ValueError, match="leave none"):
            ensemble_sources(a * G, **law)
        return
    sources = ensemble_sources(a * G, **law)
    of, to = (
        ensembles(n, G, law["grouping"], law["layer"], side, law["seed"])
        for n, side in ((a * G, "in"), (b * G, "out"))
    )
    assert all(len(set(row)) == own + foreign for row in sources.tolist())
    assert ((of[sources] == torch.arange(G)[:, None]).sum(1) == own).all()
    mask = sources_mask(sources, to, a * G)
    assert all(
        set(mask[o].nonzero().flatten().tolist()) == set(sources[to[o]].tolist())
        for o in range(b * G)
    )


def test_groupings_by_hand():
    assert (
        ensembles(6, 3).tolist() == [0, 0, 1, 1, 2, 2] == ensembles(6, 3, "mixer", layer=2).tolist()
    )
    assert ensembles(6, 3, "mixer", layer=1).tolist() == [0, 1, 2, 0, 1, 2]
    shuffled = [
        ensembles(60, 3, "random", layer, side, seed).tolist()
        for layer in (0, 1)
        for side in ("in", "out")
        for seed in (0, 1)
    ]
    assert len({tuple(ids) for ids in shuffled}) == 8 and all(
        np.bincount(ids).tolist() == [20] * 3 for ids in shuffled
    )


@pytest.mark.parametrize("exact", [True, False])
def test_edges_are_drawn_evenly(exact):
    "Over many seeds each foreign edge exists as often as its probability says."
    draws = 400
    counts = sum(
        ensemble_mask(8, 8, 2, p_inter=0.25, exact=exact, seed=seed).double()
        for seed in range(draws)
    )
    same = ensembles(8, 2)[:, None] == ensembles(8, 2)
    assert (counts[same] == draws).all()
    low, high = binom.ppf([1e-6, 1 - 1e-6], draws, 0.25)
    assert (
        low <= counts[~same].min()
        and counts[~same].max() <= high
        and len(counts[~same].unique()) > 5
    )


def test_coins_scatter_and_exact_counts_do_not():
    numbers = {
        exact: {ensemble_mask(32, 32, exact=exact, seed=seed).sum().item() for seed in range(10)}
        for exact in (True, False)
    }
    assert len(numbers[True]) == 1 and len(numbers[False]) > 3


@given(st.integers(2, 12), shares, shares)
def test_density_and_its_inverse(groups, p_intra, p_inter):
    assert p_inter_at(density(groups, p_intra, p_inter), groups, p_intra) == pytest.approx(
        p_inter, abs=1e-12
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), shares, shares, st.integers(0, 9))
def test_controls_have_their_density(n_in, n_out, share, beta, seed):
    assert (
        abs(er_mask(n_in, n_out, share, seed=seed).sum().item() - share * n_in * n_out)
        <= 0.5 + 1e-9
    )
    assert (
        small_world_mask(n_in, n_out, share, beta, seed=seed).sum(1) == round(share * n_in)
    ).all()
    tiles = block_mask(4 * n_in, 4 * n_out, share, 4, seed=seed)
    assert (tiles.view(n_out, 4, n_in, 4).float().mean((1, 3)).unique() % 1 == 0).all() and abs(
        tiles.sum().item() / 16 - share * n_in * n_out
    ) <= 0.5 + 1e-9


def test_a_small_world_without_moves_is_networkx_ring():
    "Each neuron and its four neighbours: Watts and Strogatz's ring, with the neuron itself."
    ring = nx.to_numpy_array(nx.watts_strogatz_graph(20, 4, 0)) + np.eye(20)
    assert np.array_equal(small_world_mask(20, 20, 0.25, beta=0).numpy(), ring.astype(bool))


@pytest.mark.parametrize("share", [0.08, 0.25, 0.5, 0.75])
def test_a_small_world_with_all_edges_moved_is_a_random_graph(share):
    "Of 20 sources each target reads k; how many of its k neighbours are among them is hypergeometric, and every edge is as likely as any other."
    n, draws, k = 20, 400, round(share * 20)
    ring = small_world_mask(n, n, share, beta=0)
    masks = torch.stack([small_world_mask(n, n, share, beta=1, seed=seed) for seed in range(draws)])
    assert (masks.sum(2) == k).all() and len({mask.numpy().tobytes() for mask in masks}) == draws
    kept = (masks & ring).sum(2).flatten().numpy()
    expected = hypergeom(n, k, k).pmf(range(k + 1)) * len(kept)
    seen, common = np.bincount(kept, minlength=k + 1), expected > 5
    found = (
        [*seen[common], seen[~common].sum()],
        [*expected[common], expected[~common].sum() + 1e-9],
    )
    assert ((np.array(found[0]) - found[1]) ** 2 / np.maximum(found[1], 1)).sum() < chi2.isf(
        1e-6, max(common.sum(), 1)
    )
    low, high = binom.ppf([1e-7, 1 - 1e-7], draws, k / n)
    assert low <= masks.sum(0).min() and masks.sum(0).max() <= high


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_a_small_world_in_between(beta):
    "A share 1 - beta stays; of the others, each free place is as likely: k neighbours of which m moved, n - k + m free places."
    n, k, share = 100, 20, 0.2
    near = np.mean(
        [
            (small_world_mask(n, n, share, beta, seed=seed) & small_world_mask(n, n, share, beta=0))
            .sum()
            .item()
            / n
            / k
            for seed in range(40)
        ]
    )
    moved = np.arange(k + 1)
    expected = (binom.pmf(moved, k, beta) * (k - moved + moved * moved / (n - k + moved))).sum() / k
    assert near == pytest.approx(expected, abs=0.005)


def test_erk_against_a_search():
    "The published rule, its factor found by bisection instead."
    shapes = [(64, 3, 3, 3), (128, 64, 3, 3), (1024, 2048), (10, 1024)]
    for share in (0.05, 0.2, 0.5, 0.9, 1.0):
        found = erk_densities(shapes, share)
        raw, size = (
            np.array([sum(s) / np.prod(s) for s in shapes]),
            np.array([np.prod(s) for s in shapes]),
        )
        low, high = 0.0, 1e6
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (
                (middle, high)
                if (np.minimum(middle * raw, 1) * size).sum() < share * size.sum()
                else (low, middle)
            )
        np.testing.assert_allclose(found, np.minimum(high * raw, 1), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(0, 99))
def test_modularity_against_networkx(size, seed):
    "Barber's Q of the two-sided graph, from networkx's Q: of a graph with all edges pointing from sources to targets."
    groups, n = 3, 3 * size
    mask, ids = er_mask(n, n, 0.6, seed=seed), ensembles(n, groups, "random", seed=seed)
    graph = nx.DiGraph([(("i", i), ("o", o)) for o, i in mask.nonzero().tolist()])
    parts = [
        {(side, k) for side in "io" for k in (ids == g).nonzero().flatten().tolist()} & set(graph)
        for g in range(groups)
    ]
    edges = ensemble_edges(mask, ids, ids)
    assert modularity(edges) == pytest.approx(nx.community.modularity(graph, parts), abs=1e-12)
    assert intra_fraction(edges) == pytest.approx(
        np.mean([(ids[o] == ids[i]).item() for o, i in mask.nonzero().tolist()])
    )


def test_paths_one_by_one():
    masks = [er_mask(4, 5, 0.5, layer=0), er_mask(5, 3, 0.6, layer=1)]
    expected = [
        [sum(bool(masks[0][h, i]) and bool(masks[1][o, h]) for h in range(5)) for i in range(4)]
        for o in range(3)
    ]
    assert paths(masks).tolist() == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"p_inter": -0.1},
        {"p_intra": 1.5},
        {"p_inter": float("nan")},
        {"grouping": "rows"},
        {"groups": 0},
        {"groups": 5},
        {"seed": -1},
    ],
)
def test_what_is_no_wiring(wrong):
    with pytest.raises(ValueError):
        ensemble_mask(16, 16, **wrong)


def test_more_that_is_no_wiring():
    for call in (lambda: er_mask(4, 4, 1.1), lambda: block_mask(8, 8, 0.5, 3), lambda: p_inter_at(0.05), lambda: erk_densities([(2, 2)], -1),
                 lambda: ensemble_edges(er_mask(4, 4, 0.5), ensembles(8), ensembles(8)), lambda: ensembles(8, 2, side="up")):  # fmt: skip
        with pytest.raises(ValueError):
            call()


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 40), st.floats(0, 1), st.floats(0, 1))
def test_advice_on_a_density_applies(groups, p_intra, wanted):
    "What the message says to do makes the call work."
    try:
        p_inter_at(wanted, groups, p_intra)
    except ValueError as error:
        more, share = (
            re.search(r"at least (\d+) groups", str(error)),
            re.search(r"p_intra to at (?:most|least) ([\d.e-]+)", str(error)),
        )
        assert 0 <= p_inter_at(wanted, groups, float(share[1])) <= 1
        if more and int(more[1]) < 10**6:
            assert int(more[1]) > groups and 0 <= p_inter_at(wanted, int(more[1]), p_intra) <= 1


def test_advice_on_groups_applies():
    with pytest.raises(
        ValueError,
        match="n_in is 30 and n_out is 45; expected multiples of groups = 8; choose groups from 1, 3, 5, 15, or other widths",
    ):
        ensemble_mask(30, 45)
    assert ensemble_mask(30, 45, 15).any()
    with pytest.raises(ValueError, match="at least 10 groups"):
        p_inter_at(0.1)
    with pytest.raises(ValueError, match="groups is 1; expected a whole number of at least 2"):
        p_inter_at(0.25, groups=1)


def test_measures_refuse_what_has_no_measure():
    mask, ids = er_mask(6, 4, 0.5), ensembles(6, 2)
    wrong = {"groups is 0": lambda: density(groups=0), "mask is a module MaskedLinear.*layer.mask": lambda: draw_mask(MaskedLinear(mask)),
             "mask is a module EnsembleLinear.*to_masked": lambda: draw_mask(EnsembleLinear(8, 8)), "to is a tensor, shape .6.": lambda: draw_mask(mask, to=ids),
             "to contains -1 to 0": lambda: ensemble_edges(mask, ensembles(4, 2) - 1, ids), "mask is .*int64": lambda: ensemble_edges(mask.long(), ensembles(4, 2), ids),
             "at least one edge": lambda: intra_fraction(torch.zeros(2, 2, dtype=torch.long)), "edges contains -1": lambda: modularity(torch.tensor([[-1, 2], [1, 1]])),
             "shape .2, 3.": lambda: modularity(torch.ones(2, 3, dtype=torch.long)), "masks is": lambda: paths([]), "masks.1. has 6 sources": lambda: paths([mask, mask]),
             "sources names a source twice": lambda: sources_mask(torch.tensor([[0, 0]]), torch.tensor([0]), 4),
             "sources contains 0 to 9": lambda: sources_mask(torch.tensor([[0, 9]]), torch.tensor([0]), 4)}  # fmt: skip
    for message, call in wrong.items():
        with pytest.raises((TypeError, ValueError), match=message):
            call()


def test_shares_of_many_edges_are_exact():
    "More edges than a 32-bit float can count one by one."
    edges = torch.tensor([[2**24 + 1, 0], [1, 2**24]])
    assert intra_fraction(edges) == (2**25 + 1) / (2**25 + 2)
