"""A-ViT (arXiv 2112.07658)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokensieve.methods._added import Loss, add
from tokensieve.methods._config import require
from tokensieve.methods._counts import REFERENCE_DEPTH, checked_sites
from tokensieve.methods._method import Method
from tokensieve.methods._view import Layout, View
from tokensieve.ops.rows import at_least_float32
from tokensieve.tokens.decision import Decision, KeepMask, ragged
from tokensieve.tokens.node import register
from tokensieve.tokens.rider import Rider
from tokensieve.tokens.state import Tokens
from tokensieve.tokens.table import Extra

# What each token carries: the weighted sum of its states so far, (B, P + M, C), and the sum of its halting scores.
HALTING = "halting"
SCORES = "halting-scores"  # what rides along while training

AHEAD = 0.98  # of the Gaussian lies before its centre
TINY = 1e-30


@dataclass(frozen=True, kw_only=True)
class AViT(Method):
    """Let every token halt by itself: each block adds to a sum, and a token whose sum is full is done.

    Behind every block a token's halting score is h = σ(scale · x_0 − shift), x_0 its first channel: nothing is added to
    the model. A token halts where the sum of its scores exceeds ``full``, and at the last block at the latest. What it
    gives is the mean of its states over the blocks it ran through, weighted by h, the last one by what is missing to
    one; so does the class token, which halts as well but stays for the others to attend to. A patch token that has
    halted is removed (the authors mask it, which saves nothing). The model must be trained for it. Its authors report
    DeiT-T at 62 % and DeiT-S at 38 % more throughput for 0.3 points of top-1 [abstract].

    Without that training no token halts, be the weights random or the published ones of DeiT-Tiny: at the default
    ``shift`` its first channel must reach about 3, most are near 0, and the sigmoid has next to no slope there. By the
    recipe ``recover`` at a rate of 1e-4, 24 updates of 32 images at the published ``ponder`` and 36 at 0.5 change
    nothing of this; 36 at 1000 bring the blocks run, with the remainder, from 13 to 6, at the cost of the answers. So
    expect to train long, as the authors do, or lower ``shift``.

    Losses: "ponder", ``ponder`` · the mean over tokens of the blocks run plus the remainder; "prior", ``prior`` / L ·
    Σ_l t_l (log t_l − log d_l) over the L blocks, where it is positive: d_l is the mean halting score of a block over
    the sum of all, within .01 and .99, and t a Gaussian over the blocks of which .98 lie before its centre. While
    training tokens that have halted are masked. Our choice: where all patch tokens of an image have halted the first
    one stays, so that none is empty. An image's answer does not depend
    on its batch: short images are padded and the padding masked out. Heads that pool over patches see those left at the
    end, as with every method; ``fill="last"`` gives them the weighted states of all.

    Options:
        scale: of the first channel.
        shift: of the scores; default 30 for models of up to 192 channels and 75 for wider ones.
        full: the sum that makes a token halt.
        sites: 0-based blocks behind which tokens may halt; default all but the last, behind which they all do.
        ponder: weight of the loss that counts blocks.
        prior: weight of the loss that says where tokens should halt.
        centre: block, of 12, around which that is, above 0.
        width: standard deviation of it, in blocks of 12.
    """

    scale: float = 10.0
    shift: float | None = None
    full: float = 0.99
    sites: tuple[int, ...] | None = None
    ponder: float = 5e-4
    prior: float = 1e-3
    centre: float = 8.0
    width: float = 1.0

    name = "a-vit"
    point = "after"
    ragged = True
    trained = True
    auxiliary = True
    paper = ("A-ViT: Adaptive Tokens for Efficient Vision Transformer", "Yin et al.", 2021, "2112.07658")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.full <= 1, self, "full", "a share in (0, 1]")
        require(self.ponder >= 0, self, "ponder", "0 or more")
        require(self.prior >= 0, self, "prior", "0 or more")
        require(self.width > 0, self, "width", "above 0")
        require(self.centre > 0, self, "centre", "above 0")

    def blocks(self, depth: int) -> tuple[int, ...]:
        return tuple(range(depth - 1)) if self.sites is None else checked_sites(self.sites, (), depth, self.name)

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return patches

    def behind(self, tokens: Tokens, block: int, layout: Layout, training: bool) -> Tokens:
        last = block == layout.depth - 1
        if not last and block not in self.blocks(layout.depth):
            return tokens
        x = tokens.x
        halting = tokens.table.extras.get(HALTING)
        carried = x.new_zeros(*x.shape[:2], x.shape[2] + 1) if halting is None else halting.value
        # In float32 or better, or ten small scores would not sum to one.
        total, before = at_least_float32(carried[..., :-1]), at_least_float32(carried[..., -1])
        score = self._score(x, layout)
        halts = before + score > self.full
        weight = 1 - before if last else torch.where(halts, 1 - before, score)
        spent = torch.ones_like(before) if last else torch.where(halts, 1.0, before + score)
        total = total + weight.unsqueeze(2) * x
        if training:
            run = (before < 1).to(weight.dtype)
            ponder = (run + weight * (run * (halts | last))).mean()
            scores = (*halting_scores(tokens), (score * run).mean())
            tokens = tokens.with_rider(SCORES, None if last else HaltingScores(scores))
            losses = [Loss("ponder", self.ponder * ponder)]
            if last:
                losses.append(Loss("prior", self.prior * self._divergence(torch.stack(scores), layout.depth)))
            tokens = add(tokens, losses)
        # A token that halts here leaves with what it gives: the weighted mean of its states.
        leaves = F.pad(~self._stays(spent[:, tokens.prefix :], present(tokens)), (tokens.prefix, 0), value=False) | last
        x = torch.where(leaves.unsqueeze(2), total.to(x.dtype), x)
        carried = torch.cat([total, spent.unsqueeze(2)], dim=2)
        return tokens.changed(x=x).with_extra(HALTING, Extra(carried, "lead", tokens.prefix))

    def _score(self, x: Tensor, layout: Layout) -> Tensor:
        shift = (30.0 if layout.dim <= 192 else 75.0) if self.shift is None else self.shift
        return (self.scale * at_least_float32(x[..., 0]) - shift).sigmoid()

    def _stays(self, spent: Tensor, alive: Tensor | None) -> Tensor:
        """(B, M): which patch tokens have not halted, the first of an image where none has."""
        running = spent < 1
        here = torch.ones_like(running)
        if alive is not None:
            running, here = running & alive, alive
        first = here & (here.cumsum(dim=1) == 1)
        return running | (first & ~running.any(dim=1, keepdim=True))

    def assign(self, view: View) -> Decision:
        carried = view.extra(HALTING)
        assert carried is not None
        stays = self._stays(at_least_float32(carried[..., -1]), present(view.tokens))
        return KeepMask(mask=stays.to(view.x.dtype)) if view.training else ragged(stays)

    def _divergence(self, scores: Tensor, depth: int) -> Tensor:
        """How far the mean scores (L,) of the blocks are from the Gaussian that they should follow."""
        share = (scores / scores.sum().clamp(min=torch.finfo(scores.dtype).tiny)).clamp(0.01, 0.99)
        blocks = sorted({*self.blocks(depth), depth - 1})
        places = [block * REFERENCE_DEPTH / depth for block in blocks]
        densities = [math.exp(-0.5 * ((place - self.centre) / self.width) ** 2) for place in places]
        before = sum(density for place, density in zip(places, densities, strict=True) if place < self.centre)
        wanted = [max(AHEAD * density / max(before, TINY), TINY) for density in densities]
        terms = [part * (math.log(part) - own.log()) for part, own in zip(wanted, share, strict=True)]
        return torch.stack(terms).sum().clamp(min=0) / len(blocks)


@dataclass(frozen=True)
class HaltingScores(Rider):
    """The mean halting score of each block so far, for the loss behind the last one.

    Attributes:
        means: scalars.
    """

    means: tuple[Tensor, ...]


register(HaltingScores, ("means",))


def halting_scores(tokens: Tokens) -> tuple[Tensor, ...]:
    """What ``HaltingScores`` has collected up to this state."""
    rider = tokens.riders.get(SCORES)
    return rider.means if isinstance(rider, HaltingScores) else ()


def present(tokens: Tokens) -> Tensor | None:
    """(B, M): which patch tokens are neither padding nor masked, None where all are there."""
    return tokens.alive if tokens.mask is None else tokens.mask > 0.5
