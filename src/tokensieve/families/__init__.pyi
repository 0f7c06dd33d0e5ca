# Written by scripts/generate_faces.py from the table in __init__.py; run `make docs`.
from tokensieve.families._family import BlockMacs as BlockMacs
from tokensieve.families._family import Family as Family
from tokensieve.families._family import linear_macs as linear_macs
from tokensieve.families._halves import Halves as Halves
from tokensieve.families._halves import HalvesFamily as HalvesFamily
from tokensieve.families._layout import Layout as Layout
from tokensieve.families._locate import list_families as list_families
from tokensieve.families._modules import norm_of as norm_of
from tokensieve.families._modules import through as through
from tokensieve.families._reading import Reader as Reader
from tokensieve.families._reading import Reading as Reading
from tokensieve.families._transformers import TransformersFamily as TransformersFamily

__all__ = [
    "BlockMacs",
    "Family",
    "Halves",
    "HalvesFamily",
    "Layout",
    "Reader",
    "Reading",
    "TransformersFamily",
    "linear_macs",
    "list_families",
    "norm_of",
    "through",
]
