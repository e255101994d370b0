"Surrogate spike trains, false discoveries, a third neuron, spike times: elephant's and networkx' numbers, counts that stay, nulls that hold."

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, false_discovery_control

from neurobridge.g2g import binned_spikes, functional_graph, simulate_ensembles, sttc
from neurobridge.g2g.surrogates import KINDS, surrogate_spikes

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")


def spikes(seed, frames=400, n=5, rate=0.1):
    return torch.rand(frames, n, generator=torch.Generator().manual_seed(seed)) < rate


def one(x, kind, window, draw):
    return next(surrogate_spikes(x.float(), kind, window, 1, draw))


def intervals(train):
    return sorted(np.diff(np.flatnonzero(train), append=np.flatnonzero(train)[0] + len(train)))


# Surrogates


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 999),
    st.sampled_from(KINDS),
    st.integers(1, 60),
    st.integers(1, 30),
    st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]),
)
def test_every_kind_keeps_the_number_of_spikes_and_its_own_statistic(
    seed, kind, frames, window, rate
):
    x = spikes(seed, frames, 4, rate).float()
    other = one(x, kind, window, torch.Generator().manual_seed(seed))
    assert torch.equal(other.sum(0), x.sum(0)) and set(other.unique().tolist()) <= {0, 1}
    for a, b in zip(x.t().numpy(), other.t().numpy(), strict=True):
        if kind == "rotate" and a.any():
            assert intervals(a) == intervals(b)
        if kind == "jitter":
            starts = np.arange(0, frames, window)
            np.testing.assert_array_equal(np.add.reduceat(a, starts), np.add.reduceat(b, starts))


def test_sparse_spikes_are_dithered_by_at_most_a_window_and_evenly():
    x = torch.zeros(3000, 40)
    x[torch.arange(50, 2950, 100)] = 1
    moves = []
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = one(x, "dither", 7, draw)
        for a, b in zip(x.t(), other.t(), strict=True):
            moves.append(np.flatnonzero(b) - np.flatnonzero(a))
    moves = np.concatenate(moves)
    counts = np.bincount(moves + 7, minlength=15)
    assert np.abs(moves).max() == 7
    assert abs(counts / len(moves) - 1 / 15).max() < 5 * np.sqrt(1 / 15 / len(moves))


@pytest.mark.parametrize("kind", ["shuffle", "jitter", "dither"])
def test_p_counts_surrogates_one_by_one(kind):
    x = spikes(1, 300, 4)
    x[:40] |= spikes(2, 40, 1, 0.5)
    graph = functional_graph(x, 1, 99, 1.5, surrogate=kind, window=10, directed=False)
    draw = torch.Generator().manual_seed(0)
    found = sttc(x, x, 1, directed=False)
    reached = torch.zeros(4, 4)
    for _ in range(99):
        other = one(x, kind, 10, draw)
        reached += sttc(other, other, 1, directed=False) >= found - 1e-12
    off = ~torch.eye(4, dtype=torch.bool)
    torch.testing.assert_close(graph.p[off], ((reached + 1) / 100)[off].double())


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dt", [0, 2])
def test_independent_neurons_reach_5_percent_in_5_percent(kind, dt):
    "Of 1,000 pairs of independent Poisson neurons; counts are discrete, so fewer are right too."
    x = spikes(3, 600, 2000, 0.06)
    level, hits, n = 1.6449, 0, 1000
    for part in x.split(40, 1):
        graph = functional_graph(part, dt, 99, level, surrogate=kind, window=15, directed=False)
        hits += int(torch.stack([graph.edges[i, i + 1] for i in range(0, 40, 2)]).sum())
    limits = binomtest(hits, n).proportion_ci(0.999)
    assert limits.low < 0.05, (hits, n)


@pytest.mark.long
def test_a_slow_common_state_is_no_edge_for_jittered_spikes():
    state = torch.rand(50, generator=torch.Generator().manual_seed(4)).repeat_interleave(60) < 0.3
    rate = torch.where(state, 0.15, 0.02)[:, None]
    x = torch.rand(3000, 20, generator=torch.Generator().manual_seed(5)) < rate
    shares = {
        kind: functional_graph(
            x, shifts=100, threshold=2.0, surrogate=kind, window=15
        ).edges.float()
        for kind in KINDS
    }
    means = {kind: edges.sum().item() / 380 for kind, edges in shares.items()}
    assert means["rotate"] > 0.3 and means["shuffle"] > 0.3
    assert means["jitter"] < 0.06 and means["dither"] < 0.08, means


@pytest.mark.long
@pytest.mark.parametrize("kind", ["shuffle", "jitter", "dither"])
def test_the_null_distribution_is_elephants(kind):
    "Mean and spread of the coefficient of two neurons over 400 surrogates of either library."
    pytest.importorskip("elephant", reason="pip install elephant")
    import neo
    import quantities as pq
    from elephant import spike_train_surrogates as theirs

    x = spikes(6, 2000, 2, 0.05)
    x[:, 1] |= x[:, 0] & spikes(7, 2000, 1, 0.4)[:, 0]
    trains = [
        neo.SpikeTrain((np.flatnonzero(column) + 0.5) * pq.ms, t_stop=2000 * pq.ms)
        for column in x.t().numpy()
    ]
    calls = {
        "shuffle": lambda train: theirs.randomise_spikes(train, 1)[0],
        "jitter": lambda train: theirs.jitter_spikes(train, 20 * pq.ms, 1)[0],
        "dither": lambda train: theirs.dither_spikes(train, 10 * pq.ms, 1)[0],
    }
    np.random.seed(0)
    draw, window = torch.Generator().manual_seed(0), {"dither": 10}.get(kind, 20)
    ours, other = [], []
    for _ in range(400):
        mine = one(x, kind, window, draw)
        ours.append(sttc(mine, mine, 1, directed=False)[0, 1].item())
        drawn = binned_spikes([calls[kind](train) for train in trains], 0.001, 0.0, 2.0)
        other.append(sttc(drawn, drawn, 1, directed=False)[0, 1].item())
    error = np.hypot(np.std(ours), np.std(other)) / np.sqrt(400)
    assert abs(np.mean(ours) - np.mean(other)) < 4 * error + 0.003
    assert 0.8 < np.std(ours) / np.std(other) < 1.25


# False discoveries


def test_corrected_edges_are_those_of_scipy():
    x, member = simulate_ensembles(60, 6000, 4, 8, seed=3)
    graph = functional_graph(x, fdr=0.05)
    tested = torch.isfinite(graph.p)
    corrected = false_discovery_control(graph.p[tested].numpy())
    assert torch.equal(graph.edges[tested], torch.from_numpy(corrected <= 0.05))
    assert not graph.edges[~tested].any() and not graph.edges.diagonal().any()
    same = (member[:, None] == member) & (member >= 0) & ~torch.eye(60, dtype=torch.bool)
    assert (graph.edges & ~same).sum() < 0.12 * graph.edges.sum() and graph.edges[
        same
    ].float().mean() > 0.9


@pytest.mark.long
def test_where_nothing_is_hardly_any_recording_has_an_edge():
    "All false is one false discovery: of 60 recordings without ensembles at most 5 % have an edge, up to chance."
    some = sum(
        bool(
            functional_graph(
                spikes(100 + seed, 1500, 12, 0.05), fdr=0.05, directed=False
            ).edges.any()
        )
        for seed in range(60)
    )
    assert binomtest(some, 60).proportion_ci(0.999).low < 0.05


# A third neuron


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(0, 5), st.booleans())
def test_given_a_third_neuron_only_its_companions_count(seed, dt, directed):
    x = spikes(seed, 80, 3, 0.2)
    a, b, c = x.t().numpy()
    kept = np.zeros_like(a)
    for t in np.flatnonzero(a):
        kept[t] = c[t if directed else max(0, t - dt) : t + dt + 1].any()
    found = sttc(x[:, :1], x[:, 1:2], dt, directed, given=x[:, 2])
    torch.testing.assert_close(found, sttc(kept, b, dt, directed), equal_nan=True)


def test_given_what_is_no_neuron():
    x = spikes(0)
    for wrong in (x, x[:10, 0], torch.rand(400), "c"):
        with pytest.raises((TypeError, ValueError), match="given"):
            sttc(x, x, given=wrong)


# Spike times


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0.001, 0.0025, 0.1, 1 / 30]), st.floats(-5, 5))
def test_a_raster_comes_back_from_its_times(seed, frame, start):
    x = spikes(seed, 200, 3)
    times = [start + np.flatnonzero(column) * frame for column in x.t().numpy()]
    assert torch.equal(binned_spikes(times, frame, start, start + 200 * frame), x)


def test_elephants_bins_of_neos_spike_trains():
    pytest.importorskip("elephant", reason="pip install elephant")
    import neo
    import quantities as pq
    from elephant.conversion import BinnedSpikeTrain

    rng = np.random.default_rng(0)
    trains = [
        neo.SpikeTrain(
            np.sort(rng.uniform(100, 900, 50)) * pq.ms, t_start=100 * pq.ms, t_stop=900 * pq.ms
        )
        for _ in range(4)
    ]
    theirs = BinnedSpikeTrain(trains, bin_size=5 * pq.ms).to_bool_array().T
    np.testing.assert_array_equal(binned_spikes(trains, 0.005).numpy(), theirs)


def test_the_coefficient_is_elephants():
    pytest.importorskip("elephant", reason="pip install elephant")
    import neo
    import quantities as pq
    from elephant.spike_train_correlation import spike_time_tiling_coefficient

    x = spikes(8, 500, 4)
    trains = [
        neo.SpikeTrain((np.flatnonzero(column) + 0.5) * pq.s, t_stop=500 * pq.s)
        for column in x.t().numpy()
    ]
    for dt in (1, 3):
        theirs = [
            [spike_time_tiling_coefficient(a, b, (dt + 0.4999999) * pq.s) for b in trains]
            for a in trains
        ]
        np.testing.assert_allclose(sttc(x, x, dt, directed=False), theirs, atol=1e-5)


@pytest.mark.parametrize(
    "given_times, more, said",
    [
        ("0.1", dict(stop=1.0), "times is"),
        ([], dict(stop=1.0), "times is"),
        ([0.1, 0.2], dict(stop=1.0), "single number"),
        ([[0.1], [float("nan")]], dict(stop=1.0), "times"),
        ([[0.1], ["a"]], dict(stop=1.0), "times|could not convert"),
        ([[-0.1]], dict(stop=1.0), "neuron 0 lie outside"),
        ([[0.1], [1.0]], dict(stop=1.0), "neuron 1 lie outside"),
        ([[0.1]], {}, "stop is None"),
        ([[0.1]], dict(stop=-1.0), "expected a later stop"),
    ],
)
def test_spike_times_that_can_not_be(given_times, more, said):
    with pytest.raises((TypeError, ValueError), match=said):
        binned_spikes(given_times, 0.01, **more)


# Graphs


@pytest.mark.parametrize("directed", [True, False])
def test_networkx_gets_the_same_graph(directed):
    x, _ = simulate_ensembles(30, 3000, 3, 6, seed=2)
    graph = functional_graph(x, 2, directed=directed)
    made = graph.to_networkx()
    assert made.is_directed() == directed and list(made) == list(range(30))
    back = torch.from_numpy(networkx.to_numpy_array(made) > 0)
    assert torch.equal(back, graph.edges) and graph.edges.any()
    for name in ("sttc", "z", "p"):
        for i, j, value in made.edges(data=name):
            assert value == getattr(graph, name)[i, j].item()
    density = graph.edges.float().mean().item() * 30 / 29
    assert networkx.density(made) == pytest.approx(density)


def test_too_few_surrogates_for_a_threshold():
    x = spikes(0)
    with pytest.raises(
        ValueError, match=r"shifts is 50.*expected at least 740, or a lower threshold"
    ):
        functional_graph(x, surrogate="shuffle", min_spikes=1)
    functional_graph(x, surrogate="shuffle", threshold=2.0)
    for wrong in ("turn", None):
        with pytest.raises((TypeError, ValueError), match="surrogate"):
            functional_graph(x, threshold=2.0, surrogate=wrong)
    for wrong in (0, 1, -0.1, "5 %"):
        with pytest.raises((TypeError, ValueError), match="fdr"):
            functional_graph(x, threshold=2.0, fdr=wrong)
