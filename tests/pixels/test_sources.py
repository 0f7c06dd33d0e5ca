"""Readers: folders of images and masks or depth, NYU's .mat file, Hugging Face data sets; all offline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tokensieve.data.options import DataOptions
from tokensieve.data.transforms import data_config
from tokensieve.errors import TokensieveError
from tokensieve.pixels.data import open_pairs, open_source, plain_pairs, training_pairs
from tokensieve.pixels.depth import Depth
from tokensieve.pixels.model import PixelModel, pixel_model
from tokensieve.pixels.segmentation import Segmentation
from tokensieve.pixels.sources import find_pairs

Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def segmenting() -> PixelModel:
    return pixel_model(timm.create_model("test_vit", img_size=(48, 64)), Segmentation(classes=3))


def arguments(folder: Any, **changes: Any) -> DataOptions:
    return DataOptions(**({"data": str(folder), "workers": 0, "batch_size": 3} | changes))


def test_a_folder_gives_images_of_the_models_size_and_targets_of_their_own(
    scenes: Folder, segmenting: PixelModel
) -> None:
    stream = open_pairs(arguments(scenes(size=(31, 41), split="val")), segmenting)
    batches = list(stream)
    assert [tuple(images.shape) for images, _ in batches] == [(3, 3, 48, 64), (1, 3, 48, 64)]
    assert all(tuple(target.shape) == (31, 41) for _, targets in batches for target in targets)
    assert stream.first(6).shape == (6, 3, 48, 64)


@pytest.mark.parametrize("layout", ["val/images", "images/val", "images", "images/validation"])
def test_usual_layouts_are_found(scenes: Folder, tmp_path: Path, layout: str) -> None:
    root = scenes(2)
    moved = tmp_path / "moved"
    for kind, name in (("images", "images"), ("masks", "annotations")):
        target = moved / layout.replace("images", name)
        target.parent.mkdir(parents=True, exist_ok=True)
        (root / kind).rename(target)
    pairs, notes = find_pairs(str(moved), "validation", Segmentation(classes=3))
    assert [path.stem for path in pairs.images] == ["0", "1"] and not notes


def test_what_is_missing_is_one_sentence(scenes: Folder, tmp_path: Path) -> None:
    task = Segmentation(classes=3)
    root = scenes(2, split="val")
    with pytest.raises(TokensieveError, match="does not exist"):
        find_pairs(str(tmp_path / "no"), "val", task)
    with pytest.raises(TokensieveError, match=r"has no folders of images and masks of the split 'train': expected tr"):
        find_pairs(str(root), "train", task)
    (root / "val" / "masks" / "1.png").unlink()
    _, notes = find_pairs(str(root), "val", task)
    assert "1 images have no target" in notes[0]
    (root / "val" / "masks" / "0.png").unlink()
    with pytest.raises(TokensieveError, match=r"no image of .* has a target"):
        find_pairs(str(root), "val", task)


def test_depth_is_read_as_millimetres_metres_or_what_is_said(tmp_path: Path) -> None:
    millimetres = np.array([[1500, 0]], dtype=np.uint16)
    assert Depth().target(millimetres, "x").tolist() == [[1.5, 0.0]]
    assert Depth().target(np.array([[1.5]], dtype=np.float32), "x").tolist() == [[1.5]]
    assert Depth(depth_scale=256).target(np.array([[512]], dtype=np.uint16), "x").tolist() == [[2.0]]
    with pytest.raises(TokensieveError, match="8 bits a pixel, too few for depth"):
        Depth().target(np.zeros((2, 2), dtype=np.uint8), "x")
    with pytest.raises(TokensieveError, match=r"shape \(2, 2, 3\): expected one value for each pixel"):
        Depth().target(np.zeros((2, 2, 3), dtype=np.uint16), "x")


def test_masks_of_ade20k_start_at_one() -> None:
    task = Segmentation(classes=2, reduce_zero_label=True)
    assert task.target(np.array([[0, 1, 2]], dtype=np.uint8), "x").tolist() == [[255, 0, 1]]


def test_a_class_out_of_range_names_the_mask(scenes: Folder, segmenting: PixelModel) -> None:
    root = scenes(2, split="val")
    Image.fromarray(np.full((48, 64), 7, dtype=np.uint8)).save(root / "val" / "masks" / "1.png")
    with pytest.raises(TokensieveError, match=r"the mask .*1.png has class 7, and the classes are 0 to 2 with 255"):
        list(open_pairs(arguments(root), segmenting))


def test_a_mask_of_another_size_works_and_one_of_another_shape_does_not(scenes: Folder, segmenting: PixelModel) -> None:
    root = scenes(2, split="val")
    Image.fromarray(np.zeros((96, 128), dtype=np.uint8)).save(root / "val" / "masks" / "0.png")
    (_, targets), *_ = open_pairs(arguments(root), segmenting)
    assert [tuple(target.shape) for target in targets] == [(96, 128), (48, 64)]
    pairs, _ = training_pairs(arguments(root, split="val"), segmenting, scale=(0.5, 1.0), hflip=0.5, color_jitter=0.1)
    assert pairs[0][1].shape == (48, 64)
    Image.fromarray(np.zeros((40, 40), dtype=np.uint8)).save(root / "val" / "masks" / "0.png")
    with pytest.raises(TokensieveError, match=r"is 40 × 40 and its image 64 × 48: other proportions"):
        list(open_pairs(arguments(root), segmenting))


def test_an_image_that_cannot_be_read_is_left_out_and_named(scenes: Folder, segmenting: PixelModel) -> None:
    root = scenes(3, split="val")
    (root / "val" / "images" / "1.png").write_bytes(b"no picture")
    stream = open_pairs(arguments(root), segmenting)
    assert sum(len(images) for images, _ in stream) == 2
    assert [Path(name).name for name in stream.skipped] == ["1.png"]


def test_image_and_mask_are_changed_alike(tmp_path: Path, segmenting: PixelModel) -> None:
    """A mask that repeats a picture's red channel repeats it after every crop and mirror."""
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    mask = np.zeros((48, 64), dtype=np.uint8)
    mask[10:30, 5:20], mask[35:45, 40:60] = 1, 2
    Image.fromarray(np.stack([mask * 100] * 3, axis=2)).save(tmp_path / "images" / "a.png")
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    asked = arguments(tmp_path, split="", interpolation="nearest", mean=(0.0,), std=(1.0,))
    pairs, _ = training_pairs(asked, segmenting, scale=(0.3, 0.8), hflip=0.5, color_jitter=0.0)
    seen = set()
    for _ in range(6):
        image, target = pairs[0]
        assert image is not None
        assert ((image[0] * 255 / 100).round() == target).float().mean() > 0.97
        seen.add(tuple(target.flatten().tolist()))
    assert len(seen) > 1
    whole = plain_pairs(pairs, data_config(segmenting, asked), 5)
    ((images, targets),) = whole
    assert torch.equal((images[0, 0] * 255 / 100).round().long(), targets[0])


def test_nyus_mat_file(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the dense extra is not installed")
    file = tmp_path / "nyu.mat"
    images = np.zeros((3, 3, 8, 6), dtype=np.uint8)  # (N, 3, columns, rows), as MATLAB's order comes out
    images[1, 0, 7, 0] = 200  # red, at the right end of the first row
    with h5py.File(file, "w") as content:
        content["images"] = images
        content["depths"] = np.full((3, 8, 6), 2.5, dtype=np.float32)
        content["labels"] = np.ones((3, 8, 6), dtype=np.uint16)
    source, notes = open_source(arguments(file), Depth())
    assert "all 3 images" in notes[0] and len(source) == 3
    image, raw = source.read(1)
    assert image.size == (8, 6) and image.getpixel((7, 0)) == (200, 0, 0)
    assert Depth().target(raw, "x").shape == (6, 8) and float(Depth().target(raw, "x").max()) == 2.5
    scipy = pytest.importorskip("scipy.io", reason="scipy is not installed")
    scipy.savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[1], [3]]), "testNdxs": np.array([[2]])})
    assert [open_source(arguments(file, split=s), Depth())[0].name(0)[:8] for s in ("train", "test")] == [
        "number 0",
        "number 1",
    ]
    with pytest.raises(TokensieveError, match="NYU has the splits train and test, got 'extra'"):
        open_source(arguments(file, split="extra"), Depth())
    other = tmp_path / "other.mat"
    other.write_bytes(b"MATLAB 5.0")
    with pytest.raises(TokensieveError, match=r"is not NYU Depth V2's labelled \.mat file"):
        open_source(arguments(other), Depth())


def test_hugging_face_data_sets_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the dense extra is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    image, mask = Image.new("RGB", (8, 6)), Image.new("L", (8, 6), 2)
    rows = datasets.Dataset.from_dict(
        {"image": [image] * 2, "annotation": [mask] * 2},
        features=datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()}),
    )
    datasets.DatasetDict({"validation": rows}).save_to_disk(str(tmp_path / "ade"))
    asked = arguments(None, data=None, dataset=f"hfds/{tmp_path / 'ade'}")
    source, _ = open_source(asked, Segmentation(classes=3))
    found, raw = source.read(1)
    assert found.size == (8, 6) and raw.shape == (6, 8) and raw.max() == 2
    with pytest.raises(TokensieveError, match="has no column for depth, such as 'depth_map': it has image, annotation"):
        open_source(asked, Depth())
    with pytest.raises(TokensieveError, match="has no split 'train': it has validation"):
        open_source(arguments(None, data=None, dataset=asked.dataset, split="train"), Segmentation(classes=3))
    with pytest.raises(TokensieveError, match="cannot get the data set 'nobody/nothing'"):
        open_source(arguments(None, data=None, dataset="hfds/nobody/nothing"), Depth())
    with pytest.raises(TokensieveError, match="reads folders and hfds/owner/name, got 'wds/x'"):
        open_source(arguments(None, data=None, dataset="wds/x"), Depth())
