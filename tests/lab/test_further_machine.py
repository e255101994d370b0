"Further members of the kinds that strangers on a machine use, and honest places that must not be refused."

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import neurobridge
from neurobridge.core import paths, project_root
from neurobridge.core.files import UnsafeFile, open_append, write_json
from neurobridge.core.paths import cache_folder, machine_folder
from neurobridge.data import convert_images
from neurobridge.lab import RunRefused, Scheduler, load_runs
from neurobridge.lab.run import engine, lock, run_record
from neurobridge.lab.run.engine import kernel_environment
from neurobridge.lab.sweep.cluster import _last_words, _queued, _write_private
from neurobridge.lab.sweep.dispatch import executor
from neurobridge.lab.sweep.gpus import lease_gpus
from neurobridge.lab.sweep.sweep_file import Resources

root_only = pytest.mark.skipif(
    os.geteuid() != 0, reason="another user's number is needed, so only root can try this"
)


@pytest.fixture
def secret(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(tmp_path / "runs"))
    (file := tmp_path / "secret").write_text("mine")
    yield file
    assert file.read_text() == "mine"


# Sockets


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:8786", "127.0.0.1:8786", "tcp://[::1]:8786"])
def test_an_open_scheduler_is_refused_before_anything_is_sent(address):
    pytest.importorskip("distributed")
    with (
        pytest.raises(RunRefused, match="anyone who reaches this port can run code as you"),
        executor(Scheduler(address), 1, Resources(), 1),
    ):
        pass


@pytest.mark.parametrize(
    "address",
    ["ucx://host:1", "inproc://here/1", "http://host:8787", "TLS://host:1", "tls+tcp://host:1"],
)
def test_other_protocols_are_refused_by_name(address):
    with pytest.raises(RunRefused, match="expected tls://host:port"):
        Scheduler(address)


def test_sockets_of_a_kernel_lie_in_a_folder_of_mode_0700_whatever_the_umask(tmp_path, monkeypatch):
    monkeypatch.setattr(engine.tempfile, "tempdir", "/tmp")
    before = os.umask(0)
    try:
        folder = engine._socket_folder()
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700 and os.stat(folder).st_uid == os.geteuid()
    os.rmdir(folder)


def test_a_temporary_folder_that_is_turned_by_a_link_holds_no_socket(tmp_path, monkeypatch):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "way").symlink_to(tmp_path / "open")
    monkeypatch.setattr(engine.tempfile, "tempdir", str(tmp_path / "way"))
    folder = engine._socket_folder()
    assert (
        not Path(folder).resolve().is_relative_to(tmp_path)
        and list((tmp_path / "open").iterdir()) == []
    )
    os.rmdir(folder)


def test_a_socket_in_the_place_of_a_lock_of_a_gpu_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.chdir(machine_folder())
    with socket.socket(socket.AF_UNIX) as end:
        end.bind("gpu-0")
        with pytest.raises(UnsafeFile, match="gpu-0 is a socket"), lease_gpus(1):
            pass


# Links


def test_a_linked_log_of_a_kernel_is_not_written_through(tmp_path, secret):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "kernel.log").symlink_to(secret)

    class Client:
        kernel = engine.KernelSettings()

        def execute(self, stdout, **_):
            stdout.write(b"taken")

    with pytest.raises(UnsafeFile, match="kernel.log is a link"):
        engine._run_cells(Client(), tmp_path / "run", tmp_path, None)
    (tmp_path / "run" / "kernel.log").unlink()
    engine._run_cells(Client(), tmp_path / "run", tmp_path, None)
    assert (tmp_path / "run" / "kernel.log").read_bytes() == b"taken"


def test_a_log_that_is_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "kernel.log")
    with pytest.raises(UnsafeFile, match="is a named pipe"):
        open_append(tmp_path / "kernel.log")


def test_a_script_of_a_job_is_not_written_through_a_link(tmp_path, secret):
    (tmp_path / "a.sh").symlink_to(secret)
    with pytest.raises(FileExistsError):
        _write_private(tmp_path / "a.sh", "#!/bin/sh")


def test_logs_of_jobs_that_are_links_pipes_or_giants_say_nothing(tmp_path, secret):
    class Cluster:
        workers = {"a": type("Job", (), {"job_id": "77", "log_directory": str(tmp_path / "logs")})}

    (logs := tmp_path / "logs").mkdir()
    (logs / "job-77.link").symlink_to(secret)
    (logs / "job-77.endless").symlink_to("/dev/zero")
    os.mkfifo(logs / "job-77.pipe")
    assert _last_words(Cluster, "a") == "77, which printed nothing"
    with open(logs / "job-77.out", "wb") as giant:
        giant.truncate(8 * 10**9)
        giant.seek(0, 2)
        giant.write(b"\nout of memory\n")
    assert "printed 'out of memory'" in _last_words(Cluster, "a")


def test_a_private_folder_that_is_a_link_to_our_own_is_refused(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir(mode=0o700)
    (tmp_path / "cache" / "neurobridge").mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(paths.platform, "node", lambda: "here")
    (tmp_path / "cache" / "neurobridge" / "on-here").symlink_to(tmp_path / "other")
    with pytest.raises(UnsafeFile, match="no place for locks: .*on-here is a link.*XDG_CACHE_HOME"):
        machine_folder()
    assert list((tmp_path / "other").iterdir()) == []


def test_a_record_behind_a_linked_folder_is_nobodys(tmp_path, secret):
    record = {
        "id": "0" * 12,
        "experiment": "toy",
        "status": "done",
        "started": "2026-01-01",
        "seconds": 1.0,
        "params": {},
        "metrics": {},
        "rows": [],
    }
    write_json(tmp_path / "elsewhere" / "run.json", record)
    (tmp_path / "runs" / "toy").mkdir(parents=True)
    (tmp_path / "runs" / "toy" / ("0" * 12)).symlink_to(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="is a link"):
        assert load_runs().empty
    assert run_record.read_record(tmp_path / "runs" / "toy" / ("0" * 12)) is None


def test_a_converted_set_is_not_put_behind_a_link_that_leads_nowhere(tmp_path, secret):
    (tmp_path / "set" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "events").symlink_to(tmp_path / "nowhere")
    with pytest.raises((UnsafeFile, ValueError, OSError)):
        convert_images(tmp_path / "set", tmp_path / "events", workers=1)
    assert not (tmp_path / "nowhere").exists()


# Honest places

HERE = """
import json, warnings
warnings.simplefilter("error")
from neurobridge.core.paths import foreign
from neurobridge.core import project_root
print(json.dumps([str(project_root()), str(project_root("nbs/experiments")), foreign(project_root())]))
"""


@pytest.fixture
def checkout(tmp_path):
    "The beginnings of a checkout, below a folder in which everybody may write."
    (above := tmp_path / "builds").mkdir()
    (place := above / "project").mkdir()
    for name in ("nbs/experiments", "neurobridge/core"):
        (place / name).mkdir(parents=True)
    (place / "settings.ini").write_text("lib_path = neurobridge\n")
    source = Path(neurobridge.__file__).parent
    for name in (
        "__init__.py",
        "__init__.pyi",
        "core/__init__.py",
        "core/__init__.pyi",
        "core/paths.py",
        "core/files.py",
        "core/checks.py",
    ):
        (place / "neurobridge" / name).write_bytes((source / name).read_bytes())
    above.chmod(0o777)
    return place


def asked(checkout):
    done = subprocess.run(
        [sys.executable, "-c", HERE],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("mode", [0o755, 0o775, 0o777])
def test_the_packages_own_checkout_serves_from_where_others_may_write(checkout, mode):
    (checkout / "nbs" / "experiments").chmod(mode)
    checkout.chmod(mode)
    assert asked(checkout) == [str(checkout.resolve()), str(checkout.resolve()), ""]


@root_only
def test_root_in_a_container_works_in_another_users_checkout(checkout):
    for path in (checkout, *checkout.rglob("*")):
        os.chown(path, 65531, 65531)
    assert asked(checkout) == [str(checkout.resolve()), str(checkout.resolve()), ""]


def test_a_project_planted_inside_the_own_checkout_is_not_taken(checkout, monkeypatch):
    planted = checkout / "nbs" / "shared"
    planted.mkdir()
    (planted / "settings.ini").write_text("lib_path = neurobridge\n")
    planted.chmod(0o777)
    monkeypatch.setattr(neurobridge, "__file__", str(checkout / "neurobridge" / "__init__.py"))
    paths._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="shared is not taken for the project"):
        assert project_root(planted) == checkout.resolve()


def test_a_user_without_a_name_and_without_a_home(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "NEUROBRIDGE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        os.path, "expanduser", lambda path: path
    )  # what it does for a number without an entry
    with pytest.raises(FileNotFoundError, match="set HOME or XDG_CACHE_HOME to a folder"):
        cache_folder()
    with pytest.raises(UnsafeFile, match="no place for locks: there is no home"):
        machine_folder()
    assert kernel_environment()["HOME"] == "/"


def test_a_queue_cannot_be_asked_about_a_user_without_a_name(monkeypatch):
    def nobody():
        raise KeyError("getpwuid(): uid not found: 65531")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert _queued("sbatch") is None


def test_a_linked_folder_for_runs_is_the_users_own_choice(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(tmp_path / "runs"))
    lock.make_folder(tmp_path / "runs" / "toy" / ("0" * 12))
    assert (tmp_path / "disk" / "toy" / ("0" * 12) / ".neurobridge").is_file()
