"""The training loop, read top to bottom: restore, then update by update to the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from tokensieve.errors import TokensieveError
from tokensieve.train.data import Places, TrainingImages, loader
from tokensieve.train.keep import Easing
from tokensieve.train.log import Log
from tokensieve.train.objective import Objective
from tokensieve.train.recipe import Recipe
from tokensieve.train.state import Run
from tokensieve.train.updates import Evaluate, Plan, Updates


@dataclass(frozen=True)
class Told:
    """What is said about the run after an update, on the main process."""

    step: int
    steps: int
    loss: float
    images_per_second: float


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
    # Where a run before this one stopped: weights, optimizer, random states, and the best figures so far.
    updates = Updates(objective, recipe, accelerator, plan)
    state = updates.restore(run)
    start, best = (state.step, state.best) if state is not None else (0, {})
    log = Log(run.folder, start) if run is not None else None
    batches = _batches(images, recipe, plan, accelerator, start)
    clock, seen = time.perf_counter(), 0
    stopped = _done_early(best, plan)
    for step in range(start, plan.steps):
        if stopped:
            break
        share = easing(step)
        figures = updates.update(step, batches, run)
        # Tell how far it is; the plan says after which updates figures go into the log.
        done, seen = step + 1, seen + updates.batch
        speed = seen / (time.perf_counter() - clock)
        if on_step is not None and accelerator.is_main_process:
            on_step(Told(done, plan.steps, figures["loss"], speed))
        record = {"lr": updates.rate, "strength": share, **figures} if plan.logs_after(done) else {}
        if evaluate is not None and plan.evaluates_after(done):
            easing.finish()  # what is evaluated is the method at its full strength
            record |= updates.evaluated(evaluate)
            best = _compared(best, record, plan, done)
            _keep_if_best(updates, run, best, done)
            stopped = _done_early(best, plan)
        _tell(accelerator, log, plan, record, done, speed)
        # The end is always saved, an early one too: a run is resumed after the update that was saved last.
        if done % plan.checkpoint_every == 0 or done == plan.steps or stopped:
            updates.save(run, done, best)
            if log is not None:
                log.write_table()
    # The best weights where a metric was watched, else the last.
    easing.finish()
    weights = updates.result()
    if best and run is not None:
        weights = run.load_best()
    return weights, log.records if log is not None else []


def _batches(images: TrainingImages, recipe: Recipe, plan: Plan, accelerator: Accelerator, start: int) -> Iterator[Any]:
    """This process's batches from update ``start`` on, as if the run had never been interrupted."""
    passes = recipe.grad_accum_steps
    places = Places(
        len(images),
        recipe.batch_size,
        plan.steps * passes,
        plan.seed,
        accelerator.process_index,
        accelerator.num_processes,
        start * passes,
        recipe.shuffle,
    )
    return iter(loader(images, places, plan.workers))


def _keep_if_best(updates: Updates, run: Run | None, best: dict[str, float], step: int) -> None:
    """Write the weights where no evaluation was better; every process must ask, the main one writes."""
    if best.get("step") != step:
        return
    weights = updates.result()
    if run is not None:
        run.save_best(weights, step)


def _tell(
    accelerator: Accelerator, log: Log | None, plan: Plan, record: dict[str, Any], step: int, speed: float
) -> None:
    """Put what is known after an update into trackers and log; nothing where there is nothing."""
    if not record:
        return
    accelerator.log(record, step=step)
    if log is not None:
        log.add({"step": step, "epoch": step / plan.steps_per_epoch, "images_per_second": speed} | record)


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
