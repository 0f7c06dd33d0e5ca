"""``tokensieve demo``: the main job with nothing from outside."""

from __future__ import annotations

from tokensieve.cli.command import verb
from tokensieve.demo.options import DemoOptions
from tokensieve.errors import TokensieveError


@verb(DemoOptions)
def command(options: DemoOptions) -> None:
    """Compare the dense model with BAT, ToSA and ToMe at three budgets on an embedded model, off the shelf and
    fine-tuned; draw what they do."""
    try:
        from tokensieve.cli.demo import demo  # here, so that the help is shown without torch
    except ModuleNotFoundError as error:
        raise TokensieveError(f"the demo needs {error.name}: pip install 'tokensieve[demo]'") from error
    demo(options)
