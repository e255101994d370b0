"Conversion past max-pooling: the gate against brute force, ResNets and VGGs against their ANN, layer by layer, and every way to pool."

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurobridge.core import fit
from neurobridge.snn import (
    LIF,
    RateReadout,
    TimeNet,
    over_time,
    spikify,
    spiking_vgg,
    streaming,
    synops,
)
from neurobridge.transfer import activations, calibrate, convert, neurons, use_qcfs
from neurobridge.transfer.conversion import ConvertError
from neurobridge.transfer.max_pooling import RatePool

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")


def gates(net):
    return [module for module in net.modules() if isinstance(module, RatePool)]


def lived(model, *shape, batches=20):
    "Batch norm statistics from images at hand."
    torch.manual_seed(0)
    images = torch.rand(16, *shape, dtype=next(model.parameters()).dtype)
    with torch.no_grad():
        for _ in range(batches):
            model.train()(images)
    return model.eval(), images


def errors(ann, images, T):
    "Root mean square of the logits' error after each step, in deviations of the ANN's logits."
    snn = convert(ann, images, T=T, threshold="max")
    snn.per_step = True
    with torch.no_grad():
        target = ann(images)
        mean = snn(images).cumsum(0) / torch.arange(1, T + 1).view(-1, 1, 1)
    return (mean - target).square().mean((1, 2)).sqrt() / target.std()


def slope(error, first):
    late = torch.arange(first, len(error) + 1)
    design = torch.stack([late.log(), torch.ones(len(late))], 1)
    return torch.linalg.lstsq(design, error[first - 1 :].log()[:, None]).solution[0].item()


# The gate


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.integers(1, 2), st.booleans(),
    st.floats(0.0625, 3, width=32), st.integers(0, 10_000),
)  # fmt: skip
def test_at_every_step_the_count_is_the_largest_of_its_window(
    kernel, stride, padding, dilation, ceil, theta, seed
):
    pool = nn.MaxPool2d(kernel, stride, min(padding, kernel // 2), dilation, ceil_mode=ceil)
    draw = torch.Generator().manual_seed(seed)
    spikes = (torch.rand(25, 2, 2, 7, 6, generator=draw) < 0.4).float()
    out = RatePool(pool)(spikes * theta)
    assert set(out.unique().tolist()) <= {0.0, float(torch.tensor(theta))}
    for t in range(25):
        counts = spikes[: t + 1].sum(0)
        assert torch.equal((out[: t + 1] > 0).sum(0).float(), pool(counts))


def test_it_passes_the_leaders_spikes_and_no_others():
    "Brute force: whoever leads keeps the gate until another has sent more."
    spikes = (torch.rand(60, 5, 1, 1, 4, generator=torch.Generator().manual_seed(3)) < 0.5).float()
    out = RatePool(nn.MaxPool2d((1, 4)))(spikes)[:, :, 0, 0, 0]
    for n in range(5):
        counts, leader = [0] * 4, 0
        for t in range(60):
            for i in range(4):
                counts[i] += int(spikes[t, n, 0, 0, i])
            if max(counts) > counts[leader]:
                leader = counts.index(max(counts))
            assert out[t, n] == spikes[t, n, 0, 0, leader]


def test_four_equal_inputs_that_take_turns_have_the_rate_of_one():
    turns = torch.eye(4).repeat(25, 1).view(100, 1, 1, 2, 2)
    assert RatePool(nn.MaxPool2d(2))(turns).mean() == 0.25


def test_a_thousand_spikes_of_an_odd_value_are_exact():
    theta = torch.tensor(0.1)
    out = RatePool(nn.MaxPool2d(2))(theta * torch.ones(5000, 1, 1, 2, 2))
    assert torch.equal(out, theta.expand(5000, 1, 1, 1, 1))
    low = RatePool(nn.MaxPool2d(2))(theta.bfloat16() * torch.ones(5000, 1, 1, 2, 2).bfloat16())
    assert low.dtype == torch.bfloat16 and torch.equal(low, theta.bfloat16().expand_as(low))


def test_its_gradient_is_that_of_the_pooled_sums():
    x = torch.rand(6, 2, 1, 4, 4, dtype=torch.double, requires_grad=True)
    RatePool(nn.MaxPool2d(2))(x).sum().backward()
    y = x.detach().clone().requires_grad_()
    F.max_pool2d(y.sum(0), 2).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("state", [{"sums": torch.rand(2, 1, 4, 4)}, {"sum": 1}, 3])
def test_a_state_that_does_not_fit_is_refused(state):
    with pytest.raises((TypeError, ValueError), match="RatePool: state"):
        RatePool(nn.MaxPool2d(2))(torch.rand(3, 1, 1, 4, 4), state)


# Whole networks, against a simulation written out by hand


class Residual(nn.Module):
    "A stem with a pooling, a block with a stride, and a head, as in a ResNet."

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.a, self.b = nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.side, self.norm_b = nn.Conv2d(4, 6, 1, 2), nn.BatchNorm2d(6)
        self.mean, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 3)

    def forward(self, x):
        x = self.pool(self.relu(self.norm(self.conv(x))))
        y = self.norm_b(self.b(self.relu(self.a(x))))
        return self.head(torch.flatten(self.mean(self.relu(y + self.side(x))), 1))


def by_hand(ann, images, thetas, T):
    "Step by step: integrate, fire above the threshold, subtract; the pool by running counts."
    state, counts, logits = {}, None, []

    def fire(name, current):
        theta = thetas[name]
        v = state.get(name, torch.full_like(current, 0.5)) + current / theta
        spikes = (v > 1).to(v)
        state[name] = v - spikes
        return spikes

    for _ in range(T):
        stem = fire("stem", ann.norm(ann.conv(images)))
        before = torch.zeros_like(stem) if counts is None else counts
        counts = before + stem
        x = (F.max_pool2d(counts, 3, 2, 1) - F.max_pool2d(before, 3, 2, 1)) * thetas["stem"]
        a = fire("a", ann.a(x)) * thetas["a"]
        sum_ = fire("sum", ann.norm_b(ann.b(a)) + ann.side(x)) * thetas["sum"]
        logits.append(ann.head(sum_.mean((2, 3))))
    return torch.stack(logits)


def test_a_residual_network_is_the_simulation_step_by_step():
    ann, images = lived(Residual().double(), 1, 12, 12)
    snn = convert(ann, images, T=30)
    snn.per_step = True
    thetas = dict(zip(("stem", "a", "sum"), (n.theta for n in neurons(snn)), strict=True))
    assert len(gates(snn)) == 1 and len({float(theta) for theta in thetas.values()}) == 3
    with torch.no_grad():
        torch.testing.assert_close(
            snn(images), by_hand(ann, images, thetas, 30), rtol=1e-9, atol=1e-9
        )


# torchvision's networks as they are


@pytest.mark.parametrize(
    "name, side, T, first, most",
    [
        ("resnet18", 32, 256, 64, 0.1),
        pytest.param("resnet18", 64, 512, 64, 0.1, marks=pytest.mark.long),
        pytest.param("resnet34", 32, 512, 128, 0.15, marks=pytest.mark.long),
        pytest.param("resnet50", 32, 1024, 256, 0.3, marks=pytest.mark.long),
        pytest.param("vgg11_bn", 32, 256, 64, 0.1, marks=pytest.mark.long),
        pytest.param("squeezenet1_1", 64, 256, 64, 0.15, marks=pytest.mark.long),
    ],
)
def test_torchvisions_networks_follow_their_logits(name, side, T, first, most):
    ann, images = lived(getattr(tv, name)(num_classes=10), 3, side, side)
    error = errors(ann, images[:2], T)
    assert slope(error, first) < -0.7, (slope(error, first), error[-1])
    assert error[-1] < most


def test_every_layer_of_a_resnet_lags_by_a_number_of_spikes_that_does_not_grow():
    ann, images = lived(tv.resnet18(num_classes=10), 3, 32, 32)
    x, off = images[:2], {}
    wanted = activations(ann, x)
    for T in (64, 256):
        snn, sent = convert(ann, x, T=T, threshold="max"), []
        for layer in neurons(snn):
            layer.register_forward_hook(lambda m, x, out, sent=sent: sent.append(out.sum(0)))
        with torch.no_grad():
            snn(x)
        theta = [layer.theta for layer in neurons(snn)]
        off[T] = [
            ((s - T * a) / one).abs().mean().item()
            for s, a, one in zip(sent, wanted, theta, strict=True)
        ]
    assert len(off[64]) == 17
    assert all(late < 2 * early + 0.5 for early, late in zip(off[64], off[256], strict=True)), off


def test_vgg_converts_with_all_its_poolings():
    vgg = nn.Sequential(
        tv.vgg.make_layers([8, "M", 16, "M", 16, "M"], batch_norm=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    ann, images = lived(vgg, 3, 32, 32)
    error = errors(ann, images, 256)
    assert len(gates(convert(ann, images))) == 3
    assert slope(error, 32) < -0.7 and error[-1] < 0.05


def test_a_network_of_this_project_with_poolings():
    ann = spiking_vgg(nn.ReLU, in_channels=1, classes=5, T=1, width=4)
    ann, images = lived(ann, 1, 32, 32)
    snn = convert(ann, images, T=8, threshold="max")
    assert len(gates(snn)) == 5
    before = [(snn(images) - ann(images)).abs().mean().item() for snn.T in (32, 256)]
    assert before[1] < before[0] / 3


# Every way to pool


class Ways(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.conv, self.act, self.pool = nn.Conv2d(1, 4, 3), nn.ReLU(), pool
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.pool(self.act(self.conv(x))).flatten(2).mean(2))


WAYS = {
    "module": nn.MaxPool2d(2),
    "overlapping": nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "adaptive": nn.AdaptiveMaxPool2d(2),
    "F.max_pool2d": lambda x: F.max_pool2d(x, 2),
    "by name": lambda x: F.max_pool2d(x, kernel_size=3, stride=1, padding=1),
    "torch.max_pool2d": lambda x: torch.max_pool2d(x, 2),
    "F.adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, (2, 3)),
    "amax": lambda x: x.amax((2, 3), keepdim=True),
    "amax from the end": lambda x: torch.amax(x, (-2, -1))[:, :, None],
}


@pytest.mark.parametrize("name", WAYS)
def test_every_way_to_take_a_maximum_converts(name):
    torch.manual_seed(0)
    ann, x = Ways(WAYS[name]).eval(), torch.rand(20, 1, 8, 8)
    snn = convert(ann, x, threshold="max")
    assert len(gates(snn)) == 1
    off = [(snn(x) - ann(x)).abs().max().item() for snn.T in (20, 200)]
    assert off[1] < 0.3 * off[0] and off[1] < 0.02 * ann(x).std()


class Early(nn.Module):
    "One pooling module before the first neuron, between a convolution and its ReLU, and twice after."

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)
        self.relu, self.pool, self.drop = nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), nn.Dropout()

    def forward(self, x):
        x = self.relu(self.pool(self.a(self.drop(x))))
        x = self.relu(self.pool(self.b(self.pool(x))))
        return self.c(self.drop(x).mean((2, 3)))


def test_a_pooling_that_is_used_at_several_places_before_and_after_neurons():
    torch.manual_seed(0)
    ann, x = Early().eval(), torch.rand(10, 1, 18, 18)
    snn = convert(ann, x, threshold="max")
    assert len(gates(snn)) == 2 and isinstance(snn.pool, nn.MaxPool2d)
    off = [(snn(x) - ann(x)).abs().max().item() for snn.T in (30, 300)]
    assert off[1] < 0.3 * off[0] and off[1] < 0.02 * ann(x).std()
    assert spikify(ann, LIF, T=3).train()(x).shape == (10, 3)  # the dropout before it is plain


def test_a_quantised_activation_and_its_pool_are_equal_after_conversion():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )
    net = use_qcfs(net.double(), levels=8).eval()
    x = torch.rand(30, 1, 8, 8, dtype=torch.double)
    torch.testing.assert_close(convert(net, T=8)(x), net(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("per_channel", [False, True])
def test_thresholds_for_each_channel_and_calibration_run_through_gates(per_channel):
    ann, images = lived(Residual(), 1, 12, 12)
    snn = convert(ann, images, T=4, per_channel=per_channel)
    before = (snn(images) - ann(images)).abs().mean()
    calibrate(snn, ann, images, T=4)
    assert (snn(images) - ann(images)).abs().mean() < before


def test_training_goes_on_through_a_gate():
    ann, images = lived(Residual(), 1, 12, 12)
    snn = convert(ann, images, T=4)
    weight = snn.conv.weight.detach().clone()
    history = fit(snn, (images, torch.arange(16) % 3), epochs=8, lr=0.01, batch_size=16)
    assert not torch.equal(weight, snn.conv.weight)
    assert history.rows[-1]["train_loss"] < history.rows[0]["train_loss"]


# Files, chunks, costs


def test_copies_files_and_chunks():
    ann, images = lived(Residual(), 1, 12, 12)
    snn = convert(ann, images, T=6)
    file = io.BytesIO()
    torch.save(snn, file)
    file.seek(0)
    others = (
        copy.deepcopy(snn),
        pickle.loads(pickle.dumps(snn)),
        torch.load(file, weights_only=False),
    )
    with torch.no_grad():
        for other in others:
            assert torch.equal(other(images), snn(images)) and len(gates(other)) == 1
        fresh = convert(ann, images, T=6, threshold="max")
        fresh.load_state_dict(snn.state_dict())
        assert torch.equal(fresh(images), snn(images))
        stream, state = streaming(snn), None
        for chunk in images.expand(6, *images.shape).split(2):
            logits, state = stream(chunk, state)
        torch.testing.assert_close(logits, snn(images), rtol=1e-5, atol=1e-6)
        with pytest.raises(ValueError, match="state"):
            stream(images[None, :3], state)


def test_synops_counts_what_reaches_and_leaves_a_gate():
    ann, images = lived(Residual(), 1, 12, 12)
    snn, seen = convert(ann, images, T=10), {}
    for name in ("relu", "pool"):
        snn.get_submodule(name).register_forward_hook(
            lambda m, x, out, name=name: seen.__setitem__(name, (out > 0).sum().item() / 16)
        )
    with torch.no_grad():
        snn(images)
    table = synops(snn, images)
    row = table.loc["pool"]
    assert row.spikes_in == row.AC == seen["relu"] and row.spikes_out == seen["pool"]
    assert row.updates == 10 * 4 * 6 * 6 * 9 and row.MAC == 0
    assert row.energy == pytest.approx(0.9 * seen["relu"] / 1000)
    for name in ("a", "side"):  # spikes again, each crosses synapses
        assert table.MAC[name] == 0 and table.spikes_in[name] == seen["pool"]


def test_synops_counts_an_addition_for_each_current_that_reaches_a_gate():
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
        nn.Linear(12, 3),
    ).eval()  # fmt: skip
    x = torch.rand(5, 1, 8, 8)
    table = synops(convert(ann, x, T=7), x)
    assert table.AC["3"] == 7 * 3 * 4 * 4 and table.spikes_in["3"] == 0
    assert table.MAC["2"] == 0 and table.spikes_in["2"] == table.spikes_out["1"]


# What stays refused


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: tv.vit_b_32(num_classes=3), "self_attention' is a MultiheadAttention, which mult.*take a conv"),
        (lambda: tv.swin_t(num_classes=3), "'features.1.0.attn' is a ShiftedWindowAttention"),
        (lambda: tv.convnext_tiny(num_classes=3), "'features.1.0.block.4' is a GELU.*train the model with nn.ReLU"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2, return_indices=True)), "'2' is a MaxPool2d, that returns the places"),
        (lambda: Ways(lambda x: F.max_pool2d(x, x.shape[-1])), "takes a size that is computed"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_named(build, message):
    model = build()
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    with pytest.raises(ValueError, match=message):
        convert(model, torch.rand(2, first.in_channels, 32, 32))


def test_a_pooling_inside_a_module_of_ones_own_in_a_timenet_is_refused():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.MaxPool2d(2)

        def forward(self, x):
            return over_time(self.pool, x)

    stem = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2))
    refused = TimeNet(stem, nn.ReLU, Own(), RateReadout(4, 5), 1)
    with pytest.raises(ConvertError, match=r"'trunk.pool' is a MaxPool2d in a module of your own"):
        convert(refused, torch.rand(4, 1, 12, 12))
    ann, x = (
        TimeNet(stem, nn.ReLU, nn.Identity(), RateReadout(4, 5), 1).eval(),
        torch.rand(8, 1, 12, 12),
    )
    snn = convert(ann, x, T=200, threshold="max")
    assert not gates(snn) and (snn(x) - ann(x)).abs().max() < 0.02 * ann(x).abs().max()
