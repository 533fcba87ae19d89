"""Methods that decide on the way are compared at equal cost: which threshold gives how many passes."""

import math
from collections.abc import Callable

from omegaconf import DictConfig

from spectrum_bench.caching.algorithm import build
from spectrum_bench.errors import UserError
from spectrum_bench.paths import locate
from spectrum_bench.sampling.jobs import make_jobs, read_prompts
from spectrum_bench.sampling.models import identify, open_pipeline
from spectrum_bench.sampling.sampler import generate_all
from spectrum_bench.sampling.settings import check_aliases, checked
from spectrum_bench.schedules import plan


def search(passes: Callable[[float], float], target: float, low: float, high: float, tries: int) -> tuple[float, float]:
    """Bisection by the geometric mean: (value, passes) nearest to `target`, where passes fall as the value grows."""
    found = []
    for _ in range(tries):
        value = float(f"{math.sqrt(low * high):.3g}")
        if value in (low, high):
            break  # the passes jump over the target
        found.append((value, passes(value)))
        if abs(found[-1][1] - target) < 0.25:
            break
        low, high = (value, high) if found[-1][1] > target else (low, value)
    return min(found, key=lambda pair: abs(pair[1] - target))


def main(cfg: DictConfig) -> None:
    """Print the threshold as a word for text_to_image.py's command line.

    Raises:
        UserError: an algorithm without a threshold, or one that cannot come near so many passes.
    """
    check_aliases(cfg)
    plain = checked(cfg)
    steps, target, model = plain["num_inference_steps"], plain["passes"], plain["model"]
    *path, last = plain["key"].split(".")
    owner = plain
    for part in path:
        owner = owner.get(part) if isinstance(owner, dict) else None
    if not isinstance(owner, dict) or last not in owner:
        raise UserError(f"algo={cfg.algo.name} has no {plain['key']}: its passes follow from its own numbers")
    if not (isinstance(target, (int, float)) and 1 <= target <= steps):
        raise UserError(f"passes must be a number from 1 to num_inference_steps={steps}, not {target}")
    if not (isinstance(plain["tries"], int) and plain["tries"] > 0):
        raise UserError(f"tries must be a whole number of at least 1, not {plain['tries']}")
    algorithm = build(plain)
    pipe = None
    if plan(algorithm.schedule, steps) is None:
        prompts = read_prompts(locate(cfg.prompt_file), cfg.total_prompt_num)
        identify(model)
        pipe, _ = open_pipeline(plain)
        jobs = make_jobs(prompts, cfg.seed, {})

    def passes(threshold: float) -> float:
        owner[last] = threshold
        algorithm = build(plain)
        mask = plan(algorithm.schedule, steps)
        if mask is not None:
            taken = float(mask.sum())
        else:
            taken = sum(figures["nfe"] for _, figures in generate_all(pipe, jobs, algorithm, plain)) / len(jobs)
        print(f"{plain['key']}={threshold:g}: {taken:g} passes", flush=True)
        return taken

    value, taken = search(passes, target, 1e-5, 1e3, plain["tries"])
    if abs(taken - target) > max(1, 0.1 * target):
        raise UserError(
            f"algo={cfg.algo.name} comes no nearer to {target:g} passes than {taken:g}: see its other settings"
        )
    print(f"{plain['key']}={value:g}")
