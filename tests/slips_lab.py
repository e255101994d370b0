"Correct calls of the lab: runs, sweeps, tables, the site."

from pathlib import Path
from unittest.mock import patch

import nbformat
import pandas as pd
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from slips import Call

from neurobridge.core.files import write_json
from neurobridge.lab import Sweep
from neurobridge.lab.report import recorded as results
from neurobridge.lab.report.comparison import write_comparison
from neurobridge.lab.report.sweep_figures import draw_curves
from neurobridge.lab.run import execute as runs
from neurobridge.lab.run.run_record import Run
from neurobridge.lab.sweep.sweep_file import Resources


def page(folder):
    cells = [
        new_markdown_cell("# A page\n\n> with a question"),
        new_code_cell("n: int = 1", metadata={"tags": ["parameters"]}),
        new_code_cell("2"),
    ]
    nbformat.write(new_notebook(cells=cells), folder / "p.ipynb")
    return folder / "p.ipynb"


def a_record(**more):
    content = {"id": "0" * 12, "experiment": "e", "status": "done", "started": "2026-01-01T00:00:00+00:00", "seconds": 1.0, "params": {"n": 1}, "metrics": {"loss": 0.5},
               "rows": [], "error": None, "environment": {}, "page": None, "package": {}, "modules": {}, "files": {}}  # fmt: skip
    return content | more


def a_run(folder):
    write_json(folder / "run.json", a_record())
    nbformat.write(new_notebook(cells=[new_markdown_cell("# T")]), folder / "notebook.ipynb")
    return Run(folder, a_record())


def a_sweep(folder):
    return Sweep("s", page(folder), ({"n": 1}, {"n": 2}))


def frame():
    found = pd.DataFrame(
        {
            "id": ["a", "b"],
            "status": "done",
            "seconds": [1.0, 2.0],
            "n": [1, 2],
            "loss": [0.5, 0.25],
            "spikes": [3.0, 4.0],
            "folder": "nowhere",
            "error": None,
        }
    )
    found.attrs["params"] = ["n"]
    return found


def elsewhere(function):
    "Call a function with its runs folder in a place of its own, and without executing anything."

    def call(**given):
        with (
            patch.object(runs, "runs_root", Path.cwd),
            patch.object(results, "runs_root", Path.cwd),
            patch.object(runs, "_papermill", lambda *_: None),
            patch.object(runs, "_report", lambda *_: "none"),
        ):
            return function(**given)

    call.__annotations__, call.__signature__ = (
        function.__annotations__,
        __import__("inspect").signature(function),
    )
    return call


def written_results(sweeps, partial, out):
    "Write the results of a run, where no folder is named below the working directory."
    write_json(Path(runs.runs_root()) / "e" / ("0" * 12) / "run.json", a_record())
    with patch.object(results, "project_root", Path.cwd):
        return results.write_results("e", sweeps, partial, out)


def nothing(*_):
    return None


CALLS = {
    "lab.spread": Call(lambda folder: {"values": pd.Series([1.0, 2.0])}),
    "lab.find_run": Call(
        lambda folder: {"name": a_run(folder).folder}, view=lambda run: run.record
    ),
    "lab.compare_runs": Call(lambda folder: {"a": a_run(folder), "b": a_run(folder)}),
    "lab.write_comparison": Call(
        lambda folder: {"a": a_run(folder), "b": a_run(folder), "file": folder / "c.html"},
        view=lambda file: file.read_text(),
        target=write_comparison,
    ),
    "lab.where": Call(lambda folder: {"frame": frame(), "condition": "n > 1"}),
    "lab.write_results": Call(
        lambda folder: {"sweeps": (), "partial": True, "out": folder},
        written_results,
        view=len,
    ),
    "lab.record": Call(lambda folder: {"metrics": {"a": 1.0}, "rows": [{"a": 1}]}),
    "lab.report_step": Call(
        lambda folder: {"step": 1, "value": 0.5},
        legitimate={
            "value: NaN": "by which a search knows that a training has diverged",
            "value: learned": "a loss that has a gradient is a number, too",
        },
    ),
    "lab.declare": Call(lambda folder: {"path": page(folder)}, view=lambda file: file.name),
    "lab.run_notebook": Call(
        lambda folder: {
            "name": page(folder),
            "params": {"n": 2},
            "out": folder / "run",
            "force": False,
            "timeout": 60.0,
            "on_cell": nothing,
            "slow": False,
            "repeat": 1,
        },
        elsewhere(runs.run_notebook),
        view=lambda run: run.params,
        legitimate={
            "on_cell: text": "nothing is executed here",
            "on_cell: number": "nothing is executed here",
        },
    ),  # fmt: skip
    "lab.load_runs": Call(lambda folder: {"root": folder, "experiment": "e"}, view=len),
    "lab.run_sweep": Call(
        lambda folder: {
            "sweep": a_sweep(folder),
            "workers": 1,
            "only_failed": True,
            "tell": nothing,
        },
        view=len,
    ),
    "lab.sweep_table": Call(lambda folder: {"planned": a_sweep(folder).plan()}, view=len),
    "lab.sweep_runs": Call(lambda folder: {"sweep": a_sweep(folder)}, view=len),
    "lab.draw_effect": Call(
        lambda folder: {"runs": frame(), "metric": "loss", "parameter": "n", "others": []},
        view=lambda figure: len(figure.axes),
    ),
    "lab.draw_pareto": Call(
        lambda folder: {"runs": frame(), "settings": ["n"], "up": "loss", "right": "spikes"},
        view=lambda figure: len(figure.axes),
    ),
    "lab.draw_curves": Call(
        lambda folder: {"runs": frame(), "settings": ["n"]}, target=draw_curves
    ),
    "lab.group_runs": Call(lambda folder: {"frame": frame(), "by": ["n"], "how": None}),
    "lab.Scheduler": Call(
        lambda folder: {
            "address": "tls://host:8786",
            "tls_ca": folder / "ca.pem",
            "tls_cert": folder / "cert.pem",
            "tls_key": folder / "key.pem",
            "insecure": False,
        },
        legitimate={f"{name}: text": "a path" for name in ("tls_ca", "tls_cert", "tls_key")},
    ),  # fmt: skip
    "lab.Resources": Call(
        lambda folder: {
            "cpu": 1,
            "gpu": 0,
            "memory": 10,
            "timeout": 5.0,
            "retries": 1,
            "backoff": 1.0,
        },
        target=Resources,
    ),
}


LEFT_OUT = {
    "lab.Sweep": "contains values that the functions taking it check",
    "lab.RunRefused": "an error, which takes a message",
    "lab.RunBusy": "an error, which takes a message",
    "lab.RunFailed": "an error, which takes a message",
    "lab.run_dir": "takes no argument",
    "lab.export_to_mlflow": "needs MLflow; tried in test_mlflow",
    "lab.write_sweep_report": "draws a whole page; tried in test_sweep_report",
}
