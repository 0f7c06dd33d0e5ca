"""Recall among neighbours: by hand, against torchmetrics, and whatever the order and the parts it comes in."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.retrieval import retrieval_hit_rate

from tokensieve.data.stream import NO_LABEL
from tokensieve.errors import TokensieveError, TokensieveWarning
from tokensieve.measure import retrieval
from tokensieve.measure.judge import answers_of, compare
from tokensieve.measure.retrieval import Retrieval, RetrievalMeters, RetrievalOutcome, ranks


def at(*degrees: float) -> Tensor:
    """Points of the unit circle."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def figures(queries: Tensor, gallery: Tensor, labels: Tensor, *neighbours: int) -> dict[str, float]:
    meters = RetrievalMeters(neighbours or (1, 2))
    meters.update(queries, gallery, labels)
    return meters.compute().metrics


def test_by_hand() -> None:
    # Degrees on a circle: two images of class 0, two of class 1 and one that is alone in its class.
    dense, labels = at(0, 10, 24, 50, 180), torch.tensor([0, 0, 1, 1, 2])
    same, recall = ranks(dense, dense, labels)
    assert same.tolist() == [0, 0, 0, 0, 0]
    assert recall.tolist() == [0, 0, 2, 0, 5]  # 10 and 0 are nearer to 24 than its fellow at 50 is
    turned = at(19, 29, 43, 69, 199)
    same, recall = ranks(turned, dense, labels)
    assert same.tolist() == [2, 1, 1, 0, 0]  # of 19: 24 and 10 are nearer than 0
    assert recall.tolist() == [1, 2, 0, 0, 5]  # of 29: 24 and 50 are nearer than 0
    with pytest.warns(TokensieveWarning, match="1 of 5 images are alone in their class"):
        found = figures(turned, dense, labels, 1, 2, 3)
    assert found == pytest.approx(
        {"recall@1": 40, "recall@2": 60, "recall@3": 80, "own@1": 60, "own@2": 60, "own@3": 80}
        | {"same@1": 40, "same@2": 80, "same@3": 100}
    )
    assert next(iter(found)) == "recall@1"  # which leads in tables and pictures


def test_equally_near_images_come_in_their_order() -> None:
    """Else features that are all alike would find everything."""
    alike, labels = at(7).repeat(5, 1), torch.tensor([0, 1, 0, 1, 1])
    same, recall = ranks(alike, alike, labels)
    assert same.tolist() == [0, 1, 2, 3, 4]
    assert recall.tolist() == [1, 2, 0, 1, 1]


def test_images_without_a_label_are_looked_for_by_themselves_alone() -> None:
    dense, labels = at(0, 10, 24, 50, 180), torch.tensor([0, 0, NO_LABEL, 1, NO_LABEL])
    with pytest.warns(TokensieveWarning, match="1 of 3 images are alone"):
        found = figures(dense, dense, labels, 1)
    assert found == pytest.approx({"recall@1": 200 / 3, "own@1": 200 / 3, "same@1": 100})


@pytest.mark.parametrize("labels", [[NO_LABEL] * 5, [3] * 5, range(5)], ids=["none", "one class", "each alone"])
def test_classes_that_tell_nothing_are_left_out(labels: Sequence[int]) -> None:
    dense = at(0, 10, 24, 50, 180)
    with pytest.warns(TokensieveWarning, match="none is looked for by its class"):
        assert figures(dense, dense, torch.tensor(labels), 1) == {"same@1": 100}


@pytest.mark.parametrize("held", [1, 100, 2**24])
def test_as_torchmetrics_has_it(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "SIMILARITIES", held)  # a row at a time, two rows, all
    dense = F.normalize(torch.randn(40, 6), dim=1)
    reduced = F.normalize(dense + 0.3 * torch.randn(40, 6), dim=1)
    labels = torch.randint(0, 6, (40,))
    found = figures(reduced, dense, labels, 1, 3, 10)
    for k in (1, 3, 10):
        hits: dict[str, list[Tensor]] = {"recall": [], "own": [], "same": []}
        for number in range(40):
            other = torch.arange(40) != number
            for name, gallery in (("recall", dense), ("own", reduced)):
                near, right = (gallery @ reduced[number])[other], (labels == labels[number])[other]
                hits[name].append(retrieval_hit_rate(near, right, top_k=k))
            hits["same"].append(retrieval_hit_rate(dense @ reduced[number], ~other, top_k=k))
        for name, rates in hits.items():
            assert found[f"{name}@{k}"] == pytest.approx(100 * torch.stack(rates).mean().item()), name
    assert found["same@1"] < found["same@10"] and 0 < found["recall@1"] < 100


def test_a_model_against_itself_and_another_in_batches_and_parts() -> None:
    images, labels = torch.randn(12, 3, 4, 4), torch.arange(12) % 3
    batches = [(images[:8], labels[:8]), (images[8:], labels[8:])]
    judge = Retrieval((1, 2))

    def dense(x: Tensor) -> Tensor:
        return x.flatten(1)

    answers, own = answers_of(dense, iter(batches), judge=judge)
    assert own == compare(dense, iter(answers), iter(batches), judge=judge)
    assert own.images == 12 and own.metrics["same@1"] == 100
    assert all(own.metrics[f"recall@{k}"] == own.metrics[f"own@{k}"] for k in (1, 2))
    assert judge.answer(dense, 1000 * images, labels).norm(dim=1) == pytest.approx(torch.ones(12))
    parts: list[RetrievalMeters] = []
    for batch, (x, y) in zip(answers, batches, strict=True):
        parts.append(judge.meters(batch))
        parts[-1].update(judge.answer(lambda x: x.mean(dim=2).flatten(1)[:, [0] * 48], x, y), batch, y)
    parts[1].add(parts[0])
    outcome = parts[1].compute()
    assert isinstance(outcome, RetrievalOutcome) and outcome.images == 12
    assert outcome.metrics["same@1"] < 100


def test_what_cannot_be_looked_up_is_refused() -> None:
    judge, x, labels = Retrieval((1, 5)), torch.randn(5, 3), torch.arange(5)
    judge.check(6)
    with pytest.raises(TokensieveError, match="5 neighbours are asked for, and 5 images have 4 others each"):
        judge.check(5)
    meters = judge.meters(x)
    meters.update(x, x, labels)
    with pytest.raises(TokensieveError, match="5 neighbours are asked for"):
        meters.compute()
    with pytest.raises(TokensieveError, match=r"with features \(images, D\) but with \(5, 3, 1\)"):
        judge.answer(lambda x: x.unsqueeze(2), x, labels)
    with pytest.raises(TokensieveError, match="with features"):
        judge.answer(lambda x: {"x": x}, x, labels)
    with pytest.raises(TokensieveError, match="not finite"):
        judge.answer(lambda x: x / 0, x, labels)
