"What the tests of the lab share."

import pytest

QUICK = "ipykernel.kernelapp ipykernel.ipkernel"  # what kernels load beforehand: nothing of torch


@pytest.fixture
def root(tmp_path, monkeypatch):
    "A folder with a runs folder of its own, outside of any run."
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("NEUROBRIDGE_PRELOAD", QUICK)
    monkeypatch.delenv("NEUROBRIDGE_RUN", raising=False)
    return tmp_path
