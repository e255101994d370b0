"""Networks as files: everything that is built here comes back to the bit in a fresh process; nothing from a file runs; damage and hostility are refused."""

import dataclasses
import json
import os
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load, save
from torch import fx, nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vgg import make_layers

from neurobridge.core import load_network, save_network, seed_everything
from neurobridge.core.networks import _FORMAT, _checksum
from neurobridge.cornet import (
    cornet_r,
    cornet_rt,
    cornet_variant,
    cornet_z,
    for_inference,
    for_training,
)
from neurobridge.g2g import EnsembleConv2d, G2GNet, wire
from neurobridge.snn import (
    LIF,
    MembraneReadout,
    RateReadout,
    SpikeReadout,
    TimeNet,
    atan,
    conv_norm,
    recompute_steps,
    spikify,
    spiking_convnet,
    spiking_resnet,
    spiking_vgg,
)
from neurobridge.transfer import SharpenedReLU, VideoNet, calibrate, convert, use_qcfs

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[2]


def images(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(3))


GRAY, COLOUR, FRAMES = images(2, 1, 12, 12), images(2, 3, 32, 32), images(3, 2, 2, 16, 16)


class Pooled(nn.Module):
    "A small network with average pooling, as `convert` takes it."

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.linear = (
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.Linear(4 * 25, 3),
        )

    def forward(self, x):
        return self.linear(F.avg_pool2d(torch.relu(self.norm(self.conv(x))), 2).flatten(1))


def with_times(net, times):
    net.times = times
    return net


def recomputed(net):
    net.run = partial(recompute_steps, steps=2)
    return net


def per_step(net):
    net.per_step = True
    return net


def calibrated():
    net = Pooled()
    snn = convert(net, GRAY, T=8)
    return calibrate(snn, net, GRAY, T=8) or snn


def readout(kind):
    return TimeNet(conv_norm(1, 4), LIF, nn.Sequential(), kind, 4, pool=2)


def drawn(net):
    "Give batch norm statistics of its own, so that they matter."
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net


def headed(net):
    "Give the last layer weights other than zero."
    nn.init.normal_(net.heads.head.weight)
    return net


VGG11 = [8, "M", 16, "M", 16, 16, "M", 16, 16, "M", 16, 16, "M"]
CHANNELS = dict(in_channels=3, classes=5, width=4)
BUILDERS = {
    "convnet": (lambda: spiking_convnet(partial(LIF, decay=0.9, v_th=0.7), classes=3, width=4, T=3), GRAY),
    "frozen": (lambda: spiking_convnet(classes=3, width=4).requires_grad_(False), GRAY),
    "learned decay": (lambda: spiking_convnet(partial(LIF, learn_decay=True, surrogate=atan(3.0)), classes=3, width=4), GRAY),
    "per step": (lambda: per_step(spiking_convnet(classes=3, width=4)), GRAY),
    "recomputed": (lambda: recomputed(spiking_convnet(classes=3, width=4)), GRAY),
    "sharpened": (lambda: spiking_convnet(SharpenedReLU, classes=3, width=4, T=1), GRAY),
    "double": (lambda: spiking_convnet(classes=3, width=4).double(), GRAY.double()),
    "bfloat16": (lambda: spiking_convnet(nn.ReLU, classes=3, width=4, T=1).bfloat16(), GRAY.bfloat16()),
    "channels last": (lambda: spiking_convnet(classes=3, width=4).to(memory_format=torch.channels_last), GRAY),
    "membrane": (lambda: readout(MembraneReadout(16, 3, decay=0.7)), GRAY),
    "spike": (lambda: readout(SpikeReadout(16, 3, partial(LIF, v_th=0.02))), GRAY),
    **{shortcut: (lambda shortcut=shortcut: spiking_resnet((1, 1), T=3, width=4, classes=5, in_channels=3, shortcut=shortcut), COLOUR) for shortcut in ("vanilla", "sew", "ms")},
    "vgg": (lambda: spiking_vgg(T=2, **CHANNELS), COLOUR),
    "resnet18": (lambda: spikify(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3), partial(LIF, decay=0.8), T=2), COLOUR),
    "vgg11_bn": (lambda: per_step(spikify(drawn(nn.Sequential(make_layers(VGG11, batch_norm=True), nn.Flatten(), nn.Linear(16, 3))).eval(), T=2)), COLOUR),
    "mobilenet": (lambda: torchvision.models.mobilenet_v2(num_classes=3), COLOUR),
    "vit": (lambda: headed(torchvision.models.VisionTransformer(32, 16, 1, 2, 8, 16, num_classes=3)), COLOUR),
    "converted": (lambda: convert(drawn(Pooled()), GRAY, T=8), GRAY),
    "per channel": (lambda: convert(drawn(Pooled()), GRAY, T=8, per_channel=True, threshold="max"), GRAY),
    "calibrated": (calibrated, GRAY),
    "quantised": (lambda: use_qcfs(Pooled(), levels=4), GRAY),
    "converted QCFS": (lambda: convert(use_qcfs(Pooled(), levels=4), T=8), GRAY),
    "converted TimeNet": (lambda: convert(spiking_convnet(nn.ReLU, classes=3, width=4, T=1), GRAY, T=8), GRAY),
    "cornet z": (lambda: cornet_z(**CHANNELS), COLOUR),
    "cornet r": (lambda: with_times(cornet_r(**CHANNELS), 3), COLOUR),
    "cornet rt": (lambda: cornet_rt(**CHANNELS), COLOUR),
    "cornet s": (lambda: cornet_variant(small_images=True, **CHANNELS), COLOUR),
    "cornet s training": (lambda: for_training(cornet_variant(small_images=True, **CHANNELS)), COLOUR),
    "cornet s inference": (lambda: for_inference(cornet_variant(small_images=True, **CHANNELS).eval()), COLOUR),
    **{f"cornet {name} {value}": (lambda given={name: value}: cornet_variant(small_images=True, **CHANNELS, **given), COLOUR)
       for name, value in (("loop", "conv2"), ("gate", "soft"), ("convs", 2), ("skip", False), ("norm", "group"), ("areas", 5), ("scale", 2))},
    **{f"g2g {form}": (lambda form=form: G2GNet((1, 12, 12), 3, width=64, form=form), GRAY) for form in ("masked", "ensembles", "er", "dense")},
    **{f"g2g {grouping}": (lambda grouping=grouping: G2GNet((1, 12, 12), 3, width=64, form="ensembles", grouping=grouping), GRAY) for grouping in ("index", "random", "mixer")},
    "g2g spiking": (lambda: G2GNet((1, 12, 12), 3, width=64, neuron=LIF, T=3), GRAY),
    "wired": (lambda: wire(nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 3)), "masked", grouping="random"), GRAY),
    "ensemble convolution": (lambda: nn.Sequential(EnsembleConv2d(3, 8, groups=1), nn.Flatten()), COLOUR),
    "video": (lambda: VideoNet(channels=(4, 8), features=6, hidden=5, classes=3), FRAMES),
    "user": (Pooled, GRAY),
}  # fmt: skip


def names_held(net):
    return [name for name, _ in (*net.named_parameters(), *net.named_buffers())]


AGAIN = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_networks as here
from neurobridge.core import load_network
torch.set_num_threads(1)
folder = Path(sys.argv[2])
answers = {}
for file in folder.glob("*.net"):
    net = load_network(file, classes=[here.Pooled])
    with torch.no_grad():
        training = {name: module.training for name, module in net.named_modules()}
        answers[file.stem] = (net.eval()(here.BUILDERS[file.stem][1]), training, [p.requires_grad for p in net.parameters()], here.names_held(net))
torch.save(answers, folder / "answers.pt")
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder, nets = tmp_path_factory.mktemp("nets"), {}
    torch.set_num_threads(1)
    for name, (build, _) in BUILDERS.items():
        seed_everything(0)
        nets[name] = build()
        save_network(nets[name], folder / f"{name}.net")
    subprocess.run(
        [sys.executable, "-c", AGAIN, str(Path(__file__).parent), str(folder)],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return nets, torch.load(folder / "answers.pt"), folder


@pytest.mark.long
@pytest.mark.parametrize("name", BUILDERS)
def test_a_fresh_process_computes_the_same_to_the_bit(saved, name):
    nets, answers, _ = saved
    net, (answer, training, frozen, keys) = nets[name], answers[name]
    assert training == {name: module.training for name, module in net.named_modules()}
    assert frozen == [p.requires_grad for p in net.parameters()] and keys == names_held(net)
    with torch.no_grad():
        expected = net.eval()(BUILDERS[name][1])
    assert (
        expected.dtype == answer.dtype
        and torch.equal(expected, answer)
        and expected.abs().sum() > 0
    )


@pytest.mark.parametrize("name", BUILDERS)
def test_what_comes_back_can_be_saved_again_and_trained(saved, tmp_path, name):
    first = load_network(saved[2] / f"{name}.net", classes=[Pooled])
    save_network(first, tmp_path / "again.net")
    assert (tmp_path / "again.net").read_bytes() == (saved[2] / f"{name}.net").read_bytes()
    if "inference" not in name:  # it holds constants, and refuses to be a state dict
        first.load_state_dict({k: v.clone() for k, v in saved[0][name].state_dict().items()})


def test_settings_can_be_set_afterwards(saved):
    for name in ("convnet", "resnet18", "converted", "converted TimeNet"):
        net, again = saved[0][name], load_network(saved[2] / f"{name}.net")
        for T, steps in ((7, True), (2, False)):
            net.T = again.T = T
            net.per_step = again.per_step = steps
            with torch.no_grad():
                expected = net.eval()(BUILDERS[name][1])
                assert (
                    torch.equal(again.eval()(BUILDERS[name][1]), expected)
                    and expected.ndim == 2 + steps
                )


def test_groups_and_masks_come_back(saved):
    for name in ("g2g masked", "g2g random", "wired"):
        mine = dict(saved[0][name].named_buffers())
        theirs = dict(load_network(saved[2] / f"{name}.net").named_buffers())
        assert (
            mine
            and set(mine) == set(theirs)
            and all(torch.equal(mine[key], theirs[key]) for key in mine)
        )
        assert set(load_network(saved[2] / f"{name}.net").state_dict()) == set(
            saved[0][name].state_dict()
        )


# What is shared stays shared


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.read, self.write = nn.Linear(3, 3), nn.Linear(3, 3)
        self.write.weight = self.read.weight
        self.scale, self.kept = torch.tensor(2.0), [1, (2.5, "a"), {"b": None, 3: float("inf")}]
        self.dtype, self.shape, self.one = torch.float64, torch.Size([1, 2]), np.float32(0.5)
        self.table, self.block = np.arange(4).reshape(2, 2), slice(None, 3, None)
        self.register_buffer("place", torch.arange(3), persistent=False)
        self.settings = Settings(0.5, "soft")
        self.act = partial(F.leaky_relu, negative_slope=0.3)

    def forward(self, x):
        return self.act(self.write(self.read(x)[:, self.place]) * self.scale)


@dataclasses.dataclass(frozen=True)
class Settings:
    decay: float
    reset: str


def test_ties_and_plain_attributes(tmp_path):
    net, file = Tied(), tmp_path / "tied.net"
    save_network(net, file)
    again = load_network(file, classes=[Tied, Settings])
    assert again.write.weight is again.read.weight and len(list(again.parameters())) == 3
    with torch.no_grad():
        again.read.weight.zero_()
    assert not again.write.weight.any() and net.write.weight.any()
    for name in ("kept", "dtype", "shape", "one", "block", "settings", "scale"):
        assert getattr(again, name) == getattr(net, name), name
    assert (
        np.array_equal(again.table, net.table)
        and again.place.equal(net.place)
        and "place" not in again.state_dict()
    )


def test_a_class_handed_over_does_not_take_the_place_of_another(tmp_path):
    Linear = type("Linear", (nn.Module,), {"__module__": "elsewhere"})
    save_network(nn.Linear(2, 2), tmp_path / "a.net")
    assert type(load_network(tmp_path / "a.net", classes=[Linear])) is nn.Linear
    first, second = (type("Net", (nn.Module,), {"__module__": home}) for home in ("one", "two"))
    save_network(nn.Sequential(first(), second()), tmp_path / "b.net")
    assert [type(part) for part in load_network(tmp_path / "b.net", classes=[first, second])] == [
        first,
        second,
    ]


# Refused when saving


def compiled(net):
    net.compile()
    return net


def hooked(attach):
    net = nn.Sequential(nn.Linear(2, 2))
    getattr(net[0], attach)(lambda *given: None)
    return net


def with_attribute(value):
    net = nn.Sequential(nn.Linear(2, 2))
    net[0].own = value
    return net


class Traced(nn.Module):
    def forward(self, x):
        return own_function(x)


@fx.wrap
def own_function(x):
    return x + 1


def endless():
    net = with_attribute(1)
    net[0].own = [net]
    return net


@pytest.mark.parametrize("build, said", [
    (lambda: with_attribute(lambda x: x), "Sequential.0.own is a function of your own"),
    (lambda: with_attribute(torch.Generator()), "Sequential.0.own is a Generator"),
    (lambda: with_attribute({"a": [object()]}), r"Sequential.0.own\['a'\]\[0\] is a object"),
    (lambda: with_attribute(torch.zeros(2).to_sparse()), "Sequential.0.own is .*sparse"),
    (lambda: with_attribute(torch.zeros(2, device="meta")), "has no values"),
    (lambda: hooked("register_forward_hook"), "Sequential.0 is a Linear with functions attached"),
    (lambda: hooked("register_forward_pre_hook"), "functions attached"),
    (lambda: hooked("register_full_backward_hook"), "functions attached"),
    (lambda: compiled(nn.Linear(2, 2)), "compiled"),
    (lambda: torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "class torch makes as it goes|is a "),
    (lambda: fx.symbolic_trace(Traced()), "own_function"),
    (endless, "contains itself"),
])  # fmt: skip
def test_what_cannot_be_kept_is_refused_by_name(tmp_path, build, said):
    (tmp_path / "net").write_text("before")
    with pytest.raises(ValueError, match=said):
        save_network(build(), tmp_path / "net")
    assert (tmp_path / "net").read_text() == "before"


# Other people's files


def forged(tmp_path, change, net=None):
    "A file with a right checksum whose description has been changed."
    save_network(net or spikify(nn.Sequential(nn.Linear(2, 2), nn.ReLU())), tmp_path / "good.net")
    content = (tmp_path / "good.net").read_bytes()
    facts = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    facts = json.loads(facts["network"])
    structure, tensors = json.loads(facts["structure"]), load(content)
    change(structure)
    text = json.dumps(structure)
    (tmp_path / "bad.net").write_bytes(
        save(
            tensors,
            {
                "network": json.dumps(
                    {"format": _FORMAT, "structure": text, "sha256": _checksum(text, tensors)}
                )
            },
        )
    )
    return tmp_path / "bad.net"


def graph(structure):
    return next(module for module in structure["modules"] if "graph" in module)


def node(structure, op):
    return next(each for each in graph(structure)["graph"] if each["op"] == op)


def at(where, **new):
    def change(structure):
        where(structure).update(new)

    return change


def last(structure):
    return structure["modules"][-1]


MARK = "EXPLODED"
CODE = "__import__('os').environ.__setitem__('EXPLODED', '1')"


@pytest.mark.parametrize("change", [
    at(last, **{"class": ["os", "system"]}), at(last, **{"class": ["subprocess", "Popen"]}), at(last, **{"class": ["neurobridge.lab.run.execute", "Run"]}),
    at(last, **{"class": ["torch.nn.modules.linear", "torch"]}), at(last, **{"class": ["neurobridge.core.files", "os"]}),
    at(last, **{"class": ["torch.nn.modules.container", "Sequential.__init__"]}), at(last, **{"class": ["torch.nn.modules.nothing", "Linear"]}),
    at(last, attributes={"forward": ["function", "os", "system"]}), at(last, attributes={"forward": ["function", "torch", "load"]}),
    at(last, attributes={"forward": ["function", "neurobridge.core.files", "atomic_write"]}), at(last, attributes={"x": ["partial", "print", ["list"], ["dict"]]}),
    at(last, attributes={"__class__": 1}), at(last, attributes={"_forward_hooks": ["dict"]}), at(last, attributes={"_graph": 1}), at(last, attributes={"a b": 1}),
    at(last, attributes={"x": ["module", 10**6]}), at(last, attributes={"x": ["module", -1]}), at(last, attributes={"x": ["tensor", 99, False, "rows"]}),
    at(last, attributes={"x": ["pickle", "abc"]}), at(last, attributes={"x": {"a": 1}}), at(last, attributes={"x": ["dtype", "load"]}),
    at(last, attributes={"x": ["dataclass", ["neurobridge.lab.run.execute", "Run"], ["dict"]]}),
    at(last, modules={"a.b": None, "spikify": ["tensor", 0, True, "rows"]}), at(last, name="x:\n import os"), at(last, name=CODE),
    at(lambda s: node(s, "placeholder"), target=f"x={CODE}"), at(lambda s: node(s, "placeholder"), name=f"x={CODE}"), at(lambda s: node(s, "placeholder"), target="*x"),
    at(lambda s: node(s, "call_module"), target=f"spikify.enter({CODE})"), at(lambda s: node(s, "call_module"), target="spikify.nothing"),
    at(lambda s: node(s, "call_module"), op="call_method", target=f"relu({CODE})"), at(lambda s: node(s, "call_module"), op="call_method", target="__reduce__"),
    at(lambda s: node(s, "call_module"), op="call_function", target=["builtins", "eval"]), at(lambda s: node(s, "call_module"), op="call_function", target=["torch", "load"]),
    at(lambda s: node(s, "call_module"), op="call_function", target=["builtins", "getattr"], args=["tuple", ["node", "input_1"], "__class__"]),
    at(lambda s: node(s, "call_module"), op="get_attr", target="forward"), at(lambda s: node(s, "call_module"), op="exec"),
    at(lambda s: node(s, "call_function"), kwargs=["dict", [f"a={CODE}", 1]]), at(lambda s: node(s, "output"), args=["tuple", ["node", "nowhere"]]),
    lambda s: s.update(root=99), lambda s: s.update(root="0"), lambda s: s.pop("root"), lambda s: s.update(modules=[]), lambda s: last(s).pop("graph"),
    lambda s: s["modules"][0].update(parameters={"weight": ["tensor", 0, True, "rows"]}),
])  # fmt: skip
def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path, monkeypatch, change):
    monkeypatch.delenv(MARK, raising=False)
    before = set(sys.modules)
    with pytest.raises(ValueError, match=r"load_network: .*bad\.net .*cannot be read"):
        load_network(forged(tmp_path, change))(torch.zeros(1, 2))
    assert MARK not in os.environ and not {
        name for name in set(sys.modules) - before if name.startswith("neurobridge.lab")
    }


def test_a_deep_description_is_refused(tmp_path):
    def bury(structure):
        value = 1
        for _ in range(100_000):
            value = ["list", value]
        last(structure)["attributes"] = {}
        structure["deep"] = None
        structure["buried"] = value

    with pytest.raises((ValueError, RecursionError)):
        load_network(forged(tmp_path, bury))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    file = tmp_path_factory.mktemp("whole") / "net"
    save_network(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), file)
    return file.read_bytes()


def test_every_truncation_and_many_flips_are_refused(tmp_path, whole):
    file = tmp_path / "net"
    for length in {0, 1, 7, 8, 9, len(whole) - 1, *range(0, len(whole), 37)}:
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot be read"):
            load_network(file)
    random = np.random.default_rng(0)
    unharmed = 0
    for position in random.permutation(len(whole))[:300]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(random.integers(8))
        file.write_bytes(damaged)
        try:
            load_network(file)
            unharmed += 1
        except ValueError:
            pass
    facts = (
        len('"neurobridge":"0.1.0","torch":""') + 60
    )  # two facts for people, outside the checksum
    assert unharmed <= 300 * facts / len(whole)


def test_a_file_that_is_too_large_or_none_is_refused(tmp_path, whole):
    (tmp_path / "net").write_bytes(whole)
    with pytest.raises(ValueError, match="more than the 100 that one file may take"):
        load_network(tmp_path / "net", max_bytes=100)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_network(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="a folder"):
        load_network(tmp_path)
    for wrong in ("MyNet", Pooled, [Pooled()], [int], 3):
        with pytest.raises(TypeError, match="classes"):
            load_network(tmp_path / "net", classes=wrong)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FileNotFoundError, match="no regular file"):
        load_network(tmp_path / "fifo")


def test_weights_alone_are_not_a_network(tmp_path):
    (tmp_path / "net").write_bytes(save(nn.Linear(2, 2).state_dict()))
    with pytest.raises(ValueError, match="load_state_dict"):
        load_network(tmp_path / "net")


def test_no_function_that_a_file_may_name_touches_the_outside():
    from neurobridge.core import networks as page

    for home, (module, names) in page._homes().items():
        for name in names:
            found = getattr(module, name, None)
            assert (
                found is None
                or isinstance(found, types.FunctionType | types.BuiltinFunctionType)
                or callable(found)
            ), (home, name)
    forbidden = {
        "load",
        "save",
        "compile",
        "jit",
        "hub",
        "ops",
        "from_file",
        "set_default_dtype",
        "manual_seed",
        "__reduce__",
        "data_ptr",
        "set_",
        "apply_",
        "map_",
        "share_memory_",
        "backward",
        "register_hook",
    }
    assert not forbidden & (
        page._TORCH | page._METHODS | page._FUNCTIONAL | page._OPERATOR
    ) and not any(name.startswith("__") for name in page._METHODS)


def test_readout_is_kept(tmp_path):
    net = readout(RateReadout(16, 3))
    save_network(net, tmp_path / "a.net")
    assert type(load_network(tmp_path / "a.net").readout) is RateReadout
