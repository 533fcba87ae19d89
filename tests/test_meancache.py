"""MeanCache's correction: worked out by hand, and what a pipeline's scheduler is given at skipped steps."""

from functools import partial

import pytest
import torch
from helpers import run

from spectrum_bench import forecasters, schedules
from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.sites.mean_velocity import MeanVelocity, predict
from spectrum_bench.errors import BadValue, DoesNotFit

pytestmark = pytest.mark.usefixtures("no_gradients")

MASK = partial(schedules.mask, steps=[0, 1, 2, 5])


def number(x: float) -> torch.Tensor:
    return torch.tensor([x])


def test_the_correction_by_hand():
    """Levels 1, 0.8, 0.5, 0.1 and Euler steps with v = 2, 3 from x = 0: x = -0.4, -1.3. Two steps back the average
    velocity is -1.3 / -0.5 = 2.6, so J = (2 - 2.6) / -0.5 = 1.2 and v' = 3 - 1.2 * -0.4 = 3.48. One step back the
    average is v itself: v' = 3."""
    taken = [(number(0.0), 1.0, number(2.0)), (number(-0.4), 0.8, number(3.0))]
    predicted = [float(predict(taken, number(-1.3), 0.5, 0.1, span)) for span in (1, 2, 9)]
    assert predicted == pytest.approx([3.0, 3.48, 3.48])


@pytest.mark.parametrize("name,span", [("flux", 2), ("flux", [1, 1, 2]), ("wan", 3), ("sdxl", 2)])
def test_the_scheduler_gets_what_the_definition_says(random_pipes, name, span):
    """Outputs, latents and levels as the scheduler sees them; the definition is written out in float64."""
    pipe, seen = random_pipes(name), []
    step = pipe.scheduler.step

    def watched(output, timestep, latent, *args, **kwargs):
        seen.append((output.double(), latent.double()))
        return step(output, timestep, latent, *args, **kwargs)

    pipe.scheduler.step = watched
    try:
        _, session = run(pipe, name, MeanVelocity(span), MASK, forecasters.reuse)
    finally:
        del pipe.scheduler.step
    s = pipe.scheduler.sigmas.double()
    assert session.computed_steps == [0, 1, 2, 5] and len(seen) == 6 and "step" not in vars(pipe.scheduler)
    for i in (3, 4):
        back = i - (span if isinstance(span, int) else span[2])
        u = (seen[i][1] - seen[back][1]) / (s[i] - s[back])
        J = (seen[back][0] - u) / (s[i] - s[back])
        expected = seen[i - 1][0] - J * (s[i + 1] - s[i])
        torch.testing.assert_close(seen[i][0], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_spans_that_do_not_fit_are_refused(random_pipes):
    with pytest.raises(BadValue, match="span must be a whole number of at least 0, not -1"):
        Algorithm("x", MASK, forecasters.reuse, MeanVelocity([1, -1])).check(6)
    with pytest.raises(DoesNotFit, match="a forecast of its own"):
        Algorithm("x", MASK, partial(forecasters.taylor, order=1), MeanVelocity()).check(6)
    with pytest.raises(BadValue, match="site.span has 2 numbers, but step 3 is in gap 3"):
        run(random_pipes("flux"), "flux", MeanVelocity([1, 2]), MASK, forecasters.reuse)
