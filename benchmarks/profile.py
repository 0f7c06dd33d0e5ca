"""Where the time of missed goals goes: torch.profiler over the dense model, the oracle and the reduced one.

python -m benchmarks profile benchmarks/results/FILE.json

Every model behind a missed goal is run again and its operators are summed by what they are for; the table joins the
results file and its report.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as profiler

from benchmarks.cells import Cell, Setting
from benchmarks.goals import Goal, judge
from benchmarks.session import report
from benchmarks.store import Store, read_store
from benchmarks.subject import prepare
from tokensieve.cli.output import note
from tokensieve.engine import block
from tokensieve.engine.apply import applied
from tokensieve.errors import TokensieveWarning
from tokensieve.measure.oracle import oracle
from tokensieve.tokens import algebra
from tokensieve.tokens.state import Tokens

RANGE = "what for: "  # prefix of the ranges that mark what operators are for
GROUPS = ("attention", "MLP", "norms and the rest", "scores and matching", "sort", "gather and merge", "Python")
SORTS = ("sort", "argsort", "topk", "msort")
KERNELS = ("move_tokens", "put_back")  # of ops/cpu that move tokens
GATHERS = ("gather", "index_select", "index", "take_along_dim", "scatter", "scatter_add", "cat", *KERNELS)
MODULES = {"attn": "attention", "mlp": "MLP"}


def options(parser: argparse.ArgumentParser) -> None:
    """Which file, and how to run its models."""
    parser.add_argument("file", type=Path, metavar="FILE.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", metavar="FOLDER", help="photographs, one sub-folder a class; default random numbers")
    parser.add_argument("--repeats", type=int, default=5, help="calls of each model of which the shortest counts")


def run(given: argparse.Namespace) -> None:
    """Profile what was missed and rewrite the report."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # no chatter of the profiler's own
    store = read_store(given.file)
    named = missed(judge(store.cells, on_cpu=store.on_cpu), store)
    how = (given.device, given.data, given.repeats)
    store.profiles = [profiled(store, cell, variant, *how) for cell, variant in named]
    store.write()
    report(store)


def missed(goals: Sequence[Goal], store: Store) -> list[tuple[str, str]]:
    """(cell, variant) behind every missed goal, each setting and variant once.

    The whole model is profiled whatever the goal is about. Compiled models have no operators to name and are left out.
    """
    named: dict[tuple[Any, ...], tuple[str, str]] = {}
    for goal in goals:
        for case in goal.missed:
            setting = store.cells[case.cell]["setting"]
            if setting["engine"] == "eager":
                named.setdefault((*setting.values(), case.variant), (case.cell, case.variant))
    return list(named.values())


def profiled(store: Store, cell: str, variant: str, device: str, data: str | None, repeats: int) -> dict[str, Any]:
    """The profile of one variant in one cell: milliseconds per call by group, for dense model, oracle and variant."""
    note(f"profiling {cell} {variant}")
    setting = Setting(**store.cells[cell]["setting"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*selector has not been trained", TokensieveWarning)
        subject = prepare(Cell(setting=setting, methods=(variant,)), device, data)
        reduced = subject.variants[0]
        free = oracle(subject.dense, reduced.report)
        models = {"dense": subject.dense, "oracle": free, "reduced": reduced.model}
        parts = {name: spent(model, subject.x, repeats) for name, model in models.items()}
    return {"cell": cell, "variant": variant, **parts}


def spent(model: nn.Module, x: Tensor, repeats: int) -> dict[str, float]:
    """Milliseconds of one call of ``model`` on ``x`` by ``GROUPS``.

    On a CUDA device these are the kernels' own times, and "Python" is left at 0: what the device waits for is not in
    any kernel. On a CPU "Python" is the time inside the model but outside every operator.
    """
    on_cuda = x.is_cuda
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with torch.inference_mode(), marked(model):
        model(x)
        with profiler(activities=activities) as record:
            for _ in range(repeats):
                with record_function(f"{RANGE}rest"):
                    model(x)
                    if on_cuda:
                        torch.cuda.synchronize(x.device)
    calls: dict[int, dict[str, float]] = {}
    for event in record.events():
        ranges = [parent for parent in _line(event) if parent.name.startswith(RANGE)]
        if not ranges:
            continue
        sums = calls.setdefault(ranges[-1].id, dict.fromkeys(GROUPS, 0.0))
        owner = ranges[0].name.removeprefix(RANGE)
        own_time = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        sums[group_of(event.name, owner, _inside_sort(event))] += own_time / 1e3
    # The shortest call: in the others something else ran as well.
    return min(calls.values(), key=lambda sums: sum(sums.values()))


def group_of(operator: str, owner: str, inside_sort: bool = False) -> str:
    """The group of an operator, or of a range's own time, whose innermost range is ``owner``.

    Args:
        operator: its name, "aten::mm".
        owner: "attention", "MLP", "assign" (a method decides), "apply" (its decision is carried out) or "rest".
        inside_sort: whether a sorting operator called it.
    """
    if operator.startswith(RANGE):
        return "Python"
    if owner in ("attention", "MLP"):
        return owner
    if owner == "rest":
        return "norms and the rest"
    name = operator.rpartition("::")[2]
    if inside_sort or name in SORTS:
        return "sort"
    return "gather and merge" if owner == "apply" or name in GATHERS else "scores and matching"


def _line(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """An event and what it ran inside of, from the inside out."""
    parent: Any = event
    while parent is not None:
        yield parent
        parent = parent.cpu_parent


def _inside_sort(event: FunctionEvent) -> bool:
    callers = list(_line(event))[1:]
    return any(caller.name.rpartition("::")[2] in SORTS for caller in callers if not caller.name.startswith(RANGE))


@contextmanager
def marked(model: nn.Module) -> Iterator[None]:
    """Mark, while the block runs, what operators are for: attention, MLP, a decision, carrying it out."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            owner = MODULES.get(name.rpartition(".")[2])
            if owner is not None:
                stack.enter_context(mock.patch.object(module, "forward", _ranged(owner, module.forward)))
        for kind in {type(method) for method in applied(model)}:
            stack.enter_context(mock.patch.object(kind, "assign", _ranged("assign", kind.assign)))
        for place, name in ((algebra, "apply"), (block, "returning"), (Tokens, "restore")):
            stack.enter_context(mock.patch.object(place, name, _ranged("apply", getattr(place, name))))
        yield


def _ranged(owner: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        with record_function(f"{RANGE}{owner}"):
            return function(*arguments, **options)

    return run
