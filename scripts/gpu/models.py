"""Full-size pipelines with random weights, their calls, and what a call takes under an algorithm."""

import math
import statistics
import time
from functools import partial

import diffusers
import torch

from gpu.lines import Run
from spectrum_bench import forecasters, schedules
from spectrum_bench.caching.session import cached, denoisers
from spectrum_bench.sampling.architectures import _build, _seeded, architecture

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


def times_by_kind(each: list[float], host: list[float], computed: list[bool]) -> dict:
    """Medians and minima of full and of skipped steps, in ms on the device and on the host. The first full step is a
    warm-up."""
    full = [ms for ms, did in zip(each[1:], computed[1:], strict=True) if did]
    skipped = [ms for ms, did in zip(each, computed, strict=True) if not did]
    host_full = [ms for ms, did in zip(host[1:], computed[1:], strict=True) if did]
    host_skipped = [ms for ms, did in zip(host, computed, strict=True) if not did]
    return {
        "full_ms": statistics.median(full) if full else each[0],
        "full_min_ms": min(full, default=each[0]),
        "skipped_ms": statistics.median(skipped) if skipped else None,
        "skipped_min_ms": min(skipped, default=None),
        "host_full_ms": statistics.median(host_full) if host_full else None,
        "host_skipped_ms": statistics.median(host_skipped) if host_skipped else None,
        "host_skipped_min_ms": min(host_skipped, default=None),
    }


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
        each = [device.ms(a, b) for a, b in zip([start, *marks], marks, strict=False)]
        host = [math.nan, *(1e3 * (b - a) for a, b in zip(begun, issued[1:], strict=False))]
        return {
            "latents": latents,
            "steps": steps,
            "passes": len(session.computed_steps),
            "computed": session.computed_steps,
            "total_s": device.ms(start, marks[-1]) / 1e3,
            **times_by_kind(each, host, computed),
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
