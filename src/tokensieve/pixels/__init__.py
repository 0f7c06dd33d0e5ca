"""Pixel tasks: segmentation and depth on a backbone whose tokens are reduced and all given back.

A ``PixelModel`` is a backbone and a head; ``ts.apply`` and ``ts.remove`` work on it as on any model::

    model = pixel_model(timm.create_model("vit_tiny_patch16_224"), Segmentation(classes=11), "linear")
    ts.apply(model, ts.ToMe(r=8))
    logits = model(images)  # (B, 11, H, W)
"""
