"""Methods on labelled images beside trained models, fitted selectors and controls, rows as ``tokensieve bench`` has.

python -m benchmarks accuracy MODEL --data IMAGES --method tome --method evit --factor 1.3 --output FILE.json
python -m benchmarks accuracy MODEL --data IMAGES --trained FOLDER --fitted FOLDER --keep 0.7 --output FILE.json
python -m benchmarks accuracy demo --limit 2000 --output FILE.json

MODEL is a timm name, a folder that ``tokensieve train`` wrote (of a pixel task, too), or ``demo``: its packed models,
each beside ToMe, EViT, random tokens and ToSA's controls at its own MACs. Agreement is with MODEL as it is. A trained
model is measured as it is; of fitted selectors the keep rates are turned, beside controls that keep as many tokens.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.report import table
from benchmarks.session import command
from benchmarks.subject import at_factor
from tokensieve.cli.output import note, progress_bars
from tokensieve.data.images import open_images
from tokensieve.data.options import DataOptions
from tokensieve.data.stream import ImageStream
from tokensieve.engine.apply import applied
from tokensieve.errors import TokensieveError
from tokensieve.measure.benchmark import COUNTED_IMAGES, bench, reduce
from tokensieve.measure.macs import count
from tokensieve.measure.results import Results, Row, open_results
from tokensieve.methods._method import Method
from tokensieve.methods._spec import parse, spell, sweep
from tokensieve.methods.tosa import ToSA
from tokensieve.models.checkpoint import load
from tokensieve.models.load import create
from tokensieve.models.options import ModelOptions
from tokensieve.pixels.data import open_pairs
from tokensieve.pixels.model import PixelModel
from tokensieve.utils.files import replacing

CONTROLS: tuple[Literal["own", "class", "random"], ...] = ("own", "class", "random")
OTHERS = ("tome", "evit", "random")  # beside the demo's own models
FALLING = ("RMSE", "AbsRel", "kl")  # figures of which less is better
Variants = dict[str, nn.Module]


def options(parser: argparse.ArgumentParser) -> None:
    """On what, and what."""
    parser.add_argument("model")
    parser.add_argument("--pretrained", action="store_true", help="weights from the hub")
    parser.add_argument("--checkpoint", metavar="FILE")
    parser.add_argument("--data", metavar="FOLDER")
    parser.add_argument("--dataset", default="")
    parser.add_argument("--class-map", metavar="FILE", help="class names in the order of the model's answers")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--limit", type=int, help="images at most")
    parser.add_argument("--method", action="append", default=[], help="a spec, swept; repeatable as all that follow")
    parser.add_argument("--factor", action="append", type=float, default=[], help="turn every knob to this F")
    parser.add_argument("--trained", action="append", default=[], metavar="FOLDER")
    parser.add_argument("--fitted", action="append", default=[], metavar="FOLDER", help="of --stage selectors")
    parser.add_argument("--keep", action="append", type=float, default=[], help="keep rates of fitted selectors")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")


def run(given: argparse.Namespace) -> None:
    """Measure every variant and write the table beside the results."""
    names = {key: Path(value).name for key in ("model", "checkpoint", "data") if (value := getattr(given, key))}
    settings = names | {"dataset": given.dataset, "split": given.split, "limit": given.limit, "dtype": "float32"}
    results = open_results(given.output, settings, command(), resume=given.resume, force=given.force)
    dense, images, variants, results.left_out = demo(given.limit or 2000) if given.model == "demo" else subject(given)
    with progress_bars() as bars:
        bench(dense, variants, images, results, batches=(), progress=bars)
    text = page(results)
    with replacing(given.output.with_suffix(".md")) as beside:
        beside.write_text(text, encoding="utf-8")
    print(text)
    for folder in given.fitted:
        for line in () if isinstance(dense, PixelModel) else distances(dense, load(folder), images.first(64)):
            note(line)


def subject(given: argparse.Namespace) -> tuple[nn.Module, ImageStream, Variants, dict[str, str]]:
    """The dense model, the images, every variant of it, and why others are left out."""
    dense = create(ModelOptions(given.model, pretrained=given.pretrained, checkpoint=given.checkpoint))
    pixels = isinstance(dense, PixelModel)
    same: dict[str, Any] = {name: getattr(given, name) for name in ("data", "dataset", "class_map", "split", "limit")}
    arguments = DataOptions(**same, workers=1, batch_size=8 if pixels else 64)
    images = open_pairs(arguments, dense) if isinstance(dense, PixelModel) else open_images(arguments, dense)
    sample = images.first(COUNTED_IMAGES)
    variants: Variants = {}
    left_out: dict[str, str] = {}
    for asked in (methods for spec in given.method for methods in sweep(spec)):
        for factor in given.factor or [None]:
            try:
                methods = asked if factor is None else at_factor(dense, asked, factor, counted(asked, sample))
            except TokensieveError as error:
                left_out[f"{spell(asked)} at {factor:g}"] = str(error)
                continue
            variants[spell(methods)] = reduce(dense, methods)
    for folder in given.trained:
        model = load(folder)
        variants[f"{spell(applied(model))}, {Path(folder).name}"] = model
    for folder in given.fitted:
        variants |= fitted(dense, load(folder), given, sample[:1])
    return dense, images, variants, left_out


def counted(methods: tuple[Method, ...], sample: Tensor) -> Tensor:
    """The images that MACs are counted on: several where images keep different numbers of tokens."""
    return sample if any(method.ragged for method in methods) else sample[:1]


def fitted(dense: nn.Module, model: nn.Module, given: argparse.Namespace, x: Tensor) -> Variants:
    """The selectors that were fitted for ``model`` at every keep rate, and controls that keep as many tokens."""
    from tokensieve.train.prepare import replace_methods

    (method,) = applied(model)
    if not isinstance(method, ToSA):
        raise TokensieveError(f"--fitted takes a model with ToSA's selectors, got {spell((method,))}")
    free = dataclasses.replace(method, score="own")
    turned = [dataclasses.replace(free, keep=keep) for keep in given.keep]
    turned += [one for factor in given.factor for one in at_factor(dense, (free,), factor, x) if isinstance(one, ToSA)]
    variants: Variants = {}
    for one in turned:
        for score in (method.score, *CONTROLS):
            config = dataclasses.replace(one, score=score)
            variant = copy.deepcopy(model)
            replace_methods(variant, (config,))
            variants[spell((config,))] = variant.eval()
    return variants


def distances(dense: nn.Module, model: nn.Module, x: Tensor) -> list[str]:
    """For each layer the KL of selector and of the layer's own map from the next layer's map, in words."""
    from tokensieve.train.selectors import attention_of, kl_streamed, selectors_of

    maps, told = attention_of(dense, x), []
    with torch.no_grad():
        for block, selector in selectors_of(model).items():
            found, own = kl_streamed(selector, maps[block], maps[block + 1])
            told.append(f"layer {block + 1}: KL {found:.3f}, own map {own:.3f}")
    return told


def demo(limit: int) -> tuple[nn.Module, ImageStream, Variants, dict[str, str]]:
    """The demo's packed models beside their settings off the shelf and the controls at the same MACs."""
    from tokensieve.demo.run import digits
    from tokensieve.demo.trained import TRAINED

    packed = digits(limit)
    dense, x, variants = packed.model, packed.stream.first(1), dict[str, nn.Module]()
    for spec, tuned in packed.trained.items():
        (method,) = parse(spec)
        variants[f"{spec}, fine-tuned"] = tuned
        beside: list[tuple[Method, ...]] = [(method,)]
        if isinstance(method, ToSA):
            beside += [(dataclasses.replace(method, score=score),) for score in CONTROLS]
        factor = count(dense, x).total / count(tuned, x).total
        beside += [at_factor(dense, parse(name), factor, x) for name in OTHERS]
        for methods in beside:
            variants[spell(methods)] = reduce(dense, methods)
            if spell(methods) in TRAINED:
                packed.prepare(variants[spell(methods)])
    return dense, packed.stream, variants, {}


def page(results: Results) -> str:
    """The rows as Markdown; of the first figure also how much worse it is than the dense model's."""
    dense = results.rows[0]
    names = list(results.metrics or ("top1", "agreement", "kl"))
    header = ["variant", "GMACs", "F", names[0], "loss", *names[1:]]
    rows = []
    for row in results.rows:
        lost = None if row is dense else relative_loss(row, dense, names[0])
        loss = "" if lost is None else f"{lost:+.2f} %"
        figures = ["–" if (value := figure(row, name)) is None else f"{value:.4g}" for name in names]
        rows.append([f"`{row.variant}`", f"{row.gmacs:.3f}", f"{row.F:.2f}", figures[0], loss, *figures[1:]])
    lines = [f"# {results.settings['model']}, {dense.images} images", "", *table(header, rows), ""]
    lines += [f"- left out: {name}: {reason}" for name, reason in results.left_out.items()]
    return "\n".join(lines).rstrip() + "\n"


def figure(row: Row, name: str) -> float | None:
    """A figure by its name: of a pixel task, or of a classifier."""
    return row.metrics[name] if name in row.metrics else getattr(row, name, None)


def relative_loss(row: Row, dense: Row, name: str) -> float | None:
    """How much worse than the dense model, in percent of its figure; below 0 it is better."""
    own, other = figure(row, name), figure(dense, name)
    if own is None or not other:
        return None
    return 100 * (own / other - 1) * (1 if name in FALLING else -1)
