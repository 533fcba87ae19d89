"""ClusCa's site: all modules are forecast, and one computed token of each cluster corrects the MLPs' forecasts."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from spectrum_bench import checks
from spectrum_bench.anatomy import Anatomy, BlockIO, all_blocks, stacks
from spectrum_bench.caching.session import Session
from spectrum_bench.caching.sites.base import Site, StandIn, replace
from spectrum_bench.caching.sites.modules import Cached, Modules, known, present, unread
from spectrum_bench.caching.sites.tokens import pick


@dataclass(frozen=True)
class Clusters(Site):
    """ClusCa (arXiv:2509.10312; Shenyi-Z/Cache4Diffusion@91a1949, clusca-flux).

    At a computed step the tokens are clustered by their hidden state behind the first stack of blocks, image and text
    apart. At a skipped one each MLP of that stack runs for a random token of each cluster; these values replace the
    newest cached ones, in the image stream also moving all tokens of their cluster towards them by `share`, and the
    forecast is moved by as much. What is replaced stays so, and the next computed step's difference starts from it. (Of
    an order above 1 the published code keeps the higher differences that were made before the correction; here all are
    made of the corrected rows.)

    Attributes:
        count: number of clusters of each stream.
        share: rho, the share by which a cluster's tokens move towards its computed value.
        rounds: the most rounds of k-means (L1 distance), which starts from the centroids of the previous computed step.
    """

    count: int = 16
    share: float = 0.005
    rounds: int = 10

    def __post_init__(self) -> None:
        checks.whole("site.count", self.count)
        checks.whole("site.rounds", self.rounds)
        checks.number("site.share", self.share, 0, 1)

    def attach(self, denoiser: nn.Module, anatomy: Anatomy, session: Session, undo: ExitStack) -> None:
        Modules().attach(denoiser, anatomy, session, undo)
        first = getattr(denoiser, stacks(denoiser)[0])
        for i, block in enumerate(all_blocks(denoiser)[: len(first)]):
            modules = known(block, anatomy)
            for name in present(block, modules.mlps or {}):
                stream = "image" if name in ("ff", "ffn") else "text"
                slot = f"{i}.{name}.0"
                corrected = partial(_Corrected, session=session, slot=slot, site=self, stream=stream)
                replace(block, name, corrected, undo)
                for norm in unread(block, modules, [name]):  # it runs: some of its tokens are read
                    replace(block, norm, attrgetter("module"), undo)
        io = BlockIO(first[-1])

        def cluster(block: nn.Module, args: Any, output: Any) -> None:
            if session.computing:
                for name, tokens in {"image": io.hidden(output), "text": io.text(output)}.items():
                    if tokens is not None:
                        state = session.branch.own(_Clustered, name)
                        state.cluster, state.centroids = k_means(
                            tokens.float(), self.count, self.rounds, state.centroids
                        )

        undo.callback(first[-1].register_forward_hook(cluster).remove)


@dataclass
class _Clustered:
    """A guidance branch's memory of the clusters of one stream.

    Attributes:
        cluster: (B, L) the cluster of each token at the last computed step.
        centroids: (B, count, D).
    """

    cluster: Tensor | None = None
    centroids: Tensor | None = None


class _Corrected(StandIn):
    """Stands in for a forecast module: some of its tokens are computed and correct the others."""

    def __init__(self, cached: Cached, session: Session, slot: str, site: Clusters, stream: str):
        super().__init__(cached, session)
        self.slot, self.site, self.stream = slot, site, stream
        self.draws = torch.Generator().manual_seed(0)

    def forward(self, hidden: Tensor) -> Any:
        branch = self.session.branch
        out = self.module(hidden)  # computed, or forecast
        cluster = branch.own(_Clustered, self.stream).cluster
        if branch.computing or cluster is None:
            return out
        chosen = one_of_each(cluster, self.site.count, self.draws)
        values = self.module.module(pick(hidden, chosen))

        def renew(newest: Tensor) -> Tensor:
            real = values.to(newest.dtype)
            base = newest.scatter(1, chosen[..., None].expand(-1, -1, real.shape[2]), real)
            return base + self.site.share * (pick(real, cluster) - base) if self.stream == "image" else base

        return out + branch.histories[self.slot].correct(renew)


def k_means(tokens: Tensor, count: int, rounds: int, start: Tensor | None) -> tuple[Tensor, Tensor]:
    """Cluster (B, L, D) tokens into at most L clusters, by Lloyd's algorithm in the L1 distance. It starts from `start`
    or from random tokens. An empty cluster keeps its centroid.

    Returns:
        The cluster of each token, (B, L), and the centroids, (B, count, D).
    """
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
    """(B, L) cluster of each token -> (B, count) a random token of each cluster; any token for an empty one."""
    draw = torch.rand(cluster.shape, generator=draws).to(cluster.device)
    members = cluster[:, None] == torch.arange(min(count, cluster.shape[1]), device=cluster.device)[:, None]
    return (members + draw[:, None]).argmax(2)
