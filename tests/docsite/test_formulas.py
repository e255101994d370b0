"Each formula of each page can be shown: a site that is built tells only the first that cannot."

import json
import re

import pytest

from docsite.html import markdown_html
from neurobridge.core.paths import project_root
from neurobridge.lab.formulas import mathml

PAGES = sorted((project_root() / "nbs").rglob("[!_.]*.ipynb"))


def formulas(page):
    "Formulas of the prose of a page, without code."
    for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            prose = re.sub(r"```.*?```|`[^`]*`", "", "".join(cell["source"]), flags=re.DOTALL)
            yield from re.findall(r"\$\$(.+?)\$\$", prose, re.DOTALL)
            yield from re.findall(r"(?<!\$)\$([^$\n]+)\$(?!\$)", prose)


def test_each_formula_becomes_mathml():
    found = [(page, formula) for page in PAGES for formula in formulas(page)]
    assert len(found) > 500
    for page, formula in found:
        assert mathml(formula, "block", page.name).startswith("<math")


def test_an_unknown_command_is_named():
    with pytest.raises(ValueError, match="langle"):
        mathml(r"\Big\langle x", "block", "page")


def test_prices_and_shell_variables_are_no_formulas():
    text = r"A price of \$5, the code `echo $HOME $PATH`, and $\tau = 20$ ms."
    shown = markdown_html(text, "sample")
    assert shown.count("<math") == 1 and "echo $HOME $PATH" in shown and "$5" in shown
    with pytest.raises(ValueError, match="sample: cannot translate"):
        markdown_html(r"$\nonsense$", "sample")
