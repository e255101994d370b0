"What the tests of the lab share."

import contextlib
import os
import pty
import subprocess
import sys

import pytest

from neurobridge.lab import RunRefused

QUICK = "ipykernel.kernelapp ipykernel.ipkernel"  # what kernels load beforehand: nothing of torch


@pytest.fixture
def root(tmp_path, monkeypatch):
    "A folder with a runs folder of its own, outside of any run."
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("NEUROBRIDGE_PRELOAD", QUICK)
    monkeypatch.delenv("NEUROBRIDGE_RUN", raising=False)
    return tmp_path


@pytest.fixture
def refused_at():
    "Check that a sweep file is refused by its line, and before anything is written."

    def check(read, root, text, line, said):
        with pytest.raises(RunRefused) as refused:
            read(root, text)
        message = str(refused.value)
        assert f"s.yaml, line {line}: " in message and said in message, message
        assert not (root / "runs").exists()

    return check


@pytest.fixture
def on_a_terminal():
    "Run the command line; give its exit code, its output if that is piped, and what the terminal showed."

    def run(words, cwd, piped=False, columns=100):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-c", "from neurobridge.lab.cli import app; app()", *map(str, words)],
            cwd=cwd,
            stdout=subprocess.PIPE if piped else theirs,
            stderr=theirs,
            text=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": "24"},
        )
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the end of what a closed terminal holds
            while piece := os.read(ours, 65536):
                shown += piece
        os.close(ours)
        out, _ = process.communicate(timeout=60)
        return process.returncode, out, shown.decode(errors="replace")

    return run
