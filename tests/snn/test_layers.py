"""Folding time against plain loops, batch norm against statistics by hand, readouts against loops, encoders against exact arithmetic and the binomial law."""

import copy
import math
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurobridge.snn import (
    LIF,
    MembraneReadout,
    RateReadout,
    SpikeReadout,
    conv_norm,
    direct,
    fire,
    latency,
    lif,
    over_time,
    poisson,
)
from neurobridge.snn.kernels.fused_norm import norm_lif

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")


# Folding

LAYERS = {
    "convolution": lambda c: nn.Conv2d(c, 3, 3, padding=1),
    "striding": lambda c: nn.Conv2d(c, 2, 2, stride=2, bias=False),
    "pooling": lambda c: nn.MaxPool2d(2),
    "averaging": lambda c: nn.AdaptiveAvgPool2d(1),
    "norm": lambda c: nn.BatchNorm2d(c).eval(),
    "conv_norm": lambda c: conv_norm(c, 4, kernel=1).eval(),
    "linear": lambda c: nn.Linear(6, 5),
    "flatten": lambda c: nn.Flatten(),
    "function": lambda c: torch.tanh,
    "nothing": lambda c: nn.Identity(),
}


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(sorted(LAYERS)),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 999),
)
def test_over_time_equals_a_loop(name, steps, batch, channels, contiguous, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = LAYERS[name](channels)
        x = torch.randn(steps, batch, channels, 4, 6)
    x = x if contiguous else x.transpose(0, 1).contiguous().transpose(0, 1)
    found = over_time(layer, x)
    torch.testing.assert_close(found, torch.stack([layer(x_t) for x_t in x]))
    assert found.shape[:2] == (steps, batch)


def test_folding_copies_nothing_and_takes_features_without_space():
    x = torch.randn(3, 4, 5)
    assert over_time(nn.Identity(), x).data_ptr() == x.data_ptr()
    assert over_time(lambda x: x.view(-1), x[..., :1].contiguous()).shape == (3, 4)


@pytest.mark.parametrize("shape", [(), (4,)])
def test_folding_needs_time_and_batch(shape):
    with pytest.raises(
        ValueError,
        match=r"x is a tensor.*; expected a tensor \[T, N, ...\].*; time first, then the batch",
    ):
        over_time(nn.Identity(), torch.zeros(shape))


# Batch norm


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("v_th", [0.5, 1.25])
def test_batch_norm_over_time_batch_and_space_by_hand(steps, v_th):
    layer = conv_norm(2, 3, kernel=1, v_th=v_th).double()
    x = torch.randn(steps, 5, 2, 4, 3, dtype=torch.float64) * 3 + torch.arange(steps).view(
        -1, 1, 1, 1, 1
    )
    with torch.no_grad():
        out = over_time(layer, x).numpy()
    current = np.einsum("oi,tnihw->tnohw", layer[0].weight.detach().numpy()[:, :, 0, 0], x.numpy())
    mean = np.array([sum(current[:, :, c].flat) / current[:, :, c].size for c in range(3)])
    var = np.array(
        [sum((current[:, :, c].ravel() - mean[c]) ** 2) / current[:, :, c].size for c in range(3)]
    )
    across = (slice(None), None, None)
    np.testing.assert_allclose(
        out, v_th * (current - mean[across]) / np.sqrt(var + 1e-5)[across], rtol=1e-9, atol=1e-12
    )
    n = current[:, :, 0].size
    np.testing.assert_allclose(layer[1].running_mean, 0.1 * mean, rtol=1e-9)
    np.testing.assert_allclose(layer[1].running_var, 0.9 + 0.1 * var * n / (n - 1), rtol=1e-9)
    np.testing.assert_allclose(out.std((0, 1, 3, 4)), v_th, rtol=1e-3)


def test_batch_norm_in_evaluation_uses_what_it_has_seen():
    layer = conv_norm(2, 3, kernel=1).double().eval()
    layer[1].running_mean += torch.tensor([1.0, 2.0, 3.0])
    layer[1].running_var *= 4
    current = torch.randn(2, 5, 2, 4, 4, dtype=torch.float64)
    expected = (
        (
            torch.einsum("oi,tnihw->tnohw", layer[0].weight[:, :, 0, 0], current)
            - layer[1].running_mean.view(3, 1, 1)
        )
        / math.sqrt(4 + 1e-5)
        / 2
    )
    torch.testing.assert_close(over_time(layer, current), expected)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv_norm_keeps_the_picture_and_starts_at_the_threshold(kernel, stride):
    layer = conv_norm(64, 48, kernel, stride, v_th=0.7)
    conv, norm = layer.eval()
    assert layer(torch.randn(2, 64, 8, 8)).shape == (2, 48, 8 // stride, 8 // stride)
    assert conv.bias is None and conv.weight.shape == (48, 64, kernel, kernel)
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * kernel**2)), rel=0.06)
    assert (
        norm.weight.eq(torch.tensor(0.7)).all()
        and norm.bias.eq(0).all()
        and norm.running_mean.eq(0).all()
        and norm.running_var.eq(1).all()
    )


# Readouts


@pytest.mark.parametrize(
    "make",
    [
        RateReadout,
        MembraneReadout,
        partial(MembraneReadout, decay=0.3),
        partial(MembraneReadout, decay=1),
    ],
)
def test_a_readout_of_one_step_is_its_linear_layer(make):
    readout, x = make(6, 4), torch.randn(1, 5, 6)
    torch.testing.assert_close(readout(x), readout.linear(x[0]))
    assert {k: tuple(v.shape) for k, v in readout.named_parameters()} == {
        "linear.weight": (4, 6),
        "linear.bias": (4,),
    }


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_rate_readout_is_the_mean_of_the_answers(steps):
    readout, x = RateReadout(6, 4), torch.randn(steps, 5, 6)
    torch.testing.assert_close(readout(x), sum(readout.linear(x_t) for x_t in x) / steps)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("decay", [0.3, 0.9, 1.0])
def test_membrane_readout_is_a_neuron_that_never_fires(steps, decay):
    readout, x = (
        MembraneReadout(6, 4, decay).double(),
        torch.randn(steps, 5, 6, dtype=torch.float64),
    )
    v = torch.zeros(5, 4)
    for x_t in x:
        v = decay * v + readout.linear(x_t)
    torch.testing.assert_close(readout(x), v)
    torch.testing.assert_close(readout(x), lif(over_time(readout.linear, x), decay, v_th=1e9)[1])
    readout(x).sum().backward()
    torch.testing.assert_close(
        readout.linear.bias.grad,
        torch.full((4,), 5 * sum(decay**k for k in range(steps)), dtype=torch.float64),
    )


@pytest.mark.parametrize("decay", [0, -0.1, 1.1, math.nan])
def test_membrane_readout_refuses_other_decays(decay):
    with pytest.raises(
        ValueError, match=f"decay is {decay}; expected a finite number above 0 and at most 1"
    ):
        MembraneReadout(6, 4, decay)


# Encoders

encoders = pytest.mark.parametrize("encode", [direct, poisson, latency])


@encoders
@pytest.mark.parametrize("steps", [0, -1])
def test_encoders_need_a_step(encode, steps):
    with pytest.raises(
        ValueError,
        match=f"{encode.__name__}: steps is {steps}; expected a whole number of at least 1",
    ):
        encode(torch.rand(1, 2), steps)


@pytest.mark.parametrize("encode", [poisson, latency])
@pytest.mark.parametrize("value", [-0.01, 1.01, 255.0, math.nan, math.inf])
def test_encoders_need_brightness(encode, value):
    with pytest.raises(
        ValueError,
        match=rf"{encode.__name__}: the brightness of image lies in .*; expected \[0, 1\], so scale the image",
    ):
        encode(torch.tensor([[0.5, value]]), 4)


@encoders
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_encoders_put_time_first_and_keep_the_dtype(encode, dtype):
    image = torch.rand(2, 3, 4, dtype=dtype)
    found = encode(image, 5)
    assert found.shape == (5, 2, 3, 4) and found.dtype == dtype
    assert encode is direct or set(found.unique().tolist()) <= {0.0, 1.0}


def test_direct_is_the_image_at_every_step_without_copies():
    image = torch.randn(2, 3) * 300
    found = direct(image, 4)
    assert (
        all(step.equal(image) for step in found)
        and found.data_ptr() == image.data_ptr()
        and found.stride(0) == 0
    )


def test_poisson_has_the_rate_and_the_independence_it_claims():
    "Within five standard deviations of the binomial law: for each brightness, between neighbouring steps, and between neighbouring pixels."
    n, p = (
        20_000,
        torch.tensor([0.0, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 1.0], dtype=torch.float64),
    )
    spikes = poisson(p.float()[None], n, torch.Generator().manual_seed(0))[:, 0].double()

    def agrees(found, expected):
        return (
            (found - expected).abs() <= 5 * (expected * (1 - expected) / (n - 1)).sqrt() + 1e-12
        ).all()

    assert (
        agrees(spikes.mean(0), p)
        and agrees((spikes[1:] * spikes[:-1]).mean(0), p**2)
        and agrees((spikes[:, 1:] * spikes[:, :-1]).mean(0), p[1:] * p[:-1])
    )


def test_poisson_draws_from_the_generator_it_is_given():
    image = torch.rand(4, 30)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        before = torch.get_rng_state()
        first, second, other = (
            poisson(image, 9, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
        )
        assert (
            first.equal(second) and not first.equal(other) and torch.get_rng_state().equal(before)
        )
        mine = poisson(image, 9)
        torch.manual_seed(0)
        assert poisson(image, 9).equal(mine) and not poisson(image, 9).equal(mine)


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=30), st.integers(1, 300))
def test_latency_fires_once_at_the_exact_time(levels, steps):
    image = torch.tensor(levels, dtype=torch.float32)[None] / 255
    spikes = latency(image, steps)[:, 0]
    assert spikes.sum(0).tolist() == [float(level > 0) for level in levels]
    for brightness, train in zip(image[0].tolist(), spikes.T, strict=True):
        time = (1 - Fraction(brightness)) * steps
        if brightness > 0 and (brightness == 1 or abs(time - round(time)) > 1e-4):
            assert train.argmax() == math.floor(time)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=30), st.integers(1, 40))
def test_latency_is_earlier_for_brighter_pixels(pixels, steps):
    spikes = latency(torch.tensor(pixels)[None], steps)[:, 0]
    times = [train.argmax().item() if train.any() else steps for train in spikes.T]
    ordered = [time for _, time in sorted(zip(pixels, times, strict=True))]
    assert ordered == sorted(ordered, reverse=True) and spikes.sum(0).max() <= 1


@pytest.mark.parametrize("brightness", [1 / 255, 1e-7, 1e-9, 1e-40])
def test_latency_keeps_the_darkest_gray_for_last(brightness):
    assert latency(torch.tensor([[brightness, 0.0]]), 10)[:, 0].T.tolist() == [
        [0.0] * 9 + [1.0],
        [0.0] * 10,
    ]


@pytest.mark.parametrize("dtype, steps", [(torch.bfloat16, 300), (torch.float16, 3000)])
def test_latency_fires_once_in_half_precision_too(dtype, steps):
    image = torch.linspace(1 / 255, 1, 255, dtype=dtype)
    assert latency(image, steps).float().sum(0).eq(1).all()


# Counting in float32 at least

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@HALF
@pytest.mark.parametrize("p", [0.0005, 1 / 255, 0.02, 0.98])
def test_poisson_has_the_rate_in_half_precision_too(dtype, p):
    "Within five standard deviations of the binomial law at the brightness that the data type can hold."
    image = torch.full((1, 1000), p, dtype=dtype)
    n, p = 200 * 1000, image[0, 0].item()
    rate = poisson(image, 200, torch.Generator().manual_seed(0)).double().mean().item()
    assert abs(rate - p) <= 5 * math.sqrt(p * (1 - p) / n)


@HALF
def test_readouts_count_in_float32(dtype):
    "700 steps: more than bfloat16 counts to, and a decay whose powers it cannot hold."
    x = (torch.rand(700, 2, 4, generator=torch.Generator().manual_seed(0)) < 0.6).to(dtype)
    torch.manual_seed(0)
    for readout in (
        RateReadout(4, 3),
        MembraneReadout(4, 3, 0.999),
        MembraneReadout(4, 3, 0.999).steps,
    ):
        module = getattr(readout, "__self__", readout).to(dtype)
        double = copy.deepcopy(module).double()
        expected = (double.steps if readout is not module else double)(x.double())
        tolerance = {torch.bfloat16: 4e-3, torch.float16: 1e-3}[dtype]
        found = readout(x).double()
        assert (
            found.shape == expected.shape
            and ((found - expected).abs() <= tolerance * expected.abs().max()).all()
        )
    firing = SpikeReadout(4, 3, LIF).to(dtype)
    assert (firing(x) * 700).sub(firing.steps(x).double().sum(0)).abs().max() < 1e-3 and firing(
        x
    ).dtype == torch.float32


# Refusals


@pytest.mark.parametrize("encode", [direct, poisson, latency])
@pytest.mark.parametrize("image, error", [
    (torch.rand(0, 3), ValueError), (torch.rand(2, 0), ValueError), (torch.tensor(0.5), ValueError), ([[0.5]], TypeError), (np.ones((1, 2)), TypeError), (torch.ones(1, 2, dtype=torch.uint8), TypeError)
])  # fmt: skip
def test_encoders_need_a_batch_of_floats(encode, image, error):
    with pytest.raises(
        error,
        match=f"{encode.__name__}: image is .*; expected a tensor .N, .... of floating-point numbers",
    ):
        encode(image, 4)


@encoders
@pytest.mark.parametrize("steps", [2.5, 4.0, "4", None, True, torch.tensor(4)])
def test_encoders_need_whole_steps(encode, steps):
    with pytest.raises(
        TypeError, match=f"{encode.__name__}: steps is .*; expected a whole number of at least 1"
    ):
        encode(torch.rand(1, 2), steps)


@pytest.mark.parametrize("make", [RateReadout, MembraneReadout, partial(SpikeReadout, neuron=LIF)])
@pytest.mark.parametrize(
    "x, error",
    [
        (torch.rand(5, 4), ValueError),
        (torch.rand(3, 2, 5), ValueError),
        (torch.rand(0, 2, 4), ValueError),
        (torch.rand(2, 3, 2, 4), ValueError),
        (torch.ones(3, 2, 4, dtype=torch.int64), TypeError),
        (None, TypeError),
    ],
)
def test_readouts_need_time_batch_and_features(make, x, error):
    readout = make(4, 3)
    for call in (readout, readout.steps):
        with pytest.raises(error, match=r"Readout: x is .*; expected a tensor \[T, N, 4\]"):
            call(x)


def test_a_layer_that_mixes_rows_is_refused():
    for layer in (lambda x: x.mean(), lambda x: x[:2], lambda x: None):
        with pytest.raises(
            ValueError,
            match=r"over_time: layer returns .*; expected \[6, ...\], one row for each of T \* N",
        ):
            over_time(layer, torch.rand(3, 2, 4))


@pytest.mark.parametrize("shape", [(4, 5, 5), (1, 2, 4, 5, 5), (3, 1, 4, 5, 5), (3, 2, 4, 1, 1)])
@pytest.mark.parametrize("neuron", [LIF, nn.ReLU])
def test_a_current_that_would_be_repeated_is_refused(shape, neuron):
    layer, x = conv_norm(2, 4), torch.rand(3, 2, 2, 5, 5)
    with pytest.raises(ValueError, match="added is a tensor"):
        fire(x, layer, neuron(), torch.rand(shape))
    with pytest.raises(ValueError, match="added is a tensor"):
        norm_lif(torch.rand(3, 2, 4, 5, 5), layer[1], neuron(), torch.rand(shape))


@pytest.mark.parametrize(
    "name, value",
    [
        ("channels_in", 0),
        ("channels_out", 2.5),
        ("kernel", "3"),
        ("stride", None),
        ("v_th", torch.tensor(0.5)),
        ("alpha", torch.tensor(1.0)),
        ("alpha", -1.0),
        ("v_th", math.nan),
    ],
)
def test_conv_norm_refuses_by_name(name, value):
    with pytest.raises((TypeError, ValueError), match=f"conv_norm: {name} is"):
        conv_norm(**{"channels_in": 2, "channels_out": 3, name: value})
