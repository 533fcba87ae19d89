"""Fitting TeaCache's polynomial."""

import json
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from helpers import settings

from spectrum_bench.commands import calibrate
from spectrum_bench.errors import UserError
from spectrum_bench.lab import calibration
from spectrum_bench.lab.calibration import Fit
from spectrum_bench.lab.uncached import Uncached
from spectrum_bench.paths import CALIBRATION, ROOT
from spectrum_bench.sampling.jobs import Job
from spectrum_bench.sampling.models import identify


def test_a_polynomial_is_found_again():
    x = np.linspace(0.02, 0.3, 60)
    polynomial, r2 = calibration.fit_polynomial(x, np.polyval([3.0, -2.0, 1.0, 0.5, 0.1], x))
    np.testing.assert_allclose(polynomial, [3.0, -2.0, 1.0, 0.5, 0.1], rtol=1e-5)
    assert r2 == pytest.approx(1)
    assert calibration.fit_polynomial(x, np.random.default_rng(0).standard_normal(60))[1] < 0.5


def test_changes_are_those_of_an_uncached_run(random_pipe):
    """Against the epilogue's inputs of a plain run, and a gate that is asked once a step."""
    arguments = {"height": 64, "width": 64, "max_sequence_length": 16}
    x, y = calibration.changes(Uncached(random_pipe, 6, arguments), Job("", 0, "a red ring", 0))
    seen, transformer = [], random_pipe.transformer
    handle = transformer.norm_out.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    try:
        random_pipe("a red ring", num_inference_steps=6, generator=torch.Generator().manual_seed(0), **arguments)
    finally:
        handle.remove()
    expected = [float((b - a).abs().mean() / a.abs().mean()) for a, b in zip(seen, seen[1:], strict=False)]
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    assert x.shape == y.shape == (5,) and (x > 0).all()


def test_constants_of_shipped_miniatures_are_of_their_weights(compose):
    found = [path for path in CALIBRATION.glob("*/tiny-*.json")]
    assert len(found) > 10
    weights = {name: identify(settings(f"model={name}").model) for name in {path.stem for path in found}}
    for path in found:
        measured = json.loads(path.read_text()).get("weights")  # none of a signal that is taken as it is
        assert measured in (None, weights[path.stem]), path


def test_changes_of_two_guidance_calls_a_step_are_those_of_the_first(random_pipes):
    """The empty prompt in place of the caption makes both branches the same: one call a step must tell it all."""
    arguments = {"height": 64, "width": 64, "num_frames": 5, "max_sequence_length": 20}
    job = Job("", 0, "", 0)
    two, one = (
        calibration.changes(Uncached(random_pipes("wan"), 6, arguments | {"guidance_scale": scale}), job)
        for scale in (5.0, 1.0)
    )
    for a, b in zip(two, one, strict=True):
        assert a.shape == (5,) and np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize("r2", [0.79, 0.81])
def test_the_command_refuses_a_fit_that_explains_too_little(compose, weights, tmp_path, monkeypatch, r2):
    (tmp_path / "p.txt").write_text("a red ring\n")
    monkeypatch.setattr(calibrate, "CALIBRATION", tmp_path)
    monkeypatch.setattr(calibration, "fit_polynomial", lambda x, y, degree: ([1.0, 0.0], r2))
    words = [f"model.repo={weights}", f"prompt_file={tmp_path}/p.txt", "num_inference_steps=4"]
    cfg = compose(*words, config_name="calibrate")
    if r2 < 0.8:
        with pytest.raises(UserError, match="below 0.8"):
            calibrate.main(cfg)
        assert not (tmp_path / "teacache").exists()
    else:
        calibrate.main(cfg)
        found = json.loads((tmp_path / "teacache" / "tiny-flux.json").read_text())
        assert found["polynomial"] == [1.0, 0.0] and found["r2"] == r2
        assert found["prompts"] == f"1 of {tmp_path}/p.txt" and found["steps"] == 4 and found["weights"]


def test_magcache_ratios_are_those_of_the_residual(random_pipe):
    """Against the blocks' input and output of a plain run."""
    arguments = {"height": 64, "width": 64, "max_sequence_length": 16}
    jobs = [Job("", i, f"a {word} ring", i) for i, word in enumerate(("red", "blue"))]
    found = calibration.magcache(Uncached(random_pipe, 5, arguments), jobs, Fit())["ratios"]
    each, transformer = [], random_pipe.transformer
    for job in jobs:
        entering, leaving = [], []
        handles = [
            transformer.x_embedder.register_forward_hook(lambda m, a, out, e=entering: e.append(out.clone())),
            transformer.norm_out.register_forward_pre_hook(lambda m, args, e=leaving: e.append(args[0].clone())),
        ]
        generator = torch.Generator().manual_seed(job.seed)
        random_pipe(job.prompt, num_inference_steps=5, generator=generator, **arguments)
        for handle in handles:
            handle.remove()
        norms = [(b - a).norm(dim=-1) for a, b in zip(entering, leaving, strict=True)]
        each.append([float((b / a).mean()) for a, b in zip(norms, norms[1:], strict=False)])
    np.testing.assert_allclose(found, [1.0, *np.mean(each, 0)], atol=1e-4)


def test_sencache_sensitivities_are_finite_differences_of_the_network(random_pipe):
    """Against calls of the transformer by hand, at the latents and timesteps of a plain run."""
    arguments = {"height": 64, "width": 64, "max_sequence_length": 16}
    found = calibration.sensitivities(Uncached(random_pipe, 4, arguments), Job("", 0, "a red ring", 0))
    given = []
    handle = random_pipe.transformer.register_forward_pre_hook(lambda m, a, k: given.append(dict(k)), with_kwargs=True)
    try:
        random_pipe("a red ring", num_inference_steps=4, generator=torch.Generator().manual_seed(0), **arguments)
    finally:
        handle.remove()

    def v(x, t):
        with torch.no_grad():
            return random_pipe.transformer(**x | {"timestep": t["timestep"]})[0]

    assert len(found) == 3 and "forward" not in vars(random_pipe.transformer)
    for (t, latent, time), a, b in zip(found, given, given[1:], strict=False):
        assert t == pytest.approx(float(a["timestep"]))
        dx = (b["hidden_states"] - a["hidden_states"]).norm()
        assert latent == pytest.approx(float((v(b, a) - v(a, a)).norm() / dx), rel=1e-3)
        dt = abs(float(b["timestep"] - a["timestep"]))
        assert time == pytest.approx(float((v(a, b) - v(a, a)).norm()) / dt, rel=1e-3)


def test_hyca_finds_channels_that_move_alike_and_their_solver(random_pipe, monkeypatch):
    """Channels that rest, that jump to and fro, and that follow a parabola, planted in shuffled order."""
    t = np.arange(12.0)[:, None, None, None]
    rng = np.random.default_rng(0)
    kinds = {"taylor2": 30 * t**2 / 144, "reuse": rng.standard_normal((12, 1, 5, 1)), "taylor1": 5 * t}
    order = rng.permutation(np.repeat(list(kinds), 4))
    noise = 1 + 0.01 * rng.standard_normal((1, 1, 5, 1))
    rows = np.concatenate([kinds[name] * noise for name in order], 3)
    monkeypatch.setattr(calibration, "trajectory", lambda *_: list(torch.from_numpy(rows)))
    found = calibration.hyca(Uncached(None, 12, {}), [None, None], Fit(clusters=3))
    names = [found["solvers"][c] for c in found["channels"]]
    assert len({(a, b) for a, b in zip(order, found["channels"], strict=True)}) == 3
    assert [n for n, kind in zip(names, order, strict=True) if kind == "reuse"] == ["reuse"] * 4
    assert {n for n, kind in zip(names, order, strict=True) if kind == "taylor1"} <= {"taylor1", "taylor2", "foca"}
    parabola = {n for n, kind in zip(names, order, strict=True) if kind == "taylor2"}
    errors = calibration.solver_errors(rows.reshape(12, 5, 12))[:, order == "taylor2"].mean(1)
    assert parabola == {list(calibration.SOLVERS)[errors.argmin()]} and parabola <= {"lagrange2", "adams_bashforth3"}


def test_hyca_is_refused_on_a_u_net(monkeypatch):
    monkeypatch.setattr(calibration, "trajectory", lambda *_: [torch.zeros(2, 8, 4, 4)] * 5)
    with pytest.raises(UserError, match="U-Net"):
        calibration.hyca(Uncached(None, 5, {}), [None], Fit(clusters=2))


def test_an_algorithm_that_needs_no_measuring_is_refused(compose):
    with pytest.raises(UserError, match="algo=fora needs no calibration: choose of teacache, magcache, sencache, hyca"):
        calibrate.main(compose("algo=fora", config_name="calibrate"))


def test_constants_say_of_which_steps_scheduler_and_guidance_they_are():
    for path in CALIBRATION.rglob("*.json"):
        known = json.loads(path.read_text())
        assert isinstance(known["steps"], int) and isinstance(known["guidance"], float) and known["scheduler"], path


@pytest.mark.parametrize("name", ["flux", "sd3", "hunyuan", "wan", "sdxl"])
def test_the_scheduler_is_named_with_its_shift(name):
    config = json.loads((ROOT / f"assets/tiny/{name}/scheduler/scheduler_config.json").read_text())
    pipe = SimpleNamespace(scheduler=getattr(diffusers, config["_class_name"]).from_config(config))
    known = json.loads((CALIBRATION / f"magcache/tiny-{name}.json").read_text())
    assert calibrate.scheduler(pipe) == known["scheduler"]


def test_published_constants_have_a_source():
    sources = {path: json.loads(path.read_text()).get("source") for path in CALIBRATION.rglob("*.json")}
    assert sources and all(sources.values())
