"The versions that `make` installs are among those that settings.ini allows."

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, requires, version

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from neurobridge.core.paths import project_root

ROOT = project_root()
sys.path.insert(0, str(ROOT / "tools"))
import versions  # noqa: E402

WANTED = versions.requirements()


def pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert len(found) == sum(not line.startswith("#") for line in lines)  # each once
    return found


@pytest.mark.parametrize("name", WANTED)
def test_what_make_installs_is_allowed(name):
    assert SpecifierSet(WANTED[name]).contains(pinned()[name], prereleases=True)


def test_torch_and_torchvision_are_a_pair():
    "torchvision names the one torch that it was built for."
    assert {"torch", "torchvision"} <= set(pinned())
    if version("torchvision").partition("+")[0] != pinned()["torchvision"]:
        pytest.skip("another torchvision is installed here")
    (wanted,) = [one for one in map(Requirement, requires("torchvision")) if one.name == "torch"]
    assert wanted.specifier.contains(pinned()["torch"])


def test_every_python_that_is_allowed_takes_the_constraints():
    oldest, looked_at = f"{versions.settings()['min_python']}.0", 0
    for name, version_then in pinned().items():
        try:
            there = distribution(name)
        except PackageNotFoundError:
            continue
        if there.version.partition("+")[0] == version_then:
            looked_at += 1
            assert SpecifierSet(there.metadata.get("Requires-Python") or "").contains(oldest), name
    assert looked_at > 0


def test_make_installs_within_the_constraints_unless_it_is_asked_not_to():
    def commands(*given):
        made = subprocess.run(
            ["make", "-n", "-W", "settings.ini", ".venv/.ready", *given],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert made.returncode == 0, made.stderr
        return [line for line in made.stdout.splitlines() if "pip install" in line]

    assert len(commands()) == 2
    assert all("--constraint constraints.txt" in line for line in commands())
    assert not any("--constraint" in line for line in commands("LATEST=1"))


def test_bounds_without_a_lowest_version_are_noticed(monkeypatch):
    monkeypatch.setattr(versions, "requirements", lambda: {"torch": "<3"})
    with pytest.raises(SystemExit, match="no lower bound for torch"):
        versions.lower_bounds()


def test_counts_are_those_of_pytest(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 0\n"
        "def test_c(): pytest.skip('no')\n@pytest.fixture\ndef broken(): raise OSError\n"
        "def test_d(broken): pass\n"
    )
    file = tmp_path / "junit.xml"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", f"--junitxml={file}", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        capture_output=True,
    )
    assert versions.counts(file) == {"passed": 1, "failed": 2, "skipped": 1}


REPORT = '<testsuite tests="3" failures="{}" errors="0" skipped="1"/>'


def test_what_has_passed_is_not_tried_again(tmp_path, monkeypatch):
    "An interruption in the second of three parts; then one that fails; then it is mended."
    parts = ["tests/a", "tests/b", "tests/test_c.py"]
    monkeypatch.setattr(versions, "test_parts", lambda: parts)
    ran, failing, fatal = [], set(), {"tests/b"}

    def run(python, *words, **settings):
        part = next(part for part in parts if part in words)
        ran.append(part)
        if part in fatal:
            raise KeyboardInterrupt
        (report,) = [word for word in words if str(word).startswith("--junitxml=")]
        with open(report.removeprefix("--junitxml="), "w") as file:
            file.write(REPORT.format(int(part in failing)))

    monkeypatch.setattr(versions, "run", run)
    with pytest.raises(KeyboardInterrupt):
        versions.quick_tests("python", tmp_path, [])
    fatal.clear()
    failing.add("tests/test_c.py")
    found = versions.quick_tests("python", tmp_path, [])
    assert ran == ["tests/a", "tests/b", "tests/b", "tests/test_c.py"]
    assert found == {"passed": 5, "failed": 1, "skipped": 3}
    failing.clear()
    assert versions.quick_tests("python", tmp_path, [])["failed"] == 0
    assert ran[4:] == ["tests/test_c.py"]


def test_the_parts_are_all_tests():
    files = {str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("test_*.py")}
    parts = versions.test_parts()
    assert all(any(file == part or file.startswith(f"{part}/") for part in parts) for file in files)
    assert "tests/lab" in parts and "tests/test_house.py" in parts
