"""Time the functional graph of a whole recording: all pairs' STTC, and chance by circular shifts.

    python benchmarks/functional.py --out benchmarks/functional.csv          # less than two minutes on two cores

A simulated recording of planted ensembles, `--neurons` by `--frames`. Wall clock and the time the processors computed are both written, each the best
of `--rounds`: where `core_s` is much below `wall_s` times the threads, something else held the cores. Rows:

    graph      `functional_graph`: the coefficient of all directed pairs, and of all pairs again for each of `--shifts` rotations
    sttc       `sttc`: the coefficients alone
    formula    the formula as it stands, from lists of spike times, for `--pairs` pairs; `all_pairs_s` is what all of them would take at that pace

All coefficients of the pairs that the formula was asked for must agree to 1e-12, which the script checks before it writes.
"""

import argparse
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from neurobridge.g2g import functional_graph, simulate_ensembles, sttc


def near(times: np.ndarray, others: np.ndarray, early: int, late: int) -> np.ndarray:
    "Which of `times` have one of `others` from `early` frames before to `late` frames after."
    first = np.searchsorted(others, times - early)
    return (first < len(others)) & (others[np.minimum(first, len(others) - 1)] <= times + late)


def formula(a: np.ndarray, b: np.ndarray, dt: int, frames: int) -> float:
    "Directed STTC of two neurons from their spike times."
    every = np.arange(frames)
    p_a, p_b, t_a, t_b = (
        near(*what).mean()
        for what in ((a, b, 0, dt), (b, a, dt, 0), (every, a, dt, 0), (every, b, 0, dt))
    )
    return ((p_a - t_b) / (1 - p_a * t_b) + (p_b - t_a) / (1 - p_b * t_a)) / 2


def best(run, rounds: int) -> tuple[float, float]:
    wall, core = [], []
    for _ in range(rounds):
        clock, used = time.perf_counter(), time.process_time()
        run()
        wall.append(time.perf_counter() - clock)
        core.append(time.process_time() - used)
    return min(wall), min(core)


def measure(neurons: int, frames: int, dt: int, shifts: int, pairs: int, rounds: int):
    spikes = simulate_ensembles(neurons, frames, ensembles=neurons // 20)[0]
    times = [np.flatnonzero(column) for column in spikes.t().numpy()]
    chosen = np.random.default_rng(0).integers(neurons, size=(pairs, 2))
    slow = [formula(times[i], times[j], dt, frames) for i, j in chosen]
    np.testing.assert_allclose(
        sttc(spikes, spikes, dt)[chosen[:, 0], chosen[:, 1]], slow, atol=1e-12
    )
    shape = {"neurons": neurons, "frames": frames, "dt": dt}
    for what, count, run in (("graph", shifts, lambda: functional_graph(spikes, dt, shifts)), ("sttc", 0, lambda: sttc(spikes, spikes, dt)),
                             ("formula", 0, lambda: [formula(times[i], times[j], dt, frames) for i, j in chosen])):  # fmt: skip
        wall, core = best(run, rounds)
        scale = neurons**2 / pairs if what == "formula" else 1
        yield {
            "what": what,
            **shape,
            "shifts": count,
            "wall_s": round(wall, 4),
            "core_s": round(core, 4),
            "all_pairs_s": round(wall * scale, 4),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--neurons", type=int, default=200)
    parser.add_argument("--frames", type=int, default=12_000)
    parser.add_argument("--shifts", type=int, default=50)
    parser.add_argument(
        "--dt", type=int, nargs="+", default=[0, 2], help="how near is near (frames)"
    )
    parser.add_argument("--pairs", type=int, default=400, help="pairs for the formula")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/functional.csv"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    load = os.getloadavg()[0]
    rows = [
        row
        for dt in given.dt
        for row in measure(given.neurons, given.frames, dt, given.shifts, given.pairs, given.rounds)
    ]
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    head = [
        f"{model}, {given.threads} threads, {platform.system()} {platform.release()}, load "
        f"{load:.1f} at the start",
        f"torch {version('torch')}, numpy {version('numpy')}",
    ]
    given.out.write_text(
        "".join(f"# {line}\n" for line in head) + pd.DataFrame(rows).to_csv(index=False)
    )
    print(given.out.read_text())


if __name__ == "__main__":
    main()
