"""The stages that make a miniature: VAE, judge, pool of latents, denoiser, guidance, score. text.py has the text
encoders."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from spectrum_bench.anatomy import stacks
from spectrum_bench.miniature import world
from spectrum_bench.miniature.judge import Judge, check, judge_loss
from spectrum_bench.miniature.world import Scene
from training.fit import chance, fit, ranks
from training.students import Student


def _scenes(rng: np.random.Generator, count: int, cfg, held: bool = False) -> list[Scene]:
    return world.draw_scenes(rng, count, held, moving=cfg.frames > 1)


def _hidden(name: str, p: Tensor) -> bool:
    """Whether a parameter is a matrix inside a block, which Muon trains faster than AdamW."""
    return p.ndim == 2 and "blocks." in name and ".norm" not in name


def _kernel(name: str, p: Tensor) -> bool:
    return p.ndim > 3


def _plain_attention():
    """Attention as matrix products and a softmax. On a CPU the backward pass of torch's fused attention takes four
    times as long in bf16, which was a third of a step."""
    return sdpa_kernel(SDPBackend.MATH)


def _noise(shape, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))


# ---------------------------------------------------------------------------------------------------------------------
# VAE


def train_vae(student: Student, cfg, device) -> None:
    """Reconstruct (L1 + squared error + gradients) under a small KL, then set the scale that whitens the latents."""
    recipe, vae = cfg.stages.vae, student.pipe.vae

    def loss(step):
        frames = 1 if step < recipe.stills else cfg.frames
        x = _pictures(student, chance(cfg.seed, 0, step), recipe.batch, frames, cfg, device)
        with torch.autocast(x.device.type, torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.sample()).sample.float()
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        total, figures = _difference(y, x)
        return total + recipe.kl * kl, figures | {"kl": kl.detach()}

    fit("vae", vae, loss, steps=recipe.steps, lr=recipe.lr, muon=_kernel, work=Path(cfg.shared))
    if not recipe.steps:  # a miniature is trained further: its denoiser depends on the scale
        return
    with torch.no_grad():  # the same on every rank: they must agree on the scale
        x = _pictures(student, np.random.default_rng((cfg.seed, 1)), 256 // cfg.frames, cfg.frames, cfg, device)
        latents = vae.encode(x).latent_dist.mode()
    student.whiten(latents)


def train_decoder(student: Student, cfg, device) -> None:
    """Train the VAE's decoder alone, so that the latents stay as the denoiser knows them."""
    recipe, vae = cfg.stages.decoder, student.pipe.vae
    for name, p in vae.named_parameters():
        p.requires_grad_(name.startswith(("decoder", "post_quant")))

    def loss(step):
        x = _pictures(student, chance(cfg.seed, 9, step), recipe.batch, cfg.frames, cfg, device)
        with torch.autocast(x.device.type, torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(x).latent_dist.sample()
            return _difference(vae.decode(latents).sample.float(), x)

    fit("decoder", vae, loss, steps=recipe.steps, lr=recipe.lr, muon=_kernel, decay_from=0.2, work=Path(cfg.shared))


def _pictures(student: Student, rng: np.random.Generator, count: int, frames: int, cfg, device) -> Tensor:
    clips = world.render_clips(_scenes(rng, count, cfg), rng, frames)[0]
    x = student.enter(2 * clips.to(device) - 1)
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def _difference(y: Tensor, x: Tensor) -> tuple[Tensor, dict]:
    error = y - x
    mse = (error**2).mean()
    slopes = [error.diff(dim=d).abs().mean() for d in range(2, x.ndim) if x.shape[d] > 1]
    return error.abs().mean() + 2 * mse + sum(slopes), {"psnr": float(10 * torch.log10(4 / mse.detach()))}


# ---------------------------------------------------------------------------------------------------------------------
# Judge


def train_judge(student: Student, cfg, device) -> Judge:
    """Train the judge on rendered pictures. Half of them go through the VAE with noisy latents, so that the judge
    tolerates a soft decoder but not a wrong shape."""
    recipe, judge = cfg.stages.judge, Judge(cfg.stages.judge.width).to(device)

    def loss(step):
        rng = chance(cfg.seed, 5, step)
        scenes = _scenes(rng, recipe.batch, cfg)
        images, soft, places = _as_drawn_and_decoded(student, scenes, rng, 0.3, cfg, device)
        half = recipe.batch // 2
        with torch.autocast(images.device.type, torch.bfloat16):
            return judge_loss(judge, torch.cat([images[:half], soft[half:]]), scenes, places), {}

    fit("judge", judge, loss, steps=recipe.steps, lr=recipe.lr, work=Path(cfg.shared), ema=0.99)
    return judge


def judge_accuracy(judge: Judge, student: Student, cfg, device) -> dict:
    """The judge's accuracy on held-out captions, from rendered pictures and from pictures that went through the VAE."""
    rng = np.random.default_rng((cfg.stages.score.seed, 6))
    rows = {"rendered": [], "through_the_vae": []}
    for _ in range(0, cfg.stages.score.judged, 20):
        scenes = _scenes(rng, 20, cfg, held=True)
        images, soft, _ = _as_drawn_and_decoded(student, scenes, rng, 0.0, cfg, device)
        for name, seen in (("rendered", judge.read(images)), ("through_the_vae", judge.read(soft))):
            rows[name] += [check(replace(s, motion=None), z) for s, z in zip(scenes, seen, strict=True)]
    facts = {"width": judge.width, "held_out_captions": len(rows["rendered"])}
    facts |= {name: _means(of) for name, of in rows.items()}
    print("judge:", facts, flush=True)
    return facts


@torch.no_grad()
def _as_drawn_and_decoded(student: Student, scenes: list[Scene], rng, strength: float, cfg, device):
    """One frame of each clip as rendered, the same frame through the VAE with noise on its latents, and the places of
    the things."""
    vae = student.pipe.vae
    clips, places, _ = world.render_clips(scenes, rng, cfg.frames)
    latents = vae.encode(student.enter(2 * clips - 1).to(device)).latent_dist.mode()
    noise = _noise(latents.shape, rng).to(device) * latents.std()
    level = strength * torch.from_numpy(rng.random(len(scenes))).float().to(device)
    soft = vae.decode(latents + level.view(-1, *[1] * (latents.ndim - 1)) * noise).sample
    soft = (soft if soft.ndim == 4 else soft.transpose(1, 2)).clamp(-1, 1) / 2 + 0.5
    frame = int(rng.integers(cfg.frames))
    moved = frame / (cfg.frames - 1) - 0.5 if cfg.frames > 1 else 0.0
    places[..., :2] += moved * places[..., 4:]
    return clips[:, frame].to(device), soft if soft.ndim == 4 else soft[:, frame], places


def _means(rows: list[dict]) -> dict[str, float]:
    return {
        k: round(float(np.nanmean([r[k] for r in rows])), 4) for k in rows[0] if not all(np.isnan(r[k]) for r in rows)
    }


# ---------------------------------------------------------------------------------------------------------------------
# Pool: latents of many rendered scenes, made once


@torch.no_grad()
def make_pool(student: Student, cfg, device) -> dict[str, Tensor]:
    """Render and encode many scenes. Each process makes its own part.

    Returns:
        latents: (N, C, ...).
        scenes: (N, 9), see `world.to_numbers`.
        seen: (N, tokens, 2), the shape and the colour that each latent token shows, counted from 1; 0 is the ground.
    """
    recipe, (rank, world_size) = cfg.stages.pool, ranks()
    path = Path(cfg.shared) / f"pool{rank}of{world_size}.safetensors"
    if not path.exists():
        count, chunk = recipe.clips // world_size, 100 if cfg.frames == 1 else 20
        pieces = {"latents": [], "scenes": [], "seen": []}
        for start in range(0, count, chunk):
            rng = chance(cfg.seed, 2, start)
            scenes = _scenes(rng, chunk, cfg)
            clips, _, cover = world.render_clips(scenes, rng, cfg.frames)
            with torch.autocast(torch.device(device).type, torch.bfloat16):  # the pool is in bf16 too
                latents = student.latents(2 * clips.to(device) - 1)
            pieces["latents"].append(latents.cpu().bfloat16())
            pieces["scenes"].append(torch.tensor([world.to_numbers(s) for s in scenes], dtype=torch.uint8))
            pieces["seen"].append(_semantics(scenes, cover, student.grid))
            if rank == 0 and start % 5000 == 0:
                print(f"pool {start * world_size}/{recipe.clips}", flush=True)
        save_file({k: torch.cat(v) for k, v in pieces.items()}, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    return load_file(path)


def _semantics(scenes: list[Scene], cover: Tensor, grid: int) -> Tensor:
    """(B, F, 2, 64, 64) cover -> (B, tokens, 2). The first latent frame is the first frame; each later one is four
    frames."""
    times = [cover[:, :1], *cover[:, 1:].split(4, 1)]
    frames = torch.stack([part.mean(1) for part in times if part.shape[1]], 1)  # (B, f, 2, 64, 64)
    share = F.adaptive_avg_pool2d(frames.flatten(0, 1), grid).unflatten(0, frames.shape[:2])
    most, which = share.max(2)  # (B, f, grid, grid): the share of a token under the larger thing, and that thing
    most, which = most.flatten(1), which.flatten(1)
    kinds = torch.tensor(
        [
            [(world.SHAPES.index(t.shape) + 1, list(world.COLOURS).index(t.colour) + 1) for t in (s.things * 2)[:2]]
            for s in scenes
        ]
    )  # (B, 2, 2)
    seen = kinds.gather(1, which[..., None].expand(-1, -1, 2))
    return torch.where((most > 0.25)[..., None], seen, 0).to(torch.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Denoiser


def _draw(student: Student, pool: dict[str, Tensor], rng: np.random.Generator, cfg, batch: int, device):
    """Indices into the pool, captions, clean latents and noise levels. The levels are logit-normal (Esser et al. 2024,
    arXiv:2403.03206, eq. 19) with more weight on high noise, where the model decides layout and shapes."""
    pick = torch.from_numpy(rng.integers(len(pool["latents"]), size=batch))
    captions = [str(world.from_numbers(row)) for row in pool["scenes"][pick].tolist()]
    x0 = student.pack(pool["latents"][pick].float().to(device))
    level = torch.from_numpy(rng.normal(cfg.stages.level.mean, cfg.stages.level.std, batch)).float().sigmoid()
    return pick, captions, x0, level.to(device)


def train_denoiser(student: Student, pool: dict[str, Tensor], cfg, device) -> None:
    """Minimise a weighted squared error, with a tenth of the captions dropped. Two heads must also read from a middle
    block's image tokens what these show, so that the model learns early to follow captions. This is a supervised
    variant of REPA (Yu et al. 2024, arXiv:2410.06940)."""
    recipe = cfg.stages.denoiser
    for name in stacks(student.denoiser):
        part = getattr(student.denoiser, name)
        for block in part if isinstance(part, nn.ModuleList) else [part]:
            block.compile()  # fuses the modulation; needs a C++ compiler on the CPU
    tokens: dict[str, Tensor] = {}
    watched = student.denoiser.get_submodule(recipe.watch)
    handle = watched.register_forward_hook(lambda m, a, out: tokens.update(watched=student.watched(out)))

    def loss(step):
        rng = chance(cfg.seed, 3, step)
        pick, captions, x0, level = _draw(student, pool, rng, cfg, recipe.batch, device)
        dropped = rng.random(recipe.batch) < recipe.drop
        captions = ["" if d else c for d, c in zip(dropped, captions, strict=True)]
        x, target, weight = student.noisy(x0, _noise(x0.shape, rng).to(device), level)
        with torch.autocast(x.device.type, torch.bfloat16), _plain_attention():
            predicted = student.predict(x, level, student.conditions(captions), torch.ones_like(level)).float()
            shown = [head(tokens["watched"]).float() for head in student.heads]
        seen = pool["seen"][pick].long().to(device)
        mse = (weight * F.mse_loss(predicted, target, reduction="none").flatten(1).mean(1)).mean()
        semantic = sum(F.cross_entropy(t.flatten(0, 1), seen[..., i].flatten()) for i, t in enumerate(shown))
        return mse + recipe.semantics * semantic, {"mse": mse.detach(), "semantic": semantic.detach()}

    fit("denoiser", student, loss, steps=recipe.steps, lr=recipe.lr, muon=_hidden, work=Path(cfg.work))
    handle.remove()


def distil_guidance(student: Student, pool: dict[str, Tensor], cfg, device) -> None:
    """Train the guidance embedding: at scale g one pass of the student gives v_empty + g (v_caption - v_empty) of the
    teacher, a copy from before this stage (Meng et al. 2023, arXiv:2210.03142, section 3.1). FLUX.1-dev was distilled
    in this way."""
    recipe, work = cfg.stages.guide, Path(cfg.work)
    before, after = (work / f"{stage}.safetensors" for stage in ("denoiser", "guide"))
    if after.exists() and after.stat().st_mtime < before.stat().st_mtime:
        after.unlink()  # the denoiser has been trained further since
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    nothing = student.conditions([""] * recipe.batch)
    student.denoiser.requires_grad_(True)

    def loss(step):
        rng = chance(cfg.seed, 4, step)
        _, captions, x0, level = _draw(student, pool, rng, cfg, recipe.batch, device)
        x, _, _ = student.noisy(x0, _noise(x0.shape, rng).to(device), level)
        g = torch.from_numpy(rng.uniform(recipe.low, recipe.high, recipe.batch)).float().to(device)
        with torch.autocast(x.device.type, torch.bfloat16), _plain_attention():
            text, plain = student.conditions(captions), torch.ones_like(level)
            with torch.no_grad():
                without, with_ = (teacher.predict(x, level, given, plain).float() for given in (nothing, text))
            predicted = student.predict(x, level, text, g).float()
        target = without + g.view(-1, *[1] * (x.ndim - 1)) * (with_ - without)
        return F.mse_loss(predicted, target), {}

    fit(
        "guide",
        student.denoiser,
        loss,
        steps=recipe.steps,
        lr=recipe.lr,
        decay_from=0.3,
        muon=_hidden,
        work=work,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Score


@torch.no_grad()
def caption_score(pipe, judge: Judge, cfg) -> dict[str, float]:
    """The share of held-out captions that the pipeline's samples follow, by the judge. `cfg.call` holds the arguments
    of the pipeline's call."""
    recipe = cfg.stages.score
    scenes = _scenes(chance(recipe.seed, 7, 0), recipe.captions, cfg, held=True)
    rows = []
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(scenes), 20):
        batch = scenes[start : start + 20]
        out = pipe(
            [str(s) for s in batch],
            num_inference_steps=recipe.steps,
            generator=[torch.Generator().manual_seed(start + i) for i in range(len(batch))],
            output_type="pt",
            **OmegaConf.to_container(cfg.call, resolve=True),
        )[0].float()
        clips = out if out.ndim == 5 else out[:, None]
        for scene, clip in zip(batch, clips, strict=True):
            rows.append(check(scene, *judge.read(clip)))
    return _means(rows) | {"captions": len(rows)}
