"Several sessions in one table: the estimate by definition and by other programs, coverage on simulated sessions, and the tables."

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurobridge.brain import across_sessions, compare_models
from neurobridge.brain.sessions import random_effects


@given(st.integers(0, 999), st.integers(2, 9), st.sampled_from([0.0, 0.1, 1.0]))
def test_by_definition(seed, sessions, spread):
    rng = np.random.default_rng(seed)
    errors = rng.uniform(0.05, 0.3, sessions)
    values = 0.4 + spread * rng.normal(size=sessions) + errors * rng.normal(size=sessions)
    mean, error, between = random_effects(values, errors)
    w = 1 / (errors**2 + between**2)
    np.testing.assert_allclose([mean, error], [w @ values / w.sum(), w.sum() ** -0.5], rtol=1e-6)
    squares = w @ (values - mean) ** 2
    assert squares == pytest.approx(sessions - 1, rel=1e-6) if between else squares <= sessions - 1
    order = rng.permutation(sessions)
    np.testing.assert_allclose(random_effects(values[order], errors[order]), (mean, error, between))
    scaled = random_effects(100 * values + 7, 100 * errors)
    np.testing.assert_allclose(
        scaled, (100 * mean + 7, 100 * error, 100 * between), rtol=1e-5, atol=1e-3
    )


def test_another_program():
    combine = pytest.importorskip(
        "statsmodels.stats.meta_analysis", reason="statsmodels is not installed"
    ).combine_effects
    rng = np.random.default_rng(0)
    errors = rng.uniform(0.05, 0.3, 8)
    values = 0.4 + 0.2 * rng.normal(size=8) + errors * rng.normal(size=8)
    theirs = combine(values, errors**2, method_re="iterated")
    mean, error, between = random_effects(values, errors)
    np.testing.assert_allclose(
        [mean, error, between**2],
        [theirs.mean_effect_re, theirs.sd_eff_w_re, theirs.tau2],
        rtol=1e-4,
    )


def test_no_spread_and_no_error():
    np.testing.assert_allclose(random_effects(np.full(3, 0.2), np.zeros(3)), (0.2, 0, 0), atol=1e-9)
    assert random_effects(np.zeros(2), np.zeros(2)) == (0, 0, 0)
    mean, error, between = random_effects(np.array([0.1, 0.3]), np.zeros(2))
    np.testing.assert_allclose([mean, error, between], [0.2, 0.1, np.sqrt(0.02)], rtol=1e-5)


def tables(sessions=3, names="ab"):
    rng = np.random.default_rng(0)
    found = {}
    for session in range(sessions):
        x, z, y = rng.normal(size=(3, 60, 5))
        found[session] = compare_models(dict(zip(names, (x, z), strict=True)), x + y, samples=20, splits=2, components=2, train=0.7)  # fmt: skip
    return found


def test_the_tables():
    given = tables()
    scores, pairs = across_sessions(given)
    values = [(one.score["a"], one.error["a"]) for one, _ in given.values()]
    expected = random_effects(*np.array(values).T)
    np.testing.assert_allclose(scores.loc["a", ["score", "error", "between"]].tolist(), expected)
    row, factor = pairs.iloc[0], 4.302652729911275  # t of 2 degrees of freedom
    np.testing.assert_allclose(row.high - row.difference, factor * row.error)
    assert scores.sessions.tolist() == [3, 3] and row["p corrected"] == row.p
    assert row.low < row.difference < row.high and row.difference > 0
    narrow = across_sessions(given, level=0.5)[1].iloc[0]
    assert narrow.high - narrow.low < row.high - row.low


def test_what_is_refused():
    given = tables()
    broken = {**given, 0: (given[0][0].assign(score=np.nan), given[0][1])}
    for said, wrong in {
        "expected at least two": {0: given[0]},
        "expected the same models": given | {3: tables(1, "ac")[0]},
        "expected session -> the two tables": {0: given[0][0], 1: given[1][0]},
        "holds NaN": broken,
        "has a table with the columns": given | {3: (pd.DataFrame({"x": [1]}), given[0][1])},
    }.items():
        with pytest.raises((TypeError, ValueError), match=f"across_sessions: tables.*{said}"):
            across_sessions(wrong)
