"""Pictures of what pixel tasks predict: classes or depth as colours, and where two predictions differ."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from torch import Tensor

from tokensieve.pixels.task import Task
from tokensieve.show.draw import Pixels, group_colour
from tokensieve.show.maps import Panel

APART = 0.25  # relative difference of depth that is drawn in the last colour


def prediction_panels(task: Task, dense: Tensor, reduced: Tensor) -> tuple[Panel, ...]:
    """The dense model's prediction, the reduced one's, and the difference, in colours that are the same for both.

    Args:
        task: whose predictions these are.
        dense, reduced: (H, W), as ``task.decide`` gives them: classes, or metres.
    """
    expected, found = dense.numpy(), reduced.numpy()
    if task.name == "segmentation":
        other = expected != found
        classes = len(np.unique(expected))
        return (
            Panel("dense prediction", class_colours(expected), f"{classes} classes"),
            Panel("reduced prediction", class_colours(found), f"{len(np.unique(found))} classes"),
            Panel(
                "difference", _shaded(other.astype(np.float32)), f"another class on {other.mean():.1%} of the pixels"
            ),
        )
    near, far = float(expected.min()), float(expected.max())
    apart = np.abs(found - expected) / expected
    return (
        Panel("dense prediction", depth_colours(expected, near, far), f"{near:.2f} to {far:.2f} m"),
        Panel("reduced prediction", depth_colours(found, near, far), f"{found.min():.2f} to {found.max():.2f} m"),
        Panel("difference", _shaded(apart / APART), f"{apart.mean():.1%} on average, white at {APART:.0%}"),
    )


def class_colours(classes: NDArray[Any]) -> Pixels:
    """(H, W) class numbers as (H, W, 3) colours, one a class."""
    palette = np.array([group_colour(number) for number in range(int(classes.max()) + 1)], dtype=np.uint8)
    coloured: Pixels = palette[classes]
    return coloured


def depth_colours(depth: NDArray[Any], near: float, far: float) -> Pixels:
    """(H, W) metres as (H, W, 3) colours, bright where near; what lies outside ``near`` to ``far`` is cut off."""
    share = (depth - near) / max(far - near, 1e-9)
    coloured: Pixels = (255 * colormaps["magma"](1 - share.clip(0, 1))[..., :3]).astype(np.uint8)
    return coloured


def _shaded(share: NDArray[Any]) -> Pixels:
    """0 to 1 as black to white."""
    grey = (255 * share.clip(0, 1)).astype(np.uint8)
    shaded: Pixels = np.stack([grey] * 3, axis=2)
    return shaded
