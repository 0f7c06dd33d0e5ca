"""``ts.apply`` on a vision-language model: specs, compositions, what is refused, and saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import tokensieve as ts
from tests.language.test_decoder import llava, prompts

SPEC = "tome:r=2:sites=[0]+divprune:tokens=6+fastv:keep=0.5:layer=2"


def test_each_method_of_a_spec_acts_at_its_place() -> None:
    model, inputs = ts.apply(llava(), SPEC), prompts((2, 4))
    assert ts.is_applied(model) and ts.spell(ts.applied(model)) == SPEC
    assert [type(method).__name__ for method in ts.applied(model)] == ["ToMe", "DivPrune", "FastV"]
    with torch.no_grad():
        lengths = [layer.keys.shape[2] for layer in model(**inputs, use_cache=True).cache.layers]
        text = inputs["input_ids"].shape[1] - 16
        assert lengths == [text + 6, text + 6, text + 3, text + 3]
        prefix = ts.apply(llava(), "divprune:tokens=6")(**inputs).logits
        assert not torch.equal(model(**inputs).logits, prefix)
        assert torch.equal(ts.remove(model)(**inputs).logits, llava()(**inputs).logits)
    assert ts.applied(model) == () and not ts.is_applied(model)


def test_a_tower_method_alone_is_as_before() -> None:
    model, inputs = ts.apply(llava(), "tome:r=2"), prompts((2, 4))
    with torch.no_grad():
        assert model(**inputs).logits.shape == llava()(**inputs).logits.shape
    assert ts.spell(ts.applied(model)) == "tome:r=2"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("divprune", "give one of keep"),
        ("divprune:keep=0.5:tokens=3", "give one of keep"),
        ("divprune:tokens=3+prefix-grid:tokens=3", "both act in front of the decoder"),
        ("divprun:tokens=3", "did you mean 'divprune'"),
        ("fastv:keep=0", r"a share in \(0, 1\]"),
    ],
)
def test_what_is_wrong_with_a_spec_is_said(spec: str, says: str) -> None:
    model = llava()
    with pytest.raises(ts.TokensieveError, match=says):
        ts.apply(model, spec)
    assert not ts.is_applied(model)


def test_a_model_without_a_language_model_is_refused() -> None:
    with pytest.raises(ts.RefusedError, match="of a vision-language model, and VisionTransformer is none"):
        ts.apply(timm.create_model("test_vit"), "divprune:tokens=3")
    with pytest.raises(ts.TokensieveError, match="acts in a vision-language model"):
        ts.parse("divprune:tokens=3")


@pytest.mark.parametrize("first", ["divprune:tokens=3", "tome:r=2"])
def test_methods_are_applied_once(first: str) -> None:
    model = ts.apply(llava(), first)
    for spec in ("fastv", "tome:r=2"):
        with pytest.raises(ts.TokensieveError, match=f"applied already \\({first}\\)"):
            ts.apply(model, spec)
    assert ts.spell(ts.applied(model)) == first


def test_embeddings_with_images_in_them_are_refused() -> None:
    model, inputs = ts.apply(llava(), "divprune:tokens=3"), prompts((2, 4))
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(ts.RefusedError, match="inputs_embeds were given"):
        model(inputs_embeds=embeddings, pixel_values=inputs["pixel_values"])


def test_a_saved_model_answers_the_same(tmp_path: Path) -> None:
    model, inputs = ts.apply(llava(), SPEC), prompts((2, 4))
    ts.save(model, tmp_path / "saved")
    loaded: Any = ts.load(tmp_path / "saved").double()
    assert ts.applied(loaded) == ts.applied(model)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-12)
        generated = [one.generate(**inputs, max_new_tokens=4, do_sample=False) for one in (loaded, model)]
    assert torch.equal(*generated)


def test_labels_mean_what_they_meant() -> None:
    model, inputs = ts.apply(llava().train(), "divprune:tokens=6"), prompts((2, 4))
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == 99, -100)
    output = model(**inputs, labels=labels)
    text = output.logits[:, :-1].float().flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(text, labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(output.loss, expected.to(output.loss.dtype), rtol=1e-5, atol=1e-6)
    output.loss.backward()
    assert model.model.language_model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
