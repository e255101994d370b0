"""Write the package from the notebooks: `make export`, and `make check` in a copy.

    python tools/export.py [ROOT]

nbdev cleans the notebooks and exports their code. What nbdev doesn't do comes after it:

* data frames in outputs lose pandas' indentation, and nbdev's index of links its spaces; progress bars are left out;
* docstrings name each argument, with the comment that stands beside it in the notebook, so that `help()` shows it;
* each room gets `__init__.py`, which loads its modules when a name is first asked for, and `__init__.pyi`, which lists the public names;
* `ruff format` gives the modules lines of at most 100 columns.

Files of the package that nobody generates are listed in `PLAIN`.
"""

import ast
import io
import json
import os
import re
import subprocess
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path

PLAIN = ["__init__.py", "__init__.pyi", "__main__.py", "py.typed", "data/manifest.toml"]
"""Files under neurobridge/ that are written by hand."""

PLAIN_KINDS = (".c",)
"""Suffixes of further files that are written by hand."""

COLUMNS = 100

ROOM = '''"""{title}"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
'''


def is_plain(path: Path, package: Path) -> bool:
    "Return whether a file of the package is written by hand."
    return path.relative_to(package).as_posix() in PLAIN or path.suffix in PLAIN_KINDS


def remove_generated(package: Path) -> None:
    "Remove what an export writes, so that a renamed notebook leaves nothing."
    for path in [*package.rglob("*.py"), *package.rglob("*.pyi")]:
        if not is_plain(path, package):
            path.unlink()
    for folder in sorted((path for path in package.rglob("*") if path.is_dir()), reverse=True):
        if folder.name != "__pycache__" and not any(
            path.name != "__pycache__" for path in folder.iterdir()
        ):
            for path in folder.rglob("*.pyc"):
                path.unlink()
            for path in [*folder.iterdir(), folder]:
                path.rmdir()


# Docstrings with arguments


def comments_of(source: str) -> dict[int, str]:
    "Return the comment that ends each line, by line number from 1."
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip():
            found[token.start[0]] = token.string.lstrip("# ").strip()
    return {
        line: text for line, text in found.items() if not text.startswith(("noqa", "type:", "fmt:"))
    }


def without_pragmas(text: str) -> str:
    "Cut `# type: ignore[...]` and the like off a comment."
    for mark in ("# type:", "# noqa", "# fmt:"):
        text = text.partition(mark)[0]
    return text.strip()


def described(node: ast.FunctionDef, comments: dict[int, str]) -> list[tuple[str, str]]:
    "Return the arguments of a function that have a comment: name, comment."
    given = node.args
    arguments = [
        *given.posonlyargs,
        *given.args,
        *([given.vararg] if given.vararg else []),
        *given.kwonlyargs,
        *([given.kwarg] if given.kwarg else []),
    ]
    defaults = dict(
        zip([*given.posonlyargs, *given.args][::-1], given.defaults[::-1], strict=False)
    )
    defaults |= {
        argument: default
        for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)
        if default
    }
    found = []
    for argument in arguments:
        if argument.arg in ("self", "cls"):
            continue
        stars = "*" * (argument is given.vararg) + "**" * (argument is given.kwarg)
        last = max(
            argument.end_lineno, defaults[argument].end_lineno if argument in defaults else 0
        )
        if text := without_pragmas(comments.get(last, "")):
            found.append((f"{stars}{argument.arg}", text))
    return found


def result_of(node: ast.FunctionDef, comments: dict[int, str]) -> str:
    "Return the comment on what a function returns."
    if node.returns is None or node.body[0].lineno == node.returns.end_lineno:
        return ""
    return without_pragmas(comments.get(node.returns.end_lineno, ""))


def fields_of(node: ast.ClassDef, comments: dict[int, str]) -> list[tuple[str, str]]:
    "Return the fields of a data class or named tuple that have a comment."
    return [
        (field.target.id, text)
        for field in node.body
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and not field.target.id.startswith("_")
        if (text := without_pragmas(comments.get(field.end_lineno, "")))
    ]


def section(title: str, entries: list[tuple[str, str]]) -> list[str]:
    "Return a section of a docstring in NumPy's form."
    lines = ["", title, "-" * len(title)] if entries else []
    for name, text in entries:
        lines += [f"{name} :"] if name else []
        lines += textwrap.wrap(text, COLUMNS - 12, initial_indent="    ", subsequent_indent="    ")
    return lines


def with_sections(text: str, more: list[str], indent: str) -> str:
    "Return the source of a docstring with further lines."
    width = COLUMNS - len(indent)
    first, *rest = text.strip().splitlines()
    body = [*textwrap.wrap(first, width - 3, subsequent_indent=""), *rest, *more]
    prefix = "r" if any("\\" in line for line in body) else ""
    if body[-1].endswith('"'):
        body[-1] += " "
    lines = [f'{prefix}"""{body[0]}', *(f"{indent}{line}" if line else "" for line in body[1:])]
    return "\n".join([*lines, f'{indent}"""'])


def listed(tree: ast.Module) -> list[str]:
    "Return the names in a module's `__all__`."
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def of_function(node: ast.FunctionDef, comments: dict[int, str]) -> list[str]:
    "Return the sections of a function."
    text = result_of(node, comments)
    returns = section("Returns", [("", text)] if text else [])
    return section("Parameters", described(node, comments)) + returns


def of_class(node: ast.ClassDef, comments: dict[int, str]) -> list[str]:
    "Return the sections of a class: the arguments of its `__init__`, or its fields."
    for child in node.body:
        if isinstance(child, ast.FunctionDef) and child.name == "__init__":
            return section("Parameters", described(child, comments))
    return section("Parameters", fields_of(node, comments))


def documented(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    "Go through public functions, public classes and their methods without underscore."
    public = listed(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in public:
            yield node
            for child in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(child, ast.FunctionDef) and not child.name.startswith("_"):
                    yield child


def docstrings(source: str) -> str:
    "Return a module's source with docstrings that name the arguments of its public parts."
    tree, lines = ast.parse(source), source.splitlines()
    comments = comments_of(source)
    for node in sorted(documented(tree), key=lambda node: node.lineno, reverse=True):
        sections = of_class if isinstance(node, ast.ClassDef) else of_function
        more, text, place = sections(node, comments), ast.get_docstring(node), node.body[0]
        if not more or text is None or "\n---" in text:
            continue
        indent = " " * place.col_offset
        fresh = indent + with_sections(text, more, indent)
        lines[place.lineno - 1 : place.end_lineno] = fresh.splitlines()
    return "\n".join(lines) + "\n"


# Rooms


def public_names(module: Path) -> list[str]:
    "Return what a module lists as public and makes itself."
    tree = ast.parse(module.read_text(encoding="utf-8"))
    taken = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return [name for name in listed(tree) if name not in taken]


def stub(room: Path) -> str:
    "Return the stub of a room: the public names of its modules; exit where two modules share one."
    lines, front = [], {}
    for module in sorted(room.rglob("*.py")):
        if module.name.startswith("_"):
            continue
        place = ".".join(module.relative_to(room).with_suffix("").parts)
        for name in sorted(public_names(module)):
            if name in front:
                sys.exit(
                    f"{room.name}: {front[name]} and {place} both have a public {name}; rename one"
                )
            front[name] = place
            lines.append(f"from .{place} import {name} as {name}")
    return "\n".join(lines) + "\n"


def write_rooms(package: Path) -> None:
    "Write `__init__.py` and `__init__.pyi` of each room, and `__init__.py` of the folders in it."
    for room in sorted(
        path for path in package.iterdir() if path.is_dir() and any(path.rglob("*.py"))
    ):
        for folder in sorted(
            path for path in room.rglob("*") if path.is_dir() and any(path.glob("*.py"))
        ):
            (folder / "__init__.py").write_text("")
        (room / "__init__.py").write_text(
            ROOM.format(
                title=f"The public names of `{package.name}.{room.name}`; a module loads when its name is used."
            )
        )
        (room / "__init__.pyi").write_text(stub(room))


def clean_outputs(notebook: dict) -> bool:
    """Leave pandas' indentation and style out of data frames, a third of their bytes, and progress bars altogether.

    Returns whether anything was changed. JupyterLab does the same when it stores a page (tools/jupyter).
    """
    changed = False
    for cell in notebook["cells"]:
        outputs = cell.get("outputs", [])
        kept = [
            each for each in outputs if each.get("metadata", {}).get("neurobridge") != "progress"
        ]
        if len(kept) < len(outputs):
            cell["outputs"] = kept
            changed = True
        for data in [output.get("data", {}) for output in kept]:
            given = data.get("text/html", "")
            if 'class="dataframe"' in "".join(given):
                small = re.sub(r"<style scoped>.*?</style>", "", "".join(given), flags=re.DOTALL)
                small = re.sub(r">\s*\n\s*<", "><", small)
                data["text/html"] = small if isinstance(given, str) else [small]
                changed |= data["text/html"] != given
    return changed


def compact_page(page: Path) -> None:
    "Clean the outputs of a stored page."
    notebook = json.loads(page.read_text(encoding="utf-8"))
    if clean_outputs(notebook):
        text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
        page.write_text(text + "\n", encoding="utf-8")


def compact_index(path: Path) -> None:
    "Write nbdev's index of links with one line per module, without private names."
    index = ast.literal_eval(path.read_text(encoding="utf-8").partition("d = ")[2])
    for module, symbols in index["syms"].items():
        private = [name for name in symbols if name.removeprefix(f"{module}.").startswith("_")]
        for name in private:
            del symbols[name]
    modules = "".join(f"    {name!r}: {symbols!r},\n" for name, symbols in index["syms"].items())
    text = f"d = {{'settings': {index['settings']!r}, 'syms': {{\n{modules}}}}}\n"
    path.write_text(f"# Autogenerated by nbdev\n\n{text}", encoding="utf-8")


def export(root: Path) -> None:
    "Write the package of a checkout."
    package, programs = root / "neurobridge", Path(sys.executable).parent
    remove_generated(package)
    subprocess.run([programs / "nbdev_clean"], cwd=root, check=True)
    for page in sorted((root / "nbs").rglob("*.ipynb")):
        compact_page(page)
    subprocess.run([programs / "nbdev_export"], cwd=root, check=True)
    for module in sorted(package.rglob("*.py")):
        if not is_plain(module, package) and not module.name.startswith("_"):
            module.write_text(docstrings(module.read_text(encoding="utf-8")), encoding="utf-8")
    write_rooms(package)
    compact_index(package / "_modidx.py")
    subprocess.run([programs / "ruff", "format", "--quiet", "neurobridge"], cwd=root, check=True)


if __name__ == "__main__":
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    export(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve())
