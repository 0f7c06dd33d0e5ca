"""Zero-shot classification: images are compared with texts that name the classes (CLIP, Radford et al., 2021,
arXiv:2103.00020, section 3.1; SigLIP, Zhai et al., 2023, arXiv:2303.15343)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokensieve.errors import TokensieveError
from tokensieve.models.features import ImageFeatures
from tokensieve.models.options import TEMPLATE, check_templates
from tokensieve.models.transformers import HuggingFaceModel

TEXTS = 64  # that run at a time


class ZeroShot(ImageFeatures):
    """A classifier (B, C, H, W) to (B, K) made of a model with two towers and of features of texts.

    A logit is s·cos(image, text) + b, the scale s and the bias b being the model's own (b = 0 but for SigLIP), computed
    in float32. A softmax of SigLIP's logits does not depend on b.

    Args:
        model: a ``HuggingFaceModel`` with two towers; methods are applied to its vision tower alone.
        text: (K, D), one row a class, as ``class_features`` gives it.

    Attributes:
        num_classes: K.

    Raises:
        TokensieveError: the model has no text tower.
    """

    text: Tensor

    def __init__(self, model: nn.Module, text: Tensor) -> None:
        towers = two_towers(model)
        super().__init__(model)
        self.register_buffer("text", text, persistent=False)
        self.num_classes = len(text)
        self.scale, self.bias = _scale(towers.model)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K), float32."""
        features = super().forward(images)
        with torch.autocast(features.device.type, enabled=False):
            # As a linear layer, which it is: so its multiply-accumulates are counted as those of a classifier are.
            cosine = F.linear(F.normalize(features.float(), dim=-1), self.text.float())
        return self.scale * cosine + self.bias


def two_towers(model: nn.Module) -> HuggingFaceModel:
    """``model``, which must have two towers.

    Raises:
        TokensieveError: it has no text tower.
    """
    if isinstance(model, HuggingFaceModel) and model.two_towers:
        return model
    kind = type(model.model if isinstance(model, HuggingFaceModel) else model).__name__
    raise TokensieveError(
        f"{kind} has no text tower, which zero-shot classification compares images with: give a whole CLIP, SigLIP or "
        "the like of transformers, hf:owner/name or a folder that save_pretrained wrote"
    )


@torch.no_grad()
def class_features(
    model: nn.Module, tokenizer: Any, names: Sequence[str], templates: Sequence[str] = (TEMPLATE,)
) -> Tensor:
    """Features of classes by their names: those of the texts of each are normalised, averaged and normalised again.

    Args:
        model: a ``HuggingFaceModel`` with two towers, on any device, in evaluation mode.
        tokenizer: the model's own, see ``models.hub.load_tokenizer``.
        names: K names.
        templates: texts with ``{}`` for the name, as in section 3.1.4 of the CLIP paper.

    Returns:
        (K, D) float32 on the CPU, rows of length 1.

    Raises:
        TokensieveError: the model has no text tower, there is no name, a template has no place for one, or a text is
            longer than the text tower takes or has a token that it does not know.
    """
    check_templates(templates)
    if not names:
        raise TokensieveError("there is no class: give the name of each")
    towers: Any = two_towers(model).model
    total = torch.zeros(())
    for template in templates:
        texts = [template.replace("{}", name) for name in names]
        total = total + F.normalize(torch.cat(list(_features(towers, tokenizer, texts))), dim=-1)
    return F.normalize(total, dim=-1)


def _features(towers: Any, tokenizer: Any, texts: Sequence[str]) -> Iterator[Tensor]:
    """(n, D) float32 on the CPU, a few texts at a time."""
    for start in range(0, len(texts), TEXTS):
        encoded = _encoded(towers.config, tokenizer, texts[start : start + TEXTS])
        given = {name: value.to(towers.device) for name, value in encoded.items()}
        yield towers.get_text_features(**given).pooler_output.float().cpu()


def _encoded(config: Any, tokenizer: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    """Texts as the text tower takes them, none of them cut off."""
    tower = config.text_config
    limit = min(tokenizer.model_max_length, tower.max_position_embeddings)
    # SigLIP was trained on texts of one length, and attends to the padding.
    if "siglip" in config.model_type:
        how: dict[str, Any] = {"padding": "max_length", "max_length": limit, "return_attention_mask": False}
    else:
        how = {"padding": True}
    try:
        encoded = tokenizer(list(texts), return_tensors="pt", **how)
    except ValueError as error:  # texts of several lengths and no token to fill them up with, for one
        raise TokensieveError(f"the tokenizer beside the model cannot be used: {error}") from error
    ids = encoded["input_ids"]
    if ids.shape[1] > limit:
        longest = max(texts, key=lambda text: len(tokenizer(text)["input_ids"]))
        raise TokensieveError(
            f"{longest!r} has {ids.shape[1]} tokens and the text tower takes {limit}: shorten the name or the template"
        )
    if int(ids.max()) >= tower.vocab_size:
        raise TokensieveError(
            f"the tokenizer beside the model has a token {int(ids.max())} and the text tower knows {tower.vocab_size}: "
            "they do not belong together"
        )
    return dict(encoded)


def _scale(towers: Any) -> tuple[float, float]:
    """What a cosine is multiplied with, and what is added."""
    if not hasattr(towers, "logit_scale"):
        return 1 / towers.temperature.item(), 0.0
    log = towers.logit_scale.item()
    if hasattr(towers, "max_log_logit_scale"):  # AIMv2's
        log = min(max(log, 0.0), towers.max_log_logit_scale)
    return math.exp(log), towers.logit_bias.item() if hasattr(towers, "logit_bias") else 0.0
