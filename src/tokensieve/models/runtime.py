"""How models run: device, precision, memory format, and eager, compiled or replayed from a CUDA graph."""

from __future__ import annotations

import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.errors import TokensieveError
from tokensieve.models.graphs import Graphed
from tokensieve.models.options import RuntimeOptions
from tokensieve.utils.names import nearest


@dataclass(frozen=True, kw_only=True)
class Runtime(RuntimeOptions):
    """How models run; a CUDA graph is captured for each model and input shape."""

    @property
    def dtype(self) -> str:
        """What the arithmetic runs in."""
        return self.amp_dtype if self.amp else self.model_dtype or "float32"

    def check(self) -> None:
        """Whether this machine can run like this.

        Raises:
            TokensieveError: no such device, backend or dtype, or a CUDA graph without CUDA.
        """
        check_device(self.device)
        if self.torchcompile is not None:
            check_backend(self.torchcompile)
        if self.amp_dtype not in ("bfloat16", "float16"):
            raise TokensieveError(f"--amp-dtype must be bfloat16 or float16, got {self.amp_dtype!r}")
        if self.model_dtype not in (None, "float32", "bfloat16", "float16", "float64"):
            raise TokensieveError(
                f"the model's dtype must be float32, bfloat16, float16 or float64, got {self.model_dtype!r}"
            )
        if self.cuda_graph and torch.device(self.device).type != "cuda":
            raise TokensieveError(
                f"a CUDA graph needs a CUDA device, and the device is {self.device!r}: run eager or compiled here, "
                "or name a CUDA device with --device"
            )

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, in its dtype and the memory format."""
        model = model.to(device=self.device, dtype=self._cast)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model  # type: ignore[call-overload, no-any-return]

    def send(self, images: Tensor) -> Tensor:
        """Images on the device, in the model's dtype and the memory format."""
        images = images.to(device=self.device, dtype=self._cast, non_blocking=True)
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images

    def callable(self, model: nn.Module, eager: bool = False) -> Callable[[Tensor], Any]:
        """A function from images, wherever they are, to the model's answer; ``eager`` neither compiles nor captures."""
        run: Callable[[Tensor], Any] = model
        if self.torchcompile is not None and not eager:
            run = torch.compile(_with_code_of_its_own(model), backend=self.torchcompile, dynamic=False)
        if self.cuda_graph and not eager:
            run = Graphed(run)

        def forward(images: Tensor) -> Any:
            with self._autocast():
                return run(self.send(images))

        return forward

    @property
    def _cast(self) -> torch.dtype | None:
        return None if self.model_dtype is None else getattr(torch, self.model_dtype)

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self.amp:
            return nullcontext()
        # A graph must hold its casts itself: those in autocast's cache are freed when autocast ends.
        dtype = getattr(torch, self.amp_dtype)
        return torch.autocast(torch.device(self.device).type, dtype=dtype, cache_enabled=not self.cuda_graph)


def check_device(device: str) -> None:
    """Raise unless tensors can live on ``device`` here."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # a device without data, such as "meta", is one too
        raise TokensieveError(f"device {device!r} is not available: {str(error).partition(chr(10))[0]}") from error


def check_backend(backend: str) -> None:
    """Raise unless ``torch.compile`` has the backend."""
    known = torch.compiler.list_backends()
    if backend not in torch.compiler.list_backends(exclude_tags=()):
        raise TokensieveError(
            f"torch.compile has no backend {backend!r}{nearest(backend, known)}; it has {', '.join(known)}"
        )


def _with_code_of_its_own(model: nn.Module) -> Callable[[Tensor], Any]:
    """``model`` as a function whose code object no other function has.

    TorchDynamo counts recompiles per code object and falls back to eager at the ninth. All models of one class share
    the code of their forward, so that the ninth variant of a benchmark would run, and be timed, uncompiled.
    """

    def forward(images: Tensor) -> Any:
        return model(images)

    own = types.FunctionType(forward.__code__.replace(), forward.__globals__, "forward", None, forward.__closure__)
    return own
