"""ClusCa's site: every module is forecast, and one real token of each cluster corrects the MLPs' forecasts."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spectrum_bench.anatomy import block_io, stacks
from spectrum_bench.caching.sites.base import StandIn, all_blocks, hidden_of
from spectrum_bench.caching.sites.modules import Modules
from spectrum_bench.caching.sites.tokens import pick


@dataclass(frozen=True)
class Clusters:
    """ClusCa (arXiv:2509.10312; Shenyi-Z/Cache4Diffusion@91a1949, clusca-flux).

    At a computed step the tokens are clustered by their hidden state behind the first stack of blocks, image and text
    apart. At a skipped one each MLP of that stack runs for a random token of each cluster; these values replace the
    newest cached ones, in the image stream also moving all tokens of their cluster towards them by `share`, and the
    forecast is moved by as much. What is replaced stays so until the next computed step.

    Attributes:
        count: clusters of each stream.
        share: rho, how much of a cluster's computed value each of its tokens takes.
        rounds: most rounds of k-means (L1 distance), which goes on from the centroids of the computed step before.
    """

    count: int = 16
    share: float = 0.005
    rounds: int = 10
    runs_blocks = True

    def __post_init__(self):
        for name, value in (("count", self.count), ("rounds", self.rounds)):
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(f"site.{name} must be a whole number of at least 1, not {value}")
        if not (isinstance(self.share, (int, float)) and 0 <= self.share <= 1):
            raise ValueError(f"site.share must be a number in [0, 1], not {self.share}")

    def attach(self, denoiser, anatomy, session, undo):
        Modules().attach(denoiser, anatomy, session, undo)
        first = getattr(denoiser, stacks(denoiser)[0])
        for i, block in enumerate(all_blocks(denoiser)[: len(first)]):
            for name in anatomy.modules[type(block).__name__].mlps:
                cached = getattr(block, name)
                if cached is not None:  # SD3's last block has no ff_context
                    undo.callback(setattr, block, name, cached)
                    stream = "image" if name in ("ff", "ffn") else "text"
                    setattr(block, name, _Corrected(cached, session, f"{i}.{name}.0", self, stream))

        def cluster(block, args, output):
            if session.computing:
                text = block_io(block).return_encoder_hidden_states_index
                streams = {"image": hidden_of(block, output), "text": None if text is None else output[text]}
                memory = session.branch.memory
                for name, stream in streams.items():
                    if stream is not None:
                        found = k_means(stream.float(), self.count, self.rounds, memory.get(f"centroids {name}"))
                        memory[f"cluster {name}"], memory[f"centroids {name}"] = found

        undo.callback(first[-1].register_forward_hook(cluster).remove)


class _Corrected(StandIn):
    """Stands in for a module that is forecast: some of its tokens are computed and correct the rest."""

    def __init__(self, cached: nn.Module, session, slot: str, site: Clusters, stream: str):
        super().__init__(cached, session)
        self.slot, self.site, self.stream = slot, site, stream
        self.draws = torch.Generator().manual_seed(0)

    def forward(self, hidden):
        branch, key = self.session.branch, f"correction {self.slot}"
        out = self.module(hidden)  # computed, or forecast
        if branch.computing:
            branch.memory.pop(key, None)
            return out
        cluster = branch.memory.get(f"cluster {self.stream}")
        if cluster is None:
            return out
        newest = branch.buffers[self.slot].rows[-1]
        base = newest + branch.memory.get(key, 0)
        chosen = one_of_each(cluster, self.site.count, self.draws)
        values = self.module.module(pick(hidden, chosen)).to(base.dtype)
        index = chosen[..., None].expand(-1, -1, values.shape[2])
        base = base.scatter(1, index, values)
        if self.stream == "image":
            base = base + self.site.share * (pick(values, cluster) - base)
        branch.memory[key] = base - newest
        return out + branch.memory[key]


def k_means(tokens: Tensor, count: int, rounds: int, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """(B, L, D) tokens -> (B, L) cluster of each and (B, count, D) centroids, by Lloyd's rounds in the L1 distance from
    `start` or from random tokens; at most as many clusters as tokens. An empty cluster keeps its centroid."""
    count = min(count, tokens.shape[1])
    if start is None:
        order = torch.rand(tokens.shape[:2], generator=torch.Generator().manual_seed(0))
        start = pick(tokens, order.argsort(1)[:, :count].to(tokens.device))
    for _ in range(rounds):
        cluster = torch.cdist(tokens, start, p=1).argmin(2)
        belongs = nn.functional.one_hot(cluster, count).to(tokens.dtype)  # (B, L, count)
        size = belongs.sum(1)[..., None]
        centroids = torch.where(size > 0, belongs.transpose(1, 2) @ tokens / size.clamp(min=1), start)
        moved = (centroids - start).abs().max() > 1e-4 * start.abs().max()
        start = centroids
        if not moved:
            break
    return cluster, start


def one_of_each(cluster: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """(B, L) cluster of each token -> (B, count) a random token of each; of an empty one, any token."""
    draw = torch.rand(cluster.shape, generator=draws).to(cluster.device)
    members = cluster[:, None] == torch.arange(min(count, cluster.shape[1]), device=cluster.device)[:, None]
    return (members + draw[:, None]).argmax(2)
