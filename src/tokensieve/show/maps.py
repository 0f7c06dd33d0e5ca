"""From the events of a traced run to what happened to every patch of one image at each site. Needs no drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from tokensieve.errors import TokensieveError
from tokensieve.tokens.record import Event

MOST_SITES = 6


class State(IntEnum):
    """What a patch does after a site. A merged one attends too, as part of a token that stands for several."""

    ATTENDS = 0
    MERGED = 1
    SKIPPED = 2
    PRUNED = 3


@dataclass(frozen=True, eq=False)
class SiteMap:
    """One site seen from the image.

    Attributes:
        block, point, method: where it happened, and the name or spec of the method that decided.
        before, after: patch tokens present before and after it.
        state: (rows, columns) uint8 of ``State``, or None after a soft assignment, which has no patch by patch map.
        group: (rows, columns) int64, the first of the patches of one token, also while they skip; None as
            for ``state``.
        title, note: what stands above and below in place of what ``block`` and ``state`` say.
    """

    block: int
    point: str
    method: str
    before: int
    after: int
    state: NDArray[np.uint8] | None = None
    group: NDArray[np.int64] | None = None
    title: str = ""
    note: str = ""

    def count(self, state: State) -> int:
        """How many patches are in ``state``."""
        return 0 if self.state is None else int((self.state == state).sum())

    @property
    def merged_tokens(self) -> int:
        """How many tokens stand for more than one patch and attend."""
        if self.state is None or self.group is None:
            return 0
        return len(np.unique(self.group[self.state == State.MERGED]))

    def describe(self) -> str:
        """What happened, in one line: "84 patches merged into 31, 40 skipped"."""
        if self.note:
            return self.note
        if self.state is None:
            return "soft tokens: each blends all patches"
        parts = []
        if merged := self.count(State.MERGED):
            parts.append(f"{merged} patches merged into {self.merged_tokens}")
        if skipped := self.count(State.SKIPPED):
            parts.append(f"{skipped} skipped")
        if pruned := self.count(State.PRUNED):
            parts.append(f"{pruned} pruned")
        return ", ".join(parts)


@dataclass(frozen=True, eq=False)
class Panel:
    """A picture beside what the model sees, such as a predicted map.

    Attributes:
        title: the line above. picture: (height, width, 3) uint8. note: the line below.
    """

    title: str
    picture: NDArray[np.uint8]
    note: str = ""


@dataclass(frozen=True, eq=False)
class Row:
    """All that a picture says about one image under one method.

    Attributes:
        method: the method's spec.
        image: the image's name.
        picture: (height, width, 3) uint8, what the model sees of it; any size, its proportions those of the grid.
        maps: the sites to show, in order.
        grid: (rows, columns) of patches.
        tokens: tokens attended in each block, prefix included.
        dense: tokens of the dense model in each block.
        caption: a line below, such as the predicted classes.
        hidden: sites that are not shown.
        panels: pictures between the image and the sites.
        counted, unit: what ``tokens`` counts, and in what.
    """

    method: str
    image: str
    picture: NDArray[np.uint8]
    maps: tuple[SiteMap, ...]
    grid: tuple[int, int]
    tokens: tuple[int, ...] = ()
    dense: int = 0
    caption: str = ""
    hidden: int = 0
    panels: tuple[Panel, ...] = ()
    counted: str = "tokens"
    unit: str = "block"


@dataclass(frozen=True, eq=False)
class _Parked:
    patches: NDArray[np.bool_]
    slots: int


def site_maps(events: Sequence[Event], grid: tuple[int, int], image: int = 0) -> list[SiteMap]:
    """The sites of a run at which something happened, each with the state of every patch.

    Args:
        events: ``Trace.events``; their ``group`` is (B, N), -1 for patches that are parked or gone.
        grid: (rows, columns) of patches, N in all.
        image: which image of the batch.
    """
    patches = grid[0] * grid[1]
    label = np.arange(patches)
    out = np.full(patches, State.ATTENDS, dtype=np.uint8)
    parked: list[_Parked] = []
    slots = patches
    maps = []
    for number, event in enumerate(events, start=1):
        if event.group is None:
            slots = event.after
            if event.before != event.after:
                maps.append(SiteMap(event.block, event.point, event.method, event.before, event.after))
            continue
        # A return leaves no event: more tokens before this event than after the last mean that parked ones returned.
        while parked and slots < event.before:
            back = parked.pop()
            out[back.patches] = State.ATTENDS
            slots += back.slots
        group = event.group[image].cpu().numpy().astype(np.int64)
        if group.shape != (patches,):
            raise TokensieveError(
                f"cannot map {group.size} patches onto a grid of {grid[0]} x {grid[1]}: "
                f"give the image at the size that the methods were applied for"
            )
        present, was_present = group >= 0, out == State.ATTENDS
        before = len(np.unique(label[was_present]))
        leaving = was_present & ~present
        out[present] = State.ATTENDS
        out[leaving] = State.SKIPPED if event.returns else State.PRUNED
        if event.returns and leaving.any():
            parked.append(_Parked(leaving, len(np.unique(label[leaving]))))
        # Labels of different events must not meet: patches that are out keep the one they left with.
        label = np.where(present, group + number * patches, label)
        slots = event.after
        after = len(np.unique(label[present]))
        if before != after:
            maps.append(_site_map(event, before, after, label, out, grid))
    return maps


def _site_map(
    event: Event,
    before: int,
    after: int,
    label: NDArray[np.int64],
    out: NDArray[np.uint8],
    grid: tuple[int, int],
) -> SiteMap:
    # A group is named by its first patch, so that it keeps its name, and its colour, from site to site.
    _, first, place, sizes = np.unique(label, return_index=True, return_inverse=True, return_counts=True)
    merged = (sizes[place] > 1) & (out == State.ATTENDS)
    state = np.where(merged, np.uint8(State.MERGED), out)
    group = first[place].astype(np.int64)
    return SiteMap(event.block, event.point, event.method, before, after, state.reshape(grid), group.reshape(grid))


def choose(maps: Sequence[SiteMap], blocks: Sequence[int] | None = None, most: int = MOST_SITES) -> list[SiteMap]:
    """The sites to show: those in ``blocks``, or up to ``most``, evenly spread from first to last; one is the last."""
    if blocks is not None:
        return [site for site in maps if site.block in blocks]
    if most == 1:
        return list(maps[-1:])
    if len(maps) <= most:
        return list(maps)
    return [maps[round(step * (len(maps) - 1) / (most - 1))] for step in range(most)]
