"Every committed table is of an experiment; those that a sweep adds to are whole."

from neurobridge.core import project_root
from neurobridge.lab.run.page import experiments
from neurobridge.lab.sweep.results_file import read_kept

RESULTS = project_root() / "results"


def test_every_table_is_of_an_experiment():
    "None that a test or a trial has left."
    stray = [
        file.name
        for file in sorted(RESULTS.iterdir())
        if not file.name.startswith(".")
        and not any(file.name.startswith((f"{name}.", f"{name}_")) for name in experiments())
    ]
    assert stray == []


def test_tables_that_a_sweep_adds_to_are_whole():
    "The rows of each run are those that were recorded, and its version is listed; other files are as they were."
    for versions in sorted(RESULTS.glob("*.versions.csv")):
        kept = read_kept(versions.with_name(versions.name.replace(".versions", "")))
        assert kept.main.rows and kept.versions
