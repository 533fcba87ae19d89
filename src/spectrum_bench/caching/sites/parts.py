"""Sites where a part of every block, or a part of the blocks, runs at skipped steps too."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import nn

from spectrum_bench import checks
from spectrum_bench.anatomy import Anatomy, all_blocks
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import Site, observe_first_block
from spectrum_bench.caching.sites.modules import Cached, Idle, known, present, replace
from spectrum_bench.errors import DoesNotFit
from spectrum_bench.forecasters import Forecaster, reuse
from spectrum_bench.schedules import Schedule, bare, plan, smooth_mask, smoothcache


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

    @property
    def steps_differ(self) -> bool:
        return True

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


@dataclass(frozen=True)
class Kinds(Site):
    """Attention and MLP outputs of every block, each kind of module (by name: attn, ff, ...) with a mask of its own
    (SmoothCache, arXiv:2411.10510). A step counts as computed if any kind runs.

    Attributes:
        kinds: the names of the modules, in the order of the schedule's error curves.
    """

    kinds: Sequence[str] | None

    @property
    def steps_differ(self) -> bool:
        return True

    def check(self, schedule: Schedule, forecaster: Forecaster) -> None:
        if bare(schedule) is not smoothcache:
            raise DoesNotFit("masks of kinds of modules come from their own schedule: use algo=smoothcache")
        if bare(forecaster) is not reuse:
            raise DoesNotFit("modules with masks of their own are reused: use algo=smoothcache")

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        rule = getattr(session.schedule, "keywords", {})
        if bare(session.schedule) is smoothcache:
            curves = zip(self.kinds or (), rule["errors"], strict=True)
            masks = {kind: smooth_mask(each, rule["threshold"]).tolist() for kind, each in curves}
        else:  # a trial of a few steps, which counts what they cost (sampling/counting.py): one mask for all kinds
            whole = plan(session.schedule, session.num_steps)
            masks = dict.fromkeys(self.kinds or (), [] if whole is None else whole.tolist())

        def reused(kind: str) -> Callable[[], bool]:
            return lambda: not masks[kind][session.step]

        for i, block in enumerate(all_blocks(denoiser)):
            modules = known(block, anatomy)
            names = present(block, modules.cached)
            if not set(names) <= set(masks):
                raise DoesNotFit(f"smoothcache was measured for {', '.join(masks)}, and not for {', '.join(names)}")
            for name in names:
                replace(block, name, _OfKind(getattr(block, name), session, f"{i}.{name}", reused(name)), undo)
            for name in modules.idle:  # the block's only cached module reads them
                stand_in = _Unread(getattr(block, name), session, f"{i}.{name}", reused(names[0]))
                replace(block, name, stand_in, undo)


class _Sometimes(Cached):
    """Stands in for a module that gives its forecast at some skipped steps, and runs at the others."""

    def __init__(self, module: nn.Module, session: Session, slot: str, reused: Callable[[], bool]):
        super().__init__(module, session, slot)
        self.reused = reused

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.session.computing or self.reused():
            return super().forward(*args, **kwargs)
        return self.module(*args, **kwargs)


class _OfKind(_Sometimes):
    """Stands in for a module that runs by its own mask, and gives its newest output at other steps."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        branch = self.session.branch
        if self.reused():
            newest = tuple(branch.histories[f"{self.slot}.{i}"].combine((1.0,)) for i in range(max(self.outputs, 1)))
            return newest if self.outputs else newest[0]
        out = self.module(*args, **kwargs)
        self.outputs = len(out) if isinstance(out, tuple) else 0
        for i, feature in enumerate(out if self.outputs else (out,)):
            branch.store(f"{self.slot}.{i}", feature)
        return out


class _Unread(Idle):
    """Stands in for a module that only such a module reads: it runs when that one runs."""

    def __init__(self, module: nn.Module, session: Session, slot: str, reused: Callable[[], bool]):
        super().__init__(module, session, slot)
        self.reused = reused

    @property
    def runs(self) -> bool:
        return not self.reused()
