"""The search of the site: questions of people who had not seen it, names, typing errors, hostile words.

It is run outside a browser by Node, or inside one, on the index of the real site.
"""

import csv
import gzip
import hashlib
import json
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from neurobridge.core import project_root

pytest.importorskip(
    "nbdev", reason="the site is built with the docs extra: pip install -e '.[docs]'"
)
from bs4 import BeautifulSoup  # noqa: E402  (part of the docs extra too)

from docsite.search import index_script, page_sections, synonyms  # noqa: E402
from docsite.site_map import site_map  # noqa: E402

ROOT = project_root()
SCRIPTS = ("minisearch.js", "find.js", "search-index.js")
with (Path(__file__).parent / "queries.csv").open(encoding="utf-8", newline="") as file:
    QUERIES = list(csv.DictReader(file))
ASK = """
const site = new SiteSearch(SEARCH_PAGES, SEARCH_SYNONYMS);
const answers = {};
for (const query of QUERIES) answers[query] = site.find(query).map((found) => found.url);
"""
NODE = """
const {readFileSync} = require("fs"), {runInThisContext} = require("vm");
for (const name of ["module", "exports"]) delete globalThis[name];  // as in a browser
globalThis.QUERIES = JSON.parse(readFileSync(0, "utf8"));
for (const name of %s) runInThisContext(readFileSync(name, "utf8"), name);
console.log(runInThisContext(%s));
"""

long = pytest.mark.long  # the whole site is built


def by_node(site, queries):
    program = NODE % (json.dumps(SCRIPTS), json.dumps(ASK + "JSON.stringify(answers);"))
    ran = subprocess.run(
        ["node", "-e", program],
        cwd=site,
        input=json.dumps(queries),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout)


def by_browser(site, queries, browse, folder):
    scripts = "".join(f'<script src="{(site / name).as_uri()}"></script>' for name in SCRIPTS)
    asked = f"const QUERIES = {json.dumps(queries)};{ASK}"
    shown = "document.getElementById('result').textContent = JSON.stringify(answers);"
    page = folder / "ask.html"
    page.write_text(f'<pre id="result"></pre>{scripts}<script>{asked}{shown}</script>')
    result, log = browse(page.as_uri(), patience=60)
    text = result.find(id="result").get_text()
    assert text, log[-2000:]
    return json.loads(text)


@pytest.fixture(scope="session")
def ask(site, request, tmp_path_factory):
    "What the search of the real site finds: for each query the addresses, best first."
    if shutil.which("node"):
        return lambda queries: by_node(site, list(queries))
    browse = request.getfixturevalue("browse")  # skips where there is no browser either
    folder = tmp_path_factory.mktemp("ask")
    return lambda queries: by_browser(site, list(queries), browse, folder)


def pages(addresses):
    return [address.partition("#")[0] for address in addresses]


@long
def test_questions_of_people_who_have_not_seen_the_site(ask, site):
    "Each of at least eighty finds a page that answers it among the first three."
    assert len(QUERIES) >= 80
    right = {row["query"]: row["pages"].split() for row in QUERIES}
    assert {
        page for named in right.values() for page in named if not (site / page).exists()
    } == set()
    answers = ask(right)
    missed = {q: answers[q][:3] for q in right if not {*pages(answers[q])[:3]} & {*right[q]}}
    assert missed == {}, f"{len(missed)} of {len(right)} missed: {missed}"


@long
def test_a_page_is_found_by_its_title_file_and_module(ask, site):
    "Among the first three, whatever else there is; by the title it comes first."
    index = json.loads(
        (site / "search-index.js").read_text().partition("= ")[2].partition(";\n")[0]
    )
    titles = {page[1]: page[0] for page in index}
    answers = ask(titles)
    later = {
        title: answers[title][:3]
        for title, url in titles.items()
        if pages(answers[title])[:1] != [url]
    }
    assert later == {}
    names = {
        name: page[0] for page in index for name in page[3].split() if re.search(r"[./]", name)
    }
    assert len(names) > len(index)
    answers = ask(names)
    later = {
        name: answers[name][:3]
        for name, url in names.items()
        if url not in pages(answers[name])[:3]
    }
    assert later == {}


def exported(soups):
    "Each public function and class of a library page, with the page's address."
    return [
        (link.get_text(), url)
        for url, soup in soups.items()
        for link in soup.select(".overview td:first-child a")
    ]


@long
def test_a_function_is_found_by_its_name(ask, soups):
    found = exported(soups)
    assert len(found) > 200
    answers = ask({name for name, _ in found})
    assert [
        (name, answers[name][:3]) for name, url in found if url not in pages(answers[name])[:3]
    ] == []
    for name, url in found:
        place = answers[name][pages(answers[name]).index(url)]
        assert soups[url].find(id=place.partition("#")[2]), f"{name}: {place} is no place"


@long
def test_a_typing_error_is_forgiven(ask, soups):
    "One letter left out, doubled or exchanged with the next one, in names of eight letters and more."
    draw = random.Random(0)
    wrong = {}
    for name, url in exported(soups):
        if len(name) >= 8:
            at = draw.randrange(2, len(name) - 2)
            swapped = name[:at] + name[at + 1] + name[at] + name[at + 2 :]
            for slip in (name[:at] + name[at + 1 :], name[:at] + name[at] + name[at:], swapped):
                wrong[slip] = url
    assert len(wrong) > 400
    answers = ask(wrong)
    found = [url in pages(answers[slip])[:3] for slip, url in wrong.items()]
    assert sum(found) / len(found) > 0.9, [
        slip for slip in wrong if wrong[slip] not in pages(answers[slip])[:3]
    ]


@long
def test_it_finds_while_a_word_is_typed(ask, soups):
    "From the first five letters on, a name's page is among the places shown, if no more than ten names begin so."
    names = [(name.lower(), url) for name, url in exported(soups) if len(name) >= 8]
    begun = {name[:n]: None for name, _ in names for n in range(5, len(name))}
    answers = ask(begun)
    lost = []
    for name, url in names:
        for n in range(5, len(name)):
            if sum(other.startswith(name[:n]) for other, _ in names) <= 10:
                lost += [name[:n]] * (url not in pages(answers[name[:n]]))
    assert len(lost) < 0.02 * len(begun), lost


@long
def test_every_word_is_in_the_index(site, soups):
    "Also the last word of a long paragraph, and the cells of tables."
    script = (site / "search-index.js").read_text(encoding="utf-8")
    index = {
        page[0]: json.dumps(page, ensure_ascii=False).lower()
        for page in json.loads(script.partition("= ")[2].partition(";\n")[0])
    }
    draw = random.Random(0)
    for url, soup in soups.items():
        for math in soup.select("math"):
            math.extract()
        texts = [
            tag.get_text(" ")
            for tag in soup.main.select("p, li, td, th")
            if not tag.find_parent(class_=re.compile("about|toc|turn"))
        ]
        words = sorted(
            {word.lower() for text in texts for word in re.findall(r"[^\W\d_]{4,}", text)}
        )
        for word in draw.sample(words, min(40, len(words))):
            assert word in index[url], (url, word)


@long
def test_the_index_is_small_enough_to_be_loaded_by_a_search(site):
    sizes = {name: len(gzip.compress((site / name).read_bytes(), 6)) for name in SCRIPTS}
    assert sizes["search-index.js"] < 600_000 and sum(sizes.values()) < 650_000, sizes


@long
@pytest.mark.parametrize(
    "words",
    [
        "constructor",
        "__proto__ toString",
        "hasOwnProperty",
        "</script>",
        "~",
        "- . _",
        "the of a",
        "\u202e",
        "\U0001f9e0",
        "x" * 3000,
        "neuron " * 400,
    ],
)
def test_odd_words_are_only_words(ask, words):
    assert isinstance(ask([words])[words], list)


def test_a_page_is_cut_at_its_headings():
    soup = BeautifulSoup(
        "<p>First <b>wo</b>rds <math><mi>x</mi></math>.</p><h2 id='a'>A</h2><table><tr><td>one</td><td>0.25</td>"
        "</tr></table><img alt='A picture'><pre>def one(two): 'three'</pre><h3 id='b'>B</h3><li>two</li>",
        "html.parser",
    )
    assert [tuple(section) for section in page_sections(soup)] == [
        ("", "", "First words .", ""),
        ("a", "A", "one A picture", "def two three"),
        ("b", "B", "two", ""),
    ]


def test_a_text_does_not_leave_the_script():
    made = index_script([("a.html", "</script>\u2028", "", "", [])], [["a", "b"]])
    assert "</script" not in made and "\u2028" not in made
    assert json.loads(made.partition("= ")[2].partition(";\n")[0])[0][1] == "</script>\u2028"


def test_synonyms_are_groups_of_words(tmp_path):
    groups = synonyms()
    assert len(groups) > 20 and all(len(set(group)) == len(group) > 1 for group in groups)
    (tmp_path / "words.txt").write_text("# none\ninstall, setup\nalone\n")
    with pytest.raises(ValueError, match="words.txt.*alone.*two or more"):
        synonyms(tmp_path / "words.txt")


@long
def test_another_word_of_a_group_finds_as_well(ask):
    "Each phrase of each group finds something, and shares a page with the first phrase's ten best."
    groups = synonyms()
    answers = ask({phrase for group in groups for phrase in group})
    apart = [
        (group[0], phrase)
        for group in groups
        for phrase in group[1:]
        if not {*pages(answers[phrase])} & {*pages(answers[group[0]])}
    ]
    assert apart == []


def test_minisearch_is_the_published_file():
    "dist/umd/index.js of npm's minisearch 7.2.0, with its licence beside it."
    folder = ROOT / "docsite" / "minisearch"
    assert {path.name for path in folder.iterdir()} == {"minisearch.js", "minisearch-licence.txt"}
    digest = hashlib.sha256((folder / "minisearch.js").read_bytes()).hexdigest()
    assert digest == "03c27931eb603af1d3358579e9885eafdb6a2f5fa9929557b3e77d7e99d06d03"
    licence = (folder / "minisearch-licence.txt").read_text()
    assert "Luca Ongaro" in licence and "Permission is hereby granted" in licence


def test_every_page_named_in_the_queries_is_on_the_map():
    addresses = {page.url for page in site_map(ROOT).pages()}
    assert {page for row in QUERIES for page in row["pages"].split()} <= addresses
    assert all(row["query"] and row["meant"] for row in QUERIES)
