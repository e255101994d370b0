"""Coverage of 95 % intervals and rejection of true null hypotheses at 5 %, on simulated studies with a known truth.

    python benchmarks/calibration.py                       # 2,000 studies per row
    python benchmarks/calibration.py --only rdms           # rows with this word

Rows that are in the file already, of at least as many studies, stay as they are: an interrupted run goes on where it ended.

A study draws some things anew ("anew": units or people, stimuli, or both) and keeps the others; noise is always new. Intervals and tests draw units,
stimuli or both again ("drawn"). Where the two agree, 95 and 5 % should come out; rows where they differ show what a wrong choice costs. Two models (four for
the corrections) have equal parts of what units respond to, or of the geometry that people share, and are equally good by symmetry. What is kept is
symmetrical, too: each stimulus (unit, person) has a twin for which the models have changed places.

    coverage      intervals of a score that contain the mean of all studies' scores
    rejection     pairs of equally good models, or of independent neurons, with p below 5 %
                  (of sessions: intervals of the difference that contain 0, the truth)
    any           studies of four equally good models in which at least one of six corrected p is below 5 %; or of independent neurons with an edge

`low` and `high` are Wilson's 95 % intervals of these shares. Data: "units" are predictivity of 92 stimuli and 20 units, half of the stimuli to fit on (ridge);
"rdms" are RDMs of 24 stimuli and 10 people; spikes are 1,000 frames of neurons with steady rates, with slow rates of their own, or with one common slow rate.
"""

import argparse
import os
import time
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from scipy.signal import lfilter  # noqa: E402
from scipy.stats import binomtest  # noqa: E402

from neurobridge.brain import (  # noqa: E402
    across_sessions,
    bootstrap_predictivity,
    bootstrap_rdms,
    compare_models,
    rdm,
)
from neurobridge.brain.comparison import corrected_p  # noqa: E402
from neurobridge.g2g import functional_graph  # noqa: E402

KEY = ["what", "data", "anew", "drawn", "measure"]
DRAWN = {"both": {}, "units": {"stimuli": False}, "stimuli": {"units": False}}
PEOPLE = {"both": {}, "units": {"stimuli": False}, "stimuli": {"people": False}}


def stream(seed, part):
    "Random numbers of a part of a study, from 1: NumPy's stream of [seed, 0] is that of `seed`, which the functions draw with."
    return np.random.default_rng([seed, part])


def random(seed, part, shape, new, turned):
    "Normal numbers, new ones or always the same: then the second half is the first with its columns turned."
    if new:
        return stream(seed, part).normal(size=shape)
    half = np.random.default_rng(99).normal(size=(shape[0] // 2, shape[1]))
    return np.concatenate([half, np.roll(half, turned, axis=1)])


def study_of_units(seed, anew, models=2, n=92, cells=20):
    "Features of equally good models, responses, and settings of the fit."
    hidden = random(seed, 1, (n, 8), anew != "units", 4)
    signal = hidden @ random(seed, 2, (cells, 8), anew != "stimuli", 4).T
    y = signal + 2 * stream(seed, 3).normal(size=signal.shape)
    fit = np.arange(n) % (n // 2) < n // 4  # twins are on one side
    splits = [(np.flatnonzero(fit), np.flatnonzero(~fit))]
    parts = dict(zip("abcd", np.split(hidden, models, axis=1), strict=False))
    return parts, y, dict(splits=splits, components=3, penalties=[1.0])


def study_of_people(seed, anew, models=2, n=24, people=10):
    "RDMs of equally good models and of people."
    hidden = random(seed, 1, (n, 12), anew != "units", 6)
    weights = 1 + random(seed, 2, (people, 12), anew != "stimuli", 6) / 2
    noise = stream(seed, 3).normal(size=(people, n, 12))
    each = np.stack([rdm(hidden * own + e, "sqeuclidean") for own, e in zip(weights, noise)])
    parts = np.split(hidden, models, axis=1)
    return {name: rdm(part, "sqeuclidean") for name, part in zip("abcd", parts)}, each


def tables(seed, data, anew, models=2, **given):
    "What `compare_models` returns of one study."
    settings = dict(samples=200, seed=seed) | given
    if data == "units":
        features, y, fit = study_of_units(seed, anew, models)
        return compare_models(features, y, **fit | settings)
    found, people = study_of_people(seed, anew, models)
    return compare_models(found, rdms=people, **{"method": "pearson"} | settings)


def compared(seed, **given):
    "Score and interval of the first model, and p of the pair."
    scores, pairs = tables(seed, **given)
    return (*scores.iloc[0][["score", "low", "high"]], pairs.p.iloc[0])


@cache
def family(seed, data, anew):
    "p of all pairs of four models, which the corrections share."
    pairs = tables(seed, data, anew, models=4, correction="none")[1]
    return pairs.p.to_numpy(dtype=float)


def corrected(seed, data, anew, correction):
    "The least corrected p of all pairs of four models."
    return np.nan, np.nan, np.nan, corrected_p(family(seed, data, anew), correction).min()


def quantiles_of_units(seed, anew, drawn):
    features, y, fit = study_of_units(seed, anew)
    draws = bootstrap_predictivity(features["a"], y, samples=200, seed=seed, **fit | DRAWN[drawn])
    score = compare_models({"a": features["a"]}, y, **fit, samples=2)[0].score.iloc[0]
    return score, *np.quantile(draws, [0.025, 0.975]), np.nan


def quantiles_of_people(seed, anew, drawn):
    found, people = study_of_people(seed, anew)
    given = found["a"], people
    draws = bootstrap_rdms(*given, 200, "pearson", seed=seed, **PEOPLE[drawn])
    score = bootstrap_rdms(*given, 1, "pearson", stimuli=False, people=False).item()
    return score, *np.quantile(draws, [0.025, 0.975]), np.nan


def spikes(seed, kind, neurons=2, frames=1000, rate=0.05):
    "Independent neurons, but for a common slow rate."
    rng = stream(seed, 1)
    steps = rng.normal(size=(frames, 1 if kind == "common rate" else neurons))
    slow = lfilter([np.sqrt(1 - 0.98**2)], [1, -0.98], steps, axis=0)
    rates = rate * (1 if kind == "steady" else np.exp(slow - 0.5))
    return (rng.random((frames, neurons)) < rates).astype(np.float32)


def graph_of(seed, data, anew, drawn, fdr=None):
    "0 where there is an edge (from the first neuron to the second, or any with `fdr`), 1 where there is none."
    given = dict(shifts=99, threshold=1.6448) if fdr is None else dict(shifts=299, fdr=fdr)
    x = spikes(seed, data, 2 if fdr is None else 4)
    edges = functional_graph(x, dt=1, surrogate=drawn, seed=seed, **given).edges
    hit = edges[0, 1] if fdr is None else edges.any()
    return np.nan, np.nan, np.nan, 0.0 if hit else 1.0


def table_of_sessions(seed, data, anew, drawn, sessions):
    "Interval and p of a difference that is 0 on the average of all sessions, `spread` times its error apart."
    rng = stream(seed, 1)
    spread = {"alike": 0.0, "apart": 1.0, "far apart": 3.0}[data]
    scores = pd.DataFrame({"score": [0.5, 0.5], "error": 0.02}, index=["a", "b"])
    days = {}
    for day in range(sessions):
        error = rng.uniform(0.02, 0.06)
        value = 0.04 * spread * rng.normal() + error * rng.normal()
        pair = pd.DataFrame({"difference": [value], "error": error}, index=["a, b"])
        days[day] = scores, pair
    row = across_sessions(days)[1].iloc[0]
    return 0.0, row.low, row.high, row.p


def settings():
    "Labels of each setting, its simulation, and the names of what is measured."
    intervals, test = ("coverage", "rejection"), ("rejection",)
    ways = [(a, a) for a in ("both", "units", "stimuli")] + [("both", "units"), ("both", "stimuli")]
    for data in ("units", "rdms"):
        for anew, drawn in ways:
            given = dict(data=data, anew=anew) | DRAWN[drawn]
            yield ("compare_models", data, anew, drawn), compared, given, intervals
        for anew in ("units", "both"):
            given = dict(data=data, anew=anew, test="permutation", stimuli=False)
            yield ("compare_models", data, anew, "units permuted"), compared, given, test
        for how in ("none", "holm", "fdr"):
            given = dict(data=data, anew="both", correction=how)
            labels = "compare_models", data, "both", f"both, {how}"
            yield labels, corrected, given, ("any",)
        name, simulate = {
            "units": ("bootstrap_predictivity", quantiles_of_units),
            "rdms": ("bootstrap_rdms", quantiles_of_people),
        }[data]
        for anew, drawn in ways[:3]:
            given = dict(anew=anew, drawn=drawn)
            yield (name, data, anew, drawn), simulate, given, ("coverage",)
    given = dict(data="rdms", anew="both", method="spearman")
    yield ("compare_models", "rdms", "both", "both, spearman"), compared, given, intervals
    for data in ("alike", "apart", "far apart"):
        for sessions in (3, 8):
            labels = "across_sessions", data, "sessions", f"{sessions} sessions"
            given = dict(zip(("data", "anew", "drawn"), labels[1:])) | {"sessions": sessions}
            yield labels, table_of_sessions, given, intervals
    for data in ("steady", "own rates", "common rate"):
        for drawn in ("rotate", "shuffle", "jitter", "dither"):
            labels = "functional_graph", data, "spikes", drawn
            yield labels, graph_of, dict(zip(("data", "anew", "drawn"), labels[1:])), test
    for drawn in ("rotate", "shuffle"):
        given = dict(data="steady", anew="spikes", drawn=drawn, fdr=0.05)
        yield ("functional_graph", "steady", "spikes", f"{drawn}, fdr"), graph_of, given, ("any",)


def share(hits):
    "A share with its Monte Carlo interval."
    limits = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return {"value": hits.mean(), "low": limits.low, "high": limits.high, "studies": len(hits)}


def rows(simulate, count, given, measures):
    score, low, high, p = np.array([simulate(seed, **given) for seed in range(count)]).T
    inside = (low <= score.mean()) & (score.mean() <= high)
    return [{"measure": m} | share(inside if m == "coverage" else p < 0.05) for m in measures]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000, help="studies per row")
    parser.add_argument("--only", nargs="+", default=[], help="rows whose labels contain all these")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/calibration.csv"))
    given = parser.parse_args()
    for labels, simulate, arguments, measures in settings():
        done = (
            pd.read_csv(given.out)
            if given.out.exists()
            else pd.DataFrame(columns=[*KEY, "studies"])
        )
        same = (done[KEY[:4]] == list(labels)).all(axis=1) & (done.studies >= given.count)
        if same.any() or not all(word in labels for word in given.only):
            continue
        start = time.perf_counter()
        found = rows(simulate, given.count, arguments, measures)
        table = pd.DataFrame([dict(zip(KEY, labels)) | row for row in found]).round(4)
        table = pd.concat([done, table]) if len(done) else table
        table = table[[*KEY, "value", "low", "high", "studies"]].drop_duplicates(KEY, keep="last")
        given.out.write_text(table.to_csv(index=False))
        print(*labels, *(f"{r['measure']} {r['value']:.3f}" for r in found), end=" ")
        print(f"{time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
