"""Sites of the block stack. A skipped step bypasses all blocks; prologue and epilogue run with the current timestep."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spectrum_bench.anatomy import Anatomy, Argument, BlockIO, all_blocks, stacks
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import Site, StandIn
from spectrum_bench.caching.sites.unread import leave_out_unread
from spectrum_bench.errors import BadValue, DoesNotFit
from spectrum_bench.signals import FirstBlock, Front

Streams = dict[str, Tensor]  # by the slot of their feature
Runs = Callable[[], bool]  # whether the blocks run in the current step and branch


class StackSite(Site):
    """A site that bypasses the block stack. It says which feature is cached and how a skipped step restores the output.

    Attributes:
        reads_embedded: whether `restore` reads `embedded` or `entering`.
        one_stream: whether feature and forecast are of the image's stream alone.
    """

    reads_embedded: ClassVar[bool] = True
    one_stream: ClassVar[bool] = False

    @property
    def defers_control(self) -> bool:
        return True

    def feature(self, embedded: Tensor, entering: Tensor, leaving: Tensor) -> Tensor:
        """The feature to cache.

        Args:
            embedded: the image or video tokens before the first block; (B, L, D), in a U-Net (B, D, H, W).
            entering: the same before the first block that can be skipped.
            leaving: the same after the last block.
        """
        raise NotImplementedError

    def restore(self, embedded: Tensor, entering: Tensor, forecast: Tensor) -> Tensor:
        """The last block's output at a skipped step, from the forecast feature."""
        raise NotImplementedError

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        bypass(self, denoiser, anatomy, session, undo, lambda: session.computing)
        if not self.front:  # front blocks read these modules' outputs at every step
            leave_out_unread(denoiser, anatomy, session, undo, self.reads_embedded)


@dataclass(frozen=True)
class LastBlock(StackSite):
    """The last block's output, image tokens only: what enters the epilogue (Spectrum, arXiv:2603.01623).

    Attributes:
        front: how many of the first blocks run at every step, for gates that observe them.
    """

    reads_embedded: ClassVar[bool] = False
    front: int = 0

    def feature(self, embedded: Tensor, entering: Tensor, leaving: Tensor) -> Tensor:
        return leaving

    def restore(self, embedded: Tensor, entering: Tensor, forecast: Tensor) -> Tensor:
        return forecast


@dataclass(frozen=True)
class StackResidual(StackSite):
    """The sum of what all blocks add to the embedded latent (TeaCache, arXiv:2411.19108; with front=1 DiCache,
    arXiv:2508.17356)."""

    front: int = 0

    def feature(self, embedded: Tensor, entering: Tensor, leaving: Tensor) -> Tensor:
        return leaving - embedded

    def restore(self, embedded: Tensor, entering: Tensor, forecast: Tensor) -> Tensor:
        return embedded + forecast


@dataclass(frozen=True)
class TailResidual(StackSite):
    """The sum of what the blocks after the front ones add (first-block cache: chengzeyi/ParaAttention,
    diffusers@58eb52c)."""

    front: int = 1

    def feature(self, embedded: Tensor, entering: Tensor, leaving: Tensor) -> Tensor:
        return leaving - entering

    def restore(self, embedded: Tensor, entering: Tensor, forecast: Tensor) -> Tensor:
        return entering + forecast


class _Entry(StandIn):
    """Stands in for the first block that can be skipped. At a skipped step it returns the whole stack's output."""

    def __init__(self, blocks: list[nn.Module], session: Session, site: StackSite, anatomy: Anatomy, runs: Runs):
        super().__init__(blocks[site.front], session)
        self.site, self.anatomy, self.runs = site, anatomy, runs
        self.io, self.first_io, self.last_io = (BlockIO(block) for block in (self.module, blocks[0], blocks[-1]))
        self.embedded: Streams = {}  # both are held from the first block to the last one of a step
        self.entering: Streams = {}

    def embed(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        """Hook before the first block, if this stand-in replaces a later one."""
        self._embed(block, self.first_io.arguments(args, kwargs))

    def _embed(self, block: nn.Module, arguments: dict[str, Any]) -> None:
        self.embedded = self._streams(self.first_io, arguments)
        if FirstBlock in self.session.places:
            self.session.decide_at(FirstBlock(block, arguments, self.anatomy))

    def _streams(self, io: BlockIO, arguments: dict[str, Any]) -> Streams:
        """What is forecast, by slot, of the tokens that a block gets."""
        streams = {"stack": self.anatomy.entering(arguments)}
        return streams | ({"second": arguments[io.second]} if self.anatomy.second else {})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        arguments = self.io.arguments(args, kwargs)
        if not self.site.front:
            self._embed(self.module, arguments)
        embedded, streams = self.embedded, self._streams(self.io, arguments)
        if Front in self.session.places:
            self.session.decide_at(Front(streams["stack"]))
        if self.runs():
            self.entering = streams
            return self.module(*args, **kwargs)
        self.embedded = {}
        branch, restore = self.session.branch, self.site.restore
        restored = {slot: restore(embedded[slot], streams[slot], branch.forecast(slot)) for slot in streams}
        hidden, entering = restored.pop("stack"), streams["stack"]
        if hidden.shape != entering.shape:
            raise DoesNotFit(
                f"{type(self.module).__name__} cannot be skipped: its input changed from {tuple(hidden.shape)} to "
                f"{tuple(entering.shape)} in a run"
            )
        if entering is not arguments["hidden_states"]:  # a condition's tokens, which nothing behind the blocks needs
            hidden = torch.cat([arguments["hidden_states"][:, : -hidden.shape[1]], hidden], 1)
        if self.anatomy.answer is not None:
            return self.anatomy.answer(hidden)
        return self.io.outputs(hidden, arguments | ({self.io.second: restored["second"]} if restored else {}))

    def leave(self, block: nn.Module, args: Any, output: Any) -> None:
        """Hook after the last block of a computed step: store the feature."""
        if not self.entering:
            raise DoesNotFit(f"{type(block).__name__} cannot be skipped: the model does not begin with its first block")
        entering = self.entering["stack"]
        leaving = self.anatomy.image(self.last_io.hidden(output), entering)
        if leaving.shape != entering.shape:
            raise DoesNotFit(
                f"{type(block).__name__} cannot be skipped: it gives {tuple(leaving.shape)} where the first block gets "
                f"{tuple(entering.shape)}; say in ANATOMY which stacks count, or which tokens are the image's"
            )
        second = self.last_io.text(output)
        if self.session.control is None:
            self.keep(leaving, second)
        else:
            self.session.control.leave(leaving, partial(self.keep, second=second))

    def keep(self, leaving: Tensor, second: Tensor | None) -> None:
        """Store the features."""
        for slot, entering in self.entering.items():
            left = leaving if slot == "stack" else second
            assert left is not None  # ANATOMY says that there is one
            self.session.branch.store(slot, self.site.feature(self.embedded[slot], entering, left))
        self.embedded, self.entering = {}, {}


class _Through(StandIn):
    """Stands in for a single block between lists. At a skipped step its input passes through."""

    def __init__(self, block: nn.Module, session: Session, runs: Runs):
        super().__init__(block, session)
        self.runs = runs

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.module(hidden_states, *args, **kwargs) if self.runs() else hidden_states


class _Stack(nn.Module):
    """Stands in for a list of blocks. At a skipped step it is empty, so that the step's cost does not grow with the
    length of the list."""

    def __init__(self, blocks: nn.ModuleList, entry: _Entry | None, runs: Runs):
        super().__init__()
        self.blocks, self.entry, self.runs = blocks, entry, runs  # entry in the first list alone

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> nn.Module:
        if isinstance(index, slice):
            raise DoesNotFit(f"{type(self.blocks[0]).__name__} cannot be skipped: the model runs its blocks in slices")
        return self.blocks[index]  # the model may read attributes of any block

    def __iter__(self) -> Iterator[nn.Module]:
        blocks = iter(self.blocks)
        if self.entry is not None:
            yield from islice(blocks, self.entry.site.front)
            next(blocks)
            yield self.entry  # the session decides while the entry runs, before the next line
        if self.runs():
            yield from blocks


def bypass(
    site: StackSite, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack, runs: Runs
) -> None:
    """Put stand-ins in place of the block stack. They are empty while the blocks do not run.

    Raises:
        DoesNotFit: the denoiser's blocks cannot be skipped.
        BadValue: the site has more front blocks than the first stack has blocks.
    """
    if anatomy.second and site.one_stream:
        raise DoesNotFit(f"{type(denoiser).__name__} has a second stream to forecast: use site=last_block")
    parts = {name: getattr(denoiser, name) for name in stacks(denoiser)}
    blocks = all_blocks(denoiser)
    first = next(iter(parts.values()))
    if not (isinstance(site.front, int) and 0 <= site.front < (len(first) if isinstance(first, nn.ModuleList) else 1)):
        raise BadValue(f"site.front must be a whole number below the length of the first stack, not {site.front}")
    if site.front and anatomy.answer is not None:
        raise DoesNotFit(
            f"{type(denoiser).__name__} has no front blocks that could run at every step: use another algo"
        )
    _refuse_skipped_layers(denoiser, {*range(site.front + 1), len(blocks) - 1}, undo)
    entry = _Entry(blocks, session, site, anatomy, runs)
    if site.front:
        undo.callback(blocks[0].register_forward_pre_hook(entry.embed, with_kwargs=True).remove)
    undo.callback(blocks[-1].register_forward_hook(entry.leave).remove)
    for i, (name, part) in enumerate(parts.items()):
        undo.callback(setattr, denoiser, name, part)
        if isinstance(part, nn.ModuleList):
            setattr(denoiser, name, _Stack(part, None if i else entry, runs))
        else:
            setattr(denoiser, name, _Through(part, session, runs))
    if isinstance(first, nn.ModuleList) and len(first) > 1 and session.control is None:
        _untouched(first[0], first[1], undo)


def _refuse_skipped_layers(denoiser: nn.Module, needed: set[int], undo: ExitStack) -> None:
    """Refuse skip-layer guidance that leaves out one of the blocks at which the stack begins and ends."""
    skipped = Argument(denoiser, "skip_layers")

    def check(module: nn.Module, args: Any, kwargs: Any) -> None:
        if named := sorted(needed & set(skipped.of(args, kwargs) or ())):
            raise DoesNotFit(
                f"skip_guidance_layers names block {named[0]}, where what is cached begins or ends: name none of "
                f"{', '.join(map(str, sorted(needed)))}, or use site=modules"
            )

    undo.callback(denoiser.register_forward_pre_hook(check, with_kwargs=True).remove)


def _untouched(first: nn.Module, second: nn.Module, undo: ExitStack) -> None:
    """Refuse a model that changes the tokens between its first and second block (VACE's hints): at a skipped step it
    would change the forecast in the same way."""
    given: list[Tensor] = []
    first_io, second_io = BlockIO(first), BlockIO(second)

    def keep(block: nn.Module, args: Any, output: Any) -> None:
        given[:] = [first_io.hidden(output)]

    def check(block: nn.Module, args: Any, kwargs: Any) -> None:
        if given and second_io.arguments(args, kwargs)["hidden_states"] is not given.pop():
            raise DoesNotFit(f"{type(block).__name__} cannot be skipped: the model changes what it gets from the first")

    undo.callback(first.register_forward_hook(keep).remove)
    undo.callback(second.register_forward_pre_hook(check, with_kwargs=True).remove)
