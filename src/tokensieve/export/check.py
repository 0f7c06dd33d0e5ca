"""Whether an exported file answers as the model does, on images and a batch size that it was not traced with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokensieve.engine.apply import sites
from tokensieve.engine.probe import evaluating
from tokensieve.engine.trace import trace
from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.export.format import Run, reason
from tokensieve.tokens.state import Tokens

CANDIDATES = 9  # random images to choose from, besides those that are traced
CHECKED = 3  # as many are used: another batch size than the traced one
NUDGE = 1e-5  # change of the pixels, some ten times what two runtimes differ by


@dataclass(frozen=True)
class Agreement:
    """How an exported file compares with the model it was made from.

    Attributes:
        images: how many were compared, in one batch and the first of them alone.
        difference: the largest absolute difference of two answers.
        same_top1: whether both name the same class for every image; of features, which name none, True.
    """

    images: int
    difference: float
    same_top1: bool


def random_images(count: int, like: Tensor) -> Tensor:
    """(count, C, H, W) with the shape, dtype and device of ``like`` (B, C, H, W), the same every time."""
    return torch.randn(count, *like.shape[1:], generator=torch.Generator().manual_seed(1)).to(like)


def settled(model: nn.Module, images: Tensor, wanted: int | None = None) -> Tensor:
    """The images whose tokens are not chosen by rounding alone: (B', C, H, W), the first ``wanted`` or all.

    Two runtimes round differently. Where a choice hangs on the last bits each may take another token and both be right,
    so such an image tells nothing. It is found by changing the pixels a little and looking for a change of tokens.

    Raises:
        TokensieveError: none is left.
    """
    steady: list[Tensor] = []
    for part in images.split(CHECKED):
        steady += part[_steady(model, part)]
        if wanted is not None and len(steady) >= wanted:
            break
    if not steady:
        raise TokensieveError(
            f"the exported file cannot be checked: in all of {len(images)} images the choice of tokens hangs on "
            "rounding; give other images as the example"
        )
    return torch.stack(steady[:wanted])


def _steady(model: nn.Module, images: Tensor, draws: int = 2) -> Tensor:
    steady = torch.ones(len(images), dtype=torch.bool, device=images.device)
    generator = torch.Generator().manual_seed(2)
    chosen = _groups(model, images)
    for _ in range(draws):
        nudge = NUDGE * (1 + images.abs()) * torch.randn(images.shape, generator=generator).to(images)
        for before, after in zip(chosen, _groups(model, images + nudge), strict=True):
            steady &= (before == after).all(dim=1)
    return steady


def _groups(model: nn.Module, images: Tensor) -> list[Tensor]:
    return [event.group for event in trace(model, images).events if event.group is not None]


def compare(model: nn.Module, run: Run, images: Tensor, tolerance: float) -> Agreement:
    """Run the model and an exported file on the same images, all at once and the first alone.

    Args:
        model: the model, in PyTorch.
        run: the exported file, opened.
        images: (B, C, H, W), settled ones.
        tolerance: the largest absolute difference that two answers may have.

    Raises:
        RefusedError: the answers differ by more, or have other shapes.
        TokensieveError: the model does not answer with one tensor.
    """
    difference, same = 0.0, True
    for batch in (images, images[:1]):
        with evaluating(model):
            expected = model(batch)
        if not isinstance(expected, Tensor):
            raise TokensieveError(
                f"only models that answer with one tensor are exported, got {type(expected).__name__}"
            )
        expected = expected.float().cpu()
        try:
            with torch.inference_mode():
                answer = run(batch).float().cpu()
        except Exception as error:  # every runtime has its own
            raise RefusedError(
                f"the exported model does not run on a batch of {len(batch)}: {reason(error)}; nothing was written"
            ) from error
        if answer.shape != expected.shape:
            raise RefusedError(
                f"the exported model answers {len(batch)} images with shape {tuple(answer.shape)} where the model "
                f"gives {tuple(expected.shape)}; nothing was written"
            )
        furthest = (answer - expected).abs().max().item()
        if not furthest <= tolerance:  # written so that NaN fails
            raise RefusedError(
                f"the exported model differs from the model by {furthest:.2g} where {tolerance:.2g} is allowed, on a "
                f"batch of {len(batch)}; nothing was written"
            )
        difference = max(difference, furthest)
        same = same and bool((answer.argmax(dim=-1) == expected.argmax(dim=-1)).all())
    return Agreement(len(images), difference, same)


class WithTokens(nn.Module):
    """A reduced model that answers with its tokens too: what it gives, then after every site where each original is.

    For comparing a runtime's choices with PyTorch's token by token: export it, run it, compare the outputs.

    Args:
        model: a model with methods applied, in evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, H, W) to the answer (B, …) and one (B, N) int64 for each decision, -1 while parked or gone."""
        states: list[Tokens] = []
        handles = [
            site.register_forward_pre_hook(lambda module, args: states.append(args[0])) for site in sites(self.model)
        ]
        try:
            answer = self.model(images)
        finally:
            for handle in handles:
                handle.remove()
        return (answer, *(event.group for event in states[-1].events if event.group is not None))
