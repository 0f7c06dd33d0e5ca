"""The decoder's layers when image tokens leave between them: what each of them sees, and what its cache holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokensieve.attention.tap import Tap
from tokensieve.engine.takeover import TakenOver
from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.language.masks import causal_mask, checked_mask, narrowed
from tokensieve.language.record import Cut, Record, of_tokens
from tokensieve.language.running import by_name
from tokensieve.methods.language._decoder import Chosen, DecoderMethod, DecoderView

OF_TOKENS = ("position_embeddings", "position_ids")  # what a layer may be given of every token, beside a mask
LAYER = "_tokensieve_layer"  # what a layer is told: its number, and who acts behind it


@dataclass(frozen=True)
class Stage:
    """What the layers from one on see of a call.

    Attributes:
        first: number of the first of these layers.
        cut: which of the tokens of the uncut call.
        here: (B, M) int64: the same as places among the tokens that go into the decoder.
        record: which columns the caches of these layers hold behind the call.
    """

    first: int
    cut: Cut
    here: Tensor
    record: Record


@dataclass
class DecoderRun:
    """One call of the decoder.

    Attributes:
        visual: (B, M) bool: which tokens that go in are of images.
        textual: (B, M) bool: which are neither of images nor padding.
        before: what the caches of later layers held before the call, by the first layer of their stage.
        enters: whether an image comes in, so that methods have something to drop.
        stages: of this call; the first is what goes in.
        given: what a stage's layers are given in place of what the first are given, by stage, name and object: a
            decoder makes masks and angles once, for all of its layers.
    """

    visual: Tensor
    textual: Tensor
    before: Mapping[int, Record]
    enters: bool
    stages: list[Stage]
    given: dict[tuple[int, str, int], tuple[Any, Any]] = field(default_factory=dict)

    @staticmethod
    def start(visual: Tensor, real: Tensor, cut: Cut, record: Record, before: Mapping[int, Record]) -> DecoderRun:
        """A call in which the tokens of ``cut`` go into the decoder.

        Args:
            visual: (B, L) bool: which tokens of the uncut call are of images.
            real: (B, L) bool: which are no padding.
            cut: which of them go in.
            record: of the cache behind the call, where no later layer loses more.
            before: of the caches of later layers, before the call.
        """
        here = torch.arange(cut.index.shape[1], device=cut.index.device).expand(len(cut.index), -1)
        of_images, textual = cut.take(visual) & ~cut.padding, cut.take(real & ~visual) & ~cut.padding
        enters = bool(of_images.any())
        run = DecoderRun(of_images, textual, before, enters, [Stage(0, cut, here, record)])
        if not enters:
            # No image comes in: later layers go on with what they hold.
            run.stages += [Stage(first, cut, here, held.grown(cut)) for first, held in sorted(before.items())]
        return run

    def stage(self, layer: int) -> Stage:
        """What this layer sees."""
        return [stage for stage in self.stages if stage.first <= layer][-1]

    def of_stage(self, stage: Stage, name: str, value: Any) -> Any:
        """What the layers of ``stage`` are given under this name, where the first are given ``value``."""
        key = (stage.first, name, id(value))
        if key not in self.given:  # which holds the object too, so that no other gets its number
            self.given[key] = (value, _of_stage(name, value, self.stages[0], stage))
        return self.given[key][1]

    def drop(self, method: DecoderMethod, site: int, layer: int, attended: Attention, hidden: Tensor) -> Tensor:
        """The hidden states (B, M', C) of those that stay behind ``layer``, and a further stage."""
        stage = self.stage(layer)
        visual = self.visual.gather(1, stage.here) & ~stage.cut.padding
        textual = self.textual.gather(1, stage.here) & ~stage.cut.padding
        keep = ~stage.cut.padding
        for row in range(len(hidden)):
            places = visual[row].nonzero().squeeze(1)
            count = min(len(places), method.remaining(int(self.visual[row].sum()), site))
            if count == len(places):
                continue
            view = DecoderView(
                queries=attended.queries[row],
                keys=attended.keys[row],
                hidden=hidden[row],
                visual=places,
                textual=textual[row].nonzero().squeeze(1),
                scale=attended.scale,
                site=site,
                count=count,
            )
            chosen = _checked(method, method.choose(view), view)
            keep[row] &= ~visual[row]
            keep[row, places[chosen.places]] = True
            if chosen.values is not None:
                at = torch.full_like(chosen.places, row), places[chosen.places]
                hidden = hidden.index_put(at, chosen.values.to(hidden.dtype))
        further = Cut.of(keep)
        self._note(layer + 1, stage, further)
        return further.take(hidden)

    def _note(self, first: int, stage: Stage, further: Cut) -> None:
        """Let the layers from ``first`` on see what ``further`` leaves of a stage.

        Raises:
            RefusedError: the layer before runs once more, for gradients, and leaves other tokens.
        """
        index, padding = further.take(stage.cut.index), further.take(stage.cut.padding) | further.padding
        again = self.stage(first)
        if again.first == first:
            if not (torch.equal(again.cut.index, index) and torch.equal(again.cut.padding, padding)):
                raise RefusedError(
                    f"layer {first} ran again for its gradients and let other image tokens leave than before, as "
                    "layers do that are not deterministic: call model.gradient_checkpointing_disable()"
                )
            return
        cut = Cut(index, padding, stage.cut.given)
        held = self.before.get(first, self._held_before())
        self.stages.append(Stage(first, cut, further.take(stage.here), held.grown(cut)))

    def _held_before(self) -> Record:
        """What the first layer held before the call."""
        record = self.stages[0].record
        new = self.stages[0].cut
        columns = record.columns[:, : record.columns.shape[1] - new.index.shape[1]]
        return Record(columns, record.length - new.given, record.compact)


@dataclass(frozen=True)
class Place:
    """Where a layer is in the decoder.

    Attributes:
        number: 0-based.
        acting: the methods that act behind it, each with how many of its sites came before.
    """

    number: int
    acting: tuple[tuple[DecoderMethod, int], ...]

    @staticmethod
    def all_of(methods: tuple[DecoderMethod, ...], depth: int) -> list[Place]:
        """The places of all layers of a decoder.

        Raises:
            TokensieveError: a method acts outside of them.
        """
        sites = {method: method.layers(depth) for method in methods}
        for method, layers in sites.items():
            if list(layers) != sorted(set(layers)) or any(not 0 <= layer < depth - 1 for layer in layers):
                raise TokensieveError(
                    f"{method.name} acts behind layers {list(layers)}: expected ascending numbers from 0 to "
                    f"{depth - 2}, of a decoder of {depth} layers"
                )
        for layer in range(depth):
            acting = [method.name for method, at in sites.items() if layer in at]
            if len(acting) > 1:
                raise TokensieveError(
                    f"{' and '.join(acting)} both act behind layer {layer + 1} of the decoder: give each its own layer"
                )
        return [
            Place(layer, tuple((method, at.index(layer)) for method, at in sites.items() if layer in at))
            for layer in range(depth)
        ]


@dataclass(frozen=True)
class Attention:
    """Queries (B, H, M, D) and keys (B, G, M, D) of the tokens of a call in one layer, and the scale of the logits."""

    queries: Tensor
    keys: Tensor
    scale: float


RUN: ContextVar[DecoderRun | None] = ContextVar("tokensieve_decoder_run", default=None)


@contextmanager
def decoding(run: DecoderRun) -> Iterator[None]:
    """``run`` goes on inside."""
    token = RUN.set(run)
    try:
        yield
    finally:
        RUN.reset(token)


CHECKPOINT = "_gradient_checkpointing_func"  # of layers of transformers: runs them, and again for their gradients


class SievedLayer(TakenOver):
    """A layer of the decoder: sees what is left for it."""

    @property
    def _gradient_checkpointing_func(self) -> Callable[..., Any]:
        """That of the layer, which goes on in the run of the decoder when it runs the layer again."""
        if CHECKPOINT not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no attribute {CHECKPOINT}")
        own, run = vars(self)[CHECKPOINT], RUN.get()
        return own if run is None else partial(_checkpointed, own, run)

    @_gradient_checkpointing_func.setter
    def _gradient_checkpointing_func(self, function: Callable[..., Any]) -> None:
        vars(self)[CHECKPOINT] = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The forward of the layer, and behind it what its methods drop."""
        run = RUN.get()
        if run is None:
            return super().forward(*args, **kwargs)
        place: Place = vars(self)[LAYER]
        stage = run.stage(place.number)
        acts = bool(place.acting) and run.enters
        if not stage.first and not acts:
            return super().forward(*args, **kwargs)
        inputs = by_name(super().forward, args, kwargs)
        hidden = inputs.pop("hidden_states")
        if stage.first:
            inputs |= {name: run.of_stage(stage, name, inputs.get(name)) for name in OF_TOKENS if name in inputs}
            inputs["attention_mask"] = run.of_stage(stage, "attention_mask", inputs.get("attention_mask"))
        if not acts:
            return super().forward(hidden, **inputs)
        tap = Tap()
        tap.as_given = True
        with tap:
            output = super().forward(hidden, **inputs)
        attended = tap.attended()
        states = output[0] if isinstance(output, tuple) else output
        tokens = states.shape[1]
        attention = Attention(attended.queries, attended.keys[:, :, -tokens:], attended.scale)
        for method, site in place.acting:
            states = run.drop(method, site, place.number, attention, states)
        return (states, *output[1:]) if isinstance(output, tuple) else states


def _checkpointed(own: Callable[..., Any], run: DecoderRun, function: Callable[..., Any], *args: Any) -> Any:
    """What ``own`` makes of a ``function`` that belongs to ``run`` whenever it is called."""

    def within(*inputs: Any) -> Any:
        with decoding(run):
            return function(*inputs)

    return own(within, *args)


def _of_stage(name: str, value: Any, whole: Stage, stage: Stage) -> Any:
    """What the layers of a later stage are given in place of ``value``, which the first layers are given."""
    if name == "attention_mask":
        return _mask(value, whole, stage)
    if name == "position_embeddings":
        return tuple(of_tokens(part, stage.here, 2) for part in value)
    return of_tokens(value, stage.here, 1) if isinstance(value, Tensor) else value


def _mask(mask: Any, whole: Stage, stage: Stage) -> Tensor | None:
    columns = stage.record.columns
    hidden = columns < 0
    if mask is None:
        return causal_mask(columns, stage.cut) if bool(hidden.any()) else None
    where = torch.searchsorted(whole.record.columns.contiguous(), columns.clamp(min=0).contiguous())
    return narrowed(checked_mask(mask), stage.here, where, hidden, stage.cut)


def _checked(method: DecoderMethod, chosen: Chosen, view: DecoderView) -> Chosen:
    """Hold a decision to what was asked.

    Raises:
        TokensieveError: another count, places out of order, or values that are not for these places.
    """
    places = chosen.places
    right = places.shape == (view.count,) and bool((places >= 0).all() and (places < len(view.visual)).all())
    if not right or (view.count > 1 and not bool((places[1:] > places[:-1]).all())):
        raise TokensieveError(
            f"{method.name} chose {places.tolist()[:8]} …: expected {view.count} ascending places below "
            f"{len(view.visual)}"
        )
    if chosen.values is not None and chosen.values.shape != (view.count, view.hidden.shape[1]):
        raise TokensieveError(
            f"{method.name} gave hidden states of shape {tuple(chosen.values.shape)}: expected "
            f"{(view.count, view.hidden.shape[1])}"
        )
    return chosen
