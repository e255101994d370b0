"Event sets cut in time, by number of events and into stretches; parts of them; and the way from files to a trained network, by the front door only."

import ast
import functools
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from test_formats import write_evt2, write_evt3
from test_told import lines_of
from torch.utils.data import DataLoader

from neurobridge.data import (
    DataError,
    EventDataset,
    Events,
    denoise,
    downsample,
    read_events,
    to_frames,
    to_time_surface,
    to_voxel_grid,
)

SENSOR = (12, 16)


def clip(seed, n=300, first=0, longest=100_000):
    rng = np.random.default_rng(seed)
    t = first + np.sort(rng.integers(0, longest, n))
    t[0], t[-1] = first, first + longest - 1
    return Events(
        t,
        rng.integers(0, SENSOR[1], n),
        rng.integers(0, SENSOR[0], n),
        rng.integers(0, 2, n),
        *SENSOR,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("clips")
    for label, name in enumerate(("a", "b")):
        (place / name).mkdir()
        for i in range(6):
            events = clip(10 * label + i, longest=100_000 + 25_000 * i, first=10**6 * i)
            (place / name / f"{i}.csv").write_text(lines_of(events, "s", header="t,x,y,p"))
    return place


READ = {"unit": "s", "sensor": SENSOR}


def recordings(data):
    return {item.args[0]: read_events(item.args[0], SENSOR, unit="s") for item in data.items}


def test_steps_of_equal_time_or_number(folder):
    for by in ("time", "count"):
        data = EventDataset(folder, READ, steps=5, by=by)
        for (frames, _), events in zip(data, recordings(data).values(), strict=True):
            assert torch.equal(frames, to_frames(events, steps=5, by=by))
    assert EventDataset(folder, READ)[0][0].shape == (8, 2, *SENSOR)


def test_windows_from_the_first_event(folder):
    data = EventDataset(folder, READ, steps=13, window=10_000)
    for (frames, _), events in zip(data, recordings(data).values(), strict=True):
        every = to_frames(events, window=10_000)
        count = min(13, len(every))
        assert torch.equal(frames[:count], every[:count]) and not frames[count:].any()


def test_numbers_of_events(folder):
    data = EventDataset(folder, READ, steps=4, count=90)
    for (frames, _), events in zip(data, recordings(data).values(), strict=True):
        assert frames.flatten(1).sum(1).tolist() == [90, 90, 90, 30]
        assert torch.equal(frames[:3], to_frames(events[:270], count=90))
    few = EventDataset(folder, READ, steps=5, count=100, binary=True)
    assert few[0][0][3:].sum() == 0 and few[0][0].max() == 1


def test_windows_of_one_clock(folder):
    files = [(folder / "a/0.csv", 0), (folder / "b/0.csv", 1)]
    data = EventDataset(files, READ, span=(0, 100_000), window=30_000)
    assert data.steps == 4 and data[0][0].flatten(1).sum() == 300
    with pytest.raises(DataError, match=r"1\.csv.*outside of span"):
        EventDataset([(folder / "a/1.csv", 0)], READ, span=(0, 100_000), window=30_000)[0]


def test_stretches_of_every_recording(folder):
    data = EventDataset(folder, READ, cut=50_000, window=10_000)
    assert data.steps == 5 and len(data) == 2 * sum(
        (100_000 + 25_000 * i) // 50_000 for i in range(6)
    )
    for (frames, label), item in zip(data, data.items, strict=True):
        events = read_events(item.args[0], SENSOR, unit="s").between(*item.clip)
        assert torch.equal(frames, to_frames(events, window=10_000, span=item.clip))
        assert label == "ab".index(item.args[0].parent.name)
    steps = EventDataset(folder, READ, cut=50_000, steps=5)
    assert torch.equal(steps.tensors().x, data.tensors().x)
    assert torch.equal(EventDataset(folder, READ, cut=50_000, steps=2, count=9)[3][0], to_frames(
        read_events(data.items[3].args[0], SENSOR, unit="s").between(*data.items[3].clip)[:18], count=9
    ))  # fmt: skip


def test_what_is_shorter_than_a_stretch_is_said(folder):
    with pytest.warns(UserWarning, match=r"4 recordings are shorter than cut, 150,000.*0\.csv"):
        assert len(EventDataset(folder, READ, cut=150_000)) == 8
    with pytest.raises(DataError, match="no recording is as long"):
        EventDataset(folder, READ, cut=10**6)


def test_fewer_pixels_before_all_else(folder):
    data = EventDataset(folder, READ, downsample=3)
    assert data.sensor == (4, 6)
    for (frames, _), events in zip(data, recordings(data).values(), strict=True):
        assert torch.equal(frames, to_frames(downsample(events, 3), steps=8))


@pytest.mark.parametrize(
    "cuts",
    [
        {"cut": 40_000, "window": 10_000},
        {"steps": 4, "by": "count"},
        {"downsample": 2},
        {"steps": 3, "count": 20},
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_changes_nothing(folder, cuts, workers, tmp_path):
    plain = EventDataset(folder, READ, **cuts).tensors()
    for _ in range(2):
        cached = EventDataset(folder, READ, **cuts, cache=tmp_path, workers=workers)
        assert torch.equal(cached.tensors().x, plain.x) and torch.equal(cached.y, plain.y)
        for part in cached.split_off(0.5):
            for i, item in enumerate(part.items):
                assert torch.equal(part[i][0], plain.x[cached.items.index(item)])
    assert len(list(tmp_path.iterdir())) == 1
    EventDataset(folder, READ, **cuts | {"binary": True}, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("seed", range(5))
def test_no_recording_is_on_both_sides(folder, seed):
    data = EventDataset(folder, READ, cut=50_000)
    rest, held = data.split_off(1 / 3, seed)
    files = [{item.args[0] for item in part.items} for part in (rest, held)]
    assert not files[0] & files[1] and len(files[1]) == 4 and len(rest) + len(held) == len(data)
    assert sorted(path.parent.name for path in files[1]) == ["a", "a", "b", "b"]
    assert [part.classes for part in (rest, held)] == [data.classes] * 2
    again = data.split_off(1 / 3, seed)[1]
    assert again.items == held.items and torch.equal(again.y, held.y)
    assert held.y.tolist() == [item.label for item in held.items]
    valid = rest.split_off(2)[1]
    assert {item.args[0] for item in valid.items} <= files[0]
    with pytest.raises(ValueError, match="leaves both parts a recording"):
        data.split_off(12)


def test_sets_travel_to_other_processes(folder):
    data = EventDataset(folder, READ, cut=50_000)
    assert torch.equal(pickle.loads(pickle.dumps(data)).tensors().x, data.tensors().x)
    part = data.split_off(4)[1]
    loaded = DataLoader(
        part, 4, num_workers=2, collate_fn=part.collate, multiprocessing_context="spawn"
    )
    assert torch.equal(torch.cat([x for x, _ in loaded], 1).transpose(0, 1), part.tensors().x)


def test_filters_in_a_reader(folder):
    def read(path):
        return denoise(read_events(path, SENSOR, unit="s"), refractory=5000)

    data = EventDataset(folder, read)
    assert data[0][0].sum() == len(read(data.items[0].args[0])) < 300


@pytest.mark.parametrize(
    "options, message",
    [
        ({"window": 10, "count": 5}, "window and count"),
        ({"window": 10}, "window is 10, with no end"),
        ({"window": 10, "steps": 3, "cut": 30}, "window is 10, with steps and cut"),
        ({"window": 10, "by": "count"}, "window and by='count'"),
        ({"span": (0, 9), "cut": 5}, "span and cut"),
        ({"span": (0, 9), "count": 5}, "count counts events"),
        ({"span": (0, 9), "by": "count"}, "counts events"),
        ({"by": "number"}, "by is 'number'"),
        ({"cut": 0}, "cut is 0"),
        ({"downsample": 0}, "downsample is 0"),
        ({"read": {"units": "s"}}, "read is .*options of read_events"),
        ({"read": {"unit": "fortnight"}}, "unit is 'fortnight'"),
    ],
)
def test_cuts_that_exclude_each_other(folder, options, message):
    with pytest.raises(ValueError, match=message):
        EventDataset(folder, **{"read": READ} | options)


def test_texts_that_are_no_recordings_are_named_when_the_set_is_made(folder, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/0.csv").write_bytes((folder / "a/0.csv").read_bytes())
    (tmp_path / "labels.csv").write_text("name,label\n")  # beside the classes: not looked at
    assert len(EventDataset(tmp_path, READ)) == 1
    (tmp_path / "a/notes.txt").write_text("calibrated on Monday")
    with pytest.raises(DataError, match=r"notes\.txt is no recording"):
        EventDataset(tmp_path, READ)


# Journey 2


JOURNEY = """
import neurobridge as nb

cuts = {"cut": 60_000, "window": 10_000, "downsample": 2}
data = nb.data.EventDataset("clips", read={"sensor": (12, 16), "unit": "s"}, **cuts)
rest, test = data.split_off(0.25)
train, valid = rest.split_off(0.2)
nb.core.seed_everything(0)
net = nb.snn.spiking_convnet(in_channels=2, classes=len(data.classes), width=4)
history = nb.core.fit(net, train.tensors(), valid.tensors(), epochs=15, lr=0.02, batch_size=8)
accuracy = nb.core.evaluate(net, test.tensors())["accuracy"]
costs = nb.snn.synops(net, test.tensors().x.transpose(0, 1))
camera = nb.data.EventDataset([("camera.raw", 0)], **cuts)
with nb.core.evaluating(net):
    answers = net(camera.tensors().x.transpose(0, 1)).argmax(1)
names = [data.classes[answer] for answer in answers]
"""


def upright(kind, seed, longest):
    "Events in the upper or the lower half of the sensor, and some noise."
    events = clip(seed, 900, longest=longest)
    rows = events.y // 2 + (0 if kind == "high" else 6)
    noise = np.random.default_rng(seed).random(len(events)) < 0.1
    return Events(events.t, events.x, np.where(noise, events.y, rows), events.p, *SENSOR)


def statements(code):
    return sum(isinstance(node, ast.stmt) for node in ast.walk(ast.parse(code)))


def test_journey_from_files_to_a_trained_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k, kind in enumerate(("high", "low")):
        Path(f"clips/{kind}").mkdir(parents=True)
        for i in range(8):
            events = upright(kind, 50 * k + i, 190_000 + 10_000 * i)
            Path(f"clips/{kind}/{i}.csv").write_text(lines_of(events, "s"))
    write_evt2(Path("camera.raw"), upright("low", 999, 300_000))
    found: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(JOURNEY, found)
    assert statements(JOURNEY) <= 20 and JOURNEY.count("import") == 1
    assert found["accuracy"] > 0.9 and set(found["names"]) == {"low"} and len(found["names"]) == 5
    assert found["costs"].filter(like="energy").to_numpy().sum() > 0


MILLISECONDS = """
import neurobridge as nb

read = {"sensor": (12, 16), "columns": {"t": "time_ms", "x": "col", "y": "line", "p": "on"}}
data = nb.data.EventDataset("clips", read=read, cut=60_000, window=10_000)
rest, test = data.split_off(0.25)
train, valid = rest.split_off(0.2)
nb.core.seed_everything(0)
net = nb.snn.spiking_convnet(in_channels=2, classes=len(data.classes), width=4)
history = nb.core.fit(net, train.tensors(), valid.tensors(), epochs=8, lr=0.02, batch_size=8)
accuracy = nb.core.evaluate(net, test.tensors())["accuracy"]
costs = nb.snn.synops(net, test.tensors().x.transpose(0, 1))
camera = nb.data.EventDataset([("camera.raw", 0)], {"salvage": True}, cut=60_000, window=10_000)
with nb.core.evaluating(net):
    answers = net(camera.tensors().x.transpose(0, 1)).argmax(1)
names = [data.classes[answer] for answer in answers]
"""


def test_journey_with_milliseconds_named_columns_and_a_file_cut_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k, kind in enumerate(("high", "low")):
        Path(f"clips/{kind}").mkdir(parents=True)
        for i in range(8):
            events = upright(kind, 50 * k + i, 190_000 + 10_000 * i)
            text = lines_of(events, "ms", order="ypxt", separator=";", header="line;on;col;time_ms")
            Path(f"clips/{kind}/{i}.csv").write_text(text)
    whole = upright("low", 999, 300_000)
    write_evt3(Path("whole.raw"), whole)
    Path("camera.raw").write_bytes(Path("whole.raw").read_bytes()[:-3])
    found: dict = {}
    with pytest.warns(UserWarning, match=r"camera\.raw: [\d,]+ events were salvaged"):
        exec(MILLISECONDS, found)
    assert statements(MILLISECONDS) <= 20 and MILLISECONDS.count("import") == 1
    assert found["accuracy"] > 0.9 and set(found["names"]) == {"low"}
    first = found["data"].items[0]
    assert first.args[0].name == "0.csv" and first.clip[1] - first.clip[0] == 60_000


# Frames of one's own, and stretches at random


def five_bins(events):
    return to_voxel_grid(events, 5)


def test_frames_by_a_function(folder, tmp_path):
    "Voxel grids and time surfaces, of stretches, from a cache, in batches and in other processes."
    surfaces = functools.partial(to_time_surface, window=10_000, tau=2e4)
    for made in (five_bins, surfaces):
        data = EventDataset(folder, READ, cut=50_000, frames=made, downsample=2)
        for (frames, _), item in zip(data, data.items, strict=True):
            events = downsample(read_events(item.args[0], SENSOR, unit="s"), 2)
            span = {} if made is five_bins else {"span": item.clip}
            assert torch.equal(frames, made(events.between(*item.clip), **span))
        assert data.steps == 5 and frames.dtype == torch.float32
        for _ in range(2):
            kept = EventDataset(folder, READ, cut=50_000, frames=made, downsample=2, cache=tmp_path)
            assert torch.equal(kept.tensors().x, data.tensors().x)
        loaded = DataLoader(data, 7, num_workers=2, collate_fn=data.collate)
        assert torch.equal(torch.cat([x for x, _ in loaded], 1).transpose(0, 1), data.tensors().x)
    assert len(list(tmp_path.iterdir())) == 2
    whole = EventDataset(folder, READ, frames=five_bins)
    assert torch.equal(whole[3][0], five_bins(recordings(whole)[whole.items[3].args[0]]))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"frames": "voxel"}, TypeError, "frames is 'voxel'; expected a function"),
        ({"frames": lambda: 0}, TypeError, "frames is .*expected a function of events"),
        ({"frames": five_bins, "steps": 4}, ValueError, "steps is 4; expected one of the two"),
        ({"frames": five_bins, "window": 9}, ValueError, "window is 9; expected one of the two"),
        ({"frames": five_bins, "binary": True}, ValueError, "binary is True; expected one"),
        ({"frames": lambda e: e}, TypeError, "frames returns Events.*expected a tensor"),
        (
            {"frames": lambda e: torch.zeros(int(e.t[0]) // 10**6 + 1, 2)},
            DataError,
            "for the first record",
        ),
        ({"frames": lambda e: to_time_surface(e, 10**7, 1.0)}, DataError, r"csv: to_time_surface"),
        ({"cuts": "random"}, ValueError, "cuts is 'random' without cut"),
        ({"cuts": "some", "cut": 5}, ValueError, "cuts is 'some'"),
        ({"cuts": "random", "cut": 50_000, "cache": "x"}, ValueError, "draws other frames"),
        ({"cuts": "random", "cut": 10**6}, DataError, "no recording is as long"),
    ],
)
def test_wrong_frames_and_stretches_are_refused(folder, options, error, message):
    with pytest.raises(error, match=message):
        EventDataset(folder, READ, **options).tensors()


def stretch_of(frames, events, length):
    "Return the beginnings of stretches that have these counts."
    starts = range(int(events.t[0]), int(events.t[-1]) + 2 - length)
    here = np.searchsorted(events.t, starts)
    there = np.searchsorted(events.t, np.asarray(starts) + length)
    fits = np.flatnonzero(there - here == int(frames.sum()))
    for k in fits:
        span = (starts[k], starts[k] + length)
        if torch.equal(to_frames(events.between(*span), steps=5, span=span), frames):
            return starts[k]
    return None


def test_random_stretches_are_stretches_and_seeded(folder):
    data = EventDataset(folder, READ, cut=50_000, steps=5, cuts="random")
    assert len(data) == 12
    events = recordings(data)[data.items[2].args[0]]
    torch.manual_seed(3)
    drawn = [data[2][0] for _ in range(6)]
    torch.manual_seed(3)
    again = [data[2][0] for _ in range(6)]
    assert all(map(torch.equal, drawn, again))
    begins = [stretch_of(frames, events, 50_000) for frames in drawn]
    assert None not in begins and len(set(begins)) > 3
    other = torch.stack([data[2][0] for _ in range(6)])
    assert not torch.equal(other, torch.stack(drawn))


def test_draws_reach_both_ends_and_nothing_else(tmp_path):
    t = range(8)
    (tmp_path / "a.csv").write_text("t,x,y,p\n" + "".join(f"{k},{k},0,1\n" for k in t))
    pairs = [(tmp_path / "a.csv", 0)]
    data = EventDataset(pairs, {"sensor": (1, 8), "unit": "us"}, cut=6, steps=1, cuts="random")
    torch.manual_seed(0)
    seen = {tuple(data[0][0][0, 0, 0].int().tolist()) for _ in range(200)}
    assert seen == {(1,) * 6 + (0, 0), (0,) + (1,) * 6 + (0,), (0, 0) + (1,) * 6}
    middle = EventDataset(pairs, {"sensor": (1, 8), "unit": "us"}, cut=6, steps=1, cuts="middle")
    assert middle[0][0][0, 0, 0].tolist() == [0, 1, 1, 1, 1, 1, 1, 0]


def test_what_is_held_out_is_never_drawn_or_augmented(folder):
    def half(events, generator):
        return events[generator.random(len(events)) < 0.5]

    data = EventDataset(folder, READ, augment=half, cut=50_000, cuts="random")
    rest, held = data.split_off(4)
    assert not all(map(torch.equal, rest.tensors().x, rest.tensors().x))
    assert torch.equal(held.tensors().x, held.tensors().x)
    files = {path: events for path, events in recordings(held).items()}
    for (frames, _), item in zip(held, held.items, strict=True):
        events = files[item.args[0]]
        late = (int(events.t[-1]) + 1 - int(events.t[0]) - 50_000) // 2
        start = int(events.t[0]) + late
        assert frames.sum() == len(events.between(start, start + 50_000))
    assert data.cuts == rest.cuts == "random" and data.augment is rest.augment is half


def test_workers_draw_differently_and_as_seeded(folder):
    data = EventDataset(folder, READ, cut=50_000, steps=5, cuts="random")

    def epoch(seed):
        draws = torch.Generator().manual_seed(seed)
        loader = DataLoader(data, 6, num_workers=2, collate_fn=data.collate, generator=draws)
        return torch.cat([x for x, _ in loader], 1)

    assert torch.equal(epoch(1), epoch(1)) and not torch.equal(epoch(1), epoch(2))
