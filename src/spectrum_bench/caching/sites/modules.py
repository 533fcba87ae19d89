"""A skipped step runs the blocks, but their attention and MLPs are forecast."""

from contextlib import ExitStack
from dataclasses import dataclass

from torch import nn

from spectrum_bench.caching.sites.base import StandIn, all_blocks, observe_first_block


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
