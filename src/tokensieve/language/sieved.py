"""A vision-language model whose decoder sees fewer image tokens: its core and its decoder, taken over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.engine.takeover import TakenOver
from tokensieve.errors import RefusedError
from tokensieve.language.cache import inside, keep_record, later_of, record_of
from tokensieve.language.decoder import DecoderRun, Stage, decoding
from tokensieve.language.encoder import TextEncoder
from tokensieve.language.entering import Entrance
from tokensieve.language.grids import grids_of
from tokensieve.language.host import Host
from tokensieve.language.images import Features, images_in, standing, text_of
from tokensieve.language.kept import WATCHED, KeptTokens
from tokensieve.language.loss import STAYED
from tokensieve.language.masks import cut_masks, flash, uncut_masks
from tokensieve.language.pooling import Pooling
from tokensieve.language.prefix import choose
from tokensieve.language.record import Cut, Record, of_tokens
from tokensieve.language.running import CALL, SEEN, SIGNALS, Call, by_name, calling, features_seen, listening
from tokensieve.methods.language._decoder import DecoderMethod
from tokensieve.methods.language._prefix import PrefixMethod

PLAN = "_tokensieve_language"
OF_FEATURES = ("deepstack_visual_embeds",)  # lists of (features of all images, C)
BY_ROW = "image_seq_len"  # cores that have it (Idefics3, SmolVLM) give the features of all pictures of a row together


@dataclass(frozen=True)
class LanguagePlan:
    """What was applied.

    Attributes:
        prefix: the prefix method, if any.
        decoder: the methods of the decoder.
        host: that they act in.
        pooling: how features are made of the patches of the tower, where a method reads its attention.
        encoder: with which the prefix method compares patches and text, if any.
        input: the input method, if any, and how pictures come in.
    """

    prefix: PrefixMethod | None
    decoder: tuple[DecoderMethod, ...]
    host: Host
    pooling: Pooling | None = None
    encoder: TextEncoder | None = None
    input: Entrance | None = None

    @property
    def compact(self) -> bool:
        """Whether positions are counted anew over what is left."""
        methods = (self.prefix, None if self.input is None else self.input.method)
        return any(method is not None and method.positions == "compact" for method in methods)


class _NotedFeatures:
    """A method of the core, with its own signature, which ``generate`` reads: what it gives is noted, and with it what
    was heard in the tower meanwhile."""

    def __init__(self, modality: str) -> None:
        self.modality = modality

    def __get__(self, core: Any, kind: type) -> Any:
        inner = getattr(super(SievedCore, core), f"get_{self.modality}_features")

        @wraps(inner)
        def features(*args: Any, **kwargs: Any) -> Any:
            if SIGNALS.get() is not None:  # called by the one of another modality, which notes it
                return inner(*args, **kwargs)
            plan: LanguagePlan = vars(core)[PLAN]
            given = by_name(inner, args, kwargs)
            entered = None if plan.input is None else plan.input.enter(self.modality, given)
            if entered is not None:
                args, given = (), entered.given
                kwargs = given
            with listening() as heard:
                outputs = inner(*args, **kwargs)
            noted = _features(core, outputs)
            signals = {} if plan.pooling is None else plan.pooling.of_features(heard, noted.lengths, given)
            noted = replace(noted, signals=signals, grids=grids_of(given, core.config, noted.lengths))
            if plan.input is not None and entered is not None:
                noted = entered.noted(outputs, noted, plan.input.method.name)
            if hasattr(outputs, "pooler_output"):
                setattr(outputs, SEEN, noted)
            call = CALL.get()
            if call is not None:
                call.features[self.modality] = noted
            return outputs

        return features


class SievedCore(TakenOver):
    """Around the decoder: notes which tokens are of images, and what the tower said of them."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The forward of the model, with a ``Call`` running."""
        given = by_name(super().forward, args, kwargs)
        STAYED.set(None)
        call = Call(given.get("input_ids"), given.get("attention_mask"))
        encoded = given.get("mm_encoder_outputs")
        if isinstance(encoded, Tensor):
            raise RefusedError(
                f"mm_encoder_outputs is a tensor of shape {tuple(encoded.shape)}, which does not say where an image "
                'ends: give {"image": model.get_image_features(…)}'
            )
        for modality, outputs in (encoded or {}).items():
            if outputs is not None:
                call.features[modality] = features_seen(outputs) or _unseen(self, outputs)
        with calling(call):
            return super().forward(*args, **kwargs)

    get_image_features = _NotedFeatures("image")
    get_video_features = _NotedFeatures("video")


def _unseen(core: Any, outputs: Any) -> Features:
    """What is known of features that are a copy of what ``get_image_features`` gave.

    Raises:
        RefusedError: an input method has left some of them out, and the copy does not say which.
    """
    plan: LanguagePlan = vars(core)[PLAN]
    if plan.input is not None:
        raise RefusedError(
            f"mm_encoder_outputs does not say which features {plan.input.method.name} has left out: give what "
            "get_image_features of this model returns, or the pixels"
        )
    return _features(core, outputs)


def _features(core: Any, outputs: Any) -> Features:
    """What is known of the features that a core gave from them alone."""
    encoder = vars(core)[PLAN].encoder
    return Features.of(outputs, hasattr(core, BY_ROW), None if encoder is None else encoder.patches)


class SievedDecoder(TakenOver):
    """The decoder: sees what is left, and answers for the uncut sequence."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The forward of the decoder on the tokens that stay. Where a token is gone, the hidden states are those of the
        last one before it that stayed."""
        inputs = by_name(super().forward, args, kwargs)
        call, record = CALL.get(), record_of(inputs.get("cache"))
        embeddings = inputs.get("inputs_embeds")
        if embeddings is None and inputs.get("input_ids") is not None and record is not None:
            embeddings = self.get_input_embeddings()(inputs["input_ids"])  # type: ignore[operator]
        if embeddings is None or (record is None and (call is None or not call.features)):
            return super().forward(*args, **kwargs)
        if torch.compiler.is_exporting():
            raise RefusedError(
                "which tokens a decoder sees follows from the prompt, and torch.export writes down one case: export "
                "the tower with its prefix method (ts.export_model), or call ts.remove(model) first"
            )
        plan: LanguagePlan = vars(self)[PLAN]
        whole = embeddings
        keep, visual, embeddings = _chosen(plan, call, whole)
        if record is None and not plan.decoder and bool(keep.all()):
            _note_kept(visual, (), whole, embeddings)
            return super().forward(*args, **kwargs)
        inputs |= {"inputs_embeds": embeddings, "input_ids": None}
        cut, later = Cut.of(keep), later_of(inputs.get("cache"))
        _refuse(self, inputs, cut)
        record = _cut_inputs(self, inputs, cut, record, plan)
        run = DecoderRun.start(visual, _real(call, keep), cut, record, later)
        with decoding(run), inside(inputs.get("cache")):
            outputs = super().forward(**inputs)
        cache = getattr(outputs, "cache", None)
        if cache is not None:
            keep_record(cache, record, {stage.first: stage.record for stage in run.stages[1:]})
        _note_kept(visual, run.stages, whole, embeddings)
        STAYED.set(run.stages[-1].cut.stays if run.enters else None)
        return _restored(outputs, run)


def _note_kept(visual: Tensor, stages: Sequence[Stage], whole: Tensor, embeddings: Tensor) -> None:
    """Tell who watches what stayed of the images of a call, and where other features stand than in ``whole``; where
    there is no stage, everything stayed."""
    watched = WATCHED.get()
    if watched is not None and bool(visual.any()):
        stays = tuple((stage.first, stage.cut.stays) for stage in stages) or ((0, torch.ones_like(visual)),)
        watched.append(KeptTokens(visual, stays, (whole != embeddings).any(dim=2)))


def _chosen(plan: LanguagePlan, call: Call | None, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, L) bool which tokens of this call stay, and which are of images; the embeddings (B, L, C) of all."""
    keep = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
    if call is None or not call.features:
        return keep, torch.zeros_like(keep), embeddings
    visual = {
        modality: _places(plan.host, call, number, embeddings)
        for modality, number in plan.host.placeholders.items()
        if modality in call.features
    }
    of_images = torch.stack(list(visual.values())).any(dim=0)
    if plan.prefix is None and plan.input is None:
        return keep, of_images, embeddings
    images = {modality: images_in(where, call.features[modality]) for modality, where in visual.items()}
    for modality, where in visual.items():
        keep &= ~where | standing(where, images[modality])
    if plan.prefix is None:
        return keep, of_images, embeddings
    words = _real(call, keep) & ~of_images
    text = text_of(embeddings, words)
    prompts = None if plan.encoder is None else plan.encoder.prompts(call.input_ids, words)
    for found in images.values():
        stays, embeddings = choose(plan.prefix, embeddings, found, text, prompts)
        keep &= stays
    return keep, of_images, embeddings


def _real(call: Call | None, tokens: Tensor) -> Tensor:
    """(B, L) bool: which ``tokens`` of a call are no padding."""
    mask = None if call is None else call.mask
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return torch.ones_like(tokens)
    return mask[:, -tokens.shape[1] :].bool().to(tokens.device)


def _places(host: Host, call: Call, number: int, embeddings: Tensor) -> Tensor:
    """(B, L) bool: where the features of a modality stand, by the token that holds their places."""
    if call.input_ids is None:
        raise RefusedError(
            "where the features of images stand is read from input_ids, and inputs_embeds were given: give input_ids "
            "and pixel_values, or reduce the features before you embed them"
        )
    return (call.input_ids == number).to(embeddings.device)


def _refuse(decoder: Any, inputs: dict[str, Any], cut: Cut) -> None:
    """Refuse what cannot be right on fewer tokens.

    Raises:
        RefusedError: says why.
    """
    cache, config = inputs.get("cache"), decoder.config
    if getattr(cache, "is_compileable", False):
        raise RefusedError(
            "a static cache has room for the uncut sequence and a mask made for it: leave cache_implementation out, a "
            "dynamic cache holds fewer tokens than that"
        )
    for name in ("output_attentions", "output_router_logits"):
        if inputs.get(name, getattr(config, name, None)):
            raise RefusedError(
                f"a model whose decoder lost image tokens hands out nothing for {name}: it would be of fewer tokens; "
                "ts.remove(model) gives the dense model back"
            )
    packed = [name for name in ("cu_seq_lens_q", "cu_seq_lens_k") if inputs.get(name) is not None]
    if packed:
        raise RefusedError(
            f"{packed[0]} says where packed sequences of the uncut batch end: give one sequence a row, and an "
            "attention mask where rows are padded"
        )
    goes_on = cache is not None and cache.get_seq_length() > 0
    linear = any(hasattr(layer, "conv_states") for layer in getattr(cache, "layers", ()))
    if goes_on and linear and bool(cut.padding.any()):
        raise RefusedError(
            "rows that keep different numbers of tokens are padded, and behind earlier tokens the padding would change "
            "the state of this decoder's linear-attention layers: give the conversations one by one"
        )
    gaps = goes_on and len(cut.index) == 1 and 1 < cut.index.shape[1] < cut.given
    if gaps and flash(config):
        raise RefusedError(
            "flash attention takes positions with gaps for packed sequences, which behind earlier tokens of one row is "
            'wrong: use model.set_attn_implementation("sdpa") for images in later turns'
        )


def _cut_inputs(decoder: Any, inputs: dict[str, Any], cut: Cut, record: Record | None, plan: LanguagePlan) -> Record:
    """Cut what goes into the decoder, in place; the record of its cache behind the call."""
    batch, given = cut.index.shape[0], cut.given
    embeddings, cache = inputs["inputs_embeds"], inputs.get("cache")
    past = int(cache.get_seq_length()) if cache is not None else 0
    if record is None:
        record = Record.start(batch, past, embeddings.device, plan.compact)
    after = record.grown(cut)
    inputs["attention_mask"] = cut_masks(uncut_masks(decoder.config, inputs), cut, after, cache, decoder.config)
    inputs["position_ids"] = _positions(inputs.get("position_ids"), cut, record)
    visual = inputs.get("visual_pos_masks")
    for name in OF_FEATURES:
        if inputs.get(name) is not None and visual is not None:
            inputs[name] = [level[cut.stays[visual]] for level in inputs[name]]
    if visual is not None:
        inputs["visual_pos_masks"] = cut.take(visual) & ~cut.padding
    inputs["inputs_embeds"] = cut.take(embeddings)
    known = ("inputs_embeds", "position_ids", "attention_mask", "visual_pos_masks", *OF_FEATURES)
    for name, value in inputs.items():
        of_tokens = isinstance(value, Tensor) and value.shape[:2] == (batch, given) and given > 1
        if name not in known and of_tokens:
            inputs[name] = cut.take(value)
    return after


def _positions(positions: Any, cut: Cut, record: Record) -> Tensor:
    """(B, M) or, with several axes, (A, B, M) the positions of the tokens that stay."""
    if positions is None:
        positions = torch.arange(cut.given, device=cut.index.device).unsqueeze(0) + record.length
    positions = positions[..., -cut.given :]  # some cores give those of the whole sequence
    stays = of_tokens(positions, cut.index, 1)
    if not record.compact:
        return stays
    if positions.dim() == 3:
        raise RefusedError(
            "positions=compact counts one axis anew, and this decoder has positions on several: leave positions out"
        )
    before = record.gone.unsqueeze(1)
    new = torch.arange(cut.index.shape[1], device=stays.device) - cut.padding.sum(dim=1, keepdim=True)
    return (stays - before - (cut.index - new)).clamp(min=0)


def _restored(outputs: Any, run: DecoderRun) -> Any:
    """The outputs with every token of the call."""
    outputs.last_hidden_state = run.stages[-1].cut.restored(outputs.last_hidden_state)
    states = getattr(outputs, "hidden_states", None)
    if states is not None:  # what went into each layer, and what came out of the last one
        outputs.hidden_states = tuple(run.stage(layer).cut.restored(state) for layer, state in enumerate(states))
    return outputs


def plan_of(model: nn.Module) -> LanguagePlan | None:
    """What was applied to the decoder inside ``model``, or None."""
    found = (vars(part).get(PLAN) for part in model.modules())
    return next((plan for plan in found if plan is not None), None)
