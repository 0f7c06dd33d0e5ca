"""The question model with a quarter of its image tokens: four methods beside dense, and what they keep for whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokensieve.answers.benchmark import bench
from tokensieve.answers.prompts import ProcessorPrompts
from tokensieve.demo.questions.asking import held_out
from tokensieve.demo.questions.canvases import canvas
from tokensieve.demo.questions.model import FEATURES, question_model, text_encoder
from tokensieve.demo.questions.words import processor
from tokensieve.measure.progress import Progress
from tokensieve.measure.results import Results
from tokensieve.methods._spec import parse_placed
from tokensieve.show.answers import answer_rows
from tokensieve.show.write import write_rows

TOKENS = FEATURES // 4
METHODS = ("divprune", "cdpruner", "eadp", "prefix-random")
SHOWN = ("eadp", "divprune")
"""The methods that are drawn: one that reads the question, one that does not."""
DRAWN = 7  # the canvas, among the held-out ones of the seed
SEED = 7
ANSWER_TOKENS = 4


def questions_measured(count: int, rounds: int, results: Results, progress: Progress) -> Results:
    """Accuracy on ``count`` held-out questions and time to the first token, dense, by method, and by control."""
    specs = [f"{name}:tokens={TOKENS}" for name in METHODS]
    return bench(
        question_model(),
        ProcessorPrompts(processor()),
        held_out(count, SEED),
        specs,
        results,
        text_encoder=text_encoder(),
        max_new_tokens=ANSWER_TOKENS,
        batches=(1,),
        rounds=rounds,
        progress=progress,
    )


def questions_drawn(output: Path, progress: Progress) -> None:
    """One picture: the patches that stay of a canvas for two questions, side by side, by method."""
    seen = canvas("val", SEED, DRAWN)
    first, *_, last = seen.things
    questions = [f"what colour is the {first.kind}?", f"where is the {last.colour} one?"]
    variants = [parse_placed(f"{name}:tokens={TOKENS}") for name in SHOWN]
    progress.start("drawing what stays for two questions", len(variants))
    model: Any = question_model()
    rows = answer_rows(
        model,
        ProcessorPrompts(processor()),
        [("canvas", seen.picture)],
        questions,
        variants,
        text_encoder=text_encoder(),
        max_new_tokens=ANSWER_TOKENS,
        step=progress.advance,
    )
    write_rows(rows, output, "what stays of a canvas for two questions", True)
