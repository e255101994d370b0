"Recordings written as CSV and HDF5: read back by this library, by h5py, pandas and tonic."

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_formats import recordings, some

from neurobridge.data import Events, read_events, to_frames, write_events

h5py = pytest.importorskip("h5py")
SUFFIXES = pytest.mark.parametrize("suffix", [".csv", ".h5", ".hdf5", ".CSV"])


@SUFFIXES
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_read_events_gives_back_what_was_written(suffix, tmp_path, data):
    sensor = data.draw(st.sampled_from([(1, 1), (34, 34), (720, 1280), (32768, 32768)]))
    events = data.draw(recordings(sensor, 1 << 50))
    shift = data.draw(st.sampled_from([0, -(10**9), 10**15]))
    events = Events(events.t + shift, events.x, events.y, events.p, *sensor)
    write_events(tmp_path / f"a{suffix}", events)
    told = {"sensor": sensor} if sensor[0] == 32768 else {}  # larger than any camera's
    assert read_events(tmp_path / f"a{suffix}", **told) == events


def test_several_blocks(tmp_path, monkeypatch):
    from neurobridge.data.readers import write

    monkeypatch.setattr(write, "_BLOCK", 16)
    events = some(50, (48, 64))
    write_events(tmp_path / "a.h5", events)
    assert read_events(tmp_path / "a.h5") == events


def test_h5py_and_pandas_read_the_columns(tmp_path):
    pd = pytest.importorskip("pandas")
    events = some(300, (48, 64))
    for name in ("a.h5", "a.csv"):
        write_events(tmp_path / name, events)
    table = pd.read_csv(tmp_path / "a.csv", comment="#")
    assert list(table) == ["t_us", "x", "y", "p"] and len(table) == 300
    with h5py.File(tmp_path / "a.h5") as book:
        for name, column in zip("txyp", table, strict=True):
            stored = book["events"][name]
            assert stored.dtype == getattr(events, name).dtype
            np.testing.assert_array_equal(stored[:], getattr(events, name))
            np.testing.assert_array_equal(table[column], getattr(events, name))
        assert book["events/t"].attrs["unit"] == "us"
        assert book.attrs["sensor_resolution"].tolist() == [48, 64]


def test_tonic_makes_the_same_frames_of_it(tmp_path):
    transforms = pytest.importorskip("tonic.transforms", reason="needs tonic")
    events = some(300, (48, 64))
    write_events(tmp_path / "a.h5", events)
    with h5py.File(tmp_path / "a.h5") as book:
        columns = {name: book[f"events/{name}"][:] for name in "xytp"}
    array = np.empty(300, [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        array[name] = column
    frames = transforms.ToFrame(sensor_size=(64, 48, 2), event_count=60)(array)
    ours = to_frames(read_events(tmp_path / "a.h5"), count=60)
    np.testing.assert_array_equal(frames[:, [1, 0]], ours.numpy())  # ON is channel 0 here


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    from neurobridge.data.readers import write

    events = some(20, (48, 64))
    write_events(tmp_path / "a.csv", events)

    def fails(self, *given, **named):
        raise OSError(28, "No space left on device")

    import pandas as pd

    monkeypatch.setattr(pd.DataFrame, "to_csv", fails)
    with pytest.raises(OSError, match="No space"):
        write.write_events(tmp_path / "a.csv", events[:3])
    assert read_events(tmp_path / "a.csv") == events
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize(
    "name, events, message",
    [
        ("a.raw", some(3, (4, 4)), r"path is 'a\.raw'; expected a name that ends in"),
        ("a", some(3, (4, 4)), "expected a name that ends in"),
        ("a.csv", some(3, (4, 4))[:0], "events is empty"),
    ],
)
def test_arguments(name, events, message, tmp_path):
    with pytest.raises(ValueError, match=f"write_events: .*{message}"):
        write_events(tmp_path / name, events)
    assert not list(tmp_path.iterdir())
