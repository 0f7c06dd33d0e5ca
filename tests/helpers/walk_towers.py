"""Walk every class of transformers that is given images first: exact when nothing is removed, or refused in a sentence.

    python -m tests.helpers.walk_towers --output docs/towers.json

Every such class is built from a small config with random weights: the fields that sizes are called by, in the config
and the configs inside it, get small values. A class is "exact" when methods that remove nothing leave every tensor of
the answer bit-equal and methods that remove something change it and keep its shapes; "refused" with the reason; or "not
built" where a small config of it does not run on its own, which is no statement about tokensieve. Towers that pack
images are given three of one size.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.models import liven
from tests.helpers.towers import tensors
from tokensieve.families._locate import family_of

SIDE = 128
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "d_model", "decoder_hidden_size", "out_hidden_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "depth", "encoder_layers", "decoder_num_hidden_layers", "decoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "num_heads", "num_key_value_heads", "decoder_num_attention_heads"), 3),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "pred_num_attention_heads"), 3),
    **dict.fromkeys(("intermediate_size", "mlp_dim", "decoder_intermediate_size", "encoder_ffn_dim"), 96),
    **dict.fromkeys(("image_size", "img_size", "crop_size", "max_img_size"), SIDE),
    **dict.fromkeys(("num_frames", "frames_per_clip"), 4),
    **dict.fromkeys(("pred_num_hidden_layers", "num_spatial_layers", "num_temporal_layers"), 2),
    "bos_token_id": 1,
    "deepstack_visual_indexes": [1],
    "eos_token_id": 2,
    "fullatt_block_indexes": [1, 3],
    "head_dim": 16,
    "max_position_embeddings": 64,
    "num_blocks": 1,
    "num_channels": 3,
    "num_detection_tokens": 5,
    "num_labels": 4,
    "num_position_embeddings": 64,
    "num_queries": 5,
    "pad_token_id": 0,
    "patch_size": 16,
    "pred_hidden_size": 48,
    "projection_dim": 32,
    "use_mid_position_embeddings": False,
    "use_relative_position_bias": True,
    "vocab_size": 120,
    "window_size": 64,
}
FIRST = ("pixel_values", "pixel_values_videos")
NOTHING = "tome:r=0+topk:keep=1.0:sites=[1]"
SOMETHING = ("tome:r=3", "topk:keep=0.5:sites=[1]")
PATIENCE = 15  # seconds to build and run a dense model
LARGE = ("inkling",)  # takes more memory than there is, whatever its config says


def classes() -> Iterator[tuple[str, Any]]:
    """(its folder, the class) of every model that is given images, or packed ones, first, and no text beside them: of
    those that are, the vision towers come by themselves."""
    import transformers

    root = Path(transformers.__file__).parent / "models"
    for file in sorted(root.glob("*/modeling_*.py")):
        text = file.read_text(encoding="utf-8")
        if ("pixel_values" not in text and "grid_thw" not in text) or file.parent.name in LARGE:
            continue
        module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
        for kind in list(vars(module).values()):
            own = inspect.isclass(kind) and kind.__module__ == module.__name__
            if own and issubclass(kind, transformers.PreTrainedModel) and "forward" in vars(kind):
                names = list(inspect.signature(kind.forward).parameters)[1:]
                alone = not {"text_config", "language_config", "qformer_config"} & set(kind.config_class.sub_configs)
                if alone and names and (names[0] in FIRST or is_packed(kind)):
                    yield file.parent.name, kind


def is_packed(kind: Any) -> bool:
    """Whether a model takes patches of all images in one row and the grid of each."""
    names = list(inspect.signature(kind.forward).parameters)[1:]
    return names[0] in ("hidden_states", "pixel_values") and names[1:2] == ["grid_thw"]


def small(kind: Any) -> Any:
    """A config of this class with small sizes, and small ones inside it."""
    base = kind()
    fields = base.to_dict()
    given: dict[str, Any] = {}
    for name in fields.keys() & SMALL.keys():
        several = isinstance(fields[name], (list, tuple)) and not isinstance(SMALL[name], list)
        given[name] = [SMALL[name]] * len(fields[name]) if several else SMALL[name]
    for name in getattr(kind, "sub_configs", {}):
        inner = getattr(base, name, None)
        if inner is not None:
            given[name] = small(type(inner)).to_dict()
    try:
        return kind(**given)
    except Exception:
        return kind(**{name: value for name, value in given.items() if name not in ("head_dim", "num_key_value_heads")})


def example(model: Any) -> dict[str, Any]:
    """What ``model`` runs on."""
    kind = type(model)
    name = list(inspect.signature(kind.forward).parameters)[1]
    generator = torch.Generator().manual_seed(1)
    if is_packed(kind):
        weight = next(p for part in model.children() for p in part.parameters() if p.dim() > 1)
        patches = torch.randn(3 * 96, weight[0].numel(), generator=generator)
        return {name: patches, "grid_thw": torch.tensor([[1, 8, 12]] * 3)}
    config = getattr(model.config, "vision_config", model.config)
    channels = getattr(config, "num_channels", None) or getattr(config, "in_chans", None) or 3
    size = getattr(config, "image_size", None) or getattr(config, "crop_size", None) or SIDE
    height, width = (size, size) if isinstance(size, int) else size
    frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
    shapes = [(2, frames, channels, height, width)] if frames else []
    for shape in [*shapes, (2, channels, height, width), (2, channels, 64, 64)]:
        images = {name: torch.randn(shape, generator=generator)}
        try:
            answers(model, images)
        except Exception:
            continue
        return images
    raise ValueError("it runs on no image of the size in its config")


def answers(model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    torch.manual_seed(3)
    with torch.no_grad():
        return tensors(model(**inputs))


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(one, other, strict=True)
    )


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise TimeoutError when what is inside takes longer: some models are large whatever their config says."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"it takes longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def judge(kind: Any) -> dict[str, str]:
    """{"status": "exact", "refused", "not built" or "FAILED", "reason": …, "family": …} of one class."""
    try:
        with at_most(PATIENCE):
            torch.manual_seed(0)
            model = liven(kind(small(kind.config_class))).eval()
            inputs = example(model)
            dense = answers(model, inputs)
    except Exception as error:
        return {"status": "not built", "reason": f"{type(error).__name__}: {error}".splitlines()[0][:160], "family": ""}
    try:
        ts.apply(model, NOTHING)
    except ts.TokensieveError as error:
        kept = same(answers(model, inputs), dense)
        return {"status": "refused" if kept else "FAILED", "reason": str(error), "family": ""}
    found = {"status": "exact", "reason": "", "family": family_of(model).family.name}
    try:
        if not same(answers(model, inputs), dense):
            return {**found, "status": "FAILED", "reason": f"{NOTHING} changes the answer"}
    except ts.RefusedError as error:  # what only a run can show
        return {"status": "refused", "reason": str(error), "family": ""}
    for spec in SOMETHING:
        reduced = answers(ts.apply(ts.remove(model), spec), inputs)
        if same(reduced, dense) or [part.shape for part in reduced] != [part.shape for part in dense]:
            return {**found, "status": "FAILED", "reason": f"{spec} changes nothing, or shapes"}
    if not same(answers(ts.remove(model), inputs), dense):
        return {**found, "status": "FAILED", "reason": "remove does not give the original back"}
    return found


def walk(folders: tuple[str, ...] = ()) -> dict[str, Any]:
    """What ``judge`` says of every class, by folder and name, with the version it was found with."""
    import transformers

    transformers.logging.set_verbosity_error()
    models: dict[str, dict[str, str]] = {}
    for folder, kind in classes():
        if folders and folder not in folders:
            continue
        name = f"{folder}/{kind.__name__}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                models[name] = judge(kind)
        except Exception as error:
            models[name] = {"status": "FAILED", "reason": f"{type(error).__name__}: {error}"[:300], "family": ""}
        if sys.stderr.isatty() or models[name]["status"] == "FAILED":
            print(f"{name}: {models[name]['status']} {models[name]['reason']}", file=sys.stderr, flush=True)
    return {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0], "models": models}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    output: Path = parser.parse_args().output
    walked = walk()
    beside = output.with_name(f".{output.name}.writing")
    beside.write_text(json.dumps(walked, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, output)
    counts: dict[str, int] = {}
    for found in walked["models"].values():
        counts[found["status"]] = counts.get(found["status"], 0) + 1
    print(", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    return int("FAILED" in counts)


if __name__ == "__main__":
    sys.exit(main())
