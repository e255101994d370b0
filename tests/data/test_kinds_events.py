"Event data: inputs of which a plausible call once gave another answer than the right one, grouped by the kind of fault."

import functools
import json
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from test_formats import contain, dat, flat

from neurobridge.core.checks import shown
from neurobridge.data import (
    DataError,
    EventDataset,
    Events,
    ImageSet,
    balanced_pick,
    convert_images,
    convert_videos,
    drop_area,
    drop_random,
    drop_time,
    edge_integral,
    event_drop,
    event_image,
    event_plots,
    flip_horizontal,
    flip_time,
    i2e,
    image_folder,
    in_turn,
    iter_events,
    iter_frames,
    load_es,
    load_images,
    load_ucf,
    mixup,
    odg,
    odg_frames,
    random_shift,
    read_events,
    save_es,
    save_ucf,
    sometimes,
    to_frames,
    video_to_events,
)
from neurobridge.data import events as camera
from neurobridge.data.es_imagenet import centred

PLAIN = dict(
    t=np.array([0, 1500, 2500]), x=np.array([3, 4, 5]), y=np.array([1, 2, 3]), p=np.array([1, 0, 1])
)
RNG = np.random.default_rng


def picture(seed=0, shape=(40, 60, 3)):
    return RNG(seed).integers(0, 256, shape, dtype=np.uint8)


def one(x=1):
    return Events([1], [x], [1], [1], 8, 8)


def folders(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
        save_es(root / name / "e.npz", one())
    return root


def image_set(n=10):
    return ImageSet(
        torch.arange(n * 16, dtype=torch.uint8).reshape(n, 1, 4, 4), torch.arange(n) % 2, ["a", "b"]
    )


# Siblings of which one lacked a check


def aedat4(path, streams):
    "Uncompressed, without a table of contents, one packet of an event at each stream's own time."
    names = "".join(
        f'<node name="{s}"><attr key="typeIdentifier">EVTS</attr><attr key="sizeX">7</attr><attr key="sizeY">5</attr></node>'
        for s in (0, 1)
    )
    text, body = f'<dv version="2.0"><node name="outInfo">{names}</node></dv>'.encode(), b""
    for s in streams:
        data = flat(b"EVTS", [(1, struct.pack("<qhhB3x", 10 + s, 1, 2, 1))])
        body += struct.pack("<ii", s, len(data)) + data
    path.write_bytes(
        b"#!AER-DAT4.0\r\n"
        + flat(b"IOHE", [struct.pack("<i", 0), struct.pack("<q", -1), (len(text), text)])
        + body
    )
    return path


def test_two_cameras_in_aedat_4_are_refused_as_in_aedat_3(tmp_path):
    assert len(read_events(aedat4(tmp_path / "a.aedat4", [0, 0]))) == 2
    for read in (read_events, lambda path: list(iter_events(path, 1))):
        with pytest.raises(DataError, match=r"two streams \(0 and 1\)"):
            read(aedat4(tmp_path / "b.aedat4", [0, 1]))


@pytest.mark.parametrize(
    "cut, what",
    [
        ({"count": 1}, "a larger count"),
        ({"window": 1}, "a larger window"),
        ({"steps": 200}, "fewer steps"),
    ],
)
def test_every_way_to_cut_asks_for_memory_first(cut, what, monkeypatch):
    monkeypatch.setattr(camera, "_memory", lambda: 50_000)
    with pytest.raises(ValueError, match=f"to_frames: 200 frames .*expected {what}"):
        to_frames(Events(range(200), [0] * 200, [0] * 200, [1] * 200, 8, 8), **cut)


def test_both_makers_of_steps_want_a_recording_back(tmp_path):
    for step, message in (
        (sometimes(lambda e: None, 1.0), "sometimes: change's answer is None"),
        (in_turn(lambda e, g: None), "in_turn: steps is None"),
    ):
        with pytest.raises(TypeError, match=message):
            step(one(), RNG(0))
        with pytest.raises(TypeError, match=message):
            EventDataset(folders(tmp_path / message[:3], "a"), augment=step)[0]
    with pytest.raises(TypeError, match="augment's answer is 3"):
        EventDataset(tmp_path / "som", augment=lambda e, g: 3)[0]


@pytest.mark.parametrize(
    "read, message",
    [
        (lambda path: None, "read's answer is None"),
        (np.load, "read's answer is"),
        (lambda: one(), "expected a function of path"),
        (lambda a, b: one(), "expected a function of path"),
    ],
)
def test_what_a_reader_is_and_returns(read, message, tmp_path):
    with pytest.raises(TypeError, match=f"EventDataset: .*{message}"):
        EventDataset(folders(tmp_path, "a"), read=read)


def test_a_reader_for_a_list_is_called_with_the_size(tmp_path):
    folders(tmp_path, "a")
    (tmp_path / "list.txt").write_text("a/e.npz 0 254 190\n")
    with pytest.raises(TypeError, match=r"read is .*path and \(height, width\)"):
        EventDataset(tmp_path / "list.txt", read=load_es)
    assert len(EventDataset(tmp_path / "list.txt", read=lambda path, size: load_es(path))) == 1


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_numpys_integers_are_whole_numbers_in_every_count_of_images(kind):
    assert (
        len(image_set().split_off(kind(4))[1])
        == len(balanced_pick(image_set().y, kind(4)))
        == len(load_images("digits", limit=kind(4)))
        == 4
    )
    assert len(image_set().split_off(np.float32(0.4))[1]) == 4


# Branches that returned untouched input, or nothing of it


@pytest.mark.parametrize("drop", [drop_time, drop_area, drop_random])
@pytest.mark.parametrize("n, step", [(10, 0), (10, 3), (1, 0), (0, 0)])
def test_no_share_leaves_everything(drop, n, step):
    "Also where all events have one time, so that a gap of any share is as long as none."
    events = Events(np.arange(n) * step + 5, [0] * n, [0] * n, [1] * n, 4, 4)
    assert all(drop(events, RNG(seed), 0.0) == events for seed in range(5))


def test_a_picture_in_memory_is_turned_as_its_file_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "train/a").mkdir(parents=True)
    Image.fromarray(picture()).save(tmp_path / "train/a/0.png", exif=exif)
    convert_images(tmp_path, tmp_path / "out", side=60, margin=2, least=0, workers=1)
    with Image.open(tmp_path / "train/a/0.png") as opened:
        found, size = odg(opened, side=60, margin=2)
    expected = odg(np.rot90(picture(), -1), side=60, margin=2)
    assert size == expected[1] == (60, 40) and found == expected[0]
    written = load_es(tmp_path / "out/train/class0/class0_0.npz")
    assert all(np.array_equal(getattr(written, name), getattr(found, name)) for name in "txyp")


def test_empty_recordings_come_back_empty_from_every_step():
    empty = Events([], [], [], [], 4, 6)
    for step in (
        event_drop,
        functools.partial(random_shift, most=2),
        sometimes(flip_time, 1.0),
        functools.partial(drop_area, share=0.5),
    ):
        assert step(empty, RNG(0)) == empty
    assert (
        to_frames(empty, steps=3).sum() == 0
        and to_frames(empty, count=2).shape == (0, 2, 4, 6)
        and list(iter_frames([empty], 5)) == []
    )


# Identities made of names and shapes only


class Reader:
    def __init__(self, x):
        self.x = x

    def read(self, path):
        return one(self.x)


PLACE = 1


def from_global(path):
    return one([PLACE for _ in range(1)][0])


def through_another(path):
    return from_global(path)


def with_table(path, table):
    return one(int(table[5000]))


def test_a_reader_with_other_settings_has_another_cache(tmp_path, monkeypatch):
    root = folders(tmp_path / "set", "a")

    def place(read):
        return int(
            EventDataset(root, read=read, steps=1, cache=tmp_path / "cache")[0][0].nonzero()[0, 3]
        )

    def with_default(k):
        made = lambda path, x=1: one(x)  # noqa: E731 - one source, several defaults
        made.__defaults__ = (k,)
        return made

    assert [place(with_default(k)) for k in (1, 5)] == [1, 5]
    assert [
        place(functools.partial(with_table, table=np.where(np.arange(9000) == 5000, k, 0)))
        for k in (2, 6)
    ] == [2, 6]  # a text of them leaves the middle out
    for read in (from_global, through_another):
        for k in (3, 7):
            monkeypatch.setitem(globals(), "PLACE", k)
            assert place(read) == k
    with pytest.raises(ValueError, match="variables of the function or object"):
        place(Reader(1).read)


@pytest.mark.parametrize("part", ["val", "test", "Test"])
def test_parts_of_one_set_have_one_numbering(part, tmp_path):
    folders(tmp_path, "train/cat", "train/dog", "train/owl", f"{part}/dog", f"{part}/owl")
    for place in ("train", part):
        with pytest.raises(DataError, match=r"different classes \(cat in one only\)"):
            EventDataset(tmp_path / place)
    (tmp_path / part / "cat").mkdir()
    assert EventDataset(tmp_path / part).y.tolist() == [1, 2]
    folders(
        tmp_path / "numbers", "train/class0", "train/class1", f"{part}/class1"
    )  # numbers that say it themselves
    assert EventDataset(tmp_path / "numbers" / part).y.tolist() == [1]


def clip(path, seed):
    av = pytest.importorskip("av", reason="videos are read by PyAV")
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuv420p"
        for frame in RNG(seed).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())


def test_a_converted_set_of_clips_keeps_its_labels(tmp_path):
    "Where a class has lost all its clips, and where numbers in names are not the labels of the table."
    for name, seed in (("class1", 0), ("class4", 1), ("class12", 2)):
        clip(tmp_path / "clips" / name / "a.avi", seed)
    (tmp_path / "clips/class1/a.avi").write_bytes(b"no film")
    table = convert_videos(tmp_path / "clips", tmp_path / "out", workers=1)
    data = EventDataset(tmp_path / "out", read=load_ucf)
    expected = {row.file: row.label for row in table.itertuples() if row.status == "made"}
    assert (
        {args[0].relative_to(tmp_path / "out").as_posix(): label for args, label, _ in data.items}
        == expected
        == {"class4/a.npz": 1, "class12/a.npz": 2}
    )
    assert data.classes == ["class1", "class4", "class12"]


@pytest.mark.parametrize(
    "foreign", [[1, 2], {"classes": 10}, {"classes": ["x", "y"], "made_by": "another program"}]
)
def test_the_manifest_of_another_program_says_nothing(foreign, tmp_path):
    folders(tmp_path / "set", "a", "b")
    for place in (tmp_path, tmp_path / "set"):
        (place / "manifest.json").write_text(json.dumps(foreign))
    (tmp_path / "set/manifest.json").rename(tmp_path / "set/.manifest.json")
    assert EventDataset(tmp_path / "set").classes == ["a", "b"]


def test_photographs_and_their_events_have_one_numbering(tmp_path):
    for name in ("class0", "class1", "class2", "class10"):
        for part in ("train", "val"):
            (tmp_path / "mine" / part / name).mkdir(parents=True)
            Image.fromarray(picture()).save(tmp_path / "mine" / part / name / "a.png")
    photos, table = (
        image_folder("mine", "test", tmp_path),
        convert_images(tmp_path / "mine", tmp_path / "out", least=0, workers=1),
    )
    converted = {row.source.split("/")[1]: row.label for row in table.itertuples()}
    assert photos.class_to_idx == converted == {"class0": 0, "class1": 1, "class2": 2, "class10": 3}
    assert photos.classes == ["class0", "class1", "class2", "class10"] and sorted(
        photos.targets
    ) == [0, 1, 2, 3]
    assert all(photos.classes[label] in path.split("/") for path, label in photos.samples) and all(
        photos[i][1] == photos.targets[i] for i in range(4)
    )


# Non-linear reductions before sums


def test_binary_frames_are_of_whole_frames_not_of_pieces():
    events = Events([0, 1, 2, 3], [0] * 4, [0] * 4, [1] * 4, 1, 1)
    for cut in (1, 2, 3):
        assert [
            f.sum().item() for f in iter_frames([events[:cut], events[cut:]], 4, binary=True)
        ] == [1]
    assert to_frames(events, steps=1, binary=True).sum() == 1


def test_one_colour_scale_for_all_frames():
    "The share of full colour is of the whole film, so that a bright frame stays brighter than a dim one."
    frames = torch.zeros(2, 2, 1, 1)
    frames[:, 0] = torch.tensor([4.0, 8.0]).view(2, 1, 1)
    bright = (
        event_plots._coloured(frames.numpy(), event_plots._full_colour("gif", frames.numpy(), None))
        .astype(int)
        .sum((1, 2, 3))
    )
    assert bright[0] > bright[1]


def test_thresholds_of_a_clip_are_of_the_whole_clip():
    "One moving step among still ones: only it speaks, whatever the others' own percentiles."
    film = np.zeros((5, 8, 8), np.uint8)
    film[3:] = picture(shape=(8, 8))
    assert set(video_to_events(film, 0.1).t.tolist()) == {2}


def test_the_integral_is_linear_in_frames():
    a, b = torch.rand(8, 2, 5, 5), torch.rand(8, 2, 5, 5)
    assert torch.allclose(edge_integral(a + b), edge_integral(a) + edge_integral(b), atol=1e-6)


# Closures as hooks, decisions of one process


@pytest.mark.parametrize(
    "step",
    [
        sometimes(flip_horizontal),
        in_turn(sometimes(flip_time), event_drop),
        in_turn(functools.partial(drop_time, share=0.5), functools.partial(random_shift, most=1)),
    ],
)
def test_nested_steps_travel(step):
    events = Events(range(30), [3] * 30, [2] * 30, [1] * 30, 6, 8)
    assert all(
        pickle.loads(pickle.dumps(step))(events, RNG(seed)) == step(events, RNG(seed))
        for seed in range(4)
    )


def test_data_sets_travel_with_their_readers(tmp_path):
    root = folders(tmp_path / "set", "a", "b")
    for more in (
        {"augment": in_turn(sometimes(flip_horizontal, 1.0))},
        {"read": functools.partial(read_events, sensor=(256, 256))},
        {"cache": tmp_path / "cache"},
    ):
        data = EventDataset(root, steps=2, **more)
        again = pickle.loads(pickle.dumps(data))
        assert (
            torch.equal(again[1][0], data[1][0])
            and again.classes == data.classes
            and again.y.tolist() == [0, 1]
        )


def test_random_thresholds_belong_to_the_clip_not_to_the_process(tmp_path):
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        clip(tmp_path / "clips" / name / "x.avi", seed)
    convert_videos(tmp_path / "clips", tmp_path / "all", mode="random", workers=2)
    for name in "ab":
        (tmp_path / "clips" / name / "x.avi").unlink()
    convert_videos(tmp_path / "clips", tmp_path / "last", mode="random", workers=1)
    assert load_ucf(tmp_path / "all/c/x.npz") == load_ucf(tmp_path / "last/c/x.npz")


# Types and axis orders


@pytest.mark.parametrize(
    "wrong",
    [
        picture(shape=(40, 50, 4)),
        picture(shape=(40, 50, 1)),
        torch.from_numpy(picture(shape=(4, 40, 50))),
        picture(shape=(5, 40, 50)),
        picture(shape=(2, 3, 40, 50)),
    ],
)
def test_odg_takes_no_other_axis_for_channels(wrong):
    with pytest.raises(ValueError, match="odg: image has shape .*1 or 3 channels"):
        odg(wrong)


def test_a_narrow_tensor_has_its_channels_first():
    tall = torch.from_numpy(picture(shape=(3, 40, 3)))  # three columns, not three colours
    found, size = odg(tall, side=40, margin=0)
    expected = odg(Image.fromarray(tall.permute(1, 2, 0).numpy()), side=40, margin=0)
    assert size == expected[1] == (40, 3) and found == expected[0]


@pytest.mark.parametrize(
    "mean, std", [(127.5, 127.5), ([0.5], 0), (torch.tensor(-0.1), 1), ([123.7, 116.3], 1)]
)
def test_statistics_are_on_the_scale_of_the_pixels(mean, std):
    with pytest.raises(
        ValueError, match="tensors: (mean|std) is .*expected one number, or one for each"
    ):
        image_set().tensors(mean, std)


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.int16, torch.int64])
def test_labels_of_any_integer_type_are_mixed(kind):
    x, y = torch.rand(6, 3, generator=torch.manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
    assert torch.equal(mixup(x, y.to(kind), 3, RNG(0))[1], mixup(x, y, 3, RNG(0))[1])


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 32, 32, 3),
        torch.zeros(5, 32, 32),
        torch.zeros(1, 2, 3, 32, 32),
        torch.zeros(32, 32),
    ],
)
def test_i2e_takes_channels_before_rows(images):
    with pytest.raises(ValueError, match=r"i2e: images .*\[.*C, H, W\]"):
        i2e(images)


@pytest.mark.parametrize("call, message", [
    (lambda: odg_frames(torch.zeros(2, 32, 32, 3, dtype=torch.uint8), 30), "square"), (lambda: centred(one(), 254), "height, width"), (lambda: centred(one(), (254, 190, 3)), "height, width"),
    (lambda: edge_integral(torch.zeros(2, 8, 5, 5)), "8, 2, H, W"), (lambda: video_to_events(np.zeros((5, 3, 8, 8), np.uint8)), r"\[n, H, W, 3\]"), (lambda: event_image(torch.zeros(2, 4, 4)), "expected Events"),
])  # fmt: skip
def test_other_orders_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


# Defaults for absent fields


def test_a_version_of_dat_that_is_there_is_read(tmp_path):
    x = np.arange(9)
    one_, two = x | x << 9 | (x % 2) << 17, x | x << 14 | (x % 2) << 28
    for line, words in (
        (b"% Version: 1\n", one_),
        (b"% Version\t1.0\n", one_),
        (b"%version = 2\n", two),
        (b"% Version 2 \n", two),
    ):
        found = read_events(dat(tmp_path / "a.dat", words, x, line))
        assert (found.x.tolist(), found.y.tolist(), found.p.tolist()) == (
            x.tolist(),
            x.tolist(),
            (x % 2).tolist(),
        )
    for line in (b"% Version 1.5\n", b"% Version v2\n", b"% Version\n"):
        with pytest.raises(DataError, match="DAT file of version"):
            read_events(dat(tmp_path / "a.dat", two, x, line))


@pytest.mark.parametrize("unit, factor", [("ms", 1000), ("s", 10**6), (b"us", 1), ("µs", 1)])
def test_a_unit_in_an_npz_is_obeyed(unit, factor, tmp_path):
    found = read_events(contain(tmp_path / "a.npz", **PLAIN, unit=np.array(unit)))
    assert found.t.tolist() == (PLAIN["t"] * factor).tolist()
    with pytest.raises(DataError, match="unit 'fortnight'"):
        read_events(contain(tmp_path / "a.npz", **PLAIN, units="fortnight"))


def test_a_unit_of_the_group_and_an_offset_in_that_unit(tmp_path):
    h5py = pytest.importorskip("h5py")
    for place in ("events", "events/t"):
        with h5py.File(contain(tmp_path / "events.h5", **PLAIN), "a") as book:
            book[place].attrs["unit"] = "ms"
            book["t_offset"] = 7
        assert read_events(tmp_path / "events.h5").t.tolist() == ((PLAIN["t"] + 7) * 1000).tolist()


# Advice that does not apply, universal claims


def test_no_message_shows_an_address():
    for make in (lambda: in_turn(flip_horizontal), lambda: sometimes(event_drop)):
        with pytest.raises(TypeError) as caught:
            make()
        assert "0x" not in str(caught.value) and shown(flip_horizontal).startswith("<function flip")


def test_the_way_out_of_a_mirror_in_a_set_works(tmp_path):
    root = folders(tmp_path, "a")
    with pytest.raises(TypeError, match=r"sometimes\(\.\.\.\) makes one of a mirror"):
        EventDataset(root, augment=flip_horizontal)
    assert (
        EventDataset(root, steps=1, augment=sometimes(flip_horizontal, 1.0))[0][0].nonzero()[0, 3]
        == 256 - 1 - 1
    )


@pytest.mark.parametrize("wrong", ["", "a\0b"])
def test_no_path_is_not_this_folder(wrong):
    for call in (
        lambda: EventDataset(wrong),
        lambda: convert_images(wrong, "out"),
        lambda: convert_videos(wrong, "out"),
    ):
        with pytest.raises(ValueError, match="(recordings|source) is "):
            call()


def test_the_way_out_of_the_message_about_parts_works(tmp_path):
    folders(tmp_path, "train/cat", "train/dog", "val/dog")
    pairs = [
        (p, ["cat", "dog"].index(p.parent.name)) for p in sorted((tmp_path / "val").glob("*/*"))
    ]
    assert EventDataset(pairs).y.tolist() == [1]


# Counting in the data's precision


def test_shares_of_events_are_counted_exactly():
    for n, share in ((100, 0.29), (100, 0.57), (1000, 0.019), (50, 0.58)):
        events = Events(range(n), [0] * n, [0] * n, [1] * n, 1, 1)
        assert n - len(drop_random(events, RNG(0), share)) == round(n * share)


@pytest.mark.parametrize("n", [255, 256, 70_000])
def test_many_events_in_one_pixel(n):
    events = Events(np.zeros(n, np.int64), [0] * n, [0] * n, [1] * n, 1, 1)
    assert (
        to_frames(events, steps=1)[0, 0, 0, 0]
        == n
        == next(iter_frames([events[:100], events[100:]], 5))[0, 0, 0]
    )


def test_times_beyond_32_bits_and_products_of_edges():
    "Times of today's clocks in microseconds and nanoseconds, cut into many steps."
    for base in (1_600_000_000_000_000, 1_600_000_000_000_000_000):
        events = Events(base + np.arange(7), [0] * 7, [0] * 7, [1] * 7, 1, 1)
        assert to_frames(events, steps=7)[:, 0].flatten().tolist() == [1] * 7
        assert flip_time(events) == events


# Data left out of a table or a hand-over


def test_every_picture_has_a_row_and_every_row_a_state(tmp_path):
    (tmp_path / "train/a").mkdir(parents=True)
    Image.fromarray(picture()).save(tmp_path / "train/a/0.png")
    Image.new("RGB", (40, 30)).save(tmp_path / "train/a/1.png")
    (tmp_path / "train/a/2.png").write_bytes(b"no picture")
    table = convert_images(tmp_path, tmp_path / "out", least=10, workers=1)
    assert (
        table.status.tolist() == ["made", "too few events", "unreadable"]
        and table.note[2]
        and len((tmp_path / "out/files.jsonl").read_text().splitlines()) == 3
    )
    assert (
        len(EventDataset(tmp_path / "out/trainlabel.txt"))
        == len(EventDataset(tmp_path / "out/train"))
        == 1
    )


def test_the_rest_of_a_split_is_all_of_the_rest():
    rest, held = image_set().split_off(3)
    assert sorted(torch.cat([rest.x, held.x])[:, 0, 0, 0].tolist()) == image_set().x[
        :, 0, 0, 0
    ].tolist() and (rest.classes, rest.name) == (held.classes, held.name)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_pieces_hold_every_event(chunk, tmp_path):
    path = contain(tmp_path / "a.npz", **PLAIN, height=4, width=6)
    pieces = list(iter_events(path, chunk))
    assert [t for piece in pieces for t in piece.t] == PLAIN["t"].tolist() and sum(
        f.sum() for f in iter_frames(pieces, 700)
    ) == 3


def test_clips_keep_silent_steps_and_lose_no_place(tmp_path):
    save_ucf(tmp_path / "a.npz", Events([0, 3], [1, 2], [3, 0], [1, 0], 4, 5), steps=6)
    with np.load(tmp_path / "a.npz") as file:
        assert file["arr_0"].shape == (2, 6, 4, 5) and np.argwhere(file["arr_0"]).tolist() == [
            [0, 0, 3, 1],
            [1, 3, 0, 2],
        ]
