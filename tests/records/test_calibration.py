"What the calibration recorded: whole, within the limits that the docstrings claim, and the docstrings say what is recorded."

import re

import pandas as pd
import pytest
from scipy.stats import binomtest

from neurobridge.brain import (
    across_sessions,
    bootstrap_predictivity,
    bootstrap_rdms,
    compare_models,
)
from neurobridge.core import project_root
from neurobridge.g2g import functional_graph

KEY = ["what", "data", "anew", "drawn", "measure"]


@pytest.fixture(scope="module")
def table():
    return pd.read_csv(project_root() / "benchmarks" / "calibration.csv")


def test_it_is_whole(table):
    assert not table.duplicated(KEY).any() and (table.studies >= 500).all()
    for _, row in table.iterrows():
        hits = round(row.value * row.studies)
        limits = binomtest(hits, row.studies).proportion_ci(method="wilson")
        assert row.low == pytest.approx(limits.low, abs=1e-4)
        assert row.high == pytest.approx(limits.high, abs=1e-4)
    assert set(table.what) == {
        "compare_models",
        "bootstrap_predictivity",
        "bootstrap_rdms",
        "across_sessions",
        "functional_graph",
    }


def test_what_is_drawn_as_it_varies_covers_and_rejects(table):
    "In the studies that an interval or test is about: 95 % covered and 5 % rejected to within a point or two beside Monte Carlo error; exact for both samples."
    own = table[(table.what == "compare_models") & (table.anew == table.drawn)]
    assert len(own) == 2 * 3 * 2
    assert (own.high[own.measure == "coverage"] > 0.935).all()
    assert (own.low[own.measure == "rejection"] < 0.06).all()
    both = own[own.drawn == "both"]
    assert (both.high[both.measure == "coverage"] > 0.95).all()
    assert (both.low[both.measure == "rejection"] < 0.05).all()
    permuted = table[(table.drawn == "units permuted") & (table.anew == "units")]
    assert len(permuted) == 2 and (permuted.low < 0.06).all()
    families = table[table.drawn.isin(["both, holm", "both, fdr"])]
    assert len(families) == 4 and (families.low < 0.05).all()
    sessions = table[table.what == "across_sessions"]
    assert len(sessions) == 12
    assert (sessions.high[sessions.measure == "coverage"] > 0.94).all()
    assert (sessions.low[sessions.measure == "rejection"] < 0.06).all()


def test_what_is_not_drawn_costs_what_the_docstring_says(table):
    rows = table[(table.what == "compare_models") & (table.anew == "both")].set_index(["data", "drawn", "measure"])  # fmt: skip
    value = rows.value
    assert value["units", "stimuli", "coverage"] < 0.9 < value["units", "both", "coverage"]
    assert value["units", "stimuli", "rejection"] > 0.1 > value["units", "both", "rejection"]
    assert value["units", "both, none", "any"] > 0.08 > value["units", "both, holm", "any"]


@pytest.mark.parametrize(
    "function",
    [compare_models, bootstrap_predictivity, bootstrap_rdms, across_sessions, functional_graph],
    ids=lambda function: function.__name__,
)
def test_docstrings_say_what_is_recorded(table, function):
    "Each percentage of the sentence on calibration is one of the function's rows, rounded."
    text = re.sub(r"\s+", " ", (function.__doc__ or "").split("Parameters")[0])
    (claims,) = re.findall(
        r"In simulated studies \(`benchmarks/calibration.csv`\)(.*?)\. [A-Z]", text
    )
    numbers = [float(number) for number in re.findall(r"(\d+(?:\.\d)?) %", claims)]
    known = [5, 95, *(100 * table.value[table.what == function.__name__])]
    assert numbers
    for number in numbers:
        assert min(abs(number - each) for each in known) < 0.051, number
