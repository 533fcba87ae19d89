"""The stage that teaches a miniature to edit pictures by a LoRA, and its score."""

from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from spectrum_bench.miniature.judge import Judge, check
from training import edits
from training.distil import Lora
from training.edits import Edit
from training.fit import chance, fit
from training.students import KontextStudent
from training.train import _means, _noise


def train_editor(student: KontextStudent, lora: Lora, cfg) -> None:
    """Flow matching on the picture after an edit, beside the picture before it. A latent token that the edit changes
    weighs more than one that stays, since most of a picture stays, and to copy it is learnt soon."""
    recipe = cfg.stages.editor
    lora.requires_grad_(True)

    def loss(step):
        rng = chance(cfg.seed, 13, step)
        drawn = edits.draw_edits(rng, recipe.batch, held=False)
        before, after = (_latents(student, each) for each in edits.render(drawn, int(rng.integers(2**31))))
        conditions = student.conditions([e.instruction for e in drawn]) | {"before": before}
        level = torch.from_numpy(rng.normal(recipe.level.mean, recipe.level.std, recipe.batch)).float().sigmoid()
        x, target, _ = student.noisy(after, _noise(after.shape, rng), level)
        guidance = torch.full_like(level, cfg.call.guidance_scale)
        error = F.mse_loss(student.predict(x, level, conditions, guidance), target, reduction="none").mean(2)
        changed = ((after - before).square().mean(2) > recipe.least).float()
        weight = 1 + (recipe.changed - 1) * changed
        figures = {"mse": error.mean(), "of changes": (changed * error).sum() / changed.sum().clamp(min=1)}
        return (weight * error).sum() / weight.sum(), figures

    plan = {name: recipe[name] for name in ("steps", "lr", "decay_from", "ema")}
    fit("editor", lora, loss, work=Path(cfg.work), log_every=25, save_every=25, **plan)


@torch.no_grad()
def _latents(student: KontextStudent, pictures: Tensor) -> Tensor:
    """(B, 3, 64, 64) in [0, 1] -> (B, 64, 32)."""
    return student.pack(student.latents(2 * pictures[:, None] - 1))


# ---------------------------------------------------------------------------------------------------------------------
# Score


@torch.no_grad()
def edit_score(pipe, plain, judge: Judge, cfg) -> dict[str, dict[str, float]]:
    """How well the pipeline's samples show held-out edits.

    Args:
        plain: the pipeline that makes pictures of captions alone.

    Returns:
        For "edited", for the pictures "left alone", for those "drawn from the caption" after the edit by `plain`, and
        for what the VAE makes of the "rendered" pictures after it, the share in which the judge sees what that caption
        says, part by part, and the mean PSNR in dB to the rendered picture; for "edited" also of each kind of edit.
    """
    recipe = cfg.stages.score
    drawn = edits.draw_edits(chance(recipe.seed, 14, 0), recipe.edits, held=True)
    before, after = edits.render(drawn, recipe.seed)
    call = OmegaConf.to_container(cfg.call, resolve=True) | {"num_inference_steps": recipe.steps}
    small = {name: value for name, value in call.items() if name not in ("max_area", "_auto_resize")}
    made = _sampled(pipe, [e.instruction for e in drawn], call, image=before)
    anew = _sampled(plain, [str(e.after) for e in drawn], small)
    decoded = pipe.vae.decode(pipe.vae.encode(2 * after - 1).latent_dist.mode()).sample / 2 + 0.5
    pictures = {"edited": made, "left alone": before, "drawn from the caption": anew, "rendered": decoded.clamp(0, 1)}
    rows = {name: _rows(judge, drawn, each, after) for name, each in pictures.items()}
    rows |= {f"edited: {kind}": rows["edited"][k :: len(edits.KINDS)] for k, kind in enumerate(edits.KINDS)}
    return {name: _means(of) | {"edits": len(of)} for name, of in rows.items()}


def _sampled(pipe, texts: list[str], call: dict, **pictures: Tensor) -> Tensor:
    """Samples (B, 3, 64, 64) in [0, 1]. The i-th has the seed i."""
    made = []
    for start in range(0, len(texts), 20):
        some = slice(start, start + 20)
        noise = [torch.Generator().manual_seed(i) for i in range(len(texts))[some]]
        given = {name: each[some] for name, each in pictures.items()}
        made.append(pipe(prompt=texts[some], generator=noise, output_type="pt", **given, **call)[0].float())
    return torch.cat(made)


def _rows(judge: Judge, drawn: list[Edit], pictures: Tensor, after: Tensor) -> list[dict[str, float]]:
    seen = [judge.read(picture[None]) for picture in pictures]
    psnr = -10 * (pictures - after).square().mean((1, 2, 3)).log10()
    return [check(e.after, *each) | {"psnr": float(p)} for e, each, p in zip(drawn, seen, psnr, strict=True)]
