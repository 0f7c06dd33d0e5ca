"""The methods with learned parts, one image in plain loops. Shares no code with the library."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.helpers.references.plain import Reducer, Run, _rebuild, top
from tests.helpers.references.untrained import drop


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


def gelu(x: Tensor) -> Tensor:
    """By the tanh, as jax has it by default."""
    return x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def normed(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """LayerNorm with the weights under ``name``."""
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * state[name + "weight"]
        + state[name + "bias"]
    )


def small_mlp(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    hidden = gelu(normed(state, name + "0.", x) @ state[name + "1.weight"].T + state[name + "1.bias"])
    return hidden @ state[name + "3.weight"].T + state[name + "3.bias"]


def convolved(kernel: Tensor, x: Tensor) -> Tensor:
    """(C, H, W) under a kernel (O, C, 3, 3) with a border of zeros."""
    _, rows, columns = x.shape
    out = torch.zeros(kernel.shape[0], rows, columns, dtype=x.dtype)
    for row in range(rows):
        for column in range(columns):
            for i in range(max(row - 1, 0), min(row + 2, rows)):
                for j in range(max(column - 1, 0), min(column + 2, columns)):
                    out[:, row, column] += kernel[:, :, i - row + 1, j - column + 1] @ x[:, i, j]
    return out


def token_learner(
    state: dict[str, Tensor], sites: tuple[int, ...], side: int, maps: str, fuser: bool
) -> tuple[Reducer, Reducer]:
    """TokenLearner before each block of ``sites``, where all patches are present, and its way back before the next one
    of them or behind the last block."""
    held: list[tuple[Tensor, Tensor]] = []

    def named(block: int) -> str:
        return f"blocks.{max(site for site in sites if site <= block)}.tokensieve.learned.tokenlearner_0."

    def before(run: Run, block: int) -> None:
        if block not in sites:
            return
        if held:
            last(run, block)
        name = named(block)
        x = run.x[1:]
        if maps == "mlp":
            votes = small_mlp(state, name + "drawn.vote.", x)
            weights = votes.exp() / votes.exp().sum(0)
        else:
            drawn = normed(state, name + "drawn.norm.", x).T.reshape(-1, side, side)
            for layer in (0, 2, 4, 6):
                drawn = convolved(state[f"{name}drawn.convolve.{layer}.weight"], drawn if layer == 0 else gelu(drawn))
            weights = 1 / (1 + (-drawn).exp()).reshape(drawn.shape[0], -1).T
        held.append((x, weights))
        run.x = torch.cat([run.x[:1], weights.T @ x])
        run.members = [[place] for place in range(weights.shape[1])]

    def last(run: Run, depth: int) -> None:
        x, weights = held.pop()
        name = named(depth - 1)
        if fuser:
            mixed = normed(state, name + "fuser.before.", run.x[1:])
            mix = name + "fuser.mix."
            mixed = normed(state, name + "fuser.after.", state[mix + "weight"] @ mixed + state[mix + "bias"][:, None])
            gates = 1 / (1 + (-small_mlp(state, name + "fuser.gate.", x)).exp())
            whole = x + gates @ mixed
        else:
            whole = weights / weights.sum(1, keepdim=True) @ run.x[1:]
        run.x, run.members = torch.cat([run.x[:1], whole]), [[place] for place in range(len(x))]

    return before, last


def dtem(state: dict[str, Tensor], r: int) -> Reducer:
    """DTEM: ToMe's matching on a learned embedding of the tokens."""

    def middle(run: Run, block: int) -> None:
        name = f"blocks.{block}.tokensieve.learned.dtem_0."
        metric = run.inputs[1:] @ state[name + "weight"].T + state[name + "bias"]
        metric = metric / metric.norm(dim=-1, keepdim=True)
        left, right = range(1, len(metric), 2), range(0, len(metric), 2)
        edges = []
        for a in left:
            best = max(right, key=lambda b, a=a: (float(metric[a] @ metric[b]), -b))
            edges.append((float(metric[a] @ metric[best]), a, best))
        edges.sort(key=lambda edge: (-edge[0], edge[1]))
        merging = edges[: min(r, len(metric) // 2)]
        joins = {b: [b] for b in right}
        for _, a, b in merging:
            joins[b].append(a)
        moved = {a for _, a, _ in merging}
        _rebuild(run, [[a] for a in left if a not in moved] + [joins[b] for b in right], None)

    return middle


def psvit(sites: Sequence[int], keep: float) -> Reducer:
    """PSViT's pooling: stretches of the sequence, weighted by size."""

    def before(run: Run, block: int) -> None:
        if block not in sites:
            return
        count = len(run.members)
        left = round(round(keep * count, 6))
        _rebuild(run, [[i for i in range(count) if i * left // count == place] for place in range(left)], None)

    return before
