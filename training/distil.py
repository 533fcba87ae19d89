"""The stages that make a few-step student of a miniature: the teacher's paths, a LoRA that follows them, its score."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spectrum_bench import accelerate
from spectrum_bench.miniature import world
from training.fit import chance, fit
from training.students import Student
from training.train import _noise, _scenes

Paths = dict[str, Tensor]


class Lora(nn.Module):
    """A product of two small matrices beside every linear layer that image tokens or the blocks' modulation go through:
    W x + B A x (Hu et al. 2021, arXiv:2106.09685, section 4.1). B begins as zero; only A and B are parameters."""

    OUTSIDE = ("time_text_embed", "context_embedder")

    def __init__(self, denoiser: nn.Module, rank: int):
        super().__init__()
        layers = {
            name: layer
            for name, layer in denoiser.named_modules()
            if isinstance(layer, nn.Linear) and not name.startswith(self.OUTSIDE)
        }
        self.names = list(layers)
        self.down = nn.ModuleList(nn.Linear(each.in_features, rank, bias=False) for each in layers.values())
        self.up = nn.ModuleList(nn.Linear(rank, each.out_features, bias=False) for each in layers.values())
        for layer, down, up in zip(layers.values(), self.down, self.up, strict=True):
            nn.init.zeros_(up.weight)
            layer.register_forward_hook(partial(_add, down, up))

    def tensors(self, part: str) -> dict[str, Tensor]:
        """The matrices by the names that diffusers reads, in float16."""
        both = zip(self.names, self.down, self.up, strict=True)
        named = {f"{part}.{name}.lora_{x}.weight": m.weight for name, a, b in both for x, m in (("A", a), ("B", b))}
        return {name: weight.detach().half().contiguous() for name, weight in named.items()}

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.tensors("transformer"), folder / "lora.safetensors")


def _add(down: nn.Module, up: nn.Module, layer: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
    return out + up(down(args[0]))


# ---------------------------------------------------------------------------------------------------------------------
# Paths of the teacher


@torch.no_grad()
def levels(student: Student, steps: int) -> Tensor:
    """The noise levels of the pipeline's own schedule with so many steps, (steps + 1,), from 1 to 0."""
    student.pipe("", num_inference_steps=steps, output_type="latent", **student._call)
    return student.pipe.scheduler.sigmas.clone()


@torch.no_grad()
def make_paths(student: Student, cfg) -> Paths:
    """The teacher's latents at the noise levels of the student's steps, of many captions, from noise to data.

    Returns:
        latents: (N, steps + 1, tokens, channels) float16.
        scenes: (N, 9), see `world.to_numbers`.
        levels: (steps + 1,) float32.
    """
    recipe, path = cfg.stages.paths, Path(cfg.work) / "paths.safetensors"
    if path.exists():
        return load_file(path)
    wanted, fine = levels(student, cfg.steps), levels(student, recipe.steps)
    pieces: dict[str, list[Tensor]] = {"latents": [], "scenes": []}
    with accelerate(student.pipe, recipe.algo, num_inference_steps=recipe.steps, **recipe.constants) as run:
        for start in range(0, recipe.count, recipe.batch):
            rng = chance(cfg.seed, 10, start)
            scenes = _scenes(rng, recipe.batch, cfg)
            taken = [_noise((recipe.batch, student.grid**2, student.denoiser.config.in_channels), rng)]

            def keep(pipe, step, timestep, tensors, taken=taken):
                taken.append(tensors["latents"].clone())
                return tensors

            start_from = {"latents": taken[0], "output_type": "latent", "callback_on_step_end": keep}
            run([str(s) for s in scenes], **start_from, **student._call)
            pieces["latents"].append(between(torch.stack(taken, 1), fine, wanted).half())
            pieces["scenes"].append(torch.tensor([world.to_numbers(s) for s in scenes], dtype=torch.uint8))
            print(f"paths {start + recipe.batch}/{recipe.count}", flush=True)
    paths = {name: torch.cat(each) for name, each in pieces.items()} | {"levels": wanted}
    save_file(paths, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)
    return paths


def between(path: Tensor, fine: Tensor, wanted: Tensor) -> Tensor:
    """The latents (B, T + 1, ...) of a path at falling levels `fine`, (T + 1,), at the levels `wanted`, (n,): a step of
    Euler's method is a straight line."""
    after = (fine[None] > wanted[:, None] + 1e-6).sum(1).clamp(1, len(fine) - 1)  # the first level at or below
    share = (fine[after - 1] - wanted) / (fine[after - 1] - fine[after])
    return torch.lerp(path[:, after - 1], path[:, after], share.view(1, -1, *[1] * (path.ndim - 2)))


# ---------------------------------------------------------------------------------------------------------------------
# The student


def train_windows(student: Student, lora: Lora, paths: Paths, cfg) -> None:
    """From the teacher's latent at the beginning of a step the student learns the mean velocity to its latent at the
    end, each step on its own (Yan et al. 2024, arXiv:2405.07510, section 3.1; Salimans & Ho 2022, arXiv:2202.00512)."""
    recipe, at = cfg.stages.windows, paths["levels"]
    lora.requires_grad_(True)

    def loss(step):
        rng = chance(cfg.seed, 11, step)
        latents, text = _drawn(student, paths, rng, recipe.batch)
        rows, which = torch.arange(recipe.batch), torch.from_numpy(rng.integers(cfg.steps, size=recipe.batch))
        begin, end = latents[rows, which], latents[rows, which + 1]
        target = (begin - end) / (at[which] - at[which + 1]).view(-1, 1, 1)
        return F.mse_loss(_velocity(student, begin, at[which], text), target), {}

    fit("windows", lora, loss, steps=recipe.steps, lr=recipe.lr, decay_from=recipe.decay_from, work=Path(cfg.work))


def train_rollout(student: Student, lora: Lora, paths: Paths, cfg) -> None:
    """The student takes all its steps from noise, and learns to end where the teacher ended: its own errors are
    corrected by its later steps."""
    recipe, at = cfg.stages.rollout, paths["levels"]
    lora.requires_grad_(True)

    def loss(step):
        latents, text = _drawn(student, paths, chance(cfg.seed, 12, step), recipe.batch)
        x = latents[:, 0]
        for i in range(cfg.steps):
            x = x - (at[i] - at[i + 1]) * _velocity(student, x, at[i].expand(recipe.batch), text)
        return F.mse_loss(x, latents[:, -1]), {}

    fit("rollout", lora, loss, steps=recipe.steps, lr=recipe.lr, decay_from=recipe.decay_from, work=Path(cfg.work))


def _drawn(student: Student, paths: Paths, rng: np.random.Generator, batch: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Paths (B, steps + 1, ...) and the conditions of their captions."""
    pick = torch.from_numpy(rng.integers(len(paths["latents"]), size=batch))
    captions = [str(world.from_numbers(row)) for row in paths["scenes"][pick].tolist()]
    return paths["latents"][pick].float(), student.conditions(captions)


def _velocity(student: Student, x: Tensor, level: Tensor, text: dict[str, Tensor]) -> Tensor:
    guidance = torch.full_like(level, student._call["guidance_scale"])
    return student.predict(x, level, text, guidance)
