"""Gradients at a layer that is read: they flow through the tensor that was handed out, and nothing else changes."""

from __future__ import annotations

import torch
from torch import Tensor

from tokensieve.errors import TokensieveError
from tokensieve.ops.rows import one_hot
from tokensieve.tokens.node import changed
from tokensieve.tokens.state import Tokens, in_front


def through(tokens: Tokens, restored: Tensor, now: Tensor) -> Tokens:
    """The state of the same values whose gradient is that of ``now``, (B, P + N, C), as well.

    To each token the mean of its originals in ``now`` is added and that in ``restored`` taken away: nothing, since both
    are equal. The gradient of ``now`` is that of the token shared out among its originals, and what goes on behind it
    cancels out, so that parameters have the gradient that they had without it. Tokens that sit out take theirs along.
    Behind a soft assignment a token is no mean of originals.

    Args:
        tokens: the state that was restored.
        restored: (B, P + N, C), or as the model has it, what was restored, and handed out as an equal tensor.
        now: that tensor, or what came of it on its way.

    Raises:
        TokensieveError: the tokens are mixed softly.
    """
    if tokens.back.outer is not None:
        raise TokensieveError(
            "a hook waits for the gradient of a tapped block behind a soft assignment, where each token is a mixture "
            "of all patches and the tensor of all tokens has no gradient of its own: put it on a block before, or look "
            "at a method that merges or drops tokens"
        )
    nothing = now - restored
    nothing = in_front(nothing if tokens.form is None else tokens.form.taken(nothing), tokens.prefix, tokens.behind)
    parked = tuple(
        changed(entry, before=entry.before.changed(x=_linked(entry.before, nothing))) for entry in tokens.back.parked
    )
    return tokens.changed(x=_linked(tokens, nothing), back=changed(tokens.back, parked=parked))


def _linked(tokens: Tokens, nothing: Tensor) -> Tensor:
    """(B, P + M, C) the tokens, with the mean of ``nothing`` (B, P + N, C) over the originals of each added."""
    prefix = nothing[:, : tokens.prefix]
    members = one_hot(tokens.back.group, tokens.count, nothing.dtype)
    means = members @ nothing[:, tokens.prefix :] / members.sum(dim=2, keepdim=True).clamp(min=1)
    return tokens.x + torch.cat([prefix, means], dim=1)
