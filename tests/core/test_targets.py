"""Data loaders, regression, several labels, maps and several outputs in `fit` and `evaluate`: equal to loops written by hand, refused where unclear."""

import math
from collections import namedtuple
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    Subset,
    TensorDataset,
)

from neurobridge.core import Sequences, evaluate, fit, seed_everything
from neurobridge.core.identity import state_hash

pytestmark = pytest.mark.usefixtures("one_thread")

short = partial(fit, epochs=2, lr=1e-2, device="cpu")


def drawn(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


X, Y, REAL = drawn(40, 6), torch.arange(40) % 3, drawn(40, 2, seed=1)


def network(outputs=3, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, outputs))


def rows(history):
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in history.rows]


def loader(x=X, y=Y, size=8, **more):
    return DataLoader(TensorDataset(x, y), size, **more)


# Loaders


def test_a_loader_is_trained_as_in_a_loop_of_ones_own():
    by_hand, net = network(), network()
    history = short(net, loader(), optimizer=torch.optim.SGD, schedule="constant", seed=3)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=1e-2)
    losses = []
    for epoch in (1, 2):
        seed_everything(3, epoch)
        losses.append([])
        for x, y in loader():
            loss = F.cross_entropy(by_hand(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert state_hash(net.state_dict()) == state_hash(by_hand.state_dict())
    np.testing.assert_allclose(history.frame().train_loss, np.mean(losses, 1), rtol=1e-6)
    assert history.steps == 5


def test_a_loader_and_a_pair_are_measured_alike():
    net = network()
    assert evaluate(net, loader(size=7)) == evaluate(net, (X, Y), batch_size=7)
    by_pair, by_loader = network(), network()
    first = short(by_pair, (X, Y), (X, Y), batch_size=8)
    second = short(by_loader, (X, Y), loader(size=16), batch_size=8)
    assert rows(first) == rows(second)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_a_shuffling_loader_goes_on_exactly(tmp_path, workers):
    call = dict(epochs=4, device="cpu", lr=1e-2, checkpoint=tmp_path / "net.pt")
    given = lambda: (loader(shuffle=True, num_workers=workers, drop_last=True), loader())  # noqa: E731
    whole, broken, again = network(), network(), network()
    history = fit(whole, *given(), epochs=4, device="cpu", lr=1e-2)

    def stop(epoch, epochs):
        torch.rand(3)  # the caller's own draws change nothing
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(broken, *given(), on_epoch=stop, **call)
    resumed = fit(again, *given(), **call)
    assert rows(resumed) == rows(history)
    assert state_hash(again.state_dict()) == state_hash(whole.state_dict())
    orders = {row["train_loss"] for row in history.rows}
    assert len(orders) == 4


@pytest.mark.parametrize("other, said", [
    (lambda: loader(size=4, shuffle=True), "train batch size is 8 there, 4 here"),
    (lambda: loader(X + 1, shuffle=True), "train data set tensors"),
    (lambda: loader(), "train sampler"),
    (lambda: loader(shuffle=True, drop_last=True), "train drop_last"),
    (lambda: (X, Y), "train"),
])  # fmt: skip
def test_another_loader_does_not_go_on_with_a_checkpoint(tmp_path, other, said):
    short(network(), loader(shuffle=True), checkpoint=tmp_path / "net.pt")
    with pytest.raises(ValueError, match=f"belongs to another training.*{said}"):
        short(network(), other(), checkpoint=tmp_path / "net.pt")
    assert len(short(network(), loader(shuffle=True), checkpoint=tmp_path / "net.pt").rows) == 2


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


class CountedStream(Stream):
    def __len__(self):
        return len(X)


class OwnOrder(Sampler):
    def __iter__(self):
        return iter(range(40))

    def __len__(self):
        return 40


OWN = {
    "a generator": lambda: loader(shuffle=True, generator=torch.Generator()),
    "a sampler": lambda: loader(sampler=OwnOrder()),
    "workers that stay": lambda: loader(num_workers=1, persistent_workers=True),
    "a stream": lambda: DataLoader(CountedStream(), 8),
}


@pytest.mark.parametrize("name", OWN)
def test_an_order_that_no_seed_gives_back_is_refused_with_a_checkpoint(tmp_path, name):
    with pytest.raises(ValueError, match="fit: train is a DataLoader that .*leave out checkpoint"):
        short(network(), OWN[name](), checkpoint=tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())
    assert len(short(network(), OWN[name](), epochs=1).rows) == 1


class Triples(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        return X[i], Y[i], Y[i]


class Named(Triples):
    def __getitem__(self, i):
        return {"x": X[i], "y": Y[i]}


class Words(Triples):
    def __getitem__(self, i):
        return X[i], "cat"


clips = Sequences(drawn(12, 4, 6), Y[:12])
UNCLEAR = {
    "three parts": (lambda: DataLoader(Triples(), 3), "expected two parts, inputs"),
    "a dict": (lambda: DataLoader(Named(), 3), "expected two parts, inputs"),
    "words": (lambda: DataLoader(Words(), 3), "expected targets, a tensor"),
    "no batch": (lambda: loader(size=64, drop_last=True), "makes no batch"),
    "no length": (lambda: DataLoader(Stream(), 8), "without a length"),
    "clips with torch's collate": (lambda: DataLoader(clips, 3), "give the loader collate_fn=Sequences.collate"),
    "a part of them": (lambda: DataLoader(Subset(clips, range(6)), 3), "collate_fn=Sequences.collate"),
    "shared already": (lambda: loader(sampler=DistributedSampler(TensorDataset(X, Y), 2, 0)), "DistributedSampler"),
    "targets of other items": (lambda: DataLoader(Triples(), 3, collate_fn=lambda items: (X[:3], Y[:2])), "2 targets; expected"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNCLEAR)
@pytest.mark.parametrize("way", ["fit", "valid", "evaluate"])
def test_loaders_that_are_unclear_are_refused(name, way):
    make, said = UNCLEAR[name]
    net = network()
    before = state_hash(net.state_dict())
    with pytest.raises((TypeError, ValueError), match=said) as caught:
        if way == "evaluate":
            evaluate(net, make())
        elif way == "fit":
            short(net, make())
        else:
            short(net, (X, Y), make())
    assert str(caught.value).startswith(("fit: ", "evaluate: "))
    assert way == "valid" or state_hash(net.state_dict()) == before


@pytest.mark.parametrize("given", [{"batch_size": 8}, {"workers": 2}])
def test_two_batch_sizes_are_refused(given):
    with pytest.raises(ValueError, match=f"fit: {next(iter(given))} is .*DataLoader, which has"):
        short(network(), loader(), **given)
    with pytest.raises(ValueError, match="evaluate: batch_size is 8, and data is a DataLoader"):
        evaluate(network(), loader(), batch_size=8)
    assert len(short(network(), (X, Y), loader(), batch_size=8).rows) == 2


class TimeFirst(nn.Module):
    "Read [T, N, features]."

    def __init__(self, outputs=3):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, outputs)

    def forward(self, x):
        return self.linear(x.mean(0))


class Clips(Dataset):
    def __init__(self, y=Y, x=clips.x):
        self.x, self.y = x, y

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return self.x[i], self.y[i]


def time_first(items):
    return torch.stack([x for x, _ in items], 1), torch.stack([y for _, y in items])


@pytest.mark.parametrize("targets", [Y, REAL, REAL[:, :1]])
def test_the_axes_of_clips_from_loaders(targets):
    net = TimeFirst(3 if targets is Y else targets.shape[1])
    given = {} if targets is Y else {"loss": F.mse_loss}
    with torch.no_grad():
        answers = net(clips.x.transpose(0, 1))
    loss = (F.cross_entropy if targets is Y else F.mse_loss)(answers, targets[:12]).item()
    right = DataLoader(Clips(targets), 3, collate_fn=time_first)
    assert evaluate(net, right, **given)["loss"] == pytest.approx(loss, rel=1e-5)
    of_our_own = DataLoader(Sequences(clips.x, targets[:12]), 3, collate_fn=Sequences.collate)
    assert evaluate(net, of_our_own, **given)["loss"] == pytest.approx(loss, rel=1e-5)
    for size in (3, 4, 12):  # batches of 4 have as many items as steps
        with pytest.raises(ValueError, match="time first"):
            evaluate(net, DataLoader(Clips(targets), size), **given)
        with pytest.raises(ValueError, match="time first"):
            short(net, DataLoader(Clips(targets), size), **given)
    with pytest.raises(ValueError, match="cannot be seen where N = T = 4: give another batch_size"):
        evaluate(net, DataLoader(Clips(targets), 4, collate_fn=time_first), **given)


# Numbers, several labels, maps


def test_regression_is_measured_and_chosen_by_its_loss():
    net = network(2)
    history = short(net, (X, REAL), (X[:9], REAL[:9]), epochs=6, lr=0.3, loss=F.mse_loss)
    frame = history.frame()
    assert not [name for name in frame if "accuracy" in name]
    assert history.best_epoch == frame.valid_loss.argmin() + 1
    assert history.chosen_by == "lowest valid_loss"
    with torch.no_grad():
        expected = F.mse_loss(net.eval()(X[:9]), REAL[:9]).item()
    assert history.best["valid_loss"] == pytest.approx(expected, rel=1e-6)
    found = evaluate(net, (X[:9], REAL[:9]), batch_size=4, loss=F.mse_loss)
    assert found == {"loss": pytest.approx(expected, rel=1e-6)}


def test_the_first_metric_chooses():
    def distance(out, y):
        return (out - y).norm(dim=1)

    call = dict(epochs=6, lr=0.3, loss=F.mse_loss)
    near = short(network(2), (X, REAL), (X, REAL), metric=distance, keep="lowest", **call)
    far = short(network(2), (X, REAL), (X, REAL), metric={"far": distance, "one": lambda out, y: out}, **call)  # fmt: skip
    by_loss = short(network(2), (X, REAL), (X, REAL), metric=distance, keep="loss", **call)
    assert near.best["valid_distance"] == near.frame().valid_distance.min()
    assert far.best["valid_far"] == far.frame().valid_far.max()
    assert by_loss.best["valid_loss"] == by_loss.frame().valid_loss.min()
    assert {"train_far", "valid_one", "train_loss"} <= set(far.frame())
    assert far.chosen_by == "highest valid_far" and near.chosen_by == "lowest valid_distance"
    one = short(network(), (X, Y), (X, Y), keep="loss", **call | {"loss": F.cross_entropy})
    assert one.best["valid_loss"] == one.frame().valid_loss.min()
    assert "valid_accuracy" in one.best and one.chosen_by == "lowest valid_loss"


def test_classes_are_still_chosen_by_accuracy_and_may_have_metrics():
    def sure(out, y):
        return out.softmax(1).amax(1)

    history = short(network(), (X, Y), (X, Y), metric={"sure": sure})
    assert {"valid_accuracy", "valid_sure", "train_sure"} <= set(history.best)
    assert short(network(), (X, Y), (X, Y)).chosen_by == "highest valid_accuracy"
    assert short(network(), (X, Y)).chosen_by == "last epoch"


def test_several_labels_at_once():
    several = (drawn(40, 3, seed=4) > 0.5).float()
    loss = F.binary_cross_entropy_with_logits

    def all_right(out, y):
        return (out > 0) == (y > 0.5)

    net = network(3)
    found = evaluate(net, (X, several), 16, loss=loss, metric=all_right)
    with torch.no_grad():
        out = net.eval()(X)
    assert found["loss"] == pytest.approx(loss(out, several).item(), rel=1e-6)
    assert found["all_right"] == pytest.approx(((out > 0) == (several > 0.5)).float().mean().item())
    assert "accuracy" not in found
    assert len(short(network(3), (X, several), (X, several), loss=loss).rows) == 2


class Map(nn.Module):
    def __init__(self, classes):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, classes, 3, padding=1)

    def forward(self, x):
        return self.conv(x)


@pytest.mark.parametrize("kind", ["classes", "numbers", "shares"])
def test_maps(kind):
    images = drawn(10, 1, 5, 4)
    if kind == "classes":
        net, y, loss = Map(3), (images[:, 0] * 3).long(), F.cross_entropy
    elif kind == "numbers":
        net, y, loss = Map(1), (images > 0.5).float(), F.binary_cross_entropy_with_logits
    else:
        net, y, loss = Map(3), drawn(10, 3, 5, 4).softmax(1), F.cross_entropy
    with torch.no_grad():
        expected = loss(net(images), y).item()
    found = evaluate(net, (images, y), batch_size=4, loss=loss)
    assert found == {"loss": pytest.approx(expected, rel=1e-5)}
    history = short(net, DataLoader(TensorDataset(images, y), 4), (images, y), loss=loss)
    assert list(history.rows[0]) == ["epoch", "lr", "train_loss", "seconds", "core_seconds", "valid_loss"]  # fmt: skip


# Several outputs

Two = namedtuple("Two", "kind place")


class Heads(nn.Module):
    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.kind, self.place, self.form = network(8), nn.Linear(8, 3), nn.Linear(8, 2), form  # fmt: skip

    def forward(self, x):
        features = self.body(x)
        return self.form(self.kind(features), self.place(features))


FORMS = {
    "dict": lambda kind, place: {"kind": kind, "place": place},
    "tuple": lambda kind, place: (kind, place),
    "list": lambda kind, place: [kind, place],
    "named": Two,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_several_outputs(form, precision):
    y = FORMS[form](Y, REAL)
    loss = FORMS["dict" if form == "dict" else "tuple"](F.cross_entropy, F.mse_loss)
    net = Heads(FORMS[form])
    with torch.no_grad():
        out = net.eval()(X)
    kind, place = out.values() if form == "dict" else out
    expected = (F.cross_entropy(kind, Y) + F.mse_loss(place, REAL)).item()
    found = evaluate(net, (X, y), batch_size=16, loss=loss)
    assert found == {"loss": pytest.approx(expected, rel=1e-6)}
    net.train()
    history = short(net, (X, y), (X, y), loss=loss, mixed_precision=precision, batch_size=8)
    assert history.chosen_by == "lowest valid_loss"
    assert history.rows[-1]["train_loss"] < expected


def test_an_own_loss_of_several_outputs_and_one_target():
    def loss(out, y, reduction="mean"):
        return F.cross_entropy(out[0], y, reduction=reduction) + 0.1 * (out[1] ** 2).mean()

    history = short(Heads(FORMS["tuple"]), (X, Y), (X, Y), loss=loss)
    assert "valid_accuracy" not in history.best  # which output would be the class?


MISMATCHED = {
    "a loss too few": (FORMS["dict"], {"kind": Y, "place": REAL}, {"kind": F.cross_entropy}, "parts of loss, .'kind'."),
    "a target too few": (FORMS["dict"], {"kind": Y}, {"kind": F.cross_entropy, "place": F.mse_loss}, "y has .'kind'."),
    "no output of this name": (FORMS["dict"], {"sort": Y}, {"sort": F.cross_entropy}, "no output 'sort'"),
    "by place and name": (FORMS["tuple"], {"kind": Y}, {"kind": F.cross_entropy}, "parts of loss"),
    "one loss for two": (FORMS["tuple"], (Y, REAL), F.cross_entropy, "one loss for each"),
    "no loss": (FORMS["tuple"], (Y, REAL), (), "loss is ..; expected one function"),
    "no function": (FORMS["tuple"], (Y, REAL), (F.cross_entropy, 3), "loss.1. is 3"),
    "other items": (FORMS["tuple"], (Y, REAL[:5]), (F.cross_entropy, F.mse_loss), "expected as many items in each part"),
    "no target": (FORMS["tuple"], (), (F.cross_entropy, F.mse_loss), "no tensors"),
    "text": (FORMS["tuple"], (Y, "a"), (F.cross_entropy, F.mse_loss), "y of .*1. is 'a'"),
    "an output of other items": (lambda kind, place: (kind, place[:3]), (Y, REAL), (F.cross_entropy, F.mse_loss), "at .1.; expected"),
    "an output that is no tensor": (lambda kind, place: (kind, 3.0), (Y, REAL), (F.cross_entropy, F.mse_loss), "the model answers with"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISMATCHED)
@pytest.mark.parametrize("way", ["fit", "evaluate"])
def test_outputs_losses_and_targets_that_differ_are_refused(name, way):
    form, y, loss, said = MISMATCHED[name]
    net = Heads(form)
    before = state_hash(net.state_dict())
    with pytest.raises((TypeError, ValueError), match=said) as caught:
        (short if way == "fit" else evaluate)(net, (X, y), loss=loss)
    assert str(caught.value).startswith(way) and state_hash(net.state_dict()) == before


# What would be wrong without a word


def apart(out, y, reduction="mean"):
    values = (out - y) ** 2
    return values.mean() if reduction == "mean" else values


@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss, apart])
@pytest.mark.parametrize("outputs, targets", [(1, REAL[:, 0]), (2, REAL[:, 0]), (2, REAL[:, :1])])
def test_shapes_that_torch_would_stretch_are_refused(loss, outputs, targets):
    if loss is apart and targets.ndim == 2:
        return  # torch does not warn, and the shapes are the user's own
    with pytest.raises(ValueError, match="targets"):
        evaluate(network(outputs), (X, targets), loss=loss)
    if outputs == 1 or loss is not apart:
        with pytest.raises(ValueError, match="targets"):
            short(network(outputs), (X, targets), loss=loss)


@pytest.mark.parametrize("metric, said", [
    (F.l1_loss, "metric l1_loss.*expected .40., one value for each item"),
    (lambda out, y: 1.0, "metric metric.* gives 1.0"),
    (lambda out, y: out[:2].mean(1), "metric metric"),
    ({"loss": F.l1_loss}, "other than 'loss'"), ({"a b": F.l1_loss}, "metric has the name 'a b'"), ({3: F.l1_loss}, "the name 3"),
    ({"a": 3}, "metric.'a'. is 3"), (3, "metric is 3"),
])  # fmt: skip
def test_metrics_of_another_form_are_refused(metric, said):
    for call in (evaluate, short):
        with pytest.raises((TypeError, ValueError), match=said):
            call(network(2), (X, REAL), loss=F.mse_loss, metric=metric)


def test_a_metric_that_is_no_number_is_refused():
    def share(out, y):
        return out.sum(1) / (y.sum(1) * 0)

    with pytest.raises(FloatingPointError, match="the metric share is"):
        evaluate(network(2), (X, REAL), loss=F.mse_loss, metric=share)


@pytest.mark.parametrize("given, said", [
    ({"keep": "highest"}, "keep is 'highest', but there is no metric"),
    ({"keep": "best"}, "keep is 'best'; expected one of"),
    ({"keep": "loss", "valid": None}, "keep is 'loss', but there is no valid"),
])  # fmt: skip
def test_what_cannot_choose_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        short(network(), **{"train": (X, Y), "valid": (X, Y)} | given)


def test_a_checkpoint_knows_its_metric(tmp_path):
    call = dict(loss=F.mse_loss, checkpoint=tmp_path / "net.pt")
    short(network(2), (X, REAL), (X, REAL), metric=apart_per_item, **call)
    with pytest.raises(ValueError, match="belongs to another training.*metric"):
        short(network(2), (X, REAL), (X, REAL), **call)
    again = short(network(2), (X, REAL), (X, REAL), metric=apart_per_item, **call)
    assert again.chosen_by == "highest valid_apart_per_item"


def apart_per_item(out, y):
    return (out - y).abs()


def test_numbers_of_sequences_in_memory():
    y = REAL[:12]
    net = TimeFirst(2)
    assert len(short(net, Sequences(clips.x, y), Sequences(clips.x, y), loss=F.mse_loss).rows) == 2
    for size in (3, 4):
        with pytest.raises(ValueError, match="time first"):
            evaluate(net, (clips.x, y), batch_size=size, loss=F.mse_loss)
    with pytest.raises(ValueError, match="12 inputs but 5 targets"):
        Sequences(clips.x, REAL[:5])
    with pytest.raises(ValueError, match="NaN"):
        Sequences(clips.x, y * math.nan)
