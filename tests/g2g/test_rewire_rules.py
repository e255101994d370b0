"Published rules against computations of their own, convolutions, shared weights, chosen layers."

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune as torch_prune

from neurobridge.core import fit
from neurobridge.g2g import (
    PRESETS,
    EnsembleConv2d,
    EnsembleLinear,
    MaskedLinear,
    Rewirer,
    Rewiring,
    ensembles,
    er_mask,
    small_world_mask,
)
from neurobridge.g2g.layers import MaskedConv2d
from neurobridge.g2g.rules import live_edges

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")


def tanh_net(mask, other=None):
    torch.manual_seed(2)
    second = MaskedLinear(mask if other is None else other)
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), MaskedLinear(mask), nn.Tanh(), second)


def stepped(net, optimizer, steps, edits=(), after=lambda step: None, lr=0.2):
    "Train by plain gradient descent; a step that edits leaves the weights, as RigL's does."
    for step in range(1, steps + 1):
        rng = torch.Generator().manual_seed(step)
        x, y = torch.randn(32, 12, generator=rng), torch.randn(32, 20, generator=rng)
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.0 if step in edits else lr
        optimizer.step()
        after(step)


# RigL, by the package of others


def test_rigl_against_rigl_torch():
    "Masks and weights after every step of a training."
    rigl_torch = pytest.importorskip("rigl_torch.RigL", reason="rigl-torch is not installed")
    torch.manual_seed(2)
    theirs = nn.Sequential(
        nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 20)
    )
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.2)
    more = dict(dense_allocation=0.25, T_end=75, delta=5, alpha=0.3, ignore_linear_layers=False)
    scheduler = rigl_torch.RigLScheduler(theirs, sgd, **more)
    masks = scheduler.backward_masks[1:]  # it leaves the first layer dense
    net = tanh_net(*masks)
    with torch.no_grad():
        for mine, other in zip(net.parameters(), theirs.parameters(), strict=True):
            mine.copy_(other)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    rule = PRESETS["rigl"] | {"every": 5, "stop": 75}
    rewirer = Rewirer(net, optimizer, **rule)
    state, done = [], []

    def note(step):
        state.append([net[2].mask.clone(), net[4].mask.clone(), net[2].weight.detach().clone()])

    edits = range(5, 75, 5)
    stepped(net, optimizer, 90, edits, note)
    for step in range(1, 91):
        rng = torch.Generator().manual_seed(step)
        x, y = torch.randn(32, 12, generator=rng), torch.randn(32, 20, generator=rng)
        sgd.zero_grad()
        (theirs(x) - y).square().mean().backward()
        if scheduler():
            sgd.step()
        first, second, weight = state[step - 1]
        assert torch.equal(first, scheduler.backward_masks[1]), step
        assert torch.equal(second, scheduler.backward_masks[2]), step
        torch.testing.assert_close(weight, theirs[2].weight.detach(), rtol=1e-5, atol=1e-7)
        done.append(step)
    assert scheduler.rigl_steps == 14 and rewirer.table().moved.sum() > 100 and len(done) == 90


# SRigL, as its paper describes it


def srigl_edit(mask, weight, gradient, share, salient, edges):
    "Drop the smallest weights of the layer, remove neurons, fill up by the largest gradients."
    mask, fan_in = mask.copy(), mask.sum(1)
    places = np.argwhere(mask)
    k = int(share * len(places) + 1e-9)
    for o, i in sorted(places, key=lambda at: abs(weight[at[0], at[1]]))[:k]:
        mask[o, i] = False
    if salient:
        steep = np.zeros(mask.size, bool)
        steep[np.argsort(-abs(gradient), axis=None)[:k]] = True
        stays = (mask | steep.reshape(mask.shape)).sum(1) >= salient * fan_in.max()
        stays |= not stays.any()  # none would be left
        mask[~stays] = False
        fan_in = np.where(stays, min(edges // stays.sum(), mask.shape[1]), 0)
    for o in range(len(mask)):
        kept = sorted(np.flatnonzero(mask[o]), key=lambda i: -abs(weight[o, i]))
        mask[o, kept[fan_in[o] :]] = False
        for i in np.argsort(-abs(gradient[o])):
            if mask[o].sum() < fan_in[o] and not mask[o, i]:
                mask[o, i] = True
    return mask


@pytest.mark.parametrize("salient", [0.0, 0.3, 0.8])
def test_srigl_against_its_description(salient):
    net = tanh_net(small_world_mask(20, 20, 0.3, beta=1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    rule = PRESETS["srigl"] | {"every": 4, "stop": 60, "salient": salient}
    rewirer = Rewirer(net, optimizer, **rule)
    before = {}

    def hook(*_):
        before.update(mask=net[2].mask.numpy().copy())

    net.register_forward_pre_hook(hook)
    seen, removed = [], []

    def check(step):
        if step % 4 or step > 60:
            assert (net[2].mask.numpy() == before["mask"]).all()
            return
        rng = torch.Generator().manual_seed(step)
        x, y = torch.randn(32, 12, generator=rng), torch.randn(32, 20, generator=rng)
        mask = torch.from_numpy(before["mask"])
        weight = (before["weight"] * mask).requires_grad_()
        hidden = torch.tanh(F.linear(net[1](net[0](x)), weight, net[2].bias))
        last = before["last"]
        (F.linear(hidden, last, net[4].bias) - y).square().mean().backward()
        expected = srigl_edit(
            before["mask"],
            before["weight"].numpy(),
            weight.grad.numpy(),
            rewirer.share(step),
            salient,
            120,
        )
        assert (net[2].mask.numpy() == expected).all(), (step, removed)
        fan_in = expected.sum(1)
        assert len(set(fan_in[fan_in > 0])) == 1 and expected.sum() <= 120
        removed.append((fan_in == 0).sum())
        seen.append((expected != before["mask"]).sum())

    def keep(*_):
        before["weight"] = net[2].weight.detach().clone()
        before["last"] = net[4].dense_weight().detach().clone()

    net.register_forward_pre_hook(keep)
    stepped(net, optimizer, 70, range(4, 61, 4), check)
    assert len(seen) == 15 and sum(seen) > 100 and (max(removed) > 0) == (salient > 0.6)


def test_constant_fan_in_of_ensembles():
    "An ensemble layer has one by construction; whole columns move."
    layer = EnsembleLinear(24, 24, 4, p_inter=0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    rewirer = Rewirer(
        layer, optimizer, **PRESETS["srigl"] | {"every": 1, "stop": 50, "salient": 0.0}
    )
    layer(torch.randn(8, 24)).square().sum().backward()
    optimizer.step()
    assert rewirer.table().moved.item() > 0 and live_edges(layer).sum(1).eq(15).all()
    assert rewirer.table().edges.item() == layer.edges == 24 * 15


# N:M


def test_two_of_four_against_torchs_sparsifier():
    "The masks of torch.ao.pruning on the same weights; and any other N and M by sorting."
    sparsifier = pytest.importorskip("torch.ao.pruning").WeightNormSparsifier(
        sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2
    )
    layer = MaskedLinear(torch.ones(24, 32, dtype=torch.bool), bias=False)
    linear = nn.Sequential(nn.Linear(32, 24, bias=False))
    linear[0].weight.data.copy_(layer.weight)
    sparsifier.prepare(linear, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    expected = linear[0].parametrizations.weight[0].mask.bool()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    Rewirer(layer, optimizer, **PRESETS["nm"] | {"every": 1, "stop": 1})
    layer(torch.rand(2, 32)).sum().backward()
    optimizer.step()
    assert torch.equal(layer.mask, expected) and layer.edges == 24 * 16


@pytest.mark.parametrize(("n", "m"), [(1, 4), (2, 8), (4, 16)])
def test_n_of_m_by_sorting(n, m):
    layer = MaskedLinear(torch.ones(5, 32, dtype=torch.bool))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    before = layer.weight.detach().abs().numpy().reshape(5, -1, m)
    Rewirer(layer, optimizer, **PRESETS["nm"] | dict(every=1, stop=1, block=m, density=n / m))
    optimizer.step()
    expected = before >= np.sort(before, axis=2)[..., [m - n]]
    assert (layer.mask.numpy().reshape(expected.shape) == expected).all()


def test_two_of_four_while_growing():
    "A wiring that is 2:4 stays so when edges move within their runs."
    mask = torch.tensor([True, False, True, False]).repeat(16, 6)
    layer = MaskedLinear(mask)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    Rewirer(layer, optimizer, "magnitude", "gradient", every=1, fraction=0.5, scope="block")
    for _ in range(5):
        optimizer.zero_grad()
        (layer(torch.randn(8, 24)) - 1).square().sum().backward()
        optimizer.step()
    assert layer.mask.view(16, 6, 4).sum(2).eq(2).all() and not torch.equal(layer.mask, mask)


# Gradual pruning


def cubic(step, first, last, start, stop):
    "Sparsity of Zhu and Gupta (2017), equation 1."
    initial, final = 1 - first, 1 - last
    if step < start:
        return initial
    return final + (initial - final) * (1 - (step - start) / (stop - start)) ** 3


@pytest.mark.parametrize(("start", "stop"), [(0, 40), (10, 60)])
def test_gradual_pruning_against_torchs_pruning(start, stop):
    "At each edit, what torch's own pruning by magnitude leaves at the sparsity of the equation."
    net = tanh_net(torch.ones(20, 20, dtype=torch.bool))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    rewirer = Rewirer(
        net, optimizer, **PRESETS["gradual"] | dict(every=5, start=start, stop=stop, density=0.15)
    )
    masks, edits = {}, []
    net.register_forward_pre_hook(
        lambda *_: masks.update(before=net[2].mask.clone(), weight=net[2].weight.detach().clone())
    )

    def check(step):
        if step % 5 or not start <= step <= stop:
            assert torch.equal(net[2].mask, masks["before"])
            return
        left = int(400 * (1 - cubic(step, 1, 0.15, start, stop)) + 0.5)
        other = nn.Linear(20, 20)
        other.weight.data.copy_(masks["weight"])
        torch_prune.l1_unstructured(other, "weight", amount=400 - left)
        assert torch.equal(net[2].mask, other.weight_mask.bool()), step
        assert rewirer.density(step, "2") == pytest.approx(1 - cubic(step, 1, 0.15, start, stop))
        edits.append(step)

    stepped(net, optimizer, stop + 10, range(0, stop + 1, 5), check)
    assert edits[-1] == stop and net[2].edges == 60 and (net[2].weight[~net[2].mask] == 0).all()


def test_gradual_pruning_goes_on_after_an_interruption():
    def made():
        net = tanh_net(torch.ones(20, 20, dtype=torch.bool))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
        Rewirer(net, optimizer, **PRESETS["gradual"] | dict(every=5, stop=40))
        return net, optimizer

    whole, optimizer = made()
    stepped(whole, optimizer, 60)
    first, optimizer = made()
    stepped(first, optimizer, 23)
    state = copy.deepcopy([first.state_dict(), optimizer.state_dict()])
    again = tanh_net(torch.ones(20, 20, dtype=torch.bool))
    again.load_state_dict(state[0])  # before the rewirer is made, so that it begins sparse
    optimizer = torch.optim.SGD(again.parameters(), lr=0.2)
    rewirer = Rewirer(again, optimizer, **PRESETS["gradual"] | dict(every=5, stop=40))
    optimizer.load_state_dict(state[1])
    assert rewirer.first == {"2": 1.0, "4": 1.0}
    for step in range(24, 61):
        rng = torch.Generator().manual_seed(step)
        x, y = torch.randn(32, 12, generator=rng), torch.randn(32, 20, generator=rng)
        optimizer.zero_grad()
        (again(x) - y).square().mean().backward()
        optimizer.step()
    assert torch.equal(again[2].mask, whole[2].mask) and again[4].edges == 40


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"grow": "none"}, "stop is None"),
        ({"grow": "none", "stop": 10}, "density is None"),
        ({"density": 0.5}, "density is 0.5 with grow 'random'"),
        ({"grow": "none", "density": 0.5, "stop": 10, "every": 3}, "multiple of every"),
        ({"grow": "none", "density": 0.5, "stop": 10, "every": 5, "start": 10}, "after start"),
        ({"salient": 0.3}, "salient is 0.3 with scope 'layer'"),
        ({"scope": "block", "block": 5}, "runs of block = 5 sources, and this layer has 24"),
    ],
)
def test_settings_that_do_not_fit_together(wrong, message):
    layer = MaskedLinear(er_mask(24, 24, 0.5))
    with pytest.raises(ValueError, match=message):
        Rewirer(layer, torch.optim.SGD(layer.parameters(), lr=0.1), **wrong)
    assert not layer._forward_hooks


def test_ensembles_cannot_only_lose():
    for layer in (EnsembleLinear(24, 24, 4), EnsembleConv2d(8, 8, groups=2)):
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        with pytest.raises(ValueError, match="fixed number of edges"):
            Rewirer(layer, optimizer, **PRESETS["gradual"], stop=100)
        with pytest.raises(ValueError, match="fixed number of edges"):
            Rewirer(layer, optimizer, **PRESETS["srigl"], stop=100)


# Convolutions


def masked_conv():
    ids = ensembles(8, 2)
    return MaskedConv2d(er_mask(8, 8, 0.4), padding=1, stride=2, ensembles=(ids, ids))


def shared_conv():
    return EnsembleConv2d(
        8, 8, groups=2, p_inter=0.5, grouping="mixer", layer=1, padding=1, stride=2
    )


def scores_by_hand(layer, x, neurons, target):
    "Return magnitude, gradient and correlation of each pair of channels, pixel by pixel."
    dense = layer.dense_weight().detach().double().requires_grad_()
    bias = layer.dense_bias().detach().double()
    out = F.conv2d(x.double(), dense, bias, stride=2, padding=1)
    out.retain_grad()
    (neurons(out) - target.double()).square().sum().backward()
    padded = F.pad(x.double(), (1, 1, 1, 1))
    height, width = out.shape[2:]
    a = [
        [
            padded[n, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].mean((1, 2))
            for i in range(height)
            for j in range(width)
        ]
        for n in range(len(x))
    ]
    a = torch.stack([row for image in a for row in image])
    b = neurons(out).detach().permute(0, 2, 3, 1).flatten(0, 2)
    groups = None
    magnitude = dense.detach().flatten(2).norm(dim=2)
    gradient = dense.grad.flatten(2).norm(dim=2)
    if isinstance(layer, EnsembleConv2d):
        groups = layer.place // 4
        rows = torch.stack([b[:, groups == g].sum(1) for g in range(2)], 1)
        b = rows
        magnitude, gradient = (
            torch.stack([m.square()[groups == g].sum(0).sqrt() for g in range(2)])
            for m in (magnitude, gradient)
        )
    hebb = (b.t() @ a) / (b.norm(dim=0)[:, None] * a.norm(dim=0))
    return {"magnitude": magnitude, "gradient": gradient, "hebb": hebb}


@pytest.mark.parametrize("make", [masked_conv, shared_conv])
@pytest.mark.parametrize(
    "rule", [("magnitude", "gradient"), ("hebb", "hebb"), ("magnitude", "hebb")]
)
@pytest.mark.parametrize("parts", [1, 4])
def test_convolutions_against_computations_by_hand(make, rule, parts):
    torch.manual_seed(4)
    net = nn.Sequential(make(), nn.ReLU())
    x, target = torch.rand(8, 8, 9, 9), torch.rand(8, 8, 5, 5)
    score = scores_by_hand(net[0], x, net[1], target)
    before = live_edges(net[0]).clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    rewirer = Rewirer(net, optimizer, *rule, every=1, fraction=0.3)
    for u, v in zip(x.chunk(parts), target.chunk(parts), strict=True):
        (net(u) - v).square().sum().backward()
    optimizer.step()
    now = live_edges(net[0])
    rows = range(len(before)) if isinstance(net[0], EnsembleConv2d) else [slice(None)]
    for row in rows:
        k = int(0.3 * before[row].sum() + 1e-9)
        gone, come = before[row] & ~now[row], now[row] & ~before[row]
        assert k == gone.sum() == come.sum() > 0
        low = score[rule[0]][row][before[row]].topk(k, largest=False).values.sort().values
        high = score[rule[1]][row][~before[row]].topk(k).values.sort().values
        torch.testing.assert_close(score[rule[0]][row][gone].sort().values, low)
        torch.testing.assert_close(score[rule[1]][row][come].sort().values, high)
    kernels = net[0].dense_weight()
    fresh = now & ~before
    if isinstance(net[0], MaskedConv2d):
        assert (kernels[fresh] == 0).all() and (net[0].weight[~now] == 0).all()
    assert rewirer.table().edges.item() == net[0].edges


@pytest.mark.parametrize("rule", [("hebb", "hebb"), ("magnitude", "gradient")])
def test_convolutions_are_scored_exactly_under_autocast(rule):
    "What is summed are the numbers of the network in bfloat16; the sums are not rounded to it."
    torch.manual_seed(4)
    net, x, target = (
        nn.Sequential(masked_conv(), nn.ReLU()),
        torch.rand(8, 8, 9, 9),
        torch.rand(8, 8, 5, 5),
    )
    with torch.autocast("cpu", torch.bfloat16):
        out = net[0](x)
        out.retain_grad()
        after = net[1](out)
        (after.float() - target).square().sum().backward()
    a = F.avg_pool2d(x.double(), 3, 2, 1).movedim(1, -1).flatten(0, 2)
    b = after.detach().double().movedim(1, -1).flatten(0, 2)
    score = (b.t() @ a) / (b.norm(dim=0)[:, None] * a.norm(dim=0))
    if rule[1] == "gradient":
        wide = net[0].dense_weight().detach().double().requires_grad_()
        F.conv2d(x.double(), wide, stride=2, padding=1).backward(out.grad.double())
        score = wide.grad.flatten(2).norm(dim=2)
    net.zero_grad()
    before = net[0].mask.clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    Rewirer(net, optimizer, *rule, every=1, fraction=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        (net(x).float() - target).square().sum().backward()
    optimizer.step()
    come = net[0].mask & ~before
    best = score[~before].topk(int(come.sum())).values.sort().values
    assert come.any()
    torch.testing.assert_close(score[come].sort().values, best)


@pytest.mark.parametrize("make", [masked_conv, shared_conv])
@pytest.mark.parametrize("scope", ["layer", "inter", "group", "neuron", "block"])
def test_convolutions_train_in_every_scope(make, scope):
    torch.manual_seed(4)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), make(), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), make(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    )  # fmt: skip
    edges = [net[1].edges, net[5].edges]
    data = torch.rand(64, 3, 18, 18), torch.arange(64) % 3
    rewiring = Rewiring(net, prune="hebb", grow="gradient", every=2, fraction=0.5, scope=scope)
    fit(net, data, epochs=3, lr=0.05, batch_size=8, optimizer=rewiring, mixed_precision="bf16")
    table = rewiring.rewirer.table()
    assert [net[1].edges, net[5].edges] == edges and table.moved.sum() > 0
    assert set(table.layer) == {"1", "5"}


# Accumulation and mixed precision over a training


@pytest.mark.parametrize("preset", ["g2g", "rigl", "srigl", "gradual"])
def test_micro_batches_are_the_batch_over_a_training(preset):
    "In double precision, with sums in another order, masks of 12 edits are equal."
    masks = []
    for parts in (1, 4):
        torch.manual_seed(2)
        net = nn.Sequential(
            MaskedLinear(small_world_mask(12, 20, 0.5, beta=1)), nn.Tanh(), MaskedLinear(er_mask(20, 20, 0.6))
        ).double()  # fmt: skip
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        Rewirer(net, optimizer, **PRESETS[preset] | {"every": 3, "stop": 36})
        for step in range(40):
            rng = torch.Generator().manual_seed(step)
            x = torch.randn(32, 12, generator=rng).double()
            y = torch.randn(32, 20, generator=rng).double()
            optimizer.zero_grad()
            for u, v in zip(x.chunk(parts), y.chunk(parts), strict=True):
                ((net(u) - v).square().mean() / parts).backward()
            optimizer.step()
        masks.append([net[0].mask, net[2].mask])
    for one, other in zip(*masks, strict=True):
        assert torch.equal(one, other)


# Shared weights and chosen layers


def tied():
    torch.manual_seed(1)
    mask = er_mask(16, 16, 0.4)
    net = nn.Sequential(MaskedLinear(mask), nn.ReLU(), MaskedLinear(mask), nn.ReLU())
    net[2].weight = net[0].weight
    net[2].bias = net[0].bias
    return net


@pytest.mark.parametrize("rule", [("hebb", "hebb"), ("magnitude", "gradient")])
def test_a_shared_weight_is_edited_as_one_module_used_twice(rule):
    nets = [tied(), tied()]
    nets[1] = nn.Sequential(nets[1][0], nn.ReLU(), nets[1][0], nn.ReLU())
    tables = []
    for net in nets:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        rewirer = Rewirer(net, optimizer, *rule, every=2, fraction=0.3)
        for step in range(6):
            x = torch.rand(16, 16, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            (net(x) - x).square().sum().backward()
            optimizer.step()
        tables.append(rewirer.table())
    assert torch.equal(nets[0][0].mask, nets[0][2].mask)
    assert torch.equal(nets[0][0].mask, nets[1][0].mask) and len(tables[0]) == len(tables[1]) == 3
    assert nets[0][0].weight is nets[0][2].weight and tables[0].moved.equals(tables[1].moved)


@pytest.mark.parametrize("layers", [["2"], lambda name, layer: name == "2"])
def test_layers_chooses(layers):
    net = nn.Sequential(*(MaskedLinear(er_mask(16, 16, 0.4)) for _ in range(3)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = [layer.mask.clone() for layer in net]
    Rewirer(net, optimizer, "random", "random", every=1, layers=layers)
    optimizer.step()
    changed = [not torch.equal(layer.mask, old) for layer, old in zip(net, before, strict=True)]
    assert changed == [False, False, True]
    with pytest.raises(ValueError, match="layers names '7', no sparse layer"):
        Rewirer(net, torch.optim.SGD(net.parameters(), lr=0.1), layers=["7"])
    with pytest.raises(TypeError, match="layers is 3"):
        Rewirer(net, torch.optim.SGD(net.parameters(), lr=0.1), layers=3)


def test_detach_gives_back_what_there_was():
    "No hook is left on model and optimiser, and training goes on as with a plain optimiser."
    net = tanh_net(er_mask(20, 20, 0.4))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)

    def hooks():
        held = [*net.modules(), optimizer]
        return [
            (type(each).__name__, name, len(value))
            for each in held
            for name, value in vars(each).items()
            if "hooks" in name and value is not None
        ] + [len(p._backward_hooks or ()) for p in net.parameters()]

    before = hooks()
    rewirer = Rewirer(net, optimizer, "hebb", "gradient", every=1, average=0.5)
    stepped(net, optimizer, 3, lr=0.01)
    rewirer.detach()
    assert hooks() == before and set(optimizer.state_dict()) == {"state", "param_groups"}
    twin = copy.deepcopy(net)
    plain = torch.optim.Adam(twin.parameters(), lr=0.01)
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for model, steps in ((net, optimizer), (twin, plain)):
        stepped(model, steps, 3, lr=0.01)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
