"Distances and comparisons against rsatoolbox, ridge regression against himalaya, each where it is installed."

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import pdist, squareform
from sklearn.linear_model import LinearRegression, RidgeCV
from sklearn.model_selection import KFold

from neurobridge.brain import cka, compare_rdms, neural_predictivity, rdm
from neurobridge.brain.linear import gram, ridge_predict
from neurobridge.brain.rsa import ESTIMATES, noise_covariance
from neurobridge.data import Recording


def trials(seed=0, repeats=5, n=12, units=9):
    rng = np.random.default_rng(seed)
    mixing = np.eye(units) + 0.3 * rng.normal(size=(units, units))
    return rng.normal(size=(n, units)) + rng.normal(size=(repeats, n, units)) @ mixing


def as_recording(values):
    return Recording(values, [f"s{i:02}" for i in range(values.shape[1])])


def toolbox_data(values):
    rsatoolbox = pytest.importorskip("rsatoolbox", reason="pip install rsatoolbox")
    repeats, n, units = values.shape
    names = np.tile([f"s{i:02}" for i in range(n)], repeats)
    described = {"stimulus": names, "fold": np.repeat(np.arange(repeats), n)}
    return rsatoolbox.data.Dataset(values.reshape(-1, units), obs_descriptors=described)


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_noise_crossnobis_and_mahalanobis_are_rsatoolboxs(estimate):
    values = trials()
    data = toolbox_data(values)
    from rsatoolbox.data.noise import cov_from_measurements
    from rsatoolbox.rdm import calc_rdm

    covariance = noise_covariance(values, estimate)
    theirs = cov_from_measurements(data, "stimulus", dof=12 * 4, method=estimate)
    np.testing.assert_allclose(covariance, theirs if theirs.ndim == 2 else np.diag(theirs))
    precision = np.linalg.inv(covariance)
    for metric in ("crossnobis", "mahalanobis"):
        more = {"cv_descriptor": "fold"} if metric == "crossnobis" else {}
        expected = calc_rdm(data, metric, "stimulus", noise=precision, **more).get_matrices()[0]
        for noise in (estimate, covariance):
            found = rdm(as_recording(values), metric, noise=noise)
            np.testing.assert_allclose(found, expected, atol=1e-12)


def test_crossnobis_of_missing_trials_is_unbiased_and_a_loop():
    values = trials(1)
    values[0, 3] = values[1, 3] = values[4, 7] = np.nan
    values[1:, 9] = np.nan  # one trial: no distance of its own
    found = rdm(as_recording(values), "crossnobis", noise=np.eye(9)).to_numpy()
    assert np.isnan(np.delete(found[9], 9)).all() and found[9, 9] == 0

    def product(i, j):
        each = [
            values[r, i] @ values[s, j]
            for r in range(5)
            for s in range(5)
            if r != s and np.isfinite(values[r, i] @ values[s, j])
        ]
        return np.mean(each)

    for i, j in ((3, 7), (0, 3), (0, 1)):
        by_hand = product(i, i) + product(j, j) - product(i, j) - product(j, i)
        np.testing.assert_allclose(found[i, j], by_hand / 9)
    compare_rdms(found, found, missing=True)


def test_crossnobis_of_nothing_is_around_zero():
    rng = np.random.default_rng(0)
    means = []
    for _ in range(50):
        recording = as_recording(rng.normal(size=(4, 10, 6)))
        means.append(rdm(recording, "crossnobis").to_numpy()[np.triu_indices(10, 1)].mean())
    assert abs(np.mean(means)) < 4 * np.std(means) / np.sqrt(50)


@pytest.mark.parametrize(
    "what, said",
    [
        (dict(metric="crossnobis", features=trials()[0]), "expected Recording"),
        (dict(metric="mahalanobis", features=trials()[0]), "expected Recording"),
        (dict(metric="cosine", features=trials()[0], noise=np.eye(9)), "leave it out"),
        (dict(metric="mahalanobis", features=trials()[0], noise=np.zeros((9, 9))), "inverted"),
        (dict(metric="crossnobis", features=as_recording(trials()[:1])), "at least two repeats"),
        (dict(metric="crossnobis", features=as_recording(trials()), noise="best"), "expected one"),
    ],
)
def test_noise_that_can_not_be_used(what, said):
    with pytest.raises((TypeError, ValueError), match=said):
        rdm(**what)


@pytest.mark.parametrize("metric", ["correlation", "cosine", "euclidean", "sqeuclidean"])
def test_products_give_the_distances_of_scipy(metric):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 500)) + 100
    x[7], x[8] = x[3], x[3] + 1e-7 * rng.normal(size=500)
    found = rdm(x, metric)
    np.testing.assert_allclose(found, squareform(pdist(x, metric)), rtol=1e-7, atol=1e-9)
    assert (found == found.T).all() and found[3, 7] < 1e-12


def test_slabs_make_no_difference_to_cka():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 9000)), rng.normal(size=(20, 50))
    k, g = (each - each.mean(0) for each in (x, y))
    k, g = k @ k.T, g @ g.T
    by_hand = (k * g).sum() / np.sqrt((k * k).sum() * (g * g).sum())
    np.testing.assert_allclose(cka(x, y, unbiased=False), by_hand)


@pytest.mark.parametrize("method", ["spearman", "pearson", "cosine", "whitened"])
def test_missing_pairs_are_left_out_as_in_rsatoolbox(method):
    rsatoolbox = pytest.importorskip("rsatoolbox", reason="pip install rsatoolbox")
    rng = np.random.default_rng(0)
    one, two = (squareform(rng.uniform(1, 2, 45)) for _ in range(2))
    for i, j in ((0, 1), (2, 5), (7, 8)):
        one[i, j] = one[j, i] = two[i, j] = two[j, i] = np.nan
    theirs = {"pearson": "corr", "whitened": "cosine_cov"}.get(method, method)
    pairs = [rsatoolbox.rdm.RDMs(each[np.triu_indices(10, 1)][None]) for each in (one, two)]
    expected = rsatoolbox.rdm.compare(*pairs, method=theirs)[0, 0]
    np.testing.assert_allclose(compare_rdms(one, two, method, missing=True), expected, atol=1e-6)
    names = [f"s{i}" for i in range(10)]
    order = rng.permutation(10)
    other = pd.DataFrame(two, names, names).iloc[order, order]
    table = pd.DataFrame(one, names, names)
    named = compare_rdms(table, other, method, missing=True)
    np.testing.assert_allclose(named, compare_rdms(one, two, method, missing=True))
    with pytest.raises(ValueError, match="missing=True"):
        compare_rdms(one, two, method)


def planted(seed, n=60, features=100, units=7):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features))
    y = x[:, :units] * 2 + rng.normal(size=(n, units)) * np.linspace(0.3, 9, units)
    return x, y, np.arange(n - 10), np.arange(n - 10, n)


@pytest.mark.parametrize("seed", range(3))
def test_penalties_per_unit_are_himalayas_and_scikit_learns(seed):
    x, y, train, test = planted(seed)
    many = np.logspace(-1, 4, 9)
    found = ridge_predict(gram(x), y, train, test, many, per_unit=True)
    theirs = RidgeCV(many, alpha_per_target=True).fit(x[train], y[train])
    assert len(np.unique(theirs.alpha_)) > 1
    np.testing.assert_allclose(found, theirs.predict(x[test]), atol=1e-7)
    ridge = pytest.importorskip("himalaya.ridge", reason="pip install himalaya")
    from himalaya.scoring import l2_neg_loss

    settings = dict(cv=KFold(len(train)), solver_params=dict(score_func=l2_neg_loss))
    own = ridge.RidgeCV(many, fit_intercept=True, **settings)
    own.fit(x[train], y[train])
    np.testing.assert_allclose(found, own.predict(x[test]), atol=1e-6)


def test_penalty_zero_is_least_squares_and_refused_where_it_fits_anything():
    x, y, train, test = planted(0)
    few = x[:, :20]
    expected = LinearRegression().fit(few[train], y[train]).predict(few[test])
    np.testing.assert_allclose(ridge_predict(gram(few), y, train, test, [0]), expected, atol=1e-8)
    wide = np.c_[few, few @ np.ones((20, 90))]  # more features, no more directions
    expected = LinearRegression().fit(wide[train], y[train]).predict(wide[test])
    np.testing.assert_allclose(ridge_predict(gram(wide), y, train, test, [0]), expected, atol=1e-6)
    with pytest.raises(ValueError, match="fit any responses"):
        neural_predictivity(x, y, penalties=[0], splits=[(train, test)])
