"""What one prompt with an image costs: multiply-accumulates part by part, image tokens, bytes of the cache."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokensieve.answers.generate import greedy
from tokensieve.engine.probe import evaluating
from tokensieve.errors import RefusedError
from tokensieve.families._locate import family_of
from tokensieve.language.host import Host, host_of
from tokensieve.language.kept import KeptTokens, watching
from tokensieve.language.running import by_name
from tokensieve.measure.macs import call_macs, count, images_in

TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder", "vision_embed_tokens")  # where no family knows it
PROJECTORS = ("merger", "deepstack_merger_list")  # inside a tower, and of its projector all the same
PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm)
OF_DECODER = ("prefill", "token")
WATCHABLE = ("sdpa", "eager")  # whose calls are functions of torch


@dataclass(frozen=True)
class PromptCost:
    """The cost of one prompt, or the mean over several.

    Attributes:
        tower, projector, prefill, token: multiply-accumulates of the vision tower, of what makes features of its
            patches, of the decoder and its head up to the first token, and of one token decoded behind that.
        features: image tokens of the uncut prompt.
        stages: by the number of the first decoder layer that sees no more, from 0 on: image tokens that its hidden
            states have.
        depth: layers of the decoder.
        cache: bytes of the keys and values behind the prompt, and of whatever else its layers hold.
    """

    tower: float
    projector: float
    prefill: float
    token: float
    features: float
    stages: Mapping[int, float]
    depth: int
    cache: float

    @property
    def first(self) -> float:
        """Multiply-accumulates to the first token."""
        return self.tower + self.projector + self.prefill

    @property
    def tokens(self) -> float:
        """Image tokens that go into the decoder."""
        return self.stages[0]

    @property
    def mean_tokens(self) -> float:
        """Image tokens that a layer of the decoder sees, mean over its layers."""
        starts = sorted(self.stages)
        ends = [*starts[1:], self.depth]
        seen = sum(self.stages[start] * (end - start) for start, end in zip(starts, ends, strict=True))
        return seen / self.depth

    def figures(self) -> dict[str, float]:
        """The figures of a ``Row`` by name."""
        parts = {"tower": self.tower, "projector": self.projector, "prefill": self.prefill, "token": self.token}
        found = {f"{name} GMACs": macs / 1e9 for name, macs in parts.items()}
        found["image tokens"] = self.tokens
        found |= {f"image tokens, layer {first + 1} on": seen for first, seen in self.stages.items() if first}
        return found | {"cache MB": self.cache / 1e6}


def count_prompts(model: nn.Module, prompts: Sequence[Mapping[str, Any]]) -> PromptCost:
    """The cost of prompts of one row each, as a mean.

    Blocks of the tower are counted as ``tokensieve.measure.count`` does, everything else by the linear layers,
    convolutions and attentions that run, an attention by all of its pairs, those that a causal mask hides too. The
    arithmetic of methods (similarities, scores) is not counted; the text tower of a text encoder is, with the prefill.

    Args:
        model: a vision-language model of transformers, dense or reduced.
        prompts: inputs by name, on its device.
    """
    host = host_of(model, "counting")
    with evaluating(model), _watchable(model):
        costs = [_of_one(model, host, inputs) for inputs in prompts]
    stages = {first: statistics.fmean(cost.stages.get(first, 0.0) for cost in costs) for first in costs[0].stages}
    means = {
        name: statistics.fmean(getattr(cost, name) for cost in costs)
        for name in ("tower", "projector", "prefill", "token", "features", "cache")
    }
    return PromptCost(stages=stages, depth=len(host.layers), **means)


def _of_one(model: nn.Module, host: Host, inputs: Mapping[str, Any]) -> PromptCost:
    counter = _Counter(model, host)
    with counter.hooked(), watching() as calls, counter:
        greedy(model, host, inputs, tokens=2, exactly=True)
    tower, merged = counter.tower()
    macs = counter.macs
    visual = image_tokens(host, inputs["input_ids"])
    stages = _stages(calls, visual)
    return PromptCost(
        tower=tower - merged,
        projector=macs["projector"],
        prefill=macs["prefill"],
        token=macs["token"],
        features=visual,
        stages=stages,
        depth=len(host.layers),
        cache=counter.cache,
    )


def image_tokens(host: Host, ids: Tensor) -> int:
    """How many tokens (B, L) hold the place of a feature."""
    numbers = torch.tensor(list(host.placeholders.values()), device=ids.device)
    return int(torch.isin(ids, numbers).sum())


def _stages(calls: Sequence[KeptTokens], features: int) -> dict[int, float]:
    """Image tokens by the first layer that sees no more; all of them where no method acts around the decoder."""
    if not calls:
        return {0: float(features)}
    return {first: float(seen) for first, seen in calls[0].image_tokens.items()}


@contextmanager
def _watchable(model: Any) -> Iterator[None]:
    """Attention by functions of torch while it is counted: kernels of other packages cannot be watched."""
    own = getattr(model.config, "_attn_implementation", None)
    if own in WATCHABLE or own is None:
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(own)


@dataclass
class _Tower:
    """The vision tower, and with what it was called.

    Attributes:
        part: the module.
        known: whether a family of this library knows its blocks.
    """

    part: nn.Module
    known: bool
    calls: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def of(model: nn.Module, host: Host) -> _Tower:
        """The tower of a host."""
        try:
            return _Tower(family_of(model).owner, known=True)
        except RefusedError:
            inside = dict(host.core.named_modules())
            name = next((name for name in TOWERS if name in inside), None)
            if name is None:
                raise RefusedError(
                    f"{type(host.core).__name__} has no vision tower called {', '.join(TOWERS[:-1])}: its parts cannot "
                    "be counted one by one"
                ) from None
            return _Tower(inside[name], known=False)


class _Counter(TorchFunctionMode):
    """Adds up multiply-accumulates by the part of the model that runs.

    Attributes:
        macs: by part.
        cache: bytes of the decoder's cache behind its first call.
    """

    def __init__(self, model: nn.Module, host: Host) -> None:
        super().__init__()
        self.macs = dict.fromkeys(("tower", "merged", "projector", "prefill", "token"), 0)
        self.cache = 0
        self._host = host
        self._tower = _Tower.of(model, host)
        self._part = ["projector"]
        self._in_layer = 0

    def tower(self) -> tuple[float, float]:
        """Multiply-accumulates of the tower, and those of them that are the projector's."""
        if not self._tower.known:
            return self.macs["tower"], 0
        found = (count(self._tower.part, call).total * images_in(self._tower.part, call) for call in self._tower.calls)
        return sum(found), self.macs["merged"]

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """The parts of the model say inside when they run."""
        inner: list[Any] = list(self._hooks())
        try:
            yield
        finally:
            for handle in inner:
                handle.remove()

    def _hooks(self) -> Iterator[Any]:
        tower, decoder = self._tower.part, self._host.decoder
        yield tower.register_forward_pre_hook(self._into_tower, with_kwargs=True)
        yield tower.register_forward_hook(self._out_of_part)
        for name in PROJECTORS:
            found = getattr(tower, name, None)
            for part in found if isinstance(found, nn.ModuleList) else [found] if found is not None else []:
                yield part.register_forward_pre_hook(self._into("merged"))
                yield part.register_forward_hook(self._out_of_part)
        yield decoder.register_forward_pre_hook(self._into_decoder)
        yield decoder.register_forward_hook(self._out_of_decoder)
        for layer in self._host.layers:
            for child in layer.children():
                yield child.register_forward_pre_hook(self._into_layer)
                yield child.register_forward_hook(self._out_of_layer)

    def _into(self, part: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._part.append(part)

        return enter

    def _into_tower(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._part.append("tower")
        self._tower.calls.append(by_name(module.forward, args, kwargs))

    def _out_of_part(self, *_: Any) -> None:
        self._part.pop()

    def _into_decoder(self, *_: Any) -> None:
        self._part = ["prefill" if self._part == ["projector"] else "token"]  # and so is the head behind it

    def _out_of_decoder(self, module: Any, args: Any, output: Any) -> None:
        if self._part == ["prefill"]:
            self.cache = cache_bytes(getattr(output, "cache", None))

    def _into_layer(self, *_: Any) -> None:
        self._in_layer += 1

    def _out_of_layer(self, *_: Any) -> None:
        self._in_layer -= 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        macs = call_macs(func, args, kwargs, result)
        part = self._part[-1]
        of_model = self._in_layer or part not in OF_DECODER  # and not of a method, which chooses around the layers
        if of_model and func in PRODUCTS:  # an attention or a projection that is written out
            macs = result.numel() * args[0].shape[-1]
        self.macs[part] += macs
        if part == "merged":
            self.macs["projector"] += macs
        return result


def cache_bytes(cache: Any) -> int:
    """Bytes of the tensors that the layers of a cache of transformers hold; 0 without one."""
    held = (value for layer in getattr(cache, "layers", ()) for value in vars(layer).values())
    return sum(value.numel() * value.element_size() for value in held if isinstance(value, Tensor) and value.dim() > 2)
