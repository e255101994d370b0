"Labels and the odd one out: by hand, for any scores and triplets, and as a subject; the official implementation is compared in test_brain_official.py."

import sys
import types

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from torch import nn

from neurobridge.brain import BrainModel
from neurobridge.brain.tasks import label_choices, label_places, odd_ones
from neurobridge.data import Recording


def shown(n=12, names=None):
    images = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return Recording(np.zeros((1, n, 1)), names or [f"i{k}" for k in range(n)], images=images)


def subject(**more):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 4))
    given = dict(
        transform=lambda x: x.float() / 255, behavior="2", logits="3", classes=list("abcd")
    )
    return BrainModel("net", model, {"V1": "1"}, **given | more)


def logits(model, recording):
    x = torch.from_numpy(recording.images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        return model(x).numpy()


@given(st.integers(0, 999), st.sampled_from(["mean", "max"]))
def test_labels_by_definition(seed, aggregation):
    rng = np.random.default_rng(seed)
    scores = 5 * rng.normal(size=(7, 9))
    table = {f"l{k}": rng.choice(9, rng.integers(1, 5), replace=False).tolist() for k in range(3)}
    found = label_choices(scores, label_places(list(table), table), aggregation)
    p = softmax(scores, axis=1)
    merge = {"mean": np.mean, "max": np.max}[aggregation]
    for row, answer in zip(p, found, strict=True):
        values = [merge(row[places]) for places in table.values()]
        assert values[answer] == pytest.approx(max(values), rel=1e-9)
    shifted = label_choices(scores + 700, label_places(list(table), table), aggregation)
    np.testing.assert_array_equal(found, shifted)  # and no overflow


@given(st.integers(0, 999))
def test_the_odd_one_by_definition(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(6, 5))
    triplets = np.stack([rng.permutation(6)[:3] for _ in range(20)])
    for name, rows in {"dot": x, "cosine": x / np.linalg.norm(x, axis=1)[:, None]}.items():
        for three, answer in zip(triplets, odd_ones(x, triplets, name), strict=True):
            alike = rows[three] @ rows[three].T
            np.fill_diagonal(alike, -np.inf)
            pair = set(np.unravel_index(alike.argmax(), (3, 3)))
            assert {answer} == {0, 1, 2} - pair
    turned = triplets[:, [2, 0, 1]]  # the order within a triplet makes no difference
    chosen = [t[np.arange(20), odd_ones(x, t, "dot")] for t in (triplets, turned)]
    np.testing.assert_array_equal(*chosen)


def test_a_subject_names_images():
    images, model = shown(), subject()
    model.start_task("label", ["b", "d"])
    found = model.look_at(images)
    expected = np.array(["b", "d"])[logits(model.model, images)[:, [1, 3]].argmax(1)]
    assert found.dims == ("choice", "presentation") and found.shape == (1, 12)
    np.testing.assert_array_equal(found.values[0], expected)
    np.testing.assert_array_equal(found.stimulus_id.values, images.stimuli)
    model.start_task("label", "imagenet")  # its own classes
    own = model.look_at(images)
    place = logits(model.model, images).argmax(1)
    np.testing.assert_array_equal(own.logit.values, place)
    np.testing.assert_array_equal(own.synset.values, np.array(list("abcd"))[place])
    model.start_recording("V1")
    assert model.look_at(images).dims == ("presentation", "neuroid")


def test_the_odd_one_of_images_that_come_again():
    "A table with get_stimulus in which an image comes in several triplets; it is recorded once."

    class Set(pd.DataFrame):
        def get_stimulus(self, name):
            return by_name[name]

    images, model = shown(), subject()
    by_name = dict(zip(images.stimuli, images.images, strict=True))
    seen: list[int] = []
    model.model.register_forward_hook(lambda layer, given, out: seen.append(len(out)))
    names = np.random.default_rng(1).choice(images.stimuli, (15, 3)).ravel()
    while (np.sort(names.reshape(-1, 3))[:, :2] == np.sort(names.reshape(-1, 3))[:, 1:]).any():
        names = np.concatenate([np.random.default_rng(len(names) + k).permutation(images.stimuli)[:3] for k in range(15)])  # fmt: skip
    model.start_task("odd_one_out")
    found = model.look_at(Set({"stimulus_id": names}))
    assert sum(seen) == len(set(names))
    with torch.no_grad():
        x = torch.from_numpy(images.images).permute(0, 3, 1, 2).float() / 255
        rows = model.model[:3](x).numpy()
    place = {name: k for k, name in enumerate(images.stimuli)}
    triplets = np.array([place[name] for name in names]).reshape(-1, 3)
    expected = images.stimuli[triplets[np.arange(15), odd_ones(rows, triplets, "dot")]]
    np.testing.assert_array_equal(found.values[0], expected)
    assert found.stimulus_id.values[0] == "|".join(names[:3])


def test_what_is_refused():
    model = subject()
    for said, call in {
        "classes has a, b, c, d": lambda: model.start_task("label", ["cat"]),
        "'imagenet' or a list": lambda: model.start_task("label"),
        "logits='...'": lambda: subject(logits=None).start_task("label", ["a"]),
        "behavior='...'": lambda: subject(behavior=None).start_task("odd_one_out"),
        "aggregation is 'sum'": lambda: model.start_task("label", ["a"], aggregation="sum"),
        "task is 'smell'": lambda: model.start_task("smell"),
        "different names": lambda: subject(classes=["a", "a"]),
    }.items():
        with pytest.raises((TypeError, ValueError), match=said):
            call()
    model = subject(classes={"a": [0], "z": [7]})
    model.start_task("label", ["a", "z"])
    with pytest.raises(ValueError, match="has the class 7, but the network returns 4"):
        model.look_at(shown())
    model.start_task("odd_one_out")
    with pytest.raises(ValueError, match="are 10 images; expected three per triplet"):
        model.look_at(shown(10))


def test_tables_of_the_official_package(monkeypatch):
    "Without it, a message that says what to install or give; with it (a stand-in), its places."
    for name in ("brainscore_vision", "brainscore_vision.model_helpers"):
        monkeypatch.setitem(sys.modules, name, None)
    model = subject(classes=None)
    for labels in (["cat"], "imagenet"):
        with pytest.raises(ImportError, match="brainscore_vision.*classes="):
            model.start_task("label", labels)
    place = "brainscore_vision.model_helpers.brain_transformation.behavior"
    parts = place.split(".")
    for i in range(1, len(parts) + 1):
        made = types.ModuleType(".".join(parts[:i]))
        made.__path__ = []
        monkeypatch.setitem(sys.modules, ".".join(parts[:i]), made)
    table = type(
        "Table", (), {"cat_indices": [2], "big_dog_indices": [0], "bigdog_indices": [0, 1]}
    )
    monkeypatch.setattr(sys.modules[place], "LabelToImagenetIndices", table, raising=False)
    assert label_places(["cat", "Big dog"], None) == {"cat": (2,), "Big dog": (0, 1)}
    with pytest.raises(ValueError, match="'horse'; the official table has"):
        label_places(["horse"], None)
