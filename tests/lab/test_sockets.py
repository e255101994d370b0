"What other users of the machine, and of the network, reach while runs are made: nothing that does as it is told."

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook

from neurobridge.core import project_root
from neurobridge.core.files import UnsafeFile, read_json
from neurobridge.lab import RunRefused, Scheduler, Sweep, run_notebook, run_sweep
from neurobridge.lab.cli import app
from neurobridge.lab.run import engine
from neurobridge.lab.run.engine import KernelSettings, PageEngine, kernel_environment
from neurobridge.lab.run.kernel import output_budget
from neurobridge.lab.run.kernel_server import KernelServer
from neurobridge.lab.sweep.dispatch import executor
from neurobridge.lab.sweep.sweep_file import Resources

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sockets are looked up in /proc")
root_only = pytest.mark.skipif(
    os.geteuid() != 0, reason="two users are needed, so only root can try this"
)
ROOT = project_root(Path(__file__).parent)
LIGHT = "ipykernel.kernelapp ipykernel.ipkernel"
STRANGER = 65531


def make(root, text, *cells):
    first = [
        new_code_cell("n: int = 0", metadata={"tags": ["parameters"]}),
        new_code_cell(
            "import os, time\nfrom pathlib import Path\nfrom neurobridge.lab.run.execute import record"
        ),
    ]
    write(new_notebook(cells=[*first, *map(new_code_cell, cells)]), root / "p.ipynb")
    (root / "s.yaml").write_text(f"notebook: {root / 'p.ipynb'}\n{text}")
    return Sweep.from_yaml(root / "s.yaml")


def execute(*cells, **settings):
    "Run cells in a kernel; return what they printed, joined, or the failure."
    nb, told = new_notebook(cells=[new_code_cell(cell) for cell in cells]), []
    nb.metadata["papermill"] = {}
    nb = PageEngine.execute_notebook(nb, on_failure=told.append, **settings)
    return (
        told[0]
        if told
        else "".join(output.get("text", "") for cell in nb.cells for output in cell.outputs).strip()
    )


@pytest.fixture(params=["new", "forked"])
def kernel(request, root):
    "The two ways to a kernel."
    if request.param == "new":
        yield KernelSettings()
        return
    with contextlib.closing(KernelServer(modules=LIGHT.split())) as server:
        yield KernelSettings(start=server.start)


# What a process tree listens on


def family(pid):
    "A process and all that it has started."
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{one}/task"):
                found += [
                    int(child)
                    for child in Path(f"/proc/{one}/task/{task}/children").read_text().split()
                ]
    return found


def command_of(pid):
    "The command line of a process; empty where it ended meanwhile."
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def held(pids):
    "The sockets that processes hold."
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    found.add(os.readlink(f"/proc/{pid}/fd/{number}"))
    return {name[8:-1] for name in found if name.startswith("socket:[")}


def tcp(pids):
    "Addresses and ports on which processes listen, and UDP ports on which they receive."
    mine, found = held(pids), []
    for name, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == state and words[9] in mine:
                address, port = words[1].split(":")
                parts = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                found.append(
                    (
                        socket.inet_ntop(
                            socket.AF_INET6 if "6" in name else socket.AF_INET, b"".join(parts)
                        ),
                        int(port, 16),
                    )
                )
    return found


def unix(pids):
    "Names of the local sockets on which processes listen; an abstract one begins with @."
    mine, found = held(pids), []
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        if words[6] in mine and int(words[3], 16) & 0x10000:
            found.append(words[7] if len(words) > 7 else "")
    return found


def private(names):
    "All of them are files in folders that only their user can enter."
    folders = {Path(name).parent for name in names}
    return all(name.startswith("/") for name in names) and all(
        folder.stat().st_mode & 0o777 == 0o700 for folder in folders
    )


ATTACK = """
import json, os, socket, ssl, sys
from distributed import Client
from distributed.security import Security
own = Security.temporary()
targets = json.loads(sys.argv[1])
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65531); os.setuid(65531)
reached = []
for host, port in targets:
    for protocol, security in (("tcp", None), ("tls", own)):
        try:
            client = Client(f"{protocol}://{host}:{port}", timeout=2, security=security)
            reached.append([protocol, port, client.run_on_scheduler(os.getuid)])
        except Exception as error:
            print(type(error).__name__, file=sys.stderr)
    with socket.create_connection((host, port), 5) as plain:
        plain.settimeout(2)
        try:
            plain.sendall(b"GET /info/main/workers.html HTTP/1.0\\r\\n\\r\\n")
            if b"HTTP/" in (said := plain.recv(100)): reached.append(["http", port, said.decode()])
        except OSError:
            pass
    context = ssl.create_default_context(); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
    try:
        with context.wrap_socket(socket.create_connection((host, port), 5)) as bare:
            bare.settimeout(2)
            bare.sendall(b"x" * 8); reached += [["tls without a certificate", port, "answer"]] if bare.recv(100) else []
    except OSError:
        pass
print(json.dumps(reached))
"""


def attack(addresses):
    "Try every address as another user, without and with wrong certificates; return what let somebody in."
    pytest.importorskip("distributed")
    done = subprocess.run(
        [sys.executable, "-c", ATTACK, json.dumps(addresses)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


DRIVER = """
import sys
from neurobridge.lab import Scheduler, Sweep, run_sweep
if __name__ == "__main__":
    where = eval(sys.argv[2])
    run_sweep(Sweep.from_yaml(sys.argv[1]), 2, where)
"""


@contextlib.contextmanager
def while_it_runs(root, where="None", cwd=None, **env):
    "A sweep of two runs in a process of its own, both of them in progress; it ends well when the block does."
    up, go = root / "up", root / "go"
    make(
        root,
        "grid: {n: [1, 2]}",
        f"Path(f'{up}.{{n}}').touch()\nwhile not Path({str(go)!r}).exists(): "
        f"time.sleep(0.05)\nrecord({{'n': n}})",
    )
    (root / "driver.py").write_text(DRIVER)
    command = [sys.executable, str(root / "driver.py"), str(root / "s.yaml"), where]
    driver = subprocess.Popen(
        command, env=kernel_environment() | env, stderr=subprocess.PIPE, text=True, cwd=cwd
    )
    try:
        until = time.monotonic() + 180
        while len(list(root.glob("up.*"))) < 2:
            assert driver.poll() is None and time.monotonic() < until, driver.stderr.read()
            time.sleep(0.05)
        yield driver
        go.touch()
        assert driver.wait(180) == 0, driver.stderr.read()
    finally:
        driver.kill()
        driver.communicate()


# X1: sweeps


@pytest.mark.long
def test_a_local_sweep_opens_no_port(root):
    with while_it_runs(root) as driver:
        pids = family(driver.pid)
        assert len(pids) >= 7  # driver, and twice worker, server, kernel
        assert tcp(pids) == []
        assert len(names := unix(pids)) >= 10 and private(names)


@pytest.mark.long
def test_a_local_sweep_needs_no_dask(root):
    (root / "distributed.py").write_text("raise ImportError('not here')")
    (root / "dask.py").write_text("raise ImportError('not here')")
    with while_it_runs(root, PYTHONPATH=f"{root}:{kernel_environment()['PYTHONPATH']}"):
        pass


@pytest.mark.long
@root_only
def test_another_user_cannot_open_the_pipe_of_a_worker(root):
    with while_it_runs(root) as driver:
        workers = [pid for pid in family(driver.pid) if "_do_runs" in command_of(pid)]
        look = f"import os; os.setgid({STRANGER}); os.setuid({STRANGER})\nfor pid in {workers}:\n    os.listdir(f'/proc/{{pid}}/fd')"
        assert (
            len(workers) == 2
            and "PermissionError"
            in subprocess.run([sys.executable, "-c", look], capture_output=True, text=True).stderr
        )


@pytest.fixture
def batch_system(root, monkeypatch):
    "A batch system of three commands; gives the folder with one file a job: its process."
    pytest.importorskip("dask_jobqueue")
    (jobs := root / "jobs").mkdir()
    (root / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
    bodies = {
        "sbatch": f'cd {jobs}; id=$$; cp "$1" ../script.$id; stat -c %a "$1" > ../mode.$id; mkdir -p \'{root}/runs/.jobs\'\n'
        f"(exec sh ../script.$id) > '{root}/runs/.jobs/dask-worker-'$id.err 2>&1 & echo $! > $id; "
        "echo Submitted batch job $id",
        "squeue": f"cd {jobs}; for id in *; do kill -0 $(cat $id) 2>/dev/null && echo $id; done; exit 0",
        "scancel": f"cd {jobs}; pkill -P $(cat $1) 2>/dev/null; kill $(cat $1) 2>/dev/null; : > $1",
    }
    for name, body in bodies.items():
        (root / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (root / "bin" / name).chmod(0o755)
    yield jobs
    for job in jobs.iterdir():
        for pid in reversed(family(int(job.read_text() or 0)) if job.read_text().strip() else []):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.long
def test_a_sweep_on_a_cluster_lets_nobody_in(root, batch_system):
    "Scheduler, workers, nannies: each port asks for the certificate; there are no web pages, and none listens everywhere."
    with while_it_runs(root, "'slurm:queue=x'") as driver:
        pids = [
            pid
            for start in (driver.pid, *(int(job.read_text()) for job in batch_system.iterdir()))
            for pid in family(start)
        ]
        ports = tcp(pids)
        assert len(ports) == 5, ports  # scheduler; two nannies and workers
        assert not [host for host, _ in ports if host in ("0.0.0.0", "::")]
        assert attack(ports) == []
        assert private(unix(pids))
        (keys,) = (root / "runs" / ".jobs").glob("keys-*")
        assert stat.S_IMODE(keys.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in keys.iterdir() if file.is_file()} == {
            0o600
        }
        secret = (keys / "key.pem").read_text().splitlines()[1]
        commands = [command_of(pid) for pid in pids]
        assert any(commands)
        scripts = [script.read_text() for script in root.glob("script.*")]
        assert len(scripts) == 2 and not any(secret in text for text in (*commands, *scripts))
        assert {mode.read_text() for mode in root.glob("mode.*")} == {"600\n"}
    assert not list((root / "runs" / ".jobs").glob("keys-*"))


@pytest.mark.long
def test_a_place_for_keys_that_others_can_exchange_is_refused(root, batch_system, tmp_path):
    (root / "runs").mkdir()
    (root / "runs").chmod(0o777)
    with pytest.raises(
        RunRefused,
        match=r"need a place of their own: .*others can write to .*runs.*shared_temp_directory=FOLDER",
    ):
        run_sweep(make(root, ""), 1, "slurm:queue=x")
    (tmp_path / "mine").mkdir(mode=0o700)
    assert run_sweep(
        make(root, "", "record({'n': 1})"),
        1,
        f"slurm:queue=x,shared_temp_directory={tmp_path / 'mine'}",
    ).status.tolist() == ["done"]
    assert not list((tmp_path / "mine").iterdir())


def test_a_runs_folder_with_a_blank_works_for_jobs_too(root, batch_system, monkeypatch):
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(root / "my 'runs"))
    (root / "runs" / ".jobs").mkdir(parents=True)
    assert run_sweep(make(root, "", "record({'n': 1})"), 1, "slurm:queue=x").status.tolist() == [
        "done"
    ]


@pytest.mark.long
def test_an_interface_is_passed_on(root, batch_system):
    with while_it_runs(root, "'slurm:queue=x,interface=lo'") as driver:
        pids = [
            pid
            for start in (driver.pid, *(int(job.read_text()) for job in batch_system.iterdir()))
            for pid in family(start)
        ]
        assert {host for host, _ in tcp(pids)} == {"127.0.0.1"} and "--interface lo" in next(
            root.glob("script.*")
        ).read_text()


# X1: a scheduler that runs already


@pytest.fixture
def certificates(tmp_path):
    pytest.importorskip("cryptography")
    security = pytest.importorskip("distributed").Security.temporary()
    (folder := tmp_path / "tls").mkdir(mode=0o700)
    for name, text in (
        ("cert.pem", security.tls_client_cert),
        ("key.pem", security.tls_client_key),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    return folder


@pytest.fixture
def started(root, certificates):
    "A scheduler and a worker with certificates."
    tls = [
        "--tls-ca-file",
        str(certificates / "cert.pem"),
        "--tls-cert",
        str(certificates / "cert.pem"),
        "--tls-key",
        str(certificates / "key.pem"),
    ]
    file = ["--scheduler-file", str(root / "s.json")]
    module = [sys.executable, "-m", "distributed.cli"]
    dask = [
        f"{module[2]}.dask_scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--protocol",
        "tls",
        "--dashboard-address",
        "127.0.0.1:0",
        *tls,
        *file,
    ]
    work = [
        f"{module[2]}.dask_worker",
        "--nthreads",
        "1",
        "--no-nanny",
        "--no-dashboard",
        "--preload",
        "neurobridge.lab.sweep.worker",
        *tls,
        *file,
    ]
    quiet = {
        "env": kernel_environment(),
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "cwd": root,
    }
    processes = [subprocess.Popen([*module[:2], *command], **quiet) for command in (dask, work)]
    try:
        until = time.monotonic() + 120
        while not (root / "s.json").exists() or not (root / "s.json").stat().st_size:
            assert time.monotonic() < until
            time.sleep(0.05)
        yield read_json(root / "s.json")["address"]
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(60)


@pytest.mark.long
def test_a_scheduler_with_certificates(root, started, certificates):
    files = [certificates / name for name in ("cert.pem", "cert.pem", "key.pem")]
    sweep = make(root, "grid: {n: [1, 2]}", "record({'n': n})")
    assert started.startswith("tls://")
    assert run_sweep(sweep, scheduler=Scheduler(started, *files)).status.tolist() == ["done"] * 2


def test_a_scheduler_with_other_certificates(root, started, certificates):
    from distributed import Security

    other = Security.temporary()
    for name, text in (("cert.pem", other.tls_client_cert), ("key.pem", other.tls_client_key)):
        (certificates / name).write_text(text)
    files = [certificates / name for name in ("cert.pem", "cert.pem", "key.pem")]
    with pytest.raises(
        RunRefused, match="no scheduler answers at .*tls://.*and the certificates of that scheduler"
    ):
        run_sweep(make(root, ""), scheduler=Scheduler(started, *files))


def refused(scheduler):
    with pytest.raises(RunRefused) as error, executor(scheduler, None, Resources(), 1):
        pass
    return str(error.value)


def test_an_open_scheduler_is_taken_only_on_demand(root):
    pytest.importorskip("distributed")
    for scheduler in ("tcp://127.0.0.1:1", "127.0.0.1:1", Scheduler("tcp://127.0.0.1:1")):
        assert "anyone who reaches this port can run code as you" in refused(scheduler)
    for address in ("ws://h:1", "ucx://h:1", "inproc://h"):
        assert "expected tls://host:port" in refused(address)


def test_certificates_are_looked_at_before_anything_is_sent(root, certificates):
    pytest.importorskip("distributed")
    cert, key = certificates / "cert.pem", certificates / "key.pem"
    assert "--tls-ca is missing" in refused("tls://h:1")
    assert "--tls-cert is missing" in refused(Scheduler("tls://h:1", cert))
    assert "--tls-ca is .*nowhere" and "can't be read (No such file" in refused(
        Scheduler("tls://h:1", certificates / "nowhere", cert, key)
    )
    key.chmod(0o640)
    assert "which others can open (mode 0640)" in refused(Scheduler("tls://h:1", cert, cert, key))
    key.chmod(0o600)
    os.mkfifo(certificates / "pipe", 0o600)
    assert "is a named pipe" in refused(Scheduler("tls://h:1", cert, cert, certificates / "pipe"))
    certificates.chmod(0o777)
    assert "others can write to" in refused(Scheduler("tls://h:1", cert, cert, key))


def test_a_key_in_the_certificates_file_is_private_too(root, certificates):
    pytest.importorskip("distributed")
    cert = certificates / "cert.pem"
    cert.write_text(cert.read_text() + (certificates / "key.pem").read_text())
    cert.chmod(0o644)
    assert "--tls-key is" in refused(Scheduler("tls://h:1", cert, cert)) and "0644" in refused(
        Scheduler("tls://h:1", cert, cert)
    )


def shell(capsys, *words):
    with pytest.raises(SystemExit) as end:
        app(list(words), standalone_mode=True)
    out, err = capsys.readouterr()
    return end.value.code, out, err


@pytest.mark.long
def test_the_command_warns_of_an_open_scheduler_in_one_line(root, capsys):
    pytest.importorskip("distributed")
    make(root, "")
    code, _, err = shell(capsys, "sweep", str(root / "s.yaml"), "--scheduler", "tcp://127.0.0.1:1")
    assert code == 2 and "--insecure if only you can reach it" in err
    code, _, err = shell(
        capsys, "sweep", str(root / "s.yaml"), "--scheduler", "tcp://127.0.0.1:1", "--insecure"
    )
    first, second = err.splitlines()
    assert (
        first
        == "neurobridge: tcp://127.0.0.1:1 has no certificates: anyone who reaches this port can run code as you"
        and "no scheduler answers" in second
    )
    for words in (["--insecure"], ["--tls-key", "k"], ["--scheduler", "tls://h:1", "--insecure"]):
        assert shell(capsys, "sweep", str(root / "s.yaml"), *words)[0] == 2


# X1: kernels


def sockets_of(kernel, **settings):
    "Scan a kernel from inside, by the functions of this file."
    here = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_sockets import tcp, unix; import os, json; print(json.dumps([tcp([os.getpid()]), unix([os.getpid()])]))"
    return json.loads(execute(here, kernel=kernel, **settings).splitlines()[-1])


@pytest.mark.long
def test_a_kernel_opens_no_port(kernel):
    ports, names = sockets_of(kernel)
    assert ports == [] and len(names) >= 5 and all(name.startswith("/") for name in names)


def test_the_folder_and_the_connection_file_are_private(kernel):
    look = "import os, sys; file = sys.argv[2]; print([oct(os.stat(path).st_mode & 0o777) for path in (file, os.path.dirname(file))])"
    before = os.umask(0)
    try:
        assert execute(look, kernel=kernel) == "['0o600', '0o700']"
    finally:
        os.umask(before)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["long", "long in bytes", "open to others"])
def test_a_temporary_folder_that_will_not_do(kernel, tmp_path, monkeypatch, kind):
    "The next one is taken, and never a port."
    name = {"long": "x" * 120, "long in bytes": "ü" * 45, "open to others": "x"}[kind]
    (place := tmp_path / name).mkdir()
    place.chmod(0o777 if kind == "open to others" else 0o700)
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.setenv("TMPDIR", str(place))
    ports, names = sockets_of(kernel)
    assert (
        ports == []
        and not any(name.startswith(str(place)) for name in names)
        and not list(place.iterdir())
    )


def test_where_no_folder_will_do_none_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "who_can_change", lambda path: "others can write to it")
    with pytest.raises(
        UnsafeFile,
        match="no folder for the sockets of a kernel: others can write to it; .*set TMPDIR to",
    ):
        engine._socket_folder()


def test_a_runtime_folder_comes_before_tmp(tmp_path, monkeypatch):
    (long := tmp_path / ("x" * 120)).mkdir()
    short = Path(
        subprocess.run(
            ["mktemp", "-d", "/tmp/nb-test.XXXXXX"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    monkeypatch.setattr("tempfile.tempdir", str(long))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    try:
        assert Path(engine._socket_folder()).parent == short
    finally:
        shutil.rmtree(short)


def test_a_fork_of_a_page_prints_through_the_folder(kernel):
    said = execute(
        "import os\nif (child := os.fork()) == 0:\n    print('from a fork', flush=True)\n    "
        "os._exit(0)\nos.waitpid(child, 0)\nprint('end')",
        kernel=kernel,
    )
    assert "from a fork" in said and "end" in said  # which are two messages of two processes


def test_the_kernels_of_make_lab_use_no_port(tmp_path, monkeypatch):
    pytest.importorskip("jupyterlab")
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = (
        f"--no-browser --allow-root --ip=127.0.0.1 --port={port} --IdentityProvider.token=secret"
    )
    command = [
        "make",
        "-o",
        ".venv/.ready",
        "lab",
        f"BIN={Path(sys.executable).parent}",
        f"LAB_ARGS={options}",
    ]
    env = {
        **os.environ,
        "JUPYTER_CONFIG_DIR": str(tmp_path),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "TMPDIR": str(tmp_path),
    }
    lab = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until, names = time.monotonic() + 120, []
        while len(names) < 5:
            assert lab.poll() is None and time.monotonic() < until
            with contextlib.suppress(OSError):
                ask = urllib.request.Request(
                    f"http://127.0.0.1:{port}/api/kernels",
                    headers={"Authorization": "token secret"},
                    method="GET" if names else "POST",
                    data=None if names else b"{}",
                )
                names = names or [json.load(urllib.request.urlopen(ask, timeout=60))["id"]]
            pids = family(lab.pid)
            kernels = [pid for pid in pids if "ipykernel_launcher" in command_of(pid)]
            names = names[:1] + unix(kernels)
            time.sleep(0.1)
        assert private(names[1:]) and not [
            place for place in tcp(kernels) if place[0] != "127.0.0.1"
        ]
        connection = json.loads(next(Path(names[1]).parent.glob("kernel-*.json")).read_text())
        assert connection["transport"] == "ipc"
        folder = Path(names[1]).parent
    finally:
        os.killpg(lab.pid, signal.SIGTERM)
        lab.wait(60)
    while folder.exists():
        assert time.monotonic() < until
        time.sleep(0.05)


# X6: the current folder


def plant(folder, *names):
    for name in names:
        (folder / f"{name}.py").write_text(
            f"open({str(folder / f'hit-{name}')!r}, 'w').close()\nraise ImportError('planted')"
        )


PLANTED = (
    "ipykernel_launcher",
    "ipykernel",
    "json",
    "IPython",
    "zmq",
    "traitlets",
    "storemagic",
    "matplotlib_inline",
    "comm",
    "debugpy",
    "sitecustomize",
    "ipython_config",
    "multiprocessing",
    "random",
)


def test_modules_beside_a_page_do_not_run_before_it(kernel, tmp_path):
    plant(tmp_path, *PLANTED)
    (tmp_path / "helper.py").write_text("ANSWER = 42")
    assert (
        execute(
            "import os; print([name for name in os.listdir() if name.startswith('hit')])",
            "import helper; print(helper.ANSWER)",
            kernel=kernel,
            workdir=tmp_path,
        )
        == "[]\n42"
    )


def test_a_folder_to_which_a_page_changes_is_not_imported_from(kernel, tmp_path):
    (own := tmp_path / "own").mkdir()
    (theirs := tmp_path / "theirs").mkdir()
    (own / "helper.py").write_text("ANSWER = 42")
    plant(theirs, "planted")
    said = execute(
        f"import os; os.chdir({str(theirs)!r})",
        "try: import planted\nexcept ModuleNotFoundError: print('none')",
        "import helper; print(helper.ANSWER)",
        kernel=kernel,
        workdir=own,
    )
    assert said == "none\n42" and not (theirs / "hit-planted").exists()


@pytest.mark.long
def test_workers_import_nothing_from_the_folder_of_the_command(root, tmp_path):
    (hostile := tmp_path / "hostile").mkdir()
    plant(hostile, *PLANTED, "neurobridge", "dask", "distributed")
    with while_it_runs(root, cwd=hostile):
        pass
    assert not list(hostile.glob("hit-*"))


@pytest.mark.long
def test_jobs_import_nothing_from_the_folder_of_the_command(root, batch_system, tmp_path):
    plant(batch_system.parent / "bin", "unused")  # not on any path
    (hostile := tmp_path / "hostile").mkdir()
    plant(hostile, *PLANTED, "click", "tornado")
    sbatch = root / "bin" / "sbatch"
    sbatch.write_text(
        sbatch.read_text().replace(
            "(exec sh ../script.$id)", f"(cd {hostile}; exec sh {root}/script.$id)"
        )
    )
    with while_it_runs(root, "'slurm:queue=x'", cwd=hostile):
        pass
    assert not list(hostile.glob("hit-*"))


# X16: environments

HUGE = {f"MODULE_{number}": "x" * 60_000 for number in range(4)}


@pytest.mark.long
@pytest.mark.parametrize("env", [{"PYTHONSAFEPATH": "1"}, HUGE, HUGE | {f"MORE_{n}": "y" * 100_000 for n in range(10)}, {"PYTHONPATH": f"::{ROOT}:"}, {"LC_ALL": "C", "ODD": os.fsdecode(b"\xff\xfe")},
                                 {"PYTHONUTF8": "0", "LANG": ""}, {"PYTHONOPTIMIZE": "1", "PYTHONDONTWRITEBYTECODE": "1"}, {"PYTHONNOUSERSITE": "1", "HOME": "/nonexistent"}],
                         ids=["safe path", "240 kB", "1.2 MB", "empty entries", "no text", "no locale", "optimised", "no home"])  # fmt: skip
def test_sweeps_in_odd_environments(root, monkeypatch, env):
    (root / "helper.py").write_text("ANSWER = 42")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    sweep = make(
        root,
        "",
        f"import helper\nassert {dict(list(env.items())[:4])!r}.items() <= dict(os.environ, "
        f"PYTHONPATH=os.environ['PYTHONPATH'] if {'PYTHONPATH' not in env} else "
        f"{env.get('PYTHONPATH')!r}).items()\nrecord({{'n': helper.ANSWER}})",
    )
    table = run_sweep(sweep, workers=1)
    assert table.status.tolist() == ["done"], table.error.tolist()


# X12: the output of a page


BIG = 200_000_000
FLOODS = {
    "at once": f"print('x' * {BIG})",
    "in a loop": f"for _ in range({BIG // 10**6}): print('x' * 10**6)",
    "in small pieces": "for _ in range(60_000): print('x', flush=True)",
    "displayed": f"from IPython.display import HTML, display\nfor _ in range(10): display(HTML('x' * {BIG // 10}))",
    "as a result": f"'x' * {BIG}",
    "past Python": f"import os\nfor _ in range({BIG // 10**6}): os.write(1, b'x' * 10**6)",
    "by an error": f"raise ValueError('x' * {BIG // 4})",
}
MEASURE = """
import json, sys
from pathlib import Path
from neurobridge.lab import RunFailed, run_notebook
try: run = run_notebook(sys.argv[1])
except RunFailed as error: run = error.run
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([peak / 1e3, run.record["output_cut"], run.notebook.stat().st_size / 1e6, (run.folder / "run.json").stat().st_size / 1e6]))
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", FLOODS)
def test_a_flood_of_output_costs_no_memory_outside_the_kernel(root, kind):
    make(root, "", FLOODS[kind], "print('the end')")
    env = kernel_environment() | {"NEUROBRIDGE_MAX_OUTPUTS": "10000000"}
    env.pop(
        "PYTEST_CURRENT_TEST", None
    )  # with it ipykernel does not watch what is printed past Python
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(root / "p.ipynb")],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    peak, cut, notebook, record = json.loads(done.stdout.splitlines()[-1])
    print(kind, peak, cut, notebook, record)
    assert peak < 500 and notebook < 25 and record < 1, (peak, notebook, record)
    if kind != "by an error":
        (run,) = (root / "runs" / "p").iterdir()
        text = (run / "notebook.ipynb").read_text()
        assert cut and "output left out: a page may print 10,000,000 bytes" in text


def test_a_page_within_the_budget_loses_nothing(root, kernel):
    assert len(execute("print('x' * 10**6)", kernel=kernel)) == 10**6
    make(root, "", "print('x' * 10**6)")
    assert run_notebook(root / "p.ipynb").record["output_cut"] is False


def test_the_budget_is_of_the_page_and_each_cell_says_so_once(root, monkeypatch, kernel):
    monkeypatch.setenv("NEUROBRIDGE_MAX_OUTPUTS", "20000")
    said = execute(
        "print('a' * 12000)",
        "print('b' * 12000, flush=True); print('c' * 12000, flush=True)",
        "print('d' * 12000)",
        "print('e')",
        kernel=kernel,
    )
    assert (
        said.count("output left out") == 2
        and "a" * 12000 in said
        and "b" * 500 not in said
        and said.endswith("e")
    )


@pytest.mark.parametrize("wrong", ["0", "-1", "1e9", "2GB", "²"])
def test_a_wrong_budget_is_named_before_anything_is_made(root, monkeypatch, wrong):
    monkeypatch.setenv("NEUROBRIDGE_MAX_OUTPUTS", wrong)
    make(root, "")
    with pytest.raises(RunRefused, match="NEUROBRIDGE_MAX_OUTPUTS is"):
        run_notebook(root / "p.ipynb")
    assert not (root / "runs").exists()
    with pytest.raises(ValueError, match="expected a whole number of bytes"):
        output_budget()
