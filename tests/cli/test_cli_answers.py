"""``eval``, ``bench`` and ``show`` on a vision-language model: figures, rows, pictures, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.asking import asked_model, saved_model, saved_questions
from tests.helpers.calling import call, fails
from tests.helpers.two_towers import saved, tokenizer

transformers = pytest.importorskip("transformers")
KEPT = "divprune:tokens=9"
CONTROLS = ["prefix-random:tokens=9", "prefix-grid:tokens=9", "downsample:tokens=9"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``model`` with its processor, and ``questions``."""
    root = tmp_path_factory.mktemp("answers")
    saved_model(root / "model")
    saved_questions(root / "questions", count=2)
    return root


def asked(place: Path, *more: object) -> tuple[object, ...]:
    return (place / "model", "--task", "answer", "--data", place / "questions", "--max-new-tokens", 2, *more)


def test_eval(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    result = call("eval", *asked(place, "-m", KEPT, "--limit", 1, "--results-file", file))
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in ("accuracy", "agree", "prefill", "cache MB", *CONTROLS))
    content = json.loads(file.read_text())
    assert [row["variant"] for row in content["rows"]] == ["dense", KEPT, *CONTROLS]
    assert content["settings"]["task"] == "answer" and content["rows"][0]["metrics"]["agree"] == 100
    assert file.with_suffix(".csv").exists() and file.with_suffix(".png").exists()
    assert "measured with questions" in fails("eval", *asked(place, "-m", KEPT, "--results-file", file, "--resume"))


@pytest.mark.slow
def test_bench_with_random_weights_and_prompts(place: Path, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.mkdir()
    shutil.copy(place / "model" / "config.json", config)
    file = tmp_path / "rows.json"
    common = ("bench", f"hf-config:{config}", "--task", "answer", "-m", KEPT, "--limit", 1, "--max-new-tokens", 2)
    options = ("--rounds", 1, "--speed-batch-size", 1, "--speed-batch-size", 2, "--model-dtype", "bfloat16")
    result = call(*common, *options, "--results-file", file)
    assert result.exit_code == 0, result.output
    assert "weights and prompts are random" in result.stderr
    assert "Speed at batch 1" in result.stdout and "Speed at batch 2" in result.stdout
    dense, *others = json.loads(file.read_text())["rows"]
    assert [row["variant"] for row in others] == [KEPT, *CONTROLS]
    assert [speed["batch"] for speed in dense["speed"]] == [1, 2] and "accuracy" not in dense["metrics"]
    refused = fails("eval", f"hf-config:{config}", "--task", "answer", "--data", place / "questions")
    assert "no processor lies beside" in refused
    assert "needs" not in refused


@pytest.mark.slow
def test_a_text_encoder(place: Path, tmp_path: Path) -> None:
    """One with other eyes than the model's is refused; of the right one the text tower counts."""
    guided = ("-m", "cdpruner:tokens=9", "--limit", 1)
    said = fails("eval", *asked(place, *guided, "--text-encoder", saved("CLIP", tmp_path / "clip")))
    assert "vision" in said
    vision = asked_model().config.vision_config.to_dict()
    text = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.CLIPConfig(vision_config=vision, text_config={**text, "vocab_size": 20})
    transformers.CLIPModel(config).save_pretrained(tmp_path / "its")
    tokenizer().save_pretrained(tmp_path / "its")
    file = tmp_path / "rows.json"
    common = asked(place, *guided, "--text-encoder", tmp_path / "its", "--results-file", file)
    result = call("eval", *common)
    assert result.exit_code == 0, result.output
    rows = {row["variant"]: row for row in json.loads(file.read_text())["rows"]}
    assert list(rows) == ["dense", "cdpruner:tokens=9, text encoder", *CONTROLS]
    guided_by, grid = (rows[name]["metrics"] for name in ("cdpruner:tokens=9, text encoder", CONTROLS[1]))
    assert guided_by["prefill GMACs"] > grid["prefill GMACs"]  # which has the text tower in it
    shown = (
        "show",
        place / "model",
        place / "questions" / "0.png",
        "-q",
        "how many",
        *guided[:2],
        "-o",
        tmp_path / "x.png",
    )
    assert call(*shown, "--text-encoder", tmp_path / "its").exit_code == 0


def test_wrong_input_ends_in_one_sentence(place: Path, tmp_path: Path) -> None:
    answer = ("--task", "answer")
    assert "needs questions" in fails("eval", place / "model", *answer, "-m", KEPT)
    assert "is not a folder" in fails("eval", place / "model", *answer, "--data", tmp_path / "absent")
    assert "names none" in fails("eval", "test_vit", *answer, "--data", place / "questions")
    assert "--img-size has no meaning" in fails("eval", *asked(place, "--img-size", 64))
    assert "--macs has no meaning" in fails("eval", *asked(place, "--macs", 0.5, "-m", KEPT))
    assert "--torchcompile has no meaning" in fails("bench", *asked(place, "--torchcompile", "eager"))
    assert "says nothing of how many" in fails("eval", *asked(place, "-m", "all"))
    assert "give one of keep" in fails("eval", *asked(place, "-m", "divprune"))
    assert "did you mean 'divprune'" in fails("eval", *asked(place, "-m", "divprun:keep=0.5"))
    assert "--max-new-tokens is for --task answer" in fails("eval", place / "model", "--max-new-tokens", 3)
    assert "outside of its tower" in fails("eval", place / "model", "-m", KEPT)
    clip = saved("CLIP", tmp_path / "clip")
    assert "answers no question about an image" in fails("eval", clip, *answer, "--data", place / "questions")
    assert "a config and no weights" in fails("eval", *asked(_bare(place, tmp_path)))


def _bare(place: Path, folder: Path) -> Path:
    """A place whose model has no weights."""
    (folder / "model").mkdir()
    shutil.copy(place / "model" / "config.json", folder / "model")
    shutil.copytree(place / "questions", folder / "questions")
    return folder


@pytest.mark.parametrize("ending", ["png", pytest.param("html", marks=pytest.mark.slow)])
def test_show(place: Path, tmp_path: Path, ending: str) -> None:
    output = tmp_path / f"kept.{ending}"
    picture = place / "questions" / "0.png"
    two = ("-q", "how many sevens", "-q", "what is the colour of the 3")
    spec = "visionzip:tokens=9+fastv:keep=0.5:layer=2"
    result = call("show", place / "model", picture, *two, "-m", spec, "--max-new-tokens", 2, "-o", output)
    assert result.exit_code == 0 and "written:" in result.stderr, result.output
    if ending == "html":
        page = output.read_text()
        assert page.count("9 → 5") == page.count("36 → 9") == 2 and "behind layer 2" in page
        assert page.count("“how many sevens” · dense:") == 1 and "with others merged in" in page
        return
    with Image.open(output) as drawn:
        assert drawn.width > 5 * 420  # what the model sees and two sites for each of two questions
    common = ("show", place / "model", picture, "-o", tmp_path / "other.png")
    assert "nothing to show" in fails(*common, *two)
    assert "acts in the tower" in fails(*common, *two, "-m", "tome:r=2")
    assert "--blocks has no meaning" in fails(*common, *two, "-m", KEPT, "--blocks", 1)
    assert "give a --question" in fails(*common, "--max-new-tokens", 2, "-m", "tome:r=2")
    assert not (tmp_path / "other.png").exists()


def test_the_model_that_is_asked_is_the_one_that_was_saved(place: Path) -> None:
    from tokensieve.models.language import load_language

    loaded = load_language(str(place / "model"))
    ours = asked_model().state_dict()
    assert all(value.equal(ours[name]) for name, value in loaded.model.state_dict().items())
    assert not loaded.random and load_language(f"hf-config:{place / 'model'}").random
