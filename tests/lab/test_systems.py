"What a system may lack: modules that only some have, and limits that only Linux sets."

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook

import neurobridge
from neurobridge.core.paths import project_root
from neurobridge.lab import RunRefused
from neurobridge.lab.run import engine

ROOT = project_root()
LACKING = ("fcntl", "resource")
# Python runs it before anything else, in every process that has its folder on the path; psutil has another
# implementation on a system that lacks these modules, and here only the one for Linux
BLOCK = f"""
import builtins
found = builtins.__import__
def without(name, globals=None, *rest, **more):
    asking = str((globals or {{}}).get("__name__", ""))
    if name.partition(".")[0] in {LACKING!r} and not asking.startswith("psutil"):
        raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
    return found(name, globals, *rest, **more)
builtins.__import__ = without
"""
NEEDS_THEM = [
    f"neurobridge.data.{name}" for name in ("convert_folders", "event_dataset", "event_sets")
]
"Data sets are converted under a lock; all else does without."


@pytest.fixture
def lacking(tmp_path):
    "Variables of a process, and of those that it starts, whose Python lacks some modules."
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "sitecustomize.py").write_text(BLOCK)
    path = f"{tmp_path / 'block'}{os.pathsep}{Path(neurobridge.__file__).parents[1]}"
    return os.environ | {"PYTHONPATH": path, "NEUROBRIDGE_RUNS": str(tmp_path / "runs")}


def python(env, code, *words):
    ran = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(env["NEUROBRIDGE_RUNS"]).parent,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout, ran.stderr


def test_the_modules_are_really_absent(lacking):
    for name in LACKING:
        code = f"try:\n    import {name}\nexcept ModuleNotFoundError: print('absent')"
        assert python(lacking, code)[0] == "absent\n"


def test_every_module_can_be_imported_where_some_of_python_are_absent(lacking):
    files = sorted((ROOT / "neurobridge").rglob("*.py"))
    names = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in files
        if file.name not in ("__init__.py", "_modidx.py")
    ]
    code = (
        "import importlib, json, sys\nabsent = []\nfor name in json.loads(sys.argv[1]):\n"
        "    try:\n        importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error:\n        absent.append([name, error.name])\n"
        "print(json.dumps(absent))"
    )
    found = json.loads(python(lacking, code, json.dumps(names))[0].splitlines()[-1])
    assert len(names) > 100 and [name for name, _ in found] == NEEDS_THEM, found


@pytest.mark.long
def test_a_page_runs_where_they_are_absent(lacking, tmp_path):
    first = new_code_cell("n: int = 1", metadata={"tags": ["parameters"]})
    cell = (
        "try:\n    import fcntl\nexcept ModuleNotFoundError:\n"
        "    import neurobridge as nb\n    nb.lab.record({'twice': 2 * n})"
    )
    write(new_notebook(cells=[first, new_code_cell(cell)]), tmp_path / "p.ipynb")
    (tmp_path / "s.yaml").write_text(f"notebook: {tmp_path / 'p.ipynb'}\ngrid: {{n: [2, 3]}}\n")
    code = (
        "import sys\nimport neurobridge as nb\nfrom neurobridge.lab.run.lock import in_progress\n"
        "if __name__ == '__main__':\n"
        "    run = nb.lab.run_notebook(sys.argv[1], {'n': 4})\n"
        "    assert not nb.lab.run_notebook(sys.argv[1], {'n': 4}).fresh\n"
        "    table = nb.lab.run_sweep(nb.lab.Sweep.from_yaml(sys.argv[2]), 1)\n"
        "    print(run.metrics['twice'], table.twice.tolist(), nb.lab.load_runs().shape[0])\n"
    )
    said, warned = python(lacking, code, tmp_path / "p.ipynb", tmp_path / "s.yaml")
    assert said == "8 [4, 6] 3\n"
    assert warned.count("this Python has no fcntl, so nothing is locked") >= 1
    assert "Traceback" not in warned


def test_a_memory_limit_that_the_system_cannot_set_is_refused(monkeypatch):
    "Without the module (Windows), and without the function (macOS)."
    for there in (None, object()):
        monkeypatch.setattr(engine, "resource", there)
        with pytest.raises(RunRefused, match="this system can't limit the memory of a process"):
            engine._limit_memory(os.getpid(), 10**9)


def test_the_classifiers_say_which_system_it_is_for():
    code = (
        "import setuptools, sys\nsetuptools.setup = lambda **given: print(given['classifiers'])\n"
        "exec(open('setup.py').read(), {'__file__': 'setup.py'})"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "Operating System :: POSIX :: Linux" in ran.stdout
