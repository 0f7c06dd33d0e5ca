"""The attention half of a block with a site: where its tokens lie, what is added to its logits, what is read of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.attention.kernel import attends_faster, key_bias
from tokensieve.attention.packing import PADDED, Rows, rows_of
from tokensieve.attention.pairs import Pairs
from tokensieve.attention.shared import SharedMaps, SharingTap
from tokensieve.attention.signals import Attended, first_keys
from tokensieve.attention.tap import Tap
from tokensieve.engine import padding
from tokensieve.engine.reduction import Reduction
from tokensieve.engine.turns import Turns
from tokensieve.methods._view import BlockSignals
from tokensieve.tokens.form import Padded
from tokensieve.tokens.restore import visible
from tokensieve.tokens.state import Tokens

MAPS = "maps"  # the rider by which a block lends its attention maps to the next one


@dataclass
class Call:
    """How one run of a block's attention is laid out.

    Attributes:
        kwargs: what the block gets beside its tokens, at the places where they are.
        attended: tokens in the attention, prefix included.
        seen: (B, M) the training-time mask in the attention, or None.
        bias: (B, 1, 1, L) on the logits of every key, or None.
        own: whether a kernel of ours may compute the attention.
        rows: how the tokens lie.
        plain: whether the block's own forward gives the answer: no method acts here, and nothing is read or added.
        saved: MACs per token that the attention went without.
    """

    kwargs: dict[str, Any]
    attended: int
    seen: Tensor | None
    bias: Tensor | None
    own: bool
    rows: Rows = PADDED
    plain: bool = False
    saved: int = 0


class Attending:
    """Runs the attention of one block. Holds nothing of any run.

    Args:
        reduction: of the model.
        block: 0-based number of the block.
        turns: of the methods there.
    """

    def __init__(self, reduction: Reduction, block: int, turns: Turns) -> None:
        self.family = reduction.family
        self.turns = turns
        self.log_size = any(m.log_size_attention for m in reduction.methods)
        self.share = min((m.map_share for m in reduction.methods), default=1.0)
        depth = reduction.layout.depth
        self.borrows, self.lends = (
            any(number in m.sharing(depth) for m in reduction.methods) for number in (block, block + 1)
        )

    def call(self, tokens: Tokens, block: nn.Module, kwargs: dict[str, Any]) -> Call:
        """Lay out the attention of ``tokens``; ``kwargs`` are those of the ``block`` for all tokens of the image."""
        packs = True
        if padding.mask_in(kwargs) is not None and not self.family.biased:
            kwargs = padding.unmasked(kwargs)  # what is padding is not among the tokens
        if tokens.form is not None or (kwargs and (tokens.version or self.family.in_parts)):
            placed = self._placed(tokens, block, kwargs)
            packs, kwargs = placed is kwargs, placed  # rotary angles lie as the padded tokens do
        if kwargs.get("windows") is not None and tokens.table.alive is not None:
            windows = kwargs["windows"]  # slots that hold no token are in some window that is not empty
            kwargs = {**kwargs, "windows": torch.where(tokens.table.alive, windows, windows[:, :1])}
        packs = packs and not (self.family.biased or self.family.joins)
        bias = self._key_bias(tokens)
        own = attends_faster(tokens.x) and (tokens.version > 0 or self.turns.removes(visible(tokens)))
        shares = self.borrows or self.lends
        rows = PADDED if tokens.table.alive is None or shares or not packs else self.rows(tokens)
        read = own or shares or (bool(tokens.riders) and bool(_attending(tokens)))
        parts = tokens.version > 0 and (self.family.biased or self.family.in_parts)
        added = bias is not None or self.share < 1 or parts
        acts = bool(self.turns.watchers) or self.turns.acts(visible(tokens))
        plain = not (read or added or acts or any(entry.after_attention for entry in tokens.back.parked))
        return Call(kwargs, tokens.x.shape[1], tokens.table.mask, bias, own, rows, plain)

    def _placed(self, tokens: Tokens, block: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the ``block`` for the tokens that are there."""
        positions, form = tokens.table.rep, tokens.form
        if form is None:
            return self.family.reindex(block, kwargs, positions, tokens.prefix)
        if isinstance(form, Padded):
            kwargs = {name: form.of_images(value) for name, value in kwargs.items()}
        told = {**kwargs, **form.told} if form.told else kwargs
        return self.family.reindex(block, told, form.places(positions), tokens.prefix)

    def rows(self, tokens: Tokens) -> Rows:
        """How the tokens lie where the layers of the block run."""
        if tokens.hidden or tokens.form is not None or self.family.joins:
            return PADDED
        return rows_of(tokens.table.alive, tokens.prefix, self.log_size)

    def _key_bias(self, tokens: Tokens) -> Tensor | None:
        """What sizes, padding and masks put on the logits of each key, see ``kernel.key_bias``."""
        table = tokens.table
        size = table.size if self.log_size else None
        if table.alive is None and table.mask is None:
            if size is None:
                return None
            if table.size_bias is not None:
                return table.size_bias
        return key_bias(tokens.prefix, size, table.alive, table.mask)

    def run(self, tokens: Tokens, block: nn.Module, call: Call) -> tuple[Tokens, BlockSignals | None]:
        """The state behind the attention, and its signals where a method here reads any."""
        needs, riders = self.turns.needs, _attending(tokens) if tokens.riders else ()
        shares = self.borrows or self.lends
        alone = not (needs or call.own or shares or riders) and call.bias is None and self.share == 1
        if alone and not (self.family.biased and tokens.version):
            return tokens.changed(x=self.family.attention(block, tokens.x, **call.kwargs)), None
        inputs = None
        if "inputs" in needs:
            with torch.no_grad():
                inputs = self.family.attention_input(block, tokens.x)
        # The model's own attention runs, watched by a tap.
        tap = self._tap(tokens, block, call)
        if call.rows is PADDED:
            x = self.family.tapped(block, tokens.x, tap, **call.kwargs)
        else:
            x = call.rows.unpack(self.family.tapped(block, call.rows.pack(tokens.x), tap, **call.kwargs))
        tokens = tokens.changed(x=x)
        if shares or call.bias is not None or call.rows is not PADDED or self.share < 1:
            tap.check()
        # What rides along sees it.
        if shares:
            lent = SharedMaps(tuple((one[0], one[1]) for one in tap.calls)) if self.lends else None
            tokens = tokens.with_rider(MAPS, lent)
            call.saved = tap.saved if isinstance(tap, SharingTap) else 0
        if riders:
            attended = tap.attended()
            for name in riders:
                tokens = tokens.with_rider(name, tokens.riders[name].attend(attended))
        # The methods here see what they declared.
        if not needs:
            return tokens, None
        return tokens, self._signals(tokens, tap.attended(), inputs)

    def _signals(self, tokens: Tokens, attended: Attended, inputs: Tensor | None) -> BlockSignals:
        shown = tokens
        if tokens.hidden:
            shown = visible(tokens)
            attended = first_keys(attended, shown.x.shape[1])
            inputs = None if inputs is None else inputs[:, : shown.x.shape[1]]
        signals = BlockSignals(attended, shown.table.alive, inputs)
        if self.turns.at["after"]:
            self.turns.observe(shown, signals)
        return signals

    def _tap(self, tokens: Tokens, block: nn.Module, call: Call) -> Tap:
        maps = tokens.riders.get(MAPS) if self.borrows else None
        how = (call.bias, call.own, self.turns.needs)
        tap = SharingTap(maps, block, *how) if isinstance(maps, SharedMaps) else Tap(*how)
        tap.rows, tap.share = call.rows, self.share
        if self.family.biased:
            tap.pairs = Pairs(tokens.table.rep if tokens.version else None, tokens.prefix)
        return tap


def _attending(tokens: Tokens) -> Collection[str]:
    """The names of the riders that see the attention."""
    return [name for name, rider in tokens.riders.items() if rider.attends]
