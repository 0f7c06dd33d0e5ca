"""Break one thing at a time in a copy of the package: a small set of fast tests must notice each.

    python -m tests.mutations [NAME ...]

Not part of `make test`. A mutation replaces a text that must occur once in its file; when the text has gone, the script
says so and fails, and the mutation is to be written anew. Every mutation runs in a child of a process that has imported
torch and timm already, without the compiled kernels, so that the plain bodies of the operators run.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# The fast tests that must notice, as pytest takes them.
TESTS = (
    "tests/parity/test_parity.py::test_tome",
    "tests/parity/test_parity.py::test_topk",
    "tests/parity/test_parity.py::test_tosa_controls",
    "tests/parity/test_parity_dense.py::test_expedite",
    "tests/parity/test_parity_trained.py::test_psvit",
    "tests/parity/test_parity_trained.py::test_token_learner",
    "tests/parity/test_parity_untrained.py::test_ats",
    "tests/tokens/test_tokens.py::test_any_sequence_of_hard_decisions",
    "tests/tokens/test_tokens.py::test_unparking_after_other_changes_equals_the_fast_path_when_nothing_changed",
    "tests/contract/test_peers.py::test_rotary_positions_follow_their_tokens",
    "tests/contract/test_peers.py::test_merged_tokens_are_put_back_where_they_came_from",
    "tests/contract/test_masked.py::test_a_masked_training_forward_is_the_removal_forward[timm-vit-dinov2-reg4-topk]",
    "tests/contract/test_packing.py::test_back_and_forth_loses_nothing_but_padding",
)


@dataclass(frozen=True)
class Mutation:
    """``old`` becomes ``new`` in ``file``, below src/tokensieve."""

    name: str
    file: str
    old: str
    new: str

    def apply(self, package: Path) -> None:
        """Write it into a copy of the package.

        Raises:
            SystemExit: the text is not there exactly once.
        """
        path = package / self.file
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if text.count(self.old) != 1:
            raise SystemExit(f"{self.name}: {self.file} has {text.count(self.old)} times, not once: {self.old}")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


MUTATIONS = (
    Mutation(
        "a merge forgets the size of what joins",
        "ops/moving.py",
        "mixing = member * moved.unsqueeze(1)",
        "mixing = member",
    ),
    Mutation(
        "merged tokens keep the size of one",
        "ops/moving.py",
        "mixing / total.unsqueeze(2), size.to(sizes.dtype)",
        "mixing / total.unsqueeze(2), torch.ones_like(size).to(sizes.dtype)",
    ),
    Mutation(
        "what is gone stands in a token again",
        "ops/moving.py",
        "return torch.where(group < 0, group, index.gather(1, group.clamp(min=0)))",
        "return index.gather(1, group.clamp(min=0))",
    ),
    Mutation(
        "a kept token carries the position of another",
        "ops/moving.py",
        "regroup(group, index), rep.gather(1, keep), after",
        "regroup(group, index), rep[:, : keep.shape[1]], after",
    ),
    Mutation(
        "a restored image has the last value of other patches",
        "tokens/restore.py",
        "return put_back(tokens.x, back.group, back.canvas, tokens.prefix, with_prefix=True)",
        "return put_back(tokens.x, back.group, None if back.canvas is None else back.canvas.flip(1), tokens.prefix, "
        "with_prefix=True)",
    ),
    Mutation(
        "a skipped token returns with the value of another",
        "tokens/restore.py",
        "x=put_back(tokens.x, entry.index, before.patches, tokens.prefix, with_prefix=True)",
        "x=put_back(tokens.x, entry.index, before.patches.flip(1), tokens.prefix, with_prefix=True)",
    ),
    Mutation(
        "tokens that return are not put in order of their position",
        "tokens/restore.py",
        "order = position.sort(dim=1, stable=True).indices",
        "order = torch.arange(position.shape[1], device=position.device).expand_as(position)",
    ),
    Mutation(
        "rotary positions are counted anew",
        "families/timm_eva.py",
        "return rope[positions].unsqueeze(1)",
        "return rope[: positions.shape[1]].expand(positions.shape[0], -1, -1).unsqueeze(1)",
    ),
    Mutation(
        "padding is seen by the others",
        "attention/kernel.py",
        "bias = bias.masked_fill(~alive, -math.inf)",
        "bias = bias.masked_fill(~alive, 0.0)",
    ),
    Mutation(
        "a masked token is seen while training",
        "attention/kernel.py",
        "masked = at_least_float32(mask).add(MASK_EPSILON)",
        "masked = at_least_float32(mask).add(1)",
    ),
    Mutation(
        "the log-size bias is the size",
        "attention/kernel.py",
        "bias = at_least_float32(size).clamp(min=torch.finfo(torch.float32).tiny).log()",
        "bias = at_least_float32(size).clamp(min=torch.finfo(torch.float32).tiny) - 1",
    ),
    Mutation(
        "a soft assignment mixes other tokens",
        "tokens/soft.py",
        "return matrix.to(values.dtype) @ values",
        "return matrix.to(values.dtype) @ values.flip(1)",
    ),
    Mutation(
        "the way back of a soft assignment mixes other tokens",
        "tokens/soft.py",
        "bags = (self.index + offsets)",
        "bags = (self.index * 0 + offsets)",
    ),
    Mutation(
        "images in a packed row are unpacked in another order",
        "attention/packing.py",
        "return slots.index_copy(0, self.index, x.squeeze(0))",
        "return slots.index_copy(0, self.index.flip(0), x.squeeze(0))",
    ),
)


class Failures:
    """What pytest reports as failed, tests and files that do not load alike."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.passed = 0

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Two cases of each test are enough."""
        seen: Counter[str] = Counter()
        for item in items:
            seen[item.nodeid.partition("[")[0]] += 1
            item.case = seen[item.nodeid.partition("[")[0]]
        items[:] = [item for item in items if item.case <= 2]

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.names.append(report.nodeid)
        self.passed += report.when == "call" and report.passed

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.names.append(report.nodeid)


def tested(copy: Path, answer: Path) -> None:
    """Run the tests on the package in ``copy``, in this process, and write what failed."""
    import hypothesis
    import pytest

    # A failure is enough: the smallest example of it is not looked for.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutations", phases=phases, database=None)
    hypothesis.settings.load_profile("mutations")
    sys.path[:0] = [str(copy), str(ROOT)]
    os.environ["PYTHONPATH"] = str(copy)
    os.chdir(ROOT)
    failures = Failures()
    options = ["-q", "--tb=no", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:warnings"]
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        pytest.main([*options, *TESTS], plugins=[failures])
    import tokensieve

    assert Path(tokensieve.__file__).is_relative_to(copy), "another copy of the package was tested"
    answer.write_text(json.dumps([failures.passed, failures.names]), encoding="utf-8")


def failing(mutation: Mutation | None) -> tuple[int, list[str]]:
    """How many of the tests pass, and the names of those that fail, with ``mutation`` or without any."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy, answer = Path(folder) / "src", Path(folder) / "answer.json"
        shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        if mutation is not None:
            mutation.apply(copy / "tokensieve")
        child = os.fork()
        if child == 0:
            try:
                tested(copy, answer)
            except BaseException:
                traceback.print_exc()
            os._exit(0)
        os.waitpid(child, 0)
        if not answer.exists():
            raise SystemExit(f"{mutation.name if mutation else 'the package as it is'}: the tests did not run")
        passed, names = json.loads(answer.read_text(encoding="utf-8"))
        return passed, names


def main() -> int:
    import timm  # what every child needs and none should import again
    import torch

    assert "tokensieve" not in sys.modules and timm.__version__
    torch.set_num_threads(1)
    chosen = [mutation for mutation in MUTATIONS if not sys.argv[1:] or mutation.name in sys.argv[1:]]
    if len(chosen) < len(sys.argv[1:]):
        raise SystemExit("known are: " + "; ".join(mutation.name for mutation in MUTATIONS))
    passed, names = failing(None)
    print(f"the package as it is: {passed} pass, {len(names)} fail {' '.join(names)}", flush=True)
    missed = bool(names) or not passed
    for mutation in chosen:
        passed, names = failing(mutation)
        functions = sorted({name.rpartition("/")[2].partition("[")[0] for name in names})
        print(
            f"{mutation.name}: {len(names)} of {passed + len(names)} fail: {', '.join(functions) or 'NONE'}", flush=True
        )
        missed |= not names
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
