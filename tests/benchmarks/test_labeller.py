"""The lessons of the labeller, and its recall."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from benchmarks.labeller import _recalls, fit, lesson
from benchmarks.photographs import Photographs, Taught, class_names
from tokensieve.language.labeller import PREFIX, PROMPT, Labeller
from tokensieve.language.words import END, Words

pytest.importorskip("transformers")

NAMES = ("red fox", "fox", "great white shark", "polar bear")


def labeller() -> Labeller:
    torch.manual_seed(0)
    tower = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24, num_heads=2, num_classes=0)
    return Labeller(tower, Words.of([*NAMES, PROMPT]), width=24, hidden=32, layers=2, heads=2)


def test_the_loss_is_the_log_probability_of_whole_labels() -> None:
    model = labeller().double()
    patches = torch.randn(2, 4, 24, dtype=torch.float64)
    labels = [[model.words.encode(name) for name in row] for row in (NAMES[:2], NAMES[2:])]
    expected = []
    for image, row in zip(patches.split(1), labels, strict=True):
        prefix = model.prefix_ids(1, 4)
        for label in row:
            ids = torch.cat([prefix, torch.tensor([label])], dim=1)
            segments = torch.tensor([[PREFIX] * prefix.shape[1] + [1] * len(label)])
            given = {"mm_encoder_outputs": {"image": model.features_of(image)}}
            logits = model(ids, segments=segments, logits_to_keep=len(label) + 1, **given).logits[0]
            chances = logits.log_softmax(dim=1)
            expected.append(sum(chances[n, token] for n, token in enumerate([*label, END])))
    torch.testing.assert_close(lesson(model, patches, labels), -torch.stack(expected).mean(), atol=1e-6, rtol=0)


def test_lessons_are_learned() -> None:
    model = labeller()
    answers = torch.tensor([[0, 1, 2, 3, 0], [3, 2, 1, 0, 3]])
    lessons = Taught((torch.randn(2, 4, 24).half(),), (answers,))
    names = model.words.encode
    before = lesson(model, lessons.patches[0].float(), [[names(NAMES[n]) for n in row] for row in answers.tolist()])
    fit(model, lessons, NAMES, steps=120, batch=2)
    after = lesson(model, lessons.patches[0].float(), [[names(NAMES[n]) for n in row] for row in answers.tolist()])
    assert after < before / 1.5


def test_recall_is_the_share_of_names_that_were_said() -> None:
    found = _recalls([{"a", "b"}, {"c"}], {"both": [{"a", "d"}, {"c"}], "first": [{"d"}, {"c"}]})
    assert found["both"] == pytest.approx([0.75, 0.25])
    assert found["first"] == pytest.approx([0.5, 0.5])


def test_nothing_that_is_held_out_is_trained_on(tmp_path: Path) -> None:
    for folder, number in (("imagenet-dev/val/n2", 20), ("imagenet-dev/val/n1", 10), ("imagenette/train/n1", 4)):
        (tmp_path / folder).mkdir(parents=True)
        for image in range(number):
            (tmp_path / folder / f"{image:02}.jpg").touch()
    (tmp_path / "imagenet-dev/class_map.txt").write_text("n1\nn2\n")
    train, held = Photographs.split(tmp_path)
    assert len(train.files) == 4 + 21 and len(held.files) == 9 and not set(train.files) & set(held.files)
    assert held.classes == (0, 0, 0, 1, 1, 1, 1, 1, 1)
    names = class_names()
    assert len(names) == 1000 and names[:3] == ["tench", "goldfish", "great white shark"]
