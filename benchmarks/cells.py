"""What the runner measures: a cell is one setting and the methods that are timed in it, all interleaved in one run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from tokensieve.errors import TokensieveError
from tokensieve.methods._spec import spell, sweep
from tokensieve.models.runtime import Runtime

Kind = Literal["model", "operator", "selector", "reference", "export"]
Engine = Literal["eager", "compile", "cudagraph"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
MODELS = {
    "deit_tiny": "deit_tiny_patch16_224",
    "deit_small": "deit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "vit_large": "vit_large_patch16_224",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything a figure depends on besides the method and the machine.

    Attributes:
        model: timm's name.
        img_size: side of the square image in pixels.
        batch: images per call.
        dtype: "float32", "bfloat16" or "float16"; weights and images both.
        engine: "eager", "compile" (inductor) or "cudagraph".
        head: "" for the model's own, "depth" for a linear head on every patch of the last block.
    """

    model: str
    img_size: int
    batch: int
    dtype: str = "float32"
    engine: Engine = "eager"
    head: Literal["", "depth"] = ""

    def runtime(self, device: str) -> Runtime:
        """The runtime of this setting on ``device``."""
        compiled = "inductor" if self.engine == "compile" else None
        graphed = self.engine == "cudagraph"
        return Runtime(device=device, model_dtype=self.dtype, torchcompile=compiled, cuda_graph=graphed)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing to measure and to save.

    Attributes:
        kind: "model" times whole models; "operator" what a method itself costs, next to one dense block; "selector"
            ToSA's selector with its column sums; "reference" ToMe beside its authors' code; "export" exported files.
        setting: where.
        methods: specs, without sweeps.
        rounds: timings of each variant.
        warmup: calls of each variant before the first round.
        factor: every method's knob is turned to this factor of MACs; None leaves the methods as they are.
    """

    kind: Kind = "model"
    setting: Setting
    methods: tuple[str, ...]
    rounds: int = 10
    warmup: int = 3
    factor: float | None = None

    @property
    def id(self) -> str:
        """The name the cell is saved under: everything but its methods and rounds."""
        s = self.setting
        more = (f"/{s.head}" if s.head else "") + (f"/F{self.factor:g}" if self.factor else "")
        return f"{self.kind}/{s.model}/{s.img_size}px/b{s.batch}/{s.dtype}/{s.engine}{more}"

    def also(self, methods: Sequence[str]) -> Cell:
        """The same cell with more methods."""
        return replace(self, methods=tuple(dict.fromkeys((*methods, *self.methods))))

    def described(self) -> dict[str, Any]:
        """A JSON-ready dict of what was asked for."""
        return asdict(self) | {"methods": list(self.methods)}


def grid(
    models: Sequence[str],
    img_sizes: Sequence[int],
    batches: Sequence[int],
    dtypes: Sequence[str],
    engines: Sequence[str],
    methods: Sequence[str],
    head: Literal["", "depth"] = "",
    **options: Any,
) -> list[Cell]:
    """Every combination, models outermost and engines innermost.

    Args:
        models, dtypes: timm's and torch's names, or the short ones in ``MODELS`` and ``DTYPES``.
        img_sizes, batches: numbers. engines: out of ``ENGINES``. head: see ``Setting``.
        methods: specs; those that sweep are spelled out.
        options: kind, rounds, warmup and factor, see ``Cell``.

    Raises:
        TokensieveError: an unknown dtype, engine or method.
    """
    specs = tuple(dict.fromkeys(spell(variant) for spec in methods for variant in sweep(spec)))
    cells = []
    for model, size, batch, dtype, engine in itertools.product(models, img_sizes, batches, dtypes, engines):
        dtype = DTYPES.get(dtype, dtype)
        if dtype not in DTYPES.values():
            raise TokensieveError(f"unknown dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
        if engine not in ENGINES:
            raise TokensieveError(f"unknown engine {engine!r}: expected one of {', '.join(ENGINES)}")
        model = MODELS.get(model, model)
        setting = Setting(model=model, img_size=size, batch=batch, dtype=dtype, engine=engine, head=head)
        cells.append(Cell(setting=setting, methods=specs, **options))
    return cells


def with_rounds(cells: Sequence[Cell], rounds: int | None) -> list[Cell]:
    """``cells`` with another number of rounds; None keeps theirs."""
    if rounds is not None and rounds < 1:
        raise TokensieveError(f"--rounds must be 1 or more, got {rounds}")
    return [cell if rounds is None else replace(cell, rounds=rounds) for cell in cells]
