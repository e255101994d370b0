"""README.md: the front page once more, for code hosts."""

import re
from base64 import b64decode
from pathlib import Path
from typing import Any

from neurobridge.core.files import atomic_write
from neurobridge.core.paths import project_root

from .html import apply_options
from .pages import process_page
from .site_map import page_url


def _output_markdown(
    output: Any,  # one output of a cell
    image: Path,  # where its picture goes, if it is one
    address: str,  # the picture's address in the README
) -> str:  # Markdown
    "Put an output into Markdown."
    data = output.get("data", {})
    if "image/png" in data:
        with atomic_write(image, "wb") as file:
            file.write(b64decode(data["image/png"]))
        return f"![{image.stem}]({address})"
    if "text/html" in data:
        return re.sub(r"<style.*?</style>\s*", "", data["text/html"], flags=re.DOTALL).strip()
    text = data.get("text/plain") or output.get("text", "")
    return data.get("text/markdown") or f"```text\n{text.rstrip()}\n```"


def readme(
    out: str | Path | None = None,  # folder to write into; default: the project's
    root: str
    | Path
    | None = None,  # the project's folder; default: found from the working directory
) -> Path:  # README.md
    "Write README.md and its figures (nbs/images/index-*.png) from nbs/index.ipynb."
    root = Path(root or project_root()).resolve()
    out = Path(out or root)
    notebook = process_page(root / "nbs" / "index.ipynb", root)
    apply_options(notebook)
    front = notebook.metadata.front
    parts = [
        "<!-- Made from nbs/index.ipynb; edit that page, not this file. -->",
        f"# {front['title']}",
        f"> {front['description']}",
    ]
    figures = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif not cell.metadata.transient.remove_source:
            parts.append(f"```python\n{cell.source}\n```")
        for output in cell.get("outputs", []):
            figures += "image/png" in output.get("data", {})
            name = f"nbs/images/index-{figures}.png"
            parts.append(_output_markdown(output, out / name, name))
    with atomic_write(out / "README.md") as file:
        file.write(_repository_links("\n\n".join(parts), root / "nbs") + "\n")
    return out / "README.md"


def _repository_links(
    text: str,  # the front page's Markdown
    nbs: Path,  # the folder of all pages
) -> str:  # the same, links leading to files of the repository
    "Turn links between pages into links to the notebooks they are made from."
    sources = {
        page_url(source): source
        for source in (path.relative_to(nbs).as_posix() for path in nbs.rglob("*.ipynb"))
    }

    def link(found: re.Match) -> str:
        path, _, anchor = found[1].partition("#")
        if path in sources:  # a symbol's page
            return f"](nbs/{sources[path]})"
        return f"](nbs/{path}{'#' + anchor if anchor else ''})"

    text = re.sub(r"\]\((?![a-z]+:|#|nbs/images/)([^)\s]+)\)", link, text)
    return re.sub(r"\]\(https?://[^)\s]+?/blob/[^/)\s]+/([^)\s]+)\)", r"](\1)", text)
