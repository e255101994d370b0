"Augmentation: what must not be lost, what must be lost, and that the seed alone decides."

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurobridge.data import (
    Events,
    drop_area,
    drop_random,
    drop_time,
    event_drop,
    flip_horizontal,
    flip_polarity,
    flip_time,
    flip_vertical,
    in_turn,
    mixup,
    random_crop,
    random_shift,
    sometimes,
    to_frames,
)

FLIPS = (flip_horizontal, flip_vertical, flip_polarity, flip_time)
settings.register_profile("augment", max_examples=60, deadline=None)
quick = settings(settings.get_profile("augment"))


@st.composite
def recordings(draw, least=0):
    n, height, width = (
        draw(st.integers(least, 60)),
        draw(st.integers(1, 12)),
        draw(st.integers(1, 12)),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    t = np.sort(rng.integers(0, draw(st.integers(1, 10**6)), n)) + draw(
        st.integers(-(10**6), 10**6)
    )
    return Events(
        t,
        rng.integers(0, width, n),
        rng.integers(0, height, n),
        rng.integers(0, 2, n),
        height,
        width,
    )


def rows(events):
    return list(
        zip(events.t.tolist(), events.x.tolist(), events.y.tolist(), events.p.tolist(), strict=True)
    )


def part_of(fewer, events):
    "In the same order, nothing new: a subsequence."
    rest = iter(rows(events))
    return all(row in rest for row in rows(fewer)) and (fewer.height, fewer.width) == (
        events.height,
        events.width,
    )


seeds = st.integers(0, 2**31)


@quick
@given(recordings(), st.permutations(FLIPS))
def test_flips_undo_themselves_and_each_other_in_any_order(events, order):
    for flip in FLIPS:
        assert flip(flip(events)) == events and len(flip(events)) == len(events)
    there = events
    for flip in order:
        there = flip(there)
    assert sorted(rows(there)) == sorted(
        (int(events.t[0] + events.t[-1]) - t, events.width - 1 - x, events.height - 1 - y, 1 - p)
        for t, x, y, p in rows(events)
    )


@quick
@given(recordings(least=1), st.integers(1, 5))
def test_flips_of_events_are_flips_of_frames(events, steps):
    span = (int(events.t[0]), int(events.t[-1]) + 1)
    frames = partial(to_frames, steps=steps, span=span)
    assert torch.equal(frames(flip_horizontal(events)), frames(events).flip(3)) and torch.equal(
        frames(flip_vertical(events)), frames(events).flip(2)
    )
    assert torch.equal(frames(flip_polarity(events)), frames(events).flip(1))
    if (
        span[1] - span[0]
    ) % steps == 0:  # frames of whole units of time, so that their edges mirror onto each other
        assert torch.equal(frames(flip_time(events)), frames(events).flip(0))


@quick
@given(recordings(), seeds, st.integers(0, 20))
def test_a_shift_moves_everything_alike(events, seed, most):
    right, down = np.random.default_rng(seed).integers(-most, most + 1, 2)
    expected = [
        (t, x + right, y + down, p)
        for t, x, y, p in rows(events)
        if 0 <= x + right < events.width and 0 <= y + down < events.height
    ]
    moved = random_shift(events, np.random.default_rng(seed), most)
    assert rows(moved) == expected and (moved.height, moved.width) == (events.height, events.width)


@quick
@given(recordings(), seeds, st.data())
def test_a_crop_is_a_window(events, seed, data):
    height, width = (
        data.draw(st.integers(1, events.height)),
        data.draw(st.integers(1, events.width)),
    )
    window = random_crop(events, np.random.default_rng(seed), height, width)
    assert (window.height, window.width) == (height, width)
    found = [
        [
            (t, x, y, p)
            for t, x, y, p in ((t, x - left, y - top, p) for t, x, y, p in rows(events))
            if 0 <= x < width and 0 <= y < height
        ]
        for top in range(events.height - height + 1)
        for left in range(events.width - width + 1)
    ]
    assert rows(window) in found


def test_a_crop_may_lie_anywhere():
    corner = Events([0], [0], [0], [1], 3, 4)
    hits = sum(len(random_crop(corner, np.random.default_rng(seed), 2, 3)) for seed in range(400))
    assert 70 < hits < 130  # one place of four


@quick
@given(recordings(), seeds, st.floats(0, 1))
def test_drops_only_leave_out(events, seed, share):
    made = {
        drop: drop(events, np.random.default_rng(seed), share)
        for drop in (drop_random, drop_time, drop_area)
    }
    assert all(part_of(fewer, events) for fewer in made.values())
    assert len(made[drop_random]) == len(events) - int(share * len(events))
    gone = [row for row in rows(events) if row not in set(rows(made[drop_time]))]
    if gone:
        first, last = gone[0][0], gone[-1][0]
        assert (
            all(not first <= t <= last for t, *_ in rows(made[drop_time]))
            and last - first <= share * (events.t[-1] - events.t[0]) + 1e-6
        )
    gone = [row for row in rows(events) if row not in set(rows(made[drop_area]))]
    if gone:
        left, right, top, bottom = (
            f(row[axis] for row in gone) for axis in (1, 2) for f in (min, max)
        )
        assert all(
            not (left <= x <= right and top <= y <= bottom) for _, x, y, _ in rows(made[drop_area])
        )
        assert right - left < max(1, share * events.width) and bottom - top < max(
            1, share * events.height
        )
    assert part_of(event_drop(events, np.random.default_rng(seed)), events) and (
        len(event_drop(events, np.random.default_rng(seed))) > 0 or not len(events)
    )


@pytest.mark.parametrize("drop", [drop_random, drop_time, drop_area])
def test_nothing_and_everything(drop):
    events = Events(
        np.arange(100), np.arange(100) % 10, np.arange(100) // 10, np.arange(100) % 2, 10, 10
    )
    assert (
        len(drop(events, np.random.default_rng(0), 0.0)) >= 99
    )  # a moment without length may hold one event
    with pytest.raises(ValueError, match=f"{drop.__name__}: share is 1.1"):
        drop(events, np.random.default_rng(0), 1.1)
    assert len(drop_random(events, np.random.default_rng(0), 1.0)) == 0


def test_event_drop_takes_each_way_equally_often():
    "A lattice of events tells by what is missing which way was taken: nothing, whole moments, whole pixels, or something else."
    t, y, x = (a.flatten() for a in np.mgrid[:20, :8, :8])
    events, ways = (
        Events(t, x, y, np.ones(len(t), int), 8, 8),
        dict.fromkeys(("none", "time", "area", "random"), 0),
    )
    rng = np.random.default_rng(0)
    for _ in range(800):
        left = event_drop(events, rng)
        cube = np.zeros((20, 8, 8), int)
        cube[left.t, left.y, left.x] = 1
        moments, pixels = (
            np.ptp(cube.reshape(20, -1), axis=1).max() == 0,
            np.ptp(cube, axis=0).max() == 0,
        )
        ways["none" if cube.all() else "time" if moments else "area" if pixels else "random"] += 1
    assert all(count == pytest.approx(200, abs=45) for count in ways.values()), ways


@quick
@given(recordings(least=1), seeds)
def test_steps_repeat_with_their_seed_and_leave_the_input_alone(events, seed):
    before = rows(events)
    step = in_turn(
        sometimes(flip_horizontal),
        sometimes(flip_time, 0.3),
        partial(random_shift, most=2),
        event_drop,
    )
    assert step(events, np.random.default_rng(seed)) == step(events, np.random.default_rng(seed))
    assert rows(events) == before and in_turn()(events, np.random.default_rng(seed)) == events


def test_sometimes_is_as_often_as_said():
    events, rng = Events([0], [0], [0], [1], 1, 5), np.random.default_rng(0)
    assert sum(
        sometimes(flip_horizontal, 0.2)(events, rng) != events for _ in range(1000)
    ) == pytest.approx(200, abs=45)


@quick
@given(st.integers(1, 6), st.integers(1, 4), seeds, st.floats(0.1, 5))
def test_mixup(n, classes, seed, alpha):
    rng = np.random.default_rng(seed)
    x, y = torch.from_numpy(rng.random((n, 2, 3, 3))), torch.from_numpy(rng.integers(0, classes, n))
    mixed, labels = mixup(x, y, classes, np.random.default_rng(seed), alpha)
    assert mixed.shape == x.shape and labels.shape == (n, classes)
    torch.testing.assert_close(labels.sum(1), torch.ones(n, dtype=labels.dtype))
    torch.testing.assert_close(
        mixed.sum(0), x.sum(0)
    )  # every recording is given away as often as it is kept
    check = np.random.default_rng(seed)
    share, other = check.beta(alpha, alpha), check.permutation(n)
    for i in range(n):
        torch.testing.assert_close(mixed[i], share * x[i] + (1 - share) * x[other[i]])
        expected = torch.zeros(classes, dtype=labels.dtype)
        expected[y[i]] += share
        expected[y[other[i]]] += 1 - share
        torch.testing.assert_close(labels[i], expected)


@pytest.mark.parametrize("alpha", [0, -1])
def test_mixup_wants_a_positive_alpha(alpha):
    with pytest.raises(ValueError, match="mixup: alpha"):
        mixup(
            torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64), 2, np.random.default_rng(0), alpha
        )


STEPS = {
    "sometimes": sometimes(flip_horizontal, 0.3), "in_turn": in_turn(sometimes(flip_time), partial(random_shift, most=2), event_drop), "nested": in_turn(in_turn(sometimes(flip_polarity)), event_drop),
    "partial": partial(drop_area, share=0.2), "plain": event_drop,
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_every_step_travels_to_another_process(name):
    events = Events(
        np.arange(100), np.arange(100) % 10, np.arange(100) // 10, np.arange(100) % 2, 10, 10
    )
    there = pickle.loads(pickle.dumps(STEPS[name]))
    assert all(
        there(events, np.random.default_rng(seed))
        == STEPS[name](events, np.random.default_rng(seed))
        for seed in range(20)
    )
    assert (
        sometimes(flip_time, 0.3) == sometimes(flip_time, 0.3) != sometimes(flip_time, 0.4)
    )  # and two data sets can be compared


class Shaken(torch.utils.data.Dataset):
    def __init__(self, step):
        self.step = step

    def __len__(self):
        return 4

    def __getitem__(self, i):
        events = Events(
            np.arange(100), np.arange(100) % 10, np.arange(100) // 10, np.arange(100) % 2, 10, 10
        )
        return to_frames(self.step(events, np.random.default_rng(i)), steps=5, span=(0, 100))


@pytest.mark.long
def test_steps_in_workers_that_start_afresh():
    data = Shaken(STEPS["in_turn"])
    loader = torch.utils.data.DataLoader(data, 2, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(torch.cat(list(loader)), torch.stack([data[i] for i in range(4)]))


EVENTS = Events([0, 5], [1, 2], [1, 2], [0, 1], 4, 4)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("call, message", [
    (lambda: sometimes(event_drop), "sometimes: change is .*in_turn as it is"), (lambda: sometimes(3), "sometimes: change is 3"), (lambda: sometimes(flip_time, 1.5), "chance is 1.5"),
    (lambda: sometimes(flip_time, float("nan")), "chance is nan"), (lambda: in_turn(flip_time), "in_turn: steps contain .*sometimes"), (lambda: in_turn([event_drop]), "in_turn: steps is"),
    (lambda: in_turn(random_crop), "in_turn: steps contain .*partial"), (lambda: in_turn(lambda e, g: None)(EVENTS, RNG), "in_turn: steps is None"), (lambda: random_shift(EVENTS, RNG, 1.5), "most is 1.5"),
    (lambda: random_shift(EVENTS, RNG, -1), "most is -1"), (lambda: random_shift(EVENTS, 0, 1), "generator is 0 .*default_rng"), (lambda: random_shift([1], RNG, 1), "events is"),
    (lambda: random_crop(EVENTS, RNG, 5, 2), "height is 5"), (lambda: random_crop(EVENTS, RNG, 2, 2.0), "width is 2.0"), (lambda: drop_time(EVENTS, RNG, float("nan")), "share is nan"),
    (lambda: drop_area(EVENTS, torch.Generator(), 0.1), "generator is"), (lambda: drop_random(EVENTS, RNG, True), "share is True"), (lambda: event_drop(None, RNG), "events is None"), (lambda: flip_time(None), "events is None"),
])  # fmt: skip
def test_wrong_arguments_are_named(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


@pytest.mark.parametrize("x, y, classes, message", [
    (torch.zeros(5, 2, 1), torch.zeros(2, dtype=torch.int64), 2, "y has 2 labels and x has 5"), (torch.zeros(2, 1), torch.tensor([0, 2]), 2, "labels from 0 to 2"), (torch.zeros(2, 1), torch.tensor([-1, 0]), 2, "from -1"),
    (torch.zeros(2, 1), torch.tensor([0.0, 1.0]), 2, "y is"), (torch.zeros(2, 1), torch.tensor([0, 1]), 2.0, "classes is"), (torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64), 2, "x is"), (np.zeros((2, 1)), torch.tensor([0, 1]), 2, "x is"),
])  # fmt: skip
def test_mixup_wants_one_label_per_recording(x, y, classes, message):
    with pytest.raises((TypeError, ValueError), match=f"mixup: .*{message}"):
        mixup(x, y, classes, np.random.default_rng(0))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.uint8])
def test_shares_of_mixup_do_not_lose_precision(kind):
    x, y = torch.ones(4, 2).to(kind), torch.tensor([0, 1, 2, 3])
    labels = mixup(x, y, 4, np.random.default_rng(1))[1]
    assert labels.dtype == torch.float32 and torch.equal(
        labels, mixup(x.float(), y, 4, np.random.default_rng(1))[1]
    )
