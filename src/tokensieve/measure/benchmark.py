"""The main measurement: the dense model, every reduced variant and its oracle, in one run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from tokensieve.data.stream import ImageStream, Share
from tokensieve.engine.apply import apply
from tokensieve.errors import TokensieveError, TokensieveWarning
from tokensieve.measure.fidelity import judge_of
from tokensieve.measure.judge import Judge, answers_of, compare
from tokensieve.measure.macs import count
from tokensieve.measure.progress import Progress, Silent
from tokensieve.measure.results import DENSE, Results, Row
from tokensieve.measure.speed import Budget
from tokensieve.measure.timing import Variant, time_variants
from tokensieve.methods._method import Method
from tokensieve.methods._registry import list_methods
from tokensieve.models.load import share_weights
from tokensieve.models.runtime import Runtime
from tokensieve.utils.processes import Processes

COUNTED_IMAGES = 16  # images that MACs are averaged over; only ragged methods need more than one


def reduce(dense: nn.Module, methods: Sequence[Method]) -> nn.Module:
    """A copy of ``dense`` with ``methods`` applied, with the same weights."""
    model = share_weights(dense)
    apply(model, tuple(methods))
    return model.eval()


def untrained() -> tuple[list[tuple[Method, ...]], dict[str, str]]:
    """Every registered method that needs no training, at its defaults, and why the others are left out, by name."""
    ready: list[tuple[Method, ...]] = []
    left_out: dict[str, str] = {}
    for name, cls in list_methods().items():
        if cls.trained:
            left_out[name] = "has a learned part that must be trained first; measure the model that ts.save wrote"
        else:
            ready.append((cls(),))
    return ready, left_out


def bench(
    dense: nn.Module,
    variants: dict[str, nn.Module],
    images: ImageStream,
    results: Results,
    *,
    runtime: Runtime | None = None,
    batches: Sequence[int] = (1, 16),
    rounds: int = 10,
    seconds: float | None = None,
    progress: Progress | None = None,
    processes: Processes | None = None,
    judge: Judge | None = None,
) -> Results:
    """Measure the dense model and every variant; rows are written as soon as they are complete.

    Accuracy comes first, variant by variant; the dense model runs once and its answers are kept. Then everything that
    has no time yet is timed, dense model, variants and oracles interleaved. Whatever ``results`` has is kept.

    Args:
        dense: the dense model.
        variants: spec to reduced model, see ``reduce``.
        images: what to measure on.
        results: where the rows go.
        runtime: device and precision; default float32 on the CPU.
        batches: batch sizes to time; empty for accuracy alone.
        rounds: timings of each model.
        seconds: that all timing may take, each batch size an equal part of what is left; default as long as it takes.
            One round is always measured.
        progress: is told how far it got.
        processes: the processes that call this together, each with its share of the images; all must have the same rows
            to begin with. The main one alone counts, writes and times; the others are done when they have answered.
        judge: how answers are compared; default as the dense model says, see ``judge_of``.
    """
    judge = judge_of(dense) if judge is None else judge
    runtime = Runtime() if runtime is None else runtime
    progress = Silent() if progress is None else progress
    processes = Processes() if processes is None else processes
    models = {name: runtime.place(model) for name, model in {DENSE: dense, **variants}.items()}
    # 1. MACs, counted on a few images by the main process alone.
    measured: list[Variant] = []
    if processes.main:
        sample = images.first(max((*batches, COUNTED_IMAGES)))
        measured = _counted(models, sample, runtime, progress)
    # 2. Answers of every model to every image, by all processes.
    share = images.share(processes)
    _answer(models, measured, share, results, runtime, progress, processes, judge)
    results.skipped = share.skipped()
    # 3. Times, by the main process alone: others would slow it down, so they leave first.
    processes.leave()
    if not processes.main:
        return results
    budget = Budget(seconds)
    for number, batch in enumerate(batches):
        part = budget.part(len(batches) - number)
        _time(measured, results, sample[:batch], runtime, rounds, progress, part)
    warn_of_slower(results, batches)
    return results


def _counted(models: dict[str, nn.Module], sample: Tensor, runtime: Runtime, progress: Progress) -> list[Variant]:
    """The models with their MACs, those of reduced ones averaged over several images."""
    progress.start("counting MACs", len(models))
    measured = []
    for name, model in models.items():
        counted = sample[: 1 if name == DENSE else COUNTED_IMAGES]
        measured.append(Variant(name, model, count(model, runtime.send(counted))))
        progress.advance()
    return measured


def _answer(
    models: dict[str, nn.Module],
    measured: Sequence[Variant],
    share: Share,
    results: Results,
    runtime: Runtime,
    progress: Progress,
    processes: Processes,
    judge: Judge,
) -> None:
    """Compare every model that has no row yet with the dense model, on this process's share of the images."""
    macs = {variant.name: variant.report.total for variant in measured}
    answered = False
    for name, model in models.items():
        row = results.find(name)
        if row is not None and row.images is not None:
            continue
        if not answered:
            progress.start(DENSE, share.total)
            run = runtime.callable(models[DENSE])
            answers, outcome = answers_of(run, _told(share, progress), processes, judge=judge)
            answered = True
        if name != DENSE:
            progress.start(name, share.total)
            outcome = compare(runtime.callable(model), iter(answers), _told(share, progress), processes, judge=judge)
        if processes.main:
            results.put(Row(name, macs[name] / 1e9, macs[DENSE] / macs[name], **asdict(outcome)))


def warn_of_slower(results: Results, batches: Sequence[int]) -> None:
    """Warn of every variant that was measured slower than the dense model at one of these batch sizes."""
    for row in results.rows:
        for entry in row.speed:
            if row.variant != DENSE and entry.batch in batches and entry.S < 1:
                warnings.warn(
                    f"{row.variant} is slower than the dense model at batch {entry.batch} ({entry.S:.2f} times its "
                    "speed): tokensieve plan finds a setting that pays, if there is one",
                    TokensieveWarning,
                    stacklevel=3,
                )


def _told(images: Share, progress: Progress) -> Iterator[tuple[Tensor, Any]]:
    for batch, labels in images:
        yield batch, labels
        progress.advance(len(batch))


def _time(
    measured: Sequence[Variant],
    results: Results,
    x: Tensor,
    runtime: Runtime,
    rounds: int,
    progress: Progress,
    budget: Budget,
) -> None:
    """Time every variant that has no figures at the batch size of ``x`` yet, beside the dense model and the oracles."""
    batch = len(x)
    dense = measured[0].model
    pending = [v for v in measured if all(s.batch != batch for s in _row(results, v).speed)]
    if not pending:
        return
    timings = time_variants(dense, pending, x, runtime=runtime, rounds=rounds, progress=progress, budget=budget)
    for variant in pending:
        row = _row(results, variant)
        row.speed.append(timings.speed(variant.name, row.F))
        results.put(row)


def _row(results: Results, variant: Variant) -> Row:
    row = results.find(variant.name)
    if row is None:
        raise TokensieveError(f"{variant.name!r} has no row: its accuracy is measured before its time")
    return row
