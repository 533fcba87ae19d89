"""Two denoisers by turns, as in Wan2.2: one for high noise, then another for low. Each is as if it ran alone."""

import copy
import json
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
from diffusers import WanPipeline
from helpers import TAYLOR, recipe, sample, settings

from spectrum_bench import forecasters, schedules
from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.session import cached
from spectrum_bench.caching.sites.corrected import Corrected
from spectrum_bench.caching.sites.mean_velocity import MeanVelocity
from spectrum_bench.caching.sites.solver import Solver
from spectrum_bench.caching.sites.stack import LastBlock
from spectrum_bench.decisions import State, gate
from spectrum_bench.errors import DoesNotFit, UserError
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.records import collect_records, read_records, save_record
from spectrum_bench.sampling.worker import Worker

STEPS, BOUNDARY = 10, 0.8

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture(scope="module")
def experts(random_pipes):
    """A pipeline with two networks of different weights."""
    one = random_pipes("wan")
    second = copy.deepcopy(one.transformer)
    for parameter in second.parameters():
        parameter.data.mul_(1.1)
    pipe = WanPipeline(**one.components | {"transformer_2": second, "boundary_ratio": BOUNDARY})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, schedule, forecaster=forecasters.reuse, site=None):
    """The latents and the session; with that the step at which the second network takes over."""
    site = site or LastBlock()
    with cached(pipe, schedule=schedule, forecaster=forecaster, site=site, num_steps=STEPS) as session:
        out = sample(pipe, "wan", steps=STEPS, callback=session.callback)
    return out, session


def switch(pipe) -> int:
    """The first step below the boundary, from the scheduler's own timesteps."""
    pipe.scheduler.set_timesteps(STEPS)
    return int((pipe.scheduler.timesteps >= BOUNDARY * 1000).sum())


def computed(session, name: str) -> list[int]:
    return session.branches[name, 0].computed


def test_each_network_has_its_own_warm_up_and_its_steps_are_told(experts):
    at = switch(experts)
    assert 3 < at < STEPS - 3
    _, session = run(experts, partial(schedules.mask, steps=[0, 1, 2]))
    assert session.networks == {"transformer": list(range(at)), "transformer_2": list(range(at, STEPS))}
    assert computed(session, "transformer") == [0, 1, 2]
    assert computed(session, "transformer_2") == [at, at + 1, at + 2]
    _, session = run(experts, partial(schedules.mask, steps=[0, 2, at + 2]))
    assert computed(session, "transformer") == [0, 2] and computed(session, "transformer_2") == [at, at + 2]


def test_nothing_is_forecast_across_the_switch(experts):
    """The second network has one row of its own, which a line through two would mix with the first network's."""
    at, entered = switch(experts), []
    norm = experts.transformer_2.norm_out
    handle = norm.register_forward_pre_hook(lambda module, args: entered.append(args[0].clone()))
    try:
        _, session = run(experts, partial(schedules.mask, steps=[0]), TAYLOR)
    finally:
        handle.remove()
    given = entered[::2]  # the conditional branch
    assert computed(session, "transformer_2") == [at] and len(given) == STEPS - at
    assert all(torch.equal(each, given[0]) for each in given)


def test_a_gate_counts_the_steps_of_each_network(experts):
    seen, at = [], switch(experts)

    @gate(state=State)
    def noting(step, T, seen_signals, state):
        seen.append((step, T))
        return step < 2

    run(experts, noting())
    first, second = seen[: 2 * at : 2], seen[2 * at :: 2]
    assert first == [(step, STEPS) for step in range(at)]
    assert second == [(step, STEPS - at) for step in range(STEPS - at)]


@pytest.mark.parametrize(
    ("site", "forecaster"),
    [
        (Solver(), forecasters.hindsight),
        (MeanVelocity(span=1), forecasters.reuse),
        (Corrected(LastBlock()), forecasters.reuse),
    ],
)
def test_a_site_that_joins_outputs_is_refused_with_the_way_out(experts, site, forecaster):
    with pytest.raises(DoesNotFit, match="transformer and transformer_2 by turns.*site=last_block"):
        run(experts, partial(schedules.mask, steps=[0, 1]), forecaster, site)


def test_a_record_tells_which_network_ran_at_which_step(experts, tmp_path):
    at = switch(experts)
    given = settings(f"num_inference_steps={STEPS}", "model=tiny-wan", config_name="video")
    given = replace(given, model=replace(given.model, arguments=recipe("wan")["call"]))
    algorithm = Algorithm("x", partial(schedules.mask, steps=[0, 1]), forecasters.reuse, LastBlock())
    worker = Worker(given, algorithm, opener=lambda settings: (experts, "cpu"))
    record, _ = worker.make(Job("one", 0, "a red ring", 0))
    assert record.networks == {"transformer": list(range(at)), "transformer_2": list(range(at, STEPS))}
    assert record.computed_steps == [0, 1, at, at + 1] and record.nfe == 4
    save_record(tmp_path, record)
    assert collect_records(tmp_path)[0].networks == record.networks == read_records(tmp_path)[0].networks


def test_older_records_name_no_networks_and_nonsense_is_damage(tmp_path, random_pipe):
    given = settings("model=tiny-flux", "num_inference_steps=2")
    given = replace(given, model=replace(given.model, arguments=recipe("flux")["call"]))
    algorithm = Algorithm("x", schedules.full, forecasters.reuse, LastBlock())
    worker = Worker(given, algorithm, opener=lambda settings: (random_pipe, "cpu"))
    record, _ = worker.make(Job("one", 0, "a red ring", 0))
    values = asdict(record)
    assert values.pop("networks") == {}
    (tmp_path / "records.jsonl").write_text(json.dumps(values), encoding="utf-8")
    assert read_records(tmp_path) == [record]
    for wrong in ({"transformer": [1, 0]}, {"transformer": [0, 2]}):
        (tmp_path / "records.jsonl").write_text(json.dumps(values | {"networks": wrong}), encoding="utf-8")
        with pytest.raises(UserError, match="networks.'transformer' are no steps of the sample"):
            read_records(tmp_path)
