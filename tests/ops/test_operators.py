"""What an operator does: which kernel it asks, when the plain body answers, and what it says without kernels."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tokensieve.ops
from tests.helpers.kernels import random, seeds, some
from tokensieve.attention.kernel import key_bias
from tokensieve.errors import TokensieveWarning
from tokensieve.methods._local_density import local_distances
from tokensieve.methods._superpixels import superpixels
from tokensieve.ops import cpu
from tokensieve.ops.bands import Bands
from tokensieve.ops.cpu.build import library_path
from tokensieve.ops.rows import split_top
from tokensieve.ops.windows import Windows, window_products, window_sums

BUILT = library_path().exists()
needs_kernels = pytest.mark.skipif(
    not BUILT and shutil.which("g++") is None, reason="no C++ compiler here: the kernels cannot be built"
)
sides = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3))


def test_operators_import_nothing_but_operators_utilities_and_errors() -> None:
    root = Path(tokensieve.ops.__file__).parent
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file.name} imports relatively"
                names = [node.module or ""]
            rooms = {name.split(".")[1] for name in names if name.startswith("tokensieve.")}
            assert rooms <= {"ops", "utils", "errors"} and "tokensieve" not in names, (file.name, names)


@needs_kernels
def test_the_kernels_are_built_where_there_is_a_compiler() -> None:
    assert BUILT, "run `python -m tokensieve.ops.cpu` (make setup does)"
    assert cpu.available()


@needs_kernels
@some
@given(seeds, st.integers(1, 3), sides, st.booleans())
def test_superpixels_by_windows_and_by_bands(
    seed: int, batch: int, grid: tuple[int, int, int, int, int], everywhere: bool
) -> None:
    """Bands are what a gradient takes; a few rounds carry rounding further."""
    rows, columns, height, width, reach = grid
    bands = Bands(rows, columns, min(height, rows), min(width, columns), reach)
    x = random(seed, batch, rows * columns, 12)
    cells, blend = superpixels(x, bands, 2, None, 5, everywhere=everywhere)
    others, back = superpixels(x.clone().requires_grad_(), bands, 2, None, 5, everywhere=everywhere)
    assert isinstance(cells.near, Windows) and isinstance(others.near, Bands)
    torch.testing.assert_close(cells.mean(x), others.mean(x), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(cells.totals(), others.totals(), rtol=1e-3, atol=1e-3)
    new = random(seed + 1, batch, bands.height * bands.width, 3)
    torch.testing.assert_close(blend(new), back(new), rtol=1e-3, atol=1e-3)


@needs_kernels
@some
@given(seeds, st.integers(1, 2), st.integers(1, 9), st.integers(1, 9), st.integers(1, 60))
def test_local_distances_by_windows_and_by_bands(seed: int, batch: int, rows: int, columns: int, count: int) -> None:
    """Float64 takes the bands."""
    x = random(seed, batch, rows * columns, 12)
    (found, number, there), (wanted, numbers, same) = (
        local_distances(values, rows, columns, count) for values in (x, x.double())
    )
    assert torch.equal(number, numbers) and torch.equal(there, same)
    torch.testing.assert_close(found[:, there], wanted[:, there].float(), rtol=1e-4, atol=1e-3)


@needs_kernels
def test_windows_of_other_grids_are_refused() -> None:
    x, windows = torch.randn(1, 12, 4), Windows(3, 4, 2, 2, 1)
    with pytest.raises(RuntimeError, match="12 patches"):
        window_products.cpu(x[:, 1:], torch.randn(1, 4, 4), windows)
    with pytest.raises(RuntimeError, match="4 cells"):
        window_products.cpu(x, torch.randn(1, 5, 4), windows)
    with pytest.raises(RuntimeError, match="12 patches"):
        window_sums.cpu(torch.rand(1, 12, 9), x[:, 1:], windows)
    with pytest.raises(RuntimeError, match="9 weights"):
        window_sums.cpu(torch.rand(1, 12, 8), x, windows)


@needs_kernels
def test_kernels_stand_aside_for_gradients_float64_and_transforms() -> None:
    score = torch.randn(2, 8)
    assert split_top.cpu(score, 3) is not NotImplemented
    assert split_top.cpu(score.double(), 3) is NotImplemented
    assert split_top.cpu(score.clone().requires_grad_(), 3) is NotImplemented
    assert split_top.cpu(torch.randn(8, 2).T, 3) is NotImplemented
    assert key_bias.cpu(1, None, None, None) is NotImplemented
    assert key_bias.cpu(1, score, score > 0, None) is NotImplemented
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a kernel under vmap runs image by image, and torch says so
        answer = torch.func.vmap(lambda row: split_top(row.unsqueeze(0), 3)[0].squeeze(0))(score)
    assert torch.equal(answer, split_top(score, 3)[0])
    with torch.no_grad():
        assert split_top.cpu(score.clone().requires_grad_(), 3) is not NotImplemented


@needs_kernels
def test_without_the_library_the_plain_operators_answer_and_say_so_once() -> None:
    code = (
        "import warnings, torch\n"
        "from pathlib import Path\n"
        "from tokensieve.ops import cpu\n"
        "cpu.library_path = lambda: Path('/nowhere.so')\n"
        "from tokensieve.ops.rows import split_top\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    answers = [split_top(torch.tensor([[1.0, 3.0, 2.0]]), 1)[0].tolist() for _ in range(3)]\n"
        "assert answers == [[[1]]] * 3, answers\n"
        "assert len(caught) == 1, caught\n"
        "print(caught[0].message)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "CPU kernels are not built" in done.stdout and "python -m tokensieve.ops.cpu" in done.stdout


@needs_kernels
def test_operators_use_the_kernels_and_not_while_exporting() -> None:
    calls = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch(), warnings.catch_warnings():
        warnings.simplefilter("error", TokensieveWarning)
        split_top(torch.randn(1, 5), 2)
    assert any("tokensieve.split_top" in call for call in calls)
    program = torch.export.export(Split(), (torch.randn(1, 5),))
    assert "tokensieve" not in str(program.graph)


class Split(torch.nn.Module):
    def forward(self, score: Tensor) -> tuple[Tensor, Tensor]:
        return split_top(score, 2)
