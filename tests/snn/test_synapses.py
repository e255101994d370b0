"Synaptic currents and delays: against a loop, against peers, cut anywhere, in networks."

import copy

import numpy as np
import pytest
import torch
from torch import nn

from neurobridge.core.networks import load_network, save_network
from neurobridge.snn import LIF, Synapse, lif, monitor, streaming

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")

KINDS = {
    "current": {"decay": 0.8},
    "delay": {"delay": 3},
    "between steps": {"delay": 2.5},
    "both": {"decay": 0.6, "delay": 1},
    "per channel": {"decay": torch.tensor([0.2, 0.5, 0.9]), "delay": torch.tensor([0.0, 1.5, 4.0])},
    "learned": {
        "decay": 0.5,
        "learn_decay": True,
        "delay": 1.5,
        "learn_delay": True,
        "max_delay": 4,
    },
}
kinds = pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)


def loop(layer, x):
    decay, current, out = layer.decay_value(), torch.zeros_like(x[0]), []
    delay = layer.delay.expand(x.shape[-1])
    for t in range(len(x)):
        arrived = []
        for k, d in enumerate(delay):
            n = int(d)
            now, before = (
                x[t - j, :, k] if t >= j else torch.zeros(x.shape[1]) for j in (n, n + 1)
            )
            arrived.append(now + (d - n) * (before - now))
        arrived = torch.stack(arrived, 1)
        current = arrived if decay is None else decay * current + arrived
        out.append(current)
    return torch.stack(out)


@kinds
@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_currents_and_gradients_equal_a_loop(settings, backend):
    x = torch.randn(9, 2, 3, requires_grad=True)
    layer = Synapse(**settings, backend=backend)
    ours, theirs = layer(x), loop(layer, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    leaves, weights = [x, *layer.parameters()], torch.randn(9, 2, 3)
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), leaves),
        torch.autograd.grad((theirs * weights).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@kinds
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_cut_changes_nothing_alone_and_in_a_stream(settings, cut):
    x, layer = torch.randn(9, 2, 3), Synapse(**settings)
    whole, state, parts = layer(x), None, []
    stream, carried, outs = streaming(nn.Sequential(nn.Linear(3, 3), layer, LIF())), None, []
    with torch.no_grad():
        for chunk in x.split(cut):
            part, state = layer(chunk, state, return_state=True)
            out, carried = stream(chunk, carried)
            parts.append(part)
            outs.append(out)
        assert torch.cat(parts).equal(whole)
        torch.testing.assert_close(torch.cat(outs), stream.net(x))


@kinds
def test_it_travels_with_a_network_and_is_refused_elsewhere(settings, tmp_path):
    net = nn.Sequential(nn.Linear(3, 3), Synapse(**settings), LIF(0.8, 0.3))
    x = torch.rand(6, 2, 3)
    save_network(net, tmp_path / "net.safetensors")
    for again in (load_network(tmp_path / "net.safetensors"), copy.deepcopy(net)):
        assert again(x).equal(net(x))
    with monitor(net) as records:
        net(x)
    assert records["2"].steps == 12
    with pytest.raises(
        (ValueError, RuntimeError), match="max_delay|size mismatch|Missing|Unexpected"
    ):
        Synapse(0.3, delay=9).load_state_dict(net[1].state_dict())


def test_constants_are_set_after_a_check():
    "Attributes act, or are refused with the way; none is kept beside the layer without an effect."
    x = torch.rand(9, 2, 3)
    layer = Synapse(0.8, delay=2)
    layer.decay, layer.delay = 0.3, 1
    assert layer(x).equal(Synapse(0.3, delay=1, max_delay=2)(x)) and layer.decay == 0.3
    channels = Synapse(torch.tensor([0.1, 0.5, 0.9]))
    channels.decay = torch.tensor([0.2, 0.4, 0.6])
    assert channels(x).equal(Synapse(torch.tensor([0.2, 0.4, 0.6]))(x))
    learned = Synapse(delay=0.5, learn_delay=True, max_delay=3)
    learned.delay = 2
    assert isinstance(learned.delay, nn.Parameter)
    assert learned(x).equal(Synapse(delay=2, max_delay=3)(x))
    for name, value, error, message in (
        ("decay", 1.5, ValueError, "decay is 1.5; expected numbers above 0 and at most 1"),
        ("decay", "slow", TypeError, "decay is 'slow'"),
        ("decay", torch.full((3,), 0.5), ValueError, "as when the layer was made"),
        ("delay", 9, ValueError, "delay is 9; expected numbers 0 or more and at most 2"),
        ("delay", torch.tensor(9.0), ValueError, "at most 2"),
        ("max_delay", 9, AttributeError, "chosen when the layer is made"),
    ):
        with pytest.raises(error, match=message):
            setattr(layer, name, value)
    assert Synapse(np.float32(0.5), np.int64(1))(x).equal(Synapse(0.5, 1)(x))
    with pytest.raises(ValueError, match="decay is None here"):
        Synapse(delay=1).decay = 0.5
    with pytest.raises(AttributeError, match="decay is learned here"):
        Synapse(0.5, learn_decay=True).decay = 0.9


def test_snntorchs_synaptic_neuron():
    snn = pytest.importorskip("snntorch", reason="pip install snntorch")
    x = torch.rand(30, 4, 25) * 0.3
    theirs = snn.Synaptic(alpha=0.7, beta=0.8, threshold=1.0, reset_delay=False)
    syn, mem, spikes = torch.zeros(4, 25), torch.zeros(4, 25), []
    for x_t in x:
        s, syn, mem = theirs(x_t, syn, mem)
        spikes.append(s)
    spikes = torch.stack(spikes)
    assert 0.05 < spikes.mean() < 0.9
    assert LIF(0.8, 1.0, "soft")(Synapse(0.7)(x)).equal(spikes)


def test_norses_current_based_neuron():
    pytest.importorskip("norse", reason="pip install norse")
    from norse.torch.functional.lif import LIFFeedForwardState, LIFParameters, lif_feed_forward_step

    x, p = torch.rand(30, 4, 25) * 0.8, LIFParameters(method="super", alpha=torch.tensor(100.0))
    state = LIFFeedForwardState(torch.zeros(4, 25), torch.zeros(4, 25))
    spikes = []
    for x_t in x:  # tau_mem_inv 100, tau_syn_inv 200, dt 1 ms: 0.9 and 0.8 are kept per step
        s, state = lif_feed_forward_step(x_t, state, p, dt=0.001)
        spikes.append(s)
    spikes = torch.stack(spikes)
    assert 0.02 < spikes.mean() < 0.9
    assert LIF(0.9, 1.0)(Synapse(0.8)(0.1 * x)).equal(spikes)


def test_spikingjellys_delay():
    pytest.importorskip("spikingjelly", reason="pip install spikingjelly")
    from spikingjelly.activation_based.layer import Delay

    x = torch.rand(9, 2, 3)
    assert Synapse(delay=3)(x).equal(Delay(3, step_mode="m")(x))


def test_bfloat16_and_double_and_nan():
    x = torch.rand(9, 2, 40)
    for dtype in (torch.bfloat16, torch.float64):
        layer = Synapse(0.8, delay=torch.full((40,), 1.5))
        assert layer(x.to(dtype)).dtype == dtype
    with pytest.raises(ValueError, match="NaN or infinity"):
        Synapse(0.8)(x / 0)
    assert lif(Synapse(1.0)(x), 1.0, 9.0)[0].shape == x.shape
