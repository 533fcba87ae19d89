"""A detector that reads pictures of the miniature world, and the check of its reading against a caption."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spectrum_bench.miniature import world
from spectrum_bench.miniature.world import BACKGROUNDS, COLOURS, MOTIONS, RELATIONS, SHAPES, SIZES, TRAVEL, Scene, Thing

CELL = 4  # pixels per cell of the judge's map
KINDS = {"size": list(SIZES), "colour": list(COLOURS), "shape": list(SHAPES)}
HEADS = {"heat": 1} | {kind: len(names) for kind, names in KINDS.items()}


@dataclass(frozen=True)
class Seen:
    """The judge's reading of a picture: the things, each with the centre of its cell in pixels, and the background."""

    things: tuple[tuple[Thing, float, float], ...]
    background: str


class Judge(nn.Module):
    """A small detector: a heat map of thing centres on 16x16 cells, with size, colour and shape for each cell."""

    def __init__(self, width: int):
        super().__init__()

        def layer(i: int, o: int, stride: int = 1) -> list[nn.Module]:
            return [nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.GroupNorm(8, o), nn.SiLU()]

        self.width = width
        w, d = width, 2 * width
        self.body = nn.Sequential(
            *layer(3, w), *layer(w, w, 2), *layer(w, w), *layer(w, d, 2), *layer(d, d), *layer(d, d)
        )
        self.far = nn.Sequential(*layer(d, d, 2), *layer(d, d), nn.Upsample(scale_factor=2))
        self.heads = nn.ModuleDict({name: nn.Conv2d(d, size, 1) for name, size in HEADS.items()})
        self.ground = nn.Linear(d, len(BACKGROUNDS))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images (B, 3, 64, 64) in [0, 1] -> logits, (B, C, 16, 16) for each head and (B, 5) for "ground"."""
        h = self.body(2 * images - 1)
        h = h + self.far(h)
        return {name: head(h) for name, head in self.heads.items()} | {"ground": self.ground(h.mean((2, 3)))}

    @torch.no_grad()
    def read(self, images: Tensor) -> list[Seen]:
        """The reading of each image; images (B, 3, 64, 64) in [0, 1]."""
        out = self(images)
        heat = out["heat"].sigmoid()[:, 0]
        peaks = (heat == F.max_pool2d(heat, 5, 1, 2)) & (heat > 0.5)
        best = {name: out[name].argmax(1) for name in HEADS}
        seen = []
        for b in range(len(images)):
            things = []
            for i, j in peaks[b].nonzero().tolist():
                kind = (names[best[head][b, i, j]] for head, names in KINDS.items())
                things.append((Thing(*kind), (j + 0.5) * CELL, (i + 0.5) * CELL))
            seen.append(Seen(tuple(things), list(BACKGROUNDS)[out["ground"][b].argmax()]))
        return seen


def judge_loss(judge: Judge, images: Tensor, scenes: list[Scene], places: Tensor) -> Tensor:
    """Cross-entropy of the heat map against Gaussian bumps, of the attributes in the cells round each centre, and of
    the background."""
    out = judge(images)
    centres = torch.arange(world.SIDE // CELL, device=images.device) * CELL + CELL / 2
    places = places.to(images.device)

    def numbers(names: list[str], values: list[str]) -> Tensor:
        return torch.tensor([names.index(value) for value in values], device=images.device)

    total = F.cross_entropy(out["ground"], numbers(list(BACKGROUNDS), [s.background for s in scenes]))
    target = torch.zeros_like(out["heat"][:, 0])
    for k in range(2):
        present = torch.tensor([len(s.things) > k for s in scenes], device=images.device)
        x, y = places[:, k, 0, None, None], places[:, k, 1, None, None]
        square = ((centres[None, None, :] - x) ** 2 + (centres[None, :, None] - y) ** 2) / CELL**2
        target = torch.maximum(target, torch.exp(-square / 1.5) * present[:, None, None])
        b, i, j = ((square < 2) & present[:, None, None]).nonzero(as_tuple=True)
        things = [s.things[min(k, len(s.things) - 1)] for s in scenes]
        for head, names in KINDS.items():
            index = numbers(names, [getattr(thing, head) for thing in things])
            total = total + F.cross_entropy(out[head][b, :, i, j], index[b])
    bce = F.binary_cross_entropy_with_logits(out["heat"][:, 0], target, reduction="none")
    return total + 4 * (bce * (1 + 8 * target)).mean()


def check(scene: Scene, *frames: Seen) -> dict[str, float]:
    """Whether a picture, or the frames of a clip, follow the caption. Each value is 0 or 1.

    Returns:
        things: the number of things, their colours and their shapes are right.
        sizes: the things and their sizes are right.
        relation: the things are right and lie as the caption says. NaN if the caption names one thing.
        background: the background is right.
        motion: the first thing moves as the caption says, from the first frame to the last. NaN if the caption names no
            motion, or if there is one frame.
        caption: all of these are right.

        All but motion are read from the middle frame.
    """
    middle = frames[len(frames) // 2]
    seen = {(t.colour, t.shape): t for t, _, _ in middle.things}
    wanted = {(t.colour, t.shape): t for t in scene.things}
    things = len(middle.things) == len(scene.things) and seen.keys() == wanted.keys()
    sizes = things and all(seen[k].size == wanted[k].size for k in wanted)
    background = middle.background == scene.background
    relation = _relation(scene, middle) if things or not scene.relation else False
    motion = _motion(scene, frames)
    whole = things and sizes and background and relation != 0 and motion != 0
    out = {"things": things, "sizes": sizes, "relation": relation, "background": background, "motion": motion}
    return {k: float(v) for k, v in (out | {"caption": whole}).items()}


def _relation(scene: Scene, frame: Seen) -> bool | float:
    """Whether the two things lie as the caption says; NaN if it names one thing."""
    if not scene.relation:
        return float("nan")
    first, second = (_find(thing, frame) for thing in scene.things)
    return first is not None and second is not None and _towards(second, first, RELATIONS[scene.relation]) > 0


def _motion(scene: Scene, frames: tuple[Seen, ...]) -> bool | float:
    """Whether the first thing moves as the caption says; NaN if it names no motion, or if there is one frame."""
    if not scene.motion or len(frames) < 2:
        return float("nan")
    start, end = (_find(scene.things[0], frame) for frame in (frames[0], frames[-1]))
    return start is not None and end is not None and _towards(start, end, MOTIONS[scene.motion]) > TRAVEL[0] / 2


def _towards(start: tuple[float, float], end: tuple[float, float], way: tuple[int, int]) -> float:
    """The distance from start to end along `way`, a unit vector on an axis; 0 if the distance across it is larger."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    along, across = dx * way[0] + dy * way[1], abs(dx * way[1]) + abs(dy * way[0])
    return along if along > across else 0.0


def _find(thing: Thing, frame: Seen) -> tuple[float, float] | None:
    places = [(x, y) for t, x, y in frame.things if (t.colour, t.shape) == (thing.colour, thing.shape)]
    return places[0] if places else None


def save_judge(judge: Judge, folder: Path, facts: dict[str, Any]) -> None:
    """Write the judge's weights, and beside them `facts`: its width and its accuracy on held-out captions."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in judge.state_dict().items()}, folder / "judge.safetensors")
    (folder / "judge.json").write_text(json.dumps(facts, indent=2) + "\n")


def load_judge(folder: Path) -> Judge:
    """The judge in `folder`, which `save_judge` wrote."""
    judge = Judge(json.loads((folder / "judge.json").read_text())["width"])
    judge.load_state_dict(load_file(folder / "judge.safetensors"))
    return judge.eval()
