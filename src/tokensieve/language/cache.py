"""The cache of a decoder that lost tokens: it answers for the uncut sequence, and its layers hold what is left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache as remember
from typing import Any

from torch import Tensor

from tokensieve.errors import RefusedError
from tokensieve.language.record import Record


class SievedCache:
    """In front of the class of a cache. Who asks for its length, ``generate`` for one, means the uncut sequence. So do
    masks that are made around the decoder; the decoder itself makes them for what its layers hold (``inside``)."""

    record: Record
    later: dict[int, Record]  # of layers that hold less, by the first of them
    inside = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the uncut sequence so far."""
        return self.record.length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Columns before those of a call: of the uncut sequence, inside of the decoder those that a layer holds."""
        return int(super().get_seq_length(layer_idx)) if self.inside else self.record.length  # type: ignore[misc]

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """How many columns a mask has, and how many are before them: of the uncut sequence, inside of the decoder of
        what a layer gives."""
        if not self.inside:
            return self.record.length + query_length, 0
        sizes: tuple[int, int] = super().get_mask_sizes(query_length, layer_idx)  # type: ignore[misc]
        return sizes

    def reset(self) -> None:
        """Empty again, and the cache that it was."""
        super().reset()  # type: ignore[misc]
        vars(self).pop("record")
        vars(self).pop("later")
        self.__class__ = type(self).__bases__[1]  # type: ignore[assignment]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows of beams change places."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these rows stay."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        rows = self.record.columns.new_tensor(range(len(self.record.columns))).repeat_interleave(repeats)
        self._rows(rows)

    def _rows(self, rows: Tensor) -> None:
        self.record = self.record.chosen(rows)
        self.later = {first: held.chosen(rows) for first, held in self.later.items()}

    def crop(self, tokens_to_remove: int) -> None:
        """Refused: which columns the last tokens have differs from row to row.

        Raises:
            RefusedError: always.
        """
        raise RefusedError(
            "the cache of a model that lost image tokens cannot be cropped, which assisted decoding does: generate "
            "without an assistant, or call ts.remove(model) first"
        )


@contextmanager
def inside(cache: Any) -> Iterator[None]:
    """Who asks ``cache`` for sizes inside means those of what is left."""
    if not isinstance(cache, SievedCache):
        yield
        return
    cache.inside = True
    try:
        yield
    finally:
        del cache.inside


@remember
def _sieved(kind: type) -> type:
    return type(f"Sieved{kind.__name__}", (SievedCache, kind), {"__module__": kind.__module__})


def record_of(cache: Any) -> Record | None:
    """What is left in ``cache``, or None where nothing was cut."""
    return cache.record if isinstance(cache, SievedCache) else None


def later_of(cache: Any) -> dict[int, Record]:
    """What is left in the layers of ``cache`` that hold less than the first, by the first layer of each such part."""
    return cache.later if isinstance(cache, SievedCache) else {}


def keep_record(cache: Any, record: Record, later: dict[int, Record]) -> None:
    """Let ``cache`` know what is left in it."""
    if not isinstance(cache, SievedCache):
        kind: type = type(cache)
        cache.__class__ = _sieved(kind)
    cache.record, cache.later = record, later
