"The project's own rules: what imports what, what a page looks like, what an installation holds."

import ast
import json
import os
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pandas as pd
import pytest

import neurobridge
from neurobridge.core.paths import project_root

ROOT = project_root()
PACKAGE = ROOT / "neurobridge"
MODULES = {
    file.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): file
    for file in PACKAGE.rglob("*.py")
    if file.name not in ("__init__.py", "_modidx.py")
}
PAGES = {page.relative_to(ROOT / "nbs").as_posix(): json.loads(page.read_text(encoding="utf-8")) for page in sorted((ROOT / "nbs").rglob("*.ipynb"))
         if not any(part.startswith((".", "_")) for part in page.relative_to(ROOT / "nbs").parts)}  # fmt: skip
EXPERIMENTS = [name for name in PAGES if name.startswith("experiments/")]
ROOMS = [
    {"core"},
    {"data"},
    {"snn"},
    {"cornet", "g2g"},
    {"transfer"},
    {"brain"},
    {"bridge"},
    {"lab"},
    {"__main__"},
]  # imports go downwards only


def source(cell):
    return "".join(cell["source"])


def code(page):
    return [cell for cell in page["cells"] if cell["cell_type"] == "code"]


# What imports what


def imported(file, module):
    "Names of all modules a file imports, inside functions too."
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])])


def level(room):
    return next(i for i, rooms in enumerate(ROOMS) if room in rooms)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module):
    room = module.split(".")[1]
    for name in imported(MODULES[module], module):
        if name.startswith("neurobridge.") and (other := name.split(".")[1]) not in (
            "__version__",
            room,
        ):
            assert level(other) < level(room), (
                f"{module} imports {name}: {other} is not below {room}"
            )


def test_only_the_lab_knows_notebook_tools():
    tools = {
        "nbdev",
        "fastcore",
        "execnb",
        "papermill",
        "nbclient",
        "nbconvert",
        "nbformat",
        "jupyter_client",
        "IPython",
    }
    for module, file in MODULES.items():
        found = {name.split(".")[0] for name in imported(file, module)} & tools
        assert not found or module.startswith("neurobridge.lab."), f"{module} imports {found}"


def test_the_package_works_without_nbdev():
    code = f"import sys, importlib; sys.modules.update(dict.fromkeys(['nbdev', 'fastcore', 'execnb'])); [importlib.import_module(m) for m in {list(MODULES)}]"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)


@pytest.mark.long
def test_an_installed_wheel_is_whole(tmp_path):
    "Build a wheel, unpack it elsewhere, import every module there, and read the data that travels with it."
    make = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    built = subprocess.run(make, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run(
        [sys.executable, "-m", "zipfile", "-e", str(wheel), str(tmp_path / "site")], check=True
    )
    code = (f"import importlib, neurobridge\nassert neurobridge.__file__.startswith({str(tmp_path)!r}), neurobridge.__file__\n"
            f"[importlib.import_module(m) for m in {list(MODULES)}]\nfrom neurobridge.data.images import manifest\nassert 'cifar10' in manifest()")  # fmt: skip
    (tmp_path / "elsewhere").mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "elsewhere",
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    entries = (next((tmp_path / "site").glob("*.dist-info")) / "entry_points.txt").read_text()
    assert "neurobridge = neurobridge.__main__:main" in entries and "[papermill.engine]" in entries


# What a page looks like


@pytest.mark.parametrize("name", PAGES)
def test_page(name):
    page = PAGES[name]
    cells, text = page["cells"], [source(cell) for cell in page["cells"]]
    assert re.fullmatch(r"# .+\n\n> .+", text[0].strip()), (
        "the first cell is a title, an empty line, and '> a subtitle'"
    )
    for cell, content in zip(cells[1:], text[1:], strict=True):
        heading = cell["cell_type"] == "markdown" and re.match(r"#{1,6} ", content)
        assert not heading or "\n" not in content.strip(), (
            f"a heading is alone in its cell: {content[:60]!r}"
        )
    assert max((len(source(cell).splitlines()) for cell in code(page)), default=0) <= 60
    words = sum(len(source(cell).split()) for cell in cells if cell["cell_type"] == "markdown")
    lines = sum(len(source(cell).splitlines()) for cell in code(page))
    assert lines <= 60 or words >= lines, f"{words} words explain {lines} lines of code"
    assert "WRITE-ME" not in "".join(text)


@pytest.mark.parametrize("name", PAGES)
def test_outputs(name):
    outputs = [output for cell in code(PAGES[name]) for output in cell["outputs"]]
    assert len(json.dumps(outputs)) <= 200_000 * 4 / 3 + 20_000, (
        "200 kB of outputs a page (base64 is a third longer)"
    )
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr", (
            f"a warning or a progress bar was left in: {''.join(output['text'])[:200]}"
        )
        assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def test_one_page_one_module():
    places = {}
    for name, page in PAGES.items():
        found = re.findall(
            r"^#\|\s*default_exp\s+(\S+)", "\n".join(map(source, code(page))), re.MULTILINE
        )
        stem = re.sub(r"^\d+_", "", Path(name).stem)
        key = (Path(name).parent.as_posix(), stem)
        assert key not in places, f"{name} and {places[key]} would share a page"
        places[key] = name
        if found:
            assert found == [f"{Path(name).parent.as_posix().replace('/', '.')}.{stem}"], name
        exports = [
            source(cell)
            for cell in code(page)
            if re.search(r"^#\|\s*export", source(cell), re.MULTILINE)
        ]
        assert bool(exports) == bool(found), name
        assert not re.search(r"^#\|\s*exporti?[ \t]+\S", "\n".join(exports), re.MULTILINE), (
            f"{name} exports into another module"
        )


@pytest.mark.parametrize(
    "name",
    [name for name in PAGES if "/" in name and not name.startswith(("experiments", "tutorials"))],
)
def test_functions_exported_are_used_on_their_page(name):
    "Public ones; test_house lists the helpers that no page shows yet, and the list can only shrink."
    cells = [source(cell) for cell in code(PAGES[name])]
    exported = [cell for cell in cells if re.search(r"^#\|\s*export\s*$", cell, re.MULTILINE)]
    rest = "\n".join(cell for cell in cells if cell not in exported)
    names = re.findall(r"^def ([A-Za-z]\w*)", "\n".join(exported), re.MULTILINE)
    assert [n for n in names if not re.search(rf"\b{n}\b", rest)] == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment(name):
    tagged = [
        cell for cell in code(PAGES[name]) if "parameters" in cell["metadata"].get("tags", [])
    ]
    assert len(tagged) == 1, "exactly one cell tagged 'parameters'"
    for line in source(tagged[0]).splitlines():
        assert re.fullmatch(r"\w+: [\w\[\] |]+ = .+  # .+", line), (
            f"expected 'name: type = default  # meaning': {line}"
        )
    assert "#| export" not in "".join(map(source, code(PAGES[name])))
    assert re.search(r"\brecord\(", "".join(map(source, code(PAGES[name]))))


def test_settings_that_keep_the_tags():
    "nbdev_clean would strip papermill's tag without this setting, and papermill would run with defaults."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini")
    assert config["DEFAULT"]["allowed_cell_metadata_keys"].split() == ["tags"]
    assert config["DEFAULT"]["tst_flags"].split() == ["notest", "slow", "gpu"]


# What a stranger relies on


def test_the_readme_names_the_commands_and_they_exist():
    readme, targets = (
        (ROOT / "README.md").read_text(encoding="utf-8"),
        (ROOT / "Makefile").read_text(),
    )
    for command in ("run", "test", "docs", "lab"):
        assert f"make {command}" in readme and re.search(rf"^{command}:", targets, re.MULTILINE)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_each_page_is_executed_by_one_target():
    "`make pages` and `make pages-all` share the pages out, and CI runs both."
    from nbdev.doclinks import nbglob

    asked = {}
    for target in ("pages", "pages-all"):
        said = subprocess.run(
            ["make", "-n", "-o", ".venv/.ready", target], cwd=ROOT, capture_output=True, text=True
        ).stdout
        options = dict(re.findall(r"--(file_re|skip_file_re|skip_folder_re) '([^']+)'", said))
        asked[target] = [Path(page).stem for page in nbglob(ROOT / "nbs", **options)]
    quick, slow = asked["pages"], asked["pages-all"]
    every = [Path(name).stem for name in PAGES if name not in EXPERIMENTS]
    assert sorted(quick + slow) == sorted(every)
    rules = (ROOT / "Makefile").read_text()
    listed = re.search(r"^SLOW_PAGES := (.+)", rules, re.MULTILINE)[1].split("|")
    assert sorted(slow) == sorted(listed)  # each name is that of one page
    assert re.search(r"^test:.* pages\b", rules, re.MULTILINE)
    assert re.search(r"^test-all:.* pages-all\b", rules, re.MULTILINE)
    assert {"make test", "exec make test-all"} <= set(
        (ROOT / ".ci" / "run").read_text().splitlines()
    )


def test_no_path_of_one_machine():
    "Pages, package and tests name no folder that only one machine has."
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        if not name.endswith((".npz", ".png", ".gz")) and name not in (
            ".ci/run",
            "tests/test_project.py",
        ):
            found = re.findall(
                r"(?:\.\./shared|/(?:work|root|home)/\w[\w/.-]*)",
                (ROOT / name).read_text(encoding="utf-8"),
            )
            assert not found, f"{name} names {found[0]}"


def test_public_names():
    "The names that the documentation promises to keep."
    promised = {
        "core": "data_root runs_root project_root fit evaluate seed_everything save_checkpoint load_checkpoint History",
        "data": "load_images ImageSet Events read_events load_v4", "snn": "rectangle triangle atan sigmoid gaussian lif LIF spikify spiking_resnet18 spiking_resnet34",
        "cornet": "cornet_s", "g2g": "wire G2GNet", "transfer": "pipe_s pipe_d convert sharpened_relu SharpenedReLU sharpening pretrain copy_weights finetune",
        "brain": "neural_predictivity brain_score", "bridge": "Blueprint Wiring Neuron Time compose transfer_weights", "lab": "record run_dir provenance run_notebook load_runs Sweep run_sweep",
    }  # fmt: skip
    for room, names in promised.items():
        found = dir(getattr(neurobridge, room))
        assert [name for name in names.split() if name not in found] == []


def test_recorded_batch():
    "At least three seeds of every arm, as many images as promised, nothing impossible."
    table = pd.read_csv(ROOT / "results" / "pipe_s.csv")
    assert (
        set(table.dataset) == {"fashion_mnist"}
        and table.train_images.min() >= 10_000
        and set(table["T"]) == {4}
    )
    assert (table.groupby("arm").seed.nunique() >= 3).all() and not table.duplicated(
        ["arm", "seed"]
    ).any()
    assert (
        table.parameters.nunique() == 1
        and table.commit.notna().all()
        and table.device.notna().all()
    )
    assert table[["accuracy", "valid_accuracy", "firing_rate"]].stack().between(0, 1).all()
    assert (table.snn_core_seconds > 0).all() and (
        (table.source_epochs > 0) == (table.source_core_seconds > 0)
    ).all()


@pytest.mark.long
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_stock_papermill_runs_an_experiment_from_anywhere(name, tmp_path):
    "The plain command of the documentation, none of our own engine, from a folder that is not the project's."
    import nbformat

    out = tmp_path / "out.ipynb"
    given = {"pipe_s": ["-p", "epochs", "1"]}.get(Path(name).stem, [])
    one_thread = os.environ | {
        "OMP_NUM_THREADS": "1"
    }  # as in `make pages`: two threads wait for each other where anything else runs
    ran = subprocess.run(
        [sys.executable, "-m", "papermill", str(ROOT / "nbs" / name), str(out), *given],
        cwd=tmp_path,
        env=one_thread,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    executed = nbformat.read(out, as_version=4)
    assert any(
        "injected-parameters" in cell.metadata.get("tags", []) for cell in executed.cells
    ) == bool(given)
    assert all(
        cell.execution_count
        for cell in executed.cells
        if cell.cell_type == "code" and cell.source.strip()
    )
    assert (
        sum(
            "image/png" in output.get("data", {})
            for cell in executed.cells
            if cell.cell_type == "code"
            for output in cell.outputs
        )
        >= 2
    )
    assert [file.name for file in tmp_path.iterdir()] == ["out.ipynb"], (
        "a page without a run folder leaves nothing behind"
    )
