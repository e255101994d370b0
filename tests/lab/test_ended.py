"Commands that are ended before they are through: Ctrl-C, SIGTERM, SIGHUP, a closed window."

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook

from neurobridge.core.files import read_json
from neurobridge.lab import load_runs, run_notebook
from neurobridge.lab.run import execute

PAGE = """import os, time
from neurobridge.lab import record, run_dir
at = run_dir() / 'at.txt'
resumed = at.exists()
at.write_text(str(os.getpid()))
if not resumed: time.sleep(1000)
record({'resumed': float(resumed)})"""


def hear():
    "Ignore no signal that ends a command: the tests themselves may run under `nohup`."
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def begin(root, *words, **settings):
    "Start a command in a session of its own."
    return subprocess.Popen(
        [sys.executable, "-m", "neurobridge", *map(str, words)],
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear,
        **settings,
    )


def wait_for(what, process=None, seconds=120):
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "it did not come to that"
        assert process is None or process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    return found


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return "Z" not in file.read().rpartition(")")[2][:3]
    except OSError:
        return False


@pytest.mark.long
@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_run_that_is_ended_says_by_what_and_how_to_go_on(root, sent):
    write(new_notebook(cells=[new_code_cell(PAGE)]), root / "p.ipynb")
    command = begin(root, "run", "p.ipynb")
    (at,) = wait_for(lambda: list((root / "runs").glob("p/*/at.txt")), command)
    kernel = int(wait_for(at.read_text, command))
    number = getattr(signal, sent)
    command.send_signal(number)
    _, said = command.communicate(timeout=60)
    how = "interrupted" if sent == "SIGINT" else f"ended by {sent}"
    assert command.returncode == 128 + number, said
    assert said == (
        f"neurobridge: {how}; the same command goes on where the page saved itself last\n"
    )
    wait_for(lambda: not alive(kernel), seconds=20)
    assert load_runs()["status"].tolist() == ["stopped"]
    assert run_notebook(root / "p.ipynb").metrics == {"resumed": 1.0}


def test_sighup_stays_ignored_where_it_is():
    code = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from neurobridge.lab.cli import _ended_by_signals\n"
        "with _ended_by_signals(): os.kill(os.getpid(), signal.SIGHUP); print('lives')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.stdout == "lives\n", ran.stderr


def test_a_window_that_is_closed_ends_its_command_and_the_kernel(root):
    "Nothing can be printed any more, and that is no other error."
    write(new_notebook(cells=[new_code_cell(PAGE)]), root / "p.ipynb")
    ours, theirs = pty.openpty()
    code = (
        "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "from neurobridge.__main__ import main; sys.argv[1:] = ['run', 'p.ipynb']; main()"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=root,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=hear,
    )
    os.close(theirs)
    os.set_blocking(ours, False)

    def begun():
        with contextlib.suppress(BlockingIOError):
            os.read(ours, 65536)  # a terminal that nobody empties holds its programs up
        return list((root / "runs").glob("p/*/at.txt"))

    (at,) = wait_for(begun)
    kernel = int(wait_for(at.read_text))
    os.close(ours)
    assert command.wait(60) == 128 + signal.SIGHUP
    wait_for(lambda: not alive(kernel), seconds=20)
    assert load_runs()["status"].tolist() == ["stopped"]


def test_only_what_goes_on_says_so(root):
    "`table` keeps nothing, so the same command goes on nowhere."
    code = (
        "import os, signal\nfrom neurobridge.lab import cli\n"
        "cli._chosen = lambda *_: os.kill(os.getpid(), signal.SIGINT)\ncli.app(['table'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (130, "neurobridge: interrupted\n")


def test_ctrl_c_during_the_imports_is_no_traceback(root):
    (root / "typer.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    command = begin(root, "table", env={**os.environ, "PYTHONPATH": str(root)})
    _, said = command.communicate(timeout=60)
    assert (command.returncode, said) == (130, "neurobridge: interrupted\n")


def test_a_run_that_is_ended_while_its_report_is_drawn_stays_done(root, monkeypatch):
    "What a page has found in hours is not lost to the seconds after it."
    source = "from neurobridge.lab import record; record({'y': 1})"
    write(new_notebook(cells=[new_code_cell(source)]), root / "p.ipynb")

    def interrupted(*_):
        raise KeyboardInterrupt

    drawn = execute._report
    monkeypatch.setattr(execute, "_report", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_notebook(root / "p.ipynb")
    (folder,) = (root / "runs" / "p").iterdir()
    left = read_json(folder / "run.json")
    assert (left["status"], left["metrics"]) == ("done", {"y": 1})
    assert "the same command writes it" in left["report"]
    monkeypatch.setattr(execute, "_report", drawn)
    again = run_notebook(root / "p.ipynb")
    assert not again.fresh and again.report and again.record["report"] == "report.html"
