"""A small world with captions: one or two shapes on a textured ground, drawn at 64x64. In clips the first shape moves.

A caption names size, colour, shape, relation, motion and background. Everything else (place, rotation, light, texture,
pebbles, shadow) is random, so that the caption does not decide every pixel.
"""

import math
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SIDE = 64  # pixels
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = {"small": (7.0, 8.5), "large": (12.5, 14.5)}  # range of the radius, pixels
COLOURS = {
    "red": (0.86, 0.12, 0.14),
    "orange": (0.98, 0.55, 0.08),
    "yellow": (0.97, 0.90, 0.20),
    "green": (0.16, 0.66, 0.24),
    "blue": (0.14, 0.30, 0.90),
    "purple": (0.60, 0.22, 0.74),
    "white": (0.96, 0.96, 0.97),
}
BACKGROUNDS = {
    "gray": (0.50, 0.51, 0.53),
    "cream": (0.86, 0.80, 0.66),
    "navy": (0.12, 0.15, 0.30),
    "teal": (0.20, 0.47, 0.48),
    "brown": (0.42, 0.28, 0.18),
}
# where the first thing lies, seen from the second
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # of the first thing, in clips
TRAVEL = (14.0, 20.0)  # how far it moves from the first frame to the last, pixels

_THING = rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_CAPTION = re.compile(
    rf"{_THING}(?: moving ({'|'.join(MOTIONS)}))?(?: ({'|'.join(RELATIONS)}) {_THING})?"
    rf" on a ({'|'.join(BACKGROUNDS)}) background"
)


@dataclass(frozen=True)
class Thing:
    """A shape with its size and colour: keys of SIZES, COLOURS and SHAPES."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """The content of a caption: one thing, or two things and their relation, and the motion of the first."""

    things: tuple[Thing, ...]
    relation: str | None
    background: str
    motion: str | None = None

    def __str__(self) -> str:
        first, *second = map(str, self.things)
        moving = f" moving {self.motion}" if self.motion else ""
        beside = f" {self.relation} {second[0]}" if second else ""
        return f"{first}{moving}{beside} on a {self.background} background"


def parse(caption: str) -> Scene | None:
    """The scene that a caption of this world describes; None for any other text."""
    match = _CAPTION.fullmatch(caption.strip())
    if match is None:
        return None
    *first, motion, relation, size, colour, shape, background = match.groups()
    second = (Thing(size, colour, shape),) if relation else ()
    return Scene((Thing(*first), *second), relation, background, motion)


_FIELDS: tuple[Iterable[str], ...] = (SIZES, COLOURS, SHAPES) * 2 + (RELATIONS, BACKGROUNDS, MOTIONS)
NOTHING = 255  # for a fact that a scene lacks


def to_numbers(scene: Scene) -> list[int]:
    """The scene as nine small numbers; 255 for a fact that it lacks. `from_numbers` is the inverse."""
    facts: list[str | None] = [fact for thing in scene.things for fact in (thing.size, thing.colour, thing.shape)]
    facts += [None] * (6 - len(facts))
    facts += [scene.relation, scene.background, scene.motion]
    numbered = zip(facts, _FIELDS, strict=True)
    return [NOTHING if fact is None else list(names).index(fact) for fact, names in numbered]


def from_numbers(numbers: Sequence[int]) -> Scene:
    """The scene of nine numbers."""
    facts = ["" if i == NOTHING else list(names)[i] for i, names in zip(numbers, _FIELDS, strict=True)]
    relation, background, motion = facts[6:]
    things = (Thing(*facts[:3]), Thing(*facts[3:6])) if relation else (Thing(*facts[:3]),)
    return Scene(things, relation or None, background, motion or None)


def held_out(caption: str) -> bool:
    """Whether the caption belongs to the sixteenth of all captions that no model here is trained on."""
    return zlib.crc32(caption.encode()) % 16 == 0


def draw_scene(rng: np.random.Generator, moving: bool = False) -> Scene:
    """A random scene. Two of three scenes have two things, which are never alike. In a scene with two, the first moves
    at right angles to the line between them, so that they never meet."""
    things = [_draw_thing(rng)]
    if rng.random() < 2 / 3:
        while len(things) < 2:
            other = _draw_thing(rng)
            if (other.colour, other.shape) != (things[0].colour, things[0].shape):
                things.append(other)
    relation = _one_of(RELATIONS, rng) if len(things) == 2 else None
    background = _one_of(BACKGROUNDS, rng)
    across = [m for m in MOTIONS if relation is None or np.dot(MOTIONS[m], RELATIONS[relation]) == 0]
    return Scene(tuple(things), relation, background, _one_of(across, rng) if moving else None)


def _draw_thing(rng: np.random.Generator) -> Thing:
    return Thing(_one_of(SIZES, rng), _one_of(COLOURS, rng), _one_of(SHAPES, rng))


def _one_of(options: Iterable[str], rng: np.random.Generator) -> str:
    names = list(options)
    return names[rng.integers(len(names))]


def draw_scenes(rng: np.random.Generator, count: int, held: bool, moving: bool = False) -> list[Scene]:
    """`count` random scenes; all of them are held out, or none."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = draw_scene(rng, moving)
        if held_out(str(scene)) == held:
            scenes.append(scene)
    return scenes


def place(scene: Scene, rng: np.random.Generator) -> NDArray[np.float64]:
    """(2, 6): x, y, radius, angle, and travel in x and y of each thing, in pixels and radians. A missing second thing
    has radius 0. x and y are the place in the middle of the clip."""
    out = np.zeros((2, 6))
    radii = [rng.uniform(*SIZES[thing.size]) for thing in scene.things]
    low, high = [r + 2 for r in radii], [SIDE - r - 2 for r in radii]
    if scene.motion:
        out[0, 4:] = rng.uniform(*TRAVEL) * np.array(MOTIONS[scene.motion])
    margin = np.abs(out[0, 4:]) / 2
    if scene.relation is None:
        xy = [rng.uniform(low[0] + margin, high[0] - margin)]
    else:
        axis = 0 if RELATIONS[scene.relation][0] else 1
        sign = sum(RELATIONS[scene.relation])
        gap = radii[0] + radii[1] + 2
        order = (1, 0) if sign > 0 else (0, 1)  # which thing comes first along the axis
        near = rng.uniform(low[order[0]], high[order[1]] - gap)
        far = rng.uniform(near + gap, high[order[1]])
        xy = [np.zeros(2), np.zeros(2)]
        xy[order[0]][axis], xy[order[1]][axis] = near, far
        spare = [margin[1 - axis], 0.0]
        across = rng.uniform(max(low) + max(spare), min(high) - max(spare))
        for k in range(2):  # nearly level across the axis, so that the relation is plain to see
            xy[k][1 - axis] = np.clip(across + rng.uniform(-5, 5), low[k] + spare[k], high[k] - spare[k])
    for k, radius in enumerate(radii):
        out[k, :4] = *xy[k], radius, rng.uniform(-0.35, 0.35)
    return out


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Signed distance to each unit shape: (..., H, W) -> (6, ..., H, W), negative inside, in the order of SHAPES."""
    radius, angle = torch.hypot(x, y), torch.atan2(x, -y)  # angle 0 points up
    bar = 0.34
    cross = torch.minimum(torch.maximum(x.abs() - bar, y.abs() - 0.95), torch.maximum(x.abs() - 0.95, y.abs() - bar))
    return torch.stack(
        [
            radius - 0.92,
            torch.maximum(x.abs(), y.abs()) - 0.80,
            _star(radius, angle, 3, 0.5),
            _star(radius, angle, 5, 0.42),
            cross,
            (radius - 0.68).abs() - 0.26,
        ]
    )


def _star(radius: Tensor, angle: Tensor, corners: int, inner: float) -> Tensor:
    """Signed distance to the edges of a regular star, each a line from an outer corner to an inner one."""
    sector = math.pi / corners
    a = (angle + sector) % (2 * sector) - sector
    px, py = radius * a.abs().sin(), radius * a.cos()
    dx, dy = inner * math.sin(sector), inner * math.cos(sector) - 1
    return (dx * (py - 1) - dy * px) / math.hypot(dx, dy)


# ---------------------------------------------------------------------------------------------------------------------
# Drawing. The order of the random numbers is part of the data: a change of it changes every picture.

Chance = Callable[..., Tensor]  # (*shape, low, high) -> (B, *shape) float32


@dataclass(frozen=True)
class Light:
    """The direction of the light: x and y of a unit vector, (B, 1, 1, 1) each."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Look:
    """The appearance of one thing in each picture, from the caption and by chance."""

    places: Tensor  # (B, 6), as `place` gives them
    present: Tensor  # (B, 1, 1) bool
    shape: Tensor  # (B,), number in SHAPES
    colour: Tensor  # (B, 3, 1, 1)
    phase: Tensor  # (B, 1, 1), of the stripes
    striped: Tensor  # (B, 1, 1) bool
    upright: bool  # whether the stripes run along the thing's own y


def render(scenes: list[Scene], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a batch of pictures.

    Returns:
        images (B, 3, 64, 64) in [0, 1]; places (B, 2, 6) as `place` gives them; cover (B, 2, 64, 64) in
        [0, 1], the share of each pixel that a thing covers.
    """
    clips, places, cover = render_clips(scenes, rng, frames=1)
    return clips[:, 0], places, cover[:, 0]


def render_clips(
    scenes: list[Scene], rng: np.random.Generator, frames: int, at: NDArray[np.float64] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a batch of clips, of things at places (B, 2, 6): (B, F, 3, 64, 64), (B, 2, 6), (B, F, 2, 64, 64)."""
    B = len(scenes)

    def chance(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (B, *shape))).float()

    ground, light = _draw_ground(scenes, rng, chance)
    ground = _draw_pebbles(ground, chance)
    places = torch.from_numpy(np.stack([place(s, rng) for s in scenes]) if at is None else at).float()
    looks = [_draw_look(scenes, k, places[:, k], chance) for k in range(2)]
    clips, covers = [], []
    for moved in torch.linspace(-0.5, 0.5, frames).tolist() if frames > 1 else [0.0]:
        frame, first = _draw_on(ground, looks[0], moved, light)
        frame, second = _draw_on(frame, looks[1], moved, light)
        clips.append(frame)
        covers.append(torch.stack([first * (1 - second), second], 1))
    grain = torch.from_numpy(rng.standard_normal((B, frames, 1, SIDE, SIDE), dtype=np.float32))
    return (torch.stack(clips, 1) + 0.008 * grain).clamp(0, 1), places, torch.stack(covers, 1)


def _grid() -> tuple[Tensor, Tensor]:
    """y and x of the pixels' centres, (64, 64) each."""
    rows, columns = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    return rows, columns


def _draw_ground(scenes: list[Scene], rng: np.random.Generator, chance: Chance) -> tuple[Tensor, Light]:
    """The ground: a tinted colour, one of four textures, a slope of light."""
    rows, columns = _grid()
    u, v = columns / SIDE - 0.5, rows / SIDE - 0.5
    ground = torch.tensor([BACKGROUNDS[s.background] for s in scenes])[:, :, None, None]
    ground = ground + chance(3, 1, 1, low=-0.05, high=0.05)
    turn, pitch = chance(1, 1, 1, high=2 * math.pi), chance(1, 1, 1, low=0.45, high=0.9)
    along, over = turn.cos() * columns + turn.sin() * rows, turn.cos() * rows - turn.sin() * columns
    along, over = along * pitch + chance(1, 1, 1, high=6.3), over * pitch + chance(1, 1, 1, high=6.3)
    textures = torch.cat(
        [
            torch.zeros_like(along),
            (3 * along.sin()).tanh(),
            (3 * along.sin() * over.sin()).tanh(),
            (4 * (along.sin() * over.sin() - 0.5)).tanh(),
        ],
        1,
    )
    kind = torch.from_numpy(rng.integers(4, size=len(scenes)))
    image = ground + 0.055 * textures[torch.arange(len(scenes)), kind, None]
    towards = chance(1, 1, 1, high=2 * math.pi)
    light = Light(towards.cos(), towards.sin())
    return image * (1 + 0.45 * (light.x * u + light.y * v)), light


def _draw_pebbles(image: Tensor, chance: Chance) -> Tensor:
    """Up to eight specks of any tint on (B, 3, 64, 64)."""
    rows, columns = _grid()
    for _ in range(8):
        px, py, pr = chance(1, 1, 1, high=SIDE), chance(1, 1, 1, high=SIDE), chance(1, 1, 1, low=0.7, high=1.7)
        speck = (pr + 0.5 - torch.hypot(columns - px, rows - py)).clamp(0, 1) * (chance(1, 1, 1) < 0.5)
        image = torch.lerp(image, chance(3, 1, 1, low=0.1, high=0.9), 0.8 * speck)
    return image


def _draw_look(scenes: list[Scene], k: int, places: Tensor, chance: Chance) -> Look:
    """The k-th thing of every scene. A scene without it gets its first thing, which is marked as not present."""
    things = [s.things[min(k, len(s.things) - 1)] for s in scenes]
    colour = torch.tensor([COLOURS[t.colour] for t in things])[:, :, None, None]
    return Look(
        places=places,
        present=torch.tensor([len(s.things) > k for s in scenes])[:, None, None],
        shape=torch.tensor([SHAPES.index(t.shape) for t in things]),
        colour=colour + chance(3, 1, 1, low=-0.04, high=0.04),
        phase=chance(1, 1, high=6.3),
        striped=chance(1, 1) < 0.4,
        upright=k == 0,
    )


def _draw_on(image: Tensor, look: Look, moved: float, light: Light) -> tuple[Tensor, Tensor]:
    """One thing on (B, 3, 64, 64): shadow, shaded and sometimes striped body, bright rim towards the light.

    Args:
        moved: the part of its travel that the thing has moved from the middle, -0.5 to 0.5.

    Returns:
        The picture, and the share of each pixel that the thing covers, (B, 64, 64).
    """
    rows, columns = _grid()
    batch = torch.arange(len(image))
    cx, cy, radius, tilt, tx, ty = (look.places[:, i, None, None] for i in range(6))
    cx, cy, radius = cx + moved * tx, cy + moved * ty, radius.clamp(min=1)
    lx, ly = light.x[:, 0], light.y[:, 0]

    def inside(dx: Tensor | float, dy: Tensor | float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cover, distance in pixels, and x and y in the thing's own frame, for the thing moved by (dx, dy)."""
        x, y = (columns - cx - dx) / radius, (rows - cy - dy) / radius
        x, y = tilt.cos() * x + tilt.sin() * y, tilt.cos() * y - tilt.sin() * x
        distance = _distances(x, y)[look.shape, batch] * radius
        return (0.5 - distance).clamp(0, 1) * look.present, distance, x, y

    shade, *_ = inside(-2.2 * lx, -2.2 * ly)
    image = image * (1 - 0.45 * shade[:, None])
    mask, distance, x, y = inside(0.0, 0.0)
    toward = (lx * (columns - cx) + ly * (rows - cy)) / radius
    stripes = (3 * (6 * (y if look.upright else x) + look.phase).sin()).tanh() * look.striped
    body = look.colour * (0.92 + 0.16 * toward + 0.06 * stripes)[:, None]
    rim = (1.6 + distance).clamp(0, 1) * toward.clamp(0, 1)
    body = body + 0.35 * rim[:, None] * (1 - body)
    return torch.lerp(image, body, mask[:, None]), mask
