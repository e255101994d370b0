"Batch norm and neurons in one pass: against the layers one after the other, against exact sums, and around the edges."

import copy
import io
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from neurobridge.snn import (
    LIF,
    atan,
    conv_norm,
    fast_sigmoid,
    fire,
    gaussian,
    monitor,
    norm_lif,
    over_time,
    recompute_blocks,
    rectangle,
    sigmoid,
    spiking_convnet,
    spiking_resnet18,
    spiking_vgg,
    triangle,
)
from neurobridge.snn.kernels import cpu as fused
from neurobridge.snn.kernels import fused_norm as normed
from neurobridge.snn.kernels.fused_norm import watched

pytestmark = pytest.mark.skipif(
    not fused.fused_available(torch.zeros(1)), reason="no C compiler here"
)


def one_after_the_other(x, norm, neuron, added=None):
    y = norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return neuron(y if added is None else y + added)


def one_pass(x, norm, neuron, added=None):
    assert normed._fits(x, norm, neuron, added)
    return norm_lif(x, norm, neuron, added)


@st.composite
def cases(draw):
    T, C, dims = draw(st.integers(1, 9)), draw(st.integers(1, 40)), draw(st.integers(0, 3))
    pixels = [draw(st.integers(1, 7)) for _ in range(dims)]
    return {
        "shape": (T, 16 * draw(st.integers(1, 3)), C, *pixels),
        "layout": draw(st.sampled_from(["plain", "last", "gaps", "same every step"])),
        "shortcut": draw(st.booleans()),
        "training": draw(st.booleans()),
        "affine": draw(st.booleans()),
        "momentum": draw(st.sampled_from([0.1, 0.7, None])),
        "track": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
        "grad": draw(st.sampled_from(["plain", "last", "same every step"])),
        "neuron": {
            "reset": draw(st.sampled_from(["hard", "soft"])),
            "detach_reset": draw(st.booleans()),
            "output": draw(st.sampled_from(["spike", "analogue"])),
            "surrogate": draw(
                st.sampled_from(
                    [rectangle(), triangle(), atan(), sigmoid(), fast_sigmoid(), gaussian(0.5, 0.1)]
                )
            ),
            "learn_decay": draw(st.booleans()),
        },
    }


def last_in_memory(x):
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


def build(case, dtype):
    gen = torch.Generator().manual_seed(case["seed"])

    def random(shape=case["shape"]):
        return torch.randn(shape, generator=gen, dtype=dtype)

    kind = {3: nn.BatchNorm1d, 4: nn.BatchNorm1d, 5: nn.BatchNorm2d, 6: nn.BatchNorm3d}[
        len(case["shape"])
    ]
    channels = case["shape"][2]
    norm = kind(
        channels,
        momentum=case["momentum"],
        affine=case["affine"],
        track_running_stats=case["track"],
        dtype=dtype,
    ).train(case["training"])
    with torch.no_grad():
        for values, low in (
            (norm.weight, 0.2),
            (norm.bias, -1),
            (norm.running_mean, -1),
            (norm.running_var, 0.2),
        ):
            if values is not None:
                values.copy_(torch.rand(channels, generator=gen, dtype=dtype) * 2 + low)
    x = {
        "plain": random(),
        "last": last_in_memory(random()),
        "gaps": random((*case["shape"][:-1], 2 * case["shape"][-1]))[..., ::2],
        "same every step": random(case["shape"][1:]).expand(case["shape"]),
    }[case["layout"]]
    x = 2 * x + 1 if case["layout"] in ("plain", "last") else x
    g = {
        "plain": random(),
        "last": last_in_memory(random()),
        "same every step": random(case["shape"][1:]).expand(case["shape"]),
    }[case["grad"]]
    return (
        x,
        random() if case["shortcut"] else None,
        norm,
        LIF(0.4, 0.7, **case["neuron"]).to(dtype),
        g,
    )


def outcome(run, x, added, norm, neuron, g):
    norm, neuron = copy.deepcopy(norm), copy.deepcopy(neuron)
    leaves = [a.detach().requires_grad_() for a in (x, added) if a is not None]
    out = run(leaves[0], norm, neuron, None if added is None else leaves[1])
    grads = torch.autograd.grad(out, leaves + [*norm.parameters(), *neuron.parameters()], g)
    return out.detach(), grads, [b.clone() for b in norm.buffers()]


@settings(max_examples=200, deadline=None)
@given(cases())
def test_equals_the_layers_one_after_the_other(case):
    given_ = build(case, torch.float64)
    out, grads, buffers = outcome(one_pass, *given_)
    ref_out, ref_grads, ref_buffers = outcome(one_after_the_other, *given_)
    assert torch.equal(out > 0, ref_out > 0) and torch.allclose(out, ref_out, rtol=1e-9, atol=1e-9)
    scale = max(g.abs().max().item() for g in ref_grads)
    for a, b in zip(grads, ref_grads, strict=True):
        assert (
            a.shape == b.shape and a.dtype == b.dtype and (a - b).abs().max() <= 1e-9 * (scale + 1)
        )
    for a, b in zip(buffers, ref_buffers, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_float32_against_float64(case):
    x, added, norm, neuron, g = build(
        case | {"neuron": case["neuron"] | {"output": "analogue"}}, torch.float32
    )  # membranes, which don't jump
    neuron.v_th = 1e6  # and no reset
    out, grads, _ = outcome(one_pass, x, added, norm, neuron, g)
    exact = [None if a is None else a.double() for a in (x, added)]
    ref_out, ref_grads, _ = outcome(
        one_after_the_other, *exact, norm.double(), neuron.double(), g.double()
    )
    torch.testing.assert_close(
        out.double(), ref_out, rtol=1e-5, atol=1e-5 * ref_out.abs().max().item()
    )
    assume(
        torch.equal(out > 0, ref_out > 0)
    )  # within a rounding of 0, where the slope jumps, gradients may differ by all of it
    scale = max(b.abs().max().item() for b in ref_grads)
    for a, b in zip(grads, ref_grads, strict=True):
        assert (a.double() - b).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("last", [False, True])
def test_bfloat16_rounds_only_what_is_stored(last):
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(4, 8, 24, 6, 6, generator=gen).bfloat16()
    x, norm, neuron = last_in_memory(x) if last else x, nn.BatchNorm2d(24), LIF(output="analogue")
    out, grads, _ = outcome(one_pass, x, None, norm, neuron, torch.ones_like(x))
    ref_out, ref_grads, _ = outcome(
        one_after_the_other, x.float(), None, norm, neuron, torch.ones(x.shape)
    )
    assert out.dtype == grads[0].dtype == torch.bfloat16 and grads[1].dtype == torch.float32
    torch.testing.assert_close(out.float(), ref_out, rtol=8e-3, atol=1e-3)
    torch.testing.assert_close(grads[1], ref_grads[1], rtol=1e-2, atol=0.5)


@pytest.mark.parametrize("last", [False, True])
def test_the_number_of_threads_does_not_matter(last):
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(4, 16, 24, 14, 14, generator=gen)
    before, answers = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            answers.append(
                outcome(
                    one_pass,
                    last_in_memory(x) if last else x,
                    None,
                    nn.BatchNorm2d(24),
                    LIF(learn_decay=True),
                    x,
                )
            )
    finally:
        torch.set_num_threads(before)
    for other in answers[1:]:
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                [other[0], *other[1], *other[2]],
                [answers[0][0], *answers[0][1], *answers[0][2]],
                strict=True,
            )
        )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 70),
    st.integers(1, 3),
    st.integers(1, 9),
    st.booleans(),
    st.floats(-1e4, 1e4),
    st.integers(0, 1000),
)
def test_moments_against_exact_sums(T, C, n, side, last, offset, seed):
    x = offset + torch.randn(
        T, 16 * n, C, side, side, generator=torch.Generator().manual_seed(seed)
    )
    x = last_in_memory(x) if last else x
    mean, var = normed._moments(x)
    flat = x.transpose(0, 2).flatten(1).double()
    torch.testing.assert_close(mean, flat.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var, flat.var(1, correction=0), rtol=1e-4, atol=1e-6)


def test_statistics_that_stay_are_left_alone():
    norm, x = nn.BatchNorm2d(16).eval(), torch.randn(3, 4, 16, 5, 4)
    before = copy.deepcopy(norm.state_dict())
    one_pass(x, norm, LIF())
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), norm.state_dict().values(), strict=True)
    )


def test_only_what_is_asked_for_has_a_gradient():
    x, norm = torch.randn(3, 4, 16, 5, 4), nn.BatchNorm2d(16)
    one_pass(x, norm, LIF(surrogate=atan())).sum().backward()
    assert norm.weight.grad is not None
    frozen, side = (
        nn.BatchNorm2d(16).requires_grad_(False),
        torch.randn(x.shape, requires_grad=True),
    )
    one_pass(x, frozen, LIF(surrogate=atan()), side).sum().backward()
    assert side.grad.abs().sum() > 0
    with torch.no_grad():
        assert not one_pass(x, norm, LIF()).requires_grad


def test_a_shortcut_that_is_the_input_itself():
    torch.manual_seed(0)
    norm, x = (
        nn.BatchNorm2d(16).double(),
        torch.randn(3, 4, 16, 5, 4, dtype=torch.float64, requires_grad=True),
    )
    (a,) = torch.autograd.grad(one_pass(x, norm, LIF(surrogate=atan()), x).sum(), x)
    (b,) = torch.autograd.grad(one_after_the_other(x, norm, LIF(surrogate=atan()), x).sum(), x)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "change",
    ["relu", "odd size", "group norm", "one value", "reference", "hook", "meta", "other dtype"],
)
def test_what_does_not_fit_runs_one_after_the_other(change):
    torch.manual_seed(0)
    x, norm, neuron, added = torch.randn(3, 4, 16, 5, 4), nn.BatchNorm2d(16), LIF(), None
    if change == "relu":
        neuron = nn.ReLU()
    elif change == "odd size":
        x = torch.randn(3, 1, 5, 5, 5)
        norm = nn.BatchNorm2d(5)
    elif change == "group norm":
        norm = nn.GroupNorm(4, 16)
    elif change == "one value":
        x = torch.randn(1, 1, 16, 1, 1)
        norm.eval()
    elif change == "reference":
        neuron = LIF(backend="reference")
    elif change == "hook":
        norm.register_forward_hook(lambda *_: None)
    elif change == "meta":
        x, norm = x.to("meta"), norm.to("meta")
    elif change == "other dtype":
        added = torch.randn(x.shape, dtype=torch.float64)
    assert change == "one value" or not normed._fits(x, norm, neuron, added)
    out = norm_lif(x, norm, neuron, added)
    assert out.shape == x.shape
    if change != "meta":
        assert torch.equal(out, one_after_the_other(x, norm, neuron, added))


def test_one_value_a_channel_is_refused_in_training_as_torch_does():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm_lif(torch.randn(1, 1, 16, 1, 1), nn.BatchNorm2d(16), LIF())


def test_nan_and_overflow():
    x, norm = torch.randn(4, 2, 16, 3, 4), nn.BatchNorm2d(16).eval()
    for where, value in ((2, float("nan")), (1, float("inf"))):
        bad = x.clone()
        bad[where, 0, 3] = value
        with pytest.raises(ValueError, match=f"NaN or infinity, first at time step {where}"):
            norm_lif(bad, norm, LIF())
    with pytest.raises(ValueError, match="NaN or infinity"):
        norm_lif(torch.where(x > 2, torch.nan, x), nn.BatchNorm2d(16), LIF())
    with pytest.raises(ValueError, match="added holds NaN or infinity"):
        norm_lif(
            x,
            norm,
            LIF(),
            torch.where(torch.arange(4).view(-1, 1, 1, 1, 1) == 3, torch.nan, torch.zeros(x.shape)),
        )


def test_a_gradient_of_a_gradient():
    torch.manual_seed(0)
    x, norm = torch.randn(4, 2, 16, 3, 4, requires_grad=True), nn.BatchNorm2d(16)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        torch.autograd.grad(one_pass(x, norm, LIF(surrogate=atan())).sum(), x, create_graph=True)
    (grad,) = torch.autograd.grad(
        norm_lif(x, norm, LIF(surrogate=atan(), backend="reference")).sum(), x, create_graph=True
    )
    (second,) = torch.autograd.grad(grad.square().sum(), x)
    assert second.abs().sum() > 0


NETS = {
    "vanilla": lambda: spiking_resnet18(in_channels=1, classes=5, T=3, width=16, small_images=True),
    "sew": lambda: spiking_resnet18(
        in_channels=1, classes=5, T=3, width=16, small_images=True, shortcut="sew"
    ),
    "ms": lambda: spiking_resnet18(
        in_channels=1, classes=5, T=3, width=16, small_images=True, shortcut="ms"
    ),
    "convnet": lambda: spiking_convnet(T=3, classes=5),
    "vgg": lambda: spiking_vgg(in_channels=1, classes=5, T=3, width=16),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("last", [False, True])
def test_whole_networks(net, last):
    torch.manual_seed(0)
    model = NETS[net]().double()
    model = model.to(memory_format=torch.channels_last) if last else model
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda *_: None)
    x = torch.randn(4, 1, 32, 32, dtype=torch.float64)
    for m in (model, plain):
        m(x).square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (a.grad - b.grad).abs().max() <= 1e-9 * (1e-3 + b.grad.abs().max()), name
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-9, atol=1e-9)


def test_the_short_way_is_taken(monkeypatch):
    calls = []
    whole = normed._Node.apply
    monkeypatch.setattr(
        normed._Node, "apply", lambda *args: (calls.append(args[0].shape), whole(*args))[1]
    )
    model, x = NETS["vanilla"](), torch.randn(2, 1, 32, 32)
    model(x)
    assert (
        len(calls) == 16
    )  # two in each of eight blocks; the stem's image is normed once, not T times
    with monitor(model) as records:
        model(x)
    assert len(calls) == 16 and len(records) == 17


def test_recomputed_blocks_give_the_same_gradients():
    torch.manual_seed(0)
    model, x = NETS["vanilla"]().double(), torch.randn(2, 1, 32, 32, dtype=torch.float64)
    other = copy.deepcopy(model)
    other.run = recompute_blocks
    for m in (model, other):
        m(x).square().sum().backward()
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-14)


def test_compiled_and_autocast():
    torch.manual_seed(0)
    layer, neuron, spikes = conv_norm(4, 16), LIF(), (torch.rand(3, 2, 4, 8, 8) < 0.4).float()

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.neuron = layer, neuron

        def forward(self, x):
            return fire(x, self.layer, self.neuron)

    model = Layer().eval()
    torch.testing.assert_close(
        torch.compile(model, backend="aot_eager", fullgraph=True)(spikes), model(spikes)
    )
    with torch.autocast("cpu", torch.bfloat16):
        out = fire(spikes, layer, neuron)
    assert out.dtype == torch.bfloat16 and 0 < out.float().mean() < 1


def test_saved_and_copied_like_any_module():
    layer = conv_norm(4, 16)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    again = conv_norm(4, 16)
    again.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(3, 2, 4, 8, 8)
    assert torch.equal(fire(x, layer, LIF()), fire(x, again, LIF()))
    assert not watched(*layer) and torch.equal(over_time(layer[0], x), over_time(again[0], x))


# Who waits for a call


def waiting(layer, how, seen):
    if how == "global hook":
        return torch.nn.modules.module.register_module_forward_hook(
            lambda module, inputs, out: seen.append(module) if module is layer else None
        )
    plain = layer.forward
    layer.forward = lambda *inputs: (seen.append(layer), plain(*inputs))[1]
    return None


@pytest.mark.parametrize("how", ["global hook", "patched forward"])
@pytest.mark.parametrize("which", [0, 1])
def test_hooks_on_all_modules_and_patched_layers_are_called(how, which):
    x, layers, seen = torch.randn(3, 2, 8, 4, 4), (nn.BatchNorm2d(8), LIF()), []
    plain = norm_lif(x, *copy.deepcopy(layers))
    handle = waiting(layers[which], how, seen)
    try:
        found = norm_lif(x, *layers)
    finally:
        if handle is not None:
            handle.remove()
    assert seen == [layers[which]] and (found != plain).sum() < 3


def test_it_can_be_transformed():
    x, norm = torch.randn(3, 2, 8, 4, 4), nn.BatchNorm2d(8).eval()
    leaf = x.clone().requires_grad_()
    norm_lif(leaf, norm, LIF()).sum().backward()
    found = torch.func.grad(lambda x: norm_lif(x, norm, LIF()).sum())(x)
    torch.testing.assert_close(found, leaf.grad)


@pytest.mark.parametrize("given, error, said", [
    ({"x": torch.rand(3, 8)}, ValueError, r"x is .*; expected a tensor \[T, N, C, ...\]"), ({"x": torch.rand(3, 2, 7, 4, 4)}, ValueError, "x has 7 channels on axis 2, norm 8"),
    ({"norm": None}, TypeError, "norm is None"), ({"neuron": LIF}, TypeError, "neuron is the class LIF, not an instance of it"),
    ({"added": torch.full((3, 2, 8, 4, 4), math.nan)}, ValueError, "added holds NaN or infinity"),
])  # fmt: skip
def test_wrong_arguments_are_named(given, error, said):
    with pytest.raises(error, match=f"norm_lif: {said}"):
        norm_lif(
            **{"x": torch.rand(3, 2, 8, 4, 4), "norm": nn.BatchNorm2d(8), "neuron": LIF()} | given
        )
