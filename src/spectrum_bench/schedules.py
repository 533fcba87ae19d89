"""When to compute: at which of the T denoising steps the network really runs.

A *mask* is a pure function of T. A *gate* reads one number a step, how far its signal moved since the step before,
and is asked step by step. Step 0 is the noisiest.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Mask = np.ndarray  # (T,) bool, True = compute
Decide = Callable[[int, float], bool]  # (step, relative change of the signal) -> compute?


def full(T: int) -> Mask:
    """Every step: the reference."""
    return np.ones(T, bool)


def uniform(T: int, *, interval: int, warmup: int = 1) -> Mask:
    """`warmup` steps, then every `interval`-th (FORA, arXiv:2407.01425; TaylorSeer, arXiv:2503.06923).

    The counter of Shenyi-Z/TaylorSeer@288776d: a step is full if fewer than `warmup` came before it or `interval - 1`
    steps in a row were skipped. FORA's own DiT code counts down from the last step; the FLUX ports of it do not.
    """
    _whole(interval=interval)
    return adaptive_window(T, window=interval, flex=0.0, warmup=warmup)


def adaptive_window(T: int, *, window: float, flex: float, warmup: int) -> Mask:
    """Spectrum's schedule (arXiv:2603.01623, appendix B.1): after `warmup` steps the gap starts at `window` and grows
    by `flex` at every computed step. The last step is not forced.

    The counter of hanjq17/Spectrum@f7b7841, which rounds the growing window to three decimals.
    """
    _whole(warmup=warmup)
    _number("window", window, 1)
    _number("flex", flex, 0)
    out = np.arange(T) < warmup
    step = warmup - 1
    while (step := step + int(window)) < T:
        out[step] = True
        window = round(window + flex, 3)
    return out


def mask(T: int, *, steps: Sequence[int]) -> Mask:
    """Exactly the steps of a list, for replaying what another method or implementation computed."""
    if isinstance(steps, (str, int, float)):
        raise ValueError(f"steps must be a list of whole numbers, e.g. [0,1,5], not {steps}")
    wrong = [s for s in steps if not (isinstance(s, int) and 0 <= s < T)]
    if wrong:
        raise ValueError(f"steps must be whole numbers from 0 to {T - 1}, not {wrong}")
    out = np.zeros(T, bool)
    out[steps] = True
    return out


@dataclass(frozen=True)
class Accumulated:
    """TeaCache (arXiv:2411.19108, eq. 7; ali-vilab/TeaCache@7c10efc): compute when the rescaled relative L1 changes of
    the timestep-modulated input, summed since the last computed step, reach `threshold`.

    Attributes:
        threshold: in units of relative change of the block stack's output.
        polynomial: highest power first; estimates that change from the signal's. Fitted for one model, see
            src/calibrate.py: another model's polynomial is another method.
        first, last: how many steps at either end are computed in any case.
    """

    threshold: float
    polynomial: Sequence[float]
    first: int = 1
    last: int = 1

    def __post_init__(self):
        _number("threshold", self.threshold, 1e-12)
        if not self.polynomial:
            raise ValueError("this model has no TeaCache polynomial yet: fit one with src/calibrate.py model=<model>")
        for coefficient in self.polynomial:
            _number("polynomial", coefficient, -math.inf)
        _whole(first=self.first)
        _number("last", self.last, 0)

    def start(self, T: int) -> Decide:
        """A fresh decision function for one sample and one guidance branch."""
        total = 0.0

        def decide(step: int, change: float) -> bool:
            nonlocal total
            if self.first <= step < T - self.last:
                total += float(np.polyval(self.polynomial, change))
                if total < self.threshold:
                    return False
            total = 0.0
            return True

        return decide


Schedule = Callable[[int], Mask] | Accumulated


def is_gate(schedule: Schedule) -> bool:
    """Whether the schedule decides by a signal that only the running model can give."""
    return hasattr(schedule, "start")


def plan(schedule: Schedule, T: int) -> Mask | None:
    """The schedule's mask over T steps, checked; None for a gate.

    Raises:
        ValueError: T < 1, or the mask is not (T,) bool or leaves step 0 out.
    """
    if not (isinstance(T, int) and T >= 1):
        raise ValueError(f"num_inference_steps must be a whole number of at least 1, not {T}")
    if is_gate(schedule):
        return None
    out = schedule(T)
    if getattr(out, "dtype", None) is not np.dtype(bool) or out.shape != (T,):
        raise ValueError(f"a schedule must return ({T},) bool, one entry a step")
    if not out[0]:
        raise ValueError("step 0 must be computed: there is nothing to forecast it from")
    return out


def starter(schedule: Schedule, T: int) -> Callable[[], Decide]:
    """Makes decision functions, one for each guidance branch."""
    steps = plan(schedule, T)
    if steps is None:
        return lambda: schedule.start(T)
    return lambda: lambda step, change: bool(steps[step])


def _whole(**values: int) -> None:
    for name, value in values.items():
        if not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{name} must be a whole number of at least 1, not {value}")


def _number(name: str, value: float, least: float) -> None:
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= least):
        bound = f" of at least {least:g}" if math.isfinite(least) else ""
        raise ValueError(f"{name} must be a number{bound}, not {value}")
