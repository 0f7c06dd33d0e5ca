"""``tokensieve demo``: the whole main job on the embedded model, and what it refuses."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokensieve.cli.app import app
from tokensieve.cli.demo import ask


def test_one_method_and_budget_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokensieve.demo.run.METHODS", ("tome",))
    monkeypatch.setattr("tokensieve.demo.run.BUDGETS", (0.65,))
    given = ["demo", "--output", str(tmp_path), "--images", "20", "--rounds", "1", "--questions", "0"]
    run = CliRunner().invoke(app, given)
    assert run.exit_code == 0, run.output
    rows = json.loads((tmp_path / "demo.json").read_text())["rows"]
    assert [row["variant"].split(":")[0] for row in rows[:2]] == ["dense", "tome"]
    assert rows[1]["gmacs"] / rows[0]["gmacs"] == pytest.approx(0.65, abs=0.02)
    assert {path.name for path in tmp_path.iterdir()} >= {"demo.json", "demo.csv", "pareto.png", "tokens.png"}
    assert "tokensieve bench MODEL" in run.output


def test_the_demo_asks_the_question_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr("tokensieve.demo.questions.run.METHODS", ("divprune",))
    assert ask(6, 1, tmp_path)
    rows = json.loads((tmp_path / "questions.json").read_text())["rows"]
    assert [row["variant"].partition(":")[0] for row in rows] == [
        "dense", "divprune", "prefix-random", "prefix-grid", "downsample",
    ]  # fmt: skip
    assert rows[0]["metrics"]["image tokens"] == 144
    assert all(row["metrics"]["image tokens"] == 36 for row in rows[1:])
    assert all(row["speed"][0]["batch"] == 1 for row in rows)
    assert (tmp_path / "questions.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_demo_writes_figures_plot_and_pictures(tmp_path: Path) -> None:
    output = tmp_path / "out"
    run = CliRunner().invoke(
        app, ["demo", "--output", str(output), "--images", "40", "--rounds", "1", "--questions", "12"]
    )
    assert run.exit_code == 0, run.output
    rows = json.loads((output / "demo.json").read_text())["rows"]
    tuned = sorted(row["variant"] for row in rows if row["variant"].endswith(", fine-tuned"))
    assert tuned == ["bat:keep=0.775, fine-tuned", "tosa:keep=[1.0,1.0,0.66,0.28,0.1,0.05], fine-tuned"]
    rows = [row for row in rows if row["variant"] not in tuned]
    specs = {row["variant"] for row in rows}
    assert all(name.removesuffix(", fine-tuned") in specs for name in tuned)  # each beside its setting off the shelf
    names = [row["variant"].split(":")[0] for row in rows]
    assert names[:10] == ["dense", *["bat"] * 3, *["tosa"] * 3, *["tome"] * 3]
    # Three budgets for each method, met as nearly as its knob allows.
    dense = rows[0]["gmacs"]
    for start in (1, 4, 7):
        shares = [row["gmacs"] / dense for row in rows[start : start + 3]]
        assert shares == pytest.approx([0.75, 0.65, 0.55], abs=0.02)
    assert rows[0]["top1"] >= 90
    assert {path.name for path in output.iterdir()} >= {"demo.json", "demo.csv", "pareto.png", "tokens.png"}
    assert {"questions.json", "questions.png"} <= {path.name for path in output.iterdir()}
    assert "tokensieve bench MODEL" in run.output


def test_the_demo_leaves_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    run = CliRunner().invoke(app, ["demo", "--output", str(tmp_path), "--images", "10"])
    assert run.exit_code == 2
    assert "--force" in run.output
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_no_images_are_refused(tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["demo", "--output", str(tmp_path / "out"), "--images", "0"])
    assert run.exit_code == 2
    assert "--images must be 1 or more" in run.output


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_demo_that_ends_early_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("tokensieve.demo.run.variants", breaks)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "demo.json").write_text("old")
    for output, more in ((tmp_path / "new", ()), (tmp_path / "mine", ("--force",))):
        run = CliRunner().invoke(app, ["demo", "--output", str(output), "--images", "10", *more])
        assert run.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["mine", "mine/demo.json"]
    assert (tmp_path / "mine" / "demo.json").read_text() == "old"


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = CliRunner().invoke(app, ["demo", "--output", str(tmp_path / "file"), "--force"])
    assert run.exit_code == 2
    assert "it is a file" in run.output
