"""What every kernel is held to, on whatever device it is for: one table of operators, inputs and wanted answers.

A backend is the CPU with its compiled kernels, or CUDA with Triton: on a GPU, or in Triton's interpreter, which runs on
tensors of the CPU and which TRITON_INTERPRET=1 switches on before Python starts.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tokensieve.attention.kernel import key_bias
from tokensieve.attention.selector import Selector, selected_columns
from tokensieve.methods._agglomerative import LINKAGES, agglomerate, distances_between
from tokensieve.methods._attentive import match_pairs, pair_and_cluster
from tokensieve.methods._fusing import split_fused
from tokensieve.methods.language._greedy import covering, determinantal
from tokensieve.ops.attention import class_attention, column_sums
from tokensieve.ops.cpu.build import library_path
from tokensieve.ops.density import density_peaks
from tokensieve.ops.matching import bipartite_matching, match_halves
from tokensieve.ops.moving import put_back
from tokensieve.ops.norm import Norm
from tokensieve.ops.rows import head_mean, split_top, unit_rows
from tokensieve.ops.windows import Windows, window_products, window_sums
from tokensieve.tokens.decision import Assignment

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_GPU = torch.cuda.is_available() and not INTERPRETED
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
dtypes = st.sampled_from(DTYPES)
seeds = st.integers(0, 2**31 - 1)
# The fixture that lets kernels take these tensors is the same for every example.
some = settings(
    max_examples=6 if INTERPRETED or ON_GPU else 25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
Draw = Callable[[Any], Any]


@dataclass(frozen=True)
class Backend:
    """A device that kernels are for, and where the tensors lie that they take."""

    name: str
    device: str

    def run(self, operator: Any, *arguments: Any) -> Any:
        """What the kernel answers; it must serve these arguments."""
        answer = getattr(operator, self.name)(*arguments)
        assert answer is not NotImplemented, operator.__name__
        return answer


BACKENDS = [] if INTERPRETED or not library_path().exists() else [Backend("cpu", "cpu")]
if INTERPRETED or ON_GPU:
    BACKENDS.append(Backend("cuda", "cpu" if INTERPRETED else "cuda"))
each_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def integers(seed: int, low: int, high: int, *shape: int, device: str = "cpu") -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed)).to(device)


def attention(
    seed: int, batch: int, heads: int, length: int, dim: int, dtype: torch.dtype, biased: bool, device: str = "cpu"
) -> tuple[Tensor, Tensor, float, Tensor | None]:
    """Queries, keys, scale and bias laid out as timm's attention has them: views of one projection."""
    qkv = random(seed, batch, length, 3, heads, dim, dtype=dtype, device=device).permute(2, 0, 3, 1, 4)
    bias = random(seed + 1, batch, 1, 1, length, device=device) if biased else None
    return qkv[0], qkv[1], dim**-0.5, bias


def selector_of(seed: int, heads: int, device: str = "cpu", std: float = 0.3) -> Selector:
    """A selector with weights of its own, which leaves the scale out for an even seed."""
    torch.manual_seed(seed)
    selector = Selector(heads, scaled=bool(seed % 2))
    for parameter in selector.parameters():
        nn.init.normal_(parameter, std=std)
    return selector.requires_grad_(False).to(device)


def selecting(selector: Selector, given: tuple[Tensor, Tensor, float, Tensor | None]) -> tuple[Any, ...]:
    """The first arguments of ``selected_columns``."""
    queries, keys, scale, bias = given
    return queries, keys, scale if selector.scaled else None, bias, selector.weights, selector.axis


def moving(
    x: Tensor, group: Tensor, rep: Tensor, size: Tensor | None, assignment: Assignment, norm: Norm | None = None
) -> tuple[Any, ...]:
    """The arguments of the operator ``move_tokens``."""
    to = assignment
    parts = (to.keep, to.moved, to.onto, to.dropped, to.weight, to.reduce == "mean", to.alive, to.padding_onto)
    return x, group, rep, size, *parts, norm


def exactly(value: Any) -> Any:
    """The same numbers in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()
    if isinstance(value, Norm):
        return Norm(*map(exactly, value))
    return tuple(map(exactly, value)) if isinstance(value, tuple) else value


def flat(answer: Any) -> tuple[Any, ...]:
    return answer if isinstance(answer, tuple) else (answer,)


def agree(answers: Any, wanted: Any) -> None:
    """To the bit, in the same dtypes."""
    for answer, want in zip(flat(answers), flat(wanted), strict=True):
        assert (answer is None) == (want is None)
        assert answer is None or (answer.dtype == want.dtype and torch.equal(answer, want))


@dataclass(frozen=True)
class Case:
    """An operator and random arguments for it.

    Attributes:
        operator: as above.
        arguments: from a hypothesis draw and a device.
        backends: that have a kernel of it.
        exact: whether the answer wanted is the plain body's in float64.
        close: the tolerances; None where it is the same to the bit.
    """

    operator: Any
    arguments: Callable[[Draw, str], tuple[Any, ...]]
    backends: tuple[str, ...] = ("cpu", "cuda")
    exact: bool = False
    close: dict[str, float] | None = None


def _attention(draw: Draw, device: str, longest: int, dims: list[int]) -> tuple[Any, ...]:
    sizes = draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, longest), st.sampled_from(dims)))
    return attention(draw(seeds), *sizes, draw(dtypes), draw(st.booleans()), device)


def _class_attention(draw: Draw, device: str) -> tuple[Any, ...]:
    return _attention(draw, device, 200, [1, 8, 24, 64])


def _column_sums(draw: Draw, device: str) -> tuple[Any, ...]:
    given = _attention(draw, device, 150, [16, 24])
    batch, _, length, _ = given[1].shape
    voters = random(draw(seeds), batch, length, device=device) > -0.5 if draw(st.booleans()) else None
    return *given, voters, 8, draw(st.integers(1, 9))


def _selected_columns(draw: Draw, device: str) -> tuple[Any, ...]:
    seed, heads = draw(seeds), draw(st.sampled_from([1, 2, 3, 6, 12, 16]))
    # Triton's products in half precision are rounded further; they have a test of their own.
    dtype = torch.float32 if INTERPRETED or device == "cuda" else draw(dtypes)
    sizes = draw(st.tuples(st.integers(1, 2), st.just(heads), st.integers(1, 40), st.just(8)))
    given = attention(seed, *sizes, dtype, draw(st.booleans()), device)
    sum_of = draw(st.sampled_from(["probabilities", "log_probabilities"]))
    return *selecting(selector_of(seed, heads, device).to(dtype), given), 8, draw(st.integers(1, 5)), sum_of


def _scores(draw: Draw, device: str, least: int) -> tuple[Any, ...]:
    """Many equal values, both zeros among them."""
    batch, length = draw(st.integers(1, 4)), draw(st.integers(1, 140))
    score = (random(draw(seeds), batch, length) * 2).round().to(device, draw(dtypes))
    return score, draw(st.integers(least, length))


def _heads(draw: Draw, device: str) -> tuple[Any, ...]:
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 30), st.integers(1, 4), st.integers(1, 40)))
    return (random(draw(seeds), *shape, dtype=draw(dtypes), device=device).transpose(1, 2),)


def _rows(draw: Draw, device: str) -> tuple[Any, ...]:
    return (_heads(draw, device)[0][:, 0],)


def _bipartite_matching(draw: Draw, device: str) -> tuple[Any, ...]:
    batch, length, first = draw(st.integers(1, 3)), draw(st.integers(2, 150)), draw(st.integers(0, 1))
    metric = random(draw(seeds), batch, length, 12, dtype=draw(dtypes), device=device)
    return metric, draw(st.integers(0, (length + 1 - first) // 2)), first


def _match_halves(draw: Draw, device: str) -> tuple[Any, ...]:
    batch, heads, length, first = draw(
        st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 60), st.integers(0, 1))
    )
    keys = random(draw(seeds), batch, length, heads, 16, dtype=draw(dtypes), device=device).transpose(1, 2)
    side = length // 2 if first else (length + 1) // 2
    return keys, draw(st.integers(0, min(side, length - side))), first


def _match_pairs(draw: Draw, device: str) -> tuple[Any, ...]:
    batch, length, dtype = draw(st.integers(1, 3)), draw(st.integers(2, 90)), draw(dtypes)
    features = random(draw(seeds), batch, length, 6, dtype=dtype, device=device)
    if draw(st.booleans()):  # cosines of exactly 0, 1 and -1
        ones = torch.eye(6, dtype=dtype, device=device)
        features = ones[(features[..., 0] * 10).long() % 6] * features[..., :1].sign()
    score = (random(draw(seeds), batch, length, device=device) * 2).round()
    return features, score, draw(st.integers(0, length // 2)), draw(st.integers(1, 6))


def _pair_and_cluster(draw: Draw, device: str) -> tuple[Any, ...]:
    batch, length, prefix = draw(st.integers(1, 3)), draw(st.integers(4, 60)), draw(st.integers(0, 2))
    x = random(draw(seeds), batch, prefix + length, 24, dtype=draw(dtypes), device=device)
    score = random(draw(seeds), batch, length, device=device).mul(3).round()
    attentive = draw(st.integers(1, length - 1))
    pairs, clusters = draw(st.integers(0, attentive // 2)), draw(st.integers(1, length - attentive))
    return x, prefix, score, attentive, pairs, clusters, draw(st.integers(1, 4))


def _density_peaks(draw: Draw, device: str) -> tuple[Any, ...]:
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 90))
    features = random(draw(seeds), batch, length, 7, dtype=draw(dtypes), device=device)
    neighbours = draw(st.sampled_from([None, *range(1, min(length, 6))]))
    return features, draw(st.integers(1, length)), neighbours


def _agglomerate(draw: Draw, device: str) -> tuple[Any, ...]:
    batch, length, linkage = draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.sampled_from(LINKAGES))
    features = random(draw(seeds), batch, length, 3, device=device)
    distances = (features.unsqueeze(1) - features.unsqueeze(2)).square().sum(dim=3)
    if draw(st.booleans()) and linkage != "average":  # whole numbers: many are equal
        distances = distances.round()
    return distances, draw(st.integers(1, length)), linkage


def _distances_between(draw: Draw, device: str) -> tuple[Any, ...]:
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 50))
    return (random(draw(seeds), batch, length, length, device=device),)


def _windows(draw: Draw) -> Windows:
    rows, columns, height, width = draw(st.tuples(*[st.integers(1, 9)] * 4))
    return Windows(rows, columns, min(height, rows), min(width, columns), draw(st.integers(1, 3)))


def _window_products(draw: Draw, device: str) -> tuple[Any, ...]:
    windows, batch, dim = _windows(draw), draw(st.integers(1, 3)), draw(st.integers(1, 33))
    x = random(draw(seeds), batch, windows.rows * windows.columns, dim, device=device)
    return x, random(draw(seeds), batch, windows.height * windows.width, dim, device=device), windows


def _window_sums(draw: Draw, device: str) -> tuple[Any, ...]:
    windows, batch, dim = _windows(draw), draw(st.integers(1, 3)), draw(st.integers(1, 33))
    inside = windows.near(torch.device(device))[0]
    weights = random(draw(seeds), batch, *inside.shape[1:], device=device) * inside
    return weights, random(draw(seeds), batch, windows.rows * windows.columns, dim, device=device), windows


def _key_bias(draw: Draw, device: str) -> tuple[Any, ...]:
    size = random(draw(seeds), draw(st.integers(1, 3)), draw(st.integers(1, 40)), device=device)
    return draw(st.integers(0, 3)), size.mul(3).round().clamp(min=0), None, None


def _put_back(draw: Draw, device: str) -> tuple[Any, ...]:
    batch, present, prefix = draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(st.integers(0, 2))
    dtype, away = draw(dtypes), draw(st.booleans())
    x = random(draw(seeds), batch, prefix + present, 6, dtype=dtype, device=device)
    index = integers(draw(seeds), -1 if away else 0, present, batch, 25, device=device)
    whole = random(draw(seeds), batch, prefix + 25, 6, dtype=dtype, device=device)
    return x, index, whole[:, prefix:] if away else None, prefix, draw(st.booleans())


def _determinantal(draw: Draw, device: str) -> tuple[Any, ...]:
    """Directions and weights of a few kinds: gains are equal, or far from equal."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    ones = torch.eye(6, device=device)
    mixed = 0.6 * ones + 0.8 * ones.roll(1, dims=0)
    kinds = torch.cat([ones, -ones, mixed, torch.zeros(1, 6, device=device)])
    weight = 1.0 + integers(draw(seeds), 0, 3, batch, length, device=device)
    return (
        kinds[integers(draw(seeds), 0, len(kinds), batch, length, device=device)],
        weight,
        draw(st.integers(1, length)),
    )


def _covering(draw: Draw, device: str) -> tuple[Any, ...]:
    batch, length, rows = draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 50))
    value = random(draw(seeds), batch, rows, length, device=device)
    return value.mul(2).round(), draw(st.integers(1, length))


CPU = ("cpu",)
CASES = [
    Case(class_attention, _class_attention, exact=True, close={"rtol": 1e-4, "atol": 1e-6}),
    Case(column_sums, _column_sums, exact=True, close={"rtol": 1e-4, "atol": 1e-5}),
    Case(selected_columns, _selected_columns, exact=True, close={"rtol": 1e-4, "atol": 1e-4}),
    Case(split_top, lambda draw, device: _scores(draw, device, 0)),
    Case(split_fused, lambda draw, device: _scores(draw, device, 1), CPU),
    Case(head_mean, _heads, close={"rtol": 1e-5, "atol": 1e-6}),
    Case(unit_rows, _rows, close={"rtol": 1e-5, "atol": 1e-6}),
    Case(bipartite_matching, _bipartite_matching, exact=True),
    # The parts of these plain bodies are kernels, each tested on its own: what is tested is how they are joined.
    Case(match_halves, _match_halves, CPU),
    Case(pair_and_cluster, _pair_and_cluster, CPU),
    Case(match_pairs, _match_pairs, CPU, exact=True),
    Case(density_peaks, _density_peaks, exact=True),
    Case(agglomerate, _agglomerate, CPU),
    Case(distances_between, _distances_between, CPU),
    Case(determinantal, _determinantal, CPU),
    Case(covering, _covering, CPU),
    Case(window_products, _window_products, CPU, exact=True, close={"rtol": 1e-5, "atol": 1e-5}),
    Case(window_sums, _window_sums, CPU, exact=True, close={"rtol": 1e-5, "atol": 1e-4}),
    Case(key_bias, _key_bias, CPU, close={"rtol": 1e-6, "atol": 0}),
    Case(put_back, _put_back),
]
