"Networks as subjects: any habit of time, names that keep their rows, hooks that leave, and the interface of Brain-Score."

from enum import Enum
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision.models import resnet18
from torchvision.transforms import v2

from neurobridge.brain import (
    BrainModel,
    Recorded,
    imagenet_input,
    neural_predictivity,
    record_layers,
)
from neurobridge.brain.timing import CLOCKS
from neurobridge.core import seed_everything
from neurobridge.cornet import AREAS, cornet_r, cornet_rt, cornet_s, cornet_variant
from neurobridge.data import Recording
from neurobridge.snn import LIF, monitor, spikify, spiking_resnet

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")
to_float = v2.ToDtype(torch.float32, scale=True)


def shown(n=6, size=32, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return Recording(
        np.zeros((1, n, 1)), [f"image{i}" for i in range(n)], np.arange(n) % 2, images=images
    )


def tensors(recording):
    return to_float(torch.from_numpy(recording.images).permute(0, 3, 1, 2))


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def test_the_published_cornet_s_gives_every_state():
    "53 million parameters, 64 pixels: what is recorded at the taps is what `states` gives, and the logits' layer comes once."
    seed_everything(0)
    model, x = cornet_s(), torch.randn(2, 3, 64, 64)
    found = record_layers(
        model, x, [*(f"{area}.output" for area in AREAS), "decoder.avgpool"], batch_size=2
    )
    with torch.no_grad():
        own = model.eval().states(x)
    assert [len(found[f"{area}.output"]) for area in AREAS] == [1, 2, 4, 2]
    for (area, step), value in own.items():
        np.testing.assert_allclose(found[f"{area}.output"][step], value, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        found["decoder.avgpool"][0, ..., 0, 0], own["IT", 1].mean((2, 3)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("make", [cornet_r, cornet_rt])
@pytest.mark.parametrize("layers", [AREAS, [f"{area}.output" for area in AREAS]])
def test_networks_whose_areas_are_called_once_a_step(make, layers):
    model, x = make(width=4, classes=10), torch.randn(5, 3, 32, 32)
    found = record_layers(model, x, layers, batch_size=2)
    with torch.no_grad():
        own = model.eval().states(x)
    for (area, step), value in own.items():
        np.testing.assert_allclose(found[layers[AREAS.index(area)]][step], value, atol=1e-5)


def test_in_place_operations_do_not_reach_what_was_recorded():
    "Against torch's own modules run by hand, on ResNet-18, whose ReLUs and sums write in place."
    model, x = resnet18(num_classes=5).eval(), torch.randn(3, 3, 32, 32)
    found = record_layers(model, x, ["conv1", "bn1", "layer1.0.bn2"])
    with torch.no_grad():
        conv = model.conv1(x)
        norm = model.bn1(conv.clone())
        block, y = model.layer1[0], model.maxpool(norm.relu())
        inner = block.bn2(block.conv2(block.bn1(block.conv1(y)).relu()))
    for name, value in (("conv1", conv), ("bn1", norm), ("layer1.0.bn2", inner)):
        np.testing.assert_allclose(found[name][0], value, atol=1e-5)


@settings(max_examples=12, deadline=None)
@given(
    T=st.integers(1, 5),
    n=st.integers(1, 7),
    batch=st.integers(1, 7),
    shortcut=st.sampled_from(["vanilla", "sew", "ms"]),
)
def test_spiking_layers_agree_with_the_monitor(T, n, batch, shortcut):
    "Any number of steps, images and images a batch, also as many images as steps: the same spikes as `monitor` keeps, the steps first."
    seed_everything(T + n)
    model, x = (
        spiking_resnet((1, 1), LIF, in_channels=3, T=T, width=4, shortcut=shortcut).eval(),
        torch.randn(n, 3, 8, 8),
    )
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.constant_(
            norm.weight, 2
        )  # enough drive that every layer spikes, and not alike for all images
    names = [name for name, module in model.named_modules() if isinstance(module, LIF)]
    with monitor(model) as seen, torch.no_grad():
        model(torch.cat([x, x[:1]]))  # one more, so that n = T is no question here either
    found = record_layers(model, x, names, batch_size=batch)
    for name in names:
        assert found[name].shape[:2] == (T, n)
        np.testing.assert_array_equal(found[name] > 0, seen[name].spikes[:, :n])


def test_folded_time_and_a_spikified_network():
    "A batch norm of a rewritten network sees time folded into the batch; the first convolution comes before time."
    model = spikify(
        nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.Conv2d(4, 5, 3),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(80, 2),
        ),
        T=3,
    )
    found = record_layers(model, torch.randn(7, 3, 8, 8), ["0", "2", "3"], batch_size=3)
    assert {name: each.shape for name, each in found.items()} == {
        "0": (1, 7, 4, 6, 6),
        "2": (3, 7, 5, 4, 4),
        "3": (3, 7, 5, 4, 4),
    }
    assert (found["3"][0] != found["3"][2]).any()


@settings(max_examples=10, deadline=None)
@given(batch=st.integers(1, 9), n=st.integers(2, 9))
def test_batches_make_no_difference(batch, n):
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()), torch.randn(n, 3, 6, 6)
    one, many = (record_layers(model, x, ["1", "2"], batch_size=size) for size in (n, batch))
    for name in one:
        np.testing.assert_allclose(many[name], one[name], atol=1e-6)
    assert one["2"].shape == (1, n, 64)


class _Odd(nn.Module):
    "A network with whatever habit a test needs."

    def __init__(self, what):
        super().__init__()
        self.what, self.layer, self.unused = what, nn.Identity(), nn.Linear(1, 1)

    def forward(self, x):
        if self.what == "breaks" and x.shape[0] < 4:
            raise RuntimeError("out of memory")
        if self.what == "several sizes":
            self.layer(x[..., ::2])
        if self.what == "as many calls as it likes":
            for _ in range(int(x[0, 0, 0, 0] * 255)):
                self.layer(x)
        return self.layer(
            {
                "flat": x.sum(),
                "blind": torch.ones_like(x),
                "nan": x / (x[:, :1, :1, :1] - x[len(x) // 2, 0, 0, 0]),
            }.get(self.what, x)
        )


@pytest.mark.parametrize(("what", "message"), [
    ("flat", r"returns \(\) for"), ("blind", "the same for all 6 images"), ("nan", "NaN or infinity for 1 of 6 images, such as image 3"), ("several sizes", "different sizes"),
    ("as many calls as it likes", "steps of"),
])  # fmt: skip
def test_what_has_no_meaning_is_refused(what, message):
    model, x = _Odd(what), tensors(shown())
    x[:, 0, 0, 0] = torch.tensor([1, 2, 3, 4, 5, 6]) / 255
    with pytest.raises(ValueError, match=message):
        record_layers(
            model, x, ["layer"], batch_size=1 if what == "as many calls as it likes" else 6
        )
    assert not hooks(model)


def test_names_of_layers():
    with pytest.raises(
        ValueError, match=r"no layer 'layr'; did you mean 'layer'\? it has layer, unused"
    ):
        record_layers(_Odd(""), tensors(shown()), ["layr"])
    with pytest.raises(ValueError, match="'unused' was never called"):
        record_layers(_Odd(""), tensors(shown()), ["unused"])
    with pytest.raises(ValueError, match="no layers were chosen"):
        record_layers(_Odd(""), tensors(shown()), [])
    with pytest.raises(ValueError, match="no images"):
        record_layers(_Odd(""), torch.zeros(0, 3, 4, 4), ["layer"])
    with pytest.raises(ValueError, match="no layer 'V3'"):
        Recorded("x", cornet_variant(width=4), {"V1": "V3"})
    with pytest.raises(ValueError, match="no layer 'head'"):
        BrainModel("x", cornet_variant(width=4), {"V1": "V1"}, behavior="head")


def test_modes_and_hooks_come_back_after_an_error():
    model = nn.Sequential(nn.BatchNorm2d(3), _Odd("breaks"))
    model[0].eval()
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="out of memory"):  # the last batch, of two images
        record_layers(model, tensors(shown()), ["1.layer"], batch_size=4)
    assert [module.training for module in model.modules()] == modes == [
        True,
        False,
        True,
        True,
        True,
    ] and not hooks(model)


def subject(**more):
    seed_everything(0)
    return BrainModel(
        "narrow",
        cornet_variant(width=4, classes=10),
        {area: area for area in AREAS},
        CLOCKS["cornet_s"],
        to_float,
        **more,
    )


def test_time_bins_read_the_steps_of_the_clock():
    model, pictures = subject(), shown()
    states = record_layers(model.model, tensors(pictures), AREAS)
    for area in AREAS:
        model.start_recording(area, time_bins=[(70, 170), (150, 160), (170, 180), (240, 250)])
        found = model.look_at(pictures)
        assert found.dims == (
            "presentation",
            "neuroid",
            "time_bin",
        ) and found.time_bin_end.values.tolist() == [170, 160, 180, 250]
        for i, start in enumerate(found.time_bin_start.values):
            step = int(np.argmin(np.abs(np.array(CLOCKS["cornet_s"][area]) - start)))
            np.testing.assert_allclose(
                found.values[..., i], states[area][step].reshape(6, -1), atol=1e-6
            )
        assert (
            set(found.region.values) == set(found.layer.values) == {area}
            and len(set(found.neuroid_id.values)) == found.sizes["neuroid"]
        )
    static = Recorded(
        "static", model.model, {"V1": "V1"}, transform=to_float
    )  # one step needs no clock
    static.start_recording("V1", [(50, 150), (250, 350)])
    found = static.look_at(pictures).values
    np.testing.assert_array_equal(found[..., 0], found[..., 1])


def test_rows_are_found_by_name_however_files_are_sorted(tmp_path):
    "Files in the order of a folder's listing (10 before 2), neurons in the order of numbers: same score as in one order; by position it is lost."
    rng, model, n = np.random.default_rng(0), subject(), 40
    coarse = rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    for i in range(n):
        Image.fromarray(coarse[i]).resize((32, 32), Image.Resampling.NEAREST).save(
            tmp_path / f"image{i}.png"
        )
    numbered = [str(tmp_path / f"image{i}.png") for i in range(n)]
    listed = sorted(numbered)
    assert listed != numbered
    model.start_recording("V1")
    truth, found = model.look_at(numbered), model.look_at(listed)
    recorded = Recording(
        (truth.values @ rng.normal(size=(truth.sizes["neuroid"], 5)))[None], numbered
    )
    score = neural_predictivity(truth, recorded)
    np.testing.assert_allclose(neural_predictivity(found, recorded).splits, score.splits, atol=1e-6)
    assert score.value > 0.8 > 0.4 > neural_predictivity(found.values, recorded).value


def test_stimuli_that_can_not_be_told_apart_are_refused():
    model = subject()
    model.start_recording("V1")
    with pytest.raises(ValueError, match="'a.png' comes 2 times"):
        model.look_at(["a.png", "b.png", "a.png"])
    with pytest.raises(TypeError, match="stimuli is a tensor.*expected a Recording"):
        model.look_at(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="contains no images"):
        model.look_at(Recording(np.zeros((1, 2, 1)), ["a", "b"]))
    with pytest.raises(FileNotFoundError):
        model.look_at(["there is no such file.png"])


def test_the_interface_of_brain_score():
    "Members of an Enum, a table with `get_stimulus`, keyword arguments, trials: as the official benchmarks call a model."
    region, task = (
        Enum("RecordingTarget", "V1 V2 V4 IT"),
        Enum("Task", "passive label probabilities"),
    )
    model = subject(behavior="decoder.avgpool", assembly=lambda array: SimpleNamespace(array=array))
    assert model.identifier == "narrow" and model.visual_degrees() == 8
    with pytest.raises(ValueError, match="nothing was asked for"):
        model.look_at(shown())
    model.start_recording(recording_target=region.IT, time_bins=[(70, 170)], require_variance=False)
    first = model.look_at(shown(), number_of_trials=50)
    assert first.array.sizes == {
        "presentation": 6,
        "neuroid": first.array.sizes["neuroid"],
        "time_bin": 1,
    }
    with pytest.raises(ValueError, match="no layer with a score per class"):
        model.start_task(task.label, ["cat"])
    model.start_task(task.probabilities, fitting_stimuli=shown(12))
    with pytest.raises(ValueError, match="4 of the images"):
        model.look_at(shown(4, seed=1))  # the names of pictures that were fitted
    others = Recording(
        np.zeros((1, 4, 1)), [f"other{i}" for i in range(4)], images=shown(4, seed=1).images
    )
    chances = model.look_at(stimuli=others).array
    assert (
        chances.dims == ("presentation", "choice")
        and chances.choice.values.tolist() == [0, 1]
        and chances.stimulus_id.values.tolist() == [f"other{i}" for i in range(4)]
    )
    np.testing.assert_allclose(chances.sum("choice"), np.ones(4), atol=1e-5)
    model.start_recording(region.IT, time_bins=[(70, 170)])  # recording again ends the task
    np.testing.assert_array_equal(model.look_at(shown()).array.values, first.array.values)
    with pytest.raises(ValueError, match="no layer for behavior"):
        subject().start_task("probabilities", shown())
    unnamed = Recording(np.zeros((1, 6, 1)), list("abcdef"), images=shown().images)
    with pytest.raises(ValueError, match="expected image_label or object_name"):
        model.start_task("probabilities", unnamed)


def test_a_stimulus_set_keeps_its_columns(tmp_path):
    class StimulusSet(pd.DataFrame):
        def get_stimulus(self, stimulus_id):
            return tmp_path / f"{stimulus_id}.png"

    pictures = shown(3)
    for i in range(3):
        Image.fromarray(pictures.images[i]).save(tmp_path / f"{i}.png")
    model = subject()
    model.start_recording("V1")
    found = model.look_at(StimulusSet({"stimulus_id": ["2", "0", "1"], "background": [7, 8, 9]}))
    np.testing.assert_array_equal(found.values, model.look_at(pictures).values[[2, 0, 1]])
    assert found.background.values.tolist() == [7, 8, 9] and found.stimulus_id.values.tolist() == [
        "2",
        "0",
        "1",
    ]


def test_imagenet_input_is_torchvisions_arithmetic():
    picture = torch.from_numpy(shown(1, size=224).images[0]).permute(2, 0, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(
        imagenet_input()(picture),
        (picture / 255 - mean[:, None, None]) / std[:, None, None],
        atol=1e-5,
        rtol=1e-5,
    )
    assert imagenet_input(96)(picture[:, :100]).shape == (3, 96, 96)
