"""transformers' encoders that no token can leave, each with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tokensieve.families._transformers import LIST, TransformersFamily

HERE = "transformers.models"
REASONS: Mapping[str, str] = {
    f"{HERE}.deepseek_ocr2.modeling_deepseek_ocr2.DeepseekOcr2VisionEncoderLayer": (
        "its queries lie behind the patches and attend causally, each to those in front of it, which fewer tokens "
        "would change"
    ),
    f"{HERE}.groupvit.modeling_groupvit.GroupViTEncoderLayer": (
        "it joins its patches into groups itself, by group tokens that it has learned, and answers with the groups"
    ),
    f"{HERE}.inkling2.modeling_inkling2.Inkling2VisionEncoderLayer": (
        "its images lie in one row with a class token in front of each, and a row is taken apart into patches alone"
    ),
    f"{HERE}.lfm3_vl.modeling_lfm3_vl.Lfm3VlVisionLayer": (
        "blocks of it are convolutions over the grid of the patches, which fewer tokens do not fill"
    ),
    f"{HERE}.mllama.modeling_mllama.MllamaVisionEncoderLayer": (
        "an image is a row of several tiles, each with a class token and padding of its own, which methods would take "
        "for patches"
    ),
    f"{HERE}.phi4_multimodal.modeling_phi4_multimodal.Phi4MultimodalVisionEncoderLayer": (
        "its attention is causal in the fused kernel wherever no image is padded, so that a patch sees those in front "
        "of it alone"
    ),
    f"{HERE}.seggpt.modeling_seggpt.SegGptLayer": (
        "it averages the two halves of its batch between two blocks, and its attention, which never calls the fused "
        "kernel, has relative positions of the whole map"
    ),
    f"{HERE}.x_clip.modeling_x_clip.XCLIPVisionEncoderLayer": (
        "each block adds a token with the messages of all frames to the attention of every frame, which methods "
        "neither see nor weigh"
    ),
}


class HfApart(TransformersFamily):
    """Encoders whose blocks are known, and why fewer tokens cannot go through them. None of them is ever reduced."""

    name = "hf-apart"
    description = "transformers encoders that are refused, each with its reason"
    block_types = tuple(REASONS)

    def matches(self, module: nn.Module) -> bool:
        return self._list(module) is not None

    def _list(self, module: nn.Module) -> Any:
        lists = (child for child in module.children() if isinstance(child, LIST))
        return next((found for found in lists if len(found) and self.is_block(found[0])), None)

    def refuse(self, owner: nn.Module) -> str:
        names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(self.blocks(owner)[0]).__mro__)
        return next(REASONS[name] for name in names if name in REASONS)
