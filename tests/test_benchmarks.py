"The benchmarks run, at a size where their figures mean nothing, and what is recorded can be read and is whole."

import subprocess
import sys

import pandas as pd
import pytest

from neurobridge.core.paths import data_root, project_root

BENCHMARKS = project_root() / "benchmarks"


def run(script, *arguments):
    done = subprocess.run([sys.executable, BENCHMARKS / script, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_lif_runs(tmp_path):
    run("lif.py", "--shapes", "3x2x64", "--resets", "soft", "--allocators", "default", "--rounds", "1", "--no-compile", "--threads", "1", "--out", tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv", comment="#")
    assert {"floor", "neurobridge torch", "neurobridge reference"} <= set(table.implementation) and (table.median_ms > 0).all()


def test_brain_runs(tmp_path):
    run("brain.py", "--shape", "60x300x5", "--samples", "5", "--rounds", "1", "--out", tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv", comment="#")
    assert len(table) == 4 and table.agreement.dropna().max() < 1e-4 and (table.seconds > 0).all()


@pytest.mark.skipif(not (data_root() / "FashionMNIST").exists(), reason="Fashion-MNIST is not here: set NEUROBRIDGE_DATA")
def test_training_runs(tmp_path):
    run("training.py", "--rounds", "1", "--seeds", "1", "--epochs", "0", "--threads", "1", "--out", tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv", comment="#")
    assert {"block inference", "block training", "step", "training"} == set(table.what) and {"tuned", "default"} == set(table.allocator)


def test_sweep_runs(tmp_path):
    pytest.importorskip("distributed")
    run("sweep.py", "--runs", "2", "--workers", "1", "--out", tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv")
    assert table.way.tolist() == ["papermill", "sweep"] and (table.seconds > 0).all()


def test_records_run(tmp_path):
    run("records.py", "--records", "10", "--repeats", "1", "--out", tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv")
    assert table.step.tolist() == ["load", "group", "command"] and (table.seconds > 0).all()


def test_events_run(tmp_path):
    run("events.py", "--million", "0.02", "--large", "1", "--rounds", "1", "--out", tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv", comment="#")
    assert {"odg", "frames", "read", "pieces"} == set(table.what) and (table.seconds > 0).all()


def test_the_recorded_events_are_whole():
    table = pd.read_csv(BENCHMARKS / "events.csv", comment="#")
    seconds = table.set_index(["what", "way"]).seconds
    assert seconds["odg", "published loop"] > 5 * seconds["odg", "neurobridge"] and seconds["frames", "neurobridge"] < 0.05
    pieces = table[table.what == "pieces"]
    assert pieces.events.max() == 100_000_000 and pieces.megabytes.max() < 300
    assert pieces.megabytes.max() < 2 * pieces.megabytes.min()                  # ten times the events, the same memory


def test_the_recorded_neurons_are_whole():
    table = pd.read_csv(BENCHMARKS / "lif.csv", comment="#")
    assert not table.duplicated(["allocator", "shape", "reset", "pass", "implementation"]).any()
    for _, rows in table.groupby(["allocator", "shape", "reset", "pass"]):
        floor = rows.loc[rows.implementation == "floor", "median_ms"].item()
        assert (rows.times_floor - rows.median_ms / floor).abs().max() < 0.02 * rows.times_floor.max()
    peers = {"spikingjelly", "snntorch", "norse", "sinabs"}
    assert peers | {f"{peer} compiled" for peer in peers} | {"floor", "neurobridge fused", "neurobridge torch", "neurobridge reference"} == set(table.implementation)


def test_the_recorded_trainings_are_whole():
    table = pd.read_csv(BENCHMARKS / "training.csv", comment="#")
    runs = table[table.what == "training"]
    assert runs.groupby("way").seed.nunique().min() >= 3 and runs.epochs.nunique() == 1
    for _, steps in table[table.what == "step"].groupby("allocator"):
        assert {"neurobridge, channels last", "spikingjelly", "spikingjelly, channels last"} <= set(steps.way)


def test_conversion_runs(tmp_path):
    run("convert.py", "--pictures", "12", "--rounds", "1", "--out", tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv", comment="#")
    assert table.way[table.what == "convert"].tolist() == ["1 process", "2 processes"] and (table.ms_a_picture > 0).all()


def test_the_recorded_conversion_is_whole():
    table = pd.read_csv(BENCHMARKS / "convert.csv", comment="#")
    wall = table[table.what == "convert"].set_index("way").wall_s
    assert table[table.what == "convert"].set_index("way").speedup["2 processes"] == pytest.approx(wall["1 process"] / wall["2 processes"], abs=0.01)
    assert {"step", "frames"} <= set(table.what) and {"i2e", "odg"} <= set(table.way)


def test_cornet_runs(tmp_path):
    run("cornet.py", "--rounds", "1", "--size", "32", "--threads", "1", "--out", tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv", comment="#")
    assert {"plain", "fast"} <= set(table.way) and set(table["pass"]) == {"inference", "training"} and (table.milliseconds > 0).all()
    assert (table.difference[table["pass"] == "inference"] < 1e-4).all()
