"""Every method around a decoder on the question model of the demo: accuracy at 50, 25 and 12 % of the image tokens.

python -m benchmarks answers [--questions 600]

The methods are those that the registry knows; the controls prefix-random, prefix-grid and downsample are always among
them, and methods that compare patches with the text run with and without the text encoder. A decoder method leaves the
budget behind its last site: early ones act behind the first layer of four, those with several sites at their own, with
equal shares. Questions are held out, one a canvas, six kinds in turn. ± is the standard error of the accuracy, and of
the loss that of the paired differences. Rows that the JSON file has are kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

import tokensieve as ts
from benchmarks.answers_report import report, share
from tokensieve.answers.cost import PromptCost, count_prompts
from tokensieve.answers.generate import answers_of
from tokensieve.answers.prompts import ProcessorPrompts
from tokensieve.answers.score import is_right
from tokensieve.answers.variants import CONTROLS, named, reduce
from tokensieve.data.questions import Question
from tokensieve.demo.questions.asking import held_out_kinds
from tokensieve.demo.questions.model import FEATURES, WEIGHTS, question_model, text_encoder
from tokensieve.demo.questions.words import processor
from tokensieve.errors import TokensieveError
from tokensieve.language.apply import encodes_text
from tokensieve.language.host import host_of
from tokensieve.methods._config import Config
from tokensieve.methods._spec import parse_placed
from tokensieve.methods.language._decoder import DecoderMethod, SeveralLayers
from tokensieve.methods.language._prefix import PrefixMethod
from tokensieve.utils.files import replacing

BUDGETS = (0.5, 0.25, 0.12)
DEPTH = 4  # layers of the decoder
DENSE = "dense"
MORE = {"prumerge": (":plus=true",), "cdpruner": (":theta=0",)}  # settings beside the default ones
Row = dict[str, Any]


def options(parser: argparse.ArgumentParser) -> None:
    """How many questions, where to."""
    parser.add_argument("--questions", type=int, default=600)
    parser.add_argument("--seed", type=int, default=100, help="of the canvases")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/answers-questions.md"))


def run(given: argparse.Namespace) -> None:
    """Measure what the file does not have, write the tables."""
    asked = held_out_kinds(given.questions, given.seed)
    weights = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:12]
    settings = {"questions": given.questions, "seed": given.seed, "torch": torch.__version__, "weights": weights}
    file = given.output.with_suffix(".json")
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    rows: list[Row] = known["rows"] if known.get("settings") == settings else []
    left_out: dict[str, str] = {}
    asker = Run(asked, given.batch)
    for budget, methods, encoded in variants():
        name = DENSE if not methods else named(methods, asker.encoder if encoded else None)
        if any(row["variant"] == name for row in rows):
            continue
        try:
            rows.append({"variant": name, "budget": budget} | asker.row(methods, encoded))
        except TokensieveError as error:
            left_out[name.partition(":")[0]] = " ".join(str(error).split())
            continue
        content = {"settings": settings, "rows": rows, "left_out": left_out, "kinds": [kind for kind, _ in asked]}
        with replacing(file) as beside:
            beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(name, rows[-1]["tokens"], round(100 * share(rows[-1]), 1), flush=True)
    with replacing(given.output) as beside:
        beside.write_text(
            report(
                rows,
                [kind for kind, _ in asked],
                left_out,
                f"python -m benchmarks answers --questions {given.questions}",
            ),
            encoding="utf-8",
        )


def variants() -> Iterator[tuple[float, tuple[Config, ...], bool]]:
    """Budget, methods, and whether the text encoder is given; the dense model, then the controls, then all others."""
    yield 1.0, (), False
    known = ts.list_language_methods()
    for name in (*CONTROLS, *(name for name in known if name not in CONTROLS)):
        for more in ("", *MORE.get(name, ())):
            for budget in BUDGETS:
                methods = parse_placed(spec_of(known[name], budget) + more)
                yield budget, methods, False
                if encodes_text(methods) and not more:
                    yield budget, methods, True


def spec_of(method: type[Config], budget: float) -> str:
    """A method at a budget."""
    name = method.name
    if issubclass(method, SeveralLayers):
        standard: Any = method
        sites = len(standard().layers(DEPTH)) if not isinstance(getattr(method, "keep", None), tuple) else 2
        return f"{name}:keep={round(budget ** (1 / sites), 4)}"
    if issubclass(method, DecoderMethod):
        return f"{name}:keep={budget}:layer=1"
    has = {field.name for field in fields(method)}  # type: ignore[arg-type]
    return f"{name}:tokens={round(budget * FEATURES)}" if "tokens" in has else name


class Run:
    """The question model, its prompts, and what is asked."""

    def __init__(self, asked: Sequence[tuple[str, Question]], batch: int) -> None:
        self.dense, self.encoder = question_model(), text_encoder()
        self.host = host_of(self.dense, "measuring")
        self.prompts = ProcessorPrompts(processor())
        questions = [question for _, question in asked]
        self.questions = [questions[start : start + batch] for start in range(0, len(questions), batch)]
        self.inputs = [self.prompts.batch(part) for part in self.questions]

    def row(self, methods: tuple[Config, ...], encoded: bool) -> Row:
        """The figures of a variant."""
        model = self.dense if not methods else reduce(self.dense, methods, self.encoder if encoded else None)
        right = ""
        for asked, inputs in zip(self.questions, self.inputs, strict=True):
            with torch.inference_mode():
                texts = self.prompts.texts(answers_of(model, self.host, inputs, tokens=4).tokens)
            right += "".join(str(int(is_right(text, one.answers))) for text, one in zip(texts, asked, strict=True))
        cost = count_prompts(model, [self.prompts.batch([part[0]]) for part in self.questions[:4]])
        return {"right": right, "place": place(methods), "reads_text": reads_text(methods)} | figures(cost)


def place(methods: Sequence[Config]) -> str:
    """Where a composition acts."""
    if not methods:
        return DENSE
    if methods[0].name in CONTROLS:
        return "control"
    if isinstance(methods[0], PrefixMethod):
        return "prefix"
    return "decoder" if isinstance(methods[0], DecoderMethod) else "input"


def reads_text(methods: Sequence[Config]) -> bool:
    """Whether the question changes what stays."""
    return any(isinstance(one, DecoderMethod) or getattr(one, "reads_text", False) for one in methods)


def figures(cost: PromptCost) -> Row:
    """Tokens and MACs of a prompt."""
    stages = [round(seen, 1) for _, seen in sorted(cost.stages.items())]
    return {
        "tokens": " → ".join(f"{seen:g}" for seen in stages),
        "mean_tokens": cost.mean_tokens,
        "gmacs": cost.first / 1e9,
    }
