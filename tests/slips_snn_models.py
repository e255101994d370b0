"Correct calls of snn.spikify, snn.monitor, snn.synops and the NIR functions."

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from slips import Call
from torch import nn

from neurobridge.snn import LIF, monitor, to_nir
from neurobridge.snn.recording import Record


def ann():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()


def nir_file(folder):
    import nir

    nir.write(folder / "net.nir", graph())
    return folder / "net.nir"


def answered(net):
    "A network's weights, and what it says to one image."
    with torch.no_grad():
        return [*net.state_dict().values(), net(torch.ones(2, 1, 4, 4))]


def watched(**given):
    layer = given["model"]
    with monitor(**given) as records:
        layer(torch.ones(3, 2, 4))
    return [(name, record.rates) for name, record in records.items()]


def record():
    return Record(3, torch.tensor([1, 2]), {"spikes": [torch.ones(3, 1, 2, dtype=torch.bool)]})


def drawn(ax):
    plt.close("all")
    return [len(ax.patches), len(ax.collections)]


def graph():
    return to_nir(nn.Sequential(nn.Linear(3, 2), LIF()), torch.rand(4, 1, 3))


CALLS = {
    "snn.spikify": Call(lambda folder: {"model": ann(), "neuron": LIF, "T": 3}, view=answered),
    "snn.monitor": Call(
        lambda folder: {"model": LIF(), "layers": [""], "membranes": False, "only_rates": True},
        watched,
    ),
    "snn.firing": Call(lambda folder: {"records": {"a": record()}, "saturated": 0.9}),
    "snn.rate_histogram": Call(
        lambda folder: {"records": {"a": record()}, "ax": None, "bins": 4}, view=drawn
    ),
    "snn.spike_raster": Call(
        lambda folder: {"record": record(), "item": 0, "neurons": 2, "ax": None}, view=drawn
    ),
    "snn.synops": Call(
        lambda folder: {
            "model": ann(),
            "batch": torch.rand(2, 1, 4, 4),
            "images": 2,
            "mac": 4.6,
            "ac": 0.9,
        }
    ),
    "snn.to_nir": Call(
        lambda folder: {
            "model": nn.Sequential(nn.Linear(3, 2), LIF()),
            "example": torch.rand(4, 1, 3),
            "dt": 1e-4,
        },
        view=lambda made: [*made.nodes, *made.edges],
        legitimate={"example: NaN": "an example is there for its shape"},
    ),  # fmt: skip
    "snn.to_onnx": Call(
        lambda folder: {"model": nn.Sequential(nn.Linear(3, 2)), "example": torch.rand(2, 3)},
        view=lambda made: [node.op_type for node in made.graph.node],
        legitimate={"example: NaN": "an example is there for its shape"},
    ),
    "snn.read_nir": Call(
        lambda folder: {"path": nir_file(folder), "max_bytes": 10**6},
        view=lambda made: [*made.nodes, *made.edges],
    ),
    "snn.from_nir": Call(lambda folder: {"graph": graph(), "dt": 1e-4}),
}
LEFT_OUT = {}
