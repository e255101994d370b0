"""What would bore a reader of the page snn/08_exchange: random layers, odd wiring, every refusal, files, and another library at the other end."""

import copy
import runpy
import sys
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from neurobridge.snn import (
    LIF,
    RateReadout,
    direct,
    from_nir,
    monitor,
    over_time,
    spikify,
    spiking_convnet,
    spiking_resnet18,
    to_nir,
)
from neurobridge.transfer import convert

nir = pytest.importorskip("nir", reason="NIR needs nir: pip install nir")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def through_a_file(graph, tmp_path, **settings):
    nir.write(tmp_path / "net.nir", graph)
    return nir.read(tmp_path / "net.nir", **settings)


def same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def lived_in(net):
    "Give batch norms statistics and affine parameters that matter."
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            if module.affine:
                nn.init.normal_(module.bias, std=0.2)
    return net.eval()


def fused(net):
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        if (
            isinstance(module, nn.Sequential)
            and len(module) == 2
            and isinstance(module[1], nn.BatchNorm2d)
        ):
            module[0], module[1] = fuse_conv_bn_eval(*module), nn.Identity()
    return net


class Wired(nn.Module):
    "A network from a function, with its layers given by name."

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.run(self, x)


def euler(node, current, dt):
    "NIR's equations, Euler's rule, double precision, one neuron."
    v, out = 0.0, []
    for i in current:
        v = (
            v + dt / node.tau[0] * (node.v_leak[0] - v + node.r[0] * i)
            if isinstance(node, nir.LIF)
            else v + dt * node.r[0] * i
        )
        out.append(v > node.v_threshold[0])
        v = node.v_reset[0] if out[-1] else v
    return np.array(out)


def lone(node):
    shape = np.array(node.v_threshold.shape)
    return nir.NIRGraph(
        {"input": nir.Input(shape), "n": node, "output": nir.Output(shape)},
        [("input", "n"), ("n", "output")],
    )


# Neurons


@settings(max_examples=40, deadline=None)
@given(
    st.one_of(st.integers(1, 10**6).map(lambda k: k / 10**6), st.floats(2**-13, 1, width=32)),
    st.floats(0.01, 10),
    st.sampled_from([1e-4, 1e-3, 1.0]),
)
def test_settings_survive(decay, v_th, dt):
    layer = from_nir(
        to_nir(nn.Sequential(LIF(decay, v_th)), torch.rand(2, 1, 3), dt)
    ).get_submodule("0")
    assert np.float32(layer.decay) == np.float32(decay) and layer.settings["v_th"] == v_th
    assert layer.decay == decay or decay != round(decay, 15)
    assert (layer.settings["reset"], layer.output) == ("hard", "spike")


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 1), st.floats(0.1, 3), st.integers(0, 1000), st.sampled_from([1e-4, 1.0]))
def test_neurons_obey_nirs_equations(decay, v_th, seed, dt):
    layer, x = LIF(decay, v_th), normal(40, 1, 1, seed=seed).double() * 2
    node = to_nir(nn.Sequential(layer), torch.rand(2, 1, 1), dt).nodes["0"]
    h, _ = monitored_membranes(layer, x)
    assume((h - v_th).abs().min() > 1e-9)
    np.testing.assert_array_equal(euler(node, x.flatten().numpy(), dt), layer(x).flatten() == 1)


def monitored_membranes(layer, x):
    with monitor(layer, membranes=True) as seen:
        out = layer(x)
    return seen[""].membranes, out


@settings(max_examples=40, deadline=None)
@given(
    st.floats(0.1, 5), st.floats(1e-4, 1e-2, exclude_min=True), st.booleans(), st.integers(0, 1000)
)
def test_input_gain_of_other_writers(r, tau, leaky, seed):
    "R = 1, say: the threshold takes it up."
    assume(tau > 1.01e-4)
    one = np.ones(1)
    node = (
        nir.LIF(tau=tau * one, r=r * one, v_leak=0 * one, v_threshold=0.7 * one)
        if leaky
        else nir.IF(r=r / tau * one, v_threshold=0.7 * one)
    )
    net, x = from_nir(lone(node)), normal(60, 1, 1, seed=seed).double() * 5 * tau / 1e-4
    h, out = monitored_membranes(net.get_submodule("n"), x)
    assume((h - net.get_submodule("n").settings["v_th"]).abs().min() > 1e-9)
    np.testing.assert_array_equal(euler(node, x.flatten().numpy(), 1e-4), out.flatten() == 1)


def test_learned_decay_is_written_at_its_value():
    layer = LIF(decay=0.6, learn_decay=True)
    x = normal(20, 2, 5)
    same(from_nir(to_nir(nn.Sequential(layer), x))(x), layer(x).detach())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"v_leak": 0.1}, "v_leak = 0.1"),
        ({"v_reset": -0.2}, "v_reset = -0.2"),
        ({"tau": 9e-5}, "leaves a decay of -0.11"),
        ({"tau": np.inf}, "input gain"),
        ({"r": -1.0}, "input gain"),
        ({"v_threshold": -1.0}, "v_th is -"),
        ({"tau": np.nan}, "decay of nan"),
    ],
)
def test_neurons_refused(change, message):
    full = {
        key: np.full(2, value)
        for key, value in (
            {"tau": 2e-4, "r": 2.0, "v_leak": 0.0, "v_reset": 0.0, "v_threshold": 0.5} | change
        ).items()
    }
    with pytest.raises(
        ValueError, match=f"from_nir: node 'n' .*{message}" if "v_th is" not in message else message
    ):
        from_nir(lone(nir.LIF(**full)))


UNEVEN = {"tau": 2e-4, "r": 2.0, "v_leak": 0.0, "v_reset": 0.0, "v_threshold": 0.5}


@pytest.mark.parametrize("key", UNEVEN)
def test_uneven_layers(key):
    "Neurons of a layer may differ, but for leak and reset, which are 0 here."
    full = {name: np.full(2, value) for name, value in UNEVEN.items()}
    full[key] = full[key] + np.array([0, 0.25e-4 if key == "tau" else 0.25])
    node = nir.LIF(**full)
    if key in ("v_leak", "v_reset"):
        with pytest.raises(ValueError, match=f"{key} = 0.25; expected 0"):
            from_nir(lone(node))
        return
    net, x = from_nir(lone(node)), normal(60, 1, 2).double() * 2
    for k in range(2):
        alone = nir.LIF(**{name: value[k : k + 1] for name, value in full.items()})
        found = euler(alone, x[:, 0, k].numpy(), 1e-4)
        np.testing.assert_array_equal(found, net(x)[:, 0, k] == 1)


# Layers


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 2),
    *[st.tuples(st.integers(1, 3), st.integers(1, 3))] * 3,
    st.sampled_from([0, 1, (2, 0), "valid", "same"]),
    st.booleans(),
)
def test_convolutions(groups, n_in, n_out, kernel, stride, dilation, padding, bias):
    stride = 1 if padding == "same" else stride
    conv = nn.Conv2d(groups * n_in, groups * n_out, kernel, stride, padding, dilation, groups, bias)
    net, x = (
        Wired(lambda self, x: over_time(self.conv, x), conv=conv),
        normal(2, 2, groups * n_in, 7, 8),
    )
    graph = to_nir(net, x)
    same(from_nir(graph)(x), net(x))
    assert tuple(graph.nodes["conv"].output_type["output"]) == tuple(net(x).shape[2:])


@pytest.mark.parametrize("groups, kernel", [(2, 3), (1, (3, 2))])
def test_convolutions_that_nir_reads_only_unchecked(groups, kernel, tmp_path):
    "The package nir infers wrong types for groups and oblong kernels; its reader has to be told not to check."
    net, x = (
        Wired(lambda self, x: over_time(self.conv, x), conv=nn.Conv2d(2, 4, kernel, groups=groups)),
        normal(2, 2, 2, 7, 7),
    )
    same(from_nir(through_a_file(to_nir(net, x), tmp_path, type_check=False))(x), net(x))


def test_adaptive_pooling_at_every_size():
    "Either the fixed pooling gives torch's answer, or torch's windows are unequal."
    for size in range(1, 13):
        for out in range(1, size + 1):
            layer, x = nn.AdaptiveAvgPool2d(out), (normal(2, 3, 1, size, size) > 0).float()
            net = Wired(lambda self, x: over_time(self.layer, x), layer=layer)
            windows = [((i * size) // out, -(-(i + 1) * size // out)) for i in range(out)]
            equal = (
                len({b - a for a, b in windows}) == 1
                and len({b[0] - a[0] for a, b in zip(windows, windows[1:], strict=False)}) <= 1
            )
            if equal:
                torch.testing.assert_close(from_nir(to_nir(net, x))(x), net(x), rtol=1e-6, atol=0)
            else:
                with pytest.raises(ValueError, match="unequal windows"):
                    to_nir(net, x)


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Linear(6, 4), (6,)),
        (nn.Linear(6, 4, bias=False), (6,)),
        (nn.AvgPool2d(2), (3, 6, 6)),
        (nn.AvgPool2d((3, 2), (1, 2), (1, 0)), (2, 6, 7)),
        (nn.AdaptiveAvgPool2d(1), (3, 5, 7)),
        (nn.AdaptiveAvgPool2d((None, 2)), (3, 5, 6)),
        (nn.AdaptiveAvgPool2d(4), (3, 4, 4)),
        (nn.Flatten(), (2, 3, 4)),
    ],
)
def test_other_layers(layer, shape, tmp_path):
    net, x = (
        Wired(lambda self, x: over_time(self.layer, x), layer=layer, neuron=LIF()),
        (normal(3, 2, *shape) > 0).float(),
    )
    with torch.no_grad():
        graph = to_nir(nn.Sequential(LIF(0.5), net), x)
        same(from_nir(through_a_file(graph, tmp_path))(x), net(LIF(0.5)(x)))


@pytest.mark.parametrize("affine, bias", [(True, True), (False, False), (True, False)])
def test_norms_behind_linear_layers(affine, bias):
    linear, norm = nn.Linear(5, 4, bias=bias), nn.BatchNorm1d(4, affine=affine)
    net = lived_in(
        Wired(
            lambda self, x: over_time(nn.Sequential(self.linear, self.norm), x),
            linear=linear,
            norm=norm,
        )
    )
    node = to_nir(net, normal(2, 2, 5)).nodes["linear"]
    if affine:
        expected = fuse_linear_bn_eval(linear, norm)
        np.testing.assert_allclose(node.weight, expected.weight.detach(), rtol=1e-6)
        np.testing.assert_allclose(node.bias, expected.bias.detach(), rtol=1e-5, atol=1e-6)
    x = normal(3, 4, 5)
    torch.testing.assert_close(from_nir(to_nir(net, x))(x), net(x), rtol=1e-5, atol=1e-6)
    assert node.weight.dtype == node.bias.dtype == np.float32


# Networks


def mlp():
    return nn.Sequential(
        nn.Linear(6, 12),
        LIF(),
        nn.Linear(12, 8, bias=False),
        LIF(decay=0.9, v_th=1.0),
        RateReadout(8, 3),
    )


def networks():
    convnet = partial(spiking_convnet, T=4, width=4, classes=3)
    return {
        "convnet": (convnet(), (1, 12, 12)),
        "integrators": (convnet(partial(LIF, decay=1.0)), (1, 8, 8)),
        "pooled to one": (convnet(pool=1), (1, 8, 8)),
        "resnet": (
            spiking_resnet18(width=4, in_channels=2, classes=3, T=4, small_images=True),
            (2, 8, 8),
        ),
        "mlp": (mlp(), (6,)),
    }


@pytest.mark.parametrize("name", networks())
def test_a_folded_network_makes_the_journey_without_losing_a_bit(name, tmp_path):
    net, shape = networks()[name]
    net, x = fused(lived_in(net)), normal(4, 8, *shape) * 2
    graph = through_a_file(to_nir(net, x), tmp_path)
    again = from_nir(graph).eval()
    with torch.no_grad():
        with monitor(net) as ours, monitor(again) as theirs:
            same(again(x), net(x))
        assert sum(record.counts.sum() for record in ours.values()) > 0
        for layer, record in ours.items():
            assert torch.equal(theirs[layer.replace(".", "_")].spikes, record.spikes)
        second = to_nir(again, x)
        same(from_nir(second)(x), net(x))
    for node, value in [
        (n, v)
        for n in graph.nodes
        for v in vars(graph.nodes[n]).items()
        if isinstance(v[1], np.ndarray)
    ]:
        np.testing.assert_array_equal(getattr(second.nodes[node], value[0]), value[1])
    assert set(second.edges) == set(graph.edges)


@pytest.mark.parametrize("name", networks())
def test_folding_changes_rounding_alone(name):
    "In double precision no membrane comes near enough to its threshold for the rounding to show."
    net, shape = networks()[name]
    net, x = lived_in(net).double(), normal(4, 8, *shape).double() * 2
    with torch.no_grad():
        torch.testing.assert_close(from_nir(to_nir(net, x))(x), net(x), rtol=1e-10, atol=1e-10)


def test_the_answers_of_a_readout_average_to_ours():
    "What a reader does that ignores our note in the metadata."
    net, x = mlp().eval(), normal(5, 3, 6)
    graph = to_nir(net, x)
    graph.nodes["4_linear"].metadata = {}
    steps = from_nir(graph)(x)
    assert steps.shape == (5, 3, 3)
    torch.testing.assert_close(steps.mean(0), net(x))


def test_the_model_and_the_random_stream_are_left_alone():
    net = spiking_convnet(T=2, width=4)
    net.train()
    net.stem.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    graph = to_nir(net, torch.zeros(2, 2, 1, 8, 8))
    from_nir(graph)
    same(torch.rand(2), expected)
    with pytest.raises(ValueError, match="to_nir"):
        to_nir(spiking_convnet(nn.ReLU), torch.zeros(2, 2, 1, 8, 8))
    assert net.training and not net.stem.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    for name, value in net.state_dict().items():
        same(value, before[name])
    with torch.no_grad():
        net.readout.linear.weight.zero_()
    assert (graph.nodes["readout_linear"].weight != 0).any(), "the graph holds copies"


def test_a_graph_can_be_trained_further():
    x = normal(4, 3, 1, 8, 8)
    net = from_nir(to_nir(spiking_convnet(width=4).eval(), x))
    net(x).square().sum().backward()
    assert net.get_parameter("stem_0.weight").grad.abs().max() > 0


def test_only_the_examples_shape_matters():
    net = spiking_convnet(width=4).eval()
    a, b = (
        to_nir(net, torch.full((1, 1, 1, 8, 8), torch.nan)),
        to_nir(net, direct(normal(2, 1, 8, 8), 9)),
    )
    assert a.edges == b.edges and all(
        np.array_equal(a.nodes[n].weight, b.nodes[n].weight)
        for n in a.nodes
        if hasattr(a.nodes[n], "weight")
    )


# Wiring


def wiring(graph, node):
    return sorted(a for a, b in graph.edges if b == node)


def test_sums_of_three_and_reshapings():
    def run(self, x):
        a, b = self.a(x), self.b(x)
        total = torch.add(a, b)
        total += x
        return self.neuron(total.reshape(-1, 4).view(*x.shape[:2], 4).contiguous().clone())

    net, x = (
        Wired(run, a=nn.Linear(4, 4), b=nn.Linear(4, 4), neuron=LIF(), drop=nn.Dropout()),
        normal(5, 2, 4),
    )
    graph = to_nir(net, x)
    assert wiring(graph, "neuron") == ["a", "b", "input"]
    same(from_nir(graph)(x), net(x))


def test_pythons_sum_and_a_sum_at_the_end():
    net, x = (
        Wired(lambda self, x: sum([self.a(x), self.b(x)]), a=nn.Linear(4, 4), b=LIF()),
        normal(5, 2, 4),
    )
    graph = to_nir(net, x)
    assert wiring(graph, "output") == ["a", "b"]
    same(from_nir(graph)(x), net(x))


def test_names_that_clash():
    net = nn.ModuleDict(
        {
            "input": nn.Linear(4, 4),
            "output": LIF(),
            "a_b": nn.Linear(4, 4),
            "a": nn.ModuleDict({"b": LIF()}),
            "sources": nn.Linear(4, 4),
        }
    )
    layers = [net["input"], net["output"], net["a_b"], net["a"]["b"], net["sources"], net["output"]]

    def run(self, x):
        for layer in layers:
            x = layer(x)
        return x

    wired, x = Wired(run, net=net), normal(3, 2, 4)
    graph = to_nir(wired, x)
    assert len(graph.nodes) == 8
    same(from_nir(graph)(x), wired(x))
    renamed = to_nir(nn.Sequential(), x)
    assert renamed.edges == [("input", "output")]
    names = [
        "in",
        *(
            f"{name}{end}"
            for end in ("", "_")
            for name in ("forward", "sources", "places", "type", "a.b", "a_b")
        ),
        "out",
    ]
    nodes = {name: nir.Linear(2 * np.eye(4, dtype=np.float32)) for name in names[1:-1]} | {
        "in": nir.Input(np.array([4])),
        "out": nir.Output(np.array([4])),
    }
    same(from_nir(nir.NIRGraph(nodes, list(zip(names[:-1], names[1:], strict=True))))(x), 2**12 * x)


def test_order_of_nodes_does_not_matter():
    x = normal(3, 2, 6)
    graph = to_nir(mlp().eval(), x)
    shuffled = nir.NIRGraph(dict(reversed(graph.nodes.items())), list(reversed(graph.edges)))
    same(from_nir(shuffled)(x), from_nir(graph)(x))


# Refusals


def folded_in_time(self, x):
    return over_time(self.layer, x)


@pytest.mark.parametrize(
    "net, shape, message",
    [
        (nn.Sequential(LIF(output="analogue")), (4,), "'0', a LIF, sends on its membrane"),
        (nn.Sequential(nn.ReLU()), (4,), "'0', a ReLU, uses 'relu'"),
        (nn.Sequential(nn.Conv2d(1, 1, 3)), (5, 5), "time folded into the batch.*direct"),
        (Wired(folded_in_time, layer=LIF()), (4,), "time in front"),
        (
            Wired(folded_in_time, layer=nn.MaxPool2d(2)),
            (1, 4, 4),
            "'layer', a MaxPool2d, uses '.*max_pool2d.*'",
        ),
        (
            Wired(folded_in_time, layer=nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")),
            (1, 5, 5),
            "padding_mode 'circular'",
        ),
        (Wired(folded_in_time, layer=nn.AvgPool2d(2, ceil_mode=True)), (1, 5, 5), "ceil_mode"),
        (
            Wired(folded_in_time, layer=nn.AdaptiveAvgPool2d(3)),
            (1, 6, 5),
            "5 pixels to 3 with unequal windows",
        ),
        (
            Wired(folded_in_time, layer=nn.BatchNorm2d(1)),
            (1, 5, 5),
            "'layer', a BatchNorm2d, can't be folded",
        ),
        (
            Wired(
                folded_in_time,
                layer=nn.Sequential(
                    nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1, track_running_stats=False)
                ),
            ),
            (1, 5, 5),
            "no running statistics",
        ),
        (Wired(lambda self, x: self.layer(x), layer=nn.Linear(4, 4)), (3, 4), "flatten first"),
        (Wired(lambda self, x: self.layer(x + 1), layer=LIF()), (4,), "adds a constant"),
        (Wired(lambda self, x: self.layer(x + x[:1]), layer=LIF()), (4,), "'__getitem__'"),
        (Wired(lambda self, x: self.layer(x + x), layer=LIF()), (4,), "adds a tensor to itself"),
        (Wired(lambda self, x: self.layer(x * 2), layer=LIF()), (4,), "the Wired uses 'mul'"),
        (
            Wired(lambda self, x: self.layer(x + torch.ones(2, 3, 4)), layer=LIF()),
            (4,),
            "doesn't come from the input",
        ),
        (
            Wired(lambda self, x: self.layer(torch.ones(2, 3, 4)), layer=LIF()),
            (4,),
            "doesn't come from the input",
        ),
        (
            Wired(
                lambda self, x: torch.stack([self.layer(x_t) for x_t in x.unbind(0)]),
                layer=nn.Linear(4, 4),
            ),
            (4,),
            "doesn't come from the input",
        ),
        (Wired(lambda self, x: self.layer(x, v0=torch.zeros(3, 4)), layer=LIF()), (4,), "a state"),
        (
            Wired(
                lambda self, x: self.layer(nn.functional.dropout(x, 0.5, training=True)),
                layer=LIF(),
            ),
            (4,),
            "'dropout'",
        ),
        (
            Wired(lambda self, x: self.layer(x).mean(0), layer=LIF()),
            (4,),
            "ends with a mean over time",
        ),
        (Wired(lambda self, x: self.layer(x).mean(1), layer=LIF()), (4,), "'mean'"),
        (
            Wired(lambda self, x: self.layer(self.layer(x.mean(0))), layer=nn.Linear(4, 4)),
            (4,),
            "follows the mean over time",
        ),
        (
            Wired(lambda self, x: self.layer(x.mean(0)) + x.mean(0), layer=nn.Linear(4, 4)),
            (4,),
            "after the mean over time",
        ),
        (
            Wired(
                lambda self, x: over_time(self.norm, over_time(self.conv, x) + x),
                conv=nn.Conv2d(1, 1, 1),
                norm=nn.BatchNorm2d(1),
            ),
            (1, 3, 3),
            "can't be folded",
        ),
        (
            Wired(
                lambda self, x: (lambda y: over_time(self.norm, y) + over_time(self.next, y))(
                    over_time(self.conv, x)
                ),
                conv=nn.Conv2d(1, 1, 1),
                norm=nn.BatchNorm2d(1),
                next=nn.Conv2d(1, 1, 1),
            ),
            (1, 3, 3),
            "'next', a Conv2d, uses a tensor that doesn't come",
        ),
    ],
)
def test_refused(net, shape, message):
    with pytest.raises(ValueError, match=f"to_nir: .*{message}"):
        to_nir(net, torch.rand(4, 2, *shape))


@pytest.mark.parametrize("example", [torch.rand(3, 4), torch.zeros(3, 2, 4, dtype=torch.long)])
def test_examples_refused(example):
    with pytest.raises(ValueError, match=r"expected a floating sequence \[T, N"):
        to_nir(mlp(), example)


def graph_of(nodes, edges):
    ends = {"input": nir.Input(np.array([2])), "output": nir.Output(np.array([2]))}
    return nir.NIRGraph(ends | nodes, edges, type_check=False)


EYE = nir.Linear(np.eye(2, dtype=np.float32))


@pytest.mark.parametrize(
    "graph, message",
    [
        (
            graph_of(
                {"a": EYE, "b": EYE}, [("input", "a"), ("a", "b"), ("b", "a"), ("b", "output")]
            ),
            "recurrent .*a -> b -> a|recurrent .*b -> a -> b",
        ),
        (
            graph_of({"a": EYE, "b": EYE}, [("input", "a"), ("b", "output")]),
            "'b' has no incoming edge",
        ),
        (
            graph_of({"a": nir.Input(np.array([2]))}, [("input", "output")]),
            "2 inputs and 1 outputs",
        ),
        (
            graph_of({"a": nir.Scale(np.ones(2))}, [("input", "a"), ("a", "output")]),
            "'a' is a Scale",
        ),
        (
            graph_of({"a": nir.Delay(np.full(2, 1e3))}, [("input", "a"), ("a", "output")]),
            "node 'a' Synapse: delay",
        ),
    ],
)
def test_graphs_refused(graph, message):
    with pytest.raises(ValueError, match=f"from_nir: .*{message}"):
        from_nir(graph)


def test_what_is_no_graph_and_what_does_not_fit():
    with pytest.raises(TypeError, match="got a str; expected a nir.NIRGraph"):
        from_nir("net.nir")
    net = from_nir(graph_of({"a": EYE}, [("input", "a"), ("a", "output")]))
    for x in (torch.rand(3, 2), torch.rand(4, 3, 5), torch.zeros(4, 3, 2, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"expected a floating sequence \[T, N, 2\]"):
            net(x)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import")
def test_without_the_package(monkeypatch):
    "The modules are run anew where nir can't be imported: they load, and both functions say what to install."
    monkeypatch.setitem(sys.modules, "nir", None)
    module = runpy.run_module("neurobridge.snn.nir.export")
    module |= runpy.run_module("neurobridge.snn.nir.build")
    for call in (
        lambda: module["to_nir"](nn.Sequential(LIF()), torch.rand(2, 1, 3)),
        lambda: module["from_nir"](None),
    ):
        with pytest.raises(ImportError, match=r"a NIR graph needs nir; run: pip install nir$"):
            call()


# Another library


@pytest.fixture(scope="module")
def snntorch():
    pytest.importorskip("nirtorch", reason="needs pip install nirtorch snntorch")
    return pytest.importorskip("snntorch", reason="needs pip install nirtorch snntorch")


@pytest.mark.parametrize(
    "build, shape",
    [
        (lambda: spiking_convnet(T=4, width=4), (1, 8, 8)),
        (lambda: spiking_convnet(partial(LIF, decay=0.9, v_th=0.3), T=4, width=4), (1, 8, 8)),
        (
            lambda: spiking_resnet18(width=4, in_channels=1, classes=10, T=4, small_images=True),
            (1, 8, 8),
        ),
        (mlp, (6,)),
    ],
)
def test_snntorch_fires_the_same_spikes(snntorch, build, shape, tmp_path, capsys):
    "One item at a time, since snnTorch's flattening takes the batch axis along."
    from snntorch.import_nir import import_from_nir

    net = lived_in(build())
    for seed in range(3):
        x, spikes = normal(8, 1, *shape, seed=seed) * 2, {}
        graph = through_a_file(to_nir(net, x), tmp_path)
        ours, theirs, state, answers = from_nir(graph).eval(), import_from_nir(graph), None, []
        for name, module in theirs.named_modules():
            if isinstance(module, snntorch.Leaky):
                module.register_forward_hook(
                    lambda m, a, out, name=name, found=spikes: found.setdefault(name, []).append(
                        out
                    )
                )
        with torch.no_grad(), monitor(ours) as seen:
            logits = ours(x)
            for x_t in x:
                answer, state = theirs(x_t, state)
                answers.append(answer)
        assert len(seen) == len(spikes) and sum(record.counts.sum() for record in seen.values()) > 0
        for name, record in seen.items():
            assert torch.equal(
                torch.stack(spikes[name if name in spikes else f"_{name}"]) > 0, record.spikes
            )
        torch.testing.assert_close(torch.stack(answers).mean(0).reshape(logits.shape), logits)


@pytest.mark.filterwarnings("ignore:nirtorch.extract_nir_graph is being deprecated")
def test_snntorchs_graphs_are_read(snntorch):
    from snntorch.export_nir import export_to_nir

    def leaky(size):
        return snntorch.Leaky(
            beta=torch.full((size,), 0.9),
            threshold=torch.ones(size),
            reset_mechanism="zero",
            reset_delay=False,
            init_hidden=True,
        )

    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Linear(6, 20), leaky(20), nn.Linear(20, 4), leaky(4))
    ours, x = (
        from_nir(export_to_nir(theirs, torch.randn(1, 6), ignore_dims=[0])),
        normal(40, 5, 6) * 2,
    )
    for module in (theirs[1], theirs[3]):
        module.reset_mem()
    with torch.no_grad():
        expected = torch.stack([theirs(x_t) for x_t in x])
        assert 0 < expected.mean() < 1
        same(ours(x), expected)


# Networks that were not built here


def test_spikified_networks_are_written_with_every_steps_answer():
    torch.manual_seed(0)
    net = spikify(
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(36, 6),
            nn.ReLU(),
            nn.Linear(6, 3),
        ),
        T=5,
    )
    net, x = lived_in(net), direct(torch.rand(4, 1, 8, 8), 5)
    with pytest.raises(ValueError, match="ends with a mean over time; set its per_step = True"):
        to_nir(net, x)
    net.per_step = True
    graph = to_nir(net.double(), x.double())
    assert list(graph.nodes) == ["input", "0", "2", "3", "4", "5", "6", "7", "output"]
    torch.testing.assert_close(from_nir(graph)(x.double()), net(x.double()), rtol=1e-9, atol=1e-9)


def test_converted_networks_are_refused_by_name():
    ann = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)).eval()
    with pytest.raises(
        ValueError,
        match="'1', a IF, is a layer of neurons with an equation of its own; .*reset by subtraction",
    ):
        to_nir(convert(ann, torch.rand(4, 1, 8, 8)), torch.rand(3, 2, 1, 8, 8))


# What a graph would lose


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Adapting(LIF):
    def forward(self, x, v0=None, return_state=False):
        return super().forward(x - x.mean(0), v0, return_state)


def assigned(self, x):
    y = self.layer(x)
    y[:, :, 0] = 0
    return y


@pytest.mark.parametrize(
    "net, shape, message",
    [
        (
            Wired(lambda self, x: torch.add(self.layer(x), x, alpha=2), layer=nn.Linear(4, 4)),
            (4,),
            "adds with a factor, alpha = 2",
        ),
        (Wired(assigned, layer=nn.Linear(4, 4)), (4,), "assigns to a part"),
        (nn.Sequential(Doubled(4, 4)), (4,), "'0', a Doubled, has a forward of its own"),
        (nn.Sequential(Adapting()), (4,), "'0', a Adapting, has a forward of its own"),
        (
            Wired(lambda self, x: over_time(lambda y: nn.functional.adaptive_avg_pool2d(y, 1), x)),
            (2, 4, 4),
            "write it as a module: nn.AdaptiveAvgPool2d",
        ),
        (
            Wired(lambda self, x: over_time(lambda y: nn.functional.avg_pool2d(y, 2), x)),
            (2, 4, 4),
            "write it as a module: nn.AvgPool2d",
        ),
        (
            Wired(
                lambda self, x: nn.functional.linear(x, self.layer.weight), layer=nn.Linear(4, 4)
            ),
            (4,),
            "write it as a module: nn.Linear",
        ),
        (Wired(lambda self, x: (x, x)), (4,), "returns a tuple"),
    ],
)
def test_refused_too(net, shape, message):
    with pytest.raises(ValueError, match=f"to_nir: .*{message}"):
        to_nir(net, torch.rand(4, 2, *shape))


def test_the_type_of_the_example_is_the_models():
    with pytest.raises(
        ValueError, match="example is torch.float64, the model's parameters are torch.float32"
    ):
        to_nir(mlp(), torch.rand(3, 2, 6).double())


@pytest.mark.parametrize(
    "version, fine",
    [
        ("1.0.4", False),
        ("1.0.5", False),
        ("0.3", False),
        ("1.0.6", True),
        ("1.1", True),
        ("2.0.0rc1", True),
    ],
)
def test_versions_of_nir(monkeypatch, version, fine):
    monkeypatch.setattr(nir, "__version__", version)
    for call in (
        lambda: to_nir(mlp(), torch.rand(2, 1, 6)),
        lambda: from_nir(graph_of({"a": EYE}, [("input", "a"), ("a", "output")])),
    ):
        if fine:
            call()
            continue
        with pytest.raises(ImportError, match=f"need nir 1.0.6 or newer, {version} is installed"):
            call()
    if not fine:
        with pytest.raises(ImportError):
            to_nir("no model", None)


# Graphs with something missing


IN_A_OUT = [("input", "a"), ("a", "output")]


def neurons_of(*shape):
    return nir.LIF(*(np.full(shape, value) for value in (2e-4, 2.0, 0.0, 0.5)))


@pytest.mark.parametrize(
    "graph, message",
    [
        (graph_of({"a": EYE}, [*IN_A_OUT, ("input", "a")]), "edge input -> a is listed 2 times"),
        (graph_of({"a": EYE}, [*IN_A_OUT, ("ghost", "output")]), "names 'ghost'"),
        (graph_of({"a": EYE}, [*IN_A_OUT, ("a", "ghost")]), "names 'ghost'"),
        (graph_of({"a": nir.Linear(np.eye(3))}, IN_A_OUT), "'a' does not fit what arrives"),
        (
            graph_of({"a": neurons_of(3)}, IN_A_OUT),
            r"'a' has neurons of shape \(3,\), and \(2,\) arrive",
        ),
        (graph_of({"a": nir.NIRGraph({}, [], type_check=False)}, IN_A_OUT), "'a' is a NIRGraph"),
    ],
)
def test_incomplete_graphs_refused(graph, message):
    with pytest.raises(ValueError, match=f"from_nir: .*{message}"):
        from_nir(graph)


def test_outputs_of_different_shape_do_not_meet():
    wide = nir.Linear(np.ones((1, 2), dtype=np.float32))
    with pytest.raises(ValueError, match="outputs of a, b meet in 'output' and have shapes"):
        from_nir(
            graph_of(
                {"a": EYE, "b": wide},
                [("input", "a"), ("input", "b"), ("a", "output"), ("b", "output")],
            )
        )


def test_a_graph_without_a_shape_and_one_with_a_wrong_time_step():
    graph = graph_of({"a": EYE}, IN_A_OUT)
    graph.nodes["input"] = nir.Input(None)
    with pytest.raises(ValueError, match="input has no shape"):
        from_nir(graph)
    for dt in ("soon", None, -1.0, 0):
        graph = graph_of({"a": EYE}, IN_A_OUT)
        graph.metadata = {"dt": dt}
        with pytest.raises(ValueError, match="metadata have dt = .*pass dt"):
            from_nir(graph)
        from_nir(graph, dt=1e-3)
    with pytest.raises(ValueError, match="from_nir: dt is 0"):
        from_nir(graph, dt=0)


def test_weights_of_any_type():
    whole = from_nir(graph_of({"a": nir.Linear(np.array([[2, 0], [0, 3]]))}, IN_A_OUT))
    same(whole(torch.ones(1, 1, 2)), torch.tensor([[[2.0, 3.0]]]))
    mixed = from_nir(
        graph_of(
            {"a": EYE, "b": nir.Linear(2 * np.eye(2))},
            [("input", "a"), ("a", "b"), ("b", "output")],
        )
    )
    same(mixed(torch.ones(1, 1, 2).double()), torch.full((1, 1, 2), 2.0).double())
    with pytest.raises(
        ValueError, match="input is torch.float32, the graph's weights are torch.float64"
    ):
        mixed(torch.ones(1, 1, 2))


def test_a_number_type_that_files_of_nir_lack():
    net = nn.Sequential(nn.Linear(4, 3), LIF(0.8, 0.3)).bfloat16()
    with pytest.raises(TypeError, match=r"to_nir: .*bfloat16.*give model\.float\(\)"):
        to_nir(net, torch.rand(5, 2, 4).bfloat16())
