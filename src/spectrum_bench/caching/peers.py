"""Other people's caching code as rows of our tables, with our clock and our records."""

import importlib
import logging
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import diffusers
from torch import Tensor, nn

from spectrum_bench.anatomy import Anatomy, all_blocks
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import Site
from spectrum_bench.errors import BadValue, DoesNotFit
from spectrum_bench.forecasters import Forecaster, reuse
from spectrum_bench.gates import is_observed
from spectrum_bench.schedules import Schedule, bare, calibrated

CACHE_DIT = "1.5.3"


class Peer(Site):
    """Caching that decides and forecasts by itself. We observe which steps it computes: a step counts as computed if
    the first projection of the block `watched` ran. Caches of attention alone run the MLPs at every step, which shows
    in the time of a skipped step."""

    package: str

    @property
    def runs_blocks(self) -> bool:
        return False

    @property
    def decides(self) -> bool:
        return True

    @property
    def watched(self) -> int:
        """The index of a block that runs only at computed steps."""
        return -1

    @property
    def knows_branches(self) -> bool:
        """Whether the guidance branches have states of their own; else two calls a step would mix them."""
        return True

    def switch_on(self, denoiser: nn.Module, session: Session, undo: ExitStack) -> None:
        """Attach the peer's own hooks."""
        raise NotImplementedError

    def check(self, schedule: Schedule, forecaster: Forecaster) -> None:
        """Refuse a schedule or a forecaster of ours, which the peer would not use."""
        if not is_observed(schedule) or bare(forecaster) is not reuse:
            raise DoesNotFit("a peer decides and forecasts by itself: give algo=diffusers_* or cachedit_* alone")

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        projections = (m for n, m in all_blocks(denoiser)[self.watched].named_modules() if n.endswith("to_q"))
        query = next(projections, None)
        if query is None:  # a U-Net's last block has no attention
            raise DoesNotFit(f"{self.package} caches nothing in {type(denoiser).__name__}: use our own algorithms")
        undo.callback(_restore, {module: (set(vars(module)), dict(module._modules)) for module in denoiser.modules()})
        self.switch_on(denoiser, session, undo)
        ran: list[bool] = []
        undo.callback(query.register_forward_pre_hook(lambda *_: ran.append(True)).remove)

        def observe(*_: Any) -> None:
            if session.call > 0 and not self.knows_branches:
                raise DoesNotFit(f"{self} would mix this pipeline's two guidance branches: use our own algorithms")
            if not ran:
                session.branch.note_skipped(session.step)
            ran.clear()

        undo.callback(denoiser.register_forward_hook(observe).remove)
        session.held_elsewhere.append(lambda: sum(tensor.untyped_storage().nbytes() for tensor in held(denoiser)))


@dataclass(frozen=True)
class DiffusersCache(Peer):
    """One of the caches that diffusers attaches by `enable_cache`, under its own schedule.

    Attributes:
        config: the class in diffusers, such as FirstBlockCacheConfig.
        arguments: arguments of that class.
        filled: arguments that a run fills in, by name: "timestep" (a function that returns it) or "steps" (the number).
    """

    package = "diffusers"
    config: str
    arguments: dict[str, Any] = field(default_factory=dict)
    filled: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"diffusers' {self.config}"

    @property
    def knows_branches(self) -> bool:
        return self.config not in ("PyramidAttentionBroadcastConfig", "FasterCacheConfig")  # they count calls

    def __post_init__(self) -> None:
        given = dict(self.arguments) | dict.fromkeys(self.filled, 1)
        if "mag_ratios" in given:
            calibrated("magcache", given["mag_ratios"])
        try:
            getattr(diffusers, self.config)(**given)
        except (AttributeError, TypeError, ValueError) as error:
            raise BadValue(f"site.config={self.config}: {error}") from None

    def switch_on(self, denoiser: nn.Module, session: Session, undo: ExitStack) -> None:
        mixin: Any = denoiser  # diffusers' CacheMixin
        if not hasattr(mixin, "enable_cache"):
            raise DoesNotFit(f"diffusers caches nothing in {type(denoiser).__name__}: use our own algo of that name")
        values = {"timestep": session.timestep, "steps": session.num_steps}
        filled = {name: values[what] for name, what in self.filled.items()}
        arguments = {k: tuple(v) if isinstance(v, list) and len(v) == 2 else v for k, v in self.arguments.items()}
        mixin.enable_cache(getattr(diffusers, self.config)(**arguments, **filled))
        undo.callback(mixin.disable_cache)


@dataclass(frozen=True)
class CacheDiT(Peer):
    """DBCache of vipshop/cache-dit, with or without one of its calibrators; an extra (pip install cache-dit).

    Attributes:
        arguments: of its DBCacheConfig. The first Fn_compute_blocks and the last Bn_compute_blocks run at every step.
        calibrator: the class of what forecasts, e.g. TaylorSeerCalibratorConfig; None reuses.
        constants: its arguments.
    """

    package = "cache-dit"
    arguments: dict[str, Any] = field(default_factory=dict)
    calibrator: str | None = None
    constants: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._configs(None)

    @property
    def watched(self) -> int:
        return -1 - int(self.arguments.get("Bn_compute_blocks", 0))

    def _configs(self, steps: int | None) -> tuple[Any, Any]:
        try:
            logging.getLogger("CACHE_DIT").setLevel(logging.ERROR)
            library = importlib.import_module("cache_dit")
        except ImportError:
            raise DoesNotFit(f"algo=cachedit_* is an extra: pip install cache-dit=={CACHE_DIT}") from None
        try:
            cache = library.DBCacheConfig(num_inference_steps=steps, **self.arguments)
            return cache, getattr(library, self.calibrator)(**self.constants) if self.calibrator else None
        except (AttributeError, TypeError, ValueError, AssertionError) as error:
            raise BadValue(f"site: cache-dit says {error}") from None

    def switch_on(self, denoiser: nn.Module, session: Session, undo: ExitStack) -> None:
        import cache_dit

        at_every_step = sum(self.arguments.get(name, 0) for name in ("Fn_compute_blocks", "Bn_compute_blocks"))
        if at_every_step >= len(all_blocks(denoiser)):
            raise DoesNotFit(f"{type(denoiser).__name__} has no more than {at_every_step} blocks: lower site.arguments")
        cache, calibrator = self._configs(session.num_steps)
        try:
            cache_dit.enable_cache(denoiser, cache_config=cache, calibrator_config=calibrator)
        except ValueError:
            raise DoesNotFit(f"cache-dit caches nothing in {type(denoiser).__name__}: use algo=fbcache") from None
        undo.callback(cache_dit.disable_cache, denoiser)


def held(denoiser: nn.Module) -> list[Tensor]:
    """Every tensor that diffusers' hooks or cache-dit's contexts hold between steps, each storage once."""
    storages: dict[int, Tensor] = {}
    seen: set[int] = set()

    def walk(node: Any) -> None:
        if id(node) in seen or isinstance(node, nn.Module):
            return
        seen.add(id(node))
        if isinstance(node, Tensor):
            storages[node.untyped_storage().data_ptr()] = node
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
    return list(storages.values())


def _restore(before: dict[nn.Module, tuple[set[str], dict[str, nn.Module | None]]]) -> None:
    """Take out what the peers leave when switched off: empty registries, flags, forwards as attributes, and another
    order of submodules, which is the order in which blocks run."""
    for module, (names, modules) in before.items():
        for name in set(vars(module)) - names:
            delattr(module, name)
        module._modules.clear()
        module._modules.update(modules)
