"""Object recognition as next-token prediction: a decoder of few layers spells out what a tower's patches show.

Yue, Chen, Geiping, Li, Goldstein, Lim, 2023, arXiv 2312.02142. Patches without the class token go through a linear
layer and stand in front of the prompt "the objects in the image are". The features see each other both ways; the words
of a label see the features, the prompt, and the earlier words of their own label, so that all labels of an image are
spelled at the same time. A label's probability is the product of those of its tokens, its end among them.

Our choice where the paper is silent or a tokenizer of its own is asked for: a token is a whole word; the words of the
prompt see the features and the words before them; every label begins at the position behind the prompt, so that it is
the same alone as beside others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.language.sieved import plan_of
from tokensieve.language.words import END, IMAGE, Words

PROMPT = "the objects in the image are"
PREFIX = 0  # the segment of features and prompt; those of labels count from 1
PADDING = -1  # the segment of what nobody sees


def label_mask(segments: Tensor, features: Tensor) -> Tensor:
    """Who sees whom.

    Args:
        segments: (B, L) int64: 0 for features and prompt, n for the words of the n-th label, -1 for padding.
        features: (B, L) bool: where features stand.

    Returns:
        (B, 1, L, L) bool: whether the token of a row sees that of a column. Padding sees padding, which nobody reads.
    """
    place = torch.arange(segments.shape[1], device=segments.device)
    same = segments.unsqueeze(2) == segments.unsqueeze(1)
    sees = ((segments == PREFIX).unsqueeze(1) | same) & (place <= place.unsqueeze(1))
    return (sees | (features.unsqueeze(2) & features.unsqueeze(1))).unsqueeze(1)


def label_positions(segments: Tensor) -> Tensor:
    """(B, L) int64: the position of each token of (B, L) ``segments``; every label begins behind the prompt."""
    place = torch.arange(segments.shape[1], device=segments.device)
    same = segments.unsqueeze(2) == segments.unsqueeze(1)
    rank = (same & (place < place.unsqueeze(1))).sum(dim=2)
    prefix = (segments == PREFIX).sum(dim=1, keepdim=True)
    return torch.where(segments == PREFIX, rank, prefix + rank)


@dataclass(frozen=True)
class Label:
    """What a labeller says of an image.

    Attributes:
        text: words with a space between.
        probability: the product over its tokens, the end among them.
    """

    text: str
    probability: float


@dataclass
class Spelled:
    """What one call of a labeller answers.

    Attributes:
        logits: (B, T, V) of the last T tokens of the call.
        cache: of the decoder, where one was asked for.
    """

    logits: Tensor
    cache: Any = None


class Labeller(nn.Module):
    """A tower of timm, a linear layer and a small Llama of transformers, in the shape of a vision-language model, whose
    methods act on this one too (``ts.apply(labeller, "divprune:tokens=64")``).

    Args:
        tower: a vision transformer of timm; its patches are read, its class token and its head are not.
        words: the vocabulary, which has the words of the prompt.
        prompt: stands between the features and the labels.
        width: channels of the decoder.
        hidden: of its gated MLPs.
        layers: how many it has.
        heads: of each, a divisor of ``width``.

    Raises:
        TokensieveError: the prompt has a word that the vocabulary does not have.
    """

    def __init__(
        self,
        tower: nn.Module,
        words: Words,
        *,
        prompt: str = PROMPT,
        width: int = 192,
        hidden: int = 384,
        layers: int = 2,
        heads: int = 3,
    ) -> None:
        from transformers import LlamaConfig, LlamaModel

        super().__init__()
        self.words, self.prompt = words, tuple(words.encode(prompt))
        self.config = LlamaConfig(
            hidden_size=width,
            intermediate_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            vocab_size=len(words),
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=END,
        )
        self.config.image_token_id = IMAGE  # type: ignore[attr-defined]
        eyes: Any = tower
        self.vision_tower = eyes
        self.multi_modal_projector = nn.Linear(eyes.num_features, width)
        self.language_model = LlamaModel(self.config)

    def get_image_features(self, pixel_values: Tensor) -> Any:
        """The features of images (B, 3, H, W): ``pooler_output`` (B, N, width), and what the tower gave, (B, N, C), as
        ``last_hidden_state``."""
        states = self.vision_tower.forward_features(pixel_values)
        return self.features_of(states[:, self.vision_tower.num_prefix_tokens :])

    def features_of(self, patches: Tensor) -> Any:
        """The features of (B, N, C) patches that the tower gave before."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        projected: Any = self.multi_modal_projector(patches)
        return BaseModelOutputWithPooling(last_hidden_state=patches, pooler_output=projected)  # type: ignore[arg-type]

    def prefix_ids(self, images: int, features: int) -> Tensor:
        """(images, features + P) int64: the places of features, and the prompt behind them."""
        ids = [IMAGE] * features + list(self.prompt)
        return torch.tensor(ids, device=self.multi_modal_projector.weight.device).expand(images, -1)

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        segments: Tensor | None = None,
        *,
        mm_encoder_outputs: Mapping[str, Any] | None = None,
        cache: Any = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> Spelled:
        """Logits of the next token behind each token of this call.

        Args:
            input_ids: (B, L) int64.
            pixel_values: (B, 3, H, W), of which a row has as many features as places for them; or
            mm_encoder_outputs: {"image": what ``get_image_features`` gave}.
            segments: (B, U) int64 of all tokens so far, those in the cache first; see ``label_mask``. Default: all 0.
            cache: of earlier calls.
            use_cache: whether to answer with one.
            logits_to_keep: of the last so many tokens; 0 for all.

        Raises:
            TokensieveError: features and places for them are not equally many.
            RefusedError: labels stand beside the image in one call, and the method applied reads the text.
        """
        embeddings = self.language_model.embed_tokens(input_ids)
        outputs = dict(mm_encoder_outputs or {}).get("image")
        if outputs is None and pixel_values is not None:
            outputs = self.get_image_features(pixel_values)
        places = input_ids == IMAGE
        if outputs is not None:
            embeddings = _with_features(embeddings, places, outputs.pooler_output)
        past = 0 if cache is None else int(cache.get_seq_length())
        if segments is None:
            segments = input_ids.new_full((len(input_ids), past + input_ids.shape[1]), PREFIX)
        if outputs is not None and bool((segments > PREFIX).any()):
            self._refuse_labels()
        before = places.new_zeros(len(places), past)
        mask = label_mask(segments, torch.cat([before, places], dim=1))[:, :, past:]
        decoded = self.language_model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=label_positions(segments)[:, past:],
            cache=cache,
            use_cache=use_cache,
        )
        states = decoded.last_hidden_state[:, -logits_to_keep:]
        logits = nn.functional.linear(states, self.language_model.embed_tokens.weight)
        return Spelled(logits, decoded.cache)

    def _refuse_labels(self) -> None:
        plan = plan_of(self)
        if plan is not None and plan.prefix is not None and plan.prefix.reads_text:
            raise RefusedError(
                f"{plan.prefix.name} reads the text around the image, and labels in the same call would be text: give "
                "features and prompt first, and the labels in a second call on its cache, as label() does"
            )

    @torch.no_grad()
    def label(
        self,
        pixel_values: Tensor | None = None,
        count: int = 10,
        longest: int = 8,
        *,
        mm_encoder_outputs: Mapping[str, Any] | None = None,
    ) -> list[list[Label]]:
        """The labels of images, spelled at the same time: one for each of the ``count`` most probable first tokens,
        which goes on with the most probable token until its end.

        Args:
            pixel_values: (B, 3, H, W); or
            mm_encoder_outputs: {"image": what ``get_image_features`` gave}.
            count: labels of an image.
            longest: most tokens of a label, its end included; one without an end by then is cut there.

        Returns:
            The labels of each image, the most probable first.

        Raises:
            TokensieveError: no image is given, or ``count`` or ``longest`` is out of range.
        """
        most = len(self.words.known)
        if not 1 <= count <= most or longest < 1:
            raise TokensieveError(f"labels are 1 to {most} of 1 token or more, got count={count} and longest={longest}")
        given = dict(mm_encoder_outputs or {})
        if "image" not in given:
            if pixel_values is None:
                raise TokensieveError("no image was given: give pixel_values, or mm_encoder_outputs with the image")
            given["image"] = self.get_image_features(pixel_values)
        images, features = given["image"].pooler_output.shape[:2]
        ids = self.prefix_ids(images, features)
        answer = self(ids, mm_encoder_outputs=given, use_cache=True, logits_to_keep=1)
        chances = answer.logits[:, -1].softmax(dim=1)
        first, tokens = chances[:, IMAGE + 1 :].topk(count, dim=1)
        tokens = tokens + IMAGE + 1
        segments = torch.full_like(ids, PREFIX)
        spelled, chance = _continued(self, tokens, first, segments, answer.cache, longest)
        return [
            sorted(
                (Label(self.words.decode(one), value) for one, value in zip(rows, values, strict=True)),
                key=lambda label: -label.probability,
            )
            for rows, values in zip(spelled.tolist(), chance.tolist(), strict=True)
        ]


def _continued(
    model: Labeller, tokens: Tensor, chance: Tensor, segments: Tensor, cache: Any, longest: int
) -> tuple[Tensor, Tensor]:
    """(B, K, T) the tokens of labels that begin with ``tokens`` (B, K), and (B, K) their probabilities."""
    spelled = [tokens]
    label = torch.arange(1, tokens.shape[1] + 1, device=tokens.device).expand_as(tokens)
    for _ in range(longest - 1):
        ended = spelled[-1] == END
        if bool(ended.all()):
            break
        segments = torch.cat([segments, label], dim=1)
        answer = model(spelled[-1], segments=segments, cache=cache, use_cache=True)
        best = answer.logits.softmax(dim=2).max(dim=2)
        chance = torch.where(ended, chance, chance * best.values)
        spelled.append(torch.where(ended, END, best.indices))
        cache = answer.cache
    return torch.stack(spelled, dim=2), chance


def _with_features(embeddings: Tensor, places: Tensor, features: Tensor) -> Tensor:
    """``embeddings`` (B, L, C) with ``features`` (B, N, C) at their ``places`` (B, L).

    Raises:
        TokensieveError: they are not equally many.
    """
    found = places.sum(dim=1).tolist()
    if len(features) != len(places) or any(number != features.shape[1] for number in found):
        raise TokensieveError(
            f"{len(features)} images of {features.shape[1]} features need as many rows with as many places for them, "
            f"got {found}"
        )
    return embeddings.masked_scatter(places.unsqueeze(2), features.to(embeddings.dtype))
