"""The history of one feature at one site, and the one place where a forecast is made from it.

No other module but `sites/summed.py`, whose history is one of these, reads its rows: another implementation may hold
them in a ring buffer or in host memory.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from spectrum_bench.errors import DoesNotFit
from spectrum_bench.forecasters import Weights, numbers


class History:
    """A feature at computed steps, oldest first: rows in the feature's own dtype and shape."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._correction: Tensor | None = None  # of the newest row

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows, of which there must be one."""
        return self._rows[0].dtype

    def append(self, feature: Tensor) -> None:
        """Add a feature as the newest row. Nobody may write to it afterwards. The row before it takes its correction.

        Raises:
            DoesNotFit: its shape or dtype differs from the rows already here.
        """
        if self._rows and (feature.shape, feature.dtype) != (self._rows[0].shape, self._rows[0].dtype):
            before, now = (f"{tuple(each.shape)} {each.dtype}" for each in (self._rows[0], feature))
            raise DoesNotFit(f"the feature changed from {before} to {now} in a run")
        if feature.untyped_storage().nbytes() > feature.nbytes:
            feature = feature.clone()  # a slice would keep the memory of the text tokens alive
        if self._correction is not None:
            self._rows[-1] = self._rows[-1] + self._correction
        self._rows.append(feature)
        self._correction = None

    def forget(self, count: int) -> None:
        """Drop the oldest rows until `count` are left."""
        del self._rows[: max(0, len(self._rows) - count)]

    def refresh(self, tokens: Tensor, values: Tensor) -> None:
        """Put (B, k, D) values at the (B, k) tokens of the newest row. Tensors returned earlier do not change."""
        index = tokens[..., None].expand(-1, -1, values.shape[2])
        self._rows[-1] = self._rows[-1].scatter(1, index, values.to(self._rows[-1].dtype))

    def correct(self, edit: Callable[[Tensor], Tensor]) -> Tensor:
        """Edit the newest row, with its earlier corrections in it. The row itself stays, and so does `combine`, until
        the next row comes: then the row takes the correction in.

        Returns:
            The correction: how far all edits together have moved the row.
        """
        newest = self._rows[-1]
        base = newest + (0 if self._correction is None else self._correction)
        self._correction = edit(base) - newest
        return self._correction

    def combine(self, weights: Weights) -> Tensor:
        """sum_k weights[k] * rows[k], accumulated in fp32 (weights reach 7 in magnitude), in the feature's dtype. On a
        GPU one kernel reads every row once (kernels.py says how it rounds).

        Args:
            weights: (K,), or (K, ...) with a weight for each part of a row, over which it broadcasts: (K, D) for the
                channels of (B, L, D), (K, 2, 1, 1) for the frequency bands of (B, 2, L, D).

        Raises:
            DoesNotFit: the number of parts differs.
        """
        newest, weights = self._rows[-1], numbers(weights)
        if _reuses(weights):
            return newest  # no arithmetic, no copy
        if len(weights) != len(self._rows):
            raise ValueError(f"{len(weights)} weights for {len(self._rows)} rows")
        if not (isinstance(weights, tuple) or _broadcasts(weights.shape[1:], newest.shape)):
            raise DoesNotFit(f"weights for {weights.shape[1:]} parts do not fit a {tuple(newest.shape)} feature")
        return summed(self._rows, weights)

    def features(self) -> list[Tensor]:
        """The rows, for studies. Nobody may write to them."""
        return list(self._rows)

    def bytes_with(self, rows: int) -> int:
        """Bytes of this history if it had so many rows."""
        return rows * sum(row.nbytes for row in self._rows) // max(len(self._rows), 1)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows and of the correction."""
        return sum(row.nbytes for row in self._rows) + (0 if self._correction is None else self._correction.nbytes)


def _reuses(weights: Weights) -> bool:
    """Whether the forecast is the newest row itself."""
    if isinstance(weights, tuple):
        return weights[-1] == 1 and not any(weights[:-1])
    return bool((weights[-1] == 1).all()) and not weights[:-1].any()


def _broadcasts(parts: tuple[int, ...], row: tuple[int, ...]) -> bool:
    """Whether weights for these parts fit a row: for channels (D,), or for bands (2, 1, 1)."""
    fits = (a in (1, b) for a, b in zip(reversed(parts), reversed(row), strict=False))
    return len(row) == max(3, len(parts) + 1) and all(fits)


def summed(rows: Sequence[Tensor], weights: Weights) -> Tensor:
    """sum_k weights[k] * rows[k] in the rows' dtype: a kernel's on a GPU, if it knows such rows, else torch's."""
    kernels = _kernels() if rows[-1].is_cuda else None
    if kernels is not None and kernels.fits(rows, weights):
        total: Tensor = kernels.weighted_sum(rows, weights)
        return total
    return weighted_sum(rows, weights)


def weighted_sum(rows: Sequence[Tensor], weights: Weights) -> Tensor:
    """sum_k weights[k] * rows[k] by torch's own operations, for rows on any device and of any dtype."""
    newest = rows[-1]
    total = torch.zeros_like(newest, dtype=torch.promote_types(newest.dtype, torch.float32))
    if isinstance(weights, tuple):
        for w, row in zip(weights, rows, strict=True):  # w is an immediate argument: no copy, no sync
            total.add_(row, alpha=w)
    else:
        for parts, row in zip(torch.from_numpy(weights).to(total), rows, strict=True):
            total.addcmul_(row, parts)
    return total.to(newest.dtype)


@cache
def _kernels() -> ModuleType | None:
    """kernels.py, or None without Triton. It is imported at the first forecast on a GPU."""
    return import_module("spectrum_bench.caching.kernels") if find_spec("triton") else None


def tensors(node: object) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples, dicts and dataclasses."""
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, (list, tuple)):
        for part in node:
            yield from tensors(part)
    elif isinstance(node, dict):
        yield from tensors(list(node.values()))
    elif hasattr(node, "__dataclass_fields__"):
        yield from tensors(list(vars(node).values()))
