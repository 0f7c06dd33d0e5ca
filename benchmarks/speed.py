"""What token reduction brings on this machine, cell by cell.

python -m benchmarks speed --preset cpu --resume
python -m benchmarks speed --model deit_small --batch 16 --batch 64 --dtype bf16 --method bat --method tome:r=13
"""

from __future__ import annotations

import argparse
from functools import partial

import timm

from benchmarks import model, operator, selector
from benchmarks.cells import ENGINES, MODELS, Cell, grid, with_rounds
from benchmarks.presets import METHODS, PRESETS
from benchmarks.session import Measure, Session, common_options
from tokensieve.errors import TokensieveError
from tokensieve.utils.names import nearest

MEASURES: dict[str, Measure] = {
    "model": model.measure,
    "operator": operator.measure,
    "selector": selector.measure,
}
GRID = ("model", "img_size", "batch", "dtype", "engine", "method", "kind", "head", "factor", "checkpoint")


def options(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    several = partial(parser.add_argument, action="append")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="a named set of cells; without it, the grid below")
    several("--model", help="deit_tiny, deit_small, vit_base, vit_large, a timm name or hf:…; these are repeatable")
    several("--img-size", type=int, help="side in pixels, default 224")
    several("--batch", type=int, help="images per call, default 1 and 16")
    several("--dtype", help="fp32, bf16 or fp16, default fp32")
    several("--engine", choices=ENGINES, help="default eager")
    several("--method", help=f"a spec, default {' '.join(METHODS)}")
    several("--kind", choices=sorted(MEASURES), help="default model")
    parser.add_argument("--head", choices=["depth"], help="a linear head on every patch in place of the model's own")
    parser.add_argument("--factor", type=float, help="turn every knob to this factor of MACs; default: as they are")
    parser.add_argument("--checkpoint", metavar="FILE", help="weights, default random")
    parser.add_argument("--list", action="store_true", help="name the cells and measure nothing")
    common_options(parser)


def run(given: argparse.Namespace) -> int:
    """Measure the cells that are asked for."""
    cells = with_rounds(chosen_cells(given), given.rounds)
    if given.list:
        print(*(f"{cell.id}  {' '.join(cell.methods)}" for cell in cells), sep="\n")
        return 0
    own = {"model": partial(model.measure, checkpoint=given.checkpoint)} if given.checkpoint else {}
    return Session.of(given, MEASURES | own).run(cells)


def chosen_cells(given: argparse.Namespace) -> list[Cell]:
    """The cells that the options ask for.

    Raises:
        TokensieveError: a preset together with a grid, unknown names, or numbers below 1.
    """
    named = [f"--{name.replace('_', '-')}" for name in GRID if getattr(given, name)]
    if given.preset is not None:
        if named:
            raise TokensieveError(
                f"--preset {given.preset} names its own cells: leave out {', '.join(named)}, or --preset"
            )
        return PRESETS[given.preset]()
    if not given.model:
        raise TokensieveError(f"nothing to measure: give --preset ({', '.join(sorted(PRESETS))}) or --model NAME")
    for name in given.model:
        of_transformers = name.startswith(("hf:", "hf-config:"))
        if name not in MODELS and not of_transformers and not timm.is_model(name.partition(".")[0]):
            raise TokensieveError(f"unknown model {name!r}{nearest(name, [*MODELS, *timm.list_models()])}")
    for option, values in (("--img-size", given.img_size), ("--batch", given.batch)):
        if min(values or [1]) < 1:
            raise TokensieveError(f"{option} must be 1 or more, got {min(values)}")
    sizes, batches, dtypes = given.img_size or [224], given.batch or [1, 16], given.dtype or ["fp32"]
    where = (given.model, sizes, batches, dtypes, given.engine or ["eager"], given.method or METHODS)
    kinds = given.kind or ["model"]
    return [cell for kind in kinds for cell in grid(*where, given.head or "", kind=kind, factor=given.factor)]
