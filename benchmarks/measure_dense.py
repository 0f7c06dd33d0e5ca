"""Pixel tasks at equal MACs: the dense model and every method at some promised factors F, one table.

    python benchmarks/measure_dense.py --run FOLDER=DATA --run FOLDER=DATA --method SPEC … --factor 1.3 --factor 1.6
        --fitted FOLDER … --output benchmarks/results/dense-NAME.json

FOLDER is what ``tokensieve train --task …`` wrote, DATA holds its validation split. The knob of every method is turned
until it costs 1/F of the dense MACs. ``--fitted FOLDER`` is what ``--stage selectors`` wrote for the run of the same
task: its ToSA is measured with keep rates turned likewise. ``--recovered FOLDER`` is what ``--stage recover`` wrote and
is measured as it is. Each run goes to a file of its own beside the output, whose .md is made of all of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path

from torch import Tensor, nn

import tokensieve as ts
from tokensieve.data.options import DataOptions
from tokensieve.engine.counts import counts
from tokensieve.engine.schedule import schedule
from tokensieve.errors import TokensieveError
from tokensieve.families._locate import family_of
from tokensieve.measure.benchmark import bench, reduce
from tokensieve.measure.knob import Knob
from tokensieve.measure.macs import count
from tokensieve.measure.results import Row, open_results
from tokensieve.measure.solver import solve
from tokensieve.methods.tosa import ToSA
from tokensieve.pixels.data import open_pairs
from tokensieve.pixels.model import PixelModel
from tokensieve.train.prepare import replace_methods
from tokensieve.utils.files import replacing

COUNTED_IMAGES = 8  # of methods that leave another number of tokens in every image
NEAR = 0.05  # how far from the asked MACs a method may lie to be compared
LEADS = {"segmentation": "mIoU", "depth": "RMSE"}


def at_factor(dense: nn.Module, methods: tuple[ts.Method, ...], factor: float, sample: Tensor) -> tuple[ts.Method, ...]:
    """The composition with its knob set to 1/``factor`` of the dense MACs, as nearly as the knob allows.

    Unlike ``measure.solver`` this counts by the methods' own schedules and runs nothing, except where images keep
    different numbers of tokens.

    Raises:
        TokensieveError: the factor is out of reach.
    """
    if any(method.ragged for method in methods):
        return solve(dense, methods, 1 / factor, sample[:COUNTED_IMAGES])
    knob, report = Knob.of(methods), count(dense, sample[:1])
    located = family_of(dense)
    layout = located.family.layout(located.owner)
    costs = [located.family.macs(block) for block in located.family.blocks(located.owner)]
    patches = layout.grid[0] * layout.grid[1]

    def distance(turned: tuple[ts.Method, ...]) -> float:
        found = counts(schedule(turned, layout), layout, patches=patches, multiple=None)
        macs = report.rest + sum(cost.total(*tokens) for cost, tokens in zip(costs, found.blocks, strict=True))
        return abs(macs * factor / report.total - 1)

    possible = []
    for value in knob.settings(patches)[:-1]:
        try:
            turned = knob.turn(value)
            possible.append((distance(turned), turned))
        except TokensieveError:  # a setting that the method does not take, or that removes more than there is
            continue
    nearest, found = min(possible, key=lambda pair: pair[0])
    if nearest > NEAR:
        raise TokensieveError(f"{ts.spell(methods)} comes no nearer to F {factor:g} than {ts.spell(found)}")
    return found


def fitted_variant(folder: str, method: ToSA) -> nn.Module:
    """The model in ``folder`` with the selectors fitted there and the keep rates of ``method``."""
    model = ts.load(folder)
    replace_methods(model, (method,))
    return model.eval()


def measure(folder: str, data: str, args: argparse.Namespace, file: Path) -> None:
    """One task: the dense model and every method at every factor."""
    dense = ts.load(folder)
    if not isinstance(dense, PixelModel):
        raise TokensieveError(f"{folder!r} is no dense model: give what tokensieve train --task wrote")
    images = open_pairs(DataOptions(data=data, split=args.split, batch_size=8, workers=1, limit=args.limit), dense)
    sample = images.first(COUNTED_IMAGES)
    variants: dict[str, nn.Module] = {}
    left_out: dict[str, str] = {}
    for spec in args.method:
        for methods in ts.sweep(spec):
            for factor in args.factor:
                try:
                    chosen = at_factor(dense, methods, factor, sample)
                except TokensieveError as error:
                    left_out[f"{ts.spell(methods)} at {factor:g}"] = str(error)
                    continue
                variants[ts.spell(chosen)] = reduce(dense, chosen)
    for place in args.fitted:
        fitted = ts.load(place)
        (method,) = ts.applied(fitted)
        if not isinstance(fitted, PixelModel) or fitted.task.name != dense.task.name:
            continue
        assert isinstance(method, ToSA)
        for factor in args.factor:
            (counted,) = at_factor(dense, (dataclasses.replace(method, score="own"),), factor, sample)
            assert isinstance(counted, ToSA)
            chosen_method = dataclasses.replace(counted, score="selector")
            variants[ts.spell((chosen_method,))] = fitted_variant(place, chosen_method)
    names = {"model": Path(folder).name, "data": Path(data).name}
    settings = names | {"task": dense.task.to_dict(), "dtype": "float32", "limit": args.limit}
    for place in args.recovered:
        recovered = ts.load(place)
        if isinstance(recovered, PixelModel) and recovered.task.name == dense.task.name:
            variants[f"{ts.spell(ts.applied(recovered))}, recovered"] = recovered
    results = open_results(file, settings, command(), resume=args.resume, force=True)
    results.left_out |= left_out
    bench(dense, variants, images, results, batches=())


def command() -> str:
    """How this was called, files and folders by their names alone."""
    words = ["=".join(Path(part).name for part in word.split("=")) if "/" in word else word for word in sys.argv]
    return shlex.join(["python", *words])


def relative_loss(row: Row, dense: Row, lead: str) -> float:
    """How much worse than the dense model, in percent of its figure; below 0 it is better."""
    change = row.metrics[lead] / dense.metrics[lead] - 1
    return 100 * (change if lead == "RMSE" else -change)


def table(file: Path) -> list[str]:
    """The rows of one task as Markdown, from its results file."""
    content = json.loads(file.read_text(encoding="utf-8"))
    task, rows = content["settings"]["task"]["name"], [Row(**row) for row in content["rows"]]
    lead, dense = LEADS[task], rows[0]
    others = [name for name in dense.metrics if name != lead]
    header = ["variant", "GMACs", "F", lead, "loss", *others]
    lines = [f"## {task}, {dense.images} images", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        values = [row.metrics[name] for name in others]
        loss = "" if row is dense else f"{relative_loss(row, dense, lead):+.2f} %"
        cells = [f"`{row.variant}`", f"{row.gmacs:.3f}", f"{row.F:.2f}", f"{row.metrics[lead]:.4g}", loss]
        lines.append("| " + " | ".join([*cells, *(f"{value:.4g}" for value in values)]) + " |")
    lines += ["", *(f"- left out: {name}: {reason}" for name, reason in content.get("left_out", {}).items())]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", default=[], metavar="FOLDER=DATA")
    parser.add_argument("--method", action="append", default=[])
    parser.add_argument("--fitted", action="append", default=[], metavar="FOLDER")
    parser.add_argument("--recovered", action="append", default=[], metavar="FOLDER")
    parser.add_argument("--factor", action="append", type=float, default=[])
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    for run in args.run:
        folder, _, data = run.partition("=")
        measure(folder, data, args, args.output.with_name(f"{args.output.stem}-{Path(folder).name}.json"))
    files = sorted(args.output.parent.glob(f"{args.output.stem}-*.json"))
    page = "\n".join(line for file in files for line in table(file))
    with replacing(args.output.with_suffix(".md")) as beside:
        beside.write_text(page + "\n", encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
