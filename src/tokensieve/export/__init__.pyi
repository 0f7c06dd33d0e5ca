# Written by scripts/generate_faces.py from the table in __init__.py; run `make docs`.
from tokensieve.export.check import Agreement as Agreement
from tokensieve.export.features import Reducer as Reducer
from tokensieve.export.format import Format as Format
from tokensieve.export.run import FORMATS as FORMATS
from tokensieve.export.run import Exported as Exported
from tokensieve.export.run import export_model as export_model
from tokensieve.export.serving import sglang_request as sglang_request
from tokensieve.export.serving import vllm_content as vllm_content
from tokensieve.export.serving import vllm_request as vllm_request

__all__ = [
    "FORMATS",
    "Agreement",
    "Exported",
    "Format",
    "Reducer",
    "export_model",
    "sglang_request",
    "vllm_content",
    "vllm_request",
]
