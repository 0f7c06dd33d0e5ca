"""The methods that need no training beyond the first ones, each against plain loops on a whole tiny ViT in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import tokensieve as ts
from tests.helpers.harness import DEPTH, HEADS, PATCHES, SITES, compare, compare_each, tiny
from tests.helpers.references import spans
from tests.helpers.references import untrained as reference
from tests.helpers.references.plain import vit
from tokensieve.tokens.decision import check, ragged_merge, slots


@pytest.mark.parametrize("r", [3, 9, 40])
@pytest.mark.parametrize("threshold", [0.0, math.inf, 5e-3])
@pytest.mark.parametrize("proportional", [True, False])
def test_ppt(images: Tensor, r: int, threshold: float, proportional: bool) -> None:
    model = ts.apply(tiny(), ts.PPT(r=r, sites=SITES, threshold=threshold, proportional=proportional))
    compare(model, images, middle=reference.ppt(SITES, r, threshold), log_size=proportional)


def test_ppt_prunes_in_one_image_and_merges_in_another(images: Tensor) -> None:
    state = ts.trace(ts.apply(tiny(), ts.PPT(r=9, sites=(1,), threshold=5e-3)), images).tokens
    assert state is not None
    gone = (state.group < 0).sum(dim=1)
    assert set(gone.tolist()) == {0, 9}


@pytest.mark.parametrize("keep", [0.9, 0.6, 0.3])
@pytest.mark.parametrize(("neighbours", "proportional"), [(1, False), (5, False), (5, True)])
@pytest.mark.parametrize("itself", [True, False])
def test_dpc_knn(images: Tensor, keep: float, neighbours: int, proportional: bool, itself: bool) -> None:
    method = ts.DPCKNN(keep=keep, sites=SITES, neighbours=neighbours, proportional=proportional, itself=itself)
    wanted = reference.dpcknn(SITES, keep, neighbours, None, itself)
    compare(ts.apply(tiny(), method), images, before=wanted, log_size=proportional)


def test_dpc_knn_with_learned_weights(images: Tensor) -> None:
    model = ts.apply(tiny(), ts.DPCKNN(keep=0.5, sites=(1,), weight="learned"))
    fresh = ts.apply(tiny(), ts.DPCKNN(keep=0.5, sites=(1,)))
    with torch.no_grad():
        torch.testing.assert_close(model(images), fresh(images), rtol=0, atol=1e-12)
        (weight,) = (p for name, p in model.named_parameters() if ".learned." in name and p.dim() == 2)
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    compare(model, images, before=reference.dpcknn((1,), 0.5, 5, weight.detach()[0]))


@pytest.mark.parametrize("keep", [0.9, 0.6, 0.3])
@pytest.mark.parametrize(
    ("update", "rounds", "proportional"),
    [("weighted", 0, False), ("equal", 0, False), ("weighted", 3, False), ("equal", 3, False), ("weighted", 3, True)],
)
def test_k_medoids(images: Tensor, keep: float, update: str, rounds: int, proportional: bool) -> None:
    method = ts.KMedoids(keep=keep, sites=SITES, update=update, rounds=rounds, proportional=proportional)
    model = ts.apply(tiny(), method)
    compare(model, images, before=reference.kmedoids(SITES, keep, update, rounds), log_size=proportional)


@pytest.mark.parametrize("keep", [0.9, 0.6, 0.3])
@pytest.mark.parametrize("linkage", ["single", "complete", "average"])
@pytest.mark.parametrize("proportional", [True, False])
def test_atc(images: Tensor, keep: float, linkage: str, proportional: bool) -> None:
    model = ts.apply(tiny(), ts.ATC(keep=keep, sites=SITES, linkage=linkage, proportional=proportional))
    compare(model, images, middle=reference.atc(SITES, keep, linkage), log_size=proportional)


@pytest.mark.parametrize("r", [2, 8])
@pytest.mark.parametrize("graph", ["mixed", "spatial", "semantic"])
@pytest.mark.parametrize(("alpha", "similar"), [(0.2, 8), (0.4, 2)])
def test_gtp(images: Tensor, r: int, graph: str, alpha: float, similar: int) -> None:
    model = ts.apply(tiny(), ts.GTP(r=r, alpha=alpha, graph=graph, similar=similar))
    compare(model, images, middle=reference.gtp(tuple(range(DEPTH)), 7, r, alpha, graph, similar))


@pytest.mark.parametrize("keep", [0.95, 0.8, 0.4])
@pytest.mark.parametrize("margin", [0.9, 0.75])
@pytest.mark.parametrize("proportional", [True, False])
def test_pitome(images: Tensor, keep: float, margin: float, proportional: bool) -> None:
    model = ts.apply(tiny(), ts.PiToMe(keep=keep, margin=margin, proportional=proportional))
    compare(model, images, middle=reference.pitome(DEPTH, keep, margin), log_size=proportional)


@pytest.mark.parametrize("r", [1, 6, 40])
@pytest.mark.parametrize(("info", "size"), [(1 / 20, 1 / 40), (0.0, 0.0), (0.5, 0.5)])
@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("order", ["position", "edge"])
def test_mctf(images: Tensor, r: int, info: float, size: float, proportional: bool, order: Any) -> None:
    model = ts.apply(tiny(), ts.MCTF(r=r, info=info, size=size, proportional=proportional, order=order))
    sites = tuple(range(1, DEPTH))
    compare(model, images, middle=reference.mctf(sites, r, info, size, order == "edge"), log_size=proportional)


@pytest.mark.parametrize(("proportional", "sizes"), [(True, "patches"), (True, "cosine"), (False, "patches")])
def test_diffrate(images: Tensor, proportional: bool, sizes: Any) -> None:
    counts = [(49, 47), (44, 40), (35, 33), (28, 24), (20, 15), (2, 1)]
    pruned, merged = (tuple(row[place] / PATCHES for row in counts) for place in (0, 1))
    model = ts.apply(tiny(), ts.DiffRate(pruned=pruned, merged=merged, proportional=proportional, sizes=sizes))
    compare(model, images, middle=reference.diffrate(counts, sizes == "cosine"), log_size=proportional)


@pytest.mark.parametrize("samples", [49, 30, 8])
def test_ats(images: Tensor, samples: int) -> None:
    model = ts.apply(tiny(), ts.ATS(samples=samples, sites=SITES))
    compare_each(model, images, middle=reference.ats(SITES, [samples] * 3))


@pytest.mark.parametrize("samples", [2, 20, 48])
def test_ats_as_published(images: Tensor, samples: int) -> None:
    model = ts.apply(tiny(), ts.ATS(samples=samples, sites=SITES, levels="published"))
    compare_each(model, images, middle=reference.ats_as_published(SITES, samples))


@pytest.mark.parametrize(("keep", "samples"), [(0.9, [44, 39, 35]), (0.5, [24, 12, 6])])
def test_ats_share(images: Tensor, keep: float, samples: list[int]) -> None:
    model = ts.apply(tiny(), ts.ATSShare(keep=keep, sites=SITES))
    compare_each(model, images, middle=reference.ats(SITES, samples))


def test_ats_keeps_another_number_in_every_image(images: Tensor) -> None:
    state = ts.trace(ts.apply(tiny(), ts.ATS(sites=SITES)), images).tokens
    assert state is not None and state.alive is not None
    assert len(set(state.alive.sum(dim=1).tolist())) > 1


@pytest.mark.parametrize("keep", [0.9, 0.6, 0.3])
@pytest.mark.parametrize("threshold", [-1.0, 0.5, 2.0])
@pytest.mark.parametrize("proportional", [True, False])
def test_jmp(images: Tensor, keep: float, threshold: float, proportional: bool) -> None:
    model = ts.apply(tiny(), ts.JMP(keep=keep, sites=SITES, threshold=threshold, proportional=proportional))
    compare(model, images, middle=reference.jmp(SITES, keep, threshold), log_size=proportional)


@pytest.mark.parametrize("keep", [0.9, 0.6, 0.3])
@pytest.mark.parametrize("proportional", [True, False])
def test_imagepiece(images: Tensor, keep: float, proportional: bool) -> None:
    model = ts.apply(tiny(), ts.ImagePiece(keep=keep, sites=SITES, proportional=proportional))
    compare(model, images, middle=reference.imagepiece(SITES, keep), log_size=proportional)


def test_imagepiece_joins_first_and_drops_later(images: Tensor) -> None:
    for sites, drops in (((1,), False), (SITES, True)):
        state = ts.trace(ts.apply(tiny(), ts.ImagePiece(keep=0.6, sites=sites)), images).tokens
        assert state is not None
        assert bool((state.group < 0).any()) == drops


@pytest.mark.parametrize("keep", [0.95, 0.6])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_vote_mix(images: Tensor, keep: float, temperature: float) -> None:
    model = ts.apply(tiny(), ts.VoteMix(keep=keep, temperature=temperature))
    compare(model, images, middle=reference.vote_mix(keep, temperature))


def test_jmp_merges_in_one_image_and_prunes_in_another(images: Tensor) -> None:
    state = ts.trace(ts.apply(tiny(), ts.JMP(keep=0.6, sites=SITES, threshold=0.5)), images).tokens
    assert state is not None
    gone = (state.group < 0).sum(dim=1)
    assert int(gone.min()) == 0 and int(gone.max()) > 0


@pytest.mark.parametrize("keep", [0.98, 0.6, 0.3])
@pytest.mark.parametrize("sites", [(1, 3, 4), (2,)])
@pytest.mark.parametrize("representative", [True, False])
def test_evo_vit(images: Tensor, keep: float, sites: tuple[int, ...], representative: bool) -> None:
    model = ts.apply(tiny(), ts.EvoViT(keep=keep, sites=sites, representative=representative))
    middle, before = spans.evo_vit(sites, keep, DEPTH, representative)
    with torch.no_grad():
        logits, tokens = model(images), model.forward_features(images)
    stages = [(s.attended, s.processed) for s in ts.trace(model, images).stages]
    state = {key: value.detach() for key, value in model.state_dict().items()}
    for number, image in enumerate(images):
        wanted, whole, run = vit(state, image, HEADS, DEPTH, middle=middle, before=before, last=before)
        assert run.counts == stages and len(run.members) == PATCHES
        torch.testing.assert_close(tokens[number], whole, rtol=0, atol=1e-9)
        torch.testing.assert_close(logits[number], wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("threshold", [2.0, 0.1, 0.0, -1.0])
def test_algm(images: Tensor, threshold: float) -> None:
    model = ts.apply(tiny(), ts.ALGM(threshold=threshold, sites=SITES))
    compare_each(model, images, middle=spans.algm(SITES, 7, threshold))


def test_a_merge_without_padding_is_a_plain_one() -> None:
    """Two joined in both images; where one image keeps more, the other is padded."""
    equal = ragged_merge(torch.tensor([[0, 0, 2, 3], [0, 1, 2, 2]]))
    assert equal.alive is None and equal.padding_onto is None and equal.dropped is None
    assert check(equal, 4) is None
    assert slots(equal).tolist() == [[0, 0, 1, 2], [0, 1, 2, 2]]
    other = ragged_merge(torch.tensor([[0, 0, 2, 2], [0, 1, 2, 2]]))
    assert other.alive is not None and other.alive.tolist() == [[True, True, False], [True] * 3]
    assert slots(other).tolist() == [[0, 0, 1, 1], [0, 1, 2, 2]]


def test_algm_keeps_another_number_in_every_image(images: Tensor) -> None:
    state = ts.trace(ts.apply(tiny(), ts.ALGM(threshold=0.05, sites=(1,))), images).tokens
    assert state is not None and state.alive is not None
    assert len(set(state.alive.sum(dim=1).tolist())) > 1
