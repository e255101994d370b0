"Every public function refuses what it cannot use, in words that name the argument, before it changes anything."

import importlib
from pathlib import Path

import pytest
from slips import failures, public, rooms

PARTS = [
    importlib.import_module(file.stem) for file in sorted(Path(__file__).parent.glob("slips_*.py"))
]
CALLS = {key: call for part in PARTS for key, call in part.CALLS.items()}
LEFT_OUT = {key: reason for part in PARTS for key, reason in part.LEFT_OUT.items()}


def _project_files():
    "Files of the project that a call may write into when it is given no other place."
    root = Path(__file__).parents[1]
    return {
        file: file.stat().st_mtime_ns
        for folder in ("results", "runs/e")
        for file in (root / folder).rglob("*")
    }


@pytest.fixture(autouse=True)
def nothing_shared(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(tmp_path / "runs"))
    before = _project_files()
    yield
    assert _project_files() == before, "a call has written into the project"


@pytest.mark.parametrize("key", CALLS)
def test_slips(key, tmp_path):
    found = failures(key, CALLS[key], tmp_path)
    assert not found, f"{len(found)} slips:\n" + "\n".join(found)


@pytest.mark.parametrize("room", rooms())
def test_every_public_name_is_tried(room):
    tried = {".".join(key.split(".")[:2]) for key in (*CALLS, *LEFT_OUT)}
    assert [name for name in public(room) if f"{room}.{name}" not in tried] == []
    listed = {key.partition(".")[2] for key in LEFT_OUT if key.startswith(f"{room}.")}
    assert listed <= set(importlib.import_module(f"neurobridge.{room}").__all__)
    assert all(len(reason) > 10 for reason in LEFT_OUT.values())
