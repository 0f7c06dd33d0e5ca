"""The dense model whose decoder layers are not shown tokens that left: what any reduced model is held to, whatever its
class makes of masks and positions around its layers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from tokensieve.language.cache import later_of, record_of
from tokensieve.language.host import Host
from tokensieve.language.record import Record

STATEFUL = {"linear_attention", "conv", "mamba", "recurrent"}  # kinds of layers without a map over tokens


def kept_by_layer(cache: Any, depth: int) -> list[Tensor]:
    """(B, U) bool for each layer: which tokens of the uncut sequence its cache holds."""
    first, later = record_of(cache), later_of(cache)
    assert first is not None
    held = [first]
    for layer in range(1, depth):
        held.append(later.get(layer, held[-1]))
    return [_columns(record) for record in held]


def _columns(record: Record) -> Tensor:
    held = torch.zeros(len(record.columns), record.length + 1, dtype=torch.bool)
    held.scatter_(1, record.columns.clamp(min=-1) % (record.length + 1), True)
    return held[:, :-1]


def stateful(host: Host) -> bool:
    """Whether some layers read tokens one after the other, so that none can be hidden from them."""
    return bool(STATEFUL & set(host.kinds))


@contextmanager
def hiding(host: Host, there: Tensor, keeps: Sequence[Tensor]) -> Iterator[None]:
    """Each layer of a dense model sees the tokens (B, U) bool of ``keeps`` alone, of those that are ``there``."""
    with ExitStack() as hooks:
        if stateful(host):
            hooks.enter_context(_cut(host, there, keeps[0]))
        else:
            for layer, keep in zip(host.layers, keeps, strict=True):
                hooks.enter_context(_masked(layer, there, keep))
        yield


@contextmanager
def _masked(layer: Any, there: Tensor, keep: Tensor) -> Iterator[None]:
    signature = inspect.signature(layer.forward)

    def narrow(_: Any, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = signature.bind_partial(*args, **kwargs)
        given.arguments["attention_mask"] = seen(given.arguments.get("attention_mask"), there, keep)
        return given.args, given.kwargs

    with layer.register_forward_pre_hook(narrow, with_kwargs=True):
        yield


def seen(mask: Tensor | None, there: Tensor, keep: Tensor) -> Tensor:
    """A layer's mask (B, 1, U, U) over tokens that are there, without those that are hidden, which see themselves."""
    place = torch.arange(there.shape[1])
    if mask is None or mask.dim() == 2:
        open_ = (place <= place.unsqueeze(1)) & there.bool()[:, None, None]
    else:
        open_ = mask if mask.dtype == torch.bool else mask == 0
    alone = torch.eye(len(place), dtype=torch.bool) & ~(keep & there.bool())[:, None, :, None]
    open_ = (open_ & keep[:, None, None]) | alone
    if mask is None or mask.dtype == torch.bool or mask.dim() == 2:
        return open_
    return torch.zeros_like(open_, dtype=mask.dtype).masked_fill(~open_, torch.finfo(mask.dtype).min)


@contextmanager
def _cut(host: Host, there: Tensor, keep: Tensor) -> Iterator[None]:
    """The decoder runs row by row on nothing but the tokens that stay, at their positions."""
    stay = keep & there.bool()

    def rows(decoder: Any, _: Any, kwargs: Any, outputs: Any) -> Any:
        states = torch.zeros_like(outputs.last_hidden_state)
        for row, where in enumerate(stay):
            places = where.nonzero().squeeze(1)
            given = {name: value for name, value in kwargs.items() if name not in ("attention_mask", "cache")}
            given |= {"inputs_embeds": kwargs["inputs_embeds"][row : row + 1, places], "use_cache": True}
            positions = kwargs.get("position_ids")
            positions = torch.arange(there.shape[1]).unsqueeze(0) if positions is None else positions
            one = positions[..., row : row + 1, :] if positions.shape[-2] > 1 else positions
            given["position_ids"] = one[..., places]
            states[row, places] = decoder.forward(**given).last_hidden_state[0]
        outputs.last_hidden_state = states
        return outputs

    with host.decoder.register_forward_hook(rows, with_kwargs=True):
        yield
