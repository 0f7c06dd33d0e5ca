# Written by scripts/generate_faces.py from the table in __init__.py; run `make docs`.
from tokensieve.export.check import Agreement as Agreement
from tokensieve.export.format import Format as Format
from tokensieve.export.run import FORMATS as FORMATS
from tokensieve.export.run import Exported as Exported
from tokensieve.export.run import export_model as export_model

__all__ = [
    "FORMATS",
    "Agreement",
    "Exported",
    "Format",
    "export_model",
]
