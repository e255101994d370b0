"""Files and places: a reader sees whole versions only, whoever is killed when; and who decides where data and runs lie."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import neurobridge
from neurobridge.core import data_root, project_root
from neurobridge.core.files import atomic_write, file_hash, read_json, write_json
from neurobridge.core.paths import runs_root

ROOT = Path(neurobridge.__file__).resolve().parents[1]
any_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def parts(folder):
    return list(folder.glob(".*.part"))


# Killed

WRITER = """
import sys
from neurobridge.core.files import atomic_write
n = int(sys.argv[2])
while True:
    with atomic_write(sys.argv[1], "wb") as file:
        for _ in range(100 + n % 7): file.write(b"%9d\\n" % n * 50)
    n += 1
"""


def is_whole(content):
    n = int(content[:10])
    return content == b"%9d\n" % n * 50 * (100 + n % 7)


@pytest.mark.long
def test_two_writers_killed_at_random_moments(tmp_path):
    path, rng, seen = tmp_path / "f", random.Random(0), set()
    for turn in range(15):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(path), str(1_000_000 * (2 * turn + i))]
            )
            for i in range(2)
        ]
        try:
            until = time.monotonic() + 60
            while not path.exists() or int(path.read_bytes()[:10]) < 2_000_000 * turn:
                assert time.monotonic() < until and all(writer.poll() is None for writer in writers)
            until = time.monotonic() + rng.uniform(0, 0.1)
            while time.monotonic() < until:
                content = path.read_bytes()
                seen.add(content[:10])
                assert is_whole(content)
        finally:
            for writer in writers:
                writer.kill()
                writer.wait(60)
        assert is_whole(path.read_bytes())
        assert {*tmp_path.iterdir()} == {path, *parts(tmp_path)}
    assert len(seen) > 15 and parts(tmp_path), "no kill fell into a write: the test tests nothing"


FATAL = """
import os, signal, sys
from neurobridge.core.files import atomic_write
calls = 0
def deadly(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == int(sys.argv[2]): os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
os.open, os.fdopen, os.fsync, os.chmod, os.replace = map(deadly, (os.open, os.fdopen, os.fsync, os.chmod, os.replace))
with atomic_write(sys.argv[1]) as file: file.write("new" * 9999)
"""


def test_killed_before_any_system_call(tmp_path):
    found = []
    for n in range(1, 20):
        (tmp_path / "f").write_text("old")
        ended = subprocess.run(
            [sys.executable, "-c", FATAL, str(tmp_path / "f"), str(n)], timeout=60
        )
        found.append((tmp_path / "f").read_text())
        assert found[-1] in ("old", "new" * 9999)
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
    assert found == sorted(found, reverse=True) and {"old", "new" * 9999} == set(found) and n > 5


# Errors


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("mode, old, half", [("w", "old ü", "half"), ("wb", b"old", b"half")])
def test_an_error_inside_keeps_the_old_file(tmp_path, error, mode, old, half):
    with atomic_write(tmp_path / "deep" / "er" / "f", mode) as file:
        file.write(old)
    for name in ("f", "not there"):
        with pytest.raises(error):
            with atomic_write(tmp_path / "deep" / "er" / name, mode) as file:
                file.write(half)
                file.flush()
                raise error
    (left,) = (tmp_path / "deep" / "er").iterdir()
    assert (left.read_bytes() if mode == "wb" else left.read_text(encoding="utf-8")) == old


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_failing_system_call_leaves_nothing_behind(tmp_path, monkeypatch, name):
    def fail(*args):
        raise OSError("no space left")

    (tmp_path / "f").write_text("old")
    monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError, match="no space left"):
        write_json(tmp_path / "f", [1])
    assert [p.name for p in tmp_path.iterdir()] == ["f"] and (tmp_path / "f").read_text() == "old"


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "f" / "inside").mkdir(parents=True)
    with pytest.raises(OSError) as error, atomic_write(tmp_path / "f") as file:
        file.write("x")
    assert (tmp_path / "f" / "inside").is_dir() and not parts(tmp_path)
    assert (
        str(error.value) == f"[Errno 21] Is a directory: '{tmp_path / 'f'}'"
    )  # and not the hidden file beside it


@pytest.mark.parametrize("mode", ["a", "ab", "x", "r", "r+", "w+", "wt", ""])
def test_other_modes_are_refused_before_anything_is_made(tmp_path, mode):
    with (
        pytest.raises(ValueError, match=re.escape(f"mode is '{mode}'")),
        atomic_write(tmp_path / "deep" / "f", mode),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002, 0])
def test_permissions_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        for _ in range(2):
            write_json(tmp_path / "f", {})
            assert (tmp_path / "f").stat().st_mode & 0o777 == 0o666 & ~mask
        (tmp_path / "plain").touch()
        assert (tmp_path / "plain").stat().st_mode == (tmp_path / "f").stat().st_mode
    finally:
        after = os.umask(before)
    assert after == mask


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_content_is_never_open_to_more_than_the_umask_allows(tmp_path, mask):
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / "f") as file:
            file.write("secret")
            (part,) = tmp_path.iterdir()
            assert (
                part.name.startswith(".f.")
                and part.suffix == ".part"
                and part.stat().st_mode & 0o777 == 0o666 & ~mask
            )
    finally:
        os.umask(before)


def test_no_thread_ever_writes_a_file_that_all_can_change(tmp_path):
    """While one thread writes atomically, files that others make keep to the umask: it is not set to 0 for a moment."""
    before, modes, going = os.umask(0o077), set(), True

    def write():
        while going:
            with atomic_write(tmp_path / "f") as file:
                file.write("x")

    writers = [threading.Thread(target=write) for _ in range(3)]
    try:
        for writer in writers:
            writer.start()
        for k in range(4000):
            handle = os.open(tmp_path / f"{k % 7}.mine", os.O_WRONLY | os.O_CREAT, 0o666)
            modes.add(os.fstat(handle).st_mode & 0o777)
            os.close(handle)
            os.unlink(tmp_path / f"{k % 7}.mine")
    finally:
        going = False
        for writer in writers:
            writer.join()
        os.umask(before)
    assert modes == {0o600}


def test_threads_that_write_the_same_file(tmp_path):
    def write(n):
        for _ in range(20):
            write_json(tmp_path / "f", [n] * 1000)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "f").exists():
            assert len(set(read_json(tmp_path / "f"))) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["f"] and len(read_json(tmp_path / "f")) == 1000


# JSON

texts = st.text(st.characters(codec="utf-8"), max_size=20)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=15,
)


@any_folder
@given(values)
def test_json_comes_back(tmp_path, value):
    write_json(tmp_path / "f", value)
    assert read_json(tmp_path / "f") == value == json.loads((tmp_path / "f").read_bytes())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), np.float64("nan")])
@pytest.mark.parametrize("inside", [lambda v: v, lambda v: [1, v], lambda v: {"a": {"b": (v,)}}])
def test_json_refuses_what_is_no_number(tmp_path, value, inside):
    write_json(tmp_path / "f", "old")
    with pytest.raises(ValueError):
        write_json(tmp_path / "f", inside(value))
    assert read_json(tmp_path / "f") == "old" and not parts(tmp_path)


@pytest.mark.parametrize(
    "value", [np.float32("nan"), np.float16("inf"), torch.tensor(float("nan"))]
)
def test_json_refuses_nan_of_any_library(tmp_path, value):
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "f", {"loss": value})


def test_json_never_turns_a_number_into_text(tmp_path):
    for number in (np.float32(0.5), np.int64(3), np.bool_(True)):
        try:
            write_json(tmp_path / "f", number)
        except TypeError:
            continue
        assert read_json(tmp_path / "f") == number


def test_paths_become_text(tmp_path):
    write_json(tmp_path / "f", {"root": tmp_path})
    assert read_json(tmp_path / "f") == {"root": str(tmp_path)}


def test_every_truncation_is_named(tmp_path):
    write_json(
        tmp_path / "whole", {"accuracy": 0.91, "arms": ["scratch", "µ"], "n": 3, "seed": None}
    )
    content = (tmp_path / "whole").read_bytes().rstrip()
    path = tmp_path / "damaged.json"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError) as caught:
            read_json(path)
        assert str(path) in str(caught.value) and "remove it" in str(caught.value)


@any_folder
@given(st.binary(max_size=30))
def test_any_bytes_are_read_or_named(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    try:
        read_json(tmp_path / "f")
    except ValueError as error:
        assert str(tmp_path / "f") in str(error)


def test_an_absent_record_is_not_called_damaged(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "f")


# Checksums


@any_folder
@given(
    st.binary(max_size=1000),
    st.sampled_from(["sha256", "md5", "sha1", "sha512", "blake2b"]),
    st.integers(1, 3000),
)
def test_hash_equals_hashlib(tmp_path, content, algorithm, times):
    (tmp_path / "f").write_bytes(content * times)
    assert (
        file_hash(tmp_path / "f", algorithm) == hashlib.new(algorithm, content * times).hexdigest()
    )
    assert file_hash(tmp_path / "f") == hashlib.sha256(content * times).hexdigest()


def test_unknown_hash(tmp_path):
    (tmp_path / "f").touch()
    with pytest.raises(ValueError, match="crc99"):
        file_hash(tmp_path / "f", "crc99")


# Places


@pytest.fixture
def outside(tmp_path, monkeypatch):
    "A working directory that lies in no checkout, and no variables set."
    monkeypatch.delenv("NEUROBRIDGE_DATA", raising=False)
    monkeypatch.delenv("NEUROBRIDGE_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checkout(folder, text="[DEFAULT]\nlib_path = neurobridge\n"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.ini").write_text(text)
    return folder.resolve()


def test_the_nearest_checkout_upwards_wins(outside, monkeypatch):
    upper, inner = checkout(outside / "a"), checkout(outside / "a" / "b" / "c")
    (inner / "nbs" / "deep").mkdir(parents=True)
    assert (
        project_root(upper / "b")
        == upper
        == project_root(upper / "not" / "there")
        == project_root(str(upper))
    )
    assert project_root(inner / "nbs" / "deep") == inner
    monkeypatch.chdir(inner / "nbs")
    assert (
        project_root() == inner == project_root("deep")
        and data_root() == inner / "data"
        and runs_root() == inner / "runs"
    )
    (outside / "link").symlink_to(inner / "nbs")
    assert project_root(outside / "link") == inner


@pytest.mark.parametrize(
    "text",
    [
        "[DEFAULT]\nlib_path = other\n",
        "",
        "lib_path = neurobridge_fork\n",
        "lib_path = my_neurobridge\n# neurobridge",
    ],
)
def test_settings_of_another_project_are_passed_over(outside, text):
    other = checkout(outside / "a" / "other", text)
    assert project_root(other) == ROOT
    upper = checkout(outside / "a")
    assert project_root(other) == upper


def test_unreadable_settings_are_passed_over(outside):
    checkout(outside / "a")
    (outside / "a" / "settings.ini").write_bytes(b"\xff\xfe\x00binary")
    (outside / "b" / "settings.ini").mkdir(parents=True)
    assert project_root(outside / "a") == project_root(outside / "b") == ROOT


def test_outside_of_any_checkout_an_editable_installation_leads_home(outside):
    assert (
        project_root() == ROOT
        and data_root() == (ROOT / "data").resolve()
        and runs_root() == (ROOT / "runs").resolve()
    )


def test_outside_of_any_checkout_an_installed_package_writes_where_it_is_called(
    outside, monkeypatch
):
    (outside / "lib" / "neurobridge").mkdir(parents=True)
    shutil.copy(neurobridge.__file__, outside / "lib" / "neurobridge")
    stub = Path(neurobridge.__file__).with_suffix(".pyi")
    shutil.copy(stub, outside / "lib" / "neurobridge")
    shutil.copytree(
        Path(neurobridge.__file__).parent / "core",
        outside / "lib" / "neurobridge" / "core",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (outside / "work").mkdir()
    ask = "import neurobridge.core.paths as p; print(p.__file__, p.project_root(), p.data_root(), p.runs_root(), sep='\\n')"
    env = {**os.environ, "PYTHONPATH": str(outside / "lib")}
    said = subprocess.run(
        [sys.executable, "-c", ask],
        cwd=outside / "work",
        env=env,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    work = (outside / "work").resolve()
    assert said == [
        str(outside / "lib" / "neurobridge" / "core" / "paths.py"),
        str(work),
        str(work / "data"),
        str(work / "runs"),
    ]
    checkout(outside / "work")
    (outside / "work" / "deep").mkdir()
    said = subprocess.run(
        [sys.executable, "-c", ask],
        cwd=outside / "work" / "deep",
        env=env,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert said[1:] == [str(work), str(work / "data"), str(work / "runs")]


@pytest.mark.parametrize(
    "argument, variable, expected",
    [
        ("given", "set", "given"),
        ("given", None, "given"),
        (Path("given"), "set", "given"),
        (None, "set", "set"),
        (None, "set/../deeper", "deeper"),
        (None, "", "project/data"),
        (None, None, "project/data"),
    ],
)
def test_argument_then_environment_then_project(outside, monkeypatch, argument, variable, expected):
    checkout(outside / "project")
    (outside / "project" / "nbs").mkdir()
    if variable is not None:
        monkeypatch.setenv("NEUROBRIDGE_DATA", str(outside / variable) if variable else "")
        monkeypatch.setenv("NEUROBRIDGE_RUNS", str(outside / variable) if variable else "")
    monkeypatch.chdir(outside / "project" / "nbs")
    if argument:
        assert (
            data_root(outside / argument)
            == data_root(f"../../{argument}")
            == (outside / expected).resolve()
        )
    else:
        assert data_root() == (outside / expected).resolve()
        assert runs_root() == (outside / expected.replace("data", "runs")).resolve()
    assert not (outside / expected).exists()


def test_home_and_relative_folders(outside, monkeypatch):
    monkeypatch.setenv("HOME", str(outside / "home"))
    for name, ask in (("NEUROBRIDGE_DATA", data_root), ("NEUROBRIDGE_RUNS", runs_root)):
        monkeypatch.setenv(name, "~/big")
        assert ask() == (outside / "home" / "big").resolve()
        monkeypatch.setenv(name, "relative")
        assert ask() == (outside / "relative").resolve() and ask().is_absolute()
    assert data_root("~") == (outside / "home").resolve()


@pytest.mark.parametrize("value", [{1: "a", "1": "b"}, {"a": [{2.5: 1, "2.5": 2}]}])
def test_keys_that_are_equal_as_text_are_refused(tmp_path, value):
    with pytest.raises(ValueError, match="two keys that are"):
        write_json(tmp_path / "a.json", value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", [None, True, (1, 2), b"a", object()])
def test_keys_that_are_no_text_are_refused(tmp_path, key):
    with pytest.raises(TypeError, match="a key of value"):
        write_json(tmp_path / "a.json", {key: 1})


def test_numbers_as_keys_become_text(tmp_path):
    write_json(tmp_path / "a.json", {1: "a", np.int64(2): "b", 0.5: "c"})
    assert read_json(tmp_path / "a.json") == {"1": "a", "2": "b", "0.5": "c"}


def test_a_record_that_holds_itself_is_refused(tmp_path):
    held = {}
    held["a"] = held
    with pytest.raises(ValueError, match="contains itself"):
        write_json(tmp_path / "a.json", held)
    with pytest.raises(ValueError, match=r"value\['a'\]\[1\] is nan"):
        write_json(tmp_path / "a.json", {"a": [1, float("nan")]})


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ('{"a": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
    ids=range(3),
)
def test_json_that_would_be_misread_is_refused(tmp_path, text, said):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("algorithm", ["sha", "shake_128", "MD5 ", "", None, 5, hashlib.sha256])
def test_hashes_that_python_does_not_have_are_refused(tmp_path, algorithm):
    (tmp_path / "a").write_bytes(b"abc")
    with pytest.raises((TypeError, ValueError), match="file_hash: algorithm is"):
        file_hash(tmp_path / "a", algorithm)
