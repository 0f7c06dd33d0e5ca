"""Measure what token reduction brings on this machine: see README.md in this folder.

python benchmarks/run.py --preset smoke --output /tmp/smoke
python benchmarks/run.py --preset cpu --resume
python benchmarks/run.py --model deit_small --batch 16 --batch 64 --dtype bf16 --method bat --method tome:r=13
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch

import measure_model
import measure_operator
import measure_selector
from cells import ENGINES, MODELS, Cell, grid
from presets import METHODS, PRESETS
from session import RESULTS, Measure, Session, with_rounds
from tokensieve.errors import TokensieveError
from tokensieve.utils.names import nearest

MEASURES = {
    "model": measure_model.measure,
    "operator": measure_operator.measure,
    "selector": measure_selector.measure,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        cells = with_rounds(chosen_cells(options), options.rounds)
        if options.list:
            print(*(f"{cell.id}  {' '.join(cell.methods)}" for cell in cells), sep="\n")
            return 0
        return session(options, MEASURES).run(cells)
    except TokensieveError as error:
        if options.verbose:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=sorted(PRESETS), help="a named set of cells; without it, the grid below")
    parser.add_argument("--model", action="append", help="deit_tiny, deit_small, vit_base, vit_large or a timm name")
    parser.add_argument("--img-size", action="append", type=int, help="side in pixels, default 224; repeatable")
    parser.add_argument("--batch", action="append", type=int, help="images per call, default 1 and 16; repeatable")
    parser.add_argument("--dtype", action="append", help="fp32, bf16 or fp16, default fp32; repeatable")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="default eager; repeatable")
    parser.add_argument("--method", action="append", help=f"a spec; repeatable; default {' '.join(METHODS)}")
    parser.add_argument("--kind", action="append", choices=sorted(MEASURES), help="default model; repeatable")
    parser.add_argument("--list", action="store_true", help="name the cells and measure nothing")
    add_common(parser)
    return parser


def add_common(parser: argparse.ArgumentParser) -> None:
    """Options of every script that measures."""
    parser.add_argument("--rounds", type=int, help="timings of each variant; default 10, or what the preset says")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", metavar="FOLDER", help="photographs, one sub-folder a class; default random numbers")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER", help="default benchmarks/results")
    parser.add_argument("--resume", action="store_true", help="go on with existing files; what they have is kept")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.add_argument(
        "--give-memory-back",
        action="store_true",
        help="leave freed memory to the system, as Python does by default: for a file of its own",
    )
    parser.add_argument("--verbose", action="store_true", help="show a traceback when something fails")


def session(options: argparse.Namespace, measures: Mapping[str, Measure]) -> Session:
    """The session that the common options describe."""
    return Session(
        device=options.device,
        data=options.data,
        output=options.output,
        resume=options.resume,
        force=options.force,
        keep_memory=not options.give_memory_back,
        measures=measures,
    )


def chosen_cells(options: argparse.Namespace) -> list[Cell]:
    """The cells that the options ask for.

    Raises:
        TokensieveError: a preset together with a grid, unknown names, or numbers below 1.
    """
    names = ("model", "img_size", "batch", "dtype", "engine", "method", "kind")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]
    if options.preset is not None:
        if given:
            raise TokensieveError(
                f"--preset {options.preset} names its own cells: leave out {', '.join(given)}, or --preset"
            )
        return PRESETS[options.preset]()
    if not options.model:
        raise TokensieveError(f"nothing to measure: give --preset ({', '.join(sorted(PRESETS))}) or --model NAME")
    for name in options.model:
        if name not in MODELS and not timm.is_model(name.partition(".")[0]):
            raise TokensieveError(f"unknown model {name!r}{nearest(name, [*MODELS, *timm.list_models()])}")
    for option, values in (("--img-size", options.img_size), ("--batch", options.batch)):
        if min(values or [1]) < 1:
            raise TokensieveError(f"{option} must be 1 or more, got {min(values)}")
    return [
        cell
        for kind in options.kind or ["model"]
        for cell in grid(
            options.model,
            options.img_size or [224],
            options.batch or [1, 16],
            options.dtype or ["fp32"],
            options.engine or ["eager"],
            options.method or METHODS,
            kind=kind,
        )
    ]


if __name__ == "__main__":
    sys.exit(main())
