"""Progress bars: one display for each cell, which is hidden at the end, whatever happens; nothing where nobody looks."""

from types import SimpleNamespace

import pytest

from neurobridge.core import progress
from neurobridge.core.progress import MARK, progress_bar
from neurobridge.lab.sweep import driver


@pytest.fixture
def cell(monkeypatch):
    "A notebook's kernel: `cell.name` is the running cell, `cell.shown` what is published."
    found = SimpleNamespace(name="first", shown=[])
    kernel = SimpleNamespace(get_parent=lambda channel: {"header": {"msg_id": found.name}})
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=kernel))
    monkeypatch.setattr(progress, "_LAST", [])

    def display(data, metadata, display_id, update, raw):
        assert raw and metadata == MARK
        found.shown.append((display_id, update, data["text/plain"], data["text/html"]))

    monkeypatch.setattr("IPython.display.display", display)
    return found


def test_a_cell_has_one_display_and_the_next_cell_another(cell):
    for name in ("first", "first", "second"):
        cell.name = name
        with progress_bar("a", 2) as move, progress_bar("b", 2):
            move(1)
    names = [name for name, *_ in cell.shown]
    assert len(set(names)) == 2
    assert [update for _, update, *_ in cell.shown].count(False) == 2
    assert cell.shown[-1][2:] == ("", progress._HIDDEN)


def test_an_error_leaves_nothing_behind(cell):
    with pytest.raises(RuntimeError, match="stop"), progress_bar("a", 2):
        raise RuntimeError("stop")
    assert cell.shown[0][2].startswith("a · 0% · 0:00") and cell.shown[-1][2] == ""


def test_words_are_no_markup(cell):
    with progress_bar("<script>alert(1)</script>", 2):
        pass
    assert "<script>" not in cell.shown[0][3] and "&lt;script&gt;" in cell.shown[0][3]


def test_moves_come_ten_times_a_second_at_most(cell, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS", 60.0)
    with progress_bar("a", 1000) as move:
        for step in range(1000):
            move(step)
    assert len(cell.shown) == 2  # the first and the last


def test_shares_outside_of_0_to_1_and_an_empty_total(cell, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    for total, done, share in ((2, 3, "100%"), (2, -1, "0%"), (0, 0, "100%")):
        with progress_bar("a", total) as move:
            move(done)
        assert f" · {share} · " in cell.shown[-2][2]


def test_a_sweep_shows_its_runs_unless_the_caller_is_told(cell, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    monkeypatch.setattr(driver, "show_progress", lambda wanted: True)
    counts = {"waiting": 1, "running": 2, "done": 3, "failed": 0}
    with driver._telling(None, "walks", 6) as tell:
        tell(counts, "")
    words = [text for _, _, text, _ in cell.shown]
    assert words[0].startswith("walks, 6 runs · 0%") and words[-1] == ""
    assert words[1].startswith("walks: 1 waiting, 2 running, 3 done · 50%")
    cell.shown.clear()
    told = []
    with driver._telling(lambda *news: told.append(news), "walks", 6) as tell:
        tell(counts, "news")
    with driver._telling(None, "walks", 0) as tell:
        tell(counts, "")
    assert told == [(counts, "news")] and cell.shown == []
