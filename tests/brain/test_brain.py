"The brain rooms: independent computations, what a score must not depend on, planted truths, the classic mistakes, real recordings."

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, ortho_group, spearmanr
from sklearn.cross_decomposition import PLSRegression
from sklearn.linear_model import Ridge, RidgeCV

from neurobridge.brain import (
    behavioral_consistency,
    bootstrap_rdms,
    brain_score,
    ceiled,
    cka,
    compare_rdms,
    fit_readout,
    neural_predictivity,
    noise_ceiling,
    object_solution_times,
    rdm,
    reliability,
)
from neurobridge.brain.behavior import (
    PATTERNS,
    false_alarms,
    observed_false_alarms,
    pattern_of,
    sensitivity,
)
from neurobridge.brain.linear import correlation, gram, pls_predict, ridge_predict
from neurobridge.brain.regression import reduced, score_of, stimulus_splits
from neurobridge.core import data_root
from neurobridge.data import Recording, load_rdm92, load_v4

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 10_000)


def need(folder):
    if not (data_root() / folder).is_dir():
        pytest.skip(f"no {data_root() / folder}: set NEUROBRIDGE_DATA, see data/README.md")


def population(rng, n=60, features=40, units=6, noise=0.5):
    x = rng.normal(size=(n, features)) / np.sqrt(1 + np.arange(features))
    return x, x @ rng.normal(size=(features, units)) + noise * rng.normal(
        size=(n, units)
    ) + rng.normal(size=units)


# Regression


@few
@given(
    seed=seeds,
    n=st.integers(12, 50),
    features=st.integers(2, 60),
    units=st.integers(1, 60),
    components=st.integers(1, 8),
)
def test_pls_is_scikit_learns(seed, n, features, units, components):
    "More units than stimuli, fewer features than stimuli, one unit: the same predictions, as far as features span that many directions."
    rng = np.random.default_rng(seed)
    x, y = population(rng, n, features, units)
    components = min(components, features - 1, n // 2 - 1)
    if components < 1:
        return
    train, test = np.split(rng.permutation(n), [n // 2 + 1])
    ours = pls_predict(gram(x), y, train, test, components)
    theirs = PLSRegression(components, scale=False).fit(x[train], y[train]).predict(x[test])
    np.testing.assert_allclose(ours, theirs.reshape(ours.shape), atol=1e-6 * np.abs(y).max())


def test_exact_pls_by_the_definition():
    "The textbook: leading singular vectors of the covariance, both blocks deflated, in the space of features."
    x, y = population(np.random.default_rng(3), 40, 90, 5)
    train, test = np.arange(30), np.arange(30, 40)
    a, b, weights, loads, answers = (
        x[train] - x[train].mean(0),
        y[train] - y[train].mean(0),
        [],
        [],
        [],
    )
    for _ in range(7):
        w = np.linalg.svd(a.T @ b)[0][:, 0]
        t = a @ w
        p, q = a.T @ t / (t @ t), b.T @ t / (t @ t)
        a, b = a - np.outer(t, p), b - np.outer(t, q)
        weights.append(w), loads.append(p), answers.append(q)
    w, p, q = np.array(weights).T, np.array(loads).T, np.array(answers).T
    expected = (x[test] - x[train].mean(0)) @ w @ np.linalg.inv(p.T @ w) @ q.T + y[train].mean(0)
    np.testing.assert_allclose(
        pls_predict(gram(x), y, train, test, 7, tolerance=0), expected, rtol=1e-8
    )


@few
@given(seed=seeds, n=st.integers(10, 40), features=st.integers(1, 60), penalty=st.floats(-3, 3))
def test_ridge_is_scikit_learns(seed, n, features, penalty):
    rng = np.random.default_rng(seed)
    x, y = population(rng, n, features, 3)
    train, test = np.arange(n - 3), np.arange(n - 3, n)
    np.testing.assert_allclose(
        ridge_predict(gram(x), y, train, test, [10**penalty]),
        Ridge(10**penalty).fit(x[train], y[train]).predict(x[test]),
        atol=1e-6,
    )
    many = np.logspace(-2, 4, 7)
    np.testing.assert_allclose(
        ridge_predict(gram(x), y, train, test, many),
        RidgeCV(many).fit(x[train], y[train]).predict(x[test]),
        atol=1e-6,
    )


@few
@given(seed=seeds, penalties=st.sampled_from([None, [1.0]]))
def test_what_a_score_does_not_depend_on(seed, penalties):
    "The order of stimuli (splits moved along), the order of units, and any rotation, shift or repetition of features."
    rng = np.random.default_rng(seed)
    x, y = population(rng)
    pairs = stimulus_splits(60, splits=3)
    way = dict(components=5, tolerance=0, penalties=penalties)
    score = neural_predictivity(x, y, splits=pairs, **way)
    order, units = rng.permutation(60), rng.permutation(6)
    place = order.argsort()
    moved = neural_predictivity(
        x[order], y[order], splits=[(place[a], place[b]) for a, b in pairs], **way
    )
    renamed = neural_predictivity(x, y[:, units], splits=pairs, **way)
    turned = neural_predictivity(
        x @ ortho_group.rvs(40, random_state=seed) + rng.normal(size=40), y, splits=pairs, **way
    )
    for other in (moved, renamed, turned):
        np.testing.assert_allclose(other.splits, score.splits, atol=1e-7)
    np.testing.assert_allclose(renamed.units, score.units[:, units], atol=1e-7)


@few
@given(seed=seeds)
def test_names_put_rows_in_order(seed):
    xr = pytest.importorskip("xarray")
    rng = np.random.default_rng(seed)
    x, y = population(rng)
    recording = Recording(y[None], [f"s{i}" for i in range(60)])
    order = rng.permutation(60)
    labelled = xr.DataArray(
        x[order],
        dims=["presentation", "neuroid"],
        coords={"stimulus_id": ("presentation", recording.stimuli[order])},
    )
    expected = neural_predictivity(x, y, components=5, splits=3).splits
    np.testing.assert_allclose(
        neural_predictivity(labelled.T, recording, components=5, splits=3).splits,
        expected,
        atol=1e-9,
    )
    with pytest.raises(ValueError, match="no row for 1 of the 60 stimuli, such as"):
        neural_predictivity(labelled[1:], recording)
    with pytest.raises(ValueError, match="different stimuli"):
        neural_predictivity(xr.concat([labelled, labelled[:1]], "presentation"), recording)


def test_planted_codes_are_recovered_and_shuffled_ones_are_not():
    rng = np.random.default_rng(0)
    x, y = population(rng, 300, 20, 10, noise=0)
    assert (
        neural_predictivity(x, y, components=20, tolerance=0).value > 0.999
        and neural_predictivity(x, y, penalties=[1e-6]).value > 0.999
    )
    shuffled = [
        neural_predictivity(x[np.random.default_rng(i).permutation(300)], y).value for i in range(8)
    ]
    assert abs(np.mean(shuffled)) < 3 * np.std(shuffled) / np.sqrt(8) + 0.03
    for kind in (
        torch.from_numpy(x).reshape(300, 4, 5),
        torch.from_numpy(x).float().requires_grad_(),
        x.astype(np.float32),
        torch.from_numpy(x).bfloat16(),
    ):
        assert neural_predictivity(kind, torch.from_numpy(y)).value > 0.99


def test_components_beyond_what_features_span():
    "Two categories in 50 columns: least squares, no noise amplified."
    rng = np.random.default_rng(1)
    labels = np.arange(80) % 3
    y = rng.normal(size=(3, 4))[labels] + 0.1 * rng.normal(size=(80, 4))
    one_hot = np.eye(3)[labels]
    train, test = np.arange(60), np.arange(60, 80)
    means = np.stack([y[train][labels[train] == c].mean(0) for c in range(3)])[labels[test]]
    for x in (one_hot, one_hot @ rng.normal(size=(3, 50))):
        np.testing.assert_allclose(pls_predict(gram(x), y, train, test, 25), means, atol=1e-7)


@pytest.mark.parametrize("change, said", [
    (dict(features=np.ones((60, 4))), "the same for every stimulus"), (dict(features=np.full((60, 4), np.nan)), "NaN"), (dict(features=np.zeros(60)), r"\[stimuli, ...\]"),
    (dict(features=np.zeros((59, 4)) + np.arange(59)[:, None]), "59 stimuli, responses to 60"), (dict(responses=np.full((60, 3), np.inf)), "responses contain NaN"),
    (dict(responses=np.c_[np.arange(60.0), np.zeros(60)]), "unit 1 .1 such"), (dict(groups=[1, 2]), "groups is .*each of the 60"), (dict(groups=np.arange(60)), "has 1 stimulus"),
])  # fmt: skip
def test_classic_mistakes(change, said):
    x, y = population(np.random.default_rng(0))
    with pytest.raises(ValueError, match=said):
        neural_predictivity(**{"features": x, "responses": y} | change)


def test_principal_components_of_the_scored_stimuli_are_refused():
    x, _ = population(np.random.default_rng(0))
    with pytest.raises(ValueError, match="1 of the reference stimuli"):
        reduced(x, np.r_[np.random.default_rng(1).normal(size=(30, 40)), x[7:8]], 5)
    with pytest.raises(ValueError, match="same layer"):
        reduced(x, x[:, :3])
    assert reduced(x, x + 1, 1000) is not None and reduced(x, x + 1, 1000).shape == x.shape


# Reliability and ceilings


@few
@given(seed=seeds, repeats=st.integers(2, 6), missing=st.floats(0, 0.5))
def test_a_noiseless_recording_has_reliability_one(seed, repeats, missing):
    rng = np.random.default_rng(seed)
    signal = np.repeat(rng.normal(size=(1, 30, 4)), repeats, 0)
    gone = rng.random(signal.shape[:2]) < missing
    gone[:2] = False
    signal[gone] = np.nan
    np.testing.assert_allclose(reliability(signal).splits, 1, rtol=1e-12)


@few
@given(seed=seeds)
def test_halves_are_halves(seed):
    "Each stimulus' own repeats, each in exactly one half, whatever is missing."
    from neurobridge.brain.ceilings import _halves

    rng = np.random.default_rng(seed)
    repeats = rng.normal(size=(7, 20, 3))
    repeats[rng.random(repeats.shape) < 0.3] = np.nan
    count = np.isfinite(repeats).sum(0)
    if count.min() < 2:
        return
    one, two = _halves(repeats, rng)
    np.testing.assert_allclose(
        (one * (count // 2) + two * (count - count // 2)) / count, np.nanmean(repeats, 0)
    )


def test_reliability_in_theory_and_of_noise():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(1, 4000, 9))
    for n, sigma in ((4, 1.0), (6, 2.0)):
        assert reliability(signal + sigma * rng.normal(size=(n, 4000, 9))).value == pytest.approx(
            1 / (1 + sigma**2 / n), abs=0.015
        )
    assert abs(reliability(rng.normal(size=(6, 4000, 9))).value) < 0.02
    for wrong in (np.zeros((3, 4)), np.zeros((1, 3, 4))):
        with pytest.raises(ValueError, match="reliability"):
            reliability(wrong)


def test_rules():
    score = score_of([0.58, 0.6, 0.62])
    values = {
        rule: ceiled(score, 0.8, rule) for rule in ("ratio", "squared_ratio", "r2_over_ceiling")
    }
    np.testing.assert_allclose([s.value for s in values.values()], [0.75, 0.5625, 0.45])
    step = 1e-6  # the error is that of the value, to first order
    for rule, s in values.items():
        moved = ceiled(score_of(score.splits + step), 0.8, rule)
        np.testing.assert_allclose(s.error, score.error * (moved.value - s.value) / step, rtol=1e-4)
        assert (s.raw, s.ceiling) == (score.raw, 0.8) and ceiled(
            ceiled(score, 0.5), 0.8, rule
        ).error == s.error
        assert ceiled(score_of(-score.splits), 0.8, rule).value == pytest.approx(-s.value)
    for ceiling in (0, -0.2, 1.2, np.nan):
        with pytest.raises(ValueError, match="ceiling"):
            ceiled(score, ceiling)


@pytest.mark.data
def test_real_v4():
    need("macaque_v4_210325")
    v4 = load_v4()
    assert reliability(v4).value == pytest.approx(0.763, abs=0.005)
    pixels = v4.images[:, ::4, ::4, 0].astype(float)
    y = v4.average()
    score = neural_predictivity(pixels, v4, splits=2)
    for value, (train, test) in zip(score.splits, stimulus_splits(640, v4.groups, 2), strict=True):
        x = pixels.reshape(640, -1)
        theirs = PLSRegression(25, scale=False).fit(x[train], y[train]).predict(x[test])
        assert value == pytest.approx(np.median(correlation(theirs, y[test])), abs=1e-8)
    assert 0.1 < score.value < 0.3


# RDMs


@few
@given(
    seed=seeds,
    n=st.integers(4, 10),
    ties=st.booleans(),
    method=st.sampled_from(["spearman", "pearson", "cosine"]),
)
def test_a_draw_is_the_literal_one(seed, n, ties, method):
    rng = np.random.default_rng(seed)
    models, people = (
        np.stack([rdm(rng.normal(size=(n, 5)), "sqeuclidean") for _ in range(3)]) for _ in range(2)
    )
    if ties:
        models, people = models.round(-1), people.round(-1)
    if any(np.ptp(each[np.triu_indices(n, 1)]) == 0 for each in (*models, *people)):
        with pytest.raises(ValueError):  # one value for all pairs
            bootstrap_rdms(models, people, samples=2, method=method, people=False, seed=seed)
        return
    found = bootstrap_rdms(models, people, samples=2, method=method, people=False, seed=seed)
    draw = np.random.default_rng(seed)
    ways = {
        "spearman": lambda a, b: spearmanr(a, b)[0],
        "pearson": lambda a, b: np.corrcoef(a, b)[0, 1],
        "cosine": lambda a, b: a @ b / np.sqrt((a @ a) * (b @ b)),
    }
    for row in found:
        chosen = draw.integers(n, size=n)
        i, j = np.triu_indices(n, 1)
        keep = chosen[i] != chosen[j]
        i, j = chosen[i][keep], chosen[j][keep]
        if any(np.ptp(each[i, j]) == 0 for each in (*models, *people)):
            return
        expected = [
            np.mean([ways[method](model[i, j], person[i, j]) for person in people])
            for model in models
        ]
        np.testing.assert_allclose(row, expected, atol=1e-9)


@few
@given(seed=seeds, method=st.sampled_from(["spearman", "kendall", "pearson", "cosine", "whitened"]))
def test_what_a_comparison_does_not_depend_on(seed, method):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 9, 6))
    a, b, order = rdm(x), rdm(y), rng.permutation(9)
    value = compare_rdms(a, b, method)
    np.testing.assert_allclose(
        compare_rdms(a[order][:, order], b[order][:, order], method), value, atol=1e-12
    )
    np.testing.assert_allclose(
        [compare_rdms(b, a, method), compare_rdms(a, 3 * b, method), compare_rdms(a, a, method)],
        [value, value, 1],
        atol=1e-12,
    )
    np.testing.assert_allclose(
        rdm(x @ ortho_group.rvs(6, random_state=seed), "euclidean"), rdm(x, "euclidean"), atol=1e-9
    )
    assert abs(value) <= 1


def test_cka_by_definition():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 7)), rng.normal(size=(30, 11))
    y[:, :7] += x
    h = np.eye(30) - 1 / 30
    k, l = h @ x @ x.T @ h, h @ y @ y.T @ h  # noqa: E741
    assert cka(x, y, unbiased=False) == pytest.approx(
        (k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum())
    )
    assert cka(torch.from_numpy(x), 3 * x + 1) == pytest.approx(1)
    free = [cka(*rng.normal(size=(2, 20, 500))) for _ in range(20)]
    assert abs(np.mean(free)) < 0.05 < cka(*rng.normal(size=(2, 20, 500)), unbiased=False)


def test_ceilings_bracket_and_ranks_cannot_be_passed():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(20, 8))
    people = np.stack([rdm(truth + rng.normal(size=truth.shape)) for _ in range(6)])
    for method in ("spearman", "kendall", "pearson", "cosine", "whitened"):
        lower, upper = noise_ceiling(people, method)
        assert lower < upper <= 1
    upper = noise_ceiling(people)[1]
    for candidate in (people.mean(0), *people, rdm(truth)):
        assert np.mean([compare_rdms(candidate, person) for person in people]) <= upper + 1e-12
    for wrong in (people[:1], people[0]):
        with pytest.raises(ValueError, match="at least 2"):
            noise_ceiling(wrong)
    broken = people.copy()
    broken[1, 0, 3] = np.nan
    for way in (
        lambda: noise_ceiling(broken),
        lambda: noise_ceiling(people, "tau"),
        lambda: bootstrap_rdms(people[:, :5, :5], people),
        lambda: rdm(np.zeros((4, 4)), "cosine"),
    ):
        with pytest.raises(ValueError):
            way()


RSATOOLBOX = {  # boot_noise_ceiling of rsatoolbox 0.3.2 on the same files: spearman, tau-a, corr, cosine, cosine_cov
    ("fmri_it", "spearman"): (0.45253483364207725, 0.5421914754991851), ("fmri_it", "kendall"): (0.31623070054112595, 0.38388545535810614),
    ("fmri_it", "pearson"): (0.45928553206246175, 0.5492199028789829), ("fmri_it", "cosine"): (0.9715066520132543, 0.9752152521456531),
    ("fmri_it", "whitened"): (0.6392362321039777, 0.6920429954387182), ("fmri_evc", "spearman"): (0.2418605562189916, 0.39174500309238913),
    ("fmri_evc", "kendall"): (0.16352079897661947, 0.26788145727837165), ("fmri_evc", "pearson"): (0.24880857418728855, 0.3998368579297457),
    ("fmri_evc", "cosine"): (0.9639928676055903, 0.9686899768423985), ("fmri_evc", "whitened"): (0.4960609045188988, 0.5796542022786398),
}  # fmt: skip


@pytest.mark.data
def test_real_ceilings_of_the_92_images():
    need("rdm92")
    rdms = load_rdm92().rdms
    for (area, method), bounds in RSATOOLBOX.items():
        found = noise_ceiling(rdms[area], method)
        if (
            method == "whitened"
        ):  # its mean is of RDMs of plain length 1; that of length 1 under the comparison's own norm is never passed
            assert found[1] >= bounds[1]
        np.testing.assert_allclose(found, bounds, rtol=2e-3 if method == "whitened" else 1e-9)
    mean = rdms["fmri_it"].mean(0)
    published = [
        compare_rdms(rdms["monkey_it"][0], rdms["human_it"][0]),
        compare_rdms(mean, rdms["monkey_it"][0]),
        compare_rdms(mean, rdms["human_it"][0]),
    ]
    np.testing.assert_allclose(published, (0.439, 0.486, 0.557), atol=6e-4)


# Behaviour, timing, composite


def slow_i2(p, labels):
    "Picture by picture, as the formula has it."
    n, objects = p.shape
    fa = np.full(p.shape, np.nan)
    for i in range(n):
        for d in range(objects):
            if d != labels[i]:
                fa[i, d] = p[i, d] / (p[i, d] + p[i, labels[i]])
    out = np.full(p.shape, np.nan)
    for i in range(n):
        for d in range(objects):
            if d != labels[i]:
                out[i, d] = np.clip(
                    norm.ppf(1 - fa[i, d]) - norm.ppf(np.mean(fa[labels == d, labels[i]])), -5, 5
                )
    for o in range(objects):
        for d in range(objects):
            if d != o:
                out[labels == o, d] -= out[labels == o, d].mean()
    return out


@few
@given(seed=seeds, objects=st.integers(2, 5), each=st.integers(1, 5))
def test_sensitivity_is_the_formula(seed, objects, each):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(objects), each))
    p = rng.dirichlet(np.ones(objects), len(labels))
    np.testing.assert_allclose(
        sensitivity(false_alarms(p, labels), labels), slow_i2(p, labels), atol=1e-9
    )
    sure = np.eye(objects)[labels]  # never wrong: clipped, and no difference between pictures
    assert np.nan_to_num(sensitivity(false_alarms(sure, labels), labels, "i2"), nan=5).min() == 5


@pytest.mark.parametrize("objects", [2, 3, 5])
def test_the_readout_minimises_the_penalised_softmax(objects):
    "Weights of all objects are penalised, with two objects too, as in Brain-Score."
    from scipy.optimize import minimize
    from scipy.special import log_softmax, softmax

    rng = np.random.default_rng(objects)
    x, new = rng.normal(size=(60, 4)), rng.normal(size=(7, 4))
    labels = np.r_[np.arange(objects), rng.integers(objects, size=60 - objects)]
    z, other = ((each - x.mean(0)) / x.std(0) for each in (x, new))

    def cost(flat):
        w, b = flat[: 4 * objects].reshape(4, objects), flat[4 * objects :]
        chosen = log_softmax(z @ w + b, axis=1)[np.arange(60), labels]
        return -1e-3 * chosen.sum() + (w**2).sum() / 2 + 1e-9 * (b**2).sum()

    best = minimize(cost, np.zeros(5 * objects), tol=1e-12).x
    expected = softmax(
        other @ best[: 4 * objects].reshape(4, objects) + best[4 * objects :], axis=1
    )
    np.testing.assert_allclose(fit_readout(x, labels, new), expected, atol=2e-4)


def slow_pattern(rates, labels, metric):
    "The six patterns of the paper, by loops over images and objects."
    objects, z = rates.shape[1], norm.ppf

    def mean(values):
        values = [each for each in values if np.isfinite(each)]
        return np.mean(values) if values else np.nan

    def rate(shown, chosen):  # how often `chosen` is chosen over the object that is shown
        return mean([rates[i, chosen] for i in range(len(labels)) if labels[i] == shown])

    rows = range(objects) if metric[0] == "o" else range(len(labels))
    d = np.full((len(rows), objects), np.nan)
    for row in rows:
        own = row if metric[0] == "o" else labels[row]
        for other in set(range(objects)) - {own}:
            hit = 1 - (rate(own, other) if metric[0] == "o" else rates[row, other])
            d[row, other] = min(max(z(hit) - z(rate(other, own)), -5), 5)
    if metric.endswith("n"):
        of_pairs = {
            (o, c): mean([d[i, c] for i in rows if labels[i] == o])
            for o in range(objects)
            for c in range(objects)
        }
        for i in rows:
            for c in range(objects):
                d[i, c] -= of_pairs[labels[i], c]
    return d if "2" in metric else np.array([mean(row) for row in d])


@few
@given(seed=seeds, objects=st.integers(2, 5), each=st.integers(1, 4), missing=st.booleans())
def test_patterns_are_the_papers_loops(seed, objects, each, missing):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(objects), each))
    rates = rng.uniform(0.02, 0.98, (len(labels), objects))
    if missing:
        rates[rng.random(rates.shape) < 0.2] = np.nan
    rates[np.arange(len(labels)), labels] = np.nan
    for metric in PATTERNS:
        found = pattern_of(rates, labels, metric)
        np.testing.assert_allclose(found, slow_pattern(rates, labels, metric), atol=1e-9)


def people(labels, p, rng, count=40_000):
    "Trials of observers who choose with probabilities p."
    picture, distractor = (
        rng.integers(len(labels), size=count),
        rng.integers(p.shape[1], size=count),
    )
    keep = distractor != labels[picture]
    picture, distractor = picture[keep], distractor[keep]
    wrong = rng.random(len(picture)) < false_alarms(p, labels)[picture, distractor]
    return pd.DataFrame({"picture": picture, "distractor": distractor, "wrong": wrong})


def test_an_observer_who_confuses_objects_alike_and_images_otherwise():
    "Objects agree, images of an object don't; the metrics tell them apart. Equal mistakes score about 1 in all six."
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 6
    of_objects = rng.normal(size=(6, 6))[labels]
    one, two = (
        np.exp(of_objects + rng.normal(size=(120, 6)) + 4 * np.eye(6)[labels]) for _ in range(2)
    )
    trials = people(labels, one, rng, 200_000)
    for metric in PATTERNS:
        itself = behavioral_consistency(one, labels, trials, metric)
        assert itself.value == pytest.approx(1, abs=0.05), metric
    scores = {m: behavioral_consistency(two, labels, trials, m).value for m in PATTERNS}
    assert scores["o2"] > 0.6 > 0.4 > scores["i2"] > scores["i2n"]
    assert abs(scores["i2n"]) < 0.15 and abs(scores["i1n"]) < 0.3


def test_objects_need_three():
    rng = np.random.default_rng(0)
    labels, p = np.arange(20) % 2, rng.dirichlet(np.ones(2), 20)
    trials = people(labels, p, rng, 4000)
    assert behavioral_consistency(p, labels, trials, "i1").value > 0.9
    for metric in ("o1", "o2"):
        with pytest.raises(ValueError, match="labels name 2 objects"):
            behavioral_consistency(p, labels, trials, metric)


def test_i2n_of_an_observer_and_of_chance():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 4
    p = rng.dirichlet(np.ones(4), 60)
    trials = people(labels, p, rng)
    chance = rng.dirichlet(np.ones(4), 60)
    itself, other = (behavioral_consistency(each, labels, trials) for each in (p, chance))
    assert (
        itself.value == pytest.approx(1, abs=0.03)
        and itself.raw < itself.value
        and abs(other.value) < 0.25
    )
    counted = trials.groupby(["picture", "distractor"]).wrong.mean()
    for (i, d), rate in counted.items():
        assert observed_false_alarms(trials, 60, 4)[i, d] == pytest.approx(rate)


@few
@given(seed=seeds, bins=st.integers(1, 6))
def test_solution_times_by_a_loop(seed, bins):
    rng = np.random.default_rng(seed)
    curves, thresholds, starts = (
        rng.normal(size=(bins, 9)),
        rng.normal(size=9),
        70 + 10.0 * np.arange(bins),
    )
    for i, time in enumerate(object_solution_times(curves, thresholds, starts)):
        hit = next((t for t in range(bins) if curves[t, i] >= thresholds[i]), None)
        if hit is None:
            assert np.isnan(time)
        elif hit == 0:
            assert time == starts[0]
        else:
            last = max(range(hit), key=lambda t: curves[t, i])
            np.testing.assert_allclose(
                time,
                np.interp(
                    thresholds[i], [curves[last, i], curves[hit, i]], [starts[last], starts[hit]]
                ),
            )


def test_the_composite_is_the_papers():
    assert brain_score(0.6499, 0.6003, 0.25, 0.382).value == pytest.approx(0.4705, abs=1e-4)
    assert brain_score(0.6, 0.6, np.nan, 0.3).value == pytest.approx(0.375) and brain_score(
        0.6, 0.6, np.nan, 0.3, missing="leave out"
    ).value == pytest.approx(0.5)
    with pytest.raises(ValueError):
        brain_score(np.nan, np.nan, np.nan, np.nan)
