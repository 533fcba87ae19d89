"""The scheduler as a matrix, sites that correct the latent through it, and Hindcast's fit and search."""

import itertools
import re
from contextlib import suppress
from functools import partial

import diffusers
import numpy as np
import pytest
import torch
from helpers import composed, made_up_sample, recipe, sample, settings

from spectrum_bench.caching.algorithm import NOCACHE, Algorithm
from spectrum_bench.caching.history import History
from spectrum_bench.caching.propagation import propagator
from spectrum_bench.caching.session import cached
from spectrum_bench.caching.sites.solver import FittedSolver, Solver, estimates, keep
from spectrum_bench.commands import run
from spectrum_bench.commands.compose import build
from spectrum_bench.errors import DoesNotFit, UserError
from spectrum_bench.forecasters import hindsight
from spectrum_bench.lab import finished, hindcast, search, traces
from spectrum_bench.lab.uncached import Uncached
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.models import load_pipeline
from spectrum_bench.sampling.sampler import Latents
from spectrum_bench.schedules import full, mask

MINIATURES = ["flux", "sd3", "sdxl", "wan", "hunyuan"]
JOB = Job("one", 0, "a large red ring on a gray background", 3)
T = 12


def model(pipe, name, steps=T):
    return Uncached(pipe, steps, dict(recipe(name)["call"]))


@pytest.mark.parametrize("name", MINIATURES)
def test_the_matrix_leads_to_the_pipelines_own_latents(random_pipes, name):
    """At every step, for each miniature's scheduler: Euler, flow matching, and UniPC with its corrector."""
    pipe, guided, latents = random_pipes(name), traces.Guided(), Latents()
    model(pipe, name).sampler(NOCACHE).watch(JOB, [guided, latents])
    led = guided.matrix @ np.array(guided.rows)
    for x, real in zip(led[1:], latents.steps, strict=True):
        real = real.flatten().numpy()
        assert np.abs(x - real).max() < 2e-5 * np.abs(real).max()
    assert "step" not in vars(pipe.scheduler)


def test_the_matrix_of_flow_matching_is_eulers():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(5)
    steps = np.diff(scheduler.sigmas.numpy())
    expected = np.hstack([np.ones((6, 1)), np.tril(np.tile(np.append(steps, 0), (6, 1)), -1)[:, :5]])
    assert np.allclose(propagator(scheduler), expected, atol=1e-6)


class Elsewhere(torch.Tensor):
    """Stands in for a tensor on a GPU: it is copied, measured and brought to the CPU, and does not mix with others."""

    def __deepcopy__(self, memo):
        return self

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func not in (torch.Tensor.cpu, torch.Tensor.__len__):
            raise RuntimeError("expected all tensors to be on the same device")
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            return result.as_subclass(torch.Tensor) if func is torch.Tensor.cpu else result


@pytest.mark.parametrize("kind", ["FlowMatchEulerDiscrete", "UniPCMultistep", "EulerDiscrete"])
def test_a_scheduler_that_lies_on_a_gpu_is_read_on_the_cpu(kind):
    scheduler = getattr(diffusers, f"{kind}Scheduler")()
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(0)
    expected = propagator(scheduler)
    tensors = {name: each for name, each in vars(scheduler).items() if isinstance(each, torch.Tensor)}
    vars(scheduler).update({name: each.as_subclass(Elsewhere) for name, each in tensors.items()})
    assert np.array_equal(propagator(scheduler), expected)
    assert type(scheduler.timesteps) is Elsewhere


@pytest.mark.parametrize("kind", ["EulerAncestralDiscreteScheduler", "DDPMScheduler", "LCMScheduler"])
def test_a_scheduler_that_draws_noise_is_refused(kind):
    scheduler = getattr(diffusers, kind)()
    scheduler.set_timesteps(6)
    with pytest.raises(DoesNotFit, match=f"{kind} draws noise or is not linear"):
        propagator(scheduler)


def test_latents_may_change_their_dtype():
    """As HunyuanVideo's do in bfloat16: the first latent is float32, and the scheduler makes bfloat16 of it."""
    rows = History()
    for step in range(3):
        latent = torch.full((1, 4), 1.0 + step, dtype=torch.float32 if step == 0 else torch.bfloat16)
        keep(rows, torch.full((1, 4), 0.5, dtype=torch.bfloat16), latent)
    assert rows.dtype == torch.float32 and len(rows) == 4


def test_outputs_behind_are_interpolated_and_outputs_ahead_reused():
    weights = estimates(hindsight, [0, 2, 5], 7)
    assert np.allclose(weights[[0, 2, 5]], np.eye(3))
    assert np.allclose(weights[[1, 3, 6]], [[0.5, 0.5, 0], [0, 2 / 3, 1 / 3], [0, 0, 1]])


@pytest.mark.parametrize("name", ["flux", pytest.param("wan", marks=pytest.mark.slow)])
def test_a_skipped_step_runs_nothing_and_the_latent_follows_the_definition(random_pipes, name):
    """Against the definition in float64: v~ = interpolated outputs, x = A [x_0, v~]. Wan has two calls a step."""
    pipe, steps = random_pipes(name), [0, 3, 4, 9]
    guided, latents = traces.Guided(), Latents()
    algorithm = Algorithm("x", partial(mask, steps=steps), hindsight, Solver())
    _, figures = model(pipe, name).sampler(algorithm).sample(JOB, [guided, latents])
    assert figures.computed_steps == steps
    x_0, *outputs = guided.rows
    for s in range(T):
        known = [i for i, k in enumerate(steps) if k <= s]
        times = [steps[i] for i in known]
        v = [np.sum([np.interp(r, times, np.eye(len(times))[i]) * outputs[i] for i in known], axis=0) for r in range(T)]
        expected = guided.matrix[s + 1] @ np.array([x_0, *v])
        assert np.abs(latents.steps[s].flatten().numpy() - expected).max() < 2e-5 * np.abs(expected).max()
    assert figures.cache_bytes >= 5 * latents.steps[0].nbytes


@pytest.mark.parametrize("name", ["flux", pytest.param("wan", marks=pytest.mark.slow)])
def test_never_skipped_is_the_plain_pipeline_and_nothing_stays(random_pipes, name):
    pipe, forward = random_pipes(name), random_pipes(name).transformer.forward
    plain = sample(pipe, name)
    for attempt in range(2):
        with cached(pipe, schedule=full, forecaster=hindsight, site=Solver(), num_steps=6) as session:
            assert torch.equal(sample(pipe, name, callback=session.callback), plain), attempt
        assert "step" not in vars(pipe.scheduler) and pipe.transformer.forward == forward
        skipping = partial(mask, steps=[0, 2])
        with cached(pipe, schedule=skipping, forecaster=hindsight, site=Solver(), num_steps=6) as session:
            assert not torch.equal(sample(pipe, name, callback=session.callback), plain)


# ---------------------------------------------------------------------------------------------------------------------
# Search and fit


@pytest.fixture
def problem():
    return made_up_sample()


def test_gap_errors_are_those_of_least_squares(problem):
    basis, matrix = problem
    steps, latents = [0, 2, 5], matrix @ basis
    errors = search.gap_errors(basis @ basis.T / 300, matrix, steps)
    for gap, end in enumerate([2, 5, 8]):
        rows = basis[[0, *(1 + s for s in steps[: gap + 1])]]
        residual = np.linalg.lstsq(rows.T, latents[end], rcond=None)[1][0] / 300
        assert errors[gap] == pytest.approx(residual, rel=1e-4)


@pytest.mark.parametrize("kind", search.IMPORTANCE)
def test_the_search_finds_the_best_mask(problem, kind):
    basis, matrix = problem
    gram, weight = basis @ basis.T / 300, search.IMPORTANCE[kind](np.arange(9) / 8)

    def score(steps):
        return float((weight[[*steps[1:], 8]] * search.gap_errors(gram, matrix, list(steps))).sum())

    best = min(score((0, *rest)) for rest in itertools.combinations(range(1, 8), 3))
    assert score(search.for_solver(gram, matrix, 4, search.IMPORTANCE[kind])) == pytest.approx(best)


def test_a_fit_on_one_sample_follows_that_sample(random_pipe):
    """With 4 of 12 outputs a gap's fit is nearer to the reference's latent than the scheduler's own steps lead."""
    flux, steps = model(random_pipe, "flux"), [0, 2, 5, 8]
    references = [traces.trace(flux, JOB)]
    fitted = hindcast.algorithm(steps, hindcast.fit(flux, steps, [JOB], references))
    plain = Algorithm("x", partial(mask, steps=steps), hindsight, Solver())
    assert hindcast.error_db(flux, fitted, [JOB], references) < hindcast.error_db(flux, plain, [JOB], references)
    assert hindcast.cost(8, 14, 50, 4) == 8 * 50 + 4 * (4 * 105 + 4 * 14) + 8 * 105


def test_a_mask_that_is_given_is_not_searched(random_pipe):
    flux, jobs = model(random_pipe, "flux"), [JOB, Job("two", 1, "a small blue star on a navy background", 4)]
    found = hindcast.calibrate(flux, jobs, 4, given=[0, 2, 5, 8])
    assert (found["mask"], found["importance"]) == ([0, 2, 5, 8], "given")
    assert [len(row) for row in found["coefficients"]] == [2, 3, 4, 5]


@pytest.fixture
def killed_calibration(random_pipe, monkeypatch):
    """calibrate(kept, die_after) -> (its result, or None if it was killed; the network passes that it has run)."""
    tiny, jobs = model(random_pipe, "flux", 8), [JOB, Job("two", 1, "a small blue star on a navy background", 4)]
    run, passes = random_pipe.transformer.forward, []

    def calibrate(kept, die_after=None):
        def forward(*args, **kwargs):
            if len(passes) == die_after:
                raise KeyboardInterrupt
            passes.append(1)
            return run(*args, **kwargs)

        passes.clear()
        monkeypatch.setattr(random_pipe.transformer, "forward", forward)
        with suppress(KeyboardInterrupt):
            return hindcast.calibrate(tiny, jobs, 3, kept), len(passes)
        return None, len(passes)

    return calibrate


@pytest.mark.slow
def test_a_killed_calibration_goes_on_where_it_stopped(killed_calibration, tmp_path, capsys):
    """What follows a kill repeats the uncached samples, and the gap that was not finished."""
    whole, passes = killed_calibration(None)
    assert passes == 64 - 9  # two of the four masks are alike
    assert re.match(r"2 prompts: 64 network passes in all\nabout [\d.]+ minutes at", capsys.readouterr().out)
    path, samples = tmp_path / "kept.begun", 2 * 8
    done, died = killed_calibration(finished.Finished(path, {"of": (1, 2)}), die_after=passes - 3)
    kept = finished.Finished(path, {"of": (1, 2)})
    assert done is None and died == passes - 3 and samples + kept.passes <= died < samples + kept.passes + 6
    left = passes - kept.passes
    assert killed_calibration(kept) == (whole, left)
    assert not finished.Finished(path, {"of": "another model"}).parts
    path.write_text("{}")
    with pytest.raises(UserError, match="holds no finished parts .*: delete it"):
        finished.Finished(path)


@pytest.mark.slow
def test_the_shipped_coefficients_beat_what_needs_none():
    """On captions and seeds that nothing was fitted on, at fourteen passes."""
    given = settings("model=tiny-flux", "algo=hindcast")
    tiny = Uncached(load_pipeline(given.model, "cpu"), 50, dict(given.model.arguments))
    prompts = ["a large red ring on a gray background", "a small blue star on a navy background"]
    jobs = [Job(str(i), i, prompt, 70 + i) for i, prompt in enumerate(prompts)]
    references = [traces.trace(tiny, job) for job in jobs]
    words = ("algo=taylorseer site=last_block schedule=adaptive_window", "algo=hindsight", "algo=hindcast")
    errors = [hindcast.error_db(tiny, build(settings("model=tiny-flux", *w.split())), jobs, references) for w in words]
    assert errors[2] < min(errors[:2]) - 3


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["num_inference_steps=28"], "chosen for num_inference_steps=50: measure it with .*num_inference_steps=28"),
        (["algo.passes=13"], "no constants for hindcast with so many passes: measure it with"),
        (["schedule=uniform"], "use algo=hindcast"),
    ],
)
def test_outside_its_calibration_it_is_refused(words, reason):
    with pytest.raises(UserError, match=reason):
        build(settings("model=tiny-flux", "algo=hindcast", *words))


def test_constants_that_were_measured_otherwise_are_told(capsys):
    """Of any calibrated method: other numbers of steps and another guidance."""
    words = ["model=tiny-flux", "algo=magcache", "num_inference_steps=28", "model.arguments.guidance_scale=6"]
    run.warn_of_other_calibration(composed(*words), settings(*words))
    told = capsys.readouterr().err
    assert (
        "the constants of magcache were measured with steps 50, not 28: python src/calibrate.py algo=magcache" in told
    )
    assert "measured with guidance 3.5, not 6" in told


def test_damaged_coefficients_are_refused():
    algorithm = Algorithm("x", partial(mask, steps=[0, 1]), hindsight, FittedSolver([[1, 0], [1]], [0, 1]))
    with pytest.raises(UserError, match="coefficients of gap 1 must be 3 numbers"):
        algorithm.check(6)
