"""snn.losses against plain NumPy, identities that must hold for any outputs, fit with per-step networks, refusals; tdBN and the readouts' steps."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurobridge.core import evaluate, fit, seed_everything
from neurobridge.snn import (
    LIF,
    MembraneReadout,
    RateReadout,
    SpikeReadout,
    conv_norm,
    lif,
    mean_loss,
    membrane_loss,
    over_time,
    rate_loss,
    spiking_convnet,
    tet_loss,
)
from neurobridge.snn.layers import tdbn

LOSSES = (mean_loss, tet_loss, rate_loss, membrane_loss)
quick = settings(max_examples=40, deadline=None)


@st.composite
def outputs(draw, spikes=False):
    T, N, K = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(2, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    o = torch.randn(T, N, K, generator=generator, dtype=torch.float64) * draw(
        st.sampled_from([0.1, 1.0, 20.0])
    )
    return (o > 0).double() if spikes else o, torch.randint(K, (N,), generator=generator)


def log_softmax(a):
    a = a - a.max(-1, keepdims=True)
    return a - np.log(np.exp(a).sum(-1, keepdims=True))


@quick
@given(outputs(), st.floats(0, 1), st.floats(-2, 2))
def test_tet_is_its_equation(data, lamb, phi):
    o, y = data
    T, N, K = o.shape
    expected = []
    for n in range(N):
        entropy = np.mean([-log_softmax(o[t, n].numpy())[y[n]] for t in range(T)])
        expected.append(
            (1 - lamb) * entropy
            + lamb * np.mean([(o[t, n, k].item() - phi) ** 2 for t in range(T) for k in range(K)])
        )
    np.testing.assert_allclose(
        tet_loss(o, y, lamb=lamb, phi=phi, reduction="none"), expected, rtol=1e-9, atol=1e-9
    )


@quick
@given(outputs())
def test_tet_without_the_second_term_bounds_the_mean(data):
    o, y = data
    each, mean = tet_loss(o, y, lamb=0.0, reduction="none"), mean_loss(o, y, reduction="none")
    assert (each >= mean - 1e-9).all()
    same = o[:1].expand_as(o)
    torch.testing.assert_close(tet_loss(same, y, lamb=0.0), mean_loss(same, y))


@quick
@given(outputs())
def test_one_step_is_cross_entropy_for_all_that_take_logits(data):
    o, y = data
    for loss in (mean_loss, membrane_loss, partial(tet_loss, lamb=0.0)):
        for reduction in ("mean", "sum", "none"):
            torch.testing.assert_close(
                loss(o[:1], y, reduction=reduction), F.cross_entropy(o[0], y, reduction=reduction)
            )


@quick
@given(outputs(spikes=True))
def test_rate_loss_counts_spikes(data):
    s, y = data
    T, N, K = s.shape
    expected = [
        np.mean(
            [(s[:, n, k].sum().item() / T - (0.9 if k == y[n] else 0.1)) ** 2 for k in range(K)]
        )
        for n in range(N)
    ]
    np.testing.assert_allclose(
        rate_loss(s, y, right=0.9, wrong=0.1, reduction="none"), expected, atol=1e-12
    )
    perfect = F.one_hot(y, K).double().expand(T, N, K)
    assert rate_loss(perfect, y).item() == 0


@quick
@given(outputs(), st.sampled_from(LOSSES))
def test_time_order_does_not_matter_and_reductions_agree(data, loss):
    o, y = data
    turned = o.flip(0)
    torch.testing.assert_close(loss(o, y), loss(turned, y))
    each = loss(o, y, reduction="none")
    assert each.shape == y.shape
    torch.testing.assert_close(each.mean(), loss(o, y))
    torch.testing.assert_close(each.sum(), loss(o, y, reduction="sum"))


def test_membrane_gradient_reaches_the_peak_alone():
    v = torch.tensor([[[0.0, 5.0]], [[3.0, 1.0]], [[1.0, 2.0]]], requires_grad=True)
    membrane_loss(v, torch.tensor([0])).backward()
    assert (v.grad != 0).nonzero().tolist() == [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize("loss", LOSSES)
def test_refusals(loss):
    o, y = torch.randn(3, 4, 5), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="per_step"):
        loss(o[0], y)
    with pytest.raises(
        ValueError, match="y is a tensor, shape .2., int64; expected a tensor .4. of integers"
    ):
        loss(o, y[:2])
    with pytest.raises(ValueError, match="y is a tensor, shape .4., float32; expected"):
        loss(o, y.float())
    with pytest.raises(ValueError, match="reduction is 'avg'"):
        loss(o, y, reduction="avg")


@pytest.mark.parametrize("settings", [dict(lamb=-0.1), dict(lamb=1.1), dict(lamb=math.nan)])
def test_tet_refuses_shares_outside_the_unit_interval(settings):
    with pytest.raises(ValueError, match="lamb is"):
        tet_loss(torch.randn(2, 3, 4), torch.zeros(3, dtype=torch.int64), **settings)


@pytest.mark.parametrize("right, wrong", [(0.5, 0.5), (0.2, 0.4), (1.5, 0.0), (1.0, -0.1)])
def test_rate_loss_refuses_impossible_rates(right, wrong):
    with pytest.raises(ValueError, match="expected rates"):
        rate_loss(torch.zeros(2, 3, 4), torch.zeros(3, dtype=torch.int64), right=right, wrong=wrong)


def toy():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 3
    x = 0.1 * torch.randn(60, 1, 6, 6, generator=generator)
    for k in range(3):
        x[y == k, :, 2 * k : 2 * k + 2] += 1
    return x, y


@pytest.mark.parametrize(
    "name, loss",
    [
        ("rate", mean_loss),
        ("rate", partial(tet_loss, lamb=0.01)),
        ("spike", rate_loss),
        ("membrane", membrane_loss),
    ],
)
def test_fit_learns_with_every_loss_and_counts_the_mean(name, loss):
    seed_everything(1)
    net = spiking_convnet(LIF, classes=3, T=3, width=4)
    net.readout = {
        "rate": lambda: RateReadout(64, 3),
        "spike": lambda: SpikeReadout(64, 3, LIF),
        "membrane": lambda: MembraneReadout(64, 3),
    }[name]()
    net.per_step = True
    history = fit(net, toy(), toy(), epochs=8, lr=1e-2, batch_size=20, loss=loss)
    x, y = toy()
    with torch.no_grad():
        out = net.eval()(x)
    assert out.shape == (3, 60, 3)
    found = evaluate(net, (x, y), batch_size=7, loss=loss)
    assert found["accuracy"] == pytest.approx((out.mean(0).argmax(1) == y).double().mean().item())
    assert found["loss"] == pytest.approx(loss(out, y, reduction="none").mean().item(), rel=1e-5)
    assert found["accuracy"] > 0.9 and found["loss"] < history.rows[0]["train_loss"]


def test_logits_without_time_are_counted_as_before():
    x, y = torch.randn(50, 4), torch.randint(3, (50,))
    linear = nn.Linear(4, 3)
    assert evaluate(linear, (x, y))["accuracy"] == pytest.approx(
        (linear(x).argmax(1) == y).double().mean().item()
    )


@quick
@given(st.integers(1, 6), st.integers(1, 4), st.floats(0.05, 1.0), st.integers(0, 10**6))
def test_steps_of_the_readouts(T, N, decay, seed):
    torch.manual_seed(seed)
    x = torch.randn(T, N, 5, dtype=torch.float64)
    rate, membrane, firing = (
        RateReadout(5, 3).double(),
        MembraneReadout(5, 3, decay=decay).double(),
        SpikeReadout(5, 3, LIF).double(),
    )
    torch.testing.assert_close(rate.steps(x).mean(0), rate(x))
    v, walked = torch.zeros(N, 3, dtype=torch.float64), []
    for x_t in x:
        v = decay * v + membrane.linear(x_t)
        walked.append(v)
    torch.testing.assert_close(membrane.steps(x), torch.stack(walked))
    torch.testing.assert_close(membrane.steps(x)[-1], membrane(x))
    torch.testing.assert_close(
        firing(x), lif(torch.stack([firing.linear(x_t) for x_t in x]))[0].mean(0)
    )


@quick
@given(
    st.integers(2, 5),
    st.integers(2, 4),
    st.floats(0.1, 2.0),
    st.sampled_from([1.0, 0.5**0.5, 0.0]),
    st.integers(0, 10**6),
)
def test_tdbn_statistics_by_hand(T, N, v_th, alpha, seed):
    torch.manual_seed(seed)
    x = 3 + 2 * torch.randn(T, N, 3, 4, 4, dtype=torch.float64)
    got = over_time(tdbn(3, v_th, alpha).double(), x)
    for c in range(3):
        values = x[:, :, c].numpy()
        expected = alpha * v_th * (values - values.mean()) / np.sqrt(values.var() + 1e-5)
        np.testing.assert_allclose(
            got[:, :, c].detach(), expected, rtol=1e-6, atol=1e-6
        )  # the scale is stored in float32


def test_conv_norm_draws_as_before_whatever_alpha():
    weights = []
    for alpha in (1.0, 0.5):
        torch.manual_seed(3)
        weights.append(conv_norm(2, 4, alpha=alpha))
    torch.testing.assert_close(weights[0][0].weight, weights[1][0].weight, rtol=0, atol=0)
    assert weights[0][1].weight.unique().tolist() == [0.5] and weights[1][
        1
    ].weight.unique().tolist() == [0.25]
    assert list(weights[0].state_dict()) == [
        "0.weight",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    ]


@pytest.mark.parametrize("loss", LOSSES)
def test_labels_that_are_no_class_are_refused_and_any_integers_taken(loss):
    o, y = torch.rand(3, 4, 5), torch.tensor([0, 1, 2, 4])
    for wrong in (y + 1, y - 1, torch.full((4,), -100)):
        with pytest.raises(
            ValueError,
            match=r"y lies in \[-?\d+, -?\d+\]; expected labels in \[0, 4\], one of 5 classes",
        ):
            loss(o, wrong)
    for dtype in (torch.int32, torch.uint8, torch.int16):
        assert loss(o, y.to(dtype)).equal(loss(o, y))
    for wrong in (y.bool(), y.tolist(), y.numpy(), None):
        with pytest.raises(TypeError, match="y is .*; expected a tensor .4. of integers"):
            loss(o, wrong)
    for wrong in (o.transpose(0, 1), o[None], o[:0], o[:, :0], o[..., :0]):
        with pytest.raises(ValueError, match="expected a tensor"):
            loss(wrong, y)
    for wrong in (o.long(), o.numpy(), None):
        with pytest.raises(
            TypeError, match=r"expected a tensor \[T, N, classes, ...\] of floating-point numbers"
        ):
            loss(wrong, y)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_count_in_float32(loss, dtype):
    o, y = (
        (torch.rand(700, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.6).to(dtype),
        torch.tensor([0, 1, 3]),
    )
    torch.testing.assert_close(loss(o, y), loss(o.float(), y), rtol=0, atol=0)
    torch.testing.assert_close(loss(o, y).double(), loss(o.double(), y), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "call",
    [
        lambda o, y: tet_loss(o, y, lamb=torch.tensor(0.1)),
        lambda o, y: tet_loss(o, y, phi=torch.tensor(1.0)),
        lambda o, y: rate_loss(o, y, right=torch.tensor(1.0)),
        lambda o, y: rate_loss(o, y, wrong="0"),
    ],
)
def test_constants_of_losses_are_plain_numbers(call):
    with pytest.raises(TypeError, match="(lamb|phi|right|wrong) is .*; expected a finite number"):
        call(torch.rand(2, 3, 4), torch.tensor([0, 1, 2]))
