"""What the card can do at most, and the forecast by itself."""

import math
import time
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gpu.lines import Missing, Run
from spectrum_bench import forecasters, schedules
from spectrum_bench.caching.history import History

try:
    from spectrum_bench.caching import kernels
except ImportError:  # no triton
    kernels = None


def ceilings(run: Run) -> None:
    device, small = run.device, run.simulate
    size = 2**16 if small else 10**9
    source = torch.randn(size, device=device.name).bfloat16()
    target = torch.empty_like(source)
    ms, best, _ = device.median(lambda i: target.copy_(source), repeat=20)
    run.limits["copy_gb_s"] = rate = 4 * size / ms / 1e6  # 2 bytes read and 2 written an element
    told = f"copy {rate:.0f} GB/s (read + written)"
    run.line("ceilings", told, what="copy", bytes=4 * size, ms=ms, min_ms=best, gb_s=rate)
    ms, best, _ = device.median(lambda i: torch.add(source, 1.0, out=target), repeat=20)
    rate = 4 * size / ms / 1e6
    run.line("ceilings", f"elementwise add {rate:.0f} GB/s", what="add", bytes=4 * size, ms=ms, min_ms=best, gb_s=rate)
    source = target = None
    n = 64 if small else 8192
    a, b = (torch.randn(n, n, device=device.name, dtype=torch.bfloat16) for _ in range(2))
    ms, best, _ = device.median(lambda i: a @ b, repeat=20)
    rate = 2 * n**3 / ms / 1e9
    run.line("ceilings", f"{n}^3 bf16 matmul {rate:.0f} TFLOP/s", what="matmul", n=n, ms=ms, min_ms=best, tflop_s=rate)
    x = torch.zeros(8, device=device.name)
    for _ in range(100):
        x.add_(1)
    device.sync()
    begun = time.perf_counter()
    for _ in range(1000):
        x.add_(1)
    host = 1e3 * (time.perf_counter() - begun)  # us an op
    device.sync()
    device.occupy(20)
    start = device.mark()
    for _ in range(500):
        x.add_(1)
    end = device.mark()
    device.sync()
    gap = 2 * device.ms(start, end)  # us an op
    told = f"tiny add: host {host:.2f} us, device {gap:.2f} us an op"
    run.line("ceilings", told, what="launch", host_us=host, device_us=gap)


ROWS = {  # (tokens over both guidance branches' batch, channels) of the last block's feature
    "flux": (4096, 3072),  # 1024 x 1024
    "sd3-5": (2 * 4096, 2432),
    "wan14b": (21 * 30 * 52, 5120),  # 480 x 832, 81 frames; one of two calls
    "hunyuan-544p-61f": (16 * 34 * 60, 3072),
    "hunyuan-720p-129f": (33 * 45 * 80, 3072),
}


def forecast_weights(K: int) -> np.ndarray:
    """Spectrum's own (w=0.5, M=4, lambda=0.1) for the step after the K-th computed one, 14 of 50 steps."""
    steps = np.flatnonzero(schedules.adaptive_window(50, window=2, flex=0.75, warmup=5))[:K].astype(float)
    return forecasters.spectrum(steps, steps[-1] + 1, degree=4, ridge=0.1, blend=0.5, steps=50)


def forecast(run: Run) -> None:
    best = {}  # of the kernel's settings, by what they were tried on
    for name, (tokens, channels) in ROWS.items():
        if run.simulate:
            tokens, channels = 33, 40
        run.attempt("forecast", 5, partial(_forecast_rows, run, name, (1, tokens, channels), best), name)


def compile_forecasts(run: Run) -> None:
    """Every number of rows is a kernel of its own: have them all compiled before anything is measured."""
    seconds = []
    for dtype in (torch.bfloat16, torch.float16):
        history = History()
        for K in range(1, 15):
            history.append(torch.ones(1, 16, 16, device=run.device.name, dtype=dtype))
            begun = time.perf_counter()
            history.combine((0.5,) * K)
            run.device.sync()
            seconds.append(time.perf_counter() - begun)
    told = f"{len(seconds)} kernels compiled in {sum(seconds):.1f} s, {max(seconds):.2f} s the slowest"
    run.line("environment", told, what="compile", seconds=sum(seconds), slowest_s=max(seconds))


def errors(out: Tensor, rows: list[Tensor], w: np.ndarray) -> dict:
    """Error against float64 at both ends, rounding alone beside it, and how many elements nobody wrote."""
    elements, error, rounding, size = out.numel(), 0.0, 0.0, 0.0
    ends = slice(0, 10**6), slice(max(0, elements - 10**6), elements)
    for part in ends:
        weights = w.tolist()
        if w.ndim == 2:
            channels = torch.arange(part.start, min(part.stop, elements)).remainder(out.shape[-1])
            weights = torch.from_numpy(w)[:, channels].to(out.device)
        exact = sum(x * row.view(-1)[part].double() for x, row in zip(weights, rows, strict=True))
        error += float((out.view(-1)[part].double() - exact).square().sum())
        rounding += float((exact.to(rows[0].dtype).double() - exact).square().sum())
        size += float(exact.square().sum())
    return {
        "relative_error": (error / size) ** 0.5,
        "rounding_alone": (rounding / size) ** 0.5,
        "unwritten": int(out.isnan().sum()),
    }


def _forecast_rows(run: Run, name: str, shape: tuple, best: dict) -> None:
    device, elements = run.device, math.prod(shape)
    sets = 1 if 2 * elements > 3e8 else 4  # K rows of the small ones would else stay in the L2 cache
    data = [
        [torch.randn(shape, device=device.name, dtype=torch.bfloat16) for _ in range(14)]
        for _ in range(2 if run.simulate else sets)
    ]
    sets = len(data)
    outs = [torch.empty_like(data[0][0]) for _ in range(sets)]
    shown: list[str] = []  # on the screen, a line for each K

    def report(way: str, K: int, timed: tuple, checked: dict, **more) -> None:
        ms, least, host = timed
        useful = (2 * K + 2) * elements
        rate = useful / ms / 1e6
        share = rate / run.limits["copy_gb_s"]
        shown.append(f"{way} {ms:.4f} ms = {share:.2f} of copy, host {host:.0f} us")
        if checked["unwritten"] or not checked["relative_error"] < 1.1 * checked["rounding_alone"]:
            shown.append(f"WRONG: error {checked['relative_error']:.1e}, unwritten {checked['unwritten']}")
        values = {"rows": name, "elements": elements, "K": K, "way": way, "ms": ms, "min_ms": least, "host_us": host}
        values |= {"useful_bytes": useful, "gb_s": rate, "share_of_copy": share, "sets": sets}
        run.line("forecast", None, **values, **checked, **more)

    for K in (10, 5, 14):
        shown.clear()
        w = forecast_weights(K)
        histories = [History() for _ in range(sets)]
        for history, rows in zip(histories, data, strict=True):
            for row in rows[:K]:
                history.append(row)
        now = errors(histories[0].combine(w), histories[0].features(), w)
        report("package", K, device.median(lambda i, h=histories, w=w: h[i % sets].combine(w)), now)
        run.attempt("forecast", 3, partial(_kernel, run, name, K, w, data, outs, best, report), f"{name} triton")
        if K == 10:
            each = np.stack([w, *(np.eye(K)[i] for i in (-1, -2))], 1)[:, np.arange(shape[2]) % 3]  # (K, D)
            now = errors(histories[0].combine(each), histories[0].features(), each)
            report("channels", K, device.median(lambda i, h=histories, w=each: h[i % sets].combine(w)), now)
        if K == 10 and name in ("flux", "wan14b") and not run.quick:
            wants = 25 if name == "flux" else 10
            again = partial(_compiled_sum, run, K, w, data, report)
            run.attempt("forecast", wants, again, f"{name} compile")
        print(f"  {name} K={K}: {'; '.join(shown)}", flush=True)


def _kernel(run, name, K, w, data, outs, best, report) -> None:
    """The package's kernel by itself: settings are tried at K = 10 on FLUX's and Wan's rows; elsewhere only the best of
    those are."""
    if kernels is None:
        raise Missing("no triton")
    sets, weights = len(data), tuple(w.tolist())
    if run.simulate:
        settings = [(1024, 4)]
        dtype = torch.float32  # the interpreter cuts bits off where it should round
        outs = [torch.empty_like(out, dtype=dtype) for out in outs]
    elif K == 10 and name in ("flux", "wan14b"):
        settings = [(block, warps) for block in (1024, 2048, 4096, 8192) for warps in (4, 8)]
    else:
        settings = sorted({*best.values()} or {(kernels.BLOCK, kernels.WARPS)})
    tried = {}
    for block, warps in settings:
        timed = run.device.median(
            lambda i, block=block, warps=warps: kernels.sum_by_row(
                data[i % sets][:K], weights, outs[i % sets], block, warps
            )
        )
        tried[block, warps] = timed
    block, warps = min(tried, key=lambda key: tried[key][0])
    best[name if K == 10 else "any"] = (block, warps)
    outs[0].fill_(math.nan)
    kernels.sum_by_row(data[0][:K], weights, outs[0], block, warps)
    checked = errors(outs[0].to(data[0][0].dtype), data[0][:K], w)
    each = {f"{b}x{n}": timed[0] for (b, n), timed in tried.items()}
    report("triton", K, tried[block, warps], checked, block=block, warps=warps)
    if len(each) > 1:
        told = f"{name} K={K} triton: " + ", ".join(f"{key} {ms:.4f}" for key, ms in each.items())
        run.line("forecast", told, rows=name, K=K, way="triton settings", ms_by_setting=each)


def _compiled_sum(run, K, w, data, report) -> None:
    weights = [torch.tensor(x, dtype=torch.float32) for x in w.tolist()]  # 0-d on the CPU: one graph for all weights

    def total(rows, weights):
        return sum(x * row.float() for x, row in zip(weights, rows, strict=True)).to(rows[0].dtype)

    begun = time.perf_counter()
    compiled = torch.compile(total, dynamic=False, backend="eager" if run.simulate else "inductor")
    out = compiled(data[0][:K], weights)
    run.device.sync()
    seconds, sets = time.perf_counter() - begun, len(data)
    timed = run.device.median(lambda i: compiled(data[i % sets][:K], weights))
    report("compile", K, timed, errors(out, data[0][:K], w), compile_s=round(seconds, 1))
