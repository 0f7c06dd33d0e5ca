"""Greedy answers of a vision-language model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tokensieve.language.host import Host


@dataclass(frozen=True)
class Generated:
    """Answers to B prompts.

    Attributes:
        first: (B, V) logits of the first token, float32 on the CPU.
        tokens: (B) the tokens of each, up to the one that ends it.
    """

    first: Tensor
    tokens: list[tuple[int, ...]]


def greedy(model: Any, host: Host, inputs: Mapping[str, Any], *, tokens: int, exactly: bool = False) -> Any:
    """What ``generate`` answers with the likeliest token at each step, those that hold places left out.

    Args:
        model: of transformers.
        host: inside of it.
        inputs: by name.
        tokens: to generate at most.
        exactly: not to end earlier.
    """
    return model.generate(
        **inputs,
        max_new_tokens=tokens,
        min_new_tokens=tokens if exactly else None,
        do_sample=False,
        num_beams=1,
        suppress_tokens=sorted(host.placeholders.values()),
        return_dict_in_generate=True,
        output_logits=True,
    )


def answers_of(model: nn.Module, host: Host, inputs: Mapping[str, Any], tokens: int) -> Generated:
    """The answers of a model, at most so many ``tokens`` long."""
    output = greedy(model, host, inputs, tokens=tokens)
    ends = _ends(model)
    rows = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    return Generated(output.logits[0].float().cpu(), [_until(row, ends) for row in rows])


def _ends(model: Any) -> frozenset[int]:
    """The tokens that end an answer."""
    number = model.generation_config.eos_token_id
    return frozenset(() if number is None else [number] if isinstance(number, int) else number)


def _until(row: Sequence[int], ends: frozenset[int]) -> tuple[int, ...]:
    """The tokens of an answer without the one that ends it and whatever is behind."""
    length = next((place for place, token in enumerate(row) if token in ends), len(row))
    return tuple(row[:length])
