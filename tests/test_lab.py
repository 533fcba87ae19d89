"""Traces, replay and searched steps: against the definition, brute force, and real runs."""

import itertools
import json
from functools import partial

import numpy as np
import pytest
import torch
from fabricate import experiment, pictures, run_script
from helpers import made_up_sample, recipe
from safetensors.numpy import save_file

from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.sites.corrected import Corrected
from spectrum_bench.caching.sites.solver import Solver
from spectrum_bench.caching.sites.stack import LastBlock
from spectrum_bench.commands import compose as composing
from spectrum_bench.commands import replay as replay_command
from spectrum_bench.commands import run
from spectrum_bench.commands import search as search_command
from spectrum_bench.commands import trace as trace_command
from spectrum_bench.commands.compose import build
from spectrum_bench.errors import DoesNotFit, UserError
from spectrum_bench.forecasters import hindsight, reuse, spectrum, taylor
from spectrum_bench.lab import against, replay, search, traces
from spectrum_bench.lab.uncached import Uncached
from spectrum_bench.sampling.identity import identity
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.scoring import evaluation
from spectrum_bench.scoring.experiments import find_experiments, read_experiment

JOB = Job("one", 0, "a large red ring on a gray background", 3)
T, STEPS = 12, [0, 1, 4, 9]
LINEAR = partial(taylor, order=1)


@pytest.fixture
def flux(random_pipe):
    return Uncached(random_pipe, T, dict(recipe("flux")["call"]))


@pytest.fixture
def problem():
    """A made-up sample of 8 steps: its basis, and its trace."""
    basis, matrix = made_up_sample()
    return basis, traces.Trace(basis @ basis.T / 300, matrix)


# ---------------------------------------------------------------------------------------------------------------------
# Traces


def test_features_are_traced_as_the_site_stores_them(flux):
    """Against the block's own outputs, hooked; small features are not sketched."""
    outputs = []
    hook = flux.pipe.transformer.single_transformer_blocks[-1].register_forward_hook(
        lambda block, args, out: outputs.append(out[-1].double().flatten().numpy())
    )
    traced = traces.trace(flux, JOB, LastBlock())
    hook.remove()
    rows = np.array(outputs)[:, -traced_size(outputs, flux) :]
    expected = rows @ rows.T / rows.shape[1]
    assert traced.features is not None and np.allclose(traced.features, expected, rtol=1e-6)
    assert traced.gram.shape == (T + 1, T + 1) and traces.trace(flux, JOB).features is None


def traced_size(outputs, flux):
    """The site keeps the picture's tokens, which stand behind the text's."""
    side = flux.arguments["height"] // (flux.pipe.vae_scale_factor * 2)
    return side * side * flux.pipe.transformer.inner_dim


def test_a_site_that_stores_nothing_is_refused(flux):
    with pytest.raises(DoesNotFit, match="Solver stores no features that could be traced"):
        traces.trace(flux, JOB, Solver())


def test_a_sketch_keeps_the_size_of_a_small_difference():
    random = torch.Generator().manual_seed(0)
    a = torch.randn(50_000, generator=random)
    b = a + 1e-3 * torch.randn(50_000, generator=random)
    kept = np.square(traces.sketch(a) - traces.sketch(b)).sum() / float((a - b).double().square().sum())
    assert len(traces.sketch(a)) == traces.SKETCH and abs(kept - 1) < 0.06


def test_traces_are_read_as_they_were_written(problem, tmp_path):
    trace = traces.Trace(problem[1].gram, problem[1].matrix, np.eye(8))
    traces.write(tmp_path / "t.safetensors", [trace, trace], {"steps": 8})
    read, about = traces.read(tmp_path / "t.safetensors")
    assert len(read) == 2 and about == {"steps": 8}
    assert all(np.array_equal(getattr(read[1], key), getattr(trace, key)) for key in ("gram", "matrix", "features"))


@pytest.mark.parametrize(
    "arrays",
    [
        {"gram": np.ones((1, 3, 3))},
        {"gram": np.ones((1, 3, 4)), "matrix": np.ones((3, 3))},
        {"gram": np.ones((3, 3)), "matrix": np.ones((3, 3))},
        {"gram": np.full((1, 3, 3), np.nan), "matrix": np.ones((3, 3))},
        {"gram": np.ones((1, 3, 3), np.float32), "matrix": np.ones((3, 3))},
        {"gram": np.ones((1, 3, 3)), "matrix": np.ones((3, 3)), "more": np.ones(3)},
        {"gram": np.ones((1, 3, 3)), "matrix": np.ones((3, 3)), "features": np.ones((2, 2, 2))},
    ],
)
def test_other_files_are_told_in_one_line(arrays, tmp_path):
    save_file(arrays, tmp_path / "t.safetensors")
    with pytest.raises(UserError, match=r"t.safetensors is no file of traces"):
        traces.read(tmp_path / "t.safetensors")
    (tmp_path / "t.safetensors").write_bytes(b"{}")
    with pytest.raises(UserError, match=r"t.safetensors is no file of traces"):
        traces.read(tmp_path / "t.safetensors")


# ---------------------------------------------------------------------------------------------------------------------
# Replay


def outputs_assumed(outputs, t, forecaster, strength):
    """By the definition: what a method assumes of every output before step t."""
    assumed = []
    for step in range(t):
        before = [k for k in STEPS if k <= step]
        behind = next((k for k in STEPS if step < k < t), None)
        if step in STEPS:
            assumed.append(outputs[step])
            continue
        ahead = forecaster(np.array(before, float), float(step)) @ outputs[before]
        line = ahead
        if behind is not None:
            share = (step - before[-1]) / (behind - before[-1])
            line = (1 - share) * outputs[before[-1]] + share * outputs[behind]
        assumed.append((1 - strength) * ahead + strength * line)
    return np.array(assumed)


@pytest.mark.parametrize(
    ("forecaster", "site", "strength"),
    [
        (LINEAR, LastBlock(), 0.0),
        (LINEAR, Corrected(LastBlock(), 0.5), 0.5),
        (reuse, Corrected(LastBlock()), 1.0),
        (hindsight, Solver(), 1.0),
    ],
)
def test_replay_gives_the_errors_that_the_definition_gives(flux, forecaster, site, strength):
    guided = traces.Guided()
    reference = traces.trace(flux, JOB)
    flux.sampler(Algorithm("x", partial(search_mask, range(T)), reuse, None)).watch(JOB, [guided])
    x_0, outputs = guided.rows[0], np.array(guided.rows[1:])
    algorithm = Algorithm("x", partial(search_mask, STEPS), forecaster, site)
    errors = replay.latent_errors([reference], replay.assumed_by(algorithm, STEPS, T))[0]
    ahead = reuse if forecaster is hindsight else forecaster
    for t in range(1, T + 1):
        real = reference.matrix[t, : t + 1] @ np.vstack([x_0, outputs[:t]])
        other = reference.matrix[t, : t + 1] @ np.vstack([x_0, outputs_assumed(outputs, t, ahead, strength)])
        expected = np.square(real - other).sum() / np.square(real).sum()
        assert errors[t - 1] == pytest.approx(expected, rel=1e-5, abs=1e-12), t


def search_mask(steps, T):
    out = np.zeros(T, bool)
    out[list(steps)] = True
    return out


def test_features_are_replayed_too(problem):
    features = np.cumsum(np.random.default_rng(1).standard_normal((8, 50)), 0)
    trace = traces.Trace(problem[1].gram, problem[1].matrix, features @ features.T / 50)
    (errors,) = replay.feature_errors([trace], replay.forecast(reuse, [0, 3], 8))
    expected = [
        np.square(features[s] - features[3 if s >= 3 else 0]).sum() / np.square(features[s]).sum() for s in range(8)
    ]
    assert np.allclose(errors, expected)
    with pytest.raises(DoesNotFit, match="these traces have no features"):
        replay.feature_errors([problem[1]], replay.forecast(reuse, [0, 3], 8))


def test_no_weights_beat_the_bounds(problem):
    """The best linear step by least squares; own weights are at most as wrong as shared ones, own steps as any."""
    basis, trace = problem
    other = traces.Trace(np.diag(np.arange(1.0, 10)), trace.matrix)
    bounds = replay.bounds([trace, other], [0, 2, 5])
    shared, own, free = bounds.values()
    rows, target = basis[[0, 1, 3, 6]], trace.matrix[-1] @ basis
    residual = np.linalg.lstsq(rows.T, target, rcond=None)[1][0] / np.square(target).sum()
    assert own[0] == pytest.approx(residual, rel=1e-4)
    assert (own <= shared * (1 + 1e-9)).all()


# ---------------------------------------------------------------------------------------------------------------------
# Search


@pytest.mark.parametrize("kind", search.IMPORTANCE)
@pytest.mark.parametrize(
    ("forecaster", "rows"),
    [
        (reuse, 1),
        (LINEAR, 2),
        (partial(taylor, order=2), 3),
        (partial(spectrum, degree=2, ridge=0.1, blend=0.5, steps=8), 4),
    ],
)
def test_the_best_steps_for_a_forecaster_are_found(problem, forecaster, rows, kind):
    """Against all masks. The sum over gaps is that of the definition: each gap's forecasts, carried to its end."""
    basis, trace = problem
    weight = search.IMPORTANCE[kind](np.arange(9) / 8)

    def score(steps):
        total = 0.0
        for n, end in enumerate([*steps[1:], 8], 1):
            known = np.array(steps[:n])
            error = sum(
                trace.matrix[end, s + 1] * (forecaster(known.astype(float), float(s)) @ basis[1 + known] - basis[1 + s])
                for s in range(steps[n - 1] + 1, end)
            )
            total += weight[end] * np.square(error).sum() / 300
        return total

    best = min(score((0, *rest)) for rest in itertools.combinations(range(1, 8), 3))
    found = search.for_forecaster(trace.gram, trace.matrix, 4, search.IMPORTANCE[kind], forecaster)
    assert score(found) == pytest.approx(best) and found[0] == 0 and len(found) == 4
    assert search.memory(forecaster, 8) == rows


@pytest.fixture
def lab_words(weights, tmp_path, monkeypatch):
    """Words for the three commands: random weights, two short prompts, ten steps."""
    (tmp_path / "p.txt").write_text("a red ring\na blue star\n")
    monkeypatch.setattr(search_command, "CALIBRATION", tmp_path)
    monkeypatch.setattr(composing, "CALIBRATION", tmp_path)
    return [f"model.repo={weights}", f"prompt_file={tmp_path}/p.txt", "num_inference_steps=10"]


def test_from_traces_to_replay(compose, lab_words, tmp_path, capsys):
    where = [f"trace={tmp_path}/t.safetensors"]
    trace_command.main(compose(*lab_words, *where, config_name="trace"))
    assert "2 prompts: 20 network passes" in capsys.readouterr().out
    words = ["algo=spectrum", "algo.w=0.5", "correct=hindsight", f"out={tmp_path}/replay"]
    replay_command.main(compose(*lab_words, *where, *words, config_name="replay"))
    printed = capsys.readouterr().out
    assert "tiny-flux, 2 prompts" in printed and "own weights and steps (oracle)" in printed
    assert {path.name for path in (tmp_path / "replay").iterdir()} == {"replay.csv", "replay.png", "replay.svg"}
    assert "features of" not in printed
    trace_command.main(compose(*lab_words, *where, "algo=spectrum", config_name="trace"))
    for words, told in [(["algo=reuse"], True), (["algo=reuse", "site=stack_residual"], False)]:
        replay_command.main(compose(*lab_words, *where, *words, config_name="replay"))
        assert ("features of LastBlock at the skipped steps: error -" in capsys.readouterr().out) == told
    for words, reason in [
        (["algo=fbcache"], "fbcache decides while the model runs: give a schedule="),
        (["num_inference_steps=12"], "was traced with steps=10, not 12: python src/trace.py"),
        (["trace=/nowhere/t"], "there is no /nowhere/t: python src/trace.py model=tiny-flux num_inference_steps=10"),
    ]:
        with pytest.raises(UserError, match=reason):
            replay_command.main(compose(*lab_words, *where, *words, config_name="replay"))


def test_searched_steps_are_read_where_they_are_written(compose, lab_words, tmp_path, capsys):
    words = [*lab_words, "algo=reuse"]
    with pytest.raises(UserError, match="no steps were searched .* with 4 passes: python src/search.py"):
        run.main(compose(*words, "schedule=searched", "schedule.passes=4"))
    search_command.main(compose(*words, "passes=4", config_name="search"))
    found = json.loads((tmp_path / "searched/4/reuse/tiny-flux.json").read_text())
    assert len(found["mask"]) == 4 and found["found_by"] in found["held_out_errors_db"] and found["site"] == "LastBlock"
    algorithm = build(composing.settings_of(compose(*words, "schedule=searched", "schedule.passes=4")))
    assert np.flatnonzero(algorithm.schedule(10)).tolist() == found["mask"]
    with pytest.raises(UserError, match="searched with num_inference_steps=10"):
        build(composing.settings_of(compose("algo=reuse", "schedule=searched", "schedule.passes=4")))
    with pytest.raises(UserError, match="algo=nocache has no forecaster"):
        search_command.main(compose(*lab_words, "algo=nocache", "passes=4", config_name="search"))


# ---------------------------------------------------------------------------------------------------------------------
# Against real runs


def scored_runs(folder, nodes):
    """A reference and a scored run for each forecaster and site node, the later the noisier."""
    prompts = [f"prompt {i}" for i in range(3)]
    images = pictures(prompts)
    reference = read_experiment(experiment(folder / "reference", prompts, images, steps=T, nfe=T))
    for i, (name, (forecaster, site)) in enumerate(nodes.items()):
        noise = np.random.default_rng(i).normal(0, 4 + 4 * i, images.shape)
        noisy = (images + noise).clip(0, 255).astype(np.uint8)
        path = experiment(folder / name, prompts, noisy, algo=name, steps=T, nfe=len(STEPS), computed_steps=STEPS)
        text = (path / "config.yaml").read_text() + f"site: {json.dumps(site)}\n"
        node = json.dumps({"name": name, "forecaster": forecaster})
        (path / "config.yaml").write_text(text.replace(f"algo:\n  name: {name}\n", f"algo: {node}\n"))
        list(evaluation.evaluate([read_experiment(path)], reference, "psnr"))
    return [read_experiment(path) for path in find_experiments([folder])]


def test_replay_is_ranked_beside_real_runs_and_runs_no_code_of_theirs(flux, tmp_path):
    here, stack = "spectrum_bench.forecasters.", {"_target_": "spectrum_bench.caching.sites.stack.LastBlock"}
    corrected = {"_target_": "spectrum_bench.caching.sites.corrected.Corrected", "strength": 0.5, "site": stack}
    nodes = {
        "linear": ({"_target_": f"{here}taylor", "order": 1}, corrected),
        "reused": ({"_target_": f"{here}reuse"}, stack),
        "solved": ({"_target_": f"{here}hindsight"}, {"_target_": "spectrum_bench.caching.sites.solver.Solver"}),
        "peer": ({"_target_": f"{here}reuse"}, {"_target_": "spectrum_bench.caching.peers.CacheDiT"}),
        "hostile": ({"_target_": "os.system", "command": "touch /tmp/harm"}, stack),
        "sneaky": ({"_target_": f"{here}np.load", "file": "x"}, stack),
        "wrong": ({"_target_": f"{here}taylor", "order": 1, "unknown": 2}, stack),
    }
    runs = against.replayed_runs(scored_runs(tmp_path, nodes), [traces.trace(flux, JOB)])
    assert set(runs.psnr) == set(runs.errors) == {"linear", "reused", "solved"}
    assert set(runs.left_out) == {"reference", "peer", "hostile", "sneaky", "wrong"}
    assert "unexpected keyword argument 'unknown'" in runs.left_out["wrong"]
    assert -1 <= runs.correlation() <= 1
    for name, strength in (("linear", 0.5), ("reused", 0.0)):
        assumed = replay.forecast(LINEAR if name == "linear" else reuse, STEPS, T, strength)
        assert np.allclose(runs.errors[name], replay.latent_errors([traces.trace(flux, JOB)], assumed))


# ---------------------------------------------------------------------------------------------------------------------
# Frozen gates


@pytest.mark.parametrize(
    ("schedule", "masks", "frozen"),
    [
        ("frozen", [[0, 1, 4], [0, 2, 5], [0, 2, 5]], [0, 2, 5]),
        ("frozen", [[0], [0, 1, 2], [0, 1, 2, 3, 4, 5, 6, 7]], [0, 1, 2]),  # four steps in the mean
        ("frozen", [[0, 5], [0, 4]], [0, 4]),
        ("consensus", [[0, 1, 4], [0, 2, 5], [0, 2, 4]], [0, 2, 4]),
        ("consensus", [[0, 3], [0, 3, 5], [0, 1, 2, 3, 4, 5, 6]], [0, 1, 3, 5]),  # four steps in the mean
    ],
)
def test_a_frozen_gate_computes_what_it_chose_most_often(compose, tmp_path, schedule, masks, frozen):
    prompts = [f"prompt {i}" for i in range(len(masks))]
    folder = experiment(tmp_path / "run", prompts, pictures(prompts), steps=T, nfe=3)
    lines = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    lines = [line | {"computed_steps": steps, "nfe": len(steps)} for line, steps in zip(lines, masks, strict=True)]
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["algo=fbcache", f"num_inference_steps={T}"]
    given = composing.settings_of(compose(*words, f"schedule={schedule}", f"of={folder}"))
    same = composing.settings_of(compose(*words, "schedule=mask", f"schedule.steps={frozen}"))
    assert identity(given) == identity(same) and np.flatnonzero(build(given).schedule(T)).tolist() == frozen


def test_a_gate_is_frozen_from_a_run_that_exists():
    done = run_script("text_to_image.py", "algo=fbcache", "schedule=frozen", "of=/nowhere")
    assert done.returncode == 1
    assert done.stderr == (
        "error: /nowhere is no experiment directory (no records.jsonl): name a folder that a run has made\n"
    )
