"The page `correspondences`: other libraries, where they are installed, fire the spikes that ours fires with the translated settings."

import math
from functools import partial

import pytest
import torch
from torch import nn

from neurobridge.snn import LIF, SpikingAttention, Synapse, atan, fast_sigmoid, sigmoid

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")
RESETS = pytest.mark.parametrize("reset", ["hard", "soft"])
LEAST, MOST = 0.02, 0.9  # spikes per step: neither silent nor always firing


def currents(strength=1.0, T=60):
    return strength * torch.rand(T, 4, 50, generator=torch.Generator().manual_seed(0)).double()


def same(theirs, ours):
    assert LEAST < theirs.double().mean() < MOST
    assert torch.equal(theirs.to(ours), ours), (theirs.to(ours) != ours).double().mean()


# Surrogates


def derivative(spike, u):
    "Return what a library's own backward pass makes of a spike."
    u = u.clone().requires_grad_()
    spike(u).sum().backward()
    return u.grad


def libraries_surrogates():
    "Rows of the page's table: module, its function, ours, and the factor."
    yield "spikingjelly.activation_based.surrogate", lambda m: m.Sigmoid(alpha=4.0), sigmoid(4.0), 1
    yield "spikingjelly.activation_based.surrogate", lambda m: m.ATan(alpha=2.0), atan(2.0), 1
    yield "snntorch.surrogate", lambda m: m.atan(alpha=2.0), atan(2.0), 1
    yield "snntorch.surrogate", lambda m: m.fast_sigmoid(slope=25), fast_sigmoid(25.0), 2 / 25
    yield "snntorch.surrogate", lambda m: m.sigmoid(slope=25), sigmoid(25.0), 1
    norse = "norse.torch.functional.threshold"
    yield norse, lambda m: lambda u: m.threshold(u, "super", 100.0), fast_sigmoid(1.0), 2


@pytest.mark.parametrize("module, theirs, ours, factor", list(libraries_surrogates()))
def test_surrogates_of_the_libraries(module, theirs, ours, factor):
    found = pytest.importorskip(module, reason=f"needs {module}")
    u = torch.linspace(-2, 2, 82, dtype=torch.float64)  # without 0, where snnTorch's is a corner
    torch.testing.assert_close(derivative(theirs(found), u), factor * ours(u))


# SpikingJelly


def jelly(kind, **settings):
    pytest.importorskip("spikingjelly.activation_based", reason="pip install spikingjelly")
    from spikingjelly.activation_based import neuron

    return getattr(neuron, kind)(step_mode="m", **settings)


@RESETS
@pytest.mark.parametrize(
    "tau, decay_input", [(2.0, True), (4.0, True), (2.0, False), (10.0, False)]
)
def test_spikingjellys_lif(reset, tau, decay_input):
    node = jelly(
        "LIFNode", tau=tau, decay_input=decay_input, v_reset=0.0 if reset == "hard" else None
    )
    x = currents(2.0 * (1.5 if decay_input else 0.4))
    gain = 1 / tau if decay_input else 1.0
    same(node(x), LIF(1 - 1 / tau, 1.0, reset)(gain * x))
    node.reset()
    same(node(x), LIF(1 - 1 / tau, 1.0 / gain, reset)(x))


@RESETS
def test_spikingjellys_if(reset):
    node = jelly("IFNode", v_threshold=0.8, v_reset=0.0 if reset == "hard" else None)
    same(node(currents(0.7)), LIF(1.0, 0.8, reset)(currents(0.7)))


def test_spikingjellys_plif():
    node = jelly("ParametricLIFNode", init_tau=3.0).double()
    with torch.no_grad():
        node.w += 0.3
    gain = torch.sigmoid(node.w).item()
    same(node(currents(3.0)).detach(), LIF(1 - gain, 1.0)(gain * currents(3.0)))


def test_spikingjellys_defaults_are_those_of_the_table():
    node = jelly("LIFNode")
    assert (node.tau, node.decay_input, node.v_threshold, node.v_reset) == (2.0, True, 1.0, 0.0)
    assert not node.detach_reset and node.surrogate_function.alpha == 4.0


def test_a_membrane_on_its_threshold_fires_there_and_not_here():
    x = torch.full((4, 1, 1), 0.5)
    node = jelly("IFNode")
    assert node(x).flatten().tolist() == [0, 1, 0, 1]
    assert LIF(1.0, 1.0)(x).flatten().tolist() == [0, 0, 1, 0]
    assert LIF(1.0, 1.0 * (1 - 1e-6))(x).flatten().tolist() == [0, 1, 0, 1]


# snnTorch


def torch_leaky(x, kind="Leaky", **settings):
    snn = pytest.importorskip("snntorch", reason="pip install snntorch")
    node, spikes = getattr(snn, kind)(**settings).double(), []
    state = [torch.zeros_like(x[0])] * (2 if kind == "Synaptic" else 1)
    for step in x:
        s, *state = node(step, *state)
        spikes.append(s)
    return torch.stack(spikes).detach()


@pytest.mark.parametrize("delay", [True, False])
def test_snntorchs_leaky_with_reset_to_zero(delay):
    theirs = torch_leaky(currents(), beta=0.9, reset_mechanism="zero", reset_delay=delay)
    same(theirs, LIF(0.9, 1.0)(currents()))


def test_snntorchs_leaky_with_subtraction():
    same(torch_leaky(currents(), beta=1.0), LIF(1.0, 1.0, "soft")(currents()))
    x = currents(0.9)
    same(torch_leaky(x, beta=0.9, reset_delay=False), LIF(0.9, 1.0, "soft")(x))
    default, ours = torch_leaky(x, beta=0.8), LIF(0.8, 1.0, "soft")(x)
    assert (default.double() != ours).double().mean() > 0.01  # as the page says


def test_snntorchs_synaptic():
    x = currents(0.3)
    settings = dict(kind="Synaptic", alpha=0.7, beta=0.8)
    same(
        torch_leaky(x, reset_delay=False, **settings),
        LIF(0.8, 1.0, "soft")(Synapse(0.7).double()(x)),
    )
    hard = dict(reset_mechanism="zero", **settings)
    same(torch_leaky(x, reset_delay=False, **hard), LIF(0.8, 1.0)(Synapse(0.7).double()(x)))
    zero = torch_leaky(x, **hard)
    ours = LIF(0.8, 1.0)(Synapse(0.7).double()(x))
    assert (zero.double() != ours).double().mean() > 0.01  # as the page says


def test_snntorchs_defaults_are_those_of_the_table():
    snn = pytest.importorskip("snntorch", reason="pip install snntorch")
    node = snn.Leaky(beta=0.5)
    assert node.threshold.item() == 1.0 and node.reset_mechanism == "subtract" and node.reset_delay


# norse


@RESETS
@pytest.mark.parametrize("rate", [100.0, 500.0])
def test_norses_box(reset, rate):
    pytest.importorskip("norse", reason="pip install norse")
    from norse.torch import LIFBoxCell, LIFBoxParameters
    from norse.torch.functional import reset as resets

    method = resets.reset_value if reset == "hard" else resets.reset_subtract
    p = LIFBoxParameters(tau_mem_inv=torch.tensor(rate), reset_method=method)
    cell, state, spikes = LIFBoxCell(p=p), None, []
    x = currents(4.0 if rate == 100 else 2.5)
    for step in x:
        s, state = cell(step, state)
        spikes.append(s)
    gain = 0.001 * rate
    same(torch.stack(spikes), LIF(1 - gain, 1.0, reset)(gain * x))


def test_norses_current():
    pytest.importorskip("norse", reason="pip install norse")
    from norse.torch import LIFCell

    cell, state, spikes = LIFCell(), None, []
    x = currents(0.8)
    for step in x:
        s, state = cell(step, state)
        spikes.append(s)
    same(torch.stack(spikes), LIF(0.9, 1.0)(Synapse(0.8).double()(0.1 * x)))


# sinabs


def sinabs_layer(kind, x, reset, **settings):
    pytest.importorskip("sinabs", reason="pip install sinabs")
    import sinabs.activation as activation
    from sinabs import layers

    chosen = activation.MembraneReset() if reset == "hard" else activation.MembraneSubtract()
    layer = getattr(layers, kind)(spike_fn=activation.SingleSpike, reset_fn=chosen, **settings)
    layer = layer.double()
    return layer(x.transpose(0, 1)).transpose(0, 1).detach()  # [N, T, ...] there


@RESETS
@pytest.mark.parametrize("norm", [True, False])
def test_sinabs_lif(reset, norm):
    x, alpha = currents(5.0 if norm else 0.9), math.exp(-1 / 5)
    theirs = sinabs_layer("LIF", x, reset, tau_mem=5.0, norm_input=norm)
    same(theirs, LIF(alpha, 1.0, reset)((1 - alpha if norm else 1) * x))


@RESETS
def test_sinabs_iaf(reset):
    same(sinabs_layer("IAF", currents(0.7), reset), LIF(1.0, 1.0, reset)(currents(0.7)))


def test_sinabs_current():
    x, alpha, d = currents(3.0), math.exp(-1 / 5), math.exp(-1 / 3)
    theirs = sinabs_layer("LIF", x, "soft", tau_mem=5.0, tau_syn=3.0)
    ours = LIF(alpha, 1.0, "soft")(Synapse(d).double()((1 - alpha) * d * x))
    assert (theirs.to(ours) != ours).double().mean() < 1e-3  # alpha is of 32 bits there
    assert LEAST < ours.mean() < MOST


# lava


def test_lavas_lif():
    try:
        from lava.proc.lif.process import LIF as Process
    except Exception as error:  # its last release does not import on Python 3.11
        pytest.skip(f"lava cannot be imported (pip install lava-nc, Python 3.10): {error}")
    process = Process(shape=(1,))
    assert (process.du.init, process.dv.init, process.vth.init) == (0, 0, 10)
    x = currents(3.0)[:, 0]
    spikes = run_lava(x, du=0.3, dv=0.2, vth=10.0)
    same(spikes[:, None], LIF(0.8, 10.0)(Synapse(0.7).double()(x[:, None])))


def run_lava(x, **settings):
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi1SimCfg
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer as Source
    from lava.proc.lif.process import LIF as Process

    T, n = x.shape
    source = Source(data=x.T.numpy())
    process, sink = Process(shape=(n,), **settings), Sink(shape=(n,), buffer=T)
    source.s_out.connect(process.a_in)
    process.s_out.connect(sink.a_in)
    process.run(condition=RunSteps(num_steps=T), run_cfg=Loihi1SimCfg(select_tag="floating_pt"))
    spikes = torch.from_numpy(sink.data.get()).T
    process.stop()
    return spikes


# Spikformer


class Published(nn.Module):
    "Spiking self-attention as its authors wrote it, with SpikingJelly's neurons."

    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.scale = heads, 0.125
        for name in ("q", "k", "v", "proj"):
            setattr(self, f"{name}_linear", nn.Linear(dim, dim))
            setattr(self, f"{name}_bn", nn.BatchNorm1d(dim))
            setattr(self, f"{name}_lif", jelly("LIFNode", tau=2.0, detach_reset=True))
        self.attn_lif = jelly("LIFNode", tau=2.0, v_threshold=0.5, detach_reset=True)

    def fired(self, name, x):
        y = getattr(self, f"{name}_linear")(x.flatten(0, 1)).transpose(-1, -2)
        y = getattr(self, f"{name}_bn")(y).transpose(-1, -2).reshape(x.shape)
        return getattr(self, f"{name}_lif")(y)

    def forward(self, x):
        T, N, tokens, dim = x.shape
        split = (T, N, tokens, self.heads, dim // self.heads)
        q, k, v = (
            self.fired(name, x).reshape(split).permute(0, 1, 3, 2, 4) for name in ("q", "k", "v")
        )
        mixed = (q @ k.transpose(-2, -1)) * self.scale @ v
        return self.fired("proj", self.attn_lif(mixed.transpose(2, 3).reshape(x.shape)))


@pytest.mark.parametrize("heads", [1, 4])
def test_spikformers_attention(heads):
    functional = pytest.importorskip(
        "spikingjelly.activation_based.functional", reason="pip install spikingjelly"
    )
    theirs, x = Published(32, heads), 2 * torch.rand(9, 3, 16, 32)
    for name in ("q", "k", "v", "proj"):
        nn.init.constant_(getattr(theirs, f"{name}_bn").weight, 3.0)
        nn.init.constant_(getattr(theirs, f"{name}_bn").bias, 0.5)
    for _ in range(20):
        theirs(x)
        functional.reset_net(theirs)
    theirs, x = theirs.double().eval(), x.double()
    below = 1 - 1e-9
    ours = SpikingAttention(32, heads, partial(LIF, 0.5, 2 * below)).double().eval()
    ours.neuron = LIF(0.5, below)
    for name, part in zip(
        ("q", "k", "v", "proj"), (ours.query, ours.key, ours.value, ours.out), strict=True
    ):
        linear, norm = getattr(theirs, f"{name}_linear"), getattr(theirs, f"{name}_bn")
        part.linear.weight.data.copy_(linear.weight)
        part.norm.load_state_dict(norm.state_dict())
        part.norm.running_mean -= linear.bias.detach()
    with torch.no_grad():
        same(theirs(x), ours(x))
