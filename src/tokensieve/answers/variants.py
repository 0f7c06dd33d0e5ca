"""Reduced copies of a vision-language model, and beside each the controls that keep as many image tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from tokensieve.answers.cost import PromptCost
from tokensieve.engine.apply import is_applied
from tokensieve.errors import TokensieveError
from tokensieve.language.apply import applied, apply, encodes_text
from tokensieve.language.encoder import TextEncoder
from tokensieve.methods._config import Config
from tokensieve.methods._registry import list_language_methods
from tokensieve.methods._spec import spell
from tokensieve.models.load import share_weights

CONTROLS = ("prefix-random", "prefix-grid", "downsample")


@dataclass
class AnswerVariant:
    """A model to measure.

    Attributes:
        name: "dense", or the spec of its methods.
        model: has the weights of the dense model.
        cost: of a prompt, as a mean.
    """

    name: str
    model: nn.Module
    cost: PromptCost


def refuse_reduced(model: nn.Module) -> None:
    """Refuse a model that has methods already.

    Raises:
        TokensieveError: names them.
    """
    if is_applied(model):
        raise TokensieveError(
            f"the model has methods already ({spell(applied(model))}): give the dense one, and name them as a variant"
        )


def reduce(dense: nn.Module, methods: Sequence[Config], text_encoder: TextEncoder | None = None) -> nn.Module:
    """A copy of ``dense`` with ``methods`` applied, with the same weights.

    Args:
        dense: a vision-language model of transformers.
        methods: a composition, wherever its methods act.
        text_encoder: for those that compare patches with the text by one; others are made without it.
    """
    model = share_weights(dense)
    return apply(model, tuple(methods), text_encoder=text_encoder if encodes_text(methods) else None).eval()


def named(methods: Sequence[Config], text_encoder: TextEncoder | None = None) -> str:
    """The name of a variant: its spec, and whether it compares by a text encoder."""
    encoded = encodes_text(methods) and text_encoder is not None
    return spell(tuple(methods)) + (", text encoder" if encoded else "")


def controls_of(cost: PromptCost, alike: bool) -> Iterator[Config]:
    """The controls that keep as many image tokens as a variant: what it leaves in front of the decoder, or of one that
    leaves less behind later layers the mean over all layers, which costs the decoder about as much.

    Args:
        cost: of the variant.
        alike: whether all prompts have as many image tokens; else the controls keep the same share of each.

    Yields:
        None at all of a variant that leaves every image token in the decoder.
    """
    if cost.mean_tokens >= cost.features:
        return
    known = list_language_methods()
    for name in CONTROLS:
        if alike:
            yield known[name](tokens=max(1, round(cost.mean_tokens)))  # type: ignore[call-arg]
        else:
            yield known[name](keep=max(round(cost.mean_tokens / cost.features, 4), 1e-4))  # type: ignore[call-arg]
