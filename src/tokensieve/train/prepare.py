"""Everything up to the first update: the model, the stage, the images and the plan."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from tokensieve.data.images import open_images
from tokensieve.data.options import BATCH_SIZE, PIXELS_BATCH_SIZE, DataOptions, SourceOptions
from tokensieve.data.stream import ImageStream
from tokensieve.engine.apply import applied, apply, is_applied, multiple_of, remove, sites
from tokensieve.engine.probe import probe_input
from tokensieve.errors import TokensieveError
from tokensieve.measure.macs import count
from tokensieve.methods._method import Method
from tokensieve.methods._spec import parse, spell
from tokensieve.pixels.create import create_model
from tokensieve.pixels.data import open_pairs
from tokensieve.pixels.model import PixelModel
from tokensieve.train.data import TrainingImages, folders_of, open_training_images, open_training_pairs
from tokensieve.train.devices import accelerator_for
from tokensieve.train.losses import Term
from tokensieve.train.options import TrainOptions, stage_called
from tokensieve.train.recipe import Recipe, load_recipe
from tokensieve.train.stages import Job, build, default_recipe
from tokensieve.train.updates import Plan, make_optimizer, make_scheduler
from tokensieve.utils.options import values_of


@dataclass(frozen=True)
class Prepared:
    """A run that could start: what ``--dry-run`` shows.

    Attributes:
        job: the stage. recipe, plan: how and how long.
        images: to train on. notes: how they were found. evaluation: to evaluate on, or None.
        reduced: an untouched copy of the reduced model.
        accelerator: this process's engine.
    """

    job: Job
    recipe: Recipe
    plan: Plan
    images: TrainingImages
    notes: tuple[str, ...]
    evaluation: ImageStream | None
    reduced: nn.Module
    accelerator: Accelerator

    def summary(self) -> dict[str, str]:
        """The plan in words."""
        recipe, plan, processes = self.recipe, self.plan, self.accelerator.num_processes
        batch = recipe.batch_size * processes * recipe.grad_accum_steps
        dense, reduced = (count(m, probe_input(m)).total / 1e9 for m in (self.job.dense, self.reduced))
        rate, least, _ = recipe.rates(batch)
        numbers = [p.numel() for p in self.job.objective.parameters()]
        trained = sum(p.numel() for p in self.job.objective.parameters() if p.requires_grad)
        return {
            "methods": spell(applied(self.reduced)) if is_applied(self.reduced) else "none",
            "GMACs": f"{reduced:.3f} of {dense:.3f} dense ({100 * reduced / dense:.1f} %)",
            "loss": " + ".join(f"{weight:g} · {name}" for name, weight in self.job.terms.items()),
            "images": f"{len(self.images)}, {'with' if self.job.labelled else 'without'} labels",
            "evaluation": "none" if self.evaluation is None else f"{self.evaluation.total} images",
            "updates": f"{plan.steps} ({plan.steps / plan.steps_per_epoch:.2f} epochs of {plan.steps_per_epoch})",
            "batch": f"{recipe.batch_size} images · {_counted(processes, 'process', 'es')} · "
            f"{_counted(recipe.grad_accum_steps, 'pass', 'es')} = {batch}",
            "optimizer": f"{recipe.opt}, rate {rate:.3g} to {least:.3g} by {recipe.sched}, seed {plan.seed}",
            "parameters": f"{trained:,} trained of {sum(numbers):,}",
            "recipe": recipe.source,
        }

    def parameter_groups(self) -> list[tuple[int, int, float, float]]:
        """Of every parameter group of the optimizer: tensors, numbers, learning rate, weight decay."""
        batch = self.recipe.batch_size * self.accelerator.num_processes * self.recipe.grad_accum_steps
        groups = make_optimizer(self.job.objective, self.recipe, batch).param_groups
        return [
            (
                len(group["params"]),
                sum(parameter.numel() for parameter in group["params"]),
                group["lr"] * group.get("lr_scale", 1.0),
                group["weight_decay"],
            )
            for group in groups
        ]


def _counted(count: int, name: str, plural: str) -> str:
    return f"{count} {name}{'' if count == 1 else plural}"


def prepare(options: TrainOptions, terms: Sequence[Term] = ()) -> Prepared:
    """Everything up to the first update; refuses what cannot be trained.

    Raises:
        TokensieveError: wrong input of any kind.
    """
    stage = stage_called(options.stage)
    _check(options)
    methods = parse(options.method) if options.method else ()
    set_seed(options.seed)
    # The model with its methods, and what the stage trains of it.
    model = create_model(options, options)
    _check_metric(options.metric, model)
    named = options.recipe or default_recipe(stage, methods or applied(model))
    recipe = load_recipe(named).with_changes(options.changes)
    accelerator = accelerator_for(
        device=options.device,
        amp_dtype=options.amp_dtype if options.amp else None,
        grad_accum_steps=recipe.grad_accum_steps,
        trackers=options.log_with,
        folder=options.output,
    )
    _reduce(model, methods, recipe, stage)
    reduced = copy.deepcopy(model).eval()
    job = build(stage, model, recipe, second_pass=options.second_pass, terms=terms)
    # The images to train on and to evaluate on.
    batch = PIXELS_BATCH_SIZE if isinstance(job.dense, PixelModel) else BATCH_SIZE
    source = DataOptions(data=None, batch_size=batch, **values_of(options, SourceOptions))
    images, notes = _training_images(options, source, job, recipe)
    evaluation = _evaluation_images(options, source, job.dense)
    if options.metric and evaluation is None:
        raise TokensieveError("--metric needs images to evaluate on: give --val-data FOLDER")
    plan = _plan(options, recipe, len(images), accelerator.num_processes, job, evaluation is not None)
    # An optimizer or a schedule that timm does not have is refused before anything is written.
    optimizer = make_optimizer(job.objective, recipe, recipe.batch_size)
    make_scheduler(optimizer, recipe, recipe.batch_size, plan.steps, plan.steps_per_epoch)
    return Prepared(job, recipe, plan, images, notes, evaluation, reduced, accelerator)


def _check(options: TrainOptions) -> None:
    """Refuse what needs no model to be refused."""
    if options.resume not in (None, "auto"):
        raise TokensieveError(f"--resume must be auto, got {options.resume!r}")
    if options.device not in ("auto", "cpu"):
        raise TokensieveError(f"--device must be auto or cpu, got {options.device!r}: accelerate chooses the GPUs")
    if options.patience and not options.metric:
        raise TokensieveError("--patience counts evaluations of a metric: give --metric top1 or --metric agreement")
    folders_of(options.data, "--data")
    if options.val_data is not None and not options.dataset:
        folders_of((options.val_data,), "--val-data")


def _reduce(model: nn.Module, methods: tuple[Method, ...], recipe: Recipe, stage: str) -> None:
    """Give the model the methods that are asked for, else those that it has, else the recipe's."""
    if is_applied(model):
        if methods and methods != applied(model):
            replace_methods(model, methods)
    elif methods or (recipe.method and stage != "scratch") or recipe.eased:
        apply(model, methods or parse(recipe.method))


def _training_images(
    options: TrainOptions, source: DataOptions, job: Job, recipe: Recipe
) -> tuple[TrainingImages, tuple[str, ...]]:
    """The images to train on, and how they were found."""
    if recipe.mixes and recipe.batch_size % 2:
        raise TokensieveError(f"mixup pairs images up: --batch-size must be even, got {recipe.batch_size}")
    given = (recipe, job.labelled, options.seed)
    if isinstance(job.dense, PixelModel):
        return open_training_pairs(source, options.data, job.dense, *given)
    return open_training_images(source, options.data, job.dense, *given)


def _check_metric(metric: str, model: nn.Module) -> None:
    known: tuple[str, ...] = ("top1", "agreement")
    if isinstance(model, PixelModel):
        known = (*model.task.rising, "agreement") if model.task.name == "segmentation" else model.task.rising
    if metric and metric not in known:
        raise TokensieveError(f"--metric must be {' or '.join(known)}, got {metric!r}")


def replace_methods(model: nn.Module, methods: tuple[Method, ...]) -> None:
    """Other options for a saved model, whose learned parts stay where they fit."""
    weights, site = model.state_dict(), sites(model)[0]
    multiple = multiple_of(model)
    remove(model)
    apply(model, methods, fill=site.reduction.fill, multiple=multiple, masked=site.reduction.masked)
    own = model.state_dict()
    model.load_state_dict({name: weights.get(name, value) for name, value in own.items()})


def _plan(options: TrainOptions, recipe: Recipe, images: int, processes: int, job: Job, evaluates: bool) -> Plan:
    batch = recipe.batch_size * processes * recipe.grad_accum_steps
    per_epoch = images // batch
    if not per_epoch:
        raise TokensieveError(f"there are {images} images and one update takes {batch}: give a smaller --batch-size")
    steps = options.steps if options.steps is not None else recipe.epochs * per_epoch
    every = options.evaluate_every
    return Plan(
        steps=steps,
        steps_per_epoch=per_epoch,
        checkpoint_every=options.checkpoint_every or per_epoch,
        log_every=options.log_every or max(1, steps // 100),
        evaluate_every=(per_epoch if every is None else every) if evaluates else 0,
        metric=f"val/{options.metric}" if options.metric else "",
        patience=options.patience,
        seed=options.seed,
        workers=options.workers,
        labelled=job.labelled,
        classes=int(getattr(job.dense, "num_classes", 0)),
    )


def _evaluation_images(options: TrainOptions, source: DataOptions, model: nn.Module) -> ImageStream | None:
    if options.val_data is None and not options.dataset:
        return None
    asked = dataclasses.replace(source, data=options.val_data, split=options.val_split, limit=options.val_limit)
    return open_pairs(asked, model) if isinstance(model, PixelModel) else open_images(asked, model)
