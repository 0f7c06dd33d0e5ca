"""What the families of Hugging Face's transformers have in common. Nothing imports transformers; blocks go by names."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tokensieve.families._halves import HalvesFamily, heads_of
from tokensieve.families._layout import Grid, Layout
from tokensieve.families._reading import Reader, Reading

# Where the encoders of transformers keep what makes tokens of an image, and their blocks.
EMBEDDINGS = ("embeddings", "patch_embed", "patch_embedding", "patch_embedder", "patch_conv")
LISTS = (
    ("layers",),
    ("layer",),
    ("blocks",),
    ("encoder", "layers"),
    ("encoder", "layer"),
    ("encoder", "blocks"),
    ("model", "layers"),
    ("model", "layer"),
    ("transformer", "layers"),
)
LIST = (nn.ModuleList, nn.Sequential)
# Parameters that hold tokens in front of the patches, the class token first.
CLASS_TOKENS = ("cls_token", "class_embedding", "cls_register_token", "cls_embedding")
OTHER_TOKENS = ("distillation_token", "register_tokens")


class TransformersFamily(HalvesFamily):
    """Encoders of transformers: what embeds an image, a list of blocks somewhere, and blocks of two halves.

    Attention goes through transformers' own interface; with ``attn_implementation="sdpa"``, the default, that is the
    fused kernel of torch, where its queries, keys and values are read.

    Class attributes:
        clips: whether the input is a clip (B, T, C, H, W), all of whose frames attend to one another.
    """

    images: ClassVar[str | None] = "pixel_values"
    clips: ClassVar[bool] = False

    # The owner and its tokens

    def matches(self, module: nn.Module) -> bool:
        # A text encoder has blocks of the same class.
        config = getattr(module, "config", None)
        if embeddings_of(module) is None or not any(hasattr(config, name) for name in ("patch_size", "tubelet_size")):
            return False
        blocks = self._list(module)
        return bool(blocks) and all(map(self.is_block, blocks or ()))

    def block_list(self, owner: nn.Module) -> nn.ModuleList | nn.Sequential:
        blocks = self._list(owner)
        assert blocks is not None  # else it did not match
        return blocks

    def _list(self, module: nn.Module) -> nn.ModuleList | nn.Sequential | None:
        return next((found for found in lists_of(module, LIST) if len(found) and self.is_block(found[0])), None)

    def keywords(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        given = super().keywords(block, args, kwargs)
        if torch.compiler.is_exporting():
            # There transformers makes a mask of ones, because it cannot ask whether one is needed. A mask that a
            # caller gives is refused before the blocks. Blocks that take one by position still get the argument.
            given |= {name: None for name in given if name == "attention_mask"}
        return given

    def refuse(self, owner: nn.Module) -> str | None:
        block = self.blocks(owner)[0]
        halves = self.halves(block)
        needed = (halves.norm1, halves.attention, halves.norm2, *halves.mlp)
        lacking = [name for name in needed if not hasattr(block, name)]
        if not lacking:
            return None
        version = getattr(sys.modules.get("transformers"), "__version__", "this version")
        return (
            f"a {type(block).__name__} of transformers {version} has no {lacking[0]}; "
            "pip install --upgrade 'tokensieve[transformers]' gets a transformers that is supported"
        )

    def layout(self, owner: nn.Module) -> Layout:
        config: Any = owner.config
        blocks = self.blocks(owner)
        return Layout(
            depth=len(blocks),
            dim=getattr(config, "hidden_size", None) or config.embed_dim,
            heads=heads_of(getattr(blocks[0], self.halves(blocks[0]).attention))[0],
            prefix=tokens_in(owner, CLASS_TOKENS) + tokens_in(owner, OTHER_TOKENS),
            class_token=tokens_in(owner, CLASS_TOKENS) > 0,
            grid=self.grid(owner),
        )

    def grid(self, owner: nn.Module) -> Grid:
        """The axes of the patches of an image of ``input_size``."""
        _, height, width = self.input_size(owner)
        rows, columns = self.patch_size(owner)
        grid = height // rows, width // columns
        return (self.frames(owner) // self.tubelet(owner), *grid) if self.clips else grid

    def input_size(self, owner: nn.Module) -> tuple[int, int, int]:
        """(channels, height, width): ``owner.input_size`` where ``HuggingFaceModel`` has set one, else the config's."""
        config: Any = owner.config
        return getattr(config, "num_channels", 3), *both(getattr(owner, "input_size", None) or config.image_size)

    def patch_size(self, owner: nn.Module) -> tuple[int, int]:
        config: Any = owner.config
        return both(config.patch_size)

    def sample_shape(self, owner: nn.Module) -> tuple[int, ...]:
        channels, height, width = self.input_size(owner)
        return (self.frames(owner), channels, height, width) if self.clips else (channels, height, width)

    def grid_of(self, owner: nn.Module, images: Tensor) -> Grid | None:
        grid = super().grid_of(owner, images)
        return (images.shape[1] // self.tubelet(owner), *grid) if self.clips and grid else grid

    def frames(self, owner: nn.Module) -> int:
        """T, the frames of a clip, where the model is for ``clips``."""
        raise NotImplementedError(f"{self.name} is for images")

    def tubelet(self, owner: nn.Module) -> int:
        """How many frames a patch covers, where the model is for ``clips``."""
        raise NotImplementedError(f"{self.name} is for images")

    # Readers

    def pools(self, model: nn.Module, owner: nn.Module) -> bool:
        """Classifiers without a class token, and heads that attend to all patches."""
        if getattr(owner, "use_head", False):
            return True
        return "Classification" in type(model).__name__ and not tokens_in(owner, CLASS_TOKENS)

    def readings(self, model: nn.Module, owner: nn.Module) -> list[Reading]:
        # Hidden states are collected by any model around the blocks.
        around = [part for part in model.modules() if hasattr(part, "config") and _holds(part, owner)]
        readings = [Reading(part) for part in reversed(around)]
        if not hasattr(owner, "out_features"):
            return readings
        # A backbone asks its encoder for all of them and makes feature maps of a few; its caller may want the others.
        encoder = next((part for part in owner.children() if next(lists_of(part), None) is not None), owner)
        return [
            Reading(encoder, FeatureMaps(owner)),
            *(reading for reading in readings if reading.module is not encoder),
        ]


def _holds(model: nn.Module, part: nn.Module) -> bool:
    return any(module is part for module in model.modules())


@dataclass(eq=False)
class FeatureMaps(Reader):
    """The layers that a backbone makes feature maps of; ``out_features`` can be changed at any time."""

    backbone: Any

    def reads(self) -> Collection[int]:
        wanted = self.backbone.out_features
        return [number for number, stage in enumerate(self.backbone.stage_names) if stage in wanted]


def heads_by_layers(attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, H, L, D) of ``x`` (B, L, C) by the attention's q_proj, k_proj and v_proj."""
    layers = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (layer(x).unflatten(2, (-1, attention.head_dim)).transpose(1, 2) for layer in layers)
    return query, key, value


def noise(like: Tensor, *shape: int) -> Tensor:
    """Values from -1 to 1, the same every time, where ``like`` is and in its dtype: what an image stands for."""
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(like)


def both(size: Any) -> tuple[int, int]:
    """(height, width) of a size that may be one number for both."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def embeddings_of(module: nn.Module) -> nn.Module | None:
    """What makes tokens of an image in an encoder of transformers, or None."""
    found = (module._modules.get(name) for name in EMBEDDINGS)
    return next((embeddings for embeddings in found if embeddings is not None), None)


def lists_of(module: nn.Module, kinds: tuple[type[Any], ...] = (nn.ModuleList,)) -> Iterator[Any]:
    """The lists of blocks of an encoder of transformers, of these ``kinds``, at the places where they may be."""
    for path in LISTS:
        found: Any = module
        for name in path:
            found = found._modules.get(name) if isinstance(found, nn.Module) else None
        if isinstance(found, kinds):
            yield found


def tokens_in(owner: nn.Module, names: tuple[str, ...]) -> int:
    """How many tokens the parameters called ``names`` of ``owner`` or its embeddings hold."""
    holders = [holder for holder in (embeddings_of(owner), owner) if holder is not None]
    found = [holder._parameters.get(name) for holder in holders for name in names]
    return sum(1 if token.dim() == 1 else token.shape[-2] for token in found if token is not None)
