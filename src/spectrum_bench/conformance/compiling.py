"""Blocks under torch.compile, which traces what a cache put around them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._dynamo.utils import counters

from spectrum_bench.caching.session import denoisers
from spectrum_bench.conformance.bench import Bench, DoesNotApply, apart, demand, one_line
from spectrum_bench.conformance.watch import blocks_of


@dataclass
class Traced:
    """What dynamo made of the blocks: graphs, and places at which it gave a graph up for Python."""

    graphs: int = 0
    breaks: int = 0


@contextmanager
def compiled(pipe: Any) -> Iterator[Traced]:
    """Inside the context each block is compiled on its own, with a backend that runs a traced graph as it is: what
    differs then is what tracing made of the cache. Nothing compiled stays afterwards."""
    traced = Traced()
    blocks = [block for denoiser in denoisers(pipe).values() for block in blocks_of(denoiser)]
    torch.compiler.reset()
    before = _counted()
    try:
        for block in blocks:
            block.compile(backend="eager")
        yield traced
        traced.graphs, traced.breaks = (now - then for now, then in zip(_counted(), before, strict=True))
    finally:
        for block in blocks:
            vars(block).pop("_compiled_call_impl", None)
        torch.compiler.reset()


def _counted() -> tuple[int, int]:
    """Graphs and graph breaks of this process."""
    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


def under_compile(bench: Bench) -> str:
    """The plain pipeline shows first that compiled blocks give the bits of others here."""
    if not bench.compiling:
        raise DoesNotApply("compile=true")
    case, a = bench.case, bench.a
    plain, alone = bench.uncached(a).latents, bench.fresh(a).latents
    try:
        with compiled(case.pipe) as traced:
            without = case.latents(a)
    except Exception as error:  # whatever dynamo says of a pipeline's blocks
        raise DoesNotApply(f"the plain pipeline's blocks do not compile: {one_line(error)}") from None
    if not torch.equal(without, plain):
        raise DoesNotApply(f"compiled, the plain pipeline is another one: {apart(without, plain)}")
    with bench.switched_on(), compiled(case.pipe) as cached:
        latents = case.latents(a)
    demand(torch.equal(latents, alone), f"with compiled blocks it is another cache: {apart(latents, alone)}")
    return (
        f"compiled blocks give the same bits; graphs: {cached.graphs}, graph breaks: {cached.breaks} "
        f"(without the cache: {traced.graphs}, {traced.breaks})"
    )
