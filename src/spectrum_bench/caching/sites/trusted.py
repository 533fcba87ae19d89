"""A site that trusts a forecast as far as a second one agrees with it (RACER)."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from spectrum_bench import checks
from spectrum_bench.anatomy import Anatomy
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import Site
from spectrum_bench.caching.sites.stack import StackSite
from spectrum_bench.forecasters import Forecaster, taylor
from spectrum_bench.schedules import Schedule


@dataclass(frozen=True)
class Trusted(Site):
    """The last block's output. A forecast p is shrunk towards the newest feature h, to h + kappa (p - h), by how far it
    is from linear extrapolation q: kappa = exp(-decay (x - 1)) sigmoid(4 (theta - risk)), risk = |p - q| / |p| in root
    mean squares, x the steps since h (RACER, arXiv:2608.01740, its shrinkage alone).

    Attributes:
        theta: the risk at which half of the forecast is trusted one step ahead.
        decay: how fast trust falls with the distance.
    """

    theta: float = 0.25
    decay: float = 0.3

    def check(self, schedule: Schedule, forecaster: Forecaster) -> None:
        checks.number("theta", self.theta, 0)
        checks.number("decay", self.decay, 0)

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        _Shrunk(self, session).attach(denoiser, anatomy, session, undo)


@dataclass(frozen=True)
class _Shrunk(StackSite):
    """The same once the session is known."""

    reads_embedded: ClassVar[bool] = False
    one_stream: ClassVar[bool] = True
    trust: Trusted
    session: Session

    def feature(self, embedded: Tensor, entering: Tensor, leaving: Tensor) -> Tensor:
        return leaving

    def restore(self, embedded: Tensor, entering: Tensor, forecast: Tensor) -> Tensor:
        branch, step = self.session.branch, self.session.step
        history, times = branch.histories["stack"], np.array(branch.times, float)
        newest, line = history.combine(np.eye(len(times))[-1]), history.combine(taylor(times, step, order=1))
        kappa = trust(self.trust, forecast, line, step - branch.times[-1])
        return newest.lerp(forecast, kappa.to(newest.dtype))


def trust(constants: Trusted, p: Tensor, q: Tensor, x: int) -> Tensor:
    """kappa, (B, 1, ..) float, of the forecast p (B, ..) beside q, x steps after the newest computed one. Each sample
    of a batch has its own, so that it does not depend on the others."""
    p, q = p.float(), q.float()
    own = tuple(range(1, p.ndim))
    risk = (p - q).square().mean(own, keepdim=True).sqrt() / p.square().mean(own, keepdim=True).sqrt().clamp(min=1e-12)
    return torch.sigmoid(4 * (constants.theta - risk)) * float(np.exp(-constants.decay * (x - 1)))
