"transfer.convert: the staircase exactly, the ANN in the limit, batch norm folded, every refusal by name."

import numpy as np
import pytest
import torch
import torchvision.models as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurobridge.snn import LIF, spikify, spiking_convnet, spiking_resnet
from neurobridge.transfer import (
    IF,
    SharpenedReLU,
    activations,
    calibrate,
    convert,
    fold_batchnorm,
    local_thresholds,
    neurons,
    use_qcfs,
)
from neurobridge.transfer.conversion import _threshold
from neurobridge.transfer.if_neuron import QCFS

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")
SMALL = settings(max_examples=40, deadline=None)


def plain(qcfs=False):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 12),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(12, 3),
    )
    return stirred(use_qcfs(net, levels=4) if qcfs else net)


def stirred(model):
    "Batch norms as after training: nothing at its start value."
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            (
                m.running_mean.normal_(0, 0.2),
                m.running_var.uniform_(0.3, 2),
                nn.init.uniform_(m.weight, 0.5, 1.5),
                nn.init.normal_(m.bias, 0, 0.2),
            )
    return model.eval()


def averaged(model):
    for name, m in list(model.named_modules()):
        if isinstance(m, nn.MaxPool2d):
            model.set_submodule(name, nn.AvgPool2d(m.kernel_size, m.stride, m.padding))
    return model


def staircase(z, theta, initial, T):
    "Of one input, in exact decimal arithmetic apart from the division: counts of whole thresholds; None next to a tie."
    level = (z * T) / theta + initial
    return None if abs(level - round(level)) < 1e-3 else theta * min(max(level // 1, 0), T) / T


@SMALL
@given(st.floats(-3, 3), st.floats(0.1, 4), st.sampled_from([0.0, 0.25, 0.5]), st.integers(1, 40))
def test_a_neuron_counts_whole_thresholds(z, theta, initial, T):
    want = staircase(z, theta, initial, T)
    if want is not None:
        got = IF(theta, initial)(torch.full((T, 1, 2), z)).mean(0)
        torch.testing.assert_close(got, torch.full((1, 2), want), rtol=1e-5, atol=1e-6)


@SMALL
@given(st.integers(1, 16), st.floats(0.2, 5), st.integers(0, 10_000))
def test_qcfs_and_its_neuron_agree(levels, clip, seed):
    z = torch.empty(3, 50).uniform_(-1, 2, generator=torch.Generator().manual_seed(seed)) * clip
    z = z[None].where(
        ((z * levels / clip + 0.5) % 1 - 0.5).abs() < 0.499, torch.zeros(())
    )  # no ties
    torch.testing.assert_close(
        IF(clip)(z.expand(levels, -1, -1)).mean(0),
        QCFS(levels, clip)(z[0]).detach(),
        rtol=1e-5,
        atol=1e-6,
    )


def test_a_single_layer_qcfs_net_is_equal_after_conversion():
    net = use_qcfs(
        nn.Sequential(nn.Flatten(), nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 3)), levels=8
    ).eval()
    x = torch.rand(50, 1, 3, 3)
    torch.testing.assert_close(convert(net, T=8)(x), net(x))


def test_a_number_of_steps_that_numpy_counted():
    snn = convert(plain(), torch.rand(4, 1, 8, 8), T=np.int64(3))
    assert type(snn.T) is int and snn.T == 3 and "_extra_state" in snn.state_dict()


def test_the_number_of_levels_travels_with_the_weights():
    trained, other = (use_qcfs(plain(), levels) for levels in (4, 8))
    with pytest.raises(ValueError, match="the settings differ.*levels = 4 there, 8 here"):
        other.load_state_dict(trained.state_dict())
    use_qcfs(plain(), 4).load_state_dict(trained.state_dict())


def test_qcfs_trains_its_clip_and_passes_gradients():
    act, x = QCFS(4, 1.0), torch.tensor([-1.0, 0.3, 0.6, 2.0], requires_grad=True)
    act(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 1.0, 1.0, 0.0]))
    assert act.clip.grad.item() == pytest.approx(
        1 + (0.25 - 0.3) + (0.5 - 0.6), abs=1e-6
    )  # the cut-off value, and the rounding errors


@pytest.mark.parametrize(
    "build",
    [
        plain,
        lambda: stirred(tv.resnet18(num_classes=5)),
        lambda: stirred(tv.mobilenet_v2(num_classes=5, width_mult=0.25)),
    ],
)
def test_folding_changes_nothing(build):
    model = build()
    x = torch.rand(
        2,
        1 if model.__class__ is nn.Sequential else 3,
        8 if model.__class__ is nn.Sequential else 64,
        8 if model.__class__ is nn.Sequential else 64,
    )
    folded, want = fold_batchnorm(model), model(x)
    assert (folded(x) - want).abs().max() < 1e-5 * want.abs().max()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize("rule, per_channel", [("max", False), ("max", True), ("balance", False)])
def test_many_steps_reach_the_ann(rule, per_channel):
    ann, x = plain(), torch.rand(20, 1, 8, 8)
    snn = convert(ann, x, threshold=rule, per_channel=per_channel)
    errors = []
    for snn.T in (50, 400):
        errors.append((snn(x) - ann(x)).abs().mean().item())
    assert errors[1] < errors[0] / 4 and errors[1] < 0.01 * ann(x).abs().mean()


def test_residual_sum_with_thresholds_of_its_own():
    ann, x = stirred(averaged(tv.resnet18(num_classes=5))), torch.rand(2, 3, 32, 32)
    ann.conv1.stride = (1, 1)
    snn = convert(ann, x, T=300, threshold="max")
    assert len({layer.theta.item() for layer in neurons(snn)}) == 17
    assert (snn(x) - ann(x)).abs().max() < 0.1 * ann(x).abs().max()


def test_thresholds_by_an_independent_computation():
    ann, x = plain(), torch.rand(30, 1, 8, 8)
    first = ann[2](ann[1](ann[0](x))).detach()
    assert neurons(convert(ann, x, threshold="max"))[0].theta.item() == pytest.approx(
        first.max().item(), rel=1e-5
    )
    torch.testing.assert_close(
        neurons(convert(ann, x, threshold="max", per_channel=True))[0].theta.flatten(),
        torch.where((top := first.amax((0, 2, 3))) > 0, top, first.max()),
    )  # a silent channel takes the layer's
    theta = neurons(convert(ann, x, percentile=90.0))[0].theta
    assert (first <= theta + 1e-6).float().mean().item() == pytest.approx(0.9, abs=0.001)
    torch.testing.assert_close(activations(ann, x)[0], first)


def test_relu6_keeps_its_clip():
    ann = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU6(), nn.Flatten(), nn.Linear(18, 2)).eval()
    snn = convert(ann, 50 * torch.randn(8, 1, 3, 3), threshold="balance")
    assert neurons(snn)[0].theta.item() == 6


def test_same_numbers_twice_and_the_model_is_left_alone():
    ann, x = plain(), torch.rand(5, 1, 8, 8)
    before = {k: v.clone() for k, v in ann.state_dict().items()}
    a, b = (convert(ann, x, T=8, threshold="mse") for _ in range(2))
    assert torch.equal(a(x), b(x))
    assert all(torch.equal(v, before[k]) for k, v in ann.state_dict().items())
    a.per_step = True
    assert a(x).shape == (8, 5, 3)
    torch.testing.assert_close(a(x).mean(0), b(x))


@pytest.mark.parametrize(
    "build, name",
    [
        (tv.mobilenet_v3_small, "Hardswish"),
        (lambda: nn.Sequential(nn.Flatten(), nn.ReLU(), nn.LayerNorm(3072)), "'2' is a LayerNorm"),
        (lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.SiLU()), "'1' (SiLU)"),
    ],
)
def test_refusals_name_the_layer(build, name):
    with pytest.raises(ValueError) as error:
        convert(build(), torch.rand(1, 3, 32, 32))
    assert name in str(error.value)


def test_vgg_with_average_pooling_and_mobilenet_convert():
    vgg = nn.Sequential(
        tv.vgg.make_layers([8, "M", 16, "M"], batch_norm=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    for model in (averaged(vgg), tv.mobilenet_v2(num_classes=5, width_mult=0.25)):
        ann, x = stirred(model), torch.rand(2, 3, 32, 32)
        snn = convert(ann, x, T=4)
        assert snn(x).shape == (2, 5) and torch.isfinite(snn(x)).all()


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(threshold="mean"), "expected one of"),
        (
            dict(images=None),
            "images is None, and threshold 'percentile' is found on training images",
        ),
        (
            dict(percentile=0),
            "percentile is 0; expected a finite number at most 100 and above 0|above 0 and at "
            "most 100",
        ),
        (dict(initial=1.0), "initial is 1; expected a finite number at least 0 and below 1"),
        (dict(threshold="qcfs"), "use_qcfs"),
        (dict(T=0), "T is 0; expected a whole number of at least 1"),
    ],
)
def test_misuse(wrong, message):
    with pytest.raises(ValueError, match=message):
        convert(plain(), **{"images": torch.rand(2, 1, 8, 8)} | wrong)


@pytest.mark.parametrize(
    "build",
    [
        lambda: spiking_convnet(nn.ReLU, T=1, width=8),
        lambda: spiking_resnet(
            (1, 1), nn.ReLU, in_channels=1, classes=10, T=1, width=8, small_images=True
        ),
    ],
)
def test_networks_of_this_project(build):
    ann, x = stirred(build()), torch.rand(12, 1, 16, 16)
    snn = convert(ann, x, T=400, threshold="max")
    assert len(neurons(snn)) == len(activations(ann, x)) and ann.T == 1
    assert (snn(x) - ann(x)).abs().max() < 0.05 * ann(x).abs().max()
    quantised = use_qcfs(ann, 4, x)
    assert sum(isinstance(m, QCFS) for m in quantised.modules()) == len(neurons(snn)) and convert(
        quantised, T=4
    )(x).shape == (12, 10)


def test_a_relu_used_twice_gets_two_sizes():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu, self.c = (
                nn.Linear(4, 8),
                nn.Linear(8, 8),
                nn.ReLU(),
                nn.Linear(8, 2),
            )

        def forward(self, x):
            return self.c(
                torch.relu(self.b(self.relu(self.a(x.flatten(1)))))
                + self.relu(self.a(x.flatten(1)))
            )

    ann, x = Twice().eval(), torch.rand(9, 1, 2, 2)
    assert len(neurons(convert(ann, x))) == 3
    quantised = use_qcfs(ann, 2)
    assert (
        len({id(m) for m in quantised.modules() if isinstance(m, QCFS)}) == 3
        and len(neurons(convert(quantised))) == 3
    )


# What must not be taken without a word


def tiny(*layers):
    return nn.Sequential(nn.Conv2d(1, 2, 3), *layers, nn.Flatten(), nn.Linear(72, 3)).eval()


def the_relu_twice():
    relu = nn.ReLU()
    net = spiking_convnet(lambda: relu, T=1, width=4)
    return net.eval()


@pytest.mark.parametrize("build, message", [
    (lambda: spiking_convnet(SharpenedReLU, T=1, width=4), "without a ReLU.*transfer.pipe_s"), (lambda: spiking_convnet(LIF, T=1, width=4), "'stem_neuron' is a LIF, so the model is a spiking network already"),
    (lambda: spiking_convnet(nn.ReLU, T=4, width=4), "T = 4; expected an ANN"), (lambda: spiking_convnet(nn.LeakyReLU, T=1, width=4), "LeakyReLU at 'stem_neuron'"),
    (lambda: convert(tiny(nn.ReLU()), torch.rand(3, 1, 8, 8)), "IF, so the model is a spiking network already"), (lambda: spikify(tiny(nn.ReLU())), "spiking network already"),
    (the_relu_twice, "one ReLU at 'stem_neuron' and"), (lambda: tiny(), "without a ReLU|no ReLU"),
])  # fmt: skip
@pytest.mark.parametrize(
    "call",
    [
        lambda net, x: convert(net, x),
        lambda net, x: convert(net, x, T=16, per_channel=True),
        lambda net, x: activations(net, x),
        lambda net, x: use_qcfs(net),
    ],
)
def test_networks_in_which_nothing_or_not_everything_would_be_converted(build, message, call):
    with pytest.raises(ValueError, match=message):
        call(build(), torch.rand(4, 1, 8, 8))


def test_relu_as_a_function_in_a_network_of_this_project_is_refused():
    net = spiking_convnet(nn.ReLU, T=1, width=4).eval()

    class Hidden(nn.Module):
        def forward(self, x):
            return nn.functional.relu(x - 0.1)

    net.trunk.append(Hidden())
    with pytest.raises(ValueError, match="calls relu as a function"):
        convert(net, torch.rand(4, 1, 8, 8))


def test_a_quantised_clip_below_zero_and_a_net_half_quantised_are_named():
    half = use_qcfs(plain())
    for module in half.modules():
        if isinstance(module, QCFS):
            module.clip.data.fill_(-0.5)
            break
    with pytest.raises(ValueError, match="whose clip is -0.5; expected a clip above 0"):
        convert(half)
    mixed = tiny(nn.ReLU(), QCFS())
    with pytest.raises(ValueError, match="QCFS, and a plain ReLU at '_1'"):
        convert(mixed)
    with pytest.raises(ValueError, match="has QCFS already"):
        use_qcfs(mixed)


@pytest.mark.parametrize(
    "images, kind",
    [
        (torch.rand(0, 1, 8, 8), ValueError),
        (torch.rand(1, 8, 8), ValueError),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), TypeError),
        ([torch.rand(4, 1, 8, 8)], TypeError),
        (torch.full((4, 1, 8, 8), torch.nan), ValueError),
        (torch.rand(4, 1, 8, 8).double(), ValueError),
        (torch.rand(4, 1, 8, 8).numpy(), TypeError),
    ],
)
def test_images_are_checked_at_every_door(images, kind):
    ann, x = plain(), torch.rand(6, 1, 8, 8)
    snn = convert(ann, x)
    before = {key: value.clone() for key, value in snn.state_dict().items()}
    for who, call in {
        "convert": lambda: convert(ann, images),
        "activations": lambda: activations(ann, images),
        "use_qcfs": lambda: use_qcfs(ann, 4, images),
        "calibrate": lambda: calibrate(snn, ann, images, T=4),
        "local_thresholds": lambda: local_thresholds(snn, ann, images),
    }.items():
        with pytest.raises(kind, match=f"^{who}: images"):
            call()
    assert (
        all(torch.equal(value, before[key]) for key, value in snn.state_dict().items())
        and snn.T == 32
    )


def test_a_quantised_activation_has_its_relus_name():
    ann = plain()
    names = {name for name, module in ann.named_modules() if isinstance(module, nn.ReLU)}
    quantised = use_qcfs(ann, 4)
    assert {n for n, module in quantised.named_modules() if isinstance(module, QCFS)} == names


def test_settings_of_thresholds_travel_with_the_weights():
    ann, x = plain(), torch.rand(20, 1, 8, 8)
    for made in (
        convert(ann, x, T=4, per_channel=True),
        calibrate(convert(ann, x, T=4), ann, x, T=4),
        local_thresholds(convert(ann, x, T=4), ann, x),
    ):
        fresh = convert(ann, x, T=4, threshold="max")
        fresh.load_state_dict(made.state_dict())
        assert torch.equal(fresh(x), made(x))


def test_another_image_size_after_calibration_is_refused_in_words():
    ann = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    ).eval()
    x = torch.rand(9, 1, 8, 8)
    snn = calibrate(convert(ann, x, T=4), ann, x, T=4)
    with pytest.raises(
        ValueError, match=r"initial was found for \[2, 6, 6\]; give images of the size used"
    ):
        snn(torch.rand(9, 1, 10, 10))
    assert calibrate(convert(ann, x, T=4), ann, x, T=4, initial=False)(
        torch.rand(9, 1, 10, 10)
    ).shape == (9, 3)


def test_low_precision_counts_in_float32():
    "Percentiles and means of bfloat16 activations are those of the same numbers in float32."
    x = torch.rand(7, 3, 20, 20).bfloat16()
    for kind in ("max", "percentile", "mse"):
        torch.testing.assert_close(
            _threshold(x, kind, 99.0, True, 4), _threshold(x.float(), kind, 99.0, True, 4)
        )


@pytest.mark.parametrize(
    "theta, kind",
    [
        (0.0, ValueError),
        (float("nan"), ValueError),
        (nn.Parameter(torch.tensor(1.0)), TypeError),
        ("1", TypeError),
        (torch.tensor([1.0, -1.0]), ValueError),
        (torch.rand(0), ValueError),
    ],
)
def test_a_threshold_is_a_positive_constant(theta, kind):
    with pytest.raises(kind, match="IF: theta"):
        IF(theta)


def test_a_state_goes_on_where_it_stopped():
    "Two stretches of four steps are eight steps, also calibrated and with a threshold for each channel."
    ann, x = plain(), torch.rand(20, 1, 8, 8)
    layer, current = (
        neurons(calibrate(convert(ann, x, T=8, per_channel=True), ann, x, T=8))[0],
        torch.randn(8, 20, 4, 6, 6),
    )
    first, v = layer(current[:4], return_state=True)
    second, last = layer(current[4:], v0=v, return_state=True)
    whole, v_whole = layer(current, return_state=True)
    assert torch.equal(torch.cat([first, second]), whole) and torch.equal(last, v_whole)


@pytest.mark.parametrize("build, message", [
    (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)), "'1' without running statistics"),
    (lambda: Branching(), "torch.fx cannot follow Branching"),
])  # fmt: skip
def test_norms_that_cannot_be_folded_are_not_left_without_a_word(build, message):
    with pytest.raises(ValueError, match=message):
        fold_batchnorm(build())


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x):
        return self.norm(self.conv(x)) if x.sum() > 0 else self.conv(x)


def test_a_convolution_used_twice_is_not_folded_into_one_of_its_norms():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.a, self.b = (
                nn.Conv2d(1, 1, 3, padding=1),
                nn.BatchNorm2d(1),
                nn.BatchNorm2d(1),
            )

        def forward(self, x):
            return self.b(self.conv(self.a(self.conv(x))))

    net, x = stirred(Twice()), torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(fold_batchnorm(net)(x), net(x))


def test_advice_on_models_applies():
    "What a refusal recommends converts."
    with pytest.raises(
        ValueError, match="such as mobilenet_v2 in place of mobilenet_v3"
    ) as refused:
        convert(tv.mobilenet_v3_small(num_classes=3), torch.rand(1, 3, 32, 32))
    assert "resnet" not in str(refused.value) and "vgg" not in str(refused.value)
    convert(tv.mobilenet_v2(num_classes=3, width_mult=0.25), torch.rand(2, 3, 32, 32), T=2)
