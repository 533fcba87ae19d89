"""Sites where a part of every block, or a part of the blocks, runs at skipped steps too."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from spectrum_bench import checks
from spectrum_bench.anatomy import Anatomy, all_blocks
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import Site, observe_first_block, replace
from spectrum_bench.caching.sites.modules import Cached, Idle, known, present, unread
from spectrum_bench.decisions import Gate
from spectrum_bench.errors import DoesNotFit
from spectrum_bench.forecasters import Forecaster, reuse
from spectrum_bench.gates import BroadcastState, broadcast
from spectrum_bench.schedules import Schedule, bare, plan, smooth_mask, smoothcache


@dataclass(frozen=True)
class Attentions(Site):
    """The outputs of every attention; MLPs run at every step (Pyramid Attention Broadcast, arXiv:2408.12588).

    Attributes:
        cross: where the gate broadcasts, cross-attention to the text runs at the computed steps whose number is a
            multiple of this, and its newest output is reused at all others. 1: as often as self-attention.
    """

    cross: int = 1

    @property
    def steps_differ(self) -> bool:
        return self.cross > 1

    def check(self, schedule: Schedule, forecaster: Forecaster) -> None:
        checks.whole("site.cross", self.cross)
        if self.cross > 1 and not (isinstance(schedule, Gate) and schedule.method is broadcast):
            raise DoesNotFit("cross-attention has a range of its own under algo=pab alone: add site.cross=1")

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        blocks = all_blocks(denoiser)
        observe_first_block(blocks[0], anatomy, session, undo)

        def reused() -> bool:
            state = session.branch.state
            rests = isinstance(state, BroadcastState) and state.within and session.step % self.cross > 0
            return session.skipping or rests

        for i, block in enumerate(blocks):
            modules = known(block, anatomy)
            for name in present(block, modules.attentions):
                crosses = self.cross > 1 and getattr(block.get_submodule(name), "is_cross_attention", False)
                kind = partial(_OfKind, reused=reused) if crosses else Cached
                replace(block, name, partial(kind, session=session, slot=f"{i}.{name}"), undo)
            for name in unread(block, modules, modules.attentions):
                replace(block, name, partial(Idle, session=session, left=modules.left), undo)


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
            return lambda: session.skipping and (front if session.step >= late else rear)

        for i, block in enumerate(blocks):
            modules = known(block, anatomy)
            for name in present(block, modules.cached):
                forecast = partial(_Sometimes, session=session, slot=f"{i}.{name}", reused=reused(i))
                replace(block, name, forecast, undo)
            for name in unread(block, modules, modules.cached):
                idle = partial(_Unread, session=session, left=modules.left, reused=reused(i))
                replace(block, name, idle, undo)


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
            each = {kind: smooth_mask(curve, rule["threshold"], session.starts) for kind, curve in curves}
            masks = {kind: mask.tolist() for kind, mask in each.items()}
        else:  # a trial of a few steps, which counts what they cost (sampling/counting.py): one mask for all kinds
            whole = plan(session.schedule, session.num_steps)
            masks = dict.fromkeys(self.kinds or (), [] if whole is None else whole.tolist())

        def reused(*kinds: str) -> Callable[[], bool]:
            return lambda: not any(masks[kind][session.step] for kind in kinds)

        for i, block in enumerate(all_blocks(denoiser)):
            modules = known(block, anatomy)
            names = present(block, modules.cached)
            if not set(names) <= set(masks):
                raise DoesNotFit(f"smoothcache was measured for {', '.join(masks)}, and not for {', '.join(names)}")
            for name in names:
                reuse_newest = partial(_OfKind, session=session, slot=f"{i}.{name}", reused=reused(name))
                replace(block, name, reuse_newest, undo)
            for name in unread(block, modules, modules.cached):
                readers = present(block, modules.idle[name])
                idle = partial(_Unread, session=session, left=modules.left, reused=reused(*readers))
                replace(block, name, idle, undo)


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
    """Stands in for a module that runs at steps of its own, and gives its newest output at the others."""

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
    """Stands in for a module that only such modules read: it runs when one of them runs."""

    def __init__(self, module: nn.Module, session: Session, left: int, reused: Callable[[], bool]):
        super().__init__(module, session, left)
        self.reused = reused

    @property
    def runs(self) -> bool:
        return not self.reused()
