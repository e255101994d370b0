"""JupyterLab as `make lab` starts it, in a browser: pages run without errors and holes, and git sees only their outputs.

Chromium is driven by its DevTools protocol through a pair of pipes, so that nothing listens for the browser. JupyterLab runs on a copy of the
notebooks. Without Chromium the tests are skipped.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

import neurobridge

ROOT = Path(neurobridge.__file__).resolve().parents[1]
NAMES = ["chromium", "chromium-browser", "google-chrome"]
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
PAGES = ["tutorials/02_ann_to_snn.ipynb", "tutorials/05_the_bridge.ipynb"]


class Browser:
    "One tab of Chromium."

    def __init__(self, folder):
        here, there = os.pipe(), os.pipe()  # commands to Chromium's 3, answers from its 4
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += ["--remote-debugging-pipe", "--no-first-run", "--window-size=1280,1000"]
        flags += ["--disable-background-networking", f"--user-data-dir={folder}"]
        shell = f'exec "$@" 3<&{here[0]} 4>&{there[1]}'
        self.process = subprocess.Popen(
            ["/bin/bash", "-c", shell, "bash", BROWSER, *flags, "about:blank"],
            pass_fds=[here[0], there[1]],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(here[0])
        os.close(there[1])
        self.commands, self.answers = os.fdopen(here[1], "wb", 0), os.fdopen(there[0], "rb")
        self.number, self.session, self.rest = 0, None, b""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]

    def ask(self, method, **params):
        "Send one command and return its answer; events are passed over."
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        self.commands.write(json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.rest:
                came = self.answers.read1(2**20)
                assert came, "Chromium has ended"
                self.rest += came
            line, _, self.rest = self.rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def run(self, code):
        "Return the value of a JavaScript expression; a promise is waited for."
        told = self.ask("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


def until(seconds, found):
    "Return the first true value of a function."
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
    return value


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    "A repository with the notebooks, the settings and the Makefile, and pages that show bars."
    root = tmp_path_factory.mktemp("checkout")
    names = ["nbs", "tools", "sweeps", "Makefile", "settings.ini", "setup.py", "pyproject.toml"]
    names += [".gitignore"]
    for name in names:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    for name, cell in (("bars", BARS), ("sweep", SWEEP)):
        text = json.dumps(page_with(cell), indent=1, sort_keys=True)
        (root / "nbs" / f"{name}.ipynb").write_text(text + "\n")
    for words in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm first"):
        subprocess.run(["git", *words.split()], cwd=root, check=True)
    return root


BARS = """
from neurobridge.core.progress import progress_bar
import time
print('before')
for n in range(3):
    with progress_bar(f'part {n}', 4) as move:
        for step in range(4):
            move(step + 1)
            time.sleep(0.15)
print('after')
""".strip()
SWEEP = """
import json, tempfile
from pathlib import Path
from neurobridge.lab import Sweep, run_sweep
print('before')
folder = Path(tempfile.mkdtemp())
page = json.loads(Path('bars.ipynb').read_text())
first, second = page['cells']
first |= {'source': 'n: int = 1', 'metadata': {'tags': ['parameters']}, 'outputs': []}
# long enough for each state to be drawn on a busy machine
work = 'import time, neurobridge.lab as lab; time.sleep(3); lab.record({"y": n})'
second |= {'source': work, 'outputs': []}
(folder / 'toy.ipynb').write_text(json.dumps(page))
(folder / 'toy.yaml').write_text('notebook: toy.ipynb\\ngrid: {n: [1, 2, 3]}')
table = run_sweep(Sweep.from_yaml(folder / 'toy.yaml'), workers=1)
print(table.status.tolist())
""".strip()


def page_with(cell):
    "A page with a cell, and one that fails."
    code = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    return {
        "cells": [
            {**code, "id": "one", "source": cell.splitlines(True)},
            {**code, "id": "two", "source": ["1 / 0"]},
        ],
        "metadata": {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }  # fmt: skip


@pytest.fixture(scope="module")
def address(checkout, tmp_path_factory):
    "The address of a running `make lab`, as root and without a browser."
    if not BROWSER:
        pytest.skip(f"no Chromium on the PATH ({', '.join(NAMES)})")
    if not importlib.util.find_spec("jupyterlab") or not shutil.which("make"):
        pytest.skip("JupyterLab or make is not installed")
    config = tmp_path_factory.mktemp("config")
    (config / "labconfig").mkdir()
    # every cell is in the document, not only those in sight
    shown = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}
    (config / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(shown))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = "--no-browser --allow-root --LabApp.expose_app_in_browser=True"
    options += f" --ip=127.0.0.1 --port={port} --IdentityProvider.token=secret"
    made = [f"BIN={Path(sys.executable).parent}", f"LAB_ARGS={options}"]
    env = os.environ | {
        "JUPYTER_CONFIG_DIR": str(config),
        "JUPYTER_DATA_DIR": str(config / "data"),
        "OMP_NUM_THREADS": "1",
        "NEUROBRIDGE_RUNS": str(config / "runs"),
    }
    lab = subprocess.Popen(
        ["make", "-o", ".venv/.ready", "lab", *made],
        cwd=checkout,
        env=env,
        stdout=(config / "log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"

    def answers():
        assert lab.poll() is None, (config / "log").read_text()
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{address}/api?token=secret", timeout=10).status == 200

    try:
        until(120, answers)
        yield address
    finally:
        os.killpg(lab.pid, signal.SIGTERM)
        lab.wait(60)


@pytest.fixture
def tab(address, tmp_path):
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


BLANK = """
[...document.querySelectorAll('.jp-Notebook .jp-OutputArea-child')].filter(child => {
  const shown = child.querySelector('img, svg, canvas, iframe, table, progress, .jp-RenderedLatex');
  return !shown && !child.innerText.trim() && child.getBoundingClientRect().height > 8;
}).map(child => [child.getBoundingClientRect().height, child.outerHTML.slice(0, 300)])
"""
ERRORS = """
window.jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells
  .flatMap(cell => cell.outputs || []).filter(output => output.output_type === 'error').length
"""
WATCH = """
window.seen = [];
new MutationObserver(() => window.seen.push(
  [...document.querySelectorAll('.jp-OutputArea-child:has(progress)')].map(child => child.innerText)
)).observe(document.body, {subtree: true, childList: true}); 0
"""
NEWS = "document.querySelectorAll('.Toastify__toast, .jp-Dialog').length"


def opened(tab, address, page):
    "Open a page in JupyterLab; return when its kernel is ready."
    tab.ask("Page.navigate", url=f"{address}/lab/tree/{page}?token=secret&reset")
    until(
        90,
        lambda: tab.run("!!window.jupyterapp && !!document.querySelector('.jp-Notebook .jp-Cell')"),
    )
    tab.run("window.jupyterapp.restored.then(() => true)")
    ready = "window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status"
    until(120, lambda: tab.run(ready) == "idle")


def run_and_store(tab):
    "Run all cells and store the page."
    tab.run("window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)")
    until(60, lambda: tab.run("!document.querySelector('.jp-Notebook .jp-mod-running')"))
    tab.run("window.jupyterapp.commands.execute('docmanager:save').then(() => true)")


def only_outputs(root, page):
    "Return whether a page's file differs from the committed one in outputs at most, byte for byte."
    shown = subprocess.run(
        ["git", "show", f"HEAD:nbs/{page}"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    stored = (root / "nbs" / page).read_text(encoding="utf-8")
    before, after = json.loads(shown), json.loads(stored)
    assert stored == json.dumps(after, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    for one, other in zip(before["cells"], after["cells"], strict=True):
        if "outputs" in one:
            one["outputs"] = other["outputs"]
    return json.dumps(before, indent=1, ensure_ascii=False, sort_keys=True) + "\n" == stored


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES)
def test_a_page_that_is_run_has_no_error_and_no_hole(page, checkout, address, tab):
    opened(tab, address, page)
    assert tab.run(NEWS) == 0
    run_and_store(tab)
    assert tab.run(ERRORS) == 0
    assert tab.run(BLANK) == []
    assert tab.run(NEWS) == 0
    assert only_outputs(checkout, page)
    changed = subprocess.run(
        ["git", "status", "--porcelain"], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    assert {line[3:] for line in changed if line} <= {
        f"nbs/{each}" for each in [*PAGES, "bars.ipynb", "sweep.ipynb"]
    }


def lines_while_running(tab, address, page):
    "Run a page up to its second cell; return what its bars said, one display for the cell."
    opened(tab, address, page)
    tab.run(WATCH)
    tab.run("window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)")
    until(180, lambda: tab.run(ERRORS) == 1)  # of the second cell
    seen = tab.run("window.seen")
    assert max(map(len, seen)) == 1
    heights = (
        "[...document.querySelectorAll('.jp-Cell')][0].querySelectorAll('.jp-OutputArea-child')"
    )
    sizes = tab.run(f"[...{heights}].map(child => child.getBoundingClientRect().height)")
    assert len(sizes) == 3 and sizes[1] == 0 and min(sizes[0], sizes[2]) > 8
    assert tab.run(BLANK) == []
    return {text.strip() for texts in seen for text in texts}


def stored_text(tab, checkout, page):
    "Store a page; return what its first cell has printed, which is all that is stored of it."
    tab.run("window.jupyterapp.commands.execute('docmanager:save').then(() => true)")
    assert only_outputs(checkout, page)
    stored = json.loads((checkout / "nbs" / page).read_text())["cells"][0]["outputs"]
    return "".join("".join(each["text"]) for each in stored)


@pytest.mark.long
def test_bars_move_and_vanish(checkout, address, tab):
    words = lines_while_running(tab, address, "bars.ipynb")
    assert {word.split(" · ")[0] for word in words} == {"part 0", "part 1", "part 2"}
    assert {word.split(" · ")[1] for word in words} >= {"50%", "75%"}
    assert stored_text(tab, checkout, "bars.ipynb") == "before\nafter\n"


@pytest.mark.long
def test_a_sweep_shows_how_far_it_is(checkout, address, tab):
    words = lines_while_running(tab, address, "sweep.ipynb")
    states = {word.split(" · ")[0] for word in words}
    assert {"toy: 2 waiting, 1 running", "toy: 1 running, 2 done"} <= states, states
    assert {"33%", "67%"} <= {word.split(" · ")[1] for word in words}
    assert stored_text(tab, checkout, "sweep.ipynb") == "before\n['done', 'done', 'done']\n"
