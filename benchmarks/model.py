"""A whole model: S, F and O of every method, its memory, and what one site of it costs in dense blocks."""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.cells import Cell
from benchmarks.subject import Subject, prepare
from tokensieve.engine.apply import applied
from tokensieve.engine.trace import Trace, trace
from tokensieve.errors import TokensieveError
from tokensieve.measure.progress import Progress
from tokensieve.measure.results import DENSE
from tokensieve.measure.speed import Timing, quartiles
from tokensieve.measure.timing import Timings, Variant, time_variants


def measure(
    cell: Cell, device: str, data: str | None, progress: Progress, checkpoint: str | None = None
) -> dict[str, Any]:
    """The record of a "model" cell. See ``subject.prepare`` for the arguments and errors."""
    subject = prepare(cell, device, data, checkpoint)
    refused: dict[str, str] = {}

    def timed() -> Timings:
        variants = [variant for variant in subject.all if variant.name not in refused]
        how: dict[str, Any] = {"runtime": subject.runtime, "rounds": cell.rounds, "warmup": cell.warmup}
        return time_variants(subject.dense, variants, subject.x, progress=progress, **how)

    try:
        timings = timed()
    except torch.OutOfMemoryError:
        raise
    except (TokensieveError, RuntimeError):
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
    row: dict[str, Any] = {"variant": variant.name, "asked": subject.asked[variant.name]}
    row |= {"gmacs": variant.report.total / 1e9, "F": promised} | asdict(timings.speed(variant.name, promised))
    row |= token_counts(variant)
    timing = timings.variants[variant.name]
    row["seconds"] = list(timing.seconds)
    row["S_low"], row["S_high"] = quartiles(timing.ratios(timings.dense))
    if variant.name == DENSE:
        return row | {"kind": DENSE, "ragged": False}
    oracle = timings.oracles[variant.name]
    row["oracle_seconds"] = list(oracle.seconds)
    row["S_over_O_low"], row["S_over_O_high"] = quartiles(timing.ratios(oracle))
    with torch.no_grad():
        traced = trace(variant.model, subject.x[:1])
    row |= {"kind": kind_of(traced), "ragged": any(method.ragged for method in applied(variant.model))}
    row["sites"] = len(traced.events)
    blocks = sum(block.macs for block in subject.base.blocks) / subject.base.total / len(subject.base.blocks)
    row["site_share"] = site_share(timing, oracle, timings.dense, len(traced.events), blocks)
    return row


def token_counts(variant: Variant) -> dict[str, list[int]]:
    """Tokens in the MLP and in attention of every block."""
    blocks = variant.report.blocks
    return {"tokens": [round(b.processed) for b in blocks], "attended": [round(b.attended) for b in blocks]}


def kind_of(traced: Trace) -> str:
    """What a method does to tokens: "merging", "skipping", "pruning", or "none" where nothing happened.

    A method merges where it leaves more tokens that stand for several patches than it had sites: EViT's one fused token
    a site does not make it a merging method, so that it is held to the stricter goal for pruning.
    """
    if not traced.events or traced.tokens is None:
        return "none"
    groups = [event.group for event in traced.events if event.group is not None]
    if traced.tokens.back.outer is not None or max(map(_shared, groups), default=0) > len(traced.events):
        return "merging"
    return "skipping" if all(event.returns for event in traced.events) else "pruning"


def _shared(group: Tensor) -> int:
    """How many of the first image's tokens stand for several patches; ``group`` is (B, N), -1 for none."""
    present = group[0][group[0] >= 0]
    return int((present.bincount() > 1).sum()) if len(present) else 0


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
