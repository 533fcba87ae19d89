"""One job -> one picture or clip and its figures: seed, stage times, memory."""

import statistics

import numpy as np
import torch

from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.session import cached, denoisers
from spectrum_bench.errors import NotFinite, UserError
from spectrum_bench.sampling.clock import Laps, alone, processor_seconds
from spectrum_bench.sampling.jobs import Job


def generate(
    pipe,
    job: Job,
    algorithm: Algorithm,
    *,
    num_steps: int,
    arguments: dict,
    on_step=None,
    latents: list | None = None,
    batch_size: int = 1,
) -> tuple[np.ndarray, dict]:
    """Make one sample with an unmodified pipeline call.

    The initial noise is drawn on the CPU from the job's own seed, whatever the device.

    Args:
        arguments: further arguments of the pipeline (guidance_scale, height, ...).
        on_step: called after every denoising step with whether the network was computed.
        batch_size: so many samples of the prompt at once, the others from the seeds that follow; the first is returned.
        latents: gets what the scheduler made of each step, (T, ...) in all, float32 on the CPU.

    Returns:
        The picture (H, W, 3) or clip (F, H, W, 3), uint8, and the figures of a Record: computed_steps, nfe, latency,
        alone, peak_memory_bytes, cache_bytes.

    Raises:
        ValueError: the pipeline takes another number of steps than it was told.
        NotFinite: its output is not finite.
    """
    device = pipe._execution_device
    laps, before = Laps(device), processor_seconds()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with cached(
        pipe, schedule=algorithm.schedule, forecaster=algorithm.forecaster, site=algorithm.site, num_steps=num_steps
    ) as session:

        def step_done(pipe, step, timestep, tensors):
            laps.mark()
            if on_step is not None:
                on_step(session.computing)
            tensors = session.callback(pipe, step, timestep, tensors)
            if latents is not None:
                latents.append(tensors["latents"][0].float().cpu())
            laps.mark()  # our own bookkeeping is no part of the next step
            return tensors

        def text_done(*_):  # the denoiser's first call ends the text stage
            laps.mark()
            started.remove()

        generators = [torch.Generator().manual_seed(job.seed + i) for i in range(batch_size)]
        laps.mark()
        started = next(iter(denoisers(pipe).values())).register_forward_pre_hook(text_done)
        try:
            sample = pipe(
                prompt=[job.prompt] * batch_size if batch_size > 1 else job.prompt,
                num_inference_steps=num_steps,
                generator=generators if batch_size > 1 else generators[0],
                callback_on_step_end=step_done,
                output_type="np",
                return_dict=False,
                **arguments,
            )[0][0]
        finally:
            started.remove()
        laps.mark()
    if session.step != num_steps:
        raise ValueError(f"the pipeline took {session.step} steps, not num_inference_steps={num_steps}")
    text, *between, decode = laps.seconds()
    to_itself = alone(device, before)
    steps = between[::2]  # every other lap is the callback
    computed = session.computed_steps
    full = [s for i, s in enumerate(steps) if i in computed]
    skipped = [s for i, s in enumerate(steps) if i not in computed]
    if not np.isfinite(sample).all():
        raise NotFinite("the decoded sample is not finite: try model.dtype=float32")
    return (255 * sample).round().astype(np.uint8), {
        "computed_steps": computed,
        "nfe": len(computed),
        "latency": {
            "text": text,
            "denoise": sum(steps),
            "decode": decode,
            "total": text + sum(steps) + decode,
            "full_step": statistics.median(full),
            "skipped_step": statistics.median(skipped) if skipped else None,
        },
        "alone": to_itself,
        "peak_memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "cache_bytes": session.cache_bytes,
    }


def generate_all(pipe, jobs: list[Job], algorithm: Algorithm, plain: dict) -> list[tuple[np.ndarray, dict]]:
    """`generate` for each job, by a resolved configuration.

    Raises:
        UserError: the algorithm does not fit this denoiser.
    """
    settings = {"num_steps": plain["num_inference_steps"], "arguments": plain["model"]["arguments"]}
    try:
        return [generate(pipe, job, algorithm, **settings) for job in jobs]
    except ValueError as error:
        raise UserError(str(error)) from None
