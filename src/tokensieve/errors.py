"""The two exceptions and the one warning category of the library."""

from __future__ import annotations


class TokensieveError(ValueError):
    """Wrong input: the message names what was given, what was expected and what to do."""


class RefusedError(TokensieveError):
    """A model or a composition that the library cannot reduce exactly, with the reason."""


class TokensieveWarning(UserWarning):
    """Something works, but not as well as the caller may believe."""
