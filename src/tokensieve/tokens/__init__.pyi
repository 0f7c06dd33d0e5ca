# Written by scripts/generate_faces.py from the table in __init__.py; run `make docs`.
from tokensieve.tokens.algebra import apply as apply
from tokensieve.tokens.decision import Assignment as Assignment
from tokensieve.tokens.decision import Decision as Decision
from tokensieve.tokens.decision import KeepMask as KeepMask
from tokensieve.tokens.decision import keep_only as keep_only
from tokensieve.tokens.decision import ragged as ragged
from tokensieve.tokens.decision import ragged_merge as ragged_merge
from tokensieve.tokens.node import register as register
from tokensieve.tokens.rider import Moment as Moment
from tokensieve.tokens.rider import Rider as Rider
from tokensieve.tokens.soft import Blend as Blend
from tokensieve.tokens.soft import Mixing as Mixing
from tokensieve.tokens.soft import SoftAssignment as SoftAssignment
from tokensieve.tokens.state import Tokens as Tokens
from tokensieve.tokens.table import Extra as Extra

__all__ = [
    "Assignment",
    "Blend",
    "Decision",
    "Extra",
    "KeepMask",
    "Mixing",
    "Moment",
    "Rider",
    "SoftAssignment",
    "Tokens",
    "apply",
    "keep_only",
    "ragged",
    "ragged_merge",
    "register",
]
