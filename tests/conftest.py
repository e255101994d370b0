"What several test files share."

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile(
    "same", derandomize=True, deadline=None
)  # one commit, one verdict, on a busy machine too
settings.register_profile(
    "default", deadline=None
)  # `pytest --hypothesis-profile=default` draws anew
settings.load_profile("same")


@pytest.fixture(scope="module")
def one_thread():
    "Small tensors are fastest on one thread, and sums then have one order."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def same_numbers():
    "The same random numbers in every run, and none taken from other tests."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.fixture(scope="session")
def launch():
    "Run a script in two processes, in a folder and without the launchers' settings; give its output."

    def run(folder, script, *words, by=TORCHRUN, **settings):
        (folder / "script.py").write_text(script)
        own = ("ACCELERATE_", "MASTER_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        ended = subprocess.run(
            [sys.executable, "-m", *by, "script.py", *words],
            cwd=folder,
            env=clean | {"OMP_NUM_THREADS": "1"} | settings,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        return ended.stdout

    return run


@pytest.fixture(scope="session")
def found_by_two(launch, tmp_path_factory):
    "Run a script in two processes; return what each has saved as `found` and its rank."

    def run(script, test_file):  # whose folder the script imports from
        folder = tmp_path_factory.mktemp("two")
        launch(folder, script, str(Path(test_file).parent))
        return [torch.load(folder / f"found{rank}", weights_only=False) for rank in range(2)]

    return run


@pytest.fixture(scope="session")
def browse(tmp_path_factory):
    "Open an address in a browser without a screen; give its page and what it wrote into its log."
    browser = next(
        filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
    )
    if not browser:
        pytest.skip("no Chromium on the PATH (chromium, chromium-browser or google-chrome)")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
    ]
    flags += [
        "--enable-logging=stderr",
        "--window-size=1300,1000",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ]

    def opened(address, patience=10):
        shown = subprocess.run(
            [browser, *flags, f"--virtual-time-budget={1000 * patience}", "--dump-dom", address],
            capture_output=True,
            text=True,
            timeout=300,
        )
        return shown.stdout, shown.stderr

    return opened
