# Written by scripts/generate_faces.py from the table in __init__.py; run `make docs`.
from tokensieve.models.checkpoint import SievedModel as SievedModel
from tokensieve.models.checkpoint import from_pretrained as from_pretrained
from tokensieve.models.checkpoint import push_to_hub as push_to_hub
from tokensieve.models.checkpoint import save as save
from tokensieve.models.features import ImageFeatures as ImageFeatures
from tokensieve.models.load import create as create
from tokensieve.models.load import has_weights as has_weights
from tokensieve.models.load import load_weights as load_weights
from tokensieve.models.load import share_weights as share_weights
from tokensieve.models.options import ModelOptions as ModelOptions
from tokensieve.models.runtime import Runtime as Runtime
from tokensieve.models.transformers import HuggingFaceModel as HuggingFaceModel
from tokensieve.models.transformers import predict_depth as predict_depth
from tokensieve.models.zero_shot import ZeroShot as ZeroShot
from tokensieve.models.zero_shot import class_features as class_features

__all__ = [
    "HuggingFaceModel",
    "ImageFeatures",
    "ModelOptions",
    "Runtime",
    "SievedModel",
    "ZeroShot",
    "class_features",
    "create",
    "from_pretrained",
    "has_weights",
    "load_weights",
    "predict_depth",
    "push_to_hub",
    "save",
    "share_weights",
]
