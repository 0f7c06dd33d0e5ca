"""Dense tasks at equal MACs: the dense model and every method at some promised factors F, one table.

    python benchmarks/measure_dense.py --run FOLDER=DATA --run FOLDER=DATA --method SPEC … --factor 1.3 --factor 1.6
        --fitted FOLDER … --output benchmarks/results/dense-NAME.json

FOLDER is what ``tokensieve train --task …`` wrote, DATA holds its validation split. The knob of every method is turned
until it costs 1/F of the dense MACs. ``--fitted FOLDER`` is what ``--stage selectors`` wrote for the run of the same
task: its ToSA is measured with keep rates turned likewise. ``--recovered FOLDER`` is what ``--stage recover`` wrote and
is measured as it is.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import shlex
import sys
from pathlib import Path

from torch import Tensor, nn

import tokensieve as ts
from tokensieve.errors import TokensieveError
from tokensieve.files import replacing
from tokensieve.measure.bench import bench, reduce
from tokensieve.measure.data import DataArguments
from tokensieve.measure.knob import Knob
from tokensieve.measure.macs import count
from tokensieve.measure.results import DENSE, Results, Row
from tokensieve.measure.solve import solve
from tokensieve.methods.tosa import ToSA
from tokensieve.placement import counts, schedule
from tokensieve.registry import family_of
from tokensieve.tasks.data import open_pairs
from tokensieve.tasks.model import DenseModel
from tokensieve.train.prepare import replace_methods

COUNTED_IMAGES = 8  # of methods that leave another number of tokens in every image
NEAR = 0.05  # how far from the asked MACs a method may lie to be compared
LEADS = {"segmentation": "mIoU", "depth": "RMSE"}


def at_factor(dense: nn.Module, methods: tuple[ts.Method, ...], factor: float, sample: Tensor) -> tuple[ts.Method, ...]:
    """The composition with its knob set to 1/``factor`` of the dense MACs, as nearly as the knob allows.

    Unlike ``measure.solve`` this counts by the methods' own schedules and runs nothing, except where images keep
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


def measure(folder: str, data: str, args: argparse.Namespace, file: Path) -> tuple[DenseModel, Results]:
    """One task: the dense model and every method at every factor."""
    dense = ts.load(folder)
    if not isinstance(dense, DenseModel):
        raise TokensieveError(f"{folder!r} is no dense model: give what tokensieve train --task wrote")
    images = open_pairs(DataArguments(data=data, split=args.split, batch_size=8, workers=1, limit=args.limit), dense)
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
        if not isinstance(fitted, DenseModel) or fitted.task.name != dense.task.name:
            continue
        assert isinstance(method, ToSA)
        for factor in args.factor:
            (counted,) = at_factor(dense, (dataclasses.replace(method, score="own"),), factor, sample)
            assert isinstance(counted, ToSA)
            chosen_method = dataclasses.replace(counted, score="selector")
            variants[ts.spell((chosen_method,))] = fitted_variant(place, chosen_method)
    settings = {"model": folder, "data": data, "task": dense.task.to_dict(), "dtype": "float32", "limit": args.limit}
    for place in args.recovered:
        recovered = ts.load(place)
        if isinstance(recovered, DenseModel) and recovered.task.name == dense.task.name:
            variants[f"{ts.spell(ts.applied(recovered))}, recovered"] = recovered
    results = Results(settings, shlex.join(["python", *sys.argv]), file=file, left_out=left_out)
    return dense, bench(dense, variants, images, results, batches=())


def relative_loss(row: Row, dense: Row, lead: str) -> float:
    """How much worse than the dense model, in percent of its figure; below 0 it is better."""
    change = row.metrics[lead] / dense.metrics[lead] - 1
    return 100 * (change if lead == "RMSE" else -change)


def table(model: DenseModel, results: Results) -> list[str]:
    """The rows of one task as Markdown."""
    lead = LEADS[model.task.name]
    others = [name for name in results.metrics if name != lead]
    dense = results.find(DENSE)
    assert dense is not None
    header = ["variant", "GMACs", "F", lead, "loss", *others]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in results.rows:
        figures = [
            f"{row.metrics[name]:.2f}" if row.metrics[name] >= 10 else f"{row.metrics[name]:.4f}" for name in others
        ]
        loss = "" if row is dense else f"{relative_loss(row, dense, lead):+.2f} %"
        cells = [f"`{row.variant}`", f"{row.gmacs:.3f}", f"{row.F:.2f}", f"{row.metrics[lead]:.4f}", loss, *figures]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="append", required=True, metavar="FOLDER=DATA")
    parser.add_argument("--method", action="append", default=[])
    parser.add_argument("--fitted", action="append", default=[], metavar="FOLDER")
    parser.add_argument("--recovered", action="append", default=[], metavar="FOLDER")
    parser.add_argument("--factor", action="append", type=float, required=True)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    lines: list[str] = []
    for run in args.run:
        folder, _, data = run.partition("=")
        name = copy.copy(args.output).with_name(f"{args.output.stem}-{Path(folder).name}.json")
        model, results = measure(folder, data, args, name)
        lines += [
            f"## {model.task.name}: {results.images} images, {model.head.name} head",
            "",
            *table(model, results),
            "",
        ]
        print("\n".join(lines[-len(results.rows) - 5 :]), flush=True)
    with replacing(args.output.with_suffix(".md")) as beside:
        beside.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
