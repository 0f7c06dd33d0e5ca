"""``tokensieve train``: selectors, fine-tuning, label-free recovery, from scratch, pre-training; on any devices."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tokensieve.cli import options as o
from tokensieve.cli.command import with_options
from tokensieve.cli.output import accuracy_table, errors, new_table, note, show_table, speed_table
from tokensieve.errors import TokensieveError
from tokensieve.pixels.model import TASKS

if TYPE_CHECKING:
    from tokensieve.train.prepare import Prepared


def _recipe(name: str, help: str, **limits: Any) -> Any:
    return typer.Option(f"--{name}", help=help, rich_help_panel="Changes to the recipe", **limits)


@dataclass(frozen=True, kw_only=True)
class RecipeChanges:
    """Fields of the recipe that have an option of their own, named as in timm."""

    epochs: Annotated[int | None, _recipe("epochs", "Passes over the images.", min=1)] = None
    batch_size: Annotated[int | None, _recipe("batch-size", "Images of one process at a time.", min=1)] = None
    grad_accum_steps: Annotated[int | None, _recipe("grad-accum-steps", "Passes an update adds up.", min=1)] = None
    opt: Annotated[str | None, _recipe("opt", "timm's optimizer.")] = None
    lr: Annotated[float | None, _recipe("lr", "Learning rate as it is, not scaled by the batch.")] = None
    min_lr: Annotated[float | None, _recipe("min-lr", "Learning rate at the end.")] = None
    weight_decay: Annotated[float | None, _recipe("weight-decay", "Weight decay.")] = None
    layer_decay: Annotated[float | None, _recipe("layer-decay", "Factor of the rate from layer to layer.")] = None
    sched: Annotated[str | None, _recipe("sched", "timm's scheduler.")] = None
    warmup_epochs: Annotated[float | None, _recipe("warmup-epochs", "Epochs of rising rate.")] = None
    clip_grad: Annotated[float | None, _recipe("clip-grad", "Largest norm of the gradients.")] = None
    no_aug: Annotated[bool | None, _recipe("no-aug/--aug", "Train on images as they are evaluated.")] = None
    aa: Annotated[str | None, _recipe("aa", "timm's AutoAugment or RandAugment policy.")] = None
    hflip: Annotated[float | None, _recipe("hflip", "Share of images mirrored.")] = None
    reprob: Annotated[float | None, _recipe("reprob", "Share of images with a part erased.")] = None
    mixup: Annotated[float | None, _recipe("mixup", "timm's mixup alpha.")] = None
    cutmix: Annotated[float | None, _recipe("cutmix", "timm's CutMix alpha.")] = None
    smoothing: Annotated[float | None, _recipe("smoothing", "Label smoothing.")] = None
    drop_path: Annotated[float | None, _recipe("drop-path", "Stochastic depth of the last block.")] = None
    model_ema: Annotated[bool | None, _recipe("model-ema/--no-model-ema", "Average the weights.")] = None
    model_ema_decay: Annotated[float | None, _recipe("model-ema-decay", "Decay of that average.")] = None
    task_loss: Annotated[float | None, _recipe("task-loss", "Weight of the task loss.")] = None
    distill_logits: Annotated[float | None, _recipe("distill-logits", "Weight of the dense model's answers.")] = None
    distill_features: Annotated[
        float | None, _recipe("distill-features", "Weight of the dense model's features of every restored token.")
    ] = None
    ease_start: Annotated[float | None, _recipe("ease-start", "Epoch at which methods set in.")] = None
    ease_epochs: Annotated[float | None, _recipe("ease-epochs", "Epochs until they act in full.")] = None
    train_only: Annotated[
        list[str] | None, _recipe("train-only", "Train parameters of this name only, *.norm?.* say; repeatable.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class TrainRequest(RecipeChanges):
    """The options of ``train``."""

    model: o.Model
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of the run and its result.")]
    method: Annotated[
        str | None,
        typer.Option("--method", "-m", metavar="SPEC", help="Methods; default those of a saved MODEL or the recipe's."),
    ] = None
    stage: Annotated[
        str | None,
        typer.Option(
            "--stage",
            help="head, selectors, finetune, recover (no labels), scratch or pretrain. Default of pixel tasks: head.",
        ),
    ] = None
    task: o.Task = None
    head: o.Head = None
    ignore_index: o.IgnoreIndex = None
    reduce_zero_label: o.ReduceZeroLabel = False
    max_depth: o.MaxDepth = None
    depth_scale: o.DepthScale = None
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", "--data-dir", metavar="FOLDER", help="Images to train on; repeatable where labels are not used."
        ),
    ] = None
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="NAME", help="Recipe, or a YAML file. Default: the stage's own.")
    ] = None
    dataset: o.DatasetName = ""
    split: Annotated[str, typer.Option("--split", help="Split to train on.")] = "train"
    class_map: o.ClassMap = None
    limit: o.Limit = None
    val_data: Annotated[
        str | None, typer.Option("--val-data", metavar="FOLDER", help="Images to evaluate on, one sub-folder a class.")
    ] = None
    val_split: Annotated[str, typer.Option("--val-split", help="Split to evaluate on.")] = "validation"
    val_limit: Annotated[int | None, typer.Option("--val-limit", min=1, help="Evaluate on this many images.")] = None
    pretrained: o.Pretrained = False
    checkpoint: o.Checkpoint = None
    num_classes: o.NumClasses = None
    in_chans: o.InChans = None
    img_size: o.ImgSize = None
    crop_pct: o.CropPct = None
    interpolation: o.Interpolation = None
    mean: o.Mean = None
    std: o.Std = None
    workers: o.Workers = o.DEFAULT_WORKERS
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Updates in all, instead of --epochs.")] = None
    checkpoint_every: Annotated[
        int | None, typer.Option("--checkpoint-every", min=1, help="Updates between checkpoints. Default: an epoch.")
    ] = None
    log_every: Annotated[
        int | None, typer.Option("--log-every", min=1, help="Updates between lines of the log. Default: 100 lines.")
    ] = None
    evaluate_every: Annotated[
        int | None, typer.Option("--evaluate-every", min=0, help="Updates between evaluations. Default: an epoch.")
    ] = None
    metric: Annotated[
        str,
        typer.Option(
            "--metric",
            help="top1, agreement; of pixel tasks mIoU, delta1: keep the weights that are best by it. Default: last.",
        ),
    ] = ""
    patience: Annotated[
        int, typer.Option("--patience", min=0, help="Stop after this many evaluations without a better metric.")
    ] = 0
    second_pass: Annotated[
        bool, typer.Option("--second-pass", help="Fit selectors to the reduced network's own maps (selectors only).")
    ] = False
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything random.")] = 0
    device: Annotated[str, typer.Option("--device", help="auto, or cpu to leave a GPU alone.")] = "auto"
    amp: o.Amp = False
    amp_dtype: o.AmpDtype = "bfloat16"
    log_with: Annotated[
        list[str] | None, typer.Option("--log-with", help="Tracker of accelerate, tensorboard or wandb; repeatable.")
    ] = None
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="auto", help="auto: go on after the newest checkpoint in DIR.")
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Start anew in a folder that holds a run.")] = False
    rounds: Annotated[int, typer.Option("--rounds", min=0, help="Timings of each model in the report; 0: none.")] = 5


@with_options(TrainRequest)
def train(
    request: TrainRequest,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show plan, MACs and parameter groups; train nothing.")
    ] = False,
    verbose: o.Verbose = False,
) -> None:
    """Train what a method learns, or the model around it; DIR ends with a model that tokensieve.load(DIR) reads.

    head: that of a pixel task, on a frozen backbone. selectors: freeze the model, fit ToSA's selectors to attention
    maps, without labels. finetune: task loss and distillation from the dense model. recover: the dense model teaches
    the reduced one, without labels. scratch: from random weights. pretrain: a plain ViT without labels, by DenseDINO.
    Under accelerate launch on many devices. DIR gets checkpoints, log.csv, log.jsonl, curves.png, bench.json and
    report.md.

    Example: tokensieve train deit_tiny_patch16_224 --pretrained --stage selectors --method tosa --data PHOTOS -o tosa
    """
    try:
        from tokensieve.train import prepare, report, run
        from tokensieve.train.arguments import TrainArguments
        from tokensieve.train.loop import Told
        from tokensieve.train.stages import STAGES
    except ModuleNotFoundError as error:
        raise TokensieveError(f"training needs {error.name}: pip install 'tokensieve[train]'") from error
    changes = _given(request, [field.name for field in fields(RecipeChanges)])
    if "task_loss" in changes:
        changes["task"] = changes.pop("task_loss")
    stage = request.stage
    if stage is None:
        if request.task not in TASKS:
            raise TokensieveError(f"what is to be trained? Give --stage {', '.join(STAGES[:-1])} or {STAGES[-1]}")
        stage = "head"
    asked = {field.name for field in fields(request)} - {"output", "stage"}
    own = [field.name for field in fields(TrainArguments) if field.name in asked]
    arguments = TrainArguments(output=str(request.output), stage=stage, changes=changes, **_given(request, own))
    if dry_run:
        prepared = prepare.prepare(arguments)
        if prepared.accelerator.is_main_process:
            _show_plan(prepared, request, stage)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(stage, total=None, figures="")

        def told(state: Told) -> None:
            figures = f"loss {state.loss:.4f}, {state.images_per_second:.1f} images/s"
            bar.update(task, total=state.steps, completed=state.step, figures=figures)

        results = run.train(arguments, on_step=told)
    if results is None:  # not the main process
        return
    show_table(accuracy_table(results.rows, f"{request.model}, {stage}, {results.images} images"))
    for batch in report.BATCHES if request.rounds else ():
        show_table(speed_table(results.rows, batch))
    note(f"written: {request.output} (tokensieve.load reads it), with report.md, curves.png, log.csv, bench.json")


def _given(request: TrainRequest, names: list[str]) -> dict[str, Any]:
    """The options of these names that are set."""
    values = {name: getattr(request, name) for name in names}
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if value is not None
    }


def _show_plan(prepared: Prepared, request: TrainRequest, stage: str) -> None:
    """The plan, the MACs and the parameter groups on standard output."""
    for line in prepared.notes:
        note(line)
    table = new_table(f"{request.model}: {stage}, to {request.output}")
    table.add_column("what")
    table.add_column("plan", overflow="fold")
    for name, value in prepared.summary().items():
        table.add_row(name, value)
    show_table(table)
    groups = new_table("Parameter groups")
    for name in ("group", "tensors", "numbers", "learning rate", "weight decay"):
        groups.add_column(name, justify="right")
    for number, (tensors, numbers, rate, decay) in enumerate(prepared.parameter_groups()):
        groups.add_row(str(number), str(tensors), f"{numbers:,}", f"{rate:.3g}", f"{decay:.3g}")
    show_table(groups)
