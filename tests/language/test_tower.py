"""What prefix methods read of the tower where a feature is made of several patches: the mean over these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tokensieve as ts
from tests.helpers.generating import over
from tests.helpers.languages import LANGUAGES, SIDE, Inputs, Language, Row, named
from tests.helpers.towers_heard import groups_in_windows, of_patches, squares
from tokensieve.errors import RefusedError
from tokensieve.families._layout import Layout
from tokensieve.language.running import SEEN
from tokensieve.language.tower import whole_block
from tokensieve.methods.language._prefix import Kept, PrefixMethod, PrefixView, TowerSignals

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("without_gradients")
CLOSE = {"rtol": 1e-4, "atol": 1e-6}
PACKED = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen3.5")
SHOWN: list[dict[int, TowerSignals]] = []
ROWS = (Row(1, size=(SIDE, 96)), Row(2, words=3, seed=1), Row(1, words=2, seed=2, size=(32, SIDE)))


@dataclass(frozen=True, kw_only=True)
class Shown(PrefixMethod):
    """Keeps the first features, and notes what it is shown of the tower.

    Options:
        behind: how many blocks are behind the one that it reads.
    """

    behind: int = 1

    def blocks(self, depth: int) -> tuple[int, ...]:
        return (depth - 1 - self.behind,)

    def choose(self, view: PrefixView) -> Kept:
        SHOWN.append({0: view.tower})
        images = len(view.features)
        return Kept(torch.arange(view.count).expand(images, -1))


@pytest.fixture(autouse=True)
def _nothing_shown() -> Iterator[None]:
    SHOWN.clear()
    yield
    SHOWN.clear()


def shown(language: Language, inputs: Inputs, behind: int = 1) -> list[TowerSignals]:
    """What a method is shown, group by group."""
    ts.apply(language.build(), [Shown(tokens=2, behind=behind)])(**inputs)
    return [signals for seen in SHOWN for signals in seen.values()]


def meant(values: Tensor, members: list[list[int]]) -> Tensor:
    return torch.stack([values[own].mean(dim=0) for own in members])


@over(named(PACKED))
@pytest.mark.parametrize("behind", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_features_of_packed_images_are_groups_of_patches(language: Language, behind: int) -> None:
    inputs = language.inputs(*ROWS)
    # Of Qwen2.5-VL's three blocks here the second alone sees an image as a whole.
    block = 1 if language.name == "qwen2.5-vl" else 2 - behind
    importance, keys = of_patches(language.build(), inputs)[block]
    expected, start = {}, 0
    for number, (_, high, wide) in enumerate(inputs["image_grid_thw"].tolist()):
        rows, columns = high // 2, wide // 2
        lies = groups_in_windows(rows, columns, 2) if language.name == "qwen2.5-vl" else range(rows * columns)
        members = [[start + 4 * place + one for one in range(4)] for place in range(rows * columns)]
        in_order = [members[list(lies).index(group)] for group in range(rows * columns)]
        expected[number] = meant(importance, in_order), meant(keys, in_order)
        start += high * wide
    found = {len(signals.importance[0]): signals for signals in shown(language, inputs, behind)}
    for number, place, size in ((0, 0, 24), (1, 0, 16), (2, 1, 16), (3, 0, 8)):
        assert not found[size].class_token
        torch.testing.assert_close(found[size].importance[place].double(), expected[number][0], **CLOSE)
        torch.testing.assert_close(found[size].keys[place].double(), expected[number][1], **CLOSE)


@over(named(("qwen2.5-vl", "qwen2-vl")))
def test_frames_of_a_video_are_heard_as_pictures_are(language: Language) -> None:
    inputs: Any = language.inputs(Row(2))
    model: Any = ts.apply(language.build(), [Shown(tokens=2)])
    images = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    video = model.model.get_video_features(inputs["pixel_values"], torch.tensor([[2, 8, 8]]))
    of_images, of_video = getattr(images, SEEN), getattr(video, SEEN)
    assert of_images.lengths == (16, 16) and of_video.lengths == (32,)
    (one,), (other,) = of_images.signals.values(), of_video.signals.values()
    assert torch.equal(one.importance, other.importance) and torch.equal(one.keys, other.keys)


def test_the_nearest_block_that_sees_a_whole_image_is_read() -> None:
    layout = Layout(8, 16, 2, prefix=0, class_token=False, grid=(4,), windowed=frozenset({0, 2, 3, 5, 6}))
    assert [whole_block(block, layout) for block in range(8)] == [1, 1, 1, 4, 4, 4, 7, 7]
    with pytest.raises(RefusedError, match="no block of the tower lets an image attend to itself as a whole"):
        whole_block(6, replace(layout, windowed=frozenset(range(8))))


@over(named(("internvl", "idefics3", "smolvlm", "gemma3")))
def test_features_of_shuffled_and_pooled_patches_are_squares_of_them(language: Language) -> None:
    inputs = language.inputs(Row(1), Row(2, words=3, seed=1))
    importance, keys = of_patches(language.build(), inputs)[1]
    (signals,) = shown(language, inputs)
    assert signals.class_token == (language.name == "internvl")
    for picture in range(3):
        members = squares(8, 8, 2)
        own = slice(64 * picture, 64 * (picture + 1))
        torch.testing.assert_close(signals.importance[picture].double(), meant(importance[own], members), **CLOSE)
        torch.testing.assert_close(signals.keys[picture].double(), meant(keys[own], members), **CLOSE)


@over(named(("qwen2.5-vl", "internvl")))
def test_a_patch_that_was_merged_in_the_tower_has_the_signals_of_its_token(language: Language) -> None:
    inputs = language.inputs(Row(1))
    (without,) = shown(language, inputs)
    SHOWN.clear()
    ts.apply(language.build(), [*ts.parse("tome:r=24:sites=[0]"), Shown(tokens=2)])(**inputs)
    (signals,) = (one for seen in SHOWN for one in seen.values())
    assert signals.importance.shape == without.importance.shape and signals.importance.isfinite().all()
    assert not torch.allclose(signals.keys, without.keys)


@over([one for one in LANGUAGES if not one.reads_tower])
def test_features_that_are_no_groups_of_patches_are_refused(language: Language) -> None:
    with pytest.raises(RefusedError, match=r"visionzip reads the attention of the tower .* nor a known group of such"):
        ts.apply(language.build(), "visionzip:tokens=6")(**language.inputs(Row(1)))
