"G2GNet: sizes against formulas, forms that must be what they say, groups that stay apart, networks of others."

import ast
import copy
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from neurobridge.core import evaluate, fit
from neurobridge.data import load_images
from neurobridge.g2g import (
    EnsembleLinear,
    G2GNet,
    MaskedLinear,
    dense_width_at,
    live_parameters,
    wire,
)
from neurobridge.g2g.net import wired_linear
from neurobridge.snn import LIF

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")


@pytest.mark.parametrize(("p_inter", "classes", "width", "form", "head"), [
    (0.15, 10, 1024, "dense", 2_634_762), (0.15, 10, 1024, "masked", 685_066), (0.15, 10, 1024, "er", 685_066), (0.20, 10, 1024, "masked", 799_754),
    (0.15, 100, 1024, "dense", 2_727_012), (0.15, 100, 1024, "masked", 777_316), (0.15, 10, 469, "dense", 686_157)])  # fmt: skip
def test_published_sizes(p_inter, classes, width, form, head):
    net = G2GNet(
        (3, 32, 32),
        classes,
        width=width,
        p_inter=p_inter,
        form=form,
        groups=8 if width % 8 == 0 else 1,
    )
    assert (
        abs(live_parameters(net) - live_parameters(net.encoder) - head) <= 3
        and live_parameters(net.encoder) == 6_176
    )


@given(st.integers(10, 3000), st.integers(2, 100), st.integers(1, 5))
def test_a_dense_width_is_found_again(width, classes, depth):
    parameters = 512 * width + (depth - 1) * width**2 + depth * width + width * classes + classes
    assert dense_width_at(parameters, classes, depth) == width


@pytest.mark.parametrize("form", ["masked", "ensembles", "er", "dense"])
@pytest.mark.parametrize("grouping", ["index", "mixer", "random"])
def test_every_form_answers_and_trains(form, grouping):
    net = G2GNet((1, 8, 8), 3, width=32, form=form, grouping=grouping, p_inter=0.2)
    net(torch.rand(5, 1, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_groups_stay_apart_without_foreign_edges():
    "At p' = 0, index is eight networks: a change in one group's features reaches that group's neurons alone; mixer's reach all."
    for form in ("masked", "ensembles"):
        reached = {}
        for grouping in ("index", "mixer"):
            net = G2GNet(
                (1, 8, 8), 3, width=64, p_inter=0, grouping=grouping, form=form, neuron=nn.Identity
            )
            x, y = torch.rand(2, 512), torch.rand(2, 512)
            y[:, 64:] = x[:, 64:]
            reached[grouping] = ((net.layers(x) - net.layers(y)).abs() > 1e-6).any(0)
        assert (
            reached["index"].nonzero().flatten().tolist() == list(range(8))
            and reached["mixer"].all()
        )


def test_flatten_decides_what_a_group_sees():
    "Channel after channel, group 0 of the input is 4 features everywhere; patch after patch, it is two places."
    for flatten, changes in (("channels", False), ("patches", True)):
        net = G2GNet((1, 8, 8), 3, width=64, depth=1, p_inter=0, grouping="index", flatten=flatten)
        seen = {}
        net.layers.register_forward_pre_hook(lambda _, args, seen=seen: seen.update(x=args[0]))
        x = torch.rand(1, 1, 8, 8)
        net(x)
        before = seen["x"]
        x[..., 4:, :] += 1  # the lower half of the image
        net(x)
        assert torch.equal(before[:, :64], seen["x"][:, :64]) == changes


def test_a_spiking_net_sees_time():
    "Its neurons run over T steps: the same layers, stepped by hand."
    net = G2GNet(
        (1, 8, 8), 3, width=32, p_inter=0.2, form="ensembles", neuron=partial(LIF, decay=0.5), T=3
    )
    x = torch.rand(4, 1, 8, 8)
    features = net.encoder(x).flatten(1)
    h = features.expand(3, 4, 512)
    for module in net.layers:
        h = module(h) if isinstance(module, LIF) else torch.stack([module(step) for step in h])
    torch.testing.assert_close(net(x), net.classifier(h.mean(0)))
    assert set(h.unique().tolist()) <= {0.0, 1.0} and 0 < h.mean() < 1


def test_wire_leaves_the_model_alone():
    mlp = nn.Sequential(
        nn.Linear(16, 32),
        nn.ReLU(),
        nn.Sequential(nn.Linear(32, 16, bias=False), nn.ReLU()),
        nn.Linear(16, 3),
    )
    before = copy.deepcopy(mlp.state_dict())
    wired = wire(mlp, "ensembles", groups=4)
    assert (
        isinstance(wired[0], EnsembleLinear)
        and isinstance(wired[2][0], EnsembleLinear)
        and wired[2][0].bias is None
        and type(wired[3]) is nn.Linear
    )
    assert all(torch.equal(before[name], value) for name, value in mlp.state_dict().items())
    only = wire(mlp, groups=4, layers=["2.0"])
    assert type(only[0]) is nn.Linear and isinstance(only[2][0], MaskedLinear)


def test_what_wire_replaces_is_as_the_old_layer_was():
    "Frozen parameters, training mode, data type; and the network it came from stays."
    mlp = nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3)
    ).double()
    mlp[0].weight.requires_grad_(False)
    mlp[2].bias.requires_grad_(False)
    mlp[2].eval()
    for form in ("masked", "ensembles", "er", "dense"):
        wired = wire(mlp, form, groups=4)
        assert (
            [p.requires_grad for p in wired.parameters()]
            == [p.requires_grad for p in mlp.parameters()]
            == [False, True, True, False, True, True]
        )
        assert (
            wired[0].training
            and not wired[2].training
            and wired[2].weight.dtype == torch.double
            and type(mlp[0]) is nn.Linear
        )
        assert wired(torch.randn(2, 16).double()).shape == (2, 3)


def test_a_layer_used_twice_stays_one_layer():
    twice = nn.Linear(16, 16)
    wired = wire(nn.Sequential(twice, nn.ReLU(), twice, nn.ReLU(), nn.Linear(16, 3)), groups=4)
    assert wired[0] is wired[2] and isinstance(wired[0], MaskedLinear)
    ahead = wire(nn.Sequential(twice, nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), twice), groups=4)
    assert (
        type(ahead[0]) is nn.Linear and ahead[0] is ahead[4] and isinstance(ahead[2], MaskedLinear)
    )  # the last layer is the classifier, wherever else it stands


class Parent(nn.Module):
    "A network that uses its second layer in some way of its own."

    def __init__(self, use, change=lambda self: None):
        super().__init__()
        self.first, self.second, self.embedding = (
            nn.Linear(16, 16),
            nn.Linear(16, 16),
            nn.Embedding(16, 16),
        )
        self.blocks, self.last = nn.ModuleList([nn.Linear(16, 16)]), nn.Linear(16, 3)
        self.use = use
        change(self)

    def forward(self, x):
        return self.last(self.use(self, self.first(x)))


def multiplied(self, x):
    return F.linear(x, self.second.weight, self.second.bias)


def by_name(self, x):
    return x @ getattr(self.second, "weight").t()  # noqa: B009


def in_a_loop(self, x):
    for layer in self.blocks:
        x = x @ layer.weight
    return self.second(x)


def called(self, x):
    return self.second(x.to(self.second.weight.dtype))


USES = {
    "its weight": (multiplied, "second", ["first"]),
    "by name": (by_name, "first'.*'second'.*'blocks.0'", []),
    "in a loop": (in_a_loop, "first'.*'second'.*'blocks.0'", []),
}
CHANGES = {
    "tied to an embedding": (lambda self: setattr(self.embedding, "weight", self.second.weight), "second' shares its weight or bias with 'embedding"),
    "tied to a layer that stays": (lambda self: setattr(self.last, "bias", nn.Parameter(self.last.bias.data)) or setattr(self.second, "bias", self.first.bias), "shares its weight or bias"),
    "held in a list": (lambda self: setattr(self, "spare", [self.second]), "second' is also held by the model.spare"),
    "a forward hook": (lambda self: self.second.register_forward_hook(lambda *_: None), "second' has hooks"),
    "a backward hook": (lambda self: self.second.register_full_backward_hook(lambda *_: None), "second' has hooks"),
    "a hook of its weight": (lambda self: self.second.weight.register_hook(lambda grad: None), "second' has hooks"),
    "pruned": (lambda self: prune.l1_unstructured(self.second, "weight", 0.5), "second' has hooks"),
    "weight norm": (lambda self: parametrizations.weight_norm(self.second), "second' has a parametrization"),
    "spectral norm": (lambda self: parametrizations.spectral_norm(self.second), "second' has a parametrization"),
    "its own forward": (lambda self: setattr(self.second, "forward", lambda x: x), "second' computes"),
    "a subclass": (lambda self: setattr(self, "second", nn.modules.linear.NonDynamicallyQuantizableLinear(16, 16)), "second' is a NonDynamically"),
    "lazy": (lambda self: setattr(self, "second", nn.LazyLinear(16)), "second' is lazy"),
    "an odd width": (lambda self: setattr(self, "second", nn.Linear(16, 15)), "second' has 16 sources and 15 targets, which groups = 4 does not divide"),
    "on no device": (lambda self: self.second.to("meta"), "second' has a weight that is .* on the meta device"),
}  # fmt: skip


@pytest.mark.parametrize("form", ["masked", "ensembles"])
@pytest.mark.parametrize("what", USES)
def test_a_layer_whose_weight_is_read_is_refused_by_name(what, form):
    use, named, left = USES[what]
    model = Parent(use)
    with pytest.raises(
        ValueError, match=f"wire: layers of model cannot be replaced: .*{named}.*reads directly"
    ):
        wire(model, form, groups=4)
    assert type(model.first) is type(model.second) is nn.Linear
    if left:
        assert wire(model, form, groups=4, layers=left)(torch.randn(2, 16)).shape == (2, 3)


@pytest.mark.parametrize("what", CHANGES)
def test_a_layer_that_cannot_be_replaced_is_refused_by_name(what):
    change, message = CHANGES[what]
    with pytest.raises(ValueError, match=message) as refused:
        wire(Parent(called, change), groups=4)
    if what == "pruned":
        with pytest.raises(ValueError, match="model cannot be copied"):
            wire(Parent(called, change), groups=4, layers=["first"])
        return
    left = ast.literal_eval(re.search(r"layers=(\[.*\])", str(refused.value))[1])
    wired = wire(Parent(called, change), groups=4, layers=left)
    assert all(isinstance(wired.get_submodule(name), MaskedLinear) for name in left) and isinstance(
        wired.blocks[0], MaskedLinear
    )


def test_a_layer_that_is_only_called_is_wired():
    "To look up a data type is no use of the weight."
    wired = wire(Parent(called), groups=4)
    assert (
        isinstance(wired.first, MaskedLinear)
        and isinstance(wired.second, MaskedLinear)
        and type(wired.last) is nn.Linear
    )


@pytest.mark.parametrize("form", ["masked", "ensembles"])
def test_attention_is_not_wired_past_its_mask(form):
    model = nn.Sequential(
        nn.TransformerEncoderLayer(64, 4, 128), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    with pytest.raises(
        ValueError, match="'0.self_attn.out_proj' is a Non.*layers=..0.linear1', '0.l"
    ):
        wire(model, form)
    wired = wire(model, form, layers=["1"])
    optimizer = torch.optim.SGD(wired.parameters(), lr=0.1)
    for _ in range(3):
        wired(torch.randn(4, 2, 64)).square().sum().backward()
        optimizer.step()
    assert form == "ensembles" or (wired[1].weight[~wired[1].mask] == 0).all()


def test_networks_of_torchvision():
    "Windowed attention multiplies by itself; the linear layers of its blocks are called."
    swin = torchvision.models.swin_transformer.SwinTransformerBlock(32, 4, [2, 2], [0, 0])
    with pytest.raises(
        ValueError, match="attn.qkv.*attn.proj.*ShiftedWindowAttention.forward reads directly"
    ):
        wire(nn.Sequential(swin, nn.Linear(32, 3)))
    wired = wire(nn.Sequential(swin, nn.Linear(32, 3)), layers=["0.mlp.0", "0.mlp.3"])
    assert isinstance(wired[0].mlp[0], MaskedLinear) and wired(torch.randn(1, 4, 4, 32)).shape == (
        1,
        4,
        4,
        3,
    )
    wired = wire(torchvision.models.mobilenet_v3_small())
    assert isinstance(wired.classifier[0], MaskedLinear) and type(wired.classifier[3]) is nn.Linear


@pytest.mark.parametrize(
    "change",
    [
        {"T": 8},
        {"flatten": "patches"},
        {"form": "dense"},
        {"in_shape": (1, 16, 4)},
        {"grouping": "index"},
        {"groups": 4},
        {"p_inter": 0.2},
    ],
)
def test_a_state_dict_of_another_net_is_refused_by_what_differs(change):
    settings = {"in_shape": (1, 8, 8), "classes": 3, "width": 32, "neuron": LIF, "T": 4}
    net = G2GNet(**settings)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=f"G2GNet.*{next(iter(change))} = "):
        net.load_state_dict(G2GNet(**settings | change).state_dict())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("form", ["masked", "ensembles"])
def test_a_net_takes_over_the_wiring_of_a_state_dict(form):
    "Which groups a seed has drawn travels with the weights."
    a, b = (
        G2GNet((1, 8, 8), 3, width=32, grouping="random", form=form, seed=seed) for seed in (1, 2)
    )
    b.load_state_dict(a.state_dict())
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(a(x), b(x))
    assert all(torch.equal(a.layers[i].source_groups, b.layers[i].source_groups) for i in (0, 2, 4))
    old = {
        name: value
        for name, value in a.state_dict().items()
        if "groups" not in name and "_extra_state" not in name
    }  # as nets were saved before
    b.load_state_dict(old)
    assert torch.equal(a(x), b(x))


def test_images_of_another_size_and_neurons_without_time_are_refused():
    net = G2GNet((1, 8, 8), 3, width=32)
    for x in (
        torch.rand(2, 3, 8, 8),
        torch.rand(2, 1, 16, 16),
        torch.rand(1, 8, 8),
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
    ):
        with pytest.raises((TypeError, ValueError), match=r"G2GNet: x is .* \[N, 1, 8, 8\]"):
            net(x)
    with pytest.raises(ValueError, match="T is None with spiking neurons"):
        G2GNet((1, 8, 8), 3, width=32, neuron=LIF)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 50))
def test_seeds(seed):
    a, b, c = (wired_linear(16, 16, "masked", seed=s).mask for s in (seed, seed, seed + 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_it_learns():
    train, test = (load_images("digits", split=split) for split in ("train", "test"))
    net = G2GNet((1, 8, 8), 10, width=128, form="ensembles")
    fit(net, train.tensors(), epochs=4, lr=2e-3, batch_size=64)
    assert evaluate(net, test.tensors(*train.statistics()))["accuracy"] > 0.8


def test_what_is_no_net():
    wrong = [lambda: G2GNet((1, 9, 8), 10), lambda: G2GNet((1, 8, 8), 10, depth=0), lambda: G2GNet((1, 8, 8), 10, flatten="rows"), lambda: G2GNet((1, 8, 8), 10, width=30),
             lambda: wire(nn.Linear(8, 8)), lambda: wire(nn.ReLU()), lambda: dense_width_at(10, 10), lambda: wired_linear(8, 8, "er", p_inter=2)]  # fmt: skip
    for call in wrong:
        with pytest.raises(ValueError):
            call()
