"""After a session a denoiser is as it was found, whatever accelerate, diffusers or torch have wrapped round it."""

from functools import partial

import pytest
import torch
from accelerate.hooks import CpuOffload, ModelHook, add_hook_to_module, remove_hook_from_module
from helpers import MASK, STEPS, TAYLOR, denoiser, recipe, run, sample

from spectrum_bench import forecasters, gates
from spectrum_bench.caching.peers import CacheDiT, DiffusersCache
from spectrum_bench.caching.sites.modules import Modules
from spectrum_bench.caching.sites.output import OutputResidual
from spectrum_bench.caching.sites.stack import LastBlock
from spectrum_bench.caching.sites.tokens import Tokens
from spectrum_bench.errors import DoesNotFit

pytestmark = pytest.mark.usefixtures("no_gradients")

SPECA = gates.speca(threshold=1e9, decay=1.0, shortest=1, longest=2, first=1, immediate=True)
RULE = {"Fn_compute_blocks": 1, "residual_diff_threshold": 2.0, "max_warmup_steps": 2}
ALGORITHMS = {
    "last_block": (LastBlock(), MASK, TAYLOR),
    "output_residual": (OutputResidual(), MASK, TAYLOR),
    "modules": (Modules(), MASK, TAYLOR),
    "tokens": (Tokens(ratio=0.5, score="key_norm", interval=3), MASK, forecasters.reuse),
    "speca": (Modules(verify=True), SPECA, TAYLOR),
    "diffusers": (DiffusersCache("FirstBlockCacheConfig", {"threshold": 2.0}), gates.observed(), forecasters.reuse),
    "cache-dit": (CacheDiT(RULE), gates.observed(), forecasters.reuse),
}


class Counting(ModelHook):
    """A hook of accelerate, of the kind that `enable_model_cpu_offload` puts on a denoiser."""

    calls = 0

    def pre_forward(self, module, *args, **kwargs):
        Counting.calls += 1
        return args, kwargs


def group_offload(kind, module):
    cpu = torch.device("cpu")
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    module.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type=kind, **blocks)


WRAPPERS = {
    "accelerate hook": lambda module: add_hook_to_module(module, Counting()),
    "model offload": lambda module: add_hook_to_module(module, CpuOffload("cpu")),
    "sequential offload": lambda module: [add_hook_to_module(m, Counting()) for m in module.modules()],
    "group offload by block": partial(group_offload, "block_level"),
    "group offload by leaf": partial(group_offload, "leaf_level"),
    "layerwise casting": lambda module: module.enable_layerwise_casting(torch.bfloat16, torch.float32),
    "compile": lambda module: module.compile(backend="eager"),
}


def attributes(module):
    """All that hangs on each submodule, hooks included."""
    return [(name, id(part), {**vars(part)}, dict(part._forward_pre_hooks)) for name, part in module.named_modules()]


def differing(before, after):
    """Names of modules and attributes that are not the same objects."""
    pairs = zip(before, after, strict=True)
    return [
        (name, key)
        for (name, one, mine, hooks), (_, two, theirs, other) in pairs
        for key in sorted({*mine, *theirs})
        if one != two or hooks != other or mine.get(key, ...) is not theirs.get(key, ...)
    ]


@pytest.fixture
def own_pipe():
    """A pipeline that nobody else gets: wrappers stay on it."""
    from training import parts

    from spectrum_bench.sampling.small import no_identity

    torch.manual_seed(0)
    pipe = parts.build(recipe("flux"))
    no_identity(denoiser(pipe))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    "wrapper", [w if w == "model offload" else pytest.param(w, marks=pytest.mark.slow) for w in WRAPPERS]
)
def test_what_was_wrapped_is_as_it_was(own_pipe, wrapper):
    WRAPPERS[wrapper](own_pipe.transformer)
    plain = sample(own_pipe, "flux")
    for name, (site, schedule, forecaster) in ALGORITHMS.items():
        if (wrapper, name) == ("compile", "tokens"):
            continue  # torch.compile of the whole denoiser does not know the function mode that reads the scores
        before = attributes(own_pipe.transformer)
        Counting.calls = 0
        run(own_pipe, "flux", site, schedule, forecaster)
        assert not differing(before, attributes(own_pipe.transformer)), name
        if wrapper == "accelerate hook" and name in ("last_block", "modules", "tokens"):
            assert Counting.calls == STEPS, name
    Counting.calls = 0
    assert torch.equal(sample(own_pipe, "flux"), plain)
    if wrapper == "accelerate hook":
        assert Counting.calls == STEPS
        remove_hook_from_module(own_pipe.transformer)


def test_a_denoiser_compiled_as_a_whole_is_refused(own_pipe):
    own_pipe.transformer = torch.compile(own_pipe.transformer, backend="eager")
    for name, (site, schedule, forecaster) in ALGORITHMS.items():
        with pytest.raises(DoesNotFit, match=r"pipe.transformer.compile\(\)"):
            run(own_pipe, "flux", site, schedule, forecaster)
            pytest.fail(name)
