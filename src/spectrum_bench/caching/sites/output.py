"""A skipped step runs nothing at all: the denoiser's own output is cached."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

from spectrum_bench.anatomy import Anatomy, Argument
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import Site, replace_forward
from spectrum_bench.errors import DoesNotFit


@dataclass(frozen=True)
class OutputResidual(Site):
    """The difference between the denoiser's output and its latent (EasyCache, arXiv:2507.02860)."""

    @property
    def runs_blocks(self) -> bool:
        return False

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        run, latent = denoiser.forward, Argument(denoiser, 0)

        def forward(*args: Any, **kwargs: Any) -> Any:
            x = latent.of(args, kwargs)
            if session.computing:
                out = run(*args, **kwargs)
                if out[0].shape != x.shape:
                    raise DoesNotFit(f"{type(denoiser).__name__} cannot be skipped: its output is no latent's shape")
                session.branch.store("output", out[0] - x)
                return out
            v = x + session.branch.forecast("output")
            return Transformer2DModelOutput(sample=v) if kwargs.get("return_dict", True) else (v,)

        replace_forward(denoiser, forward, undo)
