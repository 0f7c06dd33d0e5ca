"""Images to measure on: every source, the classes, the transform, and readers that Ctrl-C does not kill."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import nn

import tokensieve as ts
from tokensieve.data.images import open_images
from tokensieve.data.options import DataOptions, TransformOptions
from tokensieve.data.transforms import data_config

WNIDS = ("n01440764", "n02102040", "n02979186")


def model(**options: Any) -> nn.Module:
    return timm.create_model("test_vit", **options).eval()


def write(folder: Path, classes: tuple[str, ...] = WNIDS, each: int = 2) -> Path:
    for number, label in enumerate(classes):
        (folder / label).mkdir(parents=True)
        for index in range(each):
            Image.new("RGB", (40, 40), (60 * number, 90 * index, 120)).save(folder / label / f"{index}.png")
    return folder


def labels_of(stream: Any) -> list[int]:
    return [int(label) for _, labels in stream for label in labels]


def test_folders_named_by_wordnet_are_numbered_as_the_model_is(tmp_path: Path) -> None:
    write(tmp_path / "val")
    write(tmp_path / "train", each=1)
    for data in (tmp_path, tmp_path / "val"):
        stream = open_images(DataOptions(data=str(data), workers=0), model())
        assert labels_of(stream) == [0, 0, 217, 217, 482, 482]
        assert any("WordNet" in note for note in stream.notes)
    assert labels_of(open_images(DataOptions(data=str(tmp_path), split="train", workers=0), model())) == [0, 217, 482]


def test_a_split_that_is_not_there_is_refused_and_not_replaced_by_all(tmp_path: Path) -> None:
    write(tmp_path / "val")
    with pytest.raises(ts.TokensieveError, match="has no split 'test'"):
        open_images(DataOptions(data=str(tmp_path), split="test", workers=0), model())


def test_images_without_class_folders_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "0.png")
    with pytest.raises(ts.TokensieveError, match="has its images directly in it"):
        open_images(DataOptions(data=str(tmp_path), workers=0), model())


def test_a_file_is_not_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ts.TokensieveError, match="is not a folder"):
        open_images(DataOptions(data=str(tmp_path / "file")), model())


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("nope/x", "unknown data set 'nope/x'"),
        ("hfd/x", "did you mean 'hfds'"),
        ("torch/cifar10", "name it with --data"),
        ("wds/x", "name it with --data"),
    ],
)
def test_data_sets_that_timm_does_not_have(dataset: str, words: str) -> None:
    with pytest.raises(ts.TokensieveError, match=words):
        open_images(DataOptions(data=None, dataset=dataset), model())


def test_a_data_set_of_torchvision_is_read_too(tmp_path: Path) -> None:
    write(tmp_path / "val", ("a", "b"))
    arguments = DataOptions(data=str(tmp_path), dataset="torch/image_folder", workers=0, limit=3)
    stream = open_images(arguments, model(num_classes=2))
    assert labels_of(stream) == [0, 0, 1]
    (tmp_path / "val" / "a" / "0.png").write_bytes(b"no image")
    stream = open_images(arguments, model(num_classes=2))
    assert labels_of(stream) == [0, 1]
    assert list(stream.skipped) == ["number 0"]


def test_a_model_of_one_channel_gets_grey_images(tmp_path: Path) -> None:
    write(tmp_path, ("a",))
    grey = model(in_chans=1, num_classes=1)
    images, _ = next(iter(open_images(DataOptions(data=str(tmp_path), workers=0), grey)))
    assert images.shape == (2, 1, 160, 160)
    with pytest.raises(ts.TokensieveError, match="images have 1 or 3 channels and this model takes 4"):
        open_images(DataOptions(data=str(tmp_path), workers=0), model(in_chans=4, num_classes=1))


def test_images_come_at_the_size_that_the_model_was_built_for(tmp_path: Path) -> None:
    write(tmp_path, ("a",))
    stream = open_images(DataOptions(data=str(tmp_path), workers=0), model(img_size=96, num_classes=1))
    assert stream.first(2).shape == (2, 3, 96, 96)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop_pct": 0.0}, "crop_pct"),
        ({"crop_pct": 1.5}, "crop_pct"),
        ({"interpolation": "bicubc"}, "did you mean 'bicubic'"),
        ({"mean": (0.5, 0.5)}, "mean must be one number or 3"),
        ({"std": (0.5, 0.0, 0.5)}, "std must be above 0"),
    ],
)
def test_a_transform_that_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ts.TokensieveError, match=words):
        data_config(model(), TransformOptions(**options))


def test_the_transform_is_the_models_own_but_for_what_is_asked() -> None:
    config = data_config(model(), TransformOptions(mean=(0.25,), crop_pct=0.5))
    assert config["mean"] == (0.25,) * 3 and config["crop_pct"] == 0.5
    assert config["std"] == model().pretrained_cfg["std"]  # type: ignore[index, union-attr]
    assert config["input_size"] == (3, 160, 160)


def test_an_interrupt_of_the_terminal_does_not_kill_the_readers(tmp_path: Path) -> None:
    write(tmp_path, ("a",), each=40)
    before = set(multiprocessing.active_children())
    stream = open_images(DataOptions(data=str(tmp_path), workers=1, batch_size=1), model(num_classes=1))
    seen = 0
    for _ in stream:
        if not seen:
            (reader,) = set(multiprocessing.active_children()) - before
            os.kill(int(reader.pid or 0), signal.SIGINT)
        seen += 1
    assert seen == 40 and reader.is_alive()


def test_images_may_be_read_again_after_a_look_at_the_first(tmp_path: Path) -> None:
    write(tmp_path, ("a",), each=12)
    stream = open_images(DataOptions(data=str(tmp_path), workers=2, batch_size=2), model(num_classes=1))
    first = stream.first(3)
    whole = torch.cat([images for images, _ in stream])
    assert torch.equal(whole[:3], first) and len(whole) == 12
