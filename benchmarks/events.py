"""Time event data against other libraries: ODG, frames, reading of files; and the memory that a file of 100 million events takes.

    pip install -r benchmarks/requirements.txt
    python benchmarks/events.py --out benchmarks/events.csv                # everything, about two minutes on one core
    python benchmarks/events.py --million 1 --large 2 --rounds 1            # only to see that it runs

One thread. Ways take turns within a round; the best of all rounds is written, because a busy machine only ever adds; --clock cpu counts processor time
instead of passing time, which such a machine disturbs less. Rows:

    odg        one photo (427 x 640, scikit-learn's flower) into events; "published loop" is ES-ImageNet's, in torch, as on the page data/04_events
    frames     a million random events on 480 x 640 into ten frames; peers count the same windows
    read       files of two million random events each, read whole; peers where they know the format; "bytes_per_event" is the most memory that a
               process of its own held for it while reading, beyond what it held before
    pieces     a DAT file of many events (8 bytes each) into frames, with iter_events and iter_frames, in a process of its own; "megabytes" is the
               most memory that process held beyond what it held before, the file having been written by another process
"""

import argparse
import importlib.util
import json
import os
import platform
import re
import struct
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

COLUMNS = (
    "what",
    "way",
    "events",
    "seconds",
    "millions_per_second",
    "megabytes",
    "bytes_per_event",
)
PEERS = ("tonic", "expelliarmus", "faery", "aedat")
SENSOR = (480, 640)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def have(name):
    return importlib.util.find_spec(name) is not None


def random_events(n, seed=0, longest=None):
    "Sorted times below `longest` (default: a million events in a second), and the rest at random."
    rng = np.random.default_rng(seed)
    return (
        np.sort(rng.integers(0, longest or n, n)),
        rng.integers(0, SENSOR[1], n),
        rng.integers(0, SENSOR[0], n),
        rng.integers(0, 2, n),
    )


def best(ways, rounds, events):
    clock = CLOCKS[os.environ.get("EVENTS_CLOCK", "wall")]
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            start = clock()
            way()
            seconds[name] = min(seconds[name], clock() - start)
    return [
        {
            "way": name,
            "events": events,
            "seconds": float(f"{found:.3g}"),
            "millions_per_second": float(f"{events / found / 1e6:.3g}"),
        }
        for name, found in seconds.items()
    ]


# ---- odg


def published(image, threshold=0.18):
    from neurobridge.data.odg_events import ODG_COLUMNS, ODG_ROWS

    image = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    _, h, w = image.shape
    a, b = h * 254 // max(h, w), w * 254 // max(h, w)
    v = image[:, torch.arange(a) * h // a][:, :, torch.arange(b) * w // b].amax(0)
    canvases, covers = [], []
    for row, column in zip(ODG_ROWS, ODG_COLUMNS, strict=True):
        canvas, cover = torch.zeros(a + 4, b + 4), torch.zeros(a + 4, b + 4)
        canvas[row : row + a, column : column + b] = v
        cover[row : row + a, column : column + b] = 1
        canvases.append(canvas)
        covers.append(cover)
    lists = {1: [], 0: []}
    for t in range(1, 9):
        change, both = canvases[t] - canvases[t - 1], covers[t] * covers[t - 1]
        for p, hit in (
            (1, (change > threshold) & (both > 0)),
            (0, (change < -threshold) & (both > 0)),
        ):
            at = hit.nonzero()
            at = at[(at[:, 0] > 16) & (at[:, 0] < 240) & (at[:, 1] > 16) & (at[:, 1] < 240)]
            lists[p].append(torch.cat([at, torch.full((len(at), 1), t)], 1))
    return {p: torch.cat(found).numpy() for p, found in lists.items()}


def odg_rows(args):
    from sklearn.datasets import load_sample_image

    from neurobridge.data import odg

    photo = load_sample_image("flower.jpg")
    events, theirs = odg(photo)[0], published(photo)
    assert len(events) == sum(map(len, theirs.values()))
    return best(
        {"published loop": lambda: published(photo), "neurobridge": lambda: odg(photo)},
        5 * args.rounds,
        len(events),
    )


# ---- frames


def frame_rows(args):
    from neurobridge.data import Events, to_frames

    n = int(args.million * 1e6)
    t, x, y, p = random_events(n, longest=1_000_000)
    t[0], t[-1] = 0, 999_999
    events = Events(t, x, y, p, *SENSOR)
    ways, expected = (
        {"neurobridge": lambda: to_frames(events, window=100_000)},
        to_frames(events, window=100_000),
    )
    if have("tonic"):
        from tonic.functional import to_frame_numpy

        records = np.zeros(n, [("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "<i2")])
        for name, values in zip("txyp", (t, x, y, p), strict=True):
            records[name] = values
        ways["tonic"] = lambda: to_frame_numpy(
            records, (SENSOR[1], SENSOR[0], 2), time_window=100_000, include_incomplete=True
        )
        assert (ways["tonic"]()[:, [1, 0]] == expected.numpy()).all()
    return best(ways, 2 * args.rounds, n)


# ---- reading


def aedat4(t, x, y, p, packet=4096):
    "An AEDAT 4 file without a table of contents: one stream of packets, packed with LZ4 as DV does."
    import lz4.frame

    kind = [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "u1"), ("", "V3")]
    records = np.zeros(len(t), kind)
    for name, values in zip("txyp", (t, x, y, p), strict=True):
        records[name] = values
    size = f'<attr key="sizeX">{SENSOR[1]}</attr><attr key="sizeY">{SENSOR[0]}</attr>'
    stream = f'<attr key="typeIdentifier">EVTS</attr><node name="info">{size}</node>'
    text = f'<dv version="2.0"><node name="outInfo"><node name="0">{stream}</node></node></dv>'
    text = text.encode()
    # flatbuffers: root and mark, layout of the fields, the fields, a vector
    head = struct.pack("<I4s5H", 18, b"IOHE", 10, 28, 8, 16, 24)
    head += struct.pack("<i4xi4xqI", 10, 1, -1, 4) + struct.pack("<I", len(text)) + text
    out = [b"#!AER-DAT4.0\r\n" + struct.pack("<I", len(head)) + head]
    for at in range(0, len(t), packet):
        part = records[at : at + packet]
        data = struct.pack("<I4s3H2xiII", 16, b"EVTS", 6, 8, 4, 8, 4, len(part)) + part.tobytes()
        data = lz4.frame.compress(struct.pack("<I", len(data)) + data)
        out.append(struct.pack("<ii", 0, len(data)) + data)
    return b"".join(out)


def write_files(folder, n):
    "The same events in several formats, written with numpy; name -> path."
    t, x, y, p = random_events(n, longest=4 * n)
    u4, sides = (
        (lambda a: a.astype("<u4").tobytes()),
        f"% Height {SENSOR[0]}\n% Width {SENSOR[1]}\n".encode(),
    )
    new = np.diff(t >> 6, prepend=-1) != 0
    evt2 = np.stack([8 << 28 | t >> 6, p << 28 | (t & 63) << 22 | x << 11 | y], 1)[
        np.stack([new, np.ones(n, bool)], 1)
    ]
    high, low, row = (np.diff(value, prepend=-1) != 0 for value in (t >> 12, t, y))
    evt3 = np.stack([8 << 12 | t >> 12 & 4095, 6 << 12 | t & 4095, y, 2 << 12 | p << 11 | x], 1)[
        np.stack([high, low, row, np.ones(n, bool)], 1)
    ]
    geometry = f"height={SENSOR[0]};width={SENSOR[1]}\n% end\n".encode()
    small = np.stack(
        [x % 34, y % 34, p << 7 | (t & 0x7FFFFF) >> 16, t >> 8 & 255, t & 255], 1
    ).astype(np.uint8)
    content = {
        "N-MNIST .bin": ("a.bin", small.tobytes()), "DAT": ("a.dat", sides + bytes([12, 8]) + u4(np.stack([t, x | y << 14 | p << 28], 1))),
        "AEDAT 2": ("a.aedat", b"#!AER-DAT2.0\r\n# AEChip: Davis640\r\n" + np.stack([(479 - y) << 22 | (639 - x) << 12 | p << 11, t], 1).astype(">u4").tobytes()),
        "AEDAT 4": ("a.aedat4", aedat4(t, x, y, p)),
        "EVT 2": ("a2.raw", b"% evt 2.0\n% format EVT2;" + geometry + u4(evt2)), "EVT 3": ("a3.raw", b"% evt 3.0\n% format EVT3;" + geometry + evt3.astype("<u2").tobytes()),
    }  # fmt: skip
    for file, data in content.values():
        (folder / file).write_bytes(data)
    paths = {name: folder / file for name, (file, _) in content.items()} | {"npz": folder / "a.npz"}
    np.savez(paths["npz"], t=t, x=x.astype(np.int16), y=y.astype(np.int16), p=p.astype(np.int8))
    return paths, int(t.sum())


def neurobridge_reader(path, name):
    from neurobridge.data import read_events

    return lambda: read_events(path)


def expelliarmus_reader(path, name):
    from expelliarmus import Wizard

    wizard = Wizard(encoding=name.replace(" ", "").lower())
    return lambda: wizard.read(path)


def faery_reader(path, name):
    import faery

    return lambda: faery.events_stream_from_file(path).to_array()


def tonic_reader(path, name):
    from tonic.io import read_mnist_file

    kinds = np.dtype([("x", "<i2"), ("y", "<i2"), ("t", "<i8"), ("p", "<i2")])
    return lambda: read_mnist_file(path, kinds)


def aedat_reader(path, name):
    import aedat

    def read():
        packets = [packet["events"] for packet in aedat.Decoder(path) if "events" in packet]
        return np.concatenate(packets)

    return read


READERS = {  # library: its reader, and the formats that it knows
    "neurobridge": (neurobridge_reader, None),
    "expelliarmus": (expelliarmus_reader, ("DAT", "EVT 2", "EVT 3")),
    "faery": (faery_reader, ("DAT", "EVT 2", "EVT 3")),
    "tonic": (tonic_reader, ("N-MNIST .bin",)),
    "aedat": (aedat_reader, ("AEDAT 4",)),
}


def bytes_per_event(library, path, name, small):
    "The most memory that one reading takes, in a process of its own that has read a small file before."
    done = subprocess.run(
        [sys.executable, __file__, "--memory", library, str(path), name, str(small)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return float(done.stdout.splitlines()[-1])


def memory(library, path, name, small):
    READERS[library][0](Path(small), name)()
    if library == "neurobridge":  # else the small file would not load them
        from neurobridge.data.readers.c_decoders import load_decoders

        load_decoders()
    Path("/proc/self/clear_refs").write_text("5")
    before = most_memory(1)
    found = READERS[library][0](Path(path), name)()
    return round((most_memory(1) - before) * 1024 / len(found), 1)


def read_rows(args):
    n = int(2e6 * args.million)
    rows = []
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        paths, total = write_files(Path(folder), n)
        small, _ = write_files(Path(other), 1000)
        for name, path in paths.items():
            ways = {
                library: reader(path, name)
                for library, (reader, known) in READERS.items()
                if known is None or (name in known and have(library))
            }
            assert all(len(way()) == n for way in ways.values())
            assert name == "N-MNIST .bin" or ways["neurobridge"]().t.sum() == total
            for row in best(ways, args.rounds, n):
                taken = bytes_per_event(row["way"], path, name, small[name])
                rows.append(row | {"way": f"{row['way']}, {name}", "bytes_per_event": taken})
    return rows


# ---- pieces


def write_large(path, n):
    "Seconds of one million events each, the same but for the time."
    t, x, y, p = random_events(1_000_000)
    block = np.stack([t, x | y << 14 | p << 28], 1).astype("<u4")
    with path.open("wb") as file:
        file.write(f"% Height {SENSOR[0]}\n% Width {SENSOR[1]}\n".encode() + bytes([12, 8]))
        for _ in range(n // 1_000_000):
            block.tofile(file)
            block[:, 0] += 1_000_000


def most_memory(unit=1024):  # of this process (MB, or kB with 1)
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // unit


def through(path):
    "In a process of its own: a file into frames, and the memory that took."
    from neurobridge.data import iter_events, iter_frames

    clock = CLOCKS[os.environ.get("EVENTS_CLOCK", "wall")]
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # forget the highest memory so far; the one getrusage knows is that of the parent, too
    before, start = most_memory(), clock()
    found = sum(
        frame.sum(dtype=torch.float64).item()
        for frame in iter_frames(iter_events(path), window=100_000)
    )
    seconds = clock() - start
    return {
        "events": int(found),
        "seconds": float(f"{seconds:.3g}"),
        "millions_per_second": float(f"{found / seconds / 1e6:.3g}"),
        "megabytes": most_memory() - before,
    }


def piece_rows(args):
    rows = []
    for n in (int(args.large * 1e5) or 1, int(args.large * 1e6)):
        n = max(n // 1_000_000, 1) * 1_000_000
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "large.dat"
            subprocess.run([sys.executable, __file__, "--write", str(path), str(n)], check=True)
            done = subprocess.run(
                [sys.executable, __file__, "--through", str(path)], capture_output=True, text=True
            )
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            rows.append(
                {"way": f"neurobridge, {path.stat().st_size / 1e6:,.0f} MB"}
                | json.loads(done.stdout.splitlines()[-1])
            )
            assert rows[-1]["events"] == n
    return rows


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--million",
        type=float,
        default=1.0,
        help="million events for frames, twice as many for reading",
    )
    parser.add_argument(
        "--large", type=float, default=100.0, help="million events in the large file"
    )
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: processor time, which a busy machine disturbs less",
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--through", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory:
        return print(memory(*args.memory))
    if not args.write and not args.through:
        os.environ["EVENTS_CLOCK"] = args.clock  # the processes that this one starts take it over
    if args.write:
        return write_large(Path(args.write[0]), int(args.write[1]))
    if args.through:
        return print(json.dumps(through(args.through)))
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    lines = [
        f"# {model}, 1 thread, {args.clock} clock, {platform.system()} {platform.release()}, load "
        f"{os.getloadavg()[0]:.1f} at the start",
        "# "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", *PEERS) if have(name)),
        ",".join(COLUMNS),
    ]
    for what, measure in (
        ("odg", odg_rows),
        ("frames", frame_rows),
        ("read", read_rows),
        ("pieces", piece_rows),
    ):
        for row in measure(args):
            cells = [what, *(row.get(column, "") for column in COLUMNS[1:])]
            print(*cells, sep="\t", flush=True)
            lines.append(
                ",".join(
                    f'"{cell}"' if isinstance(cell, str) and "," in cell else str(cell)
                    for cell in cells
                )
            )
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
