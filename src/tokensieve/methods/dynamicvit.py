"""DynamicViT (arXiv 2106.02034)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokensieve.methods._config import require
from tokensieve.methods._counts import per_site
from tokensieve.methods._view import Layout, View
from tokensieve.methods.controls import Pruning
from tokensieve.ops.rows import at_least_float32, split_top
from tokensieve.tokens.decision import Assignment, Decision, KeepMask


@dataclass(frozen=True, kw_only=True)
class DynamicViT(Pruning):
    """Keep the tokens that a small learned predictor wants to keep.

    Before blocks 3, 6, 9 of 12 a predictor reads every patch token beside the mean of all that are left and gives the
    chance that it stays. While training a choice is drawn for each token (Gumbel, straight-through): those not chosen
    are masked, and a loss draws the share that stays to keep, keep², keep³ of the patches. Afterwards the
    int(keep^s · N) tokens of the highest chance stay at the s-th site. A fresh predictor chooses at random, so it must
    be trained, with the model: 30 epochs, the predictors at learning rate 1e-3 and the backbone at a hundredth of it,
    with 0.5 KL to the dense model's classes and 0.5 MSE to its tokens. DeiT-S 79.3 top-1 at 2.9 GMACs (dense 79.8 at
    4.6) [authors].

    The loss is called "ratio", ``ratio_weight`` · mean over sites of (share kept − keep^s)². The predictors' own cost
    is not counted as MACs. Our choice: ``noise=false`` trains on the tokens that are kept afterwards, with the same
    masks.

    Options:
        keep: share of the patch tokens present that stays at each site, or one share per site.
        sites: 0-based blocks; default 3, 6, 9 of 12, scaled to the depth.
        noise: whether the choice is drawn while training.
        ratio_weight: of the loss that draws the share of tokens to ``keep``.
    """

    noise: bool = True
    ratio_weight: float = 2.0

    point = "before"
    trained = True
    auxiliary = True
    paper = (
        "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification",
        "Rao et al.",
        2021,
        "2106.02034",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.ratio_weight >= 0, self, "ratio_weight", "0 or more")

    def share(self, site: int) -> float:
        """What is left of all patches behind a site."""
        left = 1.0
        for number in range(site + 1):
            left *= per_site(self.keep, number)
        return left

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        every = layout.patches
        return max(1, min(patches, int(round(self.share(site) * every, 6))))

    def module(self, layout: Layout) -> nn.Module:
        return Predictor(layout.dim)

    def assign(self, view: View) -> Decision:
        assert view.module is not None
        mask = view.tokens.mask
        live = torch.ones_like(view.x[:, :, 0]) if mask is None else mask.to(view.x.dtype)
        chances: Tensor = view.module(view.x, live)
        if view.training and self.noise:
            drawn = F.gumbel_softmax(chances, hard=True)[..., 0]
            stays = (drawn if mask is None else drawn * mask).mean(dim=1)
            sites = len(self.blocks(view.layout.depth))
            view.add_loss("ratio", self.ratio_weight / sites * (stays - self.share(view.site)).square().mean())
            return KeepMask(mask=drawn)
        keep, dropped = split_top(chances[..., 0], view.keep)
        return Assignment(keep=keep, dropped=dropped, soft=chances[..., 0].exp() if view.training else None)


class Predictor(nn.Module):
    """From the tokens to the logarithms of the chances that each stays and goes.

    Args:
        dim: C, channels of a token.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.local = dim // 2
        self.read = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.decide = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU(), nn.Linear(dim // 4, 2)
        )

    def forward(self, x: Tensor, live: Tensor) -> Tensor:
        """Tokens (B, M, C), of which those count for the mean that are ``live`` (B, M), to (B, M, 2) in float32."""
        read = self.read(x)
        weights = live.unsqueeze(2).to(read.dtype)
        total = weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(read.dtype).tiny)
        mean = (read[..., self.local :] * weights).sum(dim=1, keepdim=True) / total
        both = torch.cat([read[..., : self.local], mean.expand(-1, x.shape[1], -1)], dim=2)
        return at_least_float32(self.decide(both)).log_softmax(dim=2)
