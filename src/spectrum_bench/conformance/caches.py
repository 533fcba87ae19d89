"""Caches under test: how each is switched on and off, as its own documentation says."""

import importlib
import os
import sys
from dataclasses import dataclass, fields
from typing import Any

import torch

from spectrum_bench.caching.session import denoisers
from spectrum_bench.conformance.words import LIBRARIES, Config, Named
from spectrum_bench.errors import DoesNotFit, UserError

NO_TIME = (-2, -1)  # a range that holds no timestep
ALL = 10**6  # steps
# With these constants a cache computes everything at every step.
NEVER: dict[str, dict[str, Any]] = {
    "FirstBlockCacheConfig": {"threshold": -1.0},
    "MagCacheConfig": {"max_skip_steps": 0},
    "TaylorSeerCacheConfig": {"disable_cache_before_step": ALL},
    "SeaCacheConfig": {"retention_steps": ALL},
    "TextKVCacheConfig": {},  # it promises the plain pipeline's output
    "PyramidAttentionBroadcastConfig": {
        f"{kind}_attention_timestep_skip_range": NO_TIME for kind in ("spatial", "temporal", "cross")
    },
    "FasterCacheConfig": {
        f"{kind}_timestep_skip_range": NO_TIME
        for kind in ("spatial_attention", "temporal_attention", "unconditional_batch")
    },
    "DBCacheConfig": {"max_warmup_steps": ALL, "steps_computation_mask": None},
    "DBPruneConfig": {"max_warmup_steps": ALL, "steps_computation_mask": None},
}


@dataclass(frozen=True)
class Cache:
    """A cache under test.

    Attributes:
        named: what it is.
        never: how it is told never to skip, for functions of a user's; None: nobody knows.
    """

    named: Named
    never: Named | None = None

    def __post_init__(self) -> None:
        for named in filter(None, (self.named, self.never)):
            library = _library(named)
            for name in (*named.functions, *(config.name for config in named.configs)):
                if not callable(getattr(library, name, None)):
                    raise UserError(f"cache={named.text[:80]}: {named.library} has no {name}")

    @property
    def can_never(self) -> bool:
        """Whether it can be told never to skip."""
        return self.never is not None or bool(self.named.configs) and self.named.configs[0].name in NEVER

    def on(self, pipe: Any, steps: int, never: bool = False) -> None:
        """Switch it on for calls of `steps` steps, of which a cache is told that asks for their number.

        Raises:
            DoesNotFit: diffusers has no caches for this denoiser.
        """
        named = self.never if never and self.never is not None else self.named
        library = _library(named)
        if named.functions:
            getattr(library, named.functions[0])(pipe)
            return
        never_words = NEVER[named.configs[0].name] if never else {}
        first = Config(named.configs[0].name, named.configs[0].arguments | never_words)
        if named.library == "cachedit":
            calibrator = [_made(library, each, pipe, steps) for each in named.configs[1:]]
            library.enable_cache(
                pipe, cache_config=_made(library, first), calibrator_config=calibrator[0] if calibrator else None
            )
            return
        for denoiser in denoisers(pipe).values():
            network: Any = denoiser
            if not hasattr(network, "enable_cache"):
                raise DoesNotFit(f"diffusers has no enable_cache for {type(network).__name__}")
            network.enable_cache(_made(library, first, pipe, steps))

    def off(self, pipe: Any) -> None:
        """Switch it off as its documentation says."""
        library = _library(self.named)
        if self.named.functions:
            getattr(library, self.named.functions[1])(pipe)
        elif self.named.library == "cachedit":
            library.disable_cache(pipe)
        else:
            for denoiser in denoisers(pipe).values():
                network: Any = denoiser
                network.disable_cache()


def _library(named: Named) -> Any:
    """The imported package or module. The latter is the user's code, which runs."""
    if named.functions and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")  # else it writes ten lines each time
    try:
        return importlib.import_module(LIBRARIES.get(named.library, named.library))
    except ImportError as error:
        raise UserError(f"cache={named.text[:80]}: {error}") from None


def _made(library: Any, config: Config, pipe: Any = None, steps: int | None = None) -> Any:
    """An instance of a configuration. A function that tells the timestep and a number of steps are filled in.

    Raises:
        UserError: it does not take these arguments.
    """
    kind = getattr(library, config.name)
    known = {each.name for each in fields(kind)}
    given = {key: getattr(torch, value) if _is_dtype(key, value) else value for key, value in config.arguments.items()}
    filled: dict[str, Any] = {}
    if pipe is not None and "current_timestep_callback" in known:
        filled["current_timestep_callback"] = lambda: pipe.current_timestep
    if pipe is not None and "num_inference_steps" in known and library.__name__ == "diffusers":
        filled["num_inference_steps"] = steps
    try:
        return kind(**(filled | given))
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"{config.name}: {' '.join(str(error).split())[:300]}") from None


def _is_dtype(key: str, value: Any) -> bool:
    return key.endswith("dtype") and isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype)
