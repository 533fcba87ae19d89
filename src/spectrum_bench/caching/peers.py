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
    def calls(self) -> int | None:
        """How many calls of the denoiser the peer takes for one step until it is told otherwise; None if it counts no
        calls, because each guidance branch has a state of its own."""
        return None

    def tell(self, denoiser: nn.Module, calls: int) -> None:
        """Tell the peer how many calls a step really has.

        Raises:
            DoesNotFit: it cannot be told.
        """
        raise DoesNotFit(f"{self} would mix this pipeline's two guidance branches: use our own algorithms")

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
        undo.callback(restore, {module: (dict(vars(module)), dict(module._modules)) for module in denoiser.modules()})
        self.switch_on(denoiser, session, undo)
        if self.calls is not None:
            undo.callback(denoiser.register_forward_pre_hook(_Counted(self, self.calls, denoiser, session)).remove)
        ran: list[bool] = []
        undo.callback(query.register_forward_pre_hook(lambda *_: ran.append(True)).remove)

        def observe(*_: Any) -> None:
            if not ran:
                session.branch.note_skipped(session.step)
            ran.clear()

        undo.callback(denoiser.register_forward_hook(observe).remove)
        session.held_elsewhere.append(lambda: sum(tensor.untyped_storage().nbytes() for tensor in held(denoiser)))


class _Counted:
    """A hook before each call of a denoiser, for a peer that counts calls: it is told at the first step how many a step
    has, and a later step with another number is refused. A peer that goes on would take one guidance branch's features
    for the other's."""

    def __init__(self, peer: Peer, expected: int, denoiser: nn.Module, session: Session):
        self.peer, self.expected, self.denoiser, self.session = peer, expected, denoiser, session
        self.first: int | None = None  # step of this denoiser
        self.step: int | None = None
        self.count = 0  # calls in that step

    def __call__(self, *_: Any) -> None:
        if self.step != self.session.step:
            if self.step is not None and self.count < self.expected:
                self._expect(self.count)
            self.first = self.session.step if self.first is None else self.first
            self.step, self.count = self.session.step, 0
        self.count += 1
        if self.count > self.expected:
            self._expect(self.count)

    def _expect(self, calls: int) -> None:
        if self.step != self.first:
            raise DoesNotFit(
                f"{self.peer.package}'s cache counts calls of the denoiser, and their number changed from "
                f"{self.expected} to {calls} a step at step {self.step}: use our own algorithms"
            )
        self.peer.tell(self.denoiser, calls)
        self.expected = calls


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
    def calls(self) -> int | None:
        return 1 if self.config in ("PyramidAttentionBroadcastConfig", "FasterCacheConfig") else None

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
        undo.callback(denoiser.register_forward_hook(_refuse_open).remove)


def _refuse_open(denoiser: nn.Module, *_: Any) -> None:
    """Hook after each call of a denoiser under diffusers' SeaCache, which computes every step if it lacks something:
    refuse such a run in its own words.

    Raises:
        DoesNotFit: SeaCache has warned that it runs in full.
    """
    registry: Any = vars(denoiser).get("_diffusers_hook")
    sea = registry.get_hook("sea_cache_root") if registry is not None else None
    for warning in sea.shared_state._warned_messages if sea is not None else ():
        raise DoesNotFit(f"diffusers' SeaCache would skip no step of this pipeline, so use algo=seacache: {warning}")


@dataclass(frozen=True)
class CacheDiT(Peer):
    """DBCache of vipshop/cache-dit, with or without one of its calibrators; an extra (pip install cache-dit).

    Attributes:
        arguments: of its DBCacheConfig. The first Fn_compute_blocks and the last Bn_compute_blocks run at every step.
        calibrator: the class of what forecasts, e.g. TaylorSeerCalibratorConfig; None reuses.
        constants: its arguments.
        config: the class that takes `arguments`.
        policy: "slow", "medium", "fast" or "ultra": one of its masks instead of its gate, or before it; None: no mask.
    """

    package = "cache-dit"
    arguments: dict[str, Any] = field(default_factory=dict)
    calibrator: str | None = None
    constants: dict[str, Any] = field(default_factory=dict)
    config: str = "DBCacheConfig"
    policy: str | None = None

    def __post_init__(self) -> None:
        self._configs(None)

    @property
    def calls(self) -> int | None:
        """Two, because the step of a pipeline with one is over before the difference matters, and it can then be told
        so; the other way round the second call would have read the first one's features."""
        return 2 if self.arguments.get("enable_separate_cfg", True) else 1

    def tell(self, denoiser: nn.Module, calls: int) -> None:
        if calls != 1:
            raise DoesNotFit(
                f"cache-dit counts {self.calls} calls a step, and this pipeline has {calls}: use our own algo"
            )
        network: Any = denoiser
        for name in network._context_names:
            network._context_manager.get_context(name).cache_config.enable_separate_cfg = False

    @property
    def watched(self) -> int:
        return -1 - int(self.arguments.get("Bn_compute_blocks", 0))

    def _configs(self, steps: int | None) -> tuple[Any, Any]:
        try:
            logging.getLogger("CACHE_DIT").setLevel(logging.ERROR)
            library = importlib.import_module("cache_dit")
        except ImportError:
            raise DoesNotFit(f"algo=cachedit_* is an extra: pip install cache-dit=={CACHE_DIT}") from None
        arguments = {"enable_separate_cfg": self.calls == 2} | self.arguments
        try:
            if self.policy is not None:
                mask = library.steps_mask(total_steps=steps or 28, mask_policy=self.policy)
                arguments["steps_computation_mask"] = mask
            cache = getattr(library, self.config)(num_inference_steps=steps, **arguments)
            return cache, getattr(library, self.calibrator)(**self.constants) if self.calibrator else None
        except (AttributeError, KeyError, TypeError, ValueError, AssertionError) as error:
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


def restore(before: dict[nn.Module, tuple[dict[str, Any], dict[str, nn.Module | None]]]) -> None:
    """Remove what peers leave behind when they are switched off: empty registries, flags, and forwards as attributes
    (an offload hook's own stays). Also restore the order of submodules, which is the order in which blocks run."""
    for module, (attributes, modules) in before.items():
        for name in set(vars(module)) - set(attributes):
            delattr(module, name)
        vars(module).update(attributes)
        module._modules.clear()
        module._modules.update(modules)
