"""From the cells of a processed notebook to the HTML of a page."""

import re
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

from neurobridge.lab.formulas import mathml
from neurobridge.lab.run.html import safe_html

from .pages import anchors_of, image_size
from .search import Section, page_sections
from .site_map import page_url

WIDE = 700
"""Pixels from which a figure scrolls on a telephone."""


def _plain(
    value: str,  # of an option, as YAML has it
) -> str:
    import yaml

    read = yaml.safe_load(value) if value[:1] in ("'", '"') else value
    return read if isinstance(read, str) else value


def apply_options(
    notebook: Any,  # a processed notebook; changed in place
) -> None:
    "Act on the Quarto options at the top of cells and remove their lines."
    kept = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            options = dict(
                re.findall(r"^#\|\s*([\w-]+)\s*:\s*(.*?)\s*$", cell.source, re.MULTILINE)
            )
            cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.MULTILINE).strip("\n")
            off = {key for key, value in options.items() if value.lower() == "false"}
            if "include" in off or not (cell.source or cell.outputs):
                continue
            cell.metadata["transient"] = {"remove_source": "echo" in off or not cell.source}
            cell.metadata["classes"] = options.get("classes", "")
            cell.metadata["fold"] = options.get("code-fold", "").replace("false", "")
            cell.metadata["summary"] = _plain(options.get("code-summary", "Code"))
            cell.metadata["caption"] = _plain(options.get("fig-cap", ""))
            cell.metadata["alt"] = _plain(options.get("fig-alt", cell.metadata["caption"]))
            if "output" in off:
                cell.outputs = []
        kept.append(cell)
    notebook.cells = kept


def markdown_html(
    text: str,  # Markdown
    page: str,  # named in errors
) -> str:  # HTML
    "Render Markdown, formulas as MathML; not every dollar begins one, and nbconvert's parser knows."
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    def block(formula: str) -> str:
        return f'<span class="scroll formula" tabindex="0">{mathml(formula, "block", page)}</span>'

    class Renderer(IPythonRenderer):
        def inline_math(self, body: str) -> str:
            return mathml(body, page=page)

        def block_math(self, body: str) -> str:
            return block(body)

        def latex_environment(self, name: str, body: str) -> str:
            return block(rf"\begin{{{name}}}{body}\end{{{name}}}")

    renderer = Renderer(escape=False, exclude_anchor_links=True, allow_harmful_protocols=False)
    return safe_html(MarkdownWithMath(renderer=renderer).render(text))


def cells_html(
    notebook: Any,  # a processed notebook
    page: str,  # its path below `nbs`, named in errors
    template: Path,  # nbs/_offline/cells.html
) -> str:  # HTML
    "Convert a processed notebook's cells with nbconvert."
    from markupsafe import Markup
    from nbconvert import HTMLExporter, TemplateExporter
    from nbconvert.filters import Highlight2HTML, ansi2html

    apply_options(notebook)
    highlight = Highlight2HTML()
    filters = {
        "markdown2html": lambda text: Markup(markdown_html(text, page)),
        "highlight_code": lambda source, metadata: Markup(highlight(source, metadata=metadata)),
        "ansi2html": lambda text: Markup(ansi2html(text)),
        "safe_html": lambda text: Markup(safe_html(text)),
        "text_base64": lambda text: b64encode(text.encode()).decode(),
    }
    exporter = HTMLExporter(raw_template=template.read_text(encoding="utf-8"), filters=filters)
    exporter.environment.autoescape = True  # whatever no filter has made HTML of is text
    return TemplateExporter.from_notebook_node(exporter, notebook)[
        0
    ]  # HTMLExporter's own would parse all of it once more


def finish_html(
    body: str,  # a page's HTML
) -> tuple[
    str, list[tuple[int, str, str]], list[Section]
]:  # HTML, its contents (level, anchor, HTML), its sections for the search
    "Add anchors to headings, mend links to notebooks, box wide tables, mark wide figures."
    from bs4 import BeautifulSoup

    soup, contents = BeautifulSoup(body, "html.parser"), []
    headings = soup.find_all(["h2", "h3", "h4"])
    for heading, anchor in zip(
        headings, anchors_of([heading.get_text() for heading in headings]), strict=True
    ):
        heading["id"] = anchor
        if heading.name != "h4":
            contents.append(
                (
                    int(heading.name[1]),
                    heading["id"],
                    re.sub(r"</?a[^>]*>", "", heading.decode_contents()),
                )
            )
    sections = page_sections(soup)
    for heading in headings:
        link = soup.new_tag(
            "a",
            href=f"#{heading['id']}",
            attrs={"class": "anchor", "aria-label": "Link to this section"},
        )
        link.string = "#"
        heading.append(link)
    for link in soup.find_all("a", href=re.compile(r"^(?![a-z]+:)[^#]*\.ipynb(#|$)")):
        path, _, anchor = link["href"].partition("#")
        link["href"] = page_url(path) + (f"#{anchor}" if anchor else "")
    _size_images(soup)
    for table in soup.find_all("table"):
        table.attrs.pop("border", None)
        table.wrap(soup.new_tag("div", attrs={"class": "scroll", "tabindex": "0"}))
        _name_rows(table)
        for text in table.find_all(string=re.compile(" ± ")):
            text.replace_with(text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}"))
    return str(soup), contents, sections


def _name_rows(
    table: Any,  # of BeautifulSoup's tree
) -> None:
    "Take headings without words for what they are: empty corners, below which each row has its name."
    corner = table.find("th")
    if corner and not corner.get_text(strip=True):
        for row in table.select("tbody > tr"):
            if (first := row.find(["td", "th"])) and first.get_text(strip=True):
                first.name = "th"
                first["scope"] = "row"
    for heading in table.find_all("th"):
        if not heading.get_text(strip=True) and not heading.find(["img", "math"]):
            heading.name = "td"


def _size_images(
    soup: Any,  # BeautifulSoup's tree of a page
) -> None:
    "Give each figure its size, so that nothing moves while it loads, and mark the wide ones."
    for image in soup.find_all("img", src=re.compile("^data:image/(png|gif|jpeg);base64,")):
        width, height = image_size(b64decode(image["src"].partition(",")[2]))
        if not image.has_attr("width"):
            image["width"], image["height"] = width, height
        if width > WIDE:
            image["class"] = "wide"
