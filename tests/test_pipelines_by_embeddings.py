"""Pipelines of newer models, small and random, with drawn embeddings in the place of their large text encoders: the
pipeline's own loop, guidance, scheduler and packing run as they are."""

import inspect
import re
from contextlib import ExitStack
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import inventory, settings

import models as page
from spectrum_bench import schedules
from spectrum_bench.anatomy import ANATOMY
from spectrum_bench.caching.session import cached, denoisers
from spectrum_bench.caching.sites.stack import LastBlock
from spectrum_bench.commands.compose import build
from spectrum_bench.commands.entry import check_words
from spectrum_bench.errors import DoesNotFit
from spectrum_bench.forecasters import reuse
from spectrum_bench.paths import ROOT
from spectrum_bench.sampling import small
from spectrum_bench.sampling.sampler import on_white
from spectrum_bench.sampling.steps import at_step_end

STEPS = 8
OLD = ("flux", "wan", "hunyuan")  # the miniatures' own tests run them
MAKERS = [name for name in small.MAKERS if name not in OLD]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_gradients")]


made = cache(small.small_pipeline)


def sampled(name: str, seed: int = 0, callback=None, **call) -> torch.Tensor:
    pipe, arguments = made(name)
    size = {} if name == "hunyuan1-5-i2v" else dict(height=64, width=64)  # that takes its picture's
    call = arguments | size | dict(num_inference_steps=STEPS) | call
    generator = torch.Generator().manual_seed(seed)
    with ExitStack() as undo:
        told = {} if callback is None else at_step_end(pipe, callback, undo)
        return pipe(**call, **told, generator=generator, output_type="latent", return_dict=False)[0]


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
    "easycache": ["algo=easycache", "schedule.threshold=5", "schedule.first=2"],
    "teacache": ["algo=teacache", "schedule.threshold=2"],
    "taylorseer on modules": ["algo=taylorseer", "schedule.warmup=2"],
    "seacache": ["algo=seacache", "schedule.threshold=3"],
    "freqca": ["algo=freqca"],
}
# algorithm -> the models whose denoisers it knows; the others are refused, as their YAML says for docs/models.md
REFUSED = {name: node["page"]["refuses"] for name, node in page.models().items()}
ON_PAGE = {algo: "site=modules" if algo == "taylorseer on modules" else f"algo={algo}" for algo in WORDS}
KNOWN = {algo: {name for name in MAKERS if word not in REFUSED[name]} for algo, word in ON_PAGE.items()}
WAY_OUT = {
    "easycache": "output is no latent's shape|more than one output",
    "teacache": "no timestep-modulated input is known",
    "taylorseer on modules": "site=last_block",
    "seacache": "no modulated tokens|without frequencies|needs none",
    "freqca": "use an algo without frequencies|second stream",
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


def test_the_page_is_current():
    assert page.page(PAGE) == PAGE, "python scripts/models.py writes it anew"
    assert page.page(PAGE.replace("| `flux` |", "| `flax` |")) == PAGE


def test_what_the_page_says_they_refuse_is_tried():
    assert {word for words in REFUSED.values() for word in words} <= set(ON_PAGE.values())


def test_the_page_s_commands_name_keys_that_exist():
    commands = re.findall(r"`python src/(\w+)\.py (model=[^`]+)`", "".join(ROWS.values()))
    assert len(commands) == len(ROWS)
    for script, words in commands:
        check_words({"text_to_image": "base", "text_to_video": "video"}.get(script, script), words.split())


def test_a_kept_condition_leads_to_the_same_sample():
    """Qwen-Image-2.1 computes the prompt's tokens once and keeps what attends to them; else they run at every step."""
    for algo in ("spectrum", "taylorseer"):
        kept, session = under("qwen-image-2-1", algo)
        anew, other = under("qwen-image-2-1", algo, use_kv_cache=False)
        assert session.computed_steps == other.computed_steps and len(other.computed_steps) < STEPS
        torch.testing.assert_close(kept, anew, rtol=1e-4, atol=1e-4)


def test_gates_observe_the_sample_s_own_tokens():
    """With the condition kept, the first step has more tokens than the others."""
    given = build(settings("algo=fbcache", "schedule.threshold=2", f"num_inference_steps={STEPS}"))
    with given.attach(made("qwen-image-2-1")[0], STEPS) as session:
        sampled("qwen-image-2-1", callback=session.callback)
    assert 0 < len(session.computed_steps) < STEPS


def test_a_sound_is_forecast_as_the_clip_is():
    """Under reuse, what enters both epilogues of LTX-2 at a skipped step is what did at the newest computed one."""
    pipe, arguments = made("ltx-2")
    (denoiser,) = denoisers(pipe).values()
    computed, kept, step, calls = (0, 1, 4), {}, 0, {"norm_out": 0, "audio_norm_out": 0}

    def sampled_both(callback):
        call = arguments | dict(height=64, width=64, num_inference_steps=STEPS, output_type="latent", return_dict=False)
        return pipe(**call, callback_on_step_end=callback, generator=torch.Generator().manual_seed(0))

    def give(name, module, given):
        key = (name, calls[name] % 3)  # three calls a step
        calls[name] += 1
        if step in computed:
            kept[key] = given
        return kept[key]

    def next_step(pipe, i, t, tensors):
        nonlocal step
        step = i + 1
        return tensors

    hooks = [getattr(denoiser, name).register_forward_pre_hook(partial(give, name)) for name in calls]
    expected = sampled_both(next_step)
    for hook in hooks:
        hook.remove()
    mask = partial(schedules.mask, steps=list(computed))
    with cached(pipe, schedule=mask, forecaster=reuse, site=LastBlock(), num_steps=STEPS) as session:
        out = sampled_both(session.callback)
    assert all(map(torch.equal, out, expected)) and session.computed_steps == list(computed)
    corrected = build(settings("algo=hindsight", "schedule.passes=4", f"num_inference_steps={STEPS}"))
    with pytest.raises(DoesNotFit, match="second scheduler.*site=last_block"), corrected.attach(pipe, STEPS):
        pass


def test_a_transparent_picture_is_put_on_white():
    red, clear, half = [1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0.5]
    assert on_white(np.array([[red, clear, half]])).tolist() == [[[1, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5]]]


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
