"Result files: which runs go in, in which order, and what keeps others out."

import numpy as np
import pandas as pd
import pytest
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner

from neurobridge.core.files import write_json
from neurobridge.lab import RunRefused, Sweep, load_runs, write_results
from neurobridge.lab.cli import app
from neurobridge.lab.report.recorded import (
    choose_runs,
    count_versions,
    finished,
    join_rows,
    join_tables,
    recorded_sweeps,
)
from neurobridge.lab.run.page import page_hash
from neurobridge.lab.run.parameters import read_page


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(tmp_path / "runs"))
    write(
        new_notebook(
            cells=[new_code_cell("n: int = 1\nseed: int = 0", metadata={"tags": ["parameters"]})]
        ),
        tmp_path / "toy.ipynb",
    )
    (tmp_path / "s.yaml").write_text(
        f"notebook: {tmp_path / 'toy.ipynb'}\ngrid: {{n: [2, 1]}}\nseeds: 2"
    )
    return tmp_path


def keep(
    root,
    name,
    n,
    seed,
    day=1,
    status="done",
    rows=None,
    commit="0" * 40,
    tables=("curves",),
    **more,
):
    rows = (
        [{"arm": arm, "seed": seed, "accuracy": 0.1 * n + seed} for arm in "ab"]
        if rows is None
        else rows
    )
    content = {"id": name, "experiment": "toy", "status": status, "started": f"2026-01-{day:02}", "seconds": 1.5, "params": {"n": n, "seed": seed}, "metrics": {"loss": 0.25}, "rows": rows,
               "environment": {"commit": commit, "dirty": False, "device": "a CPU", "torch_threads": 2}, "package": {}, "modules": {}, "files": {}, **more}  # fmt: skip
    write_json(root / "runs" / "toy" / name / "run.json", content)
    for table in tables:
        pd.DataFrame({"n": n, "seed": seed, "epoch": [1, 2]}).to_csv(
            root / "runs" / "toy" / name / f"{table}.csv", index=False
        )


def test_a_batch_is_joined_in_the_order_of_its_file(root):
    for name, n, seed in (("a", 1, 0), ("b", 2, 1), ("c", 1, 1), ("d", 2, 0)):
        keep(root, name, n, seed)
    keep(root, "old", 2, 0, day=1, commit="f" * 40)
    keep(
        root, "d", 2, 0, day=3, commit="e" * 40
    )  # done again by a later version: the last one counts
    keep(root, "other", 7, 0)  # of no batch
    keep(root, "half", 9, 9, status="failed")
    (root / "runs" / "toy" / "torn").mkdir()
    (root / "runs" / "toy" / "torn" / "run.json").write_text("{")
    (written, curves) = write_results(
        "toy", [Sweep.from_yaml(root / "s.yaml")], out=root / "results"
    )
    table = pd.read_csv(written)
    assert written.name == "toy.csv" and curves.name == "toy_curves.csv"
    assert table[["arm", "seed"]].values.tolist() == [["a", 0], ["b", 0], ["a", 1], ["b", 1]] * 2
    np.testing.assert_allclose(table.accuracy, [0.2, 0.2, 1.2, 1.2, 0.1, 0.1, 1.1, 1.1])
    assert (
        table.commit.tolist()[:2] == ["e" * 9] * 2
        and set(table.device) == {"a CPU, 2 thread(s)"}
        and set(table.run_seconds) == {1.5}
    )
    assert pd.read_csv(curves)[["n", "seed", "epoch"]].values.tolist() == [
        [n, seed, epoch] for n in (2, 1) for seed in (0, 1) for epoch in (1, 2)
    ]
    assert len(finished("toy")) == 6 and len(choose_runs("toy")) == 5


def test_an_incomplete_batch_is_refused(root):
    keep(root, "a", 1, 0)
    keep(root, "b", 2, 1, status="running")
    sweep = Sweep.from_yaml(root / "s.yaml")
    with pytest.raises(RunRefused, match="3 of 4 runs of s are not done"):
        write_results("toy", [sweep], out=root / "results")
    assert not (root / "results").exists()
    (written, _) = write_results("toy", [sweep], partial=True, out=root / "results")
    assert len(pd.read_csv(written)) == 2
    with pytest.raises(RunRefused, match="no finished runs of 'nothing'"):
        write_results("nothing", out=root / "results")
    with pytest.raises(RunRefused, match="one of toy, not of pipe_s"):
        write_results("pipe_s", [sweep], out=root / "results")


def test_a_batch_in_two_files(root):
    "Two data sets with different numbers of seeds: both files must be whole, and their runs come in the order of the files."
    (root / "t.yaml").write_text(f"notebook: {root / 'toy.ipynb'}\nparameters: {{n: 5}}\nseeds: 3")
    sweeps = [Sweep.from_yaml(root / name) for name in ("s.yaml", "t.yaml")]
    for number, (n, seed) in enumerate([(1, 0), (2, 1), (1, 1), (2, 0), (5, 0), (5, 1)]):
        keep(root, f"run{number}", n, seed)
    with pytest.raises(
        RunRefused, match="1 of 7 runs of s and t are not done, the first with {'n': 5, 'seed': 2}"
    ):
        choose_runs("toy", sweeps)
    keep(root, "last", 5, 2)
    chosen = [tuple(record["params"].values()) for _, record in choose_runs("toy", sweeps)]
    assert chosen == [(2, 0), (2, 1), (1, 0), (1, 1), (5, 0), (5, 1), (5, 2)]


def test_the_batch_of_an_experiment():
    "The exact name comes first; `transfer_methods_full` is another size of the same question."
    assert [sweep.name for sweep in recorded_sweeps("pipe_d")] == [
        "pipe_d_fashion",
        "pipe_d_nmnist",
    ]
    assert [sweep.name for sweep in recorded_sweeps("transfer_methods")] == ["transfer_methods"]
    assert [len(sweep.settings) for sweep in recorded_sweeps("pipe_d")] == [3, 5]


def test_what_a_page_wrote_itself_stays(root):
    keep(root, "a", 1, 5, rows=[{"arm": "x", "commit": "mine", "device": "my device"}], tables=())
    keep(root, "b", 2, 6, rows=[], tables=())
    table = join_rows(choose_runs("toy"))
    assert table.loc[0, ["commit", "device", "seed"]].tolist() == [
        "mine",
        "my device",
        5,
    ] and table.loc[1, ["loss", "seed"]].tolist() == [0.25, 6]
    pd.DataFrame({"weight": [3]}).to_csv(root / "runs" / "toy" / "b" / "kernels.csv", index=False)
    assert join_tables(choose_runs("toy"))["kernels"].weight.tolist() == [3]


def test_what_was_asked_is_on_every_row(root):
    "What varies and the run, where the page has no column of that name, in every table and for every run."
    for name, n, seed in (("a", 1, 0), ("b", 2, 0), ("c", 1, 1), ("d", 2, 1)):
        keep(root, name, n, seed, rows=[], tables=())
        pd.DataFrame({"seed": seed, "epoch": [1, 2]}).to_csv(
            root / "runs" / "toy" / name / "curves.csv", index=False
        )
        pd.DataFrame({"weight": [10 * n + seed] * 3}).to_csv(
            root / "runs" / "toy" / name / "kernels.csv", index=False
        )
    keep(root, "d", 2, 1, rows=[{"run": "mine", "n": "two"}, {"loss": 0.5}], tables=())
    runs = choose_runs("toy", [Sweep.from_yaml(root / "s.yaml")])
    table, tables = join_rows(runs), join_tables(runs)
    assert table[["n", "seed", "run"]].values.tolist() == [
        [2, 0, "b"],
        ["two", 1, "mine"],
        [2, 1, "d"],
        [1, 0, "a"],
        [1, 1, "c"],
    ]
    assert tables["curves"][["n", "seed", "run"]].values.tolist() == [
        [n, seed, run]
        for n, seed, run in ((2, 0, "b"), (2, 1, "d"), (1, 0, "a"), (1, 1, "c"))
        for _ in range(2)
    ]
    assert tables["kernels"].values.tolist() == [
        [10 * n + seed, n, seed, run]
        for n, seed, run in ((2, 0, "b"), (2, 1, "d"), (1, 0, "a"), (1, 1, "c"))
        for _ in range(3)
    ]
    assert list(tables["kernels"]) == ["weight", "n", "seed", "run"] and table[
        "param.n"
    ].dropna().tolist() == [2]  # the page's own "two" stays


def test_runs_of_two_pages_are_no_batch(root):
    "Of the same values the page as it is now counts; what is left of another version is refused, and told."
    now = page_hash(read_page(root / "toy.ipynb"))
    for name, n, seed in (("a", 1, 0), ("b", 2, 0), ("c", 1, 1), ("d", 2, 1)):
        keep(root, name, n, seed, page="beef" * 3, notebook=str(root / "toy.ipynb"))
    sweep = Sweep.from_yaml(root / "s.yaml")
    assert (
        len(choose_runs("toy", [sweep])) == 4 and len(choose_runs("toy")) == 4
    )  # one version, if not the present one
    keep(root, "e", 1, 0, day=1, page=now, notebook=str(root / "toy.ipynb"))
    keep(
        root, "f", 1, 0, day=2, page="beef" * 3, notebook=str(root / "toy.ipynb")
    )  # later, but of the other page
    with pytest.raises(
        RunRefused,
        match=r"4 runs of toy are of several versions: 3 of another version of the page \(beefbeefbeef\), 1 of the page as it is now; .*--partial",
    ):
        write_results("toy", [sweep], out=root / "results")
    with pytest.raises(RunRefused, match="several versions"):
        choose_runs("toy")
    assert not (root / "results").exists()
    table = join_rows(choose_runs("toy", [sweep], partial=True))
    assert (
        table.run.tolist() == [run for run in "bdec" for _ in range(2)]
        and table.page.tolist() == ["beef" * 3] * 4 + [now] * 2 + ["beef" * 3] * 2
    )
    keep(root, "g", 2, 1)  # from before versions were noted
    assert count_versions(finished("toy"), sweep.page) == {
        "another version of the page (beefbeefbeef)": 5,
        "a version of the page that was not noted": 1,
        "the page as it is now": 1,
    }
    (root / "toy.ipynb").unlink()
    assert set(count_versions(finished("toy"))) == {
        "another version of the page (beefbeefbeef)",
        "a version of the page that was not noted",
        f"another version of the page ({now})",
    }


def test_every_repeat_is_measured(root):
    (root / "r.yaml").write_text(f"notebook: {root / 'toy.ipynb'}\ngrid: {{n: [2, 1]}}\nrepeats: 3")
    sweep = Sweep.from_yaml(root / "r.yaml")
    for one in sweep.plan()[:-1]:
        keep(root, one.folder.name, one.full["n"], 0, id=one.id)
    with pytest.raises(RunRefused, match="1 of 6 runs of r are not done, the first with {'n': 1}"):
        choose_runs("toy", [sweep])
    assert len(choose_runs("toy", [sweep], partial=True)) == 5 == len(choose_runs("toy"))
    keep(root, sweep.plan()[-1].folder.name, 1, 0, id=sweep.plan()[-1].id)
    names = [one.folder.name for one in sweep.plan()]
    assert join_rows(choose_runs("toy", [sweep])).run.tolist() == [
        name for name in names for _ in range(2)
    ]
    assert sorted(load_runs().id) == sorted(names)  # a row each, and none looks like another


def test_from_the_shell(root):
    keep(root, "a", 1, 0)
    ended = CliRunner().invoke(
        app, ["results", "toy", "--sweep", str(root / "s.yaml"), "--out", str(root / "results")]
    )
    assert ended.exit_code == 2 and "--partial" in ended.stderr and ended.stdout == ""
    ended = CliRunner().invoke(app, ["results", "toy", "--out", str(root / "results")])
    assert ended.exit_code == 0 and ended.stdout.split() == [
        str(root / "results" / "toy.csv"),
        str(root / "results" / "toy_curves.csv"),
    ]
    assert (
        "the batch is all finished runs, be they complete or not (there is no sweeps/toy.yaml"
        in ended.stderr
    )
    ended = CliRunner().invoke(
        app,
        [
            "results",
            "toy",
            "--sweep",
            str(root / "s.yaml"),
            "--partial",
            "--out",
            str(root / "results"),
        ],
    )
    assert (
        ended.exit_code == 0
        and "the batch is s.yaml; 1 of a version of the page that was not noted\n" in ended.stderr
    )
    ended = CliRunner().invoke(app, ["results", "toys"])
    assert ended.exit_code == 2 and "there are runs of: toy" in ended.stderr


def test_a_sweep_from_the_shell(root):
    def shell(*words):
        return CliRunner().invoke(app, ["sweep", *map(str, words)])

    for name, n, seed in (("a", 1, 0), ("b", 2, 1)):
        keep(root, name, n, seed)
    shown = shell(root / "s.yaml", "--dry-run")
    assert (
        shown.exit_code == 0 and "4 absent" in shown.stdout and "4 runs of toy" in shown.stdout
    ), shown.stdout
    (root / "wrong.yaml").write_text(f"notebook: {root / 'toy.ipynb'}\ngrid: {{m: [1]}}")
    for words, said in {("wrong.yaml",): "line 2: the page has no parameter `m`", ("none.yaml",): "cannot be read", ("s.yaml", "--workers", "0"): "at least 1",
                        ("s.yaml", "--slurm", "queue=a", "--pbs", "queue=b"): "exclude each other", ("s.yaml", "--slurm", "queue"): "key=value"}.items():  # fmt: skip
        ended = shell(root / words[0], *words[1:])
        assert ended.exit_code == 2 and said in ended.stderr and ended.stdout == "", (
            words,
            ended.stderr,
        )
    assert not [file for file in (root / "runs" / "toy").iterdir() if file.name not in "ab"]


@pytest.mark.parametrize("content", [b"", b"\n", b"a,b\n1,2\n1,2,3\n", b"a,b\n\xff\xfe,1\n"])
def test_a_table_that_is_none_is_named(root, content):
    "File, run, and what to do about it, by whoever reads it."
    for name, n, seed in (("a", 1, 0), ("b", 2, 1), ("c", 1, 1), ("d", 2, 0)):
        keep(root, name, n, seed, rows=[])
    (root / "runs" / "toy" / "b" / "curves.csv").write_bytes(content)
    for words, code in (
        (["results", "toy", "--sweep", str(root / "s.yaml"), "--out", str(root / "results")], 2),
        (["report", str(root / "s.yaml")], 0),
        (["report", str(root / "s.yaml"), "--metric", "loss"], 0),
    ):
        ended = CliRunner().invoke(app, words)  # a report leaves its curve out
        assert (
            ended.exit_code == code
            and len(ended.stderr.splitlines()) == 1
            and "curves.csv of the run toy b is not a table" in ended.stderr
            and "remove" in ended.stderr
        ), ended.exception
    assert not (root / "results").exists()
    (root / "runs" / "toy" / "b" / "curves.csv").unlink()
    assert (
        CliRunner()
        .invoke(
            app, ["results", "toy", "--sweep", str(root / "s.yaml"), "--out", str(root / "results")]
        )
        .exit_code
        == 0
    )


def test_what_was_asked_is_not_hidden_by_what_is_added(root):
    "A page's parameter may be called `device`, and its metric like a parameter."
    for name, n in (("a", 1), ("b", 2)):
        params = {"device": f"cuda:{n}", "run": n, "n": n, "seed": 0}
        keep(root, name, n, 0, rows=[], tables=("kernels",), params=params, metrics={"n": 10.0 * n})
    runs = choose_runs("toy")
    rows = join_rows(runs)
    assert (
        rows["param.device"].tolist() == ["cuda:1", "cuda:2"]
        and rows["n"].tolist() == [1, 2]
        and rows["metric.n"].tolist() == [10, 20]
        and rows["param.run"].tolist() == [1, 2]
    )
    assert set(rows["device"]) == {"a CPU, 2 thread(s)"} and rows["run"].tolist() == ["a", "b"]
    table = join_tables(runs)["kernels"]
    assert (
        table["device"].tolist() == ["cuda:1"] * 2 + ["cuda:2"] * 2
        and table["run"].tolist() == ["a", "a", "b", "b"]
        and table["param.run"].tolist() == [1, 1, 2, 2]
    )


def test_sweeps_of_a_page_with_a_longer_name_are_not_its_own(root, monkeypatch):
    (root / "settings.ini").write_text("lib_path = neurobridge\n")
    (root / "sweeps").mkdir()
    (root / "other.ipynb").write_text((root / "toy.ipynb").read_text())
    for name, page in (("toy_deep", "other"), ("toy_wide", "toy")):
        (root / "sweeps" / f"{name}.yaml").write_text(f"notebook: {root / page}.ipynb\nseeds: 2")
    monkeypatch.chdir(root)
    assert [sweep.name for sweep in recorded_sweeps("toy")] == ["toy_wide"]


def test_partial_says_both_things_that_it_takes():
    text = " ".join(
        CliRunner(env={"COLUMNS": "400"}).invoke(app, ["results", "--help"]).stdout.split()
    )
    assert "even if others are missing or some were made by another version of the page" in text


def test_slow_cells_are_told_apart(root):
    "A run with the cells marked slow has other numbers: it takes no other's place, and both in one table are told apart."
    cells = [
        new_code_cell("n: int = 1\nseed: int = 0", metadata={"tags": ["parameters"]}),
        new_code_cell("#| slow\nn = 9"),
    ]
    write(new_notebook(cells=cells), root / "toy.ipynb")
    (root / "s.yaml").write_text(f"notebook: {root / 'toy.ipynb'}\nparameters: {{n: 1, seed: 0}}")
    noted = {
        "notebook": str(root / "toy.ipynb"),
        "page": page_hash(read_page(root / "toy.ipynb")),
        "tables": (),
    }
    keep(root, "quick", 1, 0, rows=[{"accuracy": 0.5}], day=1, slow=False, **noted)
    keep(root, "whole", 1, 0, rows=[{"accuracy": 0.9}], day=2, slow=True, **noted)
    quick = Sweep.from_yaml(root / "s.yaml")
    assert [record["id"] for _, record in choose_runs("toy", [quick])] == ["quick"]
    (root / "s.yaml").write_text((root / "s.yaml").read_text() + "\nslow: true")
    assert [
        record["id"] for _, record in choose_runs("toy", [Sweep.from_yaml(root / "s.yaml")])
    ] == ["whole"]
    with pytest.raises(RunRefused, match="several versions: .*slow cells"):
        choose_runs("toy")
    table = join_rows(choose_runs("toy", partial=True))
    assert table.set_index("accuracy").version.to_dict() == {
        0.5: "slow cells left out",
        0.9: "slow cells run",
    }
