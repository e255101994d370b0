"""What would bore a reader of the page core/04_plots: kinds of input, edges, and that a refused input leaves no figure behind."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from neurobridge.core import (
    PALETTE,
    bar_with_spread,
    learning_curves,
    membrane_trace,
    raster,
    use_house_style,
)


@pytest.fixture(autouse=True)
def closed():
    with matplotlib.rc_context():
        yield
    plt.close("all")


def history(values, column="valid_accuracy"):
    return pd.DataFrame(
        {
            "epoch": np.arange(1, len(values) + 1),
            "seconds": 2.0 * np.arange(1, len(values) + 1),
            column: values,
        }
    )


def test_palette_has_the_promised_names():
    assert set(PALETTE) == {"ink", "blue", "orange", "green", "purple", "gray", "red"}
    assert (
        all(matplotlib.colors.is_color_like(colour) for colour in PALETTE.values())
        and len(set(PALETTE.values())) == 7
    )


def test_house_style():
    use_house_style()
    assert plt.rcParams["figure.dpi"] == plt.rcParams["savefig.dpi"] == 100
    assert plt.rcParams["axes.prop_cycle"].by_key()["color"][0] == PALETTE["blue"]


@pytest.mark.parametrize(
    "spikes",
    [
        np.eye(5),
        np.eye(5, dtype=bool),
        torch.eye(5),
        torch.eye(5, dtype=torch.uint8),
        torch.eye(5, requires_grad=True),
        np.eye(5).tolist(),
    ],
)
def test_raster_takes_what_people_have(spikes):
    ax = raster(spikes)
    assert [tuple(segment.mean(0)) for segment in ax.collections[0].get_segments()] == [
        (i, i) for i in range(5)
    ]
    assert ax.get_xlabel() and ax.get_ylabel()


def test_raster_of_silence_keeps_its_size():
    ax = raster(np.zeros((7, 3)))
    assert ax.get_xlim() == (-0.5, 6.5) and ax.get_ylim() == (-0.5, 2.5)


def test_given_axes_are_used_and_returned():
    _, axes = plt.subplots(1, 4)
    assert (
        raster(np.eye(3), axes[0]) is axes[0] and membrane_trace([0.1, 0.2], ax=axes[1]) is axes[1]
    )
    assert (
        learning_curves({"a": history([0.1])}, ax=axes[2]) is axes[2]
        and bar_with_spread({"a": [1]}, axes[3]) is axes[3]
    )
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize(
    "draw",
    [
        lambda: raster(np.zeros(3)),
        lambda: raster(np.zeros((0, 3))),
        lambda: raster(np.full((2, 2), 0.5)),
        lambda: raster(np.full((2, 2), np.nan)),
        lambda: raster(2 * np.eye(2)),
        lambda: raster(-np.eye(2)),
        lambda: membrane_trace([]),
        lambda: membrane_trace(np.zeros((3, 2))),
        lambda: membrane_trace([0.1, 0.2], spikes=[1]),
        lambda: membrane_trace([0.1, 0.2], spikes=[0.1, 0.2]),
        lambda: learning_curves({}),
        lambda: learning_curves({"a": []}),
        lambda: learning_curves({"a": history([0.1])}, y="loss"),
        lambda: learning_curves({"a": history([0.1])}, x="step"),
        lambda: learning_curves({"a": history([np.nan, np.nan])}),
        lambda: learning_curves({"a": history([])}),
        lambda: bar_with_spread({}),
        lambda: bar_with_spread({"a": []}),
        lambda: bar_with_spread({"a": 0.9}),
        lambda: bar_with_spread({"a": [0.9, np.inf]}),
        lambda: bar_with_spread({"a": [0.9]}, colors=["red", "blue"]),
    ],
)
@pytest.mark.filterwarnings("error")
def test_wrong_input_is_refused_and_leaves_no_figure(draw):
    with pytest.raises(ValueError) as caught:
        draw()
    assert len(str(caught.value)) > 20 and not plt.get_fignums()


def test_membrane_trace_without_extras():
    ax = membrane_trace(torch.tensor([-0.3, -0.1], requires_grad=True))
    assert len(ax.get_lines()) == 1 and not ax.collections
    assert len(membrane_trace([0.1, 0.2], spikes=[0, 0], v_th=0.5).get_lines()) == 2


def test_membrane_spikes_stand_above_everything():
    for v, v_th in (
        ([0.2, 0.4, 0.1], 1.0),
        ([0.2, 1.4, 0.1], 1.0),
        ([-70.0, -50.0, -65.0], -55.0),
        ([-70.0, -50.0, -65.0], None),
        ([0.0, 0.0, 0.0], 0.0),
    ):
        bottom = membrane_trace(v, [0, 1, 0], v_th).collections[0].get_segments()[0][:, 1].min()
        assert bottom > max(*v, max(v) if v_th is None else v_th)


def test_learning_curve_of_one_seed_is_its_data_without_a_band():
    ax = learning_curves({"a": history([0.1, 0.4, 0.6])}, x="seconds")
    np.testing.assert_allclose(ax.get_lines()[0].get_xydata(), [[2, 0.1], [4, 0.4], [6, 0.6]])
    assert (
        not ax.collections
        and ax.get_xlabel() == "training time (s)"
        and ax.get_ylabel() == "validation accuracy (fraction)"
    )


def test_learning_curve_band_is_one_sd():
    a, b = np.array([0.1, 0.4, 0.6]), np.array([0.3, 0.5, 0.5])
    ax = learning_curves({"a": [history(a), history(b)]})
    path = ax.collections[0].get_paths()[0].vertices
    mean, sd = (a + b) / 2, np.abs(a - b) / np.sqrt(2)
    for i in range(3):
        at = path[np.isclose(path[:, 0], i + 1), 1]
        np.testing.assert_allclose([at.min(), at.max()], [mean[i] - sd[i], mean[i] + sd[i]])


def test_bar_of_one_value_has_no_whisker():
    ax = bar_with_spread({"a": [0.9], "b": torch.tensor([0.1, 0.3])}, ylabel="accuracy (fraction)")
    assert len(ax.collections) == 1 and [label.get_text() for label in ax.get_xticklabels()] == [
        "a\n(n = 1)",
        "b\n(n = 2)",
    ]
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], [0.9, 0.2], rtol=1e-6)


def test_more_groups_than_colours():
    assert len(bar_with_spread({str(i): [i] for i in range(9)}).patches) == 9


def test_seeds_whose_epochs_differ_are_not_averaged():
    later = history([0.2, 0.3]).assign(epoch=[2, 3])
    with pytest.raises(ValueError, match=r"histories\['a'\] has seeds whose epochs differ"):
        learning_curves({"a": [history([0.1, 0.2]), later]})
    learning_curves(
        {"a": [history([0.1, 0.2]), history([0.2, 0.3]).assign(seconds=[5.0, 9.0])]}, x="seconds"
    )


@pytest.mark.parametrize("draw, said", [
    (lambda: learning_curves({"a": history([0.1, np.nan, 0.3])}), "NaN"),
    (lambda: learning_curves({"a": history(["x", "y"])}), "y, column"),
    (lambda: learning_curves({"a": [1, 2]}), "expected a table"),
    (lambda: learning_curves({"a": "table"}), "expected a table"),
    (lambda: learning_curves([history([0.1])]), "histories"),
    (lambda: membrane_trace([0.1, np.nan]), "v contains 1 values that are NaN"),
    (lambda: membrane_trace([0.1, 0.2], v_th=np.nan), "v_th"),
    (lambda: membrane_trace([0.1, 0.2], v_th=[0.1, 0.2]), "v_th"),
    (lambda: raster(np.eye(3), color="no colour"), "color"),
    (lambda: raster(np.eye(3), ax=plt), "ax"),
    (lambda: bar_with_spread({"a": ["x"]}), "values"),
    (lambda: bar_with_spread([1, 2]), "values"),
    (lambda: bar_with_spread({"a": [1]}, colors=["no colour"]), "colors"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_named_and_leaves_no_figure(draw, said):
    with pytest.raises((TypeError, ValueError), match=said):
        draw()
    assert not plt.get_fignums()
