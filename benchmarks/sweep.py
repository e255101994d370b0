"""Forty small runs: the stock papermill command against a sweep, with two workers each.

    python benchmarks/sweep.py [--runs 40] [--workers 2] [--repeats 1] [--out benchmarks/sweep.csv]

The page imports torch, as pages here do, and works for 0.2 s. papermill is run as a person would from a shell, one command a
run, two at a time (`xargs -P 2` in effect). The sweep is timed with everything that it does: workers started, libraries imported,
records and reports written. One row a way and repeat: seconds on the clock, runs a minute.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pandas as pd
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from neurobridge.core.files import atomic_write
from neurobridge.lab.run.engine import kernel_environment

SWEEP = "import sys\nfrom neurobridge.lab import Sweep, run_sweep\nif __name__ == '__main__':\n    found = run_sweep(Sweep.from_yaml(sys.argv[1]), int(sys.argv[2]))\n    sys.exit(int((found.status != 'done').any()))\n"


def page(folder: Path) -> Path:
    cells = [new_markdown_cell("# A small page"), new_code_cell("seed: int = 0", metadata={"tags": ["parameters"]}),
             new_code_cell("import time\nimport torch\nfrom neurobridge.lab.run.execute import record"),
             new_code_cell("torch.manual_seed(seed)\nuntil = time.perf_counter() + 0.2\nx, n = torch.rand(64, 64), 0\nwhile time.perf_counter() < until: x, n = torch.tanh(x @ x), n + 1"),
             new_code_cell("record({'mean': x.mean(), 'seed': seed})")]  # fmt: skip
    nb = new_notebook(cells=cells)
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(nb, folder / "small.ipynb")
    return folder / "small.ipynb"


def papermill(notebook: Path, runs: int, workers: int, env: dict) -> None:
    def one(seed: int) -> None:
        command = [
            sys.executable,
            "-m",
            "papermill",
            "--no-progress-bar",
            str(notebook),
            str(notebook.with_name(f"out-{seed}.ipynb")),
            "-p",
            "seed",
            str(seed),
        ]
        subprocess.run(command, env=env, check=True, capture_output=True)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, range(runs)))


def sweep(notebook: Path, runs: int, workers: int, env: dict) -> None:
    (notebook.parent / "driver.py").write_text(SWEEP)
    (notebook.parent / "small.yaml").write_text(f"notebook: {notebook}\nseeds: {runs}\n")
    subprocess.run(
        [
            sys.executable,
            str(notebook.parent / "driver.py"),
            str(notebook.parent / "small.yaml"),
            str(workers),
        ],
        env=env,
        check=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".csv")))
    asked = parser.parse_args()
    rows = []
    for repeat in range(asked.repeats):
        for way in (papermill, sweep):
            with tempfile.TemporaryDirectory() as folder:
                env = kernel_environment() | {
                    "NEUROBRIDGE_RUNS": f"{folder}/runs",
                    "OMP_NUM_THREADS": "1",
                }
                notebook, started = page(Path(folder)), time.perf_counter()
                way(notebook, asked.runs, asked.workers, env)
                seconds = time.perf_counter() - started
            rows.append({"way": way.__name__, "repeat": repeat, "runs": asked.runs, "workers": asked.workers, "seconds": round(seconds, 2),
                         "runs_a_minute": round(60 * asked.runs / seconds, 1), "cpus": os.cpu_count(), "python": platform.python_version()})  # fmt: skip
            print(rows[-1], flush=True)
    with atomic_write(asked.out) as file:
        pd.DataFrame(rows).to_csv(file, index=False)
    best = pd.DataFrame(rows).groupby("way").seconds.min()
    print(f"throughput of the sweep over papermill: {best['papermill'] / best['sweep']:.2f}")


if __name__ == "__main__":
    main()
