"""A small vision-language model with its processor, and questions about images, as folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.helpers.models import liven

WORDS = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "which", "digit", "is", "left", "of", "the", "red", "one", "how")
WORDS = (*WORDS, "many", "sevens", "what", "colour", "USER", "ASSISTANT", "\n", *map(str, range(10)), "blue", "green")
QUESTIONS = ("which digit is left of the red one", "how many sevens", "what is the colour of the 3")
SIDE, PATCH = 48, 8  # 6 × 6 patches
FEATURES = (SIDE // PATCH) ** 2
DEPTH = 4
TEMPLATE = (
    "<s>{% for turn in messages %}USER {% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT{% endif %}"
)


def asked_model() -> Any:
    """A random LLaVA in evaluation mode, the same every time."""
    import transformers

    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
    )
    text = transformers.LlamaConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(WORDS),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=WORDS.index("<image>"))
    return liven(transformers.LlavaForConditionalGeneration(config)).eval()


def asking_processor(template: str | None = TEMPLATE) -> Any:
    """A processor of pictures and words for it."""
    import tokenizers
    import transformers

    ids = {word: number for number, word in enumerate(WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    images = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return transformers.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def saved_model(place: Path) -> Path:
    """The model with its processor, as save_pretrained writes them."""
    asked_model().save_pretrained(place)
    asking_processor().save_pretrained(place)
    return place


def saved_questions(place: Path, count: int = 6) -> Path:
    """A folder with questions about images of noise; their answers are digits."""
    place.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    lines = []
    for number in range(count):
        pixels = torch.randint(0, 256, (SIDE, SIDE + 8, 3), generator=random, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(place / f"{number}.png")
        question = QUESTIONS[number % len(QUESTIONS)]
        lines.append(json.dumps({"image": f"{number}.png", "question": question, "answer": str(number % 10)}))
    (place / "questions.jsonl").write_text("\n".join(lines) + "\n")
    return place
