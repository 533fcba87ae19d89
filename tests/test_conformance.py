"""Every algorithm of configs/algo on every shipped miniature, as the command line would run it."""

import re
from functools import cache
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from helpers import first_of_its_site, inventory, paired, settings

from spectrum_bench import schedules
from spectrum_bench.caching.session import cached, denoisers
from spectrum_bench.commands.compose import build
from spectrum_bench.errors import DoesNotFit, UserError
from spectrum_bench.paths import CONFIGS
from spectrum_bench.sampling.models import load_pipeline

pytestmark = pytest.mark.slow

ALGOS = sorted(p.stem for p in Path(CONFIGS, "algo").glob("*.yaml"))
# What an algorithm says of a miniature that it does not fit, from the golden values: a new algorithm brings its own.
UNSUPPORTED = {
    (algo, model): line["refused"]
    for model in golden.MINIATURES
    for algo, line in golden.read(model).items()
    if "refused" in line
}
# at its authors' threshold SenCache skips none of so few steps, and 14 passes are all of them
WORDS = {"sencache": ["schedule.threshold=1"], "hindsight": ["algo.passes=6"], "meancache": ["algo.passes=6"]}
# at 0.12 it skips the first of HunyuanVideo's two stacks alone, which no count of steps shows
WORDS["l2p"] = ["algo.passes=6", f"algo.forecaster.outputs={golden.DRIFT[:12]}"]
WORDS["cachedit_recommended"] = ["site.arguments.residual_diff_threshold=0.3"]
SITES = sorted(
    p.stem
    for p in Path(CONFIGS, "site").glob("*.yaml")
    if not p.stem.startswith(("diffusers_", "cachedit_", "fitted_", "kinds"))  # the last two have steps of their own
)
STEPS, FEWER, FEW = 12, 8, 4
CLIPS = ("tiny-hunyuan", "tiny-wan")  # they take long, so that B is one sample
A = ("a large red ring on a gray background",)
B = ("a small blue star on a navy background", "a large green cross on a teal background")


@cache
def pipeline(model: str):
    return load_pipeline(settings(f"model={model}").model, "cpu")


def run(model: str, algo: str, prompts, seed: int = 0, steps: int = STEPS, words=()):
    pipe = pipeline(model)
    config = paired(model, algo, f"num_inference_steps={STEPS}", *WORDS.get(algo, []), *words)
    algorithm = build(config)
    rules = {"schedule": algorithm.schedule, "forecaster": algorithm.forecaster, "site": algorithm.site}
    with torch.no_grad(), cached(pipe, **rules, num_steps=steps) as session:
        out = pipe(
            list(prompts),
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(seed + i) for i in range(len(prompts))],
            output_type="latent",
            callback_on_step_end=session.callback,
            **config.model.arguments,
        )[0]
    return out, session, algorithm


def cases() -> list[tuple[str, str]]:
    """Every algorithm on the miniature FLUX; on each other one of each site (and of cache-dit), since what a schedule
    or a forecaster keeps is not the model's; and all that are refused. test_golden has all of them on all."""
    found = []
    for model in golden.MINIATURES:
        refused = [algo for algo in ALGOS if (algo, model) in UNSUPPORTED]
        fitting = [algo for algo in ALGOS if algo not in refused]
        chosen = fitting
        if model != "tiny-flux":
            chosen = [a for a in first_of_its_site(fitting) if a == "cachedit_dbcache" or not a.startswith("cachedit_")]
        found += [(algo, model) for algo in refused + chosen]
    return sorted(found)


@cache
def plain(model: str, steps: int = STEPS) -> torch.Tensor:
    """Prompt A by the pipeline itself; diffusers' cache_context leaves its own registry at this first call."""
    arguments = settings(f"model={model}").model.arguments
    generator = [torch.Generator().manual_seed(0)]
    with torch.no_grad():
        return pipeline(model)(
            list(A), num_inference_steps=steps, generator=generator, output_type="latent", **arguments
        )[0]


@pytest.mark.parametrize("site", SITES)
def test_a_site_that_never_skips_gives_the_plain_pipelines_bits(site):
    """On each miniature, or it is refused there in one line; a site fits at least one of them."""
    fitting = 0
    for model in golden.MINIATURES:
        reference = plain(model, FEW)
        try:
            out, session, _ = run(model, "reuse", A, steps=FEW, words=[f"site={site}", "schedule=full"])
        except DoesNotFit as refusal:
            assert "\n" not in str(refusal)
            continue
        fitting += 1
        assert torch.equal(out, reference) and session.computed_steps == list(range(FEW)), model
    assert fitting, f"site={site} fits no miniature"


@pytest.mark.parametrize("algo,model", cases())
def test_every_algorithm(algo, model):
    """A, B, A, where B is two other prompts at once with another seed and number of steps; branches apart; a batch of
    two is two samples; nothing left behind."""
    if (algo, model) in UNSUPPORTED:
        with pytest.raises((ValueError, UserError), match=re.escape(UNSUPPORTED[algo, model])) as error:
            run(model, algo, A)
        assert "\n" not in str(error.value)
        return
    network = next(iter(denoisers(pipeline(model)).values()))
    reference = plain(model)

    before = inventory(network)
    first, one, algorithm = run(model, algo, A)
    both, _, _ = run(model, algo, B[:1] if model in CLIPS else B, seed=7, steps=FEWER)
    again, two, _ = run(model, algo, A)
    assert torch.equal(first, again) and one.computed_steps == two.computed_steps
    assert inventory(network) == before and torch.isfinite(first).all()
    mask = schedules.plan(algorithm.schedule, STEPS)
    if mask is not None:
        assert one.computed_steps == mask.nonzero()[0].tolist()
    if algo in ("nocache", "steps"):
        assert torch.equal(first, reference) and one.cache_bytes == 0
    elif len(one.computed_steps) < STEPS:
        assert not torch.equal(first, reference) and one.cache_bytes > 0
    else:
        assert torch.equal(first, reference)
    if model in CLIPS:
        return
    assert both.shape[0] == 2 and not torch.equal(both[0], both[1])
    if mask is None or algo == "clusca":  # a gate decides once for a batch; clusca's random tokens differ
        return
    alone, _, _ = run(model, algo, B[1:], seed=8, steps=FEWER)
    np.testing.assert_allclose(both[1:], alone, rtol=0, atol=2e-2 * float(alone.abs().max()))
