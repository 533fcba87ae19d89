"""A skipped step runs nothing at all: the denoiser's own output is cached."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from spectrum_bench.anatomy import Anatomy, Argument, stacked
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import Site, replace_forward
from spectrum_bench.errors import DoesNotFit


@dataclass(frozen=True)
class Output(Site):
    """The denoiser's output itself, one history for each guidance branch (L2P, arXiv:2604.26365)."""

    @property
    def runs_blocks(self) -> bool:
        return False

    @property
    def defers_control(self) -> bool:
        return True

    def feature(self, output: Tensor, latent: Tensor) -> Tensor:
        """The feature to cache."""
        return output

    def restore(self, forecast: Tensor, latent: Tensor) -> Tensor:
        """The output of a skipped step, from the forecast feature."""
        return forecast

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        run, latent = denoiser.forward, Argument(denoiser, 0)

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = latent.of(args, kwargs)
            x = stacked(given)
            if session.computing:
                out = run(*args, **kwargs)
                v = stacked(out[0])
                if len(out) > 1:
                    raise DoesNotFit(f"{type(denoiser).__name__} cannot be skipped: it gives more than one output")
                if v.shape != x.shape:
                    raise DoesNotFit(f"{type(denoiser).__name__} cannot be skipped: its output is no latent's shape")
                session.branch.store("output", self.feature(v, x))
                return out
            v = self.restore(session.branch.forecast("output"), x)
            v = list(v) if isinstance(given, list) else v
            return Transformer2DModelOutput(sample=v) if kwargs.get("return_dict", True) else (v,)

        replace_forward(denoiser, forward, undo)


@dataclass(frozen=True)
class OutputResidual(Output):
    """The difference between the denoiser's output and its latent (EasyCache, arXiv:2507.02860)."""

    def feature(self, output: Tensor, latent: Tensor) -> Tensor:
        return output - latent

    def restore(self, forecast: Tensor, latent: Tensor) -> Tensor:
        return latent + forecast
