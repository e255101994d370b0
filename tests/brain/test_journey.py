"A person with responses and a folder of images of their own comes to a table with intervals and a figure: from the front door, in few statements."

import ast
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

import neurobridge as nb

JOURNEY = """
import numpy as np
import torchvision
import neurobridge as nb

network = torchvision.models.resnet18(num_classes=10)
recording = nb.data.Recording(np.load("responses.npy"), np.loadtxt("names.txt", dtype=str))
recording = recording[recording.counts() >= 2]
subject = nb.brain.Recorded(
    "ResNet-18",
    network,
    {name: name for name in ("layer1", "layer2", "layer3")},
    transform=nb.brain.imagenet_input(64),
)
subject.start_recording(subject.areas)
layers = subject.look_at("images")
score, chosen = nb.brain.choose_layer(layers, recording)
ceiled = nb.brain.ceiled(score, nb.brain.reliability(recording))
scores, pairs = nb.brain.compare_models(layers, recording, train=0.8)
bars = scores.score.plot.bar(yerr=(scores.high - scores.low) / 2, ylabel="predictivity (median r)")
bars.figure.savefig("layers.pdf"), bars.figure.savefig("layers.png", dpi=300)
"""


def write_data(folder, network):
    "Neurons that sum what layer 2 responds to 100 images, by name, in another order than the files; one image was shown once."
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    small = rng.integers(0, 256, (100, 8, 8, 3), dtype=np.uint8)
    for i, image in enumerate(small.repeat(8, 1).repeat(8, 2)):
        Image.fromarray(image).save(folder / "images" / f"img{i}.png")
    names = rng.permutation([f"img{i}" for i in range(100)])
    transform = nb.brain.imagenet_input(64)
    x = [
        transform(
            torch.from_numpy(np.array(Image.open(folder / "images" / f"{name}.png"))).permute(
                2, 0, 1
            )
        )
        for name in names
    ]
    signal = nb.brain.record_layers(network, x, ["layer2"])["layer2"][0].reshape(100, -1)
    signal = signal @ rng.normal(size=(signal.shape[1], 30))
    signal = (signal - signal.mean(0)) / signal.std(0)
    responses = signal + rng.normal(size=(5, 100, 30))
    responses[1:, 7] = np.nan
    np.save(folder / "responses.npy", responses)
    np.savetxt(folder / "names.txt", names, fmt="%s")
    return names


@pytest.mark.long
@pytest.mark.usefixtures("one_thread", "same_numbers")
def test_own_responses_and_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "agg")
    matplotlib.use("agg")
    statements = [node for node in ast.walk(ast.parse(JOURNEY)) if isinstance(node, ast.stmt)]
    assert len(statements) <= 14
    torch.manual_seed(0)
    network = resnet18(num_classes=10)
    names = write_data(tmp_path, network)
    torch.manual_seed(0)  # the journey builds the same network
    found: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(JOURNEY, found)
    assert len(found["recording"].stimuli) == 99 and names[7] not in found["recording"].stimuli
    assert max(set(found["chosen"]), key=found["chosen"].count) == "layer2"
    assert found["ceiled"].value > found["score"].value > 0.3
    scores, pairs = found["scores"], found["pairs"]
    assert scores.score.idxmax() == "layer2" and len(pairs) == 3
    assert (scores.low < scores.score).all() and (scores.score < scores.high).all()
    files = (tmp_path / "layers.pdf").read_bytes(), Image.open(tmp_path / "layers.png")
    assert files[0].startswith(b"%PDF") and min(files[1].size) > 1000
    alone = nb.brain.Recorded(
        "one", network, {"V4": "layer2"}, transform=nb.brain.imagenet_input(64)
    )
    alone.start_recording("V4")
    pd.testing.assert_frame_equal(
        alone.look_at("images").to_pandas(),
        found["layers"]["layer2"].to_pandas(),
        check_names=False,
    )
