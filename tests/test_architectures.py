"""The full-size models, without their weights: shapes on the meta device, and small copies that really run."""

import inspect
import json
from contextlib import ExitStack
from functools import cache, partial

import numpy as np
import pytest
import torch
from helpers import settings

from spectrum_bench import forecasters, schedules
from spectrum_bench.anatomy import stacked
from spectrum_bench.caching.session import cached, denoisers
from spectrum_bench.caching.sites.modules import Modules
from spectrum_bench.caching.sites.stack import LastBlock, StackResidual
from spectrum_bench.commands.accelerate import recognise
from spectrum_bench.commands.compose import build
from spectrum_bench.errors import UserError
from spectrum_bench.sampling import architectures
from spectrum_bench.sampling.architectures import architecture, random_pipeline
from spectrum_bench.sampling.counting import count
from spectrum_bench.sampling.inputs import Input
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.sampler import Observer, Sampler
from spectrum_bench.sampling.shapes import Counted
from spectrum_bench.sampling.small_parts import PICTURE
from spectrum_bench.sampling.steps import at_step_end

NAMES = sorted(p.stem for p in architectures.FOLDER.glob("*.json"))
SITES = {"last_block": LastBlock(), "stack_residual": StackResidual(), "modules": Modules()}
TAYLOR = partial(forecasters.taylor, order=1)


@cache
def full_size(name):
    return random_pipeline(name, dtype="bfloat16", device="meta")


def only_denoiser(name):
    return type("Pipe", (), denoisers(full_size(name)))()


def models(pipe):
    return {part: module for part, module in pipe.components.items() if isinstance(module, torch.nn.Module)}


def stored(module):
    """Elements that a checkpoint holds: parameters, shared ones once, and the buffers that are saved."""
    saved = module.state_dict().keys()
    tensors = [*module.parameters(), *(b for key, b in module.named_buffers() if key in saved)]
    return sum(t.numel() for t in tensors)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_parameter_counts_are_the_published_ones(name):
    pipe, published = full_size(name), architecture(name)["parameters"]
    assert models(pipe).keys() == published.keys()
    for part, module in models(pipe).items():
        assert all(t.is_meta for t in [*module.parameters(), *module.buffers()])
        within = published[part].get("within", 1e-3)  # files have headers
        assert stored(module) == pytest.approx(published[part]["count"], rel=within), part


@pytest.mark.slow
@pytest.mark.parametrize(
    "name,blocks",
    {
        "flux": {"transformer_blocks": 19, "single_transformer_blocks": 38},
        "sd3-5": {"transformer_blocks": 38},
        "sd3-5-medium": {"transformer_blocks": 24},
        "sdxl": {"down_blocks": 3, "up_blocks": 3},
        "hunyuan": {"transformer_blocks": 20, "single_transformer_blocks": 40},
        "wan14b": {"blocks": 40},
        "wan1-3b": {"blocks": 30},
        "chroma": {"transformer_blocks": 19, "single_transformer_blocks": 38},
        "flux-schnell": {"transformer_blocks": 19, "single_transformer_blocks": 38},
        "flux-kontext": {"transformer_blocks": 19, "single_transformer_blocks": 38},
        "qwen-image": {"transformer_blocks": 60},
        "qwen-image-edit": {"transformer_blocks": 60},
        "qwen-image-2-1": {"transformer_blocks": 32},
        "z-image": {"layers": 30},
        "z-image-turbo": {"layers": 30},
        "flux2-klein": {"transformer_blocks": 8, "single_transformer_blocks": 24},
        "flux2-dev": {"transformer_blocks": 8, "single_transformer_blocks": 48},
        "cogvideox": {"transformer_blocks": 42},
        "auraflow": {"joint_transformer_blocks": 4, "single_transformer_blocks": 32},
        "hunyuan1-5": {"transformer_blocks": 54},
        "hunyuan1-5-i2v": {"transformer_blocks": 54},
        "ltx-2": {"transformer_blocks": 48},
        "wan2-1-i2v": {"blocks": 40},
        "wan2-2-i2v": {"blocks": 40},
        "wan2-2-t2v": {"blocks": 40},
        "wan2-2-ti2v": {"blocks": 30},
    }.items(),
)
def test_number_of_blocks(name, blocks):
    networks = denoisers(full_size(name)).values()
    assert len(networks) == (2 if name in ("wan2-2-t2v", "wan2-2-i2v") else 1)
    for denoiser in networks:
        assert {stack: len(getattr(denoiser, stack)) for stack in blocks} == blocks
        assert (getattr(denoiser, "mid_block", None) is not None) == (name == "sdxl")


@pytest.mark.parametrize(
    "name,site,stand_ins",
    [  # stacks, their entry, and what the blocks alone read (ANATOMY's `unread` and `embedder`)
        ("flux", "last_block", 2 + 1 + 3),
        ("flux", "stack_residual", 2 + 1 + 2),
        ("flux", "modules", 19 * (3 + 4) + 38 * (3 + 1)),  # modules and the norms before them
        ("sd3-5", "last_block", 1 + 1 + 2),
        ("sd3-5", "stack_residual", 1 + 1 + 1),
        ("sd3-5", "modules", 37 * (3 + 4) + 2 + 3),  # the last block drops its text stream
        ("sdxl", "last_block", 3 + 1),
        ("sdxl", "stack_residual", 3 + 1),
        ("hunyuan", "last_block", 2 + 1 + 3),
        ("hunyuan", "stack_residual", 2 + 1 + 2),
        ("hunyuan", "modules", 20 * (3 + 4) + 40 * (3 + 1)),
        ("wan14b", "last_block", 1 + 1 + 3),
        ("wan14b", "stack_residual", 1 + 1 + 2),
        ("wan14b", "modules", 40 * (3 + 3)),
        ("wan1-3b", "last_block", 1 + 1 + 3),
        ("wan1-3b", "stack_residual", 1 + 1 + 2),
        ("wan1-3b", "modules", 30 * (3 + 3)),
    ],
)
def test_sites_attach_and_leave_nothing(name, site, stand_ins):
    pipe = only_denoiser(name)
    (denoiser,) = denoisers(pipe).values()

    def ours():
        return sum(type(m).__module__.startswith("spectrum_bench.caching.sites") for m in denoiser.modules())

    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in denoiser.modules())

    before = hooks()
    with cached(pipe, schedule=schedules.full, forecaster=TAYLOR, site=SITES[site], num_steps=50):
        assert ours() == stand_ins and hooks() > before
    assert ours() == 0 and hooks() == before


def test_a_site_that_does_not_know_the_model_leaves_nothing_either():
    pipe = only_denoiser("sdxl")
    with (
        pytest.raises(ValueError, match="per-module caching does not know"),
        cached(pipe, schedule=schedules.full, forecaster=TAYLOR, site=Modules(), num_steps=50),
    ):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())


def tensor(*shape):
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def time(batch):
    return torch.empty(batch, device="meta")


# What the pipeline hands to its denoiser, and the feature that is forecast then
CALLS = {
    "flux": (  # 1024 x 1024 pixels
        lambda: {
            "hidden_states": tensor(1, 4096, 64),
            "encoder_hidden_states": tensor(1, 512, 4096),
            "pooled_projections": tensor(1, 768),
            "timestep": time(1),
            "guidance": time(1),
            "img_ids": tensor(4096, 3),
            "txt_ids": tensor(512, 3),
        },
        (1, 4096, 3072),
    ),
    "sd3-5": (  # 1024 x 1024 pixels, both guidance branches in a batch
        lambda: {
            "hidden_states": tensor(2, 16, 128, 128),
            "encoder_hidden_states": tensor(2, 77 + 256, 4096),
            "pooled_projections": tensor(2, 2048),
            "timestep": time(2),
        },
        (2, 4096, 2432),
    ),
    "sdxl": (  # 1024 x 1024 pixels, both guidance branches in a batch
        lambda: {
            "sample": tensor(2, 4, 128, 128),
            "timestep": time(()),
            "encoder_hidden_states": tensor(2, 77, 2048),
            "added_cond_kwargs": {"text_embeds": tensor(2, 1280), "time_ids": tensor(2, 6)},
        },
        (2, 320, 128, 128),
    ),
    "hunyuan": (  # 544 x 960 pixels, 61 frames
        lambda: {
            "hidden_states": tensor(1, 16, 16, 68, 120),
            "encoder_hidden_states": tensor(1, 256, 4096),
            "encoder_attention_mask": torch.empty(1, 256, dtype=torch.long, device="meta"),
            "pooled_projections": tensor(1, 768),
            "timestep": time(1),
            "guidance": tensor(1),
        },
        (1, 32640, 3072),
    ),
    "wan14b": (  # 480 x 832 pixels, 81 frames, one guidance branch a call
        lambda: {
            "hidden_states": tensor(1, 16, 21, 60, 104),
            "encoder_hidden_states": tensor(1, 512, 4096),
            "timestep": time(1),
        },
        (1, 32760, 5120),
    ),
}
CALLS["chroma"] = (  # 1024 x 1024 pixels; its negative prompt is a call of its own
    lambda: {
        "hidden_states": tensor(1, 4096, 64),
        "encoder_hidden_states": tensor(1, 512, 4096),
        "timestep": time(1),
        "img_ids": tensor(4096, 3),
        "txt_ids": tensor(512, 3),
        "attention_mask": tensor(1, 4096 + 512),
    },
    (1, 4096, 3072),
)
CALLS["sd3-5-medium"] = (CALLS["sd3-5"][0], (2, 4096, 1536))
CALLS["wan1-3b"] = (CALLS["wan14b"][0], (1, 32760, 1536))
CALLS["flux-schnell"] = (  # its prompt has 256 tokens, and no guidance is embedded
    lambda: (
        CALLS["flux"][0]()
        | {"encoder_hidden_states": tensor(1, 256, 4096), "txt_ids": tensor(256, 3), "guidance": None}
    ),
    (1, 4096, 3072),
)
CALLS["flux-kontext"] = (  # the tokens of the given picture, 1024 x 1024 pixels too, stand behind the latent's
    lambda: CALLS["flux"][0]() | {"hidden_states": tensor(1, 2 * 4096, 64), "img_ids": tensor(2 * 4096, 3)},
    (1, 2 * 4096, 3072),
)
CALLS["qwen-image"] = (  # 1328 x 1328 pixels; its negative prompt is a call of its own
    lambda: {
        "hidden_states": tensor(1, 83 * 83, 64),
        "encoder_hidden_states": tensor(1, 40, 3584),
        "encoder_hidden_states_mask": None,
        "timestep": time(1),
        "img_shapes": [[(1, 83, 83)]],
    },
    (1, 83 * 83, 3072),
)
CALLS["qwen-image-edit"] = (  # 1024 x 1024 pixels; the tokens of the given picture stand behind the latent's
    lambda: (
        CALLS["qwen-image"][0]()
        | {"hidden_states": tensor(1, 2 * 4096, 64), "img_shapes": [[(1, 64, 64), (1, 64, 64)]]}
    ),
    (1, 2 * 4096, 3072),
)
CALLS["qwen-image-2-1"] = (  # 2048 x 2048 pixels; the prompt's tokens run with the picture's, and are not kept
    lambda: {
        "hidden_states": tensor(1, 128 * 128, 64),
        "encoder_hidden_states": tensor(1, 40, 4096),
        "timestep": time(1),
        "img_shapes": [[(1, 128, 128)]],
        "img_mask": torch.cat([torch.zeros(1, 40), torch.ones(1, 64 * 64)], 1).bool(),
    },
    (1, 128 * 128, 4096),
)
CALLS["z-image"] = CALLS[
    "z-image-turbo"
] = (  # 1024 x 1024 pixels, lists of samples and prompts; image and text are one
    lambda: {"x": [tensor(16, 1, 128, 128)], "t": time(1), "cap_feats": [tensor(40, 2560)]},
    (1, 4096 + 64, 3840),
)
CALLS["flux2-klein"] = (  # 1024 x 1024 pixels
    lambda: {
        "hidden_states": tensor(1, 4096, 128),
        "encoder_hidden_states": tensor(1, 512, 12288),
        "timestep": time(1),
        "guidance": None,
        "img_ids": tensor(1, 4096, 4),
        "txt_ids": tensor(1, 512, 4),
    },
    (1, 4096, 4096),
)
CALLS["flux2-dev"] = (
    lambda: CALLS["flux2-klein"][0]() | {"encoder_hidden_states": tensor(1, 512, 15360), "guidance": time(1)},
    (1, 4096, 6144),
)
CALLS["wan2-2-t2v"] = (  # 720 x 1280 pixels, 81 frames
    lambda: CALLS["wan14b"][0]() | {"hidden_states": tensor(1, 16, 21, 90, 160)},
    (1, 21 * 45 * 80, 5120),
)
CALLS["cogvideox"] = (  # 480 x 720 pixels, 49 frames, both guidance branches in a batch
    lambda: {
        "hidden_states": tensor(2, 13, 16, 60, 90),
        "encoder_hidden_states": tensor(2, 226, 4096),
        "timestep": time(2),
        "image_rotary_emb": (time((13 * 30 * 45, 64)), time((13 * 30 * 45, 64))),
    },
    (2, 13 * 30 * 45, 3072),
)
CALLS["hunyuan1-5"] = (  # 480 x 848 pixels, 121 frames; the text, the glyphs in it, and no picture
    lambda: {
        "hidden_states": tensor(1, 65, 31, 30, 53),
        "encoder_hidden_states": tensor(1, 1000, 3584),
        "encoder_attention_mask": tensor(1, 1000),
        "encoder_hidden_states_2": tensor(1, 256, 1472),
        "encoder_attention_mask_2": tensor(1, 256),
        "image_embeds": tensor(1, 729, 1152),
        "timestep": tensor(1),
    },
    (1, 31 * 30 * 53, 2048),
)
CALLS["hunyuan1-5-i2v"] = CALLS["hunyuan1-5"]  # the first frame is among the channels
CALLS["auraflow"] = (  # 1024 x 1024 pixels, both guidance branches in a batch
    lambda: {
        "hidden_states": tensor(2, 4, 128, 128),
        "encoder_hidden_states": tensor(2, 256, 2048),
        "timestep": time(2),
    },
    (2, 4096, 3072),
)
CALLS["wan2-1-i2v"] = (  # 480 x 832 pixels, 81 frames; the first frame is among the channels, and a text of its own
    lambda: (
        CALLS["wan14b"][0]()
        | {"hidden_states": tensor(1, 36, 21, 60, 104), "encoder_hidden_states_image": tensor(1, 257, 1280)}
    ),
    (1, 32760, 5120),
)
CALLS["wan2-2-i2v"] = (
    lambda: CALLS["wan14b"][0]() | {"hidden_states": tensor(1, 36, 21, 90, 160)},
    (1, 21 * 45 * 80, 5120),
)
CALLS["wan2-2-ti2v"] = (  # 704 x 1280 pixels, 121 frames, a time for each token
    lambda: CALLS["wan14b"][0]() | {"hidden_states": tensor(1, 48, 31, 44, 80), "timestep": time((1, 31 * 22 * 40))},
    (1, 31 * 22 * 40, 3072),
)
CALLS["ltx-2"] = (  # 512 x 768 pixels, 121 frames and their sound, both guidance branches in a batch
    lambda: {
        "hidden_states": tensor(2, 16 * 16 * 24, 128),
        "audio_hidden_states": tensor(2, 126, 128),
        "encoder_hidden_states": tensor(2, 1024, 3840),
        "audio_encoder_hidden_states": tensor(2, 1024, 3840),
        "timestep": time(2),
        "encoder_attention_mask": tensor(2, 1024),
        "audio_encoder_attention_mask": tensor(2, 1024),
        "num_frames": 16,
        "height": 16,
        "width": 24,
        "fps": 24.0,
        "audio_num_frames": 126,
    },
    (2, 16 * 16 * 24, 4096),
)
SECOND = {"ltx-2": (2, 126, 2048)}  # the sound, which is forecast beside the clip


def shapes_alone(name, site):
    """A computed step and a skipped one on the meta device (a gate would need numbers): the kept features."""
    pipe, (call, _) = only_denoiser(name), CALLS[name]
    part, denoiser = next(iter(denoisers(pipe).items()))  # the other network of wan2-2-t2v has the same shapes
    schedule = partial(schedules.mask, steps=[0])
    outputs = []
    counted = Counted(full_size(name))
    with (
        torch.no_grad(),
        counted,
        cached(pipe, schedule=schedule, forecaster=TAYLOR, site=site, num_steps=2) as session,
    ):
        for step in range(2):
            outputs.append(stacked(denoiser(**call(), return_dict=False)[0]))
            session.callback(None, step, None, {})
    assert session.computed_steps == [0]
    assert len({(out.shape, out.dtype) for out in outputs}) == 1
    histories = session.branches[(part, 0)].histories
    assert session.cache_bytes == sum(history.nbytes for history in histories.values())
    return {slot: [(tuple(row.shape), row.dtype) for row in h.features()] for slot, h in histories.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_is_forecast_at_the_full_size(name):
    kept = {"stack": CALLS[name][1]} | ({"second": SECOND[name]} if name in SECOND else {})
    assert shapes_alone(name, LastBlock()) == {slot: [(shape, torch.bfloat16)] for slot, shape in kept.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name,slots",
    [("flux", 19 * 4 + 38), ("sd3-5", 37 * 4 + 3), ("hunyuan", 20 * 4 + 40), ("wan14b", 40 * 3)],
)
def test_every_module_of_the_full_size_is_forecast(name, slots):
    kept = shapes_alone(name, Modules())
    assert len(kept) == slots and all(len(rows) == 1 for rows in kept.values())
    assert {shape[-1] for rows in kept.values() for shape, _ in rows} == {CALLS[name][1][-1]}


# ---------------------------------------------------------------------------------------------------------------------
# Small copies of the same files, run for real

CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP |= {"projection_dim": 32, "vocab_size": 2048}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 2048}
SMALL_LLM = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL_LLM |= {"num_key_value_heads": 1, "head_dim": 32, "vocab_size": 2048}
QWEN_VL = SMALL_LLM | {"rope_scaling": {"mrope_section": [4, 6, 6], "rope_type": "default"}}
QWEN_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
QWEN3 = SMALL_LLM | {"num_hidden_layers": 28}  # FLUX.2-klein takes layers 9, 18 and 27
VAE = {"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 4}
SMALLER = {
    "CLIPTextModel": CLIP,
    "CLIPTextModelWithProjection": CLIP,
    "CLIPVisionModelWithProjection": {key: value for key, value in CLIP.items() if key != "vocab_size"},
    "T5EncoderModel": T5,
    "UMT5EncoderModel": T5,
    "LlamaModel": SMALL_LLM | {"num_hidden_layers": 4},
    "Qwen2_5_VLTextModel": QWEN_VL,
    "Qwen3Model": QWEN3,
    "Qwen3ForCausalLM": QWEN3,
    "Qwen2_5_VLForConditionalGeneration": {
        "text_config": QWEN_VL,
        "vision_config": QWEN_VISION | {"fullatt_block_indexes": [1]},
    },
    "Qwen3VLForConditionalGeneration": {
        "text_config": QWEN_VL,
        "vision_config": QWEN_VISION | {"deepstack_visual_indexes": [1]},
    },
    "Mistral3ForConditionalGeneration": {
        "text_config": SMALL_LLM | {"model_type": "mistral", "num_hidden_layers": 32},
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": 32,
            "intermediate_size": 32,
            "head_dim": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
    },
    "Gemma3ForConditionalGeneration": {
        "text_config": SMALL_LLM | {"model_type": "gemma3_text"},
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 32}
        | {"num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 28, "vision_use_head": False},
    },
    "LTX2TextConnectors": {
        "caption_channels": 64,
        "text_proj_in_factor": 3,
        **{f"{kind}_connector_num_attention_heads": 4 for kind in ("video", "audio")},
        **{f"{kind}_connector_attention_head_dim": 16 for kind in ("video", "audio")},
        **{f"{kind}_connector_num_layers": 1 for kind in ("video", "audio")},
    },
    "LTX2VideoTransformer3DModel": {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "cross_attention_dim": 32,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 8,
        "audio_cross_attention_dim": 16,
        "caption_channels": 64,
    },
    "LTX2Vocoder": {"hidden_channels": 32},
    "AutoencoderKLLTX2Audio": {"num_res_blocks": 1},
    "AutoencoderKLLTX2Video": {
        "block_out_channels": [8, 16, 32, 64],
        "decoder_block_out_channels": [8, 16, 32],  # each half of the next, by upsample_factor
        "layers_per_block": [1] * 5,
        "decoder_layers_per_block": [1] * 4,
    },
    "SiglipVisionModel": {key: value for key, value in CLIP.items() if key not in ("vocab_size", "projection_dim")},
    "AutoencoderKL": VAE,
    "AutoencoderKLFlux2": VAE,
    "AutoencoderKLQwenImage": {"base_dim": 8, "num_res_blocks": 1},
    "AutoencoderKLQwenImage21": {"base_dim": 8, "decoder_base_dim": 8, "num_res_blocks": 1},
    "AutoencoderKLCogVideoX": VAE,
    "AutoencoderKLHunyuanVideo": VAE,
    "AutoencoderKLHunyuanVideo15": {"block_out_channels": [32, 32, 32, 32, 64], "layers_per_block": 1},
    "AutoencoderKLWan": {"base_dim": 8, "decoder_base_dim": 8, "num_res_blocks": 1},
    "FluxTransformer2DModel": {
        "num_layers": 1,
        "num_single_layers": 2,
        "num_attention_heads": 1,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 32,
    },
    "ChromaTransformer2DModel": {
        "num_layers": 1,
        "num_single_layers": 2,
        "num_attention_heads": 1,
        "joint_attention_dim": 64,
        "approximator_hidden_dim": 64,
    },
    "QwenImageTransformer2DModel": {"num_layers": 2, "num_attention_heads": 1, "joint_attention_dim": 64},
    "QwenImage21Transformer2DModel": {"num_layers": 2, "num_attention_heads": 1, "context_in_dim": 64},
    "ZImageTransformer2DModel": {
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 1,
        "n_kv_heads": 1,
        "dim": 128,
        "cap_feat_dim": 64,
    },
    "Flux2Transformer2DModel": {
        "num_layers": 1,
        "num_single_layers": 2,
        "num_attention_heads": 1,
        "joint_attention_dim": 3 * 64,
    },
    "CogVideoXTransformer3DModel": {"num_layers": 2, "num_attention_heads": 1, "text_embed_dim": 64},
    "AuraFlowTransformer2DModel": {
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "caption_projection_dim": 32,
        "joint_attention_dim": 64,
    },
    "SD3Transformer2DModel": {
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "caption_projection_dim": 32,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 64,
        "pos_embed_max_size": 16,
    },
    "UNet2DConditionModel": {
        "block_out_channels": [8, 16, 16],
        "attention_head_dim": [1, 2, 2],
        "transformer_layers_per_block": [1, 1, 2],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 64,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 32,
    },
    "HunyuanVideo15Transformer3DModel": {
        "num_layers": 2,
        "num_refiner_layers": 1,
        "num_attention_heads": 1,
        "text_embed_dim": 64,
        "text_embed_2_dim": 64,
        "image_embed_dim": 32,
        "target_size": 64,
    },
    "HunyuanVideoTransformer3DModel": {
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "rope_axes_dim": [4, 6, 6],
        "text_embed_dim": 64,
        "pooled_projection_dim": 32,
    },
    "WanTransformer3DModel": {
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "ffn_dim": 64,
        "text_dim": 64,
    },
}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """configs/architectures with fewer layers and channels, everything else as it is."""
    for name in NAMES:
        given = architecture(name)
        for config in given["parts"].values():
            config |= SMALLER.get(config["_class_name"], {})
            config |= {"image_dim": 32, "added_kv_proj_dim": 32} if config.get("image_dim") else {}  # Wan2.1 I2V
        (tmp_path / f"{name}.json").write_text(json.dumps(given))
    monkeypatch.setattr(architectures, "FOLDER", tmp_path)


PLAIN = ("guidance_scale", "stg_scale", "audio_stg_scale", "modality_scale", "audio_modality_scale")
GIVEN = {  # what a pipeline takes beside the prompt
    "LTX2Pipeline": {"num_frames": 9, "use_cross_timestep": False}
    | dict(zip(PLAIN, (4.0, 0.0, 0.0, 1.0, 1.0), strict=True)),
    "CogVideoXPipeline": {"num_frames": 9},  # of 5 it makes 8
    "FluxKontextPipeline": {"image": PICTURE, "max_area": 64 * 64, "_auto_resize": False},
    "WanImageToVideoPipeline": {"image": PICTURE},
    "HunyuanVideo15ImageToVideoPipeline": {"image": PICTURE},
    "QwenImageEditPlusPipeline": {"image": [PICTURE]},
}


def given(pipe):
    kind = type(pipe).__name__
    return ({"num_frames": 5} if "Video" in kind or "Wan" in kind else {}) | GIVEN.get(kind, {})


def draw(pipe, prompt="a red ring", **more):
    """Two steps at 64 x 64 pixels: frames, or one image, as numbers in 0..1."""
    arguments = {"num_inference_steps": 2, "output_type": "np"} | given(pipe) | more
    if "height" in inspect.signature(pipe.__call__).parameters:
        arguments |= {"height": 64, "width": 64}
    with ExitStack() as undo:
        done = arguments.pop("callback_on_step_end", None)
        arguments |= {} if done is None else at_step_end(pipe, done, undo)
        out = pipe(prompt=prompt, generator=torch.Generator().manual_seed(0), **arguments)
    return out.frames[0] if "frames" in out else out.images


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_small_copy_runs_through_the_unchanged_call(small, name):
    state = torch.get_rng_state()
    pipe = random_pipeline(name, dtype="float32", device="cpu")
    assert torch.equal(torch.get_rng_state(), state) and torch.get_default_dtype() == torch.float32
    picture = draw(pipe)
    opacity = name == "qwen-image-2-1"  # a fourth channel
    assert picture.shape == (given(pipe).get("num_frames", 1), 64, 64, 3 + opacity)
    assert np.isfinite(picture).all() and picture.std() > 0
    with cached(
        pipe,
        schedule=partial(schedules.mask, steps=[0]),
        forecaster=forecasters.reuse,
        site=LastBlock(),
        num_steps=2,
    ) as session:
        skipped = draw(pipe, callback_on_step_end=session.callback)
    first = [steps[0] for steps in session.networks.values()]  # of each network
    assert session.computed_steps == first and np.isfinite(skipped).all()
    torch.rand(1)
    assert np.array_equal(draw(random_pipeline(name, dtype="float32", device="cpu")), picture)


@pytest.mark.slow
def test_two_networks_are_foretold_as_they_run(small):
    """The second one warms up too, and the features of the first are let go: what is printed before the run."""
    words = ("model.width=64", "model.height=64", "model.num_frames=5", "num_inference_steps=12", "warmup_steps=2")
    given = settings("model=wan2-2-t2v", "model.init=random", "algo=spectrum", *words, config_name="video")
    algorithm, job, look = build(given), Job("one", 0, "a red ring", 0), Looking()
    cost = count(given, algorithm, job)
    pipe = random_pipeline("wan2-2-t2v", dtype="bfloat16", device="cpu", vae_dtype="float32")
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **given.model.scheduler)
    Sampler.of(pipe, algorithm, given).watch(job, [look])
    assert cost.starts == [steps[0] for steps in look.session.networks.values()] and len(cost.starts) == 2
    assert algorithm.computed_steps(12, cost.starts) == look.session.computed_steps
    assert cost.cache_bytes == look.session.cache_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    "name,words",
    [
        ("flux-kontext", ["+model.arguments._auto_resize=False", "model.arguments.max_area=4096"]),
        ("qwen-image-edit", []),
        ("qwen-image-2-1", []),
        ("wan2-1-i2v", ["model.num_frames=5"]),
        ("hunyuan1-5", ["model.num_frames=5"]),
        ("ltx-2", ["model.num_frames=9"]),
    ],
)
def test_what_goes_in_is_foretold_as_it_runs(small, tmp_path, monkeypatch, name, words):
    """A picture is encoded without weights, tokens are chosen by masks without numbers: the cache is as large as
    foretold."""
    monkeypatch.setattr("diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus.VAE_IMAGE_SIZE", 64 * 64)
    PICTURE.save(tmp_path / "picture.png")
    words = [*words, "model.width=64", "model.height=64", "num_inference_steps=4", "warmup_steps=2"]
    given = settings(f"model={name}", "model.init=random", "algo=spectrum", *words)
    inputs = tuple(Input(each, tmp_path / "picture.png", sha256="") for each in given.model.needs or ())
    job, algorithm, look = Job("one", 0, "a red ring", 0, inputs), build(given), Looking()
    cost = count(given, algorithm, job)
    Sampler.of(
        random_pipeline(name, dtype="bfloat16", device="cpu", vae_dtype=given.model.vae_dtype), algorithm, given
    ).watch(job, [look])
    assert cost.cache_bytes == look.session.cache_bytes > 0


class Looking(Observer):
    def step_done(self, session, step, latents):
        self.session = session


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes_are_those_of_from_pretrained(small, tmp_path, name, dtype):
    pipe = random_pipeline(name, dtype=dtype, device="cpu")
    for part, module in models(pipe).items():
        module.save_pretrained(tmp_path / "weights")
        loaded = type(module).from_pretrained(tmp_path / "weights", torch_dtype=getattr(torch, dtype))
        ours, theirs = (
            {key: t.dtype for key, t in [*m.named_parameters(), *m.named_buffers()]} for m in (module, loaded)
        )
        assert ours == theirs, part
        assert not module.training


def test_weights_are_made_in_their_dtype(small, monkeypatch):
    """A model that only fits once must not pass through float32 first."""
    made, reset = set(), torch.nn.Linear.reset_parameters
    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", lambda m: (made.add(m.weight.dtype), reset(m)))
    for name in ("flux", "hunyuan"):
        random_pipeline(name, dtype="bfloat16", device="cpu")
    assert made == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_runs(small, name):
    pipe = random_pipeline(name, dtype="float16" if name == "sdxl" else "bfloat16", device="cpu")
    assert np.isfinite(draw(pipe)).all()


def test_wan_keeps_its_norms_and_vae_in_float32(small):
    pipe = random_pipeline("wan14b", dtype="bfloat16", device="cpu", vae_dtype="float32")
    block = pipe.transformer.blocks[0]
    assert (block.attn1.to_q.weight.dtype, block.norm2.weight.dtype) == (torch.bfloat16, torch.float32)
    assert (pipe.vae.dtype, pipe.text_encoder.dtype) == (torch.float32, torch.bfloat16)


def test_the_llama_stand_in_leaves_tokens_after_the_template(small):
    """With none left the text refiner would divide by zero, and all that follows be NaN."""
    pipe = random_pipeline("hunyuan", dtype="float32", device="cpu")
    with torch.no_grad():
        embeddings, pooled, mask = pipe.encode_prompt("a red ring")
    assert embeddings.shape == (1, 256, 64) and mask.sum() > 0 and torch.isfinite(embeddings).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_tokenizers_take_the_real_lengths(name):
    pipe, parts = full_size(name), architecture(name)["parts"]
    for part, config in parts.items():
        if part.startswith("tokenizer"):
            assert getattr(pipe, part).model_max_length == config["model_max_length"]
            encoder = parts[part.replace("tokenizer", "text_encoder")]
            assert len(getattr(pipe, part)) < encoder.get("text_config", encoder)["vocab_size"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_finds_the_constants_of_its_own_model(name):
    """FLUX.1-Kontext has FLUX.1-dev's network; of what no configuration tells apart the shortest name is taken."""
    same = {"z-image-turbo": "z-image", "wan2-2-t2v": "wan14b"}
    assert recognise(full_size(name)) == same.get(name, name)


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(UserError, match=f"take one of {', '.join(NAMES)}"):
        random_pipeline("dalle", dtype="float32", device="meta")
