"""One object's method, replaced until it is undone."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any


def replace_method(owner: Any, name: str, function: Callable[..., Any], undo: ExitStack) -> None:
    """Give one object another function under this name. `undo` restores what the object had of its own, or nothing."""
    if name in vars(owner):
        undo.callback(setattr, owner, name, getattr(owner, name))
    else:
        undo.callback(delattr, owner, name)
    setattr(owner, name, function)
