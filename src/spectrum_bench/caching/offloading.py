"""A pipeline under diffusers' model offloading puts its models away at the end of its call."""

from contextlib import ExitStack
from typing import Any

from spectrum_bench.caching.replacing import replace_method


def free_afterwards(pipe: Any, undo: ExitStack) -> None:
    """Let a pipeline put its models away only when all stand-ins have been taken out. Call this first.

    Its `maybe_free_model_hooks` gives every denoiser a new hook round `forward`. During a session that would be under
    what the site has put there, and undoing the site would put the old hook back.
    """
    if not getattr(pipe, "_all_hooks", None):
        return
    asked: list[bool] = []

    def free() -> None:
        if asked:
            pipe.maybe_free_model_hooks()

    undo.callback(free)
    replace_method(pipe, "maybe_free_model_hooks", lambda: asked.append(True), undo)
