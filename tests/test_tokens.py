"""ToCa's site: what is computed anew at a skipped step, for which tokens, on the models whose MLPs it knows."""

from collections import defaultdict
from functools import partial

import numpy as np
import pytest
import torch
from helpers import CALLS, MASK, blocks, denoiser, inventory, run, sample

from spectrum_bench import forecasters, schedules
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites import tokens
from spectrum_bench.caching.sites.modules import Modules
from spectrum_bench.caching.sites.tokens import Alternating, Tokens

NAMES = ("flux", "sd3", "hunyuan", "wan")
SITE = Tokens(ratio=0.5, score="attention", interval=3, double=1.0, single=1.0)
REUSE = forecasters.reuse


pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.mark.parametrize("name", NAMES)
def test_never_skip_and_a_b_a(random_pipes, name):
    pipe = random_pipes(name)
    assert torch.equal(run(pipe, name, SITE, schedules.full, REUSE)[0], sample(pipe, name))
    before = inventory(denoiser(pipe))
    first, one = run(pipe, name, SITE, MASK, REUSE)
    run(pipe, name, SITE, MASK, REUSE, prompts=("a blue star", "a square"), seed=7, steps=5)
    again, _ = run(pipe, name, SITE, MASK, REUSE)
    assert torch.equal(first, again) and one.computed_steps == [0, 1, 4] and len(one.branches) == CALLS.get(name, 1)
    assert inventory(denoiser(pipe)) == before


@pytest.mark.parametrize("name", NAMES)
def test_no_token_is_reuse_of_modules(random_pipes, name):
    """With a share of 0 every output is the cached one: FORA."""
    pipe, none = random_pipes(name), Tokens(ratio=0, score="random", interval=3)
    assert torch.equal(run(pipe, name, none, MASK, REUSE)[0], run(pipe, name, Modules(), MASK, REUSE)[0])


@pytest.mark.parametrize("name", NAMES)
def test_all_tokens_are_reuse_of_attention_alone(random_pipes, name):
    """With all tokens chosen, MLPs are those of the current step: against attention outputs put back by hooks."""
    pipe, everything = random_pipes(name), Tokens(ratio=9, score="value_norm", interval=3)
    ours, _ = run(pipe, name, everything, MASK, REUSE)
    kept, clock, handles = {}, [0], []

    def reuse(module, args, out):
        step, branch = divmod(clock[0] - 1, CALLS.get(name, 1))
        if step in (0, 1, 4):
            kept[module, branch] = out
        return kept[module, branch]

    for block in blocks(pipe):
        for attention in ("attn", "attn1", "attn2"):
            if isinstance(getattr(block, attention, None), torch.nn.Module):
                handles.append(getattr(block, attention).register_forward_hook(reuse))
    handles.append(denoiser(pipe).register_forward_pre_hook(lambda *_: clock.__setitem__(0, clock[0] + 1)))
    try:
        expected = sample(pipe, name)
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_two_chooses_for_each(random_pipes, name):
    both, _ = run(random_pipes(name), name, SITE, MASK, REUSE, prompts=("a red ring", "a blue star"))
    for i, prompt in enumerate(("a red ring", "a blue star")):
        alone, _ = run(random_pipes(name), name, SITE, MASK, REUSE, prompts=(prompt,), seed=i)
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max()))


def test_only_the_chosen_tokens_are_computed(random_pipes):
    """FLUX: 32 of 64 image and 8 of 16 text tokens in double blocks, 40 of 80 in single ones, no attention."""
    pipe, seen = random_pipes("flux"), defaultdict(list)
    names = {"ff.net.0.proj": "ff", "ff_context.net.0.proj": "text", "proj_mlp": "mlp", "attn.to_q": "attention"}
    site = Tokens(ratio=0.5 / 1.5, score="key_norm", interval=3, double=1.0, single=1.0)
    handles = [
        m.register_forward_pre_hook(lambda m, args, kind=kind: seen[kind].append(args[0].shape[1]))
        for block in (pipe.transformer.transformer_blocks[0], pipe.transformer.single_transformer_blocks[0])
        for n, m in block.named_modules()
        for end, kind in names.items()
        if n == end
    ]
    try:
        run(pipe, "flux", site, partial(schedules.mask, steps=[0]), REUSE, steps=3)
    finally:
        for handle in handles:
            handle.remove()
    assert seen == {"ff": [64, 32, 32], "text": [16, 8, 8], "mlp": [80, 40, 40], "attention": [64, 80]}


@pytest.mark.parametrize("name", NAMES)
def test_key_norm_is_of_the_keys_before_their_norm(random_pipes, name):
    """As in Shenyi-Z/ToCa@e84096f, flux-ToCa: behind the QK-norm all keys are about as long."""
    pipe, seen, handles = random_pipes(name), {}, []
    attention = getattr(blocks(pipe)[0], "attn1" if name == "wan" else "attn")
    for part in ("to_k", "add_k_proj"):
        if getattr(attention, part, None) is not None:
            hook = lambda m, args, out, part=part: seen.setdefault(part, out)  # noqa: E731
            handles.append(getattr(attention, part).register_forward_hook(hook))
    try:
        site = Tokens(ratio=0.5, score="key_norm", interval=3)
        _, session = run(pipe, name, site, partial(schedules.mask, steps=[0]), REUSE, steps=1)
    finally:
        for handle in handles:
            handle.remove()
    order = ("add_k_proj", "to_k") if name == "flux" else ("to_k", "add_k_proj")
    keys = torch.cat([seen[part] for part in order if part in seen], 1)
    expected = keys.unflatten(2, (attention.heads, -1)).norm(dim=3).mean(2)
    importance = next(iter(session.branches.values())).own(tokens._BlockTokens, "0").importance
    torch.testing.assert_close(importance, expected)


def test_tokens_take_turns():
    """Equal importance, half of four tokens a step: by age the others come next; after a full step all are new."""

    session = Session(schedules.full, REUSE, 5)
    session.begin_call("transformer", torch.zeros(1), torch.zeros(1))
    choice = tokens._Choice(SITE, session, "0", 0.5)
    choice.state.importance = torch.ones(1, 4)
    first, second = (set(choice.tokens("x", 4, "head")[0].tolist()) for _ in range(2))
    assert first | second == {0, 1, 2, 3}
    choice.renew("x")
    assert "x" not in choice.state.ages
    choice.state.importance = torch.tensor([[0.0, 0, 9, 5, 1, 7]])
    assert set(choice.tokens("y", 4, "tail")[0].tolist()) == {0, 3}  # of the last four
    assert set(choice.tokens("z", 2, "head")[0].tolist()) <= {0, 1}
    assert tokens._Choice(SITE, session, "0", 0.2).tokens("x", 4, "head") is None


@pytest.mark.parametrize("masked", [None, "bool", "added"])
def test_attention_score_is_the_mean_column(masked):
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=rng) for n in (1500, 40, 40))
    mask = None if masked is None else torch.rand(2, 1, 1, 40, generator=rng) > 0.3
    if masked == "added":
        mask = torch.zeros(2, 1, 1, 40).masked_fill(~mask, -torch.inf)
    logits = np.einsum("bhqd,bhkd->bhqk", q.double(), k.double()) / np.sqrt(8)
    if mask is not None:
        logits = logits + (mask.numpy() if masked == "added" else np.where(mask.numpy(), 0, -np.inf))
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    expected = (weights / weights.sum(-1, keepdims=True)).mean((1, 2))
    np.testing.assert_allclose(tokens.attention(q, k, v, None, mask), expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(tokens.attention(q, k, v, None, mask).sum(1), [1, 1], rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_duca_takes_turns(random_pipes, name):
    """After a computed step: token-wise, nothing, token-wise, nothing; never-skip and A, B, A."""
    pipe, calls, gave, site = random_pipes(name), [], [], Alternating(SITE)
    module = blocks(pipe)[-1]
    plain = sample(pipe, name)
    assert torch.equal(run(pipe, name, site, schedules.full, REUSE)[0], plain)
    before = inventory(denoiser(pipe))
    clock = [0]
    handles = [
        denoiser(pipe).register_forward_pre_hook(lambda *_: clock.__setitem__(0, clock[0] + 1)),
        module.register_forward_hook(lambda m, a, out: calls.append((clock[0] - 1) // CALLS.get(name, 1))),
        denoiser(pipe).norm_out.register_forward_pre_hook(lambda m, args: gave.append(args[0].clone())),
    ]
    mask = partial(schedules.mask, steps=[0, 5])
    try:
        first, session = run(pipe, name, site, mask, REUSE, steps=7)
    finally:
        for handle in handles:
            handle.remove()
    each = CALLS.get(name, 1)
    assert session.computed_steps == [0, 5] and sorted(set(calls)) == [0, 1, 3, 5, 6] and len(calls) == 5 * each
    assert torch.equal(gave[2 * each], gave[1 * each]) and torch.equal(gave[4 * each], gave[3 * each])
    run(pipe, name, site, mask, REUSE, prompts=("a blue star", "a square"), seed=7, steps=6)
    assert torch.equal(run(pipe, name, site, mask, REUSE, steps=7)[0], first)
    assert inventory(denoiser(pipe)) == before


def test_unsupported_pairs_say_what_to_use(random_pipes):
    with pytest.raises(ValueError, match="does not know the MLPs of .*: use site=last_block"):
        run(random_pipes("sdxl"), "sdxl", SITE, MASK, REUSE)
    with pytest.raises(ValueError, match="token-wise caching reuses: use algo=toca"):
        run(random_pipes("flux"), "flux", SITE, MASK, partial(forecasters.taylor, order=1))


@pytest.mark.parametrize("wrong", [{"score": "best"}, {"ratio": -1}, {"ratio": "x"}, {"age_weight": float("nan")}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError, match="site.(score|ratio|age_weight) must be"):
        Tokens(**{"ratio": 0.1, "score": "random", "interval": 4} | wrong)
