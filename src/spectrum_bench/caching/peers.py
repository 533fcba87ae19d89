"""Other people's caching as rows of our tables: their code, our clock and records."""

import importlib
import logging
from contextlib import ExitStack
from dataclasses import dataclass, field

import diffusers
from torch import Tensor, nn

from spectrum_bench.caching.sites.base import all_blocks
from spectrum_bench.forecasters import reuse
from spectrum_bench.gates import calibrated, observed
from spectrum_bench.schedules import bare

CACHE_DIT = "1.5.3"


class Peer:
    """Caching that decides and forecasts by itself. Which steps are computed is not asked of it but observed: a step
    counts if the first projection of the block `watched` ran. Caches of attention alone run the MLPs at every step;
    the time of a skipped step tells."""

    package: str
    runs_blocks = False
    watched = -1
    knows_branches = True  # of guidance; False: its state is of whoever calls, which two calls a step would mix

    def switch_on(self, denoiser: nn.Module, session, undo: ExitStack) -> None:
        raise NotImplementedError

    def check(self, schedule, forecaster):
        """Refuse a schedule or forecaster of ours, which nobody would ask."""
        if bare(schedule) is not observed or bare(forecaster) is not reuse:
            raise ValueError("a peer decides and forecasts by itself: give algo=diffusers_* or cachedit_* alone")

    def attach(self, denoiser, anatomy, session, undo):
        projections = (m for n, m in all_blocks(denoiser)[self.watched].named_modules() if n.endswith("to_q"))
        query = next(projections, None)
        if query is None:  # a U-Net's last block has no attention
            raise ValueError(f"{self.package} caches nothing in {type(denoiser).__name__}: use our own algorithms")
        undo.callback(_restore, {module: (set(vars(module)), dict(module._modules)) for module in denoiser.modules()})
        self.switch_on(denoiser, session, undo)
        ran = []
        undo.callback(query.register_forward_pre_hook(lambda *_: ran.append(True)).remove)

        def observe(*_):
            if session.call > 0 and not self.knows_branches:
                raise ValueError(f"{self} would mix this pipeline's two guidance branches: use our own algorithms")
            session.branch.observe(session.step, bool(ran))
            ran.clear()

        undo.callback(denoiser.register_forward_hook(observe).remove)
        others = session.held  # of a pipeline with two denoisers
        session.held = lambda: others() + sum(tensor.untyped_storage().nbytes() for tensor in held(denoiser))


@dataclass(frozen=True)
class DiffusersCache(Peer):
    """One of the caches that diffusers attaches by `enable_cache`, under its own schedule.

    Attributes:
        config: the class in diffusers, e.g. FirstBlockCacheConfig.
        arguments: its arguments.
        filled: those that only a run knows: "timestep" (a function that gives the current one), "steps" (their number).
    """

    package = "diffusers"
    config: str
    arguments: dict = field(default_factory=dict)
    filled: dict = field(default_factory=dict)

    def __str__(self):
        return f"diffusers' {self.config}"

    @property
    def knows_branches(self) -> bool:
        return self.config not in ("PyramidAttentionBroadcastConfig", "FasterCacheConfig")  # they count calls

    def __post_init__(self):
        given = dict(self.arguments) | dict.fromkeys(self.filled, 1)
        if "mag_ratios" in given:
            calibrated("magcache", given["mag_ratios"])
        try:
            getattr(diffusers, self.config)(**given)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"site.config={self.config}: {error}") from None

    def switch_on(self, denoiser, session, undo):
        if not hasattr(denoiser, "enable_cache"):
            raise ValueError(f"diffusers caches nothing in {type(denoiser).__name__}: use our own algo of that name")
        values = {"timestep": session.timestep, "steps": session.num_steps}
        filled = {name: values[what] for name, what in self.filled.items()}
        arguments = {k: tuple(v) if isinstance(v, list) and len(v) == 2 else v for k, v in self.arguments.items()}
        denoiser.enable_cache(getattr(diffusers, self.config)(**arguments, **filled))
        undo.callback(denoiser.disable_cache)


@dataclass(frozen=True)
class CacheDiT(Peer):
    """DBCache of vipshop/cache-dit, with or without one of its calibrators; an extra (pip install cache-dit).

    Attributes:
        arguments: of its DBCacheConfig. The first Fn_compute_blocks and the last Bn_compute_blocks run at every step.
        calibrator: the class of what forecasts, e.g. TaylorSeerCalibratorConfig; None reuses.
        constants: its arguments.
    """

    package = "cache-dit"
    arguments: dict = field(default_factory=dict)
    calibrator: str | None = None
    constants: dict = field(default_factory=dict)

    def __post_init__(self):
        self._configs(None)

    @property
    def watched(self) -> int:
        return -1 - self.arguments.get("Bn_compute_blocks", 0)

    def _configs(self, steps: int | None) -> tuple:
        try:
            logging.getLogger("CACHE_DIT").setLevel(logging.ERROR)
            library = importlib.import_module("cache_dit")
        except ImportError:
            raise ValueError(f"algo=cachedit_* is an extra: pip install cache-dit=={CACHE_DIT}") from None
        try:
            cache = library.DBCacheConfig(num_inference_steps=steps, **self.arguments)
            return cache, getattr(library, self.calibrator)(**self.constants) if self.calibrator else None
        except (AttributeError, TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"site: cache-dit says {error}") from None

    def switch_on(self, denoiser, session, undo):
        import cache_dit

        at_every_step = sum(self.arguments.get(name, 0) for name in ("Fn_compute_blocks", "Bn_compute_blocks"))
        if at_every_step >= len(all_blocks(denoiser)):
            raise ValueError(f"{type(denoiser).__name__} has no more than {at_every_step} blocks: lower site.arguments")
        cache, calibrator = self._configs(session.num_steps)
        try:
            cache_dit.enable_cache(denoiser, cache_config=cache, calibrator_config=calibrator)
        except ValueError:
            raise ValueError(f"cache-dit caches nothing in {type(denoiser).__name__}: use algo=fbcache") from None
        undo.callback(cache_dit.disable_cache, denoiser)


def held(denoiser: nn.Module) -> list[Tensor]:
    """Every tensor that diffusers' hooks or cache-dit's contexts keep between steps, each storage once."""
    found: dict[int, Tensor] = {}
    seen: set[int] = set()

    def walk(node):
        if id(node) in seen or isinstance(node, nn.Module):
            return
        seen.add(id(node))
        if isinstance(node, Tensor):
            found[node.untyped_storage().data_ptr()] = node
        elif isinstance(node, dict):
            for value in node.values():
                walk(value)
        elif isinstance(node, (list, tuple)):
            for value in node:
                walk(value)
        elif type(node).__module__.startswith(("diffusers.hooks", "cache_dit")):
            walk(vars(node))

    for module in denoiser.modules():
        registry = vars(module).get("_diffusers_hook")
        if registry is not None:
            walk(registry.hooks)
        walk(vars(module).get("_context_manager"))
    return list(found.values())


def _restore(before: dict[nn.Module, tuple[set[str], dict[str, nn.Module]]]) -> None:
    """Take out what the peers leave when switched off: empty registries, flags, forwards as attributes, and another
    order of submodules, which is the order in which blocks run."""
    for module, (names, modules) in before.items():
        for name in set(vars(module)) - names:
            delattr(module, name)
        module._modules.clear()
        module._modules.update(modules)
