"""Time composed networks against the existing classes that they equal.

    python benchmarks/compose.py --out benchmarks/compose.csv          # about two minutes on one core

Training steps (forward, backward, without an optimiser) and inference of both forms are interleaved: one of each in turn, `--rounds` times. Because
other programs may hold the cores, the least time that the processors computed is compared: `ratio` is that of the existing class over that of the
composed network, so that 1 is no cost and 0.95 is 5 % slower. The logits of both must be equal, which the script checks before it writes.
"""

import argparse
import platform
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F

from neurobridge.bridge import Blueprint, Time, compose
from neurobridge.cornet import cornet_r, cornet_rt, cornet_s, cornet_z
from neurobridge.g2g import G2GNet
from neurobridge.snn import LIF, spiking_convnet, spiking_resnet18

SHAPE = (3, 32, 32)


def pairs(width: int) -> dict:
    "Existing class and blueprint of each body."
    size = {"width": width, "classes": 10}
    base = Blueprint(in_shape=SHAPE, **size)
    spiking = base.changed(neuron="lif", time=Time(4, "inside"))
    wired = Blueprint("g2gnet", "ensembles", width=32 * width, in_shape=SHAPE, classes=10)
    more = {"in_channels": 3, "T": 4, **size}
    return {
        "cornet_z": (lambda: cornet_z(**size), base.changed(body="cornet_z")),
        "cornet_s": (lambda: cornet_s(small_images=True, **size), base),
        "cornet_r": (lambda: cornet_r(**size), base.changed(body="cornet_r")),
        "cornet_rt": (
            lambda: cornet_rt(**size),
            base.changed(body="cornet_rt", time=Time(5, "across")),
        ),
        "g2gnet": (lambda: G2GNet(SHAPE, 10, 32 * width, form="ensembles"), wired),
        "spiking_convnet": (lambda: spiking_convnet(LIF, **more), spiking.changed(body="convnet")),
        "spiking_resnet18": (
            lambda: spiking_resnet18(LIF, small_images=True, **more),
            spiking.changed(body="resnet18"),
        ),
    }


def timed(run) -> float:
    used = time.process_time()
    run()
    return time.process_time() - used


def measure(name: str, make, blueprint: Blueprint, batch: int, rounds: int):
    torch.manual_seed(0)
    existing, composed = make(), compose(blueprint, 0)
    x, y = torch.randn(batch, *SHAPE), torch.arange(batch) % 10
    assert torch.equal(existing(x), composed(x)), name

    def train(net):
        return lambda: F.cross_entropy(net(x), y).backward()

    def infer(net):
        def run():
            with torch.no_grad():
                net(x)

        return run

    for what, way in (("train", train), ("infer", infer)):
        for net in (existing, composed):
            net.train(what == "train")
        old, new = way(existing), way(composed)
        old(), new()
        taken = [(timed(old), timed(new)) for _ in range(rounds)]
        first, second = (min(each) for each in zip(*taken, strict=True))
        yield {
            "body": name,
            "what": what,
            "batch": batch,
            "existing_ms": round(1000 * first, 2),
            "composed_ms": round(1000 * second, 2),
            "ratio": round(first / second, 3),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for name, (make, blueprint) in pairs(given.width).items()
        for row in measure(name, make, blueprint, given.batch, given.rounds)
    ]
    with given.out.open("w") as file:
        file.write(
            f"# {platform.processor() or platform.machine()}, 1 thread, {platform.platform()}\n"
        )
        file.write(f"# torch {version('torch')}, width {given.width}, {given.rounds} rounds\n")
        pd.DataFrame(rows).to_csv(file, index=False)
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
