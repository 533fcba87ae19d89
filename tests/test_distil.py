"""The stages that distil a few-step student of a miniature."""

import copy

import pytest
import torch
from helpers import denoiser, recipe
from omegaconf import OmegaConf
from safetensors.torch import save_file
from training import distil
from training.students import STUDENTS

from spectrum_bench.sampling.lora import fuse


@pytest.fixture
def cfg(tmp_path):
    """The recipe, with paths of three captions by the student's own four steps."""
    given = OmegaConf.create(recipe("student") | {"work": str(tmp_path)})
    given.stages.paths = {"count": 3, "batch": 3, "steps": given.steps, "algo": "nocache", "constants": {}}
    return given


@pytest.fixture
def student(random_pipe, cfg):
    pipe = copy.copy(random_pipe)
    pipe.register_modules(transformer=copy.deepcopy(random_pipe.transformer))
    made = STUDENTS[cfg.pipeline](pipe, OmegaConf.to_container(cfg.call), cfg.width)
    return made.eval().requires_grad_(False)


def test_latents_between_two_steps_lie_on_a_line():
    fine = torch.tensor([1.0, 0.75, 0.25, 0.0])
    path = torch.tensor([0.0, 4.0, 8.0, 9.0]).view(1, 4, 1).expand(2, 4, 3)
    found = distil.between(path, fine, torch.tensor([1.0, 0.5, 0.25, 0.0]))
    assert found.shape == (2, 4, 3) and found[1, :, 2].tolist() == [0.0, 6.0, 8.0, 9.0]


def test_the_students_levels_are_those_of_the_pipeline(student):
    """By paper: FLUX shifts evenly spaced levels, e^mu / (e^mu + 1 / level - 1)."""
    mu = 0.5 + (64 - 256) * (1.15 - 0.5) / (4096 - 256)
    even = torch.tensor([1.0, 0.75, 0.5, 0.25])
    shifted = torch.e**mu / (torch.e**mu + 1 / even - 1)
    torch.testing.assert_close(distil.levels(student, 4), torch.cat([shifted, torch.zeros(1)]))


@pytest.mark.parametrize("stage", ["windows", "rollout"])
def test_a_teacher_that_takes_the_students_steps_leaves_nothing_to_learn(stage, student, cfg, monkeypatch):
    cfg.stages[stage].batch = 4
    lora = distil.Lora(student.denoiser, 2).requires_grad_(False)  # as a stage before leaves it
    paths, losses = distil.make_paths(student, cfg), []
    monkeypatch.setattr(distil, "fit", lambda name, model, loss, **kwargs: losses.append(loss(0)[0]))
    train = getattr(distil, f"train_{stage}")
    train(student, lora, paths, cfg)
    assert losses[0] < 1e-5
    losses[0].backward()
    assert {name.partition(".")[0] for name, p in lora.named_parameters() if p.grad is not None} == {"up", "down"}
    paths["latents"][:, -1] += 1  # the last step ends elsewhere
    train(student, lora, paths, cfg)
    assert losses[1] > 0.1


def test_a_saved_student_is_the_trained_one(student, random_pipe, cfg, tmp_path):
    lora = distil.Lora(student.denoiser, 2)
    x, level, text = torch.randn(1, 64, 32), torch.tensor([0.6]), student.conditions(["a large red ring"])
    with torch.no_grad():
        plain = student.predict(x, level, text, torch.ones(1))
        for up in lora.up:
            up.weight.normal_(0, 0.1)
        trained = student.predict(x, level, text, torch.ones(1))
    save_file(lora.tensors("transformer"), tmp_path / "lora.safetensors")
    other = copy.copy(random_pipe)
    other.register_modules(transformer=copy.deepcopy(random_pipe.transformer))
    fuse(other, tmp_path / "lora.safetensors", 1.0)
    with torch.no_grad():
        saved = STUDENTS[cfg.pipeline](other, OmegaConf.to_container(cfg.call), cfg.width).predict(
            x, level, text, torch.ones(1)
        )
    assert (saved - trained).abs().max() < 0.01 * (trained - plain).abs().max()
    assert denoiser(other) is not denoiser(random_pipe)
