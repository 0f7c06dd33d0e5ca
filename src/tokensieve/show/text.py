"""The words beside the drawings, the same on a sheet and on a page."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tokensieve.show.draw import site_panel
from tokensieve.show.maps import Row, SiteMap, State

LEGEND: tuple[tuple[State, str], ...] = (
    (State.ATTENDS, "attends alone"),
    (State.MERGED, "merged: mean colour, one outline colour a group"),
    (State.SKIPPED, "skipped, returns later"),
    (State.PRUNED, "pruned, does not return"),
)


def site_title(row: Row, site: SiteMap) -> str:
    """Where, and by which method where several act: "block 3", "after block 2 · tosa"."""
    if site.title:
        return site.title
    where = "" if site.point == "middle" else f"{site.point} "
    name = f" · {site.method.partition(':')[0]}" if "+" in row.method else ""
    return f"{where}block {site.block}{name}"


def site_counts(site: SiteMap) -> str:
    """Patch tokens before and after."""
    return f"{site.before} → {site.after}"


def row_note(row: Row) -> str:
    """What the row does not show, or that there is nothing to show."""
    if not row.maps:
        return "no token is removed in the blocks shown" if row.hidden else "no token is removed"
    if row.hidden:
        return f"{len(row.maps)} of {len(row.maps) + row.hidden} sites shown"
    return ""


def chart_title(row: Row) -> str:
    """The heading of the chart of tokens."""
    return f"{row.counted} by {row.unit}"


def chart_note(row: Row) -> str:
    """How few tokens a block attends, and the share of the dense model's tokens over all blocks."""
    share = sum(row.tokens) / max(row.dense * len(row.tokens), 1)
    return f"{min(row.tokens)} to {max(row.tokens)} of {row.dense}, {share:.0%} over {len(row.tokens)} {row.unit}s"


def legend_swatch(state: State) -> NDArray[np.uint8]:
    """Four patches in one state, drawn as on the panels: (PANEL, PANEL, 3) uint8."""
    ramp = np.linspace(0, 1, 60)
    red = 70 + 120 * ramp[None, :] + 0 * ramp[:, None]
    green = 110 + 90 * ramp[:, None] + 0 * ramp[None, :]
    blue = 150 - 70 * ramp[None, :] + 40 * ramp[:, None]
    picture = np.stack([red, green, blue], axis=2).astype(np.uint8)
    group = np.zeros((2, 2), dtype=np.int64) if state == State.MERGED else np.arange(4).reshape(2, 2)
    return site_panel(picture, SiteMap(0, "middle", "", 4, 4, np.full((2, 2), state, dtype=np.uint8), group))
