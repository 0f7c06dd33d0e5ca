"""Batches of images and labels, whole or one process's share of them.

A file that cannot be read is left out of its batch, counted and named; timm's own data set would put the next image
in its place and count that one twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from tokensieve.data.pictures import UnknownPixelsError, in_mode
from tokensieve.errors import TokensieveError
from tokensieve.utils.processes import Processes


def evenly(count: int, limit: int | None) -> list[int]:
    """The places of ``limit`` of ``count`` images, spread evenly; of all where there is no limit or fewer."""
    used = count if limit is None else min(limit, count)
    return [number * count // used for number in range(used)]


NO_LABEL = -1  # of an image whose class is not known


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
        except UnknownPixelsError as error:
            return None, f"{self._name(index)} ({error})"
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None, self._name(index)
        label = NO_LABEL if target is None else target
        return (image if self.transform is None else self.transform(image)), label

    def _read(self, index: int) -> tuple[Image.Image, Any]:
        reader = getattr(self.images, "reader", None)
        if reader is None:  # torchvision's data sets open their images themselves
            image, target = self.images[index]
            return in_mode(image, self.mode), target
        file, target, *_ = reader[index]
        with Image.open(file) as opened:
            return in_mode(opened, self.mode), target

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
        skipped: names of the files that could not be read, in the order met, and the batch each was missed in.
        total: number of images, or None where the source does not say.
    """

    def __init__(
        self,
        loader: Any,
        total: int | None,
        limit: int | None,
        notes: tuple[str, ...],
        divide: Callable[[Processes], tuple[Any, int]] | None = None,
    ) -> None:
        self._loader = loader
        self._limit = limit
        self._divide = divide
        self.total = total
        self.notes = notes
        self.skipped: dict[str, int] = {}

    def share(self, processes: Processes) -> Share:
        """The batches of one of several processes: of the batches that one process reads, every ``count``-th.

        Raises:
            TokensieveError: the images come as a stream, which does not say where it can be divided.
        """
        if processes.count == 1:
            return Share(self, self.total, processes)
        if self._divide is None:
            raise TokensieveError(
                "images that come as a stream cannot be divided among processes: start one process, or give a folder"
            )
        loader, total = self._divide(processes)
        return Share(ImageStream(loader, total, None, ()), total, processes)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        given = False
        for batch in self.readable():
            given = True
            yield batch
        if not given:
            raise self.unreadable()

    def unreadable(self) -> TokensieveError:
        """What to raise where not one image can be read."""
        names = ", ".join(list(self.skipped)[:3])
        return TokensieveError(f"none of the {len(self.skipped)} image files can be read (the first are {names})")

    def readable(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches, of which there may be none."""
        given = 0
        for number, (images, labels, bad) in enumerate(self._loader):
            for name in bad:
                self.skipped.setdefault(name, number)
            if images is None:
                continue
            if self._limit is not None and given + len(images) > self._limit:
                images, labels = images[: self._limit - given], labels[: self._limit - given]
            given += len(images)
            yield images, labels
            if given == self._limit:
                break

    def first(self, count: int) -> Tensor:
        """(count, C, H, W): the first images, repeated from the start where there are fewer."""
        parts: list[Tensor] = []
        for images, _ in self:
            parts.append(images)
            if sum(map(len, parts)) >= count:
                break
        images = torch.cat(parts)
        return images[torch.arange(count) % len(images)]


class Share:
    """The images of one process.

    Whole batches are dealt out, those of one process, one after the other: so every image is answered in the company in
    which one process would answer it, and the figures are the same to the last bit.

    Attributes:
        total: number of images, or None where the source does not say.
        processes: the processes that divide the images.
    """

    def __init__(self, stream: ImageStream, total: int | None, processes: Processes) -> None:
        self._stream = stream
        self.total = total
        self.processes = processes

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._stream.readable()

    def skipped(self) -> list[str]:
        """The files that no process could read, in the order in which one process would meet them."""
        met = self.processes.gather(self._stream.skipped)
        places = {name: (number, index) for index, part in enumerate(met) for name, number in part.items()}
        return sorted(places, key=lambda name: places[name])
