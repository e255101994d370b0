"""Conditions: held against an independent evaluation, and against those who want them to be more than conditions."""

import json
import subprocess
import sys

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from neurobridge.core.files import write_json
from neurobridge.lab import RunRefused, load_runs, where
from neurobridge.lab.cli import app

FRAME = pd.DataFrame({
    "status": ["done", "done", "failed", "stopped"], "n": [0, 1, 2, 3], "loss": [0.5, None, 2.0, -1.0], "ok": [True, False, True, False],
    "widths": [[4, 8], [8], None, [[4], [8]]], "word": ["alpha", None, "beta", "x y"], "param.runs": [1, 2, 3, 4], "big": [2**127, 1, 2, 3], "mixed": ["a", 1, None, 2.5],
})  # fmt: skip


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEUROBRIDGE_RUNS", str(tmp_path / "runs"))
    record = {
        "id": "0" * 12,
        "experiment": "toy",
        "status": "done",
        "started": "2026",
        "seconds": 1.0,
        "params": {"n": 1, "word": "a"},
        "metrics": {"loss": 0.5},
        "rows": [],
    }
    write_json(tmp_path / "runs" / "toy" / ("0" * 12) / "run.json", record)
    return tmp_path


# What a condition means


@pytest.mark.parametrize(("condition", "rows"), [
    ("n == 1", [1]), ("n != 1", [0, 2, 3]), ("n >= 1 and n < 3", [1, 2]), ("0 < n < 3", [1, 2]), ("3 > n >= 1 != n", [2]), ("n in [0, 3]", [0, 3]), ("n not in (0, 3)", [1, 2]),
    ("n == [0, 3]", [0, 3]), ("n != [0, 3]", [1, 2]), ("not n > 1 or n == 3", [0, 1, 3]), ("not (n > 1 or n == 0)", [1]), ("ok", [0, 2]), ("not ok", [1, 3]), ("ok == (n == 0)", [0, 1, 3]),
    ("loss == None", [1]), ("loss != None", [0, 2, 3]), ("loss < 1", [0, 3]), ("not loss < 1", [1, 2]), ("loss != 2", [0, 1, 3]), ("loss >= -1.0", [0, 2, 3]), ("-loss > 0", [3]),
    ("n + 1 == 2", [1]), ("2 * n - 1 > 3", [3]), ("n / 2 == 1", [2]), ("1 / n > 0.4", [1, 2]), ("loss + n == 4", [2]), ("n * n / n == n", [1, 2, 3]),
    ("status == 'done'", [0, 1]), ('status in ["done", "failed"]', [0, 1, 2]), ("status > 'done'", [2, 3]), ("word.contains('a')", [0, 2]), ("word.startswith('b')", [2]),
    ("word.endswith('y')", [3]), ("not word.contains('a')", [1, 3]), ("word == '`n`'", []), ("word == None", [1]),
    ("widths == [4, 8]", [0]), ("widths != [4, 8]", [1, 2, 3]), ("widths == [[4], [8]]", [3]), ("widths == '[8]'", [1]), ("widths in [[8], [9]]", [1]), ("widths == None", [2]),
    ("`param.runs` == 2", [1]), ("big == 170141183460469231731687303715884105728", [0]), ("mixed == 'a' or mixed == 1", [0, 1]), (" n == 1 ", [1]), ("n == -0 + 1", [1]),
])  # fmt: skip
def test_a_condition_means_this(condition, rows):
    assert where(FRAME, condition).index.tolist() == rows


def numbers():
    return st.one_of(st.integers(-3, 9).map(str), st.sampled_from(["0.5", "2.5", "1e1", "n", "k"]))


def sums():
    return st.recursive(
        numbers(),
        lambda part: st.tuples(part, st.sampled_from("+-*"), part).map(
            lambda p: f"({p[0]} {p[1]} {p[2]})"
        ),
        max_leaves=4,
    )


def comparisons():
    signs = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])
    chain = st.tuples(sums(), signs, sums(), signs, sums()).map(" ".join)
    pair = st.tuples(sums(), signs, sums()).map(" ".join)
    lists = st.tuples(
        numbers(),
        st.sampled_from(["in", "not in"]),
        st.lists(st.integers(-3, 9), max_size=3).map(str),
    ).map(" ".join)
    texts = st.tuples(st.just("word"), signs, st.sampled_from(["'a'", '"b"', "''"])).map(" ".join)
    methods = st.sampled_from(["word.startswith('a')", "word.endswith('b')", "ok"])
    return st.one_of(pair, chain, lists, texts, methods)


def conditions():
    def joined(part):
        return st.one_of(
            st.tuples(part, st.sampled_from(["and", "or"]), part).map(
                lambda p: f"({p[0]}) {p[1]} {p[2]}"
            ),
            part.map(lambda p: f"not ({p})"),
        )

    return st.recursive(comparisons(), joined, max_leaves=6)


@settings(deadline=None, max_examples=300)
@given(
    conditions(),
    st.lists(
        st.tuples(
            st.integers(-3, 9),
            st.floats(-9, 9),
            st.sampled_from(["a", "ab", "b", ""]),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_conditions_mean_what_python_means(condition, rows):
    "Without missing values; the evaluation is Python's own, which a test may use on conditions that it has made."
    frame = pd.DataFrame(rows, columns=["n", "k", "word", "ok"])
    expected = [
        i
        for i, row in enumerate(rows)
        if eval(condition, {"__builtins__": {}}, dict(zip(frame, row, strict=True)))
    ]
    named = any(name in condition for name in ("n ", " n", "(n", "k", "word", "ok"))
    try:
        assert where(frame, condition).index.tolist() == expected
    except RunRefused as error:
        assert "it names no column" in str(error) and not (
            named and {"word", "ok"} & set(condition.split())
        )


# Where it is refused


@pytest.mark.parametrize(("condition", "at", "why"), [
    ("sedes < 4", 0, "no column is called 'sedes'"), ("n == 1 and staus == 'done'", 11, "did you mean status"), ("status = 'done'", 7, "write =="), ("n >", 3, "parser says"),
    ("(n > 1", 0, "never closed"), ("n > 'a'", 4, "no order"), ("n + 1", 0, "neither true nor false"), ("not status", 4, "neither true nor false"), ("n in 3", 5, "expected a list after in"),
    ("n == 1 & ok", 5, "write and"), ("n is None", 5, "write == None"), ("word + 1 == 2", 0, "not two numbers"), ("1 == 1", 0, "names no column"), ("", 0, "0 characters"),
    ("n ** 2 > 1", 0, "not part of the language"), ("n > 1\nand ok", 5, "one line"), ("ü == 1 or nn == 1", 0, "no column is called 'ü'"), ("word == 'ü' or nn == 1", 15, "no column is called 'nn'"),
    ("n.contains('1')", 0, "the column contains 0"), ("word.contains(n)", 0, "of one text"), ("mixed > 1", 8, "no order"), ("`a b` == 1", 0, "'a b'"), ("n < 1e999", 4, "below 1e50"),
])  # fmt: skip
def test_a_refusal_points_at_the_character(condition, at, why):
    with pytest.raises(RunRefused) as caught:
        where(FRAME, condition)
    said, shown, caret, known = str(caught.value).split("\n")
    assert (
        why in said
        and shown[4:] == condition.strip().replace("\n", "\\n")
        and known.endswith("with columns status, n, loss, ok, widths, word, param.runs, big, mixed")
    )
    assert caret.index("^") - 4 == at


def test_a_long_condition_is_shown_around_the_place():
    with pytest.raises(RunRefused) as caught:
        where(FRAME, "n == 1 or " * 50 + "m == 1" + " or n == 1" * 30)
    _, shown, caret, _ = str(caught.value).split("\n")
    assert shown[caret.index("^")] == "m" and len(shown) < 140


# What was more than a condition

ACTING = [
    "@pd.io.common.os.system('touch acted')==0", "@Path('acted').write_text('x') == 1", "status.__class__.__base__.__subclasses__() == 1", "status.to_pickle('acted') == None",
    "n.to_csv('acted') == None", "word.str.cat.__globals__['os'].system('touch acted') == 0", "10**10**9 == n", "n == 10**10**9",
    # further members of the kind
    "__import__('os').system('touch acted') == 0", "f\"{open('acted', 'w')}\" == n", "(lambda: open('acted', 'w'))() == n", "[open('acted', 'w') for _ in [1]] == n",
    "(n := 1) == 1", "@locals()['n'] == 1", "`__class__` == 1", "`n.__class__` == 1", "status.format(open('acted', 'w')) == 'a'", "n(open('acted', 'w')) == 1", "n[open('acted', 'w')] == 1",
    "(" * 10_000 + "n" + ")" * 10_000 + " == 1", "not " * 10_000 + "ok", "-" * 10_000 + "n == 1", "(" * 150 + "n == 1" + ")" * 150 + " and" + " (" * 180, "not " * 240 + "ok", "[" * 190 + "]" * 190 + " == n",
    "n == [" + "[" * 90 + "1" + "]" * 90 + "]", "n == " + "9" * 900, "n == 0x" + "f" * 900, "n == 1" + " + 1" * 240, "'a' * 10**9 == status", "n << 10**9 == 1", "n if ok else n", "n == ...", "n == 1j",
    "n == b'a'", "*n", "word.contains(part='a')", "word.contains.__call__('a')", "word.startswith('a', 0, 1)", "word.upper() == 'A'", "n @ n == 1", "{n: 1} == n", "n == 1; open('acted', 'w')", "n == 1\x00", "\ud800 == n",
]  # fmt: skip


@pytest.mark.parametrize("condition", ACTING, ids=range(len(ACTING)))
def test_whatever_else_is_refused_at_once_and_does_nothing(root, condition):
    with pytest.raises(RunRefused, match="^--where can't be used: "):
        where(FRAME, condition)
    assert not (root / "acted").exists()


@pytest.mark.long
@pytest.mark.parametrize("command", [["table"], ["mlflow"]])
def test_at_the_shell(root, command):
    "A process of its own: the old one acted here, though it said that the condition can't be used."
    for condition in (
        "@pd.io.common.os.system('touch acted')==0",
        "word.str.cat.__globals__['os'].system('touch acted') == 0",
        "n.to_csv('acted') == None",
    ):
        code = f"from neurobridge.lab.cli import app; app({[*command, '--where', condition]!r})"
        ended = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
        )
        assert (
            ended.returncode == 2
            and "--where can't be used" in ended.stderr
            and "Traceback" not in ended.stderr
            and not (root / "acted").exists()
        )


def test_names_from_a_record_do_not_reach_the_terminal_or_fill_it(root):
    file = root / "runs" / "toy" / ("0" * 12) / "run.json"
    record = json.loads(file.read_text())
    write_json(
        file, record | {"params": {f"\x1b]0;title\x07{i}" + "x" * 1000: i for i in range(100)}}
    )
    ended = CliRunner().invoke(app, ["table", "--where", "nope == 1"])
    assert len(load_runs().columns) == 110  # 100 parameters, loss, error, and 8 of each run
    assert (
        ended.exit_code == 2
        and "\x1b" not in ended.stderr
        and "\\x1b]0;title" in ended.stderr
        and len(ended.stderr) < 5000
        and "and 50 more" in ended.stderr
    )


def test_an_empty_table_is_not_asked():
    assert (
        len(where(FRAME[:0], "n == 1")) == 0
        and where(FRAME[:0], "n == 1").columns.tolist() == FRAME.columns.tolist()
    )


def test_columns_of_one_name_and_other_values():
    twice = pd.DataFrame([[1, 2]], columns=["a", "a"])
    with pytest.raises(RunRefused, match="several columns"):
        where(twice, "a == 1")
    dates = pd.DataFrame({"when": pd.to_datetime(["2026-01-01", "2026-02-01"])}, index=[7, 7])
    assert where(dates, "when > '2026-01-15'").index.tolist() == [7]
