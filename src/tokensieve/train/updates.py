"""What an update of the weights takes, from the optimizer to the checkpoint, on one device or on many."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
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
from tokensieve.train.data import mixing
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

    def logs_after(self, done: int) -> bool:
        """Whether the log gets a line after so many updates."""
        return done % self.log_every == 0 or done == self.steps

    def evaluates_after(self, done: int) -> bool:
        """Whether the model is evaluated after so many updates, where there is something to evaluate on."""
        return done == self.steps or (bool(self.evaluate_every) and done % self.evaluate_every == 0)


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


class Updates:
    """The objective as its processes train it, with everything that changes from update to update.

    Args:
        objective: what to train; moved to this process's device, and sharded where that is asked for.
        recipe, plan: how, how long.
        accelerator: this process's engine.

    Attributes:
        batch: images of one update over all processes.
    """

    def __init__(self, objective: Objective, recipe: Recipe, accelerator: Accelerator, plan: Plan) -> None:
        self.objective, self.recipe, self.accelerator, self.plan = objective, recipe, accelerator, plan
        self.batch = recipe.batch_size * accelerator.num_processes * recipe.grad_accum_steps
        objective.to(accelerator.device)
        objective.to_teacher_device(accelerator.device)
        # A sharded model is evaluated in a whole copy. Sharded first, so that the optimizer is made of the parameters
        # that will be there.
        self.plain = copy.deepcopy(objective.model) if devices.is_sharded(accelerator) else None
        devices.shard(accelerator, objective)
        self.plain_optimizer = make_optimizer(objective, recipe, self.batch)
        self.module, self.optimizer = devices.prepare(accelerator, objective, self.plain_optimizer)
        self.scheduler = make_scheduler(self.plain_optimizer, recipe, self.batch, plan.steps, plan.steps_per_epoch)
        self.ema = _average(objective, recipe)
        self.mixup = mixing(recipe, plan.classes) if plan.labelled else None
        torch.manual_seed(plan.seed + accelerator.process_index)

    @property
    def rate(self) -> float:
        """The learning rate of the first group of parameters."""
        return float(self.plain_optimizer.param_groups[0]["lr"])

    def update(self, step: int, batches: Iterator[Any], run: Run | None) -> dict[str, float]:
        """One update of the weights; returns the loss and its parts, means over all passes and processes.

        Raises:
            TokensieveError: the loss is no longer finite.
        """
        self.module.train()
        self.scheduler.step_update(num_updates=step)
        figures: dict[str, float] = {}
        for _ in range(self.recipe.grad_accum_steps):
            pixels, targets = self._moved(*next(batches))
            with self.accelerator.accumulate(self.module):
                loss, parts = self.module(pixels, targets, step / self.plan.steps)
                _add(figures, {"loss": loss.detach(), **parts}, self.accelerator, self.recipe.grad_accum_steps)
                if not math.isfinite(figures["loss"]):
                    kept = run.kept() if run is not None else "see the main process"
                    raise TokensieveError(f"the loss is {figures['loss']} at step {step + 1}: {kept}; lower --lr")
                self._descend(loss)
        if self.ema is not None:
            self.ema.update(self.objective.model, step=step)
        return figures

    def _moved(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """A batch on this process's device, mixed where the recipe says so; no labels where the loss takes none."""
        pixels = pixels.to(self.accelerator.device)
        targets = labels.to(self.accelerator.device) if self.plan.labelled else None
        return self.mixup(pixels, targets) if self.mixup is not None else (pixels, targets)

    def _descend(self, loss: Tensor) -> None:
        """Gradients, and a step along them once the passes of an update are complete: accelerate knows when."""
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients and self.recipe.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self.module.parameters(), self.recipe.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def result(self) -> dict[str, Tensor]:
        """The tensors of the model, averaged where there is an average; every process must ask."""
        if self.ema is not None:
            return {name: value.detach().cpu().contiguous() for name, value in self.ema.module.state_dict().items()}
        return self._own()

    def _own(self) -> dict[str, Tensor]:
        state = devices.model_state(self.objective)
        return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}

    def evaluated(self, evaluate: Evaluate) -> dict[str, float]:
        """The figures of the model; where it is sharded, the figures that the main process finds for a copy."""
        if self.plain is None:
            return evaluate((self.objective.model if self.ema is None else self.ema.module).eval())
        weights = self._own()  # whole on the main process alone
        figures: dict[str, float] = {}
        if self.accelerator.is_main_process:
            self.plain.load_state_dict(weights)
            figures = evaluate(self.plain.eval())
        found: dict[str, float] = broadcast_object_list([figures])[0]
        return found

    def save(self, run: Run | None, step: int, best: dict[str, float]) -> None:
        """Collect what the processes have and let the main one write it."""
        scaler, ema = self.accelerator.scaler, self.ema
        state = State(
            step=step,
            model=devices.model_state(self.objective),
            optimizer=devices.optimizer_state(self.objective, self.optimizer),
            ema=None if ema is None else {key: value.cpu() for key, value in ema.module.state_dict().items()},
            scaler=None if scaler is None else scaler.state_dict(),
            rng=gather_object([random_state()]),
            best=best,
        )
        if run is not None:
            run.save(state)
        self.accelerator.wait_for_everyone()

    def restore(self, run: Run | None) -> State | None:
        """Set everything to the newest checkpoint, if there is one."""
        found = broadcast_object_list([run.load() if run is not None else None])
        state: State | None = found[0]
        if state is None:
            return None
        accelerator = self.accelerator
        devices.load_states(self.objective, self.optimizer, state.model, state.optimizer)
        if self.ema is not None and state.ema is not None:
            self.ema.module.load_state_dict(state.ema)
        if accelerator.scaler is not None and state.scaler is not None:
            accelerator.scaler.load_state_dict(state.scaler)
        if len(state.rng) != accelerator.num_processes:
            raise TokensieveError(
                f"the checkpoint is of {len(state.rng)} processes and this run has {accelerator.num_processes}: "
                "start as many"
            )
        set_random_state(state.rng[accelerator.process_index])
        return state


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
