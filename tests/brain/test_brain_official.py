"The official Brain-Score, where it is installed (brainscore_vision, in an environment of its own): its benchmark scores our model, ours reads its assembly."

import numpy as np
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
