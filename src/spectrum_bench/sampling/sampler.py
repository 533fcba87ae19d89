"""From a job to a sample and its figures. This is the only place that calls a pipeline."""

import inspect
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.session import Session, denoisers
from spectrum_bench.errors import DoesNotFit, NotFinite, UserError
from spectrum_bench.sampling.clock import Laps, alone, processor_seconds
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.records import Latency
from spectrum_bench.sampling.settings import RunSettings
from spectrum_bench.sampling.steps import at_step_end


class Observer:
    """Watches one pipeline call. A subclass overrides the methods that it needs."""

    def attach(self, pipe: Any, session: Session, undo: ExitStack) -> None:
        """Before the call: attach hooks, and push onto `undo` the functions that remove them."""

    def step_done(self, session: Session, step: int, latents: Tensor) -> None:
        """After each denoising step, outside the measured times. `latents` (B, ...) are the scheduler's."""


class Latents(Observer):
    """Keeps the scheduler's latents after each step, of the first sample of a batch: T tensors, float32 on the CPU."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []

    def step_done(self, session: Session, step: int, latents: Tensor) -> None:
        self.steps.append(latents[0].float().cpu())


@dataclass(frozen=True)
class Figures:
    """Counts and measurements of one sample: fields of a Record."""

    computed_steps: list[int]
    networks: dict[str, list[int]]
    latency: Latency
    alone: bool
    peak_memory_bytes: int | None
    cache_bytes: int

    @property
    def nfe(self) -> int:
        return len(self.computed_steps)


@dataclass(frozen=True)
class Sampler:
    """An unmodified pipeline under an algorithm.

    Attributes:
        arguments: arguments of the pipeline's call beside the prompt (guidance_scale, height, ...).
        batch_size: how many samples of a prompt are made at once. The others use the next seeds; the first is returned.
    """

    pipe: Any
    algorithm: Algorithm
    num_steps: int
    arguments: Mapping[str, Any]
    batch_size: int = 1

    @classmethod
    def of(cls, pipe: Any, algorithm: Algorithm, settings: RunSettings) -> "Sampler":
        steps, batch = settings.num_inference_steps, settings.runtime.batch_size
        return cls(pipe, algorithm, steps, settings.model.arguments, batch)

    def sample(self, job: Job, observers: Sequence[Observer] = ()) -> tuple[np.ndarray, Figures]:
        """The picture (H, W, 3) or clip (F, H, W, 3), uint8, and its figures.

        The initial noise is drawn on the CPU from the job's own seed, whatever the device.

        Raises:
            DoesNotFit: the algorithm does not fit this denoiser, or the pipeline takes another number of steps.
            NotFinite: the pipeline's output is not finite.
        """
        device = self.pipe._execution_device
        before = processor_seconds()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        laps = Laps(device)
        pixels, session = self._call(job, observers, laps, "np")
        steps = laps.seconds()  # synchronises
        figures = Figures(
            computed_steps=session.computed_steps,
            networks=dict(session.networks) if len(session.networks) > 1 else {},
            latency=latency(steps, session.computed_steps),
            alone=alone(device, before),
            peak_memory_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            cache_bytes=session.cache_bytes,
        )
        if not np.isfinite(pixels).all():
            raise NotFinite("the decoded sample is not finite: try model.dtype=float32")
        return (255 * on_white(pixels)).round().astype(np.uint8), figures

    def watch(self, job: Job, observers: Sequence[Observer]) -> None:
        """Make the sample for its observers alone: nothing is decoded or timed."""
        self._call(job, observers, Laps(self.pipe._execution_device), "latent")

    def _call(self, job: Job, observers: Sequence[Observer], laps: Laps, output: str) -> tuple[Any, Session]:
        device = self.pipe._execution_device
        with ExitStack() as undo:
            session = undo.enter_context(self.algorithm.attach(self.pipe, self.num_steps))
            for observer in observers:
                observer.attach(self.pipe, session, undo)

            def step_done(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
                laps.mark()
                for observer in observers:
                    observer.step_done(session, step, tensors["latents"])
                tensors = session.callback(pipe, step, timestep, tensors)
                laps.mark()  # our own bookkeeping does not belong to the next step
                return tensors

            laps.mark()
            self._mark_end_of_text(laps, undo)
            undo.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            torch.manual_seed(job.seed)  # SD3's ControlNet pipeline draws from torch's own generator
            sample = self.pipe(
                **{**self.arguments, **self._inputs(job)},
                **self._prompt_and_noise(job),
                num_inference_steps=self.num_steps,
                **at_step_end(self.pipe, step_done, undo),
                output_type=output,
                return_dict=False,
            )[0][0]
        laps.mark()
        if session.step != self.num_steps:
            raise DoesNotFit(f"the pipeline took {session.step} steps, not num_inference_steps={self.num_steps}")
        return sample, session

    def _prompt_and_noise(self, job: Job) -> dict[str, Any]:
        generators = [torch.Generator().manual_seed(job.seed + i) for i in range(self.batch_size)]
        if self.batch_size == 1:
            return {"prompt": job.prompt, "generator": generators[0]}
        return {"prompt": [job.prompt] * self.batch_size, "generator": generators}

    def _inputs(self, job: Job) -> dict[str, Any]:
        """What the job gives beside the prompt, by the argument of the call.

        Raises:
            UserError: the pipeline does not take it.
        """
        pipeline = type(self.pipe)
        taken = inspect.signature(pipeline.__call__).parameters
        for each in job.inputs:
            if each.name not in taken:
                raise UserError(f"{pipeline.__name__} takes no {each.name}: leave it out of the prompt file")
        values = {each.name: each.value() for each in job.inputs}
        return values if self.batch_size == 1 else {name: [value] * self.batch_size for name, value in values.items()}

    def _mark_end_of_text(self, laps: Laps, undo: ExitStack) -> None:
        """The text stage ends when any of the pipeline's denoisers runs for the first time."""
        hooks: list[Any] = []

        def text_done(*_: Any) -> None:
            laps.mark()
            for hook in hooks:
                hook.remove()

        hooks += [denoiser.register_forward_pre_hook(text_done) for denoiser in denoisers(self.pipe).values()]
        for hook in hooks:
            undo.callback(hook.remove)


def on_white(pixels: np.ndarray) -> np.ndarray:
    """The picture without transparency, (H, W, 3), of one in [0, 1] with or without a fourth channel, its opacity."""
    if pixels.shape[-1] != 4:
        return pixels
    opacity = pixels[..., 3:]
    flat: np.ndarray = pixels[..., :3] * opacity + (1 - opacity)
    return flat


def latency(laps: list[float], computed: list[int]) -> Latency:
    """The stages of a sample.

    Args:
        laps: seconds of the text stage, then of each step and of the bookkeeping after it, then of the decoder.
        computed: the computed steps.
    """
    text, *between, decode = laps
    steps = between[::2]
    full = [seconds for i, seconds in enumerate(steps) if i in computed]
    skipped = [seconds for i, seconds in enumerate(steps) if i not in computed]
    return {
        "text": text,
        "denoise": sum(steps),
        "decode": decode,
        "total": text + sum(steps) + decode,
        "full_step": statistics.median(full),
        "skipped_step": statistics.median(skipped) if skipped else None,
    }
