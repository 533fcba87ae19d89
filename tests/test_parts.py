"""Sites where a part of the network runs at skipped steps: PAB beside diffusers, and the blocks that Delta-DiT runs."""

from contextlib import ExitStack
from functools import partial

import pytest
import torch
from helpers import STEPS, TAYLOR, blocks, run, sample

from spectrum_bench import forecasters, gates, schedules
from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.peers import DiffusersCache
from spectrum_bench.caching.session import cached
from spectrum_bench.caching.sites.modules import Modules
from spectrum_bench.caching.sites.parts import Attentions, Halves
from spectrum_bench.errors import BadValue, DoesNotFit
from spectrum_bench.signals import NOISE

pytestmark = pytest.mark.usefixtures("no_gradients")

REUSE = forecasters.reuse
FIRST_OF_THREE = partial(schedules.uniform, interval=3)  # steps 0 and 3 of 6


def theirs(interval, least, most, cross=None):
    rule = {
        "spatial_attention_block_skip_range": interval,
        "spatial_attention_timestep_skip_range": (1000 * least, 1000 * most),
        "cross_attention_block_skip_range": cross,
        "cross_attention_timestep_skip_range": (1000 * least, 1000 * most),
    }
    return DiffusersCache("PyramidAttentionBroadcastConfig", rule, {"current_timestep_callback": "timestep"})


@pytest.mark.parametrize("name", ["flux", "hunyuan"])
@pytest.mark.parametrize("interval,least,most", [(2, 0.1, 0.8), (3, 0.0, 1.1), (2, 0.3, 0.9)])
def test_our_broadcast_is_that_of_diffusers(random_pipes, name, interval, least, most):
    pipe = random_pipes(name)
    gate = gates.broadcast(interval=interval, least=least, most=min(most, 1.0))
    a, one = run(pipe, name, Attentions(), gate, REUSE, steps=12)
    b, two = run(pipe, name, theirs(interval, least, most), gates.observed(), REUSE, steps=12)
    assert one.computed_steps == two.computed_steps and len(one.computed_steps) < 12
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("least,most", [(0.1, 0.8), (0.0, 1.0)])
@pytest.mark.parametrize("cross", [2, 6])
def test_cross_attention_is_broadcast_further_as_by_diffusers(random_pipes, cross, least, most):
    """On Wan, with one call a step: of two calls diffusers' hook would mix the guidance branches."""
    pipe, gate = random_pipes("wan"), gates.broadcast(interval=2, least=least, most=most)
    a, one = run(pipe, "wan", Attentions(cross=cross), gate, REUSE, steps=12, guidance_scale=1.0)
    b, two = run(pipe, "wan", theirs(2, least, most, cross), gates.observed(), REUSE, steps=12, guidance_scale=1.0)
    assert one.computed_steps == two.computed_steps and len(one.computed_steps) < 12
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))
    equal = torch.equal(a, run(pipe, "wan", Attentions(), gate, REUSE, steps=12, guidance_scale=1.0)[0])
    assert equal == (cross == 2)


def test_cross_attentions_range_needs_its_gate():
    with pytest.raises(DoesNotFit, match="under algo=pab alone: add site.cross=1"):
        Algorithm("x", FIRST_OF_THREE, REUSE, Attentions(cross=6)).check(6)


def test_broadcast_by_hand():
    """Sigma 0.9, 0.5, 0.5, 0.5, 0.5, 0.05 is a noise-to-signal ratio of 9, 1, 1, 1, 1 and 1 / 19."""
    gate = gates.broadcast(interval=3, least=0.1, most=0.8)
    ratios = [9.0, 1.0, 1.0, 1.0, 1.0, 1 / 19, float("inf")]
    decisions = [gate.decide(step, {NOISE: torch.tensor(r)}, gate.start(7)) for step, r in enumerate(ratios)]
    assert decisions == [True, False, False, True, False, True, True]


@pytest.mark.parametrize("name", ["flux", "sd3", "wan", "hunyuan"])
def test_the_rear_blocks_are_cached_first_and_the_front_blocks_later(random_pipes, name):
    pipe, ran = random_pipes(name), []
    stack = blocks(pipe)
    count = round(len(stack) / 2)
    rule = {"schedule": FIRST_OF_THREE, "forecaster": REUSE, "site": Halves()}
    with cached(pipe, **rule, num_steps=STEPS) as session, ExitStack() as undo:
        for i, block in enumerate(stack):
            last = next(getattr(block, n) for n in ("proj_out", "ff", "ffn") if hasattr(block, n)).module
            undo.callback(last.register_forward_hook(lambda *_, i=i: ran.append((session.step, i))).remove)
        sample(pipe, name, callback=session.callback)
    of = {step: sorted({i for s, i in ran if s == step}) for step in range(STEPS)}
    everything = list(range(len(stack)))
    early, late = everything[: len(stack) - count], everything[count:]
    assert of == {0: everything, 1: early, 2: early, 3: everything, 4: late, 5: late}


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_all_blocks_are_the_modules_and_none_is_the_plain_pipeline(random_pipes, name):
    pipe = random_pipes(name)
    whole, _ = run(pipe, name, Modules(), FIRST_OF_THREE, TAYLOR)
    assert torch.equal(run(pipe, name, Halves(part=1.0), FIRST_OF_THREE, TAYLOR)[0], whole)
    assert torch.equal(run(pipe, name, Halves(part=0.0), FIRST_OF_THREE, TAYLOR)[0], sample(pipe, name))


def test_shares_out_of_range_are_refused():
    for wrong in ({"switch": 2}, {"part": -1}):
        with pytest.raises(BadValue, match="must be a number from 0 to 1"):
            Algorithm("x", FIRST_OF_THREE, REUSE, Halves(**wrong)).check(6)
