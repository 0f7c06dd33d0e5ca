"""ToSA's selector with its column sums: its share of a dense block, and how its memory grows with the tokens."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import tokensieve as ts
from cells import Cell
from measure_model import middle_half
from measure_operator import entering
from subject import Subject, prepare
from tokensieve.attention.selector import Selector
from tokensieve.attention.signals import Attended
from tokensieve.attention.tap import Tap
from tokensieve.engine.apply import sites
from tokensieve.errors import TokensieveError
from tokensieve.families._locate import family_of
from tokensieve.measure import memory, speed
from tokensieve.measure.timing import Progress, Variant
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
    located = family_of(subject.dense)
    block = located.family.blocks(located.owner)[number]
    x = entering(subject.dense, subject.x, number)
    tap = Tap()
    with torch.inference_mode(), tap:
        located.family.attention(block, x)
    attended = tap.attended()
    columns = Columns(selector, method, attended)
    runs = {"dense": subject.runtime.callable(block), "selector": subject.runtime.callable(columns)}
    timed = speed.measure(runs, x, rounds=cell.rounds, warmup=cell.warmup)
    shares = [a / b for a, b in zip(timed["selector"].seconds, timed["dense"].seconds, strict=True)]
    low, high = middle_half(shares)
    batch, heads, length, _ = attended.keys.shape
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
        "noisy": any(speed.noisy(timing) for timing in timed.values()),
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
    raise TokensieveError(f"{ts.spell(ts.applied(model))} has no selector: name tosa without score=")
