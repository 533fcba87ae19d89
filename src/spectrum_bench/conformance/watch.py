"""What a pipeline's call computes, as seen from outside: which weights of which block a function reads.

No hook on a block would tell. Caches replace `forward`, and hooks of PyTorch fire whether it runs or not.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from spectrum_bench.anatomy import all_blocks
from spectrum_bench.caching.session import denoisers
from spectrum_bench.errors import DoesNotFit

WAITS = {"item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "nonzero"}  # on a GPU each one waits


@dataclass
class Call:
    """One call of a denoiser.

    Attributes:
        denoiser: its attribute of the pipeline.
        step: counted from 0.
        branch: 0 for the first call of a step, 1 for the second.
        work: multiplications of each block's linear layers.
    """

    denoiser: str
    step: int
    branch: int
    work: list[int]


@dataclass(eq=False)
class Seen(TorchFunctionMode):
    """Everything that one call of a pipeline did."""

    owners: dict[int, int]  # id of a weight -> its block
    size: int  # number of blocks of all denoisers
    steps: int  # of the call
    calls: list[Call] = field(default_factory=list)
    step: int = 0
    waits: int = 0
    held: int = 0  # bytes of all tensors at the end of the last step

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        self.waits += name in WAITS
        if self.calls and name == "linear":
            given, weight = args[:2]
            block = self.owners.get(id(weight))
            if block is not None:
                self.calls[-1].work[block] += given.numel() * weight.shape[0]
        return func(*args, **(kwargs or {}))

    def begin(self, denoiser: str) -> None:
        """A denoiser is called."""
        before = [call for call in self.calls if call.step == self.step]
        self.calls.append(Call(denoiser, self.step, len(before), [0] * self.size))

    def end_step(self) -> None:
        """A step has ended."""
        self.step += 1
        if self.step == self.steps:
            self.held = live_bytes()


def blocks_of(denoiser: nn.Module) -> list[nn.Module]:
    """The blocks of a denoiser; those of every list of modules if nobody has registered them."""
    try:
        return all_blocks(denoiser)
    except DoesNotFit:
        return [each for child in denoiser.children() if isinstance(child, nn.ModuleList) for each in child]


@contextmanager
def watched(pipe: Any, steps: int) -> Iterator[Seen]:
    """Watch a call of `steps` steps inside the context. The caller ends each step."""
    owners: dict[int, int] = {}
    size, removals = 0, []
    for denoiser in denoisers(pipe).values():
        for block in blocks_of(denoiser):
            owners |= {id(weight): size for weight in block.parameters() if weight.ndim == 2}
            size += 1
    seen = Seen(owners, size, steps)
    for name, denoiser in denoisers(pipe).items():
        hook = denoiser.register_forward_pre_hook(lambda *_, name=name: seen.begin(name))
        removals.append(hook.remove)
    try:
        with seen:
            yield seen
    finally:
        for remove in removals:
            remove()


def live_bytes() -> int:
    """Bytes of all tensors that are alive, each storage once."""
    tensors = [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter)]
    with torch._C.DisableTorchFunction():
        return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())
