"What a caller says about a file: unit, order and names of columns, place in HDF5; text files, NumPy's records both ways."

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_formats import PLAIN, contain, set_block, some, write_evt2

from neurobridge.data import DataError, EventDataset, Events, iter_events, read_events
from neurobridge.data.readers import text

FACTOR = {"s": 10**-6, "ms": 10**-3, "us": 1, "ns": 1000}


def lines_of(e, unit="us", order="txyp", separator=",", header=None, minus=False):
    "Written with Python's own formatting, in the shortest digits that give the number back."
    columns = {name: getattr(e, name).astype(int) for name in "txyp"}
    columns["_"] = np.arange(len(e))
    if minus:
        columns["p"] = 2 * columns["p"] - 1
    rows = zip(*(columns[name].tolist() for name in order), strict=True)
    at = order.index("t")
    told = [] if header is None else [header]
    for row in rows:
        words = [str(value) for value in row]
        if unit in ("s", "ms"):
            words[at] = f"{row[at] / {'s': 10**6, 'ms': 1000}[unit]:.{6 if unit == 's' else 3}f}"
        elif unit == "ns":
            words[at] = str(1000 * row[at])
        told.append(separator.join(words))
    return "\n".join(told) + "\n"


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    unit=st.sampled_from(list(FACTOR)),
    order=st.permutations("txyp"),
    separator=st.sampled_from([",", ";", " ", "\t", " , "]),
    form=st.sampled_from(["plain", "comment", "extra"]),
    minus=st.booleans(),
    n=st.integers(1, 40),
    block=st.sampled_from([3, 1 << 16]),
)
def test_text_in_any_order_and_unit(
    tmp_path, monkeypatch, unit, order, separator, form, minus, n, block
):
    events = some(n, (48, 64), longest=10**9)
    order = "".join(order) + ("_" if form == "extra" else "")
    header = "# made by hand" if form == "comment" else None
    path = tmp_path / "clip.csv"
    path.write_text(lines_of(events, unit, order, separator, header, minus))
    monkeypatch.setattr(text, "BLOCK", block)
    read = read_events(path, (48, 64), unit=unit, columns=order)
    assert read == events
    pieces = list(iter_events(path, 7, (48, 64), unit=unit, columns=order))
    assert sum(map(len, pieces)) == n and pieces[0] == read[:7]


@pytest.mark.parametrize(
    "header, options",
    [
        ("t_us,x,y,p", {}),
        ("timestamp [us],x,y,polarity", {}),
        ("# t_us x y p", {}),
        ("t,x,y,p", {"unit": "us"}),
        ("t_us,x,y,p", {"unit": "us"}),
        ("stamp,x,y,on", {"unit": "us", "columns": {"t": "stamp", "p": "on"}}),
        ('"t_us","x","y","p"', {}),
        ("time_us,x,y,p", {"columns": {"t": "time_us"}}),
        ("time_us,x,y,p", {"columns": {"t": "time"}}),
        ("Stamp (us),x,y,p", {"columns": {"t": "Stamp (us)"}}),
        ("stamp_us,x,y,p", {"columns": "txyp"}),
    ],
)
def test_headers(header, options, tmp_path):
    events = some(20, (48, 64))
    path = tmp_path / "clip.txt"
    path.write_text(lines_of(events, separator=" " if header[0] == "#" else ",", header=header))
    assert read_events(path, (48, 64), **options) == events


def test_the_unit_is_that_of_the_column_which_was_named(tmp_path):
    path = tmp_path / "clip.csv"
    path.write_text("time_s,time_ms,x,y,p\n0.5,500,3,4,1\n0.75,750,3,4,0\n")
    for name in ("time_s", "time_ms"):
        read = read_events(path, (8, 8), columns={"t": name})
        assert read.t.tolist() == [500_000, 750_000]
    with pytest.raises(DataError, match="time_s, time_ms, x, y, p, of which 2 may be t"):
        read_events(path, (8, 8))
    with pytest.raises(DataError, match="states 'ms' .*unit is 's'"):
        read_events(path, (8, 8), columns={"t": "time_ms"}, unit="s")


def test_a_header_without_events_is_said_to_be_one(tmp_path):
    path = tmp_path / "clip.csv"
    for header in ("t,x,y,p\n", "# t_us x y p\n"):
        path.write_text(header)
        with pytest.raises(DataError, match=r"clip\.csv: it contains no events: its header"):
            read_events(path, (8, 8), unit="us")
    path.write_text("name,label,split,size\n")
    with pytest.raises(DataError, match="it begins with"):
        read_events(path)


@pytest.mark.parametrize("unit", FACTOR)
def test_times_since_1970_keep_their_microseconds(unit, tmp_path):
    near = some(400, (48, 64), longest=10**9)
    events = Events(near.t + 1_764_000_000_123_456, near.x, near.y, near.p, 48, 64)
    (tmp_path / "a.csv").write_text(lines_of(events, unit))
    assert read_events(tmp_path / "a.csv", (48, 64), unit=unit) == events


def test_a_header_gives_the_order(tmp_path):
    events = some(20, (48, 64))
    (tmp_path / "a").write_text(lines_of(events, order="pyxt", header="p,y,x,t_us"))
    assert read_events(tmp_path / "a", (48, 64)) == events


@pytest.mark.parametrize(
    "content, options, message",
    [
        ("10,3,5,1\n", {}, "does not state the unit of its times; give unit="),
        ("0.1,3,5,1\n", {}, "does not state the unit"),
        ("t_us,x,y,p\n10,3,5,1\n", {"unit": "s"}, "states 'us' .*unit is 's'"),
        (
            "t,x,y,p\n10,3,5,1\n20,3,5\n",
            {"unit": "us"},
            "p of event 1 is missing: the line is cut off",
        ),
        ("10,3,5,1\n20,3,five,1\n", {"unit": "us"}, "y of event 1 is 'five'"),
        ("10,3,5,1\n20,3,5,1,7\n", {"unit": "us"}, "Expected 4 fields in line 2, saw 5"),
        ("10,3.5,5,1\n", {"unit": "us"}, "x is of type float64 with fractions"),
        ("10,3,5,2\n", {"unit": "us"}, "p lies in"),
        ("10,3,5,1\n5,3,5,1\n", {"unit": "s"}, "time runs backwards"),
        (
            "when,x,y,p\n10,3,5,1\n",
            {"unit": "us"},
            r"columns are when, x, y, p.*give columns=\{'t'",
        ),
        ("10,3,5,1\n", {"unit": "us", "columns": {"t": "stamp"}}, "no header"),
        ("10,3,5,1\n", {"unit": "us", "columns": "__xytp"}, "4 columns, and columns="),
        ("<html>\n<body>a, b, c, d</body>\n", {"unit": "us"}, "it begins with"),
        ("calibrated on Monday\n", {}, "it begins with"),
        ("t,x,y,p\n", {"unit": "us"}, "it contains no events: its header"),
        ("10 3 5\n", {"unit": "us"}, "it begins with"),
    ],
)
def test_text_that_is_refused(content, options, message, tmp_path):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=rf"a\.csv.*{message}"):
        read_events(tmp_path / "a.csv", **options)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_text_ends_in_one_error_or_in_events(seed, tmp_path):
    rng = np.random.default_rng(seed)
    content = bytearray(lines_of(some(30, (48, 64)), unit="s").encode())
    for at in rng.integers(0, len(content), 3):
        content[at] = rng.integers(0, 256)
    (tmp_path / "a.csv").write_bytes(content)
    try:
        read_events(tmp_path / "a.csv", unit="s")
    except DataError as error:
        assert str(error).startswith(str(tmp_path / "a.csv"))


# Arrays


def test_records_both_ways(tmp_path):
    events = some(50, (48, 64))
    array = events.to_array()
    assert array.dtype.names == ("t", "x", "y", "p") and array.dtype["t"] == np.int64
    assert Events.from_array(array, (48, 64)) == events
    tonics = array.astype([("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", bool)])
    for name in "xytp":
        tonics[name] = array[name]
    assert Events.from_array(tonics, (48, 64)) == events
    np.save(tmp_path / "a.npy", tonics)
    assert read_events(tmp_path / "a.npy", (48, 64)) == events
    assert list(iter_events(tmp_path / "a.npy", 30, (48, 64)))[1] == events[30:]
    table = np.stack([events.x, events.y, events.p, events.t / 1e6], 1)  # as numbers of one type
    np.save(tmp_path / "b.npy", table)
    told = {"unit": "s", "columns": "xypt"}
    assert read_events(tmp_path / "b.npy", (48, 64), **told) == events
    assert Events.from_array(table, (48, 64), **told) == events
    assert Events.from_array(array[:0]) == Events([], [], [], [], 1, 1)


def test_tonics_records_and_ours():
    transforms = pytest.importorskip("tonic.transforms", reason="needs tonic")
    events = some(200, (48, 64), longest=10**5)
    records = events.to_array()
    frames = transforms.ToFrame((64, 48, 2), event_count=50)(records)
    assert frames.shape == (4, 2, 48, 64) and frames.sum() == 200


@pytest.mark.parametrize(
    "change, message",
    [
        ({"array": [1, 2]}, "array is"),
        ({"array": np.zeros((3, 4))}, "a table of 4 columns without names"),
        ({"array": np.zeros((3, 3)), "columns": "txyp"}, "3 columns"),
        ({"array": np.zeros(3)}, "expected records with t, x, y, p"),
        ({"columns": {"p": "polarity"}}, "expected records with t, x, y, polarity"),
        ({"columns": "txyy"}, "columns is"),
        ({"columns": {"q": "p"}}, "columns is"),
        ({"unit": "fortnight"}, "unit is"),
        ({"sensor": 5}, "sensor is"),
    ],
)
def test_arrays_that_are_no_recording(change, message):
    with pytest.raises((TypeError, ValueError), match=f"from_array: .*{message}"):
        Events.from_array(**{"array": some(3, (4, 4)).to_array()} | change)


# HDF5 and npz by name


@pytest.mark.parametrize("unit", [None, "s", "ns"])
def test_hdf5_by_name(unit, tmp_path):
    h5py = pytest.importorskip("h5py")
    factor = FACTOR[unit or "us"]
    t = (PLAIN["t"] * factor) if unit == "s" else (PLAIN["t"] * int(factor))
    expected = Events(*PLAIN.values(), 4, 6)
    table = np.stack([PLAIN["x"], PLAIN["y"], t, PLAIN["p"]], 1)
    with h5py.File(tmp_path / "a.h5", "w") as book:
        book["davis/left/events"] = table
        for name, values in zip(
            ("stamp", "x", "y", "polarity"), (t, *list(PLAIN.values())[1:]), strict=True
        ):
            book[f"prophesee/left/{name}"] = values
        book["rows"] = np.rec.fromarrays([t, *list(PLAIN.values())[1:]], names="ts,x,y,pol")
    names = {"t": "stamp", "p": "polarity"}
    for told in (
        {"group": "davis/left/events", "columns": "xytp"},
        {"group": "prophesee/left", "columns": names},
        {"group": "rows", "columns": {"t": "ts", "p": "pol"}},
    ):
        assert read_events(tmp_path / "a.h5", unit=unit, **told) == expected, told
    for told, message in (
        ({}, "none of the known layouts.*group= gives another place"),
        ({"group": "davis/right"}, "none of the known layouts at davis/right"),
        ({"group": "davis/left/events"}, "columns="),
        ({"group": "prophesee/left", "columns": "txyp"}, "columns="),
    ):
        with pytest.raises(DataError, match=message):
            read_events(tmp_path / "a.h5", unit=unit, **told)


def test_v2es_table_is_read_in_its_own_place(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as book:
        book.create_dataset(
            "events", data=np.stack(list(PLAIN.values()), 1).astype(np.uint32), chunks=(2, 4)
        )
    assert read_events(tmp_path / "a.h5", columns="txyp") == Events(*PLAIN.values(), 4, 6)


@pytest.mark.parametrize("name", ["a.npz", "events.h5"])
def test_a_unit_that_contradicts_the_file(name, tmp_path):
    path = contain(tmp_path / name, **PLAIN, unit="ms")
    assert read_events(path, unit="ms").t.tolist() == [0, 1_500_000, 2_500_000]
    with pytest.raises(DataError, match="states 'ms' .*unit is 'us'"):
        read_events(path, unit="us")


def test_npz_by_name_and_unit(tmp_path):
    t, x, y, p = PLAIN.values()
    np.savez(tmp_path / "a.npz", ts=t / 1e6, x=x, y=y, pol=p)
    told = {"unit": "s", "columns": {"t": "ts", "p": "pol"}}
    assert read_events(tmp_path / "a.npz", **told) == Events(*PLAIN.values(), 4, 6)
    with pytest.raises(DataError, match="expected ts, x, y, p"):
        read_events(tmp_path / "a.npz", columns={"t": "ts"})


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("minus", [False, True])
def test_places_and_polarities_as_floating_point_numbers(kind, minus, tmp_path):
    "As a table of one type has them, in every container alike; fractions are refused in all."
    columns = PLAIN | {name: PLAIN[name].astype(kind) for name in "xyp"}
    if minus:
        columns["p"] = 2 * columns["p"] - 1
    expected = Events(*PLAIN.values(), 4, 6)
    for change, error in ((0, None), (0.5, "of type float.* with fractions"), (np.nan, "float")):
        stored = columns | {"x": columns["x"] + kind(change)}
        dtype = [(name, values.dtype) for name, values in stored.items()]
        records = np.rec.fromarrays(list(stored.values()), dtype=dtype)
        np.save(tmp_path / "a.npy", records)
        paths = [contain(tmp_path / name, **stored) for name in ("a.npz", "events.h5")]
        for path in (tmp_path / "a.npy", *paths):
            if error is None:
                assert read_events(path) == expected
                assert next(iter_events(path, sensor=(4, 6))) == expected
            else:
                with pytest.raises(DataError, match=error):
                    read_events(path)
        if error is None:
            assert Events.from_array(records, (4, 6)) == expected


def test_nanoseconds_since_1970_are_not_taken_for_microseconds(tmp_path):
    since = 1_764_000_000_000_000_000 + 1000 * PLAIN["t"]
    for name in ("a.npz", "events.h5"):
        path = contain(tmp_path / name, **PLAIN | {"t": since})
        with pytest.raises(DataError, match="more than 3,000 years of microseconds; .*unit='ns'"):
            read_events(path)
        assert read_events(path, unit="ns").t.tolist() == (since // 1000).tolist()


# Arguments


@pytest.mark.parametrize("reader", [read_events, iter_events])
@pytest.mark.parametrize(
    "told, message",
    [
        ({"unit": "minutes"}, "unit is"),
        ({"unit": 1}, "unit is"),
        ({"columns": "xyt"}, "columns is"),
        ({"columns": "xytpp"}, "columns is"),
        ({"columns": {"time": "t"}}, "columns is"),
        ({"columns": {"t": 1}}, "columns is"),
        ({"columns": ["t", "x"]}, "columns is"),
        ({"group": 5}, "group is"),
    ],
)
def test_what_is_told_is_checked_before_the_file_is_opened(reader, told, message, tmp_path):
    with pytest.raises((TypeError, ValueError), match=f"{reader.__name__}: {message}") as caught:
        reader(tmp_path / "none.csv", **told)
    assert not isinstance(caught.value, DataError)


def test_a_format_that_states_all_is_not_told(tmp_path):
    write_evt2(tmp_path / "a.raw", some(5, (4, 4)))
    for told in ({"unit": "us"}, {"columns": "txyp"}, {"group": "events"}):
        with pytest.raises(DataError, match=re.escape(f"a.raw: {next(iter(told))} is ")):
            read_events(tmp_path / "a.raw", **told)


def test_blocks_of_text_are_one_recording(tmp_path, monkeypatch):
    set_block(monkeypatch, 3)
    monkeypatch.setattr(text, "BLOCK", 3)
    events = some(20, (48, 64))
    (tmp_path / "a.tsv").write_text(lines_of(events, separator="\t", minus=True))
    assert read_events(tmp_path / "a.tsv", (48, 64), unit="us") == events


def test_columns_in_another_order_are_not_called_damaged_only(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("".join(f"{k % 9},{k % 7},{k % 2},{100 * k}\n" for k in range(50)))
    with pytest.raises(DataError, match=r"others than t, x, y, p: give columns=, such as 'xypt'"):
        read_events(path, unit="us")
    assert len(read_events(path, unit="us", columns="xypt")) == 50
    with pytest.raises(DataError, match="the file is damaged$|give sensor"):
        read_events(path, (2, 2), unit="us", columns="xypt")


def test_the_unit_is_asked_for_in_the_words_of_the_call(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("".join(f"{100 * k},{k % 9},{k % 7},{k % 2}\n" for k in range(50)))
    with pytest.raises(DataError, match=r"to EventDataset as read=\{'unit': 'us'\}"):
        EventDataset([(path, 0)])
    assert EventDataset([(path, 0)], {"unit": "us"}, steps=2)[0][0].sum() == 50
