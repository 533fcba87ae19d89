"""Pipelines of newer models, small and random, with drawn embeddings in the place of their large text encoders: the
pipeline's own loop, guidance, scheduler and packing run as they are."""

import inspect
import re
from functools import cache
from types import SimpleNamespace

import diffusers
import pytest
import torch
import transformers
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from helpers import inventory, no_identity, settings
from PIL import Image

from spectrum_bench import schedules
from spectrum_bench.anatomy import ANATOMY
from spectrum_bench.caching.session import cached, denoisers
from spectrum_bench.commands.compose import build
from spectrum_bench.commands.entry import check_words
from spectrum_bench.errors import DoesNotFit
from spectrum_bench.paths import ROOT

STEPS = 8
SIZES = dict(num_attention_heads=2, attention_head_dim=16)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_gradients")]


def text(length: int, seed: int = 7) -> torch.Tensor:
    return torch.randn(1, length, 24, generator=torch.Generator().manual_seed(seed))


PICTURE = Image.new("RGB", (64, 64), (200, 30, 30))
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


def flux2_dev():
    pipe = diffusers.Flux2Pipeline(flow(), _vae(diffusers.AutoencoderKLFlux2), None, None, _flux2())
    return pipe, dict(prompt_embeds=text(5), guidance_scale=4.0)


def flux2_klein():
    pipe = diffusers.Flux2KleinPipeline(
        flow(), _vae(diffusers.AutoencoderKLFlux2), None, None, _flux2(guidance_embeds=False)
    )
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


def _wan(in_channels: int = 16, **config):
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
    return pipe, PAIR | dict(guidance_scale=3.5, num_frames=5, image=PICTURE)


def wan22_ti2v():
    """Each token has a time of its own."""
    parts = dict(tokenizer=None, text_encoder=None, vae=_wan_vae(), scheduler=_unipc(5.0))
    pipe = diffusers.WanPipeline(**parts, transformer=_wan(), expand_timesteps=True)
    return pipe, PAIR | dict(guidance_scale=5.0, num_frames=5)


def wan21_i2v():
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


def z_image_turbo():
    """No guidance, and one prompt alone."""
    pipe, arguments = z_image()
    return pipe, dict(prompt_embeds=arguments["prompt_embeds"], guidance_scale=0.0)


def _flux(**config):
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


def _vae(kind=diffusers.AutoencoderKL, **config):
    return kind(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        **config,
    ).eval()


POOLED = dict(prompt_embeds=text(5), pooled_prompt_embeds=text(1)[:, 0])


def flux_schnell():
    pipe = diffusers.FluxPipeline(flow(), _vae(), None, None, None, None, _flux())
    return pipe, POOLED | dict(guidance_scale=0.0)


def flux_kontext():
    """The given picture's tokens stand behind those of the picture to be made."""
    vae = _vae(shift_factor=0.0)
    pipe = diffusers.FluxKontextPipeline(flow(), vae, None, None, None, None, _flux(guidance_embeds=True))
    return pipe, POOLED | dict(guidance_scale=2.5, image=PICTURE, max_area=64 * 64, _auto_resize=False)


def sd35_medium():
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
    negative = dict(negative_prompt_embeds=text(5, seed=8), negative_pooled_prompt_embeds=text(1, seed=8)[:, 0])
    encoders = (None,) * 6
    pipe = diffusers.StableDiffusion3Pipeline(transformer, flow(shift=3.0), _vae(), *encoders)
    return pipe, POOLED | negative | dict(guidance_scale=4.5)


def qwen_image_edit():
    edit_plus.VAE_IMAGE_SIZE = edit_plus.CONDITION_IMAGE_SIZE = (
        64 * 64
    )  # it would make 1024 x 1024 of the picture given
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    ).eval()
    of, arguments = qwen_image()
    return diffusers.QwenImageEditPlusPipeline(flow(), vae, None, None, None, of.transformer), arguments | dict(
        image=[PICTURE]
    )


MAKERS = {
    "qwen-image": qwen_image,
    "flux2-dev": flux2_dev,
    "flux2-klein": flux2_klein,
    "z-image": z_image,
    "z-image-turbo": z_image_turbo,
    "flux-schnell": flux_schnell,
    "flux-kontext": flux_kontext,
    "sd3-5-medium": sd35_medium,
    "qwen-image-edit": qwen_image_edit,
    "cogvideox": cogvideox,
    "wan2-1-i2v": wan21_i2v,
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
    "spectrum": ["algo=spectrum", "algo.w=0.5", "schedule.warmup=2"],
    "taylorseer": ["algo=taylorseer", "site=last_block", "schedule.warmup=2"],
    "easycache": ["algo=easycache", "schedule.threshold=5"],
    "teacache": ["algo=teacache", "schedule.threshold=2"],
    "taylorseer on modules": ["algo=taylorseer", "schedule.warmup=2"],
    "seacache": ["algo=seacache", "schedule.threshold=3"],
    "freqca": ["algo=freqca"],
}
WANS = {"wan2-1-i2v", "wan2-2-t2v", "wan2-2-i2v", "wan2-2-ti2v"}
OLDER = {"flux-schnell", "flux-kontext", "sd3-5-medium"}  # denoisers of classes that the miniatures have too
KNOWN = {  # algorithm -> the models whose denoisers it knows; the others are refused
    "spectrum": set(MAKERS),
    "taylorseer": set(MAKERS),
    "easycache": set(MAKERS) - {"wan2-1-i2v", "wan2-2-i2v"},
    "teacache": WANS | OLDER,
    "taylorseer on modules": WANS | OLDER,
    "seacache": WANS | OLDER,
    "freqca": WANS | OLDER | {"flux2-dev", "flux2-klein"},
}
WAY_OUT = {
    "easycache": "output is no latent's shape",
    "teacache": "no timestep-modulated input is known",
    "taylorseer on modules": "site=last_block",
    "seacache": "no modulated tokens|without frequencies|needs none",
    "freqca": "use an algo without frequencies",
}


@cache
def plain(name: str) -> torch.Tensor:
    out = sampled(name)
    assert torch.isfinite(out).all()
    return out


@pytest.mark.parametrize(("algo", "name"), [(algo, name) for algo in WORDS for name in sorted(KNOWN[algo])])
def test_never_skipped_it_is_the_plain_pipeline(name, algo):
    expected, before = plain(name), [inventory(denoiser) for denoiser in denoisers(made(name)[0]).values()]
    assert torch.equal(under(name, algo, schedule=schedules.full)[0], expected)
    out, session = under(name, algo)
    assert len(session.computed_steps) < STEPS and not torch.equal(out, expected)
    assert [inventory(denoiser) for denoiser in denoisers(made(name)[0]).values()] == before


@pytest.mark.parametrize("name", MAKERS)
def test_a_b_a_gives_the_first_a_again(name):
    first, _ = under(name, "spectrum")
    assert not torch.equal(under(name, "spectrum", seed=3, prompt_embeds=_other(name))[0], first)
    assert torch.equal(under(name, "spectrum")[0], first)


def _other(name: str):
    given = made(name)[1]["prompt_embeds"]
    return [-one for one in given] if isinstance(given, list) else -given


@pytest.mark.parametrize(
    ("algo", "name"), [(algo, name) for algo in WORDS for name in sorted(set(MAKERS) - KNOWN[algo])]
)
def test_what_is_not_known_of_them_is_refused_with_the_way_out(name, algo):
    with pytest.raises(DoesNotFit, match=WAY_OUT[algo]):
        under(name, algo)
    assert torch.equal(sampled(name), plain(name))


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


def test_their_configurations_name_arguments_that_their_pipelines_take():
    for name in MAKERS:
        given = settings(f"model={name}").model
        taken = inspect.signature(type(made(name)[0]).__call__).parameters
        assert given.repo and set(given.arguments) <= set(taken), name


PAGE = (ROOT / "docs/models.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([\w-]+)` \|(.*)\|$", PAGE, re.MULTILINE))


def test_the_page_lists_the_models_that_there_are():
    listed = {path.stem for path in (ROOT / "configs/model").glob("*.yaml") if not path.stem.startswith("tiny-")}
    assert ROWS.keys() == listed


@pytest.mark.parametrize("name", MAKERS)
def test_the_page_tells_what_each_refuses(name):
    refused = {algo for algo in WORDS if name not in KNOWN[algo]}
    words = {"site=modules" if algo == "taylorseer on modules" else f"algo={algo}" for algo in refused}
    assert set(re.findall(r"`([^`]+)`", ROWS[name].split("|")[-1])) == words


def test_the_page_s_commands_name_keys_that_exist():
    commands = re.findall(r"`python src/text_to_(image|video)\.py ([^`]+)`", PAGE)
    assert len(commands) == len(ROWS)
    for kind, words in commands:
        check_words("video" if kind == "video" else "base", words.split())


def test_a_time_for_each_token_modulates_as_one_time_for_all_does():
    block = denoisers(made("wan2-2-ti2v")[0])["transformer"].blocks[0]
    draw = torch.Generator().manual_seed(0)
    hidden, times = torch.randn(1, 5, 32, generator=draw), torch.randn(1, 6, 32, generator=draw)
    tokens = ANATOMY["WanTransformer3DModel"].tokens
    shared = tokens(block, {"hidden_states": hidden, "temb": times})
    each = tokens(block, {"hidden_states": hidden, "temb": times[:, None].expand(1, 5, 6, 32)})
    assert shared.shape == hidden.shape and torch.equal(each, shared)
    torch.testing.assert_close(shared, block.norm1(hidden) * (1 + _row(block, times, 1)) + _row(block, times, 0))


def _row(block, times: torch.Tensor, row: int) -> torch.Tensor:
    return (block.scale_shift_table[0, row] + times[0, row])[None, None]
