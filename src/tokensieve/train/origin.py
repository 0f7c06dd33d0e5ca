"""Where a trained folder comes from: the dense model that taught it, found again from what the run wrote down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from tokensieve.engine.apply import remove
from tokensieve.errors import TokensieveError
from tokensieve.models.load import create, has_weights
from tokensieve.models.options import ModelOptions
from tokensieve.train.options import TrainOptions

FACTS = "train.json"
_MODEL = ("model", "pretrained", "checkpoint", "num_classes", "in_chans", "img_size")


def written_down(options: TrainOptions) -> dict[str, Any] | None:
    """What ``dense_origin`` needs to make the dense model again; None from scratch, where there was none."""
    if options.stage == "scratch":
        return None
    found = {name: getattr(options, name) for name in _MODEL}
    if Path(options.model).is_dir():
        found["model"] = str(Path(options.model).resolve())
    if options.checkpoint is not None:
        found["checkpoint"] = str(Path(options.checkpoint).resolve())
    return found


def dense_origin(folder: str) -> tuple[nn.Module | None, str]:
    """The dense model that ``folder`` was trained from, in evaluation mode, and one line that says what it is.

    Args:
        folder: any MODEL. The model is None and the line empty where no run of training wrote it; the model is None
            where it was trained from scratch or where the dense model is not to be had any more, and the line says so.
    """
    try:
        facts = json.loads((Path(folder) / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None, ""
    origin = facts.get("origin") if isinstance(facts, dict) else None
    if not isinstance(origin, dict) or not set(_MODEL) <= origin.keys():
        return None, f"dense is {folder} itself without its methods: no dense model taught it"
    name, checkpoint = origin["model"], origin["checkpoint"]
    said = name if checkpoint is None else f"{name} with {checkpoint}"
    try:
        options = ModelOptions(**{key: origin[key] for key in _MODEL})
        if not has_weights(options):
            raise TokensieveError("its weights were random")
        dense = remove(create(options)).eval()
    except TokensieveError as error:
        reason = str(error).partition(":")[0]
        return (
            None,
            f"dense is {folder} itself without its methods: {said}, which it was trained from, is gone ({reason})",
        )
    return dense, f"dense is what {folder} was trained from: {said}"
