"A person with responses and a folder of images of their own comes to a table with intervals and a figure: from the front door, in few statements."

import ast
import warnings

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

import neurobridge as nb

JOURNEY = """
import numpy as np
import torchvision
import neurobridge as nb

recording = nb.data.Recording(np.load("responses.npy"), np.loadtxt("names.txt", dtype=str))
recording = recording[recording.counts() >= 2]
subject = nb.brain.Recorded(
    "ResNet-18",
    torchvision.models.resnet18(num_classes=10),
    {name: name for name in ("layer1", "layer2", "layer3")},
    transform=nb.brain.imagenet_input(64),
)
subject.start_recording(subject.areas)
layers = subject.look_at("images")
score, chosen = nb.brain.choose_layer(layers, recording)
ceiled = nb.brain.ceiled(score, nb.brain.reliability(recording))
scores, pairs = nb.brain.compare_models(layers, recording, train=0.8)
figure = scores.score.plot.bar(yerr=scores.high - scores.score, ylabel="predictivity (r)").figure
figure.savefig("layers.pdf")
figure.savefig("layers.png", dpi=300)
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
    recording, layers = found["recording"], found["layers"]
    assert len(recording.stimuli) == 99 and names[7] not in recording.stimuli
    assert max(set(found["chosen"]), key=found["chosen"].count) == "layer2"
    score, ceiled = found["score"], found["ceiled"]
    assert score.value > 0.3 and 0 < ceiled.ceiling < 1
    assert ceiled.value == pytest.approx(score.value**2 / ceiled.ceiling)
    scores, pairs = found["scores"], found["pairs"]
    assert scores.score.idxmax() == "layer2" and len(pairs) == 3
    assert (scores.low < scores.score).all() and (scores.score < scores.high).all()
    vector, pixels = (tmp_path / "layers.pdf").read_bytes(), Image.open(tmp_path / "layers.png")
    assert vector.startswith(b"%PDF") and min(pixels.size) > 1000
    assert max(abs(dots - 300) for dots in pixels.info["dpi"]) < 1
    check_independently(network, names, layers, scores)


def check_independently(network, names, layers, scores):
    "Features by a hook of torch, image by image; the order by the files' names; the score without a table or names."
    found = []
    hook = network.layer2.register_forward_hook(lambda layer, given, out: found.append(out))
    transform = nb.brain.imagenet_input(64)
    with torch.no_grad(), hook:
        for name in names:
            pixels = np.array(Image.open(f"images/{name}.png"))
            network.eval()(transform(torch.from_numpy(pixels).permute(2, 0, 1))[None])
    features = torch.cat(found).flatten(1).numpy()
    rows = [[file.endswith(f"/{name}.png") for file in layers["layer2"].stimulus_id.values].index(True) for name in names]  # fmt: skip
    np.testing.assert_allclose(layers["layer2"].values[rows], features, rtol=1e-4, atol=1e-5)
    keep = np.arange(100) != 7  # shown once
    responses = np.nanmean(np.load("responses.npy"), 0)[keep]
    alone = nb.brain.neural_predictivity(features[keep], responses, train=0.8)
    assert scores.score["layer2"] == pytest.approx(alone.value, abs=1e-4)
