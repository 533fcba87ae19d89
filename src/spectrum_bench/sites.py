"""Where features are cached. A site puts stand-ins into the denoiser for one session and never decides by itself:
on a computed step it stores, on a skipped one it answers with the session's forecast.
"""

import inspect
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from .anatomy import Anatomy, block_io, stacks


class Site(Protocol):
    runs_blocks: bool  # at least as far as to the first block's input, at every step

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session, undo: ExitStack) -> None:
        """Put the stand-ins in place and push onto `undo` what takes them out again."""


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


class StandIn(nn.Module):
    """Takes a module's place in its parent; what the parent reads of it is still the module's own."""

    def __init__(self, module: nn.Module, session):
        super().__init__()
        self.module, self.session = module, session

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


class _Entry(StandIn):
    """Stands in for the first block that can be skipped: on a skipped step it gives the whole stack's answer."""

    def __init__(self, block: nn.Module, session, site: LastBlock | StackResidual | TailResidual, anatomy: Anatomy):
        super().__init__(block, session)
        self.site, self.anatomy = site, anatomy
        self.embedded: Tensor | None = None
        self.entering: Tensor | None = None  # (B, L, D); (B, D, H, W) in a U-Net

    def embed(self, block, args, kwargs):
        """Before the first block: what gates observe there."""
        given = _by_name(block, args, kwargs)
        self.embedded = given["hidden_states"]
        _observe(self.session, self.anatomy, block, given)

    def forward(self, *args, **kwargs):
        given = _by_name(self.module, args, kwargs)
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
        return _outputs(self.module, hidden, given)

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
        if given and _by_name(block, args, kwargs)["hidden_states"] is not given.pop():
            raise ValueError(f"{type(block).__name__} cannot be skipped: the model changes what it gets from the first")

    undo.callback(first.register_forward_hook(keep).remove)
    undo.callback(second.register_forward_pre_hook(check, with_kwargs=True).remove)


# ---------------------------------------------------------------------------------------------------------------------
# Output: a skipped step runs nothing at all


@dataclass(frozen=True)
class OutputResidual:
    """What the denoiser's output has more than the latent it was given (EasyCache, arXiv:2507.02860)."""

    runs_blocks = False

    def attach(self, denoiser, anatomy, session, undo):
        run = denoiser.forward

        def forward(*args, **kwargs):
            x = argument(denoiser, 0, args, kwargs)
            if session.computing:
                out = run(*args, **kwargs)
                if out[0].shape != x.shape:
                    raise ValueError(f"{type(denoiser).__name__} cannot be skipped: its output is no latent's shape")
                session.branch.store("output", out[0] - x)
                return out
            v = x + session.branch.forecast("output")
            return Transformer2DModelOutput(sample=v) if kwargs.get("return_dict", True) else (v,)

        denoiser.forward = forward
        undo.callback(delattr, denoiser, "forward")


def argument(denoiser: nn.Module, which: int | str, args: tuple, kwargs: dict):
    """An argument of a denoiser's call by its place (0: the latent) or its name; None where there is none."""
    names = list(inspect.signature(type(denoiser).forward).parameters)[1:]
    place = names.index(which) if which in names else which
    if isinstance(place, int) and place < len(args):
        return args[place]
    return kwargs.get(names[place] if isinstance(place, int) else place)


# ---------------------------------------------------------------------------------------------------------------------
# Modules: a skipped step runs the blocks, but their attention and MLPs are forecast


@dataclass(frozen=True)
class Modules:
    """Attention and MLP outputs of every block, before the gate (FORA, arXiv:2407.01425, section 3; TaylorSeer,
    arXiv:2503.06923, section 3.3; module list as in Shenyi-Z/TaylorSeer@288776d). Norms, modulation and gates run."""

    verify: bool = False  # let a gate compare the last block's forecast with the truth (SpeCa)
    runs_blocks = True

    def attach(self, denoiser, anatomy, session, undo):
        blocks = all_blocks(denoiser)
        if self.verify:
            _redo(denoiser, session, undo)
        observe_first_block(blocks[0], anatomy, session, undo)
        for i, block in enumerate(blocks):
            if type(block).__name__ not in anatomy.modules:
                raise ValueError(
                    f"per-module caching does not know the modules of {type(block).__name__}: "
                    "use site=last_block, or add them to ANATOMY"
                )
            modules, last = anatomy.modules[type(block).__name__], self.verify and block is blocks[-1]
            present = [name for name in modules.cached if getattr(block, name) is not None]  # SD3 lacks some
            stand_ins = dict.fromkeys(present, Cached) | dict.fromkeys(modules.idle, _Idle)
            if last:
                stand_ins |= dict.fromkeys(present[-1:], _Verified) | dict.fromkeys(modules.idle, _Feeding)
            for name, stand_in in stand_ins.items():
                module = getattr(block, name)
                undo.callback(setattr, block, name, module)
                setattr(block, name, stand_in(module, session, f"{i}.{name}"))


class Cached(StandIn):
    """Stands in for a module: stores its output, or each of its outputs, or gives their forecast."""

    def __init__(self, module: nn.Module, session, slot: str):
        super().__init__(module, session)
        self.slot = slot
        self.outputs = 0  # how many the module returns as a tuple; 0 for a plain tensor

    def forward(self, *args, **kwargs):
        branch = self.session.branch
        if branch.computing:
            out = self.module(*args, **kwargs)
            self.outputs = len(out) if isinstance(out, tuple) else 0
            for i, feature in enumerate(out if self.outputs else (out,)):
                branch.store(f"{self.slot}.{i}", feature)
            return out
        features = tuple(branch.forecast(f"{self.slot}.{i}") for i in range(max(self.outputs, 1)))
        return features if self.outputs else features[0]


class _Idle(StandIn):
    """Stands in for a module whose output only feeds a forecast one: on a skipped step it gives zero channels."""

    def __init__(self, module: nn.Module, session, slot: str):
        super().__init__(module, session)
        self.outputs = 0

    def forward(self, *args, **kwargs):
        if self.session.computing:
            out = self.module(*args, **kwargs)
            self.outputs = len(out) if isinstance(out, tuple) else 0
            return out
        streams = [*args, *(kwargs[k] for k in ("hidden_states", "encoder_hidden_states") if k in kwargs)]
        nothing = tuple(stream[..., :0] for stream in streams[: max(self.outputs, 1)])
        return nothing if self.outputs else nothing[0]


class _Verified(Cached):
    """The last block's last cached module: where the gate left `verify`, it also runs, and its error is kept."""

    def forward(self, *args, **kwargs):
        out, memory = super().forward(*args, **kwargs), self.session.branch.memory
        if not self.session.computing and memory.get("verify"):
            memory["error"] = memory["verify"](out, self.module(*args, **kwargs))
        return out


class _Feeding(_Idle):
    """What feeds such a module: it runs when that does."""

    def forward(self, *args, **kwargs):
        if self.session.branch.memory.get("verify"):
            return self.module(*args, **kwargs)
        return super().forward(*args, **kwargs)


def _redo(denoiser: nn.Module, session, undo: ExitStack) -> None:
    """Compute a step after all when its error exceeds the gate's `limit`."""
    run = denoiser.forward

    def forward(*args, **kwargs):
        out, branch = run(*args, **kwargs), session.branch
        if not branch.computing and branch.memory.get("error", 0) > branch.memory.get("limit", float("inf")):
            branch.memory |= {"skipped": 0, "verify": None}
            branch.begin(session.step, True)
            out = run(*args, **kwargs)
        return out

    denoiser.forward = forward
    undo.callback(delattr, denoiser, "forward")


# ---------------------------------------------------------------------------------------------------------------------
# Blocks differ in the order of their arguments and outputs


def all_blocks(denoiser: nn.Module) -> list[nn.Module]:
    """All blocks in the order in which they run."""
    parts = [getattr(denoiser, name) for name in stacks(denoiser)]
    return [block for part in parts for block in (part if isinstance(part, nn.ModuleList) else [part])]


def _by_name(block: nn.Module, args: tuple, kwargs: dict) -> dict:
    """A block's arguments by name, its image or video tokens as "hidden_states"."""
    io = block_io(block)
    names = list(inspect.signature(type(block).forward).parameters)[1:]
    given = dict(zip(names, args, strict=False)) | kwargs
    return given | {"hidden_states": given[io.hidden_states_argument_name]}


def hidden_of(block: nn.Module, output) -> Tensor:
    """Of a block's output the image or video tokens."""
    return output if isinstance(output, Tensor) else output[block_io(block).return_hidden_states_index]


def _outputs(block: nn.Module, hidden: Tensor, given: dict):
    """`hidden` in the place where the block's own output has it; the text stream passes through."""
    io = block_io(block)
    if io.return_encoder_hidden_states_index is None:
        return hidden
    out = {io.return_hidden_states_index: hidden}
    out[io.return_encoder_hidden_states_index] = given[io.encoder_hidden_states_argument_name]
    return tuple(out[i] for i in sorted(out))


def observe_first_block(block: nn.Module, anatomy: Anatomy, session, undo: ExitStack) -> None:
    """For sites that run every block: what gates observe at the first one."""

    def look(block, args, kwargs):
        _observe(session, anatomy, block, _by_name(block, args, kwargs))

    undo.callback(block.register_forward_pre_hook(look, with_kwargs=True).remove)


def _observe(session, anatomy: Anatomy, block: nn.Module, given: dict) -> None:
    """What gates may want of the first block's arguments."""
    session.arrive(
        "blocks", entering=lambda: given["hidden_states"], modulated=lambda: _modulated(block, anatomy, given)
    )


def _modulated(block: nn.Module, anatomy: Anatomy, given: dict) -> Tensor:
    if anatomy.modulated is None:
        raise ValueError(f"no timestep-modulated input is known for {type(block).__name__}: add it to ANATOMY")
    return anatomy.modulated(block, given)
