"""Exporting a model with its methods to a file that runs without tokensieve, checked before it is kept."""

from tokensieve.utils.lazy import Face as _Face

_face = _Face(
    __name__,
    {
        "tokensieve.export.check": ["Agreement"],
        "tokensieve.export.features": ["Reducer"],
        "tokensieve.export.format": ["Format"],
        "tokensieve.export.run": ["FORMATS", "Exported", "export_model"],
        "tokensieve.export.serving": ["sglang_request", "vllm_content", "vllm_request"],
    },
)
__getattr__, __dir__ = _face.get, _face.listed
