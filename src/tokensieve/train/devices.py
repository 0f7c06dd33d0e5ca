"""One device or many: accelerate's engine, and torch's fully sharded training where ``accelerate launch`` asks."""

from __future__ import annotations

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from tokensieve.errors import TokensieveError
from tokensieve.train.objective import Objective

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # what one process can read, however many wrote it


def accelerator_for(
    *, device: str, amp_dtype: str | None, grad_accum_steps: int, trackers: tuple[str, ...], folder: str
) -> Accelerator:
    """accelerate's engine for this process.

    Args:
        device: "cpu" keeps a single process off its GPU; any other leaves the choice to accelerate.
        amp_dtype: "bfloat16" or "float16" to run under autocast; None for full precision.
        grad_accum_steps: forward passes an update adds up.
        trackers: names of accelerate's trackers, such as "tensorboard".
        folder: where trackers write.

    Raises:
        TokensieveError: the precision does not work on this device, or a tracker is not installed.
    """
    precisions = {None: "no", "bfloat16": "bf16", "float16": "fp16"}
    if amp_dtype not in precisions:
        raise TokensieveError(f"--amp-dtype must be bfloat16 or float16, got {amp_dtype!r}")
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier run in this process
    try:
        return Accelerator(
            cpu=device == "cpu" or not torch.accelerator.is_available(),
            mixed_precision=precisions[amp_dtype],
            gradient_accumulation_steps=grad_accum_steps,
            log_with=list(trackers) or None,
            project_dir=folder,
        )
    except (ValueError, ImportError) as error:
        raise TokensieveError(f"accelerate cannot train like this: {' '.join(str(error).split())}") from error


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether ``accelerate launch --use_fsdp`` started this process."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return asked and accelerator.num_processes > 1


def shard(accelerator: Accelerator, objective: Objective) -> None:
    """Split the parameters of ``objective`` over the processes, in place, if that is asked for.

    accelerate wraps nothing that is sharded already. On CPUs it refuses to shard at all, and torch does not.
    """
    if not is_sharded(accelerator):
        return
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise TokensieveError("sharded training is of FSDP version 2: accelerate launch --use_fsdp --fsdp_version 2 …")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for part in objective.shards():
        fully_shard(part, mesh=mesh)
    fully_shard(objective, mesh=mesh)


def prepare(accelerator: Accelerator, objective: Objective, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
    """Objective and optimizer as accelerate runs them."""
    if isinstance(objective, FSDPModule) and accelerator.distributed_type != DistributedType.FSDP:
        return objective, accelerator.prepare(optimizer)
    prepared, wrapped = accelerator.prepare(objective, optimizer)
    return prepared, wrapped


def model_state(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and persistent buffer of an objective, whole, on the CPU, by its plain name."""
    state: dict[str, Any] = get_model_state_dict(module, options=WHOLE)
    return {name: value.contiguous() for name, value in state.items()}


def optimizer_state(module: nn.Module, optimizer: Any) -> dict[str, Any]:
    """The optimizer's state, whole, on the CPU, by parameter name."""
    return get_optimizer_state_dict(module, _plain(optimizer), options=WHOLE)


def load_states(module: nn.Module, optimizer: Any, model: dict[str, Any], state: dict[str, Any]) -> None:
    """Set what ``model_state`` and ``optimizer_state`` gave."""
    set_model_state_dict(module, model, options=WHOLE)
    set_optimizer_state_dict(module, _plain(optimizer), state, options=WHOLE)


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    found: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return found
