"""Fewer patches while a dense model learns: PatchDropout (arXiv 2208.07220), at a fraction of the cost of a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.errors import TokensieveError


def check_patch_drop(model: nn.Module) -> None:
    """Refuse a model that cannot leave patches out.

    Raises:
        TokensieveError: its blocks need to know where each patch stands, or it is not one of timm's plain ViTs.
    """
    if not isinstance(getattr(model, "patch_drop", None), nn.Identity):
        raise TokensieveError(
            f"patch_drop_rate is for timm's plain ViTs, which know places by position embeddings alone, not for "
            f"{type(model).__name__}: set it to []"
        )


def rate_at(rates: Sequence[float], progress: float) -> float:
    """The one of ``rates``, each of an equal part of the training, that holds at ``progress`` in [0, 1); 0 without."""
    return rates[min(int(progress * len(rates)), len(rates) - 1)] if rates else 0.0


def choose_patches(batch: int, patches: int, rate: float, wanted: Tensor | None = None) -> Tensor:
    """Indices (B, K) int64 of the patches to read, drawn from torch's generator; K is the rest, one at least.

    Args:
        batch: B.
        patches: N.
        rate: the share to leave out, in [0, 1).
        wanted: (B, N) bool, the patches that are left out last; None for none.
    """
    kept = max(1, round((1 - rate) * patches))
    order = torch.rand(batch, patches)
    if wanted is not None:
        order = order.to(wanted.device) + wanted.float()
    return order.topk(kept, dim=1).indices


@contextmanager
def reading_only(model: nn.Module, kept: Tensor) -> Iterator[None]:
    """Inside the ``with``, ``model`` runs on its prefix tokens and the patches ``kept`` (B, K) alone, in that order."""
    timm_model: Any = model
    prefix: int = timm_model.num_prefix_tokens

    def gather(module: nn.Module, args: Any, x: Tensor) -> Tensor:
        places = kept.to(x.device).unsqueeze(2).expand(-1, -1, x.shape[2])
        return torch.cat([x[:, :prefix], x[:, prefix:].gather(1, places)], dim=1)

    handle = timm_model.patch_drop.register_forward_hook(gather)
    try:
        yield
    finally:
        handle.remove()
