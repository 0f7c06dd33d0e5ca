"""The methods with learned parts, one image in plain loops. Shares no code with the library."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from reference import Reducer, Run, top
from reference_untrained import drop
from torch import Tensor


def cropr(depth: int, sites: Sequence[int], r: int, queries: list[Tensor], fusion: bool) -> Reducer:
    """Cropr before block ``site + 1``; ``queries`` (Q, C) of each site."""

    def before(run: Run, block: int) -> None:
        if fusion and block == depth - 1:
            for m in sorted(run.gone):
                place = sum(group[0] < m for group in run.members)
                run.x = torch.cat([run.x[: place + 1], run.gone[m][None], run.x[place + 1 :]])
                run.members.insert(place, [m])
            run.gone.clear()
        if block - 1 not in sites:
            return
        wanted = queries[list(sites).index(block - 1)].sum(0)
        score = [float(token @ wanted) for token in run.x[1:]]
        drop(run, sorted(top(score, max(1, len(score) - r))))

    return before


def as_vit(sites: Sequence[int], thresholds: Sequence[float]) -> Reducer:
    """AS-ViT before the blocks ``sites``, from the attention of the block before."""

    def before(run: Run, block: int) -> None:
        if block not in sites:
            return
        threshold = thresholds[list(sites).index(block)]
        outputs = run.attention @ run.values
        every = sum(run.sizes) + len(run.gone)
        score = []
        for j in range(1, run.x.shape[0]):
            lengths = [math.sqrt(float(head[j] @ head[j])) for head in outputs]
            heads = zip(run.attention, lengths, strict=True)
            score.append(sum(float(head[0, j]) * length / sum(lengths) for head, length in heads) * every / 196)
        above = [i for i, s in enumerate(score) if s > threshold]
        drop(run, above or top(score, 1))

    return before


def a_vit(depth: int, scale: float, shift: float, full: float) -> Reducer:
    """A-ViT behind block ``block - 1``, the last one included; the class token is number -1."""
    total: dict[int, Tensor] = {}
    spent: dict[int, float] = {}

    def before(run: Run, block: int) -> None:
        if block == 0:
            total.clear()
            spent.clear()
            return
        numbers = [-1, *(group[0] for group in run.members)]
        for number, x in zip(numbers, run.x, strict=True):
            so_far = spent.get(number, 0.0)
            score = 1 / (1 + math.exp(shift - scale * float(x[0])))
            done = so_far + score > full or block == depth
            weight = 1 - so_far if done else score
            total[number] = total.get(number, torch.zeros_like(x)) + weight * x
            spent[number] = 1.0 if done else so_far + score
        if block == depth:
            run.x = torch.stack([total[number] for number in numbers])
            return
        running = [place for place, number in enumerate(numbers[1:]) if spent[number] < 1]
        drop(run, running or [0])
        run.gone.update({number: total[number] for number in run.gone})

    return before
