"""Right answers, and the figures over many."""

from __future__ import annotations

import math

import pytest
import torch

from tokensieve.answers.score import AnswerMeters, is_right, plain


@pytest.mark.parametrize(
    ("answer", "compared"),
    [
        (" Red. ", "red"),
        ("A  red\n7!", "a red 7"),
        ("it's", "its"),
        ("3.5", "3.5"),
        ("3.", "3"),
        ("10:30", "10:30"),
        ("1,000", "1000"),
        ("a.b", "ab"),
        ("?", ""),
    ],
)
def test_how_answers_are_compared(answer: str, compared: str) -> None:
    assert plain(answer) == compared


def test_any_accepted_answer_is_right() -> None:
    assert is_right("Two.", ("2", "two")) and not is_right("two cats", ("2", "two"))


def test_figures() -> None:
    generator = torch.Generator().manual_seed(0)
    first, dense = (torch.randn(4, 7, generator=generator) for _ in range(2))
    meters = AnswerMeters()
    meters.update(first[:3], dense[:3], [True, False, False], [True, True, False])
    meters.update(first[3:], dense[3:], [True], [True])
    found = meters.compute()
    log = dense.double().log_softmax(1)
    kl = (log.exp() * (log - first.double().log_softmax(1))).sum(1).mean()
    assert found == {
        "accuracy": 75.0,
        "accuracy ±": pytest.approx(100 * math.sqrt(0.75 * 0.25 / 4)),
        "agree": 50.0,
        "KL": pytest.approx(kl.item()),
    }


def test_accuracy_only_where_all_answers_are_known() -> None:
    meters = AnswerMeters()
    logits = torch.zeros(1, 2)
    meters.update(logits, logits, [True], [])
    meters.update(logits, logits, [True], [True])
    assert meters.compute() == {"agree": 100.0, "KL": 0.0}
