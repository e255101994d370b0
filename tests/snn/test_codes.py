"""Encoders and losses of codes against snnTorch and SpikingJelly, against their equations, and at their edges; features and 1-D signals through everything."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurobridge.core import Sequences, evaluate, fit
from neurobridge.snn import (
    LIF,
    atan,
    delta,
    direct,
    first_spike_loss,
    latency,
    lif,
    mean_loss,
    membrane_loss,
    phase,
    poisson,
    population,
    rate_loss,
    spikify,
    synops,
    tet_loss,
)
from neurobridge.transfer import calibrate, convert

quick = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 10**6)


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# Peers


@pytest.mark.parametrize("falls", [False, True])
@pytest.mark.parametrize("padding", [False, True])
def test_delta_is_snntorchs(falls, padding):
    spikegen = pytest.importorskip("snntorch.spikegen", reason="pip install snntorch")
    for seed in range(20):
        x = (
            drawn(30, 2, 5, seed=seed).mul(4).round().div(4)
            if seed % 2
            else drawn(30, 3, seed=seed)
        )
        theirs = spikegen.delta(x, threshold=0.25, padding=padding, off_spike=falls)
        ours = delta(x, 0.25, falls=falls, start=None if padding else 0.0)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("K", [1, 4, 8, 20])
def test_phase_is_spikingjellys(K):
    encoding = pytest.importorskip("spikingjelly.activation_based.encoding", reason="pip install spikingjelly")  # fmt: skip
    x = drawn(6, 5, seed=K) * (1 - 2.0**-K)
    x[0, :3] = torch.tensor([0.0, 0.5, 1 - 2.0**-K])
    encoder = encoding.WeightedPhaseEncoder(K)
    theirs = torch.stack([encoder(x) for _ in range(2 * K)])
    assert torch.equal(phase(x, 2 * K, period=K), theirs)


def test_latency_is_spikingjellys_for_as_many_levels_as_steps():
    encoding = pytest.importorskip("spikingjelly.activation_based.encoding", reason="pip install spikingjelly")  # fmt: skip
    T = 12
    x = (torch.arange(T) / (T - 1)).view(3, 4)
    encoder = encoding.LatencyEncoder(T)
    theirs = torch.stack([encoder(x) for _ in range(T)])
    ours = latency(x, T)
    assert torch.equal(ours[:, x > 0], theirs[:, x > 0])
    assert not ours[:, x == 0].any() and theirs[-1][x == 0].all()  # black: never, or at the end


def test_population_is_spikingjellys():
    encoding = pytest.importorskip("spikingjelly.activation_based.encoding", reason="pip install spikingjelly")  # fmt: skip
    if not hasattr(encoding, "PopSpikeEncoderDeterministic"):
        pytest.skip("this SpikingJelly has no population encoder; 2.0.0 has one")
    x = drawn(5, 3) * 2 - 1
    encoder = encoding.PopSpikeEncoderDeterministic(3, 10, 7, (-1, 1), 0.15)
    with torch.no_grad():
        theirs = encoder(x)
    responses = direct(population(x, 10, -1, 1, width=0.15), 7)
    ours, _ = lif(responses, 1.0, 0.999, reset="soft")
    assert torch.equal(ours.flatten(2), theirs)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("p", [0.02, 0.3])
def test_the_first_spike_loss_is_snntorchs(seed, p):
    functional = pytest.importorskip("snntorch.functional", reason="pip install snntorch")
    s = (drawn(9, 6, 4, seed=seed) < p).float()
    y = torch.randint(4, (6,), generator=torch.Generator().manual_seed(seed))
    ours, theirs = s.clone().requires_grad_(), s.clone().requires_grad_()
    a, b = first_spike_loss(ours, y), functional.ce_temporal_loss()(theirs, y)
    torch.testing.assert_close(a, b)
    a.backward()
    b.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


# Equations and edges


@quick
@given(seeds, st.integers(1, 12), st.integers(1, 30))
def test_phase_is_the_binary_expansion(seed, K, steps):
    x = drawn(4, 3, seed=seed)
    s = phase(x, steps, period=K)
    for t in range(steps):
        level = np.minimum(np.floor(x.double().numpy() * 2**K), 2**K - 1).astype(int)
        np.testing.assert_array_equal(s[t], (level >> (K - 1 - t % K)) & 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_codes_keep_the_type_and_count_in_a_wider_one(dtype):
    x = drawn(5, 4).to(dtype)
    for code in (
        partial(phase, steps=12),
        partial(population, neurons=4),
        partial(latency, steps=9),
    ):
        assert code(x).dtype == dtype
    if dtype == torch.float64:
        return
    assert torch.equal(phase(x, 12).float(), phase(x.float(), 12))
    torch.testing.assert_close(
        population(x, 40).float(), population(x.float(), 40).to(dtype).float(), rtol=0, atol=0
    )
    assert (phase(torch.ones(2, 2, dtype=dtype), 20) == 1).all()


def test_delta_adds_up_where_every_change_is_one_threshold():
    steps = torch.randint(-1, 2, (50, 3), generator=torch.Generator().manual_seed(0)).float()
    signal = steps.cumsum(0) * 0.25
    assert torch.equal(delta(signal, 0.25, falls=True, start=0.0), steps)
    assert delta(signal[:1], 0.25).sum() == 0


def test_population_peaks_at_the_preferred_value():
    r = population(torch.linspace(-2, 3, 6)[:, None], 6, -2, 3)[:, 0]
    torch.testing.assert_close(r.diagonal(), torch.ones(6))
    torch.testing.assert_close(r, r.t())
    neighbours = math.exp(-(1.5**2) / 2)  # sigma is 2/3 of the distance
    np.testing.assert_allclose(r[0, 1], neighbours, rtol=1e-6)


@pytest.mark.parametrize("call, said", [
    (lambda: phase(drawn(2, 3), 31), "steps .as there is no period. is 31"),
    (lambda: phase(drawn(2, 3), 4, period=0), "period is 0"),
    (lambda: phase(drawn(2, 3) + 1, 4), "expected .0, 1."),
    (lambda: delta(drawn(3, 2), 0.0), "threshold is 0"),
    (lambda: delta(drawn(3), 0.1), "signal"),
    (lambda: delta(drawn(3, 2) * math.nan, 0.1), "NaN"),
    (lambda: population(drawn(2), 1), "neurons is 1"),
    (lambda: population(drawn(2), 4, 1.0, 0.0), "low is 1, high is 0"),
    (lambda: population(drawn(2), 4, width=0.0), "width is 0"),
    (lambda: first_spike_loss(drawn(4, 2, 3), drawn(2, 3)), "expected integers"),
    (lambda: first_spike_loss(drawn(4, 2, 3), torch.tensor([0, 3])), "y lies in"),
    (lambda: first_spike_loss(drawn(4, 2, 3), torch.tensor([0, 1]), scale=0.0), "scale is 0"),
])  # fmt: skip
def test_what_has_no_code_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def first_right(out, y):
    fired = out > 0
    first = torch.where(fired.any(0), fired.int().argmax(0), len(out))
    return first.argmin(1) == y


def test_a_network_learns_to_fire_first():
    x, y = drawn(90, 6), torch.arange(90) % 3
    x[torch.arange(90), y] += 1.5
    torch.manual_seed(0)
    neuron = partial(LIF, 0.9, 1.0, surrogate=atan())  # reaches membranes far from the threshold
    net = nn.Sequential(nn.Linear(6, 32), neuron(), nn.Linear(32, 3), neuron())
    data = Sequences(direct(x, 8).transpose(0, 1), y)
    history = fit(
        net, data, data, epochs=15, lr=3e-2, batch_size=30, device="cpu",
        loss=first_spike_loss, metric=first_right,
    )  # fmt: skip
    assert history.best["valid_first_right"] > 0.9
    assert history.chosen_by == "highest valid_first_right"


# Losses for maps, numbers and several labels


@quick
@given(seeds, st.integers(1, 4), st.integers(1, 4), st.integers(2, 4))
def test_maps_are_the_mean_of_their_pixels(seed, T, N, K):
    g = torch.Generator().manual_seed(seed)
    o = torch.randn(T, N, K, 2, 3, generator=g, dtype=torch.float64)
    spikes = (o > 0).double()
    y = torch.randint(K, (N, 2, 3), generator=g)
    for loss, out in (
        (mean_loss, o), (tet_loss, o), (membrane_loss, o), (rate_loss, spikes), (first_spike_loss, spikes),
    ):  # fmt: skip
        pixels = [loss(out[..., i, j], y[:, i, j], reduction="none") for i in range(2) for j in range(3)]  # fmt: skip
        torch.testing.assert_close(loss(out, y, reduction="none"), torch.stack(pixels).mean(0))


@quick
@given(seeds, st.floats(0, 1))
def test_numbers_are_their_equations(seed, lamb):
    g = torch.Generator().manual_seed(seed)
    o, y = torch.randn(5, 4, 3, generator=g), torch.rand(4, 3, generator=g)
    square = (o.mean(0) - y).square().mean(1)
    torch.testing.assert_close(mean_loss(o, y, "none", F.mse_loss), square)
    peak = (o.amax(0) - y).abs().mean(1)
    torch.testing.assert_close(membrane_loss(o, y, "none", F.l1_loss), peak)
    each = (1 - lamb) * (o - y).square().mean((0, 2)) + lamb * (o - 1).square().mean((0, 2))
    torch.testing.assert_close(tet_loss(o, y, lamb, 1.0, "none", F.mse_loss), each)
    s = (o > 0).float()
    rates = (s.mean(0) - (0.2 + 0.6 * y)).square().mean(1)
    torch.testing.assert_close(rate_loss(s, y, 0.8, 0.2, "none"), rates)


@pytest.mark.parametrize("loss", [mean_loss, tet_loss, membrane_loss])
def test_shapes_that_would_be_stretched_are_refused(loss):
    o = torch.randn(5, 4, 1)
    with pytest.raises(ValueError, match=r"expected a tensor \[4, 1\]"):
        loss(o, torch.rand(4), loss=F.mse_loss)
    with pytest.raises(ValueError, match="one label per pixel"):
        loss(torch.randn(5, 4, 3, 2, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="gives"):
        loss(o, torch.rand(4, 1), loss=lambda out, y, reduction: F.mse_loss(out, y))
    with pytest.raises(TypeError, match="loss is 'mse'"):
        loss(o, torch.rand(4, 1), loss="mse")
    with pytest.raises(ValueError, match=r"expected shares in \[0, 1\]"):
        rate_loss(torch.ones(5, 4, 1), torch.full((4, 1), 2.0))


def test_regression_over_time_in_fit():
    torch.manual_seed(0)
    x, y = drawn(60, 4), drawn(60, 4).sum(1, keepdim=True)
    net = nn.Sequential(nn.Linear(4, 16), LIF(0.9, 0.5), nn.Linear(16, 1))
    data = Sequences(direct(x, 6).transpose(0, 1), y)
    loss = partial(mean_loss, loss=F.mse_loss)
    first = evaluate(net, data, loss=loss)["loss"]
    history = fit(net, data, data, epochs=20, lr=1e-2, batch_size=20, loss=loss, device="cpu")
    assert history.best["valid_loss"] < first / 3


# Features [N, F] through the encoders


@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 4, 9), (2, 3, 4, 4)])
def test_encoders_take_any_axes(shape):
    x = drawn(6, *shape)
    for code in (direct, poisson, latency, phase):
        assert code(x, 4).shape == (4, 6, *shape)
    assert delta(x, 0.1).shape == x.shape if len(shape) else True
    assert population(x, 3).shape == (6, *shape, 3)


# Features and 1-D signals through spikify, convert and synops; dense heads too


def models():
    torch.manual_seed(0)
    return {
        "features": (
            nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)),
            drawn(5, 6),
        ),
        "signals": (
            nn.Sequential(nn.Conv1d(2, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(6, 4, 3, stride=2, groups=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)),
            drawn(5, 2, 20),
        ),
        "maps": (
            nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(4, 1, 1)),
            drawn(5, 1, 8, 8),
        ),
        "lines": (nn.Sequential(nn.Conv1d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv1d(6, 2, 1)), drawn(5, 1, 8)),
    }  # fmt: skip


@pytest.mark.parametrize("name", models())
def test_any_axes_become_spiking_and_are_converted(name):
    model, x = models()[name]
    model.eval()
    wanted = model(x)
    assert torch.equal(spikify(model, nn.ReLU, T=1)(x), wanted)
    net = spikify(model, partial(LIF, v_th=0.3), T=4).eval()
    torch.testing.assert_close(net(direct(x, 4)), net(x))
    net.per_step = True
    assert net(x).shape == (4, *wanted.shape)
    for how in ({"threshold": "max"}, {"per_channel": True}, {"threshold": "balance"}):
        converted = convert(model, x, T=512, **how)
        torch.testing.assert_close(converted(x), wanted, rtol=0, atol=2e-3)
    short = convert(model, x, T=16)
    torch.testing.assert_close(calibrate(short, model, x, T=16)(x), wanted, rtol=0, atol=0.05)
    wrong = x[0, ..., 0]  # neither a batch nor a sequence of batches
    with pytest.raises(ValueError, match=r"spikify: input has shape .*first layer reads"):
        net(wrong)
    with pytest.raises(ValueError, match="images is a tensor"):
        convert(model, wrong)


@pytest.mark.parametrize("stride, padding, groups", [(1, 0, 1), (2, 1, 2), (3, 2, 1)])
def test_a_one_dimensional_convolution_is_counted_spike_by_spike(stride, padding, groups):
    conv = nn.Conv1d(2, 4, 3, stride=stride, padding=padding, groups=groups, bias=False)
    spikes = (drawn(3, 2, 11) < 0.4).float()
    table = synops(nn.Sequential(LIF(decay=1e-9), conv), spikes[None].flatten(0, 1), images=1)
    count = 0
    for image in spikes:
        for out in range(4):
            for at in range(conv(image).shape[-1]):
                for c in range(2 // groups):
                    for k in range(3):
                        place = stride * at - padding + k
                        channel = out // (4 // groups) * (2 // groups) + c
                        count += 0 <= place < 11 and image[channel, place] == 1
    assert table.AC["1"] == count and table.MAC["1"] == 0
    dense = synops(nn.Sequential(conv), drawn(3, 2, 11), images=3)
    positions = conv(spikes).shape[-1]
    assert dense.average["0"] == 4 * positions * 2 // groups * 3
    inside = sum(0 <= stride * at - padding + k < 11 for at in range(positions) for k in range(3))
    assert dense.MAC["0"] == inside * 4 * 2 // groups


def test_functions_of_one_dimension_are_taken():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv1d(2, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(F.adaptive_avg_pool1d(F.relu(self.conv(x)), 1).flatten(1))

    net = Net().eval()
    assert torch.equal(spikify(net, nn.ReLU, T=1)(drawn(3, 2, 9)), net(drawn(3, 2, 9)))
    torch.testing.assert_close(
        convert(net, drawn(3, 2, 9), T=512)(drawn(3, 2, 9)), net(drawn(3, 2, 9)), rtol=0, atol=2e-3
    )
