"""Models of Hugging Face's transformers called as timm's are: images in, one tensor out.

``ts.apply`` takes models of transformers unchanged. What measures, trains and draws wants to call every model alike
and to know what images it is for; ``HuggingFaceModel`` is for that. Nothing here imports transformers.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F

from tokensieve.errors import TokensieveError
from tokensieve.families._locate import family_of
from tokensieve.families._transformers import both

Task = Literal["classification", "depth", "features"]

IMAGES: dict[str, Any] = {
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
}


NORMS = ("layernorm", "post_layernorm", "norm", "rms_norm")
TWO_TOWERS = ("get_image_features", "get_text_features")
SCALES = ("logit_scale", "temperature")  # by which models with two towers turn a cosine into a logit
HEADS = ("classifier", "cls_classifier", "distillation_classifier", "neck", "head")


def is_transformers(model: nn.Module) -> bool:
    """Whether ``model`` is one of transformers' own classes."""
    kinds = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__)
    return "transformers.modeling_utils.PreTrainedModel" in kinds


def predict_depth(model: nn.Module, images: Tensor) -> Tensor:
    """The depth (B, H, W) that a depth model of transformers predicts for ``images`` (B, C, H, W).

    Where the model answers at another resolution, its map is resized as transformers' image processors do (bicubic).
    The numbers are the model's own: metres where ``predicts_metres``, else inverse depth without scale, larger being
    nearer.

    Args:
        model: for example a ``DepthAnythingForDepthEstimation`` or ``DPTForDepthEstimation``, reduced or not, or the
            ``HuggingFaceModel`` around one.
        images: normalised as the model expects.

    Raises:
        TokensieveError: the model predicts no depth.
    """
    inner: Any = model.model if isinstance(model, HuggingFaceModel) else model
    depth = getattr(inner(images, return_dict=True), "predicted_depth", None)
    if depth is None:
        raise TokensieveError(f"{type(inner).__name__} predicts no depth: give a model such as DPTForDepthEstimation")
    if depth.shape[-2:] != images.shape[-2:]:
        depth = F.interpolate(depth.unsqueeze(1), images.shape[-2:], mode="bicubic", align_corners=False).squeeze(1)
    return depth  # type: ignore[no-any-return]


def predicts_metres(model: nn.Module) -> bool:
    """Whether ``predict_depth`` gives metres, and not inverse depth."""
    inner: Any = model.model if isinstance(model, HuggingFaceModel) else model
    return getattr(inner.config, "depth_estimation_type", "relative") == "metric"


def need_transformers(what: str) -> Any:
    """The package transformers.

    Raises:
        TokensieveError: it is not installed; ``what`` needs it.
    """
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise TokensieveError(
            f"{what} is a model of transformers, which is not installed: pip install 'tokensieve[transformers]'"
        ) from error


@dataclass(frozen=True)
class PatchGrid:
    """What timm's callers read of a patch embedding.

    Attributes:
        patch_size: (height, width) of a patch in pixels.
        img_size: (height, width) of the images.
        strict_img_size: False: images of other sizes are taken.
    """

    patch_size: tuple[int, int]
    img_size: tuple[int, int]
    strict_img_size: bool = False


class HuggingFaceModel(nn.Module):
    """A model of transformers with the interface of timm's.

    ``forward`` gives logits (B, K) of a classifier, depth (B, H, W) of a depth model (see ``predict_depth``) and pooled
    features (B, C) of a bare encoder or backbone. ``forward_features``, ``forward_head``, ``forward_intermediates`` and
    ``set_grad_checkpointing`` are timm's. Position embeddings follow the size of the images.

    Args:
        model: the model, of a family that ``ts.list_families()`` lists.
        img_size: (height, width) that images come in; default the size the model was built for. Token counts, plans and
            probes are for this size, and the model takes others too.
        images: how images are prepared, in the words of timm's data config: ``mean``, ``std``, ``interpolation``,
            ``crop_pct``, ``crop_mode``; see ``models.hub.image_settings``.

    Attributes:
        task: "classification", "depth" or "features".
        num_classes: K, 0 where there are no classes.
        pretrained_cfg: timm's data config.

    Raises:
        RefusedError: no family matches the model.
        TokensieveError: the model is for images of no one size, as SigLIP 2 with its native flexible resolution.
    """

    def __init__(
        self, model: nn.Module, img_size: Sequence[int] | None = None, images: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        located = family_of(model)
        owner: Any = located.owner
        if not hasattr(owner.config, "image_size"):
            raise TokensieveError(
                f"{type(model).__name__} is for images of no one size and takes what its own processor makes of them: "
                "call it with that, ts.apply reduces it in place"
            )
        if img_size is not None:
            owner.input_size = tuple(img_size)
        self.model = model
        self._owner = next(name for name, module in model.named_modules() if module is owner)
        self._built_for = both(owner.config.image_size)
        self._resizes = "interpolate_pos_encoding" in inspect.signature(type(owner).forward).parameters
        self._pools = located.family.pools(model, owner)
        self._classifies = _task_of(model) == "classification"
        classifier = getattr(model, "classifier", None)
        self._reads_both = getattr(classifier, "in_features", 0) == 2 * located.family.layout(owner).dim
        self._prefix = located.family.layout(owner).prefix
        self._patch = located.family.patch_size(owner)
        self.task: Task = _task_of(model)
        config: Any = model.config
        self.num_classes: int = config.num_labels if self.task == "classification" else 0
        self.pretrained_cfg: dict[str, Any] = {
            **IMAGES,
            **(images or {}),
            "input_size": located.family.input_size(owner),
            "num_classes": self.num_classes,
        }

    @property
    def owner(self) -> Any:
        """The encoder inside, which owns the blocks."""
        return self.model.get_submodule(self._owner)

    @property
    def taps(self) -> tuple[int, ...]:
        """The 0-based blocks that a neck or a backbone inside reads."""
        readings = family_of(self.model).family.readings(self.model, self.owner)
        read = {number - 1 for reading in readings if reading.reader is not None for number in reading.reader.reads()}
        return tuple(sorted(read - {-1}))

    @property
    def patch_embed(self) -> PatchGrid:
        """The patches, as timm's callers ask for them."""
        _, height, width = self.pretrained_cfg["input_size"]
        return PatchGrid(self._patch, (height, width))

    @property
    def norm(self) -> nn.Module:
        """The norm behind the last block, where hidden states have none."""
        found = (getattr(self.owner, name, None) for name in NORMS)
        return next((norm for norm in found if isinstance(norm, nn.Module)), nn.Identity())

    @property
    def two_towers(self) -> bool:
        """Whether the model compares images with texts, as CLIP and SigLIP do."""
        has_both = all(hasattr(self.model, name) for name in TWO_TOWERS)
        return has_both and any(hasattr(self.model, name) for name in SCALES)

    def image_features(self, images: Tensor) -> Tensor:
        """(B, D): what a model with two towers compares with texts; of any other model what ``forward_head`` pools."""
        if not self.two_towers:
            return self.forward_head(self.forward_features(images), pre_logits=True)
        model: Any = self.model
        return model.get_image_features(images, **self._options(images)).pooler_output  # type: ignore[no-any-return]

    def _options(self, images: Tensor) -> dict[str, Any]:
        resized = self._resizes and tuple(images.shape[-2:]) != self._built_for
        return {"return_dict": True, **({"interpolate_pos_encoding": True} if resized else {})}

    def forward(self, images: Tensor) -> Tensor:
        """What the model's task asks for, from ``images`` (B, C, H, W)."""
        if self.task == "depth":
            return predict_depth(self.model, images)
        if self.task == "classification":
            return self.model(images, **self._options(images)).logits  # type: ignore[no-any-return]
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, P + N, C): every token behind the last norm."""
        if hasattr(self.owner, "out_features"):  # a backbone gives maps of some layers, which need not be the last
            return self.norm(self._hidden(images, [self._depth])[-1])  # type: ignore[no-any-return]
        return self.owner(images, **self._options(images)).last_hidden_state  # type: ignore[no-any-return]

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, K) logits of a classifier from ``forward_features``; pooled features (B, C) where there is none."""
        model: Any = self.model
        first = features[:, 0]
        mean = features[:, self._prefix :].mean(dim=1)
        if hasattr(model, "cls_classifier"):  # DeiT with a distillation token: the mean of two heads
            heads = (model.cls_classifier(first), model.distillation_classifier(features[:, 1]))
            return first if pre_logits else (heads[0] + heads[1]) / 2
        pooled = self._pooled(first, mean, features)
        if pre_logits or self.task != "classification":
            return pooled
        return model.classifier(pooled)  # type: ignore[no-any-return]

    def _pooled(self, first: Tensor, mean: Tensor, features: Tensor) -> Tensor:
        """(B, C), or (B, 2·C) of DINOv2's classifier: what the head of the model reads."""
        if self._reads_both:
            return torch.cat([first, mean], dim=1)
        if getattr(self.owner, "use_head", False) and not self._classifies:
            return self.owner.head(features)  # type: ignore[no-any-return]
        if self._pools:
            return mean
        # CLIP and its like norm what they pool, and nothing else.
        return self.norm(first) if hasattr(self.owner, "pre_layrnorm") else first

    @property
    def _depth(self) -> int:
        depth: int = self.owner.config.num_hidden_layers
        return depth

    def _hidden(self, images: Tensor, numbers: list[int]) -> Sequence[Tensor]:
        """Hidden states, 0 being what goes into the first block; those not in ``numbers`` need not be there."""
        options = {**self._options(images), "output_hidden_states": numbers}
        return self.owner(images, **options).hidden_states  # type: ignore[no-any-return]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The tokens behind some blocks, as timm's ``forward_intermediates`` gives them, every patch at its place.

        Args:
            x: images (B, C, H, W).
            indices: 0-based blocks, or how many of the last; default all.
            return_prefix_tokens: give (patches, prefix tokens) for each block.
            norm: apply the last norm to each.
            stop_early: of no effect: transformers runs every block.
            output_fmt: "NCHW" (B, C, rows, columns) or "NLC" (B, N, C).
            intermediates_only: leave ``forward_features`` out.

        Returns:
            (``forward_features``, list of intermediates), or the list alone.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise TokensieveError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        take, _ = feature_take_indices(self._depth, indices)
        states = self._hidden(x, sorted({index + 1 for index in take} | {self._depth}))
        grid = tuple(pixels // patch for pixels, patch in zip(x.shape[-2:], self._patch, strict=True))
        found: list[Any] = []
        for index in sorted(take):
            state = self.norm(states[index + 1]) if norm else states[index + 1]
            prefix, patches = state[:, : self._prefix], state[:, self._prefix :]
            if output_fmt == "NCHW":
                patches = patches.unflatten(1, grid).permute(0, 3, 1, 2).contiguous()
            found.append((patches, prefix) if return_prefix_tokens else patches)
        return found if intermediates_only else (self.norm(states[self._depth]), found)

    def reset_classifier(self, num_classes: int = 0) -> None:
        """Take the head off: the model then gives features.

        Raises:
            TokensieveError: another number of classes than 0.
        """
        if num_classes:
            raise TokensieveError(
                f"a model of transformers gets another classifier when it is loaded, got {num_classes}"
            )
        for name in HEADS:
            if isinstance(getattr(self.model, name, None), nn.Module):
                setattr(self.model, name, nn.Identity())
        self.task, self.num_classes = "features", 0
        self.pretrained_cfg["num_classes"] = 0

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Turn gradient checkpointing on or off."""
        model: Any = self.model
        if enable:
            model.activation_checkpointing_enable()
        else:
            model.activation_checkpointing_disable()


PREFIX = "transformers/"  # in front of the class, where a saved model names what it is


def describe(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """The name and the arguments, plain data, from which ``rebuild`` makes the dense model again."""
    inner: Any = model.model if isinstance(model, HuggingFaceModel) else model
    arguments: dict[str, Any] = {"config": json.loads(inner.config.to_json_string(use_diff=False))}
    if isinstance(model, HuggingFaceModel):
        settings = {key: value for key, value in model.pretrained_cfg.items() if key in IMAGES}
        headless = model.task != _task_of(inner)
        arguments |= {"img_size": model.patch_embed.img_size, "images": settings, "headless": headless}
    return PREFIX + type(inner).__name__, arguments


def rebuild(name: str, arguments: dict[str, Any]) -> nn.Module:
    """The model that ``describe`` described, with random weights; the ``HuggingFaceModel`` around it if there was one.

    Raises:
        TokensieveError: transformers is not installed, or has no such class.
    """
    transformers = need_transformers(name)
    kind = getattr(transformers, name.removeprefix(PREFIX), None)
    if kind is None:
        raise TokensieveError(f"transformers {transformers.__version__} has no {name.removeprefix(PREFIX)}")
    model: nn.Module = kind(kind.config_class.from_dict(arguments["config"]))
    if "images" not in arguments:
        return model
    images = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments["images"].items()}
    wrapped = HuggingFaceModel(model, img_size=arguments["img_size"], images=images)
    if arguments["headless"]:
        wrapped.reset_classifier(0)
    return wrapped


def _task_of(model: nn.Module) -> Task:
    name = type(model).__name__
    if "ForDepthEstimation" in name:
        return "depth"
    return "classification" if "ForImageClassification" in name else "features"
