"""Images to train on: timm's sources and transforms; here is what makes a run repeat itself exactly.

Every image's augmentation is drawn from (seed, epoch, index) alone, and so is the order. So neither the number of
workers nor the moment at which a run was stopped and resumed changes what the model sees.
"""

from __future__ import annotations

import copy
import dataclasses
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import Mixup, create_transform
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler

from tokensieve.data.images import image_mode, labelled_images, unlabelled_images
from tokensieve.data.options import DataOptions, TransformOptions
from tokensieve.data.stream import NO_LABEL, ImageStream, ReadableImages, collate, evenly
from tokensieve.data.transforms import data_config
from tokensieve.errors import TokensieveError
from tokensieve.models.options import ImgSize
from tokensieve.pixels.data import Pairs, open_source, plain_pairs, training_pairs
from tokensieve.pixels.model import PixelModel
from tokensieve.train.recipe import Recipe
from tokensieve.utils.processes import leave_interrupts_to_the_parent

Place = tuple[int, int]  # epoch and index


class TrainingImages(Dataset[tuple[Tensor, Any]]):
    """Augmented images and labels, or dense targets, by (epoch, index); the next replaces one that cannot be read.

    Args:
        images: what to read.
        seed: of the augmentation.
    """

    def __init__(self, images: Dataset[Any], seed: int) -> None:
        self.images = images
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, place: Place) -> tuple[Tensor, Any]:
        epoch, index = place
        kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            seed = int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0])
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            return self._readable(index)
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])
            torch.set_rng_state(kept[2])

    def _readable(self, index: int) -> tuple[Tensor, Any]:
        for shift in range(len(self)):
            image, label = self.images[(index + shift) % len(self)]
            if image is not None:
                return image, label
            warnings.warn(f"the image {label} cannot be read: the next one is used in its place", stacklevel=2)
        raise TokensieveError(f"none of the {len(self)} image files can be read")


class Places(Sampler[list[Place]]):
    """The batches of one process: (epoch, index) lists, shuffled anew every epoch or in order, whole batches only.

    Batch b of an epoch is cut into one piece for each process, in order: two processes see together what one with twice
    the batch size sees.

    Args:
        size: number of images.
        batch_size: images of one process in a batch.
        count: batches to give.
        seed: of the order.
        rank, world: this process and how many there are.
        start: batches to pass over.
        shuffle: whether every epoch has an order of its own.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        count: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.size, self.batch_size, self.count, self.seed = size, batch_size, count, seed
        self.rank, self.world, self.start, self.shuffle = rank, world, start, shuffle
        self.per_epoch = size // (batch_size * world)
        if not self.per_epoch:
            raise TokensieveError(
                f"there are {size} images and one batch takes {batch_size * world}: give a smaller --batch-size"
            )

    def __len__(self) -> int:
        return self.count - self.start

    def __iter__(self) -> Iterator[list[Place]]:
        order: Tensor | None = None
        for number in range(self.start, self.count):
            epoch, batch = divmod(number, self.per_epoch)
            if order is None or batch == 0:
                seed = int(np.random.SeedSequence((self.seed, epoch)).generate_state(1)[0])
                shuffled = torch.randperm(self.size, generator=torch.Generator().manual_seed(seed))
                order = shuffled if self.shuffle else torch.arange(self.size)
            first = (batch * self.world + self.rank) * self.batch_size
            yield [(epoch, int(index)) for index in order[first : first + self.batch_size]]


def open_training_images(
    options: DataOptions, folders: tuple[str, ...], model: nn.Module, recipe: Recipe, labelled: bool, seed: int
) -> tuple[TrainingImages, tuple[str, ...]]:
    """The images that ``options`` name, augmented as the recipe says, and notes on how they were found.

    Args:
        options: the source, apart from ``data``.
        folders: what to read; several only without labels. Empty for data sets that need no folder.
        model: whose input size and normalisation count.
        recipe: the augmentation.
        labelled: whether classes must be those of the model; without, any folder of images will do.
        seed: of the augmentation.

    Raises:
        TokensieveError: no such folder, no image, other classes than the model's, or several folders with labels.
    """
    if labelled and len(folders) > 1:
        raise TokensieveError("several folders can be given without labels only (selectors, recover): give one --data")
    config = data_config(model, options)
    mode = image_mode(config)
    notes: list[str] = []
    parts = []
    for folder in folders or (None,):
        asked = dataclasses.replace(options, data=folder, split=_split(options, folder))
        images = labelled_images(asked, model, mode, notes) if labelled else _any_images(asked, mode)
        if isinstance(images, IterableDataset):
            raise TokensieveError(
                f"{options.dataset!r} is a stream, and training wants images in any order: give a folder, hfds/… or "
                "torch/…"
            )
        readable = ReadableImages(images, evenly(len(images), options.limit), mode)
        readable.transform = augmentation(recipe, config)
        parts.append(readable)
    joined: Dataset[Any] = parts[0] if len(parts) == 1 else ConcatDataset(parts)
    return TrainingImages(joined, seed), tuple(notes)


def open_training_pairs(
    options: DataOptions, folders: tuple[str, ...], model: PixelModel, recipe: Recipe, labelled: bool, seed: int
) -> tuple[TrainingImages, tuple[str, ...]]:
    """Images for a dense model, with targets (H, W) where they are learned from; else as ``open_training_images``.

    Raises:
        TokensieveError: no such folder, no image with a target, or several folders with targets.
    """
    if not labelled and not (options.dataset or any(_has_targets(folder, options, model) for folder in folders)):
        return open_training_images(options, folders, model, recipe, labelled, seed)
    if len(folders) > 1:
        raise TokensieveError("several folders of images and targets cannot be joined: give one --data")
    asked = dataclasses.replace(options, data=folders[0] if folders else None)
    scale = (recipe.scale[0], recipe.scale[1])
    augmented: dict[str, Any] = {"scale": scale, "hflip": recipe.hflip, "color_jitter": recipe.color_jitter}
    if recipe.no_aug:
        augmented = {"scale": None, "hflip": 0.0, "color_jitter": 0.0}
    pairs, notes = training_pairs(asked, model, **augmented)
    return TrainingImages(pairs, seed), notes


def _has_targets(folder: str, options: DataOptions, model: PixelModel) -> bool:
    try:
        open_source(dataclasses.replace(options, data=folder), model.task)
    except TokensieveError:
        return False
    return True


def _any_images(asked: DataOptions, mode: str) -> Any:
    try:
        return unlabelled_images(asked, mode)
    except TokensieveError as error:  # which says what labels would need
        raise TokensieveError(str(error).removesuffix("; expected one sub-folder of images for each class")) from error


def _split(options: DataOptions, folder: str | None) -> str:
    """The split to read: the folder itself where it has no sub-folder ``train`` and no other split is asked for."""
    if folder is None or options.dataset or options.split != "train" or (Path(folder) / "train").is_dir():
        return options.split
    return ""


def augmentation(recipe: Recipe, config: dict[str, Any]) -> Any:
    """timm's training transform with the recipe's augmentation."""
    try:
        return _augmentation(recipe, config)
    except (AssertionError, ValueError, IndexError) as error:
        raise TokensieveError(f"timm knows no augmentation aa = {recipe.aa!r}: {error}") from error


def _augmentation(recipe: Recipe, config: dict[str, Any]) -> Any:
    return create_transform(
        input_size=config["input_size"],
        is_training=True,
        no_aug=recipe.no_aug,
        scale=(recipe.scale[0], recipe.scale[1]),
        hflip=recipe.hflip,
        color_jitter=recipe.color_jitter,
        auto_augment=recipe.aa,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        re_prob=recipe.reprob,
        re_mode="pixel",
    )


def mixing(recipe: Recipe, classes: int) -> Mixup | None:
    """timm's mixup and CutMix with the recipe's shares, or None."""
    if not recipe.mixes:
        return None
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mixup_prob,
        switch_prob=recipe.mixup_switch_prob,
        label_smoothing=recipe.smoothing,
        num_classes=classes,
    )


def loader(images: TrainingImages, places: Places, workers: int) -> DataLoader[Any]:
    """Batches (B, C, H, W) and (B,) of the places, in their order; labels (B, 1 + N) with those of the patches."""
    return DataLoader(
        images,
        batch_sampler=places,
        num_workers=workers,
        generator=torch.Generator(),  # its own: torch's global one is part of the state of a run
        worker_init_fn=_one_thread,
    )


def plain_sample(images: TrainingImages, model: nn.Module, img_size: ImgSize, count: int) -> ImageStream:
    """``count`` of the training images, evenly spread, prepared as for evaluation; classifiers get no labels."""
    config = data_config(model, TransformOptions(img_size=img_size))
    joined: Any = images.images
    if isinstance(joined, Pairs):
        return plain_pairs(joined, config, count)
    transform = create_transform(**config, is_training=False)
    plain = [copy.copy(part) for part in getattr(joined, "datasets", [joined])]
    for part in plain:
        part.transform = transform
    used = [(part, place) for part in plain for place in range(len(part))]
    chosen = [part[place] for part, place in used[:: max(1, len(used) // count)][:count]]
    samples = [(image, NO_LABEL if image is not None else name) for image, name in chosen]
    batches: DataLoader[Any] = DataLoader(samples, batch_size=32, collate_fn=collate)  # type: ignore[arg-type]
    return ImageStream(batches, len(samples), None, ())


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
    leave_interrupts_to_the_parent()


def folders_of(data: tuple[str, ...], named: str) -> tuple[str, ...]:
    """The folders, all of which must exist; ``named`` is the option they were given by."""
    for folder in data:
        if not Path(folder).is_dir():
            wrong = "is not a folder" if Path(folder).exists() else "does not exist"
            raise TokensieveError(f"the image folder {folder!r} {wrong}: give {named} FOLDER")
    return data
