"""Links that lead nowhere."""

import os
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit


class _Addresses(HTMLParser):
    "Collect a page's anchors and the addresses it links to or loads."

    def __init__(self, html: str):
        super().__init__()
        self.anchors, self.addresses = set(), []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        attrs = dict(attrs)
        self.anchors.add(attrs.get("id"))
        if tag in ("a", "img", "link", "script", "iframe"):
            self.addresses.append((tag, attrs.get("href") or attrs.get("src") or ""))


def check_links(
    out: str | Path,  # a built site
) -> list[str]:  # one line for each problem; empty if all is well
    "Follow every link, anchor and image of a built site, and name those that fail."
    out = Path(out)
    pages = {
        path.relative_to(out).as_posix(): _Addresses(path.read_text(encoding="utf-8"))
        for path in sorted(out.rglob("*.html"))
    }
    problems = []
    for name, page in pages.items():
        for tag, address in page.addresses:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if tag != "a" and parts.scheme != "data":
                    problems.append(f"{name}: loads {address} from the internet")
                continue
            target = (
                os.path.normpath(PurePosixPath(name).parent / unquote(parts.path))
                if parts.path
                else name
            )
            if not (out / target).is_file():
                problems.append(f"{name}: {address} leads nowhere")
            elif (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].anchors
            ):
                problems.append(f"{name}: {address} names no heading of {target}")
    return problems
