"""A cache and a pipeline under test: calls without the cache, under it, and under a fresh one, and how they compare."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from spectrum_bench.conformance.caches import Cache
from spectrum_bench.conformance.pipelines import Ask, Case, Ran
from spectrum_bench.conformance.state import Before
from spectrum_bench.conformance.watch import Call

NEAR = 1e-3  # of the largest latent: what a guidance of one millionth may change
TINY = 1e-6  # guidance beyond none


class DoesNotApply(Exception):
    """This pipeline or cache has nothing that the check could look at."""


@dataclass
class Bench:
    """A cache and a pipeline under test.

    Attributes:
        guided_alone: every call has the pipeline's own guidance, for a cache that needs both branches.
        compiling: blocks are compiled, too.
        offloading: weights are offloaded, too.
        broken: the cache does not take the pipeline, or breaks its call.
    """

    case: Case
    cache: Cache
    guided_alone: bool = False
    compiling: bool = False
    offloading: bool = False
    broken: bool = False
    plain: dict[Ask, Ran] = field(default_factory=dict)
    alone: dict[Ask, Ran] = field(default_factory=dict)

    def uncached(self, ask: Ask) -> Ran:
        """The plain pipeline's answer.

        Raises:
            DoesNotApply: the pipeline itself refuses this call.
        """
        if ask not in self.plain:
            try:
                self.plain[ask] = self.case.call(ask)
            except Exception as error:  # whatever a pipeline says of a size or a batch
                raise DoesNotApply(f"the plain pipeline refuses it: {one_line(error)}") from None
        return self.plain[ask]

    @contextmanager
    def switched_on(self, steps: int | None = None, never: bool = False) -> Iterator[None]:
        """The cache is on inside the context. Whatever it leaves is removed afterwards, so that checks stay apart."""
        before = Before(self.case.pipe)
        try:
            self.cache.on(self.case.pipe, steps or self.case.steps, never)
            yield
        finally:
            before.restore()

    def fresh(self, ask: Ask) -> Ran:
        """The answer of a cache that was switched on for this one call."""
        self.uncached(ask)
        if ask not in self.alone:
            with self.switched_on(ask.steps):
                self.alone[ask] = self.case.call(ask)
        return self.alone[ask]

    @property
    def a(self) -> Ask:
        """Prompt A without a second guidance branch, if it can be without."""
        return Ask(steps=self.case.steps, size=self.case.size, guidance=self.off)

    @property
    def off(self) -> float | None:
        """The guidance that leaves the second branch out: 1 in most pipelines, 0 in some; None: there is none."""
        if self.case.key is None or self.guided_alone:
            return None
        for value in (1.0, 0.0):
            without = self.uncached(Ask(steps=self.case.steps, size=self.case.size, guidance=value))
            a_little = self.uncached(Ask(steps=self.case.steps, size=self.case.size, guidance=value + TINY))
            if work(a_little) > 1.5 * work(without) and near(a_little.latents, without.latents):
                return value
        return None

    @property
    def guided(self) -> Ask:
        """Prompt A with a second guidance branch.

        Raises:
            DoesNotApply: there is none.
        """
        if self.off is None:
            raise DoesNotApply("guided=true" if self.guided_alone else "this pipeline runs no second guidance branch")
        return Ask(steps=self.case.steps, size=self.case.size)

    def must_skip(self) -> None:
        """
        Raises:
            DoesNotApply: the cache skips nothing, so that what it remembers shows nowhere.
        """
        if all(share > 0.999 for _, share in self.shares(self.fresh(self.a), self.a)):
            raise DoesNotApply("no step is skipped, so that there is nothing to see")

    def shares(self, ran: Ran, ask: Ask) -> list[tuple[Call, float]]:
        """Each call with its share of the work that the plain pipeline does in that place."""
        plain = {(call.step, call.branch): sum(call.work) for call in self.uncached(ask).calls}
        most = max(plain.values())
        return [(call, sum(call.work) / (plain.get((call.step, call.branch)) or most)) for call in ran.calls]

    def computed(self, ran: Ran, ask: Ask, branch: int = 0, denoiser: str | None = None) -> list[int]:
        """The steps at which a branch computes all that the plain pipeline does."""
        return [
            call.step
            for call, share in self.shares(ran, ask)
            if share > 0.999 and call.branch == branch and denoiser in (None, call.denoiser)
        ]


def near(one: Tensor, other: Tensor) -> bool:
    """Whether two latents differ by rounding alone."""
    return one.shape == other.shape and float((one - other).abs().max()) < NEAR * float(other.abs().max())


def apart(one: Tensor, other: Tensor) -> str:
    """By how much two latents differ, in words."""
    if one.shape != other.shape:
        return f"the shape is {tuple(one.shape)} instead of {tuple(other.shape)}"
    return f"the latents differ by {float((one - other).abs().max() / other.abs().max()):.1g} of the largest"


def work(ran: Ran) -> int:
    return sum(sum(call.work) for call in ran.calls)


def one_line(error: BaseException) -> str:
    """An exception in at most 200 characters of one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def steps_of(steps: list[int]) -> str:
    return " ".join(map(str, steps)) or "none"


def demand(kept: bool, words: str) -> None:
    """Fail a check whose promise is not kept."""
    if not kept:
        raise AssertionError(words)
