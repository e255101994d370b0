"Rewiring decides by the gradient a step uses: against plain loops, in parts of a batch, with steps that are skipped and batches that are discarded."

import math

import numpy as np
import pytest
import torch
from torch import nn

from neurobridge.g2g import EnsembleLinear, MaskedLinear, Rewirer, ensemble_mask, ensembles
from neurobridge.g2g.rules import hebbian, lowest, moments_of

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")
RULES = [
    (prune, grow)
    for prune in ("magnitude", "random", "hebb")
    for grow in ("random", "hebb", "gradient")
]
IDS = ensembles(24, 4)


def masked():
    torch.manual_seed(3)
    return MaskedLinear(ensemble_mask(24, 24, 4), ensembles=(IDS, IDS))


def grouped(grouping="mixer"):
    torch.manual_seed(3)
    return EnsembleLinear(24, 24, 4, p_inter=0.3, grouping=grouping)


def data(seed, n=48):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 24, generator=rng).relu(), torch.randn(n, 24, generator=rng)


def edges(layer):
    return (layer.mask if isinstance(layer, MaskedLinear) else layer.sources).clone()


# An implementation in plain loops, in NumPy and Python alone


def plain_hebb(a, b, correlation):
    score = np.zeros((b.shape[1], a.shape[1]))
    for o in range(b.shape[1]):
        for i in range(a.shape[1]):
            x, y = a[:, i], b[:, o]
            if correlation == "pearson":
                x, y = x - x.mean(), y - y.mean()
            norm = math.sqrt((x @ x) * (y @ y))
            score[o, i] = x @ y / norm if norm > 1e-9 else 0
    return abs(score) if correlation == "absolute" else score


def plain_training(w, bias, live, batches, lr, every, fraction, prune, grow, correlation="cosine"):
    "Gradient descent on half the squared error of relu(w x + b), with an edit after every `every`-th step."
    for step, (x, y) in enumerate(batches, 1):
        x, y = x.numpy().astype(float), y.numpy()
        b = np.maximum(x @ (w * live).T + bias, 0)
        g = (b - y) * (b > 0) / len(x)
        dense = g.T @ x
        score = plain_hebb(x, b, correlation)
        w, bias = w - lr * dense * live, bias - lr * g.sum(0)
        if step % every == 0:
            n = int(fraction * live.sum() + 1e-9)
            why = {"magnitude": abs(w), "hebb": score}[prune]
            gone = sorted(
                (why[o, i], o, i) for o in range(len(w)) for i in range(w.shape[1]) if live[o, i]
            )[:n]
            why = {"gradient": abs(dense), "hebb": score}[grow]
            come = sorted(
                (-why[o, i], o, i)
                for o in range(len(w))
                for i in range(w.shape[1])
                if not live[o, i]
            )[:n]
            live = live.copy()
            for _, o, i in gone + come:
                live[o, i] = (-why[o, i], o, i) in come
                w[o, i] = 0
    return w, live


@pytest.mark.parametrize(("prune", "grow"), [rule for rule in RULES if "random" not in rule])
@pytest.mark.parametrize("correlation", ["cosine", "absolute", "pearson"])
@pytest.mark.parametrize("seed", [0, 1])
def test_masks_and_weights_against_plain_loops(prune, grow, correlation, seed):
    layer = masked().double()
    batches = [data(100 * seed + step) for step in range(6)]
    start = (
        layer.dense_weight().detach().numpy().copy(),
        layer.bias.detach().numpy().copy(),
        layer.mask.numpy().copy(),
    )
    w, live = plain_training(*start, batches, 0.1, 2, 0.1, prune, grow, correlation)
    net = nn.Sequential(layer, nn.ReLU())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    Rewirer(net, optimizer, prune, grow, every=2, fraction=0.1, correlation=correlation)
    for x, y in batches:
        optimizer.zero_grad()
        ((net(x.double()) - y).square().sum() / 2 / len(x)).backward()
        optimizer.step()
    assert np.array_equal(layer.mask.numpy(), live) and not np.array_equal(live, start[2])
    np.testing.assert_allclose(layer.weight.detach().numpy(), w, atol=1e-12)


@pytest.mark.parametrize(
    ("prune", "grow"), [("hebb", "hebb"), ("magnitude", "gradient"), ("magnitude", "hebb")]
)
@pytest.mark.parametrize("grouping", ["index", "mixer"])
def test_columns_of_ensembles_against_plain_loops(prune, grow, grouping):
    layer, (x, y) = grouped(grouping).double(), data(1)
    net, before, weight = (
        nn.Sequential(layer, nn.ReLU()),
        layer.sources.clone(),
        layer.weight.detach().clone(),
    )
    b, dense = net(x.double()).detach(), torch.zeros(24, 24, dtype=torch.double)
    g = (b - y) * (b > 0)
    for s in range(len(x)):
        dense += g[s][:, None] * x[s]
    place = range(24) if layer.place is None else layer.place.tolist()
    members = [
        [neuron for neuron in range(24) if place[neuron] // 6 == group] for group in range(4)
    ]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    Rewirer(net, optimizer, prune, grow, every=1, fraction=0.3)
    ((net(x.double()) - y).square().sum() / 2).backward()
    optimizer.step()
    for group, old in enumerate(before.tolist()):
        sums = b[:, members[group]].sum(1, keepdim=True).numpy()
        hebb = plain_hebb(x.double().numpy(), sums, "cosine")[0]
        size = {
            source: sum(w**2 for w in weight[group, :, k].tolist()) for k, source in enumerate(old)
        }
        steep = [sum(dense[o, i].item() ** 2 for o in members[group]) for i in range(24)]
        n = int(0.3 * len(old) + 1e-9)
        gone = sorted(old, key=lambda i: hebb[i] if prune == "hebb" else size[i])[:n]
        come = sorted(
            set(range(24)) - set(old), key=lambda i: -(hebb[i] if grow == "hebb" else steep[i])
        )[:n]
        assert set(layer.sources[group].tolist()) == set(old) - set(gone) | set(come) and n


# One batch, however it comes


def run(
    make, rule, parts, steps=6, average=0.0, mean=True, net=None, correlation="cosine", zero=True
):
    layer = make()
    net = nn.Sequential(layer, nn.ReLU()) if net is None else net(layer)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    Rewirer(net, optimizer, *rule, every=3, fraction=0.2, average=average, correlation=correlation)
    for step in range(steps):
        x, y = data(step, 64)
        for u, v in zip(x.chunk(parts), y.chunk(parts), strict=True):
            error = (net(u) - v).square()
            ((error.mean() / parts) if mean else error.sum()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=zero)
    return edges(layer)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("make", [masked, grouped])
@pytest.mark.parametrize("mean", [True, False])
def test_parts_of_a_batch_are_the_batch(rule, make, mean):
    whole = run(make, rule, 1, mean=mean)
    assert not torch.equal(whole, edges(make()))
    for parts in (2, 4, 16):
        assert torch.equal(run(make, rule, parts, mean=mean, zero=parts != 4), whole), parts


@pytest.mark.parametrize("correlation", ["absolute", "pearson"])
def test_parts_of_a_batch_with_a_running_average(correlation):
    whole = run(masked, ("hebb", "hebb"), 1, average=0.5, correlation=correlation)
    for parts in (2, 4, 16):
        assert torch.equal(
            run(masked, ("hebb", "hebb"), parts, average=0.5, correlation=correlation), whole
        )


class Twice(nn.Module):
    "One layer that sees both halves of a batch in one forward pass."

    def __init__(self, layer):
        super().__init__()
        self.body = nn.Sequential(layer, nn.ReLU())

    def forward(self, x):
        return torch.cat([self.body(part) for part in x.chunk(2)])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("make", [masked, grouped])
def test_a_layer_called_twice_sees_one_batch(rule, make):
    assert torch.equal(run(make, rule, 1, net=Twice), run(make, rule, 1))


def test_one_layer_at_two_places():
    "The same module twice in a Sequential: both calls count, each with the neurons after it."
    layer, (x, y) = masked(), data(0)
    net = nn.Sequential(layer, nn.ReLU(), layer, nn.Tanh())
    with torch.no_grad():
        b = net[1](layer(x))
        moments = moments_of(torch.cat([x, b]), torch.cat([b, net[3](layer(b))]))
        live, n = layer.mask.clone(), int(0.1 * layer.edges)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    Rewirer(net, optimizer, "hebb", "hebb", every=1, fraction=0.1)
    (net(x) - y).square().sum().backward()
    optimizer.step()
    score = hebbian(moments)
    assert set(score[live & ~layer.mask].tolist()) == set(
        score[live].topk(n, largest=False).values.tolist()
    )
    assert set(score[layer.mask & ~live].tolist()) == set(score[~live].topk(n).values.tolist())


# Statistics live and die with their gradients


def backward(net, x, y, scale=1.0):
    ((net(x) - y).square().sum() * scale).backward()


DISCARDS = {
    "None": lambda net, optimizer: optimizer.zero_grad(),
    "zeros": lambda net, optimizer: optimizer.zero_grad(set_to_none=False),
    "of the model": lambda net, optimizer: net.zero_grad(),
    "by hand": lambda net, optimizer: [p.grad.zero_() for p in net.parameters()],
    "gradients of nothing": lambda net, optimizer: (
        optimizer.zero_grad(),
        net[0].weight.sum().backward(),
        optimizer.zero_grad(),
    ),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("how", DISCARDS)
def test_a_discarded_batch_decides_nothing(rule, how):
    results = []
    for discarded in (False, True):
        net = nn.Sequential(masked(), nn.ReLU())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        Rewirer(net, optimizer, *rule, every=1, fraction=0.2)
        if discarded:
            for seed in (7, 8):
                x, y = data(seed)
                backward(net, -100 * x, y)
            DISCARDS[how](net, optimizer)
        backward(net, *data(0))
        optimizer.step()
        results.append(edges(net[0]))
    assert torch.equal(*results)


@pytest.mark.parametrize("how", ["None", "zeros", "of the model"])
def test_a_step_after_a_discarded_batch_has_nothing_to_go_by(how):
    net = nn.Sequential(masked(), nn.ReLU())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    Rewirer(net, optimizer, "hebb", "gradient", every=1)
    before = edges(net[0])
    backward(net, *data(0))
    DISCARDS[how](net, optimizer)
    with pytest.raises(RuntimeError, match="saw no batch"):
        optimizer.step()
    assert torch.equal(edges(net[0]), before)


def test_gradients_that_are_only_asked_for_count_nothing():
    results = []
    for asked in (False, True):
        net = nn.Sequential(masked(), nn.ReLU())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        Rewirer(net, optimizer, "hebb", "gradient", every=1, fraction=0.2)
        if asked:
            x, y = data(5)
            torch.autograd.grad((net(-x) - y).square().sum(), list(net.parameters()))
        net.eval()
        net(data(6)[0])
        net.train()
        net(data(7)[0])  # no backward pass
        backward(net, *data(0))
        optimizer.step()
        results.append(edges(net[0]))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "rule",
    [("hebb", "hebb"), ("magnitude", "gradient"), ("hebb", "gradient"), ("random", "random")],
)
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_gradient_scaler_skips_is_none(rule, fused):
    "With one overflow on a due step, edits are those of a training without that batch; the scale of the loss does not matter."
    results = []
    for scaled in (False, True):
        net = nn.Sequential(masked(), nn.ReLU())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, fused=fused)
        rewirer = Rewirer(net, optimizer, *rule, every=2, fraction=0.2)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        for step in range(4):
            if scaled and step == 1:
                x, y = data(99)
                scaler.scale((net(-x) - y).square().mean() * torch.inf).backward()
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
            x, y = data(step)
            scaler.scale((net(x) - y).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert [row["step"] for row in rewirer.history] == [2, 4]
        results.append(edges(net[0]))
    assert torch.equal(*results)


def test_nan_is_refused_before_anything_is_edited():
    for rule in (
        ("hebb", "random"),
        ("random", "hebb"),
        ("random", "gradient"),
        ("magnitude", "random"),
    ):
        net = nn.Sequential(masked(), nn.ReLU(), MaskedLinear(ensemble_mask(24, 24, 4)))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        Rewirer(net, optimizer, *rule, every=1)
        before = [edges(net[0]), edges(net[2])]
        x, y = data(0)
        x[3, 3] = torch.nan
        backward(net, x, y)
        with pytest.raises(ValueError, match="NaN or infinite"):
            optimizer.step()
        assert torch.equal(edges(net[0]), before[0]) and torch.equal(edges(net[2]), before[1])


# Precision


@pytest.mark.parametrize("rule", [("hebb", "hebb"), ("magnitude", "gradient")])
def test_statistics_are_exact_under_autocast(rule):
    "What is summed are the numbers of the network, but the sums are not rounded to bfloat16."
    layer, (x, y) = masked(), data(2)
    net = nn.Sequential(layer, nn.ReLU())
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
        out.retain_grad()
        (out.relu().float() - y).square().sum().backward()
    score = (
        hebbian(moments_of(x.double(), out.detach().relu().double()))
        if rule[1] == "hebb"
        else (out.grad.double().t() @ x.double()).abs()
    )
    live, n = layer.mask.clone(), int(0.1 * layer.edges)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    Rewirer(net, optimizer, *rule, every=1, fraction=0.1)
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        (net(x).float() - y).square().sum().backward()
    optimizer.step()
    assert set(score[layer.mask & ~live].tolist()) == set(score[~live].topk(n).values.tolist())


@pytest.mark.parametrize("offset", [0.0, 0.1, 1000.0])
def test_correlations_are_right_far_from_zero(offset):
    rng = np.random.default_rng(0)
    a = (offset + rng.standard_normal((500, 4))).astype(np.float32)
    b = (offset + a[:, :3].astype(float) - offset + rng.standard_normal((500, 3))).astype(
        np.float32
    )
    found = hebbian(moments_of(torch.from_numpy(a), torch.from_numpy(b)), "pearson")
    np.testing.assert_allclose(
        found, np.corrcoef(b.T.astype(float), a.T.astype(float))[:3, 3:], atol=1e-5
    )


@pytest.mark.parametrize("value", [0.1, 0.3, 1e-8, 12345.678])
def test_a_unit_that_never_changes_has_no_correlation(value):
    a, b = torch.rand(1001, 3), torch.rand(1001, 2)
    a[:, 1] = value
    score = hebbian(moments_of(a, b), "pearson")
    assert (score[:, 1] == 0).all() and (score[:, [0, 2]] != 0).all()
    assert torch.allclose(
        hebbian(moments_of(1e-9 * a, b)), hebbian(moments_of(a, b))
    )  # a cosine knows no unit


def test_small_floats_are_counted_in_full():
    a, b = torch.rand(4000, 6).bfloat16(), torch.rand(4000, 5).bfloat16()
    exact = torch.cosine_similarity(b.double().t()[:, None], a.double().t()[None], dim=2)
    assert (hebbian(moments_of(a, b)) - exact).abs().max() < 1e-6
    assert (hebbian(moments_of((a > 0.5).to(torch.uint8), (b > 0.5).to(torch.uint8))) <= 1).all()


def test_the_number_of_edges_is_counted_in_full():
    "A share of 3,000 edges that is just below 1,000 is 999; in single precision it would be 1,000."
    mask = torch.zeros(100, 60, dtype=torch.bool)
    mask[:50] = True
    layer = MaskedLinear(mask)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    rewirer = Rewirer(layer, optimizer, every=1, fraction=0.33333333)
    optimizer.step()
    assert rewirer.table().moved.item() == 999


# Shapes


@pytest.mark.parametrize(
    "wrong",
    [
        {"b": torch.rand(4, 3)},
        {"a": torch.rand(5)},
        {"a": torch.rand(0, 4), "b": torch.rand(0, 3)},
        {"a": torch.rand(5, 4, 1)},
    ],
)
def test_moments_of_other_shapes(wrong):
    with pytest.raises(ValueError, match="moments_of: [ab] is"):
        moments_of(**{"a": torch.rand(5, 4), "b": torch.rand(5, 3)} | wrong)


def test_moments_that_do_not_fit():
    good = moments_of(torch.rand(5, 4), torch.rand(5, 3))
    for name, value in {"ab": torch.rand(4, 3), "aa": torch.rand(3), "b": torch.rand(3, 1)}.items():
        with pytest.raises(ValueError, match="hebbian: moments"):
            hebbian(good | {name: value})
    with pytest.raises(ValueError, match="'bb'"):
        hebbian({name: value for name, value in good.items() if name != "bb"})
    with pytest.raises(ValueError, match="correlation"):
        hebbian(good, "spearman")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"count": torch.tensor([4, 0])}, "count is"), ({"count": torch.tensor([-1, 0])}, "count is"), ({"label": torch.tensor([[0, 0, 2]])}, "label contains 0 to 2"),
     ({"label": torch.tensor([[0, 0, -2]])}, "label contains -2"), ({"score": torch.tensor([[1.0, torch.nan, 0]])}, "score contains 1 NaN"), ({"score": torch.rand(1, 4)}, "label is")],
)  # fmt: skip
def test_what_cannot_be_picked(wrong, message):
    good = {
        "score": torch.rand(1, 3),
        "label": torch.zeros(1, 3, dtype=torch.long),
        "count": torch.tensor([2, 0]),
        "generator": torch.Generator(),
    }
    with pytest.raises(ValueError, match=message):
        lowest(**good | wrong)


def test_neurons_of_another_shape_are_refused():
    class Both(nn.Module):
        def forward(self, x):
            return x, x

    for after, came in ((Both(), "tuple"), (nn.Unflatten(1, (4, 6)), r"shape \[48, 4, 6\]")):
        net = nn.Sequential(masked(), after)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        Rewirer(net, optimizer, "hebb", every=1)
        with pytest.raises(RuntimeError, match=came):
            net(data(0)[0])


def test_a_norm_is_no_neuron():
    net = nn.Sequential(masked(), nn.BatchNorm1d(24), nn.ReLU())
    x, y = data(0)
    with torch.no_grad():
        score = hebbian(moments_of(x, net(x)))
    live, n = net[0].mask.clone(), int(0.1 * net[0].edges)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    Rewirer(net, optimizer, "random", "hebb", every=1, fraction=0.1)
    backward(net, x, y)
    optimizer.step()
    assert set(score[net[0].mask & ~live].tolist()) == set(score[~live].topk(n).values.tolist())
