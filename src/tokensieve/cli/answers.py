"""The work of ``tokensieve bench`` and ``eval`` with ``--task answer``: vision-language models asked about images."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from rich.markup import escape
from rich.table import Table

from tokensieve.answers.benchmark import bench
from tokensieve.answers.options import ANSWER, BATCH_SIZE, MAX_NEW_TOKENS
from tokensieve.answers.prompts import ProcessorPrompts, Prompts, RandomPrompts, random_questions
from tokensieve.cli.bench import default_results_file, plot_beside, show_speeds, where_measured
from tokensieve.cli.options import BenchOptions, EvalOptions
from tokensieve.cli.output import metric_cell, new_table, note, progress_bars, show_table
from tokensieve.cli.run import finish, stoppable
from tokensieve.cli.specs import ALL
from tokensieve.data.questions import Question, read_questions
from tokensieve.errors import TokensieveError
from tokensieve.language.encoder import TextEncoder
from tokensieve.measure.results import DENSE, Results, Row, environment, open_results
from tokensieve.models.language import LanguageModel, load_language, load_two_towers
from tokensieve.models.options import RuntimeOptions
from tokensieve.models.runtime import Runtime
from tokensieve.utils.options import values_of

OF_IMAGES = (
    "pretrained", "checkpoint", "num_classes", "in_chans", "img_size", "crop_pct", "interpolation", "mean", "std",
    "dataset", "split", "class_map", "workers", "macs", "channels_last", "torchcompile", "cuda_graph", "head",
    "ignore_index", "reduce_zero_label", "max_depth", "depth_scale", "median_scaling", "eigen_crop", "slide", "stride",
)  # fmt: skip
RANDOM_PROMPTS = 8  # that a model with random weights is asked
PARTS = ("tower", "projector", "prefill", "token")


def bench_answers(options: BenchOptions) -> None:
    """Measure answers and the time to the first token, and print both."""
    batches = tuple(dict.fromkeys(options.speed_batch_size or (1,)))
    file = options.results_file or default_results_file(options.model)
    results = _measure(replace(options, results_file=file), batches, options.rounds)
    show_speeds(results, batches, speed_table)
    _plot(options, results, where_measured(results))
    finish(results)


def evaluate_answers(options: EvalOptions) -> None:
    """Measure answers and print the figures."""
    results = _measure(options, (), 0)
    _plot(options, results)
    finish(results)


def _measure(options: EvalOptions, batches: Sequence[int], rounds: int) -> Results:
    runtime = _check(options)
    questions = None if options.data is None else read_questions(options.data, options.limit)
    loaded = load_language(options.model, None if options.amp else options.model_dtype)
    prompts, questions = _prompts(options, loaded, questions)
    encoder = _encoder(options, prompts, runtime.device)
    settings = _settings(options, runtime, prompts, questions) | {"rounds": rounds}
    command = shlex.join(["tokensieve", *sys.argv[1:]])
    results = open_results(options.results_file, settings, command, resume=options.resume, force=options.force)
    results.environment = environment(runtime.device)
    with stoppable(results), progress_bars() as bars:
        bench(
            loaded.model,
            prompts,
            questions,
            options.method,
            results,
            text_encoder=encoder,
            runtime=runtime,
            batch_size=settings["batch_size"],
            max_new_tokens=settings["max_new_tokens"],
            batches=batches,
            rounds=rounds,
            progress=bars,
        )
    show_table(answer_table(results.rows, f"{options.model}, {len(questions)} questions"))
    for name, reason in results.left_out.items():
        note(f"left out: {name}: {reason}")
    return results


def _check(options: EvalOptions) -> Runtime:
    """Refuse what needs no model to be refused; how models run."""
    options.check_task()
    defaults = {field.name: field.default for field in fields(EvalOptions)}
    given = next((name for name in OF_IMAGES if getattr(options, name) != defaults[name]), None)
    if given is not None:
        raise TokensieveError(
            f"--{given.replace('_', '-')} has no meaning for --task {ANSWER}, whose models come with their processor "
            "and run as they are: leave it out"
        )
    if ALL in options.method:
        raise TokensieveError(
            "'all' says nothing of how many image tokens stay: name the methods, such as divprune:keep=0.25"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TokensieveError(f"--task {ANSWER} runs in one process: start the command without a launcher")
    runtime = Runtime(**values_of(options, RuntimeOptions))
    runtime.check()
    return runtime


def _prompts(
    options: EvalOptions, loaded: LanguageModel, questions: list[Question] | None
) -> tuple[Prompts, list[Question]]:
    """Who makes prompts, and of what."""
    if questions is not None:
        if loaded.processor is None:
            raise TokensieveError(
                f"no processor lies beside {options.model}, which questions need: put there what "
                "processor.save_pretrained writes, or leave --data out for random prompts"
            )
        if loaded.random:
            note("the weights are random: costs and speed hold, answers do not")
        return ProcessorPrompts(loaded.processor), questions
    if not loaded.random:
        raise TokensieveError(
            f"--task {ANSWER} needs questions: give --data FOLDER with questions.jsonl in it, a line with image, "
            "question and answer for each"
        )
    note("weights and prompts are random: costs and speed hold, agreement does not")
    return RandomPrompts(loaded.model), random_questions(options.limit or RANDOM_PROMPTS)


def _encoder(options: EvalOptions, prompts: Prompts, device: str) -> TextEncoder | None:
    if options.text_encoder is None:
        return None
    if not isinstance(prompts, ProcessorPrompts):
        raise TokensieveError("--text-encoder reads the words of prompts, and these are random: give --data FOLDER")
    return text_encoder_of(options.text_encoder, prompts, device)


def text_encoder_of(name: str, prompts: ProcessorPrompts, device: str) -> TextEncoder:
    """The two towers called ``name``, beside a model that ``prompts`` are made for."""
    towers, tokenizer = load_two_towers(name)
    return TextEncoder(towers.to(device), tokenizer, prompts.tokenizer)


def _settings(
    options: EvalOptions, runtime: Runtime, prompts: Prompts, questions: Sequence[Question]
) -> dict[str, Any]:
    """What the figures depend on, apart from the variants and what is timed."""
    asked = repr([(one.question, one.answers, one.place) for one in questions])
    return {
        "task": ANSWER,
        "model": options.model,
        "data": options.data,
        "questions": f"{len(questions)} ({hashlib.sha256(asked.encode()).hexdigest()[:12]})",
        "text_encoder": options.text_encoder,
        "batch_size": options.batch_size or BATCH_SIZE,
        "max_new_tokens": options.max_new_tokens or MAX_NEW_TOKENS,
        "device": runtime.device,
        "amp": runtime.amp,
        "dtype": runtime.dtype,
        **prompts.settings(),
    }


def answer_table(rows: Sequence[Row], title: str) -> Table:
    """Costs, accuracy and agreement of every variant."""
    table = new_table(title)
    table.add_column("variant", overflow="fold")
    lead = [name for name in ("accuracy", "accuracy ±", "agree", "KL") if any(name in row.metrics for row in rows)]
    shown = ["±" if name == "accuracy ±" else name for name in lead]
    for name in (*shown, "image tokens", "GMACs", "F", *PARTS, "cache MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            escape(row.variant),
            *(_figure(row, name) for name in lead),
            " → ".join(f"{seen:g}" for seen in _tokens(row)),
            _giga(row.gmacs),
            f"{row.F:.2f}",
            *(_giga(row.metrics[f"{part} GMACs"]) for part in PARTS),
            metric_cell(row.metrics["cache MB"]),
            style="bold" if row.variant == DENSE else None,
        )
    table.caption = (
        "GMACs to the first token: tower, projector and prefill; token: one decoded behind it\n"
        "right is what equals an accepted answer in lower case and without punctuation; ± its standard error\n"
        "agree: the same tokens as the dense model; KL of the first token's distribution, in nats"
    )
    table.caption_justify = "left"
    return table


def _figure(row: Row, name: str) -> str:
    """A figure of answers: percent, or nats."""
    value = row.metrics.get(name)
    return "–" if value is None else f"{value:.4f}" if name == "KL" else f"{value:.2f}"


def _giga(value: float) -> str:
    """Giga multiply-accumulates, of small models too."""
    return f"{value:.3f}" if value >= 0.1 else f"{value:.2g}"


def _tokens(row: Row) -> list[float]:
    """Image tokens in front of the decoder, and behind each stage of it."""
    return [round(value, 1) for name, value in row.metrics.items() if name.startswith("image tokens")]


def speed_table(rows: Sequence[Row], batch: int) -> Table:
    """Speed of every variant at one batch size, with its accuracy beside it."""
    table = new_table(f"Speed at batch {batch}")
    table.add_column("variant", overflow="fold")
    lead = next(iter(rows[0].metrics))
    for name in (lead, "first token ms", "S", "F", "S/F", "tokens/s", "peak MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        speed = next((one for one in row.speed if one.batch == batch), None)
        if speed is None:
            continue
        table.add_row(
            escape(row.variant),
            _figure(row, lead),
            f"{1000 * batch / speed.images_per_second:.1f}" + (" ~" if speed.noisy else ""),
            f"{speed.S:.2f}",
            f"{row.F:.2f}",
            f"{speed.S_over_F:.2f}",
            "–" if speed.tokens_per_second is None else f"{speed.tokens_per_second:.1f}",
            f"{speed.peak_memory / 1e6:.1f}",
            style="bold" if row.variant == DENSE else None,
        )
    notes = [
        "S speed-up of the first token over dense, F dense MACs over these",
        "tokens/s: of all prompts, behind the first token",
    ]
    if any(one.noisy for row in rows for one in row.speed if one.batch == batch):
        notes.append("~ noisy: the rounds lie more than 10 % apart, or are fewer than 4")
    table.caption = "\n".join(notes)
    table.caption_justify = "left"
    return table


def _plot(options: EvalOptions, results: Results, setting: str = "") -> None:
    title = f"{options.model} on {results.images} questions{setting}"
    plot_beside(results, title, rate="first tokens/s", cost="GMACs to the first token", unit=" (%)")
