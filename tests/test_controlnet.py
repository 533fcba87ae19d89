"""A ControlNet under caching: a skipped step runs neither the network nor the ControlNet."""

import json
import shutil
from contextlib import contextmanager
from functools import cache

import diffusers
import pytest
import torch
from helpers import MASK, STEPS, TAYLOR, composed, denoiser, inventory, run, sample, settings
from PIL import Image

from spectrum_bench import forecasters, gates, schedules
from spectrum_bench.caching.sites.modules import Modules
from spectrum_bench.caching.sites.output import OutputResidual
from spectrum_bench.caching.sites.stack import LastBlock, StackResidual, TailResidual
from spectrum_bench.caching.sites.unet import Shallow
from spectrum_bench.commands import run as run_command
from spectrum_bench.errors import DoesNotFit, UserError
from spectrum_bench.sampling.controlnet import controlled as _controlled
from spectrum_bench.sampling.models import identify, load_pipeline
from spectrum_bench.sampling.records import read_records
from spectrum_bench.sampling.shapes import meta_pipeline
from spectrum_bench.sampling.small import no_identity

pytestmark = pytest.mark.usefixtures("no_gradients")

SITES = (LastBlock(), StackResidual(), OutputResidual())
PICTURE = Image.new("RGB", (64, 64), (200, 30, 30))
PICTURE.paste((20, 220, 90), (16, 16, 40, 56))


def _flux(pipe):
    return diffusers.FluxControlNetPipeline, diffusers.FluxControlNetModel.from_transformer(
        pipe.transformer,
        num_layers=1,
        num_single_layers=1,  # whose residual is also added behind the last block
        attention_head_dim=pipe.transformer.config.attention_head_dim,
        num_attention_heads=pipe.transformer.config.num_attention_heads,
    )


def _sd3(pipe):
    config = dict(pipe.transformer.config) | dict(num_layers=1)  # from_transformer would change the transformer's own
    return diffusers.StableDiffusion3ControlNetPipeline, diffusers.SD3ControlNetModel.from_config(config)


def _sdxl(pipe):
    net = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(16, 32, 32))
    return diffusers.StableDiffusionXLControlNetPipeline, net


MAKERS = {"flux": (_flux, "control_image"), "sd3": (_sd3, "control_image"), "sdxl": (_sdxl, "image")}


@pytest.fixture(scope="module")
def controlled(random_pipes):
    """Makes a pipeline with a random ControlNet of the miniature, and the arguments of its call."""

    @cache
    def make(name):
        plain = random_pipes(name)
        make_network, argument = MAKERS[name]
        torch.manual_seed(1)
        kind, network = make_network(plain)
        no_identity(network.eval())
        pipe = kind(**plain.components, controlnet=network)
        pipe.set_progress_bar_config(disable=True)
        return pipe, {argument: PICTURE, "controlnet_conditioning_scale": 0.5}

    return make


def draw(function, *given, **control):
    """What `sample` or `run` gives. SD3's pipeline draws the picture's latent from torch's own generator."""
    torch.manual_seed(2)
    return function(*given, **control)


@contextmanager
def counted(network):
    """The steps at which a ControlNet itself runs: at which its first part does."""
    calls = []
    first = getattr(network, "x_embedder", None) or getattr(network, "pos_embed", None) or network.conv_in
    hook = first.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


@pytest.mark.parametrize("name", [n if n == "flux" else pytest.param(n, marks=pytest.mark.slow) for n in MAKERS])
def test_a_skipped_step_runs_no_controlnet(controlled, random_pipes, name):
    pipe, control = controlled(name)
    target, before = draw(sample, pipe, name, **control), inventory(pipe.controlnet) + inventory(denoiser(pipe))
    assert not torch.equal(target, draw(sample, random_pipes(name), name))
    for site in SITES:
        assert torch.equal(draw(run, pipe, name, site, schedules.full, TAYLOR, **control)[0], target), site
        with counted(pipe.controlnet) as calls:
            cached, session = draw(run, pipe, name, site, MASK, TAYLOR, **control)
        assert len(calls) == len(session.computed_steps) == 3, site
        assert not torch.equal(cached, target) and torch.isfinite(cached).all(), site
        assert inventory(pipe.controlnet) + inventory(denoiser(pipe)) == before, site
    assert torch.equal(draw(sample, pipe, name, **control), target)


@pytest.mark.parametrize("name,epilogue", [("flux", "norm_out"), ("sd3", "norm_out"), ("sdxl", "conv_norm_out")])
def test_what_enters_the_epilogue_is_what_is_cached(controlled, name, epilogue):
    """Every step runs, and at skipped ones the epilogue gets what it got at the newest computed one."""
    pipe, control = controlled(name)
    kept, step = [], 0

    def give(module, args):
        if step in (0, 1, 4):
            kept[:] = args[:1]
        return (kept[0], *args[1:])

    def next_step(pipe, i, t, tensors):
        nonlocal step
        step = i + 1
        return tensors

    hook = getattr(denoiser(pipe), epilogue).register_forward_pre_hook(give)
    expected = draw(sample, pipe, name, callback=next_step, **control)
    hook.remove()
    assert torch.equal(draw(run, pipe, name, LastBlock(), MASK, forecasters.reuse, **control)[0], expected)


def test_a_gate_decides_before_the_controlnet_runs(controlled):
    """TeaCache decides at the first block, after the pipeline has called the ControlNet."""
    pipe, control = controlled("flux")
    gate = gates.accumulated(threshold=1e9, polynomial=[1.0, 0.0])
    with counted(pipe.controlnet) as calls:
        _, session = draw(run, pipe, "flux", StackResidual(), gate, forecasters.reuse, **control)
    assert 1 < len(calls) == len(session.computed_steps) < STEPS


def test_sites_that_run_blocks_run_the_controlnet(controlled):
    pipe, control = controlled("flux")
    with counted(pipe.controlnet) as calls:
        _, session = draw(run, pipe, "flux", Modules(), MASK, TAYLOR, **control)
    assert len(calls) == STEPS > len(session.computed_steps)


def test_deepcache_runs_the_controlnet_at_every_step(controlled):
    """And the shallow layers with its residuals, behind what the deep ones gave at the newest computed step."""
    pipe, control = controlled("sdxl")
    kept, step = [], 0

    def give(module, args, out):
        if step in (0, 1, 4):
            kept[:] = [out]
        return kept[0]

    def next_step(pipe, i, t, tensors):
        nonlocal step
        step = i + 1
        return tensors

    hook = pipe.unet.up_blocks[-1].resnets[-2].register_forward_hook(give)
    expected = draw(sample, pipe, "sdxl", callback=next_step, **control)
    hook.remove()
    with counted(pipe.controlnet) as calls:
        cached, session = draw(run, pipe, "sdxl", Shallow(), MASK, forecasters.reuse, **control)
    assert len(calls) == STEPS > len(session.computed_steps)
    assert torch.equal(cached, expected)


@pytest.fixture
def folder(controlled, tmp_path):
    """FLUX's random ControlNet in diffusers' format."""
    controlled("flux")[0].controlnet.save_pretrained(tmp_path / "control")
    return tmp_path / "control"


def test_the_command_line_names_a_controlnet(controlled, weights, folder, tmp_path):
    words = (f"model.repo={weights}", "model.dtype=float32")
    plain, given = settings(*words).model, settings(*words, f"model.controlnet={folder}").model
    pipe, control = controlled("flux")
    loaded = load_pipeline(given, "cpu")
    assert type(loaded) is type(pipe) and torch.equal(
        sample(loaded, "flux", **control), sample(pipe, "flux", **control)
    )
    meta = meta_pipeline(given)
    assert type(meta).__name__ == type(pipe).__name__ and meta.controlnet.device.type == "meta"
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert identify(plain) != identify(given) == identify(settings(*words, f"model.controlnet={moved}").model)
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    assert identify(given) != identify(settings(*words, f"model.controlnet={moved}").model)


def test_each_line_gives_its_picture(words, folder, tmp_path):
    PICTURE.save(tmp_path / "edges.png")
    line = {"prompt": "a red ring", "control_image": "edges.png"}
    (tmp_path / "lines.jsonl").write_text(json.dumps(line), encoding="utf-8")
    words = [word for word in words if not word.startswith("prompt_file")] + [f"prompt_file={tmp_path}/lines.jsonl"]
    with pytest.raises(UserError, match="FluxPipeline takes no control_image"):
        run_command.main(composed(*words))
    run_command.main(composed(*words, f"model.controlnet={folder}", "exp_name=controlled"))
    (record,) = read_records(tmp_path / "out/controlled")
    assert set(record.inputs) == {"control_image"}


def test_wrong_controlnets_are_told_in_one_line(controlled, random_pipes, weights, folder):
    def refused(given, said):
        with pytest.raises(UserError, match=said):
            identify(settings(f"model.repo={weights}", f"model.controlnet={given}").model)

    refused(weights, "is no ControlNet in diffusers' format")
    refused("nobody_here/nothing", "nobody_here/nothing is not on this machine: hf download")
    refused("7", "model.controlnet=7 is no text")
    with pytest.raises(UserError, match="is of files: leave it out, or leave out model.init=random"):
        settings("model.init=random", f"model.controlnet={folder}")
    other = controlled("sdxl")[0].controlnet
    with pytest.raises(UserError, match="takes another kind of network than ControlNetModel"):
        _controlled(random_pipes("flux"), other)
    with pytest.raises(UserError, match="FluxControlNetPipeline has a ControlNet of its own: leave it out"):
        _controlled(controlled("flux")[0], other)
    (weight,) = folder.glob("*.safetensors")
    weight.write_bytes(b"nothing")
    refused(folder, "is damaged")
    weight.unlink()
    refused(folder, "has no .safetensors file: other formats can hold code")


def test_front_blocks_and_guess_mode_are_refused(controlled):
    pipe, control = controlled("flux")
    with pytest.raises(DoesNotFit, match="ControlNet's residuals between blocks.*use a site without site.front"):
        draw(run, pipe, "flux", TailResidual(), MASK, TAYLOR, **control)
    pipe, control = controlled("sdxl")
    with pytest.raises(DoesNotFit, match="leave guess_mode out, or use site=modules"):
        draw(run, pipe, "sdxl", LastBlock(), MASK, TAYLOR, guess_mode=True, **control)
