"""The words of the question model, and the tokenizers and the processor that know them."""

from __future__ import annotations

from typing import Any

from tokensieve.demo.questions.asking import BESIDE, PLURALS
from tokensieve.demo.questions.canvases import COLOURS, KINDS, PATCH, SIDE

# CLIPTextModel takes token 2 as the end of a text for something else, for the sake of old checkpoints.
PAD, BEGIN, UNKNOWN, END, IMAGE, ANSWER = "<pad>", "<s>", "<unk>", "</s>", "<image>", "<answer>"
SPECIAL = (PAD, BEGIN, UNKNOWN, END, IMAGE, ANSWER)
OTHERS = (
    "what colour is the which digit shape how many things one left right of above below in top bottom corner centre "
    "where nothing a and"
)
WORDS = tuple(
    dict.fromkeys([*SPECIAL, *KINDS, *COLOURS, *PLURALS.values(), *OTHERS.split(), *" ".join(BESIDE).split()])
)
"""The vocabulary; a word's place is its number."""
NUMBERS = {word: number for number, word in enumerate(WORDS)}
TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %} {{ part['text'] }}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} <answer>{% endif %}"
)
"""A turn: the image, the question, a token behind which the answer stands."""


def tokenizer(end: bool = False) -> Any:
    """A tokenizer of transformers: one token a word, lower case, punctuation left out.

    Args:
        end: whether a text ends with the token that the text tower of the pair reads it by.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel(vocab=NUMBERS, unk_token=UNKNOWN))
    inner.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex("[?!.,:;]"), " ")])
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}" if end else f"{BEGIN} $A",
        special_tokens=[(word, NUMBERS[word]) for word in (BEGIN, END)],
    )
    make: Any = PreTrainedTokenizerFast
    return make(
        tokenizer_object=inner,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=UNKNOWN,
        pad_token=PAD,
        additional_special_tokens=[IMAGE, ANSWER],
        padding_side="left",
    )


def processor() -> Any:
    """The ``LlavaProcessor`` of the question model: pictures to 96 × 96 pixels in [−1, 1], and the chat template."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    side = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(size=side, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    make: Any = LlavaProcessor
    return make(
        images,
        tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the strategy leaves out
        chat_template=TEMPLATE,
    )
