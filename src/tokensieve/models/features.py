"""Models as what gives features of images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tokensieve.models.transformers import HuggingFaceModel


class ImageFeatures(nn.Module):
    """A model without its classifier: images (B, C, H, W) to features (B, D), one vector an image.

    Of a model of timm these are the features before the classifier, pooled as the model pools; of a model with two
    towers those that it compares with texts (``get_image_features``); of any other model of transformers what its head
    would read: the class token behind the last norm, or the mean of the patches.

    Args:
        model: of timm, or a ``HuggingFaceModel``; it loses its classifier, in place. Methods may be applied to it, or
            to this module afterwards.

    Attributes:
        num_classes: 0.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.num_classes = 0
        reset: Any = getattr(model, "reset_classifier", None)
        if reset is not None:
            reset(0)

    # What timm's helpers, and ours, read from a model.
    @property
    def patch_embed(self) -> Any:
        """The model's."""
        return getattr(self.model, "patch_embed", None)

    @property
    def pretrained_cfg(self) -> Mapping[str, Any]:
        """The model's."""
        found: Mapping[str, Any] = getattr(self.model, "pretrained_cfg", {})
        return found

    @property
    def in_chans(self) -> int:
        """The model's, 0 where it does not say."""
        found: int = getattr(self.model, "in_chans", 0)
        return found

    @property
    def taps(self) -> tuple[int, ...]:
        """The 0-based blocks that something inside the model reads."""
        found: tuple[int, ...] = getattr(self.model, "taps", ())
        return found

    def forward(self, images: Tensor) -> Tensor:
        """(B, D) for images (B, C, H, W)."""
        if isinstance(self.model, HuggingFaceModel):
            return self.model.image_features(images)
        return self.model(images)  # type: ignore[no-any-return]
