"The real site, built once for all tests of this folder."

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
def browse(browse):
    "As `browse` of all tests, with the page parsed."

    def opened(address, patience=10):
        page, log = browse(address, patience)
        return BeautifulSoup(page, "html.parser"), log

    return opened
