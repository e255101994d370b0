"What the brain experiments recorded: enough seeds, nothing impossible, and the figures that were known before."

import numpy as np
import pandas as pd
import pytest

from neurobridge.core import project_root

RESULTS = project_root() / "results"


@pytest.fixture(scope="module")
def alignment():
    return pd.read_csv(RESULTS / "brain_alignment.csv")


def test_alignment_is_of_real_brains_and_has_seeds(alignment):
    assert set(alignment.brain) == {"recorded"} and alignment.commit.notna().all()
    assert not alignment.duplicated(
        ["family", "arm", "trained", "layer", "step", "seed", "size"]
    ).any()
    networks = alignment[alignment.family.isin(["published", "small"])]
    untrained, trained = (
        networks[networks.trained == which].groupby(["family", "arm"]).seed.nunique()
        for which in (0, 1)
    )
    assert (
        (untrained.loc["published"] >= 5).all()
        and (trained >= 3).all()
        and {"CORnet-S", "CORnet-Z", "spiking ResNet"} <= set(trained.loc["small"].index)
    )
    assert (
        networks[["v4", "it", "evc"]].stack().between(-1, 1).all()
        and networks[networks.family == "small"].accuracy.between(0, 1).all()
    )


def test_ceilings_are_those_measured_elsewhere(alignment):
    "Reliability of the session by another program: 0.763 in the median; noise ceilings of the fifteen people by rsatoolbox."
    ceiling = alignment[alignment.family == "ceiling"].groupby("arm")[["v4", "it", "evc"]].mean()
    assert abs(ceiling.v4["reliability"] - 0.763) < 0.005
    np.testing.assert_allclose(
        ceiling.loc[["noise ceiling, lower", "noise ceiling, upper"], ["it", "evc"]],
        [[0.45253, 0.24186], [0.54219, 0.39175]],
        atol=1e-5,
    )


def test_no_network_passes_the_ceiling(alignment):
    ceiling = alignment[alignment.family == "ceiling"].groupby("arm")[["v4", "it", "evc"]].mean()
    networks = alignment[alignment.family.isin(["published", "small", "baseline"])]
    assert networks.v4.max() < ceiling.v4["reliability"] ** 0.5
    assert (
        networks.it.max() < ceiling.it["noise ceiling, upper"]
        and networks.evc.max() < ceiling.evc["noise ceiling, upper"]
    )


def test_random_cornet_z_is_as_measured_elsewhere(alignment):
    "Another program (principal components first, unstratified splits, one seed) found .34, .39, .44, .48 from V1 to IT, and .20 for 28-pixel images."
    z = (
        alignment[
            (alignment.arm == "CORnet-Z")
            & (alignment.family == "published")
            & (alignment["size"] == 224)
        ]
        .groupby("layer")
        .v4.mean()
    )
    np.testing.assert_allclose(z[["V1", "V2", "V4", "IT"]], [0.34, 0.39, 0.44, 0.48], atol=0.04)
    baseline = alignment[alignment.family == "baseline"].groupby("arm")[["v4", "it"]].mean()
    assert (
        abs(baseline.v4["pixels"] - 0.20) < 0.03
        and abs(baseline.it["category"] - 0.26) < 0.01
        and abs(baseline.v4["shuffled"]) < 0.05
    )


def test_solution_times_were_timed_on_enough_pictures():
    table = pd.read_csv(RESULTS / "it_dynamics.csv")
    assert (
        table.groupby(["kind", "arm"]).seed.nunique() == table.seed.nunique()
    ).all() and not table.duplicated(["kind", "arm", "trained", "step", "seed"]).any()
    counts = table[table.kind == "count"].groupby("arm").agreement
    assert (
        (counts.get_group("static: solved later") == 0).all()
        and (counts.get_group("published: latest (ms)") <= 160).all()
        and (counts.get_group("published: solved later") >= 30).all()
    )
