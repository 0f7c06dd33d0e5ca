"""Recipes: the hyper-parameters of one training as a YAML file, named as timm's training script names them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from tokensieve.errors import TokensieveError
from tokensieve.methods import _options as option
from tokensieve.utils.names import nearest
from tokensieve.utils.options import Option

FOLDER = "recipes"


def _option(help: str, **more: Any) -> Option:
    """A field that the command line changes; the others are for recipes alone."""
    return Option(help, panel="Changes to the recipe", **more)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training's hyper-parameters.

    Attributes:
        source: where the numbers come from.
        method: the spec that they were published for, or "".
        epochs: passes over the images.
        batch_size: images of one process in one forward pass.
        grad_accum_steps: forward passes whose gradients one update adds up.
        opt, momentum, opt_betas, opt_eps, weight_decay, layer_decay: the optimizer, see timm's ``create_optimizer_v2``.
        opt_kwargs: its further arguments by name.
        lr: learning rate; None takes ``lr_base`` · batch / ``lr_base_size``, batch counted over all processes and
            accumulated passes, and scales ``min_lr`` and ``warmup_lr`` alike.
        lr_base, lr_base_size: the published rate and the batch it was published for.
        sched, min_lr, warmup_lr, warmup_epochs: the schedule, see timm's ``create_scheduler_v2``; stepped every update.
        clip_grad: largest norm of the gradients, None for none.
        shuffle: a new order every epoch; false reads the images as they come, for data sets that get harder.
        no_aug, scale, hflip, color_jitter, aa, reprob: augmentation, see timm's ``create_transform``.
        mixup, cutmix, mixup_prob, mixup_switch_prob, smoothing: see timm's ``Mixup``; ``smoothing`` also without.
        drop_path: stochastic depth at the last block, rising linearly from 0.
        model_ema, model_ema_decay: whether the result is timm's moving average of the weights.
        ease_start, ease_epochs: the methods remove nothing until epoch ``ease_start`` and then ever more along a cosine
            for ``ease_epochs``; 0 and 0 hold the rate constant.
        task, distill_logits, distill_features: weights of the terms of the loss; 0 leaves a term out.
        token_labels: likewise, of every patch's own label, from data sets that have such labels, without augmentation.
        patch_drop_rate: shares of the patches that a dense model does not read while it learns from scratch, each of an
            equal part of the training; empty for none. Patches that ``token_labels`` name a class for go last.
        temperature: of the distillation of logits.
        train_only: names of the parameters to train as shell patterns, such as ``*.norm?.*``; empty for all.
        rows: query rows that each step reads of an image's attention maps, evenly spread from a random start
            (selectors only); 0 for all.
        points, dense, prototypes: reference points of an image, their share of the loss, and the length of the answers
            that are compared (pretrain only).
        teacher_momentum, teacher_temperature: how much of itself the teacher keeps in an update, rising to 1 along a
            cosine, and the temperature of its answers; the student's is ``temperature`` (pretrain only).
    """

    source: str = ""
    method: str = ""
    epochs: Annotated[int, _option("Passes over the images.", min=1)] = 10
    batch_size: Annotated[int, _option("Images of one process at a time.", min=1)] = 64
    grad_accum_steps: Annotated[int, _option("Passes an update adds up.", min=1)] = 1
    opt: Annotated[str, _option("timm's optimizer.")] = "adamw"
    momentum: float = 0.9
    opt_betas: tuple[float, ...] | None = None
    opt_eps: float | None = None
    weight_decay: Annotated[float, _option("Weight decay.")] = 0.05
    layer_decay: Annotated[float | None, _option("Factor of the rate from layer to layer.")] = None
    opt_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    lr: Annotated[float | None, _option("Learning rate as it is, not scaled by the batch.")] = None
    lr_base: float = 5e-4
    lr_base_size: int = 1024
    sched: Annotated[str, _option("timm's scheduler.")] = "cosine"
    min_lr: Annotated[float, _option("Learning rate at the end.")] = 0.0
    warmup_lr: float = 1e-6
    warmup_epochs: Annotated[float, _option("Epochs of rising rate.")] = 0.0
    clip_grad: Annotated[float | None, _option("Largest norm of the gradients.")] = None
    shuffle: bool = True
    no_aug: Annotated[bool, _option("Train on images as they are evaluated.", names=("--no-aug/--aug",))] = False
    scale: tuple[float, ...] = (0.08, 1.0)
    hflip: Annotated[float, _option("Share of images mirrored.")] = 0.5
    color_jitter: float = 0.4
    aa: Annotated[str | None, _option("timm's AutoAugment or RandAugment policy.")] = None
    reprob: Annotated[float, _option("Share of images with a part erased.")] = 0.0
    mixup: Annotated[float, _option("timm's mixup alpha.")] = 0.0
    cutmix: Annotated[float, _option("timm's CutMix alpha.")] = 0.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    smoothing: Annotated[float, _option("Label smoothing.")] = 0.0
    drop_path: Annotated[float, _option("Stochastic depth of the last block.")] = 0.0
    model_ema: Annotated[bool, _option("Average the weights.", names=("--model-ema/--no-model-ema",))] = False
    model_ema_decay: Annotated[float, _option("Decay of that average.")] = 0.9998
    ease_start: Annotated[float, _option("Epoch at which methods set in.")] = 0.0
    ease_epochs: Annotated[float, _option("Epochs until they act in full.")] = 0.0
    task: Annotated[float, _option("Weight of the task loss.", names=("--task-loss",))] = 0.0
    distill_logits: Annotated[float, _option("Weight of the dense model's answers.")] = 0.0
    distill_features: Annotated[float, _option("Weight of the dense model's features of every restored token.")] = 0.0
    token_labels: float = 0.0
    patch_drop_rate: tuple[float, ...] = ()
    temperature: float = 1.0
    train_only: Annotated[
        tuple[str, ...], _option("Train parameters of this name only, *.norm?.* say; repeatable.")
    ] = ()
    rows: int = 0
    points: int = 16
    dense: float = 0.5
    prototypes: int = 4096
    teacher_momentum: float = 0.996
    teacher_temperature: float = 0.04

    def __post_init__(self) -> None:
        option.fit_fields(self, get_type_hints(type(self)), "recipe")
        self._check("epochs batch_size grad_accum_steps lr_base_size", lambda value: value >= 1, "1 or more")
        weights = "task distill_logits distill_features token_labels weight_decay momentum min_lr warmup_lr rows"
        self._check(
            weights + " warmup_epochs ease_start ease_epochs mixup cutmix", lambda value: value >= 0, "0 or more"
        )
        shares = "smoothing drop_path reprob hflip mixup_prob mixup_switch_prob"
        self._check(shares, lambda value: 0 <= value <= 1, "in [0, 1]")
        self._check("patch_drop_rate", lambda value: all(0 <= rate < 1 for rate in value), "a list of shares in [0, 1)")
        self._check("model_ema_decay", lambda value: 0 < value < 1, "in (0, 1)")
        self._check("points prototypes", lambda value: value >= 1, "1 or more")
        self._check("dense teacher_momentum", lambda value: 0 <= value <= 1, "in [0, 1]")
        self._check("teacher_temperature", lambda value: value > 0, "above 0")
        self._check("temperature lr_base", lambda value: value > 0, "above 0")
        self._check("lr clip_grad layer_decay", lambda value: value is None or value > 0, "above 0")
        self._check(
            "scale", lambda value: len(value) == 2 and 0 < value[0] <= value[1], "two shares of the image, LOW HIGH"
        )
        if self.token_labels and (self.mixes or not self.no_aug):
            raise TokensieveError(
                "recipe: token_labels are of patches where they are: set no_aug true, mixup and cutmix 0"
            )

    def _check(self, names: str, holds: Any, expected: str) -> None:
        for name in names.split():
            if not holds(getattr(self, name)):
                raise TokensieveError(f"recipe: {name} must be {expected}, got {getattr(self, name)!r}")

    def with_changes(self, changes: dict[str, Any]) -> Recipe:
        """The recipe with the changes that are not None."""
        return dataclasses.replace(self, **{key: value for key, value in changes.items() if value is not None})

    @property
    def mixes(self) -> bool:
        """Whether images are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def eased(self) -> bool:
        """Whether the methods start gently."""
        return self.ease_start > 0 or self.ease_epochs > 0

    def rates(self, batch: int) -> tuple[float, float, float]:
        """(lr, min_lr, warmup_lr) for updates of ``batch`` images."""
        if self.lr is not None:
            return self.lr, self.min_lr, self.warmup_lr
        factor = batch / self.lr_base_size
        return self.lr_base * factor, self.min_lr * factor, self.warmup_lr * factor


def recipe_names() -> list[str]:
    """The recipes in the package."""
    files = resources.files("tokensieve.train").joinpath(FOLDER).iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_recipe(name: str) -> Recipe:
    """The recipe called ``name``, or the one in the YAML file of that name.

    Raises:
        TokensieveError: no such recipe, or a file that is none; says which field is wrong.
    """
    import yaml  # of the train extra, which is not needed to read selectors

    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise TokensieveError(f"the recipe {name!r} is not a file")
        text = Path(name).read_text(encoding="utf-8")
    elif name in recipe_names():
        text = resources.files("tokensieve.train").joinpath(FOLDER).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    else:
        known = recipe_names()
        raise TokensieveError(
            f"unknown recipe {name!r}{nearest(name, known)}; known are {', '.join(known)}, or give a .yaml file"
        )
    try:
        content = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise TokensieveError(f"the recipe {name!r} is not YAML: {' '.join(str(error).split())}") from error
    fields = [field.name for field in dataclasses.fields(Recipe)]
    if not isinstance(content, dict):
        raise TokensieveError(f"the recipe {name!r} must list fields with their values, got {content!r}")
    unknown = [str(key) for key in content if key not in fields]
    if unknown:
        raise TokensieveError(f"the recipe {name!r} has no field {unknown[0]!r}{nearest(unknown[0], fields)}")
    return Recipe(**content)
