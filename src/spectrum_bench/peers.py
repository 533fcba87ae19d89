"""diffusers' own caching as a row of our tables: its code, our clock and records."""

from dataclasses import dataclass, field

import diffusers
from torch import Tensor, nn

from .forecasters import reuse
from .gates import observed
from .sites import all_blocks


@dataclass(frozen=True)
class DiffusersCache:
    """One of the caches that diffusers attaches by `enable_cache`, under its own schedule.

    Which steps are computed is not asked of it but observed: a step counts if the last block's first projection ran.
    Caches of attention alone run the MLPs at every step; the time of a skipped step tells.

    Attributes:
        config: the class in diffusers, e.g. FirstBlockCacheConfig.
        arguments: its arguments.
        filled: those that only a run knows: "timestep" (a function that gives the current one), "steps" (their number).
    """

    config: str
    arguments: dict = field(default_factory=dict)
    filled: dict = field(default_factory=dict)
    runs_blocks = False

    def __post_init__(self):
        given = dict(self.arguments) | dict.fromkeys(self.filled, 1)
        if "mag_ratios" in given and not given["mag_ratios"]:
            raise ValueError(
                "this model has no constants for magcache yet: measure them with "
                "python src/calibrate.py algo=magcache model=<model>"
            )
        try:
            getattr(diffusers, self.config)(**given)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"site.config={self.config}: {error}") from None

    def check(self, schedule, forecaster):
        """Refuse a schedule or forecaster of ours, which diffusers would not ask."""
        if getattr(schedule, "func", schedule) is not observed or getattr(forecaster, "func", forecaster) is not reuse:
            raise ValueError(f"{self.config} decides and forecasts by itself: give algo=diffusers_* alone")

    def attach(self, denoiser, anatomy, session, undo):
        if not hasattr(denoiser, "enable_cache"):
            raise ValueError(f"diffusers caches nothing in {type(denoiser).__name__}: use our own algo of that name")
        values = {"timestep": session.timestep, "steps": session.num_steps}
        filled = {name: values[what] for name, what in self.filled.items()}
        arguments = {k: tuple(v) if isinstance(v, list) and len(v) == 2 else v for k, v in self.arguments.items()}
        last = next(m for n, m in all_blocks(denoiser)[-1].named_modules() if n.endswith("to_q"))
        before = {module: set(vars(module)) for module in denoiser.modules()}
        denoiser.enable_cache(getattr(diffusers, self.config)(**arguments, **filled))
        undo.callback(_forget, denoiser, before)
        undo.callback(denoiser.disable_cache)
        ran = []
        undo.callback(last.register_forward_pre_hook(lambda *_: ran.append(True)).remove)

        def observe(*_):
            session.branch.observe(session.step, bool(ran))
            session.branch.memory["held"] = held(denoiser)
            ran.clear()

        undo.callback(denoiser.register_forward_hook(observe).remove)


def held(denoiser: nn.Module) -> list[Tensor]:
    """Every tensor that diffusers' hooks keep between steps, each storage once."""
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
        elif type(node).__module__.startswith("diffusers.hooks"):
            walk(vars(node))

    for module in denoiser.modules():
        registry = vars(module).get("_diffusers_hook")
        if registry is not None:
            walk(registry.hooks)
    return list(found.values())


def _forget(denoiser: nn.Module, before: dict[nn.Module, set[str]]) -> None:
    """Take out what `disable_cache` leaves: empty registries, a None, and modules' forwards as attributes of them."""
    for module, names in before.items():
        for name in {"_diffusers_hook", "_cache_config", "forward"} - names:
            vars(module).pop(name, None)
