"""Tokens of a closed set of texts: a whole word each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from tokensieve.errors import TokensieveError

END, IMAGE = 0, 1  # behind every label; holds the place of a feature
SPECIAL = ("<end>", "<image>")


@dataclass(frozen=True)
class Words:
    """A vocabulary of words.

    Attributes:
        known: the words, sorted; the first of them is token 2, behind those of the end and of a feature's place.
    """

    known: tuple[str, ...]

    @staticmethod
    def of(texts: Iterable[str]) -> Words:
        """All words of ``texts``, divided at spaces."""
        return Words(tuple(sorted({word for text in texts for word in text.split()})))

    def __len__(self) -> int:
        return len(SPECIAL) + len(self.known)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without an end.

        Raises:
            TokensieveError: it has a word that is not known, or none at all.
        """
        words = text.split()
        unknown = [word for word in words if word not in self._numbers]
        if unknown or not words:
            what = f"{unknown[0]!r}, which is none of its {len(self.known)}" if unknown else "no word"
            raise TokensieveError(f"a text for this vocabulary has {what}: got {text!r}")
        return [self._numbers[word] for word in words]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens up to the first end."""
        named = (*SPECIAL, *self.known)
        until = tokens.index(END) if END in tokens else len(tokens)
        return " ".join(named[token] for token in tokens[:until])

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.known, start=len(SPECIAL))}
