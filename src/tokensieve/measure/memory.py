"""Peak memory of one forward pass: the allocator's own record on CUDA, live tensors elsewhere."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors created inside ``with LiveTensors() as live`` that are alive at the same time.

    Seen at the boundary of every operator: scratch space inside a kernel is not counted, views are counted once.

    Attributes:
        current, peak: bytes alive now and at most.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = 0
        self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        inputs = {_address(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        output = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(output):
            if isinstance(leaf, Tensor) and _address(leaf) not in inputs:
                self._add(leaf.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = self._known[storage] = storage.nbytes()
        weakref.finalize(storage, self._free, size)
        self.current += size
        self.peak = max(self.peak, self.current)

    def _free(self, size: int) -> None:
        self.current -= size


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def peak(run: Callable[[Tensor], Any], x: Tensor) -> int:
    """Bytes that one ``run(x)`` needs at its peak, above what was allocated before.

    On CUDA from the allocator, on other devices from the tensors alive at once (``LiveTensors``).
    """
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
        before = torch.cuda.memory_allocated(x.device)
        torch.cuda.reset_peak_memory_stats(x.device)
        with torch.inference_mode():
            run(x)
        torch.cuda.synchronize(x.device)
        return int(torch.cuda.max_memory_allocated(x.device) - before)
    live = LiveTensors()
    with torch.no_grad(), live:
        run(x)
    return live.peak
