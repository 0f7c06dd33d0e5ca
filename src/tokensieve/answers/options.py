"""How a vision-language model answers: the options of the commands that ask it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tokensieve.utils.options import Option

ANSWER = "answer"
BATCH_SIZE, MAX_NEW_TOKENS = 8, 16
PANEL = "Questions about images"


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How long answers are, and what text-guided methods compare patches by; None means the default."""

    max_new_tokens: Annotated[
        int | None, Option("Tokens of an answer at most. Default: 16.", min=1, metavar="N", panel=PANEL)
    ] = None
    text_encoder: Annotated[
        str | None,
        Option(
            "The CLIP or SigLIP whose vision tower is the model's, for cdpruner, eadp and recoverable: hf:owner/model, "
            "or a folder. Default: they compare with the language model's embeddings.",
            metavar="MODEL",
            panel=PANEL,
        ),
    ] = None
