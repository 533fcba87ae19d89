"""Coefficients learned by gradient through the whole sample, at Hindcast's steps: the way of Bespoke Non-Stationary
solvers (arXiv:2403.01329) and S4S (arXiv:2502.17423). Of these only the idea is taken: the solver's coefficients are
free, and the logarithm of the last latent's squared error is minimised.
"""

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.propagation import watch
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.solver import SchedulerSite
from spectrum_bench.forecasters import reuse
from spectrum_bench.lab.hindcast import algorithm, error_db
from spectrum_bench.lab.traces import Reference, halves
from spectrum_bench.lab.uncached import Uncached
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.sampler import Latents
from spectrum_bench.schedules import mask

Floats = NDArray[np.float64]
ITERATIONS = 20


@dataclass(frozen=True)
class Learning(SchedulerSite):
    """As FittedSolver, with coefficients that gradients reach: those of all gaps, 2 + 3 + .. numbers, in one vector."""

    coefficients: Tensor

    def attach_scheduler(self, scheduler: Any, session: Session, undo: ExitStack) -> None:
        rows: list[Tensor] = []

        def advance(output: Tensor, latent: Tensor, following: Tensor) -> Tensor:
            if not rows:
                rows.append(latent)
            if session.step in session.computed_steps:
                rows.append(output)
            if not session.ends_gap:
                return following
            first = (len(rows) + 1) * (len(rows) - 2) // 2
            coefficients = self.coefficients[first : first + len(rows)].to(rows[0].device)
            combined: Tensor = torch.tensordot(coefficients, torch.stack(rows), 1)
            return combined

        watch(scheduler, lambda: None, advance, undo)


@dataclass(frozen=True)
class WithGradients:
    """A pipeline whose call keeps gradients."""

    pipe: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipe, name)

    def __call__(self, **arguments: Any) -> Any:
        call = inspect.unwrap(type(self.pipe).__call__)  # below diffusers' torch.no_grad, and whatever is around that
        return call(self.pipe, **arguments)


def learn(
    model: Uncached,
    steps: Sequence[int],
    start: Sequence[Sequence[float]],
    jobs: Sequence[Job],
    traces: Sequence[Reference],
) -> list[list[float]]:
    """The coefficients by L-BFGS over one half of the jobs; those of the iteration with the smallest error on the other
    half, because later ones follow the first half alone. An iteration takes some three passes' time for each computed
    step and prompt of the first half, and one for the second."""
    for each in model.pipe.components.values():
        if isinstance(each, torch.nn.Module):
            each.requires_grad_(False)  # gradients reach the coefficients through the weights, and need none of them
    learning = Uncached(WithGradients(model.pipe), model.num_steps, model.arguments)
    (known, held_out), (of_known, of_held_out) = halves(jobs), halves(traces)
    print(f"gradients: the time of some {3 * ITERATIONS * len(known) * len(steps)} network passes", flush=True)
    iterates = [np.concatenate([np.asarray(row) for row in start])]
    minimize(
        lambda flat: loss(learning, steps, known, of_known, flat),
        iterates[0],
        jac=True,
        method="L-BFGS-B",
        callback=lambda flat: iterates.append(flat.copy()),
        options={"maxiter": ITERATIONS},
    )
    lengths = np.cumsum([len(row) for row in start])[:-1]
    found = [[row.tolist() for row in np.split(each, lengths)] for each in iterates]
    errors = [error_db(model, algorithm(steps, each), held_out, of_held_out) for each in found]
    best = int(np.argmin(errors))
    print(f"iteration {best} of {len(found) - 1}: error on held-out prompts {errors[best]:.2f} dB", flush=True)
    return found[best]


def loss(
    model: Uncached, steps: Sequence[int], jobs: Sequence[Job], traces: Sequence[Reference], flat: Floats
) -> tuple[float, Floats]:
    """The mean logarithm of the last latent's squared error, and its gradient."""
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller has switched off
        coefficients = torch.tensor(flat, dtype=torch.float32, requires_grad=True)
        method = Algorithm("learning", partial(mask, steps=list(steps)), reuse, Learning(coefficients))
        total = 0.0
        for job, reference in zip(jobs, traces, strict=True):
            latents = Latents()
            model.sampler(method).watch(job, [latents])
            wrong = latents.steps[-1].flatten() - torch.from_numpy(reference.latents[-1]).float()
            error = wrong.square().mean().log() / len(jobs)
            error.backward()
            total += error.item()
    assert coefficients.grad is not None  # the pipeline has made steps
    return total, coefficients.grad.double().numpy()
