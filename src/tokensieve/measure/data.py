"""Images to measure on, read by timm: its sources, its transforms, its loader. Here is only the glue.

A file that cannot be read is left out of its batch, counted and named; timm's own data set would put the next image
in its place and count that one twice.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageNetInfo, create_dataset, create_loader, infer_imagenet_subset
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, default_collate

from tokensieve.errors import TokensieveError
from tokensieve.measure.fidelity import NO_LABEL
from tokensieve.measure.transform import data_config
from tokensieve.registry import nearest

CLASS_MAP = "class_map.txt"
MODES = {1: "L", 3: "RGB"}
SOURCES = ("", "folder", "hfds", "hfids", "wds", "tfds", "torch")


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
    limit: int | None = None


class ReadableImages(Dataset[tuple[Any, Any]]):
    """Some images of a timm or torchvision data set; one that cannot be read comes as ``(None, its name)``.

    Args:
        images: the data set.
        indices: which of its images.
        mode: Pillow's mode to convert them to.
    """

    def __init__(self, images: Any, indices: list[int], mode: str) -> None:
        self.images = images
        self.indices = indices
        self.mode = mode
        self.transform: Callable[[Any], Any] | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        index = self.indices[number]
        try:
            image, target = self._read(index)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None, self._name(index)
        label = NO_LABEL if target is None else target
        return (image if self.transform is None else self.transform(image)), label

    def _read(self, index: int) -> tuple[Image.Image, Any]:
        reader = getattr(self.images, "reader", None)
        if reader is None:  # torchvision's data sets open their images themselves
            image, target = self.images[index]
            return image.convert(self.mode), target
        file, target, *_ = reader[index]
        with Image.open(file) as opened:
            return opened.convert(self.mode), target

    def _name(self, index: int) -> str:
        named = getattr(self.images, "filename", None)
        return str(named(index)) if named is not None else f"number {index}"


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
        TokensieveError: no such folder or data set, no image in it, or classes that are not the model's.
    """
    kind = arguments.dataset.partition("/")[0].lower()
    folder = kind in ("", "folder")
    _check_source(arguments, kind)
    config = data_config(
        model,
        img_size=arguments.img_size,
        crop_pct=arguments.crop_pct,
        interpolation=arguments.interpolation,
        mean=arguments.mean,
        std=arguments.std,
    )
    mode = MODES.get(config["input_size"][0])
    if mode is None:
        raise TokensieveError(
            f"images have 1 or 3 channels and this model takes {config['input_size'][0]}: give a model that takes those"
        )
    notes: list[str] = []
    images = _labelled(arguments, model, mode, notes) if folder else _create(arguments, arguments.class_map, mode)
    limit, total = arguments.limit, len(images) or None
    if not isinstance(images, IterableDataset):
        used = len(images) if limit is None else min(limit, len(images))
        images = ReadableImages(images, [number * len(images) // used for number in range(used)], mode)
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
        worker_seeding=_leave_interrupts_to_the_parent,  # type: ignore[arg-type]  # timm takes a function as well
        persistent_workers=True,
    )
    return ImageStream(loader, total if limit is None else min(limit, total or limit), limit, tuple(notes))


def _leave_interrupts_to_the_parent(worker: Any) -> int:
    """Ctrl-C reaches every process of a terminal; a reader that it kills would look like a crash to the one that asks.

    The only hook that timm's loader has in a new worker asks for its seed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return int(worker.seed)


def _check_source(arguments: DataArguments, kind: str) -> None:
    if kind not in SOURCES:
        raise TokensieveError(
            f"unknown data set {arguments.dataset!r}{nearest(kind, SOURCES)}: give hfds/…, hfids/…, wds/…, tfds/… or "
            "torch/…, or leave it out for a folder"
        )
    if kind in ("", "folder") and arguments.data is None:
        raise TokensieveError("no images are given: name a folder with --data, or a data set with --dataset")
    if kind in ("torch", "wds") and arguments.data is None:
        raise TokensieveError(f"the data set {arguments.dataset!r} needs its folder: name it with --data")
    if kind in ("", "folder") and not Path(arguments.data or "").is_dir():
        wrong = "is not a folder" if Path(arguments.data or "").exists() else "does not exist"
        raise TokensieveError(
            f"the image folder {arguments.data!r} {wrong}: give --data FOLDER with one sub-folder for each class"
        )


def _create(arguments: DataArguments, class_map: Any, mode: str) -> Any:
    source = arguments.dataset or arguments.data
    try:
        return create_dataset(
            arguments.dataset,
            root=arguments.data,
            split=arguments.split,
            class_map=class_map or "",  # type: ignore[arg-type]  # timm takes a file name as well
            batch_size=arguments.batch_size,
            num_samples=arguments.limit,
            input_img_mode=mode,
        )
    except ModuleNotFoundError as error:
        raise TokensieveError(f"cannot read images from {source!r}: pip install {error.name} first") from error
    except Exception as error:  # every source fails in its own way
        reason = str(error).partition("\n")[0] or type(error).__name__
        if "Found 0 images" in reason:
            mapped = f" in a folder that the class map {class_map!r} lists" if isinstance(class_map, str) else ""
            reason = f"there is no image{mapped}; expected one sub-folder of images for each class"
        raise TokensieveError(f"cannot read images from {source!r}: {reason}") from error


def _labelled(arguments: DataArguments, model: nn.Module, mode: str, notes: list[str]) -> Any:
    """The images of a folder, their classes numbered as the model's answers are."""
    class_map: str | dict[str, int] | None = _class_map(arguments, notes)
    images = _create(arguments, class_map, mode)
    root, asked = Path(images.reader.root), Path(arguments.data or "")
    if root == asked and arguments.split != DataArguments.split:
        raise TokensieveError(
            f"{arguments.data!r} has no split {arguments.split!r}: expected a sub-folder of that name, or no --split"
        )
    subset = infer_imagenet_subset(model)
    if class_map is None and subset is not None:
        order = ImageNetInfo(subset).label_names()
        if set(images.reader.class_to_idx) <= set(order):
            notes.append(f"folders are named by WordNet identifiers: classes are numbered as in {subset}")
            class_map = {name: number for number, name in enumerate(order)}
            images = _create(arguments, class_map, mode)
    _check_classes(images, arguments, model, class_map, notes)
    return images


def _class_map(arguments: DataArguments, notes: list[str]) -> str | None:
    """The class map given, or one beside the images."""
    root = Path(arguments.data or "")
    if arguments.class_map is not None:
        if not Path(arguments.class_map).is_file() and not (root / arguments.class_map).is_file():
            raise TokensieveError(f"the class map {arguments.class_map!r} is not a file")
        return arguments.class_map
    for place in (root, root.resolve().parent):
        if (place / CLASS_MAP).is_file():
            notes.append(f"classes are numbered by {place / CLASS_MAP}")
            return str(place / CLASS_MAP)
    return None


def _check_classes(images: Any, arguments: DataArguments, model: Any, class_map: Any, notes: list[str]) -> None:
    classes = getattr(model, "num_classes", None)
    numbered: dict[str, int] | None = getattr(images.reader, "class_to_idx", None)
    if not classes or not numbered:
        return
    if not class_map and not any(entry.is_dir() for entry in os.scandir(images.reader.root)):
        raise TokensieveError(
            f"{arguments.data!r} has its images directly in it: expected one sub-folder of images for each class"
        )
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
