"""Exporting a model with its methods to a file that runs without tokensieve, checked before it is kept."""

from tokensieve.export.run import FORMATS, Exported, export

__all__ = ["FORMATS", "Exported", "export"]
