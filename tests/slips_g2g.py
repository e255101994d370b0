"Correct calls of wirings, wired layers, G2GNet and functional graphs."

import torch
from slips import Call
from torch import nn

from neurobridge.g2g import (
    EnsembleConv2d,
    EnsembleLinear,
    G2GNet,
    MaskedLinear,
    ensemble_mask,
    ensembles,
    functional_graph,
)
from neurobridge.g2g.functional import FunctionalGraph
from neurobridge.g2g.net import wired_linear

LAW = {"groups": 4, "p_intra": 1.0, "p_inter": 0.25, "grouping": "mixer", "layer": 1, "seed": 3}
IN_SHAPE = (1, 8, 8)


def mask() -> torch.Tensor:
    return ensemble_mask(8, 12, 4)


def ensemble_layer() -> EnsembleLinear:
    return EnsembleLinear(8, 12, **LAW)


def spikes(frames: int = 200, neurons: int = 4) -> torch.Tensor:
    return torch.rand(frames, neurons, generator=torch.Generator().manual_seed(1)) < 0.2


def graph() -> FunctionalGraph:
    return functional_graph(spikes(), shifts=5, threshold=2.0)


def some_groups() -> torch.Tensor:
    return ~torch.eye(4, dtype=torch.bool)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def net(**more) -> dict:
    return {"in_shape": IN_SHAPE, "classes": 3, "width": 16, "depth": 2, "groups": 4, "p_inter": 0.25, "grouping": "mixer", "form": "masked", "flatten": "channels",
            "neuron": nn.ReLU, "T": 2, "seed": 1}  # fmt: skip


READ_AS_A_LAYER = {"x: NaN": "NaN travels through a layer as through torch's own"}
CALLS = {
    "g2g.ensembles": Call(
        lambda folder: {
            "n": 8,
            "groups": 4,
            "grouping": "random",
            "layer": 1,
            "side": "in",
            "seed": 3,
        }
    ),
    "g2g.density": Call(lambda folder: {"groups": 4, "p_intra": 0.5, "p_inter": 0.25}),
    "g2g.p_inter_at": Call(lambda folder: {"density": 0.3, "groups": 4, "p_intra": 0.5}),
    "g2g.ensemble_mask": Call(lambda folder: {"n_in": 8, "n_out": 12, "exact": True, **LAW}),
    "g2g.er_mask": Call(
        lambda folder: {
            "n_in": 4,
            "n_out": 6,
            "density": 0.5,
            "layer": 1,
            "exact": False,
            "seed": 2,
        }
    ),
    "g2g.erk_densities": Call(lambda folder: {"shapes": [(8, 4), (4, 8)], "density": 0.25}),
    "g2g.small_world_mask": Call(
        lambda folder: {"n_in": 8, "n_out": 6, "density": 0.5, "beta": 0.25, "layer": 1, "seed": 2}
    ),
    "g2g.block_mask": Call(
        lambda folder: {"n_in": 8, "n_out": 4, "density": 0.5, "block": 2, "layer": 1, "seed": 2}
    ),
    "g2g.ensemble_edges": Call(
        lambda folder: {"mask": mask(), "to": ensembles(12, 4), "of": ensembles(8, 4)}
    ),
    "g2g.intra_fraction": Call(lambda folder: {"edges": torch.tensor([[3, 1], [0, 2]])}),
    "g2g.modularity": Call(lambda folder: {"edges": torch.tensor([[3, 1], [0, 2]])}),
    "g2g.MaskedLinear": Call(
        lambda folder: {
            "mask": mask(),
            "bias": True,
            "ensembles": (ensembles(12, 4), ensembles(8, 4)),
        }
    ),
    "g2g.MaskedLinear.forward": Call(lambda folder: {"x": torch.rand(5, 8)}, MaskedLinear(mask())),
    "g2g.EnsembleLinear": Call(lambda folder: {"n_in": 8, "n_out": 12, "bias": True, **LAW}),
    "g2g.EnsembleLinear.forward": Call(lambda folder: {"x": torch.rand(5, 8)}, ensemble_layer()),
    "g2g.EnsembleConv2d": Call(
        lambda folder: {
            "n_in": 8,
            "n_out": 12,
            "kernel_size": 3,
            "stride": 1,
            "padding": 1,
            "bias": True,
            **LAW,
        }
    ),
    "g2g.EnsembleConv2d.forward": Call(
        lambda folder: {"x": torch.rand(2, 8, 5, 5)}, EnsembleConv2d(8, 12, **LAW)
    ),
    "g2g.to_masked": Call(lambda folder: {"layer": ensemble_layer()}),
    "g2g.to_ensembles": Call(
        lambda folder: {"masked": wired_linear(8, 12, "er", groups=4, p_inter=1.0)}
    ),
    "g2g.export_weight": Call(
        lambda folder: {"layer": ensemble_layer(), "layout": "bsr", "block": (2, 2)},
        view=lambda matrix: matrix.to_dense(),
    ),
    "g2g.export_bias": Call(lambda folder: {"layer": ensemble_layer()}),
    "g2g.live_parameters": Call(lambda folder: {"model": mlp()}),
    "g2g.G2GNet": Call(lambda folder: net()),
    "g2g.G2GNet.forward": Call(
        lambda folder: {"x": torch.rand(2, *IN_SHAPE)}, G2GNet(IN_SHAPE, 3, width=16)
    ),
    "g2g.dense_width_at": Call(lambda folder: {"parameters": 10_000, "classes": 10, "depth": 2}),
    "g2g.wire": Call(
        lambda folder: {
            "model": mlp(),
            "form": "masked",
            "layers": ["0"],
            "report": False,
            **{name: value for name, value in LAW.items() if name != "layer"},
        }
    ),
    "g2g.to_linear": Call(lambda folder: {"model": ensemble_layer()}),
    "g2g.sparsity": Call(
        lambda folder: {"model": mlp(), "x": torch.rand(2, 8)},
        legitimate={"x: NaN": "a batch is there for its shape"},
    ),
    "g2g.simulate_ensembles": Call(
        lambda folder: {
            "neurons": 8,
            "frames": 50,
            "ensembles": 2,
            "size": 3,
            "rate": 0.1,
            "active": 0.1,
            "follow": 0.5,
            "noise": 0.1,
            "decay": 0.5,
            "state": 0.5,
            "seed": 1,
        }
    ),
    "g2g.sttc": Call(
        lambda folder: {
            "a": spikes(20, 3).float(),
            "b": spikes(20, 2).float(),
            "dt": 1,
            "directed": True,
            "given": spikes(20, 1)[:, 0].float(),
        }
    ),
    "g2g.binned_spikes": Call(
        lambda folder: {"times": [[0.1, 0.25], [0.3]], "frame": 0.1, "start": 0.0, "stop": 0.5}
    ),
    "g2g.functional_graph": Call(
        lambda folder: {
            "raster": spikes().float(),
            "dt": 1,
            "shifts": 5,
            "threshold": 2.0,
            "directed": True,
            "seed": 1,
            "min_spikes": 5,
            "surrogate": "jitter",
            "window": 20,
            "fdr": 0.2,
        }
    ),
    "g2g.first_order_groups": Call(lambda folder: {"graph": graph()}),
    "g2g.control_groups": Call(lambda folder: {"groups": some_groups(), "among": "all", "seed": 1}),
    "g2g.response_curve": Call(
        lambda folder: {
            "raster": spikes().float(),
            "groups": some_groups(),
            "bins": (0.0, 0.3, 1.0),
        }
    ),
}
LEFT_OUT = {}
