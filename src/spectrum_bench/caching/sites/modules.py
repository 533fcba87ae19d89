"""At a skipped step the blocks run, but the outputs of their attention and MLPs are forecast."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

from torch import nn

from spectrum_bench.anatomy import Anatomy, BlockModules, all_blocks
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import Site, StandIn, observe_first_block, replace, replace_forward
from spectrum_bench.decisions import Verifier
from spectrum_bench.errors import DoesNotFit


@dataclass(frozen=True)
class Modules(Site):
    """Attention and MLP outputs of every block, before the gate (FORA, arXiv:2407.01425, section 3; TaylorSeer,
    arXiv:2503.06923, section 3.3; module list as in Shenyi-Z/TaylorSeer@288776d). A skipped step computes the gates,
    and not the norms and modulations of what it does not run, as in that code."""

    verify: bool = False  # let a gate compare the last block's forecast with the truth (SpeCa)

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        blocks = all_blocks(denoiser)
        if self.verify:
            _compute_what_is_rejected(denoiser, session, undo)
        observe_first_block(blocks[0], anatomy, session, undo)
        for i, block in enumerate(blocks):
            modules, last = known(block, anatomy), self.verify and block is blocks[-1]
            names = present(block, modules.cached)
            for name in names:
                kind = _Verified if last and name == names[-1] else Cached
                replace(block, name, partial(kind, session=session, slot=f"{i}.{name}"), undo)
            for name in unread(block, modules, modules.cached):
                idle = partial(_Feeding if last else Idle, session=session, left=modules.left)
                replace(block, name, idle, undo)


def known(block: nn.Module, anatomy: Anatomy) -> BlockModules:
    """The modules of a block.

    Raises:
        DoesNotFit: ANATOMY does not know them.
    """
    modules = anatomy.modules.get(type(block).__name__)
    if modules is None:
        raise DoesNotFit(
            f"per-module caching does not know the modules of {type(block).__name__}: "
            "use site=last_block, or add them to ANATOMY"
        )
    return modules


def present(block: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of the paths that lead to a module of the block; SD3's blocks lack some."""
    whole: Any = block
    parts = {name: reduce(lambda part, step: getattr(part, step, None), name.split("."), whole) for name in names}
    return [name for name, part in parts.items() if part is not None]


def unread(block: nn.Module, modules: BlockModules, forecast: Iterable[str]) -> list[str]:
    """The modules whose output nothing but these cached ones reads."""
    return [name for name in present(block, modules.idle) if set(present(block, modules.idle[name])) <= set(forecast)]


class Cached(StandIn):
    """Stands in for a module: stores its outputs at a computed step, and gives their forecast at a skipped one."""

    def __init__(self, module: nn.Module, session: Session, slot: str):
        super().__init__(module, session)
        self.slot = slot
        self.outputs = 0  # length of the tuple that the module returns; 0 for a plain tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        branch = self.session.branch
        if branch.computing:
            out = self.module(*args, **kwargs)
            self.outputs = len(out) if isinstance(out, tuple) else 0
            for i, feature in enumerate(out if self.outputs else (out,)):
                branch.store(f"{self.slot}.{i}", feature)
            return out
        features = tuple(branch.forecast(f"{self.slot}.{i}") for i in range(max(self.outputs, 1)))
        return features if self.outputs else features[0]


class Idle(StandIn):
    """Stands in for a module whose output only forecast modules read: at a skipped step it gives the first `left`
    tokens of what it gets. With 0 of them the modulation that follows has nothing to do, and starts no kernel."""

    def __init__(self, module: nn.Module, session: Session, left: int):
        super().__init__(module, session)
        self.left = left
        self.outputs = 0

    @property
    def runs(self) -> bool:
        """Whether the module runs in this step and branch. A gate may read its output before the decision."""
        return not self.session.skipping

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.runs:
            out = self.module(*args, **kwargs)
            self.outputs = len(out) if isinstance(out, tuple) else 0
            return out
        streams = [*args, *(kwargs[k] for k in ("hidden_states", "encoder_hidden_states") if k in kwargs)]
        nothing = tuple(stream[:, : self.left] for stream in streams[: max(self.outputs, 1)])
        return nothing if self.outputs else nothing[0]


def _verifier(session: Session) -> Verifier | None:
    """The gate's state, if it asks for a verification of this skipped step's forecast."""
    state = session.branch.state
    return state if isinstance(state, Verifier) and state.verifies else None


class _Verified(Cached):
    """Stands in for the last block's last cached module. If the gate asks for it, the module also runs at a skipped
    step, and the gate gets forecast and output."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out, verifier = super().forward(*args, **kwargs), _verifier(self.session)
        if not self.session.computing and verifier is not None:
            verifier.verify(out, self.module(*args, **kwargs))
        return out


class _Feeding(Idle):
    """Stands in for a module that the verified one reads: it runs when that one runs."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if _verifier(self.session) is not None:
            return self.module(*args, **kwargs)
        return super().forward(*args, **kwargs)


def _compute_what_is_rejected(denoiser: nn.Module, session: Session, undo: ExitStack) -> None:
    """Compute a skipped step after all if the gate rejects its forecast."""
    run = denoiser.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        out, branch, verifier = run(*args, **kwargs), session.branch, session.branch.state
        if not branch.computing and isinstance(verifier, Verifier) and verifier.rejects:
            verifier.note_computed()
            branch.begin(session.step, True)
            out = run(*args, **kwargs)
        return out

    replace_forward(denoiser, forward, undo)
