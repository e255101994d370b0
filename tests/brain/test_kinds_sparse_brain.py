"Further members of kinds of mistakes that give a wrong number silently: wired layers, recordings, brain scores, CORnets."

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from neurobridge.brain import (
    Recorded,
    cka,
    fit_readout,
    neural_predictivity,
    object_solution_times,
    rdm,
    reliability,
)
from neurobridge.brain.behavior import false_alarms
from neurobridge.brain.linear import correlation, gram, pls_predict
from neurobridge.brain.regression import reduced
from neurobridge.cornet import cornet_r, cornet_rt, cornet_variant, cornet_z, load_official
from neurobridge.data import DataError, Recording, from_assembly
from neurobridge.g2g import MaskedLinear, live_parameters, wire

rng = np.random.default_rng(0)
NAMES = np.array([f"img{i}" for i in range(30)])
X = rng.normal(size=(30, 8))
Y = X[:, :3] + 0.1 * rng.normal(size=(30, 3))
TABLE = pd.DataFrame(X, index=NAMES, columns=list("abcdefgh"))
ORDER = rng.permutation(30)


# Siblings of which one lacks a check


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: correlation(a, b),
        lambda a, b: reduced(a, b, 4),
        lambda a, b: fit_readout(a, np.arange(10) % 2, b),
    ],
)
def test_columns_in_another_order_are_refused(call):
    one, other = TABLE[:10], TABLE[10:20]
    with pytest.raises(DataError, match="columns .* in another order"):
        call(one, other[other.columns[::-1]])


def test_a_gram_matrix_sorted_by_rows_only_is_refused():
    k = gram(TABLE)
    with pytest.raises(ValueError, match="not symmetric"):
        pls_predict(k.iloc[ORDER], Y, np.arange(20), np.arange(20, 30))


def test_trials_that_must_differ_are_asked_for_at_either_door():
    subject = Recorded("z", cornet_z(width=4, classes=3), {"V1": "V1"})
    recording = Recording(
        np.zeros((1, 3, 1)),
        list("abc"),
        images=rng.integers(255, size=(3, 16, 16, 3)).astype(np.uint8),
    )
    subject.start_recording("V1", require_variance=True)
    with pytest.raises(ValueError, match="require_variance"):
        subject.look_at(recording)
    with pytest.raises(TypeError, match="require_variance"):
        subject.start_recording("V1", require_variance="no")


# Identities made of names only


def test_a_fitted_picture_under_another_name_is_refused():
    with pytest.raises(ValueError, match="10 of the images"):
        fit_readout(
            TABLE[:20], np.arange(20) % 2, TABLE[:10].rename(index=lambda name: f"copy of {name}")
        )


@pytest.mark.parametrize("pair", [lambda: (cornet_rt(width=32, classes=3), cornet_r(width=32, classes=3)),
                                  lambda: (cornet_variant(width=4, gate="soft"), cornet_variant(width=4))])  # fmt: skip
def test_weights_with_settings_beside_them_are_compared(pair):
    model, other = pair()
    with pytest.raises(ValueError, match="settings"):
        load_official(model, other.state_dict())
    load_official(other, other.state_dict())


@pytest.mark.parametrize("way", ["parameters", "named_parameters", "state_dict"])
def test_a_weight_that_is_read_without_its_name_is_found(way):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts, self.last = nn.ModuleList([nn.Linear(8, 8)]), nn.Linear(8, 2)

    class ByParameters(Own):
        def forward(self, x):
            return self.last(x @ next(self.parts[0].parameters()).t())

    class ByNamed(Own):
        def forward(self, x):
            return self.last(x @ dict(self.parts[0].named_parameters())["weight"].t())

    class ByState(Own):
        def forward(self, x):
            return self.last(x @ self.parts[0].state_dict()["weight"].t())

    model = {"parameters": ByParameters, "named_parameters": ByNamed, "state_dict": ByState}[way]()
    with pytest.raises(ValueError, match=r"parts\.0"):
        wire(model, groups=4)


def test_a_look_at_data_types_stands_in_nobodys_way():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = x.to(next(self.first.parameters()).dtype).to(next(self.parameters()).device)
            return self.last(self.first(x))

    assert isinstance(wire(Own(), groups=4).first, MaskedLinear)


# Axis orders not enforced


def test_images_with_channels_first_are_no_recording():
    with pytest.raises(DataError, match="H, W, 3"):
        Recording(np.zeros((1, 2, 1)), list("ab"), images=np.zeros((2, 3, 8, 8), dtype=np.uint8))


# Defaults for absent fields


@pytest.mark.parametrize("lost", [None, np.nan])
def test_presentations_without_a_name_are_refused(lost):
    xarray = pytest.importorskip("xarray")
    names = np.array(["a", "b", lost], dtype=object)
    with pytest.raises(DataError, match="1 of 3 presentations have no name"):
        from_assembly(
            xarray.DataArray(
                np.ones((3, 2)),
                dims=("presentation", "neuroid"),
                coords={"stimulus_id": ("presentation", names)},
            )
        )


@pytest.mark.parametrize("missing", [1, 2])
def test_what_is_masked_is_missing(missing):
    repeats = Y[:, None].transpose(1, 0, 2) + 0.1 * rng.normal(size=(6, 30, 3))
    holes = np.zeros(repeats.shape, bool)
    holes[:missing] = True
    wild = np.where(holes, 1e3 * rng.normal(size=repeats.shape), repeats)
    masked = np.ma.array(wild, mask=holes)
    assert reliability(masked).value == reliability(np.where(holes, np.nan, repeats)).value
    np.testing.assert_allclose(Recording(masked, NAMES).average(), repeats[missing:].mean(0))
    with pytest.raises(ValueError, match="NaN"):
        rdm(np.ma.array(X, mask=X > 1))


# Counting in the data's precision


def test_small_integers_do_not_run_over():
    x = np.array([[-100, 1], [100, 2], [50, 4], [-50, 3]], dtype=np.int8)
    np.testing.assert_allclose(correlation(x, x), 1)
    np.testing.assert_allclose(rdm(x.T), rdm(x.T.astype(float)))


def test_half_precision_varies_as_much_as_it_does():
    x = (100 + rng.random((20, 3))).astype(np.float16)
    np.testing.assert_allclose(correlation(x, x.astype(float)), 1)


def test_a_weight_of_two_masks_is_counted_once():
    one, two = (
        MaskedLinear(torch.eye(4).bool(), bias=False),
        MaskedLinear(torch.eye(4).flip(0).bool(), bias=False),
    )
    two.weight = one.weight
    assert live_parameters(nn.Sequential(one, two)) == 8
    dense = nn.Linear(4, 4, bias=False)
    dense.weight = one.weight
    assert live_parameters(nn.Sequential(one, dense)) == 16


# Data left out of a hand-over: labels


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: correlation(a, b),
        lambda a, b: cka(a, b),
        lambda a, b: neural_predictivity(a, b, splits=2),
    ],
)
def test_a_shuffled_counting_index_is_matched_or_refused(call):
    table, other = pd.DataFrame(X[:, :3]), pd.DataFrame(Y)
    shuffled = table.iloc[ORDER]
    for pair in ((shuffled, other), (other, shuffled), (shuffled, Y)):
        with pytest.raises(DataError, match="by number or by place"):
            call(*pair)


def test_labels_of_probabilities_find_their_rows():
    p = pd.DataFrame(rng.dirichlet(np.ones(3), 30), index=NAMES)
    labels = pd.Series(rng.integers(3, size=30), index=NAMES)
    np.testing.assert_array_equal(
        false_alarms(p, labels.iloc[ORDER]), false_alarms(p, labels.to_numpy())
    )


def test_thresholds_find_their_pictures():
    performance = pd.DataFrame(rng.normal(size=(4, 30)).cumsum(0), columns=NAMES)
    thresholds = pd.Series(rng.random(30), index=NAMES)
    found = object_solution_times(performance, thresholds.iloc[ORDER], range(4))
    np.testing.assert_array_equal(
        found, object_solution_times(performance.to_numpy(), thresholds.to_numpy(), range(4))
    )
