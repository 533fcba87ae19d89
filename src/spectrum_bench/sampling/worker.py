"""A device with a loaded model: it turns a job into a record and files."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_dispatch import attention_backend
from safetensors.torch import save
from torch import Tensor

from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.session import Session, denoisers
from spectrum_bench.errors import NotFinite, UserError
from spectrum_bench.sampling import media
from spectrum_bench.sampling.clock import environment
from spectrum_bench.sampling.identity import labels
from spectrum_bench.sampling.inputs import hashes
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.models import open_pipeline
from spectrum_bench.sampling.records import Failure, Record, save_failure, save_record, write_atomically
from spectrum_bench.sampling.runtime import RuntimeSettings
from spectrum_bench.sampling.sampler import Figures, Latents, Observer, Sampler
from spectrum_bench.sampling.settings import SCHEMA, RunSettings

Opener = Callable[[RunSettings], tuple[Any, str]]  # the pipeline of a run, and its device
OnStep = Callable[[bool], None]  # called after each denoising step with whether the network was computed
Files = dict[str, bytes]  # by path below the experiment directory


class Progress(Observer):
    """Reports for each step whether it was computed."""

    def __init__(self, on_step: OnStep):
        self.on_step = on_step

    def step_done(self, session: Session, step: int, latents: Tensor) -> None:
        self.on_step(session.computing)


class Worker:
    """A device with a loaded model.

    Args:
        alone: whether no other worker shares the device. Otherwise latencies do not count.
        opener: gives the pipeline and its device; by default it loads them.
    """

    def __init__(self, settings: RunSettings, algorithm: Algorithm, alone: bool = True, opener: Opener | None = None):
        self.settings, self.alone = settings, alone
        pipe, self.device = (opener or open_prepared)(settings)
        self.sampler = Sampler.of(pipe, algorithm, settings)
        self.warm = False

    def make(self, job: Job, on_step: OnStep | None = None) -> tuple[Record | Failure, Files]:
        """Make one sample. Returns its record and its files. A sample that fails by itself (out of memory, not finite)
        gives a Failure without files, and the next job can go on."""
        latents = [Latents()] if job.prompt_index < self.settings.keep_latents else []
        observers: list[Observer] = [*([Progress(on_step)] if on_step else []), *latents]
        try:
            for _ in range(0 if self.warm else self.settings.warmup_samples):
                self.sampler.sample(job)
            self.warm = True
            pixels, figures = self.sampler.sample(job, observers)
            encoded = media.encode(pixels, self.settings.model.fps)
        except (torch.OutOfMemoryError, MemoryError, NotFinite, RuntimeError) as error:
            if not of_the_sample(error):  # it may be the device's
                raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return Failure.of(job, error), {}
        files = {f"samples/{job.id}{suffix}": data for suffix, data in encoded.items()}
        record = self._record(job, figures, *next(iter(files.items())))
        files |= {f"latents/{job.id}.safetensors": save({"latents": torch.stack(each.steps)}) for each in latents}
        return record, files

    def _record(self, job: Job, figures: Figures, sample: str, data: bytes) -> Record:
        return Record(
            id=job.id,
            prompt_index=job.prompt_index,
            prompt=job.prompt,
            seed=job.seed,
            sample=sample,
            sha256=hashlib.sha256(data).hexdigest(),
            sample_bytes=len(data),
            inputs=hashes(job.inputs),
            target_caption=job.target_caption,
            model=self.settings.model.name,
            num_inference_steps=self.settings.num_inference_steps,
            computed_steps=figures.computed_steps,
            nfe=figures.nfe,
            networks=figures.networks,
            latency=figures.latency,
            alone=self.alone and figures.alone,
            peak_memory_bytes=figures.peak_memory_bytes,
            cache_bytes=figures.cache_bytes,
            elsewhere=False,
            schema=SCHEMA,
            **labels(self.settings),
            **environment(self.device, torch.get_num_threads()),
        )


def of_the_sample(error: Exception) -> bool:
    """Whether an error is one sample's own: out of memory, for which torch has no class of its own on a CPU, or not
    finite."""
    own = isinstance(error, (torch.OutOfMemoryError, MemoryError, NotFinite))
    return own or "can't allocate memory" in str(error) or "not enough memory" in str(error)


def keep(folder: Path, outcome: Record | Failure, files: Files) -> Record | Failure:
    """Write the files of a job to disk, the record last."""
    for name, data in files.items():
        write_atomically(folder / name, data)
    if isinstance(outcome, Record):
        save_record(folder, outcome)
    else:
        save_failure(folder, outcome)
    return outcome


def open_prepared(settings: RunSettings) -> tuple[Any, str]:
    """A run's pipeline, compiled or with the attention that its settings ask for, and its device."""
    pipe, device = open_pipeline(settings)
    prepare(pipe, settings.runtime)
    return pipe, device


def prepare(pipe: Any, runtime: RuntimeSettings) -> None:
    """Compile the denoiser or its blocks, or choose its attention, as the settings say.

    Raises:
        UserError: the denoiser or the machine does not support the setting.
    """
    denoiser: Any  # diffusers' own methods, which torch's Module does not have
    for denoiser in denoisers(pipe).values():
        try:
            if runtime.attention is not None:
                _choose_attention(denoiser, runtime.attention)
            if runtime.compile == "full":
                denoiser.compile()
            elif runtime.compile:
                denoiser.compile_repeated_blocks()
        except (AttributeError, ValueError, RuntimeError) as error:
            raise UserError(f"runtime: {type(denoiser).__name__}: {error}") from None


def _choose_attention(denoiser: Any, backend: str) -> None:
    """diffusers' choice for one denoiser. It sets the default of the whole process too, which is put back here: the
    next model in this process is another row."""
    processors = (getattr(module, "processor", None) for module in denoiser.modules())
    if not any(hasattr(processor, "_attention_backend") for processor in processors):
        raise ValueError(f"attention={backend} changes nothing, since diffusers has one attention for it; leave it out")
    with attention_backend(backend):
        denoiser.set_attention_backend(backend)
