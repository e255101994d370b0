"The tutorials: in order, three exercises each, found from the front page; run by papermill with data and without."

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from neurobridge.core.paths import project_root

ROOT = project_root()
TUTORIALS = sorted((ROOT / "nbs" / "tutorials").glob("*.ipynb"))
NAMES = [page.name for page in TUTORIALS]
PAPERS = ("2203.01158", "1909.06161", "2508.14140")


def cells_of(page: Path) -> list[dict]:
    return json.loads(page.read_text(encoding="utf-8"))["cells"]


def text(cell: dict) -> str:
    return "".join(cell["source"])


def exercises(cells: list[dict]) -> list[list[dict]]:
    "The cells of each exercise: question with answer in words, then code."
    starts = [i for i, cell in enumerate(cells) if text(cell) == "## Exercises"]
    assert len(starts) == 1, "one section of exercises"
    found: list[list[dict]] = []
    for cell in cells[starts[0] + 1 :]:
        if text(cell).startswith("## "):
            break
        if cell["cell_type"] == "markdown":
            found.append([])
        found[-1].append(cell)
    return found


def test_numbers_without_gaps_in_the_order_of_the_sidebar():
    assert [name[:3] for name in NAMES] == [f"{n:02d}_" for n in range(1, len(NAMES) + 1)]
    sidebar = yaml.safe_load((ROOT / "_quarto.yml").read_text())["website"]["sidebar"]["contents"]
    (listed,) = [part["contents"] for part in sidebar if part.get("section") == "Tutorials"]
    assert listed == [f"tutorials/{name}" for name in NAMES]


@pytest.mark.parametrize("page", TUTORIALS, ids=NAMES)
def test_three_exercises_with_answers_folded_and_run(page):
    found = exercises(cells_of(page))
    assert len(found) == 3
    for number, (question, *answer) in enumerate(found, 1):
        words = text(question)
        assert re.match(rf"\*\*{number}\. [^*]+\*\* ", words)
        assert "<details><summary>Answer</summary>" in words and "TODO" not in words
        assert answer and all(cell["cell_type"] == "code" for cell in answer)
        for cell in answer:
            assert text(cell).startswith("#| code-fold: true\n"), "an answer is folded"
            assert "#| classes: answer\n" in text(cell), "with what it shows (styles.css)"
            assert cell["outputs"], "an answer was run, and shows something"


def test_the_front_page_leads_to_every_tutorial_and_every_paper_to_one():
    cells = [text(cell) for cell in cells_of(ROOT / "nbs" / "index.ipynb")]
    (doors,) = [cell for cell in cells if cell.startswith("- **Read.**")]
    read = doors.splitlines()[0]
    assert re.findall(r"\(tutorials/([^)]+)\)", read) == NAMES[:1], "the door is the first one"
    numbers = ("One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")
    assert f"{numbers[len(NAMES) - 1]} [tutorials]" in read
    (after,) = [cell for cell in cells if "The tutorials, in order: " in cell]
    assert cells.index(after) == cells.index(doors) + 1, "all of them are right below the doors"
    (listed,) = re.findall(r"The tutorials, in order: (.*?)\.(?= |$)", after)
    assert re.findall(r"\(tutorials/([^)]+)\)", listed) == NAMES
    (table,) = [cell for cell in cells if cell.startswith("| your paper |")]
    bibliography = "".join(text(cell) for cell in cells_of(ROOT / "nbs" / "bibliography.ipynb"))
    rows = [line for line in table.splitlines()[2:] if line.startswith("|")]
    assert len(rows) == len(PAPERS)
    for row, arxiv in zip(rows, PAPERS, strict=True):
        (entry,) = re.findall(rf"\*\*([^*]+\d{{4}})\.\*\*[^\n]*{arxiv}", bibliography)
        assert entry in row and arxiv in "".join(cells), "the paper of the row"
        links = re.findall(r"\]\(([^)]+)\)", row)
        assert all((ROOT / "nbs" / link).exists() for link in links)
        assert any(link.startswith("tutorials/") for link in links)
        assert any(link.startswith("experiments/") for link in links)


def executed(page: Path, folder: Path, data: str) -> list[dict]:
    "Run a page by plain papermill, from another folder; return its cells."
    out = folder / page.name
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run(
        [sys.executable, "-m", "papermill", "--no-progress-bar", str(page), str(out)],
        cwd=folder,
        env=os.environ | {"NEUROBRIDGE_DATA": data, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 120, f"{spent:.0f} core-seconds; a tutorial takes a minute on two cores at most"
    return cells_of(out)


@pytest.mark.long
@pytest.mark.parametrize("page", TUTORIALS, ids=NAMES)
def test_papermill_runs_a_tutorial_without_any_data(page, tmp_path):
    (tmp_path / "no_data").mkdir()
    cells = executed(page, tmp_path, str(tmp_path / "no_data"))
    code = [cell for cell in cells if cell["cell_type"] == "code" and text(cell).strip()]
    assert all(cell["execution_count"] for cell in code)
    warnings = [o for cell in code for o in cell["outputs"] if o.get("name") == "stderr"]
    assert not warnings, warnings[0]["text"]


@pytest.mark.long
@pytest.mark.data
@pytest.mark.parametrize(
    "page",
    [page for page in TUTORIALS if "load_v4" in page.read_text()],
    ids=lambda page: page.name,
)
def test_papermill_runs_a_tutorial_with_the_recording(page, tmp_path):
    data = os.environ.get("NEUROBRIDGE_DATA")
    if not data or not (Path(data) / "macaque_v4_210325").is_dir():
        pytest.skip("NEUROBRIDGE_DATA with macaque_v4_210325 is needed (data/README.md)")
    cells = executed(page, tmp_path, data)
    shown = json.dumps([cell.get("outputs", []) for cell in cells])
    assert "macaque V4, session 210325" in shown
