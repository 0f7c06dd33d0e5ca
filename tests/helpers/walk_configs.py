"""Small configs for every class of transformers that the walk builds: the fields that sizes are called by, by name, and
what single folders and classes need besides."""

from __future__ import annotations

from typing import Any

import transformers

SIDE = 128  # pixels; 8 × 8 patches of 16
DEPTH = 4
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "d_model", "decoder_hidden_size", "out_hidden_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "depth", "encoder_layers"), DEPTH),
    **dict.fromkeys(("decoder_num_hidden_layers", "decoder_layers"), DEPTH),
    **dict.fromkeys(("num_attention_heads", "num_heads", "num_key_value_heads", "decoder_num_attention_heads"), 3),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "pred_num_attention_heads"), 3),
    **dict.fromkeys(("intermediate_size", "mlp_dim", "decoder_intermediate_size", "encoder_ffn_dim"), 96),
    **dict.fromkeys(("image_size", "img_size", "crop_size", "max_img_size"), SIDE),
    **dict.fromkeys(("num_frames", "frames_per_clip"), 4),
    **dict.fromkeys(("pred_num_hidden_layers", "num_spatial_layers", "num_temporal_layers"), 2),
    "bos_token_id": 1,
    "deepstack_visual_indexes": [1],
    "eos_token_id": 2,
    "fullatt_block_indexes": [1, 3],
    "head_dim": 16,
    "max_position_embeddings": 64,
    "num_blocks": 1,
    "num_channels": 3,
    "num_detection_tokens": 5,
    "num_labels": 4,
    "num_position_embeddings": 64,
    "num_queries": 5,
    "pad_token_id": 0,
    "patch_size": 16,
    "pred_hidden_size": 48,
    "projection_dim": 32,
    "use_mid_position_embeddings": False,
    "use_relative_position_bias": True,
    "vocab_size": 120,
    "window_size": 4,  # patches
}
BY_STAGE = ("num_attention_heads", "num_heads")  # left as they are where a config lists one for each stage
DERIVED = ("out_features", "stage_names")  # follow from other fields
KEPT: Any = ...  # in CHANGES: the value that the class has by itself

FINE = {"patch_size": KEPT}  # in pyramids, which make them larger
PIXEL_WINDOWS = {"window_size": 64}
WINDOWED = {"pos_emb_height": 4, "pos_emb_width": 4}  # as large as a window
WIDTHS = {"d_model": KEPT, "hidden_size": KEPT}
HEADS = dict.fromkeys(
    ("encoder_attention_heads", "decoder_attention_heads", "num_attention_heads", "num_key_value_heads"), KEPT
)
DETECTOR = {**WIDTHS, **HEADS}
DETR = {"d_model": 64, "encoder_attention_heads": 8, "decoder_attention_heads": 8}
LISTED = {"hidden_sizes": [16, 32, 48, 64]}  # of these the class has a tuple, which its backbone does not take
SAM = {"output_channels": 48, "num_pos_feats": 24, "global_attn_indexes": [3]}
SAM_OF_OCR = {"output_channels": 32, "downsample_channels": [64, 48], "global_attn_indexes": [3]}
PYRAMID_SIZES = [[32, 32], [16, 16], [8, 8]]
JOINED_AFTER = {"insert_layer_id": 1}
TOWER_OF_64 = {"image_size": 64}
UPSAMPLED = {"head_config": {"upsample_out_channels": [32, 16], "conv_out_channels": [16]}}
OF_TIMM = {"architecture": "vit_tiny_patch16_224", "model_args": {"img_size": SIDE}}
ALL_STAGES = {"out_indices": [1, 2, 3, 4]}
HALVING = {
    **ALL_STAGES,
    "block_configs": [
        [[3, 96, 96, 1, False]],
        [[3, 96, 96, 2, False]],
        [[3, 96, 192, 2, True]],
        [[3, 192, 384, 2, False]],
    ],
}


def crossing() -> dict[str, list[Any]]:
    """Kernel, stride and padding of every convolution of one block, as PaddleOCR's checkpoints have them."""
    found: dict[str, list[Any]] = {"reduce_channel": [1, 1, 0], "return_channel": [1, 1, 0]}
    for name, n in (("long", 7), ("mid", 5), ("short", 3)):
        found[f"vertical_long_to_small_conv_{name}ratio"] = [[n, 1], [1, 1], [n // 2, 0]]
        found[f"horizontal_small_to_long_conv_{name}ratio"] = [[1, n], [1, 1], [0, n // 2]]
        found[f"symmetric_conv_long_{name}ratio"] = [[n, n], [1, 1], [n // 2, n // 2]]
    return found


PADDLE = {"intraclass_block_config": crossing(), "scale_factor_list": [1, 2, 4, 8], "kernel_list": [3, 2, 2]}

# By folder, then by class: fields of its configs, and of the configs inside them.
CHANGES: dict[str, dict[str, Any]] = {
    "bridgetower": {"hidden_size": 128},  # 64 a head
    "conditional_detr": DETR,
    "convnext": LISTED,
    "convnextv2": LISTED,
    "d_fine": DETECTOR,
    "data2vec": {"out_indices": [0, 1, 2, 3]},
    "deepseek_ocr2": SAM_OF_OCR,
    "deformable_detr": DETR,
    "deimv2": DETECTOR,
    "depth_anything": {"reassemble_hidden_size": 48},
    "depth_pro": {
        "patch_size": 64,  # of the crops that its towers are given
        "intermediate_hook_ids": [2, 1],
        **dict.fromkeys(("image_model_config", "patch_model_config", "fov_model_config"), TOWER_OF_64),
    },
    "detr": DETR,
    "donut": FINE,
    "dots3_note": {
        "adapter_in_dim": 48,
        "adapter_out_dim": 48,
        "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
        "per_layer_config": None,
    },
    "dpt": {"backbone_out_indices": [0, 1, 2, 3]},
    "edgetam": {
        "backbone_channel_list": [1024, 512, 256, 64],
        "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
        "fpn_hidden_size": 48,
        "patch_size": 8,
    },
    "efficientloftr": DETECTOR,
    "exaone4_5": PIXEL_WINDOWS,
    "focalnet": {"hidden_sizes": [48, 48, 96, 96]},
    "hiera": {"patch_size": KEPT, "decoder_hidden_size": 48, "decoder_depth": 1, "decoder_num_heads": 3},
    "inkling": {"n_layers": 5, "text_hidden_size": 48},
    "inkling2": {"projection_hidden_dim": 48, "text_hidden_size": 48},
    "janus": {"base_channels": 32, "channel_multiplier": [1, 1, 1, 1, 1], "num_patches": 8},
    "lightglue": DETECTOR,
    "llama4": {"intermediate_size": 192, "projector_input_dim": 96, "projector_output_dim": 96},
    "lw_detr": {**DETECTOR, "num_windows": 4, "projector_scale_factors": [1.0], "window_block_indices": [0, 2]},
    "mask2former": {**HEADS, "backbone_config": FINE},
    "maskformer": FINE,
    "minicpm_ocr": JOINED_AFTER,
    "minicpmv4_6": JOINED_AFTER,
    "minicpmv4_7": JOINED_AFTER,
    "mllama": {"attention_heads": 3, "intermediate_layers_indices": [1, 2], "num_global_layers": 2},
    "mobilevitv2": FINE,
    "muse_glimmer": WINDOWED,
    "muse_spark": WINDOWED,
    "oneformer": {**HEADS, "backbone_config": FINE},
    "pe_video": {"vision_config": OF_TIMM},
    "pix2struct": {"d_kv": 16, "num_layers": 2},
    "pp_doclayout_v2": {**DETECTOR, "class_thresholds": [0.5, 0.5], "class_order": [0, 1]},
    "pp_doclayout_v3": DETECTOR,
    "pp_doclayout_v4": DETECTOR,
    "pp_ocrv5_server_det": PADDLE,
    "pp_ocrv6_medium_det": {**PADDLE, "backbone_config": HALVING},
    "pp_ocrv6_small_det": {"backbone_config": HALVING, "layer_list_out_channels": [96, 96, 192, 384]},
    "prompt_depth_anything": {"reassemble_hidden_size": 48},
    "qwen2_5_omni": PIXEL_WINDOWS,
    "qwen2_5_vl": PIXEL_WINDOWS,
    "rt_detr": DETECTOR,
    "rt_detr_v2": DETECTOR,
    "sam": SAM,
    "sam2": {
        "backbone_channel_list": [384, 192, 96, 48],
        "backbone_feature_sizes": PYRAMID_SIZES,
        "embed_dim_per_stage": [48, 96, 192, 384],
        "fpn_hidden_size": 48,
    },
    "sam3": {"fpn_hidden_size": 48, "global_attn_indexes": [3]},
    "sam3_tracker": {"vision_config": {"fpn_hidden_size": 48, "backbone_feature_sizes": PYRAMID_SIZES}},
    "sam_hq": {**SAM, "vit_dim": 48},
    "seggpt": {
        "image_size": [2 * SIDE, SIDE],
        "intermediate_hidden_state_indices": [0, 1, 2, 3],
        "merge_index": 0,
        "pretrain_image_size": SIDE,
    },
    "rf_detr": {"num_windows": 2},
    "superglue": DETECTOR,
    "swin": FINE,
    "swin2sr": {"depths": [1, 1], "image_size": 32, "num_heads": [3, 3], "patch_size": 1},
    "swinv2": FINE,
    "table_transformer": DETR,
    "unlimited_ocr": SAM_OF_OCR,
    "uvdoc": {"backbone_config": {"out_indices": [1, 2, 3, 4, 5, 6]}},
    "vitdet": {"window_block_indices": [0, 2]},
    "vitmatte": {"convstream_hidden_sizes": [48, 96, 192], "fusion_hidden_sizes": [64, 32, 16, 8]},
    "BeitForSemanticSegmentation": ALL_STAGES,
    "Deimv2DINOv3ConvEncoder": {"backbone_config": ("DINOv3ViTConfig", {"out_indices": [2, 3, 4]})},
    "RfDetrDinov2Backbone": {"out_indices": [2, 4]},
    "Sapiens2ForImageMatting": UPSAMPLED,
    "Sapiens2ForNormalEstimation": UPSAMPLED,
    "Sapiens2ForPointmapEstimation": UPSAMPLED,
    "Sapiens2ForPoseEstimation": UPSAMPLED,
    "Sapiens2ForSemanticSegmentation": UPSAMPLED,
    "TimmBackbone": {"backbone": "vit_tiny_patch16_224"},
    "TimmWrapperForImageClassification": OF_TIMM,
    "TimmWrapperModel": OF_TIMM,
}


def folder_of(kind: Any) -> str:
    """The folder of transformers/models that a class is from."""
    return str(kind.__module__.split(".")[2])


def config_for(kind: Any) -> Any:
    """A small config of a class of models."""
    return small(kind.config_class, changes=CHANGES.get(kind.__name__))


def small(kind: Any, base: Any = None, changes: dict[str, Any] | None = None) -> Any:
    """A config of this class with small sizes, and small ones inside it.

    ``base`` is what a config around it has there, whose own choices are kept; ``changes`` count more than those of the
    folder. A config inside is given as its changes, or as (the name of another class, its changes).
    """
    usual = kind()
    base = usual if base is None else base
    wanted = {**CHANGES.get(folder_of(kind), {}), **(changes or {})}
    fields, before = base.to_dict(), usual.to_dict()
    given = {name: value for name, value in fields.items() if value != before.get(name) and name not in DERIVED}
    given |= sizes(fields)
    for name in kind.sub_configs:
        inner, more = getattr(base, name, None), wanted.pop(name, None)
        if isinstance(more, tuple):
            given[name] = small(getattr(transformers, more[0]), changes=more[1]).to_dict()
        elif inner is not None:
            given[name] = small(type(inner), inner, more).to_dict()
    given |= {name: value for name, value in wanted.items() if name in fields}
    given = {name: value for name, value in given.items() if value is not KEPT}
    try:
        return kind(**given)
    except Exception:  # heads whose width is not free, or that are not grouped
        return kind(**{name: value for name, value in given.items() if name not in ("head_dim", "num_key_value_heads")})


def sizes(fields: dict[str, Any]) -> dict[str, Any]:
    """The small values of those fields that sizes are called by; one in a list for each, where it is a list."""
    given: dict[str, Any] = {}
    for name in fields.keys() & SMALL.keys():
        several = isinstance(fields[name], (list, tuple)) and not isinstance(SMALL[name], list)
        if not several:
            given[name] = SMALL[name]
        elif name not in BY_STAGE:
            given[name] = [SMALL[name]] * len(fields[name])
    if fields.get("out_indices") and "num_hidden_layers" in given:  # the last ones
        given["out_indices"] = list(range(DEPTH + 1 - len(fields["out_indices"]), DEPTH + 1))
    return given
