"""What a reduced vision-language model is held to: its dense twin, whose decoder is not shown the tokens that left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.helpers.languages import Inputs, Language
from tokensieve.language.cache import record_of
from tokensieve.language.host import find_host


def called(part: Any, run: Callable[[], Any]) -> Inputs:
    """The keyword arguments of the last call of a module while ``run`` runs."""
    seen: list[Inputs] = []
    with part.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True):
        run()
    return seen[-1]


def kept(cache: Any) -> Tensor:
    """(B, U) bool: which tokens of the uncut sequence a cache holds."""
    record = record_of(cache)
    assert record is not None
    held = torch.zeros(len(record.columns), record.length + 1, dtype=torch.bool)
    held.scatter_(1, record.columns.clamp(min=-1) % (record.length + 1), True)
    return held[:, :-1]


def into_layers(model: Any, run: Callable[[], Any]) -> Tensor:
    """(B, M, C) what the first layer of the decoder is given while ``run`` runs."""
    host = find_host(model)
    assert host is not None
    seen: list[Tensor] = []
    with host.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        run()
    return seen[-1]


def positions(language: Language, there: Tensor) -> Inputs:
    """The position ids that ``generate`` gives, where they have one axis."""
    first = 1 if language.name == "paligemma" else 0
    return {"position_ids": (there.cumsum(1) - 1).clamp(min=0) + first} if language.axes == 1 else {}


def hidden_logits(
    language: Language, dense: Any, inputs: Inputs, keep: Tensor, embeddings: Tensor | None = None
) -> Tensor:
    """(B, U, V) logits of the dense model on ``inputs`` when its decoder sees only the tokens ``keep`` (B, U); those
    that are hidden see themselves alone.

    ``embeddings`` (B, U, C) go in for those of the dense model where they are not zero.
    """
    host = find_host(dense)
    assert host is not None
    given = called(host.decoder, lambda: dense(**inputs, use_cache=False))
    given |= {"cache": None, "use_cache": False}
    there = inputs["attention_mask"].bool()
    if embeddings is not None:
        changed = embeddings.abs().sum(dim=2, keepdim=True) > 0
        given["inputs_embeds"] = torch.where(changed, embeddings, given["inputs_embeds"])
    mask = given["attention_mask"]
    if isinstance(mask, dict):
        given["attention_mask"] = {kind: _seen(one, there, keep, None) for kind, one in mask.items()}
    else:
        given["attention_mask"] = _seen(mask, there, keep, language.window)
    states = host.decoder(**given).last_hidden_state
    logits: Tensor = dense.get_output_embeddings()(states)
    return logits


def _seen(mask: Tensor | None, there: Tensor, keep: Tensor, window: int | None) -> Tensor:
    """(B, 1, U, U) bool."""
    place = torch.arange(there.shape[1])
    if mask is None or mask.dim() == 2:
        causal = place <= place.unsqueeze(1)
        if window is not None:
            causal &= place > place.unsqueeze(1) - window
        mask = causal & there[:, None, None]
    alone = torch.eye(len(place), dtype=torch.bool) & ~(keep & there)[:, None, :, None]
    return (mask & keep[:, None, None]) | alone


def cut_logits(language: Language, dense: Any, inputs: Inputs, keep: Tensor, anew: bool) -> Tensor:
    """(1, M, V) logits of the dense decoder on nothing but the tokens ``keep`` (1, U) of one prompt, at their positions
    or at positions counted ``anew``."""
    host = find_host(dense)
    assert host is not None
    given = called(host.decoder, lambda: dense(**positions(language, inputs["attention_mask"]) | inputs))
    given |= {"cache": None, "use_cache": True}  # a cache says that positions with gaps are one sequence
    stay = keep[0].nonzero().squeeze(1)
    given["inputs_embeds"] = given["inputs_embeds"][:, stay]
    given["position_ids"] = given["position_ids"][..., stay]
    if anew:
        start = int(given["position_ids"].min())
        given["position_ids"] = torch.arange(start, start + len(stay)).unsqueeze(0)
    mask = given["attention_mask"]
    given["attention_mask"] = mask[:, :, stay][..., stay] if mask is not None and mask.dim() == 4 else None
    states = host.decoder(**given).last_hidden_state
    logits: Tensor = dense.get_output_embeddings()(states)
    return logits
