"""What another user, or somebody else's file, may do to runs, projects, caches and sites: each test does what the attacker did."""

import ctypes
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from test_safe_files import as_user, everybodys, root_only  # noqa: F401  (a fixture)
from typer.testing import CliRunner

import neurobridge
from neurobridge.core import compiled, load_checkpoint, project_root, save_checkpoint
from neurobridge.core.files import UnsafeFile, is_marked, mark_folder, read_json, write_json
from neurobridge.core.paths import cache_folder, foreign, machine_folder
from neurobridge.lab import RunRefused, load_runs, run_notebook, write_results
from neurobridge.lab.cli import app
from neurobridge.lab.report.mlflow_export import describe_run
from neurobridge.lab.run import execute as runs
from neurobridge.lab.run import identity, lock, run_record
from neurobridge.lab.run.page import find_page
from neurobridge.lab.run.rubbish import find_rubbish, remove_rubbish
from neurobridge.lab.sweep.gpus import lease_gpus
from neurobridge.snn.kernels import cpu as fused

ROOT = Path(neurobridge.__file__).resolve().parents[1]
ATTACKER = 65531
FLOAT = fused.for_dtype(fused.LIF_PROGRAM, torch.float32)
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler"
)


@pytest.fixture(autouse=True)
def nothing_hangs():
    "What waits for ever is an error, not a test that never ends."

    def stop(*_):
        pytest.fail("it hangs")  # no OSError, which readers of records expect

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("NEUROBRIDGE_RUN", raising=False)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "thesis.txt").write_text("years of work")
    return tmp_path


def intact(root):
    return {path.name for path in (root / "docs").iterdir()} == {"thesis.txt"} and (
        root / "docs" / "thesis.txt"
    ).read_text() == "years of work"


def shell(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def make_page(path, code="from neurobridge.lab.run.execute import record\nrecord({'y': 1.0})"):
    write(
        new_notebook(
            cells=[
                new_code_cell("n: int = 0\nseed: int = 0", metadata={"tags": ["parameters"]}),
                new_code_cell(code),
            ]
        ),
        path,
    )
    return path


def place_of(page):
    "Where a page's run will be; everybody can compute it."
    return runs._job(page, None, None, False, 1).base


def keep(root, number, status="done", **other):
    folder = root / "runs" / "toy" / f"{number:012x}"
    record = {
        "id": folder.name,
        "experiment": "toy",
        "status": status,
        "started": f"2026-01-0{number + 1}",
        "seconds": 1.0,
        "params": {"n": number, "seed": 0},
        "metrics": {"loss": number / 2},
        "rows": [],
    }
    write_json(folder / "run.json", record | other)
    mark_folder(folder, "run")
    return folder


# X2: projects


def plant(folder):
    (folder / "nbs" / "experiments").mkdir(parents=True)
    (folder / "settings.ini").write_text("lib_path = neurobridge\n")
    make_page(folder / "nbs" / "experiments" / "planted.ipynb")
    return folder


def give(folder, user):
    for path in (folder, *folder.rglob("*")):
        os.lchown(path, user, user)


@root_only
@pytest.mark.parametrize("theirs", ["files", "folder"])
def test_a_project_planted_above_the_working_directory_is_not_run(
    everybodys,  # noqa: F811
    root,
    monkeypatch,
    theirs,
):
    shared = everybodys if theirs == "files" else everybodys / "theirs"
    shared.mkdir(exist_ok=True)
    give(plant(shared), ATTACKER)
    if theirs == "files":
        os.chown(everybodys, 0, 0)  # as /tmp
    (shared / "mine").mkdir(mode=0o700)
    monkeypatch.chdir(shared / "mine")
    with pytest.warns(UserWarning, match=f"{shared} is not taken for the project"):
        assert project_root() == ROOT
    with pytest.raises(RunRefused, match="there is no page 'planted'"):
        find_page("planted")
    ended = shell("run", "planted")
    assert (
        ended.exit_code == 2 and "there is no page" in ended.stderr and not (root / "runs").exists()
    )
    assert find_page(
        shared / "nbs" / "experiments" / "planted.ipynb"
    )  # a path is what the user says


@pytest.mark.parametrize(
    "mode, why",
    [
        (0o777, "others can write"),
        (0o1777, "others can write"),
        (0o775, "others can write"),
        (0o755, ""),
    ],
)
def test_who_can_write_can_plant(tmp_path, monkeypatch, mode, why):
    monkeypatch.setattr("neurobridge.core.files._group_of_one", lambda group: False)
    folder = plant(tmp_path / "a")
    folder.chmod(mode)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (
            project_root(folder / "nbs") == (ROOT if why else folder)
            and why in foreign(folder)
            and bool(foreign(folder)) == bool(why)
        )


@root_only
def test_a_foreign_working_directory_is_no_project(everybodys, root, monkeypatch):  # noqa: F811
    "Also where the package is installed, and the working directory would be the project for want of another."
    give(plant(everybodys / "theirs"), ATTACKER)
    monkeypatch.chdir(everybodys / "theirs")
    monkeypatch.setattr(neurobridge, "__file__", str(root / "lib" / "neurobridge" / "__init__.py"))
    with pytest.raises(
        RunRefused,
        match="theirs is not taken for one, because .*belongs to another user .*give the path",
    ):
        find_page("planted")
    pytest.importorskip("nbdev", reason="the site needs nbdev")
    from docsite.build import build_site

    with pytest.raises(UnsafeFile, match="not taken for the project"):
        build_site(root / "site")


def test_home_is_the_last_place_looked_at(tmp_path, monkeypatch):
    plant(tmp_path)
    (tmp_path / "home" / "deep").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert (
        project_root(tmp_path / "home" / "deep") == ROOT and project_root(tmp_path / "home") == ROOT
    )
    plant(tmp_path / "home")
    assert project_root(tmp_path / "home" / "deep") == tmp_path / "home"


def test_the_search_ends_where_another_file_system_begins(tmp_path, monkeypatch):
    plant(tmp_path)
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    assert project_root(tmp_path / "disk" / "deep") == tmp_path
    looked = Path.stat

    def mounted(path, **named):
        found = looked(path, **named)
        return os.stat_result(
            [*found[:2], found.st_dev + path.is_relative_to(tmp_path / "disk"), *found[3:]]
        )

    monkeypatch.setattr(Path, "stat", mounted)
    assert project_root(tmp_path / "disk" / "deep") == ROOT


@pytest.mark.parametrize("kind", ["giant", "link", "pipe"])
def test_settings_that_are_no_small_file_are_none(tmp_path, kind):
    settings = tmp_path / "settings.ini"
    if kind == "giant":
        settings.write_text("lib_path = neurobridge\n")
        os.truncate(settings, 8 * 10**9)
    elif kind == "pipe":
        os.mkfifo(settings)
    else:
        (tmp_path / "other").write_text("lib_path = neurobridge\n")
        settings.symlink_to(tmp_path / "other")
    assert project_root(tmp_path) == ROOT


def test_no_project_above_an_installed_package_is_taken(tmp_path, monkeypatch):
    plant(tmp_path / "a")
    monkeypatch.setattr(
        neurobridge,
        "__file__",
        str(tmp_path / "a" / "venv" / "lib" / "neurobridge" / "__init__.py"),
    )
    (tmp_path / "work").mkdir()
    assert project_root(tmp_path / "work") == tmp_path / "work"


# X3: locks of GPUs


@root_only
def test_a_lease_empties_no_file_and_waits_for_no_stranger(everybodys, tmp_path, monkeypatch):  # noqa: F811
    (precious := tmp_path / "bashrc").write_text("mine")
    guessed = str(everybodys / f"neurobridge-gpus-{os.getuid()}")
    ended, said = as_user(
        ATTACKER,
        f"import os; os.mkdir({guessed!r}); os.chmod({guessed!r}, 0o777); "
        f"os.symlink({str(precious)!r}, {guessed!r} + '/7'); os.symlink({str(precious)!r}, "
        f"{guessed!r} + '/gpu-7')",
    )
    assert ended == 0, said
    monkeypatch.setattr(tempfile, "tempdir", str(everybodys))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = os.umask(0)
    try:
        with lease_gpus(1):
            assert precious.read_text() == "mine"
    finally:
        os.umask(before)
    assert stat.S_IMODE(
        machine_folder().stat().st_mode
    ) == 0o700 and machine_folder().is_relative_to(tmp_path / "cache")


def test_a_lock_of_a_gpu_is_never_emptied_and_never_a_link(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    (lock := machine_folder() / "gpu-7").write_text("keep")
    with lease_gpus(1):
        assert lock.read_text() == "keep"
    lock.unlink()
    lock.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UnsafeFile, match="gpu-7 is a link"), lease_gpus(1):
        pass
    assert not (tmp_path / "nowhere").exists()


@root_only
def test_where_the_cache_is_not_safe_the_runtime_folder_is_taken(everybodys, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(everybodys / "theirs"))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    ended, said = as_user(ATTACKER, f"import os; os.makedirs({str(everybodys / 'theirs')!r})")
    assert ended == 0, said
    with pytest.raises(UnsafeFile, match="belongs to another user"):
        machine_folder()
    (tmp_path / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    assert machine_folder() == tmp_path / "runtime" / "neurobridge"


# X4: links in a runs folder


def test_a_linked_lock_is_refused(root):
    page = make_page(root / "toy.ipynb")
    folder = place_of(page)
    folder.mkdir(parents=True)
    for target in (root / "docs" / "thesis.txt", root / "docs" / "new"):  # the second dangles
        (folder / ".lock").symlink_to(target)
        for words in ((), ("--force",)):
            ended = shell("run", page, *words)
            assert ended.exit_code == 2 and ".lock is a link" in ended.stderr and intact(root), (
                ended.exception
            )
        (folder / ".lock").unlink()
    os.mkfifo(folder / ".lock")
    ended = shell("run", page)
    assert ended.exit_code == 2 and ".lock is a named pipe" in ended.stderr


@pytest.mark.parametrize("depth", [1, 2])
def test_a_linked_run_folder_or_experiment_is_refused(root, depth):
    page = make_page(root / "toy.ipynb")
    link = place_of(page) if depth == 2 else place_of(page).parent
    link.parent.mkdir(parents=True)
    link.symlink_to(root / "docs")
    for words in (
        (),
        ("--force",),
        ("--out", place_of(page)),
        ("--out", place_of(page), "--force"),
    ):
        ended = shell("run", page, *words)
        assert ended.exit_code == 2 and f"{link} is a link" in ended.stderr and intact(root), (
            ended.exception
        )
    assert "removed" not in shell("clean", "--yes").stdout and intact(root)


def test_the_runs_folder_itself_may_be_a_link(root, monkeypatch):
    (root / "scratch").mkdir()
    (root / "runs").symlink_to(root / "scratch")
    page = make_page(root / "toy.ipynb")
    assert (
        run_notebook(page).folder.is_relative_to(root / "scratch")
        and len(load_runs()) == 1
        and len(load_runs(root / "runs")) == 1
    )
    (root / "scratch" / "toy" / "0123456789ab").symlink_to(root / "docs")
    with pytest.raises(RunRefused, match="is a link"):
        run_notebook(page, {"n": 1}, out=root / "runs" / "toy" / "0123456789ab")
    assert intact(root)


def test_links_among_what_a_run_leaves_are_replaced(root):
    "Notebook, report, tables, record and log, planted where a stopped run left its folder."
    page = make_page(
        root / "toy.ipynb",
        "from neurobridge.lab.run.execute import record\nrecord({'y': 1.0}, [{'a': 1}])\nimport os; "
        "os.system('echo from below')",
    )
    folder = place_of(page)
    folder.mkdir(parents=True)
    for name in (
        "notebook.ipynb",
        "report.html",
        "metrics.json",
        "rows.csv",
        "kernel.log",
        "run.json",
        ".neurobridge",
        ".x.part",
    ):
        (folder / name).symlink_to(
            root / "docs" / ("thesis.txt" if name != "kernel.log" else "new")
        )
    done = run_notebook(page)
    assert done.status == "done" and intact(root) and is_marked(folder, "run")
    assert not [file for file in folder.iterdir() if file.is_symlink()]


@root_only
def test_nothing_is_run_in_another_users_folder(root):
    page = make_page(root / "toy.ipynb")
    folder = place_of(page)
    folder.mkdir(parents=True)
    os.chown(folder, ATTACKER, ATTACKER)
    ended = shell("run", page, "--out", folder)
    assert ended.exit_code == 2 and "belongs to another user" in ended.stderr
    assert (
        run_notebook(page).folder == folder.with_name(f"{folder.name}.2")
        and list(folder.iterdir()) == []
    )


def test_a_hard_link_in_the_place_of_a_lock_is_not_written_to(root):
    (folder := root / "runs" / "toy" / "0123456789ab").mkdir(parents=True)
    empty = root / "docs" / "empty"
    empty.touch()
    for target in (root / "docs" / "thesis.txt", empty):
        os.link(target, folder / ".lock")
        with (
            lock.owned(folder),
            pytest.raises(lock.RunBusy, match="another process"),
            lock.owned(folder, patience=0),
        ):
            pass
        (folder / ".lock").unlink()
    assert empty.read_bytes() == b""
    empty.unlink()
    assert intact(root)


@pytest.mark.parametrize(
    "holder",
    [
        "[" * 4000,
        "[]",
        '{"pid": 1}',
        '{"pid": -1, "host": "a", "since": "b"}',
        '{"pid": 1, "host": "\\u001b]0;x", "since": "b"}',
        "\xff",
        "1" * 5000,
    ],
)
def test_nonsense_in_a_lock_is_no_holder(root, holder):
    (folder := root / "runs" / "toy" / "0123456789ab").mkdir(parents=True)
    (folder / ".lock").write_text(holder)
    with (
        lock.owned(folder),
        pytest.raises(lock.RunBusy, match="another process"),
        lock.owned(folder, patience=0),
    ):
        pass
    assert (folder / ".lock").read_text() == holder


def test_a_linked_list_of_names_is_not_written_through(root):
    (root / "runs").mkdir()
    (root / "runs" / ".pages").symlink_to(root / "docs")
    with pytest.raises(RunRefused, match=".pages is a link"):
        run_notebook(make_page(root / "toy.ipynb"))
    assert intact(root)


def test_two_links_to_here_are_no_labyrinth(root):
    keep(root, 1)
    for name in "ab":
        (root / "runs" / name).symlink_to(".")
    with pytest.warns(UserWarning, match="is a link to .*left out"):
        assert load_runs()["id"].tolist() == [f"{1:012x}"]


# X4: conversions


def pictures(root):
    (root / "set" / "train" / "cat").mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        root / "set" / "train" / "cat" / "a.png"
    )
    return root / "set"


@pytest.mark.parametrize("kind", ["folder", "lock", "class", "half", "journal"])
def test_conversions_follow_no_links(root, kind):
    from neurobridge.data import convert_images

    source, target = pictures(root), root / "events"
    convert_images(source, root / "first", workers=1)
    made = next(
        path
        for path in (root / "first").rglob("*")
        if path.is_dir() and not any(inner.is_dir() for inner in path.iterdir())
    ).relative_to(root / "first")
    assert len(made.parts) > 1
    links = {
        "folder": target,
        "lock": target / ".lock",
        "class": target / made,
        "half": target / made.parts[0],
        "journal": target / "files.jsonl",
    }
    if kind != "folder":
        (root / "first").rename(target)
        shutil.rmtree(links[kind]) if links[kind].is_dir() else links[kind].unlink()
    links[kind].symlink_to(
        root / "docs" if kind in ("folder", "class", "half") else root / "docs" / "thesis.txt"
    )
    with pytest.raises(UnsafeFile, match=f"{links[kind].name} is a link"):
        convert_images(source, target, workers=1)
    assert intact(root)


# X5: compiled code

EVIL = '#include <stdio.h>\n__attribute__((constructor)) static void run(void) { fclose(fopen("%s", "w")); }\nvoid forward(void) {}\nvoid backward(void) {}\n'


def plant_library(folder, marker):
    "Put a library of the right name into a cache, which tells by a file that it was loaded."
    name = compiled._library(folder, FLOAT).stem.rpartition("-")[0]
    for file in folder.iterdir():
        file.unlink()
    (folder / "evil.c").write_text(EVIL % marker)
    subprocess.run(
        [
            *compiled._compiler(),
            "-shared",
            "-fPIC",
            str(folder / "evil.c"),
            "-o",
            str(folder / "evil.so"),
        ],
        check=True,
    )
    (folder / "evil.c").unlink()
    return (folder / "evil.so").rename(
        folder / f"{name}-{compiled.file_hash(folder / 'evil.so')}.so"
    )


@needs_compiler
@pytest.mark.parametrize("how", ["sticky folder", "open folder", "file of another", "open file"])
def test_a_planted_library_is_not_loaded(tmp_path, monkeypatch, how):
    if how == "file of another" and os.geteuid():
        pytest.skip("two users are needed, so only root can try this")
    (cache := tmp_path / "cache").mkdir(mode=0o700)
    library = plant_library(cache, tmp_path / "loaded")
    ctypes.CDLL(str(library))
    (tmp_path / "loaded").unlink()  # the attack works
    library.rename(cache / "x")
    shutil.copy(cache / "x", library)  # else the loader would know it
    (cache / "x").unlink()
    if how == "file of another":
        os.chown(library, ATTACKER, ATTACKER)
    elif how == "open file":
        library.chmod(0o666)
    else:
        cache.chmod(0o1777 if how == "sticky folder" else 0o777)
    monkeypatch.setenv("NEUROBRIDGE_CACHE", str(cache))
    compiled._warn_of_cache.cache_clear()
    if "folder" in how:
        with pytest.warns(
            RuntimeWarning, match="cache of compiled kernels is not used, because others can write"
        ):
            assert compiled._load(FLOAT).backward
        assert list(cache.iterdir()) == [library]
    else:  # the folder is ours: what is not, goes
        assert compiled._load(FLOAT).backward and compiled._library(cache, FLOAT) != library
    assert not (tmp_path / "loaded").exists()


@needs_compiler
def test_a_new_cache_is_private_whatever_the_umask(tmp_path, monkeypatch):
    monkeypatch.delenv("NEUROBRIDGE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a" / "cache"))
    before = os.umask(0)
    try:
        assert compiled._load(FLOAT).forward
    finally:
        os.umask(before)
    folder = cache_folder()
    (library,) = folder.iterdir()
    modes = [
        stat.S_IMODE(path.stat().st_mode)
        for path in (library, folder, folder.parent, folder.parent.parent)
    ]
    assert modes == [0o600, 0o700, 0o700, 0o700]


@needs_compiler
def test_without_a_safe_place_nothing_is_compiled(tmp_path, monkeypatch):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "open"))
    monkeypatch.setenv("NEUROBRIDGE_CACHE", str(tmp_path / "open"))
    compiled._warn_of_cache.cache_clear()
    with (
        pytest.warns(RuntimeWarning, match="cache"),
        pytest.raises(RuntimeError, match="no place to compile it that only you can change"),
    ):
        compiled._load(FLOAT)
    assert list((tmp_path / "open").iterdir()) == []


@needs_compiler
def test_with_a_cache_of_our_own_the_temporary_folder_does_not_matter(tmp_path, monkeypatch):
    "Test machines have one that all can write to."
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "open"))
    monkeypatch.setenv("NEUROBRIDGE_CACHE", str(tmp_path / "cache"))
    assert compiled._load(FLOAT).forward
    assert (
        list((tmp_path / "open").iterdir()) == [] and len(list((tmp_path / "cache").iterdir())) == 1
    )


def test_a_relative_cache_is_ignored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEUROBRIDGE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert cache_folder() == Path.home() / ".cache" / "neurobridge"


# X8: what is removed


def test_cleaning_takes_only_what_is_marked_and_no_links(root):
    foreign_tool = root / "runs" / "toy" / f"{5:012x}"
    (root / "elsewhere" / f"{7:012x}").mkdir(parents=True)
    mark_folder(root / "elsewhere" / f"{7:012x}", "run")
    (root / "elsewhere" / f"{7:012x}" / "thesis.txt").write_text("mine")
    failed, half, bare = (
        keep(root, 1, "failed"),
        root / "runs" / "toy" / f"{8:012x}",
        root / "runs" / "toy" / f"{9:012x}",
    )
    foreign_tool.mkdir(), half.mkdir(), bare.mkdir()
    (half / "run.json").write_text("{")
    (foreign_tool / "run.json").write_text('{"status": "failed"}')
    (root / "runs" / "linked").symlink_to(root / "elsewhere")
    assert [one.folder for one in find_rubbish()] == [failed] and find_rubbish("linked") == []
    by_hand = [
        type(find_rubbish()[0])(folder, "failed", 1)
        for folder in (
            foreign_tool,
            half,
            bare,
            root / "runs" / "linked" / f"{7:012x}",
            root / "elsewhere" / f"{7:012x}",
            root / "docs",
        )
    ]
    assert remove_rubbish(by_hand) == [] and "removed 1 of 1" in shell("clean", "--yes").stdout
    assert (
        foreign_tool.exists()
        and half.exists()
        and bare.exists()
        and (root / "elsewhere" / f"{7:012x}" / "thesis.txt").exists()
        and intact(root)
    )


@root_only
def test_cleaning_leaves_what_belongs_to_others(root):
    folder = keep(root, 1, "failed")
    assert len(find_rubbish()) == 1
    os.chown(folder, ATTACKER, ATTACKER)
    assert find_rubbish() == []


def test_what_a_run_makes_is_marked_and_can_be_cleaned(root):
    page = make_page(root / "toy.ipynb", "1 / 0")
    with pytest.raises(runs.RunFailed):
        run_notebook(page)
    assert [one.why for one in find_rubbish()] == ["failed"]
    shutil.rmtree(root / "runs")
    with lock.owned(place_of(page)):
        assert find_rubbish() == []
    assert [one.why for one in find_rubbish()] == ["empty"] and len(
        remove_rubbish(find_rubbish())
    ) == 1


@pytest.mark.parametrize("kind", ["another site", "link to a site", "file"])
def test_a_site_replaces_only_a_site_of_ours(root, kind):
    pytest.importorskip("nbdev", reason="the site needs nbdev")
    from docsite.build import build_site

    (site := root / "site").mkdir()
    (site / "site.css").write_text("mine")
    out = site
    if kind == "link to a site":
        mark_folder(site, "site")
        (out := root / "link").symlink_to(site)
    elif kind == "file":
        out = site / "site.css"
    with pytest.raises(
        (UnsafeFile, FileExistsError),
        match="is a link to" if "link" in kind else "was not made by make docs",
    ):
        build_site(out)
    assert (site / "site.css").read_text() == "mine"


# X10: paths in records

WAYS_OUT = [
    "/etc",
    "../../x",
    "..",
    ".",
    ".hidden",
    "",
    "a/b",
    "a\\b",
    "a\0b",
    "a\nb",
    "\x1b]0;x",
    "x" * 256,
]


@pytest.mark.parametrize("field", ["experiment", "id"])
@pytest.mark.parametrize("name", WAYS_OUT)
def test_a_record_leads_nowhere(root, field, name):
    "A name in a record is one component of a path, or the record is damaged."
    folder = keep(root, 1, **{field: name})
    keep(root, 2)
    assert run_record.read_record(folder) is None
    with pytest.warns(UserWarning, match="damaged"):
        assert sorted(load_runs()["status"]) == ["damaged", "done"]


def test_mlflow_writes_nothing_where_a_record_says(root, monkeypatch):
    pytest.importorskip(
        "mlflow", reason="MLflow is not installed: pip install mlflow-skinny sqlalchemy alembic"
    )
    keep(root, 1, experiment=str(root / "abs")), keep(root, 2, experiment="../../up"), keep(root, 3)
    ended = shell("mlflow")
    assert (
        ended.exit_code == 0 and "1 new" in ended.stdout and ended.stderr.count("is damaged") == 2
    ), ended.exception
    assert {path.name for path in root.iterdir()} == {"docs", "runs"} and {
        path.name for path in (root / "runs").iterdir()
    } <= {"mlflow.db", "mlflow", "toy"}


def test_mlflow_follows_no_links(root):
    pytest.importorskip(
        "mlflow", reason="MLflow is not installed: pip install mlflow-skinny sqlalchemy alembic"
    )
    folder = keep(root, 1)
    for name in ("report.html", "notebook.ipynb", "curves.csv"):
        (folder / name).symlink_to(root / "docs" / "thesis.txt")
    found = describe_run(folder, read_json(folder / "run.json"))
    assert found["files"] == [] and all(
        name in found["tags"]["neurobridge.left_out"] for name in ("report.html", "curves.csv")
    )
    for name in ("mlflow.db", "mlflow"):
        (root / "runs" / name).symlink_to(
            root / "docs" / "thesis.txt" if name == "mlflow.db" else root / "docs"
        )
        ended = shell("mlflow")
        assert ended.exit_code == 2 and "is a link" in ended.stderr and intact(root), (
            ended.exception
        )
        (root / "runs" / name).unlink()


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "folder"])
def test_a_table_that_leads_elsewhere_is_not_copied(root, kind):
    keep(root, 1), keep(root, 2)
    table = root / "runs" / "toy" / f"{1:012x}" / "curves.csv"
    if "link" in kind:
        table.symlink_to(root / "docs" / ("thesis.txt" if kind == "link" else "none"))
    elif kind == "pipe":
        os.mkfifo(table)
    else:
        table.mkdir()
    with pytest.raises(RunRefused, match="curves.csv is a "):
        write_results("toy", out=root / "results")
    assert not (root / "results").exists()


# X11: bad records

HUGE = '{"rows": [' + "0, " * (24 * 2**20) + "0]}"  # 72 MB


def spoil(place, kind):
    place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind in ("link", "endless"):
        place.symlink_to("/dev/zero" if kind == "endless" else place.parent / "rows.csv")
    elif kind == "folder":
        place.mkdir()
    elif kind == "giant":
        place.write_text(HUGE)
    elif kind == "nested":
        place.write_text("[" * 10**5)
    else:
        place.write_bytes(b"\x00\xff not json")


@pytest.mark.parametrize(
    "kind", ["pipe", "endless", "link", "folder", "giant", "nested", "nonsense"]
)
def test_a_bad_record_costs_its_own_row(root, kind):
    "Whatever reads records: tables, results, reports, comparisons, MLflow, sweeps, cleaning."
    page = make_page(root / "toy.ipynb")
    (root / "s.yaml").write_text(f"notebook: {page}\ngrid: {{n: [1, 2]}}")
    good, bad = keep(root, 1, params={"n": 1, "seed": 0}), keep(root, 2)
    spoil(bad / "run.json", kind)
    spoil(bad / ".lock", kind)
    for words in (
        ["table"],
        ["results", "toy", "--out", root / "results"],
        ["report", root / "s.yaml"],
        ["compare", good, good.name],
        ["sweep", root / "s.yaml", "--dry-run"],
        ["clean", "--yes"],
    ):
        ended = shell(*words)
        assert ended.exit_code == 0, (words, ended.exception, ended.stderr)
        if words[0] in ("table", "results", "report"):
            assert f"{bad / 'run.json'} is damaged" in ended.stderr, (words, ended.stderr)
    assert (root / "results" / "toy.csv").exists()
    ended = shell("compare", good, f"{2:012x}")
    assert ended.exit_code == 2 and good.exists()


INSIDE = [("metrics", 3), ("metrics", {"a": 10**400}), ("seconds", 10**400), ("rows", [{"a": [1]}]), ("rows", [{"a": {"b": 1}}]), ("package", {"x.py": [1]}), ("files", {"x": 1}), ("environment", {"commit": 5}),
          ("environment", {"device": ["a"]}), ("skipped", [1]), ("skipped", [{"cell": 1}]), ("error", {"ename": "x"})]  # fmt: skip


@pytest.mark.parametrize("name, value", INSIDE)
def test_wrong_kinds_inside_a_record_are_damage(root, name, value):
    bad, _ = keep(root, 1, **{name: value}), keep(root, 2)
    assert run_record.read_record(bad) is None
    for words in (
        ["table"],
        ["table", "--group", "seed"],
        ["results", "toy", "--out", root / "results"],
    ):
        ended = shell(*words)
        assert ended.exit_code == 0 and f"{bad / 'run.json'} is damaged" in ended.stderr, (
            words,
            ended.exception,
        )


@pytest.mark.parametrize("name", ["/dev/zero", "pipe", "/dev/stdin"])
def test_notes_of_what_is_no_file_are_not_read(root, name):
    page = make_page(root / "toy.ipynb")
    os.mkfifo(root / "pipe")
    keep(root, 1, package={}, modules={}, files={name: "0" * 12})
    assert identity.differences(
        read_json(root / "runs" / "toy" / f"{1:012x}" / "run.json"), page
    ) == [name]


@root_only
def test_another_users_notes_do_not_lead_over_the_disk(root):
    folder = keep(
        root, 1, package={}, modules={}, files={"/": "0" * 12, "../x": "0" * 12, "x": "0" * 12}
    )
    assert run_record.read_record(folder)["files"] == dict.fromkeys(["/", "../x", "x"], "0" * 12)
    os.chown(folder, ATTACKER, ATTACKER)
    assert run_record.read_record(folder)["files"] == {"/": None, "../x": None, "x": "0" * 12}


@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_a_page_that_is_no_file_is_refused(root, kind):
    spoil(root / "toy.ipynb", kind)
    ended = shell("run", root / "toy.ipynb")
    assert ended.exit_code == 2 and "toy.ipynb" in ended.stderr and not (root / "runs").exists()


@pytest.mark.parametrize("value", ["1e999", "-1e999"])
def test_infinity_by_overflow_is_damage(root, value):
    bad = keep(root, 1, metrics={"a": 12345.5})
    (bad / "run.json").write_text((bad / "run.json").read_text().replace("12345.5", value))
    assert run_record.read_record(bad) is None


def test_a_list_as_record_is_damage(root):
    bad = keep(root, 1)
    (bad / "run.json").write_text("[1, 2]")
    assert shell("table").exit_code == 0 and run_record.read_record(bad) is None


def test_a_page_cannot_leave_a_record_that_nobody_reads(root, monkeypatch):
    "Its rows would be lost; it is told before they are written."
    (root / "run").mkdir()
    monkeypatch.setenv("NEUROBRIDGE_RUN", str(root / "run"))
    with pytest.raises(ValueError, match="keep a table as large as that as a CSV file"):
        runs.record({"a": 1.0}, [{"text": "x" * 2**20}] * 17)
    assert list((root / "run").iterdir()) == []


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder"])
def test_a_notebook_that_is_none_is_named(root, kind):
    one, other = keep(root, 1), keep(root, 2)
    spoil(other / "notebook.ipynb", kind)
    ended = shell("compare", one, other, "--html", root / "c.html")
    assert (
        ended.exit_code == 2
        and "notebook.ipynb cannot be read" in ended.stderr
        and not (root / "c.html").exists()
    ), ended.exception


# Checkpoints


def test_checkpoints_are_regular_files(tmp_path):
    save_checkpoint(tmp_path / "net.pt", {"a": torch.ones(2)})
    (tmp_path / "best.pt").symlink_to(tmp_path / "net.pt")
    assert torch.equal(
        load_checkpoint(tmp_path / "best.pt")["a"], torch.ones(2)
    )  # the user has named it
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    for name, kind in (("pipe.pt", "a named pipe"), ("zero.pt", "a device")):
        with pytest.raises(UnsafeFile, match=f"{name} is {kind}"):
            load_checkpoint(tmp_path / name)
    save_checkpoint(tmp_path / "best.pt", {"a": torch.zeros(2)})
    assert (
        torch.equal(load_checkpoint(tmp_path / "net.pt")["a"], torch.ones(2))
        and not (tmp_path / "best.pt").is_symlink()
    )
