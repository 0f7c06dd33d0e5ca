"""transformers' ``clip`` and its like: most towers with contrastive training, and many of vision-language models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from tokensieve.families._halves import Halves
from tokensieve.families._layout import Grid
from tokensieve.families._transformers import TransformersFamily

CLIP = Halves(norm1="layer_norm1", attention="self_attn", norm2="layer_norm2", first=True)
AIM = Halves(norm1="rms_norm1", attention="attention", norm2="rms_norm2", mlp=("ffn",), first=True)
# Models with CLIP's block: their folder in transformers, and the beginning of the class's name.
LIKE_CLIP = {
    "altclip": "AltCLIPEncoder",
    "blip_2": "Blip2Encoder",
    "chinese_clip": "ChineseCLIPVision",
    "clip": "CLIPEncoder",
    "clipseg": "CLIPSegEncoder",
    "granite_docling": "GraniteDoclingEncoder",
    "idefics2": "Idefics2Encoder",
    "idefics3": "Idefics3Encoder",
    "instructblip": "InstructBlipEncoder",
    "instructblipvideo": "InstructBlipVideoEncoder",
    "janus": "JanusVisionEncoder",
    "kosmos2": "Kosmos2VisionEncoder",
    "metaclip_2": "MetaClip2Encoder",
    "owlv2": "Owlv2Encoder",
    "owlvit": "OwlViTEncoder",
    "siglip": "SiglipEncoder",
    "smolvlm": "SmolVLMEncoder",
}


class HfCLIP(TransformersFamily):
    """The blocks of transformers' CLIP and of the models with its code; text towers are left as they are."""

    name = "hf-clip"
    description = (
        "transformers CLIP, MetaCLIP 2, SigLIP, OWL-ViT, OWLv2, AIMv2, BLIP-2, Idefics3, SmolVLM and others with "
        "CLIP's blocks"
    )
    shapes: ClassVar[Mapping[str, Halves]] = {
        **{
            f"transformers.models.{folder}.modeling_{folder}.{kind}Layer": (
                replace(CLIP, arguments=(), first=False) if "Blip" in kind else CLIP
            )
            for folder, kind in LIKE_CLIP.items()
        },
        "transformers.models.aimv2.modeling_aimv2.Aimv2EncoderLayer": AIM,
        "transformers.models.ovis2.modeling_ovis2.Ovis2VisionEncoderLayer": AIM,
    }

    def pools(self, model: nn.Module, owner: nn.Module) -> bool:
        """Their image classifiers average over the patches, whether there is a class token or not."""
        return super().pools(model, owner) or "ForImageClassification" in type(model).__name__


class HfUnlimitedOcr(HfCLIP):
    """CLIP's blocks in Unlimited-OCR, on the map (B, C, H, W) that its SAM encoder answers with."""

    name = "hf-unlimited-ocr"
    description = "transformers Unlimited-OCR's second encoder"
    shapes: ClassVar[Mapping[str, Halves]] = {
        "transformers.models.unlimited_ocr.modeling_unlimited_ocr.UnlimitedOcrEncoderLayer": CLIP
    }
    images: ClassVar[str | None] = "patch_embeds"

    def sample_shape(self, owner: nn.Module) -> tuple[int, ...]:
        config: Any = owner.config
        return (config.hidden_size, *self.grid(owner))

    def grid_of(self, owner: nn.Module, images: Tensor) -> Grid:
        return tuple(images.shape[-2:])
