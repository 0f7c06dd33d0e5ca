"""The Triton kernels without a GPU: they are right in the interpreter, they compile, and they stand aside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tests.helpers.kernels import moving, selecting
from tests.helpers.launches import anywhere, compiled, recorded
from tokensieve.attention.selector import Selector, selected_columns
from tokensieve.errors import TokensieveWarning
from tokensieve.methods._attentive import match_pairs
from tokensieve.ops import cuda
from tokensieve.ops.attention import class_attention, column_sums
from tokensieve.ops.density import density_peaks
from tokensieve.ops.matching import bipartite_matching
from tokensieve.ops.moving import move_tokens, put_back
from tokensieve.ops.norm import Norm
from tokensieve.ops.rows import head_mean, split_top, unit_rows
from tokensieve.tokens.decision import Assignment

pytest.importorskip("triton", reason="Triton is not installed: there are no CUDA kernels here")

HALF, SINGLE, INDEX = torch.bfloat16, torch.float32, torch.int64
Case = tuple[Callable[..., Any], tuple[Any, ...], int]


@pytest.mark.slow
def test_every_kernel_is_right_in_tritons_interpreter() -> None:
    probe = (
        "import torch, triton\n"
        "from tokensieve.ops.cuda.select import split_top\n"
        "assert split_top(torch.tensor([[1.0, 3.0]]), 1)[0].tolist() == [[1]]"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {"env": environment, "capture_output": True, "text": True}
    if "only 0-dimensional arrays" in subprocess.run([sys.executable, "-c", probe], **options).stderr:
        pytest.skip("this Triton's interpreter does not work with NumPy 2.4 or newer")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        str(Path(__file__).parent / "test_triton_kernels.py"),
        str(Path(__file__).parents[1] / "test_kernels.py"),
    ]
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 25


def empty(*shape: int, dtype: torch.dtype = SINGLE) -> Tensor:
    """A tensor without data: whoever reads a value of it fails."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def attention(
    batch: int, heads: int, length: int, dtype: torch.dtype, biased: bool
) -> tuple[Tensor, Tensor, float, Tensor | None]:
    qkv = empty(batch, length, 3, heads, 64, dtype=dtype).permute(2, 0, 3, 1, 4)
    return qkv[0], qkv[1], 0.125, empty(batch, 1, 1, length) if biased else None


def movement(dtype: torch.dtype, merging: int, sized: bool, norm: Norm | None = None) -> tuple[Any, ...]:
    index = {
        name: empty(8, count, dtype=INDEX) for name, count in (("keep", 140), ("moved", merging), ("onto", merging))
    }
    weight = empty(8, 196) if sized else None
    assignment = Assignment(**index, dropped=empty(8, 56 - merging, dtype=INDEX), weight=weight)
    positions = empty(8, 196, dtype=INDEX)
    size = empty(8, 196) if sized else None
    return moving(empty(8, 197, 384, dtype=dtype), positions, positions, size, assignment, norm)


def cases(dtype: torch.dtype) -> Iterator[tuple[str, Case]]:
    """Every operator on the shapes of DeiT-S, and on longer sequences where that takes another path; its launches."""
    selector = Selector(6).requires_grad_(False).to(device="meta", dtype=dtype)
    yield "class_attention", (class_attention, attention(8, 6, 197, dtype, True), 2)
    yield "class_attention-1024px", (class_attention, attention(1, 6, 4097, dtype, False), 2)
    voters = empty(8, 197, dtype=torch.bool)
    yield "column_sums", (column_sums, (*attention(8, 6, 197, dtype, True), voters, 64, 1), 2)
    yield "column_sums-1024px", (column_sums, (*attention(1, 6, 4097, dtype, False), None, 64, 8), 2)
    for name, sum_of in (("", "probabilities"), ("-logarithm", "log_probabilities")):
        given = (*selecting(selector, attention(8, 6, 197, dtype, False)), 16, 8, sum_of)
        yield f"selected_columns{name}", (selected_columns, given, 2)
    wide = Selector(16).requires_grad_(False).to(device="meta", dtype=dtype)
    yield (
        "selected_columns-1024px",
        (
            selected_columns,
            (*selecting(wide, attention(1, 16, 4097, dtype, True)), 16, 8, "probabilities"),
            2,
        ),
    )
    yield "split_top", (split_top, (empty(8, 196, dtype=dtype), 140), 1)
    yield "split_top-1024px", (split_top, (empty(1, 4096, dtype=dtype), 140), 1)
    yield "head_mean", (head_mean, (empty(8, 197, 6, 64, dtype=dtype).transpose(1, 2),), 1)
    yield "unit_rows", (unit_rows, (empty(8, 142, 384, dtype=dtype),), 1)
    yield "bipartite_matching", (bipartite_matching, (empty(8, 196, 64, dtype=dtype), 16, 1), 2)
    yield "bipartite_matching-1024px", (bipartite_matching, (empty(1, 4096, 64, dtype=dtype), 600, 1), 2)
    yield "match_pairs", (match_pairs, (empty(8, 142, 384, dtype=dtype), empty(8, 142, dtype=dtype), 19, 4), 2)
    yield (
        "match_pairs-1024px",
        (match_pairs, (empty(1, 2950, 768, dtype=dtype), empty(1, 2950, dtype=dtype), 400, 4), 7),
    )
    yield "density_peaks", (density_peaks, (empty(8, 55, 384, dtype=dtype), 19), 1)
    yield "density_peaks-neighbours", (density_peaks, (empty(8, 55, 384, dtype=dtype), 19, 5), 1)
    yield "density_peaks-1024px", (density_peaks, (empty(1, 1147, 384, dtype=dtype), 400, 5), 4)
    yield "move_tokens-prune", (move_tokens, movement(dtype, 0, False), 2)
    yield "move_tokens", (move_tokens, movement(dtype, 56, False), 2)
    yield "move_tokens-weights", (move_tokens, movement(dtype, 30, True), 2)
    norm = Norm(empty(384, dtype=dtype), empty(384, dtype=dtype), 1e-6)
    yield "move_tokens-norm", (move_tokens, movement(dtype, 56, False, norm), 2)
    yield "move_tokens-prune-norm", (move_tokens, movement(dtype, 0, False, norm), 2)
    index = empty(8, 196, dtype=INDEX)
    yield (
        "put_back",
        (put_back, (empty(8, 141, 384, dtype=dtype), index, empty(8, 196, 384, dtype=dtype), 1, True), 1),
    )
    yield "put_back-alone", (put_back, (empty(8, 141, 384, dtype=dtype), index, None, 1, False), 1)


SOON = ("bipartite_matching", "class_attention", "column_sums", "match_pairs", "move_tokens", "put_back")
IN_HALF, IN_SINGLE = dict(cases(HALF)), dict(cases(SINGLE))
needs_no_interpreter = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing is compiled"
)


def test_every_operator_with_a_kernel_has_a_case() -> None:
    operators = {
        value.__name__
        for name, module in list(sys.modules.items())
        if name.startswith("tokensieve")
        for value in vars(module).values()
        if getattr(value, "cuda", None) is not None and hasattr(value, "on_cuda")
    }
    assert {operator.__name__ for operator, _, _ in IN_HALF.values()} == operators


@needs_no_interpreter
@pytest.mark.parametrize("case", IN_HALF)
def test_launches_follow_from_shapes_alone(case: str) -> None:
    """Tensors without data have nothing to wait for: no operator reads a value, so a CUDA graph can hold them all."""
    operator, arguments, launches = IN_HALF[case]
    found = recorded(operator.cuda, *arguments)
    assert len(found) == launches
    for _, grid, _, _ in found:
        assert all(0 < count < 2**16 for count in grid[1:]) and 0 < grid[0] < 2**31


@needs_no_interpreter
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in SOON else pytest.mark.slow) for case in IN_HALF]
)
def test_compiles_for_a_gpu_of_today(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiles(IN_HALF[case], 90, tmp_path, monkeypatch)


@pytest.mark.slow
@needs_no_interpreter
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype", [HALF, SINGLE], ids=str)
@pytest.mark.parametrize("case", IN_HALF)
def test_compiles_for_every_gpu_and_dtype(
    case: str, dtype: torch.dtype, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiles((IN_HALF if dtype == HALF else IN_SINGLE)[case], capability, tmp_path, monkeypatch)


def compiles(case: Case, capability: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To machine code, and within the shared memory that a program can have on any GPU of its kind."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    operator, arguments, _ = case
    for launch in recorded(operator.cuda, *arguments):
        kernel = compiled(launch, capability)
        assert kernel.asm["cubin"] and f"sm_{capability}" in kernel.asm["ptx"]
        assert kernel.metadata.shared <= 99 * 1024


def test_kernels_stand_aside_where_they_cannot_serve() -> None:
    score = torch.randn(2, 8)
    assert split_top.cuda(score, 3) is NotImplemented  # not on a GPU
    with anywhere():
        assert split_top.cuda(score.double(), 3) is NotImplemented
        assert split_top.cuda(torch.arange(8).expand(2, -1), 3) is NotImplemented
        assert split_top.cuda(score.clone().requires_grad_(), 3) is NotImplemented
        assert split_top.cuda(torch.randn(1, cuda.MOST_TOKENS + 1), 3) is NotImplemented
        assert unit_rows.cuda(torch.randn(1, 4, 6).transpose(1, 2)) is NotImplemented
        assert bipartite_matching.cuda(torch.randn(1, 1, 6), 0) is NotImplemented
        seen: list[bool] = []

        def look(x: Tensor) -> Tensor:
            seen.append(split_top.cuda(x.unsqueeze(0), 3) is NotImplemented)
            return x.sum()

        torch.func.vmap(look)(score)
        make_fx(look, tracing_mode="real")(score[0])
        make_fx(look, tracing_mode="fake")(score[0])
        assert seen == [True] * 3


def test_selectors_that_the_kernel_does_not_know_are_left_to_the_plain_body() -> None:
    given_to = attention(1, 3, 10, SINGLE, False)
    with anywhere(), torch.no_grad():
        known = selecting(Selector(3).to("meta"), given_to)
        assert recorded(selected_columns.cuda, *known, 8, 1, "probabilities")
        for selector in (Selector(3, kernel=3), Selector(3, normalize="heads"), Selector(3, expansion=30)):
            given = selecting(selector.to("meta"), given_to)
            assert selected_columns.cuda(*given, 8, 1, "probabilities") is NotImplemented


def test_attention_that_the_kernels_do_not_know_is_left_to_the_plain_body() -> None:
    queries, keys, scale, _ = attention(1, 4, 10, HALF, False)
    half_the_heads = (queries, keys[:, :2], scale, None)
    learned_scale = (queries, keys, empty(4, 1, 1), None)
    wide = (empty(1, 4, 10, 160), empty(1, 4, 10, 160), scale, None)
    with anywhere():
        for given_to in (half_the_heads, learned_scale, wide, (queries.float(), keys, scale, None)):
            assert class_attention.cuda(*given_to) is NotImplemented
            assert column_sums.cuda(*given_to, None, 8, 1) is NotImplemented


def test_assignments_that_do_not_name_every_token_are_left_to_the_plain_body() -> None:
    x, rep = torch.randn(1, 4, 3), torch.arange(4).unsqueeze(0)
    with anywhere():
        assert move_tokens.cuda(*moving(x, rep, rep, None, Assignment(keep=rep[:, :3]))) is NotImplemented
        alive = Assignment(keep=rep, alive=torch.ones(1, 4, dtype=torch.bool))
        assert move_tokens.cuda(*moving(x, rep, rep, None, alive)) is NotImplemented


def test_without_triton_the_plain_operators_answer_and_say_so_once() -> None:
    code = (
        "import sys, warnings, torch\n"
        "sys.modules['triton'] = None\n"
        "from tokensieve.ops import cuda\n"
        "from tokensieve.ops.rows import split_top\n"
        "split_top.on_cpu(lambda *arguments: NotImplemented)\n"
        "torch.cuda.get_device_capability = lambda: (9, 0)\n"
        "score = torch.tensor([[1.0, 3.0, 2.0]])\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    assert split_top(score, 1)[0].tolist() == [[1]] and not caught, 'nobody asked for CUDA yet'\n"
        "    cuda._on_gpu = lambda tensor: True\n"
        "    assert [split_top(score, 1)[0].tolist() for _ in range(3)] == [[[1]]] * 3\n"
        "assert len(caught) == 1, caught\n"
        "print(caught[0].category.__name__, caught[0].message)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("TokensieveWarning tokensieve's CUDA kernels need the package triton")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_whatever_keeps_triton_from_running_is_named_in_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_on_gpu", lambda tensor: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    cuda.available.cache_clear()
    try:
        with pytest.warns(TokensieveWarning, match=r"CUDA kernels cannot be compiled \(\w+: .+\): the plain torch"):
            assert split_top.cuda(torch.randn(1, 4), 1) is NotImplemented
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
        cuda.available.cache_clear()
        with pytest.warns(TokensieveWarning, match=r"need compute capability 8.0, this GPU has 7.5"):
            assert split_top.cuda(torch.randn(1, 4), 1) is NotImplemented
    finally:
        cuda.available.cache_clear()


def test_operators_ask_the_kernels_and_not_while_exporting() -> None:
    class Split(torch.nn.Module):
        def forward(self, score: Tensor) -> tuple[Tensor, Tensor]:
            return split_top(score, 2)

    with anywhere(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert recorded(lambda score: split_top(score, 2), empty(1, 5))
        program = torch.export.export(Split(), (torch.randn(1, 5),))
    assert "sort" in str(program.graph)
