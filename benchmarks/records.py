"""Thousands of run records: how long until they are a table, and until that is grouped.

    python benchmarks/records.py [--records 5000] [--repeats 5] [--out benchmarks/records.csv]

The records are written as runs write them: 12 parameters, 6 metrics, 6 rows, an environment. One row a repeat and step:
`load` reads all records into one table, `group` does that and averages 6 metrics in groups of 5 seeds, `command` is
`neurobridge table --group … --to csv` as a process, with Python started and pandas imported.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from neurobridge.core.files import atomic_write, write_json
from neurobridge.lab import group_runs, load_runs
from neurobridge.lab.run.engine import kernel_environment
from neurobridge.lab.run.run_record import environment


def write_records(root: Path, count: int) -> None:
    place = environment()
    for i in range(count):
        params = {
            "width": i // 5,
            "seed": i % 5,
            **{f"parameter_{k}": k / 10 for k in range(8)},
            "dataset": "digits",
            "device": "cpu",
        }
        metrics = {f"metric_{k}": (i * 7 + k) % 101 / 101 for k in range(6)}
        record = {"id": f"{i:012x}", "experiment": "many", "notebook": "nbs/experiments/many.ipynb", "params": params, "given": {}, "status": "done",
                  "started": f"2026-01-01T{i // 3600 % 24:02}:{i // 60 % 60:02}:{i % 60:02}+00:00", "seconds": 1.5, "metrics": metrics, "error": None,
                  "rows": [{"arm": arm, "seed": i % 5, **metrics} for arm in "abcdef"], "report": "report.html", "attempt": 1, "environment": place}  # fmt: skip
        write_json(root / "many" / record["id"] / "run.json", record)


def command(folder: str) -> None:
    words = [
        sys.executable,
        "-c",
        "from neurobridge.lab.cli import app; app()",
        "table",
        "--group",
        "width",
        "--to",
        "csv",
    ]
    subprocess.run(
        words,
        env=kernel_environment() | {"NEUROBRIDGE_RUNS": folder},
        check=True,
        capture_output=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".csv")))
    asked, rows = parser.parse_args(), []
    steps = {
        "load": load_runs,
        "group": lambda folder: group_runs(load_runs(folder), ["width"]),
        "command": command,
    }
    with tempfile.TemporaryDirectory() as folder:
        write_records(Path(folder), asked.records)
        for repeat in range(asked.repeats):
            for step, do in steps.items():
                started, cpu = time.perf_counter(), time.process_time()
                do(folder)
                rows.append({"step": step, "repeat": repeat, "records": asked.records, "seconds": round(time.perf_counter() - started, 3),
                             "own_cpu_seconds": round(time.process_time() - cpu, 3), "cpus": os.cpu_count(), "python": platform.python_version(), "pandas": pd.__version__})  # fmt: skip
                print(rows[-1], flush=True)
    with atomic_write(asked.out) as file:
        pd.DataFrame(rows).to_csv(file, index=False)


if __name__ == "__main__":
    main()
