"The kernels against the reference: every setting, random shapes and layouts; then everything around them that can break."

import itertools
import os
import platform
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import neurobridge
from neurobridge.core import compiled, project_root
from neurobridge.snn import (
    LIF,
    AdaptiveLIF,
    atan,
    fast_sigmoid,
    gaussian,
    lif,
    rectangle,
    sigmoid,
    triangle,
    which_backend,
)
from neurobridge.snn.kernels import cpu as fused
from neurobridge.snn.kernels.fused_adaptive import ADAPTIVE_PROGRAM
from neurobridge.snn.kernels.fused_norm import NORM_PROGRAM, norm_lif

SURROGATES = [
    rectangle(),
    rectangle(0.3),
    triangle(),
    triangle(0.7),
    atan(),
    sigmoid(),
    sigmoid(9.0),
    fast_sigmoid(3.0),
    gaussian(),
    gaussian(0.4, 0.2),
]
LAYOUTS = ["plain", "turned", "sliced", "every other step", "same image", "offset"]
FLOAT = fused.for_dtype(fused.LIF_PROGRAM, torch.float32)
HAS_COMPILER = fused.fused_available(torch.zeros(1))
BACKENDS = ["torch"] + ["fused"] * HAS_COMPILER
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler here")


def laid_out(shape, layout, dtype, generator):
    "Random numbers of the shape, but not the way torch would put them into memory."

    def random(*s):
        return torch.randn(s, generator=generator).to(dtype)

    if layout == "turned":
        return random(shape[0], *shape[:0:-1]).permute(0, *range(len(shape) - 1, 0, -1))
    if layout == "sliced" and len(shape) > 1:
        return random(*shape[:-1], 2 * shape[-1] + 1)[..., 1::2]
    if layout == "every other step":
        return random(2 * shape[0], *shape[1:])[::2]
    if layout == "same image":
        return random(*shape[1:]).expand(shape)
    if layout == "offset":
        return random(int(np.prod(shape)) + 3)[3:].view(shape)
    return random(*shape)


@st.composite
def cases(draw):
    sizes = st.one_of(st.integers(0, 5), st.integers(1, 70))
    neurons = draw(st.lists(sizes, max_size=4).filter(lambda s: np.prod(s, dtype=int) <= 4000))
    if draw(st.integers(0, 9)) == 0:
        neurons = [draw(st.integers(1000, 5000))]
    keep = draw(st.integers(0, len(neurons)))
    decay_shape = [n if draw(st.booleans()) else 1 for n in neurons][keep:]
    return {
        "shape": (draw(st.integers(1, 20)), *neurons),
        "layout": draw(st.sampled_from(LAYOUTS)),
        "grad_layout": draw(st.sampled_from(LAYOUTS)),
        "dtype": draw(
            st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16])
        ),
        "decay": draw(st.sampled_from(["number", tuple(decay_shape), ()])),
        "started": draw(st.booleans()),
        "backend": draw(st.sampled_from(BACKENDS)),
        "seed": draw(st.integers(0, 2**31)),
        "v_th": draw(st.sampled_from([0.5, 1.0, 0.1])),
        "settings": {
            "reset": draw(st.sampled_from(["hard", "soft"])),
            "detach_reset": draw(st.booleans()),
            "output": draw(st.sampled_from(["spike", "membrane"])),
            "surrogate": draw(st.sampled_from(SURROGATES)),
        },
    }


def outcome(x, decay, v0, g, g_last, settings, backend):
    leaves = [a.detach().requires_grad_() for a in (x, decay, v0) if isinstance(a, torch.Tensor)]
    given_back = iter(leaves)
    x, decay, v0 = (next(given_back) if isinstance(a, torch.Tensor) else a for a in (x, decay, v0))
    out, v = lif(x, decay, v0=v0, backend=backend, **settings)
    grads = torch.autograd.grad([out, v], leaves, [g, g_last])
    return out.detach(), v.detach(), grads


def close(a, b, scale, dtype):
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 8e-3}[dtype]
    assert a.shape == b.shape and a.dtype == b.dtype
    if b.numel():
        assert ((a - b).abs() <= tolerance * (scale + b.abs())).all(), (
            f"off by {((a - b).abs() / (scale + b.abs() + 1e-30)).max():.2g}"
        )


@settings(max_examples=200, deadline=None)
@given(cases())
def test_equals_reference(case):
    gen = torch.Generator().manual_seed(case["seed"])
    shape, dtype, options = case["shape"], case["dtype"], case["settings"] | {"v_th": case["v_th"]}
    state = torch.promote_types(dtype, torch.float32)
    x, g = (
        laid_out(shape, case["layout"], dtype, gen),
        laid_out(shape, case["grad_layout"], dtype, gen),
    )
    v0 = torch.randn(shape[1:], generator=gen).to(state) if case["started"] else None
    g_last = torch.randn(shape[1:], generator=gen).to(state)
    decay = (
        0.25
        if case["decay"] == "number"
        else (torch.rand(case["decay"], generator=gen) * 0.98 + 0.01).to(state)
    )
    out, v, grads = outcome(x, decay, v0, g, g_last, options, case["backend"])
    every = (
        torch.as_tensor(decay, dtype=state).expand(shape[1:]).clone()
    )  # one decay a neuron, so that sums are known
    ref_out, ref_v, (ref_x, ref_decay, *ref_v0) = outcome(
        x, every, v0, g, g_last, options, "reference"
    )
    assert (
        torch.equal(out, ref_out)
        and torch.equal(v, ref_v)
        and out.dtype == dtype
        and v.dtype == state
    )
    size = ref_x.abs().max().item() if ref_x.numel() else 0
    close(grads[0], ref_x, size, dtype)
    if isinstance(decay, torch.Tensor):
        size = ref_decay.abs().sum_to_size(decay.shape) + (
            ref_decay.abs().max() if ref_decay.numel() else 0
        )  # a sum over steps that may cancel
        close(
            grads[1],
            ref_decay.double().sum_to_size(decay.shape).to(state),
            size,
            torch.float32 if state == torch.float32 else dtype,
        )
    if v0 is not None:
        close(
            grads[-1],
            ref_v0[0],
            ref_v0[0].abs().max() if v0.numel() else 0,
            torch.float32 if state == torch.float32 else dtype,
        )


@settings(max_examples=50, deadline=None)
@given(cases(), st.data())
def test_chunks_equal_one_call(case, data):
    x = laid_out(
        case["shape"], case["layout"], case["dtype"], torch.Generator().manual_seed(case["seed"])
    )
    cut = data.draw(st.integers(0, len(x)))
    options = case["settings"] | {"backend": case["backend"], "v_th": case["v_th"]}
    whole, v_whole = lif(x, **options)
    parts, v = [], None
    for part in (x[:cut], x[cut:]):
        if len(part):
            out, v = lif(part, v0=v, **options)
            parts.append(out)
    assert torch.equal(torch.cat(parts), whole) and torch.equal(v, v_whole)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("decay", [(), (3,), (2, 3)])
def test_gradcheck(backend, reset, decay):
    "Where the reset is held fixed, the membrane is a smooth function, and its true slopes are known by finite differences."
    torch.manual_seed(1)
    leaves = [torch.randn(6, 2, 3), torch.rand(decay) * 0.5 + 0.3, torch.randn(2, 3)]
    leaves = [a.double().requires_grad_() for a in leaves]
    assert torch.autograd.gradcheck(
        lambda x, d, v: lif(x, d, v0=v, reset=reset, output="membrane", backend=backend), leaves
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden(backend):
    "Spikes and gradients of other people's programs."
    golden = {
        k: torch.from_numpy(v)
        for k, v in np.load(project_root() / "tests" / "golden" / "lif_seed0.npz").items()
    }
    theirs = dict(decay=0.5, v_th=1.0, surrogate=atan(2.0))
    for (name, options), prefix in itertools.product(
        {
            "pipes": {},
            "sj_hard": theirs | dict(detach_reset=False),
            "sj_hard_detach": theirs,
            "sj_soft": theirs | dict(reset="soft", detach_reset=False),
            "sj_soft_detach": theirs | dict(reset="soft"),
        }.items(),
        ("T6", "T17"),
    ):
        x = golden[f"{prefix}.x"].clone().requires_grad_()
        spikes, _ = lif(x, backend=backend, **options)
        assert torch.equal(spikes, golden[f"{prefix}.{name}.spikes"])
        (grad,) = torch.autograd.grad(spikes, x, golden[f"{prefix}.grad_out"])
        torch.testing.assert_close(grad, golden[f"{prefix}.{name}.grad_x"], rtol=1e-5, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("shape", [(16, 300_000), (5, 300_008)])
def test_large_and_many_threads(shape):
    "Above the size from which outputs are streamed past the cache; and the same bits on one thread."
    x, g = torch.randn(shape), torch.randn(shape)
    results, threads = [], torch.get_num_threads()
    for backend, n in (("fused", threads), ("fused", 1), ("reference", threads)):
        torch.set_num_threads(n)
        results.append(outcome(x, 0.5, None, g, torch.zeros(shape[1]), {}, backend))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert (
            torch.equal(results[0][0], other[0])
            and torch.equal(results[0][1], other[1])
            and torch.equal(results[0][2][0], other[2][0])
        )


# ---- autograd and torch.compile


@pytest.mark.parametrize("backend", BACKENDS)
def test_graph_kept_and_walked_twice(backend):
    x = torch.randn(5, 4, requires_grad=True)
    out, _ = lif(x, backend=backend)
    (first,) = torch.autograd.grad(out.sum(), x, retain_graph=True)
    (second,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(first, second) and first.abs().sum() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_a_gradient_is_refused(backend):
    x = torch.randn(5, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(
        lif(x, surrogate=atan(), backend=backend)[0].sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="gradient of a gradient; use backend='reference'"):
        grad.sum().backward()


def test_gradient_of_a_gradient_of_the_reference():
    x = torch.randn(5, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(
        lif(x, surrogate=atan(), backend="reference")[0].sum(), x, create_graph=True
    )
    grad.sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_input_changed_before_backward_is_noticed(backend):
    x = torch.randn(5, 4, requires_grad=True)
    y = x * 1
    out, _ = lif(y, backend=backend)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_one_result_used(backend):
    for pick in (0, 1):
        grads = []
        for name in (backend, "reference"):
            x, v0 = (
                torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_(),
                torch.zeros(3, requires_grad=True),
            )
            lif(x, v0=v0, backend=name)[pick].sum().backward()
            grads.append((x.grad, v0.grad))
        torch.testing.assert_close(grads[0], grads[1])


def test_torch_checks_the_operation():
    x = torch.randn(4, 2, 3, 2).permute(0, 2, 3, 1).requires_grad_()
    arguments = (
        x,
        torch.rand(3, 1, 1, requires_grad=True),
        torch.randn(3, 2, 2, requires_grad=True),
        torch.tensor([0.4, 0.6], requires_grad=True),
        0.5,
        True,
        True,
        False,
        "atan",
        [2.0],
        "torch",
        True,
    )
    operation = torch.ops.neurobridge.lif.default
    torch.library.opcheck(operation, arguments)
    torch.library.opcheck(operation, (*arguments[:-1], False))
    torch.library.opcheck(
        operation,
        (
            torch.randn(3, 5),
            torch.tensor(0.3),
            None,
            None,
            0.5,
            False,
            False,
            True,
            "rectangle",
            [1.0],
            "auto",
            True,
        ),
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "options", [{}, dict(learn_decay=True, reset="soft", output="analogue", surrogate=atan())]
)
def test_compiled_models_stay_whole(options):
    torch._dynamo.reset()
    model = torch.nn.Sequential(
        torch.nn.Linear(8, 16), LIF(**options), torch.nn.Linear(16, 4), LIF(**options)
    )
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for steps in (5, 7):
        x = torch.randn(steps, 3, 8)
        (a, *grads_a), (b, *grads_b) = (
            (y, *torch.autograd.grad(y.square().sum(), model.parameters()))
            for y in (m(x) for m in (model, compiled))
        )
        torch.testing.assert_close((a, grads_a), (b, grads_b))
    with pytest.raises(ValueError, match="NaN or infinity, first at time step 2"):
        x[2, 1, 3] = torch.nan
        compiled(x)


@pytest.mark.long
def test_compiled_by_inductor():
    "In a process of its own: code generation sets global state."
    run_python("""
        import torch
        from neurobridge.snn import LIF
        x = torch.randn(4, 2, 6, 6, 3).permute(0, 1, 4, 2, 3)
        model = LIF()
        results = []
        for m in (model, torch.compile(model, fullgraph=True)):
            y = x.clone().requires_grad_()
            out = m(y * 2)
            out.square().sum().backward()
            results.append((out.detach(), y.grad))
        torch.testing.assert_close(results[0], results[1])
    """)


def test_two_python_threads():
    x = torch.randn(8, 200_000)
    alone = lif(x)[0]
    results = [None] * 4

    def work(i):
        for _ in range(5):
            y = x.clone().requires_grad_()
            results[i] = lif(y)[0]
            results[i].sum().backward()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(results))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(r, alone) for r in results)


# ---- what peers got wrong


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_every_surrogate_has_a_gradient(backend):
    for surrogate in SURROGATES:
        x = torch.linspace(-0.1, 1.1, 40)[None].requires_grad_()
        lif(x, surrogate=surrogate, backend=backend)[0].sum().backward()
        torch.testing.assert_close(x.grad, surrogate(x.detach() - 0.5))
        assert x.grad.max() > 0


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_no_spike_at_the_threshold(backend):
    assert lif(torch.full((1, 40), 0.5), backend=backend)[0].sum() == 0


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_reset_is_immediate_and_touches_only_neurons_that_spiked(backend):
    x = torch.tensor([[0.9, 0.3], [0.0, 0.0]])
    membrane, v = lif(x, decay=0.5, reset="soft", output="membrane", backend=backend)
    torch.testing.assert_close(
        membrane, torch.tensor([[0.9, 0.3], [0.2, 0.15]])
    )  # (0.9 - 0.5) / 2: subtracted first, then leaked
    torch.testing.assert_close(v, torch.tensor([0.2, 0.15]))


def test_evaluation_does_not_switch_the_backend():
    layer, x = LIF(), torch.randn(6, 50)
    training = layer.train()(x)
    with torch.no_grad():
        assert torch.equal(layer.eval()(x), training)
    assert which_backend(x) == which_backend(x.clone().requires_grad_())


# ---- errors


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_not_finite(backend, value, reset):
    for t, j in itertools.product((0, 3), (0, 20, 36)):
        x = torch.randn(4, 37)
        x[t, j] = value
        with pytest.raises(
            ValueError,
            match=rf"x contains NaN or infinity, first at time step {t} \(1 of 148 values\)",
        ):
            lif(x, reset=reset, backend=backend)
    with pytest.raises(ValueError, match="v0 contains NaN or infinity"):
        lif(torch.zeros(3, 37), v0=x[t], reset=reset, backend=backend)
    with pytest.raises(ValueError, match="overflowed"):
        lif(torch.full((3, 2), -3e38), decay=1.0, reset=reset, backend=backend)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS, "reference"])
def test_bad_arguments(backend):
    x = torch.randn(4, 2, 3)
    for options, error, message in (
        (dict(x=x.long()), TypeError, "x is a tensor.*expected a tensor"),
        (dict(x=x[:0]), ValueError, "at least one time step"),
        (dict(decay=0.0), ValueError, "decay is 0; expected"),
        (dict(decay=1.1), ValueError, "decay is 1.1; expected"),
        (dict(decay=torch.tensor([0.5, 1.5, 0.2])), ValueError, r"decay lies in \[0.2, 1.5\]"),
        (dict(decay=torch.tensor(torch.nan)), ValueError, "nan"),
        (dict(decay=torch.rand(2)), ValueError, "broadcasts to the neurons"),
        (dict(decay=torch.rand(1, 1, 2, 3)), ValueError, "broadcasts"),
        (dict(v_th=0.0), ValueError, "above 0"),
        (dict(v_th=float("nan")), ValueError, "above 0"),
        (dict(reset="delayed"), ValueError, "reset"),
        (dict(v0=torch.zeros(1, 3)), ValueError, "another batch size"),
        (dict(v0=torch.zeros(5, 2, 3)), ValueError, "another batch size"),
    ):
        with pytest.raises(error, match=message):
            lif(**{"x": x, "backend": backend} | options)
    with pytest.raises(ValueError, match="expected one of"):
        lif(x, backend="cupy")


def test_backends_that_cannot_run():
    x = torch.randn(3, 2)
    assert which_backend(x.half()) == "torch" and lif(x.half())[0].dtype == torch.float16
    with pytest.raises((TypeError, ValueError), match="has no torch.float16"):
        lif(x.half(), backend="fused")
    with pytest.raises(ValueError, match="needs the package triton and a CUDA tensor"):
        lif(x, backend="triton")
    with pytest.raises(ValueError, match="runs on the CPU"):
        which_backend(x.to("meta"), "fused")


# ---- building and caching


def run_python(code, wait=True, **environment):
    code = "import warnings\n" + textwrap.dedent(code)
    where = str(Path(neurobridge.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": where} | environment,
    )
    return finished(process) if wait else process


def finished(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


CALL = """
    import torch
    from neurobridge.snn import lif, which_backend
    x = torch.linspace(0, 1, 80).view(4, 20)
    assert torch.equal(lif(x)[0], lif(x, backend="reference")[0])
    print(which_backend(x))
"""


def test_without_a_compiler_one_warning(tmp_path):
    output = run_python(
        """
        import torch
        from neurobridge.snn import lif, which_backend
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for dtype in (torch.float32, torch.float32, torch.float64):
                x = torch.randn(6, 5, 4).to(dtype).requires_grad_()
                out, _ = lif(x)
                out.sum().backward()
                assert torch.equal(out, lif(x, backend="reference")[0]) and which_backend(x) == "torch"
        print([str(w.message) for w in caught if "lif" in str(w.message)])
        try: lif(x, backend="fused")
        except RuntimeError as error: print(error)
    """,
        CC="/nowhere/cc",
        NEUROBRIDGE_CACHE=str(tmp_path),
    )
    assert (
        output.count("plain torch is used") == 1
        and "install gcc or clang, or use backend='torch'" in output
    )


def test_broken_compiler(tmp_path, monkeypatch):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'internal error' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert "internal error" in compiled.loaded(FLOAT._replace(name="broken"))


@pytest.mark.long
@needs_compiler
@pytest.mark.parametrize(
    "program",
    [fused.LIF_PROGRAM, NORM_PROGRAM, ADAPTIVE_PROGRAM],
    ids=["lif", "norm_lif", "adaptive_lif"],
)
@pytest.mark.parametrize("dtype", fused._TYPES, ids=str)
def test_sources_compile_without_warnings(tmp_path, monkeypatch, program, dtype):
    for extra in (("-march=native", "-fopenmp"), ("-fopenmp",)):
        strict = (*extra, "-Wall", "-Wextra", "-Werror")
        monkeypatch.setattr(compiled, "_EXTRAS", (strict,))
        typed = fused.for_dtype(program, dtype)
        assert compiled._compile(compiled._compiler(), typed, tmp_path).is_file()


def results(dtype):
    "Outputs and gradients of neurons, norm and neurons, adaptive neurons, channels first and last."
    found = []
    for shape, last in (
        ((5, 3, 24, 6, 6), False),
        ((5, 3, 24, 6, 6), True),
        ((7, 4, 33, 1, 1), False),
    ):
        generator = torch.Generator().manual_seed(0)
        x, g = torch.randn((2, *shape), generator=generator).to(dtype)
        if last:
            x = x.movedim(2, -1).contiguous().movedim(-1, 2)
        norm = torch.nn.BatchNorm2d(shape[2], dtype=torch.promote_types(dtype, torch.float32))
        for normed in (False, True):
            for reset in ("hard", "soft"):
                at = x.clone().requires_grad_()
                neuron = LIF(reset=reset, surrogate=sigmoid(), backend="fused")
                out = norm_lif(at, norm, neuron) if normed else neuron(at)
                found += [out, *torch.autograd.grad(out, at, g)]
        for reset in ("hard", "soft"):
            at = x.clone().requires_grad_()
            out = AdaptiveLIF(reset=reset, surrogate=sigmoid(), backend="fused")(at)
            found += [out, *torch.autograd.grad(out, at, g)]
    return found


@pytest.mark.long
@needs_compiler
@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="registers of other widths are Intel's and AMD's"
)
@pytest.mark.parametrize("dtype", fused._TYPES, ids=str)
def test_the_width_of_registers_changes_no_bit(monkeypatch, dtype):
    expected = results(dtype)
    for width in ("-mno-avx512f", "-mno-avx"):

        def narrow(program, width=width):
            return compiled.loaded(program._replace(options=(*program.options, width)))

        monkeypatch.setattr(fused, "loaded", narrow)
        for ours, same in zip(results(dtype), expected, strict=True):
            assert torch.equal(ours, same), width


@needs_compiler
def test_the_name_in_the_cache_covers_every_source(tmp_path, monkeypatch):
    "A change of either file is another library."
    built = []
    monkeypatch.setattr(compiled, "_build", lambda *arguments: built.append(arguments[-1].name))
    changed = [
        NORM_PROGRAM._replace(sources=tuple(sources))
        for sources in (
            [
                (name, text + "\n" * (place == i))
                for i, (name, text) in enumerate(NORM_PROGRAM.sources)
            ]
            for place in range(len(NORM_PROGRAM.sources))
        )
    ]
    for program in (fused.LIF_PROGRAM, NORM_PROGRAM, *changed):
        with pytest.raises(RuntimeError, match="cannot be read back"):
            compiled._library(tmp_path, fused.for_dtype(program, torch.float32))
    assert len(set(built)) == len(built) == 4


@pytest.mark.long
@needs_compiler
def test_processes_that_build_at_once(tmp_path):
    processes = [run_python(CALL, wait=False, NEUROBRIDGE_CACHE=str(tmp_path)) for _ in range(3)]
    assert [finished(p).strip() for p in processes] == ["fused"] * 3
    assert len(list(tmp_path.iterdir())) == 1  # one library, no leavings


@needs_compiler
@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:9000] + bytes(64) + b[9064:]]
)
def test_damaged_cache_is_rebuilt(tmp_path, damage):
    library = compiled._library(tmp_path, FLOAT)
    good = library.read_bytes()
    library.write_bytes(damage(good))
    assert (
        compiled._library(tmp_path, FLOAT).read_bytes() == good
        and len(list(tmp_path.iterdir())) == 1
    )


@needs_compiler
def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("a file, not a folder")
    monkeypatch.setenv("NEUROBRIDGE_CACHE", str(tmp_path / "file" / "cache"))
    assert compiled._load(FLOAT).forward


@pytest.mark.long
@needs_compiler
def test_cached_start_is_fast(tmp_path):
    code = """
        import time, torch
        from neurobridge.snn import lif
        x = torch.randn(4, 100)
        start = time.perf_counter()
        lif(x)
        print(time.perf_counter() - start)
    """
    first, later = (float(run_python(code, NEUROBRIDGE_CACHE=str(tmp_path))) for _ in range(2))
    assert first < 60 and later < 1


@needs_compiler
def test_portable_flags_give_the_same_bits(tmp_path, monkeypatch):
    "Built for the oldest processor of the kind, as where -march=native is not understood."
    monkeypatch.setattr(compiled, "_EXTRAS", (("-fopenmp",), ()))
    library, loaded = compiled._load(FLOAT), fused.kernel(torch.float32)
    x, g = torch.randn(7, 333), torch.randn(7, 333)
    results = []
    for lib in (library, loaded):
        monkeypatch.setattr(fused, "kernel", lambda dtype, lib=lib: lib)
        results.append(outcome(x, 0.5, None, g, torch.zeros(333), dict(surrogate=atan()), "fused"))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(
        results[0][2][0], results[1][2][0]
    )
