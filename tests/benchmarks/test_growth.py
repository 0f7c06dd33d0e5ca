"""Exponents fitted to made-up figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import growth
from benchmarks.__main__ import main
from benchmarks.store import Store
from tests.helpers.records import cell, dense, row, setting
from tokensieve.errors import TokensieveError


def made_up(path: Path, sizes: dict[int, int]) -> Store:
    """A model whose time grows with N² and whose memory with N, and a variant at N^1.5 and √N."""
    store = Store(path, {}, "bfloat16", True)
    for size, tokens in sizes.items():
        rows = [
            dense(attended=[tokens], seconds=[1e-6 * tokens**2] * 3, peak_memory=1000 * tokens),
            row("tome:r=8", 2, 2, 2, attended=[tokens], seconds=[1e-6 * tokens**1.5] * 3, peak_memory=tokens**0.5),
        ]
        store.cells[f"model/{size}"] = cell("model", rows, setting(size=size, batch=1))
    return store


def test_exponents(tmp_path: Path) -> None:
    store = made_up(tmp_path / "file.json", {224: 197, 512: 1025, 1024: 4097})
    found = growth.growth(store)
    fits = {
        variant: [growth.exponents(points)[name] for name in ("ms", "MB")] for (_, variant), points in found.items()
    }
    assert fits["dense"] == pytest.approx([2, 1]) and fits["tome:r=8"] == pytest.approx([1.5, 0.5])
    store.write()
    assert main(["growth", str(store.path)]) == 0
    written = (tmp_path / "file-growth.md").read_text(encoding="utf-8")
    assert (tmp_path / "file-growth.png").stat().st_size
    assert "| `dense` | 39 | 1051 | 16785 |" in written and "| 2.00 | 1.00 |" in written


def test_one_size_has_no_exponent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = made_up(tmp_path / "file.json", {224: 197})
    with pytest.raises(TokensieveError, match="two image sizes"):
        growth.page(growth.growth(store))
    store.write()
    assert main(["growth", str(store.path)]) == 2
    assert "error: no model was measured at two image sizes" in capsys.readouterr().err
