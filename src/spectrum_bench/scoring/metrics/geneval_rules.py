"""GenEval's prompts and rules (Ghosh, Hajishirzi and Schmidt 2023, arXiv:2310.11513), written anew from
djghosh13/geneval@af4902f. A prompt tells all by its words, so that no other file is needed."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# COCO's 80 classes in its order, three of them in GenEval's words.
THINGS = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
NUMBERS = {"two": 2, "three": 3, "four": 4}
RELATIONS = ("left of", "right of", "above", "below")
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

SURE, SURE_TO_COUNT = 0.3, 0.9  # a detection counts from this score on
MOST = 16  # things of a class
NEAR = 0.1  # of both things' sizes: centres that are nearer along an axis have no relation along it


@dataclass(frozen=True)
class Found:
    """A thing in a picture: its score, its box (left, top, right, bottom) in pixels, and its mask (H, W)."""

    score: float
    box: tuple[float, float, float, float]
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Asked:
    """A thing that a prompt names; `at`: its place relative to the thing before it."""

    thing: str
    count: int = 1
    colour: str | None = None
    at: str | None = None


Colours = Callable[[Sequence[Found], str], list[str]]  # of things of one class, by their picture


# ---------------------------------------------------------------------------------------------------------------------
# Prompts

_THING, _COLOUR = ("|".join(sorted(words, key=len, reverse=True)) for words in (THINGS, COLOURS))
_ONE = rf"an? (?:(?P<c{{0}}>{_COLOUR}) )?(?P<t{{0}}>{_THING})"
_COUNTED = re.compile(rf"a photo of (?P<n>{'|'.join(NUMBERS)}) (?P<t>{_THING})e?s")
_PAIR = re.compile(
    rf"a photo of {_ONE.format(1)}(?: (?P<how>and|{'|'.join(RELATIONS)}) {_ONE.format(2)})?",
)


def parse(prompt: str) -> tuple[str, tuple[Asked, ...]] | None:
    """The task that a prompt belongs to and the things that it asks for, the one that others relate to first; None if
    GenEval has no such prompt."""
    if match := _COUNTED.fullmatch(prompt):
        return "counting", (Asked(match["t"], NUMBERS[match["n"]]),)
    if not (match := _PAIR.fullmatch(prompt)):
        return None
    first, second = (Asked(match[f"t{i}"], colour=match[f"c{i}"]) if match[f"t{i}"] else None for i in (1, 2))
    assert first
    coloured = sum(bool(each and each.colour) for each in (first, second))
    if second is None:
        return ("colors" if coloured else "single_object"), (first,)
    if match["how"] != "and":
        return None if coloured else ("position", (second, Asked(first.thing, at=match["how"])))
    task = {0: "two_object", 2: "color_attr"}.get(coloured)
    return (task, (first, second)) if task else None


# ---------------------------------------------------------------------------------------------------------------------
# Rules


def shows(task: str, asked: Sequence[Asked], found: Mapping[str, Sequence[Found]], colours: Colours) -> bool:
    """Whether a picture shows what is asked.

    Args:
        found: class -> the things of it.
    """
    bound, before = SURE_TO_COUNT if task == "counting" else SURE, None
    for each in asked:
        things = sorted(found.get(each.thing, ()), key=lambda thing: -thing.score)
        things = [thing for thing in things if thing.score > bound][:MOST]
        if len(things) < each.count or task == "counting" and len(things) > each.count:
            return False
        things = things[: each.count]
        if each.colour and colours(things, each.thing).count(each.colour) < each.count:
            return False
        if each.at and before and not all(each.at in relations(a, b) for a in things for b in before):
            return False
        before = things
    return True


def relations(a: Found, b: Found) -> set[str]:
    """Where a is, seen from b: a relation along an axis holds if the distance of both centres along it, less NEAR times
    both sizes, is more than half of the whole distance. So there may be two of them."""
    left, top, right, bottom = (np.array([thing.box[i] for thing in (a, b)]) for i in range(4))
    centres = np.stack([left + right, top + bottom]) / 2  # (axis, thing)
    sizes = np.abs(np.stack([right - left, bottom - top])).sum(1)
    offset = centres[:, 0] - centres[:, 1]
    beyond = np.maximum(np.abs(offset) - NEAR * sizes, 0) * np.sign(offset)
    if (np.abs(beyond) < 1e-3).all():
        return set()
    dx, dy = beyond / np.linalg.norm(offset)
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, true in holds.items() if true}
