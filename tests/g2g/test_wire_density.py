"`wire` at a density: groups that fit, layers left alone by name, convolutions, attention; export to plain layers; the table."

import copy
import io
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import neurobridge as nb
from neurobridge.g2g import (
    EnsembleConv2d,
    EnsembleLinear,
    MaskedLinear,
    Rewiring,
    er_mask,
    erk_densities,
    live_parameters,
    sparsity,
    to_linear,
    wire,
)
from neurobridge.g2g.attention import WiredAttention
from neurobridge.g2g.layers import MaskedConv2d

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")
FORMS = ("masked", "ensembles", "er", "erk", "fan_in")


def mlp(*widths):
    parts = []
    for n_in, n_out in zip(widths, widths[1:], strict=False):
        parts += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 48), nn.ReLU(), nn.Linear(48, 10),
    )  # fmt: skip


def transformer(**more):
    block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, **more)
    return nn.Sequential(nn.TransformerEncoder(block, 2), nn.Flatten(), nn.Linear(160, 10))


@settings(max_examples=40)
@given(
    st.sampled_from([64, 96, 100, 120, 300, 512, 784]),
    st.sampled_from([32, 64, 100, 300, 512]),
    st.floats(0.03, 1.0),
    st.sampled_from(["masked", "ensembles", "er", "fan_in"]),
)
def test_a_layer_has_the_density_asked_for(n_in, n_out, density, form):
    "To one source per neuron where the fan-in is shared or constant, to rounding elsewhere."
    model = nn.Sequential(nn.Linear(n_in, n_out), nn.Linear(n_out, 3))
    layer = wire(model, form, density=density)[0]
    step = 1 / n_in if form in ("ensembles", "fan_in") else 2 / (n_in * n_out)
    assert abs(layer.edges / (n_in * n_out) - density) <= step / 2 + 1e-9
    if form in ("ensembles", "fan_in"):
        dense = layer.dense_weight() if form == "ensembles" else layer.mask
        assert len((dense != 0).sum(1).unique()) == 1
    if form == "masked":
        assert len(layer.target_groups.unique()) == len(layer.source_groups.unique()) > 1


def test_groups_fit_each_layer():
    wired, table = wire(mlp(784, 512, 300, 100, 10), density=0.1, report=True)
    groups = [
        len(layer.target_groups.unique()) for layer in wired if isinstance(layer, MaskedLinear)
    ]
    assert groups == [16, 4, 20]  # divisors of both widths, nearest to 2 / 0.1 where p can be 1
    assert table.density[["0", "2", "4"]].sub(0.1).abs().max() < 1e-4
    assert table.note["6"] == "" and "groups 16" in table.note["0"]
    whole = sum(p.numel() for p in mlp(784, 512, 300, 100, 10).parameters())
    assert live_parameters(wired) < 0.11 * whole


def test_what_does_not_fit_is_left_alone_and_said():
    model = mlp(64, 61, 64, 3, 64, 64, 10)
    with pytest.warns(
        UserWarning,
        match=r"left alone: '0' has 64 sources and 61 targets.*'6' is too small: of 3 sources",
    ) as said:
        wired = wire(model, density=0.1)
    assert len(said) == 1 and [isinstance(m, MaskedLinear) for m in wired[::2]] == [False] * 4 + [
        True,
        False,
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wired, table = wire(model, "er", density=0.1, report=True)
        wire(mlp(64, 64, 10), density=0.1)
    assert type(wired[6]) is nn.Linear and torch.equal(wired[6].weight, model[6].weight)
    assert "too small" in table.note["6"] and isinstance(wired[0], MaskedLinear)
    with pytest.raises(ValueError, match="'0' has 64 sources and 61 targets"):
        wire(model, density=0.1, layers=["0"])
    with pytest.raises(ValueError, match="No other layer is left"):
        wire(mlp(61, 64, 10), density=0.1)


def test_settings_that_contradict():
    for more, message in (
        ({"p_inter": 0.1}, "p_inter is 0.1"),
        ({"form": "dense"}, "form is 'dense'"),
    ):
        with pytest.raises(ValueError, match=message):
            wire(mlp(64, 64, 10), density=0.1, **more)
    with pytest.raises(ValueError, match="groups = 7"):
        wire(mlp(64, 64, 10), density=0.1, groups=7, layers=["0"])
    own = wire(mlp(64, 64, 10), density=0.3, groups=4, p_intra=0.5)[0]
    assert len(own.target_groups.unique()) == 4 and abs(own.edges / 4096 - 0.3) < 1e-3


def test_frozen_layers_keep_their_weights():
    model = mlp(64, 64, 64, 10)
    model[0].requires_grad_(False)
    with pytest.warns(UserWarning, match="'0' is frozen"):
        wired = wire(model, density=0.2)
    assert torch.equal(wired[0].weight, model[0].weight) and isinstance(wired[2], MaskedLinear)
    assert not wired[0].weight.requires_grad and wired[2].weight.requires_grad


@pytest.mark.parametrize("form", FORMS)
def test_a_module_used_twice_stays_one(form):
    twice, conv = nn.Linear(64, 64), nn.Conv2d(16, 16, 3, padding=1)
    model = nn.Sequential(conv, conv, nn.Flatten(), twice, nn.ReLU(), twice, nn.Linear(64, 3))
    wired = wire(model, form, density=0.25)
    assert wired[0] is wired[1] and wired[3] is wired[5] and not isinstance(wired[3], nn.Linear)
    plain = to_linear(wired)
    assert plain[0] is plain[1] and plain[3] is plain[5]
    assert len(sparsity(wired)) == len(sparsity(model)) == 4


def test_tied_weights_are_left_alone_by_name():
    model = nn.Sequential(
        nn.Embedding(32, 64), nn.Linear(64, 64), nn.Linear(64, 32), nn.Linear(32, 4)
    )
    model[2].weight = model[0].weight
    with pytest.warns(UserWarning, match="'2' shares its weight or bias with '0'"):
        wired = wire(model, density=0.2)
    assert wired[2].weight is wired[0].weight and isinstance(wired[1], MaskedLinear)


@pytest.mark.parametrize(
    "choice", [["3"], lambda name, layer: isinstance(layer, nn.Conv2d) and layer.in_channels > 3]
)
def test_layers_by_name_and_by_choice(choice):
    wired = wire(cnn(), density=0.3, layers=choice)
    assert isinstance(wired[3], MaskedConv2d) and type(wired[0]) is nn.Conv2d
    assert type(wired[7]) is type(wired[9]) is nn.Linear
    with pytest.raises(TypeError, match="layers is 3"):
        wire(cnn(), density=0.3, layers=3)


@pytest.mark.parametrize("form", FORMS)
def test_a_convolution_is_wired_and_exported(form):
    model = cnn()
    model[3].double(), model[3].float()
    wired = wire(model, form, density=0.5).eval()
    kind = EnsembleConv2d if form == "ensembles" else MaskedConv2d
    assert isinstance(wired[3], kind) and wired[3].bias is None and wired[3].stride == 2
    x = torch.rand(2, 3, 12, 12)
    plain = to_linear(wired)
    torch.testing.assert_close(plain(x), wired(x), rtol=1e-5, atol=1e-6)
    assert type(plain[3]) is nn.Conv2d and plain[3].padding == (1, 1)
    assert set(plain.state_dict()) == set(model.state_dict())
    same = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in plain.state_dict().items()} == same


@pytest.mark.parametrize(
    "odd",
    [
        dict(groups=2),
        dict(dilation=2),
        dict(padding_mode="reflect", padding=1),
        dict(kernel_size=(3, 1)),
        dict(padding="same"),
    ],
)
def test_convolutions_that_no_sparse_one_equals_are_left_alone(odd):
    model = nn.Sequential(
        nn.Conv2d(16, 16, **{"kernel_size": 3} | odd),
        nn.Conv2d(16, 16, 3),
        nn.Flatten(),
        nn.LazyLinear(4),
    )
    model(torch.rand(1, 16, 12, 12))
    with pytest.warns(UserWarning, match="'0' (has 2 groups|is a convolution with sides)"):
        wired = wire(model, density=0.3)
    assert type(wired[0]) is nn.Conv2d and isinstance(wired[1], MaskedConv2d)


@pytest.mark.parametrize("density", [0.3, 0.6])
def test_erk_has_one_density_together(density):
    "Small layers that it leaves whole stay as they are, and count."
    wired, table = wire(cnn(), "erk", density=density, report=True)
    shapes = {"0": (16, 3, 3, 3), "3": (32, 16, 3, 3), "7": (48, 128)}
    expected = dict(zip(shapes, erk_densities([*shapes.values()], density), strict=True))
    for name, share in expected.items():
        assert table.density[name] == pytest.approx(share, abs=0.5 / 48)
    rows = table.loc[list(shapes)]
    assert rows.live.sum() / rows.weights.sum() == pytest.approx(density, abs=1e-3)
    assert (expected["0"] == 1) == (table.note["0"] == "is whole after ERK") == (density == 0.6)


# Attention


@pytest.mark.parametrize("form", ["masked", "ensembles", "er"])
@pytest.mark.parametrize(
    "more", [{}, {"norm_first": True}, {"bias": False}, {"activation": "gelu"}]
)
def test_a_transformer_computes_what_torchs_own_does(form, more):
    "With the sparse matrices in torch's layers: in training without dropout, in evaluation with and without a padding mask, also by its fast path."
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="enable_nested_tensor")
        wired = wire(transformer(dropout=0.0, **more), form, density=0.25)
        plain = to_linear(wired)
    assert not any(isinstance(m, WiredAttention) for m in plain.modules())
    x, padding = torch.randn(3, 5, 32), torch.arange(5) > torch.tensor([[4], [2], [3]])
    torch.testing.assert_close(wired(x), plain(x), rtol=1e-4, atol=1e-5)
    for layer in plain[0].layers:  # so that torch takes its fast path
        layer.activation_relu_or_gelu = 2 if more.get("activation") else 1
    with torch.no_grad():
        wired.eval()
        plain.eval()
        torch.testing.assert_close(wired(x), plain(x), rtol=1e-4, atol=1e-5)
        one, other = (net[0](x, src_key_padding_mask=padding) for net in (wired, plain))
        torch.testing.assert_close(one[~padding], other[~padding], rtol=1e-4, atol=1e-5)
        causal = nn.Transformer.generate_square_subsequent_mask(5)
        one, other = (net[0](x, mask=causal, is_causal=True) for net in (wired, plain))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["masked", "ensembles"])
def test_attention_trains_and_is_rewired(form):
    "Gradients are those of torch's attention on live weights; dead ones stay dead; every projection is edited."
    model = transformer(dropout=0.0)
    wired = wire(model, form, density=0.25)
    plain = to_linear(wired)
    x = torch.randn(4, 5, 32)
    for net in (wired, plain):
        net(x).square().sum().backward()
    attention, own = wired[0].layers[0].self_attn, plain[0].layers[0].self_attn
    if form == "masked":
        expected = own.in_proj_weight.grad[32:64] * attention.k.mask
        torch.testing.assert_close(attention.k.weight.grad, expected, rtol=1e-3, atol=1e-5)
    data = torch.randn(32, 5, 32), torch.arange(32) % 10
    rewiring = Rewiring(wired, prune="magnitude", grow="gradient", every=2, fraction=0.3)
    nb.core.fit(wired, data, epochs=2, lr=1e-3, batch_size=8, optimizer=rewiring, device="cpu")
    names = set(rewiring.rewirer.table().layer)
    assert {f"0.layers.1.self_attn.{part}" for part in "qkv"} < names and len(names) == 12
    copied = copy.deepcopy(wired).eval()
    file = io.BytesIO()
    torch.save(wired, file)
    file.seek(0)
    again = torch.load(file, weights_only=False).eval()
    with torch.no_grad():
        assert torch.equal(copied(x), wired.eval()(x)) and torch.equal(again(x), wired(x))


def test_attention_that_stays_is_named():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.MultiheadAttention(32, 4, kdim=16, vdim=16)
            self.two = nn.MultiheadAttention(32, 4)
            self.three = nn.MultiheadAttention(32, 4, add_bias_kv=True)
            self.first, self.last = nn.Linear(32, 32), nn.Linear(32, 4)

        def forward(self, x):
            scale = self.two.in_proj_weight.std()
            return self.last(self.first(self.two(x, x, x)[0])) * scale

    message = "'one' has queries.*'two' has a weight that Own.forward reads.*'three' adds a key"
    with pytest.warns(UserWarning, match=message):
        wired = wire(Own(), density=0.25)
    assert type(wired.two) is nn.MultiheadAttention and isinstance(wired.first, MaskedLinear)


def test_decoders_and_whole_transformers():
    net = nn.Transformer(32, 4, 1, 1, 64, dropout=0.0, batch_first=True)
    wired = wire(nn.Sequential(net, nn.Linear(32, 4)), density=0.25)[0]
    plain = to_linear(wired)
    src, tgt = torch.randn(2, 6, 32), torch.randn(2, 5, 32)
    torch.testing.assert_close(wired(src, tgt), plain(src, tgt), rtol=1e-4, atol=1e-5)
    assert sum(isinstance(m, WiredAttention) for m in wired.modules()) == 3


# Export


@pytest.mark.parametrize("grouping", ["index", "mixer", "random"])
def test_to_linear_of_a_layer(grouping):
    layer = EnsembleLinear(24, 16, 4, grouping=grouping, layer=1).double()
    layer.bias.requires_grad_(False)
    state = torch.get_rng_state()
    plain = to_linear(layer.eval())
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.randn(5, 24).double()
    torch.testing.assert_close(plain(x), layer(x), rtol=1e-12, atol=1e-12)
    assert type(plain) is nn.Linear and not plain.training and not plain.bias.requires_grad
    conv = EnsembleConv2d(8, 8, groups=4, grouping=grouping, layer=1, stride=2, padding=1)
    images = torch.rand(2, 8, 7, 7)
    torch.testing.assert_close(to_linear(conv)(images), conv(images), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(nb.g2g.export_bias(conv), to_linear(conv).bias.detach())


def test_a_plain_network_needs_nothing_of_this_package():
    plain = to_linear(wire(cnn(), "ensembles", density=0.5))
    kinds = {type(module).__module__.split(".")[0] for module in plain.modules()}
    assert kinds == {"torch"}
    with pytest.raises(ValueError, match="without a sparse layer"):
        to_linear(plain)


# The table


def test_the_table_counts_multiply_adds_as_torch_does():
    "Against torch's own counter of operations, for dense networks."
    from torch.utils.flop_counter import FlopCounterMode

    for model, x in ((cnn(), torch.rand(4, 3, 12, 12)), (mlp(64, 32, 8), torch.rand(4, 64))):
        with FlopCounterMode(display=False) as counter:
            model.eval()(x)
        assert sparsity(model, x).multiply_adds["sum"] * 4 == counter.get_total_flops() / 2


def test_a_shared_weight_is_counted_once_and_multiplied_twice():
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 20))
    model[2].weight, model[3].weight = model[1].weight, model[0].weight
    table = sparsity(model, torch.zeros(3, 5, dtype=torch.long))
    assert table.index.tolist() == ["0", "1", "sum"] and table.live["sum"] == 160 + 64
    assert table.multiply_adds.tolist() == [5 * 160, 2 * 5 * 64, 5 * (160 + 128)]
    up = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2))
    assert sparsity(up, torch.rand(1, 3, 5, 5)).multiply_adds["0"] == 25 * 3 * 4 * 4


def test_what_cannot_be_counted_is_not_a_number():
    "A recurrent layer, one that is not called; a lookup multiplies nothing."

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.memory = nn.Embedding(20, 8), nn.LSTM(8, 8, batch_first=True)
            self.spare, self.last = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.last(self.memory(self.words(x))[0])

    table = sparsity(Reader(), torch.zeros(3, 5, dtype=torch.long))
    assert table.multiply_adds[["words", "last"]].tolist() == [0, 5 * 16]
    assert table.multiply_adds[["memory", "spare", "sum"]].isna().all()
    assert table.live["memory"] == 2 * 32 * 8


def test_edges_and_density_are_counted_alike():
    "The table, the layers, the parameters in use and the rewiring's history."
    for form in FORMS:
        net = wire(mlp(64, 64, 64, 10), form, density=0.25)
        table = sparsity(net)
        biases = sum(p.numel() for name, p in net.named_parameters() if "bias" in name)
        assert table.live["sum"] + biases == live_parameters(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        rewirer = nb.g2g.Rewirer(net, optimizer, "random", "random", every=1)
        optimizer.step()
        history = rewirer.table().set_index("layer")
        for name in ("0", "2"):
            assert history.edges[name] == net[int(name)].edges == table.edges[name]
            assert table.density[name] == pytest.approx(table.edges[name] / 64**2)
            assert f"({table.density[name]:.1%})" in repr(net[int(name)])


def test_a_table_leaves_the_network_as_it_was():
    net = wire(cnn(), density=0.5)
    before = copy.deepcopy(net.state_dict())
    sparsity(net, torch.rand(2, 3, 12, 12))
    assert net.training and all(
        torch.equal(value, before[k]) for k, value in net.state_dict().items()
    )
    assert not any(module._forward_hooks for module in net.modules())
    assert er_mask(4, 4, 0.5).sum() == 8
