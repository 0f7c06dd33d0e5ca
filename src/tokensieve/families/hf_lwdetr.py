"""transformers' ``lw_detr`` and ``rf_detr``: encoders whose windows are sequences, joined in blocks that see all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from tokensieve.attention.tap import Tap
from tokensieve.attention.windows import Joined
from tokensieve.families._family import BlockMacs
from tokensieve.families._halves import Halves, behind
from tokensieve.families._layout import Grid, Layout
from tokensieve.families._transformers import TransformersFamily
from tokensieve.families.hf_dinov2 import SCALED

HERE = "transformers.models"


class HfLwDetr(TransformersFamily):
    """The blocks of LW-DETR's encoder and of RF-DETR's.

    A window is what a method is shown as an image: each loses as many tokens, which blocks that join the windows of an
    image need. Methods that read the attention act in the others.
    """

    name = "hf-lwdetr"
    description = "transformers LW-DETR, RF-DETR, as many tokens in each window"
    shapes: ClassVar[Mapping[str, Halves]] = {
        f"{HERE}.lw_detr.modeling_lw_detr.LwDetrViTLayer": Halves(
            norm1="layernorm_before",
            attention="attention",
            behind1=("gamma_1",),
            norm2="layernorm_after",
            mlp=("intermediate",),
            behind2=("gamma_2",),
            arguments=(),
            first=True,
        ),
        f"{HERE}.rf_detr.modeling_rf_detr.RfDetrDinov2Layer": SCALED,
    }
    joins = True

    def matches(self, module: nn.Module) -> bool:
        return super().matches(module) and hasattr(getattr(module, "config", None), "num_windows")

    def layout(self, owner: nn.Module) -> Layout:
        whole = (number for number, block in enumerate(self.blocks(owner)) if windows_of(block) > 1)
        return replace(super().layout(owner), windowed=frozenset(whole))

    def grid(self, owner: nn.Module) -> Grid:
        return tuple(axis // self._side(owner) for axis in super().grid(owner))

    def grid_of(self, owner: nn.Module, images: Tensor) -> Grid | None:
        grid = super().grid_of(owner, images)
        return None if grid is None else tuple(axis // self._side(owner) for axis in grid)

    def _side(self, owner: nn.Module) -> int:
        """How many windows there are along each side of an image."""
        config: Any = owner.config
        return getattr(config, "num_windows_side", config.num_windows)  # type: ignore[no-any-return]

    def attention(self, block: nn.Module, x: Tensor, **kwargs: Any) -> Tensor:
        return self.tapped(block, x, Tap(), **kwargs)

    def tapped(self, block: nn.Module, x: Tensor, tap: Tap, **kwargs: Any) -> Tensor:
        halves, windows = self.halves(block), windows_of(block)
        joined = x.reshape(len(x) // windows, -1, x.shape[2]) if windows > 1 else x
        if windows > 1 and not tap.as_given:
            tap.rows = Joined(windows)
        normed = self.attention_input(block, joined)
        with tap:
            out = getattr(block, halves.attention)(normed, **kwargs)[0]
        return halves.sum(x, behind(block, out.reshape(x.shape), halves.behind1))

    def macs(self, block: nn.Module) -> BlockMacs:
        found = super().macs(block)
        return replace(found, attention_width=found.attention_width * windows_of(block))


def windows_of(block: Any) -> int:
    """How many windows attend together in ``block``; 1: each to itself."""
    if hasattr(block, "global_attention"):
        return block.num_windows**2 if block.global_attention else 1  # type: ignore[no-any-return]
    return 1 if block.window else block.num_windows
