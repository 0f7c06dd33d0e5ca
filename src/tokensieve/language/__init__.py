"""Vision-language models: where image tokens meet a language model, and what it costs to leave some out."""

from tokensieve.utils.lazy import Face as _Face

_face = _Face(
    __name__,
    {"tokensieve.language.labeller": ["Label", "Labeller"], "tokensieve.language.words": ["Words"]},
)
__getattr__, __dir__ = _face.get, _face.listed
