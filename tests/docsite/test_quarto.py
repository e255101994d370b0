"""What a real Quarto is given, and what `make quarto` leaves behind: a stub named quarto takes its place."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from neurobridge.core import project_root

ROOT = project_root()
STUB = """#!/bin/sh
[ "$1" = render ] || exit 0
mkdir -p _docs index_files
echo '<html></html>' > _docs/index.html
cp -R . "$QUARTO_WAS_GIVEN"
"""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not (shutil.which("git") and shutil.which("make")), reason="needs git and make"
    ),
]
pytest.importorskip("nbdev", reason="needs the docs extra")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    "A copy of the checkout after `make quarto`, and the pages that Quarto was given."
    place = tmp_path_factory.mktemp("quarto")
    checkout, given, programs = place / "checkout", place / "given", place / "bin"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().strip("\0").split("\0"):
        if (ROOT / name).exists():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name, follow_symlinks=False)
    given.mkdir()
    programs.mkdir()
    (programs / "quarto").write_text(STUB)
    (programs / "quarto").chmod(0o755)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], cwd=checkout, check=True)
    os.utime(checkout / "README.md", (0, 0))  # older than the front page, as after some clones
    env = os.environ | {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "QUARTO_WAS_GIVEN": str(given),
    }
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / ".ready").touch()
    command = ["make", "-o", ".venv/.ready", f"BIN={Path(sys.executable).parent}", "quarto"]
    ran = subprocess.run(
        command, cwd=checkout, env=env, capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    return checkout, {
        page.relative_to(given).as_posix(): json.loads(page.read_text(encoding="utf-8"))["cells"]
        for page in given.rglob("*.ipynb")
    }


def test_the_tree_is_clean_afterwards(rendered):
    left = subprocess.run(
        ["git", "status", "--porcelain"], cwd=rendered[0], capture_output=True, text=True
    )
    assert left.stdout == ""
    assert (rendered[0] / "_docs" / "index.html").exists()
    assert not (rendered[0] / "nbs" / "nbdev.yml").exists()


def test_each_figure_has_its_text_and_each_card_its_frame(rendered):
    figures = cards = 0
    for page, cells in rendered[1].items():
        for cell in cells:
            if cell["cell_type"] != "code":
                continue
            source = "".join(cell["source"])
            kinds = {kind for output in cell["outputs"] for kind in output.get("data", {})}
            if "image/png" in kinds:
                figures += 1
                assert re.search(r"^#\| fig-(alt|cap): \S", source, re.MULTILINE), (page, source)
            if re.search(r"^show_doc\(", source, re.MULTILINE):
                cards += 1
                assert "#| classes: api" in source, (page, source)
            for output in cell["outputs"]:
                assert "<table" not in "".join(output.get("data", {}).get("text/html", "")), page
    assert figures > 100 and cards > 3


def test_nothing_is_asked_of_the_network():
    settings = (ROOT / "_quarto.yml").read_text(encoding="utf-8")
    assert "commonmark" not in settings and "favicon: site.svg" in settings
    assert "$web-font-path: false" in (ROOT / "nbs" / "theme.scss").read_text(encoding="utf-8")
    assert settings.count("theme.scss") == 2
