"""Pipelines that the repository has no word of, run by a model's YAML and nothing else: tiny, random, from a folder."""

from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import yaml
from helpers import composed, settings

from spectrum_bench.commands import run
from spectrum_bench.errors import UserError
from spectrum_bench.paths import ROOT
from spectrum_bench.sampling import media
from spectrum_bench.sampling import records as jobs
from spectrum_bench.sampling.models import load_pipeline
from spectrum_bench.sampling.settings import ModelSettings
from spectrum_bench.sampling.small import no_identity

pytestmark = pytest.mark.slow

HEADS = dict(num_attention_heads=2, attention_head_dim=16)
IMAGE_VAE = dict(block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4) | dict(
    down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, layers_per_block=1
)
FLOW = ("FlowMatchEulerDiscreteScheduler", {})
COG_VAE = dict(block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2) | dict(
    down_block_types=["CogVideoXDownBlock3D"] * 4, up_block_types=["CogVideoXUpBlock3D"] * 4
)
TWICE, FIVE = (True, True, False, False), (1, 1, 1, 1, 1)
LTX_VAE = dict(block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8), latent_channels=8) | dict(
    layers_per_block=FIVE,
    decoder_layers_per_block=FIVE,
    spatio_temporal_scaling=TWICE,
    decoder_spatio_temporal_scaling=TWICE,
    decoder_inject_noise=(False,) * 5,
    patch_size=1,
    patch_size_t=1,
)
CLIP = {"height": 64, "width": 64, "num_frames": 9, "guidance_scale": 3.0, "max_sequence_length": 16}
MODELS = {  # pipeline: scheduler, VAE, transformer, arguments of a call
    "BriaPipeline": (
        FLOW,
        ("AutoencoderKL", IMAGE_VAE | {"shift_factor": 0.0}),
        (
            "BriaTransformer2DModel",
            dict(in_channels=16, num_layers=2, num_single_layers=2, joint_attention_dim=128, axes_dims_rope=[4, 6, 6])
            | HEADS,
        ),
        {"height": 32, "width": 32, "guidance_scale": 3.0, "max_sequence_length": 16},
    ),
    "CogVideoXPipeline": (
        ("CogVideoXDDIMScheduler", {}),
        ("AutoencoderKLCogVideoX", COG_VAE),
        (
            "CogVideoXTransformer3DModel",
            dict(in_channels=4, out_channels=4, num_layers=2, text_embed_dim=128, time_embed_dim=16)
            | dict(max_text_seq_length=16, sample_width=8, sample_height=8, sample_frames=9)
            | HEADS,
        ),
        CLIP,
    ),
    "PixArtAlphaPipeline": (  # it has no callback_on_step_end
        ("DPMSolverMultistepScheduler", {}),
        ("AutoencoderKL", IMAGE_VAE),
        (
            "PixArtTransformer2DModel",
            dict(in_channels=4, out_channels=8, num_layers=2, caption_channels=128, cross_attention_dim=32)
            | dict(sample_size=4, norm_type="ada_norm_single")
            | HEADS,
        ),
        {"height": 32, "width": 32, "guidance_scale": 3.0, "max_sequence_length": 16, "use_resolution_binning": False},
    ),
    "LTXPipeline": (
        FLOW,
        ("AutoencoderKLLTXVideo", LTX_VAE),
        (
            "LTXVideoTransformer3DModel",
            dict(in_channels=8, out_channels=8, num_layers=2, cross_attention_dim=32, caption_channels=128) | HEADS,
        ),
        CLIP,
    ),
}


def save(name: str, folder: Path, parts: dict) -> None:
    """A pipeline with the text encoder of the miniature FLUX, as a folder that from_pretrained reads."""
    from transformers import AutoTokenizer, T5EncoderModel

    flux = ROOT / "assets/tiny/flux"
    parts |= {"text_encoder": T5EncoderModel.from_pretrained(flux / "text_encoder_2", dtype=torch.float32)}
    parts |= {"tokenizer": AutoTokenizer.from_pretrained(flux / "tokenizer_2")}
    getattr(diffusers, name)(**parts).save_pretrained(folder)


@pytest.mark.parametrize("name", MODELS)
def test_a_new_pipeline_runs_by_a_yaml(name, tmp_path):
    """Never skipping it gives the plain pipeline's pixels; Spectrum skips steps of it."""
    scheduler, vae, transformer, arguments = MODELS[name]
    torch.manual_seed(0)
    built = {
        part: getattr(diffusers, kind)(**config)
        for part, (kind, config) in dict(scheduler=scheduler, vae=vae, transformer=transformer).items()
    }
    no_identity(built["transformer"])
    save(name, tmp_path / "weights", built)
    (tmp_path / "p.txt").write_text("a red ring\na blue star\n")
    model = {"name": "new", "repo": str(tmp_path / "weights"), "init": "pretrained", "dtype": "float32"}
    model |= {"width": arguments["width"], "height": arguments["height"], "arguments": arguments}
    if video := "num_frames" in arguments:
        model |= {"fps": 8, "num_frames": arguments["num_frames"]}
    (tmp_path / "model").mkdir()
    (tmp_path / "model/new.yaml").write_text(yaml.safe_dump(model))
    words = [f"hydra.searchpath=[file://{tmp_path}]", "model=new", f"prompt_file={tmp_path}/p.txt", "warmup_samples=0"]
    words += [f"output_base_path={tmp_path}/out", "num_inference_steps=12", "device=cpu", "total_prompt_num=2"]
    found = {}
    for exp, extra in {"full": ["algo=reuse", "schedule=full"], "spectrum": ["algo=spectrum"]}.items():
        run.main(composed(*words, *extra, f"exp_name={exp}", config_name="video" if video else "base"))
        found[exp] = jobs.read_records(tmp_path / "out" / exp)
        assert len(found[exp]) == 2
    assert found["full"][0].nfe == 12 > found["spectrum"][0].nfe and found["spectrum"][0].cache_bytes > 0
    pipe = load_pipeline(ModelSettings.from_config(model), "cpu")
    record = found["full"][0]
    generator = torch.Generator().manual_seed(record.seed)
    with torch.no_grad():
        out = pipe(prompt=record.prompt, num_inference_steps=12, generator=generator, output_type="np", **arguments)[0]
    ours, skipped = (media.read(tmp_path / "out" / exp / found[exp][0].sample) for exp in found)
    assert np.array_equal(ours, (out[0] * 255).round().astype(np.uint8)) and not np.array_equal(ours, skipped)


def test_clips_without_a_pace_are_refused():
    with pytest.raises(UserError, match="model=tiny-wan has num_frames but no fps"):
        settings("model=tiny-wan", "~model.fps", config_name="video")


def test_weights_of_a_variant_are_loaded_by_its_name(random_pipe, tmp_path):
    random_pipe.save_pretrained(tmp_path, variant="fp16")
    model = ModelSettings("x", repo=str(tmp_path), dtype="float32", scheduler={"shift": 5.0}, variant="fp16")
    loaded = load_pipeline(model, "cpu")
    assert loaded.scheduler.config.shift == 5.0 != random_pipe.scheduler.config.shift
    assert torch.equal(loaded.transformer.x_embedder.weight, random_pipe.transformer.x_embedder.weight)
    with pytest.raises(UserError, match="cannot be loaded"):
        load_pipeline(replace(model, variant=None), "cpu")
