"""A skipped step does not make what only the blocks would read, and its latents are the same to the bit."""

from collections import Counter

import pytest
import torch
from helpers import CALLS, STEPS, denoiser, inventory, run

from spectrum_bench import forecasters, gates
from spectrum_bench.anatomy import anatomy
from spectrum_bench.caching.sites import stack
from spectrum_bench.caching.sites.stack import LastBlock, StackResidual, TailResidual
from spectrum_bench.caching.sites.unread import _Tensors

PIPES = ("flux", "sd3", "wan", "hunyuan")

pytestmark = pytest.mark.usefixtures("no_gradients")


def counted(pipe, name, *site, **rules):
    """(latents, how often each module ran) of a run in which nothing may be left behind."""
    network, ran = denoiser(pipe), Counter()
    entry = anatomy(network)
    hooks = [
        network.get_submodule(part).register_forward_hook(lambda m, a, o, part=part: ran.update([part]))
        for part in (*entry.unread, entry.embedder)
    ]
    before = [part[:4] for part in inventory(network)]  # diffusers' cache_context leaves an attribute of its own
    latents, _ = run(pipe, name, *site, **rules)
    assert [part[:4] for part in inventory(network)] == before
    for hook in hooks:
        hook.remove()
    return latents, {part: ran[part] / CALLS.get(name, 1) for part in (*entry.unread, entry.embedder)}


def everything(pipe, name, monkeypatch, *site, **rules):
    """The same where every step makes all of it."""
    with monkeypatch.context() as patch:
        patch.setattr(stack, "leave_out_unread", lambda *arguments: None)
        return counted(pipe, name, *site, **rules)


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [("a red ring",), ("a red ring", "a blue star")], ids=["one", "two"])
@pytest.mark.parametrize("name", PIPES)
def test_masks(name, prompts, random_pipes, monkeypatch):
    pipe, computed = random_pipes(name), 3
    entry = anatomy(denoiser(pipe))
    for site in (LastBlock(), StackResidual(), LastBlock(front=1), TailResidual()):
        expected, ran = everything(pipe, name, monkeypatch, site, prompts=prompts)
        assert set(ran.values()) == {STEPS}
        first, ran = counted(pipe, name, site, prompts=prompts)
        counted(pipe, name, LastBlock(), prompts=("a green cross",), seed=3)
        again, _ = counted(pipe, name, site, prompts=prompts)
        assert torch.equal(first, expected) and torch.equal(again, expected) and first.isfinite().all()
        assert {ran[part] for part in entry.unread} == {STEPS if site.front else computed}
        assert ran[entry.embedder] == (computed if site == LastBlock() else STEPS)


@pytest.mark.parametrize("name", PIPES)
def test_gates_that_decide_at_the_first_block(name, random_pipes, monkeypatch):
    """What depends on the prompt or on sizes alone runs once; the latent's embedding, and a projection that the
    timestep modulates, at every step."""
    pipe, entry = random_pipes(name), anatomy(denoiser(random_pipes(name)))
    gate = gates.accumulated(threshold=0.3, polynomial=[1.0, 0.0])
    rules = {"schedule": gate, "forecaster": forecasters.reuse}
    expected, _ = everything(pipe, name, monkeypatch, StackResidual(), **rules)
    latents, ran = counted(pipe, name, StackResidual(), **rules)
    assert torch.equal(latents, expected)
    assert {part: ran[part] for part in entry.unread} == {
        part: STEPS if "timestep" in sources else 1 for part, sources in entry.unread.items()
    }
    assert ran[entry.embedder] == STEPS


def test_a_tensor_that_was_written_to_is_another_one():
    one, two = torch.zeros(2), torch.zeros(2)
    before = _Tensors([one, two])
    assert before.are(_Tensors([one, two])) and not before.are(_Tensors([one, one])) and not before.are(_Tensors([one]))
    one.add_(1)
    assert not before.are(_Tensors([one, two]))
    with torch.inference_mode():
        unknown = torch.zeros(2)  # nobody counts what is written to it
    assert not _Tensors([unknown]).are(_Tensors([unknown]))
