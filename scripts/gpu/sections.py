"""What is measured of each model."""

import time
from functools import partial

import torch

from gpu.lines import Missing, Run
from gpu.methods import first_block_passes, growing, recording, spectrum_forecast, teacache, threshold
from gpu.models import Model
from gpu.profiles import profiled
from spectrum_bench import forecasters, gates, schedules
from spectrum_bench.caching.peers import CacheDiT, DiffusersCache
from spectrum_bench.caching.session import denoisers
from spectrum_bench.caching.sites.modules import Modules
from spectrum_bench.caching.sites.output import OutputResidual
from spectrum_bench.caching.sites.stack import LastBlock, StackResidual, TailResidual
from spectrum_bench.caching.sites.summed import Summed
from spectrum_bench.signals import ENTERING, PROBE


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
    model.method("spectrum-14 sums", steps, mask14, fit, Summed(LastBlock()))
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


TWENTY = 20  # steps, where fifty would take too long
ITS_MASK, ITS_FIT = growing(TWENTY, 0.75), spectrum_forecast(TWENTY)


def twenty_steps(run: Run, section: str, name: str, guess_s: float) -> Model | None:
    """The plain pipeline, Spectrum and reuse. None if not even the first one could be measured."""
    model = Model(run, section, name)
    model.method("warm-up", 2, schedules.full, forecasters.reuse, None, guess_s=5)
    if model.plain(TWENTY, 1, guess_s=guess_s) is None:
        return None
    model.method("spectrum", TWENTY, ITS_MASK, ITS_FIT, LastBlock(), 2)
    model.method("reuse last_block", TWENTY, ITS_MASK, forecasters.reuse, LastBlock())
    return model


def sd3(run: Run) -> None:
    model = twenty_steps(run, "sd3", "sd3-5", guess_s=8)
    if model is None:
        return
    teacache(model, TWENTY, ITS_MASK, int(ITS_MASK(TWENTY).sum()))
    model.method("spectrum-10 of 50", 50, growing(50, 3.0), spectrum_forecast(50), LastBlock())
    model.method("spectrum host", TWENTY, ITS_MASK, ITS_FIT, LastBlock(), synced=True)


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
    model = twenty_steps(run, "sdxl", "sdxl", guess_s=5)
    if model is not None:
        model.method("spectrum host", TWENTY, ITS_MASK, ITS_FIT, LastBlock(), synced=True)
