"""The official Brain-Score, where it is installed: its benchmark scores our model, ours reads its assembly, and tasks have the same answers.

In an environment of its own, from the folder of the project:

    pip install brainscore_core==2.5.0 brainscore_vision==2.4.2 "numpy<2" "pandas<3" "xarray<2022.6" torch torchvision lazy_loader jaxtyping safetensors accelerate pytest hypothesis
    PYTHONPATH=. python -m pytest tests/brain/test_brain_official.py
"""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip(
    "brainscore_vision",
    reason="brainscore_vision is not installed: it needs NumPy below 2 and an environment of its own",
)

from neurobridge.brain.activations import BrainModel  # noqa: E402
from neurobridge.brain.regression import neural_predictivity  # noqa: E402
from neurobridge.data.recordings import Recording, from_assembly  # noqa: E402

N = 60


def stimuli(folder):
    from brainscore_core.supported_data_standards.brainio.stimuli import StimulusSet

    rng = np.random.default_rng(0)
    for i in range(N):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
            folder / f"img{i}.png"
        )
    made = StimulusSet(
        {
            "stimulus_id": [f"img{i}" for i in range(N)],
            "object_name": ["ab"[i % 2] for i in range(N)],
        }
    )
    made.stimulus_paths = {f"img{i}": folder / f"img{i}.png" for i in range(N)}
    made.identifier = "sixty"
    return made


def subject():
    from brainscore_core.supported_data_standards.brainio.assemblies import DataAssembly

    torch.manual_seed(0)
    return BrainModel(
        "net",
        nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Flatten()),
        {"IT": "2"},
        transform=lambda x: x.float() / 255,
        assembly=DataAssembly,
    )


def test_the_official_benchmark_scores_our_model(tmp_path):
    from brainscore_core.metrics import Score
    from brainscore_core.supported_data_standards.brainio.assemblies import NeuroidAssembly
    from brainscore_vision import load_metric
    from brainscore_vision.benchmark_helpers.neural_common import NeuralBenchmark

    shown, model = stimuli(tmp_path), subject()
    model.start_recording("IT")
    features = model.look_at(shown).values
    rng = np.random.default_rng(1)
    responses = features @ rng.normal(size=(features.shape[1], 8)) + 0.3 * rng.normal(size=(N, 8))
    order = rng.permutation(N)
    assembly = NeuroidAssembly(responses[order][:, :, None], coords={
        "stimulus_id": ("presentation", shown.stimulus_id.to_numpy()[order]), "object_name": ("presentation", shown.object_name.to_numpy()[order]), "neuroid_id": ("neuroid", [str(i) for i in range(8)]), "region": ("neuroid", ["IT"] * 8),
        "time_bin_start": ("time_bin", [70]), "time_bin_end": ("time_bin", [170])}, dims=["presentation", "neuroid", "time_bin"])  # fmt: skip
    read = from_assembly(assembly, region="IT")
    np.testing.assert_allclose(read[shown.stimulus_id.to_numpy()].average(), responses)
    target = assembly.squeeze("time_bin")
    target.attrs["stimulus_set"] = assembly.attrs["stimulus_set"] = shown
    assembly.attrs["stimulus_set_identifier"] = target.attrs["stimulus_set_identifier"] = "sixty"
    metric = load_metric("pls", crossvalidation_kwargs=dict(stratification_coord="object_name"))
    benchmark = NeuralBenchmark(
        identifier="sixty-pls",
        version=1,
        assembly=assembly,
        similarity_metric=lambda source, _: metric(source, target),
        visual_degrees=8,
        number_of_trials=3,
        ceiling_func=lambda: Score(1.0),
        parent="IT",
    )
    official = benchmark(model)
    mine = neural_predictivity(
        features[order],
        Recording(
            responses[None, order],
            shown.stimulus_id.to_numpy()[order],
            shown.object_name.to_numpy()[order],
        ),
    )
    raw = float(official.attrs["raw"]) if "raw" in official.attrs else float(official)
    assert (
        model.target == ("IT", [(70, 170)])
        and raw > 0.2
        and mine.raw == pytest.approx(raw, abs=0.02)
    )


# Tasks: the official implementations read our features, and choose what our subject chooses

CLASSES = 1000


def classifier():
    from brainscore_core.supported_data_standards.brainio.assemblies import BehavioralAssembly

    torch.manual_seed(0)
    return BrainModel(
        "net",
        nn.Sequential(
            nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(36, CLASSES)
        ),
        {"IT": "2"},
        transform=lambda x: x.float() / 255,
        assembly=BehavioralAssembly,
        behavior="2",
        logits="3",
    )


def activations_of(model):
    "What the official implementations ask of a model: activations of a layer for a table of stimuli."
    from brainscore_core.supported_data_standards.brainio.assemblies import NeuroidAssembly

    places = {"logits": "3", "2": "2"}

    def activations(stimuli, layers, **given):
        (layer,) = layers
        reader = BrainModel(
            "net",
            model.model,
            {"IT": places[layer]},
            transform=model.transform,
            assembly=NeuroidAssembly,
        )
        reader.start_recording("IT")
        return reader.look_at(stimuli)

    return activations


@pytest.mark.parametrize("aggregation", ["mean", "max"])
def test_labels_are_the_official_ones(tmp_path, aggregation):
    from brainscore_vision.model_helpers.brain_transformation.behavior import LabelBehavior
    from brainscore_vision.model_interface import BrainModel as Official

    shown, model = stimuli(tmp_path), classifier()
    peer = LabelBehavior("net", activations_of(model))
    for labels in ("imagenet", ["dog", "cat", "knife", "bird", "Sewing Machine"]):
        model.start_task(Official.Task.label, labels, aggregation=aggregation)
        peer.start_task(Official.Task.label, labels, aggregation=aggregation)
        mine, theirs = model.look_at(shown), peer.look_at(shown)
        assert mine.dims == theirs.dims and len(set(mine.values[0])) > 1
        np.testing.assert_array_equal(mine.values, theirs.values)
        np.testing.assert_array_equal(mine["stimulus_id"].values, theirs["stimulus_id"].values)
        np.testing.assert_array_equal(mine["label"].values, theirs["label"].values)
    model.start_task(Official.Task.label, "imagenet")
    peer.start_task(Official.Task.label, "imagenet")
    for name in ("synset", "logit"):
        np.testing.assert_array_equal(
            model.look_at(shown)[name].values, peer.look_at(shown)[name].values
        )


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_odd_ones_are_the_official_ones(tmp_path, similarity):
    from brainscore_vision.model_helpers.brain_transformation.behavior import OddOneOut
    from brainscore_vision.model_interface import BrainModel as Official

    shown, model = stimuli(tmp_path), classifier()
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(N)[:3] for _ in range(200)])
    triplets = shown.iloc[rows]
    peer = OddOneOut("net", activations_of(model), "2")
    peer.set_similarity_measure(similarity)
    peer.start_task(Official.Task.odd_one_out)
    model.start_task(Official.Task.odd_one_out, similarity=similarity)
    mine, theirs = model.look_at(triplets, 1), peer.look_at(triplets, 1)
    assert mine.dims == theirs.dims
    np.testing.assert_array_equal(mine.values, theirs.values)
    assert mine["presentation"].values.tolist() == theirs["presentation"].values.tolist()
    names = [each[0] if isinstance(each, tuple) else each for each in mine["presentation"].values]
    places = {name.split("|").index(odd) for name, odd in zip(names, mine.values[0], strict=True)}
    assert places == {0, 1, 2}


def test_probabilities_are_the_official_ones(tmp_path):
    from brainscore_vision.model_helpers.brain_transformation.behavior import ProbabilitiesMapping
    from brainscore_vision.model_interface import BrainModel as Official

    shown, model = stimuli(tmp_path), classifier()
    shown["image_label"] = shown["object_name"]
    fit, new = shown.iloc[:40], shown.iloc[40:]
    peer = ProbabilitiesMapping("net", activations_of(model), "2")
    for subject_ in (model, peer):
        subject_.start_task(Official.Task.probabilities, fit)
    mine, theirs = model.look_at(new), peer.look_at(new)
    order = [list(theirs["choice"].values).index(each) for each in mine["choice"].values]
    np.testing.assert_allclose(mine.values, theirs.values[:, order], atol=1e-3)


@pytest.mark.parametrize("metric", ["o1", "o2", "i1", "i1n", "i2", "i2n"])
def test_behavior_is_the_official_metrics(metric):
    from brainscore_core.supported_data_standards.brainio.assemblies import BehavioralAssembly
    from brainscore_vision.metrics.i1i2 import metric as official

    from neurobridge.brain.behavior import behavioral_consistency

    rng = np.random.default_rng(0)
    objects, images, count = np.array(["bear", "cat", "dog", "elk"]), 24, 6000
    labels, names = np.arange(images) % 4, np.array([f"img{i:02}" for i in range(images)])
    probabilities = rng.dirichlet(np.ones(4), images)
    picture = rng.integers(images, size=count)
    distractor = (labels[picture] + rng.integers(1, 4, size=count)) % 4
    wrong = rng.random(count) < 0.2 + 0.5 * rng.random((images, 4))[picture, distractor]
    trials = pd.DataFrame({"picture": picture, "distractor": distractor, "wrong": wrong})
    mine = behavioral_consistency(probabilities, labels, trials, metric)
    source = BehavioralAssembly(
        probabilities,
        coords={
            "stimulus_id": ("presentation", names),
            "image_number": ("presentation", np.arange(images)),
            "choice": ("choice", objects),
        },
        dims=["presentation", "choice"],
    )
    truth = objects[labels[picture]]
    target = BehavioralAssembly(
        np.where(wrong, objects[distractor], truth),
        coords={
            "stimulus_id": ("presentation", names[picture]),
            "truth": ("presentation", truth),
            "sample_obj": ("presentation", truth),
            "dist_obj": ("presentation", objects[distractor]),
        },
        dims=["presentation"],
    )
    peer = getattr(official, metric[0].upper() + metric[1:])()
    raw, ceiling = peer(source, target), peer.ceiling(target, skipna=True)
    assert mine.raw == pytest.approx(float(np.ravel(raw.values)[0]), abs=1e-9)
    assert mine.ceiling == pytest.approx(float(np.ravel(ceiling.values)[0]), abs=1e-9)
