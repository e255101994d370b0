"Correct calls of the brain rooms, the recordings and the CORnets."

import numpy as np
import pandas as pd
import torch
from PIL import Image
from slips import Call
from torch import nn

from neurobridge.brain import (
    Score,
    ceiled,
    choose_layer,
    compare_models,
    neural_predictivity,
    rdm,
)
from neurobridge.brain.regression import stimulus_splits
from neurobridge.cornet import cornet_variant, cornet_z
from neurobridge.cornet.blocks import StemS
from neurobridge.cornet.recipes import Recipe
from neurobridge.data import Recording, load_images

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(30, 6)), RNG.normal(size=(30, 4))
MANY = RNG.normal(size=(120, 2))
RNG_MANY = np.random.default_rng(1).normal(size=(2, 60, 5))
ROWS, REST = np.arange(20), np.arange(20, 30)
GRAM = (X - X.mean(0)) @ (X - X.mean(0)).T
GROUPS = np.arange(30) % 2
P = RNG.dirichlet(np.ones(3), 12)
LABELS = np.arange(12) % 3
FALSE = np.where(np.arange(3) == LABELS[:, None], np.nan, RNG.uniform(0.1, 0.9, (12, 3)))
RDMS = np.stack(
    [np.abs(a - a.T) + np.abs(a + a.T) * (1 - np.eye(6)) for a in RNG.normal(size=(3, 6, 6))]
)
MORE_RDMS = np.stack([rdm(a) for a in RNG.normal(size=(5, 12, 6))])
DAYS = {
    day: compare_models({"a": X, "b": X[:, :3]}, Y, samples=3, components=2, splits=2, train=0.6)
    for day in ("Monday", "Tuesday")
}
SCORE = Score(0.5, 0.1, 0.5, None, np.array([0.4, 0.6]))
OF_UNITS = Score(0.5, 0.1, 0.5, None, np.array([0.4, 0.6]), np.array([[0.3, 0.5], [0.6, 0.6]]))
ASK_NAN = "NaN means that the value is unknown here"
ANY_LABEL = "labels may be anything that names an object, also one letter or number each"


def trials():
    picture = np.repeat(np.arange(12), 20)
    distractor = (LABELS[picture] + 1 + np.arange(240) % 2) % 3
    return pd.DataFrame(
        {
            "picture": picture,
            "distractor": distractor,
            "wrong": np.random.default_rng(1).random(240) < P[picture, distractor],
        }
    )


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())


def small(make=cornet_variant, **more):
    torch.manual_seed(0)
    return make(width=4, in_channels=1, classes=3, **more).eval()


def picture_file(folder, name="one.png"):
    Image.fromarray(np.full((4, 4, 3), 7, dtype=np.uint8)).save(folder / name)
    return folder / name


def subject(**more):
    return (
        dict(
            identifier="net",
            model=net(),
            areas={"V1": "0"},
            clock={"V1": (0,)},
            transform=lambda picture: picture.float(),
            degrees=8,
            batch_size=4,
            assembly=lambda array: array,
        )
        | more
    )


def netcdf(folder):
    import xarray as xr

    array = xr.DataArray(
        np.ones((2, 1)),
        dims=["presentation", "neuroid"],
        coords={
            "stimulus_id": ("presentation", ["a", "b"]),
            "object_name": ("presentation", ["o", "p"]),
            "region": ("neuroid", ["IT"]),
        },
    )
    array.to_dataset(name="data").to_netcdf(folder / "made.nc", engine="h5netcdf")
    return folder / "made.nc"


def assembly():
    import xarray as xr

    return xr.DataArray(np.ones((2, 1, 1)), dims=["presentation", "neuroid", "time_bin"], coords={
        "stimulus_id": ("presentation", ["a", "b"]), "object_name": ("presentation", ["o", "p"]), "region": ("neuroid", ["IT"]), "time_bin_start": ("time_bin", [70])})  # fmt: skip


def checkpoint(folder):
    torch.save(small(cornet_z).state_dict(), folder / "z.pth")
    return folder / "z.pth"


x = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))

CALLS = {
    "brain.stimulus_splits": Call(
        lambda folder: {"count": 30, "groups": GROUPS, "splits": 2, "train": 0.9, "seed": 1},
        legitimate={"groups: array of text": "one label for all is a group"},
        target=stimulus_splits,
    ),
    "brain.neural_predictivity": Call(
        lambda folder: {
            "features": X.copy(),
            "responses": Y.copy(),
            "groups": GROUPS,
            "components": 3,
            "splits": 2,
            "train": 0.8,
            "seed": 1,
            "tolerance": 1e-6,
            "penalties": [1.0],
            "per_unit": False,
            "measure": "r",
        },
        legitimate={"groups: array of text": "one label for all is a group"},
    ),
    "brain.neural_predictivity.feve": Call(
        lambda folder: {
            "features": X.copy(),
            "responses": Recording(np.stack([Y, Y[::-1]]), np.arange(30).astype(str)),
            "splits": 2,
            "train": 0.8,
            "measure": "feve",
        },
        neural_predictivity,
    ),
    "brain.Gram": Call(
        lambda folder: {"features": X.copy()}, view=lambda made: (made.products, made.stimuli)
    ),
    "brain.banded_predictivity": Call(
        lambda folder: {
            "bands": {"a": X.copy(), "b": X[:, :3] ** 2},
            "responses": Y.copy(),
            "groups": GROUPS,
            "penalties": [1.0, 10.0],
            "candidates": 2,
            "splits": 2,
            "train": 0.8,
            "seed": 1,
        },
        legitimate={"groups: array of text": "one label for all is a group"},
    ),
    "brain.reliability": Call(
        lambda folder: {
            "repeats": X[:20].reshape(4, 5, 6) + np.arange(5.0)[:, None],
            "splits": 2,
            "seed": 1,
            "measure": "split_half",
        },
        legitimate={"repeats: NaN": "a missing repeat"},
    ),
    "brain.ceiled": Call(lambda folder: {"score": SCORE, "ceiling": 0.8, "rule": "ratio"}),
    "brain.ceiled.least": Call(
        lambda folder: {"score": OF_UNITS, "ceiling": OF_UNITS, "rule": "ratio", "least": 0.3},
        ceiled,
    ),
    "brain.fit_readout": Call(
        lambda folder: {
            "features": X[:20].copy(),
            "labels": GROUPS[:20],
            "new_features": X[20:].copy(),
        },
        legitimate={"labels: array of objects": ANY_LABEL},
    ),
    "brain.behavioral_consistency": Call(
        lambda folder: {
            "probabilities": P.copy(),
            "labels": LABELS,
            "trials": trials(),
            "metric": "i2n",
            "halvings": 2,
            "seed": 0,
        }
    ),
    "brain.clock_of": Call(lambda folder: {"model": small()}),
    "brain.object_solution_times": Call(
        lambda folder: {
            "performance": np.array([[0.0, 2.0], [2.0, 2.0]]),
            "thresholds": np.array([1.0, 1.0]),
            "bins": [70.0, 80.0],
        }
    ),
    "brain.ost_score": Call(
        lambda folder: {
            "states": {100.0: MANY, 200.0: MANY[::-1]},
            "labels": np.arange(120) % 2,
            "thresholds": np.full(120, 0.1),
            "monkey": 100 + np.arange(120.0),
            "bins": [100.0, 150.0, 200.0],
            "splits": 2,
            "seed": 1,
        },
        legitimate={"monkey: NaN": ASK_NAN},
    ),
    "brain.rdm": Call(lambda folder: {"features": X.copy(), "metric": "euclidean"}),
    "brain.rdm.noise": Call(
        lambda folder: {"features": X.copy(), "metric": "mahalanobis", "noise": np.eye(6)}, rdm
    ),
    "brain.compare_rdms": Call(
        lambda folder: {
            "a": RDMS[0].copy(),
            "b": RDMS[1].copy(),
            "method": "spearman",
            "missing": False,
        }
    ),
    "brain.cka": Call(lambda folder: {"x": X.copy(), "y": X[:, :3] ** 2, "unbiased": True}),
    "brain.noise_ceiling": Call(lambda folder: {"rdms": RDMS.copy(), "method": "spearman"}),
    "brain.bootstrap_rdms": Call(
        lambda folder: {
            "models": RDMS[:1].copy(),
            "subjects": RDMS[1:].copy(),
            "samples": 3,
            "method": "spearman",
            "stimuli": True,
            "people": True,
            "seed": 0,
        }
    ),
    "brain.bootstrap_predictivity": Call(
        lambda folder: {
            "features": RNG_MANY[0].copy(),
            "responses": RNG_MANY[1].copy(),
            "groups": np.arange(60) % 2,
            "samples": 5,
            "units": True,
            "stimuli": True,
            "seed": 0,
            "components": 3,
            "splits": 2,
            "train": 0.7,
            "split_seed": 1,
            "tolerance": 1e-6,
            "penalties": [1.0],
        },
        legitimate={"groups: array of text": "one label for all is a group"},
    ),
    "brain.compare_models": Call(
        lambda folder: {
            "models": {"a": RNG_MANY[0].copy(), "b": RNG_MANY[0][:, :3].copy()},
            "responses": RNG_MANY[1].copy(),
            "groups": np.arange(60) % 2,
            "stimuli": True,
            "units": True,
            "test": "permutation",
            "correction": "fdr",
            "level": 0.9,
            "samples": 5,
            "seed": 0,
            "components": 3,
            "splits": 2,
            "train": 0.7,
            "split_seed": 1,
            "tolerance": 1e-6,
            "penalties": [1.0],
            "method": "spearman",
        },
        legitimate={"groups: array of text": "one label for all is a group"},
    ),
    "brain.compare_models.rdms": Call(
        lambda folder: {"models": {"a": RDMS[0].copy()}, "rdms": RDMS.copy(), "samples": 3},
        compare_models,
    ),
    "brain.across_sessions": Call(
        lambda folder: {
            "tables": {name: (table.copy(), pairs.copy()) for name, (table, pairs) in DAYS.items()},
            "correction": "holm",
            "level": 0.9,
        }
    ),
    "brain.score_over_time": Call(
        lambda folder: {
            "states": {50: X.copy(), 150: X[::-1].copy()},
            "responses": {60: Y.copy(), 160: Y[::-1].copy()},
            "measure": "predictivity",
            "groups": GROUPS,
            "components": 3,
            "splits": 2,
            "train": 0.8,
            "seed": 1,
            "tolerance": 1e-6,
            "penalties": [1.0],
            "metric": "euclidean",
            "method": "spearman",
        },
        legitimate={"groups: array of text": "one label for all is a group"},
    ),
    "brain.choose_layer": Call(
        lambda folder: {
            "layers": {"a": X.copy(), "b": X[::-1].copy()},
            "responses": Y.copy(),
            "groups": GROUPS,
            "splits": 2,
            "train": 0.8,
            "seed": 1,
            "inner": 2,
            "components": 3,
            "tolerance": 1e-6,
            "penalties": [1.0],
            "method": "spearman",
        },
        legitimate={"groups: array of text": "one label for all is a group"},
    ),
    "brain.choose_layer.other": Call(
        lambda folder: {
            "layers": {"a": X.copy(), "b": X[::-1].copy()},
            "responses": Y.copy(),
            "other": ({"a": X**2, "b": X**3}, Y[::-1].copy()),
            "splits": 2,
            "train": 0.8,
            "inner": 2,
            "components": 2,
        },
        choose_layer,
    ),
    "brain.flexible_rsa": Call(
        lambda folder: {
            "models": {"a": MORE_RDMS[0].copy(), "b": MORE_RDMS[1].copy()},
            "rdms": MORE_RDMS[2:].copy(),
            "form": "weighted",
            "method": "cosine",
            "splits": 2,
            "train": 0.5,
            "groups": np.arange(12) % 2,
            "people": 2,
            "seed": 1,
        },
        legitimate={"groups: array of text": "one label for all is a group"},
    ),
    "brain.choose_layer.rdms": Call(
        lambda folder: {"layers": {"a": X[:6].copy()}, "rdms": RDMS.copy(), "splits": 2},
        choose_layer,
    ),
    "brain.published_similarity": Call(
        lambda folder: {
            "features": X.copy(),
            "responses": Y.copy(),
            "measure": "ridge",
            "components": 3,
        }
    ),
    "brain.tsrsa": Call(
        lambda folder: {"features": X.copy(), "responses": Y.copy(), "lag": 2, "published": False}
    ),
    "brain.robustness": Call(
        lambda folder: {
            "model": small(cornet_z),
            "data": (x, torch.arange(2)),
            "noise": 0.5,
            "blur": 1.0,
            "occlusion": 0.2,
            "contrast": 0.5,
            "seed": 0,
            "batch_size": 2,
        }
    ),
    "brain.brain_score": Call(
        lambda folder: {"v4": 0.5, "it": 0.5, "ost": 0.2, "i2n": 0.3, "missing": "zero"},
        legitimate={"ost: NaN": "a static network has no solution times"},
    ),
    "brain.score_table": Call(
        lambda folder: {
            "models": {"net": dict(v4=0.5, it=0.5, ost=0.2, i2n=0.3)},
            "missing": "zero",
        }
    ),
    "brain.record_layers": Call(
        lambda folder: {
            "model": net(),
            "images": torch.rand(2, 3, 8, 8),
            "layers": ["0"],
            "batch_size": 2,
            "folder": None,
            "pool": {"0": "maps"},
        }
    ),
    "brain.imagenet_input": Call(
        lambda folder: {"size": 8},
        view=lambda transform: transform(torch.full((3, 4, 4), 9, dtype=torch.uint8)),
    ),
    "brain.Recorded": Call(
        lambda folder: subject(pool={"V1": "maps"}), view=lambda made: made.identifier
    ),
    "brain.BrainModel": Call(
        lambda folder: subject(behavior="1", logits="1", classes=["a", "b"], pool={"V1": "maps"}),
        view=lambda made: made.identifier,
    ),
    "data.split_images": Call(
        lambda folder: {
            "name": "digits",
            "limit": 60,
            "held_out": 0.5,
            "test_limit": 20,
            "seed": 1,
            "root": folder,
        },
        view=lambda sets: {name: part.x for name, part in sets.items()},
    ),
    "data.standardised": Call(
        lambda folder: {"sets": {"train": load_images("digits", limit=20)}},
    ),
    "lab.provenance": Call(lambda folder: {"model": net()}),
    "data.Recording": Call(
        lambda folder: {
            "responses": np.arange(12.0).reshape(2, 3, 2),
            "stimuli": ["a", "b", "c"],
            "groups": [0, 1, 0],
            "units": ["u", "v"],
            "images": np.zeros((3, 2, 2, 3), dtype=np.uint8),
            "name": "made",
        },
        legitimate={"responses: NaN": "a missing repeat", "responses: tensor": "the same numbers"},
    ),
    "data.from_assembly": Call(
        lambda folder: {
            "assembly": assembly(),
            "region": "IT",
            "time_bin": 70,
            "group": "object_name",
            "name": "made",
            "max_bytes": 10**6,
        }
    ),
    "data.read_brainio": Call(lambda folder: {"path": netcdf(folder), "max_bytes": 10**6}),
    "cornet.CORnet": Call(lambda folder: {"areas": {"V1": StemS(1, 4)}, "decoder": nn.Flatten()}),
    "cornet.CORnet.states": Call(lambda folder: {"x": x}, small().states),
    "cornet.CORnet.forward": Call(lambda folder: {"x": x}, small(cornet_z).forward),
    "cornet.cornet_z": Call(
        lambda folder: {"weights": checkpoint(folder), "width": 4, "in_channels": 1, "classes": 3}
    ),
    "cornet.cornet_s": Call(
        lambda folder: {"times": [1, 1, 1], "width": 4, "in_channels": 1, "classes": 3},
        view=lambda made: made.settings_now(),
    ),
    "cornet.cornet_r": Call(
        lambda folder: {"times": 2, "width": 4, "in_channels": 1, "classes": 3},
        view=lambda made: made.settings_now(),
    ),
    "cornet.cornet_rt": Call(
        lambda folder: {"times": 2, "width": 4, "in_channels": 1, "classes": 3},
        view=lambda made: made.settings_now(),
    ),
    "cornet.load_official": Call(
        lambda folder: {
            "model": small(cornet_z),
            "checkpoint": small(cornet_z).state_dict(),
            "max_bytes": 10**6,
        },
        legitimate={"checkpoint: text": "is a path, and the error says that there is no such file"},
    ),
    "cornet.cornet_variant": Call(
        lambda folder: {
            "times": [1, 1, 1],
            "loop": "conv1",
            "gate": "hard",
            "scale": 2,
            "convs": 3,
            "skip": True,
            "norm": "batch",
            "areas": 4,
            "width": 4,
            "in_channels": 1,
            "classes": 3,
            "small_images": True,
        },
        view=lambda made: made.settings_now(),
    ),
    "cornet.Recipe": Call(
        lambda folder: {"network": cornet_z, "training": {}, "size": {}}, target=Recipe
    ),
    "cornet.multiplications": Call(
        lambda folder: {"model": small(), "image": x[:1]},
        legitimate={
            "image: meta device": "multiplications are counted without values",
            "image: NaN": "multiplications do not depend on values",
        },
    ),
    "cornet.for_training": Call(lambda folder: {"model": small()}),
    "cornet.for_inference": Call(lambda folder: {"model": small()}, view=lambda made: made(x)),
}
LEFT_OUT = {
    "brain.Score": "contains what the functions of its page computed",
    "data.load_v4": "a folder, checked by core.paths, and a session; needs the data",
    "data.load_rdm92": "its only argument is a folder, checked by core.paths; needs the data",
}
