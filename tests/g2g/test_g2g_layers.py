"Layers wired by ensembles: against masks, loops and finite differences; dead weights under every optimiser; what a state dict must not hide."

import copy
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from neurobridge.g2g import (
    EnsembleConv2d,
    EnsembleLinear,
    MaskedLinear,
    Rewirer,
    density,
    ensemble_edges,
    ensemble_mask,
    ensembles,
    er_mask,
    export_bias,
    export_weight,
    intra_fraction,
    to_ensembles,
    to_masked,
)
from neurobridge.g2g.layers import ensemble_linear
from neurobridge.g2g.net import wired_linear

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")
laws = st.fixed_dictionaries({"groups": st.integers(1, 5), "p_intra": st.floats(0.2, 1), "p_inter": st.floats(0, 1), "grouping": st.sampled_from(["index", "random", "mixer"]),
                              "layer": st.integers(0, 2), "seed": st.integers(0, 9), "bias": st.booleans()})  # fmt: skip


def twin_of_gradients(layer):
    twin = copy.deepcopy(layer)
    for p, q in zip(twin.parameters(), layer.parameters(), strict=True):
        p.data = q.grad
    return twin


@settings(max_examples=20, deadline=None)
@given(
    laws, st.integers(3, 6), st.integers(1, 6), st.sampled_from([(7,), (1,), (3, 4), (2, 3, 2), ()])
)
def test_ensembles_are_their_mask(law, a, b, lead):
    "Outputs and all gradients, for inputs of any number of axes, laid out either way in memory."
    layer = EnsembleLinear(a * law["groups"], b * law["groups"], **law).double()
    masked = to_masked(layer)
    x, grad = (
        torch.randn(*lead, a * law["groups"]).double(),
        torch.randn(*lead, b * law["groups"]).double(),
    )
    turned = x.flatten(0, -2).t().contiguous().t().view(x.shape) if x.ndim > 1 else x
    for given_x in (x, turned):
        layer.zero_grad(), masked.zero_grad()
        ours, theirs = (
            given_x.clone(memory_format=torch.preserve_format).requires_grad_(),
            x.clone().requires_grad_(),
        )
        y, z = layer(ours), masked(theirs)
        y.backward(grad), z.backward(grad)
        torch.testing.assert_close(y, z, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)
        gradients = to_masked(twin_of_gradients(layer))
        torch.testing.assert_close(gradients.weight, masked.weight.grad, rtol=1e-10, atol=1e-10)
        if law["bias"]:
            torch.testing.assert_close(gradients.bias, masked.bias.grad, rtol=1e-10, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(laws, st.integers(3, 6), st.integers(1, 6))
def test_there_and_back(law, a, b):
    layer = EnsembleLinear(a * law["groups"], b * law["groups"], **law)
    masked = to_masked(layer)
    again = to_masked(to_ensembles(masked))
    assert torch.equal(again.mask, masked.mask) and torch.equal(again.weight, masked.weight)
    assert masked.edges == layer.weight.numel() and (
        masked.bias is None or torch.equal(again.bias, masked.bias)
    )
    assert torch.equal(export_weight(layer), export_weight(masked))


def test_against_a_loop():
    layer = EnsembleLinear(12, 9, groups=3, p_inter=0.3, grouping="random", seed=4)
    x = torch.randn(5, 12)
    expected = torch.empty(5, 9)
    for o in range(9):
        group, row = divmod(int(layer.place[o]), 3)
        expected[:, o] = layer.bias[group, row] + sum(
            layer.weight[group, row, j] * x[:, i]
            for j, i in enumerate(layer.sources[group].tolist())
        )
    torch.testing.assert_close(layer(x), expected)


def test_derivatives():
    layer = EnsembleLinear(8, 4, groups=2, p_inter=0.5, grouping="mixer", layer=1).double()
    given_to = (torch.randn(3, 8).double().requires_grad_(), layer.weight, layer.bias)

    def run(x, w, b):
        return ensemble_linear(x, w, layer.sources, b, layer.place)

    assert gradcheck(run, given_to) and gradgradcheck(run, given_to)
    masked = MaskedLinear(er_mask(8, 4, 0.4)).double()
    assert gradcheck(
        lambda x, w, b: F.linear(x, w * masked.mask, b), (given_to[0], masked.weight, masked.bias)
    )


OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1), "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True), "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.1), "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, weight_decay=0.1),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMISERS)
def test_dead_weights_stay_dead(name):
    "No gradient, no moments, no decay; and live weights train as they would alone."
    masked = MaskedLinear(ensemble_mask(32, 16, groups=4))
    optimizer = OPTIMISERS[name](masked.parameters())
    start = masked.weight.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        masked(torch.randn(8, 32)).square().sum().backward()
        optimizer.step()
    held = [
        masked.weight,
        masked.weight.grad,
        *(v for v in optimizer.state[masked.weight].values() if torch.is_tensor(v) and v.ndim),
    ]
    assert all((tensor[~masked.mask] == 0).all() for tensor in held) and len(held) > 2
    assert (masked.weight != start)[masked.mask].all()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_both_forms_train_alike(name):
    layer = EnsembleLinear(16, 16, groups=4, p_inter=0.25, grouping="mixer", layer=1).double()
    masked = to_masked(layer)
    pairs = [(net, OPTIMISERS[name](net.parameters())) for net in (layer, masked)]
    for _ in range(10):
        x = torch.randn(8, 16).double()
        for net, optimizer in pairs:
            optimizer.zero_grad()
            (net(x) - x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(to_masked(layer).weight, masked.weight, rtol=1e-9, atol=1e-9)


def test_memory_of_a_training():
    "Parameters, gradients, moments and the wiring itself: at most 27 % of a dense layer's bytes at 25 % density."

    def held(layer):
        optimizer = torch.optim.Adam(layer.parameters())
        layer(torch.randn(2, 1024)).sum().backward()
        optimizer.step()
        tensors = [
            *layer.parameters(),
            *layer.buffers(),
            *(p.grad for p in layer.parameters()),
            *(v for s in optimizer.state.values() for v in s.values()),
        ]
        return sum(t.numel() * t.element_size() for t in tensors)

    assert held(EnsembleLinear(1024, 1024, p_inter=1 / 7)) <= 0.27 * held(nn.Linear(1024, 1024))


def test_layout_goes_from_layer_to_layer():
    net = nn.Sequential(EnsembleLinear(64, 128), nn.ReLU(), EnsembleLinear(128, 64), nn.ReLU())
    out = x = torch.randn(32, 64)
    for module in net:
        out = module(out)
        assert out.stride() == (1, 32)
    assert net(x.view(4, 8, 64)).stride() == (8, 1, 32)


def test_initial_weights_fill_their_range():
    "A neuron that reads k sources starts within 1/sqrt(k), whatever k is; without sources it is its bias."
    mask = torch.zeros(3, 4000, dtype=torch.bool)
    mask[0, :4000:2] = mask[1, :50] = True
    layer = MaskedLinear(mask)
    assert (
        0.97 < layer.weight[0].abs().max() * 2000**0.5 <= 1
        and 0.9 < layer.weight[1].abs().max() * 50**0.5 <= 1
    )
    assert torch.equal(layer(torch.randn(1, 4000))[:, 2], layer.bias[2:])
    spread = (
        EnsembleLinear(64, 1024).weight.detach() * EnsembleLinear(64, 1024).sources.shape[1] ** 0.5
    )
    assert spread.abs().max() <= 1 and abs(spread.std() - 3**-0.5) < 0.01


def test_a_state_dict_carries_the_wiring():
    a, b = (EnsembleLinear(16, 16, groups=4, grouping="random", seed=seed) for seed in (0, 1))
    b.load_state_dict(a.state_dict())
    x = torch.randn(3, 16)
    assert torch.equal(a(x), b(x))
    c, d = (MaskedLinear(er_mask(16, 16, 0.3, seed=seed)) for seed in (0, 1))
    d.load_state_dict(c.state_dict())
    assert torch.equal(c(x), d(x))


GROUPINGS = ("index", "mixer", "random")


@pytest.mark.parametrize("there", GROUPINGS)
@pytest.mark.parametrize("here", GROUPINGS)
def test_groups_travel_with_the_weights(there, here):
    "Outputs, and the share of edges within like groups, are those of the layer that was saved, whatever the order of neurons here."

    def made(grouping, seed):
        ids = [ensembles(16, 4, grouping, 1, side, seed) for side in ("out", "in")]
        masked = MaskedLinear(
            ensemble_mask(16, 16, 4, grouping=grouping, layer=1, seed=seed), ensembles=tuple(ids)
        )
        return (
            EnsembleLinear(16, 16, 4, grouping=grouping, layer=1, seed=seed),
            masked,
            EnsembleConv2d(16, 16, groups=4, grouping=grouping, layer=1, seed=seed),
        )

    for saved, loads in zip(made(there, 1), made(here, 2), strict=True):
        loads.load_state_dict(saved.state_dict())
        x = torch.randn(3, 16, 5, 5) if isinstance(saved, EnsembleConv2d) else torch.randn(3, 16)
        assert torch.equal(saved(x), loads(x))
        if not isinstance(saved, EnsembleConv2d):
            assert intra(loads) == intra(saved) and intra(saved) > 0.4


def intra(layer):
    masked = to_masked(layer) if isinstance(layer, EnsembleLinear) else layer
    return intra_fraction(ensemble_edges(masked.mask, masked.target_groups, masked.source_groups))


def test_state_dicts_without_groups_load():
    "As they were written before groups travelled; and one with groups loads where there were none."
    for layer in (
        EnsembleLinear(16, 16, 4, grouping="random"),
        EnsembleLinear(16, 16, 4),
        MaskedLinear(er_mask(16, 16, 0.3), ensembles=(ensembles(16), ensembles(16))),
    ):
        old = {name: value for name, value in layer.state_dict().items() if "groups" not in name}
        twin = copy.deepcopy(layer)
        twin.load_state_dict(old)
        assert torch.equal(twin.source_groups, layer.source_groups) and torch.equal(
            twin.weight, layer.weight
        )
    bare = MaskedLinear(er_mask(16, 16, 0.3))
    bare.load_state_dict(layer.state_dict())
    assert torch.equal(bare.target_groups, layer.target_groups) and torch.equal(
        bare.source_groups, layer.source_groups
    )


def test_a_state_dict_of_other_widths_changes_no_order():
    layer, x = EnsembleLinear(16, 16, 4, grouping="mixer", layer=1, bias=False), torch.randn(3, 16)
    before = layer(x)
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer.load_state_dict(EnsembleLinear(16, 16, 4, p_inter=0.5, bias=False).state_dict())
    assert layer.place is not None and torch.equal(layer(x), before)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(["index", "random", "mixer"]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 1),
)
def test_convolutions(groups, a, b, grouping, kernel, stride, padding):
    conv = EnsembleConv2d(
        a * groups,
        b * groups,
        kernel,
        groups,
        1.0,
        0.5,
        grouping=grouping,
        layer=1,
        stride=stride,
        padding=padding,
    ).double()
    dense = torch.zeros(b * groups, a * groups, kernel, kernel).double()
    for o, row in enumerate(conv.place.tolist()):
        for j, i in enumerate(conv.sources[row // b].tolist()):
            dense[o, i] = conv.weight[row, j].detach()
    x = torch.randn(2, a * groups, 5, 6).double().requires_grad_()
    by_hand = F.conv2d(x, dense, conv.bias[conv.place], stride, padding)
    out = torch.randn_like(by_hand)
    grads = []
    for narrow in (0, a * groups + 1):  # ensemble by ensemble, and as one dense convolution
        with patch("neurobridge.g2g.layers._NARROW", narrow):
            y = conv(x)
        torch.testing.assert_close(y, by_hand)
        grads.append(torch.autograd.grad(y, (x, *conv.parameters()), out))
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(grads[0][0], torch.autograd.grad(by_hand, x, out)[0])


@pytest.mark.filterwarnings("ignore:Sparse")
def test_exports_multiply_alike():
    layer, x = EnsembleLinear(64, 32, p_inter=0.25), torch.randn(4, 64)
    for form in (
        export_weight(layer, "csr"),
        export_weight(layer, "bsr"),
        export_weight(layer, "bsr", (2, 2)),
    ):
        torch.testing.assert_close(
            form.to_dense() @ x.t() + layer.bias.flatten()[:, None], layer(x).t()
        )
    assert (
        export_weight(layer, "bsr").values().shape == (layer.weight.numel() // 4, 4, 1)
        and not export_weight(layer).requires_grad
    )


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_the_export_recipe_is_right_for_every_form(grouping, bias):
    "Weight and bias in a plain nn.Linear give the same outputs, whatever the order of neurons inside."
    forms = [
        wired_linear(16, 32, form, 4, grouping=grouping, layer=1, bias=bias, seed=3)
        for form in ("masked", "ensembles", "er")
    ]
    for layer in [*forms, to_masked(forms[1]), to_ensembles(to_masked(forms[1]))]:
        plain, x = nn.Linear(16, 32, bias), torch.randn(5, 16)
        plain.load_state_dict(
            {"weight": export_weight(layer)} | ({"bias": export_bias(layer)} if bias else {})
        )
        torch.testing.assert_close(plain(x), layer(x))
        assert torch.equal(export_weight(layer, "csr").to_dense(), plain.weight) and (
            bias or export_bias(layer) is None
        )


@settings(max_examples=20, deadline=None)
@given(laws, st.integers(3, 6), st.integers(1, 6), st.booleans(), st.booleans(), st.booleans())
def test_conversions_keep_all_that_a_layer_is(law, a, b, training, frozen, half):
    "Data type, training mode, what is frozen, and which neuron is in which ensemble."
    layer = EnsembleLinear(a * law["groups"], b * law["groups"], **law).train(training)
    layer.weight.requires_grad_(not frozen)
    layer = layer.bfloat16() if half else layer
    back = to_ensembles(to_masked(layer))
    for found in (to_masked(layer), back):
        assert (
            found.weight.dtype == layer.weight.dtype
            and found.training == training
            and found.weight.requires_grad is not frozen
        )
        assert found.bias is None or found.bias.requires_grad
        assert intra(found) == intra(layer) and found.edges == layer.edges == layer.weight.numel()
    assert len(back.sources) == law["groups"] and torch.equal(
        back.source_groups, layer.source_groups
    )


def test_ensembles_found_in_a_mask_without_groups_have_no_groups():
    "Their numbers say nothing about sources, so a share within like groups would be invented."
    masked = MaskedLinear(to_masked(EnsembleLinear(16, 16, 4)).mask)
    found = to_ensembles(masked)
    assert (
        found.source_groups is None
        and to_masked(found).target_groups is None
        and torch.equal(to_masked(found).mask, masked.mask)
    )
    optimizer = torch.optim.SGD(found.parameters(), lr=0.1)
    rewirer = Rewirer(found, optimizer, every=1, fraction=0.5)
    found(torch.randn(3, 16)).sum().backward()
    optimizer.step()
    assert "intra" not in rewirer.table() and rewirer.table().moved.sum() > 0


def test_an_edge_is_a_source_and_a_target():
    "The number of edges has one meaning in all forms: multiplications an input costs, or kernels."
    layer, conv = (
        EnsembleLinear(16, 32, 4, p_inter=0.25),
        EnsembleConv2d(16, 32, groups=4, p_inter=0.25),
    )
    assert (
        layer.edges
        == to_masked(layer).edges
        == int(layer.fan_out.sum())
        == conv.edges
        == int(conv.fan_out.sum())
    )
    assert f"{layer.edges:,} edges" in repr(layer) and f"{layer.edges:,} edges" in repr(
        to_masked(layer)
    )


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_an_optimiser_that_mixes_weights_changes_no_output_by_dead_ones():
    masked = MaskedLinear(ensemble_mask(32, 16, groups=4))
    optimizer, x = torch.optim.Muon([masked.weight], lr=0.01), torch.randn(8, 32)
    masked(x).square().sum().backward()
    optimizer.step()
    assert (masked.weight[~masked.mask] != 0).any()
    torch.testing.assert_close(masked(x), x @ export_weight(masked).t() + masked.bias)
    assert (export_weight(masked)[~masked.mask] == 0).all()


LAYERS = {
    "MaskedLinear": lambda: MaskedLinear(er_mask(8, 8, 0.5)),
    "EnsembleLinear": lambda: EnsembleLinear(8, 8, 2, p_inter=0),
    "EnsembleConv2d": lambda: EnsembleConv2d(8, 8, groups=2, p_inter=0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_all_layers_refuse_the_same_inputs(name):
    "Too wide, too narrow, no numbers, no tensor, on no device, and images without a batch."
    layer, more = LAYERS[name](), (5, 5) if name == "EnsembleConv2d" else ()
    wrong = [torch.randn(1, 16, *more), torch.randn(1, 4, *more), torch.ones(1, 8, *more, dtype=torch.long), torch.ones(1, 8, *more, dtype=torch.cfloat), [1.0] * 8,
             torch.randn(1, 8, *more, device="meta"), torch.randn(())] + ([torch.randn(8, 16, 5), torch.randn(1, 1, 8, 5, 5), torch.randn(1, 8, 2, 2)] if more else [])  # fmt: skip
    for x in wrong:
        with pytest.raises((TypeError, ValueError), match=rf"{name}: x "):
            layer(x)
    assert layer(torch.randn(2, 8, *more)).shape[:2] == (2, 8)


def test_the_function_refuses_what_the_layer_would():
    layer = EnsembleLinear(8, 8, 2, grouping="mixer", layer=1)
    good = {
        "x": torch.randn(3, 8),
        "weight": layer.weight,
        "sources": layer.sources,
        "bias": layer.bias,
        "place": layer.place,
    }
    assert torch.equal(ensemble_linear(**good), layer(good["x"]))
    wrong = {
        "x": torch.randn(3, 4),
        "weight": layer.weight[0],
        "sources": layer.sources - 1,
        "bias": layer.bias.flatten(),
        "place": layer.place + 1,
    }
    for name, value in wrong.items():
        with pytest.raises(
            (TypeError, ValueError),
            match=f"ensemble_linear: .*{'sources' if name == 'x' else name}",
        ):
            ensemble_linear(**good | {name: value})


@pytest.mark.parametrize("name", LAYERS)
def test_checks_do_not_stand_in_the_way_of_tracing(name):
    layer, x = LAYERS[name](), torch.randn(4, 8, *((5, 5) if name == "EnsembleConv2d" else ()))
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))
    batch = torch.stack([x, x + 1])
    torch.testing.assert_close(
        torch.vmap(layer)(batch), torch.stack([layer(each) for each in batch])
    )


@pytest.mark.parametrize("call", [to_masked, to_ensembles, export_weight, export_bias])
def test_conversions_refuse_other_layers(call):
    others = [nn.Linear(4, 4), nn.Linear, "layer", None]
    if call in (to_masked, to_ensembles):
        others += [EnsembleConv2d(8, 8)]
    for layer in others:
        with pytest.raises(TypeError, match=f"{call.__name__}: (layer|masked) is"):
            call(layer)


def test_autocast_and_empty_batches():
    layer = EnsembleLinear(16, 16, groups=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(torch.randn(4, 16))
    assert y.dtype == torch.bfloat16 and layer(torch.randn(0, 16)).shape == (0, 16)


def test_what_is_no_layer():
    wrong = [lambda: MaskedLinear(torch.ones(3, 3)), lambda: MaskedLinear(torch.ones(3, dtype=torch.bool)), lambda: EnsembleLinear(10, 16), lambda: EnsembleLinear(16, 10),
             lambda: EnsembleLinear(16, 16)(torch.randn(2, 17)), lambda: to_ensembles(MaskedLinear(er_mask(16, 16, 0.4))), lambda: export_weight(EnsembleLinear(16, 16), "coo"),
             lambda: to_ensembles(MaskedLinear(torch.zeros(4, 4, dtype=torch.bool))), lambda: EnsembleLinear(8, 8, p_intra=0, p_inter=0)]  # fmt: skip
    for call in wrong:
        with pytest.raises((TypeError, ValueError)):
            call()
    assert density() == pytest.approx(0.25625)


@pytest.mark.parametrize("grouping", ["index", "mixer"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_few_inputs_are_computed_as_many(grouping, bias, dtype):
    "Below 16 inputs each is a row: same outputs and gradients, in every shape of the inputs."
    torch.manual_seed(0)
    layer = EnsembleLinear(24, 16, 4, p_inter=1 / 3, grouping=grouping, layer=1, bias=bias)
    layer = layer.to(dtype)
    many, grad = torch.randn(40, 24, dtype=dtype), torch.randn(40, 16, dtype=dtype)
    dense = F.linear(many, layer.dense_weight(), layer.dense_bias())
    close = dict(rtol=1e-10, atol=1e-10) if dtype == torch.float64 else dict(rtol=0.02, atol=0.05)
    for shape in ((0,), (1,), (15,), (16,), (3, 5), (2, 0), (2, 4, 5), ()):
        n = torch.Size(shape).numel()
        x = many[:n].view(*shape, 24).clone().requires_grad_()
        out = layer(x)
        assert out.shape == (*shape, 16)
        torch.testing.assert_close(out, dense[:n].view(*shape, 16), **close)
        found = torch.autograd.grad(out, [x, *layer.parameters()], grad[:n].view(*shape, 16))
        padded = torch.zeros_like(grad)
        padded[:n] = grad[:n]  # forty inputs take the other way
        all_x = many.clone().requires_grad_()
        expected = torch.autograd.grad(layer(all_x), [all_x, *layer.parameters()], padded)
        torch.testing.assert_close(found[0].view(n, 24), expected[0][:n], **close)
        for ours, theirs in zip(found[1:], expected[1:], strict=True):
            torch.testing.assert_close(ours, theirs, **close)


def test_what_traces_a_layer_gets_one_way_for_every_number_of_inputs():
    layer = EnsembleLinear(24, 16, 4, p_inter=1 / 3).eval()
    few, many = torch.randn(3, 24), torch.randn(40, 24)
    dynamic = {"x": {0: torch.export.Dim.DYNAMIC}}
    for made in (
        torch.jit.trace(layer, few),
        torch.export.export(layer, (few,), dynamic_shapes=dynamic).module(),
    ):
        for x in (few, many):
            torch.testing.assert_close(made(x), layer(x), rtol=1e-5, atol=1e-5)
