"""Running a model as a CUDA graph: captured once per input shape, then replayed with no Python in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tokensieve.errors import TokensieveError

WARMUP = 3  # calls before the capture, on a side stream, as torch asks for


class Graphed:
    """A function of one tensor, replayed from a CUDA graph.

    Args:
        run: takes a CUDA tensor; its work must depend on the tensor's shape only and never wait for the device.
    """

    def __init__(self, run: Callable[[Tensor], Any]) -> None:
        self._run = run
        self._captured: dict[tuple[torch.Size, torch.dtype], tuple[torch.cuda.CUDAGraph, Tensor, Any]] = {}

    def __call__(self, x: Tensor) -> Any:
        """The answer for ``x``, copied out of the graph's own memory.

        Raises:
            TokensieveError: ``x`` is not on a CUDA device, or the function cannot be captured.
        """
        key = (x.shape, x.dtype)
        if key not in self._captured:
            self._captured[key] = self._capture(x)
        graph, given, answer = self._captured[key]
        given.copy_(x)
        graph.replay()
        return pytree.tree_map_only(Tensor, Tensor.clone, answer)

    def _capture(self, x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Any]:
        if not x.is_cuda:
            raise TokensieveError(f"a CUDA graph needs its input on a CUDA device, got one on {str(x.device)!r}")
        given = x.clone()
        side = torch.cuda.Stream(x.device)
        side.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(side):
            for _ in range(WARMUP):
                self._run(given)
        torch.cuda.current_stream(x.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                answer = self._run(given)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise TokensieveError(
                f"the model cannot be captured in a CUDA graph: {reason}; it waits for the device or copies from the "
                "host while it runs: run it eager or compiled"
            ) from error
        return graph, given, answer
