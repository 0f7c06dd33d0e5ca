"""Recoverable Compression step by step, with scikit-learn's outliers: what stays, what comes back, what is merged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.helpers.prefix import Images, by_encoder, choose, random_images
from tests.helpers.references import prefix as plain
from tokensieve.methods.language._prefix import Encoded
from tokensieve.methods.language.recoverable import RecoverableCompression

GRID = (10, 12)
SIZE = 120


def by_formula(
    method: RecoverableCompression, image: Images
) -> tuple[list[int], list[torch.Tensor], dict[str, list[int]]]:
    encoded = image.encoded
    return plain.recoverable(
        image.features[0],
        image.attention[0],
        image.keys[0],
        image.text[0] if encoded is None else encoded.texts[0],
        method.count(image.features.shape[1]),
        method.merged,
        method.text_weight,
        None if encoded is None else encoded.patches[0],
    )


def patchy_image(words: int, seed: int) -> Images:
    """An image some of whose patches the tower hardly attends to, each at a level of its own, so that there are centres
    among what is not kept."""
    image = random_images(GRID, (words,), seed=seed)
    attention = 10 + image.attention.log() / 10
    attention[0, ::7] = torch.linspace(0.5, 6, len(range(0, SIZE, 7)), dtype=torch.float64)
    return replace(image, attention=attention / attention.sum() / 2)


def with_prompt(image: Images, *about: int) -> Images:
    """The image, with a text about these features, or about these patches where there is a text encoder."""
    if image.encoded is None:
        return replace(image, text=(image.features[0, list(about)],))
    patches = image.encoded.patches
    return replace(image, encoded=Encoded(patches, (patches[0, list(about)],), image.encoded.words))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "method",
    [
        RecoverableCompression(keep=1.0),
        RecoverableCompression(keep=0.2),
        RecoverableCompression(tokens=1),
        RecoverableCompression(tokens=9),
        RecoverableCompression(keep=1.0, merged=3),
        RecoverableCompression(keep=1.0, merged=0, text_weight=0.0),
    ],
    ids=str,
)
def test_it_is_its_formula(method: RecoverableCompression, seed: int) -> None:
    patchy = patchy_image(seed, seed)
    for image in (random_images(GRID, (seed,), seed=seed), patchy, by_encoder(patchy, seed=seed)):
        kept = choose(method, image)
        places, values, _ = by_formula(method, image)
        assert kept.places[0].tolist() == places
        assert kept.values is not None
        torch.testing.assert_close(kept.values[0], torch.stack(values), rtol=1e-12, atol=1e-12)


def test_every_step_has_something_to_do() -> None:
    method, found = RecoverableCompression(keep=1.0), []
    for seed in range(6):
        _, _, parts = by_formula(method, patchy_image(3, seed))
        found.append({name: len(places) for name, places in parts.items()})
        everything = [place for places in parts.values() for place in places]
        assert sorted(everything) == list(range(SIZE))  # nothing is lost, nothing is taken twice
    assert min(found[1].values()) > 0
    assert max(parts["centres"] for parts in found) > 2


@pytest.mark.parametrize("encoder", [False, True])
def test_the_count_follows_the_image(encoder: bool) -> None:
    method = RecoverableCompression(keep=1.0)
    calm = random_images(GRID, (0,), seed=0)
    even = replace(calm, attention=torch.linspace(1, 2, SIZE, dtype=torch.float64)[None] / 180)
    counts = [choose(method, image).places.shape[1] for image in (calm, even)]
    assert counts == [len(by_formula(method, image)[0]) for image in (calm, even)]
    assert counts[0] > counts[1] == 1
    one = random_images(GRID, (2,) * 8, seed=1)
    one = by_encoder(one) if encoder else one
    assert len({choose(method, one.one(number)).places.shape[1] for number in range(8)}) > 3


@pytest.mark.parametrize("encoder", [False, True])
def test_what_is_recovered_moves_with_the_prompt(encoder: bool) -> None:
    method = RecoverableCompression(keep=1.0, merged=0)
    image = random_images(GRID, (0,), channels=32, seed=2)
    image = by_encoder(image, channels=32) if encoder else image
    quiet = image.attention[0].argsort()[:40].tolist()  # nothing that the tower attends to
    one, other = with_prompt(image, quiet[3]), with_prompt(image, quiet[30])
    first, second = (set(choose(method, asked).places[0].tolist()) for asked in (one, other))
    assert quiet[3] in first and quiet[3] not in second
    assert quiet[30] in second and quiet[30] not in first
    seen = set(by_formula(method, image)[2]["seen"])
    assert seen and seen <= first & second


def test_nothing_is_recovered_without_a_text() -> None:
    method = RecoverableCompression(keep=1.0)
    image = random_images(GRID, (0,), seed=3)
    places, _, parts = by_formula(method, image)
    assert not parts["recovered"] and parts["seen"]
    assert choose(method, image).places[0].tolist() == places


def test_the_cap_cuts_what_comes_later_first() -> None:
    image = patchy_image(3, seed=0)
    _, _, parts = by_formula(RecoverableCompression(keep=1.0), image)
    order = [*parts["seen"], *parts["recovered"], *parts["centres"]]
    assert len(parts["seen"]) > 2 and parts["recovered"] and parts["centres"]
    for cap in range(1, len(order) + 1):
        places = choose(RecoverableCompression(tokens=cap), image).places[0].tolist()
        assert len(places) == cap
        assert set(order[: min(cap, len(parts["seen"]))]) <= set(places)
    assert places == sorted(order)


def test_tokens_that_stay_are_untouched_and_what_is_left_becomes_the_last_of_them() -> None:
    image = patchy_image(3, seed=1)
    kept = choose(RecoverableCompression(keep=1.0), image)
    places, _, parts = by_formula(RecoverableCompression(keep=1.0), image)
    assert kept.values is not None
    for place in parts["seen"] + parts["recovered"]:
        assert torch.equal(kept.values[0, places.index(place)], image.features[0, place])
    left = parts["left"]
    expected = (image.attention[0, left, None] * image.features[0, left]).sum(dim=0)
    torch.testing.assert_close(kept.values[0, places.index(left[-1])], expected)
