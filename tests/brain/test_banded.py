"Banded ridge: himalaya's predictions for the same weights and penalties, its split of the variance, and units with a known answer."

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold

from neurobridge.brain import Gram, banded_predictivity, neural_predictivity
from neurobridge.brain.banded import band_weights, fit_bands, split_variance
from neurobridge.data import Recording

PENALTIES = np.array([0.1, 1.0, 10.0, 100.0])


def planted(seed, n=60, units=7):
    rng = np.random.default_rng(seed)
    one, two = rng.normal(size=(n, 12)), 5 * rng.normal(size=(n, 80))
    shares = np.linspace(0, 1, units)
    y = one @ rng.normal(size=(12, units)) * shares
    y = y + two[:, :4] @ rng.normal(size=(4, units)) * (1 - shares) / 5
    y = y + np.linspace(0.3, 3, units) * rng.normal(size=(n, units))
    return [one, two], y, (np.arange(n - 12), np.arange(n - 12, n))


@pytest.mark.parametrize("seed", range(3))
def test_choices_and_parts_are_himalayas(seed):
    "The same weights and penalties, left-one-out, chosen for each unit: equal predictions, part by part."
    pytest.importorskip("himalaya", reason="pip install himalaya")
    from himalaya.kernel_ridge import predict_weighted_kernel_ridge
    from himalaya.kernel_ridge import solve_multiple_kernel_ridge_random_search as search
    from himalaya.scoring import l2_neg_loss, r2_score_split

    bands, y, (train, test) = planted(seed)
    weights = band_weights(2, 12, seed)
    centred = [each - each[train].mean(0) for each in bands]
    scales = [(each[train] ** 2).sum(1).mean() for each in centred]
    own = [each[train] @ each[train].T / s for each, s in zip(centred, scales, strict=True)]
    cross = [each[test] @ each[train].T / s for each, s in zip(centred, scales, strict=True)]
    mean = y[train].mean(0)
    deltas, dual, _, intercept = search(
        np.stack(own),
        y[train],
        n_iter=weights,
        alphas=PENALTIES,
        cv=KFold(len(train)),
        score_func=l2_neg_loss,
        fit_intercept=True,
        return_weights="dual",
        progress_bar=False,
    )
    theirs = predict_weighted_kernel_ridge(np.stack(cross), dual, deltas, split=True)
    parts, about = fit_bands(
        [each @ each.T for each in bands], y, (train, test), weights, PENALTIES
    )
    np.testing.assert_allclose(about, mean)
    np.testing.assert_allclose(parts, theirs, atol=1e-7)
    np.testing.assert_allclose(about, intercept, atol=1e-9)
    split = r2_score_split(y[test] - mean, theirs)
    whole = split_variance(parts, y[test] - mean)
    np.testing.assert_allclose(whole, split, atol=1e-7)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999))
def test_one_band_is_ridge_regression(seed):
    bands, y, split = planted(seed)
    k = bands[0] @ bands[0].T
    parts, mean = fit_bands([k], y, split, np.ones((1, 1)), PENALTIES)
    centred = bands[0][split[0]] - bands[0][split[0]].mean(0)
    scale = (centred**2).sum(1).mean()
    theirs = RidgeCV(PENALTIES * scale, alpha_per_target=True).fit(bands[0][split[0]], y[split[0]])
    np.testing.assert_allclose(
        parts[0] + mean, theirs.predict(bands[0][split[1]]).reshape(12, 7), atol=1e-7
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.floats(0.01, 100))
def test_what_a_partition_does_not_depend_on(seed, scale):
    "The unit of a band, rotations of its features, the order of bands and of named stimuli, or features given as a Gram matrix."
    bands, y, split = planted(seed)
    more = dict(candidates=0, splits=[split])
    score, table = banded_predictivity({"a": bands[0], "b": bands[1]}, y, **more)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(12, 12)))[0]
    other = {"b": Gram(scale * bands[1]), "a": bands[0] @ turn}
    again, turned = banded_predictivity(other, y, **more)
    np.testing.assert_allclose(turned[["a", "b"]], table, atol=1e-6)
    np.testing.assert_allclose(again.units, score.units, atol=1e-6)
    names = [f"s{i}" for i in range(60)]
    order = np.random.default_rng(seed).permutation(60)
    named = {"a": pd.DataFrame(bands[0], names).iloc[order], "b": pd.DataFrame(bands[1], names)}
    recording = Recording(y[None], names, units=[f"u{i}" for i in range(7)])
    by_name, labelled = banded_predictivity(named, recording, **more)
    np.testing.assert_allclose(labelled, table, atol=1e-6)
    assert labelled.index.tolist() == by_name.names.tolist() == [f"u{i}" for i in range(7)]


def test_terms_add_up_and_a_useless_band_costs_little():
    bands, y, _ = planted(0, n=120)
    noise = 50 * np.random.default_rng(1).normal(size=(120, 400))
    score, table = banded_predictivity(dict(zip("ab", bands, strict=True)), y, splits=4)
    with_noise, wide = banded_predictivity(
        {"a": bands[0], "b": bands[1], "noise": noise}, y, splits=4
    )
    assert abs(wide.noise).max() < 0.15 and abs(with_noise.value - score.value) < 0.05
    assert table.a.iloc[-1] > 0.2 > abs(table.a.iloc[0]) + 0.05
    side = neural_predictivity(
        np.hstack([*bands, noise]), y, splits=4, penalties=np.logspace(-2, 6, 9)
    )
    assert with_noise.value > side.value
    single = banded_predictivity({"a": bands[0]}, y, splits=4)[0]
    assert score.value > single.value


def test_a_unit_that_is_silent_in_one_split_has_a_share_from_the_others():
    bands, y, _ = planted(3)
    silent = y.copy()
    silent[:12, 0] = silent[12:, 0].mean()
    splits = [(np.arange(12, 60), np.arange(12)), (np.arange(48), np.arange(48, 60))]
    _, table = banded_predictivity(
        dict(zip("ab", bands, strict=True)), silent, splits=splits, candidates=0
    )
    assert np.isfinite(table).all().all()
    parts = np.zeros((2, 4, 1))
    assert np.isnan(split_variance(parts, np.zeros((4, 1)))).all()
