"""Where features are cached. A site puts stand-ins into the denoiser for one session and never decides by itself:
on a computed step it stores, on a skipped one it answers with the session's forecast.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice

from torch import Tensor, nn

from spectrum_bench.anatomy import Anatomy, stacks
from spectrum_bench.caching.sites.base import StandIn, all_blocks, by_name, hidden_of, observe, outputs_of

# ---------------------------------------------------------------------------------------------------------------------
# Block stack: a skipped step bypasses all blocks; prologue and epilogue run with the current timestep


@dataclass(frozen=True)
class LastBlock:
    """The last block's output, image tokens only: what enters the epilogue (Spectrum, arXiv:2603.01623).

    Attributes:
        front: blocks at the beginning that run at every step, for gates that observe them.
    """

    front: int = 0
    runs_blocks = True

    def feature(self, embedded: Tensor, entering: Tensor, leaving: Tensor) -> Tensor:
        return leaving

    def restore(self, embedded: Tensor, entering: Tensor, forecast: Tensor) -> Tensor:
        return forecast

    def attach(self, denoiser, anatomy, session, undo):
        _bypass(self, denoiser, anatomy, session, undo)


@dataclass(frozen=True)
class StackResidual:
    """What all blocks together add to the embedded latent (TeaCache, arXiv:2411.19108; with front=1 DiCache,
    arXiv:2508.17356)."""

    front: int = 0
    runs_blocks = True

    def feature(self, embedded: Tensor, entering: Tensor, leaving: Tensor) -> Tensor:
        return leaving - embedded

    def restore(self, embedded: Tensor, entering: Tensor, forecast: Tensor) -> Tensor:
        return embedded + forecast

    def attach(self, denoiser, anatomy, session, undo):
        _bypass(self, denoiser, anatomy, session, undo)


@dataclass(frozen=True)
class TailResidual:
    """What the blocks behind the front ones add (first-block cache: chengzeyi/ParaAttention, diffusers@58eb52c)."""

    front: int = 1
    runs_blocks = True

    def feature(self, embedded: Tensor, entering: Tensor, leaving: Tensor) -> Tensor:
        return leaving - entering

    def restore(self, embedded: Tensor, entering: Tensor, forecast: Tensor) -> Tensor:
        return entering + forecast

    def attach(self, denoiser, anatomy, session, undo):
        _bypass(self, denoiser, anatomy, session, undo)


class _Entry(StandIn):
    """Stands in for the first block that can be skipped: on a skipped step it gives the whole stack's answer."""

    def __init__(self, block: nn.Module, session, site: LastBlock | StackResidual | TailResidual, anatomy: Anatomy):
        super().__init__(block, session)
        self.site, self.anatomy = site, anatomy
        self.embedded: Tensor | None = None
        self.entering: Tensor | None = None  # (B, L, D); (B, D, H, W) in a U-Net

    def embed(self, block, args, kwargs):
        """Before the first block: what gates observe there."""
        given = by_name(block, args, kwargs)
        self.embedded = given["hidden_states"]
        observe(self.session, self.anatomy, block, given)

    def forward(self, *args, **kwargs):
        given = by_name(self.module, args, kwargs)
        if not self.site.front:
            self.embed(self.module, args, kwargs)
        embedded, entering = self.embedded, given["hidden_states"]
        self.session.arrive("front", probe=lambda: entering)
        if self.session.computing:
            self.entering = entering
            return self.module(*args, **kwargs)
        self.embedded = None
        forecast = self.session.branch.forecast("stack")
        if forecast.shape != entering.shape:
            raise ValueError(
                f"{type(self.module).__name__} cannot be skipped: its input changed from {tuple(forecast.shape)} to "
                f"{tuple(entering.shape)} in a run"
            )
        hidden = self.site.restore(embedded, entering, forecast)
        if self.anatomy.answer is not None:
            return self.anatomy.answer(hidden)
        return outputs_of(self.module, hidden, given)

    def leave(self, block, args, output):
        """After the last block of a computed step: keep the feature."""
        if self.entering is None:
            raise ValueError(f"{type(block).__name__} cannot be skipped: the model does not begin with its first block")
        leaving = self.anatomy.image(hidden_of(block, output), self.entering)
        if leaving.shape != self.entering.shape:
            raise ValueError(
                f"{type(block).__name__} cannot be skipped: it gives {tuple(leaving.shape)} where the first block gets "
                f"{tuple(self.entering.shape)}; say in ANATOMY which stacks count, or which tokens are the image's"
            )
        self.session.branch.store("stack", self.site.feature(self.embedded, self.entering, leaving))
        self.embedded = self.entering = None


class _Through(StandIn):
    """Stands in for a single block between lists: on a skipped step its input passes through."""

    def forward(self, hidden_states, *args, **kwargs):
        return self.module(hidden_states, *args, **kwargs) if self.session.computing else hidden_states


class _Stack(nn.Module):
    """Stands in for a list of blocks, and is empty on skipped steps: their cost must not grow with its length."""

    def __init__(self, blocks: nn.ModuleList, session, entry: _Entry | None):
        super().__init__()
        self.blocks, self.session, self.entry = blocks, session, entry  # entry in the first list alone

    def __len__(self):
        return len(self.blocks)

    def __getitem__(self, index):
        if isinstance(index, slice):
            raise ValueError(f"{type(self.blocks[0]).__name__} cannot be skipped: the model runs its blocks in slices")
        return self.blocks[index]  # the model may read of a block what it likes

    def __iter__(self):
        blocks = iter(self.blocks)
        if self.entry is not None:
            yield from islice(blocks, self.entry.site.front)
            next(blocks)
            yield self.entry  # decides, before the next line asks
        if self.session.computing:
            yield from blocks


def _bypass(site, denoiser, anatomy, session, undo):
    parts = {name: getattr(denoiser, name) for name in stacks(denoiser)}
    blocks = all_blocks(denoiser)
    first = next(iter(parts.values()))
    if not (isinstance(site.front, int) and 0 <= site.front < (len(first) if isinstance(first, nn.ModuleList) else 1)):
        raise ValueError(f"site.front must be a whole number below the length of the first stack, not {site.front}")
    if site.front and anatomy.answer is not None:
        raise ValueError(
            f"{type(denoiser).__name__} has no front blocks that could run at every step: use another algo"
        )
    entry = _Entry(blocks[site.front], session, site, anatomy)
    if site.front:
        undo.callback(blocks[0].register_forward_pre_hook(entry.embed, with_kwargs=True).remove)
    undo.callback(blocks[-1].register_forward_hook(entry.leave).remove)
    for i, (name, part) in enumerate(parts.items()):
        undo.callback(setattr, denoiser, name, part)
        if isinstance(part, nn.ModuleList):
            setattr(denoiser, name, _Stack(part, session, None if i else entry))
        else:
            setattr(denoiser, name, _Through(part, session))
    if isinstance(first, nn.ModuleList) and len(first) > 1:
        _untouched(first[0], first[1], undo)


def _untouched(first: nn.Module, second: nn.Module, undo: ExitStack) -> None:
    """What the second block gets must be what the first gave: a skipped step would do to the forecast whatever the
    model does between them (a ControlNet's residuals, VACE's hints)."""
    given: list[Tensor] = []

    def keep(block, args, output):
        given[:] = [hidden_of(block, output)]

    def check(block, args, kwargs):
        if given and by_name(block, args, kwargs)["hidden_states"] is not given.pop():
            raise ValueError(f"{type(block).__name__} cannot be skipped: the model changes what it gets from the first")

    undo.callback(first.register_forward_hook(keep).remove)
    undo.callback(second.register_forward_pre_hook(check, with_kwargs=True).remove)


# ---------------------------------------------------------------------------------------------------------------------
# Output: a skipped step runs nothing at all


# ---------------------------------------------------------------------------------------------------------------------
# Modules: a skipped step runs the blocks, but their attention and MLPs are forecast


# ---------------------------------------------------------------------------------------------------------------------
# Blocks differ in the order of their arguments and outputs
