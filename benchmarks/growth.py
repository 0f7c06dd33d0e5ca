"""How time and memory grow with the number of tokens: exponents fitted to the cells of one results file.

python -m benchmarks growth benchmarks/results/dense/FILE.json

For every model and variant that was measured at two image sizes or more: seconds and peak memory of one image at each
number N of dense tokens, and the slope of a straight line through (log N, log value) by least squares.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.report import table
from benchmarks.store import Store, read_store
from tokensieve.errors import TokensieveError
from tokensieve.measure.results import DENSE
from tokensieve.utils.files import replacing

FIGURES = {"ms": 1e3, "MB": 1e-6, "oracle's ms": 1e3}  # what is fitted, and the unit's share
Points = dict[int, dict[str, float]]


def options(parser: argparse.ArgumentParser) -> None:
    """Which file."""
    parser.add_argument("file", type=Path, help="what python -m benchmarks speed wrote, with several --img-size")


def run(given: argparse.Namespace) -> None:
    """Write FILE-growth.md and FILE-growth.png beside the file."""
    found = growth(read_store(given.file))
    text = page(found)
    target = given.file.with_name(f"{given.file.stem}-growth.md")
    with replacing(target) as beside:
        beside.write_text(f"# Growth with the number of tokens\n\n{text}", encoding="utf-8")
    plot(found, target.with_suffix(".png"))
    print(text)


def growth(store: Store) -> dict[tuple[str, str], Points]:
    """(where, variant) to N to figures of one image, ascending in N; those with one size are left out.

    A variant goes by what was asked for: a knob that is turned to a factor of MACs has another value at each size.
    """
    found: dict[tuple[str, str], Points] = {}
    for record in store.cells.values():
        if record["kind"] != "model" or "failed" in record:
            continue
        setting = record["setting"]
        where = f"{setting['model']}, batch {setting['batch']}, {setting['dtype']}, {setting['engine']}"
        tokens = next(row["attended"][0] for row in record["rows"] if row["variant"] == DENSE)
        for row in record["rows"]:
            figures = {"ms": median(row["seconds"]), "MB": row["peak_memory"]}
            if row.get("oracle_seconds"):
                figures["oracle's ms"] = median(row["oracle_seconds"])
            name = row.get("asked", row["variant"])
            own = {figure: value / setting["batch"] for figure, value in figures.items()}
            found.setdefault((where, name), {})[tokens] = own
    return {key: dict(sorted(points.items())) for key, points in found.items() if len(points) > 1}


def exponent(values: Mapping[int, float]) -> float:
    """The slope of log value over log N."""
    return float(np.polyfit(np.log(list(values)), np.log(list(values.values())), 1)[0])


def exponents(points: Points) -> dict[str, float]:
    """The exponent of every figure that all sizes have."""
    named = [name for name in FIGURES if all(name in figures for figures in points.values())]
    return {name: exponent({n: figures[name] for n, figures in points.items()}) for name in named}


def page(found: dict[tuple[str, str], Points]) -> str:
    """The tables, one for each setting, in Markdown.

    Raises:
        TokensieveError: nothing was measured at two sizes.
    """
    if not found:
        raise TokensieveError("no model was measured at two image sizes: run speed with several --img-size")
    lines: list[str] = []
    for where in dict.fromkeys(key[0] for key in found):
        variants = {variant: points for (place, variant), points in found.items() if place == where}
        sizes = sorted({tokens for points in variants.values() for tokens in points})
        heads = ["variant", *(f"{kind} at {tokens}" for kind in ("ms", "MB") for tokens in sizes)]
        rows = []
        for variant, points in variants.items():
            cells = [f"{1e3 * points[n]['ms']:.0f}" if n in points else "–" for n in sizes]
            cells += [f"{points[n]['MB'] / 1e6:.1f}" if n in points else "–" for n in sizes]
            fits = exponents(points)
            cells += [f"{fits[name]:.2f}" if name in fits else "" for name in FIGURES]
            rows.append([f"`{variant}`", *cells])
        lines += [f"## {where}", ""]
        lines += [*table([*heads, "time ~ N^", "memory ~ N^", "oracle's time ~ N^"], rows), ""]
    return "\n".join(lines)


def plot(found: dict[tuple[str, str], Points], file: Path) -> None:
    """Time and memory against tokens, both axes logarithmic, one line for each variant."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, name, label in zip(figure.subplots(1, 2), FIGURES, ("ms an image", "peak MB an image"), strict=False):
        for (_, variant), points in found.items():
            style = {"color": "black", "linewidth": 2} if variant == DENSE else {}
            values = [figures[name] * FIGURES[name] for figures in points.values()]
            panel.plot(list(points), values, "o-", label=f"{variant}: N^{exponents(points)[name]:.2f}", **style)
        panel.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
        panel.legend(frameon=False, fontsize=8)
        panel.grid(alpha=0.3)
    with replacing(file) as beside:
        figure.savefig(beside, dpi=150, format="png")
