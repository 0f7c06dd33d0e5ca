"""The protocol of a decoder method: which image tokens the later layers of a language model get to see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokensieve.errors import TokensieveError
from tokensieve.methods._config import Config, require
from tokensieve.methods._counts import kept, per_site
from tokensieve.ops.rows import at_least_float32, split_top


@dataclass(frozen=True)
class DecoderView:
    """One sequence behind a layer of the decoder, M tokens of which some are of images.

    Attributes:
        queries, keys: (H, M, D) and (G, M, D) of that layer's attention, behind the rotary embedding; heads H are a
            multiple of G.
        hidden: (M, C) the hidden states that the layer hands on.
        visual: (V,) int64, ascending: the places of the image tokens among the M.
        textual: (T,) int64, ascending: the places of the others that are no padding.
        scale: of the attention's logits.
        site: how many sites of the method came before.
        count: how many of the V to keep.
    """

    queries: Tensor
    keys: Tensor
    hidden: Tensor
    visual: Tensor
    textual: Tensor
    scale: float
    site: int
    count: int


@dataclass(frozen=True)
class Chosen:
    """What stays of the image tokens of one sequence.

    Attributes:
        places: (count,) int64, ascending: which of ``view.visual`` stay, as places among the V.
        values: (count, C) the hidden states that stand there, or None for those that the tokens have.
    """

    places: Tensor
    values: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class DecoderMethod(Config, ABC):
    """Base of every method that acts in the decoder of a vision-language model. One frozen dataclass in one file.

    Tokens that stay keep their positions; the caches of later layers hold what is left.
    """

    knob: ClassVar[str | None] = "keep"

    @abstractmethod
    def layers(self, depth: int) -> tuple[int, ...]:
        """The 0-based layers behind which it acts in a decoder of ``depth`` layers, ascending."""

    @abstractmethod
    def remaining(self, tokens: int, site: int) -> int:
        """How many image tokens the ``site``-th site leaves of the ``tokens`` that a sequence began with."""

    @abstractmethod
    def choose(self, view: DecoderView) -> Chosen:
        """Decide which ``view.count`` image tokens stay. Only called when that is fewer than there are."""


@dataclass(frozen=True, kw_only=True)
class EarlyLayer(DecoderMethod, ABC):
    """Base of those that act once, behind an early layer.

    Options of all of them:
        keep: share of the image tokens of a sequence to keep, in (0, 1].
        layer: how many layers see all tokens.
    """

    keep: float
    layer: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.keep <= 1, self, "keep", "a share in (0, 1]")
        require(self.layer >= 1, self, "layer", "1 or more")

    def layers(self, depth: int) -> tuple[int, ...]:
        return (self.layer - 1,)

    def remaining(self, tokens: int, site: int) -> int:
        return kept(tokens, self.keep)


@dataclass(frozen=True, kw_only=True)
class SeveralLayers(DecoderMethod, ABC):
    """Base of those that act behind several layers.

    Options of all of them:
        keep: share of the image tokens left behind each site, of those there were behind the one before; one number
            for all sites or one for each.
        sites: 1-based numbers of the layers behind which it acts; default the published ones, scaled to the depth.
    """

    keep: float | tuple[float, ...]
    sites: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = self.keep if isinstance(self.keep, tuple) else (self.keep,)
        require(bool(shares) and all(0 < share <= 1 for share in shares), self, "keep", "a share in (0, 1]")
        require(self.sites is None or all(site >= 1 for site in self.sites), self, "sites", "layers from 1 on")

    @abstractmethod
    def published(self, depth: int) -> tuple[int, ...]:
        """The 0-based layers of a decoder of ``depth`` that stand for the published ones."""

    @abstractmethod
    def left(self, tokens: int, site: int) -> int:
        """How many image tokens a site leaves of so many in front of it."""

    def layers(self, depth: int) -> tuple[int, ...]:
        sites = self.published(depth) if self.sites is None else tuple(site - 1 for site in self.sites)
        if isinstance(self.keep, tuple) and len(self.keep) != len(sites):
            raise TokensieveError(
                f"{self.name}: keep has {len(self.keep)} shares for {len(sites)} sites: give one number or one for each"
            )
        return sites

    def remaining(self, tokens: int, site: int) -> int:
        for number in range(site + 1):
            tokens = self.left(tokens, number)
        return tokens

    def share_kept(self, tokens: int, site: int) -> int:
        """``keep`` of so many tokens in front of a site."""
        return kept(tokens, per_site(self.keep, site))


def last_row(view: DecoderView) -> Tensor:
    """(V,) the attention that the last token pays to each image token, mean over heads, float32 or better."""
    return attention_rows(view, torch.tensor([view.hidden.shape[0] - 1], device=view.hidden.device))[0]


def attention_rows(view: DecoderView, places: Tensor) -> Tensor:
    """(R, V) the attention that the tokens at these places (R,) pay to each image token, mean over heads, float32 or
    better. A token sees those before it and itself."""
    queries = at_least_float32(view.queries[:, places])
    keys = at_least_float32(view.keys).repeat_interleave(len(queries) // len(view.keys), dim=0)
    logits = queries @ keys.transpose(1, 2) * view.scale
    seen = torch.zeros(logits.shape[2], dtype=torch.bool, device=logits.device)
    seen[view.visual] = seen[view.textual] = True
    earlier = torch.arange(len(seen), device=seen.device) <= places.unsqueeze(1)
    rows = logits.masked_fill(~(seen & earlier), -torch.inf).softmax(dim=2)
    return rows.mean(dim=0)[:, view.visual]


def highest(score: Tensor, count: int) -> Tensor:
    """(count,) int64, ascending: where the highest of (V,) scores are; of equal ones the first."""
    return split_top(score.unsqueeze(0), count)[0][0]
