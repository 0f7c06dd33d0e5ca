"""The work of ``tokensieve show`` with a question: which patches a vision-language model keeps to answer it."""

from __future__ import annotations

from dataclasses import fields

from tokensieve.answers.options import MAX_NEW_TOKENS
from tokensieve.answers.prompts import ProcessorPrompts
from tokensieve.cli.answers import text_encoder_of
from tokensieve.cli.options import ShownModelOptions
from tokensieve.cli.output import note, progress_bars
from tokensieve.errors import TokensieveError
from tokensieve.methods._spec import sweep_placed
from tokensieve.models.language import load_language
from tokensieve.show.answers import answer_rows
from tokensieve.show.images import read_image
from tokensieve.show.write import write_rows

SHARED = ("model", "images", "method", "question", "output", "force", "device", "max_new_tokens", "text_encoder")


def show_answers(options: ShownModelOptions) -> None:
    """Draw the picture and write it."""
    other = [field for field in fields(ShownModelOptions) if field.name not in SHARED]
    given = next((field.name for field in other if getattr(options, field.name) != field.default), None)
    if given is not None:
        raise TokensieveError(
            f"--{given.replace('_', '-')} has no meaning beside --question: a vision-language model comes with its "
            "processor, and all of its sites are shown; leave it out"
        )
    variants = [variant for spec in options.method for variant in sweep_placed(spec)]
    opened = [(path.name, read_image(path)) for path in options.images]
    loaded = load_language(options.model)
    if loaded.processor is None:
        raise TokensieveError(
            f"no processor lies beside {options.model}, which questions need: put there what processor.save_pretrained "
            "writes"
        )
    if loaded.random:
        note("the weights are random: give a model with weights to see a trained one")
    prompts = ProcessorPrompts(loaded.processor)
    named = options.text_encoder
    encoder = None if named is None else text_encoder_of(named, prompts, options.device)
    with progress_bars() as bars:
        bars.start("running", len(opened) * max(len(variants), 1))
        rows = answer_rows(
            loaded.model.to(options.device),
            prompts,
            opened,
            options.question,
            variants,
            text_encoder=encoder,
            max_new_tokens=options.max_new_tokens or MAX_NEW_TOKENS,
            step=bars.advance,
        )
    write_rows(rows, options.output, f"{options.model}: which patches stay", options.force)
    note(f"written: {options.output}")
