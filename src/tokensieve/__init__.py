"""tokensieve makes any Vision Transformer cheaper by acting on its tokens: skip, prune, merge, and give them back.

>>> import timm, tokensieve as ts
>>> model = timm.create_model("deit_small_patch16_224", pretrained=True)
>>> ts.apply(model, ts.BAT(keep=0.72))
"""

from tokensieve import backbones as backbones  # their names enter timm's registry
from tokensieve._version import VERSION as __version__
from tokensieve.checkpoint import SievedModel, from_pretrained, load, push_to_hub, save
from tokensieve.decision import Assignment, KeepMask, SoftAssignment
from tokensieve.engine import applied, apply, is_applied, remove
from tokensieve.errors import RefusedError, TokensieveError, TokensieveWarning
from tokensieve.export import export
from tokensieve.family import Family
from tokensieve.measure.plan import SpeedPlan, plan
from tokensieve.method import Method
from tokensieve.record import Trace, trace
from tokensieve.registry import families, methods
from tokensieve.spec import method, spell, sweep
from tokensieve.tokens import Tokens
from tokensieve.view import Layout, View

# Every method is reachable by its class name, so that a new file in methods/ needs no line here.
globals().update({cls.__name__: cls for cls in methods().values()})

__all__ = [
    "Assignment", "Family", "KeepMask", "Layout", "Method", "RefusedError", "SievedModel", "SoftAssignment",
    "SpeedPlan", "TokensieveError", "TokensieveWarning", "Tokens", "Trace", "View", "__version__", "applied", "apply",
    "export", "families", "from_pretrained", "is_applied", "load", "method", "methods", "plan", "push_to_hub", "remove",
    "save", "spell", "sweep", "trace", *sorted(cls.__name__ for cls in methods().values()),
]  # fmt: skip
