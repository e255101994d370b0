"""One benchmark on an old working tree and on this one, in turns: did a change cost speed?

    git worktree add --detach ../before COMMIT
    python benchmarks/compare.py ../before lif.py --column median_ms --by shape reset pass implementation -- --shapes 16x64x4096 --rounds 3 --clock cpu

Each round runs the benchmark of both trees as a process of its own, in another order every time, with the package of its tree. A row of the
benchmark is known by the columns `--by`; printed are the median over rounds of old time / new time, and the smallest and largest. Above 1 this tree is faster.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd


def measured(
    tree: Path, script: str, arguments: list[str], column: str, by: list[str]
) -> pd.Series:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.csv"
        subprocess.run(
            [sys.executable, str(tree / "benchmarks" / script), *arguments, "--out", str(out)],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(tree)},
        )
        return pd.read_csv(out, comment="#").set_index(by)[column]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, help="working tree of the commit before")
    parser.add_argument("script", help="file in benchmarks/")
    parser.add_argument("--column", required=True, help="time that is compared")
    parser.add_argument("--by", nargs="+", required=True, help="columns that name a row")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, arguments = (
        parser.parse_args(sys.argv[1:cut]),
        sys.argv[cut + 1 :],
    )  # what follows -- is the benchmark's
    trees, ratios = {"old": given.old.resolve(), "new": Path(__file__).resolve().parents[1]}, []
    for k in range(given.rounds):
        times = {
            name: measured(trees[name], given.script, arguments, given.column, given.by)
            for name in (("old", "new"), ("new", "old"))[k % 2]
        }
        ratios.append((times["old"] / times["new"]).rename(k))
    table = pd.concat(ratios, axis=1)
    summary = pd.DataFrame(
        {
            "ratio": table.median(axis=1),
            "smallest": table.min(axis=1),
            "largest": table.max(axis=1),
            "rounds": table.notna().sum(axis=1),
        }
    ).round(3)
    if given.out:
        with given.out.open("w") as file:
            file.write(
                f"# {' '.join(['compare.py', given.script, *arguments])}; "
                f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
                f"{platform.platform()}\n"
            )
            summary.to_csv(file)
    print(summary.to_string())


if __name__ == "__main__":
    main()
