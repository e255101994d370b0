"A person with networks of their own makes them sparse, trains them with edges that move, and takes them elsewhere: from the front door, in few statements."

import ast
import warnings

import pytest
import torch
from torch import nn

JOURNEY = """
import neurobridge as nb
import torch
from torch import nn

x, y = nb.data.load_images("digits", split="train").tensors()
mlp = nn.Sequential(nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
block = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
transformer = nn.Sequential(nn.Flatten(1, 2), nn.Linear(8, 64), block, nn.Flatten(), nn.Linear(512, 10))
tables, scores = {}, {}
for name, model in {"mlp": mlp, "transformer": transformer}.items():
    sparse, tables[name] = nb.g2g.wire(model, density=0.1, report=True)
    rewiring = nb.g2g.Rewiring(sparse, **nb.g2g.PRESETS["rigl"] | {"every": 20, "stop": 100})
    nb.core.fit(sparse, (x[:1000], y[:1000]), epochs=12, lr=5e-3, batch_size=64, optimizer=rewiring)
    scores[name] = nb.core.evaluate(sparse, (x[1000:], y[1000:]))["accuracy"]
    torch.save(nb.g2g.to_linear(sparse), f"{name}.pt")
"""


@pytest.mark.long
@pytest.mark.usefixtures("one_thread", "same_numbers")
def test_two_networks_at_a_tenth(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    statements = [node for node in ast.walk(ast.parse(JOURNEY)) if isinstance(node, ast.stmt)]
    assert len(statements) <= 15
    found: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(JOURNEY, found)
    for name, table in found["tables"].items():
        wired = (
            table[table.note != ""].iloc[:-1] if table.note.iloc[-1] else table[table.note != ""]
        )
        assert (
            abs(wired.density - 0.1).max() < 0.03
            and len(wired) == {"mlp": 2, "transformer": 7}[name]
        )
        assert found["scores"][name] > 0.85, found["scores"]
        plain = torch.load(f"{name}.pt", weights_only=False).eval()
        assert {type(module).__module__.split(".")[0] for module in plain.modules()} == {"torch"}
    x = found["x"][:5]
    torch.testing.assert_close(plain(x), found["sparse"].eval()(x), rtol=1e-4, atol=1e-4)
    assert isinstance(found["mlp"][1], nn.Linear)  # the person's own stay as they are
