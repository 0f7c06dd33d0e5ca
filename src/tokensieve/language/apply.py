"""Methods put where they act: in the tower, in front of the decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from tokensieve.engine import apply as engine
from tokensieve.engine.takeover import give_back, take_over
from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.families._locate import family_of
from tokensieve.language.decoder import LAYER, Place, SievedLayer
from tokensieve.language.encoder import TextEncoder
from tokensieve.language.entering import Entrance
from tokensieve.language.host import Host, host_of
from tokensieve.language.loss import SievedHead, heads_of
from tokensieve.language.masks import window_of
from tokensieve.language.pooling import Pooling
from tokensieve.language.sieved import PLAN, LanguagePlan, SievedCore, SievedDecoder, plan_of
from tokensieve.language.tower import Listening, whole_block
from tokensieve.methods._config import Config
from tokensieve.methods._method import Method
from tokensieve.methods._registry import list_language_methods
from tokensieve.methods._spec import parse_placed
from tokensieve.methods.language._decoder import DecoderMethod
from tokensieve.methods.language._input import InputMethod
from tokensieve.methods.language._prefix import PrefixMethod
from tokensieve.tokens.state import Fill

Placed = TypeVar("Placed", bound=Config)


def apply(
    model: nn.Module,
    methods: Config | str | Sequence[Config],
    *,
    fill: Fill | str = "auto",
    probe: Tensor | Mapping[str, Any] | None = None,
    multiple: int | None = None,
    masked: bool = False,
    taps: Sequence[int] | None = None,
    text_encoder: TextEncoder | None = None,
) -> nn.Module:
    """Reduce the tokens of ``model`` with one method or several, in place.

    The model keeps its forward, head, ``forward_features``, ``forward_intermediates`` and state-dict keys; N tokens
    come out as N went in, and so they do at every block that is read; in between the sequence stays short. An
    original whose token left for good has its last value (or what ``fill`` says), one that was merged the value of its
    group, one that skips its own; soft methods bring their own way back, as Expedite blends the most alike clusters.
    Prefix and register tokens are never touched. In a vision-language model other methods leave out image tokens in
    front of the tower ("downsample:tokens=128"), in front of the decoder ("divprune:tokens=128") or in it
    ("fastv:keep=0.5"), and compose with those of the tower; what the decoder answers has as many tokens as went in, and
    ``generate`` stays as it is. Before anything changes, every block is run on a probe input both as it is and in two
    halves.

    Args:
        model: a model of a known family, or one that contains such a model, of timm or of Hugging Face's transformers;
            for methods around a decoder a vision-language model of transformers. Not yet wrapped for data parallelism.
        methods: a method, a composition in the order in which it acts, or its spec ("tome:r=4+tosa:keep=0.5").
        fill: what stands at the place of tokens that are gone for good when all are given back: "last" (their last
            value), "mean" (the mean of those present) or "auto": "mean" for heads that pool over patches, else "last".
        probe: (1, C, H, W) input for the check, or the inputs of the model by name; default an image of the model's
            input size, which of a model that is given more than images its vision tower alone sees.
        multiple: round the tokens behind every site, prefix included, up to a multiple of this, 8 or 16 for example;
            kernels of many devices are faster there. Default None: exactly as the methods say.
        masked: in training mode, hide tokens that methods drop for good behind a mask and do not remove them: the same
            decisions and the same answer, at the cost of the dense model, with a gradient for methods that learn what
            to drop. Methods with learned choices do it on their own.
        taps: 0-based blocks whose output is a plain tensor with every token, [2, 5, 8, 11] for a DPT head. Rarely
            needed: what other blocks hand on is a ``Tokens``, which restores itself whenever it is read, by
            ``forward_intermediates``, ``features_only``, a hook, or in a compiled or exported graph. Name the blocks
            where a reader insists on ``isinstance(x, torch.Tensor)``, reads the same layer many times, or waits for
            its gradient (class activation maps, backward hooks). The compact state travels beside the tensor: a hook
            that replaces such an output, or changes it in place outside of inference mode, ends the reduction up to
            there; at other blocks that is refused. Modules inside a block see the tokens that are present, not all.
        text_encoder: the two towers that the model's eyes come from, by which cdpruner, eadp and recoverable compare
            patches with the prompt. Default None: features with the language model's own input embeddings.

    Returns:
        ``model`` itself.

    Raises:
        RefusedError: no family matches, or the blocks are not what the family takes them for.
        TokensieveError: a method's settings do not fit the model, or two methods are in each other's way.
    """
    chosen = resolve(methods)
    engine.refuse_changed(model, applied(model))
    how: dict[str, Any] = {"fill": fill, "probe": probe, "multiple": multiple, "masked": masked, "taps": taps}
    _refuse_encoder(text_encoder, chosen)
    if all(isinstance(method, Method) for method in chosen):
        return engine.apply(model, cast(tuple[Method, ...], chosen), **how)
    return _apply_placed(model, chosen, how, text_encoder)


def resolve(methods: Config | str | Sequence[Config]) -> tuple[Config, ...]:
    """One composition of methods, wherever they act, from what a user may hand over: a method, a spec, a sequence."""
    return parse_placed(methods) if isinstance(methods, str) else engine.given_methods(methods, Config)


def encodes_text(methods: Sequence[Config]) -> bool:
    """Whether one of ``methods`` compares patches with the text by a text encoder where one is given."""
    return any(isinstance(method, PrefixMethod) and method.encodes_text for method in methods)


def _refuse_encoder(encoder: Any, methods: Sequence[Config]) -> None:
    """Refuse a text encoder that is none, or that no method reads.

    Raises:
        TokensieveError: says which would.
    """
    if encoder is None:
        return
    if not isinstance(encoder, TextEncoder):
        raise TokensieveError(
            f"text_encoder must be a ts.TextEncoder(model, tokenizer, prompt_tokenizer), got {type(encoder).__name__}"
        )
    if not encodes_text(methods):
        readers = sorted(name for name, cls in list_language_methods().items() if getattr(cls, "encodes_text", False))
        raise TokensieveError(
            f"text_encoder was given, and {' + '.join(method.name for method in methods)} compares nothing by it: "
            f"leave it out, or choose one of {', '.join(readers)}"
        )


def _apply_placed(
    model: nn.Module, methods: Sequence[Config], how: dict[str, Any], encoder: TextEncoder | None
) -> nn.Module:
    """Methods of which one at least acts outside of a tower."""
    tower: list[Method] = [method for method in methods if isinstance(method, Method)]
    entrance = _only_one([method for method in methods if isinstance(method, InputMethod)], "in front of the tower")
    method = _only_one([method for method in methods if isinstance(method, PrefixMethod)], "in front of the decoder")
    decoder = tuple(method for method in methods if isinstance(method, DecoderMethod))
    host = host_of(model, next(method.name for method in (entrance, method, *decoder) if method is not None))
    for placed in (entrance, method):
        _refuse_compact(host, placed)
    places = Place.all_of(decoder, len(host.layers))
    _refuse_layers(host, decoder)
    if encoder is not None:
        encoder.refuse_host(host.core)
    input_ = None if entrance is None else Entrance.of(entrance, host.core)
    heard, pooling = _heard(model, method, host)
    if heard:
        tower = [*tower, Listening(heard=heard)]
    if tower:
        engine.apply(model, tower, **how)
    plan = LanguagePlan(method, decoder, host, pooling, encoder, input_)
    try:
        for part, mixin in ((host.core, SievedCore), (host.decoder, SievedDecoder)):
            take_over(part, mixin)
            vars(part)[PLAN] = plan
        for head in heads_of(model, host.core):
            take_over(head, SievedHead)
        for layer, place in zip(host.layers if decoder else (), places, strict=False):
            take_over(layer, SievedLayer)
            vars(layer)[LAYER] = place
    except RefusedError:  # one that cannot be taken over leaves none behind
        remove(model)
        raise
    return model


def _only_one(methods: Sequence[Placed], where: str) -> Placed | None:
    """The method that acts there, if any.

    Raises:
        TokensieveError: there are several.
    """
    if len(methods) > 1:
        names = " and ".join(method.name for method in methods)
        raise TokensieveError(f"{names} both act {where}: give one of them")
    return methods[0] if methods else None


def _refuse_compact(host: Host, method: PrefixMethod | InputMethod | None) -> None:
    """Refuse positions counted anew where a window counts the uncut sequence.

    Raises:
        RefusedError: says how long the window is.
    """
    window = window_of(host.decoder.config)
    if method is not None and method.positions == "compact" and window is not None:
        raise RefusedError(
            f"positions=compact counts positions anew, and layers of {type(host.decoder).__name__} see a window of "
            f"{window} tokens of the uncut sequence: leave positions out of {method.name}"
        )


def _refuse_layers(host: Host, methods: Sequence[DecoderMethod]) -> None:
    """Refuse decoder methods where tokens that left would be read by a later layer all the same.

    Raises:
        RefusedError: says which layers read them.
    """
    name = type(host.decoder).__name__
    other = sorted(set(host.kinds) - {"full_attention"})
    for method in methods:
        if other:
            raise RefusedError(
                f"{method.name} lets tokens leave between layers that see everything, and {name} has layers of kind "
                f"{', '.join(other)}: choose a method that acts in front of the decoder, divprune for one"
            )
        early = [layer for layer in method.layers(len(host.layers)) if layer < host.levels]
        if early:
            raise RefusedError(
                f"{method.name} acts behind layer {early[0] + 1}, and {name} adds features of the tower behind each of "
                f"its first {host.levels}: act behind layer {host.levels + 1} or later"
            )


def _heard(model: nn.Module, method: PrefixMethod | None, host: Host) -> tuple[tuple[int, ...], Pooling | None]:
    """The blocks of the tower whose attention the method reads, and how features are made of its patches."""
    if method is None or not method.blocks(2):
        return (), None
    located = family_of(model)
    layout = located.family.layout(located.owner)
    blocks = {whole_block(block, layout) for block in method.blocks(layout.depth)}
    return tuple(sorted(blocks)), Pooling.of(host.core, located)


def remove(model: nn.Module) -> nn.Module:
    """Take all methods off ``model``, in place: the exact original again. Learned parts of methods go with them."""
    plan = plan_of(model) if engine.is_applied(model) else None
    if plan is not None:
        for part in (plan.host.core, plan.host.decoder):
            vars(part).pop(PLAN, None)
            give_back(part)
        for head in heads_of(model, plan.host.core):
            give_back(head)
        for layer in plan.host.layers if plan.decoder else ():
            vars(layer).pop(LAYER, None)
            give_back(layer)
    return engine.remove(model)


def applied(model: nn.Module) -> tuple[Config, ...]:
    """The methods applied to ``model``, in order; empty for a dense model."""
    plan = plan_of(model) if engine.is_applied(model) else None
    tower = tuple(method for method in engine.applied(model) if not isinstance(method, Listening))
    if plan is None:
        return tower
    first = () if plan.input is None else (plan.input.method,)
    return (*first, *tower, *([plan.prefix] if plan.prefix else []), *plan.decoder)


def encoder_of(model: nn.Module) -> TextEncoder | None:
    """The text encoder that was given with the methods applied to ``model``, or None."""
    plan = plan_of(model) if engine.is_applied(model) else None
    return None if plan is None else plan.encoder
