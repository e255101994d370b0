"Events: the generator against the authors' files, files that are damaged, frames that must lose nothing."

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from neurobridge.core import data_root
from neurobridge.data import (
    DataError,
    Events,
    crop,
    edge_integral,
    load_es,
    odg,
    save_es,
    to_frames,
)
from neurobridge.data.es_imagenet import centred
from neurobridge.data.odg_events import ODG_COLUMNS, ODG_ROWS

GOLDEN = data_root().parent / "golden"


@pytest.mark.parametrize("name", ["odg_001", "odg_208", "odg_930"])
def test_golden(name):
    if not (GOLDEN / f"{name}.png").exists():
        pytest.skip("no golden pictures here: they lie beside the data that NEUROBRIDGE_DATA names")
    events, scaled = odg(Image.open(GOLDEN / f"{name}.png"))
    with np.load(GOLDEN / f"{name}.npz") as golden:
        for p, part in ((1, "pos"), (0, "neg")):
            ours = events[events.p == p]
            assert np.array_equal(np.stack([ours.y, ours.x, ours.t], 1), golden[part])
        assert scaled == tuple(golden["size"])


pictures = st.tuples(st.integers(1, 60), st.integers(1, 60)).flatmap(
    lambda size: st.sampled_from([size, (*size, 3)]).flatmap(
        lambda shape: hnp.arrays(np.uint8, shape)
    )
)


def slowly(pixels, threshold, side, margin):
    "Every canvas pixel and step by itself, in floating point."
    v = pixels if pixels.ndim == 2 else pixels.max(2)
    h, w = v.shape
    a, b = max(1, h * side // max(h, w)), max(1, w * side // max(h, w))

    def bright(r, c, t):
        r, c = r - ODG_ROWS[t], c - ODG_COLUMNS[t]
        return v[r * h // a, c * w // b] / 255 if 0 <= r < a and 0 <= c < b else None

    found = []
    for t in range(1, 9):
        for p in (1, 0):
            for r in range(margin + 1, side + 2 - margin):
                for c in range(margin + 1, side + 2 - margin):
                    now, before = bright(r, c, t), bright(r, c, t - 1)
                    if (
                        now is not None
                        and before is not None
                        and (now - before if p else before - now) > threshold
                    ):
                        found.append((t, c, r, p))
    return found


@settings(max_examples=40, deadline=None)
@given(pictures, st.sampled_from([0.1, 0.18, 0.5, 0.99]), st.integers(4, 24), st.integers(0, 3))
def test_odg_against_pixels_one_by_one(pixels, threshold, side, margin):
    events, _ = odg(pixels, threshold, side, margin)
    assert list(zip(events.t, events.x, events.y, events.p, strict=True)) == slowly(
        pixels, threshold, side, margin
    )


def test_odg_takes_pictures_in_any_form():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    events, scaled = odg(pixels)
    forms = [
        Image.fromarray(pixels),
        torch.from_numpy(pixels).permute(2, 0, 1),
        Image.fromarray(pixels).convert("RGBA"),
    ]
    assert (
        all(odg(form) == (events, scaled) for form in forms)
        and scaled == (254, 190)
        and len(events)
    )
    gray = pixels.max(2)
    assert (
        odg(gray)[0]
        == odg(Image.fromarray(gray))[0]
        == odg(torch.from_numpy(gray)[None])[0]
        == events
    )


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((3, 3)),
        np.zeros((0, 3), np.uint8),
        np.zeros(5, np.uint8),
        torch.zeros(3, 8, 8),
        np.zeros((2, 2, 2, 3), np.uint8),
    ],
)
def test_odg_refuses_what_is_no_picture(image):
    with pytest.raises(ValueError, match="odg: image has shape"):
        odg(image)


@st.composite
def recordings(draw, side=256, longest=255):
    n, height, width = (
        draw(st.integers(0, 200)),
        draw(st.integers(1, side)),
        draw(st.integers(1, side)),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    t, p = np.sort(rng.integers(0, draw(st.integers(1, longest)), n)), rng.integers(0, 2, n)
    order = np.lexsort((1 - p, t))  # ON before OFF within a step, as in the files
    return Events(t, rng.integers(0, width, n), rng.integers(0, height, n), p[order], height, width)


@settings(max_examples=60, deadline=None)
@given(recordings())
def test_files_give_back_what_was_written(tmp_path_factory, events):
    path = tmp_path_factory.mktemp("es") / "e.npz"
    save_es(path, events)
    back = load_es(path)
    assert Events(back.t, back.x, back.y, back.p, events.height, events.width) == events and (
        back.height,
        back.width,
    ) == (256, 256)


@settings(max_examples=100, deadline=None)
@given(recordings(40, 10**9), st.sampled_from(["steps", "window", "count"]), st.integers(1, 50))
def test_every_event_lands_in_one_frame(events, cut, size):
    size = size * 10**8 if cut == "window" else size
    frames = to_frames(events, **{cut: size})
    assert frames.sum() == len(events) and frames.shape[1:] == (2, events.height, events.width)
    assert cut != "steps" or len(frames) == size
    order = frames.flatten(1).sum(1).cumsum(0)
    if len(events) and cut == "steps":
        start, length = events.t[0], events.t[-1] + 1 - events.t[0]
        for k in range(size):  # an independent count: all events before a frame's end
            assert order[k] == sum((t - start) * size < (k + 1) * length for t in events.t.tolist())
    assert torch.equal(to_frames(events, **{cut: size}, binary=True), (frames > 0).float())


def test_frames_by_hand():
    events = Events([0, 3, 4, 9], [0, 1, 1, 2], [0, 0, 1, 1], [1, 0, 1, 1], 2, 3)
    frames = to_frames(events, window=5, span=(0, 20))
    assert (
        frames.shape == (4, 2, 2, 3)
        and frames[0, 0, 0, 0]
        == frames[0, 1, 0, 1]
        == frames[0, 0, 1, 1]
        == frames[1, 0, 1, 2]
        == 1
    )
    assert to_frames(events, count=3).flatten(1).sum(1).tolist() == [3, 1]


def test_edge_integral_puts_an_edge_where_it_is():
    pixels = np.zeros((254, 254), np.uint8)
    pixels[:, 100:] = 200  # dark left, bright right
    events, scaled = odg(pixels)
    frames = to_frames(
        crop(centred(events, scaled), 16, 16, 224, 224), steps=8, span=(1, 9), binary=True
    )
    picture = edge_integral(frames)[20:200]
    column = picture.mean(0)
    light, dark = column.argmax().item(), column.argmin().item()
    assert (
        dark == 100 - 16 - 1 + 1 and light == dark + 1
    )  # the last dark column and the first bright one, in the window's numbers
    assert torch.equal(edge_integral(torch.stack([frames, frames]))[1], edge_integral(frames))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_are_refused_or_whole(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("es") / "e.npz"
    events, _ = odg(np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8), side=60)
    save_es(path, events)
    whole, content = load_es(path), bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 5))):
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    try:
        assert load_es(path) == whole  # an unused byte of the container
    except DataError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    "lists",
    [
        {"pos": np.zeros((2, 3), np.uint8)},
        {"pos": np.zeros((2, 2), np.uint8), "neg": np.zeros((0, 3), np.uint8)},
        {"pos": np.zeros((2, 3)), "neg": np.zeros((0, 3), np.uint8)},
        {"pos": np.array([{}]), "neg": np.zeros((0, 3), np.uint8)},
    ],
)
def test_other_npz_are_refused(tmp_path, lists):
    np.savez(tmp_path / "e.npz", **lists)
    with pytest.raises(DataError, match=r"e\.npz"):
        load_es(tmp_path / "e.npz")


def test_missing_file_and_file_that_stays(tmp_path):
    with pytest.raises(DataError, match=r"none\.npz"):
        load_es(tmp_path / "none.npz")
    good = Events([1], [2], [3], [1], 256, 256)
    save_es(tmp_path / "e.npz", good)
    with pytest.raises(ValueError, match="does not fit into bytes"):
        save_es(tmp_path / "e.npz", Events([999], [2], [3], [1], 256, 256))
    assert load_es(tmp_path / "e.npz") == good


@pytest.mark.parametrize(
    "change, message",
    [
        ({"t": [2, 1]}, "time runs backwards at event 1"),
        ({"x": [0, 4]}, "x lies in"),
        ({"y": [-1, 0]}, "y lies in"),
        ({"p": [0, 2]}, "p lies in"),
        ({"t": [0.5, 1.0]}, "whole numbers"),
        ({"x": [1]}, "one length"),
        ({"height": 0}, "the sensor is"),
        ({"t": [[0, 1]]}, "one length"),
    ],
)
def test_what_is_no_recording(change, message):
    parts = {"t": [1, 2], "x": [0, 1], "y": [0, 1], "p": [0, 1], "height": 3, "width": 4} | change
    with pytest.raises((TypeError, ValueError), match=message):
        Events(**parts)


@pytest.mark.parametrize(
    "cut, message",
    [
        ({}, "one of"),
        ({"steps": 0}, "at least 1"),
        ({"steps": 2, "count": 3}, "one of"),
        ({"window": -1}, "at least 1"),
    ],
)
def test_frames_want_one_cut(cut, message):
    with pytest.raises(ValueError, match=f"expected .*{message}"):
        to_frames(Events([0], [0], [0], [0], 1, 1), **cut)
