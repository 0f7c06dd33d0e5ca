"""The gentlest setting that is as fast as asked for."""

from tokensieve.utils.lazy import Face as _Face

_face = _Face(
    __name__,
    {
        "tokensieve.plan.latency": ["Latency"],
        "tokensieve.plan.plan": ["SpeedPlan", "make_plan"],
    },
)
__getattr__, __dir__ = _face.get, _face.listed
