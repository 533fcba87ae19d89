"""One pipeline call under caching: the current step and guidance branch, and the memory of each branch.

    with cached(pipe, schedule=..., forecaster=..., site=..., num_steps=50) as session:
        pipe(prompt, num_inference_steps=50, callback_on_step_end=session.callback)

State lives in the session alone. When the block ends, the pipeline's modules are as they were.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn

from spectrum_bench.anatomy import Anatomy, Argument, anatomy, stacked
from spectrum_bench.caching.branch import Branch, kind_of, not_compiled
from spectrum_bench.caching.control import Control, defer
from spectrum_bench.caching.history import History
from spectrum_bench.caching.noise import noise_ratio
from spectrum_bench.caching.offloading import free_afterwards
from spectrum_bench.caching.turns import takeovers
from spectrum_bench.caching.weights import Remembered
from spectrum_bench.decisions import Gate, Progressing
from spectrum_bench.errors import DoesNotFit
from spectrum_bench.forecasters import Forecaster, follows_gate
from spectrum_bench.schedules import ALONE, Schedule, Starts, plan
from spectrum_bench.signals import OUTPUT, Call, Place, Signal


class Session:
    """The clock and the branches of one pipeline call.

    Attributes:
        step, call: the index of the denoising step, and of the denoiser's call in this step (0 cond, 1 uncond).
        branches: the branches by the denoiser's name and the call.
        networks: the steps that each denoiser ran at or was to run at, by its name.
        starts: the first step of each denoiser of those that run by turns.
        branch: the current branch.
        undecided: whether the decision about this step in this branch is still open.
        since: the first step of the current denoiser.
        held_elsewhere: functions that return the bytes which other people's caching holds.
        history: makes a history of the features at `times`, which grow before a feature is appended.
        timestep: returns the pipeline's current timestep.
        cache_bytes: the most bytes held at the end of a step.
        control: the pipeline's ControlNet, if skipped steps do not run it.
    """

    branch: Branch

    def __init__(
        self,
        schedule: Schedule,
        forecaster: Forecaster,
        num_steps: int,
        timestep: Callable[[], object] = lambda: None,
        noise: Callable[[int], Tensor | None] = lambda step: None,
        starts: Starts = ALONE,
    ):
        self.schedule, self.forecaster, self.num_steps, self.timestep = schedule, forecaster, num_steps, timestep
        self._noise = noise
        self.starts = list(starts)
        self._mask, self._gate = plan(schedule, num_steps, starts), schedule if isinstance(schedule, Gate) else None
        self._follows_gate, self._remembered = follows_gate(forecaster), Remembered(forecaster)
        if self._mask is not None:
            self._remembered.plan(self._mask.tolist(), starts)
        self.observes: tuple[Signal, ...] = self._gate.observes if self._gate else ()
        self.places = {signal.place for signal in self.observes} | {Call}
        self._last_place = max(self.places, key=lambda place: place.order)
        self._seen: dict[Signal, Tensor] = {}  # in this step and branch
        self.undecided = True
        self.step, self.call = 0, -1
        self.branches: dict[tuple[str, int], Branch] = {}
        self.networks: defaultdict[str, list[int]] = defaultdict(list)
        self.since = 0
        self._leader: Branch | None = None  # this denoiser's first branch in this step
        self.history: Callable[[list[int]], History] = lambda times: History()
        self.held_elsewhere: list[Callable[[], int]] = []
        self.cache_bytes = 0
        self.control: Control | None = None

    @property
    def computing(self) -> bool:
        """Whether the current branch computes this step."""
        return self.branch.computing

    @property
    def skipping(self) -> bool:
        """Whether the current branch has decided to skip this step."""
        return not self.undecided and not self.branch.computing

    @property
    def ends_gap(self) -> bool:
        """Whether the mask computes the step after this one, or this is the last one."""
        following = self.step + 1
        return following == self.num_steps or bool(self._mask is not None and self._mask[following])

    @property
    def computed_steps(self) -> list[int]:
        """Steps at which any branch ran the whole network."""
        return sorted({step for branch in self.branches.values() for step in branch.computed})

    def begin_call(self, name: str, latent: Tensor, timestep: Tensor) -> None:
        """A denoiser is about to run on `latent` at `timestep`: select its branch.

        Raises:
            DoesNotFit: the pipeline takes more steps than `num_steps`.
        """
        if self.step >= self.num_steps:
            raise DoesNotFit(
                f"the pipeline takes more than the {self.num_steps} steps that it was asked for; a "
                "scheduler with two passes a step, such as Heun's, or with warm-up, as PNDM's, does so"
            )
        self.call += 1
        steps, key = self.networks[name], (name, self.call)
        if self.step not in steps[-1:]:
            steps.append(self.step)
            self._forget_left()
        self._take_over(steps[0])
        branch = self.branches.get(key)
        if branch is None or not branch.continues(self.step, latent):
            self._begin_anew(key)
        self.branch, self._leader = self.branches[key], self.branches.get((name, 0))
        self.branch.seen = (self.step, kind_of(latent))
        self._seen, self.undecided = dict(self.branch.late), True
        self.decide_at(Call(latent, timestep, self.branch.output, partial(self._noise, self.step)))

    def _take_over(self, step: int) -> None:
        """The current denoiser runs since a step, which only a pipeline of its own ways leaves untold in `starts`."""
        self.since = step
        if step not in self.starts:
            self.starts = sorted([*self.starts, step])

    def _forget_left(self) -> None:
        """Let go of the features of branches that did not run at the step before, such as another denoiser's."""
        for key, branch in self.branches.items():
            if branch.times and branch.seen is not None and self.step - branch.seen[0] > 1:
                self._begin_anew(key)

    def _begin_anew(self, key: tuple[str, int]) -> None:
        """Give a branch a new memory. Its computed steps stay on record."""
        end = min((start for start in self.starts if start > self.since), default=self.num_steps)
        state = self._gate.start(end - self.since, self.starts.index(self.since)) if self._gate else None
        progress = state.progress if self._follows_gate and isinstance(state, Progressing) else None
        computed = self.branches[key].computed if key in self.branches else []
        self.branches[key] = Branch(self._remembered, state, progress, self.history)
        self.branches[key].computed = computed

    @not_compiled
    def decide_at(self, place: Place) -> None:
        """The denoiser has reached a place: read its signals, and decide if no later place has signals."""
        for signal in self.observes:
            if signal.read is not None and isinstance(place, signal.place):
                self.report(signal, signal.read(place))
        if isinstance(place, self._last_place):
            self._decide()

    def report(self, signal: Signal, value: Tensor | None) -> None:
        """Note the value of a signal at this step, or of a late one for the branch's next step."""
        if value is not None and (self.undecided or signal.late):
            (self._seen if self.undecided else self.branch.late)[signal] = value

    def _decide(self) -> None:
        """Decide by the mask, the first branch or the gate (which counts from the denoiser's first step)."""
        if self._mask is not None:
            computing = bool(self._mask[self.step])
        elif self._gate is None:
            raise TypeError(f"{self.schedule} is neither a mask nor a Gate")
        elif self._gate.shared and self._leader is not None and self._leader is not self.branch:
            computing = self._leader.computing
        else:
            unknown = [s.name for s in self.observes if s.attach and not s.late and s not in self._seen]
            if unknown:
                raise DoesNotFit(
                    f"{self._gate.name} observes {unknown[0]}, which is not known when it decides: let more blocks "
                    "run at every step (site.front)"
                )
            computing = self._gate.decide(self.step - self.since, self._seen, self.branch.state)
        self._seen, self.undecided = {}, False
        self.branch.begin(self.step, computing)

    def end_call(self, output: Tensor) -> None:
        """A denoiser has run: keep its output if the gate observes it."""
        if self.control is not None:
            self.control.end()
        if OUTPUT in self.observes and self.computing:
            self.branch.output = output

    def callback(self, pipe: Any, step: int, timestep: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """Pass this as the pipeline's `callback_on_step_end`: it moves the clock."""
        held = sum(nbytes() for nbytes in self.held_elsewhere)
        held += sum(branch.nbytes for branch in self.branches.values())
        self.cache_bytes = max(self.cache_bytes, held)
        self.step, self.call = step + 1, -1
        return inputs


class Attachable(Protocol):
    """The part of a site (caching/sites/base.py) that a session needs."""

    @property
    def front(self) -> int: ...

    @property
    def at_scheduler(self) -> bool: ...

    @property
    def defers_control(self) -> bool: ...

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None: ...

    def attach_scheduler(self, scheduler: Any, session: Session, undo: ExitStack) -> None: ...


@contextmanager
def cached(
    pipe: Any, *, schedule: Schedule, forecaster: Forecaster, site: Attachable | None, num_steps: int
) -> Iterator[Session]:
    """Run the pipeline's denoiser under an algorithm, for one call.

    Args:
        site: where features are cached. None leaves the denoiser as it is and only counts steps and calls.
        num_steps: the call's `num_inference_steps`.

    Raises:
        DoesNotFit: the schedule lacks step 0, the pipeline has no denoiser, one that the site does not know or too many
            of them, or it takes more steps than `num_steps`.
    """
    networks = denoisers(pipe)
    if not networks:
        raise DoesNotFit(f"{type(pipe).__name__} has neither transformer nor unet: nobody can tell what its steps run")
    for name, denoiser in networks.items():
        if site is not None and site.at_scheduler and anatomy(denoiser).second:
            raise DoesNotFit(
                f"{type(pipe).__name__} has a second scheduler, for what {name} makes beside the picture, and this "
                "site corrects the first one's latent alone: use a site in the denoiser, such as site=last_block"
            )
        if site is not None and hasattr(denoiser, "_orig_mod"):
            raise DoesNotFit(
                f"torch.compile(pipe.{name}) hides its modules: use pipe.{name}.compile(), or compile blocks"
            )
    noise = partial(noise_ratio, getattr(pipe, "scheduler", None))
    starts = takeovers(pipe, networks, num_steps)
    session = Session(schedule, forecaster, num_steps, lambda: pipe.current_timestep, noise, starts)
    with ExitStack() as undo:
        free_afterwards(pipe, undo)
        control = getattr(pipe, "controlnet", None)
        if site is not None and control is not None:
            if site.front:
                raise DoesNotFit(
                    f"{type(pipe).__name__} adds a ControlNet's residuals between blocks, and front blocks would miss "
                    "theirs: use a site without site.front"
                )
            session.control = defer(control, lambda: session.computing, undo) if site.defers_control else None
        for name, denoiser in networks.items():
            _keep_time(name, denoiser, session, undo)
            for signal in session.observes:
                if signal.attach is not None:  # before the site replaces any modules
                    signal.attach(denoiser, anatomy(denoiser), partial(session.report, signal), undo)
            if site is not None:
                site.attach(denoiser, anatomy(denoiser), session, undo)
        if site is not None:
            site.attach_scheduler(getattr(pipe, "scheduler", None), session, undo)
        yield session


def _keep_time(name: str, denoiser: nn.Module, session: Session, undo: ExitStack) -> None:
    """Tell the session of every call of a denoiser."""
    latent, timestep = Argument(denoiser, 0), Argument(denoiser, "timestep")

    def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
        session.begin_call(name, stacked(latent.of(args, kwargs)), timestep.of(args, kwargs))

    def end(module: nn.Module, args: Any, output: Any) -> None:
        session.end_call(stacked(output[0]))

    undo.callback(denoiser.register_forward_pre_hook(begin, with_kwargs=True).remove)
    undo.callback(denoiser.register_forward_hook(end).remove)


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The networks that a pipeline runs at every step, by attribute name."""
    names = ("transformer", "transformer_2", "unet")
    networks = {name: getattr(pipe, name, None) for name in names}
    return {name: module for name, module in networks.items() if module is not None}
