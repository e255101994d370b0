"Correct calls of the neurons, layers, encoders, networks, losses and of what runs them."

import torch
import torch.nn.functional as F
from slips import Call
from torch import nn

from neurobridge.snn import (
    LIF,
    AdaptiveLIF,
    RecurrentLIF,
    SpikingAttention,
    Surrogate,
    Synapse,
    layers,
    rectangle,
    streaming,
)
from neurobridge.snn import models as nets


def spikes(*shape):
    return (torch.rand(*shape) < 0.3).float()


def linear_trunk():
    return nn.Sequential(nn.Linear(4, 4), LIF())


def recurrent():
    torch.manual_seed(0)
    return RecurrentLIF(nn.Linear(2, 2))


def after(layer, *shape):
    return layer(torch.rand(*shape), return_state=True)[1]


def convnet():
    return nets.spiking_convnet(T=2, width=2, classes=3).eval()


LIF_SETTINGS = {
    "decay": 0.5,
    "v_th": 1.0,
    "reset": "hard",
    "surrogate": rectangle(),
    "detach_reset": True,
}
DECIDES = {
    f"x: {slip}": "only its device and data type count"
    for slip in ("meta device", "first axis empty", "last axis empty", "NaN")
}
BUILDS = {"in_channels": 1, "classes": 3, "T": 2, "width": 2}
RESNET = {"neuron": LIF, **BUILDS, "small_images": True, "shortcut": "sew", "alpha": 1.0}


def per_step():
    return {"y": torch.tensor([0, 2]), "reduction": "mean"}


CALLS = {
    "snn.Surrogate": Call(
        lambda folder: {"name": "own", "constants": (2.0,), "derivative": torch.mul}
    ),
    "snn.Surrogate.__call__": Call(
        lambda folder: {"u": torch.randn(3)}, Surrogate("sigmoid", (4.0,)).__call__
    ),
    "snn.rectangle": Call(lambda folder: {"width": 0.5}),
    "snn.triangle": Call(lambda folder: {"width": 0.5}),
    "snn.atan": Call(lambda folder: {"alpha": 2.0}),
    "snn.sigmoid": Call(lambda folder: {"alpha": 2.0}),
    "snn.fast_sigmoid": Call(lambda folder: {"alpha": 2.0}),
    "snn.gaussian": Call(lambda folder: {"sigma": 0.5, "center": 0.2}),
    "snn.lif": Call(
        lambda folder: {
            "x": torch.rand(3, 2),
            "v0": torch.zeros(2),
            "output": "spike",
            "backend": "torch",
            **LIF_SETTINGS,
        }
    ),
    "snn.LIF": Call(
        lambda folder: {
            "output": "spike",
            "learn_decay": False,
            "learn_threshold": False,
            "backend": "auto",
            **LIF_SETTINGS,
        }
    ),
    "snn.LIF.forward": Call(
        lambda folder: {"x": torch.rand(3, 2), "v0": torch.zeros(2), "return_state": True},
        LIF().forward,
    ),
    "snn.RecurrentLIF": Call(
        lambda folder: {
            "synapses": nn.Linear(2, 2),
            "output": "spike",
            "learn_decay": False,
            "learn_threshold": False,
            "backend": "auto",
            **LIF_SETTINGS,
        }
    ),
    "snn.RecurrentLIF.forward": Call(
        lambda folder: {
            "x": torch.rand(3, 2, 2),
            "state": after(recurrent(), 2, 2, 2),
            "return_state": True,
        },
        recurrent().forward,
    ),
    "snn.AdaptiveLIF": Call(
        lambda folder: {
            "rise": 0.2,
            "rise_decay": 0.9,
            "learn_decay": False,
            "learn_threshold": False,
            "learn_rise": True,
            "synapses": nn.Linear(2, 2),
            "backend": "auto",
            **LIF_SETTINGS,
        }
    ),
    "snn.AdaptiveLIF.forward": Call(
        lambda folder: {
            "x": torch.rand(3, 2, 2),
            "state": after(AdaptiveLIF(), 2, 2, 2),
            "return_state": True,
        },
        AdaptiveLIF().forward,
    ),
    "snn.SpikingAttention": Call(
        lambda folder: {"features": 4, "heads": 2, "neuron": LIF, "scale": 0.125}
    ),
    "snn.SpikingAttention.forward": Call(
        lambda folder: {"x": torch.rand(3, 2, 5, 4)}, SpikingAttention(4, 2).eval().forward
    ),
    "snn.Synapse": Call(
        lambda folder: {
            "decay": 0.5,
            "delay": 1.5,
            "learn_decay": True,
            "learn_delay": True,
            "max_delay": 3,
            "backend": "auto",
        }
    ),
    "snn.Synapse.forward": Call(
        lambda folder: {
            "x": torch.rand(3, 2, 2),
            "state": after(Synapse(0.5, 1.5), 2, 2, 2),
            "return_state": True,
        },
        Synapse(0.5, 1.5).forward,
    ),
    "snn.streaming": Call(lambda folder: {"net": linear_trunk(), "alike": (nn.Linear,)}),
    "snn.streaming.call": Call(
        lambda folder: {
            "x": torch.rand(3, 2, 2),
            "state": {"RecurrentLIF": after(recurrent(), 2, 2, 2)},
        },
        streaming(recurrent()).__call__,
    ),
    "snn.detached": Call(lambda folder: {"state": after(recurrent(), 2, 2, 2)}),
    "snn.over_time": Call(lambda folder: {"layer": nn.Linear(4, 3), "x": torch.rand(3, 2, 4)}),
    "snn.conv_norm": Call(
        lambda folder: {
            "channels_in": 2,
            "channels_out": 3,
            "kernel": 3,
            "stride": 1,
            "v_th": 0.5,
            "alpha": 1.0,
        }
    ),
    "snn.fire": Call(
        lambda folder: {
            "x": spikes(2, 2, 2, 4, 4),
            "layer": layers.conv_norm(2, 4).eval(),
            "neuron": LIF(),
            "added": torch.rand(2, 2, 4, 4, 4),
        }
    ),
    "snn.RateReadout": Call(lambda folder: {"features": 4, "classes": 3}),
    "snn.RateReadout.forward": Call(
        lambda folder: {
            "x": spikes(3, 2, 4),
            "state": after(layers.RateReadout(4, 3), 2, 2, 4),
            "return_state": True,
        },
        layers.RateReadout(4, 3).forward,
    ),
    "snn.RateReadout.steps": Call(
        lambda folder: {"x": spikes(3, 2, 4)}, layers.RateReadout(4, 3).steps
    ),
    "snn.MembraneReadout": Call(lambda folder: {"features": 4, "classes": 3, "decay": 0.9}),
    "snn.MembraneReadout.forward": Call(
        lambda folder: {
            "x": spikes(3, 2, 4),
            "v0": torch.zeros(2, 3),
            "return_state": True,
        },
        layers.MembraneReadout(4, 3).forward,
    ),
    "snn.MembraneReadout.steps": Call(
        lambda folder: {
            "x": spikes(3, 2, 4),
            "v0": torch.zeros(2, 3),
            "return_state": True,
        },
        layers.MembraneReadout(4, 3).steps,
    ),
    "snn.SpikeReadout": Call(lambda folder: {"features": 4, "classes": 3, "neuron": LIF}),
    "snn.SpikeReadout.forward": Call(
        lambda folder: {
            "x": spikes(3, 2, 4),
            "state": after(layers.SpikeReadout(4, 3, LIF), 2, 2, 4),
            "return_state": True,
        },
        layers.SpikeReadout(4, 3, LIF).forward,
    ),
    "snn.SpikeReadout.steps": Call(
        lambda folder: {
            "x": spikes(3, 2, 4),
            "state": {"neuron": torch.zeros(2, 3)},
            "return_state": True,
        },
        layers.SpikeReadout(4, 3, LIF).steps,
    ),
    "snn.direct": Call(lambda folder: {"image": torch.rand(2, 3), "steps": 4}),
    "snn.poisson": Call(
        lambda folder: {
            "image": torch.rand(2, 3),
            "steps": 4,
            "generator": torch.Generator().manual_seed(0),
        }
    ),
    "snn.latency": Call(lambda folder: {"image": torch.rand(2, 3), "steps": 4}),
    "snn.phase": Call(lambda folder: {"image": torch.rand(2, 3), "steps": 4, "period": 2}),
    "snn.delta": Call(
        lambda folder: {"signal": torch.rand(4, 3), "threshold": 0.2, "falls": True, "start": 0.5}
    ),
    "snn.population": Call(
        lambda folder: {"x": torch.rand(2, 3), "neurons": 4, "low": 0.1, "high": 0.9, "width": 0.2}
    ),
    "snn.TimeNet": Call(
        lambda folder: {
            "stem": layers.conv_norm(1, 2),
            "neuron": LIF,
            "trunk": nn.Identity(),
            "readout": layers.RateReadout(2, 3),
            "T": 2,
            "pool": 1,
        }
    ),
    "snn.TimeNet.forward": Call(lambda folder: {"x": torch.rand(2, 1, 8, 8)}, convnet().forward),
    "snn.spiking_convnet": Call(lambda folder: {"neuron": LIF, **BUILDS, "pool": 1}),
    "snn.spiking_resnet": Call(lambda folder: {"blocks": (1, 1), **RESNET}),
    "snn.spiking_resnet18": Call(lambda folder: dict(RESNET)),
    "snn.spiking_resnet34": Call(lambda folder: dict(RESNET)),
    "snn.spiking_vgg": Call(lambda folder: {"neuron": LIF, **BUILDS, "depth": 11}),
    "snn.mean_loss": Call(
        lambda folder: {"logits": torch.randn(3, 2, 4), "loss": F.cross_entropy, **per_step()}
    ),
    "snn.tet_loss": Call(
        lambda folder: {"logits": torch.randn(3, 2, 4), "lamb": 0.1, "phi": 1.0, **per_step()}
    ),
    "snn.rate_loss": Call(
        lambda folder: {"spikes": spikes(3, 2, 4), "right": 0.9, "wrong": 0.1, **per_step()}
    ),
    "snn.membrane_loss": Call(lambda folder: {"membranes": torch.randn(3, 2, 4), **per_step()}),
    "snn.first_spike_loss": Call(
        lambda folder: {"spikes": spikes(3, 2, 4), "scale": 0.5, **per_step()}
    ),
    "snn.recompute_blocks": Call(
        lambda folder: {"trunk": linear_trunk(), "x": torch.rand(5, 2, 4)}
    ),
    "snn.recompute_steps": Call(
        lambda folder: {
            "trunk": linear_trunk(),
            "x": torch.rand(5, 2, 4),
            "steps": 2,
            "alike": (nn.Linear,),
        }
    ),
    "snn.which_backend": Call(
        lambda folder: {"x": torch.rand(3, 2), "backend": "torch"}, legitimate=DECIDES
    ),
    "snn.norm_lif": Call(
        lambda folder: {
            "x": torch.randn(2, 2, 4, 2, 2),
            "norm": nn.BatchNorm2d(4).eval(),
            "neuron": LIF(),
            "added": torch.rand(2, 2, 4, 2, 2),
        }
    ),
}
LEFT_OUT = {
    "snn.tune_cpu": "takes no argument",
}
