"""Time one layer of neurons against other libraries and against the memory floor.

    pip install -r benchmarks/requirements.txt
    python benchmarks/lif.py --out benchmarks/lif.csv                     # plain LIF neurons, everything
    python benchmarks/lif.py --neurons synaptic,adaptive,recurrent --out benchmarks/neurons.csv
    python benchmarks/lif.py --shapes 16x64x4096 --resets hard --no-compile

Ways take turns within a round, so that a busy moment of the machine hits all of them; medians over rounds are written. The floor is
`x.clone()` forward and `g.clone()` backward: every result has to be written somewhere, after something of its size was read.
Each (allocator, neuron, shape, reset) runs in a process of its own. On a busy machine several threads wait for each other and say nothing;
--clock cpu with --threads 1 counts processor time instead, which only the shared caches and memory can disturb. "tuned" is
`neurobridge.snn.kernels.cpu.tune_cpu()`, for all ways alike. Peak memory is that of forward + backward beyond x and the gradient
handed in, in tensors of x's size (default allocator; not for JAX, whose allocator keeps what earlier runs took).

Neurons, all with decay 0.5, threshold 1 and the arctangent surrogate:

    lif         v = 0.5 v + x
    synaptic    the same, driven by a current that keeps 0.8 of itself per step
    adaptive    a spike adds 0.2 to the threshold, of which 0.9 is kept per step
    recurrent   spikes feed back through a dense matrix; its gradient is computed too; shapes [T, N, n]

"jax" is a jitted `lax.scan` in a process of its own that takes its turn in every round: the faster of the rolled and the unrolled loop.
Before anything is timed, the spikes of every way are compared with those of neurobridge's reference, and JAX's gradients too; a comment says
where they differ. A peer without an equal neuron is left out: norse's adaptive and recurrent cells have a synaptic current as well,
SpikingJelly has neither a current nor an adaptive threshold, and its recurrent container multiplies the input by a matrix of its own.
"""

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

SHAPES = ("4x64x4096", "16x64x4096", "8x16x64x32x32", "64x64x4096")
RECURRENT = ("4x64x256", "16x64x256", "64x64x256")
NEURONS = ("lif", "synaptic", "adaptive", "recurrent")
PEERS = ("spikingjelly", "snntorch", "norse", "sinabs")
DECAY, CURRENT, RISE, RISE_KEPT = 0.5, 0.8, 0.2, 0.9
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Absent(Exception):
    "The library has no such neuron."


# ---- the ways; every one maps x [T, N, ...] to spikes of the same shape (sinabs: [N, T, ...])


def dense(matrix):
    import torch

    layer = torch.nn.Linear(*matrix.shape, bias=False)
    layer.weight.data = torch.from_numpy(matrix).clone()
    return layer


def neurobridge(neuron, reset, matrix, backend):
    from torch import nn

    from neurobridge.snn import LIF, AdaptiveLIF, RecurrentLIF, Synapse, atan

    given = dict(reset=reset, surrogate=atan(), backend=backend)
    if neuron == "synaptic":
        return nn.Sequential(Synapse(CURRENT, backend=backend), LIF(DECAY, 1.0, **given))
    if neuron == "adaptive":
        return AdaptiveLIF(DECAY, 1.0, RISE, RISE_KEPT, **given)
    if neuron == "recurrent":
        return RecurrentLIF(dense(matrix), DECAY, 1.0, **given)
    return LIF(DECAY, 1.0, **given)


def spikingjelly(neuron, reset, matrix):
    if neuron != "lif":
        raise Absent
    from spikingjelly.activation_based import neuron as neurons
    from spikingjelly.activation_based import surrogate

    node = neurons.LIFNode(
        tau=1 / (1 - DECAY),
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


def snntorch(neuron, reset, matrix):
    import snntorch as snn
    import torch

    kind = {"lif": "Leaky", "synaptic": "Synaptic", "recurrent": "RLeaky"}.get(neuron)
    if kind is None:
        raise Absent
    given = dict(
        beta=DECAY,
        threshold=1.0,
        reset_mechanism="zero" if reset == "hard" else "subtract",
        reset_delay=neuron == "lif",  # its default, by which a soft reset comes a step later
        spike_grad=snn.surrogate.atan(),
    )
    given |= {"alpha": CURRENT} if neuron == "synaptic" else {}
    given |= {"linear_features": len(matrix)} if neuron == "recurrent" else {}
    node = getattr(snn, kind)(**given)
    if neuron == "recurrent":
        node.recurrent = dense(matrix)

    def run(x):
        zero, spikes = torch.zeros_like(x[0]), []
        state = [zero] if neuron == "lif" else [zero, zero]
        for x_t in x.unbind(0):
            s, *state = node(x_t, *state)
            state = [s, *state] if neuron == "recurrent" else state
            spikes.append(s)
        return torch.stack(spikes)

    run.weights = [node.recurrent.weight] if neuron == "recurrent" else []
    return run


def norse(neuron, reset, matrix):
    import torch
    from norse.torch import LIFBoxCell, LIFBoxParameters, LIFCell, LIFParameters, Lift
    from norse.torch.functional import reset as resets

    rate = 1000 * torch.as_tensor(1 - DECAY)  # per second, at steps of a millisecond
    if neuron == "synaptic" and reset == "hard":
        p = LIFParameters(tau_mem_inv=rate, tau_syn_inv=1000 * torch.as_tensor(1 - CURRENT))
        cell = Lift(LIFCell(p=p))
    elif neuron == "lif":
        method = resets.reset_value if reset == "hard" else resets.reset_subtract
        cell = Lift(LIFBoxCell(p=LIFBoxParameters(tau_mem_inv=rate, reset_method=method)))
    else:
        raise Absent
    run = lambda x: cell(x)[0]  # noqa: E731
    run.gain = 1 / (1 - DECAY)  # it multiplies its input by the rate of the membrane
    return run


def sinabs(neuron, reset, matrix):
    import math

    import sinabs.activation as activation
    import torch
    from sinabs import layers

    tau = lambda kept: -1 / math.log(kept)  # noqa: E731
    given = dict(
        tau_mem=tau(DECAY),
        spike_threshold=torch.tensor(1.0),
        spike_fn=activation.SingleSpike,
        reset_fn=activation.MembraneReset() if reset == "hard" else activation.MembraneSubtract(),
        norm_input=False,
    )
    gain = 1.0
    if neuron == "synaptic":
        given["tau_syn"], gain = tau(CURRENT), 1 / CURRENT  # a current decays once at once
    if neuron == "adaptive":
        given |= dict(tau_adapt=tau(RISE_KEPT), adapt_scale=RISE / (1 - RISE_KEPT))
    if neuron == "recurrent":
        given["rec_connect"] = dense(matrix)
    kind = {"adaptive": "ALIF", "recurrent": "LIFRecurrent"}.get(neuron, "LIF")
    layer = getattr(layers, kind)(**given)

    def run(x):
        layer.reset_states()
        return layer(x)

    run.weights = [given["rec_connect"].weight] if neuron == "recurrent" else []
    run.gain = gain
    return run


def ways(neuron, reset, matrix, compiled):
    import torch

    made = {"floor": None}
    for backend in ("fused", "torch", "reference"):
        made[f"neurobridge {backend}"] = neurobridge(neuron, reset, matrix, backend)
    for name in PEERS:
        try:
            made[name] = globals()[name](neuron, reset, matrix)
        except Absent:
            continue
        except ImportError as error:
            print(f"# {name}: {error}", file=sys.stderr)
            continue
        if compiled:
            again = globals()[name](neuron, reset, matrix)
            made[f"{name} compiled"] = torch.compile(again)
            for attribute in ("weights", "gain"):
                if hasattr(again, attribute):
                    setattr(made[f"{name} compiled"], attribute, getattr(again, attribute))
    return made


# ---- JAX, in a process of its own


def jax_ways(neuron, reset, steps):
    "Return a jitted forward pass and one with gradients, rolled and unrolled."
    import jax
    import jax.numpy as jnp

    @jax.custom_vjp
    def fire(u):
        return (u > 0).astype(u.dtype)

    fire.defvjp(lambda u: (fire(u), u), lambda u, g: (g / (1 + (jnp.pi * u) ** 2),))

    def spikes(x, matrix, unroll):
        def step(carry, x_t):
            v, current, rise, s = carry
            if neuron == "recurrent":
                x_t = x_t + s @ matrix.T
            if neuron == "synaptic":
                x_t = current = CURRENT * current + x_t
            h, v_th = DECAY * v + x_t, 1 + rise
            s = fire(h - v_th)
            fired = jax.lax.stop_gradient(s)
            v = h * (1 - fired) if reset == "hard" else h - v_th * fired
            if neuron == "adaptive":
                rise = RISE_KEPT * rise + RISE * s
            return (v, current, rise, s), s

        zero = jnp.zeros_like(x[0])
        return jax.lax.scan(step, (zero, zero, zero, zero), x, unroll=unroll)[1]

    def made(unroll):
        def trained(x, g, matrix):
            if neuron == "recurrent":
                out, back = jax.vjp(lambda x, m: spikes(x, m, unroll), x, matrix)
            else:
                out, back = jax.vjp(lambda x: spikes(x, matrix, unroll), x)
            return out, back(g)

        run = lambda x, g, matrix: spikes(x, matrix, unroll)  # noqa: E731
        return {"forward": jax.jit(run), "forward+backward": jax.jit(trained)}

    return {"rolled": made(1), "unrolled": made(steps)}


def jax_process(neuron, reset, folder, threads, clock):
    "Answer lines from the standard input: 'check', or a loop and a pass to time."
    now, folder = CLOCKS[clock], Path(folder)
    import jax

    x, g, matrix = (jax.device_put(np.load(folder / f"{name}.npy")) for name in ("x", "g", "m"))
    made, first = jax_ways(neuron, reset, len(x)), {}
    for loop, passes in made.items():
        start = time.perf_counter()
        for run in passes.values():
            jax.block_until_ready(run(x, g, matrix))
        first[loop] = time.perf_counter() - start
    for line in sys.stdin:
        asked = line.split()
        if asked[0] == "check":
            out, grads = made["rolled"]["forward+backward"](x, g, matrix)
            other, _ = made["unrolled"]["forward+backward"](x, g, matrix)
            np.save(folder / "out.npy", out), np.save(folder / "grad.npy", grads[0])
            answer = {"first": first, "loops": float((np.array(out) != np.array(other)).mean())}
        else:
            start = now()
            result = jax.block_until_ready(made[asked[0]][asked[1]](x, g, matrix))
            answer = now() - start
            del result
        print("ANSWER" + json.dumps(answer), flush=True)


class Jax:
    "The other process, asked for one run at a time."

    def __init__(self, neuron, reset, folder, threads, clock):
        flags = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
        job = dict(neuron=neuron, reset=reset, folder=folder, threads=threads, clock=clock)
        cores = sorted(os.sched_getaffinity(0))[:threads]  # as many threads as the others
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--jax", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )

    def ask(self, *words):
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER"):
                return json.loads(line[len("ANSWER") :])
        raise RuntimeError("the process of JAX ended")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# ---- measuring


def forward(way, x):
    import torch

    with torch.no_grad():
        return x.clone() if way is None else way(x)


def both(way, x, g):
    import torch

    if way is None:
        return x.clone(), g.clone()
    x = x.detach().requires_grad_()
    own = way.parameters() if isinstance(way, torch.nn.Module) else getattr(way, "weights", ())
    out = way(x)
    return out, torch.autograd.grad(out, [x, *own], g)


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


def say(text):
    print(f"# {text}", file=sys.stderr)


def compare(name, spikes, expected, what):
    "Say where a way has other spikes than the reference."
    differ = (spikes != expected).float().mean().item()
    if differ > 1e-5:
        say(f"{name}, {what}: {differ:.3%} of the spikes differ from the reference's")


def torch_runs(made, x, g, what):
    "Return the passes of all ways that work, and the seconds of their first call."
    runs, first = {}, {}
    expected = made["neurobridge reference"](x).detach()
    for name, way in made.items():
        data = [each * getattr(way, "gain", 1.0) if each is x else each for each in (x, g)]
        if name.startswith("sinabs"):
            data = [each.transpose(0, 1).contiguous() for each in data]
        start = time.perf_counter()
        try:
            out, _ = both(way, *data)
            forward(way, data[0])
        except Exception as error:  # a peer that cannot do it: said, and left out
            problem = (str(error).splitlines() or [""])[0][:200]
            say(f"{name}, {what}: {type(error).__name__}: {problem}")
            continue
        first[name] = time.perf_counter() - start
        if way is not None:
            out = out.transpose(0, 1) if name.startswith("sinabs") else out
            compare(name, out.detach(), expected, what)
        runs[name, "forward"] = lambda way=way, data=data: forward(way, data[0])
        runs[name, "forward+backward"] = lambda way=way, data=data: both(way, *data)
    return runs, first


def jax_checked(jax, way, x, g, folder, what):
    "Compare spikes and gradients of JAX with the reference; return the seconds of its first calls."
    import torch

    answer = jax.ask("check")
    out, grads = both(way, x, g)
    there, slope = (torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("out", "grad"))
    compare("jax", there, out.detach(), what)
    off = (slope - grads[0]).norm() / grads[0].norm()
    if off > 1e-3 or answer["loops"]:
        say(
            f"jax, {what}: gradients differ by {off:.2%}, spikes of its loops {answer['loops']:.3%}"
        )
    return answer["first"]


def measure(neuron, shape, reset, tuned, compiled, rounds, threads, clock):
    "One process's share: a row for every way and pass."
    import torch

    torch.set_num_threads(threads)
    if tuned:
        from neurobridge.snn import tune_cpu

        tune_cpu()
    torch.manual_seed(0)
    x, g = torch.randn(shape), torch.randn(shape)
    features = shape[-1] if neuron == "recurrent" else 1
    matrix = (torch.randn(features, features) / features**0.5).numpy()
    what = f"{neuron}, {'x'.join(map(str, shape))}, {reset}"
    made = ways(neuron, reset, matrix, compiled)
    runs, first = torch_runs(made, x, g, what)
    with tempfile.TemporaryDirectory() as name:
        folder, jax = Path(name), None
        if importlib.util.find_spec("jax") is None:
            say("jax: not installed")
        else:
            for file, values in (("x", x.numpy()), ("g", g.numpy()), ("m", matrix)):
                np.save(folder / f"{file}.npy", values)
            jax = Jax(neuron, reset, str(folder), threads, clock)
            seconds = jax_checked(jax, made["neurobridge reference"], x, g, folder, what)
        times = timed(runs, jax, rounds, CLOCKS[clock])
        taken = [] if tuned else [name for name, kind in runs if kind != "forward"]
        memory = {name: peak(runs[name, "forward+backward"], x.nbytes) for name in taken}
        median = {key: 1000 * statistics.median(values) for key, values in times.items()}
        if jax:
            for kind in ("forward", "forward+backward"):
                loop = min(("rolled", "unrolled"), key=lambda each: median[f"jax {each}", kind])
                median["jax", kind] = median[f"jax {loop}", kind]
                first["jax"] = seconds[loop]
            for key in [key for key in median if key[0].startswith("jax ")]:
                del median[key]
            jax.close()
    return [
        {
            "allocator": "tuned" if tuned else "default",
            "neuron": neuron,
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


def timed(runs, jax, rounds, now):
    "Return the seconds of each way and pass, one number for every round."
    times = {}
    for _ in range(rounds):
        for key, run in runs.items():
            start = now()
            result = run()
            times.setdefault(key, []).append(now() - start)
            del result
        for loop in ("rolled", "unrolled") if jax else ():
            for kind in ("forward", "forward+backward"):
                times.setdefault((f"jax {loop}", kind), []).append(jax.ask(loop, kind))
    return times


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
    versions = ", ".join(f"{p} {of(p)}" for p in ("torch", *PEERS, "jax"))
    compiler = subprocess.run(
        [os.environ.get("CC", "cc"), "--version"], capture_output=True, text=True
    ).stdout.splitlines()[0]
    return [
        f"{model}, {threads} threads, {clock} clock, {platform.system()} {platform.release()}, "
        f"load {os.getloadavg()[0]:.1f} at the start",
        versions,
        compiler,
    ]


def jobs(args):
    for allocator in args.allocators.split(","):
        for neuron in args.neurons.split(","):
            usual = RECURRENT if neuron == "recurrent" else SHAPES
            for shape in args.shapes.split(",") if args.shapes else usual:
                for reset in args.resets.split(","):
                    yield {
                        "neuron": neuron,
                        "shape": [int(n) for n in shape.split("x")],
                        "reset": reset,
                        "tuned": allocator == "tuned",
                        "compiled": not args.no_compile,
                        "rounds": args.rounds,
                        "threads": args.threads,
                        "clock": args.clock,
                    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--neurons", default="lif", help=f"of {', '.join(NEURONS)}")
    parser.add_argument("--shapes", help="default: " + ",".join(SHAPES))
    parser.add_argument("--resets", default="hard,soft")
    parser.add_argument("--allocators", default="tuned,default")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--jax", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.jax:
        return jax_process(**json.loads(args.jax))
    if args.child:
        warnings.simplefilter("ignore")
        return print("RESULT" + json.dumps(measure(**json.loads(args.child))))
    if unknown := set(args.neurons.split(",")) - set(NEURONS):
        parser.error(f"--neurons {', '.join(unknown)}: expected some of {', '.join(NEURONS)}")
    comments, rows = machine(args.threads, args.clock), []
    for job in jobs(args):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "--child", json.dumps(job)],
            capture_output=True,
            text=True,
        )
        comments += [line[2:] for line in done.stderr.splitlines() if line.startswith("# ")]
        answers = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
        if not answers:
            sys.exit(done.stdout + done.stderr)
        found = json.loads(answers[0][len("RESULT") :])
        rows += found
        for row in found:
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
