"""How time and memory grow with the number of tokens: exponents fitted to the cells of one results file.

python benchmarks/growth.py benchmarks/results/dense/FILE.json

For every model and variant that was measured at two image sizes or more: seconds and peak memory of one image at each
number N of dense tokens, and the slope of a straight line through (log N, log value) by least squares.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from store import Store, read_store
from tokensieve.errors import TokensieveError
from tokensieve.measure.results import DENSE
from tokensieve.utils.files import replacing

Points = dict[int, tuple[float, float]]


def growth(store: Store) -> dict[tuple[str, str], Points]:
    """(where, variant) to N to (seconds, bytes) of one image, ascending in N; those with one size are left out."""
    found: dict[tuple[str, str], Points] = {}
    for record in store.cells.values():
        if record["kind"] != "model" or "failed" in record:
            continue
        setting: dict[str, Any] = record["setting"]
        where = f"{setting['model']}, batch {setting['batch']}, {setting['dtype']}, {setting['engine']}"
        tokens = next(row["attended"][0] for row in record["rows"] if row["variant"] == DENSE)
        for row in record["rows"]:
            figures = (median(row["seconds"]) / setting["batch"], row["peak_memory"] / setting["batch"])
            found.setdefault((where, row["variant"]), {})[tokens] = figures
    return {key: dict(sorted(points.items())) for key, points in found.items() if len(points) > 1}


def exponent(values: dict[int, float]) -> float:
    """The slope of log value over log N."""
    return float(np.polyfit(np.log(list(values)), np.log(list(values.values())), 1)[0])


def table(found: dict[tuple[str, str], Points]) -> str:
    """The tables, one for each setting, in Markdown.

    Raises:
        TokensieveError: nothing was measured at two sizes.
    """
    if not found:
        raise TokensieveError("no model was measured at two image sizes: run benchmarks/run.py with several --img-size")
    lines: list[str] = []
    for where in dict.fromkeys(key[0] for key in found):
        variants = {variant: points for (place, variant), points in found.items() if place == where}
        sizes = sorted({tokens for points in variants.values() for tokens in points})
        heads = [f"{kind} at {tokens}" for kind in ("ms", "MB") for tokens in sizes]
        lines += [f"## {where}", "", f"| variant | {' | '.join(heads)} | time ~ N^ | memory ~ N^ |"]
        lines += ["|---" * (len(heads) + 3) + "|"]
        for variant, points in variants.items():
            cells = [f"{1e3 * points[n][0]:.0f}" if n in points else "–" for n in sizes]
            cells += [f"{points[n][1] / 1e6:.1f}" if n in points else "–" for n in sizes]
            fits = [exponent({n: point[kind] for n, point in points.items()}) for kind in (0, 1)]
            lines.append(f"| `{variant}` | {' | '.join(cells)} | {fits[0]:.2f} | {fits[1]:.2f} |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="what benchmarks/run.py wrote")
    options = parser.parse_args(arguments)
    try:
        text = table(growth(read_store(options.file)))
        target = options.file.with_name(f"{options.file.stem}-growth.md")
        with replacing(target) as beside:
            beside.write_text(f"# Growth with the number of tokens\n\n{text}", encoding="utf-8")
    except TokensieveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
