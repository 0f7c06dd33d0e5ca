"""The terms of a training loss. A loss is a short list of terms; each is called with one step and gives a scalar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokensieve.errors import TokensieveError
from tokensieve.tokens.state import Tokens
from tokensieve.train.auxiliary import added_losses
from tokensieve.train.recipe import Recipe


class Outputs(NamedTuple):
    """What a model gave for a batch.

    Attributes:
        logits: (B, K).
        features: (B, P + N, C), every token, restored and behind the last norm, or None where nothing reads them.
        tokens: the state before the last restore, or None of a dense model.
    """

    logits: Tensor
    features: Tensor | None = None
    tokens: Tokens | None = None


@dataclass(frozen=True)
class Step:
    """What a term of the loss may read.

    Attributes:
        images: (B, C, H, W), augmented and mixed.
        targets: (B,) int64 classes or (B, K) shares of classes; None without labels.
        outputs: of the model that is trained.
        teacher: of the dense model, without gradient; None where no term asks for it.
        model: the model that is trained.
        progress: share of the training that is done, in [0, 1).
        token_targets: (B, N) int64 labels of the patches, where the data set has them.
    """

    images: Tensor
    targets: Tensor | None
    outputs: Outputs
    teacher: Outputs | None
    model: nn.Module
    progress: float
    token_targets: Tensor | None = None


class Term(Protocol):
    """One named summand of a loss."""

    @property
    def name(self) -> str:
        """What logs and tables call it."""

    @property
    def weight(self) -> float:
        """Its factor in the sum."""

    @property
    def teacher(self) -> bool:
        """Whether it reads ``step.teacher``."""

    @property
    def features(self) -> bool:
        """Whether it reads features."""

    def __call__(self, step: Step) -> Tensor:
        """The scalar, not weighted."""


@dataclass(frozen=True)
class Task:
    """Cross-entropy against the labels, mixed or smoothed."""

    weight: float = 1.0
    smoothing: float = 0.0
    name = "task"
    teacher = False
    features = False

    def __call__(self, step: Step) -> Tensor:
        assert step.targets is not None
        return F.cross_entropy(step.outputs.logits.float(), step.targets, label_smoothing=self.smoothing)


@dataclass(frozen=True)
class DistilLogits:
    """KL(dense ‖ reduced) of the class distributions, both at ``temperature``, times its square."""

    weight: float = 1.0
    temperature: float = 1.0
    name = "logits"
    teacher = True
    features = False

    def __call__(self, step: Step) -> Tensor:
        assert step.teacher is not None
        ours = (step.outputs.logits.float() / self.temperature).log_softmax(dim=1)
        theirs = (step.teacher.logits.float() / self.temperature).log_softmax(dim=1)
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * self.temperature**2


@dataclass(frozen=True)
class DistilFeatures:
    """Mean squared distance of every restored token to the dense model's, in units of the variance in its image."""

    weight: float = 1.0
    name = "features"
    teacher = True
    features = True

    def __call__(self, step: Step) -> Tensor:
        assert step.teacher is not None and step.teacher.features is not None and step.outputs.features is not None
        theirs = step.teacher.features.float()
        distance = (step.outputs.features.float() - theirs).square().mean(dim=(1, 2))
        # Image by image, so that the gradients of a batch are the mean of those of its parts.
        return (distance / theirs.var(dim=(1, 2))).mean()


@dataclass(frozen=True)
class Added:
    """What the methods add of their own, weighted as they weigh it; auxiliary heads are held against the targets, and
    where there are none against the model's own answer."""

    weight: float = 1.0
    smoothing: float = 0.0
    name = "methods"
    teacher = False
    features = False

    def __call__(self, step: Step) -> Tensor:
        assert step.outputs.tokens is not None
        logits, targets = step.outputs.logits, step.targets
        if targets is None:
            targets = logits.detach().float().softmax(dim=1)
        values = added_losses(step.outputs.tokens, targets, self.smoothing).values()
        return torch.stack([logits.new_zeros((), dtype=torch.float32), *(value.float() for value in values)]).sum()


class TokenLabels(nn.Module):
    """Cross-entropy of every restored patch token against its own label, by a head that is thrown away afterwards.

    Token labelling (arXiv 2104.10858) where the labels are known and not a teacher's. Patches without a class have the
    label ``classes``; they and the others weigh one half each, however few there are of either.

    Args:
        weight: its factor in the sum.
        width: channels of a token.
        classes: of the model.
    """

    name = "token_labels"
    teacher = False
    features = True

    def __init__(self, weight: float, width: int, classes: int) -> None:
        super().__init__()
        self.weight = weight
        self.head = nn.Linear(width, classes + 1)

    def forward(self, step: Step) -> Tensor:
        if step.token_targets is None or step.outputs.features is None:
            raise TokensieveError("token_labels needs labels of patches, which this data set has not: set it to 0")
        wanted = step.token_targets.flatten()
        found = self.head(step.outputs.features[:, -step.token_targets.shape[1] :].float()).flatten(0, 1)
        losses = F.cross_entropy(found, wanted, reduction="none")
        plain = (wanted == self.head.out_features - 1).to(losses.dtype)
        halves = [(losses * part).sum() / part.sum().clamp(min=1) for part in (plain, 1 - plain)]
        return (halves[0] + halves[1]) / 2


def terms_of(recipe: Recipe, labelled: bool) -> list[Term]:
    """The terms that a recipe weighs; its task loss only where there are labels."""
    terms: list[Term] = []
    if recipe.task and labelled:
        # Where images are mixed, timm's Mixup has smoothed the labels already.
        terms.append(Task(recipe.task, 0.0 if recipe.mixes else recipe.smoothing))
    if recipe.distill_logits:
        terms.append(DistilLogits(recipe.distill_logits, recipe.temperature))
    if recipe.distill_features:
        terms.append(DistilFeatures(recipe.distill_features))
    return terms
