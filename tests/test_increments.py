"""ICC: what a linear layer gives at a skipped step, the rank of its factors, and what is kept for it."""

from contextlib import ExitStack
from functools import partial

import pytest
import torch
from helpers import STEPS, blocks, run, sample
from torch import nn

from spectrum_bench import forecasters, schedules
from spectrum_bench.anatomy import anatomy
from spectrum_bench.caching.session import cached
from spectrum_bench.caching.sites.increments import Increments, linear_layers, low_rank
from spectrum_bench.caching.sites.modules import Modules, known
from spectrum_bench.errors import BadValue, DoesNotFit

pytestmark = pytest.mark.usefixtures("no_gradients")

ONCE = partial(schedules.mask, steps=[0])


@pytest.mark.parametrize("name", ["flux", "sd3", "wan", "hunyuan"])
def test_of_full_rank_it_is_the_plain_run_and_of_rank_one_between_it_and_reuse(random_pipes, name):
    pipe, distance = random_pipes(name), {}
    plain = sample(pipe, name)
    for label, site in {"full": Increments(1.0), "one": Increments(1e-9), "reuse": Modules()}.items():
        out, session = run(pipe, name, site, ONCE, forecasters.reuse)
        assert session.computed_steps == [0]
        distance[label] = float((out - plain).norm() / plain.norm())
    assert distance["full"] < 1e-4 < distance["one"], distance
    assert torch.equal(sample(pipe, name), plain)


def test_a_skipped_step_by_hand(random_pipe):
    """A layer gives y + A B (x' - x), where A B is the weight without its smaller singular values, in float64."""
    layer, seen = blocks(random_pipe)[0].ff.net[2], []
    site = Increments(0.25)
    with (
        cached(random_pipe, schedule=ONCE, forecaster=forecasters.reuse, site=site, num_steps=2) as session,
        ExitStack() as undo,
    ):
        stand_in = blocks(random_pipe)[0].ff.net[2]
        note = lambda module, args, out: seen.append((args[0].double(), out.double()))  # noqa: E731
        undo.callback(stand_in.register_forward_hook(note).remove)
        sample(random_pipe, "flux", callback=session.callback, steps=2)
    (x, y), (moved, out) = seen
    u, s, vh = torch.linalg.svd(layer.weight.double(), full_matrices=False)
    s[len(s) // 4 :] = 0
    torch.testing.assert_close(out, y + (moved - x) @ (u * s @ vh).T, rtol=1e-4, atol=1e-5)
    assert not torch.equal(out, y)


def test_what_several_layers_read_is_kept_once(random_pipe):
    _, session = run(random_pipe, "flux", Increments(), ONCE, forecasters.reuse, steps=2)
    slots = next(iter(session.branches.values())).histories
    assert {"0.attn.to_q.in", "0.attn.to_q.out", "0.attn.to_k.out", "0.attn.to_v.out"} <= slots.keys()
    assert not {"0.attn.to_k.in", "0.attn.to_v.in"} & slots.keys()


def test_the_layers_of_attention_and_mlps_and_no_modulation(random_pipe):
    first, last = blocks(random_pipe)[0], blocks(random_pipe)[-1]
    known_to = anatomy(random_pipe.transformer)
    names = linear_layers(first, known(first, known_to))
    assert len(names) == len(set(names)) == 12 and not [name for name in names if name.startswith("norm")]
    assert set(linear_layers(last, known(last, known_to))) == {
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "proj_mlp",
        "proj_out",
    }


def test_weights_are_decomposed_once_and_with_what_they_can_be(random_pipe):
    site = Increments()
    for _ in range(2):
        run(random_pipe, "flux", site, ONCE, forecasters.reuse, steps=2)
    assert (
        len(site.factors)
        == len(set(site.factors))
        == sum(
            len(linear_layers(block, known(block, anatomy(random_pipe.transformer)))) for block in blocks(random_pipe)
        )
    )
    elsewhere = nn.Linear(4, 8, device="meta")
    assert [tuple(factor.shape) for factor in low_rank(elsewhere, 0.5)] == [(8, 2), (2, 4)]  # to count operations
    elsewhere._hf_hook = "accelerate's"
    with pytest.raises(DoesNotFit, match="unquantised"):
        low_rank(elsewhere, 0.5)
    with pytest.raises(BadValue, match="site.share"):
        Increments(2.0)


def test_guidance_branches_and_a_later_sample_keep_their_own(random_pipes):
    pipe, site = random_pipes("sd3"), Increments()
    half = partial(schedules.mask, steps=[0, STEPS // 2])
    first, _ = run(pipe, "sd3", site, half, forecasters.reuse)
    run(pipe, "sd3", site, half, forecasters.reuse, prompts=("a blue star",), seed=7)
    assert torch.equal(run(pipe, "sd3", site, half, forecasters.reuse)[0], first)
