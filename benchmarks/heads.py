"""Heads that read the whole grid: how far what they answer is from dense, by method, at equal tokens.

python -m benchmarks heads

Boxes of OWLv2 and YOLOS, heatmaps of ViTPose, masks of SAM and EoMT, on encoders of 12 blocks with random weights that
matter everywhere (no norm is one, no bias zero) and images of smoothed noise: what a method costs a trained model is in
``accuracy``; here every host gets the whole grid back, and the table says what that grid is worth to its head. Half of
the tokens leave at one site, a third down, or where the published method acts. A distance is |reduced − dense| over
|dense − mean of dense|, both root mean squares over an output: 1 is what the mean would be wrong by.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokensieve as ts
from benchmarks.report import table
from tokensieve.utils.files import replacing

SMALL: dict[str, Any] = {"hidden_size": 96, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 384}
SITE = 5  # attends to everything also in SAM
METHODS = {
    "tome": f"tome:r={{half}}:sites=[{SITE}]",
    "bat": f"bat:keep=0.5:sites=[{SITE}]",
    "cubist": f"cubist:keep=0.5:sites=[{SITE}]",
    "expedite": f"expedite:keep=0.5:sites=[{SITE}]",
    "cropr": f"cropr:r={{half}}:sites=[{SITE}]",
    "random": f"random:keep=0.5:sites=[{SITE}]",
}


def options(parser: argparse.ArgumentParser) -> None:
    """Where to."""
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/heads.md"))


def run(given: argparse.Namespace) -> None:
    """Write the table."""
    rows = []
    for name, (make, patches) in HOSTS.items():
        torch.manual_seed(0)
        model, inputs, outputs = make()
        model = _lively(model).eval()
        dense = _answers(model, inputs, outputs)
        for output in outputs:
            rows.append([f"{name}, `{output}`"])
        for spec in METHODS.values():
            try:
                ts.apply(model, spec.format(half=patches // 2))
            except ts.TokensieveError as error:
                found = dict.fromkeys(outputs, "refused")
                print(f"{name}: {error}")
            else:
                reduced = _answers(model, inputs, outputs)
                found = {output: f"{_distance(reduced[output], dense[output]):.3f}" for output in outputs}
            for row, output in zip(rows[-len(outputs) :], outputs, strict=True):
                row.append(found[output])
            ts.remove(model)
    text = "\n".join(table(["head", *METHODS], rows))
    about = (
        f"Random weights, float32, torch {torch.__version__}; `python -m benchmarks heads`, which says what a figure is"
    )
    with replacing(given.output) as beside:
        beside.write_text(f"# Heads that read the whole grid\n\n{about}.\n\n{text}\n", encoding="utf-8")
    print(text)


def _answers(model: Any, inputs: dict[str, Any], outputs: tuple[str, ...]) -> dict[str, Tensor]:
    with torch.no_grad():
        answer = model(**inputs)
    return {name: getattr(answer, name) for name in outputs}


def _distance(reduced: Tensor, dense: Tensor) -> float:
    error = (reduced - dense).square().mean().sqrt()
    return float(error / (dense - dense.mean()).square().mean().sqrt())


def _lively(model: nn.Module) -> nn.Module:
    """Random weights with which norms, biases and special tokens matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() < 2:
                weight.copy_(1 + 0.3 * noise if name.endswith("weight") else 0.1 * noise)
            elif "embed" not in name and "rel_pos" not in name:
                weight.copy_(noise * weight[0].numel() ** -0.5)
            else:
                weight.copy_(0.3 * noise)
    return model


def _images(side: int) -> Tensor:
    """(2, 3, side, side) noise that is smooth over several patches."""
    noise = torch.randn(2, 3, side // 16, side // 16, generator=torch.Generator().manual_seed(2))
    return F.interpolate(noise, size=(side, side), mode="bicubic")


Host = tuple[nn.Module, dict[str, Any], tuple[str, ...]]


def _owlv2() -> Host:
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    text = {**SMALL, "num_hidden_layers": 2, "vocab_size": 64, "max_position_embeddings": 8}
    config = Owlv2Config(
        vision_config={**SMALL, "image_size": 256, "patch_size": 16}, text_config=text, projection_dim=96
    )
    ids = torch.randint(1, 64, (4, 8), generator=torch.Generator().manual_seed(3))
    make: Any = Owlv2ForObjectDetection
    return make(config), {"input_ids": ids, "pixel_values": _images(256)}, ("pred_boxes", "logits")


def _yolos() -> Host:
    from transformers import YolosConfig, YolosForObjectDetection

    config = YolosConfig(
        **SMALL, image_size=[256, 256], patch_size=16, num_detection_tokens=20, use_mid_position_embeddings=False
    )
    make: Any = YolosForObjectDetection
    return make(config), {"pixel_values": _images(256)}, ("pred_boxes", "logits")


def _vitpose() -> Host:
    from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation

    sizes = {**SMALL, "image_size": [256, 192], "patch_size": [16, 16], "out_indices": [12]}
    labels: dict[str, Any] = {"num_labels": 17}
    config = VitPoseConfig(backbone_config=VitPoseBackboneConfig(**sizes), **labels)
    make: Any = VitPoseForPoseEstimation
    return make(config), {"pixel_values": _images(256)[..., :192]}, ("heatmaps",)


def _sam() -> Host:
    from transformers import SamConfig, SamModel

    vision = {**SMALL, "image_size": 512, "mlp_dim": 384, "window_size": 14, "global_attn_indexes": [2, 5, 8, 11]}
    config = SamConfig(vision_config=vision, prompt_encoder_config={"image_size": 512})
    make: Any = SamModel
    points = torch.tensor([[[[200.0, 300.0]]]] * 2)
    return make(config), {"pixel_values": _images(512), "input_points": points}, ("pred_masks", "iou_scores")


def _eomt() -> Host:
    from transformers import EomtConfig, EomtForUniversalSegmentation

    sizes: dict[str, Any] = {**SMALL, "num_queries": 20, "num_blocks": 3, "num_labels": 10}
    config = EomtConfig(**sizes, image_size=256, patch_size=16)
    make: Any = EomtForUniversalSegmentation
    return make(config), {"pixel_values": _images(256)}, ("masks_queries_logits", "class_queries_logits")


HOSTS: dict[str, tuple[Callable[[], Host], int]] = {
    "OWLv2": (_owlv2, 256),
    "YOLOS": (_yolos, 256),
    "ViTPose": (_vitpose, 192),
    "SAM": (_sam, 1024),
    "EoMT": (_eomt, 256),
}
