"""The training loop, read top to bottom: restore, then update by update to the end."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from tokensieve.errors import TokensieveError
from tokensieve.train import devices
from tokensieve.train.data import Places, TrainingImages, loader, mixing
from tokensieve.train.keep import Easing
from tokensieve.train.log import Log
from tokensieve.train.objective import Objective
from tokensieve.train.recipe import Recipe
from tokensieve.train.state import Run, State, random_state, set_random_state

Evaluate = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long a run is and what happens when.

    Attributes:
        steps: updates in all. steps_per_epoch: updates of one epoch.
        checkpoint_every: updates between checkpoints. log_every: between lines of the log.
        evaluate_every: between evaluations; 0 for none.
        metric: what early stopping and the choice of the result go by; "" for the last weights.
        patience: evaluations without a better metric after which the run ends; 0 for never.
        seed: of everything random. workers: processes that read images.
        labelled: whether the loss gets labels. classes: of the model.
    """

    steps: int
    steps_per_epoch: int
    checkpoint_every: int
    log_every: int
    evaluate_every: int = 0
    metric: str = ""
    patience: int = 0
    seed: int = 0
    workers: int = 0
    labelled: bool = False
    classes: int = 0


@dataclass(frozen=True)
class Told:
    """What is said about the run after an update, on the main process."""

    step: int
    steps: int
    loss: float
    images_per_second: float


def make_optimizer(objective: nn.Module, recipe: Recipe, batch: int) -> torch.optim.Optimizer:
    """timm's optimizer over what asks for gradients, at the recipe's rate for updates of ``batch`` images.

    Raises:
        TokensieveError: no such optimizer, or nothing to train.
    """
    if not any(parameter.requires_grad for parameter in objective.parameters()):
        raise TokensieveError("there is nothing to train: no parameter's name matches train_only")
    options: dict[str, Any] = {"betas": recipe.opt_betas, "eps": recipe.opt_eps}
    try:
        return create_optimizer_v2(
            objective,
            opt=recipe.opt,
            lr=recipe.rates(batch)[0],
            weight_decay=recipe.weight_decay,
            momentum=recipe.momentum,
            layer_decay=recipe.layer_decay,
            **{name: value for name, value in options.items() if value is not None},
            **recipe.opt_kwargs,
        )
    except (AssertionError, ValueError, TypeError) as error:
        raise TokensieveError(f"timm has no optimizer {recipe.opt!r} for this: {error}") from error


def make_scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, batch: int, steps: int, steps_per_epoch: int
) -> Any:
    """timm's scheduler over ``steps`` updates of ``batch`` images.

    Raises:
        TokensieveError: no such scheduler.
    """
    _, least, warm = recipe.rates(batch)
    try:
        return create_scheduler_v2(
            optimizer,
            sched=recipe.sched,
            num_epochs=steps,
            min_lr=least,
            warmup_lr=warm,
            warmup_epochs=round(recipe.warmup_epochs * steps_per_epoch),
            step_on_epochs=False,
            updates_per_epoch=1,
        )[0]
    except (AssertionError, ValueError, TypeError) as error:
        raise TokensieveError(f"timm has no schedule {recipe.sched!r} for this: {error}") from error


def fit(
    objective: Objective,
    images: TrainingImages,
    recipe: Recipe,
    plan: Plan,
    accelerator: Accelerator,
    run: Run | None,
    easing: Easing,
    evaluate: Evaluate | None = None,
    on_step: Callable[[Told], None] | None = None,
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Train ``objective`` and return its best tensors, or its last where no metric decides, and the log.

    A run with checkpoints goes on after the newest of them.

    Args:
        objective: what to train.
        images, recipe, plan: on what, how, how long.
        accelerator: this process's engine.
        run: the folder of the run; None on all processes but the main one.
        easing: the keep rate.
        evaluate: gives the figures of a model in evaluation mode.
        on_step: told after every update.

    Raises:
        TokensieveError: the loss or a weight is no longer finite, or a file cannot be written.
    """
    accumulate = recipe.grad_accum_steps
    batch = recipe.batch_size * accelerator.num_processes * accumulate
    # Sharded first, so that the optimizer is made of the parameters that will be there.
    objective.to(accelerator.device)
    objective.to_teacher_device(accelerator.device)
    plain = copy.deepcopy(objective.model) if devices.is_sharded(accelerator) else None
    devices.shard(accelerator, objective)
    plain_optimizer = make_optimizer(objective, recipe, batch)
    module, optimizer = devices.prepare(accelerator, objective, plain_optimizer)
    scheduler = make_scheduler(plain_optimizer, recipe, batch, plan.steps, plan.steps_per_epoch)
    ema = _average(objective, recipe)
    mixup = mixing(recipe, plan.classes) if plan.labelled else None

    torch.manual_seed(plan.seed + accelerator.process_index)
    state = _restore(accelerator, run, objective, optimizer, ema)
    start, best = (state.step, state.best) if state is not None else (0, {})
    log = Log(run.folder, start) if run is not None else None
    places = Places(
        len(images),
        recipe.batch_size,
        plan.steps * accumulate,
        plan.seed,
        accelerator.process_index,
        accelerator.num_processes,
        start * accumulate,
        recipe.shuffle,
    )
    batches = iter(loader(images, places, plan.workers))
    clock, seen = time.perf_counter(), 0
    stopped = _done_early(best, plan)
    for step in range(start, plan.steps):
        if stopped:
            break
        module.train()
        share = easing(step)
        scheduler.step_update(num_updates=step)
        figures: dict[str, float] = {}
        for _ in range(accumulate):
            pixels, labels = next(batches)
            pixels = pixels.to(accelerator.device)
            targets = labels.to(accelerator.device) if plan.labelled else None
            if mixup is not None:
                pixels, targets = mixup(pixels, targets)
            with accelerator.accumulate(module):
                loss, parts = module(pixels, targets, step / plan.steps)
                _add(figures, {"loss": loss.detach(), **parts}, accelerator, accumulate)
                if not math.isfinite(figures["loss"]):
                    kept = run.kept() if run is not None else "see the main process"
                    raise TokensieveError(f"the loss is {figures['loss']} at step {step + 1}: {kept}; lower --lr")
                accelerator.backward(loss)
                if accelerator.sync_gradients and recipe.clip_grad is not None:
                    accelerator.clip_grad_norm_(module.parameters(), recipe.clip_grad)
                optimizer.step()
                optimizer.zero_grad()
        if ema is not None:
            ema.update(objective.model, step=step)
        done = step + 1
        seen += batch
        speed = seen / (time.perf_counter() - clock)
        if on_step is not None and accelerator.is_main_process:
            on_step(Told(done, plan.steps, figures["loss"], speed))
        record: dict[str, Any] = {}
        if done % plan.log_every == 0 or done == plan.steps:
            record = {"lr": plain_optimizer.param_groups[0]["lr"], "strength": share, **figures}
        if evaluate is not None and (done == plan.steps or (plan.evaluate_every and done % plan.evaluate_every == 0)):
            easing.finish()
            record |= _evaluated(evaluate, accelerator, objective, ema, plain)
            best = _compared(best, record, plan, done)
            if best.get("step") == done:
                weights = _result(objective, ema)
                if run is not None:
                    run.save_best(weights, done)
            stopped = _done_early(best, plan)
        if record:
            accelerator.log(record, step=done)
            if log is not None:
                log.add({"step": done, "epoch": done / plan.steps_per_epoch, "images_per_second": speed} | record)
        if done % plan.checkpoint_every == 0 or done == plan.steps or stopped:
            _save(accelerator, run, done, objective, optimizer, ema, best)
            if log is not None:
                log.write_table()
    easing.finish()
    weights = _result(objective, ema)
    if best and run is not None:
        weights = run.load_best()
    return weights, log.records if log is not None else []


def _average(objective: Objective, recipe: Recipe) -> ModelEmaV3 | None:
    if not recipe.model_ema:
        return None
    if isinstance(objective, FSDPModule):
        raise TokensieveError("model_ema averages whole weights and these are sharded: leave --model-ema out")
    return ModelEmaV3(objective.model, decay=recipe.model_ema_decay, use_warmup=True)


def _add(sums: dict[str, float], parts: dict[str, Tensor], accelerator: Accelerator, count: int) -> None:
    """Add the mean over all processes of each part, one ``count``-th of it."""
    values = torch.stack([value.float().reshape(()) for value in parts.values()])
    mean: Any = accelerator.reduce(values, reduction="mean")
    for name, value in zip(parts, mean.tolist(), strict=True):
        sums[name] = sums.get(name, 0.0) + value / count


def _result(objective: Objective, ema: ModelEmaV3 | None) -> dict[str, Tensor]:
    """The tensors of the model, averaged where there is an average; every process must ask."""
    if ema is not None:
        return {name: value.detach().cpu().contiguous() for name, value in ema.module.state_dict().items()}
    state = devices.model_state(objective)
    return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}


def _evaluated(
    evaluate: Evaluate, accelerator: Accelerator, objective: Objective, ema: ModelEmaV3 | None, plain: nn.Module | None
) -> dict[str, float]:
    """The figures of the model as it is; where it is sharded, the figures that the main process finds for ``plain``."""
    if plain is None:
        return evaluate((objective.model if ema is None else ema.module).eval())
    weights = _result(objective, None)  # whole on the main process alone
    figures: dict[str, float] = {}
    if accelerator.is_main_process:
        plain.load_state_dict(weights)
        figures = evaluate(plain.eval())
    found: dict[str, float] = broadcast_object_list([figures])[0]
    return found


def _compared(best: dict[str, float], record: dict[str, Any], plan: Plan, step: int) -> dict[str, float]:
    """The best value of the metric, its step, and how many evaluations it has stood."""
    if not plan.metric:
        return best
    if plan.metric not in record:
        known = ", ".join(name for name in record if name.startswith("val/"))
        raise TokensieveError(f"there is no metric {plan.metric!r} to go by: known are {known}")
    value = float(record[plan.metric])
    if not best or value > best["value"]:
        return {"value": value, "step": step, "since": 0}
    return best | {"since": best["since"] + 1}


def _done_early(best: dict[str, float], plan: Plan) -> bool:
    return bool(plan.patience) and best.get("since", 0) >= plan.patience


def _save(
    accelerator: Accelerator,
    run: Run | None,
    step: int,
    objective: Objective,
    optimizer: Any,
    ema: ModelEmaV3 | None,
    best: dict[str, float],
) -> None:
    """Collect what the processes have and let the main one write it."""
    scaler = accelerator.scaler
    state = State(
        step=step,
        model=devices.model_state(objective),
        optimizer=devices.optimizer_state(objective, optimizer),
        ema=None if ema is None else {key: value.cpu() for key, value in ema.module.state_dict().items()},
        scaler=None if scaler is None else scaler.state_dict(),
        rng=gather_object([random_state()]),
        best=best,
    )
    if run is not None:
        run.save(state)
    accelerator.wait_for_everyone()


def _restore(
    accelerator: Accelerator, run: Run | None, objective: Objective, optimizer: Any, ema: ModelEmaV3 | None
) -> State | None:
    """Set everything to the newest checkpoint, if there is one."""
    found = broadcast_object_list([run.load() if run is not None else None])
    state: State | None = found[0]
    if state is None:
        return None
    devices.load_states(objective, optimizer, state.model, state.optimizer)
    if ema is not None and state.ema is not None:
        ema.module.load_state_dict(state.ema)
    if accelerator.scaler is not None and state.scaler is not None:
        accelerator.scaler.load_state_dict(state.scaler)
    if len(state.rng) != accelerator.num_processes:
        raise TokensieveError(
            f"the checkpoint is of {len(state.rng)} processes and this run has {accelerator.num_processes}: "
            "start as many"
        )
    set_random_state(state.rng[accelerator.process_index])
    return state
