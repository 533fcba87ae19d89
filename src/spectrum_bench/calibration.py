"""What a model must be measured for before a gate can run on it."""

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from .cache import cached
from .cli import check_values
from .jobs import UserError, make_jobs, read_prompts
from .models import identify, load_pipeline, locate
from .sites import LastBlock


class _Recorder:
    """A gate that computes every step and keeps the changes it was shown."""

    def __init__(self):
        self.changes: list[float] = []

    def start(self, T: int):
        def decide(step: int, change: float) -> bool:
            self.changes.append(change)
            return True

        return decide


def changes(pipe, prompt: str, seed: int, num_steps: int, arguments: dict) -> tuple[np.ndarray, np.ndarray]:
    """Relative L1 changes from each step to the next, (T - 1,) each: of the timestep-modulated input and of the block
    stack's output, along one uncached trajectory."""
    signal = _Recorder()
    keep_all = lambda times, t: np.ones(len(times))  # noqa: E731
    with cached(pipe, schedule=signal, forecaster=keep_all, site=LastBlock(), num_steps=num_steps) as session:
        generator = torch.Generator().manual_seed(seed)
        pipe(
            prompt,
            num_inference_steps=num_steps,
            generator=generator,
            callback_on_step_end=session.callback,
            **arguments,
        )
    rows = [row.float() for row in session.branch.buffers["stack"].rows]
    output = [float((b - a).abs().mean() / a.abs().mean()) for a, b in zip(rows, rows[1:], strict=False)]
    return np.array(signal.changes[1:]), np.array(output)


def fit_polynomial(x: np.ndarray, y: np.ndarray, degree: int = 4) -> tuple[list[float], float]:
    """Least-squares polynomial, highest power first, and its R^2 (TeaCache, arXiv:2411.19108, section 3.3)."""
    polynomial = np.polyfit(x, y, degree)
    r2 = 1 - np.sum((np.polyval(polynomial, x) - y) ** 2) / np.sum((y - y.mean()) ** 2)
    return [float(c) for c in polynomial], float(r2)


def main(cfg: DictConfig) -> None:
    """Fit TeaCache's polynomial for a model and print the line for its YAML.

    Raises:
        UserError: R^2 below 0.8, when the signal does not tell how far the output moves.
    """
    check_values(cfg)
    plain = OmegaConf.to_container(cfg, resolve=True)
    model, steps = plain["model"], cfg.num_inference_steps
    prompts = read_prompts(locate(cfg.prompt_file), cfg.total_prompt_num)
    identify(model)
    device = cfg.device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(cfg.threads)
    pipe = load_pipeline(model, device)
    pairs = [changes(pipe, j.prompt, j.seed, steps, model["arguments"]) for j in make_jobs(prompts, cfg.seed, {})]
    x, y = (np.concatenate(side) for side in zip(*pairs, strict=True))
    polynomial, r2 = fit_polynomial(x, y, cfg.degree)
    print(f"{len(prompts)} prompts x {steps} steps: input changes {x.min():.4f} to {x.max():.4f}, R^2 = {r2:.3f}")
    if r2 < 0.8:
        raise UserError(f"R^2 = {r2:.3f} is below 0.8: this signal does not predict the output of {model['name']}")
    print(f"put this line below teacache in configs/model/{model['name']}.yaml:")
    print(f"  polynomial: [{', '.join(f'{c:.8e}' for c in polynomial)}]")
