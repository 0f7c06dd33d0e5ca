"""NYU Depth V2's labelled images in the one .mat file that they are published as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokensieve.errors import TokensieveError
from tokensieve.pixels.task import Task

SPLITS_FILE = "splits.mat"
COLUMNS = {"train": "trainNdxs", "test": "testNdxs", "validation": "testNdxs", "val": "testNdxs"}


class NYUPairs:
    """Images (480 × 640) with metres, or with classes, from ``nyu_depth_v2_labeled.mat``.

    MATLAB's column order makes HDF5 hold images as (N, 3, 640, 480) and maps as (N, 640, 480).

    Args:
        file: the .mat file.
        variable: "depths" or "labels".
        indices: which of the images; None for all.
    """

    def __init__(self, file: Path, variable: str, indices: list[int] | None = None) -> None:
        self.file, self.variable = file, variable
        self._opened: Any = None
        total = len(self._content()["images"])
        self.indices = list(range(total)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}  # every process opens the file for itself

    def _content(self) -> Any:
        if self._opened is None:
            import h5py

            self._opened = h5py.File(self.file, "r")
        return self._opened

    def read(self, index: int) -> tuple[Image.Image, NDArray[Any]]:
        content, place = self._content(), self.indices[index]
        image = np.asarray(content["images"][place], dtype=np.uint8).transpose(2, 1, 0)
        return Image.fromarray(np.ascontiguousarray(image)), np.asarray(content[self.variable][place]).T

    def name(self, index: int) -> str:
        return f"number {self.indices[index]} of {self.file}"


def open_nyu(file: str, split: str, task: Task) -> tuple[NYUPairs, tuple[str, ...]]:
    """The labelled images of a split, by ``splits.mat`` beside the file; all of them where it is not there.

    Depth is stored in metres. Classes start at 1, 0 is unlabelled: ``reduce_zero_label``.

    Raises:
        TokensieveError: h5py is not installed, or the file is not NYU's.
    """
    try:
        import h5py  # noqa: F401 - opened in NYUPairs
    except ModuleNotFoundError as error:
        raise TokensieveError("NYU's .mat file needs h5py: pip install 'tokensieve[pixels]'") from error
    if not Path(file).is_file():
        raise TokensieveError(f"the file {file!r} does not exist: give nyu_depth_v2_labeled.mat")
    variable = "depths" if task.name == "depth" else "labels"
    try:
        every = NYUPairs(Path(file), variable)
        shape = every._content()[variable].shape
    except (OSError, KeyError) as error:
        raise TokensieveError(
            f"{file!r} is not NYU Depth V2's labelled .mat file, an HDF5 file with images and {variable}: {error}"
        ) from error
    if len(shape) != 3:
        raise TokensieveError(f"{file!r} holds {variable} of shape {shape}: expected (images, columns, rows)")
    beside = Path(file).with_name(SPLITS_FILE)
    if not split or not beside.exists():
        note = f"there is no {SPLITS_FILE} beside {file}: all {len(every)} images are taken"
        return every, (note,) if split else ()
    if split not in COLUMNS:
        raise TokensieveError(f"NYU has the splits train and test, got {split!r}: give --split")
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise TokensieveError(f"{SPLITS_FILE} needs scipy: pip install scipy") from error
    numbers = loadmat(beside)[COLUMNS[split]].ravel().astype(int) - 1  # MATLAB counts from one
    return NYUPairs(Path(file), variable, numbers.tolist()), ()
