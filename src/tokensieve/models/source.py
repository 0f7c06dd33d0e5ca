"""Where a model comes from: its name, read once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokensieve.errors import TokensieveError
from tokensieve.utils.names import nearest

CONFIG_NAME = "tokensieve.json"  # in a folder that ``ts.save`` wrote


@dataclass(frozen=True)
class Source:
    """What a name says.

    Attributes:
        name: as it was given.
        kind: "saved", a folder of ``ts.save``; "transformers"; "timm-hub", what timm reads from a hub or from a folder
            of its own; "timm", one of timm's names.
        place: the folder, ``owner/name`` on a hub, or timm's name.
        revision: branch, tag or commit on the hub of transformers; None for the default.
        local: whether nothing has to be fetched to know the model.
        random: whether only the config is wanted, with random weights.
    """

    name: str
    kind: Literal["saved", "transformers", "timm-hub", "timm"]
    place: str
    revision: str | None = None
    local: bool = True
    random: bool = False

    def weighted(self, pretrained: bool, checkpoint: str | None) -> bool:
        """Whether the model has weights when it is made, and not random numbers."""
        return pretrained or checkpoint is not None or not (self.kind == "timm" or self.random)

    def check(self) -> None:
        """Raise where timm has no model of the name; says which one may be meant."""
        if self.kind != "timm" or _is_timms(self.name):
            return
        import timm

        raise TokensieveError(
            f"unknown model {self.name!r}{nearest(self.name, timm.list_models())}; give a timm model name "
            "(timm.list_models()), hf-hub:owner/model, hf:owner/model for one of transformers, or a folder written by "
            "ts.save or save_pretrained"
        )


def source_of(name: str) -> Source:
    """What ``name`` says.

    ``hf:owner/name`` and ``hf:owner/name@revision`` are on the hub of transformers; ``hf:FOLDER``, or FOLDER where its
    ``config.json`` is one of transformers', is a folder. ``hf-config:`` instead of ``hf:`` takes the config and draws
    random weights. ``hf-hub:owner/name`` and ``local-dir:FOLDER`` are read by timm. Any other folder is one of
    ``ts.save``, unless a model of timm has its name and it holds no saved model. All else is a name of timm's.

    Raises:
        TokensieveError: the name has one of these beginnings and names no model.
    """
    prefix, colon, rest = name.partition(":")
    if colon and prefix in ("hf", "hf-config"):
        return _of_transformers(name, prefix, rest)
    if colon and prefix in ("hf-hub", "hf_hub", "local-dir"):
        return Source(name, "timm-hub", rest, local=prefix == "local-dir")
    if name and Path(name).is_dir():
        if (Path(name) / CONFIG_NAME).exists():
            return Source(name, "saved", name)
        if _is_folder_of_transformers(name):
            return Source(name, "transformers", name)
        if not _is_timms(name):
            return Source(name, "saved", name)
    return Source(name, "timm", name)


def _of_transformers(name: str, prefix: str, rest: str) -> Source:
    if not rest:
        raise TokensieveError(f"{name!r} names no model: give {prefix}:owner/name, or {prefix}:FOLDER with config.json")
    random = prefix == "hf-config"
    if Path(rest).is_dir():
        if not _is_folder_of_transformers(rest):
            raise TokensieveError(
                f"{rest} has no config.json of transformers: expected a folder that save_pretrained wrote"
            )
        return Source(name, "transformers", rest, random=random)
    place, _, revision = rest.partition("@")
    if rest.startswith((".", "/", "~")) or place.count("/") > 1:
        raise TokensieveError(f"{rest!r} is not a folder; on the hub names are owner/name")
    return Source(name, "transformers", place, revision or None, local=False, random=random)


def _is_folder_of_transformers(place: str) -> bool:
    """Whether ``place`` is a folder with a config of transformers; timm's configs say ``architecture``."""
    try:
        config = json.loads((Path(place) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and ("model_type" in config or "architectures" in config)


def _is_timms(name: str) -> bool:
    from tokensieve.models.registered import is_model  # imports timm, which a folder does not need

    return is_model(name)
