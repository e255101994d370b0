"""What would bore a reader of the page snn/06_monitor: every kind of neuron and call, and that nothing is touched, also when things break."""

import copy
import io

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from neurobridge.core import evaluating
from neurobridge.snn import (
    LIF,
    firing,
    monitor,
    rate_histogram,
    spike_raster,
    spiking_convnet,
    spiking_resnet18,
    synops,
)
from neurobridge.snn.recording import Record, fires
from neurobridge.transfer import convert


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def by_hand(x, decay, v_th, reset, v0=None):
    "Membranes before reset and spikes, one number at a time."
    h, s = np.zeros(x.shape, np.float32), np.zeros(x.shape, bool)
    decay = np.float32(decay)
    for index in np.ndindex(*x.shape[1:]):
        v = np.float32(0 if v0 is None else v0[index])
        for t in range(len(x)):
            h[t][index] = decay * v + np.float32(x[t][index])
            s[t][index] = h[t][index] > np.float32(v_th)
            v = np.float32(
                h[t][index] - v_th * s[t][index]
                if reset == "soft"
                else h[t][index] * (not s[t][index])
            )
    return h, s


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["hard", "soft"]),
    st.sampled_from(["spike", "analogue"]),
    st.sampled_from([0.25, 0.5, 1.0]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_every_setting_of_the_neuron(reset, output, decay, start, seed):
    x, v0 = (
        torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(seed)),
        torch.full((2, 3), 0.3) if start else None,
    )
    layer = LIF(decay=decay, v_th=0.4, reset=reset, output=output)
    with monitor(layer, membranes=True) as seen:
        layer(x, v0)
    h, s = by_hand(x.numpy(), decay, 0.4, reset, None if v0 is None else v0.numpy())
    torch.testing.assert_close(seen[""].membranes, torch.from_numpy(h), rtol=1e-5, atol=1e-6)
    assert torch.equal(seen[""].spikes, torch.from_numpy(s))
    torch.testing.assert_close(seen[""].rates, torch.from_numpy(s).float().mean((0, 1)))


def test_learned_decay_and_every_way_of_calling():
    layer, x, v0 = LIF(decay=0.6, learn_decay=True), torch.randn(4, 2, 3), torch.full((2, 3), 0.2)
    calls = [
        lambda: layer(x, v0),
        lambda: layer(x, v0=v0),
        lambda: layer(x=x, v0=v0),
        lambda: layer(x, v0, True),
        lambda: layer(x, v0=v0, return_state=True),
    ]
    for call in calls:
        with monitor(layer, membranes=True) as seen:
            out = call()
        out = out[0] if isinstance(out, tuple) else out
        assert torch.equal(seen[""].spikes, out > 0) and torch.equal(
            seen[""].spikes, seen[""].membranes > 0.5
        )
        torch.testing.assert_close(seen[""].membranes[0], 0.6 * v0 + x[0])


def test_nothing_is_touched_in_training():
    "Answer and random stream are those of an unwatched run; gradients and running statistics to the rounding of another order of sums."

    def run(watched):
        torch.manual_seed(0)
        net = spiking_resnet18(width=4, in_channels=1, classes=3, T=3, small_images=True).double()
        x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
        if watched:
            with monitor(net, membranes=True) as seen:
                answer = net(x)
            assert not any(record.membranes.requires_grad for record in seen.values())
        else:
            answer = net(x)
        answer.square().sum().backward()
        return [
            answer,
            torch.rand(3),
            *(p.grad for p in net.parameters()),
            *net.state_dict().values(),
        ]

    for k, (a, b) in enumerate(zip(run(True), run(False), strict=True)):
        torch.testing.assert_close(a, b, rtol=0 if k < 2 else 1e-10, atol=0 if k < 2 else 1e-12)


def test_records_do_not_change_when_the_output_is_changed_in_place():
    layer = LIF()
    with monitor(layer) as seen:
        out = layer(torch.ones(2, 1, 3))
        out.zero_()
    assert seen[""].spikes.all()


def test_hooks_go_and_only_ours():
    net = spiking_convnet(T=2, width=4)
    own = net.stem_neuron.register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="stop"), monitor(net):
        raise RuntimeError("stop")
    hooks = [hook for module in net.modules() for hook in module._forward_hooks]
    assert hooks == [own.id] and not any(
        module._forward_hooks_with_kwargs for module in net.modules()
    )


def test_a_copy_made_inside_is_not_recorded():
    "Its hooks would count a teacher's or an average's spikes, and keep it from being saved."
    net, x = spiking_convnet(T=4, width=4).eval(), torch.rand(2, 1, 28, 28)
    with monitor(net) as records:
        net(x)
        once = records["stem_neuron"].counts.clone()
        twin = copy.deepcopy(net)
        twin(x)
        torch.save(net, io.BytesIO())
    torch.save(twin, io.BytesIO())
    twin(x)
    assert once.sum() > 0 and records["stem_neuron"].counts.equal(once)


def test_two_at_once():
    net, x = spiking_convnet(T=2, width=4).eval(), torch.randn(3, 1, 8, 8)
    with monitor(net) as outer:
        with monitor(net, ["stem_neuron"]) as inner:
            net(x)
        net(x)
    assert (
        list(inner) == ["stem_neuron"]
        and inner["stem_neuron"].steps == 6
        and outer["stem_neuron"].steps == 12
    )
    assert torch.equal(outer["stem_neuron"].spikes[:, 3:], inner["stem_neuron"].spikes)


def test_a_layer_used_twice_is_counted_twice():
    shared = LIF()
    with monitor(nn.Sequential(shared, nn.Identity(), shared)) as seen:
        nn.Sequential(shared, shared)(torch.ones(3, 2, 4))
    assert seen["0"].steps == 12 and seen["0"].spikes.shape == (3, 4, 4)


def test_rates_over_other_lengths_of_time_but_not_over_other_shapes():
    layer = LIF()
    with monitor(layer) as seen:
        layer(torch.ones(2, 3, 5))
        layer(torch.zeros(6, 1, 5))
        with pytest.raises(ValueError, match=r"neurons of shape \(5,\), now \(1,\)"):
            layer(torch.ones(2, 3, 1))
    torch.testing.assert_close(seen[""].rates, torch.full((5,), 6 / 12))
    with pytest.raises(ValueError, match=r"calls had \[2, 6\] time steps"):
        _ = seen[""].spikes


def test_only_rates_keeps_no_sequences():
    layer = LIF()
    with monitor(layer, only_rates=True) as seen:
        for _ in range(3):
            layer(torch.ones(2, 3, 5))
    assert not seen[""].parts and seen[""].steps == 18 and seen[""].counts.dtype == torch.int64


@pytest.mark.parametrize(
    "layers, message",
    [
        (["stem"], "'stem' is no layer of LIF neurons; this model has stem_neuron, trunk.0.neuron"),
        (["nowhere"], "'nowhere'"),
        ([], "0 were chosen"),
    ],
)
def test_wrong_layers(layers, message):
    with pytest.raises(ValueError, match=message), monitor(spiking_convnet(), layers):
        pass


def test_one_name_may_come_without_a_list():
    with monitor(spiking_convnet(), "stem_neuron") as seen:
        assert list(seen) == ["stem_neuron"]


def test_wrong_model_and_settings():
    with pytest.raises(ValueError, match="Linear has 0 layers of LIF"), monitor(nn.Linear(2, 2)):
        pass
    with (
        pytest.raises(ValueError, match="choose one"),
        monitor(LIF(), membranes=True, only_rates=True),
    ):
        pass


def test_what_was_not_kept_is_not_given():
    layer = LIF()
    with monitor(layer, only_rates=True) as seen:
        layer(torch.ones(2, 3, 1))
    with pytest.raises(ValueError, match="only_rates=False"):
        _ = seen[""].spikes
    with pytest.raises(ValueError, match="membranes=True"):
        _ = seen[""].membranes
    for what in ("spikes", "membranes", "rates"):
        with pytest.raises(ValueError, match="never called"):
            getattr(Record(), what)


def test_evaluating_gives_back_every_mode_after_an_error():
    net = spiking_convnet()
    net.train()
    net.stem.eval()
    modes = {name: module.training for name, module in net.named_modules()}
    with pytest.raises(KeyError), evaluating(net) as same:
        assert (
            same is net
            and not any(module.training for module in net.modules())
            and not torch.is_grad_enabled()
        )
        raise KeyError
    assert (
        torch.is_grad_enabled()
        and {name: module.training for name, module in net.named_modules()} == modes
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 10), min_size=1, max_size=12), st.floats(0.05, 1.0))
def test_firing_table(counts, limit):
    record = Record(steps=10, counts=torch.tensor(counts))
    row = firing({"a": record}, saturated=limit).loc["a"]
    rates = np.array(counts, np.float32) / np.float32(10)
    assert (
        row.neurons == len(counts)
        and row.silent == pytest.approx(np.mean(rates == 0))
        and row.rate == pytest.approx(rates.mean(), abs=1e-6)
    )
    assert row.saturated == pytest.approx(np.mean(rates >= limit))


def test_histogram_puts_every_neuron_in_a_bin():
    ax = rate_histogram({"a": Record(steps=4, counts=torch.tensor([0, 4, 4, 1]))}, bins=4)
    heights = {round(x, 2): y for x, y in ax.patches[0].get_path().vertices.tolist()}
    assert (
        ax.patches[0].get_path().vertices[:, 1].max() == 0.5
        and heights
        and ax.get_xlabel()
        and ax.get_ylabel()
    )
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a"]


def test_raster_draws_the_chosen_item():
    layer = LIF()
    x = torch.zeros(3, 2, 4)
    x[1, 1, 2] = 1.0
    with monitor(layer) as seen:
        layer(x)
    assert len(spike_raster(seen[""], item=0).collections[0].get_segments()) == 0
    for item in (1, -1):
        (tick,) = spike_raster(seen[""], item=item).collections[0].get_segments()
        assert tuple(tick.mean(0)) == (1, 2)
    with pytest.raises(IndexError, match="item 2 of a batch of 2"):
        spike_raster(seen[""], item=2)


def test_the_limit_itself_counts_as_saturated():
    assert (
        firing({"a": Record(steps=4, counts=torch.tensor([2, 1]))}, saturated=0.5).saturated["a"]
        == 0.5
    )


# Whatever fires


class Own(nn.Module):
    "Somebody's own neuron, whose spikes are worth 0.3."

    fires = True

    def forward(self, x):
        return 0.3 * (x > 0.5)


def test_converted_networks_are_watched():
    torch.manual_seed(0)
    ann, images = (
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 2),
        ).eval(),
        torch.rand(5, 1, 8, 8),
    )
    snn, sent = convert(ann, images, T=6, per_channel=True), {}
    for name in ("1", "3"):
        snn.get_submodule(name).register_forward_hook(
            lambda layer, x, out, name=name: sent.update({name: out})
        )
    with monitor(snn) as seen, torch.no_grad():
        snn(images)
    assert list(seen) == ["1", "3"] and fires(snn.get_submodule("1")) and not fires(snn)
    for name, record in seen.items():
        assert torch.equal(record.spikes, sent[name] > 0) and 0 < record.rates.mean() < 1
    with (
        pytest.raises(
            ValueError,
            match="the membrane of '1', a IF, cannot be computed from outside; record its spikes",
        ),
        monitor(snn, membranes=True),
    ):
        pass


def test_own_neurons_are_watched_and_subclasses_with_another_law_have_no_membrane():
    class Weird(LIF):
        def forward(self, x, v0=None, return_state=False):
            return super().forward(2 * x, v0, return_state)

    x = torch.rand(4, 3, 6)
    layer = nn.Sequential(Own(), Weird())
    with monitor(layer) as seen:
        out = layer(x)
    assert torch.equal(seen["0"].spikes, x > 0.5) and torch.equal(seen["1"].spikes, out == 1)
    for unusual, how in ((layer, {"membranes": True}), (Weird(output="analogue"), {})):
        with (
            pytest.raises(ValueError, match="cannot be computed from outside"),
            monitor(unusual, **how),
        ):
            pass


def test_neurons_are_the_same_for_the_monitor_and_for_the_costs():
    for net in (
        spiking_convnet(T=2, width=4),
        nn.Sequential(nn.Linear(8, 8), Own(), nn.Linear(8, 2), LIF()),
    ):
        batch = torch.rand(2, 1, 8, 8)
        table = synops(net, batch, images=2)
        with monitor(net) as seen:
            net.eval()(batch)
        assert (
            set(seen)
            == set(table.index[table.updates > 0])
            == {name for name, module in net.named_modules() if fires(module)}
        )
        for name, record in seen.items():
            assert record.counts.sum() / 2 == table.spikes_out[name]


def test_a_call_without_items_is_refused():
    layer = LIF()
    with (
        monitor(layer),
        pytest.raises(ValueError, match="spikes is .*at least one along each axis"),
    ):
        layer(torch.rand(3, 0, 4))
    for call in (firing, rate_histogram):
        with pytest.raises(ValueError, match="records is empty"):
            call({})
