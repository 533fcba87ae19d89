"""SmoothCache: masks by hand, which kinds of modules run at which steps, and the errors that are measured."""

from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
import torch
from helpers import STEPS, blocks, recipe, run, sample, settings

from spectrum_bench import forecasters, schedules
from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.session import cached
from spectrum_bench.caching.sites.modules import Modules
from spectrum_bench.caching.sites.parts import Kinds
from spectrum_bench.commands.compose import build
from spectrum_bench.errors import BadValue, DoesNotFit
from spectrum_bench.lab import smoothcache
from spectrum_bench.lab.uncached import Uncached
from spectrum_bench.sampling.jobs import Job

pytestmark = pytest.mark.usefixtures("no_gradients")

NEVER, ALWAYS = [[9.0] * 5], [[0.0] * 5]  # skip nothing | one step after each computed one
THIRD = [[9.0] * 5, [0.0] * 4]  # skip two


def test_a_mask_by_hand():
    """0.1 is reached 3 steps ahead at step 0, 2 ahead at step 4, 1 ahead at step 7, and nowhere at step 9 of 11."""
    one, two, three = [1.0] * 10, [1.0] * 9, [1.0] * 8
    one[0] = two[0] = three[0] = one[4] = two[4] = one[7] = 0.1
    mask = schedules.smooth_mask([one, two, three], 0.1)
    assert mask.nonzero()[0].tolist() == [0, 4, 7, 9, 10]
    assert schedules.smooth_mask([one, two, three], 0.05).all()


def test_the_schedule_computes_where_any_kind_does():
    computed = schedules.smoothcache(6, errors=[THIRD, ALWAYS], threshold=0.1).nonzero()[0].tolist()
    assert computed == [0, 2, 3, 4, 5]
    with pytest.raises(BadValue, match="measured for num_inference_steps=6: .*calibrate.py algo=smoothcache"):
        schedules.smoothcache(50, errors=[NEVER], threshold=0.1)
    with pytest.raises(BadValue, match="no constants for smoothcache"):
        schedules.smoothcache(50, errors=[], threshold=0.1)


@pytest.mark.parametrize("name", ["flux", "wan", "hunyuan"])
def test_each_kind_runs_by_its_own_mask_and_its_newest_output_is_reused(random_pipes, name):
    pipe, ran = random_pipes(name), []
    kinds = ["attn1", "attn2", "ffn"] if name == "wan" else ["attn", "ff", "ff_context", "proj_out"]
    errors = [ALWAYS if kind in ("attn", "attn1") else NEVER for kind in kinds]
    site, rule = Kinds(kinds), partial(schedules.smoothcache, errors=errors, threshold=0.1)
    with (
        cached(pipe, schedule=rule, forecaster=forecasters.reuse, site=site, num_steps=STEPS) as session,
        ExitStack() as undo,
    ):
        for kind in kinds:
            module = next(getattr(block, kind) for block in blocks(pipe) if kind in dict(block.named_children()))
            note = lambda *_, kind=kind: ran.append((kind, session.step))  # noqa: E731
            undo.callback(module.module.register_forward_hook(note).remove)
        out = sample(pipe, name, callback=session.callback)
    assert session.computed_steps == list(range(6)) and not torch.equal(out, sample(pipe, name))
    for kind, curves in zip(kinds, errors, strict=True):
        steps = sorted({step for k, step in ran if k == kind})
        assert steps == ([0, 2, 4, 5] if curves is ALWAYS else list(range(6))), kind


@pytest.mark.parametrize("name", ["flux", "wan"])
def test_one_mask_for_all_kinds_is_reuse_of_modules(random_pipes, name):
    pipe = random_pipes(name)
    kinds = ["attn1", "attn2", "ffn"] if name == "wan" else ["attn", "ff", "ff_context", "proj_out"]
    rule = partial(schedules.smoothcache, errors=[THIRD] * len(kinds), threshold=0.1)
    a, one = run(pipe, name, Kinds(kinds), rule, forecasters.reuse)
    b, two = run(pipe, name, Modules(), rule, forecasters.reuse)
    assert torch.equal(a, b) and one.computed_steps == two.computed_steps == [0, 3, 5]


def test_errors_are_those_of_the_modules_outputs(random_pipes):
    pipe, kept = random_pipes("flux"), []
    block = blocks(pipe)[0]
    handle = block.ff.register_forward_hook(lambda module, args, out: kept.append(out))
    try:
        uncached, job = Uncached(pipe, 5, dict(recipe("flux")["call"])), Job("one", 0, "a ring", 3)
        errors = smoothcache.Errors()
        uncached.sampler(smoothcache.NOCACHE).watch(job, [errors])
    finally:
        handle.remove()
    for j in range(3):
        for step in range(4 - j):
            now, old = kept[step + j + 1], kept[step]
            expected = float((now - old).abs().mean() / now.abs().mean())
            assert errors.lists["ff", j, step][0] == pytest.approx(expected, rel=1e-4)
    measured = smoothcache.calibrate(uncached, [job])
    assert measured["kinds"] == ["attn", "ff", "ff_context", "proj_out"]
    assert [len(curve) for curve in measured["errors"][0]] == [4, 3, 2] and np.isfinite(measured["errors"][1][0]).all()


def test_only_its_own_schedule_and_reuse_fit():
    with pytest.raises(DoesNotFit, match="come from their own schedule: use algo=smoothcache"):
        Algorithm("x", partial(schedules.uniform, interval=2), forecasters.reuse, Kinds(["attn"])).check(6)
    rule = partial(schedules.smoothcache, errors=[NEVER], threshold=0.1)
    with pytest.raises(DoesNotFit, match="are reused: use algo=smoothcache"):
        Algorithm("x", rule, partial(forecasters.taylor, order=1), Kinds(["attn"])).check(6)


@pytest.mark.parametrize("model", ["tiny-flux", "tiny-sd3", "tiny-wan", "tiny-hunyuan"])
def test_the_measured_miniatures_skip_steps(model):
    given = settings("algo=smoothcache", f"model={model}")
    assert 5 < schedules.plan(build(given).schedule, 50).sum() < 50
