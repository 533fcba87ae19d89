"""Settings of a method under a pass budget: what one trial of a sweep is worth."""

import json
from functools import lru_cache

from omegaconf import DictConfig

from spectrum_bench.caching.algorithm import Algorithm, build
from spectrum_bench.errors import NotFinite, UserError
from spectrum_bench.forecasters import reuse
from spectrum_bench.paths import locate
from spectrum_bench.sampling.jobs import Job, make_jobs, read_prompts
from spectrum_bench.sampling.models import identify, open_pipeline
from spectrum_bench.sampling.run import describe
from spectrum_bench.sampling.sampler import generate_all
from spectrum_bench.sampling.settings import check_aliases, checked, labels
from spectrum_bench.schedules import full
from spectrum_bench.scoring.metrics.pixel import psnr


def main(cfg: DictConfig) -> float:
    """Mean PSNR in dB against the uncached samples of the same prompts, of a trial that takes no more than `passes` on
    average; what it takes more, below zero, of one that does, so that a search finds its way back.

    Raises:
        UserError: bad values, or an algorithm that does not fit the model.
    """
    check_aliases(cfg)
    plain = checked(cfg)
    if not isinstance(plain["passes"], (int, float)) or plain["passes"] < 1:
        raise UserError(f"passes must be a number of at least 1, not {plain['passes']}")
    algorithm = build(plain)
    prompts = read_prompts(locate(cfg.prompt_file), cfg.total_prompt_num)
    jobs = make_jobs(prompts, cfg.seed, {})
    kept = {key: plain[key] for key in ("model", "device", "threads", "num_inference_steps")}
    kept["weights"] = identify(plain["model"])
    pipe, references = reference_samples(json.dumps(kept), tuple(jobs))
    try:
        samples, figures = zip(*generate_all(pipe, jobs, algorithm, plain), strict=True)
    except NotFinite:
        return -plain["num_inference_steps"]  # as bad as can be; the search goes on
    passes = sum(f["nfe"] for f in figures) / len(jobs)
    quality = sum(map(psnr, samples, references)) / len(jobs)
    value = quality if passes <= plain["passes"] else plain["passes"] - passes
    words = describe(algorithm, plain | {"labels": labels(plain)}).split("\n")[0]
    print(f"{words}: {passes:g} passes, {quality:.2f} dB" + ("" if value == quality else ", too many"), flush=True)
    return value


@lru_cache(1)
def reference_samples(kept: str, jobs: tuple[Job, ...]) -> tuple:
    """(pipeline, uncached samples), made once for all trials of a process."""
    cfg = json.loads(kept)
    pipe, _ = open_pipeline(cfg)
    plain = Algorithm("nocache", full, reuse, None)
    return pipe, [sample for sample, _ in generate_all(pipe, jobs, plain, cfg)]
