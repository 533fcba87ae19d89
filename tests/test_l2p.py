"""L2P: its weights beside NumPy's least squares, what is measured for them, and the site of the denoiser's output."""

from functools import partial

import numpy as np
import pytest
from helpers import MASK, STEPS, composed, recipe, run, settings

from spectrum_bench import forecasters, schedules
from spectrum_bench.caching.algorithm import NOCACHE, Algorithm
from spectrum_bench.caching.sites.output import Output
from spectrum_bench.commands.compose import build, settings_of
from spectrum_bench.errors import BadValue
from spectrum_bench.lab import l2p, traces
from spectrum_bench.lab.uncached import Uncached
from spectrum_bench.sampling.jobs import Job

pytestmark = pytest.mark.usefixtures("no_gradients")

T, D, KNOWN = 10, 60, [0, 1, 4, 6]


def outputs(rng, prompts=3):
    """Outputs that turn slowly, (prompts, T, D), each prompt's with a mean square of 1."""
    v = rng.standard_normal((prompts, 1, D)) + 0.2 * rng.standard_normal((prompts, T, D)).cumsum(1)
    return v / np.sqrt((v**2).mean((1, 2), keepdims=True))


def traced(v):
    """Traces whose x_0 is nothing."""
    grams = [np.pad(each @ each.T / D, (1, 0)) for each in v]
    return [traces.Trace(gram, np.eye(T + 1)) for gram in grams]


def test_the_weights_are_those_of_least_squares_over_all_prompts():
    v = outputs(np.random.default_rng(0))
    fitted = partial(forecasters.l2p, outputs=l2p.vectors(traced(v)), steps=T, ridge=0)
    for t in (7, 8, 9):
        stacked = np.concatenate(list(v), axis=1)  # (T, prompts D)
        expected = np.linalg.lstsq(stacked[KNOWN].T, stacked[t])[0]
        np.testing.assert_allclose(fitted(np.array(KNOWN, float), t), expected, atol=1e-5)
    damped = partial(forecasters.l2p, outputs=l2p.vectors(traced(v)), steps=T, ridge=1e6)
    assert np.abs(damped(np.array(KNOWN, float), 8)).max() < 1e-3


def test_no_other_weights_have_a_smaller_error_on_what_was_traced():
    v = outputs(np.random.default_rng(1))
    fitted = partial(forecasters.l2p, outputs=l2p.vectors(traced(v)), steps=T, ridge=0)
    rivals = {
        "reuse": forecasters.reuse,
        "taylor": partial(forecasters.taylor, order=1),
        "spectrum": partial(forecasters.spectrum, degree=2, ridge=0.1, blend=1.0, steps=T),
        "other": lambda times, t: fitted(times, t) + 0.01,
    }

    def error(forecaster, t):
        return ((forecaster(np.array(KNOWN, float), t) @ v[:, KNOWN] - v[:, t]) ** 2).mean()

    assert all(error(fitted, t) < error(each, t) for each in rivals.values() for t in (7, 8, 9))


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_what_is_measured_is_the_guided_outputs_inner_products(random_pipes, name):
    model = Uncached(random_pipes(name), 6, dict(recipe(name)["call"]))
    jobs = [Job("a", 0, "a red ring", 3), Job("b", 1, "a blue star", 3)]
    measured = l2p.calibrate(model, jobs, 3)
    rows = measured["outputs"]
    assert [len(row) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert measured["ridge"] == float(min(measured["held_out_errors_db"], key=measured["held_out_errors_db"].get))
    expected = []
    for seed, job in zip((3, 4), jobs, strict=True):  # a seed of its own each
        guided = traces.Guided()
        model.sampler(NOCACHE).watch(Job(job.id, 0, job.prompt, seed), [guided])
        v = np.array(guided.rows[1:])
        expected.append(v @ v.T / (v**2).sum(1).mean())
    V = np.array([row + [0.0] * (6 - len(row)) for row in rows])
    np.testing.assert_allclose(V @ V.T, np.mean(expected, 0), atol=1e-5)


@pytest.mark.parametrize("name", ["flux", "sd3", "sdxl", "wan", "hunyuan"])
def test_a_skipped_step_gives_the_scheduler_the_weighted_outputs(random_pipes, name):
    """Of both guidance branches alike, so that the guided output is the same sum of the guided outputs."""
    pipe, guided = random_pipes(name), traces.Guided(skipped=True)
    halved = lambda times, t: 0.5 * np.eye(len(times))[-1] + 0.25 * np.eye(len(times))[0]  # noqa: E731
    model = Uncached(pipe, STEPS, dict(recipe(name)["call"]))
    algorithm = Algorithm("x", partial(schedules.mask, steps=[0, 1, 3]), halved, Output())
    model.sampler(algorithm).watch(Job("a", 0, "a red ring", 3), [guided])
    _, v0, v1, v2, v3, v4, v5 = guided.rows
    for skipped, newest in ((v2, v1), (v4, v3), (v5, v3)):
        np.testing.assert_allclose(skipped, 0.5 * newest + 0.25 * v0, atol=1e-4 * np.abs(v0).max())


def test_both_guidance_calls_have_a_history_of_outputs(random_pipes):
    _, session = run(random_pipes("wan"), "wan", Output(), MASK, forecasters.reuse)
    assert len(session.branches) == 2
    assert all(list(branch.histories) == ["output"] for branch in session.branches.values())


def test_a_model_without_constants_and_another_number_of_steps_are_refused():
    with pytest.raises(BadValue, match="no constants for l2p yet: measure them with .*calibrate.py algo=l2p"):
        build(settings("algo=l2p", "model=flux"))
    with pytest.raises(BadValue, match="fitted for num_inference_steps=50: .*num_inference_steps=28 fits others"):
        build(settings("algo=l2p", "model=tiny-flux", "num_inference_steps=28"))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny-flux", "tiny-sd3", "tiny-sdxl", "tiny-wan", "tiny-hunyuan"])
def test_every_miniature_has_constants_for_any_mask(model):
    for word, passes in {"algo.passes=14": 14, "algo.passes=7": 7, "schedule=published/l2p_flux_6": 6}.items():
        algorithm = build(settings_of(composed("algo=l2p", f"model={model}", word)))
        assert len(algorithm.computed_steps(50, [0]) or []) == passes
