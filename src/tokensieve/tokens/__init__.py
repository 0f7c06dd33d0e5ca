"""The state between two blocks and its algebra; needs no model."""

from tokensieve.utils.lazy import Face as _Face

_face = _Face(
    __name__,
    {
        "tokensieve.tokens.decision": [
            "Assignment",
            "Decision",
            "KeepMask",
            "keep_only",
            "ragged",
            "ragged_merge",
        ],
        "tokensieve.tokens.soft": ["Blend", "Mixing", "SoftAssignment"],
        "tokensieve.tokens.algebra": ["apply"],
        "tokensieve.tokens.node": ["register"],
        "tokensieve.tokens.rider": ["Moment", "Rider"],
        "tokensieve.tokens.state": ["Tokens"],
        "tokensieve.tokens.table": ["Extra"],
    },
)
__getattr__, __dir__ = _face.get, _face.listed
