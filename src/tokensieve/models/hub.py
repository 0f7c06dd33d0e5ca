"""Models of Hugging Face's transformers by name: from its hub, or from a folder that ``save_pretrained`` wrote."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from timm.models import load_state_dict

from tokensieve.errors import TokensieveError, TokensieveWarning
from tokensieve.models.options import ModelOptions
from tokensieve.models.source import Source
from tokensieve.models.transformers import HuggingFaceModel, need_transformers
from tokensieve.utils.names import nearest

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def load(source: Source, options: ModelOptions) -> HuggingFaceModel:
    """The model at ``source``, in float32, prepared for the images that its image processor makes.

    Args:
        source: where it is.
        options: ``checkpoint`` is a file to load weights from instead: safetensors, or a state dict saved with
            ``torch.save``; its names may be those of the hub or those of the model. ``num_classes`` is of the
            classifier; another number than the weights have gives a fresh classifier. ``img_size`` is that of the
            images, or (height, width).

    Raises:
        TokensieveError: transformers is not installed, there is no such model, it has no weights, they are not its own,
            or a class that transformers does not have.
        RefusedError: no family matches the model.
    """
    checkpoint, num_classes, img_size = options.checkpoint, options.num_classes, options.img_size
    transformers = need_transformers(source.place)
    if source.local and not source.random and checkpoint is None and not has_weights(source.place):
        raise TokensieveError(
            f"{source.place} has a config and no weights ({WEIGHTS[0]}): give --checkpoint FILE, or name it "
            f"hf-config:{source.place} for random ones"
        )
    with quiet(transformers):
        config = read_config(transformers, source)
        if num_classes is not None and num_classes != config.num_labels:
            config.num_labels = num_classes
        kind = _class_of(transformers, config, source.place)
        model = _weighted(kind, config, source, checkpoint, num_classes)
        settings = image_settings(transformers, source)
    size = settings.pop("input_size", None) if img_size is None else img_size
    if isinstance(size, int):
        size = (size, size)
    return HuggingFaceModel(model, img_size=size, images=settings)


def read_config(transformers: Any, source: Source) -> Any:
    """The config at ``source``.

    Raises:
        TokensieveError: there is none that transformers can read.
    """
    try:
        return transformers.AutoConfig.from_pretrained(source.place, revision=source.revision)
    except Exception as error:  # a hub can fail in as many ways as its client has exceptions
        raise TokensieveError(f"cannot read the config of {source.place}: {first_sentence(error)}") from error


def has_weights(folder: str) -> bool:
    """Whether weights lie in a folder of transformers."""
    return any((Path(folder) / name).exists() for name in WEIGHTS)


def _class_of(transformers: Any, config: Any, place: str) -> Any:
    """The class of transformers that the config names, or its bare encoder where it names none."""
    names = list(config.architectures or [])
    if not names:
        names = [type(config).__name__.removesuffix("Config") + "Model"]
    kind = getattr(transformers, names[0], None)
    if kind is None:
        known = [name for name in dir(transformers) if name.endswith(("Model", "Classification", "Estimation"))]
        raise TokensieveError(
            f"{place} is a {names[0]}, which transformers {transformers.__version__} does not have"
            f"{nearest(names[0], known)}; models with code of their own are not run"
        )
    return kind


def _weighted(kind: Any, config: Any, source: Source, checkpoint: str | None, num_classes: int | None) -> Any:
    """The model with its weights; only a classifier with another number of classes may be fresh."""
    if source.random and checkpoint is None:
        return kind(config)
    given: dict[str, Any] = {"revision": source.revision}
    place: str | None = source.place
    if checkpoint is not None:
        given, place = {"state_dict": load_state_dict(checkpoint, use_ema=False)}, None
    try:
        model, found = kind.from_pretrained(
            place,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # told below
            output_loading_info=True,
            **given,
        )
    except Exception as error:
        if checkpoint is not None:
            raise  # the caller knows what is wrong with a file
        raise TokensieveError(f"cannot load {source.place}: {first_sentence(error)}") from error
    origin = source.place if checkpoint is None else f"checkpoint {checkpoint!r}"
    _check_found(found, origin, type(model).__name__, num_classes is not None, checkpoint is not None)
    return model


def _check_found(found: dict[str, Any], origin: str, kind: str, fresh_classifier: bool, strict: bool) -> None:
    """Refuse weights of another model; say which ones are random because the model's own do not have them."""
    allowed = ("classifier",) if fresh_classifier else ()
    misfits = [entry for entry in found["mismatched_keys"] if not any(word in entry[0] for word in allowed)]
    if misfits:
        key, theirs, ours = min(misfits)
        raise TokensieveError(
            f"{origin} is of another model than {kind}: {key} has shape {tuple(theirs)}, expected {tuple(ours)}"
        )
    lacking = [key for key in found["missing_keys"] if not any(word in key for word in allowed)]
    extra = found["unexpected_keys"]
    if strict and (lacking or extra):
        what = f"it lacks {min(lacking)}" if lacking else f"it has {min(extra)}, which the model does not"
        raise TokensieveError(f"{origin} is of another model than {kind}: {what}")
    if lacking:
        warnings.warn(
            f"{origin} has no weights for {min(lacking)} ({len(lacking)} in all): they are random",
            TokensieveWarning,
            stacklevel=2,
        )


def image_settings(transformers: Any, source: Source) -> dict[str, Any]:
    """How the model's image processor prepares images, in the words of timm's data config, and their ``input_size``.

    Where the model has no image processor this is empty: the model's own size and timm's defaults then hold.
    """
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(source.place, revision=source.revision)
    except (OSError, ValueError):
        return {}
    plain = not processor.do_normalize
    settings: dict[str, Any] = {
        "mean": (0.0, 0.0, 0.0) if plain else tuple(processor.image_mean),
        "std": (1.0, 1.0, 1.0) if plain else tuple(processor.image_std),
        "interpolation": RESAMPLING.get(int(processor.resample), "bicubic"),
    }
    size, crop = processor.size, getattr(processor, "crop_size", None)
    shortest, height, width = (getattr(size, name, None) for name in ("shortest_edge", "height", "width"))
    if getattr(processor, "do_center_crop", False) and crop is not None and crop.height:
        settings["input_size"] = (int(crop.height), int(crop.width))
        settings["crop_pct"] = min(1.0, crop.height / (shortest or height))
        settings["crop_mode"] = "center"
    elif height and width:
        settings["input_size"] = (int(height), int(width))
        settings["crop_mode"] = "squash"  # to this shape, whatever the shape of the image
    elif shortest:
        settings["input_size"] = (int(shortest), int(shortest))
    return settings


def load_tokenizer(source: Source) -> Any:
    """The tokenizer that lies beside the model at ``source``.

    Raises:
        TokensieveError: transformers is not installed, no tokenizer lies there, or it cannot be read.
    """
    transformers = need_transformers(source.name)
    with quiet(transformers):
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source.place, revision=source.revision)
        except Exception as error:  # every tokenizer fails in its own way
            raise TokensieveError(
                f"cannot read a tokenizer beside {source.name}: {first_sentence(error)}; put there what "
                "tokenizer.save_pretrained writes"
            ) from error
    # Where its files are missing transformers makes one that knows no word.
    files = dict.fromkeys(type(tokenizer).vocab_files_names.values())
    if not any(_is_there(source, file) for file in files):
        raise TokensieveError(
            f"no tokenizer lies beside {source.name}: expected {' or '.join(files)}; put there what "
            "tokenizer.save_pretrained writes"
        )
    return tokenizer


def _is_there(source: Source, file: str) -> bool:
    """Whether a file of the model has been found: in its folder, or in the cache of the hub once it was asked for."""
    if source.local:
        return (Path(source.place) / file).is_file()
    return isinstance(try_to_load_from_cache(source.place, file, revision=source.revision), str)


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Errors are said in one sentence here; transformers' own reports and progress bars would stand around it."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def first_sentence(error: Exception) -> str:
    """What an error of a hub or a loader says first."""
    text = " ".join(str(error).split())
    return text.partition(". ")[0].rstrip(".") or type(error).__name__
