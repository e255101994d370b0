"""The neuron against other people's numbers, against a simulation and its backpropagation written by hand in NumPy, and against itself in pieces."""

import copy
import math
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurobridge.snn import LIF, atan, fast_sigmoid, gaussian, lif, rectangle, sigmoid, triangle
from neurobridge.snn.kernels.operator import BACKENDS, state_dtype

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")

GOLDEN = Path(__file__).parents[1] / "golden" / "lif_seed0.npz"
SURROGATES = [
    rectangle(),
    rectangle(0.6),
    triangle(0.8),
    atan(),
    sigmoid(),
    fast_sigmoid(),
    gaussian(0.5, 0.2),
]
backends = pytest.mark.parametrize(
    "backend", [name for name in BACKENDS if name != "triton"]
)  # Triton on a CPU: tests/snn/test_triton.py


def slope(g, u):
    a = g.constants[0]
    match g.name:
        case "rectangle":
            return np.where(np.abs(u) < a / 2, 1 / a, 0)
        case "triangle":
            return np.maximum(0, a - np.abs(u)) / a**2
        case "atan":
            return a / (2 * (1 + (np.pi * a * u / 2) ** 2))
        case "fast_sigmoid":
            return a / 2 / (1 + a * np.abs(u)) ** 2
        case "sigmoid":
            return a / (2 + np.exp(a * u) + np.exp(-a * u))
        case "gaussian":
            return np.exp(-((u - g.constants[1]) ** 2) / (2 * a**2)) / (a * np.sqrt(2 * np.pi))


def simulate(x, decay, v_th, reset, v0):
    "Give h and s of every step, and v before the first and after every step."
    h, s, v = np.empty_like(x), np.empty_like(x), [v0]
    for t in range(len(x)):
        h[t] = decay * v[-1] + x[t]
        s[t] = h[t] > v_th
        v.append(np.where(s[t] == 1, 0.0 if reset == "hard" else h[t] - v_th, h[t]))
    return h, s, np.array(v)


def backpropagate(h, s, v, decay, v_th, reset, g, detach, output, grad_out, grad_v):
    "Walk back through the steps; give the gradients for x, for the decay of each neuron, and for v0."
    dx, ddecay, dv = np.empty_like(h), np.zeros_like(grad_v), grad_v
    for t in reversed(range(len(h))):
        dh = dv * (1 - s[t]) if reset == "hard" else dv.copy()
        ds = np.zeros_like(dv) if detach else dv * (-h[t] if reset == "hard" else -v_th)
        if output == "spike":
            ds = ds + grad_out[t]
        else:
            dh = dh + grad_out[t]
        dx[t] = dh + ds * slope(g, h[t] - v_th)
        ddecay = ddecay + dx[t] * v[t]
        dv = dx[t] * decay
    return dx, ddecay, dv


def summed_to(gradient, shape):
    "Undo broadcasting."
    gradient = gradient.sum(tuple(range(gradient.ndim - len(shape))))
    return gradient.sum(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)


def laid_out(array, layout):
    "Give a tensor of equal values that is not contiguous."
    tensor = torch.from_numpy(array)
    if layout == "transposed":
        return (
            tensor.permute(*reversed(range(tensor.ndim)))
            .contiguous()
            .permute(*reversed(range(tensor.ndim)))
        )
    if layout == "strided":
        return torch.stack([tensor, torch.full_like(tensor, math.nan)], -1)[..., 0]
    if layout == "time last":
        return tensor.movedim(0, -1).contiguous().movedim(-1, 0)
    return tensor


@st.composite
def cases(draw):
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
    per_neuron = draw(st.booleans())
    return dict(
        seed=draw(st.integers(0, 2**32 - 1)),
        steps=draw(st.integers(1, 12)),
        shape=shape,
        decay_shape=tuple(n if draw(st.booleans()) else 1 for n in shape)[
            draw(st.integers(0, len(shape))) :
        ]
        if per_neuron
        else None,
        v_th=draw(st.sampled_from([0.5, 1.0, 0.3])),
        reset=draw(st.sampled_from(["hard", "soft"])),
        surrogate=draw(st.sampled_from(SURROGATES)),
        detach_reset=draw(st.booleans()),
        output=draw(st.sampled_from(["spike", "membrane"])),
        start=draw(st.booleans()),
        layout=draw(st.sampled_from(["plain", "transposed", "strided", "time last"])),
        end=draw(st.booleans()),
    )


@backends
@settings(deadline=None, max_examples=200)
@given(case=cases())
def test_the_neuron_equals_a_simulation_by_hand(backend, case):
    rng, shape = np.random.default_rng(case["seed"]), case["shape"]
    x = rng.normal(0.2, 0.6, (case["steps"], *shape))
    decay = (
        rng.uniform(0.05, 1, case["decay_shape"])
        if case["decay_shape"] is not None
        else rng.choice([0.25, 0.9, 1.0])
    )
    v0 = rng.normal(0, 0.5, shape) if case["start"] else np.zeros(shape)
    grad_out, grad_v = rng.normal(size=x.shape), rng.normal(size=shape) * case["end"]
    law = {name: case[name] for name in ("v_th", "reset")}
    h, s, v = simulate(x, decay, **law, v0=v0)
    kind = dict(g=case["surrogate"], detach=case["detach_reset"], output=case["output"])
    dx, ddecay, dv0 = backpropagate(h, s, v, decay, **law, **kind, grad_out=grad_out, grad_v=grad_v)

    tx = laid_out(x, case["layout"]).requires_grad_()
    tdecay = (
        torch.tensor(decay, requires_grad=True) if case["decay_shape"] is not None else float(decay)
    )
    tv0 = torch.tensor(v0, requires_grad=True) if case["start"] else None
    given = {name: case[name] for name in ("v_th", "reset", "surrogate", "detach_reset", "output")}
    out, last = lif(tx, tdecay, **given, v0=tv0, backend=backend)
    assert out.dtype == last.dtype == torch.float64 and out.shape == x.shape and last.shape == shape
    if case["output"] == "spike":
        np.testing.assert_array_equal(out.detach(), s)
    else:
        np.testing.assert_allclose(out.detach(), h, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(last.detach(), v[-1], rtol=1e-12, atol=1e-14)

    ((out * torch.tensor(grad_out)).sum() + (last * torch.tensor(grad_v)).sum()).backward()
    np.testing.assert_allclose(tx.grad, dx, rtol=1e-5, atol=1e-10)
    if case["decay_shape"] is not None:
        np.testing.assert_allclose(
            tdecay.grad, summed_to(ddecay, case["decay_shape"]), rtol=1e-5, atol=1e-9
        )
    if case["start"]:
        np.testing.assert_allclose(tv0.grad, dv0, rtol=1e-5, atol=1e-10)


# Other people's numbers

PIPE_S = dict(decay=0.25, v_th=0.5, reset="hard", surrogate=rectangle(), detach_reset=True)
SPIKINGJELLY = dict(decay=0.5, v_th=1.0, surrogate=atan(2.0))
PEERS = {"pipes": PIPE_S} | {
    f"sj_{reset}{'_detach' * detach}": SPIKINGJELLY | dict(reset=reset, detach_reset=detach)
    for reset in ("hard", "soft")
    for detach in (False, True)
}


@backends
def test_every_golden_number(backend):
    golden, used = np.load(GOLDEN), set()

    def kept(name):
        used.add(name)
        return torch.from_numpy(golden[name])

    for size in ("T6", "T17"):
        x, grad_out = kept(f"{size}.x"), kept(f"{size}.grad_out")
        for peer, law in PEERS.items():
            leaf = x.clone().requires_grad_()
            spikes, last = lif(leaf, **law, backend=backend)
            spikes.backward(grad_out)
            torch.testing.assert_close(
                spikes.detach(), kept(f"{size}.{peer}.spikes"), rtol=0, atol=0
            )
            torch.testing.assert_close(
                leaf.grad, kept(f"{size}.{peer}.grad_x"), rtol=1e-5, atol=1e-6
            )
            if peer == "pipes":
                h, _ = lif(x, **law, output="membrane", backend=backend)
                torch.testing.assert_close(h, kept(f"{size}.pipes.membrane"), rtol=1e-6, atol=1e-7)
            else:
                after = kept(f"{size}.{peer}.v_after")
                torch.testing.assert_close(last.detach(), after[-1], rtol=1e-6, atol=1e-6)
                for steps in range(1, len(x)):
                    torch.testing.assert_close(
                        lif(x[:steps], **law, backend=backend)[1],
                        after[steps - 1],
                        rtol=1e-6,
                        atol=1e-6,
                    )
            assert 0.05 < spikes.mean() < 0.95
    assert used == set(golden)


def test_the_defaults_are_the_papers_neuron():
    x = torch.randn(7, 50)
    torch.testing.assert_close(lif(x), lif(x, **PIPE_S), rtol=0, atol=0)
    torch.testing.assert_close(LIF()(x), lif(x, **PIPE_S)[0], rtol=0, atol=0)


# In pieces


@backends
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_streaming_in_any_pieces_is_one_call_to_the_bit(backend, data):
    steps = data.draw(st.integers(1, 20))
    cuts = sorted(data.draw(st.sets(st.integers(1, 19))))
    given = {
        "decay": data.draw(st.sampled_from([0.25, 1.0])),
        "reset": data.draw(st.sampled_from(["hard", "soft"])),
        "output": data.draw(st.sampled_from(["spike", "membrane"])),
        "detach_reset": data.draw(st.booleans()),
        "backend": backend,
    }
    x = torch.from_numpy(
        np.random.default_rng(data.draw(st.integers(0, 999)))
        .normal(0.2, 0.6, (steps, 2, 9))
        .astype(np.float32)
    ).requires_grad_()
    whole, last = lif(x, **given)
    (expected,) = torch.autograd.grad(whole.square().sum() + last.sum(), x)
    pieces, v = [], None
    for piece in torch.tensor_split(x, [cut for cut in cuts if cut < steps]):
        out, v = lif(piece, v0=v, **given)
        pieces.append(out)
    assert torch.cat(pieces).equal(whole) and v.equal(last)
    (found,) = torch.autograd.grad(torch.cat(pieces).square().sum() + v.sum(), x)
    torch.testing.assert_close(found, expected)


@backends
@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.sampled_from(["hard", "soft"]))
def test_no_neuron_knows_another(backend, seed, reset):
    rng = np.random.default_rng(seed)
    x, v0 = (
        torch.from_numpy(rng.normal(0.2, 0.6, (6, 5, 7))).float(),
        torch.from_numpy(rng.normal(size=(5, 7))).float(),
    )
    decay, order = (
        torch.from_numpy(rng.uniform(0.1, 1, 7)).float(),
        torch.from_numpy(rng.permutation(7)),
    )
    run = partial(lif, reset=reset, output="membrane", backend=backend)
    out, last = run(x, decay, v0=v0)
    mixed, mixed_last = run(x[..., order], decay[order], v0=v0[:, order])
    assert mixed.equal(out[..., order]) and mixed_last.equal(last[:, order])
    for n in range(5):
        one, one_last = run(x[:, n : n + 1], decay, v0=v0[n : n + 1])
        assert one.equal(out[:, n : n + 1]) and one_last.equal(last[n : n + 1])
    for t in range(1, 6):
        assert run(x[:t], decay, v0=v0)[0].equal(out[:t])


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtype_is_kept(backend, dtype):
    "The output has the input's; a membrane is kept in float32 at least."
    if backend == "fused" and dtype == torch.float16:
        pytest.skip("no fused kernel for float16; 'auto' takes another backend")
    x = torch.rand(4, 3, dtype=dtype, requires_grad=True)
    for decay in (0.25, torch.full((3,), 0.25, dtype=dtype)):
        out, v = lif(x, decay, v0=torch.zeros(3, dtype=dtype), backend=backend)
        out.sum().backward()
        assert (
            out.dtype == x.grad.dtype == dtype
            and v.dtype == state_dtype(dtype)
            and set(out.unique().tolist()) <= {0.0, 1.0}
        )


@backends
def test_inputs_are_not_changed(backend):
    x, v0, decay = torch.rand(5, 3), torch.rand(3), torch.rand(3)
    before = [t.clone() for t in (x, v0, decay)]
    out, v = lif(x, decay, v0=v0, backend=backend)
    out += 1
    v += 1
    assert all(a.equal(b) for a, b in zip(before, (x, v0, decay), strict=True))


@backends
def test_no_neurons_at_all(backend):
    out, v = lif(torch.zeros(3, 0, 4), backend=backend)
    assert out.shape == (3, 0, 4) and v.shape == (0, 4)


def test_at_the_threshold_there_is_silence():
    out, v = lif(torch.tensor([[0.5], [0.375]]), decay=0.25)
    assert out.tolist() == [[0.0], [0.0]] and v.tolist() == [0.5]


# Errors


@backends
@pytest.mark.parametrize("change, error, said", [
    ({"x": torch.ones(4, 3, dtype=torch.int64)}, TypeError, r"x is a tensor.*int64; expected a tensor .* floating-point numbers; x.float\(\)"),
    ({"x": torch.ones(4, 3, dtype=torch.uint8)}, TypeError, "uint8"),
    ({"x": torch.ones(4, 3, dtype=torch.bool)}, TypeError, "bool"),
    ({"x": torch.tensor(1.0)}, ValueError, r"shape \(\); expected \[T, ...\]"),
    ({"x": torch.ones(0, 3)}, ValueError, r"shape \(0, 3\).*at least one time step"),
    ({"decay": 0.0}, ValueError, "decay is 0; expected a finite number above 0 and at most 1"),
    ({"decay": -0.5}, ValueError, "decay is -0.5"),
    ({"decay": 1.5}, ValueError, "decay is 1.5"),
    ({"decay": math.nan}, ValueError, "nan"),
    ({"decay": torch.tensor([0.5, 1.01, 0.2])}, ValueError, r"\[0.2, 1.01\]"),
    ({"decay": torch.tensor([0.5, 0.0, 0.2])}, ValueError, r"\[0, 0.5\]"),
    ({"decay": torch.tensor([0.5, math.nan, 0.2])}, ValueError, "nan"),
    ({"v_th": 0.0}, ValueError, "v_th is 0; expected a finite number above 0"),
    ({"v_th": -1.0}, ValueError, "v_th is -1"),
    ({"v_th": math.nan}, ValueError, "v_th is nan"),
    ({"reset": "zero"}, ValueError, "reset is 'zero'; expected one of 'hard', 'soft'"),
    ({"output": "spikes"}, ValueError, "output is 'spikes'; expected one of 'spike', 'membrane'"),
    ({"backend": "cuda"}, ValueError, "backend is 'cuda'; expected one of 'auto', 'reference'"),
    ({"v0": torch.zeros(2)}, ValueError, r"v0 has shape \(2,\); expected \(3,\)"),
    ({"v0": torch.zeros(1)}, ValueError, r"v0 has shape \(1,\)"),
    ({"v0": torch.zeros(3, 1)}, ValueError, r"v0 has shape \(3, 1\)"),
    ({"v0": torch.zeros(4, 3)}, ValueError, r"v0 has shape \(4, 3\)"),
    ({"v0": torch.zeros(())}, ValueError, r"v0 has shape \(\)"),
])  # fmt: skip
def test_wrong_input_is_refused(backend, change, error, said):
    with pytest.raises(error, match=said):
        lif(**{"x": torch.ones(4, 3), "backend": backend, **change})


@backends
@pytest.mark.parametrize("shape", [(2, 1), (2, 3), (1, 1, 1, 3), (4,)])
def test_a_decay_that_would_multiply_the_neurons_is_refused(backend, shape):
    with pytest.raises(ValueError, match="decay"):
        lif(torch.ones(4, 3), torch.full(shape, 0.5), backend=backend)


# The module


def test_the_module_is_the_function():
    x, v0 = torch.randn(6, 4), torch.randn(4)
    for law in (
        {},
        {"decay": 0.9, "v_th": 0.3, "reset": "soft", "surrogate": atan(), "detach_reset": False},
        {"backend": "reference"},
    ):
        layer = LIF(**law)
        leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        out, v = layer(leaf, v0, return_state=True)
        expected, expected_v = lif(other, v0=v0, **law)
        (out.sum() + v.sum()).backward()
        (expected.sum() + expected_v.sum()).backward()
        assert out.equal(expected) and v.equal(expected_v) and leaf.grad.equal(other.grad)
        assert layer(x).equal(layer(x)) and list(layer.state_dict()) == ["_extra_state"]


@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_analogue_output_is_a_leaky_relu_of_the_membrane(reset):
    x = np.random.default_rng(0).normal(0, 0.6, (6, 50))
    h, _, v = simulate(x, 0.25, 0.5, reset, np.zeros(50))
    out, last = LIF(output="analogue", reset=reset)(torch.from_numpy(x), return_state=True)
    np.testing.assert_allclose(out, np.where(h > 0, h, 0.2 * h), rtol=1e-12)
    np.testing.assert_allclose(last, v[-1], rtol=1e-12)
    assert (h > 0.5).any() and (h < 0).any()


@pytest.mark.parametrize("start", [0.01, 0.25, 0.99])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_learned_decay_stays_between_0_and_1(start, sign):
    layer, x = LIF(decay=start, learn_decay=True, output="analogue"), torch.rand(5, 20) * 0.3
    assert (
        list(layer.state_dict()) == ["decay_logit", "_extra_state"]
        and layer.state_dict()["decay_logit"].shape == ()
    )
    assert torch.sigmoid(layer.decay_logit).item() == pytest.approx(start, rel=1e-5)
    torch.testing.assert_close(layer(x), LIF(decay=start, output="analogue")(x))
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(20):
        optimizer.zero_grad()
        (sign * layer(x).sum()).backward()
        assert layer.decay_logit.grad.isfinite()
        optimizer.step()
    decay = torch.sigmoid(layer.decay_logit).item()
    assert 0 < decay < 1 and (decay < start if sign > 0 else decay > start)


def test_copies_and_pickles_are_equal_and_separate():
    x = torch.randn(6, 8)
    for layer in (
        LIF(surrogate=gaussian(0.5, 0.2), reset="soft"),
        LIF(learn_decay=True, output="analogue"),
    ):
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert (
                other(x).equal(layer(x))
                and other.settings == layer.settings
                and repr(other) == repr(layer)
            )
            for parameter in other.parameters():
                parameter.data.fill_(3.0)
            assert all(parameter.item() != 3 for parameter in layer.parameters())
    learned = LIF(decay=0.7, learn_decay=True)
    fresh = LIF(learn_decay=True)
    fresh.load_state_dict(learned.state_dict())
    assert fresh(x).equal(learned(x))


def test_repr_tells_the_settings():
    assert repr(LIF()) == "LIF(decay=0.25, v_th=0.5, reset='hard', output='spike')"
    assert (
        repr(LIF(0.9, 1.0, "soft", output="analogue", learn_decay=True))
        == "LIF(learned decay, v_th=1.0, reset='soft', output='analogue')"
    )


@pytest.mark.parametrize("given, said", [
    ({"output": "membrane"}, "LIF: output is 'membrane'; expected one of 'spike', 'analogue'"),
    ({"decay": 1.0, "learn_decay": True}, "LIF: decay is 1.0; a learned decay starts strictly between 0 and 1"),
    ({"decay": 0.0, "learn_decay": True}, "LIF: decay is 0; expected a finite number above 0 and at most 1"),
    ({"decay": math.nan, "learn_decay": True}, "LIF: decay is nan"),
    ({"decay": 0.0}, "LIF: decay is 0; expected"),
    ({"decay": 1.1}, "LIF: decay is 1.1"),
    ({"v_th": 0.0}, "LIF: v_th is 0"),
    ({"reset": "none"}, "reset is 'none'"),
    ({"backend": "fastest"}, "backend is 'fastest'"),
])  # fmt: skip
def test_a_wrong_neuron_is_refused_when_it_is_made(given, said):
    with pytest.raises(ValueError, match=said):
        LIF(**given)


def test_a_state_of_another_batch_is_refused():
    layer = LIF()
    _, v = layer(torch.rand(3, 8, 5), return_state=True)
    with pytest.raises(
        ValueError, match=r"v0 has shape \(8, 5\); expected \(4, 5\).*another batch size"
    ):
        layer(torch.rand(3, 4, 5), v)


def test_a_layer_among_others_trains_and_moves_dtype():
    net = nn.Sequential(nn.Linear(4, 8), LIF(learn_decay=True), nn.Linear(8, 2)).double()
    net(torch.randn(5, 3, 4, dtype=torch.float64)).sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.dtype == torch.float64
        for p in net.parameters()
    )


# Settings


@backends
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_thresholds_may_be_learned_one_per_neuron_on_every_backend(backend, reset):
    x = torch.randn(8, 3, 5)
    v_th = nn.Parameter(torch.tensor([0.3, 0.5, 0.7, 1.0, 2.0]))
    spikes, v = lif(x, 0.9, v_th, reset, atan(), backend=backend)
    rest = np.zeros((3, 5), np.float32)
    _, s, last = simulate(x.numpy(), 0.9, v_th.detach().numpy(), reset, rest)
    np.testing.assert_array_equal(spikes.detach(), s)
    (spikes.sum() + v.sum()).backward()
    again, v = lif(x, 0.9, v_th.detach().requires_grad_(), reset, atan(), backend="reference")
    for one in (0.5, torch.tensor(0.5), torch.full((5,), 0.5), torch.full((3, 1), 0.5)):
        assert lif(x, 0.9, one, reset, backend=backend)[0].equal(lif(x, 0.9, 0.5, reset)[0])
    theirs = v_th.detach().clone().requires_grad_()
    out, v = lif(x, 0.9, theirs, reset, atan(), backend="reference")
    (out.sum() + v.sum()).backward()
    torch.testing.assert_close(v_th.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    assert v_th.grad.abs().max() > 0 and again.equal(spikes)


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("detach", [True, False])
def test_the_gradient_of_a_threshold_is_that_of_the_loop_in_float64(reset, detach):
    x = torch.randn(9, 4, 40, dtype=torch.float64)
    row = torch.rand(4, 1, dtype=torch.float64) + 0.3

    def grads(backend, output):
        leaves = x, decay, v_th = [a.clone().requires_grad_() for a in (X, row / 2, row)]
        out, v = lif(x, decay, v_th, reset, atan(), detach, output=output, backend=backend)
        loss = (out * X).sum() + v.square().sum()
        return torch.autograd.grad(loss, leaves, materialize_grads=True)

    X = x
    for output in ("spike", "membrane"):
        expected = grads("reference", output)
        for backend in ("fused", "torch"):
            torch.testing.assert_close(grads(backend, output), expected, rtol=1e-12, atol=1e-11)


def test_wrong_thresholds_are_refused_by_the_function():
    x = torch.randn(8, 3, 5)
    for wrong, error, said in (
        (np.array(0.5), TypeError, "v_th is"),
        (torch.ones(4), ValueError, r"v_th has shape \(4,\); expected one that broadcasts"),
        (torch.tensor([1.0, 0, 1, 1, 1]), ValueError, r"v_th lies in \[0, 1\]"),
        (torch.ones(5, dtype=torch.int64), TypeError, "floating-point"),
        (torch.full((5,), math.nan), ValueError, "v_th lies in"),
    ):
        with pytest.raises(error, match=said):
            lif(x, 0.9, wrong)


def test_a_layer_holds_constants_per_channel_learned_or_not():
    decay, v_th = torch.tensor([[0.2], [0.5], [0.9]]), torch.tensor([[0.4], [0.6], [0.8]])
    x = torch.rand(6, 2, 3, 20)
    fixed, learned = LIF(decay, v_th), LIF(decay, v_th, learn_decay=True, learn_threshold=True)
    assert fixed(x).equal(lif(x, decay, v_th)[0]) and list(fixed.parameters()) == []
    learned(x).sum().backward()
    assert learned.v_th_log.grad.shape == learned.decay_logit.grad.shape == (3, 1)
    torch.testing.assert_close((learned.decay, learned.v_th), (decay, v_th))
    again = LIF(torch.full((3, 1), 0.1), torch.ones(3, 1))
    again.load_state_dict(fixed.state_dict())
    assert again(x).equal(fixed(x)) and copy.deepcopy(fixed)(x).equal(fixed(x))
    fixed.v_th = torch.ones(3, 1)
    assert fixed(x).equal(lif(x, decay, 1.0)[0])
    for layer, value in ((fixed, torch.ones(2, 1)), (LIF(), torch.ones(3, 1))):
        with pytest.raises(ValueError, match="build another"):
            layer.v_th = value
    with pytest.raises(AttributeError, match="v_th is learned here; layer.v_th_log.data"):
        learned.v_th = 1.0
    with pytest.raises(TypeError, match="learn_threshold=True trains it"):
        LIF(v_th=nn.Parameter(v_th))
    with pytest.raises(ValueError, match="v_th = 'a tensor .* there, 0.5 here"):
        LIF(decay).load_state_dict(LIF(decay, v_th).state_dict(), strict=False)


def test_spikingjellys_plif_and_snntorchs_learned_thresholds():
    jelly = pytest.importorskip("spikingjelly.activation_based", reason="pip install spikingjelly")
    snn = pytest.importorskip("snntorch", reason="pip install snntorch")
    from spikingjelly.activation_based import neuron, surrogate

    assert jelly
    x = torch.randn(20, 4, 30)
    theirs = neuron.ParametricLIFNode(
        2.0, False, 1.0, surrogate_function=surrogate.ATan(), detach_reset=True, step_mode="m"
    )
    ours = LIF(0.5, 1.0, "hard", atan(), learn_decay=True)
    outs = theirs(x), ours(x)
    torch.testing.assert_close(outs[1], outs[0], rtol=0, atol=0)
    for out in outs:
        (out * x).sum().backward()
    torch.testing.assert_close(ours.decay_logit.grad, -theirs.w.grad, rtol=1e-4, atol=1e-4)
    x, v_th = torch.rand(20, 4, 30) * 0.7, torch.rand(30) + 0.5
    node = snn.Leaky(beta=0.5, threshold=v_th.clone(), learn_threshold=True, reset_delay=False)
    membrane, spikes = torch.zeros(4, 30), []
    for x_t in x:
        s, membrane = node(x_t, membrane)
        spikes.append(s)
    ours = LIF(0.5, v_th, "soft")
    torch.testing.assert_close(ours(x), torch.stack(spikes), rtol=0, atol=0)


NAMES = {"learn_decay": "decay", "learn_threshold": "v_th"}
WRONG = {
    "decay": [torch.tensor(0), np.array(0.5), "0.5", None, True, 1j, 0, 1.01],
    "v_th": [torch.ones(3).int(), "1", None, math.inf, -1],
    "reset": ["none", None, 1, torch.ones(2)],
    "surrogate": ["atan", LIF, None, 2.0],
    "detach_reset": [1, "no", None],
    "output": ["membrane", None, ["spike"]],
    "backend": ["cuda", None, 0],
}


@pytest.mark.parametrize(
    "name, value", [(name, value) for name, values in WRONG.items() for value in values]
)
def test_a_wrong_setting_is_refused_when_it_is_made_and_when_it_is_set(name, value):
    layer = LIF()
    before = repr(layer), layer.settings
    for call in (lambda: LIF(**{name: value}), lambda: setattr(layer, name, value)):
        with pytest.raises((TypeError, ValueError), match=f"LIF: {name} is "):
            call()
    assert (repr(layer), layer.settings) == before


@pytest.mark.parametrize(
    "name, value",
    [
        ("decay", 0.9),
        ("v_th", 2),
        ("reset", "soft"),
        ("surrogate", atan()),
        ("detach_reset", False),
        ("output", "analogue"),
        ("backend", "reference"),
    ],
)
def test_a_setting_that_is_set_holds(name, value):
    layer, x = LIF(), torch.randn(6, 40, requires_grad=True)
    layer(x)
    setattr(layer, name, value)
    made = LIF(**{name: value})
    assert repr(layer) == repr(made) and layer.settings == made.settings
    found, expected = layer(x), made(x)
    assert found.equal(expected)
    assert torch.autograd.grad(found.sum(), x)[0].equal(torch.autograd.grad(expected.sum(), x)[0])


def test_a_learned_decay_is_set_by_its_parameter_and_read_as_it_is():
    layer = LIF(decay=0.25, learn_decay=True)
    with pytest.raises(AttributeError, match="decay is learned here; layer.decay_logit.data.fill_"):
        layer.decay = 0.1
    layer.decay_logit.data.fill_(math.log(0.9 / 0.1))
    assert layer.decay == pytest.approx(0.9)
    for name in ("learn_decay", "settings"):
        with pytest.raises(AttributeError, match=name):
            setattr(layer, name, True)
    with pytest.raises(TypeError):
        layer.settings["v_th"] = 2.0


@pytest.mark.parametrize(
    "other",
    [
        {"decay": 0.9},
        {"v_th": 1.0},
        {"reset": "soft"},
        {"surrogate": atan()},
        {"surrogate": rectangle(2.0)},
        {"detach_reset": False},
        {"output": "analogue"},
        {"learn_decay": True},
        {"learn_threshold": True},
    ],
)
def test_settings_travel_in_a_state_dict(other, tmp_path):
    from safetensors.torch import load_file, save_file

    def net(**settings):
        return nn.Sequential(nn.Linear(3, 3), LIF(**settings))

    source, same, plain = net(**other), net(**other), net(backend="reference")
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    torch.save(source.state_dict(), tmp_path / "net.pt")
    for state in (
        load_file(tmp_path / "net.safetensors"),
        torch.load(tmp_path / "net.pt", weights_only=True),
    ):
        same.load_state_dict(state)
        assert same[0].weight.equal(source[0].weight)
        with pytest.raises(
            ValueError,
            match=f"{NAMES.get(next(iter(other)), next(iter(other)))} = .* there, .* here",
        ):
            plain.load_state_dict(state, strict=False)
    net().load_state_dict(plain.state_dict())
    net().load_state_dict(
        {
            name: value
            for name, value in plain.state_dict().items()
            if not name.endswith("_extra_state")
        }
    )


# torch.func


@pytest.mark.parametrize(
    "law",
    [{}, {"reset": "soft", "detach_reset": False, "surrogate": atan(), "output": "membrane"}],
    ids=["defaults", "others"],
)
def test_transforms_of_torch_func_equal_the_kernel(law):
    x, decay = (
        torch.randn(6, 4, 3, dtype=torch.float64),
        torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64),
    )

    def loss(x, decay):
        return lif(x, decay, **law)[0].square().sum()

    leaves = [x.clone().requires_grad_(), decay.clone().requires_grad_()]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    for found, right in zip(torch.func.grad(loss, argnums=(0, 1))(x, decay), expected, strict=True):
        torch.testing.assert_close(found, right)
    assert torch.func.vmap(lambda x: lif(x, decay, **law)[0], in_dims=1, out_dims=1)(x).equal(
        lif(x, decay, **law)[0]
    )
    each = torch.func.vmap(lambda decay: lif(x, decay, **law)[0])(torch.stack([decay, decay / 2]))
    assert each[1].equal(lif(x, decay / 2, **law)[0])
    one = x[:, 0]
    rows = torch.func.jacrev(lambda x: lif(x[:, None], 0.9, **law)[0].sum((0, 1)))(one)
    ones = torch.func.jvp(
        lambda x: lif(x[:, None], 0.9, **law)[0].sum((0, 1)), (one,), (torch.ones_like(one),)
    )[1]
    torch.testing.assert_close(rows.sum((1, 2)), ones)


@pytest.mark.parametrize("backend", ["fused", "torch", "triton"])
def test_a_backend_that_cannot_be_transformed_says_which_can(backend):
    with pytest.raises(ValueError, match="torch.func cannot look into; use 'auto' or 'reference'"):
        torch.func.grad(lambda x: lif(x, backend=backend)[0].sum())(torch.rand(3, 2))


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_settings_that_change_hold_in_a_compiled_layer(backend):
    torch._dynamo.reset()  # what other tests compiled counts towards its limit
    layer, x = LIF(backend=backend), torch.randn(5, 3, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for name, value in (
        ("v_th", 0.5),
        ("v_th", 1.0),
        ("reset", "soft"),
        ("decay", 0.9),
        ("surrogate", atan()),
    ):
        setattr(layer, name, value)
        leaves = [x.clone().requires_grad_() for _ in range(2)]
        found, expected = compiled(leaves[0]), layer(leaves[1])
        assert found.equal(expected)
        found.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
