"""Applying methods to a model and taking them away again.

``apply`` gives every block from the first site on a child module, a ``Site``, and a forward that runs the block in its
two halves around the methods that act there. The block keeps its submodules, names and state-dict keys. State travels
from block to block as the argument (``Tokens``); nothing is stored on the model while it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve import tokens as algebra
from tokensieve.attention import Tap, key_bias
from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.family import Family
from tokensieve.method import POINTS, Method, Point
from tokensieve.registry import family_of
from tokensieve.spec import method as method_from_spec
from tokensieve.tokens import Assignment, Event, Fill, SoftAssignment, Stage, Tokens
from tokensieve.view import BlockSignals, Layout, View

SITE = "tokensieve"  # the name of the child module that a block with sites carries


@dataclass(frozen=True)
class Step:
    """One method at one block: ``ordinal`` counts the method's sites, ``key`` names its learned part in the Site."""

    method: Method
    ordinal: int
    key: str


class Site(nn.Module):
    """What the methods do at one block. Holds their learned parts and no state of any run."""

    def __init__(
        self,
        family: Family,
        layout: Layout,
        block: int,
        steps: Sequence[Step],
        methods: tuple[Method, ...],
        fill: Fill,
    ) -> None:
        super().__init__()
        self.family = family
        self.layout = layout
        self.block = block
        self.steps = tuple(steps)
        self.methods = methods
        self.fill: Fill = fill
        self.log_size = any(m.log_size_attention for m in methods)
        self.learned = nn.ModuleDict()
        for step in self.steps:
            part = step.method.module(layout)
            if part is not None:
                self.learned[step.key] = part
        self.taps = any(step.method.needs(layout) for step in self.steps)

    def extra_repr(self) -> str:
        return ", ".join(f"{step.method.point}: {step.method}" for step in self.steps)

    def run(self, block: SievedBlock, x: Tensor | Tokens, kwargs: dict[str, Any]) -> Tensor | Tokens:
        """Run ``block`` on ``x``: a plain (B, L, C) tensor at the first site, ``Tokens`` behind it."""
        if kwargs.pop("attn_mask", None) is not None or kwargs.pop("is_causal", False):
            raise RefusedError(
                "a model with reduced tokens takes neither attn_mask nor is_causal: its tokens are not where the mask "
                "expects them; ts.remove(model) gives the dense model back"
            )
        tokens = x if isinstance(x, Tokens) else Tokens.start(x, self.layout.prefix, self.fill)
        tokens = algebra.returning(tokens, self.block)
        tokens = self._act(tokens, "before", None, block.training)
        if tokens.version:
            kwargs = self.family.reindex(kwargs, tokens.rep, tokens.prefix)
        attended = tokens
        size = tokens.size if self.log_size else None
        bias = key_bias(tokens.prefix, size, tokens.alive, tokens.mask)
        waiting = any(entry.after_attention for entry in tokens.parked)
        if not self.steps and bias is None and not waiting:
            tokens = replace(tokens, x=block.dense(tokens.x, **kwargs))
        else:
            signals: BlockSignals | None = None
            if self.taps or bias is not None:
                tap = Tap(bias)
                with tap:
                    y = self.family.attention(block, tokens.x, **kwargs)
                signals = BlockSignals(tap.attended(), tokens.alive) if self.taps else None
            else:
                y = self.family.attention(block, tokens.x, **kwargs)
            tokens = self._act(replace(tokens, x=y), "middle", signals, block.training)
            tokens = algebra.returning(tokens, self.block, after_attention=True)
            processed = tokens
            tokens = replace(tokens, x=self.family.mlp(block, tokens.x))
            tokens = self._stage(tokens, attended, processed)
            tokens = self._act(tokens, "after", signals, block.training)
            return self._finish(tokens)
        return self._finish(self._stage(tokens, attended, attended))

    def _stage(self, tokens: Tokens, attended: Tokens, processed: Tokens) -> Tokens:
        stage = Stage(self.block, attended.x.shape[1], processed.x.shape[1], processed.alive)
        return replace(tokens, stages=(*tokens.stages, stage))

    def _finish(self, tokens: Tokens) -> Tensor | Tokens:
        out: Tensor | Tokens = self(tokens)
        return out

    def forward(self, tokens: Tokens) -> Tensor | Tokens:
        """What leaves the block: the state, or after the last block every original token."""
        return tokens.restore() if self.block == self.layout.depth - 1 else tokens

    def _act(self, tokens: Tokens, point: Point, signals: BlockSignals | None, training: bool) -> Tokens:
        for step in self.steps:
            method = step.method
            if method.point != point:
                continue
            keep = method.remaining(tokens.count, step.ordinal, self.layout)
            if keep == tokens.count and not method.ragged:
                continue
            part = self.learned[step.key] if step.key in self.learned else None
            view = View(tokens, method, self.layout, self.block, step.ordinal, keep, part, training, signals)
            decision = method.assign(view)
            self._check_budget(decision, keep, method)
            if isinstance(decision, Assignment) and method.returns != decision.until:
                raise TokensieveError(
                    f"{method.name} declares that dropped tokens return at {method.returns!r} "
                    f"but its assignment says {decision.until!r}"
                )
            tokens = algebra.apply(tokens, decision, self.block, point, str(method))
            if signals is not None:
                signals.follow(decision)
        return tokens

    def _check_budget(self, decision: algebra.Decision, keep: int, method: Method) -> None:
        if isinstance(decision, Assignment):
            left = decision.keep.shape[1]
        elif isinstance(decision, SoftAssignment):
            left = decision.matrix.shape[1]
        else:
            return
        if left > keep if method.ragged else left != keep:
            raise TokensieveError(
                f"{method.name} left {left} tokens in block {self.block} where its schedule says {keep}: "
                "remaining() and assign() must agree"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # A dense checkpoint knows nothing of this site: the learned parts keep the values they have.
        if not any(key.startswith(prefix) for key in state_dict):
            state_dict.update(self.state_dict(prefix=prefix))
        super()._load_from_state_dict(state_dict, prefix, *args)


class SievedBlock(nn.Module):
    """Mixed into a block's class while the block has a Site. The block's own forward stays reachable as ``dense``."""

    def forward(self, x: Tensor | Tokens, **kwargs: Any) -> Tensor | Tokens:
        site: Site = self._modules[SITE]  # type: ignore[assignment]
        return site.run(self, x, kwargs)

    def dense(self, x: Tensor, **kwargs: Any) -> Tensor:
        """The block's original forward."""
        return super().forward(x, **kwargs)  # type: ignore[misc, no-any-return]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _revive, (SievedBlock, type(self).__bases__[1]), self.__getstate__()


class SievedOwner(nn.Module):
    """Mixed into the class of the module that owns the blocks, so that what callers get are tensors, never ``Tokens``."""

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        """The owner's own method, with every intermediate restored."""
        return _whole(super().forward_intermediates(*args, **kwargs))  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _revive, (SievedOwner, type(self).__bases__[1]), self.__getstate__()


def _whole(value: Any) -> Any:
    if isinstance(value, Tokens):
        return value.restore("last")
    if isinstance(value, dict):
        return {key: _whole(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_whole(v) for v in value)
    return value


@cache
def _sieved(mixin: type[nn.Module], base: type[nn.Module]) -> type[nn.Module]:
    return type(f"Sieved{base.__name__}", (mixin, base), {"__module__": base.__module__, "__doc__": base.__doc__})


def _revive(mixin: type[nn.Module], base: type[nn.Module]) -> nn.Module:
    cls = _sieved(mixin, base)
    return cls.__new__(cls)


def resolve(methods: Method | str | Sequence[Method]) -> tuple[Method, ...]:
    """One composition of methods from what a user may hand over: a method, a spec, or a sequence of methods."""
    if isinstance(methods, str):
        return method_from_spec(methods)
    chosen = (methods,) if isinstance(methods, Method) else tuple(methods)
    for entry in chosen:
        if not isinstance(entry, Method):
            raise TokensieveError(
                f"expected a method such as ts.BAT(keep=0.7) or a spec such as 'bat:keep=0.7', got {entry!r}"
            )
    if not chosen:
        raise TokensieveError("no method given: name at least one, for example ts.apply(model, ts.BAT(keep=0.7))")
    return chosen


def apply(
    model: nn.Module,
    methods: Method | str | Sequence[Method],
    *,
    fill: Fill | str = "auto",
    probe: Tensor | None = None,
) -> nn.Module:
    """Reduce the tokens of ``model`` with one method or several, in place.

    The model keeps its forward, head, ``forward_features``, ``forward_intermediates`` and state-dict keys; N tokens come
    out as N went in. Before anything changes, every block is run on a probe input both as it is and in its two halves.

    Args:
        model: a model of a known family, or one that contains such a model. Not yet compiled or wrapped.
        methods: a method, a composition in the order in which it acts, or its spec ("tome:r=4+tosa:keep=0.5").
        fill: what stands at the place of tokens that are gone for good when all are given back: "last" (their last
            value), "mean" (the mean of those present) or "auto": "mean" for heads that pool over patches, else "last".
        probe: (1, C, H, W) input for the check; default one of the model's input size.

    Returns:
        ``model`` itself.

    Raises:
        RefusedError: no family matches, or the blocks are not what the family takes them for.
        TokensieveError: a method's settings do not fit the model, or two methods are in each other's way.
    """
    chosen = resolve(methods)
    if is_applied(model):
        raise TokensieveError(
            f"methods are applied already ({', '.join(map(str, applied(model)))}): call ts.remove(model) first, "
            "or give all of them to one ts.apply as a list"
        )
    _refuse_wrapped(model)
    located = family_of(model)
    layout = located.family.layout(located.owner)
    plan = schedule(chosen, layout)
    if fill not in ("auto", "last", "mean"):
        raise TokensieveError(f"fill must be 'auto', 'last' or 'mean', got {fill!r}")
    pools = getattr(located.owner, "global_pool", "") in ("avg", "avgmax", "max", "map")
    chosen_fill: Fill = ("mean" if pools else "last") if fill == "auto" else fill  # type: ignore[assignment]
    taps = any(m.needs(layout) or m.log_size_attention for m in chosen)
    check_identity(model, probe, taps=taps)
    blocks = located.family.blocks(located.owner)
    first = min(plan, default=layout.depth)
    reference = next(blocks[0].parameters())
    for number in range(first, layout.depth):
        block = blocks[number]
        site = Site(located.family, layout, number, plan.get(number, ()), chosen, chosen_fill)
        site.to(device=reference.device, dtype=reference.dtype)
        site.train(block.training)
        block.add_module(SITE, site)
        block.__class__ = _sieved(SievedBlock, type(block))
    if hasattr(located.owner, "forward_intermediates"):
        located.owner.__class__ = _sieved(SievedOwner, type(located.owner))
    return model


def remove(model: nn.Module) -> nn.Module:
    """Take all methods off ``model``, in place: the exact original again. Learned parts of methods go with them."""
    for module in list(model.modules()):
        if isinstance(module, (SievedBlock, SievedOwner)):
            if isinstance(module, SievedBlock):
                del module._modules[SITE]
            module.__class__ = type(module).__bases__[1]
    return model


def sites(model: nn.Module) -> list[Site]:
    """The sites of a model with methods applied, in block order; empty for a dense model."""
    return [module for module in model.modules() if isinstance(module, Site)]


def is_applied(model: nn.Module) -> bool:
    """Whether methods are applied to ``model``."""
    return any(isinstance(module, (SievedBlock, SievedOwner)) for module in model.modules())


def applied(model: nn.Module) -> tuple[Method, ...]:
    """The methods applied to ``model``, in order; empty for a dense model."""
    found = sites(model)
    return found[0].methods if found else ()


def schedule(methods: Sequence[Method], layout: Layout) -> dict[int, tuple[Step, ...]]:
    """Which method acts at which block.

    Raises:
        TokensieveError: sites outside the model, a schedule that removes more than there is, or methods in conflict.
    """
    plan: dict[int, list[Step]] = {}
    skipped: dict[int, Method] = {}
    if len(methods) > 1 and any(m.ragged for m in methods):
        names = ", ".join(m.name for m in methods)
        raise TokensieveError(
            f"{names} do not compose: with a different number of tokens per image a schedule of shares would depend on "
            "the batch; apply the ragged method alone"
        )
    for place, method in enumerate(methods):
        acting = method.blocks(layout.depth)
        if list(acting) != sorted(set(acting)) or (acting and not 0 <= acting[0] <= acting[-1] < layout.depth):
            raise TokensieveError(
                f"{method.name} acts at blocks {list(acting)}: expected ascending numbers below the depth {layout.depth}"
            )
        for ordinal, block in enumerate(acting):
            steps = plan.setdefault(block, [])
            if any(type(step.method) is type(method) and step.method.point == method.point for step in steps):
                raise TokensieveError(
                    f"two {method.name} methods want the same tokens in block {block}: give them different sites"
                )
            steps.append(Step(method, ordinal, f"{method.name}_{place}"))
            for number in _skipping(method, block):
                if number in skipped and skipped[number] is not method:
                    raise TokensieveError(
                        f"{skipped[number].name} and {method.name} both make tokens skip block {number}: "
                        "give them different sites"
                    )
                skipped[number] = method
    _simulate(plan, methods, layout)
    return {block: tuple(steps) for block, steps in sorted(plan.items())}


def _skipping(method: Method, block: int) -> range:
    if method.returns == "end":
        return range(0)
    acting = block + 1 if method.point == "after" else block
    end, after_attention = algebra.return_point(method.returns, block, method.point)
    return range(acting, end + 1 if after_attention else end)


def _simulate(plan: dict[int, list[Step]], methods: Sequence[Method], layout: Layout) -> None:
    """Walk the counts through the blocks: every ``remaining`` must give something between 1 and what is there."""
    present = layout.grid[0] * layout.grid[1]
    away: list[tuple[tuple[int, bool], int]] = []
    for block in range(layout.depth):
        for point in POINTS:
            due = (block, point != "before")
            present += sum(count for at, count in away if at <= due)
            away = [(at, count) for at, count in away if at > due]
            for step in plan.get(block, ()):
                if step.method.point != point:
                    continue
                left = step.method.remaining(present, step.ordinal, layout)
                if not 1 <= left <= present:
                    raise TokensieveError(
                        f"{step.method} leaves {left} of {present} tokens in block {block}: expected 1 to {present}; "
                        "remove fewer"
                    )
                if step.method.returns != "end":
                    away.append((algebra.return_point(step.method.returns, block, point), present - left))
                present = left


def _refuse_wrapped(model: nn.Module) -> None:
    wrapped = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch._dynamo.eval_frame.OptimizedModule)
    if isinstance(model, wrapped):
        raise RefusedError(
            f"the model is wrapped in {type(model).__name__}: apply methods to the plain model first, then wrap it"
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def probe_input(model: nn.Module) -> Tensor:
    """A fixed random image (1, C, H, W) of the model's input size, on its device and in its dtype."""
    owner: Any = family_of(model).owner
    config = getattr(owner, "pretrained_cfg", None) or {}
    embed = owner.patch_embed
    size = getattr(embed, "img_size", None) or config.get("input_size", (3, 224, 224))[1:]
    weight = next(owner.parameters())
    channels = int(getattr(owner, "in_chans", None) or getattr(getattr(embed, "proj", None), "in_channels", 3))
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, channels, *size, generator=generator) * 2 - 1
    return image.to(device=weight.device, dtype=weight.dtype)


def check_identity(model: nn.Module, probe: Tensor | None = None, taps: bool = True) -> None:
    """Run every block of a dense model both as it is and in its family's two halves, and compare bit by bit.

    Raises:
        RefusedError: a block differs, or (with ``taps``) its attention does not use the fused kernel.
    """
    located = family_of(model)
    family = located.family
    problems: list[str] = []
    seen: list[int] = []

    def compare(number: int) -> Callable[..., None]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            seen.append(number)
            try:
                tap = Tap()
                with tap:
                    half = family.attention(block, args[0], **kwargs)
                if taps:
                    tap.attended()
                if not torch.equal(family.mlp(block, half), out):
                    problems.append(f"block {number} ({type(block).__name__}) differs from its two halves")
            except (AttributeError, TypeError, RuntimeError, RefusedError) as error:
                problems.append(f"block {number} ({type(block).__name__}): {error}")

        return hook

    handles = [
        block.register_forward_hook(compare(number), with_kwargs=True)
        for number, block in enumerate(family.blocks(located.owner))
    ]
    try:
        with _evaluating(model):
            model(probe_input(model) if probe is None else probe)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise RefusedError(f"the forward of {type(model).__name__} never called its blocks: it cannot be reduced")
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RefusedError(f"{type(located.owner).__name__} is not what family {family.name} expects: {problems[0]}{more}")


@dataclass(frozen=True)
class Trace:
    """What one run did: tokens per block, what every site decided, and the state before the last restore."""

    stages: tuple[Stage, ...]
    events: tuple[Event, ...]
    tokens: Tokens | None


def trace(model: nn.Module, x: Tensor) -> Trace:
    """Run an applied model on ``x`` in eval mode and return its record. Blocks before the first site are dense.

    A diagnostic: it hooks the model while it runs, so do not call it from two threads on one model.
    """
    located = family_of(model)
    layout = located.family.layout(located.owner)
    lengths: dict[int, int] = {}
    states: list[Tokens] = []
    handles = [
        block.register_forward_pre_hook(
            lambda module, args, number=number: lengths.__setitem__(number, args[0].shape[1]),  # type: ignore[misc]
        )
        for number, block in enumerate(located.family.blocks(located.owner))
        if not isinstance(block, SievedBlock)
    ]
    handles += [site.register_forward_pre_hook(lambda module, args: states.append(args[0])) for site in sites(model)]
    try:
        with _evaluating(model):
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    dense = tuple(Stage(n, lengths[n], lengths[n]) for n in range(layout.depth) if n in lengths)
    if not states:
        return Trace(dense, (), None)
    return Trace(dense + states[-1].stages, states[-1].events, states[-1])
