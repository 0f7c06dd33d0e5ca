"""One file a method; found by walking this folder, listed nowhere.

A method of another package takes what it is written with from here: ``from tokensieve.methods import Method, View``.
"""

from tokensieve.utils.lazy import Face as _Face

_face = _Face(
    __name__,
    {
        "tokensieve.families._layout": ["Layout"],
        "tokensieve.methods._config": ["require"],
        "tokensieve.methods._counts": [
            "checked_sites",
            "inflected",
            "kept",
            "nearest_share",
            "per_site",
            "removed",
            "scaled_sites",
            "share_of_all",
        ],
        "tokensieve.methods._method": ["Method", "Point"],
        "tokensieve.methods._registry": ["list_methods"],
        "tokensieve.methods._spec": ["parse", "spell", "sweep"],
        "tokensieve.methods._threshold": ["Threshold"],
        "tokensieve.methods._view": ["Signal", "View", "importance_signal"],
        "tokensieve.methods.controls": ["Pruning"],
        "tokensieve.tokens.decision": [
            "Assignment",
            "Decision",
            "KeepMask",
            "Until",
            "keep_only",
            "ragged",
            "ragged_merge",
        ],
        "tokensieve.tokens.rider": ["Moment", "Rider"],
        "tokensieve.tokens.soft": ["Blend", "Mixing", "SoftAssignment"],
        "tokensieve.tokens.table": ["Extra"],
    },
)
__getattr__, __dir__ = _face.get, _face.listed
