"""``tokensieve export``: a reduced model as a file for another runtime, checked and timed."""

from __future__ import annotations

from tokensieve.cli.command import verb
from tokensieve.cli.options import ExportedModelOptions


@verb(ExportedModelOptions)
def command(options: ExportedModelOptions) -> None:
    """Write a reduced model to a file that runs without tokensieve, for any batch size.

    The file is opened again in its own runtime and must answer as the model does, on images and batch sizes that it was
    not traced with; otherwise none is left. S is the speed-up over the dense model, once both in PyTorch and once
    both exported; F is what the MACs promise; "kept" is the share of S/F that survives the export.

    Of a vision-language model with a method in front of its decoder the file holds the tower and that method: a picture
    in, the kept features and their places out, for a server that takes precomputed embeddings. It is not timed.
    """
    # Imported here and in this order, so that what is mistyped is told before timm is loaded.
    if options.method:
        from tokensieve.methods._spec import parse_placed

        parse_placed(options.method)
    from tokensieve.cli.export import export

    export(options)
