"""The methods once more, written from their formulas for one image in plain loops. Shares no code with the library."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

Reducer = Callable[["Run", int], None]
Skipper = Callable[["Run", int], list[int] | None]
Score = Callable[["Run", int], list[float]]


@dataclass
class Run:
    """One image on its way through the plain ViT below.

    ``x`` (L, C) holds the class token first. ``members[i]`` are the original patches that token ``i + 1`` stands for,
    ``gone`` the last value of the patches that left, ``held`` the tokens that sit out a layer.
    """

    x: Tensor
    members: list[list[int]]
    gone: dict[int, Tensor] = field(default_factory=dict)
    counts: list[tuple[int, int]] = field(default_factory=list)
    chosen: list[set[int]] = field(default_factory=list)
    inputs: Tensor | None = None
    queries: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    logits: Tensor | None = None
    attention: Tensor | None = None
    resized: list[float] | None = None

    @property
    def sizes(self) -> list[float]:
        return [float(len(m)) for m in self.members] if self.resized is None else self.resized

    @property
    def partition(self) -> set[frozenset[int]]:
        return {frozenset(m) for m in self.members}


def vit(
    state: dict[str, Tensor],
    image: Tensor,
    heads: int,
    depth: int,
    middle: Reducer | None = None,
    skip: Skipper | None = None,
    log_size: bool = False,
    before: Reducer | None = None,
    last: Reducer | None = None,
    shared: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor, Run]:
    """A timm ViT with a class token on one image (3, H, W).

    Args:
        middle: changes the run between attention and MLP of a block.
        skip: patch tokens that go through block ``l``, decided from the run after block ``l - 1``, or None for all.
        before: changes the run before a block.
        last: changes the run behind the last block, and is given the depth.
        log_size: add log(size) to the logits of every key.
        shared: blocks that attend with the queries and keys of the block before.

    Returns:
        logits (classes,), normalised tokens of every original patch with the class token first (1 + N, C), the run.
    """
    patch = state["patch_embed.proj.weight"].shape[-1]
    x = F.conv2d(image[None], state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    x = x.flatten(2)[0].T
    x = torch.cat([state["cls_token"][0], x]) + state["pos_embed"][0]
    run = Run(x, [[i] for i in range(x.shape[0] - 1)])
    for block in range(depth):
        if before is not None:
            before(run, block)
        chosen = skip(run, block) if skip is not None else None
        whole, members = run.x, run.members
        if chosen is not None:
            run.chosen.append(set(chosen))
            run.x = torch.stack([whole[0], *[whole[i + 1] for i in chosen]])
            run.members = [members[i] for i in chosen]
        attended = run.x.shape[0]
        run.x = run.x + _attend(state, f"blocks.{block}.", run, heads, log_size, block in shared)
        if middle is not None:
            middle(run, block)
        run.counts.append((attended, run.x.shape[0]))
        run.x = run.x + _mlp(state, f"blocks.{block}.", run.x)
        if chosen is not None:
            out = whole.clone()
            out[0] = run.x[0]
            for place, i in enumerate(chosen):
                out[i + 1] = run.x[place + 1]
            run.x, run.members = out, members
    if last is not None:
        last(run, depth)
    every = {i: run.x[place + 1] for place, group in enumerate(run.members) for i in group} | run.gone
    tokens = torch.stack([run.x[0], *[every[i] for i in range(len(every))]])
    tokens = _norm(state, "norm.", tokens)
    return tokens[0] @ state["head.weight"].T + state["head.bias"], tokens, run


def _norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * state[name + "weight"] + state[name + "bias"]


def _attend(state: dict[str, Tensor], name: str, run: Run, heads: int, log_size: bool, shared: bool) -> Tensor:
    x = _norm(state, name + "norm1.", run.x)
    length, width = x.shape
    mixed = x @ state[name + "attn.qkv.weight"].T + state[name + "attn.qkv.bias"]
    queries, keys, values = (
        mixed[:, part * width : (part + 1) * width].reshape(length, heads, width // heads).transpose(0, 1)
        for part in range(3)
    )
    if shared:
        assert run.queries is not None and run.keys is not None
        queries, keys = run.queries, run.keys
    logits = queries @ keys.transpose(1, 2) / math.sqrt(width // heads)
    if log_size:
        logits = logits + torch.tensor([1, *run.sizes], dtype=x.dtype).log()
    attention = logits.exp() / logits.exp().sum(-1, keepdim=True)
    run.inputs, run.queries, run.keys, run.values, run.logits, run.attention = (
        x,
        queries,
        keys,
        values,
        logits,
        attention,
    )
    joined = (attention @ values).transpose(0, 1).reshape(length, width)
    return joined @ state[name + "attn.proj.weight"].T + state[name + "attn.proj.bias"]


def _mlp(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    hidden = _norm(state, name + "norm2.", x) @ state[name + "mlp.fc1.weight"].T + state[name + "mlp.fc1.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return hidden @ state[name + "mlp.fc2.weight"].T + state[name + "mlp.fc2.bias"]


def class_attention(run: Run) -> list[float]:
    """What the class token pays to each patch token, mean over heads."""
    return run.attention[:, 0, 1:].mean(0).tolist()


def top(score: list[float], count: int) -> list[int]:
    """Places of the ``count`` highest scores, highest first, the lower place first where they are equal."""
    return sorted(range(len(score)), key=lambda i: (-score[i], i))[:count]


def _rebuild(run: Run, groups: list[list[int]], weights: list[float] | None, total: bool = True) -> None:
    """Replace the patch tokens by the weighted means (or sums) of ``groups`` of places."""
    rows, members = [run.x[0]], []
    for group in groups:
        if len(group) == 1:
            rows.append(run.x[group[0] + 1])
        else:
            weight = [weights[i] for i in group] if weights is not None else [run.sizes[i] for i in group]
            mixed = sum(w * run.x[i + 1] for w, i in zip(weight, group, strict=True))
            rows.append(mixed / sum(weight) if total else mixed)
        members.append([m for i in group for m in run.members[i]])
    run.x, run.members = torch.stack(rows), members


def tome(r: int) -> Reducer:
    """ToMe: bipartite soft matching on the head-mean keys, size-weighted means."""

    def middle(run: Run, block: int) -> None:
        metric = run.keys.mean(0)
        metric = metric / metric.norm(dim=-1, keepdim=True)
        length = metric.shape[0]
        left, right = list(range(0, length, 2)), list(range(1, length, 2))
        edges = []
        for a in left:
            if a == 0:
                continue  # the class token never merges
            best = max(right, key=lambda b: (float(metric[a] @ metric[b]), -b))
            edges.append((float(metric[a] @ metric[best]), a, best))
        edges.sort(key=lambda e: (-e[0], e[1]))
        merging = edges[: min(r, (length - 1) // 2)]
        joins: dict[int, list[int]] = {b: [b] for b in right}
        for _, a, b in merging:
            joins[b].append(a)
        moved = {a for _, a, _ in merging}
        groups = [[a] for a in left if a not in moved and a != 0] + [joins[b] for b in right]
        _rebuild(run, [[i - 1 for i in group] for group in groups], None)

    return middle


def topk(sites: tuple[int, ...], keep: float) -> Reducer:
    """Plain top-K by class attention; what leaves keeps its last value."""

    def middle(run: Run, block: int) -> None:
        if block not in sites:
            return
        score = class_attention(run)
        chosen = sorted(top(score, max(1, round(round(keep * len(score), 6)))))
        for i in set(range(len(score))) - set(chosen):
            for m in run.members[i]:
                run.gone[m] = run.x[i + 1]
        _rebuild(run, [[i] for i in chosen], None)

    return middle


def evit(sites: tuple[int, ...], keep: float) -> Reducer:
    """EViT: top-K by class attention and one token with the attention-weighted sum of the others."""

    def middle(run: Run, block: int) -> None:
        if block not in sites:
            return
        score = class_attention(run)
        chosen = sorted(top(score, math.ceil(round(keep * len(score), 6))))
        others = [i for i in range(len(score)) if i not in chosen]
        _rebuild(run, [[i] for i in chosen] + [others], score, total=False)

    return middle


def greedy_pairs(similarity: list[list[float]], count: int) -> list[tuple[int, int]]:
    """The most similar pair, then the most similar one disjoint from it, and so on."""
    length = len(similarity)
    edges = sorted(
        ((i, j) for i in range(length) for j in range(i + 1, length)), key=lambda e: (-similarity[e[0]][e[1]], e)
    )
    taken: set[int] = set()
    pairs: list[tuple[int, int]] = []
    for i, j in edges:
        if len(pairs) < count and i not in taken and j not in taken:
            pairs.append((i, j))
            taken |= {i, j}
    return pairs


def density_peaks(x: Tensor, clusters: int) -> list[list[int]]:
    """Groups of rows of ``x`` (M, C): density, distance to a denser row, centres by their product, nearest centre."""
    length, channels = x.shape
    distance = [[float((x[i] - x[j]).norm()) / math.sqrt(channels) for j in range(length)] for i in range(length)]
    density = [math.exp(-sum(d * d for d in row) / length) for row in distance]
    largest = max(max(row) for row in distance)
    delta = []
    for i in range(length):
        denser = [j for j in range(length) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        delta.append(min((distance[i][j] for j in denser), default=largest))
    centres = sorted(top([density[i] * delta[i] for i in range(length)], clusters))
    groups = {c: [c] for c in centres}
    for i in range(length):
        if i not in groups:
            groups[min(centres, key=lambda c: (distance[i][c], c))].append(i)
    return [groups[c] for c in centres]


def bat(sites: tuple[int, ...], keep: float, clusters: float, surplus: int, weight: str) -> Reducer:
    """BAT: merge the most similar attentive pairs, cluster the inattentive tokens."""

    def middle(run: Run, block: int) -> None:
        if block not in sites:
            return
        score = class_attention(run)
        present = len(score)
        attentive_count = math.ceil(round(keep * present, 6))
        others = present - attentive_count
        cluster_count = min(max(1, math.floor(clusters * others + 0.5)), others)
        wanted = max(0, cluster_count - surplus)
        pair_count = min(wanted, attentive_count // 2)
        cluster_count = max(1, cluster_count - wanted + pair_count)
        ranked = top(score, present)
        attentive, inattentive = sorted(ranked[:attentive_count]), sorted(ranked[attentive_count:])
        x = run.x[1:]
        unit = x[attentive] / x[attentive].norm(dim=-1, keepdim=True)
        pairs = greedy_pairs((unit @ unit.T).tolist(), pair_count)
        paired = {i for pair in pairs for i in pair}
        groups = [[attentive[i]] for i in range(len(attentive)) if i not in paired]
        groups += [[attentive[i], attentive[j]] for i, j in pairs]
        groups += [[inattentive[i] for i in group] for group in density_peaks(x[inattentive], cluster_count)]
        _rebuild(run, groups, score if weight == "class" else None)

    return middle


def tosa(
    layers: tuple[int, ...], keep: float, score: Callable[[Run, int], list[float]]
) -> Callable[[Run, int], list[int] | None]:
    """ToSA: the top K by ``score`` of the layer before go through a ToSA layer, the others keep their value."""

    def skip(run: Run, block: int) -> list[int] | None:
        if block not in layers:
            return None
        values = score(run, block)
        return sorted(top(values, math.floor(keep * len(values) + 0.5)))

    return skip


def own_columns(run: Run, block: int) -> list[float]:
    """Column sums of the standard layer's own attention map, mean over heads."""
    return run.attention.sum(dim=1).mean(dim=0)[1:].tolist()


def selector_columns(state: dict[str, Tensor], name: str, queries: str) -> Score:
    """Column sums, or the class token's row, of the map that a selector predicts from whole (H, L, L) logits.

    Its weights lie under ``name``, which holds ``{block}``, the standard layer that the selector reads.
    """

    def score(run: Run, block: int) -> list[float]:
        part = name.format(block=block - 1)
        expand, reduce = state[part + "expand.weight"][:, :, 0], state[part + "reduce.weight"][:, :, 0]
        hidden = torch.einsum("oh,hij->oij", expand, run.logits) + state[part + "expand.bias"][:, None, None]
        out = torch.einsum("ho,oij->hij", reduce, hidden.clamp(min=0)) + state[part + "reduce.bias"][:, None, None]
        predicted = out.softmax(dim=-1)
        scores = predicted[:, 0] if queries == "class" else predicted.sum(dim=1)
        return scores.mean(dim=0)[1:].tolist()

    return score
