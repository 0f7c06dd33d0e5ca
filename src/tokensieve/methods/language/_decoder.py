"""The protocol of a decoder method: which image tokens the later layers of a language model get to see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokensieve.methods._config import Config
from tokensieve.ops.rows import at_least_float32


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
    return score.argsort(descending=True, stable=True)[:count].sort().values
