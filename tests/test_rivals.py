"""Other solvers at Hindcast's steps: exact cases, and diffusers' scheduler run by itself."""

import diffusers
import numpy as np
import pytest
import torch
from helpers import recipe, settings

from spectrum_bench.caching.propagation import propagator
from spectrum_bench.commands.compose import build
from spectrum_bench.errors import BadValue, DoesNotFit
from spectrum_bench.lab import learned, rivals
from spectrum_bench.lab.hindcast import algorithm, error_db
from spectrum_bench.lab.traces import trace
from spectrum_bench.lab.uncached import Uncached
from spectrum_bench.sampling.identity import labels
from spectrum_bench.sampling.jobs import Job

STEPS = [0, 1, 4, 9, 15]
T = 20


def scheduler(kind):
    made = getattr(diffusers, kind)()
    made.set_timesteps(T)
    return made


def ends(coefficients, outputs):
    """The latents at the ends of the gaps, from x_0 = 1 and the outputs (T,)."""
    return [row[0] + np.dot(row[1:], outputs[STEPS[: gap + 1]]) for gap, row in enumerate(coefficients)]


@pytest.mark.parametrize("kind", ["FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize("solver", rivals.SOLVERS)
def test_outputs_that_do_not_change_are_integrated_exactly(kind, solver):
    """x = x_0 + v (sigma - sigma_0). The first gap has one output only: it is a step of Euler's or of DDIM."""
    given = scheduler(kind)
    sigmas = given.sigmas.double().numpy()
    coefficients = rivals.SOLVERS[solver](given, propagator(given), STEPS)
    expected = 1 + 0.7 * (sigmas[[*STEPS[1:], T]] - sigmas[0])
    assert np.allclose(ends(coefficients, np.full(T, 0.7)), expected, rtol=1e-4)


@pytest.mark.parametrize("order", [2, 3])
def test_adams_and_bashforth_follow_a_polynomial_of_their_degree(order):
    """Once there are outputs enough: from then on each gap adds what the scheduler's own steps add."""
    given = scheduler("EulerDiscreteScheduler")
    matrix, sigmas = propagator(given), given.sigmas.double().numpy()[:-1]
    for degree in (order - 1, order):
        real = (matrix @ np.append(1, sigmas**degree))[[*STEPS[1:], T]]
        wrong = (ends(rivals.adams(given, matrix, STEPS, order), sigmas**degree) - real) / np.abs(real).max()
        assert np.allclose(wrong[order - 1 :], wrong[order - 2], atol=1e-3) == (degree < order)


@pytest.mark.parametrize("kind", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_coefficients_of_diffusers_are_those_of_its_scheduler_in_use(kind):
    """All steps of a grid, with a denoiser that is not linear: the scheduler makes the same latents by itself."""
    own = getattr(diffusers, kind)(use_flow_sigmas=True, prediction_type="flow_prediction", final_sigmas_type="zero")
    own.set_timesteps(6)
    given = diffusers.FlowMatchEulerDiscreteScheduler()
    given.set_timesteps(6)
    given.sigmas = own.sigmas
    x, outputs, latents = torch.ones(1, 1, dtype=torch.float64), [], []
    for timestep in own.timesteps:
        outputs.append(x.sin())
        x = own.step(outputs[-1], timestep, x, return_dict=False)[0].double()
        latents.append(float(x))
    rows = rivals.of_diffusers(given, getattr(diffusers, kind), range(6))
    led = [row[0] + np.dot(row[1:], [float(v) for v in outputs[: len(row) - 1]]) for row in rows]
    assert np.allclose(led, latents, rtol=1e-4)


def test_other_schedulers_and_names_are_refused():
    with pytest.raises(DoesNotFit, match="and this is UniPCMultistepScheduler"):
        rivals.noise_levels(scheduler("UniPCMultistepScheduler"))
    with pytest.raises(BadValue, match="algo.coefficients=heun: take hindcast, adams2"):
        rivals.measure(None, [], "heun", STEPS)
    with pytest.raises(BadValue, match="calibrate algo=hindcast with as many passes first"):
        rivals.measure(None, [], "unipc", ())


def test_a_row_tells_whose_coefficients_it_has():
    given = settings("model=tiny-flux", "algo=hindcast", "algo.coefficients=unipc")
    same = settings("model=tiny-flux", "algo=hindcast")
    assert labels(given)["site"] == "FittedSolver(solver=unipc)" and labels(same)["site"] == "FittedSolver"
    assert np.array_equal(build(given).schedule(50), build(same).schedule(50))


@pytest.mark.parametrize("switched_off", [torch.no_grad, torch.inference_mode])
def test_the_gradient_of_the_loss_is_its_slope(random_pipe, switched_off):
    """Against differences of the loss, through a whole sample with skipped steps."""
    tiny, steps = Uncached(random_pipe, 6, dict(recipe("flux")["call"])), [0, 1, 4]
    jobs = [Job("one", 0, "a red ring", 3)]
    traces = [trace(tiny, job) for job in jobs]
    rows = rivals.adams(random_pipe.scheduler, traces[0].matrix, steps, 2)
    learning, flat = Uncached(learned.WithGradients(random_pipe), 6, tiny.arguments), np.concatenate(rows)
    with switched_off():  # by a caller
        value, gradient = learned.loss(learning, steps, jobs, traces, flat)
    size = np.square(traces[0].latents[-1]).mean()
    ended = error_db(tiny, algorithm(steps, rows), jobs, traces)  # by the site that runs the coefficients
    assert value == pytest.approx(np.log(size * 10 ** (ended / 10)), abs=1e-3)
    for i in (1, 4, len(flat) - 1):
        away = 1e-3 * np.eye(len(flat))[i]
        higher, lower = (learned.loss(learning, steps, jobs, traces, flat + d)[0] for d in (away, -away))
        assert gradient[i] == pytest.approx((higher - lower) / 2e-3, rel=0.05), i


def test_the_learned_coefficients_are_those_that_are_best_on_the_other_half(random_pipe, monkeypatch):
    monkeypatch.setattr(learned, "ITERATIONS", 3)
    tiny, steps = Uncached(random_pipe, 6, dict(recipe("flux")["call"])), [0, 1, 4]
    jobs = [Job("one", 0, "a red ring", 3), Job("two", 1, "a blue star", 4)]
    traces = [trace(tiny, job) for job in jobs]
    start = rivals.adams(random_pipe.scheduler, traces[0].matrix, steps, 2)
    found = learned.learn(tiny, steps, start, jobs, traces)
    errors = [error_db(tiny, algorithm(steps, each), jobs[1:], traces[1:]) for each in (start, found)]
    assert errors[1] < errors[0] and [len(row) for row in found] == [2, 3, 4]
