"""What methods add to the loss of a training step, and what the step would cost: losses, and MACs with a gradient.

::

    with recording(model) as record:
        logits = model(images)
    loss = cross_entropy(logits, labels) + record.loss(labels) + macs_loss(record, share=0.6)

A method calls ``view.add_loss(name, value)`` or, from an auxiliary head, ``view.add_answer(name, logits)``; both travel
with the tokens, so nothing stays on the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokensieve.engine.block import Site
from tokensieve.errors import TokensieveError
from tokensieve.families._locate import family_of
from tokensieve.methods._added import added_to
from tokensieve.tokens.record import Stage
from tokensieve.tokens.state import Tokens


def added_losses(tokens: Tokens, targets: Tensor | None = None, smoothing: float = 0.0) -> dict[str, Tensor]:
    """What methods added to the loss: scalars by name, in the order first met; those of several sites are summed.

    Args:
        tokens: the state behind the last block.
        targets: (B,) int64 classes or (B, K) shares of classes that the answers of auxiliary heads are held against, by
            cross-entropy; None leaves the answers out.
        smoothing: of the labels, in that cross-entropy.

    Raises:
        TokensieveError: an auxiliary head tells another number of classes apart than the targets have.
    """
    found: dict[str, Tensor] = {}

    def add(name: str, value: Tensor) -> None:
        found[name] = found[name] + value if name in found else value

    added = added_to(tokens)
    for loss in added.losses:
        add(loss.name, loss.value)
    for answer in added.answers if targets is not None else ():
        assert targets is not None
        classes = answer.logits.shape[1]
        if targets.shape[1] != classes if targets.dim() == 2 else int(targets.max()) >= classes:
            raise TokensieveError(
                f"the auxiliary heads of {answer.name} tell {classes} classes apart and the labels name more or fewer: "
                f"set its option classes to the number there are"
            )
        value = F.cross_entropy(answer.logits.float(), targets, label_smoothing=smoothing)
        add(answer.name, answer.weight * value)
    return found


class Record:
    """What the last forward pass left: losses of methods, and how many tokens each block ran on."""

    def __init__(self, model: nn.Module) -> None:
        located = family_of(model)
        self._costs = [located.family.macs(block) for block in located.family.blocks(located.owner)]
        self._prefix = located.family.layout(located.owner).prefix
        self._last: Tokens | None = None

    @property
    def tokens(self) -> Tokens:
        """The state behind the last block.

        Raises:
            TokensieveError: no reduced model has run to its end.
        """
        if self._last is None:
            raise TokensieveError(
                "nothing was recorded: run a model with methods applied inside `with recording(model)`, to its end"
            )
        return self._last

    def losses(self, targets: Tensor | None = None) -> dict[str, Tensor]:
        """Scalars by name, see ``added_losses``."""
        return added_losses(self.tokens, targets)

    def loss(self, targets: Tensor | None = None) -> Tensor:
        """The sum of all, zero where no method added any."""
        zero = torch.zeros((), device=self.tokens.x.device)
        return torch.stack([zero, *(value.to(zero.dtype) for value in self.losses(targets).values())]).sum()

    def macs(self) -> tuple[Tensor, float]:
        """Multiply-accumulates of the blocks: (B,) of every image, and those of the dense model.

        A masked token counts as far as its mask lets it, so the masks get a gradient; with hard masks it is the count
        of the model that removes them. A token that is padding does not count.
        """
        patches = self.tokens.originals
        stages = {stage.block: stage for stage in self.tokens.stages}
        dense = sum(cost.total(self._prefix + patches, self._prefix + patches) for cost in self._costs)
        batch, device = self.tokens.x.shape[0], self.tokens.x.device
        total = torch.zeros(batch, device=device, dtype=torch.float64)
        before: Tensor | None = None
        for number, cost in enumerate(self._costs):
            stage = stages.get(number, Stage(number, self._prefix + patches, self._prefix + patches))
            attended = self._count(stage.attended, stage.seen, stage.alive, before)
            processed = self._count(stage.processed, stage.mask, stage.alive)
            before = stage.alive
            total = total + cost.total(attended, processed) - stage.saved * attended
        return total, dense

    def _count(self, slots: int, mask: Tensor | None, *alive: Tensor | None) -> Tensor:
        """(B,) or (1,) tokens, prefix included, of ``slots`` of which some are masked or padding."""
        patches = slots - self._prefix
        fitting = next((a for a in alive if a is not None and a.shape[1] == patches), None)
        if mask is None:
            if fitting is None:
                return torch.full((1,), slots, dtype=torch.float64, device=self.tokens.x.device)
            mask = torch.ones(fitting.shape, device=fitting.device)
        weights = mask.double() if fitting is None else mask.double() * fitting
        return weights.sum(dim=1) + self._prefix


@contextmanager
def recording(model: nn.Module) -> Iterator[Record]:
    """Record the forward passes of ``model`` inside the ``with``; the last one counts.

    Args:
        model: a model with methods applied, itself and not what wraps it (DDP), which may be called instead.
    """
    record = Record(model)
    last = [module for module in model.modules() if isinstance(module, Site)][-1:]

    def keep(module: nn.Module, args: tuple[Tokens]) -> None:
        record._last = args[0]

    handles = [site.register_forward_pre_hook(keep) for site in last]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def macs_loss(record: Record, share: float, rest: float = 0.0) -> Tensor:
    """How far the mean cost of the batch is from a share of the dense model's: (MACs / dense − share)².

    Args:
        record: of the training forward.
        share: the target, in (0, 1).
        rest: MACs of patch embedding and head (``measure.macs.count(...).rest``), which no method reduces; default the
            share is that of the blocks.

    Raises:
        TokensieveError: the share is none.
    """
    if not 0 < share < 1:
        raise TokensieveError(f"share is the part of the dense model's MACs to aim at, between 0 and 1, got {share}")
    macs, dense = record.macs()
    return ((macs.mean() + rest) / (dense + rest) - share).square().float()
