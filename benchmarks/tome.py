"""Run ToMe's authors' code beside ours: the same tokens merged in float32, and how fast each is.

That code (github.com/facebookresearch/ToMe, CC-BY-NC) is not part of this repository. Bring a checkout and name it:

python -m benchmarks tome --tome ../ToMe --resume

Dense model, ours, our oracle and theirs are timed interleaved, and the dense model with explicit attention beside them,
because on some CPUs that is the faster one in bfloat16. The cells join the results file of ``speed``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cells import Cell, grid, with_rounds
from benchmarks.model import token_counts
from benchmarks.operator import blocks_of
from benchmarks.session import Session, common_options
from benchmarks.subject import Subject, prepare
from tokensieve.engine.apply import applied
from tokensieve.engine.trace import trace
from tokensieve.errors import TokensieveError
from tokensieve.measure import speed
from tokensieve.measure.oracle import oracle
from tokensieve.measure.progress import Progress
from tokensieve.measure.timing import Variant, disturbed, steadiest
from tokensieve.methods._method import Method
from tokensieve.methods._spec import parse, spell
from tokensieve.models.load import share_weights

COMPARED = 8  # images whose answers are compared; one above 384 pixels


def options(parser: argparse.ArgumentParser) -> None:
    """What to measure."""
    parser.add_argument("--tome", type=Path, required=True, metavar="PATH", help="a checkout of facebookresearch/ToMe")
    parser.add_argument("--img-size", action="append", type=int, help="only the cells of this size; repeatable")
    parser.add_argument("--dtype", action="append", help="bf16, fp16 or fp32, default bf16; repeatable")
    common_options(parser)


def run(given: argparse.Namespace) -> int:
    """Measure the cells that the goals ask of this device."""
    reference = Reference(import_tome(given.tome))
    cells = default_cells(given.dtype or ["bf16"], torch.device(given.device).type == "cpu")
    cells = [cell for cell in cells if given.img_size is None or cell.setting.img_size in given.img_size]
    return Session.of(given, {"reference": reference.measure}).run(with_rounds(cells, given.rounds))


def default_cells(dtypes: Sequence[str], on_cpu: bool) -> list[Cell]:
    """What the goals beside the reference ask of a CPU or of a GPU."""
    chosen = [("deit_small", 224, 1, 13, 20), ("deit_small", 224, 16, 13, 12), ("deit_small", 224, 64, 13, 8)]
    chosen += [] if on_cpu else [("vit_base", 224, 64, 13, 20)]
    chosen += [("vit_base", 1024, 1, 256, 4)]  # 4097 tokens to 1025 over twelve blocks
    cells = []
    for model, size, batch, r, rounds in chosen:
        how: dict[str, Any] = {"kind": "reference", "rounds": rounds, "warmup": 1 if size > 384 else 2}
        cells += grid([model], [size], [batch], dtypes, ["eager"], [f"tome:r={r}"], **how)
    return cells


def import_tome(path: Path) -> ModuleType:
    """The package ``tome`` from a checkout.

    Raises:
        TokensieveError: not a checkout of it, or it cannot be imported beside this timm.
    """
    if not (path / "tome" / "patch" / "timm.py").is_file():
        raise TokensieveError(
            f"{str(path)!r} is not a checkout of github.com/facebookresearch/ToMe: no tome/patch/timm.py"
        )
    sys.path.insert(0, str(path.resolve()))  # the checkout is no package that could be installed
    try:
        return importlib.import_module("tome")
    except ImportError as error:
        raise TokensieveError(f"the reference ToMe cannot be imported here: {error}") from error
    finally:
        sys.path.pop(0)


class Reference:
    """Measures cells of the kind "reference".

    Args:
        tome: the authors' package; of it ``tome.patch.timm(model)`` and ``model.r`` are used, as its README says.
    """

    def __init__(self, tome: ModuleType) -> None:
        self.tome = tome

    def measure(self, cell: Cell, device: str, data: str | None, progress: Progress) -> dict[str, Any]:
        """The record of a cell. See ``subject.prepare`` for the arguments and errors."""
        setting = cell.setting
        compared = COMPARED if setting.img_size <= 384 else 1
        single = replace(cell, setting=replace(setting, dtype="float32", batch=compared))
        progress.start("comparing answers in float32", len(cell.methods))
        answers = self._compare(prepare(single, device, data), progress)
        subject = prepare(cell, device, data)
        rows = self._time(subject, cell, progress)
        return subject.told | {"rows": [row | answers[row["variant"]] for row in rows]}

    def patched(self, dense: nn.Module, methods: Sequence[Method], trace_source: bool = False) -> nn.Module:
        """A copy of ``dense`` with the authors' patch and the r of ``methods``.

        Raises:
            TokensieveError: a method that is not ToMe with one r, or a model whose LayerScale or q/k norms their patch
                would drop.
        """
        r: Any = getattr(methods[0], "r", None)
        if not isinstance(r, int) or tuple(methods) != parse(f"tome:r={r}"):
            raise TokensieveError(f"the reference runs tome:r=NUMBER and nothing else, got {spell(tuple(methods))}")
        for block in blocks_of(dense):
            inner: Any = block
            parts = (inner.ls1, inner.ls2, inner.attn.q_norm, inner.attn.k_norm)
            if not all(isinstance(part, nn.Identity) for part in parts):
                raise TokensieveError("the reference drops LayerScale and q/k norms: name a plain ViT or DeiT")
        model: Any = share_weights(dense)
        self.tome.patch.timm(model, trace_source=trace_source)
        model.r = r
        return model  # type: ignore[no-any-return]

    def _compare(self, subject: Subject, progress: Progress) -> dict[str, dict[str, Any]]:
        """Which share of the images has the same tokens merged, and how far the logits are apart, one by one."""
        outcome = {}
        for variant in subject.variants:
            theirs: Any = self.patched(subject.dense, applied(variant.model), trace_source=True)
            same, largest = 0, 0.0
            for image in subject.x.split(1):
                with torch.inference_mode():
                    difference = (variant.model(image) - theirs(image)).abs().max().item()
                    ours = trace(variant.model, image).tokens
                assert ours is not None  # tome has a site in every block
                # (1, T, N): which of their T tokens each patch went to; the class token comes first in both.
                group = theirs._tome_info["source"].argmax(dim=1)[:, 1:]
                same += int(torch.equal(first_members(group), first_members(ours.back.group)))
                largest = max(largest, difference)
            count = len(subject.x)
            outcome[variant.name] = {"same_groups": same / count, "compared": count, "largest_difference": largest}
            progress.advance()
        return outcome

    def _time(self, subject: Subject, cell: Cell, progress: Progress) -> list[dict[str, Any]]:
        models: dict[str, nn.Module] = {"dense": subject.dense, "explicit": explicit(subject.dense)}
        for variant in subject.variants:
            models[f"{variant.name} ours"] = variant.model
            models[f"{variant.name} oracle"] = oracle(subject.dense, variant.report)
            models[f"{variant.name} theirs"] = self.patched(subject.dense, applied(variant.model))
        runs = {name: subject.runtime.callable(model) for name, model in models.items()}
        oracles = [name for name in runs if name.endswith(" oracle")]

        def one_set(number: int) -> dict[str, speed.Timing]:
            progress.start("timing beside the reference", cell.rounds * len(runs))
            warmup = 1 if number else cell.warmup
            return speed.measure(runs, subject.x, rounds=cell.rounds, warmup=warmup, on_round=progress.advance)

        timed, discarded = steadiest(one_set, "dense", oracles)
        told = {"discarded": discarded, "noisy": disturbed(timed, oracles)}
        return [self._row(subject, variant, timed) | told for variant in subject.variants]

    def _row(self, subject: Subject, variant: Variant, timed: Mapping[str, speed.Timing]) -> dict[str, Any]:
        dense = timed["dense"]
        ours, free, theirs = (timed[f"{variant.name} {who}"] for who in ("ours", "oracle", "theirs"))
        low, high = speed.quartiles(ours.ratios(theirs))
        return {
            "variant": variant.name,
            "F": subject.base.total / variant.report.total,
            "S": ours.speedup(dense),
            "O": free.speedup(dense),
            "reference_S": theirs.speedup(dense),
            "explicit_S": timed["explicit"].speedup(dense),
            "over_reference": ours.speedup(theirs),
            "low": low,
            "high": high,
            **token_counts(variant),
            "seconds": list(ours.seconds),
            "reference_seconds": list(theirs.seconds),
        }


def explicit(dense: nn.Module) -> nn.Module:
    """A copy of ``dense`` that computes its attention maps, as the reference does, and not by the fused kernel."""
    model = share_weights(dense)
    for block in blocks_of(model):
        attention: Any = block.attn
        attention.fused_attn = False
    return model


def first_members(group: Tensor) -> Tensor:
    """(B, N) group numbers to the first patch of each patch's group: equal for equal groups, however numbered."""
    return (group.unsqueeze(1) == group.unsqueeze(2)).int().argmax(dim=2)
