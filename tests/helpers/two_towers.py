"""Small models with an image tower and a text tower, and a tokenizer of a few words for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.helpers.models import liven

WORDS = ("<pad>", "<s>", "</s>", "<unk>", "a", "photo", "drawing", "of", ".", "red", "green", "blue", "dog", "cat")
LENGTH = 12  # tokens that the text towers take
SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96}
VISION = {**SIZES, "image_size": 64, "patch_size": 16}
TEXT = {**SIZES, "vocab_size": 20, "max_position_embeddings": LENGTH}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODELS: dict[str, dict[str, Any]] = {
    "CLIP": {"projection_dim": 32, "text": ENDS},
    "Siglip": {"text": ENDS},
    "MetaClip2": {"projection_dim": 32, "text": ENDS},
    "Aimv2": {"projection_dim": 32, "text": ENDS},
    "ChineseCLIP": {"projection_dim": 32, "text": {}},
    "Tipsv2": {"text": {}},
}


def two_towers(name: str) -> Any:
    """A random ``NameModel`` of transformers in evaluation mode, for images of 64 pixels, the same every time."""
    import transformers

    options = dict(MODELS[name])
    text = {**TEXT, **options.pop("text")}
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(vision_config=VISION, text_config=text, **options)
    return liven(getattr(transformers, f"{name}Model")(config)).eval()


def tokenizer() -> Any:
    """One token a word of ``WORDS``, between a begin and an end."""
    import tokenizers
    import transformers

    ids = {word: number for number, word in enumerate(WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=LENGTH, **names)


def saved(name: str, place: Path) -> Path:
    """The model with its tokenizer and image processor, as save_pretrained writes them."""
    import transformers

    two_towers(name).save_pretrained(place)
    tokenizer().save_pretrained(place)
    transformers.SiglipImageProcessor(size={"height": 64, "width": 64}).save_pretrained(place)
    return place
