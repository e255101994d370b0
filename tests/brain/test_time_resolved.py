"Scores over time: entry by entry those of the single calls, in any order of starts, and matched by name."

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from neurobridge.brain import neural_predictivity, score_over_time
from neurobridge.data import Recording

RNG = np.random.default_rng(0)
FIT = dict(components=3, splits=2)
STEPS = {50: RNG.normal(size=(40, 6)), 150: RNG.normal(size=(40, 3, 2))}
BINS = {t: STEPS[50 if t < 100 else 150].reshape(40, 6) @ RNG.normal(size=(6, 9)) + RNG.normal(size=(40, 9)) for t in (60, 120, 180)}  # fmt: skip


def test_entries_are_those_of_the_single_calls():
    fits, shapes = score_over_time(STEPS, BINS, **FIT), score_over_time(STEPS, BINS, "rsa")
    assert fits.index.tolist() == [60, 120, 180] and fits.columns.tolist() == [50, 150]
    for t, y in BINS.items():
        for s, x in STEPS.items():
            assert fits.loc[t, s] == pytest.approx(neural_predictivity(x, y, **FIT).value)
            own, other = (pdist(each.reshape(40, -1), "correlation") for each in (x, y))
            assert shapes.loc[t, s] == pytest.approx(spearmanr(own, other)[0])
    ridge = score_over_time(STEPS, BINS, splits=2, penalties=[1.0])
    alone = neural_predictivity(STEPS[50], BINS[60], splits=2, penalties=[1.0])
    assert ridge.loc[60, 50] == pytest.approx(alone.value)
    assert (fits.idxmax(axis=1) == [50, 150, 150]).all()


def test_the_order_of_starts_and_of_stimuli_makes_no_difference():
    expected = score_over_time(STEPS, BINS, **FIT)
    turned = {t: BINS[t] for t in (180, 60, 120)}
    pd.testing.assert_frame_equal(
        score_over_time({150: STEPS[150], 50: STEPS[50]}, turned, **FIT), expected
    )
    names = [f"s{i}" for i in range(40)]
    recordings = {t: Recording(y[None], names) for t, y in BINS.items()}
    shuffled = {s: pd.DataFrame(x.reshape(40, 6), index=names).iloc[RNG.permutation(40)] for s, x in STEPS.items()}  # fmt: skip
    for measure in ("predictivity", "rsa"):
        pd.testing.assert_frame_equal(
            score_over_time(shuffled, recordings, measure, **FIT),
            score_over_time(STEPS, BINS, measure, **FIT),
        )


def test_a_static_network_and_splits_that_are_a_generator():
    found = score_over_time(STEPS[50], BINS, **FIT)
    assert found.columns.tolist() == [0]
    halves = [(np.arange(20), np.arange(20, 40))]
    one, two = (
        score_over_time(STEPS, BINS, components=3, splits=s) for s in (halves, iter(halves))
    )
    pd.testing.assert_frame_equal(one, two)


def test_what_is_refused():
    for said, wrong in {
        "responses is .*; expected a dict": (STEPS, BINS[60]),
        "states": ({"early": STEPS[50]}, BINS),
        "measure is 'cka'": (STEPS, BINS, "cka"),
        "40": (STEPS[50][:30], BINS),
    }.items():
        with pytest.raises((TypeError, ValueError), match=said):
            score_over_time(*wrong)
