"""The Triton kernels, in what is theirs alone: the paths for many tokens, half precision, and whole models."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokensieve as ts
from tests.helpers.kernels import (
    INTERPRETED,
    agree,
    attention,
    exactly,
    moving,
    random,
    seeds,
    selecting,
    selector_of,
    some,
)
from tokensieve.attention.selector import selected_columns
from tokensieve.methods._attentive import lead_pairs
from tokensieve.ops import cpu, cuda
from tokensieve.ops.density import density_peaks
from tokensieve.ops.matching import bipartite_matching, similarity
from tokensieve.ops.moving import move_tokens, put_back
from tokensieve.ops.norm import Norm
from tokensieve.ops.rows import split_top
from tokensieve.tokens.decision import Assignment

DEVICE = "cpu" if INTERPRETED else "cuda"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_selected_columns_of_a_selector_in_half_precision(dtype: torch.dtype) -> None:
    given_to = attention(1, 2, 6, 33, 16, dtype, True, DEVICE)
    arguments = (*selecting(selector_of(1, 6, DEVICE).to(dtype), given_to), 8, 2, "probabilities")
    answer, wanted = selected_columns.cuda(*arguments), selected_columns.__wrapped__(*exactly(arguments))
    torch.testing.assert_close(answer.double(), wanted, rtol=3e-2, atol=3e-3)


def test_split_top_of_a_transposed_score() -> None:
    score = random(0, 9, 3, device=DEVICE).T
    agree(split_top.cuda(score, 4), split_top.__wrapped__(score, 4))


def test_bipartite_matching_shares_long_sides_among_programs() -> None:
    metric = random(5, 1, 300, 40, device=DEVICE)
    agree(bipartite_matching.cuda(metric, 90), bipartite_matching.__wrapped__(metric.double(), 90))
    # Every token has its equals in all parts of the other side: the first of them wins.
    metric = torch.eye(5, device=DEVICE)[torch.arange(300, device=DEVICE) // 2 % 5].unsqueeze(0)
    agree(bipartite_matching.cuda(metric, 90), bipartite_matching.__wrapped__(metric, 90))


def test_bipartite_matching_takes_nan_for_the_best_match_as_torch_does() -> None:
    metric = random(0, 1, 12, 4, device=DEVICE)
    metric[:, 5] = torch.nan
    agree(bipartite_matching.cuda(metric, 3), bipartite_matching.__wrapped__(metric, 3))


@pytest.mark.parametrize("alone", [True, False], ids=["one program", "one launch a round"])
@some
@given(seeds, st.integers(1, 3), st.integers(2, 60), st.integers(1, 6), st.booleans(), st.data())
def test_match_pairs(
    alone: bool, seed: int, batch: int, length: int, rounds: int, ties: bool, data: st.DataObject
) -> None:
    features = random(seed, batch, length, 6, device=DEVICE)
    similarities = similarity(features, features)
    if ties:
        similarities = (similarities * 3).round() / 3
    score = (random(seed + 1, batch, length, device=DEVICE) * 2).round()
    pairs = data.draw(st.integers(0, length // 2))
    from tokensieve.ops.cuda import pairs as in_triton  # needs triton

    with few_tokens_fit("pairs", alone):
        answer = in_triton.lead_pairs(similarities, score, pairs, rounds)
    agree(answer, lead_pairs(similarities, score, pairs, rounds))


def test_match_pairs_where_nothing_is_similar() -> None:
    """Edges of minus infinity are none: what is left pairs up by position."""
    from tokensieve.ops.cuda import pairs as in_triton

    similarities = torch.full((1, 7, 7), -torch.inf, device=DEVICE)
    similarities[:, 1, 4] = similarities[:, 4, 1] = 0.5
    score = random(0, 1, 7, device=DEVICE)
    for pairs in range(4):
        agree(in_triton.lead_pairs(similarities, score, pairs, 3), lead_pairs(similarities, score, pairs, 3))


@pytest.mark.parametrize("alone", [True, False], ids=["one program", "one launch a step"])
@some
@given(seeds, st.integers(1, 3), st.integers(1, 50), st.data())
def test_density_peaks(alone: bool, seed: int, batch: int, length: int, data: st.DataObject) -> None:
    features = random(seed, batch, length, 7, device=DEVICE)
    clusters = data.draw(st.integers(1, length))
    neighbours = data.draw(st.sampled_from([None, *range(1, min(length, 6))]))
    with few_tokens_fit("density", alone):
        answer = density_peaks.cuda(features, clusters, neighbours)
    agree(answer, density_peaks.__wrapped__(features.double(), clusters, neighbours))


@contextmanager
def few_tokens_fit(module: str, alone: bool) -> Iterator[None]:
    """As many tokens as ever for one program, or so few that every step is a launch of its own."""
    kernels = importlib.import_module(f"tokensieve.ops.cuda.{module}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "ALONE", kernels.ALONE if alone else 0)
        yield


def test_move_tokens_of_more_channels_than_a_program_holds() -> None:
    x = random(0, 1, 7, 1100, device=DEVICE)
    rep = torch.arange(6, device=DEVICE).unsqueeze(0)
    index = {
        name: torch.tensor([places], device=DEVICE) for name, places in (("keep", [4, 0, 1]), ("moved", [2, 3, 5]))
    }
    assignment = Assignment(**index, onto=torch.tensor([[2, 0, 2]], device=DEVICE))
    norm = Norm(random(1, 1100, device=DEVICE), None, 1e-6)
    answer, wanted = (
        move(*moving(x, rep, rep, None, assignment, norm)) for move in (move_tokens.cuda, move_tokens.__wrapped__)
    )
    torch.testing.assert_close(answer[0], wanted[0])
    torch.testing.assert_close(answer[5], wanted[5])
    agree(answer[1:5], wanted[1:5])


def test_indices_of_tokens_that_are_not_there_touch_nothing() -> None:
    x = random(0, 1, 4, 16, device=DEVICE)
    rep = torch.arange(4, device=DEVICE).unsqueeze(0)
    wrong = Assignment(
        keep=torch.tensor([[0, 99]], device=DEVICE),
        moved=torch.tensor([[-7, 1]], device=DEVICE),
        onto=torch.tensor([[0, 55]], device=DEVICE),
    )
    moved = move_tokens.cuda(*moving(x, rep, rep, None, wrong))
    assert torch.equal(moved[0][:, 0], x[:, 0]) and not bool(moved[0][:, 1].any())
    back = put_back.cuda(x, torch.tensor([[2, 77]], device=DEVICE), None, 0, False)
    assert torch.equal(back[:, 0], x[:, 2]) and not bool(back[:, 1].any())


@pytest.mark.parametrize("methods", ["bat", "bat-paper", "tome:r=4", "evit", "tosa", "tosa:score=own"])
def test_models_answer_the_same_with_and_without_kernels(methods: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "available", lambda: False)
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=(64, 80), depth=4, embed_dim=48, num_heads=3, num_classes=10, init_values=0.1
    )
    model, x = ts.apply(model.eval().to(DEVICE), methods), random(0, 2, 3, 64, 80, device=DEVICE)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ts.TokensieveWarning)
        answer = model(x)
        monkeypatch.setattr(cuda, "available", lambda: False)
        torch.testing.assert_close(answer, model(x), rtol=1e-4, atol=1e-5)
