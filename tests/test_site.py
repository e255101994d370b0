"The site: whole, without dead links, without a network, readable on a telephone."

import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from neurobridge.core.paths import project_root
from neurobridge.lab.formulas import mathml
from neurobridge.lab.site import build_site, check_links, readme, site_map

pytest.importorskip("nbdev", reason="the site is built with the docs extra: pip install 'neurobridge[docs]'")
from bs4 import BeautifulSoup  # noqa: E402  (part of the docs extra too)

ROOT = project_root()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The real site, built once."
    return build_site(tmp_path_factory.mktemp("site") / "docs")


@pytest.fixture(scope="module")
def soups(site):
    return {path.relative_to(site).as_posix(): BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in site.rglob("*.html")}


@pytest.fixture
def toy(tmp_path):
    "A project of one page, to break."
    (tmp_path / "nbs").mkdir()
    for name in ("settings.ini", "_quarto.yml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "nbs" / "_offline", tmp_path / "nbs" / "_offline")
    for name in ("styles.css", "dark.css"):
        shutil.copy(ROOT / "nbs" / name, tmp_path / "nbs")
    (tmp_path / "_quarto.yml").write_text(json.dumps({"website": {"title": "toy", "sidebar": {"contents": ["index.ipynb"]}}}))

    def write(*cells, name="index.ipynb"):
        made = [{"cell_type": kind, "id": f"c{n}", "metadata": {}, "source": text} | ({"outputs": [], "execution_count": None} if kind == "code" else {})
                for n, (kind, text) in enumerate(cells)]
        (tmp_path / "nbs" / name).write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
        return tmp_path

    return write


def test_both_builds_read_one_map():
    assert (ROOT / "nbs" / "_quarto.yml").read_text() == (ROOT / "_quarto.yml").read_text()


def test_every_page_is_reached_from_every_sidebar(site, soups):
    expected = {page.url for page in site_map(ROOT).pages()}
    assert set(soups) == expected
    for name, soup in soups.items():
        links = {(site / name).parent.joinpath(a["href"]).resolve().relative_to(site.resolve()).as_posix() for a in soup.select(".sidebar a")}
        assert links == expected, name
        assert [a["href"] for a in soup.select(".sidebar a[aria-current]")] == [Path(name).name]


def test_previous_and_next_lead_through_all_pages_in_order(soups):
    order, at = [], "index.html"
    while at:
        order.append(at)
        following = soups[at].select_one(".turn .next")
        at = following and (Path("/") / at).parent.joinpath(following["href"]).resolve().relative_to("/").as_posix()
    assert order == [page.url for page in site_map(ROOT).pages()]


def test_no_broken_link(site):
    assert check_links(site) == []


def test_nothing_is_loaded_from_a_network(site, soups):
    for name, soup in soups.items():
        loaded = [tag.get("src") or tag.get("href") for tag in soup.find_all(["script", "link", "img", "iframe", "source", "object"])]
        assert not [address for address in loaded if address and re.match(r"(?:https?:)?//", address)], name
        assert all(tag.has_attr("hidden") for tag in soup.select(".search, .theme")), f"{name}: without JavaScript, what needs it is not there"
    for sheet in site.glob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(?:https?:)?//", sheet.read_text())


def test_titles_subtitles_and_no_machinery(soups):
    for name, soup in soups.items():
        assert soup.h1.get_text().strip(), name
        assert soup.select_one(".subtitle"), f"{name}: no '> subtitle' in the first cell"
        sources = "\n".join(pre.get_text() for pre in soup.select("main .sourceCode pre"))
        assert not re.search(r"^(#\||show_doc\()", sources, re.MULTILINE), f"{name}: shows a directive"


def test_formulas_are_mathml(soups):
    for page in site_map(ROOT).pages():
        cells = json.loads((ROOT / "nbs" / page.source).read_text())["cells"]
        prose = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        prose = re.sub(r"```.*?```|`[^`]*`|\\\$", "", prose, flags=re.DOTALL)
        formulas = re.findall(r"\$\$.+?\$\$|\$[^$]+\$", prose, re.DOTALL)
        main = soups[page.url].main
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
    sidebar = {"website": {"title": "toy", "sidebar": {"contents": ["index.ipynb", "02_two.ipynb", "02_two.ipynb"]}}}
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
    assert [pre.get_text().strip().splitlines()[0] for pre in page.select(".sourceCode pre")] == ["folded = 4", "plain = 5", "def shown():"]
    assert page.select_one(".cell details summary").get_text() == "Open me"
    assert page.select_one("h3#shown") and page.select_one(".cell.exported")


def test_broken_links_are_warned_of(toy):
    root = toy(("markdown", "# One\n\n> page"), ("markdown", "[gone](02_gone.ipynb)"))
    with pytest.warns(UserWarning, match="gone.html leads nowhere"):
        build_site(root=root)


def test_readme_is_the_front_page(tmp_path):
    made = readme(tmp_path)
    assert (ROOT / "README.md").read_text(encoding="utf-8") == made.read_text(encoding="utf-8"), "README.md is not what nbs/index.ipynb says: run make export"
    for image in tmp_path.rglob("*.png"):
        assert (ROOT / image.relative_to(tmp_path)).read_bytes() == image.read_bytes()
    for target in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", made.read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), f"README.md links to {target}"


def test_importing_it_needs_no_documentation_tool():
    absent = ["nbdev", "fastcore", "execnb", "nbconvert", "jinja2", "bs4", "yaml", "latex2mathml", "pygments"]
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import neurobridge.lab.site"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


HARNESS = """<!DOCTYPE html><link rel="icon" href="data:,"><pre id="result"></pre><script>
const pages = %s, found = [];
function measure(url, width, menu) {
  return new Promise(done => {
    const frame = document.createElement("iframe");
    frame.width = width; frame.height = 900; frame.src = url;
    frame.onload = () => {
      const inside = frame.contentDocument, box = inside.documentElement;
      if (menu) inside.getElementById("menu").click();
      const sidebar = inside.querySelector(".sidebar").getBoundingClientRect();
      found.push({url, width, menu, wide: box.scrollWidth, sidebar: sidebar.height,
        flat: [...inside.querySelectorAll("main math")].filter(m => m.getBoundingClientRect().height < 4).length,
        blank: [...inside.images].filter(i => !i.naturalWidth).length});
      frame.remove(); done();
    };
    document.body.append(frame);
  });
}
(async () => {
  for (const url of pages) { await measure(url, 400, false); await measure(url, 400, true); await measure(url, 1200, false); }
  document.getElementById("result").textContent = JSON.stringify(found);
})();
</script>"""


@pytest.mark.browser
def test_in_a_browser(site, tmp_path):
    "Nothing is wider than its page at 400 and 1200 px, the menu opens, formulas and figures show, no console error, nothing missing."
    browser = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
    if not browser:
        pytest.skip("no Chromium on the PATH (chromium, chromium-browser or google-chrome)")
    answered = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path != "/harness":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write((HARNESS % json.dumps([page.url for page in site_map(ROOT).pages()])).encode())

        def log_request(self, code="-", size="-"):
            answered.append((int(code), self.path))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking"]
        flags += ["--enable-logging=stderr", "--virtual-time-budget=60000", "--window-size=1300,1000", f"--user-data-dir={tmp_path / 'profile'}"]
        shown = subprocess.run([browser, *flags, "--dump-dom", f"http://127.0.0.1:{server.server_port}/harness"], capture_output=True, text=True, timeout=240)
        server.shutdown()
    found = BeautifulSoup(shown.stdout, "html.parser").find(id="result").get_text()
    assert found, shown.stderr[-2000:]
    found = json.loads(found)
    assert len(found) == 3 * len(site_map(ROOT).pages())
    assert [(seen["url"], seen["width"], seen["wide"]) for seen in found if seen["wide"] > seen["width"]] == []
    assert [seen["url"] for seen in found if seen["flat"] or seen["blank"]] == []
    assert all((seen["sidebar"] > 0) == (seen["menu"] or seen["width"] > 800) for seen in found)
    assert [line for line in shown.stderr.splitlines() if "CONSOLE" in line] == []
    assert {request for request in answered if request[0] not in (200, 304)} == set()
