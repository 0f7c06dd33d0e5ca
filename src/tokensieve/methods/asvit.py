"""AS-ViT (arXiv 2209.13802)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokensieve.attention.signals import Attended, attention_rows, received, voters_of
from tokensieve.errors import TokensieveError
from tokensieve.methods._config import require
from tokensieve.methods._counts import checked_sites, per_site
from tokensieve.methods._method import Method
from tokensieve.methods._threshold import Threshold
from tokensieve.methods._view import Layout, Signal, View, importance_signal
from tokensieve.ops.rows import at_least_float32, one_hot
from tokensieve.tokens.decision import Decision, KeepMask, ragged

PUBLISHED_PATCHES = 196  # that the published thresholds are for


@dataclass(frozen=True, kw_only=True)
class ASViT(Method):
    """Keep the tokens whose attention score lies above a learned threshold, as many as that are in each image.

    Before blocks 4, 7, 10 of 12 a patch token's score is its class attention in the block before, summed over the heads
    with each head weighted by the share of the token's output length that it contributes. A token stays if its score is
    above the site's threshold. While training, tokens below it are masked, the thresholds and the scores get the slope
    of a sigmoid of width ``temperature``, and a loss draws the mean cost of the batch to ``target``. The thresholds are
    trained with the model, with 0.5 KL to the dense model's classes. DeiT-S 79.6 top-1 at 3.0 GMACs (dense 79.8 at 4.6)
    and half as much throughput again [authors].

    The loss is called "macs", ``macs_weight`` · |cost − target|. Our choice: the cost is a share of the dense blocks'
    MACs, counted for an MLP of ratio 4 (the paper counts G of operations, with the patch embedding and, an element, 5
    for a softmax or a norm and 8 for an activation; its code keeps the mean number of a batch in all its images);
    scores are multiplied by N / 196, so that the
    published thresholds fit other numbers N of patches; an image of which no token is above the threshold keeps its
    best one. The published thresholds lie below 1 / 196, so they remove nothing of a model of random weights, whose
    attention is even; on DeiT-Tiny without training they leave 79 % of the MACs, and 69 % after 48 updates of 32 images
    by the recipe ``recover`` at a rate of 1e-4 without features. An image's answer does not depend on its batch: short
    images are padded and the padding masked out. Models without a class token score by attention received.

    Options:
        target: share of the dense blocks' MACs that training aims at.
        start: the threshold of each site before training, or one for all; default 0.001, 0.002, 0.003 and so on.
        sites: 0-based blocks before which it acts, from 1 on; default 4, 7, 10 of 12, scaled to the depth.
        temperature: width of the sigmoid whose slope stands in for the step's while training.
        macs_weight: of the loss that draws the cost to ``target``.
    """

    target: float = 0.65
    start: float | tuple[float, ...] | None = None
    sites: tuple[int, ...] | None = None
    temperature: float = 1e-4
    macs_weight: float = 2.0

    name = "as-vit"
    point = "after"
    ragged = True
    trained = True
    auxiliary = True
    paper = ("Adaptive Sparse ViT: Towards Learnable Adaptive Token Pruning by Fully Exploiting Self-Attention",
             "Liu et al.", 2022, "2209.13802")  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.target <= 1, self, "target", "a share in (0, 1]")
        require(self.temperature > 0, self, "temperature", "above 0")
        require(self.macs_weight >= 0, self, "macs_weight", "0 or more")

    def blocks(self, depth: int) -> tuple[int, ...]:
        chosen = checked_sites(self.sites, (4, 7, 10), depth, self.name)
        if self.sites and self.sites[0] == 0:
            raise TokensieveError(
                f"{self.name}: sites start at 1, because the attention of the block before is read, got {[*chosen]}"
            )
        return tuple(site - 1 for site in chosen if site > 0)

    def needs(self, layout: Layout) -> frozenset[Signal]:
        return frozenset({"logits", "outputs", importance_signal(layout)})

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return patches

    def module(self, layout: Layout) -> nn.Module:
        return Threshold(0.0, self.temperature)  # what it has moved from its start

    def assign(self, view: View) -> Decision:
        assert isinstance(view.module, Threshold)
        start = 0.001 * (view.site + 1) if self.start is None else per_site(self.start, view.site)
        present = view.alive
        if view.tokens.mask is not None:
            present = view.tokens.mask > 0.5
        score = self._score(view)
        if present is not None:
            score = score.masked_fill(~present, -torch.inf)
        above = view.module(score - start)
        best = one_hot(score.argmax(dim=1, keepdim=True), view.count, above.dtype).squeeze(2)
        mask = above + (best * (1 - above)).detach()
        if not view.training:
            return ragged(mask > 0.5)
        if view.site == len(self.blocks(view.layout.depth)) - 1:
            view.add_loss("macs", self.macs_weight * (self._cost(view, mask).mean() - self.target).abs())
        return KeepMask(mask=mask)

    def _score(self, view: View) -> Tensor:
        voters = voters_of(view.alive, view.layout.prefix)
        patches = view.tokens.originals
        return view.score(head_weighted(view.attended, view.layout.class_token, voters)) * patches / PUBLISHED_PATCHES

    def _cost(self, view: View, mask: Tensor) -> Tensor:
        """(B,) MACs of the blocks as a share of the dense ones', with ``mask`` (B, M) from the next block on."""
        before = {stage.block: stage.mask for stage in view.tokens.stages}
        patches = torch.full_like(mask[:, 0], view.tokens.originals)
        left = mask if view.tokens.mask is None else mask * view.tokens.mask
        total = torch.zeros_like(patches)
        for block in range(view.layout.depth):
            seen = left if block > view.block else before.get(block)
            total = total + block_macs(patches if seen is None else seen.sum(dim=1), view.layout)
        return total / (view.layout.depth * block_macs(patches, view.layout))


def block_macs(patches: Tensor, layout: Layout) -> Tensor:
    """MACs of a block with an MLP of ratio 4 on so many patch tokens, in units of 2·C."""
    tokens = patches + layout.prefix
    return 6 * layout.dim * tokens + tokens.square()


def head_weighted(attended: Attended, class_token: bool, voters: Tensor | None = None) -> Tensor:
    """Class attention with heads weighted by how long their output is (Liu et al. 2022, arXiv 2209.13802): (B, L).

    With O = A·V the outputs of the heads, a token's score is Σ_h A[h, cls, j] · ‖O[h, j]‖ / Σ_g ‖O[g, j]‖.

    Args:
        attended: what the attention was computed from, with its outputs.
        class_token: whether token 0 is a class token; attention received takes the place of its row where not.
        voters: (B, L) bool, the query rows that count in attention received, or None for all.
    """
    assert attended.outputs is not None
    length: Tensor = torch.linalg.vector_norm(at_least_float32(attended.outputs), dim=3)
    share = length / length.sum(dim=1, keepdim=True).clamp(min=torch.finfo(length.dtype).tiny)
    attention = attention_rows(attended, slice(0, 1)).squeeze(2) if class_token else received(attended, voters)
    return (attention * share).sum(dim=1)
