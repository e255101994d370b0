"Which layers a rewirer edits, with which optimisers, and what copies, pickles and states have to do with it."

import copy
import gc
import inspect
import io
import pickle

import pytest
import torch
from torch import nn

from neurobridge.core import fit
from neurobridge.g2g import (
    EnsembleLinear,
    MaskedLinear,
    Rewirer,
    Rewiring,
    ensemble_edges,
    ensemble_mask,
    ensembles,
    modularity,
    to_masked,
)

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")
N = 24
IDS = ensembles(N, 4)


def masked():
    return MaskedLinear(ensemble_mask(N, N, 4), ensembles=(IDS, IDS))


def network(make=masked):
    torch.manual_seed(5)
    return nn.Sequential(make(), nn.ReLU(), make(), nn.Tanh())


def train(net, optimizer, steps, start=0):
    for step in range(start, start + steps):
        x = torch.rand(16, N, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (net(x) - x).square().sum().backward()
        optimizer.step()


def same(one, other):
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


# Which layers


@pytest.mark.parametrize("how", ["frozen", "not held", "frozen later"])
@pytest.mark.parametrize("rule", [("random", "random"), ("hebb", "gradient")])
def test_a_layer_that_is_not_trained_is_left_alone(how, rule):
    net = network()
    if how == "frozen":
        net[0].weight.requires_grad_(False)
    parameters = net[2].parameters() if how == "not held" else net.parameters()
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    rewirer = Rewirer(net, optimizer, *rule, every=1, fraction=0.2)
    if how == "frozen later":
        net[0].weight.requires_grad_(False)
    before = copy.deepcopy(net)
    train(net, optimizer, 10)
    assert torch.equal(net[0].mask, before[0].mask) and torch.equal(net[0].weight, before[0].weight)
    assert not torch.equal(net[2].mask, before[2].mask) and net[2].edges == before[2].edges
    assert set(rewirer.table().layer) == {"2"}


def test_the_other_layers_are_edited_as_if_all_were():
    "Random numbers of a layer do not depend on which others are trained."
    masks = []
    for first in (True, False):
        net = network()
        optimizer = torch.optim.SGD((net if first else net[2]).parameters(), lr=0.0)
        Rewirer(net, optimizer, "random", "random", every=1, fraction=0.2)
        train(net, optimizer, 3)
        masks.append(net[2].mask)
    assert torch.equal(*masks)


def test_nothing_to_train_is_refused_by_name():
    net, other = network(), network()
    with pytest.raises(ValueError, match=r"none of the wired layers \['0', '2'\]"):
        Rewirer(net, torch.optim.Adam(other.parameters()))
    optimizer = torch.optim.Adam(net.parameters())
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        Rewirer(net, optimizer)
    assert not net[0]._forward_hooks


def test_a_weight_that_two_layers_share_is_refused_by_name():
    for share in (
        lambda net: setattr(net[2], "weight", net[0].weight) or net[2].mask.logical_not_(),
        lambda net: net.append(nn.Linear(N, N)) and setattr(net[4], "weight", net[0].weight),
    ):
        net = network()
        share(net)
        with pytest.raises(ValueError, match="layers '0' and '[24]' share one weight"):
            Rewirer(net, torch.optim.Adam(net.parameters()))


def test_a_weight_replaced_in_mid_training_is_refused():
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    Rewirer(net, optimizer, every=2)
    train(net, optimizer, 1)
    net.load_state_dict(network().state_dict(), assign=True)
    before = copy.deepcopy(net)
    with pytest.raises(RuntimeError, match="another weight"):
        train(net, optimizer, 1)
    assert same(net, before)


# Which optimisers

OPTIMISERS = {
    name: kind
    for name, kind in inspect.getmembers(torch.optim, inspect.isclass)
    if issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
}
REFUSED = {
    "LBFGS": "closure",
    "Muon": "no gradient",
    "Adafactor": "'row_var' is common",
    "SparseAdam": "SparseAdam",
}
MORE = {
    "SGD": [{"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}], "Adam": [{"amsgrad": True, "weight_decay": 0.1}, {"fused": True}, {"foreach": True}],
    "AdamW": [{"amsgrad": True}, {"maximize": True}], "RMSprop": [{"momentum": 0.9, "centered": True}], "Adagrad": [{"initial_accumulator_value": 0.5}], "ASGD": [{"t0": 2}],
    "Rprop": [{"step_sizes": (1e-6, 50)}],
}  # fmt: skip
ALL = [(name, more) for name in OPTIMISERS for more in [{}, *MORE.get(name, [])]]


class Signs(torch.optim.Optimizer):
    "An optimiser of one's own, with a memory of its own that begins with 7."

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                memory = self.state[p].setdefault("memory", torch.full_like(p, 7))
                memory += p.grad.abs()
                p -= group["lr"] * p.grad.sign()


@pytest.mark.parametrize(
    ("name", "more"), [case for case in ALL if case[0] not in REFUSED] + [("Signs", {})]
)
@pytest.mark.parametrize("make", [masked, lambda: EnsembleLinear(N, N, 4)])
def test_optimisers_forget_what_an_edge_had(name, more, make):
    "After an edit, what the optimiser holds for a new or dead weight is what it holds for one that never had a gradient."
    torch.manual_seed(0)
    layer, kind = make(), Signs if name == "Signs" else OPTIMISERS[name]
    optimizer = kind(layer.parameters(), lr=0.01, **more)
    before = copy.deepcopy(layer)
    Rewirer(layer, optimizer, "magnitude", "random", every=4, fraction=0.2)
    train(layer, optimizer, 4)
    fresh = (
        (layer.mask != before.mask) | ~layer.mask
        if isinstance(layer, MaskedLinear)
        else (layer.sources != before.sources)[:, None].expand_as(layer.weight)
    )
    never = nn.Parameter(torch.zeros_like(layer.weight))
    untouched = kind([never], lr=0.01, **more)
    for _ in range(4):
        never.grad = torch.zeros_like(never)
        untouched.step()
    assert fresh.any() and (layer.weight[fresh] == 0).all()
    for key, value in optimizer.state[layer.weight].items():
        if torch.is_tensor(value) and value.ndim:
            assert torch.equal(value[fresh], untouched.state[never][key][fresh]), key
    born = fresh & (layer.mask if isinstance(layer, MaskedLinear) else True)
    train(layer, optimizer, 3, 4)
    moved = layer.weight[born].abs()
    assert (moved > 0).float().mean() > 0.9 and (
        name != "Rprop" or moved.max() > 0.005
    )  # new edges do not crawl
    if isinstance(layer, MaskedLinear):
        assert (layer.weight[~layer.mask] == 0).all()


@pytest.mark.parametrize("name", REFUSED)
def test_optimisers_that_cannot_forget_are_refused_by_name(name):
    layer = MaskedLinear(ensemble_mask(N, N, 4), bias=False)
    optimizer = OPTIMISERS[name](layer.parameters(), lr=0.01)
    with pytest.raises(ValueError, match=f"optimizer is {name}.*{REFUSED[name]}"):
        Rewirer(layer, optimizer)
    assert (
        not optimizer.state
        and not layer._forward_hooks
        and not optimizer._optimizer_step_post_hooks
    )


def test_an_optimiser_of_ones_own_that_moves_all_weights_is_refused():
    class Centred(Signs):
        def step(self):
            for group in self.param_groups:
                for p in group["params"]:
                    p.grad -= p.grad.mean()
            super().step()

    layer = masked()
    with pytest.raises(ValueError, match="Centred, which moves weights"):
        Rewirer(layer, Centred(layer.parameters(), lr=0.1))


def test_groups_of_parameters_and_two_optimisers():
    "Initial values are those of each layer's own group; two optimisers may each have a rewirer for their layers."
    net = network()
    optimizer = torch.optim.Rprop(
        [{"params": net[0].parameters(), "lr": 0.02}, {"params": net[2].parameters(), "lr": 0.005}]
    )
    Rewirer(net, optimizer, "random", "random", every=1, fraction=0.2)
    before = copy.deepcopy(net)
    train(net, optimizer, 1)
    for layer, lr in ((0, 0.02), (2, 0.005)):
        fresh = net[layer].mask != before[layer].mask
        assert torch.equal(
            optimizer.state[net[layer].weight]["step_size"][fresh],
            torch.full((int(fresh.sum()),), lr),
        )
    net = network()
    first, second = (
        torch.optim.Adam(net[0].parameters()),
        torch.optim.SGD(net[2].parameters(), lr=0.1),
    )
    one, two = Rewirer(net, first, every=1), Rewirer(net, second, every=2)
    for _ in range(4):
        x = torch.rand(16, N)
        (net(x) - x).square().sum().backward()
        for optimizer in (first, second):
            optimizer.step()
            optimizer.zero_grad()
    assert (
        set(one.table().layer) == {"0"}
        and set(two.table().layer) == {"2"}
        and len(one.history) == 2 * len(two.history) == 4
    )


# Copies and pickles


@pytest.mark.parametrize("rule", [("hebb", "hebb", 0.5), ("magnitude", "gradient", 0.0)])
def test_a_copy_of_the_model_is_independent(rule):
    "A teacher that is trained on other data between the steps changes nothing of the student's edits."
    results = []
    for teaching in (False, True):
        net = network()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        Rewirer(net, optimizer, *rule[:2], every=2, average=rule[2])
        for step in range(6):
            if teaching:
                teacher = copy.deepcopy(net)
                masks = [teacher[0].mask.clone(), teacher[2].mask.clone()]
                other = torch.optim.SGD(teacher.parameters(), lr=0.1)
                teacher(
                    -5 * torch.rand(32, N, generator=torch.Generator().manual_seed(99))
                ).square().sum().backward()
                other.step()
                assert torch.equal(teacher[0].mask, masks[0]) and torch.equal(
                    teacher[2].mask, masks[1]
                )
            train(net, optimizer, 1, step)
        results.append(net)
    assert same(*results)


@pytest.mark.parametrize(
    "way",
    [
        copy.deepcopy,
        lambda net: pickle.loads(pickle.dumps(net)),
        lambda net: torch.load(saved(net), weights_only=False),
    ],
)
def test_copies_and_pickles_get_a_rewirer_of_their_own(way):
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    rewirer = Rewirer(net, optimizer, "hebb", "gradient", every=1, average=0.5)
    net(torch.rand(4, N)).sum().backward()  # in the middle of a step
    other = way(net)
    assert same(net, other) and not any(
        held is rewirer for held in gc.get_referents(*other[0]._forward_hooks.values())
    )
    twin = torch.optim.Adam(other.parameters(), lr=0.01)
    Rewirer(other, twin, "hebb", "gradient", every=1, average=0.5)
    for model, steps in ((net, optimizer), (other, twin)):
        train(model, steps, 3)
    assert same(net, other) and len(rewirer.history) == 6


def saved(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_rewirer_is_not_copied(way):
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    with pytest.raises(TypeError, match=r"keep optimizer.state_dict\(\)"):
        way(Rewirer(net, optimizer))
    assert not copy.deepcopy(optimizer)._optimizer_step_post_hooks


def test_detach():
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    rewirer = Rewirer(net, optimizer, "hebb", "gradient", every=1, average=0.9)
    train(net, optimizer, 2)
    net(torch.rand(4, N)).sum().backward()
    mask = net[0].mask.clone()
    rewirer.detach()
    assert (
        not any(module._forward_hooks for module in net)
        and not net[0].weight._backward_hooks
        and "rewirer" not in optimizer.state_dict()
    )
    train(net, optimizer, 2)
    assert torch.equal(net[0].mask, mask) and len(rewirer.table()) == 4
    Rewirer(net, optimizer, "hebb", "hebb", every=1)


# One rewirer


def test_two_rewirers_on_one_optimiser_or_one_layer_are_refused():
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    first = Rewirer(net, optimizer, every=1)
    for model in (net, net[0]):
        with pytest.raises(ValueError, match="optimizer has a rewirer already"):
            Rewirer(model, optimizer, every=2)
    other = torch.optim.Adam(net.parameters())
    with pytest.raises(ValueError, match="layer '0' has a rewirer already"):
        Rewirer(net, other)
    train(net, optimizer, 2)
    assert len(first.history) == 4 and not other._optimizer_step_post_hooks


def test_an_optimiser_that_is_gone_holds_no_layer():
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    first = Rewirer(net, optimizer, "hebb", every=1, average=0.5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)  # holds the optimiser in a cycle
    del optimizer, schedule
    optimizer = torch.optim.Adam(net.parameters())
    Rewirer(net, optimizer, "hebb", every=2)
    train(net, optimizer, 2)
    assert not first.history and not first._handles


def test_one_rewiring_for_two_trainings():
    net, x = network(), torch.rand(32, N)
    rewiring = Rewiring(net, prune="hebb", grow="hebb", every=2)
    for _ in range(2):
        fit(
            net,
            (x, torch.zeros(32, dtype=torch.long)),
            epochs=1,
            lr=0.01,
            batch_size=8,
            optimizer=rewiring,
        )
        assert len(rewiring.rewirer.history) == 4


@pytest.mark.parametrize(
    "wrong", [{"evry": 3}, {"every": 0}, {"prune": "gradient"}, {"schedule": "cosine"}]
)
def test_a_rewiring_checks_its_settings_at_once(wrong):
    with pytest.raises(
        (TypeError, ValueError), match="stop" if "schedule" in wrong else next(iter(wrong))
    ):
        Rewiring(network(), **wrong)


# States


def test_a_state_that_comes_before_the_rewirer_is_refused():
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    Rewirer(net, optimizer, every=2)
    train(net, optimizer, 3)
    state = optimizer.state_dict()
    other = network()
    late = torch.optim.Adam(other.parameters())
    late.load_state_dict(state)
    train(other, late, 1)
    with pytest.raises(ValueError, match="rewired for 3 steps"):
        Rewirer(other, late, every=2)
    soon = torch.optim.Adam(other.parameters())
    rewirer = Rewirer(other, soon, every=2)
    with pytest.raises(ValueError, match="the rewirer's part of it is missing"):
        soon.load_state_dict({name: value for name, value in state.items() if name != "rewirer"})
    soon.load_state_dict(state)
    assert (
        rewirer.steps == 3
        and len(rewirer.history) == 2
        and set(soon.param_groups[0]) == set(optimizer.param_groups[0])
    )


def test_warming_up_without_a_rewirer_is_no_mistake():
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    train(net, optimizer, 3)
    rewirer = Rewirer(net, optimizer, every=2)
    optimizer.load_state_dict(torch.optim.Adam(net.parameters()).state_dict())
    train(net, optimizer, 2)
    assert [row["step"] for row in rewirer.history] == [2, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"steps": -1}, "steps"), ({"settings": {"every": 3}}, "every"), ({"seen": {"7": torch.ones(N, N, dtype=torch.bool)}}, "'7'"), ({"layers": {"0": [N, N]}}, "belongs to the layers"),
     ({"seen": {"0": torch.ones(3, N, dtype=torch.bool)}}, r"\[3, 24\]"), ({"averages": {"body.0": {"ab": torch.ones(N, N)}}}, "body.0"), ({"steps": None}, "steps")],
)  # fmt: skip
def test_a_state_of_another_rewirer_changes_nothing(change, message):
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    rewirer = Rewirer(net, optimizer, every=2)
    train(net, optimizer, 3)
    state, before = optimizer.state_dict(), str(optimizer.state_dict())
    wrong = state | {"rewirer": state["rewirer"] | change}
    with pytest.raises((TypeError, ValueError), match=f"Rewirer.*{message}"):
        optimizer.load_state_dict(wrong)
    assert str(optimizer.state_dict()) == before
    with pytest.raises(TypeError, match="state"):
        rewirer.load_state_dict([])


def test_a_state_goes_into_wrapped_models():
    "Names are those of the bare model, whatever wraps it."
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    Rewirer(torch.compile(net, backend="eager"), optimizer, every=2)
    train(net, optimizer, 2)
    other = network()
    again = torch.optim.Adam(other.parameters())
    assert set(Rewirer(other, again, every=2).layers) == {"0", "2"}
    again.load_state_dict(optimizer.state_dict())


# Other ways to run a model


@pytest.mark.parametrize(
    "rule", [("hebb", "hebb", 0.0), ("hebb", "gradient", 0.0), ("magnitude", "hebb", 0.5)]
)
@pytest.mark.parametrize("way", ["compiled", "checkpoint", "checkpoint, reentrant", "keyword"])
def test_other_ways_to_run_a_model(rule, way):
    torch._dynamo.reset()

    class Named(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net[3](self.net[2](x=self.net[1](self.net[0](x=x))))

    results = []
    for other in (False, True):
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        Rewirer(net, optimizer, *rule[:2], every=2, average=rule[2])
        run = net
        if other and way == "compiled":
            run = torch.compile(net, backend="aot_eager")
        elif other and way == "keyword":
            run = Named(net)
        elif other:

            def run(x, net=net, way=way):
                x = x.requires_grad_()
                return torch.utils.checkpoint.checkpoint(net, x, use_reentrant="reentrant" in way)

        for step in range(4):
            x = torch.rand(16, N, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            (run(x.clone()) - x).square().sum().backward()
            optimizer.step()
        results.append(net)
    assert torch.equal(results[0][0].mask, results[1][0].mask) and torch.equal(
        results[0][2].mask, results[1][2].mask
    )


# The table


def test_the_table_marks_what_fit_gave_back():
    "The row whose edges the layers have: that of the epoch that fit kept."
    net, rng = network(), torch.Generator().manual_seed(1)
    data = torch.rand(64, N, generator=rng), torch.randint(0, N, (64,), generator=rng)
    rewiring = Rewiring(net, prune="hebb", grow="hebb", every=4)
    history = fit(net, data, data, epochs=6, lr=0.3, batch_size=16, optimizer=rewiring)
    table = rewiring.rewirer.table()
    kept = table[table.current]
    assert (
        set(kept.step) == {4 * history.best_epoch}
        and history.best_epoch < 6
        and sorted(kept.layer) == ["0", "2"]
    )
    for row in kept.itertuples():
        assert modularity(ensemble_edges(net[int(row.layer)].mask, IDS, IDS)) == row.modularity
    net[0].mask.logical_not_()
    assert sorted(rewiring.rewirer.table().query("current").layer) == ["2"]


def test_a_table_counts_edges_as_its_layer_does():
    "In pairs of neurons, whether the weights are held as a matrix or by ensembles."
    quick = EnsembleLinear(32, 32, groups=4)
    for layer in (quick, to_masked(quick)):
        net = nn.Sequential(layer)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        rewirer = Rewirer(net, optimizer, every=1)
        net(torch.randn(8, 32)).sum().backward()
        optimizer.step()
        assert rewirer.table().edges.tolist() == [layer.edges] == [quick.edges]
