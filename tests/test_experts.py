"""Two denoisers by turns, as in Wan2.2: one for high noise, then another for low. Each is as if it ran alone."""

import copy
import itertools
import json
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from helpers import TAYLOR, made_up_sample, recipe, sample, settings

from spectrum_bench import forecasters, gates, schedules
from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.propagation import propagator, watch
from spectrum_bench.caching.session import cached
from spectrum_bench.caching.sites import mean_velocity
from spectrum_bench.caching.sites.corrected import Corrected
from spectrum_bench.caching.sites.mean_velocity import MeanVelocity
from spectrum_bench.caching.sites.solver import FittedSolver, Solver, estimates
from spectrum_bench.caching.sites.stack import LastBlock, StackResidual
from spectrum_bench.commands.compose import build, read_calibration
from spectrum_bench.decisions import State, gate
from spectrum_bench.errors import DoesNotFit, UserError
from spectrum_bench.lab import calibration, hindcast, replay, rivals, search, smoothcache, traces
from spectrum_bench.lab.traces import trace
from spectrum_bench.lab.uncached import Uncached
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.records import collect_records, read_records, save_record
from spectrum_bench.sampling.sampler import Latents
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
        out = sample(pipe, "wan", steps=STEPS, callback=session.callback, num_frames=1)
    return out, session


def switch(pipe) -> int:
    """The first step below the boundary, from the scheduler's own timesteps."""
    pipe.scheduler.set_timesteps(STEPS)
    return int((pipe.scheduler.timesteps >= BOUNDARY * 1000).sum())


def computed(session, name: str) -> list[int]:
    return session.branches[name, 0].computed


def test_each_network_has_its_own_warm_up_and_its_steps_are_told(experts):
    at = switch(experts)
    assert at == 5
    _, session = run(experts, partial(schedules.uniform, interval=9, warmup=2))
    assert session.networks == {"transformer": list(range(at)), "transformer_2": list(range(at, STEPS))}
    assert computed(session, "transformer") == [0, 1] and computed(session, "transformer_2") == [at, at + 1]


def test_a_list_of_steps_gets_nothing_but_the_first_step_of_each_network(experts):
    at = switch(experts)
    _, session = run(experts, partial(schedules.mask, steps=[0, 1, 2, at + 2]))
    assert computed(session, "transformer") == [0, 1, 2] and computed(session, "transformer_2") == [at, at + 2]


@pytest.mark.parametrize(
    ("passes", "steps"), [(5, [0, 2, 3, 5, 7]), (4, [0, 2, 5, 7]), ([1, 3], [0, 5, 7, 8]), (2, [0, 5]), (10, range(10))]
)
def test_a_budget_is_split_and_kept(passes, steps):
    """In proportion to the networks' steps, 5 and 5, or as told. A rule begins anew with the second one."""
    rule = partial(schedules.power_law, passes=passes, power=1.0)
    assert schedules.plan(rule, STEPS, (0, 5)).nonzero()[0].tolist() == list(steps)
    Algorithm("x", rule, forecasters.reuse, LastBlock()).check(STEPS)  # as long as no model is known


@pytest.mark.parametrize(
    ("passes", "starts", "each"), [(14, (0, 25), [9, 5]), (3, (0, 39), [2, 1]), (40, (0, 25), [25, 15])]
)
def test_each_network_gets_its_share(passes, starts, each):
    assert schedules.budgets(passes, 40, starts) == each


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        (1, "each of the 2 networks.*needs a pass"),
        ([3, 3, 3], "for 3 networks by turns, and this model has 2"),
        ([0, 3], "at least 1, not 0"),
    ],
)
def test_a_budget_that_cannot_be_split_is_refused(passes, said):
    with pytest.raises(UserError, match=said):
        schedules.plan(partial(schedules.power_law, passes=passes), STEPS, (0, 5))
    with pytest.raises(UserError, match="this model has 1"):
        schedules.plan(partial(schedules.power_law, passes=[3, 2]), STEPS)


def test_a_mask_that_follows_measured_steps_skips_none_across_the_switch():
    """Ratios of 1 and errors of 0: nothing but the retained steps and the longest gap is computed."""
    magcache = partial(schedules.magcache, ratios=[1.0] * 10, threshold=1.0, longest=3, retention=0.2)
    assert schedules.plan(magcache, 10, (0, 6)).nonzero()[0].tolist() == [0, 4, 6]
    curves = [[0.0] * (9 - j) for j in range(3)]
    smooth = partial(schedules.smoothcache, errors=[curves], threshold=0.1)
    assert schedules.plan(smooth, 10, (0, 6)).nonzero()[0].tolist() == [0, 4, 6, 9]


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
    assert first == [(step, at) for step in range(at)]
    assert second == [(step, STEPS - at) for step in range(STEPS - at)]


def test_a_solver_estimates_each_network_by_its_own_outputs():
    """Interpolated between computed steps, but not between one network's last and the other's first."""
    found = estimates(forecasters.hindsight, [0, 2, 5, 7], 8, (0, 5))
    assert found[1].tolist() == [0.5, 0.5, 0, 0] and found[6].tolist() == [0, 0, 0.5, 0.5]
    assert found[3].tolist() == found[4].tolist() == [0, 1, 0, 0]
    assert not estimates(forecasters.hindsight, [0, 2], 8, (0, 5))[5:].any()  # nobody knows them yet


def followed(pipe, site, forecaster, steps):
    """The guided output of each step as the scheduler got it, and the latents before every step and after the last."""
    outputs, latents = [], []

    def note(output, latent, following):
        outputs.append(output)
        latents[len(outputs) - 1 :] = [latent, following]
        return following

    schedule = partial(schedules.mask, steps=steps)
    given = {"schedule": schedule, "forecaster": forecaster, "site": site, "num_steps": STEPS}
    with cached(pipe, **given) as session, ExitStack() as undo:
        watch(pipe.scheduler, lambda: None, note, undo)
        sample(pipe, "wan", steps=STEPS, callback=session.callback, num_frames=1)
    assert session.computed_steps == steps
    return outputs, latents


def test_hindsight_interpolates_nothing_across_the_switch(experts):
    """With one computed step each, both networks' outputs are reused, whatever the other gives."""
    at = switch(experts)
    outputs, latents = followed(experts, Solver(), forecasters.hindsight, [0, at])
    experts.scheduler.set_timesteps(STEPS)
    matrix = propagator(experts.scheduler)
    held = [outputs[0]] * at + [outputs[at]] * (STEPS - at)
    rows = torch.stack([latents[0], *held]).double().flatten(1)
    expected = torch.from_numpy(matrix[[at, STEPS]]) @ rows
    assert torch.allclose(latents[at].flatten().double(), expected[0], atol=1e-4)
    assert torch.allclose(latents[STEPS].flatten().double(), expected[1], atol=1e-4)


def test_a_network_corrects_nothing_of_another(experts):
    at = switch(experts)
    _, plain = followed(experts, LastBlock(), forecasters.reuse, [0, at])
    _, same = followed(experts, Corrected(LastBlock()), forecasters.reuse, [0, at])
    assert all(map(torch.equal, plain, same))
    _, plain = followed(experts, LastBlock(), forecasters.reuse, [0, at, at + 2])
    _, other = followed(experts, Corrected(LastBlock()), forecasters.reuse, [0, at, at + 2])
    assert torch.equal(plain[at + 2], other[at + 2]) and not torch.equal(plain[at + 3], other[at + 3])


def test_fitted_coefficients_begin_anew_with_the_second_network(experts):
    at, coefficients = switch(experts), [[1.0, -0.1], [0.9, -0.2]]
    outputs, latents = followed(experts, FittedSolver(coefficients, [0, at]), forecasters.reuse, [0, at])
    assert torch.allclose(latents[at], latents[0] - 0.1 * outputs[0], atol=1e-5)
    assert torch.allclose(latents[STEPS], 0.9 * latents[at] - 0.2 * outputs[at], atol=1e-5)
    with pytest.raises(DoesNotFit, match="take over at another step: calibrate algo=hindcast"):
        followed(experts, FittedSolver([[1.0, -0.1], [0.9, 0.1, -0.2]], [0, at]), forecasters.reuse, [0, at])


def test_the_mean_velocity_is_one_networks(experts, monkeypatch):
    at, known, predict = switch(experts), [], mean_velocity.predict
    monkeypatch.setattr(
        mean_velocity, "predict", lambda taken, *rest: (known.append(len(taken)), predict(taken, *rest))[1]
    )
    followed(experts, MeanVelocity(span=3), forecasters.reuse, [0, at])
    assert known == [1, 2, 3, 3] * 2


def test_a_record_tells_which_network_ran_at_which_step(experts, tmp_path):
    at = switch(experts)
    given = settings(f"num_inference_steps={STEPS}", "model=tiny-wan", config_name="video")
    given = replace(given, model=replace(given.model, arguments=recipe("wan")["call"]))
    algorithm = Algorithm("x", partial(schedules.uniform, interval=9, warmup=2), forecasters.reuse, LastBlock())
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


# ---------------------------------------------------------------------------------------------------------------------
# The laboratory, where the second network takes over at step 5 of 8


NETWORKS = (0, 5)


def test_gap_errors_are_those_of_least_squares_for_each_network():
    basis, matrix = made_up_sample()
    latents, steps = matrix @ basis, [0, 2, 5, 7]
    errors = search.gap_errors(basis @ basis.T / 300, matrix, steps, NETWORKS)
    for gap, (first, known, end) in enumerate([(0, [0], 2), (0, [0, 2], 5), (5, [5], 7), (5, [5, 7], 8)]):
        rows = np.stack([latents[first], *(basis[1 + step] for step in known)])
        _, residual, *_ = np.linalg.lstsq(rows.T, latents[end])
        assert errors[gap] == pytest.approx(residual[0] / 300, rel=1e-4)


@pytest.mark.parametrize("order", [1, 3])  # exact, and by exchange of steps
def test_the_best_mask_has_the_first_step_of_each_network(order):
    """Against every mask of 4 of 8 steps, whose forecasts replay makes from each network's own outputs."""
    (basis, matrix), forecaster = made_up_sample(), partial(forecasters.taylor, order=order)
    gram = basis @ basis.T / 300

    def score(steps):
        assumed, total = replay.forecast(forecaster, steps, 8, starts=NETWORKS)(8), 0.0
        for begin, end in zip(steps, [*steps[1:], 8], strict=True):
            wrong = np.append(0, matrix[end, 1 + begin : 1 + end] @ (np.eye(8) - assumed)[begin:end])
            total += wrong @ gram @ wrong
        return total

    found = search.for_forecaster(gram, matrix, 4, search.IMPORTANCE["flat"], forecaster, NETWORKS)
    masks = [[0, *rest] for rest in itertools.combinations(range(1, 8), 3) if 5 in rest]
    assert found in masks and score(found) == pytest.approx(min(map(score, masks)))


def test_replay_joins_no_outputs_of_two_networks():
    """In what is assumed of the outputs, no network has a weight of the other's."""
    for assumed in (
        replay.forecast(TAYLOR, [0, 1, 3, 5, 7], 8, strength=1.0, starts=NETWORKS)(8),
        replay.by_solver(forecasters.hindsight, [0, 3, 5, 7], 8, NETWORKS)(8),
    ):
        assert not assumed[:5, 5:].any() and not assumed[5:, :5].any() and np.allclose(assumed.sum(1), 1)


@pytest.fixture(scope="module")
def measured(experts):
    """The pipeline as studies run it, a job and its trace."""
    arguments = recipe("wan")["call"] | {"num_frames": 1, "guidance_scale": 1.0}
    model, job = Uncached(experts, STEPS, arguments), Job("", 0, "a red ring", 0)
    with torch.no_grad():
        return model, job, trace(model, job)


def test_a_trace_keeps_the_switch(measured, tmp_path):
    model, _, traced = measured
    at = switch(model.pipe)
    assert list(traced.starts) == [0, at]
    traces.write(tmp_path / "x.safetensors", [traced], {"steps": STEPS})
    assert list(traces.read(tmp_path / "x.safetensors")[0][0].starts) == [0, at]
    traces.write(tmp_path / "x.safetensors", [replace(traced, starts=[0, STEPS])], {"steps": STEPS})
    with pytest.raises(UserError, match=r"its networks begin at \[0, 10\]"):
        traces.read(tmp_path / "x.safetensors")


def test_the_features_of_both_networks_are_traced(measured):
    model, job, _ = measured
    features = trace(model, job, LastBlock()).features
    assert features.shape == (STEPS, STEPS) and (features.diagonal() > 0).all()


def test_hindcast_fits_each_network_by_itself(measured):
    """The second one's last latent is the least-squares fit to the uncached one by the latent that it begins with and
    its own output: what is missing is orthogonal to both."""
    model, job, traced = measured
    at, guided, latents = switch(model.pipe), traces.Guided(anew=True), Latents()
    steps = [0, 2, at]
    coefficients = hindcast.fit(model, steps, [job], [traced])
    assert [len(row) for row in coefficients] == [2, 3, 2]
    model.sampler(hindcast.algorithm(steps, coefficients)).watch(job, [guided, latents])
    rows, missing = np.array(guided.rows), traces.flat(latents.steps[-1]) - traced.latents[-1]
    assert len(rows) == 2 and np.linalg.norm(missing) > 0.01 * np.linalg.norm(traced.latents[-1])
    assert np.abs(rows @ missing).max() < 1e-4 * np.linalg.norm(rows[0]) * np.linalg.norm(missing)
    with pytest.raises(DoesNotFit, match="reach across the step.*take algo.coefficients=hindcast"):
        rivals.measure(model, [job], "adams2", steps)


def test_magcache_has_no_ratio_of_two_networks(measured):
    model, job, _ = measured
    at, ratios = switch(model.pipe), calibration.magcache(model, [job], calibration.Fit())["ratios"]
    assert len(ratios) == STEPS and ratios[0] == ratios[at] == 1.0 and 1.0 not in ratios[1:at]


def test_other_constants_are_measured_on_each_network(measured, monkeypatch):
    """Nothing is compared between one network's last step and the other's first."""
    (model, job, _), fitted = measured, []
    at = switch(model.pipe)
    monkeypatch.setattr(calibration, "fit_polynomial", lambda x, y, degree: (fitted.append((x, y)), ([len(x)], 1.0))[1])
    assert calibration.teacache(model, [job], calibration.Fit())["polynomial"] == [[at - 1], [STEPS - at - 1]]
    assert all(np.isfinite(each).all() for pair in fitted for each in pair)
    found = calibration.sencache(model, [job], calibration.Fit())
    assert all(len(each) == STEPS and each[at - 1] == each[at - 2] != each[at] for each in found.values())
    for curves in smoothcache.calibrate(model, [job])["errors"]:
        for ahead, curve in enumerate(curves, 1):
            assert [error is None for error in curve] == [s < at <= s + ahead for s in range(STEPS - ahead)]


def test_each_network_has_its_own_polynomial(experts):
    """The first one's estimates nothing, the second one's any change as too much."""
    at = switch(experts)
    _, session = run(experts, gates.accumulated(threshold=1.0, polynomial=[[0.0], [9.0]]), site=StackResidual())
    assert computed(session, "transformer") == [0, at - 1]
    assert computed(session, "transformer_2") == list(range(at, STEPS))


def test_constants_of_two_networks_are_read_and_nonsense_is_not(tmp_path):
    constants = {"steps": STEPS, "polynomial": [[1.0, 0.0], [2.0, 0.0]], "errors": [[[0.1, None]]]}
    (tmp_path / "x.json").write_text(json.dumps(constants), encoding="utf-8")
    assert read_calibration(tmp_path / "x.json") == constants
    words = ("model=tiny-wan", "algo=teacache", f"num_inference_steps={STEPS}")
    assert build(settings(*words, "schedule.polynomial=[[1.0,0.0],[2.0,0.0]]", config_name="video"))
    with pytest.raises(UserError, match="the constants of teacache must be numbers"):
        build(settings(*words, "schedule.polynomial=[[1.0,much],[2.0]]", config_name="video"))
