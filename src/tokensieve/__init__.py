"""tokensieve makes any Vision Transformer cheaper by acting on its tokens: skip, prune, merge, and give them back.

>>> import timm, tokensieve as ts
>>> model = timm.create_model("deit_small_patch16_224", pretrained=True)
>>> ts.apply(model, ts.BAT(keep=0.72))
"""

from tokensieve._version import VERSION as __version__
from tokensieve.engine.apply import applied, apply, is_applied, remove
from tokensieve.engine.trace import Trace, trace
from tokensieve.errors import RefusedError, TokensieveError, TokensieveWarning
from tokensieve.export.run import export_model
from tokensieve.families._family import Family
from tokensieve.families._layout import Layout
from tokensieve.families._locate import list_families
from tokensieve.methods._method import Method
from tokensieve.methods._registry import list_methods
from tokensieve.methods._spec import parse, spell, sweep
from tokensieve.methods._view import View
from tokensieve.models.checkpoint import SievedModel, from_pretrained, load, push_to_hub, save
from tokensieve.plan.plan import SpeedPlan, make_plan
from tokensieve.tokens.decision import Assignment, KeepMask, SoftAssignment
from tokensieve.tokens.state import Tokens

# Every method is reachable by its class name, so that a new file in methods/ needs no line here.
globals().update({cls.__name__: cls for cls in list_methods().values()})

__all__ = [
    "Assignment", "Family", "KeepMask", "Layout", "Method", "RefusedError", "SievedModel", "SoftAssignment",
    "SpeedPlan", "TokensieveError", "TokensieveWarning", "Tokens", "Trace", "View", "__version__", "applied", "apply",
    "export_model", "from_pretrained", "is_applied", "list_families", "list_methods", "load", "make_plan", "parse",
    "push_to_hub", "remove", "save", "spell", "sweep", "trace",
    *sorted(cls.__name__ for cls in list_methods().values()),
]  # fmt: skip
