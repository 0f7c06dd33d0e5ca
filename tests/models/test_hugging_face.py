"""Models of transformers with timm's interface, by name, and saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokensieve as ts
from tokensieve.data.transforms import data_config
from tokensieve.engine.probe import probe_input
from tokensieve.families._locate import family_of
from tokensieve.measure.macs import count
from tokensieve.models import transformers as hugging_face
from tokensieve.models.load import create, has_weights
from tokensieve.models.options import ModelOptions
from tokensieve.models.transformers import HuggingFaceModel, predict_depth, predicts_metres

transformers = pytest.importorskip("transformers")

ENCODER: dict[str, Any] = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 64, "patch_size": 16,
    "num_labels": 10,
}  # fmt: skip


def classifier(kind: str = "ViTForImageClassification", **changes: Any) -> Any:
    config = getattr(transformers, kind).config_class(**ENCODER, **{"intermediate_size": 96, **changes})
    return getattr(transformers, kind)(config).eval()


def depth_model(**changes: Any) -> Any:
    encoder = {**ENCODER, "num_hidden_layers": 4}
    backbone = transformers.Dinov2Config(
        **encoder, reshape_hidden_states=False, out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, patch_size=16, reassemble_hidden_size=48, neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8, head_hidden_size=8, **changes,
    )  # fmt: skip
    return transformers.DepthAnythingForDepthEstimation(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier and its image processor, as save_pretrained writes them."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("vit")
    classifier().save_pretrained(place)
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(place)
    return place


def images(size: int = 64, count: int = 2) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "kind",
    [
        "ViTForImageClassification",
        "DeiTForImageClassification",
        "DeiTForImageClassificationWithTeacher",
        "ViTMSNForImageClassification",
        "IJepaForImageClassification",
        "Dinov2ForImageClassification",
        "Dinov2WithRegistersForImageClassification",
    ],
)
@torch.no_grad()
def test_features_and_head_give_what_the_model_gives(kind: str) -> None:
    plain, x = classifier(kind), images()
    model = HuggingFaceModel(plain)
    assert model.task == "classification" and model.num_classes == 10
    logits = plain(x).logits
    assert torch.equal(model(x), logits)
    assert torch.equal(model.forward_head(model.forward_features(x)), logits)
    width = 96 if "Dinov2" in kind else 48
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, width)
    model.reset_classifier(0)
    assert model.num_classes == 0 and model(x).shape == (2, width)
    with pytest.raises(ts.TokensieveError, match="when it is loaded"):
        model.reset_classifier(5)


@torch.no_grad()
def test_other_sizes_are_those_of_transformers() -> None:
    plain, x = classifier(), images(96)
    model = HuggingFaceModel(plain, img_size=(96, 96))
    assert torch.equal(model(x), plain(x, interpolate_pos_encoding=True).logits)
    assert probe_input(model).shape == (1, 3, 96, 96)
    located = family_of(model)
    assert located.family.layout(located.owner).grid == (6, 6)
    assert model.patch_embed.img_size == (96, 96) and model.patch_embed.patch_size == (16, 16)
    assert torch.equal(model(images()), plain(images()).logits)  # the size it was built for still works
    assert count(model, images()).total < count(model, x).total


@torch.no_grad()
def test_depth_has_the_size_of_the_image() -> None:
    plain, x = depth_model(), images()
    depth = plain(x).predicted_depth
    assert torch.equal(predict_depth(plain, x), depth) and depth.shape == (2, 64, 64)
    model = HuggingFaceModel(plain)
    assert model.taps == (0, 1, 2, 3) and HuggingFaceModel(classifier()).taps == ()
    assert model.task == "depth" and torch.equal(model(x), depth)
    odd = torch.randn(1, 3, 70, 85)  # 4 × 5 whole patches
    assert plain(odd).predicted_depth.shape == (1, 64, 80) and predict_depth(model, odd).shape == (1, 70, 85)
    ts.apply(model, "tome:r=2:sites=[0,1]")
    assert predict_depth(model, x).shape == depth.shape and not torch.equal(predict_depth(model, x), depth)
    assert not predicts_metres(model)
    assert predicts_metres(depth_model(depth_estimation_type="metric", max_depth=10))
    with pytest.raises(ts.TokensieveError, match="predicts no depth"):
        predict_depth(classifier(), x)


@torch.no_grad()
def test_a_depth_model_without_its_head_gives_maps() -> None:
    model = HuggingFaceModel(depth_model())
    model.reset_classifier(0)
    assert model(images()).shape == (2, 48)
    maps = model.forward_intermediates(images(), indices=[1, 3], intermediates_only=True)
    assert [tuple(one.shape) for one in maps] == [(2, 48, 4, 4)] * 2
    with pytest.raises(ts.TokensieveError, match="NCHW"):
        model.forward_intermediates(images(), output_fmt="NHWC")


@torch.no_grad()
def test_a_folder_by_name(folder: Path) -> None:
    plain, x = transformers.ViTForImageClassification.from_pretrained(folder).eval(), images()
    for name in (str(folder), f"hf:{folder}"):
        model = create(ModelOptions(name))
        assert torch.equal(model(x), plain(x).logits) and has_weights(ModelOptions(name))
    assert data_config(model) == {
        "input_size": (3, 64, 64), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear",
        "crop_pct": 1.0, "crop_mode": "squash",
    }  # fmt: skip
    assert create(ModelOptions(str(folder), img_size=96)).patch_embed.img_size == (96, 96)
    assert create(ModelOptions(str(folder), num_classes=5))(x).shape == (2, 5)
    assert not torch.equal(create(ModelOptions(f"hf-config:{folder}"))(x), plain(x).logits)
    assert not has_weights(ModelOptions(f"hf-config:{folder}"))
    weights = folder / "model.safetensors"
    assert torch.equal(create(ModelOptions(f"hf-config:{folder}", checkpoint=str(weights)))(x), plain(x).logits)


@torch.no_grad()
def test_the_size_of_the_image_processor_counts(tmp_path: Path) -> None:
    plain = classifier("Dinov2ForImageClassification")
    plain.save_pretrained(tmp_path)
    transformers.BitImageProcessor(
        size={"shortest_edge": 112}, crop_size={"height": 96, "width": 96}, do_normalize=False
    ).save_pretrained(tmp_path)
    model = create(ModelOptions(str(tmp_path)))
    config = data_config(model)
    assert config["input_size"] == (3, 96, 96) and config["crop_pct"] == pytest.approx(96 / 112)
    assert config["mean"] == (0, 0, 0) and config["std"] == (1, 1, 1) and config["interpolation"] == "bicubic"
    assert probe_input(model).shape == (1, 3, 96, 96)
    assert torch.equal(model(images(96)), plain(images(96)).logits)


@torch.no_grad()
def test_a_state_dict_with_the_model_s_own_names(folder: Path, tmp_path: Path) -> None:
    plain = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    torch.save(plain.state_dict(), tmp_path / "own.pt")
    assert torch.equal(
        create(ModelOptions(str(folder), checkpoint=str(tmp_path / "own.pt")))(images()), plain(images()).logits
    )


def refused(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(ts.TokensieveError) as caught:
        create(ModelOptions(*args, **kwargs))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_names_say_what_to_do(folder: Path, tmp_path: Path) -> None:
    assert "hf:owner/name" in refused("hf:")
    assert "is not a folder" in refused("hf:./nowhere") and "is not a folder" in refused("hf:a/b/c")
    assert "save_pretrained" in refused(f"hf:{tmp_path}")
    assert "hf:owner/model" in refused("vit_of_nobody")
    assert "--in-chans" in refused(str(folder), in_chans=1)
    assert "--pretrained" in refused(f"hf-config:{folder}", pretrained=True)
    assert "smaller than one patch" in refused(str(folder), img_size=8)


@pytest.mark.parametrize("name", ["hf:owner/name", "hf:owner/name@main", "hf-config:owner/name"])
def test_an_unreachable_hub_is_said_at_once(name: str) -> None:
    assert "does not answer" in refused(name) and "save_pretrained" in refused(name)


def test_wrong_folders_say_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    config = json.loads((folder / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps(config))
    assert f"hf-config:{bare}" in refused(str(bare)) and "no weights" in refused(str(bare))
    (bare / "config.json").write_text(json.dumps({**config, "architectures": ["ViTForImageClassificatoin"]}))
    assert "did you mean 'ViTForImageClassification'" in refused(f"hf-config:{bare}")
    (bare / "config.json").write_text(json.dumps({**config, "model_type": "nonsense"}))
    assert "cannot read the config" in refused(f"hf-config:{bare}")
    (bare / "config.json").write_text(json.dumps({**config, "hidden_size": 24}))
    shutil.copy(folder / "model.safetensors", bare)
    assert "has shape" in refused(str(bare)) and "expected" in refused(str(bare))
    weights = bare / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    assert "cannot load" in refused(str(bare))
    assert "truncated" in refused(str(folder), checkpoint=str(weights))
    assert "is not a file" in refused(str(folder), checkpoint="nowhere.safetensors")


def test_weights_that_are_not_there_are_told(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "model.safetensors")
    del weights["vit.layernorm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(ts.TokensieveWarning, match=r"no weights for vit\.layernorm\.weight"):
        create(ModelOptions(str(tmp_path)))
    assert "it lacks" in refused(str(folder), checkpoint=str(tmp_path / "model.safetensors"))


def test_without_transformers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(hugging_face.importlib, "import_module", missing)
    assert "pip install 'tokensieve[transformers]'" in refused(str(folder))


@pytest.mark.parametrize("spec", ["tome:r=2", "tosa:keep=0.5"])
@torch.no_grad()
def test_saved_models_come_back(folder: Path, tmp_path: Path, spec: str) -> None:
    x = images(96)
    model = create(ModelOptions(str(folder), img_size=96))
    answer = ts.apply(model, spec)(x)
    ts.save(model, tmp_path / "wrapped")
    again = ts.load(tmp_path / "wrapped")
    assert isinstance(again, HuggingFaceModel) and ts.applied(again) == ts.applied(model)
    assert torch.equal(again(x), answer) and again.pretrained_cfg == model.pretrained_cfg
    plain = ts.apply(classifier(), spec)
    ts.save(plain, tmp_path / "plain")
    back: nn.Module = ts.load(tmp_path / "plain")
    assert type(back) is type(plain) and torch.equal(back(images()).logits, plain(images()).logits)
    assert isinstance(create(ModelOptions(str(tmp_path / "plain"))), HuggingFaceModel)
    headless = HuggingFaceModel(depth_model())
    headless.reset_classifier(0)
    ts.save(headless, tmp_path / "headless")
    assert torch.equal(ts.load(tmp_path / "headless")(images()), headless(images()))
    saved = json.loads((tmp_path / "plain" / "tokensieve.json").read_text())
    saved["model"]["name"] = "transformers/ViTOfNobody"
    (tmp_path / "plain" / "tokensieve.json").write_text(json.dumps(saved))
    with pytest.raises(ts.TokensieveError, match="has no ViTOfNobody"):
        ts.load(tmp_path / "plain")
