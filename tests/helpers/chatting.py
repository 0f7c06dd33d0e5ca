"""The small LLaVA of ``languages`` as users have it: with methods, a processor, pictures and a chat template."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

import tokensieve as ts
from tests.helpers.languages import BOS, EOS, IMAGE, PAD, SIDE, WORDS, Row, named

PREFIX, DECODER = "divprune:tokens=5", "fastv:keep=0.5:layer=2"
BOTH = "divprune:tokens=8+fastv:keep=0.5:layer=2"
SPECS = pytest.mark.parametrize("spec", [PREFIX, DECODER, BOTH])
PAIR = (Row(1), Row(2, words=3, seed=1))

TEMPLATE = """
{%- for message in messages %}{{ message['role'].upper() }}:
{%- for part in message['content'] %} {{ '<image>' if part['type'] == 'image' else part['text'] }}
{%- endfor %} {% endfor %}
{%- if add_generation_prompt %}ASSISTANT:{% endif %}"""


def model_of(spec: str = "") -> Any:
    """The small LLaVA, with methods or dense."""
    (llava,) = named(["llava"])
    return ts.apply(llava.build(), spec) if spec else llava.build()


def processor() -> Any:
    """transformers' own LlavaProcessor over a vocabulary of words w3, w4, …"""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    numbers = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<unk>": 90, "USER:": 91, "ASSISTANT:": 92, "<image>": IMAGE}
    words = Tokenizer(models.WordLevel(numbers | {f"w{word}": word for word in WORDS}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        additional_special_tokens=["<image>"],
    )
    pixels = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return LlavaProcessor(
        image_processor=pixels,
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=TEMPLATE,
    )


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (90, 70, 3), dtype=np.uint8))


def said(text: str, *pictures: Image.Image) -> dict[str, Any]:
    """What a user says, behind pictures."""
    shown = [{"type": "image", "image": one} for one in pictures]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}
