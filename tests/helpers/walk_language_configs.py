"""Small configs for every class of transformers that reads images beside text: those of ``walk_configs``, with what
decoders and the joints between both need."""

from __future__ import annotations

from typing import Any

from tests.helpers.walk_configs import KEPT, SIDE, folder_of, small

WORDS = 120  # vocabulary
BOS, EOS, PAD = 1, 2, 0
RESERVED = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
SMALL_TEXT: dict[str, Any] = {  # beside those that towers have
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "moe_num_experts_per_tok"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim"), 8),
    "v_head_dim": 16,
    "sliding_window": 12,
}


def of_each(folders: tuple[str, ...], **changes: Any) -> dict[str, dict[str, Any]]:
    """The same changes for several folders."""
    return {folder: changes for folder in folders}


# By folder: fields of its configs, and of the configs inside them, as in ``walk_configs.CHANGES``.
IDS = {"image_token_id": WORDS - 1, "video_token_id": WORDS - 2}  # of which the class by itself has none
TILES = {"image_grid_pinpoints": [[2 * SIDE, SIDE]]}
POOLED = {"mm_tokens_per_image": 16}
EXPERTS = {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}
ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
CODES = 8  # of a tower whose features are words of the vocabulary, the first of which is 100
CODED = {"num_res_blocks": 1, "base_channels": 32}
WIDE = {"layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]}
LINEAR = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
PLACED = {"patch_size": 8, "pooling_kernel_size": 3, "position_embedding_size": 64}
CHANGES: dict[str, dict[str, Any]] = {
    **of_each(("minicpm_ocr", "minicpmv4_6", "minicpmv4_7"), **IDS, text_config=LINEAR),
    **dict.fromkeys(("llava_next", "llava_next_video", "llava_onevision"), TILES),
    **dict.fromkeys(("gemma3", "t5gemma2"), POOLED),
    **of_each(("qwen3_5", "qwen3_5_moe"), text_config=LINEAR),
    **of_each(("muse_glimmer", "muse_spark"), out_hidden_size=192, projector_hidden_size=48),
    "apertus1p5": {
        "vision_config": {**CODED, "channel_multiplier": [1, 1], "codebook_size": CODES, "embed_dim": 8},
        "audio_config": {"codebook_dim": 48, "decoder_attention_num_groups": 16, "codebook_size": CODES},
        "image_token_offset": 100,
        "audio_token_offset": 108,
    },
    "aria": {"projector_patch_to_query_dict": {64: 16}},
    "chameleon": {
        "vq_config": {**CODED, "num_embeddings": CODES, "embed_dim": 8, "latent_channels": 32, "resolution": SIDE},
        "vocabulary_map": {"<image>": WORDS - 1, **{f"IMGIMG{chr(65 + code)}Z": 100 + code for code in range(CODES)}},
    },
    "cosmos3_edge": {"text_config": {"rope_parameters": {**ROTARY, "mrope_section": [4, 2, 2]}}},
    "cohere_compass": {
        "text_config": {**WIDE, "rope_parameters": {"sliding_attention": ROTARY, "full_attention": None}}
    },
    "deepseek_ocr2": {"text_config": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", *["sparse"] * 3]}},
    "deepseek_vl_hybrid": {"high_res_vision_config": {"output_channels": 48}},
    "diffusion_gemma": {"text_config": EXPERTS, "vision_config": PLACED},
    "dots3_note": {
        "text_config": {"num_attention_heads": 3, "num_key_value_heads": 3},
        "audio_config": {"adapter_input_size": 48, "adapter_out_dim": 48},
    },
    "emu3": {
        "vq_config": {
            **CODED,
            "channel_multiplier": [1, 1, 1, 1],
            "codebook_size": CODES,
            "hidden_size": 32,
            "num_attention_heads": 1,
        },
        "vocabulary_map": {
            "<image>": WORDS - 1,
            "<|extra_200|>": WORDS - 2,
            **{f"<|visual token {code:06d}|>": 100 + code for code in range(CODES)},
        },
    },
    "fast_vlm": {"vision_config": {"architecture": "fastvit_t8", "hidden_size": 768}},
    "gemma3n": {
        "vision_config": {"hidden_size": 2048, "model_args": {"channel_multiplier": 0.1}},
        "text_config": {
            "intermediate_size": 96,
            "activation_sparsity_pattern": [0.0] * 4,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    },
    "gemma4": {
        "text_config": {"vocab_size_per_layer_input": WORDS},
        "vision_config": ("Gemma4VisionConfig", PLACED),
        "audio_config": None,
    },
    "gemma4_unified": {
        "vision_config": (
            "Gemma4UnifiedVisionConfig",
            {"mm_embed_dim": 48, "mm_posemb_size": 64, "output_proj_dims": 48},
        ),
        "audio_config": None,
    },
    "glm5_next": {
        "text_config": {"num_key_value_heads": 3, "qk_rope_head_dim": KEPT, "linear_head_dim": 8, "linear_num_heads": 2}
    },
    "granite4_vision": {
        "vision_config": {"hidden_size": 64, "num_attention_heads": 4},
        **TILES,
        "deepstack_layer_map": [[-2, 0]],
        "downsample_rate": "1/2",
        "spatial_target_layers": [1, 2, 3, 3],
        "qformer_config": ("Blip2QFormerConfig", {"encoder_hidden_size": 48, "cross_attention_frequency": 1}),
    },
    "hy_v4_vl": {"text_config": {"rope_parameters": {**ROTARY, "mrope_section": [2, 1, 1]}}},
    "idefics2": {"perceiver_config": {"resampler_n_latents": 16, "resampler_n_heads": 3, "resampler_depth": 1}},
    **of_each(("inkling", "inkling2", "inkling2_loop"), text_config={"unpadded_vocab_size": WORDS}),
    "janus": {"vision_config": {"projection_dim": 48}},
    "kimi_k25": {"projection_hidden_size": 48, "text_config": {"head_dim": 8}},
    "kosmos2": {"text_config": {"attention_heads": 3, "layers": 2, "ffn_dim": 96}},
    "llama4": {"vision_config": {"vision_output_dim": 96}},
    "molmo2": {
        "image_patch_id": WORDS - 1,
        "adapter_config": {"vision_feature_layer": [-1, -2], "text_hidden_size": 48},
    },
    "nemotron_h_omni": IDS,
    "paligemma": {"projection_dim": 48, "vision_config": {"projection_dim": 48}},
    "perception_lm": {
        "vision_config": {
            "architecture": "vit_pe_core_tiny_patch16_384",
            "model_args": {"img_size": SIDE, "embed_dim": 192},
        }
    },
    "qwen4_exp": {
        "text_config": {
            **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16},
            **{"indexer_budget": 32, "indexer_compress_ratio": 4},
            **LINEAR,
        }
    },
    "step3p7": {"text_config": {"sliding_window": 12}},
    "vipllava": {"vision_feature_layer": [-2, -1]},
}
# What the configs of checkpoints have, and the class by itself has not.
OF_CHECKPOINTS = of_each(
    ("qwen2_5_omni", "qwen3_omni_moe"), vision_start_token_id=WORDS - 9, audio_start_token_id=WORDS - 10
)


def language_config(kind: Any) -> Any:
    """A small config of a class of vision-language models."""
    usual = kind.config_class()
    own = CHANGES.get(folder_of(kind), {})
    config = small(kind.config_class, changes=joined(joined(text_sizes(usual), token_ids(usual.to_dict())), own))
    for name, value in OF_CHECKPOINTS.get(folder_of(kind), {}).items():
        setattr(config, name, value)
    return rotary_fitted(config)


def text_sizes(config: Any) -> dict[str, Any]:
    """The small values of the decoder's own fields of a config, and of those inside it."""
    fields = config.to_dict()
    given = {name: value for name, value in SMALL_TEXT.items() if isinstance(fields.get(name), int)}
    if "layer_types" in fields:
        given["layer_types"] = KEPT  # as many as there are layers
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if inner is not None:
            given[name] = text_sizes(inner)
    return given


def joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Changes of configs and of those inside them; where both have a value, that of ``other``."""
    both = {
        name: joined(one[name], other[name])
        for name in one.keys() & other.keys()
        if isinstance(one[name], dict) and isinstance(other[name], dict)
    }
    return {**one, **other, **both}


def token_ids(fields: dict[str, Any]) -> dict[str, int]:
    """A number below the vocabulary for each token that the config names."""
    names = [name for name in fields if name.endswith(("token_id", "token_index")) and isinstance(fields[name], int)]
    others = [name for name in names if name not in RESERVED]
    return {name: WORDS - 1 - number for number, name in enumerate(others)}


def rotary_fitted(config: Any) -> Any:
    """``config``, whose sections of rotary angles fill the heads of its decoder, in place."""
    rotary = getattr(config, "rope_parameters", None)
    if isinstance(rotary, dict) and "rope_type" in rotary and hasattr(config, "vocab_size"):
        heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        width = int(heads * rotary.get("partial_rotary_factor", 1.0)) // 2
        third = width // 3
        rest = width - 2 * third
        rotary["mrope_section"] = [third, third, rest] if "ernie" in config.model_type else [rest, third, third]
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if inner is not None:
            rotary_fitted(inner)
    return config
