"The benchmarks run, at a size where their figures mean nothing, and what is recorded can be read and is whole."

import subprocess
import sys

import pandas as pd
import pytest

from neurobridge.core import data_root, project_root

BENCHMARKS = project_root() / "benchmarks"


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_lif_runs(tmp_path):
    run(
        "lif.py",
        "--neurons",
        "lif,synaptic,adaptive,recurrent",
        "--shapes",
        "3x2x64",
        "--resets",
        "soft",
        "--allocators",
        "default",
        "--rounds",
        "1",
        "--no-compile",
        "--threads",
        "1",
        "--out",
        tmp_path / "out.csv",
    )
    table = pd.read_csv(tmp_path / "out.csv", comment="#")
    assert list(dict.fromkeys(table.neuron)) == ["lif", "synaptic", "adaptive", "recurrent"]
    for _, rows in table.groupby("neuron"):
        ours = {"floor", "neurobridge torch", "neurobridge reference"}
        assert ours <= set(rows.implementation) and (rows.median_ms > 0).all()
    differ = [line for line in open(tmp_path / "out.csv") if "differ" in line]
    assert not [line for line in differ if line.startswith(("# neurobridge", "# jax"))]


@pytest.mark.long
def test_gpu_runs_dry(tmp_path):
    "On a CPU: every part is there, and neurons are those of the reference."
    out = tmp_path / "out.csv"
    run("gpu.py", "--device", "cpu", "--tiny", "--out", out)
    table = pd.read_csv(out, comment="#")
    assert set(table.what) == {"equal", "layer", "norm", "step", "ensembles"}
    measured = table[table.value.notna()]
    own = measured.way.str.startswith("neurobridge")
    equal = measured[(measured.what == "equal") & own]
    assert len(equal) == 6 and (equal.value < 1e-5).all()
    assert measured.way[measured.what == "ensembles"].tolist() == ["dense", "ensembles", "masked"]
    absent = table[table.value.isna()]
    assert absent.way.str.contains("spikingjelly").all() and absent.note.notna().all()


@pytest.mark.long
def test_precision_runs(tmp_path):
    "A step in both precisions, and the products alone."
    out = tmp_path / "out.csv"
    arguments = ("--precision", "2x8", "--rounds", "1", "--threads", "1", "--clock", "cpu")
    run("training.py", *arguments, "--out", out)
    table = pd.read_csv(out, comment="#")
    both = table.groupby("way").precision.nunique()
    assert both["neurobridge"] == both["convolutions as plain products"] == 2
    assert (table.milliseconds > 0).all()


@pytest.mark.long
def test_brain_runs(tmp_path):
    run(
        "brain.py",
        "--shape",
        "60x300x5",
        "--samples",
        "5",
        "--rounds",
        "1",
        "--out",
        tmp_path / "out.csv",
    )
    table = pd.read_csv(tmp_path / "out.csv", comment="#")
    assert len(table) == 4 and table.agreement.dropna().max() < 1e-4 and (table.seconds > 0).all()


@pytest.mark.long
def test_calibration_runs(tmp_path):
    "All rows, twice: the second run finds everything done."
    for _ in range(2):
        run("calibration.py", "--count", "2", "--out", tmp_path / "out.csv")
        table = pd.read_csv(tmp_path / "out.csv")
        assert (table.studies == 2).all() and not table.isna().any(axis=None)
        recorded = pd.read_csv(BENCHMARKS / "calibration.csv")
        key = ["what", "data", "anew", "drawn", "measure"]
        assert set(map(tuple, table[key].values)) == set(map(tuple, recorded[key].values))


@pytest.mark.long
def test_large_runs(tmp_path):
    "At a small size: the parts and their agreement; memory is in the tests of the brain room."
    size = ["--stimuli", "120", "--features", "900", "--units", "4", "--part", "60"]
    run("large.py", *size, "--threads", "1", "--out", tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv", comment="#").set_index("what")
    assert table.index.tolist() == ["imports", "record", "gram", "score", "part", "scikit-learn"]
    assert table.agreement["part"] == 0 and table.agreement["scikit-learn"] < 1e-4
    assert (table.peak_gb.dropna().diff().dropna() >= 0).all()
    assert len(table.score["score"].split()) == 2  # of two regions


@pytest.mark.long
@pytest.mark.skipif(
    not (data_root() / "FashionMNIST").exists(),
    reason="Fashion-MNIST is not here: set NEUROBRIDGE_DATA",
)
def test_training_runs(tmp_path):
    run(
        "training.py",
        "--rounds",
        "1",
        "--seeds",
        "1",
        "--epochs",
        "0",
        "--threads",
        "1",
        "--out",
        tmp_path / "out.csv",
    )
    table = pd.read_csv(tmp_path / "out.csv", comment="#")
    assert {"block inference", "block training", "step", "training"} == set(table.what) and {
        "tuned",
        "default",
    } == set(table.allocator)


@pytest.mark.long
def test_sweep_runs(tmp_path):
    pytest.importorskip("distributed")
    run("sweep.py", "--runs", "2", "--workers", "1", "--out", tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv")
    assert table.way.tolist() == ["papermill", "sweep"] and (table.seconds > 0).all()


@pytest.mark.long
def test_records_run(tmp_path):
    run("records.py", "--records", "10", "--repeats", "1", "--out", tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv")
    assert table.step.tolist() == ["load", "group", "command"] and (table.seconds > 0).all()


@pytest.mark.long
def test_events_run(tmp_path):
    run(
        "events.py",
        "--million",
        "0.02",
        "--large",
        "1",
        "--rounds",
        "1",
        "--out",
        tmp_path / "out.csv",
    )
    table = pd.read_csv(tmp_path / "out.csv", comment="#")
    assert {"odg", "frames", "read", "pieces"} == set(table.what) and (table.seconds > 0).all()


def test_the_recorded_events_are_whole():
    table = pd.read_csv(BENCHMARKS / "events.csv", comment="#")
    seconds = table.set_index(["what", "way"]).seconds
    assert (
        seconds["odg", "published loop"] > 5 * seconds["odg", "neurobridge"]
        and seconds["frames", "neurobridge"] < 0.05
    )
    pieces = table[table.what == "pieces"]
    assert pieces.events.max() == 100_000_000 and pieces.megabytes.max() < 300
    assert (
        pieces.megabytes.max() < 2 * pieces.megabytes.min()
    )  # ten times the events, the same memory


def test_the_recorded_neurons_are_whole():
    table = pd.read_csv(BENCHMARKS / "lif.csv", comment="#")
    assert not table.duplicated(["allocator", "shape", "reset", "pass", "implementation"]).any()
    for _, rows in table.groupby(["allocator", "shape", "reset", "pass"]):
        floor = rows.loc[rows.implementation == "floor", "median_ms"].item()
        assert (
            rows.times_floor - rows.median_ms / floor
        ).abs().max() < 0.02 * rows.times_floor.max()
    peers = {"spikingjelly", "snntorch", "norse", "sinabs"}
    assert peers | {f"{peer} compiled" for peer in peers} | {
        "floor",
        "neurobridge fused",
        "neurobridge torch",
        "neurobridge reference",
    } == set(table.implementation) - {"jax"}


def test_the_recorded_trainings_are_whole():
    table = pd.read_csv(BENCHMARKS / "training.csv", comment="#")
    runs = table[table.what == "training"]
    assert runs.groupby("way").seed.nunique().min() >= 3 and runs.epochs.nunique() == 1
    for _, steps in table[table.what == "step"].groupby("allocator"):
        assert {"neurobridge, channels last", "spikingjelly", "spikingjelly, channels last"} <= set(
            steps.way
        )


@pytest.mark.long
def test_conversion_runs(tmp_path):
    run("convert.py", "--pictures", "12", "--rounds", "1", "--out", tmp_path / "out.csv")
    table = pd.read_csv(tmp_path / "out.csv", comment="#")
    assert (
        table.way[table.what == "convert"].tolist() == ["1 process", "2 processes"]
        and (table.ms_a_picture > 0).all()
    )


def test_the_recorded_conversion_is_whole():
    table = pd.read_csv(BENCHMARKS / "convert.csv", comment="#")
    wall = table[table.what == "convert"].set_index("way").wall_s
    assert table[table.what == "convert"].set_index("way").speedup["2 processes"] == pytest.approx(
        wall["1 process"] / wall["2 processes"], abs=0.01
    )
    assert {"step", "frames"} <= set(table.what) and {"i2e", "odg"} <= set(table.way)


@pytest.mark.long
def test_cornet_runs(tmp_path):
    run(
        "cornet.py",
        "--rounds",
        "1",
        "--size",
        "32",
        "--threads",
        "1",
        "--out",
        tmp_path / "out.csv",
    )
    table = pd.read_csv(tmp_path / "out.csv", comment="#")
    assert (
        {"plain", "fast"} <= set(table.way)
        and set(table["pass"]) == {"inference", "training"}
        and (table.milliseconds > 0).all()
    )
    inference = table[table["pass"] == "inference"]
    rounded = inference.way.str.contains("bfloat16")
    assert (inference.difference[~rounded] < 1e-4).all() and (~rounded).sum() == 4
    assert (inference.difference[rounded] < 0.05).all() and rounded.sum() == 1


@pytest.mark.long
def test_functional_graphs_run(tmp_path):
    run(
        "functional.py",
        "--neurons",
        "40",
        "--frames",
        "800",
        "--shifts",
        "2",
        "--pairs",
        "9",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--out",
        tmp_path / "out.csv",
    )
    table = pd.read_csv(tmp_path / "out.csv", comment="#")
    assert table.what.tolist() == ["graph", "sttc", "formula"] * 2 and (
        table[["wall_s", "core_s"]] > 0
    ).all(axis=None)


def test_the_recorded_functional_graphs_are_whole():
    table = pd.read_csv(BENCHMARKS / "functional.csv", comment="#").set_index(["what", "dt"])
    assert (
        set(table.neurons) == {200}
        and set(table.frames) == {12_000}
        and table.shifts["graph"].tolist() == [50, 50]
    )
    assert (table.core_s["graph"] < 10).all()


@pytest.mark.long
def test_ensemble_layers_run(tmp_path):
    run(
        "ensemble_linear.py",
        "--widths",
        "128",
        "--net",
        "128",
        "--batch",
        "8",
        "--seconds",
        "0",
        "--least",
        "1",
        "--threads",
        "1",
        "--out",
        tmp_path / "out.csv",
    )
    table = pd.read_csv(tmp_path / "out.csv", comment="#")
    assert {"layer", "step", "memory"} == set(table.what) and {
        "dense",
        "masked",
        "ensembles",
    } <= set(table.way)
    failed = table.value.isna()  # torch's block-sparse product does not run everywhere
    assert (
        (table.value[~failed] > 0).all()
        and table.note[failed].notna().all()
        and not failed[table.way != "BSR"].any()
    )
    assert (
        table.set_index(["what", "way"]).times_dense["memory", "ensembles"] < 0.5
    )  # at any size: it is counted, not timed


def test_ensemble_linear_at_few_inputs(tmp_path):
    out = tmp_path / "out.csv"
    few = ["--batches", "1", "16", "--widths", "64", "--seconds", "0", "--least", "1"]
    run("ensemble_linear.py", *few, "--threads", "1", "--out", out)
    table = pd.read_csv(out, comment="#")
    ways = {"dense", "ensembles", "masked", "limit"}
    assert len(table) == 3 * 2 * len(ways) and set(table.way) == ways  # infer, train, update
    assert (table.value > 0).all() and set(table.batch) == {1, 16}


def test_the_recorded_ensemble_layers_are_whole():
    table = pd.read_csv(BENCHMARKS / "ensemble_linear.csv", comment="#")
    assert not table.duplicated(["what", "width", "way"]).any() and set(
        table.width[table.what == "layer"]
    ) == {1024, 2048, 4096}
    ours = table[table.way == "ensembles"].set_index(["what", "width"]).times_dense
    assert (
        (ours["layer"] >= 2.5).all() and ours["step", 2048] >= 2 and ours["memory", 2048] <= 0.27
    )  # the bars that were set


@pytest.mark.long
def test_composition_runs(tmp_path):
    given = ("--width", "4", "--batch", "2", "--rounds", "1", "--out", tmp_path / "out.csv")
    run("compose.py", *given)
    table = pd.read_csv(tmp_path / "out.csv", comment="#")
    assert len(table) == 14 and (table[["existing_ms", "composed_ms"]] > 0).all(axis=None)


def test_composition_costs_nothing():
    "At least 0.95 times the speed of the classes that composed networks equal."
    table = pd.read_csv(BENCHMARKS / "compose.csv", comment="#")
    assert len(table) == 14 and table.ratio.min() >= 0.95


@pytest.mark.long
def test_searches_run(tmp_path):
    pytest.importorskip("optuna")
    given = ("--seeds", "1", "--trials", "3", "--epochs", "2", "--out", tmp_path / "out.csv")
    run("search.py", *given)
    table = pd.read_csv(tmp_path / "out.csv")
    assert len(table) == 2 * 3 * 3 and (table.above_optimum > 0).all()
    pruning = pd.read_csv(tmp_path / "out_pruning.csv")
    assert pruning.pruner.tolist() == ["none", "median", "hyperband"]
    assert (pruning.core_seconds > 0).all()


def test_recorded_searches_are_whole_and_better_than_chance():
    "Forty trials by ten seeds; the best so far never rises, and no value lies below the optimum."
    table = pd.read_csv(BENCHMARKS / "search.csv")
    runs = table.groupby(["function", "sampler", "seed"])
    assert len(runs) == 2 * 3 * 10 and (runs.size() == 40).all()
    assert (table.above_optimum >= -1e-6).all()
    assert (runs.above_optimum.diff().dropna() <= 0).all()
    for name, part in table[table.trial == 40].groupby("function"):
        median = part.groupby("sampler").above_optimum.median()
        assert median["tpe"] < median["random"] and median["gp"] < median["random"], name


def test_recorded_pruning_saves_time_at_no_loss():
    table = pd.read_csv(BENCHMARKS / "search_pruning.csv").set_index(["seed", "pruner"])
    assert len(table) == 30
    best = table.best.unstack()
    seconds = table.core_seconds.unstack()
    for pruner in ("median", "hyperband"):
        assert (seconds[pruner] < seconds["none"]).all()
        assert (best["none"] - best[pruner]).mean() < 0.005


@pytest.mark.long
def test_ensemble_conv_runs(tmp_path):
    "Both ways of a convolution by ensembles, one of them in use."
    out = tmp_path / "out.csv"
    arguments = ("--convolutions", "16", "64", "1", "7", "2", "--seconds", "0", "--least", "1")
    run("ensemble_linear.py", *arguments, "--out", out)
    table = pd.read_csv(out, comment="#")
    recorded = pd.read_csv(BENCHMARKS / "ensemble_conv.csv", comment="#")
    assert list(table) == list(recorded) and (table.value > 0).all()
    used = recorded[recorded.used].groupby(["what", "width", "pixels", "channels"]).size()
    assert (used == 1).all() and set(recorded.way[recorded.used]) == {"by ensemble", "filled"}
