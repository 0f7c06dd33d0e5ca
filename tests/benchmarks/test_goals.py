"""Goals judged from made-up records, and the report that is written of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.goals import Goal, judge
from benchmarks.report import goal_cells, markdown, write_report
from benchmarks.store import Store
from tests.helpers.records import cell, dense, row, setting

HERE = {
    "device": "abacus",
    "threads": 2,
    "cpu_kernels": True,
    "torch": "2.15.0",
    "timm": "1.0.31",
    "python": "3.11",
    "commit": None,
}


def goal(cells: dict[str, Any], what: str, on_cpu: bool = True) -> Goal:
    (found,) = [g for g in judge(cells, on_cpu=on_cpu) if what in g.name]
    return found


def test_without_cells_nothing_can_be_judged_and_every_goal_says_why() -> None:
    goals = judge({}, on_cpu=True)
    assert {g.verdict for g in goals} == {"not measurable here"}
    assert all(goal_cells(g)[2] == "–" and goal_cells(g)[4] for g in goals)


def test_every_goal_has_a_name_of_its_own_and_stands_in_the_readme_with_its_bound() -> None:
    goals = judge({}, on_cpu=True)
    assert len({g.name for g in goals}) == len(goals) == 23
    lines = (Path(__file__).parents[2] / "benchmarks" / "README.md").read_text(encoding="utf-8").splitlines()
    for one in goals:
        assert any(line.startswith(f"| {one.name} | {goal_cells(one)[1]} |") for line in lines), one.name


def test_the_worst_case_decides_and_names_its_cell() -> None:
    cells = {
        "a": cell("model", [dense(), row("evit", 1.96, 2.0, 2.0), row("topk", 1.9, 2.0, 2.0)], setting()),
        "b": cell("model", [dense(), row("evit", 1.97, 2.0, 2.0)], setting(batch=64)),
        "c": {"kind": "model", "setting": setting(), "failed": "no memory"},
    }
    pruning = goal(cells, "pruning")
    assert pruning.verdict == "missed"
    assert pruning.worst is not None
    assert (pruning.worst.cell, pruning.worst.variant, pruning.worst.value) == ("a", "topk", 0.95)
    assert [case.variant for case in pruning.missed] == ["topk"]
    assert len(pruning.cases) == 3
    assert goal_cells(pruning)[3] == "missed in 1 of 3"


@pytest.mark.parametrize(("kind", "ratio", "verdict"), [("pruning", 0.96, "missed"), ("merging", 0.96, "met")])
def test_merging_is_held_to_less_than_pruning(kind: str, ratio: float, verdict: str) -> None:
    cells = {"a": cell("model", [dense(), row("x", 2 * ratio, 2.0, 2.0, kind=kind)], setting())}
    assert goal(cells, f"(S/O) of {kind}").verdict == verdict


def test_every_engine_is_judged_by_itself() -> None:
    cells = {
        "a": cell("model", [dense(), row("x", 1.0, 2.0, 2.0)], setting()),
        "b": cell("model", [dense(), row("x", 2.0, 2.0, 2.0)], setting(engine="compile")),
    }
    both = [g for g in judge(cells, on_cpu=True) if "pruning" in g.name]
    assert [(g.name.endswith(", compile"), g.verdict) for g in both] == [(False, "missed"), (True, "met")]
    assert [case.cell for g in both for case in g.cases] == ["a", "b"]


def test_what_counts_as_a_large_batch_depends_on_the_device() -> None:
    cells = {"a": cell("model", [dense(), row("x", 1.0, 2.0, 2.0)], setting(batch=16))}
    assert goal(cells, "pruning", on_cpu=True).verdict == "missed"
    assert goal(cells, "pruning", on_cpu=False).verdict == "not measurable here"


def test_high_resolution_has_goals_of_its_own() -> None:
    long = {"attended": [4097, 1025], "tokens": [1025, 1025]}
    rows = [dense(**long), row("x", 1.96, 2.0, 2.0, **long, peak_memory=10.04), row("y", 1.9, 2.0, 2.0, **long)]
    cells = {"a": cell("model", rows, setting(size=1024, batch=1))}
    assert [case.variant for case in goal(cells, "N ≥ 1024").missed] == ["y"]
    assert not goal(cells, "pruning").cases
    memory = goal(cells, "peak memory")
    assert memory.verdict == "met"  # a few bytes more than the dense model's peak are nothing
    assert memory.cases[0].note == "tokens 4097 → 1025"
    rows[2]["peak_memory"] = 11
    assert goal(cells, "peak memory").missed[0].variant == "y"


def test_a_single_image_must_never_be_slower() -> None:
    rows = [dense(), row("x", 1.05, 1.8, 1.1), row("y", 0.99, 1.3, 1.0)]
    cells = {"a": cell("model", rows, setting(batch=1))}
    assert goal(cells, "(S/O) at batch 1").verdict == "met"
    assert [case.variant for case in goal(cells, "F ≥ 1.7").missed] == ["x"]
    slower = next(g for g in judge(cells, on_cpu=True) if g.name == "speed-up (S) at batch 1")
    assert [case.variant for case in slower.missed] == ["y"]


def test_promises_are_judged_at_batch_64_and_name_what_the_oracle_realises() -> None:
    cells = {"a": cell("model", [dense(), row("x", 1.8, 2.0, 1.9)], setting(batch=64))}
    promised = goal(cells, "promise kept (S/F) at batch 64")
    assert promised.verdict == "missed"
    assert promised.cases[0].note == "its oracle realises 0.950"


def operator_row(share: float, tokens: int = 197) -> dict[str, Any]:
    figures = {"site_share": share, "low": share, "high": share, "block_seconds": 0.01, "noisy": False}
    return {"variant": "bat", "tokens": tokens, "left": 100, "kind": "merging", "blocks": [3, 4], "sites": 2, **figures}


def test_operators_are_judged_by_model() -> None:
    cells = {
        "s": cell("operator", [operator_row(0.025)], setting()),
        "b": cell("operator", [operator_row(0.025)], setting("vit_base_patch16_224")),
        "1": cell("operator", [operator_row(0.5)], setting("vit_base_patch16_224", batch=1)),
        "high": cell("operator", [operator_row(0.01, 4097)], setting("vit_base_patch16_224", size=1024, batch=1)),
    }
    assert goal(cells, "DeiT-S").verdict == "met"
    assert [case.cell for case in goal(cells, "ViT-B").ranked] == ["b", "high"]
    assert goal(cells, "ViT-B").verdict == "missed"


def reference_row(ratio: float, same: float = 1.0) -> dict[str, Any]:
    figures = {"over_reference": ratio, "low": ratio, "high": ratio, "S": 1.5, "F": 1.7, "O": 1.7, "reference_S": 1.0}
    answers = {"same_groups": same, "compared": 8, "largest_difference": 1e-6, "explicit_S": 1.0, "noisy": False}
    return {"variant": "tome:r=13", "attended": [197, 54], "tokens": [184, 41], **figures, **answers}


def test_the_reference_is_judged_by_size_in_bfloat16_and_its_answers_must_be_the_same() -> None:
    cells = {
        "a": cell("reference", [reference_row(1.3)], setting()),
        "b": cell("reference", [reference_row(4.0, same=0.875)], setting(size=1024, batch=1)),
        "c": cell("reference", [reference_row(0.5)], setting(dtype="float32")),
    }
    assert goal(cells, "CPU, 224²").verdict == "met"
    assert goal(cells, "CPU, 1024²").verdict == "missed"
    assert [case.cell for case in goal(cells, "share of images whose").missed] == ["b"]
    assert goal(cells, "GPU, 1024²").verdict == "not measurable here"
    assert goal(cells, "GPU, 1024²", on_cpu=False).verdict == "met"
    assert goal(cells, "CPU, 224²", on_cpu=False).verdict == "not measurable here"


def selector_row(tokens: int, share: float, memory: float, stride: int = 8) -> dict[str, Any]:
    figures = {"share": share, "low": share, "high": share, "peak_memory": memory, "noisy": False, "stride": stride}
    return {"variant": "tosa", "tokens": tokens, "heads": 12, "block_seconds": 1.0, "attention_map": 1, **figures}


def test_the_selector_is_judged_up_to_577_tokens_and_its_memory_up_to_4097() -> None:
    base = "vit_base_patch16_224"
    cells = {
        "s": cell("selector", [selector_row(577, 0.04, 4 * 577.0)], setting(base, size=384, batch=4)),
        "h": cell("selector", [selector_row(4097, 0.4, 4097.0)], setting(base, size=1024, batch=1)),
    }
    assert goal(cells, "by default").verdict == "met"
    assert goal(cells, "every row").verdict == "not measurable here"
    assert goal(cells, "selector's memory").cases[0].value == pytest.approx(1.0)
    cells["h"]["rows"][0]["peak_memory"] = 4097.0**2 / 577
    assert goal(cells, "selector's memory").cases[0].value == pytest.approx(2.0)
    assert goal(cells, "selector's memory").verdict == "missed"


def test_ragged_methods_are_judged_beside_static_ones_of_the_same_macs() -> None:
    rows = [dense(), row("ragged", 1.5, 2.0, 1.9, ragged=True), row("topk", 1.6, 2.02, 1.9), row("evit", 5.0, 2.5, 2.4)]
    cells = {"a": cell("model", rows, setting())}
    ragged = goal(cells, "ragged")
    assert [case.note for case in ragged.cases] == ["beside topk"]
    assert ragged.cases[0].value == pytest.approx(1.5 / 1.6)
    assert ragged.verdict == "met"


def export_row(**others: Any) -> dict[str, Any]:
    given = {"variant": "bat", "format": "onnx", "F": 2.0, "S_over_F": 0.8, "exported_S_over_F": 0.76}
    return given | {"scatters": 0, "same_tokens": 1.0} | others


def test_an_export_is_judged_by_speed_graph_and_tokens() -> None:
    cells = {"a": cell("export", [export_row(), export_row(scatters=2, same_tokens=0.5)], setting())}
    assert goal(cells, "exported model").verdict == "met"
    assert goal(cells, "Scatter").worst.value == 2  # type: ignore[union-attr]
    assert goal(cells, "our tokens").verdict == "missed"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    filled = Store(tmp_path / "r.json", HERE, "bfloat16", True)
    rows = [dense(), row("evit:keep=0.6", 1.8, 2.0, 1.9, noisy=True, discarded=2)]
    filled.cells = {
        "model/m/a": cell("model", rows, setting()) | {"refused": {"bat": "it waits for the device"}},
        "operator/m/a": cell("operator", [operator_row(0.5)], setting()),
        "selector/m/a": cell("selector", [selector_row(197, 0.2, 10.0)], setting()),
        "reference/m/a": cell("reference", [reference_row(1.3)], setting()),
        "export/m/a": cell("export", [export_row()], setting()),
        "model/m/b": {"kind": "model", "setting": setting(), "methods": ["bat"], "failed": "it does not fit"},
    }
    parts = {"attention": 1.0, "MLP": 2.5}
    profile = {"cell": "model/m/a", "variant": "bat", "dense": parts, "oracle": parts, "reduced": parts}
    filled.profiles = [profile]
    return filled


def test_the_report_has_every_table_and_says_what_was_missed(store: Store) -> None:
    text = markdown(store, judge(store.cells, on_cpu=True))
    what = "oracle share (S/O) of pruning and skipping at batch ≥ 16"
    for line in (
        f"| {what} | ≥ 0.97 | 0.947 ~ | **missed in 1 of 1** | model/m/a evit:keep=0.6 |",
        "  - 0.947 ~ model/m/a `evit:keep=0.6`",
        "Weights: random. Images: random numbers.",
        "2 set(s) of rounds were discarded because an oracle moved. `bat` cannot run here: it waits for the device.",
        "Not measured: it does not fit.",
        "| reduced | 1.00 | 2.50 | 3.50 |",
    ):
        assert line in text.splitlines()
    for title in ("Whole models", "ToSA's selector", "Beside the reference ToMe code", "Exported models"):
        assert f"## {title}" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_the_report_can_be_written_again_from_the_file(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.write()
    assert main(["judge", str(store.path)]) == 0
    assert "missed in 1 of 1" in capsys.readouterr().out
    assert store.path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert store.path.with_suffix(".md").read_text() == markdown(store, judge(store.cells, on_cpu=True))
    assert main(["judge", str(store.path.with_name("absent.json"))]) == 2
    assert "cannot read" in capsys.readouterr().err


def test_a_report_without_whole_models_has_a_picture_as_well(store: Store) -> None:
    store.cells = {}
    write_report(store, judge({}, on_cpu=True))
    assert store.path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
