"""DeepCache's site on a small random SDXL: which layers run, and that the picture is that of a reused deep feature."""

from collections import Counter

import pytest
import torch
from diffusers import UNet2DConditionModel
from helpers import MASK, TAYLOR, run, sample

from spectrum_bench import forecasters, schedules
from spectrum_bench.caching.sites.stack import LastBlock
from spectrum_bench.caching.sites.unet import Shallow

REUSE = forecasters.reuse


pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def pipe(random_pipes):
    return random_pipes("sdxl")


def layers(unet):
    """Every residual layer in the order in which it runs, by name."""
    order = ("down_blocks", "mid_block", "up_blocks")
    residual = [n for n, m in unet.named_modules() if "ResnetBlock" in type(m).__name__]
    return [n for part in order for n in residual if n.startswith(part)]


# outermost first: down 0 (1 layer), down 1 (1), mid (2), up 0 (2), up 1 (2), of which a skipped step runs
RUN = {(0, 0): [7], (0, 1): [0, 6, 7], (1, 0): [0, 5, 6, 7], (1, 1): [0, 1, 4, 5, 6, 7]}
FEEDS = {
    (0, 0): "up_blocks.1.resnets.0",
    (0, 1): "up_blocks.0",
    (1, 0): "up_blocks.0.attentions.0",
    (1, 1): "mid_block",
}


@pytest.mark.slow
@pytest.mark.parametrize("at", RUN, ids=str)
def test_a_skipped_step_runs_the_shallow_layers_on_the_kept_feature(pipe, at):
    """The same picture as when all layers run and a hook puts back what enters the first shallow up layer."""
    unet, calls, kept, clock = pipe.unet, Counter(), [], [0]
    names = layers(unet)
    assert len(names) == 8
    handles = [unet.get_submodule(n).register_forward_hook(lambda m, a, o, n=n: calls.update([n])) for n in names]
    try:
        ours, session = run(pipe, "sdxl", Shallow(*at), MASK, REUSE)
    finally:
        for handle in handles:
            handle.remove()
    assert session.computed_steps == [0, 1, 4]
    assert [calls[n] for n in names] == [6 if i in RUN[at] else 3 for i in range(8)]

    def reuse(module, args, out):
        if clock[0] - 1 in (0, 1, 4):
            kept[:] = [out]
        return kept[0]

    handles = [unet.register_forward_pre_hook(lambda *_: clock.__setitem__(0, clock[0] + 1))]
    handles.append(unet.get_submodule(FEEDS[at]).register_forward_hook(reuse))
    try:
        expected = sample(pipe, "sdxl")
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert not torch.equal(ours, sample(pipe, "sdxl"))


@pytest.mark.slow
@pytest.mark.parametrize("at", RUN, ids=str)
def test_never_skip_a_b_a_and_nothing_stays(pipe, at):
    plain = sample(pipe, "sdxl")
    before = [(n, id(m), sorted(vars(m))) for n, m in pipe.unet.named_modules()]
    assert torch.equal(run(pipe, "sdxl", Shallow(*at), schedules.full, REUSE)[0], plain)
    first, _ = run(pipe, "sdxl", Shallow(*at), MASK, TAYLOR)
    run(pipe, "sdxl", Shallow(*at), MASK, TAYLOR, prompts=("a blue star", "a square"), seed=7, steps=5)
    assert torch.equal(run(pipe, "sdxl", Shallow(*at), MASK, TAYLOR)[0], first)
    assert [(n, id(m), sorted(vars(m))) for n, m in pipe.unet.named_modules()] == before


def test_cache_is_one_feature(pipe):
    _, session = run(pipe, "sdxl", Shallow(), MASK, REUSE)
    assert session.cache_bytes == 2 * 48 * 16 * 16 * 4


def test_what_it_cannot_do_is_said(pipe, random_pipes):
    with pytest.raises(ValueError, match="is no U-Net: use site=last_block"):
        run(random_pipes("flux"), "flux", Shallow(), MASK, REUSE)
    for wrong in (Shallow(block=2), Shallow(block=-1), Shallow(layer=2), Shallow(layer=0.5)):
        with pytest.raises(ValueError, match="must be a whole number from 0 to 1"):
            run(pipe, "sdxl", wrong, MASK, REUSE)


def test_a_unet_without_a_middle(pipe):
    """SSD-1B and its like have none."""
    config = {key: value for key, value in pipe.unet.config.items() if not key.startswith("_")}
    unet = UNet2DConditionModel(**config | {"mid_block_type": None})
    small = type(pipe)(**pipe.components | {"unet": unet})
    small.set_progress_bar_config(disable=True)
    assert torch.equal(run(small, "sdxl", LastBlock(), schedules.full)[0], sample(small, "sdxl"))
    skipped, session = run(small, "sdxl", LastBlock(), MASK, REUSE)
    assert session.computed_steps == [0, 1, 4] and torch.isfinite(skipped).all() and unet.mid_block is None
