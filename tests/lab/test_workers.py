"The runs of a sweep on workers: everything may be killed, and nothing finished is lost or done twice."

import contextlib
import contextvars
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook

from neurobridge.core.files import read_json
from neurobridge.lab import RunRefused, Scheduler, Sweep, run_notebook, run_sweep
from neurobridge.lab.run.engine import kernel_environment
from neurobridge.lab.sweep import cluster as jobs
from neurobridge.lab.sweep import dask_workers, dispatch, local_workers, worker
from neurobridge.lab.sweep.cluster import batch_settings
from neurobridge.lab.sweep.dask_workers import ClusterWorkers
from neurobridge.lab.sweep.dispatch import executor, room, work_off
from neurobridge.lab.sweep.gpus import lease_gpus
from neurobridge.lab.sweep.local_workers import LocalWorkers
from neurobridge.lab.sweep.sweep_file import Resources
from neurobridge.lab.sweep.worker import perform

distributed = pytest.importorskip("distributed")
FIRST = "import os, time\nfrom pathlib import Path\nfrom neurobridge.lab.run.execute import record, run_dir"


def make(root, text, *cells, parameters="n: int = 0\nseed: int = 0"):
    write(
        new_notebook(
            cells=[
                new_code_cell(parameters, metadata={"tags": ["parameters"]}),
                new_code_cell(FIRST),
                *map(new_code_cell, cells),
            ]
        ),
        root / "p.ipynb",
    )
    (root / "s.yaml").write_text(f"notebook: {root / 'p.ipynb'}\n{text}")
    return Sweep.from_yaml(root / "s.yaml")


@pytest.fixture(scope="module")
def threads():
    "Two workers that are threads of this process: quick to start, and they see what a test replaces."
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": ":0"},
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


ANSWER = []


def answer(*args):
    "Sent to workers by its name, so what a test puts into `ANSWER` is found there."
    return ANSWER[-1](*args)


def pretend(monkeypatch, outcome, name="perform"):
    "Let workers answer `outcome(task)` without running anything."
    ANSWER.append(outcome)
    monkeypatch.setattr(dask_workers, name, answer)


# Handing out


def test_failures_are_tried_again_with_growing_pauses(root, threads, monkeypatch):
    sweep, calls, news = make(root, "grid: {n: [1, 2, 3]}\nretries: 2\nbackoff: 0.2"), [], []

    def outcome(task):
        n = task["params"]["n"]
        calls.append((n, time.monotonic()))
        return {
            "status": "done"
            if n == 1 or (n == 2 and sum(c[0] == 2 for c in calls) == 2)
            else "failed",
            "error": f"no {n}",
        }

    pretend(monkeypatch, outcome)
    ended = work_off(
        ClusterWorkers(threads), sweep, sweep.plan(), lambda counts, line: news.append(line)
    )
    assert ended == {"done": 2, "failed": 1} and Counter(n for n, _ in calls) == {1: 1, 2: 2, 3: 3}
    when = [t for n, t in calls if n == 3]
    assert when[1] - when[0] >= 0.2 and when[2] - when[1] >= 0.4
    assert [line for line in news if "no 3" in line] == [
        "no 3; again in 0.2 s",
        "no 3; again in 0.4 s",
        "no 3",
    ]


def test_a_busy_run_is_waited_for_without_using_up_retries(root, threads, monkeypatch):
    sweep, calls = make(root, "retries: 0"), []
    pretend(
        monkeypatch,
        lambda task: {
            "status": "busy" if calls.append(1) or len(calls) < 3 else "done",
            "error": "another process",
        },
    )
    assert (
        work_off(ClusterWorkers(threads), sweep, sweep.plan(), lambda *_: None)
        == {"done": 1, "failed": 0}
        and len(calls) == 3
    )


def test_a_run_whose_workers_all_die_is_named(root, threads, monkeypatch):
    from distributed.scheduler import KilledWorker

    sweep, news = make(root, "retries: 0"), []

    def outcome(task):
        raise KilledWorker("key", SimpleNamespace(address="tcp://there"), 3)

    pretend(monkeypatch, outcome)
    assert work_off(
        ClusterWorkers(threads), sweep, sweep.plan(), lambda counts, line: news.append(line)
    ) == {"done": 0, "failed": 1}
    assert (
        f"p {sweep.plan()[0].folder.name}: 4 workers ended while they were at it: killed, out of "
        "memory, or out of wall time" in news
    )


def test_what_was_edited_meanwhile_stops_the_sweep(root, threads):
    sweep = make(root, "seeds: 2", "record({'n': n})")
    planned = sweep.plan()
    make(root, "seeds: 2", "record({'n': n + 1})")
    with pytest.raises(RunRefused, match="edited while the sweep ran; give the same command again"):
        work_off(ClusterWorkers(threads), sweep, planned, lambda *_: None)
    assert not (root / "runs" / "p").exists()


def test_errors_of_the_machinery_are_outcomes(root, monkeypatch):
    one = make(root, "").plan()[0]
    task = {
        "page": str(root / "p.ipynb"),
        "params": one.params,
        "full": one.full,
        "id": one.id,
        "folder": str(one.folder),
        "cpu": 1,
        "gpu": None,
        "memory": None,
        "timeout": None,
    }

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker, "run_notebook", full_disk)
    assert perform(task)["status"] == "failed" and "No space left" in perform(task)["error"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert perform(task | {"gpu": 2})["status"] == "refused"


# Where


def test_places_that_are_none(root):
    with pytest.raises(RunRefused, match="no scheduler answers at 'nowhere'"):
        with executor(Scheduler("nowhere", insecure=True), None, Resources(), 1):
            pass
    with pytest.raises(RunRefused, match="at least 1"):
        with executor(None, 0, Resources(), 1):
            pass
    with pytest.raises(RunRefused, match="key=value"):
        batch_settings("slurm:gpu", Resources())
    assert room(Resources()) == len(os.sched_getaffinity(0)) and room(Resources(cpu=10**6)) == 1


def test_workers_with_another_package_or_folder_are_refused(root, threads, monkeypatch):
    pretend(monkeypatch, lambda: str(time.time_ns()), "package_hash")
    with pytest.raises(RunRefused, match="another version of neurobridge"):
        with executor(threads, None, Resources(), 1):
            pass


def test_jobs_of_a_cluster(root):
    jobqueue = pytest.importorskip("dask_jobqueue")
    settings = batch_settings(
        "slurm:queue=gpu,walltime=01:00:00", Resources(cpu=4, gpu=2, memory=8 * 10**9)
    )
    with jobqueue.SLURMCluster(
        **settings, scheduler_options={"dashboard_address": ":0"}
    ) as cluster:
        script = cluster.job_script()
    for line in (
        "#SBATCH -p gpu",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH -t 01:00:00",
        "#SBATCH --gres=gpu:2",
        "--preload neurobridge.lab.sweep.worker",
        "--nthreads 1",
    ):
        assert line in script, script
    settings = batch_settings("pbs:queue=long", Resources(cpu=2, memory=8 * 10**9))
    with jobqueue.PBSCluster(**settings, scheduler_options={"dashboard_address": ":0"}) as cluster:
        assert "#PBS -l select=1:ncpus=2:ngpus=0:mem=9GB" in cluster.job_script()


@pytest.fixture
def commands(tmp_path, monkeypatch):
    "Batch commands of a test's own, in front of the PATH."
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()

    def write_command(name, body):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    return write_command


def test_a_batch_system_that_says_no(root, commands, monkeypatch):
    pytest.importorskip("dask_jobqueue")

    def refused(text):
        with pytest.raises(RunRefused) as error, executor(text, 2, Resources(), 2):
            pass
        assert "\n" not in str(error.value)
        return str(error.value)

    with monkeypatch.context() as bare:
        bare.setenv("PATH", str(root))
        assert "no command sbatch on this machine" in refused(
            "slurm:queue=x"
        ) and "no command qsub" in refused("pbs:queue=x")
    commands("sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    assert "no job was accepted: sbatch: error: invalid partition specified: x" in refused(
        "slurm:queue=x"
    )
    assert "'bogus'" in refused("slurm:bogus=1")
    commands("sbatch", "echo 'come back later'")
    assert "no job was accepted" in refused("slurm:queue=x")


def test_a_queue_is_waited_for(root, commands, monkeypatch):
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setattr(jobs, "_PAUSE", 0.5)
    job = (
        f"sed 's/^#SBATCH.*//' \"$1\" > {root}/job; (sleep 2; exec sh {root}/job) >/dev/null 2>&1 &"
    )
    commands(
        "sbatch",
        f"if [ -e {root}/job ]; then echo 'one job each' >&2; exit 1; fi; {job} echo Submitted "
        "batch job 7",
    )
    commands("squeue", "echo 7")
    commands("scancel", f"echo $* >> {root}/cancelled")
    said = []
    with executor("slurm:queue=x", 2, Resources(), 2, said.append) as found:
        assert found.room() == 1
    assert (
        said[0] == "1 of 2 jobs submitted (7); then: one job each"
        and "no worker is there, for" in said[1]
        and (root / "cancelled").read_text() == "7\n"
    )


@pytest.fixture
def batch_system(root, commands, monkeypatch):
    "A batch system of three commands; gives the folder with one file a job: its process, or nothing if it was taken back."
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setattr(jobs, "_PAUSE", 0.5)
    (root / "jobs").mkdir()
    commands("sbatch", f"cd {root}/jobs; id=$$; sed 's/^#SBATCH.*//' \"$1\" > ../script.$id\n"
             f"mkdir -p {root}/runs/.jobs; timeout 120 sh ../script.$id > {root}/runs/.jobs/dask-worker-$id.err 2>&1 & echo $! > $id; echo Submitted batch job $id")  # fmt: skip
    commands(
        "squeue",
        f"cd {root}/jobs; for id in *; do kill -0 $(cat $id) 2>/dev/null && echo $id; done; exit 0",
    )
    commands("scancel", f"cd {root}/jobs; kill $(cat $1) 2>/dev/null; : > $1")
    yield root / "jobs"
    for job in (root / "jobs").iterdir():
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(job.read_text()), signal.SIGTERM)


@pytest.mark.long
def test_a_sweep_outlives_its_jobs(root, batch_system):
    "After each of the first two runs its job is ended, as the end of its wall time would."
    sweep, said, ended = (
        make(root, "grid: {n: [1, 2, 3, 4]}", "time.sleep(1)", "record({'twice': 2 * n})"),
        [],
        set(),
    )

    def tell(counts, line):
        said.append((counts, line))
        if 2 >= counts["done"] > len(ended):
            alive = {job for job in batch_system.iterdir() if job.read_text().strip()} - ended
            ended.update(alive)
            for job in alive:
                os.kill(int(job.read_text()), signal.SIGTERM)

    table = run_sweep(sweep, workers=1, scheduler="slurm:queue=x", tell=tell)
    assert table.status.tolist() == ["done"] * 4 and table.twice.tolist() == [2, 4, 6, 8]
    assert sum("1 of 1 jobs have ended; 1 more submitted" in line for _, line in said) >= 2, said
    assert all(sum(counts.values()) == 4 and counts["running"] <= 1 for counts, _ in said)


def test_jobs_that_die_at_once_stop_the_sweep_with_their_last_words(
    root, batch_system, commands, monkeypatch
):
    commands("broken", "echo 'no module named torch' >&2; exit 1")
    with pytest.raises(
        RunRefused,
        match="3 jobs in a row have ended before their worker has reported; .*no module named torch",
    ):
        run_sweep(
            make(root, "grid: {n: [1, 2, 3]}"), workers=1, scheduler="slurm:queue=x,python=broken"
        )
    assert len(list(batch_system.iterdir())) == 3


@pytest.mark.long
def test_a_queue_that_does_not_answer_is_asked_again(root, batch_system, commands):
    "While nothing can be submitted, what is there goes on; afterwards the job that is missing is submitted."
    sweep, said = (
        make(
            root,
            "grid: {n: [1, 2, 3, 4]}",
            f"while not Path({str(root / 'go')!r}).exists(): time.sleep(0.05)",
        ),
        [],
    )
    sbatch = root / "bin" / "sbatch"
    works = sbatch.read_text()

    def tell(counts, line):
        said.append(line)
        if (
            counts["running"] == 2
            and len(list(batch_system.iterdir())) == 2
            and sbatch.read_text() == works
        ):
            commands("sbatch", "echo 'sbatch: error: the controller is broken' >&2; exit 1")
            subprocess.run(
                [root / "bin" / "scancel", min(job.name for job in batch_system.iterdir())],
                check=True,
            )
        elif "broken" in line:
            sbatch.write_text(works)
        elif "more submitted" in line and "jobs have ended" not in line:
            (root / "go").touch()

    table = run_sweep(sweep, workers=2, scheduler="slurm:queue=x", tell=tell)
    assert set(table.status) == {"done"} and len(list(batch_system.iterdir())) == 3
    assert any(
        line == "1 of 2 jobs have ended; then: sbatch: error: the controller is broken"
        for line in said
    ), said


def test_ctrl_c_takes_the_jobs_back(root, batch_system, commands):
    commands(
        "sbatch", f"sleep 60 >/dev/null 2>&1 & echo $! > {root}/jobs/1; echo Submitted batch job 1"
    )
    make(root, "")
    command = [
        sys.executable,
        "-c",
        "import sys\nfrom neurobridge.lab.cli import app\nsys.exit(app())",
        "sweep",
        str(root / "s.yaml"),
        "--slurm",
        "queue=x",
    ]
    driver = subprocess.Popen(command, env=kernel_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # fmt: skip
    assert "1 of 1 jobs submitted" in driver.stdout.readline()
    driver.send_signal(signal.SIGINT)
    out, _ = driver.communicate(timeout=60)
    assert (
        driver.returncode == 130 and "interrupted" in out and (batch_system / "1").read_text() == ""
    ), out


def test_what_this_machine_has_not_got_is_said_before_anything_starts(root, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    said = []
    with (
        pytest.raises(RunRefused, match="takes 4 GPUs .* this machine shows 0: take fewer"),
        executor(None, 1, Resources(gpu=4), 1),
    ):
        pass
    dispatch._too_small(Resources(cpu=10**6, memory=10**15), said.append)
    assert (
        "1000000 threads" in said[0]
        and "1e+06 GB" in said[1]
        and dispatch._too_small(Resources(gpu=0), said.append) is None
        and len(said) == 2
    )


def test_gpus_are_never_shared(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"a{os.getpid()},b{os.getpid()},c{os.getpid()}")
    hold = "import sys\nfrom neurobridge.lab.sweep.gpus import lease_gpus\nwith lease_gpus(2) as env: print(env['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", hold],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=kernel_environment(),
    )
    theirs = set(other.stdout.readline().strip().split(","))
    with lease_gpus(1) as mine:
        assert len(theirs) == 2 and not theirs & {mine["CUDA_VISIBLE_DEVICES"]}
    other.kill()
    other.wait()
    with lease_gpus(3) as mine:
        assert theirs < set(mine["CUDA_VISIBLE_DEVICES"].split(","))
    with pytest.raises(RunRefused, match="takes 4 GPUs; this machine shows 3"), lease_gpus(4):
        pass


# Everything killed


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    "A runs folder on a disk of its own, of sixteen megabytes."
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("a small disk can't be mounted here")
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(disk))
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


DRIVER = """
import os, sys
from neurobridge.lab import Sweep, run_sweep
if __name__ == "__main__":
    run_sweep(Sweep.from_yaml(sys.argv[1]), 2, tell=lambda counts, news: print(counts["done"], news, flush=True))
"""
WORK = """log = os.open(os.environ["WORK_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(log, f"{os.getpid()} begun {seed} {time.time()}\\n".encode()); time.sleep(0.1)
os.write(log, f"{os.getpid()} ended {seed} {time.time()}\\n".encode()); record({"square": seed**2})"""


def descendants(pid):
    found, todo = [], [pid]
    while todo:
        try:
            tasks = os.listdir(f"/proc/{(parent := todo.pop())}/task")
        except OSError:  # the process is gone by now
            continue
        for task in tasks:
            try:
                new = [
                    int(child)
                    for child in Path(f"/proc/{parent}/task/{task}/children").read_text().split()
                ]
            except OSError:  # the thread is
                continue
            found, todo = found + new, todo + new
    return found


def running(word, pids):
    "Those of the processes whose command line holds a word."
    found = []
    for pid in pids:
        try:
            found += [pid] * (word in Path(f"/proc/{pid}/cmdline").read_text())
        except OSError:
            pass
    return found


def log_lines(file):
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def victims(kind, driver):
    "The processes that may be killed as a kernel, a worker or the driver."
    family = descendants(driver.pid)
    servers = running("_serve", family)  # of warm kernels, and the kernels forked from them
    kernels = [pid for server in servers for pid in running("_serve", descendants(server))]
    return {"driver": [driver.pid], "worker": running("_do_runs", family), "kernel": kernels}[kind]


def kill_one(kind, driver, chance):
    "Kill one at random, waiting until there is one."
    while driver.poll() is None:
        for pid in chance.sample(found := victims(kind, driver), min(1, len(found))):
            try:
                os.kill(pid, signal.SIGKILL)
                return True
            except ProcessLookupError:
                pass
    return False


def fill(disk, seconds):
    "Leave no room on a disk for a while."
    filler, until = disk / "filler", time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
            while file.write(bytes(2**12)):
                pass
        time.sleep(0.01)
    filler.unlink()


def torture(root, runs, plan, chance):
    "Run a sweep while things happen to it, each after so many completions; give the sweep, the times of the events and the log."
    sweep = make(root, f"seeds: {runs}\nretries: 10\nbackoff: 0.1", WORK)
    (root / "driver.py").write_text(DRIVER)
    log, news, env = (
        root / "log",
        open(root / "news", "a"),
        kernel_environment() | {"WORK_LOG": str(root / "log"), "OMP_NUM_THREADS": "1"},
    )

    def start():
        return subprocess.Popen(
            [sys.executable, str(root / "driver.py"), str(root / "s.yaml")],
            env=env,
            stdout=news,
            stderr=subprocess.PIPE,
            text=True,
        )

    driver, events, deadline = start(), [], time.monotonic() + 900
    for kind, after in plan:
        while (
            sum(line[1:2] == ["ended"] for line in log_lines(log)) < after and driver.poll() is None
        ):
            assert time.monotonic() < deadline, log_lines(log)
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.3))
        since = time.time()
        if kind == "disk":
            fill(Path(os.environ["NEUROBRIDGE_RUNS"]), 3)
        else:
            assert kill_one(kind, driver, chance), driver.stderr.read()
        events.append((kind, since, time.time()))
        if kind == "driver":
            driver.wait()
            driver = start()
    assert driver.wait(timeout=max(1, deadline - time.monotonic())) == 0, driver.stderr.read()
    news.close()
    return sweep, events, log_lines(log)


def needless(events, lines):
    "Completions that were followed by another of the same run although nothing had happened in between."
    found, running = [], {}
    for _, what, seed, when in lines:
        if what == "begun":
            begun, ended = running.get(seed, (None, None))
            if ended and not any(
                since < float(when) and until > begun for _, since, until in events
            ):
                found.append((seed, begun, ended, when))
            running[seed] = (float(when), None)
        else:
            running[seed] = (running[seed][0], float(when))
    return found


def whole(sweep):
    "All results are there and right, and nothing is run again."
    records = [read_json(one.folder / "run.json") for one in sweep.plan()]
    assert [record["metrics"] for record in records] == [
        {"square": one.full["seed"] ** 2} for one in sweep.plan()
    ] and {record["status"] for record in records} == {"done"}
    return (
        run_sweep(sweep, scheduler="tcp://127.0.0.1:1")["status"].eq("done").all()
    )  # no scheduler is there, and none is asked


@pytest.mark.long
def test_torture(root):
    "A kernel, a worker and the driver are killed; the same command ends with every result, none computed twice without need."
    plan = [("kernel", 1), ("worker", 3), ("driver", 5), ("kernel", 7)]
    sweep, events, lines = torture(root, 12, plan, random.Random(0))
    assert whole(sweep) and not needless(events, lines), (events, lines)


@pytest.mark.slow
def test_torture_at_full_size(root, small_disk):
    "200 runs, two workers: at random, ten kernels, a worker and twice the driver are killed, and the disk is full for a while."
    chance, runs = random.Random(0), 200
    kinds = ["kernel"] * 10 + ["worker", "driver", "driver", "disk"]
    chance.shuffle(kinds)
    since = time.monotonic()
    sweep, events, lines = torture(
        root,
        runs,
        list(zip(kinds, sorted(chance.sample(range(4, runs - 10), len(kinds))), strict=True)),
        chance,
    )
    seconds, ended = (
        time.monotonic() - since,
        Counter(line[2] for line in lines if line[1] == "ended"),
    )
    print({"runs": runs, "begun": sum(line[1] == "begun" for line in lines), "completions": sum(ended.values()), "completed twice": sum(n - 1 for n in ended.values()),
           "needless": len(needless(events, lines)), "events": Counter(kind for kind, *_ in events), "seconds": round(seconds)})  # fmt: skip
    assert (
        whole(sweep)
        and set(ended) == {str(seed) for seed in range(runs)}
        and not needless(events, lines)
    ), (events, lines)
    assert not [file for file in small_disk.rglob("*.part")] and all(
        said in (root / "news").read_text() for said in ("No space left", "SIGKILL")
    )


def test_ctrl_c_stops_everything_and_the_same_sweep_goes_on(root, threads, monkeypatch):
    sweep = make(
        root,
        "seeds: 2",
        WORK.replace(
            "time.sleep(0.1)",
            "time.sleep(0 if Path(os.environ['WORK_LOG'] + '.go').exists() else 1000)",
        ),
    )
    (root / "driver.py").write_text(DRIVER)
    log = root / "log"
    env = kernel_environment() | {"WORK_LOG": str(log), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(root / "driver.py"), str(root / "s.yaml")]
    driver = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # fmt: skip
    until = time.monotonic() + 900
    while not log_lines(log):
        assert time.monotonic() < until and driver.poll() is None, driver.stderr.read()
        time.sleep(0.05)
    family = descendants(driver.pid)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to all processes of the command
    _, said = driver.communicate(timeout=120)
    assert said.count("Traceback") <= 1, said
    while any(
        Path(f"/proc/{pid}").exists()
        and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
        for pid in family
    ):
        assert time.monotonic() < until
        time.sleep(0.05)
    Path(f"{log}.go").touch()
    monkeypatch.setenv("WORK_LOG", str(log))
    assert (run_sweep(sweep, scheduler=threads)["status"] == "done").all()
    assert sorted(line[2] for line in log_lines(log) if line[1] == "ended") == ["0", "1"]


def test_ctrl_c_twice_while_workers_start(root):
    make(root, "seeds: 4", "time.sleep(1000)")
    command = [
        sys.executable,
        "-c",
        "from neurobridge.lab.cli import app; app()",
        "sweep",
        str(root / "s.yaml"),
        "--workers",
        "2",
    ]
    driver = subprocess.Popen(command, env=kernel_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # fmt: skip
    until = time.monotonic() + 120
    while not running("_do_runs", descendants(driver.pid)):
        assert time.monotonic() < until and driver.poll() is None, driver.stderr.read()
        time.sleep(0.01)
    for _ in range(2):
        os.killpg(driver.pid, signal.SIGINT)
        time.sleep(0.3)
    _, said = driver.communicate(timeout=120)
    assert (
        driver.returncode == 130
        and said
        == "neurobridge: interrupted; the same command runs what is left, each from where its page "
        "saved itself last\n"
    ), said


def wait_out(found):
    ended = []
    while not ended:
        ended = found.wait(10)
    return ended


@pytest.fixture
def local():
    with contextlib.closing(LocalWorkers(1)) as found:
        yield found


@pytest.mark.long
def test_a_run_that_kills_its_workers_is_named(root, local, monkeypatch):
    sweep = make(
        root,
        "",
        "import "
        "signal\nos.kill(int(Path(f'/proc/{os.getppid()}/stat').read_text().rpartition(')')[2].split()[1]), "
        ""
        "signal.SIGKILL); time.sleep(1000)",
    )
    monkeypatch.setattr(local_workers, "_DEATHS", 2)
    news = []
    assert work_off(local, sweep, sweep.plan(), lambda counts, line: news.append(line)) == {
        "done": 0,
        "failed": 1,
    }
    assert [line.partition(";")[0] for line in news if line] == [
        f"p {sweep.plan()[0].folder.name}: 3 workers ended while they were at it: killed, out of "
        "memory, or out of wall time"
    ] * 2


def test_workers_that_cannot_start_are_given_up(root, monkeypatch, capfd):
    monkeypatch.setattr(
        local_workers,
        "new_python",
        lambda *_: [sys.executable, "-c", "raise SystemExit('no such package')"],
    )
    sweep = make(root, "")
    with pytest.raises(
        RunRefused, match="3 in a row ended with exit code 1; what the last one printed is above"
    ):
        run_sweep(sweep, workers=1)
    assert capfd.readouterr().err.count("no such package") >= 3


def test_an_idle_worker_that_dies_is_replaced(root, local):
    sweep = make(root, "seeds: 2", "record({'n': seed})")
    local._processes[0].process.kill()
    assert work_off(local, sweep, sweep.plan(), lambda *_: None) == {"done": 2, "failed": 0}


def test_an_error_of_the_machinery_is_the_runs_and_not_the_workers(local):
    before = local._processes[0].process.pid
    key = local.submit({"page": None, "folder": "runs/p/0"})
    assert wait_out(local)[0][0] == key and local._processes[0].process.pid == before


@pytest.mark.long
def test_a_driver_that_runs_without_a_main_guard(root):
    "Workers do not import the driver's script again."
    make(root, "", "record({'n': n})")
    (root / "driver.py").write_text(DRIVER.replace('if __name__ == "__main__":', "if True:"))
    subprocess.run(
        [sys.executable, str(root / "driver.py"), str(root / "s.yaml")],
        env=kernel_environment(),
        check=True,
        capture_output=True,
    )


def test_a_full_disk_costs_attempts_and_no_results(root, small_disk, threads):
    "Nothing can be written while another program fills the disk; when there is room again, the sweep ends whole."
    sweep, news = (
        make(root, "seeds: 3\nretries: 20\nbackoff: 0.01", "record({'square': seed**2})"),
        [],
    )
    filler = small_disk / "filler"
    with pytest.raises(OSError), open(filler, "wb", buffering=0) as file:
        while file.write(bytes(2**16)):
            pass

    def tell(counts, line):
        if line:
            news.append(line)
            filler.unlink(missing_ok=True)

    assert work_off(ClusterWorkers(threads), sweep, sweep.plan(), tell) == {"done": 3, "failed": 0}
    assert "No space left" in news[0] and not filler.exists()
    assert [read_json(one.folder / "run.json")["metrics"] for one in sweep.plan()] == [
        {"square": seed**2} for seed in range(3)
    ]
    assert not [file for file in small_disk.rglob("*.part")]


def test_two_sweeps_in_one_folder(root, threads):
    "A run that is busy elsewhere is not done twice."
    sweep = make(
        root,
        "seeds: 2",
        "Path(os.environ['NEUROBRIDGE_RUNS']).joinpath(f'{seed}-{os.getpid()}').touch()\ntime.sleep(1)\nrecord({'n': "
        ""
        "seed})",
    )
    first = threading.Thread(
        target=run_notebook, args=(root / "p.ipynb", {"seed": 1})
    )  # the lock is one of open files: a thread holds it as a process does
    first.start()
    until = time.monotonic() + 60
    while not list((root / "runs").glob("1-*")):
        assert time.monotonic() < until
        time.sleep(0.02)
    ended = work_off(ClusterWorkers(threads), sweep, sweep.plan(), lambda *_: None)
    assert (
        ended == {"done": 2, "failed": 0}
        and first.join() is None
        and len(list((root / "runs").glob("1-*"))) == 1
    )
    assert not run_notebook(root / "p.ipynb", {"seed": 0}).fresh


def test_two_pages_in_threads_of_one_context(root):
    "As dask's tasks are, if their worker was started where Jupyter has been used."
    make(root, "", "record({'n': n})")
    run_notebook(root / "p.ipynb", {"n": 0})
    found = []
    pages = [
        threading.Thread(
            target=contextvars.copy_context().run,
            args=(lambda n: found.append(run_notebook(root / "p.ipynb", {"n": n}).metrics), n),
        )
        for n in (1, 2)
    ]
    for page in pages:
        page.start()
    for page in pages:
        page.join()
    assert sorted(each["n"] for each in found) == [1, 2]


def test_no_forking_if_so_wished(root, threads, monkeypatch):
    monkeypatch.setenv("NEUROBRIDGE_PRELOAD", "")
    sweep = make(root, "", "record({'parent': os.getppid()})")
    assert work_off(ClusterWorkers(threads), sweep, sweep.plan(), lambda *_: None) == {
        "done": 1,
        "failed": 0,
    }
    assert read_json(sweep.plan()[0].folder / "run.json")["metrics"] == {"parent": os.getpid()}


@pytest.mark.long
def test_a_scheduler_started_elsewhere(root):
    "Two workers of a scheduler that is reached by its address leave the same table as local ones."
    sweep, env = (
        make(root, "grid: {n: [1, 2]}\nseeds: [1]", "record({'product': n * (seed + 1)})"),
        kernel_environment(),
    )
    dask = [
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        "--port",
        "0",
        "--dashboard-address",
        ":0",
        "--scheduler-file",
        str(root / "s.json"),
    ]
    work = [
        sys.executable,
        "-m",
        "distributed.cli.dask_worker",
        "--scheduler-file",
        str(root / "s.json"),
        "--nthreads",
        "1",
        "--no-nanny",
        "--no-dashboard",
        "--preload",
        "neurobridge.lab.sweep.worker",
    ]
    processes = [
        subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=root
        )
        for command in (dask, work, work)
    ]
    try:
        until = time.monotonic() + 120
        while not (root / "s.json").exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        table = run_sweep(
            sweep, scheduler=Scheduler(read_json(root / "s.json")["address"], insecure=True)
        )
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(60)
    assert table["status"].tolist() == ["done"] * 2 and table["product"].tolist() == [2, 4]
