"""Every pair of methods: it runs and keeps its books, or it is refused with a reason that names both."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from typing import Any

import pytest
import torch

import tokensieve as ts
from tests.helpers.cases import one_of_each_kind
from tests.helpers.models import FIRST, METHODS, MODELS, PATCHES, build, images, layout_of, run
from tokensieve.engine.composition import REFERENCE, conflict, conflicts
from tokensieve.engine.counts import counts
from tokensieve.engine.schedule import schedule
from tokensieve.methods import _registry as registry

KNOWN = registry.list_methods()
RAGGED = {name for name in METHODS if KNOWN[name].ragged}
UNDIVIDED = {name for name in METHODS if KNOWN[name].undivided}
EVERYWHERE = {"gtp", "mctf", "pitome", "tome", "vote-mix", "diffrate", "tosa", "dtem", "cropr", "tokenlearner", "psvit"}
MIXERS = {name for name in METHODS if KNOWN[name].mixes}
SITES = {
    "atc",
    "bat",
    "bat-paper",
    "dpc-knn",
    "evit",
    "grid",
    "imagepiece",
    "jmp",
    "k-medoids",
    "ppt",
    "random",
    "topk",
}


def test_the_table_is_what_it_should_be() -> None:
    refused = conflicts()
    ragged = {pair for pair in combinations(METHODS, 2) if RAGGED & set(pair)}
    spans = {tuple(sorted(("evo-vit", name))) for name in (EVERYWHERE | SITES) & set(METHODS)}
    assert {"algm", "ats", "ats-share", "as-vit", "a-vit"} <= RAGGED
    assert {("dtem", "tosa"), ("cropr", "dtem"), ("cropr", "tokenlearner")} <= set(refused)
    assert {("tokenlearner", "tome"), ("dtem", "tome"), ("cropr", "tome"), ("psvit", "topk")}.isdisjoint(refused)
    assert {"dtem", "expedite", "ipcv", "tokenlearner"} == MIXERS
    assert ragged | spans <= set(refused)
    for pair, reason in refused.items():
        assert set(pair) & (RAGGED | UNDIVIDED | {"evo-vit", "ipcv"}) or "skip" in reason, pair
        assert all(name in reason for name in pair) and "\n" not in reason
        assert "sites" in reason or "alone" in reason


def companions() -> list[Any]:
    """(first, others): every method with one of each kind of decision, and slowly with all the rest."""
    found = []
    for number, first in enumerate(METHODS):
        soon = one_of_each_kind(MODELS[number % len(MODELS)], METHODS) | {"tome", "tosa"}
        found.append(pytest.param(first, sorted(soon - {first}), id=first))
        found.append(
            pytest.param(first, sorted({*METHODS} - soon - {first}), id=f"{first}-rest", marks=pytest.mark.slow)
        )
    return found


every_companion = pytest.mark.parametrize(("first", "others"), companions())
judged = cache(conflict)


@every_companion
def test_both_orders_are_judged_alike(first: str, others: list[str]) -> None:
    for second in others:
        assert (judged(first, second) is None) == (judged(second, first) is None)


def test_who_wants_the_grid_of_all_patches_must_come_first() -> None:
    both = (KNOWN["ailurus"](keep=0.75), KNOWN["expedite"](keep=0.49))
    with pytest.raises(ts.TokensieveError, match=r"expedite acts on the grid of all 196 patches, and ailurus leaves"):
        schedule(both, REFERENCE)


@every_companion
def test_pairs_run_or_are_refused(first: str, others: list[str]) -> None:
    layout, x = layout_of(build(*FIRST[0])), images(2)
    for pair in ((first, other) for other in others):
        methods = tuple(KNOWN[name]() for name in pair)
        model = build(*FIRST[0])
        if conflict(*pair, layout) is not None:
            with pytest.raises(ts.TokensieveError):
                ts.apply(model, methods)
            assert not ts.is_applied(model)
            continue
        ts.apply(model, methods)
        assert run(model, x).isfinite().all()
        trace = ts.trace(model, x)
        announced = counts(schedule(methods, layout), layout)
        assert [(stage.attended, stage.processed) for stage in trace.stages] == list(announced.blocks)
        tokens = trace.tokens
        assert tokens is not None
        whole = tokens.restore()
        assert whole.shape[1] == layout.prefix + PATCHES and bool(torch.isfinite(whole).all())


@pytest.mark.parametrize("first", METHODS)
def test_each_method_composes_with_another(first: str) -> None:
    found = [other for other in METHODS if other != first and judged(first, other) is None]
    assert found or first in RAGGED or first == "evo-vit"


def test_outside_its_spans_others_may_act_beside_evo_vit() -> None:
    model, x = build(*FIRST[0]), images(2)
    ts.apply(model, [ts.ToMe(r=2, sites=(0, 1)), ts.EvoViT(sites=(2,))])
    assert [stage.processed - 5 for stage in ts.trace(model, x).stages] == [18, 16, 9, 9]
    assert run(ts.remove(model), x).isfinite().all()
    with pytest.raises(ts.TokensieveError, match=r"evo-vit joins tokens in block 2 .* tome would move them in block 3"):
        ts.apply(model, [ts.ToMe(r=2, sites=(0, 3)), ts.EvoViT(sites=(2,))])
