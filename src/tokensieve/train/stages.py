"""The stages: what is frozen, what teaches, and what the loss is made of."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from timm.layers import DropPath
from torch import nn

from tokensieve.attention.selector import Selector
from tokensieve.engine.apply import applied, is_applied, remove
from tokensieve.errors import TokensieveError
from tokensieve.families._locate import blocks_of, family_of, irreducible
from tokensieve.methods._method import Method
from tokensieve.pixels.model import PixelModel
from tokensieve.train.losses import Added, Term, TokenLabels, terms_of
from tokensieve.train.objective import FineTune, Objective
from tokensieve.train.options import Stage
from tokensieve.train.pixels import FitHead, RecoverMaps
from tokensieve.train.recipe import Recipe, recipe_names
from tokensieve.train.selectors import FitSelectors, selectors_of
from tokensieve.utils.above import above


@dataclass(frozen=True)
class Job:
    """One stage, ready to be trained.

    Attributes:
        objective: the model with its loss.
        dense: the dense model it is compared with; for ``scratch`` that is what it would be without its methods, for
            ``head`` itself before it is trained; for ``pretrain`` what it was before.
        terms: the names of the terms of the loss with their weights.
        labelled: whether it needs labels.
    """

    objective: Objective
    dense: nn.Module
    terms: dict[str, float]
    labelled: bool


def default_recipe(stage: Stage, methods: Sequence[Method]) -> str:
    """The recipe of a stage: the first method's own for fine-tuning, where there is one."""
    if stage == "finetune":
        own = [method.name.removesuffix("-paper") for method in methods]
        return next((name for name in own if name in recipe_names()), "bat")
    return "densedino" if stage == "pretrain" else stage


def build(
    stage: Stage, model: nn.Module, recipe: Recipe, *, second_pass: bool = False, terms: Sequence[Term] = ()
) -> Job:
    """A stage of the training of ``model``, in place.

    Args:
        stage: which.
        model: with methods applied; ``scratch`` takes a dense one as well, ``pretrain`` nothing else.
        recipe: the hyper-parameters.
        second_pass: fit selectors to the maps of the reduced network instead of the dense one's (selectors only).
        terms: further summands of the loss, behind the recipe's.

    Raises:
        TokensieveError: no method is applied, its selectors are not fitted yet, or the loss would be empty.
    """
    # What the stage cannot be asked for is refused before anything is copied.
    if stage == "head":
        return _head(model)
    if isinstance(model, PixelModel) and stage not in ("selectors", "recover"):
        raise TokensieveError(f"models of pixel tasks have the stages head, selectors and recover, not {stage}")
    if stage not in ("scratch", "pretrain") and not is_applied(model):
        raise TokensieveError(f"the stage {stage} needs a method: give --method, or a folder written by ts.save")
    if any(recipe.patch_drop_rate) and (stage != "scratch" or is_applied(model)):
        raise TokensieveError(
            "patch_drop_rate is for --stage scratch without a --method, which would choose tokens itself: set it to []"
        )
    if second_pass and stage != "selectors":
        raise TokensieveError(f"--second-pass is for --stage selectors, not for {stage}")
    if stage == "pretrain":
        return _pretraining(model, recipe)
    dense = remove(copy.deepcopy(model)).eval().requires_grad_(False)
    if stage == "selectors":
        return _selectors(model, dense, recipe, second_pass)
    # Which parameters learn: all but selectors, as far as the recipe says.
    _refuse_unfitted(model)
    model.requires_grad_(True)
    for part in model.modules():
        if isinstance(part, Selector):  # choosing the top K gives it no gradient
            part.requires_grad_(False)
    _train_only(model, recipe.train_only)
    _drop_paths(model, recipe.drop_path)
    if isinstance(model, PixelModel) and isinstance(dense, PixelModel):
        return Job(RecoverMaps(model, copy.deepcopy(dense)), dense, {"maps": 1.0}, labelled=False)
    # The loss: the terms of the recipe and of the caller, what the methods add, and the labels of patches.
    labelled = stage != "recover"
    summed = [*terms_of(recipe, labelled), *terms]
    if summed and any(method.auxiliary for method in applied(model)):
        summed.append(Added(smoothing=0.0 if recipe.mixes else recipe.smoothing))
    if recipe.token_labels and labelled:
        if irreducible(model) is not None:
            kind = type(model).__name__
            raise TokensieveError(
                f"token_labels needs a token for every patch at the end, and {kind} has none: set it to 0"
            )
        owner: Any = family_of(model).owner
        summed.append(TokenLabels(recipe.token_labels, owner.embed_dim, owner.num_classes))
    if stage == "scratch" and any(term.teacher for term in summed):
        raise TokensieveError("from scratch there is no teacher: set distill_logits and distill_features to 0")
    # The teacher is a copy that moves to the device of training; ``dense`` stays for the comparison at the end.
    teacher = copy.deepcopy(dense) if any(term.teacher for term in summed) else None
    objective = FineTune(model, teacher, summed, recipe.patch_drop_rate)
    return Job(objective, dense, {term.name: term.weight for term in summed}, labelled)


def _head(model: nn.Module) -> Job:
    """The head of a dense model learns its task; the backbone is frozen."""
    if not isinstance(model, PixelModel):
        raise TokensieveError(
            "the stage head trains the head of a pixel task: give --task segmentation or --task depth"
        )
    if is_applied(model):
        raise TokensieveError(
            "a head is trained once, on the dense backbone: leave --method out here and give it to eval or bench"
        )
    dense = copy.deepcopy(model).eval().requires_grad_(False)
    return Job(FitHead(model), dense, {model.task.name: 1.0}, labelled=True)


def _selectors(model: nn.Module, dense: nn.Module, recipe: Recipe, second_pass: bool) -> Job:
    """Freeze everything; each selector learns the softmax attention of the layer behind it by KL."""
    if second_pass:
        _refuse_unfitted(model)
    model.eval()
    source = model if second_pass else copy.deepcopy(dense)
    objective = FitSelectors(model, source, recipe.rows)
    return Job(objective, dense, {f"kl/{block + 1}": 1.0 for block in selectors_of(model)}, labelled=False)


def _pretraining(model: nn.Module, recipe: Recipe) -> Job:
    """The dense model learns without labels that two views of an image are of the same."""
    if is_applied(model):
        raise TokensieveError("the stage pretrain trains the dense model: leave --method out and apply methods later")
    densedino = above("stage pretrain")
    densedino.check_model(model)
    dense = copy.deepcopy(model).eval().requires_grad_(False)
    model.requires_grad_(True)
    _train_only(model, recipe.train_only)
    _drop_paths(model, recipe.drop_path)
    terms = {"class": 1 - recipe.dense, "points": recipe.dense}
    return Job(densedino.DenseDINO(model, recipe), dense, terms, labelled=False)


def _refuse_unfitted(model: nn.Module) -> None:
    if any(isinstance(part, Selector) and not bool(part.fitted) for part in model.modules()):
        raise TokensieveError(
            "the selectors are not fitted yet and no other stage can train them: run --stage selectors first and give "
            "its --output folder as MODEL, or name a control such as tosa:score=class"
        )


def _train_only(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze what no pattern names."""
    if not patterns:
        return
    for name, parameter in model.named_parameters():
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)


def _drop_paths(model: nn.Module, rate: float) -> None:
    """Give the blocks timm's stochastic depth, rising linearly to ``rate``; without weights, at rest at inference."""
    blocks = blocks_of(model)
    for number, block in enumerate(blocks):
        for name in ("drop_path1", "drop_path2", "drop_path"):
            part: Any = getattr(block, name, None)
            if rate and isinstance(part, (nn.Identity, DropPath)):
                setattr(block, name, DropPath(rate * number / max(1, len(blocks) - 1)))
