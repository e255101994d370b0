"Spiking self-attention: against the equations, its costs against a loop, in chunks and files."

import copy
from functools import partial

import pytest
import torch
from torch import nn

from neurobridge.core import load_network, save_network
from neurobridge.snn import LIF, SpikingAttention, lif, monitor, streaming, synops

pytestmark = pytest.mark.usefixtures("same_numbers", "one_thread")


def used(features=8, heads=2, tokens=12):
    "A layer in evaluation mode with running statistics of its own, none of whose parts is silent."
    layer = SpikingAttention(features, heads, scale=0.25 * heads)
    for _ in range(30):
        layer(2 * torch.rand(7, 4, tokens, features))
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
    x = 2 * torch.rand(7, 3, 12, 8).double()
    with torch.no_grad():
        ours = layer(x)
        assert 0.05 < ours.mean() < 0.95
        assert torch.equal(ours, published(layer, x))


def test_products_are_counted_as_a_loop_counts_them():
    layer = used(6, 3, 4)
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


def test_chunks_files_copies_and_training(tmp_path):
    layer, x = used(), 2 * torch.rand(9, 3, 12, 8)
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


@pytest.mark.parametrize("other", [{"heads": 4}, {"scale": 0.3}])
def test_heads_and_scale_travel_with_the_weights(other):
    "They have no weights, so that a state dict would fit a layer that computes something else."
    layer, x = used(), 2 * torch.rand(9, 3, 12, 8)
    settings = {"features": 8, "heads": layer.heads, "scale": layer.scale}
    another = SpikingAttention(**settings | other)
    with pytest.raises(ValueError, match=f"the settings differ.*{next(iter(other))} = "):
        another.load_state_dict(layer.state_dict())
    weights = {k: v for k, v in layer.state_dict().items() if not k.endswith("_extra_state")}
    same = SpikingAttention(**settings).eval()
    same.load_state_dict(weights)  # as older files have them
    assert same(x).equal(layer(x))
    setattr(same, *other.popitem())
    assert not same(x).equal(layer(x))


def test_heads_and_scale_are_checked_when_set():
    for name, value, message in (
        ("heads", 3, "heads is 3, which does not divide 8"),
        ("heads", 2.0, "heads is 2.0"),
        ("scale", -1.0, "scale is -1"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"SpikingAttention: {message}"):
            setattr(used(), name, value)


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


@pytest.mark.parametrize("heads", [1, 4])
def test_spikingjellys_attention(heads):
    jelly = pytest.importorskip(
        "spikingjelly.activation_based.layer", reason="pip install spikingjelly"
    )
    if not hasattr(jelly, "SpikingSelfAttention"):
        pytest.skip("this SpikingJelly has no SpikingSelfAttention: pip install -U spikingjelly")
    theirs = jelly.SpikingSelfAttention(32, heads)
    for norm in (theirs.qkv_conv_bn[1], theirs.proj_conv_bn[1]):
        nn.init.constant_(norm.weight, 3.0)
        nn.init.constant_(norm.bias, 0.5)
    for _ in range(30):
        theirs(2 * torch.rand(7, 4, 32, 16))
        for part in (theirs.qkv_lif, theirs.attn_lif, theirs.proj_lif):
            part.reset()
    theirs = theirs.double().eval()
    # a membrane that decays by half and takes half of its input; on its threshold it fires there
    ours = SpikingAttention(32, heads, partial(LIF, 0.5, 2 * (1 - 1e-9))).double().eval()
    ours.neuron = LIF(0.5, 2 * 0.5 * (1 - 1e-9))
    (conv, norm), (last, last_norm) = theirs.qkv_conv_bn, theirs.proj_conv_bn
    parts = zip(
        (ours.query, ours.key, ours.value, ours.out),
        (*conv.weight.chunk(3), last.weight),
        *(
            (*getattr(norm, name).chunk(3), getattr(last_norm, name))
            for name in ("weight", "bias", "running_mean", "running_var")
        ),
        strict=True,
    )
    with torch.no_grad():
        for part, weight, *values in parts:
            part.linear.weight.copy_(weight[..., 0])
            for name, value in zip(
                ("weight", "bias", "running_mean", "running_var"), values, strict=True
            ):
                getattr(part.norm, name).copy_(value)
        x = 2 * torch.rand(9, 3, 16, 32).double()
        spikes = theirs(x.transpose(2, 3)).transpose(2, 3)
        assert 0.02 < spikes.mean() < 0.95
        assert torch.equal(ours(x), spikes)
