"""TokenLearner (arXiv 2106.11297)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tokensieve.errors import TokensieveError
from tokensieve.methods._config import require
from tokensieve.methods._counts import checked_sites
from tokensieve.methods._method import Method
from tokensieve.methods._view import Layout, View, plane_of
from tokensieve.ops.rows import at_least_float32, take_rows
from tokensieve.tokens.decision import Until
from tokensieve.tokens.soft import LearnedRestore, SoftAssignment

HIDDEN = 64  # channels of the two small MLPs
EPS = 1e-6  # of all norms; GELU is the one by tanh, as in the original


@dataclass(frozen=True, kw_only=True)
class TokenLearner(Method):
    """Learn a handful of tokens: each is a weighted sum of all patches, under a spatial map that a small network draws.

    Before block 6 of 12. Version 1.1 draws S maps by an MLP C → 64 → S on the normalised tokens, with a softmax over
    the patches; version 1.0 by four 3 × 3 convolutions of S channels over the grid and a sigmoid, and takes sums. The
    prefix tokens go on beside the learned ones. The way back is the fuser: the S tokens, mixed with one another, are
    given to every patch by S gates in (0, 1) that are read off what the patch was before, and added to it. All of it is
    trained with the model, in the paper from scratch. No number of it is claimed here: those published are for other
    models and data.

    The original has 16 tokens behind block 9 of 12, no fuser and a head that pools over the tokens; with a fuser, every
    block from there on learns its tokens anew and gives them back behind itself (``every``). Our choice: a fresh fuser
    adds nothing, so that every patch returns as it was; the gates' MLP has 64 channels as well; the convolutions have
    no bias and GELU between them. Where tokens are gone or merged before, version 1.0 reads zeros or the merged token
    in their places; it refuses inputs of another size than the model's, whose grid is not known here. Where counts are
    rounded up, the further tokens are means of equal stretches of the sequence.

    Options:
        tokens: S, learned tokens, or one number per site; a site with no more than that is passed over.
        maps: how they are drawn: "mlp", version 1.1, or "conv", version 1.0.
        fuser: whether the way back is the fuser; without, a patch gets the mean of the learned tokens weighted by its
            share in them.
        sites: 0-based blocks; default 6 of 12, scaled to the depth.
        every: whether every block from the first site on has its own learned tokens and way back, instead of one way
            back behind the last block.
    """

    tokens: int = 8
    maps: Literal["mlp", "conv"] = "mlp"
    fuser: bool = True
    sites: tuple[int, ...] | None = None
    every: bool = False

    point = "before"
    trained = True
    mixes = True
    paper = (
        "TokenLearner: What Can 8 Learned Tokens Do for Images and Videos?",
        "Ryoo et al.",
        2021,
        "2106.11297",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.tokens >= 1, self, "tokens", "1 or more")

    def blocks(self, depth: int) -> tuple[int, ...]:
        sites = checked_sites(self.sites, (6,), depth, self.name)
        return tuple(range(sites[0], depth)) if self.every and sites else sites

    @property
    def returns(self) -> Until:
        return "block" if self.every else "end"

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return min(patches, self.tokens)

    def module(self, layout: Layout) -> nn.Module:
        drawn = MlpMaps(layout.dim, self.tokens) if self.maps == "mlp" else ConvMaps(layout, self.tokens)
        return Learner(drawn, Fuser(layout.dim, self.tokens) if self.fuser else None)

    def assign(self, view: View) -> SoftAssignment:
        assert isinstance(view.module, Learner)
        matrix = view.module(view)
        further = view.keep - self.tokens
        if further > 0:
            matrix = torch.cat([matrix, stretches(further, matrix)], dim=1)
        return SoftAssignment(matrix=matrix, restore=view.module.fuser, until="block" if self.every else "end")


class Learner(nn.Module):
    """The parts of one site: what draws the maps, and the way back or None."""

    def __init__(self, drawn: MlpMaps | ConvMaps, fuser: Fuser | None) -> None:
        super().__init__()
        self.drawn = drawn
        self.fuser = fuser

    def forward(self, view: View) -> Tensor:
        """(B, S, M), in float32 or better: the weight of each of the M patch tokens present in each learned one."""
        maps: Tensor = self.drawn(view)
        return maps


def small_mlp(dim: int, tokens: int) -> nn.Sequential:
    """(…, C) to (…, S), behind a norm."""
    return nn.Sequential(nn.LayerNorm(dim, EPS), nn.Linear(dim, HIDDEN), nn.GELU("tanh"), nn.Linear(HIDDEN, tokens))


class MlpMaps(nn.Module):
    """Version 1.1: every token votes for itself, and a softmax over the tokens makes S maps of the votes."""

    def __init__(self, dim: int, tokens: int) -> None:
        super().__init__()
        self.vote = small_mlp(dim, tokens)

    def forward(self, view: View) -> Tensor:
        """(B, S, M), rows that sum to one."""
        votes = at_least_float32(self.vote(view.x)).transpose(1, 2)
        if view.tokens.mask is not None:  # what is masked while training takes no part
            votes = votes.masked_fill(view.tokens.mask.unsqueeze(1) < 0.5, -torch.inf)
        maps: Tensor = votes.softmax(dim=2)
        return maps


class ConvMaps(nn.Module):
    """Version 1.0: S maps of the grid by convolutions and a sigmoid."""

    def __init__(self, layout: Layout, tokens: int) -> None:
        super().__init__()
        self.grid = plane_of(layout.grid, "tokenlearner")
        self.norm = nn.LayerNorm(layout.dim, EPS)
        layers: list[nn.Module] = []
        for channels in (layout.dim, tokens, tokens, tokens):
            layers += [nn.Conv2d(channels, tokens, 3, padding=1, bias=False), nn.GELU("tanh")]
        self.convolve = nn.Sequential(*layers[:-1])

    def forward(self, view: View) -> Tensor:
        """(B, S, M)."""
        group, (rows, columns) = view.tokens.group, self.grid
        if group.shape[1] != rows * columns:
            raise TokensieveError(
                f"{view.method.name}: maps='conv' draws on the model's grid of {rows} × {columns} patches and got "
                f"{group.shape[1]} tokens: give images of the model's size, act on no learned tokens, or use maps='mlp'"
            )
        x = self.norm(view.x)
        if view.tokens.mask is not None:
            x = x * view.tokens.mask.unsqueeze(2).to(x.dtype)
        whole = take_rows(x, group.clamp(min=0)).masked_fill((group < 0).unsqueeze(2), 0)
        drawn = at_least_float32(self.convolve(whole.transpose(1, 2).unflatten(2, self.grid))).sigmoid().flatten(2)
        maps = drawn.gather(2, view.rep.unsqueeze(1).expand(-1, drawn.shape[1], -1))
        return maps if view.tokens.mask is None else maps * view.tokens.mask.unsqueeze(1).to(maps.dtype)


class Fuser(LearnedRestore):
    """The way back: what the learned tokens have become, added to every patch as far as its gates let it in."""

    def __init__(self, dim: int, tokens: int) -> None:
        super().__init__()
        self.mix = nn.Linear(tokens, tokens)
        self.before, self.after = nn.LayerNorm(dim, EPS), nn.LayerNorm(dim, EPS)
        self.gate = small_mlp(dim, tokens)
        nn.init.zeros_(self.after.weight)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """Learned tokens (B, S, C), further ones behind them, and the patches of before (B, M, C) to (B, M, C)."""
        self.refuse_shards()
        learned = y[:, : self.mix.in_features]
        mixed = self.after(self.mix(self.before(learned).transpose(1, 2)).transpose(1, 2))
        whole: Tensor = x + (self.gate(x).sigmoid() @ mixed).to(x.dtype)
        return whole


def stretches(number: int, like: Tensor) -> Tensor:
    """(B, number, M) means over equal stretches of the M tokens of ``like`` (B, S, M)."""
    batch, _, length = like.shape
    place = torch.arange(length, device=like.device) * number // length
    member = (place == torch.arange(number, device=like.device).unsqueeze(1)).to(like.dtype)
    return (member / member.sum(dim=1, keepdim=True).clamp(min=1)).expand(batch, -1, -1)
