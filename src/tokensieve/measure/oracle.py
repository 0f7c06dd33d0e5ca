"""The oracle: the dense model on the token counts of a reduced one, with a selection that costs nothing."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokensieve.attention.kernel import attends_faster
from tokensieve.attention.tap import Tap
from tokensieve.families._family import Family, taken_apart
from tokensieve.families._locate import family_of
from tokensieve.measure.macs import MacReport
from tokensieve.models.load import share_weights
from tokensieve.tokens.form import Form

FORM = "_tokensieve_form"  # the attribute of a tensor between two blocks that says how the model would have it


class OracleBlock(nn.Module):
    """One block of the dense model on its first tokens only.

    Args:
        block: the dense block.
        family: runs it in halves.
        attended: tokens in attention.
        processed: tokens in the MLP.
        left: tokens that some later block still needs; the others are cut off.
        prefix: tokens in front that have no position on the grid.
        reduced: whether tokens are gone by the end of it: from there on a reduced model may use an attention of ours,
            and so does its oracle.
        whole: tokens of a block that a head reads: what is cut off returns as zeros; None where no head reads.

    Where the model has its tokens in a form of its own, blocks behind a cut hand on (B, left, C) with that form beside.
    """

    def __init__(
        self,
        block: nn.Module,
        family: Family,
        attended: int,
        processed: int,
        left: int,
        prefix: int,
        reduced: bool = False,
        whole: int | None = None,
    ) -> None:
        super().__init__()
        self.whole = whole
        self.reduced = reduced
        self.block = block
        self.family = family
        self.attended, self.processed, self.left, self.prefix = attended, processed, left, prefix

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """(B, L, C) to (B, left, C), in the place where a block of the family has them."""
        return self.family.closed(self._run(*taken_apart(args, kwargs)))

    def _run(self, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        form: Form | None = getattr(x, FORM, None)
        given = x if form is None else None  # as the model has it
        if form is None:
            form = self.family.form(self.block, x)
            x = x if form is None else form.taken(x)
        x = x[:, : max(self.attended, self.processed, self.left)]  # the block before may have given back the others
        length = x.shape[1]
        own = self.reduced and attends_faster(x)
        if self.attended >= length and self.processed >= length and not own:
            if form is None:
                return self._cut(self.family.opened(self.block(x, *args, **kwargs)))
            if given is not None:
                return self._formed(form.taken(self.family.opened(self.block(given, *args, **kwargs))), form)
        return self._formed(self._run_halves(x, form, own, self.family.keywords(self.block, args, kwargs)), form)

    def _formed(self, x: Tensor, form: Form | None) -> Tensor:
        """What is left of ``x``, beside its ``form``; the model's own where a head reads it."""
        x = self._cut(x)
        if form is None:
            return x
        if self.whole is not None:
            return form.given(x)
        setattr(x, FORM, form)
        return x

    def _run_halves(self, x: Tensor, form: Form | None, own: bool, arguments: dict[str, Any]) -> Tensor:
        length = x.shape[1]
        if form is not None or self.attended < length or any(value is not None for value in arguments.values()):
            positions = torch.arange(self.attended - self.prefix, device=x.device).expand(len(x), -1)
            told = arguments if form is None else {**arguments, **form.told}
            places = positions if form is None else form.places(positions)
            arguments = self.family.reindex(self.block, told, places, self.prefix)
        whole = self._attend(x[:, : self.attended], own, arguments)
        if self.attended < min(length, max(self.processed, self.left)):
            whole = torch.cat([whole, x[:, self.attended :]], dim=1)
        processed = self.family.mlp(self.block, whole[:, : self.processed])
        if self.processed >= self.left:
            return processed
        return torch.cat([processed, whole[:, self.processed :]], dim=1)

    def _attend(self, x: Tensor, own: bool, arguments: dict[str, Any]) -> Tensor:
        if not own:
            return self.family.attention(self.block, x, **arguments)
        return self.family.tapped(self.block, x, Tap(own=True), **arguments)

    def _cut(self, x: Tensor) -> Tensor:
        x = x[:, : self.left]
        return x if self.whole is None else F.pad(x, (0, 0, 0, self.whole - x.shape[1]))


def oracle(model: nn.Module, report: MacReport) -> nn.Module:
    """The dense ``model`` on the token counts of ``report``, selecting ``x[:, :n]``: what any method could reach.

    A copy with the weights of ``model`` and no engine. Its answers mean nothing; only its time does.
    Tokens that return later (a skipped block) wait beside it and are concatenated again. Where a pixel head reads a
    block (``model.taps``), what is gone returns as zeros.

    Args:
        model: the dense model, with no method applied.
        report: what ``measure.macs.count`` gave for the reduced model; means are rounded to whole tokens.
    """
    copied = share_weights(model)
    located = family_of(copied)
    layout = located.family.layout(located.owner)
    blocks = located.family.blocks(located.owner)
    places = located.family.block_list(located.owner)
    counts = [(round(block.attended), round(block.processed)) for block in report.blocks]
    taps = getattr(model, "taps", ())
    # A method that acts before the first block leaves no block whole.
    whole = max(counts[0][0] if counts else 0, layout.prefix + layout.patches)
    first_cut = next((n for n, pair in enumerate(counts) if min(pair) < whole), len(blocks))
    left = 1
    for number in reversed(range(len(blocks))):
        attended, processed = counts[number]
        left = max(left, processed if number == len(blocks) - 1 else 1)
        places[number] = OracleBlock(
            blocks[number],
            located.family,
            attended,
            processed,
            left,
            layout.prefix,
            reduced=number >= first_cut,
            whole=whole if number in taps or (number == len(blocks) - 1 and located.family.in_parts) else None,
        )
        # Hooks of the block move to what stands in its place: transformers collects hidden states by them.
        places[number]._forward_hooks.update(blocks[number]._forward_hooks)
        blocks[number]._forward_hooks.clear()
        left = max(left, attended, processed)
    return copied.eval()
