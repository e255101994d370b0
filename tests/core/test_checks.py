"""The checks that every entrance uses: what they let through, what they refuse, and what they say."""

import functools
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from neurobridge.core import ModuleWithSettings
from neurobridge.core.checks import (
    as_array,
    as_path,
    choice,
    instance,
    number,
    shown,
    tensor,
    whole,
)
from neurobridge.core.settings import pack, unpack


class Fails:
    def __repr__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize("value", [
    object(), lambda: 0, functools.partial(print, 1), list(range(10**6)), {i: i for i in range(10**5)}, "x" * 10**6, pd.DataFrame({"a": range(100)}), Fails(),
    np.zeros((3, 0)), torch.zeros(2, device="meta"), nn.Linear(2, 2), torch.tensor(1.5), torch.tensor(1j), torch.tensor(True), np.array(None, dtype=object),
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_values_are_shown_shortly_and_alike_in_every_process(value):
    text = shown(value)
    assert 0 < len(text) <= 120 and "0x" not in text and "\n" not in text and shown(value) == text


def test_true_is_no_number_among_numbers():
    assert choice("f", "depth", 1, (1, 2)) == 1 and choice("f", "on", True, (True, False)) is True
    for wrong in (True, np.array([1]), [1], None, "1", 3):
        with pytest.raises((TypeError, ValueError), match="f: depth is"):
            choice("f", "depth", wrong, (1, 2))
    assert whole("f", "n", np.int64(3)) == 3


def test_a_union_of_classes_is_named():
    with pytest.raises(TypeError, match="expected int or str"):
        instance("f", "a", 1.5, int | str)
    with pytest.raises(TypeError, match="expected int or str"):
        instance("f", "a", 1.5, (int, str))


def test_masked_values_are_missing_ones():
    masked = np.ma.array([1, 2, 3], mask=[False, True, False])
    with pytest.raises(ValueError, match="1 values that are NaN"):
        as_array("f", "x", masked)
    assert np.isnan(as_array("f", "x", masked, finite=False)[1])
    assert as_array("f", "x", np.ma.array([1, 2])).tolist() == [1, 2]


@pytest.mark.parametrize("wrong", ["", "a\0b", 3, None, True, ["a"], b"a", object()])
def test_paths(tmp_path, wrong):
    with pytest.raises((TypeError, ValueError), match="f: path is"):
        as_path("f", "path", wrong)
    assert as_path("f", "path", str(tmp_path)) == tmp_path == as_path("f", "path", tmp_path)
    with pytest.raises(ValueError, match="a folder"):
        as_path("f", "path", tmp_path, file=True)


@pytest.mark.parametrize(
    "settings",
    [
        {"a": float("nan")},
        {"a": [float("inf")]},
        {"a": torch.ones(2)},
        {"a": object()},
        {(1, 2): 3},
    ],
)
def test_settings_that_json_cannot_hold_are_refused(settings):
    with pytest.raises((TypeError, ValueError)):
        pack(settings)


@pytest.mark.parametrize(
    "packed",
    [
        torch.zeros(3, dtype=torch.uint8),
        torch.rand(3),
        torch.zeros(2, 2, dtype=torch.uint8),
        torch.tensor(list(b"[1]"), dtype=torch.uint8),
        torch.tensor(list(b"[" * 10**5), dtype=torch.uint8),
        b"{}",
    ],
    ids=range(6),
)
def test_bytes_that_hold_no_settings_are_refused(packed):
    with pytest.raises((TypeError, ValueError), match="unpack: packed"):
        unpack(packed)


class Switch(ModuleWithSettings):
    def __init__(self, on):
        super().__init__()
        self.on = on

    def settings_now(self):
        return {"on": self.on}


def test_a_switch_is_no_number_in_a_state_dict():
    with pytest.raises(ValueError, match="on = True there, 1 here"):
        Switch(1).load_state_dict(Switch(True).state_dict())
    Switch(1.0).load_state_dict(Switch(1).state_dict())


def test_files_paths_and_kernels_do_not_wait_for_torch_or_numpy():
    script = (
        "import sys, neurobridge.core.files, neurobridge.core.paths, neurobridge.lab.run.kernel; "
        "sys.exit(', '.join({'torch', 'numpy'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def checked(x, k=2, d=0.5):
    tensor("f", "x", x, "[T, ...]", finite=True)
    return x * whole("f", "k", k) * number("f", "d", d, above=0)


def test_checks_can_be_compiled_and_exported():
    class Net(nn.Module):
        def forward(self, x):
            return checked(x)

    x = torch.ones(2, 3)
    assert torch.equal(torch.compile(checked, fullgraph=True, backend="eager")(x), x)
    assert torch.equal(torch.export.export(Net(), (x,)).module()(x), x)
