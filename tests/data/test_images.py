"""Readers of neurobridge.data.images against tiny files in the official formats, made here; damage, absence, misuse; the real Fashion-MNIST."""

import copy
import functools
import gzip
import http.server
import io
import pickle
import struct
import sys
import tarfile
import threading
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

import neurobridge
from neurobridge.core import data_root, project_root
from neurobridge.core.files import file_hash
from neurobridge.data import DataError, ImageSet, balanced_pick, image_folder, images, load_images
from neurobridge.data.manifest import check_file, manifest

MNIST_LIKE = {"mnist": datasets.MNIST, "fashion_mnist": datasets.FashionMNIST}
CIFAR_LIKE = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
COUNT = {"train": 40, "test": 20}


def idx(array: np.ndarray) -> bytes:
    return (
        struct.pack(">BBBB" + "I" * array.ndim, 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    )


def snapshot(folder: Path) -> dict:
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*")}


@pytest.fixture
def record(monkeypatch):
    "A copy of the manifest that a test may change."
    changed = copy.deepcopy(manifest())
    monkeypatch.setattr(images, "manifest", lambda: changed)
    monkeypatch.setattr(sys.modules["neurobridge.data.manifest"], "manifest", lambda: changed)
    return changed


def make_mnist(name, root, record):
    "Write 40 + 20 tiny images in the official layout and note their checksums; return the arrays."
    rng, arrays, entry = np.random.default_rng(0), {}, record[name]
    entry["images"] = COUNT
    folder = root / entry["folder"]
    folder.mkdir(parents=True, exist_ok=True)
    for file in entry["files"]:
        shape = (
            (COUNT[file["split"]], 28, 28) if "images" in file["name"] else (COUNT[file["split"]],)
        )
        array = rng.integers(0, 256 if len(shape) == 3 else 10, shape, dtype=np.uint8)
        (folder / file["name"]).write_bytes(gzip.compress(idx(array), mtime=0))
        file["md5"], file["bytes"] = (
            file_hash(folder / file["name"], "md5"),
            (folder / file["name"]).stat().st_size,
        )
        arrays[file["split"], len(shape)] = array
    return arrays


def make_cifar(name, root, record, monkeypatch):
    "Write tiny CIFAR pickles in the official archive, and let torchvision know their checksums; return the arrays."
    rng, entry, arrays, files = np.random.default_rng(0), record[name], {}, {}
    reader, classes = CIFAR_LIKE[name], record[name]["classes"]
    key, names = (
        ("labels", "label_names") if name == "cifar10" else ("fine_labels", "fine_label_names")
    )
    per_file = 10 if name == "cifar10" else 50
    for file in entry["files"]:
        if file["split"] == "both":
            content = {names: [f"class {i}" for i in range(classes)]}
        else:
            content = {
                "data": rng.integers(0, 256, (per_file, 3072), dtype=np.uint8),
                key: rng.integers(0, classes, per_file).tolist(),
            }
            arrays.setdefault(file["split"], []).append((content["data"], content[key]))
        files[file["name"]] = pickle.dumps(content, protocol=2)
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / entry["archive"]["name"], "w:gz") as archive:
        for file in entry["files"]:
            info = tarfile.TarInfo(f"{entry['folder']}/{file['name']}")
            info.size = len(files[file["name"]])
            archive.addfile(info, io.BytesIO(files[file["name"]]))
    with tarfile.open(root / entry["archive"]["name"]) as archive:
        archive.extractall(root, filter="data")
    for file, path in [(f, root / entry["folder"] / f["name"]) for f in entry["files"]] + [
        (entry["archive"], root / entry["archive"]["name"])
    ]:
        file["md5"], file["bytes"] = file_hash(path, "md5"), path.stat().st_size
    entry["images"] = {split: per_file * len(parts) for split, parts in arrays.items()}
    for split in ("train", "test"):
        monkeypatch.setattr(
            reader,
            f"{split}_list",
            [[f["name"], f["md5"]] for f in entry["files"] if f["split"] == split],
        )
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": entry["files"][-1]["md5"]})
    return arrays


# The manifest


def test_manifest_agrees_with_torchvision():
    for name, reader in MNIST_LIKE.items():
        assert [(f["name"], f["md5"]) for f in manifest()[name]["files"]] == list(reader.resources)
    for name, reader in CIFAR_LIKE.items():
        record = manifest()[name]
        expected = [tuple(pair) for pair in reader.train_list + reader.test_list] + [
            (reader.meta["filename"], reader.meta["md5"])
        ]
        assert [(f["name"], f["md5"]) for f in record["files"]] == expected
        assert (record["archive"]["name"], record["archive"]["md5"]) == (
            reader.filename,
            reader.tgz_md5,
        )
        assert record["folder"] == reader.base_folder
    archives = {a["name"]: a["md5"] for a in manifest()["imagenet"]["archives"]}
    assert archives == dict(datasets.imagenet.ARCHIVE_META.values())


def test_manifest_is_complete_and_reaches_the_package():
    for name, record in manifest().items():
        assert {"title", "source", "licence"} <= set(record), name
    for name in ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100", "imagenet"):
        assert {"get", "shape", "classes", "images"} <= set(manifest()[name])
        assert f"`{name}`" in (project_root() / "data" / "README.md").read_text(encoding="utf-8")
    assert manifest() == tomllib.loads(
        (project_root() / "data" / "manifest.toml").read_text(encoding="utf-8")
    )
    assert (Path(neurobridge.__file__).parent / "data" / "manifest.toml").is_file()


# Official formats, tiny


@pytest.mark.parametrize("name", MNIST_LIKE)
def test_mnist_format(name, tmp_path, record):
    arrays = make_mnist(name, tmp_path, record)
    before = snapshot(tmp_path)
    for split in ("train", "test"):
        found = load_images(name, split, root=tmp_path)
        np.testing.assert_array_equal(found.x.squeeze(1), arrays[split, 3])
        np.testing.assert_array_equal(found.y, arrays[split, 1])
        assert (
            found.x.dtype == torch.uint8
            and found.y.dtype == torch.int64
            and (found.name, found.split) == (name, split)
        )
    assert snapshot(tmp_path) == before  # reading writes nothing into the data root


@pytest.mark.parametrize("name", MNIST_LIKE)
def test_mnist_equals_torchvision(name, tmp_path, record):
    make_mnist(name, tmp_path, record)
    for path in list(tmp_path.rglob("*.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()  # only unpacked files are left, which torchvision reads itself
    ours, theirs = load_images(name, root=tmp_path), MNIST_LIKE[name](tmp_path, train=True)
    np.testing.assert_array_equal(ours.x.squeeze(1), theirs.data)
    np.testing.assert_array_equal(ours.y, theirs.targets)
    assert ours.classes == theirs.classes


@pytest.mark.parametrize("unpacked", [True, False])
@pytest.mark.parametrize("name", CIFAR_LIKE)
def test_cifar_format(name, unpacked, tmp_path, record, monkeypatch):
    arrays = make_cifar(name, tmp_path, record, monkeypatch)
    if unpacked:
        (tmp_path / record[name]["archive"]["name"]).unlink()
    else:
        for path in (tmp_path / record[name]["folder"]).iterdir():
            path.unlink()
        (tmp_path / record[name]["folder"]).rmdir()
    before = snapshot(tmp_path)
    for split in ("train", "test"):
        found = load_images(name, split, root=tmp_path)
        np.testing.assert_array_equal(
            found.x.flatten(1), np.concatenate([data for data, _ in arrays[split]])
        )
        np.testing.assert_array_equal(
            found.y, np.concatenate([labels for _, labels in arrays[split]])
        )
        assert found.x.is_contiguous() and found.classes[1] == "class 1"
    assert snapshot(tmp_path) == before


def test_digits_are_sklearns_own():
    train, test, raw = load_images("digits"), load_images("digits", "test"), load_digits()
    held = balanced_pick(torch.from_numpy(raw.target), 500)
    rest = np.setdiff1d(np.arange(len(raw.target)), held)
    assert (len(train), len(test)) == (1297, 500)
    for part, index in ((train, rest), (test, held)):
        np.testing.assert_array_equal(
            (part.x.squeeze(1).double() * 16 / 255).round(), raw.images[index]
        )
        np.testing.assert_array_equal(part.y, raw.target[index])
    # Held against a silent change of the split, on which every recorded result rests.
    assert held[:8].tolist() == [1, 2, 4, 5, 6, 9, 14, 17] and int(held.sum()) == 432137


# Damage


def damaged(path, how, rng):
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[: rng.integers(0, len(content))]
    elif how == "flip":
        content[rng.integers(0, len(content))] ^= 1 << rng.integers(0, 8)
    elif how == "longer":
        content += b"\0"
    elif how == "web page":
        content = b"<html>404 not found</html>" * 100
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "flip", "longer", "web page"])
def test_damaged_official_files_are_refused_wherever_the_damage(how, tmp_path, record, monkeypatch):
    make_mnist("mnist", tmp_path, record)
    make_cifar("cifar10", tmp_path, record, monkeypatch)
    rng = np.random.default_rng(0)
    for name in ("mnist", "cifar10"):
        entry = record[name]
        for _ in range(25):
            file = entry["files"][rng.integers(len(entry["files"]))]
            path = tmp_path / entry["folder"] / file["name"]
            whole = path.read_bytes()
            damaged(path, how, rng)
            with pytest.raises(DataError) as caught:
                load_images(name, "test" if file["split"] == "test" else "train", root=tmp_path)
            message = str(caught.value)
            for part in (
                str(path),
                file["md5"],
                f"{file['bytes']:,} bytes",
                f"{path.stat().st_size:,} bytes",
                "download=True",
                "NEUROBRIDGE_DATA",
            ):
                assert part in message
            assert ("cut off" in message) == (path.stat().st_size < len(whole))
            path.write_bytes(whole)
        load_images(name, root=tmp_path)


def test_damaged_archive_is_refused_before_it_is_opened(tmp_path, record, monkeypatch):
    make_cifar("cifar10", tmp_path, record, monkeypatch)
    (tmp_path / "cifar-10-batches-py").rename(tmp_path / "elsewhere")
    archive = tmp_path / "cifar-10-python.tar.gz"
    damaged(archive, "cut", np.random.default_rng(1))
    monkeypatch.setattr(tarfile, "open", lambda *_: pytest.fail("the archive was opened"))
    with pytest.raises(DataError, match="cut off"):
        load_images("cifar10", root=tmp_path)


def test_damaged_unpacked_idx_files(tmp_path, record):
    "Without a published checksum: every cut and every flip in a header is found; the pixels cannot be vouched for."
    make_mnist("mnist", tmp_path, record)
    for path in list(tmp_path.rglob("*.gz")):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        path = tmp_path / "MNIST" / "raw" / name
        whole, header = path.read_bytes(), 16 if "images" in name else 8
        cuts = [whole[:n] for n in [*range(header + 2), len(whole) // 2, len(whole) - 1]] + [
            whole + b"\0"
        ]
        flips = [
            whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :]
            for i in range(2, header)
            for bit in range(8)
        ]
        for content in cuts + flips:
            path.write_bytes(content)
            with pytest.raises(DataError):
                load_images("mnist", root=tmp_path)
        path.write_bytes(whole)
    load_images("mnist", root=tmp_path)


def test_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROBRIDGE_DATA", str(tmp_path))
    for name, file in {
        "mnist": "train-images-idx3-ubyte.gz",
        "cifar10": "cifar-10-python.tar.gz",
        "cifar100": "cifar-100-python.tar.gz",
    }.items():
        with pytest.raises(DataError, match="is missing") as caught:
            load_images(name)
        assert (
            str(tmp_path) in str(caught.value)
            and file in str(caught.value)
            and f"load_images('{name}', download=True)" in str(caught.value)
        )
    with pytest.raises(DataError, match="image-net.org"):
        load_images("imagenet", limit=3)
    assert not list(tmp_path.iterdir())


def test_another_set_with_the_right_checksums_is_refused(tmp_path, record):
    make_mnist("mnist", tmp_path, record)
    record["mnist"]["images"] = {"train": 60000, "test": 10000}
    with pytest.raises(DataError, match=r"expected \[60000, 1, 28, 28\]"):
        load_images("mnist", root=tmp_path)


# Download, only when asked


@pytest.fixture
def mirror(tmp_path, record, monkeypatch):
    "A web server on this machine that holds a tiny Fashion-MNIST."
    arrays = make_mnist("fashion_mnist", tmp_path / "server", record)
    folder = tmp_path / "server" / "FashionMNIST" / "raw"
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=folder)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(
        datasets.FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"]
    )
    monkeypatch.setattr(
        datasets.FashionMNIST,
        "resources",
        [(f["name"], f["md5"]) for f in record["fashion_mnist"]["files"]],
    )
    yield arrays, asked, folder
    server.shutdown()
    server.server_close()


def test_download_fetches_repairs_and_is_not_repeated(tmp_path, mirror):
    arrays, asked, _ = mirror
    root = tmp_path / "data"
    with pytest.raises(DataError):
        load_images("fashion_mnist", root=root)
    assert not asked and not root.exists()
    found = load_images("fashion_mnist", root=root, download=True)
    np.testing.assert_array_equal(found.x.squeeze(1), arrays["train", 3])
    requests = len(asked)
    load_images("fashion_mnist", "test", root=root, download=True)
    assert asked and len(asked) == requests


def test_download_replaces_a_broken_one(tmp_path, mirror):
    arrays, _, _ = mirror
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"half of it")
    found = load_images("fashion_mnist", root=tmp_path / "data", download=True)
    np.testing.assert_array_equal(found.y, arrays["train", 1])


def test_download_that_fails_says_so(tmp_path, mirror):
    _, _, folder = mirror
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"not what was promised")
    with pytest.raises(DataError, match="the download into .* failed"):
        load_images("fashion_mnist", root=tmp_path / "data", download=True)
    with pytest.raises(DataError, match="imagenet cannot be downloaded here"):
        load_images("imagenet", root=tmp_path / "data", limit=2, download=True)


# Folders of photographs


@pytest.fixture
def photos(tmp_path):
    for part, count in (("train", 5), ("val", 2)):
        for c in range(3):
            folder = tmp_path / "imagenet" / part / f"n{c:08d}"
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (300 + 10 * i, 260), (80 * c,) * 3).convert(
                    "RGB" if i else "L"
                ).save(folder / f"{i}.JPEG")
    return tmp_path


def test_imagenet_subset(photos):
    found = load_images("imagenet", "train", root=photos, limit=6)
    assert found.x.shape == (6, 3, 224, 224) and torch.bincount(found.y).tolist() == [2, 2, 2]
    torch.testing.assert_close(found.x.float().mean((1, 2, 3)), 80.0 * found.y, atol=1.5, rtol=0)
    assert (
        found.classes == [f"n{c:08d}" for c in range(3)]
        and len(load_images("imagenet", "test", root=photos, limit=6)) == 6
    )
    with pytest.raises(ValueError, match="has 15 images"):
        load_images("imagenet", root=photos, limit=16)
    with pytest.raises(ValueError, match="image_folder"):
        load_images("imagenet", root=photos)


def test_image_folder(photos):
    (photos / "imagenet").rename(photos / "mine")
    train, test = image_folder("mine", root=photos), image_folder("mine", "test", root=photos)
    assert (len(train), len(test)) == (15, 6) and train.class_to_idx == test.class_to_idx
    torch.manual_seed(0)
    assert train[0][0].shape == test[0][0].shape == (3, 224, 224)
    torch.testing.assert_close(
        test[-1][0].mean((1, 2)),
        (160 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225]),
        atol=0.02,
        rtol=0,
    )


def test_image_folder_faults(photos):
    broken = photos / "imagenet" / "val" / "n00000001" / "1.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DataError, match="n00000001/1.JPEG cannot be read"):
        load_images("imagenet", "test", root=photos, limit=6)
    (photos / "imagenet" / "val" / "n00000002").rename(photos / "imagenet" / "val" / "n00000009")
    with pytest.raises(DataError, match="different classes .*n00000002"):
        image_folder("imagenet", "test", root=photos)
    (photos / "flat" / "val").mkdir(parents=True)
    (photos / "flat" / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"")
    for name in ("flat", "nowhere"):
        with pytest.raises(DataError, match=f"{name}/train/<class>"):
            image_folder(name, "test", root=photos)


def test_photographs_of_16_bits_and_turned_ones(photos):
    folder = photos / "imagenet" / "train" / "n00000000"
    levels = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1300
    (folder / "deep.pgm").write_bytes(b"P5 8 6 65535\n" + levels.astype(">u2").tobytes())
    for name in ("deep.png", "deep.tiff"):
        Image.fromarray(levels).save(folder / name)
    for name in ("deep.png", "deep.tiff", "deep.pgm"):
        np.testing.assert_array_equal(
            np.asarray(images.read_photo(str(folder / name)))[..., 0], levels >> 8
        )
    Image.fromarray(levels.astype(np.float32)).save(folder / "float.tiff")
    with pytest.raises(DataError, match="float.tiff has levels of 32 bits"):
        images.read_photo(str(folder / "float.tiff"))
    upright = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees, clockwise
    upright.save(folder / "turned.png", exif=exif)
    np.testing.assert_array_equal(
        np.asarray(images.read_photo(str(folder / "turned.png")))[..., 1],
        np.rot90(np.asarray(upright), -1),
    )


def test_what_is_no_photograph_is_named(photos, monkeypatch):
    folder = photos / "imagenet"
    (folder / "a.JPEG").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match="a.JPEG cannot be read .*git lfs pull"):
        images.read_photo(str(folder / "a.JPEG"))
    with pytest.raises(DataError, match="none.png is missing"):
        images.read_photo(str(folder / "none.png"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="MAX_IMAGE_PIXELS"):
        images.read_photo(str(folder / "train" / "n00000000" / "0.JPEG"))


def test_no_message_advises_to_delete_a_file():
    folder = Path(images.__file__).parent
    files = [folder / "manifest.py", folder / "images.py", *folder.glob("readers/*.py")]
    text = "".join(file.read_text() for file in files)
    assert len(files) > 10
    assert "emove it" not in text.replace("remove or replace", "")


# Arguments


@pytest.mark.parametrize("call, message", [
    (lambda x, y: ImageSet(x.numpy(), y, ["a", "b"]), "x must be"), (lambda x, y: ImageSet(x, y.tolist(), ["a", "b"]), "y must be"), (lambda x, y: ImageSet(x, y, "ab"), "classes must be"), (lambda x, y: ImageSet(x, y, [0, 1]), "classes must be"),
    (lambda x, y: ImageSet(x, y, ["a", "b"], split=3), "split is 3"), (lambda x, y: ImageSet(x.to("meta"), y, ["a", "b"]), "x must be"), (lambda x, y: balanced_pick(y, 5), "count is 5"), (lambda x, y: balanced_pick(y, 2, -1), "seed is -1"),
    (lambda x, y: balanced_pick([0, 1], 1), "y is"), (lambda x, y: ImageSet(x[:0], y[:0], ["a"]).statistics(), "statistics"), (lambda x, y: ImageSet(x, y, ["a", "b"]).tensors("a", 1), "mean is"), (lambda x, y: image_folder(5), "name is 5"),
    (lambda x, y: image_folder("a", transform=3), "transform is 3"), (lambda x, y: image_folder("a", root=3), "root is 3"), (lambda x, y: load_images("digits", download="no"), "download is"), (lambda x, y: check_file("a", "123"), "md5 is"),
])  # fmt: skip
def test_wrong_arguments_of_sets(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))


@pytest.mark.parametrize(
    "arguments, said",
    [
        (
            dict(name="CIFAR10"),
            "choose one of digits, mnist, fashion_mnist, cifar10, cifar100, imagenet",
        ),
        (dict(name=None), "choose one of"),
        (dict(name="digits", split="validation"), "choose one of train, test"),
        *(
            (dict(name="digits", limit=limit), "from 1 to 1,297")
            for limit in (0, -1, 1298, True, 10.0, "10")
        ),
        (dict(name="digits", split="test", limit=501), "from 1 to 500"),
        (dict(name="cifar10", limit=50001), "from 1 to 50,000"),
    ],
)
def test_wrong_arguments_are_named_with_the_valid_ones(arguments, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        load_images(**arguments, root=tmp_path)


def test_wrong_sets_and_statistics():
    x, y = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    for wrong in (
        (x.float(), y, "ab"),
        (x[0], y, "ab"),
        (x, y[:3], "ab"),
        (x, y.int(), "ab"),
        (x, y, "a"),
        (x, y - 1, "ab"),
    ):
        with pytest.raises(DataError):
            ImageSet(*wrong)
    whole = ImageSet(x, y, ["a", "b"])
    for size in (0, 4, 5, -1, 0.0, 1.0, 0.01, 1.5, True, "2", None):
        with pytest.raises(ValueError, match="split_off"):
            whole.split_off(size)
    for statistics in ((0, None), (None, 1), (0, 0), (0, -1), (0, float("nan")), ([0, 0], [1, 1])):
        with pytest.raises(ValueError, match="tensors"):
            whole.tensors(*statistics)
    with pytest.raises(ValueError, match="above 0"):
        whole.tensors()  # constant images have no spread to divide by
    torch.testing.assert_close(whole.tensors(mean=0, std=1)[0], torch.zeros(4, 1, 2, 2))


# Parts


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(sum),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_balanced_pick_is_nested_fair_and_repeatable(counts, seed, data):
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
    large = data.draw(st.integers(1, len(y)))
    small = data.draw(st.integers(1, large))
    a, b = balanced_pick(y, large, seed), balanced_pick(y, small, seed)
    assert len(a) == large and len(set(a.tolist())) == large and a.tolist() == sorted(a.tolist())
    assert set(b.tolist()) <= set(a.tolist()) and torch.equal(a, balanced_pick(y, large, seed))
    if len({c for c in counts if c}) == 1:  # equal classes: equal parts, up to one
        got = torch.bincount(y[a], minlength=len(counts))[torch.tensor(counts) > 0]
        assert got.max() - got.min() <= 1


@given(size=st.one_of(st.integers(1, 59), st.floats(0.02, 0.98)), seed=st.integers(0, 99))
def test_split_off_is_a_partition(size, seed):
    whole = ImageSet(
        torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1), torch.arange(60) % 3, ["a", "b", "c"]
    )
    rest, held = whole.split_off(size, seed)
    together = torch.cat([rest.x, held.x]).flatten()
    assert sorted(together.tolist()) == list(range(60)) and len(held) == (
        size if isinstance(size, int) else round(size * 60)
    )
    assert (rest.split, held.split) == ("train", "valid")
    counts = torch.bincount(held.y, minlength=3)
    assert counts.max() - counts.min() <= 1


def test_limits_are_balanced_and_nested(tmp_path, record):
    make_mnist("mnist", tmp_path, record)
    whole = load_images("mnist", root=tmp_path)
    small, large = (
        load_images("mnist", root=tmp_path, limit=7),
        load_images("mnist", root=tmp_path, limit=23),
    )
    rows = [{bytes(image.numpy()) for image in part.x} for part in (small, large, whole)]
    assert [len(r) for r in rows] == [7, 23, 40] and rows[0] < rows[1] < rows[2]
    assert torch.equal(load_images("mnist", root=tmp_path, limit=40).x, whole.x)


# The real thing


@pytest.mark.data
def test_real_fashion_mnist():
    folder = data_root() / "FashionMNIST" / "raw"
    if not folder.is_dir():
        pytest.skip(
            f"no {folder}: set NEUROBRIDGE_DATA, or load_images('fashion_mnist', download=True)"
        )
    before = snapshot(data_root() / "FashionMNIST")
    train, test = load_images("fashion_mnist"), load_images("fashion_mnist", "test")
    assert train.x.shape == (60000, 1, 28, 28) and test.x.shape == (10000, 1, 28, 28)
    assert (
        torch.bincount(train.y).tolist() == [6000] * 10
        and torch.bincount(test.y).tolist() == [1000] * 10
    )
    torch.testing.assert_close(
        train.statistics(), (torch.tensor([0.2860]), torch.tensor([0.3530])), atol=1e-4, rtol=0
    )  # as widely used
    assert train.y[:5].tolist() == [9, 0, 0, 3, 0] and train.classes[9] == "Ankle boot"
    assert torch.bincount(load_images("fashion_mnist", limit=10000).y).tolist() == [1000] * 10
    assert snapshot(data_root() / "FashionMNIST") == before


def test_numbers_in_names_of_classes_count_as_numbers(tmp_path):
    "As event sets count them, so that an ANN's labels are the spiking network's."
    for name in ("0", "1", "2", "10"):
        (tmp_path / "own/train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "own/train" / name / "a.png")
    found = image_folder("own", "train", tmp_path)
    assert found.classes == ["0", "1", "2", "10"] and {
        Path(path).parent.name: label for path, label in found.samples
    } == {"0": 0, "1": 1, "2": 2, "10": 3}
    assert (
        found.targets == [label for _, label in found.samples]
        and found.class_to_idx["10"] == 3
        and found[3][1] == found.targets[3]
    )
