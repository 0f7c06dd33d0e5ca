"""The frames of a video among its features."""

from __future__ import annotations

from torch import Tensor

from tokensieve.errors import RefusedError
from tokensieve.methods.language._prefix import PrefixView


def frames_of(view: PrefixView) -> Tensor:
    """The features of a batch of videos frame by frame, (B, T, P, C): P features of each of T frames.

    Raises:
        RefusedError: the grid of the features is not known, has no time axis, or has another number of places.
    """
    images, features, channels = view.features.shape
    grid = view.grid
    needs = f"{view.method.name} compares the frames of a video, and needs its grid (frames, rows, columns)"
    instead = "choose a method that reads features alone, divprune for one"
    if grid is None:
        raise RefusedError(f"{needs}: here the host does not say how {features} features lie; {instead}")
    if len(grid) != 3:
        raise RefusedError(f"{needs}: got {grid}, which has no time axis; {instead}")
    frames, rows, columns = grid
    if frames * rows * columns != features:
        raise RefusedError(
            f"{needs}: got {grid}, which has {frames * rows * columns} places, for {features} features; {instead}"
        )
    return view.features.reshape(images, frames, rows * columns, channels)
