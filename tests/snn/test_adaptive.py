"snn.adaptive against NumPy, norse and sinabs; what the rest of the library does with such a layer."

import copy
import pickle

import numpy as np
import pytest
import torch
from backends import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurobridge.core import fit, load_network, save_network
from neurobridge.snn import (
    LIF,
    AdaptiveLIF,
    Surrogate,
    Synapse,
    atan,
    monitor,
    over_time,
    spikify,
    streaming,
    synops,
    to_nir,
    to_onnx,
)

pytestmark = pytest.mark.usefixtures("same_numbers", "one_thread")


def in_numpy(x, weight, decay, v_th, rise, kept, reset):
    "The equations, step by step, without torch."
    v, a, s, spikes, membranes = np.zeros(x.shape[1:]), 0.0, np.zeros(x.shape[1:]), [], []
    for x_t in x:
        h = decay * v + x_t + s @ weight.T
        s = (h > v_th + a).astype(float)
        v = h * (1 - s) if reset == "hard" else h - (v_th + a) * s
        a = kept * a + rise * s
        spikes.append(s)
        membranes.append(h)
    return np.stack(spikes), np.stack(membranes), v, a


@given(
    steps=st.integers(1, 25),
    neurons=st.integers(1, 5),
    decay=st.sampled_from((0.25, 0.9, 1.0)),
    v_th=st.sampled_from((0.3, 1.0)),
    rise=st.sampled_from((0.01, 0.2, 3.0)),
    kept=st.sampled_from((0.1, 0.95, 1.0)),
    reset=st.sampled_from(("hard", "soft")),
    backend=st.sampled_from(BACKENDS),
    recurrent=st.booleans(),
    each=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=80)
def test_the_equations(
    steps, neurons, decay, v_th, rise, kept, reset, backend, recurrent, each, seed
):
    torch.manual_seed(seed)
    synapses = nn.Linear(neurons, neurons, bias=False).double() if recurrent else None
    weight = synapses.weight.detach().numpy() if recurrent else np.zeros((neurons, neurons))
    if each:  # one value per neuron
        rise, kept = (
            rise * (0.5 + torch.rand(neurons).double()),
            kept * (1 - 0.5 * torch.rand(neurons).double()),
        )
    layer = AdaptiveLIF(decay, v_th, rise, kept, reset, synapses=synapses, backend=backend).double()
    x = torch.randn(steps, 2, neurons, dtype=torch.double)
    constants = (layer.rise.numpy(), layer.rise_decay.numpy())
    spikes, membranes, v, a = in_numpy(x.numpy(), weight, decay, v_th, *constants, reset)
    with torch.no_grad(), monitor(layer, membranes=True) as records:
        ours, state = layer(x, return_state=True)
    (record,) = records.values()
    np.testing.assert_array_equal(ours.numpy(), spikes)
    np.testing.assert_allclose(record.membranes.numpy(), membranes, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(state["membrane"].numpy(), v, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(state["rise"].numpy(), a, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("recurrent", [False, True])
def test_norses_lsnn(recurrent):
    "Its current arrives a step later, and its rise decays before it is first compared."
    pytest.importorskip("norse", reason="pip install norse")
    from norse.torch.functional import lsnn

    x, weight = torch.rand(80, 4, 25).double() * 0.9, torch.randn(25, 25).double() * 0.1
    p = lsnn.LSNNParameters(tau_adapt_inv=torch.as_tensor(20.0), beta=torch.as_tensor(0.4))
    zero, spikes = torch.zeros(4, 25).double(), []
    eye, v_th = torch.eye(25).double(), torch.ones(4, 25).double()
    state = lsnn.LSNNState(zero, zero, zero, v_th)
    for x_t in x:  # dt 1 ms: membrane 0.9, current 0.8, threshold 0.98 kept per step
        s, state = lsnn.lsnn_step(x_t, state, eye, weight * recurrent, p)
        spikes.append(s)
    spikes = torch.stack(spikes)
    assert 0.02 < spikes.mean() < 0.9
    constants = (0.9, 1.0, 0.98 * 0.4, 0.98)
    if not recurrent:
        layer = AdaptiveLIF(*constants).double()
        assert layer(Synapse(0.8, delay=1)(0.1 * x)).equal(spikes)
        return
    layer, ours, left, current = AdaptiveLIF(*constants).double(), [], None, zero
    for x_t in x:  # norse feeds back into the synaptic current, by a step more
        s, left = layer(0.1 * current[None], left, return_state=True)
        before = ours[-1] if ours else zero
        current = 0.8 * current + x_t + before @ weight.T
        ours.append(s[0])
    assert torch.stack(ours).equal(spikes)


@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_sinabs_alif(reset, recurrent):
    pytest.importorskip("sinabs", reason="pip install sinabs")
    import sinabs.activation as activation
    from sinabs.layers import ALIF, ALIFRecurrent

    kind = activation.MembraneReset() if reset == "hard" else activation.MembraneSubtract()
    given = dict(tau_mem=10.0, tau_adapt=30.0, adapt_scale=4.0, spike_threshold=1.0)
    given |= dict(reset_fn=kind, spike_fn=activation.SingleSpike, norm_input=False)
    synapses = nn.Linear(25, 25, bias=False) if recurrent else None
    theirs = ALIFRecurrent(rec_connect=synapses, **given) if recurrent else ALIF(**given)
    x = torch.rand(80, 4, 25) * 0.6
    with torch.no_grad():
        spikes = theirs(x.transpose(0, 1)).transpose(0, 1)
        decay, kept = theirs.alpha_mem_calculated, theirs.alpha_adapt_calculated
        layer = AdaptiveLIF(
            float(decay), 1.0, 4.0 * (1 - float(kept)), float(kept), reset, synapses=synapses
        )
        ours = layer(x)
    assert 0.02 < spikes.mean() < 0.9
    assert torch.equal(ours, spikes), (ours != spikes).float().mean()


@pytest.mark.parametrize(
    "surrogate", [atan(), lambda u: 1 / (1 + u.abs()) ** 2, Surrogate("sigmoid", (4.0,))]
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_every_backend_has_the_same_gradients(surrogate, backend, reset):
    x = torch.randn(30, 2, 5).double().requires_grad_()
    grads = []
    for name in (backend, "reference"):
        layer = AdaptiveLIF(
            0.8, 0.4, 0.2, 0.9, reset, surrogate, learn_decay=True, learn_threshold=True,
            learn_rise=True, backend=name,
        ).double()  # fmt: skip
        leaves = [x, *layer.parameters()]
        assert len(leaves) == 5
        grads.append(torch.autograd.grad(layer(x).square().sum(), leaves))
    for a, b in zip(*grads, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_an_infinitesimal_rise_is_plain_lif():
    x = torch.randn(60, 3, 4, 5, 5)
    for reset in ("hard", "soft"):
        assert AdaptiveLIF(0.8, rise=1e-30, reset=reset)(x).equal(LIF(0.8, reset=reset)(x))


@pytest.mark.parametrize("synapses", [None, nn.Linear(16, 16)])
@pytest.mark.parametrize("size", [1, 7, 40])
def test_chunks_are_the_whole_alone_and_in_a_stream(synapses, size):
    layer, x = AdaptiveLIF(0.7, synapses=synapses), torch.randn(40, 3, 16)
    net = nn.Sequential(nn.Linear(16, 16), layer, nn.Linear(16, 2))
    stream, whole, parts, outs, state, carried = streaming(net), layer(x), [], [], None, None
    with torch.no_grad():
        for chunk in x.split(size):
            part, state = layer(chunk, state, return_state=True)
            out, carried = stream(chunk, carried)
            parts.append(part)
            outs.append(out)
        assert torch.cat(parts).equal(whole)
        torch.testing.assert_close(torch.cat(outs), net(x))


class Net(nn.Module):
    "[N, T, 4] to logits, from the spikes of the last step."

    def __init__(self, neuron):
        super().__init__()
        self.encode, self.neuron, self.decode = nn.Linear(4, 16), neuron, nn.Linear(16, 3)

    def forward(self, x):
        return self.decode(self.neuron(over_time(self.encode, x.transpose(0, 1)))[-1])


def test_training_files_and_copies(tmp_path):
    net = Net(AdaptiveLIF(learn_rise=True, learn_decay=True, synapses=nn.Linear(16, 16)))
    x, y = torch.randn(64, 6, 4), torch.randint(3, (64,))
    before = copy.deepcopy(net.state_dict())
    fit(net, (x, y), epochs=2, lr=0.01)
    changed = [name for name, value in net.state_dict().items() if (value != before[name]).any()]
    assert {"neuron.rise_log", "neuron.rise_decay_logit", "neuron.decay_logit"} <= set(changed)
    save_network(net, tmp_path / "net.safetensors")
    loaded = load_network(tmp_path / "net.safetensors", classes=[Net])
    for other in (loaded, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert type(other.neuron) is AdaptiveLIF
        assert torch.equal(other(x), net(x))
    with pytest.raises(ValueError, match="v_th|feedback"):
        Net(AdaptiveLIF(v_th=0.7, learn_rise=True, learn_decay=True)).load_state_dict(
            net.state_dict(), strict=False
        )
    fixed = Net(AdaptiveLIF(rise=0.3, rise_decay=torch.full((16,), 0.5)))
    save_network(fixed, tmp_path / "fixed.safetensors")
    assert load_network(tmp_path / "fixed.safetensors", classes=[Net])(x).equal(fixed(x))


def test_operations_by_hand():
    "One spike, whose synapse reaches three neurons; the spike of the last step crosses nothing."
    synapses = nn.Linear(3, 3, bias=False)
    nn.init.zeros_(synapses.weight)
    x = torch.zeros(5, 1, 3)
    x[1, 0, 0] = x[4, 0, 1] = 1.0
    table = synops(AdaptiveLIF(synapses=synapses), x, images=1)
    row = table.loc["synapses"]
    assert (row.spikes_in, row.AC, row.MAC) == (1, 3, 0)
    assert (table.spikes_out[""], table.updates[""]) == (2, 15)
    net = nn.Sequential(AdaptiveLIF(), nn.Linear(3, 7))
    assert synops(net, x, images=1).AC["1"] == 2 * 7


def test_other_places():
    net = nn.Sequential(nn.Linear(4, 6), AdaptiveLIF(0.8, 0.3))
    with pytest.raises(ValueError, match="'1', an? AdaptiveLIF, .*threshold.*NIR has no node"):
        to_nir(net, torch.rand(5, 2, 4))
    torch.manual_seed(0)
    cnn = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    spiking = spikify(cnn, AdaptiveLIF, T=5)
    out = spiking(torch.rand(2, 1, 8, 8))
    assert out.shape == (2, 3) and any(isinstance(m, AdaptiveLIF) for m in spiking.modules())


def test_onnx_runs_it_with_the_same_spikes():
    runtime = pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
    pytest.importorskip("onnxscript", reason="pip install onnx onnxscript")
    net = nn.Sequential(AdaptiveLIF(0.9, 0.5, 0.2, synapses=nn.Linear(6, 6))).eval()
    x = torch.randn(12, 2, 6)
    session = runtime.InferenceSession(to_onnx(net, x).SerializeToString())
    (theirs,) = session.run(None, {"input": x.numpy()})
    with torch.no_grad():
        ours = net(x)
    assert 0.05 < ours.mean() < 0.9
    np.testing.assert_array_equal(theirs, ours.numpy())


def test_half_precision_keeps_its_state_in_float32():
    layer = AdaptiveLIF(rise=0.3)
    out, state = layer(torch.rand(50, 2, 4).bfloat16(), return_state=True)
    assert out.dtype == torch.bfloat16
    assert {part.dtype for part in state.values()} == {torch.float32}
    layer(torch.rand(5, 2, 4).bfloat16(), state)


def test_wrong_constants_input_and_states_are_refused():
    for settings_, message in (
        ({"rise": 0.0}, "rise"),
        ({"rise": torch.zeros(3)}, "rise lies in"),
        ({"rise_decay": 1.0, "learn_rise": True}, "rise_decay"),
        ({"rise": torch.ones(3, requires_grad=True)}, "learn_rise"),
        ({"synapses": LIF()}, "AdaptiveLIF: synapses"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            AdaptiveLIF(**settings_)
    layer, x = AdaptiveLIF(), torch.rand(5, 2, 4)
    _, state = layer(x, return_state=True)
    for wrong, message in (
        (torch.zeros(2, 4), "expected a dict"),
        ({"membrane": state["membrane"]}, "'membrane'; expected"),
        (state | {"rise": torch.zeros(3, 4)}, "another network, batch size"),
        (state | {"output": state["rise"]}, "'output'; expected"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            layer(x, wrong)
    for wrong in (x[0, 0], x[:0], x.long(), x.to("meta")):
        with pytest.raises((TypeError, ValueError), match="AdaptiveLIF: x"):
            layer(wrong)
    with pytest.raises(ValueError, match="x contains NaN"):
        layer(torch.full((3, 2, 4), float("nan")))
    for constant in ("v_th", "rise", "rise_decay"):
        with pytest.raises(ValueError, match=f"{constant} has shape"):
            AdaptiveLIF(**{constant: torch.full((3,), 0.5)})(x)


def test_constants_of_the_threshold_are_set_after_a_check():
    x = torch.rand(40, 2, 6)
    for name, value in (("rise", 0.6), ("rise_decay", 0.2), ("rise", torch.tensor([0.3] * 6))):
        shape = getattr(value, "shape", ())
        made = AdaptiveLIF(**{name: value})
        layer = AdaptiveLIF(**{name: torch.full(shape, 0.5) if shape else 0.5})
        setattr(layer, name, value)
        assert not AdaptiveLIF()(x).equal(made(x)) and layer(x).equal(made(x))
    for name, wrong, message in (
        ("rise", -1.0, "rise is -1"),
        ("rise_decay", 1.5, "rise_decay is 1.5"),
        ("rise", torch.ones(3), "rise is .*as when the layer was made"),
    ):
        with pytest.raises(ValueError, match=message):
            setattr(AdaptiveLIF(), name, wrong)
    for name, parameter in (("rise", "rise_log"), ("rise_decay", "rise_decay_logit")):
        with pytest.raises(AttributeError, match=f"{name} is learned here; layer.{parameter}"):
            setattr(AdaptiveLIF(learn_rise=True), name, 0.5)
