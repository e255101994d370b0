"Files that were cut off: what is whole is read where it is asked for, the rest is counted, and nothing is passed over in silence."

import contextlib
import re
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_formats import WRITERS, set_block, some, write_aedat4
from test_told import lines_of

from neurobridge.data import DataError, EventDataset, Events, iter_events, read_events

SIZES = {"nmnist.bin": 5, "dat.dat": 8, "dvs.aedat": 8, "davis.aedat": 8, "evt2.raw": 4, "evt21.raw": 8, "legacy.raw": 8, "evt3.raw": 2}  # fmt: skip
PACKETS = ("three.aedat", "four.aedat4", "plain.aedat4", "zstd.aedat4")


def salvaged(path, **given):
    "Events, and what the warning said; empty without one."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        events = read_events(path, salvage=True, **given)
    assert len(caught) < 2 and all(str(path) in str(each.message) for each in caught)
    return events, str(caught[0].message) if caught else ""


def is_prefix(events, of):
    return len(events) <= len(of) and events == of[: len(events)]


@pytest.mark.parametrize("name", [*SIZES, *PACKETS])
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_what_is_read_is_the_beginning_of_the_recording(name, tmp_path, monkeypatch, data):
    write, sensor, _ = WRITERS[name]
    events, path = some(40, sensor, data.draw(st.integers(0, 99))), tmp_path / name
    set_block(monkeypatch, data.draw(st.sampled_from([3, 1 << 16])))
    write(path, events)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    try:
        found, said = salvaged(path)
    except DataError:  # not even one event, or the header, is whole
        with pytest.raises(DataError):
            read_events(path)
        return
    assert is_prefix(found, events)
    try:
        assert read_events(path) == found  # cut between two records, which cannot be seen
        assert not said
    except DataError as error:
        assert f"{len(found):,} events were salvaged" in said
        assert str(error).removeprefix(f"{path}: ") in said


@pytest.mark.parametrize("name", ["nmnist.bin", "dat.dat"])
def test_of_fixed_records_every_whole_one_is_read(name, tmp_path):
    write, sensor, _ = WRITERS[name]
    path, size = tmp_path / name, SIZES[name]
    write(path, events := some(20, sensor))
    content = path.read_bytes()
    for missing in range(1, 12 * size):
        path.write_bytes(content[:-missing])
        found, said = salvaged(path)
        assert found == events[: 20 - -(-missing // size)]
        odd = -missing % size
        assert (f"it ends {odd} bytes into a record of {size} bytes" in said) == bool(odd)


@pytest.mark.parametrize("name", PACKETS)
def test_of_packets_every_whole_one_is_read(name, tmp_path):
    write, sensor, _ = WRITERS[name]
    path = tmp_path / name
    write(path, events := some(40, sensor))
    content = path.read_bytes()
    counts = set()
    for end in range(len(content), 0, -1):
        path.write_bytes(content[:end])
        with contextlib.suppress(DataError):
            found, said = salvaged(path)
            counts.add(len(found))
            assert is_prefix(found, events) and (
                said or end == len(content) or name == "three.aedat"
            )
    assert len(counts) > 3 and max(counts) == 40  # packet by packet


def test_a_recording_that_was_never_closed(tmp_path):
    "DV that crashed: the header says that there is no table, and the last packet is cut."
    path = tmp_path / "a.aedat4"
    write_aedat4(path, events := some(40, (260, 346)))
    content = path.read_bytes()
    at = next(i for i in range(18, 400) if content[i : i + 8] == _table_of(content))
    path.write_bytes(
        content[:at] + (-1).to_bytes(8, "little", signed=True) + content[at + 8 : -400]
    )
    with pytest.raises(DataError):
        read_events(path)
    found, said = salvaged(path)
    assert is_prefix(found, events) and 0 < len(found) < 40 and "cut off" in said


def _table_of(content):
    "The eight bytes that say where the table begins: the only place near the end that is named."
    places = [content[i : i + 8] for i in range(18, 400)]
    return next(p for p in places if len(content) // 2 < int.from_bytes(p, "little") < len(content))


def test_damage_is_no_cut(tmp_path):
    "Where the end is whole, nothing is salvaged over a fault in the middle."
    path = tmp_path / "a.aedat4"
    write_aedat4(path, some(30, (260, 346)), promised=lambda rows: rows[:-2])
    for salvage in (False, True):
        with pytest.raises(DataError, match="table of contents"):
            read_events(path, salvage=salvage)
    for name in ("evt2.raw", "evt3.raw"):
        write, sensor, _ = WRITERS[name]
        write(tmp_path / name, some(30, sensor))
        content = bytearray((tmp_path / name).read_bytes())
        content[-SIZES[name] :] = b"\xff" * (SIZES[name] - 1) + b"\x9f"  # a kind that is reserved
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="reserved"):
            read_events(tmp_path / name, salvage=True)


@pytest.mark.parametrize("order", ["txyp", "xypt"])
@pytest.mark.parametrize("unit", ["s", "us"])
def test_a_text_loses_the_line_without_an_end(order, unit, tmp_path):
    events = some(30, (12, 16), longest=900_000)
    lines = lines_of(events, unit).splitlines()
    rows = [dict(zip("txyp", line.split(","), strict=True)) for line in lines]
    text = "\n".join(",".join(row[name] for name in order) for row in rows) + "\n"
    path, told = tmp_path / "a.csv", {"sensor": (12, 16), "unit": unit, "columns": order}
    path.write_text(text)
    assert salvaged(path, **told) == (events, "")
    for end in range(len(text.splitlines()[0]) + 2, len(text)):
        path.write_text(text[:end])
        found, said = salvaged(path, **told)
        assert found == events[: text[:end].count("\n")]
        assert ("its last line has no end" in said) == (text[end - 1] != "\n")


def test_long_texts_are_read_in_blocks(tmp_path, monkeypatch):
    from neurobridge.data.readers import text

    monkeypatch.setattr(text, "BLOCK", 7)
    events = some(30, (12, 16))
    (tmp_path / "a.csv").write_text(lines_of(events, "us")[:-3])
    assert salvaged(tmp_path / "a.csv", sensor=(12, 16), unit="us")[0] == events[:29]


def test_events_off_the_sensor_are_left_out_and_counted(tmp_path):
    events = some(50, (240, 304))
    WRITERS["dat.dat"][0](tmp_path / "a.dat", events)
    small = (100, 200)
    here = (events.x < 200) & (events.y < 100)
    with pytest.raises(DataError, match="lies in"):
        read_events(tmp_path / "a.dat", small)
    found, said = salvaged(tmp_path / "a.dat", sensor=small)
    kept = events[here]
    assert found == Events(kept.t, kept.x, kept.y, kept.p, *small)
    assert f"{int((~here).sum())} events off the sensor were left out" in said
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pieces = list(iter_events(tmp_path / "a.dat", 7, small, salvage=True))
    assert np.concatenate([piece.t for piece in pieces]).tolist() == kept.t.tolist()
    assert len(caught) == 1 and "off the sensor" in str(caught[0].message)


@pytest.mark.parametrize("name", ["dat.dat", "evt3.raw", "four.aedat4"])
def test_pieces_are_those_of_the_whole(name, tmp_path):
    write, sensor, _ = WRITERS[name]
    path = tmp_path / name
    write(path, some(40, sensor))
    path.write_bytes(path.read_bytes()[:-31])
    found, said = salvaged(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pieces = list(iter_events(path, 7, salvage=True))
    joined = (np.concatenate([getattr(piece, part) for piece in pieces]) for part in "txyp")
    assert Events(*joined, *sensor) == found and [str(each.message) for each in caught] == [said]


@pytest.mark.parametrize("name", ["events.h5", "own.npz"])
def test_formats_whose_contents_are_at_the_end_are_refused(name, tmp_path):
    if name.endswith("h5"):
        pytest.importorskip("h5py")
    write, sensor, _ = WRITERS[name]
    write(tmp_path / name, some(40, sensor))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    with pytest.raises(DataError, match=re.escape(name)):
        read_events(tmp_path / name, salvage=True)


def test_nothing_whole_says_why(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\x07\x0f\x80")
    with pytest.raises(DataError, match="it contains no events; it ends 3 bytes into a record"):
        read_events(tmp_path / "a.bin", salvage=True)


def test_data_sets_pass_it_on(tmp_path):
    for k, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        WRITERS["dat.dat"][0](tmp_path / name / "0.dat", some(40, (240, 304), seed=k))
    path = tmp_path / "b/0.dat"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match="cut off"):
        EventDataset(tmp_path, steps=4)[1]
    with pytest.warns(UserWarning, match="39 events were salvaged"):
        frames, _ = EventDataset(tmp_path, {"salvage": True}, steps=4)[1]
    assert frames.sum() == 39


@pytest.mark.parametrize("name", [*SIZES, *PACKETS])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_and_a_cut_end_in_events_or_in_one_error(name, tmp_path, data):
    write, sensor, _ = WRITERS[name]
    path = tmp_path / name
    write(path, some(40, sensor))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with contextlib.suppress(DataError):
        found, _ = salvaged(path)
        assert isinstance(found, Events)


@pytest.mark.parametrize(
    "said, message",
    [
        ("height 0, width 5", "the sensor is 0×5"),
        ("height 99999, width 99999", "larger than any camera's"),
        ("height 3, width 2", "x lies in"),
    ],
)
def test_a_comment_about_the_sensor_is_not_trusted(said, message, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"# sensor: {said}\nt_us,x,y,p\n10,3,1,1\n")
    with pytest.raises(DataError, match=message):
        read_events(path)
    assert len(read_events(path, sensor=(4, 4))) == 1  # what the caller says counts
    path.write_text("# sensor: height 1234567, width 5\nt_us,x,y,p\n10,3,1,1\n")
    assert read_events(path).width == 4  # no size that is read
