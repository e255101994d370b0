"Correct calls of the bridge, to be slipped."

import numpy as np
import pandas as pd
import torch
from slips import Call
from torch import nn

from neurobridge.bridge import Blueprint, Neuron, Time, Wiring, compose
from neurobridge.bridge.parts import neuron_maker
from neurobridge.data import Recording
from neurobridge.data.recordings import RDM92

HALF = Blueprint("convnet", width=4, in_shape=(1, 8, 8), classes=3)


def pairs():
    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return {"train": (x, torch.arange(12) % 3), "test": (x[:6], torch.arange(6) % 3)}


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def recorded():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, size=(120, 8, 8, 3)).astype(np.uint8)
    names = [f"image {i}" for i in range(120)]
    return Recording(rng.normal(size=(1, 120, 3)), names, images=images)


def people():
    images = np.random.default_rng(0).integers(0, 255, size=(12, 8, 8, 3)).astype(np.uint8)
    noise = np.random.default_rng(1).random((2, 12, 12))
    rdms = (noise + noise.transpose(0, 2, 1)) * (1 - np.eye(12))
    return RDM92(images, pd.DataFrame(), {"fmri_evc": rdms, "fmri_it": rdms})


def gray(images):
    return torch.from_numpy(images[..., 0]).float()[:, None] / 255


def table():
    return pd.DataFrame(
        {"net": ["a", "a", "b"], "energy": [1.0, 2, 3], "accuracy": [0.5, 0.6, 0.7], "v4": 0.1}
    )


CALLS = {
    "bridge.Wiring": Call(
        lambda folder: {
            "kind": "ensembles",
            "groups": 4,
            "p_intra": 1.0,
            "p_inter": 0.25,
            "grouping": "mixer",
            "where": "head",
            "seed": 3,
        }
    ),
    "bridge.Neuron": Call(
        lambda folder: {
            "kind": "lif",
            "decay": 0.25,
            "v_th": 0.5,
            "reset": "hard",
            "surrogate": "atan",
            "detach_reset": True,
            "gain": 0.5,
            "bias": 0.25,
        }
    ),
    "bridge.Time": Call(
        lambda folder: {
            "steps": 4,
            "recurrence": "across",
            "through_time": True,
            "readout": "mean",
            "feedback": True,
        }
    ),
    "bridge.Blueprint": Call(
        lambda folder: {
            "body": "cornet_s",
            "wiring": Wiring("masked"),
            "neuron": Neuron("lif"),
            "time": Time(2, "inside"),
            "width": 8,
            "in_shape": (1, 16, 16),
            "classes": 10,
            "times": (2, 4, 2),
            "small_images": True,
        }
    ),
    "bridge.neuron_maker": Call(
        lambda folder: {"neuron": Neuron("lif")}, view=lambda made: made(), target=neuron_maker
    ),
    "bridge.compose": Call(lambda folder: {"blueprint": HALF, "seed": 1}),
    "bridge.transfer_weights": Call(
        lambda folder: {
            "trained": compose(HALF),
            "blueprint": HALF.changed(neuron="lif", time=Time(2, "inside")),
            "rescale": False,
            "seed": 1,
        }
    ),
    "bridge.scorecard": Call(
        lambda folder: {
            "model": plain(),
            "data": pairs(),
            "recordings": recorded(),
            "rdms": people(),
            "layers": ["1"],
            "prepare": gray,
            "features": "mean",
            "components": 10,
            "cost": True,
            "speed": False,
            "robust": True,
            "steps": True,
            "published": False,
            "images": 4,
            "batch_size": 6,
            "seed": 0,
            "progress": False,
        },
        view=lambda row: {name: value for name, value in row.items() if name != "seconds"},
    ),
    "bridge.pareto": Call(
        lambda folder: {
            "table": table(),
            "x": "energy",
            "y": "accuracy",
            "colour": "v4",
            "by": "net",
        },
        legitimate={"by: list": "a list of columns names a network too"},
        view=lambda ax: ax.get_xlabel(),
    ),
}
LEFT_OUT = {}
