"""The first hour: the name for pip, messages about what is missing, pages found by name, a page of one's own."""

import importlib.metadata
import io
import json
import re
import subprocess
import sys
from configparser import ConfigParser

import front_door
import nbformat
import pandas as pd
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from typer.main import get_command
from typer.testing import CliRunner

import neurobridge
from neurobridge.core import project_file, project_root
from neurobridge.core.checks import needs
from neurobridge.core.files import read_json
from neurobridge.core.paths import shipped_root
from neurobridge.lab import RunRefused, Sweep, find_run, run_notebook
from neurobridge.lab.cli import app
from neurobridge.lab.report.recorded import find_batch
from neurobridge.lab.run.page import experiments, find_page, found_pages, page_key, page_name

ROOT = project_root()
PAGES = [
    page
    for page in sorted((ROOT / "nbs").rglob("*.ipynb"))
    if not any(part.startswith((".", "_")) for part in page.relative_to(ROOT / "nbs").parts)
]
NEEDS_THE_REPOSITORY = {"gallery", "site"}  # and their first cell of code says so


def settings():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def shell(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def here(tmp_path, monkeypatch):
    "A working directory outside of the checkout, with a folder for runs."
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("NEUROBRIDGE_RUN", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def toy(file, cells=("from neurobridge.lab import record\nrecord({'y': 2 * n})",), tagged=True):
    tag = {"tags": ["parameters"]} if tagged else {}
    text = new_markdown_cell("# What is twice?\n\n> A page of one line\n\nMore text.")
    first = new_code_cell("n: int = 1  # a number (apples)", metadata=tag)
    nbformat.write(new_notebook(cells=[text, first, *map(new_code_cell, cells)]), file)
    return file


# The name for pip


def test_one_place_has_the_name_and_the_version():
    own = settings()
    assert own["lib_name"] != own["lib_path"] == "neurobridge"
    project = (ROOT / "pyproject.toml").read_text()
    assert re.search(rf'(?m)^name\s*=\s*"{own["lib_name"]}"$', project)
    assert neurobridge.__version__ == own["version"]
    assert f"## {own['version']} (" in (ROOT / "CHANGELOG.md").read_text()


def test_the_citation_says_what_the_settings_say():
    own = settings()
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == own["version"] and cited["title"] == own["title"]
    assert cited["abstract"] == own["description"]
    assert cited["repository-code"] == own["git_url"] and cited["license"] == "Apache-2.0"
    assert cited["authors"] == [{"name": own["author"], "email": own["author_email"]}]
    assert ", ".join(cited["keywords"]) == own["keywords"]
    day = re.search(rf"(?m)^## {own['version']} \(([\d-]+)\)$", (ROOT / "CHANGELOG.md").read_text())
    assert str(cited["date-released"]) == day[1]


def test_nothing_advises_to_install_another_packages_name():
    "The public index has a package called neurobridge that is not this one."
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    commands = "|".join(get_command(app).commands)  # `neurobridge run` in the next line is one
    wrong = re.compile(
        r"pip install[^\n]{0,60}[\s'\"=]neurobridge(?![-\w/.])"
        rf"(?!(?<=\nneurobridge) (?:{commands})\b)"
    )
    for name in listed.stdout.split():
        if name.endswith((".py", ".ipynb", ".md", ".html", ".ini", ".cff", ".toml", ".yml")):
            found = wrong.search((ROOT / name).read_text(encoding="utf-8"))
            assert not found, f"{name}: {found[0]}"
    assert wrong.search("run: pip " + "install -U 'neurobridge[cluster]'")
    for text in ("torch\nneurobridge", "-U\nneurobridge to get it", "neurobridge run"):
        assert wrong.search("pip " + f"install {text}"), text
    assert not wrong.search("pip install git+https://x.org/a/neurobridge.git neurobridge-lab")
    assert not wrong.search("pip install git+https://x.org/neurobridge\nneurobridge run toy")


def test_what_is_missing_is_named_as_pip_takes_it():
    assert needs("a", "numpy", "no-such-one", "nor[this]") == (
        "a needs no-such-one and nor[this]; run: pip install no-such-one 'nor[this]'"
    )
    assert needs("a", "numpy", "pytest").endswith("run: pip install numpy pytest")


@pytest.mark.parametrize(
    "module, call, packages",
    [
        ("pyarrow", ["table", "--to", "parquet"], "pyarrow"),
        ("distributed", ["sweep", "toy.yaml", "--scheduler", "tls://x:1"], "distributed"),
        ("dask_jobqueue", ["sweep", "toy.yaml", "--slurm", "queue=x"], "dask-jobqueue"),
        ("mlflow", ["mlflow"], "mlflow-skinny"),
    ],
)
def test_commands_name_the_missing_packages(here, monkeypatch, module, call, packages):
    toy(here / "toy.ipynb")
    (here / "toy.yaml").write_text("notebook: toy.ipynb\ngrid: {n: [1, 2]}")
    assert shell("run", "toy").exit_code == 0
    monkeypatch.setitem(sys.modules, module, None)
    ended = shell(*call)
    assert ended.exit_code == 2 and re.search(rf"run: pip install .*{packages}", ended.stderr), (
        ended.stderr
    )


def distribution(folder, entry):
    place = folder / "neurobridge-0.1.9.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: neurobridge\nVersion: 0.1.9\n")
    (place / "entry_points.txt").write_text(f"[console_scripts]\nneurobridge = {entry}\n")
    return folder


def test_the_other_package_of_the_name_is_noticed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(distribution(tmp_path / "theirs", "neurobridge.main:run"))
    ended = shell("table")
    assert ended.exit_code == 2 and "another package that is called neurobridge (0.1.9)" in (
        ended.stderr
    )
    assert "pip uninstall neurobridge" in ended.stderr


def test_this_package_under_its_earlier_name_is_no_other_one(here, monkeypatch):
    own = distribution(here / "own", "neurobridge.lab.cli:app")
    monkeypatch.setattr(
        importlib.metadata,
        "distribution",
        lambda name: importlib.metadata.PathDistribution(own / "neurobridge-0.1.9.dist-info"),
    )
    assert shell("table").exit_code == 0


@pytest.mark.long
def test_python_m(tmp_path):
    for words, code, said in ((["--version"], 0, neurobridge.__version__), (["no"], 2, "No such")):
        command = [sys.executable, "-m", "neurobridge", *words]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert ended.returncode == code and said in ended.stdout + ended.stderr


# Pages found by name


def test_a_name_is_an_experiment_or_a_notebook_here(here):
    toy(here / "toy.ipynb")
    (here / "deep").mkdir()
    toy(here / "deep" / "toy.ipynb")
    assert find_page("toy") == here / "toy.ipynb" == find_page("toy.ipynb")
    assert find_page("toy", beside=here / "deep") == here / "deep" / "toy.ipynb"
    assert find_page("deep/toy") == here / "deep" / "toy.ipynb" == find_page(here / "deep" / "toy")
    toy(here / "pipe_s.ipynb")
    assert find_page("pipe_s") == ROOT / "nbs" / "experiments" / "pipe_s.ipynb"
    assert find_page("./pipe_s.ipynb") == here / "pipe_s.ipynb"
    for name in ("toys", ".", "..", "/", "deep", "deep/toys"):
        with pytest.raises(RunRefused, match="there is no page") as refused:
            find_page(name)
        assert str(ROOT / "nbs" / "experiments") in str(refused.value)
        assert ("did you mean toy?" in str(refused.value)) == (name == "toys")


def test_a_slip_in_a_name_is_answered_with_the_name_that_was_meant(here):
    toy(here / "übung 3.ipynb")
    (here / "open").mkdir()
    for given, meant in {
        "pipe_x": "pipe_s",
        "ubung 3": "übung 3",
        "übung3.ipynb": "übung 3",
    }.items():
        ended = shell("run", given)
        assert ended.exit_code == 2 and f"did you mean {meant}?" in ended.stderr
    (here / "open").chmod(0o777)
    toy(here / "open" / "planted.ipynb")
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.chdir(here / "open")
        ended = shell("run", "plantet")
    assert ended.exit_code == 2 and "did you mean" not in ended.stderr
    for words in (("sweep", "mine.yaml"), ("report", "mine.yaml")):
        ended = shell(*words)
        assert ended.exit_code == 2 and "[Errno" not in ended.stderr
        assert "mine.yaml cannot be read (No such file or directory)" in ended.stderr


def test_a_page_that_others_could_have_put_here_is_run_by_its_path_only(here, monkeypatch):
    (here / "open").mkdir()
    (here / "open").chmod(0o777)
    toy(here / "open" / "toy.ipynb")
    monkeypatch.chdir(here / "open")
    with pytest.raises(RunRefused, match=r"not run by its name alone.*others can write.*\./toy"):
        find_page("toy")
    assert find_page("./toy.ipynb") == find_page("toy.ipynb") == here / "open" / "toy.ipynb"
    assert ("toy.ipynb", "What is twice?", "A page of one line") in found_pages()
    assert find_page("pipe_s")  # an experiment is nobody else's


def test_the_list_has_titles_and_reasons(here):
    toy(here / "toy.ipynb")
    toy(here / "pipe_s.ipynb")
    (here / "half.ipynb").write_text('{"cells": [')
    nbformat.write(new_notebook(cells=[]), here / "bare.ipynb")
    found = {name: rest for name, *rest in found_pages()}
    assert found["toy"] == ["What is twice?", "A page of one line"] == found["pipe_s.ipynb"]
    assert found["bare"] == ["", ""] and "not a notebook" in found["half"][1]
    assert set(experiments()) < set(found) and found["pipe_s"][0].startswith("Does pretraining")
    shown = shell("list")
    assert shown.exit_code == 0 and str(ROOT / "nbs" / "experiments") in shown.stdout
    lines = [re.split(r"\s{2,}", line.strip()) for line in shown.stdout.splitlines()]
    assert ["toy", "What is twice?", "A page of one line"] in lines


def test_help_shows_the_parameters_of_a_page(here):
    toy(here / "toy.ipynb")
    for words in (["toy", "--help"], ["--help", "toy"], ["toy", "-p", "n", "3", "--help"]):
        shown = shell("run", *words)
        lines = [re.split(r"\s{2,}", line.strip()) for line in shown.stdout.splitlines()]
        assert shown.exit_code == 0 and ["n", "int", "1", "a number (apples)"] in lines
        assert "What is twice?" in shown.stdout and "--timeout" in shown.stdout
    assert "meaning" not in shell("run", "--help").stdout
    assert shell("run", "toys", "--help").exit_code == 2
    toy(here / "none.ipynb", tagged=False)
    assert "no parameters" in shell("run", "none", "--help").stdout
    assert not (here / "runs").exists()


def test_a_page_without_parameters_runs_as_it_is(here):
    toy(here / "none.ipynb", tagged=False)
    run = run_notebook("none")
    assert run.metrics == {"y": 2} and run.params == {}
    with pytest.raises(RunRefused, match="no parameter `n`; It takes: none, as no cell is tagged"):
        run_notebook("none", {"n": 2})


def test_runs_that_go_to_another_place_than_here_are_announced(here, monkeypatch):
    toy(here / "toy.ipynb")
    (here / "toy.yaml").write_text("notebook: toy.ipynb\ngrid: {n: [1, 2]}")
    assert "kept in" not in shell("sweep", "toy.yaml", "--dry-run").stderr
    monkeypatch.delenv("NEUROBRIDGE_RUNS")
    said = shell("sweep", "toy.yaml", "--dry-run").stderr
    assert f"kept in {ROOT}, because the package is installed from that checkout" in said
    monkeypatch.chdir(ROOT / "nbs")
    assert "kept in" not in shell("sweep", here / "toy.yaml", "--dry-run").stderr


# What a wheel brings


def as_installed(folder, monkeypatch):
    "The package as it would be without a checkout: its folder elsewhere, with files of the project."
    package = folder / "site" / "neurobridge"
    (package / "shipped" / "nbs" / "experiments").mkdir(parents=True)
    monkeypatch.setattr(neurobridge, "__file__", str(package / "__init__.py"))
    return package / "shipped"


def test_files_of_the_project_come_from_the_checkout_or_the_package(here, monkeypatch):
    assert project_file("results/pipe_s.csv") == ROOT / "results" / "pipe_s.csv"
    shipped = as_installed(here, monkeypatch)
    (here / "results").mkdir()
    (here / "results" / "pipe_s.csv").write_text("my own")
    assert project_root() == here and shipped_root() == shipped
    assert project_file("results/pipe_s.csv") == shipped / "results" / "pipe_s.csv"
    for name in ("/etc/passwd", "../x", "results/../../x"):
        with pytest.raises(ValueError, match="project_file: name is .* inside of the project"):
            project_file(name)


def test_the_name_of_an_installed_page_is_its_own(here, monkeypatch):
    shipped = as_installed(here, monkeypatch)
    page = toy(shipped / "nbs" / "experiments" / "toy.ipynb")
    own = toy(here / "toy.ipynb")
    assert experiments() == ["toy"] and find_page("toy") == page
    assert page_key(page) == "nbs/experiments/toy.ipynb" and page_name(page) == "toy"
    assert re.fullmatch("toy-[0-9a-f]{6}", page_name(own))
    assert [name for name, *_ in found_pages()] == ["toy.ipynb", "toy"]


def test_an_installed_page_has_the_data_of_here_and_no_commit(here, monkeypatch):
    shipped = as_installed(here, monkeypatch)
    page = toy(shipped / "nbs" / "experiments" / "toy.ipynb")
    monkeypatch.delenv("NEUROBRIDGE_DATA", raising=False)
    subprocess.run(["git", "init", "-q", str(here)], check=True)
    from neurobridge.lab.run.execute import _kernel_of
    from neurobridge.lab.run.run_record import environment

    places = _kernel_of(page, None).env
    assert places == {
        "NEUROBRIDGE_DATA": str(here / "data"),
        "NEUROBRIDGE_RUNS": str(here / "runs"),
    }
    assert _kernel_of(here / "toy.ipynb", None) is None
    assert environment(page)["commit"] is None
    assert environment(page)["neurobridge"] == neurobridge.__version__


def read_by_pages():
    "Files of the project that pages read."
    for page in PAGES:
        code = "\n".join(
            "".join(cell["source"])
            for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]
            if cell["cell_type"] == "code"
        )
        for name in re.findall(r'project_file\(f?"([^"]+)"', code):
            if ".." not in name:  # which is refused
                yield page, name


def test_what_pages_read_is_there_and_travels():
    shipped = {"nbs/experiments", "results", "sweeps", "benchmarks", "tests/golden"}
    listed = (ROOT / "setup.py").read_text()
    assert all(f'"{folder}":' in listed for folder in shipped)
    found = list(read_by_pages())
    assert len({page for page, _ in found}) > 15
    lines = "\n".join(file.read_text() for file in (ROOT / "sweeps").glob("*.yaml"))
    to_come = {
        "three_ideas.csv",
        "gpu.csv",
        *re.findall(r"^results: \.\./results/(.+)$", lines, re.MULTILINE),
    }
    for page, name in found:
        folder, _, file = name.rpartition("/")
        assert name in shipped or folder in shipped, f"{page.name} reads {name}"
        assert (
            "{" in file
            or file in to_come
            or (ROOT / name).exists()
            or (file == "pipe_s" and page.stem == "01_paths")
        ), f"{page.name} reads {name}, which is absent"


def test_pages_read_no_file_of_the_checkout_in_another_way():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if "#| export" not in text and page.stem not in NEEDS_THE_REPOSITORY:
            assert not re.search(r"project_root\(\) / ", text), page


# A page of one's own


def test_new_writes_a_page_that_can_be_run(here):
    ended = shell("new", "mine")
    assert ended.exit_code == 0 and str(here / "mine.yaml") in ended.stdout.splitlines()
    page = nbformat.read(here / "mine.ipynb", as_version=4)
    nbformat.validate(page)
    assert len({cell.id for cell in page.cells}) == len(page.cells)
    assert [cell.metadata.tags for cell in page.cells if "tags" in cell.metadata] == [
        ["parameters"]
    ]
    assert find_batch("mine") == find_batch("mine.yaml") == find_batch("mine.ipynb")
    assert [one.params for one in Sweep.from_yaml("mine.yaml").plan()] == [
        {"T": T, "seed": seed} for T in (1, 4) for seed in (0, 1)
    ]
    (here / "ideas").mkdir()
    assert shell("new", "ideas/мои-2.ipynb").exit_code == 0
    assert (here / "ideas" / "мои-2.yaml").exists()


def test_new_replaces_nothing(here):
    for taken in ("page.ipynb", "sweep.yaml"):
        (here / taken).write_text("mine")
    (here / "link.ipynb").symlink_to(here / "nowhere")
    (here / "other.yaml").mkdir()
    for name in ("page", "sweep", "link", "other"):
        ended = shell("new", name)
        assert ended.exit_code == 2 and "exists, and is not replaced" in ended.stderr
    assert (here / "page.ipynb").read_text() == "mine" == (here / "sweep.yaml").read_text()
    assert sorted(path.name for path in here.iterdir()) == [
        "link.ipynb",
        "other.yaml",
        "page.ipynb",
        "sweep.yaml",
    ]


@pytest.mark.parametrize(
    "name, said",
    [
        ("", "expected the path"),
        (".", "a word"),
        ("..", "a word"),
        ("my page", "a word"),
        ("-p", "No such option"),
        ("a.b", "a word"),
        ("#x", "a word"),
        ("pipe_s", "is an experiment"),
        ("none/mine", "No such file or directory"),
        ("s3://bucket/mine", "an address"),
        ("a\nb", "a word"),
    ],
)
def test_names_that_new_refuses(here, name, said):
    ended = shell("new", name)
    assert ended.exit_code == 2 and said in ended.stderr and list(here.iterdir()) == []


def test_a_disk_that_fills_up_leaves_no_half_page(here, monkeypatch):
    limit = [sys.executable, "-c", (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from neurobridge.lab.run.new_page import write_new_page; write_new_page('mine')"
    )]  # fmt: skip
    ended = subprocess.run(limit, cwd=here, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "mine.ipynb cannot be written" in ended.stderr
    assert list(here.iterdir()) == []


# One name for one thing


@pytest.fixture
def batch(here):
    "A page beside its sweep file, with two runs of the file and one other."
    toy(here / "toy.ipynb")
    (here / "toy.yaml").write_text("notebook: toy.ipynb\ngrid: {n: [1, 2]}")
    for n in (1, 2, 5):
        run_notebook("toy", {"n": n})
    return here


@pytest.mark.long
def test_sweep_file_page_and_name_are_taken_alike(batch):
    names = ("toy", "toy.ipynb", "toy.yaml", str(batch / "toy.yaml"), str(batch / "toy.ipynb"))
    for name in names:
        out = batch / "out"
        written = shell("results", name, "--out", out)
        assert written.exit_code == 0, written.stderr
        assert pd.read_csv(out / "toy.csv")["y"].tolist() == [2, 4]
        shown = shell("table", name, "--to", "csv")
        assert shown.exit_code == 0
        runs = {5, 1, 2} if not name.endswith(".yaml") else {1, 2}
        assert {int(line.split(",")[0]) for line in _columns(shown.stdout, "n")} == runs
        reported = shell("report", name, "--out", batch / "report.html")
        text = (batch / "report.html").read_text()
        assert reported.exit_code == 0 and text.count("/notebook.ipynb") == 2
        last = find_run(name)
        assert last.params["n"] == (2 if name.endswith(".yaml") else 5)
        assert shell("sweep", name, "--dry-run").exit_code == 0
    assert shell("compare", "toy", "toy.yaml").exit_code == 0
    assert find_run(f"{find_run('toy').id}/").params == {"n": 5}


def _columns(text, *names):
    frame = pd.read_csv(io.StringIO(text))
    return [",".join(str(row[name]) for name in names) for _, row in frame.iterrows()]


@pytest.mark.long
def test_a_page_without_a_sweep_file_is_reported_by_its_runs(batch):
    (batch / "toy.yaml").unlink()
    reported = shell("report", "toy", "--out", batch / "report.html")
    text = (batch / "report.html").read_text()
    assert reported.exit_code == 0 and text.count("/notebook.ipynb") == 3
    ended = shell("sweep", "toy")
    assert ended.exit_code == 2 and "0 sweep files" in ended.stderr and "new" in ended.stderr
    for command in ("report", "results", "table"):
        ended = shell(command, "no_such_thing")
        assert ended.exit_code == 2 and "no_such_thing" in ended.stderr, command
    with pytest.raises(RunRefused, match="or an experiment with a finished run"):
        find_run("no_such_thing")


# A wheel, a fresh environment, an empty folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("build", reason="wheels are built with build: pip install build")
    return front_door.built_wheel(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    return front_door.installed(tmp_path_factory.mktemp("fresh") / "venv", wheel)


def content(python):
    (package,) = python.parents[1].glob("lib/python*/site-packages/neurobridge")
    files = [path for path in package.rglob("*") if "__pycache__" not in path.parts]
    return {path.relative_to(package).as_posix(): path for path in files if path.is_file()}


@pytest.mark.long
def test_the_wheel_has_what_it_needs_and_nothing_else(wheel, python):
    assert wheel.name.startswith(f"neurobridge_lab-{settings()['version']}-")
    found = content(python)
    for _, name in read_by_pages():
        known = (ROOT / name).is_file() and "{" not in name
        assert not known or found[f"shipped/{name}"].read_bytes() == (ROOT / name).read_bytes()
    shipped = {name.rpartition("/")[2] for name in found if "/experiments/" in name}
    assert shipped == {f"{name}.ipynb" for name in experiments()}
    assert not [name for name in found if name.endswith(".py") and "shipped" in name]
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True
    ).stdout
    roots = {line.split("/")[0] for line in listed.splitlines()[1:]}
    assert roots == {"neurobridge", f"neurobridge_lab-{settings()['version']}.dist-info"}
    assert wheel.stat().st_size < 4e6
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *wheel.parent.iterdir()],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0 and checked.stdout.count("PASSED") == 2, checked.stdout


@pytest.mark.long
def test_from_an_empty_folder_to_a_report(python, tmp_path):
    before = {name: path.read_bytes() for name, path in content(python).items()}
    said = {}
    for command, ended, seconds in front_door.transcript(python, tmp_path):
        assert ended.returncode == 0, (command, ended.stdout, ended.stderr)
        print(" ".join(command), f"{seconds:.0f} s")
        said[" ".join(command[1:4])] = said[" ".join(command[1:3])] = ended.stdout
    assert {name: path.read_bytes() for name, path in content(python).items()} == before
    assert all(name in said["list"] for name in experiments()) and "pretraining" in said["list"]
    assert "finetune_epochs" in said["run pipe_s"] or "pipe-S" in said["run pipe_s"]
    (run,) = (tmp_path / "runs" / "pipe_s").iterdir()
    record = read_json(run / "run.json")
    assert record["notebook"] == "nbs/experiments/pipe_s.ipynb"
    assert record["environment"]["commit"] is None
    assert record["environment"]["neurobridge"] == settings()["version"]
    own = [read_json(file) for file in (tmp_path / "runs" / "mine").glob("*/run.json")]
    assert len(own) == 4 and {one["status"] for one in own} == {"done"}
    assert all(one["metrics"]["accuracy"] > 0.5 for one in own)
    best = sorted((one["metrics"]["accuracy"] for one in own), reverse=True)[:3]
    head, _, *rows = [line.split() for line in said["table mine.yaml --best"].splitlines()]
    shown = [float(row[head.index("accuracy")]) for row in rows[:3]]
    assert shown == pytest.approx(best, abs=1e-3)
    assert sum(one["core_seconds"] for one in own) < 60  # of a busy machine, too
    assert sorted(pd.read_csv(tmp_path / "results" / "mine.csv")["T"]) == [1, 1, 4, 4]
    assert "<img" in (tmp_path / "runs" / "mine" / "mine.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine.ipynb",
        "mine.yaml",
        "results",
        "runs",
    ]


def of_the_repository(page):
    "Whether a page's code asks for files of the project, or for the project itself."
    text = page.read_text(encoding="utf-8")
    return re.search(r"project_file|project_root|experiments\(\)|find_page|docsite", text)


def run_page(python, page, folder):
    "Run a downloaded page, in a folder where there is nothing else."
    (folder / page.name).write_bytes(page.read_bytes())
    return subprocess.run(
        [str(python.with_name("neurobridge")), "run", page.name, "--timeout", "280"],
        cwd=folder,
        env=front_door.surroundings(python),
        capture_output=True,
        text=True,
        timeout=300,
    )


READING = [
    page
    for page in PAGES
    if of_the_repository(page) and (page.parent.name != "experiments" or page.stem == "similarity")
]


@pytest.mark.long
@pytest.mark.parametrize("page", READING, ids=lambda page: page.stem)
def test_a_page_that_reads_files_of_the_project_runs_with_the_wheel_alone(python, tmp_path, page):
    ended = run_page(python, page, tmp_path)
    if page.stem in NEEDS_THE_REPOSITORY:
        assert ended.returncode == 1 and "this page needs the repository" in ended.stderr
    else:
        assert ended.returncode == 0, (ended.stdout + ended.stderr)[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_page_runs_with_the_wheel_alone(python, tmp_path, page):
    ended = run_page(python, page, tmp_path)
    assert ended.returncode == (page.stem in NEEDS_THE_REPOSITORY), ended.stderr[-3000:]
