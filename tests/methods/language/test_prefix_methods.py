"""What holds of every prefix method: its card, counts, batches, ties, text, and what it refuses."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.prefix import DEPTH, METHODS, Images, choose, random_images, view_of
from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.methods.language._greedy import covering, determinantal
from tokensieve.methods.language._prefix import PrefixMethod
from tokensieve.methods.language.cdpruner import CDPruner
from tokensieve.methods.language.eadp import EADP
from tokensieve.methods.language.evs import EVS
from tokensieve.methods.language.mmtok import MMTok
from tokensieve.methods.language.prumerge import PruMerge
from tokensieve.methods.language.recoverable import RecoverableCompression
from tokensieve.methods.language.sparsity_meets_similarity import SparsityMeetsSimilarity
from tokensieve.methods.language.vidcom2 import VidCom2, whole_budgets
from tokensieve.methods.language.vispruner import VisPruner

VIDEO = {"evs", "vidcom2"}
RAGGED = {"prumerge", "recoverable", "sparsity-meets-similarity"}
READS_TEXT = {"cdpruner", "mmtok", "eadp", "recoverable"}
READS_TOWER = {"vispruner": 11, "prumerge": 10, "recoverable": 10, "sparsity-meets-similarity": 10}


def sample(name: str, words: tuple[int, ...] = (3,), dtype: torch.dtype = torch.float64, seed: int = 0) -> Images:
    return random_images((4, 2, 4) if name in VIDEO else (4, 8), words, dtype=dtype, seed=seed)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_is(name: str) -> None:
    method = METHODS[name](keep=0.5)
    assert method.name == name
    assert method.ragged == (name in RAGGED)
    assert method.reads_text == (name in READS_TEXT)
    assert method.blocks(DEPTH) == ((READS_TOWER[name],) if name in READS_TOWER else ())
    assert method.paper is not None
    card = method.card()
    options = card.partition("Options:\n")[2]
    assert card.splitlines()[0].endswith(".") and not card.splitlines()[1]
    assert re.findall(r"^    (\w+): ", options, re.MULTILINE) == [field.name for field in fields(method)]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("given", [{"keep": 0.25}, {"keep": 0.3}, {"keep": 0.9}, {"tokens": 8}, {"tokens": 31}])
def test_as_many_tokens_stay_as_were_asked_for(name: str, given: dict[str, Any]) -> None:
    method, images = METHODS[name](**given), sample(name)
    kept = choose(method, images).places.shape[1]
    assert kept == method.count(32) if name not in RAGGED else 1 <= kept <= method.count(32)


@pytest.mark.parametrize("name", sorted(set(METHODS) - RAGGED))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_in_a_batch_is_reduced_as_it_is_alone(name: str, dtype: torch.dtype) -> None:
    images, method = sample(name, (4, 0, 1, 9), dtype), METHODS[name](tokens=13)
    together = choose(method, images).places
    assert len({tuple(places) for places in together.tolist()}) > 1
    for number in range(4):
        assert together[number].tolist() == choose(method, images.one(number)).places[0].tolist()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_is_taken_and_given_back(name: str, dtype: torch.dtype) -> None:
    images = sample(name, dtype=torch.float32)
    half = replace(images, features=images.features.to(dtype), text=tuple(one.to(dtype) for one in images.text))
    exact = replace(half, features=half.features.float(), text=tuple(one.float() for one in half.text))
    method = METHODS[name](keep=0.4)
    kept, expected = choose(method, half), choose(method, exact)
    assert kept.places.tolist() == expected.places.tolist()
    if expected.values is not None:
        assert kept.values is not None
        torch.testing.assert_close(kept.values, expected.values.to(dtype))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (CDPruner(tokens=4), [0, 1, 2, 4]),
        (MMTok(tokens=4), [0, 1, 2, 4]),
        (EADP(tokens=4), [0, 1, 2, 4]),
        (VisPruner(tokens=4), [0, 1, 3, 5]),
        (VisPruner(tokens=4, removed=1), [0, 1, 3, 4]),
        (PruMerge(tokens=4), [0]),
        (PruMerge(tokens=4, plus=True), [0, 1, 3, 5]),
        (SparsityMeetsSimilarity(tokens=4), [0, 1, 2, 3]),
        (RecoverableCompression(tokens=4), [5]),
    ],
    ids=str,
)
def test_ties_go_to_the_lower_index(method: PrefixMethod, expected: list[int]) -> None:
    features = torch.eye(4).repeat_interleave(2, dim=0)[None, :6]  # three pairs, each at right angles to the others
    images = Images(features, torch.full((1, 6), 1 / 8), features, (torch.zeros(0, 4),), (2, 3))
    assert choose(method, images).places[0].tolist() == expected


@pytest.mark.parametrize(("method", "expected"), [(EVS(tokens=5), [0, 1, 2, 3, 4]), (VidCom2(tokens=4), [0, 1, 2, 4])])
def test_ties_in_a_video_go_to_the_lower_index(method: PrefixMethod, expected: list[int]) -> None:
    features = torch.tensor([3.0, 4.0, 0.0, 0.0]).expand(1, 6, 4)
    images = Images(features, torch.full((1, 6), 1 / 8), features, (torch.zeros(0, 4),), (3, 1, 2))
    assert choose(method, images).places[0].tolist() == expected


@pytest.mark.parametrize("name", sorted(READS_TEXT))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_text_is_as_good_as_text_that_has_to_do_with_nothing(name: str, dtype: torch.dtype) -> None:
    method, images = METHODS[name](keep=0.4), random_images((8, 12), (0,), dtype=dtype)
    features = F.pad(images.features, (0, 1))
    silent = replace(images, features=features, text=(features.new_zeros(0, 17),))
    elsewhere = replace(silent, text=(F.pad(features.new_zeros(2, 16), (0, 1), value=3.0),))
    about = replace(silent, text=(features[0, images.attention[0].argmin(), None],))
    assert choose(method, silent).places.tolist() == choose(method, elsewhere).places.tolist()
    assert choose(method, silent).places.tolist() != choose(method, about).places.tolist()


@pytest.mark.parametrize("name", sorted(set(METHODS) - READS_TEXT))
def test_other_methods_do_not_look_at_the_text(name: str) -> None:
    method, one, other = METHODS[name](keep=0.4), sample(name), sample(name, seed=1)
    assert choose(method, one).places.tolist() == choose(method, replace(one, text=other.text)).places.tolist()


@pytest.mark.parametrize("name", sorted(READS_TOWER))
def test_a_method_that_reads_the_tower_refuses_features_that_are_no_patches(name: str) -> None:
    view = view_of(METHODS[name](keep=0.5), sample(name))
    with pytest.raises(RefusedError, match=rf"{name} reads the attention of the tower .* divprune"):
        view.method.choose(replace(view, signals={}))


@pytest.mark.parametrize("name", sorted(VIDEO))
@pytest.mark.parametrize(
    ("grid", "message"),
    [(None, "does not say how 32 features lie"), ((4, 8), "no time axis"), ((4, 2, 3), "24 places")],
)
def test_a_method_for_videos_refuses_what_is_none(name: str, grid: tuple[int, ...] | None, message: str) -> None:
    images = replace(sample(name), grid=grid)
    with pytest.raises(RefusedError, match=rf"{name} compares the frames of a video.*{message}.*divprune"):
        choose(METHODS[name](keep=0.5), images)


def test_evs_refuses_to_leave_less_than_the_first_frame() -> None:
    with pytest.raises(RefusedError, match=r"keeps the first frame .* whole, 8 of 32 .* leaves 7: .* 1/4 or more"):
        choose(EVS(tokens=7), sample("evs"))
    assert choose(EVS(keep=0.25), sample("evs")).places[0].tolist() == list(range(8))


@pytest.mark.parametrize("grid", [None, (32,), (4, 7)])
def test_eadp_smooths_over_a_grid_that_it_knows(grid: tuple[int, ...] | None) -> None:
    images = replace(sample("eadp"), grid=grid)
    with pytest.raises(RefusedError, match=r"eadp smooths relevance over the grid .* 32 features .* sigma=0"):
        choose(EADP(tokens=5), images)
    assert choose(EADP(tokens=5, sigma=0.0), images).places.shape == (1, 5)


def test_eadp_smooths_the_frames_of_a_video_one_by_one() -> None:
    video = random_images((3, 2, 4), (2,))
    tall = replace(video, grid=(6, 4))
    assert (
        choose(EADP(tokens=9, sigma=2.0), video).places.tolist()
        != choose(EADP(tokens=9, sigma=2.0), tall).places.tolist()
    )


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (VisPruner, {"important": 1.5}, "important must be a share"),
        (VisPruner, {"removed": 0}, "removed must be 1 or more"),
        (PruMerge, {"merged": -1}, "merged must be 0 or more"),
        (CDPruner, {"theta": 1.0}, "theta must be in"),
        (MMTok, {"text_temperature": 0.0}, "text_temperature must be above 0"),
        (MMTok, {"image_temperature": -1.0}, "image_temperature must be above 0"),
        (MMTok, {"image_weight": -0.1}, "image_weight must be 0 or more"),
        (EADP, {"power": -1.0}, "power must be 0 or more"),
        (EADP, {"sigma": -1.0}, "sigma must be 0 or more"),
        (RecoverableCompression, {"merged": -1}, "merged must be 0 or more"),
        (VidCom2, {"temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_an_option_out_of_its_range_is_refused(kind: type[PrefixMethod], options: dict[str, Any], message: str) -> None:
    with pytest.raises(TokensieveError, match=f"{kind.name}: {message}"):
        kind(keep=0.5, **options)


def test_what_the_chosen_span_comes_last_in_order() -> None:
    features = torch.tensor([[[1, 0, 0], [0, 1, 0], [1, 1, 0], [2, 0, 0], [0, 0, 0], [0, 0, 1]]], dtype=torch.float32)
    unit, even = F.normalize(features, dim=2), torch.ones(1, 6)
    assert determinantal(unit, even, 6).tolist() == [[0, 1, 5, 2, 3, 4]]
    assert determinantal(unit, torch.tensor([[1, 1, 1, 3, 1, 2]]).float(), 3).tolist() == [[3, 5, 1]]


def test_a_token_that_stands_for_others_covers_first() -> None:
    value = torch.tensor([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.25, 0.5]]])
    assert covering(value, 3).tolist() == [[2, 0, 1]]
    assert covering(value - 7, 3).tolist() == [[2, 0, 1]]


def test_cdpruner_stays_finite_where_relevance_is_nearly_all_that_counts() -> None:
    images = sample("cdpruner", dtype=torch.float32)
    cosine = F.normalize(images.features[0], dim=1) @ F.normalize(images.text[0], dim=1).T
    most = int(cosine.mean(dim=1).argmin())
    assert choose(CDPruner(tokens=1, theta=0.999), images).places.tolist() == [[most]]


@pytest.mark.parametrize("seed", range(5))
def test_budgets_sum_to_the_count_and_fill_no_frame_beyond_its_size(seed: int) -> None:
    share = (6 * torch.randn(3, 5, generator=torch.Generator().manual_seed(seed))).softmax(dim=1)
    for count in (1, 7, 30, 44, 45):
        budget = count / 5 * (1 + share - 0.2)
        whole = whole_budgets(budget, count, 9)
        assert whole.sum(dim=1).tolist() == [count] * 3
        assert int(whole.max()) <= 9
        assert bool((whole >= budget.floor().clamp(max=9)).all())


@pytest.mark.parametrize(("highest", "expected"), [(5.2, [11]), (5.9, [11]), (6.1, [0, 11])])
def test_prumerge_keeps_what_is_beyond_one_and_a_half_interquartile_ranges(highest: float, expected: list[int]) -> None:
    # Quartiles 0 and 2.4 at most: outliers are above 2.4 + 1.5 · 2.4 = 6.
    attention = torch.tensor([[highest, *[2.4] * 4, *[0.0] * 6, 7.0]], dtype=torch.float64)
    images = replace(random_images((3, 4), (0,)), attention=attention)
    assert choose(PruMerge(keep=1.0), images).places[0].tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("curve", ["straight", "bulging", "even"])
def test_without_a_knee_the_cap_alone_cuts(curve: str, dtype: torch.dtype) -> None:
    falling = torch.linspace(1, 0, 49, dtype=dtype)
    attention = {"straight": falling / 3, "bulging": falling.sqrt(), "even": torch.ones_like(falling)}[curve]
    images = replace(random_images((7, 7), (0,), dtype=dtype), attention=attention[None])
    assert choose(SparsityMeetsSimilarity(keep=1.0), images).places.shape == (1, 49)
    assert choose(SparsityMeetsSimilarity(tokens=9), images).places.tolist() == [list(range(9))]


def test_the_tokens_in_front_of_the_knee_stay() -> None:
    attention = torch.tensor([[0.09, 9.0, 0.1, 10.0, 0.0, 0.05]])
    images = replace(random_images((2, 3), (0,), dtype=torch.float32), attention=attention)
    assert choose(SparsityMeetsSimilarity(keep=1.0), images).places.tolist() == [[1, 3]]


def test_vidcom2_gives_more_tokens_to_the_frame_that_is_unlike_the_others() -> None:
    video = random_images((4, 2, 3), (0,), seed=1)
    features = video.features[:, :6].repeat(1, 4, 1) + 0.01 * video.features
    features[:, 12:18] = video.features[:, 12:18]
    places = choose(VidCom2(tokens=12), replace(video, features=features)).places[0]
    of_frame = torch.bincount(places // 6, minlength=4).tolist()
    assert of_frame[2] == 5 and max(of_frame[0], of_frame[1], of_frame[3]) == 3
