"Jobs of a batch system that end: at their time limit, without notice, or with nothing kept."

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook

from neurobridge.core.files import read_json
from neurobridge.lab import RunRefused, Sweep, run_notebook, run_sweep
from neurobridge.lab.run import lock
from neurobridge.lab.run.engine import kernel_environment
from neurobridge.lab.sweep import cluster, gpus, worker
from neurobridge.lab.sweep.cluster import batch_settings
from neurobridge.lab.sweep.gpus import lease_gpus
from neurobridge.lab.sweep.results_file import _locked
from neurobridge.lab.sweep.sweep_file import Resources

TRAINING = """import os, time, torch
from neurobridge.core import fit
from neurobridge.lab import record, run_dir
torch.manual_seed(0)
x = torch.randn(64, 4)
net = torch.nn.Linear(4, 2)
def begin(epoch, epochs):
    with open(run_dir() / "epochs.txt", "a") as file:
        file.write(f"{epoch} {os.environ.get('STAND_IN_JOB', 'none')}\\n")
    time.sleep(pause)
found = fit(net, (x, (x[:, 0] > 0).long()), epochs=epochs, lr=0.1, batch_size=16, on_epoch=begin,
            checkpoint=run_dir() / "fit.pt")
record({"loss": found.rows[-1]["train_loss"], "weight": net.weight[0, 0].item()})"""


def make(root, text, cell, parameters="n: int = 0"):
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    write(new_notebook(cells=[first, new_code_cell(cell)]), root / "p.ipynb")
    (root / "s.yaml").write_text(f"notebook: {root / 'p.ipynb'}\n{text}")
    return Sweep.from_yaml(root / "s.yaml")


@pytest.fixture
def root(root, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return root


# sbatch, squeue, scancel, and what SLURM does with a job: at its limit everything of it is killed
BATCH_SYSTEM = """#!{python}
import os, re, signal, subprocess, sys, time
from pathlib import Path

JOBS = Path({jobs!r})
SINCE = os.environ.get("STAND_IN_SINCE")  # a folder: a job's limit counts from its first epoch there


def kill_all(job):
    "Kill every process that has the mark of a job, as SLURM does by its control group."
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"STAND_IN_JOB={{job}}".encode() in (place / "environ").read_bytes().split(b"\\0"):
                if int(place.name) != os.getpid():
                    os.kill(int(place.name), signal.SIGKILL)
        except OSError:
            pass


def keep(job, limit):
    "Run the script of a job until it ends, is cancelled, or has had its time."
    began, why = time.monotonic(), "ended"
    with open(job / "log", "wb") as log:
        marked = os.environ | {{"STAND_IN_JOB": str(job)}}
        script = subprocess.Popen(["sh", str(job / "script")], env=marked, stdout=log, stderr=log)
        while script.poll() is None:
            if SINCE and not any(str(job) in f.read_text() for f in Path(SINCE).rglob("epochs.txt")):
                began = time.monotonic()  # it has not trained yet, however busy the machine is
            if (job / "cancel").exists() or time.monotonic() > began + limit:
                why = "cancelled" if (job / "cancel").exists() else "killed"
                kill_all(job)
                script.wait()
            time.sleep(0.05)
    kill_all(job)
    (job / "end.part").write_text(why)
    (job / "end.part").rename(job / "end")


command = Path(sys.argv[0]).name
if command == "sbatch":
    job = JOBS / str(len(list(JOBS.iterdir())) + 1)
    job.mkdir()
    text = Path(sys.argv[1]).read_text()
    (job / "script").write_text(text)
    hours, minutes, seconds = map(int, re.search(r"#SBATCH -t (\\d+):(\\d+):(\\d+)", text).groups())
    limit = float(os.environ.get("STAND_IN_LIMIT") or 3600 * hours + 60 * minutes + seconds)
    if os.fork() == 0:
        os.setsid()
        for number in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        keep(job, limit)
        os._exit(0)
    print("Submitted batch job", job.name)
elif command == "squeue":
    print("\\n".join(job.name for job in JOBS.iterdir() if not (job / "end").exists()))
else:
    for number in sys.argv[1:]:
        (JOBS / number / "cancel").touch()
"""


@pytest.fixture
def jobs(root, monkeypatch):
    "The folder of a batch system that kills jobs at their limit; it has one folder per job."
    pytest.importorskip("dask_jobqueue")
    if not Path("/proc/self/environ").exists():
        pytest.skip("the processes of a job are found in /proc")
    monkeypatch.setattr(cluster, "_PAUSE", 0.5)
    (folder := root / "jobs").mkdir()
    (root / "bin").mkdir()
    for name in ("sbatch", "squeue", "scancel"):
        text = BATCH_SYSTEM.format(python=sys.executable, jobs=str(folder))
        (root / "bin" / name).write_text(text)
        (root / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
    yield folder
    for job in folder.iterdir():
        (job / "cancel").touch()
    until = time.monotonic() + 30
    while any(not (job / "end").exists() for job in folder.iterdir()):
        assert time.monotonic() < until
        time.sleep(0.05)


def ends(jobs):
    "How each job has ended, in their order; waits until all have."
    until = time.monotonic() + 30
    found = sorted(jobs.iterdir(), key=lambda job: int(job.name))
    while not all((job / "end").exists() for job in found):
        assert time.monotonic() < until
        time.sleep(0.05)
    return [(job / "end").read_text() for job in found]


def trained(root, sweep):
    "The epochs that the run of a sweep began, with their jobs, and its metrics."
    (one,) = sweep.plan()
    lines = [line.split() for line in (one.folder / "epochs.txt").read_text().splitlines()]
    whole = run_notebook(root / "p.ipynb", {**one.params, "pause": 0.0})
    record = read_json(one.folder / "run.json")
    assert record["status"] == "done" and record["metrics"] == whole.metrics
    return [(int(epoch), job) for epoch, job in lines]


@pytest.mark.long
def test_a_run_goes_on_in_the_next_job_when_the_time_of_its_job_is_over(root, jobs, monkeypatch):
    "Not one counted death is allowed; the batch system kills at 60 s, the worker ends at 30 s."
    import dask

    text = "retries: 0\ngrid: {pause: [1.0], epochs: [34]}"
    sweep = make(root, text, TRAINING, "epochs: int = 1\npause: float = 0.0")
    said = []
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        run_sweep(sweep, 1, "slurm:walltime=00:01:00", tell=lambda _, line: said.append(line))
    epochs = trained(root, sweep)
    assert sorted({epoch for epoch, _ in epochs}) == list(range(1, 35))
    used = len({job for _, job in epochs})
    assert used >= 2 and len(epochs) <= 34 + used - 1  # each end costs the epoch it has met
    assert ends(jobs)[:-1] == ["ended"] * (len(ends(jobs)) - 1), ends(jobs)  # none met its limit
    assert sum("jobs have ended; 1 more submitted" in line for line in said) >= used - 1, said


@pytest.mark.long
def test_a_run_goes_on_in_the_next_job_when_its_job_was_killed_without_notice(
    root, jobs, monkeypatch
):
    monkeypatch.setenv("STAND_IN_LIMIT", "12")
    monkeypatch.setenv("STAND_IN_SINCE", str(root / "runs"))
    text = "retries: 0\ngrid: {pause: [0.5], epochs: [50]}"
    sweep = make(root, text, TRAINING, "epochs: int = 1\npause: float = 0.0")
    run_sweep(sweep, 1, "slurm:walltime=01:00:00")
    epochs = trained(root, sweep)
    used = len({job for _, job in epochs})
    assert sorted({epoch for epoch, _ in epochs}) == list(range(1, 51))
    assert used >= 2 and len(epochs) <= 50 + used - 1
    assert ends(jobs)[0] == "killed"


@pytest.mark.long
def test_a_run_that_keeps_nothing_is_ended_by_three_jobs_and_no_more(root, jobs, monkeypatch):
    monkeypatch.setattr(cluster, "_lifetime", lambda *_: 10)
    begun = root / "begun"
    cell = f"import time\nopen({str(begun)!r}, 'a').write('x')\ntime.sleep(1000)"
    sweep, said = make(root, "", cell), []
    table = run_sweep(sweep, 1, "slurm:walltime=00:30:00", tell=lambda _, line: said.append(line))
    assert table.status.tolist() == ["failed"] and begun.read_text() == "xxx"
    why = "its job's time was over 3 times, and it has kept nothing from which to go on"
    assert any(why in line for line in said), said
    assert "SIGTERM" in read_json(sweep.plan()[0].folder / "run.json")["error"]["evalue"]


def test_the_third_job_is_the_last_only_for_a_run_that_keeps_nothing(root, monkeypatch):
    (one,) = make(root, "", "pass").plan()
    names = ("params", "full", "id")
    task = {name: getattr(one, name) for name in names} | {"folder": str(one.folder), "cpu": 1}
    task |= {"page": str(root / "p.ipynb"), "gpu": None, "memory": None, "timeout": None}
    ran = []

    def run(*_, **__):
        ran.append(1)
        return SimpleNamespace(status="done")

    monkeypatch.setattr(worker, "run_notebook", run)
    one.folder.mkdir(parents=True)
    for name in ("run.json", "notebook.ipynb", "kernel.log", ".lock"):
        (one.folder / name).touch()  # these are the run's own, and nothing to go on from
    worker._kernels[task["folder"]] = None
    for _ in range(3):
        assert worker.perform(task)["status"] == "done"
        worker._kernels[task["folder"]] = None  # as in the middle of a run
        monkeypatch.setattr(worker, "stop_kernels", lambda folders: worker._kernels.clear())
        worker.end_of_job()
    ended = worker.perform(task)
    assert ended["status"] == "raised" and "has kept nothing" in ended["error"] and len(ran) == 3
    assert worker.perform(task)["status"] == "done"  # the same command again: a new count
    (one.folder / "fit.pt").touch()
    for _ in range(5):
        worker._kernels[task["folder"]] = None
        worker.end_of_job()
        assert worker.perform(task)["status"] == "done"


@pytest.mark.parametrize(
    "text, lifetime",
    [
        ("slurm:walltime=12:00:00", "--lifetime 42900s"),
        ("slurm:walltime=1-00", "--lifetime 86100s"),
        ("slurm:queue=x", "--lifetime 1620s"),  # dask-jobqueue's half hour
        ("slurm:walltime=UNLIMITED", ""),
        ("pbs:walltime=7200", "--lifetime 6900s"),
    ],
)
def test_a_worker_knows_the_time_of_its_job(root, text, lifetime):
    jobqueue = pytest.importorskip("dask_jobqueue")
    kind = jobqueue.SLURMCluster if text.startswith("slurm") else jobqueue.PBSCluster
    settings = batch_settings(text, Resources())
    script = cluster._private_job(kind, root)("tls://10.0.0.1:1", "a", **settings).job_script()
    assert lifetime in script and ("--lifetime" in script) == bool(lifetime), script


# File systems without locks


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_nothing_runs_where_there_are_no_locks(root, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    make(root, "", "open('ran', 'w')")
    with monkeypatch.context() as broken:
        broken.setattr(lock.fcntl, "flock", flock)
        with pytest.raises(RunRefused, match=r"can't be locked .*set NEUROBRIDGE_RUNS to a folder"):
            run_notebook(root / "p.ipynb")
        with pytest.raises(RunRefused, match="can't be locked"), _locked(root / "r.csv"):
            pass
    assert not (root / "ran").exists() and not list((root / "runs").rglob("run.json"))
    run_notebook(root / "p.ipynb")


def test_a_lock_that_is_refused_for_another_reason_is_an_error(root, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with pytest.raises(OSError, match="input/output"), lock.owned(root / "run"):
        pass


# GPUs of jobs


def hold_gpu(job):
    code = (
        "import sys\nfrom neurobridge.lab.sweep.gpus import lease_gpus\n"
        "with lease_gpus(1) as env: print(env['CUDA_VISIBLE_DEVICES'], flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=kernel_environment() | {"SLURM_JOB_ID": job}, **pipes
    )


def test_device_0_of_two_jobs_on_a_node_is_not_the_same_device(monkeypatch):
    device = f"t{os.getpid()}"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", device)
    other = hold_gpu("1")
    try:
        assert other.stdout.readline().strip() == device
        monkeypatch.setenv("SLURM_JOB_ID", "2")
        with lease_gpus(1) as mine:
            assert mine == {"CUDA_VISIBLE_DEVICES": device}
        monkeypatch.setenv("SLURM_JOB_ID", "1")  # two sweeps in one job do share its devices
        with gpus._gpu_lock(device) as free:
            assert not free
    finally:
        other.kill()
        other.wait()
