"""Vision-language models of transformers with their processors: from its hub, or from a folder of save_pretrained."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch

from tokensieve.errors import TokensieveError, TokensieveWarning
from tokensieve.models.hub import first_sentence, has_weights, load_tokenizer, quiet, read_config
from tokensieve.models.load import check_hub
from tokensieve.models.source import Source, source_of
from tokensieve.models.transformers import need_transformers

ADVICE = "try again with a network, or give a folder that save_pretrained wrote"


@dataclass(frozen=True)
class LanguageModel:
    """A vision-language model.

    Attributes:
        model: of transformers, in evaluation mode.
        processor: that lies beside it and takes images and text, or None.
        random: whether its weights are.
    """

    model: Any
    processor: Any
    random: bool


def load_language(name: str, dtype: str | None = None) -> LanguageModel:
    """The vision-language model called ``name``.

    Args:
        name: a folder that ``save_pretrained`` wrote, ``hf:owner/name``, or ``hf-config:`` with either for the config
            alone with random weights, the same every time.
        dtype: of its weights; default float32.

    Raises:
        TokensieveError: there is none of that name, it is no vision-language model, or it lacks weights.
    """
    source = _source(name)
    transformers = need_transformers(source.place)
    with quiet(transformers):
        config = read_config(transformers, source)
        kind: Any = transformers.AutoModelForImageTextToText
        if type(config) not in kind._model_mapping:
            raise TokensieveError(
                f"{source.place} is a {config.model_type}, which answers no question about an image: give a "
                "vision-language model, such as LLaVA or Qwen-VL"
            )
        weights = torch.float32 if dtype is None else getattr(torch, dtype)
        model = _random(kind, config, weights) if source.random else _weighted(kind, source, weights)
        return LanguageModel(model.eval(), _processor(transformers, source), source.random)


def _source(name: str) -> Source:
    source = source_of(name)
    if source.kind != "transformers":
        raise TokensieveError(
            f"questions about images are answered by a vision-language model of transformers, and {name!r} names none: "
            "give hf:owner/name, or a folder that save_pretrained wrote"
        )
    if not source.local:
        repository = source.place if source.revision is None else f"{source.place}@{source.revision}"
        check_hub(name, repository, ADVICE)
    elif not source.random and not has_weights(source.place):
        raise TokensieveError(
            f"{source.place} has a config and no weights: name it hf-config:{source.place} for random ones"
        )
    return source


def _random(kind: Any, config: Any, dtype: torch.dtype) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind.from_config(config, dtype=dtype)


def _loaded(kind: Any, source: Source, dtype: torch.dtype) -> tuple[Any, Any]:
    """A model with its weights, and what was found of them."""
    try:
        model, found = kind.from_pretrained(
            source.place, revision=source.revision, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # every class fails in its own way
        raise TokensieveError(f"cannot load {source.place}: {first_sentence(error)}") from error
    return model, found


def _weighted(kind: Any, source: Source, dtype: torch.dtype) -> Any:
    model, found = _loaded(kind, source, dtype)
    lacking = found["missing_keys"]
    if lacking:
        warnings.warn(
            f"{source.place} has no weights for {min(lacking)} ({len(lacking)} in all): they are random",
            TokensieveWarning,
            stacklevel=3,
        )
    return model


def _processor(transformers: Any, source: Source) -> Any:
    """The processor beside a model, or None where there is none that takes images and text."""
    try:
        found = transformers.AutoProcessor.from_pretrained(source.place, revision=source.revision)
    except Exception as error:  # every processor fails in its own way
        if source.random:
            return None
        raise TokensieveError(
            f"no processor can be read beside {source.place} ({first_sentence(error)}): put there what "
            "processor.save_pretrained writes"
        ) from error
    both = hasattr(found, "image_processor") and hasattr(found, "tokenizer")
    if not both and not source.random:
        raise TokensieveError(
            f"beside {source.place} lies a {type(found).__name__}, which does not take images and text: put there what "
            "the processor's save_pretrained writes"
        )
    return found if both else None


def load_two_towers(name: str) -> tuple[Any, Any]:
    """A model with two towers and its tokenizer, for a text encoder: ``hf:owner/name``, or a folder with both.

    Raises:
        TokensieveError: there is none, or no tokenizer lies beside it.
    """
    source = _source(name)
    transformers = need_transformers(source.place)
    with quiet(transformers):
        model, _ = _loaded(transformers.AutoModel, source, torch.float32)
    return model.eval(), load_tokenizer(source)
