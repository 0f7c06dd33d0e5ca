"""Models by name, saved models, and how they run."""

from tokensieve.utils.lazy import Face as _Face

_face = _Face(
    __name__,
    {
        "tokensieve.models.checkpoint": ["SievedModel", "from_pretrained", "push_to_hub", "save"],
        "tokensieve.models.features": ["ImageFeatures"],
        "tokensieve.models.load": ["create", "has_weights", "load_weights", "share_weights"],
        "tokensieve.models.options": ["ModelOptions"],
        "tokensieve.models.runtime": ["Runtime"],
        "tokensieve.models.transformers": ["HuggingFaceModel", "predict_depth"],
        "tokensieve.models.zero_shot": ["ZeroShot", "class_features"],
    },
)
__getattr__, __dir__ = _face.get, _face.listed
