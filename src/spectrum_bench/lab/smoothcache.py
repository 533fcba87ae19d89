"""SmoothCache's error curves of a model (arXiv:2411.10510)."""

from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from torch import Tensor

from spectrum_bench.anatomy import all_blocks, anatomy
from spectrum_bench.caching.algorithm import NOCACHE
from spectrum_bench.caching.session import Session, denoisers
from spectrum_bench.caching.sites.modules import known, present
from spectrum_bench.lab.uncached import Uncached
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.sampler import Observer

REACH = 3  # steps ahead, as the authors look


class Errors(Observer):
    """The relative L1 errors |now - before| / |now| of every module of every block, 1 to REACH steps apart; one list
    for each kind, distance and step."""

    def __init__(self) -> None:
        self.lists: dict[tuple[str, int, int], list[float]] = defaultdict(list)

    def attach(self, pipe: Any, session: Session, undo: ExitStack) -> None:
        before: dict[tuple[str, int, int], deque[Tensor]] = defaultdict(lambda: deque(maxlen=REACH))

        def watch(place: str, kind: str) -> Any:
            def compare(module: Any, args: Any, output: Any) -> None:
                now = output if isinstance(output, Tensor) else output[0]
                past = before[place, session.since, session.call]
                for j, old in enumerate(reversed(past)):
                    error = float((now - old).abs().sum() / now.abs().sum())
                    self.lists[kind, j, session.step - 1 - j].append(error)
                past.append(now)

            return compare

        for denoiser in denoisers(pipe).values():
            for i, block in enumerate(all_blocks(denoiser)):
                for kind in present(block, known(block, anatomy(denoiser)).cached):
                    undo.callback(getattr(block, kind).register_forward_hook(watch(f"{i}.{kind}", kind)).remove)


def calibrate(run: Uncached, jobs: Sequence[Job]) -> dict[str, Any]:
    """The kinds of modules, and for each a curve for every distance j + 1: the error from step s to s + j + 1, (T - 1 -
    j) means over blocks, guidance branches and prompts; None from one network to another."""
    errors, T = Errors(), run.num_steps
    for job in jobs:
        run.sampler(NOCACHE).watch(job, [errors])
    kinds = sorted({kind for kind, _, _ in errors.lists})
    curves = [[[errors.lists[kind, j, s] for s in range(T - 1 - j)] for j in range(REACH)] for kind in kinds]
    means = [[[round(float(np.mean(e)), 5) if e else None for e in curve] for curve in each] for each in curves]
    print(f"{len(jobs)} prompts x {T} steps: errors of {', '.join(kinds)}")
    return {"kinds": kinds, "errors": means}
