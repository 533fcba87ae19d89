"""What is refused before a model loads: parts that do not go together, and forecasters that read forgotten rows."""

import time
from functools import partial

import numpy as np
import pytest
import torch

from spectrum_bench import forecasters, gates, schedules
from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.branch import Branch
from spectrum_bench.caching.sites.stack import LastBlock, StackResidual
from spectrum_bench.caching.weights import Remembered
from spectrum_bench.errors import BadValue, DoesNotFit

ADAPTIVE = partial(schedules.adaptive_window, window=2, flex=0.75, warmup=5)
GATE = gates.easycache(threshold=0.1, first=5)


def hesitant(times, t):
    """Reuses one step ahead, order-1 Taylor beyond: its second row is forgotten before it is read."""
    return forecasters.reuse(times, t) if t - times[-1] <= 1 else forecasters.taylor(times, t, order=1)


@pytest.mark.parametrize("schedule", [ADAPTIVE, GATE], ids=["mask", "gate"])
def test_a_forecaster_that_reads_a_forgotten_row_is_refused(schedule):
    with pytest.raises(DoesNotFit, match="hesitant reads at step .* a row that is forgotten .*: give it") as error:
        Algorithm("x", schedule, hesitant, StackResidual()).check(50)
    assert "\n" not in str(error.value)


def test_it_would_have_been_another_method():
    """The forecast of a session is not the function's own: what the check is for."""
    branch, times, wrong = Branch(Remembered(hesitant)), [], 0
    for step, computing in enumerate(ADAPTIVE(50)):
        branch.begin(step, bool(computing))
        if computing:
            times.append(step)
        else:
            whole = hesitant(np.array(times, float), step)
            wrong += not np.allclose(whole[-len(branch.times) :], branch.weights) or whole[: -len(branch.times)].any()
    assert wrong == 26


SOLVERS = {"solvers": list(forecasters.SOLVERS), "channels": [d % len(forecasters.SOLVERS) for d in range(3072)]}
SOUND = [
    forecasters.reuse,
    partial(forecasters.taylor, order=2, warmup=3),
    partial(forecasters.spectrum, degree=4, ridge=0.1, blend=0.5, steps=50),
    partial(forecasters.hermite, order=2, sigma=0.5),
    partial(forecasters.lagrange, order=3),
    partial(forecasters.adams_bashforth, order=3),
    forecasters.foca,
    partial(forecasters.aligned, least=1.0, most=1.5),
    partial(forecasters.aligned, least=1.0, most=1.0),
    partial(forecasters.hyca, **SOLVERS),
]


@pytest.mark.parametrize("schedule", [ADAPTIVE, GATE], ids=["mask", "gate"])
@pytest.mark.parametrize("forecaster", SOUND, ids=lambda f: schedules.bare(f).__name__)
def test_ours_pass_and_quickly(forecaster, schedule):
    algorithm, spent = Algorithm("x", schedule, forecaster, StackResidual()), []
    for _ in range(3):
        start = time.process_time()
        algorithm.check(50)
        spent.append(time.process_time() - start)
    assert min(spent) < 0.25  # some 0.01 s on a quiet machine


@pytest.mark.parametrize(
    "schedule,forecaster,message",
    [
        (partial(schedules.uniform, intervall=4), forecasters.reuse, r"uniform\(\) got an unexpected .*intervall"),
        (
            ADAPTIVE,
            partial(forecasters.taylor, ordr=1),
            r"taylor\(\) got an unexpected .*ordr.*: it takes times, t, order, warmup",
        ),
        (partial(gates.first_block, threshold=1), forecasters.reuse, "first_block is a gate: leave _partial_ out"),
        (ADAPTIVE, lambda times, t: np.ones(3), "returns 3 weights for 5 rows: return one a row"),
        (ADAPTIVE, lambda times, t: [0.0] * len(times), "must return a NumPy array of numbers, .* not list"),
        (ADAPTIVE, lambda times, t: 1.0, "must return a NumPy array of numbers, .* not float"),
        (ADAPTIVE, lambda times, t: torch.ones(len(times)), "must return a NumPy array of numbers, .* not Tensor"),
        (ADAPTIVE, lambda times, t: np.full(len(times), np.nan), "returns weights at step 4 that are not finite"),
    ],
    ids=["schedule", "forecaster", "partial gate", "rows", "list", "number", "tensor", "nan"],
)
def test_nonsense_is_one_line(schedule, forecaster, message):
    with pytest.raises((BadValue, DoesNotFit), match=message):
        Algorithm("x", schedule, forecaster, LastBlock()).check(50)


def test_a_bug_in_a_forecaster_keeps_its_traceback():
    def buggy(times, t):
        return forecasters.reuse(times, t) + np.ones(7)

    with pytest.raises(ValueError, match="broadcast") as error:
        Algorithm("x", ADAPTIVE, buggy, LastBlock()).check(50)
    assert not isinstance(error.value, BadValue | DoesNotFit)


def test_the_plain_pipeline_skips_nothing():
    Algorithm("nocache", schedules.full, forecasters.reuse, None).check(50)
    for schedule in (ADAPTIVE, GATE):
        with pytest.raises(DoesNotFit, match="algo=nocache caches nothing, so schedule=full is the only one"):
            Algorithm("nocache", schedule, forecasters.reuse, None).check(50)
