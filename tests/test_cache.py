"""Conformance: never-skip is the plain pipeline, state never leaks, skipping really skips."""

import inspect
import sys
from collections import Counter
from functools import partial

import pytest
import torch
from helpers import inventory

from spectrum_bench import anatomy, forecasters, gates, schedules, signals
from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.session import cached
from spectrum_bench.caching.sites.clusters import Clusters
from spectrum_bench.caching.sites.modules import Modules
from spectrum_bench.caching.sites.output import OutputResidual
from spectrum_bench.caching.sites.stack import LastBlock, StackResidual, TailResidual
from spectrum_bench.caching.sites.tokens import Alternating, Tokens
from spectrum_bench.sampling import clock
from spectrum_bench.sampling.sampler import Sampler

STEPS = 12
SITES = {"last_block": LastBlock(), "stack_residual": StackResidual(), "modules": Modules()}
TAYLOR = partial(forecasters.taylor, order=1)
ADAPTIVE = partial(schedules.adaptive_window, window=2, flex=0.75, warmup=3)
GATE = gates.accumulated(threshold=0.2, polynomial=[1.0, 0.0])


def sample(pipe, prompts=("a red ring",), seed=0, steps=STEPS, callback=None, **extra):
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    return pipe(
        list(prompts),
        height=64,
        width=64,
        num_inference_steps=steps,
        guidance_scale=3.5,
        max_sequence_length=16,
        generator=generators,
        output_type="latent",
        callback_on_step_end=callback,
        **extra,
    ).images


def run(pipe, site, schedule=ADAPTIVE, forecaster=TAYLOR, steps=STEPS, **extra):
    with cached(pipe, schedule=schedule, forecaster=forecaster, site=site, num_steps=steps) as session:
        return sample(pipe, steps=steps, callback=session.callback, **extra), session


def block_calls(pipe):
    """Counts calls of the attention of each block: what a computed step must run and a skipped one must not."""
    calls, handles = Counter(), []
    for name, module in pipe.transformer.named_modules():
        if name.endswith("to_q"):
            handles.append(module.register_forward_hook(lambda *_, name=name: calls.update([name])))
    return calls, handles


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(
    "extra", [{}, {"true_cfg_scale": 3.0, "negative_prompt": "a blue star"}], ids=["guided", "two-call CFG"]
)
def test_never_skip_is_bit_identical_to_the_plain_pipeline(random_pipe, site, extra):
    plain = sample(random_pipe, **extra)
    for schedule in (schedules.full, gates.accumulated(threshold=1e-12, polynomial=[1.0])):
        image, session = run(random_pipe, SITES[site], schedule, **extra)
        assert session.computed_steps == list(range(STEPS))
        assert torch.equal(image, plain)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("schedule", [ADAPTIVE, GATE], ids=["mask", "gate"])
def test_a_b_a(random_pipe, site, schedule):
    """Another prompt, seed, batch size and number of steps between two equal calls leave no trace."""
    first, one = run(random_pipe, SITES[site], schedule)
    run(random_pipe, SITES[site], schedule, prompts=("a blue star", "a square"), seed=7, steps=9)
    again, two = run(random_pipe, SITES[site], schedule)
    assert torch.equal(first, again) and one.computed_steps == two.computed_steps
    assert len(one.computed_steps) < STEPS


@pytest.mark.parametrize("site", SITES)
def test_nothing_stays_on_the_pipeline(random_pipe, site):
    sample(random_pipe)  # diffusers' cache_context leaves its own registry at the first call
    before = inventory(random_pipe.transformer)
    run(random_pipe, SITES[site])
    assert inventory(random_pipe.transformer) == before
    with (
        pytest.raises(KeyError),
        cached(random_pipe, schedule=ADAPTIVE, forecaster=TAYLOR, site=SITES[site], num_steps=STEPS),
    ):
        raise KeyError("interrupted")
    assert inventory(random_pipe.transformer) == before


@pytest.mark.parametrize("site", SITES)
def test_skipping_skips(random_pipe, site):
    calls, handles = block_calls(random_pipe)
    try:
        _, session = run(random_pipe, SITES[site])
    finally:
        for handle in handles:
            handle.remove()
    computed = ADAPTIVE(STEPS).nonzero()[0].tolist()
    assert session.computed_steps == computed and len(computed) < STEPS
    assert len(calls) == 2 + 4 and set(calls.values()) == {len(computed)}


@pytest.mark.parametrize("site", SITES)
def test_a_batch_of_two_is_two_samples(random_pipe, site):
    both, _ = run(random_pipe, SITES[site], prompts=("a red ring", "a blue star"))
    for i, prompt in enumerate(("a red ring", "a blue star")):
        alone, _ = run(random_pipe, SITES[site], prompts=(prompt,), seed=i)
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    assert (both[0] - both[1]).abs().max() > 0.1


@pytest.mark.parametrize("site", SITES)
def test_guidance_branches_decide_alike_and_store_apart(random_pipe, site):
    extra = {"true_cfg_scale": 3.0, "negative_prompt": "a blue star"}
    _, session = run(random_pipe, SITES[site], **extra)
    cond, uncond = session.branches[("transformer", 0)], session.branches[("transformer", 1)]
    assert len(session.branches) == 2
    assert cond.computed == uncond.computed == ADAPTIVE(STEPS).nonzero()[0].tolist()
    assert cond.histories.keys() == uncond.histories.keys()
    assert any(
        not torch.equal(a, b)
        for slot in cond.histories
        for a, b in zip(cond.histories[slot].features(), uncond.histories[slot].features(), strict=True)
    )


def test_last_block_feeds_the_epilogue_exactly_the_forecast(random_pipe):
    seen, transformer = [], random_pipe.transformer
    handle = transformer.norm_out.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    try:
        run(random_pipe, LastBlock(), partial(schedules.mask, steps=[0, 1, 4]), TAYLOR, steps=6)
    finally:
        handle.remove()
    for step, (newest, weights) in {2: (1, (-1, 2)), 3: (1, (-2, 3))}.items():
        expected = weights[0] * seen[newest - 1] + weights[1] * seen[newest]
        torch.testing.assert_close(seen[step], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen[5], seen[4] + (seen[4] - seen[1]) / 3, rtol=1e-5, atol=1e-5)


def test_each_guidance_branch_forecasts_from_its_own_features(random_pipe):
    """What enters the epilogue in the second call of a skipped step follows from the second calls before it."""
    seen, transformer = [], random_pipe.transformer
    handle = transformer.norm_out.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    extra = {"true_cfg_scale": 3.0, "negative_prompt": "a blue star"}
    try:
        run(random_pipe, LastBlock(), partial(schedules.mask, steps=[0, 1]), TAYLOR, steps=3, **extra)
    finally:
        handle.remove()
    assert len(seen) == 6 and not torch.allclose(seen[2], seen[3])
    for branch in (0, 1):
        torch.testing.assert_close(seen[4 + branch], 2 * seen[2 + branch] - seen[branch], rtol=1e-5, atol=1e-5)


def test_stack_residual_adds_to_the_current_input(random_pipe):
    """On a skipped step: what enters the epilogue less the embedded latent is the last computed residual."""
    inner, outer, transformer = [], [], random_pipe.transformer
    handles = [
        transformer.x_embedder.register_forward_hook(lambda m, a, out: inner.append(out.clone())),
        transformer.norm_out.register_forward_pre_hook(lambda m, args: outer.append(args[0].clone())),
    ]
    try:
        run(random_pipe, StackResidual(), partial(schedules.mask, steps=[0, 1]), forecasters.reuse, steps=3)
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(outer[2] - inner[2], outer[1] - inner[1], rtol=1e-4, atol=1e-4)
    assert not torch.equal(inner[2], inner[1])


def test_modules_reuse_is_the_published_update(random_pipe):
    """At a reuse step a double block must add gate * cached attention + gate * cached MLP to both streams, with
    gates of the current step (Shenyi-Z/TaylorSeer@288776d, section 4.2 of FORA's paper)."""
    block, kept, got = random_pipe.transformer.transformer_blocks[0], [], []
    handles = [
        block.attn.register_forward_hook(lambda m, a, out: kept.append(out)),
        block.ff.register_forward_hook(lambda m, a, out: kept.append(out)),
        block.ff_context.register_forward_hook(lambda m, a, out: kept.append(out)),
        block.register_forward_hook(lambda m, a, k, out: got.append((k, out)), with_kwargs=True),
    ]
    try:
        run(random_pipe, Modules(), partial(schedules.mask, steps=[0]), forecasters.reuse, steps=2)
    finally:
        for handle in handles:
            handle.remove()
    (attention, context), ff, ff_context = kept
    given, (text, image) = got[1]
    with torch.no_grad():
        _, gate, _, _, gate_mlp = block.norm1(given["hidden_states"], emb=given["temb"])
        _, c_gate, _, _, c_gate_mlp = block.norm1_context(given["encoder_hidden_states"], emb=given["temb"])
    expected = given["hidden_states"] + gate[:, None] * attention + gate_mlp[:, None] * ff
    expected_text = given["encoder_hidden_states"] + c_gate[:, None] * context + c_gate_mlp[:, None] * ff_context
    torch.testing.assert_close(image, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(text, expected_text, rtol=1e-4, atol=1e-4)


def test_the_gate_reads_the_modulated_input(random_pipe):
    """Signals recomputed by hand from the first block's input must give the same decisions."""
    transformer, modulated = random_pipe.transformer, []

    def probe(block, args, kwargs):
        with torch.no_grad():
            modulated.append(block.norm1(kwargs["hidden_states"], emb=kwargs["temb"])[0])

    handle = transformer.transformer_blocks[0].register_forward_pre_hook(probe, with_kwargs=True)
    try:
        run(random_pipe, None, schedules.full)
        plain = list(modulated)
    finally:
        handle.remove()
    state = GATE.start(STEPS)
    first_skip = [GATE.decide(s, {signals.MODULATED: x}, state) for s, x in enumerate(plain)].index(False)
    _, session = run(random_pipe, StackResidual(), GATE, forecasters.reuse)
    assert session.computed_steps[: first_skip + 1] == [*range(first_skip), session.computed_steps[first_skip]]
    assert first_skip not in session.computed_steps and session.computed_steps[-1] == STEPS - 1


@pytest.mark.parametrize(
    "site,slots,rows", [("last_block", [64 * 128], 2), ("modules", [64 * 128, 16 * 128] * 4 + [80 * 128] * 4, 2)]
)
def test_cache_bytes_are_those_of_the_features(random_pipe, site, slots, rows):
    _, session = run(random_pipe, SITES[site])
    assert session.cache_bytes == rows * 4 * sum(slots)


def test_full_and_skipped_steps_are_told_apart_by_the_clock(random_pipe, monkeypatch):
    """A clock that only the first block's attention moves: a full step takes one tick, a skipped one none."""
    from spectrum_bench.sampling.jobs import Job

    ticks = [0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: float(ticks[0]))
    attention = random_pipe.transformer.transformer_blocks[0].attn.to_q
    handle = attention.register_forward_hook(lambda *_: ticks.__setitem__(0, ticks[0] + 1))
    algorithm = Algorithm("x", partial(schedules.mask, steps=[0, 1, 4]), TAYLOR, LastBlock())
    shape = {"height": 64, "width": 64, "max_sequence_length": 16}
    try:
        _, figures = Sampler(random_pipe, algorithm, 6, shape).sample(Job("", 0, "a ring", 0))
    finally:
        handle.remove()
    assert figures.computed_steps == [0, 1, 4] and figures.nfe == 3
    expected = {"text": 0, "denoise": 3, "decode": 0, "total": 3, "full_step": 1, "skipped_step": 0}
    assert figures.latency == expected


@pytest.mark.parametrize("others, alone", [(10, False), (4, True)])
def test_a_latency_is_one_if_others_left_the_processors_idle(random_pipe, monkeypatch, others, alone):
    """In twenty seconds of two processors this program takes one of them, and others so many seconds of the other."""
    from collections import namedtuple
    from types import SimpleNamespace

    from spectrum_bench.sampling.jobs import Job

    Times = namedtuple("Times", "user system idle iowait")
    machine = iter([Times(0, 0, 0, 0), Times(15 + others, 5, 15 - others, 5)])
    process = iter([(0, 0, 9), (15, 5, 9)])  # user, system, its children's
    monkeypatch.setattr(clock.psutil, "cpu_times", lambda: next(machine))
    monkeypatch.setattr(clock.psutil, "Process", lambda: SimpleNamespace(cpu_times=lambda: next(process)))
    algorithm = Algorithm("x", schedules.full, forecasters.reuse, None)
    shape = {"height": 64, "width": 64, "max_sequence_length": 16}
    _, figures = Sampler(random_pipe, algorithm, 2, shape).sample(Job("", 0, "a ring", 0))
    assert figures.alone is alone


@pytest.mark.parametrize("others, alone", [(3, False), (1, True)])
def test_a_latency_is_one_if_nobody_elses_model_is_on_the_gpu(monkeypatch, others, alone):
    """Of 80 GiB we hold 20; others, our own context among them, so many."""

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: ((60 - others) * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20 * 2**30)
    assert clock.alone(torch.device("cuda"), (0.0, 0.0)) is alone


ANY = {
    "mask": (LastBlock(), ADAPTIVE, TAYLOR),
    "teacache": (StackResidual(), GATE, forecasters.reuse),
    "fbcache": (TailResidual(), gates.first_block(threshold=3), forecasters.reuse),
    "dicache": (
        StackResidual(front=1),
        gates.dicache(threshold=3, retention=0.2),
        partial(forecasters.aligned, least=1.0, most=1.5),
    ),
    "easycache": (OutputResidual(), gates.easycache(threshold=3, first=2), forecasters.reuse),
    "speca": (Modules(verify=True), gates.speca(threshold=1, decay=1, shortest=1, longest=3, first=1), TAYLOR),
    "duca": (Alternating(Tokens(ratio=0.5, score="value_norm", interval=3)), ADAPTIVE, forecasters.reuse),
    "clusca": (Clusters(count=4), ADAPTIVE, TAYLOR),
}


@pytest.mark.parametrize("algo", ANY)
def test_no_step_reads_a_signature(random_pipe, monkeypatch, algo):
    """It takes as long as a skipped step's arithmetic: names are looked up when hooks are attached. diffusers' own
    calls are its own."""
    site, schedule, forecaster = ANY[algo]
    signature = inspect.signature

    def only_others(*args, **kwargs):
        caller = sys._getframe(1).f_globals["__name__"]
        assert not caller.startswith("spectrum_bench"), f"{caller} reads a signature in a step"
        return signature(*args, **kwargs)

    anatomy._parameter_names.cache_clear()
    with cached(random_pipe, schedule=schedule, forecaster=forecaster, site=site, num_steps=STEPS) as session:
        monkeypatch.setattr(inspect, "signature", only_others)
        sample(random_pipe, callback=session.callback)
    assert 0 < len(session.computed_steps) < STEPS


def test_another_number_of_steps_than_announced_raises(random_pipe):
    with (
        pytest.raises(ValueError, match="more than the 3 steps"),
        cached(random_pipe, schedule=schedules.full, forecaster=TAYLOR, site=None, num_steps=3) as session,
    ):
        sample(random_pipe, steps=4, callback=session.callback)


def test_a_pipeline_without_a_denoiser_raises():
    class StableCascade:
        prior = torch.nn.Linear(2, 2)

    with (
        pytest.raises(ValueError, match="StableCascade has neither transformer nor unet"),
        cached(StableCascade(), schedule=schedules.full, forecaster=TAYLOR, site=None, num_steps=3),
    ):
        pass


def test_an_unknown_denoiser_raises():
    class Pipe:
        transformer = torch.nn.Sequential(torch.nn.Linear(2, 2))

    with (
        pytest.raises(ValueError, match="no list of transformer blocks"),
        cached(Pipe(), schedule=schedules.full, forecaster=TAYLOR, site=LastBlock(), num_steps=3),
    ):
        pass


@pytest.mark.parametrize(
    "site,stand_ins",
    # two stacks and their entry; what the blocks alone read: text projection, rotary table, and the embedded latent
    [("last_block", 2 + 1 + 3), ("stack_residual", 2 + 1 + 2), ("modules", 19 * (3 + 4) + 38 * (3 + 1))],
)
def test_sites_attach_to_flux_dev_at_its_full_size(site, stand_ins):
    """FLUX.1-dev's own architecture (the class's defaults) on the meta device: 19 double and 38 single blocks."""
    from diffusers import FluxTransformer2DModel

    class Pipe:
        with torch.device("meta"):
            transformer = FluxTransformer2DModel(guidance_embeds=True)

    def ours():
        modules = Pipe.transformer.modules()
        return sum(type(m).__module__.startswith("spectrum_bench.caching.sites") for m in modules)

    assert (len(Pipe.transformer.transformer_blocks), len(Pipe.transformer.single_transformer_blocks)) == (19, 38)
    with cached(Pipe(), schedule=schedules.full, forecaster=TAYLOR, site=SITES[site], num_steps=50):
        assert ours() == stand_ins
    assert ours() == 0
