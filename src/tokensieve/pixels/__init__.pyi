# Written by scripts/generate_faces.py from the table in __init__.py; run `make docs`.
from tokensieve.pixels.create import create_model as create_model
from tokensieve.pixels.data import Pairs as Pairs
from tokensieve.pixels.data import open_pairs as open_pairs
from tokensieve.pixels.depth import Depth as Depth
from tokensieve.pixels.heads import Head as Head
from tokensieve.pixels.meters import DepthMeters as DepthMeters
from tokensieve.pixels.meters import SegmentationMeters as SegmentationMeters
from tokensieve.pixels.meters import depth_errors as depth_errors
from tokensieve.pixels.model import PixelModel as PixelModel
from tokensieve.pixels.model import pixel_model as pixel_model
from tokensieve.pixels.options import TaskOptions as TaskOptions
from tokensieve.pixels.segmentation import Segmentation as Segmentation
from tokensieve.pixels.task import Task as Task

__all__ = [
    "Depth",
    "DepthMeters",
    "Head",
    "Pairs",
    "PixelModel",
    "Segmentation",
    "SegmentationMeters",
    "Task",
    "TaskOptions",
    "create_model",
    "depth_errors",
    "open_pairs",
    "pixel_model",
]
