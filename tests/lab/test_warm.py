"Forked kernels: each as fresh as a new Python, whatever the one before it did; and none left behind."

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell, new_notebook

from neurobridge.lab.run.engine import KernelSettings, PageEngine, kernel_environment
from neurobridge.lab.run.kernel_server import KernelServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")
LIGHT = ("ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.debugger", "numpy")


@pytest.fixture(scope="module")
def server():
    server = KernelServer({"OMP_NUM_THREADS": "1"}, LIGHT)
    yield server
    server.close()


def execute(server, *cells, tmp=None, **settings):
    "Run cells in a forked kernel; give what the last printed, or the failure."
    nb, told = new_notebook(cells=[new_code_cell(cell) for cell in cells]), []
    nb.metadata["papermill"] = {}
    nb = PageEngine.execute_notebook(
        nb,
        workdir=tmp,
        on_failure=told.append,
        kernel=KernelSettings(start=server.start, **settings),
    )
    return told[0] if told else nb.cells[-1].outputs[0]["text"].strip()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_run_does_not_touch_the_next(server, tmp_path):
    "A global, a directory, an environment variable, a module's state, seeds, a thread, a handler of signals, and a leak."
    spoil = """import builtins, os, random, signal, sys, threading, time, numpy, json
builtins.left = json.left = left = 1
os.environ['LEFT'] = '1'; os.chdir('/'); os.umask(0o777); sys.path.insert(0, '/left'); sys.setrecursionlimit(500)
random.seed(0); numpy.random.seed(0); signal.signal(signal.SIGUSR1, lambda *_: None)
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
leak = numpy.ones(2 * 10**7)
print(os.getpid())"""
    look = """import builtins, os, random, resource, signal, sys, threading, numpy, json
print((hasattr(builtins, 'left'), hasattr(json, 'left'), 'left' in globals(), 'LEFT' in os.environ, os.getcwd(), os.umask(0o22), '/left' in sys.path, sys.getrecursionlimit() == 500,
       signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000 < 250, os.getpid(), random.random(), numpy.random.rand()))"""
    first, spoilt, second = (
        eval(execute(server, look, tmp=tmp_path)),
        execute(server, spoil, tmp=tmp_path),
        eval(execute(server, look, tmp=tmp_path)),
    )
    assert first[:10] == second[:10] and first[4] == str(tmp_path) and first[8] and first[9]
    assert not any(first[:4]) and len({first[10], second[10], int(spoilt)}) == 3
    assert first[11] != second[11] and first[12] != second[12], (
        "each run draws its own numbers, as a new Python does"
    )


def test_forked_and_new_kernels_look_the_same(server, tmp_path):
    "What a page can see of its process: files, folder, arguments, signals, environment, session."
    look = """import os, signal, sys
import neurobridge.core.paths
print((sys.argv[0].endswith('ipykernel_launcher.py') or sys.argv[0], os.getcwd(), sorted(p for p in sys.path), os.getpgid(0) == os.getpid(), __name__, sys.stdin.closed, os.isatty(0),
       signal.getsignal(signal.SIGCHLD), neurobridge.__file__, sorted(k for k in os.environ if not k.startswith(('JPY', 'MPL'))), os.environ['WORD']))"""
    nb = new_notebook(cells=[new_code_cell(look)])
    nb.metadata["papermill"] = {}
    new = eval(
        PageEngine.execute_notebook(nb, workdir=tmp_path, kernel=KernelSettings({"WORD": "x"}))
        .cells[0]
        .outputs[0]["text"]
        .replace("<Handlers.SIG_DFL: 0>", "0")
    )
    forked = eval(
        execute(server, look, tmp=tmp_path, env={"WORD": "x"}).replace("<Handlers.SIG_DFL: 0>", "0")
    )
    assert forked[1:2] + forked[3:] == new[1:2] + new[3:]
    assert set(new[2]) - set(forked[2]) == set()


def test_ends_are_told_as_for_new_kernels(server):
    assert execute(server, "1 / 0")["ename"] == "ZeroDivisionError"
    assert "SIGKILL" in execute(server, "import os\nos.kill(os.getpid(), 9)")["evalue"]
    assert "SIGSEGV" in execute(server, "import ctypes\nctypes.string_at(0)")["evalue"]
    assert "exit code 7" in execute(server, "import os\nos._exit(7)")["evalue"]
    assert execute(server, "x = bytearray(10**9)", memory=6 * 10**8)["ename"] == "MemoryError"
    assert execute(server, "print(1)") == "1", "and the server is none the worse for it"


@pytest.mark.parametrize("forked", [True, False])
def test_what_a_page_leaves_for_the_end_is_done(server, tmp_path, forked):
    "Threads are waited for, exit handlers called, files left open written: by a forked kernel as by a new one."
    cell = """import atexit, threading, time
left = open('left', 'w'); left.write('x')
cycle = [open('cycle', 'w')]; cycle.append(cycle); cycle[0].write('x')
atexit.register(lambda: open('handler', 'w').write('x'))
threading.Thread(target=lambda: (time.sleep(0.5), open('thread', 'w').write('x'))).start()"""
    nb = new_notebook(cells=[new_code_cell(cell)])
    nb.metadata["papermill"] = {}
    PageEngine.execute_notebook(
        nb, workdir=tmp_path, kernel=KernelSettings(start=server.start) if forked else None
    )
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys(
        ("left", "cycle", "handler", "thread"), "x"
    )


@pytest.mark.long
def test_no_files_and_no_processes_are_left(server):
    held = lambda pid: len(os.listdir(f"/proc/{pid}/fd"))  # noqa: E731
    execute(server, "print(1)")
    before = held(os.getpid()), held(server.process.pid)
    kernel, child = execute(
        server,
        "import os, subprocess",
        "print(os.getpid(), subprocess.Popen(['sleep', '1000']).pid)",
    ).split()
    for _ in range(3):
        execute(server, "print(1)")
    until = time.monotonic() + 30
    while (alive(kernel) or alive(child)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(kernel) and not alive(child)
    assert held(os.getpid()) <= before[0] + 1 and held(server.process.pid) <= before[1]


def test_a_killed_worker_takes_server_and_kernel_along(tmp_path):
    "The worker is killed while its forked kernel works: kernel, the kernel's child and server end."
    code = f"""
from nbformat.v4 import new_code_cell, new_notebook
from neurobridge.lab.run.engine import KernelSettings, PageEngine
from neurobridge.lab.run.kernel_server import KernelServer
server = KernelServer(modules={LIGHT!r})
nb = new_notebook(cells=[new_code_cell("import os, subprocess, time\\nopen('pids', 'w').write(f'{{os.getpid()}} {{subprocess.Popen([\\"sleep\\", \\"1000\\"]).pid}} ')\\nos.rename('pids', 'up')\\ntime.sleep(1000)")])
nb.metadata['papermill'] = {{}}
print(server.process.pid, flush=True)
PageEngine.execute_notebook(nb, workdir={str(tmp_path)!r}, kernel=KernelSettings(start=server.start))
"""
    worker = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=kernel_environment()
    )
    pids = [worker.stdout.readline().strip()]
    until = time.monotonic() + 120
    while not (tmp_path / "up").exists():
        assert worker.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    pids += (tmp_path / "up").read_text().split()
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_a_server_ends_with_its_worker_in_the_middle_of_its_imports(tmp_path):
    (tmp_path / "slow_import.py").write_text(
        f"import time\nopen({str(tmp_path / 'begun')!r}, 'w').close()\ntime.sleep(300)"
    )
    server = KernelServer({"PYTHONPATH": str(tmp_path)}, ["slow_import"])
    until = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert server.process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    server._channel.close()  # as the system does when the worker is killed
    assert server.process.wait(30) == 0


def test_a_dead_server_says_so(tmp_path):
    server = KernelServer(modules=LIGHT)
    server.process.kill()
    server.process.wait()
    with pytest.raises(OSError):
        execute(server, "print(1)")
