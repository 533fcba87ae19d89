"""Signals that a stranger adds: each is defined here alone, and a gate observes it on the miniature FLUX."""

from dataclasses import dataclass

import pytest
import torch
from helpers import run, sample

from spectrum_bench import decisions, distances, forecasters, signals
from spectrum_bench.caching.algorithm import Algorithm
from spectrum_bench.caching.sites.modules import Modules
from spectrum_bench.caching.sites.output import OutputResidual
from spectrum_bench.caching.sites.stack import LastBlock, StackResidual
from spectrum_bench.errors import DoesNotFit

REUSE = forecasters.reuse
STEPS = 12


pytestmark = pytest.mark.usefixtures("no_gradients")


def high_frequencies(at: signals.Call) -> torch.Tensor:
    """The energy of the latent's fast half, over its tokens."""
    return torch.fft.rfft(at.latent.float(), dim=1)[:, at.latent.shape[1] // 4 :].abs().pow(2).mean()


HIGH_FREQUENCIES = signals.Signal("high frequencies", signals.Call, high_frequencies)


def attach_entropy(denoiser, anatomy, report, undo):
    """The mean entropy of the second block's attention, from its queries and keys."""
    attention, projected = denoiser.single_transformer_blocks[0].attn, {}

    def keep(name):
        return lambda module, args, out: projected.__setitem__(name, out.unflatten(2, (attention.heads, -1)))

    def tell(module, args, output):
        q, k = projected["q"].transpose(1, 2), projected["k"].transpose(1, 2)
        p = (q @ k.transpose(2, 3) * q.shape[3] ** -0.5).softmax(3)
        report(-(p * p.clamp(min=1e-9).log()).sum(3).mean())

    undo.callback(attention.to_q.register_forward_hook(keep("q")).remove)
    undo.callback(attention.to_k.register_forward_hook(keep("k")).remove)
    undo.callback(attention.register_forward_hook(tell).remove)


def attach_first_entropy(denoiser, anatomy, report, undo):
    undo.callback(denoiser.transformer_blocks[0].attn.register_forward_hook(lambda m, a, o: report(o[0].std())).remove)


ENTROPY = signals.Signal("attention entropy of block 2", signals.Front, attach=attach_entropy)
FIRST = signals.Signal("spread of the first attention", signals.Front, attach=attach_first_entropy)


@dataclass
class Seen(decisions.State):
    before: torch.Tensor | None = None


def method(signal):
    """Computes when a signal has moved by a share of itself since the last computed step."""

    @decisions.gate(observes=(signal,), state=Seen)
    def moves(step: int, T: int, seen: decisions.Seen, state: Seen, *, threshold: decisions.Threshold) -> bool:
        if state.before is not None and distances.distance(seen[signal], state.before) < threshold:
            return False
        state.before = seen[signal]
        return True

    return moves


@pytest.mark.slow
@pytest.mark.parametrize(
    "signal,site",
    [
        (HIGH_FREQUENCIES, StackResidual()),
        (HIGH_FREQUENCIES, OutputResidual()),
        (HIGH_FREQUENCIES, Modules()),
        (FIRST, LastBlock(front=1)),
    ],
    ids=["stack", "output", "modules", "attached"],
)
def test_a_gate_observes_a_new_signal(random_pipe, signal, site):
    plain = sample(random_pipe, "flux", steps=STEPS)
    hooks = [len(m._forward_hooks) for m in random_pipe.transformer.modules()]
    Algorithm("x", method(signal)(threshold=0.1), REUSE, site).check(STEPS)
    never, session = run(random_pipe, "flux", site, method(signal)(threshold=0), REUSE, STEPS)
    assert torch.equal(never, plain) and session.computed_steps == list(range(STEPS))
    for threshold in (0.003, 0.01, 0.03, 0.1):
        out, session = run(random_pipe, "flux", site, method(signal)(threshold=threshold), REUSE, STEPS)
        if len(session.computed_steps) < STEPS:
            break
    assert 0 < len(session.computed_steps) < STEPS and not torch.equal(out, plain)
    assert [len(m._forward_hooks) for m in random_pipe.transformer.modules()] == hooks


def test_only_what_is_observed_is_attached(random_pipe):
    def forbidden(*_):
        raise AssertionError("attached")

    stranger = signals.Signal("stranger", signals.Front, attach=forbidden)
    run(random_pipe, "flux", LastBlock(front=1), method(FIRST)(threshold=0.1), REUSE, STEPS)
    with pytest.raises(AssertionError, match="attached"):
        run(random_pipe, "flux", LastBlock(front=1), method(stranger)(threshold=0.1), REUSE, STEPS)


def test_a_signal_that_comes_too_late_is_said(random_pipe):
    """The third block does not run before the gate decides."""
    gate = method(ENTROPY)(threshold=0.1)
    with pytest.raises(DoesNotFit, match="observes attention entropy of block 2, which is not known .*site.front"):
        run(random_pipe, "flux", LastBlock(front=1), gate, REUSE, STEPS)
    with pytest.raises(DoesNotFit, match="moves observes the front blocks"):
        Algorithm("x", gate, REUSE, LastBlock()).check(STEPS)
