"""Gates on signals made by hand: which steps they compute, worked out on paper."""

from functools import partial

import pytest
import torch

from spectrum_bench import gates
from spectrum_bench.caching.sites.modules import Modules
from spectrum_bench.caching.sites.output import OutputResidual
from spectrum_bench.caching.sites.stack import LastBlock, StackResidual, TailResidual


def ask(gate, steps, **signals):
    """Decisions at each step, and the memory left; signals are lists of numbers, one a step."""
    memory, out = {}, []
    for s in range(steps):
        seen = {
            name: None if values[s] is None else torch.tensor([float(values[s])]) for name, values in signals.items()
        }
        out.append(gate(s, steps, seen, memory))
    return out, memory


def computed(decisions):
    return [s for s, d in enumerate(decisions) if d]


def test_accumulated():
    """Doubled changes .4 .8 1.2! | .6 1.2! | .2 and the last step is forced."""
    moves = [0.2, 0.2, 0.2, 0.3, 0.3, 0.1, 0.1]
    signal = [1.0]
    for move in moves:
        signal.append(signal[-1] * (1 + move))
    rule = partial(gates.accumulated, threshold=0.95, polynomial=[2.0, 0.0])
    assert computed(ask(rule, 8, modulated=signal)[0]) == [0, 3, 5, 7]
    assert computed(ask(partial(rule, first=3, last=0), 8, modulated=signal)[0]) == [0, 1, 2, 4, 7]


def test_accumulated_starts_anew_for_every_sample():
    gate = partial(gates.accumulated, threshold=1.0, polynomial=[1.0, 0.0], last=0)
    assert ask(gate, 3, modulated=[1, 1.9, 3.6])[0] == [True, False, True]
    assert ask(gate, 2, modulated=[1, 1.9])[0] == [True, False]


def test_first_block_compares_with_the_last_computed_step_and_sums_nothing():
    """Residuals 10 10.9 11.2! 11.9 12.5!: 0.09, 0.12 of 10, then 0.0625, 0.116 of 11.2."""
    added = [10, 10.9, 11.2, 11.9, 12.5]
    probe = [100 + a for a in added]
    gate = partial(gates.first_block, threshold=0.1)
    assert computed(ask(gate, 5, entering=[100] * 5, probe=probe)[0]) == [0, 2, 4]


def test_easycache():
    """Two computed steps tell the rate |v1 - v0| / |x1 - x0| = 2 / 1; then 2 |dx| / |v| = 2 / 4 a step, so that 1.2
    skips two; the new rate is |8 - 4| / |x4 - x1| = 4 / 3: 4 / 3 / 8 = .17 a step."""
    x = [0, 1, 2, 3, 4, 5, 6, 7, 8]
    v = [None, 2, 4, 4, 4, 8, 8, 8, 8]  # the newest output known before the step
    gate = partial(gates.easycache, threshold=1.2, first=2)
    decisions, memory = ask(gate, 9, latent=x, output=v)
    assert computed(decisions) == [0, 1, 4, 8]  # the last is forced
    assert float(memory["rate"]) == pytest.approx(4 / 3)


def test_dicache():
    """The probe's changes 0.1 each, summed: 0.25 skips two; retention computes steps 0 to 2, the last is forced."""
    probe = [1.1**s for s in range(10)]
    gate = partial(gates.dicache, threshold=0.25, retention=0.2)
    decisions, memory = ask(gate, 10, entering=[0.5] * 10, probe=probe)
    assert computed(decisions) == [0, 1, 2, 5, 8, 9]
    assert [float(r) for r in memory["residuals"]] == pytest.approx([1.1**8 - 0.5, 1.1**9 - 0.5])
    minus = partial(gate, minus=True)  # the input moves as the probe does: nothing to count
    assert computed(ask(minus, 10, entering=probe, probe=probe)[0]) == [0, 1, 2, 9]


def test_confidence():
    """A straight probe: the first test has nothing to go by, the second reuse (off by 1/16), then Taylor is exact until
    the probe bends at step 9, where the newest failures, 5 and 6, say 19; the last step is forced."""
    probe = [10 + s for s in range(9)] + [30, 31, 32]
    gate = partial(gates.confidence, threshold=0.03, order=1, first=5)
    assert computed(ask(gate, 12, probe=probe)[0]) == [0, 1, 2, 3, 4, 5, 6, 9, 10, 11]


@pytest.mark.parametrize(
    "gate",
    [
        partial(gates.accumulated, threshold=0, polynomial=[1.0, 0.0]),
        partial(gates.first_block, threshold=0),
        partial(gates.easycache, threshold=0, first=1),
        partial(gates.dicache, threshold=0, retention=0),
        partial(gates.confidence, threshold=0),
    ],
)
def test_threshold_zero_never_skips(gate):
    still = {name: [1.0] * 8 for name in ("modulated", "entering", "latent", "output")}
    assert all(ask(gate, 8, probe=[2.0] * 8, **still)[0])


@pytest.mark.parametrize(
    "gate,said",
    [
        (partial(gates.accumulated, threshold="x", polynomial=[1.0]), "threshold must be"),
        (partial(gates.accumulated, threshold=1.0, polynomial=[1.0, "x"]), "must be numbers"),
        (partial(gates.accumulated, threshold=1.0, polynomial=None), "calibrate.py algo=teacache"),
        (partial(gates.accumulated, threshold=1.0, polynomial=[1.0], first=-1), "first must be a whole number"),
        (partial(gates.easycache, threshold=1.0, first=1.5), "first must be a whole number"),
        (partial(gates.dicache, threshold=1.0, retention=2), "share of the steps"),
        (partial(gates.first_block, threshold=-1), "threshold must be"),
        (partial(gates.first_block, threshold=1), "does not run them: use site=tail_residual"),
    ],
)
def test_nonsense_is_refused_before_a_model_is_there(gate, said):
    with pytest.raises(ValueError, match=said):
        gates.check(gate, 50, StackResidual())


@pytest.mark.parametrize("site", [OutputResidual(), Modules(), StackResidual(), LastBlock()])
def test_a_site_that_does_not_come_by_what_is_observed_is_refused(site):
    with pytest.raises(ValueError, match="first_block observes the front blocks"):
        gates.check(partial(gates.first_block, threshold=1), 50, site)
    gates.check(partial(gates.first_block, threshold=1), 50, TailResidual())
    gates.check(partial(gates.easycache, threshold=1, first=5), 50, site)


def test_output_residual_knows_nothing_of_blocks():
    with pytest.raises(ValueError, match="accumulated observes the first block"):
        gates.check(partial(gates.accumulated, threshold=1, polynomial=[1.0]), 50, OutputResidual())


@pytest.mark.parametrize(
    "rule,error,expected",
    [  # Cache4Diffusion's defaults for FLUX and HunyuanVideo, its state machine run by hand
        ({"threshold": 7, "decay": 0.3, "shortest": 2, "longest": 8, "first": 3}, 0.0, [0, 2, 11, 20, 29, 38, 47]),
        ({"threshold": 7, "decay": 0.3, "shortest": 2, "longest": 8, "first": 3}, 99.0, [0, 2, *range(6, 50, 4)]),
        ({"threshold": 1, "decay": 0.1, "shortest": 4, "longest": 12, "first": 1}, 0.0, [0, 13, 26, 39]),
    ],
    ids=["accepted", "rejected", "hunyuan"],
)
def test_speca(rule, error, expected):
    memory, out = {}, []
    for step in range(50):
        if gates.speca(step, 50, {}, memory, **rule):
            out.append(step)
        if memory["verify"]:
            assert step not in out
            memory["error"] = error
    assert out == expected


def test_speca_s_threshold_decays_to_a_floor():
    """7 * 0.3^(s / 50): an error of 4 is within it until step 23 and rejected from then on."""
    rule = {"threshold": 7, "decay": 0.3, "shortest": 1, "longest": 99, "first": 1}
    memory, out = {}, []
    for step in range(50):
        if gates.speca(step, 50, {}, memory, **rule):
            out.append(step)
        if memory["verify"]:
            memory["error"] = 4.0
    assert out[:2] == [0, 24]  # 7 * 0.3 ** (23 / 50) = 4.02, at 24 it is 3.93


def test_sencache():
    """The latent moves by 1 and the timestep by 10 a step: 2 + 0.1 * 10 = 3 a step since step 0 and since step 3, where
    13 holds instead of 7; since step 8, at 120, the nearest sensitivity is that at 160: 6 a step."""
    measured = {"timesteps": [200, 190, 180, 170, 160, 0], "latent": [2, 2, 2, 2, 5, 5], "time": [0.1] * 6}
    gate = partial(gates.sencache, threshold=13, start=7, longest=9, **measured)
    signals = {"latent": range(20), "timestep": range(200, 0, -10)}
    assert computed(ask(gate, 20, **signals)[0]) == [0, 3, 8, 11, 14, 17]
    assert computed(ask(partial(gate, longest=1), 20, **signals)[0]) == list(range(0, 20, 2))
