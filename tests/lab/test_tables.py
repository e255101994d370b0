"Tables, comparisons and cleaning: what a condition means, what a mean hides, and what is never removed."

import io
import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from typer.testing import CliRunner

from neurobridge.core.files import mark_folder, write_json
from neurobridge.lab import (
    RunBusy,
    RunRefused,
    Sweep,
    compare_runs,
    find_run,
    group_runs,
    load_runs,
    where,
)
from neurobridge.lab.cli import _tell_sweep, app
from neurobridge.lab.report.comparison import run_figures, write_comparison
from neurobridge.lab.report.tables import format_table, metric_columns, varying, write_table
from neurobridge.lab.run import lock
from neurobridge.lab.run.engine import kernel_environment
from neurobridge.lab.run.lock import owned
from neurobridge.lab.run.rubbish import find_rubbish, remove_rubbish

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(tmp_path / "runs"))
    return tmp_path


def keep(root, number, params, metrics=None, status="done", experiment="toy"):
    name = f"{number:012x}"
    content = {"id": name, "experiment": experiment, "status": status, "started": f"2026-01-01T00:00:{number % 60:02}", "seconds": 1.0 + number, "params": params,
               "metrics": metrics or {}, "rows": [], "environment": {"commit": "0" * 40, "torch": "2"}}  # fmt: skip
    write_json(root / "runs" / experiment / name / "run.json", content)
    mark_folder(root / "runs" / experiment / name, "run")
    return root / "runs" / experiment / name


def shell(*words, **settings):
    return CliRunner().invoke(app, [str(word) for word in words], **settings)


# Tables


def test_where_is_what_pandas_says_and_names_its_columns(root):
    for i in range(6):
        keep(
            root, i, {"n": i, "word": "ab"[i % 2]}, {"loss": i / 2}, "failed" if i == 5 else "done"
        )
    frame = load_runs()
    assert (
        where(frame, "n > 1 and word == 'a'").n.tolist() == [2, 4]
        and len(where(frame, "not status == 'done'")) == 1
    )
    assert where(frame, "n in [0, 5]").attrs["params"] == ["n", "word"]
    for condition in (
        "m > 1",
        "n + 1",
        "n >",
        "n > 'a'",
        "__import__('os').getcwd() == 'x'",
        "",
        "1 == 1",
    ):
        with pytest.raises(RunRefused, match="with columns id, experiment"):
            where(frame, condition)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from("xy"),
            st.integers(0, 3),
            st.one_of(st.none(), st.floats(-5, 5)),
            st.booleans(),
        ),
        min_size=1,
        max_size=25,
    )
)
def test_groups_are_those_of_a_loop(found):
    "Against sums in plain Python, with missing values and failed runs among them."
    frame = pd.DataFrame(
        [
            {
                "id": str(i),
                "status": "done" if ok else "failed",
                "n": n,
                "word": word,
                "seed": seed,
                "loss": loss,
            }
            for i, (n, word, seed, loss, ok) in enumerate(found)
        ]
    )
    frame["loss"] = frame["loss"].astype(float)
    frame.attrs["params"] = ["n", "word", "seed"]
    table = group_runs(frame, ["n", "word"])
    groups = {}
    for n, word, seed, loss, ok in found:
        if ok:
            groups.setdefault((n, word), []).append((seed, loss))
    assert [tuple(row) for row in table[["n", "word"]].itertuples(index=False)] == sorted(groups)
    for row in table.itertuples():
        seeds, losses = zip(*groups[row.n, row.word], strict=True)
        losses = [loss for loss in losses if loss is not None]
        assert row.runs == len(seeds) and row.within == ("seed" if len(set(seeds)) > 1 else "")
        if "loss" in table:
            assert (
                np.isnan(row.loss)
                if not losses
                else row.loss == pytest.approx(sum(losses) / len(losses), abs=1e-9)
            )
            assert (
                np.isnan(row.loss_sd)
                if len(losses) < 2
                else row.loss_sd == pytest.approx(np.std(losses, ddof=1), abs=1e-9)
            )


def test_no_mean_is_over_two_versions_of_the_page(root):
    for i in range(4):
        folder = keep(root, i, {"n": i // 2, "seed": 0}, {"loss": i})
        write_json(
            folder / "run.json",
            {
                **json.loads((folder / "run.json").read_text()),
                "page": "ab"[i % 2] if i < 2 else "b",
            },
        )
    grouped = group_runs(load_runs(), ["n"])
    assert (
        grouped[["n", "page", "runs", "within"]].values.tolist()
        == [[0, "a", 1, ""], [0, "b", 1, ""], [1, "b", 2, ""]]
        and len(where(load_runs(), "page == 'b'")) == 3
    )
    assert (
        "page" in shell("table").stdout
        and "page" not in shell("table", "--where", "page == 'b'").stdout
    )


def test_groups_by_lists_and_by_nothing_that_is_there(root):
    for i in range(4):
        keep(root, i, {"layers": [8, 16] if i < 3 else [4], "seed": i, "ok": True}, {"loss": i})
    frame = load_runs()
    table = group_runs(frame, ["layers"])
    assert (
        table.layers.tolist() == ["[4]", "[8, 16]"]
        and table.runs.tolist() == [1, 3]
        and table.within.tolist() == ["", "seed"]
    )
    assert metric_columns(frame) == ["seconds", "loss"] and varying(frame) == ["layers", "seed"]
    with pytest.raises(RunRefused, match="did you mean layers"):
        group_runs(frame, ["layer"])
    assert len(group_runs(where(frame, "seed > 9"), ["seed"])) == 0


def test_five_thousand_records(root):
    "The size that is promised; how long it takes is measured by benchmarks/records.py."
    (root / "runs" / "toy").mkdir(parents=True)
    for i in range(5000):
        folder = root / "runs" / "toy" / f"{i:012x}"
        folder.mkdir()
        record = {
            "id": folder.name,
            "experiment": "toy",
            "status": "done",
            "started": f"{i:05}",
            "seconds": 1.5,
            "params": {"n": i // 5, "seed": i % 5},
            "metrics": {"loss": i},
            "rows": [],
        }
        (folder / "run.json").write_text(json.dumps(record))
    table = group_runs(load_runs(), ["n"])
    assert (
        len(table) == 1000
        and set(table.runs) == {5}
        and table.loss.tolist() == [5 * n + 2 for n in range(1000)]
        and set(table.within) == {"seed"}
    )


def test_the_runs_of_an_experiment_keep_their_types(root):
    "Others' runs, which have other parameters, would make 1.0 of 1 and holes in what is true or false."
    for i in range(2):
        keep(root, i, {"n": i, "boom": bool(i)}), keep(root, 10 + i, {"m": i}, experiment="other")
    assert shell("table", "toy", "--to", "csv").stdout.splitlines()[1].split(",")[8:10] == [
        "0",
        "False",
    ]
    shown = shell("table", "toy", "--where", "boom")
    assert shown.exit_code == 0 and "1 run below" in shown.stdout
    assert (
        shell("table", "toy", "--where", "").exit_code == 2
        and "there are runs of: other, toy" in shell("table", "nope").stderr
    )


def test_none_is_a_value(root):
    "Of numbers, of words and of truth values alike; a sweep that varies it shows it, a mean over it says so."
    for i, values in enumerate(
        [(None, "a", None), (0.5, None, True), (None, None, None), (0.5, "a", True)]
    ):
        keep(
            root,
            i,
            dict(zip(("decay", "word", "ok"), values, strict=True)) | {"n": i // 2},
            {"loss": i},
        )
    frame = load_runs()
    assert (
        varying(frame) == ["decay", "word", "ok", "n"]
        and group_runs(frame, ["n"]).within.tolist() == ["decay, word, ok"] * 2
    )
    table = group_runs(frame, ["word"])
    assert table.runs.tolist() == [2, 2] and table.within.tolist() == ["decay, ok, n"] * 2
    assert where(frame, "decay == None and n == 1").index.tolist() == [2] and where(
        frame, "word != None or `ok` == None"
    ).index.tolist() == [0, 2, 3]
    assert where(frame, "word == 'n == None'").index.tolist() == [] and where(
        frame, "n == [0, 7]"
    ).index.tolist() == [0, 1]
    assert shell("table", "--group", "n,n").stdout == shell("table", "--group", "n").stdout != ""
    batch = Sweep("s", root / "toy.ipynb", ({"decay": None, "n": 5}, {"decay": 0.5, "n": 5}))
    frame = pd.DataFrame(
        [
            {**setting, "status": "absent", "seconds": None, "error": None, "folder": ""}
            for setting in batch.settings
        ]
    )
    with redirect_stdout(io.StringIO()) as said:
        _tell_sweep(batch, frame)
    assert said.getvalue().split()[:2] == ["decay", "status"]


def test_lists_are_compared_with_lists(root):
    for i, widths in enumerate([[4, 8], [8], None, [[4], [8]]]):
        keep(root, i, {"widths": widths, "n": i})
    frame = load_runs()
    found = [
        where(frame, condition).index.tolist()
        for condition in (
            "widths == [4,8]",
            "n < 3 and widths != [4, 8]",
            "widths == [[4], [8]]",
            "widths == None",
            "widths == '[8]'",
        )
    ]
    assert found == [[0], [1, 2], [3], [2], [1]] and where(frame, "n == 0").widths.tolist() == [
        [4, 8]
    ]


def test_formats(root):
    frame = pd.DataFrame({"name": ["a|b", "c\nd"], "value": [1 / 3, None], "n": [1, 2]})
    write_table(frame, root / "t.csv")
    pd.testing.assert_frame_equal(pd.read_csv(root / "t.csv"), frame)
    assert format_table(frame, "md").decode().splitlines() == [
        "| name | value | n |",
        "| --- | --- | --- |",
        "| a\\|b | 0.333333 | 1 |",
        "| c d |  | 2 |",
    ]
    with pytest.raises(RunRefused, match="'xls' is no format"):
        write_table(frame, root / "t.xls")
    assert not (root / "t.xls").exists()


def test_parquet(root):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(
        {"name": ["a", None], "value": [0.5, 1.0], "n": [1, 2], "ok": [True, False]}
    )
    write_table(frame, root / "t.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(root / "t.parquet"), frame)
    (
        keep(root, 1, {"n": 1, "mixed": "x", "layers": [1, 2]}),
        keep(root, 2, {"n": 2, "mixed": 3, "layers": None}),
    )
    piped = pd.read_parquet(io.BytesIO(shell("table", "--to", "parquet").stdout_bytes))
    assert (
        piped.n.tolist() == [1, 2]
        and piped.mixed.tolist() == ["x", "3"]
        and piped.layers[0] == "[1, 2]"
        and pd.isna(piped.layers[1])
    )


def test_parquet_takes_long_whole_numbers(root):
    "A seed of 128 bits is one, and Parquet's numbers have 64."
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install pyarrow")
    for number, seed in enumerate((2**127 + 1, -3, 5)):
        keep(root, number, {"seed": seed, "k": number}, {"loss": 0.5})
    back = pd.read_parquet(io.BytesIO(format_table(load_runs(), "parquet")))
    assert back["seed"].tolist() == [str(2**127 + 1), "-3", "5"] and back["k"].tolist() == [0, 1, 2]


def test_parquet_without_its_library(monkeypatch):
    for name in ("pyarrow", "fastparquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RunRefused, match=r"^Parquet needs pyarrow; run: pip install pyarrow$"):
        format_table(pd.DataFrame({"a": [1]}), "parquet")


def test_tables_from_the_shell(root):
    for i in range(6):
        keep(root, i, {"n": i // 3, "seed": i % 3}, {"loss": i / 10})
    shown = shell("table", "--where", "seed < 2", "--group", "n")
    assert (
        shown.exit_code == 0 and "0.050 ± 0.071" in shown.stdout and "4 runs below" in shown.stdout
    )
    piped = pd.read_csv(io.StringIO(shell("table", "--group", "n", "--to", "csv").stdout))
    assert piped.loss.round(9).tolist() == [0.1, 0.4] and piped.loss_sd.round(9).tolist() == [
        0.1,
        0.1,
    ]
    assert (
        shell("table", "toy", "--to", root / "out" / "t.csv").stdout.strip()
        == str(root / "out" / "t.csv")
        and len(pd.read_csv(root / "out" / "t.csv")) == 6
    )
    assert "'xml' is no format" in shell("table", "--to", "xml").stderr
    for words, said in {
        ("--where", "loss <"): "--where",
        ("--group", "m"): "no such column",
        ("--to", "xls"): "no format",
    }.items():
        ended = shell("table", *words)
        assert ended.exit_code == 2 and said in ended.stderr and ended.stdout == "", words


# Comparisons


def test_two_runs_side_by_side(root):
    a, b = (
        keep(root, 0xAB0, {"n": 1, "lr": 0.1}, {"loss": 0.5}),
        keep(root, 0xAB1, {"n": 2, "lr": 0.1, "new": "<b>"}, {"loss": 0.5, "spikes": 3}),
    )
    first, second = find_run(a.name), find_run(str(b))
    table = compare_runs(first, second).set_index(["part", "name"])
    assert table.differs[table.differs].loc[["parameters", "metrics"]].index.tolist() == [
        ("parameters", "n"),
        ("parameters", "new"),
        ("metrics", "spikes"),
    ]
    assert table.loc[("metrics", "spikes"), "a"] is None and table.loc[
        ("parameters", "n"), ["a", "b"]
    ].tolist() == [1, 2]
    assert (
        not compare_runs(first, first).differs.any() and not table.loc["environment"].differs.any()
    )
    picture = new_output("display_data", {"image/png": PNG})
    write(
        new_notebook(
            cells=[new_markdown_cell("# T\n\n## <Curves>"), new_code_cell("", outputs=[picture])]
        ),
        a / "notebook.ipynb",
    )
    assert [heading for heading, _ in run_figures(first)] == ["<Curves>"] and run_figures(
        second
    ) == []
    text = write_comparison(first, second, root / "c.html").read_text()
    assert (
        text.count("<img") == 1
        and "no figure here" in text
        and "&lt;Curves&gt;" in text
        and "&lt;b&gt;" in text
        and "<b>" not in text
        and "://" not in text
    )
    shown = shell("compare", a.name, b.name, "--html", root / "d.html")
    assert (
        shown.exit_code == 0
        and (root / "d.html").read_text() == text
        and "1 parameters" in shown.stdout
        and "loss" not in shown.stdout
    )


def test_a_narrow_terminal_shows_both_runs_of_a_comparison(root, on_a_terminal):
    a = keep(root, 0xAB0, {"n": 1, "lr": 0.1}, {"loss": 0.5})
    b = keep(root, 0xAB1, {"n": 2, "text": "long " * 40}, {"loss": 0.5, "spikes": 3})
    code, _, shown = on_a_terminal(["compare", a.name, b.name], root, columns=60)
    shown = re.sub(r"\x1b\[[0-9;]*m|\r", "", shown)
    assert code == 0 and f"a: {a.name}" in shown and f"b: {b.name}" in shown, shown
    assert "more columns" not in shown and shown.count("long") == 40, shown


def test_runs_that_are_not_found(root):
    keep(root, 0xAB0, {}), keep(root, 0xAB1, {})
    (root / "runs" / "toy" / ("c" * 12)).mkdir()
    (root / "runs" / "toy" / ("c" * 12) / "run.json").write_text("{")
    for name, said in {
        "0" * 9: "give more digits",
        "f" * 12: "there is no run",
        "../toy": "there is no run",
        "*": "there is no run",
        "ccc": "damaged",
        "": "there is no run",
    }.items():
        with pytest.raises(RunRefused, match=said):
            find_run(name)


# Cleaning


def everything(root):
    done, failed, stopped = (
        keep(root, 1, {}),
        keep(root, 2, {}, status="failed"),
        keep(root, 3, {}, status="running"),
    )
    damaged, empty = root / "runs" / "toy" / f"{4:012x}-2", root / "runs" / "other" / f"{5:012x}"
    damaged.mkdir()
    (damaged / "run.json").write_text("{")
    empty.mkdir(parents=True)
    mark_folder(damaged, "run"), mark_folder(empty, "run")
    (empty / ".lock").touch()
    return done, failed, stopped, damaged, empty


def test_only_rubbish_goes(root, monkeypatch):
    done, failed, stopped, damaged, empty = everything(root)
    mine = root / "runs" / "toy" / f"{6:012x}"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    (root / "runs" / "toy" / "notes").mkdir()
    (root / "runs" / "toy" / f"{7:012x}").symlink_to(failed)
    (failed / "link").symlink_to(mine / "thesis.txt")
    found = find_rubbish()
    assert {one.folder: one.why for one in found} == {
        failed: "failed",
        stopped: "stopped",
        damaged: "damaged",
        empty: "empty",
    }
    assert [one.folder for one in find_rubbish("other")] == [empty]
    with monkeypatch.context() as locked:
        locked.setattr("os.access", lambda *_: False)  # root may read everything
        assert damaged not in [one.folder for one in find_rubbish()]
    assert remove_rubbish(found) == found and find_rubbish() == []
    assert (
        done.exists()
        and (mine / "thesis.txt").read_text() == "precious"
        and (root / "runs" / "toy" / "notes").exists()
    )


def test_what_is_started_or_finished_meanwhile_stays(root):
    done, failed, stopped, damaged, empty = everything(root)
    found = find_rubbish()
    keep(root, 2, {}, status="done")
    held = subprocess.Popen([sys.executable, "-c", f"import sys; from neurobridge.lab.run.execute import owned; from pathlib import Path\nwith owned(Path({str(stopped)!r})): print('held', flush=True); sys.stdin.read()"],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=kernel_environment())  # fmt: skip
    assert held.stdout.readline() == "held\n"
    assert (
        {one.folder for one in remove_rubbish(found)} == {damaged, empty}
        and failed.exists()
        and stopped.exists()
    )
    assert stopped not in [one.folder for one in find_rubbish()]
    held.communicate("")
    assert {one.folder for one in remove_rubbish(found)} == {stopped}


def test_who_waited_for_a_folder_that_is_cleaned_away_gets_a_new_one(root, monkeypatch):
    "A lock on a removed file protects nothing: a second program would make its own."
    folder, take, calls = root / "runs" / "toy" / f"{1:012x}", lock._take, []

    def late(handle, folder, patience):
        calls.append(handle)
        if len(calls) == 1:
            shutil.rmtree(folder)  # between opening the file and locking it
        return take(handle, folder, patience)

    monkeypatch.setattr(lock, "_take", late)
    with owned(folder):
        assert len(calls) == 2 and (folder / ".lock").exists()
        with pytest.raises(RunBusy), owned(folder, patience=0):
            pass


def test_cleaning_asks(root):
    done, failed, *_ = everything(root)
    asked = shell("clean", input="n\n")
    assert (
        asked.exit_code == 0
        and "nothing was removed" in asked.stdout
        and failed.exists()
        and "stopped" in asked.stdout
    )
    assert shell("clean").exit_code == 1 and failed.exists()  # nobody to answer
    assert (
        "removed 4 of 4" in shell("clean", "--yes").stdout and not failed.exists() and done.exists()
    )
    assert "nothing to remove" in shell("clean").stdout
    unknown = shell("clean", "nope", "--yes")
    assert (
        unknown.exit_code == 2
        and "no runs of 'nope'" in unknown.stderr
        and "there are runs of: toy" in unknown.stderr
        and unknown.stdout == ""
    )


def test_names_of_columns_are_not_taken_twice(root):
    "A parameter or metric may be called like a column of the table of groups."
    for number, loss in enumerate((1.0, 2.0, 4.0)):
        keep(
            root,
            number,
            {"runs": number // 2, "loss_sd": 0.5, "within": "x"},
            {"loss": loss, "loss_sdev": 1.0, "spikes": loss, "spikes_sd": 7.0},
        )
        keep(root, number, {"k": number // 2}, {"runs": 100.0, "within": 3.0}, experiment="other")
    table = group_runs(load_runs(experiment="toy"), ["param.runs"])
    assert (
        table["param.runs"].tolist() == [0, 1]
        and table["runs"].tolist() == [2, 1]
        and table["loss"].tolist() == [1.5, 4.0]
    )
    assert (
        table["spikes_sd"].tolist() == [7.0, 7.0]
        and table["spikes.sd"][0] == pytest.approx(np.std([1, 2], ddof=1))
        and table["loss.sd"][0] == table["spikes.sd"][0]
    )
    other = group_runs(load_runs(experiment="other"), ["k"])
    assert (
        other["runs"].tolist() == [2, 1]
        and other["metric.runs"].tolist() == [100, 100]
        and other["metric.within"].tolist() == [3, 3]
    )
    refused = shell("table", "toy", "--group", "runs")
    assert refused.exit_code == 2 and "param.runs" in refused.stderr
    assert shell("table", "toy", "--where", "`param.runs` == 1").stdout.count("done") == 1


def test_a_damaged_notebook_is_named(root):
    one, other = keep(root, 1, {}), keep(root, 2, {})
    pictures = new_output("display_data", {"image/png": "a"})
    write(new_notebook(cells=[new_code_cell("", outputs=[pictures])]), one / "notebook.ipynb")
    for content in ("{}", "", '{"nbformat": 4', (one / "notebook.ipynb").read_text()):
        (other / "notebook.ipynb").write_text(content)
        ended = shell("compare", other, one, "--html", root / "c.html")
        assert (
            ended.exit_code == 2
            and len(ended.stderr.splitlines()) == 1
            and f"{other / 'notebook.ipynb'} cannot be read" in ended.stderr
        ), ended.exception
    assert not (root / "c.html").exists() and shell("compare", one, other).exit_code == 0


def test_cleaning_takes_an_experiment_by_its_name(root):
    "Whatever is in the name, and nothing outside the runs folder."
    failed, near = (
        keep(root, 1, {}, status="failed", experiment="net [v2]*"),
        keep(root, 2, {}, status="failed", experiment="net v"),
    )
    outside = root / "elsewhere" / f"{3:012x}"
    outside.mkdir(parents=True)
    for name in ("..", ".", "../elsewhere", "net*", "/"):
        assert find_rubbish(name) == [] and shell("clean", name, "--yes").exit_code == 2, name
    assert [one.folder for one in find_rubbish("net [v2]*")] == [failed]
    assert (
        shell("clean", "net [v2]*", "--yes").exit_code == 0
        and not failed.exists()
        and near.exists()
        and outside.exists()
    )
