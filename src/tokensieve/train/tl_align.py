"""TL-Align (arXiv 2210.06455): labels of mixed images that follow the tokens through attention and reduction.

Mixup and CutMix make one image of two and one label of two labels. How much of each is still to be seen in the class
token changes with every attention, and with every token that is merged, dropped or skipped. One scalar a token says it:
its share r of the first label. In every block r becomes (A·r + r) / 2, with A the mean of the heads' attention maps;
where tokens merge, r is their mean by the weights of the merge; where they leave, it leaves with them; where they
return, it returns as it was. The target is r·y_a + (1 − r)·y_b with the r of the class token::

    mixed = mix(mixup, images, labels, model)
    with tl_align(model, mixed.shares) as tracker:
        logits = model(mixed.images)
    loss = SoftTargetCrossEntropy()(logits, tracker.target(mixed.first, mixed.second))

Our choices: prefix tokens start with the mean over the patches, which is the share of the whole image. Where the head
averages over patches, r is the mean over the patches that come out at the end, so that merged ones count by their size.
A fused token whose weights do not sum to one (EViT's) has the weighted mean of its members.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokensieve.attention.signals import Attended, spread_shares
from tokensieve.attention.tap import Tap
from tokensieve.engine.block import SievedBlock, Site
from tokensieve.engine.running import SITE
from tokensieve.errors import TokensieveError
from tokensieve.families._locate import family_of
from tokensieve.ops.rows import at_least_float32
from tokensieve.tokens import algebra
from tokensieve.tokens.decision import Assignment, Decision, KeepMask, averaging
from tokensieve.tokens.hide import hide
from tokensieve.tokens.node import register
from tokensieve.tokens.restore import returning
from tokensieve.tokens.rider import Moment, Rider
from tokensieve.tokens.state import Tokens

NAME = "labels"


@dataclass(frozen=True)
class LabelShares(Rider):
    """Label shares that go where the tokens go, and are spread by every attention.

    Attributes:
        shares: a state whose features are the shares (B, P + M, 1).
    """

    shares: Tokens

    attends = True

    def follow(self, decision: Decision, moment: Moment) -> LabelShares:
        if isinstance(decision, KeepMask):
            return LabelShares(algebra.apply(self.shares, KeepMask(mask=decision.mask.detach())))
        with torch.no_grad(), torch.autocast(self.shares.x.device.type, enabled=False):
            return LabelShares(algebra.apply(self.shares, averaging(decision), *vars(moment).values()))

    def returned(self, block: int, after_attention: bool) -> LabelShares:
        return LabelShares(returning(self.shares, block, after_attention))

    def hide(self, assignment: Assignment, moment: Moment) -> LabelShares:
        with torch.no_grad():
            return LabelShares(hide(self.shares, replace(assignment, soft=None), *vars(moment).values()))

    def attend(self, attended: Attended) -> LabelShares:
        with torch.no_grad():
            return LabelShares(self.shares.changed(x=spread_shares(attended, self.shares.x)))


@dataclass(frozen=True)
class Mixed:
    """A batch of mixed images.

    Attributes:
        images: (B, C, H, W).
        shares: (B, N) share of the first label in each patch, float32.
        first, second: (B, K) the labels mixed, smoothed as the mixup is told to.
    """

    images: Tensor
    shares: Tensor
    first: Tensor
    second: Tensor


def mix(mixup: Mixup, images: Tensor, labels: Tensor, model: nn.Module) -> Mixed:
    """Mix a batch with timm's ``Mixup``, whatever its mode, and say which share of each patch is the image's own.

    The share is exact to the pixel, so that boxes need not be aligned with the patches.

    Args:
        mixup: timm's.
        images: (B, C, H, W), B even.
        labels: (B,) int64.
        model: whose patches count.

    Raises:
        TokensieveError: the batch is odd.
    """
    batch = images.shape[0]
    if batch % 2:
        raise TokensieveError(f"images are mixed in pairs: the batch must be even, got {batch} images; drop the last")
    # One channel more, 1 in the first half of the batch and 0 in the second, is mixed along: timm mixes image i with
    # image B − 1 − i, so what is 1 there afterwards (in the second half: 0) is the image's own.
    mark = torch.zeros_like(images[:, :1])
    mark[: batch // 2] = 1
    mixed, _ = mixup(torch.cat([images, mark], dim=1), labels)
    own = at_least_float32(mixed[:, -1])
    own = torch.cat([own[: batch // 2], 1 - own[batch // 2 :]])
    first, second = (mixup_target(labels, mixup.num_classes, lam, mixup.label_smoothing) for lam in (1.0, 0.0))
    return Mixed(mixed[:, :-1], patch_shares(own, model), first, second)


def patch_shares(own: Tensor, model: nn.Module) -> Tensor:
    """The share of each patch, (B, N) row by row, from that of each pixel.

    Args:
        own: (B, H, W), the share of the first label in each pixel, in [0, 1].
        model: whose patches count.
    """
    located = family_of(model)
    return F.avg_pool2d(own.unsqueeze(1), located.family.patch_size(located.owner), ceil_mode=True).flatten(1)


class LabelTracker:
    """Follows the label shares of one batch through a model; see ``tl_align``."""

    def __init__(self, model: nn.Module, shares: Tensor) -> None:
        located = family_of(model)
        owner: Any = located.owner
        self.layout = located.family.layout(owner)
        self.blocks = located.family.blocks(owner)
        self.pools = not self.layout.class_token or located.family.pools(model, owner)
        if shares.dim() != 2:
            raise TokensieveError(f"shares must be (images, patches), got {tuple(shares.shape)}")
        self._start = at_least_float32(shares.detach()).unsqueeze(2)
        self._tap: Tap | None = None
        self._present: Tensor | None = None
        self._end: Tensor | None = None

    def share(self) -> Tensor:
        """(B,): the share of the first label in what the head reads, float32 or better.

        Raises:
            TokensieveError: the model has not run, or not to its end.
        """
        if self._end is None:
            raise TokensieveError("no label has been followed to the end: run the model inside `with tl_align(...)`")
        front = self.layout.prefix
        return self._end[:, front:, 0].mean(dim=1) if self.pools else self._end[:, 0, 0]

    def target(self, first: Tensor, second: Tensor) -> Tensor:
        """The labels (B, K) that the model is to give: ``first`` and ``second`` (B, K) by their shares."""
        share = self.share().to(first.dtype).unsqueeze(1)
        return share * first + (1 - share) * second

    def _begin(self, x: Tensor) -> Tensor:
        """(B, P + N, 1) the shares of the tokens that enter the first block as ``x``."""
        patches = x.shape[1] - self.layout.prefix
        if self._start.shape[:2] != (x.shape[0], patches):
            raise TokensieveError(
                f"shares are for {tuple(self._start.shape[:2])} (images, patches) and the model runs on "
                f"{(x.shape[0], patches)}: give those of this batch"
            )
        self._end = None
        whole = self._start.mean(dim=1, keepdim=True).expand(-1, self.layout.prefix, -1)
        return torch.cat([whole, self._start], dim=1).to(x.device)

    def _enter(self, number: int, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        x = args[0]
        if number == 0:
            self._present = self._begin(x)
        if not isinstance(block, SievedBlock):
            self._tap = Tap()
            return None
        site: Any = block._modules[SITE]
        tokens: Tokens = site.state_of(block, x, {})
        if NAME in tokens.riders:
            return None
        # The first block with a site: from here on the shares travel with the tokens.
        assert self._present is not None
        labels = LabelShares(tokens.changed(x=self._present, riders={}))
        return (tokens.with_rider(NAME, labels), *args[1:])

    def _leave(self, number: int) -> None:
        tap, self._tap = self._tap, None
        if tap is None or self._present is None:
            return
        with torch.no_grad():
            self._present = spread_shares(tap.attended(), self._present)
        if number == self.layout.depth - 1:
            self._end = self._present

    def _last(self, tokens: Tokens) -> None:
        labels = tokens.riders.get(NAME)
        if isinstance(labels, LabelShares):
            self._end = labels.shares.restore()

    def hooks(self) -> list[Any]:
        """Follow every block from now on, until the handles returned are removed."""
        handles = []
        for number, block in enumerate(self.blocks):
            handles.append(
                block.register_forward_pre_hook(lambda module, args, number=number: self._enter(number, module, args))
            )
            if not isinstance(block, SievedBlock):
                handles.append(
                    block.register_forward_hook(lambda module, args, out, number=number: self._leave(number))
                )
        last = self.blocks[-1]._modules.get(SITE)
        if isinstance(last, Site):
            handles.append(last.register_forward_pre_hook(lambda module, args: self._last(args[0])))
        return handles

    def watch(self, call: tuple[Any, ...], kwargs: dict[str, Any], types: Any) -> Any:
        """Run one attention call, and read it where it is that of a block without a site."""
        if self._tap is None:
            return F.scaled_dot_product_attention(*call, **kwargs)
        return self._tap.__torch_function__(F.scaled_dot_product_attention, types, call, kwargs)


class _Watch(TorchFunctionMode):
    """Shows a tracker the attention calls."""

    def __init__(self, tracker: LabelTracker) -> None:
        super().__init__()
        self.tracker = tracker

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return self.tracker.watch(args, kwargs or {}, types)
        return func(*args, **(kwargs or {}))


@contextmanager
def tl_align(model: nn.Module, shares: Tensor) -> Iterator[LabelTracker]:
    """Follow label shares through the forward passes of ``model`` inside the ``with``; nothing gets a gradient.

    The model, dense or reduced by any methods, is watched through hooks and answers as it would without; it must not be
    compiled. Of several passes the last one counts. What is wrapped around it (DDP) may be called instead.

    Args:
        model: the model itself, not what wraps it.
        shares: (B, N) the share of the first label in each patch, as ``mix`` or ``patch_shares`` gives it.

    Raises:
        TokensieveError: the shares are not those of the batch.
        RefusedError: no family matches the model, or its attention does not call the fused kernel.
    """
    tracker = LabelTracker(model, shares)
    handles = tracker.hooks()
    try:
        with _Watch(tracker):
            yield tracker
    finally:
        for handle in handles:
            handle.remove()


register(LabelShares, ("shares",))
