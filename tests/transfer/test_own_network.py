"A student with a network of their own (residual addition, max-pooling, dropout) takes it to spikes: from the front door, in few statements."

import ast
import warnings

import numpy as np
import pytest
import torch

from neurobridge.core import load_network

JOURNEY = """
import neurobridge as nb
from torch import nn

class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)

model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), Residual(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()), nn.MaxPool2d(2), nn.Dropout(0.1), nn.Flatten(), nn.Linear(256, 10))
train, test = (nb.data.load_images("digits", split).tensors(0, 1) for split in ("train", "test"))
nb.core.fit(model, train, epochs=8, lr=0.01)
converted = nb.transfer.convert(model, train[0][:300])
table = nb.transfer.trade_off(converted, test, steps=(1, 4, 16, 64), ann=model)
nb.bridge.pareto(table, colour="T")
spiking = nb.snn.spikify(model, T=4)
nb.core.fit(spiking, train, epochs=6, lr=0.005)
with nb.snn.monitor(spiking) as records:
    accuracy = nb.core.evaluate(spiking, test)["accuracy"]
firing = nb.snn.firing(records)
answer, state = nb.snn.streaming(spiking.eval())(nb.snn.direct(test[0][:3], 4))
open("network.onnx", "wb").write(nb.snn.to_onnx(spiking, test[0][:3]).SerializeToString())
"""


@pytest.mark.long
@pytest.mark.usefixtures("one_thread", "same_numbers")
def test_a_network_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runtime = pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
    pytest.importorskip("onnxscript", reason="pip install onnx onnxscript")
    statements = [node for node in ast.walk(ast.parse(JOURNEY)) if isinstance(node, ast.stmt)]
    assert len(statements) <= 18
    found: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=ResourceWarning)
        exec(JOURNEY, found)
    table = found["table"]
    assert table.accuracy["ANN"] > 0.95 and table.accuracy["T = 64"] > table.accuracy["ANN"] - 0.02
    assert table.energy[:-1].is_monotonic_increasing
    assert found["accuracy"] > 0.9 and len(found["firing"]) == 2
    answer = found["answer"].detach()
    torch.testing.assert_close(answer, found["spiking"](found["test"][0][:3]).detach())
    session = runtime.InferenceSession("network.onnx")
    (theirs,) = session.run(None, {"input": found["test"][0][:3].numpy()})
    np.testing.assert_allclose(theirs, answer.numpy(), rtol=1e-4, atol=1e-5)
    assert found["model"](found["test"][0][:3]).shape == (3, 10)  # the person's own stays


SERIES = """
import neurobridge as nb
from torch import nn

model = nn.Sequential(nn.Conv1d(3, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 4))
nb.core.fit(model, train, epochs=10, lr=0.01, batch_size=32)
converted = nb.transfer.convert(model, train[0][:300])
table = nb.transfer.trade_off(converted, test, steps=(1, 4, 16, 64), ann=model)
nb.bridge.pareto(table, colour="T")
spiking = nb.snn.spikify(model, T=4)
nb.core.fit(spiking, train, epochs=6, lr=0.005, batch_size=32)
with nb.snn.monitor(spiking) as records:
    accuracy = nb.core.evaluate(spiking, test)["accuracy"]
firing = nb.snn.firing(records)
answer, state = nb.snn.streaming(spiking.eval())(nb.snn.direct(test[0][:3], 4))
open("network.onnx", "wb").write(nb.snn.to_onnx(spiking, test[0][:3]).SerializeToString())
nb.core.save_network(spiking, "network.safetensors")
"""


def waves(n, seed):
    "Three channels of one of four frequencies, at phases of their own, in noise."
    draws = torch.Generator().manual_seed(seed)
    y = torch.randint(4, (n,), generator=draws)
    phase = 2 * torch.pi * torch.rand(n, 3, 1, generator=draws)
    x = torch.sin(torch.arange(32) / 32 * 2 * torch.pi * (2 * y[:, None, None] + 1) + phase)
    return x + 0.2 * torch.randn(n, 3, 32, generator=draws), y


@pytest.mark.long
@pytest.mark.usefixtures("one_thread", "same_numbers")
def test_a_network_of_time_series(tmp_path, monkeypatch):
    "The same way with one-dimensional convolutions, on signals [N, C, L]."
    monkeypatch.chdir(tmp_path)
    runtime = pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
    pytest.importorskip("onnxscript", reason="pip install onnx onnxscript")
    assert sum(isinstance(node, ast.stmt) for node in ast.walk(ast.parse(SERIES))) <= 18
    found: dict = {"train": waves(600, 0), "test": waves(200, 1)}
    exec(SERIES, found)
    table, x = found["table"], found["test"][0][:3]
    assert table.accuracy["ANN"] > 0.9 and table.accuracy["T = 64"] > table.accuracy["ANN"] - 0.03
    assert found["accuracy"] > 0.8 and len(found["firing"]) == 2
    answer = found["answer"].detach()
    torch.testing.assert_close(answer, found["spiking"](x).detach())
    torch.testing.assert_close(answer, load_network("network.safetensors").eval()(x).detach())
    (theirs,) = runtime.InferenceSession("network.onnx").run(None, {"input": x.numpy()})
    np.testing.assert_allclose(theirs, answer.numpy(), rtol=1e-4, atol=1e-5)
