"""The way in for somebody who has only pip: a wheel in a fresh environment, and an empty folder.

python tests/lab/front_door.py     prints the transcript, from `pip install` to the report of a sweep

`test_front_door.py` runs the same commands, and asks what they say.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["limit", "900", "epochs", "2", "pretrain_epochs", "2", "finetune_epochs", "1"]
SMALL += ["long_epochs", "1", "threads", "1"]
GIVEN = [word for i in range(0, len(SMALL), 2) for word in ("-p", *SMALL[i : i + 2])]
COMMANDS = [
    ["neurobridge", "--version"],
    ["neurobridge", "list"],
    ["neurobridge", "run", "pipe_s", "--help"],
    ["neurobridge", "run", "pipe_s", *GIVEN],
    ["neurobridge", "new", "mine"],
    ["neurobridge", "run", "mine.ipynb"],
    ["neurobridge", "sweep", "mine.yaml", "--workers", "2"],
    ["neurobridge", "table", "mine.yaml"],
    ["neurobridge", "table", "mine.yaml", "--best", "3", "--by", "accuracy"],
    ["neurobridge", "table", "mine", "--group", "T"],
    ["neurobridge", "compare", "mine", "pipe_s"],
    ["neurobridge", "results", "mine"],
    ["neurobridge", "report", "mine.yaml"],
    [sys.executable, "-m", "neurobridge", "table"],
]
"""What a person types, one command after the other, in an empty folder."""


def copied_checkout(folder: Path) -> Path:
    "Copy the files of the checkout that git knows, or would take, into a folder."
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if os.path.lexists(ROOT / name):  # it may be deleted and not committed
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def built_wheel(folder: Path) -> Path:
    "Build the sdist, and the wheel from the sdist, as `make dist` does."
    source = copied_checkout(folder / "source")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, (built.stdout + built.stderr)[-3000:]
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def installed(folder: Path, wheel: Path) -> Path:
    """Make an environment with the wheel; return its Python.

    What the package requires is not installed anew, which would take minutes: the environment
    looks for it where the tests have it. The checkout is on no path.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    places = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "of_the_tests.pth").write_text("\n".join(places) + "\n")
    return python


def surroundings(python: Path) -> dict[str, str]:
    "Return the variables of a shell in which the environment is active, and nothing else is set."
    env = {name: value for name, value in os.environ.items() if not name.startswith("NEUROBRIDGE")}
    env.pop("PYTHONPATH", None)
    return env | {
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }


def transcript(
    python: Path, folder: Path
) -> Iterator[tuple[list[str], subprocess.CompletedProcess[str], float]]:
    "Run each command in a folder, and yield it with what it printed and the seconds it took."
    for command in COMMANDS:
        words = [str(python) if word == sys.executable else word for word in command]
        words[0] = shutil.which(words[0], path=str(python.parent)) or words[0]
        started = time.monotonic()
        ended = subprocess.run(
            words,
            cwd=folder,
            env=surroundings(python),
            capture_output=True,
            text=True,
            timeout=1800,
        )
        yield command, ended, time.monotonic() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        wheel = built_wheel(Path(place))
        python = installed(Path(place) / "venv", wheel)
        print(f"$ pip install {wheel.name}\n")
        empty = Path(place) / "empty"
        empty.mkdir()
        for command, ended, seconds in transcript(python, empty):
            shown = ["python" if word == sys.executable else word for word in command]
            print(f"$ {' '.join(shown)}\n{ended.stdout}{ended.stderr}", end="")
            print(f"[{ended.returncode}, {seconds:.0f} s]\n")
        kept = sorted(path.relative_to(empty).as_posix() for path in empty.rglob("*"))
        print("\n".join(name for name in kept if name.count("/") < 4))


if __name__ == "__main__":
    main()
