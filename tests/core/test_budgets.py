"""Files that claim too much, unfold without end or point outside: named and left alone before memory is taken or a file opened."""

import gzip
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from neurobridge.core import fit, load_checkpoint, load_network, save_checkpoint, save_network
from neurobridge.core.archives import (
    ClaimError,
    _check_weights,
    check_hdf5,
    hdf5_part,
    load_weights,
    npz_arrays,
    read_within,
)
from neurobridge.core.files import UnsafeFile
from neurobridge.cornet import cornet_z, load_official
from neurobridge.data import (
    DataError,
    EventDataset,
    convert_images,
    from_assembly,
    image_folder,
    images,
    iter_events,
    load_es,
    load_ucf,
    read_brainio,
    read_events,
    read_video,
    to_frames,
)
from neurobridge.data.es_imagenet import authors_view

MB = 10**6


def taken(call, *given, **named):
    "The error of a call, and the most memory that Python and NumPy held on the way."
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, OSError)) as caught:
            call(*given, **named)
        return str(caught.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def bounded(code, megabytes=1500):
    "Run code in a process that may take no more address space than it has after the imports and this much; return what it printed."
    start = f"""
import resource, sys, torch, numpy
from neurobridge.core import load_checkpoint
from neurobridge.cornet import cornet_z, load_official
from neurobridge.data import iter_events, read_events
import lz4.frame, zstandard, h5py
has = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (has + {megabytes} * 2**20,) * 2)
"""
    done = subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Arrays in a zip


def test_random_damage_is_named():
    "Some bytes of a packed npz are exchanged, or its end is cut: arrays, or one kind of error."
    file, chance, found = io.BytesIO(), random.Random(0), set()
    np.savez_compressed(file, pos=np.zeros((50, 3), np.uint8), neg=np.ones((9, 3), np.uint8))
    for _ in range(3000):
        damaged = bytearray(file.getvalue())
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        if chance.random() < 0.2:
            del damaged[chance.randrange(len(damaged)) :]
        try:
            npz_arrays(io.BytesIO(damaged), ("pos", "neg"), MB)
            found.add("read")
        except ClaimError as error:
            found.add(str(error).partition(" (")[0])
    assert {"read", "it is cut off, damaged or no npz"} <= found


def npy(shape, kind="|u1", data=b""):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": kind, "fortran_order": False, "shape": shape}
    )
    return head.getvalue() + data


def zeros_npz(path, method, count=4 * MB):
    with zipfile.ZipFile(path, "w", method) as package:
        for name in ("t", "x", "y", "p", "pos", "neg", "arr_0"):
            package.writestr(f"{name}.npy", npy((count,)) + bytes(count))
    return path


READERS = {"read_events": read_events, "iter_events": lambda path, **named: next(iter_events(path, sensor=(9, 9), **named)),
           "load_es": load_es, "load_ucf": load_ucf, "authors_view": lambda path, **named: authors_view(path, (20, 20), **named)}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_small_zip_that_unfolds_without_end(tmp_path, reader, method):
    path = zeros_npz(tmp_path / "a.npz", method)
    assert path.stat().st_size < 200_000
    message, most = taken(READERS[reader], path)
    assert (
        str(path) in message and "packed in a way that NumPy does not use" in message and most < MB
    )


@pytest.mark.parametrize("reader", READERS)
def test_arrays_that_claim_more_than_the_budget(tmp_path, reader):
    path = zeros_npz(tmp_path / "a.npz", zipfile.ZIP_DEFLATED)
    message, most = taken(READERS[reader], path, max_bytes=MB)
    assert (
        str(path) in message
        and "one file may take; if you trust it, pass max_bytes=" in message
        and most < MB
    )


def test_the_environment_sets_the_budget(tmp_path, monkeypatch):
    path = zeros_npz(tmp_path / "a.npz", zipfile.ZIP_DEFLATED, MB)
    monkeypatch.setenv("NEUROBRIDGE_MAX_BYTES", "1000")
    with pytest.raises(DataError, match="more than the 1,000 that one file may take"):
        load_ucf(path)


def test_an_array_of_a_shape_that_is_not_there(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as package:
        package.writestr("arr_0.npy", npy((10**12,)))
    for reader in (load_ucf, lambda path: npz_arrays(path, ["arr_0"], 10**15)):
        with pytest.raises(ValueError, match="claims shape"):
            reader(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as package:
        package.writestr("arr_0.npy", npy((-1, -8), data=bytes(8)))
    with pytest.raises(ValueError, match="claims shape"):
        npz_arrays(tmp_path / "a.npz", ["arr_0"], MB)


def test_a_table_of_contents_that_says_less_than_unfolds(tmp_path):
    path, size = tmp_path / "a.npz", 50 * MB
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        package.writestr("arr_0.npy", npy((2, 1, 4, 4), data=bytes(size)))
    real = struct.pack("<I", len(npy((2, 1, 4, 4))) + size)
    path.write_bytes(
        path.read_bytes().replace(real, struct.pack("<I", len(npy((2, 1, 4, 4))) + 32))
    )
    message, most = taken(load_ucf, path)
    assert "a.npz" in message and most < 5 * MB


def test_entries_that_overlap(tmp_path):
    "Every entry of the table is the same bytes: a zip of a zip, without the nesting."
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("t.npy", npy((MB,)) + bytes(MB))
    content = package.getvalue()
    start = content.index(b"PK\x01\x02")
    entry, end = (
        content[start : content.index(b"PK\x05\x06")],
        content[content.index(b"PK\x05\x06") :],
    )
    table = b"".join(entry.replace(b"t.npy", name + b".npy") for name in (b"t", b"x", b"y", b"p"))
    (tmp_path / "a.npz").write_bytes(
        content[:start] + table + end[:8] + struct.pack("<HHI", 4, 4, len(table)) + end[16:]
    )
    message, most = taken(read_events, tmp_path / "a.npz", max_bytes=3 * MB)
    assert "one file may take" in message and most < MB
    with pytest.raises(DataError):
        read_events(tmp_path / "a.npz")


def test_one_polarity_everywhere_is_many_events(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", np.ones((2, 30, 256, 342), np.uint8))
    message, most = taken(load_ucf, tmp_path / "a.npz", max_bytes=20 * MB)
    assert "more than the 20,000,000 that one file may take" in message and most < 20 * MB
    np.savez_compressed(
        tmp_path / "b.npz", pos=np.ones((MB, 3), np.uint8), neg=np.ones((0, 3), np.uint8)
    )
    message, most = taken(load_es, tmp_path / "b.npz", max_bytes=4 * MB)
    assert "takes 13,000,000" in message and most < 10 * MB


# Recordings


def dat(path, height, width, events=((5, 7 | 9 << 14),)):
    path.write_bytes(
        f"% Version 2\n% Height {height}\n% Width {width}\n".encode()
        + bytes([12, 8])
        + np.array(events, "<u4").tobytes()
    )
    return path


def test_a_sensor_that_no_camera_has(tmp_path):
    path = dat(tmp_path / "a.dat", 32768, 32768)
    assert path.stat().st_size < 60
    for reader in (
        read_events,
        lambda path: next(iter_events(path)),
        lambda path: EventDataset([(path, 0)]),
    ):
        with pytest.raises(
            DataError,
            match=r"a.dat: it claims a sensor of 32768×32768 .*give sensor=\(32768, 32768\)",
        ):
            reader(path)
    assert (
        read_events(path, sensor=(10, 8)).width == 8
        and read_events(path, sensor=(32768, 32768)).width == 32768
    )
    far = tmp_path / "far.dat"
    far.write_bytes(
        b"% Version 2\n" + bytes([12, 8]) + np.array([[5, 16383 | 16383 << 14]], "<u4").tobytes()
    )
    with pytest.raises(DataError, match="claims a sensor of 16384×16384"):
        read_events(far)
    np.savez_compressed(tmp_path / "u.npz", np.zeros((2, 1, 8192, 8192), np.uint8))
    with pytest.raises(DataError, match="claims a sensor of 8192×8192"):
        load_ucf(tmp_path / "u.npz")
    assert to_frames(read_events(dat(tmp_path / "b.dat", 4096, 4096)), steps=1).shape[-1] == 4096


def test_more_events_than_the_budget_are_read_in_pieces(tmp_path):
    t = np.arange(300_000)
    path = dat(tmp_path / "a.dat", 10, 8, np.stack([t, 0 * t], 1))
    with pytest.raises(
        DataError, match="more than the 1,000,000 bytes .*iter_events reads them in pieces"
    ):
        read_events(path, max_bytes=MB)
    assert sum(len(piece) for piece in iter_events(path, chunk=50_000, max_bytes=MB)) == 300_000
    with pytest.raises(DataError, match="give a smaller chunk"):
        list(iter_events(path, chunk=200_000, max_bytes=MB))
    assert len(read_events(path)) == 300_000


def flat(count, beside=0):
    "A flatbuffer of an event packet, with bytes that are no events."
    body = (
        struct.pack("<I", 16)
        + b"EVTS"
        + struct.pack("<HHHH", 6, 8, 4, 0)
        + struct.pack("<iI", 8, 4)
    )
    body += (
        struct.pack("<I", count)
        + b"".join(struct.pack("<qhhB3x", i, 1, 1, 1) for i in range(count))
        + bytes(beside)
    )
    return struct.pack("<I", len(body)) + body


def aedat4(path, packets, method):
    xml = b"<dv><node name='outInfo'><node name='0'><attr key='typeIdentifier'>EVTS</attr><attr key='sizeX'>8</attr><attr key='sizeY'>8</attr></node></node></dv>"
    fields = struct.pack("<HHHHH", 10, 20, 4, 8, 16)
    head = (
        struct.pack("<I", 20)
        + b"IOHE"
        + fields
        + b"\0\0"
        + struct.pack("<iiqI", 12, method, -1, 4)
        + struct.pack("<I", len(xml))
        + xml
    )
    path.write_bytes(
        b"#!AER-DAT4.0\r\n"
        + struct.pack("<I", len(head))
        + head
        + b"".join(struct.pack("<ii", 0, len(p)) + p for p in packets)
    )
    return path


def packed(data, method):
    if method == 1:
        import lz4.frame

        return lz4.frame.compress(data, compression_level=9)
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.long
@pytest.mark.parametrize("method", [1, 3])
def test_packets_of_zeros_and_one_event(tmp_path, method):
    packet = packed(flat(1, 30 * MB), method)
    path = aedat4(tmp_path / "a.aedat4", [packet] * 50, method)  # 1.5 GB
    assert path.stat().st_size < 25 * MB
    found = bounded(
        f"""
for reader in (read_events, lambda path: next(iter_events(path))):
    try: print(len(reader({str(path)!r})))
    except ValueError as error: print(error)
""",
        600,
    )
    assert found.count("a.aedat4: a packet of 1 events unfolds into 30,000") == 2
    good = aedat4(tmp_path / "good.aedat4", [packed(flat(3), method)], method)
    assert len(read_events(good)) == 3 and len(next(iter_events(good))) == 3


def test_a_packet_that_unfolds_past_the_budget(tmp_path):
    for method in (1, 3):
        path = aedat4(tmp_path / "a.aedat4", [packed(flat(1, 30 * MB), method)], method)
        message, most = taken(read_events, path, max_bytes=MB)
        assert "unfolds into more than 1,000,000 bytes" in message and most < 5 * MB


def test_a_frame_that_lies_about_its_content(tmp_path):
    "Zstandard and LZ4 say first how much they hold: neither is believed."
    import lz4.frame
    import zstandard

    false = bytearray(zstandard.ZstdCompressor().compress(flat(3)))
    wrong = [
        bytes(false[:4]) + b"\xa0" + struct.pack("<I", 2**32 - 1) + bytes(false[6:]),
        lz4.frame.compress(flat(3), content_checksum=True)[:6] + b"\xff" * 8,
    ]
    for method, data in zip((3, 1), wrong, strict=True):
        message, most = taken(read_events, aedat4(tmp_path / "a.aedat4", [data], method))
        assert "a.aedat4" in message and most < 150 * MB


# HDF5


def hdf5(path, **parts):
    with h5py.File(path, "w") as book:
        for name, value in (
            {"t": [1, 2, 3], "x": [0, 1, 2], "y": [0, 1, 2], "p": [0, 1, 0]} | parts
        ).items():
            if callable(value):
                value(book, name)
            else:
                book[f"events/{name}"] = np.asarray(value)
    return path


def external_link(secret):
    return lambda book, name: book.require_group("events").__setitem__(
        name, h5py.ExternalLink(str(secret), "/secret")
    )


def external_storage(secret):
    return lambda book, name: book.create_dataset(
        f"events/{name}", (3,), "i8", external=[(str(secret), 0, 24)]
    )


def soft_link(secret):
    def write(book, name):
        book["away"] = h5py.ExternalLink(str(secret), "/secret")
        book.require_group("events")[name] = h5py.SoftLink("/away")

    return write


def virtual(secret):
    def write(book, name):
        layout = h5py.VirtualLayout((3,), "i8")
        layout[:] = h5py.VirtualSource(str(secret), "secret", (3,))
        book.create_virtual_dataset(f"events/{name}", layout)

    return write


def nested(secret):
    def write(book, name):
        between = Path(secret).with_name("between.h5")
        with h5py.File(between, "w") as other:
            layout = h5py.VirtualLayout((3,), "i8")
            layout[:] = h5py.VirtualSource(str(secret), "secret", (3,))
            other.create_virtual_dataset("secret", layout)
        virtual(between)(book, name)

    return write


WAYS = [external_link, external_storage, soft_link, virtual, nested]


@pytest.fixture
def secret(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as book:
        book["secret"] = np.array([7, 8, 9])
    return tmp_path / "secret.h5"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("part", ["t", "p"])
def test_recordings_that_lie_in_another_file(tmp_path, secret, way, part):
    path = hdf5(tmp_path / "a.h5", **{part: way(secret)})
    for reader in (read_events, lambda path: next(iter_events(path, sensor=(9, 9)))):
        with pytest.raises(DataError, match=r"a.h5: its .*(is a link|lies in another file)"):
            reader(path)
    hdf5(tmp_path / "b.h5")
    with h5py.File(tmp_path / "b.h5", "a") as book:
        del book["events"]
        book["events"] = h5py.ExternalLink(str(path), "/events")
    with pytest.raises(DataError, match="events is a link into another file"):
        read_events(tmp_path / "b.h5")


@pytest.mark.parametrize("way", WAYS)
def test_assemblies_and_graphs_that_lie_in_another_file(tmp_path, secret, way):
    path = hdf5(tmp_path / "a.nc", t=way(secret))
    with pytest.raises(DataError, match=r"a.nc can't be read.*(is a link|lies in another file)"):
        read_brainio(path)
    pytest.importorskip("nir")
    from neurobridge.snn import read_nir

    with pytest.raises(
        ValueError, match=r"read_nir: .*a.nc can't be read.*(is a link|lies in another file)"
    ):
        read_nir(path)


def test_an_offset_in_another_file(tmp_path, secret):
    hdf5(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as book:
        book["t_offset"] = h5py.ExternalLink(str(secret), "/secret")
    with pytest.raises(DataError, match="t_offset is a link into another file"):
        read_events(tmp_path / "a.h5")


def test_a_link_to_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        DataError, match="is a link into another file"
    ):  # without waiting for a writer
        read_events(hdf5(tmp_path / "a.h5", t=external_link(tmp_path / "pipe")))


def test_one_chunk_is_unfolded_once(tmp_path, monkeypatch):
    n = 1_000_000
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as book:
        for name, kind in (("t", "i8"), ("x", "i2"), ("y", "i2"), ("p", "i1")):
            book.create_dataset(
                f"events/{name}", data=np.zeros(n, kind), chunks=(n,), compression="gzip"
            )
    reads, read = [], h5py.Dataset.__getitem__
    monkeypatch.setattr(
        h5py.Dataset,
        "__getitem__",
        lambda self, at, **named: (reads.append(at), read(self, at, **named))[1],
    )
    assert len(read_events(path)) == n and len(reads) == 4
    message, most = taken(read_events, path, max_bytes=MB)
    assert (
        "pieces of 1,000,000 events" in message and "one file may take" in message and most < 5 * MB
    )


def test_assemblies_that_claim_too_much(tmp_path):
    with h5py.File(tmp_path / "a.nc", "w") as book:
        book.create_dataset("data", (2 * 10**9,), "i1", chunks=(10**6,), compression="gzip")
    message, most = taken(read_brainio, tmp_path / "a.nc")
    assert (
        "a.nc can't be read as netCDF: its content takes 16,000,000,000 bytes" in message
        and most < 20 * MB
    )
    with h5py.File(tmp_path / "b.nc", "w") as book:
        book.create_dataset(
            "data", (1,), "i1", chunks=(3 * 10**9,), maxshape=(None,), compression="gzip"
        )
    assert "takes 3,000,000,000 bytes" in taken(read_brainio, tmp_path / "b.nc")[0]


def test_a_long_text_in_many_places(tmp_path):
    with h5py.File(tmp_path / "a.nc", "w") as book:
        book.create_dataset("names", data=["a" * 10_000] * 2000, dtype=h5py.string_dtype())
    with h5py.File(tmp_path / "a.nc") as book:
        check_hdf5(book, 30 * MB)
        with pytest.raises(ValueError, match="one file may take"):
            check_hdf5(book, 10 * MB)


def test_groups_in_a_circle(tmp_path):
    with h5py.File(tmp_path / "a.nc", "w") as book:
        book.create_group("a")["again"] = book["/"]
    with (
        h5py.File(tmp_path / "a.nc") as book,
        pytest.raises(ValueError, match="stands in two places"),
    ):
        check_hdf5(book, MB)


def test_one_stimulus_of_many_repeats(tmp_path):
    import xarray

    n = 20_000
    seen = ["one"] * n + [f"s{i}" for i in range(n)]
    made = xarray.DataArray(
        np.zeros((2 * n, 1), "f4"),
        dims=["presentation", "neuroid"],
        coords={"stimulus_id": ("presentation", seen)},
    )
    message, most = taken(from_assembly, made)
    assert "takes 3,200,160,000 bytes" in message and most < 50 * MB


def test_a_graph_of_a_giant_input():
    nir = pytest.importorskip("nir")
    from neurobridge.snn import from_nir

    size = np.array([10**10])
    graph = nir.NIRGraph(
        {"in": nir.Input(size), "flat": nir.Flatten({"input": size}), "out": nir.Output(size)},
        [("in", "flat"), ("flat", "out")],
        type_check=False,
    )
    with pytest.raises(
        ValueError,
        match=r"from_nir: .*\(10000000000,\); one item of it needs too much: 40,000,000,000",
    ):
        from_nir(graph)


def test_a_part_that_is_not_there(tmp_path):
    with h5py.File(hdf5(tmp_path / "a.h5")) as book:
        assert (
            hdf5_part(book, "events/t/deeper") is None
            and hdf5_part(book, "none/of/it") is None
            and hdf5_part(book, "/") is book
        )


# Checkpoints


def zipped(pickled, **storages):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in {
            "data.pkl": pickled,
            "version": b"3\n",
            "byteorder": b"little",
        } | storages:
            archive.writestr(f"archive/{name}", data)
    return made.getvalue()


def saved(value, new=True):
    torch.save(value, made := io.BytesIO(), _use_new_zipfile_serialization=new)
    return made.getvalue()


def changed(content, old, new):
    "The same archive, with checksums, after a change of its pickle."
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(made, "w") as other:
        for part in archive.infolist():
            data = archive.read(part)
            if part.filename.endswith("data.pkl"):
                assert old in data
                data = data.replace(old, new)
            other.writestr(part.filename, data)
    return made.getvalue()


class Calls:
    def __init__(self, function, *given):
        self.made = function, given

    def __reduce__(self):
        return self.made


def doubled(times):
    import _codecs

    value = Calls(_codecs.encode, "a" * 1000, "latin1")
    for _ in range(times):
        value = Calls(_codecs.encode, value, "hex")
    return value


SIZE = b"K\x4d\x85", b"J\x00\xca\x9a\x3b\x85"  # 77 elements -> a thousand million
BOMBS = {
    "a size": lambda new: (
        changed(saved({"a": torch.zeros(77)}), *SIZE)
        if new
        else saved({"a": torch.zeros(77)}, False).replace(*SIZE)
    ),
    "bytearray": lambda new: saved({"a": Calls(bytearray, 4 * 10**9)}, new),
    "a tensor": lambda new: saved({"a": Calls(torch.Tensor, 10**9)}, new),
    "hexadecimal": lambda new: saved({"a": doubled(24)}, new),
    "a view": lambda new: saved({"a": torch.zeros(1).expand(10**9)}, new),
    "copies": lambda new: saved({i: Calls(torch.Size, GREAT) for i in range(300)}, new),
}
GREAT = tuple(range(200_000))


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("bomb", BOMBS)
def test_checkpoints_that_claim_too_much(tmp_path, bomb, new):
    content = BOMBS[bomb](new)
    assert len(content) < 4 * MB
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    model = cornet_z(width=4, classes=3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    message, most = taken(load_official, model, path)
    assert (
        message.startswith(f"load_official: {path} is not opened: ")
        and "weights_only" not in message
        and most < 100 * MB
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_checkpoint_in_bounded_memory(tmp_path):
    import hashlib

    from neurobridge.core.checkpoints import _MAGIC

    content = changed(saved({"a": torch.zeros(77)}), *SIZE)
    (tmp_path / "a.pt").write_bytes(_MAGIC + hashlib.sha256(content).digest() + content)
    found = bounded(
        f"try: print(load_checkpoint({str(tmp_path / 'a.pt')!r}))\nexcept ValueError as error: "
        "print(error)"
    )
    assert "a tensor claims the size (1000000000,), of a storage of 308 bytes" in found


def test_a_storage_that_is_not_there():
    with pytest.raises(ValueError, match="its storages claim"):
        load_weights(
            saved({"a": torch.zeros(77)}, False).replace(b"K\x4dNt", b"J\x00\xca\x9a\x3bNt"), 10**12
        )


def test_archives_that_are_not_what_they_say():
    content = saved({"a": torch.zeros(300)})
    twice, packed_, foreign = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    top = next(iter(parts)).split("/")[0]
    with zipfile.ZipFile(twice, "w") as made:
        for name, data in {**parts, f"{top}/DATA.pkl": b"N."}.items():
            made.writestr(name, data)
    with zipfile.ZipFile(packed_, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in parts.items():
            made.writestr(name, data)
    with zipfile.ZipFile(foreign, "w") as made:
        for name, data in {"other/data.pkl": b"N.", **parts}.items():
            made.writestr(name, data)
    for wrong, reason in (
        (twice, "parts are not those"),
        (packed_, "more memory than it has bytes"),
        (foreign, "parts are not those"),
    ):
        with pytest.raises(ValueError, match=reason):
            load_weights(wrong.getvalue(), MB)
    with tarfile.open(fileobj=(made := io.BytesIO()), mode="w") as tar:
        tar.addfile(tarfile.TarInfo("pickle"))
    for wrong in (
        made.getvalue(),
        b"",
        content[:-30],
        pickle.dumps({"a": 1}, 4),
        b"\x80\x05\x96" + b"\xff" * 8,
    ):
        with pytest.raises(ValueError, match="cut off"):
            load_weights(wrong, MB)


@pytest.mark.parametrize("new", [True, False])
def test_every_kind_of_checkpoint_passes(new):
    import argparse
    from collections import OrderedDict

    parameter = nn.Parameter(torch.ones(3))
    parameter.note = "kept"
    values = [torch.zeros(3, 4).T, torch.zeros(5)[2:], torch.tensor(1.0), torch.zeros(0), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.complex64),
              torch.zeros(2, dtype=torch.uint16), parameter, nn.Parameter(torch.ones(2)), torch.eye(3).to_sparse(), b"bytes", {1, 2}, 3 + 4j, None, "text", 2**100, -1.5,
              torch.Size([1, 2]), torch.float16, torch.device("cpu"), OrderedDict(a=1), argparse.Namespace(a=1, b="c"), (1,), [[]], {}, {(1, 2): "tuple"}, True]  # fmt: skip
    for value in values:
        _check_weights(saved({"a": value, "b": [value]}, new), MB)
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.LSTM(2, 2))
    optimizer = torch.optim.Adam(net.parameters())
    _check_weights(saved({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, new), MB)


def test_budgets_of_checkpoints_and_networks(tmp_path):
    save_checkpoint(tmp_path / "a.pt", {"a": torch.zeros(1000)})
    assert load_checkpoint(tmp_path / "a.pt", max_bytes=10_000)["a"].shape == (1000,)
    with pytest.raises(ValueError, match=r"load_checkpoint: .*a.pt: its content takes"):
        load_checkpoint(tmp_path / "a.pt", max_bytes=100)
    save_network(nn.Linear(3, 2), tmp_path / "net")
    with pytest.raises(ValueError, match=r"load_network: .*net: its content takes"):
        load_network(tmp_path / "net", max_bytes=100)
    with open(tmp_path / "hole", "wb") as file:
        file.truncate(10**11)
    for reader in (
        load_checkpoint,
        load_network,
        lambda path: load_official(cornet_z(width=4, classes=3), path),
    ):
        message, most = taken(reader, tmp_path / "hole")
        assert "hole" in message and "takes 100,000,000,000 bytes" in message and most < 20 * MB


def test_a_giant_header_of_safetensors(tmp_path):
    length = 150 * MB
    with open(tmp_path / "net", "wb") as file:
        file.write(struct.pack("<Q", length))
        file.truncate(8 + length)
    message, _ = taken(load_network, tmp_path / "net")
    assert "its header has 150,000,000 bytes" in message
    (tmp_path / "net").write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(ValueError, match="ends too early"):
        load_network(tmp_path / "net")


def test_a_training_resumes_above_the_budget(tmp_path, monkeypatch):
    data = torch.randn(8, 40), torch.arange(8) % 2
    fit(nn.Linear(40, 2), data, epochs=1, lr=0.1, checkpoint=tmp_path / "a.pt")
    monkeypatch.setenv("NEUROBRIDGE_MAX_BYTES", "1000")
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="belongs to another training"):  # was read, then
        fit(nn.Linear(40, 2), data, epochs=2, lr=0.1, checkpoint=tmp_path / "a.pt")


# Weights that can't be copied


@pytest.mark.parametrize(
    "wrong",
    [
        lambda v: v.to_sparse(),
        lambda v: v.to(torch.complex64),
        lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8),
        lambda v: v.to("meta"),
    ],
)
def test_a_failure_changes_no_weight(wrong):
    model, other = cornet_z(width=4, classes=3), cornet_z(width=4, classes=3)
    state = dict(other.state_dict())
    last = [key for key in state if state[key].ndim > 1][-1]
    state[last] = wrong(state[last])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=last.replace(".", r"\.")):
        load_official(model, state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_no_advice_to_read_without_protection(tmp_path):
    import traceback

    torch.save({"state_dict": Calls(os.getcwd)}, tmp_path / "a.pth")
    try:
        load_official(cornet_z(width=4, classes=3), tmp_path / "a.pth")
    except ValueError as error:
        assert "weights_only" not in "".join(traceback.format_exception(error))
    else:
        pytest.fail("it was opened")


# Pictures, idx files, videos


def eps(path, mark):
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n8 8 scale\n%%EOF\n"
    )
    return path


@pytest.fixture
def no_programs(monkeypatch):
    started = []
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda *given, **named: started.append(given) or (_ for _ in ()).throw(OSError("started")),
    )
    yield
    assert not started


@pytest.mark.parametrize("kind", ["eps", "fits", "ico", "pcx"])
def test_pictures_of_a_format_that_was_not_meant(tmp_path, kind, no_programs):
    place = tmp_path / "mine" / "train" / "a"
    place.mkdir(parents=True)
    if kind == "eps":
        eps(place / "x.png", tmp_path)
    elif kind == "fits":
        (place / "x.png").write_bytes(
            b"SIMPLE  =                    T".ljust(80)
            + b"BITPIX  =                    8".ljust(80)
            + b"NAXIS   =                    0".ljust(80)
            + b"END".ljust(2640)
        )
    else:
        Image.new("RGB", (8, 8)).save(place / "x.png", kind)
    with pytest.raises(
        DataError, match=r"x\.png cannot be read as an image.*of another format than JPEG, PNG"
    ):
        image_folder("mine", root=tmp_path)[0]
    table = convert_images(tmp_path / "mine", tmp_path / "out", workers=1, progress=False)
    assert table.status.tolist() == ["unreadable"]
    from neurobridge.brain.activations import _Pictures

    with pytest.raises(DataError, match="look_at: .*x.png cannot be read"):
        _Pictures([place / "x.png"], lambda x: x)[0]


def test_pictures_of_too_many_pixels(tmp_path):
    place = tmp_path / "mine" / "train" / "a"
    place.mkdir(parents=True)
    Image.new("1", (10_000, 10_000)).save(place / "x.png")
    assert (place / "x.png").stat().st_size < 50_000
    message, most = taken(image_folder("mine", root=tmp_path).__getitem__, 0)
    assert "x.png" in message and "100,000,000 pixels, more than the" in message and most < 20 * MB
    Image.new("1", (2000, 2000)).save(place / "x.png")
    message, most = taken(image_folder("mine", root=tmp_path, max_bytes=MB).__getitem__, 0)
    assert "x.png" in message and "its content takes 16,000,000 bytes" in message and most < MB


@pytest.mark.parametrize("links", [["."], [".", "."], ["../.."], ["../b", "../b"]])
def test_links_that_lead_back(tmp_path, links):
    for kind in ("a", "b"):
        (tmp_path / "mine" / "train" / kind).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "mine" / "train" / kind / "x.png")
    for i, to in enumerate(links):
        (tmp_path / "mine" / "train" / "a" / f"link{i}").symlink_to(to)
    with pytest.raises(DataError, match="link0|link1"):
        image_folder("mine", root=tmp_path)
    for link in (tmp_path / "mine" / "train" / "a").glob("link*"):
        link.unlink()
    (tmp_path / "c").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "c" / "x.png")
    (tmp_path / "mine" / "train" / "c").symlink_to(
        tmp_path / "c"
    )  # a class that lies elsewhere is nothing bad
    assert image_folder("mine", root=tmp_path).classes == ["a", "b", "c"]


def test_a_pipe_among_pictures_and_recordings(tmp_path):
    (tmp_path / "mine" / "train" / "a").mkdir(parents=True)
    os.mkfifo(tmp_path / "mine" / "train" / "a" / "x.png")
    with pytest.raises(DataError, match=r"x\.png .*named pipe"):
        image_folder("mine", root=tmp_path)[0]
    os.mkfifo(tmp_path / "x.npz")
    for reader in (read_events, load_es, load_ucf, read_video, read_brainio):
        with pytest.raises(DataError, match="pipe|no file"):
            reader(tmp_path / "x.npz")
    for reader in (load_checkpoint, load_network, lambda path: read_within(path, 10)):
        with pytest.raises((UnsafeFile, FileNotFoundError)):
            reader(tmp_path / "x.npz")


def test_idx_files_that_claim_too_much(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(struct.pack(">HBBII", 0, 8, 2, 10**5, 10**5) + bytes(100)))
    message, most = taken(images._read_idx, path, 2**31)
    assert "a.gz: its content takes 10,000,000,000 bytes" in message and most < MB
    path.write_bytes(gzip.compress(struct.pack(">HBBI", 0, 8, 1, 5) + bytes(50 * MB)))
    message, most = taken(images._read_idx, path, 2**31)
    assert "a.gz is not a whole idx file" in message and most < 5 * MB


def write_video(path, frames, size):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = size, size, "yuv420p"
        for _ in range(frames):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.zeros((size, size, 3), np.uint8)))
            )
        container.mux(stream.encode())
    return path


def test_videos_that_take_too_much(tmp_path):
    path = write_video(tmp_path / "a.mp4", 12, 512)
    message, most = taken(read_video, path, count=None, max_bytes=2 * MB)
    assert (
        "a.mp4: its content takes 9,437,184 bytes" in message
        and "a smaller count or size takes less" in message
        and most < 2 * MB
    )
    assert read_video(path, count=2, max_bytes=2 * MB).shape == (2, 512, 512, 3)
    assert "takes 786,432 bytes" in taken(read_video, path, count=1, size=(4, 4), max_bytes=1000)[0]


@pytest.mark.parametrize(
    "list_",
    [
        "ffconcat version 1.0\nfile other.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n",
    ],
)
def test_lists_of_other_films(tmp_path, list_):
    write_video(tmp_path / "other.mp4", 3, 16)
    (tmp_path / "a.mp4").write_text(list_)
    with pytest.raises(DataError, match=r"a\.mp4 can't be read as a video"):
        read_video(tmp_path / "a.mp4")


# Lists and names


@pytest.mark.parametrize("name", ["../secret.npz", "a/../../secret.npz", "{}/secret.npz"])
def test_lists_of_labels_stay_in_their_folder(tmp_path, name):
    from neurobridge.data import Events, save_es

    (tmp_path / "set").mkdir()
    for place in (tmp_path / "secret.npz", tmp_path / "set" / "good.npz"):
        save_es(place, Events([1], [3], [3], [1], 256, 256))
    (tmp_path / "set" / "trainlabel.txt").write_text(
        f"good.npz 0 200 200\n{name.format(tmp_path)} 0 200 200\n"
    )
    with pytest.raises(
        DataError, match="trainlabel.txt, line 2 names .*outside of the set's folder"
    ):
        EventDataset(tmp_path / "set" / "trainlabel.txt")


def test_names_with_line_breaks(tmp_path):
    place = tmp_path / "mine" / "train" / "a"
    place.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(place / "x\n7 0 1 1.png")
    with pytest.raises(DataError, match=r"contains 'x\\n7 0 1 1\.png', a name with a line break"):
        convert_images(tmp_path / "mine", tmp_path / "out", workers=1, progress=False)
    assert not (tmp_path / "out").exists()


def test_a_manifest_of_no_names(tmp_path):
    dat(tmp_path / "x.dat", 10, 10)
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "x.dat").rename(tmp_path / "set" / "a" / "x.dat")
    (tmp_path / "set" / "manifest.json").write_text(
        json.dumps({"made_by": "neurobridge convert_videos", "classes": 5})
    )
    with pytest.raises(DataError, match=r"manifest.json: classes is 5; expected a list of names"):
        EventDataset(tmp_path / "set")


def test_a_budget_for_a_data_set(tmp_path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    dat(
        tmp_path / "set" / "a" / "x.dat",
        10,
        10,
        np.stack([np.arange(10_000), np.zeros(10_000, int)], 1),
    )
    with pytest.raises(DataError, match="more than the 1,000 bytes"):
        EventDataset(tmp_path / "set", max_bytes=1000)
    assert (
        len(EventDataset(tmp_path / "set", binary=True, max_bytes=MB, cache=tmp_path / "cache"))
        == 1
    )
    with pytest.raises(ValueError, match="max_bytes is 1000, which is for the default reader"):
        EventDataset(tmp_path / "set", read=read_events, max_bytes=1000)
