"Runs handed over to MLflow: what arrives, once each, and what happens without it."

import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
from typer.testing import CliRunner

from neurobridge.core.files import write_json
from neurobridge.lab import RunRefused, export_to_mlflow, load_runs
from neurobridge.lab.cli import app
from neurobridge.lab.report.mlflow_export import curve_points, describe_run

PLACE = {"commit": "0" * 40, "dirty": False, "device": "a CPU", "torch": "2", "host": None}
ERROR = {
    "cell": 2,
    "heading": "",
    "source": "1 / 0",
    "ename": "ZeroDivisionError",
    "evalue": "division by zero",
    "traceback": [],
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def keep(root, number, status="done", **more):
    folder = root / "toy" / f"{number:012x}"
    record = {"id": folder.name, "experiment": "toy", "notebook": "nbs/experiments/toy.ipynb", "status": status, "started": "2026-01-01T00:00:00+00:00", "seconds": 2.5, "attempt": 1,
              "params": {"width": number, "sizes": [1, 2], "long": "x" * 9000}, "metrics": {"accuracy": 0.75}, "rows": [], "error": None, "environment": PLACE, **more}  # fmt: skip
    write_json(folder / "run.json", record)
    for file in ("notebook.ipynb", "report.html", "weights.safetensors"):
        (folder / file).write_text(file)
    return folder


def test_a_curve_is_named_by_what_varies():
    table = pd.DataFrame(
        {
            "step": [0, 1] * 2,
            "arm": ["a", "a", "b", "b"],
            "data": "digits",
            "seed": [0, 0, 1, 1],
            "loss": [4.0, 3.0, float("inf"), 1.0],
            "ok": True,
        }
    )
    assert list(curve_points(table, "curves")) == [
        ("curves/a/0/loss", 4.0, 0), ("curves/a/0/loss", 3.0, 1), ("curves/b/1/loss", float("inf"), 0), ("curves/b/1/loss", 1.0, 1),
        ("curves/a/0/ok", 1.0, 0), ("curves/a/0/ok", 1.0, 1), ("curves/b/1/ok", 1.0, 0), ("curves/b/1/ok", 1.0, 1)]  # fmt: skip
    assert not list(curve_points(table.drop(columns="step"), "curves"))


def test_what_is_handed_over(root):
    folder = keep(root, 1, metrics={"accuracy (T=4)": 0.5})
    found = describe_run(folder, json.loads((folder / "run.json").read_text()))
    assert found["params"] == {"width": "1", "sizes": "[1, 2]", "long": "x" * 6000} and found[
        "metrics"
    ] == [("accuracy _T_4_", 0.5, 0)]
    assert (
        found["tags"]["device"] == "a CPU"
        and "host" not in found["tags"]
        and [file.name for file in found["files"]] == ["notebook.ipynb", "report.html"]
    )


def test_without_mlflow_the_answer_is_the_command_that_installs_it(root, monkeypatch):
    keep(root, 1)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    ended = CliRunner().invoke(app, ["mlflow"])
    assert (
        ended.exit_code == 2
        and "run: pip install mlflow-skinny sqlalchemy alembic (mlflow is missing)" in ended.stderr
    )
    assert CliRunner().invoke(app, ["mlflow", "nothing"]).exit_code == 2


@pytest.mark.parametrize(
    "uri",
    [
        "nonsense",
        "foo://bar",
        "sqlite:///{}/junk.db",
        "sqlite:///{}/file/mlflow.db",
        "postgresql+none://x",
    ],
)
def test_where_nothing_can_be_handed_over(root, uri):
    "One line, whoever of MLflow, its database and the system refuses."
    pytest.importorskip(
        "mlflow", reason="MLflow is not installed: pip install mlflow-skinny sqlalchemy alembic"
    )
    from mlflow import environment_variables

    if uri == "nonsense" and not hasattr(environment_variables, "MLFLOW_ALLOW_FILE_STORE"):
        pytest.skip("this MLflow keeps runs in a folder of any name; 3.14 refuses")
    keep(root, 1)
    (root / "junk.db").write_text("junk" * 1000)
    (root / "file").touch()
    uri = uri.format(root)
    ended = CliRunner().invoke(app, ["mlflow", "toy", "--to", uri])
    assert (
        ended.exit_code == 2
        and ended.stderr.startswith(f"neurobridge: MLflow at {uri} refuses: ")
        and len(ended.stderr.splitlines()) == 1
        and ended.stdout == ""
    ), ended.exception
    assert (root / "junk.db").read_text() == "junk" * 1000


@pytest.mark.long
def test_hand_over_to_sqlite(root):
    "Everything arrives; twice is once; what changed is renewed, what died half-way made whole, what is in progress left out."
    pytest.importorskip(
        "mlflow", reason="MLflow is not installed: pip install mlflow-skinny sqlalchemy alembic"
    )
    from mlflow import MlflowClient

    first, failed = keep(root, 1), keep(root, 2, "failed", error=ERROR)
    keep(root, 3, "running")
    pd.DataFrame(
        {"epoch": range(1, 1201), "arm": "scratch", "loss": [1 / n for n in range(1, 1201)], "T": 4}
    ).to_csv(first / "curves.csv", index=False)
    assert export_to_mlflow(load_runs()) == {"new": 2, "renewed": 0, "unchanged": 0}
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")

    def there():
        return {
            run.info.run_name: run
            for run in client.search_runs([client.get_experiment_by_name("toy").experiment_id])
        }

    one, other = there()[first.name], there()[failed.name]
    assert (
        one.data.params["sizes"] == "[1, 2]"
        and one.data.metrics["accuracy"] == 0.75
        and one.info.end_time - one.info.start_time == 2500
    )
    assert one.data.tags["commit"] == one.data.tags[
        "mlflow.source.git.commit"
    ] == "0" * 40 and one.data.tags["folder"] == str(first)
    assert [
        (point.step, point.value)
        for point in client.get_metric_history(one.info.run_id, "curves/loss")
    ] == [(n, 1 / n) for n in range(1, 1201)]
    assert {file.path for file in client.list_artifacts(one.info.run_id)} == {
        "notebook.ipynb",
        "report.html",
        "curves.csv",
    }
    assert (one.info.status, other.info.status) == ("FINISHED", "FAILED") and other.data.tags[
        "error"
    ] == "ZeroDivisionError: division by zero"

    assert (
        export_to_mlflow(load_runs()) == {"new": 0, "renewed": 0, "unchanged": 2}
        and len(there()) == 2
    )
    keep(root, 2)  # done at last
    client.delete_tag(one.info.run_id, "neurobridge.record")  # as if the hand-over had died
    assert (
        export_to_mlflow(load_runs()) == {"new": 0, "renewed": 2, "unchanged": 0}
        and len(there()) == 2
    )
    assert {run.info.status for run in there().values()} == {"FINISHED"} and set(there()) == {
        first.name,
        failed.name,
    }

    said = CliRunner().invoke(
        app, ["mlflow", "toy", "--where", "width == 1", "--to", f"sqlite:///{root / 'mlflow.db'}"]
    )
    assert said.exit_code == 0 and "0 new, 0 renewed, 1 unchanged" in said.stdout
    client.delete_experiment(one.info.experiment_id)
    with pytest.raises(RunRefused, match="refuses"):
        export_to_mlflow(load_runs())


def test_the_cause_is_told_and_not_where_it_came_up(root, monkeypatch):
    def opened(uri):
        raise OSError(
            "(raised as a result of Query-invoked autoflush; consider using a session.no_autoflush "
            "block)\n(sqlite3.OperationalError) attempt to write a readonly database\n[SQL: INSERT]"
        )

    monkeypatch.setattr(
        "neurobridge.lab.report.mlflow_export._mlflow", lambda: (opened, (OSError,))
    )
    with pytest.raises(
        RunRefused,
        match=r"refuses: \(sqlite3.OperationalError\) attempt to write a readonly database; expected",
    ):
        export_to_mlflow(pd.DataFrame({"status": []}))


def test_names_are_paths_that_mlflow_takes(root):
    folder = keep(root, 1, metrics={"a//b": 1.0, "/c/": 2.0, "../d": 3.0, "/": 4.0, "x" * 300: 5.0})
    names = [
        name
        for name, _, _ in describe_run(folder, json.loads((folder / "run.json").read_text()))[
            "metrics"
        ]
    ]
    assert names == ["a/b", "c", "d", "_", "x" * 250]


@pytest.mark.long
def test_a_record_without_a_date_is_named(root):
    "So is a table that is none; and what MLflow has of the run stays there."
    pytest.importorskip(
        "mlflow", reason="MLflow is not installed: pip install mlflow-skinny sqlalchemy alembic"
    )
    folder = keep(root, 1)
    assert export_to_mlflow(load_runs())["new"] == 1
    keep(root, 1, started="yesterday")
    other = keep(root, 2)
    ended = CliRunner().invoke(app, ["mlflow", "toy"])
    assert (
        ended.exit_code == 0
        and f"{folder / 'run.json'} says that the run started 'yesterday'" in ended.stdout
        and "1 new, 0 renewed" in ended.stdout
    ), ended.exception
    shutil.rmtree(other)
    assert (
        CliRunner().invoke(app, ["mlflow", "toy", "--where", f"id != '{folder.name}'"]).exit_code
        == 0
    )  # as it says
    keep(root, 1, attempt=2)
    (folder / "curves.csv").touch()
    ended = CliRunner().invoke(app, ["mlflow", "toy"])
    assert (
        ended.exit_code == 0
        and f"curves.csv of the run toy {folder.name} is not a table" in ended.stdout
    ), ended.exception
    (folder / "curves.csv").unlink()
    assert export_to_mlflow(load_runs()) == {"new": 0, "renewed": 1, "unchanged": 0}


def test_runs_that_go_meanwhile(root):
    "Cleaned away, or begun again, between the table and the hand-over."
    pytest.importorskip(
        "mlflow", reason="MLflow is not installed: pip install mlflow-skinny sqlalchemy alembic"
    )
    gone, again = keep(root, 1), keep(root, 2)
    frame = load_runs()
    (gone / "run.json").unlink()
    keep(root, 2, "running")
    assert export_to_mlflow(frame) == {"new": 0, "renewed": 0, "unchanged": 0} and again.exists()


class Server(BaseHTTPRequestHandler):
    "The few answers of a tracking server that a hand-over asks for; `broken` is (status, body) for paths that hold a word."

    def answer(self):
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        path, there = self.path.partition("?")[0], self.server.there
        status, body = next(
            (self.server.broken[word] for word in self.server.broken if word in path), (200, None)
        )
        if body is None:
            body = json.dumps(self.found(path.removeprefix("/api/2.0/mlflow"), data, there))
        self.send_response(status)
        self.send_header("content-length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def found(self, path, data, there):
        if "artifacts" in path:
            there["files"][path.rpartition("/")[2]] = data
            return {}
        said = json.loads(data) if data else {}
        if path == "/runs/create":
            there["run"] = {
                "info": {
                    "run_id": "r",
                    "experiment_id": "1",
                    "artifact_uri": "mlflow-artifacts:/1/r",
                },
                "data": {"tags": said["tags"]},
            }
        elif path == "/runs/log-batch":
            there["metrics"] += said.get("metrics", [])
        elif path == "/runs/update":
            there["status"] = said["status"]
        elif path == "/runs/set-tag":
            there["run"]["data"]["tags"].append({"key": said["key"], "value": said["value"]})
        experiment = {
            "experiment_id": "1",
            "name": "toy",
            "artifact_location": "mlflow-artifacts:/1",
            "lifecycle_stage": "active",
        }
        return {"experiment": experiment, "runs": [there["run"]] if there["run"] else []} | (
            {"run": there["run"]} if there["run"] else {}
        )

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    served = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    served.broken, served.there = {}, {"run": None, "files": {}, "metrics": [], "status": None}
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def test_hand_over_to_a_server(root, server, monkeypatch):
    "Over HTTP, files too; what died half-way is made whole; what the server refuses is one line."
    pytest.importorskip(
        "mlflow", reason="MLflow is not installed: pip install mlflow-skinny sqlalchemy alembic"
    )
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder, words = (
        keep(root, 1),
        ["mlflow", "toy", "--to", f"http://127.0.0.1:{server.server_port}"],
    )
    pd.DataFrame({"epoch": [1, 2], "loss": [1.0, 0.5]}).to_csv(folder / "curves.csv", index=False)
    for broken, said in {("", 401, "<html><body>\n<h1>No</h1></body></html>"): "MLFLOW_TRACKING_USERNAME", ("", 500, "{}"): "500", ("", 200, "<html>Who are you?</html>"): "not in a valid JSON format",
                         ("", 403, '{"error_code": "PERMISSION_DENIED", "message": "not yours"}'): "PERMISSION_DENIED: not yours; who you are", ("artifacts", 500, "disk full"): "500"}.items():  # fmt: skip
        server.broken = {broken[0]: broken[1:]}
        ended = CliRunner().invoke(app, words)
        assert (
            ended.exit_code == 2
            and said in ended.stderr
            and "<" not in ended.stderr
            and ended.stdout == ""
        ), (ended.stderr, ended.exception)
        assert len(ended.stderr.splitlines()) == 1
    assert server.there["status"] is None and server.there["run"]
    server.broken = {}
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 0 and ended.stdout.splitlines() == [
        "0 new, 1 renewed, 0 unchanged",
        "left out of 1 run: weights.safetensors",
        "left out of 1 run: parameter long beyond 6000 characters",
        "they are at",
        words[-1],
    ], (ended.output, ended.exception)
    assert (
        server.there["status"] == "FINISHED"
        and set(server.there["files"]) == {"notebook.ipynb", "report.html", "curves.csv"}
        and server.there["files"]["report.html"] == b"report.html"
    )
    assert {(one["key"], one["step"]) for one in server.there["metrics"]} == {
        ("accuracy", 0),
        ("curves/loss", 1),
        ("curves/loss", 2),
    }
    assert "0 new, 0 renewed, 1 unchanged" in CliRunner().invoke(app, words).stdout


@pytest.mark.long
def test_a_run_that_diverged_looks_like_one(root):
    "NaN and infinity arrive and are named; so is what stays behind; two names that MLflow would take for one stay two."
    pytest.importorskip(
        "mlflow", reason="MLflow is not installed: pip install mlflow-skinny sqlalchemy alembic"
    )
    from mlflow import MlflowClient

    folder = keep(
        root,
        1,
        metrics={"loss(a)": 1.0, "loss[a]": 2.0},
        package={},
        modules={"helper.py": "a" * 12},
        files={},
    )
    (folder / "curves.csv").write_text("epoch,loss\n1,1.0\n2,nan\n3,inf\n")
    (folder / "odd.csv").write_text("epoch,loss\n0.5,1.0\n1.0,0.5\n")
    said = []
    assert export_to_mlflow(load_runs(), tell=said.append)["new"] == 1
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("toy").experiment_id])
    values = [point.value for point in client.get_metric_history(run.info.run_id, "curves/loss")]
    assert values[0] == 1.0 and values[1] != values[1] and values[2] > 1e300
    assert (
        run.data.tags["neurobridge.not_finite"] == "curves/loss nan at 2, curves/loss inf at 3"
        and run.data.metrics["loss_a_"] == 1.0
        and run.data.metrics["loss_a__2"] == 2.0
    )
    left = run.data.tags["neurobridge.left_out"]
    assert (
        "weights.safetensors (19 bytes)" in left
        and "points of odd.csv: its steps are not whole numbers" in left
        and "parameter long" in left
    )
    assert (
        "left out of 1 run: weights.safetensors" in said and "neurobridge.modules" in run.data.tags
    )
