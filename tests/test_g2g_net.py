"G2GNet: sizes against formulas, forms that must be what they say, groups that stay apart, networks of others."

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurobridge.core.train import evaluate, fit
from neurobridge.data.images import load_images
from neurobridge.g2g.layers import EnsembleLinear, MaskedLinear
from neurobridge.g2g.net import G2GNet, dense_width_at, live_parameters, wire, wired_linear
from neurobridge.snn.lif import LIF

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
