"""The tap: watches one block's attention and hands the call on to the fused kernel."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _len_torch_function_stack
from torch.overrides import TorchFunctionMode

from tokensieve.attention.kernel import attend, biased_attention
from tokensieve.attention.packing import PADDED, Rows
from tokensieve.attention.pairs import Pairs
from tokensieve.attention.signals import Attended
from tokensieve.attention.sparse import sparse_attention, with_floor
from tokensieve.errors import RefusedError


class Tap(TorchFunctionMode):
    """Records the attention calls made inside ``with tap:`` and adds ``bias`` (B, 1, 1, L) to their logits.

    With ``own`` a kernel of ours may compute the attention where it is the faster one (see ``attend``); without, the
    call that the model makes is the call that runs, bit for bit. Of the signals ``wanted``, "outputs" are recorded too,
    and "cls_row" is taken from our kernel where that runs.

    With a ``share`` below 1 only that part of each map's entries stays, see ``sparse.with_floor``.

    With ``pairs``, the mask of a call is a bias for each pair of tokens of the whole sequence.

    With ``as_given`` calls are recorded and run as the model makes them, with whatever mask they have.

    With ``own_channels`` the channels of queries and keys behind these carry relative positions, and those of values
    nothing, see ``positions.folded``.

    With packed ``rows`` the model's calls are on the tokens of all images in one row; ``attended`` shows them padded.

    Write ``tap = Tap()`` and then ``with tap:``; TorchDynamo does not trace ``with Tap() as tap``. In ``with tap:``
    torch hands every call over, which costs more than a kernel; an attention that only passes its mask on to the fused
    kernel may be given ``tap.mask`` instead, where ``tap.by_mask``.
    """

    attention_alone = True  # whether no other call than the attention's is of interest

    def __init__(self, bias: Tensor | None = None, own: bool = False, wanted: Collection[str] = frozenset()) -> None:
        super().__init__()
        self.bias = bias
        self.own = own
        self.wanted = wanted
        self.rows: Rows = PADDED
        self.share = 1.0
        self.pairs: Pairs | None = None
        self.own_channels: int | None = None
        self.as_given = False
        self.between: list[Tensor] = []
        self.floors: list[Tensor] = []
        self.class_row: Tensor | None = None
        self.compiled = torch.compiler.is_dynamo_compiling()
        self.saving = _saving()
        self.calls: list[tuple[Tensor, Tensor, Tensor, float | None]] = []
        self.outputs: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self.answer(*args, **kwargs)

    @property
    def by_mask(self) -> bool:
        """Whether an attention may be watched by its mask.

        Not under TorchDynamo, which does not trace that, nor inside modes of others, which would see the mask first.
        """
        return self.attention_alone and not torch.compiler.is_dynamo_compiling() and not _len_torch_function_stack()

    @property
    def mask(self) -> Any:
        """What to hand to an attention as its mask, in place of None, for this tap to answer the call."""
        return Listening(self)

    def answer(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **others: Any,
    ) -> Tensor:
        """The attention of one call, recorded; arguments as of ``F.scaled_dot_product_attention``."""
        if torch.compiler.is_dynamo_compiling() and not self.compiled:
            # A graph of it would hand its calls over once more. Dynamo gives up on it and runs it as it was written.
            raise RefusedError(
                "the attention of a block with methods in it is compiled by itself: compile the block or the model"
            )
        if self.as_given and self.rows is PADDED:
            self.calls.append((query, key, value, scale))
            how = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale, **others}
            return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, **how)
        between = None
        if attn_mask is not None and self.pairs is not None and attn_mask.is_floating_point():
            between, attn_mask = self.pairs.present(attn_mask), None
            self.between.append(between)
        if is_causal or attn_mask is not None:
            raise RefusedError(
                "token reduction got a causal or masked attention call, which it cannot follow: "
                "call the model without attn_mask and is_causal, or ts.remove(model) first"
            )
        if self.bias is not None and _saving() is not self.saving:
            raise RefusedError(
                "the attention of a block with methods in it is checkpointed by itself, and would be computed again "
                "without the bias that they give to its logits: checkpoint whole blocks"
            )
        self.calls.append((query, key, value, scale))
        if between is not None:
            between = between if self.bias is None else between + self.bias
            output = self._of_pairs(query, key, value, between, dropout_p, scale)
        else:
            output = self.rows.attend(
                self._kernel, query, key, value, self.bias, dropout_p=dropout_p, scale=scale, **others
            )
        if self.rows is not PADDED:
            self.class_row = None  # that of the last image
        if "outputs" in self.wanted:
            self.outputs.append(output)
        return output

    def _of_pairs(
        self, query: Tensor, key: Tensor, value: Tensor, between: Tensor, dropout_p: float, scale: float | None
    ) -> Tensor:
        if self.share < 1:
            raise RefusedError("the entries of an attention with a bias for each pair of tokens cannot be left out")
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=between.to(query.dtype), dropout_p=dropout_p, scale=scale
        )

    def _kernel(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        dropout_p: float,
        scale: float | None,
        **others: Any,
    ) -> Tensor:
        if self.share < 1:
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            attended = with_floor(Attended(query, key, value, scale, bias), self.share)
            if attended.floor is not None:
                self.floors.append(attended.floor)
                return sparse_attention(attended, dropout_p)
        if self.own and dropout_p == 0.0 and not others:
            output, self.class_row = attend(query, key, value, bias, scale, "cls_row" in self.wanted)
            return output
        if bias is None:
            return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p, scale=scale, **others)
        return biased_attention(query, key, value, bias, scale=scale, dropout_p=dropout_p)

    def check(self) -> None:
        """Refuse an attention that made no call: what the tap carries was not computed with.

        Raises:
            RefusedError: there was none.
        """
        if not self.calls:
            raise RefusedError(
                "the block's attention never called the fused kernel (F.scaled_dot_product_attention), where methods "
                "read and bias it: build the model with fused attention on, timm.layers.set_fused_attn(True), and "
                "leave attn.fused_attn as it is, or in transformers model.set_attn_implementation('sdpa')"
            )

    def attended(self) -> Attended:
        """What the calls were computed from; several parallel attentions are laid side by side as heads."""
        self.check()
        queries, keys, values, scale = self.calls[0]
        if len(self.calls) > 1:
            queries, keys, values = (
                torch.cat(parts, dim=1) for parts in list(zip(*((q, k, v) for q, k, v, _ in self.calls), strict=True))
            )
        scale = queries.shape[-1] ** -0.5 if scale is None else scale
        outputs = torch.cat(self.outputs, dim=1) if self.outputs else None
        if self.rows is not PADDED:
            queries, keys, values = (self.rows.unpack_heads(part) for part in (queries, keys, values))
            outputs = None if outputs is None else self.rows.unpack_heads(outputs)
        own = self.own_channels
        if own is not None:
            values, outputs = values[..., :own], None if outputs is None else outputs[..., :own]
        class_row = self.class_row if len(self.calls) == 1 else None
        floor = torch.cat(self.floors, dim=1) if self.floors else None
        between = torch.cat(self.between, dim=1) if self.between else None
        return Attended(queries, keys, values, scale, self.bias, class_row, outputs, floor, between, own)


def _saving() -> Any:
    """What a checkpoint that is going on packs the tensors with that are saved for gradients; None outside of one."""
    if torch.compiler.is_dynamo_compiling() or not torch.is_grad_enabled():
        return None
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks[0] if hooks and hooks[0].__module__ == "torch.utils.checkpoint" else None


class Listening:
    """Stands where a call of the fused attention has its mask, so that torch asks ``tap`` for the answer."""

    def __init__(self, tap: Tap) -> None:
        self.tap = tap

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        others = dict(kwargs or {})
        listening = others.pop("attn_mask", None)
        if func is not F.scaled_dot_product_attention or not isinstance(listening, cls):
            return NotImplemented
        return listening.tap.answer(*args, **others)
