"""Towers of transformers as their users run them: pipelines, Trainer, adapters, eight bits, saved and exported."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.towers import answers, inputs, tower
from tokensieve.models.transformers import HuggingFaceModel

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96}
SPEC = "tome:r=3"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def classifier() -> Any:
    vision = {**SIZES, "image_size": 64, "patch_size": 16}
    text = {**SIZES, "vocab_size": 99, "max_position_embeddings": 16}
    torch.manual_seed(0)
    config = transformers.SiglipConfig(vision_config=vision, text_config=text, num_labels=4)
    return transformers.SiglipForImageClassification(config).eval()


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_pipelines() -> None:
    from PIL import Image

    model = classifier()
    processor = transformers.SiglipImageProcessor(size={"height": 64, "width": 64})
    pipe = transformers.pipeline("image-classification", model=model, image_processor=processor, device="cpu")
    pictures = [Image.effect_mandelbrot((70, 90), (-2, -1.5, 1, number / 4), 60).convert("RGB") for number in (4, 5, 6)]
    dense = pipe(pictures)
    ts.apply(model, SPEC)
    reduced = pipe(pictures)
    assert len(reduced) == 3 and all(len(labels) == 4 for labels in reduced) and reduced != dense
    assert pipe(pictures, batch_size=2)[0][0]["score"] == pytest.approx(reduced[0][0]["score"], abs=1e-5)
    tower_alone: Any = model.vision_model
    features = transformers.pipeline(
        "image-feature-extraction", model=tower_alone, image_processor=processor, device="cpu"
    )
    assert torch.tensor(features(pictures[0])).shape == (1, 16, 48)


def test_the_trainer_with_checkpoints(tmp_path: Path) -> None:
    class Few(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, number: int) -> dict[str, Any]:
            return {"pixel_values": torch.full((3, 64, 64), number / 8), "labels": number % 4}

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=4, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True, gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )  # fmt: skip
    model = ts.apply(classifier(), SPEC)
    before = copy.deepcopy(model.state_dict())
    transformers.Trainer(model=model, args=arguments, train_dataset=Few()).train()
    after = model.state_dict()
    moved = [name for name, value in after.items() if name.endswith("weight") and not torch.equal(value, before[name])]
    assert ts.is_applied(model) and any("layers.0" in name for name in moved)


@pytest.mark.parametrize(("family", "name"), [("hf-clip", "clip"), ("hf-dinov3", "dinov3")])
def test_adapters_before_and_afterwards(family: str, name: str) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)

    def adapted(model: nn.Module) -> nn.Module:
        torch.manual_seed(1)
        return peft.get_peft_model(model, config).eval()  # type: ignore[no-any-return]

    first = adapted(tower(family, name))
    x = inputs(first, 2)
    dense = answers(first, x)
    reduced = answers(ts.apply(first, SPEC), x)
    second = adapted(ts.apply(tower(family, name), SPEC))
    assert same(answers(second, x), reduced) and not same(reduced, dense)
    out: Any = second.train()(x)
    out.last_hidden_state.square().sum().backward()
    assert all(p.grad is not None for p in second.parameters() if p.requires_grad)
    assert same(answers(ts.remove(first), x), dense)


@pytest.mark.parametrize("first", ["apply", "others"])
def test_weights_of_eight_bits(first: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = tower("hf-clip", "clip")
    x = inputs(model, 2)
    if first == "apply":
        ts.apply(model, SPEC)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    if first == "others":
        ts.apply(model, SPEC)
    exact = answers(ts.apply(tower("hf-clip", "clip"), SPEC), x)
    for one, other in zip(answers(model, x), exact, strict=True):
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.3)
        assert not torch.equal(one, other)


def test_saved_in_another_type_and_placed(tmp_path: Path) -> None:
    model: Any = ts.apply(tower("hf-clip", "siglip"), SPEC)
    x = inputs(model, 2)
    model.save_pretrained(tmp_path)
    half = transformers.AutoModel.from_pretrained(tmp_path, dtype="bfloat16").eval()
    assert answers(ts.apply(half, SPEC), x.bfloat16())[0].dtype == torch.bfloat16
    placed = transformers.AutoModel.from_pretrained(tmp_path, device_map={"": "cpu"}).eval()
    assert same(answers(ts.apply(placed, SPEC), x), answers(model, x))
    other = model(torch.randn(1, 3, 96, 80), interpolate_pos_encoding=True)
    assert other.last_hidden_state.shape == (1, 30, 48)


def test_called_as_a_model_of_timm_and_saved(tmp_path: Path) -> None:
    model = HuggingFaceModel(tower("hf-clip", "siglip"))
    x = inputs(model, 2)
    with torch.no_grad():
        assert torch.equal(model(x), model.model(x).pooler_output)
        ts.save(ts.apply(model, SPEC), tmp_path / "saved")
        assert torch.equal(ts.load(tmp_path / "saved")(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["onnx", "xml"])
def test_exported(ending: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino" if ending == "xml" else "onnxruntime")
    ts.export_model(ts.apply(HuggingFaceModel(tower("hf-clip", "siglip")), SPEC), tmp_path / f"tower.{ending}")
