"Official event sets: tiny imitations of the published folders, read by SpikingJelly's and tonic's own loaders, with equal events, labels and splits."

import shutil
import struct

import numpy as np
import pytest
from test_formats import write_aedat4, write_dat, write_nmnist

from neurobridge.core import data_root, project_root
from neurobridge.data import DataError, EventDataset, Events, read_events
from neurobridge.data.event_sets import SETS
from neurobridge.data.manifest import manifest


def some(rng, sensor, first=0, n=60, longest=100_000):
    t = first + np.sort(rng.integers(0, longest, n))
    return Events(
        t,
        rng.integers(0, sensor[1], n),
        rng.integers(0, sensor[0], n),
        rng.integers(0, 2, n),
        *sensor,
    )


def columns(e):
    return np.stack([e.t, e.x, e.y, e.p], 1).astype(int)


def write_aedat2(path, e):
    "As a DVS128 sends it: a zero is ON, and columns and rows are counted from the other end."
    address = (127 - e.y.astype(int)) << 8 | (127 - e.x.astype(int)) << 1 | (1 - e.p)
    words = np.stack([address, e.t], 1).astype(">u4")
    path.write_bytes(b"#!AER-DAT2.0\r\n# AEChip: DVS128\r\n" + words.tobytes())


def write_aedat3(path, e):
    "All events in packets of a hundred, none of them invalid."
    out = bytearray(b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n")
    for at in range(0, len(e), 100):
        part = columns(e[at : at + 100]).tolist()
        out += struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, len(part), len(part), len(part))
        for t, x, y, p in part:
            out += struct.pack("<Ii", x << 17 | y << 2 | p << 1 | 1, t)
    path.write_bytes(out)


# The imitations: as the archives unpack, and as SpikingJelly has them in `extract`


def n_mnist(root, rng):
    for split in ("Train", "Test"):
        for label in range(10):
            place = root / "NMNIST" / split / str(label)
            place.mkdir(parents=True)
            for i in (2, 10):
                write_nmnist(place / f"{i:05}.bin", some(rng, (34, 34)))
    return "n_mnist"


def n_caltech101(root, rng):
    names = ["BACKGROUND_Google", "Faces_easy", "Leopards", "accordion", "water_lilly", "yin_yang"]
    names += [f"kind_{i}" for i in range(95)]
    for name in names:
        place = root / "NCALTECH101/Caltech101" / name
        place.mkdir(parents=True)
        write_nmnist(place / "image_0001.bin", some(rng, (172, 232), n=20))
    return "n_caltech101"


def n_cars(root, rng):
    for split in ("train", "test"):
        for name in ("background", "cars"):
            place = root / f"NCARS/n-cars_{split}/{name}"
            place.mkdir(parents=True)
            for i in range(3):
                path = place / f"obj_{i:06}_td.dat"
                write_dat(path, some(rng, (90, 100)))
                content = path.read_bytes()  # the published files state no size
                path.write_bytes(content.replace(b"% Height 90\n% Width 100\n", b""))
    return "n_cars"


def cifar10_dvs(root, rng):
    for name in manifest()["cifar10_dvs"]["class_names"]:
        place = root / "CIFAR10DVS" / name
        place.mkdir(parents=True)
        for i in range(21):
            write_aedat2(place / f"cifar10_{name}_{i}.aedat", some(rng, (128, 128), n=20))
    return "cifar10_dvs"


def dvs128_gesture(root, rng):
    place = root / "DvsGesture"
    place.mkdir(parents=True)
    for split, users in (("train", ("user01_led", "user02_lab")), ("test", ("user24_led",))):
        (place / f"trials_to_{split}.txt").write_text("".join(f"{u}.aedat\n" for u in users) + "\n")
        for user in users:
            first = int(rng.integers(10**7, 10**8))
            write_aedat3(place / f"{user}.aedat", some(rng, (128, 128), first, 2000, 1_300_000))
            rows = [
                (label, first + 100_000 * label, first + 100_000 * label + 120_000)
                for label in (1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 10, 11)
            ]
            table = "class,startTime_usec,endTime_usec\n" + "".join(
                f"{label},{start},{end}\n" for label, start, end in rows
            )
            (place / f"{user}_labels.csv").write_text(table)
    return "dvs128_gesture"


MAKERS = {
    made.__name__: made for made in (n_mnist, n_caltech101, n_cars, cifar10_dvs, dvs128_gesture)
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    place = tmp_path_factory.mktemp("official")
    for seed, make in enumerate(MAKERS.values()):
        make(place, np.random.default_rng(seed))
    return place


def found(data):
    "Events and label of each item, in order."
    for args, label, clip in data.items:
        events = data.read(*args)
        yield columns(events if clip is None else events.between(*clip)), label


SPLITS = [(name, split) for name in SETS for split in manifest()[name]["splits"]]


@pytest.mark.parametrize("name, split", SPLITS)
def test_frames_of_every_set(root, name, split):
    data = EventDataset.official(name, split, root, steps=4)
    x, y = data[0]
    assert x.shape == (4, 2, *manifest()[name]["sensor"]) and y == 0
    assert x.sum() == len(next(found(data))[0]) and len(data.classes) == manifest()[name]["classes"]
    assert set(data.y.tolist()) == set(range(len(data.classes)))


# SpikingJelly's loaders


def spikingjelly(module, name, root, place, **options):
    "Its own conversion of the unpacked folder, and then its own data set."
    theirs = pytest.importorskip(f"spikingjelly.datasets.{module}", reason="needs spikingjelly")
    kind = getattr(theirs, name)
    (place / "events_np").mkdir(parents=True)
    kind.create_events_np_files(str(root), str(place / "events_np"))
    return kind(str(place), data_type="event", **options)


def of_spikingjelly(data):
    for events, label in data:
        yield np.stack([events[name].astype(int) for name in "txyp"], 1), label


def same(ours, theirs):
    ours, theirs = list(ours), list(theirs)
    assert len(ours) == len(theirs) > 0
    for (events, label), (others, other) in zip(ours, theirs, strict=True):
        assert label == other and np.array_equal(events, others)


@pytest.mark.parametrize("split", ["train", "test"])
def test_n_mnist_as_spikingjelly(root, split, tmp_path):
    theirs = spikingjelly("n_mnist", "NMNIST", root / "NMNIST", tmp_path, train=split == "train")
    same(found(EventDataset.official("n_mnist", split, root)), of_spikingjelly(theirs))


def test_n_caltech101_as_spikingjelly(root, tmp_path):
    theirs = spikingjelly("n_caltech101", "NCaltech101", root / "NCALTECH101", tmp_path)
    ours = EventDataset.official("n_caltech101", "all", root)
    same(found(ours), of_spikingjelly(theirs))
    assert ours.classes == theirs.classes


def test_cifar10_dvs_as_spikingjelly(root, tmp_path, monkeypatch):
    monkeypatch.setattr(np, "bool", np.bool_, raising=False)  # its names of NumPy before 1.24
    monkeypatch.setattr(np, "fromstring", np.frombuffer)
    datasets = pytest.importorskip("spikingjelly.datasets", reason="needs spikingjelly")
    theirs = spikingjelly("cifar10_dvs", "CIFAR10DVS", root / "CIFAR10DVS", tmp_path)
    parts = datasets.split_to_train_test_set(0.9, theirs, 10)
    for split, part in zip(("train", "test"), parts, strict=True):
        turned = ((e[:, [0, 2, 1, 3]], label) for e, label in of_spikingjelly(part))
        same(found(EventDataset.official("cifar10_dvs", split, root)), turned)
    assert len(EventDataset.official("cifar10_dvs", "all", root)) == len(theirs) == 210


@pytest.mark.parametrize("split", ["train", "test"])
def test_dvs128_gesture_as_spikingjelly(root, split, tmp_path):
    theirs = spikingjelly("dvs128_gesture", "DVS128Gesture", root, tmp_path, train=split == "train")
    ours = list(found(EventDataset.official("dvs128_gesture", split, root)))
    others = list(of_spikingjelly(theirs))
    assert len(ours) == len(others) == (24 if split == "train" else 12)
    for label in range(11):
        one = sorted(e.tolist() for e, own in ours if own == label)
        # its labels are places among the names of folders, which sort as text: 0, 1, 10, 2, …
        other = sorted(e.tolist() for e, own in others if theirs.classes[own] == str(label))
        assert len(one) > 0 and one == other


# tonic's loaders


def tonic(name, root, monkeypatch, **options):
    "tonic looks into a folder of its class's name, and counts files before it believes that all are there."
    datasets = pytest.importorskip("tonic.datasets", reason="needs tonic")
    kind = getattr(datasets, name)
    monkeypatch.setattr(kind, "_check_exists", lambda self: True)
    return kind(str(root), **options)


def of_tonic(data):
    for events, label in data:
        yield np.stack([np.asarray(events[name]).astype(int) for name in "txyp"], 1), label


def sorted_by(data, pairs):
    "tonic takes the files of a folder in the order of the disk."
    return [
        pair for _, pair in sorted(zip(data.data, pairs, strict=True), key=lambda each: each[0])
    ]


@pytest.mark.parametrize("split", ["train", "test"])
def test_n_mnist_as_tonic(root, split, monkeypatch):
    theirs = tonic("NMNIST", root, monkeypatch, train=split == "train")
    ours = EventDataset.official("n_mnist", split, root)
    same(found(ours), sorted_by(theirs, of_tonic(theirs)))
    assert len(ours.classes) == len(theirs.classes)


def test_n_caltech101_as_tonic(root, monkeypatch):
    "Its labels are names, and it moves each recording to the corner."
    theirs = tonic("NCALTECH101", root, monkeypatch)
    ours = EventDataset.official("n_caltech101", "all", root)
    moved = [(e - [0, *e[:, 1:3].min(0), 0], ours.classes[label]) for e, label in found(ours)]
    same(moved, sorted_by(theirs, of_tonic(theirs)))


def test_cifar10_dvs_as_tonic(tmp_path, monkeypatch):
    "It reads a distribution as AEDAT 4, with the same folders and labels."
    rng = np.random.default_rng(0)
    for name in manifest()["cifar10_dvs"]["class_names"]:
        (tmp_path / "CIFAR10DVS" / name).mkdir(parents=True)
        for i in range(2):
            path = tmp_path / "CIFAR10DVS" / name / f"cifar10_{name}_{i}.aedat4"
            write_aedat4(path, some(rng, (128, 128), n=20))
    theirs = tonic("CIFAR10DVS", tmp_path, monkeypatch)
    ours = EventDataset.official("cifar10_dvs", "all", tmp_path, steps=2)
    assert {(str(item.args[0]), item.label) for item in ours.items} == set(
        zip(theirs.data, theirs.targets, strict=True)
    )
    assert ours.tensors().x.sum() == 20 * len(ours) == 400


def test_gestures_as_tonic_reads_the_file(root):
    io = pytest.importorskip("tonic.io", reason="needs tonic")
    path = root / "DvsGesture/user24_led.aedat"
    version, start, *_ = io.read_aedat_header_from_file(str(path))
    theirs = io.get_aer_events_from_file(str(path), version, start)
    address = theirs["address"].astype(int)
    parts = [
        theirs["timeStamp"].astype(int),
        address >> 17,
        address >> 2 & 0x1FFF,
        address >> 1 & 1,
    ]
    every = columns(read_events(path))  # above, as its read_dvs_ibm has it
    assert np.array_equal(np.stack(parts, 1), every)
    data = EventDataset.official("dvs128_gesture", "test", root)
    for (events, _), item in zip(found(data), data.items, strict=True):
        start, end = item.clip
        assert np.array_equal(events, every[(every[:, 0] >= start) & (every[:, 0] < end)])


@pytest.mark.parametrize("split", ["train", "test"])
def test_n_cars_as_expelliarmus(root, split):
    expelliarmus = pytest.importorskip("expelliarmus", reason="needs expelliarmus")
    data = EventDataset.official("n_cars", split, root)
    assert data.classes == ["background", "cars"] and len(data) == 6
    for (events, label), item in zip(found(data), data.items, strict=True):
        theirs = expelliarmus.Wizard(encoding="dat").read(item.args[0])
        assert np.array_equal(np.stack([theirs[name].astype(int) for name in "txyp"], 1), events)
        assert item.args[0].parent.name == data.classes[label]
        assert item.args[0].parts[-3] == f"n-cars_{split}"


# The folders


def test_the_manifest_agrees_with_its_readers():
    "The MD5 sums that SpikingJelly and tonic carry."
    ours = {
        name: {archive["name"]: archive["md5"] for archive in manifest()[name]["archives"]}
        for name in SETS
    }
    for name, module, kind in (
        ("n_mnist", "n_mnist", "NMNIST"),
        ("n_caltech101", "n_caltech101", "NCaltech101"),
        ("cifar10_dvs", "cifar10_dvs", "CIFAR10DVS"),
        ("dvs128_gesture", "dvs128_gesture", "DVS128Gesture"),
    ):
        theirs = pytest.importorskip(f"spikingjelly.datasets.{module}", reason="needs spikingjelly")
        sums = {file: md5 for file, _, md5 in getattr(theirs, kind).resource_url_md5()}
        assert ours[name].items() <= sums.items()
    datasets = pytest.importorskip("tonic.datasets", reason="needs tonic")
    assert ours["n_mnist"] == {
        "Train.zip": datasets.NMNIST.train_md5,
        "Test.zip": datasets.NMNIST.test_md5,
    }
    assert datasets.CIFAR10DVS.data_filename == list(ours["cifar10_dvs"])
    assert list(datasets.CIFAR10DVS.classes) == manifest()["cifar10_dvs"]["class_names"]
    names = [
        name.replace("_", " ").capitalize() for name in manifest()["dvs128_gesture"]["class_names"]
    ]
    assert [name[:9] for name in datasets.DVSGesture.classes][:7] == [name[:9] for name in names][
        :7
    ]


def test_every_set_has_a_record_and_a_line_in_the_read_me():
    text = (project_root() / "data/README.md").read_text(encoding="utf-8")
    for name in SETS:
        wanted = {"title", "source", "licence", "get", "folder", "splits", "sensor", "classes", "endings", "archives"}  # fmt: skip
        assert wanted <= set(manifest()[name]) and f"`{name}`" in text


@pytest.mark.parametrize(
    "name, split, change, message",
    [
        ("n_mnist", "train", lambda p: shutil.rmtree(p / "NMNIST/Train/3"), "9 folders of classes"),
        ("n_mnist", "train", lambda p: shutil.rmtree(p / "NMNIST/Train"), "Train is missing. How to get it"),
        ("n_mnist", "test", lambda p: (p / "NMNIST/Test/3/a.txt").touch(), "contains a.txt; expected recordings that end in .bin"),
        ("n_cars", "test", lambda p: (p / "NCARS/n-cars_test/cars").rename(p / "NCARS/n-cars_test/car"), "look at car, cars"),
        ("dvs128_gesture", "test", lambda p: (p / "DvsGesture/user24_led_labels.csv").unlink(), "user24_led_labels.csv.*missing"),
        ("dvs128_gesture", "test", lambda p: (p / "DvsGesture/user24_led.aedat").unlink(), "lists 'user24_led.aedat', which is not there"),
        ("dvs128_gesture", "test", lambda p: (p / "DvsGesture/trials_to_test.txt").write_text("../../etc/passwd\n"), "which is not there"),
        ("dvs128_gesture", "test", lambda p: (p / "DvsGesture/user24_led_labels.csv").write_text("class,a,b\n12,3,4\n"), "line 2 is '12,3,4'"),
        ("dvs128_gesture", "test", lambda p: (p / "DvsGesture/user24_led_labels.csv").write_text("class,a,b\n1,4,4\n"), "line 2 is '1,4,4'"),
    ],
)  # fmt: skip
def test_folders_that_are_not_the_published_ones(root, name, split, change, message, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    change(tmp_path / "copy")
    with pytest.raises(DataError, match=message):
        EventDataset.official(name, split, tmp_path / "copy")


def test_sets_and_splits_that_there_are_not(root):
    for name, split in (("mnist", "train"), ("n_caltech101", "train"), ("n_cars", "valid")):
        with pytest.raises(ValueError, match="official: (name|split) is .*expected one of"):
            EventDataset.official(name, split, root)


@pytest.mark.skipif(not (data_root() / "NMNIST").exists(), reason="the real N-MNIST is not here")
def test_real_n_mnist():
    data = EventDataset.official("n_mnist", "test", steps=10)
    x, y = data.tensors().x, data.y
    assert x.shape == (len(data), 10, 2, 34, 34) and set(y.tolist()) <= set(range(10))
    assert x[0].sum() == len(read_events(data.items[0].args[0]))


def test_gestures_are_cut_from_one_reading_and_cached(root, tmp_path, monkeypatch):
    reads = []
    plain = EventDataset.official(
        "dvs128_gesture", "train", root, steps=5, by="count", downsample=4
    )
    read = plain.read
    monkeypatch.setattr(plain, "read", lambda *args: reads.append(args) or read(*args))
    x = plain.tensors().x
    assert len(reads) == 1  # the first file was read when the set was made
    assert x.shape == (24, 5, 2, 32, 32)
    for workers in (0, 2):
        told = {"steps": 5, "by": "count", "downsample": 4, "cache": tmp_path, "workers": workers}
        cached = EventDataset.official("dvs128_gesture", "train", root, **told)
        assert cached.tensors().x.equal(x)
    rest, held = cached.split_off(1)
    assert len(rest) == len(held) == 12 and held.y.tolist() == rest.y.tolist()
