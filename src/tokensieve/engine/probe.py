"""Proof before change: every block is run both as it is and in its family's two halves, and compared bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokensieve.attention.tap import Tap
from tokensieve.engine.running import is_compiled
from tokensieve.engine.takeover import TakenOver, give_back, take_over
from tokensieve.errors import RefusedError, TokensieveError
from tokensieve.families._family import Family, own_input_size, taken_apart
from tokensieve.families._locate import Located, family_of, irreducible
from tokensieve.families._multihead import as_written
from tokensieve.tokens.form import Form

PARTS = 4.0  # times the root of what a dtype resolves: how far an attention by its parts may be from the model's own
PROBE = "_tokensieve_probe"  # the attribute of a block that holds its probe


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def probe_input(model: nn.Module) -> Tensor:
    """A fixed random image (1, C, H, W) of the model's input size, or clip, on its device and in its dtype."""
    owner = irreducible(model)
    if owner is None:
        located = family_of(model)
        owner, size = located.owner, located.family.sample_shape(located.owner)
    else:
        size = own_input_size(owner)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, *size, generator=generator, device="cpu") * 2 - 1
    return image.to(device=device_of(owner), dtype=next(owner.parameters()).dtype)


def device_of(module: nn.Module) -> torch.device:
    """Where ``module`` runs: where its weights are, or where accelerate takes them when they are asked for.

    Raises:
        RefusedError: its weights are on the meta device, and nothing says where they are to go.
    """
    weights = (weight.device for weight in module.parameters())
    placed = next((device for device in weights if device.type != "meta"), None)
    if placed is not None:
        return placed
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            device = getattr(one, "execution_device", None)
            if device is not None:
                return torch.device(device)
    raise RefusedError(
        f"the weights of this {type(module).__name__} are on the meta device, which has no values: load them first"
    )


def uncompiled(model: nn.Module) -> AbstractContextManager[object]:
    """While it runs, a model that is compiled, or has compiled parts, runs as it was written."""
    compiled = any(map(is_compiled, model.modules()))
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


@dataclass
class Probe:
    """What one block of a dense model does, asked while the model runs.

    Attributes:
        family: runs the block in halves.
        name: of the block, for sentences.
        taps: whether its attention must use the fused kernel.
        prefix: P, the prefix tokens of the model.
        shape: of the tokens that went into it; None before it ran.
        problem: what is wrong with it, or None.
    """

    family: Family
    name: str
    taps: bool
    prefix: int = 0
    shape: tuple[int, ...] | None = None
    problem: str | None = None
    out: Any = None

    def compare(self, block: ProbedBlock, x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The block's own answer, compared bit by bit with that of its two halves."""
        with as_written():
            out = block.dense(x, *args, **kwargs)
        form = self.family.form(block, x)
        self.shape, self.out = tuple((x if form is None else form.taken(x)).shape), out
        try:
            tap = Tap()
            tap.as_given = True
            named = self.family.keywords(block, args, kwargs)
            half = self.family.tapped(block, x, tap, **named)
            if self.taps and not self.family.in_parts:
                tap.check()
            if not torch.equal(self.family.mlp(block, half), self.family.opened(out)):
                self.problem = f"{self.name} differs from its two halves, which must do all that its forward does"
            elif self.family.in_parts and not self.family.packed:
                self.problem = self._of_parts(block, x, form, named, half)
        except (AttributeError, TypeError, RuntimeError, RefusedError) as error:
            self.problem = f"{self.name}: {error}"
        return out

    def _of_parts(
        self, block: nn.Module, x: Tensor, form: Form | None, kwargs: dict[str, Any], half: Tensor
    ) -> str | None:
        """What is wrong where the attention runs by its parts on all tokens, as it does once tokens have moved."""
        tokens, expected = (x, half) if form is None else (form.taken(x), form.taken(half))
        positions = torch.arange(tokens.shape[1] - self.prefix, device=x.device).expand(len(tokens), -1)
        told = kwargs if form is None else {**kwargs, **form.told}
        placed = self.family.reindex(block, told, positions, self.prefix) if told else told
        tap = Tap()
        found = self.family.tapped(block, tokens, tap, **placed)
        tap.check()
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        if error <= PARTS * torch.finfo(x.dtype).eps ** 0.5:
            return None
        return f"{self.name} attends otherwise by its parts, which differ by {error:.1%} of the largest value"

    def handed_on(self, block: nn.Module, args: Any, out: Any) -> None:
        """The forward hook behind all others: what leaves the block must be what its forward gave."""
        if self.problem is None and out is not self.out:
            self.problem = (
                f"{self.name} hands on what a hook has put in the place of its output: apply methods before such hooks"
            )

    def said(self) -> str | None:
        """What is wrong, or None."""
        if self.shape is None:
            return (
                f"{self.name} was never asked when the model ran: its forward is replaced on the module, or the "
                "model's forward does not call it"
            )
        return self.problem


class ProbedBlock(TakenOver):
    """Mixed into a block's class while it is probed."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        probe: Probe = vars(self)[PROBE]
        return probe.compare(self, *taken_apart(args, kwargs))

    def dense(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The block's original forward."""
        return super().forward(x, *args, **kwargs)  # type: ignore[misc]


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Afterwards every module has the plain values that it had: running a model may change it, as transformers' Swin
    sets its windows for good when it is given a small image."""
    kept = [
        (vars(part), {name: value for name, value in vars(part).items() if _is_plain(value)})
        for part in model.modules()
    ]
    try:
        yield
    finally:
        for attributes, values in kept:
            attributes.update(values)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


@contextmanager
def _probed(located: Located, taps: bool) -> Iterator[list[Probe]]:
    """Probes in all blocks, in their order; the blocks are as they were afterwards."""
    blocks = located.family.blocks(located.owner)
    if len({id(block) for block in blocks}) < len(blocks):
        raise RefusedError(
            f"{type(located.owner).__name__} runs one block at several depths, where methods act differently: give "
            "every depth a block of its own (copy.deepcopy)"
        )
    probes, handles = [], []
    prefix = located.family.layout(located.owner).prefix
    try:
        for number, block in enumerate(blocks):
            probe = Probe(located.family, f"block {number} ({type(block).__name__})", taps, prefix)
            probes.append(probe)
            take_over(block, ProbedBlock)
            vars(block)[PROBE] = probe
            handles.append(block.register_forward_hook(probe.handed_on))
        yield probes
    finally:
        for handle in handles:
            handle.remove()
        for block in blocks:
            vars(block).pop(PROBE, None)
            if isinstance(block, ProbedBlock):
                give_back(block)


def check_identity(model: nn.Module, probe: Tensor | Mapping[str, Any] | None = None, taps: bool = True) -> None:
    """Run every block of a dense model both as it is and in its family's two halves, and compare bit by bit.

    Raises:
        RefusedError: a block differs, is never asked, or (with ``taps``) its attention does not use the fused kernel.
        TokensieveError: the model does not run on the ``probe`` given.
    """
    located = family_of(model)
    if isinstance(probe, Tensor) and probe.numel() == 0:
        raise TokensieveError(f"the probe of shape {tuple(probe.shape)} holds no image: nothing can be seen on it")
    try:
        with _unchanged(model), _probed(located, taps) as probes, evaluating(model), uncompiled(model):
            _run(model, located, probe)
    except RefusedError:
        raise
    except Exception as error:
        if probe is None:
            raise
        given = f"of shape {tuple(probe.shape)}" if isinstance(probe, Tensor) else repr(probe)
        raise TokensieveError(
            f"the model does not run on the probe {given} ({error}): give images (1, C, H, W) of its own kind"
        ) from error
    shapes = [one.shape for one in probes if one.shape is not None]
    if not shapes:
        raise RefusedError(f"the forward of {type(model).__name__} never called its blocks: it cannot be reduced")
    problems = [said for one in probes if (said := one.said()) is not None]
    if problems:
        more = f" (and {len(problems) - 1} more blocks)" if len(problems) > 1 else ""
        raise RefusedError(
            f"{type(located.owner).__name__} is not what family {located.family.name} expects: {problems[0]}{more}"
        )
    if probe is None:
        _check_layout(located, shapes)


def _run(model: nn.Module, located: Located, probe: Any) -> None:
    """Run ``model`` on what the user gave, else on an image of its own size; of one that wants more than images, or
    something else, the encoder inside."""
    if isinstance(probe, Mapping):
        model(**probe)
        return
    if probe is not None:
        model(probe)
        return
    example = located.family.example(located.owner)
    if example is not None:
        located.owner(**example)
        return
    image, images = probe_input(model), located.family.images
    if images is not None and getattr(model, "main_input_name", "pixel_values") != images:
        located.owner(image)
        return
    try:
        model(image)
    except RefusedError:
        raise
    except Exception:
        if located.owner is model:
            raise
        located.owner(image)


def _check_layout(located: Located, shapes: list[tuple[int, ...]]) -> None:
    """Hold what the family says of the tokens to the ``shapes`` (1, L, C) that went into the blocks on an own image.

    Raises:
        RefusedError: they differ.
    """
    layout = located.family.layout(located.owner)
    *_, length, dim = shapes[0]
    tokens = f"tokens ({layout.prefix} of the prefix and a grid of {' × '.join(map(str, layout.grid))})"
    said = {"blocks": layout.depth, "channels": layout.dim, tokens: layout.prefix + layout.patches}
    for (word, declared), ran in zip(said.items(), (len(shapes), dim, length), strict=True):
        if declared != ran:
            raise RefusedError(
                f"family {located.family.name} says that {type(located.owner).__name__} has {declared} {word}, and it "
                f"ran on {ran}: correct layout() of the family"
            )
