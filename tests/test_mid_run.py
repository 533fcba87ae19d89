"""Guidance that ends in mid-run, and guidance that leaves blocks out."""

from functools import partial

import pytest
import torch
from helpers import TAYLOR, run, sample

from spectrum_bench import forecasters, schedules
from spectrum_bench.caching.session import cached
from spectrum_bench.caching.sites.clusters import Clusters
from spectrum_bench.caching.sites.modules import Modules
from spectrum_bench.caching.sites.output import OutputResidual
from spectrum_bench.caching.sites.stack import LastBlock, StackResidual, TailResidual
from spectrum_bench.caching.sites.unet import Shallow
from spectrum_bench.errors import DoesNotFit

pytestmark = pytest.mark.usefixtures("no_gradients")

SITES = [LastBlock(), StackResidual(), TailResidual(), OutputResidual(), Modules(), Clusters(count=4)]
PAIRS = [("sd3", site) for site in SITES] + [("sdxl", site) for site in (LastBlock(), OutputResidual(), Shallow())]
EMBEDS = {
    "sd3": ["prompt_embeds", "pooled_prompt_embeds"],
    "sdxl": ["prompt_embeds", "add_text_embeds", "add_time_ids"],
}
STEPS, END = 10, 4


def dropped(pipe, name, callback=None, **extra):
    """A sample whose guidance ends after step END, as diffusers documents it."""

    def step_done(pipe, step, timestep, tensors):
        tensors = callback(pipe, step, timestep, tensors) if callback else tensors
        if step == END:
            pipe._guidance_scale = 0.0
            for embeds in EMBEDS[name]:
                tensors[embeds] = tensors[embeds][-1:]
        return tensors

    return sample(
        pipe,
        name,
        steps=STEPS,
        callback=step_done,
        callback_on_step_end_tensor_inputs=["latents", *EMBEDS[name]],
        **extra,
    )


@pytest.mark.parametrize("name,site", PAIRS, ids=lambda value: getattr(value, "__class__", value).__name__)
def test_guidance_that_ends_starts_anew(random_pipes, name, site):
    pipe = random_pipes(name)
    plain = dropped(pipe, name)
    assert plain.shape[0] == 1
    with cached(pipe, schedule=schedules.full, forecaster=TAYLOR, site=site, num_steps=STEPS) as session:
        assert torch.equal(dropped(pipe, name, session.callback), plain)
    mask = partial(schedules.mask, steps=[0, 1, 4, 8])
    with cached(pipe, schedule=mask, forecaster=TAYLOR, site=site, num_steps=STEPS) as session:
        latents = dropped(pipe, name, session.callback)
    assert latents.shape == plain.shape and session.computed_steps == [0, 1, 4, 5, 8]


def test_a_branch_that_comes_back_starts_anew(random_pipes):
    """On Wan guidance is a second call, here left out at steps 2 to 4."""
    pipe = random_pipes("wan")
    mask = partial(schedules.mask, steps=[0, 1])
    with cached(pipe, schedule=mask, forecaster=forecasters.reuse, site=LastBlock(), num_steps=8) as session:

        def step_done(pipe, step, timestep, tensors):
            pipe._guidance_scale = 1.0 if 1 <= step < 4 else 5.0
            return session.callback(pipe, step, timestep, tensors)

        sample(pipe, "wan", steps=8, callback=step_done)
    first, second = session.branches.values()
    assert (first.computed, second.computed) == ([0, 1], [0, 1, 5])


@pytest.mark.parametrize("site", [LastBlock(), StackResidual(), TailResidual()], ids=lambda site: type(site).__name__)
@pytest.mark.parametrize("place", ["first", "last"])
def test_skipped_layers_at_the_ends_are_refused_by_name(random_pipes, site, place):
    pipe = random_pipes("sd3")
    block = site.front if place == "first" else len(pipe.transformer.transformer_blocks) - 1
    slg = {"skip_guidance_layers": [block], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    with pytest.raises(DoesNotFit, match=f"skip_guidance_layers names block {block}"):
        run(pipe, "sd3", site, schedules.full, **slg, guidance_scale=5.0)
