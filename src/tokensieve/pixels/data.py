"""Streams of images with dense targets, for measuring and for training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tokensieve.data.options import PIXELS_BATCH_SIZE, DataOptions
from tokensieve.data.stream import ImageStream, evenly
from tokensieve.data.transforms import data_config
from tokensieve.errors import TokensieveError
from tokensieve.pixels.model import PixelModel
from tokensieve.pixels.sliding import filling
from tokensieve.pixels.sources import Source, find_pairs
from tokensieve.pixels.task import Task
from tokensieve.pixels.transforms import Augmented, Whole, check_proportions
from tokensieve.utils.processes import Processes, leave_interrupts_to_the_parent

LOOKED_AT = 16  # targets, before a training begins
Pair = tuple[Tensor | None, Any]
Transform = Callable[[Image.Image, Tensor], tuple[Tensor, Tensor]]


class Pairs(Dataset[Pair]):
    """Images and targets, transformed together; one that cannot be read comes as ``(None, its name)``.

    Args:
        source: what to read.
        indices: which of it.
        task: what its targets are.
        transform: of both.
    """

    def __init__(self, source: Source, indices: list[int], task: Task, transform: Transform) -> None:
        self.source, self.indices, self.task, self.transform = source, indices, task, transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> Pair:
        index = self.indices[number]
        name = self.source.name(index)
        try:
            image, raw = self.source.read(index)
        except (OSError, SyntaxError, Image.DecompressionBombError):
            return None, name
        target = self.task.target(raw, name)
        check_proportions(image, target, name)
        return self.transform(image, target)


class PairStream(ImageStream):
    """An image stream whose labels are lists of targets (H, W), of whatever sizes.

    Attributes:
        window: (height, width) that ``first`` cuts or pads images to where windows slide over them, or None.
    """

    window: tuple[int, int] | None = None

    def first(self, count: int) -> Tensor:
        """(count, C, H, W): the first images, or the first windows of them, repeated where there are fewer."""
        parts: list[Tensor] = []
        for images, _ in self:
            if self.window is not None:
                images = filling(images, self.window)[..., : self.window[0], : self.window[1]]
            parts.append(images)
            if sum(map(len, parts)) >= count:
                break
        images = torch.cat(parts)
        return images[torch.arange(count) % len(images)]


def open_pairs(options: DataOptions, model: PixelModel, *, slide: int | None = None) -> PairStream:
    """The images and targets that ``options`` name, prepared for ``model``; targets keep their size.

    Args:
        options: where they are; ``crop_pct`` and ``class_map`` are for classifiers.
        model: whose input size and normalisation count.
        slide: pixels of the short side of images that windows slide over; None resizes to the model's size.

    Raises:
        TokensieveError: no such folder or data set, or no image with a target in it.
    """
    source, notes = open_source(options, model.task)
    config = data_config(model, options)
    transform = Whole(config, slide)
    indices = evenly(len(source), options.limit)
    size = 1 if slide is not None else options.batch_size or PIXELS_BATCH_SIZE

    def divide(processes: Processes) -> tuple[Any, int]:
        firsts = range(processes.index * size, len(indices), processes.count * size)
        own = [index for first in firsts for index in indices[first : first + size]]
        return _loader(Pairs(source, own, model.task, transform), size, options.workers), len(own)

    stream = PairStream(divide(Processes())[0], len(indices), None, notes, divide)
    stream.window = None if slide is None else tuple(config["input_size"][1:])  # type: ignore[assignment]
    return stream


def open_source(options: DataOptions, task: Task) -> tuple[Source, tuple[str, ...]]:
    """The source that ``options`` name, and notes on how it was found.

    Raises:
        TokensieveError: an option that is for classifiers, no source, or one that cannot be opened.
    """
    for option in ("crop_pct", "class_map"):
        if getattr(options, option) is not None:
            raise TokensieveError(f"--{option.replace('_', '-')} is for classification: leave it out for {task.name}")
    if options.dataset:
        from tokensieve.pixels.hub import open_hub

        return open_hub(options.dataset, options.split, task), ()
    if options.data is None:
        raise TokensieveError(f"no images are given: name a folder of images and {task.folders[0]} with --data")
    if options.data.lower().endswith(".mat"):
        from tokensieve.pixels.nyu import open_nyu

        return open_nyu(options.data, options.split, task)
    return find_pairs(options.data, options.split, task)


def training_pairs(
    options: DataOptions,
    model: PixelModel,
    *,
    scale: tuple[float, float] | None,
    hflip: float,
    color_jitter: float,
) -> tuple[Pairs, tuple[str, ...]]:
    """Augmented images and targets (H, W) of the model's size, and notes on how they were found.

    Args:
        options: where they are.
        model: whose input size and normalisation count.
        scale: share of the image that crops take, None for whole images; depth, which a crop would change, is whole.
        hflip, color_jitter: see ``Augmented``.
    """
    source, notes = open_source(options, model.task)
    indices = evenly(len(source), options.limit)
    refuse_empty(source, [indices[place] for place in evenly(len(indices), LOOKED_AT)], model.task)
    crops = scale if model.task.crops else None
    transform = Augmented(data_config(model, options), crops, hflip, color_jitter)
    return Pairs(source, indices, model.task, transform), notes


def refuse_empty(source: Source, indices: list[int], task: Task) -> None:
    """Refuse to learn from targets of which none has a pixel that counts, as far as a few of them tell.

    Raises:
        TokensieveError: no image that can be read has one.
    """
    read = 0
    for index in indices:
        try:
            _, raw = source.read(index)
        except (OSError, SyntaxError, Image.DecompressionBombError):
            continue
        if bool(task.valid(task.target(raw, source.name(index))).any()):
            return
        read += 1
    if read:
        raise TokensieveError(
            f"none of {read} targets has a pixel that counts, so nothing can be learned: {task.counts}"
        )


def plain_pairs(pairs: Pairs, config: dict[str, Any], count: int) -> PairStream:
    """``count`` of the training pairs, evenly spread, prepared as for evaluation."""
    plain = copy.copy(pairs)
    plain.transform = Whole(config)
    plain.indices = [pairs.indices[place] for place in evenly(len(pairs), count)]
    return PairStream(_loader(plain, 32, 0), len(plain), None, ())


def _loader(pairs: Pairs, batch_size: int, workers: int) -> Any:
    return DataLoader(
        pairs,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=leave_interrupts_to_the_parent,
        persistent_workers=workers > 0,
    )


def collate(samples: list[Pair]) -> tuple[Tensor | None, list[Tensor] | None, list[str]]:
    """Images (B, C, H, W) and targets of the readable samples, and the names of the others."""
    bad = [str(name) for image, name in samples if image is None]
    good = [(image, target) for image, target in samples if image is not None]
    if not good:
        return None, None, bad
    return torch.stack([image for image, _ in good]), [target for _, target in good], bad
