"""Tables of several models: the corrections, the variance of two samples, and calibration on data with a known truth.

Each simulation draws stimuli, units or people, and noise anew. Coverage counts the intervals that contain the mean of all simulations'
scores, rejection the pairs of two equally good models with p below 5 %.
"""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, ttest_rel

from neurobridge.brain import compare_models, compare_rdms, neural_predictivity, rdm
from neurobridge.brain.comparison import corrected_p, corrected_variance, permutation_p


def simulated_units(seed, n=90, cells=20, draws=200, **given):
    "Two models with one half each of what units respond to, equally many of each half."
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 8))
    signal = hidden @ rng.normal(size=(8, cells))
    y = signal + 2 * rng.normal(size=signal.shape)
    models = {"a": hidden[:, :4], "b": hidden[:, 4:]}
    rows = [(np.arange(n // 2), np.arange(n // 2, n))]
    settings = dict(splits=rows, components=3, penalties=[1.0], samples=draws, seed=seed)
    return compare_models(models, y, **settings | given)


def simulated_people(seed, n=24, people=10, draws=200, **given):
    "Two models with one half each of a geometry that every person has with noise of their own."
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 12))
    weights = 1 + rng.normal(size=(people, 12)) / 2
    each = [rdm(hidden * own + rng.normal(size=hidden.shape), "sqeuclidean") for own in weights]
    models = {"a": rdm(hidden[:, :6], "sqeuclidean"), "b": rdm(hidden[:, 6:], "sqeuclidean")}
    settings = dict(rdms=np.stack(each), method="pearson", samples=draws, seed=seed)
    return compare_models(models, **settings | given)


def calibration(simulate, count, **given):
    "Coverage of the first model's intervals, and rejection of a pair that is equally good."
    scores, low, high, p = [], [], [], []
    for seed in range(count):
        table, pairs = simulate(seed, **given)
        scores.append(table.score.iloc[0])
        low.append(table.low.iloc[0])
        high.append(table.high.iloc[0])
        p.append(pairs.p.iloc[0])
    truth = np.mean(scores)
    inside = int(((np.array(low) <= truth) & (truth <= np.array(high))).sum())
    rejected = int((np.array(p) < 0.05).sum())
    found = {}
    for name, hits in (("coverage", inside), ("rejection", rejected)):
        limits = binomtest(hits, count).proportion_ci(method="wilson")
        found[name] = (hits / count, limits.low, limits.high)
    return found


def test_corrections_and_variance_by_definition():
    p = np.array([0.01, 0.02, 0.03, 0.04, 0.2])
    np.testing.assert_allclose(corrected_p(p, "none"), p)
    np.testing.assert_allclose(corrected_p(p, "holm"), [0.05, 0.08, 0.09, 0.09, 0.2])
    np.testing.assert_allclose(corrected_p(p, "fdr"), [0.05, 0.05, 0.05, 0.05, 0.2])
    shuffled = np.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(corrected_p(p[shuffled], "fdr"), corrected_p(p, "fdr")[shuffled])
    rng = np.random.default_rng(0)
    one, two, both = (scale * rng.normal(size=(500, 2)) for scale in (1, 2, 2.6))
    contrast = np.array([1.0, -1.0])
    parts = [np.var(each @ contrast, ddof=1) for each in (one, two, both)]
    np.testing.assert_allclose(
        corrected_variance((one, two, both), contrast),
        np.clip(2 * (parts[0] + parts[1]) - parts[2], max(parts[:2]), parts[2]),
    )
    assert corrected_variance((one, None, None), contrast) == parts[0]


def test_the_tables_hold_what_the_single_calls_return():
    "Scores are those of neural_predictivity and compare_rdms; a pair is the difference; names match."
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 12))
    names = [f"s{i}" for i in range(80)]
    y = pd.DataFrame(x[:, :6] + rng.normal(size=(80, 6)), index=names)
    shuffled = rng.permutation(80)
    models = {
        "all": pd.DataFrame(x, index=names).iloc[shuffled],
        "few": pd.DataFrame(x[:, :3], index=names),
        "none": rng.normal(size=(80, 4)),
    }
    fit = dict(splits=3, components=3, train=0.7)
    scores, pairs = compare_models(models, y, samples=50, **fit)
    for name, features in models.items():
        alone = neural_predictivity(features, y, **fit).value
        np.testing.assert_allclose(scores.score[name], alone)
    for (a, b), row in pairs.iterrows():
        np.testing.assert_allclose(row.difference, scores.score[a] - scores.score[b])
        assert row.low < row.difference < row.high
    assert list(pairs.index) == [("all", "few"), ("all", "none"), ("few", "none")]
    people = [rdm(y + rng.normal(size=y.shape)) for _ in range(4)]
    own = {name: rdm(models[name]) for name in ("all", "few")}
    table, _ = compare_models(own, rdms=people, samples=20)
    by_hand = np.mean([compare_rdms(own["all"], each) for each in people])
    np.testing.assert_allclose(table.score["all"], by_hand)


def test_one_model_and_equal_models():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 60, 5))
    scores, pairs = compare_models({"a": x}, y, samples=20, splits=2, components=2, train=0.7)
    assert len(scores) == 1 and not len(pairs) and "p corrected" in pairs
    for test in ("bootstrap", "permutation"):
        _, pairs = compare_models(
            {"a": x, "b": x}, y, samples=20, splits=2, components=2, train=0.7, test=test
        )
        assert pairs.p.iloc[0] == 1 and pairs.difference.iloc[0] == 0


def test_one_unit_or_subject_is_no_sample():
    x, y = np.random.default_rng(0).normal(size=(2, 60, 5))
    with pytest.raises(ValueError, match="responses has one unit"):
        compare_models({"a": x}, y[:, :1], samples=5, splits=2, components=2, train=0.7)
    with pytest.raises(ValueError, match="rdms has one subject"):
        compare_models({"a": rdm(x)}, rdms=[rdm(y)], samples=5)
    alone = [
        compare_models({"a": rdm(x)}, rdms=given, samples=5, units=False)[0]
        for given in (rdm(y), [rdm(y)])
    ]
    assert alone[0].equals(alone[1])


def test_the_error_over_few_people_is_that_of_their_mean():
    "The score is a mean over people, whose standard error is known without a draw."
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 6))
    people = np.stack([rdm(x + rng.normal(size=x.shape) * k / 2, "sqeuclidean") for k in range(5)])
    models = {"a": rdm(x[:, :3], "sqeuclidean"), "b": rdm(x[:, 3:], "sqeuclidean")}
    given = dict(rdms=people, method="pearson", stimuli=False, samples=6000)
    scores, pairs = compare_models(models, **given)
    each = np.array([[compare_rdms(m, own, "pearson") for m in models.values()] for own in people])
    exact = each.std(0, ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(scores.error, exact, rtol=0.04)
    difference = (each[:, 0] - each[:, 1]).std(ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(pairs.error, difference, rtol=0.04)
    paired = ttest_rel(*each.T).pvalue
    np.testing.assert_allclose(pairs.p.iloc[0], paired, rtol=0.15, atol=1e-3)


def test_a_permutation_of_few_is_that_of_all_exchanges():
    one, two = np.array([[0.5, 0.6, 0.7, 0.4, 0.8]]), np.array([[0.3, 0.5, 0.4, 0.45, 0.2]])
    signs = 1 - 2 * ((np.arange(32)[:, None] >> np.arange(5)) & 1)
    exact = np.mean(np.abs((signs * (one - two)).mean(1)) >= (one - two).mean() - 1e-12)
    drawn = permutation_p(one, two, 4000, False, np.random.default_rng(0))
    assert abs(drawn - exact) < 0.025


@pytest.mark.parametrize("missing", [False, True])
def test_a_permutation_is_the_plain_loop(missing):
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 3, 9))
    if missing:
        one[1, 2] = np.nan
    swaps = np.random.default_rng(5).random((40, 9)) < 0.5
    for median, middle in ((True, np.nanmedian), (False, np.nanmean)):
        found = []
        for swap in (np.zeros(9, dtype=bool), *swaps):
            a, b = np.where(swap, two, one), np.where(swap, one, two)
            found.append(abs((middle(a, axis=1) - middle(b, axis=1)).mean()))
        expected = (1 + (np.array(found[1:]) >= found[0] - 1e-12).sum()) / 41
        assert permutation_p(one, two, 40, median, np.random.default_rng(5)) == expected


@pytest.mark.parametrize("median", [False, True])
def test_a_permutation_rejects_exactly_five_percent_of_its_null(median):
    "All 512 studies that differ by exchanges within units are equally likely if models are equally good: at most 5 % of them may have p below 5 %, whatever the scores."
    rng = np.random.default_rng(1)
    one, two = rng.normal(size=(2, 2, 9)) + [[[0.0]], [[0.7]]]
    swaps = (np.arange(512)[:, None] >> np.arange(9)) % 2 == 1
    p = [
        permutation_p(
            np.where(swap, two, one),
            np.where(swap, one, two),
            199,
            median,
            np.random.default_rng([2, i]),
        )
        for i, swap in enumerate(swaps)
    ]
    for level in (0.05, 0.2, 0.5):
        hits = int((np.array(p) <= level).sum())
        assert binomtest(hits, 512, level, alternative="greater").pvalue > 0.01, level
    assert min(p) >= 1 / 200 and np.mean(np.array(p) <= 0.2) > 0.1


@pytest.mark.long
@pytest.mark.parametrize("simulate", [simulated_units, simulated_people])
def test_with_both_samples_drawn_95_and_5_percent_hold(simulate):
    found = calibration(simulate, 300)
    assert found["coverage"][2] > 0.93 and found["coverage"][0] > 0.9
    assert found["rejection"][1] < 0.07


@pytest.mark.long
def test_a_sample_that_is_not_drawn_again_is_not_in_the_interval():
    "As the docstring says of stimuli alone: intervals are too short, equal models rejected."
    found = calibration(simulated_units, 300, units=False)
    assert found["coverage"][2] < 0.93 and found["rejection"][1] > 0.07
