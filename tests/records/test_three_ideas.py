"The design of `three_ideas`: every arm, with the learning rate and the start that its own tuning chose."

import itertools

import pandas as pd
import yaml

from neurobridge.core import project_root

ROOT = project_root()
FACTORS = {
    "loops": ["one", "published"],
    "neuron": ["relu", "pipe_s", "lif"],
    "wiring": ["dense", "ensembles", "random", "narrow"],
}


def read_sweep(name):
    return yaml.safe_load((ROOT / "sweeps" / name).read_text())


def test_every_arm_was_tuned_alike():
    "The same learning rates and starts, on one seed that no recorded arm uses."
    tuning = pd.read_csv(ROOT / "results/three_ideas_tuning.csv")
    tried = tuning.groupby([*FACTORS])[["lr", "start"]].apply(
        lambda part: sorted(map(tuple, part.to_numpy()))
    )
    assert len(tried) == 24
    assert all(settings == tried.iloc[0] for settings in tried), tried.map(len)
    assert len(tried.iloc[0]) == 6
    assert set(tuning.seed).isdisjoint(range(5))


def test_the_design_takes_what_the_tuning_chose():
    tuning = pd.read_csv(ROOT / "results/three_ideas_tuning.csv")
    best = tuning.loc[tuning.groupby([*FACTORS]).valid_accuracy.idxmax()]
    chosen = {tuple(row[:3]): tuple(row[3:]) for row in best[[*FACTORS, "lr", "start"]].to_numpy()}
    sweep = read_sweep("three_ideas.yaml")
    arms = {
        tuple(arm[name] for name in FACTORS): (arm["lr"], arm["start"]) for arm in sweep["list"]
    }
    assert set(arms) == set(itertools.product(*FACTORS.values()))
    assert arms == chosen
    tuned = read_sweep("three_ideas_tuning.yaml")["parameters"]
    alike = ("dataset", "width", "groups", "threads")
    assert all(sweep["parameters"][name] == tuned[name] for name in alike)
    # tuned in bfloat16; recorded in float32, which every processor computes at full speed
    assert sweep["parameters"]["mixed_precision"] == "no"


def test_what_is_recorded_belongs_to_the_design():
    "Each run once, with the settings of its arm, by one version of the modules; the page says how far it is."
    runs = pd.read_csv(ROOT / "results/three_ideas.csv")
    sweep = read_sweep("three_ideas.yaml")
    arms = {
        tuple(arm[name] for name in FACTORS): (arm["lr"], arm["start"]) for arm in sweep["list"]
    }
    assert not runs.duplicated([*FACTORS, "seed"]).any() and set(runs.seed) <= set(range(5))
    for row in runs.itertuples():
        assert (row.lr, row.start) == arms[row.loops, row.neuron, row.wiring]
    for name in ("dataset", "limit", "test_limit", "width", "groups", "epochs", "brain", "threads"):
        assert set(runs[name]) == {sweep["parameters"][name]}, name
    assert set(runs.precision) == {"no"} and runs.commit.nunique() == 1
    assert pd.read_csv(ROOT / "results/three_ideas.versions.csv").version_hash.nunique() == 1
    whole = (runs.groupby("seed").size() == len(arms)).sum()
    page = (ROOT / "nbs/experiments/three_ideas.ipynb").read_text(encoding="utf-8")
    assert ("no seed is whole" in page) == (whole == 0)
