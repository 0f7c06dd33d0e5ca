"""ATC's clustering beside a loop over scikit-learn: the time of both, on the same distances.

scikit-learn clusters one image after another on one thread; ours takes as many as torch does. That both find the same
clusters is a test's business (tests/parity).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from benchmarks.report import table
from tokensieve.measure import speed
from tokensieve.measure.results import environment
from tokensieve.methods._agglomerative import Linkage, agglomerate, cosine_distances
from tokensieve.utils.files import replacing


def options(parser: argparse.ArgumentParser) -> None:
    """How much to cluster."""
    for name, default in (("tokens", 197), ("batch", 64), ("clusters", 137), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output", type=Path, metavar="FILE.md")


def run(given: argparse.Namespace) -> None:
    """Time every linkage, in turns."""
    from sklearn.cluster import AgglomerativeClustering

    features = torch.randn(given.batch, given.tokens, 64, generator=torch.Generator().manual_seed(0))
    rows = []
    for linkage in get_args(Linkage):
        one = AgglomerativeClustering(given.clusters, metric="precomputed", linkage=linkage)

        def ours(distances: Tensor, linkage: Any = linkage) -> object:
            return agglomerate(distances, given.clusters, linkage)

        def loop(distances: Tensor, one: Any = one) -> object:
            return [one.fit_predict(image) for image in distances.numpy()]

        runs = {"ours": ours, "loop": loop}
        timed = speed.measure(runs, cosine_distances(features), rounds=given.rounds, warmup=1, min_time=0)
        medians = [timed[name].median for name in runs]
        rows.append([linkage, f"{medians[0] * 1e3:.2f}", f"{medians[1] * 1e3:.1f}", f"{medians[1] / medians[0]:.1f}"])
    where = environment()
    text = "\n".join(
        [
            "# ATC's clustering beside a loop over scikit-learn\n",
            f"{given.batch} images of {given.tokens} tokens to {given.clusters} clusters, from distances; "
            f"{where['threads']} threads, torch {where['torch']}, {where['device']}, medians of {given.rounds} rounds "
            "in turns. Written by `python -m benchmarks clustering`.\n",
            *table(("linkage", "ours, ms", "scikit-learn, ms", "ratio"), rows),
        ]
    )
    print(text)
    if given.output is not None:
        with replacing(given.output) as beside:
            beside.write_text(text + "\n", encoding="utf-8")
