"What several test files share."

import shutil
import subprocess

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
