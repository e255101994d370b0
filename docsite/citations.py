"""How a source named on a page finds its entry in the bibliography."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

_WORD = r"[A-Z][^\W\d_]++"  # a + after a count: what is taken is not given back
_NAME = rf"{_WORD}(?:(?:-| (?:de|der|la|van|von) ){_WORD})*+"
_NAMES = rf"{_NAME}(?:(?:, | and | & ){_NAME})*+(?: et al\.| and colleagues)?+"


def references(
    nbs: Path,  # the folder of all pages
) -> dict[tuple[str, str], str]:  # (first author, year) → anchor
    "Read the entries of the bibliography; a project without one has none."
    page = nbs / "bibliography.ipynb"
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"] if page.is_file() else []
    text = "\n".join("".join(cell["source"]) for cell in cells)
    entries = re.findall(rf'<span id="([^"]+)"></span>\*\*({_NAME}).*?(\d{{4}})\.\*\*', text)
    return {(author, year): anchor for anchor, author, year in entries}


_YEAR = r",? (?:\((?P<year>\d{4})\)|(?P<plain>\d{4}))(?!\d)"
_CITATION = re.compile(
    rf"(?P<names>{_NAMES})(?:{_YEAR})?"
)  # names without a year are taken too, so that no letter is looked at twice


def citations(
    text: str,
) -> list[tuple[str, list[str], str]]:  # each as it stands, its names, its year
    "Find what looks like a citation of one or more authors."
    return [(match[0], *told) for match in _CITATION.finditer(text) if (told := _told(match))]


def _told(match: re.Match) -> tuple[list[str], str] | None:  # names, year; None without a year
    year = match["year"] or match["plain"]
    return (
        (re.findall(_NAME, re.sub(r" et al\.| and colleagues", "", match["names"])), year)
        if year
        else None
    )


_KEPT = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$\n]+\$|\[[^\[\]]*\]\([^)\[]*\)|<[^<>]+>|^#+ .*?$",
    re.DOTALL | re.MULTILINE,
)


def link_citations(
    text: str,  # Markdown
    known: Mapping[tuple[str, str], str],  # from `references`
    address: str,  # of the bibliography, seen from the page
) -> str:  # Markdown
    "Turn the citations in a text into links to the bibliography."

    def link(match: re.Match) -> str:
        names, year = _told(match) or ([], "")
        first = next((name for name in names if (name, year) in known), None)
        at = match[0].index(first) if first else len(match[0])
        return match[0][:at] + (
            f"[{match[0][at:]}]({address}#{known[first, year]})" if first else ""
        )

    def linked(piece: str) -> str:
        return _CITATION.sub(link, piece)

    done, at = [], 0
    for kept in _KEPT.finditer(text):
        done += [linked(text[at : kept.start()]), kept[0]]
        at = kept.end()
    return "".join([*done, linked(text[at:])])
