"""Tower, projector and prefix method in one file: the same features at the same places, and what is refused."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pytest
import torch

import tokensieve as ts
from tests.helpers import calling
from tests.helpers.languages import IMAGE, Row, named
from tokensieve.export import features as exporting
from tokensieve.export.features import Reducer, settled_pictures
from tokensieve.export.serving import sglang_request, vllm_content, vllm_request
from tokensieve.language.sieved import plan_of

pytest.importorskip("transformers")

METHODS = ("divprune:tokens=6", "visionzip:tokens=6", "vispruner:tokens=6:removed=2", "prefix-grid:keep=0.5",
           "prefix-random:tokens=16", "tome:r=2+divprune:tokens=6")  # fmt: skip
HOSTS = ("llava", "paligemma", "internvl", "gemma3")
ENDINGS = {"torch": ".pt2", "onnx": ".onnx", "openvino": ".xml"}


def host(name: str = "llava") -> Any:
    return named([name])[0].build().float()


@pytest.mark.slow
@pytest.mark.parametrize("form", list(ENDINGS))
@pytest.mark.parametrize("name", HOSTS)
def test_the_file_keeps_what_the_model_keeps(name: str, form: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript" if form == "onnx" else form)
    model = ts.apply(host(name), "divprune:tokens=6")
    exported = ts.export_model(model, tmp_path / f"tower{ENDINGS[form]}", format=form)
    assert exported.agreement.images == 3 and exported.agreement.difference < 1e-4
    reducer = Reducer(model).eval()
    run = exported.open_all()
    pictures = settled_pictures(reducer, torch.randn(4, 3, 64, 64), torch.zeros(1, 3, 64, 64))
    for picture in pictures.split(1):
        with torch.inference_mode():
            features, places = run(picture)
            expected, where = reducer(picture)
        assert features.shape == (1, 6, 48) and places.dtype == torch.int64
        assert torch.equal(places, where)
        torch.testing.assert_close(features, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("form", [name for name in ENDINGS if name != "torch"])
@pytest.mark.parametrize("spec", METHODS)
def test_every_method_that_keeps_a_fixed_number(spec: str, form: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript" if form == "onnx" else form)
    exported = ts.export_model(ts.apply(host(), spec), tmp_path / f"tower{ENDINGS[form]}", format=form)
    assert exported.agreement.difference < 1e-4


@torch.no_grad()
def test_the_features_are_those_that_the_decoder_gets() -> None:
    """Given as embeddings to the dense model they make the logits of the reduced one with compact positions."""
    (language,) = named(["llava"])
    inputs = language.inputs(Row(1))
    dense = language.build()
    model = ts.apply(language.build(), "divprune:tokens=6:positions=compact")
    features, places = Reducer(model)(inputs["pixel_values"])
    assert bool((places[:, 1:] > places[:, :-1]).all())
    ids = inputs["input_ids"][0]
    image = IMAGE
    request = sglang_request(ids.tolist(), features, image)
    cut = torch.tensor([request["input_ids"]])
    embeddings = dense.get_input_embeddings()(cut)
    embeddings = embeddings.masked_scatter((cut == image).unsqueeze(2), request["image_data"][0]["feature"])
    expected = dense(inputs_embeds=embeddings).logits[0, -1]
    torch.testing.assert_close(model(**inputs).logits[0, -1], expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("name", "spec", "why"),
    [
        ("llava", "cdpruner:tokens=6", "cdpruner reads the text"),
        ("llava", "prumerge:tokens=6", "prumerge keeps a different number"),
        ("llava", "fastv:keep=0.5:layer=2", "no method applied in front of its decoder"),
        ("llava", "divprune:tokens=6+fastv:keep=0.5:layer=2", "fastv.* acts in another place"),
        ("llava-next", "divprune:tokens=6", "does not make features of a picture"),
    ],
)
def test_what_is_refused(name: str, spec: str, why: str, tmp_path: Path) -> None:
    model = ts.apply(host(name), spec)
    assert plan_of(model) is not None
    with pytest.raises(ts.RefusedError, match=why):
        ts.export_model(model, tmp_path / "tower.pt2")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    folder, output = tmp_path / "llava", tmp_path / "tower.onnx"
    host().save_pretrained(folder)
    result = calling.call("export", f"hf:{folder}", "--method", "divprune:tokens=6", "-o", output)
    assert result.exit_code == 0, result.output
    assert "same tokens" in result.stdout and "S in ONNX" not in result.stdout
    import onnx

    graph = onnx.load(output).graph
    assert [one.name for one in graph.input] == ["pixel_values"]
    assert [one.name for one in graph.output] == ["features", "places"]
    loops = [node for node in graph.node if node.op_type == "Loop"]
    assert len(loops) == 1  # the greedy choice is not unrolled


def test_a_graph_of_too_many_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "MOST_NODES", 100)
    with pytest.raises(ts.RefusedError, match=r"prefix-grid:keep=0.5 is \d+ nodes of a graph"):
        ts.export_model(ts.apply(host(), "prefix-grid:keep=0.5"), tmp_path / "tower.pt2")
    assert not list(tmp_path.iterdir())


def test_an_example_of_another_size(tmp_path: Path) -> None:
    model = ts.apply(host(), "divprune:tokens=6")
    with pytest.raises(ts.TokensieveError, match=r"must be pictures \(B, 3, 64, 64\)"):
        ts.export_model(model, tmp_path / "tower.pt2", example=torch.randn(2, 3, 32, 32))


def test_what_vllm_takes() -> None:
    features = torch.randn(2, 6, 48)
    request = vllm_request("USER: <image> <image> what?", features)
    assert set(request) == {"prompt", "multi_modal_data"} and set(request["multi_modal_data"]) == {"image"}
    assert request["multi_modal_data"]["image"].shape == (2, 6, 48)  # images, features, width
    content = vllm_content(features[:1])
    assert set(content) == {"type", "image_embeds"} and content["type"] == "image_embeds"
    read = torch.load(io.BytesIO(base64.b64decode(content["image_embeds"])), weights_only=True)
    assert torch.equal(read, features[:1])
    for wrong in (features[0], torch.zeros(1, 6, 48, dtype=torch.int64)):
        with pytest.raises(ts.TokensieveError, match=r"\(images, kept, channels\)"):
            vllm_request("", wrong)
    with pytest.raises(ts.TokensieveError, match="features of 2"):
        vllm_content(features)


def test_what_sglang_takes() -> None:
    features = torch.randn(2, 3, 48)
    ids = [1, *[9] * 16, 5, 9, 6]
    sizes = torch.tensor([[32, 32]] * 2)
    request = sglang_request(ids, features, 9, {"input_ids": ids, "pixel_values": 0, "image_sizes": sizes})
    assert set(request) == {"input_ids", "image_data"}
    assert request["input_ids"] == [1, 9, 9, 9, 5, 9, 9, 9, 6]
    (item,) = request["image_data"]
    assert set(item) == {"image_sizes", "format", "feature"} and item["format"] == "precomputed_embedding"
    assert torch.equal(item["feature"], torch.cat([features[0], features[1]]))
    with pytest.raises(ts.TokensieveError, match="2 runs of the image token 9, and 1 images"):
        sglang_request(ids, features[:1], 9)
