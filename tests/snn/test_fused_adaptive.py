"The kernel of adaptive neurons against their step-wise form: every setting, type and layout; when it runs, and what it refuses."

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fused import LAYOUTS, SURROGATES, close, laid_out, needs_compiler
from torch import nn

from neurobridge.core import compiled
from neurobridge.snn import AdaptiveLIF, atan
from neurobridge.snn.kernels import cpu, fused_adaptive

pytestmark = [pytest.mark.usefixtures("same_numbers", "one_thread"), needs_compiler]


@st.composite
def cases(draw):
    sizes = st.one_of(st.integers(1, 5), st.integers(1, 60))
    neurons = draw(st.lists(sizes, min_size=1, max_size=3))
    if draw(st.integers(0, 9)) == 0:
        neurons = [draw(st.integers(1000, 5000))]
    each = [n if draw(st.booleans()) else 1 for n in neurons]
    constants = st.sampled_from(["number", tuple(each), tuple(each[1:])])
    return {
        "shape": (draw(st.integers(1, 15)), *neurons),
        "layouts": [draw(st.sampled_from(LAYOUTS)) for _ in range(2)],
        "dtype": draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])),
        "constants": [draw(constants) for _ in range(4)],
        "learned": draw(st.booleans()),
        "started": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
        "kinds": {
            "reset": draw(st.sampled_from(["hard", "soft"])),
            "detach_reset": draw(st.booleans()),
            "surrogate": draw(st.sampled_from(SURROGATES)),
        },
    }


def outcome(case, backend):
    "Return spikes and state, and the gradients of all that has one."
    gen = torch.Generator().manual_seed(case["seed"])
    shape, dtype = case["shape"], case["dtype"]
    state = torch.promote_types(dtype, torch.float32)
    x, g = (laid_out(shape, layout, dtype, gen) for layout in case["layouts"])
    if backend == "reference":  # half precision is for what is stored, not for what is computed
        x, g = x.to(state), g.to(state)
    given_constants = []
    for form, (low, span) in zip(
        case["constants"], ((0.2, 0.7), (0.3, 0.7), (0.1, 0.5), (0.3, 0.6)), strict=True
    ):
        some = low + span * torch.rand(() if form == "number" else form, generator=gen)
        given_constants.append(some.item() if form == "number" else some.to(state))
    learned = ("learn_decay", "learn_threshold", "learn_rise")
    layer = AdaptiveLIF(
        *given_constants,
        backend=backend,
        **case["kinds"],
        **dict.fromkeys(learned, case["learned"]),
    ).to(state)
    start = [torch.rand(shape[1:], generator=gen).to(state) for _ in range(2)]
    last = [torch.randn(shape[1:], generator=gen).to(state) for _ in range(2)]
    leaves = [x.detach().requires_grad_(), *(each.requires_grad_() for each in start)]
    given_state = dict(zip(("membrane", "rise"), leaves[1:], strict=True))
    spikes, left = layer(leaves[0], given_state if case["started"] else None, True)
    leaves = [*leaves[: 3 if case["started"] else 1], *layer.parameters()]
    grads = torch.autograd.grad([spikes, left["membrane"], left["rise"]], leaves, [g, *last])
    return [spikes.detach(), left["membrane"].detach(), left["rise"].detach()], grads


@settings(max_examples=150, deadline=None)
@given(cases())
def test_equals_the_steps(case):
    (ours, our_grads), (theirs, their_grads) = outcome(case, "fused"), outcome(case, "reference")
    assert ours[0].dtype == our_grads[0].dtype == case["dtype"]
    for a, b in zip(ours, theirs, strict=True):
        assert a.to(b.dtype).equal(b)
    assert len(our_grads) == len(their_grads) == 1 + 2 * case["started"] + 4 * case["learned"]
    state = torch.promote_types(case["dtype"], torch.float32)
    neurons = math.prod(case["shape"][1:])
    for place, (a, b) in enumerate(zip(our_grads, their_grads, strict=True)):
        summed = neurons / max(1, b.numel())  # over how many neurons, in another order
        dtype = state if place else case["dtype"]
        close(a.to(b.dtype), b, (1 + summed**0.5) * b.abs().max(), dtype)


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: s.name)
def test_gradients_to_one_part_in_a_million(reset, surrogate):
    x = torch.randn(16, 8, 512)
    found = []
    for backend in ("fused", "reference"):
        layer = AdaptiveLIF(0.5, 1.0, 0.2, 0.9, reset, surrogate, learn_rise=True, backend=backend)
        leaves = [x.requires_grad_(), *layer.parameters()]
        out = layer(x)
        found.append((out.detach(), *torch.autograd.grad(out, leaves, torch.cos(x.detach()))))
    (ours, *our_grads), (theirs, *their_grads) = found
    assert ours.equal(theirs) and 0.05 < ours.mean() < 0.5
    (gx, *_), (same, *_) = our_grads, their_grads
    assert (gx - same).norm() <= 1e-6 * same.norm()
    for a, b in zip(our_grads[1:], their_grads[1:], strict=True):  # sums over 4,096 neurons
        torch.testing.assert_close(a, b, rtol=2e-4, atol=1e-6 * same.abs().sum().item())


class Calls:
    "Counts the calls of the kernel."

    def __init__(self, monkeypatch):
        self.count, before = 0, fused_adaptive.kernel

        def counted(*arguments):
            self.count += 1
            return before(*arguments)

        monkeypatch.setattr(fused_adaptive, "kernel", counted)


@pytest.mark.parametrize(
    ("settings_", "dtype", "expected"),
    [
        ({}, torch.float32, 1),
        ({"backend": "fused", "learn_rise": True}, torch.bfloat16, 1),
        ({"v_th": torch.full((8,), 0.5)}, torch.float64, 1),
        ({"backend": "torch"}, torch.float32, 0),
        ({"backend": "reference"}, torch.float32, 0),
        ({"synapses": nn.Linear(8, 8)}, torch.float32, 0),
        ({}, torch.float16, 0),
    ],
)
def test_one_call_where_the_kernel_serves(monkeypatch, settings_, dtype, expected):
    calls, layer = Calls(monkeypatch), AdaptiveLIF(**settings_)
    layer(torch.randn(30, 2, 8).to(dtype))
    assert calls.count == expected


def test_an_own_derivative_runs_step_by_step_and_says_so(monkeypatch):
    from neurobridge.snn.kernels import operator

    operator._say_once.cache_clear()
    calls, x = Calls(monkeypatch), torch.randn(6, 2, 8, requires_grad=True)
    layer = AdaptiveLIF(surrogate=lambda u: 1 / (1 + u.abs()) ** 2)
    with pytest.warns(RuntimeWarning, match="own surrogate.*runs in plain torch") as said:
        layer(x).sum().backward()
        layer(x).sum().backward()
    assert len(said) == 1 and calls.count == 0 and x.grad.abs().sum() > 0


def test_transforms_compilation_and_tracing():
    layer, x = AdaptiveLIF(0.9, surrogate=atan()), torch.randn(6, 2, 8)
    expected = torch.autograd.grad(layer(x.requires_grad_()).sum(), x)[0]
    found = torch.func.grad(lambda x: layer(x).sum())(x.detach())
    torch.testing.assert_close(found, expected)
    torch._dynamo.reset()
    whole = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(whole(x).sum(), x)[0], expected)
    assert torch.jit.trace(layer, x.detach())(x.detach()).equal(layer(x.detach()))


def test_a_graph_kept_twice_and_one_of_a_gradient():
    x = torch.randn(6, 2, 8, requires_grad=True)
    out = AdaptiveLIF(surrogate=atan())(x)
    first, second = (torch.autograd.grad(out.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert first.equal(second) and first.abs().sum() > 0
    with pytest.raises(RuntimeError, match="gradient of a gradient; use backend='reference'"):
        torch.autograd.grad(out.sum(), x, create_graph=True)
    y = x * 1
    out = AdaptiveLIF()(y)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_not_finite(value, reset):
    for t in (0, 3):
        x = torch.rand(5, 2, 19)
        x[t, 1, 7] = value
        with pytest.raises(ValueError, match=f"first at time step {t} "):
            AdaptiveLIF(reset=reset)(x)
    state = {"membrane": torch.full((2, 19), value), "rise": torch.zeros(2, 19)}
    with pytest.raises(ValueError, match="NaN or infinity"):
        AdaptiveLIF(reset=reset)(torch.rand(5, 2, 19), state)


def test_constants_that_training_has_spoilt():
    layer, x = AdaptiveLIF(learn_rise=True, learn_threshold=True), torch.rand(5, 2, 19)
    for name, value, said in (
        ("rise_log", torch.nan, "rise lies in"),
        ("rise_log", 200.0, "rise lies in"),
        ("rise_decay_logit", -200.0, "rise_decay lies in"),
        ("v_th_log", torch.nan, "v_th lies in"),
    ):
        spoilt = AdaptiveLIF(learn_rise=True, learn_threshold=True)
        nn.init.constant_(getattr(spoilt, name), value)
        with pytest.raises(ValueError, match=said):
            spoilt(x)
    low = {"membrane": torch.zeros(2, 19), "rise": torch.full((2, 19), -0.6)}
    with pytest.raises(ValueError, match="v_th.*lies in"):
        layer(x, low)


@pytest.mark.parametrize("threads", [1, 2])
def test_large_outputs_and_threads(threads):
    "Above the size from which outputs are streamed past the cache."
    x, g = torch.randn(8, 150_008), torch.randn(8, 150_008)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = []
        for backend in ("fused", "reference"):
            y = x.clone().requires_grad_()
            out = AdaptiveLIF(0.7, backend=backend)(y)
            found.append((out.detach(), torch.autograd.grad(out, y, g)[0]))
    finally:
        torch.set_num_threads(before)
    assert found[0][0].equal(found[1][0])
    assert (found[0][1] - found[1][1]).norm() <= 1e-6 * found[1][1].norm()


def test_portable_flags_give_the_same_bits(monkeypatch):
    x = torch.randn(7, 3, 111)
    expected = AdaptiveLIF(reset="soft")(x)
    monkeypatch.setattr(compiled, "_EXTRAS", (("-fopenmp",), ()))
    program = cpu.for_dtype(fused_adaptive.ADAPTIVE_PROGRAM, torch.float32)
    library = compiled._load(program)
    monkeypatch.setattr(fused_adaptive, "kernel", lambda *_: library)
    assert AdaptiveLIF(reset="soft")(x).equal(expected)
