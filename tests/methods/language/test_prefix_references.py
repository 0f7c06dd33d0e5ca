"""Every prefix method against its formula written again in plain loops, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.prefix import Images, by_encoder, choose, random_images
from tests.helpers.references import prefix as plain
from tokensieve.methods.language._prefix import PrefixMethod
from tokensieve.methods.language.cdpruner import CDPruner
from tokensieve.methods.language.eadp import EADP
from tokensieve.methods.language.evs import EVS
from tokensieve.methods.language.mmtok import MMTok
from tokensieve.methods.language.prumerge import PruMerge
from tokensieve.methods.language.sparsity_meets_similarity import SparsityMeetsSimilarity
from tokensieve.methods.language.vidcom2 import VidCom2
from tokensieve.methods.language.vispruner import VisPruner


def by_formula(method: Any, image: Images) -> list[int]:
    """What the plain reference of ``method`` keeps of one image."""
    features, attention, text = image.features[0], image.attention[0], image.text[0]
    encoded = image.encoded
    assert image.grid is not None
    match method:
        case VisPruner():
            return plain.vispruner(features, attention, method.tokens, method.important, method.removed)
        case CDPruner() if encoded is not None:
            return plain.cdpruner(features, encoded.texts[0], method.tokens, method.theta, encoded.patches[0])
        case CDPruner():
            return plain.cdpruner(features, text, method.tokens, method.theta)
        case MMTok():
            temperatures = (method.text_temperature, method.image_temperature)
            return plain.mmtok(features, text, method.tokens, temperatures, method.image_weight)
        case EADP():
            pair = None if encoded is None else (encoded.patches[0], encoded.texts[0])
            words = text if encoded is None else encoded.words[0]
            return plain.eadp(features, words, method.tokens, method.power, method.sigma, image.grid, pair)
        case SparsityMeetsSimilarity():
            return plain.sparsity_meets_similarity(attention, method.tokens)
        case EVS():
            return plain.evs(features, image.grid[0], method.tokens)
        case VidCom2():
            return plain.vidcom2(features, image.grid[0], method.tokens, method.temperature)
    raise AssertionError(f"no reference of {method}")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "method",
    [
        VisPruner(tokens=1),
        VisPruner(tokens=7),
        VisPruner(tokens=7, removed=1),
        VisPruner(tokens=9, important=0.0, removed=2),
        VisPruner(tokens=9, important=1.0),
        VisPruner(tokens=23, important=0.3),
        CDPruner(tokens=1),
        CDPruner(tokens=5),
        CDPruner(tokens=12),
        CDPruner(tokens=12, theta=0.0),
        CDPruner(tokens=8, theta=0.5),
        CDPruner(tokens=8, theta=0.9),
        MMTok(tokens=1),
        MMTok(tokens=10),
        MMTok(tokens=6, text_temperature=0.2, image_weight=0.1),
        MMTok(tokens=6, text_temperature=0.2, image_weight=10.0),
        MMTok(tokens=17, text_temperature=0.1, image_temperature=0.5, image_weight=2.0),
        EADP(tokens=1),
        EADP(tokens=10),
        EADP(tokens=6, power=2.0, sigma=0.0),
        EADP(tokens=6, power=1.0, sigma=0.5),
        SparsityMeetsSimilarity(tokens=2),
        SparsityMeetsSimilarity(tokens=24),
    ],
    ids=str,
)
def test_an_image_is_reduced_by_the_formula(method: PrefixMethod, seed: int) -> None:
    images = random_images((4, 6), (5, 0, 1, 8), seed=seed)
    for number in range(4):
        one = images.one(number)
        assert choose(method, one).places[0].tolist() == by_formula(method, one)


@pytest.mark.parametrize("method", [CDPruner(tokens=9), EADP(tokens=9, power=2.0)], ids=str)
def test_an_image_beside_a_text_encoder_is_reduced_by_the_formula(method: PrefixMethod) -> None:
    images = by_encoder(random_images((4, 6), (5, 0, 1, 8)))
    for number in range(4):
        one = images.one(number)
        assert choose(method, one).places[0].tolist() == by_formula(method, one)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "method",
    [
        *(EVS(tokens=tokens) for tokens in (6, 7, 13, 23)),
        *(VidCom2(tokens=tokens, temperature=heat) for tokens in (1, 5, 11, 20, 23) for heat in (0.01, 0.3)),
    ],
    ids=str,
)
def test_a_video_is_reduced_by_the_formula(method: PrefixMethod, seed: int) -> None:
    for channels in (15, 16):
        moving = random_images((4, 2, 3), (0,), channels=channels, seed=seed)
        still = moving.features[:, :6].repeat(1, 4, 1)
        changes = torch.rand(1, 24, 1, dtype=torch.float64) > 0.5
        partly = Images(
            torch.where(changes, moving.features, still), moving.attention, moving.keys, moving.text, moving.grid
        )
        for video in (moving, partly):
            assert choose(method, video).places[0].tolist() == by_formula(method, video)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tokens", [1, 4, 9, 30])
@pytest.mark.parametrize(("plus", "merged"), [(False, 32), (False, 3), (True, 5), (True, 0), (False, 0)])
def test_prumerge_is_its_formula(tokens: int, plus: bool, merged: int, seed: int) -> None:
    image = random_images((5, 6), (0,), seed=seed)
    kept = choose(PruMerge(tokens=tokens, plus=plus, merged=merged), image)
    places, values = plain.prumerge(image.features[0], image.attention[0], image.keys[0], tokens, plus, merged)
    assert kept.places[0].tolist() == places
    stands = image.features[:, places] if kept.values is None else kept.values
    torch.testing.assert_close(stands[0], torch.stack(values), rtol=1e-12, atol=1e-12)
