"""Time neural predictivity against scikit-learn, and a bootstrap over 92 stimuli and 15 subjects against drawing literally.

    python benchmarks/brain.py --out benchmarks/brain.csv          # under 3 minutes on a quiet core; one thread

Predictivity: 640 stimuli, 25,088 features (CORnet-S' IT), 50 targets, PLS with 25 components; both ways do the same `--splits` splits, ours with the Gram
matrix computed anew. `agreement` is the largest difference of a split's score. Bootstrap: `--samples` draws; the literal way does 20 and is scaled.
Seconds are the minimum of `--rounds` for ours, one go for the other.
"""

import argparse
import os
import platform
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from scipy.stats import spearmanr  # noqa: E402
from sklearn.cross_decomposition import PLSRegression  # noqa: E402

from neurobridge.brain.linear import correlation  # noqa: E402
from neurobridge.brain.regression import neural_predictivity, stimulus_splits  # noqa: E402
from neurobridge.brain.rsa import bootstrap_rdms, rdm  # noqa: E402


def timed(way, rounds=1):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        value = way()
        times.append(time.perf_counter() - start)
    return value, min(times)


def population(stimuli, features, targets, seed=0):
    "Features with a spectrum that falls as that of networks does, and targets that are noisy sums of them."
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(stimuli, 300)) / np.sqrt(1 + np.arange(300))
    x = np.maximum(hidden @ rng.normal(size=(300, features)), 0)
    return x, hidden @ rng.normal(size=(300, targets)) + 1.5 * rng.normal(size=(stimuli, targets))


def predictivity(stimuli, features, targets, splits, rounds):
    x, y = population(stimuli, features, targets)
    pairs = stimulus_splits(stimuli, splits=splits)
    ours, fast = timed(lambda: neural_predictivity(x, y, splits=pairs), rounds)
    theirs, slow = timed(
        lambda: [
            np.median(
                correlation(PLSRegression(25, scale=False).fit(x[a], y[a]).predict(x[b]), y[b])
            )
            for a, b in pairs
        ]
    )
    setting = {
        "what": "predictivity",
        "setting": f"{stimuli} stimuli, {features} features, {targets} targets, {splits} splits",
        "agreement": np.abs(ours.splits - theirs).max(),
    }
    return [
        setting | {"way": "scikit-learn", "seconds": slow, "times": 1.0},
        setting | {"way": "neurobridge", "seconds": fast, "times": slow / fast},
    ]


def literal(model, people, samples):
    rng, (i, j) = np.random.default_rng(0), np.triu_indices(92, 1)
    for _ in range(samples):
        chosen = rng.integers(92, size=92)
        keep = chosen[i] != chosen[j]
        a, b = chosen[i][keep], chosen[j][keep]
        np.mean([spearmanr(model[a, b], person[a, b])[0] for person in people])


def bootstrap(samples, rounds):
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(92, 20))
    model, people = (
        rdm(truth),
        np.stack([rdm(truth + 2 * rng.normal(size=(92, 20))) for _ in range(15)]),
    )
    _, fast = timed(lambda: bootstrap_rdms(model, people, samples), rounds)
    few = min(20, samples)
    slow = timed(lambda: literal(model, people, few))[1] * samples / few
    setting = {"what": "bootstrap", "setting": f"92 stimuli, 15 subjects, {samples} draws"}
    return [
        setting | {"way": "literal", "seconds": slow, "times": 1.0},
        setting | {"way": "neurobridge", "seconds": fast, "times": slow / fast},
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="640x25088x50", help="stimuli x features x targets")
    parser.add_argument("--splits", type=int, default=1)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out")
    given = parser.parse_args()
    rows = predictivity(*map(int, given.shape.split("x")), given.splits, given.rounds) + bootstrap(
        given.samples, given.rounds
    )
    table = pd.DataFrame(rows)
    table["seconds"], table["times"] = table.seconds.round(3), table.times.round(1)
    print(table.to_string(index=False))
    if given.out:
        with open(given.out, "w", encoding="utf-8") as file:
            file.write(
                f"# python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} "
                f"cores, OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}\n"
            )
            table.to_csv(file, index=False)
