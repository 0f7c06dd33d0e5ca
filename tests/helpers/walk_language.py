"""Walk every image-text-to-text class of transformers: fewer image tokens are exact on it, or refused in a sentence.

    python -m tests.helpers.walk_language --output docs/language_hosts.json

Every class is built from a small config (``walk_language_configs``) with random weights in float64, and called with two
prompts of different length (``walk_language_inputs``), left-padded, with an image in each at least. A class is

- "exact" when ``prefix-grid:keep=1.0`` leaves logits bit-equal and greedy generation token for token, and with
  ``prefix-grid:keep=0.5`` the logits, and those of four tokens decoded on the cache, are those of the dense model whose
  layers are not shown the tokens that left (``hidden_layers``);
- "refused" in the sentence that is its reason, and then answers as before;
- "not built" where no small model of it runs here, for the reason in ``NOT_BUILT``;
- "FAILED" whatever else happens.

"decoder" says the same of ``fastv``, which drops half of the image tokens behind an early layer.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import tokensieve as ts
from tests.helpers.hidden_layers import hiding, kept_by_layer
from tests.helpers.models import liven
from tests.helpers.walk_configs import folder_of
from tests.helpers.walk_inputs import Inputs
from tests.helpers.walk_language_configs import WORDS, language_config
from tests.helpers.walk_language_inputs import longer, prompts
from tests.helpers.walk_record import Found, failed, judged, record, versions
from tokensieve.language.host import Host, find_host

NOTHING, PREFIX = "prefix-grid:keep=1.0", "prefix-grid:keep=0.5"
STEPS = 4
ERROR, EFFECT = 1e-4, 1e-2  # of logits, in their standard deviations; many classes compute some parts in float32
SINGLE = ("inkling2", "inkling2_loop")  # their routers compute in float32, whatever their weights are
NONE = {"decoder": "", "of decoder": ""}
NOT_BUILT = {
    "MiniCPMV4_7ForConditionalGeneration": "it reads positions from marks around thumbnails and slices, which its "
    "processor alone writes",
}


def classes(*names: str) -> Iterator[tuple[str, Any]]:
    """(name, class) of every class of the mapping, or of those with these names."""
    for name in dict.fromkeys(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()):
        if not names or name in names:
            yield name, getattr(transformers, name)


def built(kind: Any) -> Any:
    """A small model of a class with random weights, in float64 and eval mode, whose generation never ends early."""
    torch.manual_seed(0)
    model = liven(kind(language_config(kind))).eval()
    if folder_of(kind) not in SINGLE:
        model = model.double()
    model.set_experts_implementation("eager")  # the others take no float64
    if model.can_generate():
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
    return model


def judge(name: str, kind: Any) -> Found:
    """{"status": …, "reason": …, "decoder": …, "of decoder": …} of one class."""
    if name in NOT_BUILT:
        return {"status": "not built", "reason": NOT_BUILT[name], **NONE}
    with torch.no_grad():
        dense = built(kind)
        host = find_host(dense)
        refusal = refused(dense)
        if host is None or refusal is not None:
            return {
                "status": "refused" if refusal else "FAILED",
                "reason": refusal or "applied where no host was found",
                **NONE,
            }
        inputs = prompts(dense, host)
        found = verdict(dense, inputs, PREFIX)
        if found["status"] != "exact":
            return {**found, **NONE}
        behind = verdict(dense, inputs, f"fastv:keep=0.5:layer={max(2, host.levels + 1)}")
    return {**found, "decoder": behind["status"], "of decoder": behind["reason"]}


def refused(model: nn.Module) -> str | None:
    """Why no prefix method is applied to a model, if it is refused before anything runs."""
    try:
        ts.remove(ts.apply(model, PREFIX))
    except ts.TokensieveError as error:
        return str(error)
    return None


def verdict(dense: Any, inputs: Inputs, spec: str) -> Found:
    """{"status": "exact", "refused" or "FAILED", "reason": …} of one method on a dense model, which stays dense."""
    whole = logits_of(dense, inputs)
    model = copy.deepcopy(dense)
    try:
        reason = compared(dense, model, inputs, spec)
    except ts.TokensieveError as error:
        same = torch.equal(logits_of(ts.remove(model), inputs), whole)
        return {"status": "refused" if same else "FAILED", "reason": str(error)}
    if not torch.equal(logits_of(ts.remove(model), inputs), whole):
        reason = "remove does not give the original back"
    return {"status": "FAILED" if reason else "exact", "reason": reason}


def compared(dense: Any, model: Any, inputs: Inputs, spec: str) -> str:
    """What is wrong with a method on ``model``, a copy of ``dense``; empty where all is right."""
    ts.apply(model, spec.replace("0.5", "1.0"))
    if not torch.equal(logits_of(model, inputs), logits_of(dense, inputs)):
        return "keeping all changes the logits"
    tokens, positions, _ = generated(dense, inputs)
    if not torch.equal(generated(model, inputs)[0], tokens):
        return "keeping all changes what is generated"
    ts.apply(ts.remove(model), spec)
    logits, output = head(model, inputs)
    reason = against(dense, inputs, logits, output.cache, None)
    if reason:
        return f"logits: {reason}"
    tokens, _, (steps, cache) = generated(model, inputs)
    full = longer(dense, inputs, tokens[:, inputs["input_ids"].shape[1] : -1])
    reason = against(dense, full, steps, cache, positions)
    return f"decoding: {reason}" if reason else ""


def against(dense: Any, inputs: Inputs, logits: Tensor, cache: Any, positions: Tensor | None) -> str:
    """How logits (B, T, V) of the last T tokens differ from those of the dense model with hidden tokens, if they do."""
    host = find_host(dense)
    assert host is not None
    keeps, there = kept_by_layer(cache, len(host.layers)), inputs["attention_mask"]
    if keeps[-1].all():
        return "nothing left"
    with hiding(host, there, keeps), placed(host, positions):
        expected = head(dense, inputs, use_cache=False)[0][:, -logits.shape[1] :]
    with placed(host, positions):
        plain = head(dense, inputs, use_cache=False)[0][:, -logits.shape[1] :]
    stays = (keeps[-1] & there.bool())[:, -logits.shape[1] :]
    error, effect = ((one - expected)[stays].abs().max() / expected.std() for one in (logits, plain))
    if not error <= ERROR:
        return f"off by {error:.1e} of their deviation, where hiding changes them by {effect:.1e}"
    return "" if effect >= EFFECT else f"hiding tokens changes them by {effect:.1e} of their deviation only"


def logits_of(model: Any, inputs: Inputs) -> Tensor:
    """(B, L, V), of models that draw random numbers the same every time."""
    torch.manual_seed(3)
    logits: Tensor = model(**inputs).logits
    return logits


def head(model: Any, inputs: Inputs, **options: Any) -> tuple[Tensor, Any]:
    """(B, L, V) what the head of a model gives, in the dtype in which it computes, and the output of the model."""
    seen: list[Tensor] = []
    with model.get_output_embeddings().register_forward_hook(lambda _, args, output: seen.append(output)):
        output = model(**inputs, **options)
    return seen[-1], output


def generated(model: Any, inputs: Inputs) -> tuple[Tensor, Tensor | None, tuple[Tensor, Any]]:
    """Greedy sequences (B, U + STEPS), the positions that the decoder was given, and the logits (B, STEPS, V) of the
    head with the cache behind them."""
    host = find_host(model)
    assert host is not None
    positions: list[Tensor | None] = []
    steps: list[Tensor] = []
    options = {"do_sample": False, "max_new_tokens": STEPS, "suppress_tokens": list(range(100, WORDS))}
    watch = host.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: positions.append(kwargs.get("position_ids")), with_kwargs=True
    )
    with watch, model.get_output_embeddings().register_forward_hook(lambda _, args, out: steps.append(out[:, -1])):
        answer = model.generate(**inputs, return_dict_in_generate=True, **options)
    given = [one for one in positions if one is not None]
    joined = torch.cat(given, dim=-1) if len(given) == len(positions) else None
    return answer.sequences, joined, (torch.stack(steps, dim=1), answer.cache)


def placed(host: Host, positions: Tensor | None) -> Any:
    """The decoder of ``host`` is given these positions."""

    def give(_: Any, args: Any, kwargs: Any) -> Any:
        return args, kwargs | ({} if positions is None else {"position_ids": positions})

    return host.decoder.register_forward_pre_hook(give, with_kwargs=True)


def quiet(name: str, kind: Any) -> Found:
    """What ``judge`` says, without the warnings of transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return judge(name, kind)
        except Exception as error:
            return {**failed(error), **NONE}


def walk(*names: str) -> dict[str, Any]:
    """What ``judge`` says of every class, or of those with these names, with the versions it was found with."""
    transformers.logging.set_verbosity_error()
    models = judged((name, partial(quiet, name, kind)) for name, kind in classes(*names))
    return {**versions(transformers=transformers.__version__), "models": models}


def behind(walked: dict[str, Any]) -> str:
    """How many of the exact classes are exact with methods in the decoder too."""
    exact = [one for one in walked["models"].values() if one["status"] == "exact"]
    return f"{sum(one['decoder'] == 'exact' for one in exact)} of {len(exact)} in the decoder too"


if __name__ == "__main__":
    sys.exit(record(__doc__, walk, behind))
