"""ClusCa's site: the clusters, which tokens are computed, and how they correct the forecast."""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import MASK, STEPS, TAYLOR, blocks, denoiser, inventory, run, sample

from spectrum_bench import forecasters, schedules
from spectrum_bench.caching.history import History
from spectrum_bench.caching.session import cached
from spectrum_bench.caching.sites.clusters import Clusters, k_means, one_of_each
from spectrum_bench.caching.sites.modules import Modules

NAMES = ("flux", "sd3", "hunyuan", "wan")
SITE = Clusters(count=4, share=0.3)
ONCE = partial(schedules.mask, steps=[0, 1])


pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("name", NAMES)
def test_never_skip_a_b_a_and_nothing_stays(random_pipes, name):
    pipe = random_pipes(name)
    assert torch.equal(run(pipe, name, SITE, schedules.full)[0], sample(pipe, name))
    before = inventory(denoiser(pipe))
    first, session = run(pipe, name, SITE)
    run(pipe, name, SITE, prompts=("a blue star", "a square"), seed=7, steps=5)
    assert torch.equal(run(pipe, name, SITE)[0], first) and session.computed_steps == [0, 1, 4]
    assert inventory(denoiser(pipe)) == before
    assert not torch.equal(first, run(pipe, name, Modules())[0])


def correction(branch, slot):
    """How far the newest feature has been moved since its computed step."""
    return branch.histories[slot].correct(lambda feature: feature)


def test_the_next_difference_starts_from_the_corrected_feature(random_pipes):
    """As in the published code, where the correction goes into the Taylor expansion's factor of order 0."""
    pipe, slot, computed, corrected = random_pipes("flux"), "0.ff.0", [], []
    with cached(pipe, schedule=MASK, forecaster=TAYLOR, site=SITE, num_steps=STEPS) as session:

        def step_done(pipe, step, timestep, tensors):
            if step == 3:  # 1 and 4 are computed
                branch = session.branch
                computed.append(branch.histories[slot].features()[-1])
                corrected.append(computed[0] + correction(branch, slot))
            return session.callback(pipe, step, timestep, tensors)

        sample(pipe, "flux", callback=step_done)
        before, _ = session.branch.histories[slot].features()
    assert torch.equal(before, corrected[0]) and not torch.equal(before, computed[0])


def test_a_row_takes_its_correction_in_when_the_next_one_comes():
    history = History()
    history.append(torch.tensor([1.0]))
    history.correct(lambda row: row + 0.5)
    history.correct(lambda row: row * 2)
    assert history.combine(np.ones(1)).tolist() == [1.0]
    history.append(torch.tensor([4.0]))
    assert history.combine(np.array([-1.0, 2.0])).tolist() == [5.0]  # 4 + (4 - 3)


@pytest.mark.parametrize("name", NAMES)
def test_with_every_token_a_cluster_of_its_own_mlps_are_real(random_pipes, name):
    """count = tokens, reuse: every value of the image's and the text's MLPs is computed, whatever `share` is; only the
    last SD3 block, behind which no text comes, leaves text apart."""
    pipe, once = random_pipes(name), partial(schedules.mask, steps=[0])
    module = getattr(blocks(pipe)[0], "ffn" if name == "wan" else "ff")
    real = []
    handle = module.register_forward_hook(lambda m, a, out: real.append((a[0].shape[1], out)))
    try:
        _, session = run(pipe, name, Clusters(count=999), once, forecasters.reuse, steps=2)
    finally:
        handle.remove()
    calls = len(real) // 2
    assert {count for count, _ in real} == {real[0][0]}  # as many tokens at the skipped step
    branch = next(iter(session.branches.values()))
    slot = next(s for s in branch.histories if s.startswith("0.ff") and "context" not in s)
    out = branch.histories[slot].features()[-1] + correction(branch, slot)
    expected = real[calls][1]
    each = torch.stack([row.sort(0).values for row in expected])  # in the order of the clusters
    torch.testing.assert_close(torch.stack([row.sort(0).values for row in out]), each, rtol=1e-4, atol=1e-4)


def test_one_cluster_and_share_one_give_every_token_the_same(random_pipes):
    """And taylor's slope is added to it: the forecast is moved by what the newest feature was moved."""
    pipe = random_pipes("flux")
    _, session = run(pipe, "flux", Clusters(count=1, share=1.0), ONCE, TAYLOR, steps=3)
    branch = session.branches["transformer", 0]
    base = branch.histories["0.ff.0"].features()[-1] + correction(branch, "0.ff.0")
    torch.testing.assert_close(base, base[:, :1].expand_as(base))
    text = correction(branch, "0.ff_context.0")
    assert ((text.abs().sum(2) > 0).sum(1) == 1).all()  # in the text stream the one token alone is replaced


def test_k_means_finds_clusters_that_are_there():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 5)) * 20
    which = rng.integers(3, size=60)
    tokens = torch.from_numpy(centres[which] + rng.normal(size=(60, 5)))[None].float()
    start = torch.from_numpy(centres + rng.normal(size=(3, 5)))[None].float()
    cluster, centroids = k_means(tokens, 3, 10, start)
    assert (cluster[0].numpy() == which).all()
    expected = np.stack([tokens[0].numpy()[which == k].mean(0) for k in range(3)])
    np.testing.assert_allclose(centroids[0], expected, rtol=1e-4)
    again, _ = k_means(tokens, 3, 1, centroids)
    assert torch.equal(again, cluster)
    assert k_means(tokens[:, :2], 16, 3, None)[1].shape == (1, 2, 5)  # no more clusters than tokens


def test_one_token_of_each_cluster():
    cluster = torch.tensor([[0, 0, 1, 2, 2, 2], [3, 3, 3, 3, 3, 3]])
    draws, seen = torch.Generator().manual_seed(0), set()
    for _ in range(20):
        chosen = one_of_each(cluster, 4, draws)
        assert chosen.shape == (2, 4)
        assert cluster[0, chosen[0, :3]].tolist() == [0, 1, 2] and cluster[1, chosen[1, 3]] == 3
        seen.add(tuple(chosen[0, :3].tolist()))
    assert len(seen) > 3


@pytest.mark.parametrize("wrong", [{"count": 0}, {"share": 2}, {"rounds": 1.5}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match="site.(count|share|rounds) must be"):
        Clusters(**wrong)


def test_a_u_net_is_refused(random_pipes):
    with pytest.raises(ValueError, match="use site=last_block"):
        run(random_pipes("sdxl"), "sdxl", SITE)
