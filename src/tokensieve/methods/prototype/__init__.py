"""Reconstructions: methods whose sources say less than one needs. Tables tell them apart from the others."""
