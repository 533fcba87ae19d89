"""Runs jobs on a device and yields records as they are finished."""

from collections.abc import Callable, Iterator
from pathlib import Path

from . import media
from .jobs import Job, Record, UserError, save_record, write_atomically


def run_jobs(
    jobs: list[Job], cfg: dict, build: Callable, folder: Path, on_step: Callable | None = None
) -> Iterator[Record]:
    """Load the pipeline once, warm it up, make each job's sample and put it and its record on disk.

    Args:
        cfg: resolved configuration, plain data.
        build: makes the Algorithm from `cfg`.
        on_step: called after each denoising step of a job with whether the network was computed.
    """
    import torch
    from safetensors.torch import save

    from .generate import environment, generate
    from .models import load_pipeline

    device = cfg["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        torch.set_num_threads(cfg["threads"])
    model = cfg["model"]
    pipe = load_pipeline(model, device)
    prepare(pipe, cfg["runtime"])
    algorithm = build(cfg)
    steps, arguments, batch = cfg["num_inference_steps"], dict(model["arguments"]), cfg["runtime"]["batch_size"]
    for _ in range(cfg["warmup_samples"] if jobs else 0):
        generate(pipe, jobs[0], algorithm, num_steps=steps, arguments=arguments, batch_size=batch)
    for job in jobs:
        latents = [] if job.prompt_index < cfg["keep_latents"] else None
        pixels, figures = generate(
            pipe,
            job,
            algorithm,
            num_steps=steps,
            arguments=arguments,
            on_step=on_step,
            latents=latents,
            batch_size=batch,
        )
        if latents:
            trajectory = save({"latents": torch.stack(latents)})
            write_atomically(folder / "latents" / f"{job.id}.safetensors", trajectory)
        files = media.encode(pixels, model.get("fps"))
        for suffix, data in files.items():
            write_atomically(folder / "samples" / f"{job.id}{suffix}", data)
        record = Record(
            id=job.id,
            prompt_index=job.prompt_index,
            prompt=job.prompt,
            seed=job.seed,
            sample=f"samples/{job.id}{next(iter(files))}",
            model=model["name"],
            num_inference_steps=steps,
            **cfg["labels"],
            **figures,
            **environment(device, torch.get_num_threads()),
        )
        save_record(folder, record)
        yield record


def prepare(pipe, runtime: dict) -> None:
    """Compile the denoiser's blocks or choose its attention, as the configuration says.

    Raises:
        UserError: this denoiser, or this machine, cannot.
    """
    from .cache import denoisers

    for denoiser in denoisers(pipe).values():
        try:
            if runtime["attention"] is not None:
                denoiser.set_attention_backend(runtime["attention"])
            if runtime["compile"]:
                denoiser.compile_repeated_blocks()
        except (AttributeError, ValueError, RuntimeError) as error:
            raise UserError(f"runtime: {type(denoiser).__name__}: {error}") from None
