"Event sets: converters that are killed, damaged and misused; data sets against loaders written down independently; caches that are hurt."

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from neurobridge.core import data_root
from neurobridge.data import (
    DataError,
    EventDataset,
    Events,
    convert_images,
    convert_videos,
    load_es,
    load_ucf,
    odg,
    save_es,
    save_ucf,
    to_frames,
)
from neurobridge.data import convert_folders as event_sets
from neurobridge.data.es_imagenet import authors_view

FORK = multiprocessing.get_context("fork")
SMALL = {"side": 60, "margin": 2, "least": 40}
pytestmark = pytest.mark.usefixtures("one_thread")


def picture(seed):
    rng = np.random.default_rng(seed)
    pixels = np.full((30, 40, 3), rng.integers(40), np.uint8)
    top, left = rng.integers(4, 12, 2)
    pixels[top : top + 12, left : left + 16] = rng.integers(120, 256, 3)
    return pixels


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    "Three classes, 12 + 4 pictures; one cannot be read, one has no events, one hides in an unrelated file."
    root = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 12), ("val", 4)):
        for i in range(count):
            path = root / split / ("cat", "dog", "emu")[i % 3] / f"{split}_{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(i + 100 * (split == "val"))).save(path)
    (root / "train/cat/train_00.png").write_bytes(b"\x89PNG, but no more")
    Image.new("RGB", (40, 30)).save(root / "train/dog/train_01.png")
    (root / "train/dog/notes.txt").write_text("not a picture")
    return root


def tree(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def undisturbed(pictures, tmp_path_factory):
    target = tmp_path_factory.mktemp("undisturbed") / "events"
    convert_images(pictures, target, workers=1, **SMALL)
    return target


# ---- converting


def test_every_picture_becomes_odgs_events_or_a_note(pictures, undisturbed):
    table = [json.loads(line) for line in (undisturbed / "files.jsonl").read_text().splitlines()]
    assert len(table) == 16 and [r["file"] for r in table[:2]] == [
        "train/class0/class0_0.npz",
        "train/class0/class0_1.npz",
    ]
    assert {r["source"]: r["status"] for r in table if r["status"] != "made"} == {
        "train/cat/train_00.png": "unreadable",
        "train/dog/train_01.png": "too few events",
    }
    assert (
        "cannot be read as an image" in table[0]["note"]
        and str(pictures) not in (undisturbed / "files.jsonl").read_text()
    )
    for r in table:
        assert (undisturbed / r["file"]).exists() == (r["status"] == "made")
        if r["status"] == "made":
            events, scaled = odg(Image.open(pictures / r["source"]), side=60, margin=2)
            there = load_es(undisturbed / r["file"])
            assert (
                np.array_equal(there.x, events.x)
                and np.array_equal(there.t, events.t)
                and (r["rows"], r["columns"], r["events"]) == (*scaled, len(events))
            )
            assert r["source"].split("/")[1] == ("cat", "dog", "emu")[r["label"]]


def test_the_lists_are_as_the_authors_loaders_read_them(undisturbed):
    for split, count in (("train", 10), ("val", 4)):
        rows = [
            line.split(" ") for line in (undisturbed / f"{split}label.txt").read_text().splitlines()
        ]
        assert len(rows) == count and all(
            len(row) == 4 and (undisturbed / split / row[0]).exists() for row in rows
        )
        if split == "train":
            assert all(row[0].split("/")[0] == f"class{row[1]}" for row in rows)
        else:
            assert [row[0] for row in rows] == [
                "val_00.npz",
                "val_03.npz",
                "val_01.npz",
                "val_02.npz",
            ]
    assert json.loads((undisturbed / "manifest.json").read_text())["parameters"] == {
        "threshold": 0.18,
        **SMALL,
    }


def test_names_that_two_classes_share(tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(picture(1)).save(tmp_path / split / name / "0.png")
    table = convert_images(tmp_path, tmp_path / "out", workers=1, **SMALL)
    assert (
        table.file.tolist()[2:] == ["val/class0_0.npz", "val/class1_0.npz"]
        and (table.status == "made").all()
    )


def test_the_number_of_processes_changes_nothing(pictures, undisturbed, tmp_path):
    convert_images(pictures, tmp_path / "three", workers=3, **SMALL)
    assert tree(tmp_path / "three") == tree(undisturbed)


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.mark.parametrize("lines, workers", [(1, 1), (5, 2), (9, 2)])
def test_a_killed_conversion_continues_to_the_same_folder(
    pictures, undisturbed, tmp_path, monkeypatch, lines, workers
):
    monkeypatch.setattr(
        event_sets, "odg", lambda *a: (time.sleep(0.05), odg(*a))[1]
    )  # slow enough to be hit
    monkeypatch.setattr(event_sets, "_spread", functools.partial(event_sets._spread, portion=1))
    target, journal = tmp_path / "events", tmp_path / "events/files.jsonl"
    child = FORK.Process(
        target=convert_images, args=(pictures, target), kwargs={"workers": workers, **SMALL}
    )
    child.start()
    wait_for(lambda: journal.exists() and journal.read_text().count("\n") >= lines)
    family = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    grandchildren = family.read_text().split() if family.exists() else []
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL and len(grandchildren) == (
        workers if workers > 1 else 0
    )
    found = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in target.rglob("*.npz")}
    assert (
        lines <= len(journal.read_text().splitlines()) < 16
        and not (target / "trainlabel.txt").exists()
    )
    with journal.open("a") as file:
        file.write('{"file": "train/class0/class0_2.npz", "sour')  # a line that was cut off
    (target / ".class0_1.npz.abc.part").write_bytes(b"half")
    done = {json.loads(line)["file"] for line in journal.read_text().splitlines()[:-1]}
    convert_images(pictures, target, workers=2, **SMALL)
    assert tree(target) == tree(undisturbed)
    kept = [
        p
        for p, was in found.items()
        if p.exists() and (p.stat().st_ino, p.stat().st_mtime_ns) == was
    ]
    assert {p.relative_to(target).as_posix() for p in kept} >= {
        f for f in done if (target / f).exists()
    }  # what was on record was not made again
    wait_for(
        lambda: (
            not any(
                Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()
                for pid in grandchildren
            )
        )
    )


def test_a_worker_that_is_killed_stops_the_whole_with_a_message(
    pictures, undisturbed, tmp_path, monkeypatch
):
    parent = os.getpid()

    def deadly(photo, *rest):
        if os.getpid() != parent and np.asarray(photo)[0, 0, 0] == picture(7)[0, 0, 0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return odg(photo, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(event_sets, "odg", deadly)
        with pytest.raises(RuntimeError, match="a worker process was killed"):
            convert_images(pictures, tmp_path / "events", workers=2, **SMALL)
    convert_images(pictures, tmp_path / "events", workers=2, **SMALL)
    assert tree(tmp_path / "events") == tree(undisturbed)


def test_damaged_and_missing_outputs_are_made_anew(pictures, undisturbed, tmp_path):
    target = tmp_path / "events"
    convert_images(pictures, target, workers=1, **SMALL)
    files = sorted(target.rglob("*.npz"))
    hurt = bytearray(files[0].read_bytes())
    hurt[-5] ^= 1
    files[0].write_bytes(hurt)
    files[1].write_bytes(files[1].read_bytes()[:50])
    files[2].unlink()
    files[3].write_bytes(files[4].read_bytes())
    (target / "vallabel.txt").unlink()
    convert_images(pictures, target, workers=1, **SMALL)
    assert tree(target) == tree(undisturbed)


def test_a_picture_that_was_repaired_is_taken_and_one_that_changed(pictures, tmp_path):
    source = tmp_path / "pictures"
    for path in pictures.rglob("*.png"):
        (source / path.relative_to(pictures)).parent.mkdir(parents=True, exist_ok=True)
        (source / path.relative_to(pictures)).write_bytes(path.read_bytes())
    convert_images(source, tmp_path / "events", workers=1, **SMALL)
    Image.fromarray(picture(55)).save(source / "train/cat/train_00.png")
    Image.new("RGB", (40, 30)).save(source / "train/cat/train_03.png")
    table = convert_images(source, tmp_path / "events", workers=1, **SMALL).set_index("source")
    assert (
        table.status["train/cat/train_00.png"] == "made"
        and table.status["train/cat/train_03.png"] == "too few events"
    )
    assert not (tmp_path / "events" / table.file["train/cat/train_03.png"]).exists()
    convert_images(source, tmp_path / "anew", workers=1, **SMALL)
    assert tree(tmp_path / "anew") == tree(tmp_path / "events")


def test_what_is_refused(pictures, undisturbed, tmp_path):
    before = tree(undisturbed)
    for options in ({"threshold": 0.2}, {"side": 61}, {"margin": 3}, {"least": 41}):
        with pytest.raises(DataError, match="contains another conversion"):
            convert_images(pictures, undisturbed, **SMALL | options)
    with pytest.raises(DataError, match="contains another conversion"):
        convert_videos(_clips(tmp_path / "clips"), undisturbed)
    for name in ("train", "val"):
        (tmp_path / "fewer" / name / "cat").mkdir(parents=True)
        Image.fromarray(picture(0)).save(tmp_path / "fewer" / name / "cat/0.png")
    with pytest.raises(DataError, match="contains another conversion"):
        convert_images(tmp_path / "fewer", undisturbed, **SMALL)
    assert tree(undisturbed) == before
    with pytest.raises(DataError, match="was not made here"):
        convert_images(pictures, pictures, **SMALL)
    with pytest.raises(DataError, match="not a folder; expected train/<class>/"):
        convert_images(tmp_path / "none", tmp_path / "out")
    (tmp_path / "fewer/val/dog").mkdir()
    with pytest.raises(DataError, match="different classes"):
        convert_images(tmp_path / "fewer", tmp_path / "out")
    for options in ({"side": 255}, {"workers": 0}):
        with pytest.raises(ValueError, match="expected"):
            convert_images(pictures, tmp_path / "out", **options)


def test_one_at_a_time(undisturbed):
    with (
        event_sets._alone(undisturbed),
        pytest.raises(RuntimeError, match="another process is converting"),
        event_sets._alone(undisturbed, patience=0.2),
    ):
        pass
    with event_sets._alone(undisturbed, patience=0):
        pass


def test_a_full_disk_is_an_error_and_not_a_note(pictures, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(event_sets, "save_es", full)
    with pytest.raises(OSError, match="No space left"):
        convert_images(pictures, tmp_path / "events", workers=1, **SMALL)


def _clips(root):
    av = pytest.importorskip("av")
    for name, step in (("left", -2), ("right", 2)):
        frames = np.random.default_rng(0).integers(0, 25, (12, 32, 48, 3), dtype=np.uint8)
        for k in range(12):
            frames[k, :, (22 + step * k) % 48 :][:, :4] = 220
        (root / name).mkdir(parents=True)
        for clip in ("one", "two"):
            with av.open(str(root / name / f"{clip}.avi"), "w") as container:
                stream = container.add_stream("mpeg4", rate=12)
                stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
                for frame in frames:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
                container.mux(stream.encode())
    return root


def test_videos(tmp_path):
    source = _clips(tmp_path / "clips")
    (source / "left/three.mp4").write_bytes(b"no film")
    table = convert_videos(source, tmp_path / "one", mode="random", size=(20, 30), workers=1)
    assert table.file.tolist() == [
        "left/one.npz",
        "left/three.npz",
        "left/two.npz",
        "right/one.npz",
        "right/two.npz",
    ]
    assert table.status.tolist() == [
        "made",
        "unreadable",
        "made",
        "made",
        "made",
    ] and table.label.tolist() == [0, 0, 0, 1, 1]
    convert_videos(source, tmp_path / "two", mode="random", size=(20, 30), workers=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    one, two = load_ucf(tmp_path / "one/left/one.npz"), load_ucf(tmp_path / "one/left/two.npz")
    assert one != two and (one.height, one.width) == (
        20,
        30,
    )  # the same film, thresholds of its own
    (tmp_path / "one/left/three.npz").unlink(missing_ok=True)
    data = EventDataset(tmp_path / "one", load_ucf, steps=30, span=(0, 30))
    assert (
        len(data) == 4
        and data.classes == ["left", "right"]
        and torch.equal(data[0][0], to_frames(one, steps=30, span=(0, 30)))
    )


# ---- data sets


def authors_loader(root, line, split="train"):
    "ES-ImageNet's published loader, written down from its description: [2, 8, 224, 224]; the names in the list lack the split."
    name, label, a, b = line.split()
    stem, ending = name.split(".")
    assert ending == "npz"
    name = f"{split}/{stem}.npz"
    cube, moved = np.zeros((2, 8, 256, 256), np.float32), ((254 - int(a)) // 2, (254 - int(b)) // 2)
    with np.load(root / name) as file:
        for p, key in enumerate(("pos", "neg")):
            rows = file[key].astype(int)
            cube[p, rows[:, 2] - 1, rows[:, 0] + moved[0], rows[:, 1] + moved[1]] = 1
    return cube[:, :, 16:240, 16:240], int(label)


def test_frames_are_those_of_the_authors_loader(undisturbed):
    data = EventDataset(undisturbed / "trainlabel.txt", binary=True)
    lines = (undisturbed / "trainlabel.txt").read_text().splitlines()
    assert (
        len(data) == len(lines) == 10
        and data.classes == ["cat", "dog", "emu"]
        and data.sensor == (224, 224)
    )
    for (frames, label), line in zip(data, lines, strict=False):
        theirs, their_label = authors_loader(undisturbed, line)
        assert np.array_equal(frames.transpose(0, 1), theirs) and label == their_label
    x, y = data.tensors().x, data.tensors().y
    assert (
        x.shape == (10, 8, 2, 224, 224) and torch.equal(x[3], data[3][0]) and torch.equal(y, data.y)
    )
    assert not np.array_equal(
        EventDataset(undisturbed / "trainlabel.txt", lambda path, scaled: load_es(path))[0][0][
            ..., :224, :224
        ],
        x[0],
    )


@pytest.fixture
def recordings(tmp_path):
    "Eight small recordings in folders of two classes."
    rng = np.random.default_rng(0)
    for i in range(8):
        t = np.sort(rng.integers(0, 200, 60))
        path = tmp_path / "recordings" / ("a", "b")[i % 2] / f"{i}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_es(
            path,
            Events(t, rng.integers(0, 9, 60), rng.integers(0, 6, 60), rng.integers(0, 2, 60), 6, 9),
        )
    (tmp_path / "recordings/a/.hidden").write_text("")
    return tmp_path / "recordings"


def small(path):
    e = load_es(path)
    return Events(e.t, e.x, e.y, e.p, 6, 9)


def test_three_arrangements(recordings):
    folder = EventDataset(recordings, small, steps=5)
    assert (
        len(folder) == 8 and folder.classes == ["a", "b"] and folder.y.tolist() == [0] * 4 + [1] * 4
    )
    pairs = EventDataset([(args[0], label) for args, label, _ in folder.items], small, steps=5)
    assert all(torch.equal(a, b) and i == j for (a, i), (b, j) in zip(folder, pairs, strict=False))
    for (path,), *_ in folder.items:
        e = small(path)
        assert (
            torch.equal(
                folder[folder.items.index(((path,), int(path.parent.name == "b"), None))][0],
                to_frames(e, steps=5),
            )
            and folder[0][0].sum() == 60
        )
    with pytest.raises(IndexError):
        folder[8]


def test_the_cache_gives_what_the_files_give(recordings, tmp_path):
    plain, cached = (
        EventDataset(recordings, small),
        EventDataset(recordings, small, cache=tmp_path / "cache"),
    )
    for data in (cached, EventDataset(recordings, small, cache=tmp_path / "cache", workers=2)):
        assert torch.equal(data.tensors().x, plain.tensors().x)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    batches = [
        torch.cat([x for x, _ in DataLoader(data, 3, num_workers=2)]) for data in (plain, cached)
    ]
    assert torch.equal(batches[0], batches[1]) and torch.equal(batches[0], plain.tensors().x)
    assert torch.equal(cached[-1][0], plain[-1][0])


def _open_cache(recordings, cache, answer):
    answer.put(EventDataset(recordings, small, steps=4, cache=cache).tensors().x.sum().item())


def test_many_processes_build_one_cache_at_once(recordings, tmp_path):
    answers = FORK.Queue()
    children = [
        FORK.Process(target=_open_cache, args=(recordings, tmp_path / "cache", answers))
        for _ in range(4)
    ]
    for child in children:
        child.start()
    assert [answers.get(timeout=60) for _ in children] == [480.0] * 4
    for child in children:
        child.join()
    assert len([p for p in (tmp_path / "cache").iterdir() if p.suffix == ".bin"]) == 1


def test_a_hurt_cache_is_noticed_anywhere(recordings, tmp_path):
    true = EventDataset(recordings, small, cache=tmp_path / "cache").tensors().x
    (file,) = (tmp_path / "cache").iterdir()
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    for k in range(30):
        hurt = bytearray(whole)
        if k % 2:
            hurt = hurt[: rng.integers(len(hurt))]
        for _ in range(rng.integers(1, 4) if len(hurt) == len(whole) else 0):
            hurt[rng.integers(len(hurt))] ^= rng.integers(1, 256)
        file.write_bytes(hurt)
        assert torch.equal(
            EventDataset(recordings, small, cache=tmp_path / "cache").tensors().x, true
        )


def other(path):
    return small(path)[::1]


def test_another_cut_another_cache(recordings, tmp_path):
    cache = tmp_path / "cache"
    made = [
        EventDataset(recordings, cache=cache, **options)._cache.path
        for options in (
            {"read": small},
            {"read": small, "steps": 9},
            {"read": small, "span": (0, 200)},
            {"read": small, "binary": True},
            {"read": other},
            {"read": functools.partial(cut_to, 40)},
            {"read": functools.partial(cut_to, 41)},
        )
    ]
    assert len(set(made)) == len(made) == 7
    path = recordings / "a/0.npz"
    before = EventDataset(recordings, small, cache=cache)
    save_es(path, Events([3], [1], [1], [1], 6, 9))
    after = EventDataset(recordings, small, cache=cache)
    assert after._cache.path != before._cache.path and after[0][0].sum() == 1
    (recordings / "b/9.npz").write_bytes(path.read_bytes())
    assert EventDataset(recordings, small, cache=cache)._cache.path not in (
        before._cache.path,
        after._cache.path,
    )


def cut_to(count, path):
    return small(path)[:count]


def test_augmentation_differs_each_time_and_repeats_with_torchs_seed(recordings):
    def thin(events, rng):
        return events[rng.random(len(events)) < 0.5]

    data = EventDataset(recordings, small, steps=3, augment=thin)

    def drawn(workers):
        torch.manual_seed(0)
        return torch.cat(
            [x for x, _ in DataLoader(data, 2, num_workers=workers)]
            + [x for x, _ in DataLoader(data, 2, num_workers=workers)]
        )

    for workers in (0, 2):
        first = drawn(workers)
        assert (
            torch.equal(drawn(workers), first)
            and not torch.equal(first[:8], first[8:])
            and len({x.sum().item() for x in first}) > 3
        )
    assert (EventDataset(recordings, small, steps=3).tensors().x.sum((1, 2, 3, 4)) == 60).all()


def test_what_data_sets_refuse(recordings, tmp_path):
    (tmp_path / "list.txt").write_text("a.npz 0 6 9\nb.npz zero 6 9\n")
    with pytest.raises(DataError, match=r"list\.txt, line 2"):
        EventDataset(tmp_path / "list.txt")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty.txt", tmp_path / "empty", []):
        with pytest.raises(DataError, match="expected at least one|contains no folders"):
            EventDataset(nothing, small)
    with pytest.raises(DataError, match="is missing"):
        EventDataset(tmp_path / "none")
    with pytest.raises(DataError, match="labels from 0"):
        EventDataset([(recordings / "a/0.npz", -1)], small)

    def sized(path):
        e = load_es(path)
        return Events(e.t, e.x, e.y, e.p, 6, 9 + (path.name == "4.npz"))

    with pytest.raises(
        DataError, match=r"4\.npz is a recording of 6×10 pixels, the first one of 6×9"
    ):
        EventDataset(recordings, sized).tensors()
    save_es(
        tmp_path / "many.npz",
        Events(np.zeros(300, int), np.zeros(300, int), np.zeros(300, int), np.ones(300, int), 6, 9),
    )
    with pytest.raises(DataError, match="300 events in one frame"):
        EventDataset([(tmp_path / "many.npz", 0)], small, steps=2)[0]
    assert EventDataset([(tmp_path / "many.npz", 0)], small, steps=2, binary=True)[0][0].sum() == 1
    (recordings / "b/1.npz").write_bytes((recordings / "b/1.npz").read_bytes()[:60])
    with pytest.raises(DataError, match=r"1\.npz"):
        EventDataset(recordings, small, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.bin"))
    size = (6, 9)
    with pytest.raises(ValueError, match="whose source can be told"):
        EventDataset(
            recordings, lambda path: Events([0], [0], [0], [0], *size), cache=tmp_path / "cache"
        )
    with pytest.raises(ValueError, match="one of the two"):
        EventDataset(recordings, small, augment=lambda e, rng: e, cache=tmp_path / "cache")


@pytest.mark.data
def test_nmnist_as_it_lies_on_disk():
    folder = data_root() / "NMNIST" / "Train"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set NEUROBRIDGE_DATA")

    def read(path):
        b = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 5).astype(np.int64)
        return Events(
            np.maximum.accumulate((b[:, 2] & 127) << 16 | b[:, 3] << 8 | b[:, 4]),
            b[:, 0],
            b[:, 1],
            b[:, 2] >> 7,
            34,
            34,
        )

    data = EventDataset(folder, read, steps=8)
    assert (
        data.classes == [str(digit) for digit in range(10)]
        and len(data) == 200
        and data[0][0].shape == (8, 2, 34, 34)
    )
    with contextlib.suppress(ModuleNotFoundError):  # the package's own reader, the default
        assert torch.equal(EventDataset(folder, steps=8)[5][0], data[5][0])


def test_the_view_of_the_authors_is_exported(undisturbed):
    name, _, rows, columns = (undisturbed / "vallabel.txt").read_text().splitlines()[0].split()
    e = authors_view(undisturbed / "val" / name, (int(rows), int(columns)))
    assert (e.height, e.width) == (224, 224) and len(e) <= len(load_es(undisturbed / "val" / name))


def test_ucf_files_of_many_steps(tmp_path):
    save_ucf(tmp_path / "e.npz", Events([0, 5], [0, 1], [0, 1], [1, 0], 2, 2), steps=6)
    assert EventDataset([(tmp_path / "e.npz", 0)], load_ucf, steps=6, span=(0, 6))[0][0].sum(
        (1, 2, 3)
    ).tolist() == [1, 0, 0, 0, 0, 1]


def test_training_on_a_set_is_training_on_its_tensors(recordings):
    from neurobridge.core import evaluate, fit, seed_everything
    from neurobridge.snn import LIF, spiking_convnet

    data = EventDataset(recordings, small, steps=4)
    x, _ = next(iter(DataLoader(data, 3, collate_fn=data.collate)))
    assert x.shape == (4, 3, 2, 6, 9) and torch.equal(x.transpose(0, 1), data.tensors().x[:3])
    nets = []
    for train in (data, data.tensors()):
        seed_everything(0)
        nets.append(spiking_convnet(LIF, in_channels=2, classes=2, width=4))
        fit(nets[-1], train, train, epochs=2, lr=0.01, batch_size=4)
    assert all(
        torch.equal(a, b)
        for a, b in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True)
    )
    assert evaluate(nets[0], data) == evaluate(nets[1], data.tensors())


# ---- names, numbers and what is left out


def _official(root):
    "ES-ImageNet as it is published: lists whose names leave the split out, val in one folder."
    for name, split in (
        ("class0/class0_1", "train"),
        ("class10/class10_0", "train"),
        ("class2/class2_0", "train"),
        ("ILSVRC2012_val_00040551", "val"),
    ):
        path = root / split / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_es(path, Events([1, 8], [3, 9], [5, 6], [1, 0], 256, 256))
    (root / "trainlabel.txt").write_text(
        "class0/class0_1.npz 0 254 190\nclass10/class10_0.npz 10 254 190\nclass2/class2_0.npz 2 "
        "254 190\n"
    )
    (root / "vallabel.txt").write_text("ILSVRC2012_val_00040551.npz 349 194 254\n")
    return root


def test_published_lists_are_read(tmp_path):
    root = _official(tmp_path / "ES-imagenet-0.18")
    for split, labels in (("train", [0, 10, 2]), ("val", [349])):
        data = EventDataset(root / f"{split}label.txt", binary=True)
        assert data.y.tolist() == labels and len(data.classes) == max(labels) + 1
        for (frames, label), line in zip(
            data, (root / f"{split}label.txt").read_text().splitlines(), strict=True
        ):
            theirs, their_label = authors_loader(root, line, split)
            assert np.array_equal(frames.transpose(0, 1), theirs) and label == their_label
    (root / "val").rename(root / "elsewhere")
    with pytest.raises(
        DataError, match=r"ILSVRC2012_val_00040551.npz, is missing; expected it in .*val"
    ):
        EventDataset(root / "vallabel.txt")


def test_a_list_beside_its_files_is_read_too(tmp_path):
    save_es(tmp_path / "a.npz", Events([1], [3], [5], [1], 256, 256))
    (tmp_path / "mine.txt").write_text("a.npz 1 254 190\n")
    assert EventDataset(tmp_path / "mine.txt").y.tolist() == [1]


def _twelve(root, without=None):
    "A converted set of twelve classes, one perhaps with no events left; odd names in val."
    for c in range(12):
        for split, name in (("train", "0.png"), ("val", f"v 1.{c}.png")):
            path = root / "pictures" / split / f"kind{c}" / name
            path.parent.mkdir(parents=True)
            Image.fromarray(picture(c)).save(path)
    if without is not None:
        Image.new("RGB", (40, 30)).save(root / f"pictures/train/kind{without}/0.png")
    convert_images(root / "pictures", root / "out", workers=1, **SMALL)
    return root / "out"


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    return _twelve(tmp_path_factory.mktemp("twelve"), without=5)


def test_one_numbering_of_one_set(twelve):
    "The list, the folder and the names of the folders agree, also where a class has lost its last file."
    listed = EventDataset(twelve / "trainlabel.txt")
    folder = EventDataset(twelve / "train")
    assert {str(args[0]): label for args, label, _ in listed.items} == {
        str(args[0]): label for args, label, _ in folder.items
    }
    assert (
        all(args[0].parent.name == f"class{label}" for args, label, _ in folder.items)
        and len(folder) == 11
    )
    assert listed.classes == folder.classes == [f"kind{c}" for c in range(12)], (
        "numbers in names count as numbers"
    )


def test_names_of_val_survive_the_loaders(twelve):
    "Blanks and dots in names would be split by the published loaders."
    for line in (twelve / "vallabel.txt").read_text().splitlines():
        cube, label = authors_loader(twelve, line, "val")
        assert cube.sum() > 0 and 0 <= label < 12
    assert EventDataset(twelve / "vallabel.txt").y.tolist() == list(range(12))


def test_spikingjellys_loader_reads_what_is_converted(tmp_path):
    twelve = _twelve(tmp_path / "set")
    theirs = pytest.importorskip(
        "spikingjelly.datasets.es_imagenet", reason="needs spikingjelly and rarfile"
    )
    (tmp_path / "extract").mkdir()
    (tmp_path / "extract/ES-imagenet-0.18").symlink_to(twelve)
    (tmp_path / "events_np").mkdir()
    theirs.ESImageNet.create_events_np_files(str(tmp_path / "extract"), str(tmp_path / "events_np"))
    for train, split in ((True, "train"), (False, "val")):
        found = theirs.ESImageNet(str(tmp_path), train=train, data_type="event")
        ours = {
            args[0].name: (args[0], label)
            for args, label, _ in EventDataset(twelve / f"{split}label.txt").items
        }
        assert len(found.samples) == len(ours)
        for path, label in found.samples:
            events, (own, own_label) = theirs.load_events(path), ours[Path(path).name]
            e = load_es(own)
            assert found.classes[label] == f"class{own_label}", (
                "its classes sort as text, so its labels are places in its own list"
            )
            assert sorted(
                zip(events["t"], events["x"], events["y"], events["p"], strict=True)
            ) == sorted(zip(e.t, e.x, e.y, e.p, strict=True))


@pytest.mark.parametrize(
    "names, labels",
    [
        (["0", "1", "10", "2"], [0, 1, 10, 2]),
        (["clip1", "clip10", "clip2"], [0, 2, 1]),
        (["1", "3", "11"], [0, 1, 2]),
        (["class3", "class12"], [3, 12]),
        (["n02", "n01"], [1, 0]),
    ],
)
def test_labels_of_folders(tmp_path, names, labels):
    for name in names:
        (tmp_path / name).mkdir()
        save_es(tmp_path / name / "e.npz", Events([0], [0], [0], [1], 4, 4))
    data = EventDataset(tmp_path)
    assert {args[0].parent.name: label for args, label, _ in data.items} == dict(
        zip(names, labels, strict=True)
    )
    assert all(data.classes[label] == args[0].parent.name for args, label, _ in data.items)


def test_two_pictures_of_one_stem_are_both_kept(tmp_path):
    for split, name, seed in (("train", "x.png", 0), ("val", "x.png", 1), ("val", "x.jpg", 2)):
        (tmp_path / split / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed)).save(tmp_path / split / "a" / name, quality=95)
    table = convert_images(tmp_path, tmp_path / "out", workers=1, **SMALL)
    assert (
        table.file.nunique() == 3
        and (table.status == "made").all()
        and len(EventDataset(tmp_path / "out/vallabel.txt")) == 2
    )


def test_deep_and_turned_pictures(tmp_path):
    "A 16-bit gray picture has the events of the same picture in 8 bits; a camera's orientation is obeyed."
    gray = picture(3)[..., 0]
    for name, image in (
        ("deep", Image.fromarray(gray.astype(np.uint16) * 257)),
        ("plain", Image.fromarray(gray)),
    ):
        (tmp_path / name / "train/a").mkdir(parents=True)
        image.save(tmp_path / name / "train/a/0.png")
        convert_images(tmp_path / name, tmp_path / name / "out", workers=1, **SMALL)
    assert (tmp_path / "deep/out/train/class0/class0_0.npz").read_bytes() == (
        tmp_path / "plain/out/train/class0/class0_0.npz"
    ).read_bytes()
    turned, exif = tmp_path / "turned/train/a", Image.Exif()
    turned.mkdir(parents=True)
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(picture(3)).save(turned / "0.jpg", exif=exif, quality=95)
    assert convert_images(tmp_path / "turned", tmp_path / "turned/out", workers=1, **SMALL)[
        ["rows", "columns"]
    ].values.tolist() == [[60, 45]]
    with pytest.raises(ValueError, match="more than 8 bits"):
        odg(Image.fromarray(gray.astype(np.uint16) * 257))


def test_what_is_left_out_is_said(tmp_path):
    for split, name in (
        ("train/a", "0.png"),
        ("train/a", "1.gif"),
        ("train/a/nested", "2.png"),
        ("test/a", "3.png"),
    ):
        (tmp_path / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(0)).save(tmp_path / split / name)
    with pytest.warns(UserWarning) as said:
        convert_images(tmp_path, tmp_path / "out", workers=1, **SMALL)
    words = " ".join(str(w.message) for w in said)
    assert (
        "test is left out" in words
        and "2 entries of class folders are left out" in words
        and ".gif" in words
        and "folders" in words
    )
    (tmp_path / "flat/a").mkdir(parents=True)
    with pytest.raises(DataError, match="no folder train"):
        convert_images(tmp_path / "flat", tmp_path / "other")


def test_a_picture_replaced_by_one_of_equal_size_is_converted_again(tmp_path):
    path = tmp_path / "train/a/0.bmp"
    path.parent.mkdir(parents=True)
    Image.fromarray(picture(0)).save(path)
    convert_images(tmp_path, tmp_path / "out", workers=1, **SMALL)
    first, before = (tmp_path / "out/train/class0/class0_0.npz").read_bytes(), path.stat()
    Image.fromarray(picture(9)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert path.stat().st_size == before.st_size
    convert_images(tmp_path, tmp_path / "out", workers=1, **SMALL)
    convert_images(tmp_path, tmp_path / "fresh", workers=1, **SMALL)
    again = (tmp_path / "out/train/class0/class0_0.npz").read_bytes()
    assert first != again == (tmp_path / "fresh/train/class0/class0_0.npz").read_bytes()


@pytest.mark.parametrize("wrong, kind, message", [
    (lambda root: [(Events([0], [0], [0], [1], 4, 4), 0)], TypeError, "recordings contains Events; expected pairs of path and label"), (lambda root: [(root / "a/0.npz", 1.5)], TypeError, "labels is 1.5; expected a whole number, the class .*Sequences"),
    (lambda root: ["a.npz"], TypeError, "pairs of path and label"), (lambda root: root / "a/0.npz", DataError, "is no text; expected a list of labels"),
    (lambda root: root / "a", DataError, "expected one folder for each class"), (lambda root: root.parent, DataError, "is a folder in a class folder"),
])  # fmt: skip
def test_arrangements_that_are_none(recordings, wrong, kind, message):
    with pytest.raises(kind, match=message):
        EventDataset(wrong(recordings))


def test_a_stray_file_is_named_when_the_set_is_made(recordings):
    (recordings / "b/notes.txt").write_text("calibrated on Monday")
    with pytest.raises(DataError, match=r"notes\.txt is no recording by its ending"):
        EventDataset(recordings)


def test_tensors_are_served_with_time_first(recordings):
    data = EventDataset(recordings, small, steps=3)
    x, y = data.tensors().__getitems__([0, 4])
    assert x.shape == (3, 2, 2, 6, 9) and torch.equal(x[:, 1], data[4][0]) and y.tolist() == [0, 1]
