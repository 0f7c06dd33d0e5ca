"""What input methods decide, by their formulas: the size of a smaller picture, and which patches repeat."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.pictures import UNIT, predicted
from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.language.entering import nearest
from tokensieve.methods.language.downsample import Downsample
from tokensieve.methods.language.pixelprune import PixelPrune


@pytest.mark.parametrize(
    ("grid", "tokens", "size"),
    [
        ((24, 24), 64, (8, 8)),
        ((24, 24), 128, (11, 11)),
        ((24, 24), 192, (13, 14)),  # of 13.86 × 13.86 the most that fit
        ((24, 24), 576, (24, 24)),
        ((24, 24), 1000, (24, 24)),
        ((16, 24), 100, (8, 12)),
        ((24, 16), 100, (12, 8)),
        ((2, 200), 10, (1, 10)),
        ((200, 2), 10, (10, 1)),
        ((3, 3), 1, (1, 1)),
        ((4, 8, 8), 70, (4, 4, 4)),  # 17 of each of four frames
    ],
)
def test_the_size_of_a_smaller_picture(grid: tuple[int, ...], tokens: int, size: tuple[int, ...]) -> None:
    assert Downsample(tokens=tokens).size(grid, square=False) == size


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (9, 16), (24, 24), (7, 30)])
def test_a_smaller_picture_has_at_most_the_number_asked_and_nearly_its_aspect(rows: int, columns: int) -> None:
    for tokens in range(1, rows * columns + 1):
        high, wide = Downsample(tokens=tokens).size((rows, columns), square=False)
        assert 1 <= high <= rows and 1 <= wide <= columns and high * wide <= tokens
        scale = (tokens / (rows * columns)) ** 0.5
        if rows * scale >= 1 and columns * scale >= 1:
            assert abs(high - rows * scale) < 1 and abs(wide - columns * scale) < 1


def test_squares_stay_squares_and_frames_all_stay() -> None:
    assert Downsample(keep=0.4).size((16, 16), square=True) == (10, 10)
    with pytest.raises(RefusedError, match="give tokens=4 or more"):
        Downsample(tokens=3).size((4, 8, 8), square=False)


def test_features_stand_at_the_nearest_places() -> None:
    assert nearest((4, 6), (2, 3)).tolist() == [6 + 1, 6 + 3, 6 + 5, 18 + 1, 18 + 3, 18 + 5]
    assert nearest((2, 2, 2), (2, 1, 2)).tolist() == [2, 3, 6, 7]
    assert nearest((3, 3), (3, 3)).tolist() == list(range(9))


@pytest.mark.parametrize("tau", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_patches_that_a_neighbour_predicts(tau: float, seed: int) -> None:
    # Patches of one value each out of few, so that neighbours are often alike.
    values = torch.randint(0, 3 + int(tau), (3, 4, 4), generator=torch.Generator().manual_seed(seed)).double()
    values[1:] = values[:1]
    image = values.repeat_interleave(UNIT, dim=1).repeat_interleave(UNIT, dim=2)
    pixels = image.view(3, 4, UNIT, 4, UNIT).permute(1, 3, 0, 2, 4).flatten(2)
    stays = PixelPrune(tau=tau).stays(pixels)
    assert torch.equal(stays.flatten(), predicted(image, tau))
    assert stays[0, 0] and not stays.all()


def test_a_picture_of_one_colour_is_one_patch() -> None:
    assert int(PixelPrune().stays(torch.ones(5, 7, 12)).sum()) == 1
    assert PixelPrune().stays(torch.ones(1, 1, 12)).tolist() == [[True]]


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (Downsample, {}, "give one of keep"),
        (Downsample, {"keep": 1.5}, "a share in"),
        (Downsample, {"tokens": 0}, "1 or more"),
        (Downsample, {"tokens": 4, "filter": "nearest"}, "filter must be"),
        (PixelPrune, {"tau": -1.0}, "tau must be"),
        (PixelPrune, {"positions": "anew"}, "positions must be"),
    ],
)
def test_an_option_out_of_its_range_is_refused(kind: type, options: dict[str, object], says: str) -> None:
    with pytest.raises(TokensieveError, match=says):
        kind(**options)
