"Event files in C: the events, the errors and the memory of the NumPy decoders, on random and damaged files."

import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurobridge.core import compiled
from neurobridge.data import DataError, iter_events, read_events
from neurobridge.data.readers import c_decoders

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler"
)
HEADERS = {
    "evt3": b"% evt 3.0\n% end\n",
    "evt2": b"% evt 2.0\n% end\n",
    "dat1": b"% Version 1\n" + bytes([0, 8]),
    "dat2": b"% Version 2\n" + bytes([12, 8]),
}
WORD = {"evt3": 2, "evt2": 4, "dat1": 8, "dat2": 8}


def outcome(read, path, monkeypatch, small, **options):
    "What a reader returns, or the error that it raises, in C (small=0) or with NumPy."
    monkeypatch.setattr(c_decoders, "SMALL", small)
    try:
        found = read(path, **options)
        pieces = [found] if read is read_events else list(found)
        return [(e.height, e.width, *(getattr(e, n).tobytes() for n in "txyp")) for e in pieces]
    except DataError as error:
        return str(error)


def same(path, monkeypatch, **options):
    "Both ways on one file; equal events, or both refuse it."
    found = [
        outcome(read_events, path, monkeypatch, small, sort=True, **options) for small in (0, 2**60)
    ]
    pieces = [
        outcome(
            iter_events,
            path,
            monkeypatch,
            small,
            chunk=7,
            sensor=options.get("sensor", (2048, 2048)),
        )
        for small in (0, 2**60)
    ]
    assert found[0] == found[1] and pieces[0] == pieces[1]
    return found[0]


@st.composite
def words(draw):
    "A format, and words that are likely to be events of it, in likely and unlikely orders."
    name = draw(st.sampled_from(list(HEADERS)))
    seed, n = draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 400))
    kinds = draw(st.sampled_from(["likely", "any", "rising"]))
    rng = np.random.default_rng(seed)
    if name == "evt3":
        kind = rng.choice(c_decoders.EVT3_KINDS if kinds != "any" else np.arange(16), n)
        if kinds == "rising":
            kind = np.where(kind == 8, 6, kind)
            kind[:1] = 8
        return name, (kind << 12 | rng.integers(0, 4096, n)).astype("<u2").tobytes()
    if name == "evt2":
        kind = rng.choice([0, 0, 0, 1, 1, 8] if kinds != "any" else np.arange(16), n)
        low = rng.integers(0, 2**28, n)
        low[kind == 8] >>= rng.integers(0, 28)
        return name, (kind << 28 | low).astype("<u4").tobytes()
    t = rng.integers(0, 2**32, n) if kinds != "rising" else np.arange(n) * rng.integers(1, 2**31)
    p = rng.integers(0, 2 if kinds != "any" else 16, n) << (17 if name == "dat1" else 28)
    word = rng.integers(0, 2**17, n) | p
    return name, np.stack([t % 2**32, word], 1).astype("<u4").tobytes()


@needs_compiler
@settings(max_examples=150, deadline=None)
@given(words(), st.integers(0, 9), st.data())
def test_equal_on_random_and_damaged_files(tmp_path_factory, file, cut, data):
    name, content = file
    path = tmp_path_factory.mktemp("c") / "a"
    if content and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(content) - 1))
        content = content[:at] + bytes([data.draw(st.integers(0, 255))]) + content[at + 1 :]
    path.write_bytes(HEADERS[name] + content[: len(content) - (cut if cut < 8 else 0)])
    with pytest.MonkeyPatch.context() as patched:
        same(path, patched)
        same(path, patched, sensor=(512, 512))


@needs_compiler
@pytest.mark.parametrize("name", HEADERS)
def test_equal_over_blocks_and_turns_of_the_clock(tmp_path, monkeypatch, name):
    "A million words: states pass from block to block, and clocks turn over."
    rng, n = np.random.default_rng(0), 1_000_000
    if name == "evt3":
        kind = rng.choice([0, 2, 3, 4, 5, 6], n)
        value = rng.integers(0, 4096, n)
        kind[::50], value[::50] = 8, np.arange(n // 50) % 4096
        after = np.arange(n) % 50 == 1  # the lower time falls to 0 with the upper
        kind[after] = 6
        value[kind == 6] = 0
        value[kind == 3] &= 0xBFF
        content = (kind << 12 | value).astype("<u2")
    elif name == "evt2":
        content = rng.choice([0, 1], n) << 28 | rng.integers(0, 2**22, n)
        content[::50] = 8 << 28 | np.arange(n // 50) * 40_000 % 2**28
        content = content.astype("<u4")
    else:
        t = np.arange(n) * 30_000 % 2**32
        content = np.stack([t, rng.integers(0, 2**17, n)], 1).astype("<u4")
    (tmp_path / "a").write_bytes(HEADERS[name] + content.tobytes())
    found = same(tmp_path / "a", monkeypatch, sensor=(32768, 32768))
    assert isinstance(found, list) and len(found[0][2]) > 8 * 500_000


@needs_compiler
def test_a_column_beyond_16_bits_is_refused(tmp_path, monkeypatch):
    "Vectors without a new base, until no sensor is wide enough."
    head = [8 << 12 | 1, 6 << 12, 0, 3 << 12]
    words = np.array(head + [4 << 12 | 1] * 3000, "<u2")
    (tmp_path / "a").write_bytes(HEADERS["evt3"] + words.tobytes())
    assert "x lies in" in same(tmp_path / "a", monkeypatch, sensor=(2000, 32768))


@needs_compiler
def test_source_compiles_without_warnings(tmp_path, monkeypatch):
    for extra in (("-march=native",), ("-fsanitize=undefined", "-fno-sanitize-recover"), ()):
        strict = (*extra, "-Wall", "-Wextra", "-Werror")
        monkeypatch.setattr(compiled, "_EXTRAS", (strict,))
        assert compiled._compile(compiled._compiler(), c_decoders.PROGRAM, tmp_path).is_file()


def test_without_a_compiler_numpy_decodes_and_says_so_once(tmp_path, monkeypatch):
    words = np.arange(2**18) << 14 % 2**17
    t = np.arange(2**18)
    path = tmp_path / "a.dat"
    path.write_bytes(HEADERS["dat2"] + np.stack([t, words % 2**17], 1).astype("<u4").tobytes())
    code = """
        import sys, warnings
        from neurobridge.data import read_events
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                assert len(read_events(sys.argv[1])) == 2**18
        print([str(w.message) for w in caught])
    """
    import os
    import textwrap

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)],
        env=os.environ | {"CC": "/nowhere/cc", "NEUROBRIDGE_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.count("decoded with NumPy") == 1 and "no C compiler" in done.stdout


def test_small_recordings_start_no_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr(
        c_decoders, "load_decoders", lambda: pytest.fail("the compiler was started")
    )
    (tmp_path / "a").write_bytes(HEADERS["dat2"] + np.arange(100, dtype="<u4").tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_events(tmp_path / "a")) == 50


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is counted by Linux")
@needs_compiler
@pytest.mark.parametrize("name", ["evt3", "evt2", "dat2"])
def test_at_most_20_bytes_per_event_while_reading(tmp_path, name):
    "In a process of its own, beyond what it held before: 3 million events."
    n = 3_000_000
    t = np.arange(n) // 8
    if name == "evt3":
        new = np.arange(n) % 8 == 0
        high = np.diff(t >> 12, prepend=-1) != 0
        words = np.stack(
            [8 << 12 | t >> 12 & 4095, 6 << 12 | t & 4095, t * 0 + 5, 2 << 12 | t % 600], 1
        )
        content = words[np.stack([high, new, new, np.ones(n, bool)], 1)].astype("<u2")
    elif name == "evt2":
        words = np.stack([8 << 28 | t >> 6, (t & 63) << 22 | t % 600 << 11 | 9], 1)
        content = words[np.stack([np.diff(t >> 6, prepend=-1) != 0, np.ones(n, bool)], 1)]
        content = content.astype("<u4")
    else:
        content = np.stack([t, t % 600], 1).astype("<u4")
    path = tmp_path / "a"
    path.write_bytes(HEADERS[name] + content.tobytes())
    code = """
import re, sys
from pathlib import Path
from neurobridge.data import read_events
def most(): return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
import neurobridge.data.readers.c_decoders as c
c.load_decoders()
read_events(sys.argv[2])
Path("/proc/self/clear_refs").write_text("5")
before = most()
events = read_events(sys.argv[1])
print((most() - before) * 1024 / len(events))
"""
    (tmp_path / "small").write_bytes(HEADERS[name] + content.tobytes()[:4096])
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "small")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) <= 20
