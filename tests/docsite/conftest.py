"The real site, built once for all tests of this folder."

import shutil
import subprocess

import pytest

pytest.importorskip(
    "nbdev", reason="the site is built with the docs extra: pip install -e '.[docs]'"
)
from bs4 import BeautifulSoup  # noqa: E402  (part of the docs extra too)

from docsite.build import build_site  # noqa: E402


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The folder of the site."
    return build_site(tmp_path_factory.mktemp("site") / "docs")


@pytest.fixture(scope="session")
def soups(site):
    "Each page of the site, parsed, by its address."
    return {
        path.relative_to(site).as_posix(): BeautifulSoup(
            path.read_text(encoding="utf-8"), "html.parser"
        )
        for path in site.rglob("*.html")
    }


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
        return BeautifulSoup(shown.stdout, "html.parser"), shown.stderr

    return opened
