"Composed networks against the existing classes, the golden arrays and independent writings."

import copy
import pickle
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from neurobridge.brain import record_layers
from neurobridge.bridge import Blueprint, Neuron, Time, Wiring, compose
from neurobridge.core import evaluating, fit, load_network, project_root, save_network
from neurobridge.cornet import cornet_r, cornet_rt, cornet_s, cornet_z
from neurobridge.g2g import G2GNet, Rewirer
from neurobridge.snn import (
    LIF,
    RecurrentLIF,
    monitor,
    spiking_convnet,
    spiking_resnet18,
    spiking_vgg,
    streaming,
    synops,
)
from neurobridge.snn.encode import direct
from neurobridge.transfer import SharpenedReLU, copy_weights

pytestmark = pytest.mark.usefixtures("same_numbers")
GOLDEN = project_root() / "tests" / "golden"
SMALL = {"width": 4, "classes": 10}
CORNETS = {"cornet_z": cornet_z, "cornet_s": cornet_s, "cornet_r": cornet_r, "cornet_rt": cornet_rt}


def blueprint(body="cornet_s", **settings):
    return Blueprint(body, width=4, in_shape=(3, 32, 32), classes=10).changed(**settings)


def seeded(make, seed=3, **settings):
    torch.manual_seed(seed)
    return make(**settings)


def images(n=2, channels=3, side=32):
    return torch.randn(n, channels, side, side)


def same_start(one, other):
    "Compare weights by name; settings apart."
    a, b = one.state_dict(), other.state_dict()
    names = {name for name in a if not name.endswith("_extra_state")}
    assert names == {name for name in b if not name.endswith("_extra_state")}
    assert all(torch.equal(a[name], b[name]) for name in names)


# The existing classes


@pytest.mark.parametrize("body", CORNETS)
@pytest.mark.parametrize("training", [True, False])
def test_cornets(body, training):
    more = {"small_images": True} if body == "cornet_s" else {}
    old = seeded(CORNETS[body], **SMALL, **more).train(training)
    new = compose(blueprint(body), 3).train(training)
    same_start(new, old)
    x = images()
    want, got = copy.deepcopy(old).states(x), copy.deepcopy(new).states(x)
    assert list(got) == list(want)
    assert all(torch.equal(got[key], want[key]) for key in want)
    assert torch.equal(new(x), old(x))
    same_start(new, old)  # running statistics too


@pytest.mark.parametrize("body", CORNETS)
def test_gradients_of_cornets(body):
    more = {"small_images": True} if body == "cornet_s" else {}
    old, new = seeded(CORNETS[body], **SMALL, **more).double(), compose(blueprint(body), 3).double()
    x = images().double()
    for net in (old, new):
        F.cross_entropy(net(x), torch.tensor([1, 2])).backward()
    for (name, a), (_, b) in zip(old.named_parameters(), new.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("body", ["cornet_r", "cornet_rt"])
@pytest.mark.parametrize("steps", [4, 5, 7])
def test_one_clock_with_relu_is_the_published_network(body, steps):
    old = seeded(CORNETS[body], times=steps, **SMALL)
    new, x = compose(blueprint(body, time=Time(steps, "across")), 3), images()
    want, got = old.states(x), new.states(x)
    assert list(got) == list(want) and torch.equal(new(x), old(x))
    assert all(torch.equal(got[key], want[key]) for key in want)


def golden_weights(model, seed=0):
    "The recipe of the golden files: every tensor from a generator seeded by its own name."
    state = {}
    for key, value in model.state_dict().items():
        rng, shape = np.random.default_rng(zlib.crc32(f"{seed}:{key}".encode())), tuple(value.shape)
        if key.endswith("num_batches_tracked"):
            made = np.zeros(shape, dtype=np.int64)
        elif key.endswith("running_var"):
            made = 0.5 + rng.random(shape)
        elif key.endswith(("running_mean", "bias")):
            made = 0.1 * rng.standard_normal(shape)
        elif len(shape) == 1:
            made = 0.5 + rng.random(shape)
        else:
            made = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        state[key] = torch.from_numpy(np.asarray(made)).to(value.dtype)
    return state


@pytest.mark.long
@pytest.mark.parametrize("body", CORNETS)
def test_golden(body):
    "The authors' programs, run once, at full size."
    network = compose(Blueprint(body)).eval()
    network.load_state_dict(golden_weights(CORNETS[body]()))
    x = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    with evaluating(network):
        states, logits = network.states(torch.from_numpy(x)), network(torch.from_numpy(x))
    with np.load(GOLDEN / f"{body}_seed0.npz") as golden:
        for (area, step), value in states.items():
            found = {
                "mean": value.double().mean((1, 2, 3)),
                "std": value.double().std((1, 2, 3), correction=0),
                "head": value[:, :4, :3, :3],
            }
            for what, each in found.items():
                want = golden[f"{area}.{step}.{what}"]
                np.testing.assert_allclose(each, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
        want = golden["logits"]
        np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


EXISTING = {
    "convnet": lambda neuron, T: spiking_convnet(neuron, in_channels=3, T=T, **SMALL),
    "resnet18": lambda neuron, T: spiking_resnet18(
        neuron, in_channels=3, T=T, small_images=True, **SMALL
    ),
    "vgg11": lambda neuron, T: spiking_vgg(neuron, in_channels=3, T=T, **SMALL),
}


@pytest.mark.parametrize("body", EXISTING)
@pytest.mark.parametrize(
    "neuron, maker", [("relu", nn.ReLU), ("lif", LIF), ("sharpened", SharpenedReLU)]
)
@pytest.mark.parametrize("steps", [1, 3])
def test_feed_forward_bodies(body, neuron, maker, steps):
    if neuron == "sharpened" and steps > 1:
        return
    time = Time(steps, "inside") if steps > 1 else Time()
    old, new = (
        seeded(EXISTING[body], neuron=maker, T=steps),
        compose(blueprint(body, neuron=neuron, time=time), 3),
    )
    same_start(new, old)
    x = images()
    assert torch.equal(new(x), old(x))
    new.load_state_dict(old.state_dict())  # settings of both agree
    if steps > 1:
        frames = torch.randn(5, 2, 3, 32, 32)
        assert torch.equal(new.eval()(frames), old.eval()(frames))


@pytest.mark.parametrize(
    "kind, form",
    [("dense", "dense"), ("masked", "masked"), ("ensembles", "ensembles"), ("random", "er")],
)
@pytest.mark.parametrize("steps", [None, 3])
def test_g2gnet(kind, form, steps):
    time, neuron = (Time(), "relu") if steps is None else (Time(steps, "inside"), "lif")
    half = Blueprint("g2gnet", kind, neuron, time, width=64, in_shape=(1, 28, 28), classes=10)
    torch.manual_seed(3)
    maker = nn.ReLU if steps is None else LIF
    old = G2GNet((1, 28, 28), 10, 64, form=form, neuron=maker, T=steps)
    new, x = compose(half, 3), images(channels=1, side=28)
    same_start(new, old)
    assert torch.equal(new(x), old(x))
    new.load_state_dict(old.state_dict())
    if steps:
        torch.testing.assert_close(new(direct(x, steps)), new(x), rtol=1e-5, atol=1e-6)


# Inside


def test_inside_at_one_step_is_static():
    x = images()
    static, inside = compose(blueprint(), 3), compose(blueprint(time=Time(1, "inside")), 3)
    assert torch.equal(static.eval()(x), inside.eval()(x))


def spikes_by_hand(area, x, T):
    "An area of CORnet-S, unrolled, step by step, with one membrane per layer and pass."
    weight, outputs = area.state_dict(), []

    def norm(name, y):
        layer = area.get_submodule(name)
        return F.batch_norm(y, layer.running_mean, layer.running_var, layer.weight, layer.bias)

    def fire(current):
        v, sent = torch.zeros_like(current[0]), []
        for c in current:
            h = 0.25 * v + c
            s = (h > 0.5).float()
            v = h * (1 - s)
            sent.append(s)
        return torch.stack(sent)

    y = [F.conv2d(each, weight["conv_input.weight"]) for each in x]
    for t in range(area.times):
        if t:
            skip = y
        else:
            skip = [
                norm("norm_skip", F.conv2d(each, weight["skip.weight"], stride=2)) for each in y
            ]
        one = fire(
            torch.stack([norm(f"norm1_{t}", F.conv2d(each, weight["conv1.weight"])) for each in y])
        )
        stride = 1 if t else 2
        two = fire(
            torch.stack(
                [
                    norm(
                        f"norm2_{t}",
                        F.conv2d(each, weight["conv2.weight"], stride=stride, padding=1),
                    )
                    for each in one
                ]
            )
        )
        y = fire(
            torch.stack(
                [
                    norm(f"norm3_{t}", F.conv2d(each, weight["conv3.weight"])) + s
                    for each, s in zip(two, skip, strict=True)
                ]
            )
        )
        outputs.append(y)
    return outputs


def used(network, x, times=10):
    "Train the statistics of norms, as they would be otherwise 0 and 1."
    with torch.no_grad():
        for _ in range(times):
            network(x)
    return network.eval()


def test_inside_against_a_plain_loop():
    half = blueprint(
        neuron=Neuron("lif", gain=0.5, bias=0.25), time=Time(3, "inside"), times=(2, 3, 2)
    )
    network = used(compose(half), images(8))
    with torch.no_grad():
        states = network.states(images(4))
        wanted = spikes_by_hand(network.V2, states["V1", 0], 3)
    for t, want in enumerate(wanted):
        assert torch.equal(states["V2", t], want) and 0.01 < want.mean() < 0.99


def test_states_over_time_and_averaged():
    network, x = compose(blueprint(neuron="lif", time=Time(3, "inside"))).eval(), images()
    mean, every = network.states(x, average=True), network.states(x)
    assert list(mean) == [
        ("V1", 0),
        ("V2", 0),
        ("V2", 1),
        *[("V4", t) for t in range(4)],
        ("IT", 0),
        ("IT", 1),
    ]
    assert all(torch.equal(every[key].mean(0), mean[key]) and every[key].ndim == 5 for key in mean)


# Across


def test_across_at_one_step_is_the_area_with_one_pass():
    x = images()
    one = compose(blueprint(times=(1, 1, 1)), 3)
    for times in ((1, 1, 1), (2, 4, 2)):
        clock = compose(blueprint(times=times, time=Time(1, "across")), 3)
        clock.load_state_dict(
            {n: v for n, v in one.state_dict().items() if n != "_extra_state"}, strict=False
        )
        got, want = clock.states(x), one.states(x)
        assert all(torch.equal(got[key], want[key]) for key in want)
        torch.testing.assert_close(clock(x), one(x), rtol=0, atol=0)


def test_across_carries_membranes_and_feeds_spikes_back():
    "A plain writing of one area: norms of pass min(t, passes - 1), input and state added."
    half = blueprint(
        neuron=Neuron("lif", gain=0.5, bias=0.25), time=Time(5, "across"), times=(2, 2, 2)
    )
    network = used(compose(half), images(8))
    area, weight = network.V2, network.V2.state_dict()
    states = {k: v.detach() for k, v in network.states(images(4)).items()}

    def norm(name, y):
        layer = area.get_submodule(name)
        return F.batch_norm(y, layer.running_mean, layer.running_var, layer.weight, layer.bias)

    v = {}

    def fire(layer, current):
        h = 0.25 * v.get(layer, torch.zeros_like(current)) + current
        s = (h > 0.5).float()
        v[layer] = h * (1 - s)
        return s

    s = None
    for t in range(5):
        p = min(t, 1)
        y = F.conv2d(states["V1", t], weight["conv_input.weight"])
        seen = norm("norm_skip", F.conv2d(y, weight["skip.weight"], stride=2))
        u = seen if s is None else s + seen
        one = F.conv2d(y if s is None else u, weight["conv1.weight"])
        if t == 1:
            del v[1]
        one = fire(1, norm(f"norm1_{p}", one))
        two = F.conv2d(one, weight["conv2.weight"], stride=1 if t else 2, padding=1)
        three = F.conv2d(fire(2, norm(f"norm2_{p}", two)), weight["conv3.weight"])
        s = fire(3, norm(f"norm3_{p}", three) + u)
        assert torch.equal(s, states["V2", t]), t
    assert 0.01 < s.mean() < 0.99


def stepped(network, x, T):
    "Run a network one step at a time: every LIF continues with its last membrane."
    layers, answers = [m for m in network.modules() if isinstance(m, LIF)], []
    memory = {layer: None for layer in layers}

    def forward(layer):
        def run(current):
            out, memory[layer] = LIF.forward(layer, current, memory[layer], return_state=True)
            return out

        return run

    for layer in layers:
        layer.forward = forward(layer)
    for t in range(T):
        answers.append(network.states(x[t : t + 1]))
    for layer in layers:
        del layer.forward
    return answers


@pytest.mark.parametrize("body", ["convnet", "resnet18", "vgg11", "cornet_z"])
def test_without_loops_one_clock_is_layer_by_layer(body):
    half = blueprint(body, neuron="lif", time=Time(4, "inside"))
    inside, across = compose(half), compose(half.changed(**{"time.recurrence": "across"}))
    used(inside, images(8))
    across.load_state_dict(
        {n: v for n, v in inside.state_dict().items() if n != "_extra_state"}, strict=False
    )
    x = torch.randn(4, 2, 3, 32, 32)
    across.eval()
    with torch.no_grad():
        torch.testing.assert_close(across(x), inside(x), rtol=1e-6, atol=1e-6)
        clock, fused = across.states(x), inside.states(x)
        for (area, _), want in fused.items():
            assert torch.equal(torch.stack([clock[area, t] for t in range(4)]), want)
        for t, found in enumerate(stepped(inside, x, 4)):
            assert all(torch.equal(found[key][0], fused[key][t]) for key in found), t


def test_late_areas_start_late():
    half = blueprint(time=Time(4, "across", through_time=True), neuron="lif")
    states = compose(half).eval().states(images())
    assert ("V1", 0) in states and ("V2", 0) not in states and ("V2", 1) in states
    assert min(t for area, t in states if area == "IT") == 3


# The neighbours' spiking CORnet-RT


def neighbours(**settings):
    neuron = Neuron("lif", decay=0.5, v_th=2.0, surrogate="atan")
    return blueprint("cornet_rt", neuron=neuron, time=Time(6, "across"), **settings)


class TheirArea(nn.Module):
    "After the public code of Huang et al. (2024): group norm, LIF after both convolutions, state added to the input."

    def __init__(self, area, node):
        super().__init__()
        self.area, self.node_input, self.node = area, node(), node()

    def forward(self, x, state):
        a = self.area
        if x is None:
            skip = torch.zeros_like(state)
        else:
            skip = self.node_input(a.norm_input(a.conv_input(x)))
        return self.node(a.norm1(a.conv1(skip + state)))


def test_spiking_cornet_rt_equals_the_neighbours():
    base = pytest.importorskip("spikingjelly.activation_based.neuron")

    def node():
        return base.LIFNode(tau=2.0, v_threshold=1.0, v_reset=0.0, detach_reset=True)

    network, x = compose(neighbours()).eval(), images(4)
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.constant_(module.weight, 2.0)
    got = {key: value.detach() for key, value in network.states(x).items()}
    areas = [TheirArea(network.get_submodule(name), node) for name in network.areas]
    state = [torch.zeros_like(got[name, 0]) for name in network.areas]
    answers, fired = [], 0.0
    with torch.no_grad():
        for t in range(6):
            before = list(state)
            for i, area in enumerate(areas):
                below = x if i == 0 else before[i - 1]
                state[i] = area(None if t == 0 and i else below, before[i])
                assert torch.equal(state[i], got[network.areas[i], t]), (network.areas[i], t)
            fired += float(state[-1].mean())
            answers.append(network.decoder(state[-1]))
        torch.testing.assert_close(network(x), torch.stack(answers).mean(0), rtol=1e-5, atol=1e-6)
    assert fired > 0


# Everything else in the package


def test_device_seed_and_generator():
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    first = compose(blueprint(), 3)
    assert torch.equal(torch.rand(1), wanted)
    same_start(first, compose(blueprint(), 3))
    with torch.device("meta"):
        there = compose(
            blueprint(
                wiring=Wiring("ensembles", groups=4, where="all"),
                neuron="lif",
                time=Time(3, "across"),
            )
        )
        assert there(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert all(p.is_meta for p in there.parameters())


@pytest.mark.parametrize("kind", ["masked", "ensembles"])
def test_rewiring(kind):
    half = Blueprint("g2gnet", kind, width=64, in_shape=(1, 28, 28), classes=10)
    network, x = compose(half), images(8, 1, 28)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    rewirer = Rewirer(network, optimizer, "magnitude", "random", every=2, fraction=0.2)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(network(x), torch.arange(8)).backward()
        optimizer.step()
    assert len(rewirer.history) == 3


@pytest.mark.parametrize("recurrence", ["inside", "across"])
def test_a_network_is_watched_counted_recorded_saved_and_copied(recurrence, tmp_path):
    half = blueprint(
        neuron=Neuron("lif", gain=0.5, bias=0.25),
        time=Time(3, recurrence),
        wiring=Wiring("ensembles", groups=4, where="pointwise"),
    )
    x = images(4)
    network = used(compose(half), x)
    with monitor(network) as records:
        answer = network(x)
    assert all(0 <= record.rates.min() and record.rates.max() <= 1 for record in records.values())
    cost = synops(network, x)
    assert cost.loc["V2.conv2_again"].AC > 0 and cost.loc["V2.conv2"].AC > 0
    recorded = record_layers(network, x, list(network.area_layers.values()))
    states = network.states(x)
    for area, layer in network.area_layers.items():
        parts = [states[key] for key in states if key[0] == area]
        parts = torch.cat(parts) if recurrence == "inside" else torch.stack(parts)
        assert torch.equal(torch.from_numpy(recorded[layer]), parts)
    save_network(network, tmp_path / "net.safetensors")
    again = load_network(tmp_path / "net.safetensors")
    assert again.blueprint == half and torch.equal(again(x), answer)
    again.V2.conv2.weight.data.zero_()
    assert not torch.equal(again(x), answer)  # the later passes still have the same convolution
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(x), answer)
        twin.V2.conv2.weight.data.zero_()
        assert not torch.equal(
            twin.V2.conv2_again(torch.ones(1, 32, 4, 4)),
            network.V2.conv2_again(torch.ones(1, 32, 4, 4)),
        )


def test_fit_resumes(tmp_path):
    half = blueprint(neuron="lif", time=Time(2, "across"))
    x, y = images(16), torch.arange(16) % 10
    settings = {"lr": 1e-2, "batch_size": 8, "device": "cpu"}
    straight, broken = compose(half), compose(half)
    fit(straight, (x, y), epochs=2, **settings)
    file = tmp_path / "at.pt"

    def stop(epoch, epochs):
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(broken, (x, y), epochs=2, checkpoint=file, on_epoch=stop, **settings)
    later = compose(half)
    fit(later, (x, y), epochs=2, checkpoint=file, **settings)
    same_start(later, straight)


def test_settings_travel():
    one, other = compose(blueprint()), compose(blueprint(neuron="lif"))
    with pytest.raises(ValueError, match="neuron.kind = 'relu' there, 'lif' here"):
        other.load_state_dict(one.state_dict())


def test_pipe_s_takes_composed_networks():
    ann = compose(blueprint("convnet", neuron="sharpened"))
    snn = copy_weights(ann, 4)
    assert torch.equal(snn.stem[0].weight, ann.stem[0].weight)
    assert snn.blueprint.neuron == Neuron("lif") and snn.blueprint.time == Time(4, "inside")
    assert ann.blueprint.neuron.kind == "sharpened"
    assert snn.states(images())["layer3", 0].shape[:2] == (4, 2)
    snn.T = 6
    assert snn.blueprint.time.steps == 6


def test_the_steps_of_areas_are_those_of_the_blueprint():
    network = compose(blueprint(neuron="lif", time=Time(3, "inside")))
    assert network.T == 3 and not hasattr(compose(blueprint()), "T")
    with pytest.raises(AttributeError, match="T is a setting of the blueprint"):
        network.T = 4


@pytest.mark.parametrize(
    "settings, words",
    [
        (
            {"wiring": Wiring("ensembles", where="head")},
            "wiring.groups is 8.*'decoder.linear', 32 and 10; use one of 1, 2",
        ),
        (
            {"wiring": Wiring("masked", groups=3, where="all")},
            "wiring.groups is 3.*or wiring.kind 'random'",
        ),
        (
            {"body": "g2gnet", "width": 36, "wiring": "masked"},
            "wiring.groups is 8; expected a divisor of the width 36",
        ),
    ],
)
def test_groups_that_do_not_divide(settings, words):
    with pytest.raises(ValueError, match=words):
        compose(blueprint(**settings))


def test_images_and_frames():
    static, spiking = compose(blueprint()), compose(blueprint(neuron="lif", time=Time(2, "inside")))
    assert spiking(torch.rand(5, 2, 3, 32, 32)).shape == (2, 10)
    for call, words in [
        (lambda: static(torch.rand(5, 2, 3, 32, 32)), r"expected images \[N, 3, H, W\] of"),
        (lambda: spiking(torch.rand(2, 1, 32, 32)), r"or frames \[T, N, 3, H, W\]"),
        (lambda: static.states(np.zeros((2, 3, 32, 32))), "x is"),
    ]:
        with pytest.raises((TypeError, ValueError), match=words):
            call()


# A body of the user's


def looped(neuron, synapse):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again = synapse(4, 8), synapse(8, 8)
            self.neurons = nn.ModuleList([neuron(), neuron()])

        def forward(self, x):
            one = self.neurons[0](self.first(x))
            return [one, self.neurons[1](self.again(one) + one)]

    return {"V1": nn.Sequential(synapse(3, 4, stride=2), neuron()), "IT": Twice()}


def test_own_body():
    half = Blueprint(looped, "random", "lif", Time(3, "inside"), in_shape=(3, 16, 16), classes=5)
    half = half.changed(**{"wiring.where": "all"})
    network = compose(half)
    assert network.wired == ("IT.first.conv", "IT.again.conv")
    assert list(network.states(images(side=16))) == [("V1", 0), ("IT", 0), ("IT", 1)]
    assert network(images(side=16)).shape == (2, 5)
    with pytest.raises(ValueError, match="area 'IT' of your own body returns 2 passes"):
        compose(half.changed(**{"time.recurrence": "across"}))
    with pytest.raises(TypeError, match="what body.neuron, synapse. returns"):
        compose(half.changed(body=lambda neuron, synapse: nn.Linear(1, 1)))


@pytest.mark.parametrize("body", ["convnet", "resnet18", "cornet_z", "cornet_s", "cornet_r"])
def test_a_composed_network_in_chunks_is_itself(body):
    "Frames in pieces of 1, 2 and 3 steps: the answer so far, in float64."
    blueprint = Blueprint(
        body, width=32 if body == "cornet_r" else 4, in_shape=(1, 32, 32), classes=5
    )
    changes = {"neuron.kind": "lif", "time.recurrence": "inside", "time.steps": 6}
    network = compose(blueprint.changed(**changes)).eval().double()
    frames = torch.rand(6, 2, 1, 32, 32, dtype=torch.float64)
    stream, state = streaming(network), None
    for start, stop in ((0, 1), (1, 3), (3, 6)):
        answer, state = stream(frames[start:stop], state)
        torch.testing.assert_close(answer, network(frames[:stop]), rtol=0, atol=1e-12)
    assert answer.abs().max() > 0


CLOCK = {"neuron": Neuron("lif", gain=0.8, bias=0.3), "time": Time(6, "across")}


def on_a_clock(body, **time):
    "A small network on one clock, its norms used, in float64."
    settings = CLOCK if body != "cornet_z" else CLOCK | {"neuron": Neuron("lif", v_th=0.05)}
    wide = 32 if body in ("cornet_r", "cornet_rt") else 4
    half = Blueprint(body, width=wide, in_shape=(1, 16, 16), classes=5, **settings)
    network = compose(half.changed(**{f"time.{name}": value for name, value in time.items()}))
    return used(network, torch.rand(4, 1, 16, 16)).double()


@pytest.mark.long
@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("body", CORNETS)
@pytest.mark.parametrize("readout", ["mean", "last"])
def test_a_network_on_a_clock_in_chunks_is_itself(body, feedback, readout):
    "Pieces of 1, 2 and 3 steps: the answer so far to 1e-12, and the spikes of one call."
    network = on_a_clock(body, feedback=feedback, readout=readout)
    frames = torch.rand(6, 2, 1, 16, 16, dtype=torch.float64)
    stream, state, found = streaming(network), None, []
    with torch.no_grad():
        for start, stop in ((0, 1), (1, 3), (3, 6)):
            answer, state = stream(frames[start:stop], state)
            torch.testing.assert_close(answer, network(frames[:stop]), rtol=0, atol=1e-12)
        memory = {}
        for frame in frames:
            outputs, memory = network.stepped(frame[None], memory)
            found.append(outputs)
        for (area, t), want in network.states(frames).items():
            assert torch.equal(found[t][area][0], want), (area, t)
    spikes = found[-1]["IT"][0]
    assert answer.abs().max() > 0 and 0.005 < spikes.mean() < 0.995
    own = state["ClockNet"]
    assert {"steps", "IT.sent"} <= set(own) and int(own["steps"]) == 6


def test_an_area_that_nothing_has_reached_is_at_rest():
    network = on_a_clock("cornet_s", through_time=True)
    frames = torch.rand(6, 2, 1, 16, 16, dtype=torch.float64)
    stream, state, answers = streaming(network), None, []
    with torch.no_grad():
        for frame in frames:
            answer, state = stream(frame[None], state)
            answers.append(answer)
        for t in range(3):  # IT is reached at the fourth step
            want = network.decoder.linear.bias.expand(2, -1)
            torch.testing.assert_close(answers[t], want)
            torch.testing.assert_close(network(frames[: t + 1]), want)
        torch.testing.assert_close(answers[-1], network(frames), rtol=0, atol=1e-12)
    assert not torch.equal(answers[-1], answers[0])


def test_a_state_of_something_else_and_norms_in_training_are_refused():
    network = on_a_clock("cornet_s")
    frames = torch.rand(2, 2, 1, 16, 16, dtype=torch.float64)
    stream = streaming(network)
    with torch.no_grad():
        _, state = stream(frames)
        own = state["ClockNet"]
        for wrong, words in [
            ({"steps": own["steps"], "V9.sent": own["V1.sent"]}, "'V9.sent'; expected the st"),
            ({"V1.sent": own["V1.sent"]}, "has no 'steps'"),
            ({name: each[:1] if each.ndim else each for name, each in own.items()}, "2 recordi"),
        ]:
            with pytest.raises(ValueError, match=words):
                stream(frames, {"ClockNet": wrong})
        with pytest.raises(ValueError, match="expected frames"):
            network(frames[0], return_state=True)
    with pytest.raises(ValueError, match="call net.eval|expected net.eval"):
        streaming(network.train())(frames)


# Feedback between areas


@pytest.mark.parametrize("body", CORNETS)
def test_feedback_with_zero_weights_is_the_network_without(body):
    with_it, without = on_a_clock(body, feedback=True), on_a_clock(body)
    names = {name for name in with_it.state_dict() if name.startswith("feedback.")}
    assert names == {f"feedback.{area}.weight" for area in ("V1", "V2", "V4")}
    kept = {n: v for n, v in without.state_dict().items() if n != "_extra_state"}
    frames = torch.rand(6, 2, 1, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        fed = with_it.states(frames)
        with_it.load_state_dict(kept, strict=False)
        for name in names:
            with_it.get_parameter(name).zero_()
        found, want = with_it.states(frames), without.states(frames)
        assert list(found) == list(want)
        assert all(torch.equal(found[key], want[key]) for key in want)
        torch.testing.assert_close(with_it(frames), without(frames), rtol=0, atol=1e-12)
    assert any(not torch.equal(fed[key], want[key]) for key in want)


def test_the_same_seed_has_the_same_weights_with_and_without_feedback():
    half = blueprint(neuron="lif", time=Time(3, "across"))
    one, two = compose(half, 3), compose(half.changed(**{"time.feedback": True}), 3)
    b = two.state_dict()
    for name, value in one.state_dict().items():
        assert name == "_extra_state" or torch.equal(b[name], value), name


def test_feedback_against_a_loop_written_by_hand():
    "CORnet-Z: convolve, add what the area above sent a step before, fire, pool."
    network = on_a_clock("cornet_z", feedback=True)
    w = {name: value.detach() for name, value in network.state_dict().items()}
    x = torch.rand(6, 2, 1, 16, 16, dtype=torch.float64)
    areas = ("V1", "V2", "V4", "IT")
    v, sent = dict.fromkeys(areas, 0.0), {}
    with torch.no_grad():
        states = network.states(x)
        for t in range(6):
            before, below = dict(sent), x[t]
            for area, above in zip(areas, (*areas[1:], None), strict=True):
                stride, padding = (2, 3) if area == "V1" else (1, 1)
                u = F.conv2d(
                    below, w[f"{area}.conv.weight"], w[f"{area}.conv.bias"], stride, padding
                )
                if above in before:
                    kernel = w[f"feedback.{area}.weight"][:, :, 0, 0]
                    back = torch.einsum("oc,nchw->nohw", kernel, before[above])
                    ys = torch.arange(u.shape[2]) * back.shape[2] // u.shape[2]
                    xs = torch.arange(u.shape[3]) * back.shape[3] // u.shape[3]
                    u = u + back[:, :, ys][:, :, :, xs]
                h = 0.25 * v[area] + u
                spikes = (h > 0.05).double()
                v[area] = h * (1 - spikes)
                sent[area] = below = F.max_pool2d(spikes, 3, 2, 1)
                assert torch.equal(below, states[area, t]), (area, t)
        rate = torch.stack([states["IT", t] for t in range(6)]).mean(0).mean((2, 3))
        logits = rate @ w["decoder.linear.weight"].T + w["decoder.linear.bias"]
        torch.testing.assert_close(network(x), logits, rtol=0, atol=1e-12)
    assert all(0.005 < float(states[area, 5].mean()) < 0.995 for area in areas)


def test_what_an_area_feeds_back_arrives_one_step_later_and_nowhere_else():
    "Exchange the weights from IT: V4 changes from the step after IT's first spikes, V2 one later."
    network = on_a_clock("cornet_s", feedback=True)
    frames = torch.rand(6, 2, 1, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        one = network.states(frames)
        network.feedback["V4"].weight.mul_(-20)
        two = network.states(frames)
    first = next(t for t in range(6) if one["IT", t].any())
    differ = {key for key in one if not torch.equal(one[key], two[key])}
    assert min(t for area, t in differ if area == "V4") == first + 1
    assert min((t for area, t in differ if area == "V2"), default=6) >= first + 2
    assert not [key for key in differ if key[0] == "IT" and key[1] <= first]


def test_feedback_is_counted_recorded_saved_trained_and_wired(tmp_path):
    half = blueprint(
        neuron=Neuron("lif", gain=0.8, bias=0.3),
        time=Time(3, "across", feedback=True),
        wiring=Wiring("ensembles", groups=2, where="pointwise"),
    )
    x, y = images(4), torch.arange(4)
    network = used(compose(half), x)
    assert {f"feedback.{area}" for area in ("V1", "V2", "V4")} < set(network.wired)
    dense = used(compose(half.changed(wiring="dense")), x)
    with torch.no_grad():
        sent, cost = dense.states(x), synops(dense, x)
    for low, high in (("V1", "V2"), ("V2", "V4"), ("V4", "IT")):
        # each spike of the first two steps reaches all channels of the area below
        spikes = sum(float(sent[high, t].sum()) for t in range(2))
        channels = dense.feedback[low].out_channels
        assert cost.loc[f"feedback.{low}"].AC == pytest.approx(spikes * channels / len(x))
        assert cost.loc[f"feedback.{low}"].MAC == 0
    recorded = record_layers(network, x, list(network.area_layers.values()))
    states = network.states(x)
    for area, layer in network.area_layers.items():
        steps = torch.stack([states[key] for key in states if key[0] == area])
        assert torch.equal(torch.from_numpy(recorded[layer]), steps)
    save_network(network, tmp_path / "net.safetensors")
    again = load_network(tmp_path / "net.safetensors")
    assert again.blueprint == half and torch.equal(again(x), network(x))
    F.cross_entropy(network.train()(x), y).backward()
    assert all(layer.weight.grad.abs().sum() > 0 for layer in network.feedback.values())


def across_loop(neuron, synapse):
    def loop():
        layer = neuron()
        back = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        return RecurrentLIF(back, layer.decay, layer.v_th, layer.reset)

    areas = {"V1": nn.Sequential(synapse(1, 8, stride=2), loop())}
    return areas | {"IT": nn.Sequential(synapse(8, 16, stride=2), neuron())}


def test_an_own_body_loops_across_time_by_a_recurrent_layer():
    "Against a loop by hand; in chunks; counted."
    half = Blueprint(across_loop, in_shape=(1, 16, 16), classes=5, **CLOCK)
    network = used(compose(half), torch.rand(4, 1, 16, 16)).double()
    x, w = torch.rand(6, 2, 1, 16, 16, dtype=torch.float64), network.state_dict()
    v, s = torch.zeros(2, 8, 8, 8, dtype=torch.float64), torch.zeros(2, 8, 8, 8).double()
    synapse = network.V1[0]
    with torch.no_grad():
        states = network.states(x)
        for t in range(6):
            current = synapse.norm(synapse.conv(x[t]))
            h = 0.25 * v + current + F.conv2d(s, w["V1.1.synapses.weight"], padding=1)
            s = (h > 0.5).double()
            v = h * (1 - s)
            assert torch.equal(s, states["V1", t]), t
        stream, state = streaming(network), None
        for chunk in (x[:1], x[1:3], x[3:]):
            answer, state = stream(chunk, state)
        torch.testing.assert_close(answer, network(x), rtol=0, atol=1e-12)
        assert synops(network, x).AC["V1.1.synapses"] > 0
    assert 0.01 < s.mean() < 0.99
