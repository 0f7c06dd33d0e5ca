"""What the families of Hugging Face's transformers have in common. Nothing imports transformers; blocks go by names."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import torch
from torch import nn

from tokensieve.families._family import Family
from tokensieve.families._layout import Layout


class TransformersFamily(Family):
    """Encoders of transformers: ``embeddings``, and blocks as ``layers`` or ``encoder.layer``.

    Attention goes through transformers' own interface; with ``attn_implementation="sdpa"``, the default, that is the
    fused kernel of torch, where its queries, keys and values are read.

    Class attributes:
        parts: submodules of a block that this family calls. Another version of transformers may have others.
    """

    arguments = ("attention_mask",)
    images = "pixel_values"
    parts: ClassVar[tuple[str, ...]]

    def matches(self, module: nn.Module) -> bool:
        blocks = list_of(module)
        return hasattr(module, "embeddings") and bool(blocks) and all(map(self.is_block, blocks or ()))

    def block_list(self, owner: nn.Module) -> nn.ModuleList:
        blocks = list_of(owner)
        assert blocks is not None  # else it did not match
        return blocks

    def keywords(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        given = super().keywords(args, kwargs)
        if torch.compiler.is_exporting():
            # There transformers makes a mask of ones, because it cannot ask whether one is needed. A mask that a
            # caller gives is refused before the blocks.
            given.pop("attention_mask", None)
        return given

    def refuse(self, owner: nn.Module) -> str | None:
        block = self.blocks(owner)[0]
        lacking = [name for name in self.parts if not hasattr(block, name)]
        if not lacking:
            return None
        version = getattr(sys.modules.get("transformers"), "__version__", "this version")
        return (
            f"a {type(block).__name__} of transformers {version} has no {lacking[0]}; "
            "pip install --upgrade 'tokensieve[transformers]' gets a transformers that is supported"
        )

    def layout(self, owner: nn.Module) -> Layout:
        model: Any = owner
        tokens = [getattr(model.embeddings, name, None) for name in ("cls_token", "distillation_token")]
        registers = getattr(model.embeddings, "register_tokens", None)
        _, height, width = self.input_size(owner)
        rows, columns = self.patch_size(owner)
        return Layout(
            depth=len(self.block_list(owner)),
            dim=model.config.hidden_size,
            heads=model.config.num_attention_heads,
            prefix=sum(token is not None for token in tokens) + (0 if registers is None else registers.shape[1]),
            class_token=tokens[0] is not None,
            grid=(height // rows, width // columns),
        )

    def input_size(self, owner: nn.Module) -> tuple[int, int, int]:
        """(channels, height, width): ``owner.input_size`` where ``HuggingFaceModel`` has set one, else the config's."""
        config: Any = owner.config
        return config.num_channels, *both(getattr(owner, "input_size", None) or config.image_size)

    def patch_size(self, owner: nn.Module) -> tuple[int, int]:
        config: Any = owner.config
        return both(config.patch_size)


def both(size: Any) -> tuple[int, int]:
    """(height, width) of a size that may be one number for both."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def list_of(module: nn.Module) -> nn.ModuleList | None:
    """The list of blocks of an encoder of transformers, or None."""
    for blocks in (getattr(module, "layers", None), getattr(getattr(module, "encoder", None), "layer", None)):
        if isinstance(blocks, nn.ModuleList):
            return blocks
    return None
