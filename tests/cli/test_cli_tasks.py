"""``eval --task zeroshot`` and ``--task retrieval``: figures, rows, and every wrong input in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tokensieve as ts
from tests.helpers.calling import call, fails
from tests.helpers.two_towers import saved, tokenizer, two_towers
from tokensieve.models.transformers import HuggingFaceModel

transformers = pytest.importorskip("transformers")
NOTHING, SOMETHING = "tome:r=0", "tome:r=5"
FOLDERS = ("n1", "n2", "n3")
NAMES = ("red dog", "green cat", "blue")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models ``clip`` and ``siglip``, four ``images`` of each class, and ``classes.txt`` that names their folders."""
    root = tmp_path_factory.mktemp("tasks")
    saved("CLIP", root / "clip")
    saved("Siglip", root / "siglip")
    generator = torch.Generator().manual_seed(0)
    for folder in FOLDERS:
        (root / "images" / folder).mkdir(parents=True)
        for number in range(4):
            pixels = torch.randint(0, 256, (70, 80, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(root / "images" / folder / f"{number}.png")
    lines = [f"{folder}\t{name}\n" for folder, name in zip(FOLDERS, NAMES, strict=True)]
    (root / "classes.txt").write_text("".join(lines))
    return root


def data(place: Path) -> tuple[object, ...]:
    return ("--data", place / "images", "--split", "", "-j", 0, "-b", 5)


def zero_shot(place: Path, model: str = "clip", classes: str = "classes.txt") -> tuple[object, ...]:
    return ("eval", place / model, "--task", "zeroshot", "--classes", place / classes, *data(place))


def rows(*arguments: object, file: Path) -> list[dict[str, Any]]:
    result = call(*arguments, "--results-file", file)
    assert result.exit_code == 0, result.output
    return json.loads(file.read_text())["rows"]  # type: ignore[no-any-return]


def shapes_of_texts(name: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Grows with every call of the text tower: the shape of its texts."""
    kind = getattr(transformers, f"{name}Model")
    whole, calls = kind.get_text_features, []

    def counted(self: Any, **texts: Any) -> Any:
        calls.append(tuple(texts["input_ids"].shape))
        return whole(self, **texts)

    monkeypatch.setattr(kind, "get_text_features", counted)
    return calls


@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_texts_run_once_for_all_variants(
    place: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = shapes_of_texts(name, monkeypatch)
    templates = ("--template", "a photo of a {}.", "--template", "{}", "--template", "{}")
    found = rows(*zero_shot(place, name.lower()), *templates, "-m", NOTHING, "-m", SOMETHING, file=tmp_path / "r.json")
    assert calls == ([(3, 9), (3, 4)] if name == "CLIP" else [(3, 12), (3, 12)])  # one call a template
    dense, same, reduced = found
    assert (same["agreement"], same["kl"], same["top1"], same["F"]) == (100, 0, dense["top1"], 1)
    assert reduced["kl"] > 0 and reduced["F"] > 1 and reduced["images"] == 12


def test_images_are_of_the_classes_that_transformers_names(place: Path, tmp_path: Path) -> None:
    """Of its folder an image is the class in whose line that folder stands, whatever the order of the lines."""
    generator = torch.Generator().manual_seed(2)
    for folder in FOLDERS:
        (tmp_path / "images" / folder).mkdir(parents=True)
        for number in range(8):
            pixels = torch.randint(0, 256, (64, 64, 3), generator=generator, dtype=torch.uint8)  # nothing to resize
            Image.fromarray(pixels.numpy()).save(tmp_path / "images" / folder / f"{number}.png")
    pipe = transformers.pipeline("zero-shot-image-classification", model=str(place / "clip"), device="cpu")
    right = 0
    for folder, name in zip(FOLDERS, NAMES, strict=True):
        files = [str(tmp_path / "images" / folder / f"{number}.png") for number in range(8)]
        answers = pipe(files, candidate_labels=list(NAMES), hypothesis_template="a photo of a {}.")
        right += sum(answer[0]["label"] == name for answer in answers)
    assert 0 < right < 24
    lines = (place / "classes.txt").read_text().splitlines()
    (tmp_path / "turned.txt").write_text("\ufeff" + "\r\n".join(reversed(lines)) + "\r\n\r\n", encoding="utf-8")
    for file in (place / "classes.txt", tmp_path / "turned.txt"):
        asked = ("eval", place / "clip", "--task", "zeroshot", "--classes", file, "--data", tmp_path / "images")
        (dense,) = rows(*asked, "--split", "", "-j", 0, file=tmp_path / f"{file.stem}.json")
        assert dense["top1"] == pytest.approx(100 * right / 24)


def test_classes_without_a_folder_stay_candidates(place: Path, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text((place / "classes.txt").read_text() + "dog\ncat\n")
    arguments = ("eval", place / "clip", "--task", "zeroshot", "--classes", tmp_path / "more.txt", *data(place))
    result = call(*arguments)
    assert result.exit_code == 0 and "2 classes of" in " ".join(result.stderr.split()), result.output


def test_rows_of_other_classes_are_not_resumed(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    rows(*zero_shot(place), file=file)
    common = (*zero_shot(place), "--results-file", file, "--resume")
    assert call(*common, "-m", SOMETHING).exit_code == 0
    assert [row["variant"] for row in json.loads(file.read_text())["rows"]] == ["dense", SOMETHING]
    assert "measured with templates" in fails(*common, "--template", "{}")
    retrieval = ("eval", place / "clip", "--task", "retrieval", *data(place), "--results-file", file, "--resume")
    assert "measured with classes" in fails(*retrieval)


def test_a_saved_model_and_bench(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ts.save(ts.apply(HuggingFaceModel(two_towers("CLIP")), SOMETHING), tmp_path / "saved")
    arguments = (*zero_shot(place)[2:], "--results-file", tmp_path / "r.json")
    assert "tokenizer" in fails("eval", tmp_path / "saved", *arguments)
    tokenizer().save_pretrained(tmp_path / "saved")
    calls = shapes_of_texts("CLIP", monkeypatch)
    result = call("bench", tmp_path / "saved", *arguments, "--rounds", 1, "--speed-batch-size", 1)
    assert result.exit_code == 0 and calls == [(3, 9)], result.output
    dense, reduced = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert reduced["variant"] == SOMETHING and reduced["kl"] > 0 and reduced["speed"][0]["S"] > 0
    assert dense["gmacs"] > reduced["gmacs"]


@pytest.mark.parametrize("model", ["clip", "test_vit"])
def test_retrieval(place: Path, tmp_path: Path, model: str) -> None:
    named = place / model if model == "clip" else model
    arguments = ("eval", named, "--task", "retrieval", *data(place), "--k", 2, "--k", 1)
    dense, same, reduced = rows(*arguments, "-m", NOTHING, "-m", SOMETHING, file=tmp_path / "r.json")
    names = [f"{name}@{k}" for name in ("recall", "own", "same") for k in (1, 2)]
    assert list(dense["metrics"]) == names and dense["metrics"]["same@1"] == 100
    assert dense["metrics"]["recall@2"] == dense["metrics"]["own@2"] > 0
    assert same["metrics"] == dense["metrics"] and same["F"] == 1
    assert reduced["metrics"] != dense["metrics"] and reduced["images"] == 12 and reduced["F"] > 1
    assert not {"top1", "kl"} & set(dense)
    assert (tmp_path / "r.png").exists() and "same@2" in (tmp_path / "r.csv").read_text()
    assert json.loads((tmp_path / "r.json").read_text())["settings"]["k"] == [1, 2]


def test_images_without_classes_find_themselves(place: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    shutil.copytree(place / "images" / "n1", flat)
    result = call("eval", "test_vit", "--task", "retrieval", "--data", flat, "--split", "", "-j", 0, "--k", 1)
    assert result.exit_code == 0, result.output
    assert "same@1" in result.stdout and "recall" not in result.stdout
    assert result.stderr.count("none is looked for by its class") == 1


def test_wrong_input_of_retrieval(place: Path, tmp_path: Path) -> None:
    common = ("eval", "test_vit", "--task", "retrieval", *data(place))
    assert "12 neighbours are asked for, and 12 images have 11 others" in fails(*common, "--k", 12)
    assert "10 neighbours are asked for, and 10 images" in fails(*common, "--limit", 10)
    assert "--k" in fails(*common, "--k", 0)
    assert "--classes is for --task zeroshot" in fails(*common, "--classes", place / "classes.txt")
    assert "--head is for pixel tasks" in fails(*common, "--head", "dpt")
    (tmp_path / "empty").mkdir()
    assert "there is no image" in fails("eval", "test_vit", "--task", "retrieval", "--data", tmp_path / "empty")
    assert "--k is for --task retrieval" in fails("eval", "test_vit", *data(place), "--k", 3)


def test_wrong_input_of_zero_shot_classification(place: Path, tmp_path: Path) -> None:
    common = zero_shot(place)
    without = ("eval", place / "clip", "--task", "zeroshot", *data(place))
    assert "needs the names of the classes: give --classes FILE" in fails(*without)
    assert "--classes is for --task zeroshot" in fails("eval", "test_vit", *data(place), "--classes", "x.txt")
    assert "--template is for --task zeroshot" in fails("eval", "test_vit", *data(place), "--template", "{}")
    assert "--classes is for" in fails("eval", "test_vit", "--task", "depth", *data(place), "--classes", "x.txt")
    assert "'a photo' has no {}" in fails(*common, "--template", "a photo")
    assert "leave --class-map out" in fails(*common, "--class-map", place / "classes.txt")
    assert "leave --num-classes out" in fails(*common, "--num-classes", 3)
    assert "unknown task 'zeroshoot', did you mean 'zeroshot'?" in fails("eval", "test_vit", "--task", "zeroshoot")
    assert "has no text tower" in fails("eval", "test_vit", *common[2:])
    two_towers("CLIP").vision_model.save_pretrained(tmp_path / "vision")
    assert "CLIPVisionModel has no text tower" in fails("eval", tmp_path / "vision", *common[2:])
    (tmp_path / "empty").mkdir()
    assert "there is no image" in fails(*common[:6], "--data", tmp_path / "empty")
    assert "has its images directly in it" in fails(*common[:6], "--data", place / "images" / "n1", "--split", "")
    assert "no split 'test'" in fails(*common, "--split", "test")


@pytest.mark.parametrize("name", ["CLIP", "Siglip", "MetaClip2"])
def test_missing_tokenizer_files_are_named(place: Path, tmp_path: Path, name: str) -> None:
    """Of some models transformers makes a tokenizer that knows no word where none lies there."""
    two_towers(name).save_pretrained(tmp_path / "model")
    said = fails("eval", tmp_path / "model", *zero_shot(place)[2:])
    assert "tokenizer" in said and "put there what tokenizer.save_pretrained writes" in said
    assert said.count("Error:") == 1


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("n1\tred\nn2\tdog\n", "1 of 3 folders in"),
        ("red\ngreen\nblue\n", "such as 'n1'"),
        ("n1\tred\n\nn2\tdog\nn3\tcat\n", "line 2 of the class file"),
        ("n1\tred\nn2\tdog\nn3\t\n", "line 3 of the class file"),
        ("n1\ta\tb\nn2\tdog\n", "expected NAME, or FOLDER<TAB>NAME"),
        ("n1\tred\nn1\tdog\nn2\tcat\nn3\tblue\n", "has 'n1' twice"),
        ("n1\tred", "expected two classes or more"),
        ("", "expected two classes or more"),
        (None, "cannot be read: No such file"),
        (b"n1\t\xff\n", "is no text in UTF-8"),
    ],
)
def test_class_files_that_do_not_fit(place: Path, tmp_path: Path, lines: str | bytes | None, said: str) -> None:
    file = tmp_path / "classes.txt"
    if lines is not None:
        file.write_bytes(lines.encode() if isinstance(lines, str) else lines)
    assert said in fails("eval", place / "clip", "--task", "zeroshot", "--classes", file, *data(place))


def test_names_that_no_text_tells_apart_are_named(place: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("n1\tdog\nn2\tdog\nn3\tcat\n")
    arguments = ("eval", place / "clip", "--task", "zeroshot", "--classes", tmp_path / "classes.txt", *data(place))
    assert "1 names are those of several classes, such as 'dog'" in " ".join(call(*arguments).stderr.split())


def test_a_data_set_that_numbers_its_classes_itself(place: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    names = ["dog", "cat", "red", "green", "blue", "photo", "drawing", "red dog", "blue dog", "red cat"]
    file = tmp_path / "classes.txt"
    common = ("eval", place / "clip", "--task", "zeroshot", "--classes", file, "--dataset", "digits", "--limit", 12)
    file.write_text("\n".join(names))
    result = call(*common, "-j", 0)
    assert result.exit_code == 0 and "12 images" in result.stdout, result.output
    file.write_text("\n".join(names[:5]))
    assert "and the model answers with 5 classes" in fails(*common, "-j", 0)
