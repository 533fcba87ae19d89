"""Edits of the drawn world: a picture, what shall become of it, and the picture that it then is.

The instruction has no word but those of captions, since the text encoders of the miniatures know no other:

    a small blue ring on a small red ring     the red ring becomes blue; likewise another shape or size
    a small red ring above a large blue star  the ring moves above the star
    on a teal background                      the ground becomes teal
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spectrum_bench.miniature import world
from spectrum_bench.miniature.world import Scene, Thing

Places = NDArray[np.float64]  # (2, 6), as `world.place` gives them


@dataclass(frozen=True)
class Edit:
    """Two scenes that differ in one fact, and the words that turn the first one into the second."""

    before: Scene
    after: Scene
    instruction: str
    places: tuple[Places, Places]  # before and after


def draw_edits(rng: np.random.Generator, count: int, held: bool) -> list[Edit]:
    """`count` random edits, of the kinds of `KINDS` by turns. The captions of their results are all held out, or none
    is, and then those of the pictures to be edited are not either."""
    edits: list[Edit] = []
    kinds = list(KINDS.values())
    while len(edits) < count:
        scene = world.draw_scene(rng)
        edit = kinds[len(edits) % len(kinds)](scene, world.place(scene, rng), rng)  # few scenes admit a move
        if edit and world.held_out(str(edit.after)) == held and (held or not world.held_out(str(edit.before))):
            edits.append(edit)
    return edits


def render(edits: list[Edit], seed: int) -> tuple[Tensor, Tensor]:
    """The pictures before and after, (B, 3, 64, 64) in [0, 1] each, with the same light, texture and pebbles."""
    before, after = (
        world.render_clips(scenes, np.random.default_rng(seed), 1, np.stack(places))[0][:, 0]
        for scenes, places in (
            ([e.before for e in edits], [e.places[0] for e in edits]),
            ([e.after for e in edits], [e.places[1] for e in edits]),
        )
    )
    return before, after


def _change(fact: str) -> Callable[..., Edit | None]:
    """Another colour, shape or size of one thing."""
    options = {"colour": list(world.COLOURS), "shape": list(world.SHAPES), "size": list(world.SIZES)}[fact]

    def change(scene: Scene, places: Places, rng: np.random.Generator) -> Edit | None:
        which = int(rng.integers(len(scene.things)))
        old = scene.things[which]
        new = replace(old, **{fact: _other(options, getattr(old, fact), rng)})
        things = tuple(new if i == which else thing for i, thing in enumerate(scene.things))
        moved = places.copy()
        moved[which, 2] = _resized(places[which, 2], old, new)
        edit = Edit(scene, replace(scene, things=things), f"{new} on {old}", (places, moved))
        return edit if len({(t.colour, t.shape) for t in things}) == len(things) and _fits(edit) else None

    return change


def _background(scene: Scene, places: Places, rng: np.random.Generator) -> Edit:
    """Another ground."""
    ground = _other(list(world.BACKGROUNDS), scene.background, rng)
    return Edit(scene, replace(scene, background=ground), f"on a {ground} background", (places, places))


def _move(scene: Scene, places: Places, rng: np.random.Generator) -> Edit | None:
    """One thing on another side of the other one, at the same distance."""
    if scene.relation is None:
        return None
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    which = int(rng.integers(2))
    old = opposite[scene.relation] if which else scene.relation
    new = _other(list(world.RELATIONS), old, rng)
    offset = places[which, :2] - places[1 - which, :2]
    from_, to = np.array(world.RELATIONS[old]), np.array(world.RELATIONS[new])
    moved = places.copy()
    moved[which, :2] = places[1 - which, :2] + (offset @ from_) * to + (offset @ from_[::-1]) * to[::-1]
    thing, other = scene.things[which], scene.things[1 - which]
    after = replace(scene, relation=opposite[new] if which else new)
    edit = Edit(scene, after, f"{thing} {new} {other}", (places, moved))
    return edit if _fits(edit) else None


KINDS: dict[str, Callable[..., Edit | None]] = {
    **{fact: _change(fact) for fact in ("colour", "shape", "size")},
    "background": _background,
    "place": _move,
}


def _other(options: list[str], old: str, rng: np.random.Generator) -> str:
    names = [name for name in options if name != old]
    return names[rng.integers(len(names))]


def _resized(radius: float, old: Thing, new: Thing) -> float:
    """The radius at the same part of the other size's range."""
    (low, high), (to_low, to_high) = world.SIZES[old.size], world.SIZES[new.size]
    return to_low + (radius - low) / (high - low) * (to_high - to_low)


def _fits(edit: Edit) -> bool:
    """Whether all things are inside the picture and apart, as `world.place` has them."""
    x, y, radius = edit.places[1][: len(edit.after.things), :3].T
    inside = all(((v >= radius + 2) & (v <= world.SIDE - radius - 2)).all() for v in (x, y))
    apart = len(x) == 1 or max(abs(x[0] - x[1]), abs(y[0] - y[1])) >= radius.sum() + 2
    return bool(inside and apart)
