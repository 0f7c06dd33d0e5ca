"""Fitting ToSA's selectors: predict the next layer's attention map from this layer's logits. No labels are needed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tokensieve.attention.selector import Selector
from tokensieve.attention.signals import Attended, attention_rows, logits
from tokensieve.attention.tap import Tap
from tokensieve.engine.block import Site
from tokensieve.errors import TokensieveError
from tokensieve.families._locate import family_of
from tokensieve.ops.attention import row_blocks
from tokensieve.tokens.stand_in import StandIn
from tokensieve.train.objective import Objective

BLOCK = 64  # query rows held at a time
CLASS_ROW = slice(0, 1)


def selectors_of(model: nn.Module) -> dict[int, Selector]:
    """The selectors of a model with ToSA applied, by the standard block they read.

    Raises:
        TokensieveError: the model has none.
    """
    found = {
        site.block: part
        for site in model.modules()
        if isinstance(site, Site)
        for part in site.learned.values()
        if isinstance(part, Selector)
    }
    if not found:
        raise TokensieveError("the model has no ToSA selectors: apply ts.ToSA(...) with score='selector' first")
    return found


def attention_of(model: nn.Module, x: Tensor, wanted: Iterable[int] | None = None) -> dict[int, Attended]:
    """What the attention of blocks is computed from, by block, on every token that the block is given.

    In a reduced model tokens that skip a block are put back before its attention is read: the map that the whole set
    of tokens would have there.

    Args:
        model: a dense or a reduced model.
        x: images (B, C, H, W).
        wanted: block numbers; default all.
    """
    located = family_of(model)
    family = located.family
    found: dict[int, Attended] = {}

    def read(number: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = args[0].restore("last") if isinstance(args[0], StandIn) else args[0]
        tap = Tap()
        family.tapped(block, tokens, tap, **kwargs)
        found[number] = tap.attended()

    blocks = family.blocks(located.owner)
    numbers = range(len(blocks)) if wanted is None else sorted(wanted)
    handles = [
        blocks[number].register_forward_pre_hook(
            lambda block, args, kwargs, number=number: read(number, block, args, kwargs),  # type: ignore[misc]
            with_kwargs=True,
        )
        for number in numbers
    ]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found


def kl_rows(selector: Selector, here: Attended, there: Attended, rows: slice) -> tuple[Tensor, Tensor]:
    """Summed KL(target ‖ prediction) of some query rows: of the selector's prediction (with gradient), and of the
    layer's own map, which is what an untrained selector predicts."""
    target = attention_rows(there, rows)
    log_target = target.clamp(min=torch.finfo(target.dtype).tiny).log()
    predicted = selector(logits(here, rows, selector.scaled))
    own = logits(here, rows).log_softmax(dim=-1)
    return (target * (log_target - predicted)).sum(), (target * (log_target - own)).sum().detach()


def kl_streamed(
    selector: Selector, here: Attended, there: Attended, rows: int = 0, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """Mean KL over rows, heads and images of a selector's prediction (with gradient) and of the layer's own map.

    Rows go by in blocks, which the backward pass computes again: nothing of size H·L² is held. A selector that is asked
    for the class token's row alone is fitted to that one.

    Args:
        selector: reads ``here``.
        here, there: attention of the layer the selector reads and of the one it predicts.
        rows: how many query rows to read, evenly spread from a random start, an unbiased estimate; 0 for all.
        block: query rows held at a time.
    """
    length = here.keys.shape[2]
    if selector.class_row:
        loss, reference = kl_rows(selector, here, there, CLASS_ROW)
        count = here.queries.shape[0] * here.queries.shape[1]
        return loss / count, reference / count
    stride = max(1, length // rows) if rows else 1
    start = int(torch.randint(stride, ()))
    fitted, own, read = torch.zeros((), device=here.keys.device), torch.zeros((), device=here.keys.device), 0
    for part in row_blocks(length - start, block, stride):
        chosen = slice(part.start + start, part.stop + start, stride)
        loss, reference = checkpoint(kl_rows, selector, here, there, chosen, use_reentrant=False)
        fitted, own = fitted + loss, own + reference
        read += len(range(*chosen.indices(length)))
    count = here.queries.shape[0] * here.queries.shape[1] * read
    return fitted / count, own / count


class FitSelectors(Objective):
    """The selectors of ``model``, fitted to attention maps; everything else is frozen.

    Args:
        model: a model with ToSA applied.
        source: whose maps are read: the dense model's (the first pass), or those of ``model`` itself (the second),
            in which earlier layers have been skipped as they will be at inference.
        rows: see ``kl_streamed``.
    """

    def __init__(self, model: nn.Module, source: nn.Module, rows: int = 0) -> None:
        super().__init__()
        self.model = model
        model.requires_grad_(False)
        self._selectors = selectors_of(model)
        for selector in self._selectors.values():
            selector.requires_grad_(True)
            selector.noticed = True  # it is being trained: no need to say that it has not been
        self._source = (source,)
        self._rows = rows
        self._blocks = sorted({number for block in self._selectors for number in (block, block + 1)})

    def forward(self, images: Tensor, targets: Tensor | None, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        maps = attention_of(self._source[0], images, self._blocks)
        figures: dict[str, Tensor] = {}
        losses = []
        for block, selector in self._selectors.items():
            fitted, own = kl_streamed(selector, maps[block], maps[block + 1], self._rows)
            losses.append(fitted)
            figures |= {f"kl/{block + 1}": fitted.detach(), f"kl_own/{block + 1}": own}
        loss = torch.stack(losses).sum()
        mean_own = torch.stack([value for name, value in figures.items() if name.startswith("kl_own/")]).mean()
        return loss, {"kl": loss.detach() / len(losses), "kl_own": mean_own, **figures}

    def train(self, mode: bool = True) -> FitSelectors:
        """The selectors' mode; the maps are always those of evaluation."""
        super().train(mode)
        self.model.eval()
        return self

    def shards(self) -> list[nn.Module]:
        return []  # selectors run outside the blocks they sit in

    def to_teacher_device(self, device: torch.device) -> None:
        self._source[0].to(device)

    def finish(self, model: nn.Module) -> None:
        for selector in selectors_of(model).values():
            selector.fitted.fill_(True)
