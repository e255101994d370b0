"snn.recurrent against NumPy, snnTorch and plain LIF; what the rest of the library does with such a layer."

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from backends import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurobridge.core import evaluate, fit, load_network, save_network
from neurobridge.g2g import EnsembleLinear, MaskedLinear, er_mask
from neurobridge.snn import (
    LIF,
    RecurrentLIF,
    fire,
    monitor,
    over_time,
    recompute_steps,
    spikify,
    synops,
    to_nir,
)
from neurobridge.snn.layers import conv_norm

pytestmark = pytest.mark.usefixtures("same_numbers", "one_thread")


def in_numpy(x, weight, bias, decay, v_th, reset, output):
    "The equation, step by step, without torch."
    v, sent, outs, membranes = np.zeros(x.shape[1:]), np.zeros(x.shape[1:]), [], []
    for x_t in x:
        h = decay * v + x_t + sent @ weight.T + bias
        s = (h > v_th).astype(float)
        v = h * (1 - s) if reset == "hard" else h - v_th * s
        sent = s if output == "spike" else np.where(h > 0, h, 0.2 * h)
        outs.append(sent)
        membranes.append(h)
    return np.stack(outs), np.stack(membranes), v


@given(
    steps=st.integers(1, 20),
    batch=st.integers(1, 3),
    neurons=st.integers(1, 6),
    decay=st.sampled_from((0.1, 0.25, 0.9, 1.0)),
    v_th=st.sampled_from((0.3, 0.5, 1.0)),
    reset=st.sampled_from(("hard", "soft")),
    output=st.sampled_from(("spike", "analogue")),
    backend=st.sampled_from(BACKENDS),
    bias=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=60)
def test_the_equation(steps, batch, neurons, decay, v_th, reset, output, backend, bias, seed):
    torch.manual_seed(seed)
    synapses = nn.Linear(neurons, neurons, bias).double()
    layer = RecurrentLIF(synapses, decay, v_th, reset, output=output, backend=backend)
    x = torch.randn(steps, batch, neurons, dtype=torch.double)
    shift = synapses.bias.detach().numpy() if bias else 0.0
    weight = synapses.weight.detach().numpy()
    outs, membranes, v = in_numpy(x.numpy(), weight, shift, decay, v_th, reset, output)
    with torch.no_grad(), monitor(layer, membranes=True) as records:
        ours, state = layer(x, return_state=True)
    np.testing.assert_allclose(ours.numpy(), outs, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(state["membrane"].numpy(), v, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(state["output"].numpy(), outs[-1], rtol=1e-10, atol=1e-12)
    (record,) = records.values()
    np.testing.assert_allclose(record.membranes.numpy(), membranes, rtol=1e-10, atol=1e-12)
    assert torch.equal(record.spikes, torch.from_numpy(membranes > v_th))


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("shape", ["vectors", "maps"])
def test_against_snntorch(reset, shape):
    snntorch = pytest.importorskip("snntorch")
    kinds = {"hard": "zero", "soft": "subtract"}
    size = {"linear_features": 8}
    x = torch.rand(30, 2, 8) * 0.8 - 0.3
    if shape == "maps":
        size = {"conv2d_channels": 3, "kernel_size": 3}
        x = torch.rand(30, 2, 3, 5, 5) * 0.8 - 0.3
    theirs = snntorch.RLeaky(
        0.7, threshold=0.5, reset_mechanism=kinds[reset], reset_delay=False, **size
    )
    with torch.no_grad():
        for weight in theirs.recurrent.parameters():
            weight.mul_(0.3 if reset == "soft" else 1.0)
    ours = RecurrentLIF(copy.deepcopy(theirs.recurrent), 0.7, 0.5, reset)
    spk, mem, sent = *theirs.init_rleaky(), []
    with torch.no_grad():
        for x_t in x:
            spk, mem = theirs(x_t, spk, mem)
            sent.append(spk)
        out, state = ours(x, return_state=True)
        highest = ours.membranes(x, out).max()
    assert 0.05 < out.mean() < 0.95
    assert (
        reset == "hard" or highest < 1
    )  # from two thresholds on, theirs resets a second time, a step later
    assert torch.equal(out, torch.stack(sent))
    torch.testing.assert_close(state["membrane"], mem, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("output", ["spike", "analogue"])
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_silent_synapses_are_plain_lif(backend, output, reset):
    silent = nn.Conv2d(3, 3, 3, padding=1)
    for weight in silent.parameters():
        nn.init.zeros_(weight)
    chosen = dict(reset=reset, output=output, backend=backend)
    x = torch.randn(40, 2, 3, 6, 6).requires_grad_()
    plain, feeding = LIF(0.8, **chosen), RecurrentLIF(silent, 0.8, **chosen)
    ours, theirs = feeding(x), plain(x)
    assert torch.equal(ours, theirs)
    (ours_x,) = torch.autograd.grad(ours.square().sum(), x)
    (theirs_x,) = torch.autograd.grad(theirs.square().sum(), x)
    torch.testing.assert_close(ours_x, theirs_x, rtol=1e-5, atol=1e-6)


def synapses_of(kind):
    torch.manual_seed(1)
    if kind == "masked":
        return MaskedLinear(er_mask(16, 16, 0.3))
    if kind == "ensembles":
        return EnsembleLinear(16, 16, groups=4)
    if kind == "two layers":
        return nn.Sequential(nn.Linear(16, 4, bias=False), nn.Linear(4, 16))
    return nn.Linear(16, 16)


@pytest.mark.parametrize("kind", ["masked", "ensembles", "two layers", "dense"])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_chunks_are_the_whole(kind, size):
    layer, x = RecurrentLIF(synapses_of(kind), 0.6, learn_decay=True), torch.randn(100, 3, 16)
    whole, last = layer(x, return_state=True)
    parts, state = [], None
    for chunk in x.split(size):
        part, state = layer(chunk, state, return_state=True)
        parts.append(part)
    assert torch.equal(torch.cat(parts), whole)
    assert all(torch.equal(state[name], last[name]) for name in last)


class Net(nn.Module):
    "[N, T, 4] to logits, from the spikes of the last step."

    def __init__(self, neuron):
        super().__init__()
        self.encode, self.neuron, self.decode = nn.Linear(4, 16), neuron, nn.Linear(16, 3)

    def forward(self, x):
        return self.decode(self.neuron(over_time(self.encode, x.transpose(0, 1)))[-1])


def test_training_files_and_copies(tmp_path):
    net = Net(RecurrentLIF(nn.Linear(16, 16), learn_decay=True))
    x, y = torch.randn(64, 6, 4), torch.randint(3, (64,))
    before = copy.deepcopy(net.state_dict())
    fit(net, (x, y), epochs=2, lr=0.01)
    changed = [name for name, value in net.state_dict().items() if (value != before[name]).any()]
    assert {"neuron.synapses.weight", "neuron.synapses.bias", "neuron.decay_logit"} <= set(changed)
    assert 0 <= evaluate(net, (x, y))["accuracy"] <= 1
    save_network(net, tmp_path / "net.safetensors")
    loaded = load_network(tmp_path / "net.safetensors", classes=[Net])
    for other in (loaded, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert type(other.neuron) is RecurrentLIF
        assert torch.equal(other(x), net(x))
    with pytest.raises(ValueError, match="v_th"):
        Net(RecurrentLIF(nn.Linear(16, 16), v_th=0.7, learn_decay=True)).load_state_dict(
            net.state_dict()
        )


def test_membranes_are_those_of_the_call_also_from_a_state():
    layer, x = RecurrentLIF(nn.Linear(8, 8), 0.9, output="analogue"), torch.randn(9, 2, 8)
    with monitor(layer, membranes=True) as records, torch.no_grad():
        _, state = layer(x[:4], return_state=True)
        layer(x[4:], state)
    (record,) = records.values()
    parts = torch.cat(record.parts["membranes"])
    with monitor(layer, membranes=True) as records, torch.no_grad():
        whole = layer(x)
    (record,) = records.values()
    assert torch.equal(parts, record.membranes)
    assert torch.equal(nn.functional.leaky_relu(record.membranes, 0.2), whole)
    dropping = RecurrentLIF(nn.Sequential(nn.Linear(8, 8), nn.Dropout()))
    with pytest.raises(ValueError, match=r"call eval\(\)"), monitor(dropping, membranes=True):
        dropping(x)
    with monitor(dropping.eval(), membranes=True):
        dropping(x)


def test_operations_by_hand():
    "A 3×3 kernel on 4×4 pixels with one spike in a corner: it crosses four synapses per channel."
    conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)
    nn.init.zeros_(conv.weight)
    x = torch.zeros(5, 1, 2, 4, 4)
    x[1, 0, 0, 0, 0] = x[4, 0, 1, 2, 2] = 1.0  # the second one is sent by the last step
    table = synops(RecurrentLIF(conv), x, images=1)
    assert list(table.index) == ["", "synapses"]
    row = table.loc["synapses"]
    assert (row.spikes_in, row.AC, row.MAC) == (1, 4 * 2, 0)
    assert (table.spikes_out[""], table.updates[""]) == (2, 5 * 32)
    assert row.average == 1 / (5 * 32) * (5 * 32 * 2 * 9)  # mean rate times the dense layer


def test_recorded_and_counted_at_once():
    "Membranes are computed a second time, and what is computed twice is counted once."
    net, x = nn.Sequential(LIF(), RecurrentLIF(nn.Linear(4, 4))), torch.rand(6, 2, 4)
    alone = synops(net, x, images=2)
    with monitor(net, membranes=True):
        table = synops(net, x, images=2)
    assert table.equals(alone)


def test_operations_in_a_network():
    torch.manual_seed(0)
    feedback = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
    net = nn.Sequential(LIF(), RecurrentLIF(feedback)).eval()
    x = torch.rand(6, 2, 3, 5, 5)
    table = synops(net, x, images=2)
    with monitor(net) as records, torch.no_grad():
        net(x)
    assert table.AC["1.synapses.0"] == 4 * records["1"].spikes[:-1].sum() / 2
    assert table.MAC["1.synapses.2"] == 6 * 25 * 12 and table.AC["1.synapses.2"] == 0
    analogue = synops(
        RecurrentLIF(nn.Linear(4, 4), output="analogue"), torch.rand(6, 2, 4), images=2
    )
    assert analogue.MAC["synapses"] == 5 * 16  # nothing was sent before the first step

    class Gate(nn.Module):
        def forward(self, s):
            return s * s.flip(-1)

    with pytest.raises(ValueError, match="synapses"):
        synops(RecurrentLIF(nn.Sequential(nn.Linear(4, 4), Gate())), torch.rand(6, 2, 4), images=2)


def test_a_cut_with_recomputation():
    net = nn.Sequential(
        nn.Linear(4, 8), RecurrentLIF(nn.Linear(8, 8), 0.8, learn_decay=True), LIF()
    )
    x = torch.randn(11, 2, 4)
    outs, grads = [], []
    for run in (lambda trunk, x: trunk(x), partial(recompute_steps, steps=4)):
        net.zero_grad()
        out = run(net, x)
        out.square().sum().backward()
        outs.append(out.detach())
        grads.append([p.grad.clone() for p in net.parameters()])
    assert torch.equal(*outs)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_after_a_norm_and_in_other_places():
    layer, conv = RecurrentLIF(nn.Conv2d(16, 16, 3, padding=1)), conv_norm(3, 16).eval()
    x = torch.rand(4, 2, 3, 8, 8)
    torch.testing.assert_close(fire(x, conv, layer), layer(over_time(conv, x)))
    graph = to_nir(nn.Sequential(RecurrentLIF(nn.Linear(4, 4))), torch.rand(5, 2, 4))
    back = [
        name for name in graph.nodes if name.endswith("_feedback")
    ]  # neurons, synapses, neurons
    assert len(back) == 1 and {a for a, b in graph.edges if b == back[0]} == {
        b for a, b in graph.edges if a == back[0]
    }
    with pytest.raises(ValueError, match="layer of neurons already"):
        spikify(nn.Sequential(nn.Conv2d(1, 1, 1), RecurrentLIF(nn.Conv2d(1, 1, 1)), nn.ReLU()))


def test_half_precision_keeps_its_membranes_in_float32():
    layer = RecurrentLIF(nn.Linear(4, 4).bfloat16())
    out, state = layer(torch.rand(5, 2, 4).bfloat16(), return_state=True)
    assert (out.dtype, state["membrane"].dtype) == (torch.bfloat16, torch.float32)
    layer(torch.rand(5, 2, 4).bfloat16(), state)


@pytest.mark.parametrize(
    "synapses, message",
    [
        (nn.Linear, "expected Module"),
        (nn.LSTM(4, 4), "LSTM"),
        (nn.Sequential(nn.Linear(4, 4), LIF()), "'1', a LIF"),
        (RecurrentLIF(nn.Linear(4, 4)), "RecurrentLIF"),
    ],
)
def test_synapses_with_a_memory_are_refused(synapses, message):
    with pytest.raises((TypeError, ValueError), match=message):
        RecurrentLIF(synapses)


def test_wrong_input_and_states_are_refused():
    layer, x = RecurrentLIF(nn.Linear(4, 4)), torch.rand(5, 2, 4)
    _, state = layer(x, return_state=True)
    for wrong, message in (
        (torch.zeros(2, 4), "expected a dict"),
        ({"membrane": state["membrane"]}, "'membrane'; expected"),
        (state | {"membrane": None}, r"state\['membrane'\] is None"),
        (state | {"output": torch.zeros(3, 4)}, "another network, batch size"),
        (state | {"output": torch.zeros(2, 4).double()}, "float64"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            layer(x, wrong)
    for wrong in (x[0, 0], x[:0], x.long(), x.to("meta")):
        with pytest.raises((TypeError, ValueError), match="RecurrentLIF: x"):
            layer(wrong)
    with pytest.raises(ValueError, match="x contains NaN"):
        layer(torch.full((3, 2, 4), float("nan")))
    with pytest.raises(ValueError, match="a current for each"):
        RecurrentLIF(nn.Linear(4, 1))(x)
    with pytest.raises(ValueError, match="learned decay"):
        RecurrentLIF(nn.Linear(4, 4), 1.0, learn_decay=True)
