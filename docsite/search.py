"""How a reader finds a word on a site that has no server."""

import json
from collections.abc import Iterable
from typing import Any


def page_sections(
    soup: Any,  # BeautifulSoup's tree of a page whose headings have their anchors
    words: int = 60,  # words kept of a paragraph
    most: int = 240,  # words kept of a section
) -> list[tuple[str, str, str]]:  # anchor, heading, words; first what stands before any heading
    "Cut a page at its headings and keep the first words of each paragraph."
    found: list[tuple[str, str, list[str]]] = [("", "", [])]
    for tag in soup.find_all(["h2", "h3", "h4", "p", "li"]):
        if tag.name.startswith("h"):
            found.append((tag.get("id", ""), tag.get_text().strip(), []))
        elif tag.parent.name != "li":  # a paragraph of a list item is the item's
            found[-1][2].extend(tag.get_text().split()[:words])
    return [
        (anchor, heading, " ".join(text[:most]))
        for anchor, heading, text in found
        if heading or text
    ]


def index_script(
    pages: Iterable[
        tuple[str, str, str, list[tuple[str, str, str]]]
    ],  # address, title, subtitle, sections
) -> str:  # JavaScript
    "Write the search index as a script, so that a page opened from a folder can load it."
    rows = json.dumps(list(pages), ensure_ascii=False, separators=(",", ":"))
    for letter in "<>\u2028\u2029":
        rows = rows.replace(letter, f"\\u{ord(letter):04x}")
    return f"const SEARCH_INDEX = {rows};\n"
