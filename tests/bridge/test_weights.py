"Moving weights between blueprints."

import pytest
import torch
from torch import nn

from neurobridge.bridge import Blueprint, Neuron, Time, Wiring, compose, transfer_weights
from neurobridge.g2g import EnsembleLinear, MaskedLinear
from neurobridge.transfer import copy_weights

pytestmark = pytest.mark.usefixtures("same_numbers")
HALF = Blueprint("cornet_s", width=8, in_shape=(1, 16, 16), classes=10)
FOUR = Time(4, "inside")


def used(network, x):
    with torch.no_grad():
        for _ in range(5):
            network(x)
    return network.eval()


def images(n=8):
    return torch.randn(n, 1, 16, 16)


@pytest.mark.parametrize("body", ["convnet", "resnet18", "vgg11"])
def test_relu_to_lif_is_the_copy_of_pipe_s(body):
    trained = used(compose(HALF.changed(body=body)), images())
    network, report = transfer_weights(trained, HALF.changed(body=body, neuron="lif", time=FOUR))
    x = images()
    assert torch.equal(network(x), copy_weights(trained, 4)(x)) and set(report.what) == {"copied"}
    assert not network.training


def test_relu_to_lif_copies_every_tensor_of_cornet_s():
    trained = used(compose(HALF), images())
    for recurrence in ("inside", "across"):
        there = HALF.changed(neuron="lif", time=Time(4, recurrence))
        network, report = transfer_weights(trained, there)
        state = network.state_dict()
        for name, value in trained.state_dict().items():
            assert name.endswith("_extra_state") or torch.equal(state[name], value), name
        assert set(report.what) == {"copied"} and network.blueprint == there


def test_the_decay_is_made_anew_and_a_dropped_pass_is_named():
    trained = compose(HALF.changed(times=(2, 4, 3)))
    _, report = transfer_weights(trained, HALF.changed(neuron="plif", time=FOUR))
    report = report.set_index("name")
    assert report.what["V2.neuron1_0.decay_logit"] == "made anew"
    assert report.what["IT.norm3_2.weight"] == "dropped"
    assert report.what["V2.conv1.weight"] == "copied"


def test_a_new_pass_begins_with_the_norms_of_the_last_one():
    trained = used(compose(HALF), images())
    network, report = transfer_weights(trained, HALF.changed(times=(2, 6, 2)))
    assert torch.equal(network.V4.norm2_5.running_mean, trained.V4.norm2_3.running_mean)
    assert (
        report.set_index("name").note["V4.norm2_5.running_mean"] == "from V4.norm2_3.running_mean"
    )


@pytest.mark.parametrize("kind", ["masked", "ensembles", "random"])
@pytest.mark.parametrize("rescale", [False, True])
def test_dense_to_sparse_keeps_the_live_weights(kind, rescale):
    half = HALF.changed(width=16)
    trained = used(compose(half), images())
    wiring = Wiring(kind, groups=4, p_inter=0.25, where="all")
    network, report = transfer_weights(trained, half.changed(wiring=wiring), rescale)
    x = torch.randn(2, 32, 4, 4)
    conv, dense = network.V2.conv1, trained.V2.conv1.weight.detach()
    unit = torch.eye(32).view(32, 32, 1, 1)
    seen = conv(unit).squeeze(-1).squeeze(-1).T  # [n_out, n_in]
    live = seen != 0
    factor = live.shape[1] / live.sum(1, keepdim=True) if rescale else 1
    torch.testing.assert_close(seen, dense[:, :, 0, 0] * live * factor)
    row = report.set_index("name").loc["V2.conv1.weight"]
    assert row.what == "copied in part" and row.numbers == int(live.sum())
    assert conv(x).shape == (2, 128, 4, 4)


def test_ensembles_to_masks_is_exact():
    for half in (
        HALF.changed(wiring=Wiring("ensembles", groups=4, where="all"), width=16),
        Blueprint("g2gnet", Wiring("ensembles"), width=64, in_shape=(1, 16, 16), classes=10),
    ):
        trained, x = used(compose(half), images()), images()
        network, report = transfer_weights(trained, half.changed(**{"wiring.kind": "masked"}))
        torch.testing.assert_close(network(x), trained(x), rtol=1e-4, atol=1e-5)
        assert set(report.what) == {"copied"}
    wired = [m for m in network.modules() if isinstance(m, MaskedLinear)]
    assert len(wired) == 3 and not any(isinstance(m, EnsembleLinear) for m in network.modules())
    assert all(layer.target_groups is not None for layer in wired)


def test_steps_are_free():
    half = HALF.changed(neuron=Neuron("lif", gain=0.5, bias=0.25), time=FOUR)
    trained = used(compose(half), images())
    network, _ = transfer_weights(trained, half.changed(**{"time.steps": 8}))
    x = images()
    frames = x.expand(8, *x.shape)
    torch.testing.assert_close(network(x), trained(frames), rtol=1e-5, atol=1e-6)


def test_other_classes_are_made_anew():
    network, report = transfer_weights(compose(HALF), HALF.changed(classes=7))
    report = report.set_index("name")
    assert report.what["decoder.linear.weight"] == "made anew"
    assert "[10, 64] there, [7, 64] here" in report.note["decoder.linear.weight"]
    assert network(images()).shape == (8, 7)


def test_nothing_is_shared_and_nothing_changed():
    trained = compose(HALF)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    network, _ = transfer_weights(trained, HALF)
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def test_where_nothing_fits():
    with pytest.raises(
        ValueError, match="no layer of trained .* has a place; expected the same body"
    ):
        transfer_weights(compose(HALF), HALF.changed(body="g2gnet", width=16))
    with pytest.raises(TypeError, match="trained is a module Linear"):
        transfer_weights(nn.Linear(2, 2), HALF)
