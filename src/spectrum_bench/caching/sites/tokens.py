"""Token-wise caching: at a skipped step the MLPs run for the most important tokens, and attention is reused."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from spectrum_bench import checks
from spectrum_bench.anatomy import Anatomy, BlockModules, all_blocks
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import Site, StandIn, observe_first_block
from spectrum_bench.caching.sites.modules import Cached
from spectrum_bench.caching.sites.stack import LastBlock, bypass
from spectrum_bench.errors import BadValue, DoesNotFit
from spectrum_bench.forecasters import Forecaster
from spectrum_bench.schedules import Schedule

Score = Callable[[Tensor, Tensor, Tensor, float | None, Tensor | None], Tensor]  # (query, key, value, scale, mask)


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None, mask: Tensor | None) -> Tensor:
    """The attention that a token gets: its column of the softmax, mean over heads and queries. ToCa's own score. Fused
    kernels do not write the probabilities out, so they are computed here for 1024 queries at a time."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    total = torch.zeros(key.shape[0], key.shape[2], dtype=torch.float32, device=key.device)
    for i in range(0, query.shape[2], 1024):
        logits = query[:, :, i : i + 1024] @ key.transpose(-1, -2) * scale
        if mask is not None:
            part = mask[..., i : i + 1024, :] if mask.shape[-2] > 1 else mask
            logits = logits.masked_fill(~part, -torch.inf) if mask.dtype == torch.bool else logits + part
        total += logits.softmax(-1, dtype=torch.float32).mean(1).sum(1)
    return total / query.shape[2]


def value_norm(query: Tensor, key: Tensor, value: Tensor, scale: float | None, mask: Tensor | None) -> Tensor:
    """The norm of a token's value, mean over heads. It works with any attention kernel."""
    norm: Tensor = value.float().norm(dim=-1).mean(1)
    return norm


def key_norm(query: Tensor, key: Tensor, value: Tensor, scale: float | None, mask: Tensor | None) -> Tensor:
    """As `value_norm`, but of the keys before the QK-norm, which makes them all about equally long."""
    norm: Tensor = key.float().norm(dim=-1).mean(1)
    return norm


def random(query: Tensor, key: Tensor, value: Tensor, scale: float | None, mask: Tensor | None) -> Tensor:
    """Random tokens, to see what the choice of tokens is worth."""
    return torch.rand(key.shape[0], key.shape[2], generator=torch.Generator().manual_seed(0)).to(key.device)


SCORES: dict[str, Score] = {
    "attention": attention,
    "value_norm": value_norm,
    "key_norm": key_norm,
    "random": random,
}


@dataclass(frozen=True)
class Tokens(Site):
    """ToCa (arXiv:2410.05317; Shenyi-Z/ToCa@e84096f, flux-ToCa).

    Attention outputs are reused. Each MLP runs for the k tokens with the highest score, and its cached output takes
    their values. A token's score is its importance at the last computed step, divided by the norm over all tokens, plus
    `age_weight` / `interval` times the number of skipped steps since the token was computed. k is the share ratio (1.5
    - layer / 27) times `double` or `single` of the tokens; layers are counted within their stack (27: DiT-XL's depth
    minus one, as published).

    Attributes:
        ratio: share of the tokens that are computed at a skipped step, before the factors.
        score: a name in SCORES.
        double, single: the factors for blocks with a separate MLP, and for blocks that close attention and MLP
            together.
        age_weight, interval: see above.
    """

    ratio: float
    score: str
    interval: int
    double: float = 0.4
    single: float = 1.6
    age_weight: float = 0.25

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise BadValue(f"site.score must be one of {', '.join(SCORES)}, not {self.score}")
        for name in ("ratio", "double", "single", "age_weight"):
            checks.number(f"site.{name}", getattr(self, name), 0, 10)

    def check(self, schedule: Schedule, forecaster: Forecaster) -> None:
        """Refuse a forecaster other than reuse: computed tokens replace those of the newest feature alone."""
        if forecaster(np.array([90.0, 95.0, 99.0]), 100.0).tolist() != [0, 0, 1]:
            raise DoesNotFit("token-wise caching reuses: use algo=toca, or another site for this forecaster")

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        self.check(session.schedule, session.forecaster)
        blocks = all_blocks(denoiser)
        observe_first_block(blocks[0], anatomy, session, undo)
        depth: dict[str, int] = {}  # by class of block
        for i, block in enumerate(blocks):
            kind = type(block).__name__
            modules = anatomy.modules.get(kind)
            if modules is None or modules.mlps is None:
                raise DoesNotFit(f"token-wise caching does not know the MLPs of {kind}: use site=last_block or modules")
            layer = depth[kind] = depth.get(kind, -1) + 1
            share = self.ratio * (1.5 - layer / 27) * (self.single if modules.fused else self.double)
            text_first = modules.mlps.get("ff_context") == "head"
            choice = _Choice(self, session, str(i), max(share, 0.0), text_first)
            for name, stand_in in _stand_ins(modules).items():
                module = getattr(block, name)
                if module is not None:  # SD3's last block has no ff_context
                    undo.callback(setattr, block, name, module)
                    setattr(block, name, stand_in(module, session, f"{i}.{name}", choice))


def _stand_ins(modules: BlockModules) -> dict[str, Callable[..., StandIn]]:
    """The stand-in for each of a block's modules, by the module's name."""
    stand_ins: dict[str, Callable[..., StandIn]] = {}
    for name in modules.attentions:
        stand_ins[name] = _FusedAttention if modules.fused else _Attention
    stand_ins |= dict(zip(modules.fused or (), (_Widen, _Close), strict=False))
    return stand_ins | {name: partial(_Mlp, place=place) for name, place in (modules.mlps or {}).items()}


@dataclass(frozen=True)
class Alternating(Site):
    """DuCa (arXiv:2412.18911; Shenyi-Z/DuCa): of the steps after a computed one, the first, third, ... are token-wise;
    the second, fourth, ... skip all blocks and reuse the last block's output of the step before.

    Its FLUX-style code keeps that block's input, and so loses what it adds; here it is the output.
    """

    tokens: Tokens

    @property
    def runs_blocks(self) -> bool:
        return False

    def check(self, schedule: Schedule, forecaster: Forecaster) -> None:
        self.tokens.check(schedule, forecaster)

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        def runs() -> bool:
            branch = session.branch
            return branch.computing or (session.step - branch.times[-1]) % 2 == 1

        self.tokens.attach(denoiser, anatomy, session, undo)
        bypass(LastBlock(), denoiser, anatomy, session, undo, runs)


@dataclass
class _BlockTokens:
    """A guidance branch's memory of one block's tokens.

    Attributes:
        importance: (B, L) the score of each token at the last computed step.
        chosen: (B, k) the chosen tokens of a block that closes attention and MLP together, at this skipped step.
        ages: by slot, (B, L) the number of skipped steps since each token was computed.
    """

    importance: Tensor | None = None
    chosen: Tensor | None = None
    ages: dict[str, Tensor] = field(default_factory=dict)


class _Choice:
    """Chooses the tokens of a block's streams that are computed at a skipped step."""

    def __init__(self, site: Tokens, session: Session, block: str, share: float, text_first: bool = False):
        self.site, self.session, self.block, self.share = site, session, block, share
        self.norms = ("norm_added_k", "norm_k") if text_first else ("norm_k", "norm_added_k")  # in the tokens' order

    @property
    def state(self) -> _BlockTokens:
        return self.session.branch.own(_BlockTokens, self.block)

    def look(
        self,
        keys: dict[str, Tensor],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None = None,
        attn_mask: Tensor | None = None,
        **_: Any,
    ) -> None:
        """At a computed step: store the importance of each token. `keys` holds the keys before the norm, by its
        name."""
        if keys:
            key = torch.cat([_by_head(keys[name], key.shape[1]) for name in self.norms if name in keys], 2)
        self.state.importance = SCORES[self.site.score](query, key, value, scale, attn_mask)

    def tokens(self, slot: str, count: int, place: str) -> Tensor | None:
        """At a skipped step: choose (B, k) tokens of a stream, or None for k = 0. Also counts the tokens' ages.

        Args:
            count: the number of the stream's tokens.
            place: "head" or "tail", the place of these tokens in the joint stream.
        """
        state, k = self.state, min(int(self.share * count), count)
        if k == 0:
            return None
        if state.importance is None:
            raise DoesNotFit("token scores are read off torch's own attention: use diffusers' native attention backend")
        importance = state.importance[:, :count] if place == "head" else state.importance[:, -count:]
        age = state.ages.get(slot, torch.zeros_like(importance))
        score = normalize(importance, dim=1) + self.site.age_weight * age / self.site.interval
        chosen = score.topk(k, dim=1).indices
        state.ages[slot] = (age + 1).scatter(1, chosen, 0)
        return chosen

    def renew(self, slot: str) -> None:
        """After a computed step: reset the ages."""
        self.state.ages.pop(slot, None)


def _by_head(keys: Tensor, heads: int) -> Tensor:
    """(B, L, H D), (B, L, H, D) or (B, H, L, D) -> (B, H, L, D)."""
    if keys.ndim == 3:
        keys = keys.unflatten(2, (heads, -1))
    return keys if keys.shape[1] == heads else keys.transpose(1, 2)


class _Watch(TorchFunctionMode):
    """Inside this context `look` gets the arguments of the first attention. Nothing else changes."""

    def __init__(self, look: Callable[..., None]):
        super().__init__()
        self.look: Callable[..., None] | None = look

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention and self.look is not None:
            named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
            look, self.look = self.look, None
            look(**named)
        return func(*args, **kwargs)


class _Chosen(StandIn):
    """Stands in for a layer of an MLP that runs only for chosen tokens."""

    def __init__(self, module: nn.Module, session: Session, slot: str, choice: _Choice):
        super().__init__(module, session)
        self.slot, self.choice = slot, choice

    def refresh(self, chosen: Tensor | None, values: Tensor | None) -> Tensor:
        """The cached output with new values at the chosen tokens."""
        if chosen is not None and values is not None:
            self.session.branch.refresh(self.slot, chosen, values)
        return self.session.branch.forecast(self.slot)


class _Attention(Cached):
    """The whole output is reused. At a computed step the importance of the tokens is read off the attention."""

    def __init__(self, module: nn.Module, session: Session, slot: str, choice: _Choice):
        super().__init__(module, session, slot)
        self.choice = choice

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.session.computing and self.slot.endswith(("attn", "attn1"))):
            return super().forward(*args, **kwargs)
        with ExitStack() as undo:
            keys: dict[str, Tensor] = {}
            if self.choice.site.score == "key_norm":
                self._keep_what_enters_the_norms(keys, undo)
            undo.enter_context(_Watch(partial(self.choice.look, keys)))
            return super().forward(*args, **kwargs)

    def _keep_what_enters_the_norms(self, keys: dict[str, Tensor], undo: ExitStack) -> None:
        for name in self.choice.norms:
            norm = getattr(self.module, name, None)
            if norm is not None:

                def keep(norm: nn.Module, args: Any, name: str = name) -> None:
                    keys[name] = args[0]

                undo.callback(norm.register_forward_pre_hook(keep).remove)


class _FusedAttention(_Attention):
    """The attention of a block that closes attention and MLP together. At a skipped step it returns only the chosen
    tokens."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        if self.session.computing:
            return out
        streams = out if self.outputs else (out,)
        joint = torch.cat(streams, dim=1)
        joint = pick(joint, self.choice.state.chosen)
        return (joint, *(stream[:, :0] for stream in streams[1:])) if self.outputs else joint


class _Widen(_Chosen):
    """The first layer of the MLP in such a block. It chooses the tokens."""

    def forward(self, hidden: Tensor) -> Any:
        state = self.choice.state
        if self.session.computing:
            state.chosen = None
            self.choice.renew(self.slot)
            return self.module(hidden)
        state.chosen = self.choice.tokens(self.slot, hidden.shape[1], "head")
        return self.module(pick(hidden, state.chosen))


class _Close(_Chosen):
    """The layer that closes attention and MLP. Its output is cached."""

    def forward(self, hidden: Tensor) -> Any:
        if self.session.computing:
            out = self.module(hidden)
            self.session.branch.store(self.slot, out)
            return out
        chosen = self.choice.state.chosen
        return self.refresh(chosen, None if chosen is None else self.module(hidden))


class _Mlp(_Chosen):
    def __init__(self, module: nn.Module, session: Session, slot: str, choice: _Choice, place: str):
        super().__init__(module, session, slot, choice)
        self.place = place

    def forward(self, hidden: Tensor) -> Any:
        if self.session.computing:
            self.choice.renew(self.slot)
            out = self.module(hidden)
            self.session.branch.store(self.slot, out)
            return out
        chosen = self.choice.tokens(self.slot, hidden.shape[1], self.place)
        return self.refresh(chosen, None if chosen is None else self.module(pick(hidden, chosen)))


def pick(stream: Tensor, chosen: Tensor | None) -> Tensor:
    """Pick the (B, k) chosen tokens of a (B, L, D) stream: (B, k, D)."""
    if chosen is None:
        return stream[:, :0]
    return stream.gather(1, chosen[..., None].expand(-1, -1, stream.shape[2]))
