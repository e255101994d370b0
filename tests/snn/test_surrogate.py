"""Surrogates: every bump against the derivative of the smooth step it pretends to be, its area, its peak; the spike and its dtype."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurobridge.snn import (
    LIF,
    Surrogate,
    atan,
    fast_sigmoid,
    gaussian,
    lif,
    rectangle,
    sigmoid,
    triangle,
)
from neurobridge.snn.kernels.fused_norm import norm_lif
from neurobridge.snn.surrogate import spike

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")

DTYPES = [torch.float32, torch.float64, torch.bfloat16]

sizes = st.floats(0.1, 10)
surrogates = st.one_of(
    st.builds(rectangle, sizes),
    st.builds(triangle, sizes),
    st.builds(atan, sizes),
    st.builds(sigmoid, sizes),
    st.builds(fast_sigmoid, sizes),
    st.builds(gaussian, sizes, st.floats(-3, 3)),
)
defaults = pytest.mark.parametrize(
    "g",
    [rectangle(), triangle(), atan(), sigmoid(), fast_sigmoid(), gaussian(), gaussian(0.3, 0.2)],
    ids=str,
)


def center(g):
    return g.constants[1] if g.name == "gaussian" else 0.0


def step(g, u):
    "The smooth step from 0 to 1 whose slope the bump is said to be."
    a = g.constants[0]
    match g.name:
        case "rectangle":
            return (u / a + 0.5).clamp(0, 1)
        case "triangle":
            below, above = torch.relu(u + a), torch.relu(a - u)
            return torch.where(u < 0, below**2 / (2 * a**2), 1 - above**2 / (2 * a**2))
        case "atan":
            return torch.arctan(math.pi / 2 * a * u) / math.pi + 0.5
        case "sigmoid":
            return 1 / (1 + torch.exp(-a * u))
        case "fast_sigmoid":
            return (a * u / (1 + a * u.abs()) + 1) / 2
        case "gaussian":
            return torch.special.ndtr((u - g.constants[1]) / a)


def test_the_page_defaults():
    assert rectangle().constants == rectangle(1).constants == (1.0,) and triangle().constants == (
        1.0,
    )
    assert (
        atan().constants == (2.0,)
        and sigmoid().constants == (4.0,)
        and gaussian().constants == (1.0, 0.0)
    )


@settings(deadline=None)
@given(surrogates, st.lists(st.floats(-20, 20), min_size=1, max_size=50))
def test_each_is_the_slope_of_its_step(g, points):
    u = torch.tensor(points, dtype=torch.float64)
    if g.name == "rectangle":
        u = u[(u.abs() - g.constants[0] / 2).abs() > 1e-9]
    u.requires_grad_()
    (slope,) = torch.autograd.grad(step(g, u).sum(), u)
    torch.testing.assert_close(g(u.detach()), slope, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(surrogates)
def test_area_is_one(g):
    "Over the whole line, by the midpoint rule in an angle whose tangent is u."
    n = 40_000
    angle = (torch.arange(n, dtype=torch.float64) + 0.5) / n * math.pi - math.pi / 2
    u = torch.tan(angle)
    assert (g(u) * (1 + u**2)).sum().item() * math.pi / n == pytest.approx(1, abs=2e-3)


@settings(deadline=None, max_examples=50)
@given(surrogates)
def test_symmetric_about_the_centre_and_falling_from_there(g):
    distance = torch.linspace(0, 15, 2001, dtype=torch.float64)
    right, left = g(center(g) + distance), g(center(g) - distance)
    far = (distance - g.constants[0] / 2).abs() > 1e-9
    torch.testing.assert_close(right[far], left[far], rtol=1e-9, atol=1e-12)
    assert (right.diff() <= 1e-12).all() and (right >= 0).all()
    a = g.constants[0]
    peak = {
        "rectangle": 1 / a,
        "triangle": 1 / a,
        "atan": a / 2,
        "sigmoid": a / 4,
        "fast_sigmoid": a / 2,
        "gaussian": 1 / (a * math.sqrt(2 * math.pi)),
    }[g.name]
    assert (
        right[0].item()
        == pytest.approx(peak, rel=1e-12)
        == g(torch.linspace(-15, 15, 3001, dtype=torch.float64)).max().clamp_min(peak).item()
    )


def test_where_the_box_and_the_tent_end():
    u = torch.tensor([-1.0, -0.5, -0.4999, 0.0, 0.4999, 0.5, 1.0])
    assert rectangle()(u).tolist() == [0, 0, 1, 1, 1, 0, 0] and rectangle(2.0)(u).tolist() == [
        0,
        0.5,
        0.5,
        0.5,
        0.5,
        0.5,
        0,
    ]
    torch.testing.assert_close(
        triangle()(u), torch.tensor([0.0, 0.5, 0.5001, 1.0, 0.5001, 0.5, 0.0])
    )


@defaults
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_shape_and_layout_are_kept(g, dtype):
    for u in (
        torch.zeros((), dtype=dtype),
        torch.zeros(0, 3, dtype=dtype),
        torch.randn(4, 3, dtype=dtype).T,
        torch.randn(6, dtype=dtype)[::2],
    ):
        assert g(u).dtype == dtype and g(u).shape == u.shape
        u = u.detach().requires_grad_()
        s = spike(u, g)
        s.sum().backward()
        assert s.dtype == u.grad.dtype == dtype and s.shape == u.grad.shape == u.shape
        torch.testing.assert_close(u.grad, g(u.detach()), rtol=0, atol=0)


@defaults
def test_extreme_distances_give_numbers(g):
    for dtype in DTYPES:
        found = g(torch.tensor([-1e30, -1e4, 1e4, 1e30], dtype=dtype))
        assert found.isfinite().all() and (found.abs() < 1e-6).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_spike_is_strictly_above(dtype):
    tiny = torch.finfo(dtype).tiny
    u = torch.tensor([-math.inf, -1, -tiny, -0.0, 0.0, tiny, 1, math.inf, math.nan], dtype=dtype)
    assert spike(u).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 0]


@defaults
def test_what_comes_from_above_is_passed_through(g):
    u = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    weight = torch.linspace(-3, 5, 41, dtype=torch.float64)
    (spike(3 * u, g) * weight).sum().backward()
    torch.testing.assert_close(u.grad, 3 * weight * g(3 * u.detach()))
    assert not spike(u.detach(), g).requires_grad


@pytest.mark.parametrize(
    "make, name",
    [
        (rectangle, "width"),
        (triangle, "width"),
        (atan, "alpha"),
        (sigmoid, "alpha"),
        (fast_sigmoid, "alpha"),
        (gaussian, "sigma"),
    ],
)
@pytest.mark.parametrize("value", [0, 0.0, -1.0, math.nan, math.inf, -math.inf])
def test_bad_constants_are_refused_where_they_are_written(make, name, value):
    with pytest.raises(
        ValueError, match=f"{make.__name__}: {name} is {value:g}; expected a finite number above 0"
    ):
        make(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_centre_nowhere_is_refused(value):
    with pytest.raises(ValueError, match=f"center is {value}"):
        gaussian(1.0, value)


@given(surrogates)
def test_a_surrogate_is_a_value(g):
    for other in (copy.deepcopy(g), pickle.loads(pickle.dumps(g)), Surrogate(g.name, g.constants)):
        assert (
            other == g and hash(other) == hash(g) and other(torch.ones(3)).equal(g(torch.ones(3)))
        )
    assert rectangle() != triangle() and rectangle() != rectangle(2)
    with pytest.raises(AttributeError):
        g.name = "atan"


@pytest.mark.parametrize("name, constants, error, said", [
    ("tent", (1.0,), ValueError, "Surrogate: name is 'tent'; expected one of 'rectangle'"),
    (None, (1.0,), TypeError, "name is None"),
    ("atan", (1.0, 2.0), TypeError, r"constants is \(1.0, 2.0\); expected a tuple \(alpha\)"),
    ("gaussian", (1.0,), TypeError, r"expected a tuple \(sigma, center\)"),
    ("atan", 2.0, TypeError, "constants is 2.0"),
    ("atan", (torch.tensor(2.0),), TypeError, "alpha is a tensor"),
    ("rectangle", (0.0,), ValueError, "width is 0"),
])  # fmt: skip
def test_an_impossible_surrogate_is_refused_when_it_is_made(name, constants, error, said):
    with pytest.raises(error, match=said):
        Surrogate(name, constants)


def test_what_is_no_surrogate_is_refused():
    for wrong in ("atan", Surrogate, None, 2.0):
        with pytest.raises(TypeError, match="spike: surrogate is .*; expected a Surrogate or a"):
            spike(torch.zeros(2), wrong)
    with pytest.raises(TypeError, match="derivative 'own atan' failed on distances"):
        spike(torch.zeros(2), atan)  # not called
    with pytest.raises(TypeError, match="no subclasses"):

        class Own(Surrogate):
            pass


@defaults
def test_the_spike_can_be_transformed(g):
    u = torch.linspace(-2, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(lambda u: spike(u, g)))(u), g(u))
    torch.testing.assert_close(
        torch.func.jvp(lambda u: spike(u, g), (u,), (3 * u,))[1], 3 * u * g(u)
    )


def slow_fall(u, floor):
    return floor + 1 / (1 + u.abs()).square()


OWN = Surrogate("slow_fall", (0.25,), slow_fall)


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.filterwarnings("ignore:lif. the backward pass of an own surrogate")
def test_an_own_surrogate_has_the_same_gradients_on_every_backend(reset, detach):
    torch.manual_seed(0)
    x = torch.randn(7, 3, 40)

    def results(surrogate, backend):
        leaf = x.clone().requires_grad_()
        out, v = lif(leaf, 0.7, 0.5, reset, surrogate, detach, backend=backend)
        return out.detach(), torch.autograd.grad((out * x).sum() + v.sum(), leaf)[0]

    for own in (OWN, lambda u: slow_fall(u, 0.25)):
        out, grad = results(own, "reference")
        for backend in ("auto", "torch", "fused"):
            out_b, grad_b = results(own, backend)
            torch.testing.assert_close(out_b, out, rtol=0, atol=0)
            torch.testing.assert_close(grad_b, grad, rtol=1e-5, atol=1e-5 * grad.abs().max().item())
    same = Surrogate("same", (), triangle(0.7))  # a built-in one as if it were an own one
    torch.testing.assert_close(results(same, "auto"), results(triangle(0.7), "auto"))


def test_the_fallback_is_said_once():
    x = torch.randn(3, 20, requires_grad=True)
    own = Surrogate("said once", (), lambda u: 1 / (1 + u.square()))
    with pytest.warns(
        RuntimeWarning, match="own surrogate .'said once'. runs in plain torch"
    ) as all_of:
        for _ in range(3):
            lif(x, surrogate=own)[0].sum().backward()
    assert len(all_of) == 1


@pytest.mark.filterwarnings("ignore:lif. the backward pass of an own surrogate")
def test_an_own_surrogate_works_in_a_compiled_model_a_transform_a_copy_and_behind_a_norm():
    x = torch.randn(4, 2, 16)
    layer = LIF(surrogate=OWN)
    expected = torch.func.grad(lambda x: layer(x).sum())(x)
    leaf = x.clone().requires_grad_()
    torch.compile(layer, fullgraph=True, backend="aot_eager")(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, expected)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert again.surrogate == OWN
        torch.testing.assert_close(
            torch.func.grad(lambda x, again=again: again(x).sum())(x), expected
        )
    norm = torch.nn.BatchNorm1d(16)
    leaf = x.clone().requires_grad_()
    norm_lif(leaf, norm, layer).sum().backward()
    one = leaf.grad.clone()
    leaf = x.clone().requires_grad_()
    layer(norm(leaf.flatten(0, 1)).unflatten(0, (4, 2))).sum().backward()
    torch.testing.assert_close(one, leaf.grad)


@pytest.mark.parametrize("function, error, said", [
    (lambda u: u.sum(), TypeError, "returns a tensor of value 0"),
    (lambda u: 1.0, TypeError, "returns 1.0"),
    (lambda u: u.double(), TypeError, "in the same type"),
    (lambda u: 1 / u, ValueError, "NaN or infinity"),
    (lambda u: (u > 0).float(), ValueError, "returns spikes"),
    (lambda u, k: u * k, TypeError, "failed on distances"),
    (torch.nn.ReLU, TypeError, "expected a Surrogate or a function"),
    ("fast_sigmoid", TypeError, "surrogate is 'fast_sigmoid'"),
])  # fmt: skip
def test_what_cannot_be_a_derivative_is_refused_when_the_layer_is_made(function, error, said):
    with pytest.raises(error, match=said):
        LIF(surrogate=function)


def test_names_and_constants_of_own_surrogates():
    with pytest.raises(ValueError, match="name is 'atan' with a derivative"):
        Surrogate("atan", (), slow_fall)
    with pytest.raises(TypeError, match="slow_fall: constants.0. is 'a'"):
        Surrogate("slow_fall", ("a",), slow_fall)
    here, there = LIF(surrogate=OWN), LIF(surrogate=Surrogate("slow_fall", (0.5,), slow_fall))
    with pytest.raises(ValueError, match="surrogate = .*0.5"):
        here.load_state_dict(there.state_dict())
    assert OWN != there.surrogate


def test_snntorchs_fast_sigmoid():
    snntorch = pytest.importorskip("snntorch", reason="pip install snntorch")
    u = torch.linspace(-1, 1, 41, requires_grad=True)
    theirs = snntorch.surrogate.fast_sigmoid(25)
    (slope,) = torch.autograd.grad(theirs(u).sum(), u)
    torch.testing.assert_close(slope, 2 / 25 * fast_sigmoid(25.0)(u.detach()))
    with pytest.raises(ValueError, match="returns spikes"):
        LIF(surrogate=theirs)
