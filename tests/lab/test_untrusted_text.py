"""Text that strangers wrote, shown without acting: in a terminal, in reports and pages (in a real browser), in records, addresses and paths."""

import contextlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from configparser import ConfigParser
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat import write
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from typer.testing import CliRunner

from docsite.citations import citations, link_citations
from docsite.search import index_script
from neurobridge.core import project_root
from neurobridge.core.files import write_json
from neurobridge.lab import (
    RunRefused,
    Sweep,
    compare_runs,
    find_run,
    run_notebook,
    write_sweep_report,
)
from neurobridge.lab.cli import app
from neurobridge.lab.report.comparison import write_comparison
from neurobridge.lab.report.tables import format_table
from neurobridge.lab.run.html import plain_text, without_home, without_passwords
from neurobridge.lab.run.identity import versions
from neurobridge.lab.run.page import find_page, page_name
from neurobridge.lab.run.run_record import environment

ROOT = project_root(Path(__file__).parent)
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m"


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keep(root, number, **more):
    name = f"{number:012x}"
    record = {
        "id": name,
        "experiment": "toy",
        "status": "done",
        "started": "2026-01-01T00:00:00",
        "seconds": 1.0,
        "params": {},
        "metrics": {"loss": 0.5},
        "rows": [],
        "environment": {},
    }
    write_json(root / "runs" / "toy" / name / "run.json", record | more)
    return root / "runs" / "toy" / name


def shell(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def a_page(root, *cells, name="toy.ipynb", parameters="n: int = 1\nword: str = ''"):
    made = [
        new_markdown_cell("# A question\n\n> with an answer"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        *cells,
    ]
    write(new_notebook(cells=made), root / name)
    return root / name


# A terminal


def test_no_escape_reaches_the_terminal(root):
    "From parameters, names, headings, errors, warnings and logs."
    failed = {"cell": 1, "heading": ESCAPE, "ename": "Oh", "evalue": ESCAPE, "traceback": [ESCAPE]}
    one, two = (
        keep(root, 1, params={f"p{ESCAPE}": ESCAPE, "n": 1}),
        keep(
            root,
            2,
            params={"n": 2, "q": [ESCAPE]},
            status="failed",
            error=failed,
            metrics={f"m{ESCAPE}": 1.0},
        ),
    )
    (root / "runs" / f"bad{ESCAPE}" / "x").mkdir(parents=True)
    (root / "runs" / f"bad{ESCAPE}" / "x" / "run.json").write_text("{")
    page = a_page(
        root,
        new_markdown_cell(f"## A heading {ESCAPE}"),
        new_code_cell(f"raise ValueError({ESCAPE!r} + word)"),
    )
    said = [shell(*words) for words in (
        ["table"], ["table", "toy", "--group", "n"], ["compare", one, two], ["clean", "--yes"], ["run", page, "-p", "word", ESCAPE], ["table", f"no{ESCAPE}"], ["table", "--where", "x == 1"],
    )]  # fmt: skip
    for ended in said:
        assert ended.stdout + ended.stderr and not re.search(
            r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", ended.stdout + ended.stderr
        ), (ended.stdout, ended.stderr)
    assert (
        "\\x1b]0;owned\\x07" in said[0].stdout
        and "\\x1b]0;owned\\x07" in said[4].stderr
        and said[4].exit_code == 1
    )


@pytest.mark.long
def test_no_escape_reaches_a_terminal_that_is_one(root, monkeypatch):
    "rich takes out some control characters of its own accord, and not this one."
    keep(root, 1, params={"word": ESCAPE, "[bold]": "[/]"})
    leader, follower = os.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    code = "from neurobridge.lab.cli import app; app()"
    with contextlib.suppress(OSError):
        for words in (["table"], ["table", "--to", "csv"]):
            ended = subprocess.run(
                [sys.executable, "-c", code, *words],
                stdout=follower,
                stderr=follower,
                env=env,
                timeout=120,
            )
            assert ended.returncode == 0
    os.set_blocking(leader, False)
    shown = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(leader, 65536):
            shown += piece
    assert (
        b"\x1b]0;" not in shown
        and b"\x1b[2J" not in shown
        and shown.count(rb"\x1b]0;owned\x07") == 2
    )


@given(st.text())
def test_plain_text_is_printable_and_keeps_what_is(text):
    shown = plain_text(text)
    assert all(
        letter.isprintable() or letter in "\n\t" or letter.isspace() for letter in shown
    ) and not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    assert text.isprintable() <= (shown == text) and plain_text(shown) == shown
    shown.encode()  # also where half of a pair of surrogates came


# Passwords, and names like secrets


@pytest.mark.parametrize(("address", "shown"), [
    ("postgresql://ann:hunter2@host:5432/runs", "postgresql://ann:***@host:5432/runs"), ("mysql+pymysql://ann:hun/ter2@host/runs", "mysql+pymysql://ann:***@host/runs"),
    ("postgresql://ann:hunter2@x@host/runs", "postgresql://ann:***@host/runs"), ("https://hunter2@host/api", "https://***@host/api"), ("https://:hunter2@host/api", "https://:***@host/api"),
    ("postgresql://host/runs?user=ann&password=hunter2&x=1", "postgresql://host/runs?user=ann&password=***&x=1"), ("http://host/?API_KEY=hunter2", "http://host/?API_KEY=***"),
    ("two: a://b:hunter2@c and d://e:hunter2@f", "two: a://b:***@c and d://e:***@f"), ("sqlite:////people/ann/mlflow.db", "sqlite:////people/ann/mlflow.db"), ("http://host:5000", "http://host:5000"),
])  # fmt: skip
def test_passwords_are_masked(address, shown):
    assert without_passwords(address) == shown and "hunter2" not in shown


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://ann:hunter2@127.0.0.1:1/runs",
        "sqlite:///{}/no/folder/x.db?password=hunter2",
        "nothing://ann:hunter2@host/runs",
    ],
)
def test_mlflow_prints_no_password(root, uri, monkeypatch):
    pytest.importorskip(
        "mlflow", reason="handing over needs MLflow: pip install mlflow-skinny sqlalchemy alembic"
    )
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    keep(root, 1)
    ended = shell("mlflow", "--to", uri.format(root))
    assert "hunter2" not in ended.stdout + ended.stderr and ended.exit_code == 2 * (
        "sqlite" not in uri
    ), ended.exception


@pytest.mark.parametrize(
    "name", ["api_key", "password", "hf_token", "AWS_SECRET", "private_key", "credentials"]
)
def test_a_secret_is_not_kept(root, name):
    page = a_page(root, new_code_cell("1"), parameters=f"{name}: str = ''")
    ended = shell("run", page, "-p", name, "hunter2")
    assert (
        ended.exit_code == 2
        and "os.environ" in ended.stderr
        and "hunter2" not in ended.stdout + ended.stderr
    )
    assert not [
        file for file in root.rglob("*") if file.is_file() and b"hunter2" in file.read_bytes()
    ]
    (root / "s.yaml").write_text(f"notebook: {page}\ngrid: {{{name}: [hunter2]}}")
    with pytest.raises(RunRefused, match="called like a secret"):
        Sweep.from_yaml(root / "s.yaml").plan()


def test_names_that_only_sound_like_secrets(root):
    page = a_page(
        root,
        new_code_cell("1"),
        parameters="n_tokens: int = 1\ntoken: int = 0\nkey: str = 'a'\ntokenizer: str = 'b'",
    )
    assert (
        len(
            Sweep(
                name="s",
                page=page,
                settings=({"n_tokens": 2, "token": 3, "key": "x", "tokenizer": "c"},),
            ).plan()
        )
        == 1
    )


# Records, notebooks, reports: what stands in them


def test_the_page_does_not_stand_in_the_metadata_and_home_not_in_what_is_mailed(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    page = a_page(root, new_code_cell("from pathlib import Path\nfrom neurobridge.lab.run.execute import record, declare\nrecord({'loss': 1.0})"), new_code_cell("declare('/etc/hostname')" if Path("/etc/hostname").exists() else "1"),
                  new_code_cell(f"raise OSError('no such file: {root}/secret place')"))  # fmt: skip
    from neurobridge.lab import RunFailed

    with pytest.raises(RunFailed) as caught:
        run_notebook(page)
    run = caught.value.run
    about = json.loads(run.notebook.read_text())["metadata"]["papermill"]
    assert (
        isinstance(about["input_path"], str)
        and about["input_path"].endswith("toy.ipynb")
        and "raise OSError" not in json.dumps(about)
    )
    report = run.report.read_text()
    assert str(root) not in report and "~/secret place" in report
    other = find_run(keep(root, 5))
    assert str(root) not in write_comparison(run, other, root / "c.html").read_text() and len(
        compare_runs(run, other)
    )


def test_tables_of_results_name_no_home(monkeypatch):
    monkeypatch.setenv("HOME", "/people/ann")
    one = {
        "experiment": "e",
        "status": "done",
        "package": {},
        "modules": {},
        "files": {"/people/ann/data.csv": "aaaa"},
    }
    assert versions([one, one | {"files": {"/people/ann/data.csv": "bbbb"}}]) == [
        "~/data.csv aaaa",
        "~/data.csv bbbb",
    ]


def test_home_is_a_tilde_and_nothing_else_is(monkeypatch):
    monkeypatch.setenv("HOME", "/people/ann")
    assert (
        without_home("/people/ann/x, /people/anna/y, /srv/people/ann/z and (/people/ann)")
        == "~/x, /people/anna/y, /srv/people/ann/z and (~)"
    )
    monkeypatch.setenv("HOME", "/")
    assert without_home("/etc/x") == "/etc/x"


def test_columns_and_values_are_text_in_markdown():
    frame = pd.DataFrame(
        {
            "a|b\n| <img src=x onerror=alert(1)>": ["x | y", "[a](javascript:alert(1))"],
            f"c{ESCAPE}": ["1\r\n2", "\u2028| <b>"],
        }
    )
    text = format_table(frame, "md").decode()
    assert (
        len(text.splitlines()) == 4 and "<" not in text and "](" not in text and "\x1b" not in text
    )
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in text.splitlines())


@pytest.mark.parametrize(
    "name", ["...ipynb", "..ipynb", ".pages.ipynb", "a\nb.ipynb", "a\x1b[2J.ipynb"]
)
def test_a_page_whose_name_is_no_folders(root, name):
    (inner := root / "in").mkdir()
    page = a_page(inner, new_code_cell("1"), name=name)
    for asked in (lambda: find_page(page), lambda: page_name(page), lambda: run_notebook(page)):
        with pytest.raises(RunRefused):
            asked()
    assert sorted(path.name for path in root.iterdir()) == ["in"]


def test_a_folder_of_another_run_with_the_same_twelve_digits(root):
    page = a_page(
        root, new_code_cell("from neurobridge.lab.run.execute import record; record({'loss': 1.0})")
    )
    run = run_notebook(page)
    assert len(run.record["whole"]) == 64 and run.record["whole"].startswith(run.id)
    write_json(
        run.folder / "run.json",
        run.record | {"whole": run.id + "f" * 52, "metrics": {"loss": -1.0}},
    )
    with pytest.raises(RunRefused, match="contains another run"):
        run_notebook(page)
    write_json(
        run.folder / "run.json", {key: value for key, value in run.record.items() if key != "whole"}
    )  # of a version before
    assert not run_notebook(page).fresh


# git


def git(folder, *words):
    subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
        cwd=folder,
        check=True,
        capture_output=True,
    )


@pytest.fixture
def foreign(root):
    "A repository from an archive: all that its settings can start leaves a trace."
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    (place := root / "foreign").mkdir()
    git(place, "init", "-q")
    page = a_page(place, new_code_cell("1"))
    (place / "settings.ini").write_text("[DEFAULT]\nlib_path = neurobridge\n")
    (place / "data.bin").write_text("one")
    git(place, "add", "."), git(place, "commit", "-qm", "x")
    (place / "act.sh").write_text(f"#!/bin/sh\necho $0 >> {root}/acted\ncat\n")
    (place / "act.sh").chmod(0o755)
    (place / ".git" / "info" / "attributes").write_text("* filter=evil\n")
    (place / ".git" / "hooks" / "post-index-change").write_text((place / "act.sh").read_text())
    (place / ".git" / "hooks" / "post-index-change").chmod(0o755)
    git(place, "config", "core.fsmonitor", str(place / "act.sh"))
    for what in ("clean", "smudge", "process"):
        git(place, "config", f"filter.evil.{what}", str(place / "act.sh"))
    git(place, "config", "filter.evil.required", "true")
    (place / "data.bin").write_text("two")
    (root / "acted").unlink(missing_ok=True)
    return page


def test_a_foreign_repository_starts_nothing(root, foreign, monkeypatch):
    found = environment(foreign)
    assert (
        not (root / "acted").exists()
        and re.fullmatch("[0-9a-f]{40}", found["commit"])
        and found["dirty"] is True
    )
    (foreign.parent / "data.bin").write_text("one")
    assert environment(foreign)["dirty"] is False and not (root / "acted").exists()


def test_a_filter_that_cannot_be_switched_off_stops_the_question(root, foreign):
    git(foreign.parent, "config", "filter.a=b.clean", str(foreign.parent / "act.sh"))
    (foreign.parent / ".git" / "info" / "attributes").write_text("* filter=a=b\n")
    assert environment(foreign)["commit"] is None and not (root / "acted").exists()


def test_variables_of_git_lead_nowhere_else(root, foreign, monkeypatch):
    (other := root / "other").mkdir()
    git(other, "init", "-q"), git(other, "commit", "-q", "--allow-empty", "-m", "x")
    own = environment(foreign)["commit"]
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(foreign.parent / "act.sh"))
    assert environment(foreign)["commit"] == own and not (root / "acted").exists()


# Citations


OLD_NAME = r"[A-Z][^\W\d_]+"
OLD = re.compile(
    rf"(?P<names>{OLD_NAME}(?:(?:, | and | & ){OLD_NAME})*(?: et al\.| and colleagues)?),? (?:\((?P<year>\d{{4}})\)|(?P<plain>\d{{4}}))(?!\d)"
)


@settings(max_examples=400)
@given(
    st.lists(
        st.sampled_from(
            [
                "Lin",
                "Cutts",
                "ABc",
                "x",
                "A",
                " and ",
                ", ",
                " & ",
                " et al.",
                " and colleagues",
                " ",
                ",",
                "2020",
                "(2014)",
                "20201",
                "(",
                "3",
                "é",
            ]
        ),
        max_size=14,
    ).map("".join)
)
def test_citations_are_those_of_the_quadratic_pattern(text):
    old = [
        (
            m[0],
            re.findall(OLD_NAME, re.sub(r" et al\.| and colleagues", "", m["names"])),
            m["year"] or m["plain"],
        )
        for m in OLD.finditer(text)
    ]
    assert citations(text) == old


@pytest.mark.parametrize(
    "piece",
    [
        "Lin, ",
        "Lin and ",
        "L",
        "Ab",
        "<",
        "<a",
        "[](",
        "[",
        "$",
        "`",
        "$$",
        "```",
        "#",
        "Lin et al. ",
        "Lin 2020, ",
        "\\",
    ],
)
def test_a_megabyte_of_almost_citations(piece):
    "The patterns of before took the square of it: hours."
    text = piece * (1_000_000 // len(piece))
    assert len(citations(text)) == text.count("Lin 2020")
    assert link_citations(text, {("Lin", "2020"): "lin"}, "b").count("](b#lin)") == text.count(
        "Lin 2020"
    )


# HTML, in a browser

BEACON = "BEACON"  # the address of a server that nobody should ask
HOSTILE = {
    "onerror": "<img src=x onerror=\"fetch('BEACON/1')\">", "script": "<script>document.title='acted'; new Image().src='BEACON/2'</script>", "remote": "<img src='BEACON/3'>",
    "refresh": "<meta http-equiv=refresh content='0; url=BEACON/4'>", "iframe": "<iframe src='BEACON/5'></iframe><iframe srcdoc='<script>parent.document.title=1</script>'></iframe>",
    # further members of the kind
    "svg": "<svg onload=\"new Image().src='BEACON/6'\"><script>document.title='acted'</script></svg>", "import": "<style>@import url(BEACON/7); body { background: url(BEACON/8) }</style>",
    "link": "<a class=click href=' java&#10;script:document.title=&quot;acted&quot;'>a</a><a class=click href='data:text/html,<script>1</script>'>b</a>",
    "form": "<form class=send action='BEACON/9'><input name=a><button>c</button></form>", "object": "<object data='BEACON/10'></object><embed src='BEACON/11'><video src='BEACON/12' autoplay></video>",
    "base": "<base href='BEACON/13/'><img src='x.png'>", "math": "<math><mi class=click href='javascript:document.title=1'>x</mi><maction actiontype='statusline' xlink:href='javascript:document.title=1'>y</maction></math>",
    "css": "<div style=\"background-image: url('BEACON/14'); width: 9px\">d</div>", "hint": "<link rel=stylesheet href='BEACON/15'><link rel=dns-prefetch href='BEACON/16'><link rel=preload as=image href='BEACON/17'>",
    "mutation": "<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=1 onerror=document.title='acted'&gt;\">", "noscript": "<noscript><p title=\"</noscript><img src=x onerror=document.title='acted'>\">",
    "template": "<template shadowrootmode=open><script>document.title='acted'</script></template><details open ontoggle=\"document.title='acted'\">e</details>", "srcset": "<img srcset='BEACON/18 1x'><picture><source srcset='BEACON/19'></picture>",
    "half": "<img src=x onerror=document.title='acted' <b", "frames": "<frameset onload=document.title='acted'><frame src='BEACON/20'></frameset>", "popup": "<button popovertarget=x onclick=\"document.title='acted'\">f</button>",
}  # fmt: skip
TITLE = "A <script>document.title='acted'</script> \"title\" </title><img src=x onerror=document.title=1>"


@pytest.fixture(scope="module")
def beacon():
    "A server that remembers who asked."
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def nothing_acted(browse, file, beacon, title):
    address, asked = beacon
    asked.clear()
    shown, _ = browse(Path(file).resolve().as_uri(), patience=5)
    assert re.search(r"<title>(.*?)</title>", shown, re.DOTALL)[1].strip().startswith(title), shown[
        :300
    ]
    assert asked == [], asked
    main = shown.partition("<body")[2]
    assert not re.search(
        r"<(script|iframe|object|embed|form|base|meta|link|svg|template|video|frame)\b(?![^>]*(theme|search)\.js)",
        re.sub(r'(?s)<header class="bar">.*?</header>', "", main),
    ), "something of it is left"
    assert not re.search(
        r"<[^>]*\s(on\w+|srcset|formaction)=", re.sub(r'"[^"]*"', '""', main)
    ) and not re.search(r"href=\"\s*(javascript|data):", main)


def test_a_report_of_a_hostile_page(root, browse, beacon):
    "Every member of the kind as Markdown, as an output, as a raw cell, as SVG and LaTeX, in names and in errors, in one report."
    report = pytest.importorskip(
        "neurobridge.lab.run.run_report",
        reason="reports need nbconvert: pip install nbconvert 'bleach[css]' latex2mathml",
    )
    hostile = [text.replace("BEACON", beacon[0]) for text in HOSTILE.values()]
    outputs = [new_output("display_data", {"text/html": text}) for text in hostile] + [
        new_output("display_data", {"text/html": "".join(hostile)}), new_output("display_data", {"text/markdown": hostile[0]}), new_output("display_data", {"text/latex": r"$\href{javascript:document.title=1}{x}$ " + hostile[0]}),
        new_output("display_data", {"image/svg+xml": f"<svg xmlns='http://www.w3.org/2000/svg'><script>document.title=1</script><image href='{beacon[0]}/21'/></svg>"}),
        new_output("display_data", {"application/javascript": "document.title='acted'", "text/plain": "plain"}), new_output("display_data", {"image/png": PNG + '" onerror="document.title=1'}, metadata={"image/png": {"width": '1" onload="document.title=1'}}),
        new_output("stream", text=hostile[1] + ESCAPE), new_output("error", ename="E", evalue="v", traceback=[hostile[0], hostile[1]]),
        new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "</script><script>document.title=1</script>"}, "text/plain": "w"}),
    ]  # fmt: skip
    cells = [new_markdown_cell(text) for text in hostile] + [new_markdown_cell("```mermaid\n" + "".join(hostile) + "\n```"), new_markdown_cell(r"$\href{javascript:document.title=1}{x}$ [l](javascript:document.title=1) ![p](javascript:1)"),
             new_code_cell("1", outputs=outputs), new_markdown_cell("\n\n".join(hostile))]  # fmt: skip
    from nbformat.v4 import new_raw_cell

    folder = keep(root, 1)
    write(new_notebook(cells=[*cells, new_raw_cell(hostile[1])]), folder / "notebook.ipynb")
    record = json.loads((folder / "run.json").read_text()) | {
        "experiment": TITLE,
        "params": {hostile[0]: hostile[1]},
        "error": {
            "cell": 1,
            "heading": hostile[0],
            "ename": hostile[1],
            "evalue": hostile[2],
            "traceback": [],
        },
    }
    file = report.write_report(folder, record)
    nothing_acted(browse, file, beacon, "A &lt;script&gt;")
    assert (
        file.read_text().index("Content-Security-Policy") < file.read_text().index("<title>")
        and "plain" in file.read_text()
        and "\x1b" not in file.read_text()
    )


def test_the_policy_holds_where_the_list_fails(root, browse, beacon, monkeypatch):
    "The same report, with nothing taken out: the browser still runs and loads nothing."
    report = pytest.importorskip(
        "neurobridge.lab.run.run_report",
        reason="reports need nbconvert: pip install nbconvert 'bleach[css]' latex2mathml",
    )
    monkeypatch.setattr(report, "safe_html", lambda text: text)
    folder = keep(root, 1)
    other = {
        "refresh",
        "hint",
        "half",
        "frames",
        "mutation",
        "noscript",
    }  # which a policy in the page does not forbid, or which end the page
    everything = "".join(
        HOSTILE[name].replace("BEACON", beacon[0]) for name in sorted(HOSTILE.keys() - other)
    )
    write(
        new_notebook(
            cells=[
                new_code_cell("1", outputs=[new_output("display_data", {"text/html": everything})])
            ]
        ),
        folder / "notebook.ipynb",
    )
    file = report.write_report(
        folder, json.loads((folder / "run.json").read_text()) | {"error": None}
    )
    assert "onerror" in file.read_text()
    beacon[1].clear()
    shown, _ = browse(Path(file).resolve().as_uri(), patience=5)
    assert "<title>toy 000000000001</title>" in shown and beacon[1] == []


def test_sweep_reports_and_comparisons_of_hostile_names(root, browse, beacon):
    page = a_page(root, new_code_cell("1"))
    one, two = (
        keep(root, 1, params={HOSTILE["onerror"]: HOSTILE["script"]}),
        keep(root, 2, experiment=TITLE.replace("/", ""), metrics={TITLE: 1.0}),
    )
    nothing_acted(
        browse, write_comparison(find_run(one), find_run(two), root / "c.html"), beacon, "toy"
    )
    (root / "s.yaml").write_text(f"notebook: {page}\ngrid: {{word: ['a', 'b']}}")
    sweep = Sweep.from_yaml(root / "s.yaml")
    planned = sweep.plan()
    for planned_one, status in zip(planned, ("done", "failed"), strict=True):
        error = (
            {
                "ename": HOSTILE["script"],
                "evalue": HOSTILE["onerror"],
                "cell": 1,
                "heading": "",
                "traceback": [],
            }
            if status == "failed"
            else None
        )
        write_json(
            planned_one.folder / "run.json",
            json.loads((one / "run.json").read_text())
            | {
                "params": planned_one.full,
                "status": status,
                "error": error,
                "metrics": {TITLE: 1.0},
            },
        )
    nothing_acted(browse, write_sweep_report(sweep), beacon, "s")
    for file in (root / "c.html", root / "runs" / "toy" / "s.html"):
        assert "Content-Security-Policy" in file.read_text()


# The site


def hostile_site(root, hostile):
    pytest.importorskip("nbdev", reason="the site is built with nbdev: pip install nbdev")
    (root / "nbs").mkdir()
    shutil.copy(ROOT / "settings.ini", root)
    for name in ("styles.css", "dark.css"):
        shutil.copy(ROOT / "nbs" / name, root / "nbs")
    (root / "_quarto.yml").write_text(
        json.dumps(
            {
                "website": {
                    "title": "<script>document.title=1</script>",
                    "description": '"><script>document.title=1</script>',
                    "sidebar": {"contents": ["index.ipynb"]},
                }
            }
        )
    )
    picture = new_output("display_data", {"image/png": PNG})
    cells = [new_markdown_cell("# Title </script><script>document.title='acted'</script>\n\n> A subtitle </script><img src=x onerror=document.title=1>"),
             *[new_markdown_cell(text) for text in hostile], new_markdown_cell("## A heading </script><script>document.title='acted'</script>\n\nwords \u2028 <b>"),
             new_code_cell("#| fig-alt: a\" onerror=\"document.title='acted'\n#| fig-cap: \"<script>document.title='acted'</script>\"\n1", outputs=[picture]),
             new_code_cell("#| code-fold: true\n#| code-summary: <img src=x onerror=document.title=1>\n#| classes: x\" onclick=\"1\nx = 2", outputs=[new_output("display_data", {"text/html": text}) for text in hostile]),
             new_code_cell("3", outputs=[new_output("display_data", {"text/latex": hostile[0]}), new_output("stream", text=hostile[1]), new_output("error", ename="a", evalue="b", traceback=[hostile[0]])]),
             new_markdown_cell(r"$\href{javascript:document.title=1}{x}$ [l](javascript:document.title=1) [d](data:text/html,x)")]  # fmt: skip
    write(new_notebook(cells=cells), root / "nbs" / "index.ipynb")


def test_pages_of_a_hostile_site(root, browse, beacon):
    from docsite.build import build_site

    hostile_site(root, [text.replace("BEACON", beacon[0]) for name, text in HOSTILE.items()])
    out = build_site(root=root)
    nothing_acted(browse, out / "index.html", beacon, "Title")
    text = (out / "index.html").read_text()
    assert text.index("Content-Security-Policy") < text.index("<title>")
    ours = [
        '<script src="theme.js"></script>',
        '<script src="search.js" defer></script>',
        '<script src="code.js" defer></script>',
    ]
    assert re.findall(r"<script[^>]*>[^<]*</script>", text) == ours
    assert len(re.findall("<script", text, re.IGNORECASE)) == len(ours), "and no other one"
    index = (out / "search-index.js").read_text()
    assert not re.search("[<>\u2028\u2029]", index)
    pages, groups = index.splitlines()
    (page,) = json.loads(pages.removeprefix("const SEARCH_PAGES = ").removesuffix(";"))
    assert page[0] == "index.html" and any("words" in section[2] for section in page[-1])
    assert json.loads(groups.removeprefix("const SEARCH_SYNONYMS = ").removesuffix(";"))


def test_pictures_that_are_links_are_left_out(root):
    from docsite.build import build_site

    hostile_site(root, ["plain"] * 2)
    (root / "id_rsa").write_text("PRIVATE KEY")
    (root / "nbs" / "leak.png").symlink_to(root / "id_rsa")
    (root / "away").mkdir()
    (root / "away" / "b.png").write_text("PRIVATE KEY")
    (root / "nbs" / "elsewhere").symlink_to(root / "away")
    os.mkfifo(root / "nbs" / "pipe.png")
    (root / "nbs" / "fine.png").write_bytes(b"a picture")
    with pytest.warns(UserWarning, match="leak.png: left out"):
        out = build_site(root=root)
    assert (
        not [
            file
            for file in out.rglob("*")
            if file.is_file() and b"PRIVATE KEY" in file.read_bytes()
        ]
        and (out / "fine.png").read_bytes() == b"a picture"
    )
    assert not (out / "leak.png").exists() and not (out / "pipe.png").exists()


def test_a_report_embeds_no_links(root):
    report = pytest.importorskip(
        "neurobridge.lab.run.run_report",
        reason="reports need nbconvert: pip install nbconvert 'bleach[css]' latex2mathml",
    )
    (root / "id_rsa").write_text("PRIVATE KEY")
    (pages := root / "pages").mkdir()
    (pages / "leak.png").symlink_to(root / "id_rsa")
    (pages / "up").symlink_to(root)
    (root / "b.png").write_text("PRIVATE KEY")
    os.mkfifo(pages / "pipe.png")
    for text in (
        "![](leak.png)",
        "<img src='leak.png'>",
        "![](up/b.png)",
        "![](../b.png)",
        f"![]({root}/b.png)",
        "![](pipe.png)",
        "![](..%2fb.png)",
        "![](leak.png#x)",
        "![](%00.png)",
    ):
        shown = report.report_markdown(text, pages)
        assert "base64" not in shown and "picture left out" in shown, shown


def test_the_index_ends_no_script():
    "Whichever field of a page, a section or a group of synonyms it is that somebody has written."
    hostile = "</script><script>alert(1)</script><!--\u2028\u2029]];é'\"\\\n"
    page = [hostile] * 5 + [[[hostile] * 4] * 2]
    text = index_script([page], [[hostile, hostile]])
    assert not re.search("[<>\u2028\u2029]", text)
    pages, groups = text.splitlines()
    assert json.loads(pages.removeprefix("const SEARCH_PAGES = ").removesuffix(";")) == [page]
    read = json.loads(groups.removeprefix("const SEARCH_SYNONYMS = ").removesuffix(";"))
    assert read == [[hostile, hostile]]


def test_cards_of_the_gallery_escape():
    from docsite.gallery import Experiment, _card_html

    text = _card_html(Experiment('a".ipynb', TITLE, TITLE, None, TITLE, TITLE))
    assert not re.search("<(script|img)", text) and 'a".ipynb' not in text


# SECURITY.md


def test_security_names_the_contact_of_the_settings():
    settings_ini = ConfigParser(delimiters=["="])
    settings_ini.read(ROOT / "settings.ini", encoding="utf-8")
    contact = settings_ini["DEFAULT"]["author_email"]
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert contact in text and set(re.findall(r"[\w.+-]+@[\w.-]+\w", text)) == {contact}
    assert contact.endswith(".invalid") == ("no mail can be sent" in text)
    for place in ("README.md", "CONTRIBUTING.md"):
        assert "SECURITY.md" in (ROOT / place).read_text(encoding="utf-8"), place
