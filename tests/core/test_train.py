"""Training: killed anywhere and continued to the bit, refused where it must be, honest about the epoch that is kept, on one process or two."""

import functools
import hashlib
import io
import json
import math
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import warnings
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import neurobridge
from neurobridge.core import (
    checkpoints,
    convolution,
    evaluate,
    fit,
    load_checkpoint,
    milestones,
    save_checkpoint,
    seed_everything,
)
from neurobridge.core import train as page
from neurobridge.core.schedules import SCHEDULES

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(neurobridge.__file__).resolve().parents[1]
TIMING = ("seconds", "core_seconds")


def points(n, seed=0):
    "Three classes of points in six dimensions."
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return torch.tensor(
        rng.normal(size=(n, 6)) + 2 * np.eye(6)[y], dtype=torch.float32
    ), torch.tensor(y)


def network(seed=0, wide=8, dropout=0.3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, wide),
            nn.BatchNorm1d(wide),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(wide, 3),
        )


def noisy(x):
    "Draw from all three generators."
    return x + 0.1 * torch.randn_like(x) + np.random.normal() / 10 + random.random() / 10


TRAIN, VALID = points(72), points(40, seed=1)
short = partial(fit, epochs=3, lr=1e-2, batch_size=16, device="cpu")


def rows(history):
    return [
        {name: value for name, value in row.items() if name not in TIMING} for row in history.rows
    ]


def weights(model):
    return {name: value.tolist() for name, value in model.state_dict().items()}


def states():
    return (
        random.getstate(),
        [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        torch.get_rng_state().tolist(),
    )


# Killed and continued: for each line of input a fork that trains and, where asked, kills itself at its n-th batch or n-th system call of a write,
# or that trains with its output going into two given files.

SERVER = """
import hashlib, json, os, signal, sys
import torch
from neurobridge.core import files, train
sys.path.insert(0, sys.argv[1])
from test_train import TRAIN, VALID, network, noisy, rows

def attempt(path, at, fatal):
    counts = dict(batch=0, call=0)
    def count(kind):
        counts[kind] += 1
        if (kind, counts[kind]) == (at, fatal): os.kill(os.getpid(), signal.SIGKILL)
    def augment(x):
        count("batch")
        return noisy(x)
    augment.identity = "noisy"  # what it counts is no part of the training
    def deadly(function):
        def call(*args):
            count("call")
            return function(*args)
        return call
    os.fsync, os.replace = map(deadly, (os.fsync, os.replace))
    net = network()
    history = train.fit(net, TRAIN, VALID, epochs=4, lr=3e-2, batch_size=16, augment=augment, device="cpu", checkpoint=path)
    content = b"".join(value.numpy().tobytes() for value in net.state_dict().values())
    seconds = [row["seconds"] for row in history.rows]
    result = dict(rows=rows(history), best=history.best_epoch, weights=hashlib.sha256(content).hexdigest())
    print(json.dumps(dict(result=result, seconds=seconds, **counts)), flush=True)

def show(*files):
    for stream, name in enumerate(files, 1): os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), stream)
    train.fit(network(), TRAIN, epochs=3, lr=1e-3, batch_size=16, device="cpu")
    print("trained", flush=True)
    os._exit(1)

torch.set_num_threads(1)
train.fit(network(), TRAIN, epochs=1, lr=1e-3, device="cpu")
for line in sys.stdin:
    if (child := os.fork()) == 0:
        name, *given = json.loads(line)
        (attempt if name == "attempt" else show)(*given)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code: print(json.dumps(dict(code=code)), flush=True)
"""
QUIET = {name: value for name, value in os.environ.items() if name != "JPY_SESSION_NAME"}


@pytest.fixture(scope="module")
def ask():
    command = [sys.executable, "-c", SERVER, str(Path(__file__).parent)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=QUIET
    ) as server:

        def ask(*line):
            server.stdin.write(json.dumps(line) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield ask
        server.stdin.close()


@pytest.fixture(scope="module")
def attempt(ask):
    return lambda path, at="", fatal=0: ask("attempt", str(path), at, fatal)


@pytest.fixture(scope="module")
def unbroken(attempt, tmp_path_factory):
    return attempt(tmp_path_factory.mktemp("unbroken") / "net.pt")


@pytest.mark.long
def test_the_unbroken_training_is_a_fair_test(unbroken):
    assert (
        unbroken["batch"] == 16 and unbroken["call"] == 12 and len(unbroken["result"]["rows"]) == 4
    )
    accuracy = [row["valid_accuracy"] for row in unbroken["result"]["rows"]]
    assert len(set(accuracy)) > 2 and accuracy[0] < max(accuracy)


@pytest.mark.parametrize(
    "at, fatal", [("batch", n) for n in (1, 3, 5, 8, 11, 16)] + [("call", n) for n in range(1, 13)]
)
def test_killed_then_continued_is_the_unbroken_training(attempt, unbroken, tmp_path, at, fatal):
    path = tmp_path / "net.pt"
    assert attempt(path, at, fatal) == {"code": -signal.SIGKILL}
    done = len(load_checkpoint(path)["rows"]) if path.exists() else 0
    assert done == ((fatal - 1) // 4 if at == "batch" else fatal // 3)
    again = attempt(path)
    assert again["result"] == unbroken["result"]
    assert again["batch"] == 16 - 4 * done and again["seconds"] == sorted(again["seconds"])


def test_killed_again_and_again(attempt, unbroken, tmp_path):
    path = tmp_path / "net.pt"
    for kills, (at, fatal) in enumerate(
        [
            ("batch", 7),
            ("call", 2),
            ("batch", 3),
            ("call", 5),
            ("batch", 4),
            ("call", 1),
            ("call", 3),
        ],
        1,
    ):
        assert attempt(path, at, fatal) == {"code": -signal.SIGKILL}, kills
    assert attempt(path)["result"] == unbroken["result"]
    content = path.read_bytes()
    finished = attempt(path)
    assert (
        finished["result"] == unbroken["result"]
        and finished["batch"] == finished["call"] == 0
        and path.read_bytes() == content
    )


# Damaged checkpoints


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "net.pt"
    save_checkpoint(
        path, {"rows": [{"epoch": 1, "lr": 0.5}], "model": {"w": torch.arange(3.0)}, "name": "Adam"}
    )
    assert load_checkpoint(path)["rows"] == [{"epoch": 1, "lr": 0.5}]
    return path.read_bytes()


def refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_checkpoint(path)
    assert (
        str(path) in str(caught.value)
        and f"{len(content):,} bytes" in str(caught.value)
        and "remove it" in str(caught.value)
    )


def test_a_truncation_anywhere_is_refused_by_name(tmp_path, content):
    for length in {*range(80), *range(80, len(content), 5), len(content) - 1}:
        refused(tmp_path / "net.pt", content[:length])


def test_a_flipped_bit_anywhere_is_refused_by_name(tmp_path, content):
    for position in {*range(80), *range(80, len(content), 5), len(content) - 1}:
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        refused(tmp_path / "net.pt", bytes(damaged))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_other_damage_is_refused_by_name(tmp_path, content, data):
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content)))
    damaged = content[:start] + data.draw(st.binary(max_size=50)) + content[end:]
    if damaged != content:
        refused(tmp_path / "net.pt", damaged)


def test_fit_refuses_damage_and_touches_nothing(tmp_path, content):
    for damaged in (b"", content[:-1], b"PK\x03\x04", content + b"\n"):
        (tmp_path / "net.pt").write_bytes(damaged)
        net = network()
        with pytest.raises(ValueError, match="net.pt is not a whole checkpoint"):
            short(net, TRAIN, checkpoint=tmp_path / "net.pt")
        assert (tmp_path / "net.pt").read_bytes() == damaged and weights(net) == weights(network())


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def whole(path, content):
    path.write_bytes(checkpoints._MAGIC + hashlib.sha256(content).digest() + content)
    return path


def test_a_checkpoint_cannot_run_code(tmp_path):
    with pytest.raises(TypeError, match=r"state\['model'\] is .*Bomb"):
        save_checkpoint(tmp_path / "net.pt", {"model": Bomb(tmp_path / "exploded")})
    assert not list(tmp_path.iterdir())
    torch.save({"model": Bomb(tmp_path / "exploded")}, buffer := io.BytesIO())
    with pytest.raises(ValueError, match="net.pt was not written by save_checkpoint") as caught:
        load_checkpoint(whole(tmp_path / "net.pt", buffer.getvalue()))
    assert not (tmp_path / "exploded").exists() and "weights_only" not in str(caught.value)


def test_a_checkpoint_that_unfolds_is_refused(tmp_path):
    torch.save({"model": torch.zeros(10**6)}, buffer := io.BytesIO())
    small = io.BytesIO()
    with (
        zipfile.ZipFile(buffer) as archive,
        zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for part in archive.infolist():
            packed.writestr(part.filename, archive.read(part))
    with pytest.raises(ValueError, match="more memory than it has bytes"):
        load_checkpoint(whole(tmp_path / "net.pt", small.getvalue()))


@pytest.mark.parametrize("value", [np.ones(2), lambda: 0, {1, 2}, object(), [nn.ReLU()]])
def test_what_could_not_be_read_again_is_not_saved(tmp_path, value):
    with pytest.raises(TypeError, match=r"state\['a'\]\['b'\]"):
        save_checkpoint(tmp_path / "net.pt", {"a": {"b": value}})
    assert not list(tmp_path.iterdir())


# Another training's checkpoint


@pytest.fixture
def half(tmp_path):
    "The checkpoint of a training that was broken off after the first of three epochs."

    def stop(epoch, epochs):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        short(network(), TRAIN, VALID, checkpoint=tmp_path / "net.pt", on_epoch=stop)
    return tmp_path / "net.pt"


def other_is_refused(half, change, said):
    content, net = half.read_bytes(), change.pop("model", network())
    before = weights(net)
    with pytest.raises(ValueError, match=said) as caught:
        short(net, **{"train": TRAIN, "valid": VALID, "checkpoint": half, **change})
    assert (
        str(half) in str(caught.value) and half.read_bytes() == content and weights(net) == before
    )


@pytest.mark.parametrize("change, said", [
    ({"epochs": 4}, "epochs is 3 there, 4 here"),
    ({"lr": 2e-2}, "lr is 0.01 there, 0.02 here"),
    ({"seed": 1}, "seed is 0 there, 1 here"),
    ({"batch_size": 8}, "batch_size is 16 there, 8 here"),
    ({"optimizer": torch.optim.SGD}, "optimizer class is .*Adam.* there, .*SGD"),
    ({"mixed_precision": "bf16"}, 'mixed_precision is "no" there, "bf16" here'),
    ({"train": points(71)}, "items is 72 there, 71 here"),
    ({"model": network(wide=9)}, "initial weights is .* 0 out_features is 8 there, 9 here"),
    ({"model": nn.Sequential(nn.Linear(6, 3))}, "network"),
])  # fmt: skip
def test_another_training_is_refused_by_name(half, change, said):
    other_is_refused(half, change, said)


@pytest.mark.parametrize("change, said", [
    ({"schedule": "constant"}, "schedule"),
    ({"schedule": milestones(0.5)}, "schedule"),
    ({"optimizer": partial(torch.optim.Adam, betas=(0.5, 0.9))}, "optimizer"),
    ({"valid": None}, "valid"),
])  # fmt: skip
def test_what_would_change_the_result_is_a_setting_too(half, change, said):
    other_is_refused(half, change, said)


def test_a_checkpoint_of_something_else_is_refused_by_name(tmp_path):
    save_checkpoint(tmp_path / "net.pt", network().state_dict())
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "net.pt"))):
        short(network(), TRAIN, checkpoint=tmp_path / "net.pt")


@pytest.mark.parametrize("given", [
    {"lr": np.float64(1e-2)},
    {"lr": np.float32(1e-2)},
    {"epochs": np.int64(3)},
    {"schedule": lambda p: np.cos(p)},
    {"optimizer": partial(torch.optim.SGD, momentum=np.float64(0.9))},
], ids=["lr", "lr32", "epochs", "schedule", "momentum"])  # fmt: skip
def test_numpy_numbers_can_be_resumed(tmp_path, given):
    first = short(network(), TRAIN, VALID, checkpoint=tmp_path / "net.pt", **given)
    assert rows(short(network(), TRAIN, VALID, checkpoint=tmp_path / "net.pt", **given)) == rows(
        first
    )


# The epoch that is kept


class Scripted(nn.Module):
    "Classify the first `right` of the validation images rightly; image i holds the number i, every label is 0."

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("right", torch.tensor(0))

    def forward(self, x):
        hit = (x[:, 0] < self.right).float()
        return torch.stack([hit, 1 - hit], 1) + self.weight


def scripted(plan, valid=True, **given):
    net, hook = Scripted(), []

    def on_epoch(epoch, epochs):
        assert epoch == len(hook) + 1 and epochs == len(plan)
        hook.append(epoch)
        net.right.fill_(plan[epoch - 1])

    ten = torch.arange(10.0)[:, None], torch.zeros(10, dtype=torch.int64)
    history = fit(
        net,
        ten,
        ten if valid else None,
        epochs=len(plan),
        lr=1e-3,
        batch_size=3,
        device="cpu",
        on_epoch=on_epoch,
        **given,
    )
    assert len(hook) == len(history.rows) and [row["epoch"] for row in history.rows] == hook
    return net, history, evaluate(net, ten)["accuracy"]


def test_hook_after_an_epoch_gets_a_copy_of_its_row_when_the_checkpoint_is_written(tmp_path):
    file, told = tmp_path / "net.pt", []

    def spoil(row):
        assert len(load_checkpoint(file)["rows"]) == row["epoch"]
        told.append(dict(row))
        row["train_loss"] = math.nan

    history = short(network(), TRAIN, VALID, checkpoint=file, after_epoch=spoil)
    assert told == history.rows
    short(network(), TRAIN, VALID, checkpoint=file, after_epoch=spoil)
    assert told == history.rows  # what the checkpoint contains is not told again


def test_training_ended_by_the_hook_after_an_epoch_goes_on_exactly(tmp_path):
    whole = short(network(), TRAIN, VALID, checkpoint=tmp_path / "whole.pt")

    def end(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        short(network(), TRAIN, VALID, checkpoint=tmp_path / "net.pt", after_epoch=end)
    again = short(network(), TRAIN, VALID, checkpoint=tmp_path / "net.pt")
    for a, b in zip(whole.rows, again.rows, strict=True):
        assert {k: v for k, v in a.items() if "seconds" not in k} == {
            k: v for k, v in b.items() if "seconds" not in k
        }


plans = st.lists(st.integers(0, 10), min_size=1, max_size=8)


@settings(deadline=None, max_examples=40)
@given(plans, st.none() | st.integers(1, 4))
def test_the_best_epoch_is_kept_and_patience_ends(plan, patience):
    net, history, accuracy = scripted(plan, patience=patience)
    stop = next(
        (
            n
            for n in range(1, len(plan) + 1)
            if patience and n - 1 - plan.index(max(plan[:n])) >= patience
        ),
        len(plan),
    )
    assert [row["valid_accuracy"] for row in history.rows] == [right / 10 for right in plan[:stop]]
    best = max(plan[:stop])
    assert (
        history.best_epoch == plan.index(best) + 1
        and net.right == best
        and accuracy == best / 10 == history.best["valid_accuracy"]
    )


@settings(deadline=None, max_examples=20)
@given(plans)
def test_without_validation_the_last_epoch_is_kept(plan):
    net, history, _ = scripted(plan, valid=False)
    assert (
        net.right == plan[-1]
        and history.best_epoch == len(plan) == len(history.rows)
        and history.best is history.rows[-1]
    )
    assert "valid_accuracy" not in history.frame()


def test_the_weights_kept_are_those_of_the_best_epoch():
    net = network()
    history = fit(
        net, points(20), VALID, epochs=12, lr=0.3, batch_size=10, device="cpu", schedule="constant"
    )
    accuracy = [row["valid_accuracy"] for row in history.rows]
    assert history.best_epoch == int(np.argmax(accuracy)) + 1 < 12
    found = evaluate(net, VALID)
    assert found["accuracy"] == history.best["valid_accuracy"] and found["loss"] == pytest.approx(
        history.best["valid_loss"], rel=1e-6
    )


@pytest.mark.parametrize("patience", [0, -1])
def test_impatience_is_refused(patience):
    with pytest.raises(ValueError, match="patience"):
        scripted([1, 2], patience=patience)


def test_a_stopped_training_stays_stopped(tmp_path):
    _, first, _ = scripted([3, 2, 1, 9], patience=2, checkpoint=tmp_path / "net.pt")
    net = Scripted()
    ten = torch.arange(10.0)[:, None], torch.zeros(10, dtype=torch.int64)
    again = fit(
        net,
        ten,
        ten,
        epochs=4,
        lr=1e-3,
        batch_size=3,
        device="cpu",
        patience=2,
        checkpoint=tmp_path / "net.pt",
    )
    assert again.rows == first.rows and again.best_epoch == 1 and net.right == 3


# Randomness


def test_the_callers_generators_are_neither_moved_nor_used():
    results = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before, net = states(), network()
        results.append((rows(short(net, TRAIN, VALID, augment=noisy)), weights(net)))
        assert states() == before
    assert results[0] == results[1]


def test_the_callers_generators_survive_an_error():
    before = states()
    with pytest.raises(FloatingPointError):
        short(network(), TRAIN, augment=lambda x: noisy(x) * math.nan)
    assert states() == before


def test_same_seed_same_result_other_seed_other_result():
    results = [rows(short(network(), TRAIN, VALID, seed=seed)) for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2]


def test_each_part_of_the_randomness_depends_on_seed_and_epoch():
    def draw(*pair):
        seed_everything(*pair)
        return random.random(), np.random.random(), torch.rand(1).item()

    before = states()
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (2**40, 0)]
    drawn = [draw(*pair) for pair in pairs]
    assert drawn == [draw(*pair) for pair in pairs] and draw(0) == drawn[0]
    assert all(len(set(part)) == len(pairs) for part in zip(*drawn, strict=True))
    random.setstate(before[0])
    for wrong in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match="-1"):
            seed_everything(*wrong)


def test_every_epoch_draws_other_noise():
    drawn = []

    def look(x):
        drawn.append((random.random(), np.random.random(), torch.rand(1).item()))
        return x

    for seed in (0, 1):
        short(network(), TRAIN, augment=look, seed=seed)
    assert len(drawn) == 24 and all(len(set(part)) == 24 for part in zip(*drawn, strict=True))


def numbered(n):
    return torch.arange(float(n))[:, None], torch.arange(n) % 2


@pytest.mark.parametrize(
    "n, batch, sizes",
    [(10, 3, [3, 3, 3]), (9, 3, [3, 3, 3]), (2, 3, [2]), (3, 3, [3]), (1, 1, [1])],
)
def test_every_epoch_visits_the_images_once_in_another_order(n, batch, sizes):
    seen = []

    def look(x):
        seen.append(x[:, 0].tolist())
        return x

    fit(
        nn.Linear(1, 2),
        numbered(n),
        epochs=4,
        lr=1e-3,
        batch_size=batch,
        augment=look,
        device="cpu",
    )
    epochs = [seen[i : i + len(sizes)] for i in range(0, len(seen), len(sizes))]
    assert len(epochs) == 4 and all([len(part) for part in epoch] == sizes for epoch in epochs)
    orders = [sum(epoch, []) for epoch in epochs]
    assert all(len(set(order)) == sum(sizes) for order in orders)
    assert n < 9 or len({*map(tuple, orders)}) == 4


def test_labels_stay_with_their_images():
    def loss(logits, y):
        assert torch.equal(logits[:, 0].long() % 2, y)
        return logits.mean()

    same = nn.Linear(1, 2, bias=False)
    nn.init.ones_(same.weight)
    fit(same, numbered(20), epochs=2, lr=1e-12, batch_size=3, loss=loss, device="cpu")


# The learning rate


@pytest.mark.parametrize("name, factor", [
    ("cosine", lambda p: 0.5 + 0.5 * math.cos(math.pi * p)),
    ("constant", lambda p: 1),
    (milestones(0.25, 0.5, factor=0.1), lambda p: 1 if p < 0.25 else 0.1 if p < 0.5 else 0.01),
    (lambda p: p, lambda p: p),
], ids=["cosine", "constant", "milestones", "own"])  # fmt: skip
def test_the_steps_taken_add_up(name, factor):
    "The gradient of this loss is 1, so the weight moves by the sum of all rates."

    class Weight(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x):
            return self.weight.expand(len(x), 2)

    net = Weight()
    given = dict(schedule=name, optimizer=torch.optim.SGD, loss=lambda logits, y: logits[0, 0])
    history = fit(net, numbered(12), epochs=5, lr=0.3, batch_size=3, device="cpu", **given)
    rates = [0.3 * factor(step / 20) for step in range(20)]
    assert net.weight.item() == pytest.approx(-sum(rates), rel=1e-12)
    assert [row["lr"] for row in history.rows] == pytest.approx(rates[::4], rel=1e-12)


def test_schedules_begin_at_one():
    assert (
        all(schedule(0.0) == 1 for schedule in SCHEDULES.values())
        and milestones(0.2)(0.0) == 1
        and milestones(0.2)(0.2) == 0.3
    )


# What is measured


@functools.cache
def plain():
    return network(dropout=0.9).eval()


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 50), st.booleans(), st.booleans())
def test_evaluate_equals_a_direct_computation(n, batch, training, as_dataset):
    x, y = points(n, seed=n)
    logits = plain().eval()(x).detach().double()
    expected = -(logits - logits.logsumexp(1, keepdim=True))[range(n), y].mean()
    plain().train(training)
    before = weights(plain())
    found = evaluate(plain(), TensorDataset(x, y) if as_dataset else (x, y), batch_size=batch)
    assert found["loss"] == pytest.approx(expected.item(), rel=1e-5) and found[
        "accuracy"
    ] == pytest.approx((logits.argmax(1) == y).double().mean().item())
    assert (
        all(module.training == training for module in plain().modules())
        and weights(plain()) == before
    )


def test_evaluate_takes_other_losses_and_models_without_parameters():
    x, y = torch.eye(3)[[0, 1, 2, 2]], torch.tensor([0, 1, 2, 0])
    found = evaluate(
        nn.Identity(),
        (x, y),
        batch_size=3,
        loss=lambda logits, y, reduction: logits[range(len(y)), y] * 10,
    )
    assert found == {"loss": 7.5, "accuracy": 0.75}


def test_evaluate_draws_nothing_from_the_callers_generators():
    before = states()
    evaluate(network(), VALID)
    assert states() == before


def test_evaluate_leaves_frozen_layers_frozen():
    net = network().train()
    net[1].eval()
    evaluate(net, VALID)
    assert [layer.training for layer in net] == [True, False, True, True, True]


def test_evaluate_gives_the_mode_back_after_an_error():
    net = network().train()
    with pytest.raises(
        ValueError,
        match="evaluate: the model does not take a batch of data, a tensor, shape .3, 5.",
    ):
        evaluate(net, (torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64)))
    assert net.training


def test_training_loss_and_accuracy_are_means_over_the_images():
    x, y = points(20)
    net = nn.Linear(6, 3)
    logits = net(x).detach()
    (row,) = fit(net, (x, y), epochs=1, lr=1e-12, batch_size=5, device="cpu").rows
    assert row["train_loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    assert row["train_accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item())


class Items(Dataset):
    "The training data, one item at a time."

    def __len__(self):
        return len(TRAIN[0])

    def __getitem__(self, i):
        return TRAIN[0][i], int(TRAIN[1][i])


def test_a_dataset_gives_what_the_pair_gives():
    results = []
    for train in (TRAIN, TensorDataset(*TRAIN), Items()):
        net = network()
        results.append((rows(short(net, train, VALID, augment=noisy)), weights(net)))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("train", [TRAIN, Items()], ids=["pair", "data set"])
def test_workers_change_nothing(train):
    results = []
    for workers in (0, 2):
        net = network()
        results.append(
            (rows(short(net, train, VALID, epochs=1, augment=noisy, workers=workers)), weights(net))
        )
    assert results[0] == results[1]


def test_half_precision_learns_and_is_forgotten_afterwards():
    first = short(network(), TRAIN, VALID)
    seen = []

    def look(module, args, output):
        seen.append(output.dtype)

    net = network()
    net[0].register_forward_hook(look)
    history = fit(
        net, TRAIN, VALID, epochs=15, lr=3e-2, batch_size=16, mixed_precision="bf16", device="cpu"
    )
    assert (
        set(seen) == {torch.bfloat16}
        and history.best["valid_accuracy"] > 0.8
        and net[0].weight.dtype == torch.float32
    )
    again = short(network(), TRAIN, VALID)
    assert rows(again) == rows(first)


def test_half_precision_leaves_the_model_as_it_was():
    net = network()
    short(net, TRAIN, VALID, mixed_precision="bf16")
    fresh = network()
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(net.eval()(VALID[0]), fresh.eval()(VALID[0])) and evaluate(
        net, VALID
    ) == evaluate(fresh, VALID)
    assert weights(pickle.loads(pickle.dumps(net))) == weights(net)


def test_half_precision_leaves_the_model_as_it_was_after_an_error():
    net = network()
    with pytest.raises(FloatingPointError):
        short(net, TRAIN, augment=lambda x: x * math.nan, mixed_precision="bf16")
    net.load_state_dict(network().state_dict())
    assert torch.equal(net.eval()(VALID[0]), network().eval()(VALID[0]))


# Errors


@pytest.mark.parametrize("change, said", [
    ({"epochs": 0}, "epochs is 0"),
    ({"epochs": -3}, "epochs is -3"),
    ({"lr": 0.0}, "lr is 0"),
    ({"lr": -1e-3}, "lr is -0.001"),
    ({"lr": math.nan}, "lr is nan"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"schedule": "cosinus"}, "'cosinus'.*'cosine', 'constant'"),
    ({"schedule": None}, "schedule is None"),
    ({"device": "tpu"}, "'tpu'.*'auto', 'cpu', 'cuda'"),
    ({"device": "cuda:0"}, "'cuda:0'"),
    ({"mixed_precision": "int3"}, "int3"),
    ({"seed": -1}, "-1"),
    ({"train": (torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))}, "empty"),
    ({"train": (TRAIN[0], TRAIN[1][:5])}, "72 inputs but 5 labels"),
    ({"train": (row for row in TRAIN)}, "no length"),
    ({"valid": (VALID[0][:0], VALID[1][:0])}, "empty"),
])  # fmt: skip
def test_wrong_calls_are_refused_before_anything_is_trained(tmp_path, change, said):
    net = network()
    with pytest.raises((TypeError, ValueError), match=said):
        short(net, **{"train": TRAIN, "checkpoint": tmp_path / "net.pt", **change})
    assert weights(net) == weights(network()) and not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_absent_gpu_is_named():
    with pytest.raises(ValueError, match="finds no CUDA device"):
        short(network(), TRAIN, device="cuda")


def test_evaluate_of_nothing():
    with pytest.raises(ValueError, match="empty"):
        evaluate(network(), (VALID[0][:0], VALID[1][:0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_training_and_keeps_the_last_checkpoint(tmp_path, bad):
    spoilt = TRAIN[0].clone()

    def spoil(epoch, epochs):
        if epoch == 3:
            spoilt[5, 2] = bad

    with pytest.raises(
        FloatingPointError, match="training loss is (nan|inf) after 4 batches; lower lr"
    ):
        fit(
            network(),
            (spoilt, TRAIN[1]),
            epochs=5,
            lr=1e-2,
            batch_size=16,
            device="cpu",
            on_epoch=spoil,
            checkpoint=tmp_path / "net.pt",
        )
    state = load_checkpoint(tmp_path / "net.pt")
    assert len(state["rows"]) == 2 and all(
        value.isfinite().all() for value in state["model"].values()
    )


# What is shown


def test_no_progress_where_nobody_looks(ask, tmp_path):
    files = [tmp_path / "out", tmp_path / "err"]
    assert ask("show", *map(str, files)) == {"code": 1}
    assert [file.read_text() for file in files] == ["trained\n", ""]


def test_progress_in_a_terminal_stays_out_of_redirected_output(ask, tmp_path):
    pty = pytest.importorskip("pty")
    terminal, end = pty.openpty()
    assert ask("show", str(tmp_path / "out"), os.ttyname(end)) == {"code": 1}
    os.write(end, b".")
    shown = os.read(terminal, 100_000)
    os.close(end)
    os.close(terminal)
    assert (tmp_path / "out").read_text() == "trained\n" and b"epochs" in shown


def test_progress_is_the_callers_choice(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert not page.show_progress(None) and page.show_progress(True)
    monkeypatch.setenv("JPY_SESSION_NAME", "x.ipynb")
    assert page.show_progress(None) and not page.show_progress(False)


# What an optimiser gathered, handed on


def bare():
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def batchwise(net, epochs, **given):
    x = torch.randn(16, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return fit(
        net.double(),
        (x, torch.arange(16) % 3),
        **{
            "epochs": epochs,
            "lr": 0.05,
            "batch_size": 16,
            "schedule": "constant",
            "device": "cpu",
            **given,
        },
    )


@pytest.mark.parametrize(
    "optimizer",
    [
        partial(torch.optim.SGD, momentum=0.9),
        torch.optim.Adam,
        partial(torch.optim.AdamW, amsgrad=True),
    ],
)
def test_two_trainings_with_a_hand_over_are_one(optimizer):
    one, two, without = bare(), bare(), bare()
    batchwise(one, 7, optimizer=optimizer)
    first = batchwise(two, 4, optimizer=optimizer)
    kept = {
        name: {k: torch.as_tensor(v).clone() for k, v in held.items()}
        for name, held in first.optimizer_state["state"].items()
    }
    batchwise(two, 3, optimizer=optimizer, optimizer_state=first.optimizer_state)
    for epochs in (4, 3):
        batchwise(without, epochs, optimizer=optimizer)
    for a, b, c in zip(one.parameters(), two.parameters(), without.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
        assert (a - c).abs().max() > 1e-4
    for name, held in first.optimizer_state[
        "state"
    ].items():  # the second training has not written into it
        assert set(kept) == set(dict(two.named_parameters())) and all(
            torch.as_tensor(v).equal(kept[name][k]) for k, v in held.items()
        )


def test_the_state_kept_is_that_of_the_epoch_kept():
    data, net = (points(64), points(32, seed=1)), network()
    history = fit(
        net,
        *data,
        epochs=6,
        lr=0.3,
        batch_size=16,
        device="cpu",
        optimizer=partial(torch.optim.SGD, momentum=0.9),
        schedule="constant",
    )
    assert 0 < history.best_epoch < 6
    seen, again = {}, network()

    def look(epoch, epochs):
        if epoch == history.best_epoch + 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(
            again,
            *data,
            epochs=6,
            lr=0.3,
            batch_size=16,
            device="cpu",
            optimizer=seen_by(seen),
            schedule="constant",
            on_epoch=look,
        )
    held = history.optimizer_state["state"]
    for name, p in again.named_parameters():
        assert held[name]["momentum_buffer"].equal(seen["made"].state[p]["momentum_buffer"])


def seen_by(seen):
    def make(parameters, lr):
        seen["made"] = torch.optim.SGD(parameters, lr=lr, momentum=0.9)
        return seen["made"]

    return make


def test_only_what_was_gathered_is_handed_on_not_the_settings():
    first, made = (
        batchwise(bare(), 1, optimizer=partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1)),
        {},
    )
    batchwise(bare(), 1, optimizer=seen_by(made), optimizer_state=first.optimizer_state, lr=0.01)
    (group,) = made["made"].param_groups
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.01, 0, 0.9)


def test_new_parameters_begin_empty():
    first, wider = batchwise(bare(), 1, optimizer=torch.optim.Adam), bare()
    wider.append(nn.Linear(3, 3))
    steps = {
        n: h["step"].item()
        for n, h in batchwise(
            wider, 1, optimizer=torch.optim.Adam, optimizer_state=first.optimizer_state
        )
        .optimizer_state["state"]
        .items()
    }
    assert steps == {
        "1.weight": 2,
        "1.bias": 2,
        "3.weight": 2,
        "3.bias": 2,
        "4.weight": 1,
        "4.bias": 1,
    }


def test_a_state_that_does_not_fit_is_refused():
    held = batchwise(bare(), 1, optimizer=torch.optim.Adam).optimizer_state
    with pytest.raises(ValueError, match="comes from Adam, this training uses SGD"):
        batchwise(bare(), 1, optimizer=torch.optim.SGD, optimizer_state=held)
    with pytest.raises(
        ValueError, match=r"contains \['state', 'param_groups'\]; expected what `fit` returned"
    ):
        batchwise(bare(), 1, optimizer_state=torch.optim.Adam(bare().parameters()).state_dict())
    other, fewer = (
        nn.Sequential(nn.Flatten(), nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)),
        nn.Sequential(nn.Flatten(), nn.Linear(5, 4)),
    )
    with pytest.raises(
        ValueError, match=r"'1.weight' with shape \[\(4, 5\)\], which has shape \(7, 5\)"
    ):
        batchwise(other, 1, optimizer_state=held)
    with pytest.raises(
        ValueError, match=r"'3.weight' with shape \[\(3, 4\)\], which does not exist"
    ):
        batchwise(fewer, 1, optimizer_state=held)


# Two processes

needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch has no gloo backend here",
)
LAUNCHERS = {"accelerate launch": "accelerate.commands.launch", "torchrun": "torch.distributed.run"}

TWO = """
import json, os, sys, time
from pathlib import Path
import torch
from torch import nn
sys.path.insert(0, sys.argv[1])
from accelerate.state import AcceleratorState
from test_train import TRAIN, VALID, network, noisy, points, rows, weights
from neurobridge.core import fit, load_checkpoint, train

def trained(net, *data, **given):
    seen, noise = [], []
    def look(x):
        seen.append(x[:, 0].tolist())
        y = given.get("augment", lambda x: x)(x)
        noise.append((y - x)[0, 0].item())
        return y
    try:
        history = fit(net, *data, **{"epochs": 3, "lr": 3e-2, "batch_size": 8, "device": "cpu", **given, "augment": look})
        return dict(rows=rows(history), best=history.best_epoch, weights=weights(net), seen=seen, noise=noise)
    except (ArithmeticError, ValueError) as error:
        return dict(error=repr(error))

def smooth(): return nn.Sequential(network()[0], nn.Tanh(), network()[4])

torch.set_num_threads(1)
found = dict(
    smooth=trained(smooth(), TRAIN, VALID),
    odd={n: trained(smooth(), TRAIN, points(n, seed=n), epochs=1) for n in (1, 2, 31, 33)},
    norm=trained(network(), TRAIN, VALID, augment=noisy),
    norm_alone=trained(network(), TRAIN, augment=noisy),
    saved=trained(network(), TRAIN, VALID, augment=noisy, checkpoint="saved.pt"),
    few=trained(smooth(), points(12), epochs=1),
    fewer=trained(smooth(), points(5), epochs=1),
)
torch.distributed.barrier()
found["files"] = sorted(p.name for p in Path().iterdir() if "saved" in p.name)
found["again"] = trained(network(), TRAIN, VALID, augment=noisy, checkpoint="saved.pt")
save, found["saves"] = train.save_checkpoint, []
train.save_checkpoint = lambda *given: (time.sleep(0.5), save(*given), found["saves"].append(str(given[0])))
trained(smooth(), TRAIN, epochs=1, checkpoint="late.pt")
found["late"] = Path("late.pt").exists()
train.save_checkpoint = save
torch.distributed.barrier()
if not torch.cuda.is_available():
    AcceleratorState._reset_state(reset_partial_state=True)
    trained(smooth(), TRAIN, epochs=1, device="auto", checkpoint="unasked.pt")
    torch.distributed.barrier()
    found["unasked"] = load_checkpoint("unasked.pt")["settings"]["processes"]
Path("found" + os.environ["RANK"]).write_text(json.dumps(found))
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory, launch):
    folder = tmp_path_factory.mktemp("two")
    launch(folder, TWO, str(Path(__file__).parent))
    return [json.loads((folder / f"found{rank}").read_text()) for rank in range(2)]


@pytest.mark.long
@needs_gloo
def test_two_processes_share_each_epochs_images(two):
    for name in ("smooth", "norm"):
        batches = [
            [seen[i : i + 4] for i in range(0, 12, 4)]
            for seen in (found[name]["seen"] for found in two)
        ]
        for first, second in zip(*batches, strict=True):
            images = sum(first + second, [])
            assert len(images) == len(set(images)) == 64 and all(
                len(batch) == 8 for batch in first + second
            )


@needs_gloo
@pytest.mark.long
def test_two_processes_are_one_with_twice_the_batch(two):
    net = nn.Sequential(network()[0], nn.Tanh(), network()[4])
    alone = fit(net, TRAIN, VALID, epochs=3, lr=3e-2, batch_size=16, device="cpu")
    for found in two:
        assert found["smooth"]["best"] == alone.best_epoch
        for mine, theirs in zip(rows(alone), found["smooth"]["rows"], strict=True):
            assert theirs == pytest.approx(mine, rel=1e-4)
        for name, value in net.state_dict().items():
            torch.testing.assert_close(
                torch.tensor(found["smooth"]["weights"][name]), value, rtol=1e-4, atol=1e-5
            )


@needs_gloo
@pytest.mark.long
def test_two_processes_count_every_validation_image_once(two):
    for n in (1, 2, 31, 33):
        net = nn.Sequential(network()[0], nn.Tanh(), network()[4])
        fit(net, TRAIN, epochs=1, lr=3e-2, batch_size=16, device="cpu")
        for found in two:
            (row,) = found["odd"][str(n)]["rows"]
            assert {"loss": row["valid_loss"], "accuracy": row["valid_accuracy"]} == pytest.approx(
                evaluate(net, points(n, seed=n)), rel=1e-3
            )


@needs_gloo
@pytest.mark.parametrize("name", ["smooth", "norm", "saved", "norm_alone"])
@pytest.mark.long
def test_two_processes_end_with_equal_weights(two, name):
    for part in ("rows", "best", "weights"):
        assert two[0][name][part] == two[1][name][part], part


@needs_gloo
@pytest.mark.long
def test_two_processes_draw_different_noise_but_write_one_checkpoint(two):
    first, second = (found["norm"]["noise"] for found in two)
    assert len({*first, *second}) == 24 and [found["saves"] for found in two] == [["late.pt"], []]
    for found in two:
        assert found["files"] == ["saved.pt"] and found["again"]["seen"] == []
        assert all(
            found["saved"][part] == found["again"][part] == found["norm"][part]
            for part in ("rows", "best", "weights")
        )


@needs_gloo
@pytest.mark.long
def test_when_fit_returns_the_checkpoint_is_there_for_every_process(two):
    assert [found["late"] for found in two] == [True, True]


@needs_gloo
@pytest.mark.parametrize("name", ["few", "fewer"])
@pytest.mark.long
def test_two_processes_train_on_few_images(two, name):
    for found in two:
        assert "error" not in found[name], found[name]["error"]
        assert found[name]["seen"] and math.isfinite(found[name]["rows"][0]["train_loss"])


@needs_gloo
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would be used")
@pytest.mark.long
def test_two_processes_without_a_gpu_find_each_other_unasked(two):
    assert [found["unasked"] for found in two] == [2, 2]


COUNTED = """
import torch
from torch import nn
from neurobridge.core import fit
fit(nn.Linear(2, 2), (torch.randn(16, 2), torch.arange(16) % 2), epochs=1, lr=1e-3, batch_size=4, checkpoint="net.pt")
"""


@pytest.mark.long
@needs_gloo
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would be used")
def test_the_commands_the_page_names_start_two_processes(tmp_path, launch):
    page = json.loads((ROOT / "nbs" / "core" / "14_train.ipynb").read_text(encoding="utf-8"))
    prose = "\n".join(
        "".join(cell["source"]) for cell in page["cells"] if cell["cell_type"] == "markdown"
    )
    commands = [
        (name, options.split())
        for name, options in re.findall(
            r"`(accelerate launch|torchrun) ([^`]*\b2\b[^`]*)script\.py`", prose
        )
    ]
    assert commands
    for name, options in commands:
        (tmp_path / "net.pt").unlink(missing_ok=True)
        launch(tmp_path, COUNTED, by=[LAUNCHERS[name], *options])
        assert load_checkpoint(tmp_path / "net.pt")["settings"]["processes"] == 2, (
            f"{name} {' '.join(options)}"
        )


@pytest.mark.parametrize("words, warned", [("avx2", 1), ("avx2 avx512_bf16", 0), ("", 0)])
def test_bfloat16_that_is_emulated_is_said(monkeypatch, words, warned):
    monkeypatch.setattr(convolution, "_processor_words", lambda: frozenset(words.split()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        short(network(), TRAIN, mixed_precision="bf16")
        short(network(), TRAIN)
    assert sum("no instruction for bfloat16" in str(one.message) for one in caught) == warned
