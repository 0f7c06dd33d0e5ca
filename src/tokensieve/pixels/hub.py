"""Images and targets from Hugging Face ``datasets``: ADE20K, NYU, and others with an image and a map column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokensieve.data.pictures import in_mode
from tokensieve.errors import TokensieveError
from tokensieve.pixels.task import Task

IMAGE_COLUMNS = ("image", "img", "pixel_values", "rgb")
TARGET_COLUMNS = {
    "segmentation": ("annotation", "mask", "label", "segmentation", "labels", "semantic"),
    "depth": ("depth_map", "depth", "depths", "label"),
}


class HubPairs:
    """The rows of a data set as images and targets.

    Args:
        rows: a ``datasets.Dataset``.
        image, target: its columns.
        name: what messages call it.
    """

    def __init__(self, rows: Any, image: str, target: str, name: str) -> None:
        self.rows, self.image, self.target, self.called = rows, image, target, name

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> tuple[Image.Image, NDArray[Any]]:
        row = self.rows[index]
        image = row[self.image]
        if not isinstance(image, Image.Image):
            image = Image.fromarray(np.asarray(image, dtype=np.uint8))
        return in_mode(image, "RGB"), np.asarray(row[self.target])

    def name(self, index: int) -> str:
        return f"number {index} of {self.called}"


def open_hub(dataset: str, split: str, task: Task) -> HubPairs:
    """The split of ``hfds/owner/name``, or of ``hfds/FOLDER`` that ``save_to_disk`` wrote.

    ``hfds/owner/name:CONFIG`` names a configuration.

    Raises:
        TokensieveError: the library is not installed, the hub and its cache do not have it, no such split, or no column
            that holds a target.
    """
    kind, _, name = dataset.partition("/")
    if kind != "hfds" or not name:
        raise TokensieveError(f"{task.name} reads folders and hfds/owner/name, got {dataset!r}: give one of those")
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise TokensieveError("Hugging Face data sets need datasets: pip install 'tokensieve[pixels]'") from error
    place, _, config = name.partition(":")
    try:
        if Path(place).is_dir():
            loaded: Any = datasets.load_from_disk(place)
        else:
            loaded = datasets.load_dataset(place, config or None)
    except Exception as error:  # a hub can fail in as many ways as its client has exceptions
        reason = " ".join(str(error).split()).partition(". ")[0] or type(error).__name__
        raise TokensieveError(
            f"cannot get the data set {name!r}: {reason}; try again with a network, or give a folder that save_to_disk "
            "wrote"
        ) from error
    rows = _split(loaded, split, name)
    image = _column(rows, IMAGE_COLUMNS, "image", name)
    return HubPairs(rows, image, _column(rows, TARGET_COLUMNS[task.name], task.name, name), name)


def _split(loaded: Any, split: str, name: str) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    wanted = {"val": "validation"}.get(split, split)
    for candidate in (wanted, split):
        if candidate in loaded:
            return loaded[candidate]
    raise TokensieveError(f"the data set {name!r} has no split {split!r}: it has {', '.join(loaded)}")


def _column(rows: Any, names: tuple[str, ...], what: str, name: str) -> str:
    found = next((column for column in names if column in rows.column_names), None)
    if found is None:
        raise TokensieveError(
            f"the data set {name!r} has no column for {what}, such as {names[0]!r}: it has "
            f"{', '.join(rows.column_names)}"
        )
    return found
