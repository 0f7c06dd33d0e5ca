"""Kept features in the forms in which serving engines take precomputed image embeddings.

The engines put features in the place of an image and count positions over what is there: positions are compact. Read
from vLLM's docs/features/multimodal_inputs.md (commit 01388347) and SGLang's "Query VLM with Offline Engine" (page of
2026-06-10); neither engine is imported.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from tokensieve.errors import TokensieveError


def vllm_request(prompt: str, features: Tensor) -> dict[str, Any]:
    """What ``LLM(…, enable_mm_embeds=True).generate`` of vLLM takes.

    Args:
        prompt: as the model wants it, with one placeholder for each image ("<image>" of LLaVA), where vLLM puts as many
            tokens as the image has features.
        features: (I, K, C), of I images, C the width of the language model.

    Raises:
        TokensieveError: features of another shape.
    """
    return {"prompt": prompt, "multi_modal_data": {"image": _checked(features)}}


def vllm_content(features: Tensor) -> dict[str, Any]:
    """The part of a chat message that stands for an image, for ``vllm serve … --enable-mm-embeds``: the tensor as
    ``torch.save`` writes it, in base64. vLLM takes one such message in a chat.

    Args:
        features: (1, K, C).

    Raises:
        TokensieveError: features of another shape, or of several images.
    """
    if len(_checked(features)) != 1:
        raise TokensieveError(f"one image makes one part of a message, got features of {len(features)}")
    written = io.BytesIO()
    torch.save(features.detach().cpu().contiguous(), written)
    return {"type": "image_embeds", "image_embeds": base64.b64encode(written.getvalue()).decode("ascii")}


def sglang_request(
    input_ids: Sequence[int], features: Tensor, image_token: int, processed: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What ``Engine.generate`` of SGLang takes: ``input_ids`` and ``image_data``.

    Args:
        input_ids: of the prompt, as the processor makes them: with a run of ``image_token`` for each image, of any
            length; one token where features were left out.
        features: (I, K, C), of I images.
        image_token: the placeholder's number.
        processed: what the processor made, of which SGLang wants more for some models (``image_sizes``); ids and pixels
            are left out.

    Raises:
        TokensieveError: features of another shape, or of more or fewer images than there are runs.
    """
    images, number, _ = _checked(features).shape
    runs = [(token, len(list(run))) for token, run in groupby(input_ids)]
    found = sum(token == image_token for token, _ in runs)
    if found != images:
        raise TokensieveError(f"the prompt has {found} runs of the image token {image_token}, and {images} images")
    ids = [token for token, length in runs for _ in range(number if token == image_token else length)]
    beside = {name: value for name, value in (processed or {}).items() if name not in ("input_ids", "pixel_values")}
    item = {**beside, "format": "precomputed_embedding", "feature": features.flatten(0, 1)}
    return {"input_ids": ids, "image_data": [item]}


def _checked(features: Tensor) -> Tensor:
    if features.dim() != 3 or not features.is_floating_point():
        raise TokensieveError(
            f"features are (images, kept, channels) and floating point, got {tuple(features.shape)}, {features.dtype}"
        )
    return features
