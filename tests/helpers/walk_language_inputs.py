"""What every vision-language class of transformers that the walk builds is called with: prompts with an image in each,
of which the first is padded on the left."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests.helpers.walk_configs import SIDE, folder_of
from tests.helpers.walk_inputs import IMAGES, Inputs, example, noise
from tests.helpers.walk_language_configs import BOS, PAD
from tests.helpers.walk_towers import sees
from tokensieve.language.host import Host

TEXTS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
HIGH = (SIDE, SIDE)  # of the finer tower, where there are two
NAMES = {  # of what a tower is called with, in the model around it
    "grid_thw": "image_grid_thw",
    "merge_sizes": "image_merge_sizes",
    "pixel_position_ids": "image_position_ids",
}


def tower_of(core: nn.Module) -> Any:
    """The tower of a model: the first part of it that is given images and no text."""
    parts = [part for part in core.modules() if isinstance(part, transformers.PreTrainedModel)]
    return next(part for part in parts if part is not core and sees(type(part)))


def by_tower(core: Any) -> Inputs:
    """What the tower is called with, by the names that the model around it has for it."""
    inputs = example(tower_of(core))
    first = next(iter(inputs))
    return {"pixel_values" if name == first else NAMES.get(name, name): value for name, value in inputs.items()}


def by_row(core: Any) -> Inputs:
    """Pictures row by row."""
    pixels = by_tower(core)["pixel_values"].unsqueeze(1)
    tiles = torch.ones(IMAGES, 1, dtype=torch.bool)
    return {"pixel_values": pixels} | ({"pixel_attention_mask": tiles} if "granite" in core.config.model_type else {})


def sized(core: Any) -> Inputs:
    return {**by_tower(core), "image_sizes": torch.tensor([[SIDE, SIDE]] * IMAGES)}


def tiled(core: Any) -> Inputs:
    """Each picture as a whole and as two tiles, of an image twice as high as wide."""
    pictures = torch.stack([image.repeat(3, 1, 1, 1) for image in by_tower(core)["pixel_values"]])
    return {"pixel_values": pictures, "image_sizes": torch.tensor([[2 * SIDE, SIDE]] * len(pictures))}


def of_two_sizes(core: Any) -> Inputs:
    pixels = by_tower(core)["pixel_values"]
    return {"pixel_values": pixels, "high_res_pixel_values": noise(IMAGES, 3, *HIGH)}


def of_pictures(core: Any) -> Inputs:
    """Small pictures of a tower that codes them."""
    return {"pixel_values": noise(IMAGES, 3, 32, 32), "image_sizes": torch.tensor([[32, 32]] * IMAGES)}


def flat(core: Any) -> Inputs:
    """Patches as rows of pixels."""
    side = core.config.patch_size
    return {"pixel_values": noise(IMAGES, 16, 3 * side**2)}


def unbatched(core: Any) -> Inputs:
    """Packed patches without the row that they lie in."""
    given = by_tower(core)
    return {**given, "pixel_values": given["pixel_values"].squeeze(0)}


def placed(core: Any) -> Inputs:
    """Patches and where each lies, of pictures whose patches are pooled by 3 × 3."""
    side = 9
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    where = torch.stack([columns, rows], dim=2).reshape(1, side**2, 2).expand(IMAGES, -1, -1)
    width = core.config.vision_config.patch_size
    return {"pixel_values": noise(IMAGES, side**2, 3 * width**2), "image_position_ids": where}


def unencoded(core: Any) -> Inputs:
    """Patches as the decoder gets them, and where each lies."""
    config = core.config.vision_config
    side = config.patch_size * config.pooling_kernel_size
    where = torch.cartesian_prod(torch.arange(4), torch.arange(4)).flip(1).expand(IMAGES, -1, -1)
    return {"pixel_values": noise(IMAGES, 16, 3 * side**2), "image_position_ids": where}


def pooled(core: Any) -> Inputs:
    """Patches of each image, and which four of them each of its tokens is made of."""
    number = torch.arange(64).reshape(4, 2, 4, 2).permute(0, 2, 1, 3).reshape(16, 4)
    return {
        **by_tower(core),
        "image_token_pooling": torch.cat([number + 64 * image for image in range(IMAGES)]),
        "image_grids": torch.tensor([[4, 4, 0, 0]] * IMAGES),
        "image_num_crops": torch.ones(IMAGES, dtype=torch.long),
    }


# By folder, where it is not what the tower is called with.
CALLED: dict[str, Callable[[Any], Inputs]] = {
    **dict.fromkeys(("idefics2", "idefics3", "smolvlm", "granite_docling", "perception_lm"), by_row),
    **dict.fromkeys(("llava_next", "llava_next_video", "llava_onevision", "granite4_vision"), tiled),
    **dict.fromkeys(("chameleon", "emu3", "apertus1p5"), of_pictures),
    **dict.fromkeys(("gemma4", "diffusion_gemma"), placed),
    "deepseek_vl_hybrid": of_two_sizes,
    "fuyu": flat,
    "gemma4_unified": unencoded,
    "molmo2": pooled,
    "paddleocr_vl": unbatched,
}


def pixels(core: Any) -> Inputs:
    """What a model is called with beside the text."""
    make = CALLED.get(folder_of(type(core)))
    takes = inspect.signature(core.get_image_features).parameters
    if make is None:
        needed = [name for name, one in takes.items() if one.default is inspect.Parameter.empty]
        make = sized if "image_sizes" in needed else by_tower
    given = {name: value for name, value in make(core).items() if name in takes}
    return {name: value.to(core.dtype) if value.is_floating_point() else value for name, value in given.items()}


def features(core: Any, given: Inputs) -> int:
    """How many features all images have together."""
    outputs = core.get_image_features(**given)
    found = getattr(outputs, "pooler_output", None)
    found = outputs.last_hidden_state if found is None else found
    if isinstance(found, Tensor):
        return found.numel() // found.shape[-1]
    return sum(image.numel() // image.shape[-1] for image in found)


def prompts(model: nn.Module, host: Host) -> Inputs:
    """Two prompts, the first of one image, the second of the others; what the model takes of them."""
    core: Any = host.core
    given = pixels(core)
    images = next(len(given[name]) for name in ("image_grid_thw", "pixel_values") if name in given)
    each = features(core, given) // images
    image = host.placeholders["image"]
    short = [BOS, 3, 4, *[image] * each, 5, 6]
    long = [BOS, 7, *[8, *[image] * each] * (images - 1), 9, 10, 11, 12]
    width = max(len(short), len(long))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in (short, long)])
    there = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in (short, long)])
    text = {"input_ids": ids, "attention_mask": there, **types(model, ids == image)}
    return {**text, **given}


def types(model: nn.Module, of_images: Tensor) -> Inputs:
    """The token types that the model takes."""
    takes = inspect.signature(model.forward).parameters
    name = next((name for name in TEXTS[2:] if name in takes), None)
    if name is None:
        return {}
    return {name: torch.zeros_like(of_images).long() if prefix_sees_itself(model) else of_images.long()}


def prefix_sees_itself(model: Any) -> bool:
    """Whether token types tell the prompt, which sees itself both ways, from what follows it."""
    return model.config.model_type == "paligemma"


def longer(model: nn.Module, inputs: Inputs, ids: Tensor) -> Inputs:
    """The inputs with words (B, T) behind them."""
    there = inputs["attention_mask"]
    given = {**inputs, "input_ids": torch.cat([inputs["input_ids"], ids], dim=1)}
    given["attention_mask"] = torch.cat([there, there.new_ones(ids.shape)], dim=1)
    for name in TEXTS[2:]:
        if name in inputs:
            given[name] = torch.cat([inputs[name], torch.full_like(ids, int(prefix_sees_itself(model)))], dim=1)
    return given
