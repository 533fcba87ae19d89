"""The cost of a sample as it is known before weights are loaded: its lines for a person, its file, its limit.

`cost.json` in an experiment directory holds it, for tables. `counting.py` counts it.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

from spectrum_bench.errors import UserError
from spectrum_bench.sampling import reading
from spectrum_bench.sampling.reading import Damaged, parse_json, read_text, typed
from spectrum_bench.sampling.records import write_atomically

FILE = "cost.json"


@dataclass(frozen=True)
class Cost:
    """What a sample computes and holds.

    Attributes:
        full_step: floating-point operations of a computed step; a multiply-add is two of them.
        skipped_steps: of the first steps of a gap; in a longer gap the last two go on by turns. Empty where nothing is
            skipped; None where a sample's operations do not follow: other people's code runs, or skipped steps differ.
        cache_bytes: the most bytes that are held for forecasts and decisions at the end of a step, as records have it;
            None if unknown.
        weights_bytes: of all parts of the pipeline; if they are offloaded, the most that are on the card at once while
            the denoiser runs.
        working_bytes: the most bytes of all other tensors at a computed step.
        starts: the first step of each network that runs by turns with others; of one network, 0.
        other_parts_bytes: the most weights on the card at once while another part runs; 0 if nothing is offloaded.
    """

    full_step: int
    skipped_steps: list[int] | None
    cache_bytes: int | None
    weights_bytes: int
    working_bytes: int
    starts: list[int] = field(default_factory=lambda: [0])
    other_parts_bytes: int = 0

    def flops(self, computed: Sequence[int], T: int) -> int | None:
        """Floating-point operations of the denoiser in the T steps of a sample; None if unknown."""
        if self.skipped_steps is None:
            return None
        if len(computed) == T:
            return T * self.full_step
        if not self.skipped_steps:
            return None
        total, since, steps = 0, 0, set(computed)  # since the last computed one
        for step in range(T):
            since = 0 if step in steps else since + 1
            total += self._skipped(since, self.skipped_steps) if since else self.full_step
        return total

    @staticmethod
    def _skipped(since: int, steps: list[int]) -> int:
        over = since - len(steps)
        return steps[since - 1] if over <= 0 else steps[-1 - over % min(2, len(steps))]

    @property
    def peak_bytes(self) -> int | None:
        """About the most memory while the denoiser runs; None if unknown. A decoder may take more."""
        return None if self.cache_bytes is None else self.weights_bytes + self.cache_bytes + self.working_bytes


def lines(cost: Cost, computed: Sequence[int] | None, T: int) -> list[str]:
    """The cost for a person.

    Args:
        computed: the computed steps; None if they are decided on the way.
    """
    steps = f"a full step is {operations(cost.full_step)}"
    if cost.skipped_steps:
        steps += f", a skipped one {' or '.join(dict.fromkeys(map(operations, cost.skipped_steps)))}"
    if computed is not None and (flops := cost.flops(computed, T)):
        steps += f"; a sample is {operations(flops)}, {T * cost.full_step / flops:.2f}x fewer than all steps"
    if cost.cache_bytes is None or cost.peak_bytes is None:
        return [steps, f"weights {size(cost.weights_bytes)}; the cache is other people's and not known beforehand"]
    held = f"cache at most {size(cost.cache_bytes)}, weights {size(cost.weights_bytes)}"
    others = f", {size(cost.other_parts_bytes)} while another part does" if cost.other_parts_bytes else ""
    return [steps, f"{held}, about {size(cost.peak_bytes)} in all while the denoiser runs{others}"]


def of_each(computed: Sequence[int], starts: Sequence[int]) -> str:
    """How many steps each of several networks computes, in words behind their sum; nothing of one network."""
    counts = [sum(step >= start for step in computed) for start in [*starts, math.inf]]
    each = " + ".join(str(more - fewer) for more, fewer in pairwise(counts))
    return f" ({each} by turns)" if len(starts) > 1 else ""


def operations(flops: int) -> str:
    return _with_unit(flops, "FLOPs")


def tera(flops: float) -> str:
    """In units of 10^12, for a column of figures."""
    value = flops / 1e12
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def size(count: int) -> str:
    """Bytes in powers of ten, as cards are sold."""
    return _with_unit(count, "B")


def _with_unit(value: int, unit: str) -> str:
    """Three digits or all before the point: 74.4 TFLOPs, 1,041 TFLOPs."""
    factor, prefix = next(((10**n, p) for n, p in ((12, "T"), (9, "G"), (6, "M"), (3, "k")) if value >= 10**n), (1, ""))
    if prefix == "T" and unit == "B":
        factor, prefix = 10**9, "G"
    number = value / factor
    return f"{number:,.0f} {prefix}{unit}" if number >= 100 else f"{number:.3g} {prefix}{unit}"


def check_memory(cost: Cost, memory: int, card: str) -> None:
    """Refuse what cannot run.

    Args:
        memory: bytes of the card.
        card: its name.

    Raises:
        UserError: weights and cache alone exceed the memory; the message names the ways out.
    """
    cache = cost.cache_bytes or 0
    weights = max(cost.weights_bytes, cost.other_parts_bytes)
    if max(cost.weights_bytes + cache, weights) <= memory:
        return
    need = f"weights take {size(weights)} and the cache {size(cache)}, and {card} has {size(memory)}"
    fewer = "let weights wait elsewhere (model.offload=model or group), keep them in 8 bits (model.quantization=int8)"
    if weights > memory:
        raise UserError(f"{need}: {fewer}, or take a larger card")
    raise UserError(
        f"{need}: cache one tensor a step (site=last_block), keep fewer rows (algo=reuse, or a lower order), make "
        f"smaller samples (model.height, model.width, model.num_frames), {fewer}, or take a larger card"
    )


def write_cost(folder: Path, cost: Cost) -> None:
    write_atomically(folder / FILE, json.dumps(asdict(cost)).encode())


def read_cost(folder: Path) -> Cost | None:
    """The cost in an experiment directory; None if there is none, as in those of older versions.

    Raises:
        UserError: the file is damaged.
    """
    try:
        cost = typed(Cost, parse_json(read_text(folder / FILE, reading.RECORD)))
        if cost.full_step <= 0 or min(cost.skipped_steps or [0]) < 0:
            raise Damaged("a step has no operations")
        return cost
    except FileNotFoundError:
        return None
    except Damaged as reason:
        raise UserError(f"{folder / FILE} is damaged: delete it, and run again ({reason})") from None
