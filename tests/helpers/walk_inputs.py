"""What every class of transformers that the walk builds is called with: images, or what its processor makes of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers.walk_configs import SIDE, folder_of

IMAGES = 2
SQUARE = (8, 8)  # patches of an image that is cut into patches before
GRID = (8, 12)  # patches of each of three packed images
PACKED_IMAGES = 3
GRIDS = ("grid_thw", "image_grid_thw")
TOWERS = ("vision_config", "backbone_config", "encoder", "sam_config")  # configs of towers inside other configs
SHAPES: dict[str, tuple[int, ...]] = {  # by folder, where its configs do not say the shape
    **dict.fromkeys(("efficientloftr", "lightglue", "superglue"), (IMAGES, 2, 3, SIDE, SIDE)),  # pairs of images
    **dict.fromkeys(("pp_ocrv5_server_rec", "pp_ocrv6_small_rec", "pp_ocrv6_tiny_rec"), (IMAGES, 3, 48, 160)),  # lines
    "depth_pro": (IMAGES, 3, 2 * SIDE, 2 * SIDE),
    "inkling": (6, 2, 16, 16, 3),
    "molmo2": (IMAGES, SQUARE[0] * SQUARE[1], 3 * 16**2),
    "timm_backbone": (IMAGES, 3, 224, 224),
    "pe_video": (IMAGES, 4, 3, SIDE, SIDE),
    "x_clip": (IMAGES * 4, 3, SIDE, SIDE),  # frames
}
Inputs = dict[str, Any]


def parameters(kind: Any) -> dict[str, inspect.Parameter]:
    """What the forward of a class takes, by name, without self."""
    return dict(list(inspect.signature(kind.forward).parameters.items())[1:])


def field(config: Any, *names: str) -> Any:
    """The first of these fields that a config has, or the config of a tower inside it; None where none has any."""
    found = [getattr(config, name) for name in names if getattr(config, name, None) is not None]
    inner = [getattr(config, name) for name in TOWERS if hasattr(config, name)]
    return next(iter([*found, *(value for one in inner if (value := field(one, *names)) is not None)]), None)


def pair(size: Any) -> tuple[int, int]:
    """(height, width) of a size given as one number, as two, or with the frames in front."""
    rows, columns = (size, size) if isinstance(size, int) else size[-2:]
    return rows, columns


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def places(rows: int, columns: int) -> Tensor:
    """(1, rows · columns, 2) the row and the column of each patch."""
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns))[None]


def patches(config: Any, *size: int) -> Tensor:
    """The patches of images, (…, values of a patch)."""
    return noise(*size, 3 * (field(config, "patch_size") or 16) ** 2)


def packed(model: Any) -> Inputs:
    """The patches of three images in one row, and the grid of each."""
    takes = parameters(type(model))
    count, size = PACKED_IMAGES * GRID[0] * GRID[1], GRID
    layers = {
        name: part.weight for name, part in model.named_modules() if isinstance(part, (nn.Conv2d, nn.Conv3d, nn.Linear))
    }
    weight = next((weight for name, weight in layers.items() if "patch_embed" in name), next(iter(layers.values())))
    shape: tuple[int, ...] = (count, weight[0].numel())
    match folder_of(type(model)):
        case "kimi_k25":
            shape = (count, *weight.shape[1:])
        case "paddleocr_vl":
            shape = (1, count, *weight.shape[1:])
        case "inkling2":  # counts what the language model is given, each joined of 2 × 2 patches
            side, size = 2 * model.config.patch_size, (GRID[0] // 2, GRID[1] // 2)
            shape = (count // 4, side, side, 3)
    grid = next(name for name in GRIDS if name in takes)
    more = {"merge_sizes": torch.full((PACKED_IMAGES,), 2)} if "merge_sizes" in takes else {}
    return {next(iter(takes)): noise(*shape), grid: torch.tensor([[1, *size]] * PACKED_IMAGES), **more}


def in_a_strip(model: Any) -> Inputs:
    """Three images, patch beside patch in one strip, and the grid of each."""
    side = field(model.config, "patch_size")
    strip = noise(1, 3, side, PACKED_IMAGES * GRID[0] * GRID[1] * side)
    return {"pixel_values": strip, "target_sizes": torch.tensor([GRID] * PACKED_IMAGES)}


def shaped(model: Any) -> Inputs:
    count = SQUARE[0] * SQUARE[1]
    return {
        "pixel_values": patches(model.config, IMAGES, count),
        "pixel_attention_mask": torch.ones(IMAGES, count, dtype=torch.long),
        "spatial_shapes": torch.tensor([SQUARE] * IMAGES),
    }


def placed(model: Any) -> Inputs:
    side = 9  # patches, which are pooled by 3 × 3
    where = places(side, side).flip(-1).expand(IMAGES, -1, -1)
    return {"pixel_values": patches(model.config, IMAGES, side * side), "pixel_position_ids": where}


def numbered(model: Any) -> Inputs:
    where = 1 + places(*SQUARE).expand(IMAGES, -1, -1)
    return {"flattened_patches": torch.cat([where, patches(model.config, IMAGES, where.shape[1])], dim=-1)}


def tiled(model: Any) -> Inputs:
    tiles = model.config.max_num_tiles
    number = 1 + model.config.supported_aspect_ratios.index([2, 2])
    return {
        "pixel_values": noise(IMAGES, 1, tiles, 3, SIDE, SIDE),
        "aspect_ratio_ids": torch.full((IMAGES, 1), number),
        "aspect_ratio_mask": torch.ones(IMAGES, 1, tiles, dtype=torch.long),
    }


def prompted(model: Any) -> Inputs:
    del model
    return {name: noise(IMAGES, 3, SIDE, SIDE) for name in ("pixel_values", "prompt_pixel_values", "prompt_masks")}


# By a parameter that only classes called in this way have.
CALLED: dict[str, Callable[[Any], Inputs]] = {
    **dict.fromkeys(GRIDS, packed),
    "aspect_ratio_ids": tiled,
    "flattened_patches": numbered,
    "pixel_position_ids": placed,
    "prompt_masks": prompted,
    "spatial_shapes": shaped,
    "target_sizes": in_a_strip,
}


def images(model: Any) -> Inputs:
    """Two images, or clips, of the size that the config says."""
    name = next(iter(parameters(type(model))))
    config = model.config
    shape = SHAPES.get(folder_of(type(model)))
    if shape is None:
        frames = field(config, "num_frames", "frames_per_clip") or (4 if "video" in name else None)
        size = pair(field(config, "image_size", "crop_size") or SIDE)
        shape = (IMAGES, *([frames] if frames else []), field(config, "num_channels", "in_chans") or 3, *size)
    return {name: noise(*shape)}


def example(model: Any) -> Inputs:
    """What ``model`` is called with: two images, two clips, or three images packed in one row."""
    takes = parameters(type(model))
    inputs = next((make(model) for mark, make in CALLED.items() if mark in takes), None) or images(model)
    if "bool_masked_pos" in takes and takes["bool_masked_pos"].default is inspect.Parameter.empty:
        count = 2 * SQUARE[0] * SQUARE[1]  # two layers of frames
        inputs["bool_masked_pos"] = (torch.arange(count) % 4 > 0).expand(IMAGES, -1)
    if "task_inputs" in takes:
        inputs["task_inputs"] = torch.arange(IMAGES * model.config.task_seq_len).view(IMAGES, -1) % 50
    if "decoder_input_ids" in takes:
        inputs["decoder_input_ids"] = torch.arange(3, 11).view(IMAGES, 4)
    return inputs
