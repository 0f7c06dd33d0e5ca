"""GTP-ViT (arXiv 2311.03035)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokensieve.methods._config import require
from tokensieve.methods._counts import checked_sites
from tokensieve.methods._graph import diagonal_and_columns, grid_neighbours, most_similar, named_by_each, normalised
from tokensieve.methods._method import Method
from tokensieve.methods._view import Layout, Signal, View
from tokensieve.ops.rows import at_least_float32, split_top, take_rows
from tokensieve.tokens.decision import Assignment

GRAPH = "gtp"  # what lies beside each token where the graph is drawn once: its row of the normalised one


@dataclass(frozen=True, kw_only=True)
class GTP(Method):
    """Graph-based Token Propagation: tokens of low rank leave and give what they hold to their neighbours in a graph.

    In the middle of every block. A token's rank is the largest attention over heads that it pays to itself times the
    largest that it receives in sum; needs no class token. The r lowest leave, and each kept token takes
    x + alpha · Σ Â x_gone, where Â = D^-½ G D^-½ and G joins patches that are neighbours on the grid (of 8) or among
    each other's ``similar`` most alike. Needs no training. No number of the paper is claimed here.

    Our choice: G is drawn anew at each block from the tokens present, and a pair is joined where either names the
    other. The paper draws it once, from the patches with their positions, and joins a token to those that it names
    itself; its rows and columns are cut as tokens leave (``drawn="once"``). A token that left returns with its last
    value.

    Options:
        r: tokens that leave in each block.
        sites: 0-based blocks; default all.
        alpha: how strongly tokens that leave are added to their neighbours; 0 drops them.
        graph: neighbours by place ("spatial"), by likeness ("semantic") or both ("mixed").
        similar: how many of the most alike tokens, by the cosine of x, are joined to each.
        drawn: the graph anew at "each" site, or "once", from what goes into the first block of the model.
        scales: sizes propagate as tokens do, s + alpha · Σ Â s_gone, and attention gets their logarithm.
        sparsity: share of each attention map's entries that stays, from the first site on; the others count as 0, and
            rows are not divided by what is left. Below 1 it costs the memory of the maps and saves nothing.
    """

    r: int = 8
    sites: tuple[int, ...] | None = None
    alpha: float = 0.2
    graph: Literal["mixed", "spatial", "semantic"] = "mixed"
    similar: int = 8
    drawn: Literal["each", "once"] = "each"
    scales: bool = False
    sparsity: float = 1.0

    knob = "r"
    looks_at_grid = True
    paper = (
        "GTP-ViT: Efficient Vision Transformers via Graph-based Token Propagation",
        "Xu et al.",
        2023,
        "2311.03035",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.r >= 0, self, "r", "a whole number of tokens, 0 or more")
        require(0 <= self.alpha < float("inf"), self, "alpha", "a number, 0 or more")
        require(self.similar >= 1, self, "similar", "1 or more")
        require(0 < self.sparsity <= 1, self, "sparsity", "a share in (0, 1]")

    @property
    def log_size_attention(self) -> bool:
        return self.scales

    @property
    def map_share(self) -> float:
        return self.sparsity

    def blocks(self, depth: int) -> tuple[int, ...]:
        return tuple(range(depth)) if self.sites is None else checked_sites(self.sites, (), depth, self.name)

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({"logits"})

    def watches(self, depth: int) -> frozenset[int]:
        return frozenset({0} if self.drawn == "once" and self.blocks(depth) else ())

    def watch(self, view: View) -> None:
        near = grid_neighbours(view.rep, self._columns(view))
        graph = near
        if self.graph != "spatial":
            alike = named_by_each(view.x, min(self.similar, view.count - 1))
            graph = alike if self.graph == "semantic" else torch.logical_or(near, alike)
        view.carry(GRAPH, normalised(graph, at_least_float32(view.x).dtype), "lead")

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return max(1, patches - self.r)

    def assign(self, view: View) -> Assignment:
        diagonal, received = diagonal_and_columns(view.attended)
        rank = view.score(diagonal.amax(dim=1) * received.amax(dim=1))
        keep, dropped = split_top(rank, view.keep)
        if self.drawn == "once":
            adjacency = view.extra(GRAPH)  # a row for each token present, a column for each patch of the image
            assert adjacency is not None
            columns = view.rep.gather(1, dropped)
        else:
            adjacency, columns = normalised(self._graph(view), rank.dtype), dropped
        spread = take_rows(adjacency, keep).gather(2, columns.unsqueeze(1).expand(-1, view.keep, -1))
        spread = self.alpha * spread
        if self.scales:
            grown = (spread.to(view.size.dtype) @ view.size.gather(1, dropped).unsqueeze(2)).squeeze(2)
            view.resize(view.size.scatter_add(1, keep, grown))
        return Assignment(keep=keep, dropped=dropped, spread=spread, reduce="sum")

    def _graph(self, view: View) -> Tensor:
        """(B, M, M) bool: which tokens are joined."""
        near = grid_neighbours(view.rep, self._columns(view))
        if self.graph == "spatial":
            return near
        alike = most_similar(view.x, min(self.similar, view.count - 1))
        return alike if self.graph == "semantic" else torch.logical_or(near, alike)

    def _columns(self, view: View) -> int:
        """Patches in a row of the grid; where that is not known, all are taken to be in one."""
        return view.tokens.originals if view.plane is None else view.plane[1]
