"""Every kind of cell on a small model: what is recorded, not how long it took."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import tokensieve as ts
from benchmarks.__main__ import main
from benchmarks.cells import Cell, Engine, Kind, Setting
from benchmarks.model import kind_of, site_share
from benchmarks.operator import Through, entering
from benchmarks.profile import GROUPS, group_of, spent
from benchmarks.session import Session
from benchmarks.speed import MEASURES
from benchmarks.subject import prepare
from benchmarks.tome import Reference, first_members, import_tome
from tokensieve.errors import TokensieveError
from tokensieve.measure.progress import Silent
from tokensieve.measure.speed import Timing

METHODS = ("tome:r=4", "evit:keep=0.6:sites=[1,3]", "tosa:keep=0.5")


def small(kind: Kind, methods: tuple[str, ...] = METHODS, engine: Engine = "eager") -> Cell:
    setting = Setting(model="test_vit", img_size=160, batch=2, engine=engine)
    return Cell(kind=kind, setting=setting, methods=methods, rounds=2, warmup=1)


def measured(cell: Cell) -> dict[str, Any]:
    with pytest.warns(ts.TokensieveWarning, match="not been trained"):
        record: dict[str, Any] = MEASURES[cell.kind](cell, "cpu", None, Silent())
    assert json.loads(json.dumps(record)) == record
    return record


def test_a_model_cell_has_rounds_counts_and_kinds() -> None:
    record = measured(small("model"))
    dense, tome, evit, tosa = record["rows"]
    assert (record["weights"], record["images"], record["refused"]) == ("random", "random numbers", {})
    assert [row["kind"] for row in record["rows"]] == ["dense", "merging", "pruning", "skipping"]
    assert dense["O"] is None and dense["tokens"] == dense["attended"] == [101] * 6
    assert (tome["sites"], evit["sites"], tosa["sites"]) == (6, 2, 3)
    assert tome["tokens"] == [97, 93, 89, 85, 81, 77]
    for row in (tome, evit, tosa):
        assert row["F"] > 1
        assert len(row["seconds"]) == len(row["oracle_seconds"]) == 2
        assert row["S_over_F"] == pytest.approx(row["S"] / row["F"])
        assert row["S_low"] <= row["S"] <= row["S_high"]


def test_an_operator_cell_covers_the_first_sites() -> None:
    rows = {row["variant"]: row for row in measured(small("operator"))["rows"]}
    assert [(row["blocks"], row["sites"], row["tokens"], row["left"]) for row in rows.values()] == [
        ([0, 1], 2, 101, 93),
        ([1, 2], 1, 101, 62),
        ([0, 1], 1, 101, 51),
    ]


def test_blocks_in_a_row_give_back_the_tokens_that_wait() -> None:
    cell = small("operator", ("tosa:keep=0.5:score=own",))
    subject = prepare(cell, "cpu", None)
    x = entering(subject.dense, subject.x, 0)
    with torch.inference_mode():
        blocks = list(subject.variants[0].model.blocks)  # type: ignore[union-attr, arg-type]
        assert Through(blocks[:2])(x).shape == x.shape
        assert torch.equal(entering(subject.dense, subject.x, 1), subject.dense.blocks[0](x))  # type: ignore[index]


def test_a_selector_cell_reads_every_row_or_some() -> None:
    exact, some = measured(small("selector", ("tosa:stride=1", "tosa:stride=8")))["rows"]
    assert (exact["tokens"], exact["heads"], exact["stride"], some["stride"]) == (101, 2, 1, 8)
    assert 0 < some["peak_memory"] <= exact["peak_memory"]
    assert exact["attention_map"] == 2 * 2 * 101 * 101 * 4
    with pytest.raises(TokensieveError, match="has no selector"):
        MEASURES["selector"](small("selector", ("tosa:score=own",)), "cpu", None, Silent())


def test_what_a_method_does_is_read_from_its_trace() -> None:
    cell = small("model", ("bat:keep=0.7", "topk", "tosa:keep=0.5:score=own", "tome:r=0"))
    subject = prepare(cell, "cpu", None)
    kinds = [kind_of(ts.trace(variant.model, subject.x)) for variant in subject.variants]
    assert kinds == ["merging", "pruning", "skipping", "none"]


def test_what_a_site_costs_is_what_the_oracle_does_not() -> None:
    timing, oracle, dense = (Timing((s, s), 1) for s in (5.0, 4.0, 10.0))
    assert site_share(timing, oracle, dense, sites=2, block_share=0.1) == pytest.approx(0.5)
    assert site_share(timing, oracle, dense, sites=0, block_share=0.1) is None


def test_a_profile_tells_attention_mlp_and_the_methods_work_apart() -> None:
    subject = prepare(small("model", ("bat:keep=0.7",)), "cpu", None)
    dense = spent(subject.dense, subject.x, repeats=1)
    assert tuple(dense) == GROUPS
    assert all(dense[name] > 0 for name in ("attention", "MLP", "norms and the rest", "Python"))
    assert all(dense[name] == 0 for name in ("scores and matching", "sort", "gather and merge"))
    reduced = spent(subject.variants[0].model, subject.x, repeats=1)
    assert all(reduced[name] > 0 for name in GROUPS if name != "sort")  # a fused operator sorts by itself
    with torch.inference_mode():  # nothing stays patched
        assert torch.equal(subject.dense(subject.x), subject.dense(subject.x))


@pytest.mark.parametrize(
    ("operator", "owner", "inside_sort", "group"),
    [
        ("aten::addmm", "MLP", False, "MLP"),
        ("aten::sort", "assign", False, "sort"),
        ("aten::copy_", "assign", True, "sort"),
        ("aten::bmm", "assign", False, "scores and matching"),
        ("aten::index_select", "assign", False, "gather and merge"),
        ("aten::baddbmm", "apply", False, "gather and merge"),
        ("aten::layer_norm", "rest", False, "norms and the rest"),
        ("what for: assign", "assign", False, "Python"),
        ("tokensieve::merge", "apply", False, "gather and merge"),
        ("tokensieve::match", "assign", False, "scores and matching"),
    ],
)
def test_operators_are_grouped_by_what_they_are_for(operator: str, owner: str, inside_sort: bool, group: str) -> None:
    assert group_of(operator, owner, inside_sort) == group


def test_equal_groups_have_equal_first_members_however_they_are_numbered() -> None:
    one, other = torch.tensor([[5, 5, 0, 2, 0]]), torch.tensor([[1, 1, 4, 0, 4]])
    assert first_members(one).tolist() == [[0, 0, 2, 3, 2]]
    assert torch.equal(first_members(one), first_members(other))
    assert not torch.equal(first_members(one), first_members(torch.tensor([[1, 1, 4, 4, 0]])))


def test_the_reference_is_asked_for_by_its_checkout_and_runs_plain_tome_alone(tmp_path: Path) -> None:
    with pytest.raises(TokensieveError, match="is not a checkout"):
        import_tome(tmp_path)
    (tmp_path / "tome" / "patch").mkdir(parents=True)
    (tmp_path / "tome" / "patch" / "timm.py").touch()
    (tmp_path / "tome" / "__init__.py").write_text("import a_package_nobody_has")
    with pytest.raises(TokensieveError, match="cannot be imported here: No module named"):
        import_tome(tmp_path)
    reference = Reference(types.ModuleType("tome"))
    with pytest.raises(TokensieveError, match="runs tome:r=NUMBER"):
        reference.patched(timm.create_model("test_vit"), ts.parse("tome:r=4:metric=x"))
    with pytest.raises(TokensieveError, match="drops LayerScale"):
        reference.patched(timm.create_model("test_vit2"), ts.parse("tome:r=4"))


def test_a_reference_cell_compares_answers_and_times_both() -> None:
    def patch(model: Any, trace_source: bool) -> None:
        model._tome_info = {"source": torch.eye(101).unsqueeze(0)}  # a reference that merges nothing

    tome: Any = types.SimpleNamespace(patch=types.SimpleNamespace(timm=patch))
    record = Reference(tome).measure(small("reference", ("tome:r=4", "tome:r=0")), "cpu", None, Silent())
    merging, nothing = record["rows"]
    assert (merging["same_groups"], nothing["same_groups"], merging["compared"]) == (0.0, 1.0, 8)
    assert merging["largest_difference"] > 0 == nothing["largest_difference"]
    assert merging["over_reference"] == pytest.approx(
        Timing(tuple(merging["seconds"]), 2).speedup(Timing(tuple(merging["reference_seconds"]), 2))
    )
    assert (merging["attended"][0], merging["tokens"][-1]) == (101, 77)


def test_the_command_measures_saves_reports_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model", "test_vit", "--img-size", "160", "--batch", "1", "--rounds", "1", "--device", "cpu"]
    arguments = [*common, "--output", str(tmp_path)]
    assert main(["speed", *arguments, "--method", "topk:keep=0.5"]) == 0
    (file,) = tmp_path.glob("*.json")
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".md", ".png"]
    first = json.loads(file.read_text())["cells"]["model/test_vit/160px/b1/float32/eager"]
    assert main(["speed", *arguments, "--method", "topk:keep=0.5"]) == 2
    assert "exists" in capsys.readouterr().err
    assert main(["speed", *arguments, "--method", "topk:keep=0.5", "--resume"]) == 0
    assert json.loads(file.read_text())["cells"]["model/test_vit/160px/b1/float32/eager"] == first
    assert main(["speed", *arguments, "--method", "evit:keep=0.5", "--resume"]) == 0
    (record,) = json.loads(file.read_text())["cells"].values()
    assert [row["variant"] for row in record["rows"]] == ["dense", "topk:keep=0.5", "evit:keep=0.5"]
    assert main(["speed", *arguments, "--method", "tome:r=5000", "--force"]) == 1
    (record,) = json.loads(file.read_text())["cells"].values()
    assert "r must be at most half" in record["failed"]
    assert "Not measured: tome: r must be" in file.with_suffix(".md").read_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--engine", "cudagraph"], "a CUDA graph needs a CUDA device"),
        (["--device", "abacus"], "is not available"),
        (["--data", "nowhere"], "'nowhere' does not exist"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    output = tmp_path / "results"
    given = ["--model", "test_vit", "--device", "cpu", "--output", str(output), *arguments]
    assert main(["speed", *given]) == 2
    assert reason in capsys.readouterr().err
    assert not output.exists()


def test_a_cell_without_memory_or_with_a_broken_engine_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    def no_memory(*_: Any) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(*_: Any) -> dict[str, Any]:
        raise RuntimeError("the compiler\nand its long story")

    def session(measure: Any) -> Session:
        options: dict[str, Any] = {
            "device": "cpu",
            "data": None,
            "output": tmp_path,
            "resume": True,
            "force": False,
            "keep_memory": False,
        }
        return Session(measures={"model": measure}, **options)

    assert session(no_memory).measure(small("model"), Silent()) == {
        "failed": "it does not fit into the device's memory"
    }
    assert session(broken).measure(small("model"), Silent()) == {"failed": "RuntimeError: the compiler"}
    assert session(broken).run([small("model")]) == 1


def test_ctrl_c_keeps_the_cells_that_are_done(tmp_path: Path) -> None:
    calls: list[str] = []

    def measure(cell: Cell, *_: Any) -> dict[str, Any]:
        calls.append(cell.id)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return {"rows": [], "weights": "random", "images": "random numbers"}

    options: dict[str, Any] = {"device": "cpu", "data": None, "output": tmp_path, "force": False, "keep_memory": False}
    first = small("selector")
    second = Cell(kind="selector", setting=Setting(model="test_vit", img_size=32, batch=1), methods=METHODS)
    run = Session(measures={"selector": measure}, resume=False, **options)
    assert run.run([first, second]) == 130
    again = Session(measures={"selector": measure}, resume=True, **options)
    assert again.run([first, second]) == 0
    assert calls == [first.id, second.id, second.id]
