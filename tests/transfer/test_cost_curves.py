"transfer.trade_off against the single calls, for networks of every kind that has steps."

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from neurobridge.core import Sequences, evaluate
from neurobridge.snn import spikify, spiking_convnet, synops
from neurobridge.transfer import convert, trade_off

pytestmark = pytest.mark.usefixtures("same_numbers", "one_thread")


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    ).eval()


IMAGES, LABELS = torch.rand(40, 1, 8, 8), torch.randint(5, (40,))
NETS = {
    "converted": lambda: convert(cnn(), IMAGES, T=9),
    "spikified": lambda: spikify(cnn(), T=9),
    "of this library": lambda: spiking_convnet(T=9, width=4, classes=5).eval(),
}


@pytest.mark.parametrize("kind", NETS)
def test_it_returns_what_the_single_calls_return(kind):
    net = NETS[kind]()
    table = trade_off(net, (IMAGES, LABELS), steps=(3, 1), counted=10, mac=2.0, ac=0.5)
    assert net.T == 9 and list(table.index) == ["T = 3", "T = 1"]
    for T in (3, 1):
        net.T = T
        row, single = table.loc[f"T = {T}"], synops(net, IMAGES[:10], mac=2.0, ac=0.5)
        assert row["T"] == T and row.accuracy == evaluate(net, (IMAGES, LABELS))["accuracy"]
        for name in ("energy", "AC", "MAC", "spikes_out"):
            assert row[name] == pytest.approx(single[name].sum())


def test_the_ann_is_one_pass_of_multiplications():
    model = cnn()
    table = trade_off(convert(model, IMAGES), (IMAGES, LABELS), steps=[2], ann=model)
    row = table.loc["ANN"]
    assert (row["T"], row.MAC, row.AC) == (1, 36 * 4 * 9 + 36 * 5, 0)
    assert isinstance(table, pd.DataFrame) and table["T"].dtype.kind == "i"


@pytest.mark.parametrize("kind", ["dataset", "subset", "loader"])
def test_data_of_every_kind_that_evaluate_takes(kind):
    whole = TensorDataset(IMAGES, LABELS)
    data = {
        "dataset": whole,
        "subset": torch.utils.data.Subset(whole, range(40)),
        "loader": DataLoader(whole, batch_size=16),
    }[kind]
    net = NETS["converted"]()
    pd.testing.assert_frame_equal(
        trade_off(net, data, steps=(1, 4), counted=16),
        trade_off(net, (IMAGES, LABELS), steps=(1, 4), counted=16),
    )


def test_event_frames_are_refused():
    frames = Sequences(torch.rand(4, 3, 1, 8, 8), LABELS[:4])
    with pytest.raises(ValueError, match="trade_off: data is .* bring their number of steps"):
        trade_off(NETS["converted"](), frames, steps=(1,))


def test_its_own_steps_are_put_back_where_something_fails():
    net = NETS["converted"]()
    with pytest.raises((TypeError, ValueError)):
        trade_off(net, (IMAGES, LABELS + 100), steps=(2,))
    assert net.T == 9


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"net": cnn()}, "net is .* no number of steps T"),
        ({"data": IMAGES}, "data is"),
        ({"data": (IMAGES, torch.rand(40))}, "y of data is"),
        ({"steps": 4}, "steps is"),
        ({"steps": (4, 0)}, "steps is 0"),
        ({"counted": 0}, "counted is 0"),
        ({"ann": "cnn"}, "ann is"),
    ],
)
def test_arguments(wrong, message):
    given = {"net": NETS["converted"](), "data": (IMAGES, LABELS), "steps": (1,)} | wrong
    with pytest.raises((TypeError, ValueError), match=f"trade_off: {message}"):
        trade_off(**given)


def test_targets_that_are_numbers():
    "A regression has its loss in the place of the accuracy; without loss= the refusal names it."
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 2)).eval()
    net, targets = convert(model, IMAGES), torch.randn(len(IMAGES), 2)

    def worst(answers, y):
        return (answers - y).abs().amax(1)

    table = trade_off(
        net, (IMAGES, targets), steps=(2, 8), ann=model, loss=F.mse_loss, metric=worst
    )
    assert list(table.columns)[:3] == ["T", "loss", "worst"] and "accuracy" not in table
    net.T = 8
    for row, each in (("T = 8", net), ("ANN", model)):
        single = evaluate(each, (IMAGES, targets), loss=F.mse_loss, metric=worst)
        assert table.loc[row, ["loss", "worst"]].to_dict() == single
    with pytest.raises((TypeError, ValueError), match="want their loss=, such as F.mse_loss"):
        trade_off(net, (IMAGES, targets), steps=(2,))
    with pytest.raises(TypeError, match="trade_off: loss"):
        trade_off(net, (IMAGES, targets), steps=(2,), loss="mse")
    with pytest.raises(TypeError, match="trade_off: metric"):
        trade_off(net, (IMAGES, targets), steps=(2,), loss=F.mse_loss, metric="worst")
