"""The correction of the latent as an option of every site."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import recipe, settings

from spectrum_bench.caching.algorithm import NOCACHE, Algorithm
from spectrum_bench.caching.sites.corrected import Corrected, Revised
from spectrum_bench.caching.sites.output import OutputResidual
from spectrum_bench.caching.sites.solver import Solver
from spectrum_bench.caching.sites.stack import LastBlock
from spectrum_bench.commands.compose import build
from spectrum_bench.errors import UserError
from spectrum_bench.forecasters import hindsight, reuse, taylor
from spectrum_bench.lab.traces import Guided
from spectrum_bench.lab.uncached import Uncached
from spectrum_bench.sampling.identity import identity, labels
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.sampler import Latents
from spectrum_bench.schedules import full, mask

JOB = Job("one", 0, "a large red ring on a gray background", 3)
T, STEPS = 12, [0, 1, 4, 9]


MASK, TAYLOR = partial(mask, steps=STEPS), partial(taylor, order=1)


def sampled(pipe, name, site, schedule=MASK, forecaster=TAYLOR):
    """The latents after each step, (T, D), and all guided outputs as the scheduler got them, x_0 in front."""
    every, latents = Guided(skipped=True), Latents()
    algorithm = Algorithm("x", schedule, forecaster, site)
    Uncached(pipe, T, dict(recipe(name)["call"])).sampler(algorithm).watch(JOB, [every, latents])
    return np.array([x.flatten().double().numpy() for x in latents.steps]), np.array(every.rows), every.matrix


@pytest.mark.parametrize(("strength", "guard"), [(0.5, 0.0), (1.0, 0.0), (1.0, 5.0)])
@pytest.mark.parametrize("name", ["flux", pytest.param("wan", marks=pytest.mark.slow)])
def test_the_latent_follows_the_definition(random_pipes, name, strength, guard):
    """In float64: v~_s = (1 - theta) v^_s + theta (line between the computed outputs), x = A [x_0, v~], and theta falls
    by what a correction takes back of the one before it. Wan has two calls a step and a scheduler with a memory."""
    site = Corrected(LastBlock(), strength, guard)
    latents, (x_0, *outputs), matrix = sampled(random_pipes(name), name, site)
    revised, applied = list(outputs), None
    for s in range(T):
        for before, behind in zip(STEPS, STEPS[1:], strict=False):
            between = range(before + 1, behind) if behind == s else ()
            slope = (outputs[behind] - outputs[before]) / (behind - before) if between else 0
            moved = {r: outputs[before] + (r - before) * slope - outputs[r] for r in between}
            correction = sum(matrix[s, r + 1] * each for r, each in moved.items())
            back = -correction @ applied / (applied @ applied) if between and applied is not None else 0.0
            theta = strength / (1 + guard * max(back, 0))
            applied = theta * correction if between else applied
            revised = [v + theta * moved[r] if r in moved else v for r, v in enumerate(revised)]
        expected = matrix[s + 1, : s + 2] @ np.array([x_0, *revised[: s + 1]])
        assert np.abs(latents[s] - expected).max() < 2e-5 * np.abs(expected).max(), s


@pytest.mark.parametrize(("back", "share"), [(-0.5, 1.0), (0.0, 1.0), (0.5, 1 / 1.5), (2.0, 1 / 3)])
def test_a_correction_that_takes_back_the_one_before_is_weakened(back, share):
    """Every second step is computed. The second correction is -back times the first."""
    random = torch.Generator().manual_seed(0)
    first, change = torch.randn(2, 1, 5, generator=random)
    euler = np.hstack([np.ones((6, 1)), np.tril(np.ones((6, 5)), -1)])
    outputs = Revised(euler, 1.0, 1.0)
    given = [first, first, first + change, first + change, first + change - back * change]
    for step, output in enumerate(given):
        outputs.append(output, torch.zeros(1, 5), step % 2 == 0)
    assert np.allclose(outputs.weights[1], [0.5, 0, 0.5, 0, 0])
    assert np.allclose(outputs.weights[3], [0, 0, share / 2, 1 - share, share / 2])


def test_reuse_of_outputs_corrected_is_hindsight(random_pipe):
    """Two ways to one method: the guided output cached at the scheduler, and any site with the correction."""
    of_steps = partial(mask, steps=[0, 3, 6, 9])
    ours, *_ = sampled(random_pipe, "flux", Solver(), of_steps, hindsight)
    same, *_ = sampled(random_pipe, "flux", Corrected(OutputStandIn(), guard=0.0), of_steps, reuse)
    assert np.abs(ours - same).max() < 1e-5 * np.abs(ours).max()


class OutputStandIn(OutputResidual):
    """Reuses the denoiser's output itself, where OutputResidual adds what it has cached to the latent."""

    def attach(self, denoiser, anatomy, session, undo):
        Solver().attach(denoiser, anatomy, session, undo)


def test_without_a_skipped_step_or_strength_nothing_changes_and_nothing_stays(random_pipe):
    plain, *_ = sampled(random_pipe, "flux", None, full, reuse)
    before, *_ = sampled(random_pipe, "flux", LastBlock())
    for _ in range(2):
        assert np.array_equal(sampled(random_pipe, "flux", Corrected(LastBlock()), full)[0], plain)
        assert np.array_equal(sampled(random_pipe, "flux", Corrected(LastBlock(), 0.0))[0], before)
        assert not np.array_equal(sampled(random_pipe, "flux", Corrected(LastBlock()))[0], before)
    assert np.array_equal(sampled(random_pipe, "flux", LastBlock())[0], before)
    assert "step" not in vars(random_pipe.scheduler)


@pytest.mark.parametrize("site", [Corrected(LastBlock()), Solver()])
def test_a_bfloat16_network_beside_float32_latents(random_pipes, site):
    """Wan's pipeline holds float32 latents: outputs and x_0 come in two dtypes."""
    pipe = random_pipes("wan")
    pipe.transformer.to(torch.bfloat16)
    try:
        latents, *_ = sampled(pipe, "wan", site, forecaster=hindsight)
    finally:
        pipe.transformer.to(torch.float32)
    assert np.isfinite(latents).all()


def test_the_outputs_are_counted_as_cache(random_pipe):
    sampler = Uncached(random_pipe, T, dict(recipe("flux")["call"])).sampler
    latents = Latents()
    sampler(NOCACHE).watch(JOB, [latents])
    held = [
        sampler(Algorithm("x", MASK, reuse, site)).sample(JOB)[1].cache_bytes
        for site in (LastBlock(), Corrected(LastBlock()))
    ]
    assert held[1] - held[0] == (T + 2) * latents.steps[0].nbytes  # x_0, all outputs, the newest correction


def test_the_command_line_names_it_and_other_ids_stay():
    plain = settings("algo=taylorseer", "site=last_block")
    corrected = settings("algo=taylorseer", "site=last_block", "correct=hindsight", "correct.strength=0.5")
    assert build(corrected).site == Corrected(LastBlock(), 0.5)
    assert labels(corrected)["site"] == "Corrected(strength=0.5, site=LastBlock)"
    assert identity(corrected)["site"]["site"] == identity(plain)["site"]
    again = type(plain).from_config(corrected.to_config())
    assert again.method == corrected.method


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["algo=nocache"], "algo=nocache caches nothing: leave correct= out"),
        (["algo=hindsight"], "site=Solver corrects the latent itself: leave correct= out"),
        (["algo=taylorseer", "correct.strength=2"], r"correct.strength must be a number in \[0, 1\], not 2"),
    ],
)
def test_what_cannot_be_corrected_is_refused(words, reason):
    with pytest.raises(UserError, match=reason):
        build(settings("correct=hindsight", *words))
