"""An IP-Adapter (arXiv:2308.06721) under caching: blocks attend to a picture's embedding too."""

import pytest
import torch
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from helpers import MASK, TAYLOR, denoiser, inventory, recipe, run, sample

from spectrum_bench import schedules
from spectrum_bench.caching.sites.modules import Modules
from spectrum_bench.caching.sites.output import OutputResidual
from spectrum_bench.caching.sites.stack import LastBlock, StackResidual
from spectrum_bench.sampling.small import no_identity

WIDTH, TOKENS = 12, 4  # of a picture's embedding, and what becomes of it


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def load(network, width, shapes):
    """A random IP-Adapter in the form of published files.

    Args:
        width: of the tokens that blocks attend to.
        shapes: of the keys and values of each attention, by its number and kind.
    """
    projection = {"proj.weight": drawn(TOKENS * width, WIDTH), "proj.bias": drawn(TOKENS * width)}
    projection |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    weights = {f"{i}.to_{part}_ip.{kind}": drawn(*shape) for (i, kind), shape in shapes.items() for part in "kv"}
    network._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}], low_cpu_mem_usage=False)


def flux(network):
    width, blocks = network.config.joint_attention_dim, range(len(network.transformer_blocks))
    shapes = {(i, "weight"): (network.inner_dim, width) for i in blocks}
    load(network, width, shapes | {(i, "bias"): (network.inner_dim,) for i in blocks})
    none = torch.zeros(1, 1, WIDTH)
    return {"ip_adapter_image_embeds": [drawn(1, 1, WIDTH)], "negative_ip_adapter_image_embeds": [none]}


def sdxl(network):
    width = network.config.cross_attention_dim
    heights = [network.get_submodule(name.removesuffix(".processor")).inner_dim for name in network.attn_processors]
    load(network, width, {(i, "weight"): (height, width) for i, height in enumerate(heights) if i % 2})
    return {"ip_adapter_image_embeds": [drawn(2, 1, WIDTH)]}


def sd3(network):
    head, width = network.config.attention_head_dim, network.inner_dim
    kinds = {name: SD3IPAdapterJointAttnProcessor2_0(width, width, head, 16) for name in network.attn_processors}
    network.set_attn_processor(kinds)
    projection = dict(hidden_dim=16, depth=1, dim_head=8, heads=2, num_queries=TOKENS, timestep_in_dim=16)
    network.image_proj = IPAdapterTimeImageProjection(embed_dim=WIDTH, output_dim=width, **projection)
    return {"ip_adapter_image_embeds": drawn(2, 1, WIDTH)}


@pytest.mark.slow
@pytest.mark.parametrize("make", [flux, sd3, sdxl])
@pytest.mark.usefixtures("no_gradients")
def test_caching_with_a_picture(make):
    from training import parts

    torch.manual_seed(0)
    name = make.__name__
    pipe = parts.build(recipe(name))  # nobody else's: the adapter stays on it
    no_identity(denoiser(pipe))
    pipe.set_progress_bar_config(disable=True)
    without = sample(pipe, name)
    picture = make(denoiser(pipe))
    target, before = sample(pipe, name, **picture), inventory(denoiser(pipe))
    assert not torch.equal(target, without)
    for site in (LastBlock(), StackResidual(), OutputResidual(), *([] if make is sdxl else [Modules()])):
        assert torch.equal(run(pipe, name, site, schedules.full, TAYLOR, **picture)[0], target), site
        cached, session = run(pipe, name, site, MASK, TAYLOR, **picture)
        assert len(session.computed_steps) == 3 and torch.isfinite(cached).all() and not torch.equal(cached, target), (
            site
        )
        assert inventory(denoiser(pipe)) == before, site
    assert torch.equal(sample(pipe, name, **picture), target)
