"""Plain references of the prefix methods of vision-language models, one image at a time, in float64 and in loops.

Every function takes the features (N, C), what the method reads besides, and how many tokens to keep; it gives the
places, ascending, and of methods that merge what stands there. Of equals the first one wins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.neighbors import LocalOutlierFactor
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> float:
    return 1.0 if torch.equal(a, b) else float(a @ b / (a.norm() * b.norm()))


def largest(scores: Sequence[float], among: Sequence[int]) -> int:
    best = among[0]
    for place in among:
        if scores[place] > scores[best]:
            best = place
    return best


def highest(scores: Sequence[float], among: Sequence[int], count: int) -> list[int]:
    """``count`` places of the highest scores, from high to low."""
    left, chosen = list(among), []
    for _ in range(count):
        chosen.append(largest(scores, left))
        left.remove(chosen[-1])
    return chosen


def to_unit_interval(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 1.0 for value in values]


def greedy(worth: Callable[[list[int]], float], features: int, count: int) -> list[int]:
    """The set that grows by whatever makes it worth most."""
    chosen: list[int] = []
    for _ in range(count):
        others = [place for place in range(features) if place not in chosen]
        after = {place: worth([*chosen, place]) for place in others}
        best = others[0]
        for place in others:
            if after[place] > after[best] + 1e-12 * max(1, abs(after[best])):
                best = place
        chosen.append(best)
    return sorted(chosen)


def facility_location(value: list[list[float]], chosen: list[int]) -> float:
    return sum(max(row[place] for place in chosen) for row in value)


def softmax(values: Sequence[float]) -> list[float]:
    top = max(values)
    shares = [math.exp(value - top) for value in values]
    return [share / sum(shares) for share in shares]


def vispruner(features: Tensor, attention: Tensor, count: int, important: float, removed: int) -> list[int]:
    scores = attention.tolist()
    first = highest(scores, range(len(features)), math.ceil(important * count))
    rest = [place for place in range(len(features)) if place not in first]
    while len(rest) > count - len(first):
        one, two = rest[::2], rest[1::2]
        if not two:
            rest = []
            break
        nearest = {a: max(cosine(features[a], features[b]) for b in two) for a in one}
        for _ in range(min(removed, len(rest) - (count - len(first)), len(one))):
            gone = one[0]
            for a in one:
                if nearest[a] > nearest[gone]:
                    gone = a
            one.remove(gone)
            rest.remove(gone)
    return sorted(first + rest)


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def prumerge(
    features: Tensor, attention: Tensor, keys: Tensor, cap: int, plus: bool, merged: int
) -> tuple[list[int], list[Tensor]]:
    scores = attention.tolist()
    lower, upper = quantile(scores, 0.25), quantile(scores, 0.75)
    number = sum(score > upper + 1.5 * (upper - lower) for score in scores)
    kept = highest(scores, range(len(scores)), min(cap, max(1, number)))
    if plus:
        others = [place for place in range(len(scores)) if place not in kept]
        more = cap - len(kept)
        kept += [others[math.floor((k + 0.5) * len(others) / more)] for k in range(more)]
    rest = [place for place in range(len(scores)) if place not in kept]
    values = []
    for place in sorted(kept):
        alike = [cosine(keys[place], keys[other]) for other in range(len(scores))]
        near = highest(alike, rest, min(merged, len(rest))) if rest else []
        total, weight = scores[place] * features[place], scores[place]
        for other in near:
            total, weight = total + scores[other] * features[other], weight + scores[other]
        values.append(total / weight)
    return sorted(kept), values


def cdpruner(
    features: Tensor, text: Tensor, count: int, theta: float | None, patches: Tensor | None = None
) -> list[int]:
    size = len(features)
    seen = features if patches is None else patches
    against = [-sum(cosine(seen[i], word) for word in text) / len(text) if len(text) else 0.0 for i in range(size)]
    relevance = [value + 1e-6 for value in to_unit_interval(against)]
    if theta is not None:
        relevance = [math.exp(theta / (2 * (1 - theta)) * value) for value in relevance]
    kernel = torch.tensor(
        [[relevance[i] * cosine(features[i], features[j]) * relevance[j] for j in range(size)] for i in range(size)],
        dtype=torch.float64,
    )

    def worth(chosen: list[int]) -> float:
        return float(torch.linalg.slogdet(kernel[chosen][:, chosen]).logabsdet)

    return greedy(worth, size, count)


def mmtok(features: Tensor, text: Tensor, count: int, temperatures: tuple[float, float], weight: float) -> list[int]:
    words = [softmax([cosine(word, feature) / temperatures[0] for feature in features]) for word in text]
    image = [softmax([cosine(one, feature) / temperatures[1] for feature in features]) for one in features]

    def worth(chosen: list[int]) -> float:
        return facility_location(words, chosen) + weight * facility_location(image, chosen)

    return greedy(worth, len(features), count)


def eadp(
    features: Tensor,
    text: Tensor,
    count: int,
    power: float,
    sigma: float,
    grid: tuple[int, ...],
    encoded: tuple[Tensor, Tensor] | None = None,
) -> list[int]:
    """``encoded``: the patches and the whole texts that are compared by a text encoder; ``text`` are its words then."""
    size = len(features)
    relevance = [1.0] * size
    patches, texts = (features, text) if encoded is None else encoded
    if len(text):
        seen = [[cosine(word, patch) for patch in patches] for word in text]
        shares = [softmax(row) for row in seen]
        entropy = [-sum(share * math.log(share) for share in row) for row in shares]
        half = sorted(range(len(text)), key=lambda word: entropy[word])[: math.ceil(len(text) / 2)]
        weight = {word: math.log(size) - entropy[word] for word in half}
        total = sum(weight.values())
        whole = [sum(cosine(one, patch) for one in texts) / len(texts) for patch in patches]
        single = [sum(weight[word] / total * seen[word][i] for word in half) for i in range(size)]
        relevance = to_unit_interval([(a + b) / 2 for a, b in zip(whole, single, strict=True)])
    if sigma:
        relevance = gaussian(relevance, grid, sigma)
    value = [[relevance[j] ** power * cosine(features[i], features[j]) for i in range(size)] for j in range(size)]
    return greedy(lambda chosen: facility_location(value, chosen), size, count)


def gaussian(values: list[float], grid: tuple[int, ...], sigma: float) -> list[float]:
    *frames, rows, columns = grid
    out = []
    for frame in range(math.prod(frames)):
        for row in range(rows):
            for column in range(columns):
                total = weight = 0.0
                for down in (-1, 0, 1):
                    for right in (-1, 0, 1):
                        if 0 <= row + down < rows and 0 <= column + right < columns:
                            share = math.exp(-(down**2 + right**2) / (2 * sigma**2))
                            total += share * values[(frame * rows + row + down) * columns + column + right]
                            weight += share
                out.append(total / weight)
    return out


def outlying(scores: Sequence[float], neighbours: int) -> int:
    """How many outliers scikit-learn finds."""
    if len(scores) < 2:
        return 0
    found = LocalOutlierFactor(n_neighbors=min(neighbours, len(scores) - 1), contamination="auto")
    return int((found.fit_predict(np.array(scores).reshape(-1, 1)) == -1).sum())


def recoverable(
    features: Tensor,
    attention: Tensor,
    keys: Tensor,
    text: Tensor,
    cap: int,
    merged: int,
    weight: float,
    patches: Tensor | None = None,
) -> tuple[list[int], list[Tensor], dict[str, list[int]]]:
    """Step by step; the last part says what became of which token. ``patches``: what is compared with the text, where
    that is not the features."""
    size = len(features)
    compared = features if patches is None else patches
    v = attention.tolist()
    words = len(text)
    t = [
        sum(cosine(patch, word) for word in text) / words / math.sqrt(compared.shape[1]) if words else 0.0
        for patch in compared
    ]
    seen = highest(v, range(size), min(cap, outlying(v, 20)))
    rest = [i for i in range(size) if i not in seen]
    recovered = highest(t, rest, min(cap - len(seen), outlying([t[i] for i in rest], 20)))
    rest = [i for i in rest if i not in recovered]
    kept = len(seen) + len(recovered)
    number = math.floor(kept * outlying([v[i] for i in rest], 10) / len(rest)) if rest else 0
    centres = highest(v, rest, min(number, cap - kept, len(rest)))
    left = [i for i in rest if i not in centres]
    stands = {i: features[i] for i in seen + recovered}
    taken: list[int] = []
    for centre in centres:
        likeness = [cosine(keys[centre], keys[j]) + weight * t[j] for j in range(size)]
        near = highest(likeness, left, min(merged, len(left))) if left else []
        stands[centre] = features[centre]
        for j in near:
            stands[centre] = stands[centre] + v[j] * features[j]
        left = [j for j in left if j not in near]
        taken += near
    if left and len(stands) < cap:
        stands[left[-1]] = sum((v[j] * features[j] for j in left), torch.zeros_like(features[0]))
    parts = {"seen": seen, "recovered": recovered, "centres": centres, "taken": taken, "left": left}
    return sorted(stands), [stands[i] for i in sorted(stands)], parts


def sparsity_meets_similarity(attention: Tensor, cap: int) -> list[int]:
    scores = attention.tolist()
    curve = sorted(scores, reverse=True)
    last, deepest, knee = len(curve) - 1, 1e-12, 0
    for i in range(1, last):
        height = (curve[i] - curve[-1]) / (curve[0] - curve[-1]) if curve[0] > curve[-1] else 1.0
        if 1 - i / last - height > deepest:
            deepest, knee = 1 - i / last - height, i
    return sorted(highest(scores, range(len(scores)), min(cap, knee or cap)))


def evs(features: Tensor, frames: int, count: int) -> list[int]:
    places = len(features) // frames
    changed = [3.0] * places
    for i in range(places, len(features)):
        changed.append(1 - cosine(features[i], features[i - places]))
    return sorted(highest(changed, range(len(features)), count))


def vidcom2(features: Tensor, frames: int, count: int, temperature: float) -> list[int]:
    size, channels = features.shape
    places = size // frames
    variance = [float(((features[:, c] - features[:, c].mean()) ** 2).mean()) for c in range(channels)]
    steady = sorted(highest([-value for value in variance], range(channels), math.ceil(channels / 2)))
    unit = [features[i, steady] / features[i, steady].norm() for i in range(size)]
    whole = sum(unit[1:], unit[0]) / size
    of_frame = [[frame * places + place for place in range(places)] for frame in range(frames)]
    middle = [sum((unit[i] for i in members), torch.zeros_like(whole)) / places for members in of_frame]

    def like(i: int, mean: Tensor) -> float:
        distance = float(((unit[i] - mean) ** 2).sum())
        return sum(math.exp(-distance / (2 * 2.0**k)) for k in (-3, -2, -1, 0, 1))

    to_video = [like(i, whole) for i in range(size)]
    share = softmax([-sum(to_video[i] for i in members) / places / temperature for members in of_frame])
    budget = [count / size * (1 + p - sum(share) / frames) * places for p in share]
    given = [min(places, math.floor(one)) for one in budget]
    while sum(given) < count:
        open_frames = [frame for frame in range(frames) if given[frame] < places]
        best = open_frames[0]
        for frame in open_frames:
            if budget[frame] - given[frame] > budget[best] - given[best]:
                best = frame
        given[best] += 1
    kept = []
    for frame, members in enumerate(of_frame):
        score = [-(to_video[i] + like(i, middle[frame])) for i in range(size)]
        kept += highest(score, members, given[frame])
    return sorted(kept)
