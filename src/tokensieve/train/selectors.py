"""Fitting ToSA's selectors: predict the next layer's attention map from this layer's logits. No labels are needed."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokensieve.attention import Attended, Tap, attention_rows, logits, row_blocks
from tokensieve.engine import remove
from tokensieve.errors import TokensieveError
from tokensieve.ops.selector import Selector
from tokensieve.registry import family_of
from tokensieve.site import Site


@dataclass(frozen=True)
class SelectorLoss:
    """KL(target ‖ prediction) of one selector, mean over rows, heads and images.

    ``own`` is the KL of the layer's own attention map, what an untrained selector predicts.
    """

    block: int
    fitted: float
    own: float


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


def attention_of(model: nn.Module, x: Tensor) -> list[Attended]:
    """What the attention of every block of a dense model was computed from, in block order."""
    located = family_of(model)
    starts: list[int] = []
    tap = Tap()
    blocks = located.family.blocks(located.owner)
    handles = [block.register_forward_pre_hook(lambda module, args: starts.append(len(tap.calls))) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(lambda module, args, out: starts.append(len(tap.calls))))
    try:
        with torch.no_grad(), tap:
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    attended = []
    for start, end in itertools.pairwise(starts):
        one_block = Tap()
        one_block.calls = tap.calls[start:end]
        attended.append(one_block.attended())
    return attended


def kl_rows(selector: Selector, here: Attended, there: Attended, rows: slice) -> tuple[Tensor, Tensor]:
    """Summed KL of some query rows: of the selector's prediction (with gradient) and of the layer's own map."""
    target = attention_rows(there, rows)
    log_target = target.clamp(min=torch.finfo(target.dtype).tiny).log()
    predicted = selector(logits(here, rows, selector.scaled))
    own = logits(here, rows).log_softmax(dim=-1)
    return (target * (log_target - predicted)).sum(), (target * (log_target - own)).sum().detach()


def fit_selectors(
    model: nn.Module,
    batches: Iterable[Tensor],
    *,
    lr: float = 1e-2,
    weight_decay: float = 0.0,
    block: int = 64,
    on_step: Callable[[int, list[SelectorLoss]], None] | None = None,
) -> list[SelectorLoss]:
    """Fit the selectors of a model with ToSA applied to the maps of the dense model, in place.

    Everything but the selectors is frozen and left as it is. Rows are streamed in blocks, so nothing of size H·L² is
    held for the prediction. AdamW with a cosine to zero over the batches.

    Args:
        model: a model with ToSA applied.
        batches: images (B, C, H, W); a sequence, since its length sets the schedule.
        lr, weight_decay: of AdamW.
        block: query rows held at a time.
        on_step: called after every batch with its number and losses.

    Returns:
        The losses of every selector, mean over the last quarter of the batches.
    """
    selectors = selectors_of(model)
    dense = remove(copy.deepcopy(model)).eval()
    steps = list(batches)
    if not steps:
        raise TokensieveError("no images to fit the selectors on")
    optimizer = torch.optim.AdamW(
        [p for selector in selectors.values() for p in selector.parameters()], lr=lr, weight_decay=weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(steps))
    history: list[list[SelectorLoss]] = []
    for number, images in enumerate(steps):
        attended = attention_of(dense, images)
        optimizer.zero_grad(set_to_none=True)
        losses = []
        for layer, selector in selectors.items():
            here, there = attended[layer], attended[layer + 1]
            count = here.queries.shape[0] * here.queries.shape[1] * here.queries.shape[2]
            fitted = own = 0.0
            for rows in row_blocks(here.keys.shape[2], block):
                loss, reference = kl_rows(selector, here, there, rows)
                (loss / count).backward()  # type: ignore[no-untyped-call]
                fitted, own = fitted + float(loss.detach()) / count, own + float(reference) / count
            losses.append(SelectorLoss(layer, fitted, own))
        optimizer.step()
        schedule.step()
        history.append(losses)
        if on_step is not None:
            on_step(number, losses)
    for selector in selectors.values():
        selector.fitted.fill_(True)
    last = history[-max(1, len(history) // 4) :]
    return [
        SelectorLoss(
            layer,
            sum(losses[place].fitted for losses in last) / len(last),
            sum(losses[place].own for losses in last) / len(last),
        )
        for place, layer in enumerate(selectors)
    ]
