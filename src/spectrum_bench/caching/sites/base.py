"""The base of all sites, stand-ins for modules, and the hook at the first block for gates."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import nn

from spectrum_bench.anatomy import Anatomy, BlockIO
from spectrum_bench.caching.replacing import replace_method
from spectrum_bench.caching.session import Session
from spectrum_bench.forecasters import Forecaster
from spectrum_bench.schedules import Schedule
from spectrum_bench.signals import FirstBlock


class Site:
    """Where features are cached. A site puts stand-ins into the denoiser for one session. It does not decide: at a
    computed step it stores features, and at a skipped step it uses the session's forecast."""

    @property
    def runs_blocks(self) -> bool:
        """Whether every step reaches the first block."""
        return True

    @property
    def front(self) -> int:
        """How many of the first blocks run at every step, for gates that observe them."""
        return 0

    @property
    def bands(self) -> bool:
        """Whether the feature is split into frequency bands, (B, 2, L, D)."""
        return False

    @property
    def decides(self) -> bool:
        """Whether other people's code decides which steps are computed (peers.py)."""
        return False

    @property
    def at_scheduler(self) -> bool:
        """Whether outputs of several steps are joined at the scheduler, so that they must be one denoiser's."""
        return False

    @property
    def defers_control(self) -> bool:
        """Whether a skipped step adds no residual of a ControlNet, so that it need not run there."""
        return False

    @property
    def steps_differ(self) -> bool:
        """Whether what a step computes depends on its number, and not only on being computed or on its place in the
        gap. Then the operations of a sample do not follow from a few of its steps."""
        return False

    def check(self, schedule: Schedule, forecaster: Forecaster) -> None:
        """Refuse a schedule or a forecaster that does not fit this site, before a model loads.

        Raises:
            DoesNotFit: they do not fit; the message names the fix.
        """

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        """Put the stand-ins in place, and push their removal onto `undo`.

        Raises:
            DoesNotFit: this site does not know the denoiser.
        """
        raise NotImplementedError

    def attach_scheduler(self, scheduler: Any, session: Session, undo: ExitStack) -> None:
        """Watch the pipeline's scheduler, if this site replaces latents; called once a sample, `attach` once for each
        denoiser."""


@dataclass(frozen=True)
class Around(Site):
    """Another site, about which something is changed: everything else is as there.

    Attributes:
        site: the site that forecasts.
    """

    site: Site

    @property
    def runs_blocks(self) -> bool:
        return self.site.runs_blocks

    @property
    def front(self) -> int:
        return self.site.front

    @property
    def bands(self) -> bool:
        return self.site.bands

    @property
    def decides(self) -> bool:
        return self.site.decides

    @property
    def at_scheduler(self) -> bool:
        return self.site.at_scheduler

    @property
    def defers_control(self) -> bool:
        return self.site.defers_control

    @property
    def steps_differ(self) -> bool:
        return self.site.steps_differ

    def check(self, schedule: Schedule, forecaster: Forecaster) -> None:
        self.site.check(schedule, forecaster)

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        self.site.attach(denoiser, anatomy, session, undo)

    def attach_scheduler(self, scheduler: Any, session: Session, undo: ExitStack) -> None:
        self.site.attach_scheduler(scheduler, session, undo)


class StandIn(nn.Module):
    """Takes a module's place in its parent. Attributes that the parent reads are still the module's own."""

    module: Any
    session: Session

    def __init__(self, module: nn.Module, session: Session):
        super().__init__()
        self.module, self.session = module, session

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def replace(module: nn.Module, name: str, stand_in: Callable[[nn.Module], nn.Module], undo: ExitStack) -> None:
    """Put the stand-in that is made of a part of the module in its place; `name` is a path. `undo` puts the part
    back."""
    path, _, last = name.rpartition(".")
    parent = module.get_submodule(path)
    part = getattr(parent, last)
    undo.callback(setattr, parent, last, part)
    setattr(parent, last, stand_in(part))


def replace_forward(denoiser: nn.Module, forward: Callable[..., Any], undo: ExitStack) -> None:
    """Make a denoiser run `forward`. `undo` restores the old function, which may be the wrapper of an offload hook."""
    replace_method(denoiser, "forward", forward, undo)


def observe_first_block(block: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
    """For sites that run every block: give the session the first block's arguments, if the gate observes them."""
    if FirstBlock not in session.places:
        return
    io = BlockIO(block)

    def look(block: nn.Module, args: Any, kwargs: Any) -> None:
        session.decide_at(FirstBlock(block, io.arguments(args, kwargs), anatomy))

    undo.callback(block.register_forward_pre_hook(look, with_kwargs=True).remove)
