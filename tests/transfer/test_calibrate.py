"transfer.calibrate: means really become equal, layer by layer; thresholds follow the rule; hybrids train."

import pytest
import torch
from torch import nn

from neurobridge.core import fit
from neurobridge.transfer import activations, calibrate, convert, local_thresholds, neurons

pytestmark = pytest.mark.usefixtures("one_thread", "same_numbers")


def plain():
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 3),
    )
    net[1].running_mean.normal_(0, 0.2), net[1].running_var.uniform_(0.3, 2)
    return net.eval()


def gaps(snn, ann, x):
    "Mean difference of each channel from the ANN, per layer."
    out, hooks = (
        [],
        [
            layer.register_forward_hook(lambda m, given, y: out.append(y.mean(0)))
            for layer in neurons(snn)
        ],
    )
    snn(x)
    [hook.remove() for hook in hooks]
    return [
        (a - s).mean((0, 2, 3)).abs().mean().item()
        for a, s in zip(activations(ann, x), out, strict=True)
    ]


@pytest.mark.parametrize("kind", [dict(initial=False), dict(bias=False), {}])
def test_calibration_brings_the_means_together(kind):
    ann, x = plain(), torch.rand(40, 1, 8, 8)
    raw = gaps(convert(ann, x, T=4, threshold="mse", initial=0.0), ann, x)
    now = gaps(
        calibrate(convert(ann, x, T=4, threshold="mse", initial=0.0), ann, x, T=4, **kind), ann, x
    )
    assert all(b < 0.5 * a for a, b in zip(raw, now, strict=True)), (raw, now)


def test_the_first_layers_bias_by_hand():
    ann, x = plain(), torch.rand(30, 1, 8, 8)
    snn = convert(ann, x, T=4, threshold="percentile", percentile=95)
    theta, z = neurons(snn)[0].theta, activations(ann, x)[0]
    mean = theta * ((z * 4 / theta + 0.5).floor() / 4).clamp(0, 1)
    calibrate(snn, ann, x, T=4, initial=False)
    torch.testing.assert_close(
        neurons(snn)[0].bias.flatten(), (z.relu() - mean).mean((0, 2, 3)), rtol=1e-3, atol=1e-4
    )


def test_local_thresholds_follow_the_rule():
    ann, x = plain(), torch.rand(12, 1, 8, 8)
    snn = local_thresholds(convert(ann, x, T=4), ann, x, rounds=3)
    z = activations(ann, x)[0].transpose(0, 1)
    for c in range(6):
        theta = 0.0
        for i in range(3):
            theta += 2 * (z[c, i::3] - theta).relu().mean().item()
        if theta > 1e-3:
            assert neurons(snn)[0].theta.flatten()[c].item() == pytest.approx(theta, rel=1e-4)


def test_misuse():
    ann, other, x = (
        plain(),
        nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(64, 2)).eval(),
        torch.rand(4, 1, 8, 8),
    )
    snn = convert(ann, x)
    for call in (lambda: calibrate(snn, other, x, T=4), lambda: local_thresholds(snn, other, x)):
        with pytest.raises(ValueError, match="2 layers of IF neurons, model 1"):
            call()
    with pytest.raises(ValueError, match="T is 0"):
        calibrate(snn, ann, x, T=0)
    with pytest.raises(ValueError, match="rounds is 0"):
        local_thresholds(snn, ann, x, rounds=0)


def test_a_hybrid_learns_and_is_saved_whole():
    ann, x = plain(), torch.rand(64, 1, 8, 8)
    y = (x.mean((1, 2, 3)) > 0.5).long()
    snn = calibrate(convert(ann, x, T=4, threshold="mse"), ann, x, T=4)
    before, theta = snn.get_submodule("3").weight.detach().clone(), neurons(snn)[0].theta.clone()
    history = fit(snn, (x, y), epochs=8, lr=1e-2, progress=False)
    assert (
        history is not None
        and not torch.equal(before, snn.get_submodule("3").weight)
        and torch.equal(theta, neurons(snn)[0].theta)
    )
    again = calibrate(convert(ann, x, T=4), ann, x, T=4)
    again.load_state_dict(snn.state_dict())
    assert torch.equal(again.eval()(x), snn.eval()(x))
