"""The rules of the house that are not yet kept everywhere: who breaks them is listed in `house.json`, and the lists can only shrink.

A file, name or word that breaks a rule and is not listed fails the test; so does one that is listed and keeps the rule by now. After
mending one, take it off the list: `python tests/test_house.py` writes the lists anew, and refuses to make one longer.
"""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "neurobridge"
LISTED = Path(__file__).parent / "house.json"
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file.name != "_modidx.py"]
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts[1:]): file
    for file in FILES
    if file.name != "__init__.py"
}
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in MODULES.items()}
ROOMS = sorted({name.partition(".")[0] for name in MODULES})
PAGES = [
    page
    for page in sorted((ROOT / "nbs").rglob("*.ipynb"))
    if not any(part.startswith((".", "_")) for part in page.relative_to(ROOT / "nbs").parts)
]


def public(module: str) -> dict[str, object]:
    loaded = importlib.import_module(f"neurobridge.{module}")
    return {name: getattr(loaded, name) for name in getattr(loaded, "__all__", ())}


def callables(module: str) -> Iterator[tuple[str, Callable]]:
    "Public functions and classes, and the public methods that the classes define themselves."
    for name, value in public(module).items():
        if not callable(value) or getattr(value, "__module__", "") != f"neurobridge.{module}":
            continue
        yield name, value
        if inspect.isclass(value):
            yield from (
                (f"{name}.{own}", method)
                for own, method in vars(value).items()
                if inspect.isfunction(method) and not own.startswith("_")
            )


def imports(module: str, at_run_time: bool = True) -> Iterator[tuple[str, list[str]]]:
    "Modules of the package that a module imports, inside functions too, with the names it takes."
    tree, parts = TREES[module], ["neurobridge", *module.split(".")]
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or (at_run_time and id(node) in typing_only):
            continue
        base = ".".join(
            [*(parts[: -node.level] if node.level else []), *([node.module] if node.module else [])]
        )
        if base.startswith("neurobridge."):
            yield base.removeprefix("neurobridge."), [alias.name for alias in node.names]


# The rules: each names whoever breaks it


def same_name() -> list[str]:
    "A module with the name of something public in its room, a function with the name of a room."
    names = {
        room: {
            name for module in MODULES if module.startswith(f"{room}.") for name in public(module)
        }
        for room in ROOMS
    }
    modules = [
        f"module {module}"
        for module in MODULES
        if module.partition(".")[2] in names[module.partition(".")[0]]
    ]
    return modules + [
        f"{room}: function {name}"
        for room, found in names.items()
        for name in sorted(found)
        if name in ROOMS
    ]


def circles() -> list[str]:
    "Modules of one room that import one another, inside functions too."
    below = {
        module: {
            other
            for other, _ in imports(module)
            if other in MODULES and other.partition(".")[0] == module.partition(".")[0]
        }
        for module in MODULES
    }
    reached = {module: set(found) for module, found in below.items()}
    for _ in MODULES:
        for found in reached.values():
            found.update(*(reached[other] for other in list(found)))
    return [
        f"{one} {other}"
        for one in MODULES
        for other in sorted(reached[one])
        if one < other and one in reached[other]
    ]


def private_names() -> list[str]:
    "An underscored name taken from another module."
    return [
        f"{module} takes {other}.{name}"
        for module in MODULES
        for other, names in imports(module, False)
        for name in names
        if name.startswith("_") and name != "_modidx"
    ]


def long_lines() -> dict[str, int]:
    "Lines of more than 100 columns in a module."
    counts = {
        module: sum(len(line) > 100 for line in file.read_text(encoding="utf-8").splitlines())
        for module, file in MODULES.items()
    }
    return {module: count for module, count in counts.items() if count}


def long_functions() -> list[str]:
    "A function of more than 40 lines, its docstring and arguments not counted."
    found = []
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                found += [f"{module}.{node.name}"] * bool(
                    body and node.end_lineno - body[0].lineno >= 40
                )
    return found


def nested_conditions() -> dict[str, int]:
    "A conditional expression inside another."
    found = {}
    for module, tree in TREES.items():
        inside = sum(
            isinstance(inner, ast.IfExp)
            for node in ast.walk(tree)
            if isinstance(node, ast.IfExp)
            for inner in ast.iter_child_nodes(node)
        )
        found |= {module: inside} if inside else {}
    return found


def assigned_in_arguments() -> dict[str, int]:
    "A walrus directly in a list of arguments."
    found = {}
    for module, tree in TREES.items():
        inside = sum(
            isinstance(arg, ast.NamedExpr)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            for arg in node.args
        )
        found |= {module: inside} if inside else {}
    return found


def many_arguments() -> list[str]:
    "More than six arguments of a public function that can be given by position."
    found = []
    for module in MODULES:
        for name, function in callables(module):
            parameters = (
                inspect.signature(function).parameters.values()
                if not inspect.isclass(function)
                else list(inspect.signature(function.__init__).parameters.values())[1:]
            )
            by_position = [
                p
                for p in parameters
                if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name != "self"
            ]
            found += [f"{module}.{name}"] * (len(by_position) > 6)
    return found


def unexplained_arguments() -> dict[str, int]:
    "Public functions and classes of a module of which `help()` does not name each argument."
    found = {}
    for module in MODULES:
        for _, function in callables(module):
            asked = function.__init__ if inspect.isclass(function) else function
            names = (
                [
                    name
                    for name in inspect.signature(asked).parameters
                    if name not in ("self", "cls")
                ]
                if inspect.isfunction(asked)
                else []
            )
            text = inspect.getdoc(function) or ""
            found[module] = found.get(module, 0) + any(
                not re.search(rf"(?m)^\s*\*{{0,2}}{name}\s*[:(]", text) for name in names
            )
    return {module: count for module, count in found.items() if count}


_HEAVY = (
    "torchvision",
    "torch._dynamo",
    "sklearn",
    "scipy",
    "pandas",
    "matplotlib",
    "PIL",
    "accelerate",
    "h5py",
    "av",
    "papermill",
    "nbformat",
    "IPython",
    "distributed",
    "mlflow",
)


def heavy_imports() -> list[str]:
    "A big library that comes in with a room beside torch."
    found = []
    for room in ROOMS:
        code = (f"import sys, torch, importlib\nbefore = set(sys.modules)\nfor m in {[m for m in MODULES if m.startswith(room + '.')]}: importlib.import_module('neurobridge.' + m)\n"
                f"print(*[name for name in {_HEAVY} if name in sys.modules and name not in before])")  # fmt: skip
        come = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
            cwd=ROOT,
        ).stdout.split()
        found += [f"{room}: {name}" for name in come]
    return found


_WORDS = re.compile(
    r"\b(foretells?|foretold|whoever|doorman|pretence|pretended derivative|bumps?|stairs?|law of motion|laws of motion)\b",
    re.IGNORECASE,
)


def odd_words() -> dict[str, int]:
    "Words in titles, headings, docstrings and messages that no reader looks up."
    found = {}
    for page in PAGES:
        name = page.relative_to(ROOT / "nbs").as_posix()
        if name.startswith("tutorials/"):
            continue
        cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
        headings = [
            line
            for cell in cells
            if cell["cell_type"] == "markdown"
            for line in "".join(cell["source"]).splitlines()
            if line.startswith(("#", ">"))
        ]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        count = sum(len(_WORDS.findall(text)) for text in [*headings, *code])
        found |= {name: count} if count else {}
    return found


def unused_helpers() -> dict[str, int]:
    "Functions without underscore, public or not, that their page exports and does not use."
    found = {}
    for page in PAGES:
        cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        exported = [cell for cell in code if re.search(r"^#\|\s*export", cell, re.MULTILINE)]
        rest = "\n".join(cell for cell in code if cell not in exported)
        names = re.findall(r"^def ([A-Za-z]\w*)", "\n".join(exported), re.MULTILINE)
        count = sum(not re.search(rf"\b{name}\b", rest) for name in names)
        found |= {page.relative_to(ROOT / "nbs").as_posix(): count} if count else {}
    return found


def public_names() -> dict[str, int]:
    "Public names of a room, about 250 in all."
    return {
        room: sum(len(public(module)) for module in MODULES if module.startswith(f"{room}."))
        for room in ROOMS
    }


RULES = [
    same_name,
    circles,
    private_names,
    long_lines,
    long_functions,
    nested_conditions,
    assigned_in_arguments,
    many_arguments,
    unexplained_arguments,
    heavy_imports,
    odd_words,
    unused_helpers,
    public_names,
]


# Why a rule may be broken there for good; what is listed without a reason is still to be mended
REASONS = {
    "heavy_imports": {
        "lab: papermill": "the room's engine is a subclass of papermill's, so that stock papermill finds it",
        "lab: nbformat": "comes with papermill",
    },
}
MAY_BE_LISTED = ("unused_helpers", "public_names")  # counts that are to come down


def worse(now: dict[str, int] | list[str], listed: dict[str, int] | list[str]) -> list[str]:
    if isinstance(now, dict):
        return [
            f"{name}: {count}, listed {listed.get(name, 0)}"
            for name, count in now.items()
            if count > listed.get(name, 0)
        ]
    return [name for name in now if name not in listed]


def better(now: dict[str, int] | list[str], listed: dict[str, int] | list[str]) -> list[str]:
    if isinstance(now, dict):
        return [
            f"{name}: {now.get(name, 0)}, listed {count}"
            for name, count in listed.items()
            if now.get(name, 0) < count
        ]
    return [name for name in listed if name not in now]


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(rule, marks=[pytest.mark.long] if rule is heavy_imports else [])
        for rule in RULES
    ],
    ids=lambda rule: rule.__name__,
)
def test_rule(rule):
    now, listed = rule(), json.loads(LISTED.read_text())[rule.__name__]
    assert not worse(now, listed), f"new offenders ({rule.__doc__})"
    if rule is not heavy_imports:  # which depends on what is installed
        assert not better(now, listed), "kept by now: run python tests/test_house.py"


def test_what_is_listed_has_a_reason():
    listed = json.loads(LISTED.read_text())
    assert listed.keys() == {rule.__name__ for rule in RULES}
    for name, found in listed.items():
        if name not in MAY_BE_LISTED:
            assert set(found) == set(REASONS.get(name, {})), name


def test_the_rules_find_what_breaks_them():
    assert "core.checks" in MODULES and len(PAGES) > 50 and list(imports("core.train"))
    assert (
        worse({"a": 2}, {"a": 1})
        and worse(["a"], [])
        and better({}, {"a": 1})
        and better([], ["a"])
    )
    assert not worse({"a": 1}, {"a": 1}) and not better(["a"], ["a"])
    assert _WORDS.search("Who Foretells it") and not _WORDS.search("the bumped index")


if __name__ == "__main__":
    found = {rule.__name__: rule() for rule in RULES}
    listed = json.loads(LISTED.read_text()) if LISTED.exists() else found
    if longer := [
        f"{name}: {line}"
        for name, now in found.items()
        for line in worse(now, listed.get(name, now))
    ]:
        sys.exit("not written, a list would grow:\n" + "\n".join(longer))
    LISTED.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
