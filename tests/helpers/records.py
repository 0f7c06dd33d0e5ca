"""Made-up records, so that goals and reports are tested without measuring anything."""

from __future__ import annotations

from typing import Any


def setting(model: str = "deit_small_patch16_224", size: int = 224, batch: int = 16, **others: str) -> dict[str, Any]:
    """A setting's dict."""
    return {"model": model, "img_size": size, "batch": batch, "dtype": "bfloat16", "engine": "eager"} | others


def row(variant: str, S: float, F: float, O: float, **others: Any) -> dict[str, Any]:  # noqa: E741
    """A row of a "model" cell."""
    figures = {"S": S, "F": F, "O": O, "S_over_F": S / F, "S_over_O": S / O, "kind": "pruning", "ragged": False}
    spread = {f"{name}_{end}": value for name, value in figures.items() if name[0] == "S" for end in ("low", "high")}
    rest = {"attended": [197, 100], "tokens": [100, 50], "noisy": False, "peak_memory": 10, "discarded": 0}
    rates = {"images_per_second": 10.0, "low": 9.0, "high": 11.0, "site_share": 0.01, "sites": 3}
    return {"variant": variant, **figures, **spread, **rest, **rates, **others}


def dense(**others: Any) -> dict[str, Any]:
    """The dense model's row."""
    return row("dense", 1.0, 1.0, 1.0, kind="dense", **others)


def cell(kind: str, rows: list[dict[str, Any]], where: dict[str, Any]) -> dict[str, Any]:
    """A record as a store holds it."""
    told = {"weights": "random", "images": "random numbers", "refused": {}, "command": "python", "commit": None}
    return {"kind": kind, "setting": where, "methods": [r["variant"] for r in rows[1:]], "rows": rows, **told}
