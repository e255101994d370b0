"""Coverage of 95 % intervals and rejection of true null hypotheses at 5 %, on simulated studies with a known truth.

    python benchmarks/calibration.py --out benchmarks/calibration.csv          # about 20 minutes on one core

Each study draws stimuli, units or people, and noise anew ("anew"), or keeps the stimuli ("fixed", which is what the permutation test is about). Two models
have one half each of what a unit responds to, or of the geometry that people share, and are equally good. Coverage counts intervals that contain the mean
of all studies' scores, rejection the pairs of these two models with p below 5 %; `low` and `high` are Wilson's 95 % intervals of either. Rows:

    compare_models             intervals and tests of its two tables, of predictivity ("units") and of RDMs ("rdms"); what is drawn again is in `drawn`
    bootstrap_predictivity     quantiles of its draws as an interval
    bootstrap_rdms             likewise
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from scipy.stats import binomtest  # noqa: E402

from neurobridge.brain import bootstrap_predictivity, bootstrap_rdms, compare_models, rdm  # noqa: E402

BOTH, UNITS, STIMULI = {}, {"stimuli": False}, {"units": False}


def stimuli(rng, n, width, fixed):
    "Hidden properties; fixed ones are the same in all studies and treat both halves of them alike."
    if not fixed:
        return rng.normal(size=(n, width))
    half = np.random.default_rng(99).normal(size=(n // 2, width))
    return np.concatenate([half, np.roll(half, width // 2, axis=1)])


def study_of_units(seed, n=90, cells=20, fixed=False):
    "Features of two models, responses, and settings of the fit."
    rng = np.random.default_rng(seed)
    n += n % 4 if fixed else 0
    hidden = stimuli(rng, n, 8, fixed)
    signal = hidden @ rng.normal(size=(8, cells))
    y = signal + 2 * rng.normal(size=signal.shape)
    rows = np.arange(n)
    fit = rows % (n // 2) < n // 4 if fixed else rows < n // 2  # both of a pair on one side
    settings = dict(splits=[(rows[fit], rows[~fit])], components=3, penalties=[1.0])
    return {"a": hidden[:, :4], "b": hidden[:, 4:]}, y, settings


def study_of_people(seed, n=24, people=10, fixed=False):
    "RDMs of two models and of people."
    rng = np.random.default_rng(seed)
    hidden = stimuli(rng, n, 12, fixed)
    weights = 1 + rng.normal(size=(people, 12)) / 2
    each = [rdm(hidden * own + rng.normal(size=hidden.shape), "sqeuclidean") for own in weights]
    halves = hidden[:, :6], hidden[:, 6:]
    return dict(zip("ab", (rdm(half, "sqeuclidean") for half in halves))), np.stack(each)


def simulated_units(seed, draws=200, fixed=False, **given):
    "Score, interval and p of one study."
    models, y, settings = study_of_units(seed, fixed=fixed)
    table, pairs = compare_models(models, y, **settings | dict(samples=draws, seed=seed) | given)
    return (*table.iloc[0][["score", "low", "high"]], pairs.p.iloc[0])


def simulated_people(seed, draws=200, fixed=False, **given):
    "Likewise, of RDMs."
    models, people = study_of_people(seed, fixed=fixed)
    settings = dict(rdms=people, method="pearson", samples=draws, seed=seed)
    table, pairs = compare_models(models, **settings | given)
    return (*table.iloc[0][["score", "low", "high"]], pairs.p.iloc[0])


def quantiles_of_units(seed, draws=200, **given):
    models, y, settings = study_of_units(seed)
    settings |= dict(samples=draws, seed=seed) | given
    found = bootstrap_predictivity(models["a"], y, **settings)
    score = compare_models({"a": models["a"]}, y, **settings | {"samples": 2})[0].score.iloc[0]
    return score, *np.quantile(found, [0.025, 0.975]), np.nan


def quantiles_of_people(seed, draws=200, stimuli=True, units=True):
    models, people = study_of_people(seed)
    found = bootstrap_rdms(
        models["a"], people, draws, "pearson", stimuli=stimuli, people=units, seed=seed
    )
    score = bootstrap_rdms(models["a"], people, 1, "pearson", stimuli=False, people=False)
    return score.item(), *np.quantile(found, [0.025, 0.975]), np.nan


def share(hits):
    "A share with its Monte Carlo interval."
    limits = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return hits.mean(), limits.low, limits.high


def calibration(simulate, count, **given):
    "Coverage of the first model's intervals, and rejection of a pair that is equally good."
    score, low, high, p = np.array([simulate(seed, **given) for seed in range(count)]).T
    truth = score.mean()
    found = {"coverage": share((low <= truth) & (truth <= high))}
    if np.isfinite(p).all():
        found["rejection"] = share(p < 0.05)
    return found


PERMUTED = {"test": "permutation"}
SETTINGS = [
    ("compare_models", "units", simulated_units, "anew", "both", BOTH),
    ("compare_models", "units", simulated_units, "anew", "units", UNITS),
    ("compare_models", "units", simulated_units, "anew", "stimuli", STIMULI),
    ("compare_models", "units", simulated_units, "fixed", "permuted units", PERMUTED | UNITS),
    ("compare_models", "units", simulated_units, "anew", "permuted units", PERMUTED | UNITS),
    ("compare_models", "rdms", simulated_people, "anew", "both", BOTH),
    ("compare_models", "rdms", simulated_people, "anew", "people", UNITS),
    ("compare_models", "rdms", simulated_people, "anew", "stimuli", STIMULI),
    ("compare_models", "rdms", simulated_people, "fixed", "permuted people", PERMUTED | UNITS),
    ("compare_models", "rdms", simulated_people, "anew", "permuted people", PERMUTED | UNITS),
    ("bootstrap_predictivity", "units", quantiles_of_units, "anew", "both", BOTH),
    ("bootstrap_predictivity", "units", quantiles_of_units, "anew", "units", UNITS),
    ("bootstrap_predictivity", "units", quantiles_of_units, "anew", "stimuli", STIMULI),
    ("bootstrap_rdms", "rdms", quantiles_of_people, "anew", "both", BOTH),
    ("bootstrap_rdms", "rdms", quantiles_of_people, "anew", "people", UNITS),
    ("bootstrap_rdms", "rdms", quantiles_of_people, "anew", "stimuli", STIMULI),
]  # fmt: skip


def rows(count):
    for what, data, simulate, kept, drawn, given in SETTINGS:
        more = {"fixed": True} if kept == "fixed" else {}
        found = calibration(simulate, count, **given | more)
        for measure, (value, low, high) in found.items():
            if (drawn.startswith("permuted") or kept == "fixed") and measure == "coverage":
                continue  # intervals of these settings stand in other rows
            row = {"what": what, "data": data, "stimuli": kept, "drawn": drawn, "measure": measure}
            print(row | {"value": round(value, 4)}, flush=True)
            yield row | {"value": value, "low": low, "high": high, "studies": count}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000, help="studies per row")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/calibration.csv"))
    given = parser.parse_args()
    table = pd.DataFrame(rows(given.count)).round(4)
    given.out.write_text(table.to_csv(index=False))
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
