"""Features of images and of class names: those of the model itself, whatever is reduced."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tokensieve as ts
from tests.helpers.two_towers import ENDS, LENGTH, MODELS, SIZES, TEXT, tokenizer, two_towers
from tokensieve.data.transforms import data_config
from tokensieve.measure.macs import count
from tokensieve.models.features import ImageFeatures
from tokensieve.models.transformers import HuggingFaceModel
from tokensieve.models.zero_shot import ZeroShot, class_features

NAMES = ["red dog", "green cat", "blue"]
TEMPLATES = ["a photo of a {}.", "drawing of {}"]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    pytest.importorskip("transformers").logging.set_verbosity_error()


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_logits_are_those_of_the_model(name: str) -> None:
    towers, words = two_towers(name), tokenizer()
    scale = towers.temperature if name == "Tipsv2" else towers.logit_scale
    nn.init.constant_(scale, 2.0)
    padding = {"padding": "max_length", "return_attention_mask": False} if name == "Siglip" else {"padding": True}
    texts = words([TEMPLATES[0].replace("{}", name) for name in NAMES], return_tensors="pt", **padding)
    assert texts["input_ids"].shape == (3, LENGTH if name == "Siglip" else 9)
    x = images()
    wanted = towers(pixel_values=x, **texts).logits_per_image
    model = HuggingFaceModel(towers)
    zero_shot = ZeroShot(model, class_features(model, words, NAMES))
    assert zero_shot.num_classes == 3 and zero_shot.patch_embed.img_size == (64, 64)
    torch.testing.assert_close(zero_shot(x), wanted, rtol=1e-5, atol=1e-6)
    dense = zero_shot(x)
    features = class_features(model, words, NAMES)
    ts.apply(zero_shot, "tome:r=3")
    assert torch.equal(class_features(model, words, NAMES), features)
    assert not torch.equal(zero_shot(x), dense)
    assert torch.equal(ts.remove(zero_shot)(x), dense)


@torch.no_grad()
def test_a_class_is_the_mean_of_its_texts_normalised_twice() -> None:
    model = HuggingFaceModel(two_towers("CLIP"))
    one, other = (class_features(model, tokenizer(), NAMES, [template]) for template in TEMPLATES)
    both = class_features(model, tokenizer(), NAMES, TEMPLATES)
    torch.testing.assert_close(both.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(both, F.normalize((one + other) / 2, dim=1))
    many = class_features(model, tokenizer(), NAMES * 40)  # more texts than run at a time
    torch.testing.assert_close(many, one.repeat(40, 1))


def test_logits_are_scaled_cosines_in_float32() -> None:
    towers = two_towers("Siglip")
    with torch.no_grad():
        towers.logit_scale.fill_(math.log(10))
        towers.logit_bias.fill_(-3)
    model = HuggingFaceModel(towers)
    with torch.no_grad():
        text = F.normalize(towers.get_image_features(images()).pooler_output, dim=1)
        logits = ZeroShot(model, text)(images())
        torch.testing.assert_close(logits.diagonal(), torch.full((2,), 7.0))
        with torch.autocast("cpu", torch.bfloat16):
            assert ZeroShot(model, text)(images()).dtype == torch.float32


def test_the_classes_cost_what_a_classifier_of_them_costs() -> None:
    model = HuggingFaceModel(two_towers("CLIP"))
    text = class_features(model, tokenizer(), NAMES)
    features = count(ImageFeatures(model), images(1)).total
    assert count(ZeroShot(model, text), images(1)).total - features == 3 * 32


def test_texts_that_do_not_fit_are_refused() -> None:
    model: Any = HuggingFaceModel(two_towers("CLIP"))
    words = tokenizer()
    with pytest.raises(ts.TokensieveError, match=r"red\.' has 15 tokens and the text tower takes 12"):
        class_features(model, words, ["dog", "red red red red red red red red"])
    with pytest.raises(ts.TokensieveError, match=r"template 'a dog' has no \{\}"):
        class_features(model, words, NAMES, ["{}", "a dog"])
    with pytest.raises(ts.TokensieveError, match="there is no template"):
        class_features(model, words, NAMES, [])
    with pytest.raises(ts.TokensieveError, match="there is no class"):
        class_features(model, words, [])
    words.add_tokens([f"more{number}" for number in range(9)])
    with pytest.raises(ts.TokensieveError, match="has a token 22 and the text tower knows 20"):
        class_features(model, words, ["more8", "dog"])
    words.pad_token = None
    with pytest.raises(ts.TokensieveError, match="tokenizer beside the model cannot be used"):
        class_features(model, words, ["dog", "red dog"])


def test_models_without_a_text_tower_are_refused() -> None:
    for model in (timm.create_model("test_vit"), HuggingFaceModel(two_towers("CLIP").vision_model)):
        with pytest.raises(ts.TokensieveError, match="has no text tower"):
            ZeroShot(model, torch.zeros(2, 32))
        with pytest.raises(ts.TokensieveError, match="has no text tower"):
            class_features(model, tokenizer(), NAMES)


def test_a_model_of_images_of_any_size_is_refused() -> None:
    import transformers

    vision = {**SIZES, "patch_size": 16, "num_patches": 16}
    config = transformers.Siglip2Config(vision_config=vision, text_config={**TEXT, **ENDS})
    with pytest.raises(ts.TokensieveError, match="Siglip2Model is for images of no one size"):
        HuggingFaceModel(transformers.Siglip2Model(config))


@pytest.mark.parametrize("name", ["test_vit", "deit_tiny_distilled_patch16_224", "vit_base_patch16_siglip_224"])
@torch.no_grad()
def test_features_of_timm_are_those_before_the_classifier(name: str) -> None:
    small = {} if name == "test_vit" else {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model: Any = timm.create_model(name, **small).eval()
    size = model.patch_embed.img_size
    x = torch.randn(2, 3, *size)
    wanted = model.forward_head(model.forward_features(x), pre_logits=True)
    features = ImageFeatures(model)
    assert torch.equal(features(x), wanted) and features.num_classes == 0
    assert data_config(features)["input_size"] == (3, *size)
    reduced = ts.apply(features, "tome:r=2")(x)
    assert reduced.shape == wanted.shape and not torch.equal(reduced, wanted)


@torch.no_grad()
def test_features_of_transformers() -> None:
    towers = two_towers("CLIP")
    wanted = towers.get_image_features(images()).pooler_output
    assert torch.equal(ImageFeatures(HuggingFaceModel(towers))(images()), wanted) and wanted.shape == (2, 32)
    other = torch.randn(2, 3, 96, 80)
    resized = ImageFeatures(HuggingFaceModel(towers, img_size=(96, 80)))(other)
    assert torch.equal(resized, towers.get_image_features(other, interpolate_pos_encoding=True).pooler_output)
    vision = towers.vision_model
    assert torch.equal(ImageFeatures(HuggingFaceModel(vision))(images()), vision(images()).pooler_output)
    siglip = two_towers("Siglip").vision_model
    assert torch.equal(ImageFeatures(HuggingFaceModel(siglip))(images()), siglip(images()).pooler_output)
