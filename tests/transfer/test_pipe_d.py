"""pipe-D: what each stage may change and what not, against plain computations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Subset

from neurobridge.core import Sequences, evaluate, fit, seed_everything
from neurobridge.data import odg, odg_frames
from neurobridge.snn import LIF, spiking_convnet, spiking_resnet
from neurobridge.transfer import (
    EVENT_PRESETS,
    LIAF,
    SPIKING,
    EventPreset,
    VideoNet,
    pipe_d,
    static_stage,
    swap_stem,
    to_spikes,
    warm_up,
)
from neurobridge.transfer.conv_lstm import copy_parts
from neurobridge.transfer.event_pipeline import swap_readout


def net_of(kind, neuron, channels=1, T=1):
    if kind == "convnet":
        return spiking_convnet(neuron, in_channels=channels, classes=3, T=T, width=4)
    return spiking_resnet(
        (1, 1), neuron, in_channels=channels, classes=3, T=T, width=4, shortcut=kind
    )


def clips(count=24, T=4, side=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return Sequences(
        (torch.rand(count, T, 2, side, side, generator=draw) < 0.3).byte(), torch.arange(count) % 3
    )


KINDS = ("convnet", "vanilla", "sew", "ms")


def weights(net):
    return {
        name: value.clone()
        for name, value in net.state_dict().items()
        if not name.endswith("_extra_state")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_swap_keeps_all_but_the_stem(kind):
    ann = net_of(kind, nn.ReLU)
    was = weights(ann)
    seed_everything(5)
    swapped = swap_stem(ann, T=4)
    new = weights(swapped)
    assert {n for n in new if n not in was} == {n for n in new if n.endswith("decay_logit")}
    assert all(torch.equal(new[n], was[n]) for n in was if not n.startswith("stem."))
    assert new["stem.0.weight"].shape == (4, 2, *was["stem.0.weight"].shape[2:]) and swapped.T == 4
    assert torch.equal(new["stem.1.running_mean"], torch.zeros(4)) and torch.equal(
        new["stem.1.weight"], torch.full((4,), 0.5)
    )
    assert all(torch.equal(a, b) for a, b in zip(weights(ann).values(), was.values(), strict=True))
    seed_everything(5)
    assert all(
        torch.equal(a, b)
        for a, b in zip(weights(swap_stem(ann, T=4)).values(), new.values(), strict=True)
    )
    assert swapped(torch.zeros(4, 2, 2, 8, 8)).shape == (2, 3)


def test_an_event_network_keeps_its_neurons_when_the_stem_is_swapped():
    spiking = net_of("convnet", LIF, 2, T=4)
    swapped = swap_stem(spiking, in_channels=3)
    assert [m.decay for m in swapped.modules() if isinstance(m, LIF)] == [
        0.25
    ] * 3 and swapped.stem[0].in_channels == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["stem", "readout"])
def test_the_warm_up_moves_the_new_part_alone(kind, part):
    net = swap_stem(net_of(kind, nn.ReLU))
    always = (
        net.trunk[0].conv.weight
        if kind == "convnet" and hasattr(net.trunk[0].conv, "weight")
        else next(net.trunk.parameters())
    )
    always.requires_grad_(False)
    was = {n: p.detach().clone() for n, p in net.named_parameters()}
    mean = {n: b.clone() for n, b in net.named_buffers() if n.endswith("running_mean")}
    warm_up(net, clips(), epochs=1, lr=0.1, batch_size=8, part=part)
    moved = {n for n, p in net.named_parameters() if not torch.equal(p, was[n])}
    assert moved == {n for n in was if n.startswith(part + ".")}
    assert all(
        not torch.equal(b, mean[n]) for n, b in net.named_buffers() if n in mean
    )  # batch norm follows the events
    assert [p for p in net.parameters() if not p.requires_grad] == [
        always
    ]  # what the caller froze stays frozen


def test_the_warm_up_thaws_what_it_froze_also_after_an_error():
    net = swap_stem(net_of("convnet", nn.ReLU))
    with pytest.raises(ValueError, match="epochs"):
        warm_up(net, clips(), epochs=0, lr=0.1)
    assert all(p.requires_grad for p in net.parameters())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.floats(-2, 2), st.integers(0, 10**6))
def test_both_outputs_of_the_neuron_by_a_plain_loop(T, k, seed):
    x = torch.randn(T, 5, generator=torch.Generator().manual_seed(seed)).double()
    sent = {}
    for name, make in (("LIAF", LIAF), ("LIF", SPIKING)):
        neuron = make().double()
        assert abs(torch.sigmoid(neuron.decay_logit).item() - 0.6224593312018546) < 1e-6
        nn.init.constant_(neuron.decay_logit, k)
        sent[name] = neuron(x).detach()
    v, leak = torch.zeros(5).double(), torch.sigmoid(torch.tensor(k, dtype=torch.float64))
    for t in range(T):
        h = leak * v + x[t]
        spike = (h > 0.5).double()
        torch.testing.assert_close(sent["LIAF"][t], torch.maximum(h, 0.2 * h), rtol=1e-6, atol=1e-6)
        assert torch.equal(sent["LIF"][t], spike) or (h - 0.5).abs().min() < 1e-6
        v = h * (1 - spike)


@pytest.mark.parametrize("kind", KINDS)
def test_told_to_spike_is_the_network_built_of_spiking_neurons(kind):
    liaf = net_of(kind, LIAF, 2, T=4).eval()
    for name, p in liaf.named_parameters():
        if name.endswith("decay_logit"):
            nn.init.constant_(p, 0.9)  # a learned decay goes along
    spiking, built = to_spikes(liaf), net_of(kind, SPIKING, 2, T=4).eval()
    built.load_state_dict(spiking.state_dict())
    x = torch.rand(4, 3, 2, 8, 8)
    assert torch.equal(spiking(x), built(x)) and not torch.equal(spiking(x), liaf(x))
    with pytest.raises(ValueError, match="spikes already"):
        to_spikes(spiking)


def test_sources_and_stems_that_do_not_fit():
    with pytest.raises(ValueError, match="T = 4"):
        static_stage(
            net_of("convnet", nn.ReLU, T=4),
            (torch.zeros(2, 1, 8, 8), torch.zeros(2).long()),
            epochs=1,
            lr=0.1,
        )
    odd = net_of("convnet", nn.ReLU)
    odd.stem = nn.Conv2d(1, 4, 3)
    with pytest.raises(
        ValueError, match="net has the stem Conv2d; expected a convolution and its batch norm"
    ):
        swap_stem(odd)


def test_a_new_readout_and_everything_else():
    net = net_of("vanilla", LIAF, 2, T=4)
    other = swap_readout(net, 7)
    assert all(
        torch.equal(p, other.state_dict()[n])
        for n, p in net.state_dict().items()
        if not n.startswith("readout")
    )
    assert other(torch.zeros(4, 2, 2, 8, 8)).shape == (2, 7)


def test_a_recipe_goes_on_where_it_was(tmp_path):
    preset = EventPreset(
        lambda neuron, **given: spiking_convnet(neuron, width=4, **given),
        *(dict(epochs=2, lr=0.01, batch_size=8) for _ in range(4)),
        T=4,
    )
    images, events = (torch.rand(24, 1, 8, 8), torch.arange(24) % 3), clips()
    stopped = [0]

    def stop(epoch, epochs):
        stopped[0] += 1
        if stopped[0] == 6:  # in the middle of the third stage
            raise KeyboardInterrupt

    given = dict(in_channels=1, classes=3)
    whole, undisturbed = pipe_d(preset, (images, None), (events, None), **given)
    with pytest.raises(KeyboardInterrupt):
        pipe_d(preset, (images, None), (events, None), folder=tmp_path, on_epoch=stop, **given)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["liaf.pt", "static.pt", "warm.pt"]
    again, histories = pipe_d(preset, (images, None), (events, None), folder=tmp_path, **given)
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True)
    )
    for stage, history in histories.items():
        assert [r["train_loss"] for r in history.rows] == [
            r["train_loss"] for r in undisturbed[stage].rows
        ]


def test_the_published_constants():
    r18, r34 = EVENT_PRESETS["es-imagenet-resnet18"], EVENT_PRESETS["es-imagenet-resnet34"]
    made = r18.liaf["optimizer"]([nn.Parameter(torch.zeros(1))], lr=r18.liaf["lr"])
    assert isinstance(made, torch.optim.SGD) and {
        k: made.defaults[k] for k in ("lr", "momentum", "weight_decay", "nesterov")
    } == {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}
    assert [round(r18.liaf["schedule"](e / 30), 6) for e in (0, 9, 10, 19, 20, 29)] == [
        1,
        1,
        0.1,
        0.1,
        0.01,
        0.01,
    ]
    assert [round(r34.liaf["schedule"](e / r34.liaf["epochs"]), 6) for e in (0, 5, 6, 11, 12)] == [
        1,
        1,
        0.1,
        0.1,
        0.01,
    ]
    assert (
        r18.warm["epochs"],
        r34.warm["epochs"],
        r18.T,
        r18.static["batch_size"],
        r18.liaf["batch_size"],
    ) == (1, 10, 8, 64, 22)
    other = r34.liaf["optimizer"]([nn.Parameter(torch.zeros(1))], lr=r34.liaf["lr"]).defaults
    assert (
        other["lr"],
        other["weight_decay"],
        other["nesterov"],
        r18.spikes["lr"],
        r34.spikes["lr"],
    ) == (3e-2, 5e-4, False, 1e-2, 3e-3)
    for preset in (r18, r34):
        assert [
            round(preset.spikes["schedule"](e / preset.spikes["epochs"]), 6) for e in (7, 8, 15, 16)
        ] == [1, 0.1, 0.1, 0.01]
        net = swap_stem(preset.network(nn.ReLU, in_channels=3, classes=1000, T=1, width=4))
        assert net(torch.zeros(2, 1, 2, 64, 64)).shape == (1, 1000)


def test_sequences_arrive_time_first():
    data = clips(10)
    net = net_of("convnet", LIF, 2, T=4).eval()
    by_hand = (net(data.x.transpose(0, 1).float()).argmax(1) == data.y).double().mean().item()
    assert evaluate(net, data, batch_size=3)["accuracy"] == by_hand
    half = Subset(data, [9, 3, 5])
    assert (
        evaluate(net, half)["accuracy"]
        == (net(data.x[[9, 3, 5]].transpose(0, 1).float()).argmax(1) == data.y[[9, 3, 5]])
        .double()
        .mean()
        .item()
    )
    assert data[3][0].shape == (4, 2, 8, 8) and len(data) == 10
    fit(net, data, half, epochs=1, lr=0.01, batch_size=5)
    with pytest.raises(ValueError, match=r"expected \[N, T"):
        Sequences(torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(ValueError, match="4 inputs but 3 targets"):
        Sequences(torch.zeros(4, 3, 2), torch.zeros(3))


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(4, 12),
    st.integers(4, 40),
    st.sampled_from([1, 3]),
    st.integers(0, 10**6),
)
def test_small_shaken_pictures_keep_every_event(count, size, side, channels, seed):
    images = torch.randint(
        0,
        256,
        (count, channels, size, size),
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.uint8,
    )
    frames = odg_frames(images, side=side)
    assert (
        frames.shape == (count, 8, 2, side + 2, side + 2)
        and frames.dtype == torch.uint8
        and frames.max() <= 1
    )
    for image, seen in zip(images, frames, strict=True):
        events, _ = odg(image, side=side, margin=0)
        assert seen.sum() == len(events) and all(
            seen[t - 1, 1 - p, y, x]
            for t, y, x, p in zip(events.t, events.y, events.x, events.p, strict=True)
        )


def test_only_square_pictures_are_shaken_together():
    with pytest.raises(ValueError, match="expected square ones"):
        odg_frames(torch.zeros(2, 1, 8, 9, dtype=torch.uint8), side=8)


@pytest.mark.parametrize("parts", [dict(decoder=False), dict(encoder=False), {}])
def test_parts_of_a_video_network_are_carried(parts):
    source = VideoNet(nn.ReLU, 3, 5, channels=(4, 6), features=8, hidden=7)
    seed_everything(1)
    made = copy_parts(source, LIF, 2, **parts)
    old, new = source.state_dict(), made.state_dict()
    carried = {
        n for n in new if n in old and new[n].shape == old[n].shape and torch.equal(new[n], old[n])
    }
    norms = {n for n in new if "layers.0.1" in n}  # a fresh norm is like an untrained one
    expected = {
        n
        for n in old
        if (n.startswith("encoder") and "layers.0" not in n and parts.get("encoder", True))
        or (not n.startswith("encoder") and parts.get("decoder", True))
    }
    untrained = {n for n in old if n.startswith("encoder.layers") and ".1." in n}
    assert carried - norms - untrained == expected - untrained
    made.memory.weight_hh_l0.data.zero_()
    assert not torch.equal(source.memory.weight_hh_l0, torch.zeros_like(source.memory.weight_hh_l0))
    with pytest.raises(ValueError, match="from scratch"):
        copy_parts(source, encoder=False, decoder=False)


def test_a_video_network_reads_the_order():
    seed_everything(0)
    net = VideoNet(nn.ReLU, 1, 5, channels=(4, 6), features=8, hidden=7).eval()
    x = torch.rand(4, 2, 1, 16, 16)
    one = torch.stack([net.encoder(x[:, i : i + 1])[:, 0] for i in range(2)], 1)
    torch.testing.assert_close(net(x), net.readout(net.memory(one)[1][0][-1]))
    assert (
        net(x) - net(x.flip(0))
    ).abs().max() > 1e-4  # for stateless neurons only the memory can know
