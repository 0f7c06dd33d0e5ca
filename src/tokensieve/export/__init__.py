"""Exporting a model with its methods to a file that runs without tokensieve, checked before it is kept."""

from tokensieve.export.run import FORMATS as FORMATS
from tokensieve.export.run import Exported as Exported
from tokensieve.export.run import export_model as export_model

__all__ = ["FORMATS", "Exported", "export_model"]
