"""Views for prefix methods, as a host would give them, from random images or from tensors at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokensieve.methods.language._prefix import Encoded, Kept, PrefixMethod, PrefixView, TowerSignals
from tokensieve.methods.language.cdpruner import CDPruner
from tokensieve.methods.language.eadp import EADP
from tokensieve.methods.language.evs import EVS
from tokensieve.methods.language.mmtok import MMTok
from tokensieve.methods.language.prumerge import PruMerge
from tokensieve.methods.language.recoverable import RecoverableCompression
from tokensieve.methods.language.sparsity_meets_similarity import SparsityMeetsSimilarity
from tokensieve.methods.language.vidcom2 import VidCom2
from tokensieve.methods.language.vispruner import VisPruner

METHODS: Mapping[str, type[PrefixMethod]] = {
    "vispruner": VisPruner,
    "prumerge": PruMerge,
    "cdpruner": CDPruner,
    "mmtok": MMTok,
    "eadp": EADP,
    "recoverable": RecoverableCompression,
    "sparsity-meets-similarity": SparsityMeetsSimilarity,
    "evs": EVS,
    "vidcom2": VidCom2,
}
DEPTH = 12


@dataclass(frozen=True)
class Images:
    """B images or videos, N features each.

    Attributes:
        features: (B, N, C).
        attention: (B, N), heavy in a few places.
        keys: (B, N, D).
        text: (B) of (T, C).
        grid: the axes of the N.
        encoded: what a text encoder makes of them and of the text, where there is one.
    """

    features: Tensor
    attention: Tensor
    keys: Tensor
    text: tuple[Tensor, ...]
    grid: tuple[int, ...] | None
    encoded: Encoded | None = None

    def one(self, number: int) -> Images:
        """The image of that number, alone."""
        own = slice(number, number + 1)
        encoded = self.encoded
        if encoded is not None:
            encoded = Encoded(encoded.patches[own], encoded.texts[own], encoded.words[own])
        return replace(
            self,
            features=self.features[own],
            attention=self.attention[own],
            keys=self.keys[own],
            text=self.text[own],
            encoded=encoded,
        )


def random_images(
    grid: tuple[int, ...],
    words: Sequence[int],
    *,
    channels: int = 16,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Images:
    """As many images as there are numbers of words."""
    chance = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=chance, dtype=torch.float64)

    size, number = int(torch.tensor(grid).prod()), len(words)
    features = random(number, size, channels)
    attention = (2 * random(number, size)).softmax(dim=1)
    # Words are about a few features each, so that relevance has outliers.
    text = tuple(
        random(count, channels) / 2 + features[image, torch.randint(size, (count,), generator=chance)]
        for image, count in enumerate(words)
    )
    keys = features[:, :, : channels // 2] + random(number, size, channels // 2) / 2
    return Images(features.to(dtype), attention.to(dtype), keys.to(dtype), tuple(one.to(dtype) for one in text), grid)


def by_encoder(images: Images, channels: int = 12, seed: int = 0) -> Images:
    """The images beside a text encoder: patches of their own, and for each text one embedding and as many words."""
    chance = torch.Generator().manual_seed(100 + seed)
    number, size, _ = images.features.shape
    patches = torch.randn(number, size, channels, generator=chance, dtype=torch.float64)
    words = tuple(
        torch.randn(len(text), channels, generator=chance, dtype=torch.float64) / 2
        + patches[image, torch.randint(size, (len(text),), generator=chance)]
        for image, text in enumerate(images.text)
    )
    texts = tuple(own.mean(dim=0, keepdim=True)[: len(own)] for own in words)
    return replace(images, encoded=Encoded(patches, texts, words))


def view_of(method: PrefixMethod, images: Images) -> PrefixView:
    """What ``method`` is shown of them, in a tower of 12 blocks."""
    signals = TowerSignals(images.attention, images.keys, class_token=True)
    return PrefixView(
        method=method,
        features=images.features,
        count=method.count(images.features.shape[1]),
        text=images.text,
        grid=images.grid,
        signals={block: signals for block in method.blocks(DEPTH)},
        encoded=images.encoded,
    )


def choose(method: PrefixMethod, images: Images) -> Kept:
    """The decision of ``method``, held to what a host asks of every decision."""
    view = view_of(method, images)
    kept = method.choose(view)
    number, features, channels = images.features.shape
    assert kept.places.dtype == torch.int64 and kept.places.dim() == 2 and len(kept.places) == number
    assert int(kept.places.min()) >= 0 and int(kept.places.max()) < features
    assert bool((kept.places.diff(dim=1) > 0).all())
    count = kept.places.shape[1]
    assert 1 <= count <= view.count if method.ragged else count == view.count
    if kept.values is not None:
        assert kept.values.shape == (number, count, channels)
        assert kept.values.dtype == images.features.dtype
        assert bool(kept.values.isfinite().all())
    return kept
