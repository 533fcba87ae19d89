"""A ControlNet (arXiv:2302.05543) under caching. Its residuals are added to the tokens between blocks, so that a step
which bypasses the blocks needs none of them.

Pipelines call it before the denoiser, when a gate may not have decided yet. So it runs when the first of its residuals
is added, and not at all if none is.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from spectrum_bench.caching.replacing import replace_method
from spectrum_bench.errors import DoesNotFit

ADD = (torch.add, Tensor.add, Tensor.__add__)


class Control:
    """The ControlNet of one pipeline call.

    Args:
        computing: whether the denoiser computes this step; asked when it adds a residual.
    """

    def __init__(self, network: nn.Module, computing: Callable[[], bool]):
        self.run, self.computing = network.forward, computing
        self._answer: tuple[list[bool], Any] | None = None  # which leaves are residuals, and their tree
        self._leaving: tuple[Tensor, Callable[[Tensor], None]] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the network's `forward`: the same answer, with a Residual in the place of each tensor."""
        values: list[Any] = []

        def run() -> list[Any]:
            if not values:
                values.extend(tree_flatten(self.run(*args, **kwargs))[0])
            return values

        if self._answer is None:  # of the first step, which is always computed
            leaves, tree = tree_flatten(self.run(*args, **kwargs))
            values.extend(leaves)
            self._answer = [isinstance(leaf, Tensor) for leaf in leaves], tree
        present, tree = self._answer
        return tree_unflatten([Residual(self, run, i) if there else None for i, there in enumerate(present)], tree)

    def add(self, hidden: Tensor, residual: "Residual") -> Tensor:
        """The tokens with a residual; at a step that bypasses the blocks, as they are."""
        if not self.computing():
            return hidden
        total: Tensor = hidden + residual.run()[residual.index]
        if self._leaving is not None and self._leaving[0] is hidden:
            self._leaving = total, self._leaving[1]
        return total

    def leave(self, leaving: Tensor, keep: Callable[[Tensor], None]) -> None:
        """The last block has given `leaving`. A residual may follow: `keep` gets the tokens when the denoiser ends."""
        self._leaving = leaving, keep

    def end(self) -> None:
        """The denoiser has run."""
        if self._leaving is not None:
            leaving, keep = self._leaving
            keep(leaving)
        self._leaving = None


class Residual:
    """A tensor that a ControlNet gives when it is added to the tokens."""

    def __init__(self, control: Control, run: Callable[[], list[Any]], index: int):
        self.control, self.run, self.index = control, run, index

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ADD and len(args) == 2 and isinstance(args[0], Tensor) and isinstance(args[1], Residual):
            return args[1].control.add(*args)
        raise DoesNotFit(
            "the pipeline changes the ControlNet's residuals before the denoiser adds them: leave guess_mode out, or "
            "use site=modules, which runs the ControlNet at every step"
        )


def defer(network: nn.Module, computing: Callable[[], bool], undo: ExitStack) -> Control:
    """Let a ControlNet run at computed steps alone."""
    control = Control(network, computing)
    replace_method(network, "forward", control.forward, undo)
    return control
