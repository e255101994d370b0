"FEVE, ncsnr and explainable variance: the published formulas trial by trial, analysis of variance, simulations with a known truth."

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import f_oneway
from sklearn.linear_model import Ridge

from neurobridge.brain import ceiled, neural_predictivity, reliability
from neurobridge.brain.regression import explained_share, noise_of_average, stimulus_splits
from neurobridge.data import Recording

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 10_000)


def recorded(seed, repeats=4, n=50, units=5, noise=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8))
    signal = x @ rng.normal(size=(8, units)) + rng.normal(size=units)
    trials = signal + noise * rng.normal(size=(repeats, n, units))
    return x, signal, trials


def as_recording(trials):
    return Recording(trials, [f"s{i}" for i in range(trials.shape[1])])


def feve_by_trials(predicted, trials):
    "As Cadena et al. (2019) write it, for one unit: over all trials r of all stimuli."
    noise = np.mean([each.var(ddof=1) for each in trials.T])
    every = [(r, p) for each, p in zip(trials.T, predicted, strict=True) for r in each]
    error = np.mean([(r - p) ** 2 for r, p in every])
    return 1 - (error - noise) / (np.var([r for r, _ in every]) - noise)


@few
@given(seed=seeds, repeats=st.integers(2, 6))
def test_feve_is_the_published_formula(seed, repeats):
    x, _, trials = recorded(seed, repeats)
    splits = stimulus_splits(50, splits=2, train=0.6)
    score = neural_predictivity(
        x, as_recording(trials), penalties=[1.0], splits=splits, measure="feve"
    )
    assert score.measure == "feve"
    y = trials.mean(0)
    for own, (fit, test) in zip(score.units, splits, strict=True):
        predicted = Ridge(1.0).fit(x[fit], y[fit]).predict(x[test])
        expected = [feve_by_trials(predicted[:, u], trials[:, test, u]) for u in range(5)]
        np.testing.assert_allclose(own, expected, rtol=1e-7)
    np.testing.assert_allclose(score.value, np.median(score.units, axis=1).mean())


def test_feve_of_known_predictions_with_missing_trials_and_noise_of_the_signals_size():
    "Poisson counts, two to six trials of each stimulus: on average 1 for the rates themselves, 0 for their mean, and what is lost for a wrong scale."
    found = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        rates = rng.gamma(4, 2, size=(60, 3))
        trials = rng.poisson(rates, size=(6, 60, 3)).astype(float)
        for i, count in enumerate(rng.integers(2, 7, size=60)):
            trials[count:, i] = np.nan
        y, noise = np.nanmean(trials, axis=0), noise_of_average(trials)
        guesses = (rates, 0 * rates + y.mean(0), rates.mean(0) + 0.5 * (rates - rates.mean(0)))
        explained = (1, 0, 1 - ((guesses[2] - rates) ** 2).mean(0) / rates.var(0))
        found.append([
            (explained_share(p, y, noise) - e).mean() for p, e in zip(guesses, explained, strict=True)
        ])  # fmt: skip
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(len(found))
    assert (np.abs(mean) < 4 * error + 0.01).all() and error.max() < 0.01
    assert abs(mean[1]) < 1e-9  # exact: the mean explains nothing


def test_a_unit_of_noise_has_no_feve():
    x, _, trials = recorded(0)
    trials[:, :, 2] = np.random.default_rng(5).normal(size=(4, 50))
    trials[0, :, 2] *= -3  # trials disagree more than stimuli differ
    score = neural_predictivity(x, as_recording(trials), penalties=[1.0], measure="feve")
    assert np.isnan(score.units[:, 2]).any() and np.isfinite(score.value)
    with pytest.raises(TypeError, match="trials of each stimulus"):
        neural_predictivity(x, trials.mean(0), measure="feve")
    once = trials.copy()
    once[1:, 7] = np.nan
    with pytest.raises(ValueError, match="1 stimuli have fewer than two"):
        neural_predictivity(x, as_recording(once), measure="feve")


def nsd_ncsnr(trials):
    "As the data manual of NSD computes it from z-scored responses of a voxel [trials, images], on the scale of one trial."
    z = (trials - trials.mean()) / trials.std(ddof=1)
    noise = np.sqrt(np.mean(z.std(0, ddof=1) ** 2))
    return np.sqrt(max(0, 1 - noise**2)) / noise


@few
@given(seed=seeds, repeats=st.integers(2, 6))
def test_ncsnr_and_explainable_variance_by_analysis_of_variance(seed, repeats):
    _, _, trials = recorded(seed, repeats, noise=2.0)
    f = np.array([f_oneway(*trials[:, :, u].T).statistic for u in range(5)])
    share = reliability(trials, measure="explainable_variance")
    ratio = reliability(trials, measure="ncsnr")
    np.testing.assert_allclose(share.units[0], 1 - 1 / f)
    np.testing.assert_allclose(ratio.units[0], np.sqrt(np.maximum(f - 1, 0) / repeats), atol=1e-7)
    np.testing.assert_allclose(
        share.units[0], ratio.units[0] ** 2 / (ratio.units[0] ** 2 + 1 / repeats), atol=1e-9
    )
    assert share.value == np.median(share.units) and share.measure == "explainable_variance"


def test_ncsnr_is_that_of_nsd():
    "To the order of 1/images, by which the two estimates of variance differ."
    _, _, trials = recorded(3, repeats=3, n=2000, noise=2.0)
    expected = [nsd_ncsnr(trials[:, :, u]) for u in range(5)]
    found = reliability(trials, measure="ncsnr").units[0]
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_they_are_calibrated():
    "200 simulated recordings with missing trials: signal over noise, squared, is unbiased, and the share of the averages' variance is the true one."
    ratios, shares, truth = [], [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        trials = rng.normal(size=(40, 4)) + 1.5 * rng.normal(size=(5, 40, 4))
        counts = rng.integers(2, 6, size=40)
        for i, count in enumerate(counts):
            trials[count:, i] = np.nan
        recording = as_recording(trials)
        ratios.append(reliability(recording, measure="ncsnr").units.ravel() ** 2)
        shares.append(reliability(recording, measure="explainable_variance").units.ravel())
        truth.append(1 / (1 + 1.5**2 * np.mean(1 / counts)))
    for found, expected in ((ratios, 1 / 1.5**2), (shares, np.mean(truth))):
        each = np.array(found).mean(1)
        assert abs(each.mean() - expected) < 4 * each.std() / np.sqrt(200) + 0.01
    trials = np.random.default_rng(0).normal(size=(3, 12, 3))
    trials[:, :, 0] = np.arange(12.0)
    exact = reliability(trials, measure="ncsnr").units[0]
    assert np.isinf(exact[0]) and np.isfinite(exact[1:]).all()


def test_what_is_corrected_or_no_ceiling_is_not_divided():
    x, _, trials = recorded(1)
    recording = as_recording(trials)
    r = neural_predictivity(x, recording, penalties=[1.0])
    feve = neural_predictivity(x, recording, penalties=[1.0], measure="feve")
    share = reliability(recording, measure="explainable_variance")
    assert ceiled(r, share).value == pytest.approx(r.raw**2 / share.value)
    assert np.isfinite(ceiled(r, share, least=0.1).value)
    for score, ceiling in ((feve, share), (r, reliability(recording, measure="ncsnr")), (r, feve)):
        for least in (None, 0.1):
            with pytest.raises(ValueError, match="ceiled: score is of"):
                ceiled(score, ceiling, least=least)
