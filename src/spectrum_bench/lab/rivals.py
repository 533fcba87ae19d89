"""Other solvers at Hindcast's steps, as coefficients of the same linear steps: x at the next computed step is
a x_0 + sum_i b_i v_i. They differ in where the coefficients come from, and in nothing else.

Adams and Bashforth's are fixed by the noise levels: the outputs of a gap are extrapolated by a polynomial in sigma.
Those of UniPC (arXiv:2302.04867) and DPM-Solver++ (arXiv:2211.01095) are read off diffusers' own schedulers, which are
linear too. Learned ones begin with Adams and Bashforth's of order 2; see lab/learned.py.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

from spectrum_bench import checks
from spectrum_bench.caching.propagation import Matrix, propagator
from spectrum_bench.errors import BadValue, DoesNotFit
from spectrum_bench.lab.hindcast import algorithm, error_db, rounded
from spectrum_bench.lab.learned import learn
from spectrum_bench.lab.traces import seeded, trace
from spectrum_bench.lab.uncached import Uncached
from spectrum_bench.sampling.jobs import Job

Floats = NDArray[np.float64]
Coefficients = list[list[float]]
LARGEST_SIGMA = 1 - 1e-6  # of a flow: at 1 the signal has no logarithm; diffusers' own bound


def adams(scheduler: Any, matrix: Matrix, steps: Sequence[int], order: int) -> Coefficients:
    """The explicit method of Adams and Bashforth: each skipped output is the polynomial of degree `order` - 1 in sigma
    through the newest computed outputs, and the latent is what the scheduler's matrix makes of all of them.

    Args:
        scheduler: the pipeline's, as a sample has left it.
        matrix: its matrix; see caching/propagation.py.
    """
    sigmas = noise_levels(scheduler)
    T, coefficients = len(matrix) - 1, Coefficients()
    weights = np.zeros((T, len(steps)))
    for step in range(T):
        known = [i for i, computed in enumerate(steps) if computed <= step][-order:]
        apart = sigmas[[steps[i] for i in known]] - sigmas[step]
        weights[step, known] = np.linalg.solve(np.vander(apart, increasing=True).T, np.eye(len(known))[0])
    for gap, end in enumerate([*steps[1:], T]):
        row = matrix[end]
        coefficients.append([float(row[0]), *(row[1:] @ weights)[: gap + 1].tolist()])
    return coefficients


def of_diffusers(scheduler: Any, kind: type[Any], steps: Sequence[int]) -> Coefficients:
    """Those of another scheduler of diffusers that makes one step of each gap, of order 2."""
    sigmas = noise_levels(scheduler)[[*steps, -1]]
    flow = is_flow(scheduler)
    prediction = "flow_prediction" if flow else "epsilon"
    other = kind(solver_order=2, use_flow_sigmas=flow, prediction_type=prediction, final_sigmas_type="zero")
    other.set_timesteps(len(steps))
    other.set_begin_index(0)
    other.sigmas = torch.from_numpy(np.minimum(sigmas, LARGEST_SIGMA) if flow else sigmas)
    rows = propagator(other)
    if not flow:  # these hold x / sqrt(1 + sigma^2), Euler's scheduler holds x
        size = np.sqrt(1 + sigmas**2)
        rows *= size[:, None]
        rows[:, 0] /= size[0]
    return [rows[gap + 1, : gap + 2].tolist() for gap in range(len(steps))]


def noise_levels(scheduler: Any) -> Floats:
    """sigma before every step and after the last one, (T + 1,).

    Raises:
        DoesNotFit: the scheduler is not Euler's, so that another solver would not start from the same latents.
    """
    if type(scheduler).__name__ not in ("FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler"):
        raise DoesNotFit(f"other solvers are compared with Euler's steps, and this is {type(scheduler).__name__}")
    if not is_flow(scheduler) and scheduler.config.prediction_type != "epsilon":
        raise DoesNotFit("other solvers are compared where the denoiser predicts noise or a flow's velocity")
    sigmas: Floats = scheduler.sigmas.double().cpu().numpy()
    return sigmas


def is_flow(scheduler: Any) -> bool:
    return type(scheduler).__name__.startswith("FlowMatch")


# From a pipeline's scheduler, its matrix and the computed steps.
SOLVERS: dict[str, Callable[[Any, Matrix, Sequence[int]], Coefficients]] = {
    "adams2": partial(adams, order=2),
    "adams3": partial(adams, order=3),
    "unipc": lambda scheduler, _, steps: of_diffusers(scheduler, diffusers.UniPCMultistepScheduler, steps),
    "dpmpp": lambda scheduler, _, steps: of_diffusers(scheduler, diffusers.DPMSolverMultistepScheduler, steps),
}


def measure(model: Uncached, jobs: Sequence[Job], solver: str, steps: Sequence[int]) -> dict[str, Any]:
    """A solver's coefficients at Hindcast's steps, and its error on the jobs.

    Raises:
        BadValue: there is no such solver, or Hindcast's steps are not known.
    """
    if solver not in (*SOLVERS, "learned"):
        raise BadValue(f"algo.coefficients={checks.brief(solver)}: take hindcast, {', '.join(SOLVERS)}, learned")
    if not steps:
        raise BadValue("other solvers take Hindcast's steps: calibrate algo=hindcast with as many passes first")
    jobs = seeded(jobs)
    if len(model.starts) > 1:
        raise DoesNotFit(
            "other solvers' coefficients reach across the step at which a second network takes over: take "
            "algo.coefficients=hindcast"
        )
    traces = [trace(model, job) for job in jobs]
    fixed = SOLVERS["adams2" if solver == "learned" else solver](model.pipe.scheduler, traces[0].matrix, steps)
    coefficients = learn(model, steps, fixed, jobs, traces) if solver == "learned" else fixed
    error = error_db(model, algorithm(steps, coefficients), jobs, traces)
    print(f"{solver}: error {error:.2f} dB")
    return {
        "passes": len(steps),
        "error_db": round(error, 2),
        "mask": list(steps),
        "coefficients": rounded(coefficients),
    }
