"""A whole run: from what was asked for to a folder that ``tokensieve.load`` reads."""

from __future__ import annotations

import copy
import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tokensieve.data.stream import ImageStream
from tokensieve.errors import TokensieveError
from tokensieve.measure.fidelity import judge_of
from tokensieve.measure.judge import answers_of, compare
from tokensieve.measure.progress import Progress
from tokensieve.measure.results import Results
from tokensieve.models.checkpoint import WEIGHTS_NAME, load_weights, save
from tokensieve.models.source import CONFIG_NAME
from tokensieve.pixels.model import PixelModel
from tokensieve.train import report
from tokensieve.train.data import plain_sample
from tokensieve.train.keep import Easing
from tokensieve.train.loop import Told, fit
from tokensieve.train.losses import Term
from tokensieve.train.options import TrainOptions
from tokensieve.train.origin import FACTS, written_down
from tokensieve.train.pixels import FitHead
from tokensieve.train.prepare import Prepared, prepare
from tokensieve.train.stages import Job
from tokensieve.train.state import Run
from tokensieve.train.updates import Evaluate
from tokensieve.utils.files import replacing

OF_DENSE = ("agreement", "vs_dense")  # figures that compare with the dense model
REPORTED_IMAGES = 200  # of the training images, where there are no others


def train(
    options: TrainOptions,
    *,
    terms: Sequence[Term] = (),
    on_step: Callable[[Told], None] | None = None,
    progress: Progress | None = None,
) -> Results | None:
    """Train a model and leave a folder that ``tokensieve.load`` reads.

    Args:
        options: what is asked for.
        terms: further summands of the loss.
        on_step: told after every update, on the main process.
        progress: of the measurements at the end.

    Returns:
        The bench table of the result against its dense teacher; None on all processes but the main one.

    Raises:
        TokensieveError: wrong input, a loss that is not finite, a full disk, or a folder that another run holds.
    """
    prepared = prepare(options, terms)
    accelerator = prepared.accelerator
    folder = Path(options.output)
    run = _open_run(folder, options, prepared) if accelerator.is_main_process else None
    try:
        if options.log_with:
            accelerator.init_trackers(folder.name)
        objective = prepared.job.objective
        weights, records = fit(
            objective,
            prepared.images,
            prepared.recipe,
            prepared.plan,
            accelerator,
            run,
            Easing(objective.model, prepared.recipe, prepared.plan.steps_per_epoch),
            _evaluate(prepared.evaluation, prepared.job) if prepared.evaluation is not None else None,
            on_step,
        )
        results = None
        if run is not None:
            results = _finish(folder, options, prepared, weights, records, progress)
        accelerator.wait_for_everyone()
        if options.log_with:
            accelerator.end_training()
        return results
    finally:
        if run is not None:
            run.release()


def _open_run(folder: Path, options: TrainOptions, prepared: Prepared) -> Run:
    """The run's folder, with its settings written down; refuses one that holds another run."""
    if folder.exists() and not folder.is_dir():
        raise TokensieveError(f"cannot write to {str(folder)!r}: it is a file; give the name of a folder")
    facts = folder / FACTS
    if folder.exists() and not facts.exists() and any(entry.name != ".lock" for entry in folder.iterdir()):
        raise TokensieveError(f"{str(folder)!r} holds other files and no run: give another --output")
    run = Run(folder)
    try:
        recipe = dataclasses.asdict(prepared.recipe)
        settings = json.loads(json.dumps(options.settings() | {"recipe": recipe, "steps": prepared.plan.steps}))
        if facts.exists() and not options.force:
            if options.resume is None:
                raise TokensieveError(
                    f"{str(folder)!r} holds a run: go on with --resume auto, start anew with --force, or give another "
                    "--output"
                )
            _check_same(facts, settings)
            return run
        run.clear()
        content = {"command": _command(), "settings": settings, "origin": written_down(options)}
        with replacing(facts) as beside:
            beside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return run
    except BaseException:
        run.release()
        raise


def _command() -> str:
    return shlex.join(["tokensieve", *sys.argv[1:]])


def _check_same(facts: Path, settings: dict[str, Any]) -> None:
    try:
        saved = json.loads(facts.read_text(encoding="utf-8"))["settings"]
    except (ValueError, KeyError) as error:
        raise TokensieveError(f"{str(facts)!r} is damaged: start anew with --force") from error
    for key in sorted(saved.keys() | settings.keys()):
        if saved.get(key) != settings.get(key):
            raise TokensieveError(
                f"the run in {str(facts.parent)!r} was started with {key} = {saved.get(key)!r} and cannot be resumed "
                f"with {settings.get(key)!r}: use the same settings, or another --output"
            )


def _evaluate(images: ImageStream, job: Job) -> Evaluate:
    """Figures of a model on ``images``; every process measures all of them, so that all decide alike."""
    answers: list[Any] = []
    judge = judge_of(job.dense)
    teaches = not isinstance(job.objective, FitHead)

    def evaluate(model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device

        def run(batch: Tensor) -> Any:
            return model(batch.to(device))

        if not teaches:
            found = answers_of(run, images, judge=judge)[1]
        else:
            if not answers:
                answers.extend(answers_of(job.dense, images, judge=judge)[0])
            found = compare(run, iter(answers), images, judge=judge)
        known = found.metrics if isinstance(job.dense, PixelModel) else dataclasses.asdict(found)
        return {
            f"val/{n}": v
            for n, v in known.items()
            if v is not None and n != "images" and (teaches or n not in OF_DENSE)
        }

    return evaluate


def _finish(
    folder: Path,
    options: TrainOptions,
    prepared: Prepared,
    weights: dict[str, Tensor],
    records: list[dict[str, Any]],
    progress: Progress | None,
) -> Results:
    """Write the result, measure it, and write the report."""
    before = prepared.reduced
    after = copy.deepcopy(before)
    load_weights(after, weights, folder)
    prepared.job.objective.finish(after)
    _write_model(after.eval(), folder)
    images, note = prepared.evaluation, ""
    if images is None:
        images = plain_sample(prepared.images, prepared.job.dense, options.img_size, REPORTED_IMAGES)
        note = " that it was trained on (no --val-data)"
    settings = options.settings() | {"dtype": "float32"}
    if isinstance(prepared.job.objective, FitHead):
        results = report.measure(after, None, None, images, folder, settings, _command(), options.rounds, progress)
    else:
        results = report.measure(
            prepared.job.dense, before, after, images, folder, settings, _command(), options.rounds, progress
        )
    if records:
        report.draw_curves(records, folder / "curves.png")
    facts = {"command": f"`{_command()}`", **prepared.summary()}
    report.write_page(folder / "report.md", f"{options.model}: {options.stage}", results, facts, note)
    return results


def _write_model(model: nn.Module, folder: Path) -> None:
    """What ``tokensieve.load`` reads, put into ``folder``; the weights first, so that it is never half there."""
    beside = save(model, folder / ".model", force=True)
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        (beside / name).replace(folder / name)
    beside.rmdir()
