"CORnets: settings that travel, files in other wrappers, fast forms of foreign layers, and what is refused in words."

import argparse
import io
import urllib.error

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from torch import nn

from neurobridge.core.convolution import flat_weights
from neurobridge.cornet import (
    cornet_r,
    cornet_rt,
    cornet_s,
    cornet_variant,
    cornet_z,
    for_inference,
    for_training,
    load_official,
    multiplications,
)
from neurobridge.cornet.cpu import winograd_weights
from neurobridge.cornet.weights import official_checkpoint

SMALL = dict(width=4, in_channels=1, classes=3)
X = torch.rand(2, 1, 32, 32)


def small(**more):
    return cornet_variant(**SMALL | dict(small_images=True) | more)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


PAIRS = {
    "steps of R": (lambda: cornet_r(times=5, **SMALL), lambda: cornet_r(times=3, **SMALL)), "R and RT": (lambda: cornet_r(**SMALL), lambda: cornet_rt(**SMALL)),
    "R and RT of three steps": (lambda: cornet_r(times=3, **SMALL), lambda: cornet_rt(times=3, **SMALL)), "gates": (lambda: small(gate="soft", loop="conv1", norm="group"), lambda: small(norm="group")),
    "steps of group norms": (lambda: small(norm="group"), lambda: small(norm="group", times=(2, 2, 2))), "order of S and RT": (lambda: cornet_rt(**SMALL), lambda: cornet_rt(times=4, **SMALL)),
}  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("way", [lambda state: state, through_a_file], ids=["memory", "file"])
def test_a_state_dict_knows_steps_and_circuit(pair, way):
    for there, here in (PAIRS[pair], PAIRS[pair][::-1]):
        donor, model = there(), here()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(ValueError, match="settings differ"):
            model.load_state_dict(way(donor.state_dict()))
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
        twin = there()
        twin.load_state_dict(way(donor.state_dict()))
        torch.testing.assert_close(twin.eval()(X), donor.eval()(X))


def test_settings_of_a_changed_network():
    model, other = small(), small()
    model.V4.times = 2
    assert "_extra_state" in model.state_dict() and "_extra_state" not in other.state_dict()
    with pytest.raises(ValueError, match="V4.* = .*'times': 2"):
        other.load_state_dict(model.state_dict())
    load_official(
        other,
        {
            key: value
            for key, value in model.state_dict().items()
            if not key.endswith("_extra_state")
        },
    )
    assert torch.equal(other.V1.conv1.weight, model.V1.conv1.weight)


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "model.", "module.module.", "_orig_mod.module.", "net.backbone."],
)
@pytest.mark.parametrize("entry", [None, "state_dict", "model_state_dict", "model"])
def test_weights_in_other_wrappers(prefix, entry):
    donor = cornet_z(**SMALL)
    state = {prefix + key: value for key, value in donor.state_dict().items()}
    held = state if entry is None else {entry: state, "epoch": 3}
    for model in (cornet_z(**SMALL), nn.DataParallel(cornet_z(**SMALL))):
        assert load_official(model, held) is model
        assert all(
            torch.equal(a, b)
            for a, b in zip(model.state_dict().values(), donor.state_dict().values(), strict=True)
        )


def test_r_and_rt_are_told_apart_by_the_trainings_settings():
    state = cornet_r(**SMALL).state_dict()
    for flags in ({"model": "R"}, argparse.Namespace(model="R")):
        load_official(cornet_r(**SMALL), {"flags": flags, "state_dict": dict(state)})
        with pytest.raises(ValueError, match="of CORnet-R, the model is CORnet-RT"):
            load_official(cornet_rt(**SMALL), {"flags": flags, "state_dict": dict(state)})


@pytest.mark.parametrize(("call", "said"), [
    (lambda: cornet_s(pretrained=True), "pretrained is no argument; weights='official'"), (lambda: cornet_s(True), "weights is True"), (lambda: cornet_s(times=5), "times is 5"), (lambda: cornet_s(widht=8), "did you mean width"),
    (lambda: cornet_z(nn.ReLU()), "weights"), (lambda: cornet_z(width=4.5), "width"), (lambda: small(times="222"), "times"), (lambda: small(skip=1), "skip"),
    (lambda: small()(torch.rand(1, 3, 32, 32)), "images of 1 channels"), (lambda: small()(torch.rand(1, 32, 32)), r"x is .*\[N, C, H, W\]"), (lambda: cornet_r(**SMALL)(X.long()), "x is"), (lambda: load_official(small(), 3), "checkpoint is 3"),
    (lambda: flat_weights(torch.rand(2, 3, 4, 4)), "weight is"), (lambda: winograd_weights(torch.rand(2, 3, 1, 1)), "weight is"),
])  # fmt: skip
def test_slips_in_words(call, said):
    with pytest.raises((TypeError, ValueError), match=said):
        call()


def test_numbers_of_numpy():
    assert (
        cornet_r(times=np.int64(2), **SMALL).times == 2
        and small(times=np.array([1, 2, 1]).tolist()).V4.times == 2
    )


def test_without_internet_the_message_says_where_to_put_the_file(tmp_path, monkeypatch):
    def offline(url, path, progress):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(
        OSError,
        match="cornet_s-1d3f7974.pth could not be downloaded; .* put it there as .*cornet_s-1d3f7974.pth",
    ):
        official_checkpoint("s", root=tmp_path)


# Fast forms


def hooked(net):
    net.V4.conv2.register_forward_hook(lambda *_: None)


def pruned(net):
    nn.utils.prune.l1_unstructured(net.IT.conv1, "weight", 0.5)


def with_bias(net):
    net.V2.conv3 = nn.Conv2d(32, 8, 1, bias=True)


def other_norm(net):
    net.V4.norm2_1 = nn.GroupNorm(1, 64)


def other_output(net):
    net.V2.output = nn.Dropout(0.5)


def more(net):
    net.V2.extra = nn.ReLU()


@pytest.mark.parametrize("change", [hooked, pruned, with_bias, other_norm, other_output, more])
@pytest.mark.parametrize("form", [for_inference, for_training])
def test_exchanged_or_hooked_layers_are_refused(change, form):
    net = small()
    change(net)
    with pytest.raises(ValueError, match=f"{form.__name__}: model has (V2|V4|IT)"):
        form(net)


def test_the_training_form_shares_layers_with_all_their_settings():
    "Another eps, another momentum, a norm that was frozen: each stays, and the statistics are one."
    net = small().train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = 0.1, 0.5
    net.V4.norm1_0.eval()
    twin = small().train()
    twin.load_state_dict(net.state_dict())
    for ours, theirs in zip(twin.modules(), net.modules(), strict=True):
        ours.training = theirs.training
        if isinstance(ours, nn.BatchNorm2d):
            ours.eps, ours.momentum = theirs.eps, theirs.momentum
    fast = for_training(net)
    assert not net.V4.norm1_0.training and fast.V4.norm1_0 is net.V4.norm1_0
    torch.testing.assert_close(fast(X), twin(X), rtol=1e-4, atol=1e-5)
    for key, value in twin.state_dict().items():
        torch.testing.assert_close(net.state_dict()[key], value, rtol=1e-4, atol=1e-5)


def test_folded_constants_cannot_be_moved_or_saved_by_halves():
    folded = for_inference(small().eval())
    folded.to("cpu").float()
    for act in (
        folded.double,
        folded.state_dict,
        lambda: folded(X.double()),
        lambda: folded(X.repeat(1, 3, 1, 1)),
        lambda: for_inference(small().half()),
    ):
        with pytest.raises((TypeError, ValueError)):
            act()
    without = small()
    without.V2.norm1_0 = nn.BatchNorm2d(without.V2.norm1_0.num_features, affine=False)
    with pytest.raises(ValueError, match="V2.norm1_0"):
        for_inference(without)


def test_counting_changes_nothing():
    net = small().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    multiplications(net, X[:1])
    assert net.training and all(
        torch.equal(before[key], value) for key, value in net.state_dict().items()
    )
