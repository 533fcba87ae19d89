"""Runs jobs on one device or many, and yields what came of each: a Record, or a Failure."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from spectrum_bench.errors import UserError
from spectrum_bench.sampling import media
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.records import Failure, Record, save_failure, save_record, write_atomically


def keep(folder: Path, outcome: Record | Failure, files: dict[str, bytes]) -> Record | Failure:
    """Put what a worker made on disk, its record last."""
    for name, data in files.items():
        write_atomically(folder / name, data)
    (save_record if isinstance(outcome, Record) else save_failure)(folder, outcome)
    return outcome


class Worker:
    """A device with the model on it."""

    def __init__(self, cfg: dict, build: Callable, alone: bool = True):
        from spectrum_bench.sampling.models import open_pipeline

        self.cfg, self.alone = cfg, alone
        self.pipe, self.device = open_pipeline(cfg)
        prepare(self.pipe, cfg["runtime"])
        self.algorithm = build(cfg)
        self.warm = False

    def sample(self, job: Job, **extra):
        from spectrum_bench.sampling.sampler import generate

        cfg = self.cfg
        settings = {"num_steps": cfg["num_inference_steps"], "batch_size": cfg["runtime"]["batch_size"]}
        try:
            return generate(
                self.pipe, job, self.algorithm, arguments=dict(cfg["model"]["arguments"]), **settings, **extra
            )
        except ValueError as error:  # the algorithm does not fit this denoiser: no job would fare better
            raise UserError(str(error)) from None

    def make(self, job: Job, on_step: Callable | None = None) -> tuple[Record | Failure, dict[str, bytes]]:
        """One sample: its record, and its files by their path below the folder. One that fails by itself (out of
        memory, not finite) is a Failure without files, and the next job can go on."""
        import torch
        from safetensors.torch import save

        from spectrum_bench.errors import NotFinite
        from spectrum_bench.sampling.clock import environment

        try:
            for _ in range(0 if self.warm else self.cfg["warmup_samples"]):
                self.sample(job)
            self.warm = True
            latents = [] if job.prompt_index < self.cfg["keep_latents"] else None
            pixels, figures = self.sample(job, on_step=on_step, latents=latents)
            encoded = media.encode(pixels, self.cfg["model"].get("fps"))
        except (torch.OutOfMemoryError, MemoryError, NotFinite) as error:  # anything else may be the device's
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            return Failure.of(job, error), {}
        files = {f"samples/{job.id}{suffix}": data for suffix, data in encoded.items()}
        record = Record(
            id=job.id,
            prompt_index=job.prompt_index,
            prompt=job.prompt,
            seed=job.seed,
            sample=next(iter(files)),
            sha256=hashlib.sha256(next(iter(files.values()))).hexdigest(),
            model=self.cfg["model"]["name"],
            num_inference_steps=self.cfg["num_inference_steps"],
            **self.cfg["labels"],
            **figures | {"alone": self.alone and figures["alone"]},
            **environment(self.device, torch.get_num_threads()),
        )
        if latents:
            files[f"latents/{job.id}.safetensors"] = save({"latents": torch.stack(latents)})
        return record, files


def prepare(pipe, runtime: dict) -> None:
    """Compile the denoiser's blocks or choose its attention, as the configuration says.

    Raises:
        UserError: this denoiser, or this machine, cannot.
    """
    from spectrum_bench.caching.session import denoisers

    for denoiser in denoisers(pipe).values():
        try:
            if runtime["attention"] is not None:
                denoiser.set_attention_backend(runtime["attention"])
            if runtime["compile"]:
                denoiser.compile_repeated_blocks()
        except (AttributeError, ValueError, RuntimeError) as error:
            raise UserError(f"runtime: {type(denoiser).__name__}: {error}") from None


# ---------------------------------------------------------------------------------------------------------------------
