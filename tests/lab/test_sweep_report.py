"A sweep's report: which runs are in it, what its pictures show, and that it needs nothing else."

import re
import shutil
from html.parser import HTMLParser

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner

from neurobridge.core.files import write_json
from neurobridge.core.plots import direction, pareto_front
from neurobridge.lab import (
    RunRefused,
    Sweep,
    draw_effect,
    draw_pareto,
    sweep_runs,
    write_sweep_report,
)
from neurobridge.lab.cli import app
from neurobridge.lab.report.sweep_figures import draw_curves
from neurobridge.lab.report.sweep_report import _list_runs, swept
from neurobridge.lab.run.page import page_hash
from neurobridge.lab.run.parameters import read_page


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(tmp_path / "runs"))
    parameters = new_code_cell(
        "n: int = 1\nmode: str = 'a'\nk: int | None = 3\nseed: int = 0",
        metadata={"tags": ["parameters"]},
    )
    write(
        new_notebook(cells=[new_markdown_cell("# How <many>?\n\n> A question"), parameters]),
        tmp_path / "toy.ipynb",
    )
    return tmp_path


def plan(root, text):
    (root / "s.yaml").write_text(f"notebook: {root / 'toy.ipynb'}\n{text}")
    return Sweep.from_yaml(root / "s.yaml")


def keep(one, metrics, status="done", folder=None, curves=None, rows=(), page=None):
    folder = folder or one.folder
    error = (
        {"ename": "Oh", "evalue": "<no>", "cell": 1, "heading": "", "traceback": []}
        if status == "failed"
        else None
    )
    write_json(folder / "run.json", {"id": folder.name, "experiment": "toy", "status": status, "started": "2026-01-01", "seconds": 2.0, "params": one.full, "metrics": metrics, "rows": list(rows),
                                     "error": error, "page": page, "environment": {"commit": "0" * 40}, "package": {}, "modules": {}, "files": {}})  # fmt: skip
    (folder / "notebook.ipynb").write_text("{}")
    if curves is not None:
        curves.to_csv(folder / "curves.csv", index=False)


def test_which_runs(root):
    "Done ones of another version are taken, the present version's come first, and what is missing is said."
    sweep = plan(root, "grid: {n: [1, 2, 3]}\nseeds: 2")
    planned = sweep.plan()
    keep(planned[0], {"loss": 1.0})
    keep(planned[0], {"loss": 9.0}, folder=root / "runs" / "toy" / "0ld000000000")
    keep(planned[1], {"loss": 2.0}, folder=root / "runs" / "toy" / "0ld000000001")
    keep(planned[2], {}, status="failed")
    runs = sweep_runs(sweep)
    assert runs.status.tolist() == [
        "done",
        "done",
        "failed",
        "absent",
        "absent",
        "absent",
    ] and runs.loss.tolist()[:2] == [1.0, 2.0]
    assert (
        swept(sweep) == ["n"]
        and swept(plan(root, "seeds: 3")) == []
        and swept(plan(root, "list: [{n: 1}, {mode: b, n: 2}]")) == ["n", "mode"]
    )


def test_runs_of_an_edited_page_are_told(root):
    sweep = plan(root, "grid: {n: [1, 2]}\nrepeats: 2")
    planned, now = sweep.plan(), page_hash(read_page(sweep.page))
    for i, one in enumerate(planned):
        keep(one, {"loss": float(i)}, page=now)
    assert "versions" not in write_sweep_report(sweep).read_text()
    for number, page in enumerate(
        ("beef" * 3, now, "beef" * 3)
    ):  # one of the second setting's repeats is not done, and was before
        keep(
            planned[3],
            {"loss": 7.0 + number},
            folder=root / "runs" / "toy" / f"{number:012}",
            page=page,
        )
    keep(planned[3], {}, status="failed", page=now)
    assert sweep_runs(sweep).loss.tolist() == [0.0, 1.0, 2.0, 8.0]
    keep(planned[2], {"loss": 2.0}, page="beef" * 3)
    assert (
        "3 of the page as it is now, 1 of another version of the page (beefbeefbeef): more than "
        "their values may differ" in write_sweep_report(sweep).read_text()
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=15))
def test_the_front_is_what_nothing_dominates(points):
    front = pareto_front(pd.DataFrame(points, columns=["a", "b"])).tolist()
    for (a, b), on in zip(points, front, strict=True):
        assert on == (not any(c >= a and d >= b and (c > a or d > b) for c, d in points))


def test_directions_and_missing_values():
    assert [
        direction(name)
        for name in ("-accuracy", "+loss", "spikes", "energy_nJ", "lossless_accuracy")
    ] == [
        ("accuracy", -1),
        ("loss", 1),
        ("spikes", -1),
        ("energy_nJ", -1),
        ("lossless_accuracy", 1),
    ]
    assert pareto_front(
        pd.DataFrame({"a": [1.0, np.nan, 2.0], "b": [2.0, 9.0, np.nan]})
    ).tolist() == [True, False, False]


def test_pictures_show_the_numbers(root):
    sweep = plan(root, "grid: {n: [1, 10, 100], mode: [a, b]}\nseeds: 2")
    for one in sweep.plan():
        keep(
            one,
            {
                "loss": one.full["n"] + one.full["seed"] + 1000 * (one.full["mode"] == "b"),
                "accuracy": 1 / one.full["n"],
            },
        )
    runs = sweep_runs(sweep)
    axes = draw_effect(runs, "loss", "n", ["mode"]).axes[0]
    lines = {drawn.get_label(): drawn.lines[0] for drawn in axes.containers}
    assert (
        axes.get_xscale() == "log"
        and lines["mode a"].get_ydata().tolist() == [1.5, 10.5, 100.5]
        and lines["mode b"].get_xdata().tolist() == [1, 10, 100]
    )
    axes = draw_effect(runs, "accuracy", "mode", ["n"]).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "b"]
    axes = draw_pareto(runs, ["n", "mode"], "accuracy", "loss").axes[0]
    assert (
        {text.get_text() for text in axes.texts} == {"1, a"}
        and "less is better" in axes.get_xlabel()
        and "more is better" in axes.get_ylabel()
    )
    assert {
        text.get_text()
        for text in draw_pareto(runs, ["n", "mode"], "accuracy", "+loss").axes[0].texts
    } == {"1, b", "10, b", "100, b"}


def test_each_run_of_a_random_search_is_drawn():
    chance = np.random.default_rng(0)
    runs = pd.DataFrame({"status": "done", "acc": chance.uniform(size=24)}).assign(
        lr=chance.uniform(1e-4, 1e-1, 24),
        width=chance.permutation(24),
        opt=chance.choice(["adam", "sgd"], 24),
    )
    for name, others in (("lr", ["width", "opt"]), ("opt", ["lr", "width"])):
        axes = draw_effect(runs, "+acc", name, others).axes[0]
        x, y = axes.lines[0].get_data()
        assert sorted(y) == sorted(runs.acc) and (name == "opt" or sorted(x) == sorted(runs.lr))
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert labels == ["24 runs", f"best: {runs.acc.max():.4g}"]
    plt.close("all")


def test_none_has_a_line_and_a_place(root):
    sweep = plan(root, "grid: {k: [10, null, 2], n: [1, 2]}")
    for one in sweep.plan():
        keep(one, {"loss": one.full["n"] + (one.full["k"] or 100)})
    runs = sweep_runs(sweep)
    lines = draw_effect(runs, "loss", "n", ["k"]).axes[0].containers
    assert [line.get_label() for line in lines] == ["k 10", "k None", "k 2"] and lines[1].lines[
        0
    ].get_ydata().tolist() == [101, 102]
    axes = draw_effect(runs, "loss", "k", ["n"]).axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == [
        "2",
        "10",
        "None",
    ] and axes.containers[0].lines[0].get_ydata().tolist() == [3, 11, 101]
    assert "<td>None</td>" in write_sweep_report(sweep).read_text()


def test_curves_by_arm_and_by_setting(root):
    sweep = plan(root, "grid: {n: [1, 2]}\nseeds: 3")
    for one in sweep.plan():
        arms = pd.concat(
            [
                pd.DataFrame(
                    {
                        "epoch": [1, 2],
                        "train_loss": [1.0, 0.5],
                        "valid_accuracy": [0.1 * one.full["n"], 0.5],
                        "arm": arm,
                        "seed": one.full["seed"],
                    }
                )
                for arm in "xy"
            ]
        )
        keep(one, {"loss": 1.0}, curves=arms)
    axes = draw_curves(sweep_runs(sweep), ["n"]).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        f"n {n}, {arm} (n = 3)" for n in (1, 2) for arm in "xy"
    ]
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([0.1, 0.5])
    one = sweep.plan()[0]
    (one.folder / "curves.csv").write_text("epoch\n")
    for other in sweep.plan()[1:]:
        (other.folder / "curves.csv").unlink()
    assert draw_curves(sweep_runs(sweep), ["n"]) is None


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.images = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [attrs["href"]] if tag == "a" else []
        self.images += [attrs["src"]] if tag == "img" else []
        assert tag not in ("script", "link", "iframe")


def test_the_page(root):
    "One file; its links lead to what there is, wherever the file is; user's text is text."
    sweep, before = (
        plan(root, "grid: {n: [1, 2], mode: [a, b]}\nseeds: 2"),
        dict(matplotlib.rcParams),
    )
    planned = sweep.plan()
    for one in planned[:-1]:
        keep(one, {"accuracy": 0.5 + one.full["n"] / 10, "spikes": 10.0})
    keep(planned[-1], {}, status="failed")
    for file in (None, root / "elsewhere" / "deep" / "r.html"):
        written = write_sweep_report(sweep, file=file)
        page = Page(text := written.read_text())
        assert (
            written == (file or root / "runs" / "toy" / "s.html") and "8: 7 done, 1 failed" in text
        )
        assert len(page.links) == 8 and all(
            (written.parent / link).is_file() for link in page.links
        )
        assert len(page.images) == 5 and all(
            image.startswith("data:image/png;base64,iVBOR") for image in page.images
        )
        assert (
            "Oh: &lt;no&gt;" in text
            and "How &lt;many&gt;?" in text
            and "<no>" not in text
            and not re.search("https?://", text)
            and ">nan<" not in text
        )
    assert dict(matplotlib.rcParams) == before and not plt.get_fignums()


def test_sweeps_that_are_not_done_or_vary_nothing(root):
    sweep = plan(root, "seeds: 2")
    assert "2: 2 absent" in write_sweep_report(sweep).read_text()
    for one in sweep.plan():
        keep(
            one,
            {"accuracy": 0.5 + one.full["seed"]},
            rows=[
                {"arm": arm, "seed": one.full["seed"], "accuracy": value + one.full["seed"]}
                for arm, value in (("old", 0.1), ("new", 0.3))
            ],
        )
    text = write_sweep_report(sweep).read_text()
    assert (
        "<h2>Arms</h2>" in text
        and "0.60 ± 0.71" in text
        and "0.80 ± 0.71" in text
        and "nothing but the seed" in text
    )
    with pytest.raises(
        RunRefused, match="--metric acuracy: no finished run has it; there are seconds, accuracy"
    ):
        write_sweep_report(sweep, ["acuracy"])


def test_a_default_written_out_is_no_variation(root):
    "In a list, one setting may name what another leaves as it is."
    assert swept(plan(root, "list: [{n: 1, mode: b}, {k: 4, mode: a}, {k: 3, mode: c}]")) == [
        "mode",
        "k",
    ]


def test_from_the_shell(root):
    sweep = plan(root, "grid: {n: [1, 2]}")
    for one in sweep.plan():
        keep(one, {"accuracy": 0.5, "spikes": 3.0})
    ended = CliRunner().invoke(
        app,
        [
            "report",
            str(root / "s.yaml"),
            "--metric",
            "-spikes",
            "--metric",
            "+accuracy",
            "--out",
            str(root / "r.html"),
        ],
    )
    assert (
        ended.exit_code == 0
        and ended.stdout.splitlines()[1] == str(root / "r.html")
        and "spikes against n" in (root / "r.html").read_text()
    )
    ended = CliRunner().invoke(app, ["report", str(root / "s.yaml"), "--metric", "nothing"])
    assert ended.exit_code == 2 and "no finished run has it" in ended.stderr


def test_names_and_values_are_no_formulas(root):
    "A dollar is a dollar, a page-long value is cut, HTML is text, and settings with long values are not mixed."
    (root / "toy.ipynb").write_text(
        (root / "toy.ipynb")
        .read_text()
        .replace("mode: str = 'a'", "mode: str = 'a'\\nstatus: float = 1.0")
    )
    long = "x" * 50
    sweep = plan(
        root,
        f"grid: {{mode: ['$x_{{$', '<img src=y>', {long}a{long}, {long}b{long}], status: [1.0, "
        f"2.0]}}\nseeds: 2",
    )
    for i, one in enumerate(sweep.plan()):
        keep(
            one,
            {"loss $_{$": 1.0 + i, "status": 9.0, "seconds": 100.0 + i, "error": 0.5},
            curves=pd.DataFrame({"epoch": [1, 2], "$l_{$": [1.0, 0.5 + i]}),
        )
    runs = sweep_runs(sweep)
    assert (
        set(runs["status"]) == {"done"}
        and set(runs["seconds"]) == {2.0}
        and set(runs["metric.status"]) == {9.0}
        and set(runs["metric.error"]) == {0.5}
        and runs["error"].isna().all()
    )
    assert (
        runs["metric.seconds"].tolist()[:2] == [100, 101]
        and sorted(set(runs["param.status"])) == [1.0, 2.0]
        and "param.status" in runs.attrs["params"]
    )
    text = write_sweep_report(sweep).read_text()
    assert "<img src=y" not in text and "param.status" in text and text.count("<img alt") == 6
    fig = draw_curves(runs, ["mode", "param.status"])
    shown = [each.get_text() for each in fig.axes[0].get_legend().get_texts()]
    assert len(shown) == 7 and all("n = 2" in each and len(each) < 90 for each in shown)
    (root / "c# 50%?").mkdir()  # as a page may be called
    assert "../runs/toy/" in write_sweep_report(sweep, file=root / "c# 50%?" / "r.html").read_text()
    elsewhere = sweep_runs(sweep).assign(
        folder=lambda frame: frame["folder"].str.replace("/toy/", "/c# 50%?/")
    )
    shutil.copytree(root / "runs" / "toy", root / "runs" / "c# 50%?")
    assert (
        f'href="runs/c%23%2050%25%3F/{sweep.plan()[0].folder.name}/notebook.ipynb"'
        in _list_runs(elsewhere, [], [], root / "r.html")
    )
    shell = CliRunner().invoke(app, ["report", str(root / "s.yaml"), "--metric", ""])
    assert shell.exit_code == 2 and "no finished run has it" in shell.stderr


def test_curves_that_cannot_be_drawn_are_left_out(root):
    "Words for epochs, no epoch at all, a column that only some have: the others are drawn."
    sweep = plan(root, "grid: {n: [1, 2]}\nseeds: 4")
    bad = [
        pd.DataFrame({"epoch": ["a"], "loss": [1.0]}),
        pd.DataFrame({"epoch": [], "loss": []}),
        pd.DataFrame({"epoch": [1], "loss": ["b"]}),
    ]
    for one, curves in zip(
        sweep.plan(), [*bad, pd.DataFrame({"epoch": [1, 2], "loss": [1.0, 0.5]})] * 2, strict=True
    ):
        keep(one, {"loss": 1.0}, curves=curves)
    fig = draw_curves(sweep_runs(sweep), ["n"])
    assert fig.axes[0].get_legend_handles_labels()[1] == ["n 1 (n = 1)", "n 2 (n = 1)"]
    for one in sweep.plan():
        bad[0].to_csv(one.folder / "curves.csv", index=False)
    assert draw_curves(sweep_runs(sweep), ["n"]) is None and write_sweep_report(sweep).exists()
