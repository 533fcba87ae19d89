"""Denoisers beyond the five, tiny and random: diffusers' block registry tells enough, or one entry in anatomy.py does.

Each is called as a pipeline calls it, step by step. To try another class, add it to MODELS.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers.hooks._helpers import TransformerBlockRegistry
from helpers import inventory
from torch import Tensor, nn

from spectrum_bench import forecasters, schedules
from spectrum_bench.anatomy import ANATOMY, stacks
from spectrum_bench.caching.session import cached
from spectrum_bench.caching.sites.stack import LastBlock, StackResidual
from spectrum_bench.sampling.small import no_identity

STEPS = 4
MASK = partial(schedules.mask, steps=[0, 1])
FORECASTERS = {"taylor": partial(forecasters.taylor, order=1), "reuse": forecasters.reuse}
SITES = {"last_block": LastBlock(), "stack_residual": StackResidual()}


@dataclass(frozen=True)
class Case:
    """One class of denoiser, small.

    Attributes:
        inputs: (latent, text, t) -> forward's arguments. `latent` and `text` draw a tensor of a shape, the latent anew
            at every step; t falls from 1 towards 0.
        epilogue: the module that first reads what the blocks gave.
        feature: shape of what is cached. No other tensor that the first block gets has it.
    """

    config: dict
    inputs: Callable[..., dict]
    epilogue: str
    feature: tuple[int, ...]


def ids(count: int, axes: int) -> Tensor:
    return torch.arange(count)[:, None] * torch.ones(axes)


def cosmos(latent, text, t) -> dict:
    """One packed sequence: 5 text tokens, then 2 frames of 2 x 2 patches, all noisy."""
    return dict(
        input_ids=torch.arange(5),
        text_indexes=torch.arange(5),
        position_ids=torch.arange(13).expand(3, 13),
        und_len=5,
        sequence_length=13,
        vision_tokens=[latent(1, 4, 2, 4, 4)],
        vision_token_shapes=[(2, 2, 2)],
        vision_sequence_indexes=torch.arange(5, 13),
        vision_mse_loss_indexes=torch.arange(5, 13),
        vision_timesteps=1000 * t.expand(8),
        vision_noisy_frame_indexes=[torch.arange(2)],
    )


def latte(latent, text, t) -> dict:
    """Frame and patch change places between its blocks: as many of one as of the other, so that no shape tells."""
    return dict(
        hidden_states=latent(1, 4, 4, 4, 4),
        encoder_hidden_states=text(1, 5, 24),
        encoder_attention_mask=None,
        timestep=1000 * t,
    )


def motif(latent, text, t) -> dict:
    return dict(hidden_states=latent(1, 4, 2, 4, 6), timestep=1000 * t, encoder_hidden_states=text(1, 5, 24))


TWO_HEADS = dict(num_attention_heads=2, attention_head_dim=16)
HUNYUAN = dict(num_layers=2, num_single_layers=1, num_refiner_layers=1, text_embed_dim=24) | TWO_HEADS
MOTIF = (
    dict(in_channels=4, out_channels=4, num_layers=2, num_single_layers=3, text_embed_dim=24, rope_axes_dim=(4, 6, 6))
    | TWO_HEADS
)

MODELS = {
    "QwenImageTransformer2DModel": Case(
        dict(in_channels=16, out_channels=4, num_layers=2, joint_attention_dim=24, axes_dims_rope=(4, 6, 6))
        | TWO_HEADS,
        lambda latent, text, t: dict(
            hidden_states=latent(2, 12, 16),
            encoder_hidden_states=text(2, 5, 24),
            encoder_hidden_states_mask=torch.ones(2, 5),
            timestep=t.expand(2),
            img_shapes=[[(1, 3, 4)]] * 2,
        ),
        "norm_out",
        (2, 12, 32),
    ),
    "CogVideoXTransformer3DModel": Case(
        dict(in_channels=4, out_channels=4, num_layers=2, text_embed_dim=24, time_embed_dim=16, max_text_seq_length=5)
        | dict(sample_width=8, sample_height=8, sample_frames=5)
        | TWO_HEADS,
        lambda latent, text, t: dict(
            hidden_states=latent(2, 2, 4, 8, 8), encoder_hidden_states=text(2, 5, 24), timestep=1000 * t.expand(2)
        ),
        "norm_final",
        (2, 32, 32),
    ),
    "LTXVideoTransformer3DModel": Case(
        dict(in_channels=8, out_channels=8, num_layers=2, cross_attention_dim=32, caption_channels=24) | TWO_HEADS,
        lambda latent, text, t: dict(
            hidden_states=latent(2, 24, 8),
            encoder_hidden_states=text(2, 5, 24),
            encoder_attention_mask=torch.ones(2, 5),
            timestep=1000 * t.expand(2),
            num_frames=2,
            height=3,
            width=4,
        ),
        "norm_out",
        (2, 24, 32),
    ),
    "Flux2Transformer2DModel": Case(  # its single blocks run on text and image in one stream
        dict(in_channels=16, num_layers=2, num_single_layers=2, joint_attention_dim=24, axes_dims_rope=(4, 4, 4, 4))
        | TWO_HEADS,
        lambda latent, text, t: dict(
            hidden_states=latent(2, 12, 16),
            encoder_hidden_states=text(2, 5, 24),
            timestep=t.expand(2),
            guidance=torch.ones(2),
            img_ids=ids(12, 4),
            txt_ids=ids(5, 4),
        ),
        "norm_out",
        (2, 12, 32),
    ),
    "ZImageTransformer2DModel": Case(  # 12 image tokens padded to 32, then text padded to 64: the epilogue gets all
        dict(in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=24)
        | dict(axes_dims=[4, 6, 6], axes_lens=[256, 32, 32]),
        lambda latent, text, t: dict(
            x=list(latent(2, 4, 1, 6, 8)), t=t.expand(2), cap_feats=[text(40, 24), text(20, 24)]
        ),
        "all_final_layer.2-1",
        (2, 96, 32),
    ),
    "CogView4Transformer2DModel": Case(
        dict(in_channels=4, out_channels=4, num_layers=2, text_embed_dim=24, time_embed_dim=16, condition_dim=4)
        | TWO_HEADS,
        lambda latent, text, t: dict(
            hidden_states=latent(2, 4, 8, 8),
            encoder_hidden_states=text(2, 5, 24),
            timestep=1000 * t.expand(2),
            original_size=64 * torch.ones(2, 2),
            target_size=64 * torch.ones(2, 2),
            crop_coords=torch.zeros(2, 2),
        ),
        "norm_out",
        (2, 16, 32),
    ),
    "HunyuanImageTransformer2DModel": Case(
        dict(in_channels=8, out_channels=8, rope_axes_dim=(8, 8)) | HUNYUAN,
        lambda latent, text, t: dict(
            hidden_states=latent(2, 8, 3, 4),
            timestep=1000 * t.expand(2),
            encoder_hidden_states=text(2, 5, 24),
            encoder_attention_mask=torch.ones(2, 5),
        ),
        "norm_out",
        (2, 12, 32),
    ),
    "HunyuanVideoTransformer3DModel": Case(  # from an image: other blocks than test_pipelines.py has
        dict(in_channels=4, out_channels=4, rope_axes_dim=(4, 6, 6), pooled_projection_dim=8, guidance_embeds=False)
        | dict(image_condition_type="token_replace")
        | HUNYUAN,
        lambda latent, text, t: dict(
            hidden_states=latent(2, 4, 2, 4, 6),
            timestep=1000 * t.expand(2),
            encoder_hidden_states=text(2, 5, 24),
            encoder_attention_mask=torch.ones(2, 5),
            pooled_projections=text(2, 8),
        ),
        "norm_out",
        (2, 12, 32),
    ),
    "MochiTransformer3DModel": Case(
        dict(in_channels=4, num_layers=2, pooled_projection_dim=8, text_embed_dim=24, time_embed_dim=8) | TWO_HEADS,
        lambda latent, text, t: dict(
            hidden_states=latent(2, 4, 2, 4, 6),
            encoder_hidden_states=text(2, 5, 24),
            timestep=1000 * t.expand(2),
            encoder_attention_mask=torch.ones(2, 5),
        ),
        "norm_out",
        (2, 12, 32),
    ),
    "Kandinsky5Transformer3DModel": Case(  # text has blocks of its own, which run at every step
        dict(in_text_dim=24, in_text_dim2=8, time_dim=16, model_dim=32, ff_dim=64, num_text_blocks=1)
        | dict(num_visual_blocks=2, axes_dims=(4, 6, 6)),
        lambda latent, text, t: dict(
            hidden_states=latent(2, 2, 4, 6, 4),
            encoder_hidden_states=text(2, 5, 24),
            timestep=1000 * t.expand(2),
            pooled_projections=text(2, 8),
            visual_rope_pos=[torch.arange(2), torch.arange(2), torch.arange(3)],
            text_rope_pos=torch.arange(5),
        ),
        "out_layer",
        (2, 12, 32),
    ),
    "PixArtTransformer2DModel": Case(
        dict(in_channels=4, num_layers=2, cross_attention_dim=32, caption_channels=24, sample_size=8) | TWO_HEADS,
        lambda latent, text, t: dict(
            hidden_states=latent(2, 4, 8, 8),
            encoder_hidden_states=text(2, 5, 24),
            timestep=1000 * t.expand(2),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ),
        "norm_out",
        (2, 16, 32),
    ),
    "DiTTransformer2DModel": Case(  # its epilogue reads a module of the first block
        dict(in_channels=4, num_layers=2, sample_size=8) | TWO_HEADS,
        lambda latent, text, t: dict(
            hidden_states=latent(2, 4, 8, 8), timestep=(1000 * t).long().expand(2), class_labels=torch.tensor([1, 2])
        ),
        "norm_out",
        (2, 16, 32),
    ),
    "ChromaTransformer2DModel": Case(  # one network makes the modulation of all blocks and of the epilogue
        dict(in_channels=16, num_layers=2, num_single_layers=2, joint_attention_dim=24, axes_dims_rope=(4, 6, 6))
        | dict(approximator_num_channels=16, approximator_hidden_dim=32, approximator_layers=1)
        | TWO_HEADS,
        lambda latent, text, t: dict(
            hidden_states=latent(2, 12, 16),
            encoder_hidden_states=text(2, 5, 24),
            timestep=t.expand(2),
            img_ids=ids(12, 3),
            txt_ids=ids(5, 3),
            attention_mask=torch.ones(2, 17),
        ),
        "norm_out",
        (2, 12, 32),
    ),
    "AuraFlowTransformer2DModel": Case(  # eight tokens of its own stand before the text
        dict(sample_size=8, num_mmdit_layers=2, num_single_dit_layers=2, joint_attention_dim=24)
        | dict(caption_projection_dim=32, pos_embed_max_size=64)
        | TWO_HEADS,
        lambda latent, text, t: dict(
            hidden_states=latent(2, 4, 8, 8), encoder_hidden_states=text(2, 5, 24), timestep=t.expand(2)
        ),
        "norm_out",
        (2, 16, 32),
    ),
    "BriaTransformer2DModel": Case(
        dict(in_channels=16, num_layers=2, num_single_layers=2, joint_attention_dim=24, axes_dims_rope=[4, 6, 6])
        | TWO_HEADS,
        lambda latent, text, t: dict(
            hidden_states=latent(2, 12, 16),
            encoder_hidden_states=text(2, 5, 24),
            timestep=1000 * t.expand(2),
            img_ids=ids(12, 3),
            txt_ids=ids(5, 3),
        ),
        "norm_out",
        (2, 12, 32),
    ),
    "Cosmos3OmniTransformer": Case(  # no batch dimension
        dict(hidden_size=32, head_dim=16, num_attention_heads=2, num_key_value_heads=1, intermediate_size=48)
        | dict(num_hidden_layers=2, latent_channel=4, patch_latent_dim=16, vocab_size=16, rope_axes_dim=[4, 2, 2]),
        cosmos,
        "norm_moe_gen",
        (8, 32),
    ),
}

QWEN = MODELS["QwenImageTransformer2DModel"]
REFUSED = {
    "LatteTransformer3DModel: two lists in turn": (
        dict(in_channels=4, num_layers=2, cross_attention_dim=32, caption_channels=24, sample_size=4, patch_size=2)
        | dict(video_length=4)
        | TWO_HEADS,
        latte,
    ),
    "MotifVideoTransformer3DModel: slices of a list": (MOTIF, motif),
    "MotifVideoTransformer3DModel: a decoder": (MOTIF | dict(num_decoder_layers=1), motif),
    "WanVACETransformer3DModel: hints between blocks": (
        dict(in_channels=4, out_channels=4, text_dim=24, freq_dim=16, ffn_dim=48, num_layers=3, vace_layers=[0])
        | dict(vace_in_channels=8)
        | TWO_HEADS,
        lambda latent, text, t: motif(latent, text, t) | dict(control_hidden_states=text(1, 8, 2, 4, 6)),
    ),
    "QwenImageTransformer2DModel: a ControlNet between blocks": (
        QWEN.config,
        lambda latent, text, t: QWEN.inputs(latent, text, t) | dict(controlnet_block_samples=[text(2, 12, 32)] * 2),
    ),
}
IN_TEST_PIPELINES = {"FluxTransformerBlock", "FluxSingleTransformerBlock", "JointTransformerBlock"}
IN_TEST_PIPELINES |= {"HunyuanVideoTransformerBlock", "HunyuanVideoSingleTransformerBlock", "WanTransformerBlock"}

pytestmark = [
    pytest.mark.filterwarnings("ignore:In CPU autocast"),  # Mochi's
    pytest.mark.usefixtures("no_gradients"),
    pytest.mark.slow,
]


def build(name: str, config: dict) -> nn.Module:
    torch.manual_seed(0)
    model = getattr(diffusers, name.partition(":")[0])(**config).eval()
    no_identity(model)
    return model


@cache
def tiny(name: str) -> nn.Module:
    return build(name, MODELS[name].config)


def call(model, inputs, step: int, seed: int = 1) -> Tensor:
    """The denoiser's first output at one step of one sampling run."""
    latent, text = (
        partial(torch.randn, generator=torch.Generator().manual_seed(s)) for s in (1000 * seed + step, seed)
    )
    out = model(**inputs(latent, text, torch.tensor([1 - step / STEPS])), return_dict=False)
    while not isinstance(out, Tensor):
        out = out[0]
    return out


def run(model, inputs, site, schedule=MASK, forecaster=FORECASTERS["taylor"], steps=STEPS, seed=1):
    pipe = SimpleNamespace(transformer=model)
    with cached(pipe, schedule=schedule, forecaster=forecaster, site=site, num_steps=steps) as session:
        outs = []
        for step in range(steps):
            outs.append(call(model, inputs, step, seed))
            session.callback(pipe, step, None, {})
    return outs, session


def blocks(model) -> list[nn.Module]:
    return [block for name in stacks(model) for block in getattr(model, name)]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", MODELS)
def test_never_skip_is_bit_identical_to_the_plain_denoiser(name, site):
    model, inputs = tiny(name), MODELS[name].inputs
    plain = [call(model, inputs, step) for step in range(STEPS)]
    outs, session = run(model, inputs, SITES[site], schedules.full)
    assert all(torch.equal(out, expected) for out, expected in zip(outs, plain, strict=True))
    assert session.computed_steps == list(range(STEPS))
    assert all(not torch.equal(one, two) for one, two in zip(plain, plain[1:], strict=False))


@pytest.mark.parametrize("forecaster", FORECASTERS)
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", MODELS)
def test_a_skipped_step_runs_no_block_and_forecasts_what_enters_the_epilogue(name, site, forecaster):
    """From what the plain denoiser's blocks get and give at steps 0 and 1, and from nothing else."""
    case, model, calls, entered, left = MODELS[name], tiny(name), Counter(), [], []

    def enter(block, args, kwargs):
        entered.append(next(t for t in (*args, *kwargs.values()) if getattr(t, "shape", None) == case.feature))

    handles = [blocks(model)[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [
        block.register_forward_hook(lambda block, args, out: calls.update([id(block)])) for block in blocks(model)
    ]
    handles += [
        model.get_submodule(case.epilogue).register_forward_pre_hook(lambda m, args: left.append(args[0].clone()))
    ]
    try:
        plain = [call(model, case.inputs, step) for step in range(STEPS)]
        embedded = [e.reshape(h.shape) for e, h in zip(entered, left, strict=True)]
        computed = left[:2]
        calls.clear(), left.clear()
        outs, session = run(model, case.inputs, SITES[site], forecaster=FORECASTERS[forecaster])
    finally:
        for handle in handles:
            handle.remove()

    assert session.computed_steps == [0, 1] and len(calls) == len(blocks(model)) and set(calls.values()) == {2}
    assert all(torch.equal(out, expected) for out, expected in zip(outs[:2], plain, strict=False))
    assert {out.shape for out in outs} == {plain[0].shape}
    slope = {"taylor": 1, "reuse": 0}[forecaster]
    base = embedded if site == "stack_residual" else [torch.zeros(())] * STEPS
    h0, h1 = (h - e for h, e in zip(computed, base, strict=False))
    assert not torch.allclose(h0, h1)
    for step in (2, 3):
        torch.testing.assert_close(left[step], base[step] + h1 + slope * (step - 1) * (h1 - h0), rtol=1e-4, atol=1e-4)
    (branch,) = session.branches.values()
    assert {tuple(row.shape) for row in branch.histories["stack"].features()} == {case.feature}


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", MODELS)
def test_a_b_a_and_nothing_stays(name, site):
    model, inputs = tiny(name), MODELS[name].inputs
    before = inventory(model)
    first, _ = run(model, inputs, SITES[site])
    other, _ = run(model, inputs, SITES[site], seed=7, steps=3)
    again, _ = run(model, inputs, SITES[site])
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[2], other[2])
    assert inventory(model) == before


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_stack_cannot_stand_in_for_is_refused_at_the_first_step(name, site):
    """Skipping would feed the epilogue something else than the forecast, and say nothing."""
    config, inputs = REFUSED[name]
    model, steps = build(name, config), []
    before = inventory(model)
    plain = call(model, inputs, 0)

    def counted(*args):
        steps.append(args)
        return inputs(*args)

    with pytest.raises(ValueError, match="cannot be skipped"):
        run(model, counted, SITES[site])
    assert len(steps) == 1 and inventory(model) == before and torch.equal(call(model, inputs, 0), plain)


def test_a_class_that_nobody_knows_is_told_what_to_add(monkeypatch):
    model = tiny("AuraFlowTransformer2DModel")
    monkeypatch.delitem(ANATOMY, "AuraFlowTransformer2DModel")
    with pytest.raises(ValueError, match=r"add it to ANATOMY .*\"AuraFlowTransformer2DModel\": Anatomy\(stacks="):
        run(model, MODELS["AuraFlowTransformer2DModel"].inputs, LastBlock())


@pytest.mark.parametrize("name", ["Flux2Transformer2DModel", "ZImageTransformer2DModel"])
def test_text_in_the_feature_without_an_entry_in_anatomy_is_refused(name, monkeypatch):
    monkeypatch.delitem(ANATOMY, name)
    with pytest.raises(ValueError, match="cannot be skipped: it gives .* say in ANATOMY"):
        run(tiny(name), MODELS[name].inputs, LastBlock())


@pytest.mark.parametrize("site", SITES)
def test_a_batch_that_changes_in_a_run_starts_a_history_anew(site):
    """As where guidance ends before the last step: the step is computed, since the history is of the batch before."""
    model = tiny("PixArtTransformer2DModel")

    def inputs(latent, text, t):
        both = MODELS["PixArtTransformer2DModel"].inputs(latent, text, t)
        half = {name: both[name][:1] for name in ("hidden_states", "encoder_hidden_states", "timestep")}
        return both if t > 0.5 else both | half

    outs, session = run(model, inputs, SITES[site])
    changed = next(step for step, out in enumerate(outs) if len(out) == 1)
    assert changed in session.computed_steps and not schedules.plan(MASK, STEPS)[changed]
    assert torch.equal(outs[changed], call(model, inputs, changed))


def test_blocks_run_by_index_are_refused():
    """Nothing would take their place, and a skipped step would save nothing."""

    class ByIndex(nn.Module):
        def __init__(self):
            super().__init__()
            self.transformer_blocks = tiny("PixArtTransformer2DModel").transformer_blocks

        def forward(self, hidden_states, timestep, **_):
            return (self.transformer_blocks[1](hidden_states, timestep=timestep),)

    with pytest.raises(ValueError, match="cannot be skipped: the model does not begin with its first block"):
        run(
            ByIndex(),
            lambda latent, text, t: dict(hidden_states=latent(1, 4, 32), timestep=latent(1, 192)),
            LastBlock(),
        )


def test_every_block_that_diffusers_registers_is_tried():
    TransformerBlockRegistry._register()
    models = [tiny(name) for name in MODELS] + [build(name, config) for name, (config, _) in REFUSED.items()]
    tried = {type(module).__name__ for model in models for module in model.modules()} | IN_TEST_PIPELINES
    assert {block.__name__ for block in TransformerBlockRegistry._registry} <= tried
