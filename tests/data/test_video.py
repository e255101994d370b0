"Video to events: the rule computed by hand, clips that are damaged, files that give back what was written."

import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from neurobridge.core import data_root
from neurobridge.data import (
    DataError,
    Events,
    load_ucf,
    read_video,
    save_ucf,
    to_frames,
    video_to_events,
)
from neurobridge.data.video import pick_frames

clips = st.tuples(st.integers(2, 6), st.integers(1, 7), st.integers(1, 7)).flatmap(
    lambda size: st.sampled_from([size, (*size, 3)]).flatmap(
        lambda shape: hnp.arrays(np.uint8, shape)
    )
)


def slowly(frames, ratio):
    "Every pixel and step by itself; gray from Pillow, percentiles from a sorted list."
    gray = [np.asarray(Image.fromarray(f).convert("L")).astype(int) for f in frames]
    changes = sorted(
        int(b - a)
        for old, new in zip(gray, gray[1:], strict=False)
        for a, b in zip(old.flat, new.flat, strict=True)
    )

    def percentile(q):
        place = q / 100 * (len(changes) - 1)
        i = min(int(place), len(changes) - 2) if len(changes) > 1 else 0
        return changes[i] + (place - i) * (changes[min(i + 1, len(changes) - 1)] - changes[i])

    low, high = percentile(50 * ratio), percentile(100 - 50 * ratio)
    h, w = gray[0].shape
    found = []
    for t in range(len(gray) - 1):
        change = gray[t + 1] - gray[t]
        found += [(t, x, y, 1) for y in range(h) for x in range(w) if change[y, x] > high + 1e-9]
        found += [(t, x, y, 0) for y in range(h) for x in range(w) if change[y, x] < low - 1e-9]
    return found


@settings(max_examples=80, deadline=None)
@given(clips, st.sampled_from([0.05, 0.15, 0.5]))
def test_against_pixels_one_by_one(frames, ratio):
    events = video_to_events(frames, ratio)
    assert list(zip(events.t, events.x, events.y, events.p, strict=True)) == slowly(frames, ratio)
    assert (events.height, events.width) == frames.shape[1:3]


def test_random_thresholds():
    "Thresholds hidden in the events: among equal changes, the share that speaks is a normal distribution's tail."
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    change = np.concatenate([np.full(20_000, 30), np.full(20_000, -30), np.zeros(160_000, int)])
    frames = np.full((2, 200, 1000), 100, np.uint8)
    frames[1] += change.reshape(200, 1000).astype(np.uint8)  # wraps below zero, and back
    low, high = np.percentile(change, [7.5, 92.5])
    assert (low, high) == (-30, 30)
    events = video_to_events(frames, mode="random", generator=rng)
    for p, value in ((1, 30), (0, -30)):
        spoke = np.isin(
            np.flatnonzero(change == value), (1000 * events.y.astype(int) + events.x)[events.p == p]
        ).mean()
        assert abs(spoke - norm.cdf(0)) < 0.02  # threshold N(30, 7.65²) below 30: one half
    quiet = np.full((2, 50, 1000), 100, np.uint8)
    quiet[1, :, ::2] += 2  # 2 levels are below the floor of 2.55, 3 are above it
    assert len(video_to_events(quiet, mode="random", generator=rng)) == 0
    quiet[1, :, ::2] += 1
    share = len(video_to_events(quiet, 0.15, "random", np.random.default_rng(1))) / 25_000
    expected = norm.cdf((3 - 3) / 7.65)  # c2 = 3: below 3 after the floor
    assert abs(share - expected) < 0.02


def test_random_mode_repeats_with_its_seed():
    frames = np.random.default_rng(0).integers(0, 256, (4, 9, 9, 3), dtype=np.uint8)
    made = [
        video_to_events(frames, mode="random", generator=np.random.default_rng(seed))
        for seed in (1, 1, 2)
    ]
    assert made[0] == made[1] != made[2]


@given(st.integers(1, 3000), st.integers(1, 60))
def test_picked_frames(n, count):
    picked = pick_frames(n, count).tolist()
    assert (
        len(picked) == count and picked[0] == 0 and picked == sorted(picked) and picked[-1] <= n - 1
    )
    if count > 1:
        assert picked[-1] == n - 1 and all(
            abs(2 * i * (count - 1) - 2 * k * (n - 1)) <= count - 1 for k, i in enumerate(picked)
        )


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((1, 4, 4), np.uint8),
        np.zeros((3, 4, 4)),
        np.zeros((3, 4, 4, 4), np.uint8),
        np.zeros((0, 4, 4), np.uint8),
    ],
)
def test_what_is_no_clip(frames):
    with pytest.raises(ValueError, match="video_to_events: frames have shape"):
        video_to_events(frames)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "median"},
        {"ratio": 0},
        {"ratio": 1},
        {"mode": "random"},
        {"generator": np.random.default_rng(0)},
    ],
)
def test_settings_that_make_no_sense(options):
    with pytest.raises(ValueError, match="video_to_events: (mode|ratio)"):
        video_to_events(np.zeros((3, 4, 4), np.uint8), **options)


@settings(max_examples=40, deadline=None)
@given(clips)
def test_files_give_back_what_was_written(tmp_path_factory, frames):
    path, events = tmp_path_factory.mktemp("ucf") / "e.npz", video_to_events(frames, 0.4)
    save_ucf(path, events, steps=len(frames) + 2)
    assert load_ucf(path) == events
    with np.load(path) as file:
        cube = file["arr_0"]
    assert cube.dtype == np.uint8 and np.array_equal(
        cube.swapaxes(0, 1), to_frames(events, steps=len(frames) + 2, span=(0, len(frames) + 2))
    )


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "e.npz"
    for content in (
        {"arr_0": np.zeros((2, 3, 4), np.uint8)},
        {"arr_0": np.zeros((2, 3, 4, 5))},
        {"arr_0": np.full((2, 3, 4, 5), 7, np.uint8)},
        {"a": np.zeros(1)},
    ):
        np.savez(path, **content)
        with pytest.raises(DataError, match=r"e\.npz"):
            load_ucf(path)
    save_ucf(path, Events([0, 2], [0, 1], [0, 1], [1, 0], 2, 2))
    whole = path.read_bytes()
    for cut in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"e\.npz"):
            load_ucf(path)
    with pytest.raises(ValueError, match="outside of 0 to 29"):
        save_ucf(path, Events([30], [0], [0], [1], 2, 2))


# ---- video files


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    "A clip whose frames tell their number by their brightness, with the index of frames at the file's beginning."
    av = pytest.importorskip("av")
    path = tmp_path_factory.mktemp("video") / "steps.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        noise = np.random.default_rng(0).integers(0, 30, (40, 32, 48, 3), dtype=np.uint8)
        for k in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise[k] + np.uint8(5 * k))))
        container.mux(stream.encode())
    return path


def test_the_right_frames_are_read(clip):
    brightness = read_video(clip, count=None).mean((1, 2, 3))
    np.testing.assert_allclose(
        brightness, 14.5 + 5 * np.arange(40), atol=6
    )  # MPEG-4 loses a little
    assert (np.diff(brightness) > 0).all()
    assert len(brightness) == 40
    for count in (1, 7, 31, 40, 60):
        assert np.array_equal(
            read_video(clip, count).mean((1, 2, 3)), brightness[pick_frames(40, count)]
        )
    assert read_video(clip, 3, (10, 14)).shape == (3, 10, 14, 3)


DAMAGE = """
import sys
from pathlib import Path
import numpy as np
from neurobridge.data import DataError, read_video
whole, bad, counts = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), {"refused": 0, "read": 0}
rng = np.random.default_rng(0)
for k in range(int(sys.argv[3])):
    content = bytearray(whole)
    if k % 3 == 0:
        content = content[: rng.integers(len(content))]
    elif k % 3 == 1:
        for _ in range(rng.integers(1, 6)):
            content[rng.integers(len(content))] ^= rng.integers(1, 256)
    else:
        at = rng.integers(len(content)); content[at : at + 500] = bytes(len(content[at : at + 500]))
    bad.write_bytes(bytes(content))
    try:
        frames = read_video(bad)
        assert k % 3 and frames.dtype == np.uint8 and frames.shape[0] == 31 and frames.shape[3] == 3, (k, frames.shape)
        counts["read"] += 1
    except DataError as error:
        assert str(bad) in str(error)
        counts["refused"] += 1
print(counts)
assert counts["refused"] > float(sys.argv[4]) * sum(counts.values())
"""


def run_damage(path, tmp_path, times, refused):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            DAMAGE,
            str(path),
            str(tmp_path / "bad.mp4"),
            str(times),
            str(refused),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


def test_damaged_clips_are_refused(clip, tmp_path):
    """In a process of its own, so that a hang or a crash of the decoder is seen as one. A clip that is cut off is never read;
    what else is wrong, MPEG-4 notices often, H.264 nearly always."""
    run_damage(clip, tmp_path, 60, 0.5)


@pytest.mark.data
@pytest.mark.parametrize("name", ["video_0.mp4", "video_1.mp4"])
def test_real_clips(name, tmp_path):
    pytest.importorskip("av")
    path = data_root() / "videos" / name
    if not path.exists():
        pytest.skip(f"no {path}: set NEUROBRIDGE_DATA")
    frames = read_video(path, size=(60, 107))
    events = video_to_events(frames)
    assert (
        frames.shape == (31, 60, 107, 3)
        and 0.02 < len(events) / (30 * 60 * 107) <= 0.15
        and events.t.min() >= 0
        and events.t.max() == 29
    )
    if name == "video_1.mp4":
        run_damage(path, tmp_path, 9, 0.6)


def test_missing_clip_and_missing_library(tmp_path, monkeypatch):
    pytest.importorskip("av")
    for path in (tmp_path / "none.mp4", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            read_video(path)
    (tmp_path / "text.mp4").write_text("not a film")
    with pytest.raises(DataError, match=r"text\.mp4"):
        read_video(tmp_path / "text.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"^read_video needs av; run: pip install av$"):
        read_video(tmp_path / "none.mp4")


def _turned(path, quarters):
    "Write a clip of 16×32 pixels whose left half is white, and turn it by the matrix in its header, as phones do."
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, 32, "yuv420p"
        for _ in range(3):
            frame = np.zeros((16, 32, 3), np.uint8)
            frame[:, :16] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    raw = path.read_bytes()
    at = raw.index(b"tkhd") + 4 + 40  # version 0: the matrix begins 40 bytes behind the name
    one = 1 << 16
    a, b, c, d = {
        0: (one, 0, 0, one),
        1: (0, one, -one, 0),
        2: (-one, 0, 0, -one),
        3: (0, -one, one, 0),
    }[quarters]  # clockwise
    path.write_bytes(
        raw[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + raw[at + 36 :]
    )
    return path


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_a_clip_is_read_upright(tmp_path, quarters):
    expected = np.zeros((16, 32), bool)
    expected[:, :16] = True
    expected = np.rot90(expected, -quarters)
    path = _turned(tmp_path / "clip.mp4", quarters)
    for size in (None, expected.shape, (8, 8)):
        frames = read_video(path, count=2, size=size)
        shape = size or expected.shape
        assert frames.shape == (2, *shape, 3)
        rows, columns = (np.arange(n) * m // n for n, m in zip(shape, expected.shape, strict=True))
        assert np.mean((frames[0, ..., 0] > 127) == expected[np.ix_(rows, columns)]) > 0.9


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(size=224), "size is 224"),
        (dict(size=(0, 5)), "size is 0"),
        (dict(count=0), "count is 0"),
        (dict(count=2.5), "count is 2.5"),
    ],
)
def test_a_callers_slip_is_not_blamed_on_the_file(tmp_path, wrong, message):
    with pytest.raises((TypeError, ValueError), match=f"read_video: {message}"):
        read_video(tmp_path / "none.mp4", **wrong)
    with pytest.raises(DataError, match="is missing"):
        read_video(tmp_path / "none.mp4")
