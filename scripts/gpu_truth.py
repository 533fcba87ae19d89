"""What caching costs on a real GPU, in one run of minutes: python scripts/gpu_truth.py budget=480

Full-size architectures with random weights (configs/architectures), random prompt embeddings, no text encoders, no VAE:
times and memory are those of the real models, pictures are not made. Every result is one line of JSON in
<out>/gpu_truth.jsonl, written at once, and one short line on the screen. Needs torch, diffusers and what they bring.

budget=480     seconds; a section that would not fit in what is left of them is skipped and says so
out=FOLDER     default: $OUT, else outputs/gpu_truth
sections=a,b   of ceilings, forecast, flux, profiler, sd3, wan, hunyuan, compiled, fp8, sdxl; default: all
label=TEXT     a note for the first line
quick=true     the package's own step: no other caching code beside it on FLUX, no caching per module, six steps of Wan
simulate=true  every section on the CPU with tiny widths: tests the script, measures nothing
"""

import os
import sys

os.environ.setdefault("TRITON_INTERPRET", str(int("simulate=true" in sys.argv)))  # read when triton is imported
os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")

import gc
import hashlib
import json
import math
import platform
import statistics
import subprocess
import time
import traceback
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import diffusers
import numpy as np
import torch
from torch import Tensor

from spectrum_bench import decisions, distances, forecasters, gates, schedules
from spectrum_bench.caching.history import History
from spectrum_bench.caching.peers import CacheDiT, DiffusersCache
from spectrum_bench.caching.session import cached, denoisers
from spectrum_bench.caching.sites.modules import Modules
from spectrum_bench.caching.sites.output import OutputResidual
from spectrum_bench.caching.sites.stack import LastBlock, StackResidual, TailResidual
from spectrum_bench.paths import ROOT
from spectrum_bench.sampling.architectures import _build, _seeded, architecture
from spectrum_bench.signals import ENTERING, MODULATED, PROBE

try:
    from spectrum_bench.caching import kernels
except ImportError:  # no triton
    kernels = None

# ---------------------------------------------------------------------------------------------------------------------
# Device, clock, lines


class Device:
    """A GPU and its clock; the CPU and the wall clock in a simulation."""

    def __init__(self, simulate: bool):
        self.cuda = not simulate
        self.name = "cuda" if self.cuda else "cpu"

    def mark(self):
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def ms(self, start, end) -> float:
        """Between two marks; the device must have reached them."""
        return start.elapsed_time(end) if self.cuda else 1e3 * (end - start)

    def sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def occupy(self, ms: float) -> None:
        """Give the device something else to do, so that what is issued meanwhile runs without gaps."""
        if self.cuda:
            torch.cuda._sleep(int(ms * 1.9e6))  # clock cycles

    def free(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def gb(self) -> float:
        return torch.cuda.memory_allocated() / 1e9 if self.cuda else 0.0

    def peak_gb(self, reset: bool = False) -> float:
        if not self.cuda:
            return 0.0
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 1e9

    def median(self, function, repeat: int = 20, warm: int = 3, ahead_ms: float = 20.0) -> tuple[float, float, float]:
        """(median ms on the device, shortest, median us for the host to issue it) of function(i), i the call's number.

        The device is kept busy while calls are issued, in small groups, so that the host is never what is measured.
        """
        if not self.cuda:
            repeat, warm = 2, 0
        for i in range(warm):
            function(i)
        self.sync()
        marks, host = [], []
        for first in range(0, repeat, 5):
            self.occupy(ahead_ms)
            for i in range(first, min(first + 5, repeat)):
                start = self.mark()
                begun = time.perf_counter()
                function(i)
                host.append(time.perf_counter() - begun)
                marks.append((start, self.mark()))
            self.sync()
        times = [self.ms(*pair) for pair in marks]
        return statistics.median(times), min(times), 1e6 * statistics.median(host)


class Run:
    """Budget, device and the file of results."""

    def __init__(self, options: dict):
        self.start = time.monotonic()
        self.simulate, self.quick = options["simulate"] == "true", options["quick"] == "true"
        self.budget = float(options["budget"])
        self.device = Device(self.simulate)
        self.wants_profiler, self.profiled = False, False
        self.limits = {"copy_gb_s": math.nan}  # what the card does at most, once it has been measured
        folder = Path(options["out"] or os.environ.get("OUT") or ROOT / "outputs/gpu_truth")
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / "gpu_truth.jsonl").open("a", encoding="utf-8")

    @property
    def left(self) -> float:
        return self.budget - (time.monotonic() - self.start)

    def line(self, section: str, told: str | None, **values) -> None:
        """Keep one result; `told` is what the screen shows of it, if anything."""
        at = round(time.monotonic() - self.start, 1)
        row = {"section": section} | {key: _plain(value) for key, value in values.items()} | {"at_s": at}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        if told is not None:
            print(f"{at:.0f} {section} {told}"[:200], flush=True)

    def attempt(self, section: str, seconds: float, function, what: str | None = None):
        """Call `function` if the budget has these seconds left; an exception becomes a line. None if nothing came."""
        named, failed = {"method": what} if what else {}, False
        if seconds > self.left:
            told = f"{what or ''} SKIPPED: {self.left:.0f} s left of {self.budget:.0f}, wants {seconds:.0f}"
            self.line(section, told, skipped="budget", wants_s=seconds, left_s=self.left, **named)
            return None
        try:
            return function()
        except Missing as error:
            self.line(section, f"{what or ''} SKIPPED: {error}", skipped=str(error), **named)
        except Exception as error:
            failed = True
            last = traceback.format_exc().strip().split("\n")[-8:]
            told = f"{what or ''} ERROR {type(error).__name__}: {error}".replace("\n", " ")
            self.line(section, told, error=f"{type(error).__name__}: {error}"[:500], traceback=last, **named)
        if failed:  # out here nothing holds the frames, and what they hold, any more
            self.device.free()
        return None


class Missing(Exception):
    """Something optional is not installed."""


def _plain(value):
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def environment(run: Run, label: str) -> None:
    """The first line: what everything below was measured on, and with."""

    def version(package):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    def output(*words):
        try:
            return subprocess.run(words, capture_output=True, text=True, timeout=20).stdout.strip() or None
        except (OSError, subprocess.SubprocessError):
            return None

    packages = ("torch", "triton", "diffusers", "transformers", "accelerate", "numpy", "cache-dit", "torchao")
    sources = hashlib.sha256()
    for path in sorted((ROOT / "src").rglob("*.py")):
        sources.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    sources, card = sources.hexdigest()[:16], {"device": "cpu (simulated)"}
    if run.device.cuda:
        known = torch.cuda.get_device_properties(0)
        card = {"device": known.name, "memory_gb": known.total_memory / 1e9, "sms": known.multi_processor_count}
        card |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        card["driver"] = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        card["clocks"] = output("nvidia-smi", "--query-gpu=clocks.max.sm,power.limit", "--format=csv,noheader")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    commit = output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    told = f"{card['device']}, torch {versions['torch']}, commit {commit}, sources {sources}"
    known = {"commit": commit, "sources_sha256": sources, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    values = card | known | {"versions": versions, "label": label, "simulated": run.simulate, "budget_s": run.budget}
    run.line("environment", told, **values)


# ---------------------------------------------------------------------------------------------------------------------
# 0 and 1: what the card can do, and the forecast by itself


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
    ends = slice(0, 10**6), slice(max(0, elements - 10**6), elements)

    def check(out: Tensor, rows: list[Tensor], w: np.ndarray) -> dict:
        """Error against float64 at both ends, rounding alone beside it, and how many elements nobody wrote."""
        error, rounding, size = 0.0, 0.0, 0.0
        for part in ends:
            weights = w.tolist()
            if w.ndim == 2:
                channels = torch.arange(part.start, min(part.stop, elements)).remainder(shape[2])
                weights = torch.from_numpy(w)[:, channels].to(device.name)
            exact = sum(x * row.view(-1)[part].double() for x, row in zip(weights, rows, strict=True))
            error += float((out.view(-1)[part].double() - exact).square().sum())
            rounding += float((exact.to(rows[0].dtype).double() - exact).square().sum())
            size += float(exact.square().sum())
        return {
            "relative_error": (error / size) ** 0.5,
            "rounding_alone": (rounding / size) ** 0.5,
            "unwritten": int(out.isnan().sum()),
        }

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
        now = check(histories[0].combine(w), histories[0].features(), w)
        report("package", K, device.median(lambda i, h=histories, w=w: h[i % sets].combine(w)), now)
        run.attempt("forecast", 3, partial(_kernel, run, name, K, w, data, outs, best, check, report), f"{name} triton")
        if K == 10:
            each = np.stack([w, *(np.eye(K)[i] for i in (-1, -2))], 1)[:, np.arange(shape[2]) % 3]  # (K, D)
            now = check(histories[0].combine(each), histories[0].features(), each)
            report("channels", K, device.median(lambda i, h=histories, w=each: h[i % sets].combine(w)), now)
        if K == 10 and name in ("flux", "wan14b") and not run.quick:
            wants = 25 if name == "flux" else 10
            again = partial(_compiled_sum, run, K, w, data, check, report)
            run.attempt("forecast", wants, again, f"{name} compile")
        print(f"  {name} K={K}: {'; '.join(shown)}", flush=True)


def _kernel(run, name, K, w, data, outs, best, check, report) -> None:
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
    checked = check(outs[0].to(data[0][0].dtype), data[0][:K], w)
    each = {f"{b}x{n}": timed[0] for (b, n), timed in tried.items()}
    report("triton", K, tried[block, warps], checked, block=block, warps=warps)
    if len(each) > 1:
        told = f"{name} K={K} triton: " + ", ".join(f"{key} {ms:.4f}" for key, ms in each.items())
        run.line("forecast", told, rows=name, K=K, way="triton settings", ms_by_setting=each)


def _compiled_sum(run, K, w, data, check, report) -> None:
    weights = [torch.tensor(x, dtype=torch.float32) for x in w.tolist()]  # 0-d on the CPU: one graph for all weights

    def total(rows, weights):
        return sum(x * row.float() for x, row in zip(weights, rows, strict=True)).to(rows[0].dtype)

    begun = time.perf_counter()
    compiled = torch.compile(total, dynamic=False, backend="eager" if run.simulate else "inductor")
    out = compiled(data[0][:K], weights)
    run.device.sync()
    seconds, sets = time.perf_counter() - begun, len(data)
    timed = run.device.median(lambda i: compiled(data[i % sets][:K], weights))
    report("compile", K, timed, check(out, data[0][:K], w), compile_s=round(seconds, 1))


# ---------------------------------------------------------------------------------------------------------------------
# Pipelines

SMALL = {  # what a simulation changes in configs/architectures
    "flux": {
        "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
        "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": [4, 6, 6],
    },
    "sd3-5": {
        "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32,
        "caption_projection_dim": 32, "pooled_projection_dim": 32, "sample_size": 16, "pos_embed_max_size": 16,
    },
    "wan14b": {
        "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "text_dim": 32, "freq_dim": 16,
        "ffn_dim": 32, "rope_max_seq_len": 32,
    },
    "hunyuan": {
        "num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2,
        "attention_head_dim": 16, "text_embed_dim": 32, "pooled_projection_dim": 32, "rope_axes_dim": [4, 6, 6],
    },
    "sdxl": {
        "block_out_channels": [32, 64], "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "layers_per_block": 1, "norm_num_groups": 8,
        "transformer_layers_per_block": [1, 1], "attention_head_dim": [2, 2], "cross_attention_dim": 32,
        "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80, "sample_size": 8,
    },
}  # fmt: skip


def pipeline(run: Run, name: str):
    """The full-size pipeline with random weights, without text encoders and VAE; and how long it took to make."""
    given = architecture(name)
    dtype = torch.float32 if run.simulate else torch.float16 if name == "sdxl" else torch.bfloat16
    parts, begun = {}, time.perf_counter()
    with _seeded(torch.device(run.device.name)):
        for part, config in given["parts"].items():
            if part.startswith(("text_encoder", "tokenizer", "vae")):
                parts[part] = None
                continue
            if run.simulate and part in ("transformer", "unet"):
                config = config | SMALL[name]
            parts[part] = _build(config, dtype=dtype, device=run.device.name)
    pipe = getattr(diffusers, given["_class_name"])(**parts, **given.get("options", {}))
    pipe.set_progress_bar_config(disable=True)
    run.device.sync()
    return pipe, time.perf_counter() - begun


def arguments(run: Run, name: str) -> dict:
    """Of the pipeline's call: random embeddings in the text encoders' place, and the sizes of configs/model."""
    dtype = torch.float32 if run.simulate else torch.float16 if name == "sdxl" else torch.bfloat16
    generator = torch.Generator().manual_seed(1)

    def embedding(*shape):
        if run.simulate:
            shape = (1, *(min(n, 8) for n in shape[1:-1]), 32)
        return torch.randn(shape, generator=generator).to(run.device.name, dtype)

    def both(**made):  # and what guidance needs
        return made | {f"negative_{key}": torch.randn_like(value) for key, value in made.items()}

    words = {
        "flux": lambda: {"prompt_embeds": embedding(1, 512, 4096), "pooled_prompt_embeds": embedding(1, 768)},
        "sd3-5": lambda: both(prompt_embeds=embedding(1, 333, 4096), pooled_prompt_embeds=embedding(1, 2048)),
        "wan14b": lambda: both(prompt_embeds=embedding(1, 512, 4096)),
        "hunyuan": lambda: {"prompt_embeds": embedding(1, 256, 4096), "pooled_prompt_embeds": embedding(1, 768)},
        "sdxl": lambda: both(prompt_embeds=embedding(1, 77, 2048), pooled_prompt_embeds=embedding(1, 1280)),
    }[name]()
    if name == "hunyuan":
        length = words["prompt_embeds"].shape[1]
        words["prompt_attention_mask"] = torch.ones(1, length, dtype=torch.bool, device=run.device.name)
    sizes = {
        "flux": {"height": 1024, "width": 1024, "guidance_scale": 3.5},
        "sd3-5": {"height": 1024, "width": 1024, "guidance_scale": 7.0},
        "wan14b": {"height": 480, "width": 832, "num_frames": 81, "guidance_scale": 5.0},
        "hunyuan": {"height": 544, "width": 960, "num_frames": 61, "guidance_scale": 6.0},
        "sdxl": {"height": 1024, "width": 1024, "guidance_scale": 5.0},
    }[name]
    if run.simulate:
        sizes |= {"height": 64, "width": 64} | ({"num_frames": 5} if "num_frames" in sizes else {})
    return words | sizes


class Model:
    """A pipeline, its call, and what its plain run takes: the measure of every speedup."""

    def __init__(self, run: Run, section: str, name: str):
        self.run, self.section, self.name = run, section, name
        self.pipe, seconds = pipeline(run, name)
        self.call = arguments(run, name)
        self.step_s = None  # plain, on average
        held = run.device.gb()
        count = sum(p.numel() for network in denoisers(self.pipe).values() for p in network.parameters())
        told = f"{name} built in {seconds:.1f} s, {count / 1e9:.2f} B parameters, {held:.1f} GB"
        run.line(section, told, model=name, method="build", build_s=seconds, parameters=count, memory_gb=held)

    def sample(self, steps: int, schedule, forecaster, site, on_step=None, synced: bool = False) -> dict:
        """One call of the pipeline. Marks are made in its own callback; nothing waits for them until it is done.

        Args:
            synced: wait for the device after every step, so that what the host needs to issue the next one shows.
        """
        device, marks, issued, begun, computed = self.run.device, [], [], [], []
        device.sync()
        device.peak_gb(reset=True)
        with (
            torch.no_grad(),
            cached(self.pipe, schedule=schedule, forecaster=forecaster, site=site, num_steps=steps) as session,
        ):

            def step_done(pipe, i, t, tensors):
                issued.append(time.perf_counter())
                marks.append(device.mark())
                computed.append(session.computing)
                tensors = session.callback(pipe, i, t, tensors)
                if on_step is not None:
                    on_step(i)
                if synced:
                    device.sync()
                begun.append(time.perf_counter())
                return tensors

            start = device.mark()
            latents = self.pipe(
                num_inference_steps=steps,
                output_type="latent",
                return_dict=False,
                generator=torch.Generator().manual_seed(42),
                callback_on_step_end=step_done,
                **self.call,
            )[0]
        device.sync()
        end = marks[-1]
        each = [device.ms(a, b) for a, b in zip([start, *marks], marks, strict=False)]
        host = [math.nan, *(1e3 * (b - a) for a, b in zip(begun, issued[1:], strict=False))]
        full = [ms for ms, did in zip(each[1:], computed[1:], strict=True) if did]  # the first is a warm-up
        skipped = [ms for ms, did in zip(each, computed, strict=True) if not did]
        host_full = [ms for ms, did in zip(host[1:], computed[1:], strict=True) if did]
        host_skipped = [ms for ms, did in zip(host, computed, strict=True) if not did]
        return {
            "latents": latents,
            "steps": steps,
            "passes": len(session.computed_steps),
            "computed": session.computed_steps,
            "total_s": device.ms(start, end) / 1e3,
            "full_ms": statistics.median(full) if full else each[0],
            "full_min_ms": min(full, default=each[0]),
            "skipped_ms": statistics.median(skipped) if skipped else None,
            "skipped_min_ms": min(skipped, default=None),
            "host_full_ms": statistics.median(host_full) if host_full else None,
            "host_skipped_ms": statistics.median(host_skipped) if host_skipped else None,
            "host_skipped_min_ms": min(host_skipped, default=None),
            "peak_gb": device.peak_gb(),
            "cache_gb": session.cache_bytes / 1e9,
            "steps_ms": [round(ms, 3) for ms in each],
            "finite": bool(latents.isfinite().all()),
        }

    def method(self, name: str, steps: int, schedule, forecaster, site, times: int = 1, guess_s: float = 5.0, **more):
        """Measure a method so many times, a line each; the results."""
        if not isinstance(schedule, partial) and schedule is schedules.full:
            passes = steps
        else:
            mask = schedules.plan(schedule, steps)
            passes = int(mask.sum()) if mask is not None else 14
        results = []
        for number in range(times):
            wants = guess_s if self.step_s is None else 1.2 * passes * self.step_s + 0.5

            def once(number=number):
                result = self.sample(steps, schedule, forecaster, site, **more)
                self.tell(name, number, result, synced=more.get("synced", False))
                return result

            results.append(self.run.attempt(self.section, wants, once, name))
        return [result for result in results if result]

    def tell(self, name: str, number: int, result: dict, synced: bool = False) -> None:
        values = {key: value for key, value in result.items() if key != "latents"}
        told = f"{name}: {values['passes']}/{values['steps']}, {values['total_s']:.3f} s, full {values['full_ms']:.1f}"
        if values["skipped_ms"] is not None:
            told += f", skipped {values['skipped_ms']:.3f} ms"
            told += f", host {values['host_skipped_ms']:.2f} ms" if synced else ""
        if self.step_s is not None and not synced:
            values["speedup"] = values["steps"] * self.step_s / values["total_s"]
            values["speedup_by_count"] = values["steps"] / values["passes"]
            told += f", {values['speedup']:.3f}x of {values['speedup_by_count']:.2f}x"
        told += f", peak {values['peak_gb']:.1f}, cache {values['cache_gb']:.2f} GB"
        told += "" if values["finite"] else ", NOT FINITE"
        self.run.line(self.section, told, model=self.name, method=name, number=number + 1, synced=synced, **values)

    def plain(self, steps: int, times: int, guess_s: float, name: str = "nocache") -> dict | None:
        """The reference, and its last run; from here on there are speedups, against the fastest of its runs."""
        results = self.method(name, steps, schedules.full, forecasters.reuse, None, times, guess_s)
        if results:
            self.step_s = min(result["total_s"] for result in results) / steps
        return results[-1] if results else None


def growing(steps: int, flex: float):
    """Spectrum's own schedule as a mask: flex 0.75 computes 14 of 50 steps, 3.0 computes 10."""
    return partial(schedules.adaptive_window, window=2, flex=flex, warmup=5)


def spectrum_forecast(steps: int):
    return partial(forecasters.spectrum, degree=4, ridge=0.1, blend=0.5, steps=steps)


def recording(mask: np.ndarray, signals: tuple, kept: list, look):
    """A gate that follows a mask and keeps what another gate would decide by: random weights have thresholds of their
    own, so they are found from what these weights do."""

    @decisions.gate(observes=signals, state=gates.AccumulatedState)
    def recorded(step, T, seen, state):
        kept.append(look(seen, state))
        return bool(mask[step])

    return recorded()


def threshold(passes, wanted: int) -> float:
    """The threshold at which `passes(threshold)`, which falls with it, comes to `wanted`."""
    low, high = 0.0, 1.0
    while passes(high) > wanted and high < 1e9:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if passes(middle) > wanted else (low, middle)
    return high


def accumulated_passes(changes: list[float], limit: float) -> int:
    """How many steps TeaCache's gate would compute of these relative changes from step to step."""
    total, count = 0.0, 1
    for step, change in enumerate(changes[1:], 1):
        total += change
        if step == len(changes) - 1 or not total < limit:
            total, count = 0.0, count + 1
    return count


def first_block_passes(added: list[Tensor], limit: float) -> int:
    """How many steps the first-block gate would compute of what the first block added at each."""
    kept, count = added[0], 1
    for new in added[1:]:
        if not distances.distance(new, kept) < limit:
            kept, count = new, count + 1
    return count


def teacache(model: Model, steps: int, mask, wanted: int, times: int = 1) -> None:
    """TeaCache's gate at a threshold where it computes about `wanted` steps of these random weights."""
    changes: list[float] = []

    def look(seen, state):
        before, state.modulated = state.modulated, seen[MODULATED]
        return distances.relative_change(seen[MODULATED], before)

    gate = recording(mask(steps), (MODULATED,), changes, look)
    recorded = model.run.attempt(
        model.section,
        1.2 * wanted * (model.step_s or 1),
        lambda: model.sample(steps, gate, forecasters.reuse, StackResidual()),
        "teacache threshold",
    )
    if recorded is None:
        return
    first_branch = changes[:: len(changes) // steps]  # guidance may make two calls a step
    limit = threshold(partial(accumulated_passes, first_branch), wanted)
    gate = gates.accumulated(threshold=limit, polynomial=[1.0, 0.0], first=1, last=1)
    model.method("teacache", steps, gate, forecasters.reuse, StackResidual(), times)


def flux(run: Run) -> None:
    model, steps = Model(run, "flux", "flux"), 50
    mask10, mask14 = growing(steps, 3.0), growing(steps, 0.75)
    reuse, fit = forecasters.reuse, spectrum_forecast(steps)
    model.method("warm-up", 2, schedules.full, reuse, None, guess_s=5)
    plain = model.plain(steps, 2, guess_s=15)
    if plain is None:
        return
    never = model.method("never skips", steps, schedules.full, reuse, LastBlock())
    if never:
        same = torch.equal(plain["latents"].view(torch.uint8), never[-1]["latents"].view(torch.uint8))
        told = f"never skipping is {'bit-identical' if same else 'NOT IDENTICAL'} to the plain pipeline"
        run.line("flux", told, method="identity", identical=same, finite=plain["finite"])
    del plain, never
    model.method("spectrum-10", steps, mask10, fit, LastBlock(), 3)
    model.method("spectrum-14", steps, mask14, fit, LastBlock(), 2)
    model.method("reuse last_block", steps, mask10, reuse, LastBlock())
    model.method("reuse stack", steps, mask10, reuse, StackResidual())
    model.method("reuse output", steps, mask10, reuse, OutputResidual())
    teacache(model, steps, mask10, 12)
    if run.wants_profiler:
        run.attempt("profiler", 12, partial(profiled, run, model, mask10, fit))
    for name, fore in (("spectrum-10", fit), ("reuse last_block", reuse)):
        model.method(f"{name} host", steps, mask10, fore, LastBlock(), synced=True)
    taylor = partial(forecasters.taylor, order=1, warmup=5)
    model.method("taylor1 last_block", steps, mask10, taylor, LastBlock())
    if run.quick:
        return
    model.method("taylor1 modules", steps, mask10, taylor, Modules())
    model.method("fora modules", steps, mask10, reuse, Modules())
    model.method("taylor1 modules host", steps, mask10, taylor, Modules(), synced=True)
    _first_block_caches(model, steps, mask10)


def _first_block_caches(model: Model, steps: int, mask) -> None:
    """Ours, diffusers' and cache-dit's, at one threshold found for these random weights; diffusers' TaylorSeer."""
    run, reuse, added = model.run, forecasters.reuse, []
    gate = recording(mask(steps), (ENTERING, PROBE), added, lambda seen, state: seen[PROBE] - seen[ENTERING])
    wants = 2 * int(mask(steps).sum()) * model.step_s
    sample = partial(model.sample, steps, gate, reuse, TailResidual())
    if run.attempt("flux", wants, sample, "fbcache threshold") is None:
        return
    limit = threshold(partial(first_block_passes, added), 12)
    added.clear()
    run.line("flux", f"first-block threshold {limit:.4g}", method="fbcache threshold", threshold=limit)
    model.method("fbcache", steps, gates.first_block(threshold=limit), reuse, TailResidual())
    observed = gates.observed()
    site = DiffusersCache("FirstBlockCacheConfig", {"threshold": limit})
    model.method("diffusers first-block", steps, observed, reuse, site)

    def cache_dit():
        try:
            import cache_dit  # noqa: F401
        except ImportError as error:
            raise Missing(f"cache-dit: {error}") from None
        words = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0, "residual_diff_threshold": limit}
        site = CacheDiT(words | {"max_warmup_steps": 5, "max_continuous_cached_steps": -1})
        model.method("cache-dit DBCache F1B0", steps, observed, reuse, site)

    run.attempt("flux", 0, cache_dit, "cache-dit DBCache F1B0")
    words = {"cache_interval": 5, "disable_cache_before_step": 3, "max_order": 1}
    words["cache_identifiers"] = [r"(\w+_)?blocks\.\d+\.attn\d?"]  # as configs/site/diffusers_taylorseer.yaml
    site = DiffusersCache("TaylorSeerCacheConfig", words)
    model.method("diffusers taylorseer", steps, observed, reuse, site)
    model.method("nocache again", steps, schedules.full, reuse, None)  # whether the card has slowed down meanwhile


def profiled(run: Run, model: Model, mask, forecaster) -> None:
    """torch.profiler over one full and the two skipped steps behind it, each begun with the device idle."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    steps, device = 50, run.device
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.cuda else [])]
    where = DeviceType.CUDA if device.cuda else DeviceType.CPU
    with profile(activities=kinds):  # its own start-up
        torch.zeros(1, device=device.name).add_(1)
        device.sync()
    plan = mask(steps)
    first = next(s for s in range(6, steps - 2) if plan[s] and not plan[s + 1] and not plan[s + 2])
    wanted, kept, now = {first: "full", first + 1: "skipped 1", first + 2: "skipped 2"}, [], []

    def on_step(i):
        if now:
            device.sync()
            now[-1].__exit__(None, None, None)
            kept.append((wanted[i], now.pop()))
        if i + 1 in wanted:
            device.sync()
            now.append(profile(activities=kinds).__enter__())

    model.sample(steps, mask, forecaster, LastBlock(), on_step=on_step)
    run.profiled = True
    for kind, profile_of in kept:
        events = profile_of.events()
        on_device = [e for e in events if e.device_type == where and not e.name.startswith("ProfilerStep")]
        kernels = [e for e in on_device if not e.name.startswith(("Memcpy", "Memset"))]
        copies = [e.name for e in on_device if e.name.startswith(("Memcpy", "Memset"))]
        times: dict[str, list[float]] = {}
        for event in kernels:
            times.setdefault(event.name, []).append(event.time_range.elapsed_us())
        span = max(e.time_range.end for e in on_device) - min(e.time_range.start for e in on_device)
        busy = sum(e.time_range.elapsed_us() for e in on_device)
        calls = [e.name for e in events if e.device_type == DeviceType.CPU]
        waits = {name: calls.count(name) for name in ("cudaStreamSynchronize", "cudaDeviceSynchronize")}
        waits |= {"launches": sum(name.startswith(("cudaLaunchKernel", "cuLaunchKernel")) for name in calls)}
        waits |= {"item": calls.count("aten::item"), "ops": sum(name.startswith("aten::") for name in calls)}
        moved = {kind: sum(kind in name for name in copies) for kind in ("DtoH", "HtoD", "DtoD", "Memset")}
        top = sorted(times.items(), key=lambda pair: -sum(pair[1]))[:12]
        top = [{"kernel": name[:120], "count": len(us), "ms": sum(us) / 1e3} for name, us in top]
        told = f"{kind}: {len(kernels)} kernels, {busy / 1e3:.3f} ms busy in a span of {span / 1e3:.3f} ms, "
        told += f"syncs {waits['cudaStreamSynchronize']}, DtoH {moved['DtoH']}, HtoD {moved['HtoD']}"
        values = {"kernels": len(kernels), "busy_ms": busy / 1e3, "span_ms": span / 1e3, "copies": moved}
        run.line("profiler", told, step=kind, **values, host_calls=waits, top=top)
        for row in top[:4]:
            print(f"   {row['ms']:.3f} ms {row['count']} x {row['kernel'][:70]}", flush=True)


def profiler(run: Run) -> None:
    """By itself, where `flux` did not do it on its own model."""
    if run.profiled:
        return
    model = Model(run, "profiler", "flux")
    model.method("warm-up", 2, schedules.full, forecasters.reuse, None, guess_s=5)
    profiled(run, model, growing(50, 3.0), spectrum_forecast(50))


def sd3(run: Run) -> None:
    model, steps = Model(run, "sd3", "sd3-5"), 20
    mask, fit = growing(steps, 0.75), spectrum_forecast(steps)
    model.method("warm-up", 2, schedules.full, forecasters.reuse, None, guess_s=5)
    if model.plain(steps, 1, guess_s=8) is None:
        return
    model.method("spectrum", steps, mask, fit, LastBlock(), 2)
    model.method("reuse last_block", steps, mask, forecasters.reuse, LastBlock())
    teacache(model, steps, mask, int(mask(steps).sum()))
    model.method("spectrum-10 of 50", 50, growing(50, 3.0), spectrum_forecast(50), LastBlock())
    model.method("spectrum host", steps, mask, fit, LastBlock(), synced=True)


def wan(run: Run) -> None:
    model, steps, computed, seconds = Model(run, "wan", "wan14b"), 18, [0, 1, 2, 3, 4, 8, 13], 55
    if run.quick:
        steps, computed, seconds = 6, [0, 1, 2], 25
    mask = partial(schedules.mask, steps=computed)
    shares(run, model, model.method("spectrum", steps, mask, spectrum_forecast(steps), LastBlock(), guess_s=seconds))


def hunyuan(run: Run) -> None:
    model, steps = Model(run, "hunyuan", "hunyuan"), 6
    mask = partial(schedules.mask, steps=[0, 1])
    shares(run, model, model.method("spectrum", steps, mask, spectrum_forecast(steps), LastBlock(), guess_s=20))


def shares(run: Run, model: Model, results: list[dict]) -> None:
    """Where a whole plain run would take too long: what the two kinds of step say of 50 steps."""
    if not results:
        return
    result = results[-1]
    share = result["skipped_ms"] / result["full_ms"]
    speedups = {str(passes): 50 / (passes + (50 - passes) * share) for passes in (10, 14)}
    told = f"{model.name}: a skipped step is {100 * share:.3f} % of a full one; 50 steps by these: "
    told += ", ".join(f"{passes} passes {x:.3f}x" for passes, x in speedups.items())
    run.line(model.section, told, model=model.name, method="shares", skipped_share=share, speedup_from_steps=speedups)


def graphs() -> dict:
    """What torch.compile has made so far in this process."""
    counters = torch._dynamo.utils.counters
    return {
        "unique_graphs": counters["stats"].get("unique_graphs", 0),
        "frames": counters["frames"].get("ok", 0),
        "breaks": sum(counters["graph_break"].values()),
        "recompile_limit": sum(n for key, n in counters["unimplemented"].items() if "limit" in str(key)),
    }


def _compiled(run: Run, section: str, prepare=None) -> None:
    model, steps = Model(run, section, "flux"), 20
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    if prepare is not None:
        prepare(model)
    denoiser = next(iter(denoisers(model.pipe).values()))
    denoiser.compile_repeated_blocks(**({"backend": "eager"} if run.simulate else {}))  # as runtime.compile does
    begun = time.perf_counter()
    model.method("compiling", 2, schedules.full, forecasters.reuse, None, guess_s=50)
    seconds, before = time.perf_counter() - begun, graphs()
    if model.plain(steps, 1, guess_s=5, name="nocache compiled") is None:
        return
    fit, after_plain = spectrum_forecast(50), graphs()
    two = partial(schedules.mask, steps=[0, 1])  # hooks on the first and last blocks make graphs of their own
    model.method("compiling cached", 4, two, spectrum_forecast(4), LastBlock(), guess_s=20)
    model.method("spectrum-10 compiled", 50, growing(50, 3.0), fit, LastBlock(), 2)
    model.method("spectrum-10 compiled host", 50, growing(50, 3.0), fit, LastBlock(), synced=True)
    made = {"before": before, "after_plain": after_plain, "after_spectrum": graphs()}
    told = f"compiled in {seconds:.0f} s; graphs {', '.join(str(g['unique_graphs']) for g in made.values())}; breaks "
    told += ", ".join(str(g["breaks"]) for g in made.values())
    run.line(section, told, method="graphs", compile_s=seconds, **made)


def compiled(run: Run) -> None:
    _compiled(run, "compiled")


def fp8(run: Run) -> None:
    try:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, Int8WeightOnlyConfig, quantize_
        from torchao.quantization.granularity import PerRow
    except ImportError as error:
        raise Missing(f"torchao: {error}") from None

    def prepare(model: Model) -> None:
        float8 = partial(Float8DynamicActivationFloat8WeightConfig, granularity=PerRow())
        kind = (Int8WeightOnlyConfig if run.simulate else float8)()
        denoiser = next(iter(denoisers(model.pipe).values()))

        def inside(module, name):  # the blocks' linear layers, as inference engines do; modulation has one row only
            return isinstance(module, torch.nn.Linear) and "transformer_blocks" in name and ".norm" not in name

        quantize_(denoiser, kind, filter_fn=inside)
        run.device.free()
        held = run.device.gb()
        name = type(kind).__name__
        run.line("fp8", f"{name}: {held:.1f} GB", method="quantize", kind=name, memory_gb=held)

    _compiled(run, "fp8", prepare)


def sdxl(run: Run) -> None:
    model, steps = Model(run, "sdxl", "sdxl"), 20
    mask, fit = growing(steps, 0.75), spectrum_forecast(steps)
    model.method("warm-up", 2, schedules.full, forecasters.reuse, None, guess_s=5)
    if model.plain(steps, 1, guess_s=5) is None:
        return
    model.method("spectrum", steps, mask, fit, LastBlock(), 2)
    model.method("reuse last_block", steps, mask, forecasters.reuse, LastBlock())
    model.method("spectrum host", steps, mask, fit, LastBlock(), synced=True)


SECTIONS = {  # in order of worth, with the seconds below which there is no point in beginning
    "ceilings": (ceilings, 5),
    "forecast": (forecast, 20),
    "flux": (flux, 40),
    "profiler": (profiler, 15),
    "sd3": (sd3, 20),
    "wan": (wan, 30),
    "hunyuan": (hunyuan, 30),
    "compiled": (compiled, 60),
    "fp8": (fp8, 60),
    "sdxl": (sdxl, 12),
}
DEFAULTS = {
    "budget": "480",
    "out": "",
    "sections": ",".join(SECTIONS),
    "simulate": "false",
    "label": "",
    "quick": "false",
}


def main(argv: list[str]) -> None:
    if {"-h", "--help"} & set(argv):
        print(__doc__.strip())
        return
    options = dict(DEFAULTS)
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or key not in DEFAULTS:
            sys.exit(f"error: no option {word}: there is {', '.join(f'{k}=' for k in DEFAULTS)} (see --help)")
        options[key] = value
    chosen = options["sections"].split(",")
    unknown = [name for name in chosen if name not in SECTIONS]
    if unknown:
        sys.exit(f"error: no section {unknown[0]}: there is {', '.join(SECTIONS)}")
    if options["simulate"] != "true" and not torch.cuda.is_available():
        sys.exit("error: no GPU here: add simulate=true to try the script itself")
    run = Run(options)
    run.wants_profiler = "profiler" in chosen
    environment(run, options["label"])
    run.attempt("environment", 0, partial(compile_forecasts, run))
    if run.simulate:
        torch.set_num_threads(1)
    for name in SECTIONS:
        if name in chosen:
            function, seconds = SECTIONS[name]
            run.attempt(name, seconds, partial(function, run))
            run.device.free()
    run.line("end", f"{run.left:.0f} s left of {run.budget:.0f}", seconds=run.budget - run.left)


if __name__ == "__main__":
    main(sys.argv[1:])
