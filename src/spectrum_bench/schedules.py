"""When to compute, known before the model runs: a *mask* over the T denoising steps; step 0 is the noisiest. A schedule
that decides while the model runs is a *gate*, in gates.py."""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spectrum_bench import checks
from spectrum_bench.errors import BadValue

Mask = NDArray[np.bool_]  # (T,), True = compute
Starts = Sequence[int]  # the first step of each network of those that run by turns (Wan2.2's two), ascending from 0
ALONE = (0,)  # of one network


def lengths(T: int, starts: Starts) -> list[int]:
    """The number of steps of each network."""
    steps: list[int] = np.diff([*starts, T]).tolist()
    return steps


def one_by_one(T: int, starts: Starts, rule: Callable[[int], Mask]) -> Mask:
    """Each network's steps by a rule from their number to a mask, as if it ran alone."""
    return np.concatenate([rule(count) for count in lengths(T, starts)])


def budgets(passes: int | Sequence[int], T: int, starts: Starts = ALONE) -> list[int]:
    """The passes of each network: those that are told, or `passes` in proportion to the networks' steps, at least one
    each.

    Raises:
        BadValue: they are no numbers of passes, or not as many as there are networks.
    """
    steps = lengths(T, starts)
    if isinstance(passes, Sequence) and not isinstance(passes, str):
        if len(passes) != len(steps):
            raise BadValue(
                f"passes={checks.brief(list(passes))} is for {len(passes)} networks by turns, and this model has "
                f"{len(steps)}: give one number for all"
            )
        return [checks.whole("passes", each, 1, most) for each, most in zip(passes, steps, strict=True)]
    if checks.whole("passes", passes, 1, T) < len(steps):
        raise BadValue(f"passes={passes} are too few: each of the {len(steps)} networks by turns needs a pass")
    counts = [1] * len(steps)
    for _ in range(passes - len(steps)):  # the next one to the network that is furthest below its share
        counts[int(np.argmax(np.divide(steps, np.add(counts, 0.5))))] += 1
    return counts


def full(T: int) -> Mask:
    """Every step: the reference."""
    return np.ones(T, bool)


def uniform(T: int, *, interval: int, warmup: int = 1, starts: Starts = ALONE) -> Mask:
    """`warmup` steps, then every `interval`-th (FORA, arXiv:2407.01425; TaylorSeer, arXiv:2503.06923).

    The counter of Shenyi-Z/TaylorSeer@288776d: a step is computed if fewer than `warmup` came before it or `interval -
    1` steps in a row were skipped. FORA's own DiT code counts down from the last step; the FLUX ports of it do not.
    """
    checks.whole("interval", interval)
    return adaptive_window(T, window=interval, flex=0.0, warmup=warmup, starts=starts)


def adaptive_window(T: int, *, window: float, flex: float, warmup: int, starts: Starts = ALONE) -> Mask:
    """Spectrum's schedule (arXiv:2603.01623, appendix B.1): after `warmup` steps the gap starts at `window` and grows
    by `flex` at every computed step. The last step is not forced.

    The counter of hanjq17/Spectrum@f7b7841, which rounds the growing window to three decimals.
    """
    checks.whole("warmup", warmup)
    checks.number("window", window, 1)
    checks.number("flex", flex, 0)
    return one_by_one(T, starts, partial(_growing_gaps, window=window, flex=flex, warmup=warmup))


def _growing_gaps(T: int, *, window: float, flex: float, warmup: int) -> Mask:
    out = np.arange(T) < warmup
    step = warmup - 1
    while (step := step + int(window)) < T:
        out[step] = True
        window = round(window + flex, 3)
    return out


def mask(T: int, *, steps: Sequence[int]) -> Mask:
    """Exactly the steps of a list, to replay the computed steps of another method or implementation."""
    if isinstance(steps, str) or not isinstance(steps, Sequence):
        raise BadValue(f"steps must be a list of whole numbers, e.g. [0,1,5], not {steps}")
    wrong = [s for s in steps if not (checks.is_whole(s) and 0 <= s < T)]
    if wrong:
        raise BadValue(f"steps must be whole numbers from 0 to {T - 1}, not {checks.brief(wrong)}")
    out = np.zeros(T, bool)
    out[steps] = True
    return out


def published(T: int, *, of: str, steps: Sequence[int], T_published: int) -> Mask:
    """A mask that somebody has published for `T_published` steps: configs/schedule/published/<of>.yaml.

    Raises:
        BadValue: the run has another number of steps, of which nobody has said which to compute.
    """
    if T_published != T:
        raise BadValue(
            f"{of} is a mask for num_inference_steps={T_published}, not {T}: give that, or schedule=mask with steps of "
            "your own"
        )
    return mask(T, steps=steps)


def power_law(T: int, *, passes: int | Sequence[int], power: float = 1.3, starts: Starts = ALONE) -> Mask:
    """The steps T (i / passes)^power, i = 0 .. passes - 1, rounded, each at least one behind the one before. Gaps grow
    if power > 1. Networks that run by turns share the passes; see `budgets`."""
    checks.number("power", power, 0)
    each = zip(lengths(T, starts), budgets(passes, T, starts), strict=True)
    return np.concatenate([_by_power(steps, count, power) for steps, count in each])


def _by_power(T: int, passes: int, power: float) -> Mask:
    steps = [0]
    for i in range(1, passes):
        steps.append(max(round(T * (i / passes) ** power), steps[-1] + 1))
    latest = np.arange(T - passes, T)  # the last ones, if rounding up has left too few
    return mask(T, steps=np.minimum(steps, latest).tolist())


def fitted(T: int, *, steps: Sequence[int], T_fitted: int | None, method: str = "hindcast") -> Mask:
    """The steps that a calibration has chosen for this model.

    Raises:
        BadValue: this model has none, or they are for another number of steps.
    """
    measure = f"measure it with python src/calibrate.py algo={method} model=<model> algo.passes=<passes>"
    if not steps:
        raise BadValue(f"this model has no constants for {method} with so many passes: {measure}")
    _check_steps(T, T_fitted, f"the steps of {method} are chosen for", measure)
    return mask(T, steps=steps)


def searched(T: int, *, passes: int, steps: Sequence[int], T_searched: int | None) -> Mask:
    """The steps that were found for this model, algorithm and number of passes.

    Raises:
        BadValue: none were searched, or for another number of steps or passes.
    """
    find = f"python src/search.py algo=<algorithm> model=<model> passes={passes}"
    if not steps:
        raise BadValue(f"no steps were searched for this model and algorithm with {passes} passes: {find}")
    _check_steps(T, T_searched, "these steps were searched with", find)
    computed = mask(T, steps=steps)
    if computed.sum() != passes:
        raise BadValue(f"the searched steps are {computed.sum()}, not {passes}: {find}")
    return computed


def _check_steps(T: int, made_for: int | None, what: str, command: str) -> None:
    if made_for != T:
        raise BadValue(f"{what} num_inference_steps={made_for}: {command} num_inference_steps={T}")


def magcache(
    T: int,
    *,
    ratios: Sequence[float],
    threshold: float,
    longest: int,
    retention: float,
    always: Sequence[int] = (),
    down: bool = False,
    starts: Starts = ALONE,
) -> Mask:
    """MagCache (arXiv:2506.09045, Zehong-Ma/MagCache): skip while |1 - product of the `ratios` since the last computed
    step|, summed over the skipped steps, is at most `threshold`. It tells how far the stack's residual has shrunk or
    grown.

    Args:
        ratios: the residual's norm divided by its norm one step before, as a mean; the first is 1. They are measured
            once for a model, because they hardly depend on the prompt. With another T the nearest entry counts.
        longest: the most steps skipped in a row.
        retention: share of each network's steps that are computed at its beginning.
        always: entries of `ratios` whose steps are always computed.
        down: round the retention's steps down, as the code for HunyuanVideo does; that for FLUX rounds to the nearest
            whole number. That for Wan rounds calls down, two a step, which is the nearest step for the conditional
            branch.

    Raises:
        BadValue: constants that make no sense, or no ratios for this model.
    """
    calibrated("magcache", ratios)
    for ratio in ratios:
        checks.number("ratios", ratio, 0)
    checks.number("threshold", threshold, 0)
    checks.number("retention", retention, 0)
    checks.whole("longest", longest)
    out, ratio, error, skipped = np.ones(T, bool), 1.0, 0.0, 0
    retained = [math.floor(retention * count + (0 if down else 0.5)) for count in lengths(T, starts)]
    kept = {start + i for start, count in zip(starts, retained, strict=True) for i in range(max(1, count))}
    for step in range(T):
        if step in kept:
            ratio, error, skipped = 1.0, 0.0, 0
            continue
        entry = round(step * (len(ratios) - 1) / max(T - 1, 1))
        ratio, skipped = ratio * ratios[entry], skipped + 1
        error += abs(1 - ratio)
        if error <= threshold and skipped <= longest and entry not in always:
            out[step] = False
        else:
            ratio, error, skipped = 1.0, 0.0, 0
    return out


# Curve j: the error of a step's output j + 1 steps later, one number a step; None from one network to another.
Curves = Sequence[Sequence[float | None]]


def smooth_mask(curves: Curves, threshold: float, starts: Starts = ALONE) -> Mask:
    """SmoothCache's mask of one kind of module (arXiv:2411.10510, section 3; Roblox/SmoothCache@54ebe11): after a
    computed step as many are skipped as the curves have, or fewer, if the error that far ahead is at most `threshold`.
    The last step is computed. The authors' scan, driven beside this one, gives the same mask for 2000 random curves."""
    out, step = np.ones(len(curves[0]) + 1, bool), 0
    while step < len(out):
        end = min((start for start in starts if start > step), default=len(out))
        ahead = [curve[step] for curve in curves[: end - step - 1] if step < len(curve)]
        skip = max((j for j, error in enumerate(ahead, 1) if error is not None and error <= threshold), default=0)
        out[step + 1 : step + 1 + skip] = False
        step += 1 + skip
    out[-1] = True
    return out


def smoothcache(T: int, *, errors: Sequence[Curves], threshold: float, starts: Starts = ALONE) -> Mask:
    """The steps at which any kind of module computes (SmoothCache; site=kinds has each kind's own mask).

    Args:
        errors: the curves of each kind, measured for a model.

    Raises:
        BadValue: there are none for this model, or they are for another number of steps.
    """
    measure = "python src/calibrate.py algo=smoothcache model=<model>"
    if not errors:
        raise BadValue(f"this model has no constants for smoothcache yet: measure them with {measure}")
    checks.number("threshold", threshold, 0)
    _check_steps(T, len(errors[0][0]) + 1, "the errors of smoothcache are measured for", measure)
    any_kind: Mask = np.any([smooth_mask(curves, threshold, starts) for curves in errors], axis=0)
    return any_kind


class Decides(Protocol):
    """A gate (decisions.Gate), as far as a schedule needs to know it."""

    @property
    def decide(self) -> Callable[..., bool]: ...


Schedule = Callable[..., Mask] | Decides  # from T to a mask; or a gate


def bare(function: object) -> Any:
    """The function itself, where a YAML's `_partial_: true` made a partial one of it."""
    return getattr(function, "func", function)


def is_gate(schedule: object) -> bool:
    """Whether the schedule decides while the model runs."""
    return hasattr(schedule, "decide")


def plan(schedule: Schedule, T: int, starts: Starts = ALONE) -> Mask | None:
    """The schedule's mask over T steps, checked; None for a gate.

    A schedule that takes `starts` begins anew with each network. One that does not has its steps as they are, and the
    first step of each network besides, which has nothing to forecast from.

    Raises:
        BadValue: T < 1, or the mask is not (T,) bool or leaves step 0 out.
    """
    checks.whole("num_inference_steps", T)
    if is_gate(schedule) or not callable(schedule):
        return None
    more = {"starts": starts} if len(starts) > 1 and "starts" in inspect.signature(schedule).parameters else {}
    out = schedule(T, **more)
    if getattr(out, "dtype", None) is not np.dtype(bool) or out.shape != (T,):
        raise BadValue(f"a schedule must return ({T},) bool, one entry a step")
    if not out[0]:
        raise BadValue("step 0 must be computed: there is nothing to forecast it from")
    begun = np.zeros(T, bool)
    begun[list(starts)] = True
    return out | begun


def supposed(schedule: Schedule, T: int) -> Starts:
    """Where networks may begin, as long as the model is not known: one, or as many as `passes` has numbers."""
    passes = getattr(schedule, "keywords", {}).get("passes")
    if not isinstance(passes, Sequence) or not passes or not all(map(checks.is_whole, passes)):
        return ALONE
    shares = np.cumsum([0, *passes])
    starts: list[int] = np.round(T * shares / max(shares[-1], 1)).astype(int).tolist()[:-1]
    return starts


def calibrated(method: str, numbers: object) -> None:
    """Refuse constants that a model has not been measured for.

    Raises:
        BadValue: there are none, or they are no numbers.
    """
    if not numbers or not isinstance(numbers, Sequence):
        raise BadValue(
            f"this model has no constants for {method} yet, and another model's would make another method: "
            f"measure them with python src/calibrate.py algo={method} model=<model>"
        )
    flat = [value for each in numbers for value in (each if isinstance(each, Sequence) else [each])]
    if not all(map(checks.is_number, flat)):
        raise BadValue(f"the constants of {method} must be numbers, not {checks.brief(list(numbers))}")
