"""Small vision-language models of transformers with random weights, and prompts with images for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

IMAGE, VIDEO, PAD, BOS, EOS = 99, 98, 0, 1, 2
WORDS = range(3, 90)
SIDE = 64  # pixels
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
COARSE = {**TOWER, "image_size": SIDE, "patch_size": 16}  # 4 × 4 patches
FINE = {**TOWER, "image_size": SIDE, "patch_size": 8}  # 8 × 8, of which projectors make 4 × 4
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "vocab_size": 100,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
PIXELS = ("pixel_values", "image_sizes", "image_grid_thw", "image_position_ids")  # what is not text
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One prompt: a begin, words, then each image with a word behind it, then words.

    Attributes:
        images: how many.
        words: behind the last image.
        seed: of the words and the pixels.
        size: rows and columns of pixels of each image; towers of one size take SIDE × SIDE.
    """

    images: int = 1
    words: int = 4
    seed: int = 0
    size: tuple[int, int] = (SIDE, SIDE)


@dataclass(frozen=True)
class Language:
    """A vision-language model.

    Attributes:
        name: in the ids of tests.
        make: builds it.
        features: of an image of SIDE × SIDE pixels.
        pixels: what the model is called with, beside the text, for a list of images (3, H, W) in each row.
        fast: whether it stays in the fast part of the tests; others repeat its kinds of checks.
        axes: of its positions.
        reads_tower: whether a feature is a patch of one picture, or made of a group of them.
        types: name of the token types, if any, and the type of an image token, a word, and a generated token.
        window: of the sliding layers, None where there are none.
        linear: whether some layers have no map over tokens.
    """

    name: str
    make: Callable[[], nn.Module]
    features: int
    pixels: Callable[[list[list[Tensor]]], Inputs]
    fast: bool = False
    axes: int = 1
    reads_tower: bool = False
    types: tuple[str, int, int, int] | None = None
    window: int | None = None
    linear: bool = False

    def build(self) -> Any:
        """The model in float64 and evaluation mode, the same every time; generation never ends early."""
        torch.manual_seed(0)
        model: Any = self.make().double().eval()
        with torch.no_grad():
            for name, part in model.named_parameters():
                if part.dim() < 2 or not part.any():  # norms and biases, which start at one value, and zeros
                    part += 0.2 * torch.randn_like(part)
                elif "embed_tokens" not in name and "lm_head" not in name:
                    part *= 4  # of 0.02, which leaves layers without effect
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = PAD
        return model

    def inputs(self, *rows: Row) -> Inputs:
        """What a model is called with for these prompts, padded on the left."""
        texts = [self._ids(row) for row in rows]
        longest = max(map(len, texts))
        ids = torch.tensor([[PAD] * (longest - len(text)) + text for text in texts])
        there = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
        given: Inputs = {"input_ids": ids, "attention_mask": there}
        if self.types is not None:
            name, of_image, of_word, _ = self.types
            given[name] = torch.where(ids == IMAGE, of_image, of_word)
        images = [[image_of(row, number) for number in range(row.images)] for row in rows]
        return given | (self.pixels(images) if any(images) else {})

    def longer(self, inputs: Inputs, ids: Tensor) -> Inputs:
        """The inputs with words (B, T) behind them."""
        there = inputs["attention_mask"]
        given = {**inputs, "input_ids": torch.cat([inputs["input_ids"], ids], dim=1)}
        given["attention_mask"] = torch.cat([there, there.new_ones(ids.shape)], dim=1)
        if self.types is not None:
            name, *_, of_generated = self.types
            given[name] = torch.cat([inputs[name], torch.full_like(ids, of_generated)], dim=1)
        return given

    def _ids(self, row: Row) -> list[int]:
        chosen = torch.Generator().manual_seed(row.seed)
        words = torch.randint(WORDS.start, WORDS.stop, (2 + row.images + row.words,), generator=chosen).tolist()
        ids = [BOS, *words[:2]]
        features = self.features * row.size[0] * row.size[1] // SIDE**2
        for number in range(row.images):
            ids += [IMAGE] * features + [words[2 + number]]
        return ids + words[2 + row.images :]


def image_of(row: Row, number: int) -> Tensor:
    """(3, H, W) float64."""
    chosen = torch.Generator().manual_seed(100 * row.seed + number)
    return torch.randn(3, *row.size, generator=chosen, dtype=torch.float64)


def _flat(images: list[list[Tensor]]) -> list[Tensor]:
    return [image for row in images for image in row]


def _stacked(images: list[list[Tensor]]) -> Inputs:
    return {"pixel_values": torch.stack(_flat(images))}


def _sized(images: list[list[Tensor]]) -> Inputs:
    """Images of several sizes, padded on the right and below, and their sizes."""
    all_images = _flat(images)
    sizes = torch.tensor([image.shape[1:] for image in all_images])
    pixels = torch.zeros(len(all_images), 3, *sizes.amax(dim=0).tolist(), dtype=torch.float64)
    for image, place in zip(all_images, pixels, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return {"pixel_values": pixels, "image_sizes": sizes}


def _tiled(images: list[list[Tensor]]) -> Inputs:
    """Each picture as a whole and as two tiles, of an image twice as high as wide."""
    pictures = torch.stack([torch.stack([image, image.flip(1), image.flip(2)]) for image in _flat(images)])
    return {"pixel_values": pictures, "image_sizes": torch.tensor([[2 * SIDE, SIDE]] * len(pictures))}


def _padded(images: list[list[Tensor]]) -> Inputs:
    """Pictures by row, and behind them empty ones."""
    most = max(map(len, images))
    empty = torch.zeros_like(_flat(images)[0])
    return {"pixel_values": torch.stack([torch.stack(row + [empty] * (most - len(row))) for row in images])}


def _packed(images: list[list[Tensor]]) -> Inputs:
    """Rows of patches of 8 × 8 pixels in two frames, those of a 2 × 2 group together."""
    rows, grids = [], []
    for image in _flat(images):
        high, wide = image.shape[1] // 16, image.shape[2] // 16
        frames = torch.stack([image, image]).reshape(2, 3, high, 2, 8, wide, 2, 8)
        rows.append(frames.permute(2, 5, 3, 6, 1, 0, 4, 7).reshape(4 * high * wide, -1))
        grids.append([1, 2 * high, 2 * wide])
    return {"pixel_values": torch.cat(rows), "image_grid_thw": torch.tensor(grids)}


def _placed(images: list[list[Tensor]]) -> Inputs:
    """Rows of patches of 8 × 8 pixels, and where each lies."""
    pictures = torch.stack(_flat(images))
    high, wide = pictures.shape[2] // 8, pictures.shape[3] // 8
    pixels = pictures.reshape(-1, 3, high, 8, wide, 8).permute(0, 2, 4, 3, 5, 1).reshape(-1, high * wide, 192)
    places = torch.stack(torch.meshgrid(torch.arange(wide), torch.arange(high), indexing="xy"), dim=2).view(1, -1, 2)
    return {"pixel_values": pixels, "image_position_ids": places.expand(len(pixels), -1, -1)}


def _of(name: str, text: Any, vision: Any, **options: Any) -> Callable[[], nn.Module]:
    """``NameForConditionalGeneration`` of these configs: (class, fields) each, or the fields of the class's own."""

    def config(part: Any) -> Any:
        import transformers

        return getattr(transformers, f"{part[0]}Config")(**part[1]) if isinstance(part, tuple) else part

    def make() -> nn.Module:
        import transformers

        given = getattr(transformers, f"{name}Config")(
            text_config=config(text), vision_config=config(vision), **options
        )
        model: nn.Module = getattr(transformers, f"{name}ForConditionalGeneration")(given)
        return model

    return make


LLAMA = ("Llama", TEXT)
QWEN2 = ("Qwen2", {name: value for name, value in TEXT.items() if name != "head_dim"})
ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}}
IMAGE_ID = {"image_token_id": IMAGE}
IMAGE_INDEX = {"image_token_index": IMAGE}
QWEN_IDS = {**IMAGE_ID, "video_token_id": VIDEO, "vision_start_token_id": 97, "vision_end_token_id": 96}
MM = ("mm_token_type_ids", 1, 0, 0)
PACKED = {"depth": 3, "num_heads": 4, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}
LEARNED = {"out_hidden_size": 48, "num_position_embeddings": 64}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
    "rope_parameters": {
        **{"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1], "mrope_interleaved": True},
        "partial_rotary_factor": 0.5,
    },
}
GEMMA = {**TEXT, "query_pre_attn_scalar": 12}
SLIDING = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GEMMA4 = {**TEXT, "global_head_dim": 12, "vocab_size_per_layer_input": 100, "sliding_window": 12}
WIDE = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
SHARING = {
    **{"num_hidden_layers": 4, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8},
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
GEMMA4_TOWER = {
    **{**TOWER, "num_key_value_heads": 4, "head_dim": 8, "patch_size": 8},
    **{"pooling_kernel_size": 2, "position_embedding_size": 64},
}

LANGUAGES = [
    Language("llava", _of("Llava", LLAMA, ("CLIPVision", COARSE), **IMAGE_ID), 16, _stacked, True, reads_tower=True),
    Language(
        "llava-next",
        _of("LlavaNext", LLAMA, ("CLIPVision", COARSE), image_grid_pinpoints=[[2 * SIDE, SIDE]], **IMAGE_ID),
        16 + 8 * 5,
        _tiled,
    ),
    Language(
        "llava-onevision",
        _of(
            "LlavaOnevision",
            QWEN2,
            ("SiglipVision", {**COARSE, "vision_use_head": False}),
            image_grid_pinpoints=[[2 * SIDE, SIDE]],
            **IMAGE_ID,
            video_token_id=VIDEO,
        ),
        16 + 8 * 5,
        _tiled,
    ),
    Language(
        "qwen2-vl",
        _of("Qwen2VL", {**TEXT, **ROTARY}, {**PACKED, "embed_dim": 32, "hidden_size": 48}, **QWEN_IDS),
        16,
        _packed,
        axes=3,
        reads_tower=True,
        types=MM,
    ),
    Language(
        "qwen2.5-vl",
        _of(
            "Qwen2_5_VL",
            {**TEXT, **ROTARY},
            {**TOWER, **PACKED, "out_hidden_size": 48, "window_size": 32, "fullatt_block_indexes": [1]},
            **QWEN_IDS,
        ),
        16,
        _packed,
        True,
        axes=3,
        reads_tower=True,
        types=MM,
    ),
    Language(
        "qwen3-vl",
        _of(
            "Qwen3VL",
            {**TEXT, **ROTARY},
            {
                **TOWER,
                **PACKED,
                "out_hidden_size": 48,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0, 1],
            },
            **QWEN_IDS,
        ),
        16,
        _packed,
        True,
        axes=3,
        reads_tower=True,
        types=MM,
    ),
    Language(
        "qwen3.5",
        _of(
            "Qwen3_5",
            {**TEXT, **LINEAR},
            {**TOWER, **PACKED, **LEARNED},
            **QWEN_IDS,
        ),
        16,
        _packed,
        axes=3,
        reads_tower=True,
        types=MM,
        linear=True,
    ),
    Language(
        "internvl",
        _of("InternVL", QWEN2, {**FINE, "image_size": [SIDE, SIDE], "patch_size": [8, 8]}, **IMAGE_ID),
        16,
        _stacked,
        reads_tower=True,
    ),
    Language("idefics3", _of("Idefics3", LLAMA, FINE, scale_factor=2, **IMAGE_ID), 16, _padded, reads_tower=True),
    Language("smolvlm", _of("SmolVLM", LLAMA, FINE, scale_factor=2, **IMAGE_ID), 16, _padded, True, reads_tower=True),
    Language(
        "paligemma",
        _of(
            "PaliGemma",
            ("Gemma", TEXT),
            ("SiglipVision", {**COARSE, "vision_use_head": False, "projection_dim": 48}),
            projection_dim=48,
            **IMAGE_ID,
        ),
        16,
        _stacked,
        reads_tower=True,
        types=("token_type_ids", 0, 0, 1),
    ),
    Language(
        "gemma3",
        _of(
            "Gemma3",
            {**GEMMA, **SLIDING},
            ("SiglipVision", {**FINE, "vision_use_head": False}),
            mm_tokens_per_image=16,
            **IMAGE_ID,
        ),
        16,
        _stacked,
        True,
        reads_tower=True,
        types=("token_type_ids", 1, 0, 0),
        window=12,
    ),
    Language(
        "gemma4",
        _of("Gemma4", {**GEMMA4, **SHARING}, GEMMA4_TOWER, audio_config=None, **QWEN_IDS),
        16,
        _placed,
        types=MM,
        window=12,
    ),
    Language(
        "gemma4-large",
        _of(
            "Gemma4",
            {**GEMMA4, **WIDE, "hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision"},
            GEMMA4_TOWER,
            audio_config=None,
            **QWEN_IDS,
        ),
        16,
        _placed,
        types=MM,
        window=12,
    ),
    Language(
        "mistral3",
        _of("Mistral3", ("Mistral", {**TEXT, "sliding_window": None}), ("PixtralVision", FINE), **IMAGE_ID),
        16,
        _sized,
    ),
    Language(
        "mistral3-window",
        _of("Mistral3", ("Mistral", {**TEXT, "sliding_window": 7}), ("PixtralVision", FINE), **IMAGE_ID),
        16,
        _sized,
        window=7,
    ),
]


def named(names: Sequence[str]) -> list[Language]:
    """Those of the table with these names."""
    return [language for language in LANGUAGES if language.name in names]
