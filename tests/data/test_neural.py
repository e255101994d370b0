"Recordings: what is refused, netCDF as BrainIO writes it, the real sets."

import io
import shutil
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from neurobridge.core import data_root
from neurobridge.data import (
    DataError,
    Recording,
    from_assembly,
    load_rdm92,
    load_v4,
    read_brainio,
)
from neurobridge.data.recordings import V4_OBJECTS

xr = pytest.importorskip("xarray")


def need(folder):
    if not (data_root() / folder).is_dir():
        pytest.skip(f"no {data_root() / folder}: set NEUROBRIDGE_DATA, see data/README.md")
    return data_root() / folder


def assembly(rng, shown, units, bins=1):
    values = rng.normal(size=(len(shown), units, bins))
    return xr.DataArray(values, dims=["presentation", "neuroid", "time_bin"], coords={
        "stimulus_id": ("presentation", shown), "object_name": ("presentation", [name[0] for name in shown]), "region": ("neuroid", ["V4"] * (units - 1) + ["IT"]),
        "neuroid_id": ("neuroid", [f"n{i}" for i in range(units)]), "time_bin_start": ("time_bin", 70 + 10 * np.arange(bins)), "time_bin_end": ("time_bin", 80 + 10 * np.arange(bins))})  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    stimuli=st.integers(1, 6),
    repeats=st.integers(1, 5),
    units=st.integers(2, 4),
)
def test_an_assembly_loses_nothing(seed, stimuli, repeats, units):
    "Every presentation is a repeat of its stimulus, whatever the order; the average is xarray's own group mean."
    rng = np.random.default_rng(seed)
    shown = rng.permutation(
        np.repeat(
            [f"{'ab'[i % 2]}{i}" for i in range(stimuli)], rng.integers(1, repeats + 1, stimuli)
        )
    )
    made = assembly(rng, shown, units)
    read = from_assembly(made.transpose("time_bin", "neuroid", "presentation"))
    assert np.isfinite(read.responses).sum() == made.size and read.counts().tolist() == [
        np.sum(shown == name) for name in read.stimuli
    ]
    expected = (
        made.isel(time_bin=0)
        .groupby("stimulus_id")
        .mean("presentation")
        .transpose("stimulus_id", "neuroid")
    )
    np.testing.assert_allclose(read.average(), expected.sel(stimulus_id=read.stimuli).values)
    assert (
        read.groups.tolist() == [name[0] for name in read.stimuli]
        and from_assembly(made, region="IT").responses.shape[2] == 1
    )


def test_assemblies_that_are_refused():
    rng = np.random.default_rng(0)
    made = assembly(rng, ["a", "b"], 3, bins=2)
    for said, way in {
        "70, 80": lambda: from_assembly(made), "IT, V4": lambda: from_assembly(made, region="V1", time_bin=70), "presentation": lambda: from_assembly(made.rename(presentation="image")),
        "stimulus_id or image_id": lambda: from_assembly(made.drop_vars("stimulus_id"), time_bin=70), "is missing": lambda: from_assembly(made.values),
    }.items():  # fmt: skip
        with pytest.raises(DataError, match=said):
            way()


def test_files_missing_cut_off_or_with_several_arrays(tmp_path):
    made = assembly(np.random.default_rng(0), ["a", "b"], 3)
    path = tmp_path / "made.nc"
    made.to_dataset(name="data").to_netcdf(path, engine="h5netcdf")
    np.testing.assert_array_equal(read_brainio(path, region="V4").average(), made.values[:, :2, 0])
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], b"not HDF5" * 100):
        path.write_bytes(content)
        with pytest.raises(DataError, match="made.nc can't be read"):
            read_brainio(path)
    with pytest.raises(DataError, match="nowhere.nc"):
        read_brainio(tmp_path / "nowhere.nc")
    xr.Dataset({"one": made, "two": made}).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(DataError, match="2 arrays"):
        read_brainio(path)


@pytest.mark.parametrize("responses, named, said", [
    (np.zeros((2, 3)), {}, "repeats, stimuli, units"), (np.zeros((0, 2, 3)), {}, "repeats, stimuli, units"), (np.full((1, 2, 3), np.inf), {}, "infinite"),
    (np.zeros((1, 3, 3)), {}, "2 stimuli for responses of 3"), (np.zeros((1, 2, 3)), {"groups": [1]}, "1 groups"), (np.zeros((1, 2, 3)), {"units": "ab"}, "2 units"),
    (np.zeros((1, 2, 3)), {"stimuli": ["a", "a"]}, "comes 2 times"), (np.array([[[0, 1.0], [0, np.nan]]]), {}, "'b' in unit 1"),
])  # fmt: skip
def test_what_is_no_recording(responses, named, said):
    with pytest.raises(DataError, match=said):
        Recording(responses, **{"stimuli": ["a", "b"]} | named)


@pytest.mark.data
def test_real_v4(tmp_path):
    folder = need("macaque_v4_210325")
    v4 = load_v4()
    raw = np.load(folder / "responses_210325.npy")
    np.testing.assert_allclose(v4.average()[123, 17], np.nanmean(raw[17, 123]))
    assert (
        v4.responses.shape == (10, 640, 50)
        and v4.images.shape == (640, 112, 112, 3)
        and v4.counts().mean() == pytest.approx(7.56, abs=0.005)
    )
    assert v4.stimuli[[0, 9, 639]].tolist() == [
        "image0001.jpg",
        "image0010.jpg",
        "image0640.jpg",
    ] and [v4.groups[80 * i + 79] for i in range(8)] == list(V4_OBJECTS)
    shutil.copytree(folder, tmp_path / folder.name)
    changed = tmp_path / folder.name / "responses_210325.npy"
    changed.chmod(0o644)
    changed.write_bytes(changed.read_bytes()[:-8] + b"12345678")
    with pytest.raises(DataError, match="responses_210325.npy"):
        load_v4(tmp_path)


def write_session(
    folder, session=190923, units=4, images=12, repeats=3, size=8, name="image{}.jpg"
):
    "Files of a session as the authors publish them; the images in the order of their numbers."
    place = folder / f"macaque_v4_{session}"
    place.mkdir(parents=True)
    responses = np.random.default_rng(0).poisson(4.0, (units, images, repeats)).astype(float)
    responses[:, 2, 1:] = np.nan
    np.save(place / f"responses_{session}.npy", responses)
    with zipfile.ZipFile(place / f"images_{session}.zip", "w") as file:
        for i in range(images, 0, -1):
            made = io.BytesIO()
            Image.fromarray(np.full((size, size, 3), 20 * i, dtype=np.uint8)).save(made, "png")
            file.writestr(name.format(i), made.getvalue())
    return place, responses


def test_another_session(tmp_path):
    "No checksum is known: axes, the order of images by number, and no object names."
    _, responses = write_session(tmp_path)
    found = load_v4(tmp_path, session=190923)
    assert found.responses.shape == (3, 12, 4) and found.groups is None and "190923" in found.name
    np.testing.assert_array_equal(found.responses[:, 5, 3], responses[3, 5])
    assert found.stimuli[[0, 9, 11]].tolist() == ["image1.jpg", "image10.jpg", "image12.jpg"]
    assert found.images[:, 0, 0, 0].tolist() == [20 * i for i in range(1, 13)]
    assert found.counts()[2] == 1
    _, more = write_session(tmp_path, 201025, name="images_201025/image{}.png")  # in a folder
    np.testing.assert_array_equal(load_v4(tmp_path, 201025).average(), np.nanmean(more, 2).T)


def test_a_session_that_is_missing_or_damaged(tmp_path):
    with pytest.raises(DataError, match="responses_190923.npy is missing.*macaque_v4_190923"):
        load_v4(tmp_path, session=190923)
    for wrong in (0, -5, 1.5, "190923", None):
        with pytest.raises((TypeError, ValueError), match="load_v4: session"):
            load_v4(tmp_path, session=wrong)
    place, _ = write_session(tmp_path)
    numbers, pictures = place / "responses_190923.npy", place / "images_190923.zip"
    whole = {path: path.read_bytes() for path in (numbers, pictures)}
    for path, content in whole.items():
        broken = content[: len(content) // 2], b"", content[:50], bytes(len(content))
        for part in (*broken, content[:200] + bytes(300) + content[500:]):
            path.write_bytes(part)
            if path == numbers and len(part) == len(content) and part[:80] == content[:80]:
                continue  # numbers that are zero are numbers
            with pytest.raises(DataError, match=f"{path.name} can't be read"):
                load_v4(tmp_path, session=190923)
        path.write_bytes(content)
    np.save(numbers, np.zeros((4, 11, 3)))
    with pytest.raises(DataError, match=r"\[4, 11, 3\].*12 images"):
        load_v4(tmp_path, session=190923)
    np.save(numbers, np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="can't be read as an array"):
        load_v4(tmp_path, session=190923)


def test_a_zip_that_unfolds_into_more_than_the_budget(tmp_path, monkeypatch):
    monkeypatch.setattr("neurobridge.data.recordings.BUDGET", 100_000)
    write_session(tmp_path, size=8)
    assert len(load_v4(tmp_path, 190923).stimuli) == 12
    place, _ = write_session(tmp_path, 201025)
    with zipfile.ZipFile(place / "images_201025.zip", "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("image13.png", bytes(200_000))
    with pytest.raises(DataError, match="images_201025.zip can't be read"):
        load_v4(tmp_path, 201025)


@pytest.mark.data
def test_real_rdm92():
    need("rdm92")
    data = load_rdm92()
    assert {name: len(each) for name, each in data.rdms.items()} == {
        "fmri_it": 15,
        "fmri_evc": 15,
        "monkey_it": 1,
        "human_it": 1,
        "human_it_sessions": 8,
        "judgements": 16,
    }
    for each in data.rdms.values():
        assert each.shape[1:] == (92, 92) and np.isfinite(each).all()
        np.testing.assert_allclose(each, each.transpose(0, 2, 1))
        np.testing.assert_allclose(each[:, range(92), range(92)], 0, atol=1e-9)
    animate = data.categories["animate"].to_numpy()
    within = data.rdms["monkey_it"][0][np.ix_(animate, animate)].sum() / (
        48 * 47
    )  # the matrices are in the pictures' order
    assert within < data.rdms["monkey_it"][0][np.ix_(animate, ~animate)].mean() - 0.05


@pytest.mark.data
def test_real_brainio_files():
    folder = need("brainio")
    one, two = (
        read_brainio(folder / "assy_test_TestMe.nc"),
        read_brainio(folder / "assy_test_package_assembly.nc"),
    )
    for read, name in ((one, "assy_test_TestMe"), (two, "assy_test_package_assembly")):
        with xr.open_dataset(folder / f"{name}.nc", engine="h5netcdf") as file:
            (values,) = (each.values for each in file.data_vars.values())
            names, counts = np.unique(
                file["stimulus_id" if "stimulus_id" in file else "image_id"].values,
                return_counts=True,
            )
        assert (
            read.responses.shape == (counts.max(), len(names), 3)
            and np.nansum(read.responses) == values.sum()
        )
