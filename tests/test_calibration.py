"""Fitting TeaCache's polynomial."""

import numpy as np
import pytest
import torch

from spectrum_bench import calibration
from spectrum_bench.jobs import UserError


def test_a_polynomial_is_found_again():
    x = np.linspace(0.02, 0.3, 60)
    polynomial, r2 = calibration.fit_polynomial(x, np.polyval([3.0, -2.0, 1.0, 0.5, 0.1], x))
    np.testing.assert_allclose(polynomial, [3.0, -2.0, 1.0, 0.5, 0.1], rtol=1e-5)
    assert r2 == pytest.approx(1)
    assert calibration.fit_polynomial(x, np.random.default_rng(0).standard_normal(60))[1] < 0.5


def test_changes_are_those_of_an_uncached_run(random_pipe):
    """Against the epilogue's inputs of a plain run, and a gate that is asked once a step."""
    arguments = {"height": 64, "width": 64, "max_sequence_length": 16}
    x, y = calibration.changes(random_pipe, "a red ring", 0, 6, arguments)
    seen, transformer = [], random_pipe.transformer
    handle = transformer.norm_out.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    try:
        random_pipe("a red ring", num_inference_steps=6, generator=torch.Generator().manual_seed(0), **arguments)
    finally:
        handle.remove()
    expected = [float((b - a).abs().mean() / a.abs().mean()) for a, b in zip(seen, seen[1:], strict=False)]
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    assert x.shape == y.shape == (5,) and (x > 0).all()


@pytest.mark.parametrize("r2", [0.79, 0.81])
def test_the_command_refuses_a_fit_that_explains_too_little(compose, weights, tmp_path, monkeypatch, capsys, r2):
    (tmp_path / "p.txt").write_text("a red ring\n")
    monkeypatch.setattr(calibration, "fit_polynomial", lambda x, y, degree: ([1.0, 0.0], r2))
    words = [f"model.repo={weights}", f"prompt_file={tmp_path}/p.txt", "num_inference_steps=4"]
    cfg = compose(*words, config_name="calibrate")
    if r2 < 0.8:
        with pytest.raises(UserError, match="below 0.8"):
            calibration.main(cfg)
    else:
        calibration.main(cfg)
        assert "polynomial: [1.00000000e+00, 0.00000000e+00]" in capsys.readouterr().out
