"""Prompts answered by small vision-language models, as ``generate`` answers them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.hidden import positions
from tests.helpers.languages import IMAGE, VIDEO, Inputs, Language
from tokensieve.language.apply import apply
from tokensieve.methods.language._prefix import PrefixMethod


def over(languages: list[Language], **options: Any) -> Any:
    """A test over these hosts, of which the slow ones repeat its kind of check."""
    cases = [pytest.param(one, id=one.name, marks=() if one.fast else pytest.mark.slow) for one in languages]
    return pytest.mark.parametrize("language", cases, **options)


def reduced(language: Language, method: PrefixMethod) -> Any:
    return apply(language.build(), [method])


def answers(model: Any, inputs: Inputs, number: int = 8, **options: Any) -> tuple[Any, Tensor]:
    """What greedy generation gives, and the logits (B, number, V) of each step, before it rounds them to float32."""
    options = {"do_sample": False, "return_dict_in_generate": True, **options}
    steps: list[Tensor] = []
    with model.get_output_embeddings().register_forward_hook(lambda _, args, output: steps.append(output[:, -1])):
        answer = model.generate(**inputs, max_new_tokens=number, suppress_tokens=[IMAGE, VIDEO], **options)
    return answer, torch.stack(steps, dim=1)


def whole(language: Language, inputs: Inputs, sequences: Tensor) -> Inputs:
    """The inputs with everything behind them that was generated, but the last token."""
    given = language.longer(inputs, sequences[:, inputs["input_ids"].shape[1] : -1])
    return given | positions(language, given["attention_mask"])
