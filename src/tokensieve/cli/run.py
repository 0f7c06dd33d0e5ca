"""What ``bench`` and ``eval`` do alike: from options to a model, its variants, the images and the results file."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

import tokensieve as ts
from tokensieve.cli.output import Bars, note, progress_bars
from tokensieve.measure import bench as measuring
from tokensieve.measure.data import DataArguments, ImageStream, open_images
from tokensieve.measure.model import create, share_weights
from tokensieve.measure.results import Results, environment, open_results
from tokensieve.measure.runtime import Runtime
from tokensieve.measure.solve import solve


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that was asked for.

    Attributes:
        model, pretrained, checkpoint, num_classes: the model, see ``measure.model.create``.
        methods: specs, which may sweep.
        macs: shares of the dense MACs to bring every method to; empty leaves them as spelled.
        data: where the images are.
        runtime: device and precision.
        batches, rounds: what to time; no batch size for accuracy alone.
        results_file, resume, force: see ``measure.results.open_results``.
    """

    model: str
    pretrained: bool
    checkpoint: str | None
    num_classes: int | None
    methods: Sequence[str]
    macs: Sequence[float]
    data: DataArguments
    runtime: Runtime
    batches: tuple[int, ...]
    rounds: int
    results_file: str | None
    resume: bool
    force: bool

    def settings(self) -> dict[str, Any]:
        """What the figures depend on, apart from the variants."""
        data = asdict(self.data)
        del data["workers"]
        model = {"model": self.model, "pretrained": self.pretrained, "checkpoint": self.checkpoint}
        runtime = asdict(self.runtime) | {"dtype": self.runtime.dtype}
        return model | {"num_classes": self.num_classes} | data | runtime | {"rounds": self.rounds}


def measure(request: Request) -> Results:
    """Carry the request out, with progress bars; Ctrl-C returns what is done."""
    compositions = [variant for spec in request.methods for variant in ts.sweep(spec)]
    request.runtime.check()
    results = open_results(
        request.results_file,
        request.settings(),
        shlex.join(["tokensieve", *sys.argv[1:]]),
        resume=request.resume,
        force=request.force,
    )
    results.environment = environment(request.runtime.device)
    dense, variants = _models(request)
    images = open_images(request.data, dense)
    for line in images.notes:
        note(line)
    with progress_bars() as bars:
        try:
            variants |= _reduced(request, dense, compositions, images, bars)
            measuring.bench(
                dense,
                variants,
                images,
                results,
                runtime=request.runtime,
                batches=request.batches,
                rounds=request.rounds,
                progress=bars,
            )
        except KeyboardInterrupt:
            if not results.rows:
                raise
            note("stopped; what is done is kept" + (", go on with --resume" if results.file else ""))
    if images.skipped:
        names = ", ".join(list(images.skipped)[:5]) + (", …" if len(images.skipped) > 5 else "")
        note(f"{len(images.skipped)} image files cannot be read and were left out: {names}")
    return results


def _models(request: Request) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The dense model, and the saved reduced one where the model is a folder written by ``ts.save``."""
    model = create(
        request.model,
        pretrained=request.pretrained,
        checkpoint=request.checkpoint,
        num_classes=request.num_classes,
        in_chans=request.data.in_chans,
        img_size=request.data.img_size,
    )
    saved = ts.is_applied(model)
    if not (saved or request.pretrained or request.checkpoint or ":" in request.model):
        note("the weights are random: give --pretrained or --checkpoint FILE; speed and MACs hold, accuracy does not")
    if not saved:
        return model, {}
    return ts.remove(share_weights(model)).eval(), {ts.spell(ts.applied(model)): model}


def _reduced(
    request: Request,
    dense: nn.Module,
    compositions: Sequence[tuple[ts.Method, ...]],
    images: ImageStream,
    bars: Bars,
) -> dict[str, nn.Module]:
    """Every variant by its spec, at the asked MACs where there are any."""
    wanted = list(compositions)
    if request.macs:
        sample = images.first(1)
        bars.start("finding methods of equal MACs", len(request.macs) * len(compositions))
        wanted = []
        for composition in compositions:
            for share in request.macs:
                wanted.append(solve(dense, composition, share, sample))
                bars.advance()
    return {ts.spell(methods): measuring.reduce(dense, methods) for methods in wanted}


def default_results_file(model: str) -> str:
    """A name in the current folder after the model."""
    return f"tokensieve-{Path(model.replace(':', '-').rstrip('/')).name}.json"
