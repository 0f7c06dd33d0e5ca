"""tokensieve makes any Vision Transformer cheaper by acting on its tokens: skip, prune, merge, and give them back.

>>> import timm, tokensieve as ts
>>> model = timm.create_model("deit_small_patch16_224", pretrained=True)
>>> ts.apply(model, ts.BAT(keep=0.72))

Every name is imported when it is first used. Every method is here by the name of its class.
"""

from tokensieve.utils.lazy import Face as _Face


def _methods() -> dict[str, type]:
    """Every method by the name of its class, so that a new file in methods/ needs no line here."""
    from tokensieve.methods._registry import list_placed_methods

    return {cls.__name__: cls for cls in list_placed_methods().values()}


_face = _Face(
    __name__,
    {
        "tokensieve._version": ["VERSION as __version__"],
        "tokensieve.engine.apply": ["is_applied"],
        "tokensieve.engine.trace": ["Trace", "trace"],
        "tokensieve.errors": ["RefusedError", "TokensieveError", "TokensieveWarning"],
        "tokensieve.export.run": ["export_model"],
        "tokensieve.families._family": ["Family"],
        "tokensieve.families._layout": ["Layout"],
        "tokensieve.families._locate": ["list_families"],
        "tokensieve.language.apply": ["applied", "apply", "remove"],
        "tokensieve.language.encoder": ["TextEncoder"],
        "tokensieve.methods._method": ["Method"],
        "tokensieve.methods._registry": ["list_language_methods", "list_methods"],
        "tokensieve.methods._spec": ["parse", "spell", "sweep"],
        "tokensieve.methods._view": ["View"],
        "tokensieve.models.checkpoint": ["SievedModel", "from_pretrained", "load", "push_to_hub", "save"],
        "tokensieve.plan.plan": ["SpeedPlan", "make_plan"],
        "tokensieve.tokens.decision": ["Assignment", "KeepMask"],
        "tokensieve.tokens.soft": ["SoftAssignment"],
        "tokensieve.tokens.state": ["Tokens"],
    },
    rooms=[
        "answers",
        "data",
        "export",
        "families",
        "language",
        "measure",
        "methods",
        "models",
        "pixels",
        "plan",
        "tokens",
        "train",
    ],
    classes=_methods,
)
__getattr__, __dir__ = _face.get, _face.listed
