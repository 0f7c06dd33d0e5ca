"""The question model: a small LLaVA of transformers, and the CLIP pair that its vision tower comes from.

The weights lie in the package, in one file in bfloat16. ``scripts/train_questions.py`` trains such; the packaged ones
come from its lessons in several runs, the earlier ones with other settings, so no single command gives them again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tokensieve.demo.questions.canvases import PATCH, SIDE
from tokensieve.demo.questions.words import BEGIN, END, IMAGE, NUMBERS, PAD, WORDS, processor, tokenizer
from tokensieve.language.encoder import TextEncoder

WEIGHTS = Path(__file__).with_name("questions.safetensors")
"""The packaged weights: ``llava.*``, with the vision tower, and ``pair.*`` without it; bfloat16."""
FEATURES = (SIDE // PATCH) ** 2
"""Image tokens of a prompt."""

_TOWER, _SHARED = "llava.model.vision_tower.", "vision_model."
_VISION: dict[str, Any] = {
    **{"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"image_size": SIDE, "patch_size": PATCH, "projection_dim": 64, "hidden_act": "gelu"},
}
_IDS: dict[str, Any] = {"pad_token_id": NUMBERS[PAD], "bos_token_id": NUMBERS[BEGIN], "eos_token_id": NUMBERS[END]}
_TEXT: dict[str, Any] = {
    **{"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"vocab_size": len(WORDS), "max_position_embeddings": 24, "projection_dim": 64, "hidden_act": "gelu"},
    **_IDS,
}
_DECODER: dict[str, Any] = {
    **{"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"vocab_size": len(WORDS), "max_position_embeddings": 512},
    **_IDS,
}


def empty() -> tuple[Any, Any]:
    """The LLaVA and the CLIP pair with random weights, in training mode; each has a vision tower of its own."""
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )  # fmt: skip

    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_VISION),
        text_config=LlamaConfig(**_DECODER),
        image_token_index=NUMBERS[IMAGE],
        image_seq_length=FEATURES,
        vision_feature_layer=-2,
        **_IDS,
    )
    make: Any = CLIPModel
    pair = make(CLIPConfig(text_config=_TEXT, vision_config=_VISION, projection_dim=64))
    return LlavaForConditionalGeneration(config), pair


def question_model(dtype: torch.dtype = torch.float32) -> Any:
    """The trained ``LlavaForConditionalGeneration``, in evaluation mode, on the CPU."""
    model, _ = empty()
    return _filled(model, _part("llava."), dtype)


def clip_pair(dtype: torch.dtype = torch.float32) -> Any:
    """The trained ``CLIPModel``, in evaluation mode, on the CPU; its vision tower equals that of the question model."""
    _, pair = empty()
    tower = {f"{_SHARED}{name}": value for name, value in _part(_TOWER).items()}
    return _filled(pair, tower | _part("pair."), dtype)


def text_encoder() -> TextEncoder:
    """The pair as text-guided methods take it."""
    return TextEncoder(clip_pair(), tokenizer(end=True), tokenizer())


def packed(model: nn.Module, pair: nn.Module) -> dict[str, Tensor]:
    """What the file of weights holds of a trained LLaVA and its pair."""
    found = {f"llava.{name}": value for name, value in model.state_dict().items()}
    others = {name: value for name, value in pair.state_dict().items() if not name.startswith(_SHARED)}
    found |= {f"pair.{name}": value for name, value in others.items()}
    return {name: value.to(torch.bfloat16).contiguous() for name, value in found.items()}


def save_questions(folder: str | Path) -> Path:
    """Write the question model and its processor as ``save_pretrained`` does, for ``from_pretrained`` and pipelines.

    Args:
        folder: made where it does not exist.

    Returns:
        The folder.
    """
    question_model().save_pretrained(folder)
    processor().save_pretrained(folder)
    return Path(folder)


def _part(prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin so, without that."""
    weights = load_file(WEIGHTS)
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _filled(model: Any, weights: dict[str, Tensor], dtype: torch.dtype) -> Any:
    own = {name: value for name, value in model.state_dict().items() if name not in weights}
    if any(not name.endswith("position_ids") for name in own):
        raise RuntimeError(f"{WEIGHTS} lacks {', '.join(own)}")
    model.load_state_dict(weights, strict=not own)
    return model.to(dtype).eval()
