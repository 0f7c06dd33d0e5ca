"""One file a model family; found by walking this folder, listed nowhere."""

from tokensieve.utils.lazy import Face as _Face

_face = _Face(
    __name__,
    {
        "tokensieve.families._family": ["BlockMacs", "Family", "linear_macs"],
        "tokensieve.families._halves": ["Halves", "HalvesFamily"],
        "tokensieve.families._layout": ["Layout"],
        "tokensieve.families._locate": ["list_families"],
        "tokensieve.families._modules": ["norm_of", "through"],
        "tokensieve.families._reading": ["Reader", "Reading"],
        "tokensieve.families._transformers": ["TransformersFamily"],
    },
)
__getattr__, __dir__ = _face.get, _face.listed
