"""Try the package with other versions of what it needs: `make test-versions`.

    python tools/versions.py [--keep FOLDER] [lowest] [newest] [wheel] [-- ARGUMENTS OF PYTEST]

* lowest: each package at the lower bound in `settings.ini`; the quick tests
* newest: each package as new as it can be, or with CONSTRAINED=1 as new as `constraints.txt` says; the quick tests, and if all
  pass without constraints, `constraints.txt` is written anew
* wheel: all pages, in a folder of their own, with the package from a wheel and nothing of the checkout

Each makes an environment of its own, several GB with torch, in the temporary folder, and removes it. With `--keep` the environment
stays in FOLDER, with the results of each part (a folder of tests, a page): the same command goes on after an interruption, and runs
a part that failed again, but not what has passed. What was installed, how the tests went and the day are written to
`tests/versions.csv`, whose lines for other environments stay.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "tests" / "versions.csv"
CONSTRAINTS = ROOT / "constraints.txt"
HEAD = """# The newest versions with which all quick tests have passed: {when}, Python {python}.
# Written by `make test-versions`, used by `make`; `make LATEST=1` installs without it.
"""
OWN = ("neurobridge", "neurobridge-lab", "pip", "setuptools", "uv", "wheel")  # not constrained
TORCHS = ("cuda-", "nvidia-", "triton")  # beginnings of names whose versions torch itself dictates
WORKERS = os.environ.get("WORKERS", "2")
CONSTRAINED = bool(os.environ.get("CONSTRAINED"))

Line = tuple[str, str, str, str]  # environment, kind, name, value

# the packages of an environment, and which Pythons each is for
LIST = """
import json
from importlib.metadata import distributions
found = {each.metadata["Name"]: each for each in distributions()}.values()
print(json.dumps([(d.metadata["Name"], d.version, d.metadata["Requires-Python"]) for d in found]))
"""

# what a page needs of the package, and no more: run in the folder of the pages
RUN_PAGE = """
import sys
import nbformat
from nbclient import NotebookClient
from neurobridge.lab.run.page import why_left_out
page = nbformat.read(sys.argv[1], as_version=4)
page.cells = [c for c in page.cells if c.cell_type != "code" or not why_left_out(c.source, False)]
NotebookClient(page, timeout=900, resources={"metadata": {"path": sys.argv[2]}}).execute()
"""


def settings() -> Mapping[str, str]:
    "Return the entries of settings.ini."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def requirements() -> dict[str, str]:
    "Return what settings.ini asks for: a package's name to all that is said of its versions."
    found: dict[str, str] = {}
    for key, value in settings().items():
        if key == "requirements" or key.endswith("_requirements"):
            for text in value.split():
                name, rest = re.match(r"([\w.-]+)(?:\[\w+\])?(.*)", text).groups()
                name = re.sub(r"[-_.]+", "-", name).lower()
                if found.setdefault(name, rest) != rest:
                    raise SystemExit(f"settings.ini asks for {name}{rest} and {name}{found[name]}")
    return found


def lower_bounds() -> dict[str, str]:
    "Return the lowest version of each package that settings.ini allows."
    found = {}
    for name, rest in requirements().items():
        if not (bound := re.search(r"[>=]=([\w.]+)", rest)):
            raise SystemExit(f"settings.ini gives no lower bound for {name}")
        found[name] = bound[1]
    return found


def run(*command: str | Path, **settings: object) -> subprocess.CompletedProcess:
    "Show a command and run it from the checkout."
    print("$", *(str(word).strip().partition("\n")[0] for word in command), flush=True)
    return subprocess.run([str(word) for word in command], **{"cwd": ROOT, **settings})


def environment(folder: Path, *what: str | Path) -> Path:
    "Make an environment with packages installed by uv, unless it is there; return its Python."
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        run(sys.executable, "-m", "venv", "--clear", folder, check=True)
        run(python, "-m", "pip", "install", "--quiet", "uv", check=True)
        run(python, "-m", "uv", "pip", "install", "--quiet", "--python", folder, *what, check=True)
        ready.touch()
    return python


def installed(python: Path, for_all: bool = False) -> dict[str, str]:
    "Return the versions of the packages in an environment; `for_all`: only what any Python takes."
    listed = run(python, "-P", "-c", LIST, check=True, capture_output=True, text=True)
    oldest = f"{settings()['min_python']}.0"
    return {
        re.sub(r"[-_.]+", "-", name).lower(): version.partition("+")[0]
        for name, version, pythons in sorted(json.loads(listed.stdout))
        if not for_all or SpecifierSet(pythons or "").contains(oldest)
    }


def test_parts() -> list[str]:
    "Return the folders of tests, and the tests in none, each of which is a part of a run."
    found = {test.relative_to(ROOT).parts[1] for test in (ROOT / "tests").rglob("test_*.py")}
    return sorted(f"tests/{name}" for name in found)


def quick_tests(python: Path, folder: Path, more: list[str]) -> dict[str, int]:
    "Run the quick tests part by part; return how many passed, failed and were skipped."
    total: Counter[str] = Counter(passed=0, failed=0, skipped=0)
    marks = ("-m", "not long and not slow", "--continue-on-collection-errors")
    many = ("-n", WORKERS, "--dist", "loadfile")
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    for part in test_parts():
        file = folder / f"{part.replace('/', '-')}.xml"  # written when the part has ended
        if not file.exists() or counts(file)["failed"]:
            file.unlink(missing_ok=True)
            report = f"--junitxml={file}"
            run(python, "-m", "pytest", *many, *marks, report, part, *more, env=one_thread)
        total.update(counts(file))
    return dict(total)


def counts(file: Path) -> dict[str, int]:
    "Return the numbers in a report of pytest's."
    suites = ElementTree.parse(file).getroot().iter("testsuite")
    total = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in suites:
        total = {name: number + int(suite.get(name, 0)) for name, number in total.items()}
    failed = total["failures"] + total["errors"]
    passed = total["tests"] - failed - total["skipped"]
    return {"passed": passed, "failed": failed, "skipped": total["skipped"]}


def lines(name: str, python: Path, found: dict[str, int], what: str) -> list[Line]:
    "Return the lines of an environment: the day, Python, the counts and the packages' versions."
    there = installed(python)
    when = datetime.now(UTC).date().isoformat()
    version = run(python, "-V", check=True, capture_output=True, text=True).stdout.split()[1]
    return [
        (name, "date", "", when),
        (name, "version", "python", version),
        *((name, what, word, str(number)) for word, number in found.items()),
        *((name, "version", each, there[each]) for each in requirements()),
    ]


def lowest(folder: Path, more: list[str]) -> list[Line]:
    "Try the lower bounds."
    how = ["--resolution", "lowest-direct"]
    how += ["--refresh-package", settings()["lib_name"]]  # uv keeps what a checkout once asked for
    python = environment(folder / "venv", *how, "--editable", ".[dev,docs]")
    return lines("lowest", python, quick_tests(python, folder, more), "tests")


def newest(folder: Path, more: list[str]) -> list[Line]:
    "Try the newest versions; write the constraints if all tests pass without them."
    pinned = ("--constraint", CONSTRAINTS) if CONSTRAINED else ()
    python = environment(folder / "venv", *pinned, "--editable", ".[dev,docs]")
    found = quick_tests(python, folder, more)
    if found["failed"] == 0 and not more and not CONSTRAINED:
        write_constraints(python)
    return lines("newest", python, found, "tests")


def write_constraints(python: Path) -> None:
    "Write the versions of an environment as constraints; what not every Python takes is left out."
    wanted = requirements()
    there = {
        name: each
        for name, each in installed(python, for_all=True).items()
        if name in wanted or not (name in OWN or name.startswith(TORCHS))
    }
    version = run(python, "-V", check=True, capture_output=True, text=True).stdout.split()[1]
    when = datetime.now(UTC).date().isoformat()
    pinned = "".join(f"{name}=={each}\n" for name, each in there.items())
    CONSTRAINTS.write_text(HEAD.format(when=when, python=version) + pinned)


def wheel(folder: Path, more: list[str]) -> list[Line]:
    "Run all pages with the package from a wheel, away from the checkout."
    pages = folder / "pages"
    if not pages.exists():
        build = ("-m", "pip", "wheel", "--quiet", "--no-deps")
        run(sys.executable, *build, "--wheel-dir", folder / "wheels", ".", check=True)
        shutil.copytree(
            ROOT / "nbs", pages, ignore=lambda _, names: [n for n in names if n[0] in "_."]
        )
    (made,) = (folder / "wheels").glob("*.whl")
    pinned = ("--constraint", CONSTRAINTS)
    python = environment(folder / "venv", *pinned, f"{made}[all]")
    found = {"passed": 0, "failed": 0}
    for page in sorted(pages.rglob("*.ipynb")):
        passed = page.with_suffix(".passed")
        if not passed.exists():
            ran = run(python, "-P", "-c", RUN_PAGE, page, page.parent, cwd=page.parent)
            if ran.returncode == 0:
                passed.touch()
        found["passed" if passed.exists() else "failed"] += 1
    return lines("wheel", python, found, "pages")


def write_table(name: str, new: list[Line]) -> None:
    "Put the lines of an environment in the place of its old ones."
    old = []
    if TABLE.exists():
        with open(TABLE, newline="") as file:
            old = [tuple(row) for row in list(csv.reader(file))[1:] if row[0] != name]
    with open(TABLE, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("environment", "kind", "name", "value"))
        writer.writerows(sorted({*old, *new}))


@contextmanager
def kept_folder(folder: Path | None) -> Iterator[Path]:
    "Yield the folder, made if it is not there; without one, a folder that is removed afterwards."
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="nb-versions-") as place:
            yield Path(place)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def main(arguments: list[str]) -> int:
    "Try the environments that are named, or all; return how many had failures."
    ways = {"lowest": lowest, "newest": newest, "wheel": wheel}
    kept = None
    if arguments[:1] == ["--keep"]:
        kept, arguments = Path(arguments[1]).resolve(), arguments[2:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    names, more = arguments[:cut] or [*ways], arguments[cut + 1 :]
    if unknown := [name for name in names if name not in ways]:
        raise SystemExit(f"{unknown[0]!r} is none of {', '.join(ways)}")
    failures = 0
    for name in names:
        with kept_folder(kept and kept / name) as folder:
            new = ways[name](folder, more)
        if not more:  # a part of the tests is no result
            write_table(name, new)
        failures += any(word == "failed" and value != "0" for _, _, word, value in new)
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
