"""The whole site, without Quarto and without a network."""

import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable
from configparser import ConfigParser
from pathlib import Path, PurePosixPath

from neurobridge.core.files import UnsafeFile, atomic_write, is_marked, mark_folder, read_regular
from neurobridge.core.paths import foreign, project_root
from neurobridge.lab.run.html import plain_text

from .html import cells_html, finish_html, markdown_html
from .links import check_links
from .pages import process_page
from .search import IndexedPage, index_script, synonyms
from .site_map import Entry, site_map

TEMPLATES = Path(__file__).parent / "templates"
MINISEARCH = Path(__file__).parent / "minisearch"  # as npm has it, with its licence
SITE_POLICY = (
    "default-src 'none'; script-src 'self' file:; img-src 'self' file: data:; "
    "style-src 'self' file: 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
"""What a browser may load for a page of the site."""

NBS = Path(__file__).parents[1] / "nbs"  # style sheets, which Quarto looks for there


CITE = "start.ipynb"
"""The page that says how to cite."""

CODE_STYLES = ("default", "github-dark")
"""Pygments' styles of code in light and dark: both have a contrast of 4.5 on the tinted sheet."""


LICENCES = {"apache2": "Apache-2.0"}
"""Names of licences by nbdev's short ones in `settings.ini`."""


def _project_facts(
    source: str,  # a page's path below `nbs`
    root: Path,  # the project's folder, with `settings.ini`
) -> dict[
    str, str
]:  # version, licence, address; a page's address in Colab; what pip installs there
    "Return what `settings.ini` says about the project and where it is on the internet."
    settings = ConfigParser(delimiters=["="])
    settings.read(root / "settings.ini", encoding="utf-8")
    known = settings["DEFAULT"]
    user, repo, branch, address = (known[key] for key in ("user", "repo", "branch", "git_url"))
    return {
        "version": known.get("version", ""),
        "licence": LICENCES.get(known.get("license", ""), ""),
        "address": address,
        "branch": branch,
        "colab": f"https://colab.research.google.com/github/{user}/{repo}/blob/{branch}/nbs/{source}",
        "package": f"git+{address}",
    }


def _page_html(
    site: Entry,  # the map
    page: Entry,  # the page to make
    root: Path,  # the project's folder
    motto: str = "",  # stands in the bar
) -> tuple[str, IndexedPage]:  # a whole HTML document, and its row in the search index
    "Make one page of the site."
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    notebook = process_page(root / "nbs" / page.source, root)
    front = notebook.metadata.front
    title, subtitle = (
        Markup(re.sub("</?p>", "", markdown_html(front[key], page.source)).strip())
        for key in ("title", "description")
    )
    body, contents, sections = finish_html(
        cells_html(notebook, page.source, TEMPLATES / "cells.html")
    )
    order = site.pages()
    at = order.index(page)
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    environment.filters["near"] = lambda url: os.path.relpath(url, PurePosixPath(page.url).parent)
    document = environment.get_template("page.html").render(
        site=site,
        page=page,
        motto=motto,
        title=title,
        subtitle=subtitle,
        body=Markup(body),
        project=_project_facts(page.source, root),
        cite=next((entry.url for entry in order if entry.source == CITE), None),
        policy=SITE_POLICY,
        where=[f"neurobridge.{front['module']}"] * bool(front["module"]) + [f"nbs/{page.source}"],
        toc=[(level, anchor, Markup(text)) for level, anchor, text in contents],
        previous=order[at - 1] if at else None,
        next=order[at + 1] if at + 1 < len(order) else None,
    )
    names = " ".join(_names(page, front["module"], body))
    texts = [page.url, title.striptags(), subtitle.striptags(), names, " / ".join(site.trail(page))]
    return document, IndexedPage(*texts, sections)


def _names(
    page: Entry,
    module: str,  # that it exports; empty if none
    body: str,  # its HTML
) -> list[str]:  # by which a page is looked for, beside its title
    from bs4 import BeautifulSoup

    overview = BeautifulSoup(body, "html.parser").select(".overview td:first-child a")
    exported = [link.get_text() for link in overview]
    modules = [f"neurobridge.{module}"] * bool(module)
    return [PurePosixPath(page.url).stem, *modules, page.source, *exported]


def _style_sheets(
    root: Path,  # the project's folder
) -> dict[str, str]:  # name and content of each sheet
    "Join the theme of `_quarto.yml`, the house style, the layout and the colours of code; the dark palette is a sheet of its own."
    import yaml
    from pygments.formatters import HtmlFormatter

    bar = (
        yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))["website"].get("navbar")
        or {}
    )
    light, dark = (
        HtmlFormatter(style=name).get_style_defs("main .highlight") for name in CODE_STYLES
    )
    light, dark = (re.sub(r"background(-color)?:[^;}]*;?", "", rules) for rules in (light, dark))
    house, layout, night = (
        path.read_text(encoding="utf-8")
        for path in (NBS / "styles.css", TEMPLATES / "layout.css", NBS / "dark.css")
    )
    colours = f":root {{ --bar: {bar.get('background', '#17324d')}; --bar-ink: {bar.get('foreground', '#ffffff')}; color-scheme: light; }}"
    return {
        "site.css": "\n".join([colours, house, layout, light]),
        "dark.css": f"{night}\n{dark}\n",
    }


def _shown(pages: "list[Entry]") -> Iterable["Entry"]:
    "Go through pages; a terminal sees how far it is."
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(pages, "pages", console=console, transient=True, disable=not console.is_terminal)


def _project(root: str | Path | None) -> Path:
    "Return the folder of the pages, whose imports are run; raise `UnsafeFile` for one that was only found and that others can change."
    found = Path(root or project_root()).resolve()
    if not root and (why := foreign(found)):
        raise UnsafeFile(
            f"{found} is not taken for the project, because {why}; work in a project of your own"
        )
    return found


def _check_replaceable(out: Path) -> None:
    "Raise for a folder that a site must not replace: one with content and without our mark, or a link."
    if out.is_symlink():
        raise UnsafeFile(
            f"{out} is a link to {os.readlink(out)}; expected a folder: name the one that it leads "
            "to"
        )
    if out.exists() and not is_marked(out, "site") and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"{out} is not empty and was not made by make docs: name a new folder, or "
            "remove this one yourself"
        )


def build_site(
    out: str | Path | None = None,  # where the site goes; default: `_docs` in the project
    root: str
    | Path
    | None = None,  # the project's folder; default: found from the working directory
) -> Path:  # the site's folder
    "Build the whole site without Quarto; warn of broken links, raise where a page cannot be made."
    import yaml

    root = _project(root)
    out = Path(os.path.abspath(out or root / "_docs"))
    _check_replaceable(out)
    site = site_map(root)
    motto = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))["website"].get(
        "description", ""
    )
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "site"
        rows = []
        for page in _shown(site.pages()):
            with atomic_write(fresh / page.url) as file:
                document, row = _page_html(site, page, root, motto)
                file.write(document)
            rows.append(row)
            (fresh / page.source).write_bytes(read_regular(root / "nbs" / page.source, 2**28))
        for name, content in (
            _style_sheets(root) | {"search-index.js": index_script(rows, synonyms())}
        ).items():
            (fresh / name).write_text(content, encoding="utf-8")
        for file in (
            *sorted(TEMPLATES.glob("*.js")),
            *sorted(MINISEARCH.iterdir()),
            NBS / "site.svg",
        ):
            shutil.copy(file, fresh)
        problems = _copy_pictures(root / "nbs", fresh) + check_links(fresh)
        mark_folder(fresh, "site")
        _check_replaceable(out)  # once more: building takes a while
        if out.exists():
            shutil.rmtree(out)
        shutil.move(fresh, out)
    if problems:
        warnings.warn("broken links on the site:\n" + plain_text("\n".join(problems)), stacklevel=2)
    return out


def _copy_pictures(nbs: Path, fresh: Path) -> list[str]:
    "Copy the pictures beside the pages; return a line for each that is a link, or no file: `leak.png` may lead to a private key."
    left = []
    for image in [
        path for path in sorted(nbs.rglob("*")) if path.suffix in (".png", ".jpg", ".svg", ".gif")
    ]:
        name = image.relative_to(nbs)
        try:
            if not image.parent.resolve().is_relative_to(nbs.resolve()):
                raise OSError(f"{image} is outside the folder of the pages")
            content = read_regular(image, 2**25)
        except OSError as error:
            left.append(f"{name.as_posix()}: left out ({error})")
            continue
        with atomic_write(fresh / name, "wb") as file:
            file.write(content)
    return left
