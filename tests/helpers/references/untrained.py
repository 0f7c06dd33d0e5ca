"""More of the methods that need no training, one image in plain loops. Shares no code with the library."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.helpers.references.plain import Reducer, Run, _rebuild, class_attention, greedy_pairs, top


def drop(run: Run, chosen: list[int]) -> None:
    """Keep the patch tokens at ``chosen`` places; what leaves keeps its last value."""
    for i in set(range(len(run.members))) - set(chosen):
        for m in run.members[i]:
            run.gone[m] = run.x[i + 1]
    _rebuild(run, [[i] for i in chosen], None)


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def value_weighted(run: Run) -> list[float]:
    """Class attention times the length of the value vector, summing to one."""
    attention = run.attention[:, 0, 1:].sum(0)
    score = []
    for j in range(attention.shape[0]):
        length = math.sqrt(sum(float(run.values[h, j + 1] @ run.values[h, j + 1]) for h in range(run.values.shape[0])))
        score.append(float(attention[j]) * length)
    return [s / sum(score) for s in score]


def matched(run: Run, r: int) -> list[list[int]]:
    """Groups of patch places after ToMe's matching on the head-mean keys; the class token is at place 0 of all."""
    metric = unit(run.keys.mean(0))
    length = metric.shape[0]
    edges = []
    for a in range(2, length, 2):
        best = max(range(1, length, 2), key=lambda b: (float(metric[a] @ metric[b]), -b))
        edges.append((float(metric[a] @ metric[best]), a, best))
    edges.sort(key=lambda e: (-e[0], e[1]))
    groups = {i: [i - 1] for i in range(1, length)}
    for _, a, b in edges[:r]:
        groups[b].append(a - 1)
        del groups[a]
    return [groups[i] for i in sorted(groups, key=lambda i: (i % 2, i))]  # the side that gave first


def ppt(sites: tuple[int, ...], r: int, threshold: float) -> Reducer:
    """PPT: prune or merge by the variance of the scores."""

    def middle(run: Run, block: int) -> None:
        if block not in sites:
            return
        score = value_weighted(run)
        count = min(r, len(score) // 2)
        mean = sum(score) / len(score)
        if sum((s - mean) ** 2 for s in score) / (len(score) - 1) < threshold:
            _rebuild(run, matched(run, count), None)
        else:
            drop(run, sorted(top(score, len(score) - count)))

    return middle


def stage_count(run: Run, keep: float, stage: int) -> int:
    """int(N · keep^(stage + 1)) of all N patches there were."""
    every = sum(run.sizes)
    return max(1, math.floor(round(every * keep ** (stage + 1), 6)))


def distances(x: Tensor) -> list[list[float]]:
    return [[float((a - b).norm()) / math.sqrt(x.shape[1]) for b in x] for a in x]


def dpcknn(
    sites: tuple[int, ...], keep: float, neighbours: int, weights: Tensor | None, itself: bool = False
) -> Reducer:
    """DPC-KNN; ``weights`` (C,) of exp(w · x), or None for equal ones."""

    def before(run: Run, block: int) -> None:
        if block not in sites:
            return
        x = run.x[1:]
        length, count = x.shape[0], stage_count(run, keep, sites.index(block))
        apart = distances(x)
        density = []
        for i in range(length):
            near = sorted(apart[i][j] ** 2 for j in range(length) if itself or j != i)[:neighbours]
            density.append(math.exp(-sum(near) / len(near)))
        largest = max(max(row) for row in apart)
        score = []
        for i in range(length):
            denser = [j for j in range(length) if density[j] > density[i] or (density[j] == density[i] and j < i)]
            score.append(density[i] * min((apart[i][j] for j in denser), default=largest))
        groups = {c: [c] for c in sorted(top(score, count))}
        for i in set(range(length)) - set(groups):
            groups[min(groups, key=lambda c: (apart[i][c], c))].append(i)
        weight = [1.0] * length if weights is None else (x @ weights).exp().tolist()
        _rebuild(run, list(groups.values()), weight)

    return before


def kmedoids(sites: tuple[int, ...], keep: float, update: str, rounds: int) -> Reducer:
    """K-medoids on the attention received in the block before."""

    def before(run: Run, block: int) -> None:
        if block not in sites:
            return
        x, received = run.x[1:], run.attention.mean(dim=(0, 1))[1:].tolist()
        count, apart = stage_count(run, keep, sites.index(block)), distances(run.x[1:])
        weight = received if update == "weighted" else [1.0] * x.shape[0]
        centres = sorted(top(received, count))

        def clusters() -> dict[int, list[int]]:
            groups: dict[int, list[int]] = {c: [c] for c in centres}
            for i in range(x.shape[0]):
                if i not in groups:
                    groups[min(centres, key=lambda c: apart[i][c])].append(i)
            return groups

        for _ in range(rounds):
            centres = [
                min(sorted(group), key=lambda i, group=group: sum(weight[j] * apart[i][j] for j in group))
                for group in clusters().values()
            ]
        groups = clusters()
        rows = [run.x[0], *(x[c] for c in sorted(groups))]
        members = [[m for i in groups[c] for m in run.members[i]] for c in sorted(groups)]
        run.x, run.members = torch.stack(rows), members

    return before


def atc(sites: tuple[int, ...], keep: float, linkage: str) -> Reducer:
    """ATC: the two nearest clusters join until few enough are left; their distance from all pairs of members."""
    joined = {"single": min, "complete": max, "average": lambda values: sum(values) / len(values)}[linkage]

    def middle(run: Run, block: int) -> None:
        if block not in sites:
            return
        metric = unit(run.keys.mean(0))[1:]
        apart = (1 - metric @ metric.T).tolist()
        groups = [[i] for i in range(metric.shape[0])]
        while len(groups) > stage_count(run, keep, sites.index(block)):
            pairs = [(a, b) for a in range(len(groups)) for b in range(a + 1, len(groups))]
            a, b = min(pairs, key=lambda p: joined([apart[i][j] for i in groups[p[0]] for j in groups[p[1]]]))
            groups[a] += groups.pop(b)
        _rebuild(run, groups, None)

    return middle


def gtp(sites: tuple[int, ...], columns: int, r: int, alpha: float, graph: str, similar: int) -> Reducer:
    """GTP: the tokens of the lowest rank leave, and add themselves to their neighbours in a graph."""

    def middle(run: Run, block: int) -> None:
        if block not in sites:
            return
        heads, length = run.attention.shape[0], run.attention.shape[1]
        rank = []
        for j in range(1, length):
            own = max(float(run.attention[h, j, j]) for h in range(heads))
            rank.append(own * max(sum(float(run.attention[h, i, j]) for i in range(length)) for h in range(heads)))
        x = run.x[1:].clone()
        count = len(rank)
        cell = [divmod(m[0], columns) for m in run.members]
        alike = (unit(x) @ unit(x).T).tolist()
        named = [
            set(top([alike[i][j] if j != i else -2 for j in range(count)], min(similar, count - 1)))
            for i in range(count)
        ]

        def touch(i: int, j: int) -> bool:
            near = max(abs(cell[i][0] - cell[j][0]), abs(cell[i][1] - cell[j][1])) == 1
            like = j in named[i] or i in named[j]
            return i != j and ((graph != "semantic" and near) or (graph != "spatial" and like))

        degree = [sum(touch(i, j) for j in range(count)) for i in range(count)]
        chosen = sorted(top(rank, max(1, count - r)))
        gone = [i for i in range(count) if i not in chosen]
        rows = [run.x[0]]
        for i in chosen:
            row = x[i]
            for j in gone:
                if touch(i, j):
                    row = row + alpha * x[j] / math.sqrt(degree[i] * degree[j])
            rows.append(row)
        drop(run, chosen)
        run.x = torch.stack(rows)

    return middle


def pitome(depth: int, keep: float, margin: float) -> Reducer:
    """PiToMe: sides by the rank of the energy, whole in the first half of the blocks, the top 2k in the second."""

    def middle(run: Run, block: int) -> None:
        metric = unit(run.keys.mean(0))[1:]
        alike, count = (metric @ metric.T).tolist(), metric.shape[0]
        remove = min(count - math.ceil(round(keep * count, 6)), count // 2)
        if remove == 0:
            return
        m = margin - margin * block / depth
        energy = [sum(c - m if c >= m else math.exp(c - m) - 1 for c in row) / count for row in alike]
        ranked = top(energy, count if block < depth // 2 else 2 * remove)
        even, odd = ranked[0::2], ranked[1::2]
        edges = sorted(((max(alike[a][b] for b in odd), a) for a in even), reverse=True)[:remove]
        groups = {i: [i] for i in odd}
        moved = {a for _, a in edges}
        for _, a in edges:
            groups[max(odd, key=lambda b, a=a: alike[a][b])].append(a)
        for i in range(count):
            if i not in moved and i not in groups:
                groups[i] = [i]
        _rebuild(run, list(groups.values()), None)

    return middle


def mctf(sites: tuple[int, ...], r: int, info: float, size: float, by_edge: bool) -> Reducer:
    """MCTF: three criteria, half of the edges in each direction, means by attention times size."""

    def middle(run: Run, block: int) -> None:
        if block not in sites:
            return
        x, sizes = run.x[1:], run.sizes
        received = run.attention.mean(dim=(0, 1))[1:].tolist()
        cosine, count = (unit(x) @ unit(x).T).tolist(), x.shape[0]
        remove = min(r, count // 2)
        left, right = list(range(1, count, 2)), list(range(0, count, 2))  # the class token is at place 0 of all
        infos = {(a, b): 1 / (received[a] * received[b]) for a in left for b in right}
        small = {(a, b): 1 / (sizes[a] * sizes[b]) for a in left for b in right}
        weight = {
            (a, b): (cosine[a][b] + 1)
            / 2
            * (infos[a, b] / max(infos.values())) ** info
            * (small[a, b] / max(small.values())) ** size
            for a in left
            for b in right
        }
        groups = {i: [i] for i in left + right}
        best = {a: max(right, key=lambda b, a=a: weight[a, b]) for a in left}
        for a in sorted(left, key=lambda a: -weight[a, best[a]])[: remove // 2]:
            groups[best[a]] += groups.pop(a)
        left = [a for a in left if a in groups]
        best = {b: max(left, key=lambda a, b=b: weight[a, b]) for b in right}
        ranked = sorted(right, key=lambda b: -weight[best[b], b])
        for b in ranked[: remove - remove // 2]:
            groups[best[b]] += groups.pop(b)
        if by_edge:
            groups = {i: groups[i] for i in [*left, *ranked] if i in groups}
        _rebuild(run, list(groups.values()), [w * s for w, s in zip(received, sizes, strict=True)])

    return middle


def diffrate(counts: list[tuple[int, int]], cosine: bool = False) -> Reducer:
    """DiffRate: by falling class attention, drop behind the first p and merge behind the first m of each block; sizes
    may grow by the size times the cosine of what merges."""

    def middle(run: Run, block: int) -> None:
        pruned, merged = counts[block]
        score, x = class_attention(run), unit(run.x[1:])
        order = top(score, len(score))
        lead = sorted(order[: min(merged, len(order))])
        if len(lead) == len(score):
            return
        groups = {i: [i] for i in lead}
        sizes = {i: run.sizes[i] for i in lead}
        for i in order[merged:pruned]:
            onto = max(lead, key=lambda j, i=i: float(x[i] @ x[j]))
            groups[onto].append(i)
            sizes[onto] += run.sizes[i] * float(x[i] @ x[onto])
        for i in order[pruned:]:
            for m in run.members[i]:
                run.gone[m] = run.x[i + 1]
        _rebuild(run, list(groups.values()), [1.0] * len(score))
        if cosine:
            run.resized = list(sizes.values())

    return middle


def ats_as_published(sites: tuple[int, ...], samples: int) -> Reducer:
    """ATS with the levels of its authors' code, each taking the nearest value of the distribution."""

    def middle(run: Run, block: int) -> None:
        if block not in sites:
            return
        score = value_weighted(run)
        rising = sorted(range(len(score)), key=lambda i: (score[i], i))
        summed = [sum(score[j] for j in rising[: place + 1]) for place in range(len(rising))]
        if len(score) == 1:
            return
        scaled = [(value - summed[0]) / (summed[-1] - summed[0]) for value in summed]
        start = min(value for value in scaled if value > 0)
        levels = [start + number * (1 - start) / (samples - 1) for number in range(samples)]
        drawn = {min(range(len(scaled)), key=lambda i, y=y: (abs(scaled[i] - y), i)) for y in levels}
        drop(run, sorted(rising[place] for place in drawn))

    return middle


def ats(sites: tuple[int, ...], samples: list[int]) -> Reducer:
    """ATS: levels of a grid looked up in the distribution of the sorted scores."""

    def middle(run: Run, block: int) -> None:
        if block not in sites:
            return
        score, levels = value_weighted(run), samples[sites.index(block)]
        rising = sorted(range(len(score)), key=lambda i: (score[i], i))
        drawn = set()
        for number in range(1, levels + 1):
            total = 0.0
            for i in rising:
                total += score[i]
                if total >= (2 * number - 1) / (2 * levels):
                    drawn.add(i)
                    break
        drop(run, sorted(drawn))

    return middle


def jmp(sites: tuple[int, ...], keep: float, threshold: float) -> Reducer:
    """JMP: merge what is not critical where it is like what is, else drop it."""

    def middle(run: Run, block: int) -> None:
        if block not in sites:
            return
        score, keys = class_attention(run), unit(run.keys.mean(0))[1:]
        critical = sorted(top(score, max(1, round(round(keep * len(score), 6)))))
        others = [i for i in range(len(score)) if i not in critical]
        best = {i: max(critical, key=lambda j, i=i: float(keys[i] @ keys[j])) for i in others}
        if sum(float(keys[i] @ keys[j]) for i, j in best.items()) / len(others) < threshold:
            drop(run, critical)
        else:
            _rebuild(run, [[j, *(i for i in others if best[i] == j)] for j in critical], None)

    return middle


def vote_mix(keep: float, temperature: float) -> Reducer:
    """Vote&Mix: the most voted tokens leave and are shared out among the others."""

    def middle(run: Run, block: int) -> None:
        keys, x = unit(run.keys.mean(0))[1:], run.x[1:].clone()
        count = x.shape[0]
        left = max(1, math.ceil(round(keep * count, 6)))
        if left == count:
            return
        votes = [0.0] * count
        for i in range(count):
            best = max((j for j in range(count) if j != i), key=lambda j: float(keys[i] @ keys[j]))
            votes[best] += max(0.0, float(keys[i] @ keys[best]))
        chosen = sorted(top([-v for v in votes], left))
        gone = [i for i in range(count) if i not in chosen]
        share = {}
        for i in gone:
            raw = {j: math.exp(float(keys[i] @ keys[j]) / temperature) for j in chosen}
            share |= {(i, j): value / sum(raw.values()) for j, value in raw.items()}
        rows = [run.x[0]]
        for j in chosen:
            mixed = x[j] + sum(share[i, j] * x[i] for i in gone)
            rows.append(mixed / (1 + sum(share[i, j] for i in gone)))
        drop(run, chosen)
        run.x = torch.stack(rows)

    return middle


def imagepiece(sites: tuple[int, ...], keep: float) -> Reducer:
    """ImagePiece: of the inattentive tokens, those joined before are dropped and the others joined in pairs."""

    def middle(run: Run, block: int) -> None:
        if block not in sites:
            return
        score, length = class_attention(run), len(run.members)
        leaving = min(length - max(1, round(keep * length)), length // 2)
        inattentive = sorted(range(length), key=lambda i: score[i])[: 2 * leaving]
        dropped = [i for i in inattentive if len(run.members[i]) > 1][:leaving]
        young = sorted(i for i in inattentive if len(run.members[i]) == 1)
        metric = unit(run.keys.mean(0))[1:]
        alike = [[float(metric[a] @ metric[b]) for b in young] for a in young]
        groups = {i: [i] for i in range(length) if i not in dropped}
        for a, b in greedy_pairs(alike, leaving - len(dropped)):
            low, high = sorted((young[a], young[b]), key=lambda i: score[i])
            groups[high].append(low)
            del groups[low]
        for i in dropped:
            for m in run.members[i]:
                run.gone[m] = run.x[i + 1]
        _rebuild(run, list(groups.values()), None)

    return middle
