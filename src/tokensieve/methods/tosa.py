"""ToSA (arXiv 2406.08816)."""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tokensieve.attention.selector import Selector
from tokensieve.attention.signals import Attended, column_sums
from tokensieve.errors import TokensieveError, TokensieveWarning
from tokensieve.methods._config import require
from tokensieve.methods._counts import per_site
from tokensieve.methods._method import Method
from tokensieve.methods._view import Layout, Signal, View, importance_signal
from tokensieve.ops.rows import split_top
from tokensieve.ops.shuffle import shuffled
from tokensieve.tokens.decision import Assignment, Until


@dataclass(frozen=True, kw_only=True)
class ToSA(Method):
    """Token Selective Attention: tokens that matter little skip a block and return.

    Blocks come in pairs. After a standard block a selector reads that block's attention logits, predicts the attention
    map of the next one, and scores every token by the attention it will receive: from the class token, where there is
    one, else from all tokens, its column sum. The top round(keep · M) patch tokens and all prefix tokens go through the
    next block, the ToSA block (a layer in the paper); the others skip it unchanged and return to their places, so every
    block's output is complete and pixel tasks work.

    The selectors must be trained (KL to the next block's map, no labels). A fresh selector predicts this block's own
    map, and says so once: untrained ToSA keeps the tokens that its control keeps, ``score=class`` or, of all tokens,
    ``score=own``. No accuracy table of the paper is public.

    Our choice where the public text is silent, each an option: every second block from 1 on, kernel-1 convolutions
    H → 4H → H, softmax over the keys, head mean, sums of probabilities, skipping the whole block.

    Options:
        keep: share of the patch tokens that goes through each ToSA block, or one share per block.
        sites: 0-based ToSA blocks, no two of them neighbours, not 0; default 1, 3, 5, …
        score: "selector"; or a control: "own" (column sums of the standard block's own attention), "class" (its class
            attention), "random" (one order per block from ``seed``, the same for every image).
        bypass: "layer", attention and MLP, or "attention" alone.
        queries: whose attention in the predicted map is the score: "class", the class token's row alone, or "all", the
            column sums; none is "class" where the model has a class token.
        expansion: hidden channels of the selector per head.
        kernel: width of the selector's convolutions along the keys, odd; 1 does not depend on the resolution.
        normalize: what the selector's log-softmax runs over, "keys" or "heads".
        scaled: whether the logits it reads carry the factor 1 / sqrt(D).
        sum_of: what is summed over a column, or read of the row: "probabilities" or "log_probabilities".
        heads: how heads are joined: "mean" or "max".
        block: query rows held at a time of all; memory is O(H·L·block).
        stride: read every stride-th query row, an estimate of the column sums; 1 reads all of them and is exact. None
            reads every eighth, and of long sequences about 72 rows.
        seed: of the random control.
    """

    keep: float | tuple[float, ...] = 0.7
    sites: tuple[int, ...] | None = None
    score: Literal["selector", "own", "class", "random"] = "selector"
    bypass: Literal["layer", "attention"] = "layer"
    queries: Literal["class", "all"] | None = None
    expansion: int = 4
    kernel: int = 1
    normalize: Literal["keys", "heads"] = "keys"
    scaled: bool = True
    sum_of: Literal["probabilities", "log_probabilities"] = "probabilities"
    heads: Literal["mean", "max"] = "mean"
    block: int = 16
    stride: int | None = None
    seed: int = 0

    point = "after"
    until = "block"
    knob = "keep"
    trained = True
    version = 2
    paper = ("ToSA: Token Selective Attention for Efficient Vision Transformers", "Singh et al.", 2024, "2406.08816")

    def __post_init__(self) -> None:
        super().__post_init__()
        shares = self.keep if isinstance(self.keep, tuple) else (self.keep,)
        require(bool(shares) and all(0 < share <= 1 for share in shares), self, "keep", "a share in (0, 1]")
        require(self.expansion >= 2, self, "expansion", "2 or more")
        require(self.kernel >= 1 and self.kernel % 2 == 1, self, "kernel", "an odd number, 1 or more")
        require(self.block >= 1, self, "block", "1 or more")
        require(self.stride is None or self.stride >= 1, self, "stride", "1 or more, or None")

    @property
    def returns(self) -> Until:
        return "block" if self.bypass == "layer" else "attention"

    def layers(self, depth: int) -> tuple[int, ...]:
        """The 0-based ToSA layers of a model of ``depth`` blocks."""
        chosen = tuple(range(1, depth, 2)) if self.sites is None else self.sites
        if list(chosen) != sorted(set(chosen)) or (chosen and (chosen[0] < 1 or chosen[-1] >= depth)):
            raise TokensieveError(
                f"tosa: sites are ToSA layers: ascending 0-based numbers from 1 to {depth - 1}, got {list(chosen)}"
            )
        if any(b - a == 1 for a, b in itertools.pairwise(chosen)):
            raise TokensieveError(
                f"tosa: no two ToSA layers may be neighbours, each needs a standard layer before it, got {list(chosen)}"
            )
        return chosen

    def blocks(self, depth: int) -> tuple[int, ...]:
        return tuple(layer - 1 for layer in self.layers(depth))

    def remaining(self, patches: int, site: int, layout: Layout) -> int:
        return min(patches, max(1, math.floor(per_site(self.keep, site) * patches + 0.5)))

    def needs(self, layout: Layout) -> frozenset[Signal]:
        if self.score in ("selector", "own"):
            return frozenset({"logits"})
        return frozenset({importance_signal(layout)}) if self.score == "class" else frozenset()

    def module(self, layout: Layout) -> nn.Module | None:
        if self.score != "selector":
            return None
        if self.queries == "class" and not layout.class_token:
            raise TokensieveError("tosa: queries=class needs a class token and this model has none: give queries=all")
        of_class = layout.class_token if self.queries is None else self.queries == "class"
        return Selector(layout.heads, self.expansion, self.kernel, self.normalize, self.scaled, of_class)

    def assign(self, view: View) -> Assignment:
        keep, dropped = split_top(self._score(view), view.keep)
        return Assignment(keep=keep, dropped=dropped, until=self.returns)

    def observe(self, attended: Attended, module: nn.Module | None) -> Tensor | None:
        if self.score not in ("selector", "own"):
            return None
        columns = self._columns(attended, module)
        return columns.mean(dim=1) if self.heads == "mean" else columns.amax(dim=1)

    def _score(self, view: View) -> Tensor:
        if self.score == "class":
            return view.importance
        if self.score == "random":
            rank = shuffled(view.count, self.seed * 1009 + view.site, view.x.device)
            return rank.expand(view.x.shape[0], -1)
        assert view.observed is not None
        return view.score(view.observed)

    def stride_of(self, length: int) -> int:
        """The distance between the query rows that are read of a sequence of ``length`` tokens."""
        return max(8, length // 72) if self.stride is None else self.stride

    def _columns(self, attended: Attended, selector: nn.Module | None) -> Tensor:
        length = attended.keys.shape[2]
        stride = self.stride_of(length)
        if self.score == "own":
            return column_sums(attended, None, self.block, stride)
        assert isinstance(selector, Selector)
        self._notice(selector)
        if selector.class_row:
            stride = length  # the class token's row is the first, and the only one that such a stride reads
        return selector.columns(attended, self.block, stride, self.sum_of)

    def _notice(self, selector: Selector) -> None:
        if torch.compiler.is_compiling() or selector.noticed:  # in this order no guard watches the flag
            return
        selector.noticed = True
        if not bool(selector.fitted):
            warnings.warn(
                "ToSA's selector has not been trained: it predicts the layer's own attention map, as the control "
                f"score={'class' if selector.class_row else 'own'!r} does at less cost; train the selectors or name a "
                "control",
                TokensieveWarning,
                stacklevel=2,
            )
