"""pipe-S: the published ramp and its gradient, a copy that shares nothing, epochs that find their ramp after a resume, and digits from end to end."""

import copy
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from neurobridge.core import evaluate, fit, load_checkpoint, milestones, seed_everything
from neurobridge.data import load_images
from neurobridge.snn import LIF, TimeNet, lif, spiking_convnet, spiking_resnet18
from neurobridge.transfer import (
    PRESETS,
    Preset,
    SharpenedReLU,
    copy_weights,
    finetune,
    pipe_s,
    pretrain,
    sharpened_relu,
    sharpening,
)
from neurobridge.transfer.if_neuron import QCFS
from neurobridge.transfer.image_pipeline import stage_settings
from neurobridge.transfer.sharpened import sharpen
from neurobridge.transfer.stages import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")

small = partial(spiking_convnet, neuron=SharpenedReLU, T=1, width=3)
ANNS = {
    "convnet": small,
    "convnet ReLU": partial(small, neuron=nn.ReLU),
    "resnet": partial(
        spiking_resnet18,
        neuron=SharpenedReLU,
        T=1,
        width=4,
        in_channels=1,
        classes=10,
        small_images=True,
    ),
    "resnet ReLU": partial(
        spiking_resnet18, neuron=nn.ReLU, T=1, width=4, in_channels=1, classes=10
    ),
}
anns = pytest.mark.parametrize("make", ANNS.values(), ids=ANNS)


def pictures(n=24, side=16):
    return torch.rand(n, 1, side, side), torch.arange(n) % 10


def lived(ann):
    "Give an ANN scales and statistics that no fresh network has."
    for module in ann.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.3, 0.3)
            module.momentum = 0.5
    with torch.no_grad():
        for _ in range(4):
            ann.train()(pictures()[0])
    return ann.eval()


def state(net):
    return {
        name: value.clone()
        for name, value in net.state_dict().items()
        if not name.endswith("_extra_state")
    }


def equal(a, b):
    return list(a) == list(b) and all(value.equal(b[name]) for name, value in a.items())


# The ramp


def test_the_published_schedule():
    for e in range(1, 101):
        low, high = sharpening(e, 100)
        assert low == pytest.approx(min(e / 200, 0.49), abs=1e-15) and high == pytest.approx(
            1 - e / 200, abs=1e-15
        )


@given(st.integers(1, 500), st.data())
def test_any_schedule_closes_in_on_the_threshold(epochs, data):
    epoch = data.draw(st.integers(1, epochs))
    low, high = sharpening(epoch, epochs)
    assert 0 < low <= 0.49 < 0.5 <= high < 1 and sharpening(epochs, epochs) == (0.49, 0.5)
    assert low == pytest.approx(min(0.5 * epoch / epochs, 0.49)) and high == pytest.approx(
        1 - 0.5 * epoch / epochs
    )
    if epoch > 1:
        before = sharpening(epoch - 1, epochs)
        assert before[0] <= low and before[1] > high


@pytest.mark.parametrize("epoch, epochs", [(0, 10), (11, 10), (-1, 10), (1, 0)])
def test_epochs_outside_the_schedule_are_refused(epoch, epochs):
    with pytest.raises(
        ValueError, match=f"epoch is {epoch}; expected a whole number|epochs is {epochs}"
    ):
        sharpening(epoch, epochs)
    with pytest.raises(ValueError, match=f"epoch is {epoch}|epochs is {epochs}"):
        sharpen(SharpenedReLU(), epoch, epochs)


@settings(deadline=None)
@given(
    st.lists(st.floats(-2, 3) | st.sampled_from([0.0, 0.49, 0.5, 1.0]), min_size=1, max_size=40),
    st.integers(1, 100),
)
def test_ramp_forward_rectangle_backward(points, epoch):
    low, high = min(epoch / 200, 0.49), 1 - epoch / 200
    x = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    weight = torch.arange(1.0, len(points) + 1, dtype=torch.float64)
    layer = SharpenedReLU().train()
    sharpen(layer, epoch, 100)
    for y in (sharpened_relu(x, low, high), layer(x)):
        x.grad = None
        (y * weight).sum().backward()
        expected = [
            0.0 if p < low else 1.0 if p > high else (p - low) / (high - low) for p in points
        ]
        torch.testing.assert_close(
            y.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12
        )
        assert x.grad.tolist() == [
            w if abs(p - 0.5) < 0.5 else 0.0 for p, w in zip(points, weight.tolist(), strict=True)
        ]


@pytest.mark.parametrize("low, high", [(0.5, 0.5), (0.6, 0.5), (float("nan"), 1.0)])
def test_a_ramp_must_rise(low, high):
    with pytest.raises(
        ValueError,
        match=f"low is {low}, high is {high}; expected low < high|expected a finite number",
    ):
        sharpened_relu(torch.zeros(1), low, high)


@given(st.lists(st.floats(-2, 3, width=32) | st.just(0.5), min_size=1, max_size=40))
def test_in_evaluation_it_is_the_neuron_at_one_step(points):
    x, layer = torch.tensor(points), SharpenedReLU().eval()
    for epoch in (1, 100):
        sharpen(layer, epoch, 100)
        assert layer(x).equal(lif(x[None])[0][0]) and layer(x).tolist() == [
            float(p > 0.5) for p in points
        ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_is_kept_in_both_modes(dtype):
    x = torch.rand(5, dtype=dtype, requires_grad=True)
    layer = SharpenedReLU()
    layer.train()(x).sum().backward()
    assert (
        layer.train()(x).dtype == layer.eval()(x).dtype == x.grad.dtype == dtype
        and not layer.state_dict()
    )


def test_sharpen_reaches_every_layer_and_nothing_else():
    net = ANNS["resnet"]()
    layers = [m for m in net.modules() if isinstance(m, SharpenedReLU)]
    before = state(net)
    sharpen(net, 30, 40)
    assert (
        len(layers) == 17
        and all((layer.low, layer.high) == (0.375, 0.625) for layer in layers)
        and equal(before, state(net))
    )
    assert repr(layers[0]) == "SharpenedReLU(low=0.375, high=0.625)"


@pytest.mark.parametrize(
    "net", [nn.ReLU(), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), spiking_convnet()]
)
def test_sharpen_without_layers(net):
    with pytest.raises(
        ValueError, match=f"sharpen: model is a {type(net).__name__} without SharpenedReLU"
    ):
        sharpen(net, 1, 10)


# The copy


@anns
@pytest.mark.parametrize("training", [False, True])
def test_the_copy_has_every_number_and_shares_none(make, training):
    ann = lived(make()).train(training)
    before, kinds = state(ann), [type(m) for m in ann.modules()]
    snn = copy_weights(ann, T=3)
    assert equal(before, state(snn)) and snn.T == 3 and ann.T == 1
    mine, theirs = (
        [t.data_ptr() for t in (*net.parameters(), *net.buffers())] for net in (ann, snn)
    )
    assert not set(mine) & set(theirs)
    assert not any(isinstance(m, ACTIVATIONS) for m in snn.modules()) and not any(
        isinstance(m, LIF) for m in ann.modules()
    )
    assert sum(isinstance(m, LIF) for m in snn.modules()) == sum(
        kind in ACTIVATIONS for kind in kinds
    )
    assert [type(m) for m in ann.modules()] == kinds


@anns
def test_training_one_leaves_the_other(make):
    ann = lived(make())
    snn, before, x = copy_weights(ann, T=2), state(ann), pictures(4)[0]
    answer = ann(x)
    fit(snn, pictures(), epochs=1, lr=1e-2, batch_size=12, device="cpu")
    assert equal(before, state(ann)) and ann(x).equal(answer) and not equal(state(snn), before)
    bridged = state(snn)
    fit(ann, pictures(), epochs=1, lr=1e-2, batch_size=12, device="cpu")
    assert equal(bridged, state(snn)) and not equal(state(ann), before)


class Step(nn.Module):
    def forward(self, x):
        return torch.where(x > 0.5, 1.0, 0.0)


@anns
def test_exact_at_one_step_and_only_there(make):
    ann, x = lived(make()), pictures(8)[0]
    same, more = copy_weights(ann, T=1).eval()(x), copy_weights(ann, T=4).eval()(x)
    hard = copy.deepcopy(ann)
    for module in list(hard.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ACTIVATIONS):
                setattr(module, name, Step())
    assert same.equal(hard(x)) and not torch.allclose(more, same) and same.std(0).min() > 0
    assert same.equal(ann(x)) == any(isinstance(m, SharpenedReLU) for m in ann.modules())


@anns
def test_the_copy_is_the_spiking_network_built_directly(make):
    ann, x = lived(make()), pictures(4)[0]
    direct = make(neuron=partial(LIF, decay=0.5), T=3)
    direct.load_state_dict(ann.state_dict(), strict=True)
    assert copy_weights(ann, T=3, neuron=partial(LIF, decay=0.5)).eval()(x).equal(direct.eval()(x))


def test_other_neurons_bring_their_own_parameters():
    snn = copy_weights(lived(small()), T=3, neuron=partial(LIF, learn_decay=True))
    neurons = [m for m in snn.modules() if isinstance(m, LIF)]
    assert (
        len({id(m) for m in neurons})
        == len(neurons)
        == 3
        == sum("decay_logit" in name for name in snn.state_dict())
    )
    fit(snn, pictures(), epochs=1, lr=1e-2, device="cpu")
    assert len({neuron.decay_logit.item() for neuron in neurons}) == 3


def test_what_cannot_be_bridged():
    snn = copy_weights(small(), T=2)
    for net in (snn, spiking_convnet(LIF)):
        with pytest.raises(
            ValueError,
            match=f"ann is a {type(net).__name__} without SharpenedReLU or ReLU; is it a spiking network already",
        ):
            copy_weights(net, T=2)
    for T in (0, -1):
        with pytest.raises(ValueError, match=f"copy_weights: T is {T}"):
            copy_weights(small(), T)


# The two trainings


def cut(batch):
    "An augmentation that leaves images alone and breaks off at a batch; where it does is no part of the training."
    batches = iter(range(1, 100))

    def power_cut(x):
        if next(batches) == batch:
            raise KeyboardInterrupt
        return x

    power_cut.identity = "leaves images alone"
    return power_cut


def ramps(ann):
    "Record the ramp of each training step."
    seen = []
    layer = next(m for m in ann.modules() if isinstance(m, SharpenedReLU))
    layer.register_forward_pre_hook(
        lambda layer, args: seen.append((layer.low, layer.high)) if layer.training else None
    )
    return seen


@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_pretraining_sharpens_from_epoch_to_epoch(epochs):
    ann = small()
    seen = ramps(ann)
    pretrain(ann, pictures(), pictures(8), epochs=epochs, lr=1e-3, batch_size=12, device="cpu")
    assert seen == [
        (min(0.5 * e / epochs, 0.49), 1 - 0.5 * e / epochs)
        for e in range(1, epochs + 1)
        for _ in range(2)
    ]


@pytest.mark.parametrize("batch", range(1, 11))
def test_pretraining_goes_on_at_the_right_ramp(tmp_path, batch):
    power_cut = cut(batch)

    start, data = small(), (pictures(), pictures(8))
    call = partial(pretrain, epochs=5, lr=1e-2, batch_size=12, device="cpu")
    unbroken = copy.deepcopy(start)
    expected = call(unbroken, *data)
    ann, first = copy.deepcopy(start), copy.deepcopy(start)
    seen, _ = ramps(ann), ramps(first)
    with pytest.raises(KeyboardInterrupt):
        call(first, *data, augment=power_cut, checkpoint=tmp_path / "ann.pt")
    found = call(ann, *data, augment=cut(None), checkpoint=tmp_path / "ann.pt")
    done = (batch - 1) // 2
    assert seen == [(min(e / 10, 0.49), 1 - e / 10) for e in range(done + 1, 6) for _ in range(2)]
    assert equal(state(ann), state(unbroken)) and [row["train_loss"] for row in found.rows] == [
        row["train_loss"] for row in expected.rows
    ]


def test_each_training_passes_its_settings_on():
    data, given = (
        pictures(),
        dict(
            epochs=2,
            lr=1e-2,
            batch_size=12,
            device="cpu",
            schedule=milestones(0.5, factor=0.1),
            seed=3,
        ),
    )
    ann = lived(small(neuron=nn.ReLU))
    for train, net in ((pretrain, ann), (finetune, copy_weights(ann, T=2))):
        other, plain = copy.deepcopy(net), copy.deepcopy(net)
        train(net, data, data, **given)
        fit(other, data, data, **given)
        fit(plain, data, data, epochs=2, lr=1e-2, batch_size=12, device="cpu")
        assert equal(state(net), state(other)) and not equal(state(net), state(plain))


def test_pretraining_takes_a_hook_like_any_training():
    ann, told = small(), []
    seen = ramps(ann)
    pretrain(
        ann, pictures(), epochs=2, lr=1e-3, device="cpu", on_epoch=lambda *given: told.append(given)
    )
    assert told == [(1, 2), (2, 2)] and seen == [(0.25, 0.75), (0.49, 0.5)]


@pytest.mark.parametrize("neuron", [SharpenedReLU, nn.ReLU])
def test_each_stage_wants_its_own_network(neuron):
    with pytest.raises(
        ValueError, match="pretrain: ann has T = 4; expected an ANN, built with T=1"
    ):
        pretrain(small(neuron=neuron, T=4), pictures(), epochs=1, lr=1e-3)
    with pytest.raises(
        ValueError, match=r"finetune: snn has T = 1.*call copy_weights\(ann, T\) first"
    ):
        finetune(small(neuron=neuron), pictures(), epochs=1, lr=1e-3)


# Digits, from end to end


@pytest.fixture(scope="module")
def digits():
    rest, held_out = load_images("digits").split_off(300, seed=0)
    return [
        part.tensors(*rest.statistics()) for part in (rest, held_out, load_images("digits", "test"))
    ]


@pytest.mark.parametrize("neuron", [SharpenedReLU, nn.ReLU])
def test_digits_from_end_to_end(digits, neuron):
    train, valid, test = digits
    ann = spiking_convnet(neuron, T=1, width=6)
    before = pretrain(ann, train, valid, epochs=12, lr=1e-2, device="cpu")
    source = evaluate(ann, test)["accuracy"]
    assert source > 0.85 and evaluate(ann, valid)["accuracy"] == before.best["valid_accuracy"]
    snn, scratch = copy_weights(ann, T=3), spiking_convnet(T=3, width=6)
    copied = evaluate(snn, test)["accuracy"]
    after = finetune(snn, train, valid, epochs=2, lr=3e-3, device="cpu")
    fit(scratch, train, valid, epochs=2, lr=3e-3, device="cpu")
    tuned, control = evaluate(snn, test)["accuracy"], evaluate(scratch, test)["accuracy"]
    if neuron is SharpenedReLU:
        assert copied > 0.6
    assert tuned > 0.8 and tuned > copied - 0.05 and tuned > control and len(after.rows) == 2
    assert evaluate(ann, test)["accuracy"] == source


# Presets

SGD = partial(torch.optim.SGD, momentum=0.9)
SHORT = Preset(
    partial(spiking_convnet, width=3),
    T=2,
    pretraining=dict(epochs=2, lr=0.05),
    finetuning=dict(epochs=3, lr=0.02),
    optimizer=SGD,
    batch_size=12,
    keep_momentum=True,
)
DATA = [
    (torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(n)), torch.arange(n) % 10)
    for n in (24, 8)
]
run = partial(pipe_s, SHORT, *DATA, in_channels=1, classes=10, device="cpu")


@pytest.mark.parametrize(
    "name, convolutions", [("imagenet-resnet18", 17), ("imagenet-resnet34", 33)]
)
def test_the_papers_recipe(name, convolutions):
    preset = PRESETS[name]
    with torch.device("meta"):
        net = preset.network(SharpenedReLU, T=1, in_channels=3, classes=1000)
    assert (
        sum(isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1) for m in net.modules())
        == convolutions
    )
    norms = [
        m
        for m in preset.network(SharpenedReLU, T=1, in_channels=3, classes=10, width=2).modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    assert all((m.weight == 0.5).all() and (m.bias == 0).all() for m in norms)
    first, second = (
        stage_settings(preset, stage, 192, 8) for stage in (preset.pretraining, preset.finetuning)
    )
    assert first["lr"] == pytest.approx(0.6) == second["lr"] and (
        first["epochs"],
        first["schedule"],
        preset.T,
        first["seed"],
    ) == (100, "constant", 6, 445)
    optimizer = first["optimizer"](net.parameters(), lr=0.1)
    assert isinstance(optimizer, torch.optim.SGD) and (
        optimizer.defaults["momentum"],
        optimizer.defaults["weight_decay"],
    ) == (0.9, 0)
    one = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    published = torch.optim.lr_scheduler.MultiStepLR(one, [2, 4, 6, 8], gamma=0.3)
    for epoch in range(second["epochs"]):
        assert second["schedule"](epoch / second["epochs"]) == pytest.approx(
            one.param_groups[0]["lr"]
        )
        one.step()
        published.step()


@given(st.sampled_from(sorted(PRESETS)), st.integers(1, 512), st.integers(1, 64))
def test_the_rate_follows_the_images_a_step(name, batch_size, processes):
    preset = PRESETS[name]
    found = stage_settings(preset, preset.finetuning, batch_size, processes)
    expected = preset.finetuning["lr"] * (
        batch_size * processes / 256 if name.startswith("imagenet") else 1
    )
    assert (
        found["lr"] == pytest.approx(expected)
        and found["batch_size"] == batch_size
        and set(preset.finetuning) <= set(found)
    )
    if preset.batch_size % processes == 0:
        shared = stage_settings(preset, preset.finetuning, processes=processes)
        assert shared["batch_size"] * processes == preset.batch_size and shared[
            "lr"
        ] == pytest.approx(preset.finetuning["lr"])


def test_processes_are_counted_where_a_launcher_says_so(monkeypatch):
    preset = PRESETS["imagenet-resnet18"]
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert stage_settings(preset, preset.pretraining)["batch_size"] == 64 and stage_settings(
        preset, preset.pretraining, 128
    )["lr"] == pytest.approx(0.2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(
        ValueError, match="256 images per step cannot be shared by 3 processes; give batch_size"
    ):
        stage_settings(preset, preset.pretraining)


def by_hand(hand_over):
    seed_everything(0)
    ann = spiking_convnet(SharpenedReLU, T=1, width=3)
    given = dict(batch_size=12, device="cpu", optimizer=SGD)
    before = pretrain(ann, *DATA, epochs=2, lr=0.05, **given)
    snn = copy_weights(ann, 2)
    finetune(
        snn,
        *DATA,
        epochs=3,
        lr=0.02,
        optimizer_state=before.optimizer_state if hand_over else None,
        **given,
    )
    return state(ann), state(snn)


@pytest.mark.parametrize("hand_over", [True, False])
def test_a_recipe_is_its_four_calls(hand_over):
    ann, snn, before, after = pipe_s(replace(SHORT, keep_momentum=hand_over), *DATA, **run.keywords)
    mine, other = by_hand(hand_over), by_hand(not hand_over)
    assert (
        equal(state(ann), mine[0])
        and equal(state(snn), mine[1])
        and equal(mine[0], other[0])
        and not equal(mine[1], other[1])
    )
    assert (len(before.rows), len(after.rows), snn.T) == (2, 3, 2)


@pytest.mark.parametrize("batch", range(1, 11))
def test_a_recipe_broken_off_anywhere_ends_the_same(tmp_path, batch):
    power_cut = cut(batch)

    ann, snn, before, after = run()
    with pytest.raises(KeyboardInterrupt):
        run(folder=tmp_path / "new" / "folder", augment=power_cut)
    for _ in range(2):  # the second time everything is there
        ann2, snn2, before2, after2 = run(folder=tmp_path / "new" / "folder", augment=cut(None))
        assert equal(state(ann), state(ann2)) and equal(state(snn), state(snn2))
        for mine, theirs in ((before, before2), (after, after2)):
            assert [r["train_loss"] for r in mine.rows] == [r["train_loss"] for r in theirs.rows]
            for name, held in mine.optimizer_state["state"].items():
                assert held["momentum_buffer"].equal(
                    theirs.optimizer_state["state"][name]["momentum_buffer"]
                )


def test_a_training_with_handed_momentum_is_not_continued_without(tmp_path):
    run(folder=tmp_path)
    with pytest.raises(ValueError, match=r"snn.pt belongs to another training: optimizer_state is"):
        pipe_s(replace(SHORT, keep_momentum=False), *DATA, **run.keywords, folder=tmp_path)


@pytest.mark.long
@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch has no gloo backend here",
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="two processes would want two GPUs")
def test_the_script_on_the_page_trains_with_two_processes(tmp_path, launch):
    page = json.loads(
        (Path(__file__).parents[2] / "nbs" / "transfer" / "03_image_pipeline.ipynb").read_text(
            encoding="utf-8"
        )
    )
    prose = "\n".join(
        "".join(cell["source"]) for cell in page["cells"] if cell["cell_type"] == "markdown"
    )
    (script,) = re.findall(r"```python\n(# train_pipe_s.py.*?)```", prose, flags=re.S)
    assert re.search(
        r"torchrun --nproc_per_node 8 train_pipe_s.py imagenet-resnet18 imagenet 192 8 bf16", prose
    )
    draw = np.random.default_rng(0)
    for part in ("train", "val"):
        for i in range(8):
            (folder := tmp_path / "data" / "few" / part / "ab"[i % 2]).mkdir(
                parents=True, exist_ok=True
            )
            Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
                folder / f"{i}.jpg"
            )
    brief = (
        "from dataclasses import replace\nfrom functools import partial\nsmall = "
        "PRESETS['imagenet-resnet18']\n"
        "PRESETS['tiny'] = replace(small, network=partial(small.network, width=2), T=2, "
        "pretraining=small.pretraining | {'epochs': 2}, finetuning=small.finetuning | {'epochs': "
        "1})\n\n"
    )
    script = script.replace("def main", brief + "def main", 1)
    place = str(tmp_path / "data")
    shown = launch(tmp_path, script, "tiny", "few", "2", "0", NEUROBRIDGE_DATA=place)
    assert shown.count("SNN {") == 1
    for name, epochs in (("ann", 2), ("snn", 1)):
        kept = load_checkpoint(tmp_path / "runs" / "tiny" / f"{name}.pt")
        assert (
            len(kept["rows"]) == epochs
            and kept["settings"]["processes"] == 2
            and kept["settings"]["lr"] == pytest.approx(0.1 * 4 / 256)
        )
        assert (kept["settings"]["optimizer_state"] is not None) == (name == "snn")


# What must not be taken without a word


@pytest.mark.parametrize(
    "call",
    [
        lambda net: copy_weights(net, 4),
        lambda net: pretrain(net, pictures(), epochs=1, lr=1e-3),
        lambda net: finetune(net, pictures(), epochs=1, lr=1e-3),
    ],
)
@pytest.mark.parametrize(
    "net", [nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), TimeNet, {"a": 1}, None]
)
def test_only_networks_with_a_time_axis_of_their_own_are_taken(call, net):
    with pytest.raises(TypeError, match="expected TimeNet"):
        call(net)


@pytest.mark.parametrize("neuron", [nn.ReLU6, nn.LeakyReLU, QCFS, nn.GELU])
def test_an_activation_that_would_stay_behind_is_named(neuron):
    net = small(neuron=nn.ReLU)
    net.trunk[1].neuron = neuron()
    for call in (
        lambda: copy_weights(net, 4),
        lambda: pretrain(net, pictures(), epochs=1, lr=1e-3),
    ):
        with pytest.raises(ValueError, match=f"{neuron.__name__} at 'trunk.1.neuron'"):
            call()
    net = spiking_convnet(neuron, T=1)
    with pytest.raises(ValueError, match="without SharpenedReLU or ReLU"):
        copy_weights(net, 4)


@pytest.mark.parametrize("neuron", [LIF(), "LIF", None, lambda: LIF])
def test_a_neuron_is_made_for_every_place(neuron):
    with pytest.raises(TypeError, match="copy_weights: .*neuron"):
        copy_weights(small(), 4, neuron)


def test_a_network_with_an_activation_left_is_not_fine_tuned():
    net = small()
    net.T = 4
    with pytest.raises(
        ValueError,
        match=r"SharpenedReLU at 'stem_neuron', so it is still the ANN; call copy_weights",
    ):
        finetune(net, pictures(), epochs=1, lr=1e-3)


def test_a_second_pretraining_starts_from_the_first_ramp(tmp_path):
    "The ramp that an earlier training left is no part of what the next one starts from."
    twice, once = small(), small()
    twice.load_state_dict(once.state_dict())
    sharpen(twice, 9, 10)
    data = pictures()
    seen = [
        state(net) for net in (once, twice) if pretrain(net, data, epochs=2, lr=1e-3, device="cpu")
    ]
    assert equal(*seen)


@pytest.mark.parametrize(
    "given, kind, message",
    [
        (dict(processes=0), ValueError, "processes is 0"),
        (dict(batch_size=2.5), TypeError, "batch_size is 2.5"),
        (dict(batch_size=0), ValueError, "batch_size is 0"),
    ],
)
def test_shares_of_a_step_are_whole(given, kind, message):
    preset = PRESETS["small"]
    with pytest.raises(kind, match=message):
        stage_settings(preset, preset.pretraining, **given)


def test_a_recipe_sets_its_checkpoints_itself():
    with pytest.raises(TypeError, match="checkpoint is set by the recipe.*folder="):
        pipe_s(PRESETS["small"], pictures(), in_channels=1, classes=10, checkpoint="a.pt")
