"""Prompts for vision-language models: by the processor of a model, or random ones where only speed matters."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from tokensieve.data.questions import Question
from tokensieve.errors import TokensieveError
from tokensieve.language.host import host_of
from tokensieve.language.images import Features

WORDS = 32  # of a random prompt, half of them behind the image
SIDE = 16  # rows and columns of a random picture's patches, where a tower takes any number
Inputs = dict[str, Any]


def placed(inputs: Inputs, device: str | torch.device, dtype: torch.dtype) -> Inputs:
    """Inputs on a device, those that are floating-point numbers in ``dtype``."""
    return {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in inputs.items()}


class Prompts(ABC):
    """Makes of questions what a model is called with, and of tokens texts."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the figures depend on, JSON-ready."""

    @abstractmethod
    def batch(self, questions: Sequence[Question]) -> Inputs:
        """The inputs of a model by name, on the CPU, rows padded on the left to one length.

        Raises:
            TokensieveError: an image cannot be read, or no prompt can be made of a question.
        """

    @abstractmethod
    def texts(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """The words of generated tokens."""


class ProcessorPrompts(Prompts):
    """Prompts by a processor of transformers.

    One that has a chat template makes a turn of a user with the image, then the question. Without one a prompt is the
    processor's image token, a line break and the question.

    Args:
        processor: of the model. Where its tokenizer has no token for padding, that of the end becomes it.

    Raises:
        TokensieveError: it does not take images and text.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer: Any = getattr(self.processor, "tokenizer", None)
        if self.tokenizer is None or getattr(self.processor, "image_processor", None) is None:
            raise TokensieveError(
                f"{type(processor).__name__} does not take images and text: give the processor of a vision-language "
                "model (AutoProcessor.from_pretrained)"
            )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.unk_token

    def settings(self) -> dict[str, Any]:
        return {"processor": type(self.processor).__name__, "template": self.templated}

    @property
    def templated(self) -> bool:
        """Whether there is a chat template."""
        return bool(getattr(self.processor, "chat_template", None))

    def text(self, question: str) -> str:
        """The prompt of a question, with a token where the image goes."""
        if not self.templated:
            image = getattr(self.processor, "image_token", None) or getattr(self.tokenizer, "image_token", None)
            if image is None:
                raise TokensieveError(
                    f"{type(self.processor).__name__} has neither a chat template nor an image_token: how a prompt "
                    "with an image looks is not known; give it a chat_template"
                )
            return f"{image}\n{question}"
        content = [{"type": "image"}, {"type": "text", "text": question}]
        turn = [{"role": "user", "content": content}]
        text: str = self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return text

    def batch(self, questions: Sequence[Question]) -> Inputs:
        pictures = [[question.picture()] for question in questions]
        where = questions[0].place
        try:
            texts = [self.text(question.question) for question in questions]
            begins = self.tokenizer.bos_token
            twice = self.templated and begins is not None and texts[0].startswith(begins)
            how = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
            how |= {"add_special_tokens": False} if twice else {}
            made = self.processor(images=pictures, text=texts, **how)
        except TokensieveError:
            raise
        except Exception as error:  # every processor fails in its own way
            reason = " ".join(str(error).split()) or type(error).__name__
            raise TokensieveError(
                f"{where}{type(self.processor).__name__} makes no prompt of {questions[0].question!r} with its image: "
                f"{reason}"
            ) from error
        # Some give labels too, for training.
        return {name: value for name, value in made.items() if isinstance(value, Tensor) and name != "labels"}

    def texts(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        return [str(self.tokenizer.decode(list(row), skip_special_tokens=True)) for row in tokens]


class RandomPrompts(Prompts):
    """A picture of noise with random words around it, the same for the same question: enough to time a model.

    Args:
        model: of transformers; its config says how large pictures are.

    Raises:
        TokensieveError: its pictures come in a shape that is not known here.
    """

    def __init__(self, model: nn.Module) -> None:
        host = host_of(model, "a random prompt")
        self.core: Any = host.core
        self.number = host.placeholders["image"]
        self.avoided = set(host.placeholders.values())
        self.vision: Any = getattr(self.core.config, "vision_config", None)
        text: Any = host.decoder.config
        self.words = int(text.vocab_size)
        self.types = "mm_token_type_ids" in inspect.signature(model.forward).parameters
        self.features = self._features()

    def settings(self) -> dict[str, Any]:
        return {"processor": None, "random_words": WORDS}

    def batch(self, questions: Sequence[Question]) -> Inputs:
        rows, pictures = [], []
        for question in questions:
            random = torch.Generator().manual_seed(int(question.question))
            words = torch.randint(self.words, (WORDS,), generator=random)
            for avoided in self.avoided:
                words[words == avoided] = (avoided + 1) % self.words
            image = torch.full((self.features,), self.number)
            rows.append(torch.cat([words[: WORDS // 2], image, words[WORDS // 2 :]]))
            pictures.append(self._picture(random))
        ids = torch.stack(rows)
        given = {name: torch.cat([picture[name] for picture in pictures]) for name in pictures[0]}
        given |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return given | ({"mm_token_type_ids": (ids == self.number).int()} if self.types else {})

    def texts(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        return [" ".join(map(str, row)) for row in tokens]

    def _picture(self, random: torch.Generator) -> Inputs:
        merged = getattr(self.vision, "spatial_merge_size", None)
        if merged is not None and hasattr(self.vision, "temporal_patch_size"):  # packed, as Qwen-VL has them
            channels = getattr(self.vision, "in_channels", getattr(self.vision, "in_chans", 3))
            width = channels * self.vision.temporal_patch_size * self.vision.patch_size**2
            pixels = torch.randn(SIDE * SIDE, width, generator=random)
            return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, SIDE, SIDE]])}
        size = getattr(self.vision, "image_size", None)
        if isinstance(size, int):
            size = (size, size)
        if not size:
            raise self._unknown("its config names no image_size")
        return {"pixel_values": torch.randn(1, 3, *size, generator=random)}

    def _features(self) -> int:
        """How many tokens a picture is, by trying one."""
        parameter = next(self.core.parameters())
        given = {
            name: value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
            for name, value in self._picture(torch.Generator().manual_seed(0)).items()
        }
        try:
            with torch.no_grad():
                return sum(Features.of(self.core.get_image_features(**given)).lengths)
        except TokensieveError:
            raise
        except Exception as error:  # every tower fails in its own way
            raise self._unknown(" ".join(str(error).split())[:160]) from error

    def _unknown(self, reason: str) -> TokensieveError:
        return TokensieveError(
            f"how pictures come into {type(self.core).__name__} is not known without its processor ({reason}): put "
            "what processor.save_pretrained writes beside its config"
        )


def random_questions(count: int) -> list[Question]:
    """So many questions for ``RandomPrompts``."""
    nothing = Image.new("RGB", (1, 1))
    return [Question(nothing, str(number)) for number in range(count)]
