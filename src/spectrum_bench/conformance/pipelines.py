"""Pipelines that a cache is tested on, and the calls that are made of them."""

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spectrum_bench.conformance.watch import Call, watched
from spectrum_bench.sampling.models import load_pipeline
from spectrum_bench.sampling.settings import ModelSettings
from spectrum_bench.sampling.small import small_pipeline
from spectrum_bench.sampling.steps import at_step_end

A, B = "a large red ring on a gray background", "a small blue star on a navy background"
GUIDANCE = ("true_cfg_scale", "guidance_scale")  # the first that a call has switches its second branch on
GUIDER = "guider"  # a part of the pipeline that does, where no argument does
STEPS, SIZE = 8, 64


@dataclass(frozen=True)
class Ask:
    """One call of a pipeline.

    Attributes:
        prompts: "A", "B", or "AB" for a batch of both.
        size: height and width in pixels.
        guidance: of the second branch; None: the pipeline's own. 1.0 switches the branch off in most pipelines.
        same: the negative prompt is the prompt, so that both branches compute the same.
        drop: after this step guidance falls to `off`; None: never.
        stop: after this step the call ends with Interrupted; None: never.
    """

    prompts: str = "A"
    seed: int = 0
    steps: int = STEPS
    size: int = SIZE
    guidance: float | None = None
    same: bool = False
    drop: int | None = None
    off: float = 1.0
    stop: int | None = None


class Interrupted(Exception):
    """The call of a pipeline was interrupted on purpose."""


@dataclass(frozen=True)
class Ran:
    """What a call gave. `held`: bytes of tensors at the end of its last step; `waits`: calls that wait on a GPU."""

    latents: Tensor
    calls: list[Call]
    held: int
    waits: int


@dataclass
class Case:
    """A pipeline and the arguments of its call.

    Attributes:
        arguments: of prompt A.
        key: the argument that switches a second guidance branch on when it is above `off`, or the part of the pipeline
            that does; None: there is none.
    """

    name: str
    pipe: Any
    arguments: dict[str, Any]
    steps: int = STEPS
    size: int = SIZE
    key: str | None = None

    def __post_init__(self) -> None:
        if any(key.startswith("negative_") for key in self.arguments):
            known = (key for key in GUIDANCE if key in self.arguments)
            part = GUIDER if hasattr(getattr(self.pipe, GUIDER, None), "guidance_scale") else None
            self.key = next(known, part)

    def call(self, ask: Ask) -> Ran:
        """The latents of one call, and what it computed."""
        with watched(self.pipe, ask.steps) as seen:
            latents = self.latents(ask, seen.end_step)
        return Ran(latents, seen.calls, seen.held, seen.waits)

    @torch.no_grad()
    def latents(self, ask: Ask, end_step: Callable[[], None] = lambda: None) -> Tensor:
        """The latents of one call that nobody watches."""
        taken = inspect.signature(self.pipe.__call__).parameters
        size = {side: ask.size for side in ("height", "width") if side in taken}
        with ExitStack() as undo:
            if self.key == GUIDER and ask.guidance is not None:
                undo.callback(setattr, self.pipe.guider, "guidance_scale", self.pipe.guider.guidance_scale)
                self.pipe.guider.guidance_scale = ask.guidance
            result: Tensor = self.pipe(
                **self._arguments(ask),
                **size,
                **at_step_end(self.pipe, self._callback(ask, end_step), undo),
                num_inference_steps=ask.steps,
                generator=[torch.Generator().manual_seed(ask.seed + i) for i in range(len(ask.prompts))],
                output_type="latent",
                return_dict=False,
            )[0]
        return result

    def _arguments(self, ask: Ask) -> dict[str, Any]:
        batch = [self._prompted(letter) for letter in ask.prompts]
        given = {key: _joined([each[key] for each in batch]) for key in batch[0]}
        if ask.guidance is not None and self.key not in (None, GUIDER):
            given[self.key] = ask.guidance
        if ask.same:
            for key in [key for key in given if key.startswith("negative_")]:
                given[key] = given[key.removeprefix("negative_")]
        return given

    def _prompted(self, letter: str) -> dict[str, Any]:
        if letter == "A":
            return self.arguments
        return {key: _other(key, value) for key, value in self.arguments.items()}

    def _callback(self, ask: Ask, end_step: Callable[[], None]) -> Callable[..., dict[str, Any]]:
        def ended(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            end_step()
            if step == ask.stop:
                raise Interrupted
            if step == ask.drop:
                pipe._guidance_scale = ask.off
            return tensors

        return ended


def _other(key: str, value: Any) -> Any:
    """Prompt B's value in the place of A's. A negative prompt stays."""
    if key == "prompt":
        return B
    if key in ("prompt_embeds", "pooled_prompt_embeds"):
        return [-each for each in value] if isinstance(value, list) else -value
    return value


def _joined(values: list[Any]) -> Any:
    """The values of a batch. What is the same for all samples stays one value; tensors and lists have a batch."""
    if len(values) == 1:
        return values[0]
    if isinstance(values[0], Tensor):
        return torch.cat(values)
    if isinstance(values[0], list):
        return [each for value in values for each in value]
    return list(values) if isinstance(values[0], str) else values[0]


def open_case(name: str, call: dict[str, Any], steps: int, size: int, dtype: str, device: str) -> Case:
    """The pipeline that `pipeline=` names: random:<name>, a folder, or a repository that was fetched.

    Args:
        call: arguments of the pipeline's call beside those that the checks give.
    """
    kind, colon, small = name.partition(":")
    if colon and kind == "random":
        pipe, arguments = small_pipeline(small)
        return Case(name, pipe, arguments | call, steps, size)
    pipe = load_pipeline(ModelSettings(name=name, repo=name, dtype=dtype), device)
    taken = inspect.signature(type(pipe).__call__).parameters
    arguments = {"prompt": A}
    if "negative_prompt" in taken:
        key = next((key for key in GUIDANCE if key in taken), None)
        arguments |= {"negative_prompt": "blurry"} | ({key: 4.0} if key else {})
    return Case(name, pipe, arguments | call, steps, size)
