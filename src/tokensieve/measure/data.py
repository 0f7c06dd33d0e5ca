"""Images to measure on, read by timm: its sources, its transforms, its loader. Here is only the glue.

A file that cannot be read is left out of its batch, counted and named; timm's own data set would put the next image
in its place and count that one twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageNetInfo, create_dataset, create_loader, infer_imagenet_subset, resolve_data_config
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, default_collate

from tokensieve.errors import TokensieveError

CLASS_MAP = "class_map.txt"


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """Where the images are and how they are prepared, named as in timm; None means what the model was trained with.

    Attributes:
        data: folder of images, one sub-folder a class, or the root of another kind of data set.
        dataset: timm's data set name, such as ``hfds/owner/name``, ``wds/name`` or ``torch/cifar10``; "" for a folder.
        split: name of the split.
        class_map: file that lists the class names in the order of the model's answers.
        img_size, crop_pct, interpolation, mean, std: the transform.
        batch_size, workers: the loader.
        in_chans: channels of an image.
        limit: use this many images, spread evenly over the data set.
    """

    data: str | None
    dataset: str = ""
    split: str = "validation"
    class_map: str | None = None
    img_size: int | None = None
    crop_pct: float | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    batch_size: int = 64
    workers: int = 4
    in_chans: int | None = None
    limit: int | None = None


class ReadableImages(Dataset[tuple[Any, Any]]):
    """Some images of a timm data set; one that cannot be read comes as ``(None, its name)``."""

    def __init__(self, images: Any, indices: list[int]) -> None:
        self.images = images
        self.indices = indices
        self.transform: Callable[[Any], Any] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        index = self.indices[number]
        try:
            file, target, *_ = self.images.reader[index]
            with Image.open(file) as opened:
                image = opened.convert(self.images.input_img_mode)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None, self.images.filename(index)
        label = -1 if target is None else target
        return (image if self.transform is None else self.transform(image)), label


def collate(samples: list[tuple[Any, Any]]) -> tuple[Tensor | None, Tensor | None, list[str]]:
    """Images (B, C, H, W) and labels (B,) of the readable samples, and the names of the others."""
    bad = [str(name) for image, name in samples if image is None]
    good = [sample for sample in samples if sample[0] is not None]
    if not good:
        return None, None, bad
    images, labels = default_collate(good)
    return images, labels, bad


class ImageStream:
    """Batches of images and labels, as often as wanted, always in the same order.

    Attributes:
        notes: what the user should know about how the images were found.
        skipped: names of the files that could not be read, in the order met.
        total: number of images, or None where the source does not say.
    """

    def __init__(self, loader: Any, total: int | None, limit: int | None, notes: tuple[str, ...]) -> None:
        self._loader = loader
        self._limit = limit
        self.total = total
        self.notes = notes
        self.skipped: dict[str, None] = {}

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        given = 0
        for images, labels, bad in self._loader:
            self.skipped.update(dict.fromkeys(bad))
            if images is None:
                continue
            if self._limit is not None and given + len(images) > self._limit:
                images, labels = images[: self._limit - given], labels[: self._limit - given]
            given += len(images)
            yield images, labels
            if given == self._limit:
                break
        if not given:
            names = ", ".join(list(self.skipped)[:3])
            raise TokensieveError(f"none of the {len(self.skipped)} image files can be read (the first are {names})")

    def first(self, count: int) -> Tensor:
        """(count, C, H, W): the first images, repeated from the start where there are fewer."""
        parts: list[Tensor] = []
        for images, _ in self:
            parts.append(images)
            if sum(map(len, parts)) >= count:
                break
        images = torch.cat(parts)
        return images[torch.arange(count) % len(images)]


def open_images(arguments: DataArguments, model: nn.Module) -> ImageStream:
    """The images that ``arguments`` name, prepared for ``model``.

    Raises:
        TokensieveError: no such folder, no image in it, or classes that are not the model's.
    """
    folder = arguments.dataset in ("", "folder")
    if folder and arguments.data is None:
        raise TokensieveError("no images are given: name a folder with --data, or a data set with --dataset")
    if folder and not Path(arguments.data or "").is_dir():
        raise TokensieveError(
            f"the image folder {arguments.data!r} does not exist: give --data FOLDER with one sub-folder for each class"
        )
    notes: list[str] = []
    class_map = _class_map(arguments, model, notes) if folder else arguments.class_map
    images = _create(arguments, class_map)
    if folder:
        _check_classes(images, arguments, model, class_map, notes)
    config = resolve_data_config(
        {
            "img_size": arguments.img_size,
            "crop_pct": arguments.crop_pct,
            "interpolation": arguments.interpolation,
            "mean": arguments.mean,
            "std": arguments.std,
            "in_chans": arguments.in_chans,
        },
        model=model,
    )
    limit, total = arguments.limit, len(images) or None
    if not isinstance(images, IterableDataset):
        used = len(images) if limit is None else min(limit, len(images))
        images = ReadableImages(images, [number * len(images) // used for number in range(used)])
        limit, total = None, used
    loader = create_loader(
        images,
        input_size=config["input_size"],
        batch_size=arguments.batch_size,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        num_workers=arguments.workers,
        device=torch.device("cpu"),
        use_prefetcher=False,
        collate_fn=collate,
        persistent_workers=False,
    )
    return ImageStream(loader, total if limit is None else min(limit, total or limit), limit, tuple(notes))


def _create(arguments: DataArguments, class_map: Any) -> Any:
    try:
        return create_dataset(
            arguments.dataset,
            root=arguments.data,
            split=arguments.split,
            class_map=class_map or "",  # type: ignore[arg-type]  # timm takes a file name as well
            batch_size=arguments.batch_size,
            num_samples=arguments.limit,
        )
    except Exception as error:  # every source fails in its own way
        reason = str(error).partition("\n")[0] or type(error).__name__
        if "Found 0 images" in reason:
            mapped = f" in a folder that the class map {class_map!r} lists" if isinstance(class_map, str) else ""
            reason = f"there is no image{mapped}; expected one sub-folder of images for each class"
        raise TokensieveError(f"cannot read images from {arguments.dataset or arguments.data!r}: {reason}") from error


def _class_map(arguments: DataArguments, model: nn.Module, notes: list[str]) -> str | dict[str, int] | None:
    """The class map given, one beside the images, or ImageNet's where the folders are named by its classes."""
    root = Path(arguments.data or "")
    if arguments.class_map is not None:
        if not Path(arguments.class_map).is_file() and not (root / arguments.class_map).is_file():
            raise TokensieveError(f"the class map {arguments.class_map!r} is not a file")
        return arguments.class_map
    for place in (root, root.resolve().parent):
        if (place / CLASS_MAP).is_file():
            notes.append(f"classes are numbered by {place / CLASS_MAP}")
            return str(place / CLASS_MAP)
    subset = infer_imagenet_subset(model)
    names = {entry.name for entry in os.scandir(root) if entry.is_dir()}
    if subset is not None and names:
        order = ImageNetInfo(subset).label_names()
        if names <= set(order):
            notes.append(f"folders are named by WordNet identifiers: classes are numbered as in {subset}")
            return {name: number for number, name in enumerate(order)}
    return None


def _check_classes(images: Any, arguments: DataArguments, model: Any, class_map: Any, notes: list[str]) -> None:
    classes = getattr(model, "num_classes", None)
    numbered: dict[str, int] | None = getattr(images.reader, "class_to_idx", None)
    if not classes or not numbered:
        return
    if not class_map and len(numbered) != classes:
        raise TokensieveError(
            f"{arguments.data!r} has {len(numbered)} class folders and the model {classes} classes: give --class-map "
            "FILE, the class names in the order of the model's answers, or --num-classes"
        )
    if class_map and max(numbered.values()) >= classes:
        raise TokensieveError(
            f"the class map has {len(numbered)} classes and the model {classes}: they do not belong together"
        )
    unknown = sorted({e.name for e in os.scandir(images.reader.root) if e.is_dir()} - set(numbered))
    if class_map and unknown:
        notes.append(f"{len(unknown)} folders are not in the class map and are left out, such as {unknown[0]!r}")
