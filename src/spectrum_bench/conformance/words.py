"""The words that name a cache under test. They are data: names and literals, which nothing evaluates."""

import ast
import re
from dataclasses import dataclass, field
from typing import Any

from spectrum_bench.errors import UserError

LIBRARIES = {"diffusers": "diffusers", "cachedit": "cache_dit"}  # word -> package
HOW = (
    "write diffusers:FirstBlockCacheConfig(threshold=0.5), cachedit:DBCacheConfig(residual_diff_threshold=0.3), or "
    "module:enable,disable for two functions of your own, which take the pipeline"
)
LONGEST = 4000  # characters


@dataclass(frozen=True)
class Config:
    """A class of a library and the literals that it is called with."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Named:
    """A cache under test, by name.

    Attributes:
        library: diffusers, cachedit, or a module of the user's.
        configs: of a library: the cache's configuration, and for cache-dit at most one of a calibrator.
        functions: of a module: the one that switches the cache on, and the one that switches it off.
    """

    text: str
    library: str
    configs: tuple[Config, ...] = ()
    functions: tuple[str, ...] = ()


def read_cache(text: str) -> Named:
    """What `cache=` names.

    Raises:
        UserError: it is none of the three forms.
    """
    library, colon, rest = text.partition(":")
    if not colon or not rest or len(text) > LONGEST:
        raise UserError(f"cache={text[:80]} names no cache: {HOW}")
    if library in LIBRARIES:
        configs = tuple(_config(part, text) for part in _parts(rest))
        if len(configs) > (2 if library == "cachedit" else 1):
            raise UserError(f"cache={text[:80]} names too many configurations: {HOW}")
        return Named(text, library, configs=configs)
    functions = tuple(rest.split(","))
    if len(functions) != 2 or not all(map(str.isidentifier, (*library.split("."), *functions))):
        raise UserError(f"cache={text[:80]} is no module:enable,disable: {HOW}")
    return Named(text, library, functions=functions)


def _parts(text: str) -> list[str]:
    """A(...)+B(...) as its two calls."""
    return re.split(r"(?<=\))\+(?=[A-Z])", text)


def _config(text: str, whole: str) -> Config:
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            node = ast.Call(node, [], [])
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)) or node.args:
            raise ValueError("it is no Name(key=value)")
        arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        reason = "only literals are taken" if "malformed" in str(error) else str(error).split(" (<")[0]
        raise UserError(f"cache={whole[:80]} cannot be read ({reason}): {HOW}") from None
    if None in arguments or not node.func.id.endswith("Config"):
        raise UserError(f"cache={whole[:80]} names no configuration: {HOW}")
    return Config(node.func.id, {str(key): value for key, value in arguments.items()})
