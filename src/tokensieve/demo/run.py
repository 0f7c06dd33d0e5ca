"""The main job on something small: dense against BAT, ToSA and ToMe at three budgets, with a plot and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from tokensieve.data.stream import ImageStream, collate
from tokensieve.data.transforms import data_config
from tokensieve.demo.digits import ClutteredDigits
from tokensieve.demo.model import digits_vit
from tokensieve.demo.trained import TRAINED, fine_tuned, load_selectors
from tokensieve.engine.apply import applied
from tokensieve.errors import TokensieveError
from tokensieve.measure import speed
from tokensieve.measure.benchmark import bench, reduce
from tokensieve.measure.progress import Progress
from tokensieve.measure.results import Results
from tokensieve.measure.solver import solve
from tokensieve.methods._method import Method
from tokensieve.methods._spec import parse, spell
from tokensieve.models.load import create
from tokensieve.models.options import ModelOptions
from tokensieve.show.run import show_rows
from tokensieve.show.write import write_rows

BUDGETS = (0.75, 0.65, 0.55)
METHODS = ("bat", "tosa", "tome")
BATCHES = (1, 16)  # images at a time


@dataclass(frozen=True)
class Subject:
    """What the demo runs on: a dense model, images with labels, a few of them as pictures, learned parts, and
    fine-tuned models by the spec of their methods."""

    model: nn.Module
    stream: ImageStream
    pictures: Sequence[tuple[str, Image.Image]]
    prepare: Callable[[nn.Module], None]
    labelled: bool
    trained: dict[str, nn.Module] = field(default_factory=dict)


def digits(images: int, batch_size: int = 50) -> Subject:
    """The embedded model on held-out digits, with its trained selectors and the fine-tuned models."""
    data = ClutteredDigits("val", images, seed=7)
    loader = DataLoader(data, batch_size=batch_size, collate_fn=collate)

    def prepare(model: nn.Module) -> None:
        if any(m.name == "tosa" for m in applied(model)):
            load_selectors(model)

    drawn = ClutteredDigits("val", 6, seed=7)
    pictures = [(f"digit {drawn.scene(index).label}", drawn.image(index)) for index in (0, 3, 5)]
    stream = ImageStream(loader, images, None, ())
    trained = {spec: fine_tuned(spec) for spec in TRAINED}
    return Subject(digits_vit().eval(), stream, pictures, prepare, labelled=True, trained=trained)


def photographs(name: str) -> Subject:
    """A pretrained model from the hub on scikit-learn's two bundled photographs.

    Raises:
        TokensieveError: the hub did not give the model; says so in one sentence.
    """
    from sklearn.datasets import load_sample_images
    from timm.data import create_transform

    model = create(ModelOptions(name, pretrained=True)).eval()
    config: dict[str, Any] = data_config(model)
    transform = create_transform(**config, is_training=False)
    sample = load_sample_images()
    pictures = [
        (Path(file).stem, Image.fromarray(pixels)) for file, pixels in zip(sample.filenames, sample.images, strict=True)
    ]
    batch = [(transform(picture), -1) for _, picture in pictures]
    loader: DataLoader[Any] = DataLoader(batch, batch_size=len(batch), collate_fn=collate)  # type: ignore[arg-type]
    return Subject(model, ImageStream(loader, len(batch), None, ()), pictures, lambda model: None, labelled=False)


def settle_threads(subject: Subject) -> str | None:
    """Go on with one thread where several are no faster, and say so: where other programs hold the cores, every small
    step of a model waits for the last of its threads."""
    threads, x = torch.get_num_threads(), subject.stream.first(1)
    seconds: dict[int, float] = {}
    for number in dict.fromkeys((threads, 1)):
        torch.set_num_threads(number)
        seconds[number] = speed.measure({"dense": subject.model}, x, rounds=5, warmup=1, min_time=0)["dense"].median
    fastest = min(seconds, key=seconds.__getitem__)
    torch.set_num_threads(fastest)
    if fastest == threads:
        return None
    return f"{threads} threads are no faster than one, which other programs may cause: going on with one"


def variants(subject: Subject, progress: Progress) -> dict[str, tuple[Method, ...]]:
    """Every method at every budget, the knob of each solved for; spec to composition."""
    x = subject.stream.first(1)
    progress.start("finding the settings of each method at equal MACs", len(METHODS) * len(BUDGETS))
    found = {}
    for name in METHODS:
        for share in BUDGETS:
            methods = solve(subject.model, parse(name), share, x)
            found[spell(methods)] = methods
            progress.advance()
    return found


def measure(
    subject: Subject,
    chosen: dict[str, tuple[Method, ...]],
    results: Results,
    rounds: int,
    progress: Progress,
    seconds: float,
) -> None:
    """Run the dense model, the variants, the fine-tuned models beside their settings off the shelf, and all their
    oracles; rows go into ``results``. After ``seconds`` of timing the rounds that are done must do."""
    models = {}
    for spec, methods in (chosen | {spec: parse(spec) for spec in subject.trained}).items():
        models[spec] = reduce(subject.model, methods)
        subject.prepare(models[spec])
        if spec in subject.trained:
            models[f"{spec}, fine-tuned"] = subject.trained[spec]
    bench(
        subject.model,
        models,
        subject.stream,
        results,
        batches=BATCHES,
        rounds=rounds,
        seconds=seconds,
        progress=progress,
    )


def cut_short(results: Results, rounds: int) -> list[str]:
    """A sentence for each batch size whose timing ended before all ``rounds`` were done."""
    told = []
    for batch in BATCHES:
        done = {timed.rounds for row in results.rows for timed in row.speed if timed.batch == batch}
        least = min((number for number in done if number is not None), default=rounds)
        if least < rounds:
            told.append(
                f"at batch {batch} there was time for {least} of {rounds} rounds: close other programs, or give more "
                "--timing-seconds"
            )
    return told


def draw(subject: Subject, chosen: dict[str, tuple[Method, ...]], output: Path, progress: Progress) -> None:
    """The token pictures: every method at the lowest budget on every picture."""
    shown = [list(chosen.values())[(place + 1) * len(BUDGETS) - 1] for place in range(len(METHODS))]
    config = data_config(subject.model)
    rows = []
    progress.start("drawing what becomes of the patches", len(shown) * len(subject.pictures))
    with torch.inference_mode():
        for methods in shown:
            model = reduce(subject.model, methods)
            subject.prepare(model)
            rows.append(show_rows(model, subject.pictures, [], config, step=progress.advance))
    per_picture = [row for column in zip(*rows, strict=True) for row in column]
    write_rows(per_picture, output, "what becomes of the patches", True)


def choose(pretrained: str | None, images: int) -> Subject:
    """The embedded digits, or a pretrained model by its timm name."""
    if images < 1:
        raise TokensieveError(f"--images must be 1 or more, got {images}")
    return digits(images) if pretrained is None else photographs(pretrained)
