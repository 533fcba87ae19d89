"""The cached features of one tensor, and the one place where a forecast is made from them."""

import numpy as np
import torch
from torch import Tensor


class FeatureBuffer:
    """Rows of a feature at computed steps, each in the feature's own dtype and shape."""

    def __init__(self):
        self.rows: list[Tensor] = []

    def append(self, feature: Tensor) -> None:
        """Keep a feature; nobody may write to it afterwards.

        Raises:
            ValueError: its shape or dtype differs from the rows already here.
        """
        if self.rows and (feature.shape, feature.dtype) != (self.rows[0].shape, self.rows[0].dtype):
            raise ValueError(f"the feature changed from {tuple(self.rows[0].shape)} to {tuple(feature.shape)} in a run")
        if feature.untyped_storage().nbytes() > feature.nbytes:
            feature = feature.clone()  # a slice would keep the text tokens beside it alive
        self.rows.append(feature)

    def forget(self, count: int) -> None:
        """Drop the `count` oldest rows."""
        del self.rows[:count]

    def refresh(self, tokens: Tensor, values: Tensor) -> None:
        """Put (B, k, D) values at the (B, k) tokens of the newest row; what was given out before stays as it was."""
        index = tokens[..., None].expand(-1, -1, values.shape[2])
        self.rows[-1] = self.rows[-1].scatter(1, index, values.to(self.rows[-1].dtype))

    def combine(self, weights: np.ndarray) -> Tensor:
        """sum_k weights[k] * rows[k], accumulated in fp32 (weights reach 7 in magnitude), in the feature's dtype.

        Args:
            weights: (K,), or (K, D) for (B, L, D) rows, a weight for each channel.

        Raises:
            ValueError: weights for another number of channels.
        """
        newest = self.rows[-1]
        if not weights[:-1].any() and (weights[-1] == 1).all():
            return newest  # plain reuse: no arithmetic, no copy
        total = torch.zeros_like(newest, dtype=torch.promote_types(newest.dtype, torch.float32))
        if weights.ndim == 2:
            if newest.ndim != 3 or newest.shape[2] != weights.shape[1]:
                raise ValueError(f"weights for {weights.shape[1]} channels do not fit a {tuple(newest.shape)} feature")
            for w, row in zip(torch.from_numpy(weights).to(total), self.rows, strict=True):
                total.addcmul_(row, w)
            return total.to(newest.dtype)
        for w, row in zip(weights.tolist(), self.rows, strict=True):  # w is an immediate argument: no copy, no sync
            total.add_(row, alpha=w)
        return total.to(newest.dtype)

    @property
    def bytes(self) -> int:
        return sum(row.nbytes for row in self.rows)
