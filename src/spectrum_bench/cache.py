"""One pipeline call under caching: which step and guidance branch it is at, and what each branch remembers.

    with cached(pipe, schedule=..., forecaster=..., site=..., num_steps=50) as session:
        pipe(prompt, num_inference_steps=50, callback_on_step_end=session.callback)

State lives in the session alone. When the block ends, the pipeline's modules are as they were.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
from torch import Tensor, nn

from .anatomy import anatomy
from .features import FeatureBuffer
from .forecasters import Weights
from .schedules import Decide, Schedule, is_gate, starter
from .sites import Site


class Branch:
    """What one guidance branch of one denoiser remembers: its decisions and its cached features."""

    def __init__(self, decide: Decide, forecaster: Weights):
        self.decide, self.forecaster = decide, forecaster
        self.computing = True
        self.computed: list[int] = []
        self.times: list[int] = []  # of the rows still kept
        self.buffers: defaultdict[str, FeatureBuffer] = defaultdict(FeatureBuffer)
        self.weights: np.ndarray | None = None
        self.signal: Tensor | None = None

    def begin(self, step: int, signal: Tensor | None = None) -> None:
        """Decide whether to compute the step; if not, find the weights of its forecast."""
        change = float("nan")
        if signal is not None:
            if self.signal is not None:
                change = float((signal - self.signal).abs().mean() / self.signal.abs().mean())
            self.signal = signal
        self.computing = self.decide(step, change) or not self.times
        if self.computing:
            self.computed.append(step)
            self.times.append(step)
            ahead = self.forecaster(np.array(self.times, float), step + 1)
            del self.times[: np.argmax(ahead != 0)]  # what the next forecast would not read, none will
        else:
            self.weights = self.forecaster(np.array(self.times, float), step)

    def store(self, slot: str, feature: Tensor) -> None:
        buffer = self.buffers[slot]
        buffer.append(feature)
        buffer.forget(len(buffer.rows) - len(self.times))

    def forecast(self, slot: str) -> Tensor:
        return self.buffers[slot].combine(self.weights)


class Session:
    """The clock and the branches of one pipeline call."""

    def __init__(self, schedule: Schedule, forecaster: Weights, num_steps: int):
        self._gated, self._start = is_gate(schedule), starter(schedule, num_steps)
        self._forecaster = forecaster
        self.num_steps = num_steps
        self.step = 0
        self.call = -1  # how many times the denoiser ran in this step, less one: 0 cond, 1 uncond
        self.branches: dict[tuple[str, int], Branch] = {}
        self.branch: Branch | None = None  # the one now running
        self.cache_bytes = 0  # the most held at the end of a step

    @property
    def computing(self) -> bool:
        return self.branch.computing

    @property
    def computed_steps(self) -> list[int]:
        """Steps at which any branch ran the whole network."""
        return sorted({step for branch in self.branches.values() for step in branch.computed})

    def begin_call(self, name: str) -> None:
        """A denoiser is about to run: find its branch and, where no signal is needed, decide."""
        if self.step >= self.num_steps:
            raise RuntimeError(f"the pipeline takes more than the {self.num_steps} steps it was announced with")
        self.call += 1
        key = (name, self.call)
        if key not in self.branches:
            self.branches[key] = Branch(self._start(), self._forecaster)
        self.branch = self.branches[key]
        if not self._gated:
            self.branch.begin(self.step)

    def begin_blocks(self, signal: Callable[[], Tensor]) -> None:
        """The first block is about to run: gates decide here, by the signal."""
        if self._gated:
            self.branch.begin(self.step, signal())

    def callback(self, pipe, step: int, timestep, tensors: dict) -> dict:
        """Pass this as the pipeline's `callback_on_step_end`: it moves the clock."""
        branches = self.branches.values()
        held = sum(buffer.bytes for branch in branches for buffer in branch.buffers.values())
        held += sum(branch.signal.nbytes for branch in branches if branch.signal is not None)
        self.cache_bytes = max(self.cache_bytes, held)
        self.step, self.call = step + 1, -1
        return tensors


@contextmanager
def cached(pipe, *, schedule: Schedule, forecaster: Weights, site: Site | None, num_steps: int) -> Iterator[Session]:
    """Run the pipeline's denoiser under an algorithm, for one call.

    Args:
        site: which tensors are cached; None leaves the denoiser alone and only keeps the clock.
        num_steps: the call's `num_inference_steps`.

    Raises:
        ValueError: a schedule without step 0, or a denoiser that the site does not know.
    """
    session = Session(schedule, forecaster, num_steps)
    with ExitStack() as undo:
        for name, denoiser in denoisers(pipe).items():
            begin = denoiser.register_forward_pre_hook(lambda *_, name=name: session.begin_call(name))
            undo.callback(begin.remove)
            if site is not None:
                site.attach(denoiser, anatomy(denoiser), session, undo)
        yield session


def denoisers(pipe) -> dict[str, nn.Module]:
    """The networks that a pipeline runs at every step, by attribute name."""
    names = ("transformer", "transformer_2", "unet")
    found = {name: getattr(pipe, name, None) for name in names}
    return {name: module for name, module in found.items() if module is not None}
