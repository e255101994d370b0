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

from neurobridge.core.plots import PALETTE
from neurobridge.data.camera import Events, event_image, gif, iter_frames, scatter, to_frames


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
        (torch.zeros(1, 3, 6, 8), {}, "shape"),
        (torch.zeros(1, 2, 6, 8), {"fps": 0}, "fps"),
        (torch.zeros(1, 2, 6, 8), {"fps": 100}, "fps"),
        (torch.zeros(1, 2, 6, 8), {"zoom": 0}, "zoom"),
        (torch.zeros(1, 2, 6, 8), {"most": -1}, "most"),
    ],
)
def test_gif_refuses(frames, how, message):
    with pytest.raises(ValueError, match=message):
        gif(frames, **how)
