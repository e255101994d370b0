"The scorecard: its numbers are those of the single functions, for networks of every kind, and nothing is changed."

import copy
import time
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from neurobridge.brain import (
    choose_layer,
    compare_rdms,
    neural_predictivity,
    noise_ceiling,
    rdm,
    record_layers,
    reliability,
    robustness,
)
from neurobridge.bridge import Blueprint, Neuron, Time, compose, pareto, scorecard
from neurobridge.bridge.counting import cost_of, size_of
from neurobridge.bridge.states import answers, features_of, recorded_states, steps_of
from neurobridge.core import data_root, evaluate, seed_everything
from neurobridge.core.plots import pareto_front
from neurobridge.cornet import (
    cornet_r,
    cornet_rt,
    cornet_s,
    cornet_variant,
    cornet_z,
    multiplications,
)
from neurobridge.data import Recording, load_rdm92, load_v4, split_images
from neurobridge.data.recordings import RDM92
from neurobridge.g2g import G2GNet, live_parameters
from neurobridge.snn import LIF, monitor, spiking_convnet, spiking_resnet, synops

few_examples = settings(max_examples=20, deadline=None)
gray = dict(in_channels=1, classes=10)


class Composed(nn.Module):
    "A network as `bridge.compose` makes them: areas, and states by area and step with a time axis."

    T = 3
    areas = ("V1", "IT")

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.neuron, self.again = LIF(), LIF()
        self.readout = nn.Linear(4, 10)

    def states(self, x):
        spikes = self.neuron(self.first(3 * x)[None].expand(self.T, -1, -1, -1, -1))
        current = self.second(spikes.flatten(0, 1)).unflatten(0, (self.T, -1))
        return {("V1", 0): spikes, ("IT", 0): self.again(3 * current)}

    def forward(self, x):
        return self.readout(self.states(x)["IT", 0].mean((0, 3, 4)))


class Across(Composed):
    "The same with one entry per step, as with one clock for all areas."

    def states(self, x):
        return {
            (area, t): step
            for (area, _), steps in super().states(x).items()
            for t, step in enumerate(steps)
        }

    def forward(self, x):
        states = self.states(x)
        return self.readout(torch.stack([states["IT", t] for t in range(3)]).mean((0, 3, 4)))


def networks():
    seed_everything(0)
    return {
        "CORnet-S": cornet_variant(width=4, small_images=True, **gray),
        "CORnet-S, groups": cornet_variant(width=32, norm="group", small_images=True, **gray),
        "CORnet-Z": cornet_z(width=4, **gray),
        "CORnet-R": cornet_r(times=3, width=32, **gray),
        "CORnet-RT": cornet_rt(times=5, width=32, **gray),
        "ANN": spiking_convnet(nn.ReLU, T=1, width=4),
        "SNN": spiking_convnet(LIF, T=4, width=4),
        "residual SNN": spiking_resnet((1, 1), LIF, T=2, width=4),
        "ensembles": G2GNet((1, 8, 8), 10, 32, 2, 4),
        "spiking ensembles": G2GNet((1, 8, 8), 10, 32, 2, 4, form="ensembles", neuron=LIF, T=3),
        "composed": Composed(),
        "across": Across(),
    }


@pytest.fixture(scope="module")
def sets():
    return split_images("digits", 200, test_limit=60)


@pytest.fixture(scope="module")
def scaled(sets):
    mean, std = sets["train"].statistics()
    return {name: part.tensors(mean, std) for name, part in sets.items()}


@pytest.fixture(scope="module")
def brain(sets):
    "Neurons and people without any relation to the networks, 60 images."
    rng = np.random.default_rng(0)
    images = sets["test"].x.repeat(1, 3, 1, 1).permute(0, 2, 3, 1).numpy()
    pixels = images[..., 0].reshape(60, -1) / 255.0
    signal = pixels @ rng.normal(size=(64, 7))
    trials = signal / signal.std(0) + rng.normal(size=(4, 60, 7))
    neurons = Recording(trials, [f"digit {i}" for i in range(60)], images=images)
    people = np.stack([rdm(pixels + 0.2 * rng.normal(size=pixels.shape)) for _ in range(3)])
    return neurons, RDM92(images, pd.DataFrame(), {"fmri_evc": people, "fmri_it": people[:2]})


def features_by_hand(name, model, x):
    "The states of a network by other means."
    model.eval()
    with torch.no_grad():
        if name in ("composed", "across"):
            found = Composed.states(model, x)
            return {area: each.mean(0).flatten(1).numpy() for (area, _), each in found.items()}
        if hasattr(model, "states"):
            found = model.states(x)
            steps = {area: sum(a == area for a, _ in found) for area, _ in found}
            return {
                area if steps[area] == 1 else f"{area}_{step}": each.flatten(1).numpy()
                for (area, step), each in found.items()
            }
    layers = {
        "ANN": ["stem_neuron", "trunk.0", "trunk.1"],
        "SNN": ["stem_neuron", "trunk.0", "trunk.1"],
        "residual SNN": ["stem_neuron", "trunk.0", "trunk.1"],
        "ensembles": ["encoder", "layers.1", "layers.3"],
        "spiking ensembles": ["encoder", "layers.1", "layers.3"],
    }[name]
    recorded = record_layers(model, x, layers)
    return {layer: each.mean(0).reshape(len(x), -1) for layer, each in recorded.items()}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:scorecard")
@pytest.mark.parametrize("name", networks())
def test_the_row_has_the_numbers_of_the_single_functions(name, sets, scaled, brain):
    model = networks()[name]
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    neurons, people = brain
    row = scorecard(model, sets, recordings=neurons, rdms=people, speed=False, images=5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert not any(module._forward_hooks for module in model.modules())
    assert row["accuracy"] == evaluate(model, scaled["test"])["accuracy"]
    assert row["valid_accuracy"] == evaluate(model, scaled["valid"])["accuracy"]
    assert row["parameters"] == live_parameters(model)
    for kind, value in robustness(model, scaled["test"]).items():
        assert row[f"accuracy_{kind}"] == value
    x = scaled["test"][0]
    seen = {
        state: each
        for state, each in features_by_hand(name, model, x).items()
        if (each != each[:1]).any()
    }
    assert {f"v4_{state}" for state in seen} == {
        key for key in row if key.startswith("v4_") and key[3:] in seen
    }
    for state, each in seen.items():
        expected = neural_predictivity(each, neurons).value
        np.testing.assert_allclose(row[f"v4_{state}"], expected, atol=1e-6)
        if (each != each[:, :1]).any(1).all():
            matrix = rdm(each)
            mean = np.mean([compare_rdms(matrix, one) for one in people.rdms["fmri_evc"]])
            np.testing.assert_allclose(row[f"evc_{state}"], mean, atol=1e-6)
    score, chosen = choose_layer(seen, neurons)
    np.testing.assert_allclose(row["v4"], score.value, atol=1e-6)
    assert row["v4_layer"] in chosen and row["v4_low"] < row["v4"] < row["v4_high"]
    np.testing.assert_allclose(row["v4_ceiling"], reliability(neurons).value ** 0.5)
    bounds = noise_ceiling(people.rdms["fmri_it"])
    np.testing.assert_allclose([row["it_ceiling_low"], row["it_ceiling_high"]], bounds)
    assert all(np.isfinite(value) for value in row.values() if not isinstance(value, str))


# Cost


def test_cost_is_that_of_synops_where_synops_counts(scaled):
    x = scaled["test"][0][:6]
    for name in ("CORnet-Z", "ANN", "SNN", "residual SNN", "ensembles", "spiking ensembles"):
        model = networks()[name]
        table, found = synops(model, x), cost_of(model, x)
        for key, column in (("mac", "MAC"), ("ac", "AC"), ("energy", "energy")):
            np.testing.assert_allclose(found[key], table[column].sum())
        if name in ("SNN", "residual SNN", "spiking ensembles"):
            with monitor(model.eval(), only_rates=True) as records, torch.no_grad():
                model(x)
            spikes = sum(float(record.counts.sum()) for record in records.values())
            places = sum(record.counts.numel() * record.steps for record in records.values())
            np.testing.assert_allclose(found["spikes"], spikes / places)
        else:
            assert "spikes" not in found
        np.testing.assert_allclose(
            found["energy"], (4.6 * found["mac"] + 0.9 * found["ac"]) / 1000, rtol=1e-9
        )


@pytest.mark.parametrize("name", ["CORnet-S", "CORnet-S, groups", "CORnet-R", "CORnet-RT"])
def test_every_convolution_is_counted(name, scaled):
    model, x = networks()[name].eval(), scaled["test"][0][:2]
    table = synops(model, x)
    layers = table[~table.index.str.contains("norm")]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    every = counter.get_total_flops() / 2 / 2
    if name.startswith("CORnet-S"):
        np.testing.assert_allclose(layers.average.sum(), every)
    else:  # an area that nothing has reached is silent, which costs nothing
        assert every / 2 < layers.average.sum() < every
    assert layers.MAC.sum() + layers.AC.sum() <= layers.average.sum()


def test_the_loops_of_cornet_s_by_hand():
    "One area's convolutions at each step, on an image of which every synapse exists."
    model = cornet_s(times=(1, 3, 1), width=4, small_images=True, **gray)
    table = synops(model, torch.rand(1, 1, 16, 16))
    # V4: 16 channels, 64 inside; 8×8 pixels come in, 4×4 after the first step
    assert table.MAC["V4.conv1"] == 16 * 64 * (8 * 8 + 2 * 4 * 4)
    assert table.MAC["V4.conv3"] == 64 * 16 * 3 * 4 * 4
    inside = (3 * 4 - 2) ** 2  # synapses of a 3×3 kernel over 4×4 pixels that exist
    first = (3 * 4 - 1) ** 2  # with stride 2 over 8×8
    assert table.MAC["V4.conv2"] == 64 * 64 * (first + 2 * inside)


def test_an_attention_is_refused_and_left_out_on_request(sets):
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            x = self.linear(x.flatten(1))
            return x * torch.sigmoid(x)

    with pytest.raises(ValueError, match="synops"):
        scorecard(Gate(), sets, speed=False)
    assert "mac" not in scorecard(Gate(), sets, cost=False, speed=False)


def test_bytes_are_those_of_the_tensors():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
    assert size_of(model) == {"parameters": 24.0, "bytes": 8.0 * (16 + 8 + 8 + 1)}


# Time


@pytest.mark.parametrize("name", ["CORnet-R", "CORnet-RT", "SNN", "spiking ensembles"])
def test_the_answer_after_a_step_is_that_of_a_shorter_network(name, scaled):
    model, x = networks()[name].eval(), scaled["test"][0][:4]
    where = "times" if hasattr(model, "times") else "T"
    with torch.no_grad():
        found = answers(model, x)
        assert len(found) == getattr(model, where)
        for t in range(1, len(found) + 1):
            setattr(model, where, t)
            torch.testing.assert_close(model(x), found[t - 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 5])  # T among them
@pytest.mark.parametrize("late", [False, True])
def test_answers_of_a_composed_network(count, late):
    class Areas(Composed):
        "Spikes of T steps, or with `late` one state per step, of which the first is missing."

        def __init__(self):
            super().__init__()
            self.decoder = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), self.readout)

        def states(self, x):
            found = super().states(x)
            if not late:
                return found
            (_, first), (_, last) = found.items()
            steps = {("V1", t): each for t, each in enumerate(first)}
            return steps | {("IT", t): each for t, each in enumerate(last) if t}

        def forward(self, x):
            mean = Composed.states(self, x)["IT", 0][int(late) :].mean(0)
            return self.decoder(mean)

    seed_everything(0)
    model, x = Areas().eval(), torch.rand(count, 1, 8, 8)
    with torch.no_grad():
        found, steps = answers(model, x), Composed.states(model, x)["IT", 0][int(late) :]
        assert found.shape == (3 - late, count, 10)
        for t in range(3 - late):
            torch.testing.assert_close(found[t], model.decoder(steps[: t + 1].mean(0)))
    names = list(recorded_states(model, x))
    assert names == ["V1", "IT"]


def test_states_are_named_by_their_own_step():
    class Late(nn.Module):
        def states(self, x):
            return {("V1", 0): x, ("V1", 1): 2 * x, ("IT", 1): 3 * x, ("IT", 2): 4 * x}

    assert list(recorded_states(Late(), torch.rand(4, 1, 2, 2))) == [
        "V1_0",
        "V1_1",
        "IT_1",
        "IT_2",
    ]


def test_networks_with_one_answer_have_no_steps(sets):
    row = scorecard(networks()["CORnet-Z"], sets, cost=False, robust=False, speed=False)
    assert not [key for key in row if "step" in key]


def test_steps_to_answer(sets, scaled):
    row = scorecard(networks()["SNN"], sets, cost=False, robust=False, speed=False)
    each = [row[f"accuracy_step_{t}"] for t in (1, 2, 3, 4)]
    assert each[-1] == row["accuracy"]
    expected = next(t for t in range(4) if all(a >= each[-1] - 0.01 for a in each[t:]))
    assert row["steps_to_answer"] == expected + 1


SMALL_S = Blueprint("cornet_s", width=4, in_shape=(1, 8, 8), classes=10)


def test_with_one_step_inside_the_passes_are_the_steps(scaled):
    "ReLU shown for one step is `static`, and so are its answers: one after each pass of IT."
    x, y = scaled["test"]
    static = compose(SMALL_S)
    for kind in ("relu", "lif"):
        start = Neuron(kind, gain=0.8, bias=0.3) if kind == "lif" else Neuron(kind)
        one = compose(SMALL_S.changed(neuron=start, time=Time(1, "inside"))).eval()
        row = steps_of(one, x, y, 64)
        assert [*row] == ["accuracy_step_1", "accuracy_step_2", "steps_to_answer"]
        assert row["accuracy_step_2"] == evaluate(one, (x, y))["accuracy"]
        if kind == "relu":
            assert row == steps_of(static.eval(), x, y, 64)
        with torch.no_grad():
            for n in (1, 2, 3):  # as many images as steps among them
                assert answers(one, x[:n]).shape == (2, n, 10)
    more = compose(SMALL_S.changed(neuron=start, time=Time(3, "inside")))
    assert "accuracy_step_3" in steps_of(more, x[:8], y[:8], 8)  # its own steps, not the passes


@pytest.mark.parametrize("time", [Time(3, "inside"), Time(3, "across", feedback=True)])
def test_a_silent_network_has_a_row_but_no_likeness(time, scaled, sets, brain):
    "No neuron fires: every image has the same answer, nothing is accumulated, and V4 is refused."
    silent = Neuron("lif", gain=0.01, bias=0.0)
    network = compose(SMALL_S.changed(neuron=silent, time=time)).eval()
    x, y = scaled["test"]
    with torch.no_grad():
        assert not any(each.any() for each in network.states(x[:5]).values())
        answer = int(network(x[:1]).argmax())
    row = scorecard(network, {"test": (x, y)}, speed=False)
    assert row["spikes"] == row["ac"] == 0 < row["mac"]
    assert row["energy"] == pytest.approx(4.6e-3 * row["mac"])
    share = float((y == answer).double().mean())
    same = [value for name, value in row.items() if name.startswith("accuracy")]
    assert same == pytest.approx((1 + 3 + 4) * [share])  # test, steps, corruptions
    assert row["steps_to_answer"] == 1
    neurons, people = brain
    for known in ({"recordings": neurons}, {"rdms": people}):
        with pytest.raises(ValueError, match="no neuron fires; train it"):
            scorecard(network, sets, speed=False, robust=False, steps=False, **known)


# States


def test_time_is_told_from_images_also_where_both_are_equal(scaled):
    model = Composed().eval()
    x = scaled["test"][0][:7]
    whole = recorded_states(model, x, batch_size=7)
    for size in (1, 2, 3, 4):
        found = recorded_states(model, x, batch_size=size)
        for name, each in found.items():
            np.testing.assert_array_equal(each, whole[name])
    assert {name: len(each) for name, each in whole.items()} == {"V1": 3, "IT": 3}
    across = Across().eval()
    across.load_state_dict(model.state_dict())
    for name, each in recorded_states(across, x).items():
        np.testing.assert_array_equal(each, whole[name])


@pytest.mark.parametrize("features", ["mean", "side_by_side", "reduced"])
@pytest.mark.filterwarnings("ignore:scorecard")
def test_features_over_time(features, sets, brain, scaled):
    model = networks()["SNN"]
    neurons, _ = brain
    off = dict(cost=False, robust=False, speed=False, steps=False)
    row = scorecard(model, sets, recordings=neurons, features=features, components=20, **off)
    states = record_layers(model, scaled["test"][0], ["trunk.1"])["trunk.1"]
    own = np.concatenate([step.reshape(60, -1) for step in states], 1)
    if features == "mean":
        own = states.mean(0).reshape(60, -1)
    if features == "reduced":
        others = record_layers(model, scaled["train"][0][:500], ["trunk.1"])["trunk.1"]
        others = np.concatenate([step.reshape(len(step), -1) for step in others], 1).astype(float)
        axes = np.linalg.svd(others - others.mean(0), full_matrices=False)[2][:20]
        own = (own - others.mean(0)) @ axes.T
        assert own.shape == (60, 20)
    expected = neural_predictivity(own, neurons).value
    np.testing.assert_allclose(row["v4_trunk.1"], expected, atol=1e-4)


def test_a_network_without_areas_names_its_layers(sets, brain):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    off = dict(cost=False, robust=False, speed=False)
    with pytest.raises(ValueError, match="layers"):
        scorecard(model, sets, recordings=brain[0], **off)
    row = scorecard(model, sets, recordings={"it_left": brain[0]}, layers=["2"], **off)
    assert {"it_left", "it_left_2", "it_left_ceiling"} <= set(row)


# Data


def test_pairs_of_tensors_need_prepare_for_recordings(sets, scaled, brain):
    model = networks()["CORnet-S"]
    off = dict(cost=False, robust=False, speed=False, steps=False)
    with pytest.raises(ValueError, match="prepare"):
        scorecard(model, scaled, recordings=brain[0], **off)
    mean, std = sets["train"].statistics()

    def prepare(images):
        x = torch.from_numpy(images[..., 0]).float()[:, None] / 255
        return (x - mean.view(1, -1, 1, 1)) / std.view(1, -1, 1, 1)

    given_pairs = scorecard(model, scaled, recordings=brain[0], prepare=prepare, **off)
    given_sets = scorecard(model, sets, recordings=brain[0], **off)
    for key in ("v4", "v4_V4_0", "accuracy", "valid_accuracy"):
        np.testing.assert_allclose(given_pairs[key], given_sets[key], atol=1e-4)


def test_without_test_images_the_validation_images_are_used(sets, scaled):
    model = networks()["ANN"]
    row = scorecard(model, {k: v for k, v in sets.items() if k != "test"}, speed=False)
    assert "accuracy" not in row
    assert row["accuracy_blur"] == robustness(model, scaled["valid"])["blur"]


def test_a_bar_comes_after_two_seconds_and_to_a_person_only(sets, capsys, monkeypatch):
    model = networks()["ANN"]
    off = dict(cost=False, robust=False, speed=False)
    scorecard(model, sets, **off)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    scorecard(model, sets, progress=True, **off)
    assert "scorecard" not in capsys.readouterr().err  # over before two seconds have passed
    slow = copy.deepcopy(model)
    slow.register_forward_pre_hook(lambda *_: time.sleep(0.9))
    scorecard(slow, sets, progress=True, **off)
    assert "scorecard" in capsys.readouterr().err


def test_speed_names_the_device(sets):
    row = scorecard(networks()["ANN"], sets, cost=False, robust=False, steps=False)
    assert row["device"] == f"cpu, {torch.get_num_threads()} threads"
    assert row["latency"] > 0 and row["throughput"] > 64 / row["seconds"] / 100


# Pareto


@few_examples
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 2)), min_size=1))
def test_the_front_by_its_definition(points):
    found = pareto_front(np.array(points, dtype=float))
    for one, own in zip(points, found, strict=True):
        beaten = any(
            all(a >= b for a, b in zip(other, one, strict=True)) and other != one
            for other in points
        )
        assert own != beaten


def front_of(ax):
    (line,) = [each for each in ax.get_lines() if each.get_label() == "_front"]
    return list(zip(*map(np.asarray, line.get_data()), strict=True))


def test_pareto_draws_means_fronts_and_spread():
    table = pd.DataFrame(
        {
            "net": ["a", "a", "b", "b", "c", "d"],
            "energy": [1.0, 3.0, 4.0, 4.0, 5.0, np.nan],
            "accuracy": [0.5, 0.7, 0.8, 0.8, 0.7, 0.9],
            "v4": [0.1, 0.3, 0.2, 0.2, 0.1, 0.4],
            "neuron": ["lif", "lif", "relu", "relu", "relu", "lif"],
        }
    )
    ax = pareto(table, by="net")
    np.testing.assert_allclose(front_of(ax), [(2, 0.6), (4, 0.8)])
    assert "1 rows without energy or accuracy left out" in ax.get_title()
    assert "less is better" in ax.get_xlabel() and "more is better" in ax.get_ylabel()
    assert "a" in [text.get_text() for text in ax.texts]
    words = pareto(table, by=["net", "neuron"], colour="neuron")
    assert [text.get_text() for text in words.get_legend().get_texts()] == ["lif", "relu"]
    np.testing.assert_allclose(front_of(words), front_of(ax))
    dearer = pareto(table, "+energy", "accuracy", None, by="net")
    np.testing.assert_allclose(front_of(dearer), [(4, 0.8), (5, 0.7)])
    single = pareto(table.iloc[:3], colour=None)
    assert len(front_of(single)) == 3


def test_pareto_refuses_what_it_cannot_draw():
    table = pd.DataFrame({"energy": [1.0], "accuracy": [np.nan], "v4": [0.1]})
    with pytest.raises(ValueError, match="no row with both"):
        pareto(table)
    with pytest.raises(ValueError, match="latency"):
        pareto(table, "latency")
    with pytest.raises(TypeError, match="no numbers"):
        pareto(table.assign(accuracy=["high"]))


# Real recordings


@pytest.mark.long
@pytest.mark.data
def test_a_cornet_s_against_v4_and_the_92_images():
    for folder in ("macaque_v4_210325", "rdm92"):
        if not (data_root() / folder).is_dir():
            pytest.skip(f"no {data_root() / folder}: set NEUROBRIDGE_DATA, see data/README.md")
    seed_everything(0)
    sets = split_images("digits", 200, test_limit=60)
    model = cornet_variant(width=8, small_images=True, **gray)
    row = scorecard(model, sets, recordings=load_v4(), rdms=load_rdm92(), speed=False)
    assert 0.05 < row["v4"] < 0.4 and abs(row["v4_ceiling"] - 0.87) < 0.01
    assert abs(row["it_ceiling_low"] - 0.449) < 0.01 and abs(row["evc_ceiling_low"] - 0.239) < 0.01
    assert len([key for key in row if key.startswith(("it_V", "it_IT"))]) == 9
    assert multiplications(model, sets["test"].x[:1].float()) >= row["mac"]


def test_features_of_one_step_are_the_state():
    state = np.random.default_rng(0).normal(size=(1, 5, 3, 2))
    for kind in ("mean", "side_by_side"):
        np.testing.assert_array_equal(features_of(state, kind), state[0].reshape(5, -1))


def test_a_table_of_many_columns_is_averaged_without_a_warning():
    table = pd.DataFrame({f"score_{k}": [1.0, 2.0, 3.0] for k in range(120)})
    table = table.assign(energy=[1.0, 2.0, 4.0], accuracy=[0.5, 0.6, 0.7], arm=["a", "a", "b"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax = pareto(table, by=["arm"], colour=None)
    assert ax.has_data()
