"""Time of convolutions wired by ensembles, next to a dense convolution.

    python benchmarks/ensemble_conv.py --out benchmarks/ensemble_conv.csv        # about two minutes on one core

One layer at a time, eight ensembles, images channels first and last in memory. All ways take turns, and the
medians of the time on the processor are compared.

    what    inference, training (forward and backward pass, input gradient included)
    way     dense        nn.Conv2d
            by ensemble  a grouped convolution of collected channels
            filled       one dense convolution, with zeros where no edge is
    used    whether EnsembleConv2d takes this way
    times_dense  milliseconds of the dense way over those of this one
"""

import argparse
import os
import platform
import statistics
import time
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from neurobridge.g2g import EnsembleConv2d, layers

NARROW = layers._NARROW

# source and target channels, side of the kernels, pixels, images
SHAPES = (
    (16, 64, 1, 7, 64),
    (64, 64, 3, 7, 64),
    (64, 64, 3, 14, 64),
    (128, 128, 3, 4, 64),
    (128, 128, 3, 14, 64),
    (256, 256, 3, 2, 64),
    (256, 256, 3, 14, 16),
    (512, 512, 3, 7, 8),
    (1024, 1024, 1, 7, 64),
    (2048, 512, 1, 7, 32),
)
LAYOUTS = {"first": torch.contiguous_format, "last": torch.channels_last}


def as_if(layer, narrow):
    "Call a layer as if ensembles of fewer than so many channels were narrow."

    def call(x):
        layers._NARROW = narrow
        return layer(x)

    return call


def medians(calls, seconds, least):
    times = {way: [] for way in calls}
    for call in calls.values():
        call()
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times["dense"]) < least:
        for way, call in calls.items():
            start = time.process_time()
            call()
            times[way].append(time.process_time() - start)
    return {way: 1e3 * statistics.median(taken) for way, taken in times.items()}


def rows_of(shape, layout, seconds, least):
    n_in, n_out, kernel, pixels, images = shape
    torch.manual_seed(0)
    layer = EnsembleConv2d(n_in, n_out, kernel, padding=kernel // 2)
    dense = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2).to(memory_format=LAYOUTS[layout])
    x = torch.randn(images, n_in, pixels, pixels).to(memory_format=LAYOUTS[layout])
    x.requires_grad_()
    ways = {"dense": dense, "by ensemble": as_if(layer, 0), "filled": as_if(layer, n_in + 1)}
    gradient = torch.randn_like(dense(x))

    def trained(way):
        weights = (dense if way == "dense" else layer).parameters()
        inputs = (x, *weights)
        return lambda: torch.autograd.grad(ways[way](x), inputs, gradient)

    def inferred(way):
        return lambda: ways[way](x)

    read = layer.sources.shape[1]
    with torch.no_grad():
        found = {"inference": medians({w: inferred(w) for w in ways}, seconds, least)}
    found["training"] = medians({w: trained(w) for w in ways}, seconds, least)
    for what, taken in found.items():
        for way, milliseconds in taken.items():
            yield {
                "what": what,
                "n_in": n_in,
                "n_out": n_out,
                "kernel": kernel,
                "pixels": pixels,
                "images": images,
                "channels": layout,
                "read": read,
                "way": way,
                "used": way == ("filled" if read < NARROW else "by ensemble"),
                "milliseconds": round(milliseconds, 4),
                "times_dense": round(taken["dense"] / milliseconds, 3),
            }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="only the first so many")
    parser.add_argument("--seconds", type=float, default=1.5, help="of each comparison")
    parser.add_argument("--least", type=int, default=5, help="rounds at least")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    head = [
        f"# {model}, {args.threads} threads, cpu clock, {platform.system()} {platform.release()}, load "
        f"{os.getloadavg()[0]:.1f} at the start",
        f"# torch {torch.__version__}, 8 ensembles, p' 0.15",
    ]
    rows = [
        row
        for shape in SHAPES[: args.shapes]
        for layout in LAYOUTS
        for row in rows_of(shape, layout, args.seconds, args.least)
    ]
    table = pd.DataFrame(rows)
    print("\n".join(head), table.to_string(index=False), sep="\n")
    if args.out:
        args.out.write_text("\n".join(head) + "\n" + table.to_csv(index=False))


if __name__ == "__main__":
    main()
