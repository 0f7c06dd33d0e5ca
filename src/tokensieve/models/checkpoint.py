"""Saving a reduced model as a folder, and loading it where only tokensieve is installed.

The folder holds ``model.safetensors`` and ``tokensieve.json``: the timm name and arguments of the base model, or its
class and config in transformers, task and head where it is a dense model, and every method with its version and
options. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import ModelHubMixin, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokensieve._version import VERSION
from tokensieve.engine import apply as engine
from tokensieve.errors import TokensieveError, TokensieveWarning
from tokensieve.families._locate import family_of, irreducible
from tokensieve.methods._config import Config
from tokensieve.methods._registry import list_placed_methods, placed_class
from tokensieve.models.built import BuiltModel
from tokensieve.models.registered import is_model
from tokensieve.models.source import CONFIG_NAME
from tokensieve.models.transformers import PREFIX, HuggingFaceModel, describe, is_transformers, rebuild
from tokensieve.utils.above import above
from tokensieve.utils.names import nearest

WEIGHTS_NAME = "model.safetensors"
FORMAT = 1
KINDS = ("dense",)  # of built models, as their classes say in ``saved_as``


def method_from_dict(saved: dict[str, Any]) -> Config:
    """The method a dict describes.

    Raises:
        TokensieveError: unknown method or option, or a version this library does not have.
    """
    try:
        cls = placed_class(saved["name"])
        options = dict(saved["options"])
        written = saved["version"]
    except (KeyError, TypeError) as error:
        raise TokensieveError(f"not a saved method: expected name, version and options, got {saved!r}") from error
    if written != cls.version:
        raise TokensieveError(
            f"{cls.name} was saved in version {written} but this tokensieve has version {cls.version}: "
            "its answers would differ; load it with the version that saved it"
        )
    unknown = sorted(set(options) - set(cls.option_types()))
    if unknown:
        raise TokensieveError(f"{cls.name} has no option {unknown[0]!r}{nearest(unknown[0], cls.option_types())}")
    return cls(**options)


def base_of(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """The name and arguments that rebuild the dense model: timm's, or a class of transformers and its config.

    Raises:
        TokensieveError: the model was not made by ``timm.create_model`` and is not of transformers.
    """
    built = isinstance(model, BuiltModel)
    if isinstance(model, BuiltModel):
        model = model.backbone
    if isinstance(model, HuggingFaceModel) or is_transformers(model):
        return describe(model)
    config = getattr(model, "pretrained_cfg", None) or {}
    name = config.get("architecture")
    if not name:
        raise TokensieveError(
            f"cannot save {type(model).__name__}: it does not know its timm name; create it with timm.create_model, "
            "or give a model of transformers"
        )
    arguments = dict(getattr(model, "_model_args", None) or {})
    arguments.setdefault("num_classes", getattr(model, "num_classes", 1000))
    if built:
        arguments["num_classes"] = 0
    embed: Any = None if irreducible(model) is not None else family_of(model).owner.patch_embed
    if getattr(embed, "img_size", None) is not None:
        arguments["img_size"] = list(embed.img_size)
    plain = {key: value for key, value in arguments.items() if _is_json(value)}
    lost = sorted(set(arguments) - set(plain))
    if lost:
        raise TokensieveError(
            f"cannot save {name}: its argument {lost[0]!r} is not plain data ({arguments[lost[0]]!r})"
        )
    return name, plain


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def save(model: nn.Module, folder: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Write ``model`` with the methods applied to it to ``folder``.

    The folder is written beside and then renamed, so an interrupted save leaves what was there.

    Args:
        model: a model of timm or transformers with methods applied (or dense).
        folder: where to; must not exist unless ``force``.
        force: replace an existing folder that holds a saved model.

    Returns:
        The folder.

    Raises:
        TokensieveError: the folder exists, or the model is neither made by timm nor of transformers.
    """
    target = Path(folder)
    if target.exists() and not force:
        raise TokensieveError(f"{target} exists: give another folder, or force=True (--force) to replace it")
    if target.exists() and not target.is_dir():
        raise TokensieveError(f"cannot save to {target}: it is a file, expected a folder")
    if target.exists() and any(target.iterdir()) and not (target / CONFIG_NAME).exists():
        raise TokensieveError(f"{target} holds other files and no saved model: refused to replace it")
    if above("placed methods").encoder_of(model) is not None:
        raise TokensieveError(
            f"cannot save to {target}: a text encoder belongs to the methods, and is not saved with the model: save "
            "the model behind ts.remove(model), the encoder by save_pretrained of its parts, and apply both again "
            "after loading"
        )
    known = list_placed_methods()
    for method in above("placed methods").applied(model):
        if known.get(method.name) is not type(method):
            warnings.warn(
                f"the method {method.name!r} is defined in {type(method).__module__}, where ts.load does not look: put "
                "it in methods/, or name it in the entry-point group tokensieve.methods",
                TokensieveWarning,
                stacklevel=2,
            )
    # What rebuilds the model: the dense one by name, then the methods and how they were applied.
    name, arguments = base_of(model)
    fills = [site.reduction.fill for site in engine.sites(model)]
    config = {
        "format": FORMAT,
        "tokensieve": VERSION,
        "timm": timm.__version__,
        "model": {"name": name, "args": arguments},
        "methods": [m.to_dict() for m in above("placed methods").applied(model)],
        "fill": fills[0] if fills else "last",
        "multiple": engine.multiple_of(model),
        "masked": any(site.reduction.masked for site in engine.sites(model)),
        "taps": engine.taps_of(model),
    } | ({model.saved_as: model.to_config()} if isinstance(model, BuiltModel) else {})
    # Written beside and renamed, so that a run that is killed never leaves half of a folder.
    beside = target.with_name(f".{target.name}.writing")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        weights = {key: value.detach().contiguous().clone() for key, value in model.state_dict().items()}
        save_file(weights, beside / WEIGHTS_NAME, metadata={"format": "pt"})
        (beside / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
        if target.exists():
            retired = target.with_name(f".{target.name}.replaced")
            shutil.rmtree(retired, ignore_errors=True)
            target.rename(retired)
            try:
                beside.rename(target)
            except OSError:  # the old folder takes its place again
                retired.rename(target)
                raise
            shutil.rmtree(retired)
        else:
            beside.rename(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise TokensieveError(f"cannot save to {target}: {reason}; what was there before is kept") from error
    return target


def read_config(folder: Path) -> dict[str, Any]:
    """The JSON config of a saved model.

    Raises:
        TokensieveError: it is missing, damaged, or of a format this library does not know.
    """
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise TokensieveError(f"{folder} is no saved model: it has no {CONFIG_NAME}") from error
    except (OSError, ValueError) as error:
        raise TokensieveError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise TokensieveError(
            f"{path} has format {config.get('format') if isinstance(config, dict) else None!r}, expected {FORMAT}"
        )
    return config


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        TokensieveError: it is missing, truncated, or not safetensors.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise TokensieveError(f"{path} does not exist") from error
    except (SafetensorError, OSError) as error:
        raise TokensieveError(f"{path} is truncated or no safetensors file: {error}") from error


def load(folder: str | os.PathLike[str]) -> nn.Module:
    """The model saved in ``folder``, methods applied, in eval mode on the CPU.

    Raises:
        TokensieveError: the folder, its config or its weights are not those of a saved model; says which and why.
    """
    source = Path(folder)
    config = read_config(source)
    lacking = [key for key in ("model", "methods", "fill") if key not in config]
    if lacking:
        raise TokensieveError(f"{source / CONFIG_NAME} is damaged: it has no {lacking[0]!r}")
    weights = read_weights(source / WEIGHTS_NAME)
    name = config["model"]["name"]
    model = _dense(name, config["model"]["args"], source)
    for kind in KINDS:
        if kind in config:
            model = above(f"saved {kind}").from_config(model, config[kind])
    methods = [method_from_dict(saved) for saved in config["methods"]]
    if methods:
        above("placed methods").apply(
            model,
            methods,
            fill=config["fill"],
            multiple=config.get("multiple"),
            masked=config.get("masked", False),
            taps=config.get("taps"),
        )
    load_weights(model, weights, source / WEIGHTS_NAME)
    return model.eval()


def _dense(name: str, arguments: dict[str, Any], source: Path) -> nn.Module:
    """The dense model that ``base_of`` described, with random weights."""
    if name.startswith(PREFIX):
        return rebuild(name, arguments)
    if not is_model(name):
        raise TokensieveError(f"{source} needs the timm model {name!r}, which timm {timm.__version__} does not have")
    model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    return model


def load_weights(model: nn.Module, weights: dict[str, Tensor], origin: str | os.PathLike[str]) -> None:
    """Load ``weights`` into ``model``, every key and every shape.

    Raises:
        TokensieveError: keys or shapes differ; names the first.
    """
    own = model.state_dict()
    missing, extra = sorted(set(own) - set(weights)), sorted(set(weights) - set(own))
    shapes = [k for k in own if k in weights and own[k].shape != weights[k].shape]
    if shapes:
        key = shapes[0]
        raise TokensieveError(
            f"{origin} is of another model: {key} has shape {tuple(weights[key].shape)}, "
            f"expected {tuple(own[key].shape)}"
        )
    if missing or extra:
        what = f"it lacks {missing[0]}" if missing else f"it has {extra[0]}, which the model does not"
        raise TokensieveError(
            f"{origin} is of another model: {what} ({len(missing)} missing, {len(extra)} unknown keys)"
        )
    dtype = next(model.parameters()).dtype
    model.load_state_dict({k: v.to(dtype) if v.is_floating_point() else v for k, v in weights.items()}, strict=True)


class SievedModel(nn.Module, ModelHubMixin, library_name="tokensieve", tags=["token-reduction", "timm"]):
    """A reduced model with Hugging Face's ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``.

    Args:
        model: a timm model with methods applied.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        """Images (B, C, H, W) to what the wrapped model gives."""
        return self.model(x)

    def _save_pretrained(self, save_directory: Path) -> None:
        beside = save_directory / ".tokensieve"
        save(self.model, beside, force=True)
        for path in beside.iterdir():
            path.replace(save_directory / path.name)
        beside.rmdir()

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **kwargs: Any) -> SievedModel:
        if Path(model_id).is_dir():
            return cls(load(model_id))
        wanted = ("revision", "cache_dir", "force_download", "token", "local_files_only")
        options = {key: kwargs[key] for key in wanted if kwargs.get(key) is not None}
        return cls(load(snapshot_download(model_id, **options)))


def push_to_hub(model: nn.Module, repo_id: str, **options: Any) -> str:
    """Upload a reduced model, with the ``options`` of ``ModelHubMixin.push_to_hub``; returns the commit's URL."""
    try:
        return str(SievedModel(model).push_to_hub(repo_id, **options))
    except TokensieveError:
        raise
    except Exception as error:
        message = f"cannot upload to {repo_id!r}: the hub did not take it ({_first_line(error)})"
        raise TokensieveError(message) from error


def from_pretrained(source: str | os.PathLike[str], **options: Any) -> nn.Module:
    """The reduced model in a local folder or a hub repository, methods applied."""
    try:
        loaded: SievedModel = SievedModel.from_pretrained(os.fspath(source), **options)
    except TokensieveError:
        raise
    except Exception as error:
        raise TokensieveError(
            f"cannot get {os.fspath(source)!r}: it is no local folder and the hub did not give it "
            f"({_first_line(error)})"
        ) from error
    return loaded.model


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
