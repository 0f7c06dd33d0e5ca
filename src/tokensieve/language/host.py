"""Where in a vision-language model of transformers the images meet the decoder."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from tokensieve.errors import RefusedError
from tokensieve.language.masks import LOCAL, window_of

DECODERS = ("language_model", "text_model")
KINDS = {"full_attention", "indexed_attention", "sliding_attention", "chunked_attention", *LOCAL}
APART = ("deepstack_features", "image_embeds", "cross_attention_states", "encoder_hidden_states")


@dataclass(frozen=True)
class Host:
    """The parts of a vision-language model.

    Attributes:
        core: puts the features of images at the places of their placeholders and calls the decoder.
        decoder: the language model behind it, without its head.
    """

    core: nn.Module
    decoder: nn.Module

    @property
    def placeholders(self) -> dict[str, int]:
        """Modality to the token that holds a place for each of its features."""
        config: Any = self.core.config
        names = {"image": ("image_token_id", "image_token_index"), "video": ("video_token_id", "video_token_index")}
        found = {
            modality: next((number for name in known if isinstance(number := getattr(config, name, None), int)), None)
            for modality, known in names.items()
        }
        return {modality: number for modality, number in found.items() if number is not None}

    @property
    def layers(self) -> list[nn.Module]:
        """The layers of the decoder."""
        return list(self.decoder.layers)  # type: ignore[arg-type]

    @property
    def levels(self) -> int:
        """Layers behind which features of the tower are added at the places of images (deepstack); 0 for most."""
        vision: Any = getattr(self.core.config, "vision_config", None)
        return len(getattr(vision, "deepstack_visual_indexes", None) or ())

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each layer's attention, as the config names it; empty where all see everything."""
        text: Any = self.decoder.config
        named = tuple(getattr(text, "layer_types", None) or ())
        return named if named or window_of(text) is None else ("sliding_attention",) * len(self.layers)


def find_host(model: nn.Module) -> Host | None:
    """The host inside ``model``, or None where it is no vision-language model of a shape that is known."""
    for core in model.modules():
        children = dict(core.named_children())
        decoder = next((children[name] for name in DECODERS if name in children), None)
        if decoder is not None and _has_layers(decoder) and _gives_features(core):
            return Host(core, decoder)
    return None


def _has_layers(decoder: nn.Module) -> bool:
    return isinstance(getattr(decoder, "layers", None), nn.ModuleList)


def _gives_features(part: nn.Module) -> bool:
    return callable(getattr(part, "get_image_features", None)) and hasattr(part, "config")


def _lacking(model: nn.Module) -> str:
    """Why no host is in a model."""
    core = next((part for part in model.modules() if _gives_features(part)), None)
    if core is None:
        return "no part of it has get_image_features, which gives the features of images in front of a decoder"
    return f"{type(core).__name__} has no bare decoder called {' or '.join(DECODERS)} with a list of layers"


def host_of(model: nn.Module, method: str) -> Host:
    """The host inside ``model``, for the method of that name.

    Raises:
        RefusedError: there is none, or its sequence cannot lose tokens; says why.
    """
    host = find_host(model)
    if host is None:
        raise RefusedError(
            f"{method} acts between the images and the language model of a vision-language model, and "
            f"{type(model).__name__} is none of a known shape: {_lacking(model)}"
        )
    reason = _refusal(model, host)
    if reason is not None:
        raise RefusedError(f"{type(host.core).__name__} cannot lose image tokens by {method}: {reason}")
    return host


def _refusal(model: nn.Module, host: Host) -> str | None:
    configs = (getattr(part, "config", None) for part in model.modules())
    if any(getattr(config, "is_encoder_decoder", False) for config in configs):
        return "its language model is an encoder and a decoder, and images are read by the encoder"
    apart = set(inspect.signature(host.decoder.forward).parameters) & set(APART)
    if apart:
        return f"its decoder is given images apart from the embeddings ({', '.join(sorted(apart))})"
    unknown = sorted(set(host.kinds) - KINDS)
    if unknown:
        return f"its decoder has layers of kind {', '.join(unknown)}, and what they see of a cut sequence is not known"
    if hasattr(getattr(model, "config", None), "dit_config"):
        return "a second decoder (dit_config) reads the keys and values of all its tokens in the cache"
    if not host.placeholders:
        return "its config names no image_token_id: where the features of an image stand is not known"
    return None
