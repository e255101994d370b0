"""Further members of ten kinds of silent faults: spiking networks, their training, their files, and transfer"""

import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import ConcatDataset, TensorDataset

from neurobridge.core import Sequences, evaluate, fit, load_network, save_network
from neurobridge.snn import (
    LIF,
    MembraneReadout,
    RateReadout,
    SpikeReadout,
    SpikifyError,
    Surrogate,
    TimeNet,
    atan,
    direct,
    latency,
    lif,
    mean_loss,
    membrane_loss,
    monitor,
    over_time,
    poisson,
    rate_loss,
    recompute_blocks,
    recompute_steps,
    spikify,
    spiking_convnet,
    synops,
    tet_loss,
)
from neurobridge.transfer import (
    ConvertError,
    SharpenedReLU,
    activations,
    calibrate,
    convert,
    copy_weights,
    finetune,
    local_thresholds,
    neurons,
    pretrain,
    use_qcfs,
)


def images(n=4):
    return torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 1, 2, 3])


class Own(nn.Module):
    "A small network whose forward is given as a function of its activations."

    def __init__(self, head):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), head

    def forward(self, x):
        return self.linear(self.head(F.relu(self.conv(x))))


def own(head):
    return Own(head).eval()


NEURON = partial(LIF, 0.9, 0.5)


def net(neuron=NEURON, T=2):
    torch.manual_seed(0)
    return spiking_convnet(neuron, in_channels=3, classes=5, T=T)


def flat(norm=False):
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 4, 3),
        *([nn.BatchNorm2d(4)] if norm else []),
        nn.ReLU(),
        nn.Flatten(1),
        nn.Linear(64, 5),
    ]
    return nn.Sequential(*layers).eval()


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 5))


# siblings of which one lacks a check


class Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.relu, self.function = nn.ReLU(), function

    def forward(self, x):
        return self.function(self.relu(x))


class CallsRelu(Called):
    def forward(self, x):
        return F.relu(self.relu(x) - 0.1)


class CallsTanh(Called):
    def forward(self, x):
        return self.relu(x).tanh()


class CallsMaximum(Called):
    def forward(self, x):
        return over_time(lambda y: F.max_pool2d(y, 2), self.relu(x))


def time_net(trunk):
    return TimeNet(nn.Conv2d(3, 4, 3), nn.ReLU, trunk, RateReadout(4, 5), 1)


@pytest.mark.parametrize(("trunk", "name"), [(CallsRelu, "relu"), (CallsTanh, "tanh")])
def test_a_curve_called_as_a_function_is_refused_by_every_door(trunk, name):
    ann = time_net(trunk(None))
    for door in (
        lambda: copy_weights(ann, 4),
        lambda: convert(ann, images()),
        lambda: pretrain(ann, (images(), LABELS), epochs=1, lr=0.1),
    ):
        with pytest.raises(ValueError, match=f"calls {name} as a function in 'trunk'"):
            door()


def test_a_maximum_called_as_a_function_is_refused_by_conversion_and_a_module_called_relu_is_not():
    with pytest.raises(ConvertError, match="calls max_pool2d as a function in 'trunk'"):
        convert(time_net(CallsMaximum(None)), images())
    assert len(neurons(convert(time_net(Called(nn.Identity())), images(), T=2))) == 2


@pytest.mark.parametrize(
    "head",
    [
        lambda x: x.amax((2, 3)),
        lambda x: F.adaptive_max_pool2d(x, 1).flatten(1),
        lambda x: torch.max_pool2d(x, 4).flatten(1),
    ],
)
def test_every_way_to_take_a_maximum_is_converted(head):
    model = own(head)
    snn = convert(model, images(), T=400, threshold="max")
    torch.testing.assert_close(snn(images()), model(images()), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("door", [calibrate, local_thresholds])
def test_statistics_of_another_model_are_seen_as_its_weights_are(door):
    model = flat(norm=True)
    snn = convert(model, images(), T=4)
    model[1].running_mean += 1
    before = {name: value.clone() for name, value in snn.state_dict().items()}
    with pytest.raises(ValueError, match="differ in the weights or statistics '1.running_mean'"):
        door(snn, model, images(), **({"T": 4} if door is calibrate else {}))
    assert all(torch.equal(value, before[name]) for name, value in snn.state_dict().items())


@pytest.mark.parametrize("loss", [mean_loss, tet_loss, rate_loss, membrane_loss])
def test_every_loss_checks_labels_and_gives_one_value_for_each_image(loss):
    out = torch.rand(3, 2, 4)
    assert loss(out, torch.tensor([0, 3]), reduction="none").shape == (2,)
    with pytest.raises(ValueError, match=r"y lies in \[0, 4\]"):
        loss(out, torch.tensor([0, 4]))


# branches that return untouched input


def test_an_optimiser_of_other_parameters_trains_nothing_and_is_refused():
    other = nn.Parameter(torch.ones(1))
    with pytest.raises(
        ValueError, match="without a parameter of the model, so nothing would be trained"
    ):
        fit(
            linear(),
            (images(), LABELS),
            epochs=1,
            lr=0.1,
            optimizer=lambda parameters, lr: torch.optim.SGD([other], lr=lr),
        )


def test_networks_without_a_place_for_neurons_are_not_handed_back():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(108, 5))
    for door, error in (
        (lambda: spikify(plain), SpikifyError),
        (lambda: convert(plain, images()), ConvertError),
        (lambda: use_qcfs(plain), ConvertError),
        (lambda: activations(plain, images()), ConvertError),
    ):
        with pytest.raises(error, match="ReLU"):
            door()


def test_a_bridged_network_is_not_fine_tuned_at_one_step():
    snn = copy_weights(net(SharpenedReLU, 1), 4)
    snn.T = 1
    with pytest.raises(ValueError, match="T = 1 and no activation"):
        finetune(snn, (images(), LABELS), epochs=1, lr=0.1)


# identities made of names and shapes only


class Mine(LIF):
    "A subclass with the same law."


def test_settings_of_a_subclass_are_compared():
    with pytest.raises(ValueError, match=r"stem_neuron \(Mine\): decay = 0.9 there, 0.25 here"):
        net(partial(Mine, 0.25, 0.5)).load_state_dict(net().state_dict())
    net(partial(Mine, 0.9, 0.5)).load_state_dict(net().state_dict())
    nn.ModuleList([nn.ReLU()]).load_state_dict(nn.ModuleList([LIF()]).state_dict(), strict=False)


def test_a_neuron_in_a_list_is_named_by_its_place():
    with pytest.raises(ValueError, match=r"differ in 0 \(LIF\): decay = 0.8 there, 0.9 here"):
        nn.ModuleList([LIF(0.9)]).load_state_dict(nn.ModuleList([LIF(0.8)]).state_dict())


def two_rates(share):
    def make(parameters, lr):
        weight, bias = parameters
        return torch.optim.SGD([{"params": [weight]}, {"params": [bias], "lr": share * lr}], lr=lr)

    return make


def test_a_checkpoint_knows_the_rates_of_groups(tmp_path):
    call = partial(fit, train=(images(), LABELS), epochs=1, lr=0.1, checkpoint=tmp_path / "net.pt")
    call(linear(), optimizer=two_rates(0.1))
    with pytest.raises(ValueError, match=r"groups\[1\] lr is 0.01"):
        call(linear(), optimizer=two_rates(0.5))


def test_a_checkpoint_knows_whether_answers_come_at_every_step(tmp_path):
    def call(per_step):
        model = net()
        model.per_step = per_step
        return fit(
            model,
            (images(), LABELS),
            epochs=1,
            lr=0.1,
            checkpoint=tmp_path / "net.pt",
            loss=mean_loss,
        )

    call(True)
    with pytest.raises(ValueError, match="per_step is true there, false here"):
        call(False)


# non-linear reductions before sums


@pytest.mark.parametrize(
    "head",
    [
        lambda x: 1 / (0.1 + x.mean((2, 3))),
        lambda x: (x // 0.1).mean((2, 3)),
        lambda x: x.sum((2, 3)) / x.sum((2, 3)).sum(1, keepdim=True),
    ],
)
def test_quotients_of_activations_are_no_rates(head):
    with pytest.raises(SpikifyError, match="divides by an activation|multiplies two activations"):
        spikify(own(head))


def test_the_mean_over_a_map_of_any_size_stays():
    model = own(lambda x: x.sum((2, 3)) / x.size(2) / x.shape[3])
    assert (convert(model, images(), T=500)(images()) - model(images())).abs().max() < 0.02


def test_a_loss_of_the_mean_is_not_the_mean_of_losses():
    logits, y = torch.tensor([[[4.0, 0.0]], [[-2.0, 0.0]]]), torch.tensor([0])
    assert mean_loss(logits, y).item() == pytest.approx(
        F.cross_entropy(torch.tensor([[1.0, 0.0]]), y).item()
    )
    each = [F.cross_entropy(step, y).item() for step in logits]
    assert tet_loss(logits, y, lamb=0.0).item() == pytest.approx(sum(each) / 2)


# closures as hooks


def test_a_membrane_goes_on_over_stretches_for_each_of_two_places_of_one_object():
    torch.manual_seed(0)
    neuron = LIF(0.9, 0.5)
    trunk, x = (
        nn.Sequential(nn.Linear(6, 6), neuron, nn.Linear(6, 6), neuron),
        3 * torch.rand(9, 2, 6),
    )
    for steps in (1, 2, 4, 20):
        assert torch.equal(recompute_steps(trunk, x, steps), trunk(x))
    assert not trunk[1]._forward_hooks and not trunk[1]._forward_pre_hooks


def test_hooks_are_gone_after_an_error_in_the_middle():
    snn = convert(flat(), images(), T=2)
    with pytest.raises(ValueError, match="NaN"), monitor(snn):
        snn(images() * float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        calibrate(snn, flat(), images() * float("nan"), T=2)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in snn.modules())


def test_a_network_run_with_less_memory_is_saved_with_its_way_of_running(tmp_path):
    for run in (recompute_blocks, partial(recompute_steps, steps=2)):
        model = net(T=4).eval()
        model.run = run
        save_network(model, tmp_path / "net.safetensors")
        back = load_network(tmp_path / "net.safetensors")
        assert getattr(back.run, "keywords", {}) == getattr(run, "keywords", {}) and torch.equal(
            back(images()), model(images())
        )


# annotated types and axis orders


@pytest.mark.parametrize(
    "head",
    [
        lambda x: x.sum((2, 3)) / x.shape[0],
        lambda x: x.mean((2, 3)) * x.size(0),
        lambda x: x.mean((2, 3)) + x.size()[0],
        lambda x: x.mean((2, 3)) / (x.shape[0] * 2),
    ],
)
def test_the_batch_size_is_no_number_to_compute_with(head):
    with pytest.raises(
        SpikifyError, match="computes with the batch size, which is images times steps here"
    ):
        spikify(own(head))


def test_items_and_steps_of_equal_number_are_not_exchanged():
    clips = torch.rand(4, 4, 3, 6, 6)
    right = evaluate(net(T=4), Sequences(clips, LABELS))
    assert set(right) == {"loss", "accuracy"}
    for data in (
        (clips, LABELS),
        TensorDataset(clips, LABELS),
        ConcatDataset([Sequences(clips, LABELS)]),
    ):
        with pytest.raises(ValueError, match=r"\[T, N"):
            evaluate(net(T=4), data, batch_size=4)


def test_what_takes_images_takes_no_single_image():
    snn = convert(flat(), images(), T=2)
    for door in (
        lambda: snn(images()[0]),
        lambda: net()(images()[0]),
        lambda: convert(flat(), images()[0]),
        lambda: calibrate(snn, flat(), images()[0], T=2),
    ):
        with pytest.raises(ValueError, match=r"shape [\[(]3, 6, 6[\])].*\[N, C, H, W\]"):
            door()


# defaults for absent fields


def test_a_threshold_that_is_no_worth_is_not_loaded():
    snn = convert(flat(), images(), T=4)
    state = snn.state_dict()
    for theta in (-1.0, 0.0, float("nan")):
        with pytest.raises(ValueError, match="theta"):
            snn.load_state_dict(state | {"1.theta": torch.tensor(theta)})


def test_every_group_of_an_optimiser_keeps_its_rate():
    model, start = linear(), linear()
    fit(
        model,
        (images(), LABELS),
        epochs=1,
        lr=0.1,
        batch_size=4,
        schedule="constant",
        optimizer=two_rates(0.1),
    )
    F.cross_entropy(start(images()), LABELS).backward()
    assert torch.allclose(model[1].weight, start[1].weight - 0.1 * start[1].weight.grad, atol=1e-6)
    assert torch.allclose(model[1].bias, start[1].bias - 0.01 * start[1].bias.grad, atol=1e-6)


def test_settings_that_are_no_settings_are_refused():
    state = net().state_dict()
    for junk in (torch.tensor([1, 2, 3], dtype=torch.uint8), None):
        with pytest.raises((TypeError, ValueError), match="unpack: packed"):
            net().load_state_dict(state | {"_extra_state": junk})


def test_a_surrogate_without_its_constants_is_refused():
    for constants in ((), (1.0, 2.0), [1.0], (0.0,)):
        with pytest.raises((TypeError, ValueError), match="Surrogate: constants|atan: alpha"):
            Surrogate("atan", constants)
    assert pickle.loads(pickle.dumps(LIF(surrogate=atan(3.0)))).surrogate == atan(3.0)


# advice that does not apply, and universal claims


def test_the_way_out_of_a_learned_threshold_gives_the_spikes_of_one():
    torch.manual_seed(0)
    x, v_th = 2 * torch.rand(6, 3, 4), nn.Parameter(torch.tensor([0.4, 0.7, 1.0, 1.6]))
    assert torch.equal(lif(x, 0.9, v_th)[0], lif(x / v_th, 0.9, 1.0)[0])
    for reset in ("hard", "soft"):
        each = torch.stack([lif(x[..., i], 0.9, v_th[i].item(), reset)[0] for i in range(4)], -1)
        assert torch.equal(lif(x / v_th, 0.9, 1.0, reset)[0], each)
    lif(x / v_th, 0.9, 1.0)[0].sum().backward()
    assert v_th.grad.abs().sum() > 0


def test_answers_of_every_step_name_the_losses_that_take_them():
    model = net()
    model.per_step = True
    with pytest.raises(
        ValueError, match="logits of every step need a loss that takes them, such as mean_loss"
    ):
        fit(model, (images(), LABELS), epochs=1, lr=0.1)
    fit(model, (images(), LABELS), (images(), LABELS), epochs=1, lr=0.1, loss=mean_loss)


def test_a_division_is_not_answered_by_another_architecture():
    with pytest.raises(SpikifyError) as refused:
        spikify(own(lambda x: 1 / x.mean((2, 3))))
    assert "resnet" not in str(refused.value) and "divide by a number" in str(refused.value)


# counting in the data's precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rates_of_many_steps_are_counted_in_float32(dtype):
    spikes = (torch.arange(3000) % 3 == 0).to(dtype).view(-1, 1, 1)
    for readout in (
        RateReadout(1, 1),
        MembraneReadout(1, 1, decay=1.0),
        SpikeReadout(1, 1, partial(LIF, 1e-6, 0.5)),
    ):
        readout = readout.to(dtype)
        nn.init.ones_(readout.linear.weight), nn.init.zeros_(readout.linear.bias)
        expected = 1000 if isinstance(readout, MembraneReadout) else 1 / 3
        assert readout(spikes).item() == pytest.approx(expected, rel=4e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_probabilities_and_long_clocks_in_half_precision(dtype):
    image = torch.full((1, 2000), 1 / 255, dtype=dtype)
    assert poisson(
        image, 1000, torch.Generator().manual_seed(0)
    ).float().mean().item() == pytest.approx(image[0, 0].item(), rel=0.01)
    grays = torch.linspace(0, 1, 300).to(dtype)[None]
    assert torch.equal(latency(grays, 1000), latency(grays.double(), 1000).to(dtype))


def test_spikes_are_counted_alike_in_half_precision():
    table = synops(spikify(flat().bfloat16(), partial(LIF, 0.5, 1e-6), T=300), images().bfloat16())
    wide = synops(
        spikify(flat().bfloat16().float(), partial(LIF, 0.5, 1e-6), T=300),
        images().bfloat16().float(),
    )
    assert table.AC.sum() == pytest.approx(wide.AC.sum(), rel=0.02) and table.AC.sum() > 2**11


# data left out of a table or a hand-over


def test_a_converted_network_is_whole_in_every_table():
    snn, x = convert(flat(), images(), T=5, per_channel=True), images()
    table = synops(snn, x)
    with monitor(snn) as records:
        snn(x)
    (record,) = records.values()
    assert record.steps == 5 * len(x)
    assert (
        table.spikes_out.sum() == pytest.approx(record.counts.sum().item() / len(x))
        and table.spikes_out.sum() > 0
    )


def test_files_keep_what_a_calibration_found(tmp_path):
    snn = calibrate(convert(flat(), images(), T=4), flat(), images(), T=4)
    save_network(snn, tmp_path / "net.safetensors")
    torch.save(snn, tmp_path / "net.pt")
    for back in (
        load_network(tmp_path / "net.safetensors"),
        torch.load(tmp_path / "net.pt", weights_only=False),
    ):
        for T in (4, 9):
            snn.T = back.T = T
            assert torch.equal(back(images()), snn(images()))
    fresh = convert(flat(), images(), T=9)
    fresh.load_state_dict(snn.state_dict())
    assert torch.equal(fresh(images()), snn(images()))


def test_frames_and_images_answer_alike_and_all_steps_are_in_the_mean():
    snn = spikify(flat(), partial(LIF, 0.5, 0.2), T=6).eval()
    answer = snn(images())
    assert torch.equal(snn(direct(images(), 6)), answer)
    snn.per_step = True
    assert torch.equal(snn(images()).mean(0), answer) and len(snn(images())) == 6
