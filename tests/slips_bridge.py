"Correct calls of the bridge, to be slipped."

from slips import Call

from neurobridge.bridge import Blueprint, Neuron, Time, Wiring, compose

HALF = Blueprint("convnet", width=4, in_shape=(1, 8, 8), classes=3)

CALLS = {
    "bridge.Wiring": Call(
        lambda folder: {
            "kind": "ensembles",
            "groups": 4,
            "p_intra": 1.0,
            "p_inter": 0.25,
            "grouping": "mixer",
            "where": "head",
            "seed": 3,
        }
    ),
    "bridge.Neuron": Call(
        lambda folder: {
            "kind": "lif",
            "decay": 0.25,
            "v_th": 0.5,
            "reset": "hard",
            "surrogate": "atan",
            "detach_reset": True,
            "gain": 0.5,
            "bias": 0.25,
        }
    ),
    "bridge.Time": Call(
        lambda folder: {
            "steps": 4,
            "recurrence": "across",
            "through_time": True,
            "readout": "mean",
        }
    ),
    "bridge.Blueprint": Call(
        lambda folder: {
            "body": "cornet_s",
            "wiring": Wiring("masked"),
            "neuron": Neuron("lif"),
            "time": Time(2, "inside"),
            "width": 8,
            "in_shape": (1, 16, 16),
            "classes": 10,
            "times": (2, 4, 2),
            "small_images": True,
        }
    ),
    "bridge.neuron_maker": Call(lambda folder: {"neuron": Neuron("lif")}, view=lambda made: made()),
    "bridge.compose": Call(lambda folder: {"blueprint": HALF, "seed": 1}),
    "bridge.transfer_weights": Call(
        lambda folder: {
            "trained": compose(HALF),
            "blueprint": HALF.changed(neuron="lif", time=Time(2, "inside")),
            "rescale": False,
            "seed": 1,
        }
    ),
}
LEFT_OUT: dict[str, str] = {}
