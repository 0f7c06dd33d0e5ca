"""The protocol of a model family: how to run a block's two halves by calling the block's own submodules."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from tokensieve.attention.tap import Tap
from tokensieve.families._layout import Grid, Layout
from tokensieve.families._reading import Reading
from tokensieve.ops.norm import Norm
from tokensieve.tokens.form import Form

POOLS_OVER_PATCHES = ("avg", "avgmax", "max", "map")
# What torch.compile and torch's checkpoint wrapper call the module that they are put around.
WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module")
Amount = TypeVar("Amount", float, Tensor)  # of tokens, one or one for each image


@dataclass(frozen=True)
class BlockMacs:
    """What a block costs on a tokens in attention, of which p pairs attend to one another, and m in the MLP:
    attention_linear·a + 2·width·p + mlp_linear·m + besides.

    Attributes:
        attention_linear: MACs of the attention's projections, per token.
        mlp_linear: MACs of the MLP, per token.
        attention_width: heads times head dimension.
        besides: MACs that do not depend on the tokens.
    """

    attention_linear: int
    mlp_linear: int
    attention_width: int
    besides: int = 0

    def total(self, attended: Amount, processed: Amount, pairs: Amount | None = None) -> Amount:
        """Multiply-accumulates on these tokens; without ``pairs`` every token attends to all."""
        pairs = attended**2 if pairs is None else pairs
        linear = self.attention_linear * attended + self.mlp_linear * processed
        return linear + 2 * self.attention_width * pairs + self.besides  # type: ignore[return-value]


def linear_macs(module: nn.Module) -> int:
    """MACs per token of all linear layers inside ``module``."""
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside of what was wrapped around it by itself, to be compiled or checkpointed; else ``module``."""
    inner = next((module._modules[name] for name in WRAPPED if name in module._modules), None)
    return module if inner is None else unwrapped(inner)


def taken_apart(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The tokens that a block was given, the first of its arguments whether named or not, and the other arguments."""
    if args:
        return args[0], args[1:], kwargs
    name, *others = kwargs
    return kwargs[name], (), {other: kwargs[other] for other in others}


def own_input_size(model: nn.Module) -> tuple[int, int, int]:
    """(channels, height, width) of the images that a model of timm was built for."""
    config = getattr(model, "pretrained_cfg", None) or {}
    embed = getattr(model, "patch_embed", None)
    height, width = getattr(embed, "img_size", None) or config.get("input_size", (3, 224, 224))[1:]
    channels = getattr(model, "in_chans", 0) or getattr(getattr(embed, "proj", None), "in_channels", 3)
    return channels, height, width


class Family(ABC):
    """A model family. A subclass is one file under families/; it never sees a method.

    Class attributes:
        name: what tables and errors call it.
        description: one line for ``tokensieve families``.
        block_types: the block classes it can run in halves. Those of a package that may not be installed are given by
            their full names, so that nothing is imported before such a model exists.
        arguments: names of what a block gets by position behind its tokens.
        images: the first argument of the owner's forward where it takes images, whose size then tells the patch grid;
            None where ``forward_features`` and ``forward_intermediates`` do, as in timm.
        biased: whether the mask that its attention hands to the fused kernel is a bias for each pair of tokens of the
            whole sequence, (B or 1, H, L, L), from which that of the tokens present is taken.
        in_parts: whether a block's own forward does not take what ``reindex`` gives, so that it runs in its halves once
            tokens have moved.
        joins: whether some blocks let several of the sequences that a state has attend to one another.
        packed: whether the images lie one behind the other in one row (T, C), as ``lengths`` says.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    block_types: ClassVar[tuple[type[nn.Module] | str, ...]]
    arguments: ClassVar[tuple[str, ...]] = ()
    images: ClassVar[str | None] = None
    biased: ClassVar[bool] = False
    in_parts: ClassVar[bool] = False
    joins: ClassVar[bool] = False
    packed: ClassVar[bool] = False

    def is_block(self, module: nn.Module) -> bool:
        """Whether ``module`` is of one of the ``block_types``, also inside of a wrapper."""
        return any(
            cls in self.block_types or f"{cls.__module__}.{cls.__qualname__}" in self.block_types
            for cls in type(unwrapped(module)).__mro__
        )

    def block_names(self) -> tuple[str, ...]:
        """The names of the ``block_types``, without their modules."""
        return tuple(kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__ for kind in self.block_types)

    def lacking(self) -> str | None:
        """The package that models of this family come from where it is not installed, else None."""
        packages = (kind.partition(".")[0] for kind in self.block_types if isinstance(kind, str))
        return next((package for package in packages if importlib.util.find_spec(package) is None), None)

    def matches(self, module: nn.Module) -> bool:
        """Whether ``module`` owns blocks of this family."""
        blocks = getattr(module, "blocks", None)
        if not isinstance(blocks, (nn.Sequential, nn.ModuleList)) or not len(blocks):
            return False
        return hasattr(module, "num_prefix_tokens") and all(map(self.is_block, blocks))

    def keywords(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """What ``block`` got behind its tokens, all by name."""
        return {**kwargs, **dict(zip(self.arguments, args, strict=False))}

    def know(self, block: nn.Module) -> Any:
        """Look up what a run of ``block`` asks for, now that its class is the one that runs. Default: nothing."""
        return None

    def opened(self, out: Any) -> Tensor:
        """The tokens (B, L, C) in what a block of this family answers. Default: the answer itself."""
        return out  # type: ignore[no-any-return]

    def closed(self, x: Any) -> Any:
        """What a block of this family answers with the tokens ``x``, a tensor or ``Tokens``. Default: these."""
        return x

    def blocks(self, owner: nn.Module) -> list[nn.Module]:
        """The blocks of ``owner`` in the order they run, out of their wrappers."""
        return list(map(unwrapped, self.block_list(owner)))

    def block_list(self, owner: nn.Module) -> nn.ModuleList | nn.Sequential:
        """The module that holds the blocks of ``owner``, where one can be put in the place of another."""
        return owner.blocks  # type: ignore[return-value]

    def refuse(self, owner: nn.Module) -> str | None:
        """Why this owner cannot be reduced although its blocks match, or None."""
        return None

    @abstractmethod
    def layout(self, owner: nn.Module) -> Layout:
        """The token layout of ``owner``."""

    def input_size(self, owner: nn.Module) -> tuple[int, int, int]:
        """(channels, height, width) of the images that ``owner`` was built for."""
        return own_input_size(owner)

    def sample_shape(self, owner: nn.Module) -> tuple[int, ...]:
        """The shape of one input of ``owner``: (C, H, W) of an image, (T, C, H, W) of a clip."""
        return self.input_size(owner)

    def example(self, owner: nn.Module) -> dict[str, Any] | None:
        """What ``owner`` is called with on an image that stands for others, by name, where that is no image alone;
        None: it is."""
        return None

    def lengths(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...] | None:
        """How many patches each image of a call of ``owner`` has, where images are ``packed``."""
        return None

    def patch_size(self, owner: nn.Module) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        model: Any = owner
        height, width = model.patch_embed.patch_size
        return int(height), int(width)

    def grid_of(self, owner: nn.Module, images: Tensor) -> Grid | None:
        """The axes of the patches of ``images`` (B, C, H, W), without what does not fill a patch; None: not known."""
        return tuple(side // size for side, size in zip(images.shape[-2:], self.patch_size(owner), strict=True))

    def pools(self, model: nn.Module, owner: nn.Module) -> bool:
        """Whether the head of ``model`` pools over patches."""
        return getattr(owner, "global_pool", "") in POOLS_OVER_PATCHES

    def readings(self, model: nn.Module, owner: nn.Module) -> list[Reading]:
        """Where outputs carry the hidden states between blocks, inner ones first. Default: nowhere."""
        return []

    def form(self, block: nn.Module, x: Tensor) -> Form | None:
        """How ``block`` has its tokens ``x``, where that is not (B, L, C). Default: it is that."""
        return None

    @abstractmethod
    def attention(self, block: nn.Module, x: Tensor, **kwargs: Any) -> Tensor:
        """``x`` (B, L, C) after the attention half of the block, residual included."""

    def tapped(self, block: nn.Module, x: Tensor, tap: Tap, **kwargs: Any) -> Tensor:
        """``attention`` with ``tap`` on it; a family that knows its blocks' attention may watch that call alone."""
        with tap:
            return self.attention(block, x, **kwargs)

    @abstractmethod
    def mlp(self, block: nn.Module, x: Tensor) -> Tensor:
        """``x`` (B, L, C) after the MLP half of the block, residual included."""

    def attention_input(self, block: nn.Module, x: Tensor) -> Tensor:
        """(B, L, C), what the projections of the block's attention are given of ``x``. Default: ``block.norm1(x)``."""
        normed: Tensor = block.norm1(x)  # type: ignore[operator]
        return normed

    def mlp_norm(self, block: nn.Module) -> Norm | None:
        """The LayerNorm that the MLP half begins with, where it is a plain one without hooks
        (``families._modules.norm_of``) and ``mlp_behind_norm`` goes on behind it. Default: None."""
        return None

    def mlp_behind_norm(self, block: nn.Module, x: Tensor, normed: Tensor) -> Tensor:
        """``mlp`` of ``x``, given ``normed``, what ``mlp_norm`` makes of it; both (B, L, C)."""
        raise NotImplementedError(f"{self.name} names no mlp_norm, so nothing runs behind it")

    @abstractmethod
    def macs(self, block: nn.Module) -> BlockMacs:
        """What the block costs."""

    def reindex(self, block: nn.Module, kwargs: dict[str, Any], positions: Tensor, prefix: int) -> dict[str, Any]:
        """The keyword arguments of ``block`` for tokens at original patch ``positions`` (B, M). Default: unchanged.

        Where the model has its tokens in a ``form``, ``kwargs`` hold what that tells besides, and the positions are the
        places that it gives.
        """
        return kwargs
