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
from tokensieve.models.checkpoint import CONFIG_NAME, load
from tokensieve.models.registered import is_model
from tokensieve.models.transformers import HuggingFaceModel, is_transformers
from tokensieve.utils.names import nearest

ImgSize = int | tuple[int, int] | None  # of a square, or (height, width)
HUB_TIMEOUT = 10.0  # seconds in which a hub must answer


def create(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: ImgSize = None,
) -> nn.Module:
    """The model called ``name``, in evaluation mode.

    Args:
        name: a timm model name, ``hf-hub:owner/model`` (or ``local-dir:folder``), a model of transformers as
            ``measure.hugging_face.source_of`` reads it, or a folder of ``ts.save``, whose methods are then applied.
        pretrained: load timm's weights for the name. Those of transformers have theirs.
        checkpoint: file to load weights from, strictly; safetensors, or what ``torch.load(weights_only=True)`` reads.
        num_classes, in_chans, img_size: passed to timm where given; the size is a side or (height, width).

    Raises:
        TokensieveError: unknown name, or weights that cannot be loaded into this model.
    """
    if pretrained and checkpoint is not None:
        raise TokensieveError("weights come from --pretrained or from --checkpoint, and both are given: leave one out")
    if checkpoint is not None:
        _check_file(checkpoint)
    saved = is_saved(name)
    source = None if saved else hugging_face.source_of(name)
    if saved:
        _refuse_arguments(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans, img_size=img_size)
        model = load(name)
        if is_transformers(model):
            model = HuggingFaceModel(model)
    elif source is not None:
        model = _from_transformers(name, source, checkpoint, pretrained, num_classes, in_chans, img_size)
    else:
        model = _create(name, pretrained, num_classes=num_classes, in_chans=in_chans, img_size=img_size)
    if img_size is not None:
        _check_size(model, name, img_size if isinstance(img_size, tuple) else (img_size, img_size))
    if checkpoint is not None and source is None:
        load_weights(model, checkpoint, resample=img_size is not None)
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


def has_weights(name: str, pretrained: bool, checkpoint: str | None) -> bool:
    """Whether ``create`` gives a model with weights, and not with random numbers."""
    if pretrained or checkpoint is not None or is_saved(name) or _hub_name(name) is not None:
        return True
    source = hugging_face.source_of(name)
    return source is not None and not source.random


def is_saved(name: str) -> bool:
    """Whether ``name`` is meant as a folder written by ``ts.save``; one called like a model of timm must be one."""
    if not name or not Path(name).is_dir():
        return False
    return (Path(name) / CONFIG_NAME).exists() or not (is_model(name) or hugging_face.source_of(name))


def _hub_name(name: str) -> str | None:
    """What follows ``hf-hub:`` or ``local-dir:``, or None for other names."""
    source, colon, rest = name.partition(":")
    return rest if colon and source in ("hf-hub", "hf_hub", "local-dir") else None


def _refuse_arguments(name: str, **arguments: Any) -> None:
    given = [key for key, value in arguments.items() if value]
    if given:
        raise TokensieveError(
            f"{name} is a saved model and has its own {given[0]}: leave --{given[0].replace('_', '-')} out"
        )


def _create(name: str, pretrained: bool, **arguments: Any) -> nn.Module:
    remote = _hub_name(name)
    if remote is None and not is_model(name):
        raise TokensieveError(
            f"unknown model {name!r}{nearest(name, timm.list_models())}; give a timm model name "
            "(timm.list_models()), hf-hub:owner/model, hf:owner/model for one of transformers, or a folder written by "
            "ts.save or save_pretrained"
        )
    given = {key: value for key, value in arguments.items() if value is not None}
    try:
        if name.startswith("hf"):
            _check_hub(name, remote)
        elif pretrained:
            _check_hub(name, getattr(timm.get_pretrained_cfg(name), "hf_hub_id", None))
        return timm.create_model(name, pretrained=pretrained or remote is not None, **given)
    except TokensieveError:
        raise
    except TypeError as error:
        raise TokensieveError(f"model {name!r} does not take these arguments: {given} ({error})") from error
    except Exception as error:  # a hub can fail in as many ways as its client has exceptions
        raise TokensieveError(f"cannot create model {name!r}: {_first_sentence(error)}") from error


def _from_transformers(
    name: str,
    source: hugging_face.Source,
    checkpoint: str | None,
    pretrained: bool,
    num_classes: int | None,
    in_chans: int | None,
    img_size: ImgSize,
) -> nn.Module:
    if in_chans is not None:
        raise TokensieveError(f"{name} is a model of transformers, whose channels are fixed: leave --in-chans out")
    if pretrained and source.random:
        raise TokensieveError(f"{name} asks for random weights and --pretrained for trained ones: leave one out")
    if not source.local:
        repository = source.place if source.revision is None else f"{source.place}@{source.revision}"
        _check_hub(name, repository, "try again with a network, or give a folder that save_pretrained wrote")
    try:
        return hugging_face.load(source, checkpoint=checkpoint, num_classes=num_classes, img_size=img_size)
    except TokensieveError:
        raise
    except Exception as error:
        if checkpoint is None:
            raise
        raise TokensieveError(_why_not_loaded(source.place, checkpoint, error)) from error


WITHOUT_HUB = "give the weights with --checkpoint FILE, or try again with a network"


def _check_hub(name: str, repository: str | None, advice: str = WITHOUT_HUB) -> None:
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
