"""transformers' ``swin``: the stage with most blocks, in windows that are shifted in every other block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from tokensieve.attention.positions import folded, of_places
from tokensieve.attention.tap import Tap
from tokensieve.families._halves import Halves, behind
from tokensieve.families._layout import Grid, Layout
from tokensieve.families._maps import Inside, Windows, halved
from tokensieve.families._transformers import embeddings_of
from tokensieve.families._transformers_maps import HfLayeredMaps
from tokensieve.tokens.form import Form

HERE = "transformers.models"
SWIN = Halves(
    norm1="layernorm_before",
    attention="attention",
    behind1=("dropout", "drop_path"),
    norm2="layernorm_after",
    behind2=("dropout",),
    arguments=("input_dimensions", "always_partition"),
)


class HfSwin(HfLayeredMaps):
    """The blocks of transformers' Swin in the stage that has most of them, whose tokens are rows (B, L, C).

    Tokens leave within that stage, and all are back for the one behind it.
    """

    name = "hf-swin"
    description = "transformers Swin, in its longest stage"
    shapes: ClassVar[Mapping[str, Halves]] = {f"{HERE}.swin.modeling_swin.SwinLayer": SWIN}

    def matches(self, module: nn.Module) -> bool:
        if embeddings_of(module) is None or not isinstance(getattr(module, "encoder", None), nn.Module):
            return False
        stages = getattr(module.encoder, "layers", None)
        if not isinstance(stages, nn.ModuleList) or not len(stages) or not hasattr(stages[0], "blocks"):
            return False
        return all(map(self.is_block, self.block_list(module)))

    def stage(self, owner: nn.Module) -> int:
        """The number of the stage with most blocks, the first of several."""
        config: Any = owner.config
        return config.depths.index(max(config.depths))  # type: ignore[no-any-return]

    def block_list(self, owner: nn.Module) -> nn.ModuleList:
        model: Any = owner
        return model.encoder.layers[self.stage(owner)].blocks  # type: ignore[no-any-return]

    def layout(self, owner: nn.Module) -> Layout:
        blocks: list[Any] = self.blocks(owner)
        own, grid = blocks[0].attention, self.grid(owner)
        windowed = (number for number, block in enumerate(blocks) if not self.windows(block, grid).whole)
        width = own.num_attention_heads * own.head_dim
        return Layout(len(blocks), width, own.num_attention_heads, 0, False, grid, windowed=frozenset(windowed))

    def grid(self, owner: nn.Module) -> Grid:
        return halved(super().grid(owner), self.stage(owner))

    def grid_of(self, owner: nn.Module, images: Tensor) -> Grid | None:
        grid = super().grid_of(owner, images)
        return None if grid is None else halved(grid, self.stage(owner))

    def pools(self, model: nn.Module, owner: nn.Module) -> bool:
        return False  # a stage stands between

    def form(self, block: nn.Module, x: Tensor) -> Form | None:
        return None

    def opened(self, out: Any) -> Tensor:
        return out[0]  # type: ignore[no-any-return]

    def closed(self, x: Any) -> Any:
        return x, None

    def windows(self, block: Any, grid: Grid, always: bool = False) -> Windows:
        side, shift = block.window_size, block.shift_size
        if min(grid) <= side and not always:  # as the block itself sets them when it runs
            side, shift = min(grid), 0
        rows, columns = (-(-axis // side) * side for axis in grid)
        return Windows((grid[0], grid[1]), (side, side), (shift, shift), (rows, columns))

    def reindex(self, block: nn.Module, kwargs: dict[str, Any], positions: Tensor, prefix: int) -> dict[str, Any]:
        grid, always = kwargs["input_dimensions"], kwargs.get("always_partition", False)
        return self.windows(block, grid, always).told(positions)

    def tapped(self, block: nn.Module, x: Tensor, tap: Tap, **kwargs: Any) -> Tensor:
        if not tap.as_given:
            return super().tapped(block, x, tap, **kwargs)
        own: Any = block
        height, width = kwargs["input_dimensions"]
        if not kwargs.get("always_partition", False):
            own.set_shift_and_window_size((height, width))
        side, normed = own.window_size, own.layernorm_before(x).view(len(x), height, width, -1)
        padded, _ = own.maybe_pad(normed, height, width)
        covered = Windows(tuple(padded.shape[1:3]), (side, side))
        mask = own.get_attn_mask(*covered.grid, dtype=x.dtype, device=x.device)
        cut = covered.cut(own.cyclic_shift(padded)).flatten(1, 2)
        out = own.dropout(own.attention(cut, mask)[0]).unflatten(1, (side, side))
        whole = own.cyclic_shift(covered.joined(out), reverse=True)[:, :height, :width].reshape(x.shape)
        return x + behind(block, whole, ("drop_path",))

    def with_positions(
        self, block: nn.Module, attention: Any, query: Tensor, key: Tensor, value: Tensor, inside: Inside
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        bias = attention.relative_position_bias()
        return *folded(query, key, value, attention.scaling, [of_places(bias, inside.index)]), 1.0
