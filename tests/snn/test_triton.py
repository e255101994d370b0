"The Triton kernels against the reference, in Triton's interpreter: a process of its own, because it is switched on before the import."

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import neurobridge

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def interpreted(code):
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": str(Path(neurobridge.__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_random_settings_equal_reference():
    interpreted("""
        import random, torch
        from neurobridge.snn import atan, fast_sigmoid, gaussian, lif, rectangle, sigmoid, triangle
        rng = random.Random(0)
        for case in range(120):
            torch.manual_seed(case)
            shape = (rng.randint(1, 8), *(rng.randint(1, 20) for _ in range(rng.randint(0, 3))))
            dtype = rng.choice([torch.float32, torch.float32, torch.float64, torch.bfloat16])
            state = torch.promote_types(dtype, torch.float32)
            options = dict(reset=rng.choice(["hard", "soft"]), detach_reset=rng.random() < 0.5, output=rng.choice(["spike", "membrane"]),
                           surrogate=rng.choice([rectangle(), triangle(0.7), atan(), sigmoid(), fast_sigmoid(), gaussian(1.0, 0.2)]), v_th=rng.choice([0.5, 1.0]))
            x = torch.randn(shape).to(dtype)
            if rng.random() < 0.5:
                x = torch.randn(shape[0] * 2, *shape[:0:-1]).to(dtype).permute(0, *range(len(shape) - 1, 0, -1))[::2]
            decay = rng.choice([torch.tensor(0.3), torch.rand(shape[1:]) * 0.9 + 0.05]).to(state)
            v0 = torch.randn(shape[1:]).to(state) if rng.random() < 0.5 else None
            g, g_last = torch.randn(shape).to(dtype), torch.randn(shape[1:]).to(state)
            results = []
            for backend in ("reference", "triton"):
                leaves = [a.clone().requires_grad_() for a in (x, decay, v0) if a is not None]
                out, v = lif(leaves[0], leaves[1], v0=leaves[2] if v0 is not None else None, backend=backend, **options)
                results.append((out.detach(), v.detach(), torch.autograd.grad([out, v], leaves, [g, g_last])))
            (out, v, grads), (out_t, v_t, grads_t) = results
            if dtype == torch.bfloat16 and options["output"] == "membrane":     # the interpreter cuts where a GPU rounds
                torch.testing.assert_close(out_t, out, rtol=8e-3, atol=0)
            else:
                assert torch.equal(out, out_t), (case, shape, dtype, options)
            assert torch.equal(v, v_t), (case, shape, dtype, options)
            for a, b in zip(grads_t, grads):
                scale = max(1.0, float(b.abs().max()), float(grads[0].abs().max()))
                torch.testing.assert_close(a, b, rtol=1e-5, atol=(8e-3 if dtype == torch.bfloat16 else 1e-5) * scale)
    """)


def test_many_programs_and_no_neurons():
    interpreted("""
        import torch
        from neurobridge.snn import lif
        for shape in ((3, 1000), (3, 256), (2, 0, 5), (1,)):
            x = torch.randn(shape, requires_grad=True)
            out, v = lif(x, backend="triton")
            out.sum().backward()
            y = x.detach().clone().requires_grad_()
            expected, v_expected = lif(y, backend="reference")
            expected.sum().backward()
            assert torch.equal(out, expected) and torch.equal(v, v_expected)
            torch.testing.assert_close(x.grad, y.grad)
    """)


def test_not_imported_unless_asked_for():
    code = """
        import sys, torch
        from neurobridge.snn import lif
        lif(torch.zeros(3, 2))
        assert "neurobridge.snn.kernels.cuda" not in sys.modules and "triton" not in sys.modules
    """
    interpreted(code)
