"""Networks: one state dict for ANN and SNN, the forward pass rewritten as plain loops over time, widths by formula, gradients everywhere."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from neurobridge.snn import (
    LIF,
    MembraneReadout,
    RateReadout,
    TimeNet,
    conv_norm,
    direct,
    spiking_convnet,
    spiking_resnet18,
    spiking_resnet34,
)
from neurobridge.snn.models import ConvLayer

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")

SMALL = {
    "convnet": partial(spiking_convnet, width=3),
    "convnet colour": partial(spiking_convnet, width=2, in_channels=3, classes=4, pool=1),
    "resnet18": partial(spiking_resnet18, width=2, classes=7),
    "resnet18 small": partial(
        spiking_resnet18, width=2, classes=7, small_images=True, in_channels=1
    ),
    "resnet34": partial(spiking_resnet34, width=2, classes=7, in_channels=2),
    "resnet34 small": partial(spiking_resnet34, width=3, classes=2, small_images=True),
}
nets = pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)


def images(net, n=2, side=32):
    return torch.randn(n, net.stem[0].in_channels, side, side)


def lived(net):
    "Give batch norms a past, so that evaluation mode has something to get wrong."
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.4, 1.2)
            nn.init.normal_(module.bias, 0.1, 0.2)
    return net.eval()


def weights(net):
    return {
        name: value for name, value in net.state_dict().items() if not name.endswith("_extra_state")
    }


def shapes(net):
    return {name: tuple(value.shape) for name, value in weights(net).items()}


# One state dict


@nets
def test_ann_and_snn_share_names_shapes_and_weights(make):
    ann, snn, default = make(neuron=nn.ReLU, T=1), make(neuron=LIF, T=4), make()
    assert shapes(ann) == shapes(snn) == shapes(default) and list(shapes(ann)) == list(shapes(snn))
    assert not any("neuron" in name for name in shapes(snn))
    before = {name: value.clone() for name, value in ann.state_dict().items()}
    snn.load_state_dict(before, strict=True)
    ann.load_state_dict(snn.state_dict(), strict=True)
    assert all(value.equal(before[name]) for name, value in weights(ann).items())


@nets
def test_at_one_step_with_relu_it_is_an_ordinary_network(make):
    ann = lived(make(neuron=nn.ReLU, T=1))
    spikes = lived(make(T=1))
    spikes.load_state_dict(ann.state_dict())
    x = images(ann)
    assert ann(x).isfinite().all() and not torch.allclose(ann(x), spikes(x))
    kinds = [type(m) for m in ann.modules()]
    assert (
        kinds.count(nn.ReLU) == [type(m) for m in spikes.modules()].count(LIF) > 0
        and LIF not in kinds
    )


@nets
def test_batch_norms_start_at_the_threshold(make):
    norms = [m for m in make().modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all((m.weight == 0.5).all() and (m.bias == 0).all() for m in norms)
    assert not any(m.bias is not None for m in make().modules() if isinstance(m, nn.Conv2d))


# The forward pass, written again


def normed(state, name, x, stride=1):
    weight = state[f"{name}.0.weight"]
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
    mean, var, scale, shift = (
        state[f"{name}.1.{part}"].view(-1, 1, 1)
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + 1e-5) * scale + shift


def by_hand(state, frames, blocks, small):
    "The paper's network, one step after the other, with one membrane a neuron."
    membranes, rates, features = {}, {}, []

    def fire(name, current):
        u = 0.25 * membranes.get(name, 0.0) + current
        s = (u > 0.5).to(u.dtype)
        membranes[name] = u * (1 - s)
        rates.setdefault(name, []).append(s.mean().item())
        return s

    for frame in frames:
        x = fire("stem", normed(state, "stem", frame, stride=1 if small else 2))
        index = 0
        for stage, count in enumerate(blocks):
            for i in range(count):
                name, stride = f"trunk.{index}", 2 if i == 0 and (stage > 0 or not small) else 1
                inner = fire(f"{name}.1", normed(state, f"{name}.conv1", x, stride))
                inner = normed(state, f"{name}.conv2", inner)
                x = fire(
                    f"{name}.2",
                    inner
                    + (
                        normed(state, f"{name}.shortcut", x, stride)
                        if f"{name}.shortcut.0.weight" in state
                        else x
                    ),
                )
                index += 1
        features.append(x.mean((2, 3)))
    assert not any(f"trunk.{index}" in name for name in state)
    return sum(features) / len(features) @ state["readout.linear.weight"].T + state[
        "readout.linear.bias"
    ], rates


@pytest.mark.parametrize("make, blocks, small", [
    (SMALL["resnet18"], (2, 2, 2, 2), False),
    (SMALL["resnet18 small"], (2, 2, 2, 2), True),
    (SMALL["resnet34"], (3, 4, 6, 3), False),
    (SMALL["resnet34 small"], (3, 4, 6, 3), True),
])  # fmt: skip
@pytest.mark.parametrize("T", [1, 3])
def test_resnet_equals_the_published_forward_pass(make, blocks, small, T):
    net = lived(make(T=T, width=4)).double()
    x, frames = images(net).double(), images(net, n=2 * T).double().unflatten(0, (T, 2))
    expected, rates = by_hand(net.state_dict(), [x] * T, blocks, small)
    torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(
        net(frames), by_hand(net.state_dict(), frames, blocks, small)[0], rtol=1e-5, atol=1e-8
    )
    assert (
        len(rates) == 1 + 2 * sum(blocks)
        and sum(0 < sum(r) < T for r in rates.values()) > len(rates) / 2
    )


def test_convnet_equals_a_loop_over_steps():
    net = lived(spiking_convnet(T=3, width=4)).double()
    x, state, v, total = images(net, side=12).double(), net.state_dict(), [0.0] * 3, 0.0
    for _ in range(3):
        s = x
        for i, (name, stride) in enumerate([("stem", 1), ("trunk.0.conv", 2), ("trunk.1.conv", 2)]):
            u = 0.25 * v[i] + normed(state, name, s, stride)
            s = (u > 0.5).double()
            v[i] = u * (1 - s)
        total = total + F.adaptive_avg_pool2d(s, 2).flatten(1)
    torch.testing.assert_close(
        net(x),
        F.linear(total / 3, state["readout.linear.weight"], state["readout.linear.bias"]),
        rtol=1e-5,
        atol=1e-8,
    )


# Still images and frames


@nets
def test_frames_that_are_copies_are_a_still_image(make):
    net = lived(make(T=3)).double()
    x = images(net).double()
    torch.testing.assert_close(net(direct(x, 3)), net(x), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        net(x.expand(5, *x.shape).contiguous()),
        lived_like(net, make, T=5)(x),
        rtol=1e-9,
        atol=1e-12,
    )


def lived_like(net, make, T):
    other = make(T=T).double().eval()
    other.load_state_dict(weights(net))
    return other


@nets
def test_every_call_starts_from_rest_and_images_do_not_meet(make):
    net = lived(make(T=3)).double()
    x = images(net, n=3).double()
    first = net(x)
    assert net(x).equal(first)
    torch.testing.assert_close(
        torch.cat([net(one) for one in x.split(1)]), first, rtol=1e-9, atol=1e-12
    )


def test_the_order_of_the_frames_matters():
    net = lived(spiking_convnet(width=8)).double()
    frames = images(net, n=8, side=8).double().unflatten(0, (4, 2))
    assert not torch.allclose(net(frames), net(frames.flip(0)))


# Training


@nets
@pytest.mark.parametrize(
    "neuron, T",
    [(LIF, 3), (nn.ReLU, 1), (partial(LIF, learn_decay=True, output="analogue"), 2)],
    ids=["LIF", "ReLU", "LIAF"],
)
def test_every_parameter_gets_a_gradient(make, neuron, T):
    net = make(neuron=neuron, T=T, width=4).train()
    F.cross_entropy(net(images(net, n=4)), torch.tensor([0, 1, 0, 1])).backward()
    for name, parameter in net.named_parameters():
        assert (
            parameter.grad is not None
            and parameter.grad.isfinite().all()
            and parameter.grad.abs().sum() > 0
        ), name


@nets
def test_training_moves_the_statistics_once(make):
    net = make(T=3).train()
    net(images(net))
    assert all(m.num_batches_tracked == 1 for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.eval()(images(net))
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())


# Sizes


@pytest.mark.parametrize(
    "width, in_channels, classes, pool", [(1, 1, 2, 1), (5, 3, 11, 2), (16, 2, 10, 3)]
)
def test_convnet_sizes_by_formula(width, in_channels, classes, pool):
    net = spiking_convnet(width=width, in_channels=in_channels, classes=classes, pool=pool)
    convolutions = 9 * (in_channels * width + 2 * width**2 + 8 * width**2)
    assert (
        sum(p.numel() for p in net.parameters())
        == convolutions + 2 * 7 * width + 4 * width * pool**2 * classes + classes
    )
    assert net(images(net, n=3, side=13)).shape == (3, classes) and net.T == 4


@pytest.mark.parametrize(
    "make, blocks", [(spiking_resnet18, (2, 2, 2, 2)), (spiking_resnet34, (3, 4, 6, 3))]
)
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("width, in_channels, classes", [(2, 1, 3), (3, 3, 10)])
def test_resnet_sizes_by_formula(make, blocks, small, width, in_channels, classes):
    net = make(width=width, in_channels=in_channels, classes=classes, small_images=small)
    total, before = (9 if small else 49) * in_channels * width + 2 * width, width
    for stage, count in enumerate(blocks):
        out = width * 2**stage
        total += 9 * before * out + 9 * (2 * count - 1) * out**2 + 4 * count * out
        if stage > 0 or not small:
            total += before * out + 2 * out
        before = out
    assert sum(p.numel() for p in net.parameters()) == total + 8 * width * classes + classes
    assert net.T == 6 and net(images(net)).shape == (2, classes)


@pytest.mark.parametrize("small, side", [(False, 1), (True, 4)])
def test_resnets_stride(small, side):
    seen = []
    net = spiking_resnet18(width=1, classes=2, small_images=small, T=2)
    net.pool.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    net(images(net))
    assert seen == [(4, 8, side, side)]


# Errors


@nets
@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (1, 2, 1, 1, 8, 8)])
def test_other_shapes_are_refused(make, shape):
    with pytest.raises(
        ValueError,
        match=r"TimeNet: x has shape \(.*\); expected images \[N, C, H, W\] or frames \[T, N, C, H, W\]",
    ):
        make()(torch.zeros(shape))


@nets
@pytest.mark.parametrize("T", [0, -1])
def test_a_network_needs_a_step(make, T):
    with pytest.raises(ValueError, match=f"T is {T}; expected a whole number of at least 1"):
        make(T=T)


def test_other_channels_are_refused():
    with pytest.raises(RuntimeError, match="channels"):
        spiking_convnet(in_channels=2)(torch.zeros(1, 3, 8, 8))


def test_own_networks():
    class Own(TimeNet):
        pass

    net = Own(conv_norm(1, 2), LIF, nn.Identity(), MembraneReadout(18, 3), T=2, pool=3)
    assert net(torch.randn(4, 1, 9, 9)).shape == net(torch.randn(5, 4, 1, 9, 9)).shape == (4, 3)
    with pytest.raises(ValueError, match="^Own: T is 0"):
        Own(conv_norm(1, 2), LIF, nn.Identity(), RateReadout(2, 3), T=0)
    with pytest.raises(ValueError, match="^Own: x has shape"):
        net(torch.zeros(3))


# Settings


def state(T, **settings):
    return spiking_convnet(partial(LIF, **settings) if settings else LIF, T=T, width=2).state_dict()


def test_weights_go_between_an_ann_and_any_snn_and_between_equal_snns():
    ann, snn = spiking_convnet(nn.ReLU, T=1, width=2), spiking_convnet(LIF, T=4, width=2)
    for source in (ann.state_dict(), state(1), state(4), weights(snn)):
        snn.load_state_dict(source)
        assert all(value.equal(source[name]) for name, value in weights(snn).items())
    for source in (state(4), state(8, v_th=1.0)):
        ann.load_state_dict(source)
        assert all(value.equal(source[name]) for name, value in weights(ann).items())
    steps = spiking_convnet(LIF, T=1, width=2)
    steps.load_state_dict(state(4))


@pytest.mark.parametrize("source, said", [
    (dict(T=8), r"the network \(TimeNet\): T = 8 there, 4 here"),
    (dict(T=4, decay=0.9), r"stem_neuron \(LIF\): decay = 0.9 there, 0.25 here.*trunk.1.neuron|and 1 more"),
    (dict(T=4, v_th=1.0), "v_th = 1.0 there, 0.5 here"),
    (dict(T=4, learn_decay=True), "decay = 'learned' there, 0.25 here"),
])  # fmt: skip
def test_weights_of_other_settings_are_refused_before_one_is_taken(source, said):
    snn = spiking_convnet(LIF, T=4, width=2)
    before = weights(copy.deepcopy(snn))
    for wrapped in (False, True):
        target = nn.Sequential(snn) if wrapped else snn
        with pytest.raises(
            ValueError, match=said if not wrapped else "load_state_dict: the settings differ in 0"
        ):
            target.load_state_dict(
                {
                    f"0.{name}" if wrapped else name: value
                    for name, value in state(**source).items()
                },
                strict=False,
            )
    assert all(value.equal(before[name]) for name, value in weights(snn).items())


def test_a_membrane_readouts_decay_travels_and_readouts_can_be_exchanged():
    slow, fast, rate = MembraneReadout(4, 3, 0.9), MembraneReadout(4, 3, 0.5), RateReadout(4, 3)
    with pytest.raises(ValueError, match="decay = 0.9 there, 0.5 here"):
        fast.load_state_dict(slow.state_dict())
    rate.load_state_dict(slow.state_dict())
    fast.load_state_dict(rate.state_dict())
    assert fast.linear.weight.equal(slow.linear.weight)
    fast.decay = 0.9
    x = torch.rand(5, 2, 4)
    assert fast(x).equal(slow(x))
    with pytest.raises(TypeError, match="MembraneReadout: decay is a tensor"):
        fast.decay = torch.tensor(0.5)


@pytest.mark.parametrize("name, value", [
    *[("T", value) for value in (0, -1, 2.5, 4.0, "4", None, True, torch.tensor(4), nn.ReLU())],
    *[("per_step", value) for value in (1, "yes", None)],
    *[("run", value) for value in (None, "blocks")],
    *[("readout", value) for value in (None, torch.relu)],
])  # fmt: skip
def test_a_wrong_setting_of_a_network_is_refused_when_it_is_set(name, value):
    net = spiking_convnet(width=2)
    before = {key: getattr(net, key) for key in ("T", "per_step", "run", "readout")}
    with pytest.raises((TypeError, ValueError), match=f"TimeNet: {name} is "):
        setattr(net, name, value)
    assert before == {key: getattr(net, key) for key in before}


def test_a_readout_without_steps_is_named():
    net = TimeNet(conv_norm(1, 2), LIF, nn.Identity(), nn.Linear(2, 3), T=2)
    net.per_step = True
    with pytest.raises(
        TypeError,
        match="per_step needs a readout with `steps`, such as RateReadout; this one is a module Linear",
    ):
        net(torch.rand(1, 1, 8, 8))


@pytest.mark.parametrize(
    "make",
    [
        lambda: spiking_convnet(LIF()),
        lambda: spiking_resnet18(LIF(), width=2),
        lambda: spiking_convnet("LIF"),
        lambda: spiking_convnet(lambda: torch.relu),
        lambda: spiking_convnet(None),
    ],
)
def test_a_neuron_is_something_that_makes_modules(make):
    with pytest.raises(
        TypeError,
        match="neuron (is|returns) .*; expected a class or function that makes one layer of neurons, such as LIF or partial",
    ):
        make()


@pytest.mark.parametrize("backend", ["auto", "fused"])
def test_an_onnx_file_answers_alike(backend, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    net, x = (
        lived(spiking_convnet(partial(LIF, learn_decay=True, backend=backend), T=3, width=4)),
        torch.rand(2, 1, 12, 12),
    )
    torch.onnx.export(net, (x,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), net(x).detach(), rtol=1e-4, atol=1e-5)


def test_the_layers_of_a_network_draw_their_numbers_in_one_order():
    "Recorded experiments name seeds: another order would give other networks for the same seed."
    torch.manual_seed(0)
    net = spiking_convnet(width=4)
    torch.manual_seed(0)
    first, second = (ConvLayer(4 * k, 8 * k, 2, LIF) for k in (1, 2))
    stem, readout = conv_norm(1, 4), RateReadout(64, 10)
    for made, drawn in (
        (net.trunk[0], first),
        (net.trunk[1], second),
        (net.stem, stem),
        (net.readout, readout),
    ):
        for a, b in zip(made.parameters(), drawn.parameters(), strict=True):
            assert torch.equal(a, b)
