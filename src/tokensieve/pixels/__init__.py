"""Pixel tasks: segmentation and depth on a backbone whose tokens are reduced and all given back.

A ``PixelModel`` is a backbone and a head; ``ts.apply`` and ``ts.remove`` work on it as on any model::

    model = pixel_model(timm.create_model("vit_tiny_patch16_224"), Segmentation(classes=11), "linear")
    ts.apply(model, ts.ToMe(r=8))
    logits = model(images)  # (B, 11, H, W)
"""

from tokensieve.utils.lazy import Face as _Face

_face = _Face(
    __name__,
    {
        "tokensieve.pixels.create": ["create_model"],
        "tokensieve.pixels.data": ["Pairs", "open_pairs"],
        "tokensieve.pixels.depth": ["Depth"],
        "tokensieve.pixels.heads": ["Head"],
        "tokensieve.pixels.meters": ["DepthMeters", "SegmentationMeters", "depth_errors"],
        "tokensieve.pixels.model": ["PixelModel", "pixel_model"],
        "tokensieve.pixels.options": ["TaskOptions"],
        "tokensieve.pixels.segmentation": ["Segmentation"],
        "tokensieve.pixels.task": ["Task"],
    },
)
__getattr__, __dir__ = _face.get, _face.listed
