"""Time one layer of LIF neurons against other libraries and against the memory floor.

    pip install -r benchmarks/requirements.txt
    python benchmarks/lif.py --out benchmarks/lif.csv                     # everything
    python benchmarks/lif.py --shapes 16x64x4096 --resets hard --no-compile

Ways take turns within a round, so that a busy moment of the machine hits all of them; medians over rounds are written. The floor is
`x.clone()` forward and `g.clone()` backward: every result has to be written somewhere, after something of its size was read.
Each (allocator, shape, reset) runs in a process of its own. On a busy machine several threads wait for each other and say nothing;
--clock cpu with --threads 1 counts processor time instead, which only the shared caches and memory can disturb. "tuned" is `neurobridge.snn.kernels.cpu.tune_cpu()`, for all ways alike.
Peak memory is that of forward + backward beyond x and the gradient handed in, in tensors of x's size (default allocator).
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

SHAPES = ("4x64x4096", "16x64x4096", "8x16x64x32x32", "64x64x4096")
PEERS = ("spikingjelly", "snntorch", "norse", "sinabs")


# ---- the ways; every one maps x [T, N, ...] to spikes of the same shape (sinabs: [N, T, ...]), decay 0.5, threshold 1, arctangent


def neurobridge(reset, backend):
    from neurobridge.snn import LIF, atan

    return LIF(0.5, 1.0, reset, atan(), backend=backend)


def spikingjelly(reset):
    from spikingjelly.activation_based import neuron, surrogate

    node = neuron.LIFNode(
        tau=2.0,
        decay_input=False,
        v_reset=0.0 if reset == "hard" else None,
        detach_reset=True,
        step_mode="m",
        surrogate_function=surrogate.ATan(),
    )

    def run(x):
        node.reset()
        return node(x)

    return run


def snntorch(reset):
    import snntorch as snn

    node = snn.Leaky(
        beta=0.5,
        threshold=1.0,
        reset_mechanism="zero" if reset == "hard" else "subtract",
        spike_grad=snn.surrogate.atan(),
    )

    def run(x):
        membrane, spikes = torch.zeros_like(x[0]), []
        for x_t in x.unbind(0):
            s, membrane = node(x_t, membrane)
            spikes.append(s)
        return torch.stack(spikes)

    return run


def norse(reset):
    from norse.torch import LIFBoxCell, LIFBoxParameters, Lift
    from norse.torch.functional import reset as resets

    method = resets.reset_value if reset == "hard" else resets.reset_subtract
    cell = Lift(
        LIFBoxCell(p=LIFBoxParameters(tau_mem_inv=torch.as_tensor(500.0), reset_method=method))
    )
    return lambda x: cell(x)[0]


def sinabs(reset):
    import sinabs.activation as activation
    from sinabs.layers import LIF

    chosen = activation.MembraneReset() if reset == "hard" else activation.MembraneSubtract()
    layer = LIF(
        tau_mem=1.4427, spike_threshold=torch.tensor(1.0), reset_fn=chosen, norm_input=False
    )

    def run(x):
        layer.reset_states()
        return layer(x)

    return run


def ways(reset, compiled):
    made = {
        "floor": None,
        "neurobridge fused": neurobridge(reset, "fused"),
        "neurobridge torch": neurobridge(reset, "torch"),
        "neurobridge reference": neurobridge(reset, "reference"),
    }
    for name in PEERS:
        for suffix, wrap in (("", lambda f: f), (" compiled", torch.compile)):
            if compiled or not suffix:
                try:
                    made[name + suffix] = wrap(globals()[name](reset))
                except ImportError as error:
                    print(f"# {name}: {error}", file=sys.stderr)
    return made


# ---- measuring


def forward(way, x):
    with torch.no_grad():
        return x.clone() if way is None else way(x)


def both(way, x, g):
    if way is None:
        return x.clone(), g.clone()
    x = x.detach().requires_grad_()
    out = way(x)
    return out, torch.autograd.grad(out, x, g)


def peak(run, size):
    "Largest resident memory while running, beyond what was there before."
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")

    def status(key):
        return next(
            int(line.split()[1]) * 1024
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith(key)
        )

    before, result = status("VmRSS"), run()
    del result
    return (status("VmHWM") - before) / size


def measure(shape, reset, tuned, compiled, rounds, threads, clock):
    "One process's share: a row for every way and pass."
    torch.set_num_threads(threads)
    now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    if tuned:
        from neurobridge.snn import tune_cpu

        tune_cpu()
    torch.manual_seed(0)
    x, g = torch.randn(shape), torch.randn(shape)
    first, times = {}, {}
    swapped = x.transpose(0, 1).contiguous(), g.transpose(0, 1).contiguous()
    runs = {}
    for name, way in ways(reset, compiled).items():
        data = swapped if name.startswith("sinabs") else (x, g)
        start = time.perf_counter()
        try:
            both(way, *data), forward(way, data[0])
        except Exception as error:  # a peer that cannot do it: said, and left out
            print(
                f"# {name}, {shape}, {reset}: {type(error).__name__}: "
                f"{str(error).splitlines()[0][:200]}",
                file=sys.stderr,
            )
            continue
        first[name] = time.perf_counter() - start
        runs[name, "forward"] = lambda way=way, data=data: forward(way, data[0])
        runs[name, "forward+backward"] = lambda way=way, data=data: both(way, *data)
    for _ in range(rounds):
        for key, run in runs.items():
            start = now()
            result = run()
            times.setdefault(key, []).append(now() - start)
            del result
    memory = (
        {}
        if tuned
        else {name: peak(run, x.nbytes) for (name, kind), run in runs.items() if kind != "forward"}
    )
    median = {key: 1000 * statistics.median(values) for key, values in times.items()}
    return [
        {
            "allocator": "tuned" if tuned else "default",
            "shape": "x".join(map(str, shape)),
            "reset": reset,
            "pass": kind,
            "implementation": name,
            "median_ms": round(value, 3),
            "times_floor": round(value / median["floor", kind], 2),
            "first_call_s": round(first[name], 2),
            "peak_tensors": round(memory[name], 2) if name in memory and kind != "forward" else "",
        }
        for (name, kind), value in median.items()
    ]


# ---- the command


def machine(threads, clock):
    def of(package):
        try:
            return version(package)
        except PackageNotFoundError:
            return "absent"

    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    versions = ", ".join(f"{p} {of(p)}" for p in ("torch", *PEERS))
    compiler = subprocess.run(
        [os.environ.get("CC", "cc"), "--version"], capture_output=True, text=True
    ).stdout.splitlines()[0]
    return [
        f"{model}, {threads} threads, {clock} clock, {platform.system()} {platform.release()}, "
        f"load {os.getloadavg()[0]:.1f} at the start",
        versions,
        compiler,
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--resets", default="hard,soft")
    parser.add_argument("--allocators", default="tuned,default")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        warnings.simplefilter("ignore")
        print("RESULT" + json.dumps(measure(**json.loads(args.child))))
        return
    comments, rows = machine(args.threads, args.clock), []
    for allocator in args.allocators.split(","):
        for shape in args.shapes.split(","):
            for reset in args.resets.split(","):
                job = {
                    "shape": [int(n) for n in shape.split("x")],
                    "reset": reset,
                    "tuned": allocator == "tuned",
                    "compiled": not args.no_compile,
                    "rounds": args.rounds,
                    "threads": args.threads,
                    "clock": args.clock,
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
                for row in rows[-len(json.loads(answers[0][len("RESULT") :])) :]:
                    print(*row.values(), sep="\t", flush=True)
    if args.out:
        lines = (
            [f"# {c}" for c in dict.fromkeys(comments)]
            + [",".join(rows[0])]
            + [",".join(map(str, row.values())) for row in rows]
        )
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
