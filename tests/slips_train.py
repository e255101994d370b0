"Correct calls of training, files, plots, identities and networks as files."

import matplotlib

matplotlib.use("Agg")

import pandas as pd
import torch
import torch.nn.functional as F
from slips import Call
from torch import nn

from neurobridge.core import evaluating, fit, milestones, save_checkpoint, save_network
from neurobridge.core.files import file_hash, read_json, write_json
from neurobridge.core.identity import describe


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def items(n=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, generator=generator), torch.arange(n) % 2


def written(folder, content=b"abc"):
    (folder / "file").write_bytes(content)
    return folder / "file"


def saved(folder, save, value):
    save(folder / "file", value)
    return folder / "file"


def in_evaluation(model):
    with evaluating(model) as found:
        return found.training


def timeless(history):
    return [
        {name: value for name, value in row.items() if "seconds" not in name}
        for row in history.rows
    ]


def curves():
    return {"a": pd.DataFrame({"epoch": [1, 2], "valid_accuracy": [0.1, 0.4]})}


def sure(answers, y):
    return answers.softmax(1).amax(1)


TRAINING = dict(
    epochs=1,
    lr=0.01,
    batch_size=4,
    schedule="cosine",
    optimizer=torch.optim.Adam,
    loss=F.cross_entropy,
    augment=lambda x: x,
    on_epoch=lambda epoch, epochs: None,
    after_epoch=lambda row: None,
    seed=0,
    workers=0,
    patience=2,
    device="cpu",
    mixed_precision="no",
    progress=False,
)

CALLS = {
    "core.project_root": Call(lambda folder: {"start": folder}),
    "core.project_file": Call(lambda folder: {"name": "results/pipe_s.csv"}),
    "core.data_root": Call(lambda folder: {"root": folder}),
    "core.write_json": Call(lambda folder: {"path": folder / "new", "value": {"a": 1}}, legitimate={"value": "lists, text and numbers are JSON too"}, target=write_json),
    "core.read_json": Call(lambda folder: {"path": saved(folder, write_json, {"a": 1})}, target=read_json),
    "core.file_hash": Call(lambda folder: {"path": written(folder), "algorithm": "sha256"}, target=file_hash),
    "core.raster": Call(lambda folder: {"spikes": torch.eye(3), "color": "red", "xlabel": "time", "ylabel": "neuron"}, view=lambda ax: len(ax.collections)),
    "core.membrane_trace": Call(lambda folder: {"v": torch.rand(4), "spikes": torch.tensor([0.0, 1, 0, 0]), "v_th": 0.5, "xlabel": "time", "ylabel": "v"}, view=lambda ax: len(ax.lines)),
    "core.learning_curves": Call(lambda folder: {"histories": curves(), "x": "epoch", "y": "valid_accuracy", "xlabel": "a", "ylabel": "b"}, view=lambda ax: len(ax.lines)),
    "core.bar_with_spread": Call(lambda folder: {"values": {"a": [1.0, 2.0]}, "ylabel": "value", "colors": ["red"]}, view=lambda ax: len(ax.patches)),
    "core.seed_everything": Call(lambda folder: {"seed": 3, "epoch": 1}),
    "core.milestones": Call(lambda folder: {"factor": 0.5}, lambda factor: milestones(0.2, 0.4, factor=factor)(0.3)),
    "core.Sequences": Call(lambda folder: {"x": torch.rand(3, 2, 4), "y": torch.arange(3)}, view=lambda data: [data.x, data.y], legitimate={"x: one axis more": "frames of clips have more axes"}),
    "core.evaluating": Call(lambda folder: {"model": network()}, in_evaluation),
    "core.evaluate": Call(lambda folder: {"model": network(), "data": items(), "batch_size": 4, "loss": F.cross_entropy, "metric": sure}),
    "core.save_checkpoint": Call(lambda folder: {"path": folder / "new", "state": {"a": torch.ones(2)}}),
    "core.load_checkpoint": Call(lambda folder: {"path": saved(folder, save_checkpoint, {"a": 1}), "max_bytes": 10**6}),
    "core.fit": Call(lambda folder: {"model": network(), "train": items(), "valid": items(4), "checkpoint": folder / "net.pt", "metric": sure, "keep": "highest", **TRAINING}, fit, view=timeless),
    "core.describe": Call(lambda folder: {"model": network()}, target=describe),
    "core.save_network": Call(lambda folder: {"net": network(), "file": folder / "net"}),
    "core.load_network": Call(lambda folder: {"file": saved(folder, lambda file, net: save_network(net, file), network()), "classes": [nn.Linear], "max_bytes": 10**6}),
}  # fmt: skip

LEFT_OUT = {
    "core.PALETTE": "is a table, not called",
    "core.use_house_style": "takes no argument",
    "core.History": "is what fit returns",
}
