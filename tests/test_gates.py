"""Gates on signals made by hand: which steps they compute, worked out on paper."""

import inspect
import math
import pickle

import pytest
import torch

from spectrum_bench import distances, gates, signals
from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.sites.modules import Modules
from spectrum_bench.caching.sites.output import OutputResidual
from spectrum_bench.caching.sites.stack import LastBlock, StackResidual, TailResidual
from spectrum_bench.errors import BadValue, DoesNotFit
from spectrum_bench.forecasters import reuse


def ask(gate, steps, **values):
    """Decisions at each step, and the state left; values of signals are lists of numbers, one a step."""
    state, out = gate.start(steps), []
    for s in range(steps):
        numbers = {getattr(signals, name.upper()): listed[s] for name, listed in values.items()}
        seen = {signal: torch.tensor([float(x)]) for signal, x in numbers.items() if x is not None}
        out.append(gate.decide(s, seen, state))
    return out, state


def computed(decisions):
    return [s for s, d in enumerate(decisions) if d]


def test_accumulated():
    """Doubled changes .4 .8 1.2! | .6 1.2! | .2 and the last step is forced."""
    moves = [0.2, 0.2, 0.2, 0.3, 0.3, 0.1, 0.1]
    signal = [1.0]
    for move in moves:
        signal.append(signal[-1] * (1 + move))
    rule = {"threshold": 0.95, "polynomial": [2.0, 0.0]}
    assert computed(ask(gates.accumulated(**rule), 8, modulated=signal)[0]) == [0, 3, 5, 7]
    assert computed(ask(gates.accumulated(**rule, first=3, last=0), 8, modulated=signal)[0]) == [0, 1, 2, 4, 7]


def test_accumulated_starts_anew_for_every_sample():
    gate = gates.accumulated(threshold=1.0, polynomial=[1.0, 0.0], last=0)
    assert ask(gate, 3, modulated=[1, 1.9, 3.6])[0] == [True, False, True]
    assert ask(gate, 2, modulated=[1, 1.9])[0] == [True, False]


def test_first_block_compares_with_the_last_computed_step_and_sums_nothing():
    """Residuals 10 10.9 11.2! 11.9 12.5!: 0.09, 0.12 of 10, then 0.0625, 0.116 of 11.2."""
    added = [10, 10.9, 11.2, 11.9, 12.5]
    probe = [100 + a for a in added]
    assert computed(ask(gates.first_block(threshold=0.1), 5, entering=[100] * 5, probe=probe)[0]) == [0, 2, 4]


def test_easycache():
    """Two computed steps tell the rate |v1 - v0| / |x1 - x0| = 2 / 1; then 2 |dx| / |v| = 2 / 4 a step, so that 1.2
    skips two; the new rate is |8 - 4| / |x4 - x1| = 4 / 3: 4 / 3 / 8 = .17 a step."""
    x = [0, 1, 2, 3, 4, 5, 6, 7, 8]
    v = [None, 2, 4, 4, 4, 8, 8, 8, 8]  # the newest output known before the step
    decisions, state = ask(gates.easycache(threshold=1.2, first=2), 9, latent=x, output=v)
    assert computed(decisions) == [0, 1, 4, 8]  # the last is forced
    assert float(state.rate) == pytest.approx(4 / 3)


def test_dicache():
    """The probe's changes 0.1 each, summed: 0.25 skips two; retention computes steps 0 to 2, the last is forced."""
    probe, rule = [1.1**s for s in range(10)], {"threshold": 0.25, "retention": 0.2}
    decisions, state = ask(gates.dicache(**rule), 10, entering=[0.5] * 10, probe=probe)
    assert computed(decisions) == [0, 1, 2, 5, 8, 9]
    assert [float(r) for r in state.residuals] == pytest.approx([1.1**8 - 0.5, 1.1**9 - 0.5])
    minus = gates.dicache(**rule, minus=True)  # the input moves as the probe does: nothing to count
    assert computed(ask(minus, 10, entering=probe, probe=probe)[0]) == [0, 1, 2, 9]


def test_dicache_retains_as_many_steps_as_the_code_of_its_model():
    """0.2 of 10 steps: FLUX computes step 2 too, HunyuanVideo and Wan may skip it (Bujiazi/DiCache@dd7f0de)."""
    rule = {"threshold": 9.0, "retention": 0.2}
    still = {"entering": [0.5] * 10, "probe": [1.0] * 10}
    assert computed(ask(gates.dicache(**rule), 10, **still)[0]) == [0, 1, 2, 9]
    assert computed(ask(gates.dicache(**rule, beyond=False, last=0), 10, **still)[0]) == [0, 1]


@pytest.mark.parametrize("now,progress", [(1.0, 0.5), (2.5, 1.25), (9.0, 4.5)])
def test_dicache_tells_how_far_the_probe_has_come(now, progress):
    """The probe's residual went from 0 to 2 between the two computed steps; now it is at `now`."""
    entering, probe = [1.0, 1.0, 1.0], [1.0, 3.0, 1.0 + now]
    decisions, state = ask(gates.dicache(threshold=100, retention=0.5, last=0), 3, entering=entering, probe=probe)
    assert computed(decisions) == [0, 1] and state.progress() == progress


@pytest.mark.parametrize("now", [1.0, 2.0], ids=["0/0", "1/0"])
def test_a_probe_that_stood_still_tells_nothing(now):
    """Then the newest feature is reused; 0 / 0 as progress made a picture of nan."""
    gate = gates.dicache(threshold=100, retention=0.5, last=0)
    decisions, state = ask(gate, 3, entering=[1.0, 1.0, 1.0], probe=[2.0, 2.0, 1.0 + now])
    assert computed(decisions) == [0, 1] and state.progress() is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_zero_that_is_forecast_rightly_hides_no_error(dtype):
    """SpeCa's error of two elements: 0 / 0 counts as 0, 1 / 1 as 1; nan would be above no limit."""
    real, forecast = torch.tensor([0.0, 1.0], dtype=dtype), torch.tensor([0.0, 2.0], dtype=dtype)
    assert distances.relative(forecast, real) == pytest.approx(0.5, rel=1e-2)
    assert distances.relative(torch.ones_like(real), torch.zeros_like(real)) > 1e4


@pytest.mark.parametrize(
    "gate",
    [
        gates.accumulated(threshold=9.0, polynomial=[-1.0, 0.0], last=0),
        gates.first_block(threshold=9.0),
        gates.easycache(threshold=9.0, first=1, last=0),
        gates.dicache(threshold=9.0, retention=0, last=0),
        gates.dicache(threshold=9.0, retention=0, minus=True, last=0),
        gates.confidence(threshold=0.5, last=0),
    ],
    ids=lambda gate: gate.name,
)
@pytest.mark.parametrize("now", [0.0, 1.0], ids=["0/0", "1/0"])
def test_a_ratio_to_zero_is_computed(gate, now):
    """All that the gate compares with is 0."""
    signals = {name: [0.0] * 7 + [now] for name in ("modulated", "entering", "latent", "output")}
    decisions, _ = ask(gate, 8, probe=[0.0] * 7 + [now], **signals)
    assert all(decisions)


def test_a_distance_that_nobody_can_tell_is_infinite():
    zero, one = torch.zeros(3), torch.ones(3)
    assert distances.distance(zero, zero) == distances.distance(one, zero) == math.inf
    assert distances.distance(one * math.nan, one) == math.inf and distances.distance(3 * one, one) == 2


def test_confidence():
    """A straight probe: the first test has nothing to go by, the second reuse (off by 1/16), then Taylor is exact until
    the probe bends at step 9, where the newest failures, 5 and 6, say 19; the last step is forced."""
    probe = [10 + s for s in range(9)] + [30, 31, 32]
    gate = gates.confidence(threshold=0.03, order=1, first=5)
    assert computed(ask(gate, 12, probe=probe)[0]) == [0, 1, 2, 3, 4, 5, 6, 9, 10, 11]


@pytest.mark.parametrize(
    "gate",
    [
        gates.accumulated(threshold=0, polynomial=[1.0, 0.0]),
        gates.first_block(threshold=0),
        gates.easycache(threshold=0, first=1),
        gates.dicache(threshold=0, retention=0),
        gates.confidence(threshold=0),
    ],
    ids=lambda gate: gate.name,
)
def test_threshold_zero_never_skips(gate):
    still = {name: [1.0] * 8 for name in ("modulated", "entering", "latent", "output")}
    assert all(ask(gate, 8, probe=[2.0] * 8, **still)[0])


@pytest.mark.parametrize(
    "method,constants,message",
    [
        (gates.accumulated, {"threshold": "x", "polynomial": [1.0]}, "threshold must be"),
        (gates.accumulated, {"threshold": 1.0, "polynomial": [1.0, "x"]}, "must be numbers"),
        (gates.accumulated, {"threshold": 1.0, "polynomial": None}, "calibrate.py algo=teacache"),
        (gates.accumulated, {"threshold": 1.0, "polynomial": [1.0], "first": -1}, "first must be a whole number"),
        (gates.accumulated, {"threshold": 1.0}, r"accumulated\(\) missing .*polynomial"),
        (gates.easycache, {"threshold": 1.0, "first": 1.5}, "first must be a whole number"),
        (gates.dicache, {"threshold": 1.0, "retention": 2}, "share of the steps"),
        (gates.first_block, {"threshold": -1}, "threshold must be"),
        (gates.first_block, {"threshold": 1, "treshold": 2}, r"first_block\(\) got an unexpected .*treshold"),
    ],
)
def test_nonsense_is_refused_before_a_model_is_there(method, constants, message):
    with pytest.raises(BadValue, match=message):
        method(**constants)


def test_a_method_has_the_name_and_the_constants_of_its_function():
    """Labels, ids and messages are made of these."""
    assert gates.accumulated.__name__ == "accumulated" and "TeaCache" in gates.accumulated.__doc__
    parameters = inspect.signature(gates.accumulated).parameters
    assert list(parameters) == ["threshold", "polynomial", "first", "last"] and parameters["first"].default == 1


def test_a_gate_can_be_sent_to_another_process():
    gate = pickle.loads(pickle.dumps(gates.dicache(threshold=0.1, retention=0.2)))
    assert gate.method is gates.dicache and gate.constants["retention"] == 0.2 and gate.observes
    assert isinstance(gate.start(5), gates.DiCacheState)


@pytest.mark.parametrize("site", [OutputResidual(), Modules(), StackResidual(), LastBlock()])
def test_a_site_that_does_not_come_by_what_is_observed_is_refused(site):
    with pytest.raises(DoesNotFit, match="first_block observes the front blocks.* use site=tail_residual"):
        Algorithm("x", gates.first_block(threshold=1), reuse, site).check(50)
    Algorithm("x", gates.first_block(threshold=1), reuse, TailResidual()).check(50)
    Algorithm("x", gates.easycache(threshold=1, first=5), reuse, site).check(50)


def test_output_residual_knows_nothing_of_blocks():
    gate = gates.accumulated(threshold=1, polynomial=[1.0])
    with pytest.raises(DoesNotFit, match="accumulated observes the first block"):
        Algorithm("x", gate, reuse, OutputResidual()).check(50)


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
    assert verified(rule, error) == expected


def verified(rule, error):
    """The steps that SpeCa computes where every forecast that it has verified errs by as much."""
    gate, out = gates.speca(**rule), []
    state = gate.start(50)
    for step in range(50):
        if gate.decide(step, {}, state):
            out.append(step)
        if state.verifies:
            assert step not in out
            state.verify(torch.full((4,), 1 + error), torch.ones(4))
            assert state.error == pytest.approx(error) and not state.rejects
    return out


def test_speca_s_threshold_decays_to_a_floor():
    """7 * 0.3^(s / 50): an error of 4 is within it until step 23 and rejected from then on."""
    rule = {"threshold": 7, "decay": 0.3, "shortest": 1, "longest": 99, "first": 1}
    assert verified(rule, 4.0)[:2] == [0, 24]  # 7 * 0.3 ** (23 / 50) = 4.02, at 24 it is 3.93


def test_speca_rejects_at_once_where_it_is_told_to():
    gate = gates.speca(threshold=1, decay=1, shortest=1, longest=9, first=1, immediate=True)
    state = gate.start(9)
    assert [gate.decide(step, {}, state) for step in range(3)] == [True, False, False] and state.verifies
    state.verify(torch.full((4,), 3.0), torch.ones(4))
    assert state.rejects
    state.note_computed()
    assert not state.verifies and not gate.decide(3, {}, state) and not state.verifies  # as after a computed step


def test_sencache():
    """The latent moves by 1 and the timestep by 10 a step: 2 + 0.1 * 10 = 3 a step since step 0 and since step 3, where
    13 holds instead of 7; since step 8, at 120, the nearest sensitivity is that at 160: 6 a step."""
    measured = {"timesteps": [200, 190, 180, 170, 160, 0], "latent": [2, 2, 2, 2, 5, 5], "time": [0.1] * 6}
    rule = {"threshold": 13, "start": 7, "longest": 9, **measured}
    values = {"latent": range(20), "timestep": range(200, 0, -10)}
    assert computed(ask(gates.sencache(**rule), 20, **values)[0]) == [0, 3, 8, 11, 14, 17]
    assert computed(ask(gates.sencache(**rule | {"longest": 1}), 20, **values)[0]) == list(range(0, 20, 2))
