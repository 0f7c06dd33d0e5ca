"""A text tower beside the eyes of a vision-language model: what text-guided methods compare patches with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.errors import RefusedError, TokensieveError

KINDS = ("clip", "metaclip_2", "siglip")  # model types with a linear projection of each tower, and with pooling heads
PADDED = ("siglip",)  # trained with every text padded to the context, without a mask
SHARED = ("model_type", "hidden_size", "num_hidden_layers", "patch_size")  # of twins among vision towers


@dataclass(frozen=True)
class Prompt:
    """The text around the images of one sequence, in the space of a text encoder.

    Attributes:
        texts: (P, D) the embedding of each piece of it that the text tower takes at once; P is 0 where there is none.
        words: (T, D) the states of its single tokens, projected; those that begin and end a text are left out.
    """

    texts: Tensor
    words: Tensor


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """The two towers that the eyes of a vision-language model come from: they compare its patches with the prompt.

    Given as ``ts.apply(model, "cdpruner:tokens=64", text_encoder=encoder)``. Patches are what the last block of the
    vision-language model's tower gives, behind this model's last norm and projection (CLIP, Radford et al., 2021, arXiv
    2103.00020); SigLIP (Zhai et al., 2023, arXiv 2303.15343) has no projection, and a patch goes through its pooling
    head as the only one of its image: our choice. The text is the prompt without placeholders and special tokens, words
    of the chat template included. One that is longer than the context of the text tower is cut into pieces, each
    between the tokens that begin and end a text, and every piece counts alike. The encoder is read and never changed,
    moved or saved: put it on a device of your choice, tensors go there.

    Args:
        model: ``CLIPModel``, ``MetaClip2Model`` or ``SiglipModel`` of transformers, whose vision tower is the one in
            the vision-language model.
        tokenizer: its own, of transformers.
        prompt_tokenizer: that of the language model, which turns the words around the images back into text.

    Raises:
        TokensieveError: the model or a tokenizer is none of these.
    """

    model: Any
    tokenizer: Any
    prompt_tokenizer: Any

    def __post_init__(self) -> None:
        config = getattr(self.model, "config", None)
        kind = getattr(config, "model_type", None)
        if not isinstance(self.model, nn.Module) or kind not in KINDS:
            raise TokensieveError(
                "a text encoder is a CLIPModel, MetaClip2Model or SiglipModel of transformers with both of its towers, "
                f"got {type(self.model).__name__}"
            )
        if kind in PADDED and not hasattr(self.model.vision_model, "head"):
            raise TokensieveError(
                "this SiglipModel has no pooling head (vision_use_head=False), which brings patches to where texts "
                "are: give one with its head"
            )
        for name in ("tokenizer", "prompt_tokenizer"):
            given = getattr(self, name)
            if not callable(given) or not callable(getattr(given, "decode", None)):
                raise TokensieveError(f"{name} must be a tokenizer of transformers, got {type(given).__name__}")
        if kind in PADDED and self.tokenizer.pad_token_id is None:
            raise TokensieveError("tokenizer has no pad_token, with which SiglipModel takes every text: give its own")

    def __deepcopy__(self, memo: dict[int, Any]) -> TextEncoder:
        return self  # nobody changes it

    @property
    def padded(self) -> bool:
        """Whether every text is padded to the context."""
        return self.model.config.model_type in PADDED

    def refuse_host(self, core: nn.Module) -> None:
        """Refuse a vision-language model that has other eyes.

        Raises:
            RefusedError: names what differs.
        """
        own, other = self.model.config.vision_config, getattr(getattr(core, "config", None), "vision_config", None)
        for name in SHARED:
            here, there = getattr(own, name, None), getattr(other, name, None)
            if here != there:
                raise RefusedError(
                    f"the text encoder cannot read the patches of {type(core).__name__}: its vision tower has "
                    f"{name} {here}, that of the model {there}; give the two towers that the model's eyes come from"
                )

    @torch.no_grad()
    def patches(self, last: Tensor) -> Tensor:
        """(B, N, D) patches where texts are, of what the last block of a tower gives, (B, 1 + N, C) with a class token;
        of SigLIP's, (B, N, C), behind its last norm."""
        vision = self.model.vision_model
        norm = vision.post_layernorm.weight
        last = last.to(norm.device, norm.dtype)
        if self.padded:
            pooled: Tensor = vision.head(last.flatten(0, 1).unsqueeze(1))
            return pooled.view(*last.shape[:2], -1)
        projected: Tensor = self.model.visual_projection(vision.post_layernorm(last[:, 1:]))
        return projected

    def prompts(self, ids: Tensor | None, words: Tensor) -> list[Prompt]:
        """The text of each sequence.

        Args:
            ids: (B, L) int64 of the language model.
            words: (B, L) bool: which of them are text.
        """
        assert ids is not None  # where features stand is read from them
        texts = [self.text(row, own) for row, own in zip(ids.tolist(), words.tolist(), strict=True)]
        known = {text: self.encoded(text) for text in dict.fromkeys(texts)}
        return [known[text] for text in texts]

    def text(self, ids: Sequence[int], words: Sequence[bool]) -> str:
        """The text of a sequence: its ``words``, where they lie between images piece by piece."""
        pieces = []
        for text, run in groupby(zip(ids, words, strict=True), key=lambda pair: pair[1]):
            if text:
                pieces.append(self._decoded([number for number, _ in run]))
        return " ".join(piece for piece in pieces if piece)

    def _decoded(self, ids: list[int]) -> str:
        for number, token in zip(ids, self.prompt_tokenizer.convert_ids_to_tokens(ids), strict=True):
            if token is None:
                raise TokensieveError(
                    f"the prompt holds token {number}, which prompt_tokenizer does not know: give the tokenizer of the "
                    "language model"
                )
        return str(self.prompt_tokenizer.decode(ids, skip_special_tokens=True)).strip()

    @torch.no_grad()
    def encoded(self, text: str) -> Prompt:
        """A text where patches are."""
        tower = self.model.text_model
        project = tower.head if self.padded else self.model.text_projection
        device = tower.final_layer_norm.weight.device
        texts, words = [], []
        for ids, length, front in self._pieces(text):
            states = tower(input_ids=torch.tensor([ids], device=device)).last_hidden_state[0]
            texts.append(project(states[-1:]))
            words.append(project(states[front : front + length]))
        if not texts:
            nothing = project.weight.new_zeros(0, project.out_features)
            return Prompt(nothing, nothing)
        return Prompt(torch.cat(texts), torch.cat(words))

    def _pieces(self, text: str) -> Iterator[tuple[list[int], int, int]]:
        """The token numbers of each piece of a text, how many of them are words, and how many are before these."""
        words = list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []
        if not words:
            return
        config = self.model.config.text_config
        before, behind = self._ends(text, words)
        if max(words) >= config.vocab_size:
            raise TokensieveError(
                f"tokenizer gives token {max(words)}, and the text tower embeds {config.vocab_size}: give the "
                f"tokenizer of {type(self.model).__name__}"
            )
        context = config.max_position_embeddings
        room = context - len(before) - len(behind)
        for start in range(0, len(words), room):
            part = words[start : start + room]
            ids = [*before, *part, *behind]
            if self.padded:
                ids += [self.tokenizer.pad_token_id] * (context - len(ids))
            yield ids, len(part), len(before)

    def _ends(self, text: str, words: list[int]) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer puts before a text and behind it."""
        whole = list(self.tokenizer(text, verbose=False)["input_ids"])
        more = len(whole) - len(words)
        for front in range(more + 1):
            if whole[front : front + len(words)] == words and more - front > 0:
                return whole[:front], whole[front + len(words) :]
        raise TokensieveError(
            "tokenizer puts no token behind a text, whose state would stand for all of it: give the tokenizer as "
            f"{type(self.model).__name__} was trained with it"
        )
