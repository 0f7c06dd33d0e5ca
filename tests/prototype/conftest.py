"""Runs of training on random pictures, as tests/train makes them."""

from tests.train.conftest import arguments, pictures

__all__ = ["arguments", "pictures"]
