"Recordings in pieces, and their pictures: against counts made one by one, and against the colours that pixels must have."

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from PIL import Image

from neurobridge.core import PALETTE
from neurobridge.data import Events, crop, event_image, gif, iter_frames, scatter, to_frames
from neurobridge.data import events as camera


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def recording(n, seed=0, longest=1000, height=7, width=9):
    rng = np.random.default_rng(seed)
    return Events(
        np.sort(rng.integers(0, longest, n)),
        rng.integers(0, width, n),
        rng.integers(0, height, n),
        rng.integers(0, 2, n),
        height,
        width,
    )


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 200),
    st.integers(0, 2**31),
    st.lists(st.integers(0, 200), max_size=6),
    st.integers(1, 1500),
    st.booleans(),
    st.integers(0, 900),
)
def test_pieces_make_the_frames_of_the_whole(n, seed, cuts, window, binary, early):
    events = recording(n, seed)
    cuts = [0, *sorted(min(cut, n) for cut in cuts), n]
    pieces = [
        events[a:b] for a, b in zip(cuts[:-1], cuts[1:], strict=True)
    ]  # empty ones among them
    first = int(events.t[0])
    assert torch.equal(
        torch.stack(list(iter_frames(pieces, window, binary=binary))),
        to_frames(events, window=window, binary=binary),
    )
    found = torch.stack(list(iter_frames(pieces, window, start=first - early)))
    assert torch.equal(
        found, to_frames(events, window=window, span=(first - early, int(events.t[-1]) + 1))
    )


def test_frames_come_as_soon_as_they_are_full():
    def pieces():
        yield recording(50, longest=100)
        raise RuntimeError("nobody should ask for more")

    frames = iter_frames(pieces(), window=10)
    assert next(frames).sum() > 0
    assert list(iter_frames([], window=10)) == []


@pytest.mark.parametrize(
    "pieces, start, message",
    [
        ([recording(5), recording(5, longest=1)], None, "in order of time"),
        ([recording(5), recording(5, longest=1, height=8)], None, "one sensor"),
        ([recording(5)], 10**6, "start 1000000"),
    ],
)
def test_pieces_that_do_not_fit(pieces, start, message):
    with pytest.raises(ValueError, match=message):
        list(iter_frames(pieces, 10, start))
    with pytest.raises(ValueError, match="window is 0"):
        list(iter_frames(pieces, 0))


def colours(name):
    return np.rint(255 * np.array(to_rgb(PALETTE[name]))).astype(int)


def test_the_image_has_the_colours_of_its_pixels():
    events = Events(np.arange(7), [0, 1, 1, 1, 2, 2, 3], [0] * 7, [1, 0, 0, 0, 1, 0, 1], 2, 5)
    picture = event_image(events, most=1).images[0].get_array().astype(int)
    assert picture.shape == (2, 5, 3) and (picture[1] == 255).all() and (picture[0, 4] == 255).all()
    assert (
        (picture[0, 0] == colours("red")).all()
        and (picture[0, 1] == colours("blue")).all()
        and (picture[0, 3] == colours("red")).all()
    )
    assert (
        picture[0, 2] < np.minimum(colours("red"), colours("blue")) + 1
    ).all()  # both: darker than either
    half = event_image(events, most=6).images[0].get_array().astype(int)
    assert (abs(half[0, 1] - (255 + colours("blue")) / 2) <= 1).all()  # three of six
    assert (event_image(events[:0]).images[0].get_array() == 255).all()
    with pytest.raises(ValueError, match="most is 0"):
        event_image(events, most=0)


def test_scatter_thins_with_a_seed():
    events = recording(500)
    clouds = [
        np.column_stack(scatter(events, limit=40, seed=seed).collections[0]._offsets3d)
        for seed in (0, 0, 1)
    ]
    assert (
        all(len(cloud) == 40 for cloud in clouds)
        and np.array_equal(clouds[0], clouds[1])
        and not np.array_equal(clouds[0], clouds[2])
    )
    every = {
        tuple(row)
        for row in zip(events.t.tolist(), events.x.tolist(), events.y.tolist(), strict=True)
    }
    assert {tuple(row) for row in clouds[0].astype(int).tolist()} <= every
    assert len(scatter(events, limit=500).collections[0]._offsets3d[0]) == 500
    with pytest.raises(ValueError, match="flat"):
        scatter(events, ax=plt.subplots()[1])
    with pytest.raises(ValueError, match="limit is 0"):
        scatter(events, limit=0)


def test_gif_is_a_file_with_every_frame(tmp_path):
    frames = torch.zeros(5, 2, 6, 8)
    for t in range(5):
        frames[t, t % 2, t, t + 1] = 1
    picture = gif(frames, fps=20, zoom=3)
    (tmp_path / "a.gif").write_bytes(picture)
    with Image.open(tmp_path / "a.gif") as file:
        assert file.n_frames == 5 and file.size == (24, 18) and file.info["duration"] == 50
        for t in range(5):
            file.seek(t)
            pixels = np.asarray(file.convert("RGB")).astype(int)
            assert (
                abs(pixels[3 * t + 1, 3 * t + 4] - colours("blue" if t % 2 else "red")) <= 3
            ).all()
            pixels[3 * t : 3 * t + 3, 3 * t + 3 : 3 * t + 6] = 255
            assert (pixels >= 250).all()
    assert (
        "data:image/gif;base64," in picture._repr_html_()
        and len(repr(picture)) < 40
        and Image.open(io.BytesIO(picture)).format == "GIF"
    )


@pytest.mark.parametrize(
    "frames, how, message",
    [
        (torch.zeros(2, 6, 8), {}, "shape"),
        (torch.zeros(0, 2, 6, 8), {}, "at least one"),
        (torch.zeros(1, 3, 6, 8), {}, "2, H, W"),
        (torch.full((1, 2, 6, 8), torch.nan), {}, "NaN"),
        (torch.zeros(1, 2, 6, 8), {"fps": 0}, "fps"),
        (torch.zeros(1, 2, 6, 8), {"fps": 100}, "fps"),
        (torch.zeros(1, 2, 6, 8), {"zoom": 0}, "zoom"),
        (torch.zeros(1, 2, 6, 8), {"most": -1}, "most"),
    ],
)
def test_gif_refuses(frames, how, message):
    with pytest.raises(ValueError, match=message):
        gif(frames, **how)


# What is no recording, and what no cut


@pytest.mark.parametrize("changed, message", [
    (dict(t=[0.0, 1.0]), "t is .*whole numbers"), (dict(t=np.array([0, 1], "m8[us]")), "t is"), (dict(x=[True, False]), "x is"), (dict(x=["a", "b"]), "x is"), (dict(y=[[1], [1, 2]]), "y is"),
    (dict(t=np.array([0, 2**63], np.uint64)), "t lies in"), (dict(p=[-1, 1]), r"p lies in \[-1, 1\]; expected 0 to 1"), (dict(p=[0, 2]), "p lies in"), (dict(x=[0, 3]), "x lies in"), (dict(y=[-1, 0]), "y lies in"),
    (dict(t=[1, 0]), "backwards"), (dict(t=[1]), "one length"), (dict(height=2.0), "height is 2.0"), (dict(width=0), "sensor is 2×0"), (dict(width=40_000), "sensor is 2×40000"), (dict(height=True), "height is True"), (dict(t=torch.zeros(2, dtype=torch.int64, device="meta")), "t is"),
])  # fmt: skip
def test_what_is_no_recording_is_named(changed, message):
    with pytest.raises((TypeError, ValueError), match=f"Events: .*{message}"):
        Events(**dict(t=[0, 1], x=[0, 1], y=[0, 1], p=[0, 1], height=2, width=3) | changed)


def test_what_is_a_recording():
    e = Events([0, 1], [0, 1], [0, 1], [0, 1], 2, 3)
    assert (
        e
        == Events(*(torch.tensor([0, 1]) for _ in "txyp"), np.int64(2), np.int8(3))
        == Events(np.array([0, 1], np.uint64), [0, 1], [0, 1], [False, True], 2, 3)
    )
    nothing = Events([], [], [], [], 2, 3)
    assert (
        len(nothing) == 0
        and nothing.t.dtype == np.int64
        and to_frames(nothing, steps=2).shape == (2, 2, 2, 3)
        and nothing == e[[]] == e[2:]
    )
    assert (
        e[[1]] == e[np.array([False, True])] == e[torch.tensor([1])] == e[[False, True]] == e[-1:]
    )
    for index in (0, -1, 1.0, "a", None, [0.5], [[0, 1]], [True], (slice(0, 1), 0)):
        with pytest.raises(TypeError, match="Events: the index is"):
            e[index]
    with pytest.raises(TypeError, match="zip"):
        list(e)
    with pytest.raises(TypeError, match="to_array"):
        np.asarray(e)


@pytest.mark.parametrize("how, message", [
    (dict(steps=2.0), "steps is 2.0"), (dict(window=0), "'window': 0"), (dict(count=-1), "'count': -1"), (dict(steps=True), "steps is True"), (dict(), "got no cut"), (dict(steps=1, count=1), "expected one of"),
    (dict(steps=1, span=5), "span is 5"), (dict(steps=1, span=(0, 1000, 1)), "span is"), (dict(steps=1, span=(0.0, 1000)), "span's start"), (dict(steps=1, span=(10, 10)), "span's end"), (dict(count=5, span=(0, 1000)), "span is .* and count"),
    (dict(steps=1, binary=1), "binary is 1"), (dict(steps=1, span=(500, 1000)), "outside of span"),
])  # fmt: skip
def test_cuts_are_checked(how, message):
    with pytest.raises((TypeError, ValueError), match=f"to_frames: .*{message}"):
        to_frames(recording(50), **how)


def test_a_stray_event_is_named_before_memory_is_asked_for(monkeypatch):
    e = recording(100)
    stray = Events(np.append(e.t[:-1], 10**13), e.x, e.y, e.p, 7, 9)
    for how in (dict(window=10), dict(window=1), dict(steps=10**12)):
        with pytest.raises(ValueError, match=r"frames of 2×7×9 take .* GB.*event 99 comes 9,9"):
            to_frames(stray, **how)
    with pytest.raises(ValueError, match="empty frames.*stray"):
        list(iter_frames([stray], window=10))
    assert to_frames(stray, steps=3).sum() == 100
    monkeypatch.setattr(camera, "_memory", lambda: 8 * 7 * 9 * 20)
    assert len(to_frames(e, steps=20)) == 20
    with pytest.raises(ValueError, match="21 frames"):
        to_frames(e, steps=21)


def test_counts_are_exact_where_floats_are(monkeypatch):
    "A float32 that is counted up one by one stays at 2 ** 24; a piece of one event stands for ten million here."
    real = camera.count_frame
    monkeypatch.setattr(camera, "count_frame", lambda events, part: real(events, part) * 10_000_001)
    one = Events([0], [0], [0], [1], 1, 1)
    (frame,) = iter_frames([one] * 3, window=10)
    assert frame[0, 0, 0] == torch.tensor(30_000_003).float()


@pytest.mark.parametrize("pieces, how, message", [
    (recording(5), {}, "pieces is one recording"), (5, {}, "pieces is 5"), ([1], {}, "pieces is 1"), ([recording(5)], dict(window=2.0), "window is 2.0"), ([recording(5)], dict(start=0.5), "start is 0.5"), ([recording(5)], dict(binary="no"), "binary is"),
])  # fmt: skip
def test_pieces_are_checked(pieces, how, message):
    with pytest.raises((TypeError, ValueError), match=f"iter_frames: {message}"):
        list(iter_frames(pieces, **dict(window=10) | how))


def test_a_crop_lies_inside_of_the_sensor():
    e = recording(50)
    assert crop(e, 0, 0, 7, 9) == e
    for top, left, height, width, message in (
        (1, 0, 7, 9, "top is 1"),
        (0, 1, 7, 9, "left is 1"),
        (0, 0, 8, 9, "height is 8"),
        (0, 0, 7, 10, "width is 10"),
        (-1, 0, 2, 2, "top is -1"),
        (0, 0, 2.0, 2, "height is 2.0"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"crop: {message}"):
            crop(e, top, left, height, width)
