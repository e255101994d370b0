"Frames by number of events, slices of time, voxel grids, time surfaces and filters: against tonic, SpikingJelly and loops over single events."

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurobridge.data import (
    Events,
    denoise,
    downsample,
    to_frames,
    to_time_surface,
    to_voxel_grid,
)


@st.composite
def recordings(draw, least=0, first=0):
    n, seed = draw(st.integers(least, 120)), draw(st.integers(0, 2**31))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(seed)
    t = first + np.sort(rng.integers(0, draw(st.sampled_from([1, 30, 5000])), n))
    return Events(
        t,
        rng.integers(0, width, n),
        rng.integers(0, height, n),
        rng.integers(0, 2, n),
        height,
        width,
    )


def sensor(e):
    return e.width, e.height, 2


def some(n=400, sensor=(12, 15), first=10**6, longest=50_000, seed=0):
    rng = np.random.default_rng(seed)
    t = first + np.sort(rng.integers(0, longest, n))
    x, y, p = rng.integers(0, sensor[1], n), rng.integers(0, sensor[0], n), rng.integers(0, 2, n)
    return Events(t, x, y, p, *sensor)


# Frames and slices


@settings(max_examples=100, deadline=None)
@given(recordings(), st.integers(1, 20))
def test_frames_of_equally_many_events(events, steps):
    frames = to_frames(events, steps=steps, by="count")
    counts = frames.flatten(1).sum(1).tolist()
    share = len(events) // steps
    assert counts == [share] * (steps - 1) + [len(events) - share * (steps - 1)]
    order = np.cumsum(counts)
    for k, frame in enumerate(frames):
        part = events[int(order[k] - counts[k]) : int(order[k])]
        assert torch.equal(frame, to_frames(part, steps=1)[0])


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_frames_by_number_are_spikingjellys(steps):
    theirs = pytest.importorskip("spikingjelly.datasets", reason="needs spikingjelly")
    e = some(403)
    columns = {name: getattr(e, name).astype(int) for name in "txyp"}
    expected = theirs.integrate_events_by_fixed_frames_number(columns, "number", steps, 12, 15)
    ours = to_frames(e, steps=steps, by="count").flip(1)  # its channel 0 is OFF
    assert np.array_equal(ours.numpy(), expected)


@pytest.mark.parametrize(
    "cut",
    [
        {"window": 10, "by": "count"},
        {"count": 3, "by": "count"},
        {"steps": 2, "by": "count", "span": (0, 9)},
    ],
)
def test_by_count_is_for_steps(cut):
    with pytest.raises(ValueError, match="by is 'count'"):
        to_frames(Events([0], [0], [0], [0], 1, 1), **cut)


@settings(max_examples=100, deadline=None)
@given(recordings(), st.integers(1, 60), st.integers(1, 40))
def test_slices_by_a_loop(events, window, step):
    found = events.slices(window, step)
    start = int(events.t[0]) if len(events) else 0
    expected = []
    while len(events) and start + window <= int(events.t[-1]) + 1:
        expected.append(events[(events.t >= start) & (events.t < start + window)])
        start += step
    assert found == expected
    assert len(events) == 0 or events.between(int(events.t[0]), int(events.t[-1]) + 1) == events


@pytest.mark.parametrize("overlap", [0, 300])
def test_slices_are_tonics(overlap):
    slicers = pytest.importorskip("tonic.slicers", reason="needs tonic")
    e = some()
    theirs = slicers.SliceByTime(1000, overlap=overlap).slice(e.to_array(), None)[0]
    ours = e.slices(1000, 1000 - overlap)
    assert len(ours) == len(theirs)
    assert all(
        np.array_equal(one.to_array(), other) for one, other in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("way", [{"window": 7000}, {"count": 90}])
def test_frames_are_tonics(way):
    transforms = pytest.importorskip("tonic.transforms", reason="needs tonic")
    e = some()
    told = {"window": "time_window", "count": "event_count"}
    theirs = transforms.ToFrame(
        sensor(e), include_incomplete=True, **{told[name]: size for name, size in way.items()}
    )(e.to_array())
    assert np.array_equal(
        to_frames(e, **way).flip(1).numpy(), theirs
    )  # its channel is the polarity


def test_wrong_slices():
    e = some()
    for call, message in (
        (lambda: e.slices(0), "window is 0"),
        (lambda: e.slices(10, 0), "step is 0"),
        (lambda: e.between(10, 5), "end is 5"),
        (lambda: Events([0, 10**12], [0, 0], [0, 0], [0, 0], 1, 1).slices(10), "longer window"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# Voxel grids and time surfaces


@settings(max_examples=80, deadline=None)
@given(recordings(), st.integers(2, 9))
def test_voxel_grids_by_a_loop(events, bins):
    expected = torch.zeros(bins, events.height, events.width, dtype=torch.float64)
    for t, x, y, p in zip(events.t.tolist(), events.x, events.y, events.p, strict=True):
        first, last = int(events.t[0]), int(events.t[-1])
        place = (bins - 1) * (t - first) / (last - first) if last > first else 0
        for b in range(bins):
            expected[b, y, x] += (2 * int(p) - 1) * max(0, 1 - abs(place - b))
    grid = to_voxel_grid(events, bins)
    torch.testing.assert_close(grid, expected.float(), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        grid.sum(), (2.0 * torch.tensor(events.p) - 1).sum(), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("bins", [2, 5, 11])
def test_voxel_grids_are_tonics(bins):
    "tonic scales time to the number of bins and drops what would be in one more; so its bins are all but our last."
    transforms = pytest.importorskip("tonic.transforms", reason="needs tonic")
    e = some()
    theirs = transforms.ToVoxelGrid(sensor(e), n_time_bins=bins)(e.to_array())
    ours = to_voxel_grid(e, bins + 1)[:-1]
    torch.testing.assert_close(
        ours, torch.tensor(theirs).float().view(ours.shape), rtol=0, atol=1e-5
    )


def test_time_surfaces_are_tonics():
    "At times far from 0: where a pixel had no event, tonic's last one was at 0."
    transforms = pytest.importorskip("tonic.transforms", reason="needs tonic")
    e = some()
    theirs = transforms.ToTimesurface(sensor(e), dt=4000, tau=3000)(e.to_array())
    ours = to_time_surface(e, 4000, tau=3000).flip(1)
    torch.testing.assert_close(ours, torch.tensor(np.array(theirs)).float(), rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(recordings(least=1), st.integers(1, 40), st.floats(0.5, 100))
def test_time_surfaces_by_a_loop(events, window, tau):
    parts = events.slices(window)
    if not parts:
        with pytest.raises(ValueError, match="window of at most its duration"):
            to_time_surface(events, window, tau)
        return
    surfaces = to_time_surface(events, window, tau)
    last = {}
    for k in range(len(parts)):
        end = int(events.t[0]) + (k + 1) * window
        for t, x, y, p in zip(*(getattr(parts[k], name).tolist() for name in "txyp"), strict=True):
            last[1 - p, y, x] = t
        expected = torch.zeros(2, events.height, events.width)
        for place, t in last.items():
            expected[place] = np.exp(-(end - t) / tau)
        torch.testing.assert_close(surfaces[k], expected, rtol=1e-5, atol=1e-7)


# Filters


@settings(max_examples=80, deadline=None)
@given(recordings(), st.integers(1, 500))
def test_filters_by_a_loop(events, time):
    rested, accompanied, last = [], [], {}
    for t, x, y in zip(events.t.tolist(), events.x.tolist(), events.y.tolist(), strict=True):
        rested.append((x, y) not in last or t - last[x, y] > time)
        beside = [(x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)]
        accompanied.append(any(place in last and t - last[place] < time for place in beside))
        last[x, y] = t
    assert denoise(events, refractory=time) == events[np.array(rested, bool)]
    assert denoise(events, neighbours=time) == events[np.array(accompanied, bool)]


@settings(max_examples=50, deadline=None)
@given(recordings(least=1), st.sampled_from([0.1, 100.0, 10_000.0, 1e7]))
def test_hot_pixels_by_a_loop(events, rate):
    places = list(zip(events.x.tolist(), events.y.tolist(), strict=True))
    seconds = (int(events.t[-1]) - int(events.t[0])) / 1e6
    kept = [places.count(place) <= rate * seconds for place in places]
    assert denoise(events, hot=rate) == events[np.array(kept)]


def test_filters_are_tonics():
    "At times far from 0, where tonic's memory begins; all pixels of the sensor have events, whose size tonic takes from them."
    transforms = pytest.importorskip("tonic.transforms", reason="needs tonic")
    e = some(2000)
    for ours, theirs in (
        (denoise(e, neighbours=700), transforms.Denoise(700)),
        (denoise(e, refractory=3000), transforms.RefractoryPeriod(3000)),
        (downsample(e, 3), transforms.Downsample(spatial_factor=1 / 3, sensor_size=sensor(e))),
    ):
        assert 0 < len(ours) and np.array_equal(ours.to_array(), theirs(e.to_array()))


def test_hot_pixels_are_tonics():
    functional = pytest.importorskip("tonic.functional", reason="needs tonic")
    e = some(2000)
    hot = functional.identify_hot_pixel(e.to_array(), 300.0)
    theirs = functional.drop_pixel_numpy(e.to_array(), hot)
    ours = denoise(e, hot=300.0)
    inside = (e.x < e.width - 1) & (e.y < e.height - 1)  # its histogram leaves out the last of both
    assert 0 < len(ours) < len(e)
    kept = e[inside][np.isin(e[inside].to_array(), ours.to_array())]
    assert np.array_equal(
        kept.to_array(), theirs[(theirs["x"] < e.width - 1) & (theirs["y"] < e.height - 1)]
    )


@settings(max_examples=60, deadline=None)
@given(recordings(), st.integers(1, 12))
def test_fewer_pixels(events, factor):
    small = downsample(events, factor)
    assert (small.height, small.width) == (-(-events.height // factor), -(-events.width // factor))
    frames = torch.nn.functional.pad(
        to_frames(events, steps=1)[0],
        (0, small.width * factor - events.width, 0, small.height * factor - events.height),
    )
    sums = frames.view(2, small.height, factor, small.width, factor).sum((2, 4))
    assert torch.equal(to_frames(small, steps=1)[0], sums)


def test_filters_want_a_rule():
    with pytest.raises(ValueError, match="got no rule"):
        denoise(some())
    assert len(denoise(Events([], [], [], [], 3, 3), hot=1.0, refractory=5, neighbours=5)) == 0


def test_more_than_the_machine_has_is_refused_before_it_is_made():
    events = Events([0, 10**12], [0, 1], [0, 1], [0, 1], 480, 640)
    with pytest.raises(ValueError, match="to_voxel_grid: 1,000,000,000 bins .* fewer bins"):
        to_voxel_grid(events, 10**9)
    with pytest.raises(ValueError, match="to_time_surface: .* surfaces of .* a larger window"):
        to_time_surface(events, window=10**5, tau=1.0)
    with pytest.raises(ValueError, match="to_time_surface: window"):
        to_time_surface(events, window=0, tau=1.0)
