"""Plain references of the methods made for dense prediction, which work on the grid of all patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.helpers.references.plain import Reducer, Run, _rebuild


def expedite(
    sites: tuple[int, ...],
    grid: tuple[int, int],
    cells: tuple[int, int],
    depth: int,
    rounds: int,
    window: int,
    sharpness: float,
    nearest: int,
    norm: str,
    everywhere: bool,
) -> Reducer:
    """Expedite: what to do before a block; behind the last one every patch is blended from clusters."""
    (rows, columns), (height, width) = grid, cells
    back: dict[int, dict[int, float]] = {}

    def near(patch: int) -> list[int]:
        row, column = patch // columns * height // rows, patch % columns * width // columns
        there = [(i, j) for i in range(height) for j in range(width)]
        half = window // 2
        return [i * width + j for i, j in there if abs(i - row) <= half and abs(j - column) <= half]

    def pool(x: Tensor) -> list[Tensor]:
        centres = []
        for i in range(height):
            for j in range(width):
                down = range(i * rows // height, math.ceil((i + 1) * rows / height))
                across = range(j * columns // width, math.ceil((j + 1) * columns / width))
                centres.append(torch.stack([x[r * columns + c] for r in down for c in across]).mean(0))
        return centres

    def before(run: Run, block: int) -> None:
        if block == depth and back:
            y = run.x[1:]
            blended = [sum((w * y[i] for i, w in back[p].items()), torch.zeros_like(y[0])) for p in sorted(back)]
            run.x = torch.stack([run.x[0], *blended])
            run.members = [[p] for p in sorted(back)]
        if block not in sites:
            return
        x = run.x[1:]
        centres = pool(x)
        for _ in range(rounds):
            sums, totals = [torch.zeros_like(x[0]) for _ in centres], [0.0 for _ in centres]
            for patch in range(len(x)):
                raw = {i: math.exp(-sharpness * float((x[patch] - centres[i]).square().sum())) for i in near(patch)}
                for i, value in raw.items():
                    sums[i] += value / sum(raw.values()) * x[patch]
                    totals[i] += value / sum(raw.values())
            centres = [part / total for part, total in zip(sums, totals, strict=True)]
        for patch in range(len(x)):
            among = range(len(centres)) if everywhere else near(patch)
            distance = {i: float((x[patch] - centres[i]).square().sum()) for i in among}
            best = sorted(distance, key=distance.__getitem__)[:nearest]
            weight = {i: math.exp(-sharpness * distance[i]) for i in best}
            length = sum(weight.values()) if norm == "sum" else math.sqrt(sum(w * w for w in weight.values()))
            back[patch] = {i: w / length for i, w in weight.items()}
        run.x = torch.stack([run.x[0], *centres])
        run.members = [[i] for i in range(len(centres))]

    return before


def ailurus(
    sites: tuple[int, ...], grid: tuple[int, int], keep: float, spatial: float, nearest: int, neighbours: int
) -> Reducer:
    """AiluRus: density peaks among the patches near in space, before a block."""
    rows, columns = grid

    def before(run: Run, block: int) -> None:
        if block not in sites:
            return
        x = run.x[1:]
        count = len(x)
        side = range(-max(rows, columns), max(rows, columns) + 1)
        offsets = sorted((a * a + b * b, a, b) for a in side for b in side)[1 : nearest + 1]
        sigma: list[dict[int, float]] = []
        for i in range(count):
            row = {}
            for rank, (_, a, b) in enumerate(offsets, start=1):
                r, c = i // columns + a, i % columns + b
                if 0 <= r < rows and 0 <= c < columns:
                    j = r * columns + c
                    far = float((x[i] - x[j]).square().sum()) ** 0.5 / math.sqrt(x.shape[1])
                    row[j] = (1 - spatial) * far + spatial * rank / nearest
            sigma.append(row)
        density = []
        for row in sigma:
            least = sorted(row.values())[:neighbours]
            density.append(math.exp(-sum(s * s for s in least) / len(least)))
        upward = [{j: s for j, s in sigma[i].items() if (-density[j], j) < (-density[i], i)} for i in range(count)]
        peaks = sorted((i for i in range(count) if not upward[i]), key=lambda i: -density[i])
        slopes = sorted((i for i in range(count) if upward[i]), key=lambda i: -density[i] * min(upward[i].values()))
        left = max(1, math.ceil(round(keep * count, 6)))
        centres = sorted((peaks + slopes)[:left])

        def centre_of(i: int) -> int:
            if i in centres:
                return i
            close = {j: s for j, s in sigma[i].items() if j in centres}
            if close:
                return min(close, key=close.__getitem__)
            if upward[i]:
                return centre_of(min(upward[i], key=upward[i].__getitem__))
            return max([j for j in centres if j < i], default=centres[0])

        joins = [centre_of(i) for i in range(count)]
        _rebuild(run, [[i for i in range(count) if joins[i] == centre] for centre in centres], None)

    return before


def cubist(sites: tuple[int, ...], grid: tuple[int, int], lost: tuple[tuple[int, int], ...], value: str) -> Reducer:
    """CubistMerge: before each site every row and then every column loses ``lost`` (rows, columns) tokens."""

    def alike(a: Tensor, b: Tensor) -> float:
        return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))

    def join(cells: list[tuple[Tensor, list[int]]]) -> tuple[Tensor, list[int]]:
        members = [m for _, group in cells for m in group]
        if value == "mean":
            return sum(len(group) * x for x, group in cells) / len(members), members
        largest = [max((float(x[c]) for x, _ in cells), key=lambda v: (abs(v), v)) for c in range(len(cells[0][0]))]
        return torch.tensor(largest, dtype=cells[0][0].dtype), members

    def shorten(line: list[tuple[Tensor, list[int]]], count: int) -> list[tuple[Tensor, list[int]]]:
        edges = []
        for place in range(1, len(line), 2):
            near = [n for n in (place - 1, place + 1) if n < len(line)]
            best = max(near, key=lambda n: (alike(line[place][0], line[n][0]), -n))
            edges.append((-alike(line[place][0], line[best][0]), place, best))
        merged = {place: best for _, place, best in sorted(edges)[:count]}
        return [
            join([line[place], *(line[other] for other, best in merged.items() if best == place)])
            for place in range(len(line))
            if place not in merged
        ]

    def before(run: Run, block: int) -> None:
        if block not in sites:
            return
        site = sites.index(block)
        width = grid[1] - sum(columns for _, columns in lost[:site])
        cells = list(zip(run.x[1:], run.members, strict=True))
        rows = [shorten(cells[at : at + width], lost[site][1]) for at in range(0, len(cells), width)]
        columns = [shorten([row[place] for row in rows], lost[site][0]) for place in range(len(rows[0]))]
        left = [column[place] for place in range(len(columns[0])) for column in columns]
        run.x = torch.stack([run.x[0], *(x for x, _ in left)])
        run.members = [members for _, members in left]

    return before
