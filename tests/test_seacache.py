"""SeaCache: its filter and its gate against diffusers' own, and what its signals are on every miniature."""

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from diffusers.hooks.sea_cache import _apply_sea_filter
from helpers import STEPS, blocks, run

from spectrum_bench import decisions, forecasters, gates, spectral_gates
from spectrum_bench.caching.peers import DiffusersCache
from spectrum_bench.caching.sites.stack import StackResidual
from spectrum_bench.frequencies import wiener
from spectrum_bench.signals import GRID, NOISE, TOKENS

pytestmark = pytest.mark.usefixtures("no_gradients")

REUSE = forecasters.reuse


@pytest.mark.parametrize("sigma", [1.0, 0.9, 0.3, 0.0])
def test_the_filter_is_that_of_diffusers_on_clips(sigma):
    x = torch.randn(4, 6, 5, 7, generator=torch.Generator().manual_seed(0))
    noise = sigma / (1 - sigma) if sigma < 1 else float("inf")
    torch.testing.assert_close(wiener(x[None], noise)[0], _apply_sea_filter(x, sigma, 3.0))


def test_the_filter_of_a_picture_weighs_frequencies_by_hand():
    """Eight rows: the gain of the wave with f = 1/8 to that of the mean is 1 / (1 + r^2 / 64), r = 4: 0.8."""
    rows = torch.arange(8.0)[:, None]
    wave = torch.cos(2 * torch.pi * rows / 8).expand(8, 6)[None, ..., None]
    mean, waving = wiener(torch.ones(1, 8, 6, 1), 4.0), wiener(wave, 4.0)
    torch.testing.assert_close(waving / mean, 0.8 * wave)


def test_without_noise_the_gate_sums_relative_changes():
    """Changes 0.3 0.3 0.6 | 0.6: the threshold of 0.55 is reached at steps 2 and 3; the last is forced."""
    gate = spectral_gates.seacache(threshold=0.55)
    state, tokens, computed = gate.start(6), 1.0, []
    for step, change in enumerate([0.0, 0.3, 0.3, 0.6, 0.1, 0.1]):
        tokens *= 1 + change
        seen = {TOKENS: torch.full((1, 4, 3), tokens), GRID: torch.tensor([2, 2]), NOISE: torch.tensor(0.0)}
        computed.append(gate.decide(step, seen, state))
    assert computed == [True, False, True, True, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("threshold,longest", [(0.2, 2), (0.3, 2), (0.3, 0), (9.0, 3)])
def test_seacache_taylor_is_that_of_diffusers_on_wan(random_pipes, threshold, longest):
    pipe, rule = random_pipes("wan"), {"threshold": threshold, "max_consecutive_cached": longest}
    gate = spectral_gates.seacache_latent(threshold=threshold, longest=longest)
    a, one = run(pipe, "wan", StackResidual(), gate, partial(forecasters.taylor, order=1), steps=12)
    b, two = run(pipe, "wan", DiffusersCache("SeaCacheConfig", rule), gates.observed(), REUSE, steps=12)
    assert one.computed_steps == two.computed_steps and len(one.computed_steps) < 12
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


@pytest.mark.parametrize("name", ["flux", "hunyuan"])
def test_a_pipeline_that_does_not_tell_diffusers_seacache_the_step_is_refused(random_pipes, name):
    """Else it would compute all steps, and the row would say nothing of why."""
    with pytest.raises(ValueError, match="would skip no step.*algo=seacache.*scheduler step, sigma, and step count"):
        run(random_pipes(name), name, DiffusersCache("SeaCacheConfig"), gates.observed(), REUSE)


@dataclass
class Looked(decisions.State):
    tokens: torch.Tensor | None = None
    grid: tuple[int, ...] = ()
    noise: float = 0.0


@decisions.gate(observes=(TOKENS, GRID, NOISE), state=Looked)
def look(step: int, T: int, seen: decisions.Seen, state: Looked) -> bool:
    state.tokens, state.grid, state.noise = seen[TOKENS], tuple(seen[GRID].tolist()), float(seen[NOISE])
    return True


GRIDS = {"flux": (8, 12), "sd3": (8, 12), "sdxl": (16, 24), "wan": (3, 8, 12), "hunyuan": (3, 8, 12)}


@pytest.mark.parametrize("name", GRIDS)
def test_the_tokens_are_what_the_first_attention_gets_and_lie_on_a_grid(random_pipes, name):
    """A picture of 64 rows and 96 columns; the newest step's tensors, and its noise beside the scheduler's."""
    pipe, entered = random_pipes(name), []
    names = ("attn", "attn1", "attentions.0")  # a U-Net's first block may have none
    first = next(m for block in blocks(pipe) for n, m in block.named_modules() if n in names)

    def keep(module, args, given):
        entered.append(given.get("hidden_states", *args[:1]))

    handle = first.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        _, session = run(pipe, name, StackResidual(), look(), REUSE, height=64, width=96)
    finally:
        handle.remove()
    looked = list(session.branches.values())[-1].state
    assert looked.grid == GRIDS[name] and looked.tokens.shape[1] == math.prod(GRIDS[name])
    sigma = float(pipe.scheduler.sigmas[STEPS - 1])
    assert looked.noise == pytest.approx(sigma if name == "sdxl" else sigma / (1 - sigma), rel=1e-5)
    if name != "sdxl":
        torch.testing.assert_close(looked.tokens, entered[-1])
