"""Traces: what an uncached run tells about every mask and every linear forecaster.

With A, the scheduler's matrix, and the inner products of x_0 and the guided outputs v_0 .. v_{T-1} of one sample, the
error of any latent that is a sum of them follows without the network. A trace of 50 steps has 21 KB.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.numpy import save
from torch import Tensor

from spectrum_bench.caching.algorithm import NOCACHE, Algorithm
from spectrum_bench.caching.propagation import Matrix, propagator, watch
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import Site
from spectrum_bench.checks import brief, is_whole
from spectrum_bench.errors import DoesNotFit
from spectrum_bench.forecasters import reuse
from spectrum_bench.lab.uncached import Uncached
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.reading import Damaged, check, check_file, parse_json
from spectrum_bench.sampling.records import write_atomically
from spectrum_bench.sampling.sampler import Latents, Observer
from spectrum_bench.schedules import ALONE, Starts, full

Floats = NDArray[np.float64]
Item = TypeVar("Item")
AGREES = 1e-3  # relative error of the last latent that the scheduler's matrix may have on a real sample
SKETCH = 8192  # numbers that stand for a feature; squared sizes keep to some 1.6 %
LARGEST = 2**28  # bytes of a file of traces


class Stop(Exception):
    """The outputs that are needed are there."""


@dataclass
class Guided(Observer):
    """Keeps x_0 and the guided outputs of a sample, float64 and flat.

    Attributes:
        last: the step after which the sample ends with `Stop`; None: it is made to its end.
        anew: whether the rows begin anew with each network of those that run by turns, from its first latent.
        skipped: whether the outputs of skipped steps are kept too, as the scheduler got them.
        rows: x_0 and the outputs.
        matrix: the scheduler's, if the sample is made to its end.
    """

    last: int | None = None
    anew: bool = False
    skipped: bool = False
    rows: list[Floats] = field(default_factory=list)
    matrix: Matrix | None = None

    def attach(self, pipe: Any, session: Session, undo: ExitStack) -> None:
        def begin() -> None:
            if self.last is None:
                self.matrix = propagator(pipe.scheduler)

        def advance(output: Tensor, latent: Tensor, following: Tensor) -> Tensor:
            if not self.rows or (self.anew and session.step == session.since):
                self.rows = [flat(latent)]
            if self.skipped or session.step in session.computed_steps:
                self.rows.append(flat(output))
            if session.step == self.last:
                raise Stop
            return following

        watch(pipe.scheduler, begin, advance, undo)


def flat(tensor: Tensor) -> Floats:
    numbers: Floats = tensor.detach().flatten().double().cpu().numpy()
    return numbers


@dataclass
class Sketches(Observer):
    """Keeps a sketch of every feature that a site stores, at each step: SKETCH numbers that keep inner products."""

    rows: defaultdict[tuple[object, str], list[Floats]] = field(default_factory=lambda: defaultdict(list))
    elements: int = 0

    def attach(self, pipe: Any, session: Session, undo: ExitStack) -> None:
        self.elements = 0

    def step_done(self, session: Session, step: int, latents: Tensor) -> None:
        for (_, call), branch in session.branches.items():
            ran = branch.times[-1:] == [step]  # and not the network that another one has taken over from
            for slot, history in branch.histories.items() if ran else ():
                feature = history.features()[-1]
                self.rows[call, slot].append(sketch(feature))
                self.elements += feature.numel() if step == 0 else 0

    def gram(self) -> Floats:
        """(T, T) inner products of all features as one vector, for each of its elements."""
        total: Floats = sum((np.array(rows) @ np.array(rows).T for rows in self.rows.values()), start=np.zeros(()))
        return total / self.elements


def sketch(feature: Tensor) -> Floats:
    """The feature itself if it is small; else a count sketch (Charikar et al. 2002): each element is added with a
    random sign to one of SKETCH sums. It is linear, and its squared size is right in the mean."""
    if feature.numel() <= SKETCH:
        return flat(feature)
    bins, signs = _hashed(feature.numel(), str(feature.device))
    sums = torch.zeros(SKETCH, dtype=torch.float64, device=feature.device)
    return flat(sums.index_add_(0, bins, feature.detach().flatten().double() * signs))


@cache
def _hashed(elements: int, device: str) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(elements)
    bins = torch.randint(SKETCH, (elements,), generator=random)
    signs = torch.randint(2, (elements,), generator=random) * 2 - 1
    return bins.to(device), signs.to(device, torch.float64)


@dataclass(frozen=True)
class Trace:
    """Of one uncached sample.

    Attributes:
        gram: (T + 1, T + 1) inner products of x_0, v_0 .. v_{T-1}, for each element.
        matrix: (T + 1, T + 1) the scheduler's; see caching/propagation.py.
        features: (T, T) inner products of a site's features, or None.
        starts: the first step of each network of those that run by turns.
    """

    gram: Floats
    matrix: Matrix
    features: Floats | None = None
    starts: Starts = ALONE


@dataclass(frozen=True, kw_only=True)
class Reference(Trace):
    """A trace with the latents before every step and after the last one, (T + 1, D)."""

    latents: Floats


def trace(model: Uncached, job: Job, site: Site | None = None) -> Reference:
    """Sample without caching.

    Args:
        site: the site whose features are traced too. None: no features.

    Raises:
        DoesNotFit: the scheduler's matrix does not lead to the latent that the pipeline ended with, or the site keeps
            its features to itself.
    """
    guided, latents, sketches = Guided(), Latents(), Sketches()
    algorithm = Algorithm("trace", full, reuse, site) if site else NOCACHE
    model.sampler(algorithm).watch(job, [guided, latents, *([sketches] if site else [])])
    if site and not sketches.rows:
        raise DoesNotFit(f"{type(site).__name__} stores no features that could be traced: leave site= out")
    assert guided.matrix is not None  # the pipeline has made steps
    rows = np.array(guided.rows)
    led, ended = guided.matrix @ rows, flat(latents.steps[-1])
    if not np.linalg.norm(led[-1] - ended) <= AGREES * np.linalg.norm(ended):
        raise DoesNotFit(f"{type(model.pipe).__name__} changes its latents outside its scheduler: use another algo")
    features = sketches.gram() if site else None
    return Reference(rows @ rows.T / rows.shape[1], guided.matrix, features, model.starts, latents=led)


def seeded(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, each with a seed of its own: the job's plus its index. With one seed for all, x_0 would be one picture
    of noise, and a fit would take it for a property of the model."""
    return [replace(job, seed=job.seed + job.prompt_index) for job in jobs]


def halves(items: Sequence[Item]) -> tuple[Sequence[Item], Sequence[Item]]:
    """One half to fit on and the other to compare on; both are the same if there is one item."""
    half = max(len(items) // 2, 1)
    return items[:half], items[half:] or items


# ---------------------------------------------------------------------------------------------------------------------


def write(path: Path, traces: Sequence[Trace], about: Mapping[str, Any]) -> None:
    """Write a safetensors file: gram (P, T + 1, T + 1), matrix, features (P, T, T) if there are any, and what they are
    of."""
    arrays = {"gram": np.stack([each.gram for each in traces]), "matrix": traces[0].matrix}
    features = [each.features for each in traces if each.features is not None]
    if features:
        arrays["features"] = np.stack(features)
    by_turns = {"starts": list(traces[0].starts)} if len(traces[0].starts) > 1 else {}
    write_atomically(path, save(arrays, {"about": json.dumps({**about, **by_turns})}))


def read(path: Path) -> tuple[list[Trace], dict[str, Any]]:
    """The traces of a file, and what they are of.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it is no file of traces.
    """
    check_file(path, LARGEST)
    try:
        with safetensors.safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
            about = parse_json((file.metadata() or {}).get("about", "{}"))
            check(dict[str, Any], about)
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise Damaged(f"{path} is no file of traces: {error}") from None
    shapes = {name: array.shape for name, array in arrays.items()}
    P, n, _ = shapes.get("gram", (0, 0, 0)) if len(shapes.get("gram", ())) == 3 else (0, 0, 0)
    expected = {"gram": (P, n, n), "matrix": (n, n), "features": (P, n - 1, n - 1)}
    if not (P and n > 1 and "matrix" in arrays and all(shapes[name] == expected.get(name) for name in arrays)):
        raise Damaged(f"{path} is no file of traces: it has {shapes}")
    if not all(array.dtype == np.float64 and np.isfinite(array).all() for array in arrays.values()):
        raise Damaged(f"{path} is no file of traces: its numbers must be float64 and finite")
    starts = about.get("starts", list(ALONE))
    if not (
        isinstance(starts, list) and all(map(is_whole, starts)) and starts == sorted({0, *starts} & {*range(n - 1)})
    ):
        raise Damaged(f"{path} is no file of traces: its networks begin at {brief(starts)}")
    features = arrays.get("features", [None] * P)
    return [Trace(g, arrays["matrix"], f, starts) for g, f in zip(arrays["gram"], features, strict=True)], about
