"""Types of parameters: what was taken before is taken now, with the same ids; what pydantic adds; what is refused, and in which words.

`old_parameters.json` was written by the code before pydantic: source of the cell, what was given, the complete values (null: refused), the id.
"""

import datetime
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from neurobridge.lab import RunRefused, Sweep, run_notebook
from neurobridge.lab.run.identity import run_id
from neurobridge.lab.run.parameters import (
    assignments,
    bases,
    choices,
    convert,
    in_page,
    page_parameters,
    resolve,
)

OLD = json.loads((Path(__file__).parent / "old_parameters.json").read_text(encoding="utf-8"))
WORK = "record({'a': 1})"


def page_of(source, *cells):
    head = new_code_cell(source, metadata={"tags": ["parameters"]})
    return new_notebook(cells=[head, *map(new_code_cell, cells)])


def one(annotation, default):
    return page_parameters(page_of(f"a: {annotation} = {default}"))["a"]


def refusal(annotation, default, value):
    with pytest.raises(RunRefused) as refused:
        convert(one(annotation, default), value)
    return str(refused.value)


# What was taken before


def key(row):
    return f"{row[0]} {row[1]}"[:60]


@pytest.mark.parametrize("row", [row for row in OLD if row[2] is not None], ids=key)
def test_values_and_ids_are_those_of_the_old_code(row):
    source, given, values, identity = row
    page = page_of(source, WORK)
    found = resolve(page_parameters(page), given)
    assert json.dumps(found) == json.dumps(values)
    assert run_id(page, found) == identity
    assert resolve(page_parameters(page), found) == found


@pytest.mark.parametrize("row", [row for row in OLD if row[2] is None], ids=key)
def test_what_the_old_code_refused_is_refused(row):
    source, given, *_ = row
    with pytest.raises(RunRefused):
        resolve(page_parameters(page_of(source)), given)


def test_the_table_of_the_old_code_has_both_kinds():
    assert len(OLD) > 200 and 40 < sum(row[2] is None for row in OLD) < 80


# What pydantic adds: annotation, default, given, kept, what the page gets


@pytest.mark.parametrize(
    "annotation, default, given, kept, gets",
    [
        ("tuple[int, int]", "(1, 2)", "(3, 4)", [3, 4], (3, 4)),
        ("tuple[int, int]", "(1, 2)", "[3, 4]", [3, 4], (3, 4)),
        ("tuple[int, int]", "(1, 2)", "3, 4", [3, 4], (3, 4)),
        ("Tuple[str, float]", "('a', .5)", "[b, 1e-3]", ["b", 0.001], ("b", 0.001)),
        ("list[list[int]]", "[[1]]", "[[1, 2], []]", [[1, 2], []], [[1, 2], []]),
        ("List[Tuple[int, str]]", "[]", [(1, "a")], [[1, "a"]], [(1, "a")]),
        ("dict[str, int]", "{}", '{"a": 1}', {"a": 1}, {"a": 1}),
        ("dict[str, int]", "{}", "{a: 1}", {"a": 1}, {"a": 1}),
        ("dict[int, float]", "{1: 2.5}", {3: 0.5}, {"3": 0.5}, {3: 0.5}),
        ("dict[int, tuple[int, ...]]", "{}", "{3: [1, 2]}", {"3": [1, 2]}, {3: (1, 2)}),
        ('Literal["adam", "sgd"]', "'adam'", "sgd", "sgd", "sgd"),
        ('typing.Literal["adam", 1, -2, True, None]', "'adam'", "-2", -2, -2),
        ('Literal["adam", None]', "'adam'", "none", None, None),
        ('Literal["no", "yes"]', "'no'", "yes", "yes", "yes"),
        ("int | str", "3", "4", 4, 4),
        ("Union[int, str]", "3", "x", "x", "x"),
        ("typing.Optional[int]", "None", "4", 4, 4),
        ("Optional[list[int]]", "None", "null", None, None),
        ("Path", "Path('x')", "data/images", "data/images", Path("data/images")),
        ("pathlib.Path | None", "None", Path("a") / "b", "a/b", Path("a/b")),
        ("date", "date(2026, 1, 31)", "2026-02-01", "2026-02-01", datetime.date(2026, 2, 1)),
        (
            "datetime.datetime",
            "datetime.datetime(2026, 1, 31)",
            "2026-02-01T12:30+00:00",
            "2026-02-01T12:30:00Z",
            datetime.datetime(2026, 2, 1, 12, 30, tzinfo=datetime.UTC),
        ),
        ("time", "time(12, 30)", "07:15", "07:15:00", datetime.time(7, 15)),
        ("date", "date(2026, 1, 31)", datetime.date(2026, 2, 1), "2026-02-01", datetime.date(2026, 2, 1)),
        ("Annotated[float, Gt(0)]", "0.1", "1e-3", 0.001, 0.001),
        ("Annotated[float, annotated_types.Interval(gt=0, le=1)]", "0.1", 1, 1.0, 1.0),
        ("Annotated[int | None, Ge(1)]", "None", "2", 2, 2),
        ("Annotated[list[PositiveInt], MinLen(1)]", "[1]", "[2, 3]", [2, 3], [2, 3]),
        ("Annotated[str, Field(pattern='^[a-z]+$')]", "'a'", "abc", "abc", "abc"),
        ("Annotated[float, 'metres', Gt(0)]", "0.1", "2", 2.0, 2.0),
        ("PositiveFloat", "1", "2", 2.0, 2.0),
        ("list[str]", "[]", "['no', off_]", ["no", "off_"], ["no", "off_"]),
        ("list[bool]", "[]", "[true, no]", [True, False], [True, False]),
        ("'list[tuple[int, int]]'", "[]", "[[1, 2]]", [[1, 2]], [(1, 2)]),
        ("float", "0.5", np.float32(0.25), 0.25, 0.25),
    ],
)  # fmt: skip
def test_types_that_were_refused_or_unchecked(annotation, default, given, kept, gets):
    takes = one(annotation, default)
    found = convert(takes, given)
    assert json.dumps(found) == json.dumps(kept)
    assert convert(takes, found) == found
    got = in_page(takes, found)
    assert got == gets and type(got) is type(gets)
    there = {}
    exec(assignments({"a": takes}, {"a": found}), there)
    assert there["a"] == gets and type(there["a"]) is type(gets)


@pytest.mark.parametrize(
    "source, default",
    [
        ("a: float = 1/3", 1 / 3),
        ("a = -1", -1),
        ("a = +1.5", 1.5),
        ("a: int = 2**10", 1024),
        ("a: float = 10**-3 * 2", 0.002),
        ("a: int = (7 // 2) % 2", 1),
        ("a: list[int] = [2**3, 8 * 2]", [8, 16]),
        ("a: int = 60 * 60 * 24", 86400),
        ("a: dict[str, float] = {'x': 1/4}", {"x": 0.25}),
        ("a: Path = Path('x', 'y')", "x/y"),
        ("a = Path('x')", "x"),
    ],
)
def test_constant_expressions_are_computed(source, default):
    found = page_parameters(page_of(source))["a"].default
    assert found == default and type(found) is type(default)


@pytest.mark.parametrize(
    "source, said",
    [
        ("a: int = 9**9**9", "written out"),
        ("a: int = 2**4096 * 2**4096 * 2**4096", "written out"),
        ("a: float = 1/0", "written out"),
        ("a: list[int] = [0] * 10**9", "written out"),
        ("a: str = 'a' + 'b'", "written out"),
        ("a: int = True + 1", "written out"),
        ("a: int = open('x')", "written out"),
        ("a: Path = Path.home()", "written out"),
        ("a: Path = Path(open('x'))", "written out"),
        ("a: date = date(2026, 13, 1)", "written out"),
        ("a: date = '2026-01-31'", "expected date(2026, 1, 31)"),
        ("a: Path = 'x'", "expected Path('x')"),
        ("a: set[int] = [1]", "type 'set[int]' is not one"),
        ("a: os.PathLike = 'x'", "type 'os.PathLike' is not one"),
        ("a: other.int = 1", "type 'other.int' is not one"),
        ("a: int[str] = 1", "type 'int[str]' is not one"),
        ("a: list[int, int] = [1]", "list[int, int]"),
        ("a: dict[float, int] = {}", "keys of a dict"),
        ("a: dict[int] = {}", "dict[int]"),
        ("a: Literal[print(1)] = 1", "print(1) is no constant"),
        ("a: Annotated[int, Predicate(print)] = 1", "Predicate(print) is no limit"),
        ("a: Annotated[int, Field(default=1)] = 1", "expected Field with gt"),
        ("a: Annotated[str, Gt(0)] = 'a'", "cannot be"),
        ("a: Annotated[str, Field(pattern='(')] = 'a'", "cannot be used"),
        ("a: Annotated[float, Gt(0)] = 0.0", "expected greater than 0"),
        ("a: tuple[int, int] = (1, 2, 3)", "at most 2"),
        ("a: dict = {1: 2}", "cannot be"),
        ("a: bool = 1", "true or false"),
        ("a: int = " + "-" * 100_000 + "1", "the cell tagged `parameters`"),
        ("a: " + " | ".join(["int"] * 50_000) + " = 1", "the cell tagged `parameters`"),
        ("a: " + "list[" * 150 + "int" + "]" * 150 + " = 1", "recursion depth"),
    ],
)
def test_cells_that_are_refused(source, said):
    with pytest.raises(RunRefused) as refused:
        page_parameters(page_of(source))
    assert said in str(refused.value) and len(str(refused.value)) < 3000


def test_imports_for_annotations_may_stand_in_the_cell():
    head = "from typing import Annotated, Literal\nimport datetime\nfrom pathlib import Path\n"
    body = "opt: Literal['adam', 'sgd'] = 'adam'  # rule\nwhere: Path = Path('x')"
    takes = page_parameters(page_of(head + body))
    assert takes == page_parameters(page_of(body)) and list(takes) == ["opt", "where"]
    for line in (
        "import os",
        "import typing, os",
        "from os import path",
        "from .typing import Any",
    ):
        with pytest.raises(RunRefused, match=f"line 2: `{line}`"):
            page_parameters(page_of(f"a: int = 1\n{line}"))


def test_nothing_of_a_page_is_executed(tmp_path, monkeypatch):
    "Annotations, limits and defaults that would leave a file, each refused."
    monkeypatch.chdir(tmp_path)
    leave = "open('left', 'w')"
    for source in (
        f"a: {leave} = 1",
        f"a: list[{leave}] = 1",
        f"a: Annotated[int, {leave}] = 1",
        f"a: Annotated[int, Gt({leave})] = 1",
        f"a: Annotated[int, Gt(gt={leave})] = 1",
        f"a: Annotated[int, Gt(*{leave})] = 1",
        f"a: Annotated[int, Gt(**{leave})] = 1",
        f"a: Literal[{leave}] = 1",
        f'a: "Annotated[int, {leave}]" = 1',
        f'a: list["{leave}"] = 1',
        f"a: int = {leave}",
        f"a: Path = Path({leave})",
        f"a: dict = {{{leave}: 1}}",
        f"a: (x := {leave}) = 1",
        f"a: [int for _ in {leave}][0] = 1",
        f"a: int = f'{{{leave}}}'",
        f"a[{leave}]: int = 1",
    ):
        with pytest.raises(RunRefused):
            page_parameters(page_of(source))
    assert not list(tmp_path.iterdir())


# Messages: what came, what was expected, an example


@pytest.mark.parametrize(
    "annotation, default, given, said",
    [
        ("int", "4", 3.7, ["cannot be 3.7 (float)", "expected a whole number", "for example 4"]),
        ("int", "4", True, ["cannot be True (bool)", "expected a whole number"]),
        ("float", "0.5", "inf", ["'inf'", "expected a finite number", "for example 0.5"]),
        ("bool", "False", "inf", ["cannot be 'inf'", "expected true or false"]),
        ("bool", "False", 1, ["cannot be 1 (int)", "expected true or false"]),
        ("bool", "False", "yes", ["'yes'", "expected true or false"]),
        ("list[float]", "[1, 2]", 0.1, ["expected a list", "for example [0.1]"]),
        ("list[float]", "[1, 2]", "0.1", ["expected a list", "for example [0.1]"]),
        ("list[int]", "[1]", [8, "x"], ["[1] is 'x' (str)", "a whole number", "for example [1]"]),
        ("list[list[int]]", "[[1]]", "[[1], [2, x]]", ["[1][1] is 'x' (str)", "a whole number"]),
        ("dict[str, int]", "{'k': 1}", {"b": "c"}, ["['b'] is 'c' (str)", "a whole number"]),
        ("dict[str, list[int]] | None", "None", {"b": [1, 2.5]}, ["['b'][1] is 2.5 (float)"]),
        ("tuple[int, int]", "(1, 2)", [1], ["expected one more element", "for example [1, 2]"]),
        ("tuple[int, int]", "(1, 2)", [1, 2, 3], ["at most 2 elements", "for example [1, 2]"]),
        ('Literal["adam", "sgd"]', "'adam'", "lion", ["'adam' or 'sgd'", 'for example "adam"']),
        ('Literal["no", "yes"]', "'no'", False, ["YAML reads no", "quote the word"]),
        ("list[str]", "['a']", "[no, off]", ["[0] is False (bool)", "YAML reads no", "quote"]),
        ("str", "'a'", 3, ["expected a text", "Quote it: '3'"]),
        ("Annotated[float, Gt(0)]", "0.1", "0", ["expected greater than 0", "for example 0.1"]),
        ("Annotated[int | None, Field(ge=1, le=9)]", "None", 10, ["less than or equal to 9"]),
        ("int | None", "None", "many", ["a whole number or none", "for example 1"]),
        ("int | str", "1", 2.5, ["expected a whole number or a text"]),
        ("date", "date(2026, 1, 31)", "31.1.2026", ["valid date", 'for example "2026-01-31"']),
        ("Path", "Path('x')", 3, ["cannot be 3 (int)", 'for example "x"']),
    ],
)  # fmt: skip
def test_messages_show_what_would_be_taken(annotation, default, given, said):
    message = refusal(annotation, default, given)
    assert all(words in message for words in said), message
    assert len(message) < 400


@pytest.mark.parametrize("annotation, default", [("int", "1"), ("list[int]", "[1]"), ("Any", "1")])
def test_tensors_are_refused_with_words(annotation, default):
    torch = pytest.importorskip("torch")
    for value in (torch.tensor(3), torch.zeros(5), np.zeros(3), object(), {1, 2}, len):
        message = refusal(annotation, default, value)
        assert "kept as JSON: give numbers, texts, lists, dicts" in message
        assert ("tolist()" in message) == hasattr(value, "tolist")
    assert "[0] is tensor(1" in refusal("list[int]", "[1]", [torch.tensor(1)])


def test_a_long_value_is_shown_shortened():
    assert len(refusal("int", "1", "x" * 10_000)) < 400


def test_aliases_are_no_yaml_of_a_value():
    "Nine lines of aliases stand for a billion elements."
    lines = ["- &a0 [x]"] + [f"- &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    refusal("list[list[str]]", "[]", "\n".join(lines))


# A fast way for plain pages


def test_a_plain_page_needs_no_pydantic():
    code = (
        "import sys, json\n"
        "from neurobridge.lab.run.parameters import page_parameters, resolve\n"
        "cell = {'cell_type': 'code', 'metadata': {'tags': ['parameters']}, 'source':\n"
        "        'a: int = 1\\nb: float = .5\\nc: str = \"x\"\\nd: bool = True\\ne: int | None = None'}\n"
        "takes = page_parameters({'cells': [cell]})\n"
        "full = resolve(takes, {'a': '3', 'b': 1.5, 'c': 'y', 'd': 'true', 'e': None})\n"
        "assert full == {'a': 3, 'b': 1.5, 'c': 'y', 'd': True, 'e': None}\n"
        "sys.exit('pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


# Every type with every value


scalars = st.sampled_from(
    ["int", "float", "str", "bool", "Path", "date", "Any", "None", "Literal['a', 1, True]"]
    + ["PositiveInt", "Annotated[float, Gt(0)]", "list", "dict", "tuple"]
)
annotations = st.recursive(
    scalars,
    lambda inner: st.one_of(
        inner.map(lambda a: f"list[{a}]"),
        inner.map(lambda a: f"tuple[{a}, ...]"),
        st.tuples(inner, inner).map(lambda two: f"tuple[{two[0]}, {two[1]}]"),
        inner.map(lambda a: f"dict[str, {a}]"),
        st.tuples(inner, inner).map(" | ".join),
    ),
    max_leaves=5,
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=4)
    | st.sampled_from(["none", "1", "true", "[1]", "a", "1e-3", "2026-01-31"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.tuples(inner, inner)
    | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(annotations, plain)
def test_a_value_is_refused_or_kept_as_json_and_comes_back(annotation, value):
    takes = page_parameters(page_of(f"a: {annotation} | None = None"))["a"]
    try:
        found = convert(takes, value)
    except RunRefused:
        return
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    again = convert(takes, found)
    assert in_page(takes, again) == in_page(takes, found)
    there = {}
    exec(assignments({"a": takes}, {"a": found}), there)
    assert there["a"] == in_page(takes, found)


@settings(max_examples=100, deadline=None)
@given(plain)
def test_papermills_cell_and_ours_say_the_same_for_plain_values(value):
    takes = page_parameters(page_of("a = None"))
    try:
        found = resolve(takes, {"a": value})
    except RunRefused:
        return
    page = page_of("a = None")
    page.metadata["kernelspec"] = {"name": "python3", "language": "python"}
    nb = parameterize_notebook(load_notebook_node(page), found)
    theirs, ours = {}, {}
    exec(nb.cells[1].source, theirs)
    exec(assignments(takes, found), ours)
    assert theirs["a"] == ours["a"] == found["a"]


# Pages and sweeps


def store(root, source, *cells):
    page = page_of(source, *cells)
    head = "from datetime import date\nfrom pathlib import Path\nfrom typing import Literal\n"
    page.cells.insert(0, new_code_cell(head + "from neurobridge.lab.run.execute import record"))
    page.metadata["kernelspec"] = {"name": "python3", "display_name": "python3"}
    (root / "p.ipynb").write_text(json.dumps(page), encoding="utf-8")
    return root / "p.ipynb"


@pytest.mark.long
def test_a_page_gets_tuples_paths_and_dates(root):
    source = (
        "size: tuple[int, int] = (1, 2)\nwhere: Path = Path('x')\nday: date = date(2026, 1, 31)\n"
        "opt: Literal['adam', 'sgd'] = 'adam'\npairs: dict[int, float] = {}"
    )
    right = "[(3, 4), Path('a/b'), date(2026, 2, 1), 'sgd', {1: 2.0}]"
    work = f"record({{'same': float([size, where, day, opt, pairs] == {right})}})"
    page = store(root, f"from typing import Literal\n{source}", work)
    given = {"size": "(3, 4)", "where": "a/b", "day": "2026-02-01", "opt": "sgd", "pairs": "{1: 2}"}
    done = run_notebook(page, given)
    assert done.metrics == {"same": 1.0}
    kept = {"size": [3, 4], "where": "a/b", "day": "2026-02-01", "opt": "sgd", "pairs": {"1": 2.0}}
    assert done.record["params"] == kept
    again = run_notebook(page, done.record["params"])
    assert not again.fresh and again.folder == done.folder


def planned(root, text):
    (root / "s.yaml").write_text(f"notebook: p.ipynb\n{text}")
    return Sweep.from_yaml(root / "s.yaml").settings


def test_a_sweep_chooses_from_what_a_type_lists(root):
    store(
        root,
        "opt: Literal['adam', 'sgd', 'lion'] = 'adam'\nflag: bool = True\nn: int = 1\n"
        "may: Literal[1, 2] | None = None\nlr: Annotated[float, Lt(1)] = 0.1\nall: str = 'x'",
    )
    assert [each["opt"] for each in planned(root, "grid: {opt: all}")] == ["adam", "sgd", "lion"]
    assert len(planned(root, "grid: {opt: all, flag: all, may: all}")) == 18
    assert {each["may"] for each in planned(root, "grid: {may: all}")} == {1, 2, None}
    pairs = planned(root, "zip: {opt: all, n: [1, 2, 3]}")
    assert [(each["opt"], each["n"]) for each in pairs] == [("adam", 1), ("sgd", 2), ("lion", 3)]
    drawn = planned(root, "random: {draws: 3, parameters: {opt: {choice: all}}}")
    assert {each["opt"] for each in drawn} == {"adam", "sgd", "lion"}
    drawn = planned(root, "random: {draws: 3, parameters: {lr: {uniform: [0.1, 0.9]}}}")
    assert all(0.1 <= each["lr"] < 0.9 for each in drawn)
    for text, said in {
        "grid: {n: all}": "expected a list of at least one value",
        "grid: {all: all}": "expected a list of at least one value",
        "grid: {opt: every}": "or all, which stands for every value that its type lists",
        "grid: {opt: [adam, adamw]}": "'adam', 'sgd' or 'lion'",
        "random: {draws: 3, parameters: {lr: {uniform: [2, 3]}}}": "line 2: `random`: parameter `lr",
    }.items():
        with pytest.raises(RunRefused) as refused:
            planned(root, text)
        assert said in str(refused.value)


def test_dates_and_words_of_yaml(root):
    store(root, "day: date = date(2026, 1, 31)\nanswer: Literal['no', 'yes'] = 'no'")
    assert planned(root, "grid: {day: [2026-02-01, 2026-02-02]}")[0] == {"day": "2026-02-01"}
    assert planned(root, "grid: {answer: ['no', 'yes']}")[0] == {"answer": "no"}
    with pytest.raises(RunRefused, match="YAML reads no, off, yes and on as false and true"):
        planned(root, "parameters: {answer: no}")
    assert yaml.safe_load("no") is False


def test_names_and_lists_of_a_type():
    assert bases("Annotated[PositiveInt, Lt(9)] | None") == {"int", "None"}
    assert bases("Optional[Union[float, list[int]]]") == {"float", "list", "None"}
    assert choices("Literal['a', 2] | None") == ["a", 2, None]
    assert choices("bool") == [False, True] and choices("int | None") == choices("str") == []
