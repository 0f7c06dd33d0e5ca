"""Images to measure and to train on: folders, streams, transforms."""

from tokensieve.utils.lazy import Face as _Face

_face = _Face(
    __name__,
    {
        "tokensieve.data.images": ["open_images"],
        "tokensieve.data.options": ["DataOptions", "TransformOptions"],
        "tokensieve.data.stream": ["NO_LABEL", "ImageStream"],
        "tokensieve.data.transforms": ["data_config"],
    },
)
__getattr__, __dir__ = _face.get, _face.listed
