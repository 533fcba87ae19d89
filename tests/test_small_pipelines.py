"""Whole pipelines beyond the miniatures' five, small and random: the text encoders and the VAE are those of the small
FLUX pipeline."""

from functools import cache

import diffusers
import pytest
import torch
from helpers import inventory, settings

from spectrum_bench.caching.session import cached
from spectrum_bench.commands.compose import build
from spectrum_bench.sampling.small import no_identity
from spectrum_bench.schedules import full

STEPS = 8
SIZES = dict(num_attention_heads=2, attention_head_dim=16)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_gradients")]


def chroma(flux, latent: int, text: int):
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=4 * latent,
        num_layers=2,
        num_single_layers=2,
        joint_attention_dim=text,
        axes_dims_rope=(4, 6, 6),
        approximator_num_channels=16,
        approximator_hidden_dim=32,
        approximator_layers=1,
        **SIZES,
    )
    return diffusers.ChromaPipeline(flux.scheduler, flux.vae, flux.text_encoder_2, flux.tokenizer_2, transformer)


def auraflow(flux, latent: int, text: int):
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=latent,
        out_channels=latent,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        joint_attention_dim=text,
        caption_projection_dim=32,
        pos_embed_max_size=256,
        **SIZES,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73)
    return diffusers.AuraFlowPipeline(flux.tokenizer_2, flux.text_encoder_2, flux.vae, transformer, scheduler)


MAKERS = {"chroma": chroma, "auraflow": auraflow}


@pytest.fixture(scope="module")
def pipes(random_pipe):
    @cache
    def make(name: str):
        torch.manual_seed(0)
        latent, text = random_pipe.vae.config.latent_channels, random_pipe.text_encoder_2.config.d_model
        pipe = MAKERS[name](random_pipe, latent, text)
        pipe.transformer.eval()
        no_identity(pipe.transformer)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


def sampled(pipe, prompt="a red ring", seed=0, callback=None):
    return pipe(
        prompt,
        height=64,
        width=64,
        guidance_scale=3.0,
        max_sequence_length=16,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        callback_on_step_end=callback,
        return_dict=False,
    )[0]


def under(pipe, words, schedule=None, **call):
    """Latents under an algorithm of configs/algo, and the session."""
    algorithm = build(settings(*words, f"num_inference_steps={STEPS}"))
    parts = {"schedule": schedule or algorithm.schedule, "forecaster": algorithm.forecaster, "site": algorithm.site}
    with cached(pipe, **parts, num_steps=STEPS) as session:
        return sampled(pipe, callback=session.callback, **call), session


WORDS = {
    "spectrum": ["algo=spectrum", "algo.w=0.5"],
    "taylorseer": ["algo=taylorseer", "site=last_block", "schedule.warmup=2"],
    "easycache": ["algo=easycache", "schedule.threshold=5"],
    "hindsight": ["algo=hindsight", "algo.passes=4"],
}


@pytest.mark.parametrize("algo", WORDS)
@pytest.mark.parametrize("name", MAKERS)
def test_never_skipped_it_is_the_plain_pipeline_and_a_b_a(pipes, name, algo):
    pipe, words = pipes(name), WORDS[algo]
    plain, before = sampled(pipe), inventory(pipe.transformer)
    assert torch.isfinite(plain).all()
    assert torch.equal(under(pipe, words, schedule=full)[0], plain)
    first, session = under(pipe, words)
    assert len(session.computed_steps) < STEPS and not torch.equal(first, plain)
    assert not torch.equal(under(pipe, words, prompt="a blue star", seed=3)[0], first)
    assert torch.equal(under(pipe, words)[0], first) and inventory(pipe.transformer) == before


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    ("words", "way_out"),
    [(["algo=teacache"], "TeaCache|modulated"), (["algo=taylorseer"], "site=last_block")],
)
def test_what_is_not_known_of_them_is_refused_with_the_way_out(pipes, name, words, way_out):
    with pytest.raises(ValueError, match=way_out):
        under(pipes(name), words)
    assert torch.isfinite(sampled(pipes(name))).all()


@pytest.mark.parametrize("name", MAKERS)
def test_their_configurations_compose(name):
    given = settings(f"model={name}", "algo=spectrum")
    assert given.model.repo and build(given).name == "spectrum"
    assert set(given.model.arguments) == {"height", "width", "guidance_scale", "max_sequence_length"}
