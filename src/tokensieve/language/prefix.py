"""The prefix method asked: which tokens of a batch of sequences go into the decoder, and what stands there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.language.encoder import Prompt
from tokensieve.language.images import Image, stacked
from tokensieve.methods.language._prefix import Encoded, Kept, PrefixMethod, PrefixView


def choose(
    method: PrefixMethod,
    embeddings: Tensor,
    images: Sequence[Image],
    text: Sequence[Tensor],
    prompts: Sequence[Prompt] | None = None,
) -> tuple[Tensor, Tensor]:
    """Which tokens stay, and the embeddings that stand at their places.

    Args:
        method: decides.
        embeddings: (B, L, C) with the features of images at their places; never written into.
        images: where.
        text: (B) the embeddings (T, C) of the text of each row.
        prompts: (B) the text of each row by a text encoder, where one is given.

    Returns:
        (B, L) bool, the tokens that stay, and (B, L, C).
    """
    keep = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
    rows: list[Tensor] = []
    places: list[Tensor] = []
    values: list[Tensor] = []
    for group in _alike(method, images):
        where = torch.stack([image.places for image in group])
        row = torch.tensor([image.row for image in group], device=where.device).unsqueeze(1)
        view = PrefixView(
            method=method,
            features=embeddings[row, where],
            count=method.count(where.shape[1]),
            text=tuple(text[image.row] for image in group),
            grid=group[0].grid,
            signals=stacked([image.signals for image in group]),
            encoded=None if prompts is None else _encoded(method, group, prompts, embeddings.device),
        )
        kept = method.choose(view)
        _check(method, kept, view)
        keep[row, where] = False
        stay = where.gather(1, kept.places)
        keep[row, stay] = True
        if kept.values is not None:
            rows.append(row.expand_as(stay).flatten())
            places.append(stay.flatten())
            values.append(kept.values.flatten(0, 1).to(embeddings.dtype))
    if values:
        embeddings = embeddings.index_put((torch.cat(rows), torch.cat(places)), torch.cat(values))
    return keep, embeddings


def _encoded(method: PrefixMethod, images: Sequence[Image], prompts: Sequence[Prompt], device: torch.device) -> Encoded:
    """Images and their text by a text encoder.

    Raises:
        RefusedError: a feature is not a patch.
    """
    patches = [image.patches for image in images if image.patches is not None]
    if len(patches) < len(images):
        raise RefusedError(
            f"{method.name} compares every patch with the text by the text encoder, and here a feature is not a patch "
            "of one picture (tiles, pooling or packed images): leave text_encoder out, or use a model whose features "
            "are the patches of its tower"
        )
    own = [prompts[image.row] for image in images]
    texts = tuple(prompt.texts.to(device) for prompt in own)
    return Encoded(torch.stack(patches).to(device), texts, tuple(prompt.words.to(device) for prompt in own))


def _alike(method: PrefixMethod, images: Sequence[Image]) -> list[list[Image]]:
    """Images that are decided on together: those of one grid with as many features and signals, and each alone for
    methods whose counts follow the image. Those of which nothing would leave are not among them."""
    groups: dict[object, list[Image]] = {}
    for number, image in enumerate(images):
        features = len(image.places)
        if method.count(features) < features or method.ragged:
            alone = number if method.ragged else None
            groups.setdefault((features, image.grid, tuple(image.signals), alone), []).append(image)
    return list(groups.values())


def _check(method: PrefixMethod, kept: Kept, view: PrefixView) -> None:
    """Hold a decision to what was asked.

    Raises:
        TokensieveError: other counts, places out of order, or values that are not for these places.
    """
    images, features, channels = view.features.shape
    places = kept.places
    number = places.shape[1] if places.dim() == 2 else -1
    fits = number == view.count or (method.ragged and 1 <= number <= view.count)
    if places.dim() != 2 or len(places) != images or not fits:
        raise TokensieveError(
            f"{method.name} kept places of shape {tuple(places.shape)}: expected {view.count} of each of {images} "
            f"images with {features} features"
        )
    inside = bool((places >= 0).all() and (places < features).all())
    if not inside or (number > 1 and not bool((places[:, 1:] > places[:, :-1]).all())):
        raise TokensieveError(f"{method.name} kept places that are not ascending numbers below {features}")
    if kept.values is not None and kept.values.shape != (images, number, channels):
        raise TokensieveError(
            f"{method.name} gave values of shape {tuple(kept.values.shape)}: expected {(images, number, channels)}"
        )
