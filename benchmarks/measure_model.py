"""A whole model: S, F and O of every method, its memory, and what one site of it costs in dense blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

import tokensieve as ts
from cells import Cell
from subject import Subject, prepare
from tokensieve.errors import TokensieveError
from tokensieve.measure.results import DENSE
from tokensieve.measure.speed import Timing
from tokensieve.measure.timing import Progress, Timings, Variant, time_variants


def measure(cell: Cell, device: str, data: str | None, progress: Progress) -> dict[str, Any]:
    """The record of a "model" cell. See ``subject.prepare`` for the arguments and errors."""
    subject = prepare(cell, device, data)
    refused: dict[str, str] = {}

    def timed() -> Timings:
        variants = [variant for variant in subject.all if variant.name not in refused]
        options = {"rounds": cell.rounds, "warmup": cell.warmup}
        return time_variants(subject.dense, variants, subject.x, runtime=subject.runtime, progress=progress, **options)

    try:
        timings = timed()
    except (TokensieveError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        refused |= _failing(subject)
        if not refused:
            raise
        timings = timed()
    rows = [_row(subject, variant, timings) for variant in subject.all if variant.name not in refused]
    return subject.told | {"refused": refused, "rows": rows}


def _failing(subject: Subject) -> dict[str, str]:
    """The variants that this engine cannot run, each with the reason in one line."""
    reasons: dict[str, str] = {}
    for variant in subject.variants:
        try:
            with torch.inference_mode():
                subject.runtime.callable(variant.model)(subject.x)
        except (TokensieveError, RuntimeError) as error:
            reasons[variant.name] = str(error).strip().partition("\n")[0]
    return reasons


def _row(subject: Subject, variant: Variant, timings: Timings) -> dict[str, Any]:
    promised = subject.base.total / variant.report.total
    row: dict[str, Any] = {"variant": variant.name, "gmacs": variant.report.total / 1e9, "F": promised}
    row |= asdict(timings.speed(variant.name, promised))
    row["tokens"] = [round(block.processed) for block in variant.report.blocks]
    row["attended"] = [round(block.attended) for block in variant.report.blocks]
    timing = timings.variants[variant.name]
    row["seconds"] = list(timing.seconds)
    row["S_low"], row["S_high"] = middle_half(ratios(timings.dense, timing))
    if variant.name == DENSE:
        return row | {"kind": DENSE, "ragged": False}
    oracle = timings.oracles[variant.name]
    row["oracle_seconds"] = list(oracle.seconds)
    row["S_over_O_low"], row["S_over_O_high"] = middle_half(ratios(oracle, timing))
    with torch.no_grad():
        trace = ts.trace(variant.model, subject.x[:1])
    row["kind"] = kind_of(trace)
    row["ragged"] = any(method.ragged for method in ts.applied(variant.model))
    row["sites"] = len(trace.events)
    blocks = sum(block.macs for block in subject.base.blocks) / subject.base.total / len(subject.base.blocks)
    row["site_share"] = site_share(timing, oracle, timings.dense, len(trace.events), blocks)
    return row


def kind_of(trace: ts.Trace) -> str:
    """What a method does to tokens: "merging", "skipping", "pruning", or "none" where nothing happened.

    A method merges where it leaves more tokens that stand for several patches than it had sites: EViT's one fused token
    a site does not make it a merging method, so that it is held to the stricter goal for pruning.
    """
    if not trace.events or trace.tokens is None:
        return "none"
    if trace.tokens.outer is not None:
        return "merging"
    groups = [event.group for event in trace.events if event.group is not None]
    merged = max((_shared(group) for group in groups), default=0)
    if merged > len(trace.events):
        return "merging"
    return "skipping" if all(event.returns for event in trace.events) else "pruning"


def _shared(group: Tensor) -> int:
    """How many of the first image's tokens stand for several patches; ``group`` is (B, N), -1 for none."""
    present = group[0][group[0] >= 0]
    return int((present.bincount() > 1).sum()) if len(present) else 0


def ratios(numerator: Timing, denominator: Timing) -> list[float]:
    """Round by round, ``numerator`` over ``denominator``: how many times faster the latter is."""
    return [a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True)]


def middle_half(values: Sequence[float]) -> tuple[float, float]:
    """First and third quartile."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def site_share(timing: Timing, oracle: Timing, dense: Timing, sites: int, block_share: float) -> float | None:
    """What one site costs on top of the oracle, as a share of one dense block; None without a site.

    Args:
        timing, oracle, dense: seconds of whole models, interleaved.
        sites: how often the methods acted.
        block_share: share of the dense model's MACs that one of its blocks has, taken as its share of the time.
    """
    if not sites:
        return None
    rounds = zip(timing.seconds, oracle.seconds, dense.seconds, strict=True)
    return median((own - free) / sites / (whole * block_share) for own, free, whole in rounds)
