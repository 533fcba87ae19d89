"""budget: find the threshold with which an algorithm takes a number of network passes."""

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from spectrum_bench.checks import brief, is_number, whole
from spectrum_bench.commands.compose import build, resolved, settings_of
from spectrum_bench.commands.run import prepare
from spectrum_bench.errors import BadValue, UserError
from spectrum_bench.sampling.settings import RunSettings

PARTS = ("schedule.", "algo.", "site.")  # where a threshold may stand
LOW, HIGH = 1e-5, 1e3  # the range of thresholds for the search


def main(cfg: DictConfig) -> None:
    """Print the threshold as a word for text_to_image.py's command line.

    Raises:
        UserError: the algorithm has no threshold, or cannot come near the number of passes.
    """
    settings = settings_of(cfg)
    steps, target, key = settings.num_inference_steps, cfg.passes, cfg.key
    if not isinstance(key, str) or not key.startswith(PARTS) or not is_number(OmegaConf.select(cfg, key, default=None)):
        raise UserError(f"algo={cfg.algo.name} has no {brief(key)}: its passes follow from its own numbers")
    if not (is_number(target) and 1 <= target <= steps):
        raise BadValue(f"passes must be a number from 1 to num_inference_steps={steps}, not {brief(target)}")
    tries = whole("tries", cfg.tries, most=1000)
    from spectrum_bench.lab.budget import search

    value, taken = search(passes_by(cfg), target, LOW, HIGH, tries)
    if abs(taken - target) > max(1, 0.1 * target):
        raise UserError(
            f"algo={cfg.algo.name} comes no nearer to {target:g} passes than {taken:g}: see its other settings"
        )
    print(f"{key}={value:g}")


def passes_by(cfg: DictConfig) -> Callable[[float], float]:
    """A function from the threshold to the passes of a sample. A mask needs no weights for that."""
    from spectrum_bench.lab.budget import mean_passes
    from spectrum_bench.sampling.jobs import make_jobs
    from spectrum_bench.sampling.models import open_pipeline
    from spectrum_bench.sampling.shapes import takeovers_of
    from spectrum_bench.schedules import is_gate, plan

    pipe: Any = None
    jobs, starts = [], takeovers_of(settings_of(cfg).model, cfg.num_inference_steps)
    if is_gate(build(settings_of(cfg)).schedule):
        settings, prompts = prepare(cfg)
        pipe, _ = open_pipeline(settings)
        jobs = make_jobs(prompts.lines, settings.seed, {})

    def passes(threshold: float) -> float:
        settings = with_value(cfg, cfg.key, threshold)
        algorithm = build(settings)
        mask = plan(algorithm.schedule, settings.num_inference_steps, starts)
        taken = float(mask.sum()) if mask is not None else mean_passes(pipe, algorithm, settings, jobs)
        print(f"{cfg.key}={threshold:g}: {taken:g} passes", flush=True)
        return taken

    return passes


def with_value(cfg: DictConfig, key: str, value: float) -> RunSettings:
    """The settings with another value at a dotted key."""
    other = OmegaConf.create(resolved(cfg))
    OmegaConf.update(other, key, value)
    return RunSettings.from_config(resolved(other))
