"The experiments whose batches are long, at a tiny size: every kind of arm, and a batch that goes on elsewhere."

import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from neurobridge.core.paths import project_root
from neurobridge.lab import Sweep

ROOT = project_root()
SWEEPS = {  # runs, seeds
    "sparse_overfitting_tuning": (24, {100}),
    "sparse_overfitting": (100, set(range(5))),
    "pipe_s_residual_tuning": (15, {100}),
    "pipe_s_residual": (15, set(range(3))),
    "cornet_budgets": (25, set(range(5))),
    "cornet_budgets_fashion": (25, set(range(5))),
    "pipe_d_cifar": (3, set(range(3))),
    "brain_alignment_z64": (5, set(range(5))),
}
FOUR = "scratch; scratch, short; gray; gray, spikes at once"
TINY = {
    "regularised dense": ("sparse_overfitting", {"arm": "regularised", "dropout": 0.2}),
    "narrow": ("sparse_overfitting", {"arm": "narrow", "edges": "1%"}),
    "RigL in bf16": ("sparse_overfitting", {"arm": "RigL", "mixed_precision": "bf16"}),
    "ensembles at 1 %": ("sparse_overfitting", {"arm": "hebb/hebb", "edges": "1%"}),
    "CHTs, tuning": ("sparse_overfitting", {"arm": "CHTs", "final": False}),
    "scratch": ("pipe_s_residual", {"arm": "scratch", "epochs": 2}),
    "hybrid, tuning": ("pipe_s_residual", {"arm": "hybrid", "epochs": 2, "final": False}),
    "ten steps": ("cornet_budgets", {"arm": "steps 10/10/10", "epochs": 1}),
    "CORnet-Z": ("cornet_budgets", {"arm": "CORnet-Z", "epochs": 1}),
    "four arms of pipe-D": ("pipe_d", {"arms": FOUR, "epochs": 1, "pretrain_epochs": 1}),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_batch_is_written_down_and_goes_on(name):
    "Each run stands in it once, rows go to a results file at once, and tuning leaves test images alone."
    sweep = Sweep.from_yaml(ROOT / "sweeps" / f"{name}.yaml")
    runs, seeds = SWEEPS[name]
    different = {json.dumps(each, sort_keys=True) for each in sweep.settings}
    assert len(sweep.settings) == len(different) == runs
    assert {each["seed"] for each in sweep.settings} == seeds
    text = (ROOT / "sweeps" / f"{name}.yaml").read_text(encoding="utf-8")
    assert "results: ../results/" in text
    final = not name.endswith("_tuning")
    assert all(each.get("final", True) is final for each in sweep.settings)


def test_tuning_has_equal_effort():
    "Three tries for every arm, of which none is a try of a seed that is recorded."
    for name in ("sparse_overfitting_tuning", "pipe_s_residual_tuning"):
        sweep = Sweep.from_yaml(ROOT / "sweeps" / f"{name}.yaml")
        assert set(pd.Series([each["arm"] for each in sweep.settings]).value_counts()) == {3}


@pytest.mark.long
@pytest.mark.parametrize("name", TINY)
def test_every_kind_of_arm_runs(name, tmp_path):
    page, values = TINY[name]
    given = [word for key, value in values.items() for word in ("-p", key, str(value))]
    ran = subprocess.run(
        [sys.executable, "-m", "papermill", str(ROOT / "nbs/experiments" / f"{page}.ipynb")]
        + [str(tmp_path / "out.ipynb"), *given],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]


@pytest.mark.long
def test_a_batch_goes_on_from_the_results_file_alone(tmp_path):
    "Two runs of three; then the run folders are lost, as in a fresh clone: only the third is run."
    shutil.copy(ROOT / "nbs/experiments/sparse_overfitting.ipynb", tmp_path)
    sweep = tmp_path / "tiny.yaml"
    text = "notebook: sparse_overfitting.ipynb\nresults: tiny.csv\nparameters: {epochs: 1}\n"

    def run(arms):
        sweep.write_text(text + f"grid:\n  arm: [{arms}]\n")
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        subprocess.run(
            [sys.executable, "-m", "neurobridge", "sweep", str(sweep)],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1", "NEUROBRIDGE_RUNS": str(tmp_path / "runs")},
            check=True,
            capture_output=True,
            timeout=900,
        )
        return pd.read_csv(tmp_path / "tiny.csv").set_index("arm").run

    before = run("dense, narrow")
    after = run("dense, narrow, ER")
    assert len(after) == 3 and (after[before.index] == before).all()
    assert len([each for each in (tmp_path / "runs").rglob("run.json")]) <= 1
    assert len(pd.read_csv(tmp_path / "tiny_curves.csv").arm.unique()) == 3
