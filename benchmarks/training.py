"""Time a block, a training step and whole trainings of a spiking ResNet-18 against the same network built with SpikingJelly.

    pip install -r benchmarks/requirements.txt
    NEUROBRIDGE_DATA=... python benchmarks/training.py --out benchmarks/training.csv          # about 20 minutes on two cores

The network: width 16, T = 4, tdBN's start, hard reset, rectangular surrogate, Fashion-MNIST, 1,000 images an epoch, batches of 50, SGD. SpikingJelly's
copy has the same weights at the start, the same neurons (`LIFNode(tau=4/3, decay_input=False)`, threshold 0.5, multi-step mode, torch backend, its fastest
on a CPU), and runs the stem once an image as ours does. Ways take turns, in another order every round; medians over rounds are written. "channels last" is
`model.to(memory_format=torch.channels_last)` for both libraries; "separate" is this library with norm, sum and neurons one after the other.
Each allocator has a process of its own; "tuned" is `neurobridge.snn.kernels.cpu.tune_cpu()`, for all ways alike. Rows:

    block inference / block training    one residual block, 16 channels, [4, 50, 16, 28, 28]; "convolutions" is the block without norms and neurons
    step                                one training step; "without neurons": the same with the neurons left out, so the difference is theirs
    training                            seconds and validation accuracy (2,000 images) after the last epoch, one row a seed

    python benchmarks/training.py --precision 16x28,32x28,16x32,32x32 --out benchmarks/training_precision.csv

times one training step in float32 and under autocast to bfloat16 for each width and size in pixels, all ways in one interleaved run. "neurobridge" runs
torch's own convolutions, channels last; "channels first" the same as torch stores maps; "products of rows" is `neurobridge.core.convolution.products(True)`,
the way on processors with AMX; "convolutions as plain products" multiplies matrices of the same sizes, and does nothing else. On a busy machine
`--clock cpu --threads 1` counts processor time.
"""

import argparse
import contextlib
import copy
import importlib.util
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

T, WIDTH, BATCH, IMAGES, VALIDATION = 4, 16, 50, 1000, 2000


# ---- the networks


def ours(neuron=None):
    from neurobridge.snn import LIF, spiking_resnet18

    return spiking_resnet18(
        neuron=neuron or LIF, in_channels=1, classes=10, T=T, width=WIDTH, small_images=True
    )


def separated(model):
    "Make norm, sum and neurons run one after the other: a hook on a norm waits for its call."
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda *_: None)
    return model


def jelly_neuron():
    from spikingjelly.activation_based import neuron, surrogate

    if not hasattr(surrogate, "Rect"):
        raise ImportError("this version has no surrogate.Rect; the benchmark needs 2.0")
    return neuron.LIFNode(
        tau=4 / 3,
        decay_input=False,
        v_threshold=0.5,
        v_reset=0.0,
        detach_reset=True,
        step_mode="m",
        surrogate_function=surrogate.Rect(alpha=1.0),
    )


class JellyBlock(nn.Module):
    def __init__(self, a, b, stride, make):
        from spikingjelly.activation_based import layer

        super().__init__()
        norm = partial(layer.BatchNorm2d, step_mode="m")
        conv = partial(layer.Conv2d, bias=False, step_mode="m")
        self.conv1, self.norm1, self.neuron1 = (
            conv(a, b, 3, stride=stride, padding=1),
            norm(b),
            make(),
        )
        self.conv2, self.norm2, self.neuron2 = conv(b, b, 3, padding=1), norm(b), make()
        self.shortcut = (
            nn.Identity()
            if a == b and stride == 1
            else nn.Sequential(conv(a, b, 1, stride=stride), norm(b))
        )

    def forward(self, x):
        inner = self.norm2(self.conv2(self.neuron1(self.norm1(self.conv1(x)))))
        return self.neuron2(inner + self.shortcut(x))


class JellyNet(nn.Module):
    def __init__(self, make=jelly_neuron):
        super().__init__()
        self.conv, self.norm, self.neuron = (
            nn.Conv2d(1, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH),
            make(),
        )
        plan = [(WIDTH, WIDTH, 1)] * 2 + [
            p
            for s in (1, 2, 3)
            for p in ((WIDTH * 2 ** (s - 1), WIDTH * 2**s, 2), (WIDTH * 2**s, WIDTH * 2**s, 1))
        ]
        self.blocks, self.linear = (
            nn.Sequential(*(JellyBlock(*p, make) for p in plan)),
            nn.Linear(8 * WIDTH, 10),
        )

    def forward(self, images):
        from spikingjelly.activation_based import functional

        functional.reset_net(self)
        current = self.norm(self.conv(images))
        x = self.blocks(self.neuron(current.unsqueeze(0).repeat(T, 1, 1, 1, 1)))
        return self.linear(x.mean((0, 3, 4)))


def like(model, other):
    "Copy the parameters of `other`, which come in the same order."
    pairs = list(zip(model.parameters(), other.parameters(), strict=True))
    with torch.no_grad():
        for a, b in pairs:
            assert a.shape == b.shape
            a.copy_(b)
    return model


def networks(without_neurons=False):
    base, last = ours(), {"memory_format": torch.channels_last}
    made = {
        "neurobridge, channels last": copy.deepcopy(base).to(**last),
        "neurobridge": copy.deepcopy(base),
        "neurobridge, channels last, separate": separated(copy.deepcopy(base)).to(**last),
        "neurobridge, separate": separated(copy.deepcopy(base)),
    }
    try:
        made |= {
            "spikingjelly": like(JellyNet(), base),
            "spikingjelly, channels last": like(JellyNet(), base).to(**last),
        }
    except ImportError as error:
        print(f"# spikingjelly: {error}", file=sys.stderr)
    if without_neurons:
        made |= {
            "neurobridge, channels last, without neurons": like(ours(nn.Identity), base).to(**last)
        }
        if "spikingjelly" in made:
            made["spikingjelly, without neurons"] = like(JellyNet(nn.Identity), base)
    return made


# ---- measuring


def rounds_of(runs, rounds, now=time.perf_counter):
    times = {name: [] for name in runs}
    for run in runs.values():
        run(), run()
    shuffle = random.Random(0)
    for _ in range(rounds):
        for name, run in shuffle.sample(
            list(runs.items()), len(runs)
        ):  # whoever comes before leaves the caches in its own state
            start = now()
            run()
            times[name].append(now() - start)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def stepper(model, images, labels, rate, low=False, context=contextlib.nullcontext):
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4)

    def step(index=None):
        x, y = (images, labels) if index is None else (images[index], labels[index])
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low), context():
            loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    return step


def block_rows(rounds):
    from neurobridge.snn import LIF
    from neurobridge.snn.shortcuts import VanillaBlock

    base = VanillaBlock(WIDTH, WIDTH, 1, LIF)
    spikes = (torch.rand(T, BATCH, WIDTH, 28, 28) < 0.2).float()
    last = {"memory_format": torch.channels_last}
    spikes_last = spikes.flatten(0, 1).to(**last).unflatten(0, (T, BATCH))
    made = {}
    for layout, x, form in (("", spikes, {}), (", channels last", spikes_last, last)):
        made["neurobridge" + layout] = copy.deepcopy(base).to(**form), x
        made["neurobridge" + layout + ", separate"] = separated(copy.deepcopy(base)).to(**form), x
        made["convolutions" + layout] = (
            nn.Sequential(copy.deepcopy(base.conv1[0]), copy.deepcopy(base.conv2[0])).to(**form),
            x.flatten(0, 1),
        )
        try:
            from spikingjelly.activation_based import functional

            jelly = like(JellyBlock(WIDTH, WIDTH, 1, jelly_neuron), base).to(**form)
            jelly.register_forward_pre_hook(lambda module, _: functional.reset_net(module))
            made["spikingjelly" + layout] = jelly, x
        except ImportError:
            pass

    def infer(model, x):
        model.eval()
        with torch.no_grad():
            model(x)

    def train(model, x):
        model.train()
        x = x.detach().requires_grad_()
        model(x).backward(x)

    for what, run in (("block inference", infer), ("block training", train)):
        for way, ms in rounds_of(
            {way: partial(run, *pair) for way, pair in made.items()}, rounds
        ).items():
            yield {"what": what, "way": way, "milliseconds": round(ms, 2)}


def step_rows(rounds, images, labels):
    runs = {
        way: stepper(model, images[:BATCH], labels[:BATCH], 0.02)
        for way, model in networks(without_neurons=True).items()
    }
    for way, ms in rounds_of(runs, rounds).items():
        yield {"what": "step", "way": way, "milliseconds": round(ms, 2)}


@torch.no_grad()
def accuracy(model, images, labels):
    model.eval()
    right = sum(
        (model(images[i : i + 250]).argmax(1) == labels[i : i + 250]).sum().item()
        for i in range(0, len(images), 250)
    )
    model.train()
    return round(100 * right / len(images), 2)


def training_rows(seed, epochs, images, labels, validation):
    torch.manual_seed(seed)
    models = {
        way: model
        for way, model in networks().items()
        if "separate" not in way and way != "neurobridge"
    }
    steps = {way: stepper(model, images, labels, 0.05) for way, model in models.items()}
    seconds, generator = dict.fromkeys(models, 0.0), torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for index in torch.randperm(IMAGES, generator=generator).split(BATCH):
            for way, step in steps.items():
                start = time.perf_counter()
                step(index)
                seconds[way] += time.perf_counter() - start
    for way, model in models.items():
        yield {
            "what": "training",
            "way": way,
            "seed": seed,
            "epochs": epochs,
            "seconds": round(seconds[way], 2),
            "accuracy": accuracy(model, *validation),
        }


# ---- float32 and bfloat16, one interleaved run for each width and size


def limits(model, images):
    "Return the training step's convolutions as plain products: (rows, weights, gradient) of each."
    found = []

    def keep(module, args, out):
        k, rows = module.weight[0].numel(), out.numel() // out.shape[1]
        found.append((torch.randn(rows, k), torch.randn(k, out.shape[1]), out.shape[1]))

    hooks = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return [(a, b, torch.randn(len(a), n)) for a, b, n in found]


def products_of(layers, dtype):
    "Do the three products of every layer, in pieces that stay in the cache."
    layers = [[part.to(dtype) for part in layer] for layer in layers]

    def run():
        for rows, weights, g in layers:
            for some, back in zip(rows.split(2048), g.split(2048), strict=True):
                some @ weights, back @ weights.T, back.T @ some

    return run


def precision_runs(width, pixels):
    "Return the ways to take a training step, float32 and bfloat16, of one size."
    from neurobridge.core.convolution import products

    globals()["WIDTH"] = width
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 1, pixels, pixels), torch.randint(10, (BATCH,))
    base, runs = ours(), {}
    made = {"neurobridge": base, "neurobridge, channels first": channels_first(copy.deepcopy(base))}
    with contextlib.suppress(ImportError):
        made["spikingjelly"] = like(JellyNet(), base)
    for way, model in made.items():
        for low in (False, True):
            runs[way, "bfloat16" if low else "float32"] = stepper(
                copy.deepcopy(model), images, labels, 0.02, low
            )
    runs["neurobridge, products of rows", "bfloat16"] = stepper(
        copy.deepcopy(base), images, labels, 0.02, True, partial(products, True)
    )
    layers = limits(base, images)
    for low in (False, True):
        name = "bfloat16" if low else "float32"
        runs["convolutions as plain products", name] = products_of(layers, getattr(torch, name))
    return runs


def channels_first(model):
    "Undo the layout that the stem gives its maps, so that all layers run as torch stores them."
    model.stem_neuron.register_forward_hook(lambda module, args, out: out.contiguous())
    return model


def precision(sizes, rounds, threads, clock):
    torch.set_num_threads(threads)
    for width, pixels in sizes:
        times = rounds_of(precision_runs(width, pixels), rounds, CLOCKS[clock])
        for (way, name), ms in times.items():
            row = (width, pixels, way, name, round(ms, 1))
            print(*row, sep="\t", flush=True)
            yield row


# ---- the command


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def write_precision(args, comments):
    sizes = [tuple(int(n) for n in size.split("x")) for size in args.precision.split(",")]
    rows = list(precision(sizes, args.rounds, args.threads, args.clock))
    if args.out:
        lines = [f"# {line}" for line in comments]
        lines += ["width,pixels,way,precision,milliseconds"]
        lines += [f'{w},{p},"{way}",{name},{ms}' for w, p, way, name, ms in rows]
        args.out.write_text("\n".join(lines) + "\n")


def measure(tuned, rounds, seeds, epochs, threads):
    from neurobridge.data import load_images

    torch.set_num_threads(threads)
    if tuned:
        from neurobridge.snn import tune_cpu

        tune_cpu()
    torch.manual_seed(0)
    train, held_out = load_images("fashion_mnist", limit=IMAGES + VALIDATION).split_off(VALIDATION)
    images, labels = train.tensors()
    validation = held_out.tensors(*train.statistics())
    rows = [*block_rows(rounds), *step_rows(rounds, images, labels)]
    for seed in range(seeds if tuned else 0):
        rows += training_rows(seed, epochs, images, labels, validation)
    return [{"allocator": "tuned" if tuned else "default"} | row for row in rows]


COLUMNS = ("allocator", "what", "way", "milliseconds", "seed", "epochs", "seconds", "accuracy")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--precision", metavar="WIDTHxPIXELS,…", help="float32 and bfloat16 only")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="of --precision")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        warnings.simplefilter("ignore")
        print("RESULT" + json.dumps(measure(**json.loads(args.child))))
        return
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    comments = [
        f"{model}, {args.threads} threads, {platform.system()} {platform.release()}, load "
        f"{os.getloadavg()[0]:.1f} at the start",
        f"torch {version('torch')}, spikingjelly "
        f"{version('spikingjelly') if importlib.util.find_spec('spikingjelly') else 'absent'}",
    ]
    if args.precision:
        comments[0] = comments[0].replace(" threads,", f" threads, {args.clock} clock,")
        comments.append(f"T {T}, batch {BATCH}, {args.rounds} rounds")
        write_precision(args, comments)
        return
    rows = []
    for tuned in (True, False):
        job = {
            "tuned": tuned,
            "rounds": args.rounds,
            "seeds": args.seeds,
            "epochs": args.epochs,
            "threads": args.threads,
        }
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "--child", json.dumps(job)],
            capture_output=True,
            text=True,
        )
        comments += [line[2:] for line in done.stderr.splitlines() if line.startswith("# ")]
        answers = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
        if not answers:
            sys.exit(done.stdout + done.stderr)
        rows += json.loads(answers[0][len("RESULT") :])
        for row in rows:
            if row["allocator"] == ("tuned" if tuned else "default"):
                print(*(row.get(c, "") for c in COLUMNS), sep="\t", flush=True)
    if args.out:
        lines = [f"# {c}" for c in dict.fromkeys(comments)] + [",".join(COLUMNS)]
        lines += [
            ",".join(
                f'"{v}"' if isinstance(v := row.get(c, ""), str) and "," in v else str(v)
                for c in COLUMNS
            )
            for row in rows
        ]
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
