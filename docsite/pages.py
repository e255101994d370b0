"""What happens to a page in both builds: a processor for nbdev, and the links it mends."""

import ast
import contextlib
import io
import json
import os
import re
import warnings
from base64 import b64decode
from pathlib import Path, PurePosixPath
from typing import Any

from .citations import link_citations, references
from .site_map import page_url


def _is_import(node: ast.stmt) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom)) or (
        isinstance(node, ast.If) and all(map(_is_import, node.body))
    )


def _parse(source: str) -> list[ast.stmt | None]:
    try:
        return ast.parse(source).body
    except SyntaxError:  # a magic, such as %%bash
        return [None]


def _open_exports(
    cells: list,  # a notebook's cells as nbdev reads them: directives split off
) -> list:  # the same with exported code made visible, below headings
    "Show exported code under the public names it defines; leave cells of imports hidden."
    from execnb.nbio import mk_cell
    from fastcore.basics import AttrDict

    def made(source: str, kind: str, **directives: list) -> Any:
        cell = mk_cell(source, kind)
        cell.directives_, cell.metadata = directives, AttrDict()
        return cell

    opened, module = [], ""
    for cell in cells:
        directives = cell.directives_
        module = directives.get("default_exp", [module])[0]
        if cell.cell_type == "code" and re.search(r"^show_doc\(", cell.source, re.MULTILINE):
            opened.append(
                made(f"from neurobridge.{module} import *", "code", hide=[])
            )  # what it is to show
        elif cell.cell_type == "code" and not all(map(_is_import, code := _parse(cell.source))):
            cell.directives_ = directives | {"eval:": ["false"]}  # only imports are run
            if kinds := cell.directives_.keys() & {"export", "exports", "exporti"}:
                internal = " internal" * ("exporti" in kinds)
                cell.directives_ = {"eval:": ["false"]}
                cell.source = f"#| classes: exported{internal}\n" + cell.source
                names = [
                    node.name
                    for node in code
                    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"
                ]
                opened += [made(f"### `{name}`", "markdown") for name in names]
        opened.append(cell)
    return opened


def _anchor_of(
    heading: str,  # a heading's text
) -> str:  # its anchor, by Pandoc's rule
    "Derive a heading's anchor."
    text = re.sub(r"[^\w\s.-]", "", heading.strip().lower()).replace(" ", "-")
    return re.sub(r"^[^a-z_]+", "", re.sub(r"\s+", "-", text)) or "section"


def anchors_of(
    headings: list[str],  # a page's headings in their order
) -> list[str]:
    "Derive the anchors of all headings: a second one of a name gets a number."
    taken, anchors = {}, []
    for anchor in map(_anchor_of, headings):
        taken[anchor] = taken.get(anchor, -1) + 1
        anchors.append(anchor + (f"-{taken[anchor]}" if taken[anchor] else ""))
    return anchors


def _first_lines(
    cells: list,  # opened cells
) -> dict[str, str]:  # name → first line of its docstring, for each public function and class
    code = [
        cell.source
        for cell in cells
        if cell.cell_type == "code" and "#| classes: exported\n" in cell.source
    ]
    nodes = [
        node
        for source in code
        for node in _parse(source)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"
    ]
    return {node.name: (ast.get_docstring(node) or "").partition("\n")[0] for node in nodes}


def _as_it_stands(found: re.Match) -> str:
    return found[1] or "\\" + found[2]  # in code a backslash would be seen


def _with_overview(
    cells: list,  # opened cells
) -> list:  # the same, with a table of what the page exports before its first section
    "List a page's functions and classes; a page without any stays as it is."
    from execnb.nbio import mk_cell
    from fastcore.basics import AttrDict

    headings = [
        line
        for cell in cells
        if cell.cell_type == "markdown"
        for line in re.findall(r"^##+ (.+)$", cell.source, re.MULTILINE)
    ]
    anchors = dict(
        zip(reversed(headings), reversed(anchors_of(headings)), strict=True)
    )  # of a name's headings the first
    lines = _first_lines(cells)
    if not lines:
        return cells
    rows = [
        "| [`{}`](#{}) | {} |".format(
            name, anchors[f"`{name}`"], re.sub(r"(`[^`]*`)|([|*<$])", _as_it_stands, line)
        )
        for name, line in lines.items()
    ]
    table = mk_cell(
        "\n".join(
            [
                '<div class="overview">',
                "",
                "| Defined here | What it does |",
                "|---|---|",
                *rows,
                "",
                "</div>",
            ]
        ),
        "markdown",
    )
    table.directives_, table.metadata = {}, AttrDict()
    first = next(
        at
        for at, cell in enumerate(cells)
        if cell.cell_type == "markdown" and re.match("##+ ", cell.source)
    )
    return [*cells[:first], table, *cells[first:]]


def alt_of(
    section: str,  # the heading above a figure
    source: str,  # the code that draws it
) -> str:
    "Return what a figure without an `alt` of its own is about: its section, and its axes where the code names them."
    section = re.sub(r"[`*$\\]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", section))
    axes = dict.fromkeys(re.findall(r"""[xy]label(?:=|\()"([^"{$]+)\"""", source))
    return f"Figure: {section}" + (f" (axes: {', '.join(axes)})" if axes else "")


def _images(cell: Any) -> bool:
    return any(
        kind.startswith("image/")
        for output in cell.get("outputs", [])
        for kind in output.get("data", {})
    )


def _with_options(
    cells: list,  # opened cells; changed in place
) -> list:
    "Add an alternative text to each figure, and to each `show_doc` the class of its card, as Quarto's options."
    section = "the page"
    for cell in cells:
        if cell.cell_type == "markdown":
            section = (re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) or [section])[-1]
            continue
        options = []
        if re.search(r"^show_doc\(", cell.source, re.MULTILINE):
            options.append("#| classes: api\n")
        if _images(cell) and not re.search(r"^#\|\s*fig-(alt|cap)\s*:", cell.source, re.MULTILINE):
            options.append(
                f"#| fig-alt: {json.dumps(alt_of(section, cell.source), ensure_ascii=False)}\n"
            )
        cell.source = "".join(options) + cell.source
    return cells


def _one_line(
    html: str,  # of an output, such as a data frame's
) -> str:  # the same as one block of Markdown: no empty line, no indentation
    html = re.sub(r"<style[^>]*>.*?</style>", "", html, flags=re.DOTALL)
    return re.sub(r"\s*\n\s*", " ", html).strip()


def image_size(
    content: bytes,  # of a PNG, GIF or JPEG file
) -> tuple[int, int]:  # width and height (pixels)
    "Read the size of an image from the beginning of its file."
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=["PNG", "GIF", "JPEG"]) as image:
        return image.size


class LiteratePage:
    "Show exported code under its name and keep links inside the site: a processor for nbdev."

    def __init__(self, nb: Any):
        from nbdev.config import get_config

        config = get_config()
        self.nbs = Path(config.nbs_path).resolve()
        self.page = Path(nb.path_).resolve().relative_to(self.nbs).as_posix()
        self.site = f"{config.doc_host}{config.doc_baseurl}/"
        self.repository = f"{config.git_url}/blob/{config.branch}/"
        self.references = references(self.nbs) if self.page != "bibliography.ipynb" else {}
        self.imported = _imported(nb.cells)
        nb.cells = _with_overview(_with_options(_open_exports(nb.cells)))

    def __call__(self, cell: Any) -> None:
        if cell.cell_type == "markdown":
            bibliography = os.path.relpath("bibliography.ipynb", PurePosixPath(self.page).parent)
            cell.source = self.relink(link_citations(cell.source, self.references, bibliography))
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:  # Quarto reads the size here
                width, height = image_size(b64decode("".join(data["image/png"])))
                told = output.setdefault("metadata", {})
                told.setdefault("image/png", {"width": width, "height": height})
            if "text/html" in data and "<table" in "".join(data["text/html"]):
                data["text/markdown"] = _one_line("".join(data.pop("text/html")))
            if "text/markdown" in data:
                text = "".join(output["data"]["text/markdown"])
                text = re.sub(
                    r"^(---|\[source\]\(.*)\n+", "", text, flags=re.MULTILINE
                )  # the source is on this very page
                output["data"]["text/markdown"] = self.relink(
                    re.sub(r"^(#+) ([\w.]+)$", r"\1 `\2`", text, flags=re.MULTILINE)
                )

    def _at_build_(self, cell: Any) -> None:
        "Run a cell marked `#| at_build`: what it shows is then as new as the site."
        from execnb.shell import CaptureShell

        shell = CaptureShell()
        shell.cell(cell)
        if shell.exc:
            raise RuntimeError(
                f"{self.page}: a cell that is run at each build failed, {shell.exc!r}; run the "
                "page to see where"
            ) from shell.exc

    def relink(self, text: str) -> str:
        text = _without_namesakes(text, self.page, self.site, self.imported)
        return relink(text, self.page, self.nbs, self.site, self.repository)


def relink(
    text: str,  # Markdown
    page: str,  # where it stands, such as "snn/02_neuron.ipynb"
    nbs: Path,  # the folder of all pages
    site: str,  # what nbdev puts before every symbol link
    repository: str,  # address of the repository's files on the internet
) -> str:  # Markdown
    "Turn symbol links into relative ones, and links to files outside `nbs` into links to the repository."
    folder = PurePosixPath(page).parent

    def symbol(found: re.Match) -> str:
        anchor = (found[2] or "").split(".")[0]
        address = os.path.relpath(found[1], folder) if found[1] != page_url(page) else ""
        return (
            f"]({address}{'' if anchor.startswith('#_') else anchor})"
            if address or anchor
            else f"]({PurePosixPath(found[1]).name})"
        )

    def file(found: re.Match) -> str:
        target = Path(os.path.normpath(nbs / folder / found[1]))
        inside = target.is_relative_to(nbs) or not target.is_relative_to(nbs.parent)
        return found[0] if inside else f"]({repository}{target.relative_to(nbs.parent).as_posix()})"

    text = re.sub(r"^(#+ )\[(`[^`]+`)\]\([^)]*\)$", r"\1\2", text, flags=re.MULTILINE)
    text = re.sub(
        rf"\[([^\[\]]*)\[(`[^`]+`)\]\({re.escape(site)}[^)]*\)([^\[\]]*)\]\(", r"[\1\2\3](", text
    )
    text = re.sub(rf"\]\({re.escape(site)}([^)#\s]+)(#[^)\s]+)?\)", symbol, text)
    return re.sub(r"\]\((?![a-z]+:|#|/)([^)\s#]+)(?:#[^)\s]*)?\)", file, text)


def _imported(
    cells: list,  # a notebook's
) -> set[str] | None:  # names that the page imports from the package; None without code
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    return (
        set(
            re.findall(
                r"\w+", " ".join(re.findall(r"from neurobridge[\w.]* import (\([^)]*\)|.*)", code))
            )
        )
        if code
        else None
    )


def _without_namesakes(
    text: str,  # Markdown
    page: str,  # where it stands
    site: str,  # what nbdev puts before every symbol link
    imported: set[str] | None,  # names known on the page
) -> str:  # Markdown
    def meant(link: re.Match) -> str:
        return (
            link[0]
            if imported is None or link[2] in imported or link[3] == page_url(page)
            else link[1]
        )

    return re.sub(rf"\[(`([a-z]+)`)\]\({re.escape(site)}([^)#]+)[^)]*\)", meant, text)


def process_page(
    path: Path,  # a notebook
    root: Path,  # the project's folder
) -> Any:  # nbformat's notebook, its title, subtitle and module in `metadata.front`
    "Run nbdev's processors and ours over a notebook."
    import nbformat
    from execnb.nbio import nb2dict, read_nb
    from nbdev.config import get_config
    from nbdev.process import NBProcessor
    from nbdev.processors import FilterDefaults

    with (
        contextlib.chdir(root),
        warnings.catch_warnings(),
    ):  # nbdev looks for settings.ini from the working directory
        warnings.simplefilter("ignore")
        get_config.cache_clear()  # it may remember another project
        notebook = read_nb(path)
        module = re.search(
            r"^#\|\s*default_exp\s+(\S+)",
            "\n".join(cell.source for cell in notebook.cells),
            re.MULTILINE,
        )
        steps = [
            step for step in FilterDefaults().base_procs() if step.__name__ != "insert_warning"
        ]
        NBProcessor(nb=notebook, procs=[*steps, LiteratePage]).process()
    result = nbformat.reads(json.dumps(nb2dict(notebook)), as_version=4)
    result.cells = [cell for cell in result.cells if cell.cell_type != "raw"]
    front = {key: notebook.frontmatter_.get(key, "") for key in ("title", "description")}
    result.metadata["front"] = front | {"module": module[1] if module else ""}
    return result
