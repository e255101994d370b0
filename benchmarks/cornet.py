"""Time CORnet-S at its published size against a plain module that does what its description says.

    python benchmarks/cornet.py --out benchmarks/cornet.csv          # about four minutes on two quiet cores

224 pixels, batches of 8. "plain" is written below from the description of the published forward: standard layers, channels first, one after the other,
the stride of conv2 set anew at every step. "model" is `cornet_s` as it is, "model, channels last" the same in that layout; "fast" is
`for_inference` or `for_training` of `neurobridge.cornet.cpu`. All have the same weights and statistics. Ways take turns, in another order every round;
medians are written. On a busy machine `--clock cpu --threads 1` counts processor time instead. `difference` is the largest difference of logits (inference) or of a parameter's gradient (training) from plain, over the largest value.
"""

import argparse
import copy
import os
import platform
import random
import statistics
import time
from pathlib import Path

import torch
from torch import nn

BATCH = 8


class PlainArea(nn.Module):
    def __init__(self, a, o, times):
        super().__init__()
        self.times, w = times, 4 * o
        self.conv_input, self.skip = (
            nn.Conv2d(a, o, 1, bias=False),
            nn.Conv2d(o, o, 1, stride=2, bias=False),
        )
        self.norm_skip = nn.BatchNorm2d(o)
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(o, w, 1, bias=False),
            nn.Conv2d(w, w, 3, 2, 1, bias=False),
            nn.Conv2d(w, o, 1, bias=False),
        )
        self.relu = nn.ReLU(inplace=True)
        for t in range(times):
            for i, c in enumerate((w, w, o), 1):
                setattr(self, f"norm{i}_{t}", nn.BatchNorm2d(c))

    def forward(self, x):
        x = self.conv_input(x)
        for t in range(self.times):
            s = self.norm_skip(self.skip(x)) if t == 0 else x
            self.conv2.stride = (2, 2) if t == 0 else (1, 1)
            x = self.relu(getattr(self, f"norm1_{t}")(self.conv1(x)))
            x = self.relu(getattr(self, f"norm2_{t}")(self.conv2(x)))
            x = self.relu(getattr(self, f"norm3_{t}")(self.conv3(x)) + s)
        return x


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.V1 = nn.Module()
        self.V1.conv1, self.V1.norm1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.V1.conv2, self.V1.norm2 = (
            nn.Conv2d(64, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
        )
        self.V2, self.V4, self.IT = (
            PlainArea(64, 128, 2),
            PlainArea(128, 256, 4),
            PlainArea(256, 512, 2),
        )
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        self.decoder = nn.Module()
        self.decoder.linear = nn.Linear(512, 1000)

    def forward(self, x):
        v = self.V1
        x = self.pool(self.relu(v.norm1(v.conv1(x))))
        x = self.relu(v.norm2(v.conv2(x)))
        return self.decoder.linear(self.IT(self.V4(self.V2(x))).mean((2, 3)))


def networks():
    from neurobridge.cornet import cornet_s

    torch.manual_seed(0)
    model = cornet_s()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after a training: nothing is 0 or 1
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    plain = Plain()
    plain.load_state_dict(model.state_dict())
    return plain, model


def rounds_of(runs, rounds, now):
    times = {name: [] for name in runs}
    for run in runs.values():
        run()
    shuffle = random.Random(0)
    for _ in range(rounds):
        for name, run in shuffle.sample(
            list(runs.items()), len(runs)
        ):  # whoever comes before leaves the caches in its own state
            start = now()
            run()
            times[name].append(now() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def apart(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def inference(rounds, now, x):
    from neurobridge.cornet import for_inference

    plain, model = networks()
    plain.eval(), model.eval()
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    ways = {
        "plain": plain,
        "model": model,
        "model, channels last": last,
        "fast": for_inference(model),
        "model, channels last, bfloat16": torch.autocast("cpu", torch.bfloat16)(last.forward),
    }
    with torch.no_grad():
        seconds = rounds_of(
            {name: lambda way=way: way(x) for name, way in ways.items()}, rounds, now
        )
        expected = plain(x)
        return seconds, {name: apart(way(x), expected) for name, way in ways.items()}


def training(rounds, now, x):
    from neurobridge.cornet import for_training

    plain, model = networks()
    labels = torch.randint(1000, (len(x),))
    ways = {
        "plain": plain,
        "model, channels last": copy.deepcopy(model).to(memory_format=torch.channels_last),
        "fast": for_training(model),
    }

    # plain batches of random noise: no update of the weights, so that every round is the same work and gradients can be compared
    def step(way):
        way.zero_grad()
        nn.functional.cross_entropy(way(x), labels).backward()

    seconds = rounds_of(
        {name: lambda way=way: step(way) for name, way in ways.items()}, rounds, now
    )
    pairs = {
        name: [(p.grad, q.grad) for p, q in zip(way.parameters(), plain.parameters(), strict=True)]
        for name, way in ways.items()
    }
    return seconds, {name: max(apart(a, b) for a, b in each) for name, each in pairs.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--passes", default="inference,training")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":")[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        if cpuinfo.exists()
        else []
    )
    lines = [
        f"# {names[0] if names else platform.processor()}, {args.threads} threads, {args.clock} "
        f"clock, {platform.system()} {platform.release()}, load {os.getloadavg()[0]:.1f} at the "
        "start",
        f"# torch {torch.__version__}, {args.size} pixels, batch {BATCH}, {args.rounds} rounds",
        "pass,way,milliseconds,images_per_second,times_plain,difference",
    ]
    x = torch.randn(BATCH, 3, args.size, args.size, generator=torch.Generator().manual_seed(1))
    passes = {"inference": (inference, args.rounds), "training": (training, (args.rounds + 1) // 2)}
    for kind in args.passes.split(","):
        measure, rounds = passes[kind]
        seconds, difference = measure(
            rounds, {"wall": time.perf_counter, "cpu": time.process_time}[args.clock], x
        )
        for name, value in seconds.items():
            quoted = f'"{name}"' if "," in name else name
            lines.append(
                f"{kind},{quoted},{1000 * value:.1f},{BATCH / value:.3f},{seconds['plain'] / value:.3f},{difference[name]:.1e}"
            )
            print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
