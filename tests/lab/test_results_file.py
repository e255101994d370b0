"A results file: a batch goes on from a fresh clone, nothing is lost or doubled, and what does not fit is refused."

import contextlib
import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner

from neurobridge.core import project_root
from neurobridge.core.files import write_json
from neurobridge.lab import RunRefused, Sweep, run_sweep, sweep_runs, sweep_table, write_results
from neurobridge.lab.cli import app
from neurobridge.lab.run.identity import content_hash
from neurobridge.lab.run.page import page_hash
from neurobridge.lab.run.parameters import read_page
from neurobridge.lab.sweep import driver
from neurobridge.lab.sweep.results_file import (
    Finished,
    keep_run,
    outdated,
    read_kept,
    recorded_runs,
    results_path,
    row_text,
    state_of,
    versions_file,
)

ROOT = project_root(Path(__file__).parent)
NOWHERE = "tcp://127.0.0.1:1"  # nobody would answer there


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(tmp_path / "runs"))
    parameters = new_code_cell("n: int = 1\nseed: int = 0", metadata={"tags": ["parameters"]})
    write_page(tmp_path / "toy.ipynb", parameters, new_code_cell("n"))
    (tmp_path / "s.yaml").write_text(
        "notebook: toy.ipynb\ngrid: {n: [2, 1]}\nseeds: 2\nresults: results/toy.csv"
    )
    return tmp_path


def write_page(file, *cells):
    nbformat.write(new_notebook(cells=[new_markdown_cell("# A page"), *cells]), file)


def plan_of(root, name="s"):
    return Sweep.from_yaml(root / f"{name}.yaml")


def finish(one, root, rows=None, metrics=None, tables=("curves",), **more):
    "Write what a run leaves when it has ended."
    n, seed = one.full["n"], one.full["seed"]
    rows = (
        [{"arm": arm, "seed": seed, "accuracy": n / 3 + seed} for arm in "ab"]
        if rows is None
        else rows
    )
    content = {
        "id": one.id,
        "experiment": "toy",
        "status": "done",
        "started": "2026-01-01",
        "seconds": 1.5,
        "core_seconds": 0.5,
        "params": one.full,
        "metrics": {"loss": 0.1 + 0.2} if metrics is None else metrics,
        "rows": rows,
        "error": None,
        "page": page_hash(read_page(root / "toy.ipynb")),
        "environment": {
            "commit": "0" * 40,
            "dirty": False,
            "device": "a CPU",
            "torch_threads": 2,
        },
        "package": {},
        "modules": {},
        "files": {},
    }
    write_json(one.folder / "run.json", content | more)
    for table in tables:
        pd.DataFrame({"epoch": [1, 2], "loss": [1 / 3, n / 7]}).to_csv(
            one.folder / f"{table}.csv", index=False
        )


def recorded(root, name="s"):
    "Finish all runs of a sweep and record them; nothing is executed."
    sweep = plan_of(root, name)
    for one in sweep.plan():
        finish(one, root)
    return run_sweep(sweep, scheduler=NOWHERE)


def rows(file, apart=()):
    "Return the rows of a CSV file as text."
    with open(file, newline="") as source:
        return [
            {name: entry for name, entry in row.items() if name not in apart}
            for row in csv.DictReader(source)
        ]


def shell(*words, **env):
    return CliRunner(env=env).invoke(app, [str(word) for word in words])


# What is in it


def test_the_columns_are_those_of_results(root):
    "Cell by cell what `neurobridge results` writes from the same runs, and three hashes more."
    recorded(root)
    sweep = replace(plan_of(root), results=None)
    for written in write_results("toy", [sweep], out=root / "other"):
        ours = rows(root / "results" / written.name, ("values_hash", "version_hash", "rows_hash"))
        assert ours == rows(written) and len(ours) == 8
    assert set(rows(root / "results" / "toy.csv")[0]) == {
        *("arm", "seed", "accuracy", "n", "commit", "device", "run_seconds", "run_core_seconds"),
        *("run", "metric.loss", "values_hash", "version_hash", "rows_hash"),
    }


def test_recorded_runs_are_not_run(root):
    before = recorded(root)
    assert before.status.tolist() == ["done"] * 4
    shutil.rmtree(root / "runs")
    table = run_sweep(plan_of(root), scheduler=NOWHERE)
    assert table.status.tolist() == ["recorded"] * 4 and table.seconds.tolist() == [1.5] * 4
    assert table.loss.tolist() == [0.1 + 0.2] * 4 and table[["n", "seed"]].equals(
        before[["n", "seed"]]
    )
    assert not (root / "runs").exists()
    shown = shell("sweep", root / "s.yaml", "--dry-run")
    assert shown.exit_code == 0 and "4 recorded; 0 would be run" in shown.stdout
    assert "results: 4 runs\n" in shown.stdout and shell("sweep", root / "s.yaml").exit_code == 0


def test_metrics_of_a_page_without_rows(root):
    sweep = plan_of(root)
    for one in sweep.plan():
        finish(one, root, rows=[], metrics={"n": 7, "loss": 1e-300 / 3, "big": 2**70}, tables=())
    run_sweep(sweep, scheduler=NOWHERE)
    shutil.rmtree(root / "runs")
    table = run_sweep(sweep, scheduler=NOWHERE)
    assert table.loss.tolist() == [1e-300 / 3] * 4 and table["metric.n"].tolist() == [7] * 4
    assert table.big.tolist() == [2**70] * 4 and table.n.tolist() == [2, 2, 1, 1]
    assert sweep_runs(sweep).status.tolist() == ["recorded"] * 4


def test_the_place_of_a_row_is_that_of_the_sweep(root):
    "Whichever run ends first; a second sweep file adds its rows after those of the first."
    recorded(root)
    whole = (root / "results" / "toy.csv").read_text()
    shutil.rmtree(root / "results")
    planned = plan_of(root).plan()
    for numbers in ((3,), (1, 3), (0, 1, 3), (0, 1, 2, 3)):
        shutil.rmtree(root / "runs")
        for number in numbers:
            finish(planned[number], root)
        run_sweep(_only(root, numbers), scheduler=NOWHERE)
    assert (root / "results" / "toy.csv").read_text() == whole
    (root / "t.yaml").write_text(
        "notebook: toy.ipynb\nparameters: {n: 9}\nseeds: 2\nresults: results/toy.csv"
    )
    recorded(root, "t")
    found = rows(root / "results" / "toy.csv")
    assert [row["n"] for row in found] == list("222211119999")
    assert found[:8] == list(csv.DictReader(whole.splitlines()))


def _only(root, numbers):
    sweep = plan_of(root)
    return replace(sweep, settings=tuple(sweep.settings[number] for number in numbers))


def test_repeats_have_rows_of_their_own(root):
    (root / "r.yaml").write_text(
        "notebook: toy.ipynb\ngrid: {n: [2, 1]}\nrepeats: 3\nresults: results/toy.csv"
    )
    assert len(recorded(root, "r")) == 6
    found = rows(root / "results" / "toy.csv")
    ids = [one.folder.name for one in plan_of(root, "r").plan()]
    assert [row["run"] for row in found[::2]] == ids and len(set(ids)) == 6
    shutil.rmtree(root / "runs")
    assert set(run_sweep(plan_of(root, "r"), scheduler=NOWHERE).status) == {"recorded"}
    more = replace(plan_of(root, "r"), repeats=4)
    assert sweep_table(more.plan()).status.tolist() == (["recorded"] * 3 + ["absent"]) * 2


def test_columns_that_only_some_runs_have(root):
    planned = plan_of(root).plan()
    for number, one in enumerate(planned):
        extra = {"ann": 0.5} if number == 2 else {}
        finish(one, root, rows=[{"arm": 'a,"b"\nc', **extra, "word": "é"}], metrics={}, tables=())
    run_sweep(plan_of(root), scheduler=NOWHERE)
    found = rows(root / "results" / "toy.csv")
    assert [row["ann"] for row in found] == ["", "", "0.5", ""]
    assert {row["arm"] for row in found} == {'a,"b"\nc'} and list(found[0])[:3] == [
        *("arm", "ann", "word")
    ]
    assert len(recorded_runs(root / "results" / "toy.csv", root / "toy.ipynb")) == 4


# When a run counts as done


def test_prose_and_other_modules_void_nothing_and_code_does(root):
    "A used module, a used file and a code cell do; each run replaces the rows that it had before."
    (root / "helper.py").write_text("x = 1")
    (root / "unused.py").write_text("x = 1")
    (root / "data.csv").write_text("1")
    sweep, file = plan_of(root), root / "results" / "toy.csv"
    used = {"modules": {"helper.py": content_hash(root / "helper.py")}}
    used |= {"files": {"data.csv": content_hash(root / "data.csv")}}
    for one in sweep.plan():
        finish(one, root, **used)
    run_sweep(sweep, scheduler=NOWHERE)
    shutil.rmtree(root / "runs")

    def statuses():
        return set(sweep_table(sweep.plan()).status)

    parameters = new_code_cell("n: int = 1\nseed: int = 0", metadata={"tags": ["parameters"]})
    write_page(root / "toy.ipynb", new_markdown_cell("More."), parameters, new_code_cell("n"))
    (root / "unused.py").write_text("x = 2")
    assert statuses() == {"recorded"}
    for name, other in (("helper.py", "x = 2"), ("data.csv", "2")):
        before = (root / name).read_text()
        (root / name).write_text(other)
        assert statuses() == {"absent"} and shell(
            "sweep", root / "s.yaml", "--dry-run"
        ).stdout.count(f"results: 4 runs, 4 of them made before a change of {name}: ")
        (root / name).write_text(before)
        assert statuses() == {"recorded"}
    write_page(root / "toy.ipynb", parameters, new_code_cell("n + 1"))
    assert statuses() == {"absent"}
    old = rows(file)
    for number, one in enumerate(sweep.plan()[:2]):
        finish(one, root, rows=[{"arm": "new"}], tables=("curves",) if number else (), **used)
    run_sweep(replace(sweep, settings=sweep.settings[:2]), scheduler=NOWHERE)
    new = rows(file)
    assert [row["arm"] for row in new] == ["new", "new", *"abab"] and new[2:] == old[4:]
    assert len(rows(root / "results" / "toy_curves.csv")) == 6  # the first has none any more
    kept = read_kept(file)
    assert list(outdated(kept, root / "toy.ipynb").values()) == [["the page"]]
    said = shell("sweep", root / "s.yaml", "--dry-run").stdout
    assert "results: 4 runs, 2 of them made before a change of the page: each stays" in said


def test_a_run_whose_module_was_edited_meanwhile_is_not_kept(root):
    sweep, told = plan_of(root), []
    first = sweep.plan()[0]
    finish(first, root, modules={"helper.py": None})  # changed while the run used it
    driver._keep(sweep, [], told.append, first)
    assert not (root / "results").exists() and "not kept, helper.py changed" in told[0]


@pytest.mark.parametrize("lasting", [False, True])
def test_a_full_disk_does_not_stop_the_batch(root, monkeypatch, lasting):
    "A run that can't be added is added at the end, or by the next start; the others are not stopped."
    sweep, told, tries = plan_of(root), [], []

    def work(workers, sweep, planned, tell, landed, *, feed, watch, log_output):
        assert feed is None and watch is None and log_output is False  # nobody asked for more
        for one in planned:
            finish(one, root)
            landed(one)

    def full(*given):
        tries.append(given)
        if len(tries) == 2 or (lasting and len(tries) > 1):
            raise OSError(28, "No space left on device", str(given[0]))
        return keep_run(*given)

    monkeypatch.setattr(driver, "executor", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(driver, "work_off", work)
    monkeypatch.setattr(driver, "keep_run", full)
    if lasting:
        with pytest.raises(OSError, match="No space left"):
            run_sweep(sweep, tell=lambda counts, line: told.append(line))
        assert len(rows(sweep.results)) == 2 and len(told) == 3
        monkeypatch.setattr(driver, "keep_run", keep_run)
    run_sweep(sweep, tell=lambda counts, line: told.append(line))
    assert [row["n"] for row in rows(sweep.results)] == list("22221111")
    assert "is done, but not in the results file yet" in told[0] and len(told) == 1 + 2 * lasting


def test_other_values_and_other_pages(root):
    recorded(root)
    (root / "s.yaml").write_text((root / "s.yaml").read_text().replace("[2, 1]", "[2, 3]"))
    shutil.rmtree(root / "runs")
    assert sweep_table(plan_of(root).plan()).status.tolist() == ["recorded"] * 2 + ["absent"] * 2
    (root / "other.ipynb").write_text((root / "toy.ipynb").read_text())
    (root / "o.yaml").write_text("notebook: other.ipynb\nresults: results/toy.csv")
    with pytest.raises(RunRefused, match=r"holds runs of toy.ipynb, not of other.ipynb"):
        plan_of(root, "o").plan()


def test_a_page_that_shows_its_own_table_does_not_depend_on_it(root):
    "The file lies below the page's folder, so it is noted when the page opens it."
    sweep = plan_of(root)
    names = ("results/toy.csv", "results/toy_curves.csv", "results/toy.versions.csv")
    (root / "results").mkdir()
    (root / "results" / "toy_data.csv").write_text("1")
    data = {"results/toy_data.csv": content_hash(root / "results" / "toy_data.csv")}
    for one in sweep.plan():
        finish(one, root, files=data | dict.fromkeys(names, "0123456789ab"))
        driver._keep(sweep, [], print, one)
    assert len(recorded_runs(sweep.results, sweep.page)) == 4
    (root / "results" / "toy_data.csv").write_text("2")  # which is an input
    assert len(recorded_runs(sweep.results, sweep.page)) == 0


# What is refused


def lose_a_cell(text):
    return text.replace(",a CPU, 2 thread(s)", "", 1).replace(',"a CPU, 2 thread(s)"', "", 1)


DAMAGE = {
    "a value": lambda text: text.replace("0.6666666666666666", "0.7", 1),
    "a row lost": lambda text: "\n".join(text.splitlines()[:-1]) + "\n",
    "a row twice": lambda text: text + text.splitlines()[-1] + "\n",
    "cut short": lambda text: text[: len(text) // 2],
    "the last sign": lambda text: text[:-1],
    "a conflict": lambda text: "<<<<<<< HEAD\n" + text,
    "a conflict below": lambda text: text + "=======\n",
    "an entry lost": lose_a_cell,
    "no names": lambda text: "\n".join(text.splitlines()[1:]) + "\n",
    "empty": lambda text: "",
    "an empty line": lambda text: text + "\n",
    "a column more": lambda text: (
        "\n".join(line + f",{i and 'x' or 'note'}" for i, line in enumerate(text.splitlines()))
        + "\n"
    ),
    "a name twice": lambda text: text.replace("accuracy", "arm", 1),
    "a column renamed": lambda text: text.replace("accuracy", "score", 1),
    "no run": lambda text: text.replace(",run,", ",ran,", 1),
    "no hashes": lambda text: text.replace("rows_hash", "rows", 1),
    "another's": lambda text: "arm,accuracy\na,0.5\n",
    "no text": lambda text: text.encode().replace(b"a CPU", b"\xff\xfe"),
    "a quote": lambda text: text + '"open',
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_is_refused_and_left_as_it_is(root, how):
    recorded(root)
    shutil.rmtree(root / "runs")
    file = root / "results" / "toy.csv"
    changed = DAMAGE[how](file.read_text())
    changed = changed if isinstance(changed, bytes) else changed.encode()
    assert changed != file.read_bytes()
    file.write_bytes(changed)
    before = snapshot(root)
    for words in (["sweep", root / "s.yaml"], ["sweep", root / "s.yaml", "--dry-run"]):
        ended = shell(*words)
        assert ended.exit_code == 2 and ended.stdout == "", (ended.stdout, ended.exception)
        assert str(file) in ended.stderr and "restore it" in ended.stderr, ended.stderr
    with pytest.raises(RunRefused):
        run_sweep(plan_of(root), scheduler=NOWHERE)
    assert snapshot(root) == before


@pytest.mark.parametrize("name", ["toy_curves.csv", "toy.versions.csv"])
@pytest.mark.parametrize("how", ["gone", "a row lost", "cut short", "a value", "no text"])
def test_files_beside_it_belong_to_it(root, name, how):
    recorded(root)
    place = root / "results" / name
    text = place.read_text()
    if how == "gone":
        place.unlink()
    elif how == "a row lost":
        place.write_text("".join(text.splitlines(keepends=True)[:-1]))
    elif how == "cut short":
        place.write_text(text[:-3])
    elif how == "a value":
        place.write_text(text.replace("toy.ipynb", "tox.ipynb").replace("0.333", "0.334", 1))
    else:
        place.write_bytes(text.encode() + b"\xff\n")
    before = snapshot(root)
    with pytest.raises(RunRefused, match=r"toy(_curves|[.]versions)?[.]csv .*restore it"):
        plan_of(root).plan()
    assert snapshot(root) == before


def snapshot(root):
    return {
        file.relative_to(root).as_posix(): file.read_bytes()
        for file in sorted(root.rglob("*"))
        if file.is_file() and file.name != ".toy.csv.lock"
    }


def test_no_link_pipe_or_lock_of_others_is_followed(root):
    recorded(root)
    file = root / "results" / "toy.csv"
    shutil.move(file, root / "elsewhere.csv")
    file.symlink_to(root / "elsewhere.csv")
    with pytest.raises(RunRefused, match="is a link; expected a regular file"):
        run_sweep(plan_of(root), scheduler=NOWHERE)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(RunRefused, match="is a named pipe"):
        run_sweep(plan_of(root), scheduler=NOWHERE)
    file.unlink()
    shutil.move(root / "elsewhere.csv", file)
    (root / "results" / ".toy.csv.lock").unlink()
    (root / "results" / ".toy.csv.lock").symlink_to(root / "thesis")
    (root / "s.yaml").write_text((root / "s.yaml").read_text().replace("[2, 1]", "[3]"))
    with pytest.raises(RunRefused, match="lock is a link"):
        recorded(root)
    assert not (root / "thesis").exists()


def test_committed_tables_are_not_taken_for_results_files(root):
    "Those of the project, which `neurobridge results` wrote: refused, and every byte stays."
    for name in ("pipe_s", "similarity"):
        shutil.copy(ROOT / "results" / f"{name}.csv", root / f"{name}.csv")
        ended = shell("sweep", root / "s.yaml", "--results", root / f"{name}.csv")
        assert (
            ended.exit_code == 2 and "has no column run, so no sweep has written it" in ended.stderr
        )
        assert (root / f"{name}.csv").read_bytes() == (
            ROOT / "results" / f"{name}.csv"
        ).read_bytes()


def test_results_does_not_replace_a_file_that_a_sweep_adds_to(root):
    recorded(root)
    before = snapshot(root)
    for partial in (False, True):
        with pytest.raises(RunRefused, match="is a results file that a sweep adds to"):
            write_results("toy", [plan_of(root)], partial, root / "results")
    assert snapshot(root) == before


def test_a_table_of_somebody_else_is_not_written_over(root):
    (root / "results").mkdir()
    (root / "results" / "toy_curves.csv").write_text("mine\n1\n")
    with pytest.raises(RunRefused, match=r"toy_curves.csv is no table of this sweep"):
        recorded(root)
    assert (root / "results" / "toy_curves.csv").read_text() == "mine\n1\n"
    assert not (root / "results" / "toy.csv").exists()


def test_two_results_files_of_one_experiment_side_by_side(root):
    "`toy_small.csv` is no table of `toy.csv`, though it has the same runs."
    recorded(root)
    shutil.rmtree(root / "runs")
    (root / "t.yaml").write_text(
        (root / "s.yaml")
        .read_text()
        .replace("toy.csv", "toy_small.csv")
        .replace("[2, 1]", "[2, 5]")
    )
    recorded(root, "t")
    (root / "s.yaml").write_text((root / "s.yaml").read_text().replace("[2, 1]", "[2, 1, 4]"))
    recorded(root)
    for name, count in (("toy", 12), ("toy_curves", 12), ("toy_small", 8), ("toy_small_curves", 8)):
        assert len(rows(root / "results" / f"{name}.csv")) == count
    assert len(read_kept(root / "results" / "toy.csv").tables["curves"].rows) == 12


def test_columns_of_the_page_that_the_file_needs(root):
    for row in ({"run": "mine"}, {"rows_hash": "mine"}):
        finish(plan_of(root).plan()[0], root, rows=[row])
        with pytest.raises(RunRefused, match="rename the page's column"):
            run_sweep(plan_of(root), scheduler=NOWHERE)
        assert not (root / "results").exists()


@pytest.mark.parametrize("path", ["toy", "toy.txt", ".csv", ".toy.csv", "toy.versions.csv", ""])
def test_names_that_are_none(root, path):
    with pytest.raises(RunRefused, match="results is"):
        results_path(path)
    (root / "s.yaml").write_text(f"notebook: toy.ipynb\nresults: '{path}'")
    with pytest.raises(RunRefused, match=r"s.yaml, line 2: .*results is"):
        plan_of(root)


def test_a_path_in_the_file_and_on_the_command_line(root, monkeypatch):
    (root / "sweeps").mkdir()
    (root / "sweeps" / "s.yaml").write_text("notebook: ../toy.ipynb\nresults: ../results/a.csv")
    monkeypatch.chdir(root / "runs" if (root / "runs").exists() else root)
    assert Sweep.from_yaml(root / "sweeps" / "s.yaml").results == root / "results" / "a.csv"
    (root / "sweeps" / "s.yaml").write_text("notebook: ../toy.ipynb\nresults: [a.csv]")
    with pytest.raises(RunRefused, match="line 2: "):
        Sweep.from_yaml(root / "sweeps" / "s.yaml")
    (root / "sweeps" / "s.yaml").write_text("notebook: ../toy.ipynb")
    said = shell("sweep", "sweeps/s.yaml", "--results", "results/b.csv", "--dry-run").stdout
    assert f"results: 0 runs\n{root / 'results' / 'b.csv'}" in said


# Several writers, and none to the end


KEEP = """
import sys
from pathlib import Path
from neurobridge.lab.run.page import page_hash
from neurobridge.lab.run.parameters import read_page
from neurobridge.lab.sweep.results_file import Finished, keep_run, row_text
folder, first, last, step = Path(sys.argv[1]), *map(int, sys.argv[2:])
page = folder / "toy.ipynb"
version = [("page", "toy.ipynb", page_hash(read_page(page)))]
order = [f"{n:012x}" for n in range(1000)]
for n in range(first, last, step):
    row = row_text({"n": n, "x": n / 7, "run": f"{n:012x}"})
    tables = {"curves": [{"epoch": "1", "run": f"{n:012x}"}, {"epoch": "2", "run": f"{n:012x}"}]}
    keep_run(folder / "r.csv", page, Finished(f"{n:012x}", order[n], version, [row], tables), order)
"""


def writer(root, *numbers):
    return subprocess.Popen([sys.executable, "-c", KEEP, str(root), *map(str, numbers)])


@pytest.mark.long
def test_two_writers_at_once(root):
    "One goes up through all runs, the other down: each run is there once, in order."
    writers = [writer(root, 0, 60, 1), writer(root, 59, -1, -1)]
    assert [one.wait(120) for one in writers] == [0, 0]
    found = rows(root / "r.csv")
    assert [int(row["n"]) for row in found] == list(range(60))
    assert [row["x"] for row in found] == [repr(n / 7) if n else "0.0" for n in range(60)]
    curves = rows(root / "r_curves.csv")
    assert [int(row["run"], 16) for row in curves] == [n for n in range(60) for _ in range(2)]
    assert len(recorded_runs(root / "r.csv", root / "toy.ipynb")) == 60


@pytest.mark.long
def test_a_writer_that_is_killed_leaves_whole_files(root):
    "At twelve moments; after each the file reads, and what it had before is still in it."
    seen = 0
    for attempt in range(12):
        one = writer(root, 0, 400, 1)
        until = time.monotonic() + 60
        while time.monotonic() < until:  # wait until it adds to what was there
            kept = len(recorded_runs(root / "r.csv", root / "toy.ipynb"))
            if kept > seen:
                break
            time.sleep(0.005)
        time.sleep(attempt * 0.003)
        one.kill()
        one.wait()
        found = recorded_runs(root / "r.csv", root / "toy.ipynb")
        assert len(found) > seen and [int(run, 16) for run in found] == list(range(len(found)))
        seen = len(found)
    assert writer(root, 0, seen + 3, 1).wait() == 0
    curves = rows(root / "r_curves.csv")  # also those of a run that was killed before its row
    assert [int(row["run"], 16) for row in curves] == [n for n in range(seen + 3) for _ in range(2)]


REPLACE = KEEP.replace(
    "for n in range(first, last, step):",
    """for turn in range(last):
    n = turn % 2
    version = sorted([*version[:1], ("modules", "gone.py", f"{turn:012x}")])""",
)


@pytest.mark.long
def test_reading_while_rows_are_replaced(root):
    "Each write replaces a run of an older version: whoever reads meanwhile sees one or the other."
    words = [sys.executable, "-c", REPLACE, str(root), "0", "150", "1"]
    one, seen = subprocess.Popen(words), 0
    while one.poll() is None:
        said = state_of(root / "r.csv", root / "toy.ipynb")
        assert said.startswith(("0 runs", "1 run", "2 runs"))
        seen += said.startswith("2 runs, 2 of them made before a change of gone.py")
    assert one.wait() == 0 and seen > 0
    assert len(rows(root / "r.csv")) == 2 and len(rows(root / "r_curves.csv")) == 4
    assert len(rows(root / "r.versions.csv")) <= 6  # versions that no row names are not kept


entries = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
entries |= st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
names = st.sampled_from(["arm", "x", 'a "name"', "né", "a,b", "z\nz"])


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.lists(st.dictionaries(names, entries), min_size=1, max_size=3), max_size=6),
    st.randoms(use_true_random=False),
)
def test_any_rows_come_back_in_order(root, runs, chance):
    "Whatever is in them, in whatever order they are kept: the same text, in the order of the sweep."
    file = root / "any.csv"
    for place in root.glob("any*.csv"):
        place.unlink()
    page = root / "toy.ipynb"
    version = [("page", "toy.ipynb", page_hash(read_page(page)))]
    order = [f"{number:012x}" for number in range(len(runs))]
    expected = [
        [row_text(row | {"run": name}) for row in found]
        for name, found in zip(order, runs, strict=True)
    ]
    numbers = list(range(len(runs)))
    chance.shuffle(numbers)
    for number in numbers:
        one = Finished(order[number], order[number], version, expected[number])
        assert keep_run(file, page, one, order) and not keep_run(file, page, one, order)
    found = recorded_runs(file, page)
    assert list(found) == order
    for name, wanted in zip(order, expected, strict=True):
        bare = [{key: row[key] for key in row if not key.endswith("_hash")} for row in found[name]]
        assert bare == wanted


# From a fresh clone


PAGE = """
import os, time
from neurobridge.core.files import file_hash
from neurobridge.lab.run.execute import record, run_dir
from helper import FACTOR
"""
WORK = """
while os.path.exists("stall") and (n, seed) == (2, 1): time.sleep(0.02)
(run_dir() / "curves.csv").write_text(f"epoch,loss\\n1,{n / 3}\\n2,{n / 7}\\n")
record({"loss": n / 9}, rows=[{"arm": arm, "seed": seed, "y": FACTOR * n / 3 + seed} for arm in "ab"])
"""
TIMES = ("commit", "run_seconds", "run_core_seconds", "rows_hash")


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path):
    "A repository with the package, a small experiment, a module beside it, and its sweep."
    folder = tmp_path / "first"
    pages = folder / "nbs" / "experiments"
    pages.mkdir(parents=True)
    shutil.copytree(
        ROOT / "neurobridge", folder / "neurobridge", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("settings.ini", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    parameters = new_code_cell("n: int = 1\nseed: int = 0", metadata={"tags": ["parameters"]})
    write_page(pages / "toy.ipynb", parameters, new_code_cell(PAGE), new_code_cell(WORK))
    (pages / "helper.py").write_text("FACTOR = 2\n")
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "toy.yaml").write_text(
        "notebook: toy\ngrid: {n: [1, 2, 3]}\nseeds: 2\nresults: ../results/toy.csv\n"
    )
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "the experiment")
    return folder


def command(folder, *words):
    "Return command and settings for `neurobridge` as it is in a checkout, with its own runs folder."
    env = {key: value for key, value in os.environ.items() if not key.startswith("NEUROBRIDGE_")}
    env |= {"PYTHONPATH": str(folder), "NEUROBRIDGE_PRELOAD": "ipykernel.kernelapp"}
    start = [sys.executable, "-c", "from neurobridge.lab.cli import app; app()"]
    return [*start, *words], {"cwd": folder, "env": env, "text": True, "stdin": subprocess.DEVNULL}


def neurobridge(folder, *words):
    words, where = command(folder, *words)
    return subprocess.run(words, capture_output=True, timeout=300, **where)


def clone(folder, name):
    git(folder.parent, "clone", "-q", str(folder), name)
    return folder.parent / name


@pytest.mark.long
def test_an_interrupted_batch_goes_on_from_a_fresh_clone(checkout):
    "Killed in the fourth of six runs, committed, cloned: three are left, and the tables are those of a batch without interruption."
    whole = clone(checkout, "whole")
    assert neurobridge(whole, "sweep", "sweeps/toy.yaml", "--workers", "1").returncode == 0
    assert len(rows(whole / "results" / "toy.csv")) == 12

    (checkout / "nbs" / "experiments" / "stall").touch()
    words, where = command(checkout, "sweep", "sweeps/toy.yaml", "--workers", "1")
    driver = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **where)
    until, file = time.monotonic() + 200, checkout / "results" / "toy.csv"
    while not file.exists() or len(rows(file)) < 6:
        assert time.monotonic() < until and driver.poll() is None
        time.sleep(0.05)
    while len(list((checkout / "runs" / "toy").glob("*/run.json"))) < 4:
        assert time.monotonic() < until
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert len(rows(file)) == 6
    git(checkout, "add", "results")
    git(checkout, "commit", "-qm", "what has come in")
    tracked = subprocess.run(
        ["git", "ls-files", "results"], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert tracked.stdout.split() == [
        *("results/toy.csv", "results/toy.versions.csv", "results/toy_curves.csv")
    ]

    fresh = clone(checkout, "fresh")
    shown = neurobridge(fresh, "sweep", "sweeps/toy.yaml", "--dry-run")
    assert "3 recorded, 3 absent; 3 would be run" in shown.stdout, shown.stdout + shown.stderr
    ended = neurobridge(fresh, "sweep", "sweeps/toy.yaml", "--workers", "1")
    assert ended.returncode == 0 and "results: 6 runs\n" in ended.stdout, ended.stderr
    assert len(list((fresh / "runs" / "toy").glob("*/run.json"))) == 3
    for name in ("toy.csv", "toy_curves.csv"):
        ours, theirs = (rows(place / "results" / name, TIMES) for place in (fresh, whole))
        assert ours == theirs and len(ours) == 12 and list(ours[0]) == list(theirs[0])
    assert not any("+" in row["commit"] for row in rows(fresh / "results" / "toy.csv"))
    assert all(float(row["run_core_seconds"]) > 0 for row in rows(fresh / "results" / "toy.csv"))

    changes(fresh)


def changes(fresh):
    "Prose and a module that the page does not import void nothing; a code cell and what it imports do."
    page, package = fresh / "nbs" / "experiments" / "toy.ipynb", fresh / "neurobridge"
    shutil.rmtree(fresh / "runs")

    def shown():
        return neurobridge(fresh, "sweep", "sweeps/toy.yaml", "--dry-run").stdout

    def add(file, text):
        before = file.read_text()
        file.write_text(before + text)
        said = shown()
        file.write_text(before)
        return said

    whole = page.read_text()
    page.write_text(whole.replace("# A page", "# A page in other words"))
    assert "6 recorded; 0 would be run" in add(package / "snn" / "cost.py", "\n# a remark\n")
    page.write_text(whole.replace("n / 9", "n / 8"))
    assert "6 absent; 6 would be run" in shown()
    page.write_text(whole)
    assert "6 absent; 6 would be run" in add(package / "core" / "files.py", "\n# a remark\n")
    said = add(page.with_name("helper.py"), "FACTOR = 3\n")
    assert "results: 6 runs, 6 of them made before a change of helper.py" in said
    assert "6 recorded; 0 would be run" in shown()


@pytest.mark.long
def test_two_sweeps_at_once_fill_one_file(checkout):
    "Two drivers at the same sweep, and one of another: all end well, and each run is there once."
    (checkout / "sweeps" / "more.yaml").write_text(
        "notebook: toy\ngrid: {n: [5, 6]}\nseeds: 2\nresults: ../results/toy.csv\n"
    )
    started = []
    for name in ("toy", "toy", "more"):
        words, where = command(checkout, "sweep", f"sweeps/{name}.yaml", "--workers", "1")
        started.append(
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **where)
        )
    for one in started:
        said = one.communicate(timeout=280)
        assert one.returncode == 0, said
    found = rows(checkout / "results" / "toy.csv")
    asked = sorted((row["n"], row["seed"]) for row in found)
    expected = [(n, seed) for n in "12356" for seed in "01" for _ in range(2)]
    assert asked == expected and len(rows(checkout / "results" / "toy_curves.csv")) == 20
    assert versions_file(checkout / "results" / "toy.csv").exists()
