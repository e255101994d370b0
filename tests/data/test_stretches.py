"read_events(span=): a stretch of time read by itself is that of the whole recording, and the rest is not decoded."

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_told import lines_of

from neurobridge.data import DataError, Events, read_events, write_events
from neurobridge.data.readers import c_decoders, dat

SENSOR = (120, 160)


def recording(seed, n, gaps, first=0, late=0):
    "Events with pauses between them, of which some come late by at most `late`."
    rng = np.random.default_rng(seed)
    t = first + np.cumsum(rng.choice(gaps, n) * rng.random(n)).astype(np.int64)
    order = np.argsort(t + rng.integers(0, late + 1, n), kind="stable")
    x, y, p = (rng.integers(0, high, n) for high in (SENSOR[1], SENSOR[0], 2))
    return t[order], x, y, p


def write_dat(path, columns, version=2):
    t, x, y, p = columns
    word = x | y << 14 | p << 28 if version == 2 else x | y << 9 | p << 17
    records = np.stack([t & 0xFFFFFFFF, word], 1).astype("<u4")
    path.write_bytes(b"%% Version %d\n" % version + bytes([12, 8]) + records.tobytes())


def write_evt2(path, columns, every=1):
    "The upper time is sent where it changes, or for every so many events."
    t, x, y, p = (column.astype(np.int64) for column in columns)
    high = t >> 6
    new = np.r_[True, high[1:] != high[:-1]] | (np.arange(len(t)) % every == 0)
    words = np.empty((len(t), 2), np.int64)
    words[:, 0] = 8 << 28 | high & 0xFFFFFFF
    words[:, 1] = p << 28 | (t & 63) << 22 | x << 11 | y
    keep = np.stack([new, np.ones_like(new)], 1)
    body = words[keep].astype("<u4").tobytes()
    path.write_bytes(b"% format EVT2;height=120;width=160\n% end\n" + body)


WRITERS = {"dat": write_dat, "evt2": write_evt2}
TURN = {"dat": 1 << 32, "evt2": 1 << 34}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("stretches")


@pytest.mark.parametrize("kind", WRITERS)
@given(
    seed=st.integers(0, 999),
    n=st.integers(1, 6000),
    gaps=st.sampled_from([(1,), (50,), (10, 10**5), (1, 10**8)]),
    turns=st.sampled_from([0, 0.999, 1, 2.5]),
    late=st.sampled_from([0, 500, 90_000]),
    cut=st.tuples(st.floats(-0.2, 1.2), st.floats(0, 0.5)),
)
@settings(max_examples=60)
def test_a_stretch_is_that_of_the_whole(place, kind, seed, n, gaps, turns, late, cut):
    path = place / f"{kind}"
    WRITERS[kind](path, recording(seed, n, gaps, int(turns * TURN[kind]) % TURN[kind], late))
    whole = read_events(path, SENSOR, sort=True)
    length = int(whole.t[-1]) - int(whole.t[0]) + 1
    first = int(whole.t[0]) + int(cut[0] * length)
    span = (first, first + 1 + int(cut[1] * length))
    assert read_events(path, SENSOR, sort=True, span=span) == whole.between(*span)


@pytest.mark.parametrize("small", [0, 1 << 60])
def test_large_files_in_c_and_numpy_and_how_much_is_decoded(place, small, monkeypatch):
    path, n, turn = place / "large", 600_000, TURN["dat"]
    columns = recording(0, n, (4, 40), turn - 6 * 10**6)  # turns over in the middle
    write_dat(path, columns)
    monkeypatch.setattr(c_decoders, "SMALL", small)
    whole = read_events(path, SENSOR)
    assert len(whole) == n and whole.t[-1] > turn > whole.t[0]
    blocks, module = [], c_decoders if small == 0 else dat

    def counted(*arguments, before=module.read_records):
        for block in before(*arguments):
            blocks.append(len(block))
            yield block

    monkeypatch.setattr(module, "read_records", counted)
    for first in (whole.t[0], turn - 5000, turn + 100, whole.t[-1] - 10_000):
        blocks.clear()
        span = (int(first), int(first) + 10_000)
        found = read_events(path, SENSOR, span=span)
        assert found == whole.between(*span) and 100 < len(found) < 3000
        assert 0 < sum(blocks) < n / 3, (first, blocks)


@pytest.mark.parametrize("kind", WRITERS)
def test_hours_with_few_events_turn_the_clock_unseen_by_most_of_the_file(place, kind):
    "A hundred events, far apart, among 300,000: the clock turns over between them."
    path, n = place / f"night {kind}", 300_000
    t, x, y, p = recording(5, n, (4, 40))
    pause = TURN[kind] * 12 // 10 // 100  # in a hundred pauses 1.2 turns
    t = t + np.clip(np.arange(n) - n // 2, 0, 100) * pause
    WRITERS[kind](path, (t, x, y, p))
    whole = read_events(path, SENSOR)
    assert np.array_equal(whole.t, t)
    for first in (t[10], t[n // 2 + 50] - 5, t[n // 2 + 200], t[-1] - 10_000):
        span = (int(first), int(first) + 10_000)
        found = read_events(path, SENSOR, span=span)
        assert len(found) and found == whole.between(*span)


def test_other_formats_are_read_to_the_end_of_the_stretch(place):
    events = Events(*recording(3, 3000, (50,)), *SENSOR)
    span = (int(events.t[500]), int(events.t[900]))
    (place / "a.csv").write_text(lines_of(events, "us"))
    told = {"unit": "us"}
    assert read_events(place / "a.csv", SENSOR, **told, span=span) == events.between(*span)
    write_events(place / "b.csv", events)
    assert read_events(place / "b.csv", SENSOR, span=span) == events.between(*span)
    np.save(place / "c.npy", events.to_array())
    assert read_events(place / "c.npy", SENSOR, **told, span=span) == events.between(*span)


def test_a_silent_stretch_is_empty_and_wrong_ones_are_refused(place):
    path = place / "few.dat"
    write_dat(path, recording(0, 50, (10,)))
    for span in ((10**6, 10**7), (-50, -10)):
        empty = read_events(path, SENSOR, span=span)
        assert len(empty) == 0 and (empty.height, empty.width) == SENSOR
    with pytest.raises(DataError, match="does not state its sensor.*a stretch may not reach"):
        read_events(path, span=(0, 100))
    for span, error, message in (
        (5, TypeError, "span is 5; expected"),
        ((5, 5), ValueError, "span's end"),
        ((0.5, 5), TypeError, "span's start"),
    ):
        with pytest.raises(error, match=f"read_events: {message}"):
            read_events(path, SENSOR, span=span)


def test_a_file_cut_off_is_named_with_a_span_too(place):
    path = place / "cut.dat"
    write_dat(path, recording(0, 5000, (10,)))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match="5 bytes into a record"):
        read_events(path, SENSOR, span=(0, 100))
    with pytest.warns(UserWarning, match="salvaged"):
        assert len(read_events(path, SENSOR, span=(0, 100), salvage=True))
