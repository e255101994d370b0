"Descriptions of networks: equality, plain data, dotted names, refusals."

import copy
import json
import pickle

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from neurobridge.bridge import Blueprint, Neuron, Time, Wiring
from neurobridge.bridge.blueprint import BODIES

wirings = st.builds(
    Wiring,
    kind=st.sampled_from(["dense", "masked", "ensembles", "random"]),
    groups=st.integers(1, 16),
    p_intra=st.floats(0, 1),
    p_inter=st.floats(0, 1),
    where=st.sampled_from(["head", "pointwise", "all"]),
    seed=st.integers(0, 2**31),
)
neurons = st.builds(
    Neuron,
    kind=st.sampled_from(["relu", "lif", "if", "plif", "liaf"]),
    decay=st.floats(0.01, 0.99),
    v_th=st.floats(0.01, 4),
    surrogate=st.sampled_from(["rectangle", "atan", "gaussian"]),
)
times = st.builds(Time, steps=st.integers(4, 9), recurrence=st.sampled_from(["inside", "across"]))
blueprints = st.builds(
    Blueprint,
    body=st.sampled_from(sorted(BODIES)),
    wiring=wirings,
    neuron=neurons,
    time=times,
    width=st.one_of(st.none(), st.integers(1, 64)),
    in_shape=st.just((1, 28, 28)),
    classes=st.integers(1, 100),
    small_images=st.sampled_from([None, True, False]),
)


@given(blueprints)
def test_plain_data_gives_the_same_blueprint(blueprint):
    data = blueprint.to_dict()
    for back in (
        Blueprint.from_dict(json.loads(json.dumps(data))),
        Blueprint.from_dict(yaml.safe_load(yaml.safe_dump(data))),
        pickle.loads(pickle.dumps(blueprint)),
        copy.deepcopy(blueprint),
        eval(repr(blueprint)),
    ):
        assert back == blueprint and hash(back) == hash(blueprint)


@given(blueprints, neurons, wirings)
def test_a_change_is_undone_by_the_old_values(blueprint, neuron, wiring):
    there = {f"neuron.{name}": getattr(neuron, name) for name in ("kind", "decay", "surrogate")}
    there |= {f"wiring.{name}": getattr(wiring, name) for name in ("kind", "p_inter", "where")}
    back = {
        name: getattr(getattr(blueprint, name.partition(".")[0]), name.partition(".")[2])
        for name in there
    }
    changed = blueprint.changed(**there)
    assert changed.neuron.decay == neuron.decay and changed.wiring.where == wiring.where
    assert changed.changed(**back) == blueprint


def test_a_text_is_a_kind_and_a_part_can_be_changed_whole_and_inside():
    one = Blueprint("convnet", "masked", "lif", Time(2, "inside"))
    assert one.wiring == Wiring("masked") and one.neuron == Neuron("lif")
    other = one.changed(**{"neuron": "plif", "neuron.decay": 0.5})
    assert other.neuron == Neuron("plif", decay=0.5)
    assert one.changed(**{"wiring": Wiring("random"), "wiring.groups": 4}).wiring.groups == 4


def small(body="cornet_s", **settings):
    return Blueprint(body, width=4, in_shape=(1, 16, 16), classes=10).changed(**settings)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: Blueprint("cornet_x"), "body is 'cornet_x'; expected one of 'convnet'"),
        (lambda: Time(3), "steps is 3 with recurrence 'static'"),
        (lambda: Neuron("plif", decay=1.0), "decay is 1 with kind 'plif'"),
        (
            lambda: small(neuron="sharpened", time=Time(4, "inside")),
            "time.steps is 4 with neuron.kind 'sharpened'.*use time.steps = 1",
        ),
        (lambda: small("vgg11", times=(2, 4, 2)), "times is .* has no loops; leave it None"),
        (lambda: small("vgg11", **{"time.through_time": True}), "through_time is True.*no loops"),
        (lambda: small(**{"time.through_time": True}), "use time.recurrence = 'across'"),
        (lambda: small("cornet_r", times=3, time=Time(5, "across")), "set time.steps = 3"),
        (lambda: small("cornet_rt", time=Time(3, "across")), "time.steps is 3.*use at least 4"),
        (lambda: small("cornet_rt", times=3), "times is 3.*use at least 4"),
        (lambda: small("cornet_r", times=1), "times is 1.*use at least 2"),
        (lambda: small("cornet_s", times=(2, 4)), "expected the passes of V2, V4 and IT"),
        (lambda: small("cornet_z", **{"neuron.gain": 0.5}), "neuron.gain is 0.5.*no norms"),
        (lambda: Blueprint("g2gnet", in_shape=(1, 30, 28)), "multiples of 4"),
        (lambda: small().changed(**{"neuron.thresh": 1}), "no setting of Neuron; it has kind"),
        (lambda: small().changed(**{"body.kind": 1}), "'body' has no parts"),
        (lambda: small().changed(depth=3), "'depth' is no setting of Blueprint"),
        (lambda: Blueprint.from_dict({"bodies": 1}), "'bodies' is no setting of Blueprint"),
        (lambda: Blueprint.from_dict({"time": {"T": 1}}), "'T' is no setting of Time"),
        (lambda: Blueprint(lambda neuron, synapse: {}).to_dict(), "which data cannot hold"),
        (lambda: Time(4, "inside", feedback=True), "'inside' and 4 steps.*use recurrence 'across'"),
        (lambda: Time(feedback=True), "feedback is True with recurrence 'static'"),
        (lambda: Time(1, "across", feedback=True), "'across' and 1 steps.*steps = 2 or more"),
        (lambda: Time(4, "across", feedback=1), "feedback is 1; expected True or False"),
        (
            lambda: small("cornet_z", time=Time(3, "across", feedback=True)).changed(body="g2gnet"),
            "time.feedback is True, but body 'g2gnet' has no areas.*leave it False, or choose cor",
        ),
        (
            lambda: small(lambda neuron, synapse: {}, time=Time(3, "across", feedback=True)),
            "time.feedback is True, but body",
        ),
    ],
)
def test_refused_by_the_name_of_the_setting(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()


@pytest.mark.parametrize("body", ["cornet_z", "cornet_s", "cornet_r", "cornet_rt"])
def test_feedback_is_a_setting_like_any_other(body):
    one = small(body, time=Time(5, "across"))
    two = one.changed(**{"time.feedback": True})
    assert (
        two != one and two.time.feedback and "feedback" in str(two) and "feedback" not in str(one)
    )
    assert Blueprint.from_dict(json.loads(json.dumps(two.to_dict()))) == two
    assert two.changed(**{"time.feedback": False}) == one
    without = one.to_dict()
    del without["time"]["feedback"]  # as it was written before there was any
    assert Blueprint.from_dict(without) == one
