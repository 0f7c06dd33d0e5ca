"""Names that may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

NEAR = 0.6  # likeness from which a name may be the one meant


def nearest(name: str, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for error messages, or nothing when no name is near; case does not matter.

    A name is near as a whole, or by its beginning: the start of a long name means that name. Of equals the shortest.
    """
    given = name.lower()

    def likeness(candidate: str) -> float:
        parts = {candidate.lower(), candidate.lower()[: len(given)]}
        return max(difflib.SequenceMatcher(None, given, part).ratio() for part in parts)

    likest = max(sorted(known, key=len), key=likeness, default=None)
    return f", did you mean {likest!r}?" if likest is not None and likeness(likest) >= NEAR else ""
