"Searches: what a file may say, that no trial is lost or done twice, and that bad runs end early."

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.testing import CliRunner

from neurobridge.core.files import read_json, write_json
from neurobridge.lab import (
    RunBusy,
    RunRefused,
    Sweep,
    load_runs,
    report_step,
    run_notebook,
    run_sweep,
    sweep_runs,
    write_results,
    write_sweep_report,
)
from neurobridge.lab.cli import app
from neurobridge.lab.run import live
from neurobridge.lab.run.execute import _clear, kept_files
from neurobridge.lab.run.identity import content_hash
from neurobridge.lab.run.page import page_hash
from neurobridge.lab.run.parameters import read_page
from neurobridge.lab.run.steps import Pruned, ask_to_stop, read_steps
from neurobridge.lab.sweep import driver
from neurobridge.lab.sweep.search import Search, Trials, asked_before, journal_of, opened
from neurobridge.lab.sweep.sweep_file import search_key
from neurobridge.lab.sweep.watch import varied
from neurobridge.lab.sweep.worker import Workers

optuna = pytest.importorskip("optuna")

PARAMETERS = 'x: float = 0.1\nn: int = 4\nkind: str = "a"\nflag: bool = False\nseed: int = 0'
SPACE = "parameters: {x: {log_uniform: [0.001, 1.0]}, n: {integer: [1, 9]}}"
SEARCH = f"search:\n  trials: 12\n  objectives: {{score: maximize}}\n  {SPACE}"


def page(folder, code, name="p"):
    cells = [
        new_markdown_cell("# How high?"),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        new_code_cell(code),
    ]
    write(new_notebook(cells=cells), folder / f"{name}.ipynb")


@pytest.fixture
def root(root):
    page(root, "from neurobridge.lab import record\nrecord({'score': x})")
    return root


def sweep(root, text=SEARCH, name="s"):
    (root / f"{name}.yaml").write_text(f"notebook: {root / 'p.ipynb'}\n{text}")
    return Sweep.from_yaml(root / f"{name}.yaml")


def run_folders(root):
    return list((root / "runs" / "p").glob("[0-9a-f]" * 12))


def score(values):
    return -((math.log10(values["x"]) + 2) ** 2) - 0.1 * (values["n"] - 3) ** 2


def record_of(task, metrics, status="done", **more):
    return {"id": task["id"], "experiment": "p", "status": status, "started": "2026-01-01", "seconds": 1.0, "params": task["full"], "metrics": metrics,
            "rows": [], "error": None, "package": {}, "modules": {}, "files": {}, "page": page_hash(read_page(task["page"]))} | more  # fmt: skip


class Instant(Workers):
    "Workers that do a run when they are asked for it, without executing its page."

    def __init__(self, do, count=1):
        self.do, self.count = do, count
        self.ended, self.sent = [], []

    def room(self):
        return self.count

    def submit(self, task):
        self.sent.append(task)
        self.ended.append((len(self.sent), self.do(task)))
        return len(self.sent)

    def wait(self, seconds):
        ended, self.ended = self.ended, []
        return ended

    def stop(self):
        pass


def done(task, metrics=None, **more):
    metrics = {"score": score(task["full"])} if metrics is None else metrics
    write_json(Path(task["folder"]) / "run.json", record_of(task, metrics, **more))
    return {"status": more.get("status", "done"), "error": ""}


@pytest.fixture
def instant(monkeypatch):
    "Runs are done at once by a function; returns the workers, whose `sent` lists the tasks."

    def use(do=done, count=1):
        workers = Instant(do, count)
        monkeypatch.setattr(driver, "executor", lambda *_: contextlib.nullcontext(workers))
        return workers

    return use


# What a file may say


@pytest.mark.parametrize(
    "text, line, said",
    [
        ("search: 3", 2, "expected a mapping"),
        ("search: {trials: 3}", 2, "has no `objectives`"),
        (f"search:\n  objectives: {{a: maximize}}\n  {SPACE}", 2, "has no `trials`"),
        (SEARCH.replace("trials", "trails"), 3, "did you mean `trials`"),
        (SEARCH.replace("12", "0"), 3, "at least 1"),
        (SEARCH.replace("12", "many"), 3, "'many'"),
        (SEARCH.replace("12", "20000"), 3, "at most 10,000"),
        (SEARCH.replace("{score: maximize}", "{}"), 4, "is empty"),
        (SEARCH.replace("{score: maximize}", "score"), 4, "expected a mapping"),
        (SEARCH.replace("maximize", "maximise"), 4, "did you mean maximize?"),
        (SEARCH.replace("maximize", "[maximize]"), 4, "expected maximize or minimize"),
        (SEARCH.replace("0.001, 1.0", "1.0, 0.001"), 5, "low below high"),
        (SEARCH.replace("0.001", "0"), 5, "both above 0"),
        (SEARCH.replace("integer: [1, 9]", "log_integer: [0, 9]"), 5, "both above 0"),
        (SEARCH.replace("integer", "integers"), 5, "did you mean `integer`"),
        (SEARCH.replace("n: {", "m: {"), 5, "no parameter `m`"),
        (SEARCH.replace("integer", "uniform"), 5, "not drawn from uniform"),
        (SEARCH.replace(SPACE, "parameters: {}"), 5, "is empty"),
        (SEARCH.replace(SPACE, "parameters: {n: {integer: [1, 9]}}"), 3, "there are 9 different"),
        (SEARCH.replace(SPACE, "parameters: {kind: {choice: [a, b]}}"), 3, "there are 2"),
        (f"{SEARCH}\n  sampler: TPE", 6, "did you mean"),
        (f"{SEARCH}\n  sampler: cmaes", 6, "expected tpe or gp or random"),
        (f"{SEARCH}\n  seed: -1", 6, "`seed` of `search` is -1"),
        (f"{SEARCH}\n  pruner: medain", 6, "did you mean median?"),
        (f"{SEARCH}\n  pruner: {{median: 3}}", 6, "expected a mapping"),
        (f"{SEARCH}\n  pruner: {{median: {{warmup: 3}}}}", 6, "did you mean `warmup_steps`"),
        (f"{SEARCH}\n  pruner: {{median: {{warmup_steps: -3}}}}", 6, "at least 0"),
        (f"{SEARCH}\n  pruner: {{hyperband: {{factor: 1}}}}", 6, "at least 2"),
        (f"{SEARCH}\n  pruner: {{hyperband: {{min_step: 9, max_step: 3}}}}", 6, "below"),
        (
            f"{SEARCH}\n  pruner: median".replace(
                "{score: maximize}", "{a: maximize, b: minimize}"
            ),
            6,
            "2 objectives",
        ),
        (f"{SEARCH}\nseeds: 3", 6, "`seeds` stands beside `search`"),
        (f"{SEARCH}\ngrid: {{flag: [true]}}", 6, "`grid` stands beside `search`"),
        (f"{SEARCH}\nrepeats: 2", 6, "`repeats` stands beside `search`"),
        (f"{SEARCH}\nparameters: {{n: 3}}", 5, "`n` is set in `search` and in `parameters`"),
        (f"{SEARCH}\nparameters: [n]", 6, "expected a mapping"),
        (f"{SEARCH}\nparameters: {{flag: maybe}}", 6, "'maybe'"),
    ],
)
def test_slips_name_their_line(root, refused_at, text, line, said):
    refused_at(sweep, root, text, line, said)


def test_what_a_file_means(root):
    found = sweep(
        root,
        "parameters: {flag: true}\nsearch:\n  trials: 7\n  objectives: {a: maximize, b: minimize}\n"
        "  parameters:\n    x: {uniform: [1, 2]}\n    n: {log_integer: [1, 100]}\n"
        "    kind: {choice: [a, b]}\n  sampler: gp\n  seed: 3\nresources: {cpu: 1}\ntimeout: 60",
    )
    assert found.settings == () and found.plan() == []
    assert found.names == ["flag", "x", "n", "kind"]
    search = found.search
    assert (search.trials, search.sampler, search.seed, search.pruner) == (7, "gp", 3, "none")
    assert search.objectives == {"a": "maximize", "b": "minimize"}
    assert search.space["n"] == ("log_integer", [1, 100]) and search.fixed == {"flag": True}
    assert found.resources.timeout == 60


def test_random_draws_whole_numbers_by_their_ratios(root):
    drawn = sweep(
        root,
        "random: {draws: 4000, parameters: {n: {log_integer: [1, 10000]}, x: {uniform: [0, 1]}}}",
    )
    numbers = sorted(one["n"] for one in drawn.settings)
    assert numbers[0] == 1 and numbers[-1] <= 10_000
    assert 70 < numbers[2000] < 140  # the geometric middle is 100


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_ranges_are_kept(sampler):
    space = {
        "x": ("log_uniform", [1e-5, 1.0]),
        "y": ("uniform", [-3.0, -1.0]),
        "n": ("integer", [-2, 2]),
        "m": ("log_integer", [1, 1000]),
        "c": ("choice", [None, [1, 2], "a", True, 0.5]),
    }
    trials = Trials(Search(14, space, {"a": "maximize"}, sampler=sampler))
    for _ in range(14):
        one = trials.ask()
        assert 1e-5 <= one.params["x"] <= 1 and -3 <= one.params["y"] <= -1
        assert one.params["n"] in range(-2, 3) and one.params["m"] in range(1, 1001)
        assert one.params["c"] in space["c"][1] and type(one.params["m"]) is int
        trials.tell(one.number, [one.params["x"]])
    assert len(trials.all()) == 14


# Curves


def test_curves_of_runs_that_begin_again(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROBRIDGE_RUN", str(tmp_path))
    for step, value in [(1, 0.1), (2, 0.2), (3, 0.3), (3, 0.33), (4, math.inf), (2, 0.9)]:
        report_step(step, value)
    assert read_steps(tmp_path) == {1: 0.1, 2: 0.9}
    with (tmp_path / "steps.csv").open("a") as file:
        file.write("3,0.9")  # being written
    assert read_steps(tmp_path) == {1: 0.1, 2: 0.9}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.floats(allow_nan=False)), max_size=12))
def test_curves_are_what_was_reported_last(tmp_path_factory, calls):
    folder = tmp_path_factory.mktemp("run")
    os.environ["NEUROBRIDGE_RUN"] = str(folder)
    try:
        for step, value in calls:
            report_step(step, value)
    finally:
        del os.environ["NEUROBRIDGE_RUN"]
    found = read_steps(folder)
    assert list(found) == sorted(found)
    kept = []
    for step, value in calls:
        kept = [one for one in kept if one[0] < step] + [(step, value)]
    assert list(found.items()) == kept


def test_what_is_no_curve_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROBRIDGE_RUN", str(tmp_path))
    assert read_steps(tmp_path) == {}
    (tmp_path / "steps.csv").write_text("step,value\n1,0.5\n2\n")
    with pytest.raises(RunRefused, match="line 3: '2'"):
        read_steps(tmp_path)
    (tmp_path / "steps.csv").unlink()
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / "steps.csv").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="is a link"):
        report_step(1, 0.5)
    with pytest.raises(RunRefused, match="is a link"):
        read_steps(tmp_path)
    assert (tmp_path / "elsewhere").read_text() == ""


def test_who_is_asked_to_stop_stops(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROBRIDGE_RUN", str(tmp_path))
    report_step(1, 0.5)
    ask_to_stop(tmp_path, "step 1: too low")
    for step in (2, 3):  # also after a page has caught the first
        with pytest.raises(Pruned, match="step 1: too low"):
            report_step(step, 0.25)
    assert read_steps(tmp_path) == {1: 0.5, 2: 0.25, 3: 0.25}
    monkeypatch.delenv("NEUROBRIDGE_RUN")
    report_step(4, 0.5)  # no run, no end
    assert 4 not in read_steps(tmp_path)


# Trials as runs


def test_each_trial_is_a_run_and_the_search_learns(root, instant):
    workers = instant()
    found = run_sweep(sweep(root, SEARCH.replace("12", "30")))
    assert (found.status == "done").all() and len(found) == 30 == len(workers.sent)
    assert len({task["id"] for task in workers.sent}) == 30
    late = found.score[15:].mean()
    assert late > found.score[:10].mean()  # the first ten are random
    assert {Path(folder).name for folder in found.folder} == {task["id"] for task in workers.sent}
    table = sweep_runs(sweep(root, SEARCH.replace("12", "30")))
    assert table.score.tolist() == found.score.tolist()
    again = run_sweep(sweep(root, SEARCH.replace("12", "30")))
    assert again.equals(found) and len(workers.sent) == 30


def test_more_trials_are_the_same_search_and_another_seed_is_not(root, instant):
    workers = instant()
    first = run_sweep(sweep(root, SEARCH.replace("12", "5")))
    more = run_sweep(sweep(root))
    assert more.x.tolist()[:5] == first.x.tolist() and len(workers.sent) == 12
    other = run_sweep(sweep(root, f"{SEARCH}\n  seed: 1"))
    assert len(other) == 12 and not set(other.x) & set(more.x)
    assert sweep(root).plan()[0].params["x"] == first.x[0]  # which is still there


def test_a_search_that_was_killed_asks_for_the_same(root, instant):
    "One worker; the driver ends at every third run, once before it and once after it is done."
    ended = []

    def die(task):
        outcome = done(task) if len(ended) % 2 else None
        ended.append(task["id"])
        if len(ended) % 3 == 0:
            raise KeyboardInterrupt
        return outcome or done(task)

    instant()
    expected = run_sweep(sweep(root, name="whole")).x.tolist()
    for folder in run_folders(root):
        (folder / "run.json").unlink()
    instant(die)
    for _ in range(20):
        with contextlib.suppress(KeyboardInterrupt):
            found = run_sweep(sweep(root, name="broken"))
            break
    assert found.x.tolist() == expected and (found.status == "done").all()
    again = Counter(ended)
    assert max(again.values()) <= 2 and len(again) == 12


def test_runs_that_are_done_are_not_run_again(root, instant):
    "A run from before the search, and rows of a results file from another machine."
    workers = instant()
    with_file = f"results: {root / 'r.csv'}\n{SEARCH}"
    first = run_sweep(sweep(root, with_file))
    assert len(pd.read_csv(root / "r.csv")) == 12
    os.environ["NEUROBRIDGE_RUNS"] = str(root / "elsewhere")
    again = run_sweep(sweep(root, with_file))
    assert len(workers.sent) == 12 and (again.status == "recorded").all()
    assert again.x.tolist() == first.x.tolist() and again.score.tolist() == first.score.tolist()
    os.environ["NEUROBRIDGE_RUNS"] = str(root / "runs")
    for folder in (root / "runs" / "p").glob("*.search"):
        (folder / "journal.jsonl").unlink()
    assert run_sweep(sweep(root)).x.tolist() == first.x.tolist() and len(workers.sent) == 12


def test_suggestions_that_come_twice_are_one_run(root, instant):
    space = "parameters: {n: {integer: [1, 3]}, kind: {choice: [a, b]}}"
    text = SEARCH.replace(SPACE, space).replace("12", "6")
    news = []
    for count in (1, 3):
        workers = instant(count=count)
        name = f"s{count}"
        found = run_sweep(
            sweep(root, f"{text}\n  seed: {count}", name), tell=lambda _, line: news.append(line)
        )
        assert len(found) == len(set(found.folder)) <= 6
        assert len(workers.sent) == len({task["id"] for task in workers.sent})
        trials = asked_before(
            sweep(root, f"{text}\n  seed: {count}", name).search,
            journal_of("p", name),
            search_key(sweep(root, f"{text}\n  seed: {count}", name)),
        )
        assert all(one.state == "complete" for one in trials)
        if len(found) < 6:
            assert any("had been tried before" in line for line in news)


def test_a_failed_trial_is_told_and_not_tried_again_by_itself(root, instant):
    def some(task):
        if task["full"]["n"] > 5:
            error = {"ename": "E", "evalue": "v", "cell": 1, "heading": "", "traceback": []}
            done(task, {}, status="failed", error=error)
            return {"status": "raised", "error": "E: v"}
        return done(task)

    workers = instant(some)
    found = run_sweep(sweep(root))
    count = len(workers.sent)
    failed = int((found.status == "failed").sum())
    assert count == 12 and failed and set(found.status) == {"done", "failed"}
    assert run_sweep(sweep(root)).equals(found) and len(workers.sent) == 12
    workers = instant()
    mended = run_sweep(sweep(root), only_failed=True)
    assert (mended.status == "done").all() and len(workers.sent) == failed
    search = sweep(root)
    trials = asked_before(search.search, journal_of("p", "s"), search_key(search))
    assert Counter(one.state for one in trials) == {"complete": 12, "failed": failed}


def test_an_objective_that_is_not_recorded_stops_the_search(root, instant):
    workers = instant(lambda task: done(task, {"scores": 1.0, "loss": 2.0}))
    with pytest.raises(RunRefused, match="has recorded scores, loss, and not `score`"):
        run_sweep(sweep(root))
    assert len(workers.sent) == 1
    with pytest.raises(RunRefused, match="none of 1 finished runs .* did you mean `scores`"):
        run_sweep(sweep(root))
    assert len(workers.sent) == 1


def test_an_objective_that_is_not_finite_is_a_failed_trial(root, instant, monkeypatch):
    metrics = {"value": float("nan")}
    monkeypatch.setattr(
        driver, "_metrics", lambda one: {"score": metrics["value"]} if one.folder.exists() else None
    )
    instant(lambda task: done(task, {"score": 1.0}))
    news = []
    run_sweep(sweep(root, SEARCH.replace("12", "2")), tell=lambda _, line: news.append(line))
    search = sweep(root, SEARCH.replace("12", "2"))
    trials = asked_before(search.search, journal_of("p", "s"), search_key(search))
    assert [one.state for one in trials] == ["failed"] * 2
    assert any("not finite" in line for line in news)


def test_edited_modules_begin_the_search_anew(root, instant):
    (root / "helper.py").write_text("STEP = 1")

    def used(task):
        return done(task, modules={"helper.py": content_hash(root / "helper.py")})

    workers, news = instant(used), []
    first = run_sweep(sweep(root))
    (root / "helper.py").write_text("STEP = 2")
    second = run_sweep(sweep(root), tell=lambda _, line: news.append(line))
    assert len(workers.sent) == 24 and second.x.tolist() == first.x.tolist()
    assert all(folder.endswith(".2") for folder in second.folder)
    assert any("the search begins anew" in line for line in news)
    assert len(run_sweep(sweep(root))) == 12 and len(workers.sent) == 24


def test_several_objectives_have_a_front(root, instant):
    def two(task):
        full = task["full"]
        return done(task, {"score": score(full), "cost": full["n"] * full["x"]})

    instant(two)
    text = SEARCH.replace("{score: maximize}", "{score: maximize, cost: minimize}")
    run_sweep(sweep(root, text.replace("12", "25")))
    written = write_sweep_report(sweep(root, text.replace("12", "25"))).read_text()
    assert "<h2>Trade-off</h2>" in written and "score (more is better)" not in written
    assert written.count("by trial") == 4 and "25 of 25 trials" in written  # alt and caption


# The journal


def test_one_process_at_a_time(root, instant):
    instant()
    one = sweep(root)
    with opened(one.search, journal_of("p", "s"), search_key(one)):
        code = f"from neurobridge.lab import *\nfrom neurobridge.lab.sweep import driver\nrun_sweep(Sweep.from_yaml({str(root / 's.yaml')!r}))"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert other.returncode and "is in progress (process" in other.stderr
        assert sweep(root).plan() == []  # it can be read meanwhile
    assert issubclass(RunBusy, RuntimeError)


def test_a_torn_line_is_cut_off_and_a_damaged_journal_is_refused(root, instant):
    instant()
    found = run_sweep(sweep(root, SEARCH.replace("12", "6")))
    journal = journal_of("p", "s")
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "stu')
    assert len(sweep(root, SEARCH.replace("12", "6")).plan()) == 6
    more = run_sweep(sweep(root))
    assert more.x.tolist()[:6] == found.x.tolist() and len(more) == 12
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:5], b"nonsense\n", *lines[5:]]))
    with pytest.raises(RunRefused, match="is not a search's journal"):
        sweep(root)
    journal.unlink()
    journal.symlink_to(root / "s.yaml")
    with pytest.raises(RunRefused, match="is a link"):
        sweep(root)
    assert (root / "s.yaml").read_text().startswith("notebook")


@pytest.mark.long
def test_nothing_is_unpickled(root, instant):
    instant()
    run_sweep(sweep(root))
    code = (
        "import sys\nseen = []\nsys.addaudithook(lambda event, args: seen.append(args) if event == 'pickle.find_class' else None)\n"
        f"from neurobridge.lab import Sweep\nassert len(Sweep.from_yaml({str(root / 's.yaml')!r}).settings) == 12\nprint(len([one for one in seen if 'optuna' in str(one) or 'posix' in str(one)]))"
    )
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == "0"
    for line in journal_of("p", "s").read_text().splitlines():
        assert isinstance(json.loads(line), dict)


# Real runs

TRAINING = """
import time
from neurobridge.lab import record, report_step, run_dir
log = (run_dir() / 'log.txt').open('a')
for step in range(1, steps + 1):
    time.sleep({pause})
    value = x * step / steps
    print(step, file=log, flush=True)
    if step == 2:
        record({{'half': value}}, rows=[{{'step': step, 'value': value}}])
    report_step(step, value)
record({{'score': value}})
"""


# What is shown meanwhile


def test_what_runs_of_a_search_do_is_watched(root, instant):
    "Those that were asked for on the way too; with no `tell`, nothing is in the way of the watching."
    workers, seen = instant(count=2), []
    found = run_sweep(sweep(root), watch=lambda runs: seen.extend(runs), log_output=True)
    assert {one.id for one in seen} == {task["id"] for task in workers.sent}
    assert len(found) == 12 and all(task["log_output"] for task in workers.sent)
    shown = CliRunner().invoke(app, ["sweep", str(root / "s.yaml"), "--dry-run"])
    assert shown.exit_code == 0 and "; 0 would be run" in shown.stdout
    assert varied(sweep(root)) == ["x", "n"]


def test_a_search_that_has_not_begun_is_shown(root):
    sweep(root)
    shown = CliRunner().invoke(app, ["sweep", str(root / "s.yaml"), "--dry-run"])
    assert shown.exit_code == 0 and "0 of 12 trials asked for" in shown.stdout


def test_a_curve_is_no_checkpoint_and_outlives_an_attempt(tmp_path, monkeypatch):
    "Another attempt adds to it; what the one before has reported is not shown as the present state."
    for name in ("metrics.json", "output.log", "live.json", ".stop", "fit.pt"):
        (tmp_path / name).write_text("1")
    (tmp_path / "steps.csv").write_text("step,value\n1,0.5\n2,0.25\n")
    assert kept_files(tmp_path) == [tmp_path / "fit.pt"]
    _clear(tmp_path, everything=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fit.pt", "steps.csv"]
    monkeypatch.setattr(live, "_PAUSE", 0.0)
    states = []
    now = live.Live(tmp_path, on_live=states.append)
    now.tick()
    with (tmp_path / "steps.csv").open("a") as file:
        file.write("3,0.125\n")
    now.tick()
    assert "step" not in states[0] and (states[1]["step"], states[1]["value"]) == (3, "0.125")
    assert read_steps(tmp_path) == {1: 0.5, 2: 0.25, 3: 0.125}


@pytest.mark.long
def test_bad_runs_end_early(root):
    "What they had recorded is kept; they are no failures, and are not run again."
    page(root, "steps = 12\n" + TRAINING.format(pause=0.25))
    space = "parameters: {x: {uniform: [0.0, 1.0]}}"
    text = f"{SEARCH.replace(SPACE, space)}\n  sampler: random\n  pruner: {{median: {{startup_trials: 2}}}}"
    counts = []
    found = run_sweep(sweep(root, text), 2, tell=lambda now, _: counts.append(dict(now)))
    states = Counter(found.status)
    assert states["pruned"] >= 2 and states["done"] >= 3 and set(states) == {"pruned", "done"}
    assert counts[-1]["pruned"] == states["pruned"] and counts[-1]["failed"] == 0
    assert found.x[found.score.idxmax()] == found.x.max()  # the best was not ended
    for _, run in found[found.status == "pruned"].iterrows():
        folder = Path(run.folder)
        record = read_json(folder / "run.json")
        steps = len((folder / "log.txt").read_text().split())
        assert 2 <= steps < 12 and record["error"] is None and "step" in record["pruned"]
        assert list(read_steps(folder)) == list(range(1, steps + 1))
        assert record["metrics"] == {"half": pytest.approx(run.x / 6)} and len(record["rows"]) == 1
        assert record["core_seconds"] > 0 and record["attempt"] == 1
        assert "Traceback" not in (folder / "notebook.ipynb").read_text()
    shell = CliRunner().invoke(app, ["sweep", str(root / "s.yaml")])
    assert shell.exit_code == 0 and f"{states['pruned']} pruned" in shell.stdout
    dry = CliRunner().invoke(app, ["sweep", str(root / "s.yaml"), "--dry-run"])
    assert "; 0 would be run" in dry.stdout
    assert Counter(load_runs().status) == states
    assert len(write_results("p", [sweep(root, text)], out=root / "out")) == 2
    assert len(pd.read_csv(root / "out" / "p.csv")) == states["done"]
    written = write_sweep_report(sweep(root, text)).read_text()
    assert "<h2>Reported values</h2>" in written and "pruned runs at their last value" in written
    run = found[found.status == "pruned"].iloc[0]
    whole = run_notebook(root / "p.ipynb", {"x": run.x})  # asked for by hand: to its end
    assert whole.status == "done" and str(whole.folder) == run.folder
    assert list(read_steps(whole.folder)) == list(range(1, 13))


def killed(root, text, workers, seconds):
    "Start a sweep in a process group of its own, and kill all of it; return whether it had ended."
    code = f"from neurobridge.lab import Sweep, run_sweep\nif __name__ == '__main__': run_sweep(Sweep.from_yaml({str(root / 's.yaml')!r}), {workers})"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    ended = process.poll() is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return ended


@pytest.mark.long
def test_a_search_that_is_killed_loses_nothing_and_does_nothing_twice(root):
    "kill -9 of the whole sweep, again and again, until it comes to its end."
    page(
        root,
        "import time\nfrom neurobridge.lab import record, run_dir\n"
        "(run_dir() / 'begun.txt').open('a').write('.')\ntime.sleep(0.4)\n"
        "record({'score': x})",
    )
    text = SEARCH.replace("12", "24")
    search = sweep(root, text)
    journal = journal_of("p", "s")
    known: list = []
    done_before: dict = {}
    kills = 0
    for attempt in range(16):
        ended = killed(root, text, 2, 3 * 1.3**attempt)  # seconds; long ones on a slow machine
        trials = asked_before(search.search, journal, search_key(search))
        assert [one.params for one in trials[: len(known)]] == known  # none lost, none changed
        known = [one.params for one in trials]
        if ended:
            break
        kills += 1
        time.sleep(2.5)  # in which kernels see that their driver is gone
        records = [folder / "run.json" for folder in run_folders(root)]
        texts = {file.parent: file.read_text() for file in records if file.exists()}
        done_before |= {
            folder: text for folder, text in texts.items() if '"status": "done"' in text
        }
    assert ended and kills >= 2
    found = sweep_runs(sweep(root, text))
    assert (found.status == "done").all() and len(found) == 24 == len(set(found.folder))
    assert [one.state for one in trials] == ["complete"] * len(trials)
    assert done_before
    for folder, text in done_before.items():
        assert (folder / "run.json").read_text() == text  # what was done was not done again
    begun = sum(len((folder / "begun.txt").read_text()) for folder in run_folders(root))
    assert begun <= 24 + 2 * kills  # two workers, so two runs at most were broken off by a kill
    told = {repr(one.params): one.values for one in trials}
    assert [told[repr({"x": run.x, "n": run.n})] for _, run in found.iterrows()] == [
        (value,) for value in found.score
    ]
    assert len(run_folders(root)) == 24  # and no others
