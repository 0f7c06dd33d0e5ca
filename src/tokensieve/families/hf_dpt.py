"""transformers' ``dpt`` and its like: the ViT of DPT's own, VideoMAE, ViTPose."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from tokensieve.families._halves import Halves
from tokensieve.families._reading import Reader, Reading
from tokensieve.families._transformers import TransformersFamily

OLDER = Halves(
    norm1="layernorm_before",
    attention="attention",
    norm2="layernorm_after",
    mlp=("intermediate", "output"),
    adds=False,
    arguments=(),
)
HERE = "transformers.models"


class HfDPT(TransformersFamily):
    """The blocks of the ViT inside transformers' DPT. With another backbone, that backbone's family serves."""

    name = "hf-dpt"
    description = "transformers DPT on its own ViT"
    shapes: ClassVar[Mapping[str, Halves]] = {f"{HERE}.dpt.modeling_dpt.DPTViTLayer": OLDER}

    def readings(self, model: nn.Module, owner: nn.Module) -> list[Reading]:
        around = next((module for module in model.modules() if getattr(module, "dpt", None) is owner), None)
        if around is None:
            return [Reading(owner)]
        # The model around asks for all of them and hands a few to its neck; its caller may want the others.
        return [Reading(owner, NeckInputs(around)), Reading(around)]


@dataclass(eq=False)
class NeckInputs(Reader):
    """The layers that the neck of a DPT model reads."""

    model: Any

    def reads(self) -> Collection[int]:
        config = self.model.config
        indices = config.backbone_out_indices[2:] if config.is_hybrid else config.backbone_out_indices
        return [index + 1 for index in indices]


class HfVitPose(TransformersFamily):
    """The blocks of transformers' ViTPose, whose heatmaps read the whole grid."""

    name = "hf-vitpose"
    description = "transformers ViTPose"
    shapes: ClassVar[Mapping[str, Halves]] = {
        f"{HERE}.vitpose_backbone.modeling_vitpose_backbone.VitPoseBackboneLayer": replace(
            OLDER, mlp=("mlp",), adds=True, arguments=("dataset_index",)
        )
    }

    def refuse(self, owner: nn.Module) -> str | None:
        if owner.config.num_experts > 1:  # type: ignore[union-attr, operator]
            return "its MLPs choose among experts by the data set, an argument that the tokens alone do not tell"
        return super().refuse(owner)

    def keywords(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        given = super().keywords(block, args, kwargs)
        given.pop("dataset_index", None)  # for the experts, of which there are none
        return given


class HfVideoMAE(TransformersFamily):
    """The blocks of transformers' VideoMAE, on a clip (B, T, C, H, W)."""

    name = "hf-videomae"
    description = "transformers VideoMAE, over the whole clip"
    shapes: ClassVar[Mapping[str, Halves]] = {f"{HERE}.videomae.modeling_videomae.VideoMAELayer": OLDER}
    clips = True

    def frames(self, owner: nn.Module) -> int:
        return int(owner.config.num_frames)  # type: ignore[union-attr, arg-type]

    def tubelet(self, owner: nn.Module) -> int:
        return int(owner.config.tubelet_size)  # type: ignore[union-attr, arg-type]
