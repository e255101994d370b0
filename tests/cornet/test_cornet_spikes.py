"The CORnets as spiking networks: the same numbers with ReLU at one step, an explicit run of every step with LIF, conversion, costs, files."

import copy
import io
import pickle
from functools import partial
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from neurobridge.core import evaluating, fit, load_network, save_network
from neurobridge.cornet import (
    cornet_r,
    cornet_rt,
    cornet_s,
    cornet_variant,
    cornet_z,
    for_inference,
    for_training,
)
from neurobridge.cornet.blocks import AreaS, SharedConv2d
from neurobridge.cornet.variants import multiplications
from neurobridge.snn import LIF, SpikifyError, monitor, spikify, streaming, synops, to_nir
from neurobridge.transfer import (
    ConvertError,
    SharpenedReLU,
    convert,
    copy_weights,
    finetune,
    neurons,
    pretrain,
)

pytestmark = pytest.mark.usefixtures("same_numbers", "one_thread")
SMALL = dict(width=4, in_channels=1, classes=5)
VARIANT = dict(**SMALL, small_images=True)
MODELS = {
    "s": lambda: cornet_s(small_images=True, **SMALL),
    "s, large images": lambda: cornet_s(**SMALL),
    "s, one step": lambda: cornet_s(times=(1, 1, 1), small_images=True, **SMALL),
    "z": lambda: cornet_z(**SMALL),
    "r": lambda: cornet_r(3, **SMALL),
    "rt": lambda: cornet_rt(5, **SMALL),
    "loop to conv2": lambda: cornet_variant(loop="conv2", **VARIANT),
    "two convolutions": lambda: cornet_variant(convs=2, **VARIANT),
    "no skip": lambda: cornet_variant(skip=False, **VARIANT),
    "group norm": lambda: cornet_variant(norm="group", **VARIANT),
    "five areas": lambda: cornet_variant(areas=5, **VARIANT),
}


def lived(name, passes=3):
    "A network whose norms have seen images, in evaluation mode."
    torch.manual_seed(0)
    net = MODELS[name]()
    for _ in range(passes):
        net(torch.rand(16, 1, 32, 32))
    return net.eval()


IMAGES = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
def test_one_step_of_relu_is_the_original(name):
    ann, before = lived(name), copy.deepcopy(lived(name).state_dict())
    net = spikify(ann, nn.ReLU, T=1)
    with torch.no_grad():
        assert torch.equal(net(IMAGES), ann(IMAGES))
        ann.train(), net.train()
        assert torch.equal(net(IMAGES), ann(IMAGES))
    plain = [key for key in before if not key.endswith("_extra_state")]
    assert [key for key in net.state_dict() if not key.endswith("_extra_state")] != []
    assert set(net.state_dict()) - {"_extra_state"} == set(plain)
    spikify(lived(name, 0), LIF, T=4).load_state_dict(before)


class Cells:
    "Stands in for relu: LIF neurons, a layer for each call of a forward pass, a step at a time."

    def __init__(self):
        self.v, self.call = {}, 0

    def __call__(self, i, inplace=False):
        h = 0.25 * self.v.get(self.call, 0.0) + i
        s = (h > 0.5).to(i.dtype)
        self.v[self.call] = h * (1 - s)
        self.call += 1
        return s


@pytest.mark.parametrize("name", MODELS)
def test_four_steps_of_lif_are_an_explicit_run(name):
    ann, images = lived(name).double(), IMAGES.double()
    net, cells, answers = spikify(ann, LIF, T=4), Cells(), []
    with torch.no_grad():
        for _ in range(4):
            cells.call = 0
            with mock.patch.object(F, "relu", cells):
                answers.append(ann(images))
        torch.testing.assert_close(net(images), torch.stack(answers).mean(0), rtol=1e-8, atol=1e-9)
        with monitor(net) as records:
            net(images)
    assert len(records) == cells.call
    assert sum(record.counts.sum() for record in records.values()) > 0
    frames = images.expand(4, *images.shape)
    with torch.no_grad():  # and in steps
        stream, state = streaming(net), None
        for frame in frames:
            out, state = stream(frame[None], state)
        torch.testing.assert_close(out, net(images), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["s", "rt"])
def test_sharpened_pretraining_copy_and_fine_tuning(name):
    x, y = torch.rand(16, 1, 32, 32), torch.arange(16) % 5
    ann = spikify(MODELS[name](), SharpenedReLU, T=1)
    pretrain(ann, (x, y), epochs=1, lr=1e-3, batch_size=8)
    snn = copy_weights(ann, T=3)
    theirs = ann.state_dict()
    for key, value in snn.state_dict().items():
        if not key.endswith("_extra_state"):
            assert torch.equal(value, theirs[key])
    direct = spikify(MODELS[name](), LIF, T=3).eval()
    direct.load_state_dict(theirs)
    with torch.no_grad():
        assert torch.equal(direct(x), snn.eval()(x))
    before = copy.deepcopy(snn.state_dict())
    finetune(snn.train(), (x, y), epochs=1, lr=1e-3, batch_size=8)
    assert any((snn.state_dict()[key] != before[key]).any() for key in before)


def test_a_trained_spiking_network_lowers_its_loss():
    x, y = torch.rand(8, 1, 32, 32), torch.arange(8) % 5
    net = spikify(cornet_s(width=8, in_channels=1, classes=5, small_images=True), LIF, T=4)
    history = fit(net, (x, y), epochs=6, lr=0.01, batch_size=8)
    assert history.rows[-1]["train_loss"] < history.rows[0]["train_loss"]


@pytest.mark.long
def test_conversion_comes_nearer_with_every_step():
    torch.manual_seed(0)
    ann = MODELS["s"]()
    for _ in range(10):
        ann(torch.rand(32, 1, 16, 16))
    ann.eval()
    net = convert(ann, torch.rand(64, 1, 16, 16), T=8, threshold="max")
    images, errors = torch.rand(16, 1, 16, 16), []
    with torch.no_grad():
        exact = ann(images)
        for T in (8, 32, 128):
            net.T = T
            errors.append(((net(images) - exact).norm() / exact.norm()).item())
    assert errors[1] < 0.6 * errors[0] and errors[2] < 0.6 * errors[1], errors
    assert errors[2] < 0.3, errors


@pytest.mark.parametrize("name", ["z", "s, large images"])
def test_conversion_goes_past_max_pooling(name):
    ann, errors = lived(name), []
    net = convert(ann, IMAGES, threshold="max")
    with torch.no_grad():
        for net.T in (16, 256):
            errors.append((net(IMAGES) - ann(IMAGES)).abs().mean().item())
    assert errors[1] < 0.3 * errors[0]


def test_conversion_gives_each_pass_neurons_of_its_own():
    ann = lived("s")
    net = convert(ann, torch.rand(32, 1, 32, 32), T=4)
    assert len(neurons(net)) == 2 + 3 * (2 + 4 + 2)
    assert net(IMAGES).shape == (3, 5)


@pytest.mark.parametrize(
    "name, why",
    [
        ("r", "'V1.norm_input' is a GroupNorm, which divides by statistics of its input"),
        ("rt", "'V1.norm_input' is a GroupNorm"),
        ("group norm", "GroupNorm"),
    ],
)
def test_what_has_no_conversion_is_refused_by_name(name, why):
    with pytest.raises(ConvertError, match=why):
        convert(lived(name), torch.rand(32, 1, 32, 32))


def test_other_forms_are_refused_by_name():
    with pytest.raises(SpikifyError, match="sigmoid"):
        spikify(cornet_variant(gate="soft", **VARIANT))
    with pytest.raises(SpikifyError):
        spikify(for_training(lived("s").train()))
    with pytest.raises(TypeError, match="Folded: it contains constants"):
        spikify(for_inference(lived("s")))


def test_files_and_copies_keep_the_settings(tmp_path):
    net = spikify(lived("two convolutions"), LIF, T=4).eval()
    save_network(net, tmp_path / "net.safetensors")
    loaded = load_network(tmp_path / "net.safetensors")
    file = io.BytesIO(pickle.dumps(net))
    for other in (loaded, copy.deepcopy(net), pickle.load(file)):
        assert torch.equal(other(IMAGES), net(IMAGES))
        assert other.settings_now() == net.settings_now()
    one = spikify(cornet_variant(loop="conv1", times=(1, 1, 1), **VARIANT), LIF, T=4)
    other = spikify(cornet_variant(loop="conv2", times=(1, 1, 1), **VARIANT), LIF, T=4)
    with pytest.raises(ValueError, match="loop|settings differ"):
        one.load_state_dict(other.state_dict())


def test_costs_count_every_pass_at_its_stride():
    ann, image = lived("s"), IMAGES[:1]
    table = synops(ann, image)
    assert table.average.sum() == multiplications(ann, image)
    area = ann.V4
    ones, expected = torch.ones(1, 1, 3, 3), 0.0
    for size, stride in [(16, 2), (8, 1), (8, 1), (8, 1)]:
        reached = F.conv2d(torch.ones(1, 1, size, size), ones, stride=stride, padding=1).sum()
        expected += reached.item() * area.conv2.in_channels * area.conv2.out_channels
    assert table.MAC["V4.conv2"] == expected
    net = spikify(ann, LIF, T=4)
    spiking = synops(net, image)
    with monitor(net) as records, torch.no_grad():
        net(image)
    expected = 0.0
    for t in range(4):
        spikes = [name for name in records if name.startswith("V4.")][3 * t]
        arriving = records[spikes].spikes[:, 0].double().sum((0, 1))[None, None]
        stride = 2 if t == 0 else 1
        crossing = F.conv2d(arriving, ones.double(), stride=stride, padding=1).sum().item()
        expected += crossing * area.conv2.out_channels
    assert spiking.AC["V4.conv2"] == expected and spiking.MAC["V4.conv2"] == 0


def test_export_is_refused_by_name():
    pytest.importorskip("nir")
    with pytest.raises(ValueError, match="to_nir: 'V2.conv2', a SharedConv2d"):
        to_nir(spikify(lived("s"), LIF, T=1).eval(), torch.rand(2, 1, 1, 32, 32))


def test_the_shared_convolution_is_a_module_with_hooks_and_no_state_of_its_own():
    area = AreaS(4, 8, times=3).eval()
    assert type(area.conv2) is SharedConv2d and list(area.conv2.state_dict()) == ["weight"]
    seen = []
    handle = area.conv2.register_forward_hook(
        lambda m, args, out: seen.append((args[1], out.shape[-1]))
    )
    with evaluating(area):
        area(torch.rand(1, 4, 8, 8))
    assert seen == [(2, 4), (1, 4), (1, 4)] and area.conv2.stride == (2, 2)
    handle.remove()
    x = torch.rand(2, 32, 9, 9)
    for stride in (None, 1, 2, 3):
        by_function = F.conv2d(x, area.conv2.weight, stride=stride or 2, padding=1)
        assert torch.equal(area.conv2(x) if stride is None else area.conv2(x, stride), by_function)


def test_partial_factories_and_learned_decay():
    net = spikify(lived("r"), partial(LIF, 0.8, learn_decay=True), T=2).train()
    net(IMAGES).sum().backward()
    decays = [p for name, p in net.named_parameters() if name.endswith("decay_logit")]
    assert decays and any(p.grad is not None and p.grad != 0 for p in decays)
