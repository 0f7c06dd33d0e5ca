# Written by scripts/generate_faces.py from the table in __init__.py; run `make docs`.
from tokensieve.language.labeller import Label as Label
from tokensieve.language.labeller import Labeller as Labeller
from tokensieve.language.words import Words as Words

__all__ = [
    "Label",
    "Labeller",
    "Words",
]
