"""The state between two blocks and its algebra; needs no model."""
