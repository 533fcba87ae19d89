"""Sums over a history's rows in place of the rows, as an option of sites under Spectrum.

Spectrum's forecast is phi(t) (Phi^T Phi + lambda I)^-1 Phi^T H (arXiv:2603.01623, eqs. 7-14). Phi^T H are M + 1 rows in
fp32, however many rows H has: 4 (M + 1) bytes an element in place of 2 K in 16 bits.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from spectrum_bench.anatomy import Anatomy
from spectrum_bench.caching.history import History, summed
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import Around
from spectrum_bench.errors import DoesNotFit
from spectrum_bench.forecasters import Floats, Forecaster, Weights, chebyshev_terms, numbers, spectrum
from spectrum_bench.schedules import Schedule, bare

TOLERANCE = 1e-9  # by which weights may miss the span of the terms


@dataclass(frozen=True)
class Summed(Around):
    """Another site, whose histories hold sums over their rows."""

    def check(self, schedule: Schedule, forecaster: Forecaster) -> None:
        constants = getattr(forecaster, "keywords", {})
        if bare(forecaster) is not spectrum or not constants.get("blend"):
            raise DoesNotFit("history=sums is for Spectrum's forecaster with algo.w above 0: leave history= out")
        if self.site.decides or self.site.at_scheduler or self.site.bands:
            raise DoesNotFit(f"history=sums does not fit site={type(self.site).__name__}: leave history= out")
        self.site.check(schedule, forecaster)

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        constants = session.forecaster.keywords  # type: ignore[attr-defined]
        terms = Terms(constants["degree"], constants["steps"], 0 if constants["blend"] == 1 else 2)
        session.history = partial(Sums, terms)
        self.site.attach(denoiser, anatomy, session, undo)


class Terms:
    """What a forecast is made of: the M + 1 Chebyshev polynomials, and the newest rows as they are.

    Args:
        newest: how many; linear extrapolation reads two.
    """

    def __init__(self, degree: int, steps: int, newest: int):
        self.count, self.steps, self.newest = degree + 1, steps, newest
        self._coefficients: dict[tuple[tuple[int, ...], Weights], tuple[float, ...]] = {}

    def at(self, times: list[int]) -> Floats:
        """(K, M + 1)."""
        return chebyshev_terms(np.array(times, float), degree=self.count - 1, steps=self.steps)

    def coefficients(self, times: list[int], weights: tuple[float, ...]) -> tuple[float, ...]:
        """Of the M + 1 sums and of the newest rows, so that they give all K rows their weights.

        Raises:
            DoesNotFit: no coefficients do that.
        """
        key = (tuple(times), weights)
        if key not in self._coefficients:
            kept = np.eye(len(times))[:, max(0, len(times) - self.newest) :]
            span, wanted = np.hstack([self.at(times), kept]), np.array(weights)
            found, *_ = np.linalg.lstsq(span, wanted, rcond=None)
            if np.abs(span @ found - wanted).max() > TOLERANCE * max(1.0, np.abs(wanted).max()):
                raise DoesNotFit("this site reads rows that history=sums does not keep: leave history= out")
            self._coefficients[key] = tuple(found.tolist())
        return self._coefficients[key]


class Sums(History):
    """sum_k phi_m(t_k) h_k for each polynomial phi_m, in fp32, and the newest rows.

    Args:
        times: the computed steps, of which the last one is the next row's.
    """

    def __init__(self, terms: Terms, times: list[int]):
        super().__init__()
        self.terms, self.times = terms, times
        self._sums: list[Tensor] = []
        self._count = 0
        self._dtype = torch.float32

    def __len__(self) -> int:
        return self._count

    def append(self, feature: Tensor) -> None:
        super().append(feature)
        if not self._sums:
            self._sums = [torch.zeros_like(feature, dtype=torch.float32) for _ in range(self.terms.count)]
            self._dtype = feature.dtype
        for total, phi in zip(self._sums, self.terms.at(self.times[-1:])[0].tolist(), strict=True):
            total.add_(feature, alpha=phi)
        self._count += 1
        super().forget(self.terms.newest)

    def forget(self, count: int) -> None:
        """The sums hold what the forecast reads.

        Raises:
            DoesNotFit: the forecaster has forgotten a row, which stays in the sums.
        """
        if count < self._count:
            raise DoesNotFit("the forecaster forgets a row that history=sums has added up: leave history= out")

    def combine(self, weights: Weights) -> Tensor:
        numbered = numbers(weights)
        if not isinstance(numbered, tuple) or len(numbered) != self._count:
            self._missing()
        found = self.terms.coefficients(self.times, numbered)
        out = summed(self._sums, found[: self.terms.count])
        for row, weight in zip(self._rows, found[self.terms.count :], strict=True):
            out.add_(row, alpha=weight)
        return out.to(self._dtype)

    def refresh(self, *_: Any) -> NoReturn:
        self._missing()

    def correct(self, *_: Any) -> NoReturn:
        self._missing()

    def _missing(self) -> NoReturn:
        raise DoesNotFit("this site reads rows that history=sums does not keep: leave history= out")

    def features(self) -> list[Tensor]:
        """The sums, then the newest rows."""
        return [*self._sums, *self._rows]

    def bytes_with(self, rows: int) -> int:
        kept = sum(row.nbytes for row in self._rows) // max(len(self._rows), 1) * min(rows, self.terms.newest)
        return sum(total.nbytes for total in self._sums) + kept

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.features())
