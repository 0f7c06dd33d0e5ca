"""Walk every class of transformers that is given images first: exact when nothing is removed, or refused in a sentence.

    python -m tests.helpers.walk_towers --output docs/towers.json

Every such class is built from a small config (``walk_configs``) with random weights, and called with what its processor
makes of images (``walk_inputs``). A class is

- "exact" when methods that remove nothing leave every tensor of the answer bit-equal, and methods that remove something
  change it and keep its shapes; where the methods that read the attention of an image are refused, the others do so,
  and the reason is given;
- "refused" in the sentence that is its reason, and then answers as before;
- "not built" where it does not run here on its own, for the reason in ``NOT_BUILT``;
- "FAILED" whatever else happens.

Each class has as well whether its blocks attend over the whole image (``walk_attends``), and the file says how many of
those that do are exact.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.models import liven
from tests.helpers.towers import tensors
from tests.helpers.walk_attends import STATED, attends
from tests.helpers.walk_configs import config_for
from tests.helpers.walk_inputs import example, parameters
from tests.helpers.walk_record import Found, failed, judged, record, versions
from tokensieve.families._locate import family_of

FIRST = ("pixel_values", "pixel_values_videos", "flattened_patches", "image")
# What removes nothing, and what removes something: methods that read the attention of an image too, and only others.
READING = ("tome:r=0+topk:keep=1.0:sites=[1]", ("tome:r=3", "topk:keep=0.5:sites=[1]"))
MERGING = ("tome:r=0", ("tome:r=3",))
NOT_BUILT = {
    "dinat": "it needs natten2dqkrpb of the package natten, which no release for the installed torch has",
}


def classes(*folders: str) -> Iterator[tuple[str, Any]]:
    """(folder/class, the class) of every model, or of those in these folders, that is given images first, or what its
    processor makes of them, and no text to read beside them."""
    root = Path(transformers.__file__).parent / "models"
    for file in sorted(root.glob("*/modeling_*.py")):
        text = file.read_text(encoding="utf-8")
        if (folders and file.parent.name not in folders) or not any(name in text for name in (*FIRST, "grid_thw")):
            continue
        module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
        for kind in list(vars(module).values()):
            own = inspect.isclass(kind) and kind.__module__ == module.__name__
            if own and issubclass(kind, transformers.PreTrainedModel) and "forward" in vars(kind) and sees(kind):
                yield f"{file.parent.name}/{kind.__name__}", kind


def sees(kind: Any) -> bool:
    """Whether a class is given images first, and reads no text."""
    names = list(parameters(kind))
    reads = any(name.endswith("input_ids") and not name.startswith("decoder") for name in names)
    return not reads and (names[:1] in [[name] for name in FIRST] or names[:2] == ["hidden_states", "grid_thw"])


def built(kind: Any) -> nn.Module:
    """A small model of a class with random weights, in eval mode."""
    torch.manual_seed(0)
    return liven(kind(config_for(kind))).eval()


def answers(model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    torch.manual_seed(3)
    with torch.no_grad():
        return tensors(model(**inputs))


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, other, strict=True)
    )


def judge(name: str, kind: Any) -> Found:
    """{"status": "exact", "refused", "not built" or "FAILED", "reason": …, "family": …, "attends": …} of one class."""
    reason = NOT_BUILT.get(name.partition("/")[0])
    if reason is not None:
        return {"status": "not built", "reason": reason, "family": "", "attends": STATED[name][0]}
    model = built(kind)
    inputs = example(model)
    how = STATED[name][0] if name in STATED else attends(model, inputs)
    try:
        found = verdict(model, inputs, *READING)
        if found["status"] == "refused":
            merged = verdict(built(kind), inputs, *MERGING)
            found = {**merged, "reason": merged["reason"] or found["reason"]}
    except Exception as error:
        found = {**failed(error), "family": ""}
    return {**found, "attends": how}


def verdict(model: nn.Module, inputs: dict[str, Any], nothing: str, something: tuple[str, ...]) -> Found:
    """{"status": "exact", "refused" or "FAILED", "reason": …, "family": …} of one dense model, which it may change."""
    dense = answers(model, inputs)
    try:
        ts.apply(model, nothing)
    except ts.TokensieveError as error:
        return refused(error, same(answers(model, inputs), dense))
    found = {"status": "FAILED", "reason": "", "family": family_of(model).family.name}
    try:
        unchanged = same(answers(model, inputs), dense)
    except ts.TokensieveError as error:  # what only a run can show
        return refused(error, same(answers(ts.remove(model), inputs), dense))
    if not unchanged:
        return {**found, "reason": f"{nothing} changes the answer"}
    for spec in something:
        reduced = answers(ts.apply(ts.remove(model), spec), inputs)
        if same(reduced, dense) or [part.shape for part in reduced] != [part.shape for part in dense]:
            return {**found, "reason": f"{spec} changes nothing, or shapes"}
    if not same(answers(ts.remove(model), inputs), dense):
        return {**found, "reason": "remove does not give the original back"}
    return {**found, "status": "exact"}


def refused(error: ts.TokensieveError, kept: bool) -> Found:
    """The verdict on a model that is refused: it must answer as before."""
    reason = str(error) if kept else f"refused, and changed: {error}"
    return {"status": "refused" if kept else "FAILED", "reason": reason, "family": ""}


def quiet(name: str, kind: Any) -> Found:
    """What ``judge`` says, without the warnings of transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return judge(name, kind)


def walk(*folders: str) -> dict[str, Any]:
    """What ``judge`` says of every class, or of those in these folders, with the versions it was found with, and how
    many classes that attend in one way are exact."""
    transformers.logging.set_verbosity_error()
    models = judged((name, partial(quiet, name, kind)) for name, kind in classes(*folders))
    shares: dict[str, dict[str, int]] = {}
    for how in ("global", "windows", "other"):
        these = [found["status"] for found in models.values() if found.get("attends") == how]
        shares[how] = {"exact": these.count("exact"), "classes": len(these)}
    return {**versions(transformers=transformers.__version__), "attending": shares, "models": models}


def share(walked: dict[str, Any]) -> str:
    """The share of classes that are exact, of those that attend in each way."""
    parts = [f"{one['exact']} of {one['classes']} that attend {how}" for how, one in walked["attending"].items()]
    return f"exact: {', '.join(parts)}"


if __name__ == "__main__":
    sys.exit(record(__doc__, walk, share))
