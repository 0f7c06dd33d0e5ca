"""What is left of a sequence: which tokens a decoder sees, and which of the uncut sequence its cache holds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Record:
    """The columns of a cache.

    Attributes:
        columns: (B, P) int64: which token of the uncut sequence each column holds, -1 for padding.
        length: U, tokens of the uncut sequence so far.
        compact: whether positions are counted anew over what is left.
    """

    columns: Tensor
    length: int
    compact: bool = False

    @staticmethod
    def start(batch: int, length: int, device: torch.device, compact: bool) -> Record:
        """Of a cache that holds the first ``length`` tokens as they came."""
        columns = torch.arange(length, device=device).expand(batch, -1)
        return Record(columns, length, compact)

    def grown(self, cut: Cut) -> Record:
        """With the tokens of a further call behind the others."""
        new = (cut.index + self.length).masked_fill(cut.padding, -1)
        return replace(self, columns=torch.cat([self.columns, new], dim=1), length=self.length + cut.given)

    def chosen(self, rows: Tensor) -> Record:
        """Of these rows of the batch."""
        return replace(self, columns=self.columns[rows.to(self.columns.device)])

    @property
    def gone(self) -> Tensor:
        """(B) int64: how many tokens of the uncut sequence each row has lost."""
        return self.length - (self.columns >= 0).sum(dim=1)


@dataclass(frozen=True)
class Cut:
    """Which tokens of a call go into the decoder.

    Attributes:
        index: (B, M) int64: the token that stands at each place; rows that keep fewer are padded on the left.
        padding: (B, M) bool: the places where none stands.
        given: L, tokens of the call before the cut.
    """

    index: Tensor
    padding: Tensor
    given: int

    @staticmethod
    def of(keep: Tensor) -> Cut:
        """Of (B, L) bool, the tokens that stay."""
        most = int(keep.sum(dim=1).max())
        order = keep.int().argsort(dim=1, stable=True)  # what goes first, what stays behind it, each in order
        index = order[:, keep.shape[1] - most :]
        return Cut(index, ~keep.gather(1, index), keep.shape[1])

    @property
    def stays(self) -> Tensor:
        """(B, L) bool: the tokens that stay."""
        return self.put_back(~self.padding)

    def take(self, values: Tensor) -> Tensor:
        """``values`` (B, L, …) of the tokens that stay; (1, L, …) counts for all rows."""
        return of_tokens(values, self.index, values.dim() - 1)

    def put_back(self, values: Tensor) -> Tensor:
        """(B, L, …) of ``values`` (B, M, …), zero where a token is gone."""
        full = values.new_zeros(len(values), self.given + 1, *values.shape[2:])
        index = self.index.masked_fill(self.padding, self.given)  # padding goes behind the end
        index = index.view(*index.shape, *[1] * (values.dim() - 2)).expand_as(values)
        return full.scatter(1, index, values)[:, : self.given]

    def restored(self, values: Tensor) -> Tensor:
        """(B, L, …) of ``values`` (B, M, …): where a token is gone, what the last one before it that stayed has, from
        which the token behind it is predicted; zero where none stayed before it.

        A decoder that gives no more than the last T of M tokens gets the last T of L.
        """
        left_out = self.index.shape[1] - values.shape[1]
        place = self.stays.cumsum(dim=1) - 1
        none = place < 0
        place = (place + self.padding.sum(dim=1, keepdim=True)).masked_fill(none, 0)
        if left_out:
            place, none = (part[:, self.given - values.shape[1] :] for part in (place - left_out, none))
        rest = [1] * (values.dim() - 2)
        index = place.clamp(min=0).view(*place.shape, *rest).expand(*place.shape, *values.shape[2:])
        return values.gather(1, index).masked_fill(none.view(*none.shape, *rest), 0)


def of_tokens(values: Tensor, index: Tensor, behind: int) -> Tensor:
    """``values`` (…, B or 1, L, …) of the tokens ``index`` (B, M), which lie along the dimension ``-behind``; (L, …)
    counts for all rows."""
    batch, number = index.shape
    dim = values.dim() - behind
    if dim == 0:
        values, dim = values.unsqueeze(0), 1
    sizes = [*values.shape]
    sizes[dim - 1] = batch
    values = values.expand(sizes)
    index = index.view([1] * (dim - 1) + [batch, number] + [1] * (behind - 1))
    sizes[dim] = number
    return values.gather(dim, index.expand(sizes))
