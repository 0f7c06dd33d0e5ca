"""Plain references of the methods whose tokens part again or merge in another number in every image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.helpers.references.plain import Reducer, Run, _rebuild, class_attention, top
from tests.helpers.references.untrained import unit


def evo_vit(sites: tuple[int, ...], keep: float, depth: int, representative: bool = True) -> tuple[Reducer, Reducer]:
    """Evo-ViT: what to note in the middle of a block, and what to do before one (also behind the last)."""
    held: list[tuple[Tensor, list[list[int]], list[list[int]], Tensor]] = []
    score: list[float] = []
    informative: list[int] = []

    def middle(run: Run, block: int) -> None:
        seen = class_attention(run)
        if block == sites[0] - 1:
            score[:] = seen
        elif sites[0] <= block < sites[-1]:
            for place, token in enumerate(informative if held else range(len(score))):
                score[token] = (score[token] + seen[place]) / 2

    def before(run: Run, block: int) -> None:
        if held and block in (*sites, depth):
            part(run)
        if block not in sites:
            return
        count = math.ceil(round(keep * len(score), 6))
        if count + representative >= len(score):
            return
        informative[:] = sorted(top(score, count))
        others = [i for i in range(len(score)) if i not in informative]
        whole, members = run.x, run.members
        groups = [[i] for i in informative]
        if representative:
            groups.append(others)
        _rebuild(run, groups, score)
        held.append((whole, members, groups, run.x))

    def part(run: Run) -> None:
        whole, members, groups, start = held.pop()
        out = [run.x[0]] + [whole[i + 1] for i in range(len(members))]
        for place, group in enumerate(groups):
            for i in group:
                change = run.x[place + 1] - start[place + 1]
                out[i + 1] = run.x[place + 1] if len(group) == 1 else whole[i + 1] + change
        run.x, run.members = torch.stack(out), members

    return middle, before


def algm(sites: tuple[int, ...], side: int, threshold: float) -> Reducer:
    """ALGM: windows of four at the first site, matches above the image's own bar at the others."""

    def middle(run: Run, block: int) -> None:
        if block not in sites:
            return
        x = unit(run.x[1:])
        count = len(x)
        target = list(range(count))
        alike: dict[int, float] = {}
        if block == sites[0]:
            for row in range(0, side - 1, 2):
                for column in range(0, side - 1, 2):
                    four = [(row + i) * side + column + j for i in range(2) for j in range(2)]
                    pairs = [float(x[i] @ x[j]) for i in four for j in four if i < j]
                    alike[four[0]] = sum(pairs) / 6
                    if sum(pairs) / 6 >= threshold:
                        target = [four[0] if i in four else to for i, to in enumerate(target)]
        else:
            moving, staying = range(1, count, 2), range(0, count, 2)
            best = {i: max(staying, key=lambda j, i=i: float(x[i] @ x[j])) for i in moving}
            cosine = {i: float(x[i] @ x[j]) for i, j in best.items()}
            mean = sum(cosine.values()) / len(cosine)
            deviation = math.sqrt(sum((c - mean) ** 2 for c in cosine.values()) / max(len(cosine) - 1, 1))
            bar = mean + deviation / (block + 1)
            target = [best[i] if i in best and cosine[i] >= bar else i for i in target]
        groups: dict[int, list[int]] = {i: [] for i in sorted(set(target))}
        for i, to in enumerate(target):
            groups[to].append(i)
        merged = [group for group in groups.values() if len(group) > 1] if block == sites[0] else []
        merged.sort(key=lambda group: -alike[group[0]])
        _rebuild(run, merged + [group for group in groups.values() if group not in merged], None)

    return middle
