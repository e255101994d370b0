"""Searches with a known optimum, and what pruning saves.

    python benchmarks/search.py [--seeds 10] [--trials 40] [--epochs 20] [--out benchmarks/search.csv]

Part one: Optuna's samplers against random search on two functions whose lowest values are known, Branin (two parameters) and
Hartmann (six), with the classes that a sweep uses. One row a function, sampler, seed and trial: the value, and the best so far
above the optimum. Part two, `search_pruning.csv`: 40 trainings of a small network on scikit-learn's digits (learning rate, width,
momentum), each reporting its validation accuracy after each epoch, without a pruner and with two. One row a pruner and seed: the
best validation accuracy, the epochs trained and the core-seconds. The best is taken among runs that were trained to their end.
Everything runs in this process on one thread, so that seconds are comparable.
"""

import argparse
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from torch import nn

from neurobridge.core.files import atomic_write
from neurobridge.lab.sweep.search import Search, Trials

HARTMANN_A = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
HARTMANN_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)
HARTMANN_C = np.array([1.0, 1.2, 3.0, 3.2])


def branin(values: Mapping[str, float]) -> float:
    x, y = values["x"], values["y"]
    valley = y - 5.1 / (4 * math.pi**2) * x**2 + 5 / math.pi * x - 6
    return valley**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


def hartmann(values: Mapping[str, float]) -> float:
    x = np.array([values[f"x{i}"] for i in range(6)])
    return float(-(HARTMANN_C * np.exp(-(HARTMANN_A * (x - HARTMANN_P) ** 2).sum(1))).sum())


FUNCTIONS = {
    "branin": (
        branin,
        0.39788736,
        {"x": ("uniform", [-5.0, 10.0]), "y": ("uniform", [0.0, 15.0])},
    ),
    "hartmann": (hartmann, -3.32236801, {f"x{i}": ("uniform", [0.0, 1.0]) for i in range(6)}),
}


def functions(seeds: int, trials: int) -> pd.DataFrame:
    rows = []
    for name, (function, optimum, space) in FUNCTIONS.items():
        for sampler in ("random", "tpe", "gp"):
            for seed in range(seeds):
                search = Search(trials, space, {"value": "minimize"}, sampler=sampler, seed=seed)
                asked = Trials(search)
                best = math.inf
                for number in range(trials):
                    one = asked.ask()
                    value = function(one.params)
                    asked.tell(one.number, [value])
                    best = min(best, value)
                    rows.append((name, sampler, seed, number + 1, value, best - optimum))
            print(name, sampler, flush=True)
    return pd.DataFrame(
        rows, columns=["function", "sampler", "seed", "trial", "value", "above_optimum"]
    )


SPACE = {
    "lr": ("log_uniform", [1e-4, 1.0]),
    "width": ("log_integer", [8, 256]),
    "momentum": ("uniform", [0.0, 0.95]),
}


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    found = load_digits()
    x = torch.tensor(found.data, dtype=torch.float32) / 16
    y = torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, valid = order[:1200], order[1200:]
    return x[train], y[train], x[valid], y[valid]


def training(values: Mapping[str, float], seed: int, epochs: int):
    "Yield the validation accuracy after each epoch."
    torch.manual_seed(seed)
    x, y, valid_x, valid_y = digits()
    net = nn.Sequential(
        nn.Linear(64, int(values["width"])), nn.ReLU(), nn.Linear(int(values["width"]), 10)
    )
    optimiser = torch.optim.SGD(net.parameters(), lr=values["lr"], momentum=values["momentum"])
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(32):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimiser.step()
        with torch.no_grad():
            yield (net(valid_x).argmax(1) == valid_y).float().mean().item()


def searched(pruner: str, seed: int, trials: int, epochs: int) -> dict[str, object]:
    pruning = {"max_step": epochs} if pruner == "hyperband" else {}
    search = Search(trials, SPACE, {"a": "maximize"}, seed=seed, pruner=pruner, pruning=pruning)
    asked = Trials(search)
    best = 0.0
    trained = 0
    ended = 0
    began = time.process_time()
    for _ in range(trials):
        one = asked.ask()
        for epoch, accuracy in enumerate(training(one.params, seed, epochs), 1):
            trained += 1
            if asked.report(one.number, epoch, accuracy) and epoch < epochs:
                asked.tell(one.number, state="pruned")
                ended += 1
                break
        else:
            asked.tell(one.number, [accuracy])
            best = max(best, accuracy)
    seconds = time.process_time() - began
    return {"pruner": pruner, "seed": seed, "trials": trials, "epochs": epochs, "best": best, "pruned": ended, "trained_epochs": trained, "core_seconds": round(seconds, 2)}  # fmt: skip


def pruning(seeds: int, trials: int, epochs: int) -> pd.DataFrame:
    rows = []
    for seed in range(seeds):
        for pruner in ("none", "median", "hyperband"):
            rows.append(searched(pruner, seed, trials, epochs))
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".csv")))
    given = parser.parse_args()
    torch.set_num_threads(1)
    out = Path(given.out)
    tables = {
        out: functions(given.seeds, given.trials),
        out.with_name(f"{out.stem}_pruning.csv"): pruning(given.seeds, given.trials, given.epochs),
    }
    for file, table in tables.items():
        with atomic_write(file) as target:
            table.to_csv(target, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
