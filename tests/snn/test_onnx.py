"snn.to_onnx: every layer and network, run by onnxruntime, against ours: equal spikes, equal logits, and every refusal by name."

import builtins
from functools import partial

import pytest
import torch
import torchvision.models as tv
from torch import nn

from neurobridge.snn import (
    LIF,
    MembraneReadout,
    RateReadout,
    RecurrentLIF,
    SpikeReadout,
    Synapse,
    direct,
    spikify,
    spiking_convnet,
    spiking_resnet,
    spiking_vgg,
    to_onnx,
)
from neurobridge.transfer import IF, calibrate, convert, use_qcfs

onnx = pytest.importorskip("onnx", reason="ONNX graphs need onnx: pip install onnx")
pytest.importorskip("onnxscript", reason="ONNX graphs need onnxscript: pip install onnxscript")
runtime = pytest.importorskip("onnxruntime", reason="running a graph: pip install onnxruntime")

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")


def run(graph, x):
    onnx.checker.check_model(graph)
    session = runtime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return torch.from_numpy(session.run(["output"], {"input": x.numpy()})[0])


def lived(net, *shape):
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(5):
            net.train()(torch.rand(4, *shape))
    return net.eval()


CHANNELS = torch.tensor([0.2, 0.5, 0.8]).view(3, 1)
LAYERS = {
    "hard": LIF(0.9, 0.6),
    "soft": LIF(0.7, 0.3, "soft"),
    "no leak": LIF(1.0, 1.0, "soft"),
    "analogue": LIF(output="analogue"),
    "learned": LIF(0.8, 0.4, learn_decay=True, learn_threshold=True),
    "each channel": LIF(CHANNELS, 2 * CHANNELS),
    "fused": LIF(0.9, backend="fused"),
    "own surrogate": LIF(0.9, surrogate=lambda u: 1 / (1 + u.abs()).square()),
    "synapse": Synapse(0.8),
    "delay": Synapse(0.8, delay=2),
    "delays": Synapse(delay=torch.tensor([0.0, 1.5, 2.25, 3.0])),
    "integrate and fire": IF(0.7),
    "its thresholds": IF(CHANNELS),
    "recurrent": RecurrentLIF(nn.Linear(4, 4), 0.8, 0.4),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_send_equal_spikes(name):
    torch.manual_seed(0)
    layer = LAYERS[name].eval()
    graph = to_onnx(layer, torch.rand(7, 2, 3, 4))
    x = torch.rand(7, 2, 3, 4)
    with torch.no_grad():
        wanted = layer(x)
    found = run(graph, x)
    if ((wanted == 0) | (wanted == wanted.amax((0, 1, 3), keepdim=True))).all():
        assert torch.equal(found, wanted) and 0 < (wanted > 0).float().mean() < 1
    else:
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "readout",
    [RateReadout(4, 3), MembraneReadout(4, 3), SpikeReadout(4, 3, partial(LIF, 0.9, 0.2))],
)
def test_readouts(readout):
    x = torch.rand(6, 5, 4)
    torch.testing.assert_close(run(to_onnx(readout, x), x), readout(x).detach())


NETWORKS = {
    "convnet": lambda: spiking_convnet(T=3, width=4),
    "soft": lambda: spiking_convnet(partial(LIF, 0.8, reset="soft", learn_decay=True), width=4),
    "vanilla": lambda: spiking_resnet((1, 1), T=3, width=4),
    "sew": lambda: spiking_resnet((1, 1), T=3, width=4, shortcut="sew"),
    "ms": lambda: spiking_resnet((1, 1), T=3, width=4, shortcut="ms"),
    "vgg": lambda: spiking_vgg(in_channels=1, classes=5, T=2, width=4),
    "an ANN": lambda: spiking_convnet(nn.ReLU, T=1, width=4),
}


SHORT = ("convnet", "an ANN")


@pytest.mark.parametrize(
    "name",
    [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in NETWORKS],
)
def test_networks_answer_alike(name):
    torch.manual_seed(0)
    net = lived(NETWORKS[name](), 1, 16, 16)
    x = torch.rand(3, 1, 16, 16)
    graph = to_onnx(net, torch.zeros_like(x))
    with torch.no_grad():
        torch.testing.assert_close(run(graph, x), net(x), rtol=1e-4, atol=1e-5)
        frames = direct(x, 4) * torch.linspace(0.2, 1, 4).view(4, 1, 1, 1, 1)
        if name != "an ANN":
            torch.testing.assert_close(
                run(to_onnx(net, frames), frames), net(frames), rtol=1e-4, atol=1e-5
            )


class Own(nn.Module):
    "Convolutions with norms, a residual sum, two poolings."

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, 4, 3, padding=1) for i in (1, 4, 4))
        self.norm, self.pool, self.drop = nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Dropout()
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = self.pool(torch.relu(self.norm(self.a(x))))
        x = self.pool(torch.relu(x + self.b(torch.relu(self.c(x)))))
        return self.head(self.drop(torch.flatten(x, 1)))


@pytest.mark.parametrize(
    "kind",
    [
        "percentile",
        *(
            pytest.param(kind, marks=pytest.mark.long)
            for kind in ("per channel", "calibrated", "qcfs", "spikified")
        ),
    ],
)
def test_converted_networks_send_equal_spikes_and_logits(kind):
    ann, images = lived(Own(), 1, 8, 8), torch.rand(12, 1, 8, 8)
    match kind:
        case "qcfs":
            snn = convert(use_qcfs(ann, 4, images), T=4)
        case "spikified":
            snn = spikify(ann, partial(LIF, 0.9, 0.3), T=4).eval()
        case "per channel":
            snn = convert(ann, images, T=4, per_channel=True)
        case _:
            snn = convert(ann, images, T=4)
    if kind == "calibrated":
        calibrate(snn, ann, images, T=4)
    x = torch.rand(12, 1, 8, 8)
    for snn.per_step in (False, True):
        with torch.no_grad():
            wanted = snn(x)
        torch.testing.assert_close(run(to_onnx(snn, images), x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "pool_1",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("relu", "pool", "relu_1")),
    ],
)
def test_spikes_inside_a_converted_network_are_equal(name):
    ann, images = lived(Own(), 1, 8, 8), torch.rand(12, 1, 8, 8)
    snn, x = convert(ann, images, T=6), torch.rand(12, 1, 8, 8)
    wanted = []
    handle = snn.get_submodule(name).register_forward_hook(lambda m, i, out: wanted.append(out))
    with torch.no_grad():
        snn(x)
    handle.remove()
    found = spikes_of(snn, name, x)
    differ = (found != wanted[0]).float().mean().item()
    assert differ == 0 and 0 < (found > 0).float().mean() < 1


def spikes_of(snn, name, x):
    "Run the graph up to a layer: the exported network returns what leaves it."
    node = next(n for n in snn.graph.nodes if n.op == "call_module" and n.target == name)
    output = next(n for n in snn.graph.nodes if n.op == "output")
    kept = output.args
    output.args = (node,)
    snn.recompile()
    try:
        return run(to_onnx(snn, x), x)
    finally:
        output.args = kept
        snn.recompile()


@pytest.mark.long
def test_a_converted_resnet_of_torchvision_with_its_pooling():
    ann, x = lived(tv.resnet18(num_classes=10), 3, 32, 32), torch.rand(2, 3, 32, 32)
    snn = convert(ann, x, T=8, threshold="max")
    with torch.no_grad():
        torch.testing.assert_close(run(to_onnx(snn, x), x), snn(x), rtol=1e-3, atol=1e-3)


def test_the_network_is_left_alone_and_the_file_can_be_written(tmp_path):
    net = spiking_convnet(partial(LIF, backend="fused"), T=2, width=4).train()
    before = {
        key: value.clone() for key, value in net.state_dict().items() if hasattr(value, "clone")
    }
    hooks = sum(len(module._forward_hooks) for module in net.modules())
    graph = to_onnx(net, torch.rand(2, 1, 8, 8))
    assert net.training and net.stem_neuron.backend == "fused"
    assert hooks == sum(len(module._forward_hooks) for module in net.modules())
    assert all(torch.equal(net.state_dict()[key], value) for key, value in before.items())
    onnx.save(graph, tmp_path / "net.onnx")
    session = runtime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [2, 1, 8, 8]


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Eigenvalues(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvalsh(x @ x.transpose(-1, -2))


class Foreign(nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.detach().numpy() * 2)


@pytest.mark.parametrize(
    "model, message",
    [
        (nn.Sequential(LIF(), Branching()), "'1', a Branching, cannot be recorded"),
        (nn.Sequential(LIF(), Foreign()), "'1', a Foreign, cannot be recorded"),
        (nn.Sequential(nn.ReLU(), nn.Sequential(Eigenvalues())), "'1.0' uses aten.*eig.*ONNX has no counterpart"),
        (nn.GRU(4, 3), "returns a tuple; expected one tensor"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_named(model, message):
    with pytest.raises(ValueError, match=message):
        to_onnx(model, torch.rand(4, 3, 4))


def test_without_the_package_its_name_is_given(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest):
        if name.startswith("onnx"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match="an ONNX graph needs onnx.*run: pip install"):
        to_onnx(LIF(), torch.rand(3, 1, 2))
