"Currents, delays, recurrent layers, soft resets and constants per neuron as NIR graphs: back again, by NIR's equations, and in other libraries."

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurobridge.snn import LIF, RecurrentLIF, Synapse, from_nir, monitor, read_nir, to_nir
from neurobridge.snn.layers import over_time

nir = pytest.importorskip("nir", reason="NIR needs nir: pip install nir")
pytestmark = pytest.mark.usefixtures("same_numbers", "one_thread")


class Net(nn.Module):
    "A linear layer, and something along time."

    def __init__(self, *after, neurons=5):
        super().__init__()
        self.linear, self.after = nn.Linear(3, neurons), nn.Sequential(*after)

    def forward(self, x):
        return self.after(over_time(self.linear, x))


def kinds(graph):
    return sorted(type(node).__name__ for node in graph.nodes.values())


def per_neuron(low, high, n=5):
    return low + (high - low) * torch.rand(n)


def recurrent(**settings_):
    synapses = nn.Linear(5, 5, bias=False)
    nn.init.normal_(synapses.weight, 0, 0.4)
    return RecurrentLIF(synapses, **settings_)


NETS = {
    "current-based": (lambda: (Synapse(0.7), LIF(0.8, 0.6)), ["Affine", "CubaLIF"]),
    "current-based, each": (
        lambda: (Synapse(per_neuron(0.3, 0.9)), LIF(per_neuron(0.5, 0.9), per_neuron(0.3, 1.0))),
        ["Affine", "CubaLIF"],
    ),
    "current alone": (lambda: (Synapse(0.9),), ["Affine", "LI"]),
    "current without leak": (lambda: (Synapse(1.0), LIF(0.5)), ["Affine", "I", "LIF"]),
    "delay": (lambda: (Synapse(delay=3), LIF(0.8)), ["Affine", "Delay", "LIF"]),
    "delay and current": (
        lambda: (Synapse(0.6, torch.tensor([0.0, 1, 2, 3, 4])), LIF(0.8)),
        ["Affine", "CubaLIF", "Delay"],
    ),
    "each its own": (
        lambda: (LIF(per_neuron(0.2, 0.95), per_neuron(0.2, 1.0)),),
        ["Affine", "LIF"],
    ),
    "recurrent": (lambda: (recurrent(decay=0.8),), ["Affine", "LIF", "Linear"]),
    "recurrent, each": (
        lambda: (recurrent(decay=per_neuron(0.2, 0.9), v_th=per_neuron(0.3, 0.8)),),
        ["Affine", "LIF", "Linear"],
    ),
    "recurrent without leak": (lambda: (recurrent(decay=1.0),), ["Affine", "IF", "Linear"]),
    "recurrent after a current": (
        lambda: (Synapse(0.5), recurrent(decay=0.8)),
        ["Affine", "LI", "LIF", "Linear"],
    ),
    "soft": (lambda: (LIF(0.8, 0.6, "soft"),), ["Affine", "LI", "Scale", "Threshold"]),
    "soft, each": (
        lambda: (LIF(per_neuron(0.3, 0.9), per_neuron(0.3, 0.9), "soft"),),
        ["Affine", "LI", "Scale", "Threshold"],
    ),
    "soft without leak": (
        lambda: (LIF(1.0, 0.9, "soft"), LIF(1.0, 0.4, "soft")),
        ["Affine", "I", "I", "Scale", "Scale", "Threshold", "Threshold"],
    ),
    "soft after a current": (
        lambda: (Synapse(0.7), LIF(0.8, 0.9, "soft")),
        ["Affine", "LI", "LI", "Scale", "Threshold"],
    ),
    "learned": (
        lambda: (
            Synapse(0.5, learn_decay=True),
            LIF(0.7, 0.4, learn_decay=True, learn_threshold=True),
        ),
        ["Affine", "CubaLIF"],
    ),
}
nets = pytest.mark.parametrize("name", NETS)


def built(name):
    torch.manual_seed(0)
    make, expected = NETS[name]
    return Net(*make()).eval(), torch.randn(60, 4, 3) * 2, sorted([*expected, "Input", "Output"])


@nets
def test_a_graph_comes_back_with_the_same_outputs(name, tmp_path):
    net, x, expected = built(name)
    graph = to_nir(net, x)
    assert kinds(graph) == expected
    nir.write(tmp_path / "net.nir", graph)
    for found in (graph, read_nir(tmp_path / "net.nir")):
        again = from_nir(found).eval()
        with torch.no_grad():
            ours, theirs = again(x), net(x)
        assert 0.02 < (theirs != 0).float().mean()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        assert kinds(to_nir(again, x)) == expected
    layers = [m for m in again.modules() if isinstance(m, LIF | Synapse)]
    originals = [m for m in net.modules() if isinstance(m, LIF | Synapse)]
    assert {type(m).__name__ for m in layers} == {type(m).__name__ for m in originals}


def stepped(graph, x, dt=1e-4):
    "NIR's equations by Euler's rule in double precision, node by node; circles take one step."
    order = ["input"]
    while len(order) < len(graph.nodes):
        for name in graph.nodes:
            before = {a for a, b in graph.edges if b == name}
            left = before - set(order)
            circle = all(any(c == left_ for c, _ in graph.edges) and reaches(graph, name, left_) for left_ in left)  # fmt: skip
            if name not in order and before and (not left or circle):
                order.append(name)
    last = {name: 0.0 for name in graph.nodes}
    memory: dict = {name: {} for name in graph.nodes}
    outs = []
    for x_t in x:
        now = {"input": x_t}
        for name in order[1:]:
            value = sum(now.get(a, last[a]) for a, b in graph.edges if b == name)
            now[name] = update(graph.nodes[name], value, memory[name], dt)
        last = now
        outs.append(now["output"])
    return np.stack(outs)


def reaches(graph, start, end):
    seen, todo = set(), [start]
    while todo:
        here = todo.pop()
        if here == end:
            return True
        if here not in seen:
            seen.add(here)
            todo += [b for a, b in graph.edges if a == here]
    return False


def update(node, x, memory, dt):
    kind = type(node).__name__
    if kind == "Output":
        return x
    if kind in ("Affine", "Linear"):
        return x @ node.weight.T.astype(float) + getattr(node, "bias", 0.0)
    if kind == "Scale":
        return x * node.scale
    if kind == "Threshold":
        return (x > node.threshold).astype(float)
    if kind == "Delay":
        steps = np.round(node.delay / dt).astype(int)
        line = memory.setdefault("line", [])
        line.append(np.broadcast_to(x, np.broadcast_shapes(np.shape(x), steps.shape)))
        lagged = [line[max(len(line) - 1 - d, 0)][..., k] * (len(line) > d) for k, d in enumerate(steps)]  # fmt: skip
        return np.stack(lagged, -1)
    if kind == "CubaLIF":
        memory["i"] = memory.get("i", 0.0) + dt / node.tau_syn * (
            node.w_in * x - memory.get("i", 0.0)
        )
        x = memory["i"]
    v = memory.get("v", 0.0)
    tau = getattr(node, "tau_mem", getattr(node, "tau", None))
    v = v + dt * node.r * x if tau is None else v + dt / tau * (node.v_leak - v + node.r * x)
    if kind in ("LI", "I"):
        memory["v"] = v
        return v
    spikes = (v > node.v_threshold).astype(float)
    memory["v"] = np.where(spikes > 0, node.v_reset, v)
    return spikes


@nets
def test_nirs_equations_fire_the_same_spikes(name):
    net, x, _ = built(name)
    net, x = net.double(), x.double()
    theirs = stepped(to_nir(net, x), x.numpy())
    with torch.no_grad():
        ours = net(x).numpy()
    if name == "current alone":
        np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(theirs, ours)


@given(
    decay=st.floats(0.0625, 0.984375, width=32),
    v_th=st.floats(0.0625, 5, width=32),
    alpha=st.floats(0.0625, 0.984375, width=32),
    delay=st.integers(0, 5),
    dt=st.sampled_from([1e-4, 1e-3, 1.0]),
)
@settings(max_examples=40)
def test_constants_survive(decay, v_th, alpha, delay, dt):
    net = nn.Sequential(Synapse(alpha, delay), LIF(decay, v_th), LIF(decay, v_th, "soft"))
    again = from_nir(to_nir(net, torch.rand(2, 1, 3), dt))
    synapses = [m for m in again.modules() if isinstance(m, Synapse)]
    assert np.float32(synapses[-1].decay_value().item()) == np.float32(alpha)
    assert sum(int(m.delay.max()) for m in synapses) == delay
    hard, soft = (m for m in again.modules() if isinstance(m, LIF))
    for layer, reset in ((hard, "hard"), (soft, "soft")):
        assert layer.reset == reset
        assert np.float32(layer.decay) == np.float32(decay)
        assert np.float32(layer.v_th) == np.float32(v_th)


def snntorchs(graph):
    "snnTorch's neurons in the places of the nodes, run by nirtorch."
    pytest.importorskip("snntorch", reason="pip install snntorch")
    nirtorch = pytest.importorskip("nirtorch", reason="pip install nirtorch")
    from snntorch.import_nir import _nir_to_snntorch_module

    def module(node):
        return _nir_to_snntorch_module(node, init_hidden=True)

    found = (nir.Affine, nir.Linear, nir.LIF, nir.CubaLIF)
    return nirtorch.nir_to_torch(graph, {kind: module for kind in found})


@pytest.mark.parametrize("name", ["current-based", "recurrent", "one threshold, many decays"])
def test_snntorch_fires_the_same_spikes(name, capsys):
    NETS["one threshold, many decays"] = (lambda: (LIF(per_neuron(0.2, 0.95), 0.5),), [])
    try:
        net, x, _ = built(name)
    finally:
        del NETS["one threshold, many decays"]
    theirs, state, spikes = snntorchs(to_nir(net, x[:, :1])), None, []
    with torch.no_grad():
        for x_t in x[:, :1]:
            out, state = theirs(x_t, state)
            spikes.append(out)
        ours = net(x[:, :1])
    assert 0.05 < ours.mean() < 0.9
    assert torch.equal(torch.stack(spikes), ours)


@pytest.mark.parametrize("kind", ["RLeaky", "Synaptic"])
@pytest.mark.filterwarnings("ignore:nirtorch.extract_nir_graph is being deprecated")
def test_snntorchs_graphs_are_read(kind, capsys):
    snntorch = pytest.importorskip("snntorch", reason="pip install snntorch")
    pytest.importorskip("nirtorch", reason="pip install nirtorch")
    from snntorch.export_nir import export_to_nir

    full = dict(threshold=torch.ones(5), reset_mechanism="zero", reset_delay=False)
    full |= dict(beta=torch.full((5,), 0.8), init_hidden=True)
    if kind == "RLeaky":
        neurons = snntorch.RLeaky(linear_features=5, **full)
        nn.init.zeros_(neurons.recurrent.bias)
    else:
        neurons = snntorch.Synaptic(alpha=torch.full((5,), 0.6), **full)
    theirs = nn.Sequential(nn.Linear(3, 5), neurons)
    ours = from_nir(export_to_nir(theirs, torch.randn(1, 3), ignore_dims=[0]))
    x = torch.randn(40, 2, 3) * 2
    neurons.reset_mem()
    with torch.no_grad():
        expected = torch.stack([theirs(x_t) for x_t in x])
        assert 0.02 < expected.mean() < 0.9
        assert torch.equal(ours(x), expected)
    assert any(isinstance(m, RecurrentLIF | Synapse) for m in ours.modules())


def test_recurrent_maps():
    layer = RecurrentLIF(nn.Conv2d(2, 2, 3, padding=1), 0.7)
    x = torch.randn(30, 3, 2, 5, 6)
    graph = to_nir(nn.Sequential(layer), x)
    assert kinds(graph) == ["Conv2d", "Input", "LIF", "Output"]
    with torch.no_grad():
        assert torch.equal(from_nir(graph)(x), layer(x))


def test_constants_per_channel_stay_per_channel():
    layer = LIF(
        torch.tensor([0.2, 0.5, 0.9]).view(3, 1, 1), torch.tensor([0.3, 0.5, 1.0]).view(3, 1, 1)
    )
    x = torch.randn(30, 2, 3, 4, 4)
    again = from_nir(to_nir(nn.Sequential(layer), x))
    (neurons,) = (m for m in again.modules() if isinstance(m, LIF))
    assert neurons.decay.shape == neurons.v_th.shape == (3, 1, 1)
    assert torch.equal(again(x), layer(x))
    with monitor(again) as records:
        again(x)
    assert len(records) == 1


@pytest.mark.parametrize(
    "net, message",
    [
        (lambda: Synapse(delay=1.5), "'0', a Synapse, has a delay between two steps"),
        (lambda: Synapse(torch.tensor([0.5, 1.0, 0.5])), "decay of 1 for some"),
        (lambda: RecurrentLIF(nn.Linear(3, 3), reset="soft"), "resets by subtraction"),
        (
            lambda: RecurrentLIF(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))),
            "feeds back through a Sequential",
        ),
        (
            lambda: RecurrentLIF(nn.Linear(3, 3), output="analogue"),
            "sends on its membrane",
        ),
    ],
)
def test_refused_by_name(net, message):
    with pytest.raises(ValueError, match=f"to_nir: .*{message}"):
        to_nir(nn.Sequential(net()), torch.rand(4, 2, 3))


def graph_of(edges, **nodes):
    ends = {"input": nir.Input(np.array([2])), "output": nir.Output(np.array([2]))}
    return nir.NIRGraph(nodes | ends, edges)


def test_graphs_that_have_no_counterpart():
    one, eye = np.ones(2), np.eye(2, dtype=np.float32)
    neurons = nir.LIF(tau=2e-4 * one, r=2 * one, v_leak=0 * one, v_threshold=one)
    ring = [("input", "n"), ("n", "w"), ("w", "n"), ("n", "output")]
    assert isinstance(from_nir(graph_of(ring, n=neurons, w=nir.Linear(eye))).n, RecurrentLIF)
    for edges, nodes, message in (
        ([*ring, ("w", "output")], dict(n=neurons, w=nir.Linear(eye)), "recurrent"),
        (
            [*ring, ("n", "u"), ("u", "n")],
            dict(n=neurons, w=nir.Linear(eye), u=nir.Linear(eye)),
            "recurrent",
        ),
        (
            [("input", "n"), ("n", "output")],
            dict(n=nir.Delay(1.5e-4 * one)),
            "'n' has a delay of 1.5 steps",
        ),
        (
            [("input", "n"), ("n", "output")],
            dict(n=nir.LI(tau=2e-4 * one, r=one, v_leak=0 * one)),
            "input gain r . dt / tau of 0.5; expected 1",
        ),
        (
            [("input", "i"), ("i", "t"), ("t", "s"), ("s", "i"), ("t", "output")],
            dict(i=nir.I(r=1e4 * one), t=nir.Threshold(one), s=nir.Scale(-0.5 * one)),
            "'t' is fed back times -0.5; expected .* -1, as a soft reset",
        ),
        (
            [("input", "n"), ("n", "output")],
            dict(
                n=nir.CubaLIF(
                    tau_syn=5e-5 * one, tau_mem=one, r=one, v_leak=0 * one, v_threshold=one
                )
            ),
            "tau_syn",
        ),
    ):
        with pytest.raises(ValueError, match=f"from_nir: .*{message}"):
            from_nir(graph_of(edges, **nodes))


def test_delays_that_need_too_much_memory_are_refused(monkeypatch):
    monkeypatch.setenv("NEUROBRIDGE_MAX_BYTES", "100000")
    with pytest.raises(ValueError, match="'n' delays by up to 1000000 steps.* needs too much"):
        from_nir(graph_of([("input", "n"), ("n", "output")], n=nir.Delay(np.full(2, 100.0))))
