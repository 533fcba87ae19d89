"""Reads a picture of the world: which things, where, on what ground; and checks it against the caption."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import world
from .world import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, Scene, Thing

CELL = 4  # pixels per cell of the judge's map
KINDS = {"size": list(SIZES), "colour": list(COLOURS), "shape": list(SHAPES)}
HEADS = {"heat": 1} | {kind: len(names) for kind, names in KINDS.items()}


@dataclass(frozen=True)
class Seen:
    """What the judge sees: the things with the centres of their cells in pixels, and the background."""

    things: tuple[tuple[Thing, float, float], ...]
    background: str


class Judge(nn.Module):
    """A small detector: a heat map of thing centres on 16x16 cells, with size, colour and shape for each cell."""

    def __init__(self, width: int):
        super().__init__()

        def layer(i, o, stride=1):
            return [nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.GroupNorm(8, o), nn.SiLU()]

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
        """What each image of (B, 3, 64, 64) in [0, 1] shows."""
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
    """Heat by cross-entropy against Gaussian bumps; attributes on the cells round each centre; background."""
    out = judge(images)
    centres = torch.arange(world.SIDE // CELL) * CELL + CELL / 2
    total = F.cross_entropy(out["ground"], torch.tensor([list(BACKGROUNDS).index(s.background) for s in scenes]))
    target = torch.zeros_like(out["heat"][:, 0])
    for k in range(2):
        there = torch.tensor([len(s.things) > k for s in scenes])
        x, y = places[:, k, 0, None, None], places[:, k, 1, None, None]
        square = ((centres[None, None, :] - x) ** 2 + (centres[None, :, None] - y) ** 2) / CELL**2
        target = torch.maximum(target, torch.exp(-square / 1.5) * there[:, None, None])
        b, i, j = ((square < 2) & there[:, None, None]).nonzero(as_tuple=True)
        for head, names in KINDS.items():
            index = torch.tensor([names.index(getattr(s.things[min(k, len(s.things) - 1)], head)) for s in scenes])
            total = total + F.cross_entropy(out[head][b, :, i, j], index[b])
    bce = F.binary_cross_entropy_with_logits(out["heat"][:, 0], target, reduction="none")
    return total + 4 * (bce * (1 + 8 * target)).mean()


def check(scene: Scene, seen: Seen) -> dict[str, float]:
    """How a picture follows its caption, each 0 or 1.

    things: as many as the caption names, with those colours and shapes; sizes: and of those sizes; relation: and
    lying as it says (NaN where the caption names one thing); background; caption: all of it.
    """
    found = {(t.colour, t.shape): (t, x, y) for t, x, y in seen.things}
    wanted = {(t.colour, t.shape): t for t in scene.things}
    things = len(seen.things) == len(scene.things) and found.keys() == wanted.keys()
    sizes = things and all(found[k][0].size == wanted[k].size for k in wanted)
    background = seen.background == scene.background
    relation = float("nan")
    if scene.relation:
        dx, dy = RELATIONS[scene.relation]
        relation = False
        if things:
            (_, x0, y0), (_, x1, y1) = (found[(t.colour, t.shape)] for t in scene.things)
            along, across = ((x0 - x1) * dx + (y0 - y1) * dy, abs((x0 - x1) * dy) + abs((y0 - y1) * dx))
            relation = along > across
    whole = things and sizes and background and relation != 0
    out = {"things": things, "sizes": sizes, "relation": relation, "background": background, "caption": whole}
    return {k: float(v) for k, v in out.items()}


def save_judge(judge: Judge, folder: Path, facts: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in judge.state_dict().items()}, folder / "judge.safetensors")
    (folder / "judge.json").write_text(json.dumps(facts, indent=2) + "\n")


def load_judge(folder: Path) -> Judge:
    """The judge saved in `folder`; its held-out accuracy is in judge.json beside the weights."""
    judge = Judge(json.loads((folder / "judge.json").read_text())["width"])
    judge.load_state_dict(load_file(folder / "judge.safetensors"))
    return judge.eval()
