"""Seeing a batch: what is on the disk after a kill, what is shown on the way, errors, tables, repeats, cleaning."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from typer.testing import CliRunner

from neurobridge.core.files import mark_folder, read_json, write_json
from neurobridge.lab import RunFailed, RunRefused, Sweep, load_runs, record, run_notebook, run_sweep
from neurobridge.lab.cli import app
from neurobridge.lab.report.tables import best_runs, sort_runs
from neurobridge.lab.run import engine, repeat, rubbish
from neurobridge.lab.run.live import Live, live_text, read_live
from neurobridge.lab.run.run_record import all_metrics, read_record
from neurobridge.lab.run.run_report import write_report
from neurobridge.lab.sweep.watch import Watch, new_lines, printed_since


def make_page(path, *cells, parameters="n: int = 1\nlr: float = 0.1"):
    head = [
        new_markdown_cell("# A page"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        new_code_cell("from neurobridge.lab.run.execute import record, run_dir"),
        new_markdown_cell("## Its work"),
    ]
    nbformat.write(new_notebook(cells=[*head, *map(new_code_cell, cells)]), path)
    return path


def shell(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def command(*words):
    return [sys.executable, "-c", "from neurobridge.lab.cli import app; app()", *map(str, words)]


def texts(notebook):
    nb = json.loads(Path(notebook).read_text())
    return "".join(
        "".join(out.get("text", ""))
        for cell in nb["cells"]
        if cell["cell_type"] == "code"
        for out in cell["outputs"]
    )


# What is on the disk when a run is killed


@pytest.mark.long
def test_a_killed_run_leaves_what_it_has_printed(root):
    "Row L15: a quick cell, then one that prints every half second, and SIGKILL."
    page = make_page(
        root / "p.ipynb",
        "print('quick')",
        "import time\nfor i in range(1000):\n    print('line', i, time.time(), flush=True)\n    time.sleep(0.5)",
    )
    code = f"from neurobridge.lab import run_notebook; run_notebook({str(page)!r})"
    driver = subprocess.Popen([sys.executable, "-c", code])
    file = None
    while not (file and "line 0" in texts(file)):
        file = next((root / "runs").glob("p/*/notebook.ipynb"), None)
        time.sleep(0.1)
        assert driver.poll() is None
    time.sleep(6)
    driver.kill()
    killed = time.time()
    driver.wait()
    printed = texts(file)
    last = re.findall(r"line \d+ ([\d.]+)\n", printed)[-1]
    assert "quick\n" in printed and killed - float(last) < 2.5, killed - float(last)


@pytest.mark.long
def test_a_cell_that_prints_nothing_does_not_hold_back_the_one_before(root):
    page = make_page(root / "p.ipynb", "print('quick')", "import time\ntime.sleep(1000)")
    code = f"from neurobridge.lab import run_notebook; run_notebook({str(page)!r})"
    driver = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 60
    file = None
    while not (file and "quick" in texts(file)):
        file = next((root / "runs").glob("p/*/notebook.ipynb"), None)
        time.sleep(0.1)
        assert time.monotonic() < until, "not saved while the next cell works"
    driver.kill()
    driver.wait()


def keeper(tmp_path, outputs=()):
    cell = new_code_cell("1", outputs=list(outputs))
    nb = new_notebook(cells=[cell])
    nb.metadata["papermill"] = {}
    found = engine._Keeper(nb, output_path=tmp_path / "nb.ipynb", progress_bar=False)
    found.last_save_time = found.now() - __import__("datetime").timedelta(seconds=5)
    return found


def test_saving_takes_a_twentieth_of_the_time(tmp_path):
    "However long a write takes, the pause after it is nineteen times as long."
    slow = keeper(tmp_path)
    slow.unsaved, slow.took = True, 0.5
    slow.write_if_due()
    assert not (tmp_path / "nb.ipynb").exists(), "9.5 s are not over after 5"
    slow.took = 0.2
    slow.write_if_due()
    assert (tmp_path / "nb.ipynb").exists() and not slow.unsaved
    written = (tmp_path / "nb.ipynb").stat().st_mtime_ns
    slow.last_save_time -= __import__("datetime").timedelta(seconds=5)
    slow.write_if_due()
    assert (tmp_path / "nb.ipynb").stat().st_mtime_ns == written, "nothing new to write"
    slow.autosave_cell()
    slow.write_if_due()
    assert (tmp_path / "nb.ipynb").stat().st_mtime_ns != written


@pytest.mark.long
def test_a_full_disk_in_the_timer_does_not_end_a_cell(root, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    make_page(root / "p.ipynb", "import time\ntime.sleep(1.2)\nprint('end')")
    monkeypatch.setattr(engine._Keeper, "write_if_due", full)
    monkeypatch.setattr(engine._Keeper, "save", lambda self, **_: None)
    run = run_notebook(root / "p.ipynb")
    assert run.status == "done" and "end" in texts(run.notebook)


# What is shown on the way


@pytest.mark.long
def test_log_output_of_a_run(root):
    page = make_page(
        root / "p.ipynb",
        "print('first\\x1b[2J')\nprint('10 %\\r90 %')",
        "'a value'",
        "import sys\nprint('no end', end='', file=sys.stderr)",
    )
    ended = subprocess.run(
        command("run", page, "--log-output"), capture_output=True, text=True, timeout=120
    )
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0 and "\x1b" not in ended.stdout
    there = ["first\\x1b[2J", "90 %", "'a value'", "no end"]
    assert [line for line in lines if line in there] == there, ended.stdout
    quiet = subprocess.run(
        command("run", page, "--force"), capture_output=True, text=True, timeout=120
    )
    assert "90 %" not in quiet.stdout


@pytest.mark.long
def test_log_output_and_view_of_a_sweep(root, on_a_terminal):
    "In a log each line has its run, none is lost and none is printed twice; on a terminal a table says who does what."
    work = "import time\nfor i in range(6):\n    print('step', i, 'of', n, flush=True)\n    time.sleep(0.5)\nrecord({'n': n})"
    make_page(root / "p.ipynb", work)
    (root / "p.yaml").write_text("notebook: p.ipynb\ngrid: {n: [1, 2, 3]}")
    ended = subprocess.run(
        command("sweep", "p.yaml", "--workers", "2", "--log-output"),
        cwd=root,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ended.returncode == 0, ended.stderr
    found = re.findall(r"^([0-9a-f]{12}) \| step (\d) of (\d)$", ended.stdout, re.MULTILINE)
    assert len(found) == len(set(found)) == 18 and len({run for run, _, _ in found}) == 3
    for n in "123":
        assert [step for _, step, of in found if of == n] == list("012345")
    # a run's state is written after two seconds; a longer one is seen on a busy machine too
    make_page(root / "long.ipynb", work.replace("range(6)", "range(16)"))
    (root / "q.yaml").write_text("notebook: long.ipynb\ngrid: {n: [4, 5]}")
    code, _, shown = on_a_terminal(["sweep", "q.yaml", "--workers", "2"], root)
    assert code == 0 and re.search(r"n 4.*cell 6 of 6, Its work; step \d+ of 4", shown), shown
    assert re.search(r"2/2", shown)


def test_a_view_of_runs_is_made_of_regular_files_only(tmp_path, root):
    plan = Sweep("s", make_page(root / "p.ipynb", "1"), ({"n": 1},)).plan()
    folder = plan[0].folder
    folder.mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_text('{"printed": "secret"}\nsecret\n')
    (folder / "live.json").symlink_to(secret)
    (folder / "output.log").symlink_to(secret)
    assert read_live(folder) == {} and new_lines(folder, 0) == ([], 0)
    (folder / "output.log").unlink()
    (folder / "output.log").write_bytes(b"\x1b]0;title\x07\n\xff\n")
    watch = Watch(["n"])
    assert printed_since(watch, plan) == [
        f"{folder.name} | \\x1b]0;title\\x07",
        f"{folder.name} | \ufffd",
    ]
    assert printed_since(watch, plan) == [] and watch.rows(plan) == []  # it is not running
    (folder / "live.json").unlink()
    os.mkfifo(folder / "live.json")
    assert read_live(folder) == {}
    assert (
        live_text({"cell": 1, "cells": 2, "printed": "a\x1b[2J\nb"}) == "cell 1 of 2; a\\x1b[2J b"
    )


def test_a_state_is_written_every_two_seconds_and_removed(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("neurobridge.lab.run.live.time.monotonic", lambda: now[0])
    seen = []
    live = Live(tmp_path, on_live=seen.append)
    live.add_output("loss 1\rloss 0.5\n")
    for _ in range(10):
        now[0] += 0.5
        live.tick()
    assert [state["seconds"] for state in seen] == [2.0, 4.0]
    assert read_live(tmp_path)["printed"] == "loss 0.5"
    live.end()
    live.end()
    assert not (tmp_path / "live.json").exists()


# Errors


@pytest.mark.long
def test_the_own_line_is_in_every_traceback(root):
    "Also under a long way down and a message of many lines; and the end is there, too."
    page = make_page(
        root / "p.ipynb",
        "def deep(k):\n    if k: return deep(k - 1)\n    raise ValueError('\\n'.join(['many lines'] * 60))",
        "x = 1\n\ndeep(30)\n",
    )
    with pytest.raises(
        RunFailed, match="in cell 4, line 3, under “Its work”: ValueError"
    ) as caught:
        run_notebook(page)
    error = caught.value.run.record["error"]
    assert (error["cell"], error["line"], error["source"]) == (4, 3, "deep(30)")
    assert any("deep(30)" in line for line in error["traceback"]) and len(error["traceback"]) < 60
    assert error["traceback"][-1] == "many lines"
    ended = shell("run", page)
    assert ended.exit_code == 1 and "deep(30)" in ended.stderr
    assert "deep(30)" in (caught.value.run.folder / "report.html").read_text()


@pytest.mark.long
def test_a_long_error_is_printed_once_and_briefly(root):
    page = make_page(root / "p.ipynb", "raise ValueError('x' * 100_000)")
    ended = shell("run", page)
    assert ended.exit_code == 1 and "(100,000 characters)" in ended.stderr
    assert len(ended.stdout + ended.stderr) < 6000
    assert len(re.findall("x{301,}", ended.stderr)) == 1
    (row,) = load_runs().itertuples()
    assert row.error.startswith("ValueError: xxx")
    listed = shell("table")
    assert "ValueError: xxx" in listed.stdout and len(listed.stdout) < 2000


# NaN


@pytest.mark.long
def test_a_metric_that_is_not_finite_is_kept_and_marked(root):
    "A diverged run keeps its other numbers, and is told apart from one that has not measured."
    page = make_page(
        root / "p.ipynb",
        "nan = float('nan')\nrows = [{'seed': s, 'loss': nan if s else 0.5, 'top': float('inf')} for s in (0, 1)]\n"
        "record({'accuracy': 0.9} | ({'loss': nan} if n == 1 else {}), rows=rows if n == 1 else None)\nrecord({'last': 1})",
    )
    bad, good = run_notebook(page), run_notebook(page, {"n": 2})
    assert bad.record["metrics"] == {"accuracy": 0.9, "last": 1} and math.isnan(bad.metrics["loss"])
    assert bad.rows == [
        {"seed": 0, "loss": 0.5, "top": None},
        {"seed": 1, "loss": None, "top": None},
    ]
    marks = [(m["row"], m["name"], m["value"]) for m in bad.record["not_finite"]]
    assert marks == [
        (None, "loss", "nan"),
        (0, "top", "inf"),
        (1, "loss", "nan"),
        (1, "top", "inf"),
    ]
    assert "not_finite" not in good.record and good.metrics == {"accuracy": 0.9, "last": 1}
    assert read_record(bad.folder) == bad.record
    frame = load_runs()
    assert frame.not_finite.tolist()[0].startswith("loss nan") and frame.not_finite.isna()[1]
    assert frame.loss.isna().all() and best_runs(frame, "accuracy", True).accuracy.tolist() == [
        0.9,
        0.9,
    ]
    shown = shell("table").stdout.splitlines()
    rows = {line.split()[0]: line for line in shown if line[:12].strip()}
    assert " nan " in rows[bad.id] and " nan " not in rows[good.id]
    assert "not finite: loss nan, top in row 0 inf" in shell("run", page).stdout
    assert "look for what diverged" in bad.report.read_text()
    assert "kept and marked as not finite" in texts(bad.notebook)


def test_marks_are_added_up_and_a_second_value_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROBRIDGE_RUN", str(tmp_path))
    with pytest.warns(UserWarning, match="loss nan; kept"):
        assert math.isnan(record({"loss": np.float32("nan")})["loss"])
    with pytest.warns(UserWarning, match="x in row 1 -inf"):
        record({}, rows=[{"x": 1.0}, {"x": -math.inf}])
    with pytest.raises(ValueError, match="'loss' is 0.5, and nan was recorded before"):
        record({"loss": 0.5})
    record({"loss": math.nan})  # the same again
    found = read_json(tmp_path / "metrics.json")
    assert [m["name"] for m in found["not_finite"]] == ["loss", "x"] and found["metrics"] == {}
    assert math.isnan(all_metrics(found)["loss"]) and found["rows"] == [{"x": 1.0}, {"x": None}]


# Tables


def some_runs(root, count=6):
    for i in range(count):
        error = {"ename": "RuntimeError", "evalue": f"diverged {i}\nat once", "cell": 1}
        failed = i == 2
        write_json(
            root / "runs" / "toy" / f"{i:012x}" / "run.json",
            {
                "id": f"{i:012x}",
                "experiment": "toy",
                "status": "failed" if failed else "done",
                "started": f"2026-01-0{i + 1}",
                "seconds": 1.0,
                "params": {"lr": 0.1 * (i % 2), "seed": i // 2},
                "metrics": {} if failed else {"loss": float((i * 7) % 5), "accuracy": i / 10},
                "rows": [],
                "error": error | {"heading": "", "traceback": []} if failed else None,
            },
        )
        mark_folder(root / "runs" / "toy" / f"{i:012x}", "run")


def ids(text):
    return [
        int(line.split()[0], 16) for line in text.splitlines() if re.match(r"0[0-9a-f]{11} ", line)
    ]


def test_tables_in_the_order_asked_for(root):
    some_runs(root)
    assert ids(shell("table").stdout) == list(range(6))
    assert ids(shell("table", "--sort", "loss").stdout) == [0, 5, 3, 1, 4, 2]  # 0 0 1 2 3, none
    assert ids(shell("table", "--sort", "-loss,seed").stdout) == [4, 1, 3, 0, 5, 2]
    assert ids(shell("table", "--limit", "2").stdout) == [4, 5]  # the newest
    assert ids(shell("table", "--sort", "-accuracy", "--limit", "2").stdout) == [5, 4]
    assert ids(shell("table", "--best", "2", "--by", "accuracy").stdout) == [5, 4]
    assert ids(shell("table", "--best", "3", "--by", "loss").stdout) == [0, 5, 3]  # less is better
    assert ids(shell("table", "--best", "2", "--by", "+loss").stdout) == [4, 1]
    assert ids(shell("table", "--best", "9", "--by", "loss").stdout) == [0, 5, 3, 1, 4], (
        "not the failed"
    )
    three = shell("table", "--best", "3", "--by", "loss", "--to", "csv").stdout.splitlines()
    assert len(three) == 4 and "2 of 6 rows; 6 runs below" in shell("table", "--limit", "2").stdout
    groups = shell("table", "--group", "seed", "--best", "1", "--by", "accuracy").stdout
    assert re.search(r"^2 +2 .*0\.450 ± 0\.071", groups, re.MULTILINE), groups


def test_errors_are_in_the_table_on_one_line(root):
    some_runs(root)
    (line,) = [line for line in shell("table").stdout.splitlines() if "failed" in line]
    assert "RuntimeError: diverged 2 at once" in line
    assert (
        "error" not in shell("table", "--where", "status == 'done'").stdout.splitlines()[0].split()
    )
    frame = load_runs()
    assert frame.columns[-1] == "error" and frame.error.notna().sum() == 1
    found = shell("table", "--where", "error != None", "--to", "csv").stdout
    assert len(found.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--best", "3"], "--by METRIC"),
        (["--by", "loss"], "--best N"),
        (["--best", "0", "--by", "loss"], "'--best'"),
        (["--limit", "-1"], "'--limit'"),
        (["--sort", "los"], "did you mean loss?"),
        (["--best", "3", "--by", "los"], "there are seconds, loss, accuracy"),
        (["--best", "3", "--by", "loss", "--sort", "lr"], "give one of them"),
    ],
)
def test_wrong_orders_are_refused(root, words, said):
    some_runs(root)
    ended = shell("table", *words)
    assert ended.exit_code == 2 and said in ended.stderr.replace("\n", " "), ended.stderr


def test_options_that_need_each_other_are_refused_before_runs_are_read(root):
    for words in (["--best", "3"], ["--best", "3", "--by", "loss", "--sort", "lr"]):
        assert shell("table", *words).exit_code == 2
    assert "no runs yet" in shell("table", "--best", "3", "--by", "loss").stdout


def test_sorting_is_that_of_python(root):
    "Against an independent order, for values of several types."
    values = [3, None, 2.5, "b", math.nan, "a", -1, True, 10**30]
    frame = pd.DataFrame({"x": pd.Series(values, dtype=object)})
    numbers = sorted([v for v in values if isinstance(v, int | float) and v == v])
    assert sort_runs(frame, ["x"]).x.tolist()[:-2] == [*numbers, "a", "b"]
    assert sort_runs(frame, ["-x"]).x.tolist()[:-2] == ["b", "a", *numbers[::-1]]
    assert sort_runs(frame, ["-x"]).x[-2:].isna().all()


# Repeating


@pytest.mark.long
def test_a_recorded_run_is_repeated_with_its_own_source(root):
    (root / "helper.py").write_text("FACTOR = 2")
    page = make_page(root / "p.ipynb", "from helper import FACTOR\nrecord({'y': FACTOR * n})")
    first = run_notebook(page, {"n": 3})
    same = shell("run", "--like", first.id[:6])
    assert same.exit_code == 0, same.stderr
    assert (
        "are as they were" in same.stdout and "the same as recorded: all 1 metrics" in same.stdout
    )
    assert (root / "runs" / "p" / f"{first.id}-2" / "run.json").exists()
    make_page(page, "record({'y': 0})")  # another page by now
    (root / "helper.py").write_text("FACTOR = 5")
    other = shell("run", first.notebook)
    assert other.exit_code == 0, other.stderr
    assert "p.ipynb has changed: the recorded cells" in other.stdout
    assert "changed since: helper.py" in other.stdout
    assert re.search(r"y +6 +15", other.stdout), other.stdout
    third = read_record(root / "runs" / "p" / f"{first.id}-3")
    assert third["metrics"] == {"y": 15} and third["page"] == first.record["page"]
    new = shell("run", "--like", first.id, "-p", "n", "4")
    assert new.exit_code == 0 and "20" in new.stdout
    assert shell("run", "--like", "ffff").exit_code == 2


@pytest.mark.long
def test_what_cannot_be_repeated(root, monkeypatch):
    page = make_page(root / "p.ipynb", "record({'y': n})")
    first = run_notebook(page, {"n": 3})
    whole = first.notebook.read_text()
    first.notebook.write_text(whole.replace("record({'y': n})", "record({'y': 9})"))
    ended = shell("run", first.notebook)
    assert ended.exit_code == 2 and "is not the notebook of the run" in ended.stderr
    first.notebook.unlink()
    first.notebook.symlink_to(page)
    assert shell("run", "--like", first.id).exit_code == 2, "a link instead of a notebook"
    first.notebook.unlink()
    first.notebook.write_text(whole)
    monkeypatch.setattr(repeat, "belongs_to_others", lambda folder: True)
    with pytest.raises(RunRefused, match="another user"):
        repeat.repeat_run(first)
    assert shell("run", "--like", first.id, "--slow").exit_code == 2


@pytest.mark.long
def test_a_run_is_repeated_without_its_page(root):
    "From nothing but a folder that somebody has sent."
    page = make_page(root / "p.ipynb", "record({'y': n})")
    first = run_notebook(page, {"n": 3})
    page.unlink()
    moved = root / "mail" / "run"
    moved.parent.mkdir()
    first.folder.rename(moved)
    ended = shell("run", moved / "notebook.ipynb")
    assert ended.exit_code == 0 and "is gone" in ended.stdout, ended.stderr
    assert read_record(root / "runs" / "p" / first.id)["metrics"] == {"y": 3}


# Cleaning


def test_cleaning_by_condition(root):
    some_runs(root)
    listed = CliRunner().invoke(app, ["clean", "--where", "loss > 1"], input="n\n")
    assert "nothing was removed" in listed.stdout and "MB" in listed.stdout
    assert len(list((root / "runs" / "toy").iterdir())) == 6
    ended = shell("clean", "toy", "--where", "loss > 1", "--yes")
    assert ended.exit_code == 0 and "removed 2 of 2" in ended.stdout
    assert sorted(int(place.name, 16) for place in (root / "runs" / "toy").iterdir()) == [
        0,
        2,
        3,
        5,
    ]
    assert shell("clean", "--where", "los > 1").exit_code == 2
    assert "nothing to remove" in shell("clean", "--where", "loss > 100").stdout
    assert "removed 1 of 1" in shell("clean", "--yes").stdout  # the failed one, as ever


@pytest.mark.long
def test_old_versions_go_and_present_ones_stay(root):
    (root / "helper.py").write_text("A = 1")
    page = make_page(root / "p.ipynb", "import helper\nrecord({'y': n})")
    first = run_notebook(page)
    assert "nothing to remove" in shell("clean", "--old").stdout
    (root / "helper.py").write_text("A = 2")
    second = run_notebook(page)
    listed = CliRunner().invoke(app, ["clean", "--old"], input="n\n").stdout
    assert (
        "old: helper.py" in listed
        and first.folder.name in listed
        and second.folder.name not in listed
    )
    assert shell("clean", "--old", "--where", "n == 5", "--yes").stdout.startswith("nothing")
    assert shell("clean", "--old", "--yes").exit_code == 0
    assert not first.folder.exists() and second.folder.exists()


def test_a_chosen_run_that_is_another_by_now_stays(root):
    some_runs(root)
    folder = root / "runs" / "toy" / f"{1:012x}"
    found = rubbish.find_chosen([folder])
    write_json(folder / "run.json", read_json(folder / "run.json") | {"started": "2026-03-03"})
    assert rubbish.remove_rubbish(found) == [] and folder.exists()
    link = root / "runs" / "toy" / f"{9:012x}"
    link.symlink_to(folder)
    assert rubbish.find_chosen([link]) == []
    with rubbish.owned(folder):
        assert rubbish.find_chosen([folder]) == []  # in progress


# Reports


@pytest.mark.long
def test_a_late_report_of_a_run_that_is_done(root, monkeypatch):
    "Row L21: nbconvert was missing, and is installed."
    page = make_page(root / "p.ipynb", "record({'y': n})")
    find = importlib.util.find_spec
    with monkeypatch.context() as without:
        without.setattr(
            importlib.util,
            "find_spec",
            lambda name, *rest: None if name == "nbconvert" else find(name),
        )
        first = run_notebook(page)
        again = run_notebook(page)
    assert first.report is None and "nbconvert" in first.record["report"]
    assert again.report is None and not again.fresh
    before = read_json(first.folder / "run.json")
    late = run_notebook(page)
    assert late.report and not late.fresh
    assert read_json(first.folder / "run.json") == before | {"report": "report.html"}


@pytest.mark.long
def test_late_reports_of_a_sweep(root):
    make_page(root / "p.ipynb", "record({'y': n})")
    (root / "p.yaml").write_text("notebook: p.ipynb\ngrid: {n: [1, 2]}")
    batch = Sweep.from_yaml(root / "p.yaml")
    found = run_sweep(batch, workers=1)
    reports = [Path(folder) / "report.html" for folder in found.folder]
    reports[1].unlink()
    assert run_sweep(batch).equals(found) and all(report.exists() for report in reports)


@pytest.mark.long
def test_the_report_begins_with_the_run_itself(root):
    "Row L13: its parameters, metrics and curves come before the page, which shows another batch."
    page = make_page(
        root / "p.ipynb",
        "record({'accuracy': 0.4321}, rows=[{'arm': 'own', 'seed': 0, 'accuracy': 0.4321}])",
        "if run_dir():\n    (run_dir() / 'curves.csv').write_text('epoch,arm,train_loss,valid_loss\\n1,<b>,2,3\\n2,<b>,1,nan\\n')",
        "print('the recorded batch')",
    )
    text = run_notebook(page, {"n": 7}).report.read_text()
    parts = [
        "n = 7",
        "<td>0.4321</td>",
        "Its rows",
        "Its curves",
        "data:image/png",
        "the recorded batch",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places) and "valid_loss nan at epoch 2" in text
    assert "<b>" not in text.replace("&lt;b&gt;", "")


@pytest.mark.parametrize(
    "curves",
    [
        "epoch\n1\n",
        "a,b\n1,2\n",
        "epoch,x\n",
        "",
        "epoch,x\n1,2\n1",
        "epoch,$x$\n1,2\n",
        "\x00",
        "step,seed,x\n1,0,5\n1,1,6\n",
    ],
)
def test_curves_of_any_kind_cost_no_report(tmp_path, curves):
    nbformat.write(new_notebook(cells=[new_markdown_cell("# T")]), tmp_path / "notebook.ipynb")
    (tmp_path / "curves.csv").write_text(curves)
    known = {"id": "0" * 12, "experiment": "e", "status": "done", "started": "2026", "seconds": 1.0}
    known |= {"params": {}, "metrics": {"<x>": 1.0}, "rows": [], "error": None, "environment": {}}
    text = write_report(tmp_path, known).read_text()
    assert "<h1>T</h1>" in re.sub(r' id="[^"]*"', "", text) and "<x>" not in text


def test_a_report_that_can_be_mailed(root):
    some_runs(root)
    make_page(root / "toy.ipynb", "1", parameters="lr: float = 0.0\nseed: int = 0")
    (root / "toy.yaml").write_text("notebook: toy.ipynb\ngrid: {lr: [0.0, 0.1]}\nseeds: 3")
    ended = shell("report", root / "toy.yaml", "--mail", "--out", root / "mail.html")
    text = (root / "mail.html").read_text()
    assert ended.exit_code == 0 and re.search(r"\d+(\.\d)? [kM]B in one file", ended.stdout)
    outside = [
        found
        for found in re.findall(
            r"(?:src|href|srcset|poster|data|action)\s*=\s*[\"']?([^\"'> ]+)", text
        )
        if not found.startswith("data:")
    ]
    assert outside == [] and not re.search(r"url\(|@import|<link|<script|<iframe", text)
    assert str(Path.home()) not in text or str(Path.home()) == "/"


@pytest.mark.long
def test_runs_are_not_committed(root):
    "A new runs folder ignores itself; one that is there already is left as it is."
    git = ["git", "-C", str(root)]
    subprocess.run([*git, "init", "-q"], check=True)
    page = make_page(root / "p.ipynb", "record({'y': n})")
    run = run_notebook(page)
    seen = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True).stdout
    assert seen == "?? p.ipynb\n"
    (root / "runs" / ".gitignore").unlink()
    run_notebook(page, {"n": 2})
    assert not (root / "runs" / ".gitignore").exists()
    assert len(load_runs()) == 2 and run.folder.is_dir()
    outside = root / "elsewhere" / "run"
    run_notebook(page, {"n": 3}, out=outside)
    assert not (outside.parent / ".gitignore").exists()


def test_figures_count_in_a_notebook_of_outputs():
    assert engine._text_of(new_output("display_data", {"text/plain": "<Figure>"})) == "<Figure>\n"
    assert engine._text_of(new_output("display_data", {})) == ""


@pytest.mark.long
def test_a_terminal_shows_the_columns_that_fit(root, on_a_terminal):
    names = [f"metric_{i:02}" for i in range(60)]
    cell = f"record({{name: n / 7 for name in {names}}} | {{'last': n}})"
    make_page(root / "wide.ipynb", cell)
    (root / "wide.yaml").write_text("notebook: wide.ipynb\ngrid: {n: [1, 2, 3]}")
    in_a_log = shell("sweep", root / "wide.yaml", "--workers", "1")
    assert in_a_log.exit_code == 0 and all(name in in_a_log.stdout for name in names)
    for more, wanted in ([], "metric_00"), (["--best", "2", "--by", "+last"], "last"):
        code, _, shown = on_a_terminal(["table", "wide", *more], root)
        lines = re.sub(r"\x1b\[[0-9;]*m|\r", "", shown).splitlines()
        assert code == 0 and max(map(len, lines[:3])) <= 100, shown
        head = lines[0].split()
        assert wanted in head and "status" in head and "metric_59" not in head, shown
        left = int(re.search(r"and (\d+) more columns", shown)[1])
        assert left + len(head) >= 61 and len(lines[2].split()) >= len(head), shown
