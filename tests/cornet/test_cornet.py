"CORnets against the authors' programs, the loader against broken files, states against hooks, the circuits against their definitions."

import argparse
import json
import shutil
import zlib
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurobridge.core import evaluating, project_root
from neurobridge.core.convolution import flat_weights, one_product
from neurobridge.cornet import (
    AREAS,
    FIGURE_4,
    RECIPES,
    cornet_r,
    cornet_rt,
    cornet_s,
    cornet_variant,
    cornet_z,
    for_inference,
    for_training,
    load_official,
)
from neurobridge.cornet.cpu import minimal_filter, winograd, winograd_weights
from neurobridge.cornet.weights import official_checkpoint

GOLDEN = project_root() / "tests" / "golden"
MAKERS = {"s": cornet_s, "z": cornet_z, "r": cornet_r, "rt": cornet_rt}
SMALL = {
    "s": dict(width=4, classes=10),
    "z": dict(width=4, classes=10),
    "r": dict(width=4, classes=10),
    "rt": dict(width=4, classes=10),
}
pytestmark = pytest.mark.usefixtures("same_numbers")


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


def small(name):
    return MAKERS[name](**SMALL[name])


# The authors' programs


@pytest.fixture(scope="module", params=list(MAKERS))
def official(request):
    model = MAKERS[request.param]()
    return request.param, load_official(
        model, {f"module.{k}": v for k, v in golden_weights(model).items()}
    )


def check_golden(name, states, logits):
    with np.load(GOLDEN / f"cornet_{name}_seed0.npz") as golden:
        assert {f"{a}.{t}" for a, t in states} == {
            key.rsplit(".", 1)[0] for key in golden.files if key != "logits"
        }
        for (area, step), x in states.items():
            found = {
                "mean": x.double().mean((1, 2, 3)),
                "std": x.double().std((1, 2, 3), correction=0),
                "head": x[:, :4, :3, :3],
            }
            for what, value in found.items():
                expected = golden[f"{area}.{step}.{what}"]
                np.testing.assert_allclose(
                    value,
                    expected,
                    rtol=1e-4,
                    atol=1e-4 * np.abs(expected).max(),
                    err_msg=f"{area}.{step}.{what}",
                )
        np.testing.assert_allclose(
            logits, golden["logits"], rtol=1e-4, atol=1e-4 * np.abs(golden["logits"]).max()
        )


def golden_images():
    return torch.from_numpy(
        np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    )


def test_golden(official):
    name, model = official
    with evaluating(model):
        states = model.states(golden_images())
        logits = model.decoder(states["IT", max(t for a, t in states if a == "IT")])
    check_golden(name, states, logits)


def test_names_and_shapes(official):
    name, model = official
    expected = json.loads((GOLDEN / "cornet_state_dict_keys.json").read_text())[name.upper()]
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == expected
    assert (
        sum(p.numel() for p in model.parameters())
        == {"s": 53_416_616, "z": 2_071_656, "r": 5_208_936, "rt": 5_208_936}[name]
    )


def test_the_fast_form_is_golden_too():
    model = cornet_s()
    fast = for_inference(load_official(model, golden_weights(model)))
    check_golden("s", fast.states(golden_images()), fast(golden_images()))


def test_initial_weights():
    "The published starts: normal by fan-out for S, Xavier and zeros for Z; torch's own for R."
    for module in cornet_s().modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            expected = (2 / (module.kernel_size[0] ** 2 * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.03)
    z = cornet_z()
    assert (
        z.IT.conv.weight.abs().max().item()
        == pytest.approx((6 / (9 * (256 + 512))) ** 0.5, rel=0.01)
        and not z.decoder.linear.bias.any()
    )


# States


@pytest.mark.parametrize("name", MAKERS)
def test_states_are_what_hooks_catch(name):
    model, caught = small(name).eval(), {}
    for area in AREAS:
        model.get_submodule(area).output.register_forward_hook(
            lambda _, __, out, area=area: caught.setdefault(area, []).append(out.clone())
        )
    states = model.states(torch.randn(2, 3, 64, 64))
    assert {
        (area, step) for area, outputs in caught.items() for step in range(len(outputs))
    } == set(states)
    for (area, step), x in states.items():
        assert torch.equal(caught[area][step], x)


@pytest.mark.parametrize("name", MAKERS)
def test_forward_changes_nothing(name):
    "No stride, no buffer, no state stays behind; images do not see each other."
    model, x = small(name).eval(), torch.randn(3, 3, 64, 64)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    described = repr(model)
    first, again = model(x), model(x)
    assert repr(model) == described and torch.equal(first, again)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    torch.testing.assert_close(model(x[1:2]), first[1:2], rtol=1e-4, atol=1e-5)


def test_fewer_steps_are_the_first_of_more():
    x = torch.randn(1, 3, 64, 64)
    for model, areas in (
        (small("s").eval(), ("V2",)),
        (small("r").eval(), AREAS),
        (small("rt").eval(), AREAS),
    ):
        full = model.states(x)
        (model.V2 if areas == ("V2",) else model).times = 1 if areas == ("V2",) else 3
        short = model.states(x)
        for area in areas:
            steps = [t for a, t in short if a == area]
            assert steps == list(range(1 if len(areas) == 1 else 3)) and all(
                torch.equal(short[area, t], full[area, t]) for t in steps
            )


@pytest.mark.parametrize("times", [0, -1, 2.0, True, "2", 99])
def test_times_that_make_no_sense(times):
    model = small("s")
    model.V4.times = times
    with pytest.raises(ValueError, match="times is .*expected a whole number"):
        model(torch.randn(1, 3, 32, 32))
    if times != 99:
        with pytest.raises(ValueError, match="times is"):
            cornet_r(times=times)


@pytest.mark.parametrize("name", MAKERS)
def test_autocast_channels_last_and_gradients(name):
    model, x = small(name), torch.randn(2, 3, 64, 64)
    model.train()
    model(x).sum().backward()
    silent = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert silent == []
    model.eval()
    with torch.no_grad():
        expected = model(x)
        last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(x)
    assert mixed.isfinite().all() and (mixed.float() - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("name", MAKERS)
def test_one_graph(name):
    "A compiler can follow the whole forward without a break (the graph is run as it is: no C compiler is needed)."
    model, x = small(name).eval(), torch.randn(1, 3, 32, 32)
    torch._dynamo.reset()
    torch.testing.assert_close(
        torch.compile(model, backend="eager", fullgraph=True)(x), model(x), rtol=1e-5, atol=1e-6
    )


@pytest.mark.long
@pytest.mark.skipif(
    shutil.which("cc") is None and shutil.which("g++") is None,
    reason="no C++ compiler here: torch's CPU compiler needs one",
)
@pytest.mark.parametrize("name", MAKERS)
def test_compiled(name):
    model, x = small(name).eval(), torch.randn(1, 3, 32, 32)
    torch._dynamo.reset()
    torch.testing.assert_close(
        torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-4, atol=1e-4
    )


# Checkpoints


def saved(tmp_path, model, prefix="module.", entry=True, **more):
    state = {prefix + k: v for k, v in model.state_dict().items()}
    torch.save(({"state_dict": state} | more) if entry else state, tmp_path / "file.pth")
    return tmp_path / "file.pth"


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    ("prefix", "entry", "legacy"),
    [("module.", True, False), ("module.", True, True), ("", False, False)],
)
def test_an_official_file_loads(name, prefix, entry, legacy, tmp_path):
    donor, model = small(name), small(name)
    optimizer = torch.optim.SGD(donor.parameters(), lr=0.1, momentum=0.9)
    donor.train()
    donor(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    held = {prefix + k: v for k, v in donor.state_dict().items()}
    if entry:
        held = {
            "flags": argparse.Namespace(lr=0.1, model=name),
            "epoch": 42,
            "state_dict": held,
            "optimizer": optimizer.state_dict(),
        }
    torch.save(held, tmp_path / "file.pth", _use_new_zipfile_serialization=not legacy)
    assert load_official(model, tmp_path / "file.pth") is model
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), donor.state_dict().values(), strict=True)
    )


def unchanged(model, checkpoint, match):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=match):
        load_official(model, checkpoint)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_files_that_are_refused(tmp_path):
    path = saved(tmp_path, small("z"))
    unchanged(small("s"), path, "looks like CORnet-Z, the model is CORnet-S")
    unchanged(cornet_z(width=8, classes=10), path, "other sizes in 9 places")
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:cut])
        unchanged(small("z"), path, "file.pth .*get it again|file.pth is damaged")
    state = small("z").state_dict()
    unchanged(
        small("z"), {k: v for k, v in state.items() if k != "V4.conv.bias"}, "1 names are missing"
    )
    unchanged(small("z"), state | {"V5.conv.bias": torch.zeros(1)}, "1 are unknown")
    unchanged(small("z"), {"state_dict": [1, 2]}, "no weights")
    unchanged(small("z"), {}, "no weights")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        cornet_z(tmp_path / "nothing.pth")


class _Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code from a checkpoint ran')",))


def test_a_file_cannot_run_code(tmp_path):
    unchanged(
        small("z"),
        saved(tmp_path, small("z"), flags=_Trap()),
        "contains more than tensors, numbers and text",
    )


def test_downloads_are_checked(tmp_path, monkeypatch):
    fetched = []

    def fetch(url, path, progress):
        fetched.append(url)
        open(path, "wb").write(b"not the file")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(ValueError, match="not the published file"):
        official_checkpoint("s", root=tmp_path)
    with pytest.raises(ValueError, match="expected one of s|expected one of z"):
        official_checkpoint("cornet_s", root=tmp_path)
    assert fetched == ["https://s3.amazonaws.com/cornet-models/cornet_s-1d3f7974.pth"]


# Variants


def test_published_variants():
    "Parameter counts of the authors' circuits with other steps and bottlenecks."

    def count(**variant):
        with torch.device("meta"):
            return sum(p.numel() for p in cornet_s(**variant).parameters())

    steps = {
        (1, 1, 1): 53_391_272,
        (2, 2, 2): 53_407_400,
        (4, 4, 4): 53_439_656,
        (4, 8, 4): 53_458_088,
        (10, 10, 10): 53_536_424,
    }
    assert {times: count(times=times) for times in steps} == steps
    assert [count(scale=s) for s in (1, 2, 6)] == [4_875_944, 14_863_016, 116_742_824]


@pytest.mark.parametrize("name", FIGURE_4)
def test_every_variant_learns_with_every_parameter(name):
    net = cornet_variant(
        **dict(width=4, in_channels=1, classes=3, small_images=True) | FIGURE_4[name].settings
    )
    F.cross_entropy(net(torch.randn(8, 1, 28, 28)), torch.arange(8) % 3).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []
    assert net.areas == (("V1", "V2", "V4", "pIT", "IT") if name == "five areas" else AREAS)
    published = cornet_variant(width=4, in_channels=1, classes=3, small_images=True)
    assert name == "published" or repr(net) != repr(published) or name in ("soft gate",)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(loop="conv3"),
        dict(gate=None),
        dict(convs=1),
        dict(norm="layer"),
        dict(areas=3),
        dict(times=(2, 4)),
        dict(times=(0, 1, 1)),
        dict(scale=0),
    ],
)
def test_variants_that_do_not_exist(wrong):
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        cornet_s(**wrong)


def test_recipes():
    "The published rates, epoch by epoch."
    t = RECIPES["imagenet-s"].training
    rates = [t["lr"] * t["schedule"](e / t["epochs"]) for e in range(43)]
    np.testing.assert_allclose(rates, [0.1 * 0.1 ** (e // 20) for e in range(43)])
    for name, lr in (("z", 0.01), ("r", 0.1), ("rt", 0.1)):
        t = RECIPES[f"imagenet-{name}"].training
        np.testing.assert_allclose(
            [t["lr"] * t["schedule"](e / 25) for e in range(25)],
            [lr * 0.1 ** (e // 10) for e in range(25)],
        )


# The fast forms


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 11), st.integers(1, 11), st.integers(1, 3))
def test_winograd_is_the_convolution(m, height, width, images):
    "Values and gradients in double precision, for any size and tile."
    x, weight = (
        torch.randn(images, 3, height, width, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True),
    )
    plain = F.conv2d(x, weight, padding=1)
    ours = winograd(x.permute(0, 2, 3, 1), winograd_weights(weight, m), m).permute(0, 3, 1, 2)
    g = torch.randn_like(plain)
    for a, b in zip(
        (ours, *torch.autograd.grad(ours, (x, weight), g)),
        (plain, *torch.autograd.grad(plain, (x, weight), g)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 11), st.integers(1, 11), st.integers(1, 3), st.integers(1, 40)
)
def test_one_product_is_the_convolution(stride, height, width, images, rows):
    "Values and gradients in double precision, for any size, in any number of parts."
    x, weight = (
        torch.randn(images, height, width, 3, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True),
    )
    plain = F.conv2d(x.permute(0, 3, 1, 2), weight, stride=stride, padding=1).permute(0, 2, 3, 1)
    with mock.patch("neurobridge.core.convolution._ROWS", rows):
        ours = one_product(x, flat_weights(weight), stride)
        g = torch.randn_like(plain)
        for a, b in zip(
            (ours, *torch.autograd.grad(ours, (x, weight), g)),
            (plain, *torch.autograd.grad(plain, (x, weight), g)),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_weights_of_another_layer_are_refused():
    x = torch.randn(1, 4, 4, 3)
    for act in (
        lambda: one_product(x, torch.ones(2, 18)),
        lambda: one_product(x, torch.ones(2, 27), 0),
        lambda: winograd(x, torch.ones(36, 2, 5)),
    ):
        with pytest.raises(ValueError, match=r"expected x \[N, H, W, C\]|stride is 0"):
            act()


def test_filters_that_do_not_exist():
    for m in (0, 5):
        with pytest.raises(ValueError, match="minimal_filter"):
            minimal_filter(m)


def trained_like(net):
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.normal_(0, 0.7)
            module.bias.data.normal_(0, 0.7)
            module.running_mean.normal_(0, 0.7)
            module.running_var.uniform_(0.3, 2)
    return net


@pytest.mark.parametrize("size", [33, 64, 101])
@pytest.mark.parametrize("settings", [dict(), dict(times=(1, 3, 2), scale=2)])
def test_folded_is_the_model(size, settings):
    net = trained_like(cornet_variant(width=4, classes=10, small_images=True, **settings)).eval()
    fast, x = for_inference(net), torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected, logits = net.states(x), net(x)
    found = fast.states(x)
    assert list(found) == list(expected)
    for key, state in expected.items():
        torch.testing.assert_close(
            found[key], state, rtol=1e-4, atol=1e-4 * state.abs().max().item()
        )
    torch.testing.assert_close(fast(x), logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item())


def test_fast_training_is_training():
    "Three steps of SGD: the same losses; and the parameters are the original's own."
    losses = []
    x, y = (
        torch.randn(6, 3, 40, 40, dtype=torch.float64),
        torch.arange(6) % 3,
    )  # in float32 roundings grow over the steps
    for form in (lambda net: net, for_training):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            net = cornet_variant(width=4, classes=3, small_images=True).double()
        model = form(net)
        assert [a is b for a, b in zip(model.parameters(), net.parameters(), strict=True)] == [
            True
        ] * len(list(net.parameters()))
        optimizer, seen = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9), []
        for _ in range(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        losses.append(seen + [sum(b.double().sum().item() for b in net.buffers())])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-8)


def test_fast_forms_refuse_steps_without_norms():
    net = cornet_variant(width=4, classes=10, small_images=True)
    net.V4.times = net.V4.trained_times + 1
    for act in (lambda: for_inference(net), lambda: for_training(net)(torch.randn(2, 3, 32, 32))):
        with pytest.raises(ValueError, match="times is 5; expected a whole number from 1 to 4"):
            act()


def test_fast_forms_refuse_other_networks():
    for model in (small("z"), small("r"), cornet_variant(width=4, norm="group"), nn.Linear(2, 2)):
        for form in (for_inference, for_training):
            with pytest.raises(ValueError, match="expected CORnet-S"):
                form(model)
