"""Lets the contract tests use selectors that nobody trained."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

import tokensieve as ts


@pytest.fixture(autouse=True)
def _untrained_selectors_are_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ts.TokensieveWarning)
        yield
