"""AdaCache's gate with residuals made by hand, and its signal on a pipeline with two guidance calls."""

from dataclasses import dataclass, field

import pytest
import torch
from helpers import blocks, run

from spectrum_bench import decisions, feature_gates, forecasters
from spectrum_bench.caching.sites.modules import Modules
from spectrum_bench.caching.sites.stack import StackResidual
from spectrum_bench.errors import BadValue, DoesNotFit
from spectrum_bench.signals import GRID, MIDDLE

BOOK = [[0.1, 4], [0.3, 2], [1.0, 1]]
REUSE = forecasters.reuse


def decide(gate, residuals, grid=(2, 2)):
    """The computed steps; `residuals` holds the number that fills the attention of each step, or its tokens."""
    state, newest, out = gate.start(len(residuals)), None, []
    for step, residual in enumerate(residuals):
        seen = {GRID: torch.tensor(grid)} | ({} if newest is None else {MIDDLE: newest})
        if gate.decide(step, seen, state):
            out.append(step)
            newest = residual if isinstance(residual, torch.Tensor) else torch.full((1, 4, 3), residual)
    return out


def test_the_codebook_says_how_many_steps_later():
    """From step 0 to 1 the distance is 0.05: 4 steps. From 1 to 5 it is 0.8 / 4 = 0.2 a step: 2 steps. From 5 to 7 it
    is 0.9 / 2: 1 step. From then on it stands still: 4 steps; the last two of 14 are computed in any case."""
    values = [1.0, 1.05, 9.0, 9.0, 9.0, 1.05 * 1.8, 9.0, 1.05 * 1.8 * 1.9] + [1.05 * 1.8 * 1.9] * 6
    gate = feature_gates.adacache(codebook=BOOK)
    assert decide(gate, values) == [0, 1, 5, 7, 8, 12, 13]
    assert decide(feature_gates.adacache(codebook=BOOK, threshold=0), values) == list(range(14))


def test_motion_between_frames_by_hand():
    """Two frames of two tokens: 1 and 3 throughout give |3 - 1| / (3 + 1)."""
    frames = torch.tensor([1.0, 1.0, 3.0, 3.0])[None, :, None].expand(1, 4, 3)
    assert feature_gates.frames_motion(frames, 2) == pytest.approx(0.5)
    assert feature_gates.frames_motion(torch.ones(1, 4, 3), 1) == 0.0


def test_motion_shortens_the_gaps_of_clips_alone():
    """Motion 0.5 makes distances (0.5 / 0.385)^8 = 8.1 times larger, and its change from 1 adds 10 * 7.1 / rate."""
    frame = torch.tensor([1.0, 1.0, 3.0, 3.0])[None, :, None].expand(1, 4, 3)
    clip = [frame * (1 + 0.002 * step) for step in range(20)]
    gate = feature_gates.adacache(codebook=BOOK)
    still = decide(gate, clip)
    assert decide(gate, clip, (2, 1, 2)) != still == decide(gate, clip, (2, 2))
    assert decide(feature_gates.adacache(codebook=BOOK, motion=False), clip, (2, 1, 2)) == still
    # step 2 is within 0.1 T .. 0.9 T: 0.002 (8.1 + 71) = 0.158: 2 steps; then 0.001 (8.1 + 0): 4 steps
    assert decide(gate, clip, (2, 1, 2))[:4] == [0, 1, 3, 7]


@pytest.mark.parametrize("wrong", [[], [[0.1]], [[0.1, 0]], [[0.1, 1.5]], "abc", [0.1, 2], [[0.2, 1], [0.1, 2]]])
def test_a_codebook_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(BadValue, match="codebook must"):
        feature_gates.adacache(codebook=wrong)


@dataclass
class Seen(decisions.State):
    tensors: list = field(default_factory=list)


@decisions.gate(observes=(MIDDLE,), state=Seen)
def every_second(step: int, T: int, seen: decisions.Seen, state: Seen) -> bool:
    state.tensors.append(seen.get(MIDDLE))
    return step % 2 == 0


@pytest.mark.parametrize("name", ["flux", "wan"])
@pytest.mark.parametrize("site", [StackResidual(), Modules()], ids=["stack", "modules"])
def test_a_late_signal_is_that_of_the_branchs_newest_computed_step(random_pipes, no_gradients, name, site):
    pipe, outputs = random_pipes(name), []
    middle = blocks(pipe)[1 if name == "flux" else len(blocks(pipe)) // 2]
    attention = middle.attn if name == "flux" else middle.attn1

    def keep(module, args, output):
        outputs.append(output if isinstance(output, torch.Tensor) else output[0])

    handle = attention.register_forward_hook(keep)
    try:
        _, session = run(pipe, name, site, every_second(), REUSE)
    finally:
        handle.remove()
    calls = len(session.branches)
    for place, branch in enumerate(session.branches.values()):
        own = outputs[place::calls]
        assert branch.state.tensors[0] is None and len(own) == 3
        for step in range(1, 6):
            assert torch.equal(branch.state.tensors[step], own[(step - 1) // 2])
        assert branch.nbytes >= own[-1].nbytes


def test_a_network_whose_attention_is_unknown_is_refused(random_pipes, no_gradients):
    with pytest.raises(DoesNotFit, match="no attention is known in"):
        run(random_pipes("sdxl"), "sdxl", StackResidual(), every_second(), REUSE)
