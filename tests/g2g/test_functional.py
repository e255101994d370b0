"Functional graphs: the formula from spike times, what must not change under shifts and renaming, chance that is chance, curves by loops."

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from neurobridge.g2g import (
    control_groups,
    first_order_groups,
    functional_graph,
    response_curve,
    simulate_ensembles,
    sttc,
)
from neurobridge.g2g.functional import BINS

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")


def formula(a, b, dt, frames, directed):
    "STTC from two lists of spike times, term by term."
    back = 0 if directed else dt

    def share(times, others, early, late):
        return sum(any(t - early <= s <= t + late for s in others) for t in times) / len(times)

    p_a, p_b = share(a, b, back, dt), share(b, a, dt, back)
    t_a, t_b = share(range(frames), a, dt, back), share(range(frames), b, back, dt)
    terms = [1.0 if p * t == 1 else (p - t) / (1 - p * t) for p, t in ((p_a, t_b), (p_b, t_a))]
    return sum(terms) / 2


@st.composite
def rasters(draw):
    frames, seed, density = (
        draw(st.integers(1, 40)),
        draw(st.integers(0, 999)),
        draw(st.sampled_from([0.0, 0.05, 0.3, 0.8, 1.0])),
    )
    rng = np.random.default_rng(seed)
    return [
        torch.from_numpy(rng.random((frames, draw(st.integers(1, 4)))) < density) for _ in range(2)
    ]


@settings(max_examples=60, deadline=None)
@given(rasters(), st.integers(0, 45), st.booleans())
def test_all_pairs_against_the_formula(pair, dt, directed):
    a, b = pair
    found = sttc(a, b, dt, directed)
    for i, x in enumerate(a.t()):
        for j, y in enumerate(b.t()):
            if x.any() and y.any():
                assert found[i, j].item() == pytest.approx(
                    formula(np.flatnonzero(x), np.flatnonzero(y), dt, len(a), directed), abs=1e-12
                )
            else:
                assert found[i, j].isnan()


@settings(max_examples=30, deadline=None)
@given(rasters(), st.integers(0, 5))
def test_time_turned_round_turns_the_direction(pair, dt):
    "a before b, read backwards, is b before a; and without a direction nothing changes."
    a, b = pair
    torch.testing.assert_close(sttc(a.flip(0), b.flip(0), dt), sttc(b, a, dt).t(), equal_nan=True)
    torch.testing.assert_close(
        sttc(a, b, dt, directed=False), sttc(b, a, dt, directed=False).t(), equal_nan=True
    )
    torch.testing.assert_close(sttc(a, b, 0), sttc(b, a, 0).t(), equal_nan=True)


def test_landmarks():
    x = torch.rand(500, 3) < 0.1
    torch.testing.assert_close(sttc(x, x).diagonal(), torch.ones(3, dtype=torch.double))
    late = x.roll(2, 0)
    late[:2] = False
    assert (sttc(x, late, 2).diagonal() > 0.8).all() and (sttc(late, x, 1).diagonal() < 0.5).all()
    assert sttc(torch.ones(9), torch.ones(9)).item() == 1
    apart = torch.tensor([[1, 0], [0, 1]] * 50)
    assert sttc(apart[:, 0], apart[:, 1]).item() == -0.5  # P = 0 and T = 1/2 on both sides


def test_independent_neurons_have_none_on_average():
    x = torch.rand(20_000, 12) < torch.linspace(
        0.01, 0.3, 12
    )  # rates that would pull a count of coincidences along
    for dt in (0, 3):
        off = sttc(x, x, dt)[~torch.eye(12, dtype=torch.bool)]
        assert (
            off.abs().max() < 0.15 and off.mean().abs() < 0.01
        )  # the rarest neuron has two hundred spikes


def test_a_delay_has_a_direction():
    torch.manual_seed(3)
    x = torch.rand(4000, 2) < 0.03
    x[2:, 1] |= x[:-2, 0]
    graph = functional_graph(x, dt=2, shifts=30)
    assert graph.edges[0, 1] and not graph.edges[1, 0] and graph.z[0, 1] > 10


def test_silent_neurons_have_no_edges():
    x = torch.rand(800, 4) < 0.2
    x[:, 1] = False
    x[:, 3] = x[:, 0]
    graph = functional_graph(x, shifts=20)
    assert (
        not graph.edges[1].any()
        and not graph.edges[:, 1].any()
        and graph.edges[0, 3]
        and graph.edges[3, 0]
        and not graph.edges.diagonal().any()
    )
    groups = first_order_groups(graph)
    assert groups[0, 3] and not groups[1].any()


def test_neurons_may_come_in_any_order():
    x, _ = simulate_ensembles(30, 800, 2, 6)
    order = torch.randperm(30)
    a, b = functional_graph(x, shifts=5), functional_graph(x[:, order], shifts=5)
    torch.testing.assert_close(b.sttc, a.sttc[order][:, order], equal_nan=True)
    again = functional_graph(x, shifts=5)
    assert torch.equal(a.edges, again.edges) and not torch.equal(
        a.z, functional_graph(x, shifts=5, seed=1).z
    )


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 999), st.integers(2, 6), st.integers(60, 200), st.integers(0, 4), st.booleans()
)
def test_the_chance_of_an_edge_is_counted_over_all_rotations(seed, n, frames, dt, directed):
    "Every rotation, one by one, by the formula of spike times, time closed to a ring."
    rng = np.random.default_rng(seed)
    x = rng.random((frames, n)) < rng.uniform(0.05, 0.4, n)
    x[:6] |= rng.random((6, n)) < 0.9
    graph = functional_graph(x, dt, shifts=4, threshold=1.5, directed=directed)
    assert not graph.edges.diagonal().any() and torch.equal(graph.edges, graph.p <= norm.sf(1.5))
    back = 0 if directed else dt

    def ring(v, early, late):
        return np.any([np.roll(v, k) for k in range(-early, late + 1)], 0)

    def term(p, t):
        return 1.0 if p * t == 1 else (p - t) / (1 - p * t)

    for i, j in graph.edges.nonzero().tolist():
        values = []
        for shift in range(frames):
            a, b = np.roll(x[:, i], shift), x[:, j]
            a_near, b_near = ring(a, back, dt), ring(b, dt, back)
            values.append(
                (term(b_near[a].mean(), b_near.mean()) + term(a_near[b].mean(), a_near.mean())) / 2
            )
        assert graph.p[i, j].item() == pytest.approx(
            np.mean(np.array(values) >= values[0] - 1e-12), abs=1e-12
        )


@pytest.mark.parametrize(("dt", "directed"), [(0, True), (0, False), (3, False)])
def test_a_question_without_direction_has_an_answer_without(dt, directed):
    x, _ = simulate_ensembles(40, 2000, 3, 6, seed=4)
    for raster in (x, torch.rand(2000, 40) < torch.linspace(0.005, 0.3, 40)):
        graph = functional_graph(raster, dt, directed=directed)
        for found in (graph.edges, graph.sttc, graph.z, graph.p):
            torch.testing.assert_close(found, found.t(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("dt", "directed"), [(0, True), (2, True), (2, False)])
@pytest.mark.parametrize("rate", [0.003, 0.03, 0.3])
def test_independent_neurons_have_edges_as_rarely_as_the_threshold_says(rate, dt, directed):
    "Poisson neurons of any rate: at most 2.3 % of the pairs at two standard deviations, up to five standard errors."
    x = torch.rand(2000, 60) < rate * torch.linspace(0.5, 1.5, 60)
    graph, level = functional_graph(x, dt, threshold=2.0, directed=directed), norm.sf(2.0)
    pairs = 60 * 59 / (1 if directed and dt else 2)  # without direction each pair counts once
    assert graph.edges.float().sum() / (60 * 59) <= level + 5 * (level / pairs) ** 0.5


def test_bursts_are_no_ensembles():
    "Independent neurons that fire in bursts: spikes shuffled one by one would make edges of them."
    x = (torch.rand(3000, 40) < 0.01).float()
    x = (torch.nn.functional.max_pool1d(x.t()[None], 9, 1, 4)[0].t() > 0) & (
        torch.rand(3000, 40) < 0.7
    )
    assert functional_graph(x, 1).edges.float().mean() < 0.01


def test_one_coincidence_is_no_ensemble():
    x = np.zeros((5000, 3))
    x[2500] = 1
    graph = functional_graph(x)
    assert not graph.edges.any() and graph.z.isnan().all() and graph.sttc[0, 1] == 1
    x[[100, 900, 2000, 4000]] = 1  # five times together is
    assert (
        functional_graph(x).edges.sum() == 6 and not functional_graph(x, min_spikes=6).edges.any()
    )


def test_too_few_frames_for_a_threshold():
    x = torch.rand(300, 4) < 0.2
    with pytest.raises(
        ValueError,
        match=r"300 frames.*at least 741 for threshold = 3; record longer or lower the threshold to at most 2.71",
    ):
        functional_graph(x)
    functional_graph(x, threshold=2.71)
    with pytest.raises(ValueError, match="turn the array if time is its last axis"):
        functional_graph(torch.zeros(20, 1000))


def test_every_kind_of_recording_is_taken():
    x = np.random.default_rng(0).random((900, 5)) < 0.1
    kinds = [
        torch.from_numpy(x),
        x,
        x.astype(float),
        x.astype(np.uint8),
        torch.from_numpy(x).half(),
        pd.DataFrame(x),
        x.tolist(),
    ]
    groups = torch.ones(5, 5, dtype=torch.bool).fill_diagonal_(False)
    for other in kinds[1:]:
        assert torch.equal(sttc(other, x[:, 0], 1), sttc(kinds[0], x[:, 0], 1)) and torch.equal(
            functional_graph(other).edges, functional_graph(x).edges
        )
        assert response_curve(other, groups).equals(response_curve(x, groups))


def test_more_spikes_than_a_small_float_can_count():
    "2 ** 24 + 8 frames: shares of spikes are exact to the last one."
    frames = 2**24 + 8
    a, b = torch.ones(frames, dtype=torch.bool), torch.ones(frames, dtype=torch.bool)
    a[:1], b[-3:] = False, False
    p_a, p_b, t_a, t_b = (
        (frames - 4) / (frames - 1),
        (frames - 4) / (frames - 3),
        (frames - 1) / frames,
        (frames - 3) / frames,
    )
    expected = ((p_a - t_b) / (1 - p_a * t_b) + (p_b - t_a) / (1 - p_b * t_a)) / 2
    assert sttc(a, b).item() == pytest.approx(expected, rel=1e-6)


def test_planted_ensembles_are_found_and_nothing_where_nothing_is():
    x, member = simulate_ensembles(80, 6000, 5, 8, seed=2)
    same = (member[:, None] == member) & (member >= 0) & ~torch.eye(80, dtype=torch.bool)
    pairs = torch.triu(torch.ones_like(same), 1)
    graph = functional_graph(x, shifts=20)
    assert (
        roc_auc_score(same[pairs], graph.sttc[pairs]) > 0.95
        and graph.edges[same].float().mean() > 0.9
        and graph.edges[~same].float().mean() < 0.04
    )
    null = functional_graph(simulate_ensembles(80, 6000, 5, 8, follow=0.0, seed=2)[0], shifts=20)
    assert null.edges.float().mean() < 0.04


def test_the_simulation_is_what_it_says():
    "Without noise every spike is noted, and rates are those asked for."
    x, member = simulate_ensembles(
        100, 20_000, 4, 10, rate=0.01, active=0.05, follow=0.4, noise=0.0
    )
    assert (member == -1).sum() == 60 and (
        member.bincount(minlength=5)[:4] if (member >= 0).all() else (member + 1).bincount()[1:]
    ).tolist() == [10] * 4
    assert x[:, 40:].float().mean().item() == pytest.approx(0.01, abs=0.001) and x[
        :, :40
    ].float().mean().item() == pytest.approx(0.01 + 0.05 * 0.4, abs=0.003)
    noisy, _ = simulate_ensembles(100, 20_000, 4, 10, noise=0.3)
    assert noisy.float().mean() > 2 * x.float().mean()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(2, 6), st.integers(1, 30))
def test_curve_against_loops(seed, n, frames):
    rng = np.random.default_rng(seed)
    x, groups = (
        torch.from_numpy(rng.random((frames, n)) < 0.4),
        torch.from_numpy(rng.random((n, n)) < 0.5),
    )
    groups[0, -1] = True
    counts, hits = np.zeros(len(BINS) - 1), np.zeros(len(BINS) - 1)
    for t in range(frames):
        for j in range(n):
            members = np.flatnonzero(groups[j])
            if len(members):
                share = sum(bool(x[t, i]) for i in members) / len(members)
                k = next(k for k in range(len(BINS) - 1) if share <= BINS[k + 1] + 1e-9)
                counts[k] += 1
                hits[k] += bool(x[t, j])
    curve = response_curve(x, groups)
    assert (curve.samples == counts).all()
    np.testing.assert_allclose(curve.probability[counts > 0], hits[counts > 0] / counts[counts > 0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(2, 12), st.floats(0, 0.4))
def test_controls_have_the_sizes_and_not_the_members(seed, n, density):
    groups = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) < density
    groups.fill_diagonal_(False)
    free, outside = control_groups(groups, seed=seed), control_groups(groups, "others", seed=seed)
    assert (
        torch.equal(free.sum(1), groups.sum(1))
        and not free.diagonal().any()
        and not outside.diagonal().any()
        and not (outside & groups).any()
    )
    assert torch.equal(outside.sum(1), torch.minimum(groups.sum(1), n - 1 - groups.sum(1)))


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: sttc(torch.rand(5), torch.ones(5)), "0 or 1"),
        (lambda: sttc(torch.ones(5), torch.ones(4)), "equal lengths"),
        (lambda: sttc(torch.ones(5), torch.ones(5), -1), "dt is -1"),
        (lambda: sttc(torch.ones(2, 2, 2), torch.ones(2)), "time first"),
        (lambda: functional_graph(torch.zeros(0, 3)), "time first"),
        (lambda: functional_graph(torch.full((4, 2), float("nan"))), "0 or 1"),
        (
            lambda: functional_graph(torch.ones(4, 2), shifts=1),
            "shifts is 1; expected a whole number of at least 2",
        ),
        (
            lambda: response_curve(torch.ones(4, 2), torch.zeros(2, 2, dtype=torch.bool)),
            "0 of 2 neurons with a group",
        ),
        (lambda: control_groups(torch.ones(2, 2, dtype=torch.bool), "few"), "few"),
        (lambda: simulate_ensembles(10, 100, 2, 6), "neurons is 10; expected at least 12"),
        (
            lambda: response_curve(
                torch.ones(4, 2), torch.ones(2, 2, dtype=torch.bool), bins=(0.1, 0.5)
            ),
            "bins is",
        ),
        (
            lambda: response_curve(torch.ones(4, 2), torch.ones(3, 3, dtype=torch.bool)),
            "groups has shape",
        ),
        (
            lambda: functional_graph(torch.ones(9, 2), dt=9),
            "dt is 9; expected a whole number of at least 0 and at most 8",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
