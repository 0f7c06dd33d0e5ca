# Written by scripts/generate_faces.py from the table in __init__.py; run `make docs`.
from tokensieve.data.images import open_images as open_images
from tokensieve.data.options import DataOptions as DataOptions
from tokensieve.data.options import TransformOptions as TransformOptions
from tokensieve.data.stream import NO_LABEL as NO_LABEL
from tokensieve.data.stream import ImageStream as ImageStream
from tokensieve.data.transforms import data_config as data_config

__all__ = [
    "NO_LABEL",
    "DataOptions",
    "ImageStream",
    "TransformOptions",
    "data_config",
    "open_images",
]
