# Written by scripts/generate_faces.py from the table in __init__.py; run `make docs`.
from tokensieve.families._layout import Layout as Layout
from tokensieve.methods._config import require as require
from tokensieve.methods._counts import checked_sites as checked_sites
from tokensieve.methods._counts import inflected as inflected
from tokensieve.methods._counts import kept as kept
from tokensieve.methods._counts import nearest_share as nearest_share
from tokensieve.methods._counts import per_site as per_site
from tokensieve.methods._counts import removed as removed
from tokensieve.methods._counts import scaled_sites as scaled_sites
from tokensieve.methods._counts import share_of_all as share_of_all
from tokensieve.methods._method import Method as Method
from tokensieve.methods._method import Point as Point
from tokensieve.methods._registry import list_methods as list_methods
from tokensieve.methods._spec import parse as parse
from tokensieve.methods._spec import spell as spell
from tokensieve.methods._spec import sweep as sweep
from tokensieve.methods._threshold import Threshold as Threshold
from tokensieve.methods._view import Signal as Signal
from tokensieve.methods._view import View as View
from tokensieve.methods._view import importance_signal as importance_signal
from tokensieve.methods.controls import Pruning as Pruning
from tokensieve.tokens.decision import Assignment as Assignment
from tokensieve.tokens.decision import Decision as Decision
from tokensieve.tokens.decision import KeepMask as KeepMask
from tokensieve.tokens.decision import Until as Until
from tokensieve.tokens.decision import keep_only as keep_only
from tokensieve.tokens.decision import ragged as ragged
from tokensieve.tokens.decision import ragged_merge as ragged_merge
from tokensieve.tokens.rider import Moment as Moment
from tokensieve.tokens.rider import Rider as Rider
from tokensieve.tokens.soft import Blend as Blend
from tokensieve.tokens.soft import Mixing as Mixing
from tokensieve.tokens.soft import SoftAssignment as SoftAssignment
from tokensieve.tokens.table import Extra as Extra

__all__ = [
    "Assignment",
    "Blend",
    "Decision",
    "Extra",
    "KeepMask",
    "Layout",
    "Method",
    "Mixing",
    "Moment",
    "Point",
    "Pruning",
    "Rider",
    "Signal",
    "SoftAssignment",
    "Threshold",
    "Until",
    "View",
    "checked_sites",
    "importance_signal",
    "inflected",
    "keep_only",
    "kept",
    "list_methods",
    "nearest_share",
    "parse",
    "per_site",
    "ragged",
    "ragged_merge",
    "removed",
    "require",
    "scaled_sites",
    "share_of_all",
    "spell",
    "sweep",
]
