"""snn.spikify: exact where it can be, equal to an explicit walk elsewhere, the same keys, every refusal by name."""

import copy
import io
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurobridge.core import fit
from neurobridge.snn import LIF, SpikifyError, monitor, spikify, synops
from neurobridge.snn.relu_models.tracing import relu_places
from neurobridge.snn.spiking_model import SpikingModel
from neurobridge.transfer import SharpenedReLU, convert, copy_weights, neurons, pretrain

FAMILIES = {
    "resnet18": nn.ReLU,
    "vgg11_bn": nn.ReLU,
    "mobilenet_v2": nn.ReLU6,
    "squeezenet1_1": nn.ReLU,
    "shufflenet_v2_x0_5": nn.ReLU,
}


def build(name, **settings):
    torch.manual_seed(0)
    if name == "vgg11_bn":  # its linear layers are too large for a test
        features = tv.vgg.make_layers([8, "M", 16, 16, "M", 32, "M"], batch_norm=True)
        return nn.Sequential(
            features,
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 32),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(32, 7),
        )
    if name == "mobilenet_v2":
        settings["width_mult"] = 0.25
    return getattr(tv, name)(weights=None, num_classes=7, **settings)


class Of(nn.Module):
    "A function of the image x and of what its ReLU gives."

    def __init__(self, function, **parts):
        super().__init__()
        self.function, self.act = function, nn.ReLU()
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x, self.act(x))


@pytest.mark.parametrize("name", FAMILIES)
def test_exact_with_the_original_activation_at_one_step(name):
    ann, x = build(name).eval(), torch.rand(2, 3, 33, 33)
    before = copy.deepcopy(ann.state_dict())
    net = spikify(ann, FAMILIES[name], T=1)
    with torch.no_grad():
        torch.testing.assert_close(net(x), ann(x), rtol=0, atol=0)
        if not any(isinstance(m, nn.Dropout) for m in ann.modules()):
            net.train(), ann.train()
            torch.testing.assert_close(net(x), ann(x), rtol=0, atol=0)
    assert net.state_dict().keys() == ann.state_dict().keys() == before.keys()
    fresh = spikify(build(name), LIF, T=2)
    fresh.load_state_dict(before, strict=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_step_of_lif_is_a_step_function(name):
    class Step(nn.Module):
        def forward(self, x):
            return (x > 0.5).to(x.dtype)

    ann = build(name).eval()
    x = torch.rand(2, 3, 33, 33)
    with torch.no_grad():
        stepped = copy.deepcopy(ann)  # the independent way: replace the modules, no graph
        for parent in list(stepped.modules()):
            for child_name, child in list(parent.named_children()):
                if isinstance(child, nn.ReLU | nn.ReLU6):
                    setattr(parent, child_name, Step())
        torch.testing.assert_close(spikify(ann, LIF, T=1)(x), stepped(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_still_image_is_its_frames_and_steps_average_to_the_answer(name):
    net = spikify(build(name).eval(), LIF, T=3)
    x = torch.rand(2, 3, 33, 33)
    with torch.no_grad():
        answer = net(x)
        torch.testing.assert_close(net(x.expand(3, *x.shape)), answer)
        net.per_step = True
        assert net(x).shape == (3, 2, 7)
        torch.testing.assert_close(net(x).mean(0), answer)
        assert copy.deepcopy(net).per_step and copy.deepcopy(net).T == 3
        net.T = 5
        assert net(x).shape == (5, 2, 7)


def fire(v, i, decay=0.25):
    h = decay * v + i
    s = (h > 0.5).to(i.dtype)
    return s, h * (1 - s)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 3),
    st.integers(1, 8),
    st.booleans(),
    st.sampled_from(["module", "F", "torch", "method", "relu6"]),
    st.integers(0, 10**6),
)
def test_reused_relu_has_membranes_of_its_own(T, N, width, frames, how, seed):
    torch.manual_seed(seed)
    relu = {
        "module": lambda m, x: m.act(x),
        "F": lambda m, x: F.relu(x),
        "torch": lambda m, x: torch.relu(x),
        "method": lambda m, x: x.relu(),
        "relu6": lambda m, x: F.relu6(x),
    }[how]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.act = (
                nn.Linear(4, width),
                nn.Linear(width, width),
                nn.Linear(width, 2),
                nn.ReLU(),
            )

        def forward(self, x):
            x = relu(self, self.a(torch.flatten(x, 1)))
            return self.c(relu(self, self.b(x) + x))

    net = Net()
    x = (
        3 * torch.randn(T, N, 1, 2, 2)
        if frames
        else (3 * torch.randn(N, 1, 2, 2)).expand(T, N, 1, 2, 2)
    )
    v1 = v2 = 0.0
    logits = []
    for x_t in x:
        s1, v1 = fire(v1, net.a(x_t.flatten(1)))
        s2, v2 = fire(v2, net.b(s1) + s1)
        logits.append(net.c(s2))
    snn = spikify(net, LIF, T=T)
    torch.testing.assert_close(
        snn(x if frames else x[0]), torch.stack(logits).mean(0), rtol=1e-5, atol=1e-5
    )
    assert sum(isinstance(m, LIF) for m in snn.modules()) == 2


def test_shortcut_around_the_first_neuron_is_repeated():
    torch.manual_seed(0)
    net, x = Of(lambda m, x, s: torch.flatten(torch.cat([s + x, x], 1), 1)), torch.randn(2, 1, 2, 2)
    snn, v, out = spikify(net, LIF, T=3), 0.0, []
    for _ in range(3):
        s, v = fire(v, x)
        out.append(torch.cat([s + x, x], 1).flatten(1))
    torch.testing.assert_close(snn(x), torch.stack(out).mean(0))
    snn.per_step = True
    torch.testing.assert_close(snn(x), torch.stack(out))
    torch.testing.assert_close(snn(x.expand(3, *x.shape)), torch.stack(out))


def test_what_comes_before_the_first_neuron_runs_once():
    net, sizes = (
        nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.Flatten()
        ),
        [],
    )
    snn = spikify(net, LIF, T=4)
    for m in snn.modules():
        if isinstance(m, nn.Conv2d):
            m.register_forward_hook(lambda m, args, out: sizes.append(len(out)))
    snn(torch.rand(3, 1, 8, 8))
    snn(torch.rand(5, 3, 1, 8, 8))
    assert sizes == [3, 12, 15, 15]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.sampled_from([nn.Dropout, nn.Dropout2d]), st.integers(0, 10**6))
def test_dropout_keeps_its_mask_over_time(T, kind, seed):
    snn = spikify(
        nn.Sequential(nn.ReLU(), kind(0.5), nn.Flatten()), partial(LIF, decay=0.01), T=T
    ).train()
    snn.per_step = True
    torch.manual_seed(seed)
    out = snn(torch.ones(3, 4, 5, 5))
    torch.manual_seed(seed)
    mask = kind(0.5)(torch.ones(3, 4, 5, 5)).flatten(1)
    torch.testing.assert_close(out, mask.expand(T, -1, -1), rtol=0, atol=0)
    assert snn.eval()(torch.ones(3, 4, 5, 5)).unique().tolist() == [1.0]


def test_max_pool_is_an_or():
    snn = spikify(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()), LIF, T=1)
    snn.per_step = True
    spikes = (torch.rand(6, 2, 3, 8, 8) > 0.7).float()
    expected = spikes.unflatten(-1, (4, 2)).unflatten(-3, (4, 2)).bool().any(-1).any(-2)
    torch.testing.assert_close(snn(spikes), expected.float().flatten(2), rtol=0, atol=0)


FINE = {
    "flatten": lambda m, x, s: torch.flatten(s, 1),
    "method flatten": lambda m, x, s: s.flatten(1),
    "view of itself": lambda m, x, s: s.view(s.size(0), -1),
    "reshape of its shape": lambda m, x, s: s.reshape(s.shape[0], -1),
    "view -1": lambda m, x, s: s.view(-1, 16),
    "mean of last two": lambda m, x, s: s.mean((-2, -1)),
    "mean 2 3": lambda m, x, s: s.mean([2, 3]),
    "channels": lambda m, x, s: s[:, :1].flatten(1),
    "shuffle": lambda m, x, s: s.view(s.size(0), 1, 1, 4, 4).transpose(1, 2).flatten(1),
    "constant factor": lambda m, x, s: 2 * s.flatten(1),
    "permute": lambda m, x, s: s.permute(0, 2, 3, 1).flatten(1),
    "pad": lambda m, x, s: F.pad(s, (1, 1)).flatten(1),
    "parameter": lambda m, x, s: (s * m.scale).flatten(1),
    "repeated x": lambda m, x, s: (x * 2 + s).flatten(1),
    "chunk": lambda m, x, s: torch.cat([s, s], 1).chunk(2, 1)[0].flatten(1),
}
BATCH = {
    "flat": lambda m, x, s: torch.flatten(s),
    "fixed": lambda m, x, s: s.view(2, -1),
    "fixed reshape": lambda m, x, s: s.reshape((2, -1)),
    "mean": lambda m, x, s: s.mean(),
    "mean 0": lambda m, x, s: s.mean(0),
    "mean none": lambda m, x, s: s.mean(None),
    "mean -4": lambda m, x, s: s.mean(-4),
    "amax": lambda m, x, s: s.amax(dim=()),
    "cat 0": lambda m, x, s: torch.cat([s, s]),
    "cat dim 0": lambda m, x, s: torch.cat([s, s], dim=0),
    "transpose": lambda m, x, s: s.transpose(0, 1),
    "permute": lambda m, x, s: s.permute(1, 0, 2, 3),
    "first": lambda m, x, s: s[0],
    "half": lambda m, x, s: s[:1],
    "squeeze": lambda m, x, s: s.squeeze(),
}


@pytest.mark.parametrize("name", FINE)
def test_functions_that_spare_the_batch(name):
    net = Of(FINE[name], scale=nn.Parameter(torch.tensor(0.5)))
    net.scale.requires_grad_(name == "parameter")
    if name != "parameter":
        del net.scale
    x = torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(spikify(net, nn.ReLU, T=1)(x), net(x), rtol=0, atol=0)
    alone = torch.cat([spikify(net, LIF, T=3)(x[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(spikify(net, LIF, T=3)(x), alone)


@pytest.mark.parametrize("name", BATCH)
def test_functions_that_use_the_batch_are_refused(name):
    with pytest.raises(SpikifyError, match="the batch|batch size|images out of"):
        spikify(Of(BATCH[name]))


def test_batch_size_from_before_the_first_neuron():
    with pytest.raises(
        SpikifyError,
        match="view in the model's own forward uses 'size', a size from before the first neuron; take the size",
    ):
        spikify(Of(lambda m, x, s: s.view(x.size(0), -1)))


@pytest.mark.parametrize(
    "part, words",
    [
        (nn.Hardswish(), "Hardswish.*curve"),
        (nn.SiLU(), "SiLU.*curve"),
        (nn.GELU(), "GELU.*curve"),
        (nn.LeakyReLU(), "LeakyReLU.*curve"),
        (nn.PReLU(), "PReLU.*curve"),
        (nn.Hardtanh(), "Hardtanh.*curve"),
        (nn.Sigmoid(), "Sigmoid.*gate"),
        (nn.Hardsigmoid(), "Hardsigmoid.*gate"),
        (nn.Softmax(1), "Softmax.*gate"),
        (nn.LSTM(4, 4), "LSTM.*memory"),
        (nn.GRU(4, 4), "GRU.*memory"),
        (nn.MultiheadAttention(4, 2), "MultiheadAttention.*multiplies"),
        (nn.Flatten(0), "Flatten.*batch axis"),
        (nn.CosineSimilarity(), "CosineSimilarity.*not among"),
        (nn.AlphaDropout(), "AlphaDropout.*not among"),
        (LIF(), "LIF|torch.fx"),
    ],
)
def test_modules_are_refused_by_their_qualified_name(part, words):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = part

        def forward(self, x):
            return (
                self.inner(x, x, x)[0]
                if isinstance(part, nn.MultiheadAttention)
                else self.inner(x, x)
                if isinstance(part, nn.CosineSimilarity)
                else self.inner(x)
            )

    with pytest.raises(SpikifyError, match=words) as caught:
        spikify(nn.Sequential(nn.ReLU(), nn.Sequential(Block())))
    assert "1.0" in str(caught.value) and ";" in str(caught.value)


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda m, x, s: s if s.sum() > 0 else x, "cannot follow"),
        (lambda m, x, s: s * torch.sigmoid(s), "sigmoid"),
        (lambda m, x, s: s * s, "multiplies two activations"),
        (lambda m, x, s: F.gelu(s), "gelu"),
        (lambda m, x, s: F.dropout(s, 0.5), "dropout.*use nn.Dropout"),
        (lambda m, x, s: (s, x), "returns a tuple"),
        (lambda m, x, s: {"out": s}, "returns a dict"),
        (lambda m, x, s: x.flatten(1), "no ReLU between"),
        (lambda m, x, s: torch.softmax(s, 1), "softmax"),
        (lambda m, x, s: s @ s, "matmul"),
    ],
)
def test_functions_are_refused(function, words):
    with pytest.raises(SpikifyError, match=words):
        spikify(Of(function))


def test_control_flow_is_refused_with_the_innermost_module():
    class Choosy(nn.Module):
        def forward(self, x):
            return x if x.mean() > 0 else -x

    with pytest.raises(SpikifyError, match="cannot follow '1.0.0'.*without branches"):
        spikify(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Sequential(Choosy()))))


def test_in_place_relu_read_again_is_refused_and_harmless_ones_are_not():
    class Again(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.conv, self.act = nn.Conv2d(1, 1, 1), nn.ReLU(inplace)

        def forward(self, x):
            y = self.conv(x)
            return torch.flatten(self.act(y) + y, 1)

    spikify(Again(False))
    with pytest.raises(SpikifyError, match="module 'act' works in place.*read again by 'add'"):
        spikify(Again(True))
    with pytest.raises(SpikifyError, match="relu_ in the model's own forward works in place"):
        spikify(
            Of(
                lambda m, x, s: (
                    (x * 2).relu_().flatten(1) if False else (lambda y: y.relu_() + y)(x * 2)
                )
            )
        )


def test_other_refusals():
    with pytest.raises(ValueError, match="T is 0"):
        spikify(nn.Sequential(nn.ReLU()), T=0)
    with pytest.raises(SpikifyError, match="no ReLU"):
        spikify(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    with pytest.raises(SpikifyError, match="spikified already"):
        spikify(spikify(nn.Sequential(nn.ReLU())))
    with pytest.raises(SpikifyError, match="'unused.weight'.*no part in forward"):
        spikify(Of(lambda m, x, s: s, unused=nn.Linear(2, 2)))
    with pytest.raises(SpikifyError, match="takes 2 inputs"):
        spikify(Two())
    with pytest.raises(ValueError, match=r"input has shape \(4, 4\)"):
        spikify(nn.Sequential(nn.ReLU()))(torch.rand(4, 4))
    for name in ("mobilenet_v3_small", "efficientnet_b0"):
        with pytest.raises(SpikifyError, match=r"module 'features.0.2' \((Hardswish|SiLU)\)"):
            spikify(getattr(tv, name)(weights=None))


class Two(nn.Module):
    def forward(self, x, y):
        return torch.relu(x + y)


def test_original_is_left_alone_and_modes_are_kept():
    ann = build("resnet18").eval()
    before = copy.deepcopy(ann.state_dict())
    net = spikify(ann, LIF, T=2)
    assert not any(m.training for m in net.spikify.modules())
    net.train()(torch.rand(2, 3, 32, 32)).sum().backward()
    for key, value in ann.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    assert (
        not ann.training and ann.conv1.weight.grad is None and net.conv1.weight.grad.abs().max() > 0
    )


def test_pipe_s_runs_on_a_spikified_network():
    torch.manual_seed(0)
    x = torch.rand(40, 1, 6, 6)
    y = (x.mean((1, 2, 3)) > 0.5).long()
    ann = spikify(
        nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
        ),
        SharpenedReLU,
        T=1,
    )
    pretrain(ann, (x, y), epochs=2, lr=1e-2, batch_size=20)
    ann.eval()
    torch.testing.assert_close(copy_weights(ann, T=1).eval()(x), ann(x), rtol=0, atol=0)
    snn = copy_weights(ann, T=4)
    assert snn.T == 4 and ann.T == 1
    fit(snn, (x, y), epochs=1, lr=1e-3, batch_size=20)


# Class and settings


class Block(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return F.relu(self.conv(x)) + x


def shared():
    block = Block()
    return nn.Sequential(block, nn.ReLU(), nn.Dropout(), block, nn.Flatten(), nn.Linear(48, 4))


class Interleaved(nn.Module):
    "Layers that are not called in the order of the module tree."

    def __init__(self):
        super().__init__()
        self.relus, self.convs = (
            nn.ModuleList([nn.ReLU(), nn.ReLU()]),
            nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 6, 1)]),
        )
        self.last = nn.Linear(96, 4)

    def forward(self, x):
        x = self.relus[0](self.convs[0](x))
        x = F.relu(self.convs[1](x))
        return self.last(self.relus[1](self.convs[2](x)).flatten(1))


def copies(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    once = pickle.loads(pickle.dumps(net))
    return [
        once,
        pickle.loads(pickle.dumps(once)),
        torch.load(file, weights_only=False),
        copy.deepcopy(net),
        copy.deepcopy(once),
        copy.copy(net),
    ]


@pytest.mark.parametrize(
    "build",
    [
        lambda: spikify(build("squeezenet1_1"), T=3),
        lambda: spikify(shared(), partial(LIF, learn_decay=True), T=3),
        lambda: spikify(Interleaved().eval(), T=3),
        lambda: convert(Interleaved().eval(), torch.rand(4, 3, 4, 4), T=3),
        lambda: convert(
            nn.Sequential(Block(), nn.Flatten()), torch.rand(4, 3, 4, 4), T=3, per_channel=True
        ),
    ],
)
def test_copies_keep_class_settings_and_names(build):
    torch.manual_seed(0)
    net = build()
    net.per_step = True
    x = torch.rand(2, 3, 32, 32) if "SqueezeNet" in type(net).__name__ else torch.rand(2, 3, 4, 4)
    for again in copies(net):
        assert (
            isinstance(again, SpikingModel)
            and type(again).__name__ == type(net).__name__
            and (again.T, again.per_step) == (3, True)
        )
        assert list(again.state_dict()) == list(net.state_dict()) and [
            m.training for m in again.modules()
        ] == [m.training for m in net.modules()]
        (
            torch.manual_seed(1),
            torch.testing.assert_close(again(x), (torch.manual_seed(1), net(x))[1], rtol=0, atol=0),
        )
    again = copies(net)[0]
    again.T, again.per_step = 5, False
    again.eval(), net.eval()
    net.T, net.per_step = 5, False
    torch.testing.assert_close(again(x), net(x), rtol=0, atol=0)


def test_steps_travel_in_a_state_dict_and_may_differ_only_from_one():
    net = shared()
    three, five, one = spikify(net, T=3), spikify(net, T=5), spikify(net, nn.ReLU, T=1)
    assert one.state_dict().keys() == net.state_dict().keys()
    with pytest.raises(ValueError, match="T = 3 there, 5 here"):
        five.load_state_dict(three.state_dict())
    for a, b in ((one, three), (three, one), (three, net), (three, spikify(net, T=3))):
        a.load_state_dict(b.state_dict())


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "4", None, True, torch.tensor(3)])
def test_steps_are_a_whole_number(wrong):
    net = spikify(shared(), T=3)
    with pytest.raises(
        (TypeError, ValueError), match="T is .*expected a whole number of at least 1"
    ):
        net.T = wrong
    with pytest.raises(
        (TypeError, ValueError), match="spikify: T is .*expected a whole number of at least 1"
    ):
        spikify(shared(), T=wrong)
    with pytest.raises(TypeError, match="per_step is"):
        net.per_step = 1
    assert net.T == 3 and not net.per_step


@pytest.mark.parametrize(
    "neuron, words",
    [
        (LIF(), "neuron is a module LIF, one layer"),
        ("LIF", "neuron is 'LIF'"),
        (lambda: 3, r"neuron\(\) returned 3"),
        (lambda x: x, "without arguments failed"),
        ((lambda layer: lambda: layer)(LIF()), "the same LIF again"),
    ],
)
def test_what_makes_neurons(neuron, words):
    with pytest.raises((TypeError, ValueError), match=words):
        spikify(shared(), neuron)


# Names


def test_neurons_have_the_names_of_their_relus():
    net = spikify(tv.resnet18(num_classes=2), LIF, T=2)
    names = [name for name, module in net.named_modules() if isinstance(module, LIF)]
    assert names[:3] == ["relu", "layer1.0.relu", "layer1.0.relu_1"] and len(names) == 17
    assert [
        name
        for name, module in spikify(shared(), LIF).named_modules(remove_duplicate=False)
        if isinstance(module, LIF)
    ] == ["0.relu", "0.relu_1", "1", "3.relu", "3.relu_1"]
    with monitor(net) as seen:
        net(torch.rand(1, 3, 32, 32))
    table = synops(net, torch.rand(1, 3, 32, 32))
    assert list(seen) == names and set(names) == set(table.index[table.updates > 0])


def test_names_that_are_taken():
    class Taken(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.relu_1, self.act_1, self.act = (
                nn.Linear(2, 2),
                nn.Identity(),
                nn.Identity(),
                nn.ReLU(),
            )

        def forward(self, x):
            return F.relu(self.relu_1(self.act_1(self.act(self.act(self.relu(x)))))).flatten(1)

    net = spikify(Taken(), LIF)
    assert [name for name, module in net.named_modules() if isinstance(module, LIF)] == [
        "act",
        "act_2",
        "relu_2",
    ] and net(torch.rand(2, 1, 2, 2)).shape == (2, 4)


def test_converted_neurons_come_in_the_order_of_the_activations():
    torch.manual_seed(0)
    ann, x = Interleaved().eval(), torch.rand(8, 3, 4, 4)
    with torch.no_grad():
        a = F.relu(ann.convs[0](x))
        b = F.relu(ann.convs[1](a))
        largest = [each.max() for each in (a, b, F.relu(ann.convs[2](b)))]
    assert [neuron.theta for neuron in neurons(convert(ann, x, threshold="max"))] == largest


# One object at two places


def test_a_block_used_twice_keeps_its_tie_and_both_its_names():
    torch.manual_seed(0)
    ann, x = shared().eval(), torch.rand(2, 3, 4, 4)
    net = spikify(ann, nn.ReLU, T=1)
    torch.testing.assert_close(net(x), ann(x), rtol=0, atol=0)
    assert net.get_submodule("0.conv") is net.get_submodule("3.conv")
    other = shared().eval()
    net.load_state_dict(other.state_dict())
    torch.testing.assert_close(net(x), other(x), rtol=0, atol=0)
    snn, v1, v2, v3, answers = spikify(ann, LIF, T=4), 0.0, 0.0, 0.0, []
    for _ in range(4):
        s, v1 = fire(v1, ann[0].conv(x))
        s, v2 = fire(v2, s + x)
        t, v3 = fire(v3, ann[0].conv(s))
        answers.append(ann[5](t.flatten(1) + s.flatten(1)))
    torch.testing.assert_close(snn(x), torch.stack(answers).mean(0))


# Axes


@pytest.mark.parametrize(
    "part",
    [
        nn.Conv3d(1, 1, 1),
        nn.MaxPool3d(1),
        nn.AvgPool3d(1),
        nn.AdaptiveAvgPool3d(1),
        nn.BatchNorm3d(1),
        nn.ConvTranspose3d(1, 1, 1),
        nn.Dropout3d(),
    ],
)
def test_volumes_are_refused(part):
    with pytest.raises(SpikifyError, match="five axes are frames"):
        spikify(nn.Sequential(part, nn.ReLU(), nn.Flatten()))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x, s: s.flatten(1).T,
        lambda m, x, s: s.mT,
        lambda m, x, s: s.transpose(dim0=1, dim1=0),
        lambda m, x, s: s.transpose(1, dim1=0),
        lambda m, x, s: s.view(s.size(1), -1),
        lambda m, x, s: s.view(s.shape[2], -1),
        lambda m, x, s: s.view(s.size(0) // 2, -1),
        lambda m, x, s: torch.mul(input=s, other=s),
    ],
)
def test_other_ways_to_the_batch_are_refused(function):
    with pytest.raises(SpikifyError, match="batch|multiplies two"):
        spikify(Of(function))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x, s: s.flatten(1).mean((-2, -1)),
        lambda m, x, s: s.flatten(1).transpose(-2, -1),
        lambda m, x, s: s.flatten(1).sum(-1).mean(-1),
        lambda m, x, s: F.pad(s.flatten(1), (0, 0, 1, 1)),
    ],
)
def test_axes_counted_from_the_end_are_looked_at_when_the_network_runs(function):
    with pytest.raises(ValueError, match="is the batch, which contains time as well"):
        spikify(Of(function))(torch.rand(2, 1, 4, 4))


def test_what_arrives_is_checked():
    net = spikify(shared().eval(), T=2)
    for wrong in (
        [1],
        torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        torch.rand(0, 2, 3, 4, 4),
        torch.rand(3, 4, 4),
    ):
        with pytest.raises((TypeError, ValueError), match="spikify: input"):
            net(wrong)
    assert net(torch.rand(2, 0, 3, 4, 4)).shape == (0, 4)


# Advice that applies


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.LogSoftmax(1), nn.Sigmoid()])
def test_a_softmax_at_the_end_is_to_be_dropped(end):
    with pytest.raises(SpikifyError, match="at the end.*drop it") as caught:
        spikify(nn.Sequential(nn.ReLU(), nn.Flatten(), end))
    assert "resnet" not in str(caught.value)
    with pytest.raises(SpikifyError, match="log_softmax.*drop it"):
        spikify(Of(lambda m, x, s: F.log_softmax(s.flatten(1), 1)))


def test_functions_of_weights_alone_are_left_as_they_are():
    scale, x = nn.Parameter(torch.rand(3)), torch.rand(2, 3, 4, 4)
    net = Of(
        lambda m, x, s: (
            s * m.scale.view(1, -1, 1, 1) + torch.sigmoid(m.scale).view(1, -1, 1, 1)
        ).flatten(1),
        scale=scale,
    )
    torch.testing.assert_close(spikify(net, nn.ReLU, T=3)(x), net(x))
    assert list(spikify(net, nn.ReLU, T=1).state_dict()) == ["scale"]
    del net.scale
    net.register_buffer(
        "scale", torch.rand(3)
    )  # torch.fx takes what is computed from a buffer as a constant, so the buffer itself would be lost
    with pytest.raises(
        SpikifyError, match="'scale'.*store buffers in the shape in which forward uses them"
    ):
        spikify(net)


def test_spiking_networks_are_refused_wherever_they_are():
    for net in (
        spikify(shared()),
        nn.Sequential(spikify(shared()), nn.ReLU()),
        nn.Sequential(nn.ReLU(), LIF()),
    ):
        for call in (spikify, relu_places):
            with pytest.raises(SpikifyError, match="already"):
                call(net)
    own = Of(lambda m, x, s: s)
    own.spikify = 3
    with pytest.raises(SpikifyError, match="attribute 'spikify' of its own"):
        spikify(own)
