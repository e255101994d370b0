"""What would bore a reader of the page snn/07_cost: random layers against explicit loops and torch's counter, decisions, refusals."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from neurobridge.g2g import EnsembleConv2d, EnsembleLinear, MaskedLinear, ensemble_mask
from neurobridge.snn import (
    LIF,
    MembraneReadout,
    Synapse,
    direct,
    lif,
    over_time,
    spiking_convnet,
    spiking_resnet18,
    synops,
)
from neurobridge.snn.cost import crossed
from neurobridge.transfer import calibrate, convert, local_thresholds, neurons, use_qcfs

pair = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def convolutions(draw):
    groups = draw(st.integers(1, 3))
    conv = nn.Conv2d(
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        draw(pair),
        stride=draw(pair),
        dilation=draw(pair),
        padding=draw(st.sampled_from([0, (1, 0), (2, 3), "valid"])),
        groups=groups,
        bias=draw(st.booleans()),
    )
    height, width = draw(st.integers(3, 7)), draw(st.integers(3, 7))
    pad = (0, 0) if conv.padding == "valid" else conv.padding
    assume(
        all(
            size + 2 * p >= d * (k - 1) + 1
            for size, p, d, k in zip(
                (height, width), pad, conv.dilation, conv.kernel_size, strict=True
            )
        )
    )
    density, seed = draw(st.floats(0, 1)), draw(st.integers(0, 2**31))
    x = (
        torch.rand(
            draw(st.integers(1, 3)),
            conv.in_channels,
            height,
            width,
            generator=torch.Generator().manual_seed(seed),
        )
        < density
    ).float()
    return conv, x


def synapses_by_loops(conv, x):
    "Every synapse of every output, one after the other; padding is no input."
    (sy, sx), (dy, dx), (py, px) = (
        conv.stride,
        conv.dilation,
        (0, 0) if conv.padding == "valid" else conv.padding,
    )
    shape, total, used = conv(x[:1]).shape[1:], 0, 0
    inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    image = x.sum(0).numpy()
    for channel, row, column in np.ndindex(*shape):
        for c, i, j in np.ndindex(inputs, *conv.kernel_size):
            y, z = sy * row - py + dy * i, sx * column - px + dx * j
            if 0 <= y < x.shape[2] and 0 <= z < x.shape[3]:
                total += 1
                used += image[channel // outputs * inputs + c, y, z]
    return used, total


@settings(max_examples=60, deadline=None)
@given(convolutions())
def test_convolutions_against_loops(case):
    conv, x = case
    used, total = synapses_by_loops(conv, x)
    assert crossed(conv, x) == used and crossed(conv, torch.ones_like(x[:1])) == total


@settings(max_examples=40, deadline=None)
@given(convolutions())
def test_convolutions_against_autograd(case):
    "The gradient of the sum of a convolution with ones is each pixel's fan-out."
    conv, x = case
    nn.init.ones_(conv.weight)
    seen = x.double().requires_grad_()
    conv.double()(seen).sum().backward()
    assert crossed(conv, x) == (seen.grad * x).sum().item()


@settings(max_examples=30, deadline=None)
@given(convolutions())
def test_rows_of_one_convolution(case):
    "Spikes are accumulated, anything else multiplied; the estimate is torch's count times the rate."
    conv, x = case
    used, total = synapses_by_loops(conv, x)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        conv(x)
    dense = counter.get_total_flops() / 2
    row = synops(nn.Sequential(conv), x, images=1).loc["0"]
    assert (row.AC, row.MAC, row.spikes_in) == (used, 0, x.sum()) and row.average == pytest.approx(
        dense * x.mean().item(), rel=1e-5
    )
    row = synops(nn.Sequential(conv), x + 2, images=1).loc["0"]
    assert (row.AC, row.MAC, row.average, row.spikes_in) == (0, total * len(x), dense, 0)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000)
)
def test_linear_layers(n_in, n_out, steps, images, seed):
    x = (
        torch.rand(steps, images, n_in, generator=torch.Generator().manual_seed(seed)) < 0.5
    ).float()
    layer = nn.Sequential(nn.Linear(n_in, n_out))
    assert synops(layer, x, images=images).AC["0"] * images == pytest.approx(x.sum().item() * n_out)
    assert synops(layer, x + 0.5, images=images).MAC["0"] == steps * n_in * n_out


def test_same_padding_and_one_image_without_batch():
    conv, x = nn.Conv2d(1, 2, 3, padding="same"), torch.ones(1, 3, 3)
    assert crossed(conv, x[None]) == 2 * (4 * 4 + 4 * 6 + 9)
    assert synops(nn.Sequential(conv), x, images=1).AC["0"] == 2 * 49


def test_large_counts_are_exact():
    "Sums pass 2**24, where 32-bit floats no longer count."
    x = torch.ones(65, 65, 65, 65)
    assert crossed(nn.Conv2d(65, 1, 1), x) == x.numel() > 2**24 and x.numel() % 2


@pytest.mark.parametrize(
    "build",
    [
        lambda neuron: spiking_convnet(neuron, T=1, width=4),
        lambda neuron: spiking_resnet18(
            neuron, in_channels=1, classes=5, T=1, width=4, small_images=True
        ),
    ],
)
def test_ann_against_torchs_counter(build):
    ann, x = build(nn.ReLU).eval(), torch.randn(3, 1, 16, 16)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ann(x)
    table = synops(ann, x)
    assert table.average.sum() * 3 == counter.get_total_flops() / 2
    assert (
        (table.AC == 0).all() and (table.MAC <= table.average).all() and (table.updates == 0).all()
    )


def test_energy_is_what_was_asked_for():
    net, x = spiking_convnet(T=3, width=4), torch.randn(2, 1, 8, 8)
    table, other = synops(net, x), synops(net, x, mac=2.0, ac=1.0)
    np.testing.assert_allclose(table.energy, (4.6 * table.MAC + 0.9 * table.AC) / 1e3)
    np.testing.assert_allclose(other.energy, (2 * table.MAC + table.AC) / 1e3)


def test_numbers_are_per_image_and_independent_of_the_batch():
    net, x = spiking_convnet(T=3, width=4), torch.randn(6, 1, 8, 8)
    whole, parts = synops(net, x), [synops(net, part) for part in x.split(2)]
    numbers = whole.columns[1:]
    np.testing.assert_allclose(whole[numbers], sum(part[numbers] for part in parts) / 3)


def test_spikes_leave_where_they_arrive():
    table = synops(spiking_convnet(T=3, width=4), torch.randn(2, 1, 8, 8))
    assert table.spikes_out["stem_neuron"] == table.spikes_in["trunk.0.conv.0"] > 0
    assert table.updates["stem_neuron"] == 3 * 4 * 64


def test_still_images_and_frames_differ_in_the_stem_alone():
    net, x = spiking_convnet(T=3, width=4), torch.randn(2, 1, 8, 8)
    still, frames = synops(net, x), synops(net, direct(x, 3))
    assert frames.MAC["stem.0"] == 3 * still.MAC["stem.0"]
    assert still.drop("stem.0").equals(frames.drop("stem.0"))


def test_events_make_the_stem_accumulate():
    "What arrives decides: binary frames from an event camera are spikes."
    frames = (torch.rand(3, 2, 1, 8, 8) < 0.2).float()
    table = synops(spiking_convnet(T=3, width=4), frames)
    assert table.MAC["stem.0"] == 0 and table.AC["stem.0"] > 0


def test_membrane_readout_is_one_linear_layer_an_image():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron, self.readout = LIF(), MembraneReadout(6, 4)

        def forward(self, x):
            return self.readout(self.neuron(x))

    table = synops(Net(), torch.randn(5, 3, 6))
    assert (
        list(table.index) == ["neuron", "readout"]
        and table.AC["readout"] == 0
        and table.MAC["readout"] == 24
    )


def test_recurrent_use_is_added_up():
    class Thrice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear((self.linear((self.linear(x) > 0).float()) > 0).float())

    net = Thrice()
    nn.init.ones_(net.linear.weight)
    row = synops(net, torch.ones(2, 4)).loc["linear"]
    assert (row.AC, row.MAC, row.spikes_in, row.average) == (3 * 16, 0, 12, 3 * 16)
    row = synops(net, torch.full((2, 4), 0.5)).loc["linear"]
    assert (row.AC, row.MAC, row.spikes_in) == (2 * 16, 16, 8)


def test_the_model_is_left_as_it_was():
    net = spiking_convnet(T=2, width=4)
    net.train()
    net.stem.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    synops(net, torch.randn(2, 1, 8, 8))
    assert (
        net.training
        and not net.stem.training
        and not any(module._forward_hooks for module in net.modules())
    )
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    with pytest.raises(ValueError, match="TimeNet"):
        synops(net, torch.randn(8, 8))
    assert net.training and not any(module._forward_hooks for module in net.modules())


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return nn.functional.linear(x, self.linear.weight)


@pytest.mark.parametrize(
    "model, batch, kind, message",
    [
        (nn.Sequential(nn.Conv3d(1, 1, 1)), torch.rand(1, 1, 2, 2, 2), TypeError, "'0', a Conv3d"),
        (nn.Sequential(nn.LayerNorm(4)), torch.rand(1, 4), TypeError, "LayerNorm"),
        (Hidden(), torch.rand(3, 4), ValueError, "'linear' was never called"),
        (
            nn.Sequential(nn.Linear(4, 2), LIF()),
            torch.rand(5, 3, 4),
            ValueError,
            r"\(5, 3, 2\), not \[N, classes\]",
        ),
        (
            nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")),
            torch.ones(1, 1, 5, 5),
            ValueError,
            "'reflect'",
        ),
    ],
)
def test_refusals(model, batch, kind, message):
    with pytest.raises(kind, match=message):
        synops(model, batch)


def test_sequences_need_the_number_of_images():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.neuron = nn.Conv2d(1, 2, 3), LIF()

        def forward(self, x):
            return self.neuron(over_time(self.conv, x))

    table = synops(Net(), torch.randn(4, 3, 1, 5, 5), images=3)
    assert table.MAC["conv"] == 4 * 2 * 9 * 9 and table.updates["neuron"] == 4 * 2 * 9


SPARSE = [
    lambda law: MaskedLinear(ensemble_mask(12, 8, **law)),
    lambda law: EnsembleLinear(12, 8, **law),
    lambda law: EnsembleConv2d(12, 8, 2, stride=2, padding=1, **law),
]


@pytest.mark.parametrize("make", SPARSE)
@settings(max_examples=15, deadline=None)
@given(st.fixed_dictionaries({"groups": st.sampled_from([1, 2, 4]), "p_intra": st.floats(0.4, 1), "p_inter": st.floats(0, 1),
                              "grouping": st.sampled_from(["index", "random", "mixer"]), "layer": st.integers(0, 1), "seed": st.integers(0, 9)}))  # fmt: skip
def test_sparse_layers_count_their_live_edges(make, law):
    "Each output is asked, by a gradient of its own, which inputs move it: those are its synapses, dead weights and borders left out."
    layer, shape = make(law), (5, 12, 3, 4) if make is SPARSE[2] else (5, 12)
    with torch.no_grad():
        layer.weight.abs_().add_(layer.weight != 0)
    x = (torch.rand(shape, generator=torch.Generator().manual_seed(law["seed"])) < 0.4).float()
    one = torch.zeros_like(x[:1], requires_grad=True)
    answers = layer(one).flatten()
    reach = sum(
        (torch.autograd.grad(answer, one, retain_graph=True)[0] != 0).double() for answer in answers
    )
    row = synops(nn.Sequential(layer), x, images=1).loc["0"]
    assert (row.AC, row.MAC, row.spikes_in) == ((reach * x).sum(), 0, x.sum())
    assert synops(nn.Sequential(layer), x + 2, images=1).MAC["0"] == reach.sum() * len(x)
    if x.ndim == 2:
        assert row.average == pytest.approx(reach.sum().item() * x.sum().item() / 12)


# What arrives: spikes of any worth, sums of spikes


def by_loops(windows, spikes, conv):
    "Accumulates behind a pooling: every synapse of every output adds every spike of the window it looks at."
    sums = np.stack(
        [
            [
                spikes[:, :, top:bottom, left:right].sum((2, 3)).numpy()
                for left, right in windows(spikes.shape[3])
            ]
            for top, bottom in windows(spikes.shape[2])
        ]
    )
    return synapses_by_loops(conv, torch.from_numpy(sums).permute(2, 3, 0, 1))[0]


def fixed(kernel, stride, padding):
    return lambda size: [
        (max(i * stride - padding, 0), min(i * stride - padding + kernel, size))
        for i in range((size + 2 * padding - kernel) // stride + 1)
    ]


class OverImage(nn.Module):
    def forward(self, x):
        return x.mean((2, 3), keepdim=True)


POOLS = {
    "2x2": (nn.AvgPool2d(2), fixed(2, 2, 0)),
    "overlapping": (nn.AvgPool2d(3, 2, 1), fixed(3, 2, 1)),
    "border not counted": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), fixed(3, 2, 1)),
    "own divisor": (nn.AvgPool2d(2, divisor_override=3), fixed(2, 2, 0)),
    "adaptive": (
        nn.AdaptiveAvgPool2d(3),
        lambda n: [(i * n // 3, -(-(i + 1) * n // 3)) for i in range(3)],
    ),
    "all": (nn.AdaptiveAvgPool2d(1), lambda n: [(0, n)]),
    "mean": (OverImage(), lambda n: [(0, n)]),
}


class Worth(nn.Module):
    "Spikes of one worth per channel, where the input is above 0.5."

    fires = True

    def __init__(self, *worth):
        super().__init__()
        self.worth = torch.tensor(worth).view(-1, 1, 1)

    def forward(self, x):
        return (x > 0.5) * self.worth


@pytest.mark.parametrize("worth", [(1.0, 1.0), (0.3, 0.3), (0.3, 1.7)])
@pytest.mark.parametrize("name", POOLS)
def test_pooled_spikes_are_accumulated_one_by_one(name, worth):
    (pool, windows), conv = POOLS[name], nn.Conv2d(2, 3, 2, padding=1)
    x = torch.rand(4, 2, 7, 7, generator=torch.Generator().manual_seed(1))
    table = synops(nn.Sequential(Worth(*worth), pool, nn.Identity(), conv), x, images=1)
    expected = by_loops(windows, (x > 0.5).float(), conv)
    assert (
        table.MAC["3"] == 0
        and table.AC["3"] == expected > 0
        and table.spikes_out["0"] == (x > 0.5).sum()
    )
    assert table.type["3"].startswith("Conv2d, sums of up to ")


def test_the_table_says_where_sums_arrive():
    net = nn.Sequential(
        Worth(1.0, 1.0), nn.Conv2d(2, 2, 1), Worth(1.0, 1.0), nn.AvgPool2d(2), nn.Conv2d(2, 2, 1)
    )
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    assert list(synops(net, torch.ones(1, 2, 4, 4), images=1).type) == [
        "Worth",
        "Conv2d",
        "Worth",
        "Conv2d, sums of up to 4 spikes",
    ]


WAYS = {
    "layer": lambda ann, x: convert(ann, x, T=8),
    "channel": lambda ann, x: convert(ann, x, T=8, per_channel=True),
    "qcfs": lambda ann, x: convert(use_qcfs(ann, 4, x), T=8),
    "calibrated": lambda ann, x: calibrate(convert(ann, x, T=8, per_channel=True), ann, x, T=8),
    "local": lambda ann, x: local_thresholds(convert(ann, x, T=8), ann, x),
    "balance": lambda ann, x: convert(ann, x, T=8, threshold="balance"),
}


@pytest.mark.parametrize("name", WAYS)
def test_converted_networks_add_whatever_their_spikes_are_worth(name):
    torch.manual_seed(0)
    parts = (
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    images = torch.rand(6, 3, 8, 8)
    net = WAYS[name](nn.Sequential(*parts).eval(), images)
    sent = []
    handles = [
        neuron.register_forward_hook(lambda layer, x, out: sent.append(out.ne(0).float()))
        for neuron in neurons(net)
    ]
    with torch.no_grad():
        net(images)
    for handle in handles:
        handle.remove()
    table = synops(net, images)
    rows = table[table.updates > 0]
    np.testing.assert_allclose(rows.spikes_out, [spikes.sum().item() / 6 for spikes in sent])
    pooled = torch.nn.functional.avg_pool2d(sent[0].flatten(0, 1), 2, divisor_override=1)
    assert list(table.index[table.MAC > 0]) == ["0"] and table.AC["4"] == pytest.approx(
        synapses_by_loops(net.get_submodule("4"), pooled)[0] / 6
    )
    assert table.AC["7"] == pytest.approx(10 * sent[1].sum().item() / 6)
    assert table.energy.drop("0").sum() == pytest.approx(0.9 * table.AC.sum() / 1000)


def test_what_moves_spikes_keeps_their_number():
    "The same spikes by many ways: every way must count as many accumulates as the plain one."
    ways = {
        "reshape": lambda s: s.transpose(1, 2).reshape(2, 7, 3, 4).permute(0, 2, 1, 3),
        "cat": lambda s: torch.cat([s[:, :1], s[:, 1:]], 1),
        "chunks": lambda s: torch.cat(s.chunk(3, 1), 1),
        "stack": lambda s: torch.stack(s.unbind(1), 1),
        "pad": lambda s: torch.nn.functional.pad(s, (0, 0, 0, 0))[..., :4],
        "factor": lambda s: -2 * s / 3,
        "zero": lambda s: sum([s]),
        "flip": lambda s: s.flip(0).flip(0),
        "relu": lambda s: torch.relu(s),
        "dropout": lambda s: torch.nn.functional.dropout(s, 0.5, False),
        "double": lambda s: s.double().float(),
        "in place": lambda s: s.clone().mul_(2).add_(torch.zeros_like(s)),
        "largest": lambda s: torch.nn.functional.max_pool2d(s, 1),
        "shuffle": lambda s: torch.nn.functional.pixel_shuffle(s.repeat(1, 4, 1, 1), 2)[
            ..., ::2, ::2
        ],
    }
    for name, way in ways.items():
        net = Way(way)
        table = synops(
            net, torch.rand(2, 3, 7, 4, generator=torch.Generator().manual_seed(0)), images=1
        )
        assert (
            table.MAC["linear"] == 0 and table.AC["linear"] == 5 * table.spikes_out["neuron"] > 0
        ), name


class Way(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.neuron, self.way, self.linear = Worth(0.3, 0.7, 1.9), way, nn.Linear(4, 5)

    def forward(self, x):
        return self.linear(self.way(self.neuron(x)))


def test_sums_of_spikes_and_what_ends_the_trail():
    x = torch.rand(2, 3, 7, 4, generator=torch.Generator().manual_seed(0))
    both = synops(Way(lambda s: s + s.flip(1)), x, images=1)
    assert (
        both.MAC["linear"] == 0
        and both.AC["linear"] == 2 * 5 * both.spikes_out["neuron"]
        and both.type["linear"] == "Linear, sums of up to 2 spikes"
    )
    for way in (
        lambda s: s + 1,
        lambda s: s + torch.full_like(s, 0.5),
        lambda s: 1 - s,
        torch.sigmoid,
        lambda s: s.clone().add_(0.5),
        lambda s: (lambda y: (y[:, 0].add_(0.5), y)[1])(s.clone()),
    ):
        table = synops(Way(way), x, images=1)
        assert table.AC["linear"] == 0 and table.MAC["linear"] == 2 * 3 * 7 * 4 * 5


# What no layer accounts for


class Own(nn.Module):
    "A linear layer, spikes, and somebody's own function of them."

    def __init__(self, function):
        super().__init__()
        self.linear, self.neuron, self.function = nn.Linear(4, 4), LIF(), function
        self.register_buffer("scale", torch.rand(4))
        self.register_buffer("matrix", torch.rand(4, 4))

    def forward(self, x):
        return self.function(self, self.neuron(self.linear(x)))


F = torch.nn.functional
OUTSIDE = {
    "functional linear": lambda m, s: F.linear(s, m.matrix),
    "weights at once": lambda m, s: s @ m.linear.weight.T,
    "functional convolution": lambda m, s: F.conv1d(s, m.matrix[:3, None, :2].expand(3, 3, 2)),
    "vector": lambda m, s: s @ m.scale,
    "dot": lambda m, s: torch.dot(s[0, 0], m.scale),
    "gate": lambda m, s: s * torch.sigmoid(s),
    "square": lambda m, s: s * s,
    "by hand": lambda m, s: (s[..., None, :] * m.matrix).sum(-1),
    "layer norm": lambda m, s: F.layer_norm(s, (4,)),
    "instance norm": lambda m, s: F.instance_norm(s),
    "distance": lambda m, s: torch.cdist(s, s),
    "bilinear": lambda m, s: F.bilinear(s, s, m.matrix[None]),
    "addcmul": lambda m, s: torch.addcmul(s, s, s),
    "neurons": lambda m, s: lif(s)[0],
    "interpolation": lambda m, s: F.interpolate(s[None], scale_factor=2.0, mode="bilinear"),
    "norm": lambda m, s: s / s.norm(),
    "spectrum": lambda m, s: torch.fft.fft(s).real,
    "batch statistics": lambda m, s: F.batch_norm(s, None, None, training=True),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_operations_outside_the_counted_layers_are_refused(name):
    with pytest.raises(
        ValueError,
        match="synops: the Own computes .* outside the layers that are counted, so it would be missing",
    ):
        synops(Own(OUTSIDE[name]), torch.rand(3, 3, 4), images=3)


class Adapted(nn.Linear):
    "Does more than its weights say."

    def __init__(self):
        super().__init__(4, 2)
        self.register_buffer("down", torch.rand(1, 4))

    def forward(self, x):
        return super().forward(x) + (x @ self.down.T).sum(-1, keepdim=True)


class Recurrent(nn.Module):
    fires = True

    def __init__(self):
        super().__init__()
        self.back = nn.Linear(4, 4)

    def forward(self, x):
        return (self.back(x) > 0).float()


@pytest.mark.parametrize(
    "layer, words",
    [
        (Adapted(), "12 multiply-adds more than a Adapted has"),
        (Recurrent(), "48 multiply-adds more than a layer of neurons has"),
    ],
)
def test_layers_that_compute_more_than_they_say(layer, words):
    with pytest.raises(ValueError, match=words):
        synops(nn.Sequential(layer), torch.rand(3, 4))


def test_constant_factors_are_free_and_change_nothing():
    table = synops(
        Own(lambda m, s: s * m.scale + s / 2 - s.mean(1, keepdim=True)),
        torch.rand(3, 3, 4),
        images=3,
    )
    assert list(table.index) == ["linear", "neuron"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"batch": torch.rand(0, 1, 8, 8)}, "batch"),
        ({"images": 0}, "images"),
        ({"images": 1.5}, "images"),
        ({"mac": -1.0}, "mac"),
        ({"ac": None}, "ac"),
        ({"model": LIF}, "model"),
    ],
)
def test_arguments(change, words):
    with pytest.raises((TypeError, ValueError), match=f"synops: {words} is"):
        synops(**({"model": spiking_convnet(width=4), "batch": torch.rand(2, 1, 8, 8)} | change))


def test_a_readout_that_answers_at_every_step():
    net = spiking_convnet(T=2, width=4)
    net.per_step = True
    with pytest.raises(ValueError, match="'readout' was never called.*per_step = False"):
        synops(net, torch.rand(2, 1, 8, 8), images=2)


def test_sparse_buffers_do_no_harm():
    net = spiking_convnet(width=4)
    net.register_buffer("wiring", torch.eye(3).to_sparse())
    assert synops(net, torch.rand(2, 1, 8, 8)).AC.sum() > 0


@pytest.mark.parametrize("part", [
    nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(3), nn.AdaptiveMaxPool2d(3), nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.CircularPad2d(1), nn.Upsample(scale_factor=2),
    nn.PixelShuffle(2), nn.ChannelShuffle(2), nn.Unflatten(1, (2, 2)), nn.Dropout2d(), nn.FeatureAlphaDropout(), nn.FractionalMaxPool2d(2, output_size=3), nn.BatchNorm2d(4), nn.GELU(), nn.SiLU(),
    nn.Mish(), nn.Softmax(1), nn.LogSigmoid(), nn.Hardswish(), nn.ELU(), nn.Threshold(0.1, 0.0),
])  # fmt: skip
def test_layers_without_products_are_taken(part):
    assert list(
        synops(nn.Sequential(nn.Conv2d(1, 4, 1), part), torch.rand(3, 1, 8, 8), images=3).index
    ) == ["0"]


# Transposed convolutions, currents


@settings(max_examples=60)
@given(
    st.sampled_from([nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d]),
    st.sampled_from([1, 2]),
    *[st.integers(1, 3)] * 3,
    st.integers(0, 2),
    st.integers(0, 1000),
)
def test_every_convolution_crosses_what_ones_sum_up(kind, groups, kernel, stride, dilation, padding, seed):  # fmt: skip
    layer = kind(2, 4, kernel, stride, padding, dilation=dilation, groups=groups)
    torch.manual_seed(seed)
    x = torch.randint(0, 3, (2, 2, 8, 9)[: 3 if kind.__name__.endswith("1d") else 4]).double()
    nn.init.ones_(layer.weight), nn.init.zeros_(layer.bias)
    assume(min(layer.float()(x.float()).shape) > 0)
    assert crossed(layer, x) == layer.double()(x).sum()


def test_a_transposed_layer_in_a_network():
    net = nn.Sequential(LIF(), nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1), LIF())
    x = torch.rand(4, 2, 5, 5)
    table, spikes = synops(net, x, images=2), LIF()(x)
    assert table.AC["1"] == spikes.sum() * 27 / 2 and table.MAC["1"] == 0
    first = synops(nn.ConvTranspose2d(2, 3, 3, padding=1), x, images=4).iloc[0]
    assert first.MAC == 2 * 3 * sum(min(3, 2 + (0 < i < 4)) * min(3, 2 + (0 < j < 4)) for i in range(5) for j in range(5))  # fmt: skip

    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose2d(2, 3, 3, stride=2)

        def forward(self, x):
            return self.up(x, [12, 12])

    with pytest.raises(ValueError, match="output_padding"):
        synops(Sized(), x, images=4)


def test_integer_spikes_are_added_as_often_as_they_count():
    "SEW's additions: values up to 2, in front of a transposed and a one-dimensional layer."

    class Sew(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.neurons, self.layer = nn.ModuleList([LIF(), LIF(0.9, 0.3)]), layer

        def forward(self, x):
            return self.layer(self.neurons[0](x) + self.neurons[1](x))

    for layer, shape, targets in ((nn.ConvTranspose1d(2, 3, 2, 2), (4, 2, 6), 6), (nn.Conv1d(2, 3, 1), (4, 2, 6), 3)):  # fmt: skip
        x = torch.rand(shape)
        sums = LIF()(x) + LIF(0.9, 0.3)(x)
        table = synops(Sew(layer), x, images=1)
        assert table.AC["layer"] == sums.sum() * targets and sums.max() == 2
        assert "sums of up to 2" in table["type"]["layer"] and table.MAC["layer"] == 0


@pytest.mark.parametrize("learned", [False, True])
def test_currents_have_updates_and_no_synapses(learned):
    net = nn.Sequential(
        LIF(), nn.Linear(3, 4), Synapse(0.5, learn_decay=learned), LIF(), nn.Linear(4, 2)
    )
    x = torch.rand(6, 2, 3)
    table = synops(net, x, images=2)
    assert (
        table.updates["2"] == table.updates["3"] == 6 * 4 and table.AC["2"] == table.MAC["2"] == 0
    )
    assert table.AC["1"] == LIF()(x).sum() * 4 / 2
    late = synops(nn.Sequential(LIF(), Synapse(delay=2), nn.Linear(3, 4)), x, images=2)
    assert late.updates["1"] == 0 and late.AC["2"] == LIF()(x)[:-2].sum() * 4 / 2


# Products of attention


def test_products_of_numbers_are_multiplied():
    class Softmax(nn.Module):
        def forward(self, x):
            return nn.functional.softmax(x @ x.mT, -1) @ x

    x = torch.rand(2, 1, 5, 3)
    row = synops(Softmax(), x, images=1).loc["products"]
    assert (row.MAC, row.AC) == (2 * 2 * 5 * 5 * 3, 0)
    fused = synops(
        type("F", (nn.Module,), {"forward": lambda self, x: nn.functional.scaled_dot_product_attention(x, x, x)})(), x, images=1,
    ).loc["products"]  # fmt: skip
    assert (fused.MAC, fused.AC) == (row.MAC, 0)


def test_a_spiking_side_is_added_to_numbers():
    class Values(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron = LIF()

        def forward(self, x):
            return self.neuron(x) @ x.mT

    x = torch.rand(3, 2, 5, 4)
    table = synops(Values(), x, images=2)
    assert table.AC["products"] == LIF()(x).sum() * 5 / 2 and table.MAC["products"] == 0
