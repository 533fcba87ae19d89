"""A site whose feature is split into two frequency bands, so that a forecaster may treat them differently (FreqCa)."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spectrum_bench import checks
from spectrum_bench.anatomy import Anatomy
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import Site
from spectrum_bench.caching.sites.stack import StackSite
from spectrum_bench.forecasters import Forecaster
from spectrum_bench.frequencies import low_band, on_grid
from spectrum_bench.schedules import Schedule
from spectrum_bench.signals import TokenGrid


@dataclass(frozen=True)
class Bands(Site):
    """The last block's output, split into a low and a high frequency band of the tokens' grid (FreqCa,
    arXiv:2510.08669): (B, 2, L, D), low band first.

    Attributes:
        cutoff: the highest frequency of the low band, as a share of the grid's highest.
    """

    cutoff: float = 0.1

    @property
    def bands(self) -> bool:
        return True

    def check(self, schedule: Schedule, forecaster: Forecaster) -> None:
        checks.number("cutoff", self.cutoff, 0, 1)

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        grid = TokenGrid(denoiser)

        def look(module: nn.Module, args: Any, kwargs: Any) -> None:
            grid.of(args, kwargs)

        undo.callback(denoiser.register_forward_pre_hook(look, with_kwargs=True).remove)
        _Split(self.cutoff, grid).attach(denoiser, anatomy, session, undo)


@dataclass(frozen=True)
class _Split(StackSite):
    """The same once the denoiser is known."""

    reads_embedded: ClassVar[bool] = False
    one_stream: ClassVar[bool] = True
    cutoff: float
    grid: TokenGrid

    def feature(self, embedded: Tensor, entering: Tensor, leaving: Tensor) -> Tensor:
        tokens = leaving if leaving.ndim == 3 else leaving.flatten(2).transpose(1, 2)  # a U-Net's (B, D, H, W)
        low = low_band(on_grid(tokens, torch.tensor(self.grid.grid)), self.cutoff).flatten(1, -2)
        return torch.stack([low, tokens - low], 1)

    def restore(self, embedded: Tensor, entering: Tensor, forecast: Tensor) -> Tensor:
        tokens = forecast.sum(1)
        return tokens if entering.ndim == 3 else tokens.transpose(1, 2).reshape(entering.shape)
