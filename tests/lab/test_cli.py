"""The command line: what is printed where, exit codes, and tables that say what the rows say."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from rich.markup import render
from typer.testing import CliRunner

import neurobridge
from neurobridge.core.files import read_json, write_json
from neurobridge.lab import Sweep, cli, spread
from neurobridge.lab.cli import app
from neurobridge.lab.report.summary import summarise
from neurobridge.lab.sweep import driver as workers

WORK = """from neurobridge.lab.run.execute import record
rows = [dict(arm=arm, seed=s, dataset='toy', accuracy=base + 0.01 * s, epochs=e) for arm, base, e in (('scratch', 0.9, 30), ('bridge', 0.95, 3)) for s in range(seeds)]
if fail: raise RuntimeError('no [bold]luck[/bold]')
record({'accuracy': 0.9}, rows=rows)"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    folder = tmp_path / ("a rather long name of a folder " * 4).strip()
    folder.mkdir()
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(folder / "runs"))
    monkeypatch.delenv("NEUROBRIDGE_RUN", raising=False)
    cells = [
        new_code_cell(
            "seeds: int = 3\nfail: bool = False\nlr: float = 0.1", metadata={"tags": ["parameters"]}
        ),
        new_markdown_cell("# Title\n\ntext"),
        new_code_cell(WORK),
    ]
    write(new_notebook(cells=cells), folder / "toy.ipynb")
    return folder


def shell(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.long
def test_what_takes_long_is_seen_on_a_terminal_only(root, on_a_terminal):
    assert shell("run", root / "toy.ipynb").exit_code == 0
    (root / "toy.yaml").write_text("notebook: toy.ipynb")
    for words, what in (
        (["results", "toy", "--sweep", "toy.yaml", "--out", "."], "results"),
        (["report", "toy.yaml"], "report"),
    ):
        code, out, shown = on_a_terminal(words, root, piped=True)
        assert code == 0 and what in shown and "0:00:0" in shown and "\x1b" not in out, (out, shown)
        silent = subprocess.run(
            [sys.executable, "-c", "from neurobridge.lab.cli import app; app()", *words],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (
            silent.stdout == out and "\x1b" not in silent.stderr and "0:00:0" not in silent.stderr
        )


@pytest.mark.long
def test_a_run_in_a_log(root):
    "As a job script sees it: a process without a terminal."
    command = [
        sys.executable,
        "-c",
        "from neurobridge.lab.cli import app; app()",
        "run",
        "toy.ipynb",
        "-p",
        "seeds",
        "4",
        "-p",
        "lr",
        "-1e-3",
    ]
    ended = subprocess.run(
        command,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "40", "PYTHONIOENCODING": "utf-8"},
    )
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    assert "\x1b" not in ended.stdout and "\r" not in ended.stdout
    lines = ended.stdout.splitlines()
    folder = Path(lines[lines.index("run folder:") + 1])
    assert read_json(folder / "run.json")["params"] == {"seeds": 4, "fail": False, "lr": -1e-3}
    assert (
        Path(lines[lines.index("report:") + 1]) == folder / "report.html"
        and (folder / "report.html").exists()
    )
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert (
        ["toy", "scratch", "bridge"] in cells
        and ["accuracy", "0.915 ± 0.013", "0.965 ± 0.013"] in cells
        and ["epochs", "30", "3"] in cells
    )
    assert (
        any(re.fullmatch(r" +\d+\.\d s  Title", line) for line in lines)
        and "the same everywhere: dataset toy" in lines
    )
    again = shell("run", root / "toy.ipynb", "-p", "seeds=4", "--param", "lr", "-0.001")
    assert (
        again.exit_code == 0
        and "nothing was run" in again.stdout
        and str(folder) in again.stdout.splitlines()
    )


def test_a_failed_run(root):
    ended = shell("run", root / "toy.ipynb", "-p", "fail", "true")
    assert (
        ended.exit_code == 1
        and "RuntimeError: no [bold]luck[/bold]" in ended.stderr
        and "cell 2, line 3, under “Title”" in ended.stderr
    )  # of the page: the values given are a cell that papermill adds
    (folder,) = (root / "runs" / "toy").iterdir()
    assert (
        str(folder) in ended.stderr.splitlines()
        and read_json(folder / "run.json")["status"] == "failed"
    )
    assert (
        "Traceback (most recent call last):\n" not in ended.stderr
    )  # the page's, in IPython's words, but not the program's


@pytest.mark.parametrize(
    "words, said",
    [
        (["-p", "seed", "4"], "did you mean `seeds`?"),
        (["-p", "seeds", "four"], "'four'"),
        (["-p", "seeds"], "no value"),
        (["-p", "seeds", "1", "-p", "seeds=2"], "given twice"),
        (["-p"], "-p"),
        (["--timeout", "0"], "more than 0"),
        (["--sedes", "4"], "--sedes"),
    ],
)
def test_wrong_commands(root, words, said):
    ended = shell("run", root / "toy.ipynb", *words)
    assert (
        ended.exit_code == 2
        and said in ended.stderr
        and ended.stdout == ""
        and not (root / "runs").exists()
    )


def test_wrong_pages(root):
    for name, said in {
        root / "none.ipynb": "no page",
        "nothing": "pipe_s",
        root: "no page",
    }.items():
        ended = shell("run", name)
        assert ended.exit_code == 2 and said in ended.stderr
    assert shell("run").exit_code == 2


def test_a_value_without_its_option_is_answered_with_the_option(root):
    ended = shell("run", root / "toy.ipynb", "seeds=3")
    assert ended.exit_code == 2 and "-p seeds 3" in ended.stderr and not (root / "runs").exists()
    ended = shell("run", root / "toy.ipynb", "-p", "seeds=3", "--help")  # this is one
    assert ended.exit_code == 0


def test_output_that_goes_nowhere(root):
    "A pipe whose reader has gone ends the command without a word; a full disk has a message."
    listed = [sys.executable, "-m", "neurobridge", "list"]
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(listed, cwd=root, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")
    with open("/dev/full", "w") as full:
        ended = subprocess.run(listed, cwd=root, stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert (ended.returncode, ended.stderr) == (1, b"neurobridge: No space left on device\n")


def test_a_folder_that_cannot_be_made(root):
    (root / "file").write_text("")
    for out, code in {root / "file": 2, root / "file" / "deeper": 1}.items():
        ended = shell("run", root / "toy.ipynb", "--out", out)
        assert (
            ended.exit_code == code
            and str(root / "file") in ended.stderr
            and "[Errno" not in ended.stderr
            and ended.stderr.count("\n") == 1
        )


def test_errors_of_the_disk_name_the_file_that_is_meant(root, monkeypatch):
    make_sweep(root)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("NEUROBRIDGE_RUNS", __file__)
        ended = shell("sweep", root / "s.yaml", "--workers", "1")
    assert ended.exit_code == 1 and ended.stderr.startswith(
        f"neurobridge: {__file__} cannot be used (something on this path is a file, not a folder)"
    )
    ended = shell("report", root / "s.yaml", "--out", root)  # a folder
    assert (
        ended.exit_code == 1
        and f"{root} cannot be used (Is a directory); check" in ended.stderr
        and ".part" not in ended.stderr
    )


def test_version_and_help():
    assert shell("--version").stdout.strip() == f"neurobridge {neurobridge.__version__}"
    for words in (
        ["--help"],
        ["run", "--help"],
        ["sweep", "--help"],
        ["table", "--help"],
        ["results", "--help"],
        ["compare", "--help"],
        ["clean", "--help"],
    ):
        assert shell(*words).exit_code == 0
    light = "import sys, neurobridge.lab.cli; sys.exit(bool({'papermill', 'torch', 'pandas', 'nbformat', 'nbconvert'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", light], check=True, timeout=60)


def test_help_shows_every_word_that_was_written_for_it():
    "Rich takes [default: …] for a style, and leaves it out without a word."
    commands = typer.main.get_command(app).commands
    for name, command in commands.items():
        for parameter in command.params:
            text = getattr(parameter, "help", None) or ""
            assert render(text).plain == text, (name, parameter.name)
    shown = " ".join(shell("run", "--help").stdout.replace("│", " ").split())
    assert "[default: (runs/<page>/<id>)]" in shown and "[default: (no limit)]" in shown


def test_advice_can_be_pasted_into_a_shell(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    page = root / "toy.ipynb"
    for words in (["run", page, "--help"], ["new", root / "mine"]):
        shown = shell(*words).stdout
        advice = re.findall(r"neurobridge (?:run|sweep|report) .*", shown)
        named = [shlex.split(line)[2] for line in advice if " [OPTIONS]" not in line]
        assert named and all(str(root) in name for name in named), shown


def test_several_pages_are_refused_with_the_way_to_run_them(root):
    ended = shell("run", root / "toy.ipynb", root / "b.ipynb", root / "c.ipynb")
    said = " ".join(ended.stderr.replace("│", " ").split())
    assert ended.exit_code == 2 and "3 pages are named; expected one" in said, said
    assert "unexpected extra argument" in shell("run", root / "toy.ipynb", "lr", "0.1").stderr


def test_a_page_that_removes_itself_is_done_all_the_same(root):
    place = root / "own"
    place.mkdir()
    source = """import os, shutil
from neurobridge.lab import record
record({'y': 1})
shutil.rmtree(os.getcwd())"""
    write(new_notebook(cells=[new_code_cell(source)]), place / "gone.ipynb")
    ended = shell("run", place / "gone.ipynb")
    assert ended.exit_code == 0 and "done in" in ended.stdout and not ended.stderr, ended.stderr
    assert not place.exists()


def test_whole_numbers_stay_whole_beside_runs_without_them():
    frame = pd.DataFrame({"n": [3, None, 4], "lr": [0.5, None, 1.0], "m": [1, 2, 3]})
    frame.attrs["params"] = ["n", "lr", "m"]
    shown = cli._for_the_screen(frame)
    texts = {name: [cli._cell(value, True) for value in shown[name]] for name in shown}
    assert texts == {"n": ["3", "", "4"], "lr": ["0.5", "", "1.0"], "m": ["1", "2", "3"]}


def test_table(root):
    empty = shell("table")
    assert empty.exit_code == 0 and "no runs yet" in empty.stdout
    for i in range(3):
        content = {
            "id": f"{i:012}",
            "experiment": "toy",
            "status": "done",
            "started": f"2026-01-0{i + 1}",
            "seconds": 1.5,
            "params": {"seeds": i, "lr": 0.1},
        }
        write_json(
            root / "runs" / "toy" / f"{i:012}" / "run.json",
            content | {"metrics": {"accuracy": 0.9 + i / 100}, "rows": []},
        )
    (root / "runs" / "other" / "x").mkdir(parents=True)
    (root / "runs" / "other" / "x" / "run.json").write_text("{")
    shell("table", "toy", "--to", root / "all.csv")
    shown = shell("table", "toy")
    assert shown.exit_code == 0 and "damaged" in shown.stderr and "3 runs" in shown.stdout
    head = shown.stdout.splitlines()[0].split()
    assert "seeds" in head and "lr" not in head and "accuracy" in head
    table = pd.read_csv(root / "all.csv", dtype={"id": str})
    assert (
        table["id"].tolist() == [f"{i:012}" for i in range(3)] and table["lr"].tolist() == [0.1] * 3
    )
    unknown = shell("table", "toys")
    assert unknown.exit_code == 2 and "toy" in unknown.stderr


def make_sweep(root, text="grid: {seeds: [1, 2, 3]}"):
    (root / "s.yaml").write_text(f"notebook: {root / 'toy.ipynb'}\n{text}")
    return Sweep.from_yaml(root / "s.yaml").plan()


def leave(one, status, error=None):
    "A run as one would find it."
    content = {
        "id": one.id,
        "experiment": "toy",
        "status": status,
        "started": "2026-01-01",
        "seconds": 1.5,
        "params": one.full,
        "metrics": {},
        "rows": [],
        "error": error,
        "package": {},
        "modules": {},
        "files": {},
    }
    write_json(one.folder / "run.json", content)


LUCKLESS = {
    "cell": 2,
    "heading": "Title",
    "source": "",
    "ename": "RuntimeError",
    "evalue": "no luck",
    "traceback": [],
}


def test_a_sweep_says_what_it_would_run(root):
    planned = make_sweep(root)
    for one, status, error in zip(planned, ("done", "failed"), (None, LUCKLESS), strict=False):
        leave(one, status, error)
    shown = shell("sweep", root / "s.yaml", "--dry-run").stdout
    assert [line.split()[:2] for line in shown.splitlines()[2:4]] == [
        ["2", "failed"],
        ["3", "absent"],
    ] and "1 done, 1 failed, 1 absent; 2 would be run" in shown
    shown = shell("sweep", root / "s.yaml", "--dry-run", "--only-failed").stdout
    assert (
        [line.split()[:2] for line in shown.splitlines()[2:3]] == [["2", "failed"]]
        and "absent" not in shown.partition("toy:")[0]
        and "1 would be run" in shown
    )


@pytest.mark.long
def test_a_sweep_that_left_something_ends_with_1(root, monkeypatch):
    planned = make_sweep(root)
    monkeypatch.setattr(workers, "executor", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(workers, "work_off", lambda *_, **__: None)  # nothing can be written
    leave(planned[0], "done")
    leave(planned[1], "failed", LUCKLESS)
    assert (
        shell("sweep", root / "s.yaml").exit_code == 1
        and shell("sweep", root / "s.yaml", "--only-failed").exit_code == 1
    )
    leave(planned[1], "done")
    assert (
        shell("sweep", root / "s.yaml").exit_code == 1
        and shell("sweep", root / "s.yaml", "--only-failed").exit_code == 0
    )  # the third was not asked for
    leave(planned[2], "done")
    assert (
        shell("sweep", root / "s.yaml").exit_code == 0
        and shell("sweep", root / "s.yaml", "--workers", "0").exit_code == 2
    )


@given(
    st.lists(st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=1, max_size=6),
    st.integers(0, 3),
)
def test_spread_says_mean_and_deviation(values, missing):
    text = spread(pd.Series([*values, *[None] * missing], dtype=float))
    found = re.fullmatch(r"(-?[\d.]+)(?: ± ([\d.]+))?(?: \((\d+) of (\d+)\))?", text)
    assert found, text
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    assert abs(float(found[1]) - np.mean(values)) <= 0.06 * sd + 1e-3 * abs(np.mean(values)) + 1e-6
    assert found[2] is None if sd == 0 else abs(float(found[2]) - sd) <= 0.06 * sd + 1e-6
    assert (found[3] is None) == (missing == 0) and (
        missing == 0 or (int(found[3]), int(found[4])) == (len(values), len(values) + missing)
    )


@pytest.mark.parametrize(
    "values, text",
    [
        ([5e-8], "5e-08"),
        ([3.1e-9, 3.3e-9], "3.2e-09 ± 1.4e-10"),
        ([0.5, 0.5 + 1e-8], "0.500000 ± 7.1e-09"),
        ([1e-5, -1e-5], "0.000000 ± 0.000014"),
        ([0.1] * 3, None),
        ([float("inf")], "inf"),
    ],
)
def test_small_numbers_are_not_nothing(values, text):
    "An energy of nanojoules is no zero; a deviation of rounding is no deviation of seeds."
    found = spread(pd.Series(values))
    assert found == text if text else "e-" not in found


def test_summaries_without_an_arm():
    table, same = summarise(
        [
            {"mode": mode, "size": 4, "loss": loss}
            for mode, loss in (("a", 1.0), ("a", 2.0), ("b", 3.0))
        ]
    )
    assert (
        list(table) == ["a", "b"]
        and table["a"].to_dict() == {"rows": "2", "loss": "1.50 ± 0.71"}
        and same == {"size": "4"}
    )
    table, same = summarise([{"loss": 1.0}])
    assert table["all"].to_dict() == {"rows": "1", "loss": "1"} and same == {}
    table, _ = summarise(
        [{"arm": "a", "seed": s, "note": n, "ok": True} for s, n in enumerate("xy")]
        + [{"arm": "b", "seed": 0, "note": None, "ok": False}]
    )
    assert (
        table["a"].to_dict() == {"seeds": "2", "note": "x, y", "ok": "True"}
        and table["b"]["note"] == ""
    )
