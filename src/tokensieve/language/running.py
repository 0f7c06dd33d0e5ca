"""A call of a vision-language model that is running: what its parts tell each other, apart for every thread."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from torch import Tensor

from tokensieve.errors import RefusedError
from tokensieve.language.images import Features
from tokensieve.methods.language._prefix import TowerSignals

SEEN = "_tokensieve_seen"  # an attribute of what get_image_features gives: generate hands that on, a call later


@dataclass
class Call:
    """One forward of the model around the decoder.

    Attributes:
        input_ids: (B, L), or None where embeddings are given.
        mask: the attention mask as it was given, or None.
        features: of each modality that this call puts in.
    """

    input_ids: Tensor | None
    mask: Any = None
    features: dict[str, Features] = field(default_factory=dict)


CALL: ContextVar[Call | None] = ContextVar("tokensieve_language_call", default=None)
SIGNALS: ContextVar[dict[int, TowerSignals] | None] = ContextVar("tokensieve_tower_signals", default=None)


@cache
def _signature(function: Any) -> inspect.Signature:
    return inspect.signature(function)


def by_name(method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of a bound method by their names, those among ``**kwargs`` too."""
    signature = _signature(method.__func__)
    found: dict[str, Any] = {}
    for name, value in list(signature.bind_partial(method.__self__, *args, **kwargs).arguments.items())[1:]:
        found |= value if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return found


@contextmanager
def calling(call: Call) -> Iterator[None]:
    """``call`` runs inside."""
    token = CALL.set(call)
    try:
        yield
    finally:
        CALL.reset(token)


@contextmanager
def listening() -> Iterator[dict[int, TowerSignals]]:
    """What the tower says inside goes into the dict."""
    signals: dict[int, TowerSignals] = {}
    token = SIGNALS.set(signals)
    try:
        yield signals
    finally:
        SIGNALS.reset(token)


def features_seen(outputs: Any) -> Features | None:
    """What was noted of an output of ``get_image_features``; None of one that is a copy of it.

    Raises:
        RefusedError: nothing but features is left of it.
    """
    noted = getattr(outputs, SEEN, None)
    if isinstance(noted, Features):
        return noted
    if getattr(outputs, "last_hidden_state", None) is None:
        raise RefusedError(
            "mm_encoder_outputs holds features without the last_hidden_state of the tower, as prefill_chunk_size "
            "makes them where it divides images: leave prefill_chunk_size out, or give what get_image_features of "
            "this model returns"
        )
    return None
