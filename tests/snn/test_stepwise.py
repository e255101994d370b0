"snn.stepwise: chunks against one call, for layers bit by bit and for networks to rounding; states that do not fit; nothing left on the network."

import copy
import gc
import io
import threading
import weakref
from functools import partial

import pytest
import torch
from backends import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from neurobridge.snn import (
    LIF,
    MembraneReadout,
    RateReadout,
    RecurrentLIF,
    SpikeReadout,
    detached,
    direct,
    from_nir,
    monitor,
    over_time,
    recompute_blocks,
    recompute_steps,
    spikify,
    spiking_convnet,
    spiking_resnet18,
    spiking_vgg,
    streaming,
    to_nir,
)
from neurobridge.transfer import IF, SharpenedReLU, convert

pytestmark = pytest.mark.usefixtures("same_numbers", "one_thread")


def in_chunks(stream, x, sizes, state=None):
    outs = []
    for chunk in x.split(sizes):
        out, state = stream(chunk, state)
        outs.append(out)
    return outs, state


def equal_states(a, b):
    a, b = tree_leaves(a), tree_leaves(b)
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("output", ["spike", "analogue"])
@pytest.mark.parametrize("learn_decay", [True, False])
def test_a_layer_is_itself_in_chunks(backend, reset, output, learn_decay):
    chosen = dict(reset=reset, output=output, learn_decay=learn_decay, backend=backend)
    x = torch.randn(100, 2, 16)
    for layer in (LIF(0.9, **chosen), RecurrentLIF(nn.Linear(16, 16), 0.9, **chosen)):
        whole, last = layer(x, return_state=True)
        for size in (1, 7, 100):
            outs, state = in_chunks(streaming(layer), x, size)
            assert torch.equal(torch.cat(outs), whole)
            assert equal_states(state, last)


@pytest.mark.parametrize("backend", BACKENDS)
def test_converted_neurons_take_part(backend):
    layer, x = IF(torch.rand(16) + 0.5, 0.3, backend=backend), torch.randn(100, 2, 16)
    layer.bias = torch.randn(16) * 0.1
    whole = layer(x)
    for size in (1, 7, 100):
        outs, _ = in_chunks(streaming(layer), x, size)
        assert torch.equal(torch.cat(outs), whole)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    batch=st.integers(1, 3),
    decay=st.sampled_from((0.2, 0.9, 1.0)),
    recurrent=st.booleans(),
    readout=st.sampled_from(("none", "rate", "membrane", "spikes")),
    seed=st.integers(0, 9),
)
@settings(max_examples=60)
def test_any_cuts_of_any_network(sizes, batch, decay, recurrent, readout, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 8), LIF(decay), nn.Linear(8, 8))
    if recurrent:
        net.append(RecurrentLIF(nn.Linear(8, 8), decay, 0.5, "soft"))
    net.extend(
        {
            "none": [],
            "rate": [RateReadout(8, 4)],
            "membrane": [MembraneReadout(8, 4, decay)],
            "spikes": [SpikeReadout(8, 4, partial(LIF, 0.8))],
        }[readout]
    )
    net.double()
    x, ends = torch.randn(sum(sizes), batch, 3).double(), torch.tensor(sizes).cumsum(0)
    with torch.no_grad():
        outs, _ = in_chunks(streaming(net), x, sizes)
        if readout == "none":
            torch.testing.assert_close(torch.cat(outs), net(x), rtol=1e-9, atol=1e-12)
        else:
            for out, end in zip(outs, ends, strict=True):
                torch.testing.assert_close(out, net(x[:end]), rtol=1e-9, atol=1e-12)


class Plain(nn.Module):
    "A model of a user, to be spikified or converted."

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu, self.drop, self.out = nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 5)

    def forward(self, x):
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.relu(self.norm2(self.conv2(x)) + x)
        x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.out(self.drop(x))


def lived(net):
    "The network after some training passes, in evaluation mode."
    net.train()
    for _ in range(3):
        net(torch.rand(8, 1, 12, 12))
    return net.eval()


tiny18 = partial(spiking_resnet18, in_channels=1, classes=5, T=1, width=2, small_images=True)
NETWORKS = {
    "convnet": lambda: lived(spiking_convnet(T=1, width=4)),
    "convnet, learned decay": lambda: lived(
        spiking_convnet(partial(LIF, 0.8, learn_decay=True, reset="soft"), T=1, width=4)
    ),
    "resnet18": lambda: lived(tiny18()),
    "resnet18, sew": lambda: lived(tiny18(shortcut="sew")),
    "resnet18, ms": lambda: lived(tiny18(shortcut="ms")),
    "vgg11": lambda: lived(spiking_vgg(in_channels=1, classes=5, T=1, width=2)),
    "spikified": lambda: spikify(lived(Plain()), LIF, T=1).eval(),
    "converted": lambda: convert(lived(Plain()), torch.rand(32, 1, 12, 12), T=4),
    "converted, own network": lambda: convert(
        lived(spiking_convnet(nn.ReLU, T=1, width=4)), torch.rand(32, 1, 12, 12), T=4
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("per_step", [True, False])
def test_a_network_is_one_call(name, per_step):
    net = NETWORKS[name]().double()
    net.per_step = per_step
    frames = torch.rand(12, 3, 1, 12, 12).double()
    with torch.no_grad(), monitor(net) as once:
        whole = net(frames)
    for size in (1, 5, 12):
        with torch.no_grad(), monitor(net) as records:
            outs, _ = in_chunks(streaming(net), frames, size)
        ours = torch.cat(outs) if per_step else outs[-1]
        torch.testing.assert_close(ours, whole, rtol=1e-6, atol=1e-6)
        for layer, record in records.items():
            assert torch.equal(torch.cat(record.parts["spikes"]), once[layer].spikes)
        assert sum(record.counts.sum() for record in records.values()) > 0


@pytest.mark.parametrize("make", [partial(spikify, T=4), convert])
@pytest.mark.parametrize("kind", ["signals", "features"])
def test_networks_of_signals_and_features(make, kind):
    "They show a still item for T steps, too: a chunk is told from one by its axes."
    body = {
        "signals": [nn.Conv1d(3, 8, 5), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(48, 4)],
        "features": [nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4)],
    }[kind]
    x = torch.rand(7, 5, 3, 16).double() if kind == "signals" else torch.rand(7, 5, 16).double()
    model = nn.Sequential(*body).double().eval()
    net = make(model) if make is not convert else convert(model, x[0], T=4)
    with torch.no_grad():
        for size in (1, 3, 7):
            outs, _ = in_chunks(streaming(net), x, size)
            torch.testing.assert_close(outs[-1], net(x))
        with pytest.raises(ValueError, match="stream: x has shape .*signals .*features"):
            streaming(net)(x[0])


def test_answers_on_the_way_are_those_of_shorter_sequences():
    net, frames = NETWORKS["spikified"]().double(), torch.rand(6, 2, 1, 12, 12).double()
    with torch.no_grad():
        outs, _ = in_chunks(streaming(net), frames, 1)
        for t, out in enumerate(outs, 1):
            torch.testing.assert_close(out, net(frames[:t]), rtol=1e-9, atol=1e-9)
        images = frames[0]
        net.T = 4
        shown, _ = in_chunks(streaming(net), direct(images, 4), 1)
        torch.testing.assert_close(shown[-1], net(images), rtol=1e-9, atol=1e-9)


def test_graphs_from_other_libraries():
    pytest.importorskip("nir")
    net = nn.Sequential(nn.Linear(4, 8), LIF(0.8), nn.Linear(8, 3), LIF(0.8)).double()

    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = net

        def forward(self, x):
            for part in self.parts:
                x = part(x) if isinstance(part, LIF) else over_time(part, x)
            return x

    x = torch.rand(9, 2, 4).double()
    graph = from_nir(to_nir(Folded(), x))
    with torch.no_grad():
        outs, _ = in_chunks(streaming(graph), x, 2)
        torch.testing.assert_close(torch.cat(outs), graph(x), rtol=1e-9, atol=1e-9)
    mean = from_nir(to_nir(NETWORKS["convnet"](), torch.rand(2, 1, 1, 12, 12)))
    with pytest.raises(ValueError, match="GraphNet.*mean over the whole sequence"):
        streaming(mean)


def test_membranes_are_recorded_as_in_one_call():
    net, x = nn.Sequential(LIF(0.9), RecurrentLIF(nn.Linear(6, 6), 0.9)), torch.randn(10, 2, 6)
    with torch.no_grad():
        with monitor(net, membranes=True) as once:
            net(x)
        with monitor(net, membranes=True) as records:
            in_chunks(streaming(net), x, 3)
    for name, record in records.items():
        assert torch.equal(torch.cat(record.parts["membranes"]), once[name].membranes)


def everything(net):
    held = [dict(module.__dict__) for module in net.modules()]
    hooks = [len(v) for d in held for k, v in d.items() if k.endswith("_hooks")]
    others = [{k: id(v) for k, v in d.items()} for d in held]
    return hooks, others, copy.deepcopy(net.state_dict())


def test_nothing_is_left_on_the_network_and_streams_are_independent():
    net = NETWORKS["convnet"]()
    net.readout = SpikeReadout(net.readout.linear.in_features, 5, LIF).eval()
    before = everything(net)
    first, second = streaming(net), streaming(net)
    a, b = torch.rand(6, 2, 1, 12, 12), torch.rand(6, 3, 1, 12, 12)
    state_a = state_b = None
    with torch.no_grad():
        for t in range(6):
            out_a, state_a = first(a[t : t + 1], state_a)
            out_b, state_b = second(b[t : t + 1], state_b)
        torch.testing.assert_close(out_a, net(a), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out_b, net(b), rtol=1e-4, atol=1e-5)
    after = everything(net)
    assert before[:2] == after[:2]
    assert all(torch.equal(before[2][key], after[2][key]) for key in before[2])
    kept = copy.deepcopy(state_a)
    first(a[:1], state_a)
    assert equal_states(kept, state_a)  # a state is not changed by its use


def test_later_changes_of_the_network_are_seen():
    net = NETWORKS["convnet"]()
    stream, x = streaming(net), torch.rand(3, 1, 1, 12, 12)
    with torch.no_grad():
        net.stem[0].weight.mul_(2)
        net.stem_neuron.v_th = 0.7
        torch.testing.assert_close(stream(x)[0], net(x), rtol=1e-4, atol=1e-5)
    net.double()
    torch.testing.assert_close(stream(x.double())[0], net(x.double()))
    net.train()
    with pytest.raises(ValueError, match="BatchNorm2d.*training mode"):
        stream(x.double())


def test_threads():
    net, inputs = NETWORKS["convnet"](), [torch.rand(20, 2, 1, 12, 12) for _ in range(4)]
    stream, found = streaming(net), {}

    def work(i):
        with torch.no_grad():
            found[i] = in_chunks(stream, inputs[i], 1)[0][-1]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with torch.no_grad():
        for i, x in enumerate(inputs):
            assert torch.equal(found[i], in_chunks(stream, x, 1)[0][-1])


def test_a_layer_at_two_places_has_two_states():
    shared = LIF(0.9)
    net, x = nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared), torch.randn(9, 2, 4)
    with torch.no_grad():
        outs, state = in_chunks(streaming(net), x, 2)
        torch.testing.assert_close(torch.cat(outs), net(x))
    assert list(state) == ["1", "1 (call 2)"]


def test_states_travel():
    net, x = NETWORKS["convnet"](), torch.rand(6, 2, 1, 12, 12)
    stream = streaming(net)
    with torch.no_grad():
        _, state = stream(x[:3])
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        assert equal_states(state, loaded)
        assert torch.equal(stream(x[3:], loaded)[0], stream(x[3:], state)[0])
        wide = tree_map(lambda t: t.double() if t.is_floating_point() else t, state)
        assert stream(x[3:], state)[0].dtype == torch.float32
        net.double()
        torch.testing.assert_close(
            stream(x[3:].double(), wide)[0], net(x.double()), rtol=1e-4, atol=1e-5
        )


def test_truncated_gradients_against_a_loop_by_hand():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 6), LIF(0.9, learn_decay=True), MembraneReadout(6, 2)).double()
    x, y = torch.randn(24, 2, 3).double(), torch.randn(24, 2, 2).double()
    stream, state = streaming(net), None
    for part, target in zip(x.split(4), y.split(4), strict=True):
        out, state = stream(part, state)
        (out - target[-1]).square().sum().backward()
        state = detached(state)
    ours = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    encode, layer, readout = net
    v, m, loss = torch.zeros(2, 6).double(), torch.zeros(2, 2).double(), 0.0
    for t in range(24):
        if t % 4 == 0:
            v, m = v.detach(), m.detach()
        h = torch.sigmoid(layer.decay_logit) * v + encode(x[t])
        window = ((h - 0.5).abs() < 0.5).double()  # the rectangle of width 1
        s = (h > 0.5).double() + (h - h.detach()) * window
        v = h * (1 - s.detach())
        m = 0.9 * m + readout.linear(s)
        if t % 4 == 3:
            loss = loss + (m - y[t]).square().sum()
    loss.backward()
    for a, b in zip(ours, [p.grad for p in net.parameters()], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    assert all(not leaf.requires_grad for leaf in tree_leaves(state))


def test_without_detaching_the_gradient_is_that_of_one_call():
    net = lived(spiking_convnet(partial(LIF, 0.8), T=1, width=2)).double()
    x = torch.rand(6, 2, 1, 8, 8).double()
    net(x).square().sum().backward()
    whole = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    outs, _ = in_chunks(streaming(net), x, 2)
    outs[-1].square().sum().backward()
    for a, b in zip(whole, net.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad, rtol=1e-6, atol=1e-9)


class Alive(TorchDispatchMode):
    "Bytes of all storages that live."

    def __init__(self):
        super().__init__()
        self.now, self.known = 0, set()

    def died(self, key, size):
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self.known:
                    self.known.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.died, storage._cdata, storage.nbytes())
        return out


@pytest.mark.long
def test_memory_does_not_grow_over_ten_thousand_frames():
    net = lived(spiking_convnet(T=1, width=2))
    net.readout = SpikeReadout(net.readout.linear.in_features, 5, LIF).eval()
    stream, state, frame = streaming(net), None, torch.rand(1, 1, 1, 8, 8)
    bytes_alive, tensors = [], []
    gc.collect()
    gc.disable()  # nothing may wait for it
    try:
        with torch.no_grad():
            for t in range(10_000):
                _, state = stream(frame, state)
                if t in (10, 11, 5000, 9990):
                    tensors.append(sum(isinstance(each, torch.Tensor) for each in gc.get_objects()))
            with Alive() as counter:
                for _ in range(30):
                    _, state = stream(frame, state)
                    bytes_alive.append(counter.now)
    finally:
        gc.enable()
    assert state["readout"]["rate"]["steps"] == 10_030
    assert len(set(tensors)) == 1, tensors
    assert len(set(bytes_alive[1:])) == 1, bytes_alive


# What is refused


class Mixing(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Restarting(nn.Module):
    fires = True

    def forward(self, x):
        return (x.cumsum(0) > 1).float()


class Hiding(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = LIF()

    def forward(self, x):
        return self.layer.forward(x)


class Knowing(Hiding):
    def forward(self, x):
        return self.layer(x, v0=torch.zeros_like(x[0]))


class KnowingToo(Hiding):
    def forward(self, x):
        return self.layer(x, None, False)


class Naming(Hiding):
    def forward(self, x):
        return self.layer(x=x)


def with_run(run):
    net = NETWORKS["convnet"]()
    net.run = run
    return net


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: nn.Sequential(nn.Linear(2, 2), Mixing()), "'1', a Mixing, may look along time"),
        (lambda: nn.Sequential(Restarting()), "a Restarting, would begin anew"),
        (lambda: nn.Sequential(nn.LSTM(2, 2)), "a LSTM, works along time"),
        (lambda: nn.Sequential(nn.BatchNorm1d(2)), "a BatchNorm1d, in training mode"),
        (lambda: nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)).eval(), "BatchNorm1d"),
        (lambda: nn.Sequential(nn.Softmax(0)), "a Softmax, works along axis 0"),
        (lambda: with_run(recompute_blocks), "computes twice"),
        (lambda: with_run(partial(recompute_steps, steps=2)), "computes twice"),
        (lambda: spikify(Plain().eval(), LIF).eval().train(), "training mode"),
        (lambda: spiking_convnet(SharpenedReLU, T=1).eval(), "a SharpenedReLU, may look"),
        (lambda: Hiding(), "the module Hiding may look along time"),
    ],
)
def test_networks_that_cannot_be_cut(make, message):
    with pytest.raises(ValueError, match=message):
        streaming(make())


def test_neurons_of_other_libraries():
    snntorch = pytest.importorskip("snntorch")
    with pytest.raises(ValueError, match="Leaky, keeps a state between calls"):
        streaming(nn.Sequential(nn.Linear(2, 2), snntorch.Leaky(0.9, init_hidden=True)))


def test_a_mask_of_dropout_for_one_call():
    net = spikify(Plain().eval(), LIF, T=1).eval()
    net.drop.train()
    with pytest.raises(ValueError, match="'drop', a SteadyDropout, can't be cut"):
        streaming(net)


def test_declared_classes_are_believed_and_their_layers_watched():
    x = torch.randn(6, 2, 4)
    with pytest.raises(ValueError, match="did not call as a module"):
        streaming(Hiding(), alike=(Hiding,))(x)
    for kind in (Knowing, KnowingToo):
        with pytest.raises(ValueError, match="is given a state by the network itself"):
            streaming(kind(), alike=(kind,))(x)
    assert torch.equal(in_chunks(streaming(Naming(), alike=(Naming,)), x, 6)[0][0], LIF()(x))
    with pytest.raises(TypeError, match="alike is"):
        streaming(Hiding(), alike=Hiding)
    net = nn.Sequential(LIF())
    net[0].forward = net[0].forward
    with pytest.raises(ValueError, match="forward set on the instance"):
        streaming(net)


def test_states_that_do_not_fit_are_refused():
    net, x = NETWORKS["convnet"](), torch.rand(4, 2, 1, 12, 12)
    stream = streaming(net)
    with torch.no_grad():
        _, state = stream(x)
        _, other = streaming(NETWORKS["resnet18"]())(x)
        for chunk, wrong, message in (
            (x, other, "state is of another network: it has 'trunk.0.neuron1'"),
            (x[:, :1], state, r"'stem_neuron'.*\(2, 4, 12, 12\); expected \(1, 4, 12, 12\)"),
            (x[..., :8, :8], state, "'stem_neuron'.*expected"),
            (x, {}, "'stem_neuron'.*state has no entry"),
            (x, [state], "state is"),
            (x, state | {"readout": state["stem_neuron"]}, "readout.*state is"),
            (x.double().float(), tree_map(lambda t: t.double(), state), "'stem_neuron'.*float64"),
            (x[0], state, "x has shape"),
            (x[:0], state, "x is"),
            (x.numpy(), state, "x is"),
        ):
            with pytest.raises((TypeError, ValueError), match=message):
                stream(chunk, wrong)
        net.per_step = True
        with pytest.raises(ValueError, match="'readout' that this chunk did not use"):
            stream(x, state)
        _, state = stream(x)
        net.per_step = False
        with pytest.raises(ValueError, match="readout.*no entry"):
            stream(x, state)
        other = {name: value for name, value in state.items() if name != "trunk.0.neuron"}
        net.per_step = True
        with pytest.raises(ValueError, match=r"trunk\.0\.neuron"):
            stream(x, other)


def test_spikified_networks_change_their_answer_only_between_streams():
    net, x = NETWORKS["spikified"](), torch.rand(4, 2, 1, 12, 12)
    stream = streaming(net)
    with torch.no_grad():
        _, state = stream(x)
        net.per_step = True
        with pytest.raises(ValueError, match="'spikify.leave'"):
            stream(x, state)


def test_readouts_continue_and_refuse():
    x = torch.rand(7, 2, 6)
    for readout in (RateReadout(6, 3), MembraneReadout(6, 3), SpikeReadout(6, 3, LIF)):
        with torch.no_grad():
            first, state = readout(x[:3], return_state=True)
            torch.testing.assert_close(first, readout(x[:3]))
            torch.testing.assert_close(readout(x[3:], state), readout(x))
            with pytest.raises((TypeError, ValueError), match="state|v0"):
                readout(x[:, :1], state)
            with pytest.raises((TypeError, ValueError), match="state|v0"):
                readout(x, {"sum": x[0]})
            if isinstance(readout, RateReadout):
                continue
            steps, state = readout.steps(x[:3], return_state=True)
            rest = readout.steps(x[3:], state)
            torch.testing.assert_close(torch.cat([steps, rest]), readout.steps(x))

    class Own(nn.Module):
        def forward(self, x):
            return x

    with pytest.raises(TypeError, match="takes no state"):
        SpikeReadout(6, 3, Own)(x, return_state=True)
    assert SpikeReadout(6, 3, nn.ReLU)(x, return_state=True)[1]["neuron"] == {}
