"""Range checks with one wording, for settings and for the constants of schedules, gates, forecasters and sites."""

import inspect
import math
from typing import Any, TypeGuard

from spectrum_bench.errors import BadValue

MOST = 10**6  # the largest whole number: beyond any use, but within a machine's memory
LARGEST = 1e100  # the largest number


def is_number(value: object) -> TypeGuard[float]:
    """Whether the value is a number of at most LARGEST. True and False are no numbers."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def is_whole(value: object) -> TypeGuard[int]:
    """Whether the value is a whole number. True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def boolean(name: str, value: object) -> bool:
    """The value as true or false.

    Raises:
        BadValue: it is neither.
    """
    if not isinstance(value, bool):
        raise BadValue(f"{name}={brief(value)} is neither true nor false")
    return value


def whole(name: str, value: object, least: int = 1, most: int = MOST) -> int:
    """The value as a whole number from `least` to `most`.

    Raises:
        BadValue: it is no such number.
    """
    if not (is_whole(value) and value >= least):
        raise BadValue(f"{name} must be a whole number of at least {least}, not {brief(value)}")
    if value > most:
        raise BadValue(f"{name} must be a whole number from {least} to {most}, not {brief(value)}")
    return value


def brief(value: object) -> str:
    """A refused value, short enough for an error of one line."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> float:
    """The value as a finite number in [least, most].

    Raises:
        BadValue: it is no such number.
    """
    if not (is_number(value) and least <= value <= most):
        if math.isfinite(most):
            bounds = f" from {least:g} to {most:g}"
        else:
            bounds = f" of at least {least:g}" if math.isfinite(least) else ""
        raise BadValue(f"{name} must be a number{bounds}, not {brief(value)}")
    return value


def one_of(name: str, value: object, choices: tuple[str, ...]) -> str:
    """The value as one of the words in `choices`.

    Raises:
        BadValue: it is none of them.
    """
    if value not in choices:
        raise BadValue(f"{name}={brief(value)} is none of {', '.join(choices)}")
    return str(value)


def arguments(name: str, signature: inspect.Signature, *places: Any, **constants: Any) -> inspect.BoundArguments:
    """The arguments of a call, with defaults.

    Raises:
        BadValue: a constant is unknown or missing.
    """
    takes = [p.name for p in signature.parameters.values() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    unknown = [] if open_ended else [key for key in constants if key not in takes]
    if unknown:
        raise BadValue(f"{name}() got an unexpected keyword argument '{unknown[0]}': it takes {', '.join(takes)}")
    try:
        bound = signature.bind(*places, **constants)
    except TypeError as error:
        raise BadValue(f"{name}() {error}") from None
    bound.apply_defaults()
    return bound
