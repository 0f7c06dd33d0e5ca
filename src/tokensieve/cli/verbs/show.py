"""``tokensieve show``: a picture of what methods do to the patches of images."""

from __future__ import annotations

from tokensieve.cli.command import verb
from tokensieve.cli.options import ShownModelOptions

TARGETS = (
    "ignore_index",
    "reduce_zero_label",
    "depth_scale",
    "median_scaling",
    "eigen_crop",
    "slide",
    "stride",
)  # of targets, which a picture has none of


@verb(ShownModelOptions, without=(*TARGETS, "in_chans"))
def command(options: ShownModelOptions) -> None:
    """Draw what methods do to the patches of images, site by site.

    One row for each image and method: which patches attend, are merged with which others, are skipped, are pruned,
    with token counts, and the predicted class of the dense and of the reduced model. Of a pixel task (segmentation,
    depth): the image, the dense model's prediction, the reduced one's, where they differ, and the patches.

    Of a vision-language model that is asked a --question: which patches stay in front of its decoder and behind each
    site in it, for several questions side by side, and what the dense and the reduced model answer.

    Example: tokensieve show deit_tiny_patch16_224 cat.jpg --pretrained --method bat:keep=0.7 --method tome:r=13
    """
    # Imported here and in this order, so that what is mistyped is told before timm is loaded.
    from tokensieve.methods._spec import sweep, sweep_placed

    for spec in options.method:
        (sweep_placed if options.question else sweep)(spec)
    from tokensieve.cli.show import show

    show(options)
