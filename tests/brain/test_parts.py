"Parts of outputs: dictionaries and tuples of layers and of whole networks, and functional operations."

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

from neurobridge.brain import BrainModel, imagenet_input, record_layers

X = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Several(nn.Module):
    "Returns a dictionary, from a layer that returns a tuple and one that returns a dictionary."

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(16, 4, batch_first=True)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.named = Named()

    def forward(self, x):
        rows = x.mean(1)
        _, (state, _) = self.lstm(rows)
        mixed, weights = self.attention(rows, rows, rows)
        return {"out": self.named(mixed)["twice"], "state": state[0], "weights": weights}


class Named(nn.Module):
    def forward(self, x):
        return {"once": x, "twice": 2 * x}


def test_parts_are_what_the_network_computes():
    torch.manual_seed(0)
    model = Several().eval()
    names = ["lstm[0]", "lstm", "attention[1]", "named[once]", "[out]", "[weights]"]
    found = record_layers(model, X, names, batch_size=2)
    with torch.no_grad():
        rows = X.mean(1)
        sequence, _ = model.lstm(rows)
        mixed, weights = model.attention(rows, rows, rows)
    wanted = [sequence, sequence, weights, mixed, 2 * mixed, weights]
    for name, expected in zip(names, wanted, strict=True):
        np.testing.assert_allclose(found[name][0], expected.numpy(), rtol=1e-5, atol=1e-6)


def test_functional_operations(tmp_path):
    torch.manual_seed(0)
    model = resnet18(num_classes=3).eval()
    images = torch.rand(3, 3, 32, 32)
    every = create_feature_extractor(model, ["layer1.0.add", "flatten"])
    with pytest.raises(ValueError, match=r"layer1.0.relu writes into its memory"):
        record_layers(every, images, ["[flatten]", "[layer1.0.add]"])
    for layer in every.modules():
        layer.inplace = False
    found = record_layers(every, images, ["[layer1.0.add]", "[flatten]"])
    with torch.no_grad():
        x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
        block = model.layer1[0]
        added = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x))))) + x
    np.testing.assert_allclose(found["[layer1.0.add]"][0], added.numpy(), rtol=1e-5, atol=1e-5)
    pooled = record_layers(model, images, ["avgpool"])["avgpool"].reshape(1, 3, 512)
    np.testing.assert_allclose(found["[flatten]"], pooled, rtol=1e-5, atol=1e-6)
    areas = {"V1": "[layer1.0.add]"}
    subject = BrainModel("ResNet", every, areas, transform=imagenet_input(32))
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, level in zip(files, (20, 200), strict=True):
        Image.new("RGB", (40, 40), (level, 0, 0)).save(file)
    subject.start_recording("V1")
    assert subject.look_at(files).sizes["neuroid"] == added[0].numel()


def test_files_and_pools_know_parts(tmp_path):
    model = Several().eval()
    pool = {"attention[1]": "tokens"}
    stored = record_layers(model, X, ["attention[1]", "[out]"], folder=tmp_path, pool=pool)
    inside = record_layers(model, X, ["attention[1]", "[out]"])
    np.testing.assert_allclose(stored["attention[1]"], inside["attention[1]"].mean(2), rtol=1e-5)
    np.testing.assert_array_equal(stored["[out]"], inside["[out]"])


@pytest.mark.parametrize(
    "name, message",
    [
        ("named", r"named returns dict of once, twice; .* such as 'named\[once\]'"),
        ("named[thrice]", r"'named\[thrice\]', expected one of them in brackets"),
        ("lstm[2]", r"lstm returns tuple of 0, 1; layers has 'lstm\[2\]'"),
        ("attention.out_proj[0]", r"was never called"),
        ("[nothing]", r"the model returns dict of out, state, weights"),
        ("nowhere[0]", r"Several has no layer 'nowhere'"),
        ("lstm[1]", r"returns tuple"),
        ("", r"no layer ''"),
    ],
)
def test_what_is_no_part(name, message):
    with pytest.raises(ValueError, match=message):
        record_layers(Several().eval(), X, [name])


def test_a_tensor_has_no_parts():
    with pytest.raises(ValueError, match=r"but 0 returns .*; leave out the brackets"):
        record_layers(nn.Sequential(nn.Conv2d(3, 2, 3)), X, ["0[0]"])


@pytest.mark.parametrize(
    "write",
    [
        lambda x: nn.functional.relu(x, inplace=True),
        lambda x: x.relu_(),
        lambda x: x.mul_(2),
        nn.ReLU(inplace=True),
    ],
)
def test_memory_that_is_written_into(write):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = write if isinstance(write, nn.Module) else nn.Identity()

        def forward(self, x):
            total = x + torch.flip(x, [0])
            out = self.relu(total) if isinstance(write, nn.Module) else write(total)
            return out.flatten(1)

    every = create_feature_extractor(Net(), ["add", "flatten"])
    with pytest.raises(ValueError, match="writes into its memory"):
        record_layers(every, X - 0.5, ["[add]"])
    assert record_layers(every, X - 0.5, ["[flatten]"])["[flatten]"].shape == (1, 5, 768)
