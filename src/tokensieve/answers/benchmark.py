"""The measurement of a vision-language model: dense, reduced variants and their controls, in one run."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from tokensieve.answers.cost import count_prompts, image_tokens
from tokensieve.answers.generate import Generated, answers_of
from tokensieve.answers.options import BATCH_SIZE, MAX_NEW_TOKENS
from tokensieve.answers.prompts import Inputs, ProcessorPrompts, Prompts, placed
from tokensieve.answers.score import AnswerMeters, is_right
from tokensieve.answers.timing import autocast, time_answers
from tokensieve.answers.variants import AnswerVariant, controls_of, named, reduce, refuse_reduced
from tokensieve.data.questions import Question
from tokensieve.data.stream import evenly
from tokensieve.errors import TokensieveError, TokensieveWarning
from tokensieve.language.encoder import TextEncoder
from tokensieve.language.host import Host, host_of
from tokensieve.measure.progress import Progress, Silent
from tokensieve.measure.results import DENSE, Results, Row, environment
from tokensieve.methods._config import Config
from tokensieve.methods._spec import sweep_placed
from tokensieve.models.runtime import Runtime

COUNTED_PROMPTS = 8  # that MACs and tokens are averaged over
Variants = Sequence[str | Config | Sequence[Config]]


def bench(
    dense: nn.Module,
    prompts: Any,
    questions: Sequence[Question],
    methods: Variants,
    results: Results | None = None,
    *,
    text_encoder: TextEncoder | None = None,
    runtime: Runtime | None = None,
    batch_size: int = BATCH_SIZE,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batches: Sequence[int] = (),
    rounds: int = 10,
    progress: Progress | None = None,
) -> Results:
    """Measure a dense vision-language model, variants of it, and beside them always their controls.

    Behind each variant come ``prefix-random``, ``prefix-grid`` and ``downsample`` at the same number of image tokens
    (``controls_of``), unless they are rows already; a control that the model refuses is named in
    ``results.left_out``. Each row has the cost of a prompt (``PromptCost``), accuracy and agreement with the dense
    model (``AnswerMeters``) and, where ``batches`` are given, the time to the first token. ``gmacs`` and ``F`` of a
    row are of everything up to the first token. Rows are written as soon as they are complete, and those that
    ``results`` has are kept.

    Args:
        dense: of transformers, without methods. It is moved to the device of ``runtime``.
        prompts: its processor, or ``Prompts``.
        questions: what is asked; those without answers give agreement alone.
        methods: specs, which may sweep ("divprune:keep=0.25,0.5"), methods, or compositions of them.
        results: where the rows go; default in memory.
        text_encoder: for methods that compare patches with the text by one (cdpruner, eadp, recoverable).
        runtime: device and precision; default float32 on the CPU.
        batch_size: prompts at a time for accuracy.
        max_new_tokens: of an answer.
        batches: batch sizes to time; none for accuracy alone.
        rounds: timings of each model.
        progress: is told how far it got.

    Raises:
        TokensieveError: no questions, or a variant that the model refuses.
    """
    if not questions:
        raise TokensieveError("there is no question to compare models on")
    refuse_reduced(dense)
    run = Answering(
        dense, prompts, questions, text_encoder, runtime or Runtime(), batch_size, max_new_tokens, progress or Silent()
    )
    results = Results({}) if results is None else results
    results.environment = environment(run.runtime.device)
    wanted = compositions(methods)
    asked = {named(one, text_encoder) for one in wanted}
    variants = run.counted(wanted, results)
    run.answer(variants, results)
    for batch in batches:
        run.time(variants, results, batch, rounds)
    _warn_of_later(results, asked, batches)
    return results


def _warn_of_later(results: Results, asked: Collection[str], batches: Collection[int]) -> None:
    """Warn of every variant that was asked for and comes to its first token later than the dense model."""
    for row in results.rows:
        for entry in row.speed:
            if entry.S < 1 and entry.batch in batches and row.variant in asked:
                warnings.warn(
                    f"{row.variant} comes later to its first token than the dense model at batch {entry.batch} "
                    f"({entry.S:.2f} times its speed)",
                    TokensieveWarning,
                    stacklevel=3,
                )


def compositions(methods: Variants) -> list[tuple[Config, ...]]:
    """Every composition that is asked for."""
    found: list[tuple[Config, ...]] = []
    for one in methods:
        if isinstance(one, str):
            found += sweep_placed(one)
        else:
            found.append((one,) if isinstance(one, Config) else tuple(one))
    return found


class Answering:
    """The measurement of one model; see ``bench`` for what it is given."""

    def __init__(
        self,
        dense: nn.Module,
        prompts: Any,
        questions: Sequence[Question],
        text_encoder: TextEncoder | None,
        runtime: Runtime,
        batch_size: int,
        max_new_tokens: int,
        progress: Progress,
    ) -> None:
        self.dense, self.questions, self.encoder = runtime.place(dense).eval(), questions, text_encoder
        self.prompts: Prompts = prompts if isinstance(prompts, Prompts) else ProcessorPrompts(prompts)
        self.runtime, self.batch_size, self.tokens = runtime, batch_size, max_new_tokens
        self.progress = progress
        self.host: Host = host_of(dense, "measuring")
        self.answered = all(question.answers for question in questions)
        dtypes = {parameter.dtype for parameter in dense.parameters() if parameter.is_floating_point()}
        self.dtype = min(dtypes, key=lambda dtype: dtype.itemsize)

    def inputs(self, questions: Sequence[Question]) -> Inputs:
        """The prompts of some questions, on the device and in the dtype of the model."""
        return placed(self.prompts.batch(questions), self.runtime.device, self.dtype)

    # MACs and tokens

    def counted(self, wanted: Sequence[tuple[Config, ...]], results: Results) -> list[AnswerVariant]:
        """The dense model, the variants and their controls, with what a prompt costs each."""
        places = evenly(len(self.questions), COUNTED_PROMPTS)
        sample = [self.inputs([self.questions[place]]) for place in places]
        alike = len({image_tokens(self.host, inputs["input_ids"]) for inputs in sample}) == 1
        found: dict[str, AnswerVariant] = {}

        def add(name: str, model: nn.Module) -> None:
            with autocast(self.runtime):
                found[name] = AnswerVariant(name, model, count_prompts(model, sample))

        self.progress.start("counting MACs", len(wanted) + 1)
        add(DENSE, self.dense)
        for methods in wanted:
            self.progress.advance()
            name = named(methods, self.encoder)
            if name not in found:
                add(name, reduce(self.dense, methods, self.encoder))
            for control in controls_of(found[name].cost, alike):
                if str(control) in found:
                    continue
                try:
                    add(str(control), reduce(self.dense, (control,)))
                except TokensieveError as error:
                    results.left_out[str(control)] = " ".join(str(error).split())
        return list(found.values())

    # Accuracy and agreement

    def answer(self, variants: Sequence[AnswerVariant], results: Results) -> None:
        """Let every variant that has no row yet answer; the dense model comes first, and its answers are kept."""
        pending = [variant for variant in variants if results.find(variant.name) is None]
        if not pending:
            return
        expected: list[Generated] = []
        dense = variants[0].cost.first
        for variant in [variants[0], *(one for one in pending if one.name != DENSE)]:
            self.progress.start(variant.name, len(self.questions))
            meters = AnswerMeters()
            for number, (asked, found) in enumerate(self._answers(variant.model)):
                if variant.name == DENSE:
                    expected.append(found)
                self._judge(meters, asked, found, expected[number])
            cost = variant.cost
            metrics = meters.compute() | cost.figures()
            if results.find(variant.name) is None:
                results.put(Row(variant.name, cost.first / 1e9, dense / cost.first, meters.count, metrics=metrics))

    def _answers(self, model: nn.Module) -> Iterator[tuple[Sequence[Question], Generated]]:
        for start in range(0, len(self.questions), self.batch_size):
            asked = self.questions[start : start + self.batch_size]
            with torch.inference_mode(), autocast(self.runtime):
                yield asked, answers_of(model, self.host, self.inputs(asked), self.tokens)
            self.progress.advance(len(asked))

    def _judge(self, meters: AnswerMeters, asked: Sequence[Question], found: Generated, expected: Generated) -> None:
        same = [own == dense for own, dense in zip(found.tokens, expected.tokens, strict=True)]
        right: list[bool] = []
        if self.answered:
            texts = self.prompts.texts(found.tokens)
            right = [is_right(text, question.answers) for text, question in zip(texts, asked, strict=True)]
        meters.update(found.first, expected.first, same, right)

    # Time

    def time(self, variants: Sequence[AnswerVariant], results: Results, batch: int, rounds: int) -> None:
        """Time every variant that has no figures at a batch size yet, beside the dense model."""
        rows = {row.variant: row for row in results.rows}
        pending = [one for one in variants if all(speed.batch != batch for speed in rows[one.name].speed)]
        if not pending:
            return
        inputs = self.inputs([self.questions[number % len(self.questions)] for number in range(batch)])
        models = {DENSE: self.dense} | {variant.name: variant.model for variant in pending}
        timed = time_answers(models, self.host, inputs, self.runtime, max(self.tokens, 2), rounds, self.progress)
        for variant in pending:
            row = rows[variant.name]
            row.speed.append(timed.speed(variant.name, row.F))
            results.put(row)
