"""What is trained, with its loss: a module that takes a batch and gives a scalar, so that any engine can wrap it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.engine.apply import sites
from tokensieve.errors import TokensieveError
from tokensieve.families._locate import blocks_of, family_of
from tokensieve.tokens.soft import LearnedRestore
from tokensieve.tokens.state import Tokens
from tokensieve.train.losses import Outputs, Step, Term
from tokensieve.train.patch_drop import check_patch_drop, choose_patches, rate_at, reading_only


class Objective(nn.Module, ABC):
    """A model and its loss.

    Attributes:
        model: what is trained and saved; only what asks for gradients is changed.
    """

    model: nn.Module

    @abstractmethod
    def forward(self, images: Tensor, targets: Tensor | None, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, and figures to log, detached."""

    @abstractmethod
    def shards(self) -> list[nn.Module]:
        """Submodules that fully sharded training keeps apart, innermost first; the objective itself comes on top."""

    def no_weight_decay(self) -> set[str]:
        """What the model names, class token and positions say, by its name here: timm's optimizers ask for it."""
        named: set[str] = getattr(self.model, "no_weight_decay", set)()
        return {f"model.{name}" for name in named}

    def to_teacher_device(self, device: torch.device) -> None:
        """Move what is read and not trained. Default: there is none."""

    def finish(self, model: nn.Module) -> None:
        """Mark the trained ``model``, a copy of ``self.model``, as trained. Default: nothing to mark."""


def forward_outputs(model: nn.Module, images: Tensor, features: bool) -> Outputs:
    """Run a timm model and keep its features and the state of its tokens."""
    timm_model: Any = model
    states: list[Tokens] = []
    found = sites(model)
    handle = found[-1].register_forward_pre_hook(lambda module, args: states.append(args[0])) if found else None
    try:
        hidden = timm_model.forward_features(images)
    finally:
        if handle is not None:
            handle.remove()
    logits = timm_model.forward_head(hidden)
    return Outputs(logits, hidden if features else None, states[-1] if states else None)


class FineTune(Objective):
    """A reduced model trained by a sum of terms, the dense teacher beside it.

    Args:
        model: the reduced model.
        teacher: the dense one; None where no term reads it.
        terms: the summands of the loss. Terms that are modules have parameters of their own and are trained too.
        patch_drop_rate: the share of the patches that the model does not read, see ``Recipe``; of dense models only.

    Targets may be (B, 1 + N): the label of the image and those of its patches.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module | None,
        terms: Sequence[Term],
        patch_drop_rate: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if not terms:
            raise TokensieveError(
                "the loss is empty: give labelled images for the task loss, or a recipe with distill_logits or "
                "distill_features above 0"
            )
        if any(patch_drop_rate):
            check_patch_drop(model)
        self.model = model
        self.terms = tuple(terms)
        self.patch_drop_rate = tuple(patch_drop_rate)
        self.learned_terms = nn.ModuleList([term for term in terms if isinstance(term, nn.Module)])
        # In a tuple, so that it is no submodule: no engine shards, averages or saves it.
        self._teacher = (teacher,)
        self._features = any(term.features for term in terms)

    def forward(self, images: Tensor, targets: Tensor | None, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        teacher = None
        if self._teacher[0] is not None:
            with torch.no_grad():
                teacher = forward_outputs(self._teacher[0], images, self._features)
        token_targets = None
        if targets is not None and targets.dim() == 2 and not targets.is_floating_point():
            targets, token_targets = targets[:, 0], targets[:, 1:]
        kept = self._kept(images, token_targets, progress)
        if kept is not None and token_targets is not None:
            token_targets = token_targets.gather(1, kept)
        with nullcontext() if kept is None else reading_only(self.model, kept):
            outputs = forward_outputs(self.model, images, self._features)
        step = Step(images, targets, outputs, teacher, self.model, progress, token_targets)
        values = {term.name: term(step) for term in self.terms}
        loss = torch.stack([term.weight * values[term.name] for term in self.terms]).sum()
        return loss, {name: value.detach() for name, value in values.items()}

    def _kept(self, images: Tensor, token_targets: Tensor | None, progress: float) -> Tensor | None:
        """Indices (B, K) of the patches to read, those with a class first; None for all."""
        rate = rate_at(self.patch_drop_rate, progress)
        if not rate:
            return None
        owner: Any = family_of(self.model).owner
        wanted = None if token_targets is None else token_targets < owner.num_classes
        return choose_patches(len(images), owner.patch_embed.num_patches, rate, wanted).to(images.device)

    def shards(self) -> list[nn.Module]:
        blocks = blocks_of(self.model)
        return [part for block in blocks for part in block.modules() if isinstance(part, LearnedRestore)] + blocks

    def to_teacher_device(self, device: torch.device) -> None:
        if self._teacher[0] is not None:
            self._teacher[0].to(device)
