"""Prompts by processors of several kinds, without a chat template, measured on small models of their kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

import tokensieve.answers as answers
from tests.helpers.languages import IMAGE, VIDEO, named

transformers = pytest.importorskip("transformers")
SIDES = {"height": 64, "width": 64}
WORDS = ["how", "many", "sevens", "are", "there", "what", "is", "red"]


def tokenizer(image: str, *others: str, **names: Any) -> Any:
    import tokenizers

    ids = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, image: IMAGE, "<video>": VIDEO}
    ids |= {word: 10 + number for number, word in enumerate(WORDS)} | {one: 80 + n for n, one in enumerate(others)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=[image, "<video>", *others],
        **names,
    )


def qwen2_vl() -> Any:
    sizes = {"min_pixels": 32**2, "max_pixels": 64**2}
    images = transformers.Qwen2VLImageProcessor(patch_size=8, temporal_patch_size=2, merge_size=2, **sizes)
    words = tokenizer("<|image_pad|>", "<|vision_start|>", "<|vision_end|>")
    return transformers.Qwen2VLProcessor(images, words, transformers.Qwen2VLVideoProcessor())


def paligemma() -> Any:
    images = transformers.SiglipImageProcessor(size=SIDES)
    images.image_seq_length = 16
    return transformers.PaliGemmaProcessor(images, tokenizer("<image>"))


def idefics3() -> Any:
    longest = {"longest_edge": 64}
    images = transformers.Idefics3ImageProcessor(size=longest, max_image_size=longest, do_image_splitting=False)
    words = tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    return transformers.Idefics3Processor(images, words, image_seq_len=16)


def gemma3() -> Any:
    names = {"image_token": "<soft>", "boi_token": "<begin>", "eoi_token": "<end>"}
    words = tokenizer("<soft>", "<begin>", "<end>", extra_special_tokens=names)
    return transformers.Gemma3Processor(transformers.Gemma3ImageProcessor(size=SIDES), words, image_seq_length=16)


def mistral3() -> Any:
    images = transformers.PixtralImageProcessor(size={"longest_edge": 64}, patch_size=8)
    words = tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    return transformers.PixtralProcessor(images, words, patch_size=8, spatial_merge_size=2)


def llava_next() -> Any:
    images = transformers.LlavaNextImageProcessor(size=SIDES, crop_size=SIDES, image_grid_pinpoints=[[128, 64]])
    options = {"patch_size": 16, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return transformers.LlavaNextProcessor(images, tokenizer("<image>"), **options)


# Image tokens of a picture of 70 × 90 pixels, and whether it can be made smaller.
CASES: dict[str, tuple[Callable[[], Any], int, bool]] = {
    "qwen2-vl": (qwen2_vl, 12, True),
    "paligemma": (paligemma, 16, True),
    "idefics3": (idefics3, 16, True),
    "gemma3": (gemma3, 16, False),
    "mistral3": (mistral3, 16, True),
    "llava-next": (llava_next, 36, False),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_questions_by_processors_of_several_kinds(name: str) -> None:
    make, features, smaller = CASES[name]
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 70, 90, 3), generator=random, dtype=torch.uint8).numpy()
    questions = [
        answers.Question(Image.fromarray(picture), text)
        for picture, text in zip(pixels, ("how many sevens are there", "what is red"), strict=True)
    ]
    (language,) = named([name])
    model = language.build().float()
    measured = answers.bench(model, make(), questions, ["divprune:keep=0.25"], batch_size=2, max_new_tokens=3)
    dense, *others = measured.rows
    assert dense.metrics["image tokens"] == features
    assert all(row.metrics["image tokens"] <= features // 4 and row.metrics["KL"] > 0 for row in others)
    assert len(others) == (4 if smaller else 3)
    assert ("cannot see less of a picture" in " ".join(measured.left_out.values())) == (not smaller)
