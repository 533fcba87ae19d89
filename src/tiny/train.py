"""The stages that make a miniature FLUX: VAE, judge, text, pool of latents, denoiser, guidance distillation, score."""

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import world
from .fit import fit, ranks


def _rng(seed: int, stage: int, step: int) -> np.random.Generator:
    """Chance that depends on nothing but seed, stage, step and rank, so that a resumed run sees what it would have."""
    return np.random.default_rng((seed, stage, step, ranks()[0]))


# ---------------------------------------------------------------------------------------------------------------------
# VAE


def train_vae(vae, cfg, work: Path, device) -> None:
    """Reconstruct (L1 + squared error + gradients) under a small KL, then set scale and shift to whiten the latents."""
    recipe = cfg.stages.vae

    def loss(step):
        rng = _rng(cfg.seed, 0, step)
        x = 2 * world.render(world.draw_scenes(rng, recipe.batch, held=False), rng)[0].to(device) - 1
        with torch.autocast(x.device.type, torch.bfloat16):
            posterior = vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist
            y = vae.decode(posterior.sample()).sample.float()
        error = y - x
        slopes = [error.diff(dim=d).abs().mean() for d in (2, 3)]
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        mse = (error**2).mean()
        total = error.abs().mean() + 2 * mse + sum(slopes) + recipe.kl * kl
        return total, {"psnr": float(10 * torch.log10(4 / mse.detach())), "kl": kl.detach()}

    vae.to(memory_format=torch.channels_last)
    fit("vae", vae, loss, steps=recipe.steps, lr=recipe.lr, work=work)
    vae.to(memory_format=torch.contiguous_format)
    rng = np.random.default_rng((cfg.seed, 1))  # the same on every rank: they must agree on the scale
    with torch.no_grad():
        x = 2 * world.render(world.draw_scenes(rng, 256, held=False), rng)[0].to(device) - 1
        latents = vae.encode(x).latent_dist.mode()
        psnr = 10 * torch.log10(4 / ((vae.decode(latents).sample - x) ** 2).mean())
    vae.register_to_config(
        shift_factor=round(float(latents.mean()), 4), scaling_factor=round(float(1 / latents.std()), 4)
    )
    print(f"vae: {psnr:.1f} dB on fresh images, {dict(vae.config)['scaling_factor']=}", flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# Text


class Reader(nn.Module):
    """A T5 encoder with heads that tell, from the state of each word, what the thing that it is about is like."""

    FACTS = (list(world.SIZES), list(world.COLOURS), list(world.SHAPES), [None, *world.RELATIONS])

    def __init__(self, t5):
        super().__init__()
        self.t5 = t5
        self.heads = nn.ModuleList(nn.Linear(t5.config.d_model, len(names)) for names in self.FACTS)

    @classmethod
    def labels(cls, scene: world.Scene, tokens: int) -> Tensor:
        """(tokens, 4) size, colour, shape and place (against the other thing) of the thing that each word of the
        caption is about, -100 where it is about none. One word is one token."""
        out = torch.full((tokens, 4), -100)
        opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", None: None}
        start = 0
        for thing, place in zip(scene.things, (scene.relation, opposite[scene.relation]), strict=False):
            facts = (thing.size, thing.colour, thing.shape, place)
            length = len(str(thing).split())
            out[start : start + length] = torch.tensor([n.index(f) for n, f in zip(cls.FACTS, facts, strict=True)])
            start += length + len((scene.relation or "").split())
        return out


def train_text(pipe, cfg, work: Path, device) -> None:
    """Teach T5 which words belong together, before it sees a picture: a real T5 comes with a knowledge of language, and
    one that learnt from the denoiser's loss alone never found out which of two things is the red one. Then it stays
    as it is, as FLUX's does. (CLIP's pooled state is learnt with the denoiser.)"""
    recipe, reader = cfg.stages.text, Reader(pipe.text_encoder_2)

    def loss(step):
        scenes = world.draw_scenes(_rng(cfg.seed, 8, step), recipe.batch, held=False)
        said = torch.stack([reader.labels(s, cfg.text_tokens) for s in scenes]).to(device)
        states = reader.t5(_ids(pipe.tokenizer_2, [str(s) for s in scenes], cfg).to(device))[0]
        told = [head(states) for head in reader.heads]
        return sum(F.cross_entropy(t.flatten(0, 1), said[..., i].flatten()) for i, t in enumerate(told)), {}

    fit("text", reader, loss, steps=recipe.steps, lr=recipe.lr, work=work, ema=0.99)


# ---------------------------------------------------------------------------------------------------------------------
# Pool: latents of many rendered captions, made once


@torch.no_grad()
def make_pool(pipe, cfg, work: Path, device) -> dict[str, Tensor]:
    """Render and encode `images` scenes: latents (N, 64, 32) packed as FLUX packs them, token ids, and what each
    latent token shows, (N, 64, 2): shape and colour, 0 for the ground. Each process makes and keeps its own part."""
    recipe, (rank, world_size) = cfg.stages.pool, ranks()
    path = work / f"pool{rank}of{world_size}.safetensors"
    if not path.exists():
        count, chunk = recipe.images // world_size, 100
        parts_ = {"latents": [], "clip": [], "t5": [], "seen": []}
        for start in range(0, count, chunk):
            rng = _rng(cfg.seed, 2, start)
            scenes = world.draw_scenes(rng, chunk, held=False)
            images, _, cover = world.render(scenes, rng)
            latents = pipe.vae.encode(2 * images.to(device) - 1).latent_dist.mode()
            latents = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
            parts_["latents"].append(pipe._pack_latents(latents, *latents.shape).cpu().bfloat16())
            captions = [str(s) for s in scenes]
            parts_["clip"].append(_ids(pipe.tokenizer, captions, cfg).short())
            parts_["t5"].append(_ids(pipe.tokenizer_2, captions, cfg).short())
            parts_["seen"].append(_semantics(scenes, cover))
            if rank == 0 and start % 5000 == 0:
                print(f"pool {start * world_size}/{recipe.images}", flush=True)
        save_file({k: torch.cat(v) for k, v in parts_.items()}, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    return load_file(path)


def _ids(tokenizer, captions: list[str], cfg) -> Tensor:
    return tokenizer(
        captions, padding="max_length", max_length=cfg.text_tokens, truncation=True, return_tensors="pt"
    ).input_ids


def _semantics(scenes, cover: Tensor) -> Tensor:
    share = F.avg_pool2d(cover, 8).flatten(2)  # (B, 2, 64): how much of each latent token each thing covers
    most, which = share.max(1)
    out = torch.zeros(len(scenes), 64, 2, dtype=torch.uint8)
    for k in range(2):
        kind = torch.tensor(
            [
                [world.SHAPES.index(t.shape) + 1, list(world.COLOURS).index(t.colour) + 1]
                for t in (s.things[min(k, len(s.things) - 1)] for s in scenes)
            ]
        )
        out = torch.where(((which == k) & (most > 0.25))[..., None], kind[:, None].to(torch.uint8), out)
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Denoiser


class Student(nn.Module):
    """The denoiser with its text encoders (T5 frozen), and two heads that help it learn what is where."""

    def __init__(self, pipe):
        super().__init__()
        self.denoiser, self.clip, self.t5 = pipe.transformer, pipe.text_encoder, pipe.text_encoder_2
        width = self.denoiser.inner_dim
        self.heads = nn.ModuleList([nn.Linear(width, len(world.SHAPES) + 1), nn.Linear(width, len(world.COLOURS) + 1)])
        self.image_ids = pipe._prepare_latent_image_ids(1, 8, 8, "cpu", torch.float32)

    def text(self, clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Exactly what FluxPipeline makes of a caption: CLIP's pooled output, T5's states without a mask."""
        return self.clip(clip_ids.long()).pooler_output, self.t5(t5_ids.long())[0]

    def velocity(self, x: Tensor, sigma: Tensor, text: tuple[Tensor, Tensor], guidance: Tensor) -> Tensor:
        """x (B, 64, 32) at noise level sigma (B,) -> predicted noise - data."""
        pooled, states = text
        return self.denoiser(
            hidden_states=x,
            timestep=sigma,
            guidance=guidance,
            pooled_projections=pooled,
            encoder_hidden_states=states,
            txt_ids=torch.zeros(states.shape[1], 3, device=x.device),
            img_ids=self.image_ids.to(x.device),
            return_dict=False,
        )[0]


def _noisy(x0: Tensor, rng: np.random.Generator, sigma) -> tuple[Tensor, Tensor, Tensor]:
    """(x_sigma, sigma, velocity): rectified flow at a logit-normal sigma (Esser et al. 2024, arXiv:2403.03206, eq. 19),
    leaning to high noise, where layout and shapes are decided."""
    sigma = torch.from_numpy(rng.normal(sigma.mean, sigma.std, len(x0))).float().sigmoid().to(x0.device)
    noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32)).to(x0.device)
    return torch.lerp(x0, noise, sigma[:, None, None]), sigma, noise - x0


def train_denoiser(pipe, pool: dict[str, Tensor], cfg, work: Path, device) -> Student:
    """Velocity matching; a tenth of the captions dropped; the double blocks' image tokens must also tell what they
    show (a supervised cousin of REPA, Yu et al. 2024, arXiv:2410.06940), which makes captions bind early."""
    recipe, student = cfg.stages.denoiser, Student(pipe).to(device)
    empty = [_ids(t, [""], cfg) for t in (pipe.tokenizer, pipe.tokenizer_2)]
    for block in [*student.denoiser.transformer_blocks, *student.denoiser.single_transformer_blocks]:
        block.compile()  # fuses the modulation; needs a C++ compiler on the CPU
    kept = {}
    student.denoiser.transformer_blocks[-1].register_forward_hook(lambda m, a, out: kept.update(image=out[1]))

    def loss(step):
        rng = _rng(cfg.seed, 3, step)
        pick = torch.from_numpy(rng.integers(len(pool["latents"]), size=recipe.batch))
        dropped = torch.from_numpy(rng.random(recipe.batch) < recipe.drop)[:, None]
        ids = [
            torch.where(dropped, e, pool[k][pick].long()).to(device) for k, e in zip(("clip", "t5"), empty, strict=True)
        ]
        x, sigma, velocity = _noisy(pool["latents"][pick].float().to(device), rng, cfg.stages.sigma)
        with torch.autocast(x.device.type, torch.bfloat16):
            predicted = student.velocity(x, sigma, student.text(*ids), torch.ones_like(sigma)).float()
            told = [head(kept["image"]).float() for head in student.heads]
        seen = pool["seen"][pick].long().to(device)
        mse = F.mse_loss(predicted, velocity)
        semantic = sum(F.cross_entropy(t.flatten(0, 1), seen[..., i].flatten()) for i, t in enumerate(told))
        return mse + recipe.semantics * semantic, {"mse": mse.detach(), "semantic": semantic.detach()}

    fit("denoiser", student, loss, steps=recipe.steps, lr=recipe.lr, muon=True, work=work)
    student.denoiser.transformer_blocks[-1]._forward_hooks.clear()
    return student


def distil_guidance(student: Student, pool: dict[str, Tensor], pipe, cfg, work: Path, device) -> None:
    """Teach the guidance embedding: at scale g the student's one pass gives v_empty + g (v_caption - v_empty) of its
    former self (Meng et al. 2023, arXiv:2210.03142, section 3.1), as FLUX.1-dev was distilled."""
    recipe = cfg.stages.guide
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    empty = [_ids(t, [""], cfg) for t in (pipe.tokenizer, pipe.tokenizer_2)]
    nothing = tuple(s.expand(recipe.batch, *s.shape[1:]) for s in teacher.text(*(e.to(device) for e in empty)))
    student.denoiser.requires_grad_(True)

    def loss(step):
        rng = _rng(cfg.seed, 4, step)
        pick = torch.from_numpy(rng.integers(len(pool["latents"]), size=recipe.batch))
        x, sigma, _ = _noisy(pool["latents"][pick].float().to(device), rng, cfg.stages.sigma)
        g = torch.from_numpy(rng.uniform(recipe.low, recipe.high, recipe.batch)).float().to(device)
        with torch.autocast(x.device.type, torch.bfloat16):
            with torch.no_grad():
                text = teacher.text(*(pool[k][pick].to(device) for k in ("clip", "t5")))
                both = tuple(torch.cat(pair) for pair in zip(nothing, text, strict=True))
                plain = torch.ones_like(sigma).repeat(2)
                without, with_ = teacher.velocity(x.repeat(2, 1, 1), sigma.repeat(2), both, plain).float().chunk(2)
            predicted = student.velocity(x, sigma, text, g).float()
        target = without + g[:, None, None] * (with_ - without)
        return F.mse_loss(predicted, target), {}

    fit("guide", student.denoiser, loss, steps=recipe.steps, lr=recipe.lr, decay_from=0.3, muon=True, work=work)


# ---------------------------------------------------------------------------------------------------------------------
# Judge and score


def train_judge(vae, cfg, work: Path):
    """Train the reader on rendered pictures, half of them through the VAE with noisy latents, so that it forgives the
    decoder's softness but not a wrong shape. Returns it with its accuracy on 1,000 held-out captions."""
    from .judge import Judge, check, judge_loss

    recipe, judge = cfg.stages.judge, Judge(cfg.stages.judge.width)

    def pictures(scenes, rng, strength):
        images, places, _ = world.render(scenes, rng)
        with torch.no_grad():
            latents = vae.encode(2 * images - 1).latent_dist.mode()
            noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32))
            level = strength * torch.from_numpy(rng.random((len(scenes), 1, 1, 1))).float() / vae.config.scaling_factor
            soft = vae.decode(latents + level * noise).sample.clamp(-1, 1) / 2 + 0.5
        return images, soft, places

    def loss(step):
        rng = _rng(cfg.seed, 5, step)
        scenes = world.draw_scenes(rng, recipe.batch, held=False)
        images, soft, places = pictures(scenes, rng, 0.3)
        half = recipe.batch // 2
        with torch.autocast("cpu", torch.bfloat16):
            return judge_loss(judge, torch.cat([images[:half], soft[half:]]), scenes, places), {}

    fit("judge", judge, loss, steps=recipe.steps, lr=recipe.lr, work=work, ema=0.99)
    rng = np.random.default_rng((cfg.seed, 6))
    scenes = world.draw_scenes(rng, 1000, held=True)
    images, soft, _ = pictures(scenes, rng, 0.0)
    facts = {"width": recipe.width, "held_out_captions": len(scenes)}
    for name, pictures_ in (("rendered", images), ("through_the_vae", soft)):
        rows = [check(s, seen) for s, seen in zip(scenes, judge.read(pictures_), strict=True)]
        facts[name] = {k: round(float(np.nanmean([r[k] for r in rows])), 4) for k in rows[0]}
    print("judge:", facts, flush=True)
    return judge, facts


@torch.no_grad()
def caption_score(pipe, judge, cfg) -> dict[str, float]:
    """Share of held-out captions that the pipeline's pictures follow, by the judge, at the model's guidance."""
    from .judge import check

    recipe, rng = cfg.stages.score, _rng(cfg.seed, 7, 0)
    scenes = world.draw_scenes(rng, recipe.captions, held=True)
    rows = []
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(scenes), 20):
        batch = scenes[start : start + 20]
        images = pipe(
            [str(s) for s in batch],
            height=world.SIDE,
            width=world.SIDE,
            num_inference_steps=recipe.steps,
            guidance_scale=cfg.guidance,
            max_sequence_length=cfg.text_tokens,
            generator=[torch.Generator().manual_seed(start + i) for i in range(len(batch))],
            output_type="pt",
        ).images
        rows += [check(s, seen) for s, seen in zip(batch, judge.read(images.float()), strict=True)]
    return {k: round(float(np.nanmean([r[k] for r in rows])), 4) for k in rows[0]} | {"captions": len(rows)}
