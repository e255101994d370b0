"The site: whole, without dead links, without a network, readable on a telephone."

import copy
import functools
import http.server
import io
import json
import re
import shutil
import subprocess
import sys
import threading
from base64 import b64decode
from configparser import ConfigParser
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from neurobridge.core import PALETTE, project_root
from neurobridge.lab.formulas import mathml

pytest.importorskip("nbdev", reason="the site is built with nbdev: pip install nbdev")
from bs4 import BeautifulSoup  # noqa: E402  (part of the docs extra too)
from pygments.styles import get_style_by_name  # noqa: E402

from docsite.build import CODE_STYLES, build_site  # noqa: E402
from docsite.citations import citations, references  # noqa: E402
from docsite.gallery import experiment_cards, scaled, thumbnail  # noqa: E402
from docsite.links import check_links  # noqa: E402
from docsite.readme import readme  # noqa: E402
from docsite.site_map import site_map  # noqa: E402

ROOT = project_root()

pytestmark = pytest.mark.long  # the whole site is built


@pytest.fixture
def toy(tmp_path):
    "A project of one page, to break."
    (tmp_path / "nbs").mkdir()
    for name in ("settings.ini", "_quarto.yml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "_quarto.yml").write_text(
        json.dumps({"website": {"title": "toy", "sidebar": {"contents": ["index.ipynb"]}}})
    )

    def write(*cells, name="index.ipynb"):
        made = [
            {"cell_type": kind, "id": f"c{n}", "metadata": {}, "source": text}
            | ({"outputs": [], "execution_count": None} if kind == "code" else {})
            for n, (kind, text) in enumerate(cells)
        ]
        (tmp_path / "nbs" / name).write_text(
            json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
        )
        return tmp_path

    return write


def test_both_builds_read_one_map():
    assert (ROOT / "nbs" / "_quarto.yml").read_text() == (ROOT / "_quarto.yml").read_text()
    assert "procs = docsite.pages:LiteratePage" in (ROOT / "settings.ini").read_text(), (
        "nbdev's own build would hide exported code"
    )


def test_every_page_is_reached_from_every_sidebar(site, soups):
    expected = {page.url for page in site_map(ROOT).pages()}
    assert set(soups) == expected
    for name, soup in soups.items():
        links = {
            (site / name)
            .parent.joinpath(a["href"])
            .resolve()
            .relative_to(site.resolve())
            .as_posix()
            for a in soup.select(".sidebar a")
        }
        assert links == expected, name
        assert [a["href"] for a in soup.select(".sidebar a[aria-current]")] == [Path(name).name]


def test_previous_and_next_lead_through_all_pages_in_order(soups):
    order, at = [], "index.html"
    while at:
        order.append(at)
        following = soups[at].select_one(".turn .next")
        at = (
            following
            and (Path("/") / at)
            .parent.joinpath(following["href"])
            .resolve()
            .relative_to("/")
            .as_posix()
        )
    assert order == [page.url for page in site_map(ROOT).pages()]


def test_no_broken_link(site):
    assert check_links(site) == []


def test_nothing_is_loaded_from_a_network(site, soups):
    for name, soup in soups.items():
        loaded = [
            tag.get("src") or tag.get("href")
            for tag in soup.find_all(["script", "link", "img", "iframe", "source", "object"])
        ]
        assert not [
            address for address in loaded if address and re.match(r"(?:https?:)?//", address)
        ], name
        assert all(tag.has_attr("hidden") for tag in soup.select(".search, .theme")), (
            f"{name}: without JavaScript, what needs it is not there"
        )
    for sheet in site.glob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(?:https?:)?//", sheet.read_text())


def test_titles_subtitles_and_no_machinery(soups):
    for name, soup in soups.items():
        assert soup.h1.get_text().strip(), name
        assert soup.select_one(".subtitle"), f"{name}: no '> subtitle' in the first cell"
        sources = "\n".join(pre.get_text() for pre in soup.select("main .sourceCode pre"))
        assert not re.search(r"^(#\||show_doc\()", sources, re.MULTILINE), (
            f"{name}: shows a directive"
        )


def test_headings_go_down_one_by_one(soups):
    for name, soup in soups.items():
        levels = [int(heading.name[1]) for heading in soup.main.find_all(re.compile("^h[1-6]$"))]
        assert (
            levels[0] == 1
            and levels.count(1) == 1
            and all(low - high <= 1 for high, low in zip(levels, levels[1:], strict=False))
        ), name


def test_what_a_screen_reader_says(soups):
    "No heading of a table is empty, no link is called by a word that says nothing, no anchor occurs twice."
    vague = "click here,here,this,go,start,right here,more,learn more,link,page,source".split(",")
    for name, soup in soups.items():
        assert all(th.get_text(strip=True) or th.img for th in soup.select("th")), name
        texts = {
            link.get_text(strip=True).lower()
            or link.get("aria-label")
            or (link.img and link.img["alt"])
            for link in soup("a")
        }
        assert not texts & {*vague, "", None}, (name, texts & {*vague, "", None})
        anchors = [tag["id"] for tag in soup.select("[id]")]
        assert len(anchors) == len(set(anchors)), name


def test_figures_are_described(soups):
    for name, soup in soups.items():
        for image in soup.main.find_all("img"):
            assert (
                re.match(r"(Figure: .|A figure from: .|Left, |.{20})", image["alt"])
                and "from cell" not in image["alt"]
            ), f"{name}: {image['alt']}"
    assert soups["experiments/pipe_s.html"].select("img.wide") and not soups["gallery.html"].select(
        "img.wide"
    )
    assert soups["tutorials/spiking_neuron.html"].find(
        "img",
        alt=re.compile("Spikes per step against constant input"),
    )


def test_a_figure_without_a_text_of_its_own_gets_one(toy):
    "From its heading, and from the axes where the code names them."
    png = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
    root = toy(
        ("markdown", "# One\n\n> page"),
        ("markdown", "## How fast"),
        ("code", 'ax.set(xlabel="time (ms)", ylabel="rate (Hz)")'),
    )
    page = json.loads((root / "nbs" / "index.ipynb").read_text())
    page["cells"][-1]["outputs"] = [
        {"output_type": "display_data", "metadata": {}, "data": {"image/png": png}}
    ]
    (root / "nbs" / "index.ipynb").write_text(json.dumps(page))
    soup = BeautifulSoup((build_site(root=root) / "index.html").read_text(), "html.parser")
    assert soup.main.img["alt"] == "Figure: How fast (axes: time (ms), rate (Hz))"


def test_a_number_keeps_its_spread(soups):
    cells = [cell.get_text() for soup in soups.values() for cell in soup.select("main td")]
    assert sum("\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}" in cell for cell in cells) > 100 and not [
        cell for cell in cells if " ±" in cell or "± " in cell
    ]


def test_words_are_not_taken_for_symbols(soups):
    "A parameter `neurons`, a module's `forward`, a network's `run`: functions of these names exist, on other pages."
    for name, word in [("tutorials/your_own_batch", "neurons"), ("snn/checkpointing", "forward"), ("snn/spiking_model", "forward"), ("snn/models", "run"), ("lab/run/execute", "run"),
                       ("snn/kernels/fused_norm", "spread")]:  # fmt: skip
        assert not [
            link["href"]
            for link in soups[f"{name}.html"].select("main p a, main td a")
            if link.get_text() == word
        ], name
    for name, word in [("notation", "density"), ("tutorials/ann_to_snn", "copy_weights"), ("tutorials/your_own_batch", "record"), ("snn/losses", "fit"),
                       ("lab/sweep/worker", "perform"), ("snn/neuron", "lif")]:  # fmt: skip
        assert [
            link
            for link in soups[f"{name}.html"].select("main p a, main td a")
            if link.get_text() == word
        ], f"{name}: no link for {word}"


def test_docstrings_stand_in_the_overview_as_they_are(soups):
    for name, soup in soups.items():
        assert not [
            code.get_text()
            for code in soup.select(".overview code")
            if re.search(r"\\[*<$]", code.get_text())
        ], name
    assert "$NEUROBRIDGE_DATA" in [
        code.get_text() for code in soups["core/paths.html"].select(".overview code")
    ]


def test_a_visitor_can_type_the_commands(soups):
    "`make` leaves them in `.venv`, and a shell does not look there by itself."
    for name in ("start", "index", "lab/cli"):
        assert "source .venv/bin/activate" in soups[f"{name}.html"].main.get_text()
    for name in ("start", "index"):
        assert soups[f"{name}.html"].find("a", string="the repository")
    assert "start.html#installation" in [
        link["href"] for link in soups["gallery.html"].select("main p a")
    ]


def test_paper_is_light_and_cuts_nothing(site, soups):
    assert all(soup.find(id="dark")["media"].startswith("screen and ") for soup in soups.values())
    paper = (site / "site.css").read_text(encoding="utf-8").partition("@media print")[2]
    assert re.search(r"main pre[^}]*white-space: pre-wrap", paper) and re.search(
        r"\.scroll[^}]*overflow: visible", paper
    )


def test_formulas_are_mathml(soups):
    for page in site_map(ROOT).pages():
        cells = json.loads((ROOT / "nbs" / page.source).read_text())["cells"]
        prose = "\n".join(
            "".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"
        )
        prose = re.sub(r"```.*?```|`[^`]*`|\\\$", "", prose, flags=re.DOTALL)
        formulas = re.findall(r"\$\$.+?\$\$|\$[^$]+\$", prose, re.DOTALL)
        main = copy.copy(soups[page.url].main)
        assert len(main.find_all("math")) >= len(formulas), page.url
        for code in main.find_all(["code", "pre"]):
            code.extract()
        left = re.findall(r"\\[a-zA-Z]{2,}|\$\$", main.get_text())
        assert not left, f"{page.url}: {left}"


@pytest.mark.parametrize(("formula", "expected"), [
    (r"\mathbb{R}^n", "ℝ"), (r"\mathcal L", "ℒ"), (r"\boldsymbol\mu", "𝝁"), (r"\mathbf{0}", "𝟎"), (r"\mathfrak C", "ℭ"),
    (r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "text-align: right"),
    (r"\operatorname*{mean}_{t}", "munder"),
    (r"\lvert u \rvert", 'lspace="0"'),
])  # fmt: skip
def test_formulas_in_the_form_browsers_draw(formula, expected):
    result = mathml(formula)
    assert expected in result and "mathvariant" not in result and "&" not in result


@pytest.mark.parametrize("formula", [r"\frac{1}{", r"x^", r"\left( a", r"\nosuchcommand{x}"])
def test_a_bad_formula_stops_the_build_and_keeps_the_old_site(toy, formula):
    out = build_site(root=toy(("markdown", "# One\n\n> page")))
    before = (out / "index.html").read_text()
    with pytest.raises(ValueError, match=re.escape(formula)) as caught:
        build_site(root=toy(("markdown", "# One\n\n> page"), ("markdown", f"So ${formula}$.")))
    assert "index.ipynb" in str(caught.value)
    assert (out / "index.html").read_text() == before


def test_the_map_is_strict(toy):
    root = toy(("markdown", "# One\n\n> page"))
    toy(("markdown", "# Two\n\n> page"), name="02_two.ipynb")
    with pytest.raises(ValueError, match="02_two.ipynb"):
        site_map(root)
    sidebar = {
        "website": {
            "title": "toy",
            "sidebar": {"contents": ["index.ipynb", "02_two.ipynb", "02_two.ipynb"]},
        }
    }
    (root / "_quarto.yml").write_text(json.dumps(sidebar))
    with pytest.raises(ValueError, match="two.html"):
        site_map(root)
    (root / "nbs" / "02_two.ipynb").unlink()
    with pytest.raises(FileNotFoundError, match="02_two.ipynb"):
        site_map(root)
    toy(("markdown", "No title here"), name="02_two.ipynb")
    with pytest.raises(ValueError, match="has no title"):
        site_map(root)


def test_cell_options_are_honoured(toy):
    root = toy(("markdown", "# One\n\n> page"), ("code", "#| hide\nhidden = 1"), ("code", "#| echo: false\nunseen = 2"), ("code", "#| include: false\ngone = 3"),
               ("code", "#| code-fold: true\n#| code-summary: Open me\nfolded = 4"), ("code", "plain = 5"), ("code", "#| export\nimport os\n"),
               ("code", "#| export\ndef shown():\n    'Do.'\n    return os"))  # fmt: skip
    page = BeautifulSoup((build_site(root=root) / "index.html").read_text(), "html.parser").main
    assert [pre.get_text().strip().splitlines()[0] for pre in page.select(".sourceCode pre")] == [
        "folded = 4",
        "plain = 5",
        "def shown():",
    ]
    assert page.select_one(".cell details summary").get_text() == "Open me"
    assert page.select_one("h3#shown") and page.select_one(".cell.exported")


def test_broken_links_are_warned_of(toy):
    root = toy(("markdown", "# One\n\n> page"), ("markdown", "[gone](02_gone.ipynb)"))
    with pytest.warns(UserWarning, match="gone.html leads nowhere"):
        build_site(root=root)


def test_readme_is_the_front_page(tmp_path):
    made = readme(tmp_path)
    assert (ROOT / "README.md").read_text(encoding="utf-8") == made.read_text(encoding="utf-8"), (
        "README.md is not what nbs/index.ipynb says: run make export"
    )
    for image in tmp_path.rglob("*.png"):
        assert (ROOT / image.relative_to(tmp_path)).read_bytes() == image.read_bytes()
    for target in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", made.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), f"README.md links to {target}"


def test_importing_it_needs_no_documentation_tool():
    absent = [
        "nbdev",
        "fastcore",
        "execnb",
        "nbconvert",
        "jinja2",
        "bs4",
        "yaml",
        "latex2mathml",
        "pygments",
    ]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import docsite.build, docsite.gallery, docsite.readme"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# What makes it more than pages


def test_the_front_page_is_light(site):
    "Under 300 kB with its styles and scripts, without pictures; the search index comes only with the first search."
    page = re.sub(r"data:image/[^\"]+", "", (site / "index.html").read_text(encoding="utf-8"))
    loaded = [
        tag.get("src") or tag.get("href")
        for tag in BeautifulSoup(page, "html.parser").select("script[src], link[rel=stylesheet]")
    ]
    assert loaded == ["site.css", "dark.css", "theme.js", "search.js", "code.js"]
    assert len(page.encode()) + sum((site / name).stat().st_size for name in loaded) < 300_000


def test_every_page_can_be_taken_along(site, soups):
    for page in site_map(ROOT).pages():
        download, colab = soups[page.url].select(".actions a")
        assert (
            download.has_attr("download")
            and (site / page.url).parent.joinpath(download["href"]).read_bytes()
            == (ROOT / "nbs" / page.source).read_bytes()
        )
        assert colab["href"].endswith(f"/blob/main/nbs/{page.source}")
        assert f"make lab PAGE={page.source}" in soups[page.url].select_one("#here").get_text()
    assert "/lab/tree/$(PAGE)" in (ROOT / "Makefile").read_text()


def test_library_pages_list_what_they_export(soups):
    for page in site_map(ROOT).pages():
        cells = json.loads((ROOT / "nbs" / page.source).read_text())["cells"]
        exported = [
            "".join(cell["source"])
            for cell in cells
            if re.search(r"^#\|\s*exports?\s*$", "".join(cell["source"]), re.MULTILINE)
        ]
        names = re.findall(r"^(?:def|class) ([A-Za-z]\w*)", "\n".join(exported), re.MULTILINE)
        listed = soups[page.url].select(".overview td:first-child a")
        assert [link.get_text() for link in listed] == names, page.source
        for link in listed:
            heading = soups[page.url].find(id=link["href"].removeprefix("#"))
            assert heading.find("code").get_text() == link.get_text()
            assert link.find_parent("tr").select_one("td:last-child").get_text().strip(), (
                f"{page.source}: {link.get_text()} has no docstring"
            )


def test_the_gallery_shows_every_experiment(soups):
    cards = soups["gallery.html"].select(".card")
    experiments = [
        page for page in site_map(ROOT).pages() if page.source.startswith("experiments/")
    ]
    assert [card.h3.a["href"] for card in cards] == [page.url for page in experiments]
    for card, page, read in zip(cards, experiments, experiment_cards(ROOT), strict=True):
        assert card.h3.a.get_text() == page.title == read.question
        assert read.answer in card.get_text() and read.cost in card.get_text()
        assert card.img and read.command and read.command in card.pre.get_text()


def test_a_new_experiment_shows_up_by_itself(toy):
    cells = [
        ("markdown", "# Is it new?\n\n> one"),
        ("markdown", "**Answer.** It is."),
        ("markdown", "## Reproduce"),
        ("markdown", "```sh\nneurobridge run new\n```"),
    ]
    root = toy(
        ("markdown", "# Gallery\n\n> all"),
        ("code", "#| at_build\nfrom docsite.gallery import gallery\ngallery()"),
    )
    (root / "nbs" / "experiments").mkdir()
    toy(*cells, name="experiments/new.ipynb")
    (root / "_quarto.yml").write_text(
        json.dumps(
            {
                "website": {
                    "title": "toy",
                    "sidebar": {"contents": ["index.ipynb", "experiments/new.ipynb"]},
                }
            }
        )
    )
    (card,) = BeautifulSoup(
        (build_site(root=root) / "index.html").read_text(), "html.parser"
    ).select(".card")
    assert (
        "Is it new?" in card.get_text()
        and "It is." in card.get_text()
        and "no recorded batch" in card.get_text()
    )
    toy(*cells[:1], name="experiments/new.ipynb")
    with pytest.raises(RuntimeError, match="begins with '..Answer"):
        build_site(root=root)


def test_every_source_has_its_entry():
    known, missing = references(ROOT / "nbs"), []
    for page in site_map(ROOT).pages():
        for cell in json.loads((ROOT / "nbs" / page.source).read_text())["cells"]:
            for whole, names, year in (
                citations("".join(cell["source"]))
                if page.source != "lab/18_citations.ipynb"
                else []
            ):
                several = re.search(r" et al\.| and |&", whole)
                if several and not any((name, year) in known for name in names):
                    missing.append(f"{page.source}: {whole}")
    assert missing == []


def test_citations_lead_to_the_bibliography(soups):
    grounds = {"lin-2022": 0, "kubilius-2019": 0, "konstantaropoulos-2025": 0}
    for soup in soups.values():
        for link in soup.select("main a[href*='bibliography.html#']"):
            anchor = link["href"].partition("#")[2]
            if anchor in grounds:
                grounds[anchor] += 1
    assert all(grounds.values()), grounds


def test_names_in_the_notation_are_names_in_the_code():
    text = "".join(
        "".join(cell["source"])
        for cell in json.loads((ROOT / "nbs" / "notation.ipynb").read_text())["cells"]
    )
    columns = [
        re.split(r" \| ", line)[1]
        for line in text.splitlines()
        if line.count(" | ") == 3 and not line.startswith("| symbol")
    ]
    names = set(re.findall(r"`(\w+)`", " ".join(columns)))
    package = "\n".join(
        file.read_text(encoding="utf-8") for file in (ROOT / "neurobridge").rglob("*.py")
    )
    assert (
        len(names) > 25 and [name for name in names if not re.search(rf"\b{name}\b", package)] == []
    )


# The way in


def settings():
    known = ConfigParser(delimiters=["="])
    known.read(ROOT / "settings.ini", encoding="utf-8")
    return known["DEFAULT"]


def test_addresses_versions_and_licence_are_those_of_the_settings(soups):
    "They are filled in at one place; a page that has them in its prose is found here."
    known = settings()
    address = known["git_url"]
    hosted = re.compile(r"https://(?:www\.)?github\.com/[\w.-]+/neurobridge[\w.-]*")
    quarto = (ROOT / "_quarto.yml").read_text(encoding="utf-8")
    for name, text in [("_quarto.yml", quarto), *((url, str(soup)) for url, soup in soups.items())]:
        assert {found.removesuffix(".git") for found in hosted.findall(text)} <= {address}, name
    for url, soup in soups.items():
        assert soup.select_one(".bar .version")["href"] == address, url
        assert known["version"] in soup.select_one(".bar .version").get_text(), url
        foot = soup.select_one(".foot")
        assert known["version"] in foot.get_text() and "Apache-2.0" in foot.get_text(), url
        assert f"{address}/blob/{known['branch']}/LICENSE" in {link["href"] for link in foot("a")}
    assert "Apache License" in (ROOT / "LICENSE").read_text() and known["license"] == "apache2"


def test_start_says_what_the_settings_say(soups):
    text = " ".join(soups["start.html"].main.get_text(" ").split())
    known = settings()
    torch = re.search(r"torch>=([\d.]+)", known["requirements"])[1]
    assert (
        f"{known['min_python']} or newer" in text and f"{torch} or newer, with torchvision" in text
    )
    assert f"pip install git+{known['git_url']}" in text and f"git clone {known['git_url']}" in text
    headings = {heading["id"] for heading in soups["start.html"].main.select("h2, h3")}
    assert {
        "requirements",
        "installation",
        "from-a-clone",
        "first-run",
        "first-page-of-your-own",
        "operating-systems",
        "licence",
        "how-to-cite",
    } <= headings
    first = soups["index.html"].select(".sidebar a")[:2]
    assert [link["href"] for link in first] == ["index.html", "start.html"]
    assert soups["index.html"].main.select("p a")[0]["href"] != "" and "start.html" in {
        link["href"] for link in soups["index.html"].main.select(".highlight ~ p a")
    }


def test_no_page_advises_the_name_that_is_another_package(soups):
    "What pip installs as `neurobridge` is somebody else's package of the same import name."
    wrong = re.compile(r"pip3? install (?:-\S+ )*['\"]?neurobridge(?![\w-]*\.whl|_lab)\b")
    for url, soup in soups.items():
        assert not wrong.search(soup.get_text()), url


def test_the_citation_is_that_of_the_citation_file(soups):
    import yaml

    if not (ROOT / "CITATION.cff").exists():
        pytest.skip("no CITATION.cff")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    text = soups["start.html"].find(id="how-to-cite").find_next("pre").get_text()
    bibtex = dict(re.findall(r"(\w+)\s*=\s*\{+(.*?)\}+", text))
    assert bibtex["version"] == str(cited["version"]) and bibtex["title"] == cited["title"]
    assert bibtex["url"] == cited["repository-code"]


def test_each_figure_keeps_its_place_while_the_page_loads(soups):
    count = 0
    for url, soup in soups.items():
        for image in soup.main.select("img[src^='data:image/']"):
            with Image.open(io.BytesIO(b64decode(image["src"].partition(",")[2]))) as real:
                assert (int(image["width"]), int(image["height"])) == real.size, url
            count += 1
        assert not soup.main.select("img:not([src^='data:'])"), url
    assert count > 150


def test_thumbnails_keep_their_colours():
    "Six series and their legend: each colour is still there, and near to what it was, in each card of the gallery too."
    fig, ax = plt.subplots(figsize=(7, 4))
    colours = [PALETTE[name] for name in ("blue", "orange", "green", "red", "ink", "gray")]
    for n, colour in enumerate(colours):
        ax.plot([0, 1], [n, n + 1], color=colour, lw=2, label=str(n))
    ax.legend()
    out = io.BytesIO()
    fig.savefig(out, dpi=100)
    plt.close(fig)
    small = pixels(thumbnail(out.getvalue())).reshape(-1, 3)
    for colour in colours:
        wanted = 255 * np.array(to_rgb(colour))
        near = np.abs(small - wanted).max(1) <= 16
        assert near.sum() > 50, (colour, np.abs(small - wanted).max(1).min())
    with_colours = 0
    for card in experiment_cards(ROOT):
        exact = np.asarray(scaled(card.figure, 560), float)
        error = np.abs(pixels(thumbnail(card.figure)) - exact)
        assert error.mean() < 2, card.source
        coloured = np.ptp(exact, axis=2) > 60
        if coloured.any():  # a figure may be black lines only
            assert error[coloured].mean() < 12, card.source
            with_colours += 1
    assert with_colours >= 15


def pixels(png):
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"), float)


# In a browser

HARNESS = """<!DOCTYPE html><link rel="icon" href="data:,"><pre id="result"></pre><script>
const pages = %s, found = [];
const CONTRASTS = ["index.html", "start.html", "gallery.html", "notation.html", "snn/neuron.html", "experiments/pipe_s.html"];
function opened(url, width) {
  return new Promise(done => {
    const frame = document.createElement("iframe");
    frame.width = width; frame.height = 900; frame.src = url;
    frame.onload = () => done(frame);
    document.body.append(frame);
  });
}
async function measure(url, width, menu) {
  const frame = await opened(url, width), inside = frame.contentDocument;
  if (menu) inside.getElementById("menu").click();
  const sidebar = inside.querySelector(".sidebar").getBoundingClientRect(), here = inside.querySelector(".sidebar [aria-current]").getBoundingClientRect();
  found.push({url, width, menu, wide: inside.documentElement.scrollWidth, sidebar: sidebar.height,
    here: here.top >= sidebar.top && here.bottom <= Math.min(sidebar.bottom, 900), box: inside.defaultView.getComputedStyle(inside.getElementById("menu")).display,
    flat: [...inside.querySelectorAll("main math")].filter(m => m.getBoundingClientRect().height < 4).length,
    stuck: scrolls(inside),
    bent: [...inside.images].filter(i => { const box = getComputedStyle(i), w = i.clientWidth - 2 * parseFloat(box.paddingLeft), h = i.clientHeight - 2 * parseFloat(box.paddingTop); return w > 0 && box.objectFit !== "contain" && Math.abs(w / h / (i.naturalWidth / i.naturalHeight) - 1) > .03; }).length,
    blank: [...inside.images].filter(i => !i.naturalWidth).length,
    hidden: [".search", ".theme", ".actions a", ".actions button"].filter(s => !inside.querySelector(s).getBoundingClientRect().width)});
  frame.remove();
}
const pause = (ms) => new Promise(done => setTimeout(done, ms));
function scrolls(inside) { return [...inside.querySelectorAll("main pre, .scroll, .cell-output")].filter(b => b.scrollWidth > b.clientWidth + 1 && inside.defaultView.getComputedStyle(b).overflowX !== "visible" && b.tabIndex < 0 && !b.querySelector("[tabindex]")).map(b => b.outerHTML.slice(0, 80)); }
async function folded(width, height) {
  const frame = await opened("index.html", width);
  frame.height = height;
  await pause(100);
  const inside = frame.contentDocument, below = (what) => inside.querySelector(what).getBoundingClientRect();
  const seen = {command: below("main .highlight").bottom, doors: below("#three-doors + ul").bottom, picture: below("main img").top, height};
  frame.remove();
  return seen;
}
async function copied() {
  const frame = await opened("start.html", 1200), inside = frame.contentDocument;
  let text = "";
  Object.defineProperty(frame.contentWindow.navigator, "clipboard", {value: {writeText: (given) => { text = given; return Promise.resolve(); }}});
  const seen = [];
  for (const button of inside.querySelectorAll("main .copy")) {
    const block = button.parentElement.querySelector("pre");
    button.click();
    await pause(1);
    seen.push({same: text === block.textContent.trimEnd(), label: button.textContent});
  }
  frame.remove();
  return {seen, blocks: inside.querySelectorAll("main .highlight pre, #here pre").length};
}
function press(target, key) { target.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true})); }
async function typed(inside, text) {
  const box = inside.querySelector(".search input");
  box.value = text;
  box.dispatchEvent(new Event("input"));
  for (let n = 0; n < 500; n++) { await pause(20); if (!inside.getElementById("found").hidden || !inside.querySelector("[role=status]").hidden) break; }
  return box;
}
async function searched() {
  let frame = await opened("snn/neuron.html", 1200), inside = frame.contentDocument;
  const loaded = () => Boolean(inside.querySelector("script[src$='search-index.js']"));
  const seen = {before: loaded(), width: frame.width};
  press(inside.body, "/");
  const box = await typed(inside, "sharpened_relu"), list = inside.getElementById("found");
  seen.focused = inside.activeElement === box;
  seen.after = loaded();
  seen.first = list.children[0].getAttribute("href").split("/").slice(-2).join("/");
  seen.expanded = box.getAttribute("aria-expanded");
  const places = () => [...list.children].map(l => l.getAttribute("href").split("/").slice(-2).join("/") + " " + l.textContent);
  await typed(inside, "N-MNIST"); seen.inside = places();
  await typed(inside, "address of a scheduler, slurm"); seen.late = places();
  await typed(inside, "membrane");
  press(box, "ArrowDown"); press(box, "ArrowDown"); press(box, "ArrowUp");
  seen.active = box.getAttribute("aria-activedescendant");
  seen.selected = [...list.children].map(l => l.getAttribute("aria-selected")).indexOf("true");
  seen.places = list.children.length;
  list.querySelectorAll("a").forEach(a => { if (!a.href.startsWith(location.origin)) seen.foreign = a.href; });
  list.hidden = true;
  await typed(inside, "zyxwv");
  seen.nothing = inside.querySelector("[role=status]").textContent;
  press(box, "Escape");
  seen.closed = list.hidden && box.value === "" && inside.activeElement !== box;
  press(inside.body, "/"); await typed(inside, "erk_densities");
  const arrived = new Promise(done => frame.addEventListener("load", done, {once: true}));
  inside.querySelector(".search").requestSubmit();  // what Enter does in a form
  await arrived;
  seen.arrived = frame.contentWindow.location.pathname + frame.contentWindow.location.hash;
  frame.remove();
  frame = await opened("index.html", 400); inside = frame.contentDocument;
  inside.querySelector(".search input").focus();
  await typed(inside, "surrogate");
  const place = inside.getElementById("found").getBoundingClientRect();
  seen.narrow = place.left >= 0 && place.right <= 400 && inside.documentElement.scrollWidth <= 400;
  frame.remove();
  return seen;
}
function faint(inside) {
  const view = inside.defaultView, pen = Object.assign(inside.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true}), read = {};
  const rgba = (colour) => read[colour] ??= (pen.clearRect(0, 0, 1, 1), pen.fillStyle = colour, pen.fillRect(0, 0, 1, 1), [...pen.getImageData(0, 0, 1, 1).data]);
  const over = (top, alpha, under) => top.slice(0, 3).map((v, n) => v * alpha + under[n] * (1 - alpha));
  const light = (colour) => colour.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((s, v, n) => s + v * [0.2126, 0.7152, 0.0722][n], 0);
  const texts = inside.createTreeWalker(inside.body, NodeFilter.SHOW_TEXT), found = new Map(), known = new Map();
  function ground(element) {
    if (!element) return [255, 255, 255];
    if (!known.has(element)) { const own = rgba(view.getComputedStyle(element).backgroundColor); known.set(element, own[3] ? over(own, own[3] / 255, ground(element.parentElement)) : ground(element.parentElement)); }
    return known.get(element);
  }
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.getClientRects().length || element.closest("script, style, .skip")) continue;
    let shown = 1;
    for (let at = element; at; at = at.parentElement) shown *= view.getComputedStyle(at).opacity;
    if (!shown) continue;
    const paper = ground(element), ink = rgba(view.getComputedStyle(element).color), lights = [light(over(ink, shown * ink[3] / 255, paper)), light(paper)].sort((a, b) => b - a);
    const contrast = (lights[0] + 0.05) / (lights[1] + 0.05);
    if (contrast < 4.5) found.set(element.className + " " + element.tagName, `${element.tagName}.${element.className} ${contrast.toFixed(2)} ${texts.currentNode.data.trim().slice(0, 40)}`);
  }
  return [...found.values()];
}
async function faded(theme) {
  const seen = [];
  for (const url of pages.filter((url) => CONTRASTS.includes(url))) {
    const frame = await opened(url, 1200);
    seen.push({url, theme, texts: faint(frame.contentDocument)});
    frame.remove();
  }
  return seen;
}
async function coloured() {
  const seen = [], rgb = (inside, what) => inside.defaultView.getComputedStyle(inside.querySelector(what));
  for (let n = 0; n < 4; n++) {
    const frame = await opened("snn/neuron.html", 1200), inside = frame.contentDocument;
    await pause(50);
    seen.push({theme: inside.querySelector(".theme").dataset.theme, label: inside.querySelector(".theme").getAttribute("aria-label"), media: inside.getElementById("dark").media,
      paper: rgb(inside, "body").backgroundColor, ink: rgb(inside, "main > p:not(.subtitle)").color, formula: rgb(inside, "main math").color,
      keyword: rgb(inside, "main .highlight .k").color, sheet: rgb(inside, "main .sourceCode").backgroundColor, figure: rgb(inside, "main img").backgroundColor});
    seen.at(-1).faint = n === 1 || n === 2 ? await faded(seen.at(-1).theme) : [];
    inside.querySelector(".theme").click();
    frame.remove();
  }
  return seen;
}
(async () => {
  for (const url of pages) { await measure(url, 400, false); await measure(url, 400, true); await measure(url, 1200, false); await measure(url, 340, false); }
  const fold = [await folded(1280, 800), await folded(390, 844)];
  const result = {found, fold, copied: await copied(), searched: await searched(), coloured: await coloured()};
  document.getElementById("result").textContent = JSON.stringify(result);
})().catch(error => { document.getElementById("result").textContent = JSON.stringify({error: String(error.stack)}); });
</script>"""


@pytest.fixture(scope="module")
def seen(site, browse):
    "The whole site in a browser, once: what the harness measured, the log, and what the server answered."
    answered = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path != "/harness":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(
                (HARNESS % json.dumps([page.url for page in site_map(ROOT).pages()])).encode()
            )

        def log_request(self, code="-", size="-"):
            answered.append((int(code), self.path))

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=site)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page, log = browse(f"http://127.0.0.1:{server.server_port}/harness", patience=90)
        server.shutdown()
    result = page.find(id="result").get_text()
    assert result, log[-2000:]
    result = json.loads(result)
    assert "error" not in result, result["error"]
    return result | {"log": log, "answered": answered}


@pytest.mark.browser
def test_pages_in_a_browser(seen):
    "Nothing is wider than its page at 340, 400 and 1200 px, the page's line is in sight in the sidebar, the menu opens, formulas and figures show, no console error, nothing missing."
    found = seen["found"]
    assert len(found) == 4 * len(site_map(ROOT).pages())
    assert [one["url"] for one in found if one["width"] == 1200 and not one["here"]] == []
    assert {one["box"] for one in found if one["width"] == 1200} == {"none"}, (
        "the keyboard would stop at a box that nobody sees"
    )
    assert [
        (one["url"], one["width"], one["wide"]) for one in found if one["wide"] > one["width"]
    ] == []
    assert [one["url"] for one in found if one["flat"] or one["blank"]] == []
    assert [(one["url"], one["width"], one["hidden"]) for one in found if one["hidden"]] == []
    assert all((one["sidebar"] > 0) == (one["menu"] or one["width"] > 800) for one in found)
    assert [line for line in seen["log"].splitlines() if "CONSOLE" in line] == []
    assert {request for request in seen["answered"] if request[0] not in (200, 304)} == set()


@pytest.mark.browser
def test_what_scrolls_can_be_reached_by_keyboard_and_no_figure_is_bent(seen):
    assert [(one["url"], one["width"], one["stuck"]) for one in seen["found"] if one["stuck"]] == []
    assert [(one["url"], one["width"]) for one in seen["found"] if one["bent"]] == []


@pytest.mark.browser
def test_the_front_page_begins_with_what_to_do(seen):
    "A first command and the doors are seen without scrolling, on a small laptop and on a telephone; pictures come after them."
    for one in seen["fold"]:
        assert (
            0 < one["command"] < one["doors"] <= one["height"] and one["picture"] > one["doors"]
        ), one


@pytest.mark.browser
def test_code_is_copied_as_it_stands(seen):
    copied = seen["copied"]["seen"]
    assert len(copied) == seen["copied"]["blocks"] > 8
    assert all(one["same"] and one["label"] == "Copied" for one in copied)


@pytest.mark.browser
def test_search_by_keyboard(seen):
    one = seen["searched"]
    assert not one["before"] and one["after"], (
        "the index is loaded by the first search, not by the page"
    )
    assert (
        one["focused"]
        and one["expanded"] == "true"
        and one["first"] == "transfer/sharpened.html#sharpened_relu"
    )
    assert (
        one["places"] == 12
        and one["selected"] == 1
        and one["active"] == "found-1"
        and "foreign" not in one
    )
    assert one["inside"][0].startswith("readers/nmnist.html")  # the page of the format itself
    assert any("pipe_d.html" in place for place in one["inside"])
    assert all(re.search(r"\bN-MNIST", place) for place in one["inside"][:3]), one["inside"]
    assert any(
        place.startswith("sweep/dispatch.html#which-workers") and "slurm" in place.lower()
        for place in one["late"]
    ), one["late"]
    assert one["nothing"] == "Nothing says “zyxwv”." and one["closed"] and one["narrow"]
    assert one["arrived"] == "/g2g/controls.html#erk_densities"


def contrast(a, b):
    "WCAG's contrast of two colours, from 1 to 21."

    def luminance(colour):
        linear = [
            v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4
            for v in (int(v) / 255 for v in re.findall(r"\d+", colour)[:3])
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted([luminance(a), luminance(b)], reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.browser
def test_colours_are_remembered_and_readable(seen):
    "Auto, light, dark, auto: each page opens in the colours chosen on the page before; text, formulas and code stand out from what they lie on."
    auto, light, dark, again = seen["coloured"]
    assert [one["theme"] for one in seen["coloured"]] == ["auto", "light", "dark", "auto"]
    assert dark["label"] == "Colours: dark. Change them" and [
        one["media"] for one in (light, dark)
    ] == ["not all", "screen"]
    assert (
        light["paper"] == "rgb(255, 255, 255)"
        and contrast(dark["paper"], "rgb(0, 0, 0)") < 1.5
        and again["paper"] == auto["paper"]
    )
    for one in (light, dark):
        assert contrast(one["ink"], one["paper"]) > 7 and contrast(one["formula"], one["paper"]) > 7
        assert contrast(one["keyword"], one["sheet"]) > 4
    assert dark["figure"] == "rgb(255, 255, 255)"


@pytest.mark.browser
def test_no_text_is_faint(seen):
    "Every text of six pages of different kinds, code too, has a contrast of 4.5 (AA) in light and in dark."
    read = [one for colours in seen["coloured"] for one in colours["faint"]]
    assert [one["theme"] for one in read] == ["light"] * 6 + ["dark"] * 6
    assert [one for one in read if one["texts"]] == []


@pytest.mark.parametrize(
    "style, sheet", list(zip(CODE_STYLES, ("styles.css", "dark.css"), strict=True))
)
def test_code_stands_out_from_its_sheet(style, sheet):
    "Each colour of code has a contrast of 4.5; comments have one of our own, diffs and errors do not occur."
    tint = re.search(r"--tint: (#\w{6})", (ROOT / "nbs" / sheet).read_text())[1]
    paper = f"rgb{tuple(bytes.fromhex(tint[1:]))}"
    colours = {
        str(token): f"rgb{tuple(bytes.fromhex(look['color']))}"
        for token, look in get_style_by_name(style)
        if look["color"] and not re.search("Comment|Generic|Error|Whitespace", str(token))
    }
    assert len(colours) > 20
    assert {token for token, ink in colours.items() if contrast(ink, paper) < 4.5} == set()


@pytest.mark.browser
def test_search_from_a_folder(site, browse):
    "Without any server, and from a page in a subfolder."
    page, log = browse((site / "snn" / "neuron.html").resolve().as_uri() + "?q=sharpened_relu")
    assert (
        page.select_one("#found a")["href"]
        == (site / "transfer" / "sharpened.html").resolve().as_uri() + "#sharpened_relu"
    )
    assert "CONSOLE" not in log
