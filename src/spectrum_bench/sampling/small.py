"""Pipelines of diffusers, small and random, with drawn embeddings in the place of their large text encoders: the
pipeline's own loop, guidance, scheduler and packing run as they are, in a fraction of a second on a CPU. They are for
plumbing, never for quality."""

from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from torch import nn

from spectrum_bench.caching.session import denoisers
from spectrum_bench.sampling.small_hunyuan import hunyuan, hunyuan15, hunyuan15_i2v
from spectrum_bench.sampling.small_ltx2 import ltx2
from spectrum_bench.sampling.small_parts import PAIR, PICTURE, POOLED, POOLED_PAIR, SIZES, Small, flow, text


def _qwen(**config: Any) -> Any:
    return diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
        **SIZES,
        **config,
    )


def qwen_image() -> Small:
    masks = dict(prompt_embeds_mask=torch.ones(1, 5), negative_prompt_embeds_mask=torch.ones(1, 5))
    return diffusers.QwenImagePipeline(flow(), None, None, None, _qwen()), PAIR | masks | dict(true_cfg_scale=4.0)


def _flux2(**config: Any) -> Any:
    return diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 4, 4, 4),
        **SIZES,
        **config,
    )


def flux2_dev() -> Small:
    pipe = diffusers.Flux2Pipeline(flow(), _vae(diffusers.AutoencoderKLFlux2), None, None, _flux2())
    return pipe, dict(prompt_embeds=text(5), guidance_scale=4.0)


def flux2_klein() -> Small:
    pipe = diffusers.Flux2KleinPipeline(
        flow(), _vae(diffusers.AutoencoderKLFlux2), None, None, _flux2(guidance_embeds=False)
    )
    return pipe, PAIR | dict(guidance_scale=4.0)


def z_image() -> Small:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=24,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):  # else uninitialised memory
        token.data.fill_(1)
    embeddings = dict(prompt_embeds=[text(40)[0]], negative_prompt_embeds=[text(20)[0]])
    pipe = diffusers.ZImagePipeline(flow(), None, None, None, transformer)
    return pipe, embeddings | dict(guidance_scale=4.0)


def cogvideox() -> Small:
    transformer = diffusers.CogVideoXTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        text_embed_dim=24,
        time_embed_dim=16,
        max_text_seq_length=5,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        **SIZES,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler()
    pipe = diffusers.CogVideoXPipeline(None, None, None, transformer, scheduler)
    return pipe, PAIR | dict(guidance_scale=6.0, num_frames=5)


def _wan(in_channels: int = 16, **config: Any) -> Any:
    return diffusers.WanTransformer3DModel(
        in_channels=in_channels,
        out_channels=16,
        text_dim=24,
        freq_dim=16,
        ffn_dim=48,
        num_layers=2,
        rope_max_seq_len=32,
        **SIZES,
        **config,
    )


def _wan_vae() -> Any:
    return diffusers.AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()


def _unipc(shift: float) -> Any:
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def wan() -> Small:
    """Wan2.1, text to video."""
    parts = dict(tokenizer=None, text_encoder=None, vae=_wan_vae(), scheduler=_unipc(3.0))
    return diffusers.WanPipeline(**parts, transformer=_wan()), PAIR | dict(guidance_scale=5.0, num_frames=5)


def wan22_t2v() -> Small:
    parts = dict(tokenizer=None, text_encoder=None, vae=_wan_vae(), scheduler=_unipc(12.0))
    pipe = diffusers.WanPipeline(**parts, transformer=_wan(), transformer_2=_wan(), boundary_ratio=0.875)
    return pipe, PAIR | dict(guidance_scale=4.0, guidance_scale_2=3.0, num_frames=5)


def wan22_i2v() -> Small:
    parts = dict(tokenizer=None, text_encoder=None, vae=_wan_vae(), scheduler=_unipc(5.0))
    pipe = diffusers.WanImageToVideoPipeline(**parts, transformer=_wan(36), transformer_2=_wan(36), boundary_ratio=0.9)
    return pipe, PAIR | dict(guidance_scale=3.5, num_frames=5, image=PICTURE)


def wan22_ti2v() -> Small:
    """Each token has a time of its own."""
    parts = dict(tokenizer=None, text_encoder=None, vae=_wan_vae(), scheduler=_unipc(5.0))
    pipe = diffusers.WanPipeline(**parts, transformer=_wan(), expand_timesteps=True)
    return pipe, PAIR | dict(guidance_scale=5.0, num_frames=5)


def wan21_i2v() -> Small:
    """An image encoder beside the first frame."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    parts = dict(tokenizer=None, text_encoder=None, vae=_wan_vae(), scheduler=_unipc(3.0))
    parts |= dict(image_encoder=transformers.CLIPVisionModel(vision).eval())
    parts |= dict(image_processor=transformers.CLIPImageProcessor(size=32, crop_size=32))
    transformer = _wan(36, image_dim=16, added_kv_proj_dim=32)
    pipe = diffusers.WanImageToVideoPipeline(**parts, transformer=transformer)
    return pipe, PAIR | dict(guidance_scale=5.0, num_frames=5, image=PICTURE)


def z_image_turbo() -> Small:
    """No guidance, and one prompt alone."""
    pipe, arguments = z_image()
    return pipe, dict(prompt_embeds=arguments["prompt_embeds"], guidance_scale=0.0)


def _flux(**config: Any) -> Any:
    return diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        joint_attention_dim=24,
        pooled_projection_dim=24,
        axes_dims_rope=(4, 6, 6),
        **SIZES,
        **config,
    )


def _vae(kind: Any = diffusers.AutoencoderKL, **config: Any) -> Any:
    return kind(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        **config,
    ).eval()


def flux() -> Small:
    """FLUX.1-dev; with true_cfg_scale above 1 a step has two calls."""
    pipe = diffusers.FluxPipeline(flow(), _vae(), None, None, None, None, _flux(guidance_embeds=True))
    return pipe, POOLED_PAIR | dict(guidance_scale=3.5, true_cfg_scale=4.0)


def flux_schnell() -> Small:
    pipe = diffusers.FluxPipeline(flow(), _vae(), None, None, None, None, _flux())
    return pipe, POOLED | dict(guidance_scale=0.0)


def flux_kontext() -> Small:
    """The given picture's tokens stand behind those of the picture to be made."""
    vae = _vae(shift_factor=0.0)
    pipe = diffusers.FluxKontextPipeline(flow(), vae, None, None, None, None, _flux(guidance_embeds=True))
    return pipe, POOLED | dict(guidance_scale=2.5, image=PICTURE, max_area=64 * 64, _auto_resize=False)


def sd35_medium() -> Small:
    """Its first block has a second attention, on the picture alone."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=24,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
        **SIZES,
    )
    encoders = (None,) * 6
    pipe = diffusers.StableDiffusion3Pipeline(transformer, flow(shift=3.0), _vae(), *encoders)
    return pipe, POOLED_PAIR | dict(guidance_scale=4.5)


def qwen_image_edit() -> Small:
    """The tokens of the given picture have time 0."""
    edit_plus.VAE_IMAGE_SIZE = edit_plus.CONDITION_IMAGE_SIZE = 64 * 64  # else the picture becomes 1024 x 1024
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    ).eval()
    pipe = diffusers.QwenImageEditPlusPipeline(flow(), vae, None, None, None, _qwen(zero_cond_t=True))
    return pipe, qwen_image()[1] | dict(image=[PICTURE])


def qwen_image21() -> Small:
    """What attends to the prompt is kept from the first step on."""
    transformer = diffusers.QwenImage21Transformer2DModel(
        in_channels=4, out_channels=4, num_layers=2, context_in_dim=24, axes_dims_rope=(4, 6, 6), mlp_ratio=2, **SIZES
    )
    return diffusers.QwenImage21Pipeline(flow(), None, None, _Talk(), transformer), PAIR | dict(true_cfg_scale=4.0)


class _Talk:
    """In the place of a processor whose templates the pipeline measures."""

    def __init__(self) -> None:
        self.tokenizer = self

    def apply_chat_template(self, *given: Any, **options: Any) -> list[list[int]]:
        return [[0]]

    def encode(self, text: str) -> list[int]:
        return [0]


MAKERS = {
    "flux": flux,
    "wan": wan,
    "hunyuan": hunyuan,
    "qwen-image": qwen_image,
    "flux2-dev": flux2_dev,
    "flux2-klein": flux2_klein,
    "z-image": z_image,
    "z-image-turbo": z_image_turbo,
    "flux-schnell": flux_schnell,
    "flux-kontext": flux_kontext,
    "sd3-5-medium": sd35_medium,
    "qwen-image-edit": qwen_image_edit,
    "qwen-image-2-1": qwen_image21,
    "cogvideox": cogvideox,
    "ltx-2": ltx2,
    "hunyuan1-5": hunyuan15,
    "hunyuan1-5-i2v": hunyuan15_i2v,
    "wan2-1-i2v": wan21_i2v,
    "wan2-2-t2v": wan22_t2v,
    "wan2-2-i2v": wan22_i2v,
    "wan2-2-ti2v": wan22_ti2v,
}


def no_identity(denoiser: nn.Module) -> None:
    """Undo adaLN-Zero, under which a new block is the identity."""
    for parameter in denoiser.parameters():
        if parameter.ndim >= 2:
            nn.init.xavier_uniform_(parameter)


def small_pipeline(name: str) -> Small:
    """One of MAKERS with weights that are the same each time, and the arguments of its call."""
    torch.manual_seed(0)
    pipe, arguments = MAKERS[name]()
    for denoiser in denoisers(pipe).values():
        no_identity(denoiser.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe, arguments
