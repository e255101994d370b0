"""The map of the site: which pages there are, in which order, at which addresses."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath


def page_url(
    source: str,  # a notebook's path below `nbs`, such as "snn/02_neuron.ipynb"
) -> str:  # its address on the site, such as "snn/neuron.html"
    "Drop the sorting number of a notebook's file name, as nbdev does."
    path = PurePosixPath(source)
    return str(
        path.with_name(re.sub(r"^\d+[a-zA-Z0-9]*_", "", path.name.lower())).with_suffix(".html")
    )


@dataclass
class Entry:
    "One line of the sidebar: a page, or a section with lines of its own."

    title: str
    source: str | None = None
    children: list["Entry"] = field(default_factory=list)

    @property
    def url(self) -> str | None:
        return self.source and page_url(self.source)

    def pages(self) -> list["Entry"]:
        "List the pages from here on in reading order."
        return ([self] if self.source else []) + [
            page for child in self.children for page in child.pages()
        ]

    def trail(self, page: "Entry") -> list[str]:
        "Return the titles from here down to a page, without this one's."
        for child in self.children:
            if child is page:
                return [child.title]
            if page in child.pages():
                return [child.title, *child.trail(page)]
        return []


def _page_title(
    path: Path,  # a notebook
) -> str:  # the text of its first heading
    "Read a page's title from its first cell; raise `FileNotFoundError` or `ValueError` if there is none."
    if not path.is_file():
        raise FileNotFoundError(
            f"_quarto.yml lists {path}, which does not exist: write the page, or take its line out "
            "of the sidebar"
        )
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    found = re.search(r"^#\s+(.+)$", "".join(cells[0]["source"]) if cells else "", re.MULTILINE)
    if not found:
        raise ValueError(
            f"{path}: the first cell has no title; expected '# Title', an empty line, '> subtitle'"
        )
    return found[1].replace("`", "").strip()


def site_map(
    root: Path,  # the project's folder, with `_quarto.yml` and `nbs`
) -> Entry:  # the site: its title, and the sidebar as children
    "Read the sidebar; raise where it and the notebooks in `nbs` disagree."
    import yaml

    def entry(item: str | dict) -> Entry:
        if isinstance(item, str):
            return Entry(_page_title(root / "nbs" / item), item)
        children = [entry(child) for child in item.get("contents", [])]
        return Entry(
            item.get("section") or item.get("text") or _page_title(root / "nbs" / item["href"]),
            item.get("href"),
            children,
        )

    website = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))["website"]
    site = Entry(
        website["title"], children=[entry(item) for item in website["sidebar"]["contents"]]
    )
    there = {path.relative_to(root / "nbs") for path in (root / "nbs").rglob("*.ipynb")}
    there = {path.as_posix() for path in there if not any(part[0] in "._" for part in path.parts)}
    urls = [page.url for page in site.pages()]
    if doubles := sorted({url for url in urls if urls.count(url) > 1}):
        raise ValueError(
            f"more than one page would become {', '.join(doubles)}: a name must be unique in its "
            "folder without its number, and stand in the sidebar once"
        )
    if unlisted := sorted(there - {page.source for page in site.pages()}):
        raise ValueError(
            f"no line of the sidebar leads to {', '.join(unlisted)}: add them to _quarto.yml"
        )
    return site
