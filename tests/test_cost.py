"""What would bore a reader of the page snn/07_cost: random layers against explicit loops and torch's counter, decisions, refusals."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from neurobridge.g2g.layers import EnsembleConv2d, EnsembleLinear, MaskedLinear
from neurobridge.g2g.wiring import ensemble_mask
from neurobridge.snn.cost import crossed, synops
from neurobridge.snn.encode import direct
from neurobridge.snn.layers import MembraneReadout, over_time
from neurobridge.snn.lif import LIF
from neurobridge.snn.nets import spiking_convnet, spiking_resnet18

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
