"""Vision-language models with fewer image tokens as users run them: pipelines, chat templates, checkpoints, adapters,
trainers, accelerate and compilers."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import tokensieve as ts
from tests.helpers.chatting import BOTH, DECODER, PAIR, PREFIX, SPECS, model_of, picture, processor, said
from tests.helpers.hidden import kept
from tests.helpers.languages import IMAGE, Inputs, Row, named
from tokensieve.language.cache import later_of, record_of

transformers = pytest.importorskip("transformers")

(LLAVA,) = named(["llava"])
GREEDY = {"max_new_tokens": 5, "do_sample": False}


def halved(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def labelled(*rows: Row) -> Inputs:
    inputs = LLAVA.inputs(*rows)
    hidden = (inputs["input_ids"] == IMAGE) | (inputs["attention_mask"] == 0)
    return inputs | {"labels": inputs["input_ids"].masked_fill(hidden, -100)}


# Pipelines and chat templates


@pytest.mark.slow
def test_a_pipeline_answers_as_the_model_does_behind_the_chat_template() -> None:
    model, words = model_of(BOTH).float(), processor()
    ask = transformers.pipeline("image-text-to-text", model=model, processor=words, device="cpu")
    talks = [[said("w5 w6 w7", picture())], [said("w5 w9", picture(1), picture(2))]]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    for talk in talks:
        inputs = words.apply_chat_template(talk, **options)
        assert int((inputs["input_ids"] == IMAGE).sum()) == 16 * (len(talk[0]["content"]) - 1)
        answer = model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        assert int((~kept(answer.cache)).sum()) == 8 * (len(talk[0]["content"]) - 1)
        text = words.decode(answer.sequences[0, inputs["input_ids"].shape[1] :])
        (found,) = ask(text=talk, return_full_text=False, **GREEDY)
        assert found["generated_text"].strip() == text.strip()


@pytest.mark.slow
def test_a_chat_goes_on_with_a_second_picture() -> None:
    """The text of both turns in one call, as a pipeline has it, and on the cache of the first."""
    model, words = model_of(PREFIX), processor()
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    talk = [said("w5 w6", picture())]
    first = halved(words.apply_chat_template(talk, **options), torch.float64)
    answer = model.generate(**first, **GREEDY, return_dict_in_generate=True)
    reply = answer.sequences[:, first["input_ids"].shape[1] :]
    asked = halved(words.apply_chat_template([said("w7", picture(3))], **options), torch.float64)
    ids = torch.cat([answer.sequences, asked["input_ids"]], dim=1)
    pixels = torch.cat([first["pixel_values"], asked["pixel_values"]])
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    expected = model.generate(**whole, **GREEDY)
    later = {**whole, "pixel_values": asked["pixel_values"]}
    assert reply.shape[1] == 5
    assert torch.equal(model.generate(**later, **GREEDY, cache=answer.cache), expected)


# Checkpoints


@pytest.mark.slow
@SPECS
def test_what_save_pretrained_writes_is_the_dense_model(spec: str, tmp_path: Path) -> None:
    from safetensors import safe_open

    model, dense, inputs = model_of(spec), model_of(), LLAVA.inputs(*PAIR)
    files: list[tuple[set[str], Any]] = []
    for part, one in (("applied", model), ("dense", dense)):
        one.save_pretrained(tmp_path / part)
        with safe_open(tmp_path / part / "model.safetensors", "pt") as weights:
            config = json.loads((tmp_path / part / "config.json").read_text(encoding="utf-8"))
            files.append((set(weights.keys()), config))
    assert files[0] == files[1]
    auto = transformers.AutoModelForImageTextToText
    loaded = auto.from_pretrained(tmp_path / "applied", dtype=torch.float64)
    with torch.no_grad():
        assert not ts.is_applied(loaded)
        assert torch.equal(loaded(**inputs).logits, dense(**inputs).logits)
        assert torch.equal(ts.apply(loaded, spec)(**inputs).logits, model(**inputs).logits)


@pytest.mark.slow
@SPECS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_before_and_after(spec: str, dtype: torch.dtype, tmp_path: Path) -> None:
    inputs = halved(LLAVA.inputs(*PAIR), dtype)
    model_of().save_pretrained(tmp_path)
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=dtype)
    before, after = ts.apply(model_of().to(dtype), spec), model_of(spec).to(dtype)
    with torch.no_grad():
        expected = before(**inputs).logits
        assert expected.dtype == dtype and expected.isfinite().all()
        assert torch.equal(after(**inputs).logits, expected)
        ts.apply(loaded, spec)
        assert loaded(**inputs).logits.dtype == dtype
        assert loaded.generate(**inputs, **GREEDY).shape == (2, inputs["input_ids"].shape[1] + 5)


@pytest.mark.slow
def test_copies_of_an_applied_model() -> None:
    inputs, model = LLAVA.inputs(*PAIR), model_of(BOTH)
    file = io.BytesIO()
    torch.save(model, file)  # before it is called: transformers' own hooks, made then, cannot be pickled
    file.seek(0)
    others = [torch.load(file, weights_only=False), copy.deepcopy(model)]
    with torch.no_grad():
        expected = model(**inputs).logits
        for other in (*others, copy.deepcopy(model)):
            assert torch.equal(other(**inputs).logits, expected)
            assert torch.equal(ts.remove(other)(**inputs).logits, model_of()(**inputs).logits)
        assert torch.equal(model(**inputs).logits, expected)


# Training


@pytest.mark.parametrize(
    "spec", [pytest.param(BOTH), *(pytest.param(one, marks=pytest.mark.slow) for one in (PREFIX, DECODER))]
)
def test_an_adapter_before_and_after(spec: str) -> None:
    peft = pytest.importorskip("peft")
    inputs = labelled(*PAIR)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    results: list[tuple[Tensor, list[Tensor]]] = []
    for later in (False, True):
        torch.manual_seed(1)
        model = peft.get_peft_model(model_of("" if later else spec), config)
        if later:
            ts.apply(model, spec)
        assert ts.spell(ts.applied(model)) == spec
        loss = model.eval()(**inputs).loss
        loss.backward()
        decoder = [part for name, part in model.named_parameters() if part.requires_grad and "language_model" in name]
        assert all(part.grad.abs().max() > 0 for part in decoder)
        results.append((loss.detach(), [part.grad for part in decoder]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(one, other) for one, other in zip(results[0][1], results[1][1], strict=True))
    merged = model.merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(merged(**inputs).loss, results[1][0], atol=1e-6, rtol=0)
        assert torch.equal(ts.remove(merged)(**LLAVA.inputs(Row(0))).logits.isfinite().all(), torch.tensor(True))


@pytest.mark.slow
@SPECS
def test_a_trainer_lowers_the_loss_with_and_without_checkpointing(spec: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    rows = [labelled(Row(1, seed=seed % 4)) for seed in range(8)]
    data = [halved({name: value[0] for name, value in row.items()}, torch.float32) for row in rows]
    losses: list[list[float]] = []
    for checkpointing in (False, True):
        options = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            max_steps=12,
            learning_rate=2e-3,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            gradient_checkpointing=checkpointing,
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(model=model_of(spec).float(), args=options, train_dataset=data)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0][-1] < losses[0][0] - 0.3
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize("spec", [PREFIX, pytest.param(BOTH, marks=pytest.mark.slow)])
def test_labels_of_tokens_that_are_gone_do_not_count(spec: str) -> None:
    """As collators leave them that mask nothing but padding; those of text and of tokens that stay count as ever."""
    model, inputs = model_of(spec), LLAVA.inputs(*PAIR)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    with torch.no_grad():
        output = model(**inputs, labels=labels)
        last = later_of(output.cache).get(2) or record_of(output.cache)
        assert last is not None
        stays = torch.zeros(2, last.length + 1, dtype=torch.bool)
        stays.scatter_(1, last.columns.clamp(min=-1) % (last.length + 1), True)
        gone = 11 if spec == PREFIX else 12
        assert (~stays[:, :-1]).sum(dim=1).tolist() == [gone, 2 * gone]
        rest = labels.masked_fill(~stays[:, :-1], -100)
        expected = F.cross_entropy(
            output.logits[:, :-1].float().flatten(0, 1), rest[:, 1:].flatten(), ignore_index=-100
        )
        torch.testing.assert_close(output.loss, expected, atol=1e-6, rtol=0)
        assert (
            expected - F.cross_entropy(output.logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
        ).abs() > 1e-3
        text = labelled(*PAIR)
        words = F.cross_entropy(output.logits[:, :-1].float().flatten(0, 1), text["labels"][:, 1:].flatten())
        torch.testing.assert_close(model(**text).loss, words, atol=1e-6, rtol=0)
        assert model(**LLAVA.inputs(Row(0)), labels=LLAVA.inputs(Row(0))["input_ids"]).loss.isfinite()


@pytest.mark.slow
@SPECS
def test_checkpointing_changes_no_gradient(spec: str) -> None:
    inputs, gradients = labelled(*PAIR), []
    for checkpointing in (False, True):
        model = model_of(spec).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**inputs, use_cache=False).loss.backward()
        gradients.append({name: part.grad for name, part in model.named_parameters() if part.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-12, rtol=0)


# Where the weights are


@pytest.mark.slow
@pytest.mark.parametrize("first", ["apply", "offload"])
@pytest.mark.parametrize("how", ["cpu_offload", "disk_offload", "dispatch_model"])
def test_weights_that_accelerate_moves(how: str, first: str, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    moves: dict[str, Callable[[Any], Any]] = {
        "cpu_offload": lambda model: accelerate.cpu_offload(model, execution_device="cpu"),
        "disk_offload": lambda model: accelerate.disk_offload(model, tmp_path, execution_device="cpu"),
        "dispatch_model": lambda model: accelerate.dispatch_model(model, device_map={"": "cpu"}, force_hooks=True),
    }
    inputs, move = LLAVA.inputs(*PAIR), moves[how]
    model = move(model_of(BOTH)) if first == "apply" else ts.apply(move(model_of()), BOTH)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, model_of(BOTH)(**inputs).logits)
        assert torch.equal(model.generate(**inputs, **GREEDY), model_of(BOTH).generate(**inputs, **GREEDY))
        assert torch.equal(ts.remove(model)(**inputs).logits, model_of()(**inputs).logits)


def test_data_parallel_is_refused() -> None:
    wrapped = torch.nn.DataParallel(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    with pytest.raises(ts.RefusedError, match="apply methods to the plain model first"):
        ts.apply(wrapped, PREFIX)


@pytest.mark.slow
def test_hooks_on_layers_see_the_tokens_that_are_left() -> None:
    model, seen = model_of(BOTH), []
    for layer in model.model.language_model.layers:
        layer.register_forward_hook(lambda _, args, output: seen.append((args[0].shape[1], output.shape[1])))
    inputs = LLAVA.inputs(Row(1))
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    length = inputs["input_ids"].shape[1]
    assert seen == [(length - 8, length - 8), (length - 8, length - 12), (length - 12, length - 12)]
    assert all(state.shape == (1, length, 48) for state in states)


@pytest.mark.slow
def test_a_compiled_model() -> None:
    inputs, model = halved(LLAVA.inputs(Row(1)), torch.float32), model_of(BOTH).float()
    with torch.no_grad():
        expected = model(**inputs).logits
        compiled = torch.compile(model, backend="eager")(**inputs).logits
    torch._dynamo.reset()
    torch.testing.assert_close(compiled, expected, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_an_exported_model_is_refused() -> None:
    inputs = LLAVA.inputs(Row(1)) | {"use_cache": False}
    with torch.no_grad(), pytest.raises(ts.RefusedError, match="follows from the prompt"):
        torch.export.export(model_of(PREFIX), (), inputs, strict=False)
