"""ToSA's selector with its column sums: its share of a dense block, and how its memory grows with the tokens."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cells import Cell
from benchmarks.operator import blocks_of, entering
from benchmarks.subject import Subject, prepare
from tokensieve.attention.selector import Selector
from tokensieve.attention.signals import Attended
from tokensieve.attention.tap import Tap
from tokensieve.engine.apply import applied, sites
from tokensieve.errors import TokensieveError
from tokensieve.families._locate import family_of
from tokensieve.measure import memory, speed
from tokensieve.measure.progress import Progress
from tokensieve.measure.timing import Variant
from tokensieve.methods._spec import spell
from tokensieve.methods.tosa import ToSA


def measure(cell: Cell, device: str, data: str | None, progress: Progress) -> dict[str, Any]:
    """The record of a "selector" cell. See ``subject.prepare`` for the arguments and errors."""
    subject = prepare(cell, device, data)
    progress.start("timing ToSA's selector", len(subject.variants))
    rows = []
    for variant in subject.variants:
        rows.append(_row(subject, variant, cell))
        progress.advance()
    return subject.told | {"rows": rows}


def _row(subject: Subject, variant: Variant, cell: Cell) -> dict[str, Any]:
    method, selector, number = _selector(variant.model)
    block = blocks_of(subject.dense)[number]
    x = entering(subject.dense, subject.x, number)
    tap = Tap()
    with torch.inference_mode(), tap:
        family_of(subject.dense).family.attention(block, x)
    columns = Columns(selector, method, tap.attended())
    runs = {"dense": subject.runtime.callable(block), "selector": subject.runtime.callable(columns)}
    timed = speed.measure(runs, x, rounds=cell.rounds, warmup=cell.warmup)
    shares = timed["dense"].ratios(timed["selector"])
    low, high = speed.quartiles(shares)
    batch, heads, length, _ = columns.attended.keys.shape
    return {
        "variant": variant.name,
        "tokens": length,
        "heads": heads,
        "stride": method.stride_of(length),
        "rows_at_a_time": method.block,
        "block_seconds": timed["dense"].median,
        "share": median(shares),
        "low": low,
        "high": high,
        "peak_memory": memory.peak(columns, x),
        "attention_map": batch * heads * length * length * 4,
        "noisy": any(map(speed.noisy, timed.values())),
    }


class Columns(nn.Module):
    """A selector's column sums for the attention it was given; the input is ignored."""

    def __init__(self, selector: Selector, method: ToSA, attended: Attended) -> None:
        super().__init__()
        self.selector, self.method, self.attended = selector, method, attended

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, L), as ``ToSA`` asks for them."""
        stride = self.method.stride_of(self.attended.keys.shape[2])
        return self.selector.columns(self.attended, self.method.block, stride, self.method.sum_of)


def _selector(model: nn.Module) -> tuple[ToSA, Selector, int]:
    """The first selector of a model with ToSA, its method and its block."""
    for site in sites(model):
        for step in site.turns.steps:
            part = site.learned[step.key] if step.key in site.learned else None  # noqa: SIM401 - has no get
            if isinstance(step.method, ToSA) and isinstance(part, Selector):
                return step.method, part, site.block
    raise TokensieveError(f"{spell(applied(model))} has no selector: name tosa without score=")
