"""The forecast's kernels, run by Triton's interpreter on the CPU, against float64."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
pytest.importorskip("triton", reason="no triton: torch brings it on Linux")

CODE = """
import math
import numpy as np
import torch
from spectrum_bench.caching import kernels
from spectrum_bench.caching.history import weighted_sum

generator = torch.Generator().manual_seed(0)
rng = np.random.default_rng(0)

def rows_of(K, shape, dtype):
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(K)]

def check(out, exact, scale, dtype, K, what):
    assert not out.isnan().any(), f"{what}: an element was not written"
    bound = torch.finfo(dtype).eps / 2 * exact.abs() * 1.001 + 2 * (K + 1) * 2.0**-24 * scale
    assert ((out.double() - exact).abs() <= bound + 1e-7 * (dtype == torch.float16)).all(), what

def exact_sums(rows, weights):
    terms = [torch.as_tensor(w).double() * row.double() for w, row in zip(weights, rows, strict=True)]
    return sum(terms), sum(term.abs() for term in terms)

for dtype in (torch.bfloat16, torch.float16, torch.float32):
    for K in (*range(1, 15), 50) if dtype == torch.bfloat16 else (1, 5, 14):
        for shape in ((1, 3, 5), (2, 31, 33), *(((1, 64, 64), (2, 7, 331)) if K in (1, 5) else ())):
            what = f"{dtype} K={K} {shape}"
            rows, w = rows_of(K, shape, dtype), tuple(rng.uniform(-7, 7, K).tolist())
            exact, scale = exact_sums(rows, w)
            out = torch.full(shape, math.nan)
            kernels.sum_by_row(rows, w, out)
            check(out, exact, scale, torch.float32, K, what)
            out = kernels.weighted_sum(rows, w)
            assert out.dtype == dtype
            check(out, exact, scale, dtype, K, what)
            today = weighted_sum(rows, w)
            assert (out != today).float().mean() < (0.9 if dtype == torch.float32 else 0.02), what
            by_channel = rng.uniform(-7, 7, (K, shape[2]))
            if K % 2:  # as indexing leaves HyCa's weights
                by_channel = np.asfortranarray(by_channel)
            exact, scale = exact_sums(rows, by_channel)
            out = torch.full(shape, math.nan)
            kernels.sum_by_channel(rows, kernels.on_device(by_channel, out.device), out)
            check(out, exact, scale, torch.float32, K, what)
            check(kernels.weighted_sum(rows, by_channel), exact, scale, dtype, K, what)

rows = rows_of(3, (2, 6, 8), torch.float32)
assert kernels.fits(rows, ()) and not kernels.fits([row.mT for row in rows], ())
assert not kernels.fits([row.double() for row in rows], ()) and not kernels.fits(rows * 30, ())
print("checked")
"""


def test_the_kernels_sum_as_float64_does_and_write_every_element():
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "checked"


def test_a_history_on_the_cpu_needs_no_triton():
    code = (
        "import sys, torch; from spectrum_bench.caching.history import History; h = History()\n"
        "for _ in range(3): h.append(torch.randn(1, 4, 8))\n"
        "h.combine((0.5, 1.0, 2.0)); print('spectrum_bench.caching.kernels' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr[-2000:]
