"The page of claims: its verdicts against tests by scipy, and links that lead to pages."

import json
import re

import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from neurobridge.core import project_root

ROOT = project_root()
RESULTS = ROOT / "results"


@pytest.fixture(scope="module")
def lines():
    "The table as the page shows it: verdict, claim, published, measured, page."
    page = json.loads((ROOT / "nbs/experiments/claims.ipynb").read_text(encoding="utf-8"))
    shown = [
        "".join(out["data"]["text/markdown"])
        for cell in page["cells"]
        for out in cell.get("outputs", [])
        if "text/markdown" in out.get("data", {})
    ]
    assert len(shown) == 1
    return [[each.strip() for each in line.strip("|").split(" | ")] for line in shown[0].splitlines()[2:]]  # fmt: skip


def difference(name, one, other, measure="accuracy", where=None):
    table = pd.read_csv(RESULTS / f"{name}.csv", keep_default_na=False)
    table = table if where is None else table.query(where)
    theirs, ours = (
        table[table.arm == arm].set_index("seed")[measure].astype(float) for arm in (other, one)
    )
    return (ours - theirs).dropna()


@pytest.mark.parametrize(
    ("claim", "values"),
    [
        ("74 % sparse, ensembles beat dense (", ("g2g_sparsity", "mixer 0.15", "dense")),
        ("beats a fixed wiring", ("g2g_rewiring", "hebb/hebb", "static")),
        (
            "recurrent steps raise accuracy",
            ("cornet_variants", "published", "steps 1/1/1", "accuracy", "trained == 1"),
        ),
        (
            "the skip connection raises accuracy",
            ("cornet_variants", "published", "no skip", "accuracy", "trained == 1"),
        ),
        ("pipe-S reaches direct", ("pipe_s", "pipe-S", "scratch", "valid_accuracy")),
    ],
)
def test_a_verdict_is_that_of_a_t_test(lines, claim, values):
    gap = difference(*values)
    above, below = (ttest_1samp(gap, 0, alternative=way).pvalue for way in ("greater", "less"))
    expected = "held" if above < 0.025 else "not held" if below < 0.025 else "open"
    shown = [line[0] for line in lines if claim in line[1] and f"[{values[0]}]" in line[4]]
    assert len(shown) == 1 and shown[0].strip("*").split(":")[0] == expected


def test_every_claim_says_where_and_an_open_one_what_it_would_take(lines):
    assert len(lines) >= 28
    for verdict, claim, published, measured, page in lines:
        assert published and measured and re.search(r"\(.+\)$", claim)
        assert verdict in ("**held**", "**not held**") or len(verdict) > len("open: ")
        link = re.fullmatch(r"\[\w+\]\((\w+\.ipynb)\)", page)
        assert link is None and page == "–" or (ROOT / "nbs/experiments" / link[1]).exists()
