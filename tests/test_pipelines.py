"""The five pipelines of the paper, small and random, through the same sites: what is skipped, forecast and left."""

import copy
from collections import Counter
from functools import cache, partial

import pytest
import torch
from diffusers import WanPipeline
from helpers import CALLS, MASK, STEPS, TAYLOR, blocks, denoiser, inventory, recipe, run, sample

from spectrum_bench import decisions, distances, forecasters, gates, schedules
from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.peers import DiffusersCache
from spectrum_bench.caching.session import cached
from spectrum_bench.caching.sites.modules import Modules
from spectrum_bench.caching.sites.output import Output, OutputResidual
from spectrum_bench.caching.sites.stack import LastBlock, StackResidual, TailResidual
from spectrum_bench.commands import calibrate
from spectrum_bench.errors import UserError
from spectrum_bench.sampling import clock
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.sampler import Sampler
from spectrum_bench.signals import TOKENS

GATE = gates.accumulated(threshold=0.05, polynomial=[1.0, 0.0])
SITES = {
    "last_block": LastBlock(),
    "stack_residual": StackResidual(),
    "tail_residual": TailResidual(),
    "output": Output(),
    "output_residual": OutputResidual(),
    "modules": Modules(),
}
SENSITIVE = {"timesteps": [1000, 0], "latent": [0.5, 0.5], "time": [0, 0]}
ALIGNED = partial(forecasters.aligned, least=1.0, most=1.5)
DYNAMIC = {  # as in configs/algo
    "teacache": (StackResidual(), partial(gates.accumulated, polynomial=[1.0, 0.0]), forecasters.reuse),
    "fbcache": (TailResidual(), gates.first_block, forecasters.reuse),
    "easycache": (OutputResidual(), partial(gates.easycache, first=2), forecasters.reuse),
    "dicache": (StackResidual(front=1), partial(gates.dicache, retention=0.2), ALIGNED),
    "sencache": (StackResidual(), partial(gates.sencache, start=0, longest=3, **SENSITIVE), forecasters.reuse),
    "cgtaylor": (LastBlock(front=1), partial(gates.confidence, first=1), TAYLOR),
}
NAMES = ("flux", "sd3", "sdxl", "hunyuan", "wan")
# one network call a step, two, and a U-Net; test_conformance has every site on all five
PAIRS = [
    (n, site)
    for n in ("flux", "wan", "sdxl")
    for site in SITES
    if n != "sdxl" or site not in ("modules", "tail_residual")
]


pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture(scope="module")
def plainly(random_pipes):
    """Name -> the sample of the pipeline itself."""
    return cache(lambda name: sample(random_pipes(name), name))


@pytest.mark.parametrize("name,site", PAIRS)
def test_never_skip_is_bit_identical_to_the_plain_pipeline(random_pipes, plainly, name, site):
    pipe = random_pipes(name)
    plain = plainly(name)
    for schedule in (schedules.full, gates.easycache(threshold=0, first=1)):
        out, session = run(pipe, name, SITES[site], schedule)
        assert torch.equal(out, plain) and session.computed_steps == list(range(STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("name,site", PAIRS)
def test_a_b_a_and_nothing_stays(random_pipes, name, site):
    pipe = random_pipes(name)
    sample(pipe, name)  # diffusers' cache_context leaves its own registry at the first call

    before = inventory(denoiser(pipe))
    for schedule in (MASK, GATE) if SITES[site].runs_blocks and site != "tail_residual" else (MASK,):
        first, one = run(pipe, name, SITES[site], schedule)
        run(pipe, name, SITES[site], schedule, prompts=("a blue star", "a square"), seed=7, steps=5)
        again, two = run(pipe, name, SITES[site], schedule)
        assert torch.equal(first, again) and one.computed_steps == two.computed_steps
        assert len(one.branches) == CALLS.get(name, 1)
    assert inventory(denoiser(pipe)) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_skipped_step_runs_no_block_and_forecasts_what_enters_the_epilogue(random_pipes, name):
    """Linear extrapolation of what the last block gave, image tokens only, each guidance branch from its own."""
    pipe, calls, given = random_pipes(name), Counter(), []
    epilogue = denoiser(pipe).conv_norm_out if name == "sdxl" else denoiser(pipe).norm_out
    handles = [b.register_forward_hook(lambda m, a, o: calls.update([id(m)])) for b in blocks(pipe)]
    handles.append(epilogue.register_forward_pre_hook(lambda m, args: given.append(args[0].clone())))
    try:
        _, session = run(pipe, name, LastBlock())
    finally:
        for handle in handles:
            handle.remove()
    each = CALLS.get(name, 1)
    assert session.computed_steps == [0, 1, 4] and len(given) == STEPS * each
    assert set(calls.values()) == {3 * each} and len(calls) == len(blocks(pipe))
    for branch in range(each):
        h = given[branch::each]
        for step, expected in {2: 2 * h[1] - h[0], 3: 3 * h[1] - 2 * h[0], 5: h[4] + (h[4] - h[1]) / 3}.items():
            torch.testing.assert_close(h[step], expected, rtol=1e-4, atol=1e-4 * float(h[1].abs().max()))
    rows = {tuple(b.histories["stack"].features()[0].shape) for b in session.branches.values()}
    batch = 2 if name in ("sd3", "sdxl") else 1
    shape = {"sdxl": (batch, 48, 16, 16), "hunyuan": (1, 192, 128), "wan": (1, 192, 128)}.get(name, (batch, 64, 128))
    assert rows == {shape}


@pytest.mark.parametrize("name", [n for n in NAMES if n != "sdxl"])
def test_modules_run_on_computed_steps_alone(random_pipes, name):
    """Every attention and MLP, and the norms before them; the last SD3 block has no MLP for text."""
    pipe, calls = random_pipes(name), Counter()
    words = ("to_q", "proj_mlp", "proj_out", "net.0.proj")
    handles = [
        m.register_forward_hook(lambda m, a, o, n=n: calls.update([n]))
        for i, block in enumerate(blocks(pipe))
        for n, m in ((f"{i}.{n}", m) for n, m in block.named_modules())
        if n.endswith(words) or isinstance(m, torch.nn.LayerNorm)
    ]
    try:
        _, session = run(pipe, name, Modules())
    finally:
        for handle in handles:
            handle.remove()
    each = CALLS.get(name, 1)
    assert len(handles) == len(calls) and set(calls.values()) == {len(session.computed_steps) * each}


def test_a_modulation_of_each_token_needs_no_norm_either(random_pipes):
    """Wan2.2 5B gives every token its own time. A step on the same input reuses what it would compute."""
    pipe, generator = random_pipes("wan"), torch.Generator().manual_seed(0)
    latent = torch.randn(1, pipe.transformer.config.in_channels, 3, 8, 8, generator=generator)
    text = torch.randn(1, 8, pipe.transformer.config.text_dim, generator=generator)
    site, schedule = Modules(), partial(schedules.mask, steps=[0])
    with cached(pipe, schedule=schedule, forecaster=forecasters.reuse, site=site, num_steps=2) as session:
        outputs = []
        for step in range(2):
            outputs.append(pipe.transformer(latent, torch.linspace(1, 900, 3 * 8 * 8)[None], text)[0])
            session.callback(pipe, step, None, {})
    assert session.computed_steps == [0] and torch.equal(*outputs)


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_a_gate_reads_what_enters_the_first_block_at_skipped_steps_too(random_pipes, name):
    """The norm that the signal reads does not run in the block then."""
    shapes = []

    @decisions.gate(observes=(TOKENS,), state=gates.AccumulatedState)
    def watched(step, T, seen, state):
        shapes.append(seen[TOKENS].shape)
        return step == 0

    run(random_pipes(name), name, Modules(), watched(), forecasters.reuse)
    assert len(shapes) == STEPS * CALLS.get(name, 1) and len(set(shapes)) == 1


def test_modules_refuse_a_unet_with_the_way_out(random_pipes):
    with pytest.raises(ValueError, match="use site=last_block"):
        run(random_pipes("sdxl"), "sdxl", Modules())


@pytest.mark.parametrize("name", ["sd3", "sdxl"])
def test_batched_guidance_is_one_branch_of_two_halves(random_pipes, name):
    pipe = random_pipes(name)
    both, _ = run(pipe, name, LastBlock(), prompts=("a red ring", "a blue star"))
    for i, prompt in enumerate(("a red ring", "a blue star")):
        alone, _ = run(pipe, name, LastBlock(), prompts=(prompt,), seed=i)
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-3, atol=1e-3)


@pytest.fixture
def two(random_pipes):
    """A pipeline like Wan2.2's: one network for high noise, another for low."""
    one = random_pipes("wan")
    second = copy.deepcopy(one.transformer)
    pipe = WanPipeline(**one.components | {"transformer_2": second, "boundary_ratio": 0.8})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_two_denoisers_keep_their_own_features(two):
    """The second begins with a computed step."""
    out, session = run(two, "wan", LastBlock(), schedules.full)
    assert torch.equal(out, sample(two, "wan"))
    _, session = run(two, "wan", LastBlock(), partial(schedules.mask, steps=[0]), forecasters.reuse)
    assert {key[0] for key in session.branches} == {"transformer", "transformer_2"}
    starts = {key: branch.computed for key, branch in session.branches.items()}
    assert starts["transformer", 0] == starts["transformer", 1] == [0]
    assert starts["transformer_2", 0] == starts["transformer_2", 1] and len(starts["transformer_2", 0]) == 1
    assert starts["transformer_2", 0][0] > 0


def test_what_a_peer_holds_in_both_denoisers_counts(two, random_pipes):
    rule = DiffusersCache("FirstBlockCacheConfig", {"threshold": 10.0})
    _, one = run(random_pipes("wan"), "wan", rule, gates.observed(), forecasters.reuse)
    _, both = run(two, "wan", rule, gates.observed(), forecasters.reuse)
    assert len(one.branches) == 2 and len(both.branches) == 4 and both.cache_bytes == 2 * one.cache_bytes > 0


def test_the_text_stage_ends_at_whichever_denoiser_runs_first(two, monkeypatch):
    """With a boundary of 1 the first one never runs. The clock is moved by the second one's calls alone, two a step."""
    ticks = [0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: float(ticks[0]))
    two.register_to_config(boundary_ratio=1.0)
    two.transformer_2.register_forward_hook(lambda *_: ticks.__setitem__(0, ticks[0] + 1))
    first = two.transformer.register_forward_hook(lambda *_: pytest.fail("the first one runs"))
    algorithm = Algorithm("x", partial(schedules.mask, steps=[0, 1]), forecasters.reuse, OutputResidual())
    try:
        _, figures = Sampler(two, algorithm, STEPS, recipe("wan")["call"]).sample(Job("", 0, "a red ring", 0))
    finally:
        first.remove()  # the other tests share this network
    assert (figures.latency["text"], figures.latency["denoise"]) == (0, 2 * STEPS)


def test_two_denoisers_are_not_measured_as_one(two, compose, monkeypatch):
    monkeypatch.setattr("spectrum_bench.sampling.models.open_pipeline", lambda settings: (two, "cpu"))
    words = ("model=tiny-wan", "algo=hyca", "num_inference_steps=6", "total_prompt_num=1")
    said = (
        "tiny-wan runs transformer and transformer_2 by turns, and the constants of algo=hyca .*: measure for teacache"
    )
    with pytest.raises(UserError, match=said):
        calibrate.main(compose(*words, config_name="calibrate"))


def skipping(pipe, name, site, gate, forecaster):
    """The gate at a threshold that skips some steps of this random network, and what it then computes."""
    for threshold in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0):
        _, session = run(pipe, name, site, gate(threshold=threshold), forecaster)
        if len(session.computed_steps) < STEPS:
            return gate(threshold=threshold), session.computed_steps
    raise AssertionError("it never skips")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux", "wan", "sdxl"])
@pytest.mark.parametrize("algo", DYNAMIC)
def test_gates_skip_and_leave_nothing(random_pipes, plainly, name, algo):
    """Never-skip at threshold 0; else skipped steps run the front blocks alone, and A, B, A gives A."""
    pipe, (site, gate, forecaster) = random_pipes(name), DYNAMIC[algo]
    if name == "sdxl" and site.front:
        with pytest.raises(ValueError, match="no front blocks"):
            run(pipe, name, site, gate(threshold=0.1), forecaster)
        return
    plain = plainly(name)
    out, session = run(pipe, name, site, gate(threshold=0), forecaster)
    assert torch.equal(out, plain) and session.computed_steps == list(range(STEPS))

    gate, computed = skipping(pipe, name, site, gate, forecaster)
    calls = Counter()
    handles = [b.register_forward_hook(lambda m, a, o, i=i: calls.update([i])) for i, b in enumerate(blocks(pipe))]
    try:
        first, one = run(pipe, name, site, gate, forecaster)
    finally:
        for handle in handles:
            handle.remove()
    run(pipe, name, site, gate, forecaster, prompts=("a blue star", "a square"), seed=7, steps=5)
    again, two = run(pipe, name, site, gate, forecaster)
    assert torch.equal(first, again) and one.computed_steps == two.computed_steps
    assert one.computed_steps == computed and not torch.equal(first, plain)
    front, passes = site.front, sum(len(branch.computed) for branch in one.branches.values())
    whole = STEPS * CALLS.get(name, 1)
    assert [calls[i] for i in range(len(blocks(pipe)))] == [whole if i < front else passes for i in range(len(calls))]


def test_the_second_guidance_branch_follows_where_the_method_says_so(random_pipes):
    """EasyCache decides on Wan's first call of a step; the first-block gate on each for itself."""
    site, gate, forecaster = DYNAMIC["easycache"]
    _, session = run(random_pipes("wan"), "wan", site, gate(threshold=0.3), forecaster)
    cond, uncond = session.branches.values()
    assert cond.computed == uncond.computed and cond.state.latent is not None and uncond.state.latent is None
    site, gate, forecaster = DYNAMIC["fbcache"]
    _, session = run(random_pipes("wan"), "wan", site, gate(threshold=0.3), forecaster)
    assert all(branch.state.added is not None for branch in session.branches.values())


def test_a_gate_s_tensors_count_as_cache(random_pipes):
    """FLUX, first-block: 64 tokens of 128 floats, once as the gate's reference and once as the cached residual."""
    site, gate, forecaster = DYNAMIC["fbcache"]
    _, session = run(random_pipes("flux"), "flux", site, gate(threshold=0.3), forecaster)
    assert session.cache_bytes == 2 * 64 * 128 * 4


def test_the_tail_residual_adds_to_what_the_front_block_gave(random_pipes):
    pipe, front, given = random_pipes("flux"), [], []
    handles = [
        blocks(pipe)[0].register_forward_hook(lambda m, a, out: front.append(out[1].clone())),
        denoiser(pipe).norm_out.register_forward_pre_hook(lambda m, args: given.append(args[0].clone())),
    ]
    try:
        run(pipe, "flux", TailResidual(), partial(schedules.mask, steps=[0, 1]), forecasters.reuse, steps=3)
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(given[2] - front[2], given[1] - front[1], rtol=1e-4, atol=1e-4)
    assert not torch.equal(front[2], front[1])


def test_the_output_residual_adds_to_the_latent(random_pipes):
    pipe, given, gave = random_pipes("flux"), [], []
    handles = [
        denoiser(pipe).register_forward_pre_hook(
            lambda m, args, kwargs: given.append(kwargs["hidden_states"].clone()), with_kwargs=True
        ),
        denoiser(pipe).register_forward_hook(lambda m, args, out: gave.append(out[0].clone())),
    ]
    try:
        run(pipe, "flux", OutputResidual(), partial(schedules.mask, steps=[0, 1]), forecasters.reuse, steps=3)
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(gave[2] - given[2], gave[1] - given[1], rtol=1e-4, atol=1e-4)
    assert not torch.equal(given[2], given[1])


SPECA = {"threshold": 1.0, "decay": 1.0, "shortest": 1, "longest": 8, "first": 1}


@pytest.mark.parametrize("name", [n for n in NAMES if n != "sdxl"])
def test_speca_verifies_with_the_last_block_alone(random_pipes, name):
    """Its error is that of the forecast it made against the module run on what it was given; A, B, A; nothing stays."""
    pipe, errors, limit = random_pipes(name), [], 1e9
    last = blocks(pipe)[-1]
    module = getattr(last, "proj_out", None) or getattr(last, "ffn", None) or last.ff
    real = []
    sample(pipe, name)  # diffusers' cache_context leaves its registry at the first call
    before = inventory(denoiser(pipe))
    handle = module.register_forward_hook(lambda m, a, out: real.append(out))

    @decisions.gate(state=gates.SpeCaState)
    def watched(step, T, seen, state):
        errors.append(state.error)
        return gates.speca.rule(step, T, seen, state, **SPECA | {"threshold": limit})

    gate = watched()
    try:
        first, one = run(pipe, name, Modules(verify=True), gate, TAYLOR)
    finally:
        handle.remove()
    each = CALLS.get(name, 1)
    assert one.computed_steps == [0] and len(real) == each * (STEPS - 1)  # 0 computed, 1 not verified, 2 to 5 verified
    for branch in range(each):
        forecast, seen = real[branch], errors[branch::each]
        expected = [distances.relative(forecast, out) for out in real[branch + each :: each]][:-1]
        assert seen[:3] == [None] * 3 and seen[3:] == pytest.approx(expected, rel=1e-4)
    run(pipe, name, Modules(verify=True), gate, TAYLOR, prompts=("a blue star", "a square"), seed=7, steps=5)
    assert torch.equal(run(pipe, name, Modules(verify=True), gate, TAYLOR)[0], first)
    assert inventory(denoiser(pipe)) == before


def test_speca_redoes_the_step_itself_where_it_is_told_to(random_pipes):
    """Immediate rejection at step 2 is the picture of a mask that computes 0 and 2."""
    pipe, steps = random_pipes("flux"), 3
    rule = SPECA | {"least": 1e-9, "immediate": True}
    gate = gates.speca(**rule | {"threshold": 1e-9})
    ours, session = run(pipe, "flux", Modules(verify=True), gate, TAYLOR, steps=steps)
    plain, _ = run(pipe, "flux", Modules(), partial(schedules.mask, steps=[0, 2]), TAYLOR, steps=steps)
    assert session.computed_steps == [0, 2] and torch.equal(ours, plain)
    never = gates.speca(**rule | {"threshold": 1e9})
    assert run(pipe, "flux", Modules(verify=True), never, TAYLOR, steps=steps)[1].computed_steps == [0]
