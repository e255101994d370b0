"Own responses in the forms that people bring, images in folders of folders, own models by name: from the front door alone, each against numbers computed another way."

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet18

import neurobridge as nb

CLASSES = ("cat", "dog", "car")


def write(folder, name_of, units=12, repeats=4, seed=0):
    "Sixty photographs in folders by class, and responses by image: later repeats of some are missing. Returns names and responses."
    rng = np.random.default_rng(seed)
    names = []
    for kind in CLASSES:
        (folder / "photos" / kind).mkdir(parents=True, exist_ok=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
            Image.fromarray(pixels).save(folder / "photos" / kind / f"{name_of(kind, i)}.JPEG")
            names.append((kind, i))
    (folder / "photos" / "cat" / ".DS_Store").write_text("no image")
    (folder / "photos" / "notes.txt").write_text("no image")
    order = rng.permutation(60)
    signal = np.array(
        [np.asarray(Image.open(folder / "photos" / k / f"{name_of(k, i)}.JPEG")) for k, i in names]
    )
    signal = signal[:, ::4, ::4].reshape(60, -1).astype(float)
    signal = (signal - signal.mean(0)) @ rng.normal(size=(signal.shape[1], units)) / 500
    values = signal[order] + rng.normal(size=(repeats, 60, units))
    values[2:, 5] = values[1, 7, 3] = np.nan
    return [names[i] for i in order], values


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")


def pixels():
    "A network whose layers are the pixels, small ones and their blocks' means."
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 30))


def subject(areas, network=None):
    torch.manual_seed(0)
    return nb.brain.Recorded(
        "pixels", network or pixels(), areas, transform=lambda image: image.float() / 255
    )


def test_a_table_of_trials_and_photographs_in_folders(tmp_path):
    "Names without folders, another ending and another order; a figure in vectors and one of 300 dots per inch."
    names, values = write(tmp_path, lambda kind, i: f"{kind}_{i:02}")
    rows = [
        {"image": f"{kind}_{i:02}.jpg", "trial": t} | dict(enumerate(values[t, place]))
        for t in range(4)
        for place, (kind, i) in enumerate(names)
        if np.isfinite(values[t, place]).any()
    ]
    table = pd.DataFrame(rows).sample(frac=1, random_state=0).sort_values("trial", kind="stable")
    table.to_csv("responses.csv", index=False)

    trials = pd.read_csv("responses.csv").set_index("image").drop(columns="trial")
    recording = nb.data.from_assembly(trials)
    reader = subject({"V1": "0", "V4": "2"})
    reader.start_recording(["V1", "V4"])
    layers = reader.look_at("photos")
    scores, _ = nb.brain.compare_models(layers, recording, penalties=[1.0], train=0.7, samples=50)
    figure = scores.score.plot.bar(yerr=scores.high - scores.score).figure
    figure.savefig("scores.pdf")
    figure.savefig("scores.png", dpi=300)

    assert recording.counts().tolist().count(2) == 1 and len(recording.stimuli) == 60
    by_name = {name: row for row, name in enumerate(recording.stimuli)}
    order = [by_name[f"{kind}_{i:02}.jpg"] for kind, i in names]
    np.testing.assert_allclose(recording.average()[order], np.nanmean(values, 0), rtol=1e-6)
    assert scores.score["V1"] > 0.3
    flat = np.stack([
        np.asarray(Image.open(f"photos/{k}/{k}_{i:02}.JPEG"), np.float64).transpose(2, 0, 1) / 255
        for k, i in names
    ])  # fmt: skip
    pooled = flat.reshape(60, 3, 8, 4, 8, 4).mean((3, 5)).reshape(60, -1)
    back = np.argsort(order)
    alone = nb.brain.neural_predictivity(
        pooled[back], recording.average(), penalties=[1.0], train=0.7
    )
    assert scores.score["V1"] == pytest.approx(alone.value, abs=1e-4)
    assert (tmp_path / "scores.pdf").read_bytes().startswith(b"%PDF")
    assert abs(Image.open("scores.png").info["dpi"][0] - 300) < 1


def test_two_subjects_with_other_images_in_files_of_xarray(tmp_path):
    "Equal file names in each folder, so that only folder and name together tell images apart; each person saw other images."
    xr = pytest.importorskip("xarray")
    names, values = write(tmp_path, lambda kind, i: f"{i:02}")
    given = {}
    for person, rows in (("first", slice(0, 40)), ("second", slice(15, 60))):
        own = [f"{kind}/{i:02}" for kind, i in names[rows]]
        xr.DataArray(
            values[:, rows].transpose(1, 2, 0),
            dims=["image", "voxel", "trial"],
            coords={"image": own, "voxel": [f"v{i}" for i in range(12)]},
        ).to_netcdf(f"{person}.nc", engine="h5netcdf")
        given[person] = rows

    reader = subject({"V1": "0", "V4": "2"})
    reader.start_recording(["V1", "V4"])
    layers = reader.look_at("photos")
    tables = {}
    for person in given:
        recording = nb.data.from_assembly(xr.open_dataarray(f"{person}.nc"), name=person)
        tables[person] = nb.brain.compare_models(
            layers, recording, penalties=[1.0], train=0.7, samples=50
        )
    scores, pairs = nb.brain.across_sessions(tables)

    paths = [str(each) for each in layers["V1"].stimulus_id.values]
    rows = [next(i for i, path in enumerate(paths) if path.endswith(f"/{k}/{n:02}.JPEG")) for k, n in names]  # fmt: skip
    for person, part in given.items():
        alone = nb.brain.neural_predictivity(
            layers["V1"].values[rows[part]],
            np.nanmean(values[:, part], 0),
            penalties=[1.0],
            train=0.7,
        )
        assert tables[person][0].score["V1"] == pytest.approx(alone.value, abs=1e-6)
    both = [tables[person][0].score["V1"] for person in given]
    assert min(both) <= scores.score["V1"] <= max(both) and len(pairs) == 1


class TimmLike(nn.Module):
    "Blocks in a list and an answer by name, as vision transformers of timm have."

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.patch_embed = nn.Conv2d(3, 16, 8, stride=8)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2))  # fmt: skip
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(x.mean(1))}


def test_three_models_and_a_file_of_hdf5(tmp_path):
    "Responses and names straight from h5py; a ResNet, a transformer with tokens and pixels; the pixels, of which responses were made, win."
    h5py = pytest.importorskip("h5py")
    names, values = write(tmp_path, lambda kind, i: f"{kind}-{i}")
    values[1:, 9, 2] = np.nan
    with h5py.File("responses.h5", "w") as file:
        file["spikes"] = values
        file["image"] = np.array([f"{kind}-{i}".encode() for kind, i in names])
    torch.manual_seed(0)
    networks = {
        "pixels": (pixels(), "0", None),
        "ResNet": (resnet18(num_classes=10), "layer3.1", "maps"),
        "ViT": (TimmLike(), "blocks.1", "tokens"),
    }

    with h5py.File("responses.h5") as file:
        recording = nb.data.Recording(file["spikes"], file["image"])
    recording = recording[recording.counts() >= 2]
    features = {}
    for name, (network, layer, pool) in networks.items():
        reader = nb.brain.Recorded(
            name, network, {"IT": layer}, transform=lambda image: image.float() / 255, pool=pool
        )
        reader.start_recording("IT")
        features[name] = reader.look_at("photos")
    scores, pairs = nb.brain.compare_models(
        features, recording, penalties=[1.0], train=0.7, samples=100
    )

    assert len(recording.stimuli) == 59  # one unit was recorded once for one image
    assert scores.score.idxmax() == "pixels" and len(pairs) == 3
    assert features["ViT"].shape == (60, 16) and features["ResNet"].shape == (60, 256)
    with torch.no_grad():
        path = str(features["ViT"].stimulus_id.values[4])
        image = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255
        vit = networks["ViT"][0].eval()
        tokens = vit.patch_embed(image).flatten(2).transpose(1, 2)
        for block in vit.blocks:
            tokens = block(tokens)
    np.testing.assert_allclose(features["ViT"].values[4], tokens.mean(1)[0], atol=1e-5)


@pytest.mark.parametrize(
    "given, words",
    [
        (lambda: pd.DataFrame({"image": ["a", "b"], "u": [1.0, 2.0]}), r"set_index\('image'\)"),
        (lambda: pd.DataFrame({"u": [1.0, 2.0]}), "does not name the stimulus"),
        (lambda: pd.DataFrame(index=["a", "b"]), "no numbers"),
        (lambda: pd.DataFrame({"u": [1.0, np.nan]}, index=["a", "b"]), "no repeat of stimulus"),
    ],
)
def test_tables_that_are_no_trials(given, words):
    with pytest.raises(nb.data.DataError, match=words):
        nb.data.from_assembly(given())
    good = pd.DataFrame({"u": [1.0, 2.0]}, index=["a", "b"])
    with pytest.raises(nb.data.DataError, match="leave them out"):
        nb.data.from_assembly(good, region="IT")
    with pytest.raises(TypeError, match="row per trial"):
        nb.data.Recording(good, ["a", "b"])


def test_axes_without_names_are_refused():
    xr = pytest.importorskip("xarray")
    array = xr.DataArray(np.ones((2, 3, 4)), dims=["repeat", "image", "unit"])
    with pytest.raises(nb.data.DataError, match="no names along image"):
        nb.data.from_assembly(array)
    with pytest.raises(nb.data.DataError, match="presentation"):
        nb.data.from_assembly(array.rename(repeat="time"))
