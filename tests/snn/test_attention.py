"Spiking self-attention: against the equations, its costs against a loop, in chunks and files."

import copy

import pytest
import torch
from torch import nn

from neurobridge.core import load_network, save_network
from neurobridge.snn import LIF, SpikingAttention, lif, monitor, streaming, synops

pytestmark = pytest.mark.usefixtures("same_numbers", "one_thread")


def used(features=8, heads=2, **given):
    "A layer in evaluation mode with running statistics of its own."
    layer = SpikingAttention(features, heads, **{"scale": 0.5} | given)
    for part in (layer.query, layer.key, layer.value, layer.out):
        part.norm.momentum = 1.0
    layer(torch.rand(5, 4, 6, features))
    return layer.eval()


def published(layer, x):
    "Zhou et al. 2023, in einsum, with heads as an axis of its own."

    def spikes(part, x):
        norm, current = part.norm, x @ part.linear.weight.T
        current = (current - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        return lif(current * norm.weight + norm.bias, backend="reference")[0]

    split = (layer.heads, x.shape[-1] // layer.heads)
    q, k, v = (
        spikes(part, x).unflatten(-1, split) for part in (layer.query, layer.key, layer.value)
    )
    mixed = torch.einsum("tnihd,tnjhd,tnjhe->tnihe", q, k, v).flatten(-2) * layer.scale
    return spikes(layer.out, lif(mixed, backend="reference")[0])


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_the_published_equations(heads):
    layer = used(8, heads).double()
    x = 2 * torch.rand(7, 3, 5, 8).double()
    with torch.no_grad():
        ours = layer(x)
        assert 0.05 < ours.mean() < 0.95
        assert torch.equal(ours, published(layer, x))


def test_products_are_counted_as_a_loop_counts_them():
    layer = used(6, 3)
    x = 2 * torch.rand(3, 2, 4, 6)
    with monitor(layer) as records:
        layer(x)
    q, k, v = (
        records[f"{part}.neuron"].spikes.unflatten(-1, (3, 2)).double()
        for part in ("query", "key", "value")
    )
    pairs, added = 0, 0
    for i in range(4):
        for j in range(4):
            both = q[:, :, i] * k[:, :, j]
            pairs += both.sum()
            common = both.sum(-1) > 0  # a number is added for each value that fired
            added += (common[..., None] * v[:, :, j]).sum()
    row = synops(layer, x, images=2).loc["products"]
    assert (row.AC, row.MAC) == ((pairs + added) / 2, 0)
    assert row["type"].startswith("products")


def test_products_of_numbers_are_multiplied():
    class Softmax(nn.Module):
        def forward(self, x):
            return nn.functional.softmax(x @ x.mT, -1) @ x

    x = torch.rand(2, 1, 5, 3)
    row = synops(Softmax(), x, images=1).loc["products"]
    assert (row.MAC, row.AC) == (2 * 2 * 5 * 5 * 3, 0)
    fused = synops(
        type("F", (nn.Module,), {"forward": lambda self, x: nn.functional.scaled_dot_product_attention(x, x, x)})(), x, images=1,
    ).loc["products"]  # fmt: skip
    assert (fused.MAC, fused.AC) == (row.MAC, 0)


def test_a_spiking_side_is_added_to_numbers():
    class Values(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron = LIF()

        def forward(self, x):
            return self.neuron(x) @ x.mT

    x = torch.rand(3, 2, 5, 4)
    table = synops(Values(), x, images=2)
    assert table.AC["products"] == LIF()(x).sum() * 5 / 2 and table.MAC["products"] == 0


def test_chunks_files_copies_and_training(tmp_path):
    layer, x = used(), torch.rand(9, 3, 6, 8)
    stream, state, parts = streaming(layer), None, []
    with torch.no_grad():
        for chunk in x.split(2):
            part, state = stream(chunk, state)
            parts.append(part)
        assert torch.equal(torch.cat(parts), layer(x))
    save_network(layer, tmp_path / "attention.safetensors")
    for again in (load_network(tmp_path / "attention.safetensors"), copy.deepcopy(layer)):
        assert torch.equal(again(x), layer(x))
    layer.train()
    layer(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_wrong_arguments_are_refused():
    for given, message in (
        ({"features": 8, "heads": 3}, "heads is 3, which does not divide 8"),
        ({"features": 8, "scale": 0.0}, "scale"),
        ({"features": 8, "neuron": LIF()}, "neuron"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"SpikingAttention: {message}"):
            SpikingAttention(**given)
    for wrong in (torch.rand(3, 2, 4), torch.rand(3, 2, 5, 6), torch.rand(3, 2, 5, 8).long()):
        with pytest.raises((TypeError, ValueError), match="SpikingAttention: x"):
            used()(wrong)
