"What a run was made with: it is done while all of that is as it was, and different versions are told apart everywhere."

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner

import neurobridge
from neurobridge.core import data_root
from neurobridge.core.files import read_json, write_json
from neurobridge.core.paths import local_path, runs_root
from neurobridge.lab import (
    RunRefused,
    Sweep,
    compare_runs,
    declare,
    group_runs,
    load_runs,
    record,
    run_notebook,
    run_sweep,
    sweep_runs,
    sweep_table,
    write_results,
    write_sweep_report,
)
from neurobridge.lab.cli import app
from neurobridge.lab.report.recorded import (
    choose_runs,
    count_versions,
    finished,
    join_rows,
    join_tables,
)
from neurobridge.lab.report.sweep_figures import draw_curves
from neurobridge.lab.report.tables import metric_columns, varying
from neurobridge.lab.run.engine import kernel_environment
from neurobridge.lab.run.identity import differences, versions
from neurobridge.lab.run.page import find_page, page_name

RECORD = "from neurobridge.lab.run.execute import declare, record, run_dir\n"
NOTED = {"package": {}, "modules": {}, "files": {}}


def make(path, *cells, parameters="seed: int = 0", subtitle="What is it"):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = [
        new_markdown_cell(f"# A page\n\n> {subtitle}"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
    ]
    nbformat.write(
        new_notebook(
            cells=[
                *head,
                *(cell if isinstance(cell, dict) else new_code_cell(cell) for cell in cells),
            ]
        ),
        path,
    )
    return path


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("NEUROBRIDGE_RUN", raising=False)
    return tmp_path


def shell(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def keep(root, name, params, page="exp", **more):
    content = {"id": name, "experiment": page, "status": "done", "started": f"2026-01-01T00:00:{len(name):02}", "seconds": 1.0, "params": params, "metrics": {"loss": 0.5}, "rows": [],
               "environment": {}, "page": "beef" * 3, **NOTED, **more}  # fmt: skip
    write_json(root / "runs" / page / name / "run.json", content)
    return root / "runs" / page / name


# Done, and not done


@pytest.mark.long
def test_a_module_or_file_of_the_page_that_changes_is_asked_again(root):
    "The module is imported, one file is opened without a word, one declared; what the page writes itself is no input."
    (root / "helper.py").write_text("FACTOR = 2")
    (root / "unused.py").write_text("x = 1")
    (root / "data.csv").write_text("1")
    (root / "more").mkdir()
    work = "from helper import FACTOR\nopen('own.txt', 'w').write(str(seed)); open('own.txt').read()\ndeclare('more')\nrecord({'y': FACTOR * float(open('data.csv').read())})"
    page = make(root / "p.ipynb", RECORD + work)
    first = run_notebook(page)
    assert (
        first.metrics == {"y": 2}
        and set(first.record["modules"]) == {"helper.py"}
        and set(first.record["files"]) == {"data.csv", "more"}
    )
    make(page, RECORD + work, "", subtitle="What is it.")  # prose, and an empty cell
    (root / "unused.py").write_text("x = 2")
    (root / "own.txt").write_text("changed by somebody")
    assert not run_notebook(page).fresh
    (root / "helper.py").write_text("FACTOR = 3")
    second = run_notebook(page)
    assert (
        second.fresh
        and second.metrics == {"y": 3}
        and second.folder.name == f"{first.id}.2"
        and first.folder.exists()
    )
    (root / "data.csv").write_text("5")
    assert run_notebook(page).metrics == {"y": 15}
    (root / "more" / "new.csv").touch()
    assert run_notebook(page).fresh and not run_notebook(page).fresh
    (root / "helper.py").write_text("FACTOR = 2")
    (root / "data.csv").write_text("1")
    (root / "more" / "new.csv").unlink()
    back = run_notebook(page)
    assert not back.fresh and back.folder == first.folder  # the first is what is asked now
    with pytest.raises(RunRefused, match="made with other files .helper.py"):
        (root / "helper.py").write_text("FACTOR = 4")
        run_notebook(page, out=first.folder)
    table = load_runs()
    assert table["version"].nunique() == 4 and len(group_runs(table, ["seed"])) == 4
    told = count_versions(finished("p"), page)
    assert sum(told.values()) == 4 and all("helper.py" in words for words in told)


@pytest.mark.long
def test_a_run_knows_which_modules_of_the_package_it_imported(root, tmp_path):
    "Halved spikes in a copy of the package are another version; a remark in a module that was not imported is none."
    copy = tmp_path / "copy" / "neurobridge"
    shutil.copytree(
        Path(neurobridge.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__")
    )
    page = make(
        root / "p.ipynb",
        RECORD
        + "from neurobridge.core.files import file_hash\nrecord({'n': len(file_hash.__doc__)})",
    )
    code = f"from neurobridge.lab.run.execute import run_notebook; r = run_notebook({str(page)!r}); print(r.fresh, r.folder.name)"

    def run():
        env = kernel_environment() | {
            "PYTHONPATH": str(copy.parent),
            "NEUROBRIDGE_RUNS": str(root / "runs"),
        }
        return subprocess.run(
            [sys.executable, "-c", code],
            env=env,
            capture_output=True,
            text=True,
            check=True,
            cwd=root,
        ).stdout.split()

    fresh, name = run()
    noted = read_json(root / "runs" / "p" / name / "run.json")["package"]
    assert (
        fresh == "True"
        and "neurobridge/core/files.py" in noted
        and "neurobridge/snn/lif.py" not in noted
    )
    (copy / "snn" / "lif.py").open("a").write("\n# a remark\n")
    assert run() == ["False", name]
    (copy / "core" / "files.py").open("a").write("\nfile_hash.__doc__ = ''\n")
    assert run() == ["True", f"{name}.2"]
    a, b = (
        {"n": record["metrics"]["n"], "version": version}
        for (_, record), version in zip(
            finished("p"), versions([r for _, r in finished("p")]), strict=True
        )
    )
    assert (
        a["n"] != b["n"]
        and "neurobridge/core/files.py" in a["version"]
        and a["version"] != b["version"]
    )
    shown = shell("compare", name, f"{name}.2").stdout
    assert "neurobridge/core/files.py" in shown
    with pytest.raises(RunRefused, match="several versions"):
        choose_runs("p", [Sweep("s", page, ({},), repeats=2)])
    assert len(group_runs(load_runs(), ["seed"])) == 2


def test_records_of_the_first_version_are_of_unknown_version(root):
    page = make(root / "exp.ipynb", RECORD + "record({'loss': 0.25})")
    run = run_notebook(page)
    old = {
        key: value
        for key, value in run.record.items()
        if key not in ("package", "modules", "files", "source")
    }
    write_json(run.folder / "run.json", old)
    assert (
        differences(old, page) == ["modules that were not noted"]
        and run_notebook(page).folder.name == f"{run.id}.2"
    )
    write_json(
        root / "runs" / "exp" / "0123456789ab" / "run.json",
        old | {"id": "0123456789ab", "params": {"seed": 1}},
    )
    assert count_versions(finished("exp"), page) == {
        "the page as it is now, its modules not noted": 2,
        "the page as it is now": 1,
    }
    assert sorted(load_runs()["version"].fillna("")) == [
        "",
        "modules not noted",
        "modules not noted",
    ]
    sweep = Sweep("s", page, ({"seed": 0}, {"seed": 1}))
    with pytest.raises(RunRefused, match="1 of the page as it is now, its modules not noted"):
        choose_runs("exp", [sweep])


def test_a_stopped_run_goes_on_with_the_same_modules_only(root):
    (root / "helper.py").write_text("x = 1")
    page = make(
        root / "p.ipynb",
        RECORD
        + "import helper\nmark = run_dir() / 'mark'\nseen = mark.exists()\nmark.touch()\nassert helper.x == 2 or seen\nrecord({'seen': seen + 0})",
    )
    with pytest.raises(Exception, match="AssertionError"):
        run_notebook(page)
    (root / "helper.py").write_text("x = 2")
    sweep = Sweep("s", page, ({},))
    assert sweep_table(sweep.plan())["status"].tolist() == ["absent"]
    again = run_notebook(page)
    assert again.metrics == {"seen": 0} and again.folder.name.endswith(
        ".2"
    )  # not with the mark of the other module


def test_a_cleaned_first_folder_does_not_hide_a_later_one(root):
    (root / "helper.py").write_text("x = 1")
    page = make(root / "p.ipynb", RECORD + "import helper\nrecord({'x': helper.x})")
    first = run_notebook(page)
    (root / "helper.py").write_text("x = 2")
    second = run_notebook(page)
    shutil.rmtree(first.folder)
    assert run_notebook(page).folder == second.folder and not run_notebook(page).fresh


def test_declared_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="path is 'no.csv', and there is no such file"):
        declare("no.csv")
    for wrong, said in ((3, "path is 3"), ("", "path is ''"), ("s3://b/x.csv", "an address")):
        with pytest.raises((TypeError, ValueError), match=said):
            declare(wrong)
    (tmp_path / "a.csv").touch()
    assert declare("a.csv") == tmp_path / "a.csv"


# One name a page


def test_two_pages_of_one_name(root):
    a, b = (
        make(root / place / "exp.ipynb", RECORD + f"record({{'loss': {number}}})")
        for number, place in enumerate("ab")
    )
    first, second = run_notebook(a), run_notebook(b)
    assert (
        first.folder.parent.name == "exp" == page_name(a)
        and second.folder.parent.name == page_name(b) != "exp"
        and page_name(b).startswith("exp-")
    )
    tables = [
        pd.read_csv(write_results(name, out=root / "results")[0])
        for name in ("exp", page_name(b), str(a), str(b))
    ]
    assert [table.loss.tolist() for table in tables] == [[0], [1], [0], [1]]
    assert (
        len({file.name for file in (root / "results").iterdir()}) == 2
        and load_runs()["experiment"].nunique() == 2
    )
    said = shell("results", "exp", "--out", root / "results")
    assert f"{page_name(b)}, the runs of another page of this name" in said.stderr
    for place in "ab":
        (root / f"{place}.yaml").write_text(f"notebook: {root / place / 'exp.ipynb'}")
    reports = [write_sweep_report(Sweep.from_yaml(root / f"{place}.yaml")) for place in "ab"]
    assert reports[0].parent != reports[1].parent and sweep_runs(Sweep.from_yaml(root / "b.yaml"))[
        "loss"
    ].tolist() == [1]
    assert page_name(find_page("pipe_s")) == "pipe_s" and page_name(
        make(root / "pipe_s.ipynb")
    ).startswith("pipe_s-")


# What is left out is said


def test_left_out_cells_are_said_and_can_be_run(root):
    page = make(
        root / "p.ipynb",
        RECORD + "acc = 0.5",
        "#| slow\nacc = 0.9",
        "#| eval: false\nacc = 0.1",
        "record({'acc': acc})",
    )
    first = run_notebook(page)
    assert first.metrics == {"acc": 0.5} and [
        (one["cell"], one["why"]) for one in first.record["skipped"]
    ] == [(3, "slow"), (4, "eval: false")]
    said = shell("run", page)
    assert (
        "left out: cell 3 (slow): acc = 0.9" in said.stdout
        and "--slow runs" in said.stdout
        and "acc = 0.9" in first.report.read_text()
    )
    whole = run_notebook(page, slow=True)
    assert (
        whole.metrics == {"acc": 0.9}
        and whole.folder != first.folder
        and not run_notebook(page).fresh
        and not run_notebook(page, slow=True).fresh
    )
    (root / "s.yaml").write_text(f"notebook: {page}\nslow: true")
    assert sweep_table(Sweep.from_yaml(root / "s.yaml").plan())["acc"].tolist() == [0.9]
    plain = make(root / "q.ipynb", RECORD + "record({'acc': 1})")
    assert run_notebook(plain).id == run_notebook(plain, slow=True).id  # it leaves nothing out


@pytest.mark.parametrize(
    "cells, said",
    [
        (["1"], "recorded nothing"),
        (["import sys\nsys.exit()", RECORD + "record({'a': 1})"], "after sys.exit() in cell 2"),
    ],
)
def test_a_page_that_records_nothing_says_so(root, cells, said):
    page = make(root / "p.ipynb", *cells)
    shown = shell("run", page)
    assert shown.exit_code == 0 and said in shown.stdout and "recorded nothing" in shown.stdout
    assert "nothing: the page ended" in run_notebook(page).report.read_text()


def test_record_adds_and_refuses_a_second_value(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROBRIDGE_RUN", str(tmp_path))
    record({"a": 1}, rows=[{"x": 1}])
    record({"b": 2.5, "a": 1.0}, rows=[{"x": 2}])
    assert read_json(tmp_path / "metrics.json")["metrics"] == {"a": 1.0, "b": 2.5} and pd.read_csv(
        tmp_path / "rows.csv"
    ).x.tolist() == [1, 2]
    with pytest.raises(ValueError, match="'a' is 2, and 1.0 was recorded before"):
        record({"a": 2})
    for wrong in ({1: 0.5}, {"": 0.5}, [("a", 1)], "a"):
        with pytest.raises(TypeError, match="record: metrics"):
            record(wrong)
    for wrong in ({"x": 1}, "x", pd.DataFrame({"x": [1]}), [3]):
        with pytest.raises(TypeError, match="record: rows"):
            record({}, rows=wrong)
    assert read_json(tmp_path / "metrics.json")["metrics"] == {"a": 1.0, "b": 2.5}


def test_every_run_is_in_every_table(root):
    for seed in range(3):
        for lr in (0.1, 0.1000000001):
            folder = keep(root, f"run{seed}{lr}", {"seed": seed, "lr": lr})
            pd.DataFrame({"epoch": [1, 2], "valid_accuracy": seed}).to_csv(
                folder / "curves.csv", index=False
            )
    curves = join_tables(choose_runs("exp"))["curves"]
    assert (
        len(curves) == 12
        and curves.groupby(["seed", "lr"]).size().tolist() == [2] * 6
        and (curves.valid_accuracy == curves.seed).all()
    )
    keep(root, "rows", {"seed": 7, "lr": 1.0}, rows=[{"seed": 1, "accuracy": 0.5}])
    row = join_rows(choose_runs("exp")).query("accuracy == 0.5").iloc[0]
    assert (row["seed"], row["param.seed"], row["metric.loss"]) == (1, 7, 0.5)


def test_values_that_only_look_alike_are_no_group(root):
    "1 and True are equal to pandas, 1 and the text 1 are written alike."
    for i, value in enumerate((1, True, "1", None, "None")):
        keep(root, f"{'a' * i}b", {"x": value, "lr": 0.1 + i * 1e-10}, metrics={"loss": 10**30 + i})
    frame = load_runs()
    table = group_runs(frame, ["x"])
    assert (
        len(table) == 5
        and set(map(repr, table.x)) == {"1", "True", "'1'", "None", "'None'"}
        and metric_columns(frame) == ["seconds", "loss"]
        and varying(frame) == ["x", "lr"]
    )
    shown = shell("table", "--group", "lr").stdout
    assert all(str(0.1 + i * 1e-10) in shown for i in range(5))
    frame.loc[0, "loss"] = None
    assert group_runs(frame, ["status"])[["runs", "loss_runs"]].values.tolist() == [[5, 4]]


def test_versions_are_no_mean_in_a_sweeps_report(root):
    page = make(root / "exp.ipynb")
    sweep = Sweep("s", page, ({"seed": 0}, {"seed": 1}))
    for number, one in enumerate(sweep.plan()):
        noted = NOTED | {"modules": {"helper.py": "ab"[number] * 12}}
        folder = keep(root, one.folder.name, one.full, metrics={"loss": float(number)}, **noted)
        pd.DataFrame({"epoch": [1, 2], "loss": number}).to_csv(folder / "curves.csv", index=False)
    runs = sweep_runs(sweep)
    assert runs["version"].tolist() == ["helper.py " + "a" * 12, "helper.py " + "b" * 12]
    assert (
        draw_curves(runs, ["version"]) is not None
        and "helper.py aaaaaaaaaaaa" in write_sweep_report(sweep).read_text()
    )
    a, b = ({"folder": folder, "record": record} for folder, record in finished("exp"))
    from neurobridge.lab.run.run_record import Run

    different = compare_runs(Run(**a), Run(**b)).query("differs and part == 'code'")
    assert different.name.tolist() == ["helper.py"]


# What is no path, no limit, no name


@pytest.mark.parametrize(
    "address", ["s3://bucket/x", "gs://b/x", "https://host/x.ipynb", "file:///x", "s3:/bucket"]
)
def test_addresses_are_no_paths(root, monkeypatch, address):
    page = make(root / "p.ipynb")
    monkeypatch.chdir(root)
    before = sorted(root.iterdir())
    for call in (
        lambda: run_notebook(page, out=address),
        lambda: find_page(address),
        lambda: Sweep.from_yaml(address),
        lambda: load_runs(address),
        lambda: write_results("p", out=address),
    ):
        with pytest.raises(RunRefused, match="an address|there is no page"):
            call()
    for words in (
        ["run", page, "--out", address],
        ["run", address],
        ["sweep", address],
        ["compare", address, address],
        ["table", "--to", f"{address}.csv"],
        ["results", "p", "--out", address],
    ):
        ended = shell(*words)
        assert ended.exit_code in (0, 2) and (
            ended.exit_code == 2 or "no runs yet" in ended.stdout
        ), (words, ended.output, ended.exception)
    for name, call in {"NEUROBRIDGE_RUNS": runs_root, "NEUROBRIDGE_DATA": data_root}.items():
        with monkeypatch.context() as inner:
            inner.setenv(name, address)
            with pytest.raises(ValueError, match=f"{name} is '{address}', an address"):
                call()
            if name == "NEUROBRIDGE_RUNS":
                ended = shell("run", page)
                assert ended.exit_code == 2 and "an address" in ended.stderr
    assert sorted(root.iterdir()) == before
    ended = shell("run", page, "--out", "s3://bucket/x")
    assert "out is 's3://bucket/x', an address" in ended.stderr
    assert "neurobridge: neurobridge:" not in ended.stderr
    assert local_path("x", "y", "a:b/c") == Path("a:b/c")


@pytest.mark.parametrize("limit", [float("nan"), -1, 0, float("-inf"), True, "soon"])
def test_limits_that_are_none_are_refused(root, limit):
    with pytest.raises((RunRefused, TypeError), match="timeout is"):
        run_notebook(make(root / "p.ipynb"), timeout=limit)
    if isinstance(limit, float):
        assert shell("run", root / "p.ipynb", "--timeout", str(limit)).exit_code == 2
    assert not (root / "runs").exists()


def test_infinity_is_no_limit(root):
    page = make(root / "p.ipynb", RECORD + "record({'a': 1})")
    assert run_notebook(page, timeout=float("inf")).status == "done"
    (root / "s.yaml").write_text(f"notebook: {page}\ntimeout: .inf")
    assert Sweep.from_yaml(root / "s.yaml").resources.timeout is None


def test_only_what_may_pass_is_tried_again():
    from neurobridge.lab.sweep.worker import _may_pass

    found = {
        name: _may_pass({"ename": name, "cell": 2})
        for name in (
            "RuntimeError",
            "ValueError",
            "MemoryError",
            "DeadKernel",
            "Timeout",
            "OSError",
            "FileNotFoundError",
            "KeyError",
        )
    }
    assert [name for name, again in found.items() if again] == [
        "DeadKernel",
        "Timeout",
        "OSError",
        "FileNotFoundError",
    ]
    assert _may_pass({"ename": "RuntimeError", "cell": None})  # the machinery


def test_report_and_results_take_the_same_names(root):
    page = make(root / "exercise3.ipynb", RECORD + "record({'a': 1})")
    (root / "ex3.yaml").write_text(f"notebook: {page}")
    run_notebook(page)
    assert shell("report", root / "ex3.yaml").exit_code == 0
    ended = shell("results", root / "ex3.yaml", "--out", root / "results")
    assert ended.exit_code == 0 and (root / "results" / "exercise3.csv").exists(), ended.output
    assert "has 0 sweep files" in shell("report", "exercise3").stderr


@pytest.mark.long
def test_a_sweep_with_modules_that_changed(root, monkeypatch):
    "With warm kernels: a module of the page's folder is read anew by each."
    pytest.importorskip("distributed")
    monkeypatch.setenv("NEUROBRIDGE_PRELOAD", "ipykernel.kernelapp ipykernel.ipkernel")
    (root / "helper.py").write_text("FACTOR = 2")
    page = make(
        root / "p.ipynb", RECORD + "from helper import FACTOR\nrecord({'y': FACTOR * seed})"
    )
    (root / "s.yaml").write_text(f"notebook: {page}\nseeds: 2")
    sweep = Sweep.from_yaml(root / "s.yaml")
    assert run_sweep(sweep, 1)["y"].tolist() == [0, 2]
    (root / "helper.py").write_text("FACTOR = 3")
    assert sweep_table(sweep.plan())["status"].tolist() == ["absent"] * 2 and run_sweep(sweep, 1)[
        "y"
    ].tolist() == [0, 3]
    assert (
        json.loads((sweep.plan()[0].folder / "run.json").read_text())["modules"].keys()
        == {"helper.py"}
        and os.listdir(root / "runs" / "p").count(sweep.plan()[0].id) == 1
    )
