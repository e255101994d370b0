"""Runs: identity, refusals, and every way in which a run can be killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from configparser import ConfigParser
from functools import partial
from pathlib import Path

import nbformat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from typer.testing import CliRunner

import neurobridge
from neurobridge.core.files import mark_folder, read_json, write_json
from neurobridge.lab import RunBusy, RunFailed, RunRefused, load_runs, record, run_notebook
from neurobridge.lab.cli import app
from neurobridge.lab.report.recorded import finished
from neurobridge.lab.run import execute as runs
from neurobridge.lab.run import identity, run_record
from neurobridge.lab.run.identity import run_id
from neurobridge.lab.run.page import LEFT_OUT, page_hash
from neurobridge.lab.run.parameters import page_parameters, read_page, resolve
from neurobridge.lab.run.rubbish import find_rubbish

ROOT = Path(neurobridge.__file__).resolve().parents[1]
PARAMETERS = 'count: int = 3  # how many\nrate: float = 0.5\ntext: str = "a"\nflag: bool = False\nlimit: int | None = None\nsizes: list[int] = [1, 2]'


def make_page(path, *cells, parameters=PARAMETERS):
    head = [
        new_markdown_cell("# A page"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        new_markdown_cell("## Its work"),
    ]
    nb = new_notebook(
        cells=[*head, *(cell if isinstance(cell, dict) else new_code_cell(cell) for cell in cells)]
    )
    nb.metadata["kernelspec"] = {
        "name": "no-such-kernel",
        "display_name": "no such kernel",
        "language": "python",
    }
    nbformat.write(nb, path)
    return path


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("NEUROBRIDGE_RUN", raising=False)
    return tmp_path


def driver(code, **settings):
    "Start a Python process that runs `code` with everything from the module imported."
    return subprocess.Popen(
        [sys.executable, "-c", "from neurobridge.lab.run.execute import *\n" + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_heed_interrupts,
        **settings,
    )


def _heed_interrupts():
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # a shell's background jobs inherit that it is ignored


def wait_for(what, seconds=90):
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# What identifies a run


def test_outputs_and_editor_metadata_do_not_change_the_id(tmp_path):
    page = read_page(make_page(tmp_path / "p.ipynb", "1 + 1"))
    values = resolve(page_parameters(page))
    before = run_id(page, values)
    page["cells"][-1] |= {
        "outputs": [new_output("stream", text="2")],
        "execution_count": 7,
        "id": "another",
    }
    page["cells"][-1]["metadata"]["collapsed"] = True
    page["metadata"]["kernelspec"]["name"] = "python3"
    assert run_id(page, values) == before


def test_source_tags_types_and_values_change_the_id(tmp_path):
    page = read_page(make_page(tmp_path / "p.ipynb", "1 + 1", "2"))
    values = resolve(page_parameters(page))
    ids = {
        run_id(page, values),
        run_id(page, {**values, "count": 4}),
        run_id(page, {**values, "text": "b"}),
    }
    for change in (
        {"source": "1 + 2"},
        {"cell_type": "markdown"},
        {"metadata": {"tags": ["raises-exception"]}},
    ):
        ids.add(
            run_id(
                {**page, "cells": [*page["cells"][:-1], {**page["cells"][-1], **change}]}, values
            )
        )
    assert len(ids) == 6


def test_what_the_page_does_is_hashed_apart(tmp_path):
    "Prose, outputs, and the values it is given are not what a page does."
    page = read_page(make_page(tmp_path / "p.ipynb", "1 + 1", "2"))
    before, cells = page_hash(page), page["cells"]
    given = {"cell_type": "code", "source": "count = 9", "metadata": {"tags": ["parameters"]}}
    assert (
        page_hash({"cells": [{**cells[0], "source": "# Reworded"}, given, *cells[2:]]}) == before
        and len(before) == 12
    )
    assert (
        len(
            {
                before,
                page_hash({"cells": cells[:-1]}),
                page_hash({"cells": [*cells[:-1], {**cells[-1], "source": "3"}]}),
            }
        )
        == 3
    )


def test_package_source_changes_the_id(tmp_path, monkeypatch):
    copy = tmp_path / "neurobridge"
    shutil.copytree(ROOT / "neurobridge", copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(neurobridge, "__file__", str(copy / "__init__.py"))
    first = identity.package_hash()
    (copy / "_modidx.py").write_text("d = {}")
    assert identity.package_hash() == first
    (copy / "core" / "files.py").open("a").write("\n# changed\n")
    second = identity.package_hash()
    (copy / "core" / "files.py").rename(copy / "core" / "files2.py")
    assert len({first, second, identity.package_hash()}) == 3


# Parameters


@pytest.mark.parametrize(
    "given, said",
    [
        ({"cuont": 1}, "did you mean `count`?"),
        ({"count": "three"}, "'three'"),
        ({"count": 2.5}, "2.5"),
        ({"count": True}, "True"),
        ({"count": "1e3"}, "'1e3'"),
        ({"count": None}, "None"),
        ({"rate": "fast"}, "'fast'"),
        ({"rate": float("nan")}, "nan"),
        ({"rate": "inf"}, "'inf'"),
        ({"rate": 10**400}, "float"),
        ({"flag": 1}, "1"),
        ({"flag": "yes"}, "'yes'"),
        ({"text": 3}, "3"),
        ({"sizes": [1, "x"]}, "'x'"),
        ({"sizes": "(1"}, "'(1'"),
        ({"sizes": {"a": 1}}, "dict"),
        ({"limit": "many"}, "'many'"),
        ({"text": Path("x")}, "Path"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_is_made(root, given, said):
    page = make_page(root / "p.ipynb")
    with pytest.raises(RunRefused) as refused:
        run_notebook(page, given)
    assert (
        said in str(refused.value)
        and "count" in str(refused.value)
        or next(iter(given)) in str(refused.value)
    )
    assert not (root / "runs").exists()


def test_text_from_a_shell_means_the_same_as_values(tmp_path):
    takes = page_parameters(make_page(tmp_path / "p.ipynb"))
    as_text = {
        "count": "-3",
        "rate": "1e-3",
        "text": "3",
        "flag": "TRUE",
        "limit": "none",
        "sizes": "4,5",
    }
    assert resolve(takes, as_text) == {
        "count": -3,
        "rate": 1e-3,
        "text": "3",
        "flag": True,
        "limit": None,
        "sizes": [4, 5],
    }
    assert resolve(takes, {"rate": 2, "limit": "7", "sizes": (6,)}) | {} == {
        **resolve(takes),
        "rate": 2.0,
        "limit": 7,
        "sizes": [6],
    }


@pytest.mark.parametrize(
    "source, said",
    [
        ("a = b", "default written out"),
        ("import os", "default written out"),
        ("a, b = 1, 2", "default written out"),
        ("a: int", "default written out"),
        ("a = b = 1", "default written out"),
        ("a: int = 'x'", "cannot be 'x'"),
        ("a: Path = 'x'", "'Path'"),
        ("a = 1\na = 2", "twice"),
        ("a = (", "never closed"),
        ("a: float = 1e999", "cannot be inf"),
        ('a: "int | (" = 1', "default written out"),
        ('a: "" = 1', "default written out"),
    ],
)
def test_unreadable_parameter_cells_are_refused(tmp_path, source, said):
    with pytest.raises(RunRefused, match=None) as refused:
        page_parameters(make_page(tmp_path / "p.ipynb", parameters=source))
    assert said in str(refused.value)


def test_pages_that_cannot_be_run_are_refused(root):
    page = nbformat.read(make_page(root / "p.ipynb"), 4)
    nbformat.write(
        new_notebook(cells=[page.cells[1], nbformat.from_dict({**page.cells[1], "id": "another"})]),
        root / "two.ipynb",
    )
    nbformat.write(
        new_notebook(
            cells=[
                page.cells[1],
                new_code_cell("count = 9", metadata={"tags": ["injected-parameters"]}),
            ]
        ),
        root / "ran.ipynb",
    )
    (root / "half.ipynb").write_text('{"cells": [')
    (root / "list.ipynb").write_text("[]")
    (root / "old.ipynb").write_text('{"nbformat": 3, "worksheets": []}')
    for name, cell in {
        "kind": '{"source": ""}',
        "nothing": '{"source": "", "cell_type": "code", "metadata": null}',
        "tags": '{"source": "", "cell_type": "code", "metadata": {"tags": null}}',
    }.items():
        (root / f"{name}.ipynb").write_text(f'{{"nbformat": 4, "cells": [{cell}]}}')
        with pytest.raises(RunRefused, match="not a notebook"):
            run_notebook(root / f"{name}.ipynb")
    (root / "deep.ipynb").write_text("[" * 100_000)
    with pytest.raises(RunRefused, match="not a notebook"):
        run_notebook(root / "deep.ipynb")
    (root / "folder.ipynb").mkdir()
    for name, said in {
        "two": "2 cells",
        "ran": "output of a run",
        "half": "not a notebook",
        "list": "not a notebook",
        "old": "format 3",
        "folder": "no page",
        "missing": "no page",
    }.items():
        with pytest.raises(RunRefused, match=said):
            run_notebook(root / f"{name}.ipynb")
    with pytest.raises(RunRefused, match="pipe_s"):
        run_notebook("pipe_z")
    with pytest.raises(RunRefused, match="time limit"):
        run_notebook(root / "p.ipynb", timeout=-1)


def test_papermill_reads_the_same_names():
    papermill = pytest.importorskip("papermill")
    for page in (ROOT / "nbs" / "experiments").glob("*.ipynb"):
        assert list(papermill.inspect_notebook(page)) == list(page_parameters(page)), page


texts = st.text(st.characters(codec="utf-8"), max_size=30)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(),
    numbers,
    texts,
    st.booleans(),
    st.none() | st.integers(),
    st.lists(st.integers(), max_size=4),
)
def test_values_survive_text_json_and_papermill(tmp_path, count, rate, text, flag, limit, sizes):
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    page = new_notebook(cells=[new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})])
    takes = page_parameters(page)
    values = dict(count=count, rate=rate, text=text, flag=flag, limit=limit, sizes=sizes)
    full = resolve(takes, values)
    assert full == values and resolve(takes, full) == full and json.loads(json.dumps(full)) == full
    assert (
        resolve(
            takes,
            {name: value if name == "text" else repr(value) for name, value in values.items()},
        )
        == full
    )
    injected = (
        parameterize_notebook(load_notebook_node(page), full, engine_name="neurobridge")
        .cells[1]
        .source
    )
    there = {}
    exec(injected, there)
    assert {name: there[name] for name in values} == full


@settings(max_examples=200, deadline=None)
@given(st.from_type(object) | texts)
def test_any_value_is_fitted_or_refused(value):
    takes = page_parameters(
        new_notebook(cells=[new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})])
    )
    for name in takes:
        try:
            json.dumps(resolve(takes, {name: value}), allow_nan=False)
        except RunRefused:
            pass


# What a page says


def test_record_takes_numbers_only(tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.setenv("NEUROBRIDGE_RUN", str(tmp_path))
    kept = record(
        {"a": np.float32(0.5), "b": np.array([2]), "c": np.int64(3)},
        rows=[{"x": None, "arm": np.str_("s"), "ok": np.bool_(True), "n": np.float64(1)}],
    )
    assert kept == {"a": 0.5, "b": 2, "c": 3}
    assert read_json(tmp_path / "metrics.json") == {
        "metrics": kept,
        "rows": [{"x": None, "arm": "s", "ok": True, "n": 1.0}],
        "torch": runs._torch_facts(),
    }
    before = (tmp_path / "metrics.json").read_bytes()
    for wrong, error in [
        (10**400, ValueError),
        (-(10**400), ValueError),
        ("1", TypeError),
        (None, TypeError),
        (True, TypeError),
        ([1.0], TypeError),
        (np.ones(2), TypeError),
    ]:
        with pytest.raises(error, match="'loss'"):
            record({"loss": wrong})
    with pytest.raises(ValueError, match=r"rows\[1\].x"):
        record({}, rows=[{"x": 1}, {"x": 10**400}])
    assert (tmp_path / "metrics.json").read_bytes() == before


def test_cells_left_out_are_those_the_tests_leave_out():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini")
    assert set(config["DEFAULT"]["tst_flags"].split()) == LEFT_OUT


# Whole runs


def test_a_run_from_anywhere_in_this_python_with_awkward_values(root):
    "Another working directory, an empty PATH, a kernel name that does not exist, relative folders, a text with everything in it."
    text = 'it\'s "quoted" \\ with\nlines, {braces}, $money, µ and 漢字'
    page = make_page(root / "p{}.ipynb", "import os, sys, json\nfrom neurobridge.lab.run.execute import run_dir, record",
                     "(run_dir() / 'seen.json').write_text(json.dumps([text, limit, "
                     "sys.executable, os.getcwd(), os.environ['NEUROBRIDGE_DATA']]))",
                     "#| slow\n1 / 0", new_code_cell("1 / 0", metadata={"tags": ["raises-exception"]}), "record({'count': count})")  # fmt: skip
    (root / "elsewhere").mkdir()
    code = f"r = run_notebook('../{page.name}', {{'text': {text!r}, 'limit': '5'}}, out='out')\nprint(r.status, r.folder)"
    env = {**os.environ, "PATH": "/nowhere", "NEUROBRIDGE_DATA": "my/data"}
    said, _ = driver(code, cwd=root / "elsewhere", env=env).communicate(timeout=120)
    folder = root / "elsewhere" / "out"
    assert said.split() == ["done", str(folder.resolve())], said
    data = str((root / "elsewhere" / "my" / "data").resolve())
    assert read_json(folder / "seen.json") == [text, 5, sys.executable, str(root.resolve()), data]
    kept = read_json(folder / "run.json")
    assert (
        kept["params"]["text"] == text
        and kept["given"] == {"text": text, "limit": 5}
        and kept["metrics"] == {"count": 3}
        and kept["error"] is None
    )
    assert {"python", "torch", "commit", "dirty", "cpus", "device"} <= set(
        kept["environment"]
    ) and kept["page"] == page_hash(read_page(page))
    nbformat.validate(nbformat.read(folder / "notebook.ipynb", 4))
    assert not (folder / "kernel.log").exists() and kept["report"] == "report.html"


def test_done_is_not_run_again_unless_forced(root):
    page = make_page(
        root / "p.ipynb",
        "import time\nfrom neurobridge.lab.run.execute import record, run_dir\n(run_dir() / "
        "f'{time.time_ns()}.txt').touch()",
    )
    first = run_notebook(page, {"count": 1})
    again = run_notebook(page, {"count": "1", "rate": 0.5})
    assert (
        first.fresh
        and not again.fresh
        and again.folder == first.folder
        and again.record == read_json(first.folder / "run.json")
    )
    left = set(first.folder.glob("*.txt"))
    forced = run_notebook(page, {"count": 1}, force=True)
    assert (
        forced.folder == first.folder
        and len(left | set(first.folder.glob("*.txt"))) == 2
        and len(list(first.folder.glob("*.txt"))) == 1
    )
    with pytest.raises(RunRefused, match="another run"):
        run_notebook(page, {"count": 2}, out=first.folder)
    (root / "mine").mkdir()
    (root / "mine" / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(RunRefused, match="not a run's"):
            run_notebook(page, out=root / "mine", force=force)
    assert (root / "mine" / "thesis.tex").exists()


def test_a_failed_page_is_kept_and_tried_again(root):
    page = make_page(root / "p.ipynb", "from neurobridge.lab.run.execute import record, run_dir\nmark = run_dir() / 'mark'\nn = mark.exists()\nmark.touch()",
                     new_markdown_cell("## The $hard$ part"), "assert n, 'not <yet>'\nrecord({'n': float(n)})")  # fmt: skip
    with pytest.raises(
        RunFailed, match="cell 3, line 1, under “The .* part”: AssertionError: not <yet>"
    ) as failed:
        run_notebook(page)
    run = failed.value.run
    kept = read_json(run.folder / "run.json")
    assert (
        kept == run.record
        and kept["status"] == "failed"
        and kept["error"]["source"] == "assert n, 'not <yet>'"
        and kept["metrics"] == {}
    )
    assert (
        "AssertionError" in run.notebook.read_text() and "not &lt;yet&gt;" in run.report.read_text()
    )
    assert load_runs()["status"].tolist() == ["failed"]
    again = run_notebook(page)
    assert (
        again.status == "done"
        and again.metrics == {"n": 1.0}
        and again.record["attempt"] == 2
        and again.record["error"] is None
    )


@pytest.mark.parametrize(
    "typed", ["a.png", "<a b.png>", "a%20b.png", "ü.png", "<sub folder/ü b.png>"]
)
def test_pictures_are_in_the_report_whatever_their_names(tmp_path, typed):
    report = pytest.importorskip(
        "neurobridge.lab.run.run_report",
        reason="reports need nbconvert: pip install nbconvert 'bleach[css]' latex2mathml",
    )
    (tmp_path / "page" / "sub folder").mkdir(parents=True)
    for name in ("a.png", "a b.png", "ü.png", "sub folder/ü b.png"):
        (tmp_path / "page" / name).write_bytes(b"picture")
    (tmp_path / "not yours.png").write_bytes(b"secret")
    shown = report.report_markdown(f'![what]({typed} "title")', tmp_path / "page")
    assert (
        'src="data:image/png;base64,cGljdHVyZQ=="' in shown
        and 'alt="what"' in shown
        and 'title="title"' in shown
    )
    assert "base64" not in report.report_markdown(
        "![a](<no file.png>) ![b](<../not yours.png>) ![c](https://x/a%20b.png)", tmp_path / "page"
    )


def test_a_notebook_that_is_not_there_is_not_said_to_be_kept(tmp_path):
    "As where the disk is full."
    error = {
        "cell": None,
        "heading": "",
        "ename": "OSError",
        "evalue": "[Errno 28] No space left on device",
    }
    run = run_record.Run(tmp_path, {"id": "0", "experiment": "e", "error": error})
    assert "no executed notebook could be kept" in str(RunFailed(run))
    run.notebook.touch()
    assert f"the executed notebook is kept: {run.notebook}" in str(RunFailed(run))


def test_two_identical_commands_at_once(root):
    page = make_page(
        root / "p.ipynb",
        "import time\nfrom neurobridge.lab.run.execute import run_dir\n(run_dir() / "
        "'begun').touch()\nwhile not (run_dir() / 'go').exists(): time.sleep(0.02)",
    )
    first = driver(f"print(run_notebook({str(page)!r}).status)")
    begun = wait_for(lambda: list((root / "runs").glob("p/*/begun")))[0]
    assert load_runs()["status"].tolist() == ["running"]
    for force in (False, True):
        with pytest.raises(RunBusy, match=f"process {first.pid}"):
            run_notebook(page, force=force)
    begun.with_name("go").touch()
    assert first.communicate(timeout=60)[0].strip() == "done"
    assert not run_notebook(page).fresh


# Killed


SLEEPER = """import os, subprocess, time
from neurobridge.lab import record, run_dir
child = subprocess.Popen(["sleep", "1000"])
resumed = (run_dir() / "pids").exists()
if not resumed:
    (run_dir() / "half").write_text(f"{os.getpid()} {child.pid}"); (run_dir() / "half").rename(run_dir() / "pids")
    for _ in iter(int, 1): time.sleep(0.01)
record({"resumed": float(resumed)})"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_driver_leaves_no_kernel_and_the_same_command_goes_on(root, how):
    page = make_page(root / "p.ipynb", SLEEPER)
    first = driver(f"run_notebook({str(page)!r})")
    pids = wait_for(lambda: list((root / "runs").glob("p/*/pids")))[0]
    first.send_signal(how)
    said, _ = first.communicate(timeout=60)
    assert "Task was destroyed" not in said
    for pid in pids.read_text().split():
        wait_for(lambda pid=pid: not alive(pid), 10)
    kept = read_json(pids.with_name("run.json"))
    assert kept["status"] == "running"
    wait_for(lambda: load_runs()["status"].tolist() == ["stopped"], 10)
    if how == signal.SIGKILL:
        again = run_notebook(page)
        assert (
            again.metrics == {"resumed": 1.0}
            and again.folder == pids.parent
            and again.record["attempt"] == 2
        )


# Runs without a kernel, as fast as their writes. For each line of input a fork that kills itself at its n-th call of fsync, replace or unlink.
WRITES = """
import os, signal, sys
from pathlib import Path
from neurobridge.core.files import atomic_write
from neurobridge.lab.run import execute as runs, identity

def pretend(job, settings):
    os.environ["NEUROBRIDGE_RUN"] = str(job.folder)
    with atomic_write(job.folder / "notebook.ipynb") as file: file.write(job.path.read_text())
    with atomic_write(job.folder / "artefact.txt") as file: file.write("whole" * 1000)
    runs.record({"mean": 2.0}, rows=[{"seed": 0, "value": 1.0}])

def report(job, record):
    with atomic_write(job.folder / "report.html") as file: file.write("<html>" + "whole" * 1000 + "</html>")
    return "report.html"

def attempt(fatal, force):
    calls = 0
    def deadly(function):
        def call(*args):
            nonlocal calls
            calls += 1
            if calls == fatal: os.kill(os.getpid(), signal.SIGKILL)
            return function(*args)
        return call
    os.fsync, os.replace, os.unlink = map(deadly, (os.fsync, os.replace, os.unlink))
    run = runs.run_notebook(sys.argv[1], force=force)
    print(run.status, calls, flush=True)

runs._papermill, runs._report, runs.environment, identity.package_hash = pretend, report, lambda page: {}, lambda: "fixed"
import pandas
for line in sys.stdin:
    fatal, force = line.split()
    if (child := os.fork()) == 0:
        attempt(int(fatal), force == "force")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code: print(code, 0, flush=True)
"""


def whole(folder):
    "Check that nothing half-written can be taken for a result."
    for file in [*folder.glob("*.json"), *folder.glob("*.ipynb")]:
        read_json(file)
    if (folder / "artefact.txt").exists():
        assert (folder / "artefact.txt").read_text() == "whole" * 1000
    if (folder / "rows.csv").exists():
        assert (folder / "rows.csv").read_text() == "seed,value\n0,1.0\n"
    if (folder / "report.html").exists():
        assert (folder / "report.html").read_text().endswith("</html>")


@pytest.mark.long
@pytest.mark.parametrize("force", ["no", "force"])
def test_killed_at_any_write(root, force):
    page = make_page(root / "p.ipynb")
    with subprocess.Popen(
        [sys.executable, "-c", WRITES, str(page)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:

        def attempt(fatal=0, force="no"):
            server.stdin.write(f"{fatal} {force}\n")
            server.stdin.flush()
            status, calls = server.stdout.readline().split()
            return status, int(calls)

        assert attempt()[0] == "done"
        (folder,) = (root / "runs" / "p").iterdir()
        for n in range(1, 1000):
            if force == "no":
                shutil.rmtree(root / "runs")
            else:
                assert attempt()[0] == "done"
                (folder / "stale.txt").write_text("of an earlier run")
                (folder / "deeper").mkdir(exist_ok=True)
            status, calls = attempt(n, force)
            if calls:
                break
            assert status == str(-signal.SIGKILL)
            whole(folder)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert load_runs()["status"].isin(["stopped", "done"]).all()
            untouched = (folder / "stale.txt").exists() and read_json(folder / "run.json")[
                "status"
            ] == "done"
            finished = (folder / "run.json").exists() and read_json(folder / "run.json")[
                "status"
            ] == "done"
            assert attempt()[0] == "done"
            whole(folder)
            assert finished or not list(folder.glob(".*.part"))
            assert (
                untouched
                or not (folder / "stale.txt").exists()
                and not (folder / "deeper").exists()
            )
            assert (
                read_json(folder / "run.json")["metrics"] == {"mean": 2.0}
                and read_json(folder / "run.json")["report"] == "report.html"
                and (folder / "artefact.txt").exists()
            )
        assert status == "done" and n == calls + 1 > 20
        server.stdin.close()


# The table of runs


def test_damaged_records_cost_one_row_and_one_warning(root):
    def keep(name, **content):
        base = {
            "id": name,
            "experiment": "e",
            "status": "done",
            "started": "2026-01-01",
            "seconds": 1.0,
            "params": {},
            "metrics": {},
            "rows": [],
        }
        write_json(root / "runs" / "e" / name / "run.json", base | content)

    keep("a", params={"epochs": 3, "seconds": 9}, metrics={"epochs": 2.0, "accuracy": 0.9})
    keep("b", status="running", params={"epochs": 4})
    for name, content in {
        "c": '{"id": "c"',
        "d": "[]",
        "e": "",
        "f": '{"id": 1}',
        "h": "[" * 100_000,
    }.items():
        (root / "runs" / "e" / name).mkdir()
        (root / "runs" / "e" / name / "run.json").write_text(content)
    (root / "runs" / "e" / "g").mkdir()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        table = load_runs().set_index("id")
    assert len(told) == 5 and sorted(table.index) == list("abcdefh")
    assert table["status"].to_dict() == {"a": "done", "b": "stopped"} | dict.fromkeys(
        "cdefh", "damaged"
    )
    assert (
        table.loc["a", "epochs"] == 3
        and table.loc["a", "metric.epochs"] == 2
        and table.loc["a", "param.seconds"] == 9
        and table.loc["a", "seconds"] == 1
    )
    assert len(load_runs(root / "runs" / "e" / "a")) == 1 and len(load_runs(root / "nothing")) == 0


LACKS = object()
DAMAGE = [("metrics", None), ("metrics", {"a": "x"}), ("params", [1]), ("params", None), ("rows", [1]), ("rows", {}), ("started", None), ("started", LACKS), ("seconds", LACKS), ("seconds", "1"),
          ("id", 1), ("status", None), ("error", {}), ("error", "boom"), ("environment", None), ("environment", []), ("page", 3), ("attempt", None)]  # fmt: skip


@pytest.mark.parametrize("name, value", DAMAGE)
def test_other_damage_is_damage_too(root, name, value):
    "What no reader could use is found when it is read, and cleaned away like half a file."
    folder = root / "runs" / "e" / ("0" * 12)
    content = {
        "id": "0" * 12,
        "experiment": "e",
        "status": "done",
        "started": "2026-01-01",
        "seconds": 1.0,
        "params": {},
        "metrics": {},
        "rows": [],
    }
    write_json(folder / "run.json", content)
    mark_folder(folder, "run")
    assert run_record.run_status(folder) == "done" and find_rubbish() == []
    write_json(
        folder / "run.json",
        {key: kept for key, kept in (content | {name: value}).items() if kept is not LACKS},
    )
    with pytest.warns(UserWarning, match="damaged"):
        assert load_runs()["status"].tolist() == ["damaged"]
    assert finished("e") == [] and [one.why for one in find_rubbish()] == ["damaged"]


def test_a_run_that_is_cleaned_away_meanwhile_is_not_damaged(root, monkeypatch):
    write_json(
        root / "runs" / "e" / "0" / "run.json",
        {
            "id": "0",
            "experiment": "e",
            "status": "done",
            "started": "",
            "seconds": 1.0,
            "params": {},
            "metrics": {},
            "rows": [],
        },
    )
    there = run_record.run_files(root / "runs", depth=2)
    monkeypatch.setattr(
        run_record, "run_files", lambda *_, **__: [*there, root / "runs" / "e" / "1" / "run.json"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_runs()["id"].tolist() == ["0"]


def test_folders_that_cannot_be_read_are_named(root, monkeypatch):
    for name in ("a", "b"):
        write_json(
            root / "runs" / name / "0" / "run.json",
            {
                "id": "0",
                "experiment": name,
                "status": "done",
                "started": "",
                "seconds": 1.0,
                "params": {},
                "metrics": {},
                "rows": [],
            },
        )
    scan, locked = os.scandir, {str(root / "runs" / "a")}

    def guarded(path="."):
        if str(path) in locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)  # root may read everything
    with pytest.warns(
        UserWarning, match="runs/a cannot be read .Permission denied.; the runs in it are left out"
    ):
        assert load_runs()["experiment"].tolist() == ["b"]
    with pytest.raises(RunRefused, match="runs/a cannot be read"):
        finished("a")
    assert len(finished("b")) == 1 and finished("c") == []
    shown = CliRunner().invoke(app, ["table"])
    assert shown.exit_code == 0 and "runs/a cannot be read" in shown.stderr
    locked.add(str(root / "runs" / "b"))
    shown = CliRunner().invoke(app, ["table"])
    assert shown.exit_code == 2 and "no runs yet" not in shown.stdout + shown.stderr
    (root / "file").touch()
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(root / "file"))
    for words in (["table"], ["results", "toy"]):
        shown = CliRunner().invoke(app, words)
        assert (
            shown.exit_code == 2
            and "file" in shown.stderr
            and "cannot be read (Not a directory)" in shown.stderr
        ), words


def test_a_page_that_its_commit_lacks_is_dirty(tmp_path):
    "Untracked, ignored or outside: what ran is not in the commit."
    project = tmp_path / "project"
    project.mkdir()
    git = partial(subprocess.run, cwd=project, check=True, capture_output=True)
    (project / "settings.ini").write_text("lib_path = neurobridge\n")
    (project / ".gitignore").write_text("ignored.ipynb\n")
    make_page(project / "known.ipynb")
    for words in (
        ["init"],
        ["add", "."],
        ["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-m", "x"],
    ):
        git(["git", *words])
    for name in ("new", "ignored"):
        make_page(project / f"{name}.ipynb")
    assert [
        runs.environment(project / f"{name}.ipynb")["dirty"] for name in ("known", "new", "ignored")
    ] == [False, True, True]
    make_page(project / "known.ipynb", "1")
    assert runs.environment(project / "known.ipynb")["dirty"]
    here = runs.environment(make_page(tmp_path / "outside.ipynb"))
    assert here["dirty"] or here["commit"] is None


# Without any of this


def test_stock_papermill_from_another_directory(root):
    page = make_page(
        root / "p.ipynb",
        "from neurobridge.lab.run.execute import record, run_dir\nassert run_dir() is None and text == "
        "'it\\'s \"q\"'\nrecord({'count': count})",
    )
    nb = nbformat.read(page, 4)
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(nb, page)
    (root / "elsewhere").mkdir()
    command = [
        sys.executable,
        "-m",
        "papermill",
        "../p.ipynb",
        "out.ipynb",
        "-p",
        "count",
        "7",
        "-p",
        "text",
        'it\'s "q"',
    ]
    ended = subprocess.run(
        command, cwd=root / "elsewhere", capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert "{'count': 7}" in (root / "elsewhere" / "out.ipynb").read_text()


def test_no_grammar_is_built_for_a_notebook():
    "jsonschema would, where rfc3987_syntax is installed; who wants that package gets it afterwards all the same."
    code = "import sys\nfrom neurobridge.lab.run.page import import_nbformat\nimport_nbformat()\nimport neurobridge.lab.run.engine\nassert not {'lark', 'rfc3987_syntax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_papermill_finds_the_engine_whoever_is_imported_first():
    found = "import neurobridge.lab.run.engine; from papermill.engines import papermill_engines as e; assert e.get_engine('neurobridge').__name__ == 'QuietEngine'"
    subprocess.run(
        [sys.executable, "-c", found], check=True, timeout=120
    )  # the stock command, above, imports papermill first
    light = "import sys, neurobridge.lab.run.execute, neurobridge.lab.run.parameters; sys.exit(bool({'papermill', 'torch', 'pandas', 'nbformat'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", light], check=True, timeout=120)
