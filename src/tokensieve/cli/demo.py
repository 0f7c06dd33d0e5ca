"""The work of ``tokensieve demo``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import typer

from tokensieve.cli.answers import answer_table
from tokensieve.cli.answers import speed_table as answer_speed_table
from tokensieve.cli.output import accuracy_table, note, progress_bars, show_table, speed_table
from tokensieve.demo import run
from tokensieve.demo.options import DemoOptions
from tokensieve.errors import TokensieveError
from tokensieve.measure.plot import pareto
from tokensieve.measure.results import Results


def demo(options: DemoOptions) -> None:
    """Measure and draw what the demo shows, and print it."""
    output, pretrained, rounds = options.output, options.pretrained, options.rounds
    if output.exists() and not output.is_dir():
        raise TokensieveError(f"cannot write to {str(output)!r}: it is a file; give the name of a folder")
    if output.exists() and any(output.iterdir()) and not options.force:
        raise TokensieveError(
            f"{str(output)!r} exists and is not empty: give another --output, or --force to replace it"
        )
    with _filling(output) as beside:
        subject = run.choose(pretrained, options.images)
        settled = run.settle_threads(subject)
        if settled is not None:
            note(settled)
        results = Results(settings={"model": pretrained or "tokensieve_digits_vit", "dtype": "float32"}, command="demo")
        results.file = beside / "demo.json"
        with progress_bars() as bars:
            chosen = run.variants(subject, bars)
            run.measure(subject, chosen, results, rounds, bars, options.timing_seconds)
            run.draw(subject, chosen, beside / "tokens.png", bars)
        for line in run.cut_short(results, rounds):
            note(line)
        if not subject.labelled:
            for row in results.rows:
                row.top1 = row.top5 = None
        show_table(accuracy_table(results.rows, f"{results.settings['model']}, {results.images} images"))
        for batch in (16, 1):
            show_table(speed_table(results.rows, batch))
        pareto(results.rows, beside / "pareto.png", "accuracy against speed and MACs", 16)
        asked = pretrained is None and options.questions > 0 and ask(options.questions, rounds, beside)
    pictures = ("pareto.png", "tokens.png", *(["questions.png"] if asked else []))
    show = " and ".join(str(output / name) for name in pictures)
    typer.echo(f"Look at {show}; the figures are in {output / 'demo.json'}.")
    typer.echo("On your own model and images:")
    typer.echo("  tokensieve bench MODEL --pretrained --data FOLDER --method bat:keep=0.72 --method tome:r=8,13")
    typer.echo("  tokensieve show MODEL IMAGE --pretrained --method bat --output tokens.png")


def ask(count: int, rounds: int, folder: Path) -> bool:
    """The question model: its tables on standard output, rows and a picture into ``folder``; whether it could run."""
    if find_spec("transformers") is None:
        note("the question model is left out, it needs transformers: pip install 'tokensieve[transformers]'")
        return False
    from tokensieve.demo.questions.run import questions_drawn, questions_measured

    results = Results(settings={"model": "question model", "questions": count, "dtype": "float32"}, command="demo")
    results.file = folder / "questions.json"
    with progress_bars() as bars:
        questions_measured(count, rounds, results, bars)
        questions_drawn(folder / "questions.png", bars)
    show_table(answer_table(results.rows, f"question model, a small LLaVA: {count} questions"))
    show_table(answer_speed_table(results.rows, 1))
    return True


@contextmanager
def _filling(folder: Path) -> Iterator[Path]:
    """A folder inside ``folder`` whose files take their places there when the block ends well; else nothing is left."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as name:
            yield Path(name)
            for file in Path(name).iterdir():
                file.replace(folder / file.name)
    except BaseException:
        if new and not any(folder.iterdir()):
            folder.rmdir()
        raise
