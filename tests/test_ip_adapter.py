"""An IP-Adapter (arXiv:2308.06721) under caching: blocks attend to a picture's embedding too."""

import shutil

import pytest
import torch
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from helpers import MASK, TAYLOR, denoiser, inventory, recipe, run, sample, settings
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from spectrum_bench import schedules
from spectrum_bench.caching.sites.modules import Modules
from spectrum_bench.caching.sites.output import OutputResidual
from spectrum_bench.caching.sites.stack import LastBlock, StackResidual
from spectrum_bench.errors import UserError
from spectrum_bench.sampling.models import identify, load_pipeline
from spectrum_bench.sampling.small import no_identity

WIDTH, TOKENS = 12, 4  # of a picture's embedding, and what becomes of it


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def weights_of(width, shapes):
    """A random IP-Adapter in the form of published files: that of the picture, and those of blocks.

    Args:
        width: of the tokens that blocks attend to.
        shapes: of the keys and values of each attention, by its number and kind.
    """
    projection = {"proj.weight": drawn(TOKENS * width, WIDTH), "proj.bias": drawn(TOKENS * width)}
    projection |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    weights = {f"{i}.to_{part}_ip.{kind}": drawn(*shape) for (i, kind), shape in shapes.items() for part in "kv"}
    return {"image_proj": projection, "ip_adapter": weights}


def load(network, width, shapes):
    network._load_ip_adapter_weights([weights_of(width, shapes)], low_cpu_mem_usage=False)


def shapes_of_flux(network):
    width, blocks = network.config.joint_attention_dim, range(len(network.transformer_blocks))
    shapes = {(i, "weight"): (network.inner_dim, width) for i in blocks}
    return width, shapes | {(i, "bias"): (network.inner_dim,) for i in blocks}


def flux(network):
    load(network, *shapes_of_flux(network))
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


# ---------------------------------------------------------------------------------------------------------------------
# model.ip_adapter


@pytest.fixture
def files(random_pipe, tmp_path):
    """A random IP-Adapter of FLUX as a file, and a small encoder of pictures as a folder."""
    parts = weights_of(*shapes_of_flux(random_pipe.transformer))
    tensors = {f"{part}.{name}": tensor for part, each in parts.items() for name, tensor in each.items()}
    save_file(tensors, tmp_path / "adapter.safetensors")
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=16)
    torch.manual_seed(0)
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=WIDTH, image_size=32, **sizes))
    encoder.save_pretrained(tmp_path / "encoder")
    return tmp_path / "adapter.safetensors", tmp_path / "encoder"


def word(file, encoder, weight=0.6):
    return f"model.ip_adapter={{file: {file}, encoder: {encoder}, weight: {weight}}}"


@pytest.mark.usefixtures("no_gradients")
def test_the_command_line_names_an_ip_adapter(weights, files, tmp_path):
    """The sample depends on the picture and on the adapter's weight, the id not on where its files are."""
    given = settings(f"model.repo={weights}", word(*files)).model
    pipe, none = (
        load_pipeline(given, "cpu"),
        load_pipeline(settings(f"model.repo={weights}", word(*files, 0)).model, "cpu"),
    )
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    target = sample(pipe, "flux", ip_adapter_image=red)
    assert not torch.equal(target, sample(pipe, "flux", ip_adapter_image=blue))
    assert torch.equal(sample(none, "flux", ip_adapter_image=red), sample(none, "flux", ip_adapter_image=blue))
    assert torch.equal(run(pipe, "flux", LastBlock(), schedules.full, TAYLOR, ip_adapter_image=red)[0], target)
    moved = [shutil.copy(files[0], tmp_path / "moved.safetensors"), shutil.copytree(files[1], tmp_path / "moved")]
    ids = [identify(settings(f"model.repo={weights}", word(*each)).model) for each in (moved, (*files, 0.5))]
    assert identify(given) == ids[0] != ids[1] and type(given).from_config(given.to_config()) == given


def test_wrong_ip_adapters_are_told_in_one_line(weights, files, tmp_path):
    file, encoder = files
    save_file({"weight": torch.ones(1)}, tmp_path / "plain.safetensors")
    for said, words in {
        "model.ip_adapter=5: write {file: ": ["model.ip_adapter=5"],
        "model.ip_adapter=.*: write {file: ": [f"model.ip_adapter={{file: {file}}}"],
        "file=5 is no text": [word(5, encoder)],
        "there is no .safetensors file .*adapter.bin": [word("adapter.bin", encoder)],
        "plain.safetensors holds no IP-Adapter": [word(tmp_path / "plain.safetensors", encoder)],
        "is no folder of a CLIP or SigLIP": [word(file, weights)],
        "leave it out, or leave out model.init=random": [word(file, encoder), "model.init=random"],
    }.items():
        with pytest.raises(UserError, match=said):
            identify(settings(f"model.repo={weights}", *words).model)
