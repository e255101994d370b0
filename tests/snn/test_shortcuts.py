"""snn.shortcuts and the networks built of them against explicit loops over time; snn.memory: same values, gradients and statistics, less memory."""

import copy
import inspect
import pickle
import weakref
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neurobridge.snn import (
    LIF,
    RateReadout,
    lif,
    over_time,
    recompute_blocks,
    recompute_steps,
    spiking_convnet,
    spiking_resnet18,
    spiking_resnet34,
    spiking_vgg,
)
from neurobridge.snn.shortcuts import BLOCKS
from neurobridge.transfer import SharpenedReLU, copy_weights

KINDS = tuple(BLOCKS)
small = partial(spiking_resnet18, in_channels=1, classes=5, width=4, small_images=True)


class Cell:
    "One layer of neurons, a step at a time, written down without the library."

    def __init__(self, decay=0.25, v_th=0.5):
        self.v, self.decay, self.v_th = 0.0, decay, v_th

    def __call__(self, i):
        h = self.decay * self.v + i
        s = (h > self.v_th).to(i.dtype)
        self.v = torch.where(s > 0, torch.zeros_like(h), h)
        return s


def walk(block, kind, x, decay=0.25):
    first, second, side_cell, out = Cell(decay), Cell(decay), Cell(decay), []
    identity = isinstance(block.shortcut, nn.Identity)
    for x_t in x:
        side = x_t if identity else block.shortcut(x_t)
        if kind == "ms":
            out.append(block.conv2(second(block.conv1(first(x_t)))) + side)
            continue
        inner = block.conv2(first(block.conv1(x_t)))
        if kind == "vanilla":
            out.append(second(inner + side))
        else:
            out.append(second(inner) + (side if identity else side_cell(side)))
    return torch.stack(out)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([1, 2]),
    st.floats(0.1, 1.0),
    st.integers(0, 10**6),
)
def test_block_equals_a_walk_through_time(kind, T, N, channels, widen, stride, decay, seed):
    torch.manual_seed(seed)
    block = BLOCKS[kind](
        channels, 2 * channels if widen else channels, stride, partial(LIF, decay=decay)
    ).double()
    x = torch.randn(T, N, channels, 6, 5, dtype=torch.float64)
    x = x if kind == "ms" else (x > 0.3).double()
    block(torch.cat([x, torch.randn_like(x)], 1))  # gives batch norm statistics
    block.eval()
    torch.testing.assert_close(block(x), walk(block, kind, x, decay), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_network_equals_a_walk_through_time(kind):
    torch.manual_seed(0)
    net = small(T=4, shortcut=kind).double()
    image = torch.rand(2, 1, 9, 9, dtype=torch.float64)
    net(image)
    net.eval()
    current = net.stem(image)
    cell = Cell()
    x = torch.stack([current if kind == "ms" else cell(current) for _ in range(4)])
    for block in net.trunk:
        if hasattr(block, "conv1"):
            x = walk(block, kind, x)
        else:
            last = Cell()
            x = torch.stack([last(x_t) for x_t in x])
    torch.testing.assert_close(net(image), net.readout.linear(x.mean((0, 3, 4))))


@pytest.mark.parametrize("kind", KINDS)
def test_what_travels(kind):
    torch.manual_seed(0)
    net, seen = small(T=4, shortcut=kind), []
    for block in net.trunk:
        if hasattr(block, "conv1"):
            block.register_forward_hook(lambda m, i, out: seen.append(out.detach()))
    net(torch.randn(4, 1, 8, 8))
    values = torch.cat([s.flatten() for s in seen])
    if kind == "vanilla":
        assert set(values.unique().tolist()) == {0.0, 1.0}
    elif kind == "sew":
        assert torch.equal(values, values.round()) and values.min() >= 0 and values.max() > 1
    else:
        assert not torch.equal(values, values.round())


@pytest.mark.parametrize("kind", ["sew", "ms"])
@settings(max_examples=15, deadline=None)
@given(T=st.integers(1, 4), N=st.integers(1, 3), C=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_silent_branch_is_the_identity(kind, T, N, C, seed):
    torch.manual_seed(seed)
    x = torch.randn(T, N, C, 4, 4, requires_grad=True)
    out = BLOCKS[kind](C, C, 1, LIF, alpha=0.0)(x)
    torch.testing.assert_close(out, x, rtol=0, atol=0)
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x), rtol=0, atol=0)


def weights(net):
    return [key for key in net.state_dict() if not key.endswith("_extra_state")]


@pytest.mark.parametrize("build, count", [(spiking_resnet18, 8), (spiking_resnet34, 16)])
def test_shortcuts_share_keys_and_parameters(build, count):
    nets = {kind: build(width=2, classes=3, shortcut=kind) for kind in KINDS}
    keys = weights(nets["vanilla"])
    for net in nets.values():
        assert weights(net) == keys
        assert sum(hasattr(block, "conv1") for block in net.trunk) == count
    nets["ms"].load_state_dict(nets["vanilla"].state_dict(), strict=True)


def test_vanilla_is_as_it_was():
    "Sums of |weights| and |logits| of the same seed, from the commit before shortcuts could be chosen."
    torch.manual_seed(0)
    net = spiking_resnet18(in_channels=1, classes=10, T=2, width=4, small_images=True)
    total = sum(p.double().abs().sum().item() for p in net.parameters())
    assert total == pytest.approx(3878.084906609837, rel=1e-9)
    assert net(torch.rand(3, 1, 8, 8)).double().abs().sum().item() == pytest.approx(
        10.328052906319499, rel=1e-3
    )
    assert (
        "trunk.2.shortcut.0.weight" in net.state_dict()
        and "trunk.7.conv2.1.running_var" in net.state_dict()
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5**0.5, 1.0])
def test_alpha_is_where_the_sum_is(alpha):
    block = BLOCKS["vanilla"](2, 4, 2, LIF, alpha)
    assert block.conv1[1].weight.unique().item() == 0.5
    assert block.conv2[1].weight.unique().item() == pytest.approx(0.5 * alpha)
    assert block.shortcut[1].weight.unique().item() == pytest.approx(0.5 * (alpha or 1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_bridge_is_exact_at_one_step(kind):
    torch.manual_seed(0)
    ann = small(SharpenedReLU, T=1, shortcut=kind)
    x = torch.randn(6, 1, 8, 8)
    ann(x)
    ann.eval()
    torch.testing.assert_close(copy_weights(ann, T=1).eval()(x), ann(x), rtol=0, atol=0)
    assert copy_weights(ann, T=3)(x).shape == (6, 5)


@pytest.mark.parametrize(
    "build",
    [partial(small, shortcut=kind) for kind in KINDS]
    + [
        partial(spiking_vgg, in_channels=1, classes=5, width=4),
        partial(spiking_convnet, classes=5),
    ],
)
def test_still_image_is_its_frames_and_per_step_averages_to_the_answer(build):
    torch.manual_seed(0)
    net = build(T=3)
    x = torch.rand(4, 1, 12, 12)
    net(x)
    net.eval()
    torch.testing.assert_close(net(x), net(x.expand(3, *x.shape)))
    answer = net(x)
    net.per_step = True
    assert net(x).shape == (3, 4, 5)
    torch.testing.assert_close(net(x).mean(0), answer)
    assert pickle.loads(pickle.dumps(net)).per_step


def test_refusals():
    with pytest.raises(ValueError, match="shortcut is 'dense'; expected one of"):
        spiking_resnet18(shortcut="dense")
    with pytest.raises(ValueError, match="depth is 12; expected one of"):
        spiking_vgg(depth=12)
    with pytest.raises(ValueError, match="steps is 0"):
        recompute_steps(nn.Sequential(LIF()), torch.rand(3, 2), steps=0)


def outcome(net, x):
    out = net(x)
    out.square().sum().backward()
    return [out, *(p.grad for p in net.parameters()), *net.buffers()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_recomputed_blocks_change_nothing(kind, momentum):
    torch.manual_seed(0)
    plain = small(T=3, shortcut=kind)
    for m in plain.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = momentum
    saving = copy.deepcopy(plain)
    saving.run = recompute_blocks
    for _ in range(2):
        x = torch.rand(3, 1, 8, 8)
        for a, b in zip(outcome(plain, x), outcome(saving, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert all(m.momentum == momentum for m in saving.modules() if isinstance(m, nn.BatchNorm2d))


def test_recomputed_blocks_can_be_differentiated_twice_over():
    net = small(T=2)
    net.run = recompute_blocks
    value = net(torch.rand(3, 1, 8, 8)).square().sum()
    value.backward(retain_graph=True)
    first = net.stem[0].weight.grad.clone()
    value.backward()
    torch.testing.assert_close(net.stem[0].weight.grad, 2 * first)
    assert net.trunk[0].conv1[1].num_batches_tracked == 1


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 7),
    st.integers(1, 8),
    st.booleans(),
    st.sampled_from(["hard", "soft"]),
    st.sampled_from(["spike", "analogue"]),
)
def test_stretches_of_any_length_change_nothing(kind, T, steps, detach, reset, output):
    torch.manual_seed(T)
    neuron = partial(
        LIF, decay=0.8, learn_decay=True, detach_reset=detach, reset=reset, output=output
    )
    plain = small(neuron, T=T, shortcut=kind).double()
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    plain(x)
    plain.eval()
    saving = copy.deepcopy(plain)
    saving.run = partial(recompute_steps, steps=steps)
    for a, b in zip(outcome(plain, x), outcome(saving, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_stretches_refuse_batch_norm_in_training_by_name():
    net = small(T=4)
    net.run = recompute_steps
    with pytest.raises(ValueError, match="trunk has '0.conv1.1', a BatchNorm2d, in training mode"):
        net(torch.rand(2, 1, 8, 8))


class Peak(TorchDispatchMode):
    "Bytes of living tensors that operations made: now, and at most."

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def forget(self, key, size):
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if (
                isinstance(leaf, torch.Tensor)
                and (key := (storage := leaf.untyped_storage())._cdata) not in self.known
            ):
                self.known.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.forget, key, storage.nbytes())
        return out


def peak(T, run=None, apart=False):
    torch.manual_seed(0)
    net, x = small(T=T), torch.rand(2, 1, 8, 8)
    for norm in [m for m in net.modules() if apart and isinstance(m, nn.BatchNorm2d)]:
        norm.register_forward_hook(lambda *_: None)  # norm and neurons one after the other
    net(x)
    if run is not None:
        net.run = run
    if isinstance(run, partial):
        net.eval()
    with Peak() as watched:
        net(x).square().sum().backward()
    return watched.peak


def test_recomputation_saves_memory():
    "The slope over T is what counts: weights and their gradients cost the same for any T."
    ways = (None, recompute_blocks, partial(recompute_steps, steps=4))
    short, long = ([peak(T, run) for run in ways] for T in (16, 32))
    plain, blocks, stretches = (b - a for a, b in zip(short, long, strict=True))
    assert blocks < 0.6 * plain and stretches < 0.3 * plain
    apart = peak(32, apart=True)
    assert (
        long[1] < 0.7 * apart and long[2] < 0.5 * apart and long[0] < 0.8 * apart
    )  # one pass saves by itself, recomputation more


# What may be cut


def outcome_of(run, trunk, x):
    leaf = x.clone().requires_grad_()
    out = run(trunk, leaf)
    return [out, *torch.autograd.grad(out.square().sum(), [leaf, *trunk.parameters()])]


@pytest.mark.parametrize("steps", [1, 3, 7, 20])
def test_one_layer_of_neurons_at_several_places_is_cut_right(steps):
    torch.manual_seed(0)
    neuron = LIF(0.8, reset="soft", learn_decay=True, detach_reset=False)
    inner = nn.Sequential(nn.Linear(6, 6), neuron)
    trunk, x = nn.Sequential(nn.Linear(6, 6), neuron, inner, inner, LIF(0.9)), torch.randn(16, 3, 6)
    for a, b in zip(
        outcome_of(partial(recompute_steps, steps=steps), trunk, x),
        outcome_of(lambda trunk, x: trunk(x), trunk, x),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


class Restarting(nn.Module):
    "Fires like a converted network's neuron: it knows no `v0`."

    fires = True

    def forward(self, x):
        return lif(x, 1.0, reset="soft")[0]


class Running(nn.Module):
    def forward(self, x):
        return x.cumsum(0)


class Keeps(nn.Linear):
    "Like other libraries' neurons: a state that lasts until it is reset."

    def reset(self):
        self.v = 0.0


class Hands(nn.Module):
    def __init__(self):
        super().__init__()
        self.neuron = LIF()

    def forward(self, x):
        return self.neuron(x, torch.zeros_like(x[0]))


@pytest.mark.parametrize("module, said", [
    (Restarting(), "a Restarting, which would begin anew in every segment: its forward takes no v0 and return_state"),
    (nn.GRU(4, 4), "a GRU, which would begin anew"), (nn.RNN(4, 4), "a RNN, which would"), (nn.MultiheadAttention(4, 1), "a MultiheadAttention, which would"),
    (Running(), r"a Running, which may look along time; use recompute_blocks, or, if it treats every step alike, recompute_steps\(..., alike=\(Running,\)\)"),
    (RateReadout(4, 4), "a RateReadout, which may look"), (torch.fx.symbolic_trace(Running()), "which may look along time"), (Keeps(4, 4), r"which keeps a state between calls \(it has reset\(\)\)"),
])  # fmt: skip
def test_a_module_that_cannot_be_cut_is_refused_by_name(module, said):
    trunk, x = nn.Sequential(nn.Linear(4, 4), nn.Sequential(module)), torch.rand(6, 2, 4)
    with pytest.raises(
        ValueError,
        match=f"recompute_steps: trunk has '1.0', {said}" if said.startswith("a ") else said,
    ):
        recompute_steps(trunk, x, 2)


def test_a_converted_networks_neurons_are_refused_by_name():
    from neurobridge.transfer import IF

    if {"v0", "return_state"} <= set(inspect.signature(IF.forward).parameters):
        trunk, x = nn.Sequential(nn.Linear(4, 4), IF(0.3)), torch.rand(9, 2, 4)
        torch.testing.assert_close(recompute_steps(trunk, x, 4), trunk(x))
    else:
        with pytest.raises(ValueError, match="trunk has '1', a IF, which would begin anew"):
            recompute_steps(nn.Sequential(nn.Linear(4, 4), IF(0.3)), torch.rand(9, 2, 4), 4)


def test_a_class_that_is_vouched_for_is_cut_and_one_that_hands_states_over_refused():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.neuron = nn.Linear(4, 4), LIF(0.9)

        def forward(self, x):
            return self.neuron(over_time(self.linear, x)) + x

    trunk, x = nn.Sequential(Block(), Block()), torch.randn(9, 2, 4)
    for a, b in zip(
        outcome_of(partial(recompute_steps, steps=4, alike=(Block,)), trunk, x),
        outcome_of(lambda trunk, x: trunk(x), trunk, x),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="trunk hands a state to a LIF itself"):
        recompute_steps(nn.Sequential(Hands()), x, 4, alike=(Hands,))
    with pytest.raises(TypeError, match="alike is"):
        recompute_steps(trunk, x, 4, alike=Block)


def test_blocks_that_keep_a_state_between_calls_are_not_run_twice():
    with pytest.raises(
        ValueError,
        match=r"recompute_blocks: trunk has '0', a Keeps, which keeps a state between calls \(it has reset\(\)\)",
    ):
        recompute_blocks(nn.Sequential(Keeps(4, 4)), torch.rand(3, 2, 4))
    snntorch = pytest.importorskip("snntorch")
    with pytest.raises(ValueError, match="a Leaky, which keeps a state between calls"):
        recompute_blocks(
            nn.Sequential(nn.Linear(4, 4), snntorch.Leaky(0.9, init_hidden=True)),
            torch.rand(3, 2, 4),
        )
