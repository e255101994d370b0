"""Time and memory of layers wired by ensembles, next to dense, masked and general sparse ones.

    python benchmarks/ensemble_linear.py --out benchmarks/ensemble_linear.csv        # under four minutes on two cores
    python benchmarks/ensemble_linear.py --batches 1 16 256 --widths 512 1024 2048 4096 --precision float32 bfloat16 --seconds 2 --threads 1 --out benchmarks/ensemble_batches.csv

    python benchmarks/ensemble_linear.py --convolutions --seconds 1.5 --threads 1 --out benchmarks/ensemble_conv.csv

Every width is one interleaved run: all ways take turns, in another order every round, and the medians are compared.

    what    layer    forward and backward pass of one layer, width x width, input gradient included
            step     one training step of a whole G2GNet: forward, backward, Adam
            memory   bytes of parameters, gradients, optimiser state and wiring after that step
    With --batches, one layer at each number of inputs, in no order that suits anyone (inputs one after the other):

            inference, training (as "layer" above); "limit" is a dense layer with as many multiplications, of fewer neurons
            update  the same and a step of SGD, after which a masked layer looks through its weights

    With --convolutions, one convolution by eight ensembles, images channels first and last in memory:

            "by ensemble" is a grouped convolution of collected channels, "filled" a dense one with zeros where no edge is;
            "used" tells which of them EnsembleConv2d takes

    way     "ensembles" gets and gives features first in memory, as it does between its own layers; "ensembles, inputs first"
            turns input and gradient itself; CSR is torch's sparse matrix of the same live weights, BSR one of as many
            in random tiles of 32 x 32, because its product takes square blocks only
    times_dense   milliseconds or bytes of the dense way over those of this one for times; of this one over dense for memory
"""

import argparse
import os
import platform
import random
import statistics
import time
import warnings
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from neurobridge.g2g import (
    EnsembleConv2d,
    EnsembleLinear,
    MaskedLinear,
    block_mask,
    density,
    export_weight,
    p_inter_at,
    to_masked,
)
from neurobridge.g2g import layers as sparse_layers


class Sparse(nn.Module):
    "Hold one of torch's sparse matrices as the weight."

    def __init__(self, layer, *layout):
        super().__init__()
        self.weight = nn.Parameter(export_weight(layer, *layout))
        self.bias = nn.Parameter(layer.bias.detach().flatten())

    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


def ways(width, p_inter):
    layer = EnsembleLinear(width, width, p_inter=p_inter)
    tiles = MaskedLinear(block_mask(width, width, density(p_inter=p_inter), 32))
    return {"dense": nn.Linear(width, width), "ensembles": layer, "ensembles, inputs first": layer, "masked": to_masked(layer),
            "CSR": Sparse(layer, "csr"), "BSR": Sparse(tiles, "bsr", (32, 32))}  # fmt: skip


def passer(layer, x, grad):
    def run():
        inputs = x.detach().requires_grad_()
        layer.zero_grad(set_to_none=True)
        layer(inputs).backward(grad)

    return run


def rounds_of(runs, seconds, least):
    "Median milliseconds of each, in turns of random order, for about so many seconds."
    times, notes = {name: [] for name in runs}, dict.fromkeys(runs, "")
    for name, run in list(runs.items()):
        try:
            run(), run()
        except RuntimeError as error:
            notes[name] = str(error).splitlines()[0][:160].replace('"', "'")
            del runs[name]
    shuffle, start = random.Random(0), time.perf_counter()
    while len(next(iter(times.values()))) < least or time.perf_counter() - start < seconds:
        for name in shuffle.sample(list(runs), len(runs)):
            before = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - before)
    return {
        name: (1000 * statistics.median(t) if t else None, len(t), notes[name])
        for name, t in times.items()
    }


def rows_of(what, width, found):
    dense = found["dense"][0]
    for way, (ms, rounds, note) in found.items():
        yield {
            "what": what,
            "width": width,
            "way": way,
            "value": ms and round(ms, 4),
            "unit": "ms",
            "times_dense": ms and round(dense / ms, 3),
            "rounds": rounds,
            "note": note,
        }


def layer_rows(width, batch, p_inter, seconds, least):
    torch.manual_seed(0)
    x, grad = torch.randn(batch, width), torch.randn(batch, width)
    first = [a.t().contiguous().t() for a in (x, grad)]
    runs = {
        way: passer(layer, *(first if way == "ensembles" else (x, grad)))
        for way, layer in ways(width, p_inter).items()
    }
    return rows_of("layer", width, rounds_of(runs, seconds, least))


def caller(layer, x):
    def run():
        with torch.inference_mode():
            layer(x)

    return run


def updater(layer, x, grad):
    optimizer, run = torch.optim.SGD(layer.parameters(), lr=1e-6), passer(layer, x, grad)

    def update():
        run()
        optimizer.step()

    return update


def batch_rows(width, batches, p_inter, seconds, least, precision):
    dtype = getattr(torch, precision)
    layer = EnsembleLinear(width, width, p_inter=p_inter)
    layers = {
        "dense": nn.Linear(width, width),
        "ensembles": layer,
        "masked": to_masked(layer),
        "limit": nn.Linear(width, round(width * density(p_inter=p_inter))),
    }
    layers = {way: each.to(dtype) for way, each in layers.items()}
    for batch in batches:
        torch.manual_seed(0)
        x = torch.randn(batch, width, dtype=dtype)
        made = {
            "inference": lambda each, x=x: caller(each, x),
            "training": lambda each, x=x: passer(each, x, torch.randn_like(each(x).detach())),
            "update": lambda each, x=x: updater(each, x, torch.randn_like(each(x).detach())),
        }
        for what, make in made.items():
            runs = {way: make(each) for way, each in layers.items()}
            for row in rows_of(what, width, rounds_of(runs, seconds, least)):
                yield row | {"batch": batch, "precision": precision}


# source and target channels, side of the kernels, pixels, images
CONVOLUTIONS = (
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
NARROW = sparse_layers._NARROW


def as_if(layer, narrow):
    "Call a layer as if ensembles of fewer than so many channels were narrow."

    def call(x):
        sparse_layers._NARROW = narrow
        return layer(x)

    call.zero_grad = layer.zero_grad
    return call


def convolution_rows(sizes, layout, p_inter, seconds, least):
    n_in, n_out, kernel, pixels, images = sizes
    torch.manual_seed(0)
    layer = EnsembleConv2d(n_in, n_out, kernel, p_inter=p_inter, padding=kernel // 2)
    dense = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2).to(memory_format=LAYOUTS[layout])
    ways = {"dense": dense, "by ensemble": as_if(layer, 0), "filled": as_if(layer, n_in + 1)}
    x = torch.randn(images, n_in, pixels, pixels).to(memory_format=LAYOUTS[layout])
    grad = torch.randn_like(dense(x).detach())
    used = "filled" if layer.sources.shape[1] < NARROW else "by ensemble"
    for what, make in (("inference", caller), ("training", lambda each, x: passer(each, x, grad))):
        runs = {way: make(each, x) for way, each in ways.items()}
        for row in rows_of(what, n_in, rounds_of(runs, seconds, least)):
            more = dict(n_out=n_out, kernel=kernel, pixels=pixels, images=images, channels=layout)
            yield row | more | {"read": layer.sources.shape[1], "used": row["way"] == used}


def stepper(net, images, labels):
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def run():
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return run, optimizer


def held(net, optimizer):
    tensors = [
        *net.parameters(),
        *net.buffers(),
        *(p.grad for p in net.parameters()),
        *(v for s in optimizer.state.values() for v in s.values()),
    ]
    return sum(t.numel() * t.element_size() for t in tensors if torch.is_tensor(t))


def step_rows(width, batch, p_inter, seconds, least):
    from neurobridge.g2g import G2GNet

    torch.manual_seed(0)
    images, labels = torch.rand(batch, 1, 28, 28), torch.randint(10, (batch,))
    nets = {
        way: G2GNet((1, 28, 28), 10, width=width, p_inter=p_inter, form=form)
        for way, form in (("dense", "dense"), ("ensembles", "ensembles"), ("masked", "masked"))
    }
    steps = {way: stepper(net, images, labels) for way, net in nets.items()}
    yield from rows_of(
        "step", width, rounds_of({way: run for way, (run, _) in steps.items()}, seconds, least)
    )
    size = {way: held(nets[way], optimizer) for way, (_, optimizer) in steps.items()}
    for way, count in size.items():
        yield {
            "what": "memory",
            "width": width,
            "way": way,
            "value": count,
            "unit": "bytes",
            "times_dense": round(count / size["dense"], 4),
            "rounds": 1,
            "note": "",
        }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--net", type=int, default=2048, help="width of the G2GNet")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument(
        "--batches", type=int, nargs="+", help="one layer at these, instead of everything else"
    )
    parser.add_argument(
        "--precision", nargs="+", default=["float32"], choices=["float32", "bfloat16"],
        help="of weights and inputs, with --batches",
    )  # fmt: skip
    parser.add_argument(
        "--convolutions", type=int, nargs="*", metavar="SIZE",
        help="convolutions instead of everything else: all, or one of five sizes",
    )  # fmt: skip
    parser.add_argument("--density", type=float, default=0.25)
    parser.add_argument(
        "--seconds", type=float, default=35, help="about so long for each of the four runs"
    )
    parser.add_argument("--least", type=int, default=7, help="rounds at least")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
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
        f"# {model}, {args.threads} threads, {platform.system()} {platform.release()}, load "
        f"{os.getloadavg()[0]:.1f} at the start",
        f"# torch {torch.__version__}, batch {args.batches or args.batch}, density {args.density}",
    ]
    p_inter, timing = p_inter_at(args.density), (args.seconds, args.least)
    if args.batches:
        rows = [
            row
            for precision in args.precision
            for width in args.widths
            for row in batch_rows(width, args.batches, p_inter, *timing, precision)
        ]
        sparse = [row for row in rows if row["way"] in ("ensembles", "masked")]
        below = sum((row["times_dense"] or 0) < 0.95 for row in sparse)
        head.append(f"# {below} of {len(sparse)} cells below 0.95 of dense")
    elif args.convolutions is not None:
        head[1] = f"# torch {torch.__version__}, 8 ensembles, density {args.density}"
        rows = [
            row
            for sizes in ([args.convolutions] if args.convolutions else CONVOLUTIONS)
            for layout in LAYOUTS
            for row in convolution_rows(sizes, layout, p_inter, *timing)
        ]
    else:
        rows = [r for width in args.widths for r in layer_rows(width, args.batch, p_inter, *timing)]
        rows += step_rows(args.net, args.batch, p_inter, *timing)
    table = pd.DataFrame(rows)
    print("\n".join(head), table.drop(columns="note").to_string(index=False), sep="\n")
    if args.out:
        args.out.write_text("\n".join(head) + "\n" + table.to_csv(index=False))


if __name__ == "__main__":
    main()
