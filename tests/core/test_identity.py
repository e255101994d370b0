"""A checkpoint knows its training by content, and what is measured is what was asked: every change that alters the numbers is refused by name."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from neurobridge.core import (
    ModuleWithSettings,
    Sequences,
    evaluate,
    fit,
    load_checkpoint,
    milestones,
    save_checkpoint,
    seed_everything,
)
from neurobridge.core import identity as page
from neurobridge.core.identity import describe, differences, identity_of, state_hash
from neurobridge.g2g import G2GNet, Rewiring
from neurobridge.snn import (
    LIF,
    RateReadout,
    atan,
    over_time,
    spikify,
    spiking_convnet,
    spiking_resnet,
)

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[2]
X, Y = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
short = partial(fit, epochs=2, lr=0.01, batch_size=4, device="cpu", progress=False)


# Networks


class Mine(nn.Module):
    "A neuron of one's own."

    scale = 1.0

    def __init__(
        self, T=4, how="soft", act=torch.tanh, table=((1, 2),), groups=None, settings=None
    ):
        super().__init__()
        self.T, self.how, self.act, self._table, self.settings, self.dtype = (
            T,
            how,
            act,
            table,
            settings,
            torch.float32,
        )
        self.register_buffer(
            "groups", torch.arange(3) if groups is None else groups, persistent=False
        )

    def forward(self, x):
        return self.act(x) * self.T


@dataclasses.dataclass
class Constants:
    decay: float = 0.5


def own_surrogate(a):
    def derivative(u):
        return 1 / (1 + a * u.abs()) ** 2

    return derivative


def net(neuron=LIF, **given):
    seed_everything(1)
    return spiking_convnet(neuron, classes=3, width=4, **given)


NETWORKS = {
    "decay": (lambda: net(), lambda: net(partial(LIF, decay=0.9))),
    "v_th": (lambda: net(), lambda: net(partial(LIF, v_th=0.6))),
    "reset": (lambda: net(), lambda: net(partial(LIF, reset="soft"))),
    "surrogate": (lambda: net(), lambda: net(partial(LIF, surrogate=atan(3.0)))),
    "surrogate constant": (lambda: net(partial(LIF, surrogate=atan(2.0))), lambda: net(partial(LIF, surrogate=atan(3.0)))),
    "own surrogate": (lambda: net(partial(LIF, surrogate=own_surrogate(1.0))), lambda: net(partial(LIF, surrogate=own_surrogate(50.0)))),
    "code of an own surrogate": (lambda: net(partial(LIF, surrogate=lambda u: (-u * u).exp())), lambda: net(partial(LIF, surrogate=lambda u: 1 / (1 + u * u)))),
    "detach_reset": (lambda: net(), lambda: net(partial(LIF, detach_reset=False))),
    "output": (lambda: net(), lambda: net(partial(LIF, output="analogue"))),
    "T": (lambda: net(T=4), lambda: net(T=8)),
    "spikified T": (lambda: spikify(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)), T=4), lambda: spikify(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)), T=5)),
    "shortcut": (lambda: spiking_resnet((1,), width=4, shortcut="vanilla"), lambda: spiking_resnet((1,), width=4, shortcut="ms")),
    "groups": (lambda: G2GNet((1, 8, 8), 3, width=32, grouping="index"), lambda: G2GNet((1, 8, 8), 3, width=32, grouping="random")),
    "stride": (lambda: nn.Conv2d(1, 1, 1), lambda: nn.Conv2d(1, 1, 1, stride=2)),
    "dropout": (lambda: nn.Dropout(0.1), lambda: nn.Dropout(0.2)),
    "momentum of a norm": (lambda: nn.BatchNorm1d(2), lambda: nn.BatchNorm1d(2, momentum=0.2)),
    "frozen": (lambda: nn.Linear(2, 2), lambda: nn.Linear(2, 2).requires_grad_(False)),
    "type": (lambda: nn.Linear(2, 2), lambda: nn.Linear(2, 2).double()),
    "own T": (lambda: Mine(), lambda: Mine(T=5)),
    "own text": (lambda: Mine(), lambda: Mine(how="hard")),
    "own function": (lambda: Mine(), lambda: Mine(act=torch.relu)),
    "own lambda": (lambda: Mine(act=lambda x: x + 1), lambda: Mine(act=lambda x: x + 2)),
    "own partial": (lambda: Mine(act=partial(F.leaky_relu, negative_slope=0.1)), lambda: Mine(act=partial(F.leaky_relu, negative_slope=0.2))),
    "own tuple": (lambda: Mine(), lambda: Mine(table=((1, 3),))),
    "own buffer": (lambda: Mine(), lambda: Mine(groups=torch.tensor([0, 2, 1]))),
    "own dataclass": (lambda: Mine(settings=Constants()), lambda: Mine(settings=Constants(0.6))),
    "shared": (lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), lambda: nn.Sequential(*[nn.Linear(2, 2)] * 2)),
    "nothing in a place": (lambda: nn.Sequential(nn.Identity()), lambda: nn.Sequential(nn.ReLU())),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_equal_shapes_are_told_apart_and_equal_ones_are_not(name):
    one, other = NETWORKS[name]
    assert differences(describe(one()), describe(one())) == []
    lines = differences(describe(one()), describe(other()))
    assert lines and all(" there, " in line for line in lines)
    assert "0x" not in json.dumps(describe(one()))


def test_ties_and_hooks_are_part_of_it():
    tied, free = (
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
    )
    tied[1].weight = tied[0].weight
    assert differences(describe(free), describe(tied)) == [
        "1 weight is float32 [2, 2] there, same as 0.weight here"
    ]
    free[0].register_forward_hook(lambda module, x, out: out * 2)
    assert any(
        "forward_hooks" in line
        for line in differences(
            describe(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))), describe(free)
        )
    )


def test_the_mode_and_the_weights_are_not():
    one = net()
    assert (
        describe(one.eval())
        == describe(net().train())
        == describe(one.apply(lambda m: [p.data.zero_() for p in m.parameters()]))
    )


def test_the_difference_is_named():
    assert differences(
        describe(net(partial(LIF, decay=0.9))), describe(net(partial(LIF, decay=0.5)))
    )[0].endswith("decay is 0.9 there, 0.5 here")


# Values

STRENGTH = 0.1


class Augment:
    def __init__(self, strength):
        self.strength = strength

    def __call__(self, x):
        return x * self.strength


def adder(number):
    def add(x, more=number):
        return x + number + more

    return add


def with_global(strength):
    return eval("lambda x: x * STRENGTH", {"STRENGTH": strength})


class Slots:
    __slots__ = ("a",)

    def __init__(self, a):
        self.a = a


def made(cls_constant):
    class Own:
        constant = cls_constant

        def __call__(self, x):
            return x * self.constant

    return Own()


VALUES = {
    "number": (lambda: 0.1, lambda: 0.2), "true and one": (lambda: True, lambda: 1), "text": (lambda: "a" * 500, lambda: "a" * 499 + "b"), "NaN": (lambda: math.nan, lambda: math.inf),
    "closure": (lambda: adder(1), lambda: adder(2)), "code": (lambda: (lambda x: x + 1), lambda: (lambda x: x + 2)), "names in code": (lambda: (lambda x: x.sin()), lambda: (lambda x: x.cos())),
    "global": (lambda: with_global(0.1), lambda: with_global(0.2)), "object": (lambda: Augment(1), lambda: Augment(2)), "method": (lambda: Augment(1).__call__, lambda: Augment(2).__call__),
    "partial": (lambda: partial(F.cross_entropy, label_smoothing=0.1), lambda: partial(F.cross_entropy, label_smoothing=0.2)), "function": (lambda: F.relu, lambda: F.gelu),
    "loss with weights": (lambda: nn.CrossEntropyLoss(torch.ones(3)), lambda: nn.CrossEntropyLoss(torch.tensor([1.0, 1, 2]))), "slots": (lambda: Slots(1), lambda: Slots(2)),
    "class attribute": (lambda: made(1), lambda: made(2)), "tensor": (lambda: torch.zeros(3), lambda: torch.zeros(3, dtype=torch.int32)), "values": (lambda: torch.zeros(3), lambda: torch.ones(3)),
    "shape": (lambda: torch.zeros(2, 3), lambda: torch.zeros(3, 2)), "bfloat16": (lambda: torch.zeros(2, dtype=torch.bfloat16), lambda: torch.ones(2, dtype=torch.bfloat16)),
    "sparse": (lambda: torch.eye(2).to_sparse(), lambda: (2 * torch.eye(2)).to_sparse()), "array": (lambda: np.zeros(2), lambda: np.ones(2)), "objects": (lambda: np.array(["a", None], object), lambda: np.array(["b", None], object)),
    "table": (lambda: pd.DataFrame({"a": [1, 2]}), lambda: pd.DataFrame({"a": [1, 3]})), "list": (lambda: list(range(1000)), lambda: [*range(999), 0]), "keys": (lambda: {1: "a"}, lambda: {"1": "a"}),
    "set": (lambda: {"a", "b"}, lambda: {"a", "c"}), "generator": (lambda: np.random.default_rng(0), lambda: np.random.default_rng(1)), "torch generator": (lambda: torch.Generator().manual_seed(0), lambda: torch.Generator().manual_seed(1)),
    "data": (lambda: TensorDataset(X, Y), lambda: TensorDataset(X, Y.flip(0))), "part": (lambda: Subset(TensorDataset(X, Y), [0, 1]), lambda: Subset(TensorDataset(X, Y), [1, 0])),
    "sequences": (lambda: Sequences(X, Y), lambda: Sequences(X + 1, Y)), "concatenated": (lambda: ConcatDataset([TensorDataset(X, Y)] * 2), lambda: ConcatDataset([TensorDataset(X, Y), TensorDataset(X + 1, Y)])),
    "schedule": (lambda: milestones(0.5), lambda: milestones(0.50001)), "factor": (lambda: milestones(0.5), lambda: milestones(0.5, factor=0.30001)), "type": (lambda: torch.float32, lambda: torch.float64),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_values_are_told_apart_by_content(name):
    one, other = VALUES[name]
    assert (
        differences(identity_of(one()), identity_of(one()))
        == []
        != differences(identity_of(one()), identity_of(other()))
    )
    assert "0x" not in json.dumps(identity_of(one()))
    assert json.loads(json.dumps(identity_of(one()))) == identity_of(one())


def test_what_does_not_matter_is_left_out():
    assert identity_of(Subset(TensorDataset(X.clone(), Y), [0])) == identity_of(
        Subset(TensorDataset(X, Y), [0])
    )
    assert identity_of(X.t() if X.ndim == 2 else X.transpose(0, 1)) == identity_of(
        X.transpose(0, 1).contiguous()
    )
    assert identity_of(np.float64(0.5)) == identity_of(0.5) and differences(1, 1.0) == []
    counted = adder(1)
    counted.identity = "adds two"
    assert identity_of(counted) == {"function": "adds two"}


def test_values_that_hold_themselves_end():
    held = []
    held.append(held)
    knot = nn.Sequential(nn.Linear(1, 1))
    knot.own = [knot]
    assert "further out" in json.dumps(identity_of(held)) and "further out" in json.dumps(
        describe(knot)
    )


def test_files_are_known_by_size_and_time(tmp_path):
    (tmp_path / "a").write_text("one")
    before = identity_of([tmp_path / "a"])
    (tmp_path / "a").write_text("other")
    assert identity_of([tmp_path / "a"]) != before and identity_of(tmp_path / "missing") == str(
        tmp_path / "missing"
    )


OTHER_PROCESS = """
import sys, json
sys.path.insert(0, sys.argv[1])
import test_identity as here
print(json.dumps([[here.identity_of(make()) for make in pair] for pair in here.VALUES.values()] + [here.describe(make()) for pair in here.NETWORKS.values() for make in pair]))
"""


@pytest.mark.long
def test_descriptions_are_equal_in_every_process():
    said = [
        subprocess.run(
            [sys.executable, "-c", OTHER_PROCESS, str(Path(__file__).parent)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]


# Trainings


@pytest.fixture
def begun(tmp_path):
    def stop(epoch, epochs):
        if epoch == 2:
            raise KeyboardInterrupt

    def begin(model, data=None, **given):
        with pytest.raises(KeyboardInterrupt):
            short(
                model,
                *(data or ((X, Y), (X, Y))),
                checkpoint=tmp_path / "net.pt",
                on_epoch=stop,
                **given,
            )
        return tmp_path / "net.pt"

    return begin


def refused(path, model, said, data=None, **given):
    content, before = path.read_bytes(), state_hash(model.state_dict())
    with pytest.raises(ValueError, match=said) as caught:
        short(model, *(data or ((X, Y), (X, Y))), checkpoint=path, **given)
    assert (
        path.read_bytes() == content
        and state_hash(model.state_dict()) == before
        and "belongs to another training" in str(caught.value)
    )


@pytest.mark.parametrize(
    "name", ["decay", "v_th", "reset", "surrogate", "detach_reset", "output", "T"]
)
def test_a_checkpoint_knows_the_neurons(begun, name):
    one, other = NETWORKS[name]
    path = begun(one())
    refused(path, other(), f"{name.split()[0]}.* there, .* here")
    assert len(short(one(), (X, Y), (X, Y), checkpoint=path).rows) == 2


def weighted(strength):
    def loss(logits, y, reduction="mean"):
        return F.cross_entropy(logits, y, reduction=reduction) * strength

    return loss


def noisy(strength):
    return lambda x: x + strength


@pytest.mark.parametrize("began, goes_on, said", [
    ({}, {"loss": partial(F.cross_entropy, label_smoothing=0.1)}, "loss"),
    ({"loss": weighted(1.0)}, {"loss": weighted(2.0)}, "loss closed over strength is 1.0 there, 2.0 here"),
    ({"loss": partial(F.cross_entropy, weight=torch.ones(3))}, {"loss": partial(F.cross_entropy, weight=torch.arange(3.0))}, "loss keywords weight"),
    ({}, {"augment": noisy(0.1)}, "augment is null there"),
    ({"augment": noisy(0.1)}, {"augment": noisy(0.2)}, "augment closed over strength is 0.1 there, 0.2 here"),
    ({"augment": Augment(1)}, {"augment": Augment(2)}, "augment strength is 1 there, 2 here"),
    ({"schedule": milestones(0.5)}, {"schedule": milestones(0.5, factor=0.31)}, "schedule closed over factor"),
    ({"schedule": lambda p: 1 - p}, {"schedule": lambda p: 1 - p * p}, "schedule code"),
    ({"optimizer": partial(torch.optim.SGD, momentum=0.9)}, {"optimizer": partial(torch.optim.SGD, momentum=0.5)}, r"optimizer groups\[0\] momentum is 0.9 there, 0.5 here"),
    ({"patience": 5}, {"patience": 1}, "patience is 5 there, 1 here"),
])  # fmt: skip
def test_a_checkpoint_knows_the_training(begun, began, goes_on, said):
    path = begun(net(), **began)
    refused(path, net(), said, **goes_on)
    assert len(short(net(), (X, Y), (X, Y), checkpoint=path, **began).rows) == 2


def groups_of(rates):
    def make(parameters, lr):
        parameters = list(parameters)
        return torch.optim.SGD(
            [
                {"params": parameters[:2], "weight_decay": rates[0]},
                {"params": parameters[2:], "weight_decay": rates[1]},
            ],
            lr=lr,
        )

    return make


def test_a_checkpoint_knows_the_groups_of_parameters(begun):
    path = begun(net(), optimizer=groups_of((0.1, 0.2)))
    refused(
        path,
        net(),
        r"groups\[0\] weight_decay is 0.1 there, 0.2 here",
        optimizer=groups_of((0.2, 0.1)),
    )


@pytest.mark.parametrize("data", [
    ((X + 0.01, Y), (X, Y)), ((X, Y.flip(0)), (X, Y)), ((X, Y), (X.flip(0), Y)), ((X.double(), Y), (X, Y)), ((X, Y), (X[:6], Y[:6])), ((X, Y), None),
    (TensorDataset(X, Y), (X, Y)), (Subset(TensorDataset(X, Y), range(12)), (X, Y)),
], ids=range(8))  # fmt: skip
def test_a_checkpoint_knows_its_data(begun, data):
    refused(begun(net()), net(), "train|valid|items", data=data)


class Named(Dataset):
    def __init__(self, version):
        self.version, self.read = version, 0

    def __len__(self):
        return 12

    def __getitem__(self, i):
        self.read += 1
        return X[i], int(Y[i])

    def identity(self):
        return f"version {self.version}"


def test_a_data_set_may_say_what_it_is(begun):
    path = begun(net(), data=(Named(1), Named(1)))
    refused(
        path, net(), "train identity is version 1 there, version 2 here", data=(Named(2), Named(1))
    )
    used = Named(1)
    used.read = 100
    assert len(short(net(), used, Named(1), checkpoint=path).rows) == 2


def test_a_checkpoint_knows_the_weights_it_began_with(begun):
    path = begun(net())
    other = spiking_convnet(classes=3, width=4)
    refused(path, other, "initial weights")
    trained = net()
    first = short(trained, (X, Y), (X, Y), checkpoint=path)
    again = short(
        trained, (X, Y), (X, Y), checkpoint=path
    )  # the trained network itself, handed in once more
    assert again.rows == first.rows


def test_a_checkpoint_knows_the_momentum_it_began_with(begun, tmp_path):
    carried = [short(net(), (X, Y), seed=seed).optimizer_state for seed in (0, 1)]
    path = begun(net(), optimizer_state=carried[0])
    refused(path, net(), "optimizer_state", optimizer_state=carried[1])
    refused(path, net(), "optimizer_state")


def test_a_checkpoint_knows_how_it_is_rewired(begun):
    def wired():
        seed_everything(0)
        return G2GNet((1, 8, 8), 3, width=32)

    def rewiring(model, **given):
        return {
            "optimizer": Rewiring(
                model, **({"every": 1, "prune": "magnitude", "grow": "random"} | given)
            )
        }

    first, other, same = wired(), wired(), wired()
    path = begun(first, **rewiring(first))
    refused(path, other, "fraction is 0.1 there, 0.2 here", **rewiring(other, fraction=0.2))
    assert len(short(same, (X, Y), (X, Y), checkpoint=path, **rewiring(same)).rows) == 2


def test_a_checkpoint_of_the_first_version_is_refused_in_plain_words(tmp_path):
    save_checkpoint(
        tmp_path / "net.pt",
        {
            "settings": {"lr": 0.01},
            "rows": [],
            "best_state": {},
            "best_optimizer": {},
            "optimizer": {},
            "model": {},
        },
    )
    with pytest.raises(ValueError, match="written by version 0.1.0.*remove it"):
        short(net(), (X, Y), checkpoint=tmp_path / "net.pt")


def test_without_a_checkpoint_nothing_is_hashed(monkeypatch):
    monkeypatch.setattr(page, "_tensor", lambda value: 1 / 0)
    assert len(short(net(), (X, Y)).rows) == 2


class Ramped(ModuleWithSettings):
    "A ramp that the caller moves from epoch to epoch."

    def __init__(self, low=0.0):
        super().__init__()
        self.low, self.linear = low, nn.Linear(64, 3)

    def settings_now(self):
        return {"low": self.low}

    def forward(self, x):
        return self.linear(x.flatten(1).clamp_min(self.low))


def test_settings_that_the_caller_moves_do_not_stand_in_the_way(tmp_path):
    def move(net):
        return lambda epoch, epochs: setattr(net, "low", epoch / 10)

    seed_everything(0)
    first = Ramped()
    history = short(first, (X, Y), (X, Y), epochs=4, lr=1.0, on_epoch=move(first))
    assert first.low == 0.4 and state_hash(first.state_dict())
    seed_everything(0)
    broken = Ramped()

    def stop(epoch, epochs):
        move(broken)(epoch, epochs)
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        short(
            broken, (X, Y), (X, Y), epochs=4, lr=1.0, on_epoch=stop, checkpoint=tmp_path / "net.pt"
        )
    seed_everything(0)
    again = Ramped()
    resumed = short(
        again,
        (X, Y),
        (X, Y),
        epochs=4,
        lr=1.0,
        on_epoch=move(again),
        checkpoint=tmp_path / "net.pt",
    )
    assert resumed.best_epoch == history.best_epoch and torch.equal(
        again.linear.weight, first.linear.weight
    )
    seed_everything(0)
    with pytest.raises(ValueError, match="network low is 0.0 there, 0.5 here"):
        short(Ramped(0.5), (X, Y), (X, Y), epochs=4, lr=1.0, checkpoint=tmp_path / "net.pt")


def test_the_kept_step_is_that_of_the_kept_epoch():
    history = short(net(), (X, Y), (X, Y), epochs=4)
    assert history.steps == 3 and history.best_step == 3 * history.best_epoch


# Labels, answers and axes


def classifier(outputs=3):
    seed_everything(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, outputs))


class Answer(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.linear, self.make = nn.Linear(64, 3), make

    def forward(self, x):
        return self.make(self.linear(x.flatten(1)))


DOUBTFUL = {
    "float targets": (classifier(1), (X, Y.float()), F.mse_loss, "expected equal shapes.*y.:, None.|does not take answers"),
    "float targets and logits": (classifier(), (X, Y.float()), F.cross_entropy, "loss does not take answers"),
    "several integer targets": (classifier(), (X, torch.zeros(12, 3, dtype=torch.int64)), F.cross_entropy, "loss does not take answers"),
    "numbers as labels": (classifier(1), (X, Y), F.mse_loss, "for regression give y as floating-point"),
    "boolean labels": (classifier(), (X, Y > 1), F.cross_entropy, "give y.long.. or y.float"),
    "a label too high": (classifier(), (X, Y + 1), F.cross_entropy, "labels from . to 3; the model has 3 outputs, for labels from 0 to 2"),
    "a negative label": (classifier(), (X, Y - 1), F.cross_entropy, "labels from -1"),
    "no class axis": (Answer(lambda out: out[:, 0]), (X, Y), F.cross_entropy, "answers a batch of"),
    "two answers": (Answer(lambda out: (out, out)), (X, Y), F.cross_entropy, "give one loss for each"),
    "no answer": (Answer(lambda out: None), (X, Y), F.cross_entropy, "the model answers with"),
    "answers for other items": (Answer(lambda out: out[:2]), (X, Y), F.cross_entropy, "with N = 4|with N = 12"),
    "classes last but one": (Answer(lambda out: out.t()), (X, Y), F.cross_entropy, "with N = "),
    "whole answers": (Answer(lambda out: out.argmax(1)), (X, Y), F.cross_entropy, "expected logits"),
    "five axes": (classifier(), (torch.rand(4, 4, 1, 8, 8), torch.arange(4) % 3), F.cross_entropy, r"Sequences\(x, y\) for clips"),
    "NaN": (classifier(), (X * math.nan, Y), F.cross_entropy, "NaN or infinite"),
    "bytes": (classifier(), ((X * 255).byte(), Y), F.cross_entropy, "does not take a batch of .*uint8"),
    "double": (classifier(), (X.double(), Y), F.cross_entropy, "does not take a batch of .*float64"),
    "arrays": (classifier(), (X.numpy(), Y.numpy()), F.cross_entropy, "torch.from_numpy"),
    "a list": (classifier(), [X, Y], F.cross_entropy, "expected a pair .x, y."),
    "three tensors": (classifier(), (X, Y, Y), F.cross_entropy, "a tuple of 3"),
    "a tensor": (classifier(), X, F.cross_entropy, "expected a pair .x, y."),
    "items without labels": (classifier(), TensorDataset(X), F.cross_entropy, "expected two parts, inputs"),
    "targets of another width": (classifier(), TensorDataset(X, torch.rand(12, 2)), F.mse_loss, "loss does not take answers"),
    "a loss class": (classifier(), (X, Y), nn.CrossEntropyLoss, "loss is the class"),
}  # fmt: skip


def test_one_output_for_classes_is_refused():
    "Its accuracy would be 1, and its loss 0, whatever it has learned: a folder with one class."
    single = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    for call in (
        lambda: fit(single, (X, 0 * Y), epochs=1, lr=0.1),
        lambda: evaluate(single, (X, 0 * Y)),
    ):
        with pytest.raises(ValueError, match="1 output for the classes .*two classes or more"):
            call()
    assert evaluate(single, (X, Y[:, None].float()), loss=F.mse_loss)["loss"] > 0


IN_DATA = [
    name
    for name, (model, data, loss, said) in DOUBTFUL.items()
    if not (isinstance(data, tuple) and data[0] is X and data[1] is Y)
]
CASES = [(name, way) for name in DOUBTFUL for way in ("fit", "evaluate")] + [
    (name, "valid") for name in IN_DATA
]


@pytest.mark.parametrize("name, way", CASES)
def test_what_cannot_be_classified_is_refused(name, way):
    model, data, loss, said = DOUBTFUL[name]
    model = classifier() if way == "valid" else model
    before = state_hash(model.state_dict())
    with pytest.raises((TypeError, ValueError), match=said) as caught:
        if way == "evaluate":
            evaluate(model, data, loss=loss)
        elif way == "fit":
            short(model, data, loss=loss)
        else:
            short(model, (X, Y), data)
    assert str(caught.value).startswith(("fit: ", "evaluate: ")) and (
        way == "valid" or state_hash(model.state_dict()) == before
    )


@pytest.mark.parametrize("loss, said", [
    (lambda logits, y, reduction="mean": F.cross_entropy(logits, y, reduction="none"), "expected one number"),
    (lambda logits, y, reduction="mean": F.cross_entropy(logits, y), "one value for each item"),
    (lambda logits, y: F.cross_entropy(logits, y), "takes no argument reduction"),
    (nn.CrossEntropyLoss(), "takes no argument reduction"),
    (lambda logits, y, reduction="mean": F.cross_entropy(logits.detach(), y, reduction=reduction), "depends on no parameter"),
    (lambda logits, y, reduction="mean": F.cross_entropy(logits, y.float()[:2], reduction=reduction), "loss does not take logits"),
    (lambda logits, y, reduction="mean": 1.0, "expected one number"),
    (3, "loss is 3"),
])  # fmt: skip
def test_losses_of_another_form_are_refused(loss, said):
    with pytest.raises((TypeError, ValueError), match=said):
        short(classifier(), (X, Y), (X, Y), loss=loss)


def test_labels_of_any_integer_type_are_right():
    for kind in (torch.uint8, torch.int16, torch.int32):
        assert evaluate(classifier(), (X, Y.to(kind))) == evaluate(classifier(), (X, Y))
        assert [r["train_loss"] for r in short(classifier(), (X, Y.to(kind))).rows] == [
            r["train_loss"] for r in short(classifier(), (X, Y)).rows
        ]


class Reader(nn.Module):
    "Read [T, N, features], time first."

    def __init__(self):
        super().__init__()
        self.linear, self.readout = nn.Linear(5, 6), RateReadout(6, 3)

    def forward(self, x):
        return self.readout(over_time(self.linear, x.flatten(2)))


@pytest.mark.parametrize("T, batch", [(3, 4), (4, 4), (12, 12), (2, 12)])
@pytest.mark.parametrize("whole", [False, True])
def test_time_and_items_are_not_exchanged(T, batch, whole):
    x = torch.rand(12, T, 5, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, Y) if whole else (x, Y)
    with pytest.raises(ValueError, match="time first"):
        evaluate(Reader(), data, batch_size=batch)
    with pytest.raises(ValueError, match="time first"):
        short(Reader(), data, batch_size=batch)
    seed_everything(0)
    reader = Reader()
    right = (reader(x.transpose(0, 1)).argmax(1) == Y).double().mean().item()
    assert evaluate(reader, Sequences(x, Y), batch_size=batch)["accuracy"] == pytest.approx(right)
    assert len(short(reader, Subset(Sequences(x, Y), range(12)), batch_size=batch).rows) == 2


def test_the_look_at_one_item_leaves_no_trace():
    square = torch.rand(12, 4, 4), Y
    seed_everything(3)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(16), nn.Linear(16, 3))
    before, drawn = state_hash(model.state_dict()), torch.get_rng_state()
    evaluate(model, square, batch_size=4)
    assert (
        state_hash(model.state_dict()) == before
        and torch.equal(torch.get_rng_state(), drawn)
        and model.training
    )


def test_sums_are_not_counted_in_sixteen_bits():
    x, y = torch.rand(700, 4, generator=torch.Generator().manual_seed(0)), torch.arange(700) % 3
    seed_everything(0)
    model = nn.Linear(4, 3).bfloat16()
    logits = model(x.bfloat16()).float()
    expected = F.cross_entropy(logits, y).item()
    assert evaluate(model, (x.bfloat16(), y), batch_size=700)["loss"] == pytest.approx(
        expected, rel=1e-6
    )
    row = fit(
        model,
        (x.bfloat16(), y),
        epochs=1,
        lr=1e-12,
        batch_size=700,
        device="cpu",
        optimizer=torch.optim.SGD,
    ).rows[0]
    assert row["train_loss"] == pytest.approx(expected, rel=1e-6)


def test_double_is_measured_in_double():
    seed_everything(0)
    model, x = nn.Linear(64, 3).double(), X.flatten(1).double()
    assert (
        evaluate(model, (x, Y))["loss"]
        == F.cross_entropy(model(x), Y, reduction="none").mean().item()
    )


def test_answers_that_are_no_number_are_no_hits():
    model = classifier()
    nn.init.constant_(model[1].weight, math.nan)
    with pytest.raises(FloatingPointError, match="12 of 12 answers are NaN"):
        evaluate(model, (X, Y))


# Other arguments


@pytest.mark.parametrize("given, said", [
    ({"patience": 2}, "patience is 2, but there is no valid"), ({"workers": -1}, "workers is -1"), ({"epochs": 2.5}, "epochs is 2.5"), ({"epochs": True}, "epochs is True"),
    ({"device": torch.device("cpu")}, "device is"), ({"device": "cuda:1"}, "device is 'cuda:1'"), ({"schedule": lambda p: math.nan}, "schedule gives nan"),
    ({"schedule": lambda p: 1 - 2 * p}, "schedule gives -"), ({"schedule": lambda p: "fast"}, "schedule gives 'fast'"), ({"schedule": lambda p: math.inf}, "schedule gives inf"),
    ({"optimizer": torch.optim.Adam(nn.Linear(1, 1).parameters())}, "(?s)optimizer is .*its class"), ({"optimizer": "adam"}, "optimizer is 'adam'"),
    ({"optimizer": lambda parameters: 0}, "cannot be called as optimizer"), ({"optimizer": lambda parameters, lr: 0}, "what optimizer returns is 0"), ({"optimizer": torch.optim.LBFGS}, "LBFGS"),
    ({"checkpoint": ""}, "checkpoint is ''"), ({"checkpoint": True}, "checkpoint is True"), ({"checkpoint": "."}, "a folder"), ({"augment": 3}, "augment is 3"), ({"augment": lambda x: None}, "what augment returns is None"),
    ({"on_epoch": "print"}, "on_epoch is 'print'"), ({"progress": 1}, "progress is 1"), ({"optimizer_state": 3}, "optimizer_state is 3"), ({"mixed_precision": None}, "mixed_precision is None"),
])  # fmt: skip
def test_wrong_arguments_are_named(given, said):
    model = classifier()
    before = state_hash(model.state_dict())
    with pytest.raises((TypeError, ValueError), match=said):
        short(model, (X, Y), **given)
    assert state_hash(model.state_dict()) == before


def test_networks_with_nothing_to_train_are_refused():
    for model, said in (
        (nn.Flatten(), "without a parameter that can change"),
        (classifier().requires_grad_(False), "can change"),
        (nn.Linear(2, 2, device="meta"), "meta device"),
        (nn.Linear, "the class Linear"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            short(model, (X, Y))


@pytest.mark.parametrize(
    "call",
    [
        lambda: seed_everything(2.5),
        lambda: seed_everything(True),
        lambda: seed_everything("1"),
        lambda: seed_everything(0, -1),
        lambda: milestones(0.0),
        lambda: milestones(1.0),
        lambda: milestones(2),
        lambda: milestones("a"),
        lambda: milestones(0.5, factor=0),
        lambda: milestones(0.5, factor=-1),
        lambda: milestones(0.5, factor=10),
        lambda: milestones(math.nan),
    ],
)
def test_numbers_outside_their_range_are_refused(call):
    with pytest.raises((TypeError, ValueError)):
        call()


def test_numpy_integers_are_seeds():
    seed_everything(np.int64(3))
    first = torch.rand(1)
    seed_everything(3)
    assert torch.equal(first, torch.rand(1))


# Several processes

TWO = """
import json, os, sys
from pathlib import Path
import torch
from torch import nn
sys.path.insert(0, sys.argv[1])
from test_identity import X, Y, classifier
from neurobridge.core import fit
rank = int(os.environ["RANK"])
torch.set_num_threads(1)
def tried(model=None, data=(X, Y), valid=(X, Y), **given):
    model = model or classifier()
    try:
        history = fit(model, data, valid, **{"epochs": 4, "lr": 0.05, "batch_size": 3, "device": "cpu", "progress": False, **given})
        return [history.best_epoch, len(history.rows), [p.double().sum().item() for p in model.parameters()], history.rows]
    except (ValueError, TypeError, ArithmeticError) as error:
        return str(error)
found = {"differently held out": tried(valid=(X + rank * torch.randn_like(X), Y.roll(rank)), patience=1)}
here = Path(f"only{rank}") if rank else Path("shared")
here.mkdir(exist_ok=True)
found["one file"] = tried(checkpoint=here / "net.pt", epochs=2)
found["goes on"] = tried(checkpoint=here / "net.pt", epochs=2)
found["refused"] = tried(checkpoint=here / "net.pt", epochs=3)
found["called differently"] = tried(epochs=2 + rank)
Path(f"found{rank}").write_text(json.dumps(found))
"""


@pytest.mark.long
@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch has no gloo backend here",
)
def test_processes_decide_alike(tmp_path, launch):
    launch(tmp_path, TWO, str(Path(__file__).parent))
    first, second = (json.loads((tmp_path / f"found{rank}").read_text()) for rank in range(2))
    assert first == second
    assert isinstance(first["differently held out"], list) and first["one file"] == first["goes on"]
    assert (
        "epochs is 2 there, 3 here" in first["refused"]
        and "called differently: epochs is 2 there, 3 here" in first["called differently"]
    )
    assert (tmp_path / "shared" / "net.pt").exists() and not (
        tmp_path / "only1" / "net.pt"
    ).exists()
    assert load_checkpoint(tmp_path / "shared" / "net.pt")["settings"]["processes"] == 2
