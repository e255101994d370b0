"A student with a network of their own (residual addition, max-pooling, dropout) takes it to spikes: from the front door, in few statements."

import ast
import warnings

import numpy as np
import pytest
import torch

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
