"Convolutions as products of rows: the same numbers as torch's own, in the cases that the rule names and in no other."

from unittest import mock

import pytest
import torch
from torch import nn

from neurobridge.core import convolution, fit
from neurobridge.core.convolution import products
from neurobridge.core.datasets import seed_everything
from neurobridge.cornet import cornet_s
from neurobridge.snn import spikify, spiking_resnet

AMX = frozenset({"GenuineIntel", "amx_bf16"})


def counted(run):
    "Return what `run` returns, and how many convolutions were products."
    with mock.patch.object(
        convolution._Product, "apply", side_effect=convolution._Product.apply
    ) as apply:
        return run(), apply.call_count


def outputs(net, x, way):
    with torch.autocast("cpu", torch.bfloat16), products(way):
        out = net(x)
    net.zero_grad()
    out.float().square().mean().backward()
    return [out.detach().float(), *(p.grad.clone() for p in net.parameters())]


@pytest.mark.parametrize(
    "layer, pixels, taken",
    [
        (nn.Conv2d(8, 4, 3, padding=1), 8, True),
        (nn.Conv2d(8, 4, 3, 2, 1), 16, True),
        (nn.Conv2d(8, 4, 1, 2), 7, True),
        (nn.Conv2d(8, 4, 5, padding="same"), 4, False),
        (nn.Conv2d(8, 4, 3, padding=1), 9, False),
        (nn.Conv2d(8, 4, 3), 8, False),
        (nn.Conv2d(8, 4, 2), 8, False),
        (nn.Conv2d(8, 4, 3, padding=2, dilation=2), 8, False),
        (nn.Conv2d(8, 4, 3, padding=1, groups=2), 8, False),
        (nn.Conv2d(8, 4, 3, padding=1, padding_mode="circular"), 8, False),
    ],
)
def test_what_is_taken_and_that_it_is_the_convolution(layer, pixels, taken):
    x = torch.randn(3, 8, pixels, pixels)
    plain = outputs(layer, x, False)
    ours, count = counted(lambda: outputs(layer, x, True))
    assert count == taken
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * b.abs().max().item())


@pytest.mark.parametrize(
    "words, taken",  # of 512 and 1,024 channels with strides 1 and 2, for few rows and many
    [
        ("GenuineIntel avx2 avx512f", [True] * 8),
        ("AuthenticAMD avx2 avx512f", [False] * 4 + [True, False] * 2),
        ("AuthenticAMD avx2", [False] * 2 + [True] * 6),
        ("GenuineIntel avx2", [False] * 2 + [True] * 6),
        ("", [False] * 8),
    ],
)
def test_wide_float32_convolutions_are_products_where_these_pay(words, taken):
    known = frozenset(words.split())
    with mock.patch.object(convolution, "_processor_words", lambda: known):
        found = []
        for channels in (512, 1024):
            for stride in (1, 2):
                for images in (1, 257):
                    x = torch.randn(images, 3, 2, channels)
                    weight = torch.randn(2, channels, 3, 3)
                    out, count = counted(
                        lambda: convolution.convolve(x, weight, stride)  # noqa: B023
                    )
                    plain = nn.functional.conv2d(x.permute(0, 3, 1, 2), weight, None, stride, 1)
                    torch.testing.assert_close(out.permute(0, 3, 1, 2), plain, rtol=1e-4, atol=2e-3)
                    found.append(count > 0)
    assert found == taken


def test_float32_is_left_alone():
    layer, x = nn.Conv2d(8, 4, 3, padding=1), torch.randn(2, 8, 4, 4)
    with products(True):
        out, count = counted(lambda: layer(x))
    assert count == 0 and torch.equal(out, layer(x))


@pytest.mark.parametrize("kind", ["spiking", "spikified", "cornet"])
def test_any_network_trains_by_products_where_the_processor_has_amx(kind):
    seed_everything(0)
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % 4
    relu = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    make = {
        "spiking": lambda: spiking_resnet((1, 1), in_channels=3, classes=4, T=2, width=8),
        "spikified": lambda: spikify(relu, T=2),
        "cornet": lambda: cornet_s(width=4, classes=4, small_images=True),
    }[kind]
    options = dict(epochs=1, lr=0.01, batch_size=8, device="cpu", progress=False)
    for words, precision in ((AMX, "bf16"), (AMX, "no"), (frozenset(), "bf16")):
        with mock.patch.object(convolution, "_processor_words", lambda words=words: words):
            history, count = counted(
                lambda p=precision: fit(make(), (x, y), mixed_precision=p, **options)
            )
        assert (count > 0) == (words == AMX and precision == "bf16")
        assert torch.isfinite(torch.tensor(history.rows[0]["train_loss"]))
