"""Other people's caches as rows; where they are a method that we have too, each is the other's witness."""

import sys
from functools import partial

import cache_dit
import pytest
import torch
from helpers import CALLS, MASK, STEPS, TAYLOR, blocks, denoiser, inventory, run, sample

from spectrum_bench import forecasters, gates, schedules
from spectrum_bench.caching.peers import CacheDiT, DiffusersCache, held
from spectrum_bench.caching.session import cached
from spectrum_bench.caching.sites.stack import LastBlock, StackResidual, TailResidual

NAMES = ("flux", "hunyuan", "wan")
REUSE = forecasters.reuse
PEERS = {
    "fbcache": DiffusersCache("FirstBlockCacheConfig", {"threshold": 2.0}),
    "magcache": DiffusersCache(
        "MagCacheConfig", {"threshold": 0.5, "mag_ratios": [1.0] + [0.9] * 5}, {"num_inference_steps": "steps"}
    ),
    "taylorseer": DiffusersCache(
        "TaylorSeerCacheConfig",
        {"cache_interval": 3, "disable_cache_before_step": 2, "cache_identifiers": [r"(\w+_)?blocks\.\d+\.attn\d?"]},
    ),
    "pab": DiffusersCache(
        "PyramidAttentionBroadcastConfig",
        {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": [-1, 2000]},
        {"current_timestep_callback": "timestep"},
    ),
}
RULE = {"Fn_compute_blocks": 1, "residual_diff_threshold": 2.0, "max_warmup_steps": 2, "max_continuous_cached_steps": 2}
PEERS |= {
    "dbcache": CacheDiT(RULE),
    "dbcache with a block at the end": CacheDiT(RULE | {"Bn_compute_blocks": 1}),
    "cachedit_taylorseer": CacheDiT(RULE, "TaylorSeerCalibratorConfig", {"taylorseer_order": 1}),
    "cachedit_foca": CacheDiT(RULE, "FoCaCalibratorConfig"),
    "cachedit_dmd": CacheDiT(RULE, "DMDCalibratorConfig"),
    "dbprune": CacheDiT(RULE, config="DBPruneConfig"),
}


pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.slow
@pytest.mark.parametrize("peer,name", [(p, n) for p in PEERS for n in ("flux", "wan") if (p, n) != ("pab", "wan")])
def test_a_b_a_steps_are_observed_and_nothing_stays(random_pipes, name, peer):
    pipe, site = random_pipes(name), PEERS[peer]
    plain = sample(pipe, name)

    before, calls = inventory(denoiser(pipe)), []
    query = next(m for n, m in blocks(pipe)[site.watched].named_modules() if n.endswith("to_q"))
    handle = query.register_forward_hook(lambda *_: calls.append(1))
    try:
        first, one = run(pipe, name, site, gates.observed(), REUSE)
    finally:
        handle.remove()
    assert not torch.equal(first, plain) and 0 < len(one.computed_steps) < STEPS
    assert len(calls) == sum(len(branch.computed) for branch in one.branches.values())
    assert len(one.branches) == CALLS.get(name, 1) and one.cache_bytes > 0
    run(pipe, name, site, gates.observed(), REUSE, prompts=("a blue star", "a square"), seed=7, steps=5)
    again, two = run(pipe, name, site, gates.observed(), REUSE)
    assert torch.equal(first, again) and one.computed_steps == two.computed_steps
    assert inventory(denoiser(pipe)) == before and not held(denoiser(pipe))
    assert torch.equal(sample(pipe, name), plain)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threshold", [0.03, 0.1, 0.3, 1.0])
def test_our_first_block_cache_is_that_of_diffusers(random_pipes, name, threshold):
    pipe, theirs = random_pipes(name), DiffusersCache("FirstBlockCacheConfig", {"threshold": threshold})
    a, one = run(pipe, name, TailResidual(), gates.first_block(threshold=threshold), REUSE)
    b, two = run(pipe, name, theirs, gates.observed(), REUSE)
    assert one.computed_steps == two.computed_steps
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_our_magcache_is_that_of_diffusers(random_pipes, name):
    pipe, ratios = random_pipes(name), [1.0, 1.1, 0.9, 0.85, 1.05, 0.9, 1.0, 1.2]
    rule = {"threshold": 0.3, "mag_ratios": ratios, "max_skip_steps": 3, "retention_ratio": 0.2}
    theirs = DiffusersCache("MagCacheConfig", rule, {"num_inference_steps": "steps"})
    mask = partial(schedules.magcache, ratios=ratios, threshold=0.3, longest=3, retention=0.2)
    a, one = run(pipe, name, StackResidual(), mask, REUSE, steps=10)
    b, two = run(pipe, name, theirs, gates.observed(), REUSE, steps=10)
    assert one.computed_steps == two.computed_steps and len(one.computed_steps) < 10
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


@pytest.mark.parametrize("name", ["flux", "wan"])  # of HunyuanVideo it caches its two stacks apart
@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_our_first_block_cache_is_dbcache_with_one_block(random_pipes, name, threshold):
    """DBCache's F1B0 without warm-up; its threshold means the same, and so does what it reuses."""
    pipe = random_pipes(name)
    theirs = CacheDiT({"Fn_compute_blocks": 1, "residual_diff_threshold": threshold, "max_warmup_steps": 0})
    a, one = run(pipe, name, TailResidual(), gates.first_block(threshold=threshold), REUSE)
    b, two = run(pipe, name, theirs, gates.observed(), REUSE)
    assert one.computed_steps == two.computed_steps and (len(one.computed_steps) < STEPS or threshold < 0.5)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


@pytest.mark.parametrize("policy", ["slow", "ultra"])
def test_a_mask_of_cache_dit_computes_its_steps(random_pipes, policy):
    rule = RULE | {"max_warmup_steps": 0, "max_continuous_cached_steps": -1, "steps_computation_policy": "static"}
    _, session = run(random_pipes("flux"), "flux", CacheDiT(rule, policy=policy), gates.observed(), REUSE, steps=16)
    mask = cache_dit.steps_mask(total_steps=16, mask_policy=policy)
    assert session.computed_steps == [step for step, computed in enumerate(mask) if computed]


GUIDED = {"true_cfg_scale": 4.0, "negative_prompt": ["blurry"]}
UNGUIDED = {"guidance_scale": 1.0}


@pytest.mark.parametrize("name,call", [("flux", GUIDED), ("hunyuan", GUIDED), ("wan", UNGUIDED), ("wan", {})])
@pytest.mark.parametrize("threshold", [0.3, 100.0])
def test_cache_dit_is_told_how_many_calls_a_step_has(random_pipes, name, call, threshold):
    """Else it takes one guidance branch's residual for the other's, and every other step for the other branch."""
    pipe = random_pipes(name)
    theirs = CacheDiT({"Fn_compute_blocks": 1, "residual_diff_threshold": threshold, "max_warmup_steps": 0})
    b, two = run(pipe, name, theirs, gates.observed(), REUSE, **call)
    assert len(two.branches) == (1 if call == UNGUIDED else 2)
    assert all(branch.computed[0] == 0 for branch in two.branches.values())
    if name != "hunyuan":  # there it caches the two stacks apart
        a, one = run(pipe, name, TailResidual(), gates.first_block(threshold=threshold), REUSE, **call)
        if threshold == 100.0 or call == UNGUIDED:  # in between its second branch follows the first one's decision
            assert [branch.computed for branch in one.branches.values()] == [b.computed for b in two.branches.values()]
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


def dropping(pipe, step, timestep, tensors):
    """Guidance ends: from here on a step has one call."""
    pipe._guidance_scale = 1.0 if step >= 1 else pipe._guidance_scale
    return tensors


@pytest.mark.parametrize("peer", ["dbcache", "cachedit_taylorseer"])
def test_a_peer_that_counts_calls_is_refused_where_their_number_changes(random_pipes, peer):
    pipe = random_pipes("wan")
    with cached(pipe, schedule=gates.observed(), forecaster=REUSE, site=PEERS[peer], num_steps=STEPS) as session:

        def step_done(pipe, step, timestep, tensors):
            return dropping(pipe, step, timestep, session.callback(pipe, step, timestep, tensors))

        with pytest.raises(ValueError, match="changed from 2 to 1 a step at step 2"):
            sample(pipe, "wan", callback=step_done)


def test_a_peer_that_counts_calls_and_cannot_be_told_is_refused_at_the_first_step(random_pipes):
    with pytest.raises(ValueError, match="PyramidAttentionBroadcast.* would mix this pipeline's two guidance branches"):
        run(random_pipes("wan"), "wan", PEERS["pab"], gates.observed(), REUSE)
    one = CacheDiT(RULE | {"enable_separate_cfg": False})
    with pytest.raises(ValueError, match="cache-dit counts 1 calls a step, and this pipeline has 2"):
        run(random_pipes("wan"), "wan", one, gates.observed(), REUSE)


def test_what_cache_dit_cannot_do_is_said(random_pipes, monkeypatch):
    with pytest.raises(ValueError, match="cache-dit caches nothing in SD3Transformer2DModel"):
        run(random_pipes("sd3"), "sd3", PEERS["dbcache"], gates.observed(), REUSE)
    with pytest.raises(ValueError, match="no more than 40 blocks"):
        run(random_pipes("flux"), "flux", CacheDiT({"Fn_compute_blocks": 40}), gates.observed(), REUSE)
    with pytest.raises(ValueError, match="cache-dit says.*nonsense"):
        CacheDiT(RULE, policy="nonsense")
    for wrong in (({"nonsense": 1},), ({}, "NoSuchConfig"), ({}, "FoCaCalibratorConfig", {"nonsense": 1})):
        with pytest.raises(ValueError, match="cache-dit says.*(nonsense|NoSuchConfig)"):
            CacheDiT(*wrong)
    monkeypatch.setitem(sys.modules, "cache_dit", None)
    with pytest.raises(ValueError, match="pip install cache-dit=="):
        CacheDiT({})


def test_what_diffusers_cannot_do_is_said(random_pipes):
    with pytest.raises(ValueError, match="diffusers caches nothing in SD3Transformer2DModel: use our own"):
        run(random_pipes("sd3"), "sd3", PEERS["fbcache"], gates.observed(), REUSE)
    with pytest.raises(ValueError, match="site.config=FirstBlockCacheConfig.*nonsense"):
        DiffusersCache("FirstBlockCacheConfig", {"nonsense": 1})
    with pytest.raises(ValueError, match="site.config=NoSuchConfig"):
        DiffusersCache("NoSuchConfig")
    with pytest.raises(ValueError, match="calibrate.py algo=magcache"):
        DiffusersCache("MagCacheConfig", {"mag_ratios": None}, {"num_inference_steps": "steps"})


def test_ours_still_run_after_theirs(random_pipes):
    pipe = random_pipes("flux")
    first, _ = run(pipe, "flux", LastBlock(), MASK, TAYLOR)
    run(pipe, "flux", PEERS["fbcache"], gates.observed(), REUSE)
    assert torch.equal(run(pipe, "flux", LastBlock(), MASK, TAYLOR)[0], first)
