"""Images padded to one length, as a mask says: SigLIP 2, Idefics 3, timm's NaFlexViT."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.models import liven
from tests.helpers.towers import tensors
from tokensieve.engine.padding import forms

SHAPES = ((8, 8), (6, 9), (4, 16), (9, 6), (5, 5))  # rows and columns of patches; two have as many
LENGTH = 64
KINDS = ("tome:r=4", "bat:keep=0.5:sites=[1]", "evit:keep=0.5:sites=[1]", "ats:sites=[1]", "tosa:keep=0.5:sites=[2]")
Inputs = dict[str, Any]
Some = Callable[[tuple[int, ...]], Inputs]


def siglip2() -> nn.Module:
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    small = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 96}
    model: nn.Module = Siglip2VisionModel(Siglip2VisionConfig(**small, num_patches=LENGTH, patch_size=8))
    return model


def of_siglip2(which: tuple[int, ...]) -> Inputs:
    values, valid, _ = padded(which, 8)
    shapes = torch.tensor([SHAPES[number] for number in which])
    return {"pixel_values": values, "pixel_attention_mask": valid.long(), "spatial_shapes": shapes}


def idefics3() -> nn.Module:
    from transformers import Idefics3VisionConfig
    from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionTransformer

    small = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 96}
    model: nn.Module = Idefics3VisionTransformer(Idefics3VisionConfig(**small, image_size=256, patch_size=16))
    return model


def of_idefics3(which: tuple[int, ...]) -> Inputs:
    mask = torch.zeros(len(which), 16, 16, dtype=torch.bool)  # rectangles, whose patches are in no row
    for image, number in zip(mask, which, strict=True):
        rows, columns = SHAPES[number]
        image[:rows, :columns] = True
    images = torch.stack([torch.randn(3, 256, 256, generator=seeded(number)) for number in which])
    return {"pixel_values": images, "patch_attention_mask": mask}


def naflex(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, embed_dim=48, depth=4, num_heads=3, num_classes=7, **options)


def of_naflex(which: tuple[int, ...]) -> Inputs:
    patches, valid, places = padded(which, 16)
    return {"x": {"patches": patches, "patch_coord": places, "patch_valid": valid}}


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def padded(which: tuple[int, ...], patch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Patches (B, N, 3 · patch²), which of them are no padding (B, N), and their rows and columns (B, N, 2)."""
    patches = torch.zeros(len(which), LENGTH, 3 * patch**2)
    valid = torch.zeros(len(which), LENGTH, dtype=torch.bool)
    places = torch.zeros(len(which), LENGTH, 2, dtype=torch.int64)
    for place, number in enumerate(which):
        rows, columns = SHAPES[number]
        count = rows * columns
        patches[place, :count] = torch.randn(count, 3 * patch**2, generator=seeded(number))
        valid[place, :count] = True
        places[place, :count] = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    return patches, valid, places


TOWERS: dict[str, tuple[Callable[[], nn.Module], Some]] = {
    "siglip2": (siglip2, of_siglip2),
    "idefics3": (idefics3, of_idefics3),
    "naflex": (naflex("naflexvit_base_patch16_gap"), of_naflex),
    "naflex, a map": (naflex("naflexvit_so150m2_patch16_reg1_map"), of_naflex),
    "naflex, rotary": (naflex("naflexvit_base_patch16_gap", rope_type="axial"), of_naflex),
    "naflex, parallel": (naflex("naflexvit_base_patch16_par_gap"), of_naflex),
}
every_tower = pytest.mark.parametrize("name", TOWERS)


@cache
def _built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return liven(TOWERS[name][0]()).eval()


def tower(name: str) -> tuple[Any, Some]:
    return copy.deepcopy(_built(name)), TOWERS[name][1]


def run(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return tensors(model(**inputs))


def of_image(answers: list[Tensor], place: int, inputs: Inputs) -> list[Tensor]:
    """What of ``answers`` is of an image at ``place``, without its padding."""
    given = inputs["x"]["patch_valid"] if "x" in inputs else inputs.get("pixel_attention_mask")
    valid = inputs["patch_attention_mask"].flatten(1) if given is None else given
    kept = valid[place].bool()
    return [part[place][kept] if part.dim() > 2 else part[place] for part in answers]


@every_tower
def test_exact_where_nothing_is_removed_and_each_image_as_if_alone(name: str) -> None:
    model, some = tower(name)
    inputs = some((0, 1, 2, 3, 4))
    dense = run(model, inputs)
    exact = run(ts.apply(model, "tome:r=0+topk:keep=1.0:sites=[1]"), inputs)
    assert all(torch.equal(one, other) for one, other in zip(exact, dense, strict=True))
    for spec in KINDS:
        if "tosa" in spec and "parallel" in name:
            continue
        ts.apply(ts.remove(model), spec)
        reduced = run(model, inputs)
        assert [part.shape for part in reduced] == [part.shape for part in dense]
        for number in range(len(SHAPES)):
            alone = of_image(run(model, some((number,))), 0, some((number,)))
            among = of_image(reduced, number, inputs)
            before = of_image(dense, number, inputs)
            assert any((one - other).abs().max() > 1e-3 for one, other in zip(among, before, strict=True))
            for one, other in zip(alone, among, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    restored = run(ts.remove(model), inputs)
    assert all(torch.equal(one, other) for one, other in zip(restored, dense, strict=True))


def test_gradients_reach_every_weight_of_padded_images() -> None:
    model, some = tower("siglip2")
    model.train()
    sum(part.square().mean() for part in tensors(ts.apply(model, "tome:r=4")(**some((0, 1, 4))))).backward()  # type: ignore[operator,union-attr]
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_which_tokens_a_mask_says_are_padding() -> None:
    x, valid = torch.zeros(3, 6, 4), torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 0]]).bool()
    lowest = torch.finfo(torch.float32).min
    keys = valid[:, None, None]
    additive = torch.zeros(3, 1, 1, 6).masked_fill(~keys, -torch.inf)
    both = torch.zeros(3, 1, 6, 6).masked_fill(~(keys & valid[:, None, :, None]), lowest)
    for mask in (valid, valid.long(), keys, keys.expand(3, 1, 6, 6), keys.expand(3, 2, 6, 6), additive, both):
        found = forms(mask, x, 1)
        assert [form.images.tolist() for form in found] == [[0, 2], [1]]
        assert [form.kept.tolist() for form in found] == [[[0, 1, 2], [0, 2, 3]], [[0, 1, 2, 3, 4]]]
    assert forms(torch.ones(3, 1, 1, 6).bool(), x, 1) == []


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(3, 1, 6, 6).tril().bool(),
        torch.full((3, 1, 1, 6), 0.5),
        torch.ones(6, 6).bool(),
        torch.tensor([0, 1, 1, 1, 1, 1]).bool().expand(3, 6),
        torch.tensor([1, 0, 0, 0, 0, 0]).bool().expand(3, 6),
    ],
    ids=["causal", "of other values", "of no image", "of the class token", "of every patch"],
)
def test_other_masks_are_refused(mask: Tensor) -> None:
    with pytest.raises(ts.RefusedError, match="but one that hides padding from all tokens alike"):
        forms(mask, torch.zeros(3, 6, 4), 1)
