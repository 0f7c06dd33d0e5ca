"""``tokensieve plan``: the gentlest setting of a method that is as fast as asked for, on this device."""

from __future__ import annotations

from tokensieve.cli.command import verb
from tokensieve.cli.options import PlannedModelOptions


@verb(PlannedModelOptions, without=("model_dtype", "cuda_graph"))
def command(options: PlannedModelOptions) -> None:
    """Find the gentlest setting of a method that makes a model as fast as asked for, on this device.

    Times a handful of sequence lengths and the method once, fits a latency model, predicts every setting of the
    method's knob (keep or r), and measures the one it takes beside the dense model. Says so when no setting is fast
    enough. A plan holds for its device, precision and batch size. Images are random: accuracy is for eval to measure.
    """
    # Imported here and in this order, so that what is mistyped is told before timm is loaded.
    from tokensieve.methods._spec import parse

    parse(options.method)
    from tokensieve.cli.plan import plan

    plan(options)
