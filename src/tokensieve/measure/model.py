"""Models by name: from timm, from a hub, or from a folder that ``ts.save`` wrote; and copies that share weights."""

from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from timm.models import load_checkpoint
from torch import nn

import tokensieve as ts
from tokensieve.errors import TokensieveError
from tokensieve.registry import nearest


def create(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: int | None = None,
) -> nn.Module:
    """The model called ``name``, in evaluation mode.

    Args:
        name: a timm model name, ``hf-hub:owner/model`` (or ``local-dir:folder``), or a folder written by ``ts.save``,
            whose methods are then applied.
        pretrained: load timm's weights for the name.
        checkpoint: file to load weights from, strictly; safetensors, or what ``torch.load(weights_only=True)`` reads.
        num_classes, in_chans, img_size: passed to timm where given.

    Raises:
        TokensieveError: unknown name, or weights that cannot be loaded into this model.
    """
    if Path(name).is_dir():
        model = ts.load(name)
    else:
        model = _create(name, pretrained, num_classes=num_classes, in_chans=in_chans, img_size=img_size)
    if checkpoint is not None:
        load_weights(model, checkpoint, resample=img_size is not None)
    return model.eval()


def _create(name: str, pretrained: bool, **arguments: Any) -> nn.Module:
    remote = name.partition(":")[0] in ("hf-hub", "hf_hub", "local-dir")
    if not remote and not timm.is_model(name.partition(".")[0]):
        raise TokensieveError(
            f"unknown model {name!r}{nearest(name, timm.list_models())}; give a timm model name "
            "(timm.list_models()), hf-hub:owner/model, or a folder written by ts.save"
        )
    given = {key: value for key, value in arguments.items() if value is not None}
    try:
        return timm.create_model(name, pretrained=pretrained or remote, **given)
    except TypeError as error:
        raise TokensieveError(f"model {name!r} does not take these arguments: {given} ({error})") from error
    except Exception as error:  # a hub can fail in as many ways as its client has exceptions
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        hint = "; give the weights with --checkpoint FILE if the hub cannot be reached" if pretrained or remote else ""
        raise TokensieveError(f"cannot create model {name!r}: {reason}{hint}") from error


def load_weights(model: nn.Module, file: str, resample: bool = False) -> None:
    """Load a checkpoint strictly, in place.

    Args:
        model: the model; its own dtype is kept.
        file: the checkpoint.
        resample: let timm fit position embeddings to the model's input size.

    Raises:
        TokensieveError: no such file, truncated, of another model, or a pickle that holds more than weights.
    """
    if not Path(file).is_file():
        raise TokensieveError(f"checkpoint {file!r} is not a file")
    adapt = getattr(inspect.getmodule(type(model)), "checkpoint_filter_fn", None) if resample else None
    try:
        load_checkpoint(model, file, strict=True, filter_fn=adapt)
    except PermissionError as error:
        raise TokensieveError(f"checkpoint {file!r} cannot be read: {error.strerror}") from error
    except Exception as error:
        raise TokensieveError(_why_not_loaded(model, file, error)) from error


def _why_not_loaded(model: nn.Module, file: str, error: Exception) -> str:
    text = str(error)
    if "Error(s) in loading state_dict" in text or "size mismatch" in text:
        details = [line.strip() for line in text.splitlines()[1:] if line.strip()]
        first = f": {_shorten(details[0])}" if details else ""
        name = getattr(model, "default_cfg", {}).get("architecture") or type(model).__name__
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
        return f"checkpoint {file!r} is truncated or damaged ({_shorten(text)}): fetch it again"
    return f"checkpoint {file!r} cannot be loaded: {_shorten(text)}"


def _shorten(text: str, length: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def share_weights(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose modules are its own and whose parameters and buffers are the original's."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)
