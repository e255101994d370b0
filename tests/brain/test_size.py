"Features larger than memory: the same numbers from a mapped file, memory measured from outside, and Gram matrices in place of features."

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform
from torch import nn

from neurobridge.brain import (
    Gram,
    bootstrap_predictivity,
    choose_layer,
    cka,
    compare_models,
    neural_predictivity,
    rdm,
    record_layers,
)
from neurobridge.data import DataError
from neurobridge.data.matching import release_pages

RNG = np.random.default_rng(0)
FIT = dict(components=3, splits=3)


def on_disk(folder, values):
    np.save(folder / "x.npy", values)
    return np.load(folder / "x.npy", mmap_mode="r")


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.integers(12, 40), st.sampled_from([50, 500, 9000]))
def test_a_mapped_file_gives_the_numbers_of_memory(tmp_path_factory, seed, n, features):
    rng = np.random.default_rng(seed)
    x, other = rng.normal(size=(n, features)).astype(np.float32), rng.normal(size=(n, 9))
    y = other[:, :4]
    mapped = on_disk(tmp_path_factory.mktemp("x"), x)
    np.testing.assert_array_equal(
        neural_predictivity(mapped, y, **FIT).units, neural_predictivity(x, y, **FIT).units
    )
    for metric in ("correlation", "cosine", "euclidean", "sqeuclidean"):
        np.testing.assert_array_equal(rdm(mapped, metric), rdm(x, metric))
        np.testing.assert_allclose(
            rdm(x, metric), squareform(pdist(x.astype(float), metric)), rtol=1e-7, atol=1e-9
        )
    assert cka(mapped, other) == cka(x, other)


@pytest.mark.parametrize("named", [False, True])
def test_a_gram_matrix_stands_for_its_features(named):
    "In every function that takes it, with names in another order too; products of a subset are not centred, and fits centre them."
    x, y, other = RNG.normal(size=(60, 30)), RNG.normal(size=(60, 5)), RNG.normal(size=(60, 8))
    if named:
        names = [f"s{i}" for i in range(60)]
        y = pd.DataFrame(y, index=names)
        x, other = (
            pd.DataFrame(each, index=names).iloc[RNG.permutation(60)] for each in (x, other)
        )
    k, g = Gram(x), Gram(other)
    assert repr(k) == "Gram(60 stimuli)"

    def same(one, two):
        np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-12)

    same(neural_predictivity(k, y, **FIT).units, neural_predictivity(x, y, **FIT).units)
    same(cka(k, g), cka(x, other))
    same(cka(k, other, unbiased=False), cka(x, other, unbiased=False))
    more = dict(samples=5, components=3, train=0.7, splits=2)
    same(bootstrap_predictivity(k, y, **more), bootstrap_predictivity(x, y, **more))
    pairs = [choose_layer({"a": a, "b": b}, y, **FIT) for a, b in ((k, g), (x, other))]
    assert pairs[0][1] == pairs[1][1]
    tables = [compare_models({"a": a, "b": b}, y, **more)[0] for a, b in ((k, g), (x, other))]
    same(*tables)
    before = k.products.copy()
    cka(k, k)
    np.testing.assert_array_equal(k.products, before)


def test_what_is_no_gram_matrix():
    for wrong, said in (
        (np.ones((5, 3)), "the same for every stimulus"),
        (np.full((5, 3), np.nan), "NaN"),
        ({"a": np.eye(3)}, "choose one"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"Gram: features.*{said}"):
            Gram(wrong)
    with pytest.raises(ValueError, match="the same for stimuli"):
        neural_predictivity(Gram(np.repeat(RNG.normal(size=(20, 9)), 2, 0)), np.eye(40)[:, :3])
    named = pd.DataFrame(RNG.normal(size=(20, 9)), index=[f"s{i}" for i in range(20)])
    with pytest.raises(DataError, match="no row"):
        neural_predictivity(Gram(named), named.set_axis([f"t{i}" for i in range(20)]), **FIT)
    with pytest.raises(ValueError, match="features of 20 stimuli, responses to 19"):
        neural_predictivity(Gram(named.to_numpy()), named.to_numpy()[:19], **FIT)


def test_pages_are_released_and_own_changes_are_kept(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2000, 700)))
    private = np.load(tmp_path / "x.npy", mmap_mode="c")
    private[3] = 1
    release_pages(private)
    release_pages(np.asarray(private)[:10])
    assert private[3].all() and not np.load(tmp_path / "x.npy").any()
    shared = np.load(tmp_path / "x.npy", mmap_mode="r+")
    shared[5] = 2
    release_pages(shared[3:9].reshape(6, 7, 100))
    assert (shared[5] == 2).all() and (np.load(tmp_path / "x.npy")[5] == 2).all()


# Recorded into files


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 5))


def test_layers_in_a_folder_are_those_in_memory(tmp_path):
    x = torch.rand(13, 1, 8, 8)
    stored = record_layers(net(), x, ["1", "3"], 4, folder=tmp_path / "new" / "folder")
    for name, values in record_layers(net(), x, ["1", "3"], 4).items():
        np.testing.assert_array_equal(stored[name], values)
        np.testing.assert_array_equal(np.load(tmp_path / "new" / "folder" / f"{name}.npy"), values)
        assert isinstance(stored[name], np.memmap) and not stored[name].flags.writeable
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "1.npy",
        "3.npy",
    ]


def test_names_of_layers_stay_in_their_folder(tmp_path):
    model = nn.Sequential()
    model.add_module("/up/a", nn.Identity())
    record_layers(model, torch.rand(3, 1, 2, 2), ["/up/a"], folder=tmp_path / "here")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["%2Fup%2Fa.npy"]


def test_nothing_is_overwritten_and_nothing_half_is_left(tmp_path):
    x = torch.rand(6, 1, 8, 8)
    record_layers(net(), x, ["1"], folder=tmp_path)
    before = (tmp_path / "1.npy").read_bytes()
    with pytest.raises(ValueError, match=r"folder contains 1.npy already"):
        record_layers(net(), 1 - x, ["3", "1"], folder=tmp_path)
    broken = net()
    with torch.no_grad():
        broken[3].weight[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity for 6 of 6"):
        record_layers(broken, x, ["0", "3"], folder=tmp_path)
    several = [torch.rand(1, 8, 8), torch.rand(1, 8, 8), torch.rand(1, 9, 9)]
    with pytest.raises(ValueError, match="one size"):
        record_layers(nn.Sequential(nn.ReLU()), several, ["0"], 2, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["1.npy"]
    assert (tmp_path / "1.npy").read_bytes() == before


# Memory


MEASURED = """
import sys
import numpy as np
from neurobridge.brain import Gram, cka, neural_predictivity, rdm

what, file = sys.argv[1:]
x = np.load(file, mmap_mode="r")
y = np.random.default_rng(0).normal(size=(len(x), 9))
calls = {
    "score": lambda: neural_predictivity(x, y, splits=1, components=5),
    "rdm": lambda: rdm(x),
    "euclidean": lambda: rdm(x, "euclidean"),
    "cka": lambda: cka(x, y),
}
small = x[:20, :200]
neural_predictivity(np.array(small), y[:20], splits=1, components=2), rdm(small), cka(small, y[:20])
for call in (lambda: None, calls[what]):
    call()
    print("done", flush=True)
    sys.stdin.readline()
"""


def peak(pid):
    "The most memory a process has had so far, its pages of mapped files included (MB)."
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    file = tmp_path_factory.mktemp("large") / "x.npy"
    x = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(1000, 200_000))
    rng = np.random.default_rng(0)
    for row in x:
        row[:] = rng.standard_normal(200_000, dtype=np.float32)
    return file


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("what", ["score", "rdm", "euclidean", "cka"])
def test_a_file_of_800_megabytes_takes_few_of_memory(large, what):
    "Its slabs of 8,192 features have 65 MB in doubles; the process is measured by another one."
    process = subprocess.Popen(
        [sys.executable, "-c", MEASURED, what, str(large)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    found = []
    for line in process.stdout:
        assert line == "done\n"
        found.append(peak(process.pid))
        process.stdin.write("\n")
        process.stdin.flush()
    assert process.wait() == 0 and len(found) == 2
    assert large.stat().st_size > 800e6 and found[1] - found[0] < 330, found
