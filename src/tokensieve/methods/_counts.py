"""How many tokens each site leaves: shares, numbers removed, explicit counts; and which blocks are sites."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from tokensieve.errors import TokensieveError

T = TypeVar("T")
REFERENCE_DEPTH = 12


def scaled_sites(published: Sequence[int], depth: int) -> tuple[int, ...]:
    """Published sites of a 12-block model as the same fractions of ``depth``: 3, 6, 9 become 6, 12, 18 of 24."""
    sites = sorted({min(depth - 1, round(site * depth / REFERENCE_DEPTH)) for site in published})
    return tuple(sites)


def checked_sites(sites: Sequence[int] | None, published: Sequence[int], depth: int, name: str) -> tuple[int, ...]:
    """The blocks a config acts at: its own ``sites``, or the published ones scaled to the depth.

    Raises:
        TokensieveError: sites out of order, repeated, or beyond the depth.
    """
    if sites is None:
        return scaled_sites(published, depth)
    chosen = tuple(sites)
    if list(chosen) != sorted(set(chosen)):
        raise TokensieveError(f"{name}: sites must be ascending and distinct, got {list(chosen)}")
    if chosen and (chosen[0] < 0 or chosen[-1] >= depth):
        raise TokensieveError(
            f"{name}: sites must be 0-based block numbers below the model's depth {depth}, got {list(chosen)}"
        )
    return chosen


def per_site(value: T | Sequence[T], site: int) -> T:
    """One value for all sites, or the ``site``-th of a list; the last one holds for the sites beyond it."""
    if isinstance(value, (list, tuple)):
        return value[min(site, len(value) - 1)]  # type: ignore[no-any-return]
    return value  # type: ignore[return-value]


def kept(patches: int, keep: float) -> int:
    """ceil(keep · patches), at least 1. Rounded first, so that 0.7 · 140 is 98 and not 99."""
    return max(1, min(patches, math.ceil(round(keep * patches, 6))))


def nearest_share(patches: int, keep: float) -> int:
    """round(keep · patches), at least 1; halves go to the even number, so 196 at 0.5 leaves 98, 49, 24."""
    return max(1, round(round(keep * patches, 6)))


def share_of_all(every: int, keep: float | Sequence[float], site: int) -> int:
    """int(every · keep^(site + 1)), at least 1: a share per site of all patch tokens there were, each rounded once."""
    product = float(every)
    for earlier in range(site + 1):
        product *= per_site(keep, earlier)
    return max(1, math.floor(round(product, 6)))


def removed(patches: int, r: int) -> int:
    """How many of ``patches`` a matching of two halves can remove when asked for ``r``: never more than half."""
    return min(r, patches // 2)


def inflected(r: int, inflect: float, sites: int, site: int) -> int:
    """ToMe's (r, inflect) at one site: linear from r·(1 − inflect) at the first to r·(1 + inflect) at the last."""
    low, high = r * (1 - inflect), r * (1 + inflect)
    return int(low + (high - low) / max(sites - 1, 1) * site)
