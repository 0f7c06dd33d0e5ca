"""Models by name: from timm, transformers, a hub, or a folder that ``ts.save`` wrote; and copies that share weights."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants, get_session, snapshot_download
from safetensors import SafetensorError
from timm.models import load_checkpoint
from torch import nn

from tokensieve.errors import TokensieveError
from tokensieve.models import hub as hugging_face
from tokensieve.models.checkpoint import load
from tokensieve.models.options import ModelOptions
from tokensieve.models.source import Source, source_of
from tokensieve.models.transformers import HuggingFaceModel, is_transformers

HUB_TIMEOUT = 10.0  # seconds in which a hub must answer


def create(options: ModelOptions) -> nn.Module:
    """The model that ``options`` name, in evaluation mode.

    Args:
        options: its name, see ``models.source.source_of``; a folder of ``ts.save`` comes with its methods applied.
            ``pretrained`` loads timm's weights for the name, those of transformers have theirs; ``checkpoint`` is
            loaded strictly, from safetensors or what ``torch.load(weights_only=True)`` reads. ``num_classes``,
            ``in_chans`` and ``img_size`` are passed to timm where given.

    Raises:
        TokensieveError: unknown name, or weights that cannot be loaded into this model.
    """
    if options.pretrained and options.checkpoint is not None:
        raise TokensieveError("weights come from --pretrained or from --checkpoint, and both are given: leave one out")
    if options.checkpoint is not None:
        _check_file(options.checkpoint)
    source = source_of(options.model)
    if source.kind == "saved":
        model = _saved(options)
    elif source.kind == "transformers":
        model = _from_transformers(source, options)
    else:
        model = _from_timm(source, options)
    size = options.img_size
    if size is not None:
        _check_size(model, options.model, size if isinstance(size, tuple) else (size, size))
    if options.checkpoint is not None and source.kind != "transformers":
        load_weights(model, options.checkpoint, resample=size is not None)
    return model.eval()


def _check_size(model: nn.Module, name: str, img_size: tuple[int, int]) -> None:
    """Refuse what the patches of a model cannot cover."""
    embed: Any = getattr(model, "patch_embed", None)
    patch: tuple[int, ...] = getattr(embed, "patch_size", None) or (1,)
    if min(img_size) < max(patch):
        raise TokensieveError(f"--img-size {min(img_size)} is smaller than one patch of {name}, {max(patch)} pixels")
    if getattr(embed, "strict_img_size", True) or getattr(embed, "dynamic_img_pad", True):
        return  # pixels beyond the last whole patch are left out, or padded to one
    for side, pixels in zip(img_size, patch, strict=True):
        if side % pixels:
            below = side - side % pixels
            raise TokensieveError(
                f"{name} takes images whose sides are multiples of its patches, {pixels} pixels, and --img-size has "
                f"{side}: give {below} or {below + pixels}"
            )


def has_weights(options: ModelOptions) -> bool:
    """Whether ``create`` gives a model with weights, and not with random numbers."""
    return source_of(options.model).weighted(options.pretrained, options.checkpoint)


def _saved(options: ModelOptions) -> nn.Module:
    """The model in a folder of ``ts.save``, which has everything but a checkpoint of its own."""
    for name in ("pretrained", "num_classes", "in_chans", "img_size"):
        if getattr(options, name):
            raise TokensieveError(
                f"{options.model} is a saved model and has its own {name}: leave --{name.replace('_', '-')} out"
            )
    model = load(options.model)
    return HuggingFaceModel(model) if is_transformers(model) else model


def _from_timm(source: Source, options: ModelOptions) -> nn.Module:
    source.check()
    shape = {"num_classes": options.num_classes, "in_chans": options.in_chans, "img_size": options.img_size}
    given: dict[str, Any] = {key: value for key, value in shape.items() if value is not None}
    try:
        if not source.local:
            check_hub(source.name, source.place)
        elif options.pretrained and source.kind == "timm":
            check_hub(source.name, getattr(timm.get_pretrained_cfg(source.name), "hf_hub_id", None))
        pretrained = options.pretrained or source.kind == "timm-hub"
        return timm.create_model(source.name, pretrained=pretrained, **given)
    except TokensieveError:
        raise
    except TypeError as error:
        raise TokensieveError(f"model {source.name!r} does not take these arguments: {given} ({error})") from error
    except Exception as error:  # a hub can fail in as many ways as its client has exceptions
        raise TokensieveError(f"cannot create model {source.name!r}: {_first_sentence(error)}") from error


def _from_transformers(source: Source, options: ModelOptions) -> nn.Module:
    name, checkpoint = source.name, options.checkpoint
    if options.in_chans is not None:
        raise TokensieveError(f"{name} is a model of transformers, whose channels are fixed: leave --in-chans out")
    if options.pretrained and source.random:
        raise TokensieveError(f"{name} asks for random weights and --pretrained for trained ones: leave one out")
    if not source.local:
        repository = source.place if source.revision is None else f"{source.place}@{source.revision}"
        check_hub(name, repository, "try again with a network, or give a folder that save_pretrained wrote")
    try:
        return hugging_face.load(source, options)
    except TokensieveError:
        raise
    except Exception as error:
        if checkpoint is None:
            raise
        raise TokensieveError(_why_not_loaded(source.place, checkpoint, error)) from error


WITHOUT_HUB = "give the weights with --checkpoint FILE, or try again with a network"


def check_hub(name: str, repository: str | None, advice: str = WITHOUT_HUB) -> None:
    """Raise at once where neither the hub nor its cache can give the model: its client would try again for a minute."""
    if not repository:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
        return
    except Exception:  # no network, no name server, a proxy that refuses, offline mode
        pass
    owner, _, revision = repository.partition("@")
    try:
        snapshot_download(owner, revision=revision or None, local_files_only=True)
    except Exception as error:
        raise TokensieveError(
            f"cannot get {name!r}: {constants.ENDPOINT} does not answer and its cache does not have it; {advice}"
        ) from error


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.partition(". ")[0].rstrip(".") or type(error).__name__


def load_weights(model: nn.Module, file: str, resample: bool = False) -> None:
    """Load a checkpoint strictly, in place.

    Args:
        model: the model; its own dtype is kept.
        file: the checkpoint.
        resample: let timm fit position embeddings to the model's input size.

    Raises:
        TokensieveError: no such file, truncated, of another model, or a pickle that holds more than weights.
    """
    _check_file(file)
    adapt = getattr(inspect.getmodule(type(model)), "checkpoint_filter_fn", None) if resample else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle that the sentence below is about
            load_checkpoint(model, file, strict=True, filter_fn=adapt)
    except PermissionError as error:
        raise TokensieveError(f"checkpoint {file!r} cannot be read: {error.strerror}") from error
    except Exception as error:
        raise TokensieveError(_why_not_loaded(_name_of(model), file, error)) from error


def _name_of(model: nn.Module) -> str:
    return getattr(model, "default_cfg", {}).get("architecture") or type(model).__name__


def _check_file(file: str) -> None:
    if not Path(file).is_file():
        raise TokensieveError(f"checkpoint {file!r} is not a file")


def _why_not_loaded(name: str, file: str, error: Exception) -> str:
    text = str(error)
    if "Error(s) in loading state_dict" in text or "size mismatch" in text:
        details = [line.strip() for line in text.splitlines()[1:] if line.strip()]
        first = f": {_shorten(details[0])}" if details else ""
        return f"checkpoint {file!r} is of another model than {name!r}{first}"
    if "weights_only" in text or "Weights only" in text or isinstance(error, pickle.UnpicklingError):
        return (
            f"checkpoint {file!r} is a pickle that holds more than weights, or no checkpoint at all, and is refused: "
            "unpickling it could run code; save model.state_dict() with safetensors or torch.save instead"
        )
    if (
        isinstance(error, (SafetensorError, EOFError, OSError))
        or "PytorchStreamReader" in text
        or "central directory" in text
    ):
        detail = f" ({_shorten(_first_sentence(error))})" if text else ""
        return f"checkpoint {file!r} is truncated or damaged{detail}: fetch it again"
    if isinstance(error, (KeyError, AttributeError)):  # what torch.load and timm make of other content
        return f"checkpoint {file!r} holds no weights: expected safetensors, or a state dict saved with torch.save"
    return f"checkpoint {file!r} cannot be loaded: {_shorten(text)}"


def _shorten(text: str, length: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def share_weights(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose modules are its own and whose parameters and buffers are the original's."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)
