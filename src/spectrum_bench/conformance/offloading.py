"""Offloaded weights, whose hooks stand round the same functions as a cache's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from spectrum_bench.caching.session import denoisers
from spectrum_bench.conformance.bench import Bench, DoesNotApply, apart, demand, one_line
from spectrum_bench.conformance.state import Before

WAYS = ("model", "group")


@contextmanager
def undone(pipe: Any) -> Iterator[None]:
    """Inside the context a pipeline may be offloaded. Afterwards it is as it was, on its device."""
    before, device = Before(pipe), _device(pipe)
    try:
        yield
    finally:
        pipe.remove_all_hooks()
        before.restore()
        pipe.to(device)


def offload(pipe: Any, way: str) -> None:
    """Let weights wait in the machine's memory by diffusers' own hooks, and come to the device that they are on now.
    On a CPU nothing moves, and the hooks are the same."""
    device = _device(pipe)
    if way == "model":
        pipe.enable_model_cpu_offload(device=device)
        return
    # of the other parts nothing could be undone, and no cache is on them
    others = [name for name in pipe.components if name not in denoisers(pipe)]
    pipe.enable_group_offload(device, num_blocks_per_group=1, exclude_modules=others)


def _device(pipe: Any) -> torch.device:
    device: torch.device = next(next(iter(denoisers(pipe).values())).parameters()).device
    return device


def under_offload(bench: Bench) -> str:
    """The plain pipeline shows first that offloading changes no bit here."""
    if not bench.offloading:
        raise DoesNotApply("offload=true")
    bench.must_skip()
    other: list[str] = []
    right: list[str] = []
    wrong: list[str] = []
    for way in WAYS:
        if reason := plain_under(bench, way):
            other.append(f"{way} offloading: {reason}")
            continue
        for first in (True, False):
            name = f"{way} offloading {'before' if first else 'after'} the cache"
            reason = cached_under(bench, way, first)
            (wrong if reason else right).append(f"{name}: {reason}" if reason else name)
    demand(not wrong, "; ".join(wrong))
    if not right:
        raise DoesNotApply(f"the plain pipeline is another one: {'; '.join(other)}")
    return "; ".join([f"the same bits with {', '.join(right)}", *other])


def plain_under(bench: Bench, way: str) -> str:
    """What offloading changes of the plain pipeline, in words; empty if nothing."""
    case = bench.case
    try:
        with undone(case.pipe):
            offload(case.pipe, way)
            latents = case.latents(bench.a)
    except Exception as error:  # whatever it says of a pipeline's modules
        return one_line(error)
    plain = bench.uncached(bench.a).latents
    return "" if torch.equal(latents, plain) else apart(latents, plain)


def cached_under(bench: Bench, way: str, first: bool) -> str:
    """What offloading changes of the cache, in words; empty if nothing. There are two calls, because model offloading
    makes its hooks anew after each, and one more when the cache is off.

    Args:
        first: offloading is switched on before the cache.
    """
    case, a = bench.case, bench.a
    plain, alone = bench.uncached(a).latents, bench.fresh(a).latents
    try:
        with undone(case.pipe):
            if first:
                offload(case.pipe, way)
            with bench.switched_on():
                if not first:
                    offload(case.pipe, way)
                calls = [case.latents(a), case.latents(a)]
                bench.cache.off(case.pipe)
                calls.append(case.latents(a))
    except Exception as error:  # other people's code raises anything
        return one_line(error)
    wanted = {"first call": alone, "second call": alone, "call after it is off": plain}
    pairs = zip(wanted.items(), calls, strict=True)
    return "; ".join(
        f"its {name}: {apart(each, right)}" for (name, right), each in pairs if not torch.equal(each, right)
    )
