"""When to compute, decided while the model runs: one function a paper.

A gate `decide(step, T, seen, memory, **constants) -> bool` is asked once a step and guidance branch whether to compute
it. Step 0 is the noisiest, T the number of steps. `seen` holds the tensors that the gate observes. `memory` is a dict
of the gate's own, empty when a sample begins; its tensors count as cache. Step 0 is computed whatever a gate says.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from spectrum_bench.forecasters import taylor
from spectrum_bench.schedules import bare

# What can be observed, and where in a step it is known: before the denoiser runs, at its first block, or once the
# blocks that a site runs at every step (`front`) have run.
POINTS = ("call", "blocks", "front")
WHERE = {
    "latent": "call",  # what the denoiser is given
    "timestep": "call",  # at which noise level, in the denoiser's own units
    "output": "call",  # what it gave at the newest computed step; None before
    "entering": "blocks",  # the embedded latent
    "modulated": "blocks",  # normalised and modulated by the timestep (`modulated` in ANATOMY)
    "probe": "front",  # the embedded latent after the front blocks
}


def observing(*names: str, shared: bool = False):
    """Declare what a gate observes; `shared`: the second guidance branch follows the first one's decision."""

    def mark(gate: Callable) -> Callable:
        gate.observes, gate.shared = names, shared
        return gate

    return mark


def check(gate: Callable, T: int, site) -> None:
    """Ask the gate once about step 0, with tensors of one zero.

    Raises:
        ValueError: constants that make no sense, or a site where what it observes does not exist.
    """
    names = bare(gate).observes
    gate(0, T, {name: torch.zeros(1) for name in names} | {"output": None}, {})
    points = {WHERE[name] for name in names}
    name = bare(gate).__name__
    if name == "observed" and not hasattr(site, "watched"):
        raise ValueError("schedule=observed is for what decides by itself: algo=diffusers_* or cachedit_* alone")
    if "front" in points and not getattr(site, "front", 0):
        raise ValueError(f"{name} observes the front blocks, and this site does not run them: use site=tail_residual")
    if "blocks" in points and not site.runs_blocks:
        raise ValueError(f"{name} observes the first block, and this site does not run it: use site=stack_residual")


@observing()
def observed(step, T, seen, memory) -> bool:
    """Somebody else's code decides (peers.py); what it computed is observed."""
    return True


@observing("modulated")
def accumulated(step, T, seen, memory, *, threshold, polynomial, first=1, last=1) -> bool:
    """TeaCache (arXiv:2411.19108, eq. 7; ali-vilab/TeaCache@7c10efc): compute when the rescaled relative changes of the
    modulated input, summed since the last computed step, reach `threshold`.

    Args:
        threshold: in units of relative change of the block stack's output.
        polynomial: highest power first; estimates that change from the signal's. Fitted for one model: another model's
            polynomial is another method.
        first, last: how many steps at either end are computed in any case.

    Raises:
        ValueError: constants that make no sense, or no polynomial for this model.
    """
    positive(threshold=threshold)
    calibrated("teacache", polynomial)
    steps_in(first=first, last=last)
    change = moved(memory, "modulated", seen["modulated"])
    memory["total"] = memory.get("total", 0.0) + float(np.polyval(polynomial, change))
    if first <= step < T - last and memory["total"] < threshold:
        return False
    memory["total"] = 0.0
    return True


@observing("entering", "probe")
def first_block(step, T, seen, memory, *, threshold) -> bool:
    """First-block cache (chengzeyi/ParaAttention; diffusers@58eb52c, FirstBlockCacheConfig): compute unless what the
    front blocks add is within `threshold` of what they added at the last computed step. Nothing is summed up."""
    positive(threshold=threshold)
    added = seen["probe"] - seen["entering"]
    if "added" in memory and distance(added, memory["added"]) < threshold:
        return False
    memory["added"] = added
    return True


@observing("latent", "output", shared=True)
def easycache(step, T, seen, memory, *, threshold, first, last=1) -> bool:
    """EasyCache (arXiv:2507.02860, H-EmbodVis/EasyCache): the output is taken to move as it did for the latent's move
    between the last two computed steps; compute when these estimates, summed, reach `threshold`."""
    positive(threshold=threshold)
    steps_in(first=first, last=last)
    x, v = seen["latent"], seen["output"]
    before, memory["latent"] = memory.get("latent"), x
    if memory.get("computed"):  # v is new, and `before` is what it was computed from
        if "v" in memory:
            memory["rate"] = mean(v - memory["v"]) / mean(before - memory["x"])
        memory["v"], memory["x"] = v, before
    if first <= step < T - last and "rate" in memory:
        memory["total"] = memory.get("total", 0.0) + float(memory["rate"] * mean(x - before) / mean(v))
        memory["computed"] = not memory["total"] < threshold
    else:
        memory["computed"] = True
    if memory["computed"]:
        memory["total"] = 0.0
    return memory["computed"]


@observing("entering", "probe")
def dicache(step, T, seen, memory, *, threshold, retention, last=1, minus=False) -> bool:
    """DiCache (arXiv:2508.17356, Bujiazi/DiCache): compute when the probe's relative changes from step to step, summed,
    reach `threshold`. `minus`: count |probe's change - input's change|. The forecaster `aligned` reads the memory."""
    positive(threshold=threshold)
    if not 0 <= retention <= 1:
        raise ValueError(f"retention must be a share of the steps in [0, 1], not {retention}")
    change = moved(memory, "probe", seen["probe"])
    if minus:
        change = abs(change - moved(memory, "entering", seen["entering"]))
    memory["total"] = memory.get("total", 0.0) + change
    memory["residual"] = seen["probe"] - seen["entering"]
    if math.floor(retention * T) < step < T - last and memory["total"] < threshold:
        return False
    memory["residuals"] = [*memory.get("residuals", []), memory["residual"]][-2:]
    memory["total"] = 0.0
    return True


@observing("probe")
def confidence(step, T, seen, memory, *, threshold, order=1, first=5, last=1) -> bool:
    """Confidence-gated Taylor (arXiv:2508.02240; PaddleMIX, CG-Taylor): the front block is forecast too, from the
    steps at which this test failed; compute unless that forecast is within `threshold` of the truth. The published
    file compares a tensor with False by identity, so that nothing would ever be skipped: here is what it means."""
    positive(threshold=threshold)
    steps_in(first=first, last=last)
    if step < first:
        return True
    times, rows, probe = memory.setdefault("times", []), memory.setdefault("rows", []), seen["probe"]
    if rows and step < T - last:
        weights = taylor(np.array(times, float), step, order=order)
        forecast = sum(w * row for w, row in zip(weights.tolist(), rows, strict=True))
        if distance(forecast, probe) < threshold:
            return False
    times.append(step)
    rows.append(probe)
    del times[: -order - 1], rows[: -order - 1]
    return True


@observing("latent", "timestep", shared=True)
def sencache(step, T, seen, memory, *, threshold, start, longest, timesteps, latent, time) -> bool:
    """SenCache (arXiv:2602.24208, vita-epfl/SenCache): compute when latent and timestep have moved so far since the
    last computed step that the output, by its measured sensitivities to both, has moved by `threshold` (RMS).

    Args:
        threshold, start: `start` holds in the first fifth of the steps.
        longest: fewer steps than this are skipped in a row.
        timesteps, latent, time: where the sensitivities were measured, to the latent and to the timestep.

    Raises:
        ValueError: constants that make no sense, or no sensitivities for this model.
    """
    positive(threshold=threshold, start=start)
    steps_in(longest=longest)
    for numbers in (timesteps, latent, time):
        calibrated("sencache", numbers)
    z, t, skipped = seen["latent"], float(seen["timestep"].flatten()[0]), memory.get("skipped", 0)
    if "z" in memory:
        near = int(np.abs(np.array(timesteps) - memory["t"]).argmin())
        moved = latent[near] * float((z - memory["z"]).float().norm()) + time[near] * abs(t - memory["t"])
        if moved < (start if step < 0.2 * T else threshold) * z.numel() ** 0.5 and skipped < longest:
            memory["skipped"] = skipped + 1
            return False
    memory |= {"z": z, "t": t, "skipped": 0}
    return True


@observing()
def speca(step, T, seen, memory, *, threshold, decay, shortest, longest, first, least=0.1, immediate=False) -> bool:
    """SpeCa (arXiv:2509.11628; Shenyi-Z/Cache4Diffusion@91a1949): once `shortest` steps in a row are skipped, the last
    block runs as well and its forecast is verified; compute when its error exceeds threshold decay^(step / T), at
    least `least`, or after `longest` skipped steps.

    As in the published code the step after a computed one is always skipped, even among the `first`, and an error takes
    effect at the next step. `immediate`, as the paper has it: the step itself is computed.
    """
    positive(threshold=threshold, decay=decay, least=least)
    steps_in(shortest=shortest, longest=longest, first=first)
    error, skipped = memory.pop("error", None), memory.get("skipped", 0)
    limit = max(threshold * decay ** (step / T), least)
    after_full = step > 0 and skipped == 0
    verified = skipped >= shortest and error is not None and not immediate
    full = not after_full and (step < first or skipped >= longest or verified and error > limit)
    memory["skipped"] = 0 if full else skipped + 1
    verify = not full and not after_full and skipped >= shortest
    memory["verify"] = relative if verify else None
    memory["limit"] = limit if verify and immediate else math.inf
    return full


def relative(forecast: Tensor, real: Tensor) -> float:
    """SpeCa's error: mean |forecast - real| / |real|, element by element, hence its large thresholds."""
    return float(((forecast - real).abs() / (real.abs() + 1e-10)).float().mean())


# ---------------------------------------------------------------------------------------------------------------------


def moved(memory: dict, name: str, tensor: Tensor) -> float:
    """Relative change since the last step, nan at the first; keeps the tensor for the next."""
    before, memory[name] = memory.get(name), tensor
    return math.nan if before is None else distance(tensor, before)


def distance(new: Tensor, old: Tensor) -> float:
    """mean |new - old| / mean |old|."""
    return float((new - old).abs().mean() / old.abs().mean())


def mean(tensor: Tensor) -> Tensor:
    return tensor.abs().mean()


def positive(**values) -> None:
    for name, value in values.items():
        if not (isinstance(value, (int, float)) and 0 <= value < math.inf):
            raise ValueError(f"{name} must be a number of at least 0, not {value}")


def steps_in(**values) -> None:
    for name, value in values.items():
        if not (isinstance(value, int) and value >= 0):
            raise ValueError(f"{name} must be a whole number of at least 0, not {value}")


def calibrated(method: str, numbers) -> None:
    """Refuse constants that a model has not been measured for."""
    if not numbers:
        raise ValueError(
            f"this model has no constants for {method} yet, and another model's would make another method: "
            f"measure them with python src/calibrate.py algo={method} model=<model>"
        )
    if not all(isinstance(x, (int, float)) and math.isfinite(x) for x in numbers):
        raise ValueError(f"the constants of {method} must be numbers, not {list(numbers)}")
