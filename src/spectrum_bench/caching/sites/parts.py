"""Sites where a part of every block, or a part of the blocks, runs at skipped steps too."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import nn

from spectrum_bench import checks
from spectrum_bench.anatomy import Anatomy, all_blocks
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import Site, observe_first_block
from spectrum_bench.caching.sites.modules import Cached, Idle, known, present, replace
from spectrum_bench.forecasters import Forecaster
from spectrum_bench.schedules import Schedule


@dataclass(frozen=True)
class Attentions(Site):
    """The outputs of every attention; MLPs run at every step (Pyramid Attention Broadcast, arXiv:2408.12588)."""

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        blocks = all_blocks(denoiser)
        observe_first_block(blocks[0], anatomy, session, undo)
        for i, block in enumerate(blocks):
            for name in present(block, known(block, anatomy).attentions):
                replace(block, name, Cached(getattr(block, name), session, f"{i}.{name}"), undo)


@dataclass(frozen=True)
class Halves(Site):
    """Attention and MLP outputs of the rear blocks in the first skipped steps of a sample, and of the front blocks in
    later ones; the other blocks run (Delta-DiT, arXiv:2406.01125).

    Attributes:
        switch: the share of the steps after which the front blocks are cached.
        part: how many of the blocks are cached, as a share.
    """

    switch: float = 0.5
    part: float = 0.5

    def check(self, schedule: Schedule, forecaster: Forecaster) -> None:
        checks.number("switch", self.switch, 0, 1)
        checks.number("part", self.part, 0, 1)

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        blocks = all_blocks(denoiser)
        observe_first_block(blocks[0], anatomy, session, undo)
        count = round(self.part * len(blocks))

        def reused(i: int) -> Callable[[], bool]:
            late, front, rear = self.switch * session.num_steps, i < count, i >= len(blocks) - count
            return lambda: not session.computing and (front if session.step >= late else rear)

        for i, block in enumerate(blocks):
            modules = known(block, anatomy)
            for name in (*present(block, modules.cached), *modules.idle):
                stand_in = _Sometimes if name in modules.cached else _Unread
                replace(block, name, stand_in(getattr(block, name), session, f"{i}.{name}", reused(i)), undo)


class _Sometimes(Cached):
    """Stands in for a module that gives its forecast at some skipped steps, and runs at the others."""

    def __init__(self, module: nn.Module, session: Session, slot: str, reused: Callable[[], bool]):
        super().__init__(module, session, slot)
        self.reused = reused

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.session.computing or self.reused():
            return super().forward(*args, **kwargs)
        return self.module(*args, **kwargs)


class _Unread(Idle):
    """Stands in for a module that only such a module reads: it runs when that one runs."""

    def __init__(self, module: nn.Module, session: Session, slot: str, reused: Callable[[], bool]):
        super().__init__(module, session, slot)
        self.reused = reused

    @property
    def runs(self) -> bool:
        return not self.reused()
