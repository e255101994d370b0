"Flexible RSA models: rsatoolbox's fits and cross-validation, leaks, planted weights, what they must not depend on."

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear
from scipy.spatial.distance import squareform

from neurobridge.brain import compare_rdms, flexible_rsa, rdm
from neurobridge.brain.flexible_models import FORMS, SPACES, fit_form, fit_weights
from neurobridge.brain.regression import stimulus_splits
from neurobridge.data import DataError

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 10_000)
THEIRS = {"cosine": "cosine", "pearson": "corr", "whitened": "cosine_cov"}


def study(seed, n=16, people=4, models=3, noise=1.0):
    "RDMs of models, and of people who have a weighted sum of their features."
    rng = np.random.default_rng(seed)
    parts = rng.normal(size=(models, n, 5))
    scale = rng.uniform(0, 1.5, size=models)
    own = np.concatenate([s * part for s, part in zip(scale, parts, strict=True)], axis=1)
    each = [rdm(own + noise * rng.normal(size=own.shape), "sqeuclidean") for _ in range(people)]
    found = {f"model {i}": rdm(part, "sqeuclidean") for i, part in enumerate(parts)}
    return found, np.stack(each)


def pairs_of(matrices):
    return np.stack([squareform(each) for each in matrices])


def toolbox(models, people):
    toolbox = pytest.importorskip("rsatoolbox", reason="pip install rsatoolbox")
    # in small units: its non-negative least squares ends at an absolute tolerance, or never
    given = [toolbox.rdm.RDMs(np.stack(list(each)) / 1000) for each in (models.values(), people)]
    return toolbox, *given


@pytest.mark.parametrize("method", SPACES)
@pytest.mark.parametrize("seed", range(3))
def test_fits_are_rsatoolboxs(method, seed):
    models, people = study(seed)
    peer, candidates, data = toolbox(models, people)
    from rsatoolbox.model import fitter

    a, b = pairs_of(models.values()), pairs_of(people)
    own = fit_weights(a, b, method)
    weighted = peer.model.ModelWeighted("w", candidates)
    theirs = fitter.fit_regress_nn(weighted, data, method=THEIRS[method])
    np.testing.assert_allclose(own, theirs / theirs.sum(), atol=1e-6)
    np.random.seed(0)  # it starts at random
    search = fitter.fit_optimize_positive(weighted, data, method=THEIRS[method])
    np.testing.assert_allclose(own, search / search.sum(), atol=0.02)
    select = peer.model.ModelSelect("s", candidates)
    chosen = fitter.fit_select(select, data, method=THEIRS[method])
    assert fit_form(a, b, "select", method).argmax() == chosen
    between = peer.model.ModelInterpolate("i", candidates)
    theirs = fitter.fit_interpolate(between, data, method=THEIRS[method])
    np.testing.assert_allclose(fit_form(a, b, "interpolate", method), theirs, atol=1e-3)


@pytest.mark.parametrize("method", ["cosine", "pearson"])
@pytest.mark.parametrize("people_parts", [1, 2])
def test_cross_validation_is_rsatoolboxs(method, people_parts):
    models, people = study(5)
    peer, candidates, data = toolbox(models, people)
    from rsatoolbox.inference.evaluate import crossval
    from rsatoolbox.model import fitter

    splits = stimulus_splits(16, splits=3, train=0.5)
    order = np.random.default_rng(1).permutation(4)  # as seed=1 draws people
    groups = np.array_split(order, people_parts)
    train, test = [], []
    for fit, rest in splits:
        for own in groups:
            others = np.setdiff1d(np.arange(4), own) if people_parts > 1 else own
            for sets, who, rows in ((train, others, fit), (test, own, rest)):
                part = data.subset("index", sorted(who)).subset_pattern("index", rows)
                sets.append((part, rows))
    for form, model, fit in (
        ("weighted", peer.model.ModelWeighted, fitter.fit_regress_nn),
        ("select", peer.model.ModelSelect, fitter.fit_select),
        ("interpolate", peer.model.ModelInterpolate, fitter.fit_interpolate),
    ):
        theirs = crossval(
            model("m", candidates),
            data,
            train,
            test,
            method=THEIRS[method],
            fitter=fit,
            calc_noise_ceil=False,
        )
        score, _ = flexible_rsa(models, people, form, method, splits=splits, people=people_parts)
        np.testing.assert_allclose(score.splits, theirs.evaluations.ravel(), atol=1e-4)


@few
@given(seed=seeds, form=st.sampled_from(FORMS), parts=st.integers(1, 2))
def test_the_fit_does_not_see_what_scores(seed, form, parts):
    "Other values for the stimuli and people that score, and for pairs between the parts, change no weight; other values for what is fitted do."
    models, people = study(seed)
    rng = np.random.default_rng(seed)
    fit, test = stimulus_splits(16, splits=1, train=0.5, seed=seed)[0]
    given = dict(form=form, splits=[(fit, test)], people=parts, seed=3)
    score, weights = flexible_rsa(models, people, **given)
    noise = rdm(rng.normal(size=(16, 9)), "sqeuclidean")
    kept = np.zeros((16, 16), dtype=bool)
    kept[np.ix_(fit, fit)] = True
    changed = np.where(kept, people, noise)
    other = {name: np.where(kept, each, noise) for name, each in models.items()}
    for a, b in ((models, changed), (other, people)):
        again, same = flexible_rsa(a, b, **given)
        np.testing.assert_allclose(same, weights, atol=1e-12)
        assert again.value != score.value
    if parts == 2:
        order = np.array_split(np.random.default_rng(3).permutation(4), 2)
        alone = people.copy()
        alone[order[0]] = noise
        _, rows = flexible_rsa(models, alone, **given)
        np.testing.assert_allclose(rows.iloc[0], weights.iloc[0], atol=1e-12)
    between = ~kept
    between[np.ix_(test, test)] = False
    value, _ = flexible_rsa(models, np.where(between, noise, people), **given)
    np.testing.assert_allclose(value.splits, score.splits)


@few
@given(seed=seeds, method=st.sampled_from(sorted(SPACES)))
def test_weights_do_not_depend_on_units_or_on_who_has_large_numbers(seed, method):
    models, people = study(seed)
    rng = np.random.default_rng(seed)
    factor = rng.uniform(0.1, 10, size=3)
    scaled = {name: f * each for f, (name, each) in zip(factor, models.items(), strict=True)}
    loud = people * rng.uniform(0.1, 10, size=(4, 1, 1))
    score, weights = flexible_rsa(models, people, method=method, splits=2)
    again, others = flexible_rsa(scaled, loud, method=method, splits=2)
    np.testing.assert_allclose(again.splits, score.splits)
    back = others * factor
    np.testing.assert_allclose(back.div(back.sum(axis=1), axis=0), weights, atol=1e-9)


@few
@given(seed=seeds, method=st.sampled_from(sorted(SPACES)))
def test_no_weights_agree_better(seed, method):
    "Against bounded least squares by another algorithm, and against random weights."
    models, people = study(seed, models=5)
    a, b = pairs_of(models.values()), pairs_of(people)
    weights = fit_weights(a, b, method)
    x, y = SPACES[method](a), SPACES[method](b)
    target = (y / np.linalg.norm(y, axis=1, keepdims=True)).mean(0)
    found = lsq_linear(x.T, target, bounds=(0, np.inf), tol=1e-13).x
    np.testing.assert_allclose(weights, found / found.sum(), atol=1e-4)

    def value(w):
        return w @ x @ target / np.linalg.norm(w @ x)

    rng = np.random.default_rng(seed)
    tried = [value(w) for w in rng.dirichlet(np.full(5, 0.5), 200)]
    assert value(weights) >= max(tried) - 1e-12


def test_where_nothing_agrees_the_least_bad_model_is_left():
    rng = np.random.default_rng(0)
    one = rng.random((1, 28))
    against = np.stack([2 - one[0], 2 - one[0] + 0.3 * rng.random(28)])
    weights = fit_weights(against, one, "pearson")
    r = [np.corrcoef(each, one[0])[0, 1] for each in against]
    assert max(r) < 0 and weights.tolist() == np.eye(2)[int(np.argmax(r))].tolist()


def test_names_bring_rdms_into_one_order():
    models, people = study(2)
    names = [f"img{i}.png" for i in range(16)]
    rng = np.random.default_rng(0)

    def table(matrix):
        order = rng.permutation(16)
        own = [names[i] for i in order]
        return pd.DataFrame(np.asarray(matrix)[order][:, order], index=own, columns=own)

    order = rng.permutation(16)
    first = {name: np.asarray(each)[order][:, order] for name, each in models.items()}
    labels = [names[i] for i in order]
    first = {n: pd.DataFrame(each, index=labels, columns=labels) for n, each in first.items()}
    score, weights = flexible_rsa(first, [table(each) for each in people], splits=2)
    plain, same = flexible_rsa(
        {name: np.asarray(each)[order][:, order] for name, each in models.items()},
        people[:, order][:, :, order],
        splits=2,
    )
    np.testing.assert_allclose(score.splits, plain.splits)
    np.testing.assert_allclose(weights, same)
    with pytest.raises(DataError, match="rdms"):
        flexible_rsa(first, [table(each).rename(index={"img3.png": "x"}) for each in people])


def test_selection_of_a_constant_candidate_and_a_constant_test_part():
    models, people = study(3)
    kind = np.zeros((16, 16))
    kind[0] = kind[:, 0] = 1
    kind[0, 0] = 0
    fit, test = np.arange(8, 16), np.arange(8)
    given = models | {"one image": kind}
    for form in FORMS:
        _, weights = flexible_rsa(given, people, form, splits=[(fit, test)])
        assert weights["one image"].item() == 0  # constant in the part that is fitted
    with pytest.raises(ValueError, match="not a number"):
        flexible_rsa({"one image": kind}, people, "select", splits=[(test, fit)])


def test_one_model_is_a_plain_comparison():
    models, people = study(4)
    only = {"model 0": models["model 0"]}
    fit, test = stimulus_splits(16, splits=1, train=0.5)[0]
    score, weights = flexible_rsa(only, people, splits=[(fit, test)])
    block = np.ix_(test, test)
    alone = np.mean([compare_rdms(models["model 0"][block], p[block], "pearson") for p in people])
    assert score.value == pytest.approx(alone) and weights.to_numpy().tolist() == [[1.0]]
