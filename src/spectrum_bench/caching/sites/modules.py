"""At a skipped step the blocks run, but the outputs of their attention and MLPs are forecast."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import nn

from spectrum_bench.anatomy import Anatomy, BlockModules, all_blocks
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import Site, StandIn, observe_first_block, replace_forward
from spectrum_bench.decisions import Verifier
from spectrum_bench.errors import DoesNotFit


@dataclass(frozen=True)
class Modules(Site):
    """Attention and MLP outputs of every block, before the gate (FORA, arXiv:2407.01425, section 3; TaylorSeer,
    arXiv:2503.06923, section 3.3; module list as in Shenyi-Z/TaylorSeer@288776d). Norms, modulation and gates run."""

    verify: bool = False  # let a gate compare the last block's forecast with the truth (SpeCa)

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        blocks = all_blocks(denoiser)
        if self.verify:
            _compute_what_is_rejected(denoiser, session, undo)
        observe_first_block(blocks[0], anatomy, session, undo)
        for i, block in enumerate(blocks):
            modules, last = known(block, anatomy), self.verify and block is blocks[-1]
            names = present(block, modules.cached)
            stand_ins: dict[str, type[Cached] | type[Idle]] = dict.fromkeys(names, Cached)
            stand_ins |= dict.fromkeys(modules.idle, Idle)
            if last:
                stand_ins |= dict.fromkeys(names[-1:], _Verified) | dict.fromkeys(modules.idle, _Feeding)
            for name, stand_in in stand_ins.items():
                replace(block, name, stand_in(getattr(block, name), session, f"{i}.{name}"), undo)


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


def present(block: nn.Module, names: tuple[str, ...]) -> list[str]:
    """Those of the names that the block has; SD3's blocks lack some."""
    return [name for name in names if getattr(block, name, None) is not None]


def replace(block: nn.Module, name: str, stand_in: StandIn, undo: ExitStack) -> None:
    """Put a stand-in in a module's place; `undo` puts the module back."""
    undo.callback(setattr, block, name, getattr(block, name))
    setattr(block, name, stand_in)


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
    """Stands in for a module whose output only a forecast module reads: at a skipped step it gives tensors with 0
    channels."""

    def __init__(self, module: nn.Module, session: Session, slot: str):
        super().__init__(module, session)
        self.outputs = 0

    @property
    def runs(self) -> bool:
        """Whether the module runs in this step and branch."""
        return self.session.computing

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.runs:
            out = self.module(*args, **kwargs)
            self.outputs = len(out) if isinstance(out, tuple) else 0
            return out
        streams = [*args, *(kwargs[k] for k in ("hidden_states", "encoder_hidden_states") if k in kwargs)]
        nothing = tuple(stream[..., :0] for stream in streams[: max(self.outputs, 1)])
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
