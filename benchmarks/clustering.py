"""ATC's clustering beside a loop over scikit-learn (G9): the time of both, on the same distances.

    python benchmarks/clustering.py [--tokens 197] [--batch 64] [--clusters 137] [--output FILE.md]

scikit-learn clusters one image after another on one thread; ours takes as many as torch does. That both find the same
clusters is a test's business (tests/parity).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import get_args

import numpy as np
import torch
from sklearn.cluster import AgglomerativeClustering

from tokensieve.measure.results import environment
from tokensieve.methods._agglomerative import Linkage, agglomerate, cosine_distances
from tokensieve.utils.files import replacing


def interleaved(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of every call, run in turns."""
    seconds: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(rounds):
        for call, taken in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return [median(taken) for taken in seconds]


def one_by_one(clustering: AgglomerativeClustering, images: np.ndarray) -> list[np.ndarray]:
    """Group numbers of every image from ``images`` (B, M, M), its distances."""
    return [clustering.fit_predict(image) for image in images]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=197)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--clusters", type=int, default=137)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    features = torch.randn(given.batch, given.tokens, 64, generator=torch.Generator().manual_seed(0))
    rows = []
    with torch.inference_mode():
        distances = cosine_distances(features)
        images = distances.numpy()
        for linkage in get_args(Linkage):
            one = AgglomerativeClustering(given.clusters, metric="precomputed", linkage=linkage)
            calls: list[Callable[[], object]] = [
                partial(agglomerate, distances, given.clusters, linkage),
                partial(one_by_one, one, images),
            ]
            ours, loop = interleaved(calls, given.rounds)
            rows.append(f"| {linkage} | {ours * 1e3:.2f} | {loop * 1e3:.1f} | {loop / ours:.1f} |")
    where = environment()
    text = "\n".join(
        [
            "# ATC's clustering beside a loop over scikit-learn",
            "",
            f"{given.batch} images of {given.tokens} tokens to {given.clusters} clusters, from distances; "
            f"{where['threads']} threads, torch {torch.__version__}, {where['device']}, medians of "
            f"{given.rounds} rounds in turns. Written by `benchmarks/clustering.py`.",
            "",
            "| linkage | ours, ms | scikit-learn, ms | ratio |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )
    print(text)
    if given.output is not None:
        with replacing(given.output) as beside:
            beside.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
