"""The decoder's layers when image tokens leave between them: what each of them sees, and what its cache holds."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokensieve.attention.tap import Tap
from tokensieve.engine.takeover import TakenOver
from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.language.record import Cut, Record
from tokensieve.methods.language._decoder import Chosen, DecoderMethod, DecoderView

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
        methods: of the decoder.
        visual: (B, M) bool: which tokens that go in are of images; none in a call that puts no image in.
        textual: (B, M) bool: which are neither of images nor padding.
        before: what the caches of later layers held before the call, by the first layer of their stage.
        stages: of this call; the first is what goes in.
    """

    methods: tuple[DecoderMethod, ...]
    visual: Tensor
    textual: Tensor
    before: Mapping[int, Record]
    stages: list[Stage] = field(default_factory=list)

    @staticmethod
    def start(
        methods: tuple[DecoderMethod, ...],
        visual: Tensor,
        real: Tensor,
        cut: Cut,
        record: Record,
        before: Mapping[int, Record],
    ) -> DecoderRun:
        """A call in which the tokens of ``cut`` go into the decoder.

        Args:
            methods: of the decoder.
            visual: (B, L) bool: which tokens of the uncut call are of images.
            real: (B, L) bool: which are no padding.
            cut: which of them go in.
            record: of the cache behind the call, where no later layer loses more.
            before: of the caches of later layers, before the call.
        """
        here = torch.arange(cut.index.shape[1], device=cut.index.device).expand(len(cut.index), -1)
        of_images, textual = cut.take(visual) & ~cut.padding, cut.take(real & ~visual) & ~cut.padding
        run = DecoderRun(methods, of_images, textual, before, [Stage(0, cut, here, record)])
        if not bool(run.visual.any()):
            # No image comes in: later layers go on with what they hold.
            run.stages += [Stage(first, cut, here, held.grown(cut)) for first, held in sorted(before.items())]
        return run

    def stage(self, layer: int) -> Stage:
        """What this layer sees."""
        return [stage for stage in self.stages if stage.first <= layer][-1]

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
        index, padding = further.take(stage.cut.index), further.take(stage.cut.padding) | further.padding
        cut = Cut(index, padding, stage.cut.given)
        first = layer + 1
        held = self.before.get(first, self._held_before())
        self.stages.append(Stage(first, cut, further.take(stage.here), held.grown(cut)))
        return further.take(hidden)

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


class SievedLayer(TakenOver):
    """A layer of the decoder: sees what is left for it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The forward of the layer, and behind it what its methods drop."""
        run = RUN.get()
        if run is None:
            return super().forward(*args, **kwargs)
        place: Place = vars(self)[LAYER]
        bound = inspect.signature(super().forward).bind_partial(*args, **kwargs).arguments
        inputs = {**bound, **bound.get("kwargs", {})}
        inputs.pop("kwargs", None)
        hidden = inputs.pop("hidden_states")
        stage = run.stage(place.number)
        if stage.first:
            inputs = _seen(inputs, run.stages[0], stage)
        if not place.acting or not bool(run.visual.any()):
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


def _seen(inputs: dict[str, Any], whole: Stage, stage: Stage) -> dict[str, Any]:
    """What a layer of a later stage is given beside its hidden states."""
    seen = dict(inputs)
    if "position_embeddings" in seen:
        seen["position_embeddings"] = tuple(_of_tokens(part, stage.here, 2) for part in seen["position_embeddings"])
    if isinstance(seen.get("position_ids"), Tensor):
        seen["position_ids"] = _of_tokens(seen["position_ids"], stage.here, 1)
    seen["attention_mask"] = _mask(seen.get("attention_mask"), whole, stage)
    return seen


def _of_tokens(values: Tensor, here: Tensor, behind: int) -> Tensor:
    """``values`` (…, B or 1, M, …) of the tokens ``here`` (B, M'), which lie along the dimension ``-behind``."""
    batch, number = here.shape
    dim = values.dim() - behind
    if dim == 0:
        values, dim = values.unsqueeze(0), 1
    sizes = [*values.shape]
    sizes[dim - 1] = batch
    values = values.expand(sizes)
    index = here.view([1] * (dim - 1) + [batch, number] + [1] * (behind - 1))
    sizes[dim] = number
    return values.gather(dim, index.expand(sizes))


def _mask(mask: Any, whole: Stage, stage: Stage) -> Any:
    """The mask of the first layers for a later stage."""
    hidden = stage.record.columns < 0
    if mask is None and not bool(hidden.any()):
        return None
    columns = torch.searchsorted(whole.record.columns.contiguous(), stage.record.columns.clamp(min=0).contiguous())
    if mask is None:
        rows, total = stage.here.shape[1], stage.record.columns.shape[1]
        place = torch.arange(total, device=hidden.device)
        causal = place <= place[total - rows :].unsqueeze(1)
        opened = causal & ~hidden[:, None, None]
        own = place == place[total - rows :].unsqueeze(1)
        return opened | (own & stage.cut.padding[:, None, :, None])
    if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
        raise RefusedError(
            f"a decoder whose layers lose tokens takes an attention mask (B, L) or (B, 1, L, L), got "
            f"{type(mask).__name__}: use sdpa attention"
        )
    if mask.dim() == 2:
        return mask.gather(1, columns).masked_fill(hidden, 0)
    mask = mask.expand(len(columns), *mask.shape[1:])
    rows = mask.gather(2, stage.here[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    seen = rows.gather(3, columns[:, None, None].expand(*rows.shape[:3], -1))
    shut: Any = False if seen.dtype == torch.bool else torch.finfo(seen.dtype).min
    opened_value: Any = True if seen.dtype == torch.bool else 0
    seen = seen.masked_fill(hidden[:, None, None], shut)
    total, number = seen.shape[3], stage.here.shape[1]
    own = torch.zeros_like(seen, dtype=torch.bool)
    place = torch.arange(number, device=own.device)
    own[:, :, place, place + total - number] = stage.cut.padding[:, None]
    return seen.masked_fill(own, opened_value)


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
