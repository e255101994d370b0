"Similarity: matching against brute force, CKA against its definition, hooks that leave nothing, permuted copies that are the same function, and the recorded batch."

import copy
from functools import partial
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import update_bn
from torchvision.models import resnet18

from neurobridge.core import evaluate, project_root
from neurobridge.snn import (
    LIF,
    MembraneReadout,
    monitor,
    spikify,
    spiking_convnet,
    spiking_resnet18,
    spiking_vgg,
)
from neurobridge.snn.shortcuts import VanillaBlock
from neurobridge.transfer import SharpenedReLU, calibrate, convert, copy_weights
from neurobridge.transfer.similarity import (
    barrier,
    cka,
    cka_heatmap,
    kernel_distance,
    kernel_ssim,
    layer_cka,
    linear_path,
    permute_channels,
    renew_statistics,
    state_evaluator,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")

small = partial(spiking_convnet, T=3, width=3)
residual = partial(spiking_resnet18, in_channels=1, classes=10, T=2, width=2, small_images=True)


def plain():
    features = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 4, 3),
        nn.ReLU(),
    )
    return nn.Sequential(
        features,
        nn.Flatten(),
        nn.Linear(4 * 6 * 6, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(12, 5),
    )


def with_membranes():
    net = small()
    net.readout = MembraneReadout(net.readout.linear.in_features, 10)
    return net


NETS = {
    "convnet": small, "convnet ReLU": partial(small, nn.ReLU, T=1), "analogue": partial(small, partial(LIF, output="analogue", learn_decay=True)), "vanilla": residual,
    "sew": partial(residual, shortcut="sew"), "ms": partial(residual, shortcut="ms"), "resnet, large images": partial(residual, SharpenedReLU, T=1, small_images=False),
    "vgg": partial(spiking_vgg, in_channels=1, classes=10, T=2, width=3), "plain": plain, "membranes": with_membranes,
}  # fmt: skip
every_net = pytest.mark.parametrize("make", NETS.values(), ids=NETS)


def lived(net):
    "Give batch norms scales, shifts and statistics that no fresh network has."
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, 0.0, 0.6)
    renew_statistics(net, torch.rand(16, 1, 16, 16, dtype=norms[0].weight.dtype))
    return net.eval()


def state(net):
    return {
        name: value.clone()
        for name, value in net.state_dict().items()
        if not name.endswith("_extra_state")
    }


def equal(a, b):
    return list(a) == list(b) and all(value.equal(b[name]) for name, value in a.items())


# Permuted copies


@every_net
def test_a_permuted_copy_is_the_same_function(make):
    net, x = lived(make().double()), torch.rand(6, 1, 16, 16, dtype=torch.float64)
    before, answer = state(net), net(x)
    assert answer.std(0).max() > 0
    for seed in range(3):
        twin = permute_channels(net, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(twin(x), answer, rtol=1e-9, atol=1e-9)
        assert equal(before, state(net)) and list(state(twin)) == list(before)
        assert (
            sum(not a.equal(b) for a, b in zip(before.values(), state(twin).values(), strict=True))
            >= 6
        )
        for name, value in state(twin).items():
            assert value.flatten().sort().values.equal(before[name].flatten().sort().values), (
                f"{name} holds other numbers"
            )
        mine, theirs = (
            {t.data_ptr() for t in (*n.parameters(), *n.buffers())} for n in (net, twin)
        )
        assert not mine & theirs


@every_net
def test_a_permuted_copy_trains_alike(make):
    net = lived(make().double())
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    twin, x = permute_channels(net), torch.rand(8, 1, 16, 16, dtype=torch.float64)
    for each in (net, twin):
        each.train()(x).square().sum().backward()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(
                b.grad.flatten().sort().values, a.grad.flatten().sort().values, rtol=1e-6, atol=1e-9
            )


def of_channels(count, **given):
    "Neurons of which each channel has its own constants."
    own = torch.Generator().manual_seed(3)
    v_th, decay = (0.2 + 0.3 * torch.rand(count, 1, 1, generator=own) for _ in range(2))
    return LIF(decay, v_th, **given)


@pytest.mark.parametrize("learned", [False, True])
def test_constants_of_channels_go_with_their_channels(learned):
    net = small()
    net.stem_neuron = of_channels(3, learn_threshold=learned, learn_decay=learned)
    assert_same_function(net)


@pytest.mark.parametrize("shortcut", ["vanilla", "sew", "ms"])
def test_constants_in_residual_blocks(shortcut):
    net = residual(shortcut=shortcut)
    for block in net.modules():
        if isinstance(block, VanillaBlock):
            inputs, outputs = block.conv1[0].in_channels, block.conv1[0].out_channels
            block.neuron1 = of_channels(inputs if shortcut == "ms" else outputs)
            block.neuron2 = of_channels(outputs)
            if shortcut == "sew" and not isinstance(block.shortcut, nn.Identity):
                block.shortcut_neuron = of_channels(outputs)
    assert_same_function(net)


@pytest.mark.parametrize("calibrated", [False, True])
def test_thresholds_of_channels_after_conversion(calibrated):
    ann, x = lived(small(nn.ReLU, T=1)).eval(), torch.rand(6, 1, 16, 16)
    net = convert(ann, x, T=8, per_channel=True)
    assert_same_function(calibrate(net, ann, x, T=8) if calibrated else net, lively=False)


def assert_same_function(net, lively=True):
    net, x = (lived(net) if lively else net).double().eval(), torch.rand(6, 1, 16, 16).double()
    answer = net(x)
    assert answer.std(0).max() > 0
    twin = permute_channels(net, torch.Generator().manual_seed(5))
    torch.testing.assert_close(twin(x), answer, rtol=1e-9, atol=1e-9)


def test_permuting_follows_the_generator():
    net = small()
    a, b, c = (
        state(permute_channels(net, torch.Generator().manual_seed(seed))) for seed in (0, 0, 1)
    )
    assert equal(a, b) and not equal(a, c)


@pytest.mark.parametrize(
    "net, name",
    [
        (resnet18(num_classes=3), "ResNet"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.ReLU()), "Conv2d"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)), "GroupNorm"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 2)), "Softmax"),
    ],
)
def test_what_cannot_be_followed_is_refused(net, name):
    with pytest.raises(
        ValueError,
        match=f"permute_channels: cannot follow the channels through {name}; expected a TimeNet",
    ):
        permute_channels(net)


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="in_features=10.* does not follow 4 channels"):
        permute_channels(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(10, 2)))


# Kernels


def ssim_by_definition(a, b, L):
    values = []
    for x, y in zip(a, b, strict=True):
        (var_x, cov), (_, var_y) = np.cov(x.ravel(), y.ravel())
        c1, c2 = (0.01 * L) ** 2, (0.03 * L) ** 2
        values.append(
            (2 * x.mean() * y.mean() + c1)
            * (2 * cov + c2)
            / ((x.mean() ** 2 + y.mean() ** 2 + c1) * (var_x + var_y + c2))
        )
    return np.mean(values)


shapes = st.tuples(
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(2, 5)
)


@settings(deadline=None, max_examples=40)
@given(shapes, st.integers(0, 10_000), st.floats(-2, 2))
def test_ssim_is_its_formula(shape, seed, shift):
    K, M, *rest = shape
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, *rest, generator=generator, dtype=torch.float64) for n in (K, M))
    found, low = kernel_ssim(a + shift, b + shift), min(a.min(), b.min())
    L = max(a.max(), b.max()).item() - low.item()
    expected = [[ssim_by_definition(x, y, L) for y in (b - low).numpy()] for x in (a - low).numpy()]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(kernel_ssim(b, a).T, found, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(kernel_ssim(a, a).diagonal(), 1, rtol=1e-9)
    assert found.abs().max() <= 1 + 1e-9


@given(st.integers(2, 5), st.integers(0, 10_000))
def test_a_kernel_and_its_negative_are_opposites(side, seed):
    "On raw weights, whose means may be negative, the formula would call many of them alike."
    a = torch.randn(
        8, 1, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    alike, uneven = (
        kernel_ssim(a, -a).diagonal(),
        a.flatten(1).std(1) > 0.3,
    )  # a nearly even kernel has no structure to be turned round
    assert (alike[uneven] < 0.05).all()


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 2), st.integers(2, 4), st.integers(0, 10_000))
def test_the_matching_is_the_cheapest_of_all(K, C, side, seed):
    a, b = torch.randn(2, K, C, side, side, generator=torch.Generator().manual_seed(seed))
    found, by_place = kernel_distance(a, b), kernel_distance(a, b, match=False)
    costs = (1 - kernel_ssim(a, b)).numpy()
    assert found.costs.min() >= 0 and found.total == pytest.approx(
        min(costs[range(K), list(order)].sum() for order in permutations(range(K)))
    )
    assert sorted(found.pairing.tolist()) == list(range(K)) and found.cost == pytest.approx(
        found.total / K
    )
    assert (
        by_place.pairing.tolist() == list(range(K))
        and by_place.cost == pytest.approx(found.identity)
        and found.total <= by_place.total + 1e-12
    )
    assert kernel_distance(b, a).total == pytest.approx(found.total)


@given(st.integers(2, 20), st.integers(0, 10_000))
def test_a_hidden_order_is_found(K, seed):
    generator = torch.Generator().manual_seed(seed)
    a, order = torch.randn(K, 2, 3, 3, generator=generator), torch.randperm(K, generator=generator)
    found = kernel_distance(a[order], a)
    assert found.pairing.equal(order) and found.cost == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("call", [kernel_ssim, kernel_distance])
def test_kernels_that_cannot_be_compared(call):
    good = torch.randn(4, 1, 3, 3)
    for other in (torch.randn(4, 1, 5, 5), torch.randn(4, 2, 3, 3)):
        with pytest.raises(
            ValueError, match=r"a (has|has kernels of) shape .*, b .*; expected|b of .*; expected"
        ):
            call(good, other)
    for bad, message in (
        (torch.randn(4, 1, 1, 1), r"shape \[4, 1, 1, 1\]; expected kernels of at least 2 pixels"),
        (torch.randn(4, 9), r"expected a tensor \[K, C, h, w\]"),
        (torch.full((4, 1, 3, 3), torch.nan), "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            call(bad, bad)
    with pytest.raises(ValueError, match="two sets of one shape"):
        kernel_distance(good, good[:3])


# CKA


def hsic_by_definition(K, L):
    terms = [
        K[i, j] * (L[i, j] + L[q, r] - 2 * L[i, q]) for i, j, q, r in permutations(range(len(K)), 4)
    ]
    return sum(terms) / len(terms)


@settings(deadline=None, max_examples=10)
@given(st.integers(4, 6), st.integers(1, 5), st.integers(1, 5), st.integers(0, 10_000))
def test_cka_is_its_definition(n, p, q, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, d, generator=generator, dtype=torch.float64) + 2 for d in (p, q))
    K, L = x @ x.T, y @ y.T
    expected = (
        hsic_by_definition(K, L) / (hsic_by_definition(K, K) * hsic_by_definition(L, L)) ** 0.5
    )
    assert cka(x, y) == pytest.approx(expected.item(), rel=1e-6, abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(
    st.integers(4, 40), st.integers(1, 8), st.integers(0, 10_000), st.sampled_from([None, 8, 10])
)
def test_cka_does_not_see_basis_scale_or_shift(n, p, seed, batch_size):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, n, p, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(p, p, generator=generator, dtype=torch.float64))[0]
    moved = -0.3 * y @ rotation + torch.arange(p)
    assert (
        cka(x, moved, batch_size)
        == pytest.approx(cka(x, y, batch_size), abs=1e-9)
        == pytest.approx(cka(y, x, batch_size), abs=1e-9)
    )
    assert cka(y, moved, batch_size) == pytest.approx(1, abs=1e-9)


def test_unrelated_layers_score_zero_on_average_and_related_ones_do_not():
    pairs = [torch.randn(2, 24, 100) for _ in range(60)]
    scores = np.array([[cka(x, y), cka(x, y, batch_size=8), cka(x, x + 0.5 * y)] for x, y in pairs])
    error = scores.std(0, ddof=1) / len(pairs) ** 0.5
    assert (abs(scores[:, :2].mean(0)) < 4 * error[:2]).all() and scores[:, 2].min() > 0.5


def test_batches_are_averaged_before_the_ratio():
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.randn(12, 3, dtype=torch.float64)
    y = y + x
    grams = [(a @ a.T, b @ b.T) for a, b in zip(x.split(6), y.split(6), strict=True)]
    cross, one, other = (
        sum(hsic_by_definition(*pick(K, L)) for K, L in grams)
        for pick in (lambda K, L: (K, L), lambda K, L: (K, K), lambda K, L: (L, L))
    )
    assert cka(x, y, batch_size=8) == pytest.approx((cross / (one * other) ** 0.5).item(), rel=1e-9)


def test_cka_of_too_little_or_nothing():
    with pytest.raises(
        ValueError, match="x has 4 items, y 5; expected activations of the same items"
    ):
        cka(torch.rand(4, 2), torch.rand(5, 2))
    with pytest.raises(ValueError, match="x and y have 3 items; the estimator needs at least 4"):
        cka(torch.rand(3, 2), torch.rand(3, 2))
    assert np.isnan(cka(torch.rand(9, 2), torch.zeros(9, 2))), "a silent layer is like nothing"


# Every layer with every layer


def test_layers_are_compared_by_rates_and_by_name():
    ann, snn, x = lived(small(nn.ReLU, T=1)), lived(small()), torch.rand(12, 1, 16, 16)
    before = [state(net) for net in (ann, snn)]
    table = layer_cka(ann, snn, x, batch_size=20)
    relus = {}
    for name, module in ann.named_modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(
                lambda layer, args, out, name=name: relus.update({name: out[0]})
            )
    with monitor(snn) as seen, torch.no_grad():
        ann(x), snn(x)
    assert list(table.index) == list(relus) and list(table.columns) == list(seen) == [
        "stem_neuron",
        "trunk.0.neuron",
        "trunk.1.neuron",
    ]
    for a, x_a in relus.items():
        for b, record in seen.items():
            assert table.loc[a, b] == pytest.approx(
                cka(x_a, record.spikes.float().mean(0)), rel=1e-9
            )
    assert all(map(equal, before, [state(net) for net in (ann, snn)]))


def test_layers_chosen_by_name_before_and_behind_time():
    snn, x = lived(small()), torch.rand(12, 1, 8, 8)
    table = layer_cka(snn, snn, x, layers=(name for name in ("stem", "trunk.0.conv", "readout")))
    with monitor(snn) as seen, torch.no_grad():
        logits, stem = snn(x), snn.stem(x)
        current = (
            snn.trunk[0]
            .conv(seen["stem_neuron"].spikes.float().flatten(0, 1))
            .unflatten(0, (3, 12))
            .mean(0)
        )
    expected = {
        ("stem", "readout"): cka(stem, logits),
        ("trunk.0.conv", "stem"): cka(current, stem),
        ("readout", "trunk.0.conv"): cka(logits, current),
    }
    for (a, b), value in expected.items():
        assert table.loc[a, b] == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(np.diag(table), 1, rtol=1e-9)


def test_batches_of_images_give_the_same_to_the_estimators_noise():
    ann, snn, x = lived(small(nn.ReLU, T=1)), lived(small()), torch.rand(300, 1, 8, 8)
    whole, parts = layer_cka(ann, snn, x, batch_size=300), layer_cka(ann, snn, x, batch_size=50)
    assert 0 < (whole - parts).abs().max(axis=None) < 0.1
    np.testing.assert_allclose(
        layer_cka(snn, permute_channels(snn), x).to_numpy().diagonal(), 1, rtol=1e-3
    )


def test_spikified_networks_too():
    ann = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).eval()
    x = torch.rand(10, 1, 8, 8)
    table = layer_cka(spikify(ann, nn.ReLU, T=1), spikify(ann, LIF, T=4), x)
    assert list(table.index) == list(table.columns) and len(table) == 2
    with torch.no_grad():
        assert layer_cka(ann, ann, x).iloc[0, 1] == pytest.approx(
            cka(ann[:2](x), ann[:4](x)), rel=1e-9
        )


def test_hooks_and_modes_are_given_back_also_after_an_error():
    net, x = small(), torch.rand(8, 1, 8, 8)
    net.train()
    net.stem.eval()
    modes = [m.training for m in net.modules()]
    layer_cka(net, net, x)
    with pytest.raises(RuntimeError):
        layer_cka(net, net, torch.rand(8, 5, 8, 8))
    assert [m.training for m in net.modules()] == modes and not any(
        m._forward_hooks for m in net.modules()
    )


def test_layers_that_cannot_be_compared():
    x, relu = torch.rand(8, 1, 8, 8), nn.ReLU()
    twice = nn.Sequential(nn.Conv2d(1, 2, 3), relu, nn.Conv2d(2, 2, 3), relu)
    cases = [
        (small(), dict(layers=["nothing"]), "TimeNet has no layer 'nothing'; it has stem, "), (nn.Conv2d(1, 2, 3), {}, "Conv2d contains no layer of neurons or ReLUs"),
        (small(), dict(layers=[]), "expected layers="), (twice, {}, "layer '1' was called 2 times"), (small(T=8), {}, "8 images for T = 8 leaves open which axis is time"),
    ]  # fmt: skip
    for net, given_, message in cases:
        with pytest.raises(ValueError, match=message):
            layer_cka(net, net, x, **given_)
    with pytest.raises(
        ValueError, match=r"shape \[3, 8, 1, 8, 8\], float32; expected a tensor \[N, C, H, W\]"
    ):
        layer_cka(small(), small(), torch.rand(3, 8, 1, 8, 8))


def test_the_heat_map_shows_the_table():
    table = pd.DataFrame(
        [[0.1, 0.9, 0.5], [np.nan, 1, 0]], index=["a", "b"], columns=["x", "y", "z"]
    )
    ax = cka_heatmap(table)
    np.testing.assert_array_equal(ax.images[0].get_array().filled(np.nan), table)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["x", "y", "z"] and [
        t.get_text() for t in ax.texts
    ] == ["0.10", "0.90", "0.50", "nan", "1.00", "0.00"]
    ax.figure.clear()


# The line between two networks


@pytest.mark.parametrize("make", [small, partial(small, nn.ReLU, T=1), residual])
def test_statistics_are_those_of_torchs_own_update(make):
    net, x = lived(make()), torch.rand(24, 1, 8, 8)
    other, before = copy.deepcopy(net), state(net)
    momenta = [m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    renew_statistics(net, x, batch_size=8)
    update_bn(x.split(8), other)
    for name, value in state(net).items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-4, atol=1e-5)
        assert ("running" in name) == (not value.equal(before[name])) or "tracked" in name
    assert [
        m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)
    ] == momenta and not any(m.training for m in net.modules())


def test_statistics_are_taken_in_evaluation_mode():
    "A sharpened ReLU is a step there, and a ramp in training: the statistics of the second layer tell which it was."
    ann, x = small(SharpenedReLU, T=1), torch.rand(24, 1, 8, 8)
    renew_statistics(ann, x, batch_size=24)
    with torch.no_grad():
        current = ann.eval().trunk[0].conv[0](ann.stem_neuron(ann.stem(x)))
    torch.testing.assert_close(
        ann.trunk[0].conv[1].running_mean, current.mean((0, 2, 3)), rtol=1e-3, atol=1e-4
    )


@settings(deadline=None, max_examples=25)
@given(st.floats(-3, 3), st.floats(-3, 3), st.integers(3, 21))
def test_the_line_and_its_barrier(a, b, points):
    def loss(s):
        return {"loss": (s["w"].item() ** 2 - 1) ** 2, "accuracy": 1 / (1 + s["w"].item() ** 2)}

    path = linear_path(
        {"w": torch.tensor(a, dtype=torch.float64)},
        {"w": torch.tensor(b, dtype=torch.float64)},
        loss,
        points,
    )
    t = np.arange(points) / (points - 1)
    w = (1 - t) * a + t * b
    np.testing.assert_allclose(path.loss, (w**2 - 1) ** 2, atol=1e-6)
    above = (w**2 - 1) ** 2 - ((1 - t) * (a**2 - 1) ** 2 + t * (b**2 - 1) ** 2)
    below = (1 - t) / (1 + a**2) + t / (1 + b**2) - 1 / (1 + w**2)
    assert barrier(path, "loss") == pytest.approx(max(0, above.max()), abs=1e-6) and barrier(
        path
    ) == pytest.approx(max(0, below.max()), abs=1e-9)


def test_the_ends_are_the_two_networks():
    a, b = lived(small()), lived(small())
    seen = []
    linear_path(
        state(a),
        state(b),
        lambda s: seen.append({k: v.clone() for k, v in s.items()}) or {"loss": 0.0},
        points=3,
    )
    assert equal(seen[0], state(a)) and equal(
        seen[2], {k: v if v.is_floating_point() else a.state_dict()[k] for k, v in state(b).items()}
    )
    for name, value in seen[1].items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (a.state_dict()[name] + b.state_dict()[name]) / 2)


def test_a_state_is_read_as_the_network_says():
    ann = lived(small(nn.ReLU, T=1))
    snn, x, y = copy_weights(ann, T=3), torch.rand(40, 1, 8, 8), torch.arange(40) % 10
    before = state(ann)
    for reader in (ann, snn):
        found = state_evaluator(reader, x[:20], (x, y))(state(ann))
        renewed = copy.deepcopy(reader)
        renew_statistics(renewed, x[:20])
        assert found == evaluate(renewed, (x, y)) and equal(state(reader), before)
    assert state_evaluator(ann, x, (x, y))(before) != state_evaluator(snn, x, (x, y))(before)


def test_what_has_no_line():
    with pytest.raises(ValueError, match=r"a and b differ in 'stem.0.weight' \(\d+ keys"):
        linear_path(small().state_dict(), small(width=4).state_dict(), evaluate)
    with pytest.raises(ValueError, match=r"a and b differ in 'extra' \(1 keys"):
        linear_path(
            small().state_dict(), small().state_dict() | {"extra": torch.zeros(1)}, evaluate
        )
    with pytest.raises(ValueError, match="points is 2"):
        linear_path({}, {}, evaluate, points=2)


# The recorded batch


def test_the_recorded_batch_is_whole():
    table, paths, kernels = (
        pd.read_csv(project_root() / "results" / f"similarity{part}.csv")
        for part in ("", "_paths", "_kernels")
    )
    assert (
        set(table.dataset) == {"fashion_mnist"}
        and table.seed.nunique() >= 3
        and not table.duplicated(["arm", "seed", "epoch"]).any()
    )
    assert (
        table.groupby("arm").seed.nunique().eq(table.seed.nunique()).all()
        and table.arm.nunique() == 6
    )
    begun = table[(table.epoch == 0) & (table.arm.str.contains("same") | (table.arm == "pipe-S"))]
    assert (begun.by_place.abs() < 1e-9).all() and (table.matched <= table.by_place + 1e-9).all()
    finished = table.loc[table.groupby(["arm", "seed"]).epoch.idxmax()].set_index(["arm", "seed"])
    for (arm, seed), line in paths.groupby(["arm", "seed"]):
        for kind, path in line.groupby("read_as"):
            assert barrier(path) == pytest.approx(
                finished.loc[(arm, seed), f"barrier_{kind}"], abs=1e-5
            )
    for arm, pair in kernels.groupby("arm"):
        a, b = (
            torch.tensor(one.filter(regex=r"^w\d").to_numpy()).view(-1, 1, 3, 3)
            for _, one in pair.groupby("network")
        )
        assert kernel_distance(a, b).cost == pytest.approx(
            finished.loc[(arm, table.seed.min()), "matched"], abs=1e-4
        )
