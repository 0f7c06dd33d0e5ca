"""timm's ``swin_transformer``: the stage with most blocks, in windows that are shifted in every other block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from tokensieve.attention.positions import folded, of_places
from tokensieve.attention.tap import Tap
from tokensieve.families._family import own_input_size
from tokensieve.families._halves import Halves, heads_of
from tokensieve.families._layout import Grid, Layout
from tokensieve.families._maps import Inside, MapFamily, Windows, halved


class TimmSwin(MapFamily):
    """The blocks of timm's swin_transformer.py in the stage that has most of them.

    Tokens leave within that stage, and all are back for the one behind it. A token stays in the windows of the patch
    whose place it has.
    """

    name = "timm-swin"
    description = "timm swin_transformer, in its longest stage"
    shapes: ClassVar[Mapping[str, Halves]] = {
        "timm.models.swin_transformer.SwinTransformerBlock": Halves(
            norm1="norm1",
            attention="attn",
            behind1=("drop_path1",),
            norm2="norm2",
            behind2=("drop_path2",),
            arguments=(),
            first=True,
        )
    }

    def matches(self, module: nn.Module) -> bool:
        stages = getattr(module, "layers", None)
        if not isinstance(stages, nn.Sequential) or not hasattr(module, "patch_embed") or not len(stages):
            return False
        return all(isinstance(getattr(stage, "blocks", None), nn.Sequential) for stage in stages) and all(
            map(self.is_block, self.block_list(module))
        )

    def stage(self, owner: nn.Module) -> int:
        """The number of the stage with most blocks, the first of several."""
        stages: Any = owner.layers
        depths = [len(stage.blocks) for stage in stages]
        return depths.index(max(depths))

    def block_list(self, owner: nn.Module) -> nn.Sequential:
        stages: Any = owner.layers
        return stages[self.stage(owner)].blocks  # type: ignore[no-any-return]

    def layout(self, owner: nn.Module) -> Layout:
        blocks: list[Any] = self.blocks(owner)
        heads, _ = heads_of(blocks[0])
        grid: Grid = tuple(blocks[0].input_resolution)
        windowed = (number for number, block in enumerate(blocks) if not self.windows(block, grid).whole)
        return Layout(len(blocks), blocks[0].dim, heads, 0, False, grid, windowed=frozenset(windowed))

    def input_size(self, owner: nn.Module) -> tuple[int, int, int]:
        return own_input_size(owner)

    def grid_of(self, owner: nn.Module, images: Tensor) -> Grid | None:
        grid = super().grid_of(owner, images)
        return None if grid is None else halved(grid, self.stage(owner))

    def pools(self, model: nn.Module, owner: nn.Module) -> bool:
        return False  # a stage stands between

    def windows(self, block: Any, grid: Grid) -> Windows:
        return Windows((grid[0], grid[1]), tuple(block.window_size), tuple(block.shift_size), (grid[0], grid[1]))

    def tapped(self, block: nn.Module, x: Tensor, tap: Tap, **kwargs: Any) -> Tensor:
        own: Any = block
        if x.dim() == 4:
            return x + own.drop_path1(own._attn(own.norm1(x)))  # type: ignore[no-any-return]
        return super().tapped(block, x, tap, **kwargs)

    def with_positions(
        self, block: nn.Module, attention: Any, query: Tensor, key: Tensor, value: Tensor, inside: Inside
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        bias = attention._get_rel_pos_bias()
        return *folded(query, key, value, attention.scale, [of_places(bias, inside.index)]), 1.0

    def projected(self, attention: Any, x: Tensor) -> Tensor:
        return attention.proj_drop(attention.proj(x))  # type: ignore[no-any-return]

    def dropout(self, attention: Any) -> float:
        return attention.attn_drop.p  # type: ignore[no-any-return]
