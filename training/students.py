"""Denoisers in training: the arguments of each architecture's call, and its noise.

A student gets captions and pictures exactly as in its pipeline: `encode_prompt` is the pipeline's own, and latents have
the scale that the pipeline removes before it decodes.
"""

from pathlib import Path

import diffusers
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from spectrum_bench.miniature import world
from spectrum_bench.paths import ROOT
from training import parts


class Student(nn.Module):
    """A denoiser and two heads on a middle block that read what a latent token shows. The text encoders are frozen.

    Subclasses say how captions become conditions and how the network is called. By default the model makes images, and
    the noise is that of rectified flow: x = (1 - level) data + level noise, and the target is noise - data.
    """

    grid = 8  # latent tokens along each side of a frame

    def __init__(self, pipe, call: dict, width: int):
        super().__init__()
        self.denoiser = parts.denoiser(pipe)
        kinds = (len(world.SHAPES) + 1, len(world.COLOURS) + 1)  # one more for the ground
        self.heads = nn.ModuleList(nn.Linear(width, n) for n in kinds)
        self._pipe, self._call = [pipe], call  # a list hides the pipeline's other parts from nn.Module

    @property
    def pipe(self):
        return self._pipe[0]

    @torch.no_grad()
    def conditions(self, captions: list[str]) -> dict[str, Tensor]:
        """The denoiser's text arguments, each (B, ...)."""
        raise NotImplementedError

    def predict(self, x: Tensor, level: Tensor, conditions: dict[str, Tensor], guidance: Tensor | None) -> Tensor:
        """The network's output for x at noise `level`, (B,) in (0, 1)."""
        raise NotImplementedError

    def watched(self, output) -> Tensor:
        """The watched block's output -> (B, tokens, width), its image tokens."""
        return output[1]

    def enter(self, pixels: Tensor) -> Tensor:
        """(B, F, 3, 64, 64) -> the layout that the VAE takes."""
        return pixels[:, 0]

    def whiten(self, z: Tensor) -> None:
        """Set the VAE's scale from raw latents z, so that `latents` have mean 0 and standard deviation 1."""
        scale, shift = round(float(1 / z.std()), 4), round(float(z.mean()), 4)
        self.pipe.vae.register_to_config(scaling_factor=scale, shift_factor=shift)

    def latents(self, pixels: Tensor) -> Tensor:
        """(B, F, 3, 64, 64) in [-1, 1] -> latents with mean 0 and standard deviation 1, in the VAE's layout (B, C,
        ...)."""
        z = self.pipe.vae.encode(self.enter(pixels)).latent_dist.mode()
        return (z - self.pipe.vae.config.shift_factor) * self.pipe.vae.config.scaling_factor

    def pack(self, latents: Tensor) -> Tensor:
        """`latents` -> the layout that the denoiser takes."""
        return latents

    def noisy(self, x0: Tensor, noise: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Input, target and weight of the squared error, at each sample's `level` in (0, 1)."""
        at = level.view(-1, *[1] * (x0.ndim - 1))
        return torch.lerp(x0, noise, at), noise - x0, torch.ones_like(level)


class FluxStudent(Student):
    @torch.no_grad()
    def conditions(self, captions):
        states, pooled, ids = self.pipe.encode_prompt(captions, max_sequence_length=self._call["max_sequence_length"])
        return {"encoder_hidden_states": states, "pooled_projections": pooled, "txt_ids": ids}

    def pack(self, latents):
        return self.pipe._pack_latents(latents, *latents.shape)  # (B, 64, 32)

    def predict(self, x, level, conditions, guidance):
        ids = self.pipe._prepare_latent_image_ids(1, self.grid, self.grid, x.device, torch.float32)
        return self.denoiser(x, timestep=level, guidance=guidance, img_ids=ids, **conditions).sample


class KontextStudent(FluxStudent):
    """Edits: the latents of the picture to be edited follow those of the sample, at ids that differ in the first axis
    (FLUX.1 Kontext, arXiv:2506.15742, section 3). `conditions` of its calls hold them as `before`, (B, 64, 32)."""

    def predict(self, x, level, conditions, guidance):
        text = {name: value for name, value in conditions.items() if name != "before"}
        ids = self.pipe._prepare_latent_image_ids(1, self.grid, self.grid, x.device, torch.float32)
        beside = ids + torch.tensor([1.0, 0.0, 0.0])
        both, at = torch.cat([x, conditions["before"]], 1), torch.cat([ids, beside])
        return self.denoiser(both, timestep=level, guidance=guidance, img_ids=at, **text).sample[:, : x.shape[1]]


class SD3Student(Student):
    @torch.no_grad()
    def conditions(self, captions):
        length = self._call["max_sequence_length"]
        states, _, pooled, _ = self.pipe.encode_prompt(
            captions, None, None, do_classifier_free_guidance=False, max_sequence_length=length
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled}

    def predict(self, x, level, conditions, guidance):
        return self.denoiser(x, timestep=1000 * level, **conditions).sample


class SDXLStudent(Student):
    """Predicts the noise of its scheduler's discrete diffusion. The weight 1 / alpha_bar makes its squared error that
    of v-prediction (Salimans & Ho 2022, arXiv:2202.00512, section 4). Without it high noise, where the model decides
    the layout, would hardly count."""

    MOST = 50.0  # largest weight

    @torch.no_grad()
    def conditions(self, captions):
        states, _, pooled, _ = self.pipe.encode_prompt(captions, do_classifier_free_guidance=False)
        sizes = torch.tensor([world.SIDE, world.SIDE, 0, 0, world.SIDE, world.SIDE], device=states.device)
        added = {"text_embeds": pooled, "time_ids": sizes.expand(len(captions), -1)}
        return {"encoder_hidden_states": states, "added_cond_kwargs": added}

    def pack(self, latents):  # SDXL's pipeline has no shift
        config = self.pipe.vae.config
        return latents + config.shift_factor * config.scaling_factor

    def noisy(self, x0, noise, level):
        alpha_bar = self.pipe.scheduler.alphas_cumprod.to(x0)[(1000 * level).long()]
        at = alpha_bar.view(-1, 1, 1, 1)
        return at.sqrt() * x0 + (1 - at).sqrt() * noise, noise, (1 / alpha_bar).clamp(max=self.MOST)

    def predict(self, x, level, conditions, guidance):
        return self.denoiser(x, (1000 * level).long(), **conditions).sample

    def watched(self, output):
        return output.flatten(2).transpose(1, 2)


class VideoStudent(Student):
    def enter(self, pixels):
        return pixels.transpose(1, 2)

    def watched(self, output):
        return output if isinstance(output, Tensor) else output[0]


class WanStudent(VideoStudent):
    @torch.no_grad()
    def conditions(self, captions):
        states, _ = self.pipe.encode_prompt(
            captions, do_classifier_free_guidance=False, max_sequence_length=self._call["max_sequence_length"]
        )
        return {"encoder_hidden_states": states}

    def whiten(self, z):
        mean, std = z.mean((0, 2, 3, 4)), z.std((0, 2, 3, 4))
        self.pipe.vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())

    def latents(self, pixels):
        z = self.pipe.vae.encode(self.enter(pixels)).latent_dist.mode()  # (B, 16, 3, 8, 8)
        config = self.pipe.vae.config
        mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1).to(z) for v in (config.latents_mean, config.latents_std))
        return (z - mean) / std

    def predict(self, x, level, conditions, guidance):
        return self.denoiser(x, timestep=1000 * level, **conditions).sample


class HunyuanStudent(VideoStudent):
    @torch.no_grad()
    def conditions(self, captions):
        states, pooled, mask = self.pipe.encode_prompt(
            captions,
            prompt_template=self._call["prompt_template"],
            max_sequence_length=self._call["max_sequence_length"],
        )
        return {"encoder_hidden_states": states, "pooled_projections": pooled, "encoder_attention_mask": mask}

    def whiten(self, z):
        self.pipe.vae.register_to_config(scaling_factor=round(float(1 / z.square().mean().sqrt()), 4))

    def latents(self, pixels):
        z = self.pipe.vae.encode(self.enter(pixels)).latent_dist.mode()  # (B, 4, 3, 16, 16)
        return z * self.pipe.vae.config.scaling_factor

    def predict(self, x, level, conditions, guidance):
        return self.denoiser(x, timestep=1000 * level, guidance=1000 * guidance, **conditions).sample


STUDENTS = {
    "FluxPipeline": FluxStudent,
    "FluxKontextPipeline": KontextStudent,
    "StableDiffusion3Pipeline": SD3Student,
    "StableDiffusionXLPipeline": SDXLStudent,
    "WanPipeline": WanStudent,
    "HunyuanVideoPipeline": HunyuanStudent,
}


def open_student(cfg) -> Student:
    """The shipped pipeline that a recipe starts from, its weights frozen, for a LoRA to be trained on it."""
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)
    Path(cfg.work).mkdir(parents=True, exist_ok=True)
    pipe = getattr(diffusers, cfg.pipeline).from_pretrained(ROOT / cfg.start, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    call = OmegaConf.to_container(cfg.call, resolve=True)
    return STUDENTS[cfg.pipeline](pipe, call, cfg.width).eval().requires_grad_(False)
