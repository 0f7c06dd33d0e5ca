"""The main measurement: the dense model, every reduced variant and its oracle, in one run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import tokensieve as ts
from tokensieve.errors import TokensieveError, TokensieveWarning
from tokensieve.measure import memory, speed
from tokensieve.measure.data import ImageStream
from tokensieve.measure.fidelity import Fidelity, Meters, compare, predict
from tokensieve.measure.macs import MacReport, count
from tokensieve.measure.model import share_weights
from tokensieve.measure.oracle import oracle
from tokensieve.measure.results import DENSE, Results, Row, Speed
from tokensieve.method import Method

COUNTED_IMAGES = 16  # images that MACs are averaged over; only ragged methods need more than one


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """How models run.

    Attributes:
        device: a torch device.
        amp, amp_dtype: autocast, and to what ("float16" or "bfloat16").
        channels_last: memory format of images and convolutions.
        torchcompile: a torch.compile backend, or None for eager.
    """

    device: str = "cpu"
    amp: bool = False
    amp_dtype: str = "bfloat16"
    channels_last: bool = False
    torchcompile: str | None = None

    @property
    def dtype(self) -> str:
        """What the arithmetic runs in."""
        return self.amp_dtype if self.amp else "float32"

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, in the memory format."""
        model = model.to(self.device)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model  # type: ignore[call-overload, no-any-return]

    def send(self, images: Tensor) -> Tensor:
        """Images on the device, in the memory format."""
        images = images.to(self.device, non_blocking=True)
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def callable(self, model: nn.Module, compiled: bool = True) -> Callable[[Tensor], Any]:
        """A function from images, wherever they are, to the model's answer."""
        run: Callable[[Tensor], Any] = model
        if self.torchcompile is not None and compiled:
            run = torch.compile(model, backend=self.torchcompile)

        def forward(images: Tensor) -> Any:
            with self._autocast():
                return run(self.send(images))

        return forward

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self.amp:
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, dtype=getattr(torch, self.amp_dtype))


@dataclass
class Variant:
    """A reduced model to measure.

    Attributes:
        name: the spec of its methods.
        model: shares its weights with the dense model.
        report: its MACs, and where its tokens went.
    """

    name: str
    model: nn.Module
    report: MacReport


class Progress(Protocol):
    """What is told about the run while it goes on."""

    def start(self, what: str, total: int | None) -> None:
        """A phase begins that has ``total`` steps."""

    def advance(self, steps: int = 1) -> None:
        """Some steps are done."""


class Silent:
    """Tells nothing."""

    def start(self, what: str, total: int | None) -> None:
        """Nothing."""

    def advance(self, steps: int = 1) -> None:
        """Nothing."""


def reduce(dense: nn.Module, methods: Sequence[Method]) -> nn.Module:
    """A copy of ``dense`` with ``methods`` applied, sharing its weights."""
    model = share_weights(dense)
    ts.apply(model, tuple(methods))
    return model.eval()


def bench(
    dense: nn.Module,
    variants: dict[str, nn.Module],
    images: ImageStream,
    results: Results,
    *,
    runtime: Runtime | None = None,
    batches: Sequence[int] = (1, 16),
    rounds: int = 10,
    progress: Progress | None = None,
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
        progress: is told how far it got.
    """
    runtime = Runtime() if runtime is None else runtime
    progress = Silent() if progress is None else progress
    sample = images.first(max((*batches, COUNTED_IMAGES)))
    dense = runtime.place(dense)
    base = count(dense, runtime.send(sample[:1]))
    answers: list[Tensor] = []
    measured = [Variant(DENSE, dense, base)]
    for name, model in variants.items():
        model = runtime.place(model)
        measured.append(Variant(name, model, count(model, runtime.send(sample[:COUNTED_IMAGES]))))
    for variant in measured:
        row = results.find(variant.name)
        if row is not None and row.agreement is not None:
            continue
        if not answers:
            progress.start(DENSE, images.total)
            answers, outcome = _dense_answers(runtime.callable(dense), _told(images, progress))
        if variant.name != DENSE:
            progress.start(variant.name, images.total)
            outcome = compare(runtime.callable(variant.model), iter(answers), _told(images, progress))
        gmacs = variant.report.total / 1e9
        results.put(Row(variant.name, gmacs, base.total / variant.report.total, **asdict(outcome)))
    for batch in batches:
        _time(measured, results, sample[:batch], runtime, rounds, progress)
    warn_of_slower(results, batches)
    return results


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


def _told(images: ImageStream, progress: Progress) -> Iterator[tuple[Tensor, Tensor]]:
    for batch, labels in images:
        yield batch, labels
        progress.advance(len(batch))


def _dense_answers(
    run: Callable[[Tensor], Any], batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[list[Tensor], Fidelity]:
    """The logits of the dense model, batch by batch, and its own accuracy."""
    answers: list[Tensor] = []
    meters: Meters | None = None
    for images, labels in batches:
        logits = predict(run, images)
        meters = Meters(logits.shape[1]) if meters is None else meters
        meters.update(logits, logits, labels)
        answers.append(logits)
    assert meters is not None  # a stream without images has raised
    return answers, meters.compute()


def _time(
    measured: Sequence[Variant], results: Results, x: Tensor, runtime: Runtime, rounds: int, progress: Progress
) -> None:
    """Time every variant that has no figures at the batch size of ``x`` yet, beside the dense model and the oracles."""
    batch = len(x)
    dense = measured[0].model
    pending = [v for v in measured if all(s.batch != batch for s in _row(results, v).speed)]
    if not pending:
        return
    x = runtime.send(x)
    models = {DENSE: dense} | {v.name: v.model for v in pending}
    oracles = {v.name: oracle(dense, v.report) for v in pending if v.name != DENSE}
    runs = {(name, False): runtime.callable(model) for name, model in models.items()}
    runs |= {(name, True): runtime.callable(model) for name, model in oracles.items()}
    keyed = {f"{name} {'oracle' if free else ''}": run for (name, free), run in runs.items()}
    progress.start(f"timing at batch {batch}", rounds * len(keyed))
    timings = speed.measure(keyed, x, rounds=rounds, on_round=progress.advance)
    reference = timings[f"{DENSE} "]
    for variant in pending:
        timing, free = timings[f"{variant.name} "], timings.get(f"{variant.name} oracle")
        row = _row(results, variant)
        gain = timing.speedup(reference)
        ideal = None if free is None else free.speedup(reference)
        fast, slow = timing.quartiles
        row.speed.append(
            Speed(
                batch=batch,
                images_per_second=timing.images_per_second,
                low=batch / slow,
                high=batch / fast,
                S=gain,
                O=ideal,
                S_over_F=gain / row.F,
                S_over_O=None if free is None else timing.speedup(free),
                peak_memory=memory.peak(runtime.callable(variant.model, compiled=False), x),
                noisy=any(speed.noisy(t) for t in (timing, reference, free) if t is not None),
            )
        )
        results.put(row)


def _row(results: Results, variant: Variant) -> Row:
    row = results.find(variant.name)
    if row is None:
        raise TokensieveError(f"{variant.name!r} has no row: its accuracy is measured before its time")
    return row
