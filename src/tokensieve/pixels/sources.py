"""Where images and their targets come from: pairs of files in two folders, or what other files hand out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokensieve.data.folders import is_no_class
from tokensieve.data.pictures import in_mode
from tokensieve.errors import TokensieveError
from tokensieve.pixels.task import Task

SPLITS = {
    "train": ("train", "training"),
    "validation": ("val", "validation", "valid"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}
IMAGES = ("images", "image", "rgb")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class Source(Protocol):
    """Images with their targets, in any order."""

    def __len__(self) -> int:
        """How many there are."""

    def read(self, index: int) -> tuple[Image.Image, NDArray[Any]]:
        """The RGB image and the target as it is stored, (H, W).

        Raises:
            OSError: one of them cannot be read.
        """

    def name(self, index: int) -> str:
        """What messages call it."""


@dataclass(frozen=True)
class FolderPairs:
    """Pairs of an image file and a target file of the same stem.

    Attributes:
        images, targets: the files, in the order of their names.
    """

    images: tuple[Path, ...]
    targets: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[Image.Image, NDArray[Any]]:
        with Image.open(self.images[index]) as opened:
            image = in_mode(opened, "RGB")
        return image, read_target(self.targets[index])

    def name(self, index: int) -> str:
        return str(self.targets[index])


def read_target(path: Path) -> NDArray[Any]:
    """The numbers of a mask or depth file; palette pictures give their indices."""
    if path.suffix.lower() == ".npy":
        try:
            values: NDArray[Any] = np.load(path, allow_pickle=False)
        except ValueError as error:
            raise OSError(str(error)) from error
        return values
    with Image.open(path) as opened:
        return np.asarray(opened)


def find_pairs(folder: str, split: str, task: Task) -> tuple[FolderPairs, tuple[str, ...]]:
    """The pairs of a split of a folder, and what the user should know about how they were found.

    ``FOLDER/val/images`` with ``FOLDER/val/masks``, ``FOLDER/images/val`` with ``FOLDER/masks/val``, or without a split
    ``FOLDER/images`` with ``FOLDER/masks``. ``depth``, ``annotations`` and other usual names do as well.

    Raises:
        TokensieveError: no such folder, or no image has a target.
    """
    root = Path(folder)
    if not root.is_dir():
        wrong = "is not a folder" if root.exists() else "does not exist"
        raise TokensieveError(f"the folder {folder!r} {wrong}: give --data FOLDER with images and {task.folders[0]}")
    names = SPLITS.get(split, (split,)) if split else ("",)
    for images, targets in _places(root, names, task):
        return _paired(images, targets, task)
    asked = f" of the split {split!r}" if split else ""
    example = Path(names[0]) if split else Path()
    raise TokensieveError(
        f"{folder!r} has no folders of images and {task.folders[0]}{asked}: expected "
        f"{example / 'images'} and {example / task.folders[0]} in it, or give --split"
    )


def _places(root: Path, splits: tuple[str, ...], task: Task) -> list[tuple[Path, Path]]:
    """Existing folders of images and of targets, most specific first; without a split where the root has none."""
    found = []
    candidates = [(root / s / i, root / s / t) for s in splits for i in IMAGES for t in task.folders]
    candidates += [(root / i / s, root / t / s) for s in splits for i in IMAGES for t in task.folders if s]
    for images, targets in candidates:
        if images.is_dir() and targets.is_dir():
            found.append((images, targets))
    divided = any((root / s).is_dir() for names in SPLITS.values() for s in names)
    if not found and not divided:
        whole = [(root / i, root / t) for i in IMAGES for t in task.folders]
        found = [(i, t) for i, t in whole if i.is_dir() and t.is_dir() and any(p.is_file() for p in i.iterdir())]
    return found


def _files(folder: Path) -> list[Path]:
    """What ``folder`` holds, without hidden files, in the order of the names."""
    return sorted(path for path in folder.iterdir() if not is_no_class(path.name))


def _paired(images: Path, targets: Path, task: Task) -> tuple[FolderPairs, tuple[str, ...]]:
    pictures = {path.stem: path for path in _files(images) if path.suffix.lower() in ENDINGS}
    maps = {path.stem: path for path in _files(targets) if path.suffix.lower() in task.endings}
    both = [stem for stem in pictures if stem in maps]
    if not both:
        first = next(iter(pictures.values()), None)
        reason = "there is no image" if first is None else f"{first.name} has no {first.stem}.png, and so with all"
        raise TokensieveError(f"no image of {str(images)!r} has a target in {str(targets)!r}: {reason}")
    notes = []
    alone = len(pictures) - len(both)
    if alone:
        notes.append(f"{alone} images have no target in {targets} and are left out")
    return FolderPairs(tuple(pictures[s] for s in both), tuple(maps[s] for s in both)), tuple(notes)
