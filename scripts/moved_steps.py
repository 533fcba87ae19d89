"""What would Hindcast gain by better steps? Each of its steps is moved in closed loop: along the 50, then between them.

    python scripts/moved_steps.py tiny-flux 14 moved.csv   # appends a line for each kind of move; minutes of a core
    python scripts/moved_steps.py tiny-sd3 10 moved.csv

Coefficients are fitted on captions 1 to 16 of prompts/shapes_dev32.txt, a move is kept if it lowers the error on
captions 17 to 32, and captions 1 to 16 of prompts/shapes_test.txt are only measured. All captions run in one batch, by
Euler's method in this file, whose uncached latents must be the pipeline's. It knows the miniatures of FLUX and SD3.5.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from spectrum_bench.commands.compose import read_calibration  # noqa: E402
from spectrum_bench.commands.entry import settings_from  # noqa: E402
from spectrum_bench.lab.hindcast import RIDGE  # noqa: E402
from spectrum_bench.sampling.models import load_pipeline  # noqa: E402
from spectrum_bench.sampling.prompts import read_prompt_file  # noqa: E402
from spectrum_bench.scoring.stats import interval  # noqa: E402

T = 50
FITTED, CHOOSING, UNSEEN = slice(0, 16), slice(16, 32), slice(32, 48)
APART = 0.2  # steps, the least between two times
LEAST = 0.005  # dB, of a move that is kept


@dataclass
class Model:
    """A miniature with the captions of this study.

    Attributes:
        output: the guided output at a latent and a noise level.
        sigmas: the noise levels of the T steps and 0.
        latents: (T + 1, P, ...) of the uncached samples.
    """

    output: Callable[[Tensor, float], Tensor]
    sigmas: np.ndarray
    latents: Tensor

    def at(self, time: float) -> tuple[Tensor, float]:
        """The uncached latents and the noise level between two steps: Euler's method moves on a straight line."""
        step = min(int(time), T - 1)
        share = time - step
        levels = self.sigmas[step : step + 2]
        return torch.lerp(*self.latents[step : step + 2], share), float((1 - share) * levels[0] + share * levels[1])

    def errors(self, latents: Tensor, captions: slice) -> np.ndarray:
        """The squared error of the last latents relative to their size, in dB, of each caption."""
        wrong, right = (each[captions].double().flatten(1) for each in (latents - self.latents[-1], self.latents[-1]))
        return (10 * torch.log10(wrong.square().sum(1) / right.square().sum(1))).numpy()


@dataclass
class Walk:
    """Samples of all captions that compute the outputs at `times` alone. `latents` has one more: the last."""

    times: list[float]
    latents: list[Tensor]
    outputs: list[Tensor] = field(default_factory=list)


def walk(model: Model, times: list[float], before: Walk | None = None, kept: int = 0) -> Walk:
    """Fit each gap in closed loop and make its step. The first `kept` times are those of the walk `before`."""
    start = model.latents[0]
    made = Walk(times, [start]) if before is None else Walk(times, before.latents[: kept + 1], before.outputs[:kept])
    for gap in range(kept, len(times)):
        made.outputs.append(model.output(made.latents[gap], model.at(times[gap])[1]))
        rows = torch.stack([start, *made.outputs]).double()  # (K + 1, P, ...)
        target = model.at([*times, float(T)][gap + 1])[0]
        known = rows[:, FITTED].flatten(1)
        gram = known @ known.T
        gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram))
        weights = torch.linalg.solve(gram, known @ target[FITTED].double().flatten())
        made.latents.append(torch.tensordot(weights, rows, 1).float())
    return made


def moved(model: Model, best: Walk, sizes: tuple[float, ...], kind: str) -> Walk:
    """Move one time after another by each of the sizes, forwards or backwards, as long as that lowers the error."""
    lowest = model.errors(best.latents[-1], CHOOSING).mean()
    for size in sizes:
        improved = True
        while improved:
            improved = False
            for place in range(1, len(best.times)):
                for time in (best.times[place] + size, best.times[place] - size):
                    times = [*best.times[:place], time, *best.times[place + 1 :], float(T)]
                    if min(np.diff(times)) < APART:
                        continue
                    found = walk(model, times[:-1], best, place - 1)
                    error = model.errors(found.latents[-1], CHOOSING).mean()
                    if error < lowest - LEAST:
                        best, lowest, improved = found, error, True
            print(f"{kind}, by {size:g}: {lowest:.2f} dB at {' '.join(f'{t:g}' for t in best.times)}", flush=True)
    return best


def open_model(name: str) -> Model:
    """A miniature with its 48 captions, each with a seed of its own.

    Raises:
        AssertionError: Euler's method does not lead to the pipeline's latents.
    """
    settings = settings_from("base", [f"model={name}"])
    pipe, arguments = load_pipeline(settings.model, "cpu"), dict(settings.model.arguments)
    pipe.set_progress_bar_config(disable=True)
    captions = [
        (line.text, seed + i)
        for prompts, count, seed in (("shapes_dev32", 32, 100), ("shapes_test", 16, 5000))
        for i, line in enumerate(read_prompt_file(ROOT / f"prompts/{prompts}.txt").lines[:count])
    ]
    asked: list[dict[str, Any]] = []
    look = pipe.transformer.register_forward_pre_hook(lambda _, __, given: asked.append(given), with_kwargs=True)
    generators = [torch.Generator().manual_seed(seed) for _, seed in captions]
    texts = [text for text, _ in captions]
    last = pipe(texts, num_inference_steps=T, generator=generators, output_type="latent", **arguments)[0]
    look.remove()
    given = {key: value for key, value in asked[0].items() if key not in ("hidden_states", "timestep")}
    thousand = 1000.0 if asked[0]["timestep"].max() > 1 else 1.0
    both = len(asked[0]["timestep"]) == 2 * len(captions)

    def output(latents: Tensor, sigma: float) -> Tensor:
        twice = torch.cat([latents] * (2 if both else 1))
        out = pipe.transformer(hidden_states=twice, timestep=torch.full((len(twice),), sigma * thousand), **given)[0]
        if not both:
            return out
        plain, worded = out.chunk(2)
        return plain + arguments["guidance_scale"] * (worded - plain)

    sigmas = pipe.scheduler.sigmas.double().numpy()
    latents = [asked[0]["hidden_states"][: len(captions)]]
    for step in range(T):
        latents.append(latents[-1] + float(sigmas[step + 1] - sigmas[step]) * output(latents[-1], sigmas[step]))
    torch.testing.assert_close(latents[-1], last, rtol=0, atol=1e-4 * float(last.abs().max()))
    return Model(output, sigmas, torch.stack(latents))


def main(name: str, passes: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model = open_model(name)
    mask = read_calibration(ROOT / f"configs/calibration/hindcast/{passes}/{name}.json")["mask"]
    shipped = walk(model, [float(step) for step in mask])
    along = moved(model, shipped, (2.0, 1.0), "along the steps")
    between = moved(model, along, (0.5, 0.25), "between the steps")
    lines, before = [], None
    for kind, found in {"shipped": shipped, "along the steps": along, "between the steps": between}.items():
        times = " ".join(f"{time:g}" for time in found.times)
        line = {"kind": kind, "model": name, "passes": int(passes), "times": times}
        for where, captions in {"fitted": FITTED, "choosing": CHOOSING, "unseen": UNSEEN}.items():
            line[f"{where}_db"] = model.errors(found.latents[-1], captions).mean()
        errors = model.errors(found.latents[-1], UNSEEN)
        if before is not None:
            line["gain_db"] = (before - errors).mean()
            line["gain_low"], line["gain_high"] = interval(before - errors) or (None, None)
        before = errors
        lines.append(line)
    table = pd.DataFrame(lines)
    table.to_csv(out, mode="a", header=not Path(out).exists(), index=False, float_format="%.4g")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
