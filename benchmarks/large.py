"""Score features that are larger than memory: recorded batch by batch into a file, then read in slabs. Memory is measured from outside.

    python benchmarks/large.py --out benchmarks/large.csv          # 8 GB in --folder for the time of the run; some 10 minutes on two cores

A layer of `--features` units responds to `--stimuli` images (10,000 x 200,000 float32 numbers are 8 GB). A child process records it (`record_layers(...,
folder=)`), computes inner products (`Gram`) and scores two regions of `--units` units with them (PLS of 25 components, `--splits` splits). Another process reads
the child's peak of resident memory, pages of mapped files included, from /proc after each part. Rows:

    record, gram, score     seconds, and the peak up to here (GB)
    part                    the first `--part` stimuli, scored from the file and from memory: `agreement` is the largest difference of a unit's score
    scikit-learn            PLSRegression on that part from memory: one split; `seconds` of ours on the same split beside it ("part")
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

LAYER = "2"


def network(features):
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, features), nn.ReLU())


def images(stimuli):
    import torch

    return torch.randn(stimuli, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def responses(stimuli, units):
    "Two regions: noisy sums of the pixels."
    rng = np.random.default_rng(2)
    x = images(stimuli).flatten(1).numpy().astype(np.float64)
    return [x @ rng.normal(size=(64, units)) + 8 * rng.normal(size=(stimuli, units)) for _ in "ab"]


def splits_of(stimuli, splits):
    from neurobridge.brain.regression import stimulus_splits

    return stimulus_splits(stimuli, splits=splits)


def child(given):
    "The parts that are measured; after each, the parent reads how much memory was needed."
    import torch

    from neurobridge.brain import Gram, neural_predictivity, record_layers

    torch.set_num_threads(given.threads)
    start = time.perf_counter()

    def done(what, note=""):
        nonlocal start
        print(f"{what},{time.perf_counter() - start},{note}", flush=True)
        sys.stdin.readline()  # the parent has read our memory
        start = time.perf_counter()

    done("imports")
    found = record_layers(
        network(given.features), images(given.stimuli), [LAYER], folder=given.folder
    )
    done("record")
    gram = Gram(found[LAYER][0])
    done("gram")
    pairs = splits_of(given.stimuli, given.splits)
    scores = [
        neural_predictivity(gram, y, splits=pairs) for y in responses(given.stimuli, given.units)
    ]
    done("score", " ".join(f"{score.value:.4f}" for score in scores))


def peak(pid):
    "The largest resident memory of a process so far (GB)."
    status = Path(f"/proc/{pid}/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) * 1024 / 1e9


def measured(given):
    command = [sys.executable, __file__, "--child", "--folder", str(given.folder)]
    for name in ("stimuli", "features", "units", "splits", "threads"):
        command += [f"--{name}", str(getattr(given, name))]
    surroundings = os.environ | {"OMP_NUM_THREADS": str(given.threads)}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=surroundings
    )
    assert process.stdin is not None and process.stdout is not None
    for line in process.stdout:
        what, seconds, note = line.strip().split(",")
        yield {
            "what": what,
            "seconds": float(seconds),
            "peak_gb": peak(process.pid),
            "score": note,
        }
        process.stdin.write("\n")
        process.stdin.flush()
    assert process.wait() == 0, "the child failed"


def part(given):
    "Scores of some stimuli from the file and from memory, and scikit-learn's time for one split."
    from sklearn.cross_decomposition import PLSRegression

    from neurobridge.brain import neural_predictivity

    mapped = np.load(given.folder / f"{LAYER}.npy", mmap_mode="r")[0][: given.part]
    memory, y = np.array(mapped), responses(given.stimuli, given.units)[0][: given.part]
    pairs = splits_of(given.part, 1)
    one = neural_predictivity(mapped, y, splits=pairs)
    start = time.perf_counter()
    two = neural_predictivity(memory, y, splits=pairs)
    ours = time.perf_counter() - start
    rows, rest = pairs[0]
    start = time.perf_counter()
    theirs = PLSRegression(25, scale=False).fit(memory[rows], y[rows]).predict(memory[rest])
    seconds = time.perf_counter() - start
    each = [np.corrcoef(a, b)[0, 1] for a, b in zip(theirs.T, y[rest].T)]
    yield {
        "what": "part",
        "seconds": ours,
        "agreement": np.abs(one.units - two.units).max(),
        "score": f"{two.value:.4f}",
    }
    yield {
        "what": "scikit-learn",
        "seconds": seconds,
        "agreement": np.abs(two.units[0] - each).max(),
        "score": f"{np.median(each):.4f}",
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stimuli", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=200_000)
    parser.add_argument("--units", type=int, default=50, help="of each region")
    parser.add_argument("--splits", type=int, default=2)
    parser.add_argument("--part", type=int, default=500, help="stimuli that memory holds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="for the files; default: a temporary one")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/large.csv"))
    given = parser.parse_args()
    if given.child:
        return child(given)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        given.folder = Path(folder)
        table = pd.DataFrame([*measured(given), *part(given)])
    head = (
        f"# {given.stimuli} stimuli x {given.features} features, two regions of {given.units} units, "
        f"{given.splits} splits; part of {given.part}; {given.threads} threads, "
        f"{platform.machine()}, python {platform.python_version()}\n"
    )
    table["seconds"], table["peak_gb"] = table.seconds.round(2), table.peak_gb.round(3)
    given.out.write_text(head + table.to_csv(index=False))
    print(given.out.read_text())


if __name__ == "__main__":
    main()
