"Correct calls of the transfer room, to be slipped."

from functools import partial

import pandas as pd
import torch
from slips import Call
from torch import nn

from neurobridge.core import Sequences
from neurobridge.snn import LIF, spiking_convnet
from neurobridge.transfer import (
    IF,
    LIAF,
    EventPreset,
    Preset,
    SharpenedReLU,
    VideoNet,
    convert,
)
from neurobridge.transfer.conv_lstm import copy_parts
from neurobridge.transfer.event_pipeline import swap_readout

torch.set_num_threads(1)


def net(neuron=nn.ReLU, T=1):
    torch.manual_seed(0)
    return spiking_convnet(neuron, T=T, width=2, classes=3)


def images(count=8):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def data():
    return images(), torch.arange(8) % 3


def frames():
    return Sequences(torch.rand(8, 2, 2, 8, 8), torch.arange(8) % 3)


def converted():
    return convert(net(), images(), T=2)


def kernels(seed):
    return torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def weights(result):
    "The network of what a recipe returns: histories hold seconds."
    return result[0] if isinstance(result, tuple) else result


EVENTS = EventPreset(
    partial(spiking_convnet, width=2),
    dict(epochs=1, lr=0.01),
    dict(epochs=1, lr=0.01),
    dict(epochs=1, lr=0.01),
    T=2,
)
SHORT = Preset(
    partial(spiking_convnet, width=2),
    T=2,
    pretraining=dict(epochs=1, lr=0.01),
    finetuning=dict(epochs=1, lr=0.01),
    batch_size=8,
)
TRAINING = dict(epochs=1, lr=0.01)
FIT = "epochs, lr, train and valid are fit's, and checked there"

CALLS = {
    "transfer.trade_off": Call(
        lambda folder: {
            "net": converted(),
            "data": data(),
            "steps": (1, 2),
            "ann": net().eval(),
            "counted": 4,
            "mac": 4.6,
            "ac": 0.9,
            "loss": torch.nn.functional.cross_entropy,
            "metric": None,
        }
    ),
    "transfer.sharpened_relu": Call(
        lambda folder: {"x": torch.rand(3, 2), "low": 0.25, "high": 0.75}
    ),
    "transfer.sharpening": Call(lambda folder: {"epoch": 1, "epochs": 4}),
    "transfer.SharpenedReLU.forward": Call(
        lambda folder: {"x": torch.rand(3, 2)}, SharpenedReLU().forward
    ),
    "transfer.pretrain": Call(
        lambda folder: {"ann": net(), "train": data(), "on_epoch": print, **TRAINING},
        view=lambda history: history.best_epoch,
        legitimate={"lr": FIT, "epochs": FIT},
    ),
    "transfer.copy_weights": Call(lambda folder: {"ann": net(), "T": 4, "neuron": LIF}),
    "transfer.finetune": Call(
        lambda folder: {"snn": net(LIF, T=2), "train": data(), **TRAINING},
        view=lambda history: history.best_epoch,
    ),
    "transfer.Preset": Call(
        lambda folder: {
            "network": spiking_convnet,
            "T": 2,
            "pretraining": TRAINING,
            "finetuning": TRAINING,
            "optimizer": torch.optim.SGD,
            "batch_size": 8,
            "linear": False,
            "keep_momentum": False,
            "seed": 0,
        }
    ),
    "transfer.pipe_s": Call(
        lambda folder: {
            "preset": SHORT,
            "train": data(),
            "in_channels": 1,
            "classes": 3,
            "batch_size": 8,
            "folder": folder / "a",
        },
        view=weights,
    ),
    "transfer.IF": Call(lambda folder: {"theta": 1.0, "initial": 0.5, "backend": "auto"}),
    "transfer.IF.forward": Call(lambda folder: {"x": torch.rand(3, 2, 4)}, IF(1.0).forward),
    "transfer.activations": Call(lambda folder: {"model": net(), "images": images()}),
    "transfer.use_qcfs": Call(lambda folder: {"model": net(), "levels": 4, "images": images()}),
    "transfer.neurons": Call(lambda folder: {"net": converted()}),
    "transfer.convert": Call(
        lambda folder: {
            "model": net(),
            "images": images(),
            "T": 2,
            "threshold": "percentile",
            "percentile": 99.0,
            "per_channel": False,
            "initial": 0.5,
        }
    ),
    "transfer.fold_batchnorm": Call(lambda folder: {"model": net()}),
    "transfer.calibrate": Call(
        lambda folder: {
            "snn": converted(),
            "model": net(),
            "images": images(),
            "T": 2,
            "bias": True,
            "initial": True,
        }
    ),
    "transfer.local_thresholds": Call(
        lambda folder: {"snn": converted(), "model": net(), "images": images(), "rounds": 2}
    ),
    "transfer.permute_channels": Call(
        lambda folder: {"model": net(), "generator": torch.Generator().manual_seed(0)}
    ),
    "transfer.kernel_distance": Call(
        lambda folder: {"a": kernels(0), "b": kernels(1), "match": True}
    ),
    "transfer.cka": Call(
        lambda folder: {"x": torch.rand(8, 3), "y": torch.rand(8, 4), "batch_size": 8}
    ),
    "transfer.renew_statistics": Call(
        lambda folder: {"model": net(), "images": images(), "batch_size": 4}
    ),
    "transfer.layer_cka": Call(
        lambda folder: {
            "model_a": net(),
            "model_b": net(LIF, T=2),
            "images": images(),
            "layers": ["stem_neuron"],
            "batch_size": 8,
        }
    ),
    "transfer.state_evaluator": Call(
        lambda folder: {"model": net(), "images": images(), "data": data()},
        view=lambda read: read(net().state_dict()),
    ),
    "transfer.linear_path": Call(
        lambda folder: {
            "a": net().state_dict(),
            "b": net().state_dict(),
            "evaluate": lambda state: {"loss": 1.0},
            "points": 3,
        }
    ),
    "transfer.barrier": Call(
        lambda folder: {
            "path": pd.DataFrame({"t": [0, 0.5, 1], "accuracy": [1.0, 0.5, 1.0]}),
            "column": "accuracy",
        }
    ),
    "transfer.static_stage": Call(
        lambda folder: {"ann": net(), "train": data(), **TRAINING},
        view=lambda history: history.best_epoch,
    ),
    "transfer.swap_stem": Call(
        lambda folder: {"net": net(), "in_channels": 2, "T": 2, "neuron": LIAF}
    ),
    "transfer.swap_readout": Call(lambda folder: {"net": net(), "classes": 4}, target=swap_readout),
    "transfer.warm_up": Call(
        lambda folder: {"net": net(LIF, T=2), "train": data(), "part": "stem", **TRAINING},
        view=lambda history: history.best_epoch,
    ),
    "transfer.to_spikes": Call(lambda folder: {"net": net(LIAF, T=2)}),
    "transfer.EventPreset": Call(
        lambda folder: {
            "network": spiking_convnet,
            "static": TRAINING,
            "warm": TRAINING,
            "liaf": TRAINING,
            "spikes": TRAINING,
            "T": 2,
            "seed": 0,
        }
    ),
    "transfer.pipe_d": Call(
        lambda folder: {
            "preset": EVENTS,
            "static": (data(), None),
            "events": (frames(), None),
            "in_channels": 1,
            "classes": 3,
            "folder": folder / "a",
        },
        view=weights,
    ),
    "transfer.VideoNet": Call(
        lambda folder: {
            "neuron": LIF,
            "in_channels": 2,
            "classes": 3,
            "channels": (2, 4),
            "features": 4,
            "hidden": 3,
        }
    ),
    "transfer.VideoNet.forward": Call(
        lambda folder: {"x": torch.rand(2, 3, 2, 8, 8)},
        VideoNet(channels=(2, 4)).eval().forward,
    ),
    "transfer.copy_parts": Call(
        lambda folder: {
            "source": VideoNet(channels=(2, 4), features=4, hidden=3),
            "neuron": LIF,
            "in_channels": 2,
            "encoder": True,
            "decoder": True,
        },
        target=copy_parts,
    ),
}
LEFT_OUT = {
    "transfer.SharpenedReLU": "takes no argument",
}
