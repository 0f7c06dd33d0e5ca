"""What a dense model costs as images grow: time and memory at several sizes, and the exponent of the number of patches.

    python benchmarks/dense_cost.py MODEL --img-size 224 --img-size 512 --img-size 1024 --method SPEC …
        --output benchmarks/results/dense/cost-NAME.json

A model of depth with a linear head on the last block, every variant and its oracle are timed interleaved at each size,
on one image. ``--factor F`` turns the knob of every method to 1/F of the dense MACs at each size. The exponent p is
that of time ∝ patchesᵖ, by least squares over the sizes. Each size is saved when it is done; ``--resume`` keeps what is
there. The table and, from two sizes on, the plot are put beside the output.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

import tokensieve as ts
from cells import DTYPES
from growth import exponent
from measure_dense import at_factor
from tokensieve.data.images import open_images
from tokensieve.data.options import DataOptions
from tokensieve.errors import TokensieveError
from tokensieve.measure.benchmark import reduce
from tokensieve.measure.macs import count
from tokensieve.measure.results import DENSE, environment
from tokensieve.measure.timing import Variant, time_variants
from tokensieve.models.load import create
from tokensieve.models.options import ModelOptions
from tokensieve.models.runtime import Runtime
from tokensieve.pixels.depth import Depth
from tokensieve.pixels.model import PixelModel, pixel_model
from tokensieve.utils.files import replacing

WHATS = ("seconds", "oracle_seconds", "peak_memory")
HEADER = ("size", "patches", "variant", "GMACs", "F", "seconds", "S", "O", "S/O", "peak MB")


def measure(size: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for the dense model and each variant at one image size."""
    torch.manual_seed(0)
    backbone = create(ModelOptions(args.model, checkpoint=args.checkpoint, img_size=size))
    dense = pixel_model(backbone, Depth())
    runtime = Runtime(model_dtype=DTYPES[args.dtype])
    runtime.place(dense)
    x = runtime.send(image(args.data, dense, size))
    asked = {spec: methods for text in args.method for spec, methods in named(text).items()}
    chosen = list(asked.values())
    if args.factor is not None:
        with torch.no_grad():
            chosen = [at_factor(dense, methods, args.factor, x) for methods in chosen]
    variants, told = [Variant(DENSE, dense, count(dense, x))], {DENSE: DENSE}
    for spec, turned in zip(asked, chosen, strict=True):
        model = reduce(dense, turned)
        variants.append(Variant(ts.spell(turned), model, count(model, x)))
        told[ts.spell(turned)] = spec
    timings = time_variants(dense, variants, x, runtime=runtime, rounds=args.rounds, warmup=1)
    rows = []
    for variant in variants:
        promised = variants[0].report.total / variant.report.total
        row = {"asked": told[variant.name], "variant": variant.name, "img_size": size}
        row |= {"patches": math.prod(dense.patch_embed.grid_size), "gmacs": variant.report.total / 1e9}
        row |= {"F": promised, "seconds": timings.variants[variant.name].median}
        if variant.name in timings.oracles:
            row["oracle_seconds"] = timings.oracles[variant.name].median
        rows.append(row | asdict(timings.speed(variant.name, promised)))
        print(line(rows[-1]), flush=True)
    return rows


def named(text: str) -> dict[str, tuple[ts.Method, ...]]:
    """The methods that a spec asks for by the words it does, or each by its own where it sweeps."""
    swept = list(ts.sweep(text))
    return {text: swept[0]} if len(swept) == 1 else {ts.spell(methods): methods for methods in swept}


def image(data: str | None, dense: PixelModel, size: int) -> Tensor:
    """(1, 3, size, size): the first photograph of a folder with one sub-folder a class, or random numbers."""
    if data is None:
        return torch.randn(1, 3, size, size)
    arguments = DataOptions(data=data, img_size=size, batch_size=1, workers=0, limit=1)
    return open_images(arguments, dense.backbone).first(1)


def exponents(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """What was asked to the exponents of its time, its oracle's and its memory; nothing where one size was measured."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["asked"] for row in rows):
        own = [row for row in rows if row["asked"] == name]
        if len({row["patches"] for row in own}) > 1:
            given = [what for what in WHATS if what in own[0]]
            found[name] = {what: exponent({row["patches"]: row[what] for row in own}) for what in given}
    return found


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    free = "" if row["O"] is None else f"{row['O']:.2f}"
    part = "" if row["S_over_O"] is None else f"{row['S_over_O']:.3f}"
    mark = " ~" if row["noisy"] else ""
    cells = [
        f"{row['img_size']}²",
        f"{row['patches']}",
        f"`{row['variant']}`",
        f"{row['gmacs']:.1f}",
        f"{row['F']:.2f}",
    ]
    cells += [f"{row['seconds']:.4g}{mark}", f"{row['S']:.2f}", free, part, f"{row['peak_memory'] / 1e6:.1f}"]
    return "| " + " | ".join(cells) + " |"


def page(content: dict[str, Any]) -> str:
    """The tables in Markdown."""
    settings, where = content["settings"], content["environment"]
    weights = "random weights" if settings["checkpoint"] is None else f"weights {settings['checkpoint']}"
    image = "random numbers" if settings["data"] is None else f"a photograph of the folder {settings['data']}"
    lines = [f"# {settings['model']} with a linear head, {settings['dtype']}, batch 1", ""]
    lines += [f"{where['device']}, {where['threads']} threads, torch {where['torch']}; {weights}; image: {image}.", ""]
    lines += ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER), *map(line, content["rows"]), ""]
    lines += ["~ the rounds lie more than 10 % apart, or an oracle moved.", ""]
    fitted = exponents(content["rows"])
    if fitted:
        lines += ["| variant | exponent of time | of the oracle's time | of memory |", "|---|---|---|---|"]
    for name, found in fitted.items():
        lines.append(f"| `{name}` | " + " | ".join(f"{found[w]:.2f}" if w in found else "" for w in WHATS) + " |")
    return "\n".join(lines).rstrip() + "\n"


def plot(content: dict[str, Any], file: Path) -> None:
    """Time and memory against patches, both axes logarithmic, one line for each variant."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    fitted = exponents(content["rows"])
    for panel, what, unit, label in zip(
        panels, ("seconds", "peak_memory"), (1, 1e6), ("seconds an image", "peak memory (MB)"), strict=True
    ):
        for name, found in fitted.items():
            own = [row for row in content["rows"] if row["asked"] == name]
            style = {"color": "black", "linewidth": 2} if name == DENSE else {}
            values = [row[what] / unit for row in own]
            panel.plot([row["patches"] for row in own], values, "o-", label=f"{name}: N^{found[what]:.2f}", **style)
        patches = sorted({row["patches"] for row in content["rows"]})
        panel.set(xscale="log", yscale="log", xlabel="patches", ylabel=label)
        panel.set_xticks(patches, map(str, patches))
        panel.set_xticks([], minor=True)
        panel.legend(frameon=False, fontsize=8)
        panel.grid(alpha=0.3)
    settings = content["settings"]
    factor = "" if settings["factor"] is None else f", every method at {settings['factor']:g} times fewer MACs"
    figure.suptitle(f"{settings['model']} with a linear head, {settings['dtype']}, batch 1{factor}", fontsize=11)
    with replacing(file) as beside:
        figure.savefig(beside, dpi=150, format="png")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a timm model name")
    parser.add_argument("--img-size", type=int, action="append", required=True)
    parser.add_argument("--method", action="append", required=True)
    parser.add_argument("--factor", type=float, help="turn every knob to this factor; default: methods as they are")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp32")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights; default random")
    parser.add_argument("--data", metavar="FOLDER", help="photographs, one sub-folder a class; default random numbers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--resume", action="store_true", help="keep the sizes that are there")
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    args = parser.parse_args(arguments)
    try:
        run(args)
    except TokensieveError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> None:
    """Measure the sizes that are not there yet and write everything after each.

    Raises:
        TokensieveError: the output exists (without ``--resume`` or ``--force``) or was measured with other settings, or
            a method, model or folder is wrong.
    """
    names = {
        key: None if getattr(args, key) is None else Path(getattr(args, key)).name for key in ("checkpoint", "data")
    }
    kept = ("model", "method", "factor", "dtype", "rounds")
    settings = names | {key: getattr(args, key) for key in kept}
    rows: list[dict[str, Any]] = []
    if args.output.exists() and not args.force:
        if not args.resume:
            raise TokensieveError(f"{args.output} exists: --resume keeps what it has, --force starts again")
        before = json.loads(args.output.read_text(encoding="utf-8"))
        if before["settings"] != settings:
            raise TokensieveError(f"{args.output} was measured with other settings: name another file, or take --force")
        rows = before["rows"]
    for size in args.img_size:
        if all(row["img_size"] != size for row in rows):
            rows = sorted([*rows, *measure(size, args)], key=lambda row: row["img_size"])
        content = {"settings": settings, "environment": environment(), "exponents": exponents(rows), "rows": rows}
        with replacing(args.output) as beside:
            beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        with replacing(args.output.with_suffix(".md")) as beside:
            beside.write_text(page(content), encoding="utf-8")
        if content["exponents"]:
            plot(content, args.output.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(main())
