"Sweep files: what they mean, and every way in which they can be wrong."

import contextlib
import itertools
import math
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nbformat import read, write
from nbformat.v4 import new_code_cell, new_notebook

from neurobridge.core import project_root
from neurobridge.core.files import write_json
from neurobridge.lab import RunRefused, Sweep, run_sweep, sweep_table
from neurobridge.lab.run import execute as runs
from neurobridge.lab.run.identity import run_id
from neurobridge.lab.run.page import find_page
from neurobridge.lab.run.parameters import page_parameters, read_page, resolve
from neurobridge.lab.sweep import driver
from neurobridge.lab.sweep.sweep_file import MOST, Resources, parse_bytes

ROOT = project_root(Path(__file__).parent)
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
PARAMETERS = 'n: int = 1  # how many\nrate: float = 0.5\nname: str = "a"\nflag: bool = False\nsizes: list[int] = [1]\nmay: int | None = None\nseed: int = 0'


@pytest.fixture
def root(root):
    cells = [new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), new_code_cell("1")]
    write(new_notebook(cells=cells), root / "p.ipynb")
    return root


def sweep(root, text):
    (root / "s.yaml").write_text(f"notebook: {root / 'p.ipynb'}\n{text}")
    return Sweep.from_yaml(root / "s.yaml")


# What a file means


def test_every_section_and_their_order(root):
    found = sweep(
        root,
        "parameters: {flag: true}\nlist:\n  - {name: x}\n  - {name: y, may: null}\nzip: {n: [1, "
        "2], sizes: [[1], [1, 2]]}\ngrid: {rate: [0.1, 1e-3]}\nseeds: [5, 7]",
    )
    expected = [{"flag": True, **one, "n": n, "sizes": sizes, "rate": rate, "seed": seed}
                for one in ({"name": "x"}, {"name": "y", "may": None}) for n, sizes in ((1, [1]), (2, [1, 2])) for rate in (0.1, 0.001) for seed in (5, 7)]  # fmt: skip
    assert (
        list(found.settings) == expected
        and found.name == "s"
        and found.repeats == 1
        and found.resources == Resources()
    )


def test_a_file_without_values_is_one_run(root):
    assert sweep(root, "").settings == ({},)


def test_resources_limits_and_patience(root):
    found = sweep(
        root,
        "repeats: 2\nresources: {cpu: 4, gpu: 0, memory: 1.5GB}\ntimeout: 90\nretries: "
        "3\nbackoff: 0.5",
    ).resources
    assert found == Resources(
        cpu=4, gpu=0, memory=1_500_000_000, timeout=90, retries=3, backoff=0.5
    )


small = st.integers(1, 4)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(small, small, small, small, st.integers(1, 3))
def test_the_product_of_sections(root, n, rate, zipped, seeds, repeats):
    content = {"grid": {"n": list(range(n)), "rate": [r / 7 for r in range(rate)]}, "zip": {"name": [f"w{i}" for i in range(zipped)], "may": list(range(zipped))},
               "seeds": seeds, "repeats": repeats}  # fmt: skip
    found = sweep(root, yaml.safe_dump(content))
    expected = set(
        itertools.product(range(n), [r / 7 for r in range(rate)], range(zipped), range(seeds))
    )
    assert {(s["n"], s["rate"], s["may"], s["seed"]) for s in found.settings} == expected
    assert all(s["name"] == f"w{s['may']}" for s in found.settings)
    assert (
        len(found.settings) == n * rate * zipped * seeds
        and len({one.folder for one in found.plan()}) == len(found.settings) * repeats
    )


def test_identities_are_those_of_single_runs(root):
    page = read_page(root / "p.ipynb")
    for one in sweep(root, "grid: {n: [1, 2]}\nseeds: 2").plan():
        full = resolve(page_parameters(page), one.params)
        assert (
            one.id == run_id(page, full) == run_id(page, full, slow=True)
            and one.folder == root / "runs" / "p" / one.id
            and one.full == full
        )


def test_draws_are_a_part_of_the_file(root):
    text = "random: {draws: 300, seed: %d, parameters: {rate: {log_uniform: [1e-4, 1.0]}, n: {integer: [2, 5]}, name: {choice: [a, b]}, may: {integer: [0, 1000000]}}}"
    first, same, other = (sweep(root, text % seed).settings for seed in (1, 1, 2))
    assert (
        first == same != other
        and {one["n"] for one in first} == {2, 3, 4, 5}
        and {one["name"] for one in first} == {"a", "b"}
    )
    logs = [math.log10(one["rate"]) for one in first]
    assert (
        all(-4 <= x <= 0 for x in logs) and abs(sum(logs) / 300 + 2) < 4 * (4 / 12**0.5) / 300**0.5
    )  # four standard errors of an even spread


def test_draws_that_come_up_twice_are_drawn_again(root):
    text = "random: {draws: %d, seed: %d, parameters: {n: {integer: [10, 100]}}}"
    for seed in range(20):
        drawn = [one["n"] for one in sweep(root, text % (20, seed)).settings]
        chance = random.Random(seed)
        assert drawn == list(dict.fromkeys(chance.randint(10, 100) for _ in range(100)))[:20]
    assert {one["n"] for one in sweep(root, text % (91, 0)).settings} == set(range(10, 101))


def test_a_page_beside_its_file(root, monkeypatch):
    "Wherever the command is given."
    (root / "deeper").mkdir()
    (root / "deeper" / "s.yaml").write_text("notebook: ../p.ipynb")
    monkeypatch.chdir(root)
    assert Sweep.from_yaml("deeper/s.yaml").page == (root / "p.ipynb").resolve() and find_page(
        "p.ipynb"
    ) == find_page("../p.ipynb", "deeper")
    (root / "deeper" / "s.yaml").write_text("notebook: q.ipynb")
    with pytest.raises(
        RunRefused,
        match=r"s.yaml, line 1: there is no page 'q.ipynb' \(looked for .*/deeper/q.ipynb, .*/q.ipynb, .*/q.ipynb\); expected",
    ):
        Sweep.from_yaml("deeper/s.yaml")
    for wrong in ("[p.ipynb]", "", "12"):
        (root / "s.yaml").write_text(f"notebook: {wrong}")
        with pytest.raises(
            RunRefused,
            match="line 1: `notebook` is .*; expected the name of an experiment or the path of a notebook",
        ):
            Sweep.from_yaml(root / "s.yaml")


def test_seconds_as_yaml_misreads_them(root):
    found = sweep(root, "timeout: 1e3\nbackoff: 1e-1").resources
    assert found == Resources(timeout=1000.0, backoff=0.1)


def test_amounts_of_memory():
    assert [parse_bytes(x) for x in ("4GB", "4 gb", "512MiB", "100", 7, "1.5KB")] == [
        4 * 10**9,
        4 * 10**9,
        2**29,
        100,
        7,
        1500,
    ]
    for wrong in ("", "GB", "-1GB", "1e9", "4 G B", "0", True, None, "4PB"):
        with pytest.raises(RunRefused, match="no amount of memory"):
            parse_bytes(wrong)


# What is refused


@pytest.mark.parametrize(
    "text, line, said",
    [
        ("gird: {n: [1]}", 2, "did you mean `grid`"),
        ("grid: {m: [1]}", 2, "no parameter `m`"),
        ("grid:\n  n: [1]\n  rat: [2]", 4, "did you mean `rate`"),
        ("grid:\n  n:\n    - 1\n    - two", 5, "'two'"),
        ("grid: {n: []}", 2, "at least one value"),
        ("grid: {}", 2, "is empty"),
        ("grid: {n: 3}", 2, "expected a list"),
        ("grid: [1]", 2, "expected a mapping"),
        ("list: []", 2, "`list` is empty"),
        ("list: [1]", 2, "expected a mapping"),
        ("list: [{flag: yes!}]", 2, "'yes!'"),
        ("zip: {n: [1, 2], rate: [1]}", 2, "n: 2, rate: 1"),
        ("parameters: {flag: 1}", 2, "cannot be 1"),
        ("parameters: {may: x}", 2, "cannot be 'x'"),
        ("parameters: {name: 2026-01-01}", 2, "date"),
        ("parameters: {rate: .nan}", 2, "nan"),
        ("seeds: 0", 2, "at least one value"),
        ("seeds: -3", 2, "expected a list"),
        ("seeds: [a]", 2, "'a'"),
        ("seeds: 0", 2, "a number n above 0"),
        ("seeds: two", 2, "a number n above 0"),
        ("seeds: [1, 1]", 1, "use `repeats`"),
        ("parameters: {seed: 1}\nseeds: 2", 3, "`seed` is set in `seeds` and in `parameters`"),
        ("grid: {n: [1]}\nzip: {n: [2]}", 2, "one place"),
        ("seeds: 2\nseeds: 3", 3, "given twice"),
        ("grid:\n  n: [1]\n  n: [2]", 4, "given twice"),
        ("grid: {n: [1, 1]}", 1, "runs 1 and 2"),
        ("list: [{}, {n: 1}]", 1, "runs 1 and 2"),  # 1 is the default
        ("repeats: 0", 2, "at least 1"),
        ("repeats: many", 2, "'many'"),
        ("retries: -1", 2, "at least 0"),
        ("retries: 1.5", 2, "whole number"),
        ("timeout: 0", 2, "more than 0"),
        ("timeout: soon", 2, "'soon'"),
        ("backoff: .inf", 2, "seconds"),
        ("resources: {cpus: 2}", 2, "did you mean `cpu`"),
        ("resources:\n  cpu: 1\n  memory: much", 4, "no amount of memory"),
        ("resources: {cpu: 0}", 2, "at least 1"),
        ("resources: {gpu: true}", 2, "whole number"),
        ("random: {draws: 3}", 2, "draws nothing"),
        ("random: {parameters: {n: {integer: [1, 2]}}}", 2, "`draws`"),
        ("random: {draws: 0, parameters: {n: {integer: [1, 2]}}}", 2, "`draws`"),
        ("random: {draws: 3, parameters: {n: {integer: [2, 1]}}}", 2, "low below high"),
        ("random: {draws: 3, parameters: {rate: {log_uniform: [0, 1]}}}", 2, "both above 0"),
        ("random: {draws: 3, parameters: {n: {uniform: [0, 1]}}}", 2, "not drawn from uniform"),
        (
            "random: {draws: 3, parameters: {name: {uniform: [0, 1]}}}",
            2,
            "not drawn from uniform; expected choice",
        ),
        (
            "random: {draws: 3, parameters: {flag: {integer: [0, 1]}}}",
            2,
            "not drawn from integer; expected choice",
        ),
        (
            "random: {draws: 3, parameters: {n: {log_uniform: [1, 2]}}}",
            2,
            "expected integer or log_integer or choice",
        ),
        (
            "random: {draws: 3, parameters: {rate: {uniform: [-1.0e308, 1.0e308]}}}",
            2,
            "expected [low, high]",
        ),
        (
            "random: {draws: 3, parameters: {n: {integer: [1, 2]}}}",
            2,
            "3 different draws and finds 2; expected fewer draws or a wider range",
        ),
        (
            "seeds: 2\nrandom: {draws: 4000, parameters: {flag: {choice: [true]}}}",
            3,
            "finds 1; expected fewer draws",
        ),
        ("random: {draws: 3, parameters: {rate: {normal: [0, 1]}}}", 2, "no key `normal`"),
        ("random: {draws: 3, parameters: {rate: 0.5}}", 2, "expected a mapping"),
        ("a: &x [1]\nb: *x", 2, "anchors"),
        ("grid: {n: [1, 2}", 2, "not valid YAML"),
        ("grid: {n: [1]}\n\tseeds: 3", 3, "not valid YAML"),
        ("parameters: {n: !!python/object:os.system x}", 2, "not valid YAML"),
        ("? [n]\n: 3", 2, "a key is a word"),
    ],
)
def test_slips_name_their_line(root, refused_at, text, line, said):
    refused_at(sweep, root, text, line, said)


def test_a_billion_combinations_are_refused_at_once(root):
    thousand = list(range(1000))
    with pytest.raises(RunRefused, match="1,000,000,000 runs"):
        sweep(root, f"grid: {{n: {thousand}, rate: {thousand}}}\nseeds: 1000")
    with pytest.raises(RunRefused, match="1,000,000,000,000 runs"):
        sweep(root, "seeds: 1000000000000")
    assert len(sweep(root, f"seeds: {MOST}").settings) == MOST
    with pytest.raises(RunRefused, match="10,001 runs"):
        sweep(root, f"seeds: {MOST + 1}")
    with pytest.raises(RunRefused, match="repeats 20,000"):
        sweep(root, "repeats: 20000")
    with pytest.raises(RunRefused, match="2,000,000,000 runs .* take fewer$"):
        sweep(root, "random: {draws: 2000000000, parameters: {rate: {uniform: [0, 1]}}}")
    with pytest.raises(RunRefused, match="20,000 runs"):
        sweep(root, "random: {draws: 20000, parameters: {rate: {uniform: [0, 1]}}}")


def test_files_that_are_none(root):
    (root / "latin.yaml").write_bytes(b"notebook: \xff\xfe\xff")
    (root / "list.yaml").write_text("- 1")
    (root / "deep.yaml").write_text("grid: " + "[" * 3000)
    (root / "lost.yaml").write_text("notebook: no_such_page")
    for name in ("latin", "list", "deep", "lost", "missing"):
        with pytest.raises(RunRefused, match=f"{name}.yaml"):
            Sweep.from_yaml(root / f"{name}.yaml")
    (root / "empty.yaml").write_text("")
    with pytest.raises(RunRefused, match="no `notebook`"):
        Sweep.from_yaml(root / "empty.yaml")


words = st.sampled_from(
    [
        "n",
        "rate",
        "name",
        "seed",
        "grid",
        "zip",
        "list",
        "random",
        "seeds",
        "parameters",
        "draws",
        "choice",
        "memory",
        "resources",
        "timeout",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(words, values, max_size=4) | st.text(max_size=60))
def test_anything_else_is_a_sweep_or_refused(root, content):
    try:
        found = sweep(root, content if isinstance(content, str) else yaml.safe_dump(content))
    except RunRefused as error:
        assert "line " in str(error)
    else:
        takes = page_parameters(root / "p.ipynb")
        assert 1 <= len(found.settings) <= MOST and all(
            resolve(takes, one) for one in found.settings
        )


# How it stands


def test_done_runs_are_not_sent_out(root):
    one = sweep(root, "grid: {n: [1]}")
    (planned,) = one.plan()
    assert sweep_table([planned])["status"].tolist() == ["absent"]
    record = {
        "id": planned.id,
        "experiment": "p",
        "status": "done",
        "started": "2026-01-01",
        "seconds": 2.0,
        "params": planned.full,
        "metrics": {"n": 3, "loss": 0.5},
        "rows": [],
        "error": None,
        "package": {},
        "modules": {},
        "files": {},
    }
    write_json(planned.folder / "run.json", record)
    (row,) = run_sweep(one, scheduler="tcp://127.0.0.1:1").to_dict(
        "records"
    )  # nobody would answer there
    assert row["status"] == "done" and row["n"] == 1 and row["metric.n"] == 3 and row["loss"] == 0.5
    write_json(
        planned.folder / "run.json",
        record | {"status": "failed", "error": {"ename": "E", "evalue": "v"}},
    )
    assert sweep_table([planned])["error"].tolist() == ["E: v"]
    (planned.folder / "run.json").write_text("{")
    assert sweep_table([planned])["status"].tolist() == ["damaged"]
    (planned.folder / "run.json").unlink()
    assert run_sweep(one, scheduler="tcp://127.0.0.1:1", only_failed=True)["status"].tolist() == [
        "absent"
    ]


def test_failed_runs_whose_next_attempt_was_stopped_are_still_failed_ones(root, monkeypatch):
    one, sent = sweep(root, "grid: {n: [1, 2]}\nretries: 0"), []
    failed = one.plan()[0]
    error = {"cell": 2, "heading": "", "source": "", "ename": "E", "evalue": "v", "traceback": []}
    write_json(
        failed.folder / "run.json",
        {
            "id": failed.id,
            "experiment": "p",
            "status": "failed",
            "started": "2026-01-01",
            "seconds": 2.0,
            "params": failed.full,
            "metrics": {},
            "rows": [],
            "error": error,
        },
    )

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "_papermill", stop)
    with pytest.raises(KeyboardInterrupt):
        runs.run_notebook(root / "p.ipynb", failed.params)
    table = sweep_table(one.plan())
    assert (
        table["status"].tolist() == ["stopped", "absent"] and table["error"].tolist()[0] == "E: v"
    )
    monkeypatch.setattr(driver, "executor", lambda *_: contextlib.nullcontext())

    def work(workers, sweep, planned, tell, landed, *, feed, watch, log_output):
        sent.extend(planned)

    monkeypatch.setattr(driver, "work_off", work)
    run_sweep(one, only_failed=True)
    assert sent == [failed]
    monkeypatch.setattr(runs, "_papermill", lambda *_: None)
    assert runs.run_notebook(root / "p.ipynb", failed.params).record["error"] is None


# The recorded batches


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_recorded_batches_fit_their_pages(file):
    found = Sweep.from_yaml(file)
    takes = page_parameters(find_page(found.page))
    assert (
        found.page.parent == ROOT / "nbs" / "experiments"
        and sum(len(one.settings) for one in map(Sweep.from_yaml, SWEEPS) if one.page == found.page)
        >= 3
    )
    assert all(resolve(takes, one) for one in found.settings)


@pytest.mark.parametrize("name", ["pipe_s", "similarity"])
def test_recorded_batches_are_the_commands_of_their_pages(name):
    "Read the shell commands under “Reproduce” and compare the values they lead to, defaults included, with those of the file."
    asked, found = commands(name), [repr(one) for one in full_settings(name)]
    assert asked and sorted(repr(full) for _, full in asked) == sorted(found)


@pytest.mark.parametrize("name, table", [("transfer_methods", "transfer_methods"), ("transfer_methods_full", None), ("transfer_methods_tuning", "transfer_methods_tuning"),
                                         ("pipe_d_fashion", "pipe_d"), ("pipe_d_nmnist", "pipe_d"), ("it_dynamics", "it_dynamics"), ("cornet_variants", "cornet_variants"),
                                         ("brain_alignment_published", "brain_alignment"), ("brain_alignment_small", "brain_alignment"), ("brain_alignment_spiking", "brain_alignment"), ("brain_alignment_torchvision", "brain_alignment"),
                                         ("g2g_rewiring", "g2g_rewiring"), ("functional_ensembles", "functional_ensembles")])  # fmt: skip
def test_recorded_tables_hold_what_the_sweeps_named_on_their_page_ask_for(name, table):
    "A page names its sweep, and what the table says of itself are values of that sweep."
    page = read_page(Sweep.from_yaml(ROOT / "sweeps" / f"{name}.yaml").page)
    assert f"neurobridge sweep sweeps/{name}.yaml\n" in page["cells"][-1]["source"]
    if table is None:
        return
    recorded, asked = (
        pd.read_csv(ROOT / "results" / f"{table}.csv"),
        pd.DataFrame(full_settings(name)),
    )
    if "target" in recorded:
        recorded = recorded[recorded.target == asked.target[0]]
    if "size" in recorded:
        recorded = recorded[recorded["size"].isin(asked["size"])]
    if name == "transfer_methods_tuning":  # hybrid was not tuned for long
        assert set(
            recorded[["finetune_lr", "finetune_epochs"]].itertuples(index=False, name=None)
        ) == set(asked[["finetune_lr", "finetune_epochs"]].itertuples(index=False, name=None))
    same = [
        column
        for column in ("dataset", "target", "blocks", "width", "side", "brain", "seed")
        if column in recorded and column in asked
    ]
    assert len(same) >= 1 and all(set(recorded[column]) == set(asked[column]) for column in same)


def test_recorded_wirings_are_those_of_three_sweeps():
    "Every arm of every family with the seeds that some sweep asks for, and no others; and the gentler edits."
    recorded, cells = (
        pd.read_csv(ROOT / "results" / "g2g_sparsity.csv", keep_default_na=False),
        read_page(find_page("g2g_sparsity"))["cells"],
    )
    asked = set()
    for one in (
        full
        for name in ("all", "more", "rewired")
        for full in full_settings(f"g2g_sparsity_{name}")
    ):
        meant = recorded[recorded.family.str.lower().isin(one["arms"].split(","))]
        meant = meant if one["rules"] == "all" else meant[meant.rule.isin(one["rules"].split(","))]
        asked |= (
            {(arm, one["seed"]) for arm in meant.arm}
            if len(meant)
            else {(one["arms"], one["seed"])}
        )
        assert (
            (recorded.width == one["width"]).all()
            and (recorded.epochs == one["epochs"]).all()
            and (recorded.lr == one["lr"]).all()
        )
    assert (
        set(zip(recorded.arm, recorded.seed, strict=True)) == asked
        and len(recorded) == len(asked)
        and recorded.arm.nunique() == 46
    )
    gentle = pd.read_csv(ROOT / "results" / "g2g_sparsity_gentle.csv", keep_default_na=False)
    settings = full_settings("rewiring_gently")
    assert sorted(zip(gentle.rule, gentle.fraction, gentle.seed, strict=True)) == sorted(
        (one["rules"], one["fraction"], one["seed"]) for one in settings
    )
    assert all(
        f"neurobridge sweep sweeps/{name}.yaml\n" in cells[-1]["source"]
        for name in (
            "g2g_sparsity_all",
            "g2g_sparsity_more",
            "g2g_sparsity_rewired",
            "rewiring_gently",
        )
    )


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(
    not os.environ.get("NEUROBRIDGE_DATA"), reason="NEUROBRIDGE_DATA is not set: see data/README.md"
)
@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_recorded_batches_run_at_their_smallest_size(file, tmp_path):
    "The words of each file's first setting (data, arms, brains) with the numbers of its page's smoke run, by the stock papermill command."
    found = Sweep.from_yaml(file)
    form = {"pipe_d_nmnist": ("side", "padding")}.get(
        file.stem, ()
    )  # recordings have a size, which the pictures must have too
    given = {
        name: value
        for name, value in found.settings[0].items()
        if isinstance(value, str) or name in form
    } | {"device": "cpu"}
    takes = page_parameters(read_page(found.page))
    given = {name: value for name, value in given.items() if name in takes}
    for limit in ("limit", "test_limit"):
        if (
            limit in takes and not takes[limit].default
        ):  # all digits are few, all of another set are not
            given[limit] = 600
    words = [word for name, value in given.items() for word in ("-p", name, str(value))]
    ran = subprocess.run(
        [sys.executable, "-m", "papermill", str(found.page), str(tmp_path / "out.ipynb"), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert all(
        cell.execution_count
        for cell in read(tmp_path / "out.ipynb", as_version=4).cells
        if cell.cell_type == "code" and cell.source.strip()
    )


def commands(name):
    "The commands under “Reproduce” on an experiment's page: what each gives, and the values that leads to."
    page, found = read_page(find_page(name)), []
    for loop in re.findall(
        r"for seed in ([\d ]+); do\n(.*?)\ndone", page["cells"][-1]["source"], re.DOTALL
    ):
        for seed in loop[0].split():
            for line in loop[1].replace("\\\n", " ").splitlines():
                parts = shlex.split(line.replace("$seed", seed))
                assert parts[:3] == ["neurobridge", "run", name]
                found.append({parts[i + 1]: parts[i + 2] for i in range(3, len(parts), 3)})
    takes = page_parameters(page)
    return [(given, resolve(takes, given)) for given in found]


def full_settings(name):
    "The complete values of every run of a sweep file of the project."
    found = Sweep.from_yaml(ROOT / "sweeps" / f"{name}.yaml")
    takes = page_parameters(read_page(found.page))
    return [resolve(takes, one) for one in found.settings]
