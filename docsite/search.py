"""What the search of the site reads: every word of every page, cut at the headings."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

SYNONYMS = Path(__file__).with_name("synonyms.txt")
_HEADINGS = ("h2", "h3", "h4")
_INLINE = ("a", "abbr", "b", "code", "em", "i", "small", "span", "strong", "sub", "sup")
_CODE_WORD = re.compile(r"[^\W\d]\w{2,}(?:-\w+)*")
_DECIMAL = re.compile(r"(?<![\w.])[-−+±]?\d*\.\d+(?:e[-+]?\d+)?%?(?![\w.])")


_Found = tuple[str, str, list[str], list[str]]  # anchor, heading, pieces of text, blocks of code


class Section(NamedTuple):
    "What stands below one heading of a page."

    anchor: str  # empty before the first heading
    heading: str
    text: str  # prose, tables, captions, descriptions of figures
    code: str  # words of code and outputs that the page has nowhere before


class IndexedPage(NamedTuple):
    "A page as the search knows it."

    url: str
    title: str
    subtitle: str
    names: str  # of its file, its module and what that exports
    trail: str  # its place in the sidebar, such as "Library / snn / Neuron"
    sections: list[Section]


def page_sections(
    soup: Any,  # BeautifulSoup's tree of a page whose headings have their anchors
) -> list[Section]:  # first what stands before any heading
    "Cut a page at its headings and keep all of its words."
    found: list[_Found] = [("", "", [], [])]
    _collect(soup, found)
    return _without_repeats(found)


def _collect(
    tag: Any,  # of the tree
    found: list[_Found],  # so far; gains sections and texts
) -> None:
    "Sort the content of a tag into headings, prose and code; formulas have no words."
    for child in tag.children:
        if isinstance(child, str):
            found[-1][2].append(child)
        elif child.name in _HEADINGS:
            found.append((child.get("id", ""), child.get_text().strip(), [], []))
        elif child.name == "img":
            found[-1][2].append(f" {child.get('alt', '')} ")
        elif child.name == "pre":
            found[-1][3].append(child.get_text())
        elif child.name != "math":
            _collect(child, found)
            found[-1][2].append("" if child.name in _INLINE else " ")


def _without_repeats(
    found: list[_Found],
) -> list[Section]:
    "Join the texts of each section; keep a word of code where the page has it first."
    sections, seen = [], set()
    for anchor, heading, texts, code in found:
        text = " ".join(_DECIMAL.sub("", "".join(texts)).split())
        seen |= set(_CODE_WORD.findall(f"{heading} {text}"))
        words = dict.fromkeys(_CODE_WORD.findall(" ".join(code)))
        fresh = [word for word in words if word not in seen]
        seen |= set(fresh)
        if heading or text or fresh:
            sections.append(Section(anchor, heading, text, " ".join(fresh)))
    return sections


def synonyms(
    path: Path = SYNONYMS,  # one group a line, separated by commas; # begins a comment
) -> list[list[str]]:
    "Read the groups of words that mean the same to somebody who searches."
    lines = (line.partition("#")[0] for line in path.read_text(encoding="utf-8").splitlines())
    groups = [[word.strip() for word in line.split(",")] for line in lines if line.strip()]
    if wrong := [group for group in groups if len(group) < 2 or not all(group)]:
        raise ValueError(
            f"{path.name}: {wrong[0]} is no group; expected two or more, separated by commas"
        )
    return groups


def index_script(
    pages: Iterable[IndexedPage],
    groups: Iterable[list[str]] = (),  # of synonyms
) -> str:  # JavaScript
    "Write the search index as a script, so that a page opened from a folder can load it."
    return _constant("SEARCH_PAGES", list(pages)) + _constant("SEARCH_SYNONYMS", list(groups))


def _constant(
    name: str,
    value: list,
) -> str:  # a line of JavaScript, which no text in it can leave
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for letter in "<>\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return f"const {name} = {text};\n"
