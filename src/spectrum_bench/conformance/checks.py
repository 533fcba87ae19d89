"""What a caching hook promises, one function for each promise. Nothing here knows how a cache works: it is switched on
and off, the pipeline is called, and what comes out is compared with calls that no cache, or a fresh one, took part in.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from spectrum_bench.conformance.bench import TINY, Bench, DoesNotApply, apart, demand, near, one_line, steps_of, work
from spectrum_bench.conformance.compiling import under_compile
from spectrum_bench.conformance.offloading import under_offload
from spectrum_bench.conformance.pipelines import Ask, Interrupted, Ran
from spectrum_bench.conformance.state import Before
from spectrum_bench.conformance.watch import live_bytes
from spectrum_bench.errors import DoesNotFit, UserError

OK, FAILED, NONE = "ok", "FAILED", "-"


@dataclass(frozen=True)
class Finding:
    """One line: a check, its verdict (ok, FAILED, or - where it does not apply), and what was seen."""

    check: str
    verdict: str
    words: str


Check = Callable[[Bench], str]


# ---------------------------------------------------------------------------------------------------------------------
# What is computed


def attaches(bench: Bench) -> str:
    guard = Before(bench.case.pipe)
    try:
        bench.cache.on(bench.case.pipe, bench.case.steps)
    except (DoesNotFit, UserError):
        raise
    except Exception as error:  # other people's code raises anything
        active, _ = guard.left_behind()
        demand(not active, f"{one_line(error)}; still attached after that: {', '.join(active[:1])}")
        raise DoesNotApply(f"it refuses the pipeline: {one_line(error)}") from None
    finally:
        guard.restore()
    return "it takes the pipeline"


def runs(bench: Bench) -> str:
    latents = bench.fresh(bench.a).latents
    demand(bool(latents.isfinite().all()), "the latents are not finite")
    return "a call ends, and its latents are finite"


def never_skips(bench: Bench) -> str:
    if not bench.cache.can_never:
        raise DoesNotApply("nobody knows how to tell it: give never=module:enable,disable")
    ask = bench.guided if bench.off is not None else bench.a
    with bench.switched_on(never=True):
        ran = bench.case.call(ask)
    plain = bench.uncached(ask).latents
    demand(
        torch.equal(ran.latents, plain),
        f"told never to skip, it is not the plain pipeline: {apart(ran.latents, plain)}",
    )
    return "told never to skip, it gives the plain pipeline's bits"


def skips(bench: Bench) -> str:
    ran = bench.fresh(bench.a)
    shares = bench.shares(ran, bench.a)
    computed = bench.computed(ran, bench.a)
    skipped = [share for _, share in shares if share <= 0.999]
    demand(bool(skipped), f"every one of the {bench.case.steps} steps is computed in full")
    demand(0 in computed, "the first step, before which there is nothing to reuse, is not computed in full")
    demand(not torch.equal(ran.latents, bench.uncached(bench.a).latents), "it skips, and the output is the plain one")
    return f"computes steps {steps_of(computed)} of {bench.case.steps}"


def saves(bench: Bench) -> str:
    shares = [share for _, share in bench.shares(bench.fresh(bench.a), bench.a)]
    bench.must_skip()
    skipped = [share for share in shares if share <= 0.999]
    return f"a skipped step does {min(skipped):.0%} to {max(skipped):.0%} of a computed step's work in the blocks"


# ---------------------------------------------------------------------------------------------------------------------
# One call after another, under a cache that stays on


def after_each_other(bench: Bench, asks: list[Ask], what: str) -> str:
    """The last of several calls must be what it is alone."""
    bench.must_skip()
    for ask in asks:
        bench.uncached(ask)
    with bench.switched_on(asks[-1].steps):
        for ask in asks:
            ran = bench.case.call(ask)
    same(bench, ran, asks[-1])
    return what


def same(bench: Bench, ran: Ran, ask: Ask) -> None:
    """Compare a call with the same one under a fresh cache."""
    alone = bench.fresh(ask)
    there, here = (bench.computed(each, ask) for each in (alone, ran))
    demand(
        torch.equal(ran.latents, alone.latents),
        f"it is not what a fresh cache gives: {apart(ran.latents, alone.latents)}; "
        f"computed steps {steps_of(here)} instead of {steps_of(there)}",
    )


def a_b_a(bench: Bench) -> str:
    a = bench.a
    return after_each_other(bench, [a, replace(a, prompts="B", seed=7), a], "A, B, A gives the first A again")


def second_prompt(bench: Bench) -> str:
    a = bench.a
    return after_each_other(bench, [a, replace(a, prompts="B", seed=7)], "B after A is B alone")


def other_size(bench: Bench) -> str:
    a = bench.a
    larger = replace(a, size=a.size * 3 // 2)
    return after_each_other(bench, [a, larger, a], f"{larger.size} pixels between two calls of {a.size} change nothing")


def other_steps(bench: Bench) -> str:
    bench.must_skip()
    a = bench.a
    fewer = replace(a, steps=a.steps - 2)
    bench.uncached(fewer)
    with bench.switched_on(a.steps):
        bench.case.call(a)
        bench.cache.off(bench.case.pipe)
        bench.cache.on(bench.case.pipe, fewer.steps)
        ran = bench.case.call(fewer)
    same(bench, ran, fewer)
    return f"{fewer.steps} steps after {a.steps}, switched off and on between, are {fewer.steps} steps alone"


def batch(bench: Bench) -> str:
    both = replace(bench.a, prompts="AB")
    ran = bench.fresh(both)
    demand(ran.latents.shape == bench.uncached(both).latents.shape, "a batch of two gives another shape")
    return after_each_other(bench, [bench.a, both, bench.a], "a batch of two between two single calls changes nothing")


def interrupted(bench: Bench) -> str:
    """The same call again is the hardest one: whatever is still remembered fits it."""
    bench.must_skip()
    with bench.switched_on():
        with suppress(Interrupted):
            bench.case.call(replace(bench.a, stop=2))
        ran = bench.case.call(bench.a)
    same(bench, ran, bench.a)
    return "a call after one that ended after its third step is that call alone"


# ---------------------------------------------------------------------------------------------------------------------
# Guidance and experts


def branches(bench: Bench) -> str:
    """Both branches have the same prompt, so that each must decide as the one of an unguided call does."""
    bench.must_skip()
    ask = replace(bench.guided, same=True)
    ran = bench.fresh(ask)
    if max(call.branch for call in ran.calls) == 0:
        raise DoesNotApply("this pipeline runs both branches in one call")
    wanted = bench.computed(bench.fresh(bench.a), bench.a)
    for branch in (0, 1):
        steps = bench.computed(ran, ask, branch)
        demand(
            steps == wanted,
            f"with one prompt in both branches, the {('first', 'second')[branch]} one computes steps "
            f"{steps_of(steps)}, an unguided call {steps_of(wanted)}",
        )
    return f"each branch computes steps {steps_of(wanted)}, as an unguided call does"


def guidance_of_nothing(bench: Bench) -> str:
    bench.must_skip()
    ask = replace(bench.guided, guidance=(bench.off or 0.0) + TINY)
    ran, alone = bench.fresh(ask), bench.fresh(bench.a)
    demand(
        near(ran.latents, alone.latents),
        f"guidance of {TINY:g} beyond none is not the unguided call: {apart(ran.latents, alone.latents)}",
    )
    return "a second branch of no weight changes nothing"


def guidance_dropped(bench: Bench) -> str:
    if bench.case.key != "guidance_scale" or bench.off is None:
        raise DoesNotApply("this pipeline cannot drop guidance in the middle of a call")
    bench.must_skip()
    drop = bench.case.steps // 2
    ask = replace(bench.guided, guidance=bench.off + TINY, drop=drop, off=bench.off)
    if work(bench.uncached(ask)) == work(bench.uncached(replace(ask, drop=None))):
        raise DoesNotApply("this pipeline cannot drop guidance in the middle of a call")
    ran, alone = bench.fresh(ask), bench.fresh(bench.a)
    demand(
        near(ran.latents, alone.latents),
        f"a second branch of no weight that ends after step {drop} is not the unguided call: "
        f"{apart(ran.latents, alone.latents)}",
    )
    return f"a second branch of no weight that ends after step {drop} changes nothing"


def guidance_on_and_off(bench: Bench) -> str:
    return after_each_other(bench, [bench.guided, bench.a, bench.guided, bench.a], "unguided after guided is unguided")


def experts(bench: Bench) -> str:
    ask = replace(bench.a, guidance=None)
    ran, words = bench.fresh(ask), []
    used = {call.denoiser: call.step for call in reversed(ran.calls)}
    if len(used) < 2:
        raise DoesNotApply("this pipeline has one denoiser")
    for name, first in sorted(used.items(), key=lambda item: item[1]):
        steps = bench.computed(ran, ask, denoiser=name)
        demand(first in steps, f"{name} reuses at its first step, {first}, what it never computed")
        words.append(f"{name} from step {first} computes {steps_of(steps)}")
    after_each_other(bench, [ask, replace(ask, prompts="B"), ask], "")
    return "; ".join(words)


# ---------------------------------------------------------------------------------------------------------------------
# What it costs, and what stays


def gone(bench: Bench) -> str:
    pipe, a = bench.case.pipe, bench.a
    plain = bench.uncached(a)
    guard = Before(pipe)
    gc.collect()
    bytes_before = live_bytes()
    try:
        bench.cache.on(pipe, bench.case.steps)
        bench.case.call(a)
        bench.cache.off(pipe)
        gc.collect()
        more = live_bytes() - bytes_before
        active, marks = guard.left_behind()
        demand(not active, f"still attached after it was switched off: {', '.join(active[:1])}")
        demand(more <= 0, f"{more} bytes of tensors are still alive after it was switched off")
        demand(torch.equal(bench.case.call(a).latents, plain.latents), "the plain pipeline is another one afterwards")
    finally:
        guard.restore()
    return f"nothing that acts stays{'; empty marks do: ' + ', '.join(marks) if marks else ''}"


def memory(bench: Bench) -> str:
    more = bench.fresh(bench.a).held - bench.uncached(bench.a).held
    return f"{more} bytes more than the plain pipeline at the end of the last step"


def waits(bench: Bench) -> str:
    more = bench.fresh(bench.a).waits - bench.uncached(bench.a).waits
    return f"{more} reads of a tensor's value more than the plain pipeline, in {bench.case.steps} steps"


FIRST = ("attaches", "runs")
CHECKS: dict[str, Check] = {
    "attaches": attaches,
    "runs": runs,
    "never skips": never_skips,
    "skips": skips,
    "saves work": saves,
    "a, b, a": a_b_a,
    "second prompt": second_prompt,
    "other size": other_size,
    "other steps": other_steps,
    "batch of two": batch,
    "interrupted": interrupted,
    "branches": branches,
    "guidance of nothing": guidance_of_nothing,
    "guidance dropped": guidance_dropped,
    "guidance on and off": guidance_on_and_off,
    "two experts": experts,
    "compiled": under_compile,
    "offloaded": under_offload,
    "gone afterwards": gone,
    "memory": memory,
    "waits": waits,
}


def check(bench: Bench, name: str) -> Finding:
    """Make one check. Whatever a cache raises fails it. After a failure of the first ones the others do not apply."""
    if bench.broken:
        return Finding(name, NONE, "the cache does not run here")
    verdict, words = _seen(bench, name)
    bench.broken = name in FIRST and verdict != OK
    return Finding(name, verdict, words)


def _seen(bench: Bench, name: str) -> tuple[str, str]:
    try:
        return OK, CHECKS[name](bench)
    except (DoesNotApply, DoesNotFit) as reason:
        return NONE, str(reason)
    except AssertionError as broken:
        return FAILED, " ".join(str(broken).split()) or "AssertionError"
    except UserError:
        raise
    except Exception as error:  # other people's code raises anything
        return FAILED, one_line(error)


def check_all(bench: Bench) -> Iterator[Finding]:
    """Make all checks; only the first ones where the cache does not take the pipeline, or breaks its call."""
    for name in CHECKS:
        yield check(bench, name)
        if bench.broken:
            return
