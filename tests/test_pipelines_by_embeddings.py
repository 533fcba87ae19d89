"""Pipelines of newer models, small and random, with drawn embeddings in the place of their large text encoders: the
pipeline's own loop, guidance, scheduler and packing run as they are."""

from functools import cache
from types import SimpleNamespace

import diffusers
import pytest
import torch
from helpers import inventory, no_identity, settings
from PIL import Image

from spectrum_bench import schedules
from spectrum_bench.caching.session import cached, denoisers
from spectrum_bench.commands.compose import build
from spectrum_bench.errors import DoesNotFit

STEPS = 8
SIZES = dict(num_attention_heads=2, attention_head_dim=16)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_gradients")]


def text(length: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(1, length, 24, generator=torch.Generator().manual_seed(seed))


PAIR = dict(prompt_embeds=text(5), negative_prompt_embeds=text(5, seed=8))


def flow(**config) -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(**config)


def qwen_image():
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, joint_attention_dim=24, axes_dims_rope=(4, 6, 6), **SIZES
    )
    masks = dict(prompt_embeds_mask=torch.ones(1, 5), negative_prompt_embeds_mask=torch.ones(1, 5))
    return diffusers.QwenImagePipeline(flow(), None, None, None, transformer), PAIR | masks | dict(true_cfg_scale=4.0)


def _flux2(**config):
    return diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 4, 4, 4),
        **SIZES,
        **config,
    )


def _flux2_vae():
    return diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
    ).eval()


def flux2_dev():
    pipe = diffusers.Flux2Pipeline(flow(), _flux2_vae(), None, None, _flux2())
    return pipe, dict(prompt_embeds=text(5), guidance_scale=4.0)


def flux2_klein():
    pipe = diffusers.Flux2KleinPipeline(flow(), _flux2_vae(), None, None, _flux2(guidance_embeds=False))
    return pipe, PAIR | dict(guidance_scale=4.0)


def z_image():
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


def cogvideox():
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


def _wan(in_channels: int = 16):
    return diffusers.WanTransformer3DModel(
        in_channels=in_channels,
        out_channels=16,
        text_dim=24,
        freq_dim=16,
        ffn_dim=48,
        num_layers=2,
        rope_max_seq_len=32,
        **SIZES,
    )


def _wan_vae():
    return diffusers.AutoencoderKLWan(base_dim=3, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()


def _unipc(shift: float):
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def wan22_t2v():
    parts = dict(tokenizer=None, text_encoder=None, vae=_wan_vae(), scheduler=_unipc(12.0))
    pipe = diffusers.WanPipeline(**parts, transformer=_wan(), transformer_2=_wan(), boundary_ratio=0.875)
    return pipe, PAIR | dict(guidance_scale=4.0, guidance_scale_2=3.0, num_frames=5)


def wan22_i2v():
    parts = dict(tokenizer=None, text_encoder=None, vae=_wan_vae(), scheduler=_unipc(5.0))
    pipe = diffusers.WanImageToVideoPipeline(**parts, transformer=_wan(36), transformer_2=_wan(36), boundary_ratio=0.9)
    return pipe, PAIR | dict(guidance_scale=3.5, num_frames=5, image=Image.new("RGB", (64, 64), (200, 30, 30)))


def wan22_ti2v():
    """Each token has a time of its own."""
    parts = dict(tokenizer=None, text_encoder=None, vae=_wan_vae(), scheduler=_unipc(5.0))
    pipe = diffusers.WanPipeline(**parts, transformer=_wan(), expand_timesteps=True)
    return pipe, PAIR | dict(guidance_scale=5.0, num_frames=5)


MAKERS = {
    "qwen-image": qwen_image,
    "flux2-dev": flux2_dev,
    "flux2-klein": flux2_klein,
    "z-image": z_image,
    "cogvideox": cogvideox,
    "wan2-2-t2v": wan22_t2v,
    "wan2-2-i2v": wan22_i2v,
    "wan2-2-ti2v": wan22_ti2v,
}


@cache
def made(name: str):
    """The pipeline and the arguments of its call."""
    torch.manual_seed(0)
    pipe, arguments = MAKERS[name]()
    for denoiser in denoisers(pipe).values():
        no_identity(denoiser.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe, arguments


def sampled(name: str, seed: int = 0, callback=None, **call) -> torch.Tensor:
    pipe, arguments = made(name)
    call = arguments | dict(height=64, width=64, num_inference_steps=STEPS) | call
    generator = torch.Generator().manual_seed(seed)
    given = dict(generator=generator, output_type="latent", callback_on_step_end=callback, return_dict=False)
    return pipe(**call, **given)[0]


@cache
def algorithm(algo: str):
    return build(settings(*WORDS[algo], f"num_inference_steps={STEPS}"))


def under(name: str, algo: str, schedule=None, **call):
    """Latents under an algorithm of configs/algo, and the session."""
    parts = algorithm(algo)
    schedule = schedule or parts.schedule
    with cached(
        made(name)[0], schedule=schedule, forecaster=parts.forecaster, site=parts.site, num_steps=STEPS
    ) as session:
        return sampled(name, callback=session.callback, **call), session


WORDS = {
    "spectrum": ["algo=spectrum", "algo.w=0.5"],
    "taylorseer": ["algo=taylorseer", "site=last_block", "schedule.warmup=2"],
    "easycache": ["algo=easycache", "schedule.threshold=5"],
    "teacache": ["algo=teacache", "schedule.threshold=2"],
    "taylorseer on modules": ["algo=taylorseer"],
    "seacache": ["algo=seacache", "schedule.threshold=3"],
    "freqca": ["algo=freqca"],
}
WANS = {"wan2-2-t2v", "wan2-2-i2v", "wan2-2-ti2v"}
KNOWN = {  # algorithm -> the models whose denoisers it knows; the others are refused
    "spectrum": set(MAKERS),
    "taylorseer": set(MAKERS),
    "easycache": set(MAKERS) - {"wan2-2-i2v"},
    "teacache": WANS,
    "taylorseer on modules": WANS,
    "seacache": WANS,
    "freqca": WANS | {"flux2-dev", "flux2-klein"},
}
WAY_OUT = {
    "easycache": "output is no latent's shape",
    "teacache": "no timestep-modulated input is known",
    "taylorseer on modules": "site=last_block",
    "seacache": "no modulated tokens|without frequencies|needs none",
    "freqca": "use an algo without frequencies",
}


@pytest.mark.parametrize(("algo", "name"), [(algo, name) for algo in WORDS for name in sorted(KNOWN[algo])])
def test_never_skipped_it_is_the_plain_pipeline_and_a_b_a(name, algo):
    pipe, _ = made(name)
    plain, before = sampled(name), [inventory(denoiser) for denoiser in denoisers(pipe).values()]
    assert torch.isfinite(plain).all()
    assert torch.equal(under(name, algo, schedule=schedules.full)[0], plain)
    first, session = under(name, algo)
    assert len(session.computed_steps) < STEPS and not torch.equal(first, plain)
    assert not torch.equal(under(name, algo, seed=3, prompt_embeds=_other(name))[0], first)
    assert torch.equal(under(name, algo)[0], first)
    assert [inventory(denoiser) for denoiser in denoisers(pipe).values()] == before


def _other(name: str):
    given = made(name)[1]["prompt_embeds"]
    return [-one for one in given] if isinstance(given, list) else -given


@pytest.mark.parametrize(
    ("algo", "name"), [(algo, name) for algo in WORDS for name in sorted(set(MAKERS) - KNOWN[algo])]
)
def test_what_is_not_known_of_them_is_refused_with_the_way_out(name, algo):
    with pytest.raises(DoesNotFit, match=WAY_OUT[algo]):
        under(name, algo)
    assert torch.isfinite(sampled(name)).all()


def test_a_denoiser_of_two_outputs_is_refused_where_one_is_cached():
    """LTX-2's gives a picture and a sound; a skipped step would give the picture alone."""

    class Sounding(torch.nn.Module):
        def forward(self, hidden_states, timestep, return_dict=True):
            return hidden_states, hidden_states

    parts, pipe = algorithm("easycache"), SimpleNamespace(transformer=Sounding())
    schedule, forecaster, site = schedules.full, parts.forecaster, parts.site
    with (
        pytest.raises(DoesNotFit, match="Sounding cannot be skipped: it gives more than one output"),
        cached(pipe, schedule=schedule, forecaster=forecaster, site=site, num_steps=STEPS),
    ):
        pipe.transformer(torch.zeros(1, 4), torch.ones(1), return_dict=False)
