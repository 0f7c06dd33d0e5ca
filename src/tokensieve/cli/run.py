"""What ``bench`` and ``eval`` do alike: from options to a model, its variants, the images and the results file."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import typer
from torch import Tensor, nn

from tokensieve.cli.options import EvalOptions
from tokensieve.cli.output import note, progress_bars
from tokensieve.cli.specs import ALL, swept
from tokensieve.cli.tasks import FeatureTask, task_of
from tokensieve.data.images import open_images
from tokensieve.data.options import BATCH_SIZE, PIXELS_BATCH_SIZE, DataOptions
from tokensieve.data.stream import ImageStream
from tokensieve.engine.apply import applied, is_applied, remove
from tokensieve.errors import TokensieveError
from tokensieve.measure import benchmark as measuring
from tokensieve.measure.fidelity import judge_of
from tokensieve.measure.judge import Judge
from tokensieve.measure.macs import count
from tokensieve.measure.progress import Progress
from tokensieve.measure.results import Results, environment, open_results
from tokensieve.measure.solver import check_share, solve
from tokensieve.methods._method import Method
from tokensieve.methods._spec import spell
from tokensieve.models.load import has_weights, share_weights
from tokensieve.models.options import RuntimeOptions
from tokensieve.models.runtime import Runtime
from tokensieve.models.source import source_of
from tokensieve.pixels.create import create_model
from tokensieve.pixels.data import open_pairs
from tokensieve.pixels.model import PixelModel
from tokensieve.pixels.options import CLASSIFICATION, TaskOptions
from tokensieve.pixels.sliding import sliding
from tokensieve.pixels.task import PixelJudge
from tokensieve.train.origin import dense_origin
from tokensieve.utils.options import values_of
from tokensieve.utils.processes import Processes, join

NEAR = 0.03  # how far from the asked share of the MACs a method of "all" may lie to be compared


def measure(options: EvalOptions, *, batches: Sequence[int] = (), rounds: int = 0) -> Results:
    """Measure what is asked for, with progress bars; Ctrl-C returns what is done, and ``stopped`` is set.

    Args:
        options: what to measure.
        batches: batch sizes to time; none for accuracy alone.
        rounds: timings of each model.
    """
    processes = join(options.device)
    compositions = swept(options.method)
    others, left_out = measuring.untrained() if ALL in options.method else ([], {})
    runtime = Runtime(**values_of(options, RuntimeOptions) | {"device": processes.device(options.device)})
    _check(options, runtime)
    task = task_of(options)
    dense, variants = _models(options, task, runtime.device)
    results = _results(options, _settings(options, dense, task) | {"rounds": rounds}, runtime, processes)
    results.left_out |= left_out
    images, judge = _images(options, dense, task)
    for line in images.notes:
        note(line)
    with stoppable(results), progress_bars() as bars:
        wanted = processes.from_main(lambda: _at_macs(options, dense, compositions, images, bars))
        possible, reasons = processes.from_main(lambda: _possible(options, dense, others, images, bars))
        results.left_out |= reasons
        variants |= {spell(methods): measuring.reduce(dense, methods) for methods in (*wanted, *possible)}
        measuring.bench(
            dense,
            variants,
            images,
            results,
            runtime=runtime,
            batches=batches,
            rounds=rounds,
            progress=bars,
            processes=processes,
            judge=judge,
        )
    _tell(results, dense)
    if not processes.main:
        raise typer.Exit()
    return results


def _results(options: EvalOptions, settings: dict[str, Any], runtime: Runtime, processes: Processes) -> Results:
    """The rows that are there already; those of the main process, which alone has the file, on every one."""
    results = Results(settings)
    if processes.main:
        command = shlex.join(["tokensieve", *sys.argv[1:]])
        results = open_results(options.results_file, settings, command, resume=options.resume, force=options.force)
        results.environment = environment(runtime.device)
    results.rows = processes.from_main(lambda: results.rows)
    return results


@contextmanager
def stoppable(results: Results) -> Iterator[None]:
    """Ctrl-C ends the block and keeps the rows that are done, where there are some."""
    try:
        yield
    except KeyboardInterrupt:
        if not results.rows:
            raise
        results.stopped = True
        note("stopped; what is done is kept" + (", go on with --resume" if results.file else ""))


def _tell(results: Results, dense: nn.Module) -> None:
    """Say what was not measured, and why."""
    if results.skipped:
        names = ", ".join(results.skipped[:5]) + (", …" if len(results.skipped) > 5 else "")
        note(f"{len(results.skipped)} image files cannot be read and were left out: {names}")
    if isinstance(dense, PixelModel) and results.rows and len(results.rows[0].metrics) == 1:
        note(f"no target has a pixel that counts, so all are compared with the dense model alone: {dense.task.counts}")
    for name, reason in results.left_out.items():
        note(f"left out: {name}: {reason}")


def _settings(options: EvalOptions, model: nn.Module, task: FeatureTask | None) -> dict[str, Any]:
    """What the figures of ``model`` depend on, apart from the variants and what is timed."""
    data = asdict(DataOptions(**values_of(_sized(options, model), DataOptions)))
    del data["workers"]
    runtime = Runtime(**values_of(options, RuntimeOptions))
    names = ("model", "pretrained", "checkpoint", "num_classes", "in_chans")
    settings = {name: getattr(options, name) for name in names} | data | asdict(runtime) | {"dtype": runtime.dtype}
    if isinstance(model, PixelModel):
        settings |= {"task": model.task.to_dict(), "head": model.head.name}
        settings |= {"slide": options.slide, "stride": options.stride}
    return settings if task is None else settings | task.settings()


def _sized(options: EvalOptions, model: nn.Module) -> EvalOptions:
    """The options with the number of images at a time."""
    own = PIXELS_BATCH_SIZE if isinstance(model, PixelModel) else BATCH_SIZE
    return replace(options, batch_size=options.batch_size or own)


def finish(results: Results) -> None:
    """End a command that Ctrl-C stopped with the exit code that says so."""
    if results.stopped:
        raise typer.Exit(130)


def _check(options: EvalOptions, runtime: Runtime) -> None:
    """Refuse what needs no model and no image to be refused."""
    if options.macs and not options.method:
        raise TokensieveError("--macs says what methods may cost, and there is none: give at least one --method")
    for share in options.macs:
        check_share(share)
    options.check_task()
    runtime.check()


def _images(options: EvalOptions, dense: nn.Module, task: FeatureTask | None) -> tuple[ImageStream, Judge]:
    """What to measure on, and how answers are compared."""
    sized = _sized(options, dense)
    if task is not None:
        return task.open(sized, dense)
    if not isinstance(dense, PixelModel):
        return open_images(sized, dense), judge_of(dense)
    if options.stride is not None and options.slide is None:
        raise TokensieveError("--stride is between sliding windows: give --slide N, the images' short side")
    images = open_pairs(sized, dense, slide=options.slide)
    if images.window is None:
        return images, dense.judge()
    window, batch = images.window, sized.batch_size or PIXELS_BATCH_SIZE
    stride = None if options.stride is None else (options.stride, options.stride)
    return images, PixelJudge(dense.task, lambda model: sliding(model, window, stride, batch))


def _models(options: EvalOptions, task: FeatureTask | None, device: str) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The dense model and the saved reduced one, if any, as the task calls them."""
    if task is None:
        return _created(options, options)
    dense, variants = _created(options, TaskOptions())
    return task.prepare(dense, variants, device)


def _created(options: EvalOptions, task: TaskOptions) -> tuple[nn.Module, dict[str, nn.Module]]:
    """The dense model, and the saved reduced one where the model is a folder written by ``ts.save``; a trained one is
    compared with the dense model that it was trained from, where that can be had."""
    model = create_model(options, task)
    saved = source_of(options.model).kind == "saved"
    if not has_weights(options):
        note("the weights are random: give --pretrained or --checkpoint FILE; speed and MACs hold, accuracy does not")
    elif isinstance(model, PixelModel) and task.task not in (None, CLASSIFICATION) and not saved:
        note("the head is random: give a folder that tokensieve train wrote; speed and MACs hold, the figures do not")
    if not is_applied(model):
        return model, {}
    origin, said = dense_origin(options.model)
    if said:
        note(said)
    if origin is not None:
        return origin, {f"{spell(applied(model))}, trained": model}
    return remove(share_weights(model)).eval(), {spell(applied(model)): model}


def _at_macs(
    options: EvalOptions,
    dense: nn.Module,
    compositions: Sequence[tuple[Method, ...]],
    images: ImageStream,
    bars: Progress,
) -> list[tuple[Method, ...]]:
    """The compositions that are asked for, at the asked MACs where there are any."""
    if not (options.macs and compositions):
        return list(compositions)
    sample = _sample(images, compositions)
    bars.start("finding methods of equal MACs", len(options.macs) * len(compositions))
    wanted = []
    for composition in compositions:
        for share in options.macs:
            wanted.append(solve(dense, composition, share, sample))
            bars.advance()
    return wanted


def _possible(
    options: EvalOptions,
    dense: nn.Module,
    compositions: Sequence[tuple[Method, ...]],
    images: ImageStream,
    bars: Progress,
) -> tuple[list[tuple[Method, ...]], dict[str, str]]:
    """What this model and these MACs allow of ``compositions``, and why they do not allow the others."""
    found: list[tuple[Method, ...]] = []
    left_out: dict[str, str] = {}
    for composition in compositions:
        shares: list[float | None] = [*options.macs] if options.macs else [None]
        for share in shares:
            one = replace(options, macs=() if share is None else (share,))
            name = composition[0].name if share is None else f"{composition[0].name} at {share}"
            try:
                (wanted,) = _at_macs(one, dense, [composition], images, bars)
                model = measuring.reduce(dense, wanted)
            except TokensieveError as error:
                left_out[name] = str(error).partition("; leave --macs out")[0]
                continue
            sample = _sample(images, [composition])
            reached = count(model, sample).total / count(dense, sample[:1]).total
            if share is not None and abs(reached - share) > NEAR:
                left_out[name] = f"comes no nearer than {spell(wanted)}, {reached:.3f} of the dense model"
            else:
                found.append(wanted)
    return found, left_out


def _sample(images: ImageStream, compositions: Sequence[tuple[Method, ...]]) -> Tensor:
    """Images to count MACs on: several where images keep different numbers of tokens."""
    ragged = any(method.ragged for methods in compositions for method in methods)
    return images.first(measuring.COUNTED_IMAGES if ragged else 1)
