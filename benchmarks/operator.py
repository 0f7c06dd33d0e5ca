"""What a method itself costs: the blocks around its first sites, beside the oracle's and next to a dense block.

Two blocks are timed, from the first one that has a site on, and tokens that wait beside are put back at the end, so
that a method that skips a block pays for its way back. What remains after the oracle's time is the method's.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cells import Cell
from benchmarks.model import kind_of
from benchmarks.subject import Subject, prepare
from tokensieve.engine.apply import sites
from tokensieve.engine.trace import trace
from tokensieve.families._locate import family_of
from tokensieve.measure import speed
from tokensieve.measure.oracle import OracleBlock, oracle
from tokensieve.measure.progress import Progress
from tokensieve.measure.timing import Variant, disturbed, steadiest
from tokensieve.tokens.restore import returning
from tokensieve.tokens.state import Tokens

SPAN = 2  # blocks


def measure(cell: Cell, device: str, data: str | None, progress: Progress) -> dict[str, Any]:
    """The record of an "operator" cell. See ``subject.prepare`` for the arguments and errors."""
    subject = prepare(cell, device, data)
    progress.start(f"timing the operators of {len(subject.variants)} methods", len(subject.variants))
    rows = []
    for variant in subject.variants:
        rows.append(_row(subject, variant, cell))
        progress.advance()
    return subject.told | {"rows": rows}


def _row(subject: Subject, variant: Variant, cell: Cell) -> dict[str, Any]:
    acting = [site for site in sites(variant.model) if site.turns.steps]
    first = acting[0].block
    last = min(first + SPAN, len(subject.base.blocks))
    inside = sum(len(site.turns.steps) for site in acting if first <= site.block < last)
    x = entering(subject.dense, subject.x, first)
    chains: dict[str, list[nn.Module]] = {
        "dense": blocks_of(subject.dense),
        "reduced": blocks_of(variant.model),
        "oracle": [m for m in oracle(subject.dense, variant.report).modules() if isinstance(m, OracleBlock)],
    }
    runs = {name: subject.runtime.callable(Through(blocks[first:last])) for name, blocks in chains.items()}

    def one_set(number: int) -> dict[str, speed.Timing]:
        return speed.measure(runs, x, rounds=cell.rounds, warmup=1 if number else cell.warmup)

    timed, discarded = steadiest(one_set, "dense", ["oracle"])
    rounds = zip(*(timed[name].seconds for name in ("reduced", "oracle", "dense")), strict=True)
    shares = [(own - ideal) / inside / (whole / (last - first)) for own, ideal, whole in rounds]
    low, high = speed.quartiles(shares)
    with torch.no_grad():
        kind = kind_of(trace(variant.model, subject.x[:1]))
    return {
        "variant": variant.name,
        "kind": kind,
        "blocks": [first, last - 1],
        "sites": inside,
        "tokens": x.shape[1],
        "left": round(variant.report.blocks[last - 1].processed),
        "block_seconds": timed["dense"].median / (last - first),
        "site_share": median(shares),
        "low": low,
        "high": high,
        "discarded": discarded,
        "noisy": disturbed(timed, ["oracle"]),
    }


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a model."""
    located = family_of(model)
    return list(located.family.blocks(located.owner))


def entering(dense: nn.Module, x: Tensor, block: int) -> Tensor:
    """(B, L, C), what enters ``block`` of the dense model for the images ``x``."""
    seen: list[Tensor] = []
    handle = blocks_of(dense)[block].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        with torch.inference_mode():
            dense(x)
    finally:
        handle.remove()
    return seen[0]


class Through(nn.Module):
    """Some blocks in a row, (B, L, C) to (B, L', C); tokens that wait beside come back at the end."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Run all of them."""
        state: Tensor | Tokens = x
        for block in self.blocks:
            state = block(state)
        return returning(state, state.stages[-1].block + 1).x if isinstance(state, Tokens) else state
