"""Methods in the decoder: the dense model with the dropped tokens hidden from later layers, to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokensieve as ts
from tests.helpers.generating import answers, over, whole
from tests.helpers.languages import LANGUAGES, Language, Row
from tokensieve.language.apply import applied, apply, remove
from tokensieve.language.cache import later_of, record_of
from tokensieve.language.host import find_host
from tokensieve.methods.language.dart import DART
from tokensieve.methods.language.divprune import DivPrune
from tokensieve.methods.language.fastv import FastV
from tokensieve.methods.language.pyramiddrop import PyramidDrop
from tokensieve.methods.language.sparsevlm import SparseVLM

transformers = pytest.importorskip("transformers")

IMAGE, PATCHES, DEPTH = 99, 16, 4
METHODS: dict[str, tuple[Any, ...]] = {
    "fastv": (FastV(keep=0.4, layer=1),),
    "pyramiddrop": (PyramidDrop(keep=0.6, sites=(1, 2, 3)),),
    "dart": (DART(keep=0.5, layer=2, pivots=2),),
    "sparsevlm": (SparseVLM(keep=(0.8, 0.5), sites=(1, 3), recycle=0.0),),
    "divprune and fastv": (DivPrune(tokens=9), FastV(keep=0.5, layer=2)),
}


def llava(seed: int = 0) -> Any:
    """A tiny LLaVA in float64."""
    torch.manual_seed(seed)
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
    )
    text = transformers.LlamaConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE)
    return transformers.LlavaForConditionalGeneration(config).double().eval()


def prompts(*texts: tuple[int, int]) -> dict[str, Tensor]:
    """Prompts of one image each with so many words before and behind it, padded on the left."""
    rows = [[1, *range(5, 5 + before), *[IMAGE] * PATCHES, *range(30, 30 + behind)] for before, behind in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    pixels = torch.randn(len(rows), 3, 32, 32, generator=torch.Generator().manual_seed(len(rows)), dtype=torch.float64)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels}


def places(mask: Tensor) -> Tensor:
    """The positions that ``generate`` gives to tokens behind padding."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def greedy(steps: int) -> dict[str, Any]:
    """So many words, none of which is a placeholder."""
    return {"max_new_tokens": steps, "min_new_tokens": steps, "do_sample": False, "suppress_tokens": [0, IMAGE]}


@contextmanager
def hidden_from(model: nn.Module, columns: dict[int, Tensor], length: int, real: Tensor) -> Iterator[None]:
    """The dense model, whose layers see only some columns: those of the last stage that begins before each."""
    host = find_host(model)
    assert host is not None

    def masked(layer: int) -> Any:
        first = max(start for start in columns if start <= layer)

        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            total = args[0].shape[1]
            seen = torch.zeros(len(columns[first]), total + 1, dtype=torch.bool)
            seen.scatter_(1, columns[first].masked_fill(columns[first] < 0, total), True)
            seen[:, length:total] = True  # what was decoded
            seen = seen[:, :total] & real.bool()
            given = kwargs.get("attention_mask")
            four = given is not None and given.dim() == 4
            causal = given if four else torch.ones(total, total, dtype=torch.bool).tril()
            own = torch.eye(total, dtype=torch.bool)
            return args, {**kwargs, "attention_mask": (causal & seen[:, None, None]) | own}

        return hook

    handles = [layer.register_forward_pre_hook(masked(n), with_kwargs=True) for n, layer in enumerate(host.layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def columns_of(cache: Any) -> dict[int, Tensor]:
    """Which tokens of the uncut sequence are in the cache, by the first layer of which that holds."""
    record = record_of(cache)
    assert record is not None
    return {0: record.columns, **{first: held.columns for first, held in later_of(cache).items()}}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("texts", [[(2, 4)], [(2, 4), (5, 9)]], ids=["one", "padded"])
def test_the_dense_model_with_the_dropped_tokens_hidden(name: str, texts: list[tuple[int, int]]) -> None:
    dense, inputs = llava(), prompts(*texts)
    model = apply(llava(), METHODS[name])
    steps = 12
    heard: list[Tensor] = []  # what generate hands out of logits is float32
    model.lm_head.register_forward_hook(lambda module, args, out: heard.append(out[:, -1]))
    with torch.no_grad():
        found = model.generate(**inputs, **greedy(steps))
        columns = columns_of(model(**inputs, position_ids=places(inputs["attention_mask"]), use_cache=True).cache)
        length = inputs["input_ids"].shape[1]
        assert torch.equal(found[:, :length], inputs["input_ids"])
        assert len({part.shape[1] for part in columns.values()}) > 1
        mask = torch.cat([inputs["attention_mask"], inputs["attention_mask"].new_ones(len(texts), steps)], dim=1)
        with hidden_from(dense, columns, length, mask):
            whole = dense(
                input_ids=found,
                attention_mask=mask,
                pixel_values=inputs["pixel_values"],
                position_ids=places(mask),
            ).logits
    for step, logits in enumerate(heard[:steps]):
        torch.testing.assert_close(logits, whole[:, length - 1 + step], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_is_each_of_its_prompts_alone(name: str) -> None:
    inputs = prompts((2, 4), (5, 9))
    model = apply(llava(), METHODS[name])
    with torch.no_grad():
        together = model.generate(**inputs, **greedy(8))
        for row in range(2):
            own = inputs["attention_mask"][row].bool()
            alone = model.generate(
                input_ids=inputs["input_ids"][row : row + 1, own],
                pixel_values=inputs["pixel_values"][row : row + 1],
                **greedy(8),
            )
            assert torch.equal(alone[0], together[row, -alone.shape[1] :])


def test_nothing_dropped_is_exact_and_remove_gives_the_model_back() -> None:
    dense, inputs = llava(), prompts((2, 4), (5, 9))
    model = llava()
    kinds = [type(part) for part in model.modules()]
    apply(model, (FastV(keep=1.0, layer=1),))
    with torch.no_grad():
        expected = dense(**inputs).logits
        seen = inputs["attention_mask"].bool()
        torch.testing.assert_close(model(**inputs).logits[seen], expected[seen], rtol=0, atol=1e-12)
        remove(apply(remove(model), (FastV(keep=0.5, layer=1),)))
        assert torch.equal(model(**inputs).logits, expected)
    assert [type(part) for part in model.modules()] == kinds and applied(model) == ()


def test_caches_of_later_layers_are_shorter() -> None:
    model, inputs = apply(llava(), METHODS["pyramiddrop"]), prompts((2, 4))
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).cache
    text = inputs["input_ids"].shape[1] - PATCHES
    assert [layer.keys.shape[2] for layer in cache.layers] == [text + left for left in (16, 10, 6, 4)]
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]


def test_hidden_states_are_those_of_every_token() -> None:
    model, inputs = apply(llava(), METHODS["fastv"]), prompts((2, 4))
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
        dense = llava()(**inputs, output_hidden_states=True).hidden_states
    assert [state.shape for state in states] == [state.shape for state in dense]
    assert torch.equal(states[0], dense[0])
    again = [int((state[0, 1:] == state[0, :-1]).all(dim=1).sum()) for state in states]
    assert again == [0, *[PATCHES - 7] * DEPTH]  # one that is gone repeats the one before


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (FastV(keep=0.5, layer=DEPTH), f"expected ascending numbers from 0 to {DEPTH - 2}"),
        (PyramidDrop(keep=(0.5, 0.5), sites=(1,)), "2 shares for 1 sites"),
    ],
)
def test_sites_outside_of_the_decoder_are_refused(method: Any, says: str) -> None:
    with pytest.raises(ts.TokensieveError, match=says):
        apply(llava(), (method,))


@over(LANGUAGES)
def test_on_every_host_or_refused_with_the_reason(language: Language) -> None:
    dense, model = language.build(), language.build()
    host = find_host(model)
    assert host is not None
    if set(host.kinds) - {"full_attention"}:
        with pytest.raises(ts.RefusedError, match="has layers of kind"):
            apply(model, "fastv:keep=0.5:layer=1")
        return
    if host.levels:
        with pytest.raises(ts.RefusedError, match="adds features of the tower"):
            apply(model, "fastv:keep=0.5:layer=1")
        if host.levels > 1:
            return
    inputs, layer = language.inputs(Row(1), Row(2, words=7, seed=1)), 1 + host.levels
    apply(model, f"divprune:tokens=12+fastv:keep=0.5:layer={layer}")
    with torch.no_grad():
        answer, steps = answers(model, inputs, 6)
        columns = columns_of(answer.cache)
        length = inputs["input_ids"].shape[1]
        before = {first: held[:, : held.shape[1] - 5] for first, held in columns.items()}
        assert list(before) == [0, layer]
        full = whole(language, inputs, answer.sequences)
        with hidden_from(dense, before, length, full["attention_mask"]):
            expected = dense(**full, use_cache=False).logits
    torch.testing.assert_close(steps, expected[:, -6:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["recycling", pytest.param("divprune and fastv", marks=pytest.mark.slow)])
def test_checkpointed_gradients_equal_plain_ones(name: str, reentrant: bool) -> None:
    methods = (SparseVLM(keep=(0.6, 0.5), sites=(1, 3)),) if name == "recycling" else METHODS[name]

    def gradients(checkpoints: bool) -> tuple[dict[str, Tensor], int]:
        model, inputs, runs = apply(llava().train(), methods), prompts((2, 4), (5, 9)), []
        if checkpoints:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.model.language_model.layers[2].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
        model(**inputs, labels=labels).loss.backward()
        return {key: part.grad for key, part in model.named_parameters() if part.grad is not None}, len(runs)

    (plain, once), (checkpointed, twice) = gradients(False), gradients(True)
    assert (once, twice) == (1, 2)
    assert plain.keys() == checkpointed.keys() and len(plain) > 30
    for key, gradient in plain.items():
        torch.testing.assert_close(checkpointed[key], gradient, rtol=1e-9, atol=1e-12)


def test_two_methods_behind_one_layer_are_refused() -> None:
    with pytest.raises(ts.TokensieveError, match="fastv and dart both act behind layer 2"):
        apply(llava(), (FastV(keep=0.5, layer=2), DART(keep=0.5, layer=2)))
