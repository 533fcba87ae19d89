"""One pipeline call under caching: which step and guidance branch it is at, and what each branch remembers.

    with cached(pipe, schedule=..., forecaster=..., site=..., num_steps=50) as session:
        pipe(prompt, num_inference_steps=50, callback_on_step_end=session.callback)

State lives in the session alone. When the block ends, the pipeline's modules are as they were.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from spectrum_bench.anatomy import anatomy
from spectrum_bench.caching.history import FeatureBuffer
from spectrum_bench.caching.sites.base import Site, argument
from spectrum_bench.forecasters import Weights, reads_memory
from spectrum_bench.gates import POINTS, WHERE
from spectrum_bench.schedules import Schedule, bare, plan


class Branch:
    """What one guidance branch of one denoiser remembers: its decisions, its cached features, and `memory`, where gate
    and site keep what else they need."""

    def __init__(self, forecaster: Weights):
        self.forecaster = forecaster
        self.computing = True
        self.computed: list[int] = []
        self.times: list[int] = []  # of the rows still kept
        self.buffers: defaultdict[str, FeatureBuffer] = defaultdict(FeatureBuffer)
        self.weights: np.ndarray | None = None
        self.memory: dict = {}
        self.output: Tensor | None = None  # the denoiser's newest, where a gate observes it

    def begin(self, step: int, computing: bool) -> None:
        """Note the decision; find the weights of a skipped step's forecast."""
        self.computing = computing or not self.times
        if self.computing:
            self.computed.append(step)
            self.times.append(step)
            ahead = self.forecaster(np.array(self.times, float), step + 1)
            read = ahead.reshape(len(ahead), -1).any(1)
            del self.times[: read.argmax()]  # what the next forecast would not read, none will
        else:
            known = {"memory": self.memory} if reads_memory(self.forecaster) else {}
            self.weights = self.forecaster(np.array(self.times, float), step, **known)

    def observe(self, step: int, computed: bool) -> None:
        """Correct the note of a step at which somebody else's code decided."""
        if not computed:
            self.computing = False
            self.computed.remove(step)

    @torch.compiler.disable  # where blocks are compiled, their hooks are too
    def store(self, slot: str, feature: Tensor) -> None:
        buffer = self.buffers[slot]
        buffer.append(feature)
        buffer.forget(len(buffer.rows) - len(self.times))

    def refresh(self, slot: str, tokens: Tensor, values: Tensor) -> None:
        """Put (B, k, D) values at the (B, k) tokens of the newest feature."""
        self.buffers[slot].refresh(tokens, values)

    def forecast(self, slot: str) -> Tensor:
        return self.buffers[slot].combine(self.weights)

    @property
    def bytes(self) -> int:
        held = [self.output, *self.memory.values()]
        held = [tensor for entry in held for tensor in (entry if isinstance(entry, list) else [entry])]
        known = {id(tensor): tensor.nbytes for tensor in held if isinstance(tensor, Tensor)}
        return sum(known.values()) + sum(buffer.bytes for buffer in self.buffers.values())


class Session:
    """The clock and the branches of one pipeline call."""

    def __init__(self, schedule: Schedule, forecaster: Weights, num_steps: int):
        self.schedule, self._mask = schedule, plan(schedule, num_steps)
        self._observes = bare(schedule).observes if self._mask is None else ()
        self._shared = self._mask is None and bare(schedule).shared
        self._point = max((WHERE[name] for name in self._observes), key=POINTS.index, default="call")
        self.forecaster = forecaster
        self.num_steps = num_steps
        self.step = 0
        self.call = -1  # how many times the denoiser ran in this step, less one: 0 cond, 1 uncond
        self.branches: dict[tuple[str, int], Branch] = {}
        self.branch: Branch | None = None  # the one now running
        self.leader: Branch | None = None  # the first of this denoiser in this step
        self.seen: dict[str, Tensor | None] = {}  # what the gate observes, in this step and branch
        self.timestep: Callable | None = None  # gives the pipeline's current one
        self.cache_bytes = 0  # the most held at the end of a step
        self.held: Callable[[], int] = lambda: 0  # bytes that somebody else's caching holds

    @property
    def computing(self) -> bool:
        return self.branch.computing

    @property
    def computed_steps(self) -> list[int]:
        """Steps at which any branch ran the whole network."""
        return sorted({step for branch in self.branches.values() for step in branch.computed})

    def begin_call(self, name: str, latent: Tensor, timestep: Tensor) -> None:
        """A denoiser is about to run on `latent` at `timestep`: find its branch."""
        if self.step >= self.num_steps:
            raise ValueError(
                f"the pipeline takes more than the {self.num_steps} steps that it was asked for; a "
                "scheduler with two passes a step, such as Heun's, or with warm-up, as PNDM's, does so"
            )
        self.call += 1
        key = (name, self.call)
        if key not in self.branches:
            self.branches[key] = Branch(self.forecaster)
        self.branch, self.leader, self.seen = self.branches[key], self.branches.get((name, 0)), {}
        self.arrive("call", latent=lambda: latent, timestep=lambda: timestep, output=lambda: self.branch.output)

    @torch.compiler.disable
    def arrive(self, point: str, **observables: Callable[[], Tensor | None]) -> None:
        """The denoiser has come to one of POINTS: look at what the gate observes there; decide at the last."""
        for name, look in observables.items():
            if name in self._observes:
                self.seen[name] = look()
        if point != self._point:
            return
        if self._mask is not None:
            computing = bool(self._mask[self.step])
        elif self._shared and self.leader is not self.branch:
            computing = self.leader.computing
        else:
            computing = self.schedule(self.step, self.num_steps, self.seen, self.branch.memory)
        self.branch.begin(self.step, computing)
        self.seen = {}

    def end_call(self, output: Tensor) -> None:
        """A denoiser has run."""
        if "output" in self._observes and self.computing:
            self.branch.output = output

    def callback(self, pipe, step: int, timestep, tensors: dict) -> dict:
        """Pass this as the pipeline's `callback_on_step_end`: it moves the clock."""
        held = self.held() + sum(branch.bytes for branch in self.branches.values())
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
        ValueError: a schedule without step 0, a pipeline without a denoiser or with one that the site does not know,
            or more steps than `num_steps`.
    """
    networks = denoisers(pipe)
    if not networks:
        raise ValueError(f"{type(pipe).__name__} has neither transformer nor unet: nobody can tell what its steps run")
    session = Session(schedule, forecaster, num_steps)
    session.timestep = lambda: pipe.current_timestep
    with ExitStack() as undo:
        for name, denoiser in networks.items():

            def begin(module, args, kwargs, name=name):
                session.begin_call(name, argument(module, 0, args, kwargs), argument(module, "timestep", args, kwargs))

            undo.callback(denoiser.register_forward_pre_hook(begin, with_kwargs=True).remove)
            undo.callback(denoiser.register_forward_hook(lambda module, args, out: session.end_call(out[0])).remove)
            if site is not None:
                site.attach(denoiser, anatomy(denoiser), session, undo)
        yield session


def denoisers(pipe) -> dict[str, nn.Module]:
    """The networks that a pipeline runs at every step, by attribute name."""
    names = ("transformer", "transformer_2", "unet")
    found = {name: getattr(pipe, name, None) for name in names}
    return {name: module for name, module in found.items() if module is not None}
