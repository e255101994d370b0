"""What only a CUDA device can answer, as one script of under eight minutes.

    pip install -r benchmarks/requirements.txt
    python benchmarks/gpu.py --out benchmarks/gpu.csv
    python benchmarks/gpu.py --device cpu --tiny             # a dry run: its figures mean nothing

    what        equal       largest difference of LIF, and of norm + LIF, from the reference: spikes, and gradients over the largest
                layer       one LIF layer, forward + backward; the floor is two copies, each result written once
                norm        batch norm + LIF, forward + backward
                step        one training step of a spiking ResNet-18, float32 and under autocast
                ensembles   a layer of ensembles and a dense one, forward + backward
    way         SpikingJelly 2.0 has "torch", "cuda" and "triton"; one that cannot be used is a row with the reason
    peak        largest memory of the device in the same calls, beyond what was there before (MB)

Times are medians; every call is waited for. Each `what` stops taking rounds after a fifth of `--seconds`.
"""

import argparse
import platform
import statistics
import time
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from training import jelly_neuron

COLUMNS = ("what", "size", "way", "value", "unit", "peak", "note")
T, ROUNDS = 4, 30


# ---- measuring


def why(error):
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


class Bench:
    def __init__(self, device, seconds):
        self.device, self.seconds, self.rows = torch.device(device), seconds, []

    def row(self, what, size, way, value=None, unit="", peak=None, note=""):
        self.rows.append(dict(zip(COLUMNS, (what, size, way, value, unit, peak, note))))
        print(*self.rows[-1].values(), sep="\t", flush=True)

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak(self, run):
        if self.device.type != "cuda":
            run()
            return None
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        self.wait()
        return round((torch.cuda.max_memory_allocated(self.device) - before) / 1e6, 1)

    def times(self, what, size, runs, limit):
        "Add a row for each way; one that cannot run is said, and left out."
        peaks = {}
        for way, run in list(runs.items()):
            try:
                run()  # compiles
                peaks[way] = self.peak(run)
            except Exception as error:
                self.row(what, size, way, note=why(error))
                del runs[way]
        found, start = {way: [] for way in runs}, time.perf_counter()
        for _ in range(ROUNDS):
            for way, run in runs.items():
                self.wait()
                before = time.perf_counter()
                run()
                self.wait()
                found[way].append(time.perf_counter() - before)
            if time.perf_counter() - start > limit:
                break
        for way, seconds in found.items():
            value = round(1000 * statistics.median(seconds), 4)
            self.row(what, size, way, value, "ms", peaks[way], f"{len(seconds)} rounds")


# ---- neurons


def plain_loop(x):
    "LIF as a loop over time in torch, decay 0.25, threshold 0.5, hard reset, rectangle."

    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u):
            ctx.save_for_backward(u)
            return (u > 0).to(u.dtype)

        @staticmethod
        def backward(ctx, g):
            return g * (ctx.saved_tensors[0].abs() < 0.5)

    v, out = torch.zeros_like(x[0]), []
    for current in x.unbind(0):
        h = 0.25 * v + current
        s = Spike.apply(h - 0.5)
        v = h * (1 - s.detach())
        out.append(s)
    return torch.stack(out)


JELLY = ("torch", "cuda", "triton")  # SpikingJelly's implementations on a CUDA device


def calls_of_jelly(name):
    """Return SpikingJelly's neuron by one implementation.

    SJ_LIF_CUDA_IMPLEMENTATION is read once by a process, so what it sets is set here instead.
    """
    made, selected = [], {}

    def call(x):
        if not made:
            made.append(jelly_neuron().to(x.device))
        if x.device.type != "cuda" and name != "torch":
            raise RuntimeError("needs a CUDA device")
        from spikingjelly._ops import lif

        lif._selection._requested, lif._selection._selections = name, selected
        made[0].reset()
        return made[0](x)

    return call


def both(call, x, g):
    x = x.detach().requires_grad_()
    out = call(x)
    return out.detach(), torch.autograd.grad(out, x, g)[0]


def floor(x, g):
    return x.clone(), g.clone()


def neurons(device):
    from neurobridge.snn import LIF

    own = "triton" if device.type == "cuda" else "fused"
    ways = {f"neurobridge {own}": LIF(backend=own), "neurobridge torch": LIF(backend="torch")}
    ways |= {f"spikingjelly {name}": calls_of_jelly(name) for name in JELLY}
    return ways | {"plain loop": plain_loop}


def equal(bench, shape):
    from neurobridge.snn import LIF, norm_lif

    torch.manual_seed(0)
    x, g = torch.randn(2, *shape, device=bench.device)
    expected = both(LIF(backend="reference"), x, g)
    for way, call in neurons(bench.device).items():
        try:
            found = both(call, x, g)
        except Exception as error:
            bench.row("equal", "x".join(map(str, shape)), way, note=why(error))
            continue
        compare(bench, shape, way, found, expected)
    for backend in ("reference", "auto"):
        norm = nn.BatchNorm2d(shape[2]).to(bench.device)
        found = both(lambda x, n=norm, b=backend: norm_lif(x, n, LIF(backend=b)), x, g)
        if backend == "reference":
            expected = found
    compare(bench, shape, "neurobridge norm + LIF", found, expected)


def compare(bench, shape, way, found, expected):
    size = "x".join(map(str, shape))
    differ = (found[0] != expected[0]).float().mean().item()
    apart = ((found[1] - expected[1]).abs().max() / expected[1].abs().max()).item()
    bench.row("equal", size, f"{way}, spikes", differ, "share that differs")
    bench.row("equal", size, f"{way}, gradient", apart, "of the largest")


def layers(bench, shape):
    x, g = torch.randn(2, *shape, device=bench.device)
    runs = {"floor": partial(floor, x, g)}
    runs |= {way: partial(both, call, x, g) for way, call in neurons(bench.device).items()}
    bench.times("layer", "x".join(map(str, shape)), runs, bench.seconds / 10)


def norms(bench, shape):
    from neurobridge.snn import LIF, norm_lif

    x, g = torch.randn(2, *shape, device=bench.device)
    runs = {"floor": partial(floor, x, g)}
    for way, call in neurons(bench.device).items():
        norm = nn.BatchNorm2d(shape[2]).to(bench.device)

        def separate(x, norm=norm, call=call):
            return call(norm(x.flatten(0, 1)).unflatten(0, x.shape[:2]))

        runs[f"batch norm, {way}"] = partial(both, separate, x, g)
    norm = nn.BatchNorm2d(shape[2]).to(bench.device)
    runs["neurobridge norm_lif"] = partial(both, lambda x: norm_lif(x, norm, LIF()), x, g)
    bench.times("norm", "x".join(map(str, shape)), runs, bench.seconds / 10)


# ---- networks


class Neuron(nn.Module):
    "Make a layer of a function of currents."

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


def step(model, x, y, low):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def run():
        optimizer.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=low):
            loss = nn.functional.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()

    return run


def steps(bench, width, pixels, batch):
    from neurobridge.snn import LIF, spiking_resnet18

    x = torch.randn(batch, 3, pixels, pixels, device=bench.device)
    y = torch.randint(10, (batch,), device=bench.device)
    makers = {"neurobridge": LIF, "plain loop": lambda: Neuron(plain_loop)}
    for name in JELLY:
        makers[f"spikingjelly {name} neurons"] = lambda name=name: Neuron(calls_of_jelly(name))
    for low in (False, True):
        runs = {}
        for way, neuron in makers.items():
            torch.manual_seed(0)
            model = spiking_resnet18(neuron, 3, 10, T, width, small_images=True).to(bench.device)
            runs[f"{way}, {'bfloat16' if low else 'float32'}"] = step(model, x, y, low)
        bench.times("step", f"width {width}, {batch} images", runs, bench.seconds / 10)


def ensembles(bench, width, batch):
    from neurobridge.g2g import EnsembleLinear, to_masked

    torch.manual_seed(0)
    x, g = torch.randn(2, batch, width, device=bench.device)
    layer = EnsembleLinear(width, width)
    made = {"dense": nn.Linear(width, width), "ensembles": layer, "masked": to_masked(layer)}
    runs = {}
    for way, each in made.items():
        each = each.to(bench.device)
        turned = (x.t().contiguous().t(), g.t().contiguous().t()) if way == "ensembles" else (x, g)

        def run(each=each, pair=turned):
            inputs = pair[0].detach().requires_grad_()
            each.zero_grad(set_to_none=True)
            each(inputs).backward(pair[1])

        runs[way] = run
    bench.times("ensembles", f"{width}", runs, bench.seconds / 20)


# ---- the command


def device_name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=360.0, help="about, without compiling")
    parser.add_argument("--tiny", action="store_true", help="sizes at which nothing is measured")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no CUDA device is here; --device cpu --tiny is the dry run")
    bench = Bench(args.device, 0.0 if args.tiny else args.seconds)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    small, large = ((T, 2, 4, 4, 4),) * 2 if args.tiny else ((T, 50, 64, 32, 32), (16, 64, 4096))
    equal(bench, small)
    for shape in dict.fromkeys((small, large)):
        layers(bench, shape)
    norms(bench, small)
    steps(bench, *((4, 8, 2) if args.tiny else (64, 32, 100)))
    for width in (16,) if args.tiny else (1024, 2048, 4096, 8192):
        ensembles(bench, width, 4 if args.tiny else 512)
    if args.out:
        with args.out.open("w") as file:
            name = device_name(bench.device) or platform.machine()
            file.write(f"# {name}; torch {torch.__version__}, CUDA {torch.version.cuda}\n")
            pd.DataFrame(bench.rows, columns=COLUMNS).to_csv(file, index=False)


if __name__ == "__main__":
    main()
