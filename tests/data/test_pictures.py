"""Images of every mode and depth, and folders that are no classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import tokensieve as ts
from tests.helpers.calling import call
from tokensieve.data.images import open_images
from tokensieve.data.options import DataOptions
from tokensieve.data.pictures import UnknownPixelsError, in_mode

RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)
EIGHT = (RAMP * 255).round().astype(np.uint8)
# The same picture in every depth that Pillow holds.
DEPTHS = {
    "L": Image.fromarray(EIGHT),
    "I;16": Image.fromarray((RAMP * 65535).round().astype(np.uint16)),
    "I;16B": Image.fromarray((RAMP * 65535).round().astype(">u2")),
    "I": Image.fromarray((RAMP * 65535).round().astype(np.int32)),
    "I of 8 bits": Image.fromarray(EIGHT.astype(np.int32)),
    "F of shares": Image.fromarray(RAMP.astype(np.float32)),
    "F of 8 bits": Image.fromarray((RAMP * 255).astype(np.float32)),
    "F of 16 bits": Image.fromarray((RAMP * 65535).astype(np.float32)),
    "RGB": Image.fromarray(EIGHT).convert("RGB"),
    "RGBA": Image.fromarray(EIGHT).convert("RGBA"),
    "LA": Image.fromarray(EIGHT).convert("LA"),
    "P": Image.fromarray(EIGHT).convert("P"),
    "CMYK": Image.fromarray(EIGHT).convert("RGB").convert("CMYK"),
}


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_picture_looks_the_same_in_every_depth(depth: str, mode: str) -> None:
    read = in_mode(DEPTHS[depth], mode)
    assert read.mode == mode
    values = np.asarray(read).astype(int).reshape(64, 64, -1)
    assert np.abs(values - EIGHT[..., None].astype(int)).max() <= 1


def test_a_dark_picture_of_16_bits_stays_dark() -> None:
    dark = Image.fromarray(np.full((4, 4), 200, dtype=np.uint16))
    assert np.asarray(in_mode(dark, "L")).max() == 1


def test_a_palette_with_a_transparent_colour() -> None:
    image = Image.fromarray(EIGHT).convert("RGB").quantize(16)
    image.info["transparency"] = 3
    assert np.array_equal(np.asarray(in_mode(image, "RGB")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    "values",
    [
        np.full((4, 4), -1.0, dtype=np.float32),
        np.full((4, 4), np.nan, dtype=np.float32),
        np.full((4, 4), 70000, dtype=np.int32),
    ],
)
def test_values_that_are_no_brightness_are_refused(values: Any) -> None:
    with pytest.raises(UnknownPixelsError, match=r"its values \(mode .\) go from .*expected 0 to 65535"):
        in_mode(Image.fromarray(values), "RGB")
    with pytest.raises(UnknownPixelsError, match="its mode LAB cannot be converted to L"):
        in_mode(Image.new("LAB", (4, 4)), "L")


def vit() -> Any:
    return timm.create_model("test_vit", img_size=64, num_classes=2).eval()


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """Two classes, the same pictures in 8 bits and in 16."""
    for number, (kind, depth) in enumerate((("a", "L"), ("b", "I;16"))):
        (tmp_path / kind).mkdir()
        DEPTHS[depth].save(tmp_path / kind / f"{number}.png")
    return tmp_path


def test_classification_reads_16_bits_as_8(deep: Path) -> None:
    ((images, labels),) = list(open_images(DataOptions(data=str(deep), workers=0), vit()))
    assert labels.tolist() == [0, 1]
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=0.02)
    assert images.std() > 0.1


def test_an_unreadable_depth_is_named_with_its_mode(deep: Path) -> None:
    Image.fromarray(np.full((8, 8), -1.0, dtype=np.float32)).save(deep / "a" / "wrong.png", format="TIFF")
    stream = open_images(DataOptions(data=str(deep), workers=0), vit())
    assert sum(len(images) for images, _ in stream) == 2
    (skipped,) = stream.skipped
    assert "wrong.png" in skipped and "mode F" in skipped


def test_depth_and_segmentation_read_16_bits_as_8(tmp_path: Path) -> None:
    from tokensieve.pixels.sources import FolderPairs

    for depth, name in (("L", "eight.png"), ("I;16", "sixteen.png")):
        DEPTHS[depth].save(tmp_path / name)
    target = tmp_path / "target.png"
    DEPTHS["I;16"].save(target)
    pairs = FolderPairs((tmp_path / "eight.png", tmp_path / "sixteen.png"), (target, target))
    eight, sixteen = (np.asarray(pairs.read(number)[0]).astype(int) for number in range(2))
    assert np.abs(eight - sixteen).max() <= 1
    assert pairs.read(0)[1].max() == 65535  # targets keep their numbers


def test_show_reads_16_bits_as_8(tmp_path: Path) -> None:
    from tokensieve.show.images import read_image

    read = {}
    for depth in ("L", "I;16", "F of shares"):
        file = tmp_path / ("image.tif" if depth.startswith("F") else "image.png")
        DEPTHS[depth].save(file)
        read[depth] = np.asarray(read_image(file)).astype(int)
    assert np.abs(read["L"] - read["I;16"]).max() <= 1 and np.abs(read["L"] - read["F of shares"]).max() <= 1
    Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(ts.TokensieveError, match=r"cannot read .*nan.tif as an image: its values \(mode F\)"):
        read_image(tmp_path / "nan.tif")


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two classes of one image each, and what programs leave behind."""
    root = tmp_path / "images"
    junk = (".ipynb_checkpoints", "__MACOSX/dog", ".cache/cat", "cat/.ipynb_checkpoints")
    for folder in ("cat", "dog", "empty", *junk):
        (root / folder).mkdir(parents=True)
    for folder in ("cat", "dog", *junk):
        DEPTHS["RGB"].save(root / folder / "one.png")
    DEPTHS["RGB"].save(root / "dog" / "._one.png")
    return root


def test_folders_that_are_no_classes_are_left_out_and_named(classes: Path) -> None:
    stream = open_images(DataOptions(data=str(classes), workers=0), vit())
    assert [labels.tolist() for _, labels in stream] == [[0, 1]]
    hidden, empty = stream.notes
    assert hidden == ("5 image files are no class's and are left out: '.cache', '.ipynb_checkpoints', '__MACOSX'")
    assert empty == "1 folders are empty and count as no class: 'empty'"


def test_pictures_that_timm_does_not_read_are_named(classes: Path) -> None:
    for name in ("two.webp", "three.tif"):
        DEPTHS["RGB"].save(classes / "cat" / name)
    stream = open_images(DataOptions(data=str(classes), workers=0), vit())
    assert (
        "2 images are no .png, .jpg or .jpeg, which timm reads, and are left out, such as 'cat/three.tif'"
        in " ".join(stream.notes)
    )


def test_messages_count_classes_and_not_folders(classes: Path) -> None:
    model = timm.create_model("test_vit", img_size=64, num_classes=3)
    with pytest.raises(ts.TokensieveError, match="has images of 2 classes and the model 3 classes"):
        open_images(DataOptions(data=str(classes), workers=0), model)


def test_a_class_map_keeps_its_numbers(classes: Path) -> None:
    (classes / "class_map.txt").write_text("bird\ncat\ndog\n")
    model = timm.create_model("test_vit", img_size=64, num_classes=3)
    stream = open_images(DataOptions(data=str(classes), workers=0), model)
    assert [labels.tolist() for _, labels in stream] == [[1, 2]]


def test_nothing_but_hidden_folders(tmp_path: Path) -> None:
    (tmp_path / ".cat").mkdir()
    DEPTHS["RGB"].save(tmp_path / ".cat" / "one.png")
    with pytest.raises(ts.TokensieveError, match="has images in hidden folders alone"):
        open_images(DataOptions(data=str(tmp_path), workers=0), vit())


def test_eval_says_which_folders_are_left_out(classes: Path) -> None:
    done = call("eval", "test_vit", "--img-size", 64, "--num-classes", 2, "--data", classes, "-m", "tome:r=2", "-j", 0)
    assert done.exit_code == 0, done.output
    assert "'.ipynb_checkpoints'" in " ".join(done.output.split())
