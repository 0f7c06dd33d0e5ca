"""Images to measure on, read by timm: its sources, its transforms, its loader. Here is only the glue."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo, create_dataset, create_loader, infer_imagenet_subset
from torch import nn
from torch.utils.data import IterableDataset
from torchvision.transforms import Compose

from tokensieve.data.classes import ClassNames
from tokensieve.data.folders import is_no_class, leave_out
from tokensieve.data.options import BATCH_SIZE, DataOptions
from tokensieve.data.pictures import InMode
from tokensieve.data.stream import ImageStream, ReadableImages, collate, evenly
from tokensieve.data.transforms import data_config
from tokensieve.errors import TokensieveError
from tokensieve.utils.above import above
from tokensieve.utils.names import nearest
from tokensieve.utils.processes import Processes, leave_interrupts_to_the_parent

CLASS_MAP = "class_map.txt"
MODES = {1: "L", 3: "RGB"}
DECODING = ("hfids", "wds")  # streams that decode images themselves; they convert none if no mode is asked for
SOURCES = ("", "folder", "digits", "hfds", "hfids", "wds", "tfds", "torch")


def open_images(options: DataOptions, model: nn.Module, classes: ClassNames | None = None) -> ImageStream:
    """The images that ``options`` name, prepared for ``model``.

    Args:
        options: where they are, and how they are prepared.
        model: the model.
        classes: numbers the classes, in place of a class map; default as the model's answers are numbered.

    Raises:
        TokensieveError: no such folder or data set, no image in it, or classes that are not the model's.
    """
    config = data_config(model, options)
    mode = image_mode(config)
    notes: list[str] = []
    images = labelled_images(options, model, mode, notes, classes)
    limit, total = options.limit, len(images) or None
    if isinstance(images, IterableDataset):
        loader = _loader(images, config, options)
        streamed: Any = images
        if not streamed.reader.input_img_mode:  # timm leaves the mode to the transform
            streamed.transform = Compose([InMode(mode), streamed.transform])
        total = total if limit is None else min(limit, total or limit)
        return ImageStream(loader, total, limit, tuple(notes))
    indices = evenly(len(images), limit)

    def divide(processes: Processes) -> tuple[Any, int]:
        size = options.batch_size or BATCH_SIZE
        starts = range(processes.index * size, len(indices), processes.count * size)
        own = [index for start in starts for index in indices[start : start + size]]
        return _loader(ReadableImages(images, own, mode), config, options), len(own)

    return ImageStream(divide(Processes())[0], len(indices), None, tuple(notes), divide)


def _loader(images: Any, config: dict[str, Any], options: DataOptions) -> Any:
    """timm's loader of ``images``, in their order."""
    return create_loader(
        images,
        input_size=config["input_size"],
        batch_size=options.batch_size or BATCH_SIZE,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        num_workers=options.workers,
        device=torch.device("cpu"),
        use_prefetcher=False,
        collate_fn=collate,
        worker_seeding=_seed_of,  # type: ignore[arg-type]  # timm takes a function as well
        persistent_workers=True,
    )


def image_mode(config: dict[str, Any]) -> str:
    """Pillow's mode for images of a data config.

    Raises:
        TokensieveError: no image has as many channels.
    """
    mode = MODES.get(config["input_size"][0])
    if mode is None:
        raise TokensieveError(
            f"images have 1 or 3 channels and this model takes {config['input_size'][0]}: give a model that takes those"
        )
    return mode


def labelled_images(
    options: DataOptions, model: nn.Module, mode: str, notes: list[str], classes: ClassNames | None = None
) -> Any:
    """The data set that ``options`` name, its classes numbered as the model's answers are, or as ``classes`` are."""
    kind = _check_source(options)
    notes += [] if classes is None else classes.notes()
    if kind in ("", "folder"):
        return _labelled(options, model, mode, notes) if classes is None else _named(options, classes, mode, notes)
    images = _create(options, options.class_map, mode)
    if classes is not None:
        classes.check(getattr(getattr(images, "reader", None), "class_to_idx", None), options.dataset)
    return images


def unlabelled_images(options: DataOptions, mode: str) -> Any:
    """The data set that ``options`` name, whatever its classes are; a folder may hold images directly."""
    _check_source(options)
    return _create(options, None, mode)


def _seed_of(worker: Any) -> int:
    """The seed of a new worker: the only hook that timm's loader has there, used to set it up."""
    leave_interrupts_to_the_parent()
    return int(worker.seed)


def _kind(options: DataOptions) -> str:
    """The kind of the source: what its name begins with, in small letters; "" for a folder."""
    return options.dataset.partition("/")[0].lower()


def _check_source(options: DataOptions) -> str:
    """The kind of the source, checked."""
    kind = _kind(options)
    if kind not in SOURCES:
        raise TokensieveError(
            f"unknown data set {options.dataset!r}{nearest(kind, SOURCES)}: give digits, hfds/…, hfids/…, wds/…, "
            "tfds/… or torch/…, or leave it out for a folder"
        )
    if kind in ("", "folder") and options.data is None:
        raise TokensieveError("no images are given: name a folder with --data, or a data set with --dataset")
    if kind in ("torch", "wds") and options.data is None:
        raise TokensieveError(f"the data set {options.dataset!r} needs its folder: name it with --data")
    if kind in ("", "folder") and not Path(options.data or "").is_dir():
        wrong = "is not a folder" if Path(options.data or "").exists() else "does not exist"
        raise TokensieveError(
            f"the image folder {options.data!r} {wrong}: give --data FOLDER with one sub-folder for each class"
        )
    return kind


def _create(options: DataOptions, class_map: Any, mode: str) -> Any:
    source = options.dataset or options.data
    try:
        if options.dataset == "digits":
            return above("data set digits").open_split(options.split)  # of the demo extra
        return create_dataset(
            options.dataset,
            root=options.data,
            split=options.split,
            class_map=class_map or "",  # type: ignore[arg-type]  # timm takes a file name as well
            batch_size=options.batch_size or BATCH_SIZE,
            num_samples=options.limit,
            input_img_mode="" if _kind(options) in DECODING else mode,
        )
    except ModuleNotFoundError as error:
        raise TokensieveError(f"cannot read images from {source!r}: pip install {error.name} first") from error
    except Exception as error:  # every source fails in its own way
        reason = str(error).partition("\n")[0] or type(error).__name__
        if "Found 0 images" in reason:
            mapped = f" in a folder that the class map {class_map!r} lists" if isinstance(class_map, str) else ""
            reason = f"there is no image{mapped}; expected one sub-folder of images for each class"
        raise TokensieveError(f"cannot read images from {source!r}: {reason}") from error


def _labelled(options: DataOptions, model: nn.Module, mode: str, notes: list[str]) -> Any:
    """The images of a folder, their classes numbered as the model's answers are."""
    class_map: str | dict[str, int] | None = _class_map(options, notes)
    images = _create(options, class_map, mode)
    _check_split(images, options)
    subset = infer_imagenet_subset(model)
    if class_map is None and subset is not None:
        order = ImageNetInfo(subset).label_names()
        if set(images.reader.class_to_idx) <= set(order):
            notes.append(f"folders are named by WordNet identifiers: classes are numbered as in {subset}")
            class_map = {name: number for number, name in enumerate(order)}
            images = _create(options, class_map, mode)
    _leave_out(images, bool(class_map), options, notes)
    _check_classes(images, options, model, class_map, notes)
    return images


def _named(options: DataOptions, classes: ClassNames, mode: str, notes: list[str]) -> Any:
    """The images of a folder, their classes numbered as in ``classes``."""
    images = _create(options, None, mode)
    _check_split(images, options)
    _leave_out(images, False, options, notes)
    if "" in images.reader.class_to_idx:
        raise _flat(options)
    classes.number(images.reader, images.reader.root, notes)
    return images


def _check_split(images: Any, options: DataOptions) -> None:
    root, asked = Path(images.reader.root), Path(options.data or "")
    if root == asked and options.split not in ("", DataOptions.split):
        raise TokensieveError(
            f"{options.data!r} has no split {options.split!r}: expected a sub-folder of that name, or no --split"
        )


def _leave_out(images: Any, numbered: bool, options: DataOptions, notes: list[str]) -> None:
    leave_out(images, numbered, notes)
    if not images.reader.samples:
        raise TokensieveError(f"{options.data!r} has images in hidden folders alone: expected one sub-folder a class")


def _flat(options: DataOptions) -> TokensieveError:
    return TokensieveError(
        f"{options.data!r} has its images directly in it: expected one sub-folder of images for each class"
    )


def _class_map(options: DataOptions, notes: list[str]) -> str | None:
    """The class map given, or one beside the images."""
    root = Path(options.data or "")
    if options.class_map is not None:
        if not Path(options.class_map).is_file() and not (root / options.class_map).is_file():
            raise TokensieveError(f"the class map {options.class_map!r} is not a file")
        return options.class_map
    for place in (root, root.resolve().parent):
        if (place / CLASS_MAP).is_file():
            notes.append(f"classes are numbered by {place / CLASS_MAP}")
            return str(place / CLASS_MAP)
    return None


def _check_classes(images: Any, options: DataOptions, model: Any, class_map: Any, notes: list[str]) -> None:
    classes = getattr(model, "num_classes", None)
    numbered: dict[str, int] | None = getattr(images.reader, "class_to_idx", None)
    if not classes or not numbered:
        return
    if not class_map and not any(entry.is_dir() for entry in os.scandir(images.reader.root)):
        raise _flat(options)
    if not class_map and len(numbered) != classes:
        raise TokensieveError(
            f"{options.data!r} has images of {len(numbered)} classes and the model {classes} classes: give --class-map "
            "FILE, the class names in the order of the model's answers, or --num-classes"
        )
    if class_map and max(numbered.values()) >= classes:
        raise TokensieveError(
            f"the class map has {len(numbered)} classes and the model {classes}: they do not belong together"
        )
    folders = {entry.name for entry in os.scandir(images.reader.root) if entry.is_dir()}
    unknown = sorted(name for name in folders - set(numbered) if not is_no_class(name))
    if class_map and unknown:
        notes.append(f"{len(unknown)} folders are not in the class map and are left out, such as {unknown[0]!r}")
